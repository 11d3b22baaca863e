//! The records in memory and the orders in which they are looked for: every job
//! that has not ended, and those whose end is not on the disk yet. Plain data
//! behind the lock of [`super::Jobs`]: nothing here waits.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    group::Group,
    index::{Filter, Index, Spot},
    later::Alarms,
    prerequisites::{Dependents, group_as_job},
    record::{Event, Place, Record, RecordedStop, State, Status},
    recovery::Recovery,
    room::{Cut, Room},
};
use crate::{
    api::{self, PassedOver},
    ids::{GroupId, JobId, WorkerId},
    labels::Requirement,
    roles::scheduler::{
        offers::Offer,
        placement::{Queue, Seat, Wanted},
        registry::{Session, WorkerHandle},
        store::{Cursor, Env, Ticket},
        time::{Now, Time},
    },
};

/// The most ended jobs that leave memory at a time.
const EVICTED_AT_ONCE: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Table {
    jobs: BTreeMap<JobId, Entry>,
    groups: HashMap<GroupId, GroupEntry>,
    /// Groups in which a job failed that stops the rest.
    failed: Vec<GroupId>,
    index: Index,
    queue: Queue,
    pub(super) time: Time,
    /// When jobs that wait for a time are looked at.
    pub(super) alarms: Alarms,
    pub(super) dependents: Dependents,
    /// What is known of the time before this start.
    pub(super) recovery: Recovery,
    /// The workers that placement knows.
    workers: HashMap<WorkerId, WorkerHandle>,
    on_worker: HashMap<WorkerId, OnWorker>,
    /// The jobs of runs that have ids of their own.
    pub(super) runs: HashMap<JobId, JobId>,
    /// What the store has not been told yet.
    changed: Vec<Changed>,
    /// Ended, in the order in which the store was told.
    ended: VecDeque<(Ticket, Ended)>,
}

/// What is kept in memory until its end is on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    Job(JobId),
    Group(GroupId),
}

/// What the store is to be told.
#[derive(Debug)]
pub(super) enum Changed {
    Job(Arc<Record>),
    Adopted(Arc<Record>),
    Group(Arc<Group>),
}

/// A group of which not everything has ended.
#[derive(Debug)]
struct GroupEntry {
    group: Arc<Group>,
    /// Those of its jobs that are in memory.
    members: BTreeMap<u32, JobId>,
    /// There from the first waiter until the end.
    changes: Option<watch::Sender<Arc<Group>>>,
}

#[derive(Debug)]
struct Entry {
    record: Arc<Record>,
    /// There from the first waiter until the end.
    changes: Option<watch::Sender<Arc<Record>>>,
    /// The values of its environment, until it is not started any more.
    env: Arc<Env>,
    /// The stop that is on its way, which stays recorded until it has arrived.
    delivering: Option<RecordedStop>,
}

/// What happens on one worker.
#[derive(Debug, Default)]
struct OnWorker {
    live: HashSet<JobId>,
    settled: Option<Settled>,
}

/// The last time a worker told of all its jobs, and what became of a job that
/// it does not know and that was sent under another session.
#[derive(Clone, Debug)]
struct Settled {
    session: Session,
    gone: super::Gone,
}

/// What a worker that is back is owed.
#[derive(Debug)]
pub(super) enum Due {
    Start(Arc<Record>),
    Stop(Arc<Record>, RecordedStop),
}

impl Table {
    /// What a worker offers has changed; None: it is known no more.
    pub(super) fn offer(&mut self, id: WorkerId, offer: Option<Offer>) {
        let seat = offer.map(|offer| {
            let name = offer.worker.name.clone();
            self.workers.insert(id, offer.worker);
            Seat {
                name,
                slots: offer.slots,
                cpus: offer.cpus,
                labels: offer.labels,
                openness: offer.openness,
            }
        });
        if seat.is_none() {
            self.workers.remove(&id);
        }
        self.queue.offer(id, seat);
    }

    /// A group whose jobs are inserted next; they are counted as they come.
    pub(super) fn insert_group(&mut self, group: Group) {
        if let Some(at_once) = group.at_once {
            self.queue.bound(group.id, at_once);
        }
        let entry = GroupEntry {
            members: BTreeMap::new(),
            changes: None,
            group: Arc::new(group),
        };
        if entry.group.is_final() {
            self.changed.push(Changed::Group(entry.group.clone()));
        }
        self.groups.insert(entry.group.id, entry);
    }

