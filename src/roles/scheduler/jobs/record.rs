//! A job's record: what was asked for, how it stands, and which state may
//! follow which. Pure; where records are kept is `table.rs`.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{attempts::Attempt, prerequisites::Prerequisite};
use crate::{
    api::{self, OnLost},
    ids::{self, GroupId, JobId, WorkerId},
    labels::{self, Requirement},
    net::bounds::Bounds,
    roles::scheduler::{
        placement::{Turn, Wanted},
        registry::Session,
        store::Env,
    },
};

/// The longest path that Linux takes (PATH_MAX).
const MAX_PATH: usize = 4096;

/// What is to be run, and where, checked. It is stored in this form: a field may
/// be added with a default, and none renamed or removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) command: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) args: Vec<String>,
    /// The names alone: values may be secrets, and are kept apart and no longer
    /// than they are needed.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) timeout: Option<Duration>,
    /// What its worker's labels must be like; in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) labels: Vec<Requirement>,
    /// What is higher is placed first.
    #[serde(default)]
    pub(crate) priority: i32,
    /// Before the wall clock shows this it is not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_before: Option<Timestamp>,
    /// Before so long after it was accepted it is not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) delay: Option<Duration>,
    /// How long it may wait for a worker, from when it may start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline: Option<Duration>,
    /// How often it is tried again after it failed.
    #[serde(default)]
    pub(crate) retries: u32,
    /// Before the first of them; None: as long as is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_pause: Option<Duration>,
    #[serde(default)]
    pub(crate) on_lost: OnLost,
}

impl Spec {
    /// What the request asks for, with the values of its environment, or in one
    /// line what is wrong with it. An empty command or path counts as none.
    pub(crate) fn new(asked: api::StartRequest, bounds: &Bounds) -> Result<(Self, Env), String> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let mut wanted = asked
            .labels
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Requirement>, _>>()?;
        wanted.sort_by_key(ToString::to_string);
        wanted.dedup();
        let delay = delay(&asked)?;
        let env = asked.env;
        let spec = Self {
            command: given(asked.command),
            path: given(asked.path),
            args: asked.args,
            env: env.keys().cloned().collect(),
            cwd: asked.cwd,
            user: given(asked.user),
            name: asked.name,
            timeout: asked.timeout_ms.map(Duration::from_millis),
            labels: wanted,
            priority: asked.priority.map_or(0, api::Priority::value),
            not_before: asked.not_before,
            delay,
            deadline: asked.deadline_ms.map(Duration::from_millis),
            retries: asked.retries,
            retry_pause: asked.retry_pause_ms.map(Duration::from_millis),
            on_lost: asked.on_lost,
        };
        spec.check(&env, bounds)?;
        Ok((spec, env))
    }

    fn check(&self, env: &Env, bounds: &Bounds) -> Result<(), String> {
        if self.command.is_none() && self.path.is_none() {
            return Err("command and path are both empty".to_owned());
        }
        bounds.check_args(&self.args, env)?;
        let texts = [
            ("command", &self.command),
            ("path", &self.path),
            ("cwd", &self.cwd),
            ("user", &self.user),
        ];
        let texts = texts
            .into_iter()
            .filter_map(|(field, text)| text.as_ref().map(|text| (field, text)));
        let args = self.args.iter().map(|arg| ("args", arg));
        let env = env
            .iter()
            .flat_map(|(name, value)| [("env", name), ("env", value)]);
        let texts: Vec<_> = texts.collect();
        if let Some((field, _)) = texts.iter().find(|(_, text)| text.len() > MAX_PATH) {
            return Err(format!("{field} is longer than {MAX_PATH} bytes"));
        }
        for (field, text) in texts.into_iter().chain(args).chain(env) {
            if text.contains('\0') {
                return Err(format!("{field} contains a NUL byte"));
            }
        }
        if let Some(name) = self
            .env
            .iter()
            .find(|name| name.is_empty() || name.contains('='))
        {
            return Err(format!("env name '{name}' is empty or contains '='"));
        }
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.starts_with('/')) {
            return Err(format!("cwd '{cwd}' is not absolute"));
        }
        if let Some(name) = self.name.as_ref().filter(|name| !ids::is_name(name)) {
            return Err(format!(
                "name '{name}' is not 1 to 64 letters, digits, '.', '_' or '-'"
            ));
        }
        let longest = Duration::from_millis(api::MAX_DURATION_MS);
        if self.retries > api::MAX_RETRIES {
            return Err(format!("retries is more than {}", api::MAX_RETRIES));
        }
        for (field, duration) in [
            ("timeout_ms", self.timeout),
            ("deadline_ms", self.deadline),
            ("retry_pause_ms", self.retry_pause),
        ] {
            if duration.is_some_and(|duration| duration.is_zero() || duration > longest) {
                let most = api::MAX_DURATION_MS;
                return Err(format!("{field} is not between 1 and {most}"));
            }
        }
        if self.labels.len() > labels::MAX {
            return Err(format!("more than {} labels", labels::MAX));
        }
        let highest = api::MAX_PRIORITY;
        if !(-highest..=highest).contains(&self.priority) {
            return Err(format!("priority is not between -{highest} and {highest}"));
        }
        Ok(())
    }
}

