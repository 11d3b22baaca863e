//! `jobctl worker`

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;

use super::{
    BadSetting,
    role::{Address, ConfigArgs, LogArgs, dialled, until_signalled},
};
use crate::{
    config,
    ids::is_name,
    roles::worker::{self, Config},
};

pub(super) const GRPC: Address = Address {
    key: "grpc_server.addr",
    flag: "--grpc-addr",
    default: "127.0.0.1:30000",
};

/// Whatever takes the place of the binary on the disk, a job gets a shim of the
/// version that knows how to talk to it.
pub(super) const SHIM: &str = "/proc/self/exe";

pub(super) const GRACE: Duration = Duration::from_secs(10);
pub(super) const KEEP_FINISHED: usize = 10_000;

const EXAMPLES: &str = "\
Examples:
  jobctl worker
  jobctl worker --name w2 --grpc-addr 127.0.0.1:30001 --script-dir ./scripts
  jobctl worker --config /etc/jobctl/worker.toml";

/// Run a worker: starts jobs on this machine, and keeps their output
///
/// Runs until SIGINT or SIGTERM, and then ends its jobs first; a second signal
/// ends it at once.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// What to call it [default: the name of this machine]
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

    /// The scheduler's gRPC server [default: 127.0.0.1:50000]
    #[arg(
        long,
        env = "JOBCTL_SCHEDULER_ADDR",
        hide_env_values = true,
        value_name = "ADDR",
        help_heading = "Addresses"
    )]
    scheduler: Option<String>,

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
    log: LogArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let file: config::Worker = args.config.read()?;
    args.log.start(file.log)?;
    let name = match args.name.or(file.worker.name) {
        Some(name) if is_name(&name) => name,
        Some(name) => {
            return Err(BadSetting {
                message: format!("`worker.name`: `{name}` cannot be a worker's name"),
                hint: "use 1 to 64 letters, digits, `.`, `_` and `-`, as in `--name web-1`"
                    .to_owned(),
            }
            .into());
        }
        None => name_of(&gethostname::gethostname().to_string_lossy()),
    };
    let data_dir = match args.data_dir.or(file.worker.data_dir) {
        Some(folder) => folder,
        None => state_folder()?.join(format!("jobctl/worker-{name}")),
    };
    let scheduler = args.scheduler.or(file.scheduler.addr);
    let scheduler = scheduler.unwrap_or_else(|| super::scheduler::GRPC.default.to_owned());
    dialled("scheduler.addr", &scheduler)?;
    let advertise = args.advertise.or(file.grpc_server.advertise);
    if let Some(address) = &advertise {
        dialled("grpc_server.advertise", address)?;
    }
    let script_dir = args.script_dir.or(file.jobs.script_dir);
    if let Some(folder) = &script_dir {
        is_script_folder(folder)?;
    }
    let grpc = args.grpc_addr.or(file.grpc_server.server.addr);
    let listener = GRPC.listen(grpc.as_deref()).await?;
    let config = Config {
        name,
        scheduler,
        advertise,
        data_dir,
        script_dir,
        shim: PathBuf::from(SHIM),
        grace: args.grace.or(file.jobs.grace).unwrap_or(GRACE),
        keep_finished: args
            .keep_finished
            .or(file.jobs.keep_finished)
            .unwrap_or(KEEP_FINISHED),
    };
    let shutdown = CancellationToken::new();
    let role = worker::run(config, listener, shutdown.clone());
    until_signalled(role, shutdown).await
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

/// Where programs of this user keep what is theirs alone.
fn state_folder() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib"));
    }
    let absolute = |key: &str| {
        let folder = env::var_os(key).map(PathBuf::from);
        folder.filter(|folder| folder.is_absolute())
    };
    let home = || absolute("HOME").map(|home| home.join(Path::new(".local/state")));
    absolute("XDG_STATE_HOME").or_else(home).ok_or_else(|| {
        BadSetting {
            message: "there is no home folder to keep the worker's data in".to_owned(),
            hint: "name a folder with `--data-dir DIR`".to_owned(),
        }
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
