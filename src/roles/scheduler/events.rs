//! What has changed, in order, for whoever watches. The newest events are kept in
//! one ring that all watchers read by number, each at its own pace: a slow one
//! costs nothing, and is told when it was overtaken. An event is handed out once
//! what it tells of is on the disk.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Scheduler,
    error::Error,
    jobs::{Group, Jobs, Named, Record, Spec},
    store::{Store, Ticket},
};
use crate::{
    api::{self, EventData, EventId, EventKind},
    ids::{GroupId, JobId, WorkerId},
};

/// The most events that are kept.
const MAX_EVENTS: usize = 10_000;

/// The most bytes they take, as far as they can be told.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What an event takes beside texts of any length.
const OWN_BYTES: usize = 1024;

/// Whoever watches hears something this often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A handle to the events of this start of the scheduler; clones share them. A
/// leaf: its lock is held for a moment and nothing is called under it.
#[derive(Clone, Debug)]
pub(super) struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: u64,
    store: Store,
    ring: Mutex<Ring>,
    /// The number of the newest.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Kept>,
    /// How many were dropped: the number of the one before the first.
    dropped: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    ticket: Ticket,
    what: What,
    bytes: usize,
}

/// What has changed, as it stands from then on.
#[derive(Clone, Debug)]
enum What {
    Job(Arc<Record>),
    Group(Arc<Group>),
    Worker(Arc<api::Worker>),
}

/// What a number stands for.
enum Found {
    Event(Ticket, What),
    /// It was dropped.
    Gone {
        newest: u64,
    },
    NotYet,
}

impl Events {
    /// Positions have a number that no other start of the scheduler has, also if it
    /// began with records that were put back from a copy, and its clock is slow.
    pub(super) fn new(epoch: u64, store: Store) -> Self {
        let [a, b, c, ..] = Uuid::new_v4().into_bytes();
        let chance = u64::from(u32::from_le_bytes([a, b, c, 0]) >> 4);
        Self(Arc::new(Inner {
            epoch: (epoch << 20) | chance,
            store,
            ring: Mutex::default(),
            newest: watch::Sender::new(0),
        }))
    }

    /// A job stands so once `ticket` is on the disk.
    pub(super) fn job(&self, ticket: Ticket, record: Arc<Record>) {
        let bytes = of_spec(&record.spec);
        self.put(ticket, What::Job(record), bytes);
    }

    /// A group stands so once `ticket` is on the disk.
    pub(super) fn group(&self, ticket: Ticket, group: Arc<Group>) {
        let bytes = of_spec(&group.spec);
        self.put(ticket, What::Group(group), bytes);
    }

    /// A worker stands so.
    pub(super) fn worker(&self, worker: api::Worker) {
        let labels = worker.labels.iter();
        let labels = labels.map(|(key, value)| key.len() + value.len());
        let bytes = labels.sum::<usize>() + of_texts(worker.scripts.iter());
        let ticket = self.0.store.now();
        self.put(ticket, What::Worker(Arc::new(worker)), bytes);
    }

    fn put(&self, ticket: Ticket, what: What, bytes: usize) {
        let bytes = bytes + OWN_BYTES;
        let mut ring = self.ring();
        ring.bytes += bytes;
        ring.kept.push_back(Kept {
            ticket,
            what,
            bytes,
        });
        // The newest is kept however long it is.
        while ring.kept.len() > MAX_EVENTS || ring.bytes > MAX_BYTES && ring.kept.len() > 1 {
            let Some(oldest) = ring.kept.pop_front() else {
                break;
            };
            ring.bytes -= oldest.bytes;
            ring.dropped += 1;
        }
        self.0.newest.send_replace(ring.newest());
    }

    fn find(&self, number: u64) -> Found {
        let ring = self.ring();
        let index = match number.checked_sub(ring.dropped + 1) {
            Some(index) => usize::try_from(index).unwrap_or(usize::MAX),
            None => {
                let newest = ring.newest();
                return Found::Gone { newest };
            }
        };
        match ring.kept.get(index) {
            Some(kept) => Found::Event(kept.ticket, kept.what.clone()),
            None => Found::NotYet,
        }
    }

