//! Which workers are there, and in what state. What their silence means for
//! jobs is in `jobs.rs`, how they are called in `worker_rpc.rs`.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    about::{Drain, LabelChanges, Orders, ScriptFolder, Told},
    error::Error,
    events::Events,
    lineage::{Known, Lineage, Verdict},
    offers::{Offer, Offers, Openness, Slots},
    store::{AccessChange, AuditEntry, Store, StoredWorker},
    worker_rpc::{Calls, WorkerRpc},
};
use crate::{
    api,
    ids::{self, WorkerId},
    labels::{Labels, Requirement},
};

/// So many heartbeats in a row may be missed.
const MISSED: u32 = 3;

/// So many workers that said goodbye are still shown; beyond, those that left
/// first are forgotten.
const KEEP_LEFT: usize = 1000;

/// From which likeness on a name is suggested for one that nobody bears.
const ALIKE: f64 = 0.6;

/// So many names are told where none is alike.
const FEW: usize = 5;

/// One registration of a worker: random, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Session(Uuid);

impl Session {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Session {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// A handle to all workers; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    members: Mutex<HashMap<WorkerId, Member>>,
    ready: watch::Sender<usize>,
    /// A deadline was added.
    deadlines: Notify,
    /// Orders are given one after the other.
    ordering: tokio::sync::Mutex<()>,
    patience: Duration,
    calls: Calls,
    store: Store,
    offers: Offers,
    events: Events,
    lineage: Lineage,
}

#[derive(Debug)]
struct Member {
    id: WorkerId,
    name: Arc<str>,
    address: String,
    /// Empty where it did not say.
    boot_id: String,
    version: String,
    told: Told,
    scripts: ScriptFolder,
    orders: Orders,
    /// Those that count: what it told, with what was ordered over it.
    labels: Arc<Labels>,
    /// It was asked to end, over there.
    is_ending: bool,
    /// The time it was given to drain is over, and that was acted upon.
    is_drained: bool,
    state: api::WorkerState,
    since: Timestamp,
    /// Why it is unreachable, where that is not its silence.
    away: Option<Arc<str>>,
    /// What it lacks to start any job, as it says.
    lacks: Option<Arc<str>>,
    /// Why it did not begin the last job it was sent, for a while after that.
    rests: Option<Arc<str>>,
    /// It was silent for too long, and that was acted upon.
    is_given_up: bool,
    session: Session,
    /// Its heartbeat stream is open: nobody else may be this worker.
    is_connected: bool,
    /// Of the heartbeat stream that counts; cancelled when it no longer does.
    link: CancellationToken,
    rpc: WorkerRpc,
    running: u32,
    load: f64,
    /// 0: it did not say.
    memory_available_bytes: u64,
    registered_at: Timestamp,
    heard: Instant,
    last_heartbeat_at: Option<Timestamp>,
    /// The commit from which on it is to tell what ran there.
    tell_since: Option<u64>,
}

/// What a worker says of itself when it registers.
#[derive(Clone, Debug, Default)]
pub(super) struct Registration {
    pub(super) address: String,
    /// Empty: made of the address.
    pub(super) name: String,
    /// The id it had before.
    pub(super) id: Option<WorkerId>,
    pub(super) version: String,
    /// Changes with each boot of its machine.
    pub(super) boot_id: String,
    pub(super) told: Told,
    pub(super) scripts: ScriptFolder,
    /// The records are older than what it knows: it is to tell what ran since.
    pub(super) tell_since: Option<u64>,
}

/// What a worker says of itself with each sign of life.
#[derive(Clone, Debug, Default)]
pub(super) struct Beat {
    pub(super) running: u32,
    pub(super) load: f64,
    /// 0: it does not say.
    pub(super) memory_available_bytes: u64,
    /// It was asked to end, and takes no more jobs.
    pub(super) is_ending: bool,
    /// What it lacks to start any job.
    pub(super) lacks: Option<Arc<str>>,
    /// None: as before.
    pub(super) scripts: Option<ScriptFolder>,
}

/// What an admin orders of a worker, whatever it says of itself.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Sets labels, and takes off those without a value.
    Labels(LabelChanges),
    /// It takes no more jobs. What is left of those it has is over when
    /// [`Registry::watch_deadlines`] tells of it.
    Drain(Drain),
    /// It takes jobs again.
    Resume,
}

/// A time that has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// The worker should have been heard of; with the reason to give.
    Silence(WorkerId, String),
    /// The worker's jobs should have ended.
    Drain(WorkerId),
}

/// A worker as it was when it was asked for, and the means to call it.
#[derive(Clone, Debug)]
pub(super) struct WorkerHandle {
    pub(super) id: WorkerId,
    pub(super) name: Arc<str>,
    pub(super) session: Session,
    pub(super) rpc: WorkerRpc,
    link: CancellationToken,
    state: api::WorkerState,
    away: Arc<str>,
}

/// The heartbeat stream of a worker, as long as it counts.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) worker: WorkerHandle,
    /// Cancelled when the worker registered anew, opened another stream, left,
    /// or was given up.
    pub(super) over: CancellationToken,
    /// The records are older than what it knows: it is to tell what ran there after
    /// this commit.
    pub(super) tell_since: Option<u64>,
}

impl WorkerHandle {
    /// Whether it takes calls. One that is joining does not yet: until it has told
    /// of its jobs, nothing said about them can be relied on.
    pub(super) fn is_ready(&self) -> Result<(), Error> {
        match self.state {
            api::WorkerState::Joining => Err(Error::WorkerNotReady(self.name.to_string())),
            api::WorkerState::Ready | api::WorkerState::Short | api::WorkerState::Draining => {
                Ok(())
            }
            api::WorkerState::Unreachable => Err(Error::WorkerUnreachable {
                worker: self.name.to_string(),
                why: self.away.to_string(),
                job: None,
            }),
            api::WorkerState::Left => Err(Error::WorkerLeft(self.name.to_string())),
        }
    }

    /// It said goodbye.
    pub(super) fn has_left(&self) -> bool {
        self.state == api::WorkerState::Left
    }

    /// Has the worker register anew and tell of all its jobs: the only way to
    /// know what became of a call that it did not answer.
    pub(super) fn ask_anew(&self) {
        self.link.cancel();
    }
}

impl Member {
    fn handle(&self) -> WorkerHandle {
        WorkerHandle {
            id: self.id,
            name: self.name.clone(),
            session: self.session,
            rpc: self.rpc.clone(),
            link: self.link.clone(),
            state: self.state,
            away: self.why_away(),
        }
    }

