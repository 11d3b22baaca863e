//! The command line: what can be typed, which verb it calls, and what the exit
//! code says. Each verb has a file of its own: its arguments, one call, and the
//! call to [`render`] that shows what came of it.

use std::{env, ffi::OsStr, path::PathBuf, time::Duration};

use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, error::ErrorKind,
};

mod audit;
mod ca;
mod caller;
mod cert;
mod completions;
mod context;
mod dev;
mod group;
pub mod init;
mod jobs;
mod login;
mod logs;
mod names;
mod query;
mod report;
mod role;
mod scheduler;
mod start;
mod stop;
mod token;
mod variables;
mod version;
mod wait;
mod welcome;
mod worker;
mod workers;

pub use self::report::{report, show_usage};
use self::{
    caller::{Caller, Effect, NoScheduler, variable},
    names::{Jobs, Named, Unmatched, listed, name, named, named_jobs},
    report::{BadSetting, Hinted, SET_THE_CLOCK, hint, hint_of_refusal, report_with, usage},
};
use crate::{
    api::whole_milliseconds,
    client::{Server, render},
    config,
};

/// The exit codes, as `--help` shows them. For `start --wait`, `start --follow`,
/// `logs --follow`, `wait` and `dev` with a command they belong to the job, so
/// what jobctl itself fails at has to stand aside.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused or failed
  2    wrong usage or settings
  3    no such job, worker, context, token or certificate
  4    not allowed
  5    scheduler unreachable

Exit codes of start --wait, start --follow, logs --follow, wait and dev:
  N    the job's own exit code
  124  the job timed out
  125  jobctl could not tell: the job is lost, or the scheduler refused the
       request or is unreachable, or the worker could not start any job
  126  the job's program cannot be executed as it was asked for: it is not
       allowed, the kernel does not take it, or its folder is not there
  127  the job's program or script, or its interpreter, is not there
  128+N  the job was ended by signal N (137: KILL, 143: stopped by TERM)
  130  interrupted with Ctrl-C: the job was not stopped (dev: it was)";

const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const NOT_ALLOWED: u8 = 4;
const UNREACHABLE: u8 = 5;
const INTERRUPTED: u8 = 130;

/// So many characters of an id are the least that name one.
const PREFIX: usize = 4;

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
    reach: Reach,

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

    #[command(subcommand)]
    verb: Verb,
}

// What only the commands take that ask a scheduler; before or behind the verb.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Reach {
    /// The scheduler's HTTP API [env: JOBCTL_SERVER] [default: the context's]
    #[arg(long, value_name = "URL")]
    server: Option<Server>,

    /// The context to use [env: JOBCTL_CONTEXT] [default: the current one]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    context: Option<String>,

    /// Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default:
    /// ~/.config/jobctl]
    #[arg(long, value_name = "DIR")]
    client_dir: Option<PathBuf>,

    /// The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the
    /// context's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// A bearer token to show instead of what the context has; nobody else may
    /// read it [env: JOBCTL_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// How long to wait for a scheduler that is being restarted, and for the worker
    /// whose output is read [env: JOBCTL_PATIENCE] [default: 5s]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        value_parser = config::duration
    )]
    patience: Option<Duration>,

    /// Show each request on stderr
    #[arg(short, long)]
    verbose: bool,
}

impl Reach {
    fn or(&self, before: &Self) -> Self {
        let own = self.clone();
        let before = before.clone();
        Self {
            server: own.server.or(before.server),
            context: own.context.or(before.context),
            client_dir: own.client_dir.or(before.client_dir),
            ca_file: own.ca_file.or(before.ca_file),
            token_file: own.token_file.or(before.token_file),
            patience: own.patience.or(before.patience),
            verbose: own.verbose || before.verbose,
        }
    }

    /// The flags that were given.
    fn flags(&self) -> impl Iterator<Item = &'static str> {
        [
            ("--server", self.server.is_some()),
            ("--context", self.context.is_some()),
            ("--client-dir", self.client_dir.is_some()),
            ("--ca-file", self.ca_file.is_some()),
            ("--token-file", self.token_file.is_some()),
            ("--patience", self.patience.is_some()),
            ("--verbose", self.verbose),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some(flag))
    }
}

#[derive(Debug, clap::Args)]
struct Asking<A: clap::Args> {
    #[command(flatten)]
    args: A,

    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    Asks(Asks),
    Context(context::Args),
    Login(login::Args),
    Scheduler(scheduler::Args),
    Worker(worker::Args),
    Dev(dev::Args),
    Completions(completions::Args),
}

