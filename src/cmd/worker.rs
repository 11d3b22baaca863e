//! `jobctl worker`

use std::{
    collections::BTreeMap,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use bytesize::ByteSize;
use rustix::process::{DumpableBehavior, getpid, set_child_subreaper, set_dumpable_behavior};
use tokio_util::sync::CancellationToken;

use super::{
    BadSetting, DONE,
    role::{
        Address, BoundsArgs, ConfigArgs, LogArgs, Secured, dialled, named_certificates,
        state_folder, until_signalled,
    },
};
use crate::{
    client::render,
    config,
    identity::{Role, tls::ClientCertificates, token::Invitation},
    ids::is_name,
    labels,
    roles::{
        shim,
        worker::{self, Commands, Config, ControlGroups, Limits, OnStop, Rules, Security},
    },
};

pub(super) const GRPC: Address = Address {
    key: "grpc_server.addr",
    flag: "--grpc-addr",
    default: "127.0.0.1:30000",
};

/// Whatever takes the place of the binary on the disk, a job gets a shim of the
/// version that knows how to talk to it.
pub(super) const SHIM: &str = "/proc/self/exe";

/// Bytes that the disk of the data folder is to have left: room for what is to be known
/// of thousands of jobs, and not for much output.
pub(super) const MIN_FREE_DISK: u64 = 16 * 1024 * 1024;

pub(super) const GRACE: Duration = Duration::from_secs(10);
pub(super) const OUTPUT_LIMIT: u64 = 1024 * 1024 * 1024;
pub(super) const KEEP_FINISHED: usize = 10_000;

/// Below these nothing would run: a typing error, or another unit.
const LEAST_MEMORY: u64 = 1024 * 1024;
const LEAST_OPEN_FILES: u64 = 16;

/// What the kernel takes as `oom_score_adj` (proc_pid_oom_score_adj(5)).
const OOM_SCORES: RangeInclusive<i32> = -1000..=1000;

/// So much lower is that of the worker than that of its jobs: half of all memory.
const BELOW_JOBS: i32 = 500;

/// What the kernel takes as a share: a hundredth, and more than any machine has.
const CPUS: RangeInclusive<f64> = 0.01..=10_000.0;

const EXAMPLES: &str = "\
Examples:
  jobctl worker --join TOKEN@10.0.0.1:50000    the first time
  jobctl worker                                from then on
  jobctl worker --name w2 --grpc-addr 127.0.0.1:30001 --script-dir ./scripts
  jobctl worker --config /etc/jobctl/worker.toml
  jobctl worker kill-all --name w2    ends what it left running";

/// Run a worker: starts jobs on this machine, and keeps their output
///
/// Runs until SIGINT or SIGTERM; a second one ends it at once. Its jobs go on
/// without it, whether it is stopped, killed or upgraded: their output is
/// recorded, and the next `jobctl worker` with the same data folder takes them
/// over. Whoever wants them ended has `--drain-on-stop` beforehand and
/// `jobctl worker kill-all` afterwards.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    #[command(flatten)]
    config: ConfigArgs,

    /// What to call it, until its certificate does [default: the name of this
    /// machine]
    #[arg(long, env = "JOBCTL_WORKER_NAME", hide_env_values = true)]
    name: Option<String>,

    /// Where to keep its identity and the output of jobs [default:
    /// ~/.local/state/jobctl/worker-NAME, or for root
    /// /var/lib/jobctl/worker-NAME]
    #[arg(
        long,
        env = "JOBCTL_WORKER_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,

    /// How many jobs it takes at once; 0: none; or `unlimited` [default: the
    /// processors it may use]
    #[arg(
        long,
        env = "JOBCTL_WORKER_SLOTS",
        allow_negative_numbers = true,
        hide_env_values = true,
        value_name = "N"
    )]
    slots: Option<config::Slots>,

    /// Take no jobs while the disk of the data folder has less left than this
    /// [default: 16MiB]
    #[arg(
        long,
        env = "JOBCTL_WORKER_MIN_FREE_DISK",
        hide_env_values = true,
        value_name = "SIZE"
    )]
    min_free_disk: Option<ByteSize>,

    /// What jobs may choose it by; may be repeated [default: none]
    #[arg(
        long = "label",
        env = "JOBCTL_WORKER_LABELS",
        hide_env_values = true,
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    labels: Option<Vec<String>>,

    /// Where to serve the scheduler [default: 127.0.0.1:30000]
    #[arg(
        long,
        env = "JOBCTL_GRPC_SERVER_ADDR",
        hide_env_values = true,
        value_name = "ADDR",
        help_heading = "Addresses"
    )]
    grpc_addr: Option<String>,

    /// What the scheduler is to dial [default: what it listens on]
    #[arg(
        long,
        env = "JOBCTL_GRPC_SERVER_ADVERTISE",
        hide_env_values = true,
        value_name = "ADDR",
        help_heading = "Addresses"
    )]
    advertise: Option<String>,

    /// The scheduler's gRPC server [default: where the worker joined]
    #[arg(
        long,
        env = "JOBCTL_SCHEDULER_ADDR",
        hide_env_values = true,
        value_name = "ADDR",
        help_heading = "Addresses"
    )]
    scheduler: Option<String>,

    /// Join a cluster, with the token that the scheduler printed or an admin made;
    /// needed once, and again when it is not accepted any more; `-` reads it from
    /// standard input
    #[arg(
        long,
        env = "JOBCTL_JOIN",
        hide_env_values = true,
        value_name = "TOKEN@HOST:PORT",
        help_heading = "Security"
    )]
    join: Option<String>,

    /// Speak plain text, on loopback
    #[arg(
        long,
        env = "JOBCTL_SECURITY_INSECURE",
        hide_env_values = true,
        help_heading = "Security"
    )]
    insecure: bool,

    /// The scripts it may run [default: `scripts` in its data folder]
    #[arg(
        long,
        env = "JOBCTL_JOBS_SCRIPT_DIR",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Jobs"
    )]
    script_dir: Option<PathBuf>,

    /// What a job has from TERM to KILL [default: 10s]
    #[arg(
        long,
        env = "JOBCTL_JOBS_GRACE", hide_env_values = true,
        value_name = "DURATION",
        value_parser = config::duration,
        help_heading = "Jobs"
    )]
    grace: Option<Duration>,

    /// The most output kept of a job; beyond it the oldest goes [default: 1GiB]
    #[arg(
        long,
        env = "JOBCTL_JOBS_OUTPUT_LIMIT",
        hide_env_values = true,
        value_name = "SIZE",
        help_heading = "Jobs"
    )]
    output_limit: Option<ByteSize>,

    /// When asked to end, end the jobs first
    #[arg(
        long,
        env = "JOBCTL_JOBS_DRAIN_ON_STOP",
        hide_env_values = true,
        help_heading = "Jobs"
    )]
    drain_on_stop: bool,

    /// Whether jobs get control groups, where possible [default: true]
    #[arg(
        long,
        env = "JOBCTL_JOBS_CONTROL_GROUPS",
        hide_env_values = true,
        hide_possible_values = true,
        value_name = "BOOL",
        help_heading = "Jobs"
    )]
    control_groups: Option<bool>,

    /// Programs that jobs may execute, or `scripts` or `all` [default: all]
    #[arg(
        long,
        env = "JOBCTL_JOBS_ALLOW_COMMANDS",
        hide_env_values = true,
        value_name = "PROGRAM",
        value_delimiter = ',',
        help_heading = "Jobs"
    )]
    allow_commands: Option<Vec<String>>,

    /// Whom jobs run as [default: the worker's own user]
    #[arg(
        long,
        env = "JOBCTL_JOBS_USER",
        hide_env_values = true,
        value_name = "USER",
        help_heading = "Jobs"
    )]
    user: Option<String>,

    /// Whom else a job may ask to run as [default: nobody]
    #[arg(
        long,
        env = "JOBCTL_JOBS_ALLOW_USERS",
        hide_env_values = true,
        value_name = "USER",
        value_delimiter = ',',
        help_heading = "Jobs"
    )]
    allow_users: Option<Vec<String>>,

    /// Whether sudo and the like may give jobs more rights [default: false]
    #[arg(
        long,
        env = "JOBCTL_JOBS_ALLOW_NEW_PRIVILEGES",
        hide_env_values = true,
        hide_possible_values = true,
        value_name = "BOOL",
        help_heading = "Jobs"
    )]
    allow_new_privileges: Option<bool>,

    /// The most memory of a job [default: no limit]
    #[arg(
        long,
        env = "JOBCTL_JOBS_MEMORY",
        hide_env_values = true,
        value_name = "SIZE",
        help_heading = "Jobs"
    )]
    memory: Option<ByteSize>,

    /// The most processes and threads of a job [default: no limit]
    #[arg(
        long,
        env = "JOBCTL_JOBS_PROCESSES",
        allow_negative_numbers = true,
        hide_env_values = true,
        value_name = "N",
        help_heading = "Jobs"
    )]
    processes: Option<u64>,

    /// The most open files of each process of a job [default: as the worker]
    #[arg(
        long,
        env = "JOBCTL_JOBS_OPEN_FILES",
        allow_negative_numbers = true,
        hide_env_values = true,
        value_name = "N",
        help_heading = "Jobs"
    )]
    open_files: Option<u64>,

    /// Processors that a job may keep busy, as 1.5 [default: all]
    #[arg(
        long,
        env = "JOBCTL_JOBS_CPUS",
        allow_negative_numbers = true,
        hide_env_values = true,
        value_name = "N",
        help_heading = "Jobs"
    )]
    cpus: Option<f64>,

    /// How readily the kernel ends a job where memory is short, from -1000 to 1000
    /// [default: 0]
    #[arg(
        long,
        env = "JOBCTL_JOBS_OOM_SCORE_ADJ",
        allow_negative_numbers = true,
        hide_env_values = true,
        value_name = "N",
        help_heading = "Jobs"
    )]
    oom_score_adj: Option<i32>,

    /// How many finished jobs to keep [default: 10000]
    #[arg(
        long,
        env = "JOBCTL_JOBS_KEEP_FINISHED",
        allow_negative_numbers = true,
        hide_env_values = true,
        value_name = "N",
        help_heading = "Jobs"
    )]
    keep_finished: Option<usize>,

    #[command(flatten)]
    bounds: BoundsArgs,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    KillAll(KillAll),
}

