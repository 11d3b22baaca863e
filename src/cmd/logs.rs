//! `jobctl logs`, and the following of output for `start` and `dev`.

use jiff::{Span, Timestamp, Zoned};

use super::{Caller, Codes, DONE, EXIT_CODES, Named, group, named, wait};
use crate::{
    api::{GapCause, LogsQuery, Stream},
    client::{
        Client, Ending, Logs,
        logs::Event,
        render::{self, Controls, JobOutput, Look, Timestamps},
    },
    ids::JobId,
};

const EXAMPLES: &str = "\
Examples:
  jobctl logs last                      everything it has written so far
  jobctl logs --follow nightly          goes on until the job has ended
  jobctl logs -n 20 -f -t 3f2a8b1c      the last 20 lines and on, with times
  jobctl logs --since '2h ago' --stream stderr nightly";

/// Show what a job has written, or the jobs of a group
///
/// Its stdout comes on stdout, its stderr on stderr, byte for byte; only a
/// terminal gets control characters made visible.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES, after_long_help = EXIT_CODES)]
pub(super) struct Args {
    /// The job or group, by id, prefix, name or `last`, or GROUP/INDEX
    #[arg(value_name = "JOB", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    job: String,

    /// Go on until the job has ended, and end with its exit code
    #[arg(short, long)]
    follow: bool,

    /// Begin with the last N lines
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Which part"
    )]
    tail: Option<u64>,

    /// Begin with what was written since, as `2h ago` or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = since, help_heading = "Which part")]
    since: Option<Timestamp>,

    /// Only this attempt, counted from 1 [default: the last one and those after it]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Which part"
    )]
    attempt: Option<u32>,

    /// Begin with this byte of all attempts' output
    #[arg(
        long,
        value_name = "BYTE",
        allow_negative_numbers = true,
        help_heading = "Which part"
    )]
    offset: Option<u64>,

    /// Only one of them: stdout or stderr
    #[arg(
        long,
        value_name = "STREAM",
        hide_possible_values = true,
        help_heading = "Which part"
    )]
    stream: Option<OneStream>,

    /// Put the time before each line
    #[arg(short, long, help_heading = "Output")]
    timestamps: bool,

    /// Let control characters act on a terminal, colours among them
    #[arg(long, help_heading = "Output")]
    raw: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum OneStream {
    Stdout,
    Stderr,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let look = Look {
        timestamps: match args.timestamps {
            true => Timestamps::Shown,
            false => Timestamps::Hidden,
        },
        controls: controls(args.raw),
    };
    if args.follow {
        return Ok(follow(args, caller, look)
            .await
            .unwrap_or_else(|error| caller.report(&error, Codes::Job)));
    }
    match caller.patiently(query(args, caller)).await? {
        (Named::Job(_), query) => drop(show(&caller.client, query, look).await?),
        (Named::Group(group), query) => group::show(&caller.client, &group, &query, look).await?,
    }
    Ok(DONE)
}

async fn follow(args: Args, caller: &Caller, look: Look) -> anyhow::Result<u8> {
    match caller.patiently(query(args, caller)).await? {
        (Named::Job(_), query) => attached(caller, query, look).await,
        (Named::Group(group), query) => group::followed(caller, &group, &query, look).await,
    }
}

/// The request, with the job's whole id: what `last` or a name means may change
/// before a broken connection is taken up again.
async fn query(args: Args, caller: &Caller) -> anyhow::Result<(Named, LogsQuery)> {
    let named = named(caller, args.job).await?.0;
    let job_id = match &named {
        Named::Job(id) => id.to_string(),
        Named::Group(group) => group.id.to_string(),
    };
    let query = LogsQuery {
        job_id,
        worker_id: None,
        follow: args.follow,
        offset: args.offset,
        attempt: args.attempt,
        tail: args.tail,
        since: args.since,
        stream: args.stream.map(|stream| match stream {
            OneStream::Stdout => Stream::Stdout,
            OneStream::Stderr => Stream::Stderr,
        }),
        gaps: false,
    };
    Ok((named, query))
}

/// Shows output until the job ends, or until Ctrl-C; the number is the exit code.
pub(super) async fn attached(caller: &Caller, query: LogsQuery, look: Look) -> anyhow::Result<u8> {
    let label = label(&query);
    tokio::select! {
        // First of all, so that it is heard from before the first request on.
        biased;
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            Ok(wait::detached(caller, &[label]))
        }
        code = to_the_end(&caller.client, query, look) => code,
    }
}

/// As `--raw` says.
pub(super) fn controls(raw: bool) -> Controls {
    match raw {
        true => Controls::Raw,
        false => Controls::Visible,
    }
}

/// What messages call the job.
fn label(query: &LogsQuery) -> String {
    let id = query.job_id.parse::<JobId>();
    id.map_or_else(|_| query.job_id.clone(), |id| id.short())
}

/// As [`attached`], where Ctrl-C is somebody else's affair.
pub(super) async fn to_the_end(
    client: &Client,
    query: LogsQuery,
    look: Look,
) -> anyhow::Result<u8> {
    let label = label(&query);
    let end = show(client, query, look).await?;
    Ok(wait::told(&end, &label))
}

async fn show(client: &Client, query: LogsQuery, look: Look) -> anyhow::Result<Ending> {
    let mut logs = client.logs(query).await?;
    let mut output = JobOutput::new(look);
    let ending = pour(client, &mut logs, &mut output).await;
    let finished = output.finish().await;
    let ending = ending?;
    finished?;
    Ok(ending)
}

async fn pour(client: &Client, logs: &mut Logs, output: &mut JobOutput) -> anyhow::Result<Ending> {
    loop {
        let event = match logs.at_hand() {
            Some(event) => event?,
            None => {
                output.flush().await?;
                logs.next().await?
            }
        };
        match event {
            Event::Output(message) => output.write(&message).await?,
            Event::Gap { bytes, cause } => {
                output.finish().await?;
                render::note(&GapCause::note(bytes, cause));
            }
            Event::Away(away) => client.say(&away),
            Event::End(ending) => return Ok(ending),
        }
    }
}

/// A point in time, or how long ago it was.
fn since(text: &str) -> Result<Timestamp, String> {
    point_in_time(text, &Zoned::now())
}

fn point_in_time(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let span: Span = text.trim().parse().map_err(|_| {
        format!("`{text}` is not a time; write it as `2h ago` or `2026-01-02T03:04:05Z`")
    })?;
    // `2h` can only mean the same as `2h ago`: nothing was written in the future.
    now.checked_sub(span.abs())
        .map(|time| time.timestamp())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_ago() {
        let now: Zoned = "2026-01-02T03:04:05[UTC]".parse().unwrap();
        let read = |text| point_in_time(text, &now).map(|time| time.to_string());
        for (text, time) in [
            ("2h ago", "2026-01-02T01:04:05Z"),
            ("2h", "2026-01-02T01:04:05Z"),
            ("1 day 30m ago", "2026-01-01T02:34:05Z"),
            ("2025-12-31T00:00:00Z", "2025-12-31T00:00:00Z"),
            ("2025-12-31T01:00:00+01:00", "2025-12-31T00:00:00Z"),
        ] {
            assert_eq!(read(text).unwrap(), time, "{text}");
        }
        for bad in ["", "yesterday", "12"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
