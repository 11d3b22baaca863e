//! Translates between the gRPC messages about a job and the types of
//! `jobs.rs`, in both directions, for every file that speaks to workers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    about::{ScriptFolder, Told},
    jobs::{End, Exit, Process, Record, Report, Spec, State, Status},
    registry::Beat,
    store::Env,
};
use crate::{
    api::{self, whole_milliseconds},
    proto,
};

/// Characters that are kept of what a worker says it lacks.
const MAX_LACKS: usize = 500;

/// What a worker says of a job; None where it says nothing that can be understood.
pub(super) fn status(wire: &proto::JobStatus) -> Option<Status> {
    let process = (wire.pid.is_some() || wire.started_us.is_some()).then(|| Process {
        pid: wire.pid,
        since: wire.started_us.map(time),
        ran: wire.ran_ms.map(Duration::from_millis),
        swept: wire.swept,
    });
    let exit = match (wire.exit_code, wire.signal) {
        (_, Some(signal)) => Some(Exit::Signal(signal)),
        (Some(code), None) => Some(Exit::Code(code)),
        (None, None) => None,
    };
    let ended = |end| State::Ended {
        process,
        at: wire.ended_us.map_or_else(Timestamp::now, time),
        end,
        reason: wire.reason.clone(),
    };
    let state = match wire.state() {
        proto::JobState::Unspecified | proto::JobState::Unknown => return None,
        proto::JobState::Pending => State::Pending { call_open: false },
        proto::JobState::Running => State::Running(process.unwrap_or_default()),
        proto::JobState::Succeeded => ended(End::Succeeded),
        proto::JobState::Failed if wire.start_error.is_empty() => ended(End::Failed(exit)),
        proto::JobState::Failed => ended(End::NotStarted {
            code: wire.start_error.clone(),
        }),
        proto::JobState::Stopped => ended(End::Stopped(exit)),
        proto::JobState::TimedOut => ended(End::TimedOut(exit)),
        proto::JobState::Lost => ended(End::Lost),
    };
    Some(Status {
        state,
        output_bytes: wire.output_bytes,
    })
}

/// How the record stands, as a worker would say it.
pub(super) fn status_of(record: &Record) -> proto::JobStatus {
    let job = record.job();
    let state = match &record.state {
        State::Queued | State::Pending { .. } => proto::JobState::Pending,
        State::Running(_) => proto::JobState::Running,
        State::Unknown { .. } => proto::JobState::Unspecified,
        State::Ended { end, .. } => match end {
            End::Succeeded => proto::JobState::Succeeded,
            End::Failed(_) | End::NotStarted { .. } => proto::JobState::Failed,
            End::Stopped(_) => proto::JobState::Stopped,
            End::TimedOut(_) => proto::JobState::TimedOut,
            End::Lost => proto::JobState::Lost,
        },
    };
    proto::JobStatus {
        state: state.into(),
        pid: job.pid,
        started_us: job.started_at.map(|time| time.as_microsecond()),
        ended_us: job.ended_at.map(|time| time.as_microsecond()),
        exit_code: job.exit_code,
        signal: job.signal,
        reason: job.reason.unwrap_or_default(),
        start_error: job.start_error.unwrap_or_default(),
        output_bytes: job.output_bytes,
        ran_ms: job.ran_ms,
        swept: job.swept,
    }
}

/// What a worker says of itself when it registers.
pub(super) fn told(wire: &mut proto::RegisterWorkerRequest) -> Told {
    Told {
        labels: std::mem::take(&mut wire.labels).into_iter().collect(),
        slots: wire.slots,
        cpus: wire.cpus,
        memory_bytes: wire.memory_bytes,
        os: std::mem::take(&mut wire.os),
        arch: std::mem::take(&mut wire.arch),
    }
}

pub(super) fn scripts(wire: proto::ScriptList) -> ScriptFolder {
    ScriptFolder::new(wire.paths, wire.more)
}

/// What a worker says of itself with a message of its stream.
pub(super) fn beat(wire: &mut proto::HeartbeatRequest) -> Beat {
    Beat {
        running: wire.running,
        load: f64::from(wire.load_milli) / 1000.0,
        memory_available_bytes: wire.memory_available_bytes,
        is_ending: wire.draining,
        lacks: lacks(std::mem::take(&mut wire.lacks)),
        scripts: wire.scripts.take().map(scripts),
    }
}

/// What a worker says that it lacks, in one line that has an end.
fn lacks(wire: Vec<String>) -> Option<Arc<str>> {
    let lacks = wire.join("; ");
    let end = lacks.char_indices().nth(MAX_LACKS);
    let lacks = &lacks[..end.map_or(lacks.len(), |(end, _)| end)];
    (!lacks.is_empty()).then(|| lacks.into())
}

