//! What is read while others write: on connections of its own, on threads that
//! may block, and never for long.

use std::{
    cmp::Reverse,
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard},
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::{Env, Error, schema};
use crate::{
    api,
    blocking::spawn_blocking,
    ids::{GroupId, JobId, WorkerId},
    roles::scheduler::jobs::{Cut, Filter, Group, Record, Room},
};

/// So many reads at once; more would only wait for the same disk.
const AT_ONCE: usize = 8;

/// Where a page begins: behind this job.
pub(in crate::roles::scheduler) type Cursor = (Timestamp, JobId);

/// The jobs between two, in the order of a page: the newest first.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::roles::scheduler) struct Range {
    /// None: up to the oldest.
    pub(in crate::roles::scheduler) newer_than: Option<Cursor>,
    /// None: from the newest.
    pub(in crate::roles::scheduler) after: Option<Cursor>,
}

/// The job of an idempotency key, and the digest of what was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::roles::scheduler) struct KeptKey {
    /// Of a group the first.
    pub(in crate::roles::scheduler) job: JobId,
    pub(in crate::roles::scheduler) group: Option<GroupId>,
    /// Its record was deleted.
    pub(in crate::roles::scheduler) is_gone: bool,
    pub(in crate::roles::scheduler) body: Vec<u8>,
}

/// Connections that only read.
#[derive(Debug)]
pub(super) struct Readers {
    folder: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    /// Held by each read, and by the writer while it empties the write-ahead log,
    /// which a read that goes on would keep from being emptied.
    gate: RwLock<()>,
}

