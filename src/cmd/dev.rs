//! `jobctl dev`: a scheduler and a worker in one process, for trying out.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use tokio_util::sync::CancellationToken;

use super::{
    Codes, DONE, EXIT_CODES, context, logs, report,
    role::{Secured, Signals, start_log},
    scheduler, start,
    welcome::{Place, Welcome},
    worker,
};
use crate::{
    api::{self, StartRequest},
    client::{
        Client, Proof,
        contexts::{self, Contexts},
        render::{self, Look},
    },
    config::LogFormat,
    identity::{ca, token::Invitation},
    net::{bounds::Bounds, socket::TcpListener},
    roles::{
        scheduler::{self as scheduler_role, Listeners},
        worker as worker_role,
    },
};

/// The worker is in this very process; what takes longer will not come.
const READY: Duration = Duration::from_secs(30);

const NAME: &str = "dev";

/// What is tried out sleeps more than it computes.
const SLOTS: u32 = 16;

const EXAMPLES: &str = "\
Examples:
  jobctl dev -- bash -c 'for i in 1 2 3; do echo \"line $i\"; sleep 1; done'
  jobctl dev                  stays; use it from another terminal";

/// Run a whole cluster in one process, for trying out
///
/// With a command: runs it as a job, shows its output and ends with its exit
/// code. Without: runs until Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES, after_long_help = EXIT_CODES)]
pub(super) struct Args {
    /// What to run, in this folder, and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<String>,

    /// Let control characters of the job act on a terminal
    #[arg(long, requires = "command")]
    raw: bool,

    /// Where to keep everything [default: a folder removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// What the roles log on stderr
    #[arg(
        long,
        env = "JOBCTL_LOG_LEVEL",
        hide_env_values = true,
        value_name = "LEVEL",
        default_value = "error"
    )]
    log_level: String,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    if args.command.first().is_some_and(String::is_empty) {
        return Err(super::usage("dev", "the command is empty"));
    }
    start_log(&args.log_level, LogFormat::Text)?;
    worker::adopt();
    worker::keep_from_jobs()?;
    if args.command.is_empty() {
        stay(args.data_dir).await
    } else {
        Ok(run_job(args.command, start::look(args.raw), args.data_dir)
            .await
            .unwrap_or_else(|error| report(&error, Codes::Job)))
    }
}

/// Says what to do, and runs until a signal: that is how it is meant to end.
async fn stay(data_dir: Option<PathBuf>) -> anyhow::Result<u8> {
    let idle = async |client: Client, contexts: PathBuf| {
        let server = client.server();
        render::note(&format!(
            "a cluster runs at {server} until Ctrl-C; elsewhere, type:"
        ));
        render::data(&examples(&contexts))?;
        std::future::pending().await
    };
    with_cluster(data_dir, idle).await?;
    Ok(DONE)
}

/// Runs one job and shows its output; the number is its exit code.
async fn run_job(
    command: Vec<String>,
    look: Look,
    data_dir: Option<PathBuf>,
) -> anyhow::Result<u8> {
    let mut words = command.into_iter();
    let folder = env::current_dir().context("the current folder is not there")?;
    let folder = folder.into_os_string().into_string();
    let request = StartRequest {
        command: words.next(),
        args: words.collect(),
        cwd: Some(folder.map_err(|folder| anyhow!("{} is not UTF-8", folder.display()))?),
        ..StartRequest::default()
    };
    let follow = async |client: Client, _| {
        let job = client.start(&request).await?.job_id;
        let query = start::everything(job);
        logs::to_the_end(&client, query, look).await
    };
    with_cluster(data_dir, follow).await
}

/// Has `work` done by a cluster that is there for it alone. Returns what the
/// work returned, or the exit code that stands for a signal.
async fn with_cluster(
    data_dir: Option<PathBuf>,
    work: impl AsyncFnOnce(Client, PathBuf) -> anyhow::Result<u8>,
) -> anyhow::Result<u8> {
    // Before the folder is made: from now on a signal cannot leave it behind.
    let mut signals = Signals::new()?;
    let folder = Folder::new(data_dir)?;
    let listeners = Listeners {
        http: scheduler::HTTP.listen_somewhere().await?,
        grpc: scheduler::GRPC.listen_somewhere().await?,
    };
    let listener = worker::GRPC.listen_somewhere().await?;
    let place = Place::of(&listeners, Secured::ByTls, None)?;
    let grpc = place.grpc.clone();
    let config = scheduler_config(folder.path(), &listeners)?;
    let opened = scheduler_role::open(config, listeners).await?;
    let welcome = Welcome {
        issuer: opened.issuer(),
        folder: Some(folder.client()),
        place,
        data_dir: folder.path().to_owned(),
    };
    welcome.context(&folder.client()).await?;
    // It may listen elsewhere than the last time.
    let server = welcome.place.server.clone();
    let context = Contexts::change(&folder.client(), |contexts| {
        let current = contexts.current().map(str::to_owned);
        contexts.move_to(&current.ok_or(contexts::Error::NoneCurrent)?, server)
    })?;
    let client = Client::new(context.server.clone(), &Proof::of(&context)?)?;
    let token = welcome.worker_token().await?;
    let invitation = format!("{token}@{grpc}").parse()?;
    let shutdown = CancellationToken::new();
    let worker = worker_config(folder.path(), invitation);
    let roles = cluster(opened, worker, listener, shutdown.clone());
    let mut roles = tokio::spawn(roles);

    let outcome = tokio::select! {
        outcome = async {
            let ready = client.ready(1, READY).await;
            ready.context("the worker did not become ready")?;
            work(client, folder.client()).await
        } => outcome,
        code = signals.next() => {
            render::remark("");
            render::remark("stopping; Ctrl-C again ends it at once");
            Ok(code)
        }
        ended = &mut roles => {
            ended??;
            return Err(anyhow!("the cluster ended by itself"));
        }
    };
    shutdown.cancel();
    tokio::select! {
        ended = &mut roles => {
            let code = outcome?;
            ended??;
            Ok(code)
        }
        code = signals.next() => Ok(code),
    }
}

