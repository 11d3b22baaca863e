//! Jobs that wait for others to end. Whom a job waits for is there before it, so
//! that none can wait for itself, in however many steps.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    Group, Jobs, Named,
    record::{End, Event, Record, State},
    table::Table,
};
use crate::{
    api::{self, JobState, Until},
    ids::{GroupId, JobId},
    roles::scheduler::error::Error,
};

/// A job for which another one waits, or a group of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prerequisite {
    pub(crate) job: JobId,
    pub(crate) until: Until,
    /// None: it has not ended. Kept here, because its own record may be deleted
    /// while others are waited for.
    pub(crate) became: Option<Became>,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Became {
    /// None: its record was deleted before anybody looked.
    pub(crate) state: Option<JobState>,
    /// What is said of it by those that were waiting for its success in vain.
    pub(crate) said: String,
}

/// Whom a start waits for, as it was asked for.
#[derive(Debug)]
pub(in crate::roles::scheduler) struct Awaited {
    /// An id, a prefix, a name or `last`.
    job: String,
    until: Until,
}

impl Awaited {
    /// Those of a request, or in one line what is wrong with them.
    pub(in crate::roles::scheduler) fn of(asked: &api::StartRequest) -> Result<Vec<Self>, String> {
        let succeeded = asked.after.iter().map(|job| (job, Until::Succeeded));
        let ended = asked.after_any.iter().map(|job| (job, Until::Ended));
        let all = succeeded.chain(ended).map(|(job, until)| Self {
            job: job.clone(),
            until,
        });
        let all: Vec<_> = all.collect();
        if all.len() > api::MAX_AFTER {
            return Err(format!("more than {} jobs to wait for", api::MAX_AFTER));
        }
        match !all.is_empty() && asked.no_queue {
            true => Err("a job that waits for others cannot be refused with no_queue".to_owned()),
            false => Ok(all),
        }
    }
}

impl Became {
    fn of(record: &Record) -> Option<Self> {
        let State::Ended { end, reason, .. } = &record.state else {
            return None;
        };
        Some(Self {
            state: Some(record.api_state()),
            // Of a chain of jobs all say how the first one ended.
            said: match record.unmet() {
                Some(said) => said.to_owned(),
                None => said(record.id, end, reason),
            },
        })
    }

    fn of_group(group: &Group) -> Option<Self> {
        let state = match group.states.unsuccessful() {
            0 => JobState::Succeeded,
            _ => JobState::Failed,
        };
        group.is_final().then(|| Self {
            state: Some(state),
            said: format!("group {}: {}", group.id.short(), group.error_text()),
        })
    }

    fn unknown(id: JobId) -> Self {
        Self {
            state: None,
            said: format!("job {} is not known any more", id.short()),
        }
    }
}

fn said(id: JobId, end: &End, reason: &str) -> String {
    let (word, own) = match end {
        End::Succeeded => ("succeeded", ""),
        End::Failed(_) | End::NotStarted { .. } => ("failed", "failed: "),
        End::Stopped(_) => ("was stopped", "stopped: "),
        End::TimedOut(_) => ("timed out", "timed out "),
        End::Lost => ("is lost", "lost: "),
    };
    let id = id.short();
    match reason.strip_prefix(own).unwrap_or(reason) {
        "" => format!("job {id} {word}"),
        rest if own == "timed out " && rest != reason => format!("job {id} {word} {rest}"),
        rest => format!("job {id} {word}: {rest}"),
    }
}

/// Ids are never used twice: that of a group names no job.
pub(super) fn group_as_job(group: GroupId) -> JobId {
    JobId::from_bytes(*group.as_bytes())
}

impl Prerequisite {
    /// Of a job that was just looked up.
    fn new(record: &Record, until: Until) -> Self {
        Self {
            job: record.id,
            until,
            became: Became::of(record),
        }
    }

    /// Of all jobs of a group, which its id stands for.
    fn of_group(group: &Group, until: Until) -> Self {
        Self {
            job: group_as_job(group.id),
            until,
            became: Became::of_group(group),
        }
    }

