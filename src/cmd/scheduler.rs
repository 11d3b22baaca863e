//! `jobctl scheduler`

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;

use super::{
    BadSetting, context,
    role::{
        Address, BoundsArgs, ConfigArgs, LogArgs, Secured, bound, named_certificates, state_folder,
        until_signalled,
    },
    welcome::{Place, Welcome},
};
use crate::{
    api,
    client::render,
    config,
    identity::{Role, ca, tls::ClientCertificates},
    net::bounds::Bounds,
    roles::scheduler::{self, Config, Listeners, Security},
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
pub(super) const JOB_FOLLOWERS: u32 = 128;
pub(super) const KEEP_AUDIT: Duration = Duration::from_secs(365 * 24 * 3600);

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

    /// A name or address under which it is reached, beside this machine's own
    #[arg(
        long = "name",
        env = "JOBCTL_SECURITY_NAMES",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "HOST",
        help_heading = "Security"
    )]
    name: Vec<String>,

    /// How long to keep lines of the audit log [default: 365d]
    #[arg(
        long,
        env = "JOBCTL_SECURITY_KEEP_AUDIT", hide_env_values = true,
        value_name = "DURATION",
        value_parser = config::interval,
        help_heading = "Security"
    )]
    keep_audit: Option<Duration>,

    /// Speak plain text, on loopback; the HTTP API still asks for a token
    #[arg(
        long,
        env = "JOBCTL_SECURITY_INSECURE",
        hide_env_values = true,
        help_heading = "Security"
    )]
    insecure: bool,

    /// Where the contexts of who starts it are kept [env: JOBCTL_CLIENT_DIR]
    /// [default: ~/.config/jobctl]
    #[arg(long, value_name = "DIR", help_heading = "Security")]
    client_dir: Option<PathBuf>,

    #[command(flatten)]
    bounds: BoundsArgs,

    /// How many bytes the body of a request to the HTTP API may have
    /// [default: 1048576]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_BODY_BYTES",
        hide_env_values = true,
        value_name = "N",
        help_heading = "Bounds",
        hide_short_help = true
    )]
    body_bytes: Option<usize>,

    /// How many followers the output of a job may have at once [default: 128]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_JOB_FOLLOWERS",
        hide_env_values = true,
        value_name = "N",
        help_heading = "Bounds",
        hide_short_help = true
    )]
    job_followers: Option<u32>,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let file: config::Scheduler = args.config.read()?;
    args.log.start(file.log)?;
    let insecure = args.insecure || file.security.insecure.unwrap_or(false);
    let (grpc_server, http_server) = (file.grpc_server, file.http_server);
    let security = security(insecure, &grpc_server, &http_server)?;
    let secured = match security {
        Security::Insecure => Secured::Not,
        Security::OwnAuthority | Security::ExternalAuthority { .. } => Secured::ByTls,
    };
    // What cannot be meant is said before what is taken.
    let bounds = args.bounds.or(&file.bounds, |followers| Bounds {
        followers,
        ..Bounds::default()
    })?;
    let body_bytes = bound(
        "body_bytes",
        args.body_bytes.or(file.bounds.body_bytes),
        1..=16 << 20,
        api::MAX_BODY,
    )?;
    let job_followers = bound(
        "job_followers",
        args.job_followers.or(file.bounds.job_followers),
        1..=1 << 20,
        JOB_FOLLOWERS,
    )?;
    let http = args.http_addr.or(http_server.addr);
    let grpc = args.grpc_addr.or(grpc_server.addr);
    let listeners = Listeners {
        http: HTTP.listen(http.as_deref(), secured).await?,
        grpc: GRPC.listen(grpc.as_deref(), secured).await?,
    };
    let data_dir = match args.data_dir.or(file.scheduler.data_dir) {
        Some(folder) => folder,
        None => state_folder("the scheduler's records")?.join("jobctl/scheduler"),
    };
    let more_names = match args.name.is_empty() {
        true => file.security.names.unwrap_or_default(),
        false => args.name,
    };
    let place = Place::of(&listeners, secured, more_names.first().map(String::as_str))?;
    let config = Config {
        names: names(&listeners, more_names)?,
        security,
        body_bytes,
        job_followers,
        bounds,
        certificate_lifetime: ca::LIFETIME,
        keep_audit: args
            .keep_audit
            .or(file.security.keep_audit)
            .unwrap_or(KEEP_AUDIT),
        data_dir: data_dir.clone(),
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
    if insecure {
        render::note(INSECURE);
    }
    let opened = scheduler::open(config, listeners).await?;
    let welcome = Welcome {
        issuer: opened.issuer(),
        folder: context::folder(args.client_dir, super::variable),
        place,
        data_dir,
    };
    welcome.say().await?;
    let shutdown = CancellationToken::new();
    let role = async {
        tokio::select! {
            ended = opened.run(shutdown.clone()) => ended,
            never = welcome.keep_current() => match never {},
        }
    };
    until_signalled(role, shutdown.clone()).await
}

fn security(
    insecure: bool,
    grpc: &config::Server,
    http: &config::Server,
) -> anyhow::Result<Security> {
    let named_grpc = named_certificates(
        GRPC.section(),
        grpc,
        Role::Scheduler,
        ClientCertificates::Optional,
    )?;
    let named_http = named_certificates(
        HTTP.section(),
        http,
        Role::Scheduler,
        ClientCertificates::Optional,
    )?;
    let is_plain = [grpc, http]
        .iter()
        .any(|server| server.use_tls == Some(false));
    match (named_grpc, named_http) {
        (None, None) if insecure => Ok(Security::Insecure),
        (None, None) if is_plain => Err(anyhow!(BadSetting {
            message: "`use_tls` is false, and plain text was not asked for".to_owned(),
            hint: "leave it out, or pass `--insecure`, which is for loopback only".to_owned(),
        })),
        (None, None) => Ok(Security::OwnAuthority),
        (Some(_), _) | (_, Some(_)) if insecure => Err(anyhow!(BadSetting {
            message: "`--insecure` means plain text, and certificates are named".to_owned(),
            hint: "leave one of them out".to_owned(),
        })),
        (Some(grpc), http) => Ok(Security::ExternalAuthority {
            http: http.unwrap_or_else(|| grpc.clone()),
            grpc,
        }),
        (None, Some(_)) => Err(anyhow!(BadSetting {
            message: "`http_server` has certificates, and `grpc_server` has none".to_owned(),
            hint: "name them in both sections, or in `[grpc_server]` for both".to_owned(),
        })),
    }
}

/// Under which the scheduler may be reached: its machine's names, where it
/// listens, and what was asked for.
pub(super) fn names(listeners: &Listeners, asked: Vec<String>) -> anyhow::Result<Vec<String>> {
    let host = gethostname::gethostname().to_string_lossy().to_lowercase();
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    for listener in [&listeners.http, &listeners.grpc] {
        let address = listener.local_addr()?.ip();
        if !address.is_unspecified() {
            names.push(address.to_string());
        }
    }
    let is_host = |name: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        !name.is_empty() && name.chars().all(plain)
    };
    for name in &asked {
        if !is_host(name) && name.parse::<IpAddr>().is_err() {
            return Err(anyhow!(BadSetting {
                message: format!("`security.names`: `{name}` is no name of a machine"),
                hint: "write it as `jobs.example.com` or `10.0.0.1`".to_owned(),
            }));
        }
    }
    names.extend(Some(host).filter(is_host));
    names.extend(asked);
    names.sort();
    names.dedup();
    Ok(names)
}

const INSECURE: &str = "--insecure: everybody on this machine can read everything, and pass for a \
                        worker or for the scheduler";
