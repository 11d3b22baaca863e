//! The worker's side of its membership: registers, sends heartbeats with every
//! change of its jobs, and begins anew, with growing pauses, whenever the
//! connection or the scheduler is gone.

use std::{collections::BTreeMap, env::consts, fs, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    error::RunError,
    grpc::{full_report, report, short_report},
    health::{Health, available_memory},
    job::Job,
    jobs::{Jobs, Snapshot},
    listing::Listing,
    member::Id,
    scripts::Scripts,
};
use crate::{
    blocking::spawn_blocking,
    identity::tls::Peer,
    ids::JobId,
    net::dial::{self, innermost},
    proto::{self, scheduler_client::SchedulerClient},
};

/// From the first to the longest pause between two attempts to register; each
/// is stretched by a random part, so that a whole fleet does not come at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a single call to the scheduler may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Missed answers after which the connection counts as broken.
const MISSED: u32 = 3;

/// The most jobs in one message; one alone may have 256 KiB of arguments, and a
/// message holds 4 MiB.
const JOBS_PER_MESSAGE: usize = 500;

/// The most bytes of jobs in one message, unless a single one is larger.
const BYTES_PER_MESSAGE: usize = 1024 * 1024;

/// Who the worker is to the scheduler.
pub(super) struct Identity {
    pub(super) name: String,
    /// Where the scheduler finds the worker's gRPC server.
    pub(super) address: String,
    pub(super) id: Id,
    pub(super) boot_id: String,
    pub(super) labels: BTreeMap<String, String>,
    /// How many jobs it takes at once; None: as many as come.
    pub(super) slots: Option<u32>,
    pub(super) scripts: Scripts,
    pub(super) health: Health,
    /// Cancelled when the worker was asked to end and takes no more jobs.
    pub(super) ending: CancellationToken,
    /// Told when the scheduler wants the certificate replaced.
    pub(super) renew: Arc<Notify>,
}

/// Calls the scheduler at host:port, with the first call and again whenever the
/// connection broke.
pub(super) fn client(
    scheduler: &str,
    security: dial::Security,
) -> Result<SchedulerClient<Channel>, RunError> {
    let endpoint = Endpoint::from_shared(format!("http://{scheduler}"))
        .map_err(RunError::Server)?
        .connect_timeout(CALL_DEADLINE)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(CALL_DEADLINE);
    let channel = dial::channel(&endpoint, security, Peer::Scheduler);
    Ok(SchedulerClient::new(channel))
}

