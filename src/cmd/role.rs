//! What the commands that run a role have in common: the log, the listening
//! addresses, and the signals that end them.

use std::{
    env,
    fmt::Display,
    future::Future,
    io,
    net::{Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use tokio::{
    net::lookup_host,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{BadSetting, DONE, Hinted, INTERRUPTED};
use crate::{
    api::exit_code,
    client::render,
    config::{self, LogFormat},
    identity::{
        Role,
        files::{self, Pem},
        tls::{ClientCertificates, Credentials, Tls},
    },
    net::{bounds::Bounds, socket::TcpListener},
};

/// What a role writes about itself, on stderr.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Log")]
pub(super) struct LogArgs {
    /// As `debug`, or `warn,jobctl=trace` [default: info]
    #[arg(
        long,
        env = "JOBCTL_LOG_LEVEL",
        hide_env_values = true,
        value_name = "LEVEL"
    )]
    log_level: Option<String>,

    /// text or json [default: text]
    #[arg(
        long,
        env = "JOBCTL_LOG_FORMAT", hide_env_values = true,
        value_name = "FORMAT",
        hide_possible_values = true,
        value_parser = PossibleValuesParser::new(["text", "json"]).map(log_format)
    )]
    log_format: Option<LogFormat>,
}

fn log_format(name: String) -> LogFormat {
    match name.as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    }
}

impl LogArgs {
    /// Starts the log; what is not set here is taken from the file.
    pub(super) fn start(self, file: config::Log) -> anyhow::Result<()> {
        let level = self.log_level.or(file.level);
        let format = self.log_format.or(file.format).unwrap_or_default();
        start_log(level.as_deref().unwrap_or("info"), format)
    }
}

/// Starts the log of this process.
pub(super) fn start_log(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = filter(level)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(render::stderr_has_colour()).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn filter(text: &str) -> Result<EnvFilter, BadSetting> {
    let bad = |why: String| BadSetting {
        message: format!("`log.level` is `{text}`: {why}"),
        hint: "write it as `info` (off, error, warn, debug, trace) or `warn,jobctl=debug`"
            .to_owned(),
    };
    // A word alone could also be the name of a module, and then nothing at all
    // would be logged.
    let words = text.split(',').map(str::trim);
    for word in words.filter(|word| !word.contains(['=', '['])) {
        // Nothing at all is read as `error`.
        if word.is_empty() || word.parse::<LevelFilter>().is_err() {
            return Err(bad(format!("`{word}` is not a level")));
        }
    }
    EnvFilter::try_new(text).map_err(|error| bad(error.to_string()))
}

/// With more than these, a job would not fit into a message to its shim, a record
/// of its worker's journal or a call of its scheduler, which have 4 MiB.
const MOST_ARGS: usize = 100_000;
const MOST_ARG_BYTES: usize = 512 * 1024;

/// What a role takes from outside before it knows whether it should.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Bounds")]
pub(super) struct BoundsArgs {
    /// How long a TLS handshake may take [default: 5s]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_HANDSHAKE", hide_env_values = true,
        value_name = "DURATION",
        value_parser = config::interval,
        hide_short_help = true
    )]
    handshake: Option<Duration>,

    /// How long the headers of a request may take [default: 10s]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_HEADERS", hide_env_values = true,
        value_name = "DURATION",
        value_parser = config::interval,
        hide_short_help = true
    )]
    headers: Option<Duration>,

    /// How many bytes of headers a request may have [default: 16384]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_HEADER_BYTES",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    header_bytes: Option<u32>,

    /// How many requests an HTTP/2 connection may have at once [default: 64; a
    /// worker's: twice its followers]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_STREAMS",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    streams: Option<u32>,

    /// How many connections an address may have that asked for something
    /// [default: 1024]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_CONNECTIONS",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    connections: Option<usize>,

    /// How many connections an address may have that did not [default: 128]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_SILENT",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    silent: Option<usize>,

    /// How many connections a server may have in all [default: 8192]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_TOTAL_CONNECTIONS",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    total_connections: Option<usize>,

    /// How many arguments a job may have [default: 1000]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_ARGS",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    args: Option<usize>,

    /// How many bytes a job's arguments and environment may have [default: 262144]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_ARG_BYTES",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    arg_bytes: Option<usize>,

    /// How many followers the jobs of a worker may have at once [default: 1024]
    #[arg(
        long,
        env = "JOBCTL_BOUNDS_FOLLOWERS",
        hide_env_values = true,
        value_name = "N",
        hide_short_help = true
    )]
    followers: Option<u32>,
}

