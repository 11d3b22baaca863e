//! The records in memory and the orders in which they are looked for: every job
//! that has not ended, and those whose end is not on the disk yet. Plain data
//! behind the lock of [`super::Jobs`]: nothing here waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ops::Bound,
    sync::Arc,
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::record::{Event, Record, RecordedStop, State, Status};
use crate::{
    api,
    ids::{JobId, WorkerId},
    roles::scheduler::{
        placement::Candidate,
        registry::Session,
        store::{Cursor, Env, Ticket},
    },
};

/// Newest last.
type Order = BTreeSet<(Timestamp, JobId)>;

/// Which jobs a page shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// None: every state.
    pub(crate) states: Option<Vec<api::JobState>>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) name: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    jobs: BTreeMap<JobId, Entry>,
    by_time: Order,
    by_name: HashMap<String, Order>,
    places: HashMap<WorkerId, Place>,
    /// Jobs placed since the start.
    placed: u64,
    /// What the store has not been told yet.
    changed: Vec<Changed>,
    /// Ended, in the order in which the store was told.
    ended: VecDeque<(Ticket, JobId)>,
}

/// What the store is to be told.
#[derive(Debug)]
pub(super) enum Changed {
    Job(Arc<Record>),
    Adopted(Arc<Record>),
}

#[derive(Debug)]
struct Entry {
    record: Arc<Record>,
    /// There from the first waiter until the end.
    changes: Option<watch::Sender<Arc<Record>>>,
    /// The values of its environment, until its start is confirmed.
    env: Arc<Env>,
}

/// What happens on one worker.
#[derive(Debug, Default)]
struct Place {
    live: HashSet<JobId>,
    placed: u64,
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
    Start(Arc<Record>, Arc<Env>),
    Stop(JobId, RecordedStop),
}

impl Table {
    pub(super) fn candidate(&self, worker: WorkerId) -> Candidate {
        let place = self.places.get(&worker);
        Candidate {
            live: place.map_or(0, |place| place.live.len()),
            placed: place.map_or(0, |place| place.placed),
        }
    }

