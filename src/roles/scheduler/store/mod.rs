//! The durable records: workers, jobs, idempotency keys, and what workers are to
//! forget, in an SQLite file. What they mean is decided in `jobs/` and
//! `registry.rs`; how a record is written is in `writer.rs`, how it is found
//! again in `read.rs`, the tables are in `schema.rs`.

mod access;
mod ends;
mod epoch;
mod files;
mod lock;
mod read;
mod reserve;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

#[cfg(test)]
pub(super) use self::tests::scratch;
pub(super) use self::{
    access::{AccessChange, AuditEntry, Certificate, Token, Written},
    read::{Cursor, KeptKey, Range},
    writer::{Env, Key},
};
use self::{
    files::Files,
    lock::Lock,
    read::Readers,
    writer::{Change, Message, Writer},
};
use super::{
    about::{Orders, Told},
    jobs::{Cut, Filter, Group, Record, Room, Spec},
    time::Time,
};
use crate::{
    api::Counts,
    ids::{GroupId, JobId, WorkerId},
};

/// Why the store cannot be used, or could not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or a file in it cannot be had.
    #[error("cannot use the data folder {}", folder.display())]
    Folder {
        /// Where the store is.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another scheduler ({holder})", folder.display())]
    InUse {
        /// Where the store is.
        folder: PathBuf,
        /// Process and addresses of the other one.
        holder: String,
    },
    /// A newer jobctl has written it.
    #[error(
        "{} was written by a newer jobctl (its version is {found}, this one knows {}): \
         install that jobctl again, or name another folder with `--data-dir`",
        file.display(), schema::VERSION
    )]
    Newer {
        /// The file of the store.
        file: PathBuf,
        /// Its version.
        found: i64,
    },
    /// No space is left.
    #[error("no space is left for the scheduler's store: free some on its disk")]
    Full,
    /// Another program holds the lock of the store.
    #[error("another program holds the lock of the scheduler's store")]
    Busy,
    /// What is written to it is lost.
    #[error(
        "{} was removed or replaced while the scheduler ran, and what is written now is lost: \
         put the file back, or start with an empty data folder",
        file.display()
    )]
    Replaced {
        /// The file that is not the one that is open.
        file: PathBuf,
    },
    /// It has ended, and with it the scheduler.
    #[error("the store has ended")]
    Ended,
    /// A record that is none.
    #[error("a record of the store is damaged")]
    Damaged(#[source] serde_json::Error),
    /// SQLite failed, and what was written last may not be on the disk.
    #[error("the store failed")]
    Sqlite(#[from] rusqlite::Error),
}

/// How long finished jobs are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    pub(super) finished: u64,
    pub(super) time: Duration,
    /// How long lines of the audit log are kept.
    pub(super) audit: Duration,
}

/// A worker, as it is remembered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredWorker {
    pub(super) id: WorkerId,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) version: String,
    pub(super) left: bool,
    pub(super) registered_at: Timestamp,
    pub(super) heard_at: Option<Timestamp>,
    pub(super) told: Told,
    pub(super) orders: Orders,
}

/// How far the writer is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Every change up to this one is on the disk.
    pub(super) committed: u64,
    /// Jobs deleted since the start.
    pub(super) deleted: u64,
    /// There was no room at the last attempt.
    pub(super) full: bool,
    /// Another program held the lock at the last attempt.
    pub(super) busy: bool,
    /// How many transactions were committed since the store was made.
    pub(super) commits: u64,
}

/// The place of a change in the order of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// How far the records went when the store was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History {
    /// How many transactions had been committed since the store was made.
    pub(super) commits: u64,
    /// With so many they were older than what workers did, and not all workers have
    /// reported that yet.
    pub(super) older_than: Option<u64>,
}

