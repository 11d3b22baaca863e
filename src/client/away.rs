//! Who is away and is waited for, how long, and that it is said once.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Who does not answer now, and may be back soon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Away {
    /// The scheduler of this URL.
    Scheduler(String),
    /// The worker of this name.
    Worker(String),
    /// What else is in the way, in the scheduler's words.
    Other(String),
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheduler(server) => write!(f, "the scheduler at {server} is away, waiting"),
            Self::Worker(name) => write!(f, "worker {name} is away, waiting"),
            Self::Other(what) => write!(f, "{what}, waiting"),
        }
    }
}

/// How long those who are away are waited for, and how that is said.
#[derive(Clone, Debug)]
pub struct Patience {
    /// How long a command waits that has nothing to stay for.
    pub limit: Duration,
    say: fn(&Away),
    /// Those that it was said of, and that were not there since.
    said: Arc<Mutex<BTreeSet<Away>>>,
}

impl Patience {
    /// Calls `say` once for each absence.
    pub fn new(limit: Duration, say: fn(&Away)) -> Self {
        Self {
            limit,
            say,
            said: Arc::default(),
        }
    }

    /// None: what does not work at once fails, and nothing is said.
    pub(super) fn none() -> Self {
        Self::new(Duration::ZERO, |_| ())
    }

    /// Says that they are away, unless that was said.
    pub(super) fn say(&self, away: &Away) {
        let is_new = self.said().insert(away.clone());
        if is_new {
            (self.say)(away);
        }
    }

    /// They are back: their next absence is another one.
    pub(super) fn is_back(&self, away: &Away) {
        self.said().remove(away);
    }

    fn said(&self) -> std::sync::MutexGuard<'_, BTreeSet<Away>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static SAID: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn each_absence_is_said_once() {
        let patience = Patience::new(Duration::ZERO, |_| {
            SAID.fetch_add(1, Ordering::Relaxed);
        });
        let said = || SAID.load(Ordering::Relaxed);
        let (w1, w2) = (Away::Worker("w1".into()), Away::Worker("w2".into()));
        for _ in 0..3 {
            patience.clone().say(&w1);
        }
        assert_eq!(said(), 1);
        patience.say(&w2);
        assert_eq!(said(), 2);
        patience.is_back(&w1);
        patience.say(&w2);
        patience.say(&w1);
        assert_eq!(said(), 3);
    }

    #[test]
    fn it_is_said_in_one_sentence() {
        let server = "https://a:1".to_owned();
        for (away, text) in [
            (
                Away::Scheduler(server),
                "the scheduler at https://a:1 is away, waiting",
            ),
            (Away::Worker("w2".into()), "worker w2 is away, waiting"),
        ] {
            assert_eq!(away.to_string(), text);
        }
    }
}