/// How long a job is not to be started.
fn delay(asked: &api::StartRequest) -> Result<Option<Duration>, String> {
    let is_later = asked.not_before.is_some() || asked.delay_ms.is_some();
    match asked.delay_ms {
        Some(_) if asked.not_before.is_some() => {
            Err("there are both not_before and delay_ms".to_owned())
        }
        Some(delay) if delay > api::MAX_DURATION_MS => {
            Err(format!("delay_ms is more than {}", api::MAX_DURATION_MS))
        }
        _ if is_later && asked.no_queue => {
            Err("a job that starts later cannot be refused with no_queue".to_owned())
        }
        delay => Ok(delay.map(Duration::from_millis)),
    }
}

/// A job's main process, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: Option<u32>,
    pub(crate) since: Option<Timestamp>,
    /// How long there were processes of the job, by a monotonic clock of its
    /// machine; None before its end, and where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ran: Option<Duration>,
    /// Processes that it left when it ended, and that were ended.
    #[serde(default, skip_serializing_if = "is_none_swept")]
    pub(crate) swept: u32,
}

fn is_none_swept(count: &u32) -> bool {
    *count == 0
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// Exit code 0.
    Succeeded,
    Failed(Option<Exit>),
    /// It never ran; `code` says why, as a code word.
    NotStarted {
        code: String,
    },
    Stopped(Option<Exit>),
    TimedOut(Option<Exit>),
    Lost,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It waits for a worker.
    Queued,
    /// It was given to a worker.
    Pending {
        /// Our own StartJob is under way, or about to be: its answer decides,
        /// and nothing else may give the job up before.
        call_open: bool,
    },
    Running(Process),
    Unknown {
        /// None: it was never confirmed that it started.
        process: Option<Process>,
        why: String,
        doubt: Doubt,
    },
    Ended {
        process: Option<Process>,
        at: Timestamp,
        end: End,
        /// How it ended, in one line; empty after exit code 0.
        reason: String,
    },
}

/// Why it is not known how a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Doubt {
    /// Its start was never answered.
    Unconfirmed,
    /// Its worker does not answer.
    WorkerUnreachable,
}

/// What a worker says of a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) output_bytes: u64,
}

/// Why a worker can have neither a process nor a result of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It registered anew and did not name the job.
    Restarted,
    /// It said goodbye.
    Left,
    /// An admin removed the worker of this name.
    Removed(Arc<str>),
}