/// End the jobs of a worker that is not running
///
/// Returns when nothing of them is left. The next `jobctl worker` reports them as
/// stopped.
#[derive(Debug, clap::Args)]
struct KillAll {
    /// What the worker is called [default: the name of this machine]
    #[arg(long, env = "JOBCTL_WORKER_NAME", hide_env_values = true)]
    name: Option<String>,

    /// Its data folder [default: as for `jobctl worker`]
    #[arg(
        long,
        env = "JOBCTL_WORKER_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,

    /// From TERM to KILL
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = config::duration)]
    grace: Duration,
}

async fn kill_all(args: KillAll) -> anyhow::Result<u8> {
    let data_dir = data_dir(args.data_dir, &name(args.name)?)?;
    let count = worker::kill_all(&data_dir, args.grace).await?;
    render::note(&match count {
        0 => format!("no job was running in {}", data_dir.display()),
        1 => "1 job is ended".to_owned(),
        _ => format!("{count} jobs are ended"),
    });
    Ok(DONE)
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    if let Some(Action::KillAll(args)) = args.action {
        return kill_all(args).await;
    }
    let file: config::Worker = args.config.read()?;
    args.log.start(file.log)?;
    let oom_score_adj = args.oom_score_adj.or(file.jobs.oom_score_adj);
    let oom_score_adj = oom_score_adj_of(oom_score_adj)?;
    protect(oom_score_adj);
    adopt();
    keep_from_jobs()?;
    let name = name(args.name.or(file.worker.name))?;
    let data_dir = data_dir(args.data_dir.or(file.worker.data_dir), &name)?;
    let insecure = args.insecure || file.security.insecure.unwrap_or(false);
    let server = file.grpc_server.server;
    let security = security(insecure, &server, args.join)?;
    let secured = match security {
        Security::Insecure => Secured::Not,
        Security::Joined(_) | Security::ExternalAuthority(_) => Secured::ByTls,
    };
    let default = match security {
        // Where it joined.
        Security::Joined(_) => None,
        Security::ExternalAuthority(_) | Security::Insecure => {
            Some(super::scheduler::GRPC.default.to_owned())
        }
    };
    let scheduler = args.scheduler.or(file.scheduler.addr).or(default);
    if let Some(address) = &scheduler {
        dialled("scheduler.addr", address)?;
    }
    let advertise = args.advertise.or(file.grpc_server.advertise);
    if let Some(address) = &advertise {
        dialled("grpc_server.advertise", address)?;
    }
    let labels = match args.labels {
        Some(words) => labels_of(&words)?,
        None => file.worker.labels.unwrap_or_default(),
    };
    check_labels(&labels)?;
    let slots = args.slots.or(file.worker.slots);
    let script_dir = args.script_dir.or(file.jobs.script_dir);
    if let Some(folder) = &script_dir {
        is_script_folder(folder)?;
    }
    let limits = limits(Limits {
        memory: args
            .memory
            .or(file.jobs.memory)
            .map(|memory| memory.as_u64()),
        processes: args.processes.or(file.jobs.processes),
        open_files: args.open_files.or(file.jobs.open_files),
        cpus: args.cpus.or(file.jobs.cpus),
    })?;
    let grpc = args.grpc_addr.or(server.addr);
    let config = Config {
        security,
        bounds: args.bounds.or(&file.bounds, worker::bounds)?,
        name,
        labels,
        slots: slots.map_or_else(|| Some(worker::processors()), config::Slots::limit),
        scheduler,
        advertise,
        data_dir,
        script_dir,
        shim: PathBuf::from(SHIM),
        grace: args.grace.or(file.jobs.grace).unwrap_or(GRACE),
        output_limit: args
            .output_limit
            .or(file.jobs.output_limit)
            .map_or(OUTPUT_LIMIT, |limit| limit.as_u64()),
        min_free_disk: args
            .min_free_disk
            .or(file.worker.min_free_disk)
            .map_or(MIN_FREE_DISK, |least| least.as_u64()),
        keep_finished: args
            .keep_finished
            .or(file.jobs.keep_finished)
            .unwrap_or(KEEP_FINISHED),
        on_stop: match args.drain_on_stop || file.jobs.drain_on_stop.unwrap_or(false) {
            true => OnStop::EndJobs,
            false => OnStop::LeaveJobs,
        },
        control_groups: match args
            .control_groups
            .or(file.jobs.control_groups)
            .unwrap_or(true)
        {
            true => ControlGroups::WherePossible,
            false => ControlGroups::Never,
        },
        rules: Rules {
            allow_commands: commands(args.allow_commands.or(file.jobs.allow_commands))?,
            user: args.user.or(file.jobs.user),
            allow_users: args
                .allow_users
                .or(file.jobs.allow_users)
                .unwrap_or_default(),
            allow_new_privileges: args
                .allow_new_privileges
                .or(file.jobs.allow_new_privileges)
                .unwrap_or(false),
            limits,
            oom_score_adj,
        },
    };
    // What cannot be meant is said before what is taken.
    let listener = GRPC.listen(grpc.as_deref(), secured).await?;
    if insecure {
        render::note(INSECURE);
    }
    let shutdown = CancellationToken::new();
    let role = worker::run(config, listener, shutdown.clone());
    until_signalled(role, shutdown).await
}