    /// The events behind `after`, or those that come from now on.
    fn read(&self, after: Option<EventId>) -> Reader {
        let newest = self.ring().newest();
        let (behind, reset) = match after {
            None => (newest, None),
            Some(after) if after.epoch != self.0.epoch => {
                (newest, Some("the scheduler was restarted"))
            }
            Some(after) if after.sequence > newest => (newest, Some("no event has had that id")),
            Some(after) => (after.sequence, None),
        };
        Reader {
            events: self.clone(),
            newest: self.0.newest.subscribe(),
            behind,
            reset,
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn newest(&self) -> u64 {
        self.dropped + self.kept.len() as u64
    }
}

fn of_texts<'a>(texts: impl Iterator<Item = &'a String>) -> usize {
    texts.map(|text| text.len() + size_of::<String>()).sum()
}

fn of_spec(spec: &Spec) -> usize {
    let texts = [&spec.command, &spec.path, &spec.cwd, &spec.user, &spec.name];
    let texts = texts.into_iter().flatten();
    of_texts(texts.chain(&spec.args).chain(&spec.env))
}

/// One watcher's way through the events.
struct Reader {
    events: Events,
    newest: watch::Receiver<u64>,
    /// The number of the last that was read.
    behind: u64,
    /// Why the watcher has missed something that it is not told of.
    reset: Option<&'static str>,
}

enum Read {
    Event(What),
    Reset(&'static str),
}

impl Reader {
    fn id(&self) -> EventId {
        EventId {
            epoch: self.events.0.epoch,
            sequence: self.behind,
        }
    }

    /// The next event, once it is on the disk. Cancel-safe.
    async fn next(&mut self) -> Result<Read, Error> {
        if let Some(why) = self.reset.take() {
            return Ok(Read::Reset(why));
        }
        loop {
            match self.events.find(self.behind + 1) {
                Found::Event(ticket, what) => {
                    self.events.0.store.committed(ticket).await?;
                    self.behind += 1;
                    return Ok(Read::Event(what));
                }
                Found::Gone { newest } => {
                    self.behind = newest;
                    return Ok(Read::Reset("events were dropped before they were read"));
                }
                Found::NotYet => {
                    let behind = self.behind;
                    let more = self.newest.wait_for(|newest| *newest > behind).await;
                    more.map_err(|_| Error::ShuttingDown)?;
                }
            }
        }
    }
}

/// Which events somebody wants.
#[derive(Debug, Default)]
struct Filter {
    kinds: Option<Vec<EventKind>>,
    only: Option<Only>,
    worker: Option<WorkerId>,
}

#[derive(Debug)]
enum Only {
    Job(JobId),
    /// With its jobs.
    Group(GroupId),
}

impl Filter {
    async fn new(scheduler: &Scheduler, asked: &api::EventsQuery) -> Result<Self, Error> {
        let kinds = asked.kind.as_deref().map(decode_kinds).transpose()?;
        let only = match &asked.job_id {
            None => None,
            Some(job) => Some(match scheduler.jobs.find(job).await? {
                Named::Job(record) => Only::Job(record.id),
                Named::Group(group) => Only::Group(group.id),
            }),
        };
        let worker = match &asked.worker_id {
            None => None,
            Some(worker) => Some(scheduler.registry.find(worker)?.id),
        };
        let filter = Self {
            kinds,
            only,
            worker,
        };
        match filter.is_empty() {
            true => Err(Error::BadRequest(
                "there are no such events: of a job or group come events of jobs and groups, of \
                 a worker those of the worker and its jobs"
                    .to_owned(),
            )),
            false => Ok(filter),
        }
    }

    /// It lets nothing through, whatever happens.
    fn is_empty(&self) -> bool {
        let is_possible = |kind| match kind {
            EventKind::Job => true,
            EventKind::Group => self.worker.is_none() && !matches!(self.only, Some(Only::Job(_))),
            EventKind::Worker => self.only.is_none(),
        };
        let kinds = self.kinds.as_deref().unwrap_or(&EventKind::ALL);
        !kinds.iter().any(|kind| is_possible(*kind))
    }

