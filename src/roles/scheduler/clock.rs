//! Alarms by the wall clock and by how long the machine has run: they keep their time
//! also when the clock is set, or the machine has slept. And a time that one wrong
//! reading of another one does not move.

use std::{
    io,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::net::unix::pipe::Receiver;

#[cfg(test)]
use crate::simulation;

/// Two alarms.
#[derive(Debug)]
pub(super) struct Clock {
    wall: Receiver,
    /// By how long the machine has run, asleep as well.
    ran: Receiver,
    #[cfg(test)]
    simulated: simulation::Alarm,
}

impl Clock {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            wall: timer(TimerfdClockId::Realtime)?,
            ran: timer(TimerfdClockId::Boottime)?,
            #[cfg(test)]
            simulated: simulation::Alarm::new(),
        })
    }

    /// Sets the alarms instead of what was set before: what the wall clock is to show,
    /// and how long the machine is to have run; None: to no time.
    pub(super) fn set(&self, wall: Option<Timestamp>, ran: Option<Duration>) -> io::Result<()> {
        #[cfg(test)]
        if simulation::is_on() {
            self.simulated.set(wall, ran);
            return Ok(());
        }
        let wall = wall.map(|at| match Duration::try_from(at.as_duration()) {
            Ok(at) => at,
            Err(_) => Duration::ZERO,
        });
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        set(&self.wall, flags, wall)?;
        set(&self.ran, TimerfdTimerFlags::ABSTIME, ran)
    }

    /// Returns at a time that is set, or when the wall clock itself was set.
    /// Cancel-safe.
    pub(super) async fn rings(&self) -> io::Result<()> {
        #[cfg(test)]
        if simulation::is_on() {
            self.simulated.rings().await;
            return Ok(());
        }
        tokio::select! {
            rung = rings(&self.wall) => rung,
            rung = rings(&self.ran) => rung,
        }
    }
}

fn timer(clock: TimerfdClockId) -> io::Result<Receiver> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    // A timer is read as a pipe is; what is unchecked is only that it is one.
    Receiver::from_owned_fd_unchecked(timerfd_create(clock, flags)?)
}

