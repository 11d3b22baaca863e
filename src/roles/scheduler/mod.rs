//! The scheduler: the HTTP API for everybody, the gRPC API for workers, who is
//! in the cluster, and the record of every job. This file puts the parts
//! together, and takes them apart at the end.

mod error;
mod grpc;
mod http;
mod jobs;
mod logs;
mod placement;
mod registry;
mod signal;
mod store;
#[cfg(test)]
mod tests;
mod wire;
mod worker_rpc;

use std::{io, path::PathBuf, time::Duration};

use axum::serve::ListenerExt as _;
use futures_util::{Stream, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::ServingStatus;

pub use self::store::Error as StoreError;
use self::{
    grpc::Service,
    jobs::{Jobs, Needs},
    registry::Registry,
    store::{Keep, Loaded, Store, Writing},
};
use crate::proto::{self, scheduler_server::SchedulerServer};

/// How long connections may take to end after a shutdown was asked for. What
/// is left then belongs to peers who neither speak nor close.
const DRAIN: Duration = Duration::from_secs(3);

/// How often it is recorded when workers were heard of last.
const NOTE_HEARD: Duration = Duration::from_secs(30);

/// Streams of one worker's connection: a heartbeat, and a few calls.
const MAX_STREAMS: u32 = 256;

/// A part of a worker's list of jobs, which travels with arguments and environments.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

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
}

/// Bound listeners, so that a caller can take port 0 and read the address.
#[derive(Debug)]
pub struct Listeners {
    /// The HTTP API.
    pub http: TcpListener,
    /// The gRPC API for workers.
    pub grpc: TcpListener,
}

/// Why the scheduler could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP server ended.
    #[error("cannot serve HTTP")]
    Http(#[source] io::Error),
    /// The gRPC server ended.
    #[error("cannot serve gRPC")]
    Grpc(#[source] tonic::transport::Error),
    /// The file descriptors built into this binary are damaged.
    #[error("cannot offer gRPC reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The records cannot be had, or can no longer be written.
    #[error(transparent)]
    Store(StoreError),
}

/// What every handler of a request holds.
#[derive(Clone, Debug)]
struct Scheduler {
    store: Store,
    registry: Registry,
    jobs: Jobs,
    /// Ends whatever would stay open by itself: followers, waiting requests,
    /// heartbeats.
    closing: CancellationToken,
}

/// Serves until `shutdown`, or until a server fails. Returns when every call it
/// made has been answered and everything it spawned has ended; jobs go on on
/// their workers.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (store, writing, loaded) = open(&config, &listeners).await?;
    run_on(config, listeners, shutdown, (store, writing, loaded)).await
}

async fn open(config: &Config, listeners: &Listeners) -> Result<(Store, Writing, Loaded), Error> {
    let who = match (listeners.http.local_addr(), listeners.grpc.local_addr()) {
        (Ok(http), Ok(grpc)) => format!("http {http}, grpc {grpc}"),
        _ => "at unknown addresses".to_owned(),
    };
    let folder = config.data_dir.clone();
    let keep = Keep {
        finished: config.keep_finished,
        time: config.keep_for,
    };
    let opened = tokio::task::spawn_blocking(move || store::open(&folder, keep, &who));
    let opened = opened.await.unwrap_or(Err(StoreError::Ended));
    opened.map_err(Error::Store)
}

async fn run_on(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
    (store, mut writing, loaded): (Store, Writing, Loaded),
) -> Result<(), Error> {
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
    let registry = Registry::new(
        config.heartbeat_interval,
        config.call_deadline,
        loaded.epoch,
        store.clone(),
        loaded.workers,
    );
    let needs = Needs {
        store: store.clone(),
        registry: registry.clone(),
        keep_for: config.keep_for,
        call_deadline: config.call_deadline,
        tracker: tracker.clone(),
        closing: closing.clone(),
    };
    let scheduler = Scheduler {
        store,
        jobs: Jobs::new(needs, loaded.live),
        registry: registry.clone(),
        closing: closing.clone(),
    };
    tracker.spawn(watch_deadlines(scheduler.clone()));
    tracker.spawn(note_signs_of_life(scheduler.clone()));
    let served = tokio::select! {
        served = serve(&config, listeners, scheduler, &tracker) => served,
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
    tracker: &TaskTracker,
) -> Result<(), Error> {
    let closing = scheduler.closing.clone();
    if let (Ok(http), Ok(grpc)) = (listeners.http.local_addr(), listeners.grpc.local_addr()) {
        tracing::info!(%http, %grpc, version = env!("CARGO_PKG_VERSION"), "scheduler listens");
    }
    let http = listeners.http.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY refused");
        }
    });
    let http = axum::serve(http, http::router(scheduler.clone()))
        .with_graceful_shutdown(closing.clone().cancelled_owned());

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SchedulerServer<Service>>().await;
    let ended = closing.clone();
    tracker.spawn(async move {
        ended.cancelled().await;
        health.set_not_serving::<SchedulerServer<Service>>().await;
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
    });
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let service = Service {
        scheduler,
        heartbeat_interval: config.heartbeat_interval,
    };
    let grpc = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(config.heartbeat_interval * 3))
        .add_service(SchedulerServer::new(service).max_decoding_message_size(MAX_MESSAGE))
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(Error::Reflection)?)
        .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?)
        .serve_with_incoming_shutdown(accepted(listeners.grpc), closing.clone().cancelled_owned());

    let servers = async {
        let http = async { http.await.map_err(Error::Http) };
        let grpc = async { grpc.await.map_err(Error::Grpc) };
        tokio::try_join!(http, grpc).map(|_| ())
    };
    let overdue = async {
        closing.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = servers => served,
        () = overdue => {
            tracing::warn!("connections were still open at the end");
            Ok(())
        }
    }
}

/// Connections as they come. When there are no more descriptors for them, trying
/// again at once would be trying for ever.
fn accepted(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    incoming.then(async |accepted| {
        if let Err(error) = &accepted {
            tracing::warn!(%error, "cannot accept connections of workers, waiting a second");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        accepted
    })
}

async fn watch_deadlines(scheduler: Scheduler) {
    let Scheduler {
        registry,
        jobs,
        closing,
        store: _,
    } = scheduler;
    tokio::select! {
        () = registry.watch_deadlines(|worker, why| jobs.unreachable(worker, why)) => {}
        () = closing.cancelled() => {}
    }
}
