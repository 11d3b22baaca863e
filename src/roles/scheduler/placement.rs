//! Which pending job goes to which worker. Pure: what workers offer comes from
//! the registry, what jobs ask for from their records, and what is decided here
//! is done in `jobs`.
//!
//! Jobs that ask for the same wait in one line, so that a look at the head of
//! each line is enough: a line that has to wait never holds up another.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::offers::{Openness, Slots};
use crate::{
    api::PassedOver,
    ids::{GroupId, JobId, WorkerId},
    labels::{Labels, Requirement},
};

/// The most starts under way on one worker: beyond, jobs wait here rather than
/// in calls whose deadlines run.
const MAX_STARTING: u32 = 128;

/// A load of one: every slot is taken.
const FULL: u64 = 1 << 32;

/// A worker, as far as placement is concerned.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seat {
    pub(super) name: Arc<str>,
    pub(super) slots: Slots,
    /// At least 1.
    pub(super) cpus: u32,
    pub(super) labels: Arc<Labels>,
    pub(super) openness: Openness,
}

/// What a job asks of the worker it goes to. Jobs that ask for the same wait in
/// the same line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    /// This one and no other.
    pub(super) worker: Option<WorkerId>,
    pub(super) labels: Vec<Requirement>,
    /// The group that bounds how many of its jobs are on workers at a time.
    pub(super) bound_by: Option<GroupId>,
}

/// A job's place in its line: what is urgent first, then what came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) priority: Reverse<i32>,
    pub(super) since: Timestamp,
    /// In its group.
    pub(super) index: u32,
    pub(super) job: JobId,
}

/// The jobs that wait, and the workers they wait for.
#[derive(Debug, Default)]
pub(super) struct Queue {
    places: HashMap<WorkerId, Place>,
    /// The workers that have room, the least loaded first.
    free: BTreeSet<Rank>,
    lines: HashMap<LineId, Line>,
    by_wanted: HashMap<Wanted, LineId>,
    /// The lines of jobs that want that very worker.
    named: HashMap<WorkerId, BTreeSet<LineId>>,
    /// All other lines.
    shared: BTreeSet<LineId>,
    next_line: LineId,
    /// The groups that bound how many of their jobs are on workers.
    bounds: HashMap<GroupId, Bound>,
    /// Lines that got a job: each worker may be the one for it.
    touched: BTreeSet<LineId>,
    /// Workers that got room: each line may have a job for them.
    freed: HashSet<WorkerId>,
    /// Jobs placed since the start.
    placed: u64,
    /// Changes with what any worker offers.
    offers: u64,
}

type LineId = u64;

/// Jobs that ask for the same.
#[derive(Debug)]
struct Line {
    wanted: Wanted,
    turns: BTreeSet<Turn>,
    /// Those that get no worker before [`Queue::release`].
    held: BTreeSet<Turn>,
    /// What was found when all workers were looked at for it last.
    seen: RefCell<Option<Seen>>,
}

/// What all workers together are to a line, as long as none offers anything else.
#[derive(Clone, Debug)]
struct Seen {
    offers: u64,
    /// Why its jobs wait.
    why: Arc<str>,
    /// Some worker is there to take them, now or when it has room.
    has_workers: bool,
}

/// How many jobs of a group may be on workers, and are.
#[derive(Debug)]
struct Bound {
    at_once: u32,
    live: u32,
    /// The lines its jobs wait in.
    lines: BTreeSet<LineId>,
}

/// The workers that will do for a line.
enum Fitting {
    /// Whoever has room.
    All,
    /// These, the least loaded first, as they stood when they were looked at.
    Some(BinaryHeap<Reverse<Rank>>),
}

#[derive(Debug, Default)]
struct Place {
    /// None: nothing is known of the worker but that it has jobs.
    seat: Option<Seat>,
    /// Jobs there that have not ended.
    live: u32,
    /// Those among them whose start has not been answered.
    starting: u32,
    /// When it was last given a job, in jobs placed; 0: never.
    placed: u64,
    /// As it stands in `free`.
    rank: Option<Rank>,
}

/// The order in which workers are given jobs: the one with the fewest of its
/// slots taken, and among equals the one that has waited longest for a job, so
/// that a row of short jobs is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    load: u64,
    placed: u64,
    worker: WorkerId,
}

