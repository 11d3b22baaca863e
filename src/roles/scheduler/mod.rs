//! The scheduler: the HTTP API and the gRPC API for everybody, the gRPC API for
//! workers, who is in the cluster, and the record of every job. This file puts the parts
//! together, and takes them apart at the end.

mod about;
mod access;
mod clock;
mod error;
mod events;
mod gaps;
mod grpc;
mod http;
mod jobs;
mod jobs_rpc;
mod lineage;
mod logs;
mod offers;
mod placement;
mod registry;
mod signal;
mod store;
#[cfg(test)]
mod tests;
mod time;
mod wire;
mod worker_rpc;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

#[cfg(any(test, fuzzing))]
pub use self::http::fuzz;
pub use self::store::Error as StoreError;
use self::{
    access::{Access, Caller, Signing},
    clock::Clock,
    grpc::Service,
    jobs::{Jobs, Needs, Stop, Wait},
    lineage::Epoch,
    registry::{Passed, Registry},
    store::{Keep, Loaded, Store, Writing},
    worker_rpc::Calls,
};
use crate::{
    api,
    blocking::spawn_blocking,
    identity::{Role, ca, tls::Tls, token::Fingerprint},
    ids::WorkerId,
    net::{accept, bounds::Bounds, dial, socket::TcpListener},
    proto,
};

/// How long connections may take to end after a shutdown was asked for. What
/// is left then belongs to peers who neither speak nor close.
const DRAIN: Duration = Duration::from_secs(3);

/// So many starts of groups with many items are read at once.
const LONG_BODIES: usize = 2;

/// How often it is recorded when workers were heard of last.
const NOTE_HEARD: Duration = Duration::from_secs(30);

/// Finished values; nothing here is read from flags, variables or files.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often workers send a heartbeat; three missed ones make a worker unreachable.
    pub heartbeat_interval: Duration,
    /// The deadline of every unary call to a worker.
    pub call_deadline: Duration,
    /// Where the records are; made if it is not there. One scheduler's alone.
    pub data_dir: PathBuf,
    /// How many finished jobs are kept; those that ended first go first.
    pub keep_finished: u64,
    /// How long a finished job is kept.
    pub keep_for: Duration,
    /// How long a line of the audit log is kept.
    pub keep_audit: Duration,
    /// Names and addresses under which it is reached, beside any address: its
    /// certificate bears them, and requests for others are refused.
    pub names: Vec<String>,
    /// How it is secured.
    pub security: Security,
    /// What each of its servers takes from outside.
    pub bounds: Bounds,
    /// The most bytes of the body of a request to the HTTP API.
    pub body_bytes: usize,
    /// The most readers at once of the output of one job.
    pub job_followers: u32,
    /// How long the certificates live that it signs; each is replaced in the
    /// middle of that time.
    pub certificate_lifetime: Duration,
}

/// How a scheduler shows who it is, and tells who calls.
#[derive(Clone, Debug)]
pub enum Security {
    /// With certificates that it signs itself.
    OwnAuthority,
    /// With certificates that another authority signs.
    ExternalAuthority {
        /// Of the HTTP API.
        http: Tls,
        /// Of the gRPC API, and of its own calls to workers.
        grpc: Tls,
    },
    /// Not at all: plain text, and a bearer token for the HTTP API.
    Insecure,
}

/// Bound listeners, so that a caller can take port 0 and read the address.
#[derive(Debug)]
pub struct Listeners {
    /// The HTTP API.
    pub http: TcpListener,
    /// The gRPC APIs for workers and for programs.
    pub grpc: TcpListener,
}

