//! The jobs and what is done with them. Every change of a record happens here,
//! from whichever road the news of it came. Who the workers are is in
//! `registry.rs`, which of them gets a job in `placement.rs`.

mod attempts;
mod group;
mod groups;
mod index;
mod later;
mod pauses;
mod prerequisites;
mod record;
mod recovery;
mod room;
mod table;
#[cfg(test)]
pub(super) use self::record::{Member, tests};
mod turns;

use std::{
    cmp::Reverse,
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

pub(super) use self::{
    attempts::Part,
    group::Group,
    groups::{Kind, StartGroup},
    index::Filter,
    prerequisites::Awaited,
    record::{Doubt, End, Exit, Gone, Place, Process, Record, Spec, State, Status, now},
    room::{Cut, Room},
};
use self::{
    pauses::Pauses,
    prerequisites::Prerequisite,
    record::{Event, RecordedStop, STOP_RECORDED},
    recovery::{Claim, Recovery},
    table::{Changed, Due, Ended, Table},
    turns::Turns,
};
use super::{
    access::Caller,
    clock::Clock,
    error::{Error, Refusal},
    events::Events,
    offers::Offers,
    registry::{self, Registry, Session, WorkerHandle},
    store::{self, Env, Key, Range, Store},
};
use crate::{
    api,
    ids::{self, GroupId, JobId, WorkerId},
};

/// The most candidates that an ambiguous prefix is answered with.
const MAX_CANDIDATES: usize = 5;

/// So many of the newest jobs are looked at for a name like a misspelt one.
const MAX_LIKENED: usize = 1000;

/// Before a start that its worker refused.
const COULD_NOT_START: &str = "could not start: ";

/// A handle to all jobs; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    store: Store,
    clock: Clock,
    registry: Registry,
    offers: Offers,
    events: Events,
    /// Starts that bear the same key go one after the other.
    turns: Turns,
    pauses: Pauses,
    keep_for: Duration,
    /// How long a start that was asked for before is waited for.
    patience: Duration,
    tracker: TaskTracker,
    closing: CancellationToken,
}

/// What the jobs need to be there.
#[derive(Debug)]
pub(super) struct Needs {
    pub(super) store: Store,
    /// For jobs that wait for a time.
    pub(super) clock: Clock,
    pub(super) registry: Registry,
    /// How long a finished job is kept.
    pub(super) keep_for: Duration,
    /// The deadline of a call to a worker.
    pub(super) call_deadline: Duration,
    /// Every call goes through it.
    pub(super) tracker: TaskTracker,
    /// Ends whoever waits.
    pub(super) closing: CancellationToken,
}

/// A start, as it was asked for.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) spec: Spec,
    /// The values of its environment.
    pub(super) env: Env,
    /// The worker that is named.
    pub(super) worker: Option<String>,
    /// The jobs it waits for.
    pub(super) after: Vec<Awaited>,
    pub(super) unplaced: Unplaced,
    /// Under which it may be asked for again.
    pub(super) key: Option<Key>,
    pub(super) caller: Caller,
}

/// What becomes of a job for which no worker has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unplaced {
    /// It waits.
    Waits,
    /// It is refused.
    Refused,
}

/// A job that is about to be recorded.
struct Accepted {
    record: Arc<Record>,
    /// The worker it was given to; None: it waits.
    worker: Option<WorkerHandle>,
    /// The job is on the disk.
    recorded: BoxFuture<'static, Result<(), store::Error>>,
}

/// What a worker reports of one of its jobs.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// The id under which the worker has it: of this very attempt.
    pub(super) run: JobId,
    /// The job that it is an attempt of; None: the worker does not say, or it is
    /// that of a job's first attempt.
    pub(super) of: Option<JobId>,
    pub(super) status: Status,
    /// What was asked for, and when; for a scheduler that forgot it.
    pub(super) spec: Option<(Spec, Timestamp)>,
}

/// How to end a job.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stop {
    /// None: TERM.
    pub(super) signal: Option<i32>,
    /// From that signal to KILL; None: the worker's own.
    pub(super) grace: Option<Duration>,
    pub(super) wait: Wait,
}

/// What somebody means by an id or a name.
#[derive(Clone, Debug)]
pub(super) enum Named {
    Job(Arc<Record>),
    Group(Arc<Group>),
}

/// When a stop is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wait {
    /// Once the signal was sent.
    Sent,
    /// Once the job is gone.
    #[default]
    Gone,
}