/// What is asked of a scheduler.
#[derive(Debug, Subcommand)]
enum Asks {
    Start(Asking<start::Args>),
    Stop(Asking<stop::Args>),
    Query(Asking<query::Args>),
    Jobs(Asking<jobs::Args>),
    Logs(Asking<logs::Args>),
    Wait(Asking<wait::Args>),
    Workers(Asking<workers::Args>),
    Token(Asking<token::Args>),
    Cert(Asking<cert::Args>),
    Ca(Asking<ca::Args>),
    Audit(Asking<audit::Args>),
    Version(Asking<version::Args>),
}

impl Asks {
    /// What stands last wins.
    fn reach(&self) -> Reach {
        match self {
            Self::Token(Asking { args, reach }) => args.reach().or(reach),
            Self::Cert(Asking { args, reach }) => args.reach().or(reach),
            Self::Ca(Asking { args, reach }) => args.reach().or(reach),
            Self::Workers(Asking { args, reach }) => match args.reach() {
                Some(own) => own.or(reach),
                None => reach.clone(),
            },
            Self::Start(Asking { reach, .. })
            | Self::Stop(Asking { reach, .. })
            | Self::Query(Asking { reach, .. })
            | Self::Jobs(Asking { reach, .. })
            | Self::Logs(Asking { reach, .. })
            | Self::Wait(Asking { reach, .. })
            | Self::Audit(Asking { reach, .. })
            | Self::Version(Asking { reach, .. }) => reach.clone(),
        }
    }

    fn effect(&self) -> Effect {
        match self {
            Self::Start(_) | Self::Stop(_) => Effect::Changes,
            Self::Token(Asking { args, .. }) => args.effect(),
            Self::Cert(Asking { args, .. }) => args.effect(),
            Self::Ca(Asking { args, .. }) => args.effect(),
            Self::Workers(Asking { args, .. }) => args.effect(),
            Self::Query(_)
            | Self::Jobs(_)
            | Self::Logs(_)
            | Self::Wait(_)
            | Self::Audit(_)
            | Self::Version(_) => Effect::Reads,
        }
    }
}

impl Cli {
    /// Reads the command line of this process.
    ///
    /// # Errors
    ///
    /// Wrong usage; or that help or the version was asked for.
    pub fn read() -> Result<Self, clap::Error> {
        let mut command = without_empty_variables(Self::command());
        let matches = command.try_get_matches_from_mut(env::args_os())?;
        let cli = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        let idle = cli.reach.flags().find(|flag| match &cli.verb {
            Verb::Asks(_) => false,
            Verb::Context(_) | Verb::Login(_) => *flag != "--client-dir",
            Verb::Scheduler(_) | Verb::Worker(_) | Verb::Dev(_) | Verb::Completions(_) => true,
        });
        match idle {
            None => Ok(cli),
            Some(flag) => {
                let verb = matches.subcommand_name().unwrap_or_default();
                let message = format!("{flag} means nothing to `jobctl {verb}`");
                Err(command.error(ErrorKind::ArgumentConflict, message))
            }
        }
    }

    /// Whether it stays, with processes of its own or of others to look after: as the
    /// first process of a container it has one that does that, see [`init::run`].
    pub fn is_role(&self) -> bool {
        match &self.verb {
            Verb::Scheduler(_) | Verb::Worker(_) | Verb::Dev(_) => true,
            Verb::Asks(_) | Verb::Context(_) | Verb::Login(_) | Verb::Completions(_) => false,
        }
    }

    /// Sets up what holds for the whole process: colour, and with `-v` a line on
    /// stderr for each request. The roles set up their own log. Says which variables
    /// look like settings and are none.
    pub fn prepare(&self) {
        render::set_colour(match self.color {
            Colour::Auto => None,
            Colour::Always => Some(true),
            Colour::Never => Some(false),
        });
        for warning in variables::warnings(env::vars_os().map(|(name, _)| name)) {
            render::note(&warning);
        }
        let verbose = match &self.verb {
            Verb::Asks(asks) => asks.reach().verbose || self.reach.verbose,
            Verb::Context(_)
            | Verb::Login(_)
            | Verb::Scheduler(_)
            | Verb::Worker(_)
            | Verb::Dev(_)
            | Verb::Completions(_) => false,
        };
        if verbose {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_ansi(render::stderr_has_colour())
                .with_env_filter("off,jobctl=debug")
                .with_target(false)
                .without_time()
                .init();
        }
    }
}

