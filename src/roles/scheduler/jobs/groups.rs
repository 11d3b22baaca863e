//! What is done with groups as a whole.

use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use serde_json::json;
use tokio::sync::watch;

use super::{
    Cut, Group, Jobs, Named, Record, Room, Spec, State, Stop, Wait,
    prerequisites::{Awaited, Prerequisite},
    record::{Member, now},
    room::merge,
};
use crate::{
    api::{Counts, PassedOver},
    ids::{GroupId, JobId, WorkerId},
    roles::scheduler::{
        access::Caller,
        error::Error,
        store::{Env, Key},
        time::Now,
    },
};

/// So many jobs of a group are stopped at the same time.
const STOPPED_AT_ONCE: usize = 64;

/// A start of a group, as it was asked for.
#[derive(Debug)]
pub(in crate::roles::scheduler) struct StartGroup {
    pub(in crate::roles::scheduler) spec: Spec,
    /// The values of its environment.
    pub(in crate::roles::scheduler) env: Env,
    pub(in crate::roles::scheduler) kind: Kind,
    /// The worker that is named.
    pub(in crate::roles::scheduler) worker: Option<String>,
    /// No more than so many of its jobs on workers at a time.
    pub(in crate::roles::scheduler) at_once: Option<u32>,
    pub(in crate::roles::scheduler) stop_on_failure: bool,
    /// Whom its jobs wait for.
    pub(in crate::roles::scheduler) after: Vec<Awaited>,
    /// Under which it may be asked for again.
    pub(in crate::roles::scheduler) key: Option<Key>,
    pub(in crate::roles::scheduler) caller: Caller,
}

/// Which jobs a group has.
#[derive(Debug)]
pub(in crate::roles::scheduler) enum Kind {
    /// One on each worker that is there and has the labels.
    All,
    /// So many.
    Count(u32),
    /// One for each of these.
    Each(Vec<String>),
}

/// What one job of a group has of its own.
#[derive(Clone, Default)]
struct Part {
    worker: Option<WorkerId>,
    item: Option<Box<str>>,
}

impl Jobs {
    /// Records a group with all its jobs, which start as workers have room; also
    /// returns the workers that get none of it. The same key gets the same group.
    /// A caller who goes away does not stop it.
    pub(in crate::roles::scheduler) async fn start_group(
        &self,
        asked: StartGroup,
    ) -> Result<(Arc<Group>, Vec<PassedOver>), Error> {
        let jobs = self.clone();
        let start = async move { jobs.start_group_once(asked).await };
        self.to_its_end(start).await
    }

    async fn start_group_once(
        &self,
        mut asked: StartGroup,
    ) -> Result<(Arc<Group>, Vec<PassedOver>), Error> {
        // Until the key is recorded, whoever bears it as well has to wait.
        let mut _turn = None;
        if let Some(key) = &asked.key {
            _turn = Some(self.0.turns.take(&key.key).await);
            if let Some(kept) = self.0.store.key(key.key.clone()).await? {
                let group = kept.group.filter(|_| kept.body == key.body);
                let group = group.ok_or(Error::KeyReused(kept.job))?;
                if kept.is_gone {
                    return Err(Error::KeySpent(kept.job));
                }
                return Ok((self.get_group(group).await?, Vec::new()));
            }
        }
        let after = self.prerequisites(std::mem::take(&mut asked.after)).await?;
        let (parts, passed_over) = self.parts(&asked)?;
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let group = Group {
            id: GroupId::random(),
            spec: Arc::new(asked.spec),
            count,
            all: matches!(asked.kind, Kind::All),
            at_once: asked.at_once,
            stop_on_failure: asked.stop_on_failure,
            created_at: now(),
            states: Counts::default(),
            exit_code: 0,
            failed_index: None,
            ended_at: None,
            stopped: None,
        };
        let now = self.0.store.time().now();
        let jobs: Arc<[Record]> = jobs_of(&group, parts, &after, now).collect();
        let env = Arc::new(asked.env);
        let spec = &group.spec;
        let details = json!({
            "count": count, "all": group.all, "command": spec.command, "path": spec.path,
            "args": spec.args, "env": spec.env, "cwd": spec.cwd, "name": spec.name,
        });
        let audit = asked.caller.did("start", group.id, details);
        let group = Arc::new(group);
        let recorded =
            self.0
                .store
                .start_group(group.clone(), jobs.clone(), env.clone(), asked.key, audit);
        recorded.await?;
        tracing::info!(group_id = %group.id, jobs = count, "group accepted");
        self.change(|table| {
            table.insert_group((*group).clone());
            for job in jobs.iter() {
                table.insert(job.clone(), env.clone());
            }
            if let Some(group) = table.group(group.id) {
                self.0.events.group(self.0.store.now(), group);
            }
            for job in jobs.iter() {
                table.enqueue(job.id);
            }
        });
        Ok((group, passed_over))
    }

