//! An alarm by the wall clock: it keeps its time also when the clock is set, or
//! the machine has slept.

use std::io;

use jiff::Timestamp;
use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::net::unix::pipe::Receiver;

/// One alarm.
#[derive(Debug)]
pub(super) struct Clock(Receiver);

impl Clock {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        // A timer is read as a pipe is; what is unchecked is only that it is one.
        Ok(Self(Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// Sets the alarm instead of what was set before; None: to no time.
    pub(super) fn set(&self, at: Option<Timestamp>) -> io::Result<()> {
        let unset = Timespec::default();
        let value = match at {
            None => unset,
            // Zero would mean no time.
            Some(at) if at <= Timestamp::UNIX_EPOCH => Timespec {
                tv_sec: 0,
                tv_nsec: 1,
            },
            Some(at) => Timespec {
                tv_sec: at.as_second(),
                tv_nsec: at.subsec_nanosecond().into(),
            },
        };
        let alarm = Itimerspec {
            it_interval: unset,
            it_value: value,
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.0, flags, &alarm) {
            // The clock was set since it was asked last: the alarm is by the new one.
            Ok(_) | Err(Errno::CANCELED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns at the time that is set, or when the clock itself was set.
    /// Cancel-safe.
    pub(super) async fn rings(&self) -> io::Result<()> {
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::CANCELED) => {
                    return Ok(());
                }
                rung => return rung.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn it_rings_at_the_time_that_was_set_last() {
        let clock = Clock::new().unwrap();
        let now = Timestamp::now();
        clock.set(Some(now + Duration::from_secs(3600))).unwrap();
        assert!(clock.rings().now_or_never().is_none());
        let soon = now + Duration::from_millis(50);
        clock.set(Some(soon)).unwrap();
        clock.rings().await.unwrap();
        assert!(Timestamp::now() >= soon);
        for past in [now, Timestamp::UNIX_EPOCH, Timestamp::MIN] {
            clock.set(Some(past)).unwrap();
            clock.rings().await.unwrap();
        }
        clock.set(Some(Timestamp::MAX)).unwrap();
        assert!(clock.rings().now_or_never().is_none());
        clock.set(None).unwrap();
        assert!(clock.rings().now_or_never().is_none());
    }
}
