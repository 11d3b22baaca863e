//! `jobctl jobs`

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};

use super::{Caller, DONE, Shown};
use crate::{
    api::{Job, JobState, JobsQuery, MAX_PAGE},
    client::render::{self, Many},
};

const EXAMPLES: &str = "\
Examples:
  jobctl jobs                          the newest 50
  jobctl jobs --state running --worker w1
  jobctl jobs --all -o jsonl | jq -r .id";

/// List jobs, the newest first
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    /// Only jobs in this state; may be given several times
    ///
    /// One of pending, running, unknown, succeeded, failed, stopped, timed_out
    /// and lost.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(JobState::ALL.map(JobState::as_str)),
        hide_possible_values = true,
        help_heading = "Which jobs"
    )]
    state: Vec<String>,

    /// Only jobs of this worker
    #[arg(
        long,
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "Which jobs"
    )]
    worker: Option<String>,

    /// Only jobs of this name
    #[arg(long, help_heading = "Which jobs")]
    name: Option<String>,

    /// Only jobs of this group, the first first
    #[arg(
        long,
        value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["state", "worker", "name"],
        help_heading = "Which jobs"
    )]
    group: Option<String>,

    /// At most so many
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 50,
        allow_negative_numbers = true,
        value_parser = limit,
        help_heading = "Which jobs"
    )]
    limit: usize,

    /// As many as there are
    #[arg(long, conflicts_with = "limit", help_heading = "Which jobs")]
    all: bool,

    #[command(flatten)]
    shown: Shown,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let wanted = match args.all {
        true => usize::MAX,
        false => args.limit,
    };
    let mut query = JobsQuery {
        state: (!args.state.is_empty()).then(|| args.state.join(",")),
        worker_id: args.worker,
        name: args.name,
        group_id: args.group,
        limit: None,
        after: None,
    };
    let mut jobs: Vec<Job> = Vec::new();
    loop {
        query.limit = Some((wanted - jobs.len()).min(MAX_PAGE));
        let page = caller.patiently(caller.client.jobs(&query)).await?;
        let is_empty = page.jobs.is_empty();
        jobs.extend(page.jobs);
        query.after = page.next;
        if is_empty || query.after.is_none() || jobs.len() >= wanted {
            break;
        }
    }
    render::jobs(&jobs, args.shown.format(), Many::List)?;
    if jobs.is_empty() {
        render::note("no jobs found");
    } else if query.after.is_some() {
        render::note("there are more: `--limit N` or `--all` shows them");
    }
    Ok(DONE)
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_owned()),
        Ok(limit) => Ok(limit),
        Err(error) => Err(format!("{error}")),
    }
}