fn set(timer: &Receiver, flags: TimerfdTimerFlags, at: Option<Duration>) -> io::Result<()> {
    // Zero would mean no time.
    let value = at.map(|at| at.max(Duration::from_nanos(1)));
    let value = value.map(|at| Timespec {
        tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: at.subsec_nanos().into(),
    });
    let alarm = Itimerspec {
        it_interval: Timespec::default(),
        it_value: value.unwrap_or_default(),
    };
    match timerfd_settime(timer, flags, &alarm) {
        // The clock was set since it was asked last: the alarm is by the new one.
        Ok(_) | Err(Errno::CANCELED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn rings(timer: &Receiver) -> io::Result<()> {
    loop {
        timer.readable().await?;
        match timer.try_read(&mut [0; 8]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::CANCELED) => {
                return Ok(());
            }
            rung => return rung.map(drop),
        }
    }
}

/// So far a clock may be from where it should be: it was adjusted.
pub(super) const ADJUSTED: SignedDuration = SignedDuration::from_secs(60);

/// A step of a clock that has lasted for so long is taken to be right.
pub(super) const LASTED: Duration = Duration::from_secs(3600);

/// It is then followed so many times as fast as time passes: a day in an hour.
const CATCHING_UP: u32 = 24;

/// A time that follows another one, but no step of it that may be a mistake, for what
/// cannot be undone.
#[derive(Debug)]
pub(super) struct Steady {
    at: Timestamp,
    read: Instant,
    stepped: Option<Instant>,
}

impl Steady {
    /// It was `at` when it was kept last.
    pub(super) fn new(at: Timestamp, now: Instant) -> Self {
        Self {
            at,
            read: now,
            stepped: None,
        }
    }

    /// Where it is, to be kept.
    pub(super) fn at(&self) -> Timestamp {
        self.at
    }

    /// The time, which is never after the one that it follows.
    pub(super) fn advance(&mut self, other: Timestamp, now: Instant) -> Timestamp {
        let passed = now.saturating_duration_since(self.read);
        self.read = now;
        self.at = self.at.checked_add(passed).unwrap_or(self.at);
        let off = other.duration_since(self.at);
        if off.abs() <= ADJUSTED {
            self.at = other;
            self.stepped = None;
            return self.at;
        }
        if self.stepped.is_none() {
            tracing::warn!(
                by = %format!("{off:#}"),
                "time has passed without the scheduler: what became old in it is deleted later"
            );
        }
        let stepped = *self.stepped.get_or_insert(now);
        if now.saturating_duration_since(stepped) >= LASTED {
            self.at = match off.is_negative() {
                true => other,
                false => {
                    let faster = passed.saturating_mul(CATCHING_UP);
                    self.at.checked_add(faster).unwrap_or(other).min(other)
                }
            };
        }
        self.at.min(other)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const PASS: Duration = Duration::from_secs(30);
    const DAYS_40: SignedDuration = SignedDuration::from_hours(40 * 24);

    #[test]
    fn a_step_of_the_wall_clock_is_no_step_of_the_steady_time() {
        let (start, began) = (Timestamp::UNIX_EPOCH + DAYS_40 * 100, Instant::now());
        for step in [DAYS_40, -DAYS_40] {
            let mut steady = Steady::new(start, began);
            for pass in 1..200 {
                let (right, now) = (start + PASS * pass, began + PASS * pass);
                let wall = match pass {
                    10..=12 => right + step,
                    _ => right,
                };
                let time = steady.advance(wall, now);
                assert!(time <= right, "{pass}: {time} {right}");
                assert!((10..=12).contains(&pass) || time == right, "{pass}: {time}");
            }
        }
    }

    #[test]
    fn a_step_that_lasts_is_followed_within_a_bound() {
        let (start, began) = (Timestamp::UNIX_EPOCH + DAYS_40 * 100, Instant::now());
        let mut steady = Steady::new(start, began);
        let time_after = |steady: &mut Steady, pass: u32| {
            let wall = start + DAYS_40 + PASS * pass;
            (steady.advance(wall, began + PASS * pass), wall)
        };
        // The machine was off: nothing is old at once.
        for pass in 1..=120 {
            let (time, _) = time_after(&mut steady, pass);
            assert_eq!(time, start + PASS * pass);
        }
        let mut before = start + PASS * 120;
        let mut passes = 120;
        loop {
            passes += 1;
            let (time, wall) = time_after(&mut steady, passes);
            assert!(time.duration_since(before) <= SignedDuration::from_secs(25 * 30 + 61));
            before = time;
            if time == wall {
                break;
            }
            assert!(passes < 120 * 45, "it is delayed for good");
        }
        assert!(passes > 120 * 35, "{passes}");
    }

    #[tokio::test]
    async fn it_rings_at_the_time_that_was_set_last() {
        let clock = Clock::new().unwrap();
        let now = Timestamp::now();
        let ran = || {
            let ran = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            Duration::try_from(ran).unwrap()
        };
        let (began, hour) = (ran(), Duration::from_secs(3600));
        clock.set(Some(now + hour), Some(began + hour)).unwrap();
        assert!(clock.rings().now_or_never().is_none());
        let short = Duration::from_millis(50);
        clock.set(Some(now + short), Some(began + hour)).unwrap();
        clock.rings().await.unwrap();
        assert!(Timestamp::now() >= now + short);
        clock.set(Some(now + hour), Some(began + short)).unwrap();
        clock.rings().await.unwrap();
        assert!(ran() >= began + short);
        for past in [now, Timestamp::UNIX_EPOCH, Timestamp::MIN] {
            clock.set(Some(past), None).unwrap();
            clock.rings().await.unwrap();
        }
        clock.set(None, Some(Duration::ZERO)).unwrap();
        clock.rings().await.unwrap();
        clock
            .set(Some(Timestamp::MAX), Some(Duration::MAX))
            .unwrap();
        assert!(clock.rings().now_or_never().is_none());
        clock.set(None, None).unwrap();
        assert!(clock.rings().now_or_never().is_none());
    }
}