/// Why the scheduler could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener does not say where it listens.
    #[error("cannot serve")]
    Listener(#[source] io::Error),
    /// There is no timer to be had.
    #[error("cannot set a timer")]
    Clock(#[source] io::Error),
    /// The cluster's authority cannot be had.
    #[error("cannot use the authority of the cluster")]
    Authority(#[from] ca::Error),
    /// A certificate or a token that was asked for cannot be given.
    #[error("cannot give out what proves who somebody is")]
    Issue(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The file descriptors built into this binary are damaged.
    #[error("cannot offer gRPC reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The records cannot be had, or can no longer be written.
    #[error(transparent)]
    Store(StoreError),
}

impl Error {
    fn issue(error: error::Error) -> Self {
        Self::Issue(Box::new(error))
    }
}

/// What every handler of a request holds.
#[derive(Clone, Debug)]
struct Scheduler {
    store: Store,
    registry: Registry,
    jobs: Jobs,
    access: Access,
    /// Under which it is reached.
    names: Arc<[String]>,
    bounds: Bounds,
    /// The most bytes of a body.
    body_bytes: usize,
    /// Of bodies that may be longer, few are read at once.
    long_bodies: Arc<Semaphore>,
    /// Where workers find it.
    grpc_address: SocketAddr,
    /// Ends whatever would stay open by itself: followers, waiting requests,
    /// heartbeats.
    closing: CancellationToken,
}

impl Scheduler {
    /// The worker of this id has left: its name is free, and its jobs are lost.
    /// With a `session` only if it is still registered under that one.
    fn leave(&self, worker: WorkerId, session: Option<&str>) -> Result<(), error::Error> {
        let left = || self.jobs.left(worker);
        self.registry.deregister(worker, session, left)
    }
}

/// Opens the scheduler and serves; see [`Opened::run`].
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    open(config, listeners).await?.run(shutdown).await
}

/// A scheduler whose records and certificates are there, and that does not
/// answer yet.
#[derive(Debug)]
pub struct Opened {
    config: Config,
    listeners: Listeners,
    store: Store,
    writing: Writing,
    loaded: Loaded,
    access: Access,
    tls: ServerTls,
}

/// What the two servers show of themselves; None: they speak plain text.
#[derive(Clone, Debug, Default)]
struct ServerTls {
    http: Option<Tls>,
    grpc: Option<Tls>,
}

/// Opens the store and the authority in the data folder, and makes them where
/// they are not there.
///
/// # Errors
///
/// When another scheduler has them, or they cannot be used.
pub async fn open(config: Config, listeners: Listeners) -> Result<Opened, Error> {
    let (store, writing, mut loaded) = open_store(&config, &listeners).await?;
    let tokens = std::mem::take(&mut loaded.tokens);
    let certificates = std::mem::take(&mut loaded.certificates);
    let (access, tls) = match &config.security {
        Security::OwnAuthority => {
            let signing = Signing {
                file: config.data_dir.join("ca.pem"),
                hosts: config.names.clone(),
                lifetime: config.certificate_lifetime,
            };
            let (access, tls) =
                Access::with_authority(store.clone(), tokens, certificates, signing)?;
            let tls = ServerTls {
                http: Some(tls.clone()),
                grpc: Some(tls),
            };
            (access, tls)
        }
        Security::ExternalAuthority { http, grpc } => {
            let tls = ServerTls {
                http: Some(http.clone()),
                grpc: Some(grpc.clone()),
            };
            let access = Access::new(store.clone(), tokens, certificates, false);
            (access, tls)
        }
        Security::Insecure => {
            let access = Access::new(store.clone(), tokens, certificates, true);
            (access, ServerTls::default())
        }
    };
    Ok(Opened {
        config,
        listeners,
        store,
        writing,
        loaded,
        access,
        tls,
    })
}

async fn open_store(
    config: &Config,
    listeners: &Listeners,
) -> Result<(Store, Writing, Loaded), Error> {
    let who = match (listeners.http.local_addr(), listeners.grpc.local_addr()) {
        (Ok(http), Ok(grpc)) => format!("http {http}, grpc {grpc}"),
        _ => "at unknown addresses".to_owned(),
    };
    let folder = config.data_dir.clone();
    let keep = Keep {
        finished: config.keep_finished,
        time: config.keep_for,
        audit: config.keep_audit,
    };
    let opened = spawn_blocking(move || store::open(&folder, keep, &who));
    let opened = opened.await.unwrap_or(Err(StoreError::Ended));
    opened.map_err(Error::Store)
}

impl Opened {
    /// Gives out what the first users and workers need.
    pub fn issuer(&self) -> Issuer {
        Issuer(self.access.clone())
    }

    /// Serves until `shutdown`, or until the store fails. Returns when every call
    /// it made has been answered and everything it spawned has ended; jobs go on
    /// on their workers.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self {
            config,
            listeners,
            store,
            mut writing,
            loaded,
            access,
            tls,
        } = self;
        tracing::info!(
            epoch = loaded.epoch,
            workers = loaded.workers.len(),
            live_jobs = loaded.live.len(),
            data_dir = %config.data_dir.display(),
            "store opened"
        );
        let tracker = TaskTracker::new();
        // Its own token, because a server that fails ends the rest as well.
        let closing = shutdown.child_token();
        // Also when this future is dropped, nothing may stay behind.
        let ending = closing.clone().drop_guard();
        let calls = Calls {
            deadline: config.call_deadline,
            epoch: Epoch::new(loaded.epoch),
            followers: config.bounds.followers,
            job_followers: config.job_followers,
            security: match &tls.grpc {
                Some(tls) => dial::Security::Tls(tls.clone()),
                None => dial::Security::Insecure,
            },
        };
        let registry = Registry::new(
            config.heartbeat_interval,
            calls,
            store.clone(),
            loaded.workers,
        );
        let needs = Needs {
            store: store.clone(),
            clock: Clock::new().map_err(Error::Clock)?,
            registry: registry.clone(),
            keep_for: config.keep_for,
            call_deadline: config.call_deadline,
            tracker: tracker.clone(),
            closing: closing.clone(),
        };
        let scheduler = Scheduler {
            store,
            jobs: Jobs::new(needs, loaded.live, loaded.groups),
            registry: registry.clone(),
            access,
            names: config.names.clone().into(),
            bounds: config.bounds,
            body_bytes: config.body_bytes,
            long_bodies: Arc::new(Semaphore::new(LONG_BODIES)),
            grpc_address: listeners.grpc.local_addr().map_err(Error::Listener)?,
            closing: closing.clone(),
        };
        tracker.spawn(watch_deadlines(scheduler.clone(), tracker.clone()));
        tracker.spawn(place_jobs(scheduler.clone()));
        tracker.spawn(wait_for_workers(scheduler.clone()));
        tracker.spawn(watch_strangers(scheduler.clone()));
        tracker.spawn(note_signs_of_life(scheduler.clone()));
        tracker.spawn(keep_certificates(scheduler.clone()));
        let waiting = scheduler.jobs.clone();
        let served = tokio::select! {
            served = serve(&config, listeners, scheduler, tls, &tracker) => served,
            Err(error) = waiting.follow_alarms() => Err(Error::Clock(error)),
            error = writing.failed() => Err(Error::Store(error)),
        };
        drop(ending);
        tracker.close();
        tracker.wait().await;
        registry.record_heard();
        let written = writing.end().await;
        tracing::info!("scheduler ended");
        served.and(written.map_err(Error::Store))
    }
}

