//! The one thread that writes. It takes the changes that have come up, commits
//! them together, and only then says so: one sync for many.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi, params};
use tokio::sync::{oneshot, watch};

use super::{
    Error, Keep, Progress, StoredWorker,
    access::{self, AccessChange, AuditEntry, Written},
    ends,
    files::Files,
    lock::Lock,
    read::{self, Readers},
    schema::{self, PATIENCE},
};
use crate::{
    ids::{GroupId, JobId, WorkerId},
    roles::scheduler::{
        jobs::{Group, Record},
        time::Time,
    },
};

/// The most changes in one transaction.
const BATCH: usize = 4096;

/// The most jobs whose records are deleted in one transaction.
const DELETED_AT_ONCE: u64 = 500;

/// Of the lines of the audit log that wait for room so many are kept; the rest is
/// counted.
pub(super) const MOST_LINES_KEPT: usize = 1024;

/// With a full disk the changes that wait are tried again so often.
const RETRY: Duration = Duration::from_millis(500);

/// When the write-ahead log has grown by so many bytes, or when nothing has come for
/// so long, what is in it is carried over, and it is emptied.
const CHECKPOINT: u64 = 4 * 1024 * 1024;
const IDLE: Duration = Duration::from_secs(1);

/// A program that looks into the store is waited for so long before the log is left
/// to grow further.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(100);

/// An idempotency key is kept so long after the record of what it started, in
/// microseconds, and at most so many of them.
const KEYS_KEPT_US: i64 = 24 * 3600 * 1_000_000;
const MOST_KEYS_KEPT: i64 = 100_000;

/// How often the oldest records are looked at.
const RETENTION: Duration = Duration::from_secs(30);

/// The digest of a start that bears an idempotency key.
#[derive(Clone, Debug)]
pub(in crate::roles::scheduler) struct Key {
    pub(in crate::roles::scheduler) key: String,
    pub(in crate::roles::scheduler) body: Vec<u8>,
}

/// Values of a job's environment.
pub(in crate::roles::scheduler) type Env = BTreeMap<String, String>;

/// What may be written.
#[derive(Debug)]
pub(super) enum Change {
    /// A job that somebody wants started, which a full disk refuses.
    Start {
        record: Arc<Record>,
        env: Arc<Env>,
        key: Option<Key>,
        /// Who asked for it.
        audit: AuditEntry,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// A group that somebody wants started, all of it or nothing.
    StartGroup {
        group: Arc<Group>,
        jobs: Arc<[Record]>,
        env: Arc<Env>,
        key: Option<Key>,
        audit: AuditEntry,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// A group stands otherwise than before.
    Group(Arc<Group>),
    /// A change of who is who, which a full disk refuses as well. Answered with
    /// what came of it.
    Access {
        change: AccessChange,
        audit: Option<AuditEntry>,
        done: oneshot::Sender<Result<Written, Error>>,
    },
    /// A job stands otherwise than before. One that ended stays as it is.
    Job(Arc<Record>),
    /// A job that only its worker knew.
    Adopted(Arc<Record>),
    Worker(StoredWorker),
    Heard(Vec<(WorkerId, Timestamp)>),
    /// A line of the audit log for what is done though there is no room for the line.
    Audit(AuditEntry),
    /// A worker nobody will hear of again.
    WorkerGone(WorkerId),
    /// A worker has deleted the output of these.
    Forgotten(WorkerId, Vec<JobId>),
    /// A worker has heard of a higher epoch: this one is above it.
    Epoch(u64),
    /// The records were older than what workers did, with so many transactions; None:
    /// all of that was taken in.
    OlderThan(Option<u64>),
}

/// What comes to the writer.
#[derive(Debug)]
pub(super) enum Message {
    /// With its place in the order of all changes.
    Change(u64, Box<Change>),
    /// Write what has come, and end.
    End,
    #[cfg(test)]
    MaxPages(u32),
    #[cfg(test)]
    LookAtAges,
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) keep: Keep,
    pub(super) files: Files,
    pub(super) time: Time,
    pub(super) readers: Arc<Readers>,
    /// The size of the write-ahead log at which it is emptied.
    pub(super) checkpoint_at: u64,
    /// Finished jobs in the store.
    pub(super) finished: u64,
    pub(super) messages: Receiver<Message>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) retention_due: Instant,
    /// Lines of the audit log that were not kept until there was room.
    pub(super) lines_dropped: u64,
    pub(super) _lock: Lock,
}