    fn parts(&self, asked: &StartGroup) -> Result<(Vec<Part>, Vec<PassedOver>), Error> {
        let worker = asked.worker.as_deref();
        let worker = worker.map(|named| self.wanted(named)).transpose()?;
        let worker = worker.map(|worker| worker.id);
        match &asked.kind {
            Kind::Count(count) => {
                let part = Part { worker, item: None };
                Ok((vec![part; *count as usize], Vec::new()))
            }
            Kind::Each(items) => {
                let parts = items.iter().map(|item| Part {
                    worker,
                    item: Some(item.as_str().into()),
                });
                Ok((parts.collect(), Vec::new()))
            }
            Kind::All => {
                let mut table = self.table();
                self.take_offers(&mut table);
                let labels = &asked.spec.labels;
                let (there, passed_over) = table.matching(labels);
                if there.is_empty() {
                    return Err(Error::NoWorkerMatches(table.why_nobody(labels)));
                }
                let parts = there.into_iter().map(|worker| Part {
                    worker: Some(worker),
                    item: None,
                });
                Ok((parts.collect(), passed_over))
            }
        }
    }

    /// The group of this very id.
    pub(super) async fn get_group(&self, id: GroupId) -> Result<Arc<Group>, Error> {
        let live = self.table().group(id);
        match live {
            Some(group) => Ok(group),
            None => {
                let found = self.0.store.group(id).await?;
                found
                    .map(Arc::new)
                    .ok_or_else(|| Error::JobNotFound(id.to_string()))
            }
        }
    }

    /// Waits until all jobs of the group have ended.
    pub(in crate::roles::scheduler) async fn wait_for_group(
        &self,
        id: GroupId,
    ) -> Result<Arc<Group>, Error> {
        let mut changes = self.watch_group(id).await?;
        let found = tokio::select! {
            found = changes.wait_for(|group| group.is_final()) => found.map(|group| group.clone()).ok(),
            () = self.0.closing.cancelled() => return Err(Error::ShuttingDown),
        };
        // The sender goes with the end of the group.
        Ok(found.unwrap_or_else(|| changes.borrow().clone()))
    }

    /// The group now and after every change, the last of them its end.
    pub(in crate::roles::scheduler) async fn watch_group(
        &self,
        id: GroupId,
    ) -> Result<watch::Receiver<Arc<Group>>, Error> {
        let found = self.table().watch_group(id);
        match found {
            Some(changes) => Ok(changes),
            None => Ok(watch::channel(self.get_group(id).await?).1),
        }
    }

    /// At most `limit` jobs of the group, in their order, behind the job `after`: as
    /// many as a page has room for.
    pub(in crate::roles::scheduler) async fn members(
        &self,
        group: GroupId,
        limit: usize,
        after: Option<JobId>,
    ) -> Result<Cut<Arc<Record>>, Error> {
        let from = match after {
            None => 0,
            Some(id) => {
                let record = self.get(id).await?;
                let member = record.member.as_ref();
                let member = member.filter(|member| member.group == group);
                let member = member.ok_or_else(|| {
                    Error::BadRequest(format!("after: job {id} is not of this group"))
                })?;
                member.index.saturating_add(1)
            }
        };
        self.members_from(group, from, limit).await
    }

