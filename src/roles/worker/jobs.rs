//! Which jobs this worker has, and what of them the scheduler has not heard yet.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{
    error::Error,
    job::{Job, Launch, Spec, State},
    scripts::Scripts,
};
use crate::{
    ids::JobId,
    roles::shim::record::{data_path, index_path},
};

/// What every job of this worker shares.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) worker: String,
    pub(super) shim: PathBuf,
    pub(super) scripts: Scripts,
    pub(super) grace: Duration,
    pub(super) output_dir: PathBuf,
    pub(super) keep_finished: usize,
}

/// A handle to all jobs of the worker.
#[derive(Clone)]
pub(super) struct Jobs {
    settings: Arc<Settings>,
    table: Arc<Mutex<Table>>,
    changes: Changes,
    tasks: TaskTracker,
}

struct Table {
    jobs: HashMap<JobId, Job>,
    /// In the order of their ends.
    finished: VecDeque<JobId>,
    session: Option<String>,
    draining: bool,
}

impl Jobs {
    /// No jobs yet. What follows them runs on `tasks`.
    pub(super) fn new(settings: Settings, tasks: TaskTracker) -> Self {
        Self {
            settings: Arc::new(settings),
            table: Arc::new(Mutex::new(Table {
                jobs: HashMap::new(),
                finished: VecDeque::new(),
                session: None,
                draining: false,
            })),
            changes: Changes::default(),
            tasks,
        }
    }

    /// Starts a job that was asked for under `session`. Returns when its process
    /// runs; going away meanwhile leaves the job as it is.
    pub(super) async fn start(&self, spec: Spec, session: Option<&str>) -> Result<Job, Error> {
        let job = self.accept(spec, session)?;
        match job.begun().await {
            State::Ended(end) => match end.how {
                super::job::How::Refused(refusal) => Err(refusal.into()),
                _ => Ok(job),
            },
            State::Starting | State::Running { .. } => Ok(job),
        }
    }

    fn accept(&self, spec: Spec, session: Option<&str>) -> Result<Job, Error> {
        let id = spec.id;
        let (job, task) = {
            let mut table = self.table();
            if table.draining {
                return Err(Error::Draining(self.settings.worker.clone()));
            }
            // Checked where the job is entered: once a snapshot of a new
            // registration was taken, no job of an older one can appear.
            if session.is_some() && session != table.session.as_deref() {
                return Err(Error::SessionOver(self.settings.worker.clone()));
            }
            if table.jobs.contains_key(&id) {
                return Err(Error::JobExists(id));
            }
            let output = self.settings.output_dir.join(id.to_string());
            let (job, task) = Job::new(spec, output, self.changes.clone());
            table.jobs.insert(id, job.clone());
            (job, task)
        };
        let launch = Launch {
            worker: self.settings.worker.clone(),
            shim: self.settings.shim.clone(),
            scripts: self.settings.scripts.clone(),
            grace: self.settings.grace,
        };
        let jobs = self.clone();
        self.tasks.spawn(async move {
            task.run(launch).await;
            jobs.forget_oldest(id).await;
        });
        Ok(job)
    }

    /// Ends a job. Returns once its first signal was sent, or it is gone.
    pub(super) async fn stop(
        &self,
        id: JobId,
        signal: i32,
        grace: Option<Duration>,
    ) -> Result<Job, Error> {
        let job = self.get(id)?;
        if let State::Ended(_) = job.begun().await {
            return Err(Error::JobFinished(id));
        }
        job.stop(signal, grace.unwrap_or(self.settings.grace)).await;
        Ok(job)
    }

    /// One job.
    pub(super) fn get(&self, id: JobId) -> Result<Job, Error> {
        let job = self.table().jobs.get(&id).cloned();
        job.ok_or(Error::JobNotFound(id))
    }

    /// How many have a process.
    pub(super) fn running(&self) -> usize {
        let table = self.table();
        table.jobs.len() - table.finished.len()
    }

    /// What the scheduler has not acknowledged.
    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// From now on only StartJobs of this registration are taken. Returns every
    /// job there is, and the number of the last change they contain.
    pub(super) fn begin_session(&self, session: String) -> (u64, Vec<Job>) {
        let mut table = self.table();
        table.session = Some(session);
        // Before the states are read: a change in between is sent twice, not lost.
        let sequence = self.changes.latest();
        (sequence, table.jobs.values().cloned().collect())
    }