/// Gives out what the first users and workers of a cluster need; later ones get
/// it through the HTTP API. Clones share the scheduler.
#[derive(Clone, Debug)]
pub struct Issuer(Access);

impl Issuer {
    /// Whether the cluster has an authority of its own.
    pub fn has_authority(&self) -> bool {
        self.0.fingerprints().is_some()
    }

    /// Whether this is one of those that sign, or signed, for this cluster.
    pub fn is_authority(&self, fingerprint: Fingerprint) -> bool {
        let own = self.0.fingerprints();
        own.is_some_and(|own| own.contains(&fingerprint))
    }

    /// The authorities that are trusted; none where they are somebody else's.
    pub fn authorities(&self) -> Vec<CertificateDer<'static>> {
        self.0.authorities()
    }

    /// Whether a bearer token would be taken.
    pub fn is_good(&self, token: &str) -> bool {
        let mut caller = Caller::nobody(None);
        self.0.identify(&mut caller, None, Some(token)).is_ok()
    }

    /// Whether a worker has ever joined.
    pub fn has_workers(&self) -> bool {
        let certificates = self.0.certificates();
        certificates
            .iter()
            .any(|certificate| certificate.role == Some(Role::Worker))
    }

    /// Whether this id was revoked.
    pub fn is_revoked(&self, id: Uuid) -> bool {
        self.0.is_revoked(id)
    }

    /// A certificate for an admin called `name`, for the key of a PKCS #10 request
    /// in DER. Whoever has the `id` already stays who they are.
    pub async fn admin(
        &self,
        id: Uuid,
        name: &str,
        request: &[u8],
    ) -> Result<api::CertificateResponse, Error> {
        let signed = self.0.issue(id, Role::Admin, name, request).await;
        signed.map(http::certificate).map_err(Error::issue)
    }

    /// A token that is good for `ttl`, as its bearer is given it: of a join token
    /// all but where to go.
    pub async fn token(
        &self,
        kind: api::TokenKind,
        role: Role,
        name: &str,
        ttl: Duration,
    ) -> Result<String, Error> {
        let asked = api::CreateTokenRequest {
            kind,
            role,
            name: Some(name.to_owned()),
            ttl_ms: Some(api::whole_milliseconds(ttl)),
        };
        let created = self.0.create_token(&Caller::itself(), &asked).await;
        let (_, secret) = created.map_err(Error::issue)?;
        match kind {
            api::TokenKind::Bearer => Ok(secret.reveal()),
            api::TokenKind::Join => self.0.join_token(&secret).map_err(Error::issue),
        }
    }
}