/// What a writer has from one turn to the next.
#[derive(Default)]
struct Backlog {
    /// What could not be written yet.
    batch: Vec<Change>,
    /// Something was written since the write-ahead log was emptied.
    written: bool,
    /// The number of the last change that has come.
    last: u64,
    /// There are more records to delete.
    more: bool,
}

/// What a transaction did.
#[derive(Default)]
struct Done {
    finished: u64,
    /// What came of each change of who is who, in their order.
    access: VecDeque<Written>,
    deleted: u64,
    more: bool,
    /// All that was too old has been deleted.
    aged: bool,
    /// The number of this transaction; 0: there was nothing to write.
    number: u64,
}

impl Writer {
    /// Returns when it was told to end; an error means that what was written
    /// last may not be on the disk, and nothing may be written any more.
    pub(super) fn run(mut self) -> Result<(), Error> {
        self.checkpoint_at = self.files.log_bytes() + CHECKPOINT;
        let mut backlog = Backlog::default();
        loop {
            let next = match self.messages.recv_timeout(self.patience(&backlog)) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::End),
            };
            if self.turn(&mut backlog, next)?.is_break() {
                return Ok(());
            }
        }
    }

    /// As [`Writer::run`], as a task of a simulation, with a disk that takes its time.
    #[cfg(test)]
    pub(super) async fn run_simulated(mut self) -> Result<(), Error> {
        use std::sync::mpsc::TryRecvError;

        self.checkpoint_at = self.files.log_bytes() + CHECKPOINT;
        let mut backlog = Backlog::default();
        let mut idle_since = tokio::time::Instant::now();
        loop {
            crate::simulation::disk().await;
            let next = match self.messages.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Disconnected) => Some(Message::End),
                Err(TryRecvError::Empty) if idle_since.elapsed() < self.patience(&backlog) => {
                    continue;
                }
                Err(TryRecvError::Empty) => None,
            };
            if self.turn(&mut backlog, next)?.is_break() {
                return Ok(());
            }
            idle_since = tokio::time::Instant::now();
        }
    }

    /// How long the next message is waited for before something else is to be done.
    fn patience(&self, backlog: &Backlog) -> Duration {
        match (backlog.batch.is_empty(), backlog.written) {
            _ if backlog.more => Duration::ZERO,
            (false, _) => RETRY,
            (true, true) => IDLE,
            (true, false) => (self.retention_due).saturating_duration_since(Instant::now()),
        }
    }

    /// Writes this and all that has come behind it; None: nothing has come in time.
    fn turn(
        &mut self,
        backlog: &mut Backlog,
        mut next: Option<Message>,
    ) -> Result<ControlFlow<()>, Error> {
        let mut ending = false;
        let idle = next.is_none();
        while let Some(message) = next.take() {
            match message {
                Message::Change(number, change) => {
                    backlog.last = number;
                    backlog.batch.push(*change);
                }
                Message::End => ending = true,
                #[cfg(test)]
                Message::MaxPages(pages) => {
                    let set = format!("PRAGMA max_page_count = {pages}");
                    self.connection.query_row(&set, (), |_| Ok(()))?;
                }
                #[cfg(test)]
                Message::LookAtAges => self.retention_due = Instant::now(),
            }
            if !ending && backlog.batch.len() < BATCH {
                next = self.messages.try_recv().ok();
            }
        }
        let count = backlog.batch.len();
        match self.commit_in_any_room(&backlog.batch) {
            Ok(mut done) => {
                self.files.check()?;
                if done.number > 0 {
                    self.lines_dropped = 0;
                }
                self.finished = (self.finished + done.finished).saturating_sub(done.deleted);
                backlog.written |= done.number > 0;
                backlog.more = done.more;
                for change in backlog.batch.drain(..) {
                    // Who asked may have gone away.
                    match change {
                        Change::Start { done, .. } | Change::StartGroup { done, .. } => {
                            drop(done.send(Ok(())));
                        }
                        Change::Access { done: tell, .. } => {
                            let written = done.access.pop_front().ok_or(Error::Ended);
                            drop(tell.send(written));
                        }
                        _ => {}
                    }
                }
                self.progress.send_modify(|progress| {
                    if (progress.full || progress.busy) && count > 0 {
                        tracing::warn!("the store can be written again");
                    }
                    progress.full &= count == 0;
                    progress.busy &= count == 0;
                    progress.committed = backlog.last;
                    progress.deleted += done.deleted;
                    progress.commits = progress.commits.max(done.number);
                });
                if done.aged {
                    self.files.reserve();
                }
            }
            Err(error) if error.is_full() || error.is_busy() => {
                self.refuse(&mut backlog.batch, error.is_busy());
                backlog.more = false;
            }
            Err(error) => return Err(error),
        }
        if self.files.log_bytes() >= self.checkpoint_at || (idle && backlog.written) {
            self.checkpoint()?;
            backlog.written = false;
        }
        if !ending {
            return Ok(ControlFlow::Continue(()));
        }
        if !backlog.batch.is_empty() {
            tracing::warn!(
                changes = backlog.batch.len(),
                "not written: no space; workers tell of them again"
            );
        }
        Ok(ControlFlow::Break(()))
    }

    /// As [`Writer::commit`]; without room it empties the write-ahead log, and tries
    /// once more.
    fn commit_in_any_room(&mut self, batch: &[Change]) -> Result<Done, Error> {
        match self.commit(batch) {
            Err(error) if error.is_full() => {
                let before = self.files.log_bytes();
                self.checkpoint()?;
                match self.files.log_bytes() < before {
                    true => self.commit(batch),
                    false => Err(error),
                }
            }
            done => done,
        }
    }

    /// There is no room, or another program has the lock: starts are refused,
    /// everything else is kept.
    fn refuse(&mut self, batch: &mut Vec<Change>, is_busy: bool) {
        let why = || match is_busy {
            true => Error::Busy,
            false => Error::Full,
        };
        let kept = std::mem::take(batch).into_iter().filter_map(|change| {
            match change {
                Change::Start { done, .. } | Change::StartGroup { done, .. } => {
                    drop(done.send(Err(why())));
                }
                Change::Access { done, .. } => drop(done.send(Err(why()))),
                change => return Some(change),
            }
            None
        });
        batch.extend(kept);
        self.lines_dropped += forget_what_is_over(batch);
        self.progress.send_modify(|progress| {
            match is_busy {
                true if !progress.busy => tracing::error!(
                    "another program holds the lock of the store: starts are refused until it \
                     lets go"
                ),
                false if !progress.full => tracing::error!(
                    "no space for the store: starts are refused until there is some"
                ),
                true | false => {}
            }
            progress.busy = is_busy;
            progress.full = !is_busy;
        });
    }

    fn commit(&mut self, batch: &[Change]) -> Result<Done, Error> {
        let aged = self.retention_due <= Instant::now();
        if batch.is_empty() && !aged && self.finished <= self.keep.finished {
            return Ok(Done::default());
        }
        let change = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut done = Done::default();
        let now = self.time.now();
        for one in batch {
            // So that those that ended first are deleted first.
            let at = now.counted + Duration::from_micros(done.finished);
            match one {
                Change::Access {
                    change: what,
                    audit,
                    ..
                } => {
                    let written = access::apply(&change, what, audit.as_ref(), at)?;
                    done.access.push_back(written);
                }
                one => done.finished += apply(&change, one, at)?,
            }
        }
        if self.lines_dropped > 0 {
            access::append(&change, &dropped(self.lines_dropped, now.wall), now.counted)?;
        }
        let surplus = (self.finished + done.finished).saturating_sub(self.keep.finished);
        let age = aged.then(|| self.time.of_age());
        let before = age.and_then(|age| age.checked_sub(self.keep.time).ok());
        done.deleted = delete(&change, surplus, before, now.counted)?;
        if let Some(age) = age {
            if let Ok(before) = age.checked_sub(self.keep.audit) {
                // What ends by the wall clock has ended when it says so.
                access::delete(&change, before, age.min(now.wall))?;
            }
            delete_keys(&change, age)?;
            schema::keep_time(&change, &self.time)?;
        }
        done.more = done.deleted == DELETED_AT_ONCE;
        let number: i64 = change
            .prepare_cached(
                "UPDATE meta SET value = value + 1 WHERE key = 'commits' RETURNING value",
            )?
            .query_row((), |row| row.get(0))?;
        done.number = number.unsigned_abs();
        change.commit()?;
        if aged && !done.more {
            self.retention_due = Instant::now() + RETENTION;
            done.aged = true;
        }
        Ok(done)
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        // A read is short, and this as well.
        let _nobody_reads = self.readers.none();
        self.connection.busy_timeout(CHECKPOINT_PATIENCE)?;
        let done = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
        self.connection.busy_timeout(PATIENCE)?;
        self.checkpoint_at = self.files.log_bytes() + CHECKPOINT;
        match done.map_err(Error::from) {
            // What is in the log is safe there.
            Err(error) if error.is_full() || error.is_busy() => Ok(()),
            done => done,
        }
    }
}

