//! `jobctl scheduler`

use std::{path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;

use super::role::{Address, ConfigArgs, LogArgs, state_folder, until_signalled};
use crate::{
    config,
    roles::scheduler::{self, Config, Listeners},
};

pub(super) const HTTP: Address = Address {
    key: "http_server.addr",
    flag: "--http-addr",
    default: "127.0.0.1:3000",
};

pub(super) const GRPC: Address = Address {
    key: "grpc_server.addr",
    flag: "--grpc-addr",
    default: "127.0.0.1:50000",
};

pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
pub(super) const KEEP_FINISHED: u64 = 1_000_000;
pub(super) const KEEP_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

const EXAMPLES: &str = "\
Examples:
  jobctl scheduler
  jobctl scheduler --config /etc/jobctl/scheduler.toml
  JOBCTL_LOG_FORMAT=json jobctl scheduler --http-addr 127.0.0.1:8080";

/// Run the scheduler: the HTTP API, and the list of workers and jobs
///
/// Runs until SIGINT or SIGTERM; a second one ends it at once.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// Where to keep the records of jobs and workers [default:
    /// ~/.local/state/jobctl/scheduler, or for root /var/lib/jobctl/scheduler]
    #[arg(
        long,
        env = "JOBCTL_SCHEDULER_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,

    /// Where to serve HTTP [default: 127.0.0.1:3000]
    #[arg(
        long,
        env = "JOBCTL_HTTP_SERVER_ADDR",
        hide_env_values = true,
        value_name = "ADDR",
        help_heading = "Addresses"
    )]
    http_addr: Option<String>,

    /// Where to serve workers [default: 127.0.0.1:50000]
    #[arg(
        long,
        env = "JOBCTL_GRPC_SERVER_ADDR",
        hide_env_values = true,
        value_name = "ADDR",
        help_heading = "Addresses"
    )]
    grpc_addr: Option<String>,

    /// How often workers are to be heard from [default: 2s]
    #[arg(
        long,
        env = "JOBCTL_HEARTBEAT_INTERVAL", hide_env_values = true,
        value_name = "DURATION",
        value_parser = config::interval,
        help_heading = "Limits"
    )]
    heartbeat_interval: Option<Duration>,

    /// How long a worker may take to answer [default: 10s]
    #[arg(
        long,
        env = "JOBCTL_CALLS_DEADLINE", hide_env_values = true,
        value_name = "DURATION",
        value_parser = config::interval,
        help_heading = "Limits"
    )]
    call_deadline: Option<Duration>,

    /// How long to keep finished jobs and their output [default: 30d]
    #[arg(
        long,
        env = "JOBCTL_JOBS_KEEP_FOR", hide_env_values = true,
        value_name = "DURATION",
        value_parser = config::interval,
        help_heading = "Limits"
    )]
    keep_for: Option<Duration>,

    /// How many finished jobs to keep [default: 1000000]
    #[arg(
        long,
        env = "JOBCTL_JOBS_KEEP_FINISHED",
        allow_negative_numbers = true,
        hide_env_values = true,
        value_name = "N",
        help_heading = "Limits"
    )]
    keep_finished: Option<u64>,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let file: config::Scheduler = args.config.read()?;
    args.log.start(file.log)?;
    let http = args.http_addr.or(file.http_server.addr);
    let grpc = args.grpc_addr.or(file.grpc_server.addr);
    let listeners = Listeners {
        http: HTTP.listen(http.as_deref()).await?,
        grpc: GRPC.listen(grpc.as_deref()).await?,
    };
    let data_dir = match args.data_dir.or(file.scheduler.data_dir) {
        Some(folder) => folder,
        None => state_folder("the scheduler's records")?.join("jobctl/scheduler"),
    };
    let config = Config {
        data_dir,
        keep_for: args.keep_for.or(file.jobs.keep_for).unwrap_or(KEEP_FOR),
        heartbeat_interval: args
            .heartbeat_interval
            .or(file.heartbeat.interval)
            .unwrap_or(HEARTBEAT),
        call_deadline: args
            .call_deadline
            .or(file.calls.deadline)
            .unwrap_or(DEADLINE),
        keep_finished: args
            .keep_finished
            .or(file.jobs.keep_finished)
            .unwrap_or(KEEP_FINISHED),
    };
    let shutdown = CancellationToken::new();
    let role = scheduler::run(config, listeners, shutdown.clone());
    until_signalled(role, shutdown).await
}
