//! What follows a failure: a job that may be tried again goes back to the queue,
//! and its record keeps how each attempt ended. On a worker an id is never started
//! twice, so each attempt has one of its own there, its *run*: the first that of
//! the job.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    record::{End, Event, Exit, Place, Process, Record, State},
    table::Table,
};
use crate::{api, ids::JobId};

/// The pause before the first retry, where none was asked for.
const PAUSE: Duration = Duration::from_secs(1);

/// The pauses double up to this one.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// So often a job that is lost goes back to the queue.
const MAX_REQUEUES: usize = 100;

/// An attempt that ended, and after which the job did not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) place: Place,
    pub(crate) process: Option<Process>,
    pub(crate) at: Timestamp,
    pub(crate) end: End,
    pub(crate) reason: String,
    pub(crate) output_bytes: u64,
}

/// The output of one attempt, as a part of that of its job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// Counted from 1.
    pub(crate) number: u32,
    pub(crate) place: Place,
    pub(crate) run: JobId,
    /// Where it begins: behind the output of the attempts before.
    pub(crate) begin: u64,
    /// How much it is; None: the attempt is the last one so far.
    pub(crate) bytes: Option<u64>,
}

impl Record {
    /// Its id on the worker it was given to.
    pub(crate) fn run(&self) -> Option<JobId> {
        Some(self.run_at(self.place.as_ref()?))
    }

    fn run_at(&self, place: &Place) -> JobId {
        place.run.unwrap_or(self.id)
    }

    /// The id of an attempt that is about to begin; None: that of the job.
    pub(super) fn next_run(&self) -> Option<JobId> {
        (!self.attempts.is_empty()).then(JobId::random)
    }

    /// The attempts it had, and the one it has, in the order of their numbers.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let earlier = self.attempts.iter();
        let earlier = earlier.map(|attempt| (&attempt.place, Some(attempt.output_bytes)));
        let current = self.place.iter().map(|place| (place, None));
        let mut begin = 0;
        let parts = earlier
            .chain(current)
            .zip(1..)
            .map(|((place, bytes), number)| {
                let part = Part {
                    number,
                    place: place.clone(),
                    run: self.run_at(place),
                    begin,
                    bytes,
                };
                begin += bytes.unwrap_or_default();
                part
            });
        parts.collect()
    }

    /// The number of the attempt it has, or had last; 0: there was none.
    pub(crate) fn attempt(&self) -> u32 {
        let attempts = self.attempts.len() + usize::from(self.place.is_some());
        u32::try_from(attempts).unwrap_or(u32::MAX)
    }

    /// The output of all attempts, as far as it is known.
    pub(crate) fn all_output_bytes(&self) -> u64 {
        let earlier = self.attempts.iter().map(|attempt| attempt.output_bytes);
        earlier.sum::<u64>() + self.output_bytes
    }

    /// How often it went back to the queue because it was lost, and because it
    /// failed.
    fn requeues_and_retries(&self) -> (usize, usize) {
        let lost = self.attempts.iter().filter(|one| one.end == End::Lost);
        let lost = lost.count();
        (lost, self.attempts.len() - lost)
    }

    /// The values of its environment are needed to start it, now or again.
    pub(crate) fn needs_env(&self) -> bool {
        if self.is_final() {
            return false;
        }
        let (requeues, retries) = self.requeues_and_retries();
        let again = retries < self.spec.retries as usize
            || (self.spec.on_lost == api::OnLost::Requeue && requeues < MAX_REQUEUES);
        self.state.is_unconfirmed() || (again && !self.is_last)
    }

    /// How long after this end the next attempt may begin; None: there is none.
    fn pause_after(&self, end: &End) -> Option<Duration> {
        // What was asked to stop is not started again.
        if self.is_last || self.stop.is_some() {
            return None;
        }
        let (requeues, retries) = self.requeues_and_retries();
        match end {
            End::Succeeded | End::Stopped(_) => None,
            End::Failed(_) | End::NotStarted { .. } | End::TimedOut(_) => {
                if retries >= self.spec.retries as usize {
                    return None;
                }
                let first = self.spec.retry_pause.unwrap_or(PAUSE);
                let doubled = u32::try_from(retries)
                    .ok()
                    .and_then(|n| 2_u32.checked_pow(n));
                let pause = doubled.and_then(|times| first.checked_mul(times));
                let longest = LONGEST_PAUSE.max(first);
                Some(pause.map_or(longest, |pause| pause.min(longest)))
            }
            End::Lost => (self.spec.on_lost == api::OnLost::Requeue && requeues < MAX_REQUEUES)
                .then_some(Duration::ZERO),
        }
    }

    /// What comes of `next`: an end behind which there is another attempt is kept
    /// as that of this one, and the job waits again, from this counted time on.
    pub(super) fn unless_tried_again(&mut self, next: State, counted: Timestamp) -> State {
        let State::Ended {
            process,
            at,
            end,
            reason,
        } = &next
        else {
            return next;
        };
        let Some(pause) = self.pause_after(end) else {
            return next;
        };
        let Some(place) = self.place.take() else {
            return next;
        };
        self.attempts.push(Attempt {
            place,
            process: *process,
            at: *at,
            end: end.clone(),
            reason: reason.clone(),
            output_bytes: std::mem::take(&mut self.output_bytes),
        });
        self.retry_at = counted.checked_add(pause).ok().filter(|_| !pause.is_zero());
        State::Queued
    }

    /// A stop of a job that is not on a worker, or whose worker does not know it.
    pub(super) fn stopped_before_start(&self, why: Option<&str>) -> Event {
        let because = why.map(|why| format!(": {why}")).unwrap_or_default();
        let reason = match self.attempts.last() {
            None => format!("stopped before it was started{because}"),
            Some(last) => format!(
                "stopped between attempts{because}, after attempt {}: {}",
                self.attempts.len(),
                last.how()
            ),
        };
        Event::GivenUp {
            end: End::Stopped(None),
            reason,
        }
    }

    /// What a job that waits for its time says: which attempt then begins, and
    /// how the one before ended.
    pub(super) fn about_attempts(&self, starts: &str) -> String {
        let number = self.attempts.len();
        match self.attempts.last() {
            None => starts.to_owned(),
            Some(last) => format!(
                "attempt {} {starts}; attempt {number}: {}",
                number + 1,
                last.how()
            ),
        }
    }

    /// The attempts as the HTTP API shows them.
    pub(super) fn shown_attempts(&self) -> Vec<api::Attempt> {
        let parts = self.parts();
        let shown = parts.iter().map(|part| {
            let earlier = self.attempts.get(part.number as usize - 1);
            let one = match earlier {
                Some(attempt) => (
                    State::Ended {
                        process: attempt.process,
                        at: attempt.at,
                        end: attempt.end.clone(),
                        reason: attempt.reason.clone(),
                    },
                    attempt.output_bytes,
                ),
                None => (self.state.clone(), self.output_bytes),
            };
            shown(part, one)
        });
        shown.collect()
    }
}