/// What waits for room does not grow with the time: of each worker the last word is
/// kept, and of the audit log so many lines. Returns how many of those were dropped.
fn forget_what_is_over(batch: &mut Vec<Change>) -> u64 {
    let mut workers = HashSet::new();
    let mut has_heard = false;
    let mut lines = 0;
    for change in batch.iter() {
        lines += usize::from(matches!(change, Change::Audit(_)));
    }
    let mut dropped = lines.saturating_sub(MOST_LINES_KEPT);
    let count = dropped as u64;
    let mut kept: Vec<Change> = Vec::with_capacity(batch.len());
    // The last word of each is met first, and of the lines the last ones are dropped.
    for change in std::mem::take(batch).into_iter().rev() {
        let is_over = match &change {
            Change::Worker(worker) => !workers.insert(worker.id),
            Change::Heard(_) => std::mem::replace(&mut has_heard, true),
            Change::Audit(_) if dropped > 0 => {
                dropped -= 1;
                true
            }
            _ => false,
        };
        if !is_over {
            kept.push(change);
        }
    }
    kept.reverse();
    *batch = kept;
    count
}

/// The line that stands for those that were not kept.
fn dropped(lines: u64, at: Timestamp) -> AuditEntry {
    AuditEntry {
        at,
        who: "scheduler".to_owned(),
        who_id: None,
        address: None,
        action: "drop lines".to_owned(),
        target: String::new(),
        details: serde_json::json!({ "lines_without_room": lines }),
        result: "disk_full".to_owned(),
    }
}

