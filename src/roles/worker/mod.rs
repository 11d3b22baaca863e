//! The worker: runs jobs as processes of its machine, records their output, and
//! tells the scheduler. `run` is the whole of it. It can end at any moment: the
//! shims go on with the jobs, and the next worker takes them over.

mod cgroup;
mod error;
mod folders;
mod grpc;
mod health;
mod job;
mod jobs;
mod journal;
mod limits;
mod listing;
mod member;
mod not_started;
mod output;
mod output_sync;
mod ran;
mod rules;
mod scripts;
mod session;
mod shim;
mod strays;
mod users;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    thread::available_parallelism,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, child_subreaper, getrlimit, setrlimit};
use tokio::sync::oneshot;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

#[cfg(any(test, fuzzing))]
pub use self::journal::fuzz;
use self::{
    cgroup::Cgroups,
    folders::{Folders, Lock},
    grpc::Service,
    health::Health,
    job::Launch,
    jobs::Jobs,
    journal::{Broken, Journal},
    limits::InForce,
    member::{Files, Id},
    output_sync::OutputSync,
    rules::Allowed,
    scripts::Scripts,
    session::Identity,
    shim::end_unfollowed,
    users::Users,
};
pub use self::{
    error::RunError as Error,
    limits::{Limits, Unenforceable},
    rules::{Commands, Rules},
};
use crate::{
    identity::{tls::Tls, token::Invitation},
    ids::is_name,
    net::{accept, bounds::Bounds, dial, socket::TcpListener},
    proto::{self, worker_server},
    roles::shim::proc_is_ours,
};

/// How long readers of output get to take the rest once all jobs have ended.
const DRAIN: Duration = Duration::from_secs(5);

/// What a worker has to be told: finished values.
#[derive(Clone, Debug)]
pub struct Config {
    /// What people call it; see [`crate::ids::is_name`].
    pub name: String,
    /// What jobs may choose it by; see [`crate::labels::is_key`].
    pub labels: BTreeMap<String, String>,
    /// How many jobs it is given at once; 0: none, `None`: as many as come.
    pub slots: Option<u32>,
    /// The scheduler's gRPC server, as host:port; `None`: where the worker joined.
    pub scheduler: Option<String>,
    /// Where the scheduler dials the worker, as host:port; `None`: where the
    /// listener listens, or at the address from which the scheduler is reached.
    pub advertise: Option<String>,
    /// How it shows who it is.
    pub security: Security,
    /// What its server takes from outside; see [`bounds`].
    pub bounds: Bounds,
    /// Where the worker keeps its identity and the output of its jobs. Made if
    /// it is missing; held by one worker at a time.
    pub data_dir: PathBuf,
    /// The script folder; `None`: `scripts` in the data folder, made if missing.
    pub script_dir: Option<PathBuf>,
    /// The jobctl executable, run once per job as `jobctl shim`.
    pub shim: PathBuf,
    /// From TERM to KILL, where a stop does not say otherwise.
    pub grace: Duration,
    /// The most output kept of a job, in bytes: beyond it the oldest goes.
    pub output_limit: u64,
    /// In bytes: while the disk of the data folder has less left, the worker takes no
    /// jobs.
    pub min_free_disk: u64,
    /// How many jobs that ended long ago the worker itself still answers for.
    pub keep_finished: usize,
    /// Whether jobs get control groups.
    pub control_groups: ControlGroups,
    /// What jobs may be.
    pub rules: Rules,
    /// What happens to the jobs at `shutdown`.
    pub on_stop: OnStop,
}

/// How a worker shows who it is, and tells who calls.
#[derive(Clone, Debug)]
pub enum Security {
    /// With the certificate in its data folder; if there is none, it joins first.
    Joined(Option<Invitation>),
    /// With a certificate that another authority signs than the scheduler's own.
    ExternalAuthority(Tls),
    /// Not at all: plain text.
    Insecure,
}

/// Whether each job gets a control group of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlGroups {
    /// Where version 2 is there and this worker may make them.
    WherePossible,
    /// Jobs are ended process by process.
    Never,
}

