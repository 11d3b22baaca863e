//! The gRPC server: whom it lets in, and the API for workers: register, heartbeat,
//! deregister. The one for programs is in `jobs_rpc.rs`. Decodes what
//! workers say; what follows from it is decided in `registry.rs` and `jobs.rs`.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::HeaderMap,
    middleware::{Next, from_fn_with_state},
};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{self, BoxFuture},
    stream,
    stream::BoxStream,
};
use http_body::Frame;
use rustls::pki_types::CertificateDer;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{
    Scheduler,
    access::{Caller, Signed},
    error::Error,
    http,
    jobs::Report,
    jobs_rpc,
    jobs_rpc::caller,
    lineage::Known,
    registry::{Link, Registration},
    store::{Store, Ticket},
    wire,
};
use crate::{
    api,
    identity::{Role, rules},
    ids::{JobId, WorkerId, is_name},
    net::accept::{self, Connection},
    proto::{
        self,
        jobs_server::{self, JobsServer},
        scheduler_server::{self, Scheduler as SchedulerService, SchedulerServer},
    },
};

/// The most acknowledgements of one stream that wait for the disk one by one;
/// beyond, the last of them stands for all that come.
const MAX_UNRECORDED: usize = 4096;

/// The most jobs one message tells a worker to forget.
const MAX_FORGET: usize = 1000;

/// The most jobs that one message asks a worker for.
pub(super) const MAX_ASKED: usize = 10_000;

/// Between two looks for more of them.
const FORGET_PAUSE: Duration = Duration::from_millis(100);

/// Between two attempts to call a worker that can be heard, growing from the first to the
/// last.
const DIAL_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A part of a worker's list of jobs, which travels with arguments and environments.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// What the server answers beside the standard services.
pub(super) const SERVICES: &[&str] = &[scheduler_server::SERVICE_NAME, jobs_server::SERVICE_NAME];