    pub(super) fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.groups.get(&id).map(|entry| entry.group.clone())
    }

    /// The group now and, until it has ended, after every change.
    pub(super) fn watch_group(&mut self, id: GroupId) -> Option<watch::Receiver<Arc<Group>>> {
        let entry = self.groups.get_mut(&id)?;
        let group = &entry.group;
        if group.is_final() {
            return Some(watch::channel(group.clone()).1);
        }
        let changes = entry
            .changes
            .get_or_insert_with(|| watch::channel(group.clone()).0);
        Some(changes.subscribe())
    }

    /// The group's jobs that are in memory from that number on, in their order, as
    /// many as there is room for.
    pub(super) fn members(&self, group: GroupId, from: u32, room: Room) -> Cut<Arc<Record>> {
        let entry = self.groups.get(&group).into_iter();
        let members = entry.flat_map(|entry| entry.members.range(from..));
        self.as_many(room, members.map(|(_, id)| *id))
    }

    /// No job of the group starts any more. Those that wait have ended when this
    /// returns; those that are on workers, or may be, are returned.
    pub(super) fn stop_group(&mut self, id: GroupId, why: &str) -> Vec<JobId> {
        let Some(entry) = self.groups.get_mut(&id) else {
            return Vec::new();
        };
        if !entry.group.is_final() {
            Arc::make_mut(&mut entry.group).stopped = Some(why.to_owned());
            self.changed.push(Changed::Group(entry.group.clone()));
        }
        let members: Vec<JobId> = entry.members.values().copied().collect();
        let mut running = Vec::new();
        for id in members {
            if let Some(record) = self.get(id)
                && record.state == State::Queued
            {
                self.apply(id, record.stopped_before_start(Some(why)));
            }
            if self.get(id).is_some_and(|record| !record.is_final()) {
                running.push(id);
            }
        }
        running
    }

    /// It is on a worker, nobody has told that one to stop it, and its group was
    /// stopped.
    pub(super) fn is_to_stop(&self, id: JobId) -> bool {
        let record = self.get(id);
        let record = record.filter(|record| record.place.is_some() && record.stop.is_none());
        let group = record.and_then(|record| self.group(record.group()?));
        group.is_some_and(|group| group.stopped.is_some())
    }

    /// The worker of this name is known no more: what waits for it and no other
    /// will never start.
    pub(super) fn wait_in_vain(&mut self, worker: WorkerId, name: &str) {
        let waiting = self.index.wanting(worker);
        for id in waiting {
            if let Some(record) = self.get(id) {
                let why = format!("worker {name} was removed");
                self.apply(id, record.stopped_before_start(Some(&why)));
            }
        }
    }

    /// The groups that a failure stops, each once.
    pub(super) fn failed(&mut self) -> Vec<GroupId> {
        std::mem::take(&mut self.failed)
    }

    /// Has a job that may start now wait for its turn.
    pub(super) fn line_up(&mut self, record: &Record) {
        self.queue.add(&record.wanted(), record.turn());
    }

    /// Has a job that may start otherwise wait until [`Table::release_held`].
    pub(super) fn hold(&mut self, record: &Record) {
        self.queue.hold(&record.wanted(), record.turn());
    }

    /// Jobs that were held wait for their turn.
    pub(super) fn release_held(&mut self) {
        self.queue.release();
    }

    /// Some worker is there to take the job, now or when it has room.
    pub(super) fn has_workers(&self, record: &Record) -> bool {
        self.queue.has_workers(&record.wanted())
    }

    /// Has a job wait no more, for whatever it waits.
    pub(super) fn dequeue(&mut self, record: &Record) {
        self.alarms.set(record.id, None);
        self.dependents.release(record);
        self.queue.remove(&record.wanted(), record.turn());
    }

    /// The workers with these labels, by name, that are there to take jobs; and
    /// those that are not.
    pub(super) fn matching(&self, labels: &[Requirement]) -> (Vec<WorkerId>, Vec<PassedOver>) {
        self.queue.matching(labels)
    }

    /// Why no worker is there that has these labels, in one line.
    pub(super) fn why_nobody(&self, labels: &[Requirement]) -> String {
        self.queue.why(&Wanted {
            labels: labels.to_vec(),
            ..Wanted::default()
        })
    }

    /// Gives jobs that wait to workers that have room. The caller tells the store
    /// of them, and sends them once they are on the disk.
    pub(super) fn place(&mut self) -> Vec<(Arc<Record>, WorkerHandle)> {
        let placed = self.queue.place();
        let placed = placed.into_iter().filter_map(|(id, worker)| {
            let handle = self.workers.get(&worker)?.clone();
            let entry = self.jobs.get_mut(&id)?;
            let before = Spot::of(&entry.record);
            let record = Arc::make_mut(&mut entry.record);
            record.state = record.state.after(Event::Placed)?;
            let run = record.next_run();
            if let Some(run) = run {
                self.runs.insert(run, id);
            }
            record.retry_at = None;
            record.place = Some(Place {
                worker,
                worker_name: handle.name.clone(),
                session: handle.session,
                run,
            });
            self.on_worker.entry(worker).or_default().live.insert(id);
            self.alarms.set(id, None);
            self.index.moved(before, record);
            entry.announce();
            tracing::debug!(job_id = %id, worker_id = %worker, "job placed");
            Some((entry.record.clone(), handle))
        });
        placed.collect()
    }

    /// What a job that has no worker waits for, in one line.
    pub(super) fn why(&self, record: &Record) -> String {
        let not_yet = record
            .why_not_free()
            .or_else(|| record.why_not_yet(self.time.now()));
        let not_yet = not_yet.or_else(|| self.why_held(record));
        not_yet.unwrap_or_else(|| self.queue.why(&record.wanted()))
    }

    /// The values of a job's environment, as long as they are needed.
    pub(super) fn env(&self, id: JobId) -> Arc<Env> {
        let entry = self.jobs.get(&id);
        entry.map(|entry| entry.env.clone()).unwrap_or_default()
    }

    /// A job of which the store is told by the caller. One that waits for a worker
    /// is not in the queue yet.
    pub(super) fn insert(&mut self, record: Record, env: Arc<Env>) -> Arc<Record> {
        let record = Arc::new(record);
        self.index.insert(&record);
        if let Some(worker) = record.worker()
            && !record.is_final()
        {
            self.on_worker
                .entry(worker)
                .or_default()
                .live
                .insert(record.id);
            self.queue.occupy(worker, record.bound_by());
            if let Some(run) = record.place.as_ref().and_then(|place| place.run) {
                self.runs.insert(run, record.id);
            }
        }
        if let Some(member) = &record.member
            && let Some(entry) = self.groups.get_mut(&member.group)
        {
            entry.members.insert(member.index, record.id);
            Arc::make_mut(&mut entry.group).count_in(&record);
        }
        let entry = Entry {
            record: record.clone(),
            changes: None,
            env,
            delivering: None,
        };
        self.jobs.insert(record.id, entry);
        record
    }

    /// A job that only its worker knew.
    pub(super) fn adopt(&mut self, record: Record) {
        let record = self.insert(record, Arc::default());
        self.changed.push(Changed::Adopted(record));
    }

    /// Takes a job out: nobody is told of it any more.
    pub(super) fn remove(&mut self, id: JobId) {
        let Some(entry) = self.jobs.remove(&id) else {
            return;
        };
        let record = &entry.record;
        self.index.remove(record);
        self.dependents.removed(id);
        self.recovery.removed(id);
        match &record.state {
            State::Queued => self.dequeue(&entry.record),
            State::Pending { .. } | State::Running(_) | State::Unknown { .. } => {
                let was_open = record.state == State::Pending { call_open: true };
                self.vacate(id, &entry.record.clone(), was_open);
            }
            State::Ended { .. } => {}
        }
        if let Some(member) = &entry.record.member
            && let Some(of) = self.groups.get_mut(&member.group)
        {
            of.members.remove(&member.index);
        }
    }

    /// The job is no longer on the worker that `record` names.
    fn vacate(&mut self, id: JobId, record: &Record, was_open: bool) {
        let Some(worker) = record.worker() else {
            return;
        };
        if let Some(run) = record.run() {
            self.runs.remove(&run);
        }
        if let Some(on_worker) = self.on_worker.get_mut(&worker)
            && on_worker.live.remove(&id)
        {
            self.queue.vacate(worker, record.bound_by());
            if was_open {
                self.queue.answered(worker);
            }
        }
    }

    /// What has changed since this was asked last, in order. The caller says
    /// with [`Table::noted`] when the store was told of an end.
    pub(super) fn changed(&mut self) -> Vec<Changed> {
        std::mem::take(&mut self.changed)
    }

    /// The store was told of this job's end.
    pub(super) fn noted(&mut self, ticket: Ticket, ended: Ended) {
        self.ended.push_back((ticket, ended));
    }

    /// Drops ended jobs that are on the disk, where they are looked for; so many at a
    /// time that whoever waits for the table does not wait for long.
    pub(super) fn evict(&mut self, is_committed: impl Fn(Ticket) -> bool) {
        for _ in 0..EVICTED_AT_ONCE {
            let Some((ticket, ended)) = self.ended.front().copied() else {
                return;
            };
            if !is_committed(ticket) {
                return;
            }
            self.ended.pop_front();
            match ended {
                Ended::Job(id) => self.remove(id),
                Ended::Group(id) => drop(self.groups.remove(&id)),
            }
        }
    }

    pub(super) fn get(&self, id: JobId) -> Option<Arc<Record>> {
        self.jobs.get(&id).map(|entry| entry.record.clone())
    }

    /// The record now and, until it has ended, after every change.
    pub(super) fn watch(&mut self, id: JobId) -> Option<watch::Receiver<Arc<Record>>> {
        let entry = self.jobs.get_mut(&id)?;
        if entry.record.is_final() {
            return Some(watch::channel(entry.record.clone()).1);
        }
        let record = &entry.record;
        let changes = entry
            .changes
            .get_or_insert_with(|| watch::channel(record.clone()).0);
        Some(changes.subscribe())
    }

    /// Applies `event`, and tells every waiter if it changed anything.
    pub(super) fn apply(&mut self, id: JobId, event: Event) {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(next) = entry.record.state.after(event) else {
            return;
        };
        if next == entry.record.state {
            return;
        }
        let before = entry.record.clone();
        let counted = self.time.counted();
        let record = Arc::make_mut(&mut entry.record);
        record.state = record.unless_tried_again(next, counted);
        if record.state == State::Queued {
            record.place = None;
        }
        tracing::info!(
            job_id = %id,
            worker_id = record.worker().map(tracing::field::display),
            state = record.api_state().as_str(),
            error = record.error_text(),
            "job changed"
        );
        if !record.needs_env() {
            entry.env = Arc::default();
        }
        if record.is_final() {
            record.stop = None;
            self.dependents.ended(id);
        }
        self.index.moved(Spot::of(&before), &entry.record);
        entry.announce();
        let record = entry.record.clone();
        self.changed.push(Changed::Job(record.clone()));
        self.move_in_group(before.api_state(), &record);
        let was_open = before.state == State::Pending { call_open: true };
        match &record.state {
            State::Ended { .. } if before.state == State::Queued => self.dequeue(&before),
            State::Ended { .. } => self.vacate(id, &before, was_open),
            State::Queued => {
                self.vacate(id, &before, was_open);
                // What it had was taken from it: it goes back to its turn.
                self.enqueue(id);
            }
            State::Pending { call_open: true } if !was_open => {
                if let Some(worker) = record.worker() {
                    self.queue.asked(worker);
                }
            }
            State::Pending { .. } | State::Running(_) | State::Unknown { .. } if was_open => {
                if let Some(worker) = record.worker() {
                    self.queue.answered(worker);
                }
            }
            State::Pending { .. } | State::Running(_) | State::Unknown { .. } => {}
        }
    }

    /// A job of a group, if it is in one, stands otherwise than `before`.
    fn move_in_group(&mut self, before: api::JobState, record: &Record) {
        let entry = record.group().and_then(|group| self.groups.get_mut(&group));
        let Some(entry) = entry else { return };
        if before == record.api_state() {
            return;
        }
        let group = Arc::make_mut(&mut entry.group);
        group.moved(before, record);
        let has_failed = match record.api_state() {
            api::JobState::Failed | api::JobState::TimedOut | api::JobState::Lost => true,
            api::JobState::Pending
            | api::JobState::Running
            | api::JobState::Unknown
            | api::JobState::Succeeded
            | api::JobState::Stopped => false,
        };
        if group.stop_on_failure && has_failed && group.stopped.is_none() {
            let text = record.error_text();
            group.stopped = Some(format!("job {} failed: {text}", record.label()));
            self.failed.push(group.id);
        }
        if let Some(changes) = &entry.changes {
            changes.send_replace(entry.group.clone());
        }
        if entry.group.is_final() {
            entry.changes = None;
            self.queue.unbound(entry.group.id);
            self.dependents.ended(group_as_job(entry.group.id));
            self.changed.push(Changed::Group(entry.group.clone()));
        }
    }

    /// The worker that the job was sent to takes none, and does not have it: it
    /// waits for another, and that worker gets no more until it offers anew.
    pub(super) fn turned_away(&mut self, run: JobId) {
        let Some(id) = self.job_of(run) else {
            return;
        };
        if let Some(worker) = self.get(id).and_then(|record| record.worker()) {
            self.queue.close(worker);
        }
        self.apply(id, Event::TurnedAway);
    }

    /// The worker that the job was sent to could not begin it: it waits again.
    pub(super) fn given_back(&mut self, run: JobId) {
        self.apply_to_run(run, Event::TurnedAway);
    }

    /// As [`Table::apply`], to the job of this run.
    pub(super) fn apply_to_run(&mut self, run: JobId, event: Event) {
        if let Some(id) = self.job_of(run) {
            self.apply(id, event);
        }
    }

    /// Takes in what the job's own worker says of it.
    pub(super) fn report(&mut self, run: JobId, status: Status, session: Option<Session>) {
        if let Some(id) = self.job_of(run)
            && let Some(entry) = self.jobs.get_mut(&id)
            && !entry.record.is_final()
        {
            let record = Arc::make_mut(&mut entry.record);
            record.output_bytes = record.output_bytes.max(status.output_bytes);
            if let (Some(place), Some(session)) = (&mut record.place, session) {
                place.session = session;
            }
            self.apply(id, Event::Reported(status.state));
        }
    }

    /// The runs that were sent to the worker under another session than this one, have
    /// not ended, and are not `named`.
    pub(super) fn missing(
        &self,
        worker: WorkerId,
        session: Session,
        named: &HashSet<JobId>,
    ) -> Vec<JobId> {
        let live = self.live_on(worker).into_iter();
        let live = live.filter_map(|id| self.jobs.get(&id));
        let earlier = live.filter(|entry| entry.session() != Some(session));
        let runs = earlier.filter_map(|entry| entry.record.run());
        runs.filter(|run| !named.contains(run)).collect()
    }

    /// The worker has told of all its jobs under `session`, or none will ever
    /// be told of again: what is not `present`, a run, and was sent under another
    /// session is gone, or is to be sent again.
    pub(super) fn settle(
        &mut self,
        worker: WorkerId,
        session: Session,
        present: &HashSet<JobId>,
        gone: super::Gone,
    ) {
        let on_worker = self.on_worker.entry(worker).or_default();
        on_worker.settled = Some(Settled {
            session,
            gone: gone.clone(),
        });
        let is_named = |id: &&JobId| {
            let run = self.jobs.get(*id).and_then(|entry| entry.record.run());
            run.is_some_and(|run| present.contains(&run))
        };
        let (named, absent): (Vec<JobId>, Vec<JobId>) = on_worker.live.iter().partition(is_named);
        for id in named {
            if let Some(entry) = self.jobs.get_mut(&id) {
                entry.set_session(session);
            }
        }
        for id in absent {
            let entry = self.jobs.get(&id);
            if entry.is_some_and(|entry| entry.session() != Some(session)) {
                self.apply(id, Event::Gone(gone.clone()));
            }
        }
        self.heard_of(worker);
    }

    /// What people call a worker that is known.
    pub(super) fn worker_name(&self, id: WorkerId) -> Option<Arc<str>> {
        self.workers.get(&id).map(|worker| worker.name.clone())
    }

    /// A job that waited is on a worker, which proves it.
    pub(super) fn put_on_worker(&mut self, id: JobId, place: Place) {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return;
        };
        let before = Spot::of(&entry.record);
        let record = Arc::make_mut(&mut entry.record);
        let worker = place.worker;
        if let Some(run) = place.run {
            self.runs.insert(run, id);
        }
        record.place = Some(place);
        record.retry_at = None;
        record.state = State::Pending { call_open: false };
        self.on_worker.entry(worker).or_default().live.insert(id);
        self.queue.occupy(worker, record.bound_by());
        self.index.moved(before, record);
        entry.announce();
        self.changed.push(Changed::Job(entry.record.clone()));
    }

    /// What the worker is owed under `session`, of all whose jobs it has told:
    /// starts of which it has proved to know nothing, and stops asked for while
    /// it was away. Each is handed out once.
    pub(super) fn due(&mut self, worker: WorkerId, session: Session) -> Vec<Due> {
        let live = self.settled_under(worker, session);
        live.into_iter()
            .filter_map(|id| self.due_of(id, session))
            .collect()
    }

    /// Has the starts that a worker has proved under `session` to know nothing of wait
    /// for another one.
    pub(super) fn give_back(&mut self, worker: WorkerId, session: Session) {
        for id in self.settled_under(worker, session) {
            if self.is_unknown_there(id, session) {
                self.apply(id, Event::NotThere);
            }
        }
    }

    /// The live jobs of a worker that has told of all it has under `session`; of another
    /// one nothing can be concluded.
    fn settled_under(&self, worker: WorkerId, session: Session) -> Vec<JobId> {
        let Some(on_worker) = self.on_worker.get(&worker) else {
            return Vec::new();
        };
        let settled = on_worker.settled.as_ref().is_some_and(|settled| {
            settled.session == session && settled.gone == super::Gone::Restarted
        });
        match settled {
            true => self.live_on(worker),
            false => Vec::new(),
        }
    }

    /// Whether the job was sent under an earlier session alone, and the worker has not
    /// named it under this one. One that is to be stopped ends here.
    fn is_unknown_there(&mut self, id: JobId, session: Session) -> bool {
        let Some(entry) = self.jobs.get(&id) else {
            return false;
        };
        let record = &entry.record;
        if entry.session() == Some(session) || !record.state.may_be_sent() {
            return false;
        }
        let record = record.clone();
        let group = record.group().and_then(|group| self.group(group));
        let why = group.and_then(|group| group.stopped.clone());
        if record.stop.is_some() || why.is_some() {
            self.apply(id, record.stopped_before_start(why.as_deref()));
            return false;
        }
        true
    }

    fn due_of(&mut self, id: JobId, session: Session) -> Option<Due> {
        if self.is_unknown_there(id, session) {
            self.jobs.get_mut(&id)?.set_session(session);
            self.apply(id, Event::SentAgain);
            return Some(Due::Start(self.get(id)?));
        }
        let entry = self.jobs.get_mut(&id)?;
        let record = &entry.record;
        if entry.session() != Some(session) || !matches!(record.state, State::Running(_)) {
            return None;
        }
        let stop = record.stop?;
        if entry.delivering.replace(stop).is_some() {
            return None;
        }
        Some(Due::Stop(entry.record.clone(), stop))
    }

    /// Records a stop that cannot be delivered now.
    pub(super) fn want_stop(&mut self, id: JobId, stop: RecordedStop) {
        self.edit(id, |record| {
            record.stop = Some(stop);
            true
        });
    }

    /// A stop that was due has arrived, or has not. One that was recorded since is still
    /// owed.
    pub(super) fn stop_was_sent(&mut self, id: JobId, has_arrived: bool) {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return;
        };
        let sent = entry.delivering.take();
        if has_arrived {
            self.edit(id, |record| {
                let is_done = record.stop == sent;
                if is_done {
                    record.stop = None;
                }
                is_done
            });
        }
    }

    /// Changes something else than the state of a job that has not ended;
    /// `change` says whether there was something to change.
    pub(super) fn edit(&mut self, id: JobId, change: impl FnOnce(&mut Record) -> bool) {
        if let Some(entry) = self.jobs.get_mut(&id)
            && !entry.record.is_final()
            && change(Arc::make_mut(&mut entry.record))
        {
            entry.announce();
            self.changed.push(Changed::Job(entry.record.clone()));
        }
    }

    /// A job that waits for a time by the wall clock waits for it no more once that was
    /// shown, whatever is shown afterwards. The store is told with the next change.
    pub(super) fn ripen(&mut self, id: JobId, now: Now) {
        if let Some(entry) = self.jobs.get_mut(&id)
            && let Some(at) = entry.record.unripe_until()
            && at <= now.wall
        {
            Arc::make_mut(&mut entry.record).ripe_at = Some(now.counted);
        }
    }

    /// The call that starts the job was not answered. If the worker has left
    /// since, that settles it.
    pub(super) fn unconfirmed(&mut self, run: JobId, why: String) {
        let Some(id) = self.job_of(run) else {
            return;
        };
        self.apply(id, Event::Unconfirmed { why });
        let Some(place) = self.get(id).and_then(|record| record.place.clone()) else {
            return;
        };
        let on_worker = self.on_worker.get(&place.worker);
        if let Some(settled) = on_worker.and_then(|on_worker| on_worker.settled.clone())
            && settled.session != place.session
        {
            self.apply(id, Event::Gone(settled.gone));
        }
    }

    pub(super) fn unreachable(&mut self, worker: WorkerId, why: &str) {
        for id in self.live_on(worker) {
            let why = why.to_owned();
            self.apply(id, Event::WorkerUnreachable { why });
        }
    }

    /// The newest job, of that name if there is one.
    pub(super) fn newest(&self, name: Option<&str>) -> Option<Arc<Record>> {
        self.get(self.index.newest(name)?)
    }

    /// At most `limit` jobs from `first` on that begin with `digits`.
    pub(super) fn with_prefix(&self, first: JobId, digits: &str, limit: usize) -> Vec<Arc<Record>> {
        self.jobs
            .range(first..)
            .take_while(|(id, _)| id.starts_with(digits))
            .take(limit)
            .map(|(_, entry)| entry.record.clone())
            .collect()
    }

    /// The newest jobs behind `after`, the newest first, as many as there is room for.
    pub(super) fn page(
        &self,
        filter: &Filter,
        room: Room,
        after: Option<Cursor>,
    ) -> Cut<Arc<Record>> {
        let page = self.index.page(filter, room.jobs() + 1, after);
        self.as_many(room, page.into_iter())
    }

    fn as_many(&self, room: Room, ids: impl Iterator<Item = JobId>) -> Cut<Arc<Record>> {
        let jobs = ids.filter_map(|id| self.get(id)).map(|record| {
            let bytes = record.shown_bytes();
            Ok::<_, Infallible>((record, bytes))
        });
        let Ok(cut) = room.fill(jobs);
        cut
    }

    /// The names of the newest jobs, of at most so many.
    pub(super) fn newest_names(&self, limit: usize) -> Vec<String> {
        let newest = self.index.page(&Filter::default(), limit, None).into_iter();
        let newest = newest.filter_map(|id| self.jobs.get(&id));
        let names = newest.filter_map(|entry| entry.record.spec.name.clone());
        names.collect()
    }

    /// The jobs on a worker that have not ended.
    pub(super) fn live_on(&self, worker: WorkerId) -> Vec<JobId> {
        let on_worker = self.on_worker.get(&worker);
        on_worker.map_or_else(Vec::new, |on| on.live.iter().copied().collect())
    }
}

