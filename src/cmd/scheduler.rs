//! `jobctl scheduler`

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    BadSetting, context, login,
    role::{
        Address, BoundsArgs, ConfigArgs, LogArgs, Secured, given, state_folder, until_signalled,
    },
};
use crate::{
    api::TokenKind,
    client::{
        Server,
        contexts::{Context, Contexts},
        proof::{self, Asked},
        render,
    },
    config,
    identity::{
        Identity, Role, ca,
        files::{self, Pem},
        tls::Strangers,
    },
    ids::is_name,
    net::accept::Bounds,
    roles::scheduler::{self, Config, Issuer, Listeners, Security},
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
pub(super) const KEEP_AUDIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long the first tokens are good.
const LOGIN: Duration = Duration::from_secs(3600);

/// How long the token of a scheduler without TLS is.
const PLAIN_TOKEN: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often it is seen whether an admin's certificate is to be replaced.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

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
        Security::OwnAuthority | Security::Given { .. } => Secured::ByTls,
    };
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
        bounds: args.bounds.or(&file.bounds, Bounds::default()),
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
    let given_grpc = given(GRPC.section(), grpc, Role::Scheduler, Strangers::Heard)?;
    let given_http = given(HTTP.section(), http, Role::Scheduler, Strangers::Heard)?;
    let is_plain = [grpc, http]
        .iter()
        .any(|server| server.use_tls == Some(false));
    match (given_grpc, given_http) {
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
        (Some(grpc), http) => Ok(Security::Given {
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

/// Where a new cluster is found.
pub(super) struct Place {
    pub(super) server: Server,
    pub(super) grpc: String,
}

impl Place {
    /// `called` is the name that it was given.
    pub(super) fn of(
        listeners: &Listeners,
        secured: Secured,
        called: Option<&str>,
    ) -> anyhow::Result<Self> {
        let scheme = match secured {
            Secured::ByTls => "https",
            Secured::Not => "http",
        };
        let http = dialled_at(listeners.http.local_addr()?, called);
        let server = format!("{scheme}://{http}").parse();
        Ok(Self {
            server: server.map_err(|error: String| anyhow!(error))?,
            grpc: dialled_at(listeners.grpc.local_addr()?, called),
        })
    }
}

/// Who listens everywhere is called by the name it was given, or its machine's.
fn dialled_at(listens: SocketAddr, called: Option<&str>) -> String {
    if !listens.ip().is_unspecified() {
        return listens.to_string();
    }
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    format!("{}:{}", called.unwrap_or(&host), listens.port())
}

/// Sees to it that whoever starts a scheduler can use it, and says how workers
/// join.
pub(super) struct Welcome {
    pub(super) issuer: Issuer,
    /// Where the user's contexts are; None: nobody knows.
    pub(super) folder: Option<PathBuf>,
    pub(super) place: Place,
    /// The scheduler's own.
    pub(super) data_dir: PathBuf,
}

impl Welcome {
    async fn say(&self) -> anyhow::Result<()> {
        if !self.issuer.has_authority() && self.place.server.is_secure() {
            return Ok(());
        }
        match &self.folder {
            Some(folder) => {
                match self.context(folder).await {
                    Ok(Some(name)) => {
                        render::remark(&format!("you are an admin here; the context is {name}"));
                    }
                    Ok(None) => {}
                    // Jobs go on without it.
                    Err(error) => tracing::warn!(
                        folder = %folder.display(),
                        "no context for an admin here: {error:#}"
                    ),
                }
            }
            None => {
                let role = Role::Admin;
                let token = self.issuer.token(TokenKind::Join, role, "", LOGIN).await?;
                let at = self.place.server.authority();
                // What is printed may be kept in the log of a service manager.
                let file = self.data_dir.join("admin.token");
                files::write(&file, format!("{token}@{at}\n").as_bytes())?;
                render::note(&format!(
                    "log in, within an hour, with `jobctl login - < {}`",
                    file.display()
                ));
            }
        }
        if self.issuer.has_authority() && !self.issuer.has_workers() {
            let token = self.worker_token().await?;
            let at = &self.place.grpc;
            render::remark("a worker joins, within an hour, with:");
            render::data(&format!("jobctl worker --join {token}@{at}\n"))?;
        }
        Ok(())
    }

    /// With which a worker joins, but for where to go.
    pub(super) async fn worker_token(&self) -> anyhow::Result<String> {
        let token = self.issuer.token(TokenKind::Join, Role::Worker, "", LOGIN);
        Ok(token.await?)
    }

    /// Adds a context for this cluster, or puts the one that is there in order.
    /// Returns its name if it is new.
    pub(super) async fn context(&self, folder: &Path) -> anyhow::Result<Option<String>> {
        let contexts = Contexts::load(folder).map_err(context::plain)?.all();
        let own = contexts
            .iter()
            .find(|named| self.is_of_cluster(&named.context));
        if let Some(named) = own {
            self.renew(&named.context).await?;
            return Ok(None);
        }
        let taken = |name: &String| contexts.iter().any(|named| named.name == *name);
        let numbered = (2..).map(|number| format!("local-{number}"));
        let mut free = std::iter::once("local".to_owned()).chain(numbered);
        let name = free.find(|name| !taken(name)).unwrap_or_default();
        let user = user();
        let is_current = if self.place.server.is_secure() {
            let asked = Asked::new()?;
            let id = Uuid::new_v4();
            let signed = self.issuer.admin(id, &user, asked.request()).await?;
            login::keep(
                folder,
                &name,
                &self.place.server,
                login::Taken::Refused,
                |identity, authorities| asked.keep(&signed, identity, authorities),
            )?
        } else {
            let role = Role::Admin;
            let kind = TokenKind::Bearer;
            let token = self.issuer.token(kind, role, &user, PLAIN_TOKEN).await?;
            login::keep_token(folder, &name, &self.place.server, &token)?
        };
        let current = contexts.iter().find(|named| named.current);
        if current.is_some_and(|current| current.context.server == self.place.server) {
            // What reached this very server is not of its cluster any more.
            Contexts::change(folder, |contexts| contexts.set_current(&name))
                .map_err(context::plain)?;
        } else if !is_current {
            render::note(&format!("use it with `jobctl context use {name}`"));
        }
        Ok(Some(name))
    }

    /// Whether a context is an admin's of this very cluster.
    fn is_of_cluster(&self, context: &Context) -> bool {
        match (&context.ca_file, &context.identity_file) {
            (Some(authorities), Some(identity)) => {
                let authorities = proof::certificates(authorities).unwrap_or_default();
                let mut known = authorities.iter().filter_map(ca::fingerprint);
                let admin = Pem::read_secret(identity).ok().flatten().and_then(|pem| {
                    let who = Identity::of(pem.certificates.first()?).ok()?;
                    Some(who.role == Role::Admin && !self.issuer.is_revoked(who.id))
                });
                known.any(|one| self.issuer.is_authority(one)) && admin == Some(true)
            }
            (None, None) => {
                let token = context
                    .token_file
                    .as_deref()
                    .and_then(|file| proof::token(file).ok());
                context.server == self.place.server
                    && token.is_some_and(|token| self.issuer.is_good(&token))
            }
            _ => false,
        }
    }

    /// Replaces the admin's certificate once half of its life, or all of it, is
    /// over, or it is of another authority than today's: whoever has the
    /// scheduler's folder could make one anyway.
    async fn renew(&self, context: &Context) -> anyhow::Result<()> {
        let (Some(authorities), Some(identity)) = (&context.ca_file, &context.identity_file) else {
            return Ok(());
        };
        let pem = Pem::read_secret(identity)?.unwrap_or_default();
        let Some(own) = pem.certificates.first() else {
            return Ok(());
        };
        let half = ca::half_life(own);
        let today = self.issuer.authorities();
        let is_believed = proof::is_believed(own, &today);
        let is_known = proof::certificates(authorities)? == today;
        if is_believed && is_known && half.is_some_and(|half| half > SystemTime::now()) {
            return Ok(());
        }
        let who = Identity::of(own)?;
        let asked = Asked::new()?;
        let signed = self
            .issuer
            .admin(who.id, &who.name, asked.request())
            .await?;
        asked.keep(&signed, identity, authorities)?;
        tracing::info!(file = %identity.display(), "admin's certificate replaced");
        Ok(())
    }

    /// Does that as long as the scheduler runs.
    async fn keep_current(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let Some(folder) = &self.folder else {
                continue;
            };
            let own = Contexts::load(folder).map(|contexts| contexts.all());
            let own = own.unwrap_or_default().into_iter();
            for named in own.filter(|named| self.is_of_cluster(&named.context)) {
                if let Err(error) = self.renew(&named.context).await {
                    tracing::warn!(%error, "an admin's certificate is not replaced");
                }
            }
        }
    }
}

/// Who starts the scheduler.
fn user() -> String {
    let set = super::variable("USER").or_else(|| super::variable("LOGNAME"));
    let name = set.map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| is_name(name))
        .unwrap_or_else(|| "admin".to_owned())
}
