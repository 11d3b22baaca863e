//! What can go wrong on a worker, and the gRPC status each of it becomes.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{ids::JobId, proto};

/// The longest message sent, in characters: of a path, percent-encoded, most.
const MAX_MESSAGE: usize = 4500;

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// No job of this id was ever started here, or it was forgotten since.
    #[error("job {0} is not on this worker")]
    JobNotFound(JobId),
    /// The job to stop has ended.
    #[error("job {0} has ended already")]
    JobFinished(JobId),
    /// An id is used once and never again.
    #[error("job {0} was started before")]
    JobExists(JobId),
    /// The worker is shutting down.
    #[error("worker {0} is shutting down and takes no more jobs")]
    Draining(String),
    /// The request belongs to a registration that is over.
    #[error("the request belongs to an earlier registration of worker {0}")]
    SessionOver(String),
    /// A scheduler of the past calls.
    #[error(
        "worker {worker} has heard of epoch {known} of the scheduler; this call is of {called}"
    )]
    EpochOver {
        /// The worker's name.
        worker: String,
        /// The highest epoch it has heard of.
        known: u64,
        /// That of the call.
        called: u64,
    },
    /// The job cannot be run here.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A reader claims to have read what was never written.
    #[error("offset {offset} is past the end of the output, which has {end} bytes")]
    OffsetPastEnd {
        /// What was asked for.
        offset: u64,
        /// What is there.
        end: u64,
    },
    /// The bound on readers is reached.
    #[error("worker {worker} has its {limit} followers already")]
    TooManyFollowers {
        /// The worker's name.
        worker: String,
        /// So many it has at most.
        limit: u32,
    },
    /// A request that cannot be meant.
    #[error("{0}")]
    BadRequest(String),
    /// The machine let the worker down.
    #[error("worker {worker} could not {what}: {why}")]
    Io {
        /// The worker's name.
        worker: String,
        /// What it tried.
        what: &'static str,
        /// The system's words.
        why: String,
    },
}

/// Why a job cannot be run on this worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nothing of that name.
    #[error("program {program} not found on worker {worker}")]
    ProgramNotFound {
        /// As asked for.
        program: String,
        /// The worker's name.
        worker: String,
    },
    /// It is there and may not be executed.
    #[error("{program} is not executable on worker {worker}: {why}")]
    NotExecutable {
        /// As asked for.
        program: String,
        /// The worker's name.
        worker: String,
        /// The system's words, or ours.
        why: String,
    },
    /// Nothing of that name in the script folder.
    #[error("script {path} not found in the script folder of worker {worker}")]
    ScriptNotFound {
        /// As asked for.
        path: String,
        /// The worker's name.
        worker: String,
    },
    /// The path, or a link on it, leads out of the script folder.
    #[error("script {path} is outside the script folder of worker {worker}")]
    OutsideScriptFolder {
        /// As asked for.
        path: String,
        /// The worker's name.
        worker: String,
    },
    /// A folder, a device, a socket.
    #[error("script {path} on worker {worker} is not a regular file")]
    NotAFile {
        /// As asked for.
        path: String,
        /// The worker's name.
        worker: String,
    },
    /// The operator does not have it run here.
    #[error("program {program} is not allowed on worker {worker}, only {allowed}")]
    CommandNotAllowed {
        /// As asked for.
        program: String,
        /// The worker's name.
        worker: String,
        /// What is.
        allowed: String,
    },
    /// It would have an allowed program run something else.
    #[error(
        "variable {variable} is not allowed on worker {worker}: \
         it can make an allowed program run something else"
    )]
    VariableNotAllowed {
        /// Its name.
        variable: String,
        /// The worker's name.
        worker: String,
    },
    /// The operator does not have jobs of this user here.
    #[error("user {user} is not allowed on worker {worker}, only {allowed}")]
    UserNotAllowed {
        /// As asked for.
        user: String,
        /// The worker's name.
        worker: String,
        /// Who is.
        allowed: String,
    },
    /// The folder to run in.
    #[error("cannot run in {cwd} on worker {worker}: {why}")]
    BadCwd {
        /// As asked for.
        cwd: String,
        /// The worker's name.
        worker: String,
        /// The system's words.
        why: String,
    },
    /// As an earlier version called one kind of [`Refusal::WorkerShort`].
    #[error("the disk of worker {worker} is full, so it takes no jobs")]
    DiskFull {
        /// The worker's name.
        worker: String,
    },
    /// The worker lacks what it needs to start any job, and the job has not begun.
    #[error("worker {worker} cannot start jobs now: {what}")]
    WorkerShort {
        /// The worker's name.
        worker: String,
        /// What is short, or missing.
        what: String,
    },
    /// What the first line of the program names, or the loader it was linked for.
    #[error("{program} cannot be executed on worker {worker}: {interpreter} does not exist")]
    InterpreterNotFound {
        /// As asked for.
        program: String,
        /// The worker's name.
        worker: String,
        /// What is missing.
        interpreter: String,
    },
    /// The kernel said no for a reason of its own.
    #[error("{program} could not be started on worker {worker}: {why}")]
    NotStarted {
        /// As asked for.
        program: String,
        /// The worker's name.
        worker: String,
        /// The system's words.
        why: String,
    },
}

