//! The records in memory and the orders in which they are looked for. Plain
//! data behind the lock of [`super::Jobs`]: nothing here waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::record::{Event, Record, State, Status};
use crate::{
    api,
    ids::{self, JobId, WorkerId},
    roles::scheduler::{
        error::Error,
        placement::Candidate,
        registry::{self, Session},
    },
};

/// The most candidates that an ambiguous prefix is answered with.
const MAX_CANDIDATES: usize = 5;

/// So many of the newest jobs are looked at for a name like a misspelt one.
const MAX_LIKENED: usize = 1000;

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
    /// By the time of their end.
    finished: Order,
    places: HashMap<WorkerId, Place>,
    /// Jobs placed since the start.
    placed: u64,
}

#[derive(Debug)]
struct Entry {
    record: Arc<Record>,
    /// There from the first waiter until the end.
    changes: Option<watch::Sender<Arc<Record>>>,
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
#[derive(Clone, Copy, Debug)]
struct Settled {
    session: Session,
    gone: super::Gone,
}

impl Table {
    pub(super) fn candidate(&self, worker: WorkerId) -> Candidate {
        let place = self.places.get(&worker);
        Candidate {
            live: place.map_or(0, |place| place.live.len()),
            placed: place.map_or(0, |place| place.placed),
        }
    }