    /// A job of which the store is told by the caller.
    pub(super) fn insert(&mut self, record: Record, env: Arc<Env>) -> Arc<Record> {
        let record = Arc::new(record);
        let key = (record.created_at, record.id);
        self.by_time.insert(key);
        if let Some(name) = &record.name {
            self.by_name.entry(name.clone()).or_default().insert(key);
        }
        self.placed += 1;
        let place = self.places.entry(record.worker).or_default();
        place.placed = self.placed;
        if !record.is_final() {
            place.live.insert(record.id);
        }
        let entry = Entry {
            record: record.clone(),
            changes: None,
            env,
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
        let key = (entry.record.created_at, id);
        self.by_time.remove(&key);
        if let Some(place) = self.places.get_mut(&entry.record.worker) {
            place.live.remove(&id);
        }
        if let Some(name) = &entry.record.name
            && let Some(same) = self.by_name.get_mut(name)
        {
            same.remove(&key);
            if same.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    /// What has changed since this was asked last, in order. The caller says
    /// with [`Table::noted`] when the store was told of an end.
    pub(super) fn changed(&mut self) -> Vec<Changed> {
        std::mem::take(&mut self.changed)
    }

    /// The store was told of this job's end.
    pub(super) fn noted(&mut self, ticket: Ticket, id: JobId) {
        self.ended.push_back((ticket, id));
    }

    /// Drops the ended jobs that are on the disk: they are looked for there.
    pub(super) fn evict(&mut self, is_committed: impl Fn(Ticket) -> bool) {
        while let Some((ticket, id)) = self.ended.front().copied()
            && is_committed(ticket)
        {
            self.ended.pop_front();
            self.remove(id);
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
        let record = Arc::make_mut(&mut entry.record);
        record.state = next;
        tracing::info!(
            job_id = %id,
            worker_id = %record.worker,
            state = record.api_state().as_str(),
            error = record.error_text(),
            "job changed"
        );
        if !record.state.is_unconfirmed() {
            entry.env = Arc::default();
        }
        if record.is_final() {
            record.stop = None;
            if let Some(place) = self.places.get_mut(&record.worker) {
                place.live.remove(&id);
            }
        }
        entry.announce();
        self.changed.push(Changed::Job(entry.record.clone()));
    }

    /// Takes in what the job's own worker says of it.
    pub(super) fn report(&mut self, id: JobId, status: Status, session: Option<Session>) {
        if let Some(entry) = self.jobs.get_mut(&id)
            && !entry.record.is_final()
        {
            let record = Arc::make_mut(&mut entry.record);
            record.output_bytes = record.output_bytes.max(status.output_bytes);
            record.session = session.unwrap_or(record.session);
            self.apply(id, Event::Reported(status.state));
        }
    }

    /// The worker has told of all its jobs under `session`, or none will ever
    /// be told of again: what is not `present` and was sent under another
    /// session is gone, or is to be sent again.
    pub(super) fn settle(
        &mut self,
        worker: WorkerId,
        session: Session,
        present: &HashSet<JobId>,
        gone: super::Gone,
    ) {
        let place = self.places.entry(worker).or_default();
        place.settled = Some(Settled {
            session,
            gone: gone.clone(),
        });
        let (named, absent): (Vec<JobId>, Vec<JobId>) =
            place.live.iter().partition(|id| present.contains(id));
        for id in named {
            if let Some(entry) = self.jobs.get_mut(&id) {
                Arc::make_mut(&mut entry.record).session = session;
            }
        }
        for id in absent {
            if self
                .jobs
                .get(&id)
                .is_some_and(|e| e.record.session != session)
            {
                self.apply(id, Event::Gone(gone.clone()));
            }
        }
    }

    /// What the worker is owed under `session`, of all whose jobs it has told:
    /// starts of which it has proved to know nothing, and stops asked for while
    /// it was away. Each is handed out once.
    pub(super) fn due(&mut self, worker: WorkerId, session: Session) -> Vec<Due> {
        let Some(place) = self.places.get(&worker) else {
            return Vec::new();
        };
        let settled = place.settled.as_ref().is_some_and(|settled| {
            settled.session == session && settled.gone == super::Gone::Restarted
        });
        if !settled {
            return Vec::new();
        }
        let live: Vec<JobId> = place.live.iter().copied().collect();
        live.into_iter()
            .filter_map(|id| self.due_of(id, session))
            .collect()
    }

    fn due_of(&mut self, id: JobId, session: Session) -> Option<Due> {
        let entry = self.jobs.get_mut(&id)?;
        let record = &entry.record;
        if record.session == session {
            if !matches!(record.state, State::Running(_)) {
                return None;
            }
            let stop = record.stop?;
            Arc::make_mut(&mut entry.record).stop = None;
            return Some(Due::Stop(id, stop));
        }
        if !record.state.may_be_sent() {
            return None;
        }
        if record.stop.is_some() {
            self.apply(id, Event::StoppedBeforeStart);
            return None;
        }
        Arc::make_mut(&mut entry.record).session = session;
        let env = entry.env.clone();
        self.apply(id, Event::SentAgain);
        Some(Due::Start(self.get(id)?, env))
    }

    /// Records a stop that cannot be delivered now; None takes it back.
    pub(super) fn want_stop(&mut self, id: JobId, stop: Option<RecordedStop>) {
        if let Some(entry) = self.jobs.get_mut(&id)
            && !entry.record.is_final()
        {
            Arc::make_mut(&mut entry.record).stop = stop;
            entry.announce();
            self.changed.push(Changed::Job(entry.record.clone()));
        }
    }

    /// The call that starts the job was not answered. If the worker has left
    /// since, that settles it.
    pub(super) fn unconfirmed(&mut self, id: JobId, why: String) {
        self.apply(id, Event::Unconfirmed { why });
        let Some(record) = self.get(id) else {
            return;
        };
        let place = self.places.get(&record.worker);
        if let Some(settled) = place.and_then(|place| place.settled.clone())
            && settled.session != record.session
        {
            self.apply(id, Event::Gone(settled.gone));
        }
    }

    pub(super) fn unreachable(&mut self, worker: WorkerId, why: &str) {
        let live = self.places.get(&worker).map(|place| place.live.clone());
        for id in live.unwrap_or_default() {
            let why = why.to_owned();
            self.apply(id, Event::WorkerUnreachable { why });
        }
    }

    /// The newest job, of that name if there is one.
    pub(super) fn newest(&self, name: Option<&str>) -> Option<Arc<Record>> {
        let order = match name {
            None => &self.by_time,
            Some(name) => self.by_name.get(name)?,
        };
        self.get(order.last()?.1)
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

    /// At most `limit` jobs, the newest first, behind `after`.
    pub(super) fn page(
        &self,
        filter: &Filter,
        limit: usize,
        after: Option<Cursor>,
    ) -> Vec<Arc<Record>> {
        let end = match after {
            None => Bound::Unbounded,
            Some(after) => Bound::Excluded(after),
        };
        let nothing = Order::new();
        let order = match &filter.name {
            None => &self.by_time,
            Some(name) => self.by_name.get(name).unwrap_or(&nothing),
        };
        order
            .range((Bound::Unbounded, end))
            .rev()
            .filter_map(|(_, id)| self.jobs.get(id))
            .map(|entry| &entry.record)
            .filter(|record| filter.admits(record))
            .take(limit)
            .cloned()
            .collect()
    }
}

impl Entry {
    fn announce(&mut self) {
        if let Some(changes) = &self.changes {
            changes.send_replace(self.record.clone());
        }
        if self.record.is_final() {
            self.changes = None;
        }
    }
}

impl Filter {
    pub(crate) fn has_state(&self, state: api::JobState) -> bool {
        self.states
            .as_ref()
            .is_none_or(|states| states.contains(&state))
    }

    fn admits(&self, record: &Record) -> bool {
        self.worker.is_none_or(|worker| worker == record.worker)
            && self.has_state(record.api_state())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::roles::scheduler::jobs::{
        Gone, Process,
        record::{End, now, tests::record},
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
        old.name = Some("cafe".to_owned());
        let mut new = with_id("3f2b0000-0000-4000-8000-000000000002");
        new.name = old.name.clone();
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
        assert!(table.by_name.is_empty() && table.by_time.is_empty());
        assert_eq!(table.candidate(old.worker).live, 0);
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
            let page = table.page(&Filter::default(), 10, after);
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
        named.name = Some("a".to_owned());
        let named = insert(&mut table, named);
        let done = insert(&mut table, running());
        table.report(done.id, ended(), None);
        let ids = |filter: Filter| -> Vec<JobId> {
            let page = table.page(&filter, 10, None);
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
        let worker = Some(named.worker);
        assert_eq!(
            ids(Filter {
                worker,
                ..Default::default()
            }),
            [named.id]
        );
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
        table.noted(ticket, job.id);
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
        let worker = named.worker;
        let named = insert(&mut table, named);
        let absent = insert(&mut table, Record { worker, ..absent });
        let session = Session::random();
        let fresh = insert(
            &mut table,
            Record {
                worker,
                session,
                ..running()
            },
        );
        let present = HashSet::from([named.id]);
        table.settle(worker, session, &present, Gone::Restarted);
        let state = |id| table.get(id).unwrap().api_state();
        assert_eq!(state(named.id), api::JobState::Running);
        assert_eq!(state(absent.id), api::JobState::Lost);
        assert_eq!(state(fresh.id), api::JobState::Running);
        assert_eq!(table.candidate(worker).live, 2);
    }

    #[test]
    fn a_start_of_which_the_worker_knows_nothing_is_due_once() {
        let mut table = Table::default();
        let env = Arc::new(Env::from([("A".to_owned(), "b".to_owned())]));
        let job = table.insert(record(State::Pending { call_open: true }), env.clone());
        let session = Session::random();
        let settle = |table: &mut Table, session| {
            table.settle(job.worker, session, &HashSet::new(), Gone::Restarted);
        };
        settle(&mut table, session);
        assert!(
            table.due(job.worker, session).is_empty(),
            "the call is open"
        );
        table.unconfirmed(job.id, "no answer".to_owned());
        assert!(table.due(job.worker, Session::random()).is_empty());
        let due = table.due(job.worker, session);
        assert!(matches!(&due[..], [Due::Start(record, values)]
                if record.id == job.id && record.session == session && *values == env));
        assert!(table.due(job.worker, session).is_empty());
    }

    #[test]
    fn a_worker_that_left_is_sent_nothing_again() {
        let mut table = Table::default();
        let job = insert(&mut table, record(State::Pending { call_open: true }));
        table.settle(job.worker, Session::random(), &HashSet::new(), Gone::Left);
        assert!(!table.get(job.id).unwrap().is_final());
        table.unconfirmed(job.id, "no answer".to_owned());
        let lost = table.get(job.id).unwrap();
        assert_eq!(lost.error_text(), "lost: worker left");
    }

    #[test]
    fn a_stop_is_due_once_its_worker_has_named_the_job() {
        let mut table = Table::default();
        let job = insert(&mut table, running());
        let unsent = insert(
            &mut table,
            Record {
                worker: job.worker,
                ..record(State::Pending { call_open: false })
            },
        );
        let stop = RecordedStop {
            signal: Some(2),
            grace: None,
        };
        table.want_stop(job.id, Some(stop));
        table.want_stop(unsent.id, Some(stop));
        let session = Session::random();
        let present = HashSet::from([job.id]);
        table.settle(job.worker, session, &present, Gone::Restarted);
        let due = table.due(job.worker, session);
        assert!(matches!(&due[..], [Due::Stop(id, due)] if *id == job.id && *due == stop));
        let stopped = table.get(unsent.id).unwrap();
        assert_eq!(stopped.api_state(), api::JobState::Stopped);
        assert!(stopped.never_ran());
        assert!(table.due(job.worker, session).is_empty());
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
