//! The gRPC edge of the worker: decodes requests, asks `jobs.rs`, encodes answers.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::{
    Router,
    middleware::{Next, from_fn},
};
use futures_util::{Stream, stream};
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, service::Routes};

use super::{
    error::Error,
    job::{Attempt, End, How, Job, Spec, State},
    jobs::Jobs,
    output::{Follower, OpenError, Piece, Wanted},
    shim::whole_milliseconds,
};
use crate::{
    identity::{
        Role,
        rules::{self, Verdict},
    },
    ids::{JobId, is_name},
    net::{accept::Connection, bounds::Bounds},
    proto::{self, worker_server},
    roles::shim::{
        protocol::Cause,
        record::{self, GapCause},
    },
};

/// The longest path that Linux takes (PATH_MAX).
const MAX_PATH: usize = 4096;

/// The service `jobscheduler.Worker`.
pub(super) struct Service {
    worker: String,
    jobs: Jobs,
    bounds: Bounds,
    followers: Arc<Semaphore>,
}

/// What the server answers beside the standard services.
pub(super) fn routes(service: Service) -> Routes {
    Routes::new(worker_server::WorkerServer::new(service))
}

impl Service {
    pub(super) fn new(worker: String, jobs: Jobs, bounds: Bounds) -> Self {
        Self {
            worker,
            jobs,
            bounds,
            followers: Arc::new(Semaphore::new(bounds.followers as usize)),
        }
    }

    fn io(&self, what: &'static str, error: &std::io::Error) -> Error {
        Error::Io {
            worker: self.worker.clone(),
            what,
            why: error.to_string(),
        }
    }
}

/// Lets calls through that the table allows. In plain text nobody can tell who
/// calls, and whoever is on this machine passes for the scheduler.
pub(super) fn admitted(router: Router, plain: bool) -> Router {
    router.layer(from_fn(move |request, next| admit(request, next, plain)))
}

async fn admit(
    request: axum::extract::Request,
    next: Next,
    plain: bool,
) -> axum::response::Response {
    let connection = request.extensions().get::<Connection>();
    let identity = connection.and_then(|connection| connection.identity.clone());
    let role = match plain {
        true => Some(Role::Scheduler),
        false => identity.as_ref().map(|identity| identity.role),
    };
    let call = request.uri().path();
    let refused = match rules::judge(rules::WORKER_RPC, call, role) {
        Verdict::Allowed => return next.run(request).await,
        Verdict::Unidentified => Status::unauthenticated("who calls is not known"),
        Verdict::Forbidden => {
            let who = identity.map_or_else(String::new, |identity| identity.to_string());
            Status::permission_denied(format!("{who} may not call {call}"))
        }
    };
    tracing::warn!(error = refused.message(), call, "refused");
    refused.into_http()
}

type Chunks = Pin<Box<dyn Stream<Item = Result<proto::StreamJobResponse, Status>> + Send>>;

#[tonic::async_trait]
impl worker_server::Worker for Service {
    async fn start_job(
        &self,
        request: Request<proto::StartJobRequest>,
    ) -> Result<Response<proto::StartJobResponse>, Status> {
        let request = request.into_inner();
        self.jobs.check_epoch(request.epoch)?;
        let session = Some(request.session.clone()).filter(|session| !session.is_empty());
        let spec = spec(request, &self.worker, &self.bounds)?;
        let job = self.jobs.start(spec, session.as_deref()).await?;
        Ok(Response::new(proto::StartJobResponse {
            job_id: job.spec.id.to_string(),
            status: Some(status(&job)),
        }))
    }

    async fn stop_job(
        &self,
        request: Request<proto::StopJobRequest>,
    ) -> Result<Response<proto::StopJobResponse>, Status> {
        let request = request.into_inner();
        self.jobs.check_epoch(request.epoch)?;
        let signal = match request.signal {
            0 => Signal::TERM.as_raw(),
            number => Signal::from_named_raw(number)
                .ok_or_else(|| Error::BadRequest(format!("there is no signal {number}")))?
                .as_raw(),
        };
        let grace = request.grace_ms.map(Duration::from_millis);
        let job = self.jobs.stop(id(&request.job_id)?, signal, grace).await?;
        if !request.no_wait {
            job.ended().await;
        }
        Ok(Response::new(proto::StopJobResponse {}))
    }

