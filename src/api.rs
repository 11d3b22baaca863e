//! The bodies of the HTTP API, shared by the scheduler that answers and the
//! client that asks. Fields may be added here, never renamed or removed.
//!
//! Requests refuse fields they do not know, so that a misspelt one is not
//! silently ignored; answers may grow fields, which a client passes over.
//! Times are RFC 3339 in UTC, sizes bytes, durations milliseconds.
//!
//! Wherever a `job_id` is taken it may be a whole id, a prefix of at least four
//! digits, a name (the newest job that bears it) or `last`, and so for a group of
//! jobs; `GROUP/3` is the job of that number in it. A `worker_id` may be a whole
//! id, a prefix or a name.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::{
    identity::{Role, token::TokenId},
    ids::{GroupId, JobId, WorkerId},
};

/// The largest request body taken, in bytes, where a scheduler is not told otherwise.
pub const MAX_BODY: usize = 1024 * 1024;

/// The most bytes of the items of a group together, which are sent one on a line.
pub const MAX_ITEMS_BYTES: usize = 128 * 1024 * 1024;

/// The longest a `/query` with `wait_ms` is held before it is answered anyway.
pub const MAX_WAIT_MS: u64 = 60_000;

/// The most jobs on one page of `GET /jobs`.
pub const MAX_PAGE: usize = 1000;

/// About the most bytes of jobs on one page of `GET /jobs`, unless a single job is
/// larger.
pub const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// A duration as the API has it: in whole milliseconds.
pub fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The longest duration taken: a hundred years.
pub const MAX_DURATION_MS: u64 = 100 * 365 * 24 * 3600 * 1000;

/// The longest two authorities are trusted at once: a year.
pub const MAX_OVERLAP_MS: u64 = 365 * 24 * 3600 * 1000;

/// The header that carries a request's id, in both directions.
pub const REQUEST_ID: &str = "x-request-id";

/// The header of a start that may be repeated: the same key gets the same job.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The longest key taken, in characters.
pub const MAX_KEY: usize = 255;

/// The media type of `GET /logs` as the client reads it: `StreamJobResponse`
/// messages, each behind its length as a varint.
pub const PROTOBUF_STREAM: &str = "application/vnd.jobctl.stream";

/// The media type of `GET /logs` with one JSON object ([`LogLine`]) a line.
pub const NDJSON: &str = "application/x-ndjson";

/// Body of `POST /start`. The process is `command path args…`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// The worker; without it, the scheduler takes one that has room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// The program; without it the script is executed itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A script, relative to the worker's script folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Passed as they are, never to a shell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Set in the job's environment, over what the worker sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The folder to run in, absolute; without it the worker's script folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Whom to run as; without it the worker's usual user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What people call the job; need not be unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Counted from the start of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What the worker's labels must be like: `key=value`, `key!=value`, `key` or
    /// `!key`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Of two jobs that wait, the higher one goes first; without it `medium`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Refuse the job instead of having it wait for a free slot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_queue: bool,
    /// Do not start it before the scheduler's wall clock shows this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Do not start it before so long after it was accepted, whatever the wall clock
    /// is set to; instead of `not_before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Give it up if it has no worker so long after it was accepted, or after
    /// `not_before` if that is later: it is `timed_out` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Start it when these jobs have succeeded; if one of them ends otherwise, it is
    /// `stopped`. With `after_any` [`MAX_AFTER`] at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Start it when these jobs have ended, however that was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after_any: Vec<String>,
    /// How often to try again when it failed or timed out, [`MAX_RETRIES`] at most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Before the first retry; then it doubles, up to 5 minutes. Without it 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_pause_ms: Option<u64>,
    /// What to do when it is lost.
    #[serde(default, skip_serializing_if = "OnLost::is_fail")]
    pub on_lost: OnLost,
    /// A group: one job on each worker that is there and has the labels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// A group of so many jobs, at most [`MAX_GROUP`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// A group of one job for each of these, at most [`MAX_GROUP`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<Vec<String>>,
    /// Of a group: no more than so many jobs on workers at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
    /// Of a group: once a job fails, the rest is stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_on_failure: bool,
}

impl StartRequest {
    /// As lines, for the many items of a group: the request without them, and each of
    /// them on a line of its own. See [`NDJSON`].
    pub fn lines(&self) -> Vec<u8> {
        let mut without = self.clone();
        let items = without.each.take().unwrap_or_default();
        let valid = "a request is always valid JSON";
        let mut lines = serde_json::to_vec(&without).expect(valid);
        for item in items {
            lines.push(b'\n');
            serde_json::to_writer(&mut lines, &item).expect(valid);
        }
        lines
    }