impl BoundsArgs {
    /// What is not set here is taken from the file, and then from what is the
    /// default for so many followers.
    pub(super) fn or(
        self,
        file: &config::Bounds,
        default: impl FnOnce(u32) -> Bounds,
    ) -> Result<Bounds, BadSetting> {
        let followers = bound(
            "followers",
            self.followers.or(file.followers),
            1..=1 << 20,
            Bounds::default().followers,
        )?;
        let default = default(followers);
        Ok(Bounds {
            followers,
            handshake: self
                .handshake
                .or(file.handshake)
                .unwrap_or(default.handshake),
            headers: self.headers.or(file.headers).unwrap_or(default.headers),
            header_bytes: bound(
                "header_bytes",
                self.header_bytes.or(file.header_bytes),
                8192..=1 << 20,
                default.header_bytes,
            )?,
            streams: bound(
                "streams",
                self.streams.or(file.streams),
                1..=1 << 20,
                default.streams,
            )?,
            connections: bound(
                "connections",
                self.connections.or(file.connections),
                1..=1 << 20,
                default.connections,
            )?,
            silent: bound(
                "silent",
                self.silent.or(file.silent),
                1..=1 << 20,
                default.silent,
            )?,
            total_connections: bound(
                "total_connections",
                self.total_connections.or(file.total_connections),
                1..=1 << 20,
                default.total_connections,
            )?,
            args: bound("args", self.args.or(file.args), 1..=MOST_ARGS, default.args)?,
            arg_bytes: bound(
                "arg_bytes",
                self.arg_bytes.or(file.arg_bytes),
                1..=MOST_ARG_BYTES,
                default.arg_bytes,
            )?,
        })
    }
}

/// A bound that was asked for, which may be too low to serve anybody or too high
/// to hold; else the default.
pub(super) fn bound<T: PartialOrd + Display>(
    key: &str,
    asked: Option<T>,
    sane: RangeInclusive<T>,
    default: T,
) -> Result<T, BadSetting> {
    match asked {
        None => Ok(default),
        Some(asked) if sane.contains(&asked) => Ok(asked),
        Some(asked) => Err(BadSetting {
            message: format!("`bounds.{key}` is {asked}"),
            hint: format!(
                "from {} to {} make sense; {default} is the default",
                sane.start(),
                sane.end()
            ),
        }),
    }
}

/// The file of settings of a role.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    /// Its settings [default: ./config.toml, if there]
    #[arg(
        long,
        env = "JOBCTL_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    pub(super) fn read<F: config::File>(&self) -> Result<F, config::Error> {
        config::read(self.config.as_deref())
    }
}

/// Refuses what cannot be dialled, whoever answers there.
pub(super) fn dialled(key: &str, address: &str) -> Result<(), BadSetting> {
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !host.is_empty() && host.chars().all(plain)
        }
    };
    if is_host && port.parse().is_ok_and(|port: u16| port > 0) {
        return Ok(());
    }
    Err(BadSetting {
        message: format!("`{key}`: `{address}` is not host:port"),
        hint: "write it as `127.0.0.1:50000`".to_owned(),
    })
}

/// What stands between a server and whoever reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secured {
    ByTls,
    Not,
}