    async fn query_job(
        &self,
        request: Request<proto::QueryJobRequest>,
    ) -> Result<Response<proto::QueryJobResponse>, Status> {
        let request = request.into_inner();
        self.jobs.check_epoch(request.epoch)?;
        let job = self.jobs.get(id(&request.job_id)?)?;
        let status = status(&job);
        let done = status.ended_us.is_some();
        let error = done && status.state() != proto::JobState::Succeeded;
        Ok(Response::new(proto::QueryJobResponse {
            done,
            error,
            error_text: if error {
                status.reason.clone()
            } else {
                String::new()
            },
            status: Some(status),
        }))
    }

    type StreamJobStream = Chunks;

    async fn stream_job(
        &self,
        request: Request<proto::StreamJobRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let request = request.into_inner();
        self.jobs.check_epoch(request.epoch)?;
        let id = id(&request.job_id)?;
        let (job, output) = match self.jobs.get(id) {
            Ok(job) => (Some(job.clone()), job.output),
            Err(_) => {
                let written = request.output_bytes;
                (None, self.jobs.old_output(id, written).await?)
            }
        };
        if let Some(job) = &job
            && request.offset > output.extent().bytes
        {
            // One that was just taken over has not been heard of yet.
            job.begun().await;
        }
        let permit = self.followers.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Error::TooManyFollowers {
            worker: self.worker.clone(),
            limit: self.bounds.followers,
        })?;
        let wanted = Wanted {
            offset: request.offset,
            tail: request.tail_lines,
            since_us: request.since_us,
            stream: match request.stream() {
                proto::OutputStream::Unspecified => None,
                proto::OutputStream::Stdout => Some(record::Stream::Stdout),
                proto::OutputStream::Stderr => Some(record::Stream::Stderr),
            },
            follow: !request.no_follow,
        };
        let follower = Follower::open(output, wanted)
            .await
            .map_err(|error| match error {
                OpenError::PastEnd { end } => Error::OffsetPastEnd {
                    offset: request.offset,
                    end,
                },
                OpenError::Io(error) => self.io("read the output", &error),
            })?;
        let reading = Reading {
            worker: self.worker.clone(),
            id,
            job,
            follower,
            _permit: permit,
        };
        // Nothing is read before it is asked for, so a follower that stops
        // reading costs one batch and no time of the job's.
        Ok(Response::new(Box::pin(stream::try_unfold(
            Some(reading),
            Reading::next,
        ))))
    }
}

/// One reader's way through one job's output.
struct Reading {
    worker: String,
    id: JobId,
    /// `None`: only its output is left.
    job: Option<Job>,
    follower: Follower,
    _permit: OwnedSemaphorePermit,
}

impl Reading {
    async fn next(
        reading: Option<Self>,
    ) -> Result<Option<(proto::StreamJobResponse, Option<Self>)>, Status> {
        let Some(mut reading) = reading else {
            return Ok(None);
        };
        match reading.follower.next().await {
            Ok(Some(piece)) => Ok(Some((encode(piece), Some(reading)))),
            Ok(None) => {
                let end = proto::StreamJobResponse {
                    offset: reading.follower.position(),
                    end: Some(reading.job.as_ref().map(status).unwrap_or_default()),
                    ..Default::default()
                };
                Ok(Some((end, None)))
            }
            Err(error) => {
                tracing::error!(job_id = %reading.id, %error, "cannot read output");
                Err(Error::Io {
                    worker: reading.worker,
                    what: "read the output",
                    why: error.to_string(),
                }
                .into())
            }
        }
    }
}