    /// Whether it asks for a group of jobs.
    pub fn is_group(&self) -> bool {
        self.all || self.count.is_some() || self.each.is_some()
    }
}

/// The most jobs of one group.
pub const MAX_GROUP: usize = 100_000;

/// Answer to a `POST /start` that asks for a group, with status 201: all of its
/// jobs are recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartGroupResponse {
    /// The new group, which stands wherever a job may stand.
    pub group_id: GroupId,
    /// How many jobs it has.
    pub count: u32,
    /// With `all`: the workers that have the labels and are not there to take a
    /// job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
}

/// A worker that got none of a group's jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Its name.
    pub worker: String,
    /// Why, in one line.
    pub reason: String,
}

/// How many jobs of a group are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// [`JobState::Pending`].
    pub pending: u32,
    /// [`JobState::Running`].
    pub running: u32,
    /// [`JobState::Unknown`].
    pub unknown: u32,
    /// [`JobState::Succeeded`].
    pub succeeded: u32,
    /// [`JobState::Failed`].
    pub failed: u32,
    /// [`JobState::Stopped`].
    pub stopped: u32,
    /// [`JobState::TimedOut`].
    pub timed_out: u32,
    /// [`JobState::Lost`].
    pub lost: u32,
}

impl Counts {
    /// The number of jobs in that state.
    pub fn of(&mut self, state: JobState) -> &mut u32 {
        match state {
            JobState::Pending => &mut self.pending,
            JobState::Running => &mut self.running,
            JobState::Unknown => &mut self.unknown,
            JobState::Succeeded => &mut self.succeeded,
            JobState::Failed => &mut self.failed,
            JobState::Stopped => &mut self.stopped,
            JobState::TimedOut => &mut self.timed_out,
            JobState::Lost => &mut self.lost,
        }
    }

    /// How many have not ended.
    pub fn live(&self) -> u32 {
        self.pending + self.running + self.unknown
    }

    /// How many ended otherwise than with exit code 0.
    pub fn unsuccessful(&self) -> u32 {
        self.failed + self.stopped + self.timed_out + self.lost
    }

    /// How many have ended.
    pub fn ended(&self) -> u32 {
        self.succeeded + self.unsuccessful()
    }
}

/// Jobs that were started together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// What people call it.
    pub name: Option<String>,
    /// How many jobs it has.
    pub count: u32,
    /// How many of them are in each state. Those whose records were deleted are
    /// in none.
    pub states: Counts,
    /// The program.
    pub command: Option<String>,
    /// The script.
    pub path: Option<String>,
    /// The arguments.
    pub args: Vec<String>,
    /// What the workers' labels had to be like.
    pub labels: Vec<String>,
    /// It has one job for each worker.
    pub all: bool,
    /// No more than so many of its jobs are on workers at a time.
    pub at_once: Option<u32>,
    /// Once a job fails, the rest is stopped.
    pub stop_on_failure: bool,
    /// The exit code of the first of its jobs, in their order, that failed, as
    /// `jobctl wait` has it: 128 and its number for a signal, 124 for a timeout, 125
    /// where it is not known. Where none failed, the highest of those that were
    /// stopped.
    pub exit_code: u8,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the last of its jobs ended.
    pub ended_at: Option<Timestamp>,
}

/// The most jobs that a job may wait for.
pub const MAX_AFTER: usize = 100;

/// What is waited for of another job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// That it succeeds.
    Succeeded,
    /// That it ends.
    Ended,
}

/// A job for which another one waits, or waited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prerequisite {
    /// Which.
    pub job_id: JobId,
    /// What is waited for.
    pub until: Until,
    /// How it ended; null: it has not, or its record was deleted before.
    pub state: Option<JobState>,
}

/// The most retries a job may have.
pub const MAX_RETRIES: u32 = 1000;

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What becomes of a job that is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// It has ended as `lost`.
    #[default]
    Fail,
    /// It goes back to the queue, and may run a second time.
    Requeue,
}

impl OnLost {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands over a reference"
    )]
    fn is_fail(&self) -> bool {
        *self == Self::Fail
    }
}

impl FromStr for OnLost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fail" => Ok(Self::Fail),
            "requeue" => Ok(Self::Requeue),
            _ => Err(format!("`{text}` is neither fail nor requeue")),
        }
    }
}

/// The highest priority, and with a minus before it the lowest.
pub const MAX_PRIORITY: i32 = 1_000_000;

