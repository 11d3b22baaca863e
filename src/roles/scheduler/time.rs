//! The times of the scheduler. The wall clock can be set, so only what a person asked
//! for by the wall clock hangs on it. All that lasts so long is counted by the time that
//! the machine has run; what is deleted because of its age also follows no leap of that.

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use super::clock::{ADJUSTED, LASTED, Steady};

/// What the clocks of a machine show at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: Timestamp,
    /// How long the machine has run, asleep as well.
    ran: Duration,
}

impl Reading {
    fn now() -> Self {
        let ran = clock_gettime(ClockId::Boottime);
        let whole = Duration::from_secs(ran.tv_sec.unsigned_abs());
        let rest = Duration::from_nanos(ran.tv_nsec.unsigned_abs());
        Self {
            wall: Timestamp::now(),
            ran: whole + rest,
        }
    }

    /// What the wall clock is ahead of how long the machine has run.
    fn ahead(self) -> SignedDuration {
        self.wall.duration_since(since_nothing(self.ran))
    }
}

fn since_nothing(ran: Duration) -> Timestamp {
    Timestamp::UNIX_EPOCH
        .checked_add(ran)
        .unwrap_or(Timestamp::MAX)
}

/// What the store keeps of the counted time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeptTime {
    /// Which run of a machine this is from.
    pub(super) boot: i64,
    /// How long that had run.
    pub(super) ran: Duration,
    /// The counted time then.
    pub(super) counted: Timestamp,
    /// What the wall clock showed when it was last in step with the counted time.
    pub(super) wall: Timestamp,
    /// No time without the machine is left to be counted.
    pub(super) is_settled: bool,
}

/// The time by which durations are counted. It goes on with the machine, whatever
/// the wall clock is set to, also across a restart of the scheduler. Only from one run
/// of the machine to the next it has to believe the wall clock: at once as far as an
/// hour, and the rest when the clock has shown the same for an hour.
#[derive(Debug)]
struct Counted {
    boot: i64,
    /// Where it was when the machine began to run.
    begin: Timestamp,
    away: Option<Away>,
}

/// The machine did not run for a while, not all of which is counted yet.
#[derive(Debug)]
struct Away {
    /// The counted time and the wall clock as they were kept.
    counted: Timestamp,
    wall: Timestamp,
    /// So much of it was counted on the word of a clock that may still be set right.
    believed: Duration,
    /// What the wall clock shows since when.
    ahead: SignedDuration,
    since: Duration,
}

impl Counted {
    fn new(boot: i64, kept: Option<KeptTime>, now: Reading) -> Self {
        let from = |counted: Timestamp, ran| counted.checked_sub(ran).unwrap_or(counted);
        let Some(kept) = kept else {
            return Self {
                boot,
                begin: from(now.wall, now.ran),
                away: None,
            };
        };
        let is_same = kept.boot == boot && kept.ran <= now.ran;
        let (begin, believed) = match is_same {
            true => (from(kept.counted, kept.ran), LASTED),
            false => (from(kept.counted, now.ran), Duration::ZERO),
        };
        let mut counted = Self {
            boot,
            begin,
            away: (!is_same || !kept.is_settled).then(|| Away {
                counted: kept.counted,
                wall: kept.wall,
                believed,
                ahead: now.ahead(),
                since: now.ran,
            }),
        };
        counted.settle(now);
        counted
    }

    fn at(&self, ran: Duration) -> Timestamp {
        self.begin.checked_add(ran).unwrap_or(self.begin)
    }

    /// How much of the time without the machine is not counted yet, by the wall clock.
    fn owed(&self, away: &Away, now: Reading) -> Duration {
        let by_wall = now.wall.duration_since(away.wall);
        let counted = self.at(now.ran).duration_since(away.counted);
        Duration::try_from(by_wall.saturating_sub(counted)).unwrap_or_default()
    }

    /// Counts what can be counted of the time without the machine. Returns how long
    /// the machine will have run when this is to be asked again.
    fn settle(&mut self, now: Reading) -> Option<Duration> {
        let mut away = self.away.take()?;
        if now.ahead().saturating_sub(away.ahead).abs() > ADJUSTED {
            (away.ahead, away.since) = (now.ahead(), now.ran);
        }
        let owed = self.owed(&away, now);
        if now.ran.saturating_sub(away.since) >= LASTED {
            self.begin = self.at(owed);
            return None;
        }
        let more = owed.min(LASTED.saturating_sub(away.believed));
        self.begin = self.at(more);
        away.believed += more;
        let due = away.since + LASTED;
        self.away = Some(away);
        Some(due)
    }

