//! What the roles share with a simulation that runs them: whether there is one, its
//! time, its chances, its machines with their disks and shims. Compiled for the unit
//! tests alone; what is simulated, and what must be true of it, is in `tests.rs`.
//!
//! One process runs one simulation, on one thread: everything here belongs to it.

pub(crate) mod machines;
pub(crate) mod shims;
mod system;
mod tests;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;

/// The wall clock at the beginning: 2030-01-01T00:00:00Z.
const EPOCH: Duration = Duration::from_secs(1_893_456_000);

/// The monotonic clock at the beginning. High, so that what waits in the kernel by it
/// does not do so in vain.
const BOOT: Duration = Duration::from_secs(100_000_000);

/// The longest that a disk takes for a sync.
const SLOWEST_SYNC: Duration = Duration::from_millis(25);

static ON: AtomicBool = AtomicBool::new(false);
/// Nanoseconds since the beginning.
static NOW: AtomicU64 = AtomicU64::new(0);
/// By how many nanoseconds the wall clock was set.
static SET: AtomicI64 = AtomicI64::new(0);
/// How often it was set; there when somebody waits for that.
static TIMES_SET: OnceLock<watch::Sender<u64>> = OnceLock::new();
static CHANCE: Mutex<Option<fastrand::Rng>> = Mutex::new(None);
static TRACE: Mutex<Trace> = Mutex::new(Trace { told: 0, digest: 0 });

/// What has happened, as a number.
struct Trace {
    told: u64,
    digest: u64,
}

/// Whether this process runs a simulation.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// From here on time and chance of this process are those of a simulation.
fn begin(seed: u64) {
    *lock(&CHANCE) = Some(fastrand::Rng::with_seed(seed));
    system::seed(seed);
    ON.store(true, Ordering::Relaxed);
}

/// How much time has passed since the beginning.
fn now() -> Duration {
    Duration::from_nanos(NOW.load(Ordering::Relaxed))
}

fn advance_to(time: Duration) {
    NOW.store(time.as_nanos() as u64, Ordering::Relaxed);
}

fn set_wall_clock(by: jiff::SignedDuration) {
    SET.fetch_add(by.as_nanos() as i64, Ordering::Relaxed);
    times_set().send_modify(|times| *times += 1);
}

fn times_set() -> &'static watch::Sender<u64> {
    TIMES_SET.get_or_init(watch::Sender::default)
}

/// What CLOCK_REALTIME shows; None: the kernel's.
fn wall_time() -> Option<Duration> {
    let set = SET.load(Ordering::Relaxed);
    let time = EPOCH + now();
    let by = Duration::from_nanos(set.unsigned_abs());
    is_on().then(|| match set < 0 {
        true => time.saturating_sub(by),
        false => time + by,
    })
}

/// What CLOCK_MONOTONIC shows; None: the kernel's.
fn monotonic_time() -> Option<Duration> {
    is_on().then(|| BOOT + now())
}

/// One of so many numbers from 0 on.
fn one_of(count: u64) -> u64 {
    let mut chance = lock(&CHANCE);
    chance.as_mut().map_or(0, |chance| chance.u64(0..count))
}

/// Returns when a disk has done what it was asked for.
pub(crate) async fn disk() {
    let micros = one_of(SLOWEST_SYNC.as_micros() as u64);
    tokio::time::sleep(Duration::from_micros(micros)).await;
}

/// Takes down what happens, so that two runs can be compared. With the variable
/// `JOBCTL_TRACE` it is written out as well.
pub(crate) fn note(what: &str) {
    let mut trace = lock(&TRACE);
    let mut hasher = DefaultHasher::new();
    (trace.digest, now(), what).hash(&mut hasher);
    trace.digest = hasher.finish();
    trace.told += 1;
    if std::env::var_os("JOBCTL_TRACE").is_some() {
        println!("{:>9.3} {what}", now().as_secs_f64());
    }
}

/// Alarms by the clocks of the simulation.
#[derive(Debug)]
pub(crate) struct Alarm(watch::Sender<Due>);

#[derive(Clone, Copy, Debug, Default)]
struct Due {
    wall: Option<Timestamp>,
    ran: Option<Duration>,
}

impl Alarm {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Sets them instead of what was set before: what the wall clock is to show, and
    /// how long the machine is to have run.
    pub(crate) fn set(&self, wall: Option<Timestamp>, ran: Option<Duration>) {
        self.0.send_replace(Due { wall, ran });
    }

    /// Returns at a time that is set, or when the wall clock itself was set. Cancel-safe.
    pub(crate) async fn rings(&self) {
        let mut times_set = times_set().subscribe();
        let mut alarm = self.0.subscribe();
        loop {
            let due = *alarm.borrow_and_update();
            let wall = due.wall.map(|at| at.duration_since(Timestamp::now()));
            // One that is past rings at once.
            let wall = wall.map(|left| Duration::try_from(left).unwrap_or_default());
            let ran = due.ran.map(|at| at.saturating_sub(BOOT + now()));
            let left = wall.into_iter().chain(ran).min();
            if left.is_some_and(|left| left.is_zero()) {
                self.0.send_replace(Due::default());
                return;
            }
            tokio::select! {
                // Time is told in steps, which may not have come that far yet.
                () = tokio::time::sleep(left.unwrap_or(Duration::MAX)) => {}
                _ = alarm.changed() => {}
                _ = times_set.changed() => return,
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
