//! Reads the `config.toml` of both roles. What is found is handed on as it is:
//! which of flag, variable, file and default wins is decided in `cmd`.
//!
//! A key nobody reads is an error, because a misspelt one would otherwise pass
//! for a setting that does not work.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bytesize::ByteSize;
use jiff::{Span, SpanRelativeTo};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};

/// The file that is read where no other is named, if it is there.
pub const DEFAULT_FILE: &str = "config.toml";

/// Clocks of jobs count milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);

/// A hundred years, which is as long as the scheduler takes.
const LONGEST: Duration = Duration::from_secs(36_500 * 24 * 3600);

/// The file of one role.
pub trait File: DeserializeOwned + Default {
    /// Every key it may hold, as `section.key`.
    const KEYS: &'static [&'static str];
}

/// The file of `jobctl scheduler`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scheduler {
    /// `[grpc_server]`: for workers.
    pub grpc_server: Server,
    /// `[http_server]`: for everybody else.
    pub http_server: Server,
    /// `[scheduler]`
    pub scheduler: SchedulerItself,
    /// `[heartbeat]`
    pub heartbeat: Heartbeat,
    /// `[calls]`
    pub calls: Calls,
    /// `[jobs]`
    pub jobs: SchedulerJobs,
    /// `[security]`
    pub security: Security,
    /// `[bounds]`
    pub bounds: Bounds,
    /// `[log]`
    pub log: Log,
}

impl File for Scheduler {
    const KEYS: &'static [&'static str] = &[
        "grpc_server.addr",
        "grpc_server.use_tls",
        "grpc_server.crt_file",
        "grpc_server.key_file",
        "grpc_server.ca_file",
        "http_server.addr",
        "http_server.use_tls",
        "http_server.crt_file",
        "http_server.key_file",
        "http_server.ca_file",
        "security.insecure",
        "security.names",
        "security.keep_audit",
        "bounds.handshake",
        "bounds.headers",
        "bounds.header_bytes",
        "bounds.streams",
        "bounds.connections",
        "bounds.silent",
        "bounds.total_connections",
        "bounds.args",
        "bounds.arg_bytes",
        "bounds.followers",
        "bounds.job_followers",
        "bounds.body_bytes",
        "scheduler.data_dir",
        "heartbeat.interval",
        "calls.deadline",
        "jobs.keep_for",
        "jobs.keep_finished",
        "log.level",
        "log.format",
    ];
}

/// The file of `jobctl worker`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// `[grpc_server]`: for the scheduler.
    pub grpc_server: WorkerServer,
    /// `[scheduler]`: whose worker this is.
    pub scheduler: SchedulerAddress,
    /// `[worker]`
    pub worker: WorkerItself,
    /// `[jobs]`
    pub jobs: WorkerJobs,
    /// `[security]`
    pub security: WorkerSecurity,
    /// `[bounds]`
    pub bounds: Bounds,
    /// `[log]`
    pub log: Log,
}

impl File for Worker {
    const KEYS: &'static [&'static str] = &[
        "grpc_server.addr",
        "grpc_server.use_tls",
        "grpc_server.crt_file",
        "grpc_server.key_file",
        "grpc_server.ca_file",
        "grpc_server.advertise",
        "security.insecure",
        "bounds.handshake",
        "bounds.headers",
        "bounds.header_bytes",
        "bounds.streams",
        "bounds.connections",
        "bounds.silent",
        "bounds.total_connections",
        "bounds.args",
        "bounds.arg_bytes",
        "bounds.followers",
        "scheduler.addr",
        "worker.name",
        "worker.data_dir",
        "worker.slots",
        "worker.min_free_disk",
        "worker.labels",
        "jobs.script_dir",
        "jobs.grace",
        "jobs.output_limit",
        "jobs.keep_finished",
        "jobs.drain_on_stop",
        "jobs.control_groups",
        "jobs.allow_commands",
        "jobs.user",
        "jobs.allow_users",
        "jobs.allow_new_privileges",
        "jobs.memory",
        "jobs.processes",
        "jobs.open_files",
        "jobs.cpus",
        "jobs.oom_score_adj",
        "log.level",
        "log.format",
    ];
}

/// A server of a role.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Where it listens, as host:port.
    pub addr: Option<String>,
    /// TLS is always spoken, unless `--insecure` says otherwise.
    pub use_tls: Option<bool>,
    /// The certificate, in PEM; without one jobctl makes its own.
    pub crt_file: Option<PathBuf>,
    /// Its key, in PEM, which nobody else may read.
    pub key_file: Option<PathBuf>,
    /// Who signs the certificates that are accepted, in PEM.
    pub ca_file: Option<PathBuf>,
}

