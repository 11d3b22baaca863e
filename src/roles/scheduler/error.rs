//! What can go wrong with a request: one enum, and its one translation to HTTP
//! and gRPC, and from a worker's gRPC status back. Status codes appear here and
//! nowhere else. What ends the role itself is [`super::Error`].

use std::{error::Error as _, time::Duration};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use tonic::{Code, Status, metadata::MetadataValue};
use uuid::Uuid;

use super::store;
use crate::{
    api::{self, code},
    identity::{Role, token::TokenId},
    ids::{GroupId, JobId, WorkerId},
    labels,
    net::accept::{MAX_STRANGE, Unfinished},
    proto,
};

/// Why a request of a client or of a worker is not fulfilled.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    BadRequest(String),
    #[error("the body must be JSON, with content-type application/json")]
    UnsupportedMediaType,
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    #[error("no such route: {0}")]
    RouteNotFound(String),
    #[error("{method} is not allowed at {path}")]
    MethodNotAllowed { method: String, path: String },
    #[error("worker address '{0}' is not host:port")]
    BadAddress(String),
    #[error(
        "worker {worker} has heard of epoch {heard} of a scheduler, and this scheduler, of epoch \
         {own}, does not rise above that: no scheduler can have had it, or workers have raised \
         the epoch too often since the scheduler's start. If the worker is to be trusted, restart \
         the scheduler; if not, remove it"
    )]
    EpochRefused {
        worker: String,
        heard: u64,
        own: u64,
    },
    #[error("worker name '{0}' is not 1 to 64 letters, digits, '.', '_' or '-'")]
    BadName(String),
    #[error(
        "label '{0}' is not KEY=VALUE: a key is 1 to 63 letters, digits, '.', '_', '-' or '/', the \
         first a letter or digit, a value 0 to 63 letters, digits, '.', '_' or '-'"
    )]
    BadLabel(String),
    #[error("a worker bears at most {} labels", labels::MAX)]
    TooManyLabels,
    #[error("worker id '{0}' is not a UUID")]
    BadWorkerId(String),
    #[error("worker {asked} not found{}", did_you_mean(.meant, .known))]
    WorkerNotFound {
        asked: String,
        meant: Option<String>,
        /// All names, where they are few.
        known: Vec<String>,
    },
    #[error("worker {asked} is ambiguous: {}", .candidates.join(", "))]
    AmbiguousWorker {
        asked: String,
        candidates: Vec<String>,
    },
    #[error("worker name {name} is taken by worker {id}")]
    WorkerNameTaken { name: String, id: WorkerId },
    #[error(
        "worker {name} ({id}) is connected from {address}: if the data folder of this one, at \
         {refused}, is a copy, remove all of it but `scripts`, and have it join"
    )]
    WorkerIdInUse {
        name: String,
        id: WorkerId,
        address: String,
        /// Of the one that is refused.
        refused: String,
    },
    #[error("the session of worker {0} is over")]
    SessionOver(WorkerId),
    #[error("job {0} not found")]
    JobNotFound(String),
    #[error("job {asked} not found, did you mean {meant}?")]
    JobNameNotFound { asked: String, meant: String },
    #[error("job {asked} is ambiguous: {}", .candidates.join(", "))]
    AmbiguousJob {
        asked: String,
        candidates: Vec<String>,
    },
    #[error("job {job} is on worker {worker} ({id})")]
    JobOnOtherWorker {
        job: JobId,
        worker: String,
        id: WorkerId,
    },
    #[error("job {0} is on no worker")]
    JobOnNoWorker(JobId),
    #[error("job {job} has ended: {how}")]
    JobFinished { job: JobId, how: String },
    #[error("{0} is a group of jobs, and this is about one: name it as {0}/INDEX")]
    NotOneJob(String),
    #[error("{0} is a job, and not a group of jobs")]
    NotAGroup(String),
    #[error("group {group} has ended: {how}")]
    GroupFinished { group: GroupId, how: String },
    #[error("there is no worker to take a job of the group: {0}")]
    NoWorkerMatches(String),
    /// With what it would wait for.
    #[error("no worker has a free slot for the job: {0}")]
    NoFreeSlot(String),
    #[error("worker {0} has registered and is not ready yet")]
    WorkerNotReady(String),
    #[error("worker {0} was asked to end: it takes jobs again when it was started again")]
    WorkerEnding(String),
    #[error("worker {worker} is {state}: drain and stop it first")]
    WorkerNotGone { worker: String, state: &'static str },
    #[error("worker {0} has left")]
    WorkerLeft(String),
    #[error("worker {worker} {why}")]
    WorkerUnreachable {
        worker: String,
        why: String,
        job: Option<JobId>,
    },
    /// The worker answered with an error that carries no code word: a bug there,
    /// or a program that is no worker.
    #[error("worker {worker} failed: {message}")]
    WorkerFailed {
        worker: String,
        message: String,
        job: Option<JobId>,
    },
    /// The worker answered with a reason; code word and message are its own.
    #[error("{message}")]
    Refused {
        code: String,
        message: String,
        kind: Refusal,
        job: Option<JobId>,
    },
    #[error("worker {worker} has {limit} followers already")]
    TooManyFollowers { worker: String, limit: u32 },
    #[error("job {job} has {limit} followers already")]
    TooManyFollowersOfJob { job: JobId, limit: u32 },
    #[error("offset {offset} is past the end of the output of job {job}, which has {end} bytes")]
    OffsetPastEnd { job: JobId, offset: u64, end: u64 },
    #[error("worker {worker} no longer has the output of job {job}")]
    OutputGone { job: JobId, worker: String },
    #[error("the output of job {0} broke off on its worker")]
    OutputBroken(JobId),
    #[error("{ready} of {wanted} workers are ready")]
    NotReady { ready: usize, wanted: usize },
    #[error("the idempotency key was used for another start, which is job {0}")]
    KeyReused(JobId),
    #[error(
        "the idempotency key was used for job {0}, whose record has been deleted: use another key \
         to start it again"
    )]
    KeySpent(JobId),
    #[error("another program holds the lock of the scheduler's records: try again")]
    StoreBusy,
    #[error("no space is left for the scheduler's records")]
    DiskFull(Option<JobId>),
    /// It was done as far as it can be.
    #[error(
        "the stop counts, but cannot be recorded now ({why}): if the scheduler ends before it is, \
         what has not begun begins, and a worker that is away is not told"
    )]
    StopUnrecorded { why: String, job: Option<JobId> },
    #[error("who calls is not known: there is no certificate and no token")]
    Unidentified,
    #[error("{who} may not {call}{}", who_may(.takes))]
    Forbidden {
        who: String,
        call: String,
        /// Who may; empty: nobody.
        takes: Vec<Role>,
    },
    #[error("the token is not valid")]
    BadToken,
    #[error("the token expired at {0:.0}")]
    TokenExpired(Timestamp),
    #[error("the token was used before: it buys one certificate")]
    TokenSpent,
    #[error("the token is a {} token, which is not for this", .0.as_str())]
    WrongToken(api::TokenKind),
    #[error("the token is for the role {0}, which does not join here")]
    TokenOfRole(Role),
    #[error("token {0} not found")]
    TokenNotFound(TokenId),
    #[error("{0} tokens are good already; revoke some")]
    TooManyTokens(usize),
    #[error("the {what} was revoked at {at:.0}")]
    Revoked {
        /// `certificate` or `token`.
        what: &'static str,
        at: Timestamp,
    },
    #[error("the authority that signed the certificate is not trusted any more")]
    AuthorityOver,
    #[error("the certificate expired at {0:.0}")]
    CertificateExpired(Timestamp),
    #[error("certificate {0} not found: nobody of that id has one that was signed here")]
    CertificateNotFound(Uuid),
    #[error("only a certificate can be renewed")]
    NoCertificate,
    #[error("the signing request is not a PKCS #10 request that its own key has signed")]
    BadSigningRequest,
    #[error("this cluster has no authority of its own: its certificates come from elsewhere")]
    NoAuthority,
    #[error("the authority was changed before, and the one before it is trusted until {0:.0}")]
    Overlapping(Timestamp),
    #[error("a worker speaks for itself alone, and this is not worker {0}")]
    NotItself(String),
    #[error("this worker is {called} by its certificate, and not {asked}")]
    NotItsName { called: String, asked: String },
    #[error("'{0}' is not a name of this scheduler")]
    ForeignHost(String),
    #[error("a page of another site asks for this")]
    CrossSite,
    #[error("the scheduler is shutting down")]
    ShuttingDown,
    #[error("an internal error, see the scheduler's log")]
    Internal,
}

