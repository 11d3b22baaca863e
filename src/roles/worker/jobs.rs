//! Which jobs this worker has, and what of them the scheduler has not heard yet.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ffi::OsStr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{
    error::Error,
    job::{How, Job, Launch, Spec, State},
    journal::{Contents, Record},
    output::{Extent, Output},
    ran::Ran,
};
use crate::{
    blocking::fs,
    ids::JobId,
    roles::shim::record::{data_path, index_path},
};

/// A handle to all jobs of the worker.
#[derive(Clone)]
pub(super) struct Jobs {
    launch: Arc<Launch>,
    /// How many jobs that ended are known beyond what the scheduler must hear.
    keep_finished: usize,
    table: Arc<Mutex<Table>>,
    changes: Changes,
    tasks: TaskTracker,
    /// The highest epoch of a scheduler that was heard of.
    epoch: Arc<AtomicU64>,
    /// How many transactions the scheduler's store had committed, as it told last.
    commit: Arc<AtomicU64>,
}

/// What a worker remembers of the schedulers it had.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownScheduler {
    /// The highest epoch.
    pub(super) epoch: u64,
    /// The transactions that the store had committed, as it told last.
    pub(super) commit: u64,
    /// All jobs are remembered whose ends were delivered after this commit.
    pub(super) remembers_since: u64,
}

/// What a scheduler is told first of a registration.
pub(super) struct Snapshot {
    /// The last change that is in it.
    pub(super) sequence: u64,
    pub(super) jobs: Vec<Job>,
    /// Jobs are not in it whose ends the scheduler has acknowledged.
    pub(super) leaves_out_ends: bool,
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
    pub(super) fn new(launch: Launch, keep_finished: usize, tasks: TaskTracker) -> Self {
        Self {
            launch: Arc::new(launch),
            keep_finished,
            table: Arc::new(Mutex::new(Table {
                jobs: HashMap::new(),
                finished: VecDeque::new(),
                session: None,
                draining: false,
            })),
            changes: Changes::default(),
            tasks,
            epoch: Arc::default(),
            commit: Arc::default(),
        }
    }

    /// Takes over what an earlier worker left: jobs whose shims live, results that
    /// shims have left behind, ends that the scheduler has not acknowledged.
    /// Returns when of each job it is known how it stands.
    pub(super) async fn take_over(&self, contents: Contents) {
        remove_strays(&self.launch.place.results, &contents).await;
        self.epoch.fetch_max(contents.epoch, Ordering::Relaxed);
        self.commit.store(contents.commit, Ordering::Relaxed);
        let mut jobs = Vec::new();
        for (id, known) in contents.jobs {
            let has_ended = known.end.is_some();
            let (job, task) = Job::new(
                known.spec,
                known.end,
                self.launch.clone(),
                self.changes.clone(),
            );
            self.table().jobs.insert(id, job.clone());
            if has_ended {
                self.changes.record(id, Change::End);
                self.forget_oldest(id);
            } else {
                let all = self.clone();
                self.tasks.spawn(async move {
                    task.take_over(&known.boot_id, known.began).await;
                    all.forget_oldest(id);
                });
            }
            jobs.push(job);
        }
        let count = jobs.len();
        // A shim that is stopped or stuck must not keep all the others waiting.
        self.begun(SILENT).await;
        if count > 0 {
            let running = self.running();
            tracing::info!(count, running, "took over the jobs of an earlier worker");
        }
    }