const INSECURE: &str = "--insecure: everybody on this machine can have this worker run anything";

fn security(
    insecure: bool,
    server: &config::Server,
    join: Option<String>,
) -> anyhow::Result<Security> {
    let named = named_certificates(
        GRPC.section(),
        server,
        Role::Worker,
        ClientCertificates::Required,
    )?;
    let join = match join.as_deref() {
        Some("-") => Some(super::login::read_token()?),
        _ => join,
    };
    let join: Option<Invitation> = match join.as_deref() {
        Some(text) => Some(text.parse().map_err(|_| BadSetting {
            message: "`--join` is not TOKEN@HOST:PORT".to_owned(),
            hint: "copy the whole of it, as `jobctl scheduler` printed it".to_owned(),
        })?),
        None => None,
    };
    if let Some(join) = &join {
        dialled("--join", &join.address)?;
    }
    match (named, join, insecure) {
        (None, None, true) => Ok(Security::Insecure),
        (Some(named), None, false) => Ok(Security::ExternalAuthority(named)),
        (None, join, false) if server.use_tls == Some(false) && join.is_none() => {
            Err(anyhow!(BadSetting {
                message: "`grpc_server.use_tls` is false, and plain text was not asked for"
                    .to_owned(),
                hint: "leave it out, or pass `--insecure`, which is for loopback only".to_owned(),
            }))
        }
        (None, join, false) => Ok(Security::Joined(join)),
        _ => Err(anyhow!(BadSetting {
            message: "a token, certificates of one's own and `--insecure` exclude each other"
                .to_owned(),
            hint: "leave out all but one".to_owned(),
        })),
    }
}