    /// What is said of it while it is unreachable, behind its name.
    fn why_away(&self) -> Arc<str> {
        self.away.clone().unwrap_or_else(|| {
            let heard_at = self.last_heartbeat_at.unwrap_or(self.registered_at);
            format!("has not answered since {}", seconds(heard_at)).into()
        })
    }

    /// One of which nothing was heard since this scheduler began.
    fn remembered(worker: StoredWorker, rpc: WorkerRpc) -> Self {
        let link = CancellationToken::new();
        link.cancel();
        let labels = worker.orders.labels_over(&worker.told.labels);
        Self {
            told: worker.told,
            scripts: ScriptFolder::default(),
            orders: worker.orders,
            labels: Arc::new(labels),
            is_ending: false,
            is_drained: false,
            memory_available_bytes: 0,
            id: worker.id,
            name: worker.name.into(),
            address: worker.address,
            boot_id: String::new(),
            version: worker.version,
            state: match worker.left {
                true => api::WorkerState::Left,
                false => api::WorkerState::Unreachable,
            },
            since: worker.heard_at.unwrap_or(worker.registered_at),
            away: None,
            lacks: None,
            rests: None,
            is_given_up: true,
            session: Session::random(),
            is_connected: false,
            link,
            rpc,
            running: 0,
            load: 0.0,
            registered_at: worker.registered_at,
            heard: Instant::now(),
            last_heartbeat_at: worker.heard_at,
            tell_since: None,
        }
    }

    fn stored(&self) -> StoredWorker {
        StoredWorker {
            id: self.id,
            name: self.name.to_string(),
            address: self.address.clone(),
            version: self.version.clone(),
            left: self.state == api::WorkerState::Left,
            registered_at: self.registered_at,
            heard_at: self.last_heartbeat_at,
            told: self.told.clone(),
            orders: self.orders.clone(),
        }
    }

    fn offer(&self) -> Offer {
        Offer {
            worker: self.handle(),
            slots: self.told.slots.map_or(Slots::Unlimited, Slots::Limited),
            cpus: self.told.cpus.max(1),
            labels: self.labels.clone(),
            openness: match self.state {
                api::WorkerState::Joining => Openness::Joining,
                api::WorkerState::Ready => Openness::Ready,
                api::WorkerState::Short => Openness::Short(self.lack().unwrap_or_default()),
                api::WorkerState::Draining => Openness::Draining,
                api::WorkerState::Unreachable => Openness::Unreachable(self.why_away()),
                api::WorkerState::Left => Openness::Left,
            },
        }
    }

    fn shown(&self) -> api::Worker {
        let said = |number: u64| (number > 0).then_some(number);
        let word = |word: &String| (!word.is_empty()).then(|| word.clone());
        api::Worker {
            id: self.id,
            name: self.name.to_string(),
            state: self.state,
            since: self.since,
            reason: self.reason(),
            address: self.address.clone(),
            version: self.version.clone(),
            running: self.running,
            slots: self.told.slots,
            labels: self.labels.clone(),
            load: self.load,
            cpus: (self.told.cpus > 0).then_some(self.told.cpus),
            memory_bytes: said(self.told.memory_bytes),
            memory_available_bytes: said(self.memory_available_bytes),
            os: word(&self.told.os),
            arch: word(&self.told.arch),
            draining: self.is_draining(),
            draining_until: self.orders.drain.and_then(|drain| drain.until),
            scripts: self.scripts.paths.clone(),
            more_scripts: self.scripts.more,
            registered_at: self.registered_at,
            last_heartbeat_at: self.last_heartbeat_at,
            removed: false,
        }
    }

    /// What people are told of why it takes no jobs.
    fn reason(&self) -> Option<String> {
        match self.state {
            api::WorkerState::Unreachable => Some(self.why_away().to_string()),
            api::WorkerState::Short => {
                let lack = self.lack().unwrap_or_default();
                Some(format!("cannot start jobs now: {lack}"))
            }
            api::WorkerState::Joining
            | api::WorkerState::Ready
            | api::WorkerState::Draining
            | api::WorkerState::Left => None,
        }
    }

    /// What is ordered of it with this as well.
    fn with(&self, order: &Order) -> Result<Orders, Error> {
        let mut orders = self.orders.clone();
        match order {
            Order::Labels(changes) => orders.relabel(&self.told.labels, changes)?,
            Order::Drain(drain) => orders.drain = Some(*drain),
            Order::Resume if self.is_ending => {
                return Err(Error::WorkerEnding(self.name.to_string()));
            }
            Order::Resume => orders.drain = None,
        }
        Ok(orders)
    }

    fn is_draining(&self) -> bool {
        self.is_ending || self.orders.drain.is_some()
    }

    /// One that takes calls takes jobs as well, unless it is draining, or cannot start any.
    fn open_or_not(&mut self) {
        self.away = None;
        self.become_state(match self.is_draining() {
            true => api::WorkerState::Draining,
            false if self.lack().is_some() => api::WorkerState::Short,
            false => api::WorkerState::Ready,
        });
    }

    /// Why it cannot start jobs.
    fn lack(&self) -> Option<Arc<str>> {
        self.lacks.clone().or_else(|| self.rests.clone())
    }

    /// As [`Member::open_or_not`], where it has told of its jobs.
    fn reopen(&mut self) {
        match self.state {
            api::WorkerState::Ready | api::WorkerState::Short | api::WorkerState::Draining => {
                self.open_or_not();
            }
            api::WorkerState::Joining | api::WorkerState::Unreachable | api::WorkerState::Left => {}
        }
    }

    fn is_gone(&self) -> Result<(), Error> {
        match self.state {
            // One that only cannot be called is there, and runs its jobs.
            api::WorkerState::Unreachable if !self.is_connected => Ok(()),
            api::WorkerState::Left => Ok(()),
            api::WorkerState::Joining
            | api::WorkerState::Ready
            | api::WorkerState::Short
            | api::WorkerState::Draining
            | api::WorkerState::Unreachable => Err(Error::WorkerNotGone {
                worker: self.name.to_string(),
                state: self.state.as_str(),
            }),
        }
    }

    /// When what is left of its jobs is to be stopped, unless that was done; by the
    /// counted time.
    fn drains_until(&self) -> Option<Timestamp> {
        let drain = self.orders.drain.filter(|_| !self.is_drained)?;
        drain.counted.or(drain.until)
    }