    /// It ended otherwise than was waited for; what is said of that.
    fn unmet(&self) -> Option<&str> {
        let became = self.became.as_ref()?;
        let is_met = match self.until {
            Until::Succeeded => became.state == Some(JobState::Succeeded),
            // Only records of jobs that have ended are deleted.
            Until::Ended => true,
        };
        (!is_met).then_some(&became.said)
    }
}

impl Record {
    /// Why it will never start, if one of those it waits for ended otherwise.
    fn unmet(&self) -> Option<&str> {
        self.after.iter().find_map(Prerequisite::unmet)
    }

    /// Those it waits for.
    fn awaited(&self) -> impl Iterator<Item = &Prerequisite> {
        self.after.iter().filter(|one| one.became.is_none())
    }

    /// It waits for no other job.
    pub(super) fn is_free(&self) -> bool {
        self.awaited().next().is_none() && self.unmet().is_none()
    }

    /// What it waits for, if those are jobs.
    pub(super) fn why_not_free(&self) -> Option<String> {
        let mut awaited = self.awaited();
        let first = awaited.next()?;
        let until = match first.until {
            Until::Succeeded => "succeed",
            Until::Ended => "end",
        };
        let id = first.job.short();
        Some(match awaited.count() {
            0 => format!("waits for job {id} to {until}"),
            more => format!("waits for job {id} to {until}, and for {more} more"),
        })
    }

    pub(super) fn shown_prerequisites(&self) -> Vec<api::Prerequisite> {
        let shown = self.after.iter().map(|one| api::Prerequisite {
            job_id: one.job,
            until: one.until,
            state: one.became.as_ref().and_then(|became| became.state),
        });
        shown.collect()
    }
}

/// Who waits for whom.
#[derive(Debug, Default)]
pub(super) struct Dependents {
    waiting: HashMap<JobId, BTreeSet<JobId>>,
    /// Those that have ended, and whose dependents were not told yet.
    ended: Vec<JobId>,
    /// Those that are waited for and not here: the store may know of them.
    strangers: BTreeSet<JobId>,
    strange: Arc<Notify>,
}

impl Dependents {
    /// A job has ended.
    pub(super) fn ended(&mut self, id: JobId) {
        if self.waiting.contains_key(&id) {
            self.ended.push(id);
        }
    }

    /// A job is not here any more.
    pub(super) fn removed(&mut self, id: JobId) {
        if self.waiting.contains_key(&id) {
            self.strangers.insert(id);
            self.strange.notify_one();
        }
    }

    /// A job waits no more.
    pub(super) fn release(&mut self, record: &Record) {
        for one in record.awaited() {
            if let Some(waiting) = self.waiting.get_mut(&one.job) {
                waiting.remove(&record.id);
                if waiting.is_empty() {
                    self.waiting.remove(&one.job);
                }
            }
        }
    }
}

impl Table {
    /// Has a job wait for those it is to wait for.
    pub(super) fn await_others(&mut self, record: &Record) {
        for one in record.awaited() {
            let waiting = self.dependents.waiting.entry(one.job).or_default();
            waiting.insert(record.id);
            match self.has_ended(one.job) {
                Some(true) => self.dependents.ended(one.job),
                Some(false) => {}
                None => self.dependents.removed(one.job),
            }
        }
    }

    /// Of a job or a group; None: it is not in memory.
    fn has_ended(&self, id: JobId) -> Option<bool> {
        match self.get(id) {
            Some(record) => Some(record.is_final()),
            None => Some(self.group(GroupId::from_bytes(*id.as_bytes()))?.is_final()),
        }
    }

    /// Tells the dependents of jobs and groups that have ended, and theirs in turn.
    pub(super) fn tell_dependents(&mut self) {
        while let Some(id) = self.dependents.ended.pop() {
            let became = match self.get(id) {
                Some(record) => Became::of(&record),
                None => {
                    let group = self.group(GroupId::from_bytes(*id.as_bytes()));
                    group.and_then(|group| Became::of_group(&group))
                }
            };
            if let Some(became) = became {
                self.tell(id, &became);
            }
        }
    }