/// What sort of refusal a worker's gRPC status stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The worker will not or cannot do it.
    Policy,
    /// The worker does not know the job.
    JobNotFound,
    /// The job is in another state than the request needs.
    Conflict,
    /// The offset lies behind the output.
    PastEnd,
    /// The worker has no room for it now.
    Busy,
    /// The worker's disk is full.
    DiskFull,
}

impl Refusal {
    /// Of a start that was refused long ago, from its code word alone.
    pub(super) fn of_word(code_word: &str) -> Self {
        match code_word {
            code::WORKER_DRAINING | code::WORKER_SHORT | "too_many_followers" => Self::Busy,
            _ => Self::new(code_word, Code::FailedPrecondition),
        }
    }

    fn new(code_word: &str, code: Code) -> Self {
        match code_word {
            code::JOB_NOT_FOUND => return Self::JobNotFound,
            code::JOB_FINISHED => return Self::Conflict,
            "offset_past_end" => return Self::PastEnd,
            "disk_full" => return Self::DiskFull,
            _ => {}
        }
        match code {
            Code::Unavailable | Code::ResourceExhausted => Self::Busy,
            Code::AlreadyExists | Code::Aborted => Self::Conflict,
            Code::OutOfRange => Self::PastEnd,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::InvalidArgument
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Self::Policy,
        }
    }