    fn become_state(&mut self, state: api::WorkerState) {
        if self.state == state {
            return;
        }
        let from = std::mem::replace(&mut self.state, state);
        self.since = Timestamp::now();
        tracing::info!(
            worker_id = %self.id,
            worker = %self.name,
            from = from.as_str(),
            to = state.as_str(),
            reason = self.reason(),
            "worker changed"
        );
    }

    /// None: it is not expected to say anything.
    fn deadline(&self, patience: Duration) -> Option<Instant> {
        let is_expected = self.state != api::WorkerState::Left && !self.is_given_up;
        is_expected.then(|| self.heard + patience)
    }
}

impl Registry {
    /// Workers that are silent for three `heartbeat_interval`s are given up;
    /// `calls` says how they are called. Those that are `known`
    /// from before are unreachable until they register.
    pub(super) fn new(
        heartbeat_interval: Duration,
        calls: Calls,
        store: Store,
        known: Vec<StoredWorker>,
    ) -> Self {
        let members: HashMap<_, _> = known
            .into_iter()
            .filter_map(|worker| {
                let name = &worker.name;
                match WorkerRpc::new(worker.id, name, &worker.address, calls.clone()) {
                    Ok(rpc) => Some((worker.id, Member::remembered(worker, rpc))),
                    Err(error) => {
                        tracing::warn!(worker = name, %error, "a worker is not taken over");
                        None
                    }
                }
            })
            .collect();
        let offers = Offers::default();
        for member in members.values() {
            offers.put(member.id, Some(member.offer()));
        }
        Self(Arc::new(Inner {
            members: Mutex::new(members),
            ready: watch::Sender::new(0),
            deadlines: Notify::new(),
            ordering: tokio::sync::Mutex::default(),
            patience: heartbeat_interval * MISSED,
            events: Events::new(calls.epoch.get(), store.clone()),
            lineage: Lineage::new(calls.epoch.clone(), store.history()),
            calls,
            store,
            offers,
        }))
    }

    /// What the workers have to offer.
    pub(super) fn offers(&self) -> Offers {
        self.0.offers.clone()
    }

    /// What is told of jobs and groups as well as of workers.
    pub(super) fn events(&self) -> Events {
        self.0.events.clone()
    }

    fn offer(&self, member: &Member) {
        self.0.offers.put(member.id, Some(member.offer()));
    }

    /// As [`Registry::offer`], and whoever watches is told.
    fn changed(&self, member: &Member) {
        self.offer(member);
        self.0.events.worker(member.shown());
    }

    /// Nobody will hear of this worker again, but that it registers.
    fn forget(&self, members: &mut HashMap<WorkerId, Member>, id: WorkerId) {
        if let Some(member) = members.remove(&id) {
            self.0.events.worker(api::Worker {
                removed: true,
                ..member.shown()
            });
        }
        self.0.offers.put(id, None);
        self.0.store.worker_gone(id);
    }

    /// Which start of the scheduler this is.
    pub(super) fn epoch(&self) -> u64 {
        self.0.calls.epoch.get()
    }

    /// After so long a worker that is silent is given up.
    pub(super) fn patience(&self) -> Duration {
        self.0.patience
    }

    /// The workers that have not said goodbye.
    pub(super) fn expected(&self) -> HashSet<WorkerId> {
        let members = self.members();
        let expected = members
            .values()
            .filter(|member| member.state != api::WorkerState::Left);
        expected.map(|member| member.id).collect()
    }

    /// What is to be said of the records, where they are older than what workers know.
    pub(super) fn notice(&self) -> Option<String> {
        self.0.lineage.notice()
    }

    /// Compares what `worker` has heard of schedulers with the records. Returns the
    /// commit from which on it is to tell what ran there, if the records are older.
    /// If it has heard of a higher epoch, the scheduler rises above that, and all
    /// others register again.
    ///
    /// # Errors
    ///
    /// When no scheduler can have had that epoch, or when it cannot be recorded.
    pub(super) async fn compare(&self, worker: &str, known: Known) -> Result<Option<u64>, Error> {
        let Inner { lineage, store, .. } = &*self.0;
        match lineage.judge(known, store.commits()) {
            Verdict::Current => return Ok(None),
            Verdict::Older => {}
            Verdict::OlderEpoch => {
                let least = lineage.next_above(worker, known.epoch)?;
                let above = store.epoch_above(least - 1).await?;
                lineage.took(above);
                tracing::warn!(
                    worker,
                    heard = known.epoch,
                    epoch = above,
                    "a worker has heard of a higher epoch: the scheduler takes one above it"
                );
                for member in self.members().values() {
                    member.link.cancel();
                }
            }
        }
        if let Some(notice) = lineage.note_older(worker, known) {
            tracing::warn!("{notice}");
            store.older_than(Some(lineage.told_until()));
        }
        let since = lineage.told_until();
        if known.remembers_since > since {
            tracing::warn!(
                worker,
                remembers_since = known.remembers_since,
                records = since,
                "this worker does not remember all jobs that ran since the records were made: \
                 look at those that wait before they are placed"
            );
        }
        Ok(Some(since))
    }

    /// Has it recorded when each worker was heard of last.
    pub(super) fn record_heard(&self) {
        let members = self.members();
        let heard = members
            .values()
            .filter(|member| member.deadline(self.0.patience).is_some())
            .filter_map(|member| Some((member.id, member.last_heartbeat_at?)))
            .collect::<Vec<_>>();
        if !heard.is_empty() {
            self.0.store.heard(heard);
        }
    }

