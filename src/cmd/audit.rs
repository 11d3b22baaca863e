//! `jobctl audit`

use std::io::{IsTerminal as _, stdout};

use super::{Caller, DONE, FAILED, INTERRUPTED};
use crate::{
    api::AuditQuery,
    client::{
        audit::{Audit, Broken, Chain, Event},
        render::{self, Format},
    },
};

const EXAMPLES: &str = "\
Examples:
  jobctl audit -n 20
  jobctl audit --follow
  jobctl audit -o json | jq 'select(.result != \"ok\")'
  jobctl audit --verify            note what it says of the last line elsewhere";

/// Show who did what, and who was refused
///
/// For people on a terminal; else, or with `-o json`, the lines as they were
/// written. Each ends with the hash of itself and of the line before, so that
/// none can be changed or taken out without all that follow. The end of it can
/// be cut off unnoticed, unless number and hash of the last line are kept
/// elsewhere.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    /// Go on with the lines that will come
    #[arg(short, long)]
    follow: bool,

    /// Only the last so many
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    tail: Option<i64>,

    /// Check that the lines are those that were written
    #[arg(long, conflicts_with_all = ["follow", "tail"])]
    verify: bool,

    /// How to show it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        hide_possible_values = true,
        help = "How to show it: table or json [default: table on a terminal]",
        help_heading = "Output"
    )]
    output: Option<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    #[value(alias = "jsonl")]
    Json,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    tokio::select! {
        // First of all, so that it is heard from before the first request on.
        biased;
        interrupt = tokio::signal::ctrl_c() => interrupt.map(|()| INTERRUPTED).map_err(Into::into),
        ended = read(args, caller) => ended,
    }
}

async fn read(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    if args.verify {
        return verify(args.output, caller).await;
    }
    let output = args.output.unwrap_or(match stdout().is_terminal() {
        true => Output::Table,
        false => Output::Json,
    });
    let query = AuditQuery {
        after: 0,
        tail: args.tail,
        follow: args.follow,
    };
    let opened = Audit::open(caller.client.clone(), query);
    let mut audit = caller.patiently(opened).await?;
    let mut is_empty = true;
    while let Some(event) = audit.next().await? {
        match event {
            Event::Line(line) => {
                is_empty = false;
                match output {
                    Output::Table => render::audit_entry(&line)?,
                    Output::Json => render::audit_line(&line)?,
                }
            }
            Event::Away(away) => caller.client.say(&away),
        }
    }
    if is_empty {
        render::note("no lines found");
    }
    Ok(DONE)
}

/// The document of `--verify`.
#[derive(serde::Serialize)]
struct Verified {
    #[serde(flatten)]
    holds: Chain,
    broken: Option<Broken>,
}

async fn verify(output: Option<Output>, caller: &Caller) -> anyhow::Result<u8> {
    let query = AuditQuery::default();
    let opened = Audit::open(caller.client.clone(), query);
    let mut audit = caller.patiently(opened).await?;
    let mut holds = Chain::default();
    let mut broken = None;
    while let Some(event) = audit.next().await? {
        match event {
            Event::Line(line) => broken = holds.add(&line).err(),
            Event::Away(away) => caller.client.say(&away),
        }
        if broken.is_some() {
            break;
        }
    }
    let code = match broken {
        Some(_) => FAILED,
        None => DONE,
    };
    if output == Some(Output::Json) {
        render::value(&Verified { holds, broken }, Format::Json)?;
        return Ok(code);
    }
    if let (Some(first), Some(last), Some(hash)) = (holds.first, holds.last, &holds.hash) {
        let lines = holds.lines;
        render::data(&format!(
            "{lines} lines hold: {first} to {last}\n{last} {hash}\n"
        ))?;
        if first > 1 {
            render::note(&format!("the lines before {first} are no longer kept"));
        }
    } else if broken.is_none() {
        render::note("no lines found");
    }
    match broken {
        Some(broken) => Err(broken.into()),
        None => Ok(code),
    }
}