    fn kept(&self, now: Reading) -> KeptTime {
        let owed = self.away.as_ref().map(|away| self.owed(away, now));
        KeptTime {
            boot: self.boot,
            ran: now.ran,
            counted: self.at(now.ran),
            wall: (now.wall)
                .checked_sub(owed.unwrap_or_default())
                .unwrap_or(now.wall),
            is_settled: owed.is_none(),
        }
    }
}

/// Both times by which a wish may be due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// What the wall clock shows.
    pub(super) wall: Timestamp,
    /// The time by which durations are counted.
    pub(super) counted: Timestamp,
}

impl Now {
    /// What the wall clock will show at this counted time, unless it is set.
    pub(super) fn on_the_wall(&self, counted: Timestamp) -> Timestamp {
        let left = counted.duration_since(self.counted);
        let shown = self.wall.checked_add(left).unwrap_or(self.wall);
        Timestamp::from_microsecond(shown.as_microsecond()).unwrap_or(shown)
    }
}

/// A handle to the times of this scheduler; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Time(Arc<Mutex<Times>>);

#[derive(Debug)]
struct Times {
    counted: Counted,
    steady: Steady,
    /// The wall clock is off by so much.
    #[cfg(test)]
    off: SignedDuration,
}

impl Times {
    fn read(&self) -> Reading {
        let now = Reading::now();
        #[cfg(test)]
        let now = Reading {
            wall: now.wall + self.off,
            ..now
        };
        now
    }
}

impl Time {
    /// As the store has kept them: None, where it is new.
    pub(super) fn new(counted: Option<KeptTime>, steady: Option<Timestamp>) -> Self {
        let now = Reading::now();
        let counted = Counted::new(boot(), counted, now);
        let steady = steady.unwrap_or(counted.at(now.ran));
        Self(Arc::new(Mutex::new(Times {
            counted,
            steady: Steady::new(steady, Instant::now()),
            #[cfg(test)]
            off: SignedDuration::ZERO,
        })))
    }

    pub(super) fn now(&self) -> Now {
        let times = self.times();
        let now = times.read();
        Now {
            wall: now.wall,
            counted: times.counted.at(now.ran),
        }
    }

    /// The time by which durations are counted.
    pub(super) fn counted(&self) -> Timestamp {
        self.now().counted
    }

    /// The time for what is deleted because of its age, which follows the counted time,
    /// and slowly where that leaps.
    pub(super) fn of_age(&self) -> Timestamp {
        let mut times = self.times();
        let counted = times.counted.at(times.read().ran);
        times.steady.advance(counted, Instant::now())
    }

    /// Where that time is, to be kept.
    pub(super) fn age_kept(&self) -> Timestamp {
        self.times().steady.at()
    }

    /// What is to be kept of the counted time.
    pub(super) fn kept(&self) -> KeptTime {
        let times = self.times();
        times.counted.kept(times.read())
    }

    /// Counts the time without the machine as far as the wall clock can be believed.
    /// Returns the counted time at which this is to be asked again.
    pub(super) fn settle(&self) -> Option<Timestamp> {
        let mut times = self.times();
        let now = times.read();
        let due = times.counted.settle(now)?;
        Some(times.counted.at(due))
    }

    /// How long the machine will have run at this counted time.
    pub(super) fn ran_at(&self, counted: Timestamp) -> Duration {
        let left = counted.duration_since(self.times().counted.begin);
        Duration::try_from(left).unwrap_or_default()
    }

    /// The wall clock is off by so much.
    #[cfg(test)]
    pub(super) fn step(&self, by: SignedDuration) {
        self.times().off = by;
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Time {
    fn default() -> Self {
        Self::new(None, None)
    }
}

/// Which run of this machine it is; one that cannot be told is like no other.
fn boot() -> i64 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id: Uuid = text.trim().parse().unwrap_or_else(|_| Uuid::new_v4());
    id.as_u64_pair().0.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);
    const DAYS_40: SignedDuration = SignedDuration::from_hours(40 * 24);