/// `[security]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Plain text, on loopback.
    pub insecure: Option<bool>,
    /// Names under which the scheduler is reached, beside this machine's own.
    pub names: Option<Vec<String>>,
    /// How long lines of the audit log are kept.
    #[serde(deserialize_with = "some_interval")]
    pub keep_audit: Option<Duration>,
}

/// `[bounds]`: what a role takes from outside.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Of the TLS handshake.
    #[serde(deserialize_with = "some_interval")]
    pub handshake: Option<Duration>,
    /// Of the headers of a request.
    #[serde(deserialize_with = "some_interval")]
    pub headers: Option<Duration>,
    /// The most bytes of headers.
    pub header_bytes: Option<u32>,
    /// The most requests at once on one HTTP/2 connection.
    pub streams: Option<u32>,
    /// The most connections of one address that have asked for something.
    pub connections: Option<usize>,
    /// The most connections of one address that have not.
    pub silent: Option<usize>,
    /// The most connections of a server.
    pub total_connections: Option<usize>,
    /// The most arguments of a job.
    pub args: Option<usize>,
    /// The most bytes of a job's arguments and environment.
    pub arg_bytes: Option<usize>,
    /// The most followers of a worker.
    pub followers: Option<u32>,
    /// The most followers of a job: of the scheduler alone.
    pub job_followers: Option<u32>,
    /// The most bytes of the body of a request: of the scheduler alone.
    pub body_bytes: Option<usize>,
}

/// `[security]` of a worker.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSecurity {
    /// Plain text, on loopback.
    pub insecure: Option<bool>,
}

/// The worker's server, which somebody else dials.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WorkerServer {
    /// As of any server.
    #[serde(flatten)]
    pub server: Server,
    /// host:port that the scheduler dials, where it is not `addr`.
    pub advertise: Option<String>,
}

/// `[heartbeat]` of the scheduler.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heartbeat {
    /// Between two signs of life of a worker.
    #[serde(deserialize_with = "some_interval")]
    pub interval: Option<Duration>,
}

/// `[calls]` of the scheduler.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calls {
    /// Of every unary call to a worker.
    #[serde(deserialize_with = "some_interval")]
    pub deadline: Option<Duration>,
}

/// `[jobs]` of the scheduler.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerJobs {
    /// How long finished jobs and their output are kept.
    #[serde(deserialize_with = "some_interval")]
    pub keep_for: Option<Duration>,
    /// How many finished jobs are kept.
    pub keep_finished: Option<u64>,
}

/// `[scheduler]` of the scheduler.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerItself {
    /// Where its records are kept.
    pub data_dir: Option<PathBuf>,
}

/// `[scheduler]` of a worker.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerAddress {
    /// host:port of the scheduler's gRPC server.
    pub addr: Option<String>,
}

/// `[worker]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerItself {
    /// What people call it.
    pub name: Option<String>,
    /// Where identity and output are kept.
    pub data_dir: Option<PathBuf>,
    /// How many jobs it takes at once.
    pub slots: Option<Slots>,
    /// What the disk of the data folder is to have left, as `16MiB`.
    pub min_free_disk: Option<ByteSize>,
    /// What jobs may choose it by.
    pub labels: Option<BTreeMap<String, String>>,
}

/// How many jobs a worker takes at once: a number, or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// So many; 0: none.
    Limited(u32),
    /// As many as come.
    Unlimited,
}

impl Slots {
    /// The number; `None`: as many as come.
    pub fn limit(self) -> Option<u32> {
        match self {
            Self::Limited(slots) => Some(slots),
            Self::Unlimited => None,
        }
    }
}

impl FromStr for Slots {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "unlimited" => Ok(Self::Unlimited),
            number => number
                .parse()
                .map(Self::Limited)
                .map_err(|_| format!("`{text}` is neither a number nor `unlimited`")),
        }
    }
}

impl<'de> Deserialize<'de> for Slots {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = match toml::Value::deserialize(from)? {
            toml::Value::String(word) => word,
            other => other.to_string(),
        };
        text.parse().map_err(D::Error::custom)
    }
}

