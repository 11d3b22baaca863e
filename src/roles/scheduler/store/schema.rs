//! The tables, how an older store becomes one of today, and what every
//! connection to it is told first.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior};

use super::{Error, access, ends};
use crate::roles::scheduler::time::{KeptTime, Time};

/// The file in the scheduler's data folder.
pub(super) const FILE: &str = "store.sqlite";

/// One entry for each version, the first makes version 1 of an empty file.
/// Entries are only ever added: each has run on somebody's disk.
pub(super) const MIGRATIONS: [&str; 7] = [
    FIRST,
    access::TABLES,
    WORKERS,
    QUEUE,
    ATTEMPTS,
    COMMITS,
    ENDS,
];

const FIRST: &str = "
-- Epochs begin with the time, so that those of a store that was made anew are
-- above those of the one before, which workers remember.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', unixepoch());

CREATE TABLE workers (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    version TEXT NOT NULL,
    left INTEGER NOT NULL,
    registered_us INTEGER NOT NULL,
    heard_us INTEGER
) STRICT, WITHOUT ROWID;

-- `record` is the whole record as JSON; what is beside it is there to be found
-- by; `ended_us` is what retention counts from. `env` has the values of the environment until the start is confirmed.
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    name TEXT,
    worker BLOB NOT NULL,
    state TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    ended_us INTEGER,
    env TEXT,
    record TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_live ON jobs (id) WHERE ended_us IS NULL;
-- Live jobs are in memory: pages read finished ones alone, a state at a time.
CREATE INDEX jobs_ended ON jobs (ended_us) WHERE ended_us IS NOT NULL;
CREATE INDEX jobs_by_state ON jobs (state, created_us, id)
    WHERE ended_us IS NOT NULL;
CREATE INDEX jobs_by_worker ON jobs (worker, state, created_us, id)
    WHERE ended_us IS NOT NULL;
CREATE INDEX jobs_by_name ON jobs (name, state, created_us, id)
    WHERE ended_us IS NOT NULL AND name IS NOT NULL;
CREATE INDEX jobs_by_name_and_worker ON jobs (name, worker, state, created_us, id)
    WHERE ended_us IS NOT NULL AND name IS NOT NULL;

