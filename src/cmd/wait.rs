//! `jobctl wait`, and what the end of a job means for whoever stayed for it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Caller, Codes, DONE, EXIT_CODES, INTERRUPTED, Jobs, group, named_jobs, whole_milliseconds,
};
use crate::{
    api::{Job, JobState, QueryAnswer, QueryRequest, exit_code},
    client::{
        self, Away, Client, Ending, Retry,
        render::{self, Spinner},
    },
    ids::JobId,
};

/// How often it is looked whether the worker of the job still answers.
const LOOKED_AFTER: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  jobctl wait last; echo $?
  jobctl start make test | jobctl wait -";

/// Wait for the end of jobs and groups, and end with their exit code
///
/// Of several jobs the first that failed counts, in the order in which they were
/// named; one that was stopped counts only if none failed. Each that did not succeed
/// is named on stderr.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES, after_long_help = EXIT_CODES)]
pub(super) struct Args {
    #[command(flatten)]
    jobs: Jobs,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let jobs = match named_jobs(args.jobs.jobs) {
        Ok(jobs) => jobs,
        Err(error) => return Ok(caller.report(&error, Codes::Job)),
    };
    let mut left = VecDeque::from(jobs);
    // Around all of it: a job may have ended with the code of a Ctrl-C, and a
    // Ctrl-C may come between two of them.
    let code = tokio::select! {
        // First of all, so that it is heard from before the first request on.
        biased;
        interrupt = tokio::signal::ctrl_c() => interrupt.map(|()| None)?,
        code = code_of_all(caller, &mut left) => Some(code),
    };
    Ok(code.unwrap_or_else(|| detached(caller, left.make_contiguous())))
}

/// What the end of a job or a group means for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    code: u8,
    /// It failed by itself: it was not stopped, and did not wait in vain for another.
    failed: bool,
}

impl Outcome {
    /// Of both, where `self` comes first.
    fn and(self, next: Self) -> Self {
        match (self.failed, next.failed) {
            (true, _) => self,
            (false, true) => next,
            (false, false) => Self {
                code: self.code.max(next.code),
                failed: false,
            },
        }
    }
}

/// Takes those off `jobs` that have ended.
async fn code_of_all(caller: &Caller, jobs: &mut VecDeque<String>) -> u8 {
    let is_one = jobs.len() == 1;
    let mut all = Outcome {
        code: DONE,
        failed: false,
    };
    while let Some(job) = jobs.front() {
        let outcome = outcome_of(caller, job.clone(), is_one).await;
        all = all.and(outcome.unwrap_or_else(|error| Outcome {
            code: caller.report(&error, Codes::Job),
            failed: true,
        }));
        jobs.pop_front();
    }
    all.code
}

/// Waits for the end of a job or a group. How a job ended is said only on a terminal
/// if it is the one that was waited for.
async fn outcome_of(caller: &Caller, job_id: String, is_one: bool) -> anyhow::Result<Outcome> {
    let request = QueryRequest {
        job_id,
        ..QueryRequest::default()
    };
    let query = caller.client.query(&request);
    let answer = caller.patiently(query).await?;
    end_of(caller, answer, is_one).await
}

/// As [`outcome_of`], of what was asked about before.
async fn end_of(caller: &Caller, answer: QueryAnswer, is_one: bool) -> anyhow::Result<Outcome> {
    let job = match answer {
        QueryAnswer::Job(answer) => answer.job,
        QueryAnswer::Group(answer) => {
            let group = group::awaited(&caller.client, answer.group.id).await?;
            let states = group.states;
            return Ok(Outcome {
                code: group.exit_code,
                failed: states.unsuccessful() > states.stopped,
            });
        }
    };
    let ended = until_ended(&caller.client, job).await?;
    let (id, ending) = (ended.id.short(), Ending::from(&ended));
    let code = match (is_one, &ended.name) {
        (true, _) => told(&ending, &id),
        (false, Some(name)) => told_of_many(&ending, &format!("{name} ({id})")),
        (false, None) => told_of_many(&ending, &id),
    };
    Ok(Outcome {
        code,
        failed: code != DONE && ended.state != JobState::Stopped,
    })
}