impl Readers {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            gate: RwLock::default(),
        }
    }

    /// Has `work` done with a connection, on a thread where it may block.
    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Reader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.permits.clone().acquire_owned().await;
        let readers = self.clone();
        let done = spawn_blocking(move || {
            let _permit = permit;
            let idle = readers.idle().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => schema::open_reader(&readers.folder)?,
            };
            let reader = Reader(connection);
            let reading = readers.gate.read().unwrap_or_else(PoisonError::into_inner);
            let found = work(&reader)?;
            drop(reading);
            readers.idle().push(reader.0);
            Ok(found)
        });
        done.await.unwrap_or(Err(Error::Ended))
    }

    /// Waits until no read is under way; as long as it is held none begins. Blocks.
    pub(super) fn none(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The questions that can be asked.
pub(super) struct Reader(pub(super) Connection);

impl Reader {
    pub(super) fn job(&self, id: JobId) -> Result<Option<Record>, Error> {
        let mut query = self
            .0
            .prepare_cached(&format!("SELECT {STORED} FROM jobs WHERE id = ?"))?;
        let found = query.query_row([id.as_bytes()], stored).optional()?;
        found.map(record).transpose()
    }

    /// The newest finished job, of that name.
    pub(super) fn newest(&self, name: Option<String>) -> Result<Option<Record>, Error> {
        let filter = Filter {
            name,
            ..Filter::default()
        };
        Ok(self
            .page(&filter, Room::of(1), Range::default())?
            .jobs
            .pop())
    }

    /// At most `limit` finished jobs whose ids begin with `digits`.
    pub(super) fn with_prefix(
        &self,
        first: JobId,
        digits: &str,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        let mut query = self.0.prepare_cached(&format!(
            "SELECT {STORED} FROM jobs WHERE id >= ? AND ended_us IS NOT NULL ORDER BY id LIMIT ?"
        ))?;
        let rows = query.query_map(params![first.as_bytes(), count(limit)], stored)?;
        let mut found = Vec::new();
        for row in rows {
            let record = record(row?)?;
            if !record.id.starts_with(digits) {
                break;
            }
            found.push(record);
        }
        Ok(found)
    }

    pub(super) fn find_group(&self, id: GroupId) -> Result<Option<Group>, Error> {
        let mut query = self
            .0
            .prepare_cached("SELECT record, spec FROM groups WHERE id = ?")?;
        let mut rows = query.query([id.as_bytes()])?;
        rows.next()?.map(group).transpose()
    }

    /// At most `limit` groups whose ids begin with `digits`.
    pub(super) fn groups_with_prefix(
        &self,
        first: GroupId,
        digits: &str,
        limit: usize,
    ) -> Result<Vec<Group>, Error> {
        let mut query = self
            .0
            .prepare_cached("SELECT record, spec FROM groups WHERE id >= ? ORDER BY id LIMIT ?")?;
        let mut rows = query.query(params![first.as_bytes(), count(limit)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let group = group(row)?;
            if !group.id.starts_with(digits) {
                break;
            }
            found.push(group);
        }
        Ok(found)
    }

    /// The finished jobs of the group from that number on, as many as there is room for.
    pub(super) fn members(
        &self,
        group: GroupId,
        from: u32,
        room: Room,
    ) -> Result<Cut<Record>, Error> {
        let mut query = self.0.prepare_cached(&format!(
            "SELECT {STORED} FROM jobs INDEXED BY jobs_by_group
             WHERE job_group = ? AND group_index >= ? AND ended_us IS NOT NULL
             ORDER BY group_index LIMIT ?"
        ))?;
        let limit = count(room.jobs() + 1);
        let rows = query.query_map(params![group.as_bytes(), from, limit], stored)?;
        room.fill(rows.map(|row| sized(record(row?)?)))
    }

    /// The names of the newest finished jobs, of at most `limit`.
    pub(super) fn newest_names(&self, limit: usize) -> Result<Vec<String>, Error> {
        let mut query = self
            .0
            .prepare_cached("SELECT name FROM jobs WHERE number = ?")?;
        let mut names = Vec::new();
        for number in self.keys(&Filter::default(), limit, Range::default())? {
            let found = query.query_row([number], |row| row.get::<_, Option<String>>(0));
            names.extend(found.optional()?.flatten());
        }
        Ok(names)
    }

    /// The newest finished jobs of that range, the newest first, as many as there is
    /// room for.
    pub(super) fn page(
        &self,
        filter: &Filter,
        room: Room,
        range: Range,
    ) -> Result<Cut<Record>, Error> {
        let mut query = self
            .0
            .prepare_cached(&format!("SELECT {STORED} FROM jobs WHERE number = ?"))?;
        let keys = self.keys(filter, room.jobs() + 1, range)?;
        let found = keys.into_iter().filter_map(|number| {
            // One that was deleted this very moment is no longer there.
            let found = query.query_row([number], stored).optional().transpose()?;
            Some(
                found
                    .map_err(Error::from)
                    .and_then(|found| sized(record(found)?)),
            )
        });
        room.fill(found)
    }

    /// At most `limit` finished jobs of that range, the newest first, by their numbers.
    fn keys(&self, filter: &Filter, limit: usize, range: Range) -> Result<Vec<i64>, Error> {
        // A state at a time, because each index is in order within a state only.
        let mut found: Vec<(i64, JobId, i64)> = Vec::new();
        for state in api::JobState::ALL {
            if state.is_final() && filter.has_state(state) {
                found.extend(self.page_of(state, filter, limit, range)?);
            }
        }
        found.sort_unstable_by_key(|(created_us, id, _)| Reverse((*created_us, *id)));
        found.truncate(limit);
        Ok(found.into_iter().map(|(_, _, number)| number).collect())
    }

    fn page_of(
        &self,
        state: api::JobState,
        filter: &Filter,
        limit: usize,
        range: Range,
    ) -> Result<Vec<(i64, JobId, i64)>, Error> {
        let state = state.as_str();
        let limit = count(limit);
        let edge = |end: Option<Cursor>, open: i64| match end {
            Some((time, id)) => (time.as_microsecond(), id.as_bytes().to_vec()),
            None => (open, Vec::new()),
        };
        let (before_us, before_id) = edge(range.after, i64::MAX);
        let (from_us, from_id) = edge(range.newer_than, i64::MIN);
        let worker = filter.worker.map(|worker| worker.as_bytes().to_vec());
        let mut values: Vec<&dyn ToSql> =
            vec![&state, &before_us, &before_id, &limit, &from_us, &from_id];
        let mut also = String::new();
        let mut index = "jobs_by_state";
        if let Some(worker) = &worker {
            values.push(worker);
            also.push_str(" AND worker = ?7");
            index = "jobs_by_worker";
        }
        if let Some(name) = &filter.name {
            values.push(name);
            also.push_str(&format!(" AND name = ?{}", values.len()));
            index = match worker {
                Some(_) => "jobs_by_name_and_worker",
                None => "jobs_by_name",
            };
        }
        let mut query = self.0.prepare_cached(&format!(
            "SELECT created_us, id, number FROM jobs INDEXED BY {index}
             WHERE ended_us IS NOT NULL AND state = ?1{also} AND (created_us, id) < (?2, ?3)
                 AND (created_us, id) > (?5, ?6)
             ORDER BY created_us DESC, id DESC LIMIT ?4"
        ))?;
        let rows = query.query_map(values.as_slice(), |row| {
            Ok((row.get(0)?, job_id(row, 1)?, row.get(2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Those of `jobs`, runs, that are recorded, or were and are being forgotten.
    pub(super) fn known(&self, jobs: &[JobId]) -> Result<HashSet<JobId>, Error> {
        let mut query = self.0.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?1)
                 OR EXISTS (SELECT 1 FROM attempts WHERE run = ?1)
                 OR EXISTS (SELECT 1 FROM forget WHERE job = ?1)",
        )?;
        let mut known = HashSet::new();
        for job in jobs {
            if query.query_row([job.as_bytes()], |row| row.get(0))? {
                known.insert(*job);
            }
        }
        Ok(known)
    }

    pub(super) fn key(&self, key: &str) -> Result<Option<KeptKey>, Error> {
        let mut query = self.0.prepare_cached(
            "SELECT job, body, job_group, gone_us IS NOT NULL FROM keys WHERE key = ?",
        )?;
        let found = query.query_row([key], |row| {
            Ok(KeptKey {
                job: job_id(row, 0)?,
                body: row.get(1)?,
                group: row.get::<_, Option<_>>(2)?.map(GroupId::from_bytes),
                is_gone: row.get(3)?,
            })
        });
        Ok(found.optional()?)
    }

    /// At most `limit` jobs that `worker` is to forget, behind the place `after`
    /// in the list; each with its place.
    pub(super) fn to_forget(
        &self,
        worker: WorkerId,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(i64, JobId)>, Error> {
        let mut query = self.0.prepare_cached(
            "SELECT number, job FROM forget WHERE worker = ? AND number > ? ORDER BY number LIMIT ?",
        )?;
        let values = params![worker.as_bytes(), after, count(limit)];
        let rows = query.query_map(values, |row| Ok((row.get(0)?, job_id(row, 1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// What a record is made of: itself, and its spec, or that of its group.
const STORED: &str =
    "record, coalesce(spec, (SELECT spec FROM groups WHERE id = job_group)) AS spec";

fn stored(row: &Row<'_>) -> rusqlite::Result<[String; 2]> {
    Ok([row.get("record")?, row.get("spec")?])
}

fn sized(record: Record) -> Result<(Record, usize), Error> {
    let bytes = record.shown_bytes();
    Ok((record, bytes))
}

pub(super) fn record([record, spec]: [String; 2]) -> Result<Record, Error> {
    let mut record: Record = json(&record)?;
    record.spec = Arc::new(json(&spec)?);
    Ok(record)
}

pub(super) fn group(row: &Row<'_>) -> Result<Group, Error> {
    let mut group: Group = json(&row.get::<_, String>("record")?)?;
    group.spec = Arc::new(json(&row.get::<_, String>("spec")?)?);
    Ok(group)
}

pub(super) fn env(row: &Row<'_>) -> Result<Env, Error> {
    let text: Option<String> = row.get("env")?;
    text.map_or_else(|| Ok(Env::new()), |text| json(&text))
}

pub(super) fn json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(Error::Damaged)
}

pub(super) fn job_id(row: &Row<'_>, column: usize) -> rusqlite::Result<JobId> {
    Ok(JobId::from_bytes(row.get(column)?))
}

pub(super) fn worker_id(row: &Row<'_>, column: usize) -> rusqlite::Result<WorkerId> {
    Ok(WorkerId::from_bytes(row.get(column)?))
}