/// So that no certificate of this scheduler is ever too old.
async fn keep_certificates(scheduler: Scheduler) {
    tokio::select! {
        () = scheduler.access.keep_current() => {}
        () = scheduler.closing.cancelled() => {}
    }
}

/// So that after a crash it is known about when a worker was heard of last.
async fn note_signs_of_life(scheduler: Scheduler) {
    let mut pause = tokio::time::interval(NOTE_HEARD);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pause.tick() => scheduler.registry.record_heard(),
            () = scheduler.closing.cancelled() => return,
        }
    }
}

async fn serve(
    config: &Config,
    listeners: Listeners,
    scheduler: Scheduler,
    tls: ServerTls,
    tracker: &TaskTracker,
) -> Result<(), Error> {
    let closing = scheduler.closing.clone();
    if let (Ok(http), Ok(grpc)) = (listeners.http.local_addr(), listeners.grpc.local_addr()) {
        let tls = tls.http.is_some();
        tracing::info!(%http, %grpc, tls, version = env!("CARGO_PKG_VERSION"), "scheduler listens");
    }
    let service = Service {
        scheduler: scheduler.clone(),
        heartbeat_interval: config.heartbeat_interval,
    };
    let served = proto::served(grpc::routes(service), grpc::SERVICES, closing.clone()).await;
    let (rpcs, goodbye) = served.map_err(Error::Reflection)?;
    tracker.spawn(goodbye);
    let cuts = scheduler.access.cuts();
    let http = accept::Server {
        listener: listeners.http,
        tls: tls.http,
        router: http::router(scheduler.clone()),
        bounds: config.bounds,
        cuts: cuts.clone(),
        protocol: accept::Protocol::Http,
        name: "http",
    };
    let grpc = accept::Server {
        listener: listeners.grpc,
        tls: tls.grpc,
        router: grpc::admitted(rpcs.into_axum_router(), scheduler),
        bounds: config.bounds,
        cuts,
        protocol: accept::Protocol::Grpc,
        name: "grpc",
    };
    let servers = async {
        tokio::join!(http.run(closing.clone()), grpc.run(closing.clone()));
    };
    let overdue = async {
        closing.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = servers => {}
        () = overdue => tracing::warn!("connections were still open at the end"),
    }
    Ok(())
}

/// As workers have room for them.
async fn place_jobs(scheduler: Scheduler) {
    tokio::select! {
        () = scheduler.jobs.follow_offers() => {}
        () = scheduler.closing.cancelled() => {}
    }
}

/// A worker that comes back within the time after which it would be given up is
/// heard before jobs from before the start are placed.
async fn wait_for_workers(scheduler: Scheduler) {
    tokio::select! {
        () = tokio::time::sleep(scheduler.registry.patience()) => scheduler.jobs.stop_waiting(),
        () = scheduler.closing.cancelled() => {}
    }
}

/// As those they wait for end.
async fn watch_strangers(scheduler: Scheduler) {
    tokio::select! {
        () = scheduler.jobs.follow_strangers() => {}
        () = scheduler.closing.cancelled() => {}
    }
}

async fn watch_deadlines(scheduler: Scheduler, tracker: TaskTracker) {
    let Scheduler {
        registry,
        jobs,
        closing,
        ..
    } = scheduler;
    let act = |passed| match passed {
        Passed::Silence(worker, why) => jobs.unreachable(worker, &why),
        Passed::Drain(worker) => {
            tracker.spawn(stop_all(jobs.clone(), worker));
        }
    };
    tokio::select! {
        () = registry.watch_deadlines(act) => {}
        () = closing.cancelled() => {}
    }
}

/// Stops every job that a worker still has, or will be back with: its time to
/// drain is over.
async fn stop_all(jobs: Jobs, worker: WorkerId) {
    let left = jobs.live_on(worker);
    tracing::info!(worker_id = %worker, jobs = left.len(), "the time to drain is over");
    let stop = Stop {
        wait: Wait::Sent,
        ..Stop::default()
    };
    // One whose worker is away is recorded, and delivered when it is back.
    if let Some(error) = jobs.stop_all(left, stop).await {
        tracing::info!(worker_id = %worker, %error, "not all were stopped now");
    }
}