    fn statuses(self) -> (StatusCode, Code) {
        match self {
            Self::Policy => (StatusCode::UNPROCESSABLE_ENTITY, Code::FailedPrecondition),
            Self::JobNotFound => (StatusCode::NOT_FOUND, Code::NotFound),
            Self::Conflict => (StatusCode::CONFLICT, Code::FailedPrecondition),
            Self::PastEnd => (StatusCode::RANGE_NOT_SATISFIABLE, Code::OutOfRange),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
            Self::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, Code::ResourceExhausted),
        }
    }
}

fn invalid(word: &str) -> (StatusCode, Code, &str) {
    (StatusCode::BAD_REQUEST, Code::InvalidArgument, word)
}

fn not_found(word: &str) -> (StatusCode, Code, &str) {
    (StatusCode::NOT_FOUND, Code::NotFound, word)
}

fn conflict(word: &str) -> (StatusCode, Code, &str) {
    (StatusCode::CONFLICT, Code::FailedPrecondition, word)
}

fn unavailable(word: &str) -> (StatusCode, Code, &str) {
    (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, word)
}

fn unidentified(word: &str) -> (StatusCode, Code, &str) {
    (StatusCode::UNAUTHORIZED, Code::Unauthenticated, word)
}

fn forbidden(word: &str) -> (StatusCode, Code, &str) {
    (StatusCode::FORBIDDEN, Code::PermissionDenied, word)
}

fn who_may(roles: &[Role]) -> String {
    let words: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    match words[..] {
        [] => String::new(),
        _ => format!(": that takes {}", words.join(" or ")),
    }
}

fn did_you_mean(meant: &Option<String>, known: &[String]) -> String {
    match meant {
        Some(name) => format!(", did you mean {name}?"),
        None if known.is_empty() => String::new(),
        None => format!("; there is {}", known.join(", ")),
    }
}

impl From<Unfinished> for Error {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::TooLarge => Self::BodyTooLarge(MAX_STRANGE),
            Unfinished::TooSlow | Unfinished::Broken => Self::BadRequest(unfinished.to_string()),
        }
    }
}

