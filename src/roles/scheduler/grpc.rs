//! The gRPC API for workers: register, heartbeat, deregister. Decodes what
//! workers say; what follows from it is decided in `registry.rs` and `jobs.rs`.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Scheduler,
    error::Error,
    registry::{Link, Registration},
    wire,
};
use crate::{
    ids::JobId,
    proto::{self, scheduler_server::Scheduler as SchedulerService},
};

/// The service `jobscheduler.Scheduler`.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) scheduler: Scheduler,
    pub(super) heartbeat_interval: Duration,
}

#[tonic::async_trait]
impl SchedulerService for Service {
    async fn register_worker(
        &self,
        request: Request<proto::RegisterWorkerRequest>,
    ) -> Result<Response<proto::RegisterWorkerResponse>, Status> {
        let asked = request.into_inner();
        let id = match asked.worker_id.as_str() {
            "" => None,
            text => {
                let id = text.parse();
                Some(id.map_err(|_| Error::BadWorkerId(text.to_owned()))?)
            }
        };
        let (id, session) = self
            .scheduler
            .registry
            .register(Registration {
                address: asked.address,
                name: asked.name,
                id,
                version: asked.version,
            })
            .inspect_err(|error| tracing::warn!(%error, "a registration was refused"))?;
        let interval = wire::millis(self.heartbeat_interval);
        Ok(Response::new(proto::RegisterWorkerResponse {
            success: true,
            worker_id: id.to_string(),
            session: session.to_string(),
            heartbeat_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
        }))
    }

    async fn deregister_worker(
        &self,
        request: Request<proto::DeregisterWorkerRequest>,
    ) -> Result<Response<proto::DeregisterWorkerResponse>, Status> {
        let text = request.into_inner().worker_id;
        let id = text.parse().map_err(|_| Error::BadWorkerId(text))?;
        self.scheduler.registry.deregister(id)?;
        self.scheduler.jobs.left(id);
        Ok(Response::new(proto::DeregisterWorkerResponse {
            success: true,
        }))
    }

    type HeartbeatStream = BoxStream<'static, Result<proto::HeartbeatResponse, Status>>;

    /// Answers at once, so that a worker need not have sent anything before;
    /// what is wrong with its first message is the end of the stream.
    async fn heartbeat(
        &self,
        request: Request<Streaming<proto::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let conversation = Conversation {
            scheduler: self.scheduler.clone(),
            messages: request.into_inner(),
            link: None,
            snapshot: Some(HashSet::new()),
        };
        // Driven by its reader: with the connection everything about it is dropped.
        let answers = stream::try_unfold(conversation, |mut conversation| async move {
            let answer = conversation.answer().await?;
            Ok(answer.map(|answer| (answer, conversation)))
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// One heartbeat stream.
struct Conversation {
    scheduler: Scheduler,
    messages: Streaming<proto::HeartbeatRequest>,
    /// From the first message on.
    link: Option<Link>,
    /// The jobs named so far, until the list of all jobs is complete.
    snapshot: Option<HashSet<JobId>>,
}

impl Conversation {
    /// Waits for a message, takes it in, and acknowledges it.
    async fn answer(&mut self) -> Result<Option<proto::HeartbeatResponse>, Status> {
        let over = async {
            match &self.link {
                Some(link) => {
                    link.over.cancelled().await;
                    Error::SessionOver(link.worker.id)
                }
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            biased;
            () = self.scheduler.closing.cancelled() => return Err(Error::ShuttingDown.into()),
            error = over => return Err(error.into()),
            message = self.messages.message() => message,
        };
        let message = message.inspect_err(|status| {
            let worker_id = self.link.as_ref().map(|link| link.worker.id.to_string());
            tracing::warn!(
                worker_id,
                error = status.message(),
                "a heartbeat stream broke"
            );
        })?;
        let Some(message) = message else {
            return Ok(None);
        };
        let acknowledged = message.sequence;
        self.take_in(message)?;
        Ok(Some(proto::HeartbeatResponse { acknowledged }))
    }

    fn take_in(&mut self, message: proto::HeartbeatRequest) -> Result<(), Error> {
        let Scheduler { registry, jobs, .. } = &self.scheduler;
        let link = match &self.link {
            Some(link) => link,
            None => {
                let text = message.worker_id;
                let id = text.parse().map_err(|_| Error::BadWorkerId(text))?;
                let link = registry.open(id, &message.session)?;
                self.link.insert(link)
            }
        };
        registry.heard(
            link,
            message.running,
            f64::from(message.load_milli) / 1000.0,
        )?;
        for report in message.jobs {
            let id = report.job_id.clone();
            // Named is named, whatever is said of it: only silence means lost.
            if let (Some(named), Ok(id)) = (&mut self.snapshot, id.parse()) {
                named.insert(id);
            }
            let Some(report) = wire::report(report) else {
                tracing::warn!(worker_id = %link.worker.id, job_id = id, "a report makes no sense");
                continue;
            };
            jobs.report(&link.worker, report);
        }
        if message.snapshot_complete
            && let Some(named) = self.snapshot.take()
        {
            tracing::info!(worker_id = %link.worker.id, jobs = named.len(), "worker told of its jobs");
            jobs.settle(&link.worker, &named);
            registry.ready(link)?;
        }
        Ok(())
    }
}
