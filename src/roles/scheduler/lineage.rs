//! Whether this scheduler's records are older than what its workers know: a store
//! that was put back from a copy, that lost its last transactions, or that was made
//! new. Workers remember the highest epoch they have heard of, and how many
//! transactions the store had committed. What follows for jobs is in
//! `jobs/recovery.rs`.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;

use super::{error::Error, store::History};

/// So far from now an epoch may be that a worker has heard of: epochs begin with the
/// time in seconds and rise by one, so none that a scheduler had is further.
const FARTHEST: u64 = 100 * 366 * 24 * 3600;

/// So often workers may raise the epoch of one start of the scheduler.
const MOST_RAISES: usize = 64;

/// Which start of the scheduler this is, for every call; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Epoch(Arc<AtomicU64>);

impl Epoch {
    pub(super) fn new(epoch: u64) -> Self {
        Self(Arc::new(AtomicU64::new(epoch)))
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a worker has heard of the schedulers it had.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// The highest epoch; 0: it does not say.
    pub(super) epoch: u64,
    /// How many transactions the store had committed.
    pub(super) commit: u64,
    /// It remembers every job that it ran whose end was delivered after this commit.
    pub(super) remembers_since: u64,
}

/// How what a worker has heard relates to the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The records hold everything that the worker was told.
    Current,
    /// The worker has heard of transactions that the records do not have.
    Older,
    /// And of a higher epoch, which the scheduler has to rise above.
    OlderEpoch,
}

/// This start of the scheduler among those that the workers know.
#[derive(Debug)]
pub(super) struct Lineage {
    epoch: Epoch,
    history: History,
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    /// The epochs that this start has had.
    epochs: HashSet<u64>,
    /// The workers for which the epoch was raised.
    raised_for: HashSet<String>,
    /// What is said of the records, once they are known to be older.
    notice: Option<String>,
}

impl Lineage {
    pub(super) fn new(epoch: Epoch, history: History) -> Self {
        let own = Own {
            epochs: HashSet::from([epoch.get()]),
            ..Own::default()
        };
        Self {
            epoch,
            history,
            own: Mutex::new(own),
        }
    }

    /// So many transactions the records had that are older than what workers did, or
    /// would be.
    pub(super) fn told_until(&self) -> u64 {
        self.history.older_than.unwrap_or(self.history.commits)
    }

    /// `commits`: how many transactions the store has committed by now.
    pub(super) fn judge(&self, known: Known, commits: u64) -> Verdict {
        // It has had no scheduler, or is of a version that does not tell.
        if known.epoch == 0 {
            return Verdict::Current;
        }
        if known.epoch > self.epoch.get() {
            return Verdict::OlderEpoch;
        }
        // What was told under an epoch of this start may be from after the start.
        let told_at_most = match self.own().epochs.contains(&known.epoch) {
            true => commits,
            false => self.history.commits,
        };
        // What the records had to hear from every worker outlasts a restart.
        match known.commit > told_at_most || self.history.older_than.is_some() {
            true => Verdict::Older,
            false => Verdict::Current,
        }
    }

    /// The lowest epoch that is above the one `worker` has heard of. Take one with
    /// [`Lineage::took`] once it is on the disk.
    ///
    /// # Errors
    ///
    /// When no scheduler can have had that epoch, or when workers have raised it too
    /// often since the start: one alone can do so once.
    pub(super) fn next_above(&self, worker: &str, heard: u64) -> Result<u64, Error> {
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
        let mut own = self.own();
        let is_plausible = heard <= now.saturating_add(FARTHEST);
        if is_plausible
            && own.raised_for.len() < MOST_RAISES
            && own.raised_for.insert(worker.to_owned())
        {
            return Ok(heard + 1);
        }
        Err(Error::EpochRefused {
            worker: worker.to_owned(),
            heard,
            own: self.epoch.get(),
        })
    }

    /// This epoch is on the disk: from now on it is the scheduler's.
    pub(super) fn took(&self, epoch: u64) {
        self.own().epochs.insert(epoch);
        self.epoch.0.fetch_max(epoch, Ordering::Relaxed);
    }

    /// A worker proves that the records are older. Returns what is said of them the
    /// first time.
    pub(super) fn note_older(&self, worker: &str, known: Known) -> Option<String> {
        let mut own = self.own();
        if own.notice.is_some() {
            return None;
        }
        let notice = format!(
            "the scheduler's records are older than what worker {worker} was told (commit {}; \
             they had {} at the start): were they put back from a copy, or made new? What \
             workers prove is taken in, and jobs from before the start wait until each worker \
             has registered or was removed with `jobctl workers remove`",
            known.commit,
            self.told_until()
        );
        own.notice = Some(notice.clone());
        Some(notice)
    }

    /// What is said of the records, once they are known to be older.
    pub(super) fn notice(&self) -> Option<String> {
        self.own().notice.clone()
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(epoch: u64, commit: u64) -> Known {
        Known {
            epoch,
            commit,
            remembers_since: 0,
        }
    }

    fn history(commits: u64) -> History {
        History {
            commits,
            older_than: None,
        }
    }

    #[test]
    fn older_records_are_told_from_those_that_moved_on_since() {
        let lineage = Lineage::new(Epoch::new(50), history(100));
        assert_eq!(lineage.judge(known(0, 0), 500), Verdict::Current);
        let unsettled = History {
            older_than: Some(60),
            ..history(100)
        };
        let unsettled = Lineage::new(Epoch::new(50), unsettled);
        assert_eq!(unsettled.judge(known(49, 70), 500), Verdict::Older);
        assert_eq!(unsettled.judge(known(0, 0), 500), Verdict::Current);
        assert_eq!(unsettled.told_until(), 60);
        // Of an earlier start, which the records hold.
        assert_eq!(lineage.judge(known(49, 100), 500), Verdict::Current);
        // However much was recorded since the start.
        assert_eq!(lineage.judge(known(49, 101), 500), Verdict::Older);
        assert_eq!(lineage.judge(known(50, 500), 500), Verdict::Current);
        assert_eq!(lineage.judge(known(50, 501), 500), Verdict::Older);
        assert_eq!(lineage.judge(known(51, 0), 500), Verdict::OlderEpoch);
        let above = lineage.next_above("w1", 51).unwrap();
        lineage.took(above);
        assert_eq!(lineage.epoch.get(), 52);
        // A worker that was told under the first epoch of this start.
        assert_eq!(lineage.judge(known(50, 400), 500), Verdict::Current);
        assert_eq!(lineage.judge(known(51, 400), 500), Verdict::Older);
    }

    #[test]
    fn one_worker_raises_the_epoch_once_and_not_beyond_reason() {
        let lineage = Lineage::new(Epoch::new(50), history(0));
        for absurd in [u64::MAX, i64::MAX.unsigned_abs(), 1 << 40] {
            assert!(lineage.next_above("w1", absurd).is_err(), "{absurd}");
        }
        assert_eq!(lineage.next_above("w1", 60).unwrap(), 61);
        assert!(lineage.next_above("w1", 70).is_err());
        for number in 1..MOST_RAISES {
            lineage.next_above(&format!("x{number}"), 60).unwrap();
        }
        assert!(lineage.next_above("w2", 60).is_err());
    }
}