impl Place {
    /// None: it takes no job now.
    fn rank(&self, worker: WorkerId) -> Option<Rank> {
        let seat = self.seat.as_ref()?;
        if seat.openness != Openness::Ready || self.starting >= MAX_STARTING {
            return None;
        }
        let capacity = match seat.slots {
            Slots::Limited(slots) if self.live >= slots => return None,
            Slots::Limited(slots) => slots,
            Slots::Unlimited => seat.cpus.max(1),
        };
        Some(Rank {
            load: u64::from(self.live) * FULL / u64::from(capacity),
            placed: self.placed,
            worker,
        })
    }
}

impl Queue {
    /// What a worker offers has changed; None: it is known no more.
    pub(super) fn offer(&mut self, worker: WorkerId, seat: Option<Seat>) {
        self.offers += 1;
        self.change(worker, |place| place.seat = seat);
    }

    /// It takes no jobs, whatever was said before.
    pub(super) fn close(&mut self, worker: WorkerId) {
        self.offers += 1;
        self.change(worker, |place| {
            if let Some(seat) = &mut place.seat {
                seat.openness = Openness::Draining;
            }
        });
    }

    /// No more than so many jobs of this group are to be on workers.
    pub(super) fn bound(&mut self, group: GroupId, at_once: u32) {
        let bound = Bound {
            at_once,
            live: 0,
            lines: BTreeSet::new(),
        };
        self.bounds.insert(group, bound);
    }

    /// The group has ended.
    pub(super) fn unbound(&mut self, group: GroupId) {
        self.bounds.remove(&group);
    }

    /// A job of this worker's that was placed before.
    pub(super) fn occupy(&mut self, worker: WorkerId, group: Option<GroupId>) {
        self.change(worker, |place| place.live += 1);
        if let Some(bound) = group.and_then(|group| self.bounds.get_mut(&group)) {
            bound.live += 1;
        }
    }

    /// A job has ended there.
    pub(super) fn vacate(&mut self, worker: WorkerId, group: Option<GroupId>) {
        self.change(worker, |place| place.live = place.live.saturating_sub(1));
        if let Some(bound) = group.and_then(|group| self.bounds.get_mut(&group)) {
            bound.live = bound.live.saturating_sub(1);
            self.touched.extend(&bound.lines);
        }
    }

    /// A start there is under way again.
    pub(super) fn asked(&mut self, worker: WorkerId) {
        self.change(worker, |place| place.starting += 1);
    }

    /// A start there has been answered, or been given up.
    pub(super) fn answered(&mut self, worker: WorkerId) {
        self.change(worker, |place| {
            place.starting = place.starting.saturating_sub(1);
        });
    }

    fn change(&mut self, worker: WorkerId, change: impl FnOnce(&mut Place)) {
        let place = self.places.entry(worker).or_default();
        change(place);
        let rank = place.rank(worker);
        if rank != place.rank {
            if let Some(old) = place.rank.take() {
                self.free.remove(&old);
            }
            place.rank = rank;
        }
        let idle = place.seat.is_none() && place.live == 0;
        match rank {
            Some(rank) => {
                self.free.insert(rank);
                self.freed.insert(worker);
            }
            None if idle => drop(self.places.remove(&worker)),
            None => {}
        }
    }

    /// Has a job wait.
    pub(super) fn add(&mut self, wanted: &Wanted, turn: Turn) {
        let id = self.line(wanted);
        if let Some(line) = self.lines.get_mut(&id) {
            line.turns.insert(turn);
            self.touched.insert(id);
        }
    }

    /// Has a job wait, and not be placed before [`Queue::release`].
    pub(super) fn hold(&mut self, wanted: &Wanted, turn: Turn) {
        let id = self.line(wanted);
        if let Some(line) = self.lines.get_mut(&id) {
            line.held.insert(turn);
        }
    }

    /// What was held may be placed.
    pub(super) fn release(&mut self) {
        for (id, line) in &mut self.lines {
            if !line.held.is_empty() {
                line.turns.append(&mut line.held);
                self.touched.insert(*id);
            }
        }
    }

    fn line(&mut self, wanted: &Wanted) -> LineId {
        match self.by_wanted.get(wanted) {
            Some(line) => *line,
            None => self.open_line(wanted),
        }
    }