fn encode(piece: Piece) -> proto::StreamJobResponse {
    match piece {
        Piece::Chunk(chunk) => proto::StreamJobResponse {
            output: chunk.bytes,
            offset: chunk.offset,
            time_us: chunk.time_us,
            stream: match chunk.stream {
                record::Stream::Stdout => proto::OutputStream::Stdout.into(),
                record::Stream::Stderr => proto::OutputStream::Stderr.into(),
            },
            ..Default::default()
        },
        Piece::Gap(gap) => proto::StreamJobResponse {
            offset: gap.offset,
            gap: gap.length,
            gap_cause: match gap.cause {
                GapCause::Unknown => proto::GapCause::Unspecified,
                GapCause::Limit => proto::GapCause::Limit,
                GapCause::DiskFull => proto::GapCause::DiskFull,
                GapCause::NotWritten => proto::GapCause::NotWritten,
                GapCause::Removed => proto::GapCause::Removed,
                GapCause::Damaged => proto::GapCause::Damaged,
                GapCause::PowerLoss => proto::GapCause::PowerLoss,
            }
            .into(),
            ..Default::default()
        },
    }
}

/// A job as the scheduler is told of it.
pub(super) fn report(job: &Job) -> proto::JobReport {
    proto::JobReport {
        job_id: job.spec.id.to_string(),
        status: Some(status(job)),
        spec: None,
    }
}

/// A job of which only the end is remembered, with the job it was an attempt of.
pub(super) fn short_report(job: &Job) -> proto::JobReport {
    proto::JobReport {
        spec: job.spec.attempt.map(|attempt| proto::StartJobRequest {
            attempt_of: attempt.of.to_string(),
            attempt: attempt.number,
            ..Default::default()
        }),
        ..report(job)
    }
}

/// The same, for a scheduler that may never have heard of it.
pub(super) fn full_report(job: &Job) -> proto::JobReport {
    let spec = (*job.spec).clone();
    proto::JobReport {
        spec: Some(proto::StartJobRequest {
            command: spec.command.unwrap_or_default(),
            path: spec.path.unwrap_or_default(),
            job_id: spec.id.to_string(),
            args: spec.args,
            env: spec.env.into_iter().collect(),
            cwd: spec
                .cwd
                .map_or_else(String::new, |cwd| cwd.display().to_string()),
            name: spec.name.unwrap_or_default(),
            user: spec.user.unwrap_or_default(),
            timeout_ms: spec.timeout.map_or(0, whole_milliseconds),
            session: String::new(),
            created_us: spec.created.as_microsecond(),
            epoch: 0,
            attempt_of: spec
                .attempt
                .map_or_else(String::new, |one| one.of.to_string()),
            attempt: spec.attempt.map_or(0, |one| one.number),
        }),
        ..report(job)
    }
}

fn status(job: &Job) -> proto::JobStatus {
    // The state first: what it says has ended has all of its output counted.
    let state = job.state.borrow().clone();
    let output_bytes = job.output.extent().bytes;
    match state {
        State::Starting => proto::JobStatus {
            state: proto::JobState::Pending.into(),
            ..Default::default()
        },
        State::Running { pid, since } => proto::JobStatus {
            state: proto::JobState::Running.into(),
            pid: Some(pid),
            started_us: Some(since.as_microsecond()),
            output_bytes,
            ..Default::default()
        },
        State::Ended(end) => ended(&end, job.spec.timeout, output_bytes),
    }
}

fn ended(end: &End, timeout: Option<Duration>, output_bytes: u64) -> proto::JobStatus {
    use proto::JobState::{Failed, Lost, Stopped, Succeeded, TimedOut};
    let by = |cause: Cause, itself| match cause {
        Cause::Itself => itself,
        Cause::Stopped => Stopped,
        Cause::TimedOut => TimedOut,
    };
    let (state, exit_code, signal, start_error) = match &end.how {
        How::Refused(refusal) => (Failed, None, None, refusal.code()),
        How::Exited { code: 0, cause } => (by(*cause, Succeeded), Some(0), None, ""),
        How::Exited { code, cause } => (by(*cause, Failed), Some(*code), None, ""),
        How::Signaled { signal, cause } => (by(*cause, Failed), None, Some(*signal), ""),
        How::Lost(_) => (Lost, None, None, ""),
    };
    proto::JobStatus {
        state: state.into(),
        pid: end.started.map(|(pid, _)| pid),
        started_us: end.started.map(|(_, at)| at.as_microsecond()),
        ended_us: Some(end.at.as_microsecond()),
        exit_code,
        signal,
        reason: end.reason(timeout),
        start_error: start_error.to_owned(),
        output_bytes,
        ran_ms: end.ran_ms,
        swept: end.swept,
    }
}