/// What the store held when it was opened.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Higher than at any start before.
    pub(super) epoch: u64,
    /// How many transactions had been committed.
    pub(super) commits: u64,
    /// See [`History::older_than`].
    pub(super) older_than: Option<u64>,
    pub(super) workers: Vec<StoredWorker>,
    /// The jobs that had not ended, and for those that may be started, or started
    /// again, the values of their environment.
    pub(super) live: Vec<(Record, Arc<Env>)>,
    /// The groups that had not ended, with those of their jobs counted that had.
    pub(super) groups: Vec<Group>,
    pub(super) tokens: Vec<Token>,
    pub(super) certificates: Vec<Certificate>,
}

/// A handle to the store; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Mutex<Queue>,
    progress: watch::Receiver<Progress>,
    readers: Arc<Readers>,
    time: Time,
    place: PathBuf,
    /// One epoch is taken after the other.
    epochs: Mutex<()>,
    /// Deleted with the last handle.
    #[cfg(test)]
    folder: std::sync::OnceLock<tempfile::TempDir>,
    history: History,
}

#[derive(Debug)]
struct Queue {
    messages: mpsc::Sender<Message>,
    /// Changes handed to the writer.
    number: u64,
}

/// The thread that writes; ends when this is dropped.
#[derive(Debug)]
pub(super) struct Writing {
    store: Store,
    ended: Option<oneshot::Receiver<Result<(), Error>>>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.store.queue().messages.send(Message::End);
    }
}

impl Writing {
    /// Returns when the store can no longer be written, with the reason.
    /// Cancel-safe.
    pub(super) async fn failed(&mut self) -> Error {
        match &mut self.ended {
            Some(ended) => {
                let error = match ended.await {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) | Err(_) => Error::Ended,
                };
                self.ended = None;
                error
            }
            None => Error::Ended,
        }
    }

    /// Has everything written that was handed over, and returns when it is.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        let _ = self.store.queue().messages.send(Message::End);
        match self.ended.take() {
            Some(ended) => ended.await.unwrap_or(Err(Error::Ended)),
            None => Ok(()),
        }
    }
}

/// Opens the store in `folder`, which is made if it is not there, for this
/// process alone; `who` tells others who has it. Blocks.
pub(super) fn open(
    folder: &Path,
    keep: Keep,
    who: &str,
) -> Result<(Store, Writing, Loaded), Error> {
    make(folder).map_err(|source| Error::Folder {
        folder: folder.to_owned(),
        source,
    })?;
    let lock = Lock::take(folder, who)?;
    let (connection, loaded) = match read(folder) {
        Err(error) if error.is_full() && reserve::release(folder) => read(folder),
        read => read,
    }
    .map_err(Error::or_full)?;
    let files = Files::of(folder).map_err(|source| Error::Folder {
        folder: folder.to_owned(),
        source,
    })?;
    let time = schema::time(&connection)?;
    let readers = Arc::new(Readers::new(folder.to_owned()));
    let finished: i64 = connection.query_row(
        "SELECT count(*) FROM jobs WHERE ended_us IS NOT NULL",
        (),
        |row| row.get(0),
    )?;
    let (messages, received) = mpsc::channel();
    let (progress, seen) = watch::channel(Progress {
        commits: loaded.commits,
        ..Progress::default()
    });
    let (end, ended) = oneshot::channel();
    let writer = Writer {
        connection,
        keep,
        files,
        time: time.clone(),
        readers: readers.clone(),
        checkpoint_at: 0,
        finished: finished.unsigned_abs(),
        messages: received,
        progress,
        retention_due: Instant::now(),
        lines_dropped: 0,
        _lock: lock,
    };
    let tell = move |ended: Result<(), Error>| {
        if let Err(error) = &ended {
            tracing::error!(error = %describe(error), "the store failed: the scheduler ends");
        }
        // Nobody waits if the role was cut off.
        let _ = end.send(ended);
    };
    start(writer, tell).map_err(|source| Error::Folder {
        folder: folder.to_owned(),
        source,
    })?;
    let store = Store(Arc::new(Inner {
        queue: Mutex::new(Queue {
            messages,
            number: 0,
        }),
        progress: seen,
        readers,
        time,
        place: folder.to_owned(),
        epochs: Mutex::default(),
        #[cfg(test)]
        folder: std::sync::OnceLock::new(),
        history: History {
            commits: loaded.commits,
            older_than: loaded.older_than,
        },
    }));
    // As soon as there is room: the file has it.
    store.raise_epoch(loaded.epoch);
    let writing = Writing {
        store: store.clone(),
        ended: Some(ended),
    };
    Ok((store, writing, loaded))
}