fn shown(part: &Part, (state, output_bytes): (State, u64)) -> api::Attempt {
    let (exit, start_error, ended_at, reason) = match &state {
        State::Ended {
            at, end, reason, ..
        } => {
            let (exit, start_error) = end.exit();
            let reason = Some(reason.clone()).filter(|text| !text.is_empty());
            (exit, start_error, Some(*at), reason)
        }
        _ => (None, None, None, None),
    };
    let (exit_code, signal) = Exit::parts(exit);
    api::Attempt {
        number: part.number,
        run_id: part.run,
        worker_id: part.place.worker,
        worker: part.place.worker_name.to_string(),
        state: state.shown(),
        reason,
        exit_code,
        signal,
        start_error,
        offset: part.begin,
        output_bytes,
        started_at: state.process().and_then(|process| process.since),
        ended_at,
        ran_ms: (state.process()).and_then(|process| process.ran.map(api::whole_milliseconds)),
    }
}

impl Attempt {
    /// In one line.
    fn how(&self) -> &str {
        match self.reason.as_str() {
            "" => "it failed",
            reason => reason,
        }
    }
}

impl Table {
    /// The job that has this run now: an earlier attempt has nothing to say any
    /// more.
    pub(super) fn job_of(&self, run: JobId) -> Option<JobId> {
        let id = self.runs.get(&run).copied().unwrap_or(run);
        let record = self.get(id)?;
        (record.run() == Some(run)).then_some(id)
    }

    /// Whether this is a job, or the run of one.
    pub(super) fn knows(&self, run: JobId) -> bool {
        self.runs.contains_key(&run) || self.get(run).is_some()
    }

    /// So much of a run's output was passed on. It counts where another attempt's
    /// output may follow without the worker's last word on this one's.
    pub(super) fn seen(&mut self, run: JobId, bytes: u64) {
        if let Some(id) = self.job_of(run) {
            self.edit(id, |record| {
                let counts =
                    record.spec.on_lost == api::OnLost::Requeue && record.output_bytes < bytes;
                if counts {
                    record.output_bytes = bytes;
                }
                counts
            });
        }
    }

