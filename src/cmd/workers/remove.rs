//! `jobctl workers remove`

use anyhow::Context as _;

use super::{Workers, found};
use crate::{
    api::RemoveWorkerRequest,
    client::render,
    cmd::{Caller, Codes, FAILED, listed, usage},
};

const EXAMPLES: &str = "\
Examples:
  jobctl workers remove w1
  jobctl workers remove --yes w1 && jobctl cert revoke --yes w1";

/// Forget workers that are gone and will not come back
///
/// What they had of jobs is lost, and so is what was ordered of them. One that is
/// there is not removed: drain and stop it first. One that comes back is let in
/// again, unless its certificate is revoked: `jobctl cert revoke`.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    workers: Workers,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let named = listed(args.workers.workers, "workers")?;
    let (workers, mut highest) = found(named, caller).await;
    if workers.is_empty() {
        return Ok(highest);
    }
    if !args.yes {
        let names: Vec<&str> = workers.iter().map(|worker| worker.name.as_str()).collect();
        let question = format!("remove {}, and give up the jobs there?", names.join(", "));
        match render::ask(&question).context("cannot ask")? {
            Some(true) => {}
            Some(false) => {
                render::note("nothing is removed");
                return Ok(highest.max(FAILED));
            }
            None => return Err(usage("workers", "without a terminal, `--yes` is needed")),
        }
    }
    for worker in workers {
        let request = RemoveWorkerRequest {
            worker_id: worker.id.to_string(),
        };
        let removed = caller.client.remove_worker(&request);
        match caller.patiently(removed).await {
            Ok(_) => render::remark(&format!("{} is removed", worker.name)),
            Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
        }
    }
    Ok(highest)
}