/// A program called like one of the two words is listed by its path.
fn commands(asked: Option<Vec<String>>) -> anyhow::Result<Commands> {
    let Some(asked) = asked else {
        return Ok(Commands::All);
    };
    let is_word = |word: &String| ["all", "scripts"].contains(&&**word);
    match asked.as_slice() {
        [word] if word == "all" => Ok(Commands::All),
        [word] if word == "scripts" => Ok(Commands::Scripts),
        programs if programs.iter().any(|word| is_word(word) || word.is_empty()) => {
            Err(BadSetting {
                message: "`jobs.allow_commands` is `all`, `scripts` or a list of programs"
                    .to_owned(),
                hint: "name programs alone, as in `--allow-commands bash,/usr/bin/rsync`; \
                       scripts of the script folder are allowed with them"
                    .to_owned(),
            }
            .into())
        }
        _ => Ok(Commands::Programs(asked)),
    }
}

/// Refuses limits below which no job would run.
fn limits(asked: Limits) -> Result<Limits, BadSetting> {
    let bad = |key, least, hint: &str| BadSetting {
        message: format!("`jobs.{key}` is {least}"),
        hint: hint.to_owned(),
    };
    if asked.memory.is_some_and(|bytes| bytes < LEAST_MEMORY) {
        return Err(bad("memory", "less than 1MiB", "write it as `512MiB`"));
    }
    if asked.processes == Some(0) {
        let hint = "a job is at least one process: `--processes 512`";
        return Err(bad("processes", "0", hint));
    }
    if asked.open_files.is_some_and(|n| n < LEAST_OPEN_FILES) {
        let hint = "programs need some before they begin: `--open-files 1024`";
        return Err(bad("open_files", "less than 16", hint));
    }
    if asked.cpus.is_some_and(|cpus| !CPUS.contains(&cpus)) {
        let hint = "write it in processors and parts of one: `--cpus 1.5`";
        return Err(bad("cpus", "not between 0.01 and 10000", hint));
    }
    Ok(asked)
}

