//! The command line: what can be typed, which verb it calls, and what the exit
//! code says. Each verb has a file of its own: its arguments, one call, and the
//! call to [`render`] that shows what came of it.

use std::{collections::BTreeSet, io::Read as _, time::Duration};

use anyhow::Context as _;
use clap::{
    CommandFactory as _, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser,
    error::ErrorKind,
};
use tracing_subscriber::filter::LevelFilter;

use crate::{
    api::{JobState, code},
    client::{self, Client, Server, render},
    config,
};

mod completions;
mod dev;
mod jobs;
mod logs;
mod query;
mod role;
mod scheduler;
mod start;
mod stop;
mod version;
mod wait;
mod worker;
mod workers;

/// The exit codes, as `--help` shows them. For `start --wait`, `start --follow`,
/// `logs --follow`, `wait` and `dev` with a command they belong to the job, so
/// what jobctl itself fails at has to stand aside.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused or failed
  2    wrong usage or settings
  3    no such job or worker
  4    not allowed
  5    scheduler unreachable

Exit codes of start --wait, start --follow, logs --follow, wait and dev:
  N    the job's own exit code
  124  the job timed out
  125  jobctl could not tell: the job is lost, or the scheduler refused the
       request or is unreachable
  126  the job's program may not be executed
  127  the job's program or script is not there
  128+N  the job was ended by signal N (137: KILL, 143: stopped by TERM)
  130  interrupted with Ctrl-C; the job still runs";

const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const NOT_ALLOWED: u8 = 4;
const UNREACHABLE: u8 = 5;
const TIMED_OUT: u8 = 124;
const CANNOT_TELL: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const PROGRAM_NOT_FOUND: u8 = 127;
const BY_SIGNAL: u8 = 128;
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// How many jobs of one command are asked about at the same time.
const AT_ONCE: usize = 16;

/// Whose exit codes a command returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// jobctl's own, 0 to 5.
    Jobctl,
    /// A job's, beside which a failure of jobctl is 125.
    Job,
}

const EXAMPLES: &str = "\
Examples:
  jobctl dev -- bash -c 'echo hello'      try it: a whole cluster, one job
  jobctl start --follow -- make test      run a program, see its output
  jobctl start --script backup.sh --name nightly
  jobctl jobs --state running             what is going on
  jobctl logs --follow nightly            output, by name, id or prefix
  jobctl stop last                        the job started last";

/// Starts, stops, queries and follows jobs on a fleet of machines
#[derive(Debug, Parser)]
#[command(
    name = "jobctl",
    version,
    max_term_width = 80,
    before_long_help = EXAMPLES,
    after_help = "Exit codes are listed in `jobctl --help`.",
    after_long_help = EXIT_CODES,
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// The scheduler's HTTP API
    #[arg(
        long,
        global = true,
        env = "JOBCTL_SERVER", hide_env_values = true,
        value_name = "URL",
        default_value = client::DEFAULT_SERVER,
        help_heading = "Global options"
    )]
    server: Server,

    /// Show each request on stderr
    #[arg(short, long, global = true, help_heading = "Global options")]
    verbose: bool,

    /// When to use colour
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Global options",
        help = "When to use colour: auto, always or never"
    )]
    color: Colour,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Start(start::Args),
    Stop(stop::Args),
    Query(query::Args),
    Jobs(jobs::Args),
    Logs(logs::Args),
    Wait(wait::Args),
    Workers(workers::Args),
    Scheduler(scheduler::Args),
    Worker(worker::Args),
    Dev(dev::Args),
    Completions(completions::Args),
    Version(version::Args),
}

impl Cli {
    /// Sets up what holds for the whole process: colour, and with `-v` a line on
    /// stderr for each request. The roles set up their own log.
    pub fn prepare(&self) {
        render::set_colour(match self.global.color {
            Colour::Auto => None,
            Colour::Always => Some(true),
            Colour::Never => Some(false),
        });
        match self.verb {
            Verb::Scheduler(_) | Verb::Worker(_) | Verb::Dev(_) => {}
            _ if self.global.verbose => tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_ansi(render::stderr_has_colour())
                .with_max_level(LevelFilter::DEBUG)
                .with_env_filter("off,jobctl=debug")
                .with_target(false)
                .without_time()
                .init(),
            _ => {}
        }
    }
}