/// Certificates that the settings name, if they name any. What of them is there
/// must be whole.
pub(super) fn named_certificates(
    section: &'static str,
    server: &config::Server,
    role: Role,
    client_certificates: ClientCertificates,
) -> anyhow::Result<Option<Tls>> {
    let named = |key: &str, file: &Option<PathBuf>| {
        file.clone().ok_or_else(|| {
            anyhow!(BadSetting {
                message: format!("`{section}.{key}` is not set"),
                hint: "own certificates need `crt_file`, `key_file` and `ca_file`; without any \
                       of them jobctl makes its own"
                    .to_owned(),
            })
        })
    };
    let files = [&server.crt_file, &server.key_file, &server.ca_file];
    if files.into_iter().all(Option::is_none) {
        return Ok(None);
    }
    if server.use_tls == Some(false) {
        return Err(anyhow!(BadSetting {
            message: format!("`{section}.use_tls` is false, and certificates are named"),
            hint: format!("set `{section}.use_tls = true`, or leave it out"),
        }));
    }
    let crt = named("crt_file", &server.crt_file)?;
    let key = named("key_file", &server.key_file)?;
    let ca = named("ca_file", &server.ca_file)?;
    let missing = |file: &Path, what| files::Error::Missing {
        file: file.to_owned(),
        what,
    };
    let chain = Pem::read(&crt)?.unwrap_or_default().certificates;
    let secret = Pem::read_secret(&key)?.and_then(|pem| pem.key);
    let secret = secret.ok_or_else(|| missing(&key, "key"))?;
    let roots = Pem::read(&ca)?.unwrap_or_default().certificates;
    let used = Credentials::new(chain, secret, roots)
        .and_then(|own| own.expect(role))
        .and_then(|own| Tls::new(own, client_certificates));
    let used = used.with_context(|| format!("cannot use {} and {}", crt.display(), key.display()));
    used.map(Some)
}

/// A setting that names a listening address.
#[derive(Clone, Copy)]
pub(super) struct Address {
    /// In the file.
    pub key: &'static str,
    pub flag: &'static str,
    pub default: &'static str,
}

impl Address {
    /// Of the file.
    pub(super) fn section(self) -> &'static str {
        self.key.split('.').next().unwrap_or_default()
    }

    /// Listens where it was asked for. In plain text only where no other machine
    /// reaches it: anybody there could run anything here.
    pub(super) async fn listen(
        self,
        asked: Option<&str>,
        secured: Secured,
    ) -> anyhow::Result<TcpListener> {
        let Self { key, flag, default } = self;
        let text = asked.unwrap_or(default);
        let hint = || format!("use `{flag} {default}`, or port 0 for a free one");
        let resolved = lookup_host(text).await.map_err(|source| {
            anyhow!(source).context(BadSetting {
                message: format!("`{key}`: `{text}` is not an address"),
                hint: hint(),
            })
        })?;
        let addresses: Vec<SocketAddr> = resolved.collect();
        let open = addresses.iter().find(|address| !address.ip().is_loopback());
        if let Some(open) = open.filter(|_| secured == Secured::Not) {
            let why = anyhow!("plain text (`--insecure`) is for loopback only");
            return Err(why.context(BadSetting {
                message: format!(
                    "`{key}` is {text}, but {} is not a loopback address",
                    open.ip()
                ),
                hint: hint(),
            }));
        }
        let bound = TcpListener::bind(&addresses[..]).await;
        Ok(bound.map_err(|source| Hinted {
            message: format!("cannot listen on {text} (`{key}`)"),
            hint: match source.kind() {
                io::ErrorKind::AddrInUse => {
                    format!("another process listens there; pass `{flag}` (port 0: a free one)")
                }
                _ => format!("pass `{flag}` with an address of this machine"),
            },
            source,
        })?)
    }

    /// As [`Address::listen`] at the default, or where that is taken, at a free
    /// port.
    pub(super) async fn listen_somewhere(self) -> anyhow::Result<TcpListener> {
        let secured = Secured::ByTls;
        let is_taken = |error: &Hinted| error.source.kind() == io::ErrorKind::AddrInUse;
        match self.listen(None, secured).await {
            Err(error) if error.downcast_ref().is_some_and(is_taken) => {
                self.listen(Some("127.0.0.1:0"), secured).await
            }
            listened => listened,
        }
    }
}