/// How urgent a job is, as a word or a number between -[`MAX_PRIORITY`] and
/// [`MAX_PRIORITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// -100.
    Low,
    /// 0.
    Medium,
    /// 100.
    High,
    /// Itself.
    #[serde(untagged)]
    Number(i32),
}

impl Priority {
    /// The number that stands for it.
    pub fn value(self) -> i32 {
        match self {
            Self::Low => -100,
            Self::Medium => 0,
            Self::High => 100,
            Self::Number(number) => number,
        }
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "low" => Ok(Self::Low),
            "medium" => Ok(Self::Medium),
            "high" => Ok(Self::High),
            number => match number.parse() {
                Ok(number) if (-MAX_PRIORITY..=MAX_PRIORITY).contains(&number) => {
                    Ok(Self::Number(number))
                }
                _ => Err(format!(
                    "not low, medium, high or a number between -{MAX_PRIORITY} and {MAX_PRIORITY}"
                )),
            },
        }
    }
}

/// Answer to `POST /start`, with status 201: the job is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartResponse {
    /// The new job.
    pub job_id: JobId,
    /// `running`, or `pending` where it has to wait; it may have ended by the time this
    /// is read, or at once, where a job it was to wait for has failed.
    pub state: JobState,
    /// Of a pending job what it waits for, and of one that ended without having been
    /// given to a worker how, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `POST /join`: a join token buys a certificate, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// `ID.SECRET`; the fingerprint before them stays with the client.
    pub token: String,
    /// PKCS #10 in DER, as base64. Its public key is used, and nothing else.
    pub signing_request: String,
}

/// Body of `POST /renew`: a new certificate for who calls with a good one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// As in [`JoinRequest`].
    pub signing_request: String,
}

/// Answer to `POST /join` and `POST /renew`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificateResponse {
    /// As PEM.
    pub certificate: String,
    /// The authorities to trust, as PEM.
    pub authorities: String,
    /// What was given.
    pub role: Role,
    /// What people call whom it was given to.
    pub name: String,
    /// From when on the certificate counts for nothing.
    pub expires_at: Timestamp,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// It buys one certificate, and is spent.
    Join,
    /// A program shows it with each request.
    Bearer,
}

impl TokenKind {
    /// As it is written everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Bearer => "bearer",
        }
    }
}

impl FromStr for TokenKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "join" => Ok(Self::Join),
            "bearer" => Ok(Self::Bearer),
            _ => Err(format!("`{text}` is no kind of token")),
        }
    }
}

/// Body of `POST /tokens`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTokenRequest {
    /// What it is for.
    pub kind: TokenKind,
    /// What its bearer becomes.
    pub role: Role,
    /// What people call its bearer. A worker's token that bears the name of a
    /// known worker makes its bearer that worker again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// Answer to `POST /tokens`, with status 201.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateTokenResponse {
    /// All of it but the secret.
    #[serde(flatten)]
    pub about: Token,
    /// The token itself, which is shown this once: `FINGERPRINT.ID.SECRET`, or
    /// of a bearer token `ID.SECRET`.
    pub token: String,
    /// Where workers join, as host:port.
    pub grpc_address: String,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Which; no secret.
    pub id: TokenId,
    /// What it is for.
    pub kind: TokenKind,
    /// What its bearer becomes.
    pub role: Role,
    /// What people call its bearer; may be empty.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it is good.
    pub expires_at: Timestamp,
    /// When it bought a certificate.
    pub used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Answer to `GET /tokens`, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokensResponse {
    /// Those that are good, and for a while those that were.
    pub tokens: Vec<Token>,
}

/// Body of `POST /tokens/revoke`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    /// Which.
    pub id: TokenId,
}

/// The newest certificate of somebody. Of one that was signed elsewhere, and was
/// revoked here, only the id is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Who; of a worker its id. Stays the same when it is renewed.
    pub id: Uuid,
    /// What they are.
    pub role: Option<Role>,
    /// What people call them; may be empty.
    pub name: String,
    /// The certificate's number, as openssl shows it.
    pub serial: String,
    /// When it was signed.
    pub issued_at: Option<Timestamp>,
    /// From when on it counts for nothing.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked, with every other of the same id.
    pub revoked_at: Option<Timestamp>,
}

/// Answer to `GET /certs`, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificatesResponse {
    /// One for each id.
    pub certificates: Vec<Certificate>,
}

/// Body of `POST /certs/revoke`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeCertificateRequest {
    /// Whose: nothing this id has, or gets, is accepted any more.
    pub id: Uuid,
}

/// Body of `POST /ca/rotate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// How long the authority before is still trusted; 0: not at all.
    pub overlap_ms: u64,
}

