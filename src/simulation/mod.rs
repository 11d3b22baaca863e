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
        Mutex, MutexGuard, PoisonError,
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

/// So often it is looked whether the wall clock has reached an alarm.
const LOOK: Duration = Duration::from_millis(10);

static ON: AtomicBool = AtomicBool::new(false);
/// Nanoseconds since the beginning.
static NOW: AtomicU64 = AtomicU64::new(0);
/// By how many nanoseconds the wall clock was set, and how often.
static SET: AtomicI64 = AtomicI64::new(0);
static TIMES_SET: AtomicU64 = AtomicU64::new(0);
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
    TIMES_SET.fetch_add(1, Ordering::Relaxed);
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
        let times_set = TIMES_SET.load(Ordering::Relaxed);
        loop {
            let due = *self.0.borrow();
            let is_time = due.wall.is_some_and(|at| at <= Timestamp::now())
                || due.ran.is_some_and(|at| at <= BOOT + now());
            if is_time || TIMES_SET.load(Ordering::Relaxed) != times_set {
                self.0.send_replace(Due::default());
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
