//! `jobctl version`

use serde::Serialize;

use super::{Caller, DONE, Document};
use crate::client::{render, visible::visible};

const EXAMPLES: &str = "\
Examples:
  jobctl version
  jobctl version -o json | jq -r .server";

/// Show the versions of this program and of the scheduler
///
/// A scheduler that does not answer is not an error here.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
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
    let answer = caller.patiently(caller.client.version()).await;
    let server = answer.as_ref().ok().map(|answer| answer.version.clone());
    let said = match &answer {
        Ok(answer) => format!("{} at {}", answer.version, caller.client.server()),
        Err(error) => error.to_string(),
    };
    show(&args, server, &said)
}

/// Where no scheduler is known: `why`.
pub(super) fn alone(args: &Args, why: &anyhow::Error) -> anyhow::Result<u8> {
    show(args, None, &why.to_string())
}

fn show(args: &Args, server: Option<String>, said: &str) -> anyhow::Result<u8> {
    let versions = Versions {
        client: env!("CARGO_PKG_VERSION"),
        server,
    };
    let format = match args.output {
        None => {
            let server = visible(said);
            render::data(&format!("client {}\nserver {server}\n", versions.client))?;
            return Ok(DONE);
        }
        Some(format) => format,
    };
    render::value(&versions, format.into())?;
    Ok(DONE)
}