    /// Makes a worker known under its old id or a new one. An earlier session
    /// of it is over from here on. While a worker is connected, its id is refused
    /// to whoever is at another address or of another boot: most likely that one
    /// has a copy of its data folder, and knows nothing of its jobs.
    pub(super) fn register(&self, asked: Registration) -> Result<(WorkerId, Session), Error> {
        let is_nameless = asked.name.is_empty();
        let name = match is_nameless {
            true => named_after(&asked.address),
            false => asked.name,
        };
        if !ids::is_name(&name) {
            return Err(Error::BadName(name));
        }
        let told = asked.told.checked()?;
        let session = Session::random();
        let mut members = self.members();
        // One that says neither who it was nor what it is called, as the published
        // contract allows, is known by its address.
        let id = asked.id.unwrap_or_else(|| {
            let known = members
                .values()
                .find(|other| is_nameless && other.address == asked.address);
            known.map_or_else(WorkerId::random, |known| known.id)
        });
        let rpc = WorkerRpc::new(id, &name, &asked.address, self.0.calls.clone())?;
        if let Some(earlier) = members.get(&id)
            && earlier.is_connected
            && !earlier.link.is_cancelled()
            && (&earlier.address, &earlier.boot_id) != (&asked.address, &asked.boot_id)
        {
            return Err(Error::WorkerIdInUse {
                name: earlier.name.to_string(),
                id,
                address: earlier.address.clone(),
                refused: asked.address,
            });
        }
        let namesake = members
            .values()
            .find(|other| *other.name == *name && other.id != id);
        if let Some(other) = namesake {
            let other_id = other.id;
            match other.state {
                api::WorkerState::Left => self.forget(&mut members, other_id),
                api::WorkerState::Joining
                | api::WorkerState::Ready
                | api::WorkerState::Short
                | api::WorkerState::Draining
                | api::WorkerState::Unreachable => {
                    return Err(Error::WorkerNameTaken { name, id: other_id });
                }
            };
        }
        let mut orders = Orders::default();
        if let Some(earlier) = members.get(&id) {
            earlier.link.cancel();
            orders = earlier.orders.clone();
        }
        let now = Timestamp::now();
        tracing::info!(worker_id = %id, worker = %name, address = asked.address, %session, "worker registered");
        let member = Member {
            id,
            name: name.into(),
            address: asked.address,
            boot_id: asked.boot_id,
            version: asked.version,
            labels: Arc::new(orders.labels_over(&told.labels)),
            told,
            scripts: asked.scripts,
            orders,
            is_ending: false,
            is_drained: false,
            memory_available_bytes: 0,
            state: api::WorkerState::Joining,
            since: now,
            away: None,
            lacks: None,
            rests: None,
            is_given_up: false,
            session,
            is_connected: false,
            link: CancellationToken::new(),
            rpc,
            running: 0,
            load: 0.0,
            registered_at: now,
            heard: Instant::now(),
            last_heartbeat_at: None,
            tell_since: asked.tell_since,
        };
        self.0.store.worker(member.stored());
        self.changed(&member);
        members.insert(id, member);
        self.count(&members);
        drop(members);
        self.0.deadlines.notify_one();
        Ok((id, session))
    }

    /// The worker says goodbye, under its present registration unless `session` names
    /// one: that of an earlier one changes nothing. Its heartbeat stream is over, and
    /// `left` draws conclusions for its jobs before it can register again.
    pub(super) fn deregister(
        &self,
        id: WorkerId,
        session: Option<&str>,
        left: impl FnOnce(),
    ) -> Result<(), Error> {
        let mut members = self.members();
        let member = members.get_mut(&id).ok_or_else(|| unknown(id))?;
        if session.is_some_and(|session| session.parse() != Ok(member.session)) {
            tracing::info!(worker_id = %id, "a goodbye of an earlier registration");
            return Ok(());
        }
        member.link.cancel();
        member.is_connected = false;
        member.session = Session::random();
        member.running = 0;
        member.become_state(api::WorkerState::Left);
        self.0.store.worker(member.stored());
        self.changed(member);
        left();
        for surplus in surplus_left(&members) {
            self.forget(&mut members, surplus);
        }
        self.count(&members);
        Ok(())
    }

    /// Begins a heartbeat stream, and ends an earlier one.
    pub(super) fn open(&self, id: WorkerId, session: &str) -> Result<Link, Error> {
        let mut members = self.members();
        let member = members.get_mut(&id).ok_or_else(|| unknown(id))?;
        if session.parse() != Ok(member.session) {
            return Err(Error::SessionOver(id));
        }
        member.link.cancel();
        member.link = CancellationToken::new();
        member.is_connected = true;
        member.is_given_up = false;
        member.heard = Instant::now();
        // What they are called by is another link from now on.
        self.offer(member);
        Ok(Link {
            worker: member.handle(),
            over: member.link.clone(),
            tell_since: member.tell_since,
        })
    }

    /// A message came over `link`: has it taken in, unless the link is over.
    pub(super) fn heard(
        &self,
        link: &Link,
        beat: Beat,
        take_in: impl FnOnce(),
    ) -> Result<(), Error> {
        self.with(link, |member| {
            member.heard = Instant::now();
            member.last_heartbeat_at = Some(Timestamp::now());
            member.running = beat.running;
            member.load = beat.load;
            member.memory_available_bytes = beat.memory_available_bytes;
            let has_scripts = beat.scripts.is_some();
            if let Some(scripts) = beat.scripts {
                member.scripts = scripts;
            }
            let is_other = member.is_ending != beat.is_ending || member.lacks != beat.lacks;
            if is_other {
                (member.is_ending, member.lacks) = (beat.is_ending, beat.lacks);
                member.reopen();
                self.changed(member);
            } else if has_scripts {
                self.0.events.worker(member.shown());
            }
            // Under the lock: after the next registration of this worker nothing
            // that was said before it may change anything.
            take_in();
        })
    }

    /// The worker has told of all its jobs, which `settle` draws conclusions from
    /// unless the link is over.
    pub(super) fn listed(&self, link: &Link, settle: impl FnOnce()) -> Result<(), Error> {
        self.with(link, |member| {
            settle();
            // It may have told of jobs that were not known when the time was over.
            member.is_drained = false;
        })?;
        self.0.deadlines.notify_one();
        Ok(())
    }

    /// The worker has answered a call after it told of all its jobs: it takes new ones.
    pub(super) fn ready(&self, link: &Link) -> Result<(), Error> {
        self.with(link, |member| {
            member.open_or_not();
            self.changed(member);
        })
    }

    /// The worker tells of itself, and cannot be called, because of `why`: it gets no
    /// jobs, and those that it has go on.
    pub(super) fn not_dialled(&self, link: &Link, why: &str) -> Result<(), Error> {
        self.with(link, |member| {
            if member.away.as_deref() != Some(why) {
                tracing::warn!(worker_id = %member.id, worker = %member.name, why, "a worker cannot be called");
                member.away = Some(why.into());
                member.become_state(api::WorkerState::Unreachable);
                self.changed(member);
            }
        })
    }

    /// A worker gets no jobs for a while, because it did not begin one for the reason
    /// `why`; None: the while is over.
    pub(super) fn rest(&self, id: WorkerId, why: Option<&str>) {
        let mut members = self.members();
        if let Some(member) = members.get_mut(&id) {
            member.rests = why.map(Into::into);
            member.reopen();
            self.changed(member);
            self.count(&members);
        }
    }

    /// The stream broke: until the worker is heard again it gets no more jobs. Its jobs
    /// are not in doubt before it has been silent for too long.
    pub(super) fn broke(&self, link: &Link) {
        // A link that does not count any more says nothing about the worker.
        let _ = self.with(link, |member| {
            member.is_connected = false;
            let at = seconds(Timestamp::now());
            let why = match member.is_ending {
                true => format!("was stopped at {at}, and its jobs go on"),
                false => format!("lost its connection at {at}"),
            };
            member.away = Some(why.into());
            member.become_state(api::WorkerState::Unreachable);
            self.changed(member);
        });
    }