/// The services of that name.
pub(super) fn routes(service: Service) -> Routes {
    let jobs = jobs_rpc::Service(service.scheduler.clone());
    let jobs = JobsServer::new(jobs).max_decoding_message_size(service.scheduler.body_bytes);
    let service = SchedulerServer::new(service).max_decoding_message_size(MAX_MESSAGE);
    Routes::new(service).add_service(jobs)
}

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
        let caller = caller(&request);
        let mut asked = request.into_inner();
        let id = match asked.worker_id.as_str() {
            "" => caller.worker(),
            text => Some(itself(&caller, text)?),
        };
        // Or jobs that are meant for another could be given to it.
        let name = caller.called(std::mem::take(&mut asked.name))?;
        // Certificates from before names were somebody's may share one.
        let owner = caller.worker().and_then(|own| {
            let owner = WorkerId::from(self.scheduler.access.worker_called(&name)?);
            (owner != own).then_some(owner)
        });
        if let Some(id) = owner {
            return Err(Error::WorkerNameTaken { name, id }.into());
        }
        let known = Known {
            epoch: asked.known_epoch,
            commit: asked.known_commit,
            remembers_since: asked.remembers_since,
        };
        let registry = &self.scheduler.registry;
        let tell_since = registry
            .compare(&name, known)
            .await
            .inspect_err(|error| tracing::warn!(%error, "a registration was refused"))?;
        if tell_since.is_some() {
            self.scheduler.jobs.records_are_older();
        }
        let (id, session) = registry
            .register(Registration {
                told: wire::told(&mut asked),
                scripts: asked.scripts.map(wire::scripts).unwrap_or_default(),
                address: asked.address,
                name,
                id,
                version: asked.version,
                boot_id: asked.boot_id,
                tell_since,
            })
            .inspect_err(|error| tracing::warn!(%error, "a registration was refused"))?;
        // Who revoked it since it was let in may have looked before it was there.
        if let Some(own) = caller.worker()
            && self.scheduler.access.is_revoked(own.into())
        {
            self.scheduler.leave(own, None)?;
            return Err(self.scheduler.access.why_cut(&caller).into());
        }
        let interval = api::whole_milliseconds(self.heartbeat_interval);
        Ok(Response::new(proto::RegisterWorkerResponse {
            success: true,
            worker_id: id.to_string(),
            session: session.to_string(),
            heartbeat_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
            epoch: self.scheduler.registry.epoch(),
        }))
    }

    async fn deregister_worker(
        &self,
        request: Request<proto::DeregisterWorkerRequest>,
    ) -> Result<Response<proto::DeregisterWorkerResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        let id = itself(&caller, &asked.worker_id)?;
        let session = Some(&*asked.session).filter(|session| !session.is_empty());
        self.scheduler.leave(id, session)?;
        Ok(Response::new(proto::DeregisterWorkerResponse {
            success: true,
        }))
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::CertificateResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        if !is_name(&asked.name) {
            return Err(Error::BadName(asked.name).into());
        }
        let access = &self.scheduler.access;
        let request = &asked.signing_request;
        let signed = access
            .join(&caller, &asked.token, request, &[Role::Worker], &asked.name)
            .await?;
        Ok(Response::new(certificate(signed)))
    }

    async fn renew_certificate(
        &self,
        request: Request<proto::RenewCertificateRequest>,
    ) -> Result<Response<proto::CertificateResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        let access = &self.scheduler.access;
        let signed = access.renew(&caller, &asked.signing_request).await?;
        Ok(Response::new(certificate(signed)))
    }

    type HeartbeatStream = BoxStream<'static, Result<proto::HeartbeatResponse, Status>>;

    /// Answers at once, so that a worker need not have sent anything before;
    /// what is wrong with its first message is the end of the stream.
    async fn heartbeat(
        &self,
        request: Request<Streaming<proto::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let conversation = Conversation {
            caller: caller(&request),
            scheduler: self.scheduler.clone(),
            messages: request.into_inner(),
            link: None,
            snapshot: Some(HashSet::new()),
            is_listed: false,
            has_told: false,
            leaves_out_ends: false,
            missing: None,
            is_asked: false,
            settled: None,
            dial: future::pending().boxed(),
            dial_again: ExponentialBuilder::default()
                .with_min_delay(DIAL_AGAIN.0)
                .with_max_delay(DIAL_AGAIN.1)
                .without_max_times()
                .build(),
            trouble: String::new(),
            is_ready: false,
            taken_in: 0,
            unrecorded: VecDeque::new(),
            acknowledged: 0,
            forget: future::pending().boxed(),
        };
        // Driven by its reader: with the connection everything about it is dropped.
        let answers = stream::try_unfold(conversation, |mut conversation| async move {
            let answer = conversation.answer().await?;
            Ok(answer.map(|answer| (answer, conversation)))
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// Lets calls through that the table allows, each with its [`Caller`].
pub(super) fn admitted(router: Router, scheduler: Scheduler) -> Router {
    router.layer(from_fn_with_state(scheduler, admit))
}

async fn admit(
    State(scheduler): State<Scheduler>,
    mut request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    let access = &scheduler.access;
    let call = request.uri().path();
    let connection = request.extensions().get::<Connection>();
    let mut caller = Caller::nobody(connection.map(|connection| connection.address));
    let admitted = (|| {
        let headers = request.headers();
        http::is_no_page(headers)?;
        access.identify_rpc(&mut caller, connection, http::bearer(headers)?)?;
        caller.may(rules::SCHEDULER_RPC, call)
    })();
    if let Err(error) = admitted {
        access.refused(&caller, call, &error);
        return Status::from(error).into_http();
    }
    request.extensions_mut().insert(caller.clone());
    if caller.role.is_none() {
        let (head, body) = request.into_parts();
        request = match accept::whole(body, scheduler.bounds.headers).await {
            Ok(body) => axum::extract::Request::from_parts(head, body),
            Err(error) => return Status::from(Error::from(error)).into_http(),
        };
    }
    if caller.role == Some(Role::Worker) {
        // Cut off with its connection; how its streams end is up to their handlers.
        return next.run(request).await;
    }
    let cut = caller.cut.clone();
    let response = tokio::select! {
        response = next.run(request) => response,
        () = cut.cancelled() => return Status::from(access.why_cut(&caller)).into_http(),
    };
    let access = scheduler.access;
    response.map(|body| {
        http::until_cut(body, caller, access, |error| {
            let mut trailers = HeaderMap::new();
            Status::from(error)
                .add_header(&mut trailers)
                .map_err(axum::Error::new)?;
            Ok(Frame::trailers(trailers))
        })
    })
}

/// The worker this is about, which must be the one that speaks.
fn itself(caller: &Caller, text: &str) -> Result<WorkerId, Error> {
    let id = text
        .parse()
        .map_err(|_| Error::BadWorkerId(text.to_owned()))?;
    match caller.worker() {
        Some(own) if own != id => Err(Error::NotItself(text.to_owned())),
        Some(_) | None => Ok(id),
    }
}

fn certificate(signed: Signed) -> proto::CertificateResponse {
    let der = |certificate: &CertificateDer<'_>| certificate.to_vec();
    proto::CertificateResponse {
        certificate: der(&signed.certificate),
        authorities: signed.authorities.iter().map(der).collect(),
    }
}

/// One heartbeat stream.
struct Conversation {
    scheduler: Scheduler,
    caller: Caller,
    messages: Streaming<proto::HeartbeatRequest>,
    /// From the first message on.
    link: Option<Link>,
    /// The jobs named so far, until the list of all jobs is complete.
    snapshot: Option<HashSet<JobId>>,
    /// That list is complete.
    is_listed: bool,
    /// So is that of the jobs that ran there, where it was asked for.
    has_told: bool,
    /// Ended jobs may be missing from the list of all jobs.
    leaves_out_ends: bool,
    /// Those that are on record there and not in the list, and that the worker is yet to
    /// be asked for; None: that was not looked for.
    missing: Option<Vec<JobId>>,
    /// It was asked for some of them, and has not answered.
    is_asked: bool,
    /// What follows from the lists is on the disk with this.
    settled: Option<Ticket>,
    /// Whether the worker can be called, once it has told of its jobs.
    dial: BoxFuture<'static, Result<(), String>>,
    dial_again: ExponentialBackoff,
    /// Why it cannot.
    trouble: String,
    /// It has been called.
    is_ready: bool,
    /// The highest sequence so far.
    taken_in: u64,
    /// The sequences whose changes are on their way to the disk, in order.
    unrecorded: VecDeque<(u64, Ticket)>,
    acknowledged: u64,
    /// The next jobs the worker is to forget, once it has told of all it has.
    forget: BoxFuture<'static, Result<Forget, Error>>,
}

/// Jobs whose records were deleted.
struct Forget {
    jobs: Vec<JobId>,
    /// Where the list goes on, and after how many deletions there may be more.
    after: i64,
    deleted: Option<u64>,
}

/// Waits until there is something behind the place `after` that `worker` is to
/// forget; with `deleted`, not before more than so many jobs were deleted.
async fn to_forget(
    store: Store,
    worker: WorkerId,
    after: i64,
    mut deleted: Option<u64>,
) -> Result<Forget, Error> {
    let mut progress = store.progress();
    loop {
        if let Some(seen) = deleted {
            let more = progress.wait_for(|progress| progress.deleted > seen).await;
            more.map_err(|_| Error::ShuttingDown)?;
            // Where every end deletes a job, they are taken together.
            tokio::time::sleep(FORGET_PAUSE).await;
        }
        let seen = progress.borrow().deleted;
        let found = store.to_forget(worker, after, MAX_FORGET).await?;
        if let Some((last, _)) = found.last() {
            return Ok(Forget {
                after: *last,
                deleted: (found.len() < MAX_FORGET).then_some(seen),
                jobs: found.into_iter().map(|(_, job)| job).collect(),
            });
        }
        deleted = Some(seen);
    }
}

impl Drop for Conversation {
    /// However the stream ends: with a word, an error, or its connection.
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            self.scheduler.registry.broke(link);
        }
    }
}

impl Conversation {
    /// Answers a message at once, with what was acknowledged before: however
    /// long a disk stays full, its scheduler is not silent. Once the changes it
    /// told of are on the disk, acknowledges them.
    async fn answer(&mut self) -> Result<Option<proto::HeartbeatResponse>, Status> {
        let over = async {
            match &self.link {
                Some(link) => {
                    link.over.cancelled().await;
                    Error::SessionOver(link.worker.id)
                }
                None => future::pending().await,
            }
        };
        let recorded = async {
            match self.unrecorded.front() {
                Some((_, ticket)) => self.scheduler.store.committed(*ticket).await,
                None => future::pending().await,
            }
        };
        let message = tokio::select! {
            biased;
            () = self.scheduler.closing.cancelled() => return Err(Error::ShuttingDown.into()),
            error = over => return Err(error.into()),
            recorded = recorded => {
                recorded.map_err(Error::from)?;
                return Ok(Some(self.acknowledge()));
            }
            found = &mut self.forget => return Ok(Some(self.forget(found?))),
            dialled = &mut self.dial => {
                self.dialled(dialled)?;
                return Ok(Some(self.sign_of_life()));
            }
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
        if let Some(link) = &self.link
            && self.scheduler.access.has_expired(&self.caller)
        {
            return Err(Error::SessionOver(link.worker.id).into());
        }
        let sequence = message.sequence;
        self.take_in(message).await?;
        if sequence > self.taken_in {
            self.taken_in = sequence;
            if self.unrecorded.len() == MAX_UNRECORDED {
                self.unrecorded.pop_back();
            }
            let ticket = self.scheduler.store.now();
            self.unrecorded.push_back((sequence, ticket));
        }
        Ok(Some(self.sign_of_life()))
    }

    /// Of everything that is on the disk by now.
    fn acknowledge(&mut self) -> proto::HeartbeatResponse {
        while let Some((sequence, ticket)) = self.unrecorded.front()
            && self.scheduler.store.is_committed(*ticket)
        {
            self.acknowledged = *sequence;
            self.unrecorded.pop_front();
        }
        self.sign_of_life()
    }

    fn sign_of_life(&mut self) -> proto::HeartbeatResponse {
        let tell_since = self.link.as_ref().and_then(|link| link.tell_since);
        proto::HeartbeatResponse {
            acknowledged: self.acknowledged,
            forget: Vec::new(),
            renew: self.scheduler.access.is_behind(&self.caller),
            commit: self.commit(),
            tell_since: tell_since.filter(|_| !self.has_told),
            trouble: self.trouble.clone(),
            ready: self.is_ready,
            tell_of: self.next_missing(),
        }
    }

    /// The jobs that the worker is asked for next, if it has answered for those before.
    fn next_missing(&mut self) -> Vec<String> {
        let missing = self.missing.as_mut().filter(|_| !self.is_asked);
        let Some(missing) = missing.filter(|missing| !missing.is_empty()) else {
            return Vec::new();
        };
        self.is_asked = true;
        let left = missing.len().saturating_sub(MAX_ASKED);
        let asked = missing.drain(left..);
        asked.map(|id| id.to_string()).collect()
    }

    /// How far the records are; 0 as long as those may go back before what the worker
    /// knows.
    fn commit(&self) -> u64 {
        let store = &self.scheduler.store;
        match self.settled {
            Some(settled) if store.is_committed(settled) => store.commits(),
            Some(_) | None => 0,
        }
    }

    fn forget(&mut self, found: Forget) -> proto::HeartbeatResponse {
        if let Some(link) = &self.link {
            let store = self.scheduler.store.clone();
            let next = to_forget(store, link.worker.id, found.after, found.deleted);
            self.forget = next.boxed();
        }
        proto::HeartbeatResponse {
            forget: found.jobs.iter().map(ToString::to_string).collect(),
            ..self.sign_of_life()
        }
    }

    /// A worker that answers calls gets jobs; another one is dialled again.
    fn dialled(&mut self, dialled: Result<(), String>) -> Result<(), Error> {
        let Scheduler { registry, jobs, .. } = &self.scheduler;
        let Some(link) = &self.link else {
            return Ok(());
        };
        match dialled {
            Ok(()) => {
                registry.ready(link)?;
                self.trouble.clear();
                self.is_ready = true;
                self.dial = future::pending().boxed();
                jobs.catch_up(link.worker.id);
            }
            Err(why) => {
                registry.not_dialled(link, &why)?;
                self.trouble = why;
                jobs.give_back(&link.worker);
                let rpc = link.worker.rpc.clone();
                let pause = self.dial_again.next().unwrap_or(DIAL_AGAIN.1);
                let again = async move {
                    tokio::time::sleep(pause).await;
                    rpc.dial().await
                };
                self.dial = again.boxed();
            }
        }
        Ok(())
    }

    async fn take_in(&mut self, mut message: proto::HeartbeatRequest) -> Result<(), Error> {
        let Scheduler { registry, jobs, .. } = &self.scheduler;
        let link = match &self.link {
            Some(link) => link,
            None => {
                let id = itself(&self.caller, &message.worker_id)?;
                let link = registry.open(id, &message.session)?;
                self.link.insert(link)
            }
        };
        let ran = std::mem::take(&mut message.ran);
        let named = message.jobs.iter();
        let named = named.filter_map(|report| report.job_id.parse().ok());
        let named: Vec<JobId> = named.collect();
        let unknown = jobs.unknown(named.clone()).await?;
        // Nothing waits from here on: what is taken in came over a link that counts.
        let beat = wire::beat(&mut message);
        let mut owed = false;
        registry.heard(link, beat, || {
            if !message.forgotten.is_empty() {
                let forgotten = message.forgotten.iter().filter_map(|id| id.parse().ok());
                let store = &self.scheduler.store;
                store.forgotten(link.worker.id, forgotten.collect());
            }
            for report in message.jobs {
                let id = report.job_id.clone();
                let Some(report) = wire::report(report) else {
                    tracing::warn!(worker_id = %link.worker.id, job_id = id, "a report makes no sense");
                    continue;
                };
                owed |= jobs.report(&link.worker, report, &unknown);
            }
            let nothing = HashSet::new();
            for report in ran.into_iter().filter_map(wire::report) {
                let report = Report {
                    spec: None,
                    ..report
                };
                jobs.report(&link.worker, report, &nothing);
            }
        })?;
        // Named is named, whatever is said of it: only silence means lost.
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.extend(named);
        }
        self.is_listed |= message.snapshot_complete;
        self.has_told |= message.ran_complete;
        self.leaves_out_ends |= message.ends_left_out;
        self.is_asked &= !message.told_of;
        if !self.is_listed || (!self.has_told && link.tell_since.is_some()) {
            // It has more to tell.
        } else if let Some(named) = &self.snapshot
            && self.leaves_out_ends
            && self.missing.is_none()
            && let missing = jobs.missing(&link.worker, named)
            && !missing.is_empty()
        {
            // An acknowledged end may be on record no more: a copy was put back, say.
            self.missing = Some(missing);
        } else if !self.is_asked
            && self.missing.as_ref().is_none_or(Vec::is_empty)
            && let Some(named) = self.snapshot.take()
        {
            tracing::info!(worker_id = %link.worker.id, jobs = named.len(), "worker told of its jobs");
            registry.listed(link, || jobs.settle(&link.worker, &named))?;
            let rpc = link.worker.rpc.clone();
            self.dial = async move { rpc.dial().await }.boxed();
            let store = self.scheduler.store.clone();
            self.settled = Some(store.now());
            self.forget = to_forget(store, link.worker.id, 0, None).boxed();
        }
        if owed {
            jobs.catch_up(link.worker.id);
        }
        Ok(())
    }
}
