//! The jobs that were on record when the scheduler began, as long as it is possible
//! that its records are older than what workers did: a store that was put back from
//! a copy. Such a job may have run since, on a worker that is yet to say so, and is
//! not placed before. New jobs are not held up.

use std::collections::{HashMap, HashSet};

use super::{
    Report,
    record::{Place, Record, State, Status},
    table::Table,
};
use crate::{
    ids::{JobId, WorkerId},
    roles::scheduler::registry::WorkerHandle,
};

/// The most workers that a line of text names; it is told of each job that waits.
const MOST_NAMED: usize = 10;

/// What is known of the time before this start of the scheduler.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// The jobs that were on record and had not ended.
    loaded: HashSet<JobId>,
    /// The workers that were on record and have not named their jobs since.
    unheard: HashSet<WorkerId>,
    /// A worker has proved that the records are older than what it did.
    is_older: bool,
    /// Workers that had not told by now are not waited for, unless the records are
    /// older.
    is_over: bool,
    /// It was said that every worker has told.
    is_said: bool,
    /// What workers said of attempts for which the records are not ready yet: the
    /// attempt before has not ended there.
    early: HashMap<JobId, (WorkerHandle, JobId, Status)>,
}

/// What was made of what a worker says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The records have nothing to do with it.
    None,
    /// The job is on that worker from now on.
    Taken,
    /// It will be, once its attempt before has ended.
    Kept,
}

impl Recovery {
    /// What was on record at the start. `is_older`: it was known before that the
    /// records were older than what workers did, and not all had reported it.
    pub(super) fn new(loaded: HashSet<JobId>, unheard: HashSet<WorkerId>, is_older: bool) -> Self {
        Self {
            loaded,
            unheard,
            is_older,
            ..Self::default()
        }
    }

    /// Whether every worker has told since the records are known to be older; true
    /// once.
    pub(super) fn is_over_now(&mut self) -> bool {
        let is_over = self.is_older && self.unheard.is_empty();
        is_over && !std::mem::replace(&mut self.is_said, true)
    }

    /// Whether a job is not to be placed yet.
    pub(super) fn holds(&self, id: JobId) -> bool {
        self.is_holding() && self.loaded.contains(&id)
    }

    fn is_holding(&self) -> bool {
        !self.unheard.is_empty() && (self.is_older || !self.is_over)
    }

    /// The job is known no more.
    pub(super) fn removed(&mut self, id: JobId) {
        self.loaded.remove(&id);
        self.early.remove(&id);
    }
}

impl Table {
    /// Takes in what a worker has said of the next attempt of a job that waits, if one
    /// has.
    pub(super) fn take_early(&mut self, record: &Record) -> bool {
        let Some((worker, run, status)) = self.recovery.early.remove(&record.id) else {
            return false;
        };
        self.take(record, &worker, run);
        self.report(run, status, Some(worker.session));
        true
    }

    /// Why a job is not placed yet, in one line.
    pub(super) fn why_held(&self, record: &Record) -> Option<String> {
        if !self.recovery.holds(record.id) {
            return None;
        }
        if !self.recovery.is_older && !self.has_workers(record) {
            // There is no worker for it anyway.
            return None;
        }
        let names = self.unheard_names();
        Some(match self.recovery.is_older {
            true => format!(
                "the scheduler's records are older than what its workers did, so this job may \
                 have run: it waits until these have registered or were removed: {names}"
            ),
            false => format!("the scheduler has just been started and waits for {names}"),
        })
    }

    /// Who is waited for: some of them, where there are many.
    fn unheard_names(&self) -> String {
        let unheard = &self.recovery.unheard;
        let some = unheard.iter().take(MOST_NAMED);
        let mut names: Vec<String> = some
            .map(|id| match self.worker_name(*id) {
                Some(name) => name.to_string(),
                None => id.to_string(),
            })
            .collect();
        names.sort();
        let names = names.join(", ");
        match unheard.len().saturating_sub(MOST_NAMED) {
            0 => names,
            more => format!("{names} and {more} more"),
        }
    }

    /// This worker has named all its jobs, or never will.
    pub(super) fn heard_of(&mut self, worker: WorkerId) {
        let was_holding = self.recovery.is_holding();
        self.recovery.unheard.remove(&worker);
        self.release(was_holding);
    }

    /// Workers that have not told by now are waited for only if the records are known
    /// to be older than what workers did.
    pub(super) fn stop_waiting(&mut self) {
        let was_holding = self.recovery.is_holding();
        self.recovery.is_over = true;
        self.release(was_holding);
    }

    fn release(&mut self, was_holding: bool) {
        if !was_holding || self.recovery.is_holding() {
            return;
        }
        self.release_held();
    }

    /// A worker proves that the records are older than what it did.
    pub(super) fn records_are_older(&mut self) {
        let was_holding = self.recovery.is_holding();
        self.recovery.is_older = true;
        if was_holding || !self.recovery.is_holding() {
            return;
        }
        for id in self.recovery.loaded.clone() {
            if let Some(record) = self.get(id).filter(|record| record.state == State::Queued) {
                self.dequeue(&record);
                // It waits for its time, or for others, as before.
                self.enqueue(id);
            }
        }
    }

