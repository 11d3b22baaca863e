//! Jobs that wait for a time: those that are not to start before it, and those
//! that are given up when it has come.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    io,
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp, TimestampRound, Unit};
use tokio::sync::Notify;

use super::{
    Jobs,
    prerequisites::in_vain,
    record::{End, Event, Record, State, now},
    table::Table,
};
use crate::ids::JobId;

/// When the jobs that wait are to be looked at again: one time for each.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    by_time: BTreeSet<(Timestamp, JobId)>,
    of_job: HashMap<JobId, Timestamp>,
    earlier: Arc<Notify>,
}

impl Alarms {
    /// None: no more.
    pub(super) fn set(&mut self, id: JobId, at: Option<Timestamp>) {
        let before = match at {
            Some(at) => self.of_job.insert(id, at),
            None => self.of_job.remove(&id),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before, id));
        }
        let Some(at) = at else {
            return;
        };
        self.by_time.insert((at, id));
        if self.by_time.first() == Some(&(at, id)) {
            self.earlier.notify_one();
        }
    }

    fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// The jobs whose time has come by `now`.
    fn take(&mut self, now: Timestamp) -> Vec<JobId> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.by_time.first().copied()
            && at <= now
        {
            self.set(id, None);
            due.push(id);
        }
        due
    }
}

impl Record {
    /// Before this it is not started.
    pub(super) fn not_before(&self) -> Option<Timestamp> {
        self.retry_at.or(self.spec.not_before)
    }

    /// When it is given up if it was never given to a worker by then.
    fn given_up_at(&self) -> Option<Timestamp> {
        if !self.attempts.is_empty() {
            return None;
        }
        let from = self.not_before().unwrap_or(self.created_at);
        // A time in the past is no reason to give it up at once.
        let from = from.max(self.created_at);
        from.checked_add(self.spec.deadline?).ok()
    }

    /// What it waits for, if that is a time.
    pub(super) fn why_not_yet(&self, now: Timestamp) -> Option<String> {
        let at = self.not_before().filter(|at| *at > now)?;
        let left = at.duration_since(now);
        let second = SignedDuration::from_secs(1);
        let left = left.round(Unit::Second).unwrap_or(left).max(second);
        let whole = TimestampRound::new().smallest(Unit::Second);
        let at = at.round(whole).unwrap_or(at);
        Some(self.about_attempts(&format!("starts at {at}, in {left:#}")))
    }
}

impl Table {
    /// Looks at a job that has no worker: it gets in line, waits for its time or
    /// for others, or has waited too long or in vain.
    pub(super) fn enqueue(&mut self, id: JobId) {
        self.look_at(id, now());
    }

    fn look_at(&mut self, id: JobId, now: Timestamp) {
        let Some(record) = self.get(id).filter(|record| record.state == State::Queued) else {
            return;
        };
        if self.take_early(&record) {
            return;
        }
        // Asked for while it was not known whether it had begun.
        if record.stop.is_some() {
            return self.apply(id, record.stopped_before_start(None));
        }
        let group = record.group().and_then(|group| self.group(group));
        if let Some(why) = group.and_then(|group| group.stopped.clone()) {
            return self.apply(id, record.stopped_before_start(Some(&why)));
        }
        let given_up_at = record.given_up_at();
        if let (Some(at), Some(deadline)) = (given_up_at, record.spec.deadline)
            && at <= now
        {
            return self.apply(id, given_up(deadline));
        }
        if let Some(end) = in_vain(&record) {
            return self.apply(id, end);
        }
        if !record.is_free() {
            self.alarms.set(id, given_up_at);
            return self.await_others(&record);
        }
        if let Some(at) = record.not_before().filter(|at| *at > now) {
            return self.alarms.set(id, Some(at));
        }
        self.alarms.set(id, given_up_at);
        match self.recovery.holds(id) {
            true => self.hold(&record),
            false => self.line_up(&record),
        }
    }

    fn ring(&mut self) {
        let now = now();
        for id in self.alarms.take(now) {
            self.look_at(id, now);
        }
    }
}

fn given_up(deadline: Duration) -> Event {
    let deadline = SignedDuration::try_from(deadline).unwrap_or(SignedDuration::MAX);
    Event::GivenUp {
        end: End::TimedOut(None),
        reason: format!("waited longer than its deadline of {deadline:#}"),
    }
}