impl Refusal {
    /// The code word.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ProgramNotFound { .. } => "program_not_found",
            Self::NotExecutable { .. } => "not_executable",
            Self::ScriptNotFound { .. } => "script_not_found",
            Self::OutsideScriptFolder { .. } => "outside_script_folder",
            Self::NotAFile { .. } => "not_a_file",
            Self::CommandNotAllowed { .. } => "command_not_allowed",
            Self::VariableNotAllowed { .. } => "variable_not_allowed",
            Self::UserNotAllowed { .. } => "user_not_allowed",
            Self::BadCwd { .. } => "bad_cwd",
            Self::DiskFull { .. } => "disk_full",
            Self::WorkerShort { .. } => "worker_short",
            Self::InterpreterNotFound { .. } => "interpreter_not_found",
            Self::NotStarted { .. } => "not_started",
        }
    }
}

impl Error {
    fn code(&self) -> &'static str {
        match self {
            Self::JobNotFound(_) => "job_not_found",
            Self::JobFinished(_) => "job_finished",
            Self::JobExists(_) => "job_exists",
            Self::Draining(_) => "worker_draining",
            Self::SessionOver(_) => "session_over",
            Self::EpochOver { .. } => "epoch_over",
            Self::Refused(refusal) => refusal.code(),
            Self::OffsetPastEnd { .. } => "offset_past_end",
            Self::TooManyFollowers { .. } => "too_many_followers",
            Self::BadRequest(_) => "bad_request",
            Self::Io { .. } => "worker_io",
        }
    }

    fn status(&self) -> Code {
        match self {
            Self::JobNotFound(_) => Code::NotFound,
            Self::JobExists(_) => Code::AlreadyExists,
            Self::Refused(Refusal::DiskFull { .. }) => Code::ResourceExhausted,
            Self::Refused(Refusal::WorkerShort { .. }) => Code::Unavailable,
            Self::JobFinished(_) | Self::Refused(_) | Self::EpochOver { .. } => {
                Code::FailedPrecondition
            }
            Self::Draining(_) | Self::SessionOver(_) => Code::Unavailable,
            Self::OffsetPastEnd { .. } => Code::OutOfRange,
            Self::TooManyFollowers { .. } => Code::ResourceExhausted,
            Self::BadRequest(_) => Code::InvalidArgument,
            Self::Io { .. } => Code::Internal,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut message = error.to_string();
        // It travels as a header, and more of those than a client takes would
        // break its connection.
        if let Some((cut, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(cut);
            message.push('…');
        }
        let mut status = Status::new(error.status(), message);
        let code = MetadataValue::from_static(error.code());
        status.metadata_mut().insert(proto::CODE, code);
        status
    }
}

/// Why a worker could not begin, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another process has the data folder.
    #[error("{} is in use by another worker", .0.display())]
    DataDirInUse(PathBuf),
    /// Another worker of this machine has the same identity.
    #[error(
        "worker {0} runs already on this machine, with another data folder, of which this one \
         is a copy"
    )]
    RunsAlready(String),
    /// A folder or file of the worker's own.
    #[error("cannot use {}", .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The processes that `/proc` shows are not those of this pid namespace, so a job
    /// could not be ended, and another process might be.
    #[error("/proc shows the processes of another pid namespace")]
    ForeignProc,
    /// A program of the operator's list.
    #[error("cannot allow the program {program}")]
    Program {
        /// As it was written.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A user that jobs are to run as.
    #[error("cannot run jobs as user {user}")]
    User {
        /// Its name.
        user: String,
        /// Why.
        source: io::Error,
    },
    /// A limit of jobs that nothing would make hold.
    #[error("`jobs.{setting}` cannot hold")]
    Limit {
        /// Which, as the settings file calls it.
        setting: &'static str,
        /// Why.
        source: super::limits::Unenforceable,
    },
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] super::journal::OpenError),
    /// The journal cannot be written any more. Jobs go on without the worker.
    #[error("cannot write the journal, and nothing can be promised without it")]
    JournalBroken(#[source] io::Error),
    /// The data folder is not the one that was opened. Jobs go on without the worker.
    #[error(
        "the data folder {} was removed or replaced while the worker ran, and nothing \
         can be promised without it", .0.display()
    )]
    Removed(PathBuf),
    /// Some jobs could not be ended.
    #[error("{0} jobs are still there")]
    StillThere(usize),
    /// The scheduler will not have this worker.
    #[error("the scheduler refused the worker: {0}")]
    Refused(String),
    /// The scheduler does not accept this worker any more. Its jobs go on without it,
    /// unless they are to end with it.
    #[error("the scheduler does not accept worker {name} any more: {message}")]
    Revoked {
        /// The worker's name.
        name: String,
        /// The scheduler's words.
        message: String,
    },
    /// This worker is in no cluster yet.
    #[error("this worker has not joined a cluster")]
    NotJoined,
    /// It has joined another cluster than the one it is invited to.
    #[error("{} belongs to a worker of another cluster: {message}", data.display())]
    OtherCluster {
        /// The data folder.
        data: PathBuf,
        /// Which cluster, and which other one.
        message: String,
    },
    /// The scheduler does not let it join.
    #[error("cannot join at {scheduler}: {message}")]
    NotTaken {
        /// Where it was asked for.
        scheduler: String,
        /// What the scheduler, or the way to it, said.
        message: String,
        /// The scheduler's code word, if it said something.
        word: Option<String>,
    },
    /// Keys or certificates cannot be used.
    #[error("cannot use what says who this worker is")]
    Certificate(#[from] crate::identity::tls::Error),
    /// Their files.
    #[error(transparent)]
    Files(#[from] crate::identity::files::Error),
    /// A key cannot be made.
    #[error("cannot make a key")]
    Key(#[from] crate::identity::ca::Error),
    /// The gRPC server ended by itself.
    #[error("the gRPC server failed")]
    Server(#[from] tonic::transport::Error),
    /// The listener.
    #[error("cannot use the listener")]
    Listener(#[source] io::Error),
}