fn read(folder: &Path) -> Result<(Connection, Loaded), Error> {
    let connection = schema::open(folder)?;
    restrict(folder).map_err(|source| Error::Folder {
        folder: folder.to_owned(),
        source,
    })?;
    let recorded = schema::meta(&connection, "epoch")?.unwrap_or(0);
    let epoch = match epoch::take(folder, recorded.unsigned_abs()) {
        Ok(epoch) => epoch,
        // Then the tables must have it before it is used.
        Err((epoch, error)) => {
            tracing::warn!(%error, "the file `epoch` cannot be written");
            connection.execute(
                "UPDATE meta SET value = ? WHERE key = 'epoch'",
                [i64::try_from(epoch).unwrap_or(i64::MAX)],
            )?;
            epoch
        }
    };
    let loaded = load(&connection, epoch)?;
    Ok((connection, loaded))
}

/// Has the changes written, on a thread of their own, and `tell`s how that ended.
fn start(writer: Writer, tell: impl FnOnce(Result<(), Error>) + Send + 'static) -> io::Result<()> {
    #[cfg(test)]
    if crate::simulation::is_on() {
        tokio::spawn(async move { tell(writer.run_simulated().await) });
        return Ok(());
    }
    let thread = thread::Builder::new().name("store".to_owned());
    thread.spawn(move || tell(writer.run())).map(drop)
}

fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// SQLite gives the files beside the first one the same permissions.
fn restrict(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(schema::FILE.as_bytes())
        {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

fn load(connection: &Connection, epoch: u64) -> Result<Loaded, Error> {
    let commits = schema::meta(connection, "commits")?.unwrap_or(0);
    let older_than = schema::meta(connection, "older_than")?;
    let workers = load_workers(connection)?;
    let (groups, shared) = load_groups(connection)?;
    let mut jobs = connection
        .prepare("SELECT record, spec, env, job_group FROM jobs WHERE ended_us IS NULL")?;
    let mut rows = jobs.query(())?;
    let mut live = Vec::new();
    while let Some(row) = rows.next()? {
        let group: Option<[u8; 16]> = row.get("job_group")?;
        let shared = group.and_then(|group| shared.get(&GroupId::from_bytes(group)));
        let mut record: Record = read::json(&row.get::<_, String>("record")?)?;
        let env = match shared {
            Some((spec, env)) => {
                record.spec = spec.clone();
                env.clone()
            }
            None => {
                record.spec = Arc::new(read::json(&row.get::<_, String>("spec")?)?);
                Arc::new(read::env(row)?)
            }
        };
        live.push((record, env));
    }
    let (tokens, certificates) = access::load(connection)?;
    Ok(Loaded {
        tokens,
        certificates,
        epoch,
        commits: commits.unsigned_abs(),
        older_than: older_than.map(i64::unsigned_abs),
        workers,
        live,
        groups,
    })
}

/// What the jobs of a group share.
type Shared = HashMap<GroupId, (Arc<Spec>, Arc<Env>)>;

fn load_groups(connection: &Connection) -> Result<(Vec<Group>, Shared), Error> {
    let mut query =
        connection.prepare("SELECT record, spec, env FROM groups WHERE ended_us IS NULL")?;
    let mut lives = connection
        .prepare("SELECT 1 FROM jobs WHERE job_group = ? AND ended_us IS NULL LIMIT 1")?;
    let mut rows = query.query(())?;
    let (mut groups, mut shared) = (Vec::new(), Shared::new());
    while let Some(row) = rows.next()? {
        let mut group = read::group(row)?;
        // As it stood when this was written: those that live count themselves.
        group.states = Counts::default();
        (group.exit_code, group.failed_index) = (0, None);
        ends::load(connection, &mut group)?;
        if lives.exists([group.id.as_bytes()])? {
            group.ended_at = None;
        }
        let env = Arc::new(read::env(row)?);
        shared.insert(group.id, (group.spec.clone(), env));
        groups.push(group);
    }
    Ok((groups, shared))
}

fn load_workers(connection: &Connection) -> Result<Vec<StoredWorker>, Error> {
    let mut query = connection.prepare(
        "SELECT id, name, address, version, left, registered_us, heard_us, told, orders
         FROM workers",
    )?;
    let time = |us| Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut rows = query.query(())?;
    let mut workers = Vec::new();
    while let Some(row) = rows.next()? {
        workers.push(StoredWorker {
            id: read::worker_id(row, 0)?,
            name: row.get(1)?,
            address: row.get(2)?,
            version: row.get(3)?,
            left: row.get(4)?,
            registered_at: time(row.get(5)?),
            heard_at: row.get::<_, Option<i64>>(6)?.map(time),
            told: read::json(&row.get::<_, String>(7)?)?,
            orders: read::json(&row.get::<_, String>(8)?)?,
        });
    }
    Ok(workers)
}

impl Store {
    /// Records a job that is to be started. Handed over at once, in the order
    /// of the calls; the answer comes after the commit, or says that there is no
    /// room, and then nothing was recorded.
    pub(super) fn start(
        &self,
        record: Arc<Record>,
        env: Arc<Env>,
        key: Option<Key>,
        audit: AuditEntry,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let (done, answer) = oneshot::channel();
        self.hand_over(Change::Start {
            record,
            env,
            key,
            audit,
            done,
        });
        async move { answer.await.unwrap_or(Err(Error::Ended)) }
    }

    /// Records a group that is to be started, as [`Store::start`] does a job: all
    /// of it or nothing.
    pub(super) fn start_group(
        &self,
        group: Arc<Group>,
        jobs: Arc<[Record]>,
        env: Arc<Env>,
        key: Option<Key>,
        audit: AuditEntry,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let (done, answer) = oneshot::channel();
        self.hand_over(Change::StartGroup {
            group,
            jobs,
            env,
            key,
            audit,
            done,
        });
        async move { answer.await.unwrap_or(Err(Error::Ended)) }
    }

    /// Records a change of who is who together with its line of the audit log.
    /// The answer comes after the commit: whether it was done, or that there is
    /// no room, and then nothing was recorded.
    pub(super) fn access(
        &self,
        change: AccessChange,
        audit: Option<AuditEntry>,
    ) -> impl Future<Output = Result<Written, Error>> + use<> {
        let (done, answer) = oneshot::channel();
        self.hand_over(Change::Access {
            change,
            audit,
            done,
        });
        async move { answer.await.unwrap_or(Err(Error::Ended)) }
    }

    /// Has a line of the audit log written once there is room for it.
    pub(super) fn audit_later(&self, entry: AuditEntry) -> Ticket {
        self.hand_over(Change::Audit(entry))
    }

    /// The number of the last line of the audit log; 0: there is none.
    pub(super) async fn last_audit_line(&self) -> Result<i64, Error> {
        self.0.readers.with(|read| read.last_audit_line()).await
    }

    /// At most `limit` lines of the audit log behind the one with this number.
    pub(super) async fn audit_lines(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(i64, String)>, Error> {
        let lines = self.0.readers.with(move |read| read.audit(after, limit));
        lines.await
    }

    /// The job stands otherwise than before.
    pub(super) fn job(&self, record: Arc<Record>) -> Ticket {
        self.hand_over(Change::Job(record))
    }

    /// A group stands otherwise than before.
    pub(super) fn group_changed(&self, group: Arc<Group>) -> Ticket {
        self.hand_over(Change::Group(group))
    }

    /// A job of which only its worker knew.
    pub(super) fn adopted(&self, record: Arc<Record>) -> Ticket {
        self.hand_over(Change::Adopted(record))
    }

    /// A worker registered or left.
    pub(super) fn worker(&self, worker: StoredWorker) -> Ticket {
        self.hand_over(Change::Worker(worker))
    }

    /// When these were heard of last.
    pub(super) fn heard(&self, workers: Vec<(WorkerId, Timestamp)>) -> Ticket {
        self.hand_over(Change::Heard(workers))
    }

    /// Nobody will hear of this worker again.
    pub(super) fn worker_gone(&self, worker: WorkerId) -> Ticket {
        self.hand_over(Change::WorkerGone(worker))
    }

    /// A worker has deleted the output of these jobs.
    pub(super) fn forgotten(&self, worker: WorkerId, jobs: Vec<JobId>) -> Ticket {
        self.hand_over(Change::Forgotten(worker, jobs))
    }

    /// An epoch above this one, which no other start has: it is on the disk, also where
    /// that is full.
    pub(super) async fn epoch_above(&self, heard: u64) -> Result<u64, Error> {
        let store = self.clone();
        let take = move || {
            let _turn = store
                .0
                .epochs
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            epoch::take(&store.0.place, heard)
        };
        match tokio::task::spawn_blocking(take).await {
            Ok(Ok(epoch)) => {
                self.raise_epoch(epoch);
                Ok(epoch)
            }
            Ok(Err((epoch, error))) => {
                tracing::warn!(%error, "the file `epoch` cannot be written");
                self.committed_now(self.raise_epoch(epoch)).await?;
                Ok(epoch)
            }
            Err(_) => Err(Error::Ended),
        }
    }

    /// The tables are to have an epoch of at least this.
    fn raise_epoch(&self, epoch: u64) -> Ticket {
        self.hand_over(Change::Epoch(epoch))
    }

    /// The times of this scheduler, which the store keeps.
    pub(super) fn time(&self) -> Time {
        self.0.time.clone()
    }

    /// How far the records went when the store was opened.
    pub(super) fn history(&self) -> History {
        self.0.history
    }

    /// The records were older than what workers did, with so many transactions; None:
    /// all of that was taken in.
    pub(super) fn older_than(&self, commits: Option<u64>) -> Ticket {
        self.hand_over(Change::OlderThan(commits))
    }

    /// The number of the last transaction that is on the disk, counted since the
    /// store was made.
    pub(super) fn commits(&self) -> u64 {
        self.0.progress.borrow().commits
    }

    /// What was handed over last.
    pub(super) fn now(&self) -> Ticket {
        Ticket(self.queue().number)
    }

    /// Whether this is on the disk.
    pub(super) fn is_committed(&self, ticket: Ticket) -> bool {
        self.0.progress.borrow().committed >= ticket.0
    }

    /// Returns when this and everything before it is on the disk, however long
    /// a disk stays full.
    pub(super) fn committed(
        &self,
        ticket: Ticket,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let mut progress = self.0.progress.clone();
        async move {
            let committed = progress.wait_for(|progress| progress.committed >= ticket.0);
            committed.await.map_err(|_| Error::Ended)?;
            Ok(())
        }
    }

    /// As [`Store::committed`], but does not wait for space on the disk.
    pub(super) async fn committed_now(&self, ticket: Ticket) -> Result<(), Error> {
        let mut progress = self.0.progress.clone();
        let far = progress
            .wait_for(|progress| progress.committed >= ticket.0 || progress.full || progress.busy);
        let far = *far.await.map_err(|_| Error::Ended)?;
        match far.committed >= ticket.0 {
            true => Ok(()),
            false if far.busy => Err(Error::Busy),
            false => Err(Error::Full),
        }
    }

    /// How far the writer is, now and after every commit.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.clone()
    }

    /// A job by its id.
    pub(super) async fn find(&self, id: JobId) -> Result<Option<Record>, Error> {
        self.0.readers.with(move |read| read.job(id)).await
    }

    /// A group by its id.
    pub(super) async fn group(&self, id: GroupId) -> Result<Option<Group>, Error> {
        self.0.readers.with(move |read| read.find_group(id)).await
    }

    /// At most `limit` groups from `first` on that begin with `digits`.
    pub(super) async fn groups_with_prefix(
        &self,
        first: GroupId,
        digits: String,
        limit: usize,
    ) -> Result<Vec<Group>, Error> {
        let found = self
            .0
            .readers
            .with(move |read| read.groups_with_prefix(first, &digits, limit));
        found.await
    }

    /// The finished jobs of the group from that number on, in their order, as many as
    /// there is room for.
    pub(super) async fn members(
        &self,
        group: GroupId,
        from: u32,
        room: Room,
    ) -> Result<Cut<Record>, Error> {
        let found = self
            .0
            .readers
            .with(move |read| read.members(group, from, room));
        found.await
    }

    /// The newest finished job, of that name if there is one.
    pub(super) async fn newest(&self, name: Option<String>) -> Result<Option<Record>, Error> {
        self.0.readers.with(move |read| read.newest(name)).await
    }

    /// At most `limit` finished jobs from `first` on that begin with `digits`.
    pub(super) async fn with_prefix(
        &self,
        first: JobId,
        digits: String,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        let found = self
            .0
            .readers
            .with(move |read| read.with_prefix(first, &digits, limit));
        found.await
    }

    /// The names of the newest finished jobs, of at most so many.
    pub(super) async fn newest_names(&self, limit: usize) -> Result<Vec<String>, Error> {
        self.0
            .readers
            .with(move |read| read.newest_names(limit))
            .await
    }

    /// The newest finished jobs of that range, the newest first, as many as there is
    /// room for.
    pub(super) async fn page(
        &self,
        filter: Filter,
        room: Room,
        range: Range,
    ) -> Result<Cut<Record>, Error> {
        let page = self
            .0
            .readers
            .with(move |read| read.page(&filter, room, range));
        page.await
    }

    /// Those of `jobs` that are recorded, or were and are being forgotten.
    pub(super) async fn known(&self, jobs: Vec<JobId>) -> Result<HashSet<JobId>, Error> {
        self.0.readers.with(move |read| read.known(&jobs)).await
    }

    /// What a key was used for.
    pub(super) async fn key(&self, key: String) -> Result<Option<KeptKey>, Error> {
        self.0.readers.with(move |read| read.key(&key)).await
    }

    /// At most `limit` jobs that the worker is to forget, behind the place
    /// `after` in the list, each with its place.
    pub(super) async fn to_forget(
        &self,
        worker: WorkerId,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(i64, JobId)>, Error> {
        let found = self
            .0
            .readers
            .with(move |read| read.to_forget(worker, after, limit));
        found.await
    }

    /// No more than so many pages: a disk that is full.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) {
        let _ = self.queue().messages.send(Message::MaxPages(pages));
    }

    /// The wall clock is off by so much.
    #[cfg(test)]
    pub(super) fn step_clock(&self, by: jiff::SignedDuration) {
        self.0.time.step(by);
        let _ = self.queue().messages.send(Message::LookAtAges);
    }

    fn hand_over(&self, change: Change) -> Ticket {
        let mut queue = self.queue();
        queue.number += 1;
        let number = queue.number;
        // A writer that has ended is noticed by who waits for the commit.
        let _ = queue
            .messages
            .send(Message::Change(number, Box::new(change)));
        Ticket(number)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