/// Answer to `POST /ca/rotate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotateResponse {
    /// Of the new authority.
    pub fingerprint: String,
    /// The authorities to trust from now on, as PEM.
    pub authorities: String,
    /// Until when the one before is trusted.
    pub overlap_until: Option<Timestamp>,
}

/// Parameters of `GET /audit`, which answers with a JSON object a line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Behind the line of this number.
    #[serde(default)]
    pub after: i64,
    /// Only the last so many of those that are there; not with `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<i64>,
    /// Go on with the lines that will come.
    #[serde(default)]
    pub follow: bool,
}

/// Answer to requests that have nothing to say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoneResponse {
    /// It was done.
    pub success: bool,
}

/// Body of `POST /stop`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Where the job is thought to be; wrong is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// The job.
    pub job_id: String,
    /// The first signal, as `TERM`, `SIGTERM` or `15`; without it TERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// From the first signal to KILL; without it the worker's own grace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Answer once the signal was sent, not only once the job is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_wait: bool,
}

/// Answer to `POST /stop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StopResponse {
    /// True: the job is gone, or with `no_wait` the signal was sent.
    pub success: bool,
}

/// Body of `POST /query`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryRequest {
    /// Where the job is thought to be; wrong is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// The job.
    pub job_id: String,
    /// Hold the answer until the job has ended, but no longer than this and
    /// than [`MAX_WAIT_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// Answer to `POST /query`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryResponse {
    /// The job has ended.
    pub done: bool,
    /// It ended otherwise than with exit code 0.
    pub error: bool,
    /// How, in one line: `exit status 3`, `signal: killed`, …; else empty.
    pub error_text: String,
    /// The whole record.
    pub job: Job,
}

/// Answer to a `POST /query` about a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryGroupResponse {
    /// All of its jobs have ended.
    pub done: bool,
    /// Some of them ended otherwise than with exit code 0.
    pub error: bool,
    /// How many, in one line; else empty.
    pub error_text: String,
    /// What is known of it.
    pub group: Group,
}

/// Answer to `POST /query`: what was asked about may be either.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QueryAnswer {
    /// A job.
    Job(Box<QueryResponse>),
    /// A group of jobs.
    Group(Box<QueryGroupResponse>),
}

/// The states of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Recorded, not yet on a worker.
    Pending,
    /// Its process exists on a worker.
    Running,
    /// Its worker does not answer, so it may be alive.
    Unknown,
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a signal nobody here sent, or never started.
    Failed,
    /// Ended because somebody asked, or not started because a job it was to wait for
    /// ended otherwise than it should.
    Stopped,
    /// Ended because of its own timeout, or it waited longer than its deadline.
    TimedOut,
    /// Its worker has neither a process nor a result of it.
    Lost,
}

impl JobState {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Running,
        Self::Unknown,
        Self::Succeeded,
        Self::Failed,
        Self::Stopped,
        Self::TimedOut,
        Self::Lost,
    ];

    /// As in JSON: `timed_out`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Unknown => "unknown",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
        }
    }

    /// A job in this state never changes again.
    pub fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Running | Self::Unknown => false,
            Self::Succeeded | Self::Failed | Self::Stopped | Self::TimedOut | Self::Lost => true,
        }
    }
}

