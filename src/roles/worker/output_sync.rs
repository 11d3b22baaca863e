//! Has the output of all jobs put on the disk: that of jobs that run about twice a
//! second, in the background, and that of a job that has ended before its end is
//! reported.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::job::Place;
use crate::{
    blocking::{fs, spawn_blocking},
    ids::JobId,
    roles::shim::record,
};

/// From the first byte that is not on the disk to the sync of all that there are
/// then.
const PERIOD: Duration = Duration::from_millis(500);

/// How many files are synced at the same time: the file system makes one commit of
/// many, and a slow one holds up no other.
const AT_ONCE: usize = 32;

/// A handle to what syncs the output of all jobs.
#[derive(Clone)]
pub(super) struct OutputSync {
    place: Place,
    jobs: Arc<Mutex<HashMap<JobId, Synced>>>,
    /// Some job has written something.
    written: Arc<Notify>,
    permits: Arc<Semaphore>,
    names: Arc<Mutex<Names>>,
}

/// Who waits for the names of files to be on the disk.
#[derive(Default)]
struct Names {
    waiting: Vec<oneshot::Sender<io::Result<()>>>,
    is_syncing: bool,
}

/// How far the output of one job is on the disk.
#[derive(Default)]
struct Synced {
    /// It has more output than was synced.
    has_more: bool,
    /// A sync has not returned.
    is_syncing: bool,
    /// The file whose name is on the disk: a job may go on in a new one.
    named: Option<u64>,
    /// A sync has failed. The next one would say nothing of that.
    failure: Option<io::Error>,
}

impl OutputSync {
    /// Begins to sync what is below `place`, on `tasks`, until `closing`.
    pub(super) fn start(place: Place, tasks: &TaskTracker, closing: CancellationToken) -> Self {
        let syncs = Self {
            place,
            jobs: Arc::default(),
            written: Arc::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            names: Arc::default(),
        };
        let (all, spawned) = (syncs.clone(), tasks.clone());
        tasks.spawn(async move {
            // What the jobs write after this their shims sync.
            closing.run_until_cancelled(all.run(spawned)).await;
        });
        syncs
    }

    /// A job has written something.
    pub(super) fn note(&self, id: JobId) {
        let mut jobs = self.jobs();
        if !std::mem::replace(&mut jobs.entry(id).or_default().has_more, true) {
            self.written.notify_one();
        }
    }

    /// Returns once all output of a job that has ended is on the disk.
    ///
    /// # Errors
    ///
    /// When the disk did not take some of it.
    pub(super) async fn finish(&self, id: JobId) -> io::Result<()> {
        let known = self.jobs().remove(&id).unwrap_or_default();
        let synced = self.sync(id, known.named).await;
        known.failure.map_or(synced.map(drop), Err)
    }

    async fn run(self, tasks: TaskTracker) {
        loop {
            self.written.notified().await;
            tokio::time::sleep(PERIOD).await;
            for (id, named) in self.take() {
                let syncs = self.clone();
                tasks.spawn(async move {
                    let outcome = syncs.sync(id, named).await;
                    syncs.synced(id, outcome);
                });
            }
        }
    }

    /// The jobs with more output than was synced, and their files whose names are on
    /// the disk.
    fn take(&self) -> Vec<(JobId, Option<u64>)> {
        let mut jobs = self.jobs();
        let unsynced = jobs
            .iter_mut()
            .filter(|(_, job)| job.has_more && !job.is_syncing);
        unsynced
            .map(|(id, job)| {
                (job.has_more, job.is_syncing) = (false, true);
                (*id, job.named)
            })
            .collect()
    }

    /// Notes the outcome of a sync, unless the job has ended since.
    fn synced(&self, id: JobId, outcome: io::Result<Option<u64>>) {
        if let Some(job) = self.jobs().get_mut(&id) {
            job.is_syncing = false;
            match outcome {
                Ok(named) => job.named = named,
                Err(error) => {
                    if job.failure.is_none() {
                        tracing::error!(job_id = %id, %error, "cannot put output on the disk");
                    }
                    job.failure.get_or_insert(error);
                }
            }
            if job.has_more {
                self.written.notify_one();
            }
        }
    }

    /// Returns the file whose name is on the disk.
    async fn sync(&self, id: JobId, named: Option<u64>) -> io::Result<Option<u64>> {
        let base = self.place.output(id);
        if named.is_none() && !there_is_output(&base).await {
            return Ok(None);
        }
        let closed = |_| io::Error::other("the worker is ending");
        let permit = self.permits.clone().acquire_owned().await.map_err(closed)?;
        let synced = spawn_blocking(move || {
            let _permit = permit;
            record::sync(&base)
        });
        let file = synced.await.map_err(io::Error::other)??;
        if file.is_some() && file != named {
            self.sync_names().await?;
        }
        Ok(file)
    }

