//! The worker: runs jobs as processes of its machine, records their output, and
//! tells the scheduler. `run` is the whole of it.

mod error;
mod grpc;
mod job;
mod jobs;
mod output;
mod scripts;
mod session;

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpIncoming;

pub use self::error::RunError as Error;
use self::{
    grpc::Service,
    jobs::{Jobs, Settings},
    scripts::Scripts,
    session::Identity,
};
use crate::proto::{DESCRIPTORS, worker_server::WorkerServer};

/// How long readers of output get to take the rest once all jobs have ended.
const DRAIN: Duration = Duration::from_secs(5);

/// What a worker has to be told: finished values.
#[derive(Clone, Debug)]
pub struct Config {
    /// What people call it; see [`crate::ids::is_name`].
    pub name: String,
    /// The scheduler's gRPC server, as host:port.
    pub scheduler: String,
    /// Where the scheduler dials the worker, as host:port; `None`: where the
    /// listener listens.
    pub advertise: Option<String>,
    /// Where the worker keeps its identity and the output of its jobs. Made if
    /// it is missing; held by one worker at a time.
    pub data_dir: PathBuf,
    /// The script folder; `None`: `scripts` in the data folder, made if missing.
    pub script_dir: Option<PathBuf>,
    /// The jobctl executable, run once per job as `jobctl shim`.
    pub shim: PathBuf,
    /// From TERM to KILL, where a stop does not say otherwise.
    pub grace: Duration,
    /// How many ended jobs, and their output, are kept.
    pub keep_finished: usize,
}

/// Runs a worker until `shutdown`. Then it takes no more jobs, ends those it
/// has, tells the scheduler, says goodbye, and returns when everything it
/// started has ended. Dropping the future instead ends the jobs at once.
///
/// # Errors
///
/// When it cannot begin (a folder, a refusal of the scheduler), or its server
/// cannot go on.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let place = Place::prepare(&config)?;
    let address = match config.advertise {
        Some(address) => address,
        None => listener.local_addr().map_err(Error::Listener)?.to_string(),
    };
    let tasks = TaskTracker::new();
    let jobs = Jobs::new(
        Settings {
            worker: config.name.clone(),
            shim: config.shim,
            scripts: Scripts::new(config.name.clone(), place.scripts.clone()),
            grace: config.grace,
            output_dir: place.output.clone(),
            keep_finished: config.keep_finished,
        },
        tasks.clone(),
    );
    tracing::info!(
        worker = config.name,
        address,
        scripts = %place.scripts.display(),
        data = %place.data.display(),
        version = env!("CARGO_PKG_VERSION"),
        "worker listens"
    );

    // Each of these ends the next, in this order.
    let (leave, close) = (CancellationToken::new(), CancellationToken::new());
    let identity = Identity {
        name: config.name.clone(),
        address,
        id_file: place.data.join("worker-id"),
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned(),
    };
    let session = session::run(config.scheduler, identity, jobs.clone(), leave.clone());
    let server = serve(config.name, listener, jobs.clone(), close.clone());
    let mut session = tokio::spawn(session);
    let mut server = tokio::spawn(server);
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = &mut session => flatten(ended),
        ended = &mut server => flatten(ended),
    };

    tracing::info!("no more jobs are taken, those that run are ended");
    jobs.drain().await;
    leave.cancel();
    if !within(DRAIN, &mut session).await {
        tracing::warn!("the scheduler did not take the last news in time");
    }
    close.cancel();
    if !within(DRAIN, &mut server).await {
        tracing::warn!("cut off followers that did not read");
    }
    tasks.close();
    tasks.wait().await;
    result
}

/// Whether a task ended in time; one that did not is ended.
async fn within<T>(limit: Duration, task: &mut JoinHandle<T>) -> bool {
    let in_time = task.is_finished() || tokio::time::timeout(limit, &mut *task).await.is_ok();
    if !in_time {
        task.abort();
    }
    in_time
}

fn flatten(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|panic| Err(Error::Listener(io::Error::other(panic))))
}

async fn serve(
    name: String,
    listener: TcpListener,
    jobs: Jobs,
    close: CancellationToken,
) -> Result<(), Error> {
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_serving::<WorkerServer<Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let unreadable = |error| Error::Listener(io::Error::other(error));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(Some(2 * grpc::MAX_FOLLOWERS as u32))
        .add_service(health_server)
        .add_service(reflection().build_v1().map_err(unreadable)?)
        .add_service(reflection().build_v1alpha().map_err(unreadable)?)
        .add_service(WorkerServer::new(Service::new(name, jobs)))
        .serve_with_incoming_shutdown(incoming, async move {
            close.cancelled().await;
            health.set_not_serving::<WorkerServer<Service>>().await;
        })
        .await?;
    Ok(())
}

/// The folders of a worker, made and locked.
struct Place {
    data: PathBuf,
    output: PathBuf,
    scripts: PathBuf,
    _lock: File,
}

impl Place {
    fn prepare(config: &Config) -> Result<Self, Error> {
        let data = config.data_dir.clone();
        make_dir(&data)?;
        let path = data.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| Error::Path { path, source })?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::DataDirInUse(data));
        }
        let output = data.join("output");
        // What an earlier worker recorded belongs to jobs that nobody knows now.
        match fs::remove_dir_all(&output) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Path {
                    path: output,
                    source,
                });
            }
            _ => make_dir(&output)?,
        }
        let scripts = match &config.script_dir {
            Some(scripts) => scripts.clone(),
            None => {
                let scripts = data.join("scripts");
                make_dir(&scripts)?;
                scripts
            }
        };
        let scripts = scripts.canonicalize().and_then(|dir| {
            scripts::check_dir(&dir)?;
            Ok(dir)
        });
        let scripts = scripts.map_err(|source| Error::Path {
            path: config.script_dir.clone().unwrap_or_default(),
            source,
        })?;
        Ok(Self {
            data,
            output,
            scripts,
            _lock: lock,
        })
    }
}

/// For its owner alone: output may hold anything.
fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Path {
            path: path.to_owned(),
            source,
        })
}