    fn start() -> Timestamp {
        Timestamp::UNIX_EPOCH + DAYS_40 * 400
    }

    /// The machine has run so long, and its clock is off.
    fn at(ran: Duration, off: SignedDuration) -> Reading {
        Reading {
            wall: start() + ran + off,
            ran,
        }
    }

    fn right(ran: Duration) -> Reading {
        at(ran, SignedDuration::ZERO)
    }

    #[test]
    fn no_step_of_the_wall_clock_moves_the_counted_time() {
        for step in [DAYS_40, -DAYS_40] {
            let mut counted = Counted::new(1, None, right(HOUR));
            for minutes in 1..200 {
                let off = step * i32::from((10..150).contains(&minutes));
                let now = at(HOUR + MINUTE * minutes, off);
                assert_eq!(counted.settle(now), None);
                assert_eq!(counted.at(now.ran), start() + now.ran);
                // The scheduler restarts, and the clock is set while it is not there.
                let next = at(now.ran + MINUTE, step);
                counted = Counted::new(1, Some(counted.kept(now)), next);
                assert_eq!(counted.at(next.ran), start() + next.ran, "{minutes}");
            }
        }
    }

    #[test]
    fn a_short_time_without_the_machine_counts_at_once() {
        let counted = Counted::new(1, None, right(HOUR * 30));
        let kept = counted.kept(right(HOUR * 30));
        // It has run for a minute since.
        let now = Reading {
            wall: start() + HOUR * 30 + MINUTE * 10,
            ran: MINUTE,
        };
        let counted = Counted::new(2, Some(kept), now);
        assert_eq!(counted.at(now.ran), now.wall);
    }

    #[test]
    fn a_long_time_without_the_machine_counts_when_the_clock_has_lasted() {
        let counted = Counted::new(1, None, right(HOUR * 30));
        let kept = counted.kept(right(HOUR * 30));
        let before = start() + HOUR * 30;
        let after = |ran| Reading {
            wall: before + HOUR * 100 + ran,
            ran,
        };
        let mut counted = Counted::new(2, Some(kept), after(MINUTE));
        assert_eq!(counted.at(MINUTE), before + HOUR, "an hour of it");
        assert_eq!(counted.settle(after(MINUTE * 30)), Some(HOUR + MINUTE));
        assert_eq!(counted.at(MINUTE * 30), before + HOUR + MINUTE * 29);
        // The scheduler restarts: it knows what is left.
        let kept = counted.kept(after(MINUTE * 30));
        let mut counted = Counted::new(2, Some(kept), after(MINUTE * 40));
        assert_eq!(counted.at(MINUTE * 40), before + HOUR + MINUTE * 39);
        assert_eq!(counted.settle(after(MINUTE * 99)), Some(MINUTE * 100));
        assert_eq!(counted.settle(after(MINUTE * 100)), None);
        assert_eq!(counted.at(MINUTE * 100), after(MINUTE * 100).wall);
    }

    #[test]
    fn a_clock_that_is_wrong_after_the_machine_has_restarted_is_believed_an_hour_at_most() {
        let counted = Counted::new(1, None, right(HOUR * 30));
        let kept = counted.kept(right(HOUR * 30));
        let before = start() + HOUR * 30;
        for wrong in [DAYS_40, -DAYS_40] {
            let clock = |ran, off| Reading {
                wall: before + MINUTE * 5 + ran + off,
                ran,
            };
            let mut counted = Counted::new(2, Some(kept), clock(MINUTE, wrong));
            let believed = counted.at(MINUTE).duration_since(before);
            let most = SignedDuration::from_hours(1);
            assert!((SignedDuration::ZERO..=most).contains(&believed));
            // It is set right, and has been right for an hour.
            let set = clock(MINUTE * 20, SignedDuration::ZERO);
            assert_eq!(counted.settle(set), Some(HOUR + MINUTE * 20));
            let last = clock(HOUR * 2, SignedDuration::ZERO);
            assert_eq!(counted.settle(last), None);
            let off = counted.at(last.ran).duration_since(last.wall);
            assert!(off >= SignedDuration::ZERO && off <= most, "{off}");
        }
    }
}