/// `[jobs]` of a worker.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerJobs {
    /// The script folder.
    pub script_dir: Option<PathBuf>,
    /// From TERM to KILL.
    #[serde(deserialize_with = "some_duration")]
    pub grace: Option<Duration>,
    /// The most output kept of a job, as `1GiB`.
    pub output_limit: Option<ByteSize>,
    /// How many finished jobs the worker itself answers for.
    pub keep_finished: Option<usize>,
    /// A worker that is asked to end ends its jobs first.
    pub drain_on_stop: Option<bool>,
    /// Each job gets a control group where the worker may make one.
    pub control_groups: Option<bool>,
    /// `all`, `scripts`, or the programs that jobs may execute.
    #[serde(deserialize_with = "some_words")]
    pub allow_commands: Option<Vec<String>>,
    /// Whom jobs run as.
    pub user: Option<String>,
    /// Whom else a start may ask for.
    pub allow_users: Option<Vec<String>>,
    /// Programs like sudo may give jobs more rights than the worker has.
    pub allow_new_privileges: Option<bool>,
    /// Memory of a job, as `1GiB`.
    pub memory: Option<ByteSize>,
    /// Processes and threads of a job.
    pub processes: Option<u64>,
    /// Open files of each process of a job.
    pub open_files: Option<u64>,
    /// Processors that a job may keep busy, as `1.5`.
    pub cpus: Option<f64>,
    /// How readily the kernel ends a job where memory is short, from -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

/// `[log]`: what a role writes about itself.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// In the syntax of tracing's `EnvFilter`: `info`, `warn,jobctl=debug`.
    pub level: Option<String>,
    /// How a line looks.
    pub format: Option<LogFormat>,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line, for programs.
    Json,
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, or not readable.
    #[error("cannot read {}", file.display())]
    Unreadable {
        /// Where it was looked for.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A value where a section belongs.
    #[error("`{section}` in {} is a section, not a value", file.display())]
    NotASection {
        /// The file.
        file: PathBuf,
        /// The section.
        section: String,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("{} is not a valid settings file", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// With line and column.
        source: Box<toml::de::Error>,
    },
    /// A key that nobody reads.
    #[error("unknown key `{key}` in {}", file.display())]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// As `section.key`.
        key: String,
        /// The valid key most like it.
        nearest: String,
    },
}

/// Reads the file at `path`, or [`DEFAULT_FILE`] if that is there; else nothing
/// is set.
pub fn read<F: File>(path: Option<&Path>) -> Result<F, Error> {
    let file = path.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok(F::default());
        }
        Err(source) => {
            return Err(Error::Unreadable {
                file: file.to_owned(),
                source,
            });
        }
    };
    parse(&text, file)
}

fn parse<F: File>(text: &str, file: &Path) -> Result<F, Error> {
    let malformed = |source| Error::Malformed {
        file: file.to_owned(),
        source: Box::new(source),
    };
    let table: toml::Table = toml::from_str(text).map_err(malformed)?;
    if let Some((key, nearest)) = unknown_key(&table, F::KEYS) {
        return Err(Error::UnknownKey {
            file: file.to_owned(),
            key,
            nearest: nearest.to_owned(),
        });
    }
    if let Some((section, _)) = table.iter().find(|(_, value)| !value.is_table()) {
        return Err(Error::NotASection {
            file: file.to_owned(),
            section: section.clone(),
        });
    }
    // From the text again, not from the table: only so does an error know its line.
    let settings: F = toml::from_str(text).map_err(malformed)?;
    Ok(settings)
}

/// The first key that is not among `known`, with the one of these most like it.
fn unknown_key(table: &toml::Table, known: &[&'static str]) -> Option<(String, &'static str)> {
    let sections = || known.iter().filter_map(|key| Some(key.split_once('.')?.0));
    for (section, value) in table {
        if !sections().any(|known| known == section) {
            // A value outside every section was meant for one of them.
            let nearest = match value.is_table() {
                true => nearest(section, sections())?,
                false => *known
                    .iter()
                    .min_by_key(|key| distance(section, key.rsplit('.').next().unwrap_or(key)))?,
            };
            return Some((section.clone(), nearest));
        }
        for key in value.as_table().into_iter().flat_map(toml::Table::keys) {
            let key = format!("{section}.{key}");
            if !known.contains(&key.as_str()) {
                let nearest = nearest(&key, known.iter().copied())?;
                return Some((key, nearest));
            }
        }
    }
    None
}

/// The one of `known` that is most like `key`.
pub(crate) fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|known| distance(key, known))
}

/// How many wrong letters make one of the other.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    strsim::damerau_levenshtein(a, b)
}

/// One word, or a list of them.
fn some_words<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    match toml::Value::deserialize(from)? {
        toml::Value::String(word) => Ok(Some(vec![word])),
        list @ toml::Value::Array(_) => list.try_into().map(Some).map_err(D::Error::custom),
        _ => Err(D::Error::custom("expected a word or a list of words")),
    }
}

