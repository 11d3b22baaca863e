//! `jobctl start`

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::builder::NonEmptyStringValueParser;
use jiff::Timestamp;

use super::{Caller, Codes, DONE, EXIT_CODES, group, logs, usage, wait, whole_milliseconds};
use crate::{
    api::{
        LogsQuery, MAX_GROUP, MAX_KEY, MAX_RETRIES, OnLost, PassedOver, Priority, QueryAnswer,
        QueryRequest, StartRequest, StartResponse,
    },
    client::{
        Error,
        render::{self, Look, Timestamps},
    },
    config,
    ids::JobId,
    labels::Requirement,
};

const EXAMPLES: &str = "\
Examples:
  jobctl start bash -c 'echo hello'        prints the id of the job
  jobctl start --follow -- make -j4 test   shows its output, ends as it ends
  jobctl start --wait --timeout 10m --worker w1 ./check
  jobctl start --script count.sh --with bash 5
  jobctl start --env LANG=C --env TOKEN --cwd /srv ./report
  jobctl start --after build --retries 3 --in 10m ./check";

const USAGE: &str = "\
jobctl start [OPTIONS] [--] COMMAND [ARG]...
       jobctl start [OPTIONS] --script PATH [--with PROGRAM] [--] [ARG]...";

/// Start a program or script on a worker; prints the id of the job
#[derive(Debug, clap::Args)]
#[command(
    before_long_help = EXAMPLES,
    after_long_help = EXIT_CODES,
    override_usage = USAGE,
)]
pub(super) struct Args {
    /// The program and its arguments, passed on without a shell; with
    /// `--script` the arguments alone
    #[arg(
        value_name = "COMMAND",
        required_unless_present = "script",
        trailing_var_arg = true,
        num_args = 1..
    )]
    command: Vec<String>,

    /// Where to run it, by id, prefix or name [default: where there is room]
    #[arg(
        long,
        value_name = "WORKER",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "What and where"
    )]
    worker: Option<String>,

    /// What its worker's labels must be like: `role=web`, `role!=db`, `gpu` or
    /// `!gpu`; may be repeated
    #[arg(short, long, value_name = "LABEL", help_heading = "What and where")]
    label: Vec<Requirement>,

    /// A script of the worker's script folder
    #[arg(
        long,
        value_name = "PATH",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "What and where"
    )]
    script: Option<String>,

    /// What runs the script [default: its own #! line]
    #[arg(
        long,
        value_name = "PROGRAM",
        requires = "script",
        help_heading = "What and where"
    )]
    with: Option<String>,

    /// One job on each worker that has the labels
    #[arg(
        long,
        group = "many",
        conflicts_with = "worker",
        help_heading = "Many at once"
    )]
    all: bool,

    /// So many jobs, told apart by JOBCTL_INDEX, from 0
    #[arg(
        long,
        group = "many",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..=MAX_GROUP as i64),
        help_heading = "Many at once"
    )]
    count: Option<u32>,

    /// One job for each line of a file, which it finds in JOBCTL_ITEM; `-` reads
    /// the lines from stdin
    #[arg(
        long,
        group = "many",
        value_name = "FILE",
        help_heading = "Many at once"
    )]
    each: Option<PathBuf>,

    /// No more than so many of them on workers at a time
    #[arg(
        long,
        requires = "many",
        value_name = "K",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Many at once"
    )]
    at_once: Option<u32>,

    /// Once one of them fails, stop the rest
    #[arg(long, requires = "many", help_heading = "Many at once")]
    stop_on_failure: bool,

    /// A variable of its environment; without `=V` its value here
    #[arg(long, value_name = "K[=V]", help_heading = "How")]
    env: Vec<String>,

    /// The folder to run in, absolute [default: the script folder]
    #[arg(long, value_name = "DIR", help_heading = "How")]
    cwd: Option<PathBuf>,

    /// Whom to run it as, if the worker allows [default: its usual user]
    #[arg(
        long,
        value_name = "USER",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "How"
    )]
    user: Option<String>,

    /// What to call the job; it need not be unique
    #[arg(long, value_parser = super::name, help_heading = "How")]
    name: Option<String>,

    /// End it after this time, as `90s` or `10m`
    #[arg(long, value_name = "DURATION", value_parser = config::interval, help_heading = "How")]
    timeout: Option<Duration>,

    /// Of jobs that wait, the higher one goes first: low, medium, high or a number
    #[arg(
        long,
        value_name = "PRIORITY",
        allow_negative_numbers = true,
        help_heading = "How"
    )]
    priority: Option<Priority>,

    /// Refuse it instead of having it wait for a free slot
    #[arg(
        long,
        conflicts_with_all = ["at", "delay", "after", "after_any", "many"],
        help_heading = "How"
    )]
    no_queue: bool,

    /// Do not start it before this time, as `2026-01-02T03:04:05Z`
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "When")]
    at: Option<Timestamp>,

    /// Do not start it before so long from now, as `10m`
    #[arg(
        long = "in",
        value_name = "DURATION",
        value_parser = config::interval,
        conflicts_with = "at",
        help_heading = "When"
    )]
    delay: Option<Duration>,

    /// Start it when this job has succeeded; may be repeated. If it ends otherwise,
    /// this one ends as `stopped`
    #[arg(
        long,
        value_name = "JOB",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "When"
    )]
    after: Vec<String>,

    /// Start it when this job has ended, however that was; may be repeated
    #[arg(
        long,
        value_name = "JOB",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "When"
    )]
    after_any: Vec<String>,

    /// Give it up, as `timed_out`, if it has no worker after this time, counted
    /// from now or from when it may start
    #[arg(long, value_name = "DURATION", value_parser = config::interval, help_heading = "When")]
    deadline: Option<Duration>,

    /// Try again when it failed or timed out, so often at most: 0 to 1000
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_RETRIES)),
        help_heading = "What follows a failure"
    )]
    retries: u32,

    /// Before the first retry; doubles each time, up to 5m [default: 1s]
    #[arg(
        long,
        value_name = "DURATION",
        requires = "retries",
        value_parser = config::interval,
        help_heading = "What follows a failure"
    )]
    retry_pause: Option<Duration>,

    /// When its worker has lost it: fail, or requeue, and it may run twice
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "fail",
        hide_default_value = true,
        help_heading = "What follows a failure"
    )]
    on_lost: OnLost,

    /// Start it once, however often this is asked for under this key
    #[arg(long, value_name = "KEY", value_parser = idempotency_key, help_heading = "How")]
    idempotency_key: Option<String>,

    /// Stay until it has ended, and end with its exit code
    #[arg(long, conflicts_with = "follow", help_heading = "Staying")]
    wait: bool,

    /// Show its output meanwhile, and end with its exit code
    #[arg(short, long, help_heading = "Staying")]
    follow: bool,

    /// With `--follow`: let control characters act on a terminal
    #[arg(long, requires = "follow", help_heading = "Staying")]
    raw: bool,
}