    fn tell(&mut self, id: JobId, became: &Became) {
        let waiting = self.dependents.waiting.remove(&id);
        for dependent in waiting.unwrap_or_default() {
            self.edit(dependent, |record| {
                for one in record.after.iter_mut().filter(|one| one.job == id) {
                    one.became = Some(became.clone());
                }
                true
            });
            self.enqueue(dependent);
        }
    }
}

/// What ends a job that waited for another one in vain.
pub(super) fn in_vain(record: &Record) -> Option<Event> {
    Some(Event::GivenUp {
        end: End::Stopped(None),
        reason: record.unmet()?.to_owned(),
    })
}

impl Jobs {
    /// The jobs that are meant, as they stand.
    pub(super) async fn prerequisites(
        &self,
        asked: Vec<Awaited>,
    ) -> Result<Vec<Prerequisite>, Error> {
        let mut found = Vec::new();
        for Awaited { job, until } in asked {
            let one = match self.find(&job).await? {
                Named::Job(record) => Prerequisite::new(&record, until),
                Named::Group(group) => Prerequisite::of_group(&group, until),
            };
            let is_new = |known: &Prerequisite| (known.job, known.until) != (one.job, one.until);
            if found.iter().all(is_new) {
                found.push(one);
            }
        }
        Ok(found)
    }