impl Jobs {
    /// Looks at jobs when their time has come. Returns only if there are no
    /// alarms to be had.
    pub(in crate::roles::scheduler) async fn follow_alarms(&self) -> io::Result<Infallible> {
        let earlier = self.table().alarms.earlier.clone();
        loop {
            // Also when a time was set: it may have come.
            self.change(Table::ring);
            let next = self.table().alarms.next();
            self.0.clock.set(next)?;
            tokio::select! {
                rung = self.0.clock.rings() => rung?,
                () = earlier.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::scheduler::jobs::{Spec, record::tests::record};

    fn waiting(spec: Spec) -> Record {
        Record {
            spec: Arc::new(spec),
            place: None,
            ..record(State::Queued)
        }
    }

    #[test]
    fn a_job_has_one_time_and_an_earlier_one_is_told() {
        let mut alarms = Alarms::default();
        let (a, b) = (JobId::random(), JobId::random());
        let at = |seconds| Timestamp::UNIX_EPOCH + Duration::from_secs(seconds);
        let told = |alarms: &Alarms| {
            use futures_util::FutureExt as _;
            alarms.earlier.notified().now_or_never().is_some()
        };
        alarms.set(a, Some(at(20)));
        assert!(told(&alarms));
        alarms.set(b, Some(at(30)));
        assert!(!told(&alarms), "a later one changes nothing");
        alarms.set(b, Some(at(10)));
        assert!(told(&alarms));
        assert_eq!(alarms.next(), Some(at(10)));
        assert_eq!(alarms.take(at(9)), []);
        assert_eq!(alarms.take(at(20)), [b, a]);
        alarms.set(a, Some(at(1)));
        alarms.set(a, None);
        assert_eq!(alarms.take(at(100)), []);
        assert!(alarms.of_job.is_empty());
    }

    #[test]
    fn a_deadline_counts_from_when_a_job_may_start() {
        let minute = Duration::from_secs(60);
        let job = waiting(Spec {
            deadline: Some(minute),
            ..Spec::default()
        });
        assert_eq!(job.given_up_at(), Some(job.created_at + minute));
        for (not_before, counts_from) in [
            (job.created_at + minute, job.created_at + minute),
            (job.created_at - minute, job.created_at),
        ] {
            let job = Record {
                spec: Arc::new(Spec {
                    not_before: Some(not_before),
                    deadline: Some(minute),
                    ..Spec::default()
                }),
                ..job.clone()
            };
            assert_eq!(job.given_up_at(), Some(counts_from + minute));
        }
    }

    #[test]
    fn it_is_said_when_a_job_starts() {
        let at: Timestamp = "2026-01-02T03:04:05.5Z".parse().unwrap();
        let job = waiting(Spec {
            not_before: Some(at),
            ..Spec::default()
        });
        let why = |before| job.why_not_yet(at - Duration::from_millis(before));
        let said = why(300_000);
        assert_eq!(said.unwrap(), "starts at 2026-01-02T03:04:06Z, in 5m");
        assert!(why(1).unwrap().ends_with("in 1s"));
        assert_eq!(why(0), None);
    }

    #[test]
    fn a_job_that_has_waited_too_long_ends_without_having_run() {
        let mut table = Table::default();
        let mut job = waiting(Spec {
            deadline: Some(Duration::from_secs(600)),
            ..Spec::default()
        });
        job.created_at = now() - Duration::from_secs(601);
        let job = table.insert(job, Arc::default());
        table.enqueue(job.id);
        let ended = table.get(job.id).unwrap();
        assert_eq!(ended.error_text(), "waited longer than its deadline of 10m");
        assert!(ended.never_ran());
        assert!(table.alarms.by_time.is_empty());
    }

    #[test]
    fn a_job_that_is_taken_out_has_no_time_any_more() {
        let mut table = Table::default();
        let job = table.insert(
            waiting(Spec {
                not_before: Some(now() + Duration::from_secs(600)),
                ..Spec::default()
            }),
            Arc::default(),
        );
        table.enqueue(job.id);
        assert!(table.alarms.next().is_some());
        table.dequeue(&job);
        assert!(table.alarms.next().is_none());
        table.enqueue(job.id);
        table.remove(job.id);
        assert!(table.alarms.next().is_none());
    }
}