    fn open_line(&mut self, wanted: &Wanted) -> LineId {
        self.next_line += 1;
        let line = self.next_line;
        self.by_wanted.insert(wanted.clone(), line);
        match wanted.worker {
            Some(worker) => self.named.entry(worker).or_default().insert(line),
            None => self.shared.insert(line),
        };
        if let Some(bound) = self.bound_of(wanted) {
            bound.lines.insert(line);
        }
        let opened = Line {
            wanted: wanted.clone(),
            turns: BTreeSet::new(),
            held: BTreeSet::new(),
            seen: RefCell::default(),
        };
        self.lines.insert(line, opened);
        line
    }

    fn bound_of(&mut self, wanted: &Wanted) -> Option<&mut Bound> {
        self.bounds.get_mut(&wanted.bound_by?)
    }

    /// Takes a job out, if it waits.
    pub(super) fn remove(&mut self, wanted: &Wanted, turn: Turn) {
        if let Some(line) = self.by_wanted.get(wanted) {
            self.take_out(*line, turn);
        }
    }

    fn take_out(&mut self, id: LineId, turn: Turn) {
        let Some(line) = self.lines.get_mut(&id) else {
            return;
        };
        line.turns.remove(&turn);
        line.held.remove(&turn);
        if !line.turns.is_empty() || !line.held.is_empty() {
            return;
        }
        let Some(line) = self.lines.remove(&id) else {
            return;
        };
        if let Some(bound) = self.bound_of(&line.wanted) {
            bound.lines.remove(&id);
        }
        self.by_wanted.remove(&line.wanted);
        self.touched.remove(&id);
        self.shared.remove(&id);
        if let Some(worker) = line.wanted.worker
            && let Some(named) = self.named.get_mut(&worker)
        {
            named.remove(&id);
            if named.is_empty() {
                self.named.remove(&worker);
            }
        }
    }

    /// Gives workers with room to the jobs that wait: the most urgent first, and
    /// the first to come among equals. Whoever is placed is out of its line and
    /// counts on its worker, as one whose start is under way.
    pub(super) fn place(&mut self) -> Vec<(JobId, WorkerId)> {
        let mut heads = BinaryHeap::new();
        let mut fitting = HashMap::new();
        for (id, fits) in self.due() {
            if let Some(turn) = self.lines.get(&id).and_then(|line| line.turns.first()) {
                heads.push(Reverse((*turn, id)));
                fitting.insert(id, fits);
            }
        }
        let mut placed = Vec::new();
        while let Some(Reverse((turn, id))) = heads.pop() {
            let group = self.lines.get(&id).and_then(|line| line.wanted.bound_by);
            if self.is_bound(group) {
                continue;
            }
            let Some(worker) = fitting.get_mut(&id).and_then(|fits| self.best(fits)) else {
                continue;
            };
            self.placed += 1;
            let count = self.placed;
            self.change(worker, |place| {
                place.live += 1;
                place.starting += 1;
                place.placed = count;
            });
            if let Some(bound) = group.and_then(|group| self.bounds.get_mut(&group)) {
                bound.live += 1;
            }
            self.take_out(id, turn);
            placed.push((turn.job, worker));
            if let Some(next) = self.lines.get(&id).and_then(|line| line.turns.first()) {
                heads.push(Reverse((*next, id)));
            }
        }
        // It was looked at while it was free.
        self.freed.clear();
        placed
    }

    /// The lines in which something may have become possible, and with whom:
    /// between a line and a worker that were both looked at before, nothing has
    /// changed.
    fn due(&mut self) -> Vec<(LineId, Fitting)> {
        let freed = std::mem::take(&mut self.freed);
        let touched = std::mem::take(&mut self.touched);
        let mut due = Vec::new();
        if self.free.is_empty() {
            return due;
        }
        let place = |worker: &WorkerId| self.places.get(worker);
        for id in &touched {
            let Some(line) = self.lines.get(id) else {
                continue;
            };
            let wanted = &line.wanted;
            due.push((
                *id,
                match wanted.worker {
                    Some(worker) => wanted.fitting(place(&worker).into_iter()),
                    None if wanted.labels.is_empty() => Fitting::All,
                    None => {
                        let free = self.free.iter();
                        wanted.fitting(free.filter_map(|rank| place(&rank.worker)))
                    }
                },
            ));
        }
        let freed: Vec<&Place> = freed.iter().filter_map(place).collect();
        if freed.is_empty() {
            return due;
        }
        let named = freed.iter().filter_map(|place| {
            let worker = place.rank?.worker;
            self.named.get(&worker)
        });
        for id in named.flatten().chain(&self.shared) {
            let Some(line) = self.lines.get(id).filter(|_| !touched.contains(id)) else {
                continue;
            };
            let wanted = &line.wanted;
            due.push((
                *id,
                match wanted.worker.is_none() && wanted.labels.is_empty() {
                    true => Fitting::All,
                    false => wanted.fitting(freed.iter().copied()),
                },
            ));
        }
        due
    }

