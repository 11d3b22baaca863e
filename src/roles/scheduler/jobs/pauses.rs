//! Workers that get a pause before something is tried again: those to which a recorded
//! stop or start could not be delivered although their heartbeats come, and those that
//! cannot start any job. Each has one task at a time, which ends when nothing is left to
//! do.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_util::future::join_all;

use super::{Jobs, Stop, Wait, is_outdated};
use crate::{
    ids::{JobId, WorkerId},
    roles::scheduler::{error::Error, registry::WorkerHandle},
};

/// Between two deliveries to a worker that cannot be reached, growing from the first to
/// the last.
const DELIVER_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A worker that cannot start jobs gets none for this time, growing from the first to the
/// last until it starts one.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a worker that cannot start any job says before it says why.
const CANNOT_START: &str = "cannot start jobs now: ";

fn growing((first, last): (Duration, Duration)) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(last)
        .without_max_times()
        .build()
}

/// Which workers have a pause.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// To these something is delivered again.
    owed: Mutex<HashSet<WorkerId>>,
    resting: Mutex<HashMap<WorkerId, Rest>>,
    /// Runs that are over and that their worker is told to end.
    ending: Mutex<HashSet<JobId>>,
}

#[derive(Debug)]
struct Rest {
    pauses: ExponentialBackoff,
    /// It is waited for now.
    is_on: bool,
}

impl Pauses {
    fn owed(&self) -> MutexGuard<'_, HashSet<WorkerId>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> MutexGuard<'_, HashSet<JobId>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resting(&self) -> MutexGuard<'_, HashMap<WorkerId, Rest>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker has started a job: its next rest is a short one.
    pub(super) fn works(&self, worker: WorkerId) {
        let mut resting = self.resting();
        if resting.get(&worker).is_some_and(|rest| !rest.is_on) {
            resting.remove(&worker);
        }
    }

    /// The next rest of the worker; None: it has one already.
    fn rest(&self, worker: WorkerId) -> Option<Duration> {
        let mut resting = self.resting();
        let rest = resting.entry(worker).or_insert_with(|| Rest {
            pauses: growing(REST),
            is_on: false,
        });
        if std::mem::replace(&mut rest.is_on, true) {
            return None;
        }
        rest.pauses.next()
    }
}

impl Jobs {
    /// Has what is owed to a worker delivered again, with growing pauses, until nothing
    /// is owed or the worker is not ready any more: what is then still owed is due when
    /// it is ready again.
    pub(super) fn deliver_again(&self, worker: WorkerId) {
        if !self.0.pauses.owed().insert(worker) {
            return;
        }
        let jobs = self.clone();
        self.0.tracker.spawn(async move {
            for pause in growing(DELIVER_AGAIN) {
                tokio::select! {
                    () = jobs.0.closing.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
                // A delivery that fails after this finds that the task goes on, or that there
                // is none.
                let due = {
                    let mut owed = jobs.0.pauses.owed();
                    let due = jobs.due(worker);
                    if due.is_empty() {
                        owed.remove(&worker);
                        return;
                    }
                    due
                };
                join_all(due).await;
            }
            jobs.0.pauses.owed().remove(&worker);
        });
    }

    /// Has a worker end a run that it says lives although its job has ended, or was given
    /// to another since: what was lost, say, when the worker said goodbye or was removed.
    /// What the worker reported before it heard of the end is none of these.
    pub(super) fn end_what_is_over(&self, run: JobId, worker: &WorkerHandle) {
        if !self.0.pauses.ending().insert(run) {
            return;
        }
        let (jobs, worker) = (self.clone(), worker.clone());
        self.0.tracker.spawn(async move {
            tokio::select! {
                () = jobs.0.closing.cancelled() => {}
                () = jobs.end_over(run, &worker) => {}
            }
            jobs.0.pauses.ending().remove(&run);
        });
    }

    async fn end_over(&self, run: JobId, worker: &WorkerHandle) {
        let in_memory = self.table().job_of(run);
        let in_memory = in_memory.and_then(|id| self.table().get(id));
        let is_over = match in_memory {
            Some(record) => record.is_final(),
            // Of a job that was never recorded here nothing is known.
            None => {
                let known = self.0.store.known(vec![run]).await;
                known.is_ok_and(|known| known.contains(&run))
            }
        };
        if !is_over {
            return;
        }
        let stop = Stop {
            wait: Wait::Sent,
            ..Stop::default()
        };
        for pause in growing(DELIVER_AGAIN) {
            match worker.rpc.stop(run, stop).await {
                Ok(()) => {
                    tracing::warn!(job_id = %run, worker_id = %worker.id,
                        "a worker ran a job that is over on record, and was told to end it");
                    return;
                }
                Err(Error::Refused { code, .. }) if !is_outdated(&code) => return,
                Err(_) => {}
            }
            // Another registration names it again.
            let now = self.0.registry.get(worker.id);
            if now.is_ok_and(|now| now.session != worker.session) {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Gives a worker that cannot start jobs, for the reason `why`, none for a while.
    pub(super) fn rest(&self, worker: WorkerId, why: &str) {
        let Some(pause) = self.0.pauses.rest(worker) else {
            return;
        };
        // The worker's own words, which begin with its name.
        let (_, what) = why.split_once(CANNOT_START).unwrap_or_default();
        let what = if what.is_empty() { why } else { what };
        self.0.registry.rest(worker, Some(what));
        let jobs = self.clone();
        self.0.tracker.spawn(async move {
            tokio::select! {
                () = jobs.0.closing.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if let Some(rest) = jobs.0.pauses.resting().get_mut(&worker) {
                rest.is_on = false;
            }
            jobs.0.registry.rest(worker, None);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_rests_longer_each_time_until_it_works() {
        let pauses = Pauses::default();
        let worker = WorkerId::random();
        let first = pauses.rest(worker).unwrap();
        assert_eq!(pauses.rest(worker), None, "it rests already");
        pauses.works(worker);
        assert_eq!(pauses.rest(worker), None, "an older start changes nothing");
        let over = || pauses.resting().get_mut(&worker).unwrap().is_on = false;
        let mut last = first;
        for _ in 0..10 {
            over();
            last = pauses.rest(worker).unwrap();
        }
        assert!(last > first && last >= REST.1, "{first:?} {last:?}");
        over();
        pauses.works(worker);
        assert!(pauses.rest(worker).unwrap() < last);
    }
}