    /// No attempt follows the one the job has, because it is asked to stop.
    pub(super) fn make_last(&mut self, id: JobId) {
        self.edit(id, |record| {
            let changes = !record.is_last
                && (record.spec.retries > 0 || record.spec.on_lost == api::OnLost::Requeue);
            record.is_last |= changes;
            changes
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::roles::scheduler::jobs::{Spec, Status, now, record::tests::record};

    fn running(change: impl FnOnce(&mut Spec)) -> Record {
        let mut spec = Spec::default();
        change(&mut spec);
        Record {
            spec: Arc::new(spec),
            ..record(State::Running(Process::default()))
        }
    }

    fn ends(end: End, reason: &str) -> State {
        State::Ended {
            process: None,
            at: now(),
            end,
            reason: reason.to_owned(),
        }
    }

    fn failed() -> End {
        End::Failed(Some(Exit::Code(3)))
    }

    /// The seconds between attempts that all fail.
    fn pauses(first: Option<Duration>, retries: u32) -> Vec<u64> {
        let mut job = running(|spec| {
            spec.retries = retries;
            spec.retry_pause = first;
        });
        let mut pauses = Vec::new();
        while let Some(pause) = job.pause_after(&failed()) {
            pauses.push(pause.as_secs());
            let place = job.place.clone();
            job.unless_tried_again(ends(failed(), ""), now());
            job.place = place;
        }
        pauses
    }

    #[test]
    fn pauses_double_up_to_five_minutes() {
        assert!(pauses(None, 0).is_empty());
        assert_eq!(
            pauses(None, 11),
            [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        );
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(pauses(hour, 2), [3600, 3600], "a longer one stays");
        assert_eq!(pauses(None, 1000).last(), Some(&300));
    }

    #[test]
    fn only_failures_are_tried_again() {
        let job = running(|spec| spec.retries = 1);
        for (end, again) in [
            (End::Succeeded, false),
            (failed(), true),
            (End::NotStarted { code: "x".into() }, true),
            (End::TimedOut(None), true),
            (End::Stopped(None), false),
            (End::Lost, false),
        ] {
            assert_eq!(job.pause_after(&end).is_some(), again, "{end:?}");
        }
        let stopping = Record {
            is_last: true,
            ..job
        };
        assert_eq!(stopping.pause_after(&failed()), None);
    }

    #[test]
    fn a_lost_job_is_queued_again_a_hundred_times_at_most_and_loses_no_retry() {
        let mut job = running(|spec| {
            spec.on_lost = api::OnLost::Requeue;
            spec.retries = 1;
        });
        let place = job.place.clone();
        for _ in 0..MAX_REQUEUES {
            let next = job.unless_tried_again(ends(End::Lost, "lost: worker restarted"), now());
            assert_eq!(next, State::Queued);
            assert!(job.needs_env());
            job.place = place.clone();
        }
        assert!(
            job.unless_tried_again(ends(End::Lost, ""), now())
                .is_final()
        );
        assert_eq!(
            job.unless_tried_again(ends(failed(), ""), now()),
            State::Queued
        );
        job.place = place;
        assert!(job.unless_tried_again(ends(failed(), ""), now()).is_final());
    }

    #[test]
    fn output_of_attempts_lies_one_behind_the_other() {
        let mut job = running(|spec| spec.retries = 3);
        let place = job.place.clone().unwrap();
        for (bytes, number) in [(5, 1), (0, 2)] {
            job.output_bytes = bytes;
            job.unless_tried_again(ends(failed(), "exit status 3"), now());
            assert_eq!(job.attempt(), number);
            let run = job.next_run();
            assert!(run.is_some(), "an id is never used twice");
            job.place = Some(Place {
                run,
                ..place.clone()
            });
        }
        job.output_bytes = 2;
        let parts = job.parts();
        let begins: Vec<_> = parts.iter().map(|part| (part.number, part.begin)).collect();
        assert_eq!(begins, [(1, 0), (2, 5), (3, 5)]);
        assert_eq!(parts[0].run, job.id);
        assert_eq!((job.all_output_bytes(), job.attempt()), (7, 3));
        let text = serde_json::to_string(&job).unwrap();
        let mut read: Record = serde_json::from_str(&text).unwrap();
        read.spec = job.spec.clone();
        assert_eq!(read, job);
    }

    #[test]
    fn an_earlier_attempt_has_nothing_to_say() {
        let mut table = Table::default();
        let job = table.insert(running(|spec| spec.retries = 2), Arc::default());
        let failed = |output_bytes| Status {
            state: ends(failed(), "exit status 3"),
            output_bytes,
        };
        table.report(job.id, failed(3), None);
        let waits = table.get(job.id).unwrap();
        assert_eq!((&waits.state, waits.attempts.len()), (&State::Queued, 1));
        let why = table.why(&waits);
        assert!(why.starts_with("attempt 2 starts at 2"), "{why}");
        assert!(why.ends_with("; attempt 1: exit status 3"), "{why}");
        table.report(job.id, failed(4), None);
        assert_eq!(table.get(job.id).unwrap(), waits);

        let run = JobId::random();
        table.remove(job.id);
        let again = Record {
            place: job.place.clone().map(|place| Place {
                run: Some(run),
                ..place
            }),
            state: State::Running(Process::default()),
            ..(*waits).clone()
        };
        table.insert(again.clone(), Arc::default());
        table.report(job.id, failed(5), None);
        assert_eq!(*table.get(job.id).unwrap(), again);
        assert!(table.knows(run) && table.knows(job.id));
        table.report(run, failed(6), None);
        let waits = table.get(job.id).unwrap();
        assert_eq!((waits.attempts.len(), waits.all_output_bytes()), (2, 9));
        assert!(!table.knows(run));
    }
}
