//! When to try again after a connection was lost, and when to give up. Knows no
//! request: [`super::logs`] and the command `wait` ask it.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Error;
use crate::api::code;

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Where it is waited for some seconds alone.
const SHORT_PAUSE: Duration = Duration::from_millis(500);
const GIVE_UP: Duration = Duration::from_secs(5 * 60);
/// A scheduler that was restarted hears of a job from its worker's next
/// registration; for as long it does not know the job.
const GIVE_UP_UNKNOWN: Duration = Duration::from_secs(30);

/// The state of one road to the scheduler, which may break again and again.
#[derive(Debug)]
pub struct Retry {
    /// How long a scheduler may be away; and a worker, where the command does not stay.
    limit: Duration,
    /// The command stays for the job: a worker that is away is waited for without end.
    stays: bool,
    longest_pause: Duration,
    pause: Duration,
    connected_at: Option<Instant>,
    broken_since: Option<Instant>,
    unknown_since: Option<Instant>,
}

impl Retry {
    /// A road that is open.
    pub fn new(now: Instant) -> Self {
        Self {
            limit: GIVE_UP,
            stays: true,
            longest_pause: LONGEST_PAUSE,
            pause: SHORTEST_PAUSE,
            connected_at: Some(now),
            broken_since: None,
            unknown_since: None,
        }
    }

    /// One that is given up when it was not open for so long, even if only a worker is away.
    pub fn within(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            stays: false,
            longest_pause: SHORT_PAUSE,
            ..Self::new(now)
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
    /// another attempt is of no use: five minutes in which nothing came (or as long as
    /// was said), half a minute of not knowing the job, or a plain refusal.
    pub fn pause(&mut self, error: &Error, now: Instant) -> Option<Duration> {
        if let Some(connected_at) = self.connected_at.take()
            && now.duration_since(connected_at) > LONGEST_PAUSE
        {
            // It held, and there was nothing to send.
            self.progressed();
        }
        let broken_since = *self.broken_since.get_or_insert(now);
        let broken_for = now.duration_since(broken_since);
        let mut left = Duration::MAX;
        if self.stays && error.is_of_worker_away() {
            // The scheduler is there, and says so.
            self.unknown_since = None;
            self.broken_since = None;
        } else if error.is_passing() {
            self.unknown_since = None;
            if broken_for > self.limit || self.limit.is_zero() {
                return None;
            }
            if !self.stays {
                left = self.limit - broken_for;
            }
        } else if error.code() == Some(code::JOB_NOT_FOUND) {
            let unknown_since = *self.unknown_since.get_or_insert(now);
            if now.duration_since(unknown_since) > GIVE_UP_UNKNOWN.min(self.limit) {
                return None;
            }
        } else {
            return None;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(self.longest_pause);
        Some(jittered(pause).min(left))
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
            hung_up: true,
        }
    }

    fn refused(status: u16, code: &str) -> Error {
        Error::Refused {
            status,
            error: api::Error {
                error: "no".into(),
                code: code.into(),
                job_id: None,
                worker: None,
            },
        }
    }

    fn worker_away() -> Error {
        let mut error = refused(504, "worker_unreachable");
        if let Error::Refused { error, .. } = &mut error {
            error.worker = Some("w2".into());
        }
        error
    }

    #[test]
    fn a_worker_that_is_away_is_waited_for_without_end_by_who_stays() {
        let now = Instant::now();
        let mut retry = Retry::new(now);
        for hour in 0..48 {
            let later = now + Duration::from_secs(hour * 3600);
            assert!(retry.pause(&worker_away(), later).is_some(), "{hour}");
        }
        let limit = Duration::from_secs(5);
        let mut retry = Retry::within(limit, now);
        assert!(retry.pause(&worker_away(), now).is_some());
        let late = now + limit + Duration::from_millis(1);
        assert!(retry.pause(&worker_away(), late).is_none());
    }

    #[test]
    fn the_last_attempt_is_made_when_the_patience_ends() {
        let now = Instant::now();
        let limit = Duration::from_secs(5);
        let mut retry = Retry::within(limit, now);
        let (mut at, mut pauses) = (now, 0);
        while let Some(pause) = retry.pause(&lost(), at) {
            assert!(pause <= SHORT_PAUSE);
            at += pause + Duration::from_nanos(1);
            pauses += 1;
        }
        assert!(at > now + limit && at < now + limit + Duration::from_millis(1));
        assert!(pauses > 9, "{pauses}");
        assert!(
            Retry::within(Duration::ZERO, now)
                .pause(&lost(), now)
                .is_none()
        );
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