    /// `worker` speaks of a run that the records do not have, because they are older:
    /// the job that it is of goes to that worker.
    pub(super) fn claim(&mut self, worker: &WorkerHandle, report: &Report) -> Claim {
        let Report {
            run, of, status, ..
        } = report;
        let id = of.unwrap_or(*run);
        if !self.recovery.is_older || !self.recovery.loaded.contains(&id) {
            return Claim::None;
        }
        let Some(record) = self.get(id).filter(|record| !record.is_final()) else {
            return Claim::None;
        };
        if record.parts().iter().any(|part| part.run == *run) {
            return Claim::None;
        }
        if record.state != State::Queued {
            let early = (worker.clone(), *run, status.clone());
            self.recovery.early.insert(id, early);
            return Claim::Kept;
        }
        self.take(&record, worker, *run);
        Claim::Taken
    }

    fn take(&mut self, record: &Record, worker: &WorkerHandle, run: JobId) {
        tracing::warn!(
            job_id = %record.id, worker_id = %worker.id,
            "a job that waits according to the records ran on this worker"
        );
        self.dequeue(record);
        let place = Place {
            worker: worker.id,
            worker_name: worker.name.clone(),
            session: worker.session,
            run: (run != record.id).then_some(run),
        };
        self.put_on_worker(record.id, place);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        net::dial::Security,
        roles::scheduler::{
            jobs::{
                Process, Spec,
                record::{End, now, tests::record},
            },
            lineage::Epoch,
            registry::{Registration, Registry},
            store,
            worker_rpc::Calls,
        },
    };

    pub(in crate::roles::scheduler::jobs) fn workers<const N: usize>(
        names: [&str; N],
    ) -> [WorkerHandle; N] {
        let calls = Calls {
            deadline: Duration::from_secs(5),
            epoch: Epoch::new(1),
            security: Security::Insecure,
            followers: 8,
            job_followers: 8,
        };
        let heartbeat = Duration::from_secs(2);
        let registry = Registry::new(heartbeat, calls, store::scratch(), Vec::new());
        names.map(|name| {
            let asked = Registration {
                address: "127.0.0.1:1".to_owned(),
                name: name.to_owned(),
                ..Registration::default()
            };
            let (id, _) = registry.register(asked).unwrap();
            registry.get(id).unwrap()
        })
    }

    fn status(state: State) -> Status {
        Status {
            state,
            output_bytes: 0,
        }
    }

    #[tokio::test]
    async fn an_attempt_since_the_copy_is_kept_until_the_one_before_has_ended() {
        let [first, second] = workers(["w1", "w2"]);
        let mut job = record(State::Running(Process::default()));
        let id = job.id;
        job.spec = Arc::new(Spec {
            retries: 3,
            ..Spec::default()
        });
        job.place = Some(Place {
            worker: first.id,
            worker_name: first.name.clone(),
            session: first.session,
            run: None,
        });
        let mut table = Table::default();
        let unheard = HashSet::from([first.id, second.id]);
        table.recovery = Recovery::new(HashSet::from([id]), unheard, true);
        table.insert(job, Arc::default());
        let run = JobId::random();
        let report = Report {
            run,
            of: Some(id),
            status: status(State::Running(Process::default())),
            spec: None,
        };
        assert_eq!(table.claim(&second, &report), Claim::Kept);
        table.heard_of(second.id);
        let failed = State::Ended {
            process: None,
            at: now(),
            end: End::Failed(None),
            reason: String::new(),
        };
        table.report(id, status(failed), Some(first.session));
        table.heard_of(first.id);
        let job = table.get(id).unwrap();
        assert_eq!((job.worker(), job.run()), (Some(second.id), Some(run)));
        assert!(matches!(job.state, State::Running(_)), "{:?}", job.state);
        assert!(table.recovery.is_over_now() && !table.recovery.is_over_now());
        // It is named again by its worker, and is what it was.
        assert_eq!(table.claim(&second, &report), Claim::None);
    }

    #[test]
    fn a_line_of_text_names_only_so_many_workers() {
        let unheard = |count: usize| {
            let unheard = (0..count).map(|_| WorkerId::random()).collect();
            let mut table = Table::default();
            table.recovery = Recovery::new(HashSet::new(), unheard, true);
            table.unheard_names()
        };
        assert_eq!(unheard(10).matches(", ").count(), 9);
        let many = unheard(1000);
        assert!(
            many.len() < 500 && many.ends_with(" and 990 more"),
            "{many}"
        );
    }

    #[tokio::test]
    async fn a_job_is_not_taken_for_one_that_ran_unless_the_records_are_older() {
        let [worker] = workers(["w1"]);
        let mut job = record(State::Queued);
        job.place = None;
        let id = job.id;
        let mut table = Table::default();
        let unheard = HashSet::from([worker.id]);
        table.recovery = Recovery::new(HashSet::from([id]), unheard, false);
        table.insert(job, Arc::default());
        let report = Report {
            run: id,
            of: None,
            status: status(State::Running(Process::default())),
            spec: None,
        };
        assert_eq!(table.claim(&worker, &report), Claim::None);
        assert!(table.recovery.holds(id));
        table.records_are_older();
        assert_eq!(table.claim(&worker, &report), Claim::Taken);
        table.report(id, report.status, Some(worker.session));
        assert!(matches!(table.get(id).unwrap().state, State::Running(_)));
    }
}