/// What a command that stays does meanwhile.
#[derive(Clone, Copy)]
enum Stay {
    Wait,
    Follow(Look),
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let stay = match (args.wait, args.follow) {
        (_, true) => Some(Stay::Follow(look(args.raw))),
        (true, false) => Some(Stay::Wait),
        (false, false) => None,
    };
    let key = args
        .idempotency_key
        .clone()
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let request = request(args, |key| env::var(key))?;
    if request.is_group() {
        let outcome = many(&request, &key, caller, stay).await;
        let codes = match stay {
            None => Codes::Jobctl,
            Some(_) => Codes::Job,
        };
        return Ok(outcome.unwrap_or_else(|error| caller.report(&error, codes)));
    }
    let Some(stay) = stay else {
        let start = caller.client.start_with_key(&request, &key);
        let answer = caller.patiently(start).await?;
        let job = answer.job_id;
        if answer.reason.is_some() && render::is_attended() {
            render::note(&waiting(&answer));
        }
        // The job is accepted: whoever cannot be told on stdout is to know it still.
        return render::data(&format!("{job}\n"))
            .with_context(|| format!("job {job} was started, but its id could not be written"))
            .map(|()| DONE);
    };
    let outcome = attached(&request, &key, caller, stay).await;
    Ok(outcome.unwrap_or_else(|error| caller.report(&error, Codes::Job)))
}