/// Where programs of this user keep what is theirs alone; `what` is to be kept.
pub(super) fn state_folder(what: &str) -> anyhow::Result<PathBuf> {
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
            message: format!("there is no home folder to keep {what} in"),
            hint: "name a folder with `--data-dir DIR`".to_owned(),
        }
        .into()
    })
}

/// SIGINT and SIGTERM, from when this is made on.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one; the number is the exit code that stands for it.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPTED,
            _ = self.terminate.recv() => exit_code::TERMINATED,
        }
    }
}

/// Runs a role until it ends. The first signal asks it to, the second does not
/// wait for that.
pub(super) async fn until_signalled<E>(
    role: impl Future<Output = Result<(), E>>,
    shutdown: CancellationToken,
) -> anyhow::Result<u8>
where
    anyhow::Error: From<E>,
{
    let mut signals = Signals::new()?;
    let mut role = pin!(role);
    tokio::select! {
        ended = &mut role => {
            ended?;
            return Ok(DONE);
        }
        _ = signals.next() => {}
    }
    tracing::info!("shutting down; a second signal ends it at once");
    shutdown.cancel();
    tokio::select! {
        ended = &mut role => {
            ended?;
            tracing::info!("shut down");
            Ok(DONE)
        }
        code = signals.next() => {
            tracing::warn!("ended by a second signal before everything was in order");
            Ok(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Address = Address {
        key: "http_server.addr",
        flag: "--http-addr",
        default: "127.0.0.1:0",
    };

    #[test]
    fn a_level_is_a_level() {
        for good in [
            "info",
            "OFF",
            "warn,jobctl=debug",
            "jobctl=trace",
            "warn,jobctl[x]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["bogus", "", "info,bogus", "a=b=c", "jobctl=loud"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_dialled_has_a_host_and_a_port() {
        for good in ["127.0.0.1:50000", "host-1.example:1", "[::1]:50000"] {
            assert!(dialled("k", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "nonsense",
            "host:",
            ":1",
            "host:0",
            "host:99999",
            "a b:1",
            "http://h:1",
            "::1:5",
        ] {
            let error = dialled("k", bad).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[tokio::test]
    async fn plain_text_is_for_loopback_addresses() {
        for good in ["127.0.0.1:0", "127.8.8.8:0", "localhost:0"] {
            ADDRESS.listen(Some(good), Secured::Not).await.unwrap();
        }
        for bad in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            let error = ADDRESS.listen(Some(bad), Secured::Not).await.unwrap_err();
            assert!(error.is::<BadSetting>(), "{bad}");
            let text = error.to_string();
            assert!(
                text.contains("http_server.addr") && text.contains(bad),
                "{text}"
            );
        }
        let error = ADDRESS
            .listen(Some("nonsense"), Secured::Not)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("`nonsense`"));
    }

    #[tokio::test]
    async fn a_taken_address_is_named_or_passed_over() {
        let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = held.local_addr().unwrap().to_string();
        let error = ADDRESS
            .listen(Some(&taken), Secured::Not)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(&taken), "{error}");
        let hint = super::super::hint(&error).unwrap();
        assert!(hint.contains("--http-addr"), "{hint}");
        let elsewhere = Address {
            default: taken.leak(),
            ..ADDRESS
        };
        let free = elsewhere.listen_somewhere().await.unwrap();
        assert_ne!(free.local_addr().unwrap(), held.local_addr().unwrap());
        drop(held);
        let default = elsewhere.listen_somewhere().await.unwrap();
        assert_eq!(default.local_addr().unwrap().to_string(), elsewhere.default);
    }

    #[tokio::test]
    async fn a_role_that_ends_by_itself_ends_the_command() {
        let shutdown = CancellationToken::new();
        let role = async { Ok::<(), io::Error>(()) };
        assert_eq!(until_signalled(role, shutdown).await.unwrap(), DONE);
        let role = async { Err(io::Error::other("broken")) };
        let error = until_signalled(role, CancellationToken::new()).await;
        assert_eq!(error.unwrap_err().to_string(), "broken");
    }
}