fn oom_score_adj_of(asked: Option<i32>) -> Result<i32, BadSetting> {
    let score = asked.unwrap_or_default();
    match OOM_SCORES.contains(&score) {
        true => Ok(score),
        false => Err(BadSetting {
            message: format!("`jobs.oom_score_adj`: {score} is not between -1000 and 1000"),
            hint: "0 is what every process has; what is higher is ended first".to_owned(),
        }),
    }
}

/// Has the kernel end jobs before this worker and its shims, which have its score,
/// where the system lets it. To be called before [`keep_from_jobs`], which closes the
/// file.
fn protect(of_jobs: i32) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let Some(own) = fs::read_to_string(FILE)
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
    else {
        return;
    };
    let wanted = (of_jobs - BELOW_JOBS).max(*OOM_SCORES.start() + 1);
    if own <= wanted {
        return;
    }
    if let Err(error) = fs::write(FILE, wanted.to_string()) {
        tracing::debug!(own, wanted, %error, "this worker cannot be protected from want of memory");
    }
}

/// Becomes the parent of whatever a killed shim leaves, so that it can be found. Not
/// where there are children already, which the process had before this program was
/// executed in the same process: theirs would be taken for a job's.
pub(super) fn adopt() {
    let is_alone = shim::is_alone().unwrap_or(false);
    if let Err(error) = set_child_subreaper(is_alone.then(getpid)) {
        tracing::debug!(%error, "what a killed shim leaves is not adopted");
    }
}