CREATE TABLE keys (
    key TEXT PRIMARY KEY,
    job BLOB NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_job ON keys (job);

CREATE TABLE forget (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    worker BLOB NOT NULL,
    job BLOB NOT NULL UNIQUE
) STRICT;
CREATE INDEX forget_by_worker ON forget (worker, number);
";

/// A job need not have a worker, and what is to be run is stored apart: once for
/// all jobs of a group.
const QUEUE: &str = "
CREATE TABLE groups (
    id BLOB PRIMARY KEY,
    name TEXT,
    created_us INTEGER NOT NULL,
    ended_us INTEGER,
    env TEXT,
    spec TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX groups_live ON groups (id) WHERE ended_us IS NULL;

CREATE TABLE jobs_new (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    name TEXT,
    worker BLOB,
    job_group BLOB,
    group_index INTEGER,
    state TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    ended_us INTEGER,
    env TEXT,
    spec TEXT,
    record TEXT NOT NULL
) STRICT;
INSERT INTO jobs_new
    SELECT number, id, name, worker, NULL, NULL, state, created_us, ended_us, env, record,
        json_set(record, '$.place', json_object(
            'worker', record ->> '$.worker',
            'worker_name', record ->> '$.worker_name',
            'session', record ->> '$.session'))
    FROM jobs;
DROP TABLE jobs;
ALTER TABLE jobs_new RENAME TO jobs;
CREATE INDEX jobs_live ON jobs (id) WHERE ended_us IS NULL;
CREATE INDEX jobs_ended ON jobs (ended_us) WHERE ended_us IS NOT NULL;
CREATE INDEX jobs_by_state ON jobs (state, created_us, id)
    WHERE ended_us IS NOT NULL;
CREATE INDEX jobs_by_worker ON jobs (worker, state, created_us, id)
    WHERE ended_us IS NOT NULL;
CREATE INDEX jobs_by_name ON jobs (name, state, created_us, id)
    WHERE ended_us IS NOT NULL AND name IS NOT NULL;
CREATE INDEX jobs_by_name_and_worker ON jobs (name, worker, state, created_us, id)
    WHERE ended_us IS NOT NULL AND name IS NOT NULL;
CREATE INDEX jobs_by_group ON jobs (job_group, group_index)
    WHERE job_group IS NOT NULL;
";

const WORKERS: &str = "
-- What the worker told of itself, and what admins have ordered of it, as JSON.
ALTER TABLE workers ADD COLUMN told TEXT NOT NULL DEFAULT '{}';
ALTER TABLE workers ADD COLUMN orders TEXT NOT NULL DEFAULT '{}';
";

/// Under which ids the workers have the attempts of jobs that had several.
const ATTEMPTS: &str = "
CREATE TABLE attempts (
    run BLOB PRIMARY KEY,
    job BLOB NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    worker BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX attempts_by_job ON attempts (job);
";

/// How many transactions were committed: workers remember the number, and so notice
/// records that are older than those they reported to.
const COMMITS: &str = "INSERT INTO meta VALUES ('commits', 0);";

/// How the jobs of a group ended; keys that outlive the record of what they started;
/// and the time by which records are deleted.
const ENDS: &str = "
CREATE TABLE group_ends (
    job_group BLOB NOT NULL,
    state TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    -- Of the first of them in the group's order; of those that were stopped the highest.
    exit_code INTEGER NOT NULL,
    first_index INTEGER NOT NULL,
    ended_us INTEGER NOT NULL,
    PRIMARY KEY (job_group, state)
) STRICT, WITHOUT ROWID;

-- `gone_us`: when the record of the job, or of the whole group, was deleted.
CREATE TABLE keys_new (
    key TEXT PRIMARY KEY,
    job BLOB NOT NULL,
    job_group BLOB,
    body BLOB NOT NULL,
    gone_us INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO keys_new
    SELECT keys.key, keys.job, jobs.job_group, keys.body, NULL
    FROM keys JOIN jobs ON jobs.id = keys.job;
DROP TABLE keys;
ALTER TABLE keys_new RENAME TO keys;
CREATE INDEX keys_by_job ON keys (job);
CREATE INDEX keys_by_group ON keys (job_group) WHERE job_group IS NOT NULL;
CREATE INDEX keys_gone ON keys (gone_us) WHERE gone_us IS NOT NULL;

INSERT INTO meta
    SELECT 'clock_us', max(coalesce(max(created_us), 0), coalesce(max(ended_us), 0)) FROM jobs;
";

/// From this version on the ends of a group's jobs are counted as they come.
const COUNTED: i64 = 7;

/// The version of a store that this binary writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// What a WAL that has grown is cut back to.
const WAL_LIMIT: u32 = 16 * 1024 * 1024;

/// A reader waits so long for the rare moments in which it may have to, and the
/// writer for who looks into the store with another program, and writes.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The one connection that writes; brings the store to [`VERSION`] first.
pub(super) fn open(folder: &Path) -> Result<Connection, Error> {
    let file = folder.join(FILE);
    let mut connection = Connection::open(&file)?;
    connection.busy_timeout(PATIENCE)?;
    // Checkpoints are made by the writer: those SQLite makes by itself do not
    // say when they fail.
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {WAL_LIMIT};
         PRAGMA foreign_keys = OFF; PRAGMA secure_delete = ON;
         PRAGMA temp_store = MEMORY; PRAGMA cache_size = -32768;"
    ))?;
    migrate(&mut connection, &file)?;
    // What a crash left in the log takes room that may be short.
    let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
    match emptied.map_err(Error::from) {
        Err(error) if !error.is_full() && !error.is_busy() => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Not before: a table that is made anew takes no rows of others along.
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// A number of the table `meta`; None: it is not there.
pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?")?
        .query_row([key], |row| row.get(0))
        .optional()
}

/// The times of the scheduler, from where they were when the store was written last.
pub(super) fn time(connection: &Connection) -> Result<Time, Error> {
    let at = |us| Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
    // 0: there was no record yet.
    let steady = meta(connection, "clock_us")?.filter(|us| *us != 0).map(at);
    let [boot, ran, counted, wall, settled] = TIMES.map(|key| meta(connection, key));
    let kept = match (boot?, ran?, counted?, wall?, settled?) {
        (Some(boot), Some(ran), Some(counted), Some(wall), Some(settled)) => Some(KeptTime {
            boot,
            ran: Duration::from_micros(ran.unsigned_abs()),
            counted: at(counted),
            wall: at(wall),
            is_settled: settled != 0,
        }),
        _ => None,
    };
    Ok(Time::new(kept, steady))
}

/// Where the counted time is kept.
const TIMES: [&str; 5] = ["boot", "ran_us", "counted_us", "wall_us", "time_is_settled"];

/// Has the times as they are now on the disk.
pub(super) fn keep_time(to: &Transaction<'_>, time: &Time) -> rusqlite::Result<()> {
    let kept = time.kept();
    let values = [
        kept.boot,
        i64::try_from(kept.ran.as_micros()).unwrap_or(i64::MAX),
        kept.counted.as_microsecond(),
        kept.wall.as_microsecond(),
        i64::from(kept.is_settled),
    ];
    let mut write = to.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?, ?)")?;
    for (key, value) in TIMES.into_iter().zip(values) {
        write.execute((key, value))?;
    }
    write.execute(("clock_us", time.age_kept().as_microsecond()))?;
    Ok(())
}

/// A connection that only reads, beside the one that writes.
pub(super) fn open_reader(folder: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(folder.join(FILE), flags)?;
    connection.busy_timeout(PATIENCE)?;
    connection.execute_batch("PRAGMA temp_store = MEMORY;")?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, file: &Path) -> Result<(), Error> {
    let version = |connection: &Connection| {
        connection.query_row("PRAGMA user_version", (), |row| row.get::<_, i64>(0))
    };
    // A transaction takes room, which may be short.
    if version(connection)? == VERSION {
        return Ok(());
    }
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&change)?;
    if found > VERSION {
        return Err(Error::Newer {
            file: file.to_owned(),
            found,
        });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for step in MIGRATIONS.iter().skip(done) {
        change.execute_batch(step)?;
    }
    if found < COUNTED {
        ends::count_all(&change)?;
    }
    change.execute_batch(&format!("PRAGMA user_version = {VERSION}"))?;
    change.commit()?;
    if found > 0 && found < VERSION {
        tracing::info!(from = found, to = VERSION, "store brought up to date");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_an_older_store_are_known_with_nothing_told() {
        let mut connection = Connection::open_in_memory().unwrap();
        for step in &MIGRATIONS[..2] {
            connection.execute_batch(step).unwrap();
        }
        connection
            .execute_batch(
                "PRAGMA user_version = 2;
                 INSERT INTO workers VALUES (x'00', 'w1', '127.0.0.1:1', '0.1.0', 0, 7, NULL)",
            )
            .unwrap();
        migrate(&mut connection, Path::new(FILE)).unwrap();
        let version: i64 = connection
            .query_row("PRAGMA user_version", (), |row| row.get(0))
            .unwrap();
        assert_eq!(version, VERSION);
        let found: (String, String, String) = connection
            .query_row("SELECT name, told, orders FROM workers", (), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .unwrap();
        assert_eq!(found, ("w1".into(), "{}".into(), "{}".into()));
    }
}