    /// The least loaded worker of those that still has room.
    fn best(&self, fitting: &mut Fitting) -> Option<WorkerId> {
        let ranks = match fitting {
            Fitting::All => return Some(self.free.first()?.worker),
            Fitting::Some(ranks) => ranks,
        };
        loop {
            let Reverse(seen) = ranks.pop()?;
            let Some(rank) = self.places.get(&seen.worker).and_then(|place| place.rank) else {
                continue;
            };
            // It may have been given a job since.
            ranks.push(Reverse(rank));
            if rank == seen {
                return Some(rank.worker);
            }
        }
    }

    fn is_bound(&self, group: Option<GroupId>) -> bool {
        let bound = group.and_then(|group| self.bounds.get(&group));
        bound.is_some_and(|bound| bound.live >= bound.at_once)
    }

    /// Why a job that wants this waits, in one line.
    pub(super) fn why(&self, wanted: &Wanted) -> String {
        if let Some(bound) = wanted.bound_by.and_then(|group| self.bounds.get(&group))
            && bound.live >= bound.at_once
        {
            return match bound.at_once {
                1 => "one job of its group at a time".to_owned(),
                at_once => format!("{at_once} jobs of its group at a time"),
            };
        }
        match wanted.worker {
            Some(worker) => self.why_of_one(worker, wanted),
            None => self.seen(wanted).why.to_string(),
        }
    }

    /// Whether some worker is there to take a job that wants this, now or when it has
    /// room.
    pub(super) fn has_workers(&self, wanted: &Wanted) -> bool {
        self.seen(wanted).has_workers
    }

    /// Looks at all workers for a line once, and again when one offers something else:
    /// a page may show a thousand of its jobs.
    fn seen(&self, wanted: &Wanted) -> Seen {
        let line = self.by_wanted.get(wanted);
        let line = line.and_then(|line| self.lines.get(line));
        let seen = line.and_then(|line| line.seen.borrow().clone());
        if let Some(seen) = seen.filter(|seen| seen.offers == self.offers) {
            return seen;
        }
        let mut seats = self.places.values().filter_map(|place| place.seat.as_ref());
        let seen = Seen {
            offers: self.offers,
            why: self.why_of_many(wanted).into(),
            has_workers: seats.any(|seat| wanted.fits(seat) && seat.is_there()),
        };
        if let Some(line) = line {
            *line.seen.borrow_mut() = Some(seen.clone());
        }
        seen
    }

    /// The workers with these labels, by name, that are there to take jobs, now or
    /// when they have room; and those that are not.
    pub(super) fn matching(&self, labels: &[Requirement]) -> (Vec<WorkerId>, Vec<PassedOver>) {
        let wanted = Wanted {
            labels: labels.to_vec(),
            ..Wanted::default()
        };
        let known = self.places.iter();
        let known = known.filter_map(|(id, place)| Some((*id, place.seat.as_ref()?)));
        let mut found: Vec<(WorkerId, &Seat)> =
            known.filter(|(_, seat)| wanted.fits(seat)).collect();
        found.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        let (mut there, mut passed_over) = (Vec::new(), Vec::new());
        for (id, seat) in found {
            if seat.is_there() {
                there.push(id);
            } else if seat.openness != Openness::Left {
                passed_over.push(PassedOver {
                    worker: seat.name.to_string(),
                    reason: self.why_of_one(id, &wanted),
                });
            }
        }
        (there, passed_over)
    }

    fn why_of_one(&self, worker: WorkerId, wanted: &Wanted) -> String {
        let place = self.places.get(&worker);
        let Some(seat) = place.and_then(|place| place.seat.as_ref()) else {
            return format!("worker {worker} is not known");
        };
        let name = &seat.name;
        if !wanted.fits(seat) {
            return format!("worker {name} does not match {}", wanted.asked());
        }
        match (&seat.openness, seat.slots) {
            (Openness::Joining, _) => format!("worker {name} is not ready yet"),
            (Openness::Draining, _) => format!("worker {name} is draining"),
            (Openness::Left, _) => format!("worker {name} has left"),
            (Openness::Short(why), _) => format!("worker {name} cannot start jobs now: {why}"),
            (Openness::Unreachable(why), _) => format!("worker {name} {why}"),
            (Openness::Ready, Slots::Limited(0)) => format!("worker {name} takes no jobs"),
            (Openness::Ready, Slots::Limited(1)) => {
                format!("the one slot of worker {name} is busy")
            }
            (Openness::Ready, Slots::Limited(slots)) => {
                format!("all {slots} slots of worker {name} are busy")
            }
            (Openness::Ready, Slots::Unlimited) => format!("worker {name} is starting many jobs"),
        }
    }