async fn many(
    request: &StartRequest,
    key: &str,
    caller: &Caller,
    stay: Option<Stay>,
) -> anyhow::Result<u8> {
    let start = caller.client.start_group(request, key);
    let answer = caller.patiently(start).await?;
    for PassedOver { worker, reason } in &answer.passed_over {
        render::note(&format!("{worker} gets no job: {reason}"));
    }
    let (id, count) = (answer.group_id, answer.count);
    match stay {
        None => render::data(&format!("{id}\n"))
            .with_context(|| format!("group {id} was started, but its id could not be written"))
            .map(|()| DONE),
        Some(stay) => {
            if render::is_attended() {
                render::note(&format!("group {} of {count} jobs started", id.short()));
            }
            match stay {
                Stay::Wait => group::attached(caller, id).await,
                Stay::Follow(look) => group::followed_from_start(caller, id, look).await,
            }
        }
    }
}

/// The lines of a file, or of stdin, that are not empty.
fn lines(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = match file == Path::new("-") {
        true => io::read_to_string(io::stdin()).context("cannot read standard input"),
        false => {
            let text = fs::read_to_string(file);
            text.with_context(|| format!("cannot read {}", file.display()))
        }
    }?;
    let lines: Vec<String> = text
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    match lines.len() {
        0 => Err(anyhow!("{} has no line", file.display())),
        1..=MAX_GROUP => Ok(lines),
        _ => Err(anyhow!(
            "{} has more than {MAX_GROUP} lines, the most jobs of a group",
            file.display()
        )),
    }
}

/// As the scheduler takes it.
fn idempotency_key(text: &str) -> Result<String, String> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    match visible && (1..=MAX_KEY).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err(format!("a key is 1 to {MAX_KEY} visible ASCII characters")),
    }
}

/// As the scheduler takes it.
fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        format!("`{text}` is not a time; write it as `2026-01-02T03:04:05Z`, or use `--in 10m`")
    })
}

async fn attached(
    request: &StartRequest,
    key: &str,
    caller: &Caller,
    stay: Stay,
) -> anyhow::Result<u8> {
    let start = caller.client.start_with_key(request, key);
    let job = match caller.patiently(start).await {
        Ok(answer) => {
            announce(caller, &answer).await;
            answer.job_id
        }
        // It is recorded, and its worker went away before it said whether it began.
        Err(error) => match job_in_doubt(&error) {
            Some(job) => job,
            None => return Err(error.into()),
        },
    };
    match stay {
        Stay::Follow(look) => logs::attached(caller, everything(job), look).await,
        Stay::Wait => wait::attached(caller, job).await,
    }
}

/// The job that is recorded though its worker did not answer.
fn job_in_doubt(error: &Error) -> Option<JobId> {
    match error {
        Error::Refused { error, .. } if error.worker.is_some() => error.job_id,
        _ => None,
    }
}

/// A job's output from its first byte to its end.
pub(super) fn everything(job: JobId) -> LogsQuery {
    LogsQuery {
        job_id: job.to_string(),
        follow: true,
        offset: Some(0),
        ..LogsQuery::default()
    }
}

/// The bytes alone.
pub(super) fn look(raw: bool) -> Look {
    Look {
        timestamps: Timestamps::Hidden,
        controls: logs::controls(raw),
    }
}

