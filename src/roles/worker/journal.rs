//! What this worker must not forget, in one append-only file: the intent to start
//! a job before it is started, its end before the shim may go, and what of it the
//! scheduler has acknowledged.
//!
//! Each record is a header (length of the body and a checksum of that length),
//! the body (JSON), and a checksum of the body; numbers are 32 bits,
//! little-endian, checksums CRC-32. A record that the file ends in the middle of
//! was never promised to anybody and is cut off. Whatever else is wrong with the
//! file is damage, which nobody here can mend, and is refused.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{
    job::{Began, End, Spec},
    ran::{Memory, Ran},
};
use crate::ids::JobId;

/// The longest body, in bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// Below this size the file is not worth rewriting.
const REWRITE_FROM: u64 = 1024 * 1024;

/// How many jobs one record of those that ran holds, far below [`MAX_BODY`].
const RAN_PER_RECORD: usize = 4096;

/// How many records one sync may cover.
const BATCH: usize = 1024;

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
}

impl Contents {
    /// Jobs whose ends were delivered go to `memory`.
    fn apply(&mut self, record: Record, memory: &mut Memory) {
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
            Record::Acknowledged(jobs) => self.deliver(jobs, 0, memory),
            Record::Delivered { jobs, commit } => self.deliver(jobs, commit, memory),
            Record::Commit(commit) => self.commit = commit,
            Record::Ran(jobs) => jobs.into_iter().for_each(|ran| memory.add(ran)),
            Record::RanForgotten(commit) => memory.forgot(commit),
        }
    }

    fn deliver(&mut self, jobs: Vec<JobId>, commit: u64, memory: &mut Memory) {
        if commit > 0 {
            self.commit = commit;
        }
        for job_id in jobs {
            if let Some(known) = self.jobs.remove(&job_id)
                && let Some((end, output_bytes)) = known.end
            {
                memory.add(Ran::new(&known.spec, &end, output_bytes, commit));
            }
        }
    }

    /// The shortest journal with these contents and `memory`.
    fn records(&self, memory: &Memory) -> Vec<Record> {
        let mut records = vec![Record::Epoch(self.epoch), Record::Commit(self.commit)];
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
        "{} is damaged at byte {at} ({what}): jobs recorded behind it would be forgotten. \
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
    sender: mpsc::Sender<(Record, oneshot::Sender<Result<(), AppendError>>)>,
    memory: Arc<Mutex<Memory>>,
}

impl Journal {
    /// Opens or makes the file. `broken` is told, with the reason, when it can
    /// no longer be written: nothing is acknowledged after that.
    pub(super) fn open(
        path: &Path,
        broken: impl FnOnce(io::Error) + Send + 'static,
    ) -> Result<(Self, Contents), OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let (records, length) = decode(&bytes).map_err(|(at, what)| OpenError::Damaged {
            path: path.to_owned(),
            at: at as u64,
            what,
        })?;
        let mut contents = Contents::default();
        let mut memory = Memory::default();
        records
            .into_iter()
            .for_each(|record| contents.apply(record, &mut memory));
        let memory = Arc::new(Mutex::new(memory));
        let mut writer = Writer {
            path: path.to_owned(),
            file,
            length: length as u64,
            contents: contents.clone(),
            memory: memory.clone(),
            live: 0,
            renamed: false,
        };
        // What is left of a torn record goes, and so does what is of no more use.
        writer.rewrite().map_err(io)?;
        let (sender, receiver) = mpsc::channel(BATCH);
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(receiver, broken))
            .map_err(io)?;
        Ok((Self { sender, memory }, contents))
    }

    /// The jobs that ran here and whose ends were delivered. The lock is held for a
    /// moment: nothing waits under it.
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        remembered(&self.memory)
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

    async fn enqueue(
        &self,
        record: Record,
    ) -> Result<oneshot::Receiver<Result<(), AppendError>>, AppendError> {
        let (sender, done) = oneshot::channel();
        let sent = self.sender.send((record, sender)).await;
        sent.map_err(|_| AppendError::Broken)?;
        Ok(done)
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    length: u64,
    contents: Contents,
    memory: Arc<Mutex<Memory>>,
    /// How long the file was when it was last rewritten.
    live: u64,
    /// A new file has taken the place of the old, and that is not yet on the disk.
    renamed: bool,
}