    fn why_of_many(&self, wanted: &Wanted) -> String {
        let known = self.places.values();
        let known = known.filter_map(|place| Some((place, place.seat.as_ref()?)));
        let known = known.filter(|(_, seat)| seat.openness != Openness::Left);
        let matching: Vec<(&Place, &Seat)> = known.filter(|(_, seat)| wanted.fits(seat)).collect();
        let match_it = match wanted.labels.is_empty() {
            true => String::new(),
            false => format!(
                " {} {}",
                verb(matching.len(), "matches", "match"),
                wanted.asked()
            ),
        };
        if matching.is_empty() {
            return match &wanted.labels[..] {
                [] => "there is no worker".to_owned(),
                [Requirement::Has(key)] => format!("no worker has label {key}"),
                _ => format!("no worker matches {}", wanted.asked()),
            };
        }
        let workers = match matching.len() {
            1 => format!("1 worker{match_it}"),
            many => format!("{many} workers{match_it}"),
        };
        let is_ready = |(_, seat): &&(&Place, &Seat)| seat.openness == Openness::Ready;
        let ready = matching.iter().filter(is_ready);
        let slots: Vec<Slots> = ready.map(|(_, seat)| seat.slots).collect();
        let mut short = matching
            .iter()
            .filter_map(|(_, seat)| match &seat.openness {
                Openness::Short(why) => Some(why),
                _ => None,
            });
        if slots.is_empty()
            && let Some(why) = short.next()
        {
            return format!("{workers}, none can start jobs now: {why}");
        }
        if slots.is_empty() {
            let none = verb(matching.len(), "not", "none is");
            return format!("{workers}, {none} ready");
        }
        let limited = slots.iter().map(|slots| match slots {
            Slots::Limited(slots) => Some(*slots),
            Slots::Unlimited => None,
        });
        match limited.sum::<Option<u32>>() {
            Some(0) => format!("{workers}, without a slot"),
            Some(1) => format!("{workers}, its one slot busy"),
            Some(all) => format!("{workers}, all {all} slots busy"),
            None => format!("{workers}, starting many jobs"),
        }
    }
}

impl Seat {
    /// It takes jobs, now or when it has room.
    fn is_there(&self) -> bool {
        match (&self.openness, self.slots) {
            (Openness::Ready | Openness::Joining, Slots::Limited(1..) | Slots::Unlimited) => true,
            (Openness::Ready | Openness::Joining, Slots::Limited(0))
            | (
                Openness::Short(_) | Openness::Draining | Openness::Unreachable(_) | Openness::Left,
                _,
            ) => false,
        }
    }
}

impl Wanted {
    fn fits(&self, seat: &Seat) -> bool {
        let mut labels = self.labels.iter();
        labels.all(|asked| asked.is_met_by(&seat.labels))
    }

    /// Those of `places` that have room and what is wanted.
    fn fitting<'a>(&self, places: impl Iterator<Item = &'a Place>) -> Fitting {
        let fitting =
            places.filter(|place| place.seat.as_ref().is_some_and(|seat| self.fits(seat)));
        Fitting::Some(
            fitting
                .filter_map(|place| place.rank.map(Reverse))
                .collect(),
        )
    }

    fn asked(&self) -> String {
        let asked: Vec<String> = self.labels.iter().map(ToString::to_string).collect();
        asked.join(", ")
    }
}