    fn admits(&self, what: &What) -> bool {
        let has = |kind| {
            let kinds = self.kinds.as_ref();
            kinds.is_none_or(|kinds| kinds.contains(&kind))
        };
        match what {
            What::Job(record) => {
                has(EventKind::Job)
                    && self.worker.is_none_or(|id| record.worker() == Some(id))
                    && match self.only {
                        None => true,
                        Some(Only::Job(id)) => record.id == id,
                        Some(Only::Group(id)) => record.group() == Some(id),
                    }
            }
            What::Group(group) => {
                has(EventKind::Group)
                    && self.worker.is_none()
                    && match self.only {
                        None => true,
                        Some(Only::Job(_)) => false,
                        Some(Only::Group(id)) => group.id == id,
                    }
            }
            What::Worker(worker) => {
                has(EventKind::Worker)
                    && self.only.is_none()
                    && self.worker.is_none_or(|id| worker.id == id)
            }
        }
    }
}

fn decode_kinds(text: &str) -> Result<Vec<EventKind>, Error> {
    let kinds = text.split(',').map(|word| {
        let known = EventKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == word.trim());
        known.ok_or_else(|| {
            let all = EventKind::ALL.map(EventKind::as_str).join(", ");
            Error::BadRequest(format!("no such kind of event: '{word}'; there are {all}"))
        })
    });
    kinds.collect()
}

/// The events that somebody wants, as they come.
pub(super) struct Watcher {
    reader: Reader,
    filter: Filter,
    jobs: Jobs,
    closing: CancellationToken,
    /// The last time something was told.
    told: Option<tokio::time::Instant>,
    keep_alive: Duration,
}

/// Watches from now on, or from the id that is asked for.
pub(super) async fn watch(
    scheduler: &Scheduler,
    asked: &api::EventsQuery,
) -> Result<Watcher, Error> {
    let filter = Filter::new(scheduler, asked).await?;
    Ok(Watcher {
        reader: scheduler.registry.events().read(asked.after),
        filter,
        jobs: scheduler.jobs.clone(),
        closing: scheduler.closing.clone(),
        told: None,
        keep_alive: KEEP_ALIVE,
    })
}

impl Watcher {
    /// The next event; the first comes at once and tells where the watcher is.
    /// Never ends but with an error.
    pub(super) async fn next(&mut self) -> Result<api::Event, Error> {
        let data = match self.told {
            None if self.reader.reset.is_none() => EventData::KeepAlive,
            told => {
                let due = told.unwrap_or_else(tokio::time::Instant::now) + self.keep_alive;
                tokio::select! {
                    biased;
                    () = self.closing.cancelled() => return Err(Error::ShuttingDown),
                    data = wanted(&mut self.reader, &self.filter, &self.jobs) => data?,
                    () = tokio::time::sleep_until(due) => EventData::KeepAlive,
                }
            }
        };
        self.told = Some(tokio::time::Instant::now());
        Ok(api::Event {
            id: self.reader.id(),
            data,
        })
    }
}

async fn wanted(reader: &mut Reader, filter: &Filter, jobs: &Jobs) -> Result<EventData, Error> {
    loop {
        match reader.next().await? {
            Read::Reset(reason) => {
                return Ok(EventData::Reset(api::EventsReset {
                    reason: reason.to_owned(),
                    after: reader.id(),
                }));
            }
            Read::Event(what) if filter.admits(&what) => {
                return Ok(match what {
                    What::Job(record) => EventData::Job(Box::new(jobs.shown(&record))),
                    What::Group(group) => EventData::Group(Box::new(group.shown())),
                    What::Worker(worker) => EventData::Worker(Box::new((*worker).clone())),
                });
            }
            Read::Event(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt as _;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::roles::scheduler::{
        jobs::Needs, registry::Registry, store, store::StoredWorker, worker_rpc::Calls,
    };

    fn registry() -> (Registry, Store) {
        let store = store::scratch();
        let calls = Calls {
            deadline: Duration::from_secs(5),
            epoch: crate::roles::scheduler::lineage::Epoch::new(7),
            security: crate::net::dial::Security::Insecure,
            followers: 8,
            job_followers: 8,
        };
        let heartbeat = Duration::from_secs(2);
        (
            Registry::new(heartbeat, calls, store.clone(), Vec::new()),
            store,
        )
    }

    fn worker(labels: usize) -> api::Worker {
        let labels: BTreeMap<String, String> =
            [("a".to_owned(), "x".repeat(labels))].into_iter().collect();
        let now = jiff::Timestamp::now();
        api::Worker {
            id: WorkerId::random(),
            name: "w1".to_owned(),
            state: api::WorkerState::Ready,
            since: now,
            reason: None,
            address: String::new(),
            version: String::new(),
            running: 0,
            slots: None,
            labels: Arc::new(labels),
            load: 0.0,
            cpus: None,
            memory_bytes: None,
            memory_available_bytes: None,
            os: None,
            arch: None,
            draining: false,
            draining_until: None,
            scripts: Arc::default(),
            more_scripts: false,
            registered_at: now,
            last_heartbeat_at: None,
            removed: false,
        }
    }

    fn at(events: &Events, sequence: u64) -> EventId {
        EventId {
            epoch: events.0.epoch,
            sequence,
        }
    }

    #[tokio::test]
    async fn a_position_of_before_a_restore_is_not_taken_for_one_of_after() {
        // The same epoch: a copy was put back, and the clock is slow.
        let (before, after) = (registry().0.events(), registry().0.events());
        for events in [&before, &after] {
            events.worker(worker(0));
            events.worker(worker(0));
        }
        let mut own = before.read(Some(at(&before, 1)));
        assert!(matches!(own.next().await.unwrap(), Read::Event(_)));
        let mut other = after.read(Some(at(&before, 1)));
        assert!(matches!(other.next().await.unwrap(), Read::Reset(_)));
    }

    #[tokio::test]
    async fn who_was_overtaken_is_told_so() {
        let events = registry().0.events();
        let mut slow = events.read(None);
        for _ in 0..MAX_EVENTS {
            events.worker(worker(0));
        }
        assert!(matches!(slow.next().await.unwrap(), Read::Event(_)));
        assert_eq!(slow.id(), at(&events, 1));
        events.worker(worker(0));
        // The first is gone, which this one has read.
        assert!(matches!(slow.next().await.unwrap(), Read::Event(_)));
        events.worker(worker(0));
        events.worker(worker(0));
        assert!(matches!(slow.next().await.unwrap(), Read::Reset(_)));
        assert_eq!(slow.id(), at(&events, MAX_EVENTS as u64 + 3));
        assert!(slow.next().now_or_never().is_none());

        let mut behind = events.read(Some(at(&events, 2)));
        assert!(matches!(behind.next().await.unwrap(), Read::Reset(_)));
        let mut just = events.read(Some(at(&events, 3)));
        assert!(matches!(just.next().await.unwrap(), Read::Event(_)));
        assert_eq!(just.id(), at(&events, 4));
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_in_bytes() {
        let events = registry().0.events();
        for _ in 0..100 {
            events.worker(worker(1024 * 1024));
        }
        let ring = events.ring();
        assert!(ring.bytes <= MAX_BYTES, "{}", ring.bytes);
        assert_eq!(ring.newest(), 100);
        assert_eq!(ring.kept.len(), 31);
        drop(ring);
        events.worker(worker(2 * MAX_BYTES));
        assert_eq!(events.ring().kept.len(), 1);
        events.worker(worker(0));
        assert_eq!(events.ring().bytes, OWN_BYTES + 1);
    }

    #[tokio::test]
    async fn nothing_is_told_before_it_is_on_the_disk() {
        let (registry, store) = registry();
        let events = registry.events();
        store.limit_pages(1);
        store.worker(StoredWorker {
            id: WorkerId::random(),
            name: "x".repeat(1024 * 1024),
            address: String::new(),
            version: String::new(),
            left: false,
            registered_at: jiff::Timestamp::now(),
            heard_at: None,
            told: Default::default(),
            orders: Default::default(),
        });
        let mut progress = store.progress();
        progress.wait_for(|now| now.full).await.unwrap();
        let mut reader = events.read(None);
        events.worker(worker(0));
        assert!(reader.next().now_or_never().is_none());
        store.limit_pages(1_000_000);
        assert!(matches!(reader.next().await.unwrap(), Read::Event(_)));
        assert!(!store.progress().borrow().full);
    }

    #[tokio::test]
    async fn silence_is_broken_and_the_id_goes_on() {
        let (registry, store) = registry();
        let events = registry.events();
        let closing = CancellationToken::new();
        // Or silence would be broken while it is waited for.
        store.committed(store.now()).await.unwrap();
        let needs = Needs {
            store,
            registry,
            keep_for: Duration::from_secs(1),
            call_deadline: Duration::from_secs(1),
            clock: crate::roles::scheduler::clock::Clock::new().unwrap(),
            tracker: TaskTracker::new(),
            closing: closing.clone(),
        };
        let mut watcher = Watcher {
            reader: events.read(None),
            filter: Filter {
                kinds: Some(vec![EventKind::Job]),
                ..Filter::default()
            },
            jobs: Jobs::new(needs, Vec::new(), Vec::new()),
            closing: closing.clone(),
            told: None,
            keep_alive: Duration::from_millis(10),
        };
        let alive = |sequence| api::Event {
            id: at(&events, sequence),
            data: EventData::KeepAlive,
        };
        assert_eq!(watcher.next().await.unwrap(), alive(0));
        events.worker(worker(0));
        // Nothing that is wanted, but from here on it can go on.
        assert_eq!(watcher.next().await.unwrap(), alive(1));
        closing.cancel();
        assert!(matches!(watcher.next().await, Err(Error::ShuttingDown)));
    }
}
