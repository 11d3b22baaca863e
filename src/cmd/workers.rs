//! `jobctl workers`

use super::{Caller, DONE, Shown};
use crate::client::render;

const EXAMPLES: &str = "\
Examples:
  jobctl workers
  jobctl workers -o json | jq '.[] | select(.state == \"ready\") | .name'";

/// List the workers and how they stand
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    shown: Shown,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let workers = caller.patiently(caller.client.workers()).await?.workers;
    render::workers(&workers, args.shown.format())?;
    if workers.is_empty() {
        render::note("no workers; start one with `jobctl worker`");
    }
    Ok(DONE)
}