    pub(super) fn insert(&mut self, record: Record) -> Arc<Record> {
        let record = Arc::new(record);
        let key = (record.created_at, record.id);
        self.by_time.insert(key);
        if let Some(name) = &record.name {
            self.by_name.entry(name.clone()).or_default().insert(key);
        }
        self.placed += 1;
        let place = self.places.entry(record.worker).or_default();
        place.placed = self.placed;
        match &record.state {
            State::Ended { at, .. } => {
                self.finished.insert((*at, record.id));
            }
            State::Pending { .. } | State::Running(_) | State::Unknown { .. } => {
                place.live.insert(record.id);
            }
        }
        let entry = Entry {
            record: record.clone(),
            changes: None,
        };
        self.jobs.insert(record.id, entry);
        record
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
        if let State::Ended { at, .. } = record.state {
            self.finished.insert((at, id));
            if let Some(place) = self.places.get_mut(&record.worker) {
                place.live.remove(&id);
            }
        }
        entry.announce();
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
    /// session is gone.
    pub(super) fn settle(
        &mut self,
        worker: WorkerId,
        session: Session,
        present: &HashSet<JobId>,
        gone: super::Gone,
    ) {
        let place = self.places.entry(worker).or_default();
        place.settled = Some(Settled { session, gone });
        let absent: Vec<JobId> = place.live.difference(present).copied().collect();
        for id in absent {
            if self
                .jobs
                .get(&id)
                .is_some_and(|e| e.record.session != session)
            {
                self.apply(id, Event::Gone(gone));
            }
        }
    }

    /// The call that starts the job was not answered. If the worker has told of
    /// all its jobs since, under a newer session, that settles it.
    pub(super) fn unconfirmed(&mut self, id: JobId, why: String) {
        self.apply(id, Event::Unconfirmed { why });
        let Some(record) = self.get(id) else {
            return;
        };
        let place = self.places.get(&record.worker);
        if let Some(settled) = place.and_then(|place| place.settled)
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

    /// Drops the jobs that ended first, until `keep` finished ones are left.
    pub(super) fn forget(&mut self, keep: usize) {
        while self.finished.len() > keep
            && let Some((_, id)) = self.finished.pop_first()
        {
            let Some(entry) = self.jobs.remove(&id) else {
                continue;
            };
            let key = (entry.record.created_at, id);
            self.by_time.remove(&key);
            if let Some(name) = &entry.record.name
                && let Some(same) = self.by_name.get_mut(name)
            {
                same.remove(&key);
                if same.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
    }

    /// The job that `asked` means: a whole id, `last`, a name, a prefix.
    pub(super) fn find(&self, asked: &str) -> Result<Arc<Record>, Error> {
        let not_found = || Error::JobNotFound(asked.to_owned());
        if let Ok(id) = asked.parse() {
            return self.get(id).ok_or_else(not_found);
        }
        let newest = match asked {
            "last" => self.by_time.last(),
            name => self.by_name.get(name).and_then(Order::last),
        };
        if let Some((_, id)) = newest {
            return self.get(*id).ok_or_else(not_found);
        }
        if !ids::is_prefix(asked) {
            return Err(self.meant(asked).unwrap_or_else(not_found));
        }
        let digits = asked.replace('-', "");
        let first: JobId = format!("{digits:0<32}").parse().map_err(|_| not_found())?;
        let mut found = self
            .jobs
            .range(first..)
            .take_while(|(id, _)| id.starts_with(&digits))
            .map(|(_, entry)| &entry.record);
        let record = found.next().ok_or_else(not_found)?;
        let others: Vec<_> = found.take(MAX_CANDIDATES - 1).collect();
        if others.is_empty() {
            return Ok(record.clone());
        }
        let candidates = std::iter::once(record).chain(others);
        Err(Error::AmbiguousJob {
            asked: asked.to_owned(),
            candidates: candidates.map(|record| record.id.to_string()).collect(),
        })
    }

    /// The error that names a job whose name is like `asked`, one of the newest.
    fn meant(&self, asked: &str) -> Option<Error> {
        let newest = self.by_time.iter().rev().take(MAX_LIKENED);
        let names = newest.filter_map(|(_, id)| self.jobs.get(id)?.record.name.as_deref());
        Some(Error::JobNameNotFound {
            asked: asked.to_owned(),
            meant: registry::meant(asked, names)?,
        })
    }

    /// At most `limit` jobs, the newest first, behind `after`; and whether
    /// there are more.
    pub(super) fn page(
        &self,
        filter: &Filter,
        limit: usize,
        after: Option<JobId>,
    ) -> Result<(Vec<Arc<Record>>, bool), Error> {
        let end = match after {
            None => Bound::Unbounded,
            Some(id) => {
                let record = self
                    .get(id)
                    .ok_or_else(|| Error::JobNotFound(id.to_string()))?;
                Bound::Excluded((record.created_at, id))
            }
        };
        let nothing = Order::new();
        let order = match &filter.name {
            None => &self.by_time,
            Some(name) => self.by_name.get(name).unwrap_or(&nothing),
        };
        let mut found = order
            .range((Bound::Unbounded, end))
            .rev()
            .filter_map(|(_, id)| self.jobs.get(id))
            .map(|entry| &entry.record)
            .filter(|record| filter.admits(record));
        let page = found.by_ref().take(limit).cloned().collect();
        Ok((page, found.next().is_some()))
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
    fn admits(&self, record: &Record) -> bool {
        let state = record.api_state();
        self.worker.is_none_or(|worker| worker == record.worker)
            && self
                .states
                .as_ref()
                .is_none_or(|states| states.contains(&state))
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
    fn a_job_goes_by_id_name_prefix_or_last() {
        let mut table = Table::default();
        assert!(matches!(table.find("last"), Err(Error::JobNotFound(_))));
        let mut old = with_id("3f2a0000-0000-4000-8000-000000000001");
        old.name = Some("cafe".to_owned());
        let mut new = with_id("3f2b0000-0000-4000-8000-000000000002");
        new.name = old.name.clone();
        new.created_at = old.created_at + Duration::from_secs(1);
        let hidden = with_id("cafe0000-0000-4000-8000-000000000003");
        let (old, new) = (table.insert(old), table.insert(new));
        table.insert(Record {
            created_at: old.created_at - Duration::from_secs(1),
            ..hidden
        });
        let found = |asked: &str| table.find(asked).unwrap().id;
        assert_eq!(found(&old.id.to_string()), old.id);
        assert_eq!(found("last"), new.id);
        assert_eq!(found("cafe"), new.id, "a name goes before a prefix");
        assert_eq!(found("3F2A"), old.id);
        assert_eq!(found("3f2b0000-0"), new.id);
        for unknown in ["3f2", "3f2c", "nobody", "", &JobId::random().to_string()] {
            assert!(
                matches!(table.find(unknown), Err(Error::JobNotFound(_))),
                "{unknown}"
            );
        }
    }

    #[test]
    fn an_ambiguous_prefix_lists_five_candidates() {
        let mut table = Table::default();
        for n in 0..7 {
            table.insert(with_id(&format!("abcd0000-0000-4000-8000-00000000000{n}")));
        }
        let Err(Error::AmbiguousJob { candidates, .. }) = table.find("abcd") else {
            panic!("abcd is ambiguous");
        };
        assert_eq!(candidates.len(), 5);
        assert!(table.find("abcd0000000040008000000000000006").is_ok());
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
            table.insert(job);
        }
        all.sort();
        all.reverse();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (page, more) = table.page(&Filter::default(), 10, after).unwrap();
            seen.extend(page.iter().map(|record| (record.created_at, record.id)));
            after = page.last().map(|record| record.id);
            if !more {
                break;
            }
        }
        assert_eq!(seen, all);
        let unknown = Some(JobId::random());
        assert!(table.page(&Filter::default(), 10, unknown).is_err());
    }

    #[test]
    fn a_page_is_filtered() {
        let mut table = Table::default();
        let mut named = running();
        named.name = Some("a".to_owned());
        let named = table.insert(named);
        let done = table.insert(running());
        table.report(done.id, ended(), None);
        let ids = |filter: Filter| -> Vec<JobId> {
            let (page, more) = table.page(&filter, 10, None).unwrap();
            assert!(!more);
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
    fn the_oldest_finished_jobs_are_forgotten_first() {
        let mut table = Table::default();
        let live = table.insert(running());
        let mut finished = Vec::new();
        for n in 0..4_u64 {
            let mut job = running();
            job.name = Some("a".to_owned());
            let job = table.insert(job);
            let mut status = ended();
            if let State::Ended { at, .. } = &mut status.state {
                *at += Duration::from_secs(n);
            }
            table.report(job.id, status, None);
            finished.push(job.id);
        }
        table.forget(2);
        let left: Vec<bool> = finished.iter().map(|id| table.get(*id).is_some()).collect();
        assert_eq!(left, [false, false, true, true]);
        assert!(table.get(live.id).is_some());
        table.forget(0);
        assert!(table.by_name.is_empty());
        assert_eq!(table.by_time.len(), 1);
    }

    #[test]
    fn a_new_session_that_does_not_name_a_job_has_lost_it() {
        let mut table = Table::default();
        let (named, absent) = (running(), running());
        let worker = named.worker;
        let named = table.insert(named);
        let absent = table.insert(Record { worker, ..absent });
        let session = Session::random();
        let fresh = table.insert(Record {
            worker,
            session,
            ..running()
        });
        let present = HashSet::from([named.id]);
        table.settle(worker, session, &present, Gone::Restarted);
        let state = |id| table.get(id).unwrap().api_state();
        assert_eq!(state(named.id), api::JobState::Running);
        assert_eq!(state(absent.id), api::JobState::Lost);
        assert_eq!(state(fresh.id), api::JobState::Running);
        assert_eq!(table.candidate(worker).live, 2);
    }

    #[test]
    fn a_start_that_is_given_up_after_the_snapshot_is_lost_at_once() {
        let mut table = Table::default();
        let job = table.insert(record(State::Pending { call_open: true }));
        let settle = |table: &mut Table, gone| {
            table.settle(job.worker, Session::random(), &HashSet::new(), gone);
        };
        settle(&mut table, Gone::Restarted);
        assert!(!table.get(job.id).unwrap().is_final());
        table.unconfirmed(job.id, "no answer".to_owned());
        let lost = table.get(job.id).unwrap();
        assert_eq!(lost.error_text(), "lost: the worker never received it");
    }

    #[test]
    fn a_waiter_sees_the_end_even_of_a_job_that_is_forgotten_at_once() {
        let mut table = Table::default();
        let job = table.insert(running());
        let mut changes = table.watch(job.id).unwrap();
        table.report(job.id, ended(), None);
        table.forget(0);
        assert!(table.get(job.id).is_none());
        assert!(changes.has_changed().unwrap_or(true));
        assert!(changes.borrow_and_update().is_final());
    }
}
