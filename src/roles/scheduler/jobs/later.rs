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
    Jobs, Spec,
    prerequisites::in_vain,
    record::{End, Event, Record, State},
    table::Table,
};
use crate::{ids::JobId, roles::scheduler::time::Now};

/// When a job that waits is to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// When the wall clock shows this.
    Wall(Timestamp),
    /// At this counted time.
    Counted(Timestamp),
}

/// When the jobs that wait are to be looked at again: one time for each.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    wall: BTreeSet<(Timestamp, JobId)>,
    counted: BTreeSet<(Timestamp, JobId)>,
    of_job: HashMap<JobId, Alarm>,
    earlier: Arc<Notify>,
}

impl Alarms {
    /// None: no more.
    pub(super) fn set(&mut self, id: JobId, alarm: Option<Alarm>) {
        let before = match alarm {
            Some(alarm) => self.of_job.insert(id, alarm),
            None => self.of_job.remove(&id),
        };
        if let Some(before) = before {
            let (order, at) = self.order(before);
            order.remove(&(at, id));
        }
        let Some(alarm) = alarm else {
            return;
        };
        let (order, at) = self.order(alarm);
        order.insert((at, id));
        if order.first() == Some(&(at, id)) {
            self.earlier.notify_one();
        }
    }

    fn order(&mut self, alarm: Alarm) -> (&mut BTreeSet<(Timestamp, JobId)>, Timestamp) {
        match alarm {
            Alarm::Wall(at) => (&mut self.wall, at),
            Alarm::Counted(at) => (&mut self.counted, at),
        }
    }

    /// The next time by the wall clock, and the next counted time.
    fn next(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        let first = |order: &BTreeSet<(Timestamp, JobId)>| order.first().map(|(at, _)| *at);
        (first(&self.wall), first(&self.counted))
    }

    /// The jobs whose time has come by `now`.
    fn take(&mut self, now: Now) -> Vec<JobId> {
        let mut due = Vec::new();
        for (order, now) in [(&self.wall, now.wall), (&self.counted, now.counted)] {
            due.extend(order.iter().take_while(|(at, _)| *at <= now));
        }
        due.sort();
        for (_, id) in &due {
            self.set(*id, None);
        }
        due.into_iter().map(|(_, id)| id).collect()
    }
}

impl Spec {
    /// Since when, by the counted time, it waits for no time by the wall clock any more;
    /// None: it does, or never did.
    pub(super) fn ripe_at(&self, now: Now) -> Option<Timestamp> {
        let is_ripe = self.not_before.is_some_and(|at| at <= now.wall);
        is_ripe.then_some(now.counted)
    }
}

impl Record {
    /// When it was accepted, by the counted time.
    pub(super) fn counts_from(&self) -> Timestamp {
        self.counts_from.unwrap_or(self.created_at)
    }

    /// It is not started before the wall clock has shown this, which it has not yet.
    pub(super) fn unripe_until(&self) -> Option<Timestamp> {
        let has_waited = self.ripe_at.is_some() || !self.attempts.is_empty();
        self.spec.not_before.filter(|_| !has_waited)
    }

    /// Before this counted time it is not started.
    fn starts_at(&self) -> Option<Timestamp> {
        let delay = |from: Timestamp| from.checked_add(self.spec.delay?).ok();
        self.retry_at.or(delay(self.counts_from()))
    }

    /// Before what the wall clock shows it is not started, unless that is set.
    pub(super) fn not_before(&self, now: Now) -> Option<Timestamp> {
        let counted = self.starts_at().map(|at| now.on_the_wall(at));
        counted.or(self.spec.not_before)
    }

    /// As [`Record::not_before`] was when it was accepted.
    pub(super) fn asked_not_before(&self) -> Option<Timestamp> {
        let delay = |from: Timestamp| from.checked_add(self.spec.delay?).ok();
        self.spec.not_before.or(delay(self.created_at))
    }

    /// When it is given up if it was never given to a worker by then, by the counted
    /// time; None: that is not counted yet, or it is not given up.
    fn given_up_at(&self) -> Option<Timestamp> {
        if !self.attempts.is_empty() || self.unripe_until().is_some() {
            return None;
        }
        let from = self.starts_at().or(self.ripe_at);
        let from = from.unwrap_or(self.counts_from());
        from.checked_add(self.spec.deadline?).ok()
    }

    /// What it waits for, if that is a time.
    pub(super) fn why_not_yet(&self, now: Now) -> Option<String> {
        let at = match self.unripe_until() {
            Some(at) => at,
            None => now.on_the_wall(self.starts_at()?),
        };
        let left = at.duration_since(now.wall);
        if left <= SignedDuration::ZERO {
            return None;
        }
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
        self.look_at(id, self.time.now());
    }

