//! What this worker remembers of jobs that are over: which ids it has started, and
//! how each ended. The scheduler has these ends, but a scheduler whose records were
//! put back from a copy has not, and must not start such a job again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::job::{Attempt, End, How, Spec};
use crate::{ids::JobId, roles::shim::protocol::Cause};

/// So many jobs are remembered; beyond, the one that was delivered first goes.
const MOST: usize = 200_000;

/// Said of a job that never had a process, for a reason that is not kept so long.
const REFUSED: &str = "it could not be started; the reason is no longer known";

/// Said of a job that was lost, for a reason that is not kept so long.
const LOST: &str = "it was lost; the reason is no longer known";

/// A job that ran here, and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ran {
    /// Its id here.
    pub(super) run: JobId,
    /// None: a job's first attempt, whose id is that of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<Attempt>,
    /// The main process and its start; `None` if there never was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started: Option<(u32, Timestamp)>,
    at: Timestamp,
    how: Short,
    output_bytes: u64,
    /// How long there were processes of it, by a monotonic clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ran_ms: Option<u64>,
    /// Processes that its main process left, and that were ended.
    #[serde(default)]
    swept: u32,
    /// How many transactions the scheduler's store had committed when the end was
    /// delivered; 0: it did not say.
    commit: u64,
}

/// How it ended, without the words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Short {
    Refused,
    Exited(i32, Cause),
    Signaled(i32, Cause),
    Lost,
}

impl Ran {
    /// `commit`: how many transactions the scheduler's store had committed by then.
    pub(super) fn new(spec: &Spec, end: &End, output_bytes: u64, commit: u64) -> Self {
        Self {
            run: spec.id,
            attempt: spec.attempt,
            started: end.started,
            at: end.at,
            how: match &end.how {
                How::Refused(_) => Short::Refused,
                How::Exited { code, cause } => Short::Exited(*code, *cause),
                How::Signaled { signal, cause } => Short::Signaled(*signal, *cause),
                How::Lost(_) => Short::Lost,
            },
            output_bytes,
            ran_ms: end.ran_ms,
            swept: end.swept,
            commit,
        }
    }

    /// Its end with the bytes of its output, and of what was asked for no more than
    /// which job it is.
    pub(super) fn parts(&self) -> (Spec, (End, u64)) {
        let spec = Spec {
            id: self.run,
            command: None,
            path: None,
            args: Vec::new(),
            env: Default::default(),
            cwd: None,
            user: None,
            name: None,
            timeout: None,
            created: self.started.map_or(self.at, |(_, at)| at),
            attempt: self.attempt,
        };
        let end = End {
            started: self.started,
            at: self.at,
            how: match self.how {
                Short::Refused => How::Lost(REFUSED.to_owned()),
                Short::Exited(code, cause) => How::Exited { code, cause },
                Short::Signaled(signal, cause) => How::Signaled { signal, cause },
                Short::Lost => How::Lost(LOST.to_owned()),
            },
            output_lost: None,
            gap_cause: crate::roles::shim::record::GapCause::Unknown,
            out_of_memory: None,
            ran_ms: self.ran_ms,
            swept: self.swept,
        };
        (spec, (end, self.output_bytes))
    }

    /// A scheduler whose store has made so many transactions may not know the end.
    pub(super) fn is_unknown_at(&self, commit: u64) -> bool {
        self.commit == 0 || self.commit > commit
    }
}

/// The jobs that ran here and whose ends were delivered, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Memory {
    jobs: VecDeque<Ran>,
    /// Where each is, counted from the first that ever was here.
    places: HashMap<JobId, u64>,
    /// How many have gone.
    gone: u64,
    /// The highest commit of one that has gone.
    since: u64,
}

impl Memory {
    pub(super) fn add(&mut self, ran: Ran) {
        let place = self.gone + self.jobs.len() as u64;
        self.places.insert(ran.run, place);
        self.jobs.push_back(ran);
        while self.jobs.len() > MOST
            && let Some(oldest) = self.jobs.pop_front()
        {
            if self.places.get(&oldest.run) == Some(&self.gone) {
                self.places.remove(&oldest.run);
            }
            self.gone += 1;
            self.forgot(oldest.commit);
        }
    }