/// What happens to the jobs of a worker that is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// They go on, and the next worker takes them over.
    LeaveJobs,
    /// They are ended first.
    EndJobs,
}

/// What a worker with so many followers takes, unless told otherwise.
pub fn bounds(followers: u32) -> Bounds {
    Bounds {
        followers,
        // All of them come over the scheduler's one connection.
        streams: followers.saturating_mul(2),
        ..Bounds::default()
    }
}

/// How many processors this process may use, at least 1.
pub fn processors() -> u32 {
    available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Runs a worker until `shutdown`. Then it takes no more jobs, does with those it
/// has what `on_stop` says, tells the scheduler, and returns when everything it
/// spawned has ended. Dropping the future instead leaves the jobs as they are.
///
/// # Errors
///
/// When it cannot begin (a folder, a damaged journal, a refusal of the scheduler),
/// or cannot go on (its server, its journal, its data folder).
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    // Where it cannot be read it is missing, and the first job says so.
    if !proc_is_ours().unwrap_or(true) {
        return Err(Error::ForeignProc);
    }
    let folders = Folders::prepare(&config).await?;
    let confines = Confines::find(&config, folders.data())?;
    // A token is spent only if everything else is as it should be.
    let files = Files::new(folders.data());
    let (tls, joined_at) = match config.security {
        Security::Joined(invitation) => {
            let (tls, at) = files.member(&config.name, invitation).await?;
            (Some(tls), Some(at))
        }
        Security::ExternalAuthority(tls) => (Some(tls), None),
        Security::Insecure => (None, None),
    };
    let name = called(&config.name, tls.as_ref());
    let renews = joined_at.is_some();
    let scheduler = config.scheduler.or(joined_at).ok_or(Error::NotJoined)?;
    let address = match config.advertise {
        Some(address) => address,
        None => reachable(&listener, &scheduler).map_err(Error::Listener)?,
    };
    let (broken_sender, mut broken) = oneshot::channel();
    let id = match &tls {
        Some(tls) => Id::Certified(tls.credentials().identity.id),
        None => Id::Told(folders.data().join("worker-id")),
    };
    // Before anything of a job is touched that may be another worker's.
    let _alone = strays::alone(&id.known()?)?;
    let (journal, mut contents) = Journal::open(&folders.journal(), move |error| {
        // Where the worker has ended already nobody needs to know.
        let _ = broken_sender.send(error);
    })?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot_id = boot_id.trim().to_owned();
    #[cfg(test)]
    let boot_id = match crate::simulation::is_on() {
        true => crate::simulation::machines::boot_id(&name),
        false => boot_id,
    };
    tracing::info!(
        worker = name,
        address,
        scripts = %folders.scripts().display(),
        data = %folders.data().display(),
        version = env!("CARGO_PKG_VERSION"),
        "worker listens"
    );
    confines.log();
    let Confines {
        allowed,
        users,
        cgroups,
        limits,
    } = confines;
    let tasks = TaskTracker::new();
    let closing = CancellationToken::new();
    let scripts = Scripts::new(name.clone(), folders.scripts().to_owned(), allowed, users);
    let place = folders.place();
    let health_folders = vec![place.output.clone(), place.results.clone()];
    let output_sync = OutputSync::start(place.clone(), &tasks, closing.clone());
    let launch = Launch {
        worker: name.clone(),
        shim: config.shim,
        scripts: scripts.clone(),
        grace: config.grace,
        output_limit: config.output_limit,
        open_files: raise_open_files(),
        limits: limits.processes(),
        adopts: child_subreaper().is_ok_and(|set| set.is_some()),
        rules: config.rules,
        place,
        cgroups: cgroups.clone(),
        boot_id: boot_id.clone(),
        journal: journal.clone(),
        output_sync,
        closing: closing.clone(),
    };
    strays::gather(
        &mut contents,
        &launch.journal,
        &launch.place,
        &boot_id,
        launch.grace,
    )
    .await;
    let jobs = Jobs::new(launch, config.keep_finished, tasks.clone());
    jobs.take_over(contents).await;

    // Each of these ends the next, in this order.
    let ending = CancellationToken::new();
    let (leave, close) = (CancellationToken::new(), CancellationToken::new());
    let identity = Identity {
        name: name.clone(),
        address,
        id,
        boot_id,
        labels: config.labels,
        slots: config.slots,
        scripts,
        health: Health::new(folders.data(), health_folders, config.min_free_disk),
        ending: ending.clone(),
        renew: Arc::default(),
    };
    let security = match &tls {
        Some(tls) => dial::Security::Tls(tls.clone()),
        None => dial::Security::Insecure,
    };
    let client = session::client(&scheduler, security)?;
    let _renewing = tls.clone().filter(|_| renews).map(|tls| {
        let (client, asked) = (client.clone(), identity.renew.clone());
        let renewing = async move { files.keep_current(tls, client, asked).await };
        AbortOnDropHandle::new(tokio::spawn(renewing))
    });
    let session = session::run(scheduler, client, identity, jobs.clone(), leave.clone());
    let server = serve(
        name,
        listener,
        (tls, config.bounds),
        jobs.clone(),
        close.clone(),
    );
    // Whoever drops this future ends them all.
    let _closed = closing.clone().drop_guard();
    let mut session = AbortOnDropHandle::new(tokio::spawn(session));
    let mut server = AbortOnDropHandle::new(tokio::spawn(server));
    let data = folders.data().to_owned();
    let mut watching = pin!(folders.clone().watch(journal));
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = &mut session => flatten(ended),
        ended = &mut server => flatten(ended),
        error = &mut watching => Err(error),
        Ok(why) = &mut broken => Err(match why {
            Broken::Io(error) => Error::JournalBroken(error),
            Broken::Removed => Error::Removed(data),
        }),
    };

    ending.cancel();
    // Ends that the journal cannot have are the next worker's to see.
    let on_stop = match &result {
        Err(Error::JournalBroken(_) | Error::Removed(_)) => OnStop::LeaveJobs,
        Ok(()) | Err(_) => config.on_stop,
    };
    take_no_more(&jobs, on_stop).await;
    leave.cancel();
    if !within(DRAIN, &mut session).await {
        tracing::warn!("the scheduler did not take the last news in time");
    }
    closing.cancel();
    close.cancel();
    if !within(DRAIN, &mut server).await {
        tracing::warn!("cut off followers that did not read");
    }
    tasks.close();
    tasks.wait().await;
    if let Some(cgroups) = cgroups {
        cgroups.clear();
    }
    result
}