type Waiting = (Record, oneshot::Sender<Result<(), AppendError>>);

impl Writer {
    fn run(mut self, mut receiver: mpsc::Receiver<Waiting>, broken: impl FnOnce(io::Error)) {
        let mut batch = Vec::new();
        while let Some(first) = receiver.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH
                && let Ok(next) = receiver.try_recv()
            {
                batch.push(next);
            }
            let bytes: Vec<u8> = batch
                .iter()
                .flat_map(|(record, _)| encode(record))
                .collect();
            let needs_sync =
                |(record, _): &Waiting| !matches!(record, Record::Began { .. } | Record::Commit(_));
            let answer = match self.commit(&bytes, batch.iter().any(needs_sync)) {
                Ok(()) => Ok(()),
                Err(Failure::Full) => Err(AppendError::Full),
                Err(Failure::Broken(error)) => {
                    broken(error);
                    return;
                }
            };
            for (record, sender) in batch.drain(..) {
                if answer.is_ok() {
                    self.contents.apply(record, &mut remembered(&self.memory));
                }
                // One who has gone away wants no answer.
                let _ = sender.send(answer.clone());
            }
            if self.length > REWRITE_FROM.max(self.live * 2)
                && let Err(error) = self.rewrite()
            {
                if self.renamed {
                    broken(error);
                    return;
                }
                // The old file is whole; it is only longer than it need be.
                tracing::warn!(%error, "cannot rewrite the journal");
                self.live = self.length;
            }
        }
    }

    fn commit(&mut self, bytes: &[u8], sync: bool) -> Result<(), Failure> {
        if let Err(error) = self.file.write_all(bytes) {
            if !is_full(&error) {
                return Err(Failure::Broken(error));
            }
            // Half a record in the middle of the file would be damage.
            self.file.set_len(self.length).map_err(Failure::Broken)?;
            let end = io::SeekFrom::Start(self.length);
            self.file.seek(end).map_err(Failure::Broken)?;
            return Err(Failure::Full);
        }
        // Never again after a failed one: the kernel may have dropped the bytes
        // and forgotten that it did.
        if sync {
            self.file.sync_data().map_err(Failure::Broken)?;
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Writes a new file with what is of use, and puts it in the place of the old.
    fn rewrite(&mut self) -> io::Result<()> {
        let records = self.contents.records(&remembered(&self.memory));
        let bytes: Vec<u8> = records.iter().flat_map(encode).collect();
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        self.file = file.persist(&self.path).map_err(|error| error.error)?;
        self.length = bytes.len() as u64;
        self.live = self.length;
        // From here on what follows is in the new file, and must be found there.
        self.renamed = true;
        File::open(dir)?.sync_all()?;
        self.renamed = false;
        Ok(())
    }
}

fn remembered(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    // Every change of it is a single step, so it is whole even then.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Failure {
    Full,
    Broken(io::Error),
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn encode(record: &Record) -> Vec<u8> {
    let body = serde_json::to_vec(record).expect("a record is always valid JSON");
    let length = u32::try_from(body.len()).expect("records are far below 4 GiB");
    let length = length.to_le_bytes();
    let mut bytes = Vec::with_capacity(body.len() + 12);
    bytes.extend(length);
    bytes.extend(crc32fast::hash(&length).to_le_bytes());
    bytes.extend(&body);
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes
}

/// The records, and where the last whole one ends.
fn decode(bytes: &[u8]) -> Result<(Vec<Record>, usize), (usize, &'static str)> {
    let mut records = Vec::new();
    let mut at = 0;
    // The file may end anywhere in what was being written when the machine died.
    while let Some((length, rest)) = bytes[at..].split_first_chunk::<4>()
        && let Some((checksum, rest)) = rest.split_first_chunk::<4>()
    {
        if crc32fast::hash(length) != u32::from_le_bytes(*checksum) {
            return Err((at, "the checksum of a length is wrong"));
        }
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_BODY {
            return Err((at, "a record is too long"));
        }
        let Some((body, rest)) = rest.split_at_checked(length) else {
            break;
        };
        let Some((checksum, _)) = rest.split_first_chunk::<4>() else {
            break;
        };
        if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
            return Err((at, "the checksum of a record is wrong"));
        }
        let record = serde_json::from_slice(body)
            .map_err(|_| (at, "a record of a newer version of jobctl, perhaps"))?;
        records.push(record);
        at += length + 12;
    }
    Ok((records, at))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use jiff::Timestamp;

    use super::*;
    use crate::roles::{
        shim::protocol::{Birth, Cause},
        worker::job::How,
    };

    fn spec() -> Spec {
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

    fn intent(spec: &Spec) -> Record {
        Record::Intent {
            spec: spec.clone(),
            boot_id: "b".into(),
        }
    }

    fn began(spec: &Spec) -> Record {
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

    fn ended(spec: &Spec) -> Record {
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
                out_of_memory: None,
                ran_ms: Some(5),
                swept: 0,
            },
            output_bytes: 5,
        }
    }

    fn open(path: &Path) -> Result<(Journal, Contents), OpenError> {
        Journal::open(path, |error| panic!("{error}"))
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
    fn every_prefix_is_recovered_and_every_flipped_byte_refused() {
        let (a, b) = (spec(), spec());
        let records = [
            Record::Epoch(1),
            intent(&a),
            intent(&b),
            began(&a),
            ended(&a),
        ];
        let mut whole = Vec::new();
        let mut ends = vec![0];
        for record in &records {
            whole.extend(encode(record));
            ends.push(whole.len());
        }
        for cut in 0..=whole.len() {
            let (found, length) = decode(&whole[..cut]).unwrap();
            let expected = ends.iter().rposition(|end| *end <= cut).unwrap();
            assert_eq!(found, records[..expected], "cut at {cut}");
            assert_eq!(length, ends[expected]);
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let (place, _) = decode(&flipped).unwrap_err();
                assert_eq!(place, *ends.iter().rfind(|end| **end <= at).unwrap());
            }
        }
    }

    #[test]
    fn damage_is_refused_and_the_file_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut bytes = encode(&intent(&spec()));
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = open(&path).err().unwrap();
        assert!(matches!(error, OpenError::Damaged { at: 0, .. }));
        assert!(error.to_string().contains("move it away"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
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
    async fn a_full_disk_is_said_and_passes() {
        // /dev/full takes nothing; a real file takes its place afterwards.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (sender, receiver) = mpsc::channel(8);
        let mut writer = Writer {
            path: path.clone(),
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            length: 0,
            contents: Contents::default(),
            memory: Arc::default(),
            live: 0,
            renamed: false,
        };
        assert!(matches!(
            writer.commit(b"x", true),
            Err(Failure::Full | Failure::Broken(_))
        ));
        writer.file = File::create(&path).unwrap();
        let journal = Journal {
            sender,
            memory: Arc::default(),
        };
        let failure = Arc::new(Mutex::new(None));
        let told = failure.clone();
        thread::spawn(move || {
            writer.run(receiver, move |error| *told.lock().unwrap() = Some(error))
        });
        journal.append(intent(&spec())).await.unwrap();
        assert!(failure.lock().unwrap().is_none());
        assert_eq!(open(&path).unwrap().1.jobs.len(), 1);
    }
}