/// What may change a job's state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// The worker says how it stands.
    Reported(State),
    /// The worker refused to start it.
    Refused { code: String, reason: String },
    /// The worker did not answer the call that starts it.
    Unconfirmed { why: String },
    /// The worker has not answered for a while.
    WorkerUnreachable { why: String },
    /// The worker cannot have it. One that was never confirmed to run is sent again,
    /// or if its worker left, goes to another.
    Gone(Gone),
    /// It is being sent again, to a worker that has proved not to know it.
    SentAgain,
    /// It is not to be started any more, and its worker has proved not to know it,
    /// or it has none.
    GivenUp { end: End, reason: String },
    /// It was given to a worker, and is about to be sent there.
    Placed,
    /// Its worker takes no jobs now, and has not taken this one.
    TurnedAway,
    /// Its worker has proved to know nothing of it, and cannot be called.
    NotThere,
}

impl End {
    /// How its process ended, or the code word that says why it has none.
    pub(crate) fn exit(&self) -> (Option<Exit>, Option<String>) {
        match self {
            Self::Succeeded => (Some(Exit::Code(0)), None),
            Self::Failed(exit) | Self::Stopped(exit) | Self::TimedOut(exit) => (*exit, None),
            Self::NotStarted { code } => (None, Some(code.clone())),
            Self::Lost => (None, None),
        }
    }
}