/// Three commands to type next, which find the cluster by its contexts.
fn examples(contexts: &Path) -> String {
    let mut jobctl = "jobctl".to_owned();
    context::push_flag(&mut jobctl, "--client-dir", &contexts.to_string_lossy());
    format!(
        "{jobctl} start --follow -- bash -c 'echo hello; sleep 1; echo bye'\n\
         {jobctl} jobs\n\
         {jobctl} logs last\n"
    )
}

fn scheduler_config(
    folder: &Path,
    listeners: &Listeners,
) -> anyhow::Result<scheduler_role::Config> {
    Ok(scheduler_role::Config {
        heartbeat_interval: scheduler::HEARTBEAT,
        call_deadline: scheduler::DEADLINE,
        data_dir: folder.join("scheduler"),
        keep_finished: scheduler::KEEP_FINISHED,
        keep_for: scheduler::KEEP_FOR,
        keep_audit: scheduler::KEEP_AUDIT,
        names: scheduler::names(listeners, Vec::new())?,
        security: scheduler_role::Security::OwnAuthority,
        bounds: Bounds::default(),
        body_bytes: api::MAX_BODY,
        job_followers: scheduler::JOB_FOLLOWERS,
        certificate_lifetime: ca::LIFETIME,
    })
}

fn worker_config(folder: &Path, invitation: Invitation) -> worker_role::Config {
    worker_role::Config {
        name: NAME.to_owned(),
        labels: BTreeMap::new(),
        slots: Some(worker_role::processors().max(SLOTS)),
        // The port may be another one than the last time.
        scheduler: Some(invitation.address.clone()),
        security: worker_role::Security::Joined(Some(invitation)),
        bounds: worker_role::bounds(Bounds::default().followers),
        advertise: None,
        data_dir: folder.join("worker"),
        script_dir: None,
        shim: PathBuf::from(worker::SHIM),
        grace: worker::GRACE,
        output_limit: worker::OUTPUT_LIMIT,
        min_free_disk: worker::MIN_FREE_DISK,
        keep_finished: worker::KEEP_FINISHED,
        on_stop: worker_role::OnStop::EndJobs,
        control_groups: worker_role::ControlGroups::WherePossible,
        rules: worker_role::Rules::default(),
    }
}

/// Both roles. The worker ends first: it still has jobs to end and to report.
fn cluster(
    scheduler: scheduler_role::Opened,
    worker: worker_role::Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let no_worker = CancellationToken::new();
    let scheduler = scheduler.run(no_worker.clone());
    let worker = worker_role::run(worker, listener, shutdown.clone());
    async move {
        let scheduler = async {
            let ended = scheduler.await;
            shutdown.cancel();
            ended.context("the scheduler failed")
        };
        let worker = async {
            let ended = worker.await;
            no_worker.cancel();
            ended.context("the worker failed")
        };
        let (scheduler, worker) = tokio::join!(scheduler, worker);
        scheduler.and(worker)
    }
}

/// Where the cluster keeps everything.
enum Folder {
    /// Removed when dropped.
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn new(asked: Option<PathBuf>) -> anyhow::Result<Self> {
        match asked {
            Some(folder) => {
                fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
                Ok(Self::Kept(folder.canonicalize()?))
            }
            None => {
                let made = tempfile::Builder::new().prefix("jobctl-dev-").tempdir();
                Ok(Self::Temporary(
                    made.context("cannot make a temporary folder")?,
                ))
            }
        }
    }

    /// Where the client finds how to reach it.
    fn client(&self) -> PathBuf {
        self.path().join("client")
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(folder) => folder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_next_finds_the_cluster() {
        let examples = examples(Path::new("/tmp/a b/client"));
        assert_eq!(examples.lines().count(), 3);
        assert!(examples.contains("\njobctl --client-dir '/tmp/a b/client' jobs\n"));
    }

    #[test]
    fn a_temporary_folder_goes_and_a_named_one_stays() {
        let outer = tempfile::tempdir().unwrap();
        let kept = outer.path().join("a/b");
        drop(Folder::new(Some(kept.clone())).unwrap());
        assert!(kept.is_dir());
        let temporary = Folder::new(None).unwrap();
        let path = temporary.path().to_owned();
        assert!(path.is_dir());
        drop(temporary);
        assert!(!path.exists());
    }
}
