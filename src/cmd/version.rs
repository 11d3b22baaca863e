//! `jobctl version`

use serde::Serialize;

use super::{DONE, Shown};
use crate::client::{
    Client,
    render::{self, Format},
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
    #[command(flatten)]
    shown: Shown,
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    /// Null where the scheduler does not answer.
    server: Option<String>,
}

pub(super) async fn run(args: Args, client: &Client) -> anyhow::Result<u8> {
    let answer = client.version().await;
    let url = client.server();
    let server = match &answer {
        Ok(answer) => format!("{} at {url}", render::visible(&answer.version)),
        Err(_) => format!("not reachable at {url}"),
    };
    let versions = Versions {
        client: env!("CARGO_PKG_VERSION"),
        server: answer.ok().map(|answer| answer.version),
    };
    match args.shown.format() {
        Format::Table { .. } | Format::Name | Format::Id => {
            render::data(&format!("client {}\nserver {server}\n", versions.client))?;
        }
        format @ (Format::Json | Format::Jsonl | Format::Yaml) => {
            render::value(&versions, format)?;
        }
    }
    Ok(DONE)
}
