//! `jobctl version`

use serde::Serialize;

use super::{Caller, DONE};
use crate::client::{
    render::{self, Format},
    visible::visible,
};

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

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Document {
    Json,
    Jsonl,
    Yaml,
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    /// Null where the scheduler does not answer.
    server: Option<String>,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let answer = caller.patiently(caller.client.version()).await;
    let versions = Versions {
        client: env!("CARGO_PKG_VERSION"),
        server: answer.as_ref().ok().map(|answer| answer.version.clone()),
    };
    let format = match args.output {
        None => {
            let server = match &answer {
                Ok(answer) => format!("{} at {}", answer.version, caller.client.server()),
                Err(error) => error.to_string(),
            };
            let server = visible(&server);
            render::data(&format!("client {}\nserver {server}\n", versions.client))?;
            return Ok(DONE);
        }
        Some(Document::Json) => Format::Json,
        Some(Document::Jsonl) => Format::Jsonl,
        Some(Document::Yaml) => Format::Yaml,
    };
    render::value(&versions, format)?;
    Ok(DONE)
}
