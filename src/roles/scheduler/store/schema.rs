//! The tables, how an older store becomes one of today, and what every
//! connection to it is told first.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{Error, access};

/// The file in the scheduler's data folder.
pub(super) const FILE: &str = "store.sqlite";

/// One entry for each version, the first makes version 1 of an empty file.
/// Entries are only ever added: each has run on somebody's disk.
pub(super) const MIGRATIONS: [&str; 6] = [FIRST, access::TABLES, WORKERS, QUEUE, ATTEMPTS, COMMITS];

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

/// The version of a store that this binary writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// What a WAL that has grown is cut back to.
const WAL_LIMIT: u32 = 16 * 1024 * 1024;

/// A reader waits so long for the rare moments in which it may have to, and the
/// writer for who looks into the store with another program, and writes.
const PATIENCE: Duration = Duration::from_secs(5);

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
    // Not before: a table that is made anew takes no rows of others along.
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
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
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = change.query_row("PRAGMA user_version", (), |row| row.get(0))?;
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