/// Only for a person's eyes, so that a script does not pay for the question.
async fn announce(caller: &Caller, started: &StartResponse) {
    if !render::is_attended() {
        return;
    }
    if started.reason.is_some() {
        return render::note(&waiting(started));
    }
    let job = started.job_id;
    let query = QueryRequest {
        job_id: job.to_string(),
        ..QueryRequest::default()
    };
    let answer = caller.client.query(&query).await.ok();
    let worker = answer.and_then(|answer| match answer {
        QueryAnswer::Job(answer) => answer.job.worker,
        QueryAnswer::Group(_) => None,
    });
    match worker {
        Some(worker) => render::note(&format!("job {} started on {worker}", job.short())),
        None => render::note(&format!("job {} started", job.short())),
    }
}

fn waiting(started: &StartResponse) -> String {
    let job = started.job_id.short();
    let reason = started.reason.as_deref().unwrap_or_default();
    match started.state.is_final() {
        true => format!("job {job} was not started: {reason}"),
        false => format!("job {job} waits: {reason}"),
    }
}

fn request(
    args: Args,
    variable: impl Fn(&str) -> Result<String, env::VarError>,
) -> anyhow::Result<StartRequest> {
    let mut words = args.command;
    let command = match args.script {
        Some(_) => args.with,
        None => Some(words.remove(0)),
    };
    if command.as_deref() == Some("") {
        return Err(usage("start", "the command is empty"));
    }
    let mut variables = BTreeMap::new();
    for assignment in args.env {
        let (key, value) = match assignment.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => match variable(&assignment) {
                Ok(value) => (assignment.as_str(), value),
                Err(error) => {
                    let message = format!("`--env {assignment}` has no value here: {error}");
                    return Err(usage("start", message));
                }
            },
        };
        if key.is_empty() {
            return Err(usage("start", format!("`--env {assignment}` has no name")));
        }
        variables.insert(key.to_owned(), value);
    }
    let cwd = args.cwd.map(PathBuf::into_os_string);
    let cwd = cwd.map(|cwd| cwd.into_string().ok().context("`--cwd` is not UTF-8"));
    Ok(StartRequest {
        worker_id: args.worker,
        command,
        path: args.script,
        args: words,
        env: variables,
        cwd: cwd.transpose()?,
        user: args.user,
        name: args.name,
        timeout_ms: args.timeout.map(whole_milliseconds),
        labels: args.label.iter().map(ToString::to_string).collect(),
        priority: args.priority,
        no_queue: args.no_queue,
        all: args.all,
        count: args.count,
        each: args.each.as_deref().map(lines).transpose()?,
        at_once: args.at_once,
        stop_on_failure: args.stop_on_failure,
        not_before: args.at,
        delay_ms: args.delay.map(whole_milliseconds),
        deadline_ms: args.deadline.map(whole_milliseconds),
        after: args.after,
        after_any: args.after_any,
        retries: args.retries,
        retry_pause_ms: args.retry_pause.map(whole_milliseconds),
        on_lost: args.on_lost,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cmd::{Asking, Asks, Cli, Verb};

    fn parsed(line: &[&str]) -> anyhow::Result<StartRequest> {
        let line = ["jobctl", "start"].iter().chain(line);
        let Verb::Asks(Asks::Start(Asking { args, .. })) = Cli::try_parse_from(line)?.verb else {
            panic!("not a start");
        };
        request(args, |key| match key {
            "HERE" => Ok("a=b".into()),
            _ => Err(env::VarError::NotPresent),
        })
    }

    #[test]
    fn options_behind_the_command_are_its_own() {
        for line in [
            &["bash", "-c", "x", "--wait", "--"][..],
            &["--", "bash", "-c", "x", "--wait", "--"],
        ] {
            let request = parsed(line).unwrap();
            assert_eq!(request.command.as_deref(), Some("bash"));
            assert_eq!(request.args, ["-c", "x", "--wait", "--"]);
            assert_eq!(request.path, None);
        }
    }

    #[test]
    fn with_a_script_every_word_is_an_argument() {
        let request = parsed(&["--script", "count.sh", "--with", "bash", "5", "-x"]).unwrap();
        assert_eq!(request.path.as_deref(), Some("count.sh"));
        assert_eq!(request.command.as_deref(), Some("bash"));
        assert_eq!(request.args, ["5", "-x"]);
        let request = parsed(&["--script", "count.sh", "--", "-5"]).unwrap();
        assert_eq!((request.command, request.args), (None, vec!["-5".into()]));
        assert!(parsed(&["--script", "count.sh"]).unwrap().args.is_empty());
    }

    #[test]
    fn variables_have_a_value_given_or_inherited() {
        let request = parsed(&["--env", "A=1=2", "--env", "B=", "--env", "HERE", "x"]).unwrap();
        let env: Vec<_> = request.env.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(env, [("A", "1=2"), ("B", ""), ("HERE", "a=b")]);
    }

    #[test]
    fn the_rest_is_passed_on() {
        let line = [
            "--worker",
            "w1",
            "--cwd",
            "/srv",
            "--user",
            "u",
            "--name",
            "n",
            "--timeout",
            "10m",
            "-l",
            "role=web",
            "--label",
            "!gpu",
            "--priority",
            "-5",
            "--no-queue",
            "--deadline",
            "1h",
            "x",
        ];
        let request = parsed(&line).unwrap();
        assert_eq!(request.worker_id.as_deref(), Some("w1"));
        assert_eq!(request.cwd.as_deref(), Some("/srv"));
        assert_eq!(request.user.as_deref(), Some("u"));
        assert_eq!(request.name.as_deref(), Some("n"));
        assert_eq!(request.timeout_ms, Some(600_000));
        assert_eq!(request.labels, ["role=web", "!gpu"]);
        assert_eq!(request.priority, Some(Priority::Number(-5)));
        assert!(request.no_queue);
        assert_eq!(request.deadline_ms, Some(3_600_000));
    }

    #[test]
    fn a_job_starts_at_a_time_or_after_one() {
        let request = parsed(&["--at", "2026-01-02T04:04:05+01:00", "x"]).unwrap();
        let at = request.not_before.unwrap();
        assert_eq!(at.to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(
            parsed(&["--in", "10m", "x"]).unwrap().delay_ms,
            Some(600_000)
        );
    }

    #[test]
    fn what_cannot_be_meant_is_wrong_usage() {
        for line in [
            &[][..],
            &[""],
            &["--script", "x", "--with", ""],
            &["--with", "bash", "x"],
            &["--env", "MISSING", "x"],
            &["--env", "=1", "x"],
            &["--timeout", "soon", "x"],
            &["--timeout", "0s", "x"],
            &["--timeout", "0.1ms", "x"],
            &["--timeout", "1y", "x"],
            &["--timeout", "40000d", "x"],
            &["--name", "last", "x"],
            &["--name", "a b", "x"],
            &["--script", ""],
            &["--worker", "", "x"],
            &["--wait", "--follow", "x"],
            &["--label", "a b", "x"],
            &["--priority", "urgent", "x"],
            &["--at", "2h ago", "x"],
            &["--at", "2026-01-02T03:04:05", "x"],
            &["--in", "0s", "x"],
            &["--in", "1m", "--at", "2026-01-02T03:04:05Z", "x"],
            &["--in", "1m", "--no-queue", "x"],
            &["--deadline", "soon", "x"],
            &["--after", "", "x"],
            &["--after", "a", "--no-queue", "x"],
            &["--retries", "1001", "x"],
            &["--retry-pause", "1s", "x"],
            &["--on-lost", "panic", "x"],
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.is::<clap::Error>(), "{line:?}: {error}");
        }
    }
}