fn verb<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    match count {
        1 => one,
        _ => many,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn seat(name: &str, slots: u32, labels: &[(&str, &str)]) -> Seat {
        let labels = labels.iter();
        Seat {
            name: name.into(),
            slots: Slots::Limited(slots),
            cpus: 1,
            labels: Arc::new(
                labels
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            openness: Openness::Ready,
        }
    }

    #[derive(Default)]
    struct Fleet {
        queue: Queue,
        names: HashMap<WorkerId, String>,
        accepted: u64,
    }

    impl Fleet {
        fn worker(&mut self, name: &str, slots: u32, labels: &[(&str, &str)]) -> WorkerId {
            let id = WorkerId::random();
            self.queue.offer(id, Some(seat(name, slots, labels)));
            self.names.insert(id, name.to_owned());
            id
        }

        fn job(&mut self, wanted: &Wanted, priority: i32) -> Turn {
            self.accepted += 1;
            let turn = Turn {
                priority: Reverse(priority),
                since: Timestamp::UNIX_EPOCH + Duration::from_secs(self.accepted),
                index: 0,
                job: JobId::random(),
            };
            self.queue.add(wanted, turn);
            turn
        }

        fn jobs(&mut self, count: usize, wanted: &Wanted) -> Vec<JobId> {
            (0..count).map(|_| self.job(wanted, 0).job).collect()
        }

        /// Where jobs were placed, by name.
        fn placed(&mut self) -> Vec<(JobId, String)> {
            let placed = self.queue.place();
            let name = |worker| self.names[&worker].clone();
            placed
                .into_iter()
                .map(|(job, on)| (job, name(on)))
                .collect()
        }

        fn places(&mut self) -> Vec<String> {
            let mut places: Vec<_> = self.placed().into_iter().map(|(_, on)| on).collect();
            places.sort();
            places
        }
    }

    fn labelled(labels: &[&str]) -> Wanted {
        Wanted {
            worker: None,
            labels: labels.iter().map(|text| text.parse().unwrap()).collect(),
            bound_by: None,
        }
    }

    fn named(worker: WorkerId) -> Wanted {
        Wanted {
            worker: Some(worker),
            ..Wanted::default()
        }
    }

    #[test]
    fn a_group_has_only_so_many_jobs_on_workers() {
        let mut fleet = Fleet::default();
        let workers = [fleet.worker("a", 4, &[]), fleet.worker("b", 4, &[])];
        let group = GroupId::random();
        fleet.queue.bound(group, 2);
        let bound = |wanted: Wanted| Wanted {
            bound_by: Some(group),
            ..wanted
        };
        // In two lines, as those of `--all` are.
        for worker in workers {
            fleet.jobs(2, &bound(named(worker)));
        }
        assert_eq!(fleet.placed().len(), 2);
        assert_eq!(
            fleet.queue.why(&bound(named(workers[0]))),
            "2 jobs of its group at a time"
        );
        fleet.jobs(1, &Wanted::default());
        assert_eq!(fleet.placed().len(), 1, "others are not held up");
        fleet.queue.vacate(workers[0], Some(group));
        assert_eq!(fleet.placed().len(), 1);
        assert!(fleet.placed().is_empty());
    }

    #[test]
    fn jobs_are_spread_by_the_share_of_slots_that_is_taken() {
        let mut fleet = Fleet::default();
        fleet.worker("big", 4, &[]);
        fleet.worker("small", 2, &[]);
        fleet.jobs(3, &Wanted::default());
        assert_eq!(fleet.places(), ["big", "big", "small"]);
        fleet.jobs(9, &Wanted::default());
        assert_eq!(
            fleet.places(),
            ["big", "big", "small"],
            "all slots are taken"
        );
        assert!(fleet.placed().is_empty());
    }

    #[test]
    fn a_row_of_short_jobs_goes_round() {
        let mut fleet = Fleet::default();
        let workers = [fleet.worker("a", 8, &[]), fleet.worker("b", 8, &[])];
        let mut seen = HashSet::new();
        for _ in 0..2 {
            fleet.jobs(1, &Wanted::default());
            let [(_, on)] = &fleet.placed()[..] else {
                panic!("one job was placed");
            };
            seen.insert(on.clone());
            for worker in workers.into_iter().filter(|id| fleet.names[id] == *on) {
                fleet.queue.answered(worker);
                fleet.queue.vacate(worker, None);
            }
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn what_waits_for_one_worker_never_holds_up_another() {
        let mut fleet = Fleet::default();
        let busy = fleet.worker("busy", 1, &[("gpu", "")]);
        fleet.jobs(1, &named(busy));
        assert_eq!(fleet.places(), ["busy"]);
        // Earlier and more urgent, and still they wait.
        fleet.job(&named(busy), 100);
        fleet.job(&labelled(&["gpu"]), 100);
        let free = fleet.worker("free", 1, &[]);
        fleet.job(&Wanted::default(), -100);
        assert_eq!(fleet.places(), ["free"]);
        let urgent = fleet.job(&labelled(&["gpu"]), 200).job;
        fleet.queue.vacate(free, None);
        assert!(fleet.placed().is_empty());
        fleet.queue.vacate(busy, None);
        assert_eq!(fleet.placed(), [(urgent, "busy".to_owned())]);
    }

    #[test]
    fn the_more_urgent_goes_first_and_the_first_to_come_among_equals() {
        let mut fleet = Fleet::default();
        let worker = fleet.worker("w", 1, &[("role", "web")]);
        fleet.jobs(1, &Wanted::default());
        fleet.placed();
        let second = fleet.job(&Wanted::default(), 0).job;
        let third = fleet.job(&labelled(&["role=web"]), 0).job;
        let fourth = fleet.job(&named(worker), -1).job;
        let first = fleet.job(&labelled(&["role=web"]), 1).job;
        let mut order = Vec::new();
        for _ in 0..4 {
            fleet.queue.vacate(worker, None);
            order.extend(fleet.placed().into_iter().map(|(job, _)| job));
        }
        assert_eq!(order, [first, second, third, fourth]);
    }

    #[test]
    fn a_job_that_is_taken_out_is_not_placed() {
        let mut fleet = Fleet::default();
        let wanted = labelled(&["a"]);
        let turn = fleet.job(&wanted, 0);
        fleet.queue.remove(&wanted, turn);
        fleet.worker("w", 1, &[("a", "")]);
        assert!(fleet.placed().is_empty());
        assert!(fleet.queue.lines.is_empty() && fleet.queue.by_wanted.is_empty());
        assert!(fleet.queue.shared.is_empty() && fleet.queue.named.is_empty());
    }

    #[test]
    fn what_is_held_is_placed_once_it_is_released_in_its_turn() {
        let mut fleet = Fleet::default();
        let worker = fleet.worker("w", 1, &[]);
        let [first, second, gone] = [0; 3].map(|priority| fleet.job(&Wanted::default(), priority));
        for turn in [first, gone] {
            fleet.queue.remove(&Wanted::default(), turn);
            fleet.queue.hold(&Wanted::default(), turn);
        }
        assert_eq!(fleet.placed(), [(second.job, "w".to_owned())]);
        fleet.queue.vacate(worker, None);
        assert!(fleet.placed().is_empty(), "the others are held");
        fleet.queue.remove(&Wanted::default(), gone);
        let last = fleet.job(&Wanted::default(), 0);
        fleet.queue.release();
        assert_eq!(fleet.placed(), [(first.job, "w".to_owned())]);
        fleet.queue.vacate(worker, None);
        assert_eq!(fleet.placed(), [(last.job, "w".to_owned())]);
        assert!(fleet.queue.lines.is_empty() && fleet.queue.by_wanted.is_empty());
    }

    #[test]
    fn what_is_said_of_a_line_follows_every_change_of_a_worker() {
        let mut fleet = Fleet::default();
        fleet.jobs(1, &Wanted::default());
        let why = |fleet: &Fleet| fleet.queue.why(&Wanted::default());
        assert_eq!(why(&fleet), "there is no worker");
        let a = fleet.worker("a", 0, &[]);
        assert_eq!(why(&fleet), "1 worker, without a slot");
        let short = Seat {
            openness: Openness::Short("no disk".into()),
            ..seat("a", 0, &[])
        };
        fleet.queue.offer(a, Some(short));
        assert_eq!(why(&fleet), "1 worker, none can start jobs now: no disk");
        fleet.queue.offer(a, Some(seat("a", 0, &[])));
        assert_eq!(why(&fleet), "1 worker, without a slot");
        assert!(!fleet.queue.has_workers(&Wanted::default()));
        fleet.worker("b", 1, &[]);
        assert!(fleet.queue.has_workers(&Wanted::default()));
        fleet.queue.close(a);
        assert_eq!(why(&fleet), "2 workers, its one slot busy");
        fleet.queue.offer(a, None);
        assert_eq!(why(&fleet), "1 worker, its one slot busy");
    }

    #[test]
    fn labels_that_change_make_room() {
        let mut fleet = Fleet::default();
        let worker = fleet.worker("w", 1, &[("role", "db")]);
        fleet.jobs(1, &labelled(&["role=web", "!old"]));
        assert!(fleet.placed().is_empty());
        fleet
            .queue
            .offer(worker, Some(seat("w", 1, &[("role", "web")])));
        assert_eq!(fleet.places(), ["w"]);
    }

    #[test]
    fn a_worker_takes_jobs_only_while_it_is_ready() {
        let mut fleet = Fleet::default();
        let worker = fleet.worker("w", 8, &[]);
        fleet.queue.close(worker);
        fleet.jobs(2, &Wanted::default());
        assert!(fleet.placed().is_empty());
        fleet.queue.offer(worker, Some(seat("w", 8, &[])));
        assert_eq!(fleet.placed().len(), 2);
        fleet.queue.offer(worker, None);
        fleet.jobs(1, &Wanted::default());
        assert!(fleet.placed().is_empty());
    }

    #[test]
    fn only_so_many_starts_are_under_way_on_one_worker() {
        let mut fleet = Fleet::default();
        let worker = WorkerId::random();
        let unlimited = Seat {
            slots: Slots::Unlimited,
            ..seat("w", 0, &[])
        };
        fleet.names.insert(worker, "w".to_owned());
        fleet.queue.offer(worker, Some(unlimited));
        fleet.jobs(200, &Wanted::default());
        assert_eq!(fleet.placed().len(), 128);
        assert!(fleet.placed().is_empty());
        fleet.queue.answered(worker);
        assert_eq!(fleet.placed().len(), 1);
    }

    #[test]
    fn it_is_said_what_a_job_waits_for() {
        let mut fleet = Fleet::default();
        let why = |fleet: &Fleet, labels: &[&str]| fleet.queue.why(&labelled(labels));
        assert_eq!(why(&fleet, &[]), "there is no worker");
        assert_eq!(why(&fleet, &["gpu"]), "no worker has label gpu");
        let web = [("role", "web")];
        let a = fleet.worker("a", 8, &web);
        assert_eq!(
            why(&fleet, &["role=web", "!arm", "gpu"]),
            "no worker matches role=web, !arm, gpu"
        );
        fleet.worker("b", 3, &web);
        fleet.worker("c", 1, &web);
        fleet.jobs(12, &Wanted::default());
        assert_eq!(fleet.placed().len(), 12);
        assert_eq!(
            why(&fleet, &["role=web"]),
            "3 workers match role=web, all 12 slots busy"
        );
        assert_eq!(why(&fleet, &[]), "3 workers, all 12 slots busy");
        assert_eq!(
            fleet.queue.why(&named(a)),
            "all 8 slots of worker a are busy"
        );
        let gone = Openness::Unreachable("has not answered since then".into());
        let away = Seat {
            openness: gone,
            ..seat("a", 8, &[("gpu", "")])
        };
        fleet.queue.offer(a, Some(away));
        assert_eq!(why(&fleet, &["gpu"]), "1 worker matches gpu, not ready");
        assert_eq!(
            fleet.queue.why(&named(a)),
            "worker a has not answered since then"
        );
        let none = fleet.worker("none", 0, &[("zero", "")]);
        assert_eq!(
            why(&fleet, &["zero"]),
            "1 worker matches zero, without a slot"
        );
        assert_eq!(fleet.queue.why(&named(none)), "worker none takes no jobs");
    }

    /// Prints how long it takes. Run it with
    /// `cargo test --release --lib -- --ignored --nocapture ten_thousand_jobs`.
    #[test]
    #[ignore = "prints figures, and holds nothing"]
    fn ten_thousand_jobs_over_a_thousand_workers() {
        for (what, kinds) in [("one kind of job", 1), ("a hundred kinds of jobs", 100)] {
            let mut fleet = Fleet::default();
            for n in 0..1000 {
                let kind = (n % 100).to_string();
                fleet.worker(&format!("w{n}"), 10, &[("kind", &kind)]);
            }
            let mut turns = Vec::new();
            for n in 0..10_000 {
                let wanted = match kinds {
                    1 => Wanted::default(),
                    _ => labelled(&[&format!("kind={}", n % kinds)]),
                };
                turns.push(fleet.job(&wanted, n % 7));
            }
            let began = Instant::now();
            let placed = fleet.queue.place().len();
            let took = began.elapsed();
            let began = Instant::now();
            let sorted: BTreeSet<Turn> = turns.into_iter().collect();
            let limit = began.elapsed();
            println!(
                "{what}: {placed} placed in {took:.1?}; sorting {} turns takes {limit:.1?}",
                sorted.len()
            );
        }
    }
}