/// A job's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The group it belongs to.
    #[serde(default)]
    pub group_id: Option<GroupId>,
    /// Its number in that group, from 0.
    #[serde(default)]
    pub index: Option<u32>,
    /// What it was given of the group's `each`.
    #[serde(default)]
    pub item: Option<String>,
    /// What people call it, and the rest of its group.
    pub name: Option<String>,
    /// How it stands.
    pub state: JobState,
    /// Why it is as it is, in one line: how it ended, or what it waits for.
    pub reason: Option<String>,
    /// Where it is; null while it waits for a worker.
    pub worker_id: Option<WorkerId>,
    /// That worker's name.
    pub worker: Option<String>,
    /// The program.
    pub command: Option<String>,
    /// The script.
    pub path: Option<String>,
    /// The arguments.
    pub args: Vec<String>,
    /// The names, not the values, of what was set in its environment.
    pub env: Vec<String>,
    /// The folder asked for.
    pub cwd: Option<String>,
    /// The user asked for.
    pub user: Option<String>,
    /// What its worker's labels had to be like.
    #[serde(default)]
    pub labels: Vec<String>,
    /// What is higher goes first; 0 is medium.
    #[serde(default)]
    pub priority: i32,
    /// Counted from the start of the process.
    pub timeout_ms: Option<u64>,
    /// Before this it is not started.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// How long it may wait for a worker, from when it may start.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// The jobs it waits for, or waited for.
    #[serde(default)]
    pub after: Vec<Prerequisite>,
    /// How often it is tried again when it failed or timed out.
    #[serde(default)]
    pub retries: u32,
    /// Before the first retry, where it was asked for.
    #[serde(default)]
    pub retry_pause_ms: Option<u64>,
    /// What is done when it is lost.
    #[serde(default)]
    pub on_lost: OnLost,
    /// Which attempt it has, or had last, counted from 1; 0: none yet.
    #[serde(default)]
    pub attempt: u32,
    /// All of its attempts, the last one included; not in lists of jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// The main process on its worker.
    pub pid: Option<u32>,
    /// What the main process returned, if it returned.
    pub exit_code: Option<i32>,
    /// The signal that ended the main process, if one did.
    pub signal: Option<i32>,
    /// Why it never started: `program_not_found`, `not_executable`, … as in [`Error::code`].
    pub start_error: Option<String>,
    /// Bytes of output of all attempts, as far as the scheduler has heard; exact once it has ended.
    pub output_bytes: u64,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its process started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How long there were processes of it, by a monotonic clock of its machine; null
    /// before its end, and where that is not known.
    #[serde(default)]
    pub ran_ms: Option<u64>,
    /// Processes that the main process left when it ended, and that were ended.
    #[serde(default)]
    pub swept: u32,
    /// Until when the record of a job that has ended is kept, and its output with
    /// it; sooner only where there are too many.
    #[serde(default)]
    pub kept_until: Option<Timestamp>,
}

/// One attempt at a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// Its id on its worker; of the first one the job's own.
    pub run_id: JobId,
    /// Where it was.
    pub worker_id: WorkerId,
    /// That worker's name.
    pub worker: String,
    /// How it stands, or how it ended.
    pub state: JobState,
    /// How it ended, in one line.
    pub reason: Option<String>,
    /// What its main process returned, if it returned.
    pub exit_code: Option<i32>,
    /// The signal that ended its main process, if one did.
    pub signal: Option<i32>,
    /// Why it never started, as a code word.
    pub start_error: Option<String>,
    /// Of its first byte in the output of the job.
    pub offset: u64,
    /// Bytes of its output.
    pub output_bytes: u64,
    /// When its process started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How long there were processes of it; as in [`Job`].
    #[serde(default)]
    pub ran_ms: Option<u64>,
}

/// Parameters of `GET /logs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// The job.
    pub job_id: String,
    /// Where the job is thought to be; wrong is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// End with the job instead of with what is recorded now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
    /// The first byte to send, of the output of all attempts; without it the first
    /// of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Only this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Begin with the last so many lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// Begin with what was written at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// As text, say what is missing in a line of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gaps: bool,
}

/// One of a job's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of `GET /logs` as `application/x-ndjson`, and the data of one
/// server-sent event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogLine {
    /// A piece of output.
    Output {
        /// Of its first byte.
        offset: u64,
        /// When it was read from the job.
        time: Timestamp,
        /// Where the job wrote it.
        stream: Stream,
        /// The piece itself.
        #[serde(flatten)]
        data: LogData,
    },
    /// Output that the job has written and that is not recorded.
    Gap {
        /// Of its first byte.
        offset: u64,
        /// Its size in bytes.
        gap: u64,
        /// Why, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<GapCause>,
    },
    /// The last line: how the job stands.
    End {
        /// The job's record.
        job: Box<Job>,
    },
}

/// Why output is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// The limit of a job's output: the oldest is given back to the disk.
    Limit,
    /// The worker's disk had no room for it.
    DiskFull,
    /// It could not be written, for another reason.
    NotWritten,
    /// The files were removed.
    Removed,
    /// What is in the files is not what was written there.
    Damaged,
    /// The machine stopped before it was on the disk.
    PowerLoss,
}

impl GapCause {
    /// Says in one line how much is missing, and why.
    pub fn note(bytes: u64, cause: Option<Self>) -> String {
        let missing = match bytes {
            1 => "1 byte of output is missing here".to_owned(),
            _ => format!("{bytes} bytes of output are missing here"),
        };
        let why = match cause {
            None => return missing,
            Some(Self::Limit) => "the job has reached the limit of its output",
            Some(Self::DiskFull) => "the worker's disk was full",
            Some(Self::NotWritten) => "the worker could not write it",
            Some(Self::Removed) => "its files were removed",
            Some(Self::Damaged) => "its files are damaged",
            Some(Self::PowerLoss) => "the machine stopped before it was on the disk",
        };
        format!("{missing}: {why}")
    }
}