fn id(text: &str) -> Result<JobId, Error> {
    text.parse()
        .map_err(|_| Error::BadRequest(format!("{text:?} is not a job id")))
}

fn spec(request: proto::StartJobRequest, worker: &str, bounds: &Bounds) -> Result<Spec, Error> {
    let bad = |what: &str| Error::BadRequest(what.to_owned());
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let paths = [&request.command, &request.path, &request.cwd, &request.user];
    let env = request.env.iter().flat_map(|(name, value)| [name, value]);
    let texts = request.args.iter().chain(env);
    if request.command.is_empty() && request.path.is_empty() {
        return Err(bad("a job needs a command or a path"));
    }
    if paths.iter().any(|path| path.len() > MAX_PATH) {
        return Err(bad(
            "command, path, cwd and user take 4096 bytes each at most",
        ));
    }
    if paths
        .into_iter()
        .chain(texts)
        .any(|text| text.contains('\0'))
    {
        return Err(bad("a job's texts cannot contain a NUL byte"));
    }
    bounds
        .check_args(&request.args, &request.env)
        .map_err(|what| Error::BadRequest(format!("{what} on worker {worker}")))?;
    if let Some(name) = request
        .env
        .keys()
        .find(|name| name.is_empty() || name.contains('='))
    {
        return Err(Error::BadRequest(format!(
            "{name:?} cannot be the name of an environment variable"
        )));
    }
    if !request.cwd.is_empty() && !request.cwd.starts_with('/') {
        return Err(bad("the folder to run in must be an absolute path"));
    }
    if !request.name.is_empty() && !is_name(&request.name) {
        return Err(Error::BadRequest(format!(
            "{:?} cannot be the name of a job",
            request.name
        )));
    }
    let created = match request.created_us {
        0 => Timestamp::now(),
        us => Timestamp::from_microsecond(us).map_err(|_| bad("created_us is out of range"))?,
    };
    Ok(Spec {
        id: match request.job_id.as_str() {
            "" => JobId::random(),
            text => id(text)?,
        },
        attempt: match request.attempt_of.as_str() {
            "" => None,
            text => Some(Attempt {
                of: id(text)?,
                number: request.attempt,
            }),
        },
        command: given(request.command),
        path: given(request.path),
        args: request.args,
        env: request.env.into_iter().collect(),
        cwd: given(request.cwd).map(Into::into),
        name: given(request.name),
        user: given(request.user),
        timeout: match request.timeout_ms {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        },
        created,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut proto::StartJobRequest)) -> String {
        let mut request = proto::StartJobRequest {
            command: "true".into(),
            ..Default::default()
        };
        let bounds = Bounds::default();
        assert!(spec(request.clone(), "w1", &bounds).is_ok());
        change(&mut request);
        match spec(request, "w1", &bounds) {
            Err(Error::BadRequest(what)) => what,
            other => panic!("taken: {other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_a_job_is_refused() {
        assert!(refused(|r| r.command.clear()).contains("command or a path"));
        assert!(refused(|r| r.path = "x".repeat(5000)).contains("4096"));
        assert!(refused(|r| r.args = vec!["a\0b".into()]).contains("NUL"));
        assert!(refused(|r| r.args = vec![String::new(); 1001]).contains("1000 are taken"));
        assert!(refused(|r| r.args = vec!["x".repeat(100_000); 3]).contains("262144 are taken"));
        assert!(refused(|r| r.env = [("A=B".into(), String::new())].into()).contains("A=B"));
        assert!(refused(|r| r.cwd = "tmp".into()).contains("absolute"));
        assert!(refused(|r| r.name = "last".into()).contains("last"));
        assert!(refused(|r| r.job_id = "7".into()).contains("job id"));
        assert!(refused(|r| r.created_us = i64::MAX).contains("created_us"));
    }
}