/// Runs one command; the number is its exit code.
pub async fn run(cli: Cli) -> anyhow::Result<u8> {
    let client = || Client::new(cli.global.server.clone());
    match cli.verb {
        Verb::Start(args) => start::run(args, &client()?).await,
        Verb::Stop(args) => stop::run(args, &client()?).await,
        Verb::Query(args) => query::run(args, &client()?).await,
        Verb::Jobs(args) => jobs::run(args, &client()?).await,
        Verb::Logs(args) => logs::run(args, &client()?).await,
        Verb::Wait(args) => wait::run(args, &client()?).await,
        Verb::Workers(args) => workers::run(args, &client()?).await,
        Verb::Scheduler(args) => scheduler::run(args).await,
        Verb::Worker(args) => worker::run(args).await,
        Verb::Dev(args) => dev::run(args).await,
        Verb::Completions(args) => completions::run(&args),
        Verb::Version(args) => version::run(args, &client()?).await,
    }
}

/// Shows `error` with its causes and a hint; returns the exit code it stands for.
pub fn report(error: &anyhow::Error, codes: Codes) -> u8 {
    let code = code_of(error, codes);
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        usage.print().unwrap_or_default();
    } else if code != DONE {
        let causes: Vec<_> = error.chain().skip(1).map(ToString::to_string).collect();
        render::failure(&error.to_string(), &causes, hint(error).as_deref());
    }
    code
}

fn code_of(error: &anyhow::Error, codes: Codes) -> u8 {
    let is_closed = |error: &render::OutputError| matches!(error, render::OutputError::Closed);
    let shown = error.downcast_ref::<render::Error>();
    if error.downcast_ref().is_some_and(is_closed)
        || matches!(shown, Some(render::Error::Output(error)) if is_closed(error))
    {
        return DONE;
    }
    if error.is::<clap::Error>() || error.is::<config::Error>() || error.is::<BadSetting>() {
        return USAGE;
    }
    match (error.downcast_ref::<client::Error>(), codes) {
        (Some(error), Codes::Job) => start_error_code(error.code().unwrap_or_default()),
        (None, Codes::Job) => CANNOT_TELL,
        (Some(client::Error::Refused { status, error }), Codes::Jobctl) => {
            match (status, error.code.as_str()) {
                (401 | 403, _) => NOT_ALLOWED,
                (_, code::JOB_NOT_FOUND | code::WORKER_NOT_FOUND) => NOT_FOUND,
                _ => FAILED,
            }
        }
        (
            Some(client::Error::Unreachable { .. } | client::Error::Interrupted { .. }),
            Codes::Jobctl,
        ) => UNREACHABLE,
        (Some(client::Error::Unreadable { .. }) | None, Codes::Jobctl) => FAILED,
    }
}

/// What a job that never started ends with, as a shell would have it.
fn start_error_code(word: &str) -> u8 {
    match word {
        code::PROGRAM_NOT_FOUND | code::SCRIPT_NOT_FOUND => PROGRAM_NOT_FOUND,
        code::NOT_EXECUTABLE => NOT_EXECUTABLE,
        _ => CANNOT_TELL,
    }
}

/// A setting that was understood and is not taken.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct BadSetting {
    message: String,
    hint: String,
}

/// A failure of this machine that a person can do something about.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Hinted {
    message: String,
    hint: String,
    source: std::io::Error,
}

/// What to type next.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref::<BadSetting>() {
        return Some(error.hint.clone());
    }
    if let Some(error) = error.downcast_ref::<Hinted>() {
        return Some(error.hint.clone());
    }
    if let Some(config::Error::UnknownKey { nearest, .. }) = error.downcast_ref() {
        return Some(format!("did you mean `{nearest}`?"));
    }
    if let Some(config::Error::NoTls { section, .. }) = error.downcast_ref() {
        return Some(format!(
            "leave out `{section}.use_tls`; plain text is for loopback only"
        ));
    }
    match error.downcast_ref::<client::Error>()? {
        client::Error::Unreachable { .. } => {
            Some("start one with `jobctl scheduler`, or name another: `--server URL`".to_owned())
        }
        client::Error::Interrupted { .. } => {
            Some("see what came of it with `jobctl jobs`".to_owned())
        }
        client::Error::Unreadable { server, .. } => Some(format!(
            "if {server} is not a scheduler, name it with `--server URL`"
        )),
        client::Error::Refused { error, .. } => match (error.code.as_str(), error.job_id) {
            (_, Some(job)) => Some(format!(
                "see its record with `jobctl query {}`",
                job.short()
            )),
            (code::JOB_NOT_FOUND, None) => Some("list the jobs with `jobctl jobs`".to_owned()),
            (code::WORKER_NOT_FOUND | code::WORKER_UNREACHABLE, None) => {
                Some("list the workers with `jobctl workers`".to_owned())
            }
            ("no_worker_ready", None) => Some("start a worker with `jobctl worker`".to_owned()),
            _ => None,
        },
    }
}