/// One line of a heartbeat; None where it cannot be understood.
pub(super) fn report(wire: proto::JobReport) -> Option<Report> {
    let of = wire.spec.as_ref().map(|spec| spec.attempt_of.parse());
    Some(Report {
        run: wire.job_id.parse().ok()?,
        of: of.and_then(Result::ok),
        status: status(wire.status.as_ref()?)?,
        spec: wire.spec.map(|spec| {
            let created_at = time(spec.created_us);
            (self::spec(spec), created_at)
        }),
    })
}

fn spec(wire: proto::StartJobRequest) -> Spec {
    let given = |text: String| (!text.is_empty()).then_some(text);
    Spec {
        command: given(wire.command),
        path: given(wire.path),
        args: wire.args,
        env: BTreeMap::from_iter(wire.env).into_keys().collect(),
        cwd: given(wire.cwd),
        user: given(wire.user),
        name: given(wire.name),
        timeout: (wire.timeout_ms > 0).then(|| Duration::from_millis(wire.timeout_ms)),
        ..Spec::default()
    }
}

/// The request that starts `record`'s job; `env` is not part of the record.
pub(super) fn start_request(record: &Record, env: &Env, epoch: u64) -> proto::StartJobRequest {
    let spec = &record.spec;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let attempt = record.attempt();
    let session = record.place.as_ref().map(|place| place.session.to_string());
    proto::StartJobRequest {
        command: text(&spec.command),
        path: text(&spec.path),
        job_id: record.run().unwrap_or(record.id).to_string(),
        args: spec.args.clone(),
        env: env.clone().into_iter().chain(of_group(record)).collect(),
        cwd: text(&spec.cwd),
        user: text(&spec.user),
        name: text(&spec.name),
        timeout_ms: spec.timeout.map_or(0, whole_milliseconds),
        session: session.unwrap_or_default(),
        created_us: record.created_at.as_microsecond(),
        epoch,
        attempt_of: match attempt {
            1 => String::new(),
            _ => record.id.to_string(),
        },
        attempt: match attempt {
            1 => 0,
            later => later,
        },
    }
}

/// What a job of a group finds in its environment about its part.
fn of_group(record: &Record) -> impl Iterator<Item = (String, String)> {
    let variables = record.member.iter().flat_map(|member| {
        [
            ("JOBCTL_GROUP_ID", Some(member.group.to_string())),
            ("JOBCTL_INDEX", Some(member.index.to_string())),
            ("JOBCTL_COUNT", Some(member.count.to_string())),
            ("JOBCTL_ITEM", member.item.as_deref().map(str::to_owned)),
        ]
    });
    variables.filter_map(|(name, value)| Some((name.to_owned(), value?)))
}

/// Why output is missing; `None`: it is not known, or not to this version.
pub(super) fn gap_cause(wire: proto::GapCause) -> Option<api::GapCause> {
    match wire {
        proto::GapCause::Unspecified => None,
        proto::GapCause::Limit => Some(api::GapCause::Limit),
        proto::GapCause::DiskFull => Some(api::GapCause::DiskFull),
        proto::GapCause::NotWritten => Some(api::GapCause::NotWritten),
        proto::GapCause::Removed => Some(api::GapCause::Removed),
        proto::GapCause::Damaged => Some(api::GapCause::Damaged),
        proto::GapCause::PowerLoss => Some(api::GapCause::PowerLoss),
    }
}

/// A time on the wire. One that no calendar holds can only be a worker's
/// mistake, and must not cost the rest of the message.
pub(super) fn time(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_understood() {
        use proto::JobState as Wire;
        for (wire, end) in [
            (Wire::Succeeded, End::Succeeded),
            (Wire::Failed, End::Failed(Some(Exit::Code(3)))),
            (Wire::Stopped, End::Stopped(Some(Exit::Code(3)))),
            (Wire::TimedOut, End::TimedOut(Some(Exit::Code(3)))),
            (Wire::Lost, End::Lost),
        ] {
            let status = status(&proto::JobStatus {
                state: wire.into(),
                exit_code: Some(3),
                ..Default::default()
            });
            let State::Ended { end: got, .. } = status.unwrap().state else {
                panic!("{wire:?} is an end");
            };
            assert_eq!(got, end);
        }
        assert_eq!(status(&proto::JobStatus::default()), None);
    }

    #[test]
    fn how_long_it_ran_is_the_workers_word() {
        let said = status(&proto::JobStatus {
            state: proto::JobState::Succeeded.into(),
            pid: Some(7),
            started_us: Some(9_000_000),
            ended_us: Some(1_000_000),
            ran_ms: Some(6000),
            swept: 2,
            ..Default::default()
        });
        let process = said.unwrap().state.process().unwrap();
        assert_eq!(process.ran, Some(Duration::from_secs(6)));
        assert_eq!(process.swept, 2);
    }

    #[test]
    fn a_time_outside_the_calendar_is_survived() {
        assert_eq!(time(i64::MAX), Timestamp::UNIX_EPOCH);
    }
}
