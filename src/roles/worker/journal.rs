//! What this worker must not forget, in one append-only file: the intent to start
//! a job before it is started, its end before the shim may go, and what of it the
//! scheduler has acknowledged. How that lies in the file is the business of
//! `format.rs`, when it is on the disk that of `writer.rs`.

mod format;
mod writer;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::MutexGuard,
    thread,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

#[cfg(any(test, fuzzing))]
pub use self::format::fuzz;
use self::writer::{Ask, BATCH, Writer, load};
pub(crate) use self::writer::{Broken, is_full};
use super::{
    job::{Began, End, Spec},
    ran::{Memory, Ran, Remembered},
};
use crate::ids::JobId;

/// How many jobs one record of those that ran holds, far below what one takes.
const RAN_PER_RECORD: usize = 4096;

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// The highest epoch of a scheduler that was heard of.
    Epoch(u64),
    /// A job is about to be started.
    Intent {
        /// What was asked for.
        spec: Spec,
        /// The boot of the machine it is started in.
        boot_id: String,
    },
    /// A job runs. Of use only in the boot of its intent, and so not worth a sync:
    /// what the kernel was given outlives the worker.
    Began {
        /// The job.
        job_id: JobId,
        /// Its main process.
        began: Began,
    },
    /// Nothing of a job is left.
    Ended {
        /// The job.
        job_id: JobId,
        /// How it ended.
        end: End,
        /// All its output, recorded or not.
        output_bytes: u64,
    },
    /// The scheduler has durably recorded these ends. Of earlier versions.
    Acknowledged(Vec<JobId>),
    /// The scheduler has durably recorded these ends.
    Delivered {
        /// The jobs.
        jobs: Vec<JobId>,
        /// How many transactions its store had committed by then; 0: it did not say.
        commit: u64,
    },
    /// How many transactions the scheduler's store has committed. Not worth a sync:
    /// a lower number makes the worker tell more than it need.
    Commit(u64),
    /// Jobs that ran here and whose ends were delivered.
    Ran(Vec<Ran>),
    /// Of the jobs delivered up to this commit not all are remembered.
    RanForgotten(u64),
}

/// A job as the journal knows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) spec: Spec,
    pub(super) boot_id: String,
    /// `None`: the worker died before it knew, or was older than the record of it.
    pub(super) began: Option<Began>,
    /// Its end and the bytes of its output; `None`: its shim may live.
    pub(super) end: Option<(End, u64)>,
}

/// What is still of use of all that was recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Contents {
    pub(super) epoch: u64,
    /// How many transactions the scheduler's store had committed, as it told last.
    pub(super) commit: u64,
    pub(super) jobs: HashMap<JobId, Known>,
    /// Jobs that ran here and whose ends were delivered; clones share it.
    pub(super) ran: Remembered,
}

impl Contents {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Epoch(epoch) => self.epoch = self.epoch.max(epoch),
            Record::Intent { spec, boot_id } => {
                let known = Known {
                    spec,
                    boot_id,
                    began: None,
                    end: None,
                };
                self.jobs.insert(known.spec.id, known);
            }
            Record::Began { job_id, began } => {
                if let Some(known) = self.jobs.get_mut(&job_id) {
                    known.began = Some(began);
                }
            }
            Record::Ended {
                job_id,
                end,
                output_bytes,
            } => {
                if let Some(known) = self.jobs.get_mut(&job_id) {
                    known.end = Some((end, output_bytes));
                    // Secrets, perhaps, of which nothing here has a use any more.
                    known
                        .spec
                        .env
                        .values_mut()
                        .for_each(|value| *value = String::new());
                }
            }
            Record::Acknowledged(jobs) => self.deliver(jobs, 0),
            Record::Delivered { jobs, commit } => self.deliver(jobs, commit),
            Record::Commit(commit) => self.commit = commit,
            Record::Ran(jobs) => {
                let mut memory = self.ran.lock();
                jobs.into_iter().for_each(|ran| memory.add(ran));
            }
            Record::RanForgotten(commit) => self.ran.lock().forgot(commit),
        }
    }

    fn deliver(&mut self, jobs: Vec<JobId>, commit: u64) {
        if commit > 0 {
            self.commit = commit;
        }
        for job_id in jobs {
            if let Some(known) = self.jobs.remove(&job_id)
                && let Some((end, output_bytes)) = known.end
            {
                self.ran
                    .lock()
                    .add(Ran::new(&known.spec, &end, output_bytes, commit));
            }
        }
    }

    /// The shortest journal with these contents.
    fn records(&self) -> Vec<Record> {
        let mut records = vec![Record::Epoch(self.epoch), Record::Commit(self.commit)];
        let memory = self.ran.lock();
        if memory.since() > 0 {
            records.push(Record::RanForgotten(memory.since()));
        }
        records.extend(memory.parts(RAN_PER_RECORD).map(Record::Ran));
        for (job_id, known) in &self.jobs {
            records.push(Record::Intent {
                spec: known.spec.clone(),
                boot_id: known.boot_id.clone(),
            });
            if let Some(began) = known.began {
                records.push(Record::Began {
                    job_id: *job_id,
                    began,
                });
            }
            if let Some((end, output_bytes)) = &known.end {
                records.push(Record::Ended {
                    job_id: *job_id,
                    end: end.clone(),
                    output_bytes: *output_bytes,
                });
            }
        }
        records
    }
}