    /// Waits until of each job it is known whether it runs, but no longer than this.
    pub(super) async fn begun(&self, limit: Duration) {
        let jobs: Vec<Job> = self.table().jobs.values().cloned().collect();
        let all = join_all(jobs.iter().map(Job::begun));
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("of some jobs nothing is heard yet");
        }
    }

    /// Refuses a call of an older scheduler than was heard of; 0 is nobody's.
    pub(super) fn check_epoch(&self, called: u64) -> Result<(), Error> {
        let known = self.epoch.load(Ordering::Relaxed);
        match called == 0 || called >= known {
            true => Ok(()),
            false => Err(Error::EpochOver {
                worker: self.launch.worker.clone(),
                known,
                called,
            }),
        }
    }

    /// What the worker tells a scheduler that it registers with.
    pub(super) fn known_scheduler(&self) -> KnownScheduler {
        KnownScheduler {
            epoch: self.epoch.load(Ordering::Relaxed),
            commit: self.commit.load(Ordering::Relaxed),
            remembers_since: self.launch.journal.memory().since(),
        }
    }

    /// Jobs that ran here and whose ends a scheduler may not know whose store has
    /// made so many transactions: at most `limit`, from the place `from` on, and the
    /// place where the next are.
    pub(super) fn ran_since(
        &self,
        commit: u64,
        from: u64,
        limit: usize,
    ) -> (Vec<Job>, Option<u64>) {
        let (ran, next) = self.launch.journal.memory().unknown_at(commit, from, limit);
        (ran.iter().map(|ran| self.over(ran)).collect(), next)
    }

    /// A job of which only the end is remembered.
    fn over(&self, ran: &Ran) -> Job {
        let (spec, end) = ran.parts();
        Job::new(spec, Some(end), self.launch.clone(), self.changes.clone()).0
    }

    /// Starts a job that was asked for under `session`. Returns when its process
    /// runs; going away meanwhile leaves the job as it is.
    pub(super) async fn start(&self, spec: Spec, session: Option<&str>) -> Result<Job, Error> {
        let job = self.accept(spec, session)?;
        match job.begun().await {
            State::Ended(end) => match end.how {
                How::Refused(refusal) => Err(refusal.into()),
                How::Exited { .. } | How::Signaled { .. } | How::Lost(_) => Ok(job),
            },
            State::Running { .. } => Ok(job),
            // The worker is ending; the next one will tell.
            State::Starting => Err(Error::SessionOver(self.launch.worker.clone())),
        }
    }

    fn accept(&self, spec: Spec, session: Option<&str>) -> Result<Job, Error> {
        let id = spec.id;
        let (job, task) = {
            let mut table = self.table();
            if table.draining {
                return Err(Error::Draining(self.launch.worker.clone()));
            }
            // Checked where the job is entered: once a snapshot of a new
            // registration was taken, no job of an older one can appear.
            if session.is_some() && session != table.session.as_deref() {
                return Err(Error::SessionOver(self.launch.worker.clone()));
            }
            if table.jobs.contains_key(&id) || self.launch.journal.memory().contains(id) {
                return Err(Error::JobExists(id));
            }
            let (launch, changes) = (self.launch.clone(), self.changes.clone());
            let (mut job, task) = Job::new(spec, None, launch, changes);
            job.is_from_elsewhere = session.is_none();
            table.jobs.insert(id, job.clone());
            (job, task)
        };
        let jobs = self.clone();
        self.tasks.spawn(async move {
            let forget = || drop(jobs.table().jobs.remove(&id));
            task.start(forget).await;
            if jobs.get(id).is_ok() {
                jobs.forget_oldest(id);
            }
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
        job.stop(signal, grace.unwrap_or(self.launch.grace)).await;
        Ok(job)
    }

    /// One job; of one that ended long ago only the end is left.
    pub(super) fn get(&self, id: JobId) -> Result<Job, Error> {
        let job = self.table().jobs.get(&id).cloned();
        let ran = || Some(self.over(&self.launch.journal.memory().get(id)?));
        job.or_else(ran).ok_or(Error::JobNotFound(id))
    }

    /// The output of a job that ended so long ago that only its output is left.
    /// `written` is how much the job has written, where that is known: what its files
    /// do not have of that is missing.
    pub(super) async fn old_output(
        &self,
        id: JobId,
        written: Option<u64>,
    ) -> Result<Output, Error> {
        let output = self.launch.place.output(id);
        let recorded = fs::metadata(data_path(&output)).await;
        let written = written.filter(|bytes| *bytes > 0);
        let bytes = match (recorded, written) {
            (Ok(data), written) => data.len().max(written.unwrap_or(0)),
            (Err(_), Some(written)) => written,
            (Err(_), None) => return Err(Error::JobNotFound(id)),
        };
        let extent = Extent {
            bytes,
            complete: true,
            ..Extent::default()
        };
        Ok(Output::new(output, watch::channel(extent).1))
    }

    /// How many have a process.
    pub(super) fn running(&self) -> usize {
        let table = self.table();
        let running = |job: &&Job| matches!(*job.state.borrow(), State::Running { .. });
        table.jobs.values().filter(running).count()
    }

    /// How many have not ended.
    pub(super) fn unfinished(&self) -> usize {
        let table = self.table();
        let unfinished = |job: &&Job| !matches!(*job.state.borrow(), State::Ended(_));
        table.jobs.values().filter(unfinished).count()
    }

    /// What the scheduler has not acknowledged.
    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// From now on only StartJobs of this registration are taken. Returns what the
    /// scheduler is to be told first.
    ///
    /// # Errors
    ///
    /// When the registration is with a scheduler of the past.
    pub(super) async fn begin_session(
        &self,
        session: String,
        epoch: u64,
    ) -> Result<Snapshot, Error> {
        self.check_epoch(epoch)?;
        if self.epoch.fetch_max(epoch, Ordering::Relaxed) < epoch {
            // Without room for it, it counts as long as this worker lives.
            let _ = self.launch.journal.append(Record::Epoch(epoch)).await;
        }
        // Without it the scheduler cannot know that its records are older.
        let leaves_out_ends = self.commit.load(Ordering::Relaxed) > 0;
        let mut table = self.table();
        table.session = Some(session);
        // Before the states are read: a change in between is sent twice, not lost.
        let sequence = self.changes.latest();
        let jobs = table.jobs.iter();
        let told = jobs.filter(|(id, job)| !(leaves_out_ends && self.is_over(**id, job)));
        Ok(Snapshot {
            sequence,
            jobs: told.map(|(_, job)| job.clone()).collect(),
            leaves_out_ends,
        })
    }

    /// It has ended, and the scheduler has acknowledged that.
    fn is_over(&self, id: JobId, job: &Job) -> bool {
        // An end that was not noted yet is told as a change.
        matches!(*job.state.borrow(), State::Ended(_)) && !self.changes.contains(id)
    }

    /// The jobs left out of every [`Snapshot`] whose ends a scheduler may not know whose
    /// store has made so many transactions.
    pub(super) fn over_since(&self, commit: u64) -> Vec<Job> {
        let table = self.table();
        let memory = self.launch.journal.memory();
        let over = table.jobs.iter().filter(|(id, job)| {
            let ran = memory.get(**id);
            self.is_over(**id, job) && ran.is_none_or(|ran| ran.is_unknown_at(commit))
        });
        over.map(|(_, job)| job.clone()).collect()
    }

    /// The scheduler has recorded everything up to `sequence`, and its store had
    /// committed so many transactions by then (0: it does not say): of ends among it
    /// only the short form need be kept.
    pub(super) async fn acknowledge(&self, sequence: u64, commit: u64) {
        let journal = &self.launch.journal;
        let ended = self.changes.acknowledge(sequence);
        let is_news = commit > 0 && self.commit.swap(commit, Ordering::Relaxed) != commit;
        if !ended.is_empty() {
            let jobs = ended;
            // Where there is no room for it they are told again one day, no more.
            let _ = journal.append(Record::Delivered { jobs, commit }).await;
        } else if is_news {
            journal.note(Record::Commit(commit)).await;
        }
    }

    /// The scheduler has deleted the records of these jobs: their output goes
    /// too. Returns those of which nothing is left.
    pub(super) async fn forget(&self, ids: Vec<JobId>) -> Vec<JobId> {
        let mut forgotten = Vec::new();
        for id in ids {
            let lives = match self.get(id) {
                Ok(job) => !matches!(*job.state.borrow(), State::Ended(_)),
                Err(_) => false,
            };
            if lives {
                continue;
            }
            self.table().jobs.remove(&id);
            let output = self.launch.place.output(id);
            let mut removed = true;
            for path in [data_path(&output), index_path(&output)] {
                match fs::remove_file(path).await {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => removed = false,
                    _ => {}
                }
            }
            if removed {
                forgotten.push(id);
            }
        }
        forgotten
    }

    /// Takes no more jobs.
    pub(super) fn close(&self) {
        self.table().draining = true;
    }

    /// Takes no more jobs, ends those that are there, and returns when all are gone.
    pub(super) async fn drain(&self) {
        self.close();
        let jobs: Vec<Job> = self.table().jobs.values().cloned().collect();
        let term = rustix::process::Signal::TERM.as_raw();
        join_all(jobs.iter().map(|job| async {
            if !matches!(job.begun().await, State::Ended(_)) {
                job.stop(term, self.launch.grace).await;
                job.ended().await;
            }
        }))
        .await;
    }

    /// Notes that `id` has ended, and forgets the oldest ended jobs that are too
    /// many; their output stays. None goes that the scheduler has not heard of.
    fn forget_oldest(&self, id: JobId) {
        let mut table = self.table();
        table.finished.push_back(id);
        while table.finished.len() > self.keep_finished
            && let Some(oldest) = table.finished.front().copied()
            && !self.changes.contains(oldest)
        {
            table.finished.pop_front();
            table.jobs.remove(&oldest);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is a single step, so it is whole even then.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes results that nobody needs any more: of jobs whose end the journal has,
/// or has had. A worker that is killed between the end in its journal and the
/// receipt makes a shim leave one behind.
async fn remove_strays(results: &Path, contents: &Contents) {
    // A journal that was put there anew has forgotten whose result is needed.
    if *contents == Contents::default() {
        return;
    }
    let mut entries = match fs::read_dir(results).await {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(path = %results.display(), %error, "cannot list results");
            return;
        }
    };
    // What is missed now is met by the next worker.
    while let Ok(Some(entry)) = entries.next_entry().await {
        let path = entry.path();
        let name = path.file_stem().and_then(OsStr::to_str);
        let Some(id) = name.and_then(|name| name.parse::<JobId>().ok()) else {
            continue;
        };
        let is_needed = contents.jobs.get(&id).is_some_and(|job| job.end.is_none());
        if !is_needed && let Err(error) = fs::remove_file(&path).await {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old result");
        }
    }
}

/// How long a new worker waits for the shims of an earlier one.
const SILENT: Duration = Duration::from_secs(1);

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The job runs.
    Start,
    /// The job has ended: with the acknowledgement of this, and of nothing before
    /// it, the scheduler has the end.
    End,
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
    by_sequence: BTreeMap<u64, (JobId, Change)>,
    by_job: HashMap<JobId, u64>,
}

impl Changes {
    /// Notes that a job has changed. Call it after the change.
    pub(super) fn record(&self, id: JobId, change: Change) {
        {
            let mut log = self.log();
            let sequence = self.latest() + 1;
            if let Some(older) = log.by_job.insert(id, sequence) {
                log.by_sequence.remove(&older);
            }
            log.by_sequence.insert(sequence, (id, change));
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
        changes.take(limit).map(|(s, (id, _))| (*s, *id)).collect()
    }

    /// Forgets everything up to `sequence`, and returns the jobs whose end that was.
    fn acknowledge(&self, sequence: u64) -> Vec<JobId> {
        let mut log = self.log();
        let later = log.by_sequence.split_off(&(sequence + 1));
        let acknowledged = std::mem::replace(&mut log.by_sequence, later);
        for (id, _) in acknowledged.values() {
            log.by_job.remove(id);
        }
        let ends = acknowledged
            .into_values()
            .filter(|(_, change)| *change == Change::End);
        ends.map(|(id, _)| id).collect()
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
        changes.record(a, Change::Start);
        changes.record(b, Change::End);
        changes.record(a, Change::Start);
        assert_eq!(changes.since(0, 10), [(2, b), (3, a)]);
        assert_eq!(changes.since(0, 1), [(2, b)]);
        assert_eq!(changes.since(3, 10), []);
    }

    #[test]
    fn what_is_acknowledged_is_forgotten_and_nothing_else() {
        let changes = Changes::default();
        let (a, b) = (JobId::random(), JobId::random());
        changes.record(a, Change::Start);
        changes.record(b, Change::End);
        assert_eq!(changes.acknowledge(1), [], "that it runs is no end");
        assert!(!changes.contains(a) && changes.contains(b) && !changes.is_empty());
        changes.record(a, Change::Start);
        assert_eq!(changes.acknowledge(2), [b]);
        assert!(
            changes.contains(a),
            "a change behind the acknowledged one stays"
        );
        assert_eq!(changes.acknowledge(3), []);
        assert!(changes.is_empty());
        assert_eq!(changes.latest(), 3);
    }
}