    fn with(&self, link: &Link, change: impl FnOnce(&mut Member)) -> Result<(), Error> {
        let mut members = self.members();
        let id = link.worker.id;
        let member = members.get_mut(&id).ok_or_else(|| unknown(id))?;
        // Only one link of a worker is whole, and that is the one that counts.
        if link.over.is_cancelled() {
            return Err(Error::SessionOver(id));
        }
        change(member);
        self.count(&members);
        Ok(())
    }

    /// Gives up workers as their deadlines pass, and tells `act` of each, and of
    /// those whose time to drain is over. Never returns.
    pub(super) async fn watch_deadlines(&self, mut act: impl FnMut(Passed)) {
        loop {
            let next = self.expire(Instant::now(), self.0.store.time().counted(), &mut act);
            let sleep = async {
                match next {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.0.deadlines.notified() => {}
            }
        }
    }

    /// Returns the next deadline. It is `now`, and the counted time is `counted`.
    fn expire(
        &self,
        now: Instant,
        counted: Timestamp,
        act: &mut impl FnMut(Passed),
    ) -> Option<Instant> {
        let mut members = self.members();
        let mut next: Option<Instant> = None;
        let mut wait_until = |deadline: Instant| {
            next = Some(next.map_or(deadline, |next| next.min(deadline)));
        };
        for member in members.values_mut() {
            match member.drains_until() {
                None => {}
                Some(until) if until > counted => {
                    let left = Duration::try_from(until.duration_since(counted));
                    wait_until(now + left.unwrap_or_default());
                }
                Some(_) => {
                    member.is_drained = true;
                    act(Passed::Drain(member.id));
                }
            }
            match member.deadline(self.0.patience) {
                None => {}
                Some(deadline) if deadline > now => wait_until(deadline),
                Some(_) => {
                    // A stream that comes back to life begins anew with a
                    // snapshot, so that nothing told meanwhile is missed.
                    member.link.cancel();
                    member.is_connected = false;
                    member.is_given_up = true;
                    member.away = None;
                    member.become_state(api::WorkerState::Unreachable);
                    self.0.store.worker(member.stored());
                    self.changed(member);
                    let why = format!("worker {} {}", member.name, member.why_away());
                    // Under the lock: a worker that comes back this moment must
                    // not be ready before its jobs are in doubt.
                    act(Passed::Silence(member.id, why));
                }
            }
        }
        self.count(&members);
        next
    }

    /// The worker that `asked` means: its id, its name, or a prefix.
    pub(super) fn find(&self, asked: &str) -> Result<WorkerHandle, Error> {
        let members = self.members();
        if let Ok(id) = asked.parse::<WorkerId>() {
            let member = members.get(&id).ok_or_else(|| unknown(id))?;
            return Ok(member.handle());
        }
        // Workers choose their names: none gets what is meant for another by bearing
        // the beginning of its id.
        let is_prefix = ids::is_prefix(asked);
        let mut found: Vec<&Member> = members
            .values()
            .filter(|member| *member.name == *asked || (is_prefix && member.id.starts_with(asked)))
            .collect();
        found.sort_by_key(|member| member.id);
        match found.as_slice() {
            [] => Err(Error::WorkerNotFound {
                asked: asked.to_owned(),
                meant: meant(asked, members.values().map(|member| &*member.name)),
                known: few(members.values().map(|member| &*member.name)),
            }),
            [member] => Ok(member.handle()),
            several => Err(Error::AmbiguousWorker {
                asked: asked.to_owned(),
                candidates: several
                    .iter()
                    .map(|member| format!("{} ({})", member.name, member.id.short()))
                    .collect(),
            }),
        }
    }

    /// The worker of this very id.
    pub(super) fn get(&self, id: WorkerId) -> Result<WorkerHandle, Error> {
        let members = self.members();
        let member = members.get(&id).ok_or_else(|| unknown(id))?;
        Ok(member.handle())
    }

    /// How many take jobs, now and after every change.
    pub(super) fn ready_count(&self) -> watch::Receiver<usize> {
        self.0.ready.subscribe()
    }

    /// Those whose labels are wanted, by name; or of them only this one.
    pub(super) fn list(&self, only: Option<WorkerId>, wanted: &[Requirement]) -> Vec<api::Worker> {
        let members = self.members();
        let mut workers: Vec<_> = members
            .values()
            .filter(|member| only.is_none_or(|id| id == member.id))
            .filter(|member| wanted.iter().all(|asked| asked.is_met_by(&member.labels)))
            .map(Member::shown)
            .collect();
        drop(members);
        workers.sort_by(|a, b| a.name.cmp(&b.name));
        workers
    }

    /// Orders something of a worker, with this line of the audit log. It counts once it is
    /// on the disk; an error means that nothing was done.
    pub(super) async fn order(
        &self,
        id: WorkerId,
        order: Order,
        audit: AuditEntry,
    ) -> Result<(), Error> {
        // One after the other: each is made of what was ordered before.
        let _turn = self.0.ordering.lock().await;
        let (orders, recorded) = {
            let members = self.members();
            let member = members.get(&id).ok_or_else(|| unknown(id))?;
            let orders = member.with(&order)?;
            let change = AccessChange::Orders(id, orders.clone());
            (orders, self.0.store.access(change, Some(audit)))
        };
        recorded.await?;
        let mut members = self.members();
        // It may have been removed since; if it comes back, it is somebody new.
        let member = members.get_mut(&id).ok_or_else(|| unknown(id))?;
        member.orders = orders;
        member.labels = Arc::new(member.orders.labels_over(&member.told.labels));
        if let Order::Drain(_) = order {
            member.is_drained = false;
        }
        member.reopen();
        self.changed(member);
        self.count(&members);
        drop(members);
        self.0.deadlines.notify_one();
        Ok(())
    }

    /// Forgets a worker that is gone, of whose jobs `settle` draws conclusions, with this
    /// line of the audit log. An error means that nothing was done.
    pub(super) async fn remove(
        &self,
        id: WorkerId,
        audit: AuditEntry,
        settle: impl FnOnce(&Arc<str>),
    ) -> Result<(), Error> {
        let _turn = self.0.ordering.lock().await;
        let recorded = {
            let members = self.members();
            members.get(&id).ok_or_else(|| unknown(id))?.is_gone()?;
            let change = AccessChange::WorkerRemoved(id);
            self.0.store.access(change, Some(audit))
        };
        recorded.await?;
        let mut members = self.members();
        let member = members.get(&id).ok_or_else(|| unknown(id))?;
        if let Err(error) = member.is_gone() {
            // It came back this very moment, and is known.
            self.0.store.worker(member.stored());
            return Err(error);
        }
        tracing::info!(worker_id = %id, worker = %member.name, "worker removed");
        // Under the lock: it may come back this very moment, and keeps what it
        // tells of then.
        settle(&member.name);
        self.forget(&mut members, id);
        Ok(())
    }

    fn count(&self, members: &HashMap<WorkerId, Member>) {
        let states = members.values().map(|member| member.state);
        let count = states
            .filter(|state| *state == api::WorkerState::Ready)
            .count();
        self.0
            .ready
            .send_if_modified(|ready| std::mem::replace(ready, count) != count);
    }

    fn members(&self) -> MutexGuard<'_, HashMap<WorkerId, Member>> {
        self.0
            .members
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// To the second, as people are told of it.
fn seconds(time: Timestamp) -> Timestamp {
    time.round(jiff::Unit::Second).unwrap_or(time)
}

fn unknown(id: WorkerId) -> Error {
    Error::WorkerNotFound {
        asked: id.to_string(),
        meant: None,
        known: Vec::new(),
    }
}

/// Those that left first, where too many have.
fn surplus_left(members: &HashMap<WorkerId, Member>) -> Vec<WorkerId> {
    let mut left: Vec<(Timestamp, WorkerId)> = members
        .values()
        .filter(|member| member.state == api::WorkerState::Left)
        .map(|member| (member.since, member.id))
        .collect();
    left.sort();
    let surplus = left.len().saturating_sub(KEEP_LEFT);
    left.truncate(surplus);
    left.into_iter().map(|(_, id)| id).collect()
}

/// `127.0.0.1:30000` as a name: `127.0.0.1-30000`.
fn named_after(address: &str) -> String {
    let name: String = address
        .chars()
        .map(|c| match c.is_ascii_alphanumeric() || c == '.' {
            true => c,
            false => '-',
        })
        .collect();
    let name = name.trim_start_matches(['-', '.']);
    name.chars().take(64).collect()
}

/// All of `names` in order, if they are few.
fn few<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<_> = names.take(FEW + 1).map(str::to_owned).collect();
    names.sort();
    match names.len() > FEW {
        true => Vec::new(),
        false => names,
    }
}

/// The name most like the one asked for, if any is alike; case aside.
pub(super) fn meant<'a>(asked: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let asked = asked.to_lowercase();
    let likeness =
        |name: &str| strsim::normalized_damerau_levenshtein(&asked, &name.to_lowercase());
    names
        .map(|name| (likeness(name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    fn registry() -> Registry {
        let store = crate::roles::scheduler::store::scratch();
        let calls = Calls {
            deadline: Duration::from_secs(5),
            epoch: crate::roles::scheduler::lineage::Epoch::new(1),
            security: crate::net::dial::Security::Insecure,
            followers: 8,
            job_followers: 8,
        };
        Registry::new(INTERVAL, calls, store, Vec::new())
    }

    fn line() -> AuditEntry {
        crate::roles::scheduler::access::Caller::itself().did("order", "w1", Default::default())
    }

    async fn order(registry: &Registry, id: WorkerId, order: Order) -> Result<(), Error> {
        registry.order(id, order, line()).await
    }

    fn asked(name: &str) -> Registration {
        Registration {
            address: "127.0.0.1:30000".to_owned(),
            name: name.to_owned(),
            ..Default::default()
        }
    }

    fn join(registry: &Registry, name: &str) -> Link {
        let (id, session) = registry.register(asked(name)).unwrap();
        let link = registry.open(id, &session.to_string()).unwrap();
        registry.heard(&link, Beat::default(), || ()).unwrap();
        registry.ready(&link).unwrap();
        link
    }

    fn expire(registry: &Registry, now: Instant) -> (Option<Instant>, Vec<Passed>) {
        let mut passed = Vec::new();
        let next = registry.expire(now, Timestamp::now(), &mut |what| passed.push(what));
        (next, passed)
    }

    fn state(registry: &Registry, id: WorkerId) -> api::WorkerState {
        registry.get(id).unwrap().state
    }

    #[tokio::test]
    async fn a_worker_keeps_its_id_and_loses_its_session() {
        let registry = registry();
        let link = join(&registry, "w1");
        let id = link.worker.id;
        let again = Registration {
            id: Some(id),
            ..asked("w1")
        };
        let (same, session) = registry.register(again).unwrap();
        assert_eq!(same, id);
        assert!(link.over.is_cancelled());
        assert_eq!(state(&registry, id), api::WorkerState::Joining);
        let old = link.worker.session.to_string();
        assert!(matches!(
            registry.open(id, &old),
            Err(Error::SessionOver(_))
        ));
        let untimely = || panic!("what an old link says is not taken in");
        for refused in [
            registry.heard(&link, Beat::default(), untimely),
            registry.listed(&link, untimely),
        ] {
            assert!(matches!(refused, Err(Error::SessionOver(_))));
        }
        assert!(registry.open(id, &session.to_string()).is_ok());
    }

    #[tokio::test]
    async fn a_restarted_scheduler_takes_a_worker_s_word_for_its_id() {
        let id = WorkerId::random();
        let known_before = Registration {
            id: Some(id),
            ..asked("w1")
        };
        assert_eq!(registry().register(known_before).unwrap().0, id);
    }

    #[tokio::test]
    async fn a_name_is_taken_until_its_worker_left() {
        let registry = registry();
        let first = join(&registry, "w1").worker.id;
        let Err(Error::WorkerNameTaken { id, .. }) = registry.register(asked("w1")) else {
            panic!("w1 is taken");
        };
        assert_eq!(id, first);
        expire(&registry, Instant::now() + INTERVAL * 3);
        assert!(registry.register(asked("w1")).is_err(), "unreachable");
        registry.deregister(first, None, || ()).unwrap();
        registry.register(asked("w1")).unwrap();
        assert!(registry.get(first).is_err(), "forgotten");
    }

    #[tokio::test]
    async fn bad_names_and_addresses_are_refused() {
        let registry = registry();
        assert!(matches!(
            registry.register(asked("a b")),
            Err(Error::BadName(_))
        ));
        let nowhere = Registration {
            address: "nowhere".to_owned(),
            ..asked("")
        };
        assert!(matches!(
            registry.register(nowhere),
            Err(Error::BadAddress(_))
        ));
        let (id, _) = registry.register(asked("")).unwrap();
        assert_eq!(&*registry.get(id).unwrap().name, "127.0.0.1-30000");
        let v6 = Registration {
            address: "[::1]:30000".to_owned(),
            ..asked("")
        };
        assert!(registry.register(v6).is_ok());
    }

    #[tokio::test]
    async fn three_missed_heartbeats_make_a_worker_unreachable() {
        let registry = registry();
        let link = join(&registry, "w1");
        let id = link.worker.id;
        let start = Instant::now();
        let (next, passed) = expire(&registry, start + INTERVAL * 2);
        let next = next.unwrap();
        assert!(next > start + INTERVAL * 2 && next <= start + INTERVAL * 3);
        assert_eq!(passed, []);
        let (last, passed) = expire(&registry, next);
        assert_eq!(last, None);
        let [Passed::Silence(silent, why)] = passed.as_slice() else {
            panic!("{passed:?}");
        };
        assert_eq!(*silent, id);
        assert!(why.starts_with("worker w1 has not answered since 2"));
        assert_eq!(state(&registry, id), api::WorkerState::Unreachable);
        assert_eq!(*registry.ready_count().borrow(), 0);
        assert!(link.over.is_cancelled());
        let link = registry.open(id, &link.worker.session.to_string()).unwrap();
        registry.heard(&link, Beat::default(), || ()).unwrap();
        assert_eq!(state(&registry, id), api::WorkerState::Unreachable);
        registry.ready(&link).unwrap();
        assert_eq!(state(&registry, id), api::WorkerState::Ready);
    }

    #[tokio::test]
    async fn a_worker_goes_by_id_name_or_prefix() {
        let registry = registry();
        let id = join(&registry, "web1").worker.id;
        join(&registry, "db1");
        let text = id.to_string();
        for asked in [text.as_str(), "web1", &text[..13]] {
            assert_eq!(registry.find(asked).unwrap().id, id, "{asked}");
        }
        let namesake = join(&registry, &text[..8]).worker.id;
        let Err(Error::AmbiguousWorker { candidates, .. }) = registry.find(&text[..8]) else {
            panic!("one is named as the id of another begins");
        };
        assert_eq!(candidates.len(), 2);
        assert_eq!(registry.find(&text[..13]).unwrap().id, id);
        assert_eq!(registry.find(&namesake.to_string()).unwrap().id, namesake);
        let Err(Error::WorkerNotFound { meant, .. }) = registry.find("wbe1") else {
            panic!("nobody is called wbe1");
        };
        assert_eq!(meant.as_deref(), Some("web1"));
        let Err(Error::WorkerNotFound { meant, .. }) = registry.find("WEB1") else {
            panic!("found");
        };
        assert_eq!(meant.as_deref(), Some("web1"));
        let Err(Error::WorkerNotFound { meant, known, .. }) = registry.find("nonsense") else {
            panic!("nobody is called nonsense");
        };
        assert_eq!(meant, None);
        assert!(known.contains(&"web1".to_owned()), "{known:?}");
        assert_eq!(few(["b", "a"].into_iter()), ["a", "b"]);
        assert!(few(["x"; FEW + 1].into_iter()).is_empty());
    }

    #[tokio::test]
    async fn the_state_decides_what_may_be_asked() {
        let registry = registry();
        let (id, _) = registry.register(asked("w1")).unwrap();
        let joining = registry.get(id).unwrap();
        assert!(matches!(joining.is_ready(), Err(Error::WorkerNotReady(_))));
        registry.deregister(id, None, || ()).unwrap();
        let left = registry.get(id).unwrap();
        assert!(matches!(left.is_ready(), Err(Error::WorkerLeft(_))));
        assert!(matches!(
            registry.deregister(WorkerId::random(), None, || ()),
            Err(Error::WorkerNotFound { .. })
        ));
    }
    /// What placement has heard of the one worker since it was asked last.
    fn news(registry: &Registry) -> Option<Openness> {
        let taken = registry.offers().take();
        assert!(taken.len() < 2);
        let offer = taken.into_values().next()?;
        Some(offer.expect("it is known").openness)
    }

    /// Why it is unreachable, as placement has heard just now.
    fn unreachable(registry: &Registry) -> String {
        let Some(Openness::Unreachable(why)) = news(registry) else {
            panic!("it is not unreachable");
        };
        let [shown] = &*registry.list(None, &[]) else {
            panic!("there is one");
        };
        assert_eq!(shown.state, api::WorkerState::Unreachable);
        assert_eq!(shown.reason.as_deref(), Some(&*why));
        why.to_string()
    }

    #[tokio::test]
    async fn a_worker_that_cannot_be_called_is_watched_and_comes_back() {
        let registry = registry();
        let link = join(&registry, "w1");
        news(&registry);
        registry.not_dialled(&link, "cannot be dialled").unwrap();
        assert_eq!(unreachable(&registry), "cannot be dialled");
        registry.not_dialled(&link, "cannot be dialled").unwrap();
        assert_eq!(news(&registry), None, "said once");
        let gone = registry.remove(link.worker.id, line(), |_| ()).await;
        assert!(gone.is_err(), "it runs its jobs");
        registry.ready(&link).unwrap();
        assert_eq!(news(&registry), Some(Openness::Ready));
        assert_eq!(registry.list(None, &[])[0].reason, None);
        registry.not_dialled(&link, "cannot be dialled").unwrap();
        let (_, passed) = expire(&registry, Instant::now() + INTERVAL * 3);
        assert!(
            matches!(*passed, [Passed::Silence(..)]),
            "its silence counts"
        );
        let gone = registry.remove(link.worker.id, line(), |_| ()).await;
        gone.unwrap();
    }

    #[tokio::test]
    async fn placement_hears_of_every_change_and_of_no_heartbeat() {
        let registry = registry();
        let told = Told {
            labels: [("zone".to_owned(), "eu".to_owned())].into(),
            slots: Some(3),
            ..Told::default()
        };
        let asked = Registration {
            told,
            ..asked("w1")
        };
        let (id, session) = registry.register(asked.clone()).unwrap();
        assert_eq!(news(&registry), Some(Openness::Joining));
        let link = registry.open(id, &session.to_string()).unwrap();
        registry.offers().take();
        registry.heard(&link, Beat::default(), || ()).unwrap();
        assert_eq!(news(&registry), None, "a sign of life alone");
        registry.ready(&link).unwrap();
        let offer = registry.offers().take().remove(&id).unwrap().unwrap();
        assert_eq!(offer.openness, Openness::Ready);
        assert_eq!((offer.slots, offer.cpus), (Slots::Limited(3), 1));
        assert_eq!(offer.labels["zone"], "eu");
        assert_eq!((offer.worker.id, offer.worker.session), (id, session));

        let ending = Beat {
            is_ending: true,
            ..Beat::default()
        };
        registry.heard(&link, ending.clone(), || ()).unwrap();
        assert_eq!(news(&registry), Some(Openness::Draining));
        assert_eq!(*registry.ready_count().borrow(), 0);
        registry.heard(&link, ending, || ()).unwrap();
        assert_eq!(news(&registry), None);
        let error = order(&registry, id, Order::Resume).await.unwrap_err();
        assert_eq!(error.code(), "worker_ending");
        registry.heard(&link, Beat::default(), || ()).unwrap();
        assert_eq!(news(&registry), Some(Openness::Ready));

        order(&registry, id, Order::Drain(Drain::default()))
            .await
            .unwrap();
        assert_eq!(news(&registry), Some(Openness::Draining));
        order(&registry, id, Order::Resume).await.unwrap();
        assert_eq!(news(&registry), Some(Openness::Ready));
        let changes = [
            ("zone".to_owned(), None),
            ("gpu".to_owned(), Some("1".to_owned())),
        ];
        order(&registry, id, Order::Labels(changes.into()))
            .await
            .unwrap();
        let offer = registry.offers().take().remove(&id).unwrap().unwrap();
        assert_eq!(*offer.labels, [("gpu".to_owned(), "1".to_owned())].into());

        registry.broke(&link);
        assert!(unreachable(&registry).starts_with("lost its connection at 2"));
        let (_, passed) = expire(&registry, Instant::now() + INTERVAL * 3);
        assert!(matches!(*passed, [Passed::Silence(silent, _)] if silent == id));
        assert!(unreachable(&registry).starts_with("has not answered since 2"));
        registry.deregister(id, None, || ()).unwrap();
        assert_eq!(news(&registry), Some(Openness::Left));
        registry.remove(id, line(), |_| ()).await.unwrap();
        let taken = registry.offers().take();
        assert!(taken[&id].is_none(), "known no more");
        assert!(registry.offers().take().is_empty());
    }

    #[tokio::test]
    async fn what_is_ordered_survives_both_restarts() {
        let registry = registry();
        let link = join(&registry, "w1");
        let id = link.worker.id;
        order(&registry, id, Order::Drain(Drain::default()))
            .await
            .unwrap();
        let zone = |value: &str| [("zone".to_owned(), Some(value.to_owned()))].into();
        order(&registry, id, Order::Labels(zone("eu")))
            .await
            .unwrap();
        assert_eq!(state(&registry, id), api::WorkerState::Draining);
        let draining = registry.get(id).unwrap();
        assert!(draining.is_ready().is_ok(), "it answers for its jobs");

        // Of the scheduler.
        let stored = registry.members().values().map(Member::stored).collect();
        let calls = registry.0.calls.clone();
        let registry = Registry::new(INTERVAL, calls, registry.0.store.clone(), stored);
        assert!(unreachable(&registry).starts_with("has not answered since 2"));
        // Of the worker, which now has something to say about it itself.
        let again = Registration {
            id: Some(id),
            told: Told {
                labels: [("zone".to_owned(), "us".to_owned())].into(),
                ..Told::default()
            },
            ..asked("w1")
        };
        let (_, session) = registry.register(again).unwrap();
        let link = registry.open(id, &session.to_string()).unwrap();
        registry.heard(&link, Beat::default(), || ()).unwrap();
        registry.ready(&link).unwrap();
        let shown = &registry.list(Some(id), &[])[0];
        assert_eq!(shown.state, api::WorkerState::Draining);
        assert_eq!(shown.labels["zone"], "eu");
        let in_us = ["zone=us".parse().unwrap()];
        assert!(registry.list(None, &in_us).is_empty());
        order(&registry, id, Order::Resume).await.unwrap();
        assert_eq!(state(&registry, id), api::WorkerState::Ready);
    }

    #[tokio::test]
    async fn the_time_to_drain_is_told_of_once_and_again_to_who_comes_back() {
        let registry = registry();
        let link = join(&registry, "w1");
        let id = link.worker.id;
        let now = Instant::now();
        let (until, second) = (Timestamp::now(), Duration::from_secs(1));
        let due_at = |at| Drain {
            // What the wall clock shows decides nothing.
            until: Some(Timestamp::UNIX_EPOCH),
            counted: Some(at),
        };
        order(&registry, id, Order::Drain(due_at(until)))
            .await
            .unwrap();
        let mut passed = Vec::new();
        let next = registry.expire(now, until - second, &mut |what| passed.push(what));
        assert_eq!(next, Some(now + second), "before a heartbeat is due");
        assert_eq!(passed, []);
        registry.expire(now, until, &mut |what| passed.push(what));
        registry.expire(now, until, &mut |what| passed.push(what));
        assert_eq!(passed, [Passed::Drain(id)]);
        registry.listed(&link, || ()).unwrap();
        registry.expire(now, until, &mut |what| passed.push(what));
        assert_eq!(passed.len(), 2);
        order(&registry, id, Order::Resume).await.unwrap();
        registry.listed(&link, || ()).unwrap();
        registry.expire(now, until, &mut |what| passed.push(what));
        assert_eq!(passed.len(), 2, "nothing to drain any more");
    }

    #[tokio::test]
    async fn only_a_worker_that_is_gone_is_removed() {
        let registry = registry();
        let link = join(&registry, "w1");
        let id = link.worker.id;
        let untimely = |_: &Arc<str>| panic!("it is there");
        for _ in 0..2 {
            let error = registry.remove(id, line(), untimely).await.unwrap_err();
            assert_eq!(error.code(), "worker_not_gone");
            order(&registry, id, Order::Drain(Drain::default()))
                .await
                .unwrap();
        }
        expire(&registry, Instant::now() + INTERVAL * 3);
        let mut removed = None;
        registry
            .remove(id, line(), |name| removed = Some(name.clone()))
            .await
            .unwrap();
        assert_eq!(removed.as_deref(), Some("w1"));
        assert!(matches!(
            registry.get(id),
            Err(Error::WorkerNotFound { .. })
        ));
        // Whoever comes back is somebody new, of whom nothing is ordered.
        let link = join(&registry, "w1");
        assert_eq!(state(&registry, link.worker.id), api::WorkerState::Ready);
    }
}