impl Jobs {
    /// `live` and `groups` are those that had not ended when the store was opened.
    pub(super) fn new(needs: Needs, live: Vec<(Record, Arc<Env>)>, groups: Vec<Group>) -> Self {
        let mut table = Table::default();
        table.time = needs.store.time();
        for group in groups {
            table.insert_group(group);
        }
        let loaded = live.iter().map(|(record, _)| record.id);
        let is_older = needs.store.history().older_than.is_some();
        table.recovery = Recovery::new(loaded.collect(), needs.registry.expected(), is_older);
        let mut waiting = Vec::new();
        for (mut record, env) in live {
            let state = record.state.clone();
            record.state = state.after_restart(record.worker_name());
            waiting.push(table.insert(record, env).id);
        }
        // Some wait for others.
        for id in waiting {
            table.enqueue(id);
            // A crash may have come before all of a group was told to stop.
            if table.is_to_stop(id) {
                table.want_stop(id, RecordedStop::default());
            }
        }
        Self(Arc::new(Inner {
            table: Mutex::new(table),
            store: needs.store,
            clock: needs.clock,
            offers: needs.registry.offers(),
            events: needs.registry.events(),
            registry: needs.registry,
            turns: Turns::default(),
            pauses: Pauses::default(),
            keep_for: needs.keep_for,
            patience: needs.call_deadline,
            tracker: needs.tracker,
            closing: needs.closing,
        }))
    }

    /// Places jobs whenever workers offer something new. Never returns.
    pub(super) async fn follow_offers(&self) {
        loop {
            self.0.offers.changed().await;
            self.change(|_| {});
        }
    }

    /// Records a job and, if a worker has room for it, starts it there. Returns
    /// when its process runs, or it is recorded that it waits; an error that
    /// names the job means that the record says what became of it. The same key
    /// gets the same job and the same answer. A caller who goes away does not
    /// stop the start.
    pub(super) async fn start(&self, asked: Start) -> Result<Arc<Record>, Error> {
        let jobs = self.clone();
        let start = async move {
            let id = jobs.start_once(asked).await?;
            jobs.get(id).await
        };
        self.to_its_end(start).await
    }