/// Returns once all jobs have ended, or, where they are left, once it is known
/// of each whether it runs.
async fn take_no_more(jobs: &Jobs, on_stop: OnStop) {
    match on_stop {
        OnStop::EndJobs => {
            tracing::info!("no more jobs are taken, those that run are ended");
            jobs.drain().await;
        }
        OnStop::LeaveJobs => {
            jobs.close();
            // What was accepted is to have its answer.
            jobs.begun(DRAIN).await;
            let running = jobs.running();
            tracing::info!(running, "no more jobs are taken, those that run go on");
        }
    }
}

/// A worker is what its certificate calls it, where that is a name.
fn called(asked: &str, tls: Option<&Tls>) -> String {
    let own = tls.map(|tls| tls.credentials().identity.name.clone());
    let name = own.filter(|own| is_name(own));
    let name = name.unwrap_or_else(|| asked.to_owned());
    if name != asked {
        tracing::warn!(
            name,
            asked,
            "by its certificate this worker has another name"
        );
    }
    name
}

/// Ends every job that a worker left behind in `data_dir`, and returns how many
/// there were once nothing of them is left. The next worker reports them.
///
/// # Errors
///
/// When a worker is running there, the journal cannot be read, or some jobs
/// cannot be ended.
pub async fn kill_all(data_dir: &Path, grace: Duration) -> Result<usize, Error> {
    let _lock = Lock::take(data_dir).await?;
    // Without a change to it: there may be no room for one.
    let contents = Journal::read(&folders::journal(data_dir))?;
    let living = contents
        .jobs
        .iter()
        .filter(|(_, known)| known.end.is_none());
    let ended = futures_util::future::join_all(living.map(|(id, _)| end_unfollowed(*id, grace)));
    let (mut count, mut still_there) = (0, 0);
    for result in ended.await {
        match result {
            Ok(()) => count += 1,
            // Nobody there: it has ended by itself.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => still_there += 1,
        }
    }
    match still_there {
        0 => Ok(count),
        _ => Err(Error::StillThere(still_there)),
    }
}