impl Error {
    /// Reads a worker's status. Without a code word, a status that the
    /// transport made up, or that says the worker is not there or too slow,
    /// means that it did not answer.
    pub(super) fn from_status(worker: &str, deadline: Duration, status: &Status) -> Self {
        let word = status
            .metadata()
            .get(proto::CODE)
            .and_then(|word| word.to_str().ok());
        if let Some(word) = word {
            return Self::Refused {
                code: word.to_owned(),
                message: status.message().to_owned(),
                kind: Refusal::new(word, status.code()),
                job: None,
            };
        }
        let worker = worker.to_owned();
        match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => Self::too_slow(&worker, deadline),
            code if code == Code::Unavailable || status.source().is_some() => {
                tracing::debug!(worker, %status, "a call did not reach the worker");
                Self::WorkerUnreachable {
                    worker,
                    why: "cannot be reached".to_owned(),
                    job: None,
                }
            }
            _ => Self::WorkerFailed {
                worker,
                message: status.message().to_owned(),
                job: None,
            },
        }
    }

    /// The worker let the deadline of a call pass.
    pub(super) fn too_slow(worker: &str, deadline: Duration) -> Self {
        Self::WorkerUnreachable {
            worker: worker.to_owned(),
            why: format!("did not answer within {deadline:?}"),
            job: None,
        }
    }

    /// The same error, naming the job under which the outcome is recorded.
    pub(super) fn about(mut self, id: JobId) -> Self {
        if let Self::WorkerUnreachable { job, .. }
        | Self::WorkerFailed { job, .. }
        | Self::Refused { job, .. }
        | Self::DiskFull(job)
        | Self::StopUnrecorded { job, .. } = &mut self
        {
            *job = Some(id);
        }
        self
    }

    /// The same error, of a stop that was done all the same.
    pub(super) fn stop_unrecorded(self) -> Self {
        match self {
            Self::DiskFull(job) => Self::StopUnrecorded {
                why: Self::DiskFull(job).to_string(),
                job,
            },
            Self::StoreBusy => Self::StopUnrecorded {
                why: Self::StoreBusy.to_string(),
                job: None,
            },
            error => error,
        }
    }

    /// A refusal that says nothing about the job: as if there were no answer.
    pub(super) fn unanswered(self) -> Self {
        match self {
            Self::Refused { message, job, .. } => Self::WorkerFailed {
                worker: String::new(),
                message,
                job,
            },
            error => error,
        }
    }

    fn job(&self) -> Option<JobId> {
        match self {
            Self::WorkerUnreachable { job, .. }
            | Self::WorkerFailed { job, .. }
            | Self::DiskFull(job)
            | Self::StopUnrecorded { job, .. }
            | Self::Refused { job, .. } => *job,
            Self::KeyReused(job) | Self::KeySpent(job) => Some(*job),
            Self::JobOnNoWorker(job)
            | Self::JobOnOtherWorker { job, .. }
            | Self::JobFinished { job, .. }
            | Self::OffsetPastEnd { job, .. }
            | Self::OutputGone { job, .. }
            | Self::TooManyFollowersOfJob { job, .. }
            | Self::OutputBroken(job) => Some(*job),
            Self::BadRequest(_)
            | Self::UnsupportedMediaType
            | Self::BodyTooLarge(_)
            | Self::RouteNotFound(_)
            | Self::MethodNotAllowed { .. }
            | Self::BadAddress(_)
            | Self::EpochRefused { .. }
            | Self::BadName(_)
            | Self::BadLabel(_)
            | Self::TooManyLabels
            | Self::BadWorkerId(_)
            | Self::WorkerNotFound { .. }
            | Self::AmbiguousWorker { .. }
            | Self::WorkerNameTaken { .. }
            | Self::WorkerIdInUse { .. }
            | Self::SessionOver(_)
            | Self::JobNotFound(_)
            | Self::JobNameNotFound { .. }
            | Self::AmbiguousJob { .. }
            | Self::NoFreeSlot(_)
            | Self::GroupFinished { .. }
            | Self::NotOneJob(_)
            | Self::NotAGroup(_)
            | Self::NoWorkerMatches(_)
            | Self::WorkerNotReady(_)
            | Self::WorkerEnding(_)
            | Self::WorkerNotGone { .. }
            | Self::WorkerLeft(_)
            | Self::TooManyFollowers { .. }
            | Self::NotReady { .. }
            | Self::Unidentified
            | Self::Forbidden { .. }
            | Self::BadToken
            | Self::TokenExpired(_)
            | Self::TokenSpent
            | Self::WrongToken(_)
            | Self::TokenOfRole(_)
            | Self::TokenNotFound(_)
            | Self::TooManyTokens(_)
            | Self::Revoked { .. }
            | Self::AuthorityOver
            | Self::CertificateExpired(_)
            | Self::CertificateNotFound(_)
            | Self::NoCertificate
            | Self::BadSigningRequest
            | Self::NoAuthority
            | Self::Overlapping(_)
            | Self::NotItself(_)
            | Self::NotItsName { .. }
            | Self::ForeignHost(_)
            | Self::CrossSite
            | Self::ShuttingDown
            | Self::StoreBusy
            | Self::Internal => None,
        }
    }

    /// The worker that does not answer now, if that is why.
    fn worker_away(&self) -> Option<&str> {
        match self {
            Self::WorkerNotReady(worker) | Self::WorkerUnreachable { worker, .. } => Some(worker),
            _ => None,
        }
    }

    /// The code word.
    pub(super) fn code(&self) -> &str {
        self.statuses().2
    }

    /// The HTTP status, the gRPC status and the code word.
    fn statuses(&self) -> (StatusCode, Code, &str) {
        match self {
            Self::BadRequest(_) => invalid("bad_request"),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::InvalidArgument,
                "unsupported_media_type",
            ),
            Self::BodyTooLarge(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::InvalidArgument,
                "body_too_large",
            ),
            Self::RouteNotFound(_) => (
                StatusCode::NOT_FOUND,
                Code::Unimplemented,
                code::ROUTE_NOT_FOUND,
            ),
            Self::MethodNotAllowed { .. } => (
                StatusCode::METHOD_NOT_ALLOWED,
                Code::Unimplemented,
                "method_not_allowed",
            ),
            Self::BadAddress(_) => invalid("bad_address"),
            Self::EpochRefused { .. } => invalid("epoch_refused"),
            Self::BadName(_) => invalid("bad_name"),
            Self::BadLabel(_) => invalid("bad_label"),
            Self::TooManyLabels => invalid("too_many_labels"),
            Self::BadWorkerId(_) => invalid("bad_worker_id"),
            Self::WorkerNotFound { .. } => not_found(code::WORKER_NOT_FOUND),
            Self::AmbiguousWorker { .. } => conflict("ambiguous_worker"),
            Self::WorkerNameTaken { .. } => (
                StatusCode::CONFLICT,
                Code::AlreadyExists,
                code::WORKER_NAME_TAKEN,
            ),
            // Not as a name that is taken, which a worker takes for a last word.
            Self::WorkerIdInUse { .. } => conflict("worker_id_in_use"),
            Self::SessionOver(_) => conflict("session_over"),
            Self::JobNotFound(_) | Self::JobNameNotFound { .. } => not_found(code::JOB_NOT_FOUND),
            Self::AmbiguousJob { .. } => conflict("ambiguous_job"),
            Self::JobOnNoWorker(_) | Self::JobOnOtherWorker { .. } => {
                conflict("job_on_other_worker")
            }
            Self::JobFinished { .. } | Self::GroupFinished { .. } => conflict(code::JOB_FINISHED),
            Self::NotOneJob(_) => conflict(code::NOT_ONE_JOB),
            Self::NotAGroup(_) => conflict("not_a_group"),
            Self::NoWorkerMatches(_) => unavailable(code::NO_FREE_SLOT),
            Self::NoFreeSlot(_) => unavailable(code::NO_FREE_SLOT),
            Self::WorkerNotReady(_) => unavailable("worker_not_ready"),
            Self::WorkerEnding(_) => conflict("worker_ending"),
            Self::WorkerNotGone { .. } => conflict(code::WORKER_NOT_GONE),
            Self::WorkerLeft(_) => conflict("worker_left"),
            Self::WorkerUnreachable { .. } => (
                StatusCode::GATEWAY_TIMEOUT,
                Code::Unavailable,
                code::WORKER_UNREACHABLE,
            ),
            Self::WorkerFailed { .. } => (StatusCode::BAD_GATEWAY, Code::Internal, "worker_failed"),
            Self::Refused { code, kind, .. } => {
                let (http, grpc) = kind.statuses();
                (http, grpc, code)
            }
            Self::TooManyFollowers { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                Code::ResourceExhausted,
                "too_many_followers",
            ),
            Self::TooManyFollowersOfJob { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                Code::ResourceExhausted,
                "too_many_followers_of_job",
            ),
            Self::OffsetPastEnd { .. } => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::OutOfRange,
                "offset_past_end",
            ),
            Self::OutputGone { .. } => not_found("output_gone"),
            Self::OutputBroken(_) => (StatusCode::BAD_GATEWAY, Code::DataLoss, "output_broken"),
            Self::NotReady { .. } => unavailable("not_ready"),
            Self::KeyReused(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                Code::FailedPrecondition,
                "idempotency_key_reused",
            ),
            Self::KeySpent(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                Code::FailedPrecondition,
                "idempotency_key_spent",
            ),
            Self::StoreBusy => unavailable("store_busy"),
            Self::DiskFull(_) => (
                StatusCode::INSUFFICIENT_STORAGE,
                Code::ResourceExhausted,
                "disk_full",
            ),
            Self::StopUnrecorded { .. } => (
                StatusCode::INSUFFICIENT_STORAGE,
                Code::ResourceExhausted,
                "stop_unrecorded",
            ),
            Self::ShuttingDown => unavailable(code::SHUTTING_DOWN),
            Self::Unidentified => unidentified(code::UNIDENTIFIED),
            Self::BadToken => unidentified(code::BAD_TOKEN),
            Self::TokenExpired(_) => unidentified(code::TOKEN_EXPIRED),
            Self::TokenSpent => unidentified(code::TOKEN_SPENT),
            Self::WrongToken(_) | Self::TokenOfRole(_) => unidentified(code::WRONG_TOKEN),
            Self::CertificateExpired(_) => unidentified("certificate_expired"),
            Self::Revoked { .. } | Self::AuthorityOver => unidentified(code::REVOKED),
            Self::Forbidden { .. } => forbidden(code::FORBIDDEN),
            Self::NotItself(_) | Self::NotItsName { .. } => forbidden(code::NOT_ITSELF),
            Self::ForeignHost(_) => forbidden(code::FOREIGN_HOST),
            Self::CrossSite => forbidden(code::CROSS_SITE),
            Self::TokenNotFound(_) => not_found(code::TOKEN_NOT_FOUND),
            Self::CertificateNotFound(_) => not_found(code::CERTIFICATE_NOT_FOUND),
            Self::TooManyTokens(_) => (
                StatusCode::CONFLICT,
                Code::ResourceExhausted,
                "too_many_tokens",
            ),
            Self::NoCertificate => (
                StatusCode::BAD_REQUEST,
                Code::FailedPrecondition,
                "no_certificate",
            ),
            Self::BadSigningRequest => invalid("bad_signing_request"),
            Self::NoAuthority => conflict(code::NO_AUTHORITY),
            Self::Overlapping(_) => conflict(code::AUTHORITIES_OVERLAP),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                Code::Internal,
                "internal",
            ),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Full => Self::DiskFull(None),
            store::Error::Busy => Self::StoreBusy,
            store::Error::Ended => Self::ShuttingDown,
            error @ (store::Error::Folder { .. }
            | store::Error::InUse { .. }
            | store::Error::Newer { .. }
            | store::Error::Replaced { .. }
            | store::Error::Damaged(_)
            | store::Error::Sqlite(_)) => {
                let source = error.source().map(ToString::to_string);
                tracing::error!(%error, source, "a read of the store failed");
                Self::Internal
            }
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, _, code) = self.statuses();
        let body = api::Error {
            error: self.to_string(),
            code: code.to_owned(),
            job_id: self.job(),
            worker: self.worker_away().map(str::to_owned),
        };
        (status, Json(body)).into_response()
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (_, code, word) = error.statuses();
        let mut status = Status::new(code, error.to_string());
        if let Ok(word) = MetadataValue::try_from(word) {
            status.metadata_mut().insert(proto::CODE, word);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    fn refusal(word: &str, code: Code) -> StatusCode {
        let mut status = Status::new(code, "no");
        status
            .metadata_mut()
            .insert(proto::CODE, word.parse().unwrap());
        Error::from_status("w1", DEADLINE, &status).statuses().0
    }

    #[test]
    fn a_code_word_survives_the_trip() {
        let id = WorkerId::random();
        let status = Status::from(Error::SessionOver(id));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let back = Error::from_status("w1", DEADLINE, &status);
        assert_eq!(back.statuses().2, "session_over");
        assert_eq!(
            back.to_string(),
            format!("the session of worker {id} is over")
        );
    }

    #[test]
    fn a_worker_s_word_decides_the_status() {
        for (word, code, http) in [
            ("program_not_found", Code::NotFound, 422),
            ("outside_script_folder", Code::PermissionDenied, 422),
            ("job_not_found", Code::NotFound, 404),
            ("job_finished", Code::FailedPrecondition, 409),
            ("offset_past_end", Code::OutOfRange, 416),
            ("disk_full", Code::Internal, 507),
            ("stopping", Code::Unavailable, 503),
        ] {
            assert_eq!(refusal(word, code).as_u16(), http, "{word}");
        }
    }

    #[test]
    fn a_status_without_a_word_is_no_refusal() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled] {
            let error = Error::from_status("w1", DEADLINE, &Status::new(code, ""));
            assert_eq!(error.statuses().2, "worker_unreachable", "{code:?}");
        }
        let error = Error::from_status("w1", DEADLINE, &Status::unimplemented("no"));
        assert_eq!(error.statuses().2, "worker_failed");
    }

    #[test]
    fn a_worker_s_name_is_guessed() {
        let error = Error::WorkerNotFound {
            asked: "wbe1".to_owned(),
            meant: Some("web1".to_owned()),
            known: Vec::new(),
        };
        assert_eq!(
            error.to_string(),
            "worker wbe1 not found, did you mean web1?"
        );
        let error = Error::WorkerNotFound {
            asked: "w9".to_owned(),
            meant: None,
            known: vec!["w1".to_owned(), "w2".to_owned()],
        };
        assert_eq!(error.to_string(), "worker w9 not found; there is w1, w2");
    }

    /// Every code word, with its HTTP status, as they stand in the table of this file.
    fn codes() -> BTreeSet<(String, u16)> {
        let source = include_str!("error.rs");
        let (_, table) = source.split_once("fn statuses(&self) -> (").unwrap();
        let (table, _) = table.split_once("impl From<store::Error>").unwrap();
        let constants = include_str!("../../api.rs");
        let (_, constants) = constants.split_once("pub mod code {").unwrap();
        let status_of = |text: &str| {
            let of_helper = [
                ("invalid(", 400),
                ("unidentified(", 401),
                ("forbidden(", 403),
                ("not_found(", 404),
                ("conflict(", 409),
                ("unavailable(", 503),
            ];
            let helper = of_helper.iter().find(|(name, _)| text.starts_with(name));
            let named = || {
                let name = text
                    .strip_prefix("StatusCode::")?
                    .split([',', ' '])
                    .next()?;
                let name = name.trim_end_matches(';').replace('_', " ").to_lowercase();
                let all = (100..600).filter_map(|code| StatusCode::from_u16(code).ok());
                let is = |code: &StatusCode| {
                    let reason = code.canonical_reason().unwrap_or_default();
                    reason.to_lowercase().replace('-', " ") == name
                };
                all.into_iter().find(is).map(|code| code.as_u16())
            };
            helper.map(|(_, code)| *code).or_else(named)
        };
        let word_of = |text: &str| {
            let end = |text: &str| {
                text.split(['"', ',', ')', ' ', '\n'])
                    .next()
                    .map(str::to_owned)
            };
            if let Some(rest) = text.strip_prefix("code::") {
                let constant = format!("const {}: &str = \"", end(rest)?);
                return end(constants.split_once(&constant)?.1);
            }
            end(text.strip_prefix('"')?)
        };
        let (mut found, mut status, mut at) = (BTreeSet::new(), 0, 0);
        while let Some(rest) = table.get(at..) {
            status = status_of(rest).unwrap_or(status);
            if let Some(word) = word_of(rest) {
                at += rest[1..].find(['"', ',', ')']).unwrap_or(0) + 1;
                found.insert((word, status));
            }
            at += 1;
        }
        found
    }

    #[test]
    fn every_code_word_is_documented() {
        let page = include_str!("../../../docs/api.md");
        let rows = page.lines().filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let (status, word) = (cells.next()?, cells.next()?);
            let word = word.strip_prefix('`')?.strip_suffix('`')?;
            Some((word.to_owned(), status.parse().ok()?))
        });
        let documented: BTreeSet<(String, u16)> = rows.collect();
        let codes = codes();
        assert!(codes.contains(&("store_busy".to_owned(), 503)) && codes.len() > 50);
        assert_eq!(documented, codes);
    }
}