/// Output inside JSON, which can hold any text but not any bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum LogData {
    /// As it is, where it is valid UTF-8.
    #[serde(rename = "data")]
    Text(String),
    /// In base64, where it is not.
    #[serde(rename = "data_base64")]
    Base64(String),
}

/// Parameters of `GET /jobs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobsQuery {
    /// Only jobs in these states, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only jobs of this worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// Only jobs of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only jobs of this group, the first first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    /// At most so many; 1 to [`MAX_PAGE`], by default 50. A page has fewer where they
    /// take more than [`MAX_PAGE_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Go on behind this job: the `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<JobId>,
}

/// Answer to `GET /jobs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobsResponse {
    /// The newest first; of a group in their order.
    pub jobs: Vec<Job>,
    /// Where the next page begins; null on the last.
    pub next: Option<JobId>,
}

/// The states of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Registered; has not told of all its jobs yet, or has not answered a call.
    Joining,
    /// Takes jobs.
    Ready,
    /// Lacks something that every job needs, and takes no jobs until it has it again;
    /// those it has go on.
    Short,
    /// Takes no more jobs; those it has go on.
    Draining,
    /// Its connection broke, three heartbeats were missed, or the scheduler cannot call
    /// it.
    Unreachable,
    /// It said goodbye.
    Left,
}

impl WorkerState {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Short => "short",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
            Self::Left => "left",
        }
    }
}

/// Parameters of `GET /workers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkersQuery {
    /// Only this one; that there is none is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// Only workers with all of these labels, separated by commas: `key=value`, or
    /// `key` with any value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// A worker, as the scheduler knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// The id the scheduler gave it.
    pub id: WorkerId,
    /// What people call it.
    pub name: String,
    /// How it stands.
    pub state: WorkerState,
    /// Since when it has been in that state.
    pub since: Timestamp,
    /// Why it takes no jobs, where its state does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the scheduler dials it.
    pub address: String,
    /// The version of jobctl it runs.
    pub version: String,
    /// Jobs that have a process there, as of the last heartbeat.
    pub running: u32,
    /// How many jobs it takes at once; null: as many as come.
    #[serde(default)]
    pub slots: Option<u32>,
    /// What jobs may choose it by.
    #[serde(default)]
    pub labels: Arc<BTreeMap<String, String>>,
    /// Its machine's load average over one minute, as of the last heartbeat.
    pub load: f64,
    /// Processors that it may use.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// All memory of its machine.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// What a process could still have of it, as of the last heartbeat.
    #[serde(default)]
    pub memory_available_bytes: Option<u64>,
    /// Of its machine, as `linux`.
    #[serde(default)]
    pub os: Option<String>,
    /// Of its machine, as `x86_64`.
    #[serde(default)]
    pub arch: Option<String>,
    /// It is to take no more jobs, whether it answers or not.
    #[serde(default)]
    pub draining: bool,
    /// When what is left of its jobs is stopped, where an admin said so.
    #[serde(default)]
    pub draining_until: Option<Timestamp>,
    /// The scripts of its script folder, as far as it told of them.
    #[serde(default)]
    pub scripts: Arc<[String]>,
    /// There are more scripts than these.
    #[serde(default)]
    pub more_scripts: bool,
    /// When it registered last.
    pub registered_at: Timestamp,
    /// Its last sign of life.
    pub last_heartbeat_at: Option<Timestamp>,
    /// In events alone: it is forgotten, and in no list any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// Body of `POST /workers/label`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelWorkerRequest {
    /// The worker.
    pub worker_id: String,
    /// Set over what the worker's own settings say; null: taken off.
    pub labels: BTreeMap<String, Option<String>>,
}

/// Body of `POST /workers/drain`: the worker takes no more jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainWorkerRequest {
    /// The worker.
    pub worker_id: String,
    /// After so long what is left of its jobs is stopped; without it they end by
    /// themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// Body of `POST /workers/resume`: the worker takes jobs again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeWorkerRequest {
    /// The worker.
    pub worker_id: String,
}

/// Body of `POST /workers/remove`: the worker, which is gone, is forgotten, and
/// its jobs are lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveWorkerRequest {
    /// The worker.
    pub worker_id: String,
}

/// Answer to `GET /workers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkersResponse {
    /// By name.
    pub workers: Vec<Worker>,
    /// What an operator should know of the whole cluster, in one line: that the
    /// scheduler's records are older than what its workers did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
}