impl FromIterator<Record> for Contents {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let mut contents = Self::default();
        records
            .into_iter()
            .for_each(|record| contents.apply(record));
        contents
    }
}

/// Why the journal could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file itself.
    #[error("cannot use {}", .path.display())]
    Io {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "{} is damaged at byte {at} ({what}): jobs recorded after it would be forgotten. \
         Restore the file, or move it away; then jobs that still run go on unseen \
         and are shown as lost", .path.display()
    )]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// The first byte of the record that is wrong.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Why something could not be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AppendError {
    /// There is no room; later there may be.
    Full,
    /// The journal can no longer be relied on.
    Broken,
}

/// A handle to the thread that writes.
#[derive(Clone)]
pub(super) struct Journal {
    sender: mpsc::Sender<Ask>,
    ran: Remembered,
}

impl Journal {
    /// Opens or makes the file. `broken` is told, with the reason, when it can
    /// no longer be written: nothing is acknowledged after that.
    pub(super) fn open(
        path: &Path,
        broken: impl FnOnce(Broken) + Send + 'static,
    ) -> Result<(Self, Contents), OpenError> {
        let writer = Writer::open(path)?;
        let contents = writer.contents().clone();
        let (sender, receiver) = mpsc::channel(BATCH);
        let ran = contents.ran.clone();
        #[cfg(test)]
        if crate::simulation::is_on() {
            tokio::spawn(writer.run_simulated(receiver, broken));
            return Ok((Self { sender, ran }, contents));
        }
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(receiver, broken))
            .map_err(|source| OpenError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok((Self { sender, ran }, contents))
    }