/// Keeps the worker registered until `leave`, then delivers what the scheduler
/// has not heard yet and says goodbye, unless jobs go on without the worker.
///
/// # Errors
///
/// If the scheduler refuses the worker for good the first time it registers, or
/// whenever it has revoked it; or if the id it was given cannot be kept.
pub(super) async fn run(
    scheduler: String,
    mut client: SchedulerClient<Channel>,
    identity: Identity,
    jobs: Jobs,
    leave: CancellationToken,
) -> Result<(), RunError> {
    let mut registered_before = false;
    let mut pauses = pauses();
    let scripts = identity.scripts.clone();
    let first = spawn_blocking(move || Listing::read(&scripts)).await;
    let mut listing = first.unwrap_or_default();
    let health = identity.health.clone();
    let mut lacks = spawn_blocking(move || health.lacks(&[]))
        .await
        .unwrap_or_default();
    say_lacks(&[], &lacks);
    loop {
        let registering = register(
            &mut client,
            (&scheduler, &jobs),
            &identity,
            &listing,
            !registered_before,
        );
        let registered = tokio::select! {
            biased;
            () = leave.cancelled() => return Ok(()),
            registered = registering => registered?,
        };
        registered_before = true;
        let (worker_id, began) = (registered.worker_id.clone(), Instant::now());
        let session = registered.session.clone();
        tracing::info!(%worker_id, scheduler, "registered");
        let stayed = heartbeats(
            &mut client,
            &jobs,
            registered,
            &identity,
            (&mut listing, &mut lacks),
            &leave,
        );
        match stayed.await {
            Ok(()) if jobs.unfinished() > 0 => return Ok(()),
            Ok(()) => {
                let request = proto::DeregisterWorkerRequest {
                    worker_id: worker_id.clone(),
                    session,
                };
                match timeout(CALL_DEADLINE, client.deregister_worker(request)).await {
                    Ok(Ok(_)) => tracing::info!(%worker_id, "deregistered"),
                    Ok(Err(status)) => {
                        tracing::warn!(%worker_id, error = status.message(), "could not deregister");
                    }
                    Err(_) => tracing::warn!(%worker_id, "could not deregister in time"),
                }
                return Ok(());
            }
            Err(status) => {
                tracing::warn!(%worker_id, error = status.message(), "lost the scheduler");
                if began.elapsed() > PAUSES.1 {
                    pauses = self::pauses();
                } else {
                    // Registering works and staying does not: not again at once.
                    tokio::select! {
                        () = tokio::time::sleep(pauses.next().unwrap_or(PAUSES.1)) => {}
                        () = leave.cancelled() => {}
                    }
                }
            }
        }
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(PAUSES.0)
        .with_max_delay(PAUSES.1)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Tries until it succeeds.
async fn register(
    client: &mut SchedulerClient<Channel>,
    (scheduler, jobs): (&str, &Jobs),
    identity: &Identity,
    listing: &Listing,
    first: bool,
) -> Result<proto::RegisterWorkerResponse, RunError> {
    let mut pauses = pauses();
    let mut last_error = String::new();
    loop {
        let known = jobs.known_scheduler();
        let request = proto::RegisterWorkerRequest {
            address: identity.address.clone(),
            name: identity.name.clone(),
            worker_id: identity.id.known()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: identity.boot_id.clone(),
            labels: identity.labels.clone().into_iter().collect(),
            slots: identity.slots,
            cpus: super::processors(),
            memory_bytes: memory_bytes(),
            os: consts::OS.to_owned(),
            arch: consts::ARCH.to_owned(),
            scripts: Some((**listing.list()).clone()),
            known_epoch: known.epoch,
            known_commit: known.commit,
            remembers_since: known.remembers_since,
        };
        let error = match timeout(CALL_DEADLINE, client.register_worker(request)).await {
            Ok(Ok(response)) => {
                let response = response.into_inner();
                identity.id.keep(&response.worker_id)?;
                return Ok(response);
            }
            Ok(Err(status)) if is_revoked(&status) => {
                return Err(RunError::Revoked {
                    name: identity.name.clone(),
                    message: status.message().to_owned(),
                });
            }
            Ok(Err(status)) => match status.code() {
                Code::AlreadyExists | Code::InvalidArgument | Code::PermissionDenied if first => {
                    return Err(RunError::Refused(status.message().to_owned()));
                }
                _ => innermost(&status),
            },
            Err(_) => "no answer in time".to_owned(),
        };
        // Said once, not at every attempt.
        if error != last_error {
            tracing::warn!(scheduler, error, "cannot register, trying again");
            last_error = error;
        }
        // Without a limit of times there is always a next one.
        tokio::time::sleep(pauses.next().unwrap_or(PAUSES.1)).await;
    }
}

/// The code word with which the scheduler refused something.
pub(super) fn word(status: &Status) -> Option<&str> {
    status.metadata().get(proto::CODE)?.to_str().ok()
}

/// Whether the scheduler says that this worker was revoked. Nobody else can: who
/// answers has shown its certificate.
pub(super) fn is_revoked(status: &Status) -> bool {
    word(status) == Some(proto::REVOKED)
}

/// Runs one registration. `Ok`: the worker may say goodbye.
async fn heartbeats(
    client: &mut SchedulerClient<Channel>,
    jobs: &Jobs,
    registered: proto::RegisterWorkerResponse,
    identity: &Identity,
    (listing, lacks): (&mut Listing, &mut Vec<String>),
    leave: &CancellationToken,
) -> Result<(), Status> {
    let snapshot = jobs
        .begin_session(registered.session.clone(), registered.epoch)
        .await?;
    let (sender, receiver) = mpsc::channel(4);
    let call = client.heartbeat(ReceiverStream::new(receiver));
    let mut upward = Upward {
        jobs,
        identity,
        listing,
        lacks,
        sender,
        worker_id: registered.worker_id,
        session: registered.session,
        sequence: snapshot.sequence,
        forgotten: Vec::new(),
        scripts: None,
        has_told: false,
        memory_available_bytes: memory_available_bytes(),
        trouble: String::new(),
        is_ready: false,
    };
    // The scheduler answers the call with the first message, not before it.
    let send_snapshot = async {
        upward.snapshot(snapshot).await?;
        Ok(upward)
    };
    let call = async {
        timeout(CALL_DEADLINE, call)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer in time"))?
    };
    let (upward, downward) = tokio::try_join!(send_snapshot, call)?;
    let every = Duration::from_millis(registered.heartbeat_interval_ms.max(1).into());
    upward.keep_going(downward.into_inner(), every, leave).await
}

/// The worker's half of one heartbeat stream.
struct Upward<'a> {
    jobs: &'a Jobs,
    identity: &'a Identity,
    /// As the scheduler knows it.
    listing: &'a mut Listing,
    /// What this worker needs for any job and does not have.
    lacks: &'a mut Vec<String>,
    sender: mpsc::Sender<proto::HeartbeatRequest>,
    worker_id: String,
    session: String,
    /// Everything up to here was sent on this stream.
    sequence: u64,
    /// Jobs given up since the last message.
    forgotten: Vec<JobId>,
    /// What the script folder holds, where that is news.
    scripts: Option<proto::ScriptList>,
    /// The scheduler has been sent the jobs that its records are too old for.
    has_told: bool,
    /// As of the last beat.
    memory_available_bytes: u64,
    /// Why the scheduler gives this worker no jobs, as it said last.
    trouble: String,
    is_ready: bool,
}

impl Upward<'_> {
    async fn snapshot(&mut self, snapshot: Snapshot) -> Result<(), Status> {
        let jobs = self.send_all_but_last(snapshot.jobs, full_report).await?;
        let request = proto::HeartbeatRequest {
            sequence: self.sequence,
            jobs,
            snapshot_complete: true,
            ends_left_out: snapshot.leaves_out_ends,
            ..self.message()
        };
        self.pass(request).await
    }

    /// Sends reports in parts, and returns the last part.
    async fn send_all_but_last(
        &self,
        jobs: Vec<Job>,
        report: impl Fn(&Job) -> proto::JobReport,
    ) -> Result<Vec<proto::JobReport>, Status> {
        let mut reports = Vec::new();
        let mut bytes = 0;
        for job in jobs {
            let report = report(&job);
            let size = prost::Message::encoded_len(&report);
            if reports.len() == JOBS_PER_MESSAGE || bytes + size > BYTES_PER_MESSAGE {
                self.send_part(std::mem::take(&mut reports)).await?;
                bytes = 0;
            }
            bytes += size;
            reports.push(report);
        }
        Ok(reports)
    }

    async fn keep_going(
        mut self,
        mut downward: Streaming<proto::HeartbeatResponse>,
        every: Duration,
        leave: &CancellationToken,
    ) -> Result<(), Status> {
        let mut changes = self.jobs.changes().watch();
        changes.mark_changed();
        let mut beat = interval(every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        let mut answered = Instant::now();
        let ending = &self.identity.ending;
        let mut told_of_the_end = ending.is_cancelled();
        // A folder may be on the disk of another machine: nobody waits for it.
        let mut look: Option<AbortOnDropHandle<Option<Listing>>> = None;
        let mut check: Option<AbortOnDropHandle<Vec<String>>> = None;
        loop {
            let left = leave.is_cancelled() && self.jobs.changes().is_empty();
            if left {
                self.send(Vec::new()).await?;
                // The scheduler has heard that this was meant when it closes its half.
                drop(self);
                let closed = async { while let Ok(Some(_)) = downward.message().await {} };
                let _ = timeout(CALL_DEADLINE, closed).await;
                return Ok(());
            }
            tokio::select! {
                response = downward.message() => {
                    let response = response?
                        .ok_or_else(|| Status::unavailable("the scheduler closed the connection"))?;
                    answered = Instant::now();
                    self.hear_of_placement(response.ready, response.trouble);
                    if response.renew {
                        self.identity.renew.notify_one();
                    }
                    self.jobs.acknowledge(response.acknowledged, response.commit).await;
                    if let Some(since) = response.tell_since {
                        self.tell_since(since).await?;
                    }
                    if !response.tell_of.is_empty() {
                        self.tell_of(&response.tell_of).await?;
                    }
                    let forget = response.forget.iter().filter_map(|id| id.parse().ok());
                    self.forgotten = self.jobs.forget(forget.collect()).await;
                    if !self.forgotten.is_empty() {
                        self.send(Vec::new()).await?;
                    }
                }
                Ok(()) = changes.changed() => self.send_changes().await?,
                _ = beat.tick() => {
                    if answered.elapsed() > every * MISSED {
                        return Err(Status::deadline_exceeded("the scheduler does not answer"));
                    }
                    self.memory_available_bytes = memory_available_bytes();
                    self.send(Vec::new()).await?;
                    look.get_or_insert_with(|| self.look());
                    check.get_or_insert_with(|| self.check());
                }
                found = async { check.as_mut()?.await.ok() }, if check.is_some() => {
                    check = None;
                    if let Some(found) = found && found != *self.lacks {
                        say_lacks(self.lacks, &found);
                        *self.lacks = found;
                        self.send(Vec::new()).await?;
                    }
                }
                found = async { look.as_mut()?.await.ok()? }, if look.is_some() => {
                    look = None;
                    if let Some(found) = found {
                        self.note(found).await?;
                    }
                }
                () = ending.cancelled(), if !told_of_the_end => {
                    told_of_the_end = true;
                    self.send(Vec::new()).await?;
                }
                () = leave.cancelled(), if !leave.is_cancelled() => {}
            }
        }
    }

    /// Whether the scheduler gives this worker jobs is said when it changes, and not at
    /// every beat.
    fn hear_of_placement(&mut self, is_ready: bool, trouble: String) {
        if is_ready && !std::mem::replace(&mut self.is_ready, is_ready) {
            tracing::info!("ready: the scheduler can call this worker");
        }
        if !trouble.is_empty() && trouble != self.trouble {
            tracing::warn!(
                "the scheduler gives this worker no jobs, because it {trouble}; `--advertise` \
                 says where the scheduler is to dial"
            );
        }
        self.trouble = trouble;
    }

    /// Whether the script folder holds something else by now.
    fn look(&self) -> AbortOnDropHandle<Option<Listing>> {
        let (listing, scripts) = (self.listing.clone(), self.identity.scripts.clone());
        AbortOnDropHandle::new(spawn_blocking(move || listing.renewed(&scripts)))
    }

    /// Whether this worker lacks something that every job needs.
    fn check(&self) -> AbortOnDropHandle<Vec<String>> {
        let (health, before) = (self.identity.health.clone(), self.lacks.clone());
        AbortOnDropHandle::new(spawn_blocking(move || health.lacks(&before)))
    }

    async fn note(&mut self, found: Listing) -> Result<(), Status> {
        let is_news = found.list() != self.listing.list();
        *self.listing = found;
        if is_news {
            self.scripts = Some((**self.listing.list()).clone());
            self.send(Vec::new()).await?;
        }
        Ok(())
    }

    async fn send_changes(&mut self) -> Result<(), Status> {
        loop {
            let changes = self.jobs.changes().since(self.sequence, JOBS_PER_MESSAGE);
            let Some((last, _)) = changes.last() else {
                return Ok(());
            };
            let last = *last;
            let (mut reports, mut bytes) = (Vec::new(), 0);
            for (sequence, id) in changes {
                let Ok(job) = self.jobs.get(id) else { continue };
                // What somebody else had this worker start is news to the scheduler.
                let report = match job.is_from_elsewhere {
                    true => full_report(&job),
                    false => report(&job),
                };
                let size = prost::Message::encoded_len(&report);
                if bytes > 0 && bytes + size > BYTES_PER_MESSAGE {
                    self.send(std::mem::take(&mut reports)).await?;
                    bytes = 0;
                }
                bytes += size;
                reports.push(report);
                self.sequence = sequence;
            }
            self.sequence = last;
            self.send(reports).await?;
        }
    }

    /// A part of a list of jobs. It has no sequence: only with the last part of the
    /// snapshot has the scheduler heard of everything up to one.
    async fn send_part(&self, jobs: Vec<proto::JobReport>) -> Result<(), Status> {
        let part = proto::HeartbeatRequest {
            jobs,
            ..self.message()
        };
        self.pass(part).await
    }

    /// Tells what this worker knows of jobs that the scheduler has here on record.
    async fn tell_of(&self, ids: &[String]) -> Result<(), Status> {
        let ids = ids.iter().filter_map(|id| id.parse().ok());
        let known = ids.filter_map(|id| self.jobs.get(id).ok()).collect();
        let request = proto::HeartbeatRequest {
            jobs: self.send_all_but_last(known, report).await?,
            told_of: true,
            ..self.message()
        };
        self.pass(request).await
    }

    /// Tells a scheduler whose records are older than what this worker knows of the
    /// jobs that ran here since.
    async fn tell_since(&mut self, commit: u64) -> Result<(), Status> {
        if std::mem::replace(&mut self.has_told, true) {
            return Ok(());
        }
        // Of these what was asked for is still known.
        let over = self.jobs.over_since(commit);
        let last = self.send_all_but_last(over, full_report).await?;
        self.send_part(last).await?;
        let (mut next, mut count) = (Some(0), 0);
        while let Some(from) = next {
            let ran;
            (ran, next) = self.jobs.ran_since(commit, from, JOBS_PER_MESSAGE);
            count += ran.len();
            let message = proto::HeartbeatRequest {
                ran: ran.iter().map(short_report).collect(),
                ran_complete: next.is_none(),
                ..self.message()
            };
            self.pass(message).await?;
        }
        tracing::warn!(
            jobs = count,
            commit,
            "the scheduler's records are older than what this worker knows: it was told"
        );
        Ok(())
    }

    /// A sign of life that acknowledges nothing and reports nothing.
    fn message(&self) -> proto::HeartbeatRequest {
        proto::HeartbeatRequest {
            worker_id: self.worker_id.clone(),
            session: self.session.clone(),
            sequence: 0,
            jobs: Vec::new(),
            snapshot_complete: false,
            running: u32::try_from(self.jobs.running()).unwrap_or(u32::MAX),
            load_milli: load_milli(),
            forgotten: Vec::new(),
            memory_available_bytes: self.memory_available_bytes,
            draining: self.identity.ending.is_cancelled(),
            lacks: self.lacks.clone(),
            scripts: None,
            ran: Vec::new(),
            ran_complete: false,
            ends_left_out: false,
            told_of: false,
        }
    }

    async fn send(&mut self, jobs: Vec<proto::JobReport>) -> Result<(), Status> {
        let request = proto::HeartbeatRequest {
            sequence: self.sequence,
            jobs,
            forgotten: std::mem::take(&mut self.forgotten)
                .iter()
                .map(JobId::to_string)
                .collect(),
            scripts: self.scripts.take(),
            ..self.message()
        };
        self.pass(request).await
    }

    async fn pass(&self, request: proto::HeartbeatRequest) -> Result<(), Status> {
        self.sender
            .send(request)
            .await
            .map_err(|_| Status::unavailable("the scheduler closed the connection"))
    }
}

fn say_lacks(before: &[String], now: &[String]) {
    match now {
        [] if before.is_empty() => {}
        [] => tracing::info!("this worker can start jobs again"),
        _ => tracing::warn!("this worker takes no jobs: {}", now.join("; ")),
    }
}

/// The load average over one minute; the kernel counts it in 1/65536
/// (sysinfo(2)).
fn load_milli() -> u32 {
    let load = rustix::system::sysinfo().loads[0].saturating_mul(1000) / 65_536;
    u32::try_from(load).unwrap_or(u32::MAX)
}

/// All memory of this machine (sysinfo(2)).
fn memory_bytes() -> u64 {
    let found = rustix::system::sysinfo();
    found.totalram.saturating_mul(found.mem_unit.into())
}

/// What the kernel thinks a process could still have without swapping
/// (proc_meminfo(5)); 0 where it does not say.
fn memory_available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available_memory(&text).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_knows_its_memory() {
        let available = memory_available_bytes();
        assert!(available > 0 && available <= memory_bytes());
    }
}