impl Exit {
    /// The exit code, or the signal.
    pub(crate) fn parts(exit: Option<Self>) -> (Option<i32>, Option<i32>) {
        match exit {
            Some(Self::Code(code)) => (Some(code), None),
            Some(Self::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        }
    }
}

impl State {
    /// An ended job never changes again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Queued | Self::Pending { .. } | Self::Running(_) | Self::Unknown { .. } => false,
            Self::Ended { .. } => true,
        }
    }

    /// Nobody has said that its process ever ran.
    pub(crate) fn is_unconfirmed(&self) -> bool {
        match self {
            Self::Queued | Self::Pending { .. } => true,
            Self::Unknown { process, .. } => process.is_none(),
            Self::Running(_) | Self::Ended { .. } => false,
        }
    }

    /// It never ran as far as anybody knows, and no call that starts it is open.
    pub(crate) fn may_be_sent(&self) -> bool {
        match self {
            Self::Pending { call_open } => !call_open,
            Self::Unknown { process, .. } => process.is_none(),
            Self::Queued | Self::Running(_) | Self::Ended { .. } => false,
        }
    }

    /// How it stands after the scheduler was restarted: nobody has been heard of
    /// yet, and no call is under way.
    pub(crate) fn after_restart(self, worker: &str) -> Self {
        match self {
            Self::Queued => self,
            Self::Pending { .. } | Self::Running(_) | Self::Unknown { .. } => Self::Unknown {
                process: self.process(),
                why: format!(
                    "the scheduler was restarted and has not heard of worker {worker} since"
                ),
                doubt: Doubt::WorkerUnreachable,
            },
            Self::Ended { .. } => self,
        }
    }

    pub(crate) fn process(&self) -> Option<Process> {
        match self {
            Self::Queued | Self::Pending { .. } => None,
            Self::Running(process) => Some(*process),
            Self::Unknown { process, .. } | Self::Ended { process, .. } => *process,
        }
    }

    /// As the HTTP API shows it.
    pub(crate) fn shown(&self) -> api::JobState {
        match self {
            Self::Queued | Self::Pending { .. } => api::JobState::Pending,
            Self::Running(_) => api::JobState::Running,
            Self::Unknown { .. } => api::JobState::Unknown,
            Self::Ended { end, .. } => match end {
                End::Succeeded => api::JobState::Succeeded,
                End::Failed(_) | End::NotStarted { .. } => api::JobState::Failed,
                End::Stopped(_) => api::JobState::Stopped,
                End::TimedOut(_) => api::JobState::TimedOut,
                End::Lost => api::JobState::Lost,
            },
        }
    }

    /// The state that follows; None where the event changes nothing.
    pub(crate) fn after(&self, event: Event) -> Option<Self> {
        if self.is_final() {
            return None;
        }
        if *self == Self::Queued {
            return match event {
                Event::Placed => Some(Self::Pending { call_open: true }),
                Event::GivenUp { end, reason } => Some(given_up(end, reason)),
                // It is on no worker: none has anything to say of it.
                Event::Reported(_)
                | Event::Refused { .. }
                | Event::Unconfirmed { .. }
                | Event::WorkerUnreachable { .. }
                | Event::Gone(_)
                | Event::SentAgain
                | Event::TurnedAway
                | Event::NotThere => None,
            };
        }
        let known = self.process();
        match event {
            Event::Placed => None,
            Event::TurnedAway => match self {
                Self::Pending { call_open: true } => Some(Self::Queued),
                _ => None,
            },
            Event::NotThere => self.may_be_sent().then_some(Self::Queued),
            Event::Reported(Self::Queued) => None,
            Event::Reported(Self::Pending { .. }) => match self {
                Self::Unknown { .. } => Some(Self::Pending { call_open: false }),
                Self::Queued | Self::Pending { .. } | Self::Running(_) | Self::Ended { .. } => None,
            },
            Event::Reported(Self::Running(process)) => Some(Self::Running(
                merged(Some(process), known).unwrap_or_default(),
            )),
            // Doubt is the scheduler's own: no worker has any about its jobs.
            Event::Reported(Self::Unknown { .. }) => None,
            Event::Reported(Self::Ended {
                process,
                at,
                end,
                reason,
            }) => Some(Self::Ended {
                process: merged(process, known),
                at,
                end,
                reason,
            }),
            Event::Refused { code, reason } => match self {
                Self::Pending { .. } => Some(Self::Ended {
                    process: None,
                    at: now(),
                    end: End::NotStarted { code },
                    reason,
                }),
                // The worker has reported it: that it once refused is refuted.
                Self::Queued | Self::Running(_) | Self::Unknown { .. } | Self::Ended { .. } => None,
            },
            Event::Unconfirmed { why } => match self {
                Self::Pending { .. } => Some(Self::Unknown {
                    process: None,
                    why,
                    doubt: Doubt::Unconfirmed,
                }),
                Self::Queued | Self::Running(_) | Self::Unknown { .. } | Self::Ended { .. } => None,
            },
            Event::WorkerUnreachable { why } => match self {
                Self::Queued | Self::Pending { call_open: true } => None,
                Self::Pending { call_open: false } | Self::Running(_) | Self::Unknown { .. } => {
                    Some(Self::Unknown {
                        process: known,
                        why,
                        doubt: Doubt::WorkerUnreachable,
                    })
                }
                Self::Ended { .. } => None,
            },
            Event::Gone(gone) => match (self, &gone) {
                (Self::Pending { call_open: true }, _) => None,
                (_, Gone::Restarted) if self.is_unconfirmed() => None,
                // It says goodbye only when it has told of every job that it began,
                // and begins none after that.
                (_, Gone::Left) if self.is_unconfirmed() => Some(Self::Queued),
                _ => {
                    let reason = match gone {
                        Gone::Restarted => "lost: worker restarted".to_owned(),
                        Gone::Left => "lost: worker left".to_owned(),
                        Gone::Removed(worker) => format!("lost: worker {worker} was removed"),
                    };
                    Some(Self::Ended {
                        process: known,
                        at: now(),
                        end: End::Lost,
                        reason,
                    })
                }
            },
            Event::SentAgain => self
                .may_be_sent()
                .then_some(Self::Pending { call_open: true }),
            Event::GivenUp { end, reason } => self.may_be_sent().then(|| given_up(end, reason)),
        }
    }
}

fn given_up(end: End, reason: String) -> State {
    State::Ended {
        process: None,
        at: now(),
        end,
        reason,
    }
}

/// What is said now, and what was known before where that says nothing.
fn merged(said: Option<Process>, known: Option<Process>) -> Option<Process> {
    match (said, known) {
        (Some(said), Some(known)) => Some(Process {
            pid: said.pid.or(known.pid),
            since: said.since.or(known.since),
            ran: said.ran.or(known.ran),
            swept: said.swept.max(known.swept),
        }),
        (said, known) => said.or(known),
    }
}