/// Returns how many jobs ended with it. It is recorded `at` this time.
fn apply(to: &Transaction<'_>, change: &Change, at: Timestamp) -> rusqlite::Result<u64> {
    match change {
        Change::Start {
            record,
            env,
            key,
            audit,
            ..
        } => {
            access::append(to, audit, at)?;
            insert(to, record, stored_env(env), at)?;
            keep_key(to, key.as_ref(), record.id, None)?;
            Ok(0)
        }
        Change::StartGroup {
            group,
            jobs,
            env,
            key,
            audit,
            ..
        } => {
            access::append(to, audit, at)?;
            to.prepare_cached(
                "INSERT INTO groups (id, name, created_us, env, spec, record)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                group.id.as_bytes(),
                group.spec.name,
                group.created_at.as_microsecond(),
                stored_env(env),
                json(&*group.spec),
                json(&**group),
            ])?;
            for job in jobs.iter() {
                insert(to, job, None, at)?;
            }
            if let Some(first) = jobs.first() {
                keep_key(to, key.as_ref(), first.id, Some(group.id))?;
            }
            Ok(0)
        }
        Change::Group(group) => {
            let ended_us = group.ended_at.map(Timestamp::as_microsecond);
            to.prepare_cached(
                "UPDATE groups SET ended_us = ?, env = iif(?, NULL, env), record = ? WHERE id = ?",
            )?
            .execute(params![
                ended_us,
                ended_us.is_some(),
                json(&**group),
                group.id.as_bytes()
            ])?;
            Ok(0)
        }
        Change::Audit(entry) => {
            access::append(to, entry, at)?;
            Ok(0)
        }
        // Done where its answer is kept.
        Change::Access { .. } => Ok(0),
        Change::Job(record) => update(to, record, at),
        Change::Adopted(record) => {
            let inserted = insert(to, record, None, at)?;
            if inserted > 0 {
                ends::count(to, record)?;
            }
            Ok(u64::from(inserted > 0 && record.is_final()))
        }
        Change::Worker(worker) => {
            to.prepare_cached(
                // What is ordered of one that is known is recorded where it is ordered.
                "INSERT INTO workers
                 (id, name, address, version, left, registered_us, heard_us, told, orders)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT (id) DO UPDATE SET
                     name = excluded.name, address = excluded.address,
                     version = excluded.version, left = excluded.left,
                     registered_us = excluded.registered_us, heard_us = excluded.heard_us,
                     told = excluded.told",
            )?
            .execute(params![
                worker.id.as_bytes(),
                worker.name,
                worker.address,
                worker.version,
                worker.left,
                worker.registered_at.as_microsecond(),
                worker.heard_at.map(Timestamp::as_microsecond),
                json(&worker.told),
                json(&worker.orders),
            ])?;
            Ok(0)
        }
        Change::Heard(workers) => {
            let mut write = to.prepare_cached("UPDATE workers SET heard_us = ? WHERE id = ?")?;
            for (id, at) in workers {
                write.execute(params![at.as_microsecond(), id.as_bytes()])?;
            }
            Ok(0)
        }
        Change::WorkerGone(id) => {
            access::remove_worker(to, *id)?;
            Ok(0)
        }
        Change::Forgotten(worker, jobs) => {
            let mut write = to.prepare_cached("DELETE FROM forget WHERE job = ? AND worker = ?")?;
            for job in jobs {
                write.execute([job.as_bytes(), worker.as_bytes()])?;
            }
            Ok(0)
        }
        Change::OlderThan(commits) => {
            match commits {
                Some(commits) => {
                    let commits = i64::try_from(*commits).unwrap_or(i64::MAX);
                    to.execute(
                        "INSERT OR REPLACE INTO meta VALUES ('older_than', ?)",
                        [commits],
                    )?
                }
                None => to.execute("DELETE FROM meta WHERE key = 'older_than'", ())?,
            };
            Ok(0)
        }
        Change::Epoch(epoch) => {
            let epoch = i64::try_from(*epoch).unwrap_or(i64::MAX);
            to.prepare_cached("UPDATE meta SET value = max(value, ?) WHERE key = 'epoch'")?
                .execute([epoch])?;
            Ok(0)
        }
    }
}