/// Whether a task ended in time; one that did not is ended.
async fn within<T>(limit: Duration, task: &mut AbortOnDropHandle<T>) -> bool {
    let in_time = task.is_finished() || tokio::time::timeout(limit, &mut *task).await.is_ok();
    if !in_time {
        task.abort();
    }
    in_time
}

fn flatten(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|panic| Err(Error::Listener(io::Error::other(panic))))
}

/// Where the scheduler can dial what listens everywhere: the address with which
/// this machine would call it.
fn reachable(listener: &TcpListener, scheduler: &str) -> io::Result<String> {
    let listens = listener.local_addr()?;
    if !listens.ip().is_unspecified() {
        return Ok(listens.to_string());
    }
    // Connecting says which way a datagram would go, and sends none.
    let any = match listens {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let way = UdpSocket::bind(any)?;
    way.connect(scheduler)?;
    let own = way.local_addr()?.ip();
    Ok(SocketAddr::new(own, listens.port()).to_string())
}

async fn serve(
    name: String,
    listener: TcpListener,
    (tls, bounds): (Option<Tls>, Bounds),
    jobs: Jobs,
    close: CancellationToken,
) -> Result<(), Error> {
    let service = grpc::routes(Service::new(name, jobs, bounds));
    let served = proto::served(service, &[worker_server::SERVICE_NAME], close.clone()).await;
    let (rpcs, goodbye) = served.map_err(|error| Error::Listener(io::Error::other(error)))?;
    let server = accept::Server {
        listener,
        router: grpc::admitted(rpcs.into_axum_router(), tls.is_none()),
        tls,
        bounds,
        // Who calls is the scheduler, and it is not revoked but replaced.
        cuts: Arc::new(|_| CancellationToken::new()),
        protocol: accept::Protocol::Grpc,
        name: "grpc",
    };
    tokio::join!(server.run(close), goodbye);
    Ok(())
}

/// A worker has a socket per job, and more than a shell's usual limit of jobs.
/// Returns the limit there was, which is what jobs get.
fn raise_open_files() -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        ..before
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    before.current
}

/// What jobs are kept to on this machine.
struct Confines {
    allowed: Allowed,
    users: Users,
    cgroups: Option<Cgroups>,
    limits: InForce,
}

impl Confines {
    /// Fails where this machine cannot keep jobs to what is asked.
    fn find(config: &Config, data: &Path) -> Result<Self, Error> {
        let allowed = Allowed::find(&config.rules.allow_commands, &scripts::own_path())
            .map_err(|(program, source)| Error::Program { program, source })?;
        let users =
            Users::find(&config.rules).map_err(|(user, source)| Error::User { user, source })?;
        let mut cgroups = match config.control_groups {
            ControlGroups::WherePossible => Cgroups::find(&config.name, data),
            ControlGroups::Never => None,
        };
        let limits = InForce::decide(&config.rules.limits, cgroups.as_mut(), &users)?;
        Ok(Self {
            allowed,
            users,
            cgroups,
            limits,
        })
    }

    fn log(&self) {
        let Self {
            allowed,
            users,
            cgroups,
            limits,
        } = self;
        tracing::info!(%allowed, users = users.names(), "what jobs may be");
        tracing::info!(%limits, "what a job may use");
        match cgroups {
            Some(cgroups) => {
                tracing::info!(root = %cgroups.root().display(), "jobs are ended by control group");
            }
            None => tracing::info!("without control groups: jobs are ended process by process"),
        }
    }
}
