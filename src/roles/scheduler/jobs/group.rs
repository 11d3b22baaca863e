//! Jobs that were accepted together. What each of them is about is in its own
//! record; here is what they have in common, and how they stand as a whole.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::{End, Exit, Record, Spec, State};
use crate::{
    api::{self, Counts},
    ids::GroupId,
};

/// A group of jobs. It is stored in this form, and its spec beside it: a field
/// may be added with a default, and none renamed or removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) id: GroupId,
    #[serde(skip)]
    pub(crate) spec: Arc<Spec>,
    pub(crate) count: u32,
    /// It has one job for each worker.
    pub(crate) all: bool,
    /// No more than so many of its jobs are on workers at a time.
    pub(crate) at_once: Option<u32>,
    /// Once a job fails, the rest is stopped.
    pub(crate) stop_on_failure: bool,
    pub(crate) created_at: Timestamp,
    /// How many of its jobs are in each state.
    pub(crate) states: Counts,
    /// Of the first job that failed, in their order; where none did, the highest of
    /// those that were stopped.
    pub(crate) exit_code: u8,
    /// Which job that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed_index: Option<u32>,
    pub(crate) ended_at: Option<Timestamp>,
    /// No job of it starts any more, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stopped: Option<String>,
}

impl Group {
    pub(crate) fn is_final(&self) -> bool {
        self.ended_at.is_some()
    }

    /// One of its jobs stands otherwise than `before`.
    pub(crate) fn moved(&mut self, before: api::JobState, record: &Record) {
        let from = self.states.of(before);
        *from = from.saturating_sub(1);
        self.count_in(record);
        if self.states.live() == 0 {
            self.ended_at = record.kept_from();
        }
    }

    /// One of its jobs was not counted yet.
    pub(crate) fn count_in(&mut self, record: &Record) {
        *self.states.of(record.api_state()) += 1;
        if record.is_final() {
            let index = record.member.as_ref().map(|member| member.index);
            self.count_end(record.api_state(), record.exit_code_of_wait(), index);
        }
    }

    /// In whatever order they end, the exit code is the same. What was stopped, or
    /// waited in vain for another, does not hide why.
    pub(crate) fn count_end(&mut self, state: api::JobState, code: u8, index: Option<u32>) {
        let has_failed = code != 0 && state != api::JobState::Stopped;
        match (has_failed, self.failed_index) {
            (true, None) => (self.exit_code, self.failed_index) = (code, index),
            (true, Some(first)) if index.is_some_and(|index| index < first) => {
                (self.exit_code, self.failed_index) = (code, index);
            }
            (false, None) => self.exit_code = self.exit_code.max(code),
            (_, Some(_)) => {}
        }
    }

    /// How it ended, in one line; empty unless some of its jobs ended otherwise
    /// than with exit code 0.
    pub(crate) fn error_text(&self) -> String {
        match self.states.unsuccessful() {
            0 => String::new(),
            bad => format!("{bad} of {} jobs did not succeed", self.count),
        }
    }

    /// As the HTTP API shows it.
    pub(crate) fn shown(&self) -> api::Group {
        let spec = &self.spec;
        api::Group {
            id: self.id,
            name: spec.name.clone(),
            count: self.count,
            states: self.states,
            command: spec.command.clone(),
            path: spec.path.clone(),
            args: spec.args.clone(),
            labels: spec.labels.iter().map(ToString::to_string).collect(),
            all: self.all,
            at_once: self.at_once,
            stop_on_failure: self.stop_on_failure,
            exit_code: self.exit_code,
            created_at: self.created_at,
            ended_at: self.ended_at,
        }
    }
}

impl Record {
    /// What a command that waited for this job ends with.
    pub(crate) fn exit_code_of_wait(&self) -> u8 {
        let State::Ended { end, .. } = &self.state else {
            return 0;
        };
        let (exit, start_error) = match end {
            End::Failed(exit) | End::Stopped(exit) | End::TimedOut(exit) => (*exit, None),
            End::NotStarted { code } => (None, Some(code.as_str())),
            End::Succeeded | End::Lost => (None, None),
        };
        let (code, signal) = match exit {
            Some(Exit::Code(code)) => (Some(code), None),
            Some(Exit::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        api::exit_code::of(self.api_state(), code, signal, start_error)
    }
}
