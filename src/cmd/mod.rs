//! The command line: what can be typed, which verb it calls, and what the exit
//! code says. Each verb has a file of its own: its arguments, one call, and the
//! call to [`render`] that shows what came of it.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    io::Read as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    builder::PossibleValuesParser, error::ErrorKind,
};

use crate::{
    api::{JobState, QueryRequest, code},
    client::{
        self, Client, Server,
        contexts::{self, Context, Named},
        proof::{Asked, Proof},
        render,
    },
    config,
    identity::{self, Role, files, tls},
    ids::{JobId, is_name},
    roles::worker as worker_role,
};

mod audit;
mod ca;
mod cert;
mod completions;
mod context;
mod dev;
mod jobs;
mod login;
mod logs;
mod query;
mod role;
mod scheduler;
mod start;
mod stop;
mod token;
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
  3    no such job, worker, context, token or certificate
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
  130  interrupted with Ctrl-C: the job was not stopped (dev: it was)";

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

    /// Whom to believe that it is the scheduler, in PEM [env: JOBCTL_CA_FILE]
    /// [default: the context's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// A bearer token to show instead of what the context has; nobody else may
    /// read it [env: JOBCTL_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

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
            Self::Start(Asking { reach, .. })
            | Self::Stop(Asking { reach, .. })
            | Self::Query(Asking { reach, .. })
            | Self::Jobs(Asking { reach, .. })
            | Self::Logs(Asking { reach, .. })
            | Self::Wait(Asking { reach, .. })
            | Self::Workers(Asking { reach, .. })
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
            Self::Query(_)
            | Self::Jobs(_)
            | Self::Logs(_)
            | Self::Wait(_)
            | Self::Workers(_)
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

    /// Sets up what holds for the whole process: colour, and with `-v` a line on
    /// stderr for each request. The roles set up their own log.
    pub fn prepare(&self) {
        render::set_colour(match self.color {
            Colour::Auto => None,
            Colour::Always => Some(true),
            Colour::Never => Some(false),
        });
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
        (Err(error), Asks::Version(Asking { args, .. })) if error.is::<Unknown>() => {
            return version::alone(args, &error);
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

/// What an answer that never came may have left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// No scheduler is asked.
    None,
    Reads,
    /// Of jobs.
    Changes,
    /// Of who is let in.
    ChangesAccess,
}

/// A client, and how the same scheduler is reached by whoever types a command.
#[derive(Debug)]
struct Caller {
    client: Client,
    /// What the server, if not set apart, and the credentials come from.
    context: Option<Named>,
    /// Whom it believes: the context's, unless set apart.
    ca_file: Option<PathBuf>,
    proof: Proof,
    /// `jobctl`, with what was given as a flag to find the contexts.
    contexts: String,
    /// `jobctl`, with what was given as a flag to reach this scheduler.
    jobctl: String,
    effect: Effect,
}

impl Caller {
    fn new(reach: Reach, effect: Effect) -> anyhow::Result<Self> {
        Self::among(reach, effect, variable)
    }

    /// The flag wins over the variable, that over the context, and that over the
    /// default.
    fn among(
        reach: Reach,
        effect: Effect,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> anyhow::Result<Self> {
        let mut jobctl = "jobctl".to_owned();
        if let Some(folder) = &reach.client_dir {
            context::push_flag(&mut jobctl, "--client-dir", &folder.to_string_lossy());
        }
        let contexts = jobctl.clone();
        if let Some(name) = &reach.context {
            context::push_flag(&mut jobctl, "--context", name);
        }
        if let Some(server) = &reach.server {
            context::push_flag(&mut jobctl, "--server", &server.to_string());
        }
        for (flag, file) in [
            ("--ca-file", &reach.ca_file),
            ("--token-file", &reach.token_file),
        ] {
            if let Some(file) = file {
                context::push_flag(&mut jobctl, flag, &file.to_string_lossy());
            }
        }
        let set = match &reach.server {
            Some(server) => Some(server.clone()),
            None => variable("JOBCTL_SERVER")
                .map(server_of_variable)
                .transpose()?,
        };
        let is_named = reach.context.is_some() || variable("JOBCTL_CONTEXT").is_some();
        let context = match &set {
            // The credentials of a context are for its own server alone.
            Some(server) if !is_named => context::reaching(server, &reach, &variable),
            _ => context::chosen(&reach, &contexts, &variable)?,
        };
        let of_context = context.as_ref().map(|named| named.context.server.clone());
        let server = match set.or(of_context) {
            Some(server) => server,
            None => {
                return Err(Unknown { jobctl: contexts }.into());
            }
        };
        let of = |file: fn(&Context) -> &Option<PathBuf>| {
            let context = context.as_ref().map(|named| &named.context);
            context.and_then(|context| file(context).clone())
        };
        let set =
            |flag: &Option<PathBuf>, key| flag.clone().or_else(|| variable(key).map(PathBuf::from));
        let ca_file = set(&reach.ca_file, "JOBCTL_CA_FILE");
        let ca_file = ca_file.or_else(|| of(|context| &context.ca_file));
        let token_file = set(&reach.token_file, "JOBCTL_TOKEN_FILE");
        let proof = Proof::of(&Context {
            server: server.clone(),
            ca_file: ca_file.clone(),
            // Nobody is two at a time.
            identity_file: match token_file {
                None if effect != Effect::None => of(|context| &context.identity_file),
                Some(_) | None => None,
            },
            token_file: match effect {
                Effect::None => None,
                _ => token_file.or_else(|| of(|context| &context.token_file)),
            },
        })?;
        Ok(Self {
            client: Client::new(server, &proof)?,
            proof,
            context,
            ca_file,
            contexts,
            jobctl,
            effect,
        })
    }

    /// Has the client's certificate replaced once half of its life is over. One
    /// that cannot be replaced now is good for as long again.
    async fn renew(&self) {
        let files = self.context.as_ref().and_then(|named| {
            let context = &named.context;
            Some((context.identity_file.as_ref()?, context.ca_file.as_ref()?))
        });
        // What another authority vouches for is none of the context's business.
        let files = files.filter(|(_, ca_file)| self.ca_file.as_ref() == Some(*ca_file));
        let Some((identity_file, ca_file)) = files.filter(|_| self.proof.is_old()) else {
            return;
        };
        let renewed = async {
            let asked = Asked::new()?;
            let signed = self.client.renew(&asked.renew()).await?;
            asked.keep(&signed, identity_file, ca_file)?;
            anyhow::Ok(())
        };
        if let Err(error) = renewed.await {
            tracing::debug!("the certificate is not replaced: {error:#}");
        }
    }

    /// Waits for an answer, and says so on a terminal if it takes its time.
    async fn patiently<T>(&self, answer: impl Future<Output = T>) -> T {
        let text = format!("waiting for the scheduler at {}", self.client.server());
        render::patiently(&text, answer).await
    }

    /// Shows `error` with its causes and a hint; returns the exit code it
    /// stands for.
    fn report(&self, error: &anyhow::Error, codes: Codes) -> u8 {
        report_with(error, codes, self.hint(error))
    }

    /// What to type next.
    fn hint(&self, error: &anyhow::Error) -> Option<String> {
        let jobctl = &self.jobctl;
        if let Some(Unmatched::NotFound { thing, .. }) = error.downcast_ref() {
            let verb = match *thing {
                "token" => "token",
                _ => "cert",
            };
            return Some(format!("list them with `{jobctl} {verb} list`"));
        }
        let Some(error) = error.downcast_ref::<client::Error>() else {
            return hint(error);
        };
        match error {
            client::Error::Unreachable { .. } => Some(match &self.context {
                Some(Named { name, context, .. }) if context.server == *self.client.server() => {
                    let jobctl = &self.contexts;
                    format!(
                        "see how it is reached with `{jobctl} context show {name}`, or use \
                         another: `--context NAME`"
                    )
                }
                _ => {
                    "start one with `jobctl scheduler`, or name another: `--server URL`".to_owned()
                }
            }),
            client::Error::Interrupted { .. } => Some(match self.effect {
                Effect::Changes => format!("see what came of it with `{jobctl} jobs`"),
                Effect::ChangesAccess => {
                    format!("see what came of it with `{jobctl} audit -n 10`")
                }
                Effect::Reads | Effect::None => NOT_HTTP.to_owned(),
            }),
            client::Error::Unreadable { .. } => Some(NOT_HTTP.to_owned()),
            client::Error::Proof(_) => None,
            client::Error::PlainToken(_) => Some("name the scheduler as `https://…`".to_owned()),
            client::Error::Untrusted { .. } => Some(match &self.ca_file {
                Some(_) => format!(
                    "see whom you believe with `{jobctl} ca show`; if the cluster was made anew, \
                     log in to it: `{}`",
                    self.login()
                ),
                None => format!(
                    "log in: `{} login TOKEN@HOST:PORT`, or name whom to believe: `--ca-file FILE`",
                    self.contexts
                ),
            }),
            client::Error::NotBelieved { .. } => Some(self.let_in_again()),
            client::Error::OtherScheme { server, speaks } => {
                let other = server.split_once("://").map_or("", |(_, place)| place);
                Some(format!("reach it as `--server {speaks}://{other}`"))
            }
            client::Error::Refused { error, .. } => match (error.code.as_str(), error.job_id) {
                (_, Some(job)) => Some(format!(
                    "see its record with `{jobctl} query {}`",
                    job.short()
                )),
                (code::JOB_NOT_FOUND, None) => Some(format!("list the jobs with `{jobctl} jobs`")),
                (code::WORKER_NOT_FOUND | code::WORKER_UNREACHABLE, None) => {
                    Some(format!("list the workers with `{jobctl} workers`"))
                }
                (code::NO_WORKER_READY, None) => {
                    Some("start a worker with `jobctl worker`".to_owned())
                }
                (code::ROUTE_NOT_FOUND, None) => {
                    Some(format!("compare the versions with `{jobctl} version`"))
                }
                (code::UNIDENTIFIED, None) => Some(format!(
                    "log in, with a token that an admin makes: `{} login TOKEN@HOST:PORT`",
                    self.contexts
                )),
                (code::BAD_TOKEN | code::TOKEN_EXPIRED | code::REVOKED, None) => {
                    Some(self.let_in_again())
                }
                (code::FORBIDDEN, None) => Some(format!(
                    "see who you are with `{} context show`, and have an admin make a token of \
                     that role: `jobctl token create --role ROLE`",
                    self.contexts
                )),
                (code::AUTHORITIES_OVERLAP, None) => Some(format!(
                    "wait until then, or have everybody join again: `{jobctl} ca rotate \
                     --overlap 0s`"
                )),
                (code::TOKEN_NOT_FOUND, None) => {
                    Some(format!("list the tokens with `{jobctl} token list`"))
                }
                (code::CERTIFICATE_NOT_FOUND, None) => {
                    Some(format!("list them with `{jobctl} cert list`"))
                }
                (code::NO_AUTHORITY, None) => Some(format!(
                    "make certificates where the cluster's come from; for programs there are \
                     tokens: `{jobctl} token create --bearer --role ROLE`"
                )),
                (word, None) => hint_of_refusal(word),
            },
        }
    }

    /// With which a token takes the place of what the context has.
    fn login(&self) -> String {
        let replace = self.context.as_ref().map(|named| {
            let name = render::quoted(&named.name);
            format!(" --replace --name {name}")
        });
        format!(
            "{} login{} TOKEN@HOST:PORT",
            self.contexts,
            replace.unwrap_or_default()
        )
    }

    /// For whoever was let in once, and is not any more.
    fn let_in_again(&self) -> String {
        if self.proof.token().is_some() {
            return "have an admin make another token: `jobctl token create --bearer --role ROLE \
                    --out FILE`"
                .to_owned();
        }
        let (role, name) = match self.proof.identity() {
            Some(who) => (who.role.as_str(), who.name.as_str()),
            None => ("ROLE", ""),
        };
        let name = match name {
            "" => String::new(),
            name => format!(" --name {}", render::quoted(name)),
        };
        format!(
            "have an admin type `jobctl token create --role {role}{name}`, and log in with it: \
             `{}`{}",
            self.login(),
            match role {
                "admin" => {
                    "; if no admin is left, start the scheduler again: who starts it is one"
                }
                _ => "",
            }
        )
    }
}

/// About a refusal that means the same to whoever hears it.
fn hint_of_refusal(word: &str) -> Option<String> {
    Some(match word {
        code::TOKEN_SPENT | code::BAD_TOKEN | code::TOKEN_EXPIRED | code::REVOKED => {
            "have an admin make another: `jobctl token create --role ROLE`".to_owned()
        }
        code::WRONG_TOKEN => "of a person `jobctl login` takes the token, of a worker `jobctl \
                              worker --join`, and a bearer token is for `--token-file FILE`"
            .to_owned(),
        code::NOT_ITSELF => {
            "give each worker a folder of its own: `jobctl worker --data-dir DIR`".to_owned()
        }
        code::FOREIGN_HOST => {
            "start the scheduler with that name, `jobctl scheduler --name HOST`, \
                               or reach it by its address: `--server URL`"
                .to_owned()
        }
        code::CROSS_SITE => "ask from a command line: `jobctl jobs`".to_owned(),
        _ => return None,
    })
}

const NOT_HTTP: &str = "if that is not the scheduler's HTTP address, pass it: `--server URL`";

/// What a variable is set to; one that is set to nothing counts as not set.
fn variable(key: &str) -> Option<OsString> {
    env::var_os(key).filter(|value| !value.is_empty())
}

fn server_of_variable(text: OsString) -> anyhow::Result<Server> {
    let text = text.to_string_lossy();
    text.parse().map_err(|why: String| {
        BadSetting {
            message: format!("`JOBCTL_SERVER` is `{text}`, which is {why}"),
            hint: format!("write it as `{}`, or unset it", client::DEFAULT_SERVER),
        }
        .into()
    })
}

/// Shows `error` with its causes and a hint; returns the exit code it stands for.
pub fn report(error: &anyhow::Error, codes: Codes) -> u8 {
    report_with(error, codes, hint(error))
}

fn report_with(error: &anyhow::Error, codes: Codes, hint: Option<String>) -> u8 {
    let code = code_of(error, codes);
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        show_usage(usage);
    } else if code != DONE {
        let causes: Vec<_> = error.chain().skip(1).map(ToString::to_string).collect();
        render::failure(&error.to_string(), &causes, hint.as_deref());
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
    if error.is::<clap::Error>()
        || error.is::<config::Error>()
        || error.is::<BadSetting>()
        || error.is::<Unknown>()
    {
        return USAGE;
    }
    if let Some(error) = error.downcast_ref::<contexts::Error>() {
        return match error {
            contexts::Error::NotFound { .. } | contexts::Error::NoneCurrent => NOT_FOUND,
            contexts::Error::File(_)
            | contexts::Error::BadName(_)
            | contexts::Error::TwoCredentials(_)
            | contexts::Error::Files(_)
            | contexts::Error::Identity { .. }
            | contexts::Error::Authorities(_) => USAGE,
            contexts::Error::Exists(_)
            | contexts::Error::FileOfAnother { .. }
            | contexts::Error::Failed { .. }
            | contexts::Error::Toml(_) => FAILED,
        };
    }
    if let (Some(unmatched), Codes::Jobctl) = (error.downcast_ref::<Unmatched>(), codes) {
        return match unmatched {
            Unmatched::NotFound { .. } => NOT_FOUND,
            Unmatched::Ambiguous { .. } => FAILED,
        };
    }
    if let Some(worker_role::Error::Revoked { .. }) = error.downcast_ref() {
        return NOT_ALLOWED;
    }
    match (error.downcast_ref::<client::Error>(), codes) {
        (Some(error), Codes::Job) => start_error_code(error.code().unwrap_or_default()),
        (None, Codes::Job) => CANNOT_TELL,
        (Some(client::Error::Refused { status, error }), Codes::Jobctl) => {
            match (status, error.code.as_str()) {
                (401 | 403, _) => NOT_ALLOWED,
                (
                    _,
                    code::JOB_NOT_FOUND
                    | code::WORKER_NOT_FOUND
                    | code::TOKEN_NOT_FOUND
                    | code::CERTIFICATE_NOT_FOUND,
                ) => NOT_FOUND,
                _ => FAILED,
            }
        }
        (
            Some(
                client::Error::Unreachable { .. }
                | client::Error::Interrupted { .. }
                | client::Error::Untrusted { .. }
                | client::Error::OtherScheme { .. },
            ),
            Codes::Jobctl,
        ) => UNREACHABLE,
        (Some(client::Error::NotBelieved { .. }), Codes::Jobctl) => NOT_ALLOWED,
        (
            Some(
                client::Error::Unreadable { .. }
                | client::Error::Proof(_)
                | client::Error::PlainToken(_),
            )
            | None,
            Codes::Jobctl,
        ) => FAILED,
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

/// Nobody, or not one alone, is what was meant.
#[derive(Debug, thiserror::Error)]
enum Unmatched {
    #[error("{thing} {asked} not found")]
    NotFound { thing: &'static str, asked: String },
    #[error("{thing} {asked} is ambiguous: {}", candidates.join(", "))]
    Ambiguous {
        thing: &'static str,
        asked: String,
        candidates: Vec<String>,
    },
}

impl Unmatched {
    fn unless_one<T>(
        thing: &'static str,
        asked: &str,
        mut matching: Vec<T>,
        label: impl Fn(&T) -> String,
    ) -> Result<T, Self> {
        let asked = asked.to_owned();
        match (matching.pop(), matching.is_empty()) {
            (None, _) => Err(Self::NotFound { thing, asked }),
            (Some(one), true) => Ok(one),
            (Some(last), false) => {
                matching.push(last);
                Err(Self::Ambiguous {
                    thing,
                    asked,
                    candidates: matching.iter().map(label).collect(),
                })
            }
        }
    }
}

/// A setting that was understood and is not taken.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct BadSetting {
    message: String,
    hint: String,
}

/// Nothing says where a scheduler is.
#[derive(Debug, thiserror::Error)]
#[error("no scheduler is known here")]
struct Unknown {
    /// `jobctl`, with what was given as a flag to find the contexts.
    jobctl: String,
}

/// A failure of this machine that a person can do something about.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Hinted {
    message: String,
    hint: String,
    source: std::io::Error,
}

/// What to type next where no scheduler is asked.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref::<BadSetting>() {
        return Some(error.hint.clone());
    }
    if let Some(Unknown { jobctl }) = error.downcast_ref() {
        return Some(format!(
            "start one with `jobctl scheduler`, or join one: `{jobctl} login TOKEN@HOST:PORT`"
        ));
    }
    if let Some(error) = error.downcast_ref::<Hinted>() {
        return Some(error.hint.clone());
    }
    if let Some(config::Error::UnknownKey { nearest, .. }) = error.downcast_ref() {
        return Some(format!("did you mean `{nearest}`?"));
    }
    if let Some(config::Error::NotASection { section, .. }) = error.downcast_ref() {
        return Some(format!("begin it with a line `[{section}]`"));
    }
    if let Some(hint) = hint_of_files(error) {
        return Some(hint);
    }
    match error.downcast_ref()? {
        worker_role::Error::DataDirInUse(_) => {
            Some("give each worker a folder of its own: `--data-dir DIR`".to_owned())
        }
        worker_role::Error::Refused(_) => {
            Some("see who is there with `jobctl workers`, or pass another `--name`".to_owned())
        }
        worker_role::Error::StillThere(_) => {
            Some("start the worker again and stop them with `jobctl stop --grace 0s`".to_owned())
        }
        worker_role::Error::NotJoined => Some(
            "take the line that `jobctl scheduler` printed, or have an admin type \
             `jobctl token create --role worker`: `jobctl worker --join TOKEN@HOST:PORT`"
                .to_owned(),
        ),
        worker_role::Error::OtherCluster { .. } => {
            Some("give the worker of this cluster a folder of its own: `--data-dir DIR`".to_owned())
        }
        worker_role::Error::Revoked { name, .. } => Some(format!(
            "have an admin type `jobctl token create --role worker --name {name}`, and join with \
             it here: `jobctl worker --join TOKEN@HOST:PORT`"
        )),
        worker_role::Error::NotTaken { word, .. } => Some(match word.as_deref() {
            Some(code::WRONG_TOKEN) => "have an admin type `jobctl token create --role worker`; \
                                        of a person `jobctl login` takes the token"
                .to_owned(),
            Some(code::WORKER_NAME_TAKEN) => {
                "pass another `--name`; if it is that worker, have an admin say so: \
                 `jobctl token create --role worker --name NAME`"
                    .to_owned()
            }
            None => "workers join at the scheduler's gRPC address, as TOKEN@HOST:50000".to_owned(),
            Some(_) => "a token buys one certificate and is good for an hour; for another: \
                  `jobctl token create --role worker`"
                .to_owned(),
        }),
        worker_role::Error::Program { .. } => {
            Some("give its whole path, or take it from `jobs.allow_commands`".to_owned())
        }
        worker_role::Error::User { .. } => {
            Some("see `jobs.user` and `jobs.allow_users`, or run the worker as root".to_owned())
        }
        worker_role::Error::Limit { setting, source } => {
            let or = match source {
                worker_role::Unenforceable::NoCpuController => "",
                worker_role::Unenforceable::RootIsNotCounted => {
                    "have jobs run as another user (`jobs.user`), "
                }
            };
            Some(format!(
                "leave `jobs.{setting}` out, {or}or have systemd pass the controller on: \
                 `Delegate=yes` and `DelegateSubgroup=worker` in the worker's service"
            ))
        }
        worker_role::Error::Certificate(_)
        | worker_role::Error::Files(_)
        | worker_role::Error::Key(_)
        | worker_role::Error::Path { .. }
        | worker_role::Error::Journal(_)
        | worker_role::Error::JournalBroken(_)
        | worker_role::Error::Server(_)
        | worker_role::Error::Listener(_) => None,
    }
}

/// About keys and certificates, wherever they are read.
fn hint_of_files(error: &anyhow::Error) -> Option<String> {
    // Errors that only pass on what another says do not show it as their cause.
    let file_error = error.chain().find_map(|error| {
        let direct = error.downcast_ref::<files::Error>();
        let of_context = || match error.downcast_ref() {
            Some(contexts::Error::Files(error)) => Some(error),
            _ => None,
        };
        let of_worker = || match error.downcast_ref() {
            Some(worker_role::Error::Files(error)) => Some(error),
            _ => None,
        };
        let of_authority = || match error.downcast_ref() {
            Some(identity::ca::Error::Files(error)) => Some(error),
            _ => None,
        };
        let passed_on = direct.or_else(of_context).or_else(of_worker);
        passed_on.or_else(of_authority)
    });
    if let Some(files::Error::Loose { file, .. }) = file_error {
        let file = file.to_string_lossy();
        return Some(format!(
            "take it from others: `chmod 600 {}`",
            render::quoted(&file)
        ));
    }
    if let Some(files::Error::Foreign { file, .. }) = file_error {
        let file = file.to_string_lossy();
        return Some(format!(
            "make it yours, if nobody has changed it: `chown $(id -u) {}`",
            render::quoted(&file)
        ));
    }
    let expired = error.chain().find_map(|error| match error.downcast_ref() {
        Some(tls::Error::Expired { who, .. }) => Some(who),
        _ => None,
    })?;
    let name = match expired.name.as_str() {
        "" => String::new(),
        name => format!(" --name {name}"),
    };
    let role = expired.role;
    let join = match role {
        Role::Worker => "jobctl worker --join",
        _ => "jobctl login --replace --name CONTEXT",
    };
    Some(format!(
        "have an admin type `jobctl token create --role {role}{name}`, then \
         `{join} TOKEN@HOST:PORT`"
    ))
}

/// Shows what clap has to say: help on stdout, and what is wrong on stderr.
pub fn show_usage(message: &clap::Error) {
    match message.use_stderr() {
        true => render::usage(&message.render().ansi().to_string()),
        // Fails only where nobody reads it.
        false => message.print().unwrap_or_default(),
    }
}

/// A name that a job or worker may bear.
fn name(text: &str) -> Result<String, String> {
    match text {
        "last" => Err("`last` means the job started last".to_owned()),
        name if is_name(name) => Ok(name.to_owned()),
        _ => {
            Err("use 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit first".to_owned())
        }
    }
}

/// An error like those clap finds by itself, about the command `words`.
fn usage(words: &str, message: impl std::fmt::Display) -> anyhow::Error {
    let mut cli = Cli::command();
    cli.build();
    let command = words
        .split(' ')
        .try_fold(&mut cli, |command, word| command.find_subcommand_mut(word));
    match command {
        Some(command) => command.error(ErrorKind::ValueValidation, message),
        None => Cli::command().error(ErrorKind::ValueValidation, message),
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
    listed(jobs, "jobs")
}

/// As [`named_jobs`], of other things.
fn listed(words: Vec<String>, things: &str) -> anyhow::Result<Vec<String>> {
    let mut named = Vec::new();
    for word in words {
        if word == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .with_context(|| format!("cannot read the {things} from standard input"))?;
            named.extend(text.split_whitespace().map(str::to_owned));
        } else {
            named.push(word);
        }
    }
    if named.is_empty() {
        render::note(&format!("no {things} on standard input"));
    }
    let mut seen = BTreeSet::new();
    named.retain(|word| seen.insert(word.clone()));
    Ok(named)
}

/// The job that `reference` means, and what to call it: by its name too, if
/// that was how it was called. Asks the scheduler unless it is a whole id.
async fn named(caller: &Caller, reference: String) -> Result<(JobId, String), client::Error> {
    if let Ok(id) = reference.parse::<JobId>() {
        return Ok((id, id.short()));
    }
    let request = QueryRequest {
        job_id: reference.clone(),
        ..QueryRequest::default()
    };
    let job = caller.client.query(&request).await?.job;
    let label = match job.name {
        Some(name) if name == reference => format!("{name} ({})", job.id.short()),
        _ => job.id.short(),
    };
    Ok((job.id, label))
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
            (refused(404, "token_not_found"), 3, 125),
            (untrusted(), 5, 125),
            (not_believed(), 4, 125),
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

    fn untrusted() -> anyhow::Error {
        let (server, reason) = ("https://s".into(), "r".into());
        client::Error::Untrusted { server, reason }.into()
    }

    fn not_believed() -> anyhow::Error {
        let (server, reason) = ("https://s".into(), "r".into());
        client::Error::NotBelieved { server, reason }.into()
    }

    #[test]
    fn whoever_is_not_let_in_is_told_what_to_type() {
        let caller = caller("http://a:3000", Effect::Reads);
        for (status, word, command) in [
            (401, "unidentified", "`jobctl login TOKEN@HOST:PORT`"),
            (401, "bad_token", "`jobctl token create --role ROLE`"),
            (401, "token_expired", "`jobctl token create --role ROLE`"),
            (401, "token_spent", "`jobctl token create --role ROLE`"),
            (401, "wrong_token", "`jobctl login`"),
            (401, "revoked", "`jobctl token create --role ROLE`"),
            (403, "forbidden", "`jobctl context show`"),
            (403, "not_itself", "`jobctl worker --data-dir DIR`"),
            (403, "foreign_host", "`jobctl scheduler --name HOST`"),
            (403, "cross_site", "`jobctl jobs`"),
            (409, "no_authority", "token create --bearer --role ROLE`"),
            (409, "authorities_overlap", "ca rotate --overlap 0s`"),
            (404, "token_not_found", "token list`"),
        ] {
            let hint = caller.hint(&refused(status, word)).unwrap();
            assert!(hint.contains(command), "{word}: {hint}");
        }
        let hint = caller.hint(&untrusted()).unwrap();
        assert!(hint.contains("`jobctl login TOKEN@HOST:PORT`"), "{hint}");
        let hint = caller.hint(&not_believed()).unwrap();
        assert!(hint.contains("`jobctl token create --role ROLE`"), "{hint}");
        let other = client::Error::OtherScheme {
            server: "http://a:3000".into(),
            speaks: "https",
        };
        let hint = caller.hint(&other.into()).unwrap();
        assert_eq!(hint, "reach it as `--server https://a:3000`");
    }

    #[test]
    fn hints_can_be_typed() {
        for (error, command) in [
            (
                refused(404, "job_not_found"),
                "jobctl --server http://a jobs",
            ),
            (
                refused(404, "route_not_found"),
                "jobctl --server http://a version",
            ),
            (
                refused(504, "worker_unreachable"),
                "jobctl --server http://a workers",
            ),
            (refused(503, "no_worker_ready"), "jobctl worker"),
        ] {
            let hint = caller("http://a", Effect::Reads).hint(&error).unwrap();
            assert!(hint.contains(&format!("`{command}`")), "{hint}");
        }
        let none = caller("http://a", Effect::Reads).hint(&refused(409, "job_finished"));
        assert_eq!(none, None);
    }

    fn caller(server: &str, effect: Effect) -> Caller {
        let reach = Reach {
            server: Some(server.parse().unwrap()),
            ..Reach::default()
        };
        Caller::among(reach, effect, |_| None).unwrap()
    }

    #[test]
    fn the_server_is_the_flags_else_the_variables_else_the_contexts() {
        let folder = tempfile::tempdir().unwrap();
        let text = "current = \"a\"\n\
            [contexts.a]\nserver = \"http://a\"\n[contexts.b]\nserver = \"http://b\"\n";
        std::fs::write(folder.path().join(contexts::FILE), text).unwrap();
        let reached = |server: Option<&str>, context: Option<&str>, set: &[(&str, &str)]| {
            let reach = Reach {
                server: server.map(|server| server.parse().unwrap()),
                context: context.map(str::to_owned),
                ..Reach::default()
            };
            let caller = Caller::among(reach, Effect::Reads, |key| match key {
                "JOBCTL_CLIENT_DIR" => Some(folder.path().into()),
                key => set.iter().find(|(k, _)| *k == key).map(|(_, v)| v.into()),
            })
            .unwrap();
            let context = caller.context.map(|named| named.name).unwrap_or_default();
            format!("{} {context}", caller.client.server())
        };
        let server = ("JOBCTL_SERVER", "http://v");
        let context = ("JOBCTL_CONTEXT", "b");
        assert_eq!(reached(Some("http://f"), None, &[server]), "http://f ");
        assert_eq!(reached(None, None, &[server]), "http://v ");
        assert_eq!(reached(None, None, &[]), "http://a a");
        assert_eq!(reached(None, None, &[context]), "http://b b");
        assert_eq!(reached(None, Some("a"), &[context]), "http://a a");
        assert_eq!(reached(Some("http://f"), Some("b"), &[]), "http://f b");
        assert_eq!(reached(None, None, &[server, context]), "http://v b");
        let error = Caller::among(Reach::default(), Effect::Reads, |_| None).unwrap_err();
        assert!(
            hint(&error)
                .unwrap()
                .contains("`jobctl login TOKEN@HOST:PORT`")
        );
        assert_eq!(code_of(&error, Codes::Jobctl), USAGE);
    }

    #[test]
    fn files_that_were_named_win_over_the_contexts() {
        let folder = tempfile::tempdir().unwrap();
        let token = |name: &str| {
            let file = folder.path().join(name);
            let token = crate::identity::token::Bearer::random().reveal();
            files::write(&file, token.as_bytes()).unwrap();
            (file, token)
        };
        let (own, own_token) = token("own");
        let (flag, flag_token) = token("flag");
        let (set, set_token) = token("set");
        let text = format!(
            "current = \"a\"\n[contexts.a]\nserver = \"https://a\"\ntoken_file = {own:?}\n"
        );
        std::fs::write(folder.path().join(contexts::FILE), text).unwrap();
        let shown = |token_file: Option<&PathBuf>, variable: Option<&PathBuf>| {
            let reach = Reach {
                token_file: token_file.cloned(),
                ..Reach::default()
            };
            let caller = Caller::among(reach, Effect::Reads, |key| match key {
                "JOBCTL_CLIENT_DIR" => Some(folder.path().into()),
                "JOBCTL_TOKEN_FILE" => variable.map(|file| file.clone().into_os_string()),
                _ => None,
            })
            .unwrap();
            (caller.proof.token().unwrap().to_owned(), caller.jobctl)
        };
        assert_eq!(shown(None, None), (own_token, "jobctl".to_owned()));
        assert_eq!(shown(None, Some(&set)), (set_token, "jobctl".to_owned()));
        let jobctl = format!("jobctl --token-file {}", flag.display());
        assert_eq!(shown(Some(&flag), Some(&set)), (flag_token, jobctl));
    }

    #[test]
    fn a_hint_has_each_flag_by_which_the_scheduler_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a b");
        let prod = contexts::Context {
            server: "http://prod".parse().unwrap(),
            ca_file: None,
            identity_file: None,
            token_file: None,
        };
        contexts::Contexts::change(&dir, |contexts| contexts.add("prod", prod)).unwrap();
        let reach = Reach {
            context: Some("prod".to_owned()),
            client_dir: Some(dir.clone()),
            ..Reach::default()
        };
        let caller = Caller::among(reach, Effect::Reads, |_| None).unwrap();
        let jobctl = format!("jobctl --client-dir '{}' --context prod", dir.display());
        assert_eq!(
            caller.hint(&refused(404, "job_not_found")).unwrap(),
            format!("list the jobs with `{jobctl} jobs`")
        );
    }

    #[test]
    fn a_hint_reaches_the_same_scheduler_and_fits_what_was_done() {
        let elsewhere = caller("http://127.0.0.1:4000", Effect::Changes);
        let hint = |caller: &Caller, error| caller.hint(&error).unwrap();
        assert_eq!(
            hint(&elsewhere, refused(404, "job_not_found")),
            "list the jobs with `jobctl --server http://127.0.0.1:4000 jobs`"
        );
        let interrupted = || -> anyhow::Error {
            client::Error::Interrupted {
                server: "s".into(),
                reason: "r".into(),
            }
            .into()
        };
        assert!(hint(&elsewhere, interrupted()).contains(":4000 jobs`"));
        let reads = caller("http://a", Effect::Reads);
        assert_eq!(hint(&reads, interrupted()), NOT_HTTP);
    }

    #[test]
    fn whoever_only_looks_is_not_told_of_what_may_have_been_done() {
        for (args, effect) in [
            (&["jobs"][..], Effect::Reads),
            (&["token", "list"], Effect::Reads),
            (&["cert", "list"], Effect::Reads),
            (&["ca", "show"], Effect::None),
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

    #[test]
    fn a_role_that_cannot_begin_says_what_to_change() {
        for (error, word) in [
            (
                worker_role::Error::DataDirInUse("/x".into()),
                "`--data-dir DIR`",
            ),
            (worker_role::Error::Refused("no".into()), "`--name`"),
        ] {
            let hint = hint(&error.into()).unwrap();
            assert!(hint.contains(word), "{hint}");
        }
        // A cluster that has ended cannot be asked.
        assert_eq!(hint(&refused(404, "job_not_found")), None);
    }

    #[test]
    fn a_job_named_twice_is_one_job() {
        let jobs = ["b", "a", "b"].map(str::to_owned).to_vec();
        assert_eq!(named_jobs(jobs).unwrap(), ["b", "a"]);
    }
}