    /// Not all of those are here that were delivered up to this commit.
    pub(super) fn forgot(&mut self, commit: u64) {
        self.since = self.since.max(commit);
    }

    /// All are here that were delivered after this commit; 0: all there ever were.
    pub(super) fn since(&self) -> u64 {
        self.since
    }

    pub(super) fn get(&self, run: JobId) -> Option<Ran> {
        let place = self.places.get(&run)?.checked_sub(self.gone)?;
        self.jobs.get(usize::try_from(place).ok()?).cloned()
    }

    pub(super) fn contains(&self, run: JobId) -> bool {
        self.places.contains_key(&run)
    }

    /// Those whose ends a scheduler may not know whose store has made so many
    /// transactions: at most `limit`, from the place `from` on, and the place where
    /// the next are.
    pub(super) fn unknown_at(
        &self,
        commit: u64,
        from: u64,
        limit: usize,
    ) -> (Vec<Ran>, Option<u64>) {
        let skipped = usize::try_from(from.saturating_sub(self.gone)).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        for (index, ran) in self.jobs.iter().enumerate().skip(skipped) {
            if found.len() == limit {
                return (found, Some(self.gone + index as u64));
            }
            if ran.is_unknown_at(commit) {
                found.push(ran.clone());
            }
        }
        (found, None)
    }

    /// All of them, so many at a time.
    pub(super) fn parts(&self, size: usize) -> impl Iterator<Item = Vec<Ran>> {
        let starts = (0..self.jobs.len()).step_by(size);
        starts.map(move |start| {
            let end = (start + size).min(self.jobs.len());
            self.jobs.range(start..end).cloned().collect()
        })
    }
}

/// A handle to the jobs that ran here; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered(Arc<Mutex<Memory>>);

impl Remembered {
    pub(super) fn lock(&self) -> MutexGuard<'_, Memory> {
        // Every change of it is a single step, so it is whole even then.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Remembered {
    fn eq(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.0, &other.0) {
            return true;
        }
        let (own, other) = (self.lock(), other.lock());
        own.jobs == other.jobs && own.since == other.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(commit: u64) -> Ran {
        Ran {
            run: JobId::random(),
            attempt: None,
            started: None,
            at: Timestamp::UNIX_EPOCH,
            how: Short::Exited(7, Cause::Itself),
            output_bytes: 3,
            ran_ms: None,
            swept: 0,
            commit,
        }
    }

    #[test]
    fn what_a_scheduler_of_the_past_cannot_know_is_told_in_parts() {
        let mut memory = Memory::default();
        for commit in [0, 5, 10, 11, 12] {
            memory.add(ran(commit));
        }
        let (first, next) = memory.unknown_at(10, 0, 2);
        let (rest, end) = memory.unknown_at(10, next.unwrap(), 2);
        let told: Vec<u64> = first.iter().chain(&rest).map(|ran| ran.commit).collect();
        assert_eq!((told, end), (vec![0, 11, 12], None));
    }

    #[test]
    fn the_oldest_goes_and_that_is_known() {
        let mut memory = Memory::default();
        let first = ran(7);
        memory.add(first.clone());
        for _ in 1..MOST {
            memory.add(ran(9));
        }
        assert_eq!(
            (memory.since(), memory.get(first.run)),
            (0, Some(first.clone()))
        );
        let last = ran(10);
        memory.add(last.clone());
        assert_eq!((memory.since(), memory.get(first.run)), (7, None));
        assert!(!memory.contains(first.run));
        assert_eq!(memory.get(last.run), Some(last));
    }

    #[test]
    fn an_end_survives_without_its_words() {
        let (spec, (end, bytes)) = ran(1).parts();
        let again = Ran::new(&spec, &end, bytes, 1);
        assert_eq!(
            (again.how, again.output_bytes),
            (Short::Exited(7, Cause::Itself), 3)
        );
    }
}