/// Keeps memory, environment and descriptors of this process from jobs of the same
/// user (PR_SET_DUMPABLE(2const)).
pub(super) fn keep_from_jobs() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

fn name(asked: Option<String>) -> anyhow::Result<String> {
    match asked {
        Some(name) if is_name(&name) => Ok(name),
        Some(name) => Err(BadSetting {
            message: format!("`worker.name`: `{name}` cannot be a worker's name"),
            hint: "use 1 to 64 letters, digits, `.`, `_` and `-`, as in `--name web-1`".to_owned(),
        }
        .into()),
        None => Ok(name_of(&gethostname::gethostname().to_string_lossy())),
    }
}

/// Reads `key=value`, each.
fn labels_of(words: &[String]) -> Result<BTreeMap<String, String>, BadSetting> {
    let labels = words.iter().map(|word| match word.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(bad_label(word)),
    });
    labels.collect()
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), BadSetting> {
    if labels.len() > labels::MAX {
        return Err(BadSetting {
            message: format!("`worker.labels` are more than {}", labels::MAX),
            hint: "leave out those that no job chooses a worker by".to_owned(),
        });
    }
    let bad = labels
        .iter()
        .find(|(key, value)| !labels::is_key(key) || !labels::is_value(value));
    match bad {
        None => Ok(()),
        Some((key, value)) => Err(bad_label(&format!("{key}={value}"))),
    }
}

fn bad_label(label: &str) -> BadSetting {
    BadSetting {
        message: format!("`worker.labels`: `{label}` cannot be a label"),
        hint: "write it as `--label zone=eu-1`: a key of 1 to 63 letters, digits, `.`, `_`, `-` \
               and `/`, a letter or digit first; a value of up to 63, without `/`"
            .to_owned(),
    }
}

fn data_dir(asked: Option<PathBuf>, name: &str) -> anyhow::Result<PathBuf> {
    match asked {
        Some(folder) => Ok(folder),
        None => Ok(state_folder("the worker's data")?.join(format!("jobctl/worker-{name}"))),
    }
}