/// Parameters of `GET /events`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only this job; or only this group and its jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Only this worker, and jobs while they are on it or when they ended there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// Only events of these kinds, separated by commas: `job`, `group`, `worker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Go on behind this event; without it only what comes is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<EventId>,
}

/// Which event: `EPOCH-SEQUENCE`. The epoch is another one after every start of the
/// scheduler, the sequence with every event since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// Which start of the scheduler.
    pub epoch: u64,
    /// Which event since then, from 1.
    pub sequence: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

impl FromStr for EventId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('-');
        let parsed = parts.and_then(|(epoch, sequence)| {
            Some(Self {
                epoch: epoch.parse().ok()?,
                sequence: sequence.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| format!("'{text}' is no id of an event: EPOCH-SEQUENCE"))
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A job.
    Job,
    /// A group of jobs.
    Group,
    /// A worker.
    Worker,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Job, Self::Group, Self::Worker];

    /// As in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Group => "group",
            Self::Worker => "worker",
        }
    }
}

/// One event of `GET /events`, and as NDJSON one line of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Which; with it `after` or `Last-Event-ID` goes on.
    pub id: EventId,
    /// What it tells.
    #[serde(flatten)]
    pub data: EventData,
}

/// What an event tells: how something stands after it has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum EventData {
    /// A job.
    Job(Box<Job>),
    /// A group of jobs, when it begins, is stopped, and ends.
    Group(Box<Group>),
    /// A worker.
    Worker(Box<Worker>),
    /// Events are missing here: whoever keeps a picture lists everything anew.
    Reset(EventsReset),
    /// Nothing: a sign of life, with the id to go on from.
    KeepAlive,
}

/// Events are missing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsReset {
    /// Why, in one line.
    pub reason: String,
    /// The events that follow are behind this one.
    pub after: EventId,
}

/// Answer to `GET /version`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionResponse {
    /// The version of jobctl the scheduler runs.
    pub version: String,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Error {
    /// What is wrong, for a person, in one line.
    pub error: String,
    /// What is wrong, for a program: a stable code word.
    pub code: String,
    /// The job that is meant, where there is one: a start that the worker
    /// refused is recorded under this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The name of the worker that does not answer now, where that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
}

/// What a command ends with that waited for a job.
pub mod exit_code {
    use super::{JobState, code};

    /// The job ended because of its timeout.
    pub const TIMED_OUT: u8 = 124;
    /// It is not known how the job ended, or the fault is not its own.
    pub const CANNOT_TELL: u8 = 125;
    /// The program is there and cannot be executed as it was asked for.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// There is no such program, or what its first line names is missing.
    pub const PROGRAM_NOT_FOUND: u8 = 127;
    /// With the number of the signal that ended it added.
    pub const BY_SIGNAL: u8 = 128;
    /// As after SIGTERM: the job was stopped.
    pub const TERMINATED: u8 = 143;

    /// For a job that is in this state and ended so. An unknown result is never a
    /// success, and neither is a job that was stopped.
    pub fn of(
        state: JobState,
        exit_code: Option<i32>,
        signal: Option<i32>,
        start_error: Option<&str>,
    ) -> u8 {
        if let Some(word) = start_error {
            return of_start_error(word);
        }
        let by_signal = signal.and_then(|signal| u8::try_from(signal).ok()?.checked_add(BY_SIGNAL));
        let own = exit_code.and_then(|code| u8::try_from(code).ok());
        let own = by_signal.or(own.filter(|code| *code != 0));
        match state {
            JobState::Succeeded => 0,
            JobState::Failed => own.unwrap_or(CANNOT_TELL),
            JobState::Stopped => own.unwrap_or(TERMINATED),
            JobState::TimedOut => TIMED_OUT,
            JobState::Lost | JobState::Pending | JobState::Running | JobState::Unknown => {
                CANNOT_TELL
            }
        }
    }

    /// For a job that never started, as a shell would have it.
    pub fn of_start_error(word: &str) -> u8 {
        match word {
            code::PROGRAM_NOT_FOUND | code::SCRIPT_NOT_FOUND | code::INTERPRETER_NOT_FOUND => {
                PROGRAM_NOT_FOUND
            }
            code::NOT_EXECUTABLE
            | code::BAD_CWD
            | code::NOT_A_FILE
            | code::OUTSIDE_SCRIPT_FOLDER
            | code::COMMAND_NOT_ALLOWED
            | code::VARIABLE_NOT_ALLOWED
            | code::USER_NOT_ALLOWED
            | code::NOT_STARTED => NOT_EXECUTABLE,
            _ => CANNOT_TELL,
        }
    }
}

