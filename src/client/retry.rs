//! When to try again after a connection was lost, and when to give up. Knows no
//! request: [`super::logs`] and the command `wait` ask it.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Error;
use crate::api::code;

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_secs(5 * 60);
/// A scheduler that was restarted hears of a job from its worker's next
/// registration; for as long it does not know the job.
const GIVE_UP_UNKNOWN: Duration = Duration::from_secs(30);

/// The state of one road to the scheduler, which may break again and again.
#[derive(Debug)]
pub struct Retry {
    pause: Duration,
    connected_at: Option<Instant>,
    broken_since: Option<Instant>,
    unknown_since: Option<Instant>,
}

impl Retry {
    /// A road that is open.
    pub fn new(now: Instant) -> Self {
        Self {
            pause: SHORTEST_PAUSE,
            connected_at: Some(now),
            broken_since: None,
            unknown_since: None,
        }
    }

    /// The scheduler answered; what comes behind may still break off at once.
    pub fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
        self.unknown_since = None;
    }

    /// Something new arrived: the next break is the first again.
    pub fn progressed(&mut self) {
        self.pause = SHORTEST_PAUSE;
        self.broken_since = None;
    }

    /// How long to wait before the next attempt after `error`, or `None` where
    /// another attempt is of no use: five minutes in which nothing came, half a
    /// minute of not knowing the job, or a plain refusal.
    pub fn pause(&mut self, error: &Error, now: Instant) -> Option<Duration> {
        if let Some(connected_at) = self.connected_at.take()
            && now.duration_since(connected_at) > LONGEST_PAUSE
        {
            // It held, and there was nothing to send.
            self.progressed();
        }
        let broken_since = *self.broken_since.get_or_insert(now);
        if error.is_passing() {
            self.unknown_since = None;
            if now.duration_since(broken_since) > GIVE_UP {
                return None;
            }
        } else if error.code() == Some(code::JOB_NOT_FOUND) {
            let unknown_since = *self.unknown_since.get_or_insert(now);
            if now.duration_since(unknown_since) > GIVE_UP_UNKNOWN {
                return None;
            }
        } else {
            return None;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(jittered(pause))
    }
}

/// Between half of `pause` and all of it, so that the followers a restarted
/// scheduler had do not all come back in one instant.
fn jittered(pause: Duration) -> Duration {
    let [random, ..] = Uuid::new_v4().into_bytes();
    pause.mul_f64(0.5 + f64::from(random) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    fn lost() -> Error {
        Error::Unreachable {
            server: "s".into(),
            reason: "connection refused".into(),
        }
    }

    fn refused(status: u16, code: &str) -> Error {
        Error::Refused {
            status,
            error: api::Error {
                error: "no".into(),
                code: code.into(),
                job_id: None,
            },
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let now = Instant::now();
        let mut retry = Retry::new(now);
        for milliseconds in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let whole = Duration::from_millis(milliseconds);
            let pause = retry.pause(&lost(), now).unwrap();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} {whole:?}");
        }
        retry.connected(now);
        assert!(retry.pause(&lost(), now).unwrap() > Duration::from_secs(1));
        retry.connected(now);
        retry.progressed();
        assert!(retry.pause(&lost(), now).unwrap() <= SHORTEST_PAUSE);
    }

    #[test]
    fn a_quiet_connection_that_held_starts_over() {
        let now = Instant::now();
        let mut retry = Retry::new(now);
        for _ in 0..6 {
            retry.pause(&lost(), now);
        }
        retry.connected(now);
        let later = now + LONGEST_PAUSE * 2;
        assert!(retry.pause(&lost(), later).unwrap() <= SHORTEST_PAUSE);
    }

    #[test]
    fn it_gives_up_five_minutes_after_the_break() {
        let now = Instant::now();
        let mut retry = Retry::new(now);
        let broken = now + Duration::from_secs(3600);
        assert!(retry.pause(&lost(), broken).is_some());
        assert!(retry.pause(&lost(), broken + GIVE_UP).is_some());
        let late = broken + GIVE_UP + Duration::from_secs(1);
        assert!(
            retry
                .pause(&refused(504, "worker_unreachable"), late)
                .is_none()
        );
    }

    #[test]
    fn answers_that_bring_nothing_are_given_up_after_five_minutes_too() {
        let now = Instant::now();
        let mut retry = Retry::new(now);
        let mut at = now;
        while let Some(pause) = retry.pause(&lost(), at) {
            at += pause;
            assert!(at - now < GIVE_UP * 2, "it is tried for ever");
            retry.connected(at);
        }
        assert!(at - now > GIVE_UP);
    }

    #[test]
    fn an_unknown_job_is_given_half_a_minute() {
        let now = Instant::now();
        let mut retry = Retry::new(now);
        let unknown = refused(404, code::JOB_NOT_FOUND);
        assert!(retry.pause(&lost(), now).is_some());
        let back = now + Duration::from_secs(60);
        assert!(retry.pause(&unknown, back).is_some());
        assert!(retry.pause(&unknown, back + GIVE_UP_UNKNOWN).is_some());
        let late = back + GIVE_UP_UNKNOWN + Duration::from_secs(1);
        assert!(retry.pause(&unknown, late).is_none());
    }

    #[test]
    fn a_refusal_is_final() {
        let now = Instant::now();
        for error in [
            refused(403, "forbidden"),
            refused(404, code::WORKER_NOT_FOUND),
            refused(400, "malformed"),
        ] {
            assert!(Retry::new(now).pause(&error, now).is_none(), "{error:?}");
        }
        for status in [502, 503, 504] {
            let error = refused(status, "");
            assert!(Retry::new(now).pause(&error, now).is_some(), "{status}");
        }
    }
}