    /// Does what may not be done in part, also when who asked for it goes away.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let work = self.0.tracker.spawn(work.in_current_span());
        work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "what was asked for broke off");
            Err(Error::Internal)
        })
    }

    async fn start_once(&self, mut asked: Start) -> Result<JobId, Error> {
        // Until the key is recorded, whoever bears it as well has to wait.
        let mut turn = None;
        if let Some(key) = &asked.key {
            turn = Some(self.0.turns.take(&key.key).await);
            if let Some(kept) = self.0.store.key(key.key.clone()).await? {
                drop(turn);
                return match kept.body == key.body {
                    true if kept.is_gone => Err(Error::KeySpent(kept.job)),
                    true => self.outcome(kept.job).await,
                    false => Err(Error::KeyReused(kept.job)),
                };
            }
        }
        let wanted = asked.worker.as_deref();
        let wanted = wanted.map(|named| self.wanted(named)).transpose()?;
        let after = self.prerequisites(std::mem::take(&mut asked.after)).await?;
        let Accepted {
            record,
            worker,
            recorded,
        } = self.accept(asked, wanted, after)?;
        if let Err(error) = recorded.await {
            self.change(|table| table.remove(record.id));
            return Err(error.into());
        }
        drop(turn);
        self.tell(record.id);
        match worker {
            Some(worker) => self.send(&record, &worker).await,
            None => {
                self.change(|table| table.enqueue(record.id));
                Ok(record.id)
            }
        }
    }

    /// Tells whoever watches of a job that is on the disk now.
    fn tell(&self, id: JobId) {
        let table = self.table();
        if let Some(record) = table.get(id) {
            self.0.events.job(self.0.store.now(), record);
        }
    }

    /// The worker that is named, which jobs may wait for.
    fn wanted(&self, named: &str) -> Result<WorkerHandle, Error> {
        let worker = self.0.registry.find(named)?;
        match worker.has_left() {
            true => Err(Error::WorkerLeft(worker.name.to_string())),
            false => Ok(worker),
        }
    }

    /// What was, or would have been, the answer to the start of this job.
    async fn outcome(&self, id: JobId) -> Result<JobId, Error> {
        let known = self.wait(id, |record| {
            record.state == State::Queued || !record.state.is_unconfirmed()
        });
        let record = match tokio::time::timeout(self.0.patience, known).await {
            Ok(record) => record?,
            Err(_) => self.get(id).await?,
        };
        match &record.state {
            State::Queued | State::Running(_) => Ok(id),
            State::Unknown {
                process: Some(_), ..
            } => Ok(id),
            State::Pending { .. } | State::Unknown { process: None, .. } => {
                Err(Error::WorkerUnreachable {
                    worker: record.worker_name().to_owned(),
                    why: "has not confirmed the start yet".to_owned(),
                    job: Some(id),
                })
            }
            State::Ended {
                end: End::NotStarted { code },
                reason,
                ..
            } if record.attempts.is_empty() => Err(Error::Refused {
                code: code.clone(),
                message: reason
                    .strip_prefix(COULD_NOT_START)
                    .unwrap_or(reason)
                    .to_owned(),
                kind: Refusal::of_word(code),
                job: Some(id),
            }),
            State::Ended { process: None, .. } if record.never_ran() && record.place.is_some() => {
                Err(finished(&record))
            }
            State::Ended { .. } => Ok(id),
        }
    }

    fn accept(
        &self,
        asked: Start,
        wanted: Option<WorkerHandle>,
        after: Vec<Prerequisite>,
    ) -> Result<Accepted, Error> {
        let env = Arc::new(asked.env);
        let accepted = self.0.store.time().now();
        let spec = asked.spec;
        let record = Record {
            id: JobId::random(),
            counts_from: Some(accepted.counted),
            ripe_at: spec.ripe_at(accepted),
            spec: Arc::new(spec),
            member: None,
            wanted: wanted.as_ref().map(|worker| worker.id),
            place: None,
            state: State::Queued,
            output_bytes: 0,
            created_at: now(),
            stop: None,
            attempts: Vec::new(),
            retry_at: None,
            is_last: false,
            after,
        };
        let id = record.id;
        // One lock for choosing and recording, so that starts at the same
        // moment see each other.
        let mut table = self.table();
        self.take_offers(&mut table);
        let mut record = table.insert(record, env.clone());
        if record.is_free() {
            table.enqueue(id);
        }
        let mut worker = None;
        for (placed, on) in table.place() {
            match placed.id == id {
                true => (record, worker) = (placed, Some(on)),
                // Room may have come up this very moment.
                false => self.send_later(placed, on),
            }
        }
        if worker.is_none() {
            if asked.unplaced == Unplaced::Refused {
                let why = table.why(&record);
                table.remove(id);
                return Err(Error::NoFreeSlot(why));
            }
            // Nobody may send it before it is on the disk.
            table.dequeue(&record);
        }
        let spec = &record.spec;
        let named = worker.as_ref().or(wanted.as_ref());
        let details = json!({
            "worker": named.map(|worker| &worker.name), "command": spec.command,
            "path": spec.path, "args": spec.args, "env": spec.env, "cwd": spec.cwd,
            "name": spec.name, "not_before": record.asked_not_before(),
            "retries": spec.retries, "on_lost": spec.on_lost,
            "after": record.shown_prerequisites(),
        });
        let audit = asked.caller.did("start", id, details);
        let store = &self.0.store;
        let recorded = store.start(record.clone(), env, asked.key, audit);
        tracing::debug!(job_id = %id, "job accepted");
        Ok(Accepted {
            record,
            worker,
            recorded: recorded.boxed(),
        })
    }

    /// Sends a job that was placed once its place is on the disk: or after a
    /// crash it would be placed anew, and might run twice.
    fn send_later(&self, record: Arc<Record>, worker: WorkerHandle) {
        let ticket = self.0.store.job(record.clone());
        self.0.events.job(ticket, record.clone());
        let recorded = self.0.store.committed(ticket);
        let jobs = self.clone();
        self.0.tracker.spawn(async move {
            // Without its store the scheduler ends, and another one sends it.
            if recorded.await.is_ok()
                && let Err(error) = jobs.send(&record, &worker).await
            {
                tracing::warn!(job_id = %record.id, %error, "the job was not started");
            }
        });
    }

    async fn send(&self, record: &Record, worker: &WorkerHandle) -> Result<JobId, Error> {
        let env = self.table().env(record.id);
        let answer = worker.rpc.start(record, &env).await;
        self.started(record, answer, worker).await
    }

    async fn started(
        &self,
        sent: &Record,
        answer: Result<Option<Status>, Error>,
        worker: &WorkerHandle,
    ) -> Result<JobId, Error> {
        let id = sent.id;
        // What is answered may be about an attempt that is over by now.
        let run = sent.run().unwrap_or(id);
        let answer = match answer {
            // It was sent before, and the answer was lost.
            Err(Error::Refused { code, .. }) if code == "job_exists" => {
                let status = worker.rpc.query(run).await;
                status.map_err(Error::unanswered)
            }
            Err(error) => Err(match error {
                // The worker is not who it was when this was sent: its next
                // list of jobs decides.
                Error::Refused { ref code, .. } if is_outdated(code) => error.unanswered(),
                error => error,
            }),
            Ok(status) => Ok(status),
        };
        match answer {
            Ok(status) => {
                let status = status.unwrap_or(Status {
                    state: State::Running(Process::default()),
                    output_bytes: 0,
                });
                self.0.pauses.works(worker.id);
                self.change(|table| table.report(run, status, None));
                if self.owes_stop(run) {
                    self.catch_up(worker.id);
                }
                Ok(id)
            }
            // It lacks what it needs to start any job, and has not begun this one.
            Err(Error::Refused { code, message, .. }) if code == api::code::WORKER_SHORT => {
                self.rest(worker.id, &message);
                self.change(|table| table.given_back(run));
                Ok(id)
            }
            Err(Error::Refused { code, .. }) if code == api::code::WORKER_DRAINING => {
                self.change(|table| table.turned_away(run));
                Ok(id)
            }
            Err(Error::Refused {
                code,
                message,
                kind,
                ..
            }) => {
                let event = Event::Refused {
                    code: code.clone(),
                    reason: format!("{COULD_NOT_START}{message}"),
                };
                self.change(|table| table.apply_to_run(run, event));
                // Or after a crash it would be sent again, and might start.
                let recorded = self.recorded().await;
                recorded.map_err(|error| error.about(id))?;
                if !self.get(id).await?.is_final() {
                    return Ok(id);
                }
                Err(Error::Refused {
                    code,
                    message,
                    kind,
                    job: Some(id),
                })
            }
            Err(error) => {
                self.change(|table| table.unconfirmed(run, error.to_string()));
                worker.ask_anew();
                self.catch_up(worker.id);
                match self.get(id).await?.state {
                    // The worker has left, and does not have it.
                    State::Queued => Ok(id),
                    State::Pending { .. }
                    | State::Running(_)
                    | State::Unknown { .. }
                    | State::Ended { .. } => Err(error.about(id)),
                }
            }
        }
    }

    /// Returns when everything so far is on the disk.
    async fn recorded(&self) -> Result<(), Error> {
        let store = &self.0.store;
        Ok(store.committed_now(store.now()).await?)
    }

    /// Does for a worker that is ready what was left undone while it was away:
    /// starts of which it has proved to know nothing, and stops.
    pub(super) fn catch_up(&self, worker: WorkerId) {
        for delivery in self.due(worker) {
            self.0.tracker.spawn(delivery);
        }
    }

    /// The deliveries that a worker that is ready is owed; each is handed out once.
    fn due(&self, worker: WorkerId) -> Vec<BoxFuture<'static, ()>> {
        let Ok(worker) = self.0.registry.get(worker) else {
            return Vec::new();
        };
        if worker.is_ready().is_err() {
            return Vec::new();
        }
        let mut due = Vec::new();
        self.change(|table| due = table.due(worker.id, worker.session));
        let deliver = |due| {
            let (jobs, worker) = (self.clone(), worker.clone());
            async move {
                match due {
                    Due::Start(record) => jobs.start_again(&record, &worker).await,
                    Due::Stop(record, stop) => jobs.stop_now(&record, stop, &worker).await,
                }
            }
            .boxed()
        };
        due.into_iter().map(deliver).collect()
    }

    /// A worker that can be heard cannot be called: the starts of which it has proved to
    /// know nothing wait for another worker.
    pub(super) fn give_back(&self, worker: &WorkerHandle) {
        self.change(|table| table.give_back(worker.id, worker.session));
    }

    async fn start_again(&self, record: &Record, worker: &WorkerHandle) {
        tracing::info!(job_id = %record.id, worker_id = %worker.id, "start sent again");
        if let Err(error) = self.send(record, worker).await {
            tracing::warn!(job_id = %record.id, %error, "the job was not started");
        }
    }

    async fn stop_now(&self, record: &Record, recorded: RecordedStop, worker: &WorkerHandle) {
        let id = record.id;
        let stop = Stop {
            signal: recorded.signal,
            grace: recorded.grace,
            wait: Wait::Sent,
        };
        let run = record.run().unwrap_or(id);
        let has_arrived = match worker.rpc.stop(run, stop).await {
            Ok(()) => {
                tracing::info!(job_id = %id, worker_id = %worker.id, "recorded stop delivered");
                true
            }
            // It has ended by now, or will never be stopped.
            Err(Error::Refused { code, .. }) if !is_outdated(&code) => true,
            Err(error) => {
                tracing::warn!(job_id = %id, %error, "a recorded stop was not delivered");
                false
            }
        };
        self.change(|table| table.stop_was_sent(id, has_arrived));
        if self.owes_stop(run) {
            self.deliver_again(worker.id);
        }
    }

    /// Ends a job. With [`Wait::Gone`] it returns when all of the job is gone.
    /// If its worker is away, the stop is recorded, delivered when it is back,
    /// and the answer is an error that says so.
    pub(super) async fn stop(&self, id: JobId, stop: Stop) -> Result<(), Error> {
        self.change(|table| table.make_last(id));
        let record = self.asked_start(id).await?;
        if record.state == State::Queued {
            let stopped = record.stopped_before_start(None);
            self.change(|table| table.apply(id, stopped));
            if self.get(id).await?.is_final() {
                let recorded = self.recorded().await;
                return recorded.map_err(Error::stop_unrecorded);
            }
            // It was placed this very moment.
            return Box::pin(self.stop(id, stop)).await;
        }
        if record.is_final() {
            return Err(finished(&record));
        }
        let Some(worker) = record.worker() else {
            return Err(Error::Internal);
        };
        let worker = self.0.registry.get(worker)?;
        let sent = match worker.is_ready() {
            Ok(()) if record.state.is_unconfirmed() => Err(Error::WorkerUnreachable {
                worker: worker.name.to_string(),
                why: "has not confirmed the start yet".to_owned(),
                job: None,
            }),
            Ok(()) => worker.rpc.stop(record.run().unwrap_or(id), stop).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => {}
            Err(Error::WorkerUnreachable { why, .. }) => {
                return Err(self.stop_later(id, stop, &worker, why).await);
            }
            Err(Error::WorkerNotReady(_)) => {
                let why = "is not ready yet".to_owned();
                return Err(self.stop_later(id, stop, &worker, why).await);
            }
            // The worker listens to another registration, or scheduler, by now.
            Err(Error::Refused { code, .. }) if is_outdated(&code) => {
                let why = "has registered again".to_owned();
                return Err(self.stop_later(id, stop, &worker, why).await);
            }
            Err(error) => return Err(error.about(id)),
        }
        tracing::info!(job_id = %id, worker_id = %worker.id, "stop sent");
        match stop.wait {
            Wait::Sent => Ok(()),
            Wait::Gone => self.gone(id, stop, &worker).await,
        }
    }

    /// Records a stop that cannot be delivered now; returns what to say of it.
    async fn stop_later(&self, id: JobId, stop: Stop, worker: &WorkerHandle, why: String) -> Error {
        let recorded = RecordedStop {
            signal: stop.signal,
            grace: stop.grace,
        };
        self.change(|table| table.want_stop(id, recorded));
        if let Err(error) = self.recorded().await {
            return error.stop_unrecorded().about(id);
        }
        tracing::info!(job_id = %id, worker_id = %worker.id, "stop recorded for later");
        // It may have come back this very moment.
        self.catch_up(worker.id);
        Error::WorkerUnreachable {
            worker: worker.name.to_string(),
            why: format!("{why}; {STOP_RECORDED}"),
            job: Some(id),
        }
    }

    async fn gone(&self, id: JobId, stop: Stop, worker: &WorkerHandle) -> Result<(), Error> {
        let record = self
            .wait(id, |record| match &record.state {
                State::Queued | State::Pending { .. } | State::Running(_) => false,
                State::Unknown { doubt, .. } => *doubt == Doubt::WorkerUnreachable,
                State::Ended { .. } => true,
            })
            .await?;
        match &record.state {
            State::Unknown { .. } => {
                let why = "stopped answering before the job was gone".to_owned();
                Err(self.stop_later(id, stop, worker, why).await)
            }
            State::Queued | State::Pending { .. } | State::Running(_) | State::Ended { .. } => {
                Ok(())
            }
        }
    }

    /// Waits until it is known whether the job started.
    pub(super) async fn settled_start(&self, id: JobId) -> Result<Arc<Record>, Error> {
        self.wait(id, |record| match &record.state {
            State::Queued | State::Pending { .. } => false,
            State::Running(_) | State::Unknown { .. } | State::Ended { .. } => true,
        })
        .await
    }

    /// As [`Jobs::settled_start`], but does not wait for a worker to have room.
    pub(super) async fn asked_start(&self, id: JobId) -> Result<Arc<Record>, Error> {
        self.wait(id, |record| match &record.state {
            State::Pending { .. } => false,
            State::Queued | State::Running(_) | State::Unknown { .. } | State::Ended { .. } => true,
        })
        .await
    }

    /// Waits until the record is as `enough` wants it, or final.
    pub(super) async fn wait(
        &self,
        id: JobId,
        mut enough: impl FnMut(&Record) -> bool,
    ) -> Result<Arc<Record>, Error> {
        let mut changes = self.watch(id).await?;
        let found = tokio::select! {
            found = changes.wait_for(|record| record.is_final() || enough(record)) => {
                found.map(|record| record.clone()).ok()
            }
            () = self.0.closing.cancelled() => return Err(Error::ShuttingDown),
        };
        // The sender goes with the end of the job, which is final.
        Ok(found.unwrap_or_else(|| changes.borrow().clone()))
    }

    /// The record now and after every change, the last of them its end.
    pub(super) async fn watch(&self, id: JobId) -> Result<watch::Receiver<Arc<Record>>, Error> {
        let found = self.table().watch(id);
        match found {
            Some(changes) => Ok(changes),
            None => Ok(watch::channel(self.get(id).await?).1),
        }
    }

    /// The job of this very id.
    async fn get(&self, id: JobId) -> Result<Arc<Record>, Error> {
        let live = self.table().get(id);
        match live {
            Some(record) => Ok(record),
            None => {
                let found = self.0.store.find(id).await?;
                found
                    .map(Arc::new)
                    .ok_or_else(|| Error::JobNotFound(id.to_string()))
            }
        }
    }

    /// What `asked` means: its id, its name (the newest that bears it), a prefix of
    /// at least four digits, `last`, or `GROUP/3` for a job of a group. The name of
    /// a group is its own, not that of its jobs.
    pub(super) async fn find(&self, asked: &str) -> Result<Named, Error> {
        if let Some((group, index)) = asked.split_once('/') {
            return Ok(Named::Job(self.member(group, index).await?));
        }
        if let Ok(id) = asked.parse() {
            return match self.get(id).await {
                Err(Error::JobNotFound(_)) => {
                    let group = GroupId::from_bytes(*id.as_bytes());
                    Ok(Named::Group(self.get_group(group).await?))
                }
                found => Ok(Named::Job(found?)),
            };
        }
        let name = (asked != "last").then(|| asked.to_owned());
        if let Some(record) = self.newest(name).await? {
            return match record.group() {
                Some(group) => Ok(Named::Group(self.get_group(group).await?)),
                None => Ok(Named::Job(record)),
            };
        }
        let not_found = || Error::JobNotFound(asked.to_owned());
        if !ids::is_prefix(asked) {
            return Err(self.meant(asked).await?.unwrap_or_else(not_found));
        }
        let digits = asked.replace('-', "");
        let first: JobId = format!("{digits:0<32}").parse().map_err(|_| not_found())?;
        let live = self.table().with_prefix(first, &digits, MAX_CANDIDATES);
        let store = &self.0.store;
        let ended = store.with_prefix(first, digits.clone(), MAX_CANDIDATES);
        let mut jobs = live;
        add(&mut jobs, ended.await?);
        let first = GroupId::from_bytes(*first.as_bytes());
        let groups = store.groups_with_prefix(first, digits, MAX_CANDIDATES);
        let groups = groups.await?.into_iter().map(|group| group.id);
        let groups: Vec<GroupId> = groups.collect();
        match (&jobs[..], &groups[..]) {
            ([], []) => Err(not_found()),
            ([record], []) => Ok(Named::Job(record.clone())),
            ([], [group]) => Ok(Named::Group(self.get_group(*group).await?)),
            _ => {
                let jobs = jobs.iter().map(|record| record.id.to_string());
                let groups = groups.iter().map(ToString::to_string);
                let mut candidates: Vec<String> = jobs.chain(groups).collect();
                candidates.sort();
                candidates.truncate(MAX_CANDIDATES);
                Err(Error::AmbiguousJob {
                    asked: asked.to_owned(),
                    candidates,
                })
            }
        }
    }

    /// The error that names a job whose name is like `asked`, one of the newest.
    async fn meant(&self, asked: &str) -> Result<Option<Error>, Error> {
        let mut names = self.table().newest_names(MAX_LIKENED);
        names.extend(self.0.store.newest_names(MAX_LIKENED).await?);
        let names = names.iter().map(String::as_str);
        Ok(
            registry::meant(asked, names).map(|meant| Error::JobNameNotFound {
                asked: asked.to_owned(),
                meant,
            }),
        )
    }

    async fn newest(&self, name: Option<String>) -> Result<Option<Arc<Record>>, Error> {
        let live = self.table().newest(name.as_deref());
        let ended = self.0.store.newest(name).await?.map(Arc::new);
        let both = live.into_iter().chain(ended);
        Ok(both.max_by_key(|record| (record.created_at, record.id)))
    }

    /// At most `limit` jobs, the newest first, behind the job `after`: as many as a
    /// page has room for.
    pub(super) async fn page(
        &self,
        filter: Filter,
        limit: usize,
        after: Option<JobId>,
    ) -> Result<Cut<Arc<Record>>, Error> {
        let after = match after {
            None => None,
            Some(id) => Some(self.get(id).await?.cursor()),
        };
        let room = Room::of(limit);
        // Memory first: what ends and moves to the disk meanwhile is there twice
        // rather than not at all.
        let live = self.table().page(&filter, room, after);
        let newer_than = live.edge(|record| record.cursor());
        let range = Range { newer_than, after };
        let ended = self.0.store.page(filter, room, range).await?;
        Ok(room::merge(room, live, ended, |record| {
            Reverse(record.cursor())
        }))
    }

    /// The jobs of a worker that have not ended.
    pub(super) fn live_on(&self, worker: WorkerId) -> Vec<JobId> {
        self.table().live_on(worker)
    }

    /// The record as the HTTP API shows it.
    pub(super) fn shown(&self, record: &Record) -> api::Job {
        let kept_until = record
            .kept_from()
            .and_then(|at| at.checked_add(self.0.keep_for).ok());
        let mut job = record.job();
        if record.state == State::Queued {
            let table = self.table();
            job.not_before = record.not_before(table.time.now());
            job.reason = Some(table.why(record));
        }
        api::Job { kept_until, ..job }
    }

    /// Those of `jobs`, runs, that are not here and not on the disk: only their
    /// worker knows them.
    pub(super) async fn unknown(&self, jobs: Vec<JobId>) -> Result<HashSet<JobId>, Error> {
        let mut unknown: HashSet<JobId> = {
            let table = self.table();
            let absent = jobs.into_iter().filter(|run| !table.knows(*run));
            absent.collect()
        };
        if !unknown.is_empty() {
            let known = self.0.store.known(unknown.iter().copied().collect());
            for id in known.await? {
                unknown.remove(&id);
            }
        }
        Ok(unknown)
    }

    /// Takes in what `worker` says of a job, and adopts the job if it is among
    /// the `unknown` and the report says what it is. A worker speaks of its own
    /// jobs only. Returns whether a stop is owed to the job, which
    /// [`Jobs::catch_up`] delivers.
    pub(super) fn report(
        &self,
        worker: &WorkerHandle,
        report: Report,
        unknown: &HashSet<JobId>,
    ) -> bool {
        let id = report.run;
        let mut is_over = false;
        self.change(|table| {
            if table.claim(worker, &report) != Claim::Kept {
                is_over = take_in(table, worker, report, unknown);
            }
        });
        if is_over {
            self.end_what_is_over(id, worker);
        }
        self.owes_stop(id)
    }

    /// A stop may have been recorded while it was not known whether the job runs.
    fn owes_stop(&self, run: JobId) -> bool {
        let table = self.table();
        let record = table.job_of(run).and_then(|id| table.get(id));
        record.is_some_and(|record| record.stop.is_some())
    }

    /// Takes in a job's end from the end of its output, which may be here
    /// before the worker's report.
    pub(super) fn ended(&self, run: JobId, status: Status) {
        self.change(|table| table.report(run, status, None));
    }

    /// So much of a run's output was passed on. The store is told with the next
    /// change.
    pub(super) fn seen(&self, run: JobId, bytes: u64) {
        self.table().seen(run, bytes);
    }

    /// The runs that `worker` has on record, of an earlier session, and that are not
    /// among `named`.
    pub(super) fn missing(&self, worker: &WorkerHandle, named: &HashSet<JobId>) -> Vec<JobId> {
        self.table().missing(worker.id, worker.session, named)
    }

    /// `worker` has told of all its jobs: those it did not name, and that were
    /// sent to an earlier session, are lost, or are to be sent again.
    pub(super) fn settle(&self, worker: &WorkerHandle, present: &HashSet<JobId>) {
        self.change(|table| table.settle(worker.id, worker.session, present, Gone::Restarted));
    }

    /// The worker said goodbye: what it has not reported the end of is lost.
    pub(super) fn left(&self, worker: WorkerId) {
        let nothing = HashSet::new();
        self.change(|table| table.settle(worker, Session::random(), &nothing, Gone::Left));
    }

    /// The worker of this name is known no more: what it has not reported the end
    /// of is lost.
    pub(super) fn removed(&self, worker: WorkerId, name: &Arc<str>) {
        let (nothing, gone) = (HashSet::new(), Gone::Removed(name.clone()));
        self.change(|table| {
            table.settle(worker, Session::random(), &nothing, gone);
            table.wait_in_vain(worker, name);
        });
    }

    /// A worker proves that the records are older than what it did.
    pub(super) fn records_are_older(&self) {
        self.change(Table::records_are_older);
    }

    /// Jobs from before the start wait no longer for workers that have not
    /// named their jobs since, unless the records are known to be older.
    pub(super) fn stop_waiting(&self) {
        self.change(Table::stop_waiting);
    }

    /// The worker does not answer: its jobs may live or not.
    pub(super) fn unreachable(&self, worker: WorkerId, why: &str) {
        self.change(|table| table.unreachable(worker, why));
    }

    /// Changes what is in memory, and tells the store of it in the same order.
    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table();
        self.take_offers(&mut table);
        change(&mut table);
        for group in table.failed() {
            let why = table.group(group).and_then(|group| group.stopped.clone());
            let running = table.stop_group(group, &why.unwrap_or_default());
            let jobs = self.clone();
            self.0.tracker.spawn(async move {
                // A worker that is away is sent it when it is back.
                jobs.stop_all(running, Stop::default()).await;
            });
        }
        table.tell_dependents();
        if table.recovery.is_over_now() {
            tracing::info!("every worker on record has told what it did: nothing is held up");
            self.0.store.older_than(None);
        }
        for changed in table.changed() {
            let Inner { store, events, .. } = &*self.0;
            let (ticket, ended) = match changed {
                Changed::Job(record) => {
                    let ended = record.is_final().then_some(Ended::Job(record.id));
                    let ticket = store.job(record.clone());
                    events.job(ticket, record);
                    (ticket, ended)
                }
                Changed::Adopted(record) => {
                    let ended = record.is_final().then_some(Ended::Job(record.id));
                    let ticket = store.adopted(record.clone());
                    events.job(ticket, record);
                    (ticket, ended)
                }
                Changed::Group(group) => {
                    let ended = group.is_final().then_some(Ended::Group(group.id));
                    let ticket = store.group_changed(group.clone());
                    events.group(ticket, group);
                    (ticket, ended)
                }
            };
            if let Some(ended) = ended {
                table.noted(ticket, ended);
            }
        }
        if !self.0.closing.is_cancelled() {
            for (record, worker) in table.place() {
                self.send_later(record, worker);
            }
        }
    }

    fn take_offers(&self, table: &mut Table) {
        for (worker, offer) in self.0.offers.take() {
            table.offer(worker, offer);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.evict(|ticket| self.0.store.is_committed(ticket));
        table
    }
}

