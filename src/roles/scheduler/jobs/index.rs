//! In which order the jobs in memory are shown, for each state, worker and name: a
//! page is read from the place where it begins, and costs what it shows, however many
//! jobs there are. What a job is, is in `record.rs`; who changes one, in `table.rs`.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use jiff::Timestamp;

use super::record::{Record, State};
use crate::{
    api::JobState,
    ids::{JobId, WorkerId},
    roles::scheduler::store::Cursor,
};

/// Which jobs a page shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// None: every state.
    pub(crate) states: Option<Vec<JobState>>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) name: Option<String>,
}

impl Filter {
    pub(crate) fn has_state(&self, state: JobState) -> bool {
        self.states
            .as_ref()
            .is_none_or(|states| states.contains(&state))
    }
}

/// The jobs of each key and state, the oldest first.
type Shelf<K> = BTreeSet<(K, JobState, i64, JobId)>;

/// Stands for a name in the shelves, which have an entry for each job.
type NameId = u32;

/// The orders of all jobs in memory.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_state: Shelf<()>,
    by_worker: Shelf<WorkerId>,
    by_name: Shelf<NameId>,
    by_name_and_worker: Shelf<(NameId, WorkerId)>,
    names: HashMap<Box<str>, Name>,
    /// The ids that no name has any more.
    free: Vec<NameId>,
    /// The jobs that wait for this worker and no other.
    wanting: BTreeSet<(WorkerId, JobId)>,
}

#[derive(Debug)]
struct Name {
    id: NameId,
    /// How many jobs have it.
    jobs: usize,
}

/// What of a job decides where it is found, beside what never changes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    state: JobState,
    worker: Option<WorkerId>,
    /// The one that it waits for.
    wanted: Option<WorkerId>,
}

impl Spot {
    pub(super) fn of(record: &Record) -> Self {
        Self {
            state: record.api_state(),
            worker: record.worker(),
            wanted: record.wanted.filter(|_| record.state == State::Queued),
        }
    }
}

impl Index {
    /// A job that is not here.
    pub(super) fn insert(&mut self, record: &Record) {
        let name = record.spec.name.as_deref().map(|name| self.add_name(name));
        self.put(record, Spot::of(record), name);
    }

    /// A job that is here.
    pub(super) fn remove(&mut self, record: &Record) {
        let name = record.spec.name.as_deref();
        self.take(record, Spot::of(record), self.name(name));
        if let Some(name) = name
            && let Some(known) = self.names.get_mut(name)
        {
            known.jobs -= 1;
            if known.jobs == 0 {
                self.free.push(known.id);
                self.names.remove(name);
            }
        }
    }

    /// A job stands otherwise than `before`.
    pub(super) fn moved(&mut self, before: Spot, record: &Record) {
        let now = Spot::of(record);
        if before != now {
            let name = self.name(record.spec.name.as_deref());
            self.take(record, before, name);
            self.put(record, now, name);
        }
    }

    fn put(&mut self, record: &Record, spot: Spot, name: Option<NameId>) {
        let Spot {
            state,
            worker,
            wanted,
        } = spot;
        let (at, id) = (micros(record.created_at), record.id);
        self.by_state.insert(((), state, at, id));
        if let Some(worker) = worker {
            self.by_worker.insert((worker, state, at, id));
        }
        if let Some(name) = name {
            self.by_name.insert((name, state, at, id));
        }
        if let (Some(name), Some(worker)) = (name, worker) {
            let key = (name, worker);
            self.by_name_and_worker.insert((key, state, at, id));
        }
        if let Some(wanted) = wanted {
            self.wanting.insert((wanted, id));
        }
    }

    fn take(&mut self, record: &Record, spot: Spot, name: Option<NameId>) {
        let Spot {
            state,
            worker,
            wanted,
        } = spot;
        let (at, id) = (micros(record.created_at), record.id);
        self.by_state.remove(&((), state, at, id));
        if let Some(worker) = worker {
            self.by_worker.remove(&(worker, state, at, id));
        }
        if let Some(name) = name {
            self.by_name.remove(&(name, state, at, id));
        }
        if let (Some(name), Some(worker)) = (name, worker) {
            let key = (name, worker);
            self.by_name_and_worker.remove(&(key, state, at, id));
        }
        if let Some(wanted) = wanted {
            self.wanting.remove(&(wanted, id));
        }
    }

    fn add_name(&mut self, name: &str) -> NameId {
        if let Some(known) = self.names.get_mut(name) {
            known.jobs += 1;
            return known.id;
        }
        // As many ids are in use as there are names.
        let fresh = NameId::try_from(self.names.len()).unwrap_or(NameId::MAX);
        let id = self.free.pop().unwrap_or(fresh);
        self.names.insert(name.into(), Name { id, jobs: 1 });
        id
    }

    fn name(&self, name: Option<&str>) -> Option<NameId> {
        Some(self.names.get(name?)?.id)
    }

    /// The newest job, of that name if there is one.
    pub(super) fn newest(&self, name: Option<&str>) -> Option<JobId> {
        let filter = Filter {
            name: name.map(str::to_owned),
            ..Filter::default()
        };
        self.page(&filter, 1, None).pop()
    }

    /// At most `limit` jobs, the newest first, behind `after`.
    pub(super) fn page(&self, filter: &Filter, limit: usize, after: Option<Cursor>) -> Vec<JobId> {
        let name = match &filter.name {
            None => None,
            Some(name) => match self.name(Some(name)) {
                Some(name) => Some(name),
                None => return Vec::new(),
            },
        };
        let end = match after {
            None => (i64::MAX, JobId::from_bytes([u8::MAX; 16])),
            Some((at, id)) => (micros(at), id),
        };
        let mut found: Vec<(i64, JobId)> = Vec::new();
        // A state at a time: each is in order by itself.
        for state in JobState::ALL {
            if !filter.has_state(state) {
                continue;
            }
            match (name, filter.worker) {
                (None, None) => found.extend(behind(&self.by_state, (), state, end).take(limit)),
                (None, Some(worker)) => {
                    found.extend(behind(&self.by_worker, worker, state, end).take(limit));
                }
                (Some(name), None) => {
                    found.extend(behind(&self.by_name, name, state, end).take(limit));
                }
                (Some(name), Some(worker)) => {
                    let key = (name, worker);
                    found.extend(behind(&self.by_name_and_worker, key, state, end).take(limit));
                }
            }
        }
        found.sort_unstable_by_key(|key| Reverse(*key));
        found.truncate(limit);
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// The jobs that wait for this worker and no other.
    pub(super) fn wanting(&self, worker: WorkerId) -> Vec<JobId> {
        let (first, last) = ([u8::MIN; 16], [u8::MAX; 16]);
        let all = (worker, JobId::from_bytes(first))..=(worker, JobId::from_bytes(last));
        self.wanting.range(all).map(|(_, id)| *id).collect()
    }
}

/// The jobs of a key and a state, from before `end` back to the oldest.
fn behind<K: Copy + Ord>(
    shelf: &Shelf<K>,
    key: K,
    state: JobState,
    (at, id): (i64, JobId),
) -> impl Iterator<Item = (i64, JobId)> {
    let first = (key, state, i64::MIN, JobId::from_bytes([u8::MIN; 16]));
    let range = shelf.range(first..(key, state, at, id));
    range.rev().map(|(_, _, at, id)| (*at, *id))
}

/// As exact as times are here and in the store: see [`super::record::now`].
fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}