fn some_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    duration(&text).map(Some).map_err(D::Error::custom)
}

fn some_interval<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    interval(&text).map(Some).map_err(D::Error::custom)
}

/// As [`duration`], and at least a millisecond.
pub fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval < SHORTEST => Err(format!("`{text}` is less than 1ms")),
        interval => Ok(interval),
    }
}

/// Reads a length of time as people write it: `10m`, `1h 30m`, `1.5s`. A day
/// has 24 hours.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span: Span = text
        .trim()
        .parse()
        .map_err(|_| format!("`{text}` is not a duration; write it as `10s`, `5m` or `1h 30m`"))?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(format!("`{text}` has no fixed length; write it in days"));
    }
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("`{text}` is not a length of time"))?;
    match duration > LONGEST {
        true => Err(format!("`{text}` is more than 36500d")),
        false => Ok(duration),
    }
}

/// Any text is settings or an error that can be shown; a duration that is taken is
/// within its bounds. See [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub fn fuzz(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let file = Path::new(DEFAULT_FILE);
    if let Err(error) = parse::<Scheduler>(text, file) {
        assert!(!error.to_string().is_empty());
    }
    if let Err(error) = parse::<Worker>(text, file) {
        assert!(!error.to_string().is_empty());
    }
    if let Ok(duration) = interval(text) {
        assert!((SHORTEST..=LONGEST).contains(&duration));
    }
    if let Ok(duration) = duration(text) {
        assert!(duration <= LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(text: &str) -> Result<Scheduler, Error> {
        parse(text, Path::new("etc/config.toml"))
    }

    #[test]
    fn every_key_that_is_listed_is_read() {
        let value = |key: &str| match key.rsplit('.').next() {
            Some(
                "use_tls"
                | "insecure"
                | "drain_on_stop"
                | "control_groups"
                | "allow_new_privileges",
            ) => "false",
            Some(
                "keep_finished" | "processes" | "open_files" | "cpus" | "oom_score_adj" | "slots",
            ) => "7",
            Some("labels") => "{ zone = \"eu\" }",
            Some("handshake" | "headers") => "\"3s\"",
            _ if key.starts_with("bounds.") => "7",
            Some("output_limit" | "memory" | "min_free_disk") => "\"7MiB\"",
            Some("interval" | "deadline" | "grace" | "keep_for" | "keep_audit") => "\"3s\"",
            Some("format") => "\"json\"",
            Some("allow_users" | "names") => "[\"x\"]",
            _ => "\"x\"",
        };
        let file = |keys: &[&str]| -> String {
            keys.iter()
                .map(|key| format!("{key} = {}\n", value(key)))
                .collect()
        };

        let read: Scheduler = parse(&file(Scheduler::KEYS), Path::new("s")).unwrap();
        assert_eq!(read.http_server.addr.as_deref(), Some("x"));
        assert_eq!(read.http_server.crt_file, Some("x".into()));
        assert_eq!(read.heartbeat.interval, Some(Duration::from_secs(3)));
        assert_eq!(read.calls.deadline, Some(Duration::from_secs(3)));
        assert_eq!(read.jobs.keep_finished, Some(7));
        assert_eq!(read.jobs.keep_for, Some(Duration::from_secs(3)));
        assert_eq!(read.scheduler.data_dir, Some("x".into()));
        assert_eq!(read.security.insecure, Some(false));
        assert_eq!(read.security.names, Some(vec!["x".to_owned()]));
        assert_eq!(read.security.keep_audit, Some(Duration::from_secs(3)));
        assert_eq!(read.log.format, Some(LogFormat::Json));
        let all = Bounds {
            handshake: Some(Duration::from_secs(3)),
            headers: Some(Duration::from_secs(3)),
            header_bytes: Some(7),
            streams: Some(7),
            connections: Some(7),
            silent: Some(7),
            total_connections: Some(7),
            args: Some(7),
            arg_bytes: Some(7),
            followers: Some(7),
            job_followers: Some(7),
            body_bytes: Some(7),
        };
        assert_eq!(read.bounds, all);

        let read: Worker = parse(&file(Worker::KEYS), Path::new("w")).unwrap();
        assert_eq!(read.grpc_server.advertise.as_deref(), Some("x"));
        assert_eq!(read.grpc_server.server.addr.as_deref(), Some("x"));
        assert_eq!(read.scheduler.addr.as_deref(), Some("x"));
        assert_eq!(read.worker.data_dir, Some("x".into()));
        assert_eq!(read.worker.slots, Some(Slots::Limited(7)));
        assert_eq!(read.worker.labels.unwrap()["zone"], "eu");
        assert_eq!(read.jobs.grace, Some(Duration::from_secs(3)));
        assert_eq!(read.jobs.script_dir, Some("x".into()));
        assert_eq!(read.jobs.output_limit, Some(ByteSize::mib(7)));
        assert_eq!(read.jobs.drain_on_stop, Some(false));
        assert_eq!(read.jobs.allow_new_privileges, Some(false));
        assert_eq!(read.jobs.allow_commands, Some(vec!["x".into()]));
        assert_eq!(read.jobs.user.as_deref(), Some("x"));
        assert_eq!(read.jobs.allow_users, Some(vec!["x".into()]));
        assert_eq!(read.jobs.memory, Some(ByteSize::mib(7)));
        assert_eq!(read.jobs.processes, Some(7));
        assert_eq!(read.jobs.open_files, Some(7));
        assert_eq!(read.jobs.oom_score_adj, Some(7));
        let of_worker = Bounds {
            job_followers: None,
            body_bytes: None,
            ..all
        };
        assert_eq!(read.bounds, of_worker);
        assert_eq!(read.jobs.cpus, Some(7.0), "without a point too");
        let list = "[jobs]\nallow_commands = [\"bash\", \"/bin/ls\"]";
        let read: Worker = parse(list, Path::new("w")).unwrap();
        assert_eq!(
            read.jobs.allow_commands,
            Some(vec!["bash".into(), "/bin/ls".into()])
        );
        let slots = |text: &str| {
            let file = format!("[worker]\nslots = {text}");
            parse::<Worker>(&file, Path::new("w")).map(|read| read.worker.slots)
        };
        assert_eq!(slots("\"unlimited\"").unwrap(), Some(Slots::Unlimited));
        assert_eq!(slots("0").unwrap(), Some(Slots::Limited(0)));
        for wrong in ["-1", "1.5", "\"many\"", "[1]", "4294967296"] {
            assert!(slots(wrong).is_err(), "{wrong}");
        }
        let wrong = "[jobs]\nallow_commands = 7";
        assert!(parse::<Worker>(wrong, Path::new("w")).is_err());
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        assert_eq!(scheduler("").unwrap(), Scheduler::default());
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_valid_one() {
        for (text, key, nearest) in [
            (
                "[http_server]\nadr = \"x\"",
                "http_server.adr",
                "http_server.addr",
            ),
            ("[http_sever]\naddr = \"x\"", "http_sever", "http_server"),
            ("adr = \"x\"", "adr", "grpc_server.addr"),
            ("log.levle = \"info\"", "log.levle", "log.level"),
        ] {
            match scheduler(text).unwrap_err() {
                Error::UnknownKey {
                    key: k, nearest: n, ..
                } => {
                    assert_eq!((k.as_str(), n.as_str()), (key, nearest), "{text}");
                }
                error => panic!("{text}: {error:?}"),
            }
        }
        let error = scheduler("[http_server]\nadr = 1").unwrap_err().to_string();
        assert_eq!(error, "unknown key `http_server.adr` in etc/config.toml");
    }

    #[test]
    fn a_wrong_type_and_a_wrong_syntax_name_the_line() {
        for text in [
            "\n[jobs]\nkeep_finished = \"many\"",
            "\n\n[heartbeat",
            "\n[heartbeat]\ninterval = \"soon\"",
        ] {
            match scheduler(text).unwrap_err() {
                Error::Malformed { source, .. } => {
                    assert!(source.to_string().contains("line 3"), "{source}");
                }
                error => panic!("{text}: {error:?}"),
            }
        }
    }

    #[test]
    fn a_value_is_no_section() {
        let error = scheduler("log = 1").unwrap_err().to_string();
        assert_eq!(error, "`log` in etc/config.toml is a section, not a value");
    }

    #[test]
    fn only_a_file_that_was_named_must_be_there() {
        let missing = Path::new("/nonexistent/config.toml");
        assert!(matches!(
            read::<Worker>(Some(missing)).unwrap_err(),
            Error::Unreadable { .. }
        ));
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("10s", 10.0),
            ("10m", 600.0),
            ("1h 30m", 5400.0),
            ("1d", 86400.0),
        ] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        for bad in ["", "10", "soon", "-5s", "5s ago", "36501d", "1000000h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("0s").unwrap(), Duration::ZERO);
        assert!(interval("1ms").is_ok());
        for bad in ["0s", "0.1ms", "999us"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
        for bad in ["1y", "1 month"] {
            assert!(duration(bad).unwrap_err().contains("in days"), "{bad}");
        }
        assert!(duration("36500d").is_ok());
    }
}