/// Takes in what `worker` says of a run, as [`Jobs::report`] says. True: the run may
/// live although it is over.
fn take_in(
    table: &mut Table,
    worker: &WorkerHandle,
    report: Report,
    unknown: &HashSet<JobId>,
) -> bool {
    let id = report.run;
    let known = table.job_of(id).and_then(|id| table.get(id));
    let lives = matches!(report.status.state, State::Running(_));
    match (known, report.spec) {
        (Some(record), _) if record.worker() == Some(worker.id) => {
            table.report(id, report.status, Some(worker.session));
            return lives && record.is_final();
        }
        (Some(record), _) => {
            let owner_id = record.worker().map(tracing::field::display);
            tracing::warn!(job_id = %id, worker_id = %worker.id, owner_id,
                "a worker reports another worker's job");
            // One that was revoked, say, and has joined again.
            return lives && record.is_final();
        }
        (None, Some((spec, created_at))) if unknown.contains(&id) => {
            tracing::debug!(job_id = %id, worker_id = %worker.id, "job adopted");
            table.adopt(Record {
                id,
                spec: Arc::new(spec),
                member: None,
                wanted: None,
                place: Some(Place {
                    worker: worker.id,
                    worker_name: worker.name.clone(),
                    session: worker.session,
                    run: None,
                }),
                state: report.status.state,
                output_bytes: report.status.output_bytes,
                created_at,
                counts_from: None,
                ripe_at: None,
                stop: None,
                attempts: Vec::new(),
                retry_at: None,
                is_last: false,
                after: Vec::new(),
            });
        }
        (None, _) => {
            tracing::debug!(job_id = %id, worker_id = %worker.id, "report of a finished job, or of an earlier attempt");
            return lives;
        }
    }
    false
}

/// Adds what is not there yet.
fn add(to: &mut Vec<Arc<Record>>, found: Vec<Record>) {
    let there: HashSet<JobId> = to.iter().map(|record| record.id).collect();
    let new = found
        .into_iter()
        .filter(|record| !there.contains(&record.id));
    to.extend(new.map(Arc::new));
}

/// A worker that says this was called under a registration, or by a scheduler,
/// that is no longer the one it listens to.
fn is_outdated(code: &str) -> bool {
    matches!(code, "session_over" | "epoch_over")
}

fn finished(record: &Record) -> Error {
    Error::JobFinished {
        job: record.id,
        how: match record.error_text() {
            text if text.is_empty() => "exit status 0".to_owned(),
            text => text,
        },
    }
}