    /// Syncs the folder's entries, at once for all who have asked by then.
    async fn sync_names(&self) -> io::Result<()> {
        let (sender, done) = oneshot::channel();
        let is_syncing = {
            let mut names = lock(&self.names);
            names.waiting.push(sender);
            std::mem::replace(&mut names.is_syncing, true)
        };
        if !is_syncing {
            let (folder, names) = (self.place.output.clone(), self.names.clone());
            spawn_blocking(move || sync_folder(&folder, &names));
        }
        done.await.map_err(io::Error::other)?
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Synced>> {
        lock(&self.jobs)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a single step, so it is whole even then.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn there_is_output(base: &Path) -> bool {
    let found = fs::symlink_metadata(record::data_path(base)).await;
    !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Syncs a folder until no job waits for that.
fn sync_folder(folder: &Path, names: &Mutex<Names>) {
    loop {
        let waiting = {
            let mut names = lock(names);
            names.is_syncing = !names.waiting.is_empty();
            std::mem::take(&mut names.waiting)
        };
        if waiting.is_empty() {
            return;
        }
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        for sender in waiting {
            let outcome = match &synced {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            // One who has gone away wants no answer.
            let _ = sender.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syncs(dir: &Path) -> (OutputSync, TaskTracker, CancellationToken) {
        let place = Place {
            output: dir.to_owned(),
            results: dir.to_owned(),
        };
        let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
        let syncs = OutputSync::start(place, &tasks, closing.clone());
        (syncs, tasks, closing)
    }

    fn write(dir: &Path, id: JobId) {
        let base = dir.join(id.to_string());
        std::fs::write(record::data_path(&base), "x").unwrap();
        std::fs::write(record::index_path(&base), "").unwrap();
    }

    #[tokio::test]
    async fn what_was_noted_is_synced_and_what_ended_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (syncs, tasks, closing) = syncs(dir.path());
        let (noted, silent) = (JobId::random(), JobId::random());
        write(dir.path(), noted);
        syncs.note(noted);
        let synced = async {
            let mut pause = tokio::time::interval(Duration::from_millis(5));
            while syncs
                .jobs()
                .get(&noted)
                .is_none_or(|job| job.named.is_none())
            {
                pause.tick().await;
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, synced).await.unwrap();
        assert!(!syncs.jobs()[&noted].has_more);
        syncs.finish(noted).await.unwrap();
        syncs.finish(silent).await.unwrap();
        assert!(syncs.jobs().is_empty());
        closing.cancel();
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_failed_sync_is_told_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (syncs, ..) = syncs(dir.path());
        let id = JobId::random();
        // No file, and so nothing that could be synced.
        std::fs::create_dir(dir.path().join(format!("{id}.out"))).unwrap();
        syncs.note(id);
        assert!(syncs.finish(id).await.is_err());
        syncs.note(id);
        let failure = io::Error::from_raw_os_error(libc::EIO);
        syncs.synced(id, Err(failure));
        std::fs::remove_dir(dir.path().join(format!("{id}.out"))).unwrap();
        let told = syncs.finish(id).await.unwrap_err();
        assert_eq!(
            told.raw_os_error(),
            Some(libc::EIO),
            "a later sync says nothing"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "a measurement: cargo test --lib -- --ignored --nocapture what_an_end"]
    async fn what_an_end_costs() {
        // Where the test itself is: the usual place is in memory on many machines.
        let dir = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).unwrap();
        let (syncs, ..) = syncs(dir.path());
        let ids: Vec<JobId> = (0..1100).map(|_| JobId::random()).collect();
        let (alone, together) = ids.split_at(100);
        alone.iter().for_each(|id| write(dir.path(), *id));
        let began = std::time::Instant::now();
        for id in alone {
            syncs.finish(*id).await.unwrap();
        }
        println!("one by one: {:?} each", began.elapsed() / 100);
        together.iter().for_each(|id| write(dir.path(), *id));
        let began = std::time::Instant::now();
        let ends = together.iter().map(|id| syncs.finish(*id));
        for end in futures_util::future::join_all(ends).await {
            end.unwrap();
        }
        println!("1,000 at once: {:?} each", began.elapsed() / 1000);
    }
}