    /// Asks the store for jobs that are waited for and not in memory: they ended
    /// before a restart, or in the moment in which another began to wait. Never
    /// returns.
    pub(in crate::roles::scheduler) async fn follow_strangers(&self) {
        let strange = self.table().dependents.strange.clone();
        loop {
            strange.notified().await;
            let strangers = std::mem::take(&mut self.table().dependents.strangers);
            for id in strangers {
                let group = GroupId::from_bytes(*id.as_bytes());
                let became = match self.get(id).await {
                    Ok(record) => Became::of(&record),
                    Err(Error::JobNotFound(_)) => match self.get_group(group).await {
                        Ok(group) => Became::of_group(&group),
                        Err(_) => Some(Became::unknown(id)),
                    },
                    Err(error) => {
                        tracing::error!(job_id = %id, %error, "cannot tell how a job ended");
                        None
                    }
                };
                if let Some(became) = became {
                    self.change(|table| table.tell(id, &became));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::scheduler::jobs::{
        Exit, Process, Spec, Status,
        record::{now, tests::record},
    };

    fn ended(end: End, reason: &str) -> State {
        State::Ended {
            process: None,
            at: now(),
            end,
            reason: reason.to_owned(),
        }
    }

    fn succeeded() -> State {
        ended(End::Succeeded, "")
    }

    fn failed() -> State {
        ended(End::Failed(Some(Exit::Code(3))), "exit status 3")
    }

    fn ends(table: &mut Table, id: JobId, state: State) {
        let status = Status {
            state,
            output_bytes: 0,
        };
        table.report(id, status, None);
        table.tell_dependents();
    }

    fn running(table: &mut Table) -> JobId {
        let job = record(State::Running(Process::default()));
        table.insert(job, Arc::default()).id
    }

    fn waiting(table: &mut Table, after: &[(JobId, Until)]) -> JobId {
        let after = after.iter().map(|(job, until)| Prerequisite {
            job: *job,
            until: *until,
            became: None,
        });
        let job = Record {
            place: None,
            spec: Arc::new(Spec::default()),
            after: after.collect(),
            ..record(State::Queued)
        };
        let id = table.insert(job, Arc::default()).id;
        table.enqueue(id);
        id
    }

    fn why(table: &Table, id: JobId) -> String {
        let record = table.get(id).unwrap();
        match record.is_final() {
            true => record.error_text(),
            false => table.why(&record),
        }
    }

    #[test]
    fn a_job_waits_for_all_the_others() {
        let mut table = Table::default();
        let (a, b) = (running(&mut table), running(&mut table));
        let job = waiting(&mut table, &[(a, Until::Succeeded), (b, Until::Ended)]);
        let said = format!("waits for job {} to succeed, and for 1 more", a.short());
        assert_eq!(why(&table, job), said);
        ends(&mut table, a, succeeded());
        assert_eq!(
            why(&table, job),
            format!("waits for job {} to end", b.short())
        );
        ends(&mut table, b, failed());
        assert_eq!(why(&table, job), "there is no worker");
        assert!(table.dependents.waiting.is_empty());
    }

    #[test]
    fn what_is_behind_a_failure_is_stopped_in_however_long_a_chain() {
        let mut table = Table::default();
        let first = running(&mut table);
        let mut chain = vec![first];
        for _ in 0..10_000 {
            let last = chain[chain.len() - 1];
            chain.push(waiting(&mut table, &[(last, Until::Succeeded)]));
        }
        let last = chain[chain.len() - 1];
        let anyway = waiting(&mut table, &[(last, Until::Ended)]);
        ends(&mut table, first, failed());
        let said = format!("job {} failed: exit status 3", first.short());
        for id in &chain[1..] {
            let record = table.get(*id).unwrap();
            assert_eq!(
                (record.api_state(), record.error_text()),
                (JobState::Stopped, said.clone())
            );
            assert!(record.never_ran());
        }
        assert_eq!(why(&table, anyway), "there is no worker");
    }

    #[test]
    fn a_job_that_waits_no_more_is_not_told() {
        let mut table = Table::default();
        let first = running(&mut table);
        let job = waiting(&mut table, &[(first, Until::Succeeded)]);
        let stopped = table.get(job).unwrap().stopped_before_start(None);
        table.apply(job, stopped);
        assert!(table.dependents.waiting.is_empty());
        ends(&mut table, first, failed());
        assert_eq!(why(&table, job), "stopped before it was started");
    }

    #[test]
    fn of_a_job_that_is_not_known_any_more_only_the_end_is_known() {
        let mut table = Table::default();
        let gone = JobId::random();
        let success = waiting(&mut table, &[(gone, Until::Succeeded)]);
        let end = waiting(&mut table, &[(gone, Until::Ended)]);
        assert!(table.dependents.strangers.contains(&gone));
        table.tell(gone, &Became::unknown(gone));
        let said = format!("job {} is not known any more", gone.short());
        assert_eq!(why(&table, success), said);
        assert_eq!(why(&table, end), "there is no worker");
    }

    #[test]
    fn it_is_said_how_another_job_ended() {
        let id: JobId = "3f2a8b1c-9d4e-4f00-8d3e-6a1f0c2b7e55".parse().unwrap();
        for (end, reason, expected) in [
            (End::Failed(None), "exit status 3", "failed: exit status 3"),
            (End::Failed(None), "", "failed"),
            (
                End::TimedOut(None),
                "timed out after 10m",
                "timed out after 10m",
            ),
            (
                End::TimedOut(None),
                "waited longer than its deadline of 10m",
                "timed out: waited longer than its deadline of 10m",
            ),
            (End::Lost, "lost: worker left", "is lost: worker left"),
            (
                End::Stopped(None),
                "stopped: signal: killed",
                "was stopped: signal: killed",
            ),
        ] {
            assert_eq!(
                said(id, &end, reason),
                format!("job 3f2a8b1c9d4e {expected}")
            );
        }
    }

    #[test]
    fn what_cannot_be_waited_for_is_said() {
        let asked = |change: fn(&mut api::StartRequest)| {
            let mut request = api::StartRequest::default();
            change(&mut request);
            Awaited::of(&request).map(|all| all.len())
        };
        assert_eq!(asked(|r| r.after = vec!["a".into(); 100]), Ok(100));
        let many = asked(|r| {
            r.after = vec!["a".into(); 60];
            r.after_any = vec!["a".into(); 41];
        });
        assert!(many.unwrap_err().contains("more than 100"));
        let refused = asked(|r| {
            r.after = vec!["a".into()];
            r.no_queue = true;
        });
        assert!(refused.unwrap_err().contains("no_queue"));
    }
}