    /// The jobs that ran here and whose ends were delivered. The lock is held for a
    /// moment: nothing waits under it.
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.ran.lock()
    }

    /// Reads the file without a change to it. Where there is none, nothing is known.
    pub(super) fn read(path: &Path) -> Result<Contents, OpenError> {
        let records = load(path)?.map(|(_, decoded)| decoded.records);
        Ok(records.into_iter().flatten().collect())
    }

    /// Returns once the record is on the disk. Many callers share one sync.
    pub(super) async fn append(&self, record: Record) -> Result<(), AppendError> {
        let done = self.enqueue(record).await?;
        done.await.unwrap_or(Err(AppendError::Broken))
    }

    /// Has the record written in its turn, if there is room for it, and does not
    /// wait for that.
    pub(super) async fn note(&self, record: Record) {
        let _ = self.enqueue(record).await;
    }

    /// Has the file written again if it was removed or replaced.
    pub(super) async fn look(&self) {
        // One that is broken has said so.
        let _ = self.sender.send(None).await;
    }

    async fn enqueue(
        &self,
        record: Record,
    ) -> Result<oneshot::Receiver<Result<(), AppendError>>, AppendError> {
        let (sender, done) = oneshot::channel();
        let sent = self.sender.send(Some((record, sender))).await;
        sent.map_err(|_| AppendError::Broken)?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::{
        format::{Format, HEADER},
        writer::REWRITE_FROM,
        *,
    };
    use crate::roles::{
        shim::{
            protocol::{Birth, Cause},
            record::GapCause,
        },
        worker::job::How,
    };

    pub(super) fn spec() -> Spec {
        Spec {
            id: JobId::random(),
            command: Some("sh".into()),
            path: None,
            args: vec!["-c".into(), "exit 7".into()],
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            attempt: None,
            name: None,
            timeout: None,
            created: Timestamp::from_microsecond(1_700_000_000_000_000).unwrap(),
        }
    }

    pub(super) fn intent(spec: &Spec) -> Record {
        Record::Intent {
            spec: spec.clone(),
            boot_id: "b".into(),
        }
    }

    pub(super) fn began(spec: &Spec) -> Record {
        Record::Began {
            job_id: spec.id,
            began: Began {
                pid: 12,
                since: spec.created,
                birth: Some(Birth {
                    ticks: 3,
                    forks: 40,
                    namespace: None,
                }),
            },
        }
    }

    pub(super) fn ended(spec: &Spec) -> Record {
        let how = How::Exited {
            code: 7,
            cause: Cause::Itself,
        };
        Record::Ended {
            job_id: spec.id,
            end: End {
                started: Some((12, spec.created)),
                at: spec.created,
                how,
                output_lost: None,
                gap_cause: GapCause::Unknown,
                out_of_memory: None,
                ran_ms: Some(5),
                swept: 0,
            },
            output_bytes: 5,
        }
    }

    fn open(path: &Path) -> Result<(Journal, Contents), OpenError> {
        Journal::open(path, |why| panic!("{why:?}"))
    }

    #[tokio::test]
    async fn what_was_recorded_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, contents) = open(&path).unwrap();
        assert_eq!(contents, Contents::default());
        let (a, b, c) = (spec(), spec(), spec());
        for spec in [&a, &b, &c] {
            journal.append(intent(spec)).await.unwrap();
        }
        journal.append(Record::Epoch(3)).await.unwrap();
        journal.note(began(&a)).await;
        journal.append(ended(&a)).await.unwrap();
        journal.append(ended(&b)).await.unwrap();
        journal
            .append(Record::Acknowledged(vec![b.id]))
            .await
            .unwrap();
        let (_, contents) = open(&path).unwrap();
        assert_eq!(contents.epoch, 3);
        assert_eq!(contents.jobs.len(), 2);
        assert_eq!(contents.jobs[&a.id].end.as_ref().unwrap().1, 5);
        assert_eq!(contents.jobs[&a.id].began.unwrap().pid, 12);
        let c = &contents.jobs[&c.id];
        assert_eq!((&c.began, &c.end), (&None, &None));
        // What was read back is written back the same.
        assert_eq!(open(&path).unwrap().1, contents);
    }

    #[tokio::test]
    async fn how_a_job_ended_stays_after_the_scheduler_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = open(&path).unwrap();
        let (a, b) = (spec(), spec());
        for spec in [&a, &b] {
            journal.append(intent(spec)).await.unwrap();
            journal.append(ended(spec)).await.unwrap();
        }
        let delivered = |spec: &Spec, commit| Record::Delivered {
            jobs: vec![spec.id],
            commit,
        };
        journal.append(delivered(&a, 7)).await.unwrap();
        journal.append(delivered(&b, 9)).await.unwrap();
        // A scheduler whose records are older.
        journal.append(Record::Commit(4)).await.unwrap();
        for _ in 0..2 {
            let (journal, contents) = open(&path).unwrap();
            assert!(contents.jobs.is_empty());
            assert_eq!(contents.commit, 4);
            let (unknown, _) = journal.memory().unknown_at(7, 0, 10);
            assert_eq!(
                unknown.iter().map(|ran| ran.run).collect::<Vec<_>>(),
                [b.id]
            );
            let (_, (_, bytes)) = journal.memory().get(a.id).unwrap().parts();
            assert_eq!(bytes, 5);
        }
    }

    #[test]
    fn damage_is_refused_and_the_file_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let format = Format::new().unwrap();
        let mut bytes = format.file(&[intent(&spec())]);
        bytes[HEADER + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let errors = [
            open(&path).err().unwrap(),
            Journal::read(&path).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, OpenError::Damaged { at, .. } if at == HEADER as u64));
            assert!(error.to_string().contains("move it away"), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[tokio::test]
    async fn a_journal_of_the_first_format_is_read_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (a, b) = (spec(), spec());
        let records = [Record::Epoch(7), intent(&a), began(&a), intent(&b)];
        let old = Format::First.file(&records);
        // The length of what was not synced may be there without its bytes.
        for lost in [0, 1, 11, 5000] {
            let mut bytes = old.clone();
            bytes.resize(old.len() + lost, 0);
            std::fs::write(&path, &bytes).unwrap();
            let (journal, contents) = open(&path).unwrap();
            assert_eq!(contents, records.iter().cloned().collect());
            journal.append(ended(&a)).await.unwrap();
            let (_, contents) = open(&path).unwrap();
            assert!(contents.jobs[&a.id].end.is_some());
            assert!(contents.jobs[&b.id].end.is_none());
            let format = load(&path).unwrap().unwrap().1.format;
            assert_ne!(format, Format::First);
        }
    }

    #[test]
    fn reading_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert_eq!(Journal::read(&path).unwrap(), Contents::default());
        assert!(!path.exists());
        let a = spec();
        let mut bytes = Format::new().unwrap().file(&[intent(&a)]);
        bytes.extend([0; 30]);
        std::fs::write(&path, &bytes).unwrap();
        let contents = Journal::read(&path).unwrap();
        assert!(contents.jobs.contains_key(&a.id));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_into_a_journal_that_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // A link to a larger disk, perhaps.
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("disk"), &data).unwrap();
        let path = data.join("journal");
        let (told, mut broken) = oneshot::channel();
        let (journal, _) = Journal::open(&path, |why| told.send(why).unwrap()).unwrap();
        let (a, b, c) = (spec(), spec(), spec());
        journal.append(intent(&a)).await.unwrap();
        // What is known of it is in the next one.
        std::fs::remove_file(&path).unwrap();
        journal.append(intent(&b)).await.unwrap();
        let contents = Journal::read(&path).unwrap();
        assert!([a.id, b.id].iter().all(|id| contents.jobs.contains_key(id)));
        std::fs::write(&path, "another").unwrap();
        std::fs::rename(&path, data.join("aside")).unwrap();
        journal.look().await;
        journal.append(intent(&c)).await.unwrap();
        assert_eq!(Journal::read(&path).unwrap().jobs.len(), 3);
        assert!(broken.try_recv().is_err());

        std::fs::rename(&data, dir.path().join("elsewhere")).unwrap();
        let error = journal.append(ended(&a)).await.unwrap_err();
        assert_eq!(error, AppendError::Broken);
        assert!(matches!(broken.await.unwrap(), Broken::Removed));
    }

    #[tokio::test]
    async fn it_is_rewritten_when_mostly_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = open(&path).unwrap();
        let mut large = spec();
        large.args = vec!["x".repeat(100_000)];
        for _ in 0..40 {
            large.id = JobId::random();
            journal.append(intent(&large)).await.unwrap();
            journal
                .append(Record::Acknowledged(vec![large.id]))
                .await
                .unwrap();
        }
        let last = spec();
        journal.append(intent(&last)).await.unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 2 * REWRITE_FROM);
        let (_, contents) = open(&path).unwrap();
        assert_eq!(contents.jobs.len(), 1);
        assert!(contents.jobs.contains_key(&last.id));
    }

    #[tokio::test]
    async fn values_of_an_environment_do_not_outlast_a_rewrite_behind_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = open(&path).unwrap();
        let (mut over, mut running) = (spec(), spec());
        for (spec, value) in [(&mut over, "xyzzy"), (&mut running, "plugh")] {
            spec.env = BTreeMap::from([("SECRET".to_owned(), value.to_owned())]);
            journal.append(intent(spec)).await.unwrap();
        }
        journal.append(ended(&over)).await.unwrap();
        let holds = |word: &str| {
            let text = std::fs::read(&path).unwrap();
            text.windows(word.len()).any(|part| part == word.as_bytes())
        };
        assert!(holds("xyzzy"));
        let (_, contents) = open(&path).unwrap();
        assert!(!holds("xyzzy") && holds("plugh"));
        assert_eq!(contents.jobs[&over.id].spec.env["SECRET"], "");
        assert_eq!(contents.jobs[&running.id].spec.env["SECRET"], "plugh");
        // The names are what the scheduler is told of.
        let (_, contents) = open(&path).unwrap();
        assert!(contents.jobs[&over.id].spec.env.contains_key("SECRET"));
    }

    #[tokio::test]
    #[ignore = "measures: cargo test --lib -- --ignored --nocapture what_a_record_costs"]
    async fn what_a_record_costs() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(&dir.path().join("journal")).unwrap();
        let each = |since: std::time::Instant| since.elapsed().as_secs_f64() * 1000.0 / 1000.0;
        let since = std::time::Instant::now();
        for _ in 0..1000 {
            journal.append(intent(&spec())).await.unwrap();
        }
        println!("one after the other: {:.3} ms each", each(since));
        let since = std::time::Instant::now();
        let specs: Vec<_> = (0..1000).map(|_| spec()).collect();
        let all = specs.iter().map(|spec| journal.append(intent(spec)));
        for done in futures_util::future::join_all(all).await {
            done.unwrap();
        }
        println!("1,000 at once: {:.3} ms each", each(since));
    }
}
