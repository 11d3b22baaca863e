//! `jobctl stop`

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::{
    AT_ONCE, Caller, Codes, DONE, INTERRUPTED, Jobs, Named, named, named_jobs, whole_milliseconds,
};
use crate::{
    api::{StopRequest, StopResponse, code},
    client::{self, render},
    config,
};

const EXAMPLES: &str = "\
Examples:
  jobctl stop nightly
  jobctl stop --signal INT --grace 1m 3f2a8b1c
  jobctl jobs --all -q --state running | jobctl stop -";

/// Stop jobs and groups, each with everything it started
///
/// Returns once they are gone. A job that has ended already is no error.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    jobs: Jobs,

    /// The first signal [default: TERM]
    #[arg(long)]
    signal: Option<String>,

    /// From the first signal to KILL [default: the worker's own]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        value_parser = config::duration
    )]
    grace: Option<Duration>,

    /// Return once the signal was sent
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let jobs = named_jobs(args.jobs.jobs)?;
    let template = StopRequest {
        signal: args.signal,
        grace_ms: args.grace.map(whole_milliseconds),
        no_wait: args.no_wait,
        ..StopRequest::default()
    };
    let calls = jobs.into_iter().map(|job| stop(caller, &template, job));
    let answers = stream::iter(calls).buffered(AT_ONCE).collect::<Vec<_>>();
    let answers = tokio::select! {
        // First of all, so that it is heard from before the first request on.
        biased;
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            // Off the line on which the terminal shows ^C.
            render::remark("");
            render::note(&format!(
                "no longer waited for; what was asked to stop goes on stopping: `{} jobs`",
                caller.jobctl
            ));
            return Ok(INTERRUPTED);
        }
        answers = render::patiently("waiting for the end", answers) => answers,
    };
    let mut highest = DONE;
    for (job, answer) in answers {
        match answer {
            Ok(_) if args.no_wait => render::remark(&format!("{job} is being stopped")),
            Ok(_) => render::remark(&format!("{job} is stopped")),
            Err(error) if error.code() == Some(code::JOB_FINISHED) => {
                render::note(&format!("{job} has ended already"));
            }
            Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
        }
    }
    Ok(highest)
}

/// Stops one job or group; also returns what to call it.
async fn stop(
    caller: &Caller,
    template: &StopRequest,
    job: String,
) -> (String, Result<StopResponse, client::Error>) {
    let (job_id, label) = match named(caller, job.clone()).await {
        Ok((Named::Job(id), label)) => (id.to_string(), format!("job {label}")),
        Ok((Named::Group(group), label)) => (group.id.to_string(), format!("group {label}")),
        Err(error) => return (job, Err(error)),
    };
    let request = StopRequest {
        job_id,
        ..template.clone()
    };
    (label, caller.client.stop(&request).await)
}