/// Its age counts from when its end is recorded: the clock that says when it ended is
/// that of another machine.
fn ended_us(record: &Record, at: Timestamp) -> Option<i64> {
    record.is_final().then(|| at.as_microsecond())
}

fn insert(
    to: &Transaction<'_>,
    record: &Record,
    env: Option<String>,
    at: Timestamp,
) -> rusqlite::Result<usize> {
    to.prepare_cached(
        "INSERT OR IGNORE INTO jobs
         (id, name, worker, job_group, group_index, state, created_us, ended_us, env, spec,
          record)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        record.id.as_bytes(),
        record.spec.name,
        worker(record),
        record.group().map(|group| *group.as_bytes()),
        record.member.as_ref().map(|member| member.index),
        record.api_state().as_str(),
        record.created_at.as_microsecond(),
        ended_us(record, at),
        env,
        // That of a group's job is the group's.
        record.member.is_none().then(|| json(&*record.spec)),
        json(record),
    ])
}

fn stored_env(env: &Env) -> Option<String> {
    (!env.is_empty()).then(|| json(env))
}

fn keep_key(
    to: &Transaction<'_>,
    key: Option<&Key>,
    job: JobId,
    group: Option<GroupId>,
) -> rusqlite::Result<()> {
    if let Some(key) = key {
        let group = group.map(|group| *group.as_bytes());
        to.prepare_cached("INSERT INTO keys (key, job, job_group, body) VALUES (?, ?, ?, ?)")?
            .execute(params![key.key, job.as_bytes(), group, key.body])?;
    }
    Ok(())
}

/// Deletes the keys of records that were deleted long ago, and the oldest of those
/// beyond what is kept.
fn delete_keys(to: &Transaction<'_>, now: Timestamp) -> rusqlite::Result<()> {
    to.prepare_cached(
        "DELETE FROM keys WHERE key IN
             (SELECT key FROM keys WHERE gone_us < ? ORDER BY gone_us LIMIT ?)",
    )?
    .execute([
        now.as_microsecond().saturating_sub(KEYS_KEPT_US),
        MOST_KEYS_KEPT,
    ])?;
    to.prepare_cached(
        "DELETE FROM keys WHERE key IN
             (SELECT key FROM keys WHERE gone_us IS NOT NULL
              ORDER BY gone_us DESC LIMIT -1 OFFSET ?)",
    )?
    .execute([MOST_KEYS_KEPT])?;
    Ok(())
}

fn worker(record: &Record) -> Option<[u8; 16]> {
    record.worker().map(|worker| *worker.as_bytes())
}