impl Entry {
    fn session(&self) -> Option<Session> {
        self.record.place.as_ref().map(|place| place.session)
    }

    fn set_session(&mut self, session: Session) {
        if let Some(place) = &mut Arc::make_mut(&mut self.record).place {
            place.session = session;
        }
    }

    fn announce(&mut self) {
        if let Some(changes) = &self.changes {
            changes.send_replace(self.record.clone());
        }
        if self.record.is_final() {
            self.changes = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::LazyLock,
        time::{Duration, Instant},
    };

    use jiff::Timestamp;
    use proptest::prelude::*;
    use tokio::runtime::Runtime;

    use super::*;
    use crate::roles::scheduler::{
        jobs::{
            Gone, Process, Spec, now,
            record::{End, Member, tests::record},
            recovery::tests::workers,
        },
        offers::{Openness, Slots},
    };

    fn running() -> Record {
        record(State::Running(Process::default()))
    }

    fn insert(table: &mut Table, record: Record) -> Arc<Record> {
        table.insert(record, Arc::default())
    }

    fn ended() -> Status {
        Status {
            state: State::Ended {
                process: None,
                at: now(),
                end: End::Succeeded,
                reason: String::new(),
            },
            output_bytes: 3,
        }
    }

    fn with_id(id: &str) -> Record {
        Record {
            id: id.parse().unwrap(),
            ..running()
        }
    }

    #[test]
    fn the_newest_of_a_name_and_those_of_a_prefix_are_found() {
        let mut table = Table::default();
        assert!(table.newest(None).is_none());
        let mut old = with_id("3f2a0000-0000-4000-8000-000000000001");
        let cafe = Arc::new(Spec {
            name: Some("cafe".to_owned()),
            ..Spec::default()
        });
        old.spec = cafe.clone();
        let mut new = with_id("3f2b0000-0000-4000-8000-000000000002");
        new.spec = cafe;
        new.created_at = old.created_at + Duration::from_secs(1);
        let (old, new) = (insert(&mut table, old), insert(&mut table, new));
        assert_eq!(table.newest(None).unwrap().id, new.id);
        assert_eq!(table.newest(Some("cafe")).unwrap().id, new.id);
        assert!(table.newest(Some("nobody")).is_none());
        let first = "3f2a0000-0000-0000-0000-000000000000".parse().unwrap();
        let found = |digits, limit| table.with_prefix(first, digits, limit).len();
        assert_eq!(
            (found("3f2a", 5), found("3f2", 5), found("3f2", 1)),
            (1, 2, 1)
        );
        table.remove(new.id);
        assert_eq!(table.newest(Some("cafe")).unwrap().id, old.id);
        table.remove(old.id);
        assert!(table.newest(None).is_none());
        assert!(table.on_worker[&old.worker().unwrap()].live.is_empty());
    }

    #[test]
    fn pages_join_without_gap_or_repetition() {
        let mut table = Table::default();
        let mut all = Vec::new();
        let start = now();
        for n in 0..25_u64 {
            let mut job = running();
            // Some at the same moment, as it happens on a fast machine.
            job.created_at = start + Duration::from_secs(n / 3);
            all.push((job.created_at, job.id));
            insert(&mut table, job);
        }
        all.sort();
        all.reverse();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = table.page(&Filter::default(), Room::of(10), after).jobs;
            let keys = page.iter().map(|record| (record.created_at, record.id));
            seen.extend(keys);
            if page.is_empty() {
                break;
            }
            after = seen.last().copied();
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_page_is_filtered() {
        let mut table = Table::default();
        let mut named = running();
        named.spec = Arc::new(Spec {
            name: Some("a".to_owned()),
            ..Spec::default()
        });
        let named = insert(&mut table, named);
        let done = insert(&mut table, running());
        table.report(done.id, ended(), None);
        let ids = |filter: Filter| -> Vec<JobId> {
            let page = table.page(&filter, Room::of(10), None).jobs;
            page.iter().map(|record| record.id).collect()
        };
        let states = Some(vec![api::JobState::Succeeded]);
        assert_eq!(
            ids(Filter {
                states,
                ..Default::default()
            }),
            [done.id]
        );
        let name = Some("a".to_owned());
        assert_eq!(
            ids(Filter {
                name,
                ..Default::default()
            }),
            [named.id]
        );
        let worker = named.worker();
        assert_eq!(
            ids(Filter {
                worker,
                ..Default::default()
            }),
            [named.id]
        );
    }

    /// The page that a look at every job gives.
    fn looked_through(
        table: &Table,
        filter: &Filter,
        limit: usize,
        after: Option<Cursor>,
    ) -> Vec<JobId> {
        let all = table.jobs.values().map(|entry| &entry.record);
        let fits = all.filter(|record| {
            filter.has_state(record.api_state())
                && (filter.worker).is_none_or(|worker| record.worker() == Some(worker))
                && (filter.name.as_deref())
                    .is_none_or(|name| record.spec.name.as_deref() == Some(name))
                && after.is_none_or(|after| (record.created_at, record.id) < after)
        });
        let mut keys: Vec<Cursor> = fits.map(|record| (record.created_at, record.id)).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys.into_iter().take(limit).map(|(_, id)| id).collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { name: Option<u8>, wanted: bool },
        Offer { slots: u32 },
        Report { which: usize, has_ended: bool },
        Unreachable,
        TurnedAway { which: usize },
        PutOnWorker { which: usize },
        StopWaiting,
        Remove { which: usize },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (proptest::option::of(0..3_u8), any::<bool>())
                .prop_map(|(name, wanted)| Step::Insert { name, wanted }),
            1 => (0..6_u32).prop_map(|slots| Step::Offer { slots }),
            2 => (0..40_usize, any::<bool>())
                .prop_map(|(which, has_ended)| Step::Report { which, has_ended }),
            1 => Just(Step::Unreachable),
            1 => (0..40_usize).prop_map(|which| Step::TurnedAway { which }),
            1 => (0..40_usize).prop_map(|which| Step::PutOnWorker { which }),
            1 => Just(Step::StopWaiting),
            1 => (0..40_usize).prop_map(|which| Step::Remove { which }),
        ]
    }

    fn step(table: &mut Table, workers: &[WorkerHandle], at: Timestamp, step: Step) {
        let nth = |table: &Table, which: usize| {
            let id = table.jobs.keys().nth(which % table.jobs.len().max(1));
            id.and_then(|id| table.get(*id))
        };
        match step {
            Step::Insert { name, wanted } => {
                let spec = Spec {
                    name: name.map(|name| format!("n{name}")),
                    retries: 1,
                    retry_pause: Some(Duration::from_secs(3600)),
                    ..Spec::default()
                };
                let job = Record {
                    spec: Arc::new(spec),
                    place: None,
                    wanted: wanted.then_some(workers[0].id),
                    created_at: at,
                    ..record(State::Queued)
                };
                let id = insert(table, job).id;
                table.enqueue(id);
            }
            Step::Offer { slots } => {
                let offer = Offer {
                    worker: workers[slots as usize % workers.len()].clone(),
                    slots: Slots::Limited(slots),
                    cpus: 1,
                    labels: Arc::default(),
                    openness: Openness::Ready,
                };
                table.offer(offer.worker.id, Some(offer));
                table.place();
            }
            Step::Report { which, has_ended } => {
                if let Some(run) = nth(table, which).and_then(|record| record.run()) {
                    let failed = State::Ended {
                        process: None,
                        at: now(),
                        end: End::Failed(None),
                        reason: String::new(),
                    };
                    let state = match has_ended {
                        true => failed,
                        false => State::Running(Process::default()),
                    };
                    let output_bytes = 0;
                    table.report(
                        run,
                        Status {
                            state,
                            output_bytes,
                        },
                        None,
                    );
                }
            }
            Step::Unreachable => table.unreachable(workers[0].id, "silent"),
            Step::TurnedAway { which } => {
                if let Some(run) = nth(table, which).and_then(|record| record.run()) {
                    table.given_back(run);
                }
            }
            Step::PutOnWorker { which } => {
                if let Some(record) = nth(table, which)
                    && record.state == State::Queued
                {
                    table.dequeue(&record);
                    let place = Place {
                        worker: workers[1].id,
                        worker_name: "w".into(),
                        session: Session::random(),
                        run: record.next_run(),
                    };
                    table.put_on_worker(record.id, place);
                }
            }
            Step::StopWaiting => {
                table.wait_in_vain(workers[0].id, "w");
                let waits = |entry: &Entry| {
                    entry.record.state == State::Queued
                        && entry.record.wanted == Some(workers[0].id)
                };
                assert!(!table.jobs.values().any(waits));
            }
            Step::Remove { which } => {
                if let Some(record) = nth(table, which) {
                    table.remove(record.id);
                }
            }
        }
    }

    /// Handles of workers, and what they need to be.
    static TWO: LazyLock<(Runtime, [WorkerHandle; 2])> = LazyLock::new(|| {
        let runtime = Runtime::new().unwrap();
        let entered = runtime.enter();
        let workers = workers(["w1", "w2"]);
        drop(entered);
        (runtime, workers)
    });

    proptest! {
        #[test]
        fn a_page_shows_what_a_look_at_every_job_finds(
            steps in proptest::collection::vec(any_step(), 1..60),
        ) {
            let (_, workers) = &*TWO;
            let start = now();
            let mut table = Table::default();
            for (n, one) in steps.into_iter().enumerate() {
                // Some at the same moment, as it happens on a fast machine.
                let at = start + Duration::from_secs(n as u64 / 3);
                step(&mut table, workers, at, one);
            }
            let states = [None, Some(vec![api::JobState::Pending]),
                Some(vec![api::JobState::Running, api::JobState::Failed])];
            let names = [None, Some("n1"), Some("nobody")];
            let on = [None, Some(workers[0].id), Some(workers[1].id)];
            let middle = start + Duration::from_secs(7);
            let afters = [None, Some((middle, JobId::random()))];
            for n in 0..states.len() * names.len() * on.len() * afters.len() {
                let (n, after) = (n / afters.len(), afters[n % afters.len()]);
                let (n, worker) = (n / on.len(), on[n % on.len()]);
                let (n, name) = (n / names.len(), names[n % names.len()]);
                let (states, name) = (states[n].clone(), name.map(str::to_owned));
                let filter = Filter { states, worker, name };
                let page = table.page(&filter, Room::of(7), after).jobs;
                let page: Vec<JobId> = page.iter().map(|record| record.id).collect();
                prop_assert_eq!(page, looked_through(&table, &filter, 7, after), "{:?}", filter);
            }
            for worker in workers {
                let mut live = table.live_on(worker.id);
                live.sort_unstable();
                let on_it = |entry: &&Entry| {
                    entry.record.worker() == Some(worker.id) && !entry.record.is_final()
                };
                let all = table.jobs.values().filter(on_it);
                prop_assert_eq!(live, all.map(|entry| entry.record.id).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_page_of_a_state_does_not_cost_more_among_many_jobs() {
        let took = |jobs: usize| {
            let mut table = Table::default();
            for _ in 0..jobs {
                let waiting = Record {
                    place: None,
                    ..record(State::Queued)
                };
                insert(&mut table, waiting);
            }
            let filter = Filter {
                states: Some(vec![api::JobState::Running]),
                ..Filter::default()
            };
            let once = || {
                let began = Instant::now();
                assert!(table.page(&filter, Room::of(50), None).jobs.is_empty());
                began.elapsed()
            };
            (0..20).map(|_| once()).min().unwrap()
        };
        let (few, many) = (took(10), took(20_000));
        assert!(
            many < few * 20 + Duration::from_micros(100),
            "{few:?} {many:?}"
        );
    }

    #[test]
    fn only_so_many_ended_jobs_leave_memory_at_a_time() {
        let mut table = Table::default();
        let ticket = crate::roles::scheduler::store::scratch().now();
        for _ in 0..EVICTED_AT_ONCE + 1 {
            let id = insert(&mut table, running()).id;
            table.report(id, ended(), None);
            table.noted(ticket, Ended::Job(id));
        }
        table.evict(|_| true);
        assert_eq!(table.jobs.len(), 1);
        table.evict(|_| true);
        assert!(table.jobs.is_empty());
    }

    #[test]
    fn an_ended_job_stays_until_it_is_on_the_disk() {
        let mut table = Table::default();
        let live = insert(&mut table, running());
        let job = insert(&mut table, running());
        table.report(job.id, ended(), None);
        let changed = table.changed();
        assert!(matches!(&changed[..], [Changed::Job(record)] if record.is_final()));
        let ticket = crate::roles::scheduler::store::scratch().now();
        table.noted(ticket, Ended::Job(job.id));
        table.evict(|_| false);
        assert!(table.get(job.id).is_some());
        table.evict(|_| true);
        assert!(table.get(job.id).is_none());
        assert!(table.get(live.id).is_some());
    }

    #[test]
    fn a_new_session_that_does_not_name_a_job_has_lost_it() {
        let mut table = Table::default();
        let (named, absent) = (running(), running());
        let place = named.place.clone().unwrap();
        let worker = place.worker;
        let named = insert(&mut table, named);
        let here = |session| {
            let place = place.clone();
            Some(Place { session, ..place })
        };
        let absent = Record {
            place: here(Session::random()),
            ..absent
        };
        let absent = insert(&mut table, absent);
        let session = Session::random();
        let fresh = insert(
            &mut table,
            Record {
                place: here(session),
                ..running()
            },
        );
        let present = HashSet::from([named.id]);
        table.settle(worker, session, &present, Gone::Restarted);
        let state = |id| table.get(id).unwrap().api_state();
        assert_eq!(state(named.id), api::JobState::Running);
        assert_eq!(state(absent.id), api::JobState::Lost);
        assert_eq!(state(fresh.id), api::JobState::Running);
        assert_eq!(table.on_worker[&worker].live.len(), 2);
    }

    #[test]
    fn a_start_of_which_the_worker_knows_nothing_is_due_once() {
        let mut table = Table::default();
        let env = Arc::new(Env::from([("A".to_owned(), "b".to_owned())]));
        let job = table.insert(record(State::Pending { call_open: true }), env.clone());
        let session = Session::random();
        let settle = |table: &mut Table, session| {
            table.settle(
                job.worker().unwrap(),
                session,
                &HashSet::new(),
                Gone::Restarted,
            );
        };
        settle(&mut table, session);
        assert!(
            table.due(job.worker().unwrap(), session).is_empty(),
            "the call is open"
        );
        table.unconfirmed(job.id, "no answer".to_owned());
        assert!(
            table
                .due(job.worker().unwrap(), Session::random())
                .is_empty()
        );
        let due = table.due(job.worker().unwrap(), session);
        assert!(matches!(&due[..], [Due::Start(record)]
                if record.id == job.id
                    && record.place.as_ref().unwrap().session == session));
        assert_eq!(table.env(job.id), env);
        assert!(table.due(job.worker().unwrap(), session).is_empty());
    }

    #[test]
    fn what_a_worker_that_left_never_began_goes_to_another() {
        let mut table = Table::default();
        let job = insert(&mut table, record(State::Pending { call_open: true }));
        table.settle(
            job.worker().unwrap(),
            Session::random(),
            &HashSet::new(),
            Gone::Left,
        );
        assert!(!table.get(job.id).unwrap().is_final());
        table.unconfirmed(job.id, "no answer".to_owned());
        let waiting = table.get(job.id).unwrap();
        assert_eq!((&waiting.state, &waiting.place), (&State::Queued, &None));
    }

    #[test]
    fn what_was_to_stop_does_not_go_to_another() {
        let mut table = Table::default();
        let job = insert(&mut table, record(State::Pending { call_open: false }));
        let worker = job.worker().unwrap();
        table.want_stop(job.id, RecordedStop::default());
        table.settle(worker, Session::random(), &HashSet::new(), Gone::Left);
        let stopped = table.get(job.id).unwrap();
        assert_eq!(stopped.api_state(), api::JobState::Stopped);
        assert!(stopped.never_ran());
    }

    #[test]
    fn a_job_that_may_run_is_not_stopped_before_its_worker_says_so() {
        let mut table = Table::default();
        let group = Group {
            id: GroupId::random(),
            spec: Arc::default(),
            count: 3,
            all: false,
            at_once: None,
            stop_on_failure: true,
            created_at: now(),
            states: api::Counts::default(),
            exit_code: 0,
            failed_index: None,
            ended_at: None,
            stopped: None,
        };
        table.insert_group(group.clone());
        let mut member = |index, state: State| {
            let member = Some(Member {
                group: group.id,
                index,
                count: 3,
                item: None,
                is_bound: false,
            });
            let place = record(state.clone()).place;
            let place = place.filter(|_| state != State::Queued);
            insert(
                &mut table,
                Record {
                    member,
                    place,
                    ..record(state)
                },
            )
        };
        let waits = member(0, State::Queued);
        let [there, absent] = [1, 2].map(|index| member(index, State::Pending { call_open: true }));
        for sent in [&there, &absent] {
            table.unconfirmed(sent.id, "no answer".to_owned());
        }
        let mut left = table.stop_group(group.id, "job 3 failed");
        left.sort();
        let mut sent = [there.id, absent.id];
        sent.sort();
        assert_eq!(left, sent);
        let state = |table: &Table, id| table.get(id).unwrap().api_state();
        assert_eq!(state(&table, waits.id), api::JobState::Stopped);
        assert_eq!(state(&table, there.id), api::JobState::Unknown);
        // What its worker proves to know nothing of is not sent again.
        for record in [&there, &absent] {
            let worker = record.worker().unwrap();
            let named = HashSet::from([there.id]);
            let session = Session::random();
            table.settle(worker, session, &named, Gone::Restarted);
            assert!(table.due(worker, session).is_empty());
        }
        assert_eq!(state(&table, absent.id), api::JobState::Stopped);
        assert_eq!(state(&table, there.id), api::JobState::Unknown);
        table.report(there.id, ended(), None);
        assert_eq!(state(&table, there.id), api::JobState::Succeeded);
    }

    #[test]
    fn a_stop_is_due_once_its_worker_has_named_the_job() {
        let mut table = Table::default();
        let job = insert(&mut table, running());
        let unsent = insert(
            &mut table,
            Record {
                place: job.place.clone(),
                ..record(State::Pending { call_open: false })
            },
        );
        let stop = RecordedStop {
            signal: Some(2),
            grace: None,
        };
        table.want_stop(job.id, stop);
        table.want_stop(unsent.id, stop);
        let session = Session::random();
        let present = HashSet::from([job.id]);
        table.settle(job.worker().unwrap(), session, &present, Gone::Restarted);
        let due = table.due(job.worker().unwrap(), session);
        assert!(matches!(&due[..], [Due::Stop(due, how)] if due.id == job.id && *how == stop));
        let stopped = table.get(unsent.id).unwrap();
        assert_eq!(stopped.api_state(), api::JobState::Stopped);
        assert!(stopped.never_ran());
        assert!(table.due(job.worker().unwrap(), session).is_empty());
    }

    #[test]
    fn a_stop_is_owed_until_it_has_arrived() {
        let mut table = Table::default();
        let job = insert(&mut table, running());
        let (worker, session) = (job.worker().unwrap(), Session::random());
        let [first, second] = [2, 9].map(|signal| RecordedStop {
            signal: Some(signal),
            grace: None,
        });
        table.settle(worker, session, &HashSet::from([job.id]), Gone::Restarted);
        table.want_stop(job.id, first);
        let sent = |table: &mut Table| match &table.due(worker, session)[..] {
            [Due::Stop(_, stop)] => Some(*stop),
            _ => None,
        };
        assert_eq!(sent(&mut table), Some(first));
        let recorded = table.get(job.id).unwrap().stop;
        assert_eq!(recorded, Some(first), "a crash does not forget it");
        assert_eq!(sent(&mut table), None, "it is on its way");
        table.stop_was_sent(job.id, false);
        assert_eq!(sent(&mut table), Some(first));
        table.want_stop(job.id, second);
        table.stop_was_sent(job.id, true);
        assert_eq!(sent(&mut table), Some(second), "which came since");
        table.stop_was_sent(job.id, true);
        assert_eq!(sent(&mut table), None);
        assert_eq!(table.get(job.id).unwrap().stop, None);
    }

    #[test]
    fn a_waiter_sees_the_end_even_of_a_job_that_is_gone_at_once() {
        let mut table = Table::default();
        let job = insert(&mut table, running());
        let mut changes = table.watch(job.id).unwrap();
        table.report(job.id, ended(), None);
        table.remove(job.id);
        assert!(table.get(job.id).is_none());
        assert!(changes.has_changed().unwrap_or(true));
        assert!(changes.borrow_and_update().is_final());
    }
}
