//! The gRPC API for programs, the service `jobscheduler.Jobs`: turns what is asked
//! into what the HTTP API takes, has it done there, and the answer back.

use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::{
    Scheduler,
    access::Caller,
    error::Error,
    events,
    http::{self, StartAnswer},
};
use crate::{
    api::{self, EventData, LogsQuery},
    proto::{self, jobs_server},
};

/// The service `jobscheduler.Jobs`.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Scheduler);

#[tonic::async_trait]
impl jobs_server::Jobs for Service {
    async fn start_job(
        &self,
        request: Request<proto::StartRequest>,
    ) -> Result<Response<proto::StartResponse>, Status> {
        let caller = caller(&request);
        let mut asked = request.into_inner();
        let key = std::mem::take(&mut asked.idempotency_key);
        let asked = start(asked);
        let key = given(key).map(|key| http::key_of(key.as_bytes(), &asked));
        let answer = http::start_job(&self.0, caller, asked, key.transpose()?).await?;
        Ok(Response::new(match answer {
            StartAnswer::Job(answer) => proto::StartResponse {
                job_id: answer.job_id.to_string(),
                state: state(answer.state).into(),
                reason: answer.reason.unwrap_or_default(),
                ..Default::default()
            },
            StartAnswer::Group(answer) => proto::StartResponse {
                group_id: answer.group_id.to_string(),
                count: answer.count,
                passed_over: answer.passed_over.into_iter().map(passed_over).collect(),
                ..Default::default()
            },
        }))
    }