    async fn members_from(
        &self,
        group: GroupId,
        from: u32,
        limit: usize,
    ) -> Result<Cut<Arc<Record>>, Error> {
        let room = Room::of(limit);
        // Memory first: what ends and moves to the disk meanwhile is there twice
        // rather than not at all.
        let live = self.table().members(group, from, room);
        let ended = self.0.store.members(group, from, room).await?;
        Ok(merge(room, live, ended, Record::index))
    }

    /// The job of that number in the group that `asked` means.
    pub(super) async fn member(&self, asked: &str, index: &str) -> Result<Arc<Record>, Error> {
        let not_found = || Error::JobNotFound(format!("{asked}/{index}"));
        let index: u32 = index.parse().map_err(|_| not_found())?;
        let Named::Group(group) = Box::pin(self.find(asked)).await? else {
            return Err(not_found());
        };
        let found = self.members_from(group.id, index, 1).await?;
        let found = found.jobs.into_iter();
        let mut found = found.filter(|record| record.index() == index);
        found.next().ok_or_else(not_found)
    }

    /// Ends a group: what waits ends at once, what is on workers as [`Jobs::stop`]
    /// has it. One error stands for all.
    pub(in crate::roles::scheduler) async fn stop_group(
        &self,
        id: GroupId,
        stop: Stop,
    ) -> Result<(), Error> {
        let group = self.get_group(id).await?;
        if group.is_final() {
            return Err(Error::GroupFinished {
                group: id,
                how: match group.error_text() {
                    text if text.is_empty() => "all of its jobs succeeded".to_owned(),
                    text => text,
                },
            });
        }
        let mut running = Vec::new();
        self.change(|table| running = table.stop_group(id, "its group was stopped"));
        // Those on workers are told also when there is no room to record it.
        let recorded = self.recorded().await.map_err(Error::stop_unrecorded);
        match self.stop_all(running, stop).await {
            None => recorded,
            Some(error) => Err(error),
        }
    }

    /// Tells all of them before it waits for any, so that they take one grace
    /// together. Returns one of the errors.
    pub(in crate::roles::scheduler) async fn stop_all(
        &self,
        jobs: Vec<JobId>,
        stop: Stop,
    ) -> Option<Error> {
        let told = Stop {
            wait: Wait::Sent,
            ..stop
        };
        let tell = jobs.iter().map(|id| self.stop(*id, told).boxed());
        let failed = first_error(tell.collect()).await;
        match stop.wait {
            Wait::Sent => failed,
            Wait::Gone => {
                let left = jobs
                    .iter()
                    .map(|id| self.wait_until_gone(*id, stop).boxed());
                failed.or(first_error(left.collect()).await)
            }
        }
    }

    async fn wait_until_gone(&self, id: JobId, stop: Stop) -> Result<(), Error> {
        let record = self.get(id).await?;
        match record.worker().filter(|_| !record.is_final()) {
            Some(worker) => self.gone(id, stop, &self.0.registry.get(worker)?).await,
            None => Ok(()),
        }
    }
}

/// One of the errors, save that a job has ended.
async fn first_error(all: Vec<BoxFuture<'_, Result<(), Error>>>) -> Option<Error> {
    let done = stream::iter(all).buffer_unordered(STOPPED_AT_ONCE);
    let first = |found: Option<Error>, done| {
        std::future::ready(match done {
            Ok(()) | Err(Error::JobFinished { .. }) => found,
            Err(error) => found.or(Some(error)),
        })
    };
    done.fold(None, first).await
}

fn jobs_of(
    group: &Group,
    parts: Vec<Part>,
    after: &[Prerequisite],
    now: Now,
) -> impl Iterator<Item = Record> {
    parts.into_iter().zip(0..).map(move |(part, index)| Record {
        id: JobId::random(),
        counts_from: Some(now.counted),
        ripe_at: group.spec.ripe_at(now),
        spec: group.spec.clone(),
        member: Some(Member {
            group: group.id,
            index,
            count: group.count,
            item: part.item,
            is_bound: group.at_once.is_some(),
        }),
        wanted: part.worker,
        place: None,
        state: State::Queued,
        output_bytes: 0,
        created_at: group.created_at,
        stop: None,
        attempts: Vec::new(),
        retry_at: None,
        is_last: false,
        after: after.to_vec(),
    })
}
