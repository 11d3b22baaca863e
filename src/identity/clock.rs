//! The time by which certificates are signed and judged. A step of the wall clock that
//! is undone within a day makes no certificate useless: until then it counts as well
//! what the clock would show without the step.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};

/// So far the wall clock may be from where it should be: it was adjusted.
const ADJUSTED: Duration = Duration::from_secs(60);

/// A step that has lasted for so long is taken to be right.
const LASTED: Duration = Duration::from_secs(24 * 3600);

/// As there is one wall clock for a process, there is one memory of it.
static SHOWN: Mutex<Option<Shown>> = Mutex::new(None);

/// What the wall clock showed when the machine had run so long.
#[derive(Clone, Copy, Debug)]
struct Shown {
    wall: SystemTime,
    ran: Duration,
    /// Since when it has shown something else.
    stepped: Option<Duration>,
}

impl Shown {
    /// What it would show now without a step that may be undone.
    fn without_step(&mut self, wall: SystemTime, ran: Duration) -> SystemTime {
        let passed = ran.saturating_sub(self.ran);
        let expected = self.wall.checked_add(passed).unwrap_or(wall);
        let off = match wall.duration_since(expected) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        let lasts = || ran.saturating_sub(self.stepped.unwrap_or(ran)) >= LASTED;
        if off <= ADJUSTED || lasts() {
            *self = Self {
                wall,
                ran,
                stepped: None,
            };
            return wall;
        }
        self.stepped.get_or_insert(ran);
        expected
    }
}

/// The earlier and the later of what the wall clock shows, and what it would show
/// without a step that may be undone; the same time, where there was none.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By this at the latest whatever is to begin has begun.
    pub earlier: SystemTime,
    /// Before this nothing has ended.
    pub later: SystemTime,
    /// The one without the step.
    pub steady: SystemTime,
}

/// The time now. The first time it is asked for, the wall clock is believed.
pub fn now() -> Now {
    let wall = SystemTime::now();
    let ran = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = shown.get_or_insert(Shown {
        wall,
        ran,
        stepped: None,
    });
    let steady = shown.without_step(wall, ran);
    Now {
        earlier: wall.min(steady),
        later: wall.max(steady),
        steady,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_after_a_day_and_an_undone_one_never() {
        let hour = Duration::from_secs(3600);
        let (start, month) = (SystemTime::UNIX_EPOCH + hour * 500_000, hour * 24 * 30);
        for is_ahead in [true, false] {
            let mut shown = Shown {
                wall: start,
                ran: hour,
                stepped: None,
            };
            let right = |ran: Duration| start + ran - hour;
            let wrong = |ran| match is_ahead {
                true => right(ran) + month,
                false => right(ran) - month,
            };
            for hours in 1..30 {
                let ran = hour * hours;
                let wall = match hours {
                    5..15 => wrong(ran),
                    _ => right(ran),
                };
                assert_eq!(shown.without_step(wall, ran), right(ran), "{hours}");
            }
            for hours in 30..80 {
                let ran = hour * hours;
                let expected = match hours {
                    30..54 => right(ran),
                    _ => wrong(ran),
                };
                assert_eq!(shown.without_step(wrong(ran), ran), expected, "{hours}");
            }
        }
    }
}
