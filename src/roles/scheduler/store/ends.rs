//! What a group has come to: how many of its jobs ended, and how. It is counted in
//! the transaction in which a job ends, because the record of a job may be deleted
//! while its group still runs.

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, params};

use super::{Error, read};
use crate::{
    api::{JobState, exit_code},
    ids::GroupId,
    roles::scheduler::jobs::{Group, Record},
};

/// A job has ended. Call it once for each.
pub(super) fn count(to: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let (Some(member), Some(at)) = (&record.member, record.kept_from()) else {
        return Ok(());
    };
    let ends = Ends {
        state: record.api_state(),
        jobs: 1,
        exit_code: record.exit_code_of_wait(),
        first_index: member.index,
        ended_us: at.as_microsecond(),
    };
    add(to, member.group, &ends)
}

/// Jobs of a group that ended in the same state.
struct Ends {
    state: JobState,
    jobs: u32,
    exit_code: u8,
    first_index: u32,
    ended_us: i64,
}

fn add(to: &Transaction<'_>, group: GroupId, ends: &Ends) -> rusqlite::Result<()> {
    to.prepare_cached(
        "INSERT INTO group_ends (job_group, state, jobs, exit_code, first_index, ended_us)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (job_group, state) DO UPDATE SET
             jobs = jobs + ?3,
             exit_code = CASE
                 WHEN state = 'stopped' THEN max(exit_code, ?4)
                 WHEN ?5 < first_index THEN ?4
                 ELSE exit_code END,
             first_index = min(first_index, ?5),
             ended_us = max(ended_us, ?6)",
    )?
    .execute(params![
        group.as_bytes(),
        ends.state.as_str(),
        ends.jobs,
        ends.exit_code,
        ends.first_index,
        ends.ended_us
    ])?;
    Ok(())
}

/// Counts once what an older version left uncounted. How a job ended whose record
/// is gone is not known, and an unknown end is no success.
pub(super) fn count_all(to: &Transaction<'_>) -> Result<(), Error> {
    let mut ended = to.prepare(
        "SELECT jobs.record FROM jobs JOIN groups ON groups.id = jobs.job_group
         WHERE groups.ended_us IS NULL AND jobs.ended_us IS NOT NULL",
    )?;
    let mut rows = ended.query(())?;
    while let Some(row) = rows.next()? {
        let record: Record = read::json(&row.get::<_, String>(0)?)?;
        count(to, &record)?;
    }
    let mut missing = to.prepare(
        "SELECT id, created_us, record ->> '$.count',
             (record ->> '$.count') - (SELECT count(*) FROM jobs WHERE job_group = groups.id)
         FROM groups WHERE ended_us IS NULL",
    )?;
    let mut rows = missing.query(())?;
    while let Some(row) = rows.next()? {
        let gone = u32::try_from(row.get::<_, i64>(3)?).unwrap_or(0);
        if gone > 0 {
            let group = GroupId::from_bytes(row.get(0)?);
            let ends = Ends {
                state: JobState::Lost,
                jobs: gone,
                exit_code: exit_code::CANNOT_TELL,
                // Behind every job that is known to have failed.
                first_index: row.get(2)?,
                ended_us: row.get(1)?,
            };
            add(to, group, &ends)?;
        }
    }
    Ok(())
}

/// Tells a group which of its jobs have ended, and how.
pub(super) fn load(from: &Connection, group: &mut Group) -> Result<(), Error> {
    let mut ends = from.prepare_cached(
        "SELECT state, jobs, exit_code, ended_us, first_index FROM group_ends WHERE job_group = ?",
    )?;
    let mut rows = ends.query([group.id.as_bytes()])?;
    while let Some(row) = rows.next()? {
        let word: String = row.get(0)?;
        let state = JobState::ALL.into_iter().find(|one| one.as_str() == word);
        // A newer version is refused before, so every word is known.
        let state = state.ok_or(rusqlite::Error::InvalidQuery)?;
        *group.states.of(state) = row.get(1)?;
        group.count_end(state, row.get(2)?, Some(row.get(4)?));
        let ended = Timestamp::from_microsecond(row.get(3)?).ok();
        // A crash came between the end of the last job and that of the group.
        group.ended_at = group.ended_at.max(ended);
    }
    Ok(())
}