/// As exact as a time survives the wire, so that a job keeps its place in the
/// order of jobs when a worker tells of it later.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Where a job was given to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) worker: WorkerId,
    pub(crate) worker_name: Arc<str>,
    /// The registration of the worker under which it was sent there, or last
    /// reported from there.
    pub(crate) session: Session,
    /// Its id there; None: its own, as in every first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<JobId>,
}

/// A job's part in its group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) group: GroupId,
    /// From 0.
    pub(crate) index: u32,
    /// How many there are.
    pub(crate) count: u32,
    /// What is its own: a line of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) item: Option<Box<str>>,
    /// The group bounds how many of its jobs are on workers at a time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_bound: bool,
}

/// A job and all that is known of it. It is stored in this form, and its spec
/// beside it: a field may be added with a default, and none renamed or removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: JobId,
    #[serde(skip)]
    pub(crate) spec: Arc<Spec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) member: Option<Member>,
    /// The worker it must go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wanted: Option<WorkerId>,
    /// None: it waits for a worker, or ended before it got one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<Place>,
    pub(crate) state: State,
    /// Of its last attempt.
    pub(crate) output_bytes: u64,
    pub(crate) created_at: Timestamp,
    /// That moment by the time by which durations are counted; None: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counts_from: Option<Timestamp>,
    /// When the wall clock showed the time it waited for, by the counted time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ripe_at: Option<Timestamp>,
    /// Asked for while its worker was away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stop: Option<RecordedStop>,
    /// Those that ended, and that were or will be followed by another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) attempts: Vec<Attempt>,
    /// Before this, by the counted time, the next attempt does not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_at: Option<Timestamp>,
    /// A stop was asked for: no attempt follows the one it has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_last: bool,
    /// It does not start before these have ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) after: Vec<Prerequisite>,
}

/// A stop that waits for the job's worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordedStop {
    /// None: TERM.
    pub(crate) signal: Option<i32>,
    /// From that signal to KILL; None: the worker's own.
    pub(crate) grace: Option<Duration>,
}

/// Said of a stop that waits.
pub(crate) const STOP_RECORDED: &str = "the stop is recorded and will be delivered when it is back";

impl Record {
    pub(crate) fn is_final(&self) -> bool {
        self.state.is_final()
    }