/// The code words of [`Error::code`] that a client acts upon.
pub mod code {
    /// No such program on the worker. Ends `--wait` with 127.
    pub const PROGRAM_NOT_FOUND: &str = "program_not_found";
    /// No such script in the worker's script folder. Ends `--wait` with 127.
    pub const SCRIPT_NOT_FOUND: &str = "script_not_found";
    /// What the first line of the program names is missing. Ends `--wait` with 127.
    pub const INTERPRETER_NOT_FOUND: &str = "interpreter_not_found";
    /// The program or script cannot be executed. Ends `--wait` with 126.
    pub const NOT_EXECUTABLE: &str = "not_executable";
    /// The folder to run in cannot be entered. Ends `--wait` with 126.
    pub const BAD_CWD: &str = "bad_cwd";
    /// The script is a folder, say. Ends `--wait` with 126.
    pub const NOT_A_FILE: &str = "not_a_file";
    /// The script's path leads out of the script folder. Ends `--wait` with 126.
    pub const OUTSIDE_SCRIPT_FOLDER: &str = "outside_script_folder";
    /// The worker's operator does not have the program run. Ends `--wait` with 126.
    pub const COMMAND_NOT_ALLOWED: &str = "command_not_allowed";
    /// A variable could make something else of the program. Ends `--wait` with 126.
    pub const VARIABLE_NOT_ALLOWED: &str = "variable_not_allowed";
    /// The worker has no jobs of that user. Ends `--wait` with 126.
    pub const USER_NOT_ALLOWED: &str = "user_not_allowed";
    /// The kernel did not take the program as it was asked for. Ends `--wait` with 126.
    pub const NOT_STARTED: &str = "not_started";
    /// The job to stop has ended already.
    pub const JOB_FINISHED: &str = "job_finished";
    /// Nobody knows such a job.
    pub const JOB_NOT_FOUND: &str = "job_not_found";
    /// It is a group of jobs.
    pub const NOT_ONE_JOB: &str = "not_one_job";
    /// Nobody knows such a worker.
    pub const WORKER_NOT_FOUND: &str = "worker_not_found";
    /// The scheduler is about to end, or to be restarted.
    pub const SHUTTING_DOWN: &str = "shutting_down";
    /// The worker does not answer.
    pub const WORKER_UNREACHABLE: &str = "worker_unreachable";
    /// No worker has room for the job, and it was not to wait.
    pub const NO_FREE_SLOT: &str = "no_free_slot";
    /// The worker takes no more jobs.
    pub const WORKER_DRAINING: &str = "worker_draining";
    /// The worker lacks what it needs to start any job (processes, descriptors, memory,
    /// room on its disk, a folder), and the job has not begun.
    pub const WORKER_SHORT: &str = "worker_short";
    /// The worker is there, and only one that is gone can be removed.
    pub const WORKER_NOT_GONE: &str = "worker_not_gone";
    /// There is no certificate and no token.
    pub const UNIDENTIFIED: &str = "unidentified";
    /// The token is nobody's.
    pub const BAD_TOKEN: &str = "bad_token";
    /// The token was good once.
    pub const TOKEN_EXPIRED: &str = "token_expired";
    /// The token has bought its certificate.
    pub const TOKEN_SPENT: &str = "token_spent";
    /// The token is for something else.
    pub const WRONG_TOKEN: &str = "wrong_token";
    /// Nobody knows such a token.
    pub const TOKEN_NOT_FOUND: &str = "token_not_found";
    /// What proves who calls was revoked.
    pub const REVOKED: &str = "revoked";
    /// The name belongs to another worker.
    pub const WORKER_NAME_TAKEN: &str = "worker_name_taken";
    /// Nobody of this id has a certificate.
    pub const CERTIFICATE_NOT_FOUND: &str = "certificate_not_found";
    /// The role of who calls is not enough.
    pub const FORBIDDEN: &str = "forbidden";
    /// A worker speaks for another one.
    pub const NOT_ITSELF: &str = "not_itself";
    /// The certificates of the cluster come from elsewhere.
    pub const NO_AUTHORITY: &str = "no_authority";
    /// The authority before is still trusted.
    pub const AUTHORITIES_OVERLAP: &str = "authorities_overlap";
    /// The scheduler does not bear the name it was called by.
    pub const FOREIGN_HOST: &str = "foreign_host";
    /// A page of another site asks.
    pub const CROSS_SITE: &str = "cross_site";
    /// No such path; an older scheduler, or none at all.
    pub const ROUTE_NOT_FOUND: &str = "route_not_found";
}