fn update(to: &Transaction<'_>, record: &Record, at: Timestamp) -> rusqlite::Result<u64> {
    let changed = to
        .prepare_cached(
            "UPDATE jobs SET worker = ?, state = ?, ended_us = ?, env = iif(?, env, NULL), record = ?
             WHERE id = ? AND ended_us IS NULL",
        )?
        .execute(params![
            worker(record),
            record.api_state().as_str(),
            ended_us(record, at),
            record.needs_env(),
            json(record),
            record.id.as_bytes(),
        ])?;
    if changed > 0 && !record.attempts.is_empty() {
        let mut write = to
            .prepare_cached("INSERT OR IGNORE INTO attempts (run, job, worker) VALUES (?, ?, ?)")?;
        // Those before were written when they were the last.
        for part in record.parts().iter().rev().take(2) {
            let (run, worker) = (part.run.as_bytes(), part.place.worker.as_bytes());
            write.execute(params![run, record.id.as_bytes(), worker])?;
        }
    }
    if changed > 0 {
        ends::count(to, record)?;
    }
    Ok(u64::from(changed > 0 && record.is_final()))
}

/// Deletes the records that ended first: `surplus` of them, and those that
/// ended before `before`; it is `now`. Their workers are to delete the output.
fn delete(
    to: &Transaction<'_>,
    surplus: u64,
    before: Option<Timestamp>,
    now: Timestamp,
) -> rusqlite::Result<u64> {
    let surplus = surplus.min(DELETED_AT_ONCE);
    if surplus == 0 && before.is_none() {
        return Ok(0);
    }
    let mut oldest = to.prepare_cached(
        "SELECT number, id, worker, ended_us, job_group FROM jobs
         WHERE ended_us IS NOT NULL ORDER BY ended_us LIMIT ?",
    )?;
    let mut forget =
        to.prepare_cached("INSERT OR IGNORE INTO forget (worker, job) VALUES (?, ?)")?;
    let mut forget_attempts = to.prepare_cached(
        "INSERT OR IGNORE INTO forget (worker, job)
         SELECT worker, run FROM attempts WHERE job = ?",
    )?;
    let mut delete = to.prepare_cached("DELETE FROM jobs WHERE number = ?")?;
    let mut empty = to.prepare_cached(
        "DELETE FROM groups WHERE id = ?1
         AND NOT EXISTS (SELECT 1 FROM jobs WHERE job_group = ?1)",
    )?;
    let mut ends = to.prepare_cached("DELETE FROM group_ends WHERE job_group = ?")?;
    let gone_us = now.as_microsecond();
    let mut keys = to.prepare_cached(
        "UPDATE keys SET gone_us = ? WHERE job = ? AND job_group IS NULL AND gone_us IS NULL",
    )?;
    let mut keys_of_group =
        to.prepare_cached("UPDATE keys SET gone_us = ? WHERE job_group = ? AND gone_us IS NULL")?;
    let limit = match before {
        Some(_) => DELETED_AT_ONCE,
        None => surplus,
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let before = before.map_or(i64::MIN, Timestamp::as_microsecond);
    let found = oldest
        .query_map([limit], |row| {
            let worker: Option<[u8; 16]> = row.get(2)?;
            let group: Option<[u8; 16]> = row.get(4)?;
            let job = (read::job_id(row, 1)?, worker, group);
            Ok((row.get::<_, i64>(0)?, job, row.get::<_, i64>(3)?))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut deleted = 0;
    for (number, (job, worker, group), ended_us) in found {
        if deleted >= surplus && ended_us >= before {
            break;
        }
        let attempts = forget_attempts.execute([job.as_bytes()])?;
        if let Some(worker) = worker
            && attempts == 0
        {
            forget.execute(params![worker, job.as_bytes()])?;
        }
        delete.execute([number])?;
        keys.execute(params![gone_us, job.as_bytes()])?;
        if let Some(group) = group
            && empty.execute([group])? > 0
        {
            ends.execute([group])?;
            keys_of_group.execute(params![gone_us, group])?;
        }
        deleted += 1;
    }
    Ok(deleted)
}

/// Records are plain: they always have a JSON form.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl Error {
    /// Where there is no room: that alone is wrong.
    pub(super) fn or_full(self) -> Self {
        match self.is_full() {
            true => Self::Full,
            false => self,
        }
    }

    /// Another program has the lock, and nothing was written.
    pub(super) fn is_busy(&self) -> bool {
        match self {
            Self::Busy => true,
            Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => matches!(
                failure.code,
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked
            ),
            _ => false,
        }
    }

    /// There was no room on the disk: nothing else is wrong.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Full => true,
            Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => {
                // The index of the WAL is a file as well, which is never synced.
                failure.code == ErrorCode::DiskFull
                    || failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE
            }
            _ => false,
        }
    }
}