    /// What it asks of the worker it goes to.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            worker: self.wanted,
            labels: self.spec.labels.clone(),
            bound_by: self.bound_by(),
        }
    }

    /// Its place in the line of those that wait for the same.
    pub(crate) fn turn(&self) -> Turn {
        Turn {
            priority: Reverse(self.spec.priority),
            since: self.counts_from(),
            index: self.index(),
            job: self.id,
        }
    }

    /// What it is called in a sentence: `3f2a8b1c9d4e`, or `3f2a8b1c9d4e/7` of a group.
    pub(crate) fn label(&self) -> String {
        match &self.member {
            Some(member) => format!("{}/{}", member.group.short(), member.index),
            None => self.id.short(),
        }
    }

    /// The group it belongs to.
    pub(crate) fn group(&self) -> Option<GroupId> {
        self.member.as_ref().map(|member| member.group)
    }

    /// Its number in its group.
    pub(crate) fn index(&self) -> u32 {
        self.member.as_ref().map_or(0, |member| member.index)
    }

    /// The group that bounds how many of its jobs are on workers.
    pub(crate) fn bound_by(&self) -> Option<GroupId> {
        let member = self.member.as_ref().filter(|member| member.is_bound);
        member.map(|member| member.group)
    }

    /// The worker it was given to.
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        self.place.as_ref().map(|place| place.worker)
    }

    /// What people call that worker; empty if there is none.
    pub(crate) fn worker_name(&self) -> &str {
        self.place.as_ref().map_or("", |place| &place.worker_name)
    }

    /// It has ended without ever having had a process.
    pub(crate) fn never_ran(&self) -> bool {
        if !self.attempts.is_empty() {
            return false;
        }
        match &self.state {
            State::Queued | State::Pending { .. } | State::Running(_) | State::Unknown { .. } => {
                false
            }
            State::Ended { process, end, .. } => match end {
                End::NotStarted { .. } => true,
                End::Lost => process.is_none(),
                End::Stopped(exit) => process.is_none() && exit.is_none() && self.output_bytes == 0,
                // It waited too long.
                End::TimedOut(_) => self.place.is_none(),
                End::Succeeded | End::Failed(_) => false,
            },
        }
    }

    /// About from when on the time counts for which an ended job is kept, as it is
    /// shown: it is counted from when its end was recorded.
    pub(crate) fn kept_from(&self) -> Option<Timestamp> {
        match &self.state {
            State::Ended { at, .. } => Some((*at).max(self.created_at)),
            State::Queued | State::Pending { .. } | State::Running(_) | State::Unknown { .. } => {
                None
            }
        }
    }

    /// How it ended, in one line; empty unless it ended otherwise than with
    /// exit code 0.
    pub(crate) fn error_text(&self) -> String {
        let State::Ended { end, reason, .. } = &self.state else {
            return String::new();
        };
        match (end, reason.is_empty()) {
            (End::Succeeded, _) => String::new(),
            // A worker always says how; this is for one that does not.
            (_, true) => self.api_state().as_str().to_owned(),
            (_, false) => reason.clone(),
        }
    }

    /// What a reader sees in the field `reason`.
    fn reason(&self) -> Option<String> {
        match &self.state {
            // What it waits for is known to those who place it.
            State::Queued => None,
            State::Pending { .. } => {
                Some(format!("being started on worker {}", self.worker_name()))
            }
            State::Running(_) => None,
            State::Unknown { why, .. } if self.stop.is_some() => {
                Some(format!("{why}; {STOP_RECORDED}"))
            }
            State::Unknown { why, .. } => Some(why.clone()),
            State::Ended { reason, .. } => Some(reason.clone()).filter(|text| !text.is_empty()),
        }
    }

    pub(crate) fn api_state(&self) -> api::JobState {
        self.state.shown()
    }

    /// The record as the HTTP API shows it; how long it is kept is not said here.
    pub(crate) fn job(&self) -> api::Job {
        let process = self.state.process();
        let ((exit, start_error), ended_at) = match &self.state {
            State::Ended { end, at, .. } => (end.exit(), Some(*at)),
            State::Queued | State::Pending { .. } | State::Running(_) | State::Unknown { .. } => {
                ((None, None), None)
            }
        };
        let (exit_code, signal) = Exit::parts(exit);
        let spec = &self.spec;
        api::Job {
            id: self.id,
            group_id: self.group(),
            index: self.member.as_ref().map(|member| member.index),
            item: self
                .member
                .as_ref()
                .and_then(|member| member.item.as_deref().map(str::to_owned)),
            name: spec.name.clone(),
            state: self.api_state(),
            reason: self.reason(),
            worker_id: self.worker(),
            worker: self
                .place
                .as_ref()
                .map(|place| place.worker_name.to_string()),
            command: spec.command.clone(),
            path: spec.path.clone(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            user: spec.user.clone(),
            labels: spec.labels.iter().map(ToString::to_string).collect(),
            priority: spec.priority,
            timeout_ms: spec.timeout.map(api::whole_milliseconds),
            not_before: self.asked_not_before(),
            deadline_ms: spec.deadline.map(api::whole_milliseconds),
            retries: spec.retries,
            retry_pause_ms: spec.retry_pause.map(api::whole_milliseconds),
            on_lost: spec.on_lost,
            attempt: self.attempt(),
            attempts: self.shown_attempts(),
            after: self.shown_prerequisites(),
            pid: process.and_then(|process| process.pid),
            exit_code,
            signal,
            start_error,
            output_bytes: self.all_output_bytes(),
            created_at: self.created_at,
            started_at: process.and_then(|process| process.since),
            ended_at,
            ran_ms: process.and_then(|process| process.ran.map(api::whole_milliseconds)),
            swept: process.map_or(0, |process| process.swept),
            kept_until: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn record(state: State) -> Record {
        Record {
            id: JobId::random(),
            spec: Arc::new(Spec {
                command: Some("true".to_owned()),
                timeout: Some(Duration::from_secs(600)),
                ..Spec::default()
            }),
            member: None,
            wanted: None,
            place: Some(Place {
                worker: WorkerId::random(),
                worker_name: "w1".into(),
                session: Session::random(),
                run: None,
            }),
            state,
            output_bytes: 0,
            created_at: now(),
            counts_from: None,
            ripe_at: None,
            stop: None,
            attempts: Vec::new(),
            retry_at: None,
            is_last: false,
            after: Vec::new(),
        }
    }

    fn ended(end: End, reason: &str) -> State {
        State::Ended {
            process: None,
            at: now(),
            end,
            reason: reason.to_owned(),
        }
    }

    fn text(end: End, reason: &str) -> String {
        record(ended(end, reason)).error_text()
    }

    #[test]
    fn an_error_text_is_the_reason_unless_the_job_succeeded() {
        let exit = Some(Exit::Code(3));
        assert_eq!(text(End::Failed(exit), "exit status 3"), "exit status 3");
        assert_eq!(text(End::Failed(exit), ""), "failed");
        assert_eq!(text(End::Succeeded, ""), "");
        assert_eq!(text(End::Succeeded, "5 bytes of output lost"), "");
        let job = record(ended(End::Succeeded, "5 bytes of output lost")).job();
        assert_eq!(job.reason.as_deref(), Some("5 bytes of output lost"));
    }

    fn spec(change: impl FnOnce(&mut api::StartRequest)) -> Result<Spec, String> {
        let mut request = api::StartRequest {
            command: Some("echo".to_owned()),
            ..Default::default()
        };
        change(&mut request);
        Spec::new(request, &Bounds::default()).map(|(spec, _)| spec)
    }

    #[test]
    fn a_start_is_checked() {
        assert!(spec(|_| {}).is_ok());
        assert!(
            spec(|r| r.path = Some(String::new()))
                .unwrap()
                .path
                .is_none()
        );
        for (said, bad) in [
            ("both empty", spec(|r| r.command = Some(String::new()))),
            ("command contains", spec(|r| r.command = Some("a\0".into()))),
            ("path contains", spec(|r| r.path = Some("a\0".into()))),
            ("args contains", spec(|r| r.args = vec!["\0".into()])),
            ("1000 are", spec(|r| r.args = vec![String::new(); 1001])),
            (
                "262144 are",
                spec(|r| r.args = vec!["x".repeat(100_000); 3]),
            ),
            (
                "env name ''",
                spec(|r| drop(r.env.insert(String::new(), String::new()))),
            ),
            (
                "env name 'A=B'",
                spec(|r| drop(r.env.insert("A=B".into(), String::new()))),
            ),
            (
                "env contains",
                spec(|r| drop(r.env.insert("A".into(), "\0".into()))),
            ),
            ("not absolute", spec(|r| r.cwd = Some("tmp".into()))),
            ("name 'a b'", spec(|r| r.name = Some("a b".into()))),
            ("timeout_ms", spec(|r| r.timeout_ms = Some(0))),
            ("timeout_ms", spec(|r| r.timeout_ms = Some(u64::MAX))),
            (
                "`a b` is not `key=value`",
                spec(|r| r.labels = vec!["a b".into()]),
            ),
            ("deadline_ms", spec(|r| r.deadline_ms = Some(0))),
            ("retries", spec(|r| r.retries = 1001)),
            ("retry_pause_ms", spec(|r| r.retry_pause_ms = Some(0))),
            ("delay_ms", spec(|r| r.delay_ms = Some(u64::MAX))),
            (
                "both",
                spec(|r| {
                    r.delay_ms = Some(1);
                    r.not_before = Some(now());
                }),
            ),
            (
                "no_queue",
                spec(|r| {
                    r.delay_ms = Some(1);
                    r.no_queue = true;
                }),
            ),
            (
                "more than 64 labels",
                spec(|r| r.labels = (0..65).map(|n| format!("k{n}")).collect()),
            ),
            (
                "priority",
                spec(|r| r.priority = Some(api::Priority::Number(1_000_001))),
            ),
        ] {
            let error = bad.unwrap_err();
            assert!(error.contains(said), "{error} does not say {said}");
        }
    }

    #[test]
    fn an_unreachable_worker_s_job_is_unknown_and_comes_back() {
        let process = Process {
            pid: Some(7),
            ..Process::default()
        };
        let running = State::Running(process);
        let away = Event::WorkerUnreachable {
            why: "silent".to_owned(),
        };
        let unknown = running.after(away).unwrap();
        assert!(matches!(
            unknown,
            State::Unknown {
                doubt: Doubt::WorkerUnreachable,
                ..
            }
        ));
        let back = Event::Reported(State::Running(Process::default()));
        assert_eq!(unknown.after(back), Some(running));
    }

    #[test]
    fn an_open_call_decides_before_anything_else() {
        let pending = State::Pending { call_open: true };
        assert_eq!(pending.after(Event::Gone(Gone::Restarted)), None);
        let why = "silent".to_owned();
        assert_eq!(pending.after(Event::WorkerUnreachable { why }), None);
    }

    #[test]
    fn a_late_refusal_does_not_end_a_running_job() {
        let refused = Event::Refused {
            code: "x".to_owned(),
            reason: "x".to_owned(),
        };
        assert_eq!(State::Running(Process::default()).after(refused), None);
    }

    fn any_end() -> impl Strategy<Value = End> {
        let exit = prop_oneof![
            Just(None),
            any::<i32>().prop_map(|code| Some(Exit::Code(code))),
            (1..65).prop_map(|signal| Some(Exit::Signal(signal))),
        ];
        (0..6, exit).prop_map(|(which, exit)| match which {
            0 => End::Succeeded,
            1 => End::Failed(exit),
            2 => End::Stopped(exit),
            3 => End::TimedOut(exit),
            4 => End::NotStarted {
                code: "x".to_owned(),
            },
            _ => End::Lost,
        })
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<bool>().prop_map(|call_open| Event::Reported(State::Pending { call_open })),
            any::<Option<u32>>().prop_map(|pid| Event::Reported(State::Running(Process {
                pid,
                ..Process::default()
            }))),
            any_end().prop_map(|end| Event::Reported(ended(end, ""))),
            Just(Event::Refused {
                code: "x".to_owned(),
                reason: "x".to_owned()
            }),
            Just(Event::Unconfirmed {
                why: "x".to_owned()
            }),
            Just(Event::WorkerUnreachable {
                why: "x".to_owned()
            }),
            Just(Event::Gone(Gone::Restarted)),
            Just(Event::Gone(Gone::Left)),
            Just(Event::SentAgain),
            Just(Event::GivenUp {
                end: End::Stopped(None),
                reason: "x".to_owned()
            }),
            Just(Event::Placed),
            Just(Event::TurnedAway),
            Just(Event::NotThere),
        ]
    }

    proptest! {
        #[test]
        fn a_final_record_never_changes(events in prop::collection::vec(any_event(), 1..20)) {
            let mut state = State::Queued;
            let mut end = None;
            for event in events {
                if let Some(next) = state.after(event) {
                    prop_assert_eq!(&end, &None, "an end was followed by something");
                    state = next;
                }
                if state.is_final() {
                    end = Some(state.clone());
                }
            }
            prop_assert!(end.is_none() || end == Some(state));
        }

        #[test]
        fn error_and_state_tell_the_same_story(end in any_end()) {
            let record = record(ended(end, ""));
            let succeeded = record.api_state() == api::JobState::Succeeded;
            prop_assert_eq!(succeeded, record.error_text().is_empty());
        }
    }
}