/// As [`outcome_of`], of a job that is there for certain, so that who is away is
/// waited for from the first.
async fn outcome_of_started(caller: &Caller, job: JobId) -> anyhow::Result<Outcome> {
    let request = QueryRequest {
        job_id: job.to_string(),
        ..QueryRequest::default()
    };
    let client = &caller.client;
    let answer = group::patiently(client, async || client.query(&request).await).await?;
    end_of(caller, answer, true).await
}

/// Waits for the job's end, or for Ctrl-C; the number is the exit code.
pub(super) async fn attached(caller: &Caller, job: JobId) -> anyhow::Result<u8> {
    let code = tokio::select! {
        // First of all, so that it is heard from before the first request on.
        biased;
        interrupt = tokio::signal::ctrl_c() => interrupt.map(|()| None)?,
        outcome = outcome_of_started(caller, job) => Some(outcome?.code),
    };
    Ok(code.unwrap_or_else(|| detached(caller, &[job.short()])))
}

/// Asks by id, so that `last` goes on meaning the same job.
pub(super) async fn until_ended(client: &Client, mut job: Job) -> Result<Job, client::Error> {
    let _spinner = Spinner::new(&format!("waiting for job {}", job.id.short()));
    let request = QueryRequest {
        job_id: job.id.to_string(),
        worker_id: None,
        wait_ms: Some(whole_milliseconds(LOOKED_AFTER)),
    };
    let mut retry = Retry::new(Instant::now());
    let mut failures = 0;
    let mut away = None;
    while !job.state.is_final() {
        let worker = job
            .worker
            .clone()
            .filter(|_| job.state == JobState::Unknown);
        say_who_is_away(client, &mut away, worker.map(Away::Worker));
        match client.query(&request).await {
            Ok(answer) => {
                retry.connected(Instant::now());
                retry.progressed();
                failures = 0;
                if let QueryAnswer::Job(answer) = answer {
                    job = answer.job;
                }
            }
            Err(error) => {
                let Some(pause) = retry.pause(&error, Instant::now()) else {
                    return Err(error);
                };
                failures += 1;
                if let (2, Some(away)) = (failures, client.away(&error)) {
                    client.say(&away);
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(job)
}

/// Says who is away now, if that is another than `before`.
pub(super) fn say_who_is_away(client: &Client, before: &mut Option<Away>, now: Option<Away>) {
    if *before == now {
        return;
    }
    if let Some(back) = before.take() {
        client.is_back(&back);
    }
    if let Some(away) = &now {
        client.say(away);
    }
    *before = now;
}

/// After Ctrl-C: says what was not stopped, and how to do that.
pub(super) fn detached(caller: &Caller, jobs: &[String]) -> u8 {
    let thing = match jobs {
        [_] => "job",
        _ => "jobs",
    };
    detached_from(caller, thing, jobs)
}

/// As [`detached`], from what is called so.
pub(super) fn detached_from(caller: &Caller, thing: &str, jobs: &[String]) -> u8 {
    let (jobs, jobctl) = (jobs.join(" "), &caller.jobctl);
    // Off the line on which the terminal shows ^C.
    render::remark("");
    render::note(&format!(
        "detached; {thing} {jobs} not stopped: `{jobctl} stop {jobs}`"
    ));
    INTERRUPTED
}

/// The exit code of the command that stayed for it.
fn exit_code(ending: &Ending) -> u8 {
    let start_error = ending.start_error.as_deref();
    exit_code::of(ending.state, ending.exit_code, ending.signal, start_error)
}

/// What to say about it; the exit code says as much, save where the job
/// itself had no part in it.
fn remark(ending: &Ending, label: &str) -> Option<Remark> {
    let because = |what: &str| match ending.reason.as_str() {
        "" => format!("job {label} {what}"),
        reason => format!("job {label} {what}: {reason}"),
    };
    if ending.start_error.is_some() {
        return Some(Remark::Always(because("could not be started")));
    }
    match ending.state {
        JobState::Succeeded => None,
        JobState::Failed => Some(Remark::Attended(because("failed"))),
        JobState::Stopped => Some(Remark::Attended(because("was stopped"))),
        // These reasons begin with the words of the state.
        JobState::TimedOut if ending.reason.starts_with("timed out") => {
            Some(Remark::Always(format!("job {label} {}", ending.reason)))
        }
        JobState::TimedOut => Some(Remark::Always(because("timed out"))),
        JobState::Lost => {
            let reason = ending.reason.strip_prefix("lost: ");
            Some(Remark::Always(match reason {
                Some(reason) => format!("job {label} is lost: {reason}"),
                None => because("is lost"),
            }))
        }
        JobState::Pending | JobState::Running | JobState::Unknown => Some(Remark::Always(because(
            &format!("has not ended; it is {}", ending.state.as_str()),
        ))),
    }
}

/// Says how it ended where that needs saying, and returns the exit code.
pub(super) fn told(ending: &Ending, label: &str) -> u8 {
    match remark(ending, label) {
        Some(Remark::Always(text)) => render::note(&text),
        Some(Remark::Attended(text)) => render::remark(&text),
        None => {}
    }
    exit_code(ending)
}

/// As [`told`], of one among others: the exit code alone does not say which it was.
fn told_of_many(ending: &Ending, label: &str) -> u8 {
    if let Some(Remark::Always(text) | Remark::Attended(text)) = remark(ending, label) {
        render::note(&text);
    }
    exit_code(ending)
}

#[derive(Debug, PartialEq, Eq)]
enum Remark {
    Always(String),
    /// Only on a terminal.
    Attended(String),
}

#[cfg(test)]
mod tests {
    use std::{
        future::IntoFuture as _,
        sync::{Arc, Mutex},
    };

    use axum::{Json, Router, http::StatusCode, routing::post};
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::cmd::{Effect, Reach};

    fn ending(state: JobState, exit_code: Option<i32>, signal: Option<i32>) -> Ending {
        Ending {
            state,
            exit_code,
            signal,
            start_error: None,
            reason: String::new(),
        }
    }

    #[test]
    fn every_ending_has_its_exit_code() {
        use JobState::{Failed, Lost, Pending, Running, Stopped, Succeeded, TimedOut, Unknown};
        for (state, exit_code, signal, code) in [
            (Succeeded, Some(0), None, 0),
            (Failed, Some(7), None, 7),
            (Failed, Some(255), None, 255),
            (Failed, None, Some(9), 137),
            (Failed, None, None, 125),
            (Failed, Some(0), None, 125),
            (Failed, Some(-1), None, 125),
            (Failed, Some(256), None, 125),
            (Stopped, None, Some(15), 143),
            (Stopped, None, Some(9), 137),
            (Stopped, Some(0), None, 143),
            (Stopped, Some(5), None, 5),
            (Stopped, None, None, 143),
            (TimedOut, None, Some(15), 124),
            (TimedOut, Some(0), None, 124),
            (Lost, None, None, 125),
            (Pending, None, None, 125),
            (Running, None, None, 125),
            (Unknown, None, None, 125),
        ] {
            assert_eq!(
                super::exit_code(&ending(state, exit_code, signal)),
                code,
                "{state:?} {exit_code:?}"
            );
        }
        for (word, code) in [
            ("program_not_found", 127),
            ("script_not_found", 127),
            ("not_executable", 126),
            ("spawn_failed", 125),
        ] {
            let ending = Ending {
                start_error: Some(word.into()),
                ..ending(Failed, None, None)
            };
            assert_eq!(exit_code(&ending), code, "{word}");
        }
    }

    #[test]
    fn a_remark_is_made_where_the_exit_code_says_too_little() {
        let said = |state, reason: &str| {
            let ending = Ending {
                reason: reason.into(),
                ..ending(state, None, None)
            };
            remark(&ending, "3f2a")
        };
        let always = |text: &str| Some(Remark::Always(text.into()));
        assert_eq!(said(JobState::Succeeded, ""), None);
        assert_eq!(
            said(JobState::Failed, "exit status 3"),
            Some(Remark::Attended("job 3f2a failed: exit status 3".into()))
        );
        assert_eq!(
            said(JobState::TimedOut, "timed out after 10m"),
            always("job 3f2a timed out after 10m")
        );
        assert_eq!(
            said(JobState::Lost, "lost: worker restarted"),
            always("job 3f2a is lost: worker restarted")
        );
        assert_eq!(said(JobState::Lost, ""), always("job 3f2a is lost"));
    }

    #[test]
    fn the_first_that_failed_counts_and_no_stop_hides_it() {
        let all = |ends: &[(u8, bool)]| {
            let ends = ends.iter().map(|&(code, failed)| Outcome { code, failed });
            ends.reduce(Outcome::and).unwrap().code
        };
        assert_eq!(all(&[(143, false), (9, true)]), 9);
        assert_eq!(all(&[(9, true), (143, false)]), 9);
        assert_eq!(all(&[(3, true), (0, false), (5, true)]), 3);
        assert_eq!(all(&[(137, false), (143, false), (0, false)]), 143);
        assert_eq!(all(&[(0, false), (0, false)]), 0);
    }

    #[tokio::test]
    async fn waiting_goes_on_behind_a_scheduler_that_is_being_restarted() {
        let record = |state: &str| {
            json!({
                "id": "3f2a8b1c-9d4e-4f00-8000-000000000000", "name": null, "state": state,
                "reason": null, "worker_id": null, "worker": null, "command": "x",
                "path": null, "args": [], "env": [], "cwd": null, "user": null, "timeout_ms": null,
                "pid": null, "exit_code": 7, "signal": null, "start_error": null,
                "output_bytes": 0, "created_at": "2026-01-02T03:04:05Z",
                "started_at": null, "ended_at": null
            })
        };
        let answer = |state| {
            let body = json!({
                "done": state == "failed", "error": false, "error_text": "", "job": record(state)
            });
            (StatusCode::OK, Json(body))
        };
        let refusal = |status, code: &str| (status, Json(json!({"error": code, "code": code})));
        let answers = Mutex::new(VecDeque::from([
            answer("running"),
            answer("running"),
            refusal(StatusCode::SERVICE_UNAVAILABLE, "starting"),
            refusal(StatusCode::NOT_FOUND, "job_not_found"),
            answer("failed"),
        ]));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&asked);
        let answers = Arc::new(answers);
        let router = Router::new().route(
            "/query",
            post(move |Json(request): Json<QueryRequest>| async move {
                keep.lock().unwrap().push(request);
                answers.lock().unwrap().pop_front().unwrap()
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        let reach = Reach {
            server: Some(server.parse().unwrap()),
            ..Reach::default()
        };
        let caller = Caller::among(reach, Effect::Reads, |_| None).unwrap();

        let outcome = outcome_of(&caller, "last".into(), true).await.unwrap();
        assert_eq!((outcome.code, outcome.failed), (7, true));
        let asked = asked.lock().unwrap();
        let asked: Vec<_> = asked
            .iter()
            .map(|request| (request.job_id.as_str(), request.wait_ms))
            .collect();
        let by_id = ("3f2a8b1c-9d4e-4f00-8000-000000000000", Some(10_000));
        assert_eq!(asked, [("last", None), by_id, by_id, by_id, by_id]);
    }
}
