//! `jobctl stop`

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::{AT_ONCE, Codes, DONE, Jobs, named_jobs, report, whole_milliseconds};
use crate::{
    api::{StopRequest, code},
    client::{
        Client,
        render::{self, Spinner},
    },
    config,
};

const EXAMPLES: &str = "\
Examples:
  jobctl stop nightly
  jobctl stop --signal INT --grace 1m 3f2a8b1c
  jobctl jobs -q --state running | jobctl stop -";

/// Stop jobs, each with everything it started
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
    #[arg(long, value_name = "DURATION", value_parser = config::duration)]
    grace: Option<Duration>,

    /// Return once the signal was sent
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(args: Args, client: &Client) -> anyhow::Result<u8> {
    let jobs = named_jobs(args.jobs.jobs)?;
    let spinner = Spinner::new("waiting for the end");
    let requests = jobs.into_iter().map(|job_id| StopRequest {
        worker_id: None,
        job_id,
        signal: args.signal.clone(),
        grace_ms: args.grace.map(whole_milliseconds),
        no_wait: args.no_wait,
    });
    let calls = requests.map(|request| async move {
        let answer = client.stop(&request).await;
        (request, answer)
    });
    let answers: Vec<_> = stream::iter(calls).buffered(AT_ONCE).collect().await;
    drop(spinner);
    let mut highest = DONE;
    for (request, answer) in answers {
        let job = &request.job_id;
        match answer {
            Ok(_) if request.no_wait => render::remark(&format!("job {job} is being stopped")),
            Ok(_) => render::remark(&format!("job {job} is stopped")),
            Err(error) if error.code() == Some(code::JOB_FINISHED) => {
                render::note(&format!("job {job} has ended already"));
            }
            Err(error) => highest = highest.max(report(&error.into(), Codes::Jobctl)),
        }
    }
    Ok(highest)
}