    /// Takes no more jobs, ends those that are there, and returns when all are gone.
    pub(super) async fn drain(&self) {
        let jobs: Vec<Job> = {
            let mut table = self.table();
            table.draining = true;
            table.jobs.values().cloned().collect()
        };
        let term = rustix::process::Signal::TERM.as_raw();
        join_all(jobs.iter().map(|job| async {
            if !matches!(job.begun().await, State::Ended(_)) {
                job.stop(term, self.settings.grace).await;
                job.ended().await;
            }
        }))
        .await;
    }

    /// Notes that `id` has ended, and forgets the oldest ended jobs that are too
    /// many, with their output. None goes that the scheduler has not heard of.
    async fn forget_oldest(&self, id: JobId) {
        let mut forgotten = Vec::new();
        {
            let mut table = self.table();
            table.finished.push_back(id);
            while table.finished.len() > self.settings.keep_finished
                && let Some(oldest) = table.finished.front().copied()
                && !self.changes.contains(oldest)
            {
                table.finished.pop_front();
                forgotten.extend(table.jobs.remove(&oldest));
            }
        }
        for job in forgotten {
            // A job without output has neither file.
            let _ = tokio::fs::remove_file(data_path(&job.output)).await;
            let _ = tokio::fs::remove_file(index_path(&job.output)).await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is a single step, so it is whole even then.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers the changes of all jobs, and keeps which jobs changed until the
/// scheduler has acknowledged it.
#[derive(Clone, Default)]
pub(super) struct Changes {
    log: Arc<Mutex<Log>>,
    latest: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Log {
    by_sequence: BTreeMap<u64, JobId>,
    by_job: HashMap<JobId, u64>,
}

impl Changes {
    /// Notes that a job has changed. Call it after the change.
    pub(super) fn record(&self, id: JobId) {
        {
            let mut log = self.log();
            let sequence = self.latest() + 1;
            if let Some(older) = log.by_job.insert(id, sequence) {
                log.by_sequence.remove(&older);
            }
            log.by_sequence.insert(sequence, id);
            self.latest.send_replace(sequence);
        }
    }

    /// The number of the last change.
    pub(super) fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    /// Tells of each new change.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// The jobs that changed behind `sequence`, at most `limit`, in the order of
    /// their changes, each with its number.
    pub(super) fn since(&self, sequence: u64, limit: usize) -> Vec<(u64, JobId)> {
        let log = self.log();
        let changes = log.by_sequence.range(sequence + 1..);
        changes.take(limit).map(|(s, id)| (*s, *id)).collect()
    }

    /// Forgets everything up to `sequence`.
    pub(super) fn acknowledge(&self, sequence: u64) {
        let mut log = self.log();
        let later = log.by_sequence.split_off(&(sequence + 1));
        for id in std::mem::replace(&mut log.by_sequence, later).values() {
            log.by_job.remove(id);
        }
    }

    /// Whether everything was acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.log().by_sequence.is_empty()
    }

    fn contains(&self, id: JobId) -> bool {
        self.log().by_job.contains_key(&id)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_changed_twice_is_told_once() {
        let changes = Changes::default();
        let (a, b) = (JobId::random(), JobId::random());
        changes.record(a);
        changes.record(b);
        changes.record(a);
        assert_eq!(changes.since(0, 10), [(2, b), (3, a)]);
        assert_eq!(changes.since(0, 1), [(2, b)]);
        assert_eq!(changes.since(3, 10), []);
    }

    #[test]
    fn what_is_acknowledged_is_forgotten_and_nothing_else() {
        let changes = Changes::default();
        let (a, b) = (JobId::random(), JobId::random());
        changes.record(a);
        changes.record(b);
        changes.acknowledge(1);
        assert!(!changes.contains(a) && changes.contains(b) && !changes.is_empty());
        changes.record(a);
        changes.acknowledge(2);
        assert!(
            changes.contains(a),
            "a change behind the acknowledged one stays"
        );
        changes.acknowledge(3);
        assert!(changes.is_empty());
        assert_eq!(changes.latest(), 3);
    }
}
