//! `jobctl workers drain` and `jobctl workers resume`

use std::time::Duration;

use super::{Workers, found, order};
use crate::{
    api::{DrainWorkerRequest, JobState, JobsQuery, MAX_PAGE, ResumeWorkerRequest, Worker},
    client::{self, render},
    cmd::{Caller, Codes, INTERRUPTED, listed, wait, whole_milliseconds},
    config,
};

const EXAMPLES: &str = "\
Examples:
  jobctl workers drain w1
  jobctl workers drain w1 --wait --deadline 1h && ssh w1 reboot";

/// Give workers no more jobs; those they have go on
///
/// Holds until `jobctl workers resume`, whatever is restarted.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Drain {
    #[command(flatten)]
    workers: Workers,

    /// Stop what is left of their jobs after so long [default: they end by
    /// themselves]
    #[arg(long, value_name = "DURATION", value_parser = config::duration)]
    deadline: Option<Duration>,

    /// Return when no job is left on them
    #[arg(long)]
    wait: bool,
}

/// Let workers that were drained take jobs again
#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    #[command(flatten)]
    workers: Workers,
}

pub(super) async fn run(args: Drain, caller: &Caller) -> anyhow::Result<u8> {
    let named = listed(args.workers.workers, "workers")?;
    let drain = async |worker_id| {
        let request = DrainWorkerRequest {
            worker_id,
            deadline_ms: args.deadline.map(whole_milliseconds),
        };
        caller.client.drain_worker(&request).await?;
        Ok(())
    };
    let (drained, highest) = order(named, caller, drain, "takes no more jobs").await;
    if !args.wait {
        return Ok(highest);
    }
    let waited = async {
        let (workers, unknown) = found(drained, caller).await;
        let mut highest = highest.max(unknown);
        for worker in &workers {
            match until_empty(worker, caller).await {
                Ok(()) => render::remark(&format!("{} has no job left", worker.name)),
                Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
            }
        }
        highest
    };
    tokio::select! {
        biased;
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            render::remark("");
            render::note("not waited for; the workers go on draining");
            Ok(INTERRUPTED)
        }
        highest = waited => Ok(highest),
    }
}

/// Returns when the worker has no job that has not ended.
async fn until_empty(worker: &Worker, caller: &Caller) -> Result<(), client::Error> {
    let live = JobState::ALL.into_iter().filter(|state| !state.is_final());
    let live: Vec<_> = live.map(JobState::as_str).collect();
    let query = JobsQuery {
        state: Some(live.join(",")),
        worker_id: Some(worker.id.to_string()),
        limit: Some(MAX_PAGE),
        ..JobsQuery::default()
    };
    loop {
        let left = caller.patiently(caller.client.jobs(&query)).await?.jobs;
        if left.is_empty() {
            return Ok(());
        }
        for job in left {
            wait::until_ended(&caller.client, job).await?;
        }
    }
}

pub(super) async fn resume(args: Resume, caller: &Caller) -> anyhow::Result<u8> {
    let resume = async |worker_id| {
        let request = ResumeWorkerRequest { worker_id };
        caller.client.resume_worker(&request).await?;
        Ok(())
    };
    let named = listed(args.workers.workers, "workers")?;
    let (_, highest) = order(named, caller, resume, "takes jobs again").await;
    Ok(highest)
}
