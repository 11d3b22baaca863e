//! The jobs and what is done with them. Every change of a record happens here,
//! from whichever road the news of it came. Who the workers are is in
//! `registry.rs`, which of them gets a job in `placement.rs`.

mod record;
mod table;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use self::{record::Event, table::Table};
pub(super) use self::{
    record::{Doubt, End, Exit, Gone, Process, Record, Spec, State, Status, now},
    table::Filter,
};
use super::{
    error::Error,
    placement,
    registry::{Registry, Session, WorkerHandle},
};
use crate::ids::{JobId, WorkerId};

/// A handle to all jobs; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    keep_finished: usize,
    tracker: TaskTracker,
    closing: CancellationToken,
}

/// What a worker reports of one of its jobs.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) job: JobId,
    pub(super) status: Status,
    /// What was asked for, and when; for a scheduler that forgot it.
    pub(super) spec: Option<(Spec, Timestamp)>,
}

/// How to end a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    /// None: TERM.
    pub(super) signal: Option<i32>,
    /// From that signal to KILL; None: the worker's own.
    pub(super) grace: Option<Duration>,
    pub(super) wait: Wait,
}

/// When a stop is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Once the signal was sent.
    Sent,
    /// Once the job is gone.
    Gone,
}

impl Jobs {
    /// Finished jobs beyond `keep_finished` are forgotten, those that ended
    /// first before the others. Calls go through `tracker`; waiting ends with
    /// `closing`.
    pub(super) fn new(
        keep_finished: usize,
        tracker: TaskTracker,
        closing: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            table: Mutex::default(),
            keep_finished,
            tracker,
            closing,
        }))
    }

    /// Records a job and starts it on one of `workers`, all of which must be
    /// ready. Returns when its process runs; an error that names the job means
    /// that the record says what became of it. A caller who goes away does not
    /// stop the start.
    pub(super) async fn start(
        &self,
        spec: Spec,
        workers: Vec<WorkerHandle>,
    ) -> Result<JobId, Error> {
        let (record, worker) = self.place(&spec, workers)?;
        let jobs = self.clone();
        let call = async move {
            let answer = worker.rpc.start(&record, spec).await;
            jobs.started(record.id, answer, &worker)
        };
        let call = self.0.tracker.spawn(call.in_current_span());
        call.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a start broke off");
            Err(Error::Internal)
        })
    }

    fn place(
        &self,
        spec: &Spec,
        mut workers: Vec<WorkerHandle>,
    ) -> Result<(Arc<Record>, WorkerHandle), Error> {
        // One lock for choosing and recording, so that starts at the same
        // moment see each other.
        let mut table = self.table();
        let candidates = workers.iter().map(|worker| table.candidate(worker.id));
        let place = placement::choose(candidates).ok_or(Error::NoWorkerReady)?;
        let worker = workers.swap_remove(place);
        let record = table.insert(Record {
            id: JobId::random(),
            name: spec.name.clone(),
            command: spec.command.clone(),
            path: spec.path.clone(),
            args: spec.args.clone(),
            env: spec.env.keys().cloned().collect(),
            cwd: spec.cwd.clone(),
            timeout: spec.timeout,
            worker: worker.id,
            worker_name: worker.name.clone(),
            session: worker.session,
            state: State::Pending { call_open: true },
            output_bytes: 0,
            created_at: now(),
        });
        tracing::debug!(job_id = %record.id, worker_id = %record.worker, "job accepted");
        Ok((record, worker))
    }

    fn started(
        &self,
        id: JobId,
        answer: Result<Option<Status>, Error>,
        worker: &WorkerHandle,
    ) -> Result<JobId, Error> {
        let error = match answer {
            Ok(status) => {
                let status = status.unwrap_or(Status {
                    state: State::Running(Process::default()),
                    output_bytes: 0,
                });
                self.change(|table| table.report(id, status, None));
                return Ok(id);
            }
            Err(Error::Refused {
                code,
                message,
                kind,
                job,
            }) => {
                let event = Event::Refused {
                    code: code.clone(),
                    reason: format!("could not start: {message}"),
                };
                self.change(|table| table.apply(id, event));
                Error::Refused {
                    code,
                    message,
                    kind,
                    job,
                }
            }
            Err(error) => {
                self.change(|table| table.unconfirmed(id, error.to_string()));
                worker.ask_anew();
                error
            }
        };
        Err(error.about(id))
    }

    /// Ends a job. With [`Wait::Gone`] it returns when all of the job is gone;
    /// it fails when the worker becomes unreachable before.
    pub(super) async fn stop(
        &self,
        id: JobId,
        stop: Stop,
        registry: &Registry,
    ) -> Result<(), Error> {
        let record = self.settled_start(id).await?;
        if record.is_final() {
            return Err(Error::JobFinished {
                job: id,
                how: match record.error_text() {
                    text if text.is_empty() => "exit status 0".to_owned(),
                    text => text,
                },
            });
        }
        let worker = registry.get(record.worker)?;
        worker.is_ready().map_err(|error| error.about(id))?;
        let sent = worker.rpc.stop(id, stop).await;
        sent.map_err(|error| error.about(id))?;
        tracing::info!(job_id = %id, worker_id = %worker.id, "stop sent");
        match stop.wait {
            Wait::Sent => Ok(()),
            Wait::Gone => self.gone(id, &worker).await,
        }
    }

    async fn gone(&self, id: JobId, worker: &WorkerHandle) -> Result<(), Error> {
        let record = self
            .wait(id, |record| match &record.state {
                State::Pending { .. } | State::Running(_) => false,
                State::Unknown { doubt, .. } => *doubt == Doubt::WorkerUnreachable,
                State::Ended { .. } => true,
            })
            .await?;
        match &record.state {
            State::Unknown { .. } => Err(Error::WorkerUnreachable {
                worker: worker.name.to_string(),
                why: "stopped answering before the job was gone".to_owned(),
                job: Some(id),
            }),
            State::Pending { .. } | State::Running(_) | State::Ended { .. } => Ok(()),
        }
    }

    /// Waits until it is known whether the job started.
    pub(super) async fn settled_start(&self, id: JobId) -> Result<Arc<Record>, Error> {
        self.wait(id, |record| match &record.state {
            State::Pending { .. } => false,
            State::Running(_) | State::Unknown { .. } | State::Ended { .. } => true,
        })
        .await
    }

    /// Waits until the record is as `enough` wants it, or final.
    pub(super) async fn wait(
        &self,
        id: JobId,
        mut enough: impl FnMut(&Record) -> bool,
    ) -> Result<Arc<Record>, Error> {
        let mut changes = self.watch(id)?;
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
    pub(super) fn watch(&self, id: JobId) -> Result<watch::Receiver<Arc<Record>>, Error> {
        let found = self.table().watch(id);
        found.ok_or_else(|| Error::JobNotFound(id.to_string()))
    }

    /// The job that `asked` means: its id, its name (the newest that bears it),
    /// a prefix of at least four digits, or `last`.
    pub(super) fn find(&self, asked: &str) -> Result<Arc<Record>, Error> {
        self.table().find(asked)
    }

    /// At most `limit` jobs, the newest first, behind the job `after`; and
    /// whether there are more.
    pub(super) fn page(
        &self,
        filter: &Filter,
        limit: usize,
        after: Option<JobId>,
    ) -> Result<(Vec<Arc<Record>>, bool), Error> {
        self.table().page(filter, limit, after)
    }

    /// Takes in what `worker` says of a job, and adopts the job if it is new
    /// here and the report says what it is. A worker speaks of its own jobs only.
    pub(super) fn report(&self, worker: &WorkerHandle, report: Report) {
        let id = report.job;
        self.change(|table| match (table.get(id), report.spec) {
            (Some(record), _) if record.worker == worker.id => {
                table.report(id, report.status, Some(worker.session));
            }
            (Some(record), _) => {
                tracing::warn!(job_id = %id, worker_id = %worker.id, owner_id = %record.worker,
                    "a worker reports another worker's job");
            }
            (None, Some((spec, created_at))) => {
                tracing::debug!(job_id = %id, worker_id = %worker.id, "job adopted");
                table.insert(Record {
                    id,
                    name: spec.name,
                    command: spec.command,
                    path: spec.path,
                    args: spec.args,
                    env: spec.env.into_keys().collect(),
                    cwd: spec.cwd,
                    timeout: spec.timeout,
                    worker: worker.id,
                    worker_name: worker.name.clone(),
                    session: worker.session,
                    state: report.status.state,
                    output_bytes: report.status.output_bytes,
                    created_at,
                });
            }
            (None, None) => {
                tracing::debug!(job_id = %id, worker_id = %worker.id, "report of a forgotten job");
            }
        });
    }

    /// Takes in a job's end from the end of its output, which may be here
    /// before the worker's report.
    pub(super) fn ended(&self, id: JobId, status: Status) {
        self.change(|table| table.report(id, status, None));
    }

    /// `worker` has told of all its jobs: those it did not name, and that were
    /// sent to an earlier session, are lost.
    pub(super) fn settle(&self, worker: &WorkerHandle, present: &HashSet<JobId>) {
        self.change(|table| table.settle(worker.id, worker.session, present, Gone::Restarted));
    }

    /// The worker said goodbye: what it has not reported the end of is lost.
    pub(super) fn left(&self, worker: WorkerId) {
        let nothing = HashSet::new();
        self.change(|table| table.settle(worker, Session::random(), &nothing, Gone::Left));
    }

    /// The worker does not answer: its jobs may live or not.
    pub(super) fn unreachable(&self, worker: WorkerId, why: &str) {
        self.change(|table| table.unreachable(worker, why));
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table();
        change(&mut table);
        table.forget(self.0.keep_finished);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