    async fn stop_job(
        &self,
        request: Request<proto::StopRequest>,
    ) -> Result<Response<proto::StopResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        let asked = api::StopRequest {
            worker_id: given(asked.worker_id),
            job_id: asked.job_id,
            signal: given(asked.signal),
            grace_ms: asked.grace_ms,
            no_wait: asked.no_wait,
        };
        http::stop_job(&self.0, caller, asked).await?;
        Ok(Response::new(proto::StopResponse {}))
    }

    async fn query_job(
        &self,
        request: Request<proto::QueryRequest>,
    ) -> Result<Response<proto::QueryResponse>, Status> {
        use proto::query_response::About;
        let asked = request.into_inner();
        let asked = api::QueryRequest {
            worker_id: given(asked.worker_id),
            job_id: asked.job_id,
            wait_ms: asked.wait_ms,
        };
        let answer = http::query_job(&self.0, asked).await?;
        Ok(Response::new(match answer {
            api::QueryAnswer::Job(answer) => proto::QueryResponse {
                done: answer.done,
                error: answer.error,
                error_text: answer.error_text,
                about: Some(About::Job(Box::new(job(answer.job)))),
            },
            api::QueryAnswer::Group(answer) => proto::QueryResponse {
                done: answer.done,
                error: answer.error,
                error_text: answer.error_text,
                about: Some(About::Group(Box::new(group(answer.group)))),
            },
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<proto::ListJobsRequest>,
    ) -> Result<Response<proto::ListJobsResponse>, Status> {
        let asked = list(request.into_inner())?;
        let answer = http::list_jobs(&self.0, asked).await?;
        Ok(Response::new(proto::ListJobsResponse {
            jobs: answer.jobs.into_iter().map(job).collect(),
            next: answer.next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    type StreamJobStream = BoxStream<'static, Result<proto::StreamJobResponse, Status>>;

    async fn stream_job(
        &self,
        request: Request<proto::StreamJobRequest>,
    ) -> Result<Response<Self::StreamJobStream>, Status> {
        let asked = logs(request.into_inner())?;
        let messages = http::follow(&self.0, asked, &Default::default()).await?;
        let messages = messages.into_messages().map_err(Status::from);
        Ok(Response::new(messages.boxed()))
    }

    async fn list_workers(
        &self,
        request: Request<proto::ListWorkersRequest>,
    ) -> Result<Response<proto::ListWorkersResponse>, Status> {
        let asked = request.into_inner();
        let asked = api::WorkersQuery {
            worker_id: given(asked.worker_id),
            label: given(asked.labels.join(",")),
        };
        let answer = http::list_workers(&self.0, asked)?;
        Ok(Response::new(proto::ListWorkersResponse {
            workers: answer.workers.into_iter().map(worker).collect(),
        }))
    }

    type WatchJobsStream = BoxStream<'static, Result<proto::WatchJobsResponse, Status>>;

    async fn watch_jobs(
        &self,
        request: Request<proto::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let asked = watch(request.into_inner())?;
        let watcher = events::watch(&self.0, &asked).await?;
        let events = stream::try_unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Ok(Some((event_of(event), watcher)))
        });
        Ok(Response::new(events.boxed()))
    }
}

/// Who calls; nobody gets here of whom that is not known.
pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    let known = request.extensions().get().cloned();
    known.unwrap_or_else(|| Caller::nobody(None))
}

/// On the wire a text that is not given is empty.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn bad<T>(message: &str) -> Result<T, Error> {
    Err(Error::BadRequest(message.to_owned()))
}

fn start(wire: proto::StartRequest) -> api::StartRequest {
    api::StartRequest {
        worker_id: given(wire.worker_id),
        command: given(wire.command),
        path: given(wire.path),
        args: wire.args,
        env: wire.env.into_iter().collect(),
        cwd: given(wire.cwd),
        user: given(wire.user),
        name: given(wire.name),
        timeout_ms: wire.timeout_ms,
        labels: wire.labels,
        priority: (wire.priority != 0).then_some(api::Priority::Number(wire.priority)),
        no_queue: wire.no_queue,
        all: wire.all,
        count: wire.count,
        each: (!wire.each.is_empty()).then_some(wire.each),
        at_once: wire.at_once,
        stop_on_failure: wire.stop_on_failure,
        not_before: wire.not_before_us.map(super::wire::time),
        delay_ms: wire.delay_ms,
        deadline_ms: wire.deadline_ms,
        after: wire.after,
        after_any: wire.after_any,
        retries: wire.retries,
        retry_pause_ms: wire.retry_pause_ms,
        on_lost: match wire.requeue_lost {
            true => api::OnLost::Requeue,
            false => api::OnLost::Fail,
        },
    }
}

fn list(wire: proto::ListJobsRequest) -> Result<api::JobsQuery, Error> {
    let mut states = Vec::new();
    for number in &wire.states {
        let known = api::JobState::ALL
            .into_iter()
            .find(|known| i32::from(state(*known)) == *number);
        match known {
            Some(known) => states.push(known.as_str()),
            None => return bad("states has one that no job is in"),
        }
    }
    let after = given(wire.after).map(|text| text.parse());
    Ok(api::JobsQuery {
        state: given(states.join(",")),
        worker_id: given(wire.worker_id),
        name: given(wire.name),
        group_id: given(wire.group_id),
        limit: wire.limit.map(|limit| limit as usize),
        after: match after.transpose() {
            Ok(after) => after,
            Err(_) => return bad("after is no whole id of a job"),
        },
    })
}

fn logs(wire: proto::StreamJobRequest) -> Result<LogsQuery, Error> {
    let stream = match proto::OutputStream::try_from(wire.stream) {
        Ok(proto::OutputStream::Unspecified) => None,
        Ok(proto::OutputStream::Stdout) => Some(api::Stream::Stdout),
        Ok(proto::OutputStream::Stderr) => Some(api::Stream::Stderr),
        Err(_) => return bad("no such stream"),
    };
    Ok(LogsQuery {
        job_id: wire.job_id,
        worker_id: None,
        follow: !wire.no_follow,
        offset: Some(wire.offset),
        tail: wire.tail_lines,
        since: wire.since_us.map(super::wire::time),
        stream,
        attempt: (wire.attempt > 0).then_some(wire.attempt),
        gaps: false,
    })
}

fn watch(wire: proto::WatchJobsRequest) -> Result<api::EventsQuery, Error> {
    let mut kinds = Vec::new();
    for number in &wire.kinds {
        let kind = match proto::EventKind::try_from(*number) {
            Ok(proto::EventKind::Job) => api::EventKind::Job,
            Ok(proto::EventKind::Group) => api::EventKind::Group,
            Ok(proto::EventKind::Worker) => api::EventKind::Worker,
            Ok(proto::EventKind::Unspecified) | Err(_) => {
                return bad("kinds has one that no event is of");
            }
        };
        kinds.push(kind.as_str());
    }
    let after = given(wire.after).map(|text| text.parse());
    Ok(api::EventsQuery {
        job_id: given(wire.job_id),
        worker_id: given(wire.worker_id),
        kind: given(kinds.join(",")),
        after: after.transpose().map_err(Error::BadRequest)?,
    })
}

fn event_of(event: api::Event) -> proto::WatchJobsResponse {
    use proto::watch_jobs_response::Event;
    proto::WatchJobsResponse {
        id: event.id.to_string(),
        event: match event.data {
            EventData::Job(about) => Some(Event::Job(Box::new(job(*about)))),
            EventData::Group(about) => Some(Event::Group(Box::new(group(*about)))),
            EventData::Worker(about) => Some(Event::Worker(Box::new(worker(*about)))),
            EventData::Reset(reset) => Some(Event::Reset(reset.reason)),
            EventData::KeepAlive => None,
        },
    }
}

fn state(state: api::JobState) -> proto::JobState {
    match state {
        api::JobState::Pending => proto::JobState::Pending,
        api::JobState::Running => proto::JobState::Running,
        api::JobState::Unknown => proto::JobState::Unknown,
        api::JobState::Succeeded => proto::JobState::Succeeded,
        api::JobState::Failed => proto::JobState::Failed,
        api::JobState::Stopped => proto::JobState::Stopped,
        api::JobState::TimedOut => proto::JobState::TimedOut,
        api::JobState::Lost => proto::JobState::Lost,
    }
}

fn passed_over(passed: api::PassedOver) -> proto::PassedOver {
    proto::PassedOver {
        worker: passed.worker,
        reason: passed.reason,
    }
}

fn us(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::as_microsecond)
}

fn job(job: api::Job) -> proto::Job {
    proto::Job {
        id: job.id.to_string(),
        group_id: job.group_id.map(|id| id.to_string()).unwrap_or_default(),
        index: job.index,
        item: job.item,
        name: job.name.unwrap_or_default(),
        state: state(job.state).into(),
        reason: job.reason.unwrap_or_default(),
        worker_id: job.worker_id.map(|id| id.to_string()).unwrap_or_default(),
        worker: job.worker.unwrap_or_default(),
        command: job.command.unwrap_or_default(),
        path: job.path.unwrap_or_default(),
        args: job.args,
        env: job.env,
        cwd: job.cwd.unwrap_or_default(),
        user: job.user.unwrap_or_default(),
        labels: job.labels,
        priority: job.priority,
        timeout_ms: job.timeout_ms,
        pid: job.pid,
        exit_code: job.exit_code,
        signal: job.signal,
        start_error: job.start_error.unwrap_or_default(),
        output_bytes: job.output_bytes,
        created_us: job.created_at.as_microsecond(),
        started_us: us(job.started_at),
        ended_us: us(job.ended_at),
        kept_until_us: us(job.kept_until),
        attempt: job.attempt,
        retries: job.retries,
    }
}

fn group(mut group: api::Group) -> proto::Group {
    let states = api::JobState::ALL.into_iter().map(|of| proto::StateCount {
        state: state(of).into(),
        count: *group.states.of(of),
    });
    proto::Group {
        states: states.filter(|state| state.count > 0).collect(),
        id: group.id.to_string(),
        name: group.name.unwrap_or_default(),
        count: group.count,
        command: group.command.unwrap_or_default(),
        path: group.path.unwrap_or_default(),
        args: group.args,
        labels: group.labels,
        all: group.all,
        at_once: group.at_once,
        stop_on_failure: group.stop_on_failure,
        exit_code: group.exit_code.into(),
        created_us: group.created_at.as_microsecond(),
        ended_us: us(group.ended_at),
    }
}

fn worker(worker: api::Worker) -> proto::WorkerInfo {
    let state = match worker.state {
        api::WorkerState::Joining => proto::WorkerState::Joining,
        api::WorkerState::Ready => proto::WorkerState::Ready,
        api::WorkerState::Short => proto::WorkerState::Short,
        api::WorkerState::Draining => proto::WorkerState::Draining,
        api::WorkerState::Unreachable => proto::WorkerState::Unreachable,
        api::WorkerState::Left => proto::WorkerState::Left,
    };
    proto::WorkerInfo {
        id: worker.id.to_string(),
        name: worker.name,
        state: state.into(),
        since_us: worker.since.as_microsecond(),
        address: worker.address,
        version: worker.version,
        running: worker.running,
        slots: worker.slots,
        labels: (*worker.labels).clone().into_iter().collect(),
        load: worker.load,
        cpus: worker.cpus,
        memory_bytes: worker.memory_bytes,
        memory_available_bytes: worker.memory_available_bytes,
        os: worker.os.unwrap_or_default(),
        arch: worker.arch.unwrap_or_default(),
        draining: worker.draining,
        draining_until_us: us(worker.draining_until),
        scripts: Some(proto::ScriptList {
            paths: worker.scripts.to_vec(),
            more: worker.more_scripts,
        }),
        registered_us: worker.registered_at.as_microsecond(),
        last_heartbeat_us: us(worker.last_heartbeat_at),
        removed: worker.removed,
        reason: worker.reason.unwrap_or_default(),
    }
}