/// An error like those clap finds by itself, about the verb `verb`.
fn usage(verb: &str, message: impl std::fmt::Display) -> anyhow::Error {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(verb);
    match command {
        Some(command) => command.error(ErrorKind::ValueValidation, message),
        None => cli.error(ErrorKind::ValueValidation, message),
    }
    .into()
}

/// How a reading command shows what it has read.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
struct Shown {
    /// How to show it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_possible_values = true,
        help = "How to show it: table, wide, json, jsonl, yaml or name"
    )]
    output: Output,

    /// Show whole ids only
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,

    /// Leave out the column names of tables
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
    Jsonl,
    Yaml,
    Name,
}

impl Shown {
    fn format(&self) -> render::Format {
        match self.output {
            _ if self.quiet => render::Format::Id,
            Output::Table | Output::Wide => render::Format::Table {
                wide: self.output == Output::Wide,
                headers: !self.no_headers,
            },
            Output::Json => render::Format::Json,
            Output::Jsonl => render::Format::Jsonl,
            Output::Yaml => render::Format::Yaml,
            Output::Name => render::Format::Name,
        }
    }
}

/// Jobs named on the command line, with `-` for those on standard input; each
/// once, in this order.
fn named_jobs(jobs: Vec<String>) -> anyhow::Result<Vec<String>> {
    let mut named = Vec::new();
    for job in jobs {
        if job == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the jobs from standard input")?;
            named.extend(text.split_whitespace().map(str::to_owned));
        } else {
            named.push(job);
        }
    }
    if named.is_empty() {
        render::note("no jobs on standard input");
    }
    let mut seen = BTreeSet::new();
    named.retain(|job| seen.insert(job.clone()));
    Ok(named)
}

/// Jobs as arguments. Empty ones would only be refused by the scheduler.
#[derive(Debug, clap::Args)]
struct Jobs {
    /// Jobs, each by id, prefix, name or `last`; `-` reads them from stdin
    #[arg(required = true, value_name = "JOB", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    jobs: Vec<String>,
}

fn job_state() -> PossibleValuesParser {
    PossibleValuesParser::new(JobState::ALL.map(JobState::as_str))
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    fn refused(status: u16, word: &str) -> anyhow::Error {
        client::Error::Refused {
            status,
            error: api::Error {
                error: "no".into(),
                code: word.into(),
                job_id: None,
            },
        }
        .into()
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_error_has_its_exit_code() {
        let unreachable = || -> anyhow::Error {
            client::Error::Unreachable {
                server: "s".into(),
                reason: "r".into(),
            }
            .into()
        };
        for (error, own, of_a_job) in [
            (refused(404, "job_not_found"), 3, 125),
            (refused(404, "worker_not_found"), 3, 125),
            (refused(401, "unauthenticated"), 4, 125),
            (refused(403, "forbidden"), 4, 125),
            (refused(409, "job_finished"), 1, 125),
            (refused(422, "program_not_found"), 1, 127),
            (refused(422, "script_not_found"), 1, 127),
            (refused(422, "not_executable"), 1, 126),
            (refused(503, "no_worker_ready"), 1, 125),
            (unreachable(), 5, 125),
            (unreachable().context("of something else"), 5, 125),
            (anyhow::anyhow!("something else"), 1, 125),
            (usage("start", "wrong"), 2, 2),
            (render::OutputError::Closed.into(), 0, 0),
            (
                render::Error::Output(render::OutputError::Closed).into(),
                0,
                0,
            ),
        ] {
            assert_eq!(code_of(&error, Codes::Jobctl), own, "{error:?}");
            assert_eq!(code_of(&error, Codes::Job), of_a_job, "{error:?}");
        }
    }

    #[test]
    fn hints_can_be_typed() {
        for (error, command) in [
            (refused(404, "job_not_found"), "jobctl jobs"),
            (refused(504, "worker_unreachable"), "jobctl workers"),
            (refused(503, "no_worker_ready"), "jobctl worker"),
        ] {
            assert!(hint(&error).unwrap().contains(&format!("`{command}`")));
        }
        assert_eq!(hint(&refused(409, "job_finished")), None);
    }

    #[test]
    fn a_job_named_twice_is_one_job() {
        let jobs = ["b", "a", "b"].map(str::to_owned).to_vec();
        assert_eq!(named_jobs(jobs).unwrap(), ["b", "a"]);
    }
}