/// A variable that is set to nothing counts as one that is not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |key: &OsStr| env::var_os(key).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(None::<&'static str>),
            false => arg,
        })
        .mut_subcommands(without_empty_variables)
}

/// Runs one command and says what went wrong; returns its exit code.
pub async fn run(cli: Cli) -> u8 {
    let outcome = match cli.verb {
        Verb::Asks(asks) => ask(asks, &cli.reach).await,
        Verb::Context(args) => Ok(context::run(args, &cli.reach)),
        Verb::Login(args) => login::run(args, &cli.reach).await,
        Verb::Scheduler(args) => scheduler::run(args).await,
        Verb::Worker(args) => worker::run(args).await,
        Verb::Dev(args) => dev::run(args).await,
        Verb::Completions(args) => completions::run(&args),
    };
    outcome.unwrap_or_else(|error| report(&error, Codes::Jobctl))
}

async fn ask(asks: Asks, before: &Reach) -> anyhow::Result<u8> {
    let caller = match (Caller::new(asks.reach().or(before), asks.effect()), &asks) {
        (Err(error), Asks::Version(Asking { args, .. })) if error.is::<NoScheduler>() => {
            version::alone(args)?;
            return Err(error);
        }
        (caller, _) => caller?,
    };
    caller.renew().await;
    let outcome = match asks {
        Asks::Start(Asking { args, .. }) => start::run(args, &caller).await,
        Asks::Stop(Asking { args, .. }) => stop::run(args, &caller).await,
        Asks::Query(Asking { args, .. }) => query::run(args, &caller).await,
        Asks::Jobs(Asking { args, .. }) => jobs::run(args, &caller).await,
        Asks::Logs(Asking { args, .. }) => logs::run(args, &caller).await,
        Asks::Wait(Asking { args, .. }) => wait::run(args, &caller).await,
        Asks::Workers(Asking { args, .. }) => workers::run(args, &caller).await,
        Asks::Token(Asking { args, .. }) => token::run(args, &caller).await,
        Asks::Cert(Asking { args, .. }) => cert::run(args, &caller).await,
        Asks::Ca(Asking { args, .. }) => ca::run(args, &caller).await,
        Asks::Audit(Asking { args, .. }) => audit::run(args, &caller).await,
        Asks::Version(Asking { args, .. }) => version::run(args, &caller).await,
    };
    Ok(outcome.unwrap_or_else(|error| caller.report(&error, Codes::Jobctl)))
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

/// How a command shows what is one thing, and no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Document {
    Json,
    Jsonl,
    Yaml,
}

impl From<Document> for render::Format {
    fn from(document: Document) -> Self {
        match document {
            Document::Json => Self::Json,
            Document::Jsonl => Self::Jsonl,
            Document::Yaml => Self::Yaml,
        }
    }
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
    /// Whether anything of it was asked for.
    fn is_said(&self) -> bool {
        self.output != Output::Table || self.quiet || self.no_headers
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn whoever_only_looks_is_not_told_of_what_may_have_been_done() {
        for (args, effect) in [
            (&["jobs"][..], Effect::Reads),
            (&["token", "list"], Effect::Reads),
            (&["cert", "list"], Effect::Reads),
            (&["ca", "show"], Effect::None),
            (&["workers"], Effect::Reads),
            (&["workers", "show", "x"], Effect::Reads),
            (&["workers", "label", "x", "a=b"], Effect::ChangesWorkers),
            (&["workers", "drain", "x"], Effect::ChangesWorkers),
            (&["workers", "resume", "x"], Effect::ChangesWorkers),
            (&["workers", "remove", "x"], Effect::ChangesWorkers),
            (&["stop", "x"], Effect::Changes),
            (&["token", "revoke", "x"], Effect::ChangesAccess),
            (&["cert", "revoke", "x"], Effect::ChangesAccess),
            (&["ca", "rotate"], Effect::ChangesAccess),
        ] {
            let cli = Cli::try_parse_from([&["jobctl"], args].concat()).unwrap();
            let Verb::Asks(asks) = cli.verb else {
                panic!("{args:?}");
            };
            assert_eq!(asks.effect(), effect, "{args:?}");
        }
    }
}
