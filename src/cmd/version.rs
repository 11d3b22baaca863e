//! `jobctl version`

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Caller, Codes, DONE, Document};
use crate::{
    api::VersionResponse,
    client::{self, Retry, render, visible::visible},
    config,
};

const EXAMPLES: &str = "\
Examples:
  jobctl version
  jobctl version --wait 30s && jobctl start make test
  jobctl version -o json | jq -r .server";

/// Show the versions of this program and of the scheduler
///
/// Where the scheduler does not answer, that of this program is shown and the exit
/// code is 5; `jobctl --version` asks no scheduler.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    /// Wait so long for the scheduler to be ready, as `30s`
    #[arg(long, value_name = "DURATION", value_parser = config::duration)]
    wait: Option<Duration>,

    /// How to show it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        hide_possible_values = true,
        help = "How to show it: json, jsonl or yaml [default: two lines]",
        help_heading = "Output"
    )]
    output: Option<Document>,
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    /// Null where the scheduler does not answer.
    server: Option<String>,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    match caller.patiently(answer(caller, args.wait)).await {
        Ok(answer) => {
            let place = format!("{} at {}", answer.version, caller.client.server());
            show(&args, Some(answer.version), &place)?;
            Ok(DONE)
        }
        Err(error) => {
            alone(&args)?;
            Ok(caller.report(&error.into(), Codes::Jobctl))
        }
    }
}

/// Asks until there is an answer, or the time is over. A scheduler that answers is
/// ready: it does so only once it knows its records.
async fn answer(caller: &Caller, wait: Option<Duration>) -> Result<VersionResponse, client::Error> {
    let client = &caller.client;
    let mut retry = Retry::within(wait.unwrap_or_default(), Instant::now());
    loop {
        let error = match client.version().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some(pause) = retry.pause(&error, Instant::now()) else {
            return Err(error);
        };
        if let Some(away) = client.away(&error) {
            client.say(&away);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Where no scheduler answers.
pub(super) fn alone(args: &Args) -> anyhow::Result<()> {
    show(args, None, "unknown")
}

fn show(args: &Args, server: Option<String>, said: &str) -> anyhow::Result<()> {
    let versions = Versions {
        client: env!("CARGO_PKG_VERSION"),
        server,
    };
    let Some(format) = args.output else {
        let server = visible(said);
        render::data(&format!("client {}\nserver {server}\n", versions.client))?;
        return Ok(());
    };
    render::value(&versions, format.into())?;
    Ok(())
}