    fn look_at(&mut self, id: JobId, now: Now) {
        self.ripen(id, now);
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
            && at <= now.counted
        {
            return self.apply(id, given_up(deadline));
        }
        if let Some(end) = in_vain(&record) {
            return self.apply(id, end);
        }
        let unripe_until = record.unripe_until().map(Alarm::Wall);
        self.alarms
            .set(id, unripe_until.or(given_up_at.map(Alarm::Counted)));
        if !record.is_free() {
            return self.await_others(&record);
        }
        if unripe_until.is_some() {
            return;
        }
        if let Some(at) = record.starts_at().filter(|at| *at > now.counted) {
            return self.alarms.set(id, Some(Alarm::Counted(at)));
        }
        match self.recovery.holds(id) {
            true => self.hold(&record),
            false => self.line_up(&record),
        }
    }

    fn ring(&mut self) {
        let now = self.time.now();
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
            let time = self.0.store.time();
            let settled = time.settle();
            // Also when a time was set: it may have come.
            self.change(Table::ring);
            let (wall, counted) = self.table().alarms.next();
            let counted = counted.into_iter().chain(settled).min();
            self.0.clock.set(wall, counted.map(|at| time.ran_at(at)))?;
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
    use crate::roles::scheduler::jobs::{
        Process, Status,
        record::{now, tests::record},
    };

    const MINUTE: Duration = Duration::from_secs(60);
    const DAYS_40: SignedDuration = SignedDuration::from_hours(40 * 24);

    fn waiting(spec: Spec) -> Record {
        Record {
            spec: Arc::new(spec),
            place: None,
            ..record(State::Queued)
        }
    }

    /// Both times show this.
    fn both(at: Timestamp) -> Now {
        Now {
            wall: at,
            counted: at,
        }
    }

    #[test]
    fn a_job_has_one_time_and_an_earlier_one_is_told() {
        let (a, b) = (JobId::random(), JobId::random());
        let at = |seconds| Timestamp::UNIX_EPOCH + Duration::from_secs(seconds);
        let told = |alarms: &Alarms| {
            use futures_util::FutureExt as _;
            alarms.earlier.notified().now_or_never().is_some()
        };
        for by in [Alarm::Wall, Alarm::Counted] {
            let mut alarms = Alarms::default();
            let next = |alarms: &Alarms| match by(at(0)) {
                Alarm::Wall(_) => alarms.next().0,
                Alarm::Counted(_) => alarms.next().1,
            };
            alarms.set(a, Some(by(at(20))));
            assert!(told(&alarms));
            alarms.set(b, Some(by(at(30))));
            assert!(!told(&alarms), "a later one changes nothing");
            alarms.set(b, Some(by(at(10))));
            assert!(told(&alarms));
            assert_eq!(next(&alarms), Some(at(10)));
            assert_eq!(alarms.take(both(at(9))), []);
            assert_eq!(alarms.take(both(at(20))), [b, a]);
            alarms.set(a, Some(by(at(1))));
            alarms.set(a, None);
            assert_eq!(alarms.take(both(at(100))), []);
            assert!(alarms.of_job.is_empty());
        }
        // Each by its own clock.
        let mut alarms = Alarms::default();
        alarms.set(a, Some(Alarm::Wall(at(20))));
        alarms.set(b, Some(Alarm::Counted(at(20))));
        let now = Now {
            wall: at(20),
            counted: at(10),
        };
        assert_eq!(alarms.take(now), [a]);
        assert_eq!(alarms.next(), (None, Some(at(20))));
    }

    #[test]
    fn a_deadline_counts_from_when_a_job_may_start() {
        let job = waiting(Spec {
            deadline: Some(MINUTE),
            ..Spec::default()
        });
        assert_eq!(job.given_up_at(), Some(job.created_at + MINUTE));
        let counted = Record {
            counts_from: Some(Timestamp::UNIX_EPOCH),
            ..job.clone()
        };
        assert_eq!(counted.given_up_at(), Some(Timestamp::UNIX_EPOCH + MINUTE));
        let later = |change: fn(&mut Spec, Timestamp)| {
            let mut spec = (*job.spec).clone();
            change(&mut spec, job.created_at);
            let ripe_at = spec.ripe_at(both(job.created_at));
            Record {
                spec: Arc::new(spec),
                ripe_at,
                ..job.clone()
            }
        };
        let delayed = later(|spec, _| spec.delay = Some(MINUTE));
        assert_eq!(delayed.given_up_at(), Some(job.created_at + MINUTE * 2));
        // A time in the past is no reason to give it up at once.
        let past = later(|spec, at| spec.not_before = Some(at - MINUTE));
        assert_eq!(past.given_up_at(), Some(job.created_at + MINUTE));
        let unripe = later(|spec, at| spec.not_before = Some(at + MINUTE));
        assert_eq!(unripe.given_up_at(), None, "it is not counted yet");
    }

    #[test]
    fn it_is_said_when_a_job_starts() {
        let at: Timestamp = "2026-01-02T03:04:05.5Z".parse().unwrap();
        let job = waiting(Spec {
            not_before: Some(at),
            ..Spec::default()
        });
        let why = |before| job.why_not_yet(both(at - Duration::from_millis(before)));
        let said = why(300_000);
        assert_eq!(said.unwrap(), "starts at 2026-01-02T03:04:06Z, in 5m");
        assert!(why(1).unwrap().ends_with("in 1s"));
        assert_eq!(why(0), None);
        // As the wall clock shows it now.
        let job = Record {
            counts_from: Some(at),
            ..waiting(Spec {
                delay: Some(MINUTE * 5),
                ..Spec::default()
            })
        };
        let now = Now {
            wall: at + DAYS_40,
            counted: at + MINUTE,
        };
        let said = job.why_not_yet(now).unwrap();
        assert_eq!(said, "starts at 2026-02-11T03:08:06Z, in 4m");
        let shown = job.not_before(now).unwrap();
        assert_eq!(shown, at + DAYS_40 + MINUTE * 4);
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
        assert_eq!(table.alarms.next(), (None, None));
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
        assert!(table.alarms.next().0.is_some());
        table.dequeue(&job);
        assert_eq!(table.alarms.next(), (None, None));
        table.enqueue(job.id);
        table.remove(job.id);
        assert_eq!(table.alarms.next(), (None, None));
    }

    /// Rings every alarm that is due, as after a step of the clock.
    fn step(table: &mut Table, by: SignedDuration) {
        table.time.step(by);
        table.ring();
        let jobs: Vec<JobId> = table.alarms.of_job.keys().copied().collect();
        for id in jobs {
            table.enqueue(id);
        }
    }

    #[test]
    fn no_step_of_the_clock_ends_a_job_or_moves_its_start() {
        let mut table = Table::default();
        let hour = Duration::from_secs(3600);
        let accepted = table.time.counted();
        let mut add = |spec: Spec| {
            let job = Record {
                counts_from: Some(accepted),
                ..waiting(spec)
            };
            let id = table.insert(job, Arc::default()).id;
            table.enqueue(id);
            id
        };
        let impatient = add(Spec {
            deadline: Some(hour),
            ..Spec::default()
        });
        let delayed = add(Spec {
            delay: Some(hour),
            deadline: Some(hour),
            ..Spec::default()
        });
        let spec = Spec {
            retries: 1,
            retry_pause: Some(hour),
            ..Spec::default()
        };
        let tried = Record {
            spec: Arc::new(spec),
            ..record(State::Running(Process::default()))
        };
        let tried = table.insert(tried, Arc::default()).id;
        let failed = Status {
            state: State::Ended {
                process: None,
                at: now(),
                end: End::Failed(None),
                reason: "exit status 3".to_owned(),
            },
            output_bytes: 0,
        };
        // It fails under a wrong clock.
        table.time.step(DAYS_40);
        table.report(tried, failed, None);
        let alarms = |table: &Table| {
            [impatient, delayed, tried].map(|id| match table.alarms.of_job.get(&id) {
                Some(Alarm::Counted(at)) => at.duration_since(accepted).as_secs() / 60,
                other => panic!("{other:?}"),
            })
        };
        let minutes = [60, 60, 60];
        for by in [DAYS_40, -DAYS_40, SignedDuration::ZERO] {
            step(&mut table, by);
            assert_eq!(alarms(&table), minutes, "{by}");
            let why = table.why(&table.get(tried).unwrap());
            assert!(why.contains(", in 1h; attempt 1"), "{why}");
        }
    }

    #[test]
    fn a_time_by_the_wall_clock_that_has_come_has_come() {
        let mut table = Table::default();
        let hour = Duration::from_secs(3600);
        let spec = Spec {
            not_before: Some(now() + hour),
            deadline: Some(hour),
            ..Spec::default()
        };
        let id = table.insert(waiting(spec), Arc::default()).id;
        table.enqueue(id);
        assert!(table.alarms.next().0.is_some());
        // What it was asked for is what the clock shows.
        step(&mut table, DAYS_40);
        let ripe = table.get(id).unwrap();
        assert!(ripe.ripe_at.is_some());
        assert_eq!(ripe.state, State::Queued, "its deadline counts from now on");
        step(&mut table, SignedDuration::ZERO);
        assert_eq!(table.get(id).unwrap(), ripe, "and does not begin again");
        assert_eq!(table.alarms.next().1, ripe.given_up_at());
    }
}