/// A folder somebody named is not made: it could be misspelt.
fn is_script_folder(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    let bad = |hint| BadSetting {
        message: format!("cannot use `jobs.script_dir` {shown}"),
        hint,
    };
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => {
            Err(anyhow!("it is not a folder").context(bad("pass `--script-dir DIR`".to_owned())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(anyhow!(error).context(bad(format!("make it with `mkdir -p {shown}`"))))
        }
        Err(error) => Err(anyhow!(error).context(bad("pass `--script-dir DIR`".to_owned()))),
    }
}

/// The nearest thing to a host's name that a worker can be called.
fn name_of(host: &str) -> String {
    let sane = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') => c,
        _ => '-',
    };
    let name: String = host
        .chars()
        .map(sane)
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(64)
        .collect();
    match is_name(&name) {
        true => name,
        false => "worker".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_a_word_or_a_list() {
        let read = |words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_owned());
            commands(Some(words.collect()))
        };
        assert_eq!(commands(None).unwrap(), Commands::All);
        assert_eq!(read(&["all"]).unwrap(), Commands::All);
        assert_eq!(read(&["scripts"]).unwrap(), Commands::Scripts);
        assert_eq!(read(&[]).unwrap(), Commands::Programs(Vec::new()));
        assert_eq!(
            read(&["bash", "/bin/ls"]).unwrap(),
            Commands::Programs(vec!["bash".into(), "/bin/ls".into()])
        );
        for bad in [&["all", "bash"][..], &["bash", "scripts"], &[""]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn limits_that_no_job_could_keep_are_refused() {
        let none = Limits::default();
        let with = |change: fn(&mut Limits)| {
            let mut asked = none;
            change(&mut asked);
            limits(asked).map_err(|error| error.message)
        };
        assert_eq!(limits(none).unwrap(), none);
        for (change, key) in [
            (
                (|l| l.memory = Some((1 << 20) - 1)) as fn(&mut Limits),
                "memory",
            ),
            (|l| l.processes = Some(0), "processes"),
            (|l| l.open_files = Some(15), "open_files"),
            (|l| l.cpus = Some(0.0), "cpus"),
            (|l| l.cpus = Some(-1.0), "cpus"),
            (|l| l.cpus = Some(f64::NAN), "cpus"),
            (|l| l.cpus = Some(f64::INFINITY), "cpus"),
        ] {
            let message = with(change).unwrap_err();
            assert!(message.contains(&format!("`jobs.{key}`")), "{message}");
        }
        let least: fn(&mut Limits) = |l| {
            l.memory = Some(1 << 20);
            l.processes = Some(1);
            l.open_files = Some(16);
            l.cpus = Some(0.01);
        };
        assert!(with(least).is_ok());
    }

    #[test]
    fn an_oom_score_is_one_that_the_kernel_takes() {
        assert_eq!(oom_score_adj_of(None).unwrap(), 0);
        assert_eq!(oom_score_adj_of(Some(-1000)).unwrap(), -1000);
        for bad in [-1001, 1001] {
            let message = oom_score_adj_of(Some(bad)).unwrap_err().message;
            assert!(message.contains("`jobs.oom_score_adj`"), "{message}");
        }
    }

    #[test]
    fn labels_are_pairs_of_words() {
        let read = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let labels = labels_of(&words).map_err(|error| error.message)?;
            check_labels(&labels).map_err(|error| error.message)?;
            Ok::<_, String>(labels)
        };
        let labels = read(&["zone=eu-1", "gpu=", "team/name=x", "zone=eu-2"]).unwrap();
        assert_eq!(labels.len(), 3);
        assert_eq!(
            (&*labels["zone"], &*labels["gpu"]),
            ("eu-2", ""),
            "the last wins"
        );
        for bad in ["zone", "=x", "-a=b", "a b=c", "a=b c", "a=b=c", "a=b/c"] {
            let message = read(&[bad]).unwrap_err();
            assert_eq!(
                message,
                format!("`worker.labels`: `{bad}` cannot be a label")
            );
        }
        let many: Vec<String> = (0..=labels::MAX).map(|n| format!("l{n}=x")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(read(&many[1..]).is_ok());
        assert!(read(&many).unwrap_err().contains("more than 64"));
    }

    #[test]
    fn a_host_name_becomes_a_name() {
        for (host, name) in [
            ("web-1.example", "web-1.example"),
            ("-büro pc", "b-ro-pc"),
            ("", "worker"),
            ("__", "worker"),
            ("last", "worker"),
        ] {
            assert_eq!(name_of(host), name, "{host}");
        }
        assert_eq!(name_of(&"x".repeat(100)).len(), 64);
    }
}
