//! `jobctl query`

use futures_util::{StreamExt as _, stream};

use super::{AT_ONCE, Caller, Codes, DONE, Jobs, Shown, named_jobs};
use crate::{
    api::QueryRequest,
    client::render::{self, Many},
};

const EXAMPLES: &str = "\
Examples:
  jobctl query last
  jobctl query -o json nightly | jq .exit_code";

/// Show jobs, and groups of jobs, in full
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    jobs: Jobs,

    #[command(flatten)]
    shown: Shown,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let named = named_jobs(args.jobs.jobs)?;
    let many = match named.len() {
        1 => Many::Named,
        _ => Many::Several,
    };
    let calls = named.into_iter().map(|job_id| async move {
        let request = QueryRequest {
            job_id,
            ..QueryRequest::default()
        };
        caller.client.query(&request).await
    });
    let answers = stream::iter(calls).buffered(AT_ONCE).collect::<Vec<_>>();
    let answers = caller.patiently(answers).await;
    let (mut found, mut highest) = (Vec::new(), DONE);
    for answer in answers {
        match answer {
            Ok(answer) => found.push(answer),
            Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
        }
    }
    if highest == DONE || !found.is_empty() {
        render::answers(&found, args.shown.format(), many)?;
    }
    Ok(highest)
}
