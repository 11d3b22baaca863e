//! What is told of each job, worker and context: in a row of a table, or in full.

use std::{borrow::Cow, fmt::Write as _, path::PathBuf};

use anstyle::{AnsiColor, Style};
use jiff::{SignedDuration, Timestamp};
use unicode_width::UnicodeWidthStr as _;
use uuid::Uuid;

use super::{
    Whose,
    table::{Cell, GAP, Shape, cell, cell_or, cut, styled},
    units::{self, age, length, size, when},
};
use crate::{
    api::{Certificate, Job, JobState, OnLost, Token, Until, Worker, WorkerState},
    client::{
        audit::Entry,
        contexts::Named,
        proof::{Authority, Who},
        visible::visible,
    },
};

pub(super) const JOBS: [&str; 7] = ["ID", "NAME", "STATE", "EXIT", "WORKER", "AGE", "COMMAND"];

pub(super) const JOBS_WIDE: [&str; 11] = [
    "ID", "NAME", "STATE", "EXIT", "WORKER", "PID", "AGE", "TIME", "OUTPUT", "REASON", "COMMAND",
];

pub(super) const WORKERS: [&str; 8] = [
    "NAME", "STATE", "SINCE", "SLOTS", "LOAD", "HEARD", "VERSION", "LABELS",
];

pub(super) const WORKERS_WIDE: [&str; 14] = [
    "ID", "NAME", "STATE", "SINCE", "SLOTS", "LOAD", "CPUS", "MEMORY", "HEARD", "AGE", "VERSION",
    "ADDRESS", "REASON", "LABELS",
];

pub(super) const CONTEXTS: [&str; 4] = ["NAME", "CURRENT", "SERVER", "CREDENTIAL"];
pub(super) const CONTEXTS_WIDE: [&str; 6] =
    ["NAME", "CURRENT", "SERVER", "CA", "IDENTITY", "TOKEN"];

pub(super) const TOKENS: [&str; 6] = ["ID", "KIND", "ROLE", "NAME", "STATE", "EXPIRES"];
pub(super) const TOKENS_WIDE: [&str; 7] = ["ID", "KIND", "ROLE", "NAME", "STATE", "AGE", "EXPIRES"];

pub(super) const CERTIFICATES: [&str; 6] = ["ID", "ROLE", "NAME", "STATE", "EXPIRES", "SERIAL"];
pub(super) const CERTIFICATES_WIDE: [&str; 7] =
    ["ID", "ROLE", "NAME", "STATE", "AGE", "EXPIRES", "SERIAL"];

pub(super) const AUTHORITIES: [&str; 2] = ["FINGERPRINT", "EXPIRES"];

pub(super) fn token_row(token: &Token, wide: bool, now: Timestamp) -> Vec<Cell> {
    let (state, colour) = match (token.revoked_at, token.used_at) {
        (Some(_), _) => ("revoked", Some(AnsiColor::Red)),
        (None, Some(_)) => ("used", None),
        (None, None) if token.expires_at <= now => ("expired", Some(AnsiColor::Yellow)),
        (None, None) => ("good", Some(AnsiColor::Green)),
    };
    let mut row = vec![
        cell(token.id),
        cell(token.kind.as_str()),
        cell(token.role),
        cell(&token.name),
        styled(state, colour),
    ];
    if wide {
        row.push(cell(age(now, token.created_at)));
    }
    row.push(cell(when(now, token.expires_at)));
    row
}

pub(super) fn certificate_row(certificate: &Certificate, wide: bool, now: Timestamp) -> Vec<Cell> {
    let ends = certificate.expires_at;
    let (state, colour, ends) = match certificate.revoked_at {
        // When it would have ended says nothing any more.
        Some(at) => (
            format!("revoked {} ago", age(now, at)),
            AnsiColor::Red,
            None,
        ),
        None if ends.is_some_and(|end| end <= now) => {
            ("expired".to_owned(), AnsiColor::Yellow, ends)
        }
        None => ("good".to_owned(), AnsiColor::Green, ends),
    };
    let mut row = vec![
        cell(short(certificate.id)),
        cell_or(certificate.role),
        cell(&certificate.name),
        styled(state, Some(colour)),
    ];
    if wide {
        row.push(cell_or(certificate.issued_at.map(|at| age(now, at))));
    }
    row.push(cell_or(ends.map(|end| when(now, end))));
    row.push(cell(&certificate.serial));
    row
}

/// The first digits of an id, as of a job's.
pub fn short(id: Uuid) -> String {
    let digits = id.simple().to_string();
    digits[..12].to_owned()
}

pub(super) fn authority_row(authority: &Authority) -> Vec<Cell> {
    let expires = authority.expires_at.map(|at| format!("{at:.0}"));
    vec![cell(&authority.fingerprint), cell_or(expires)]
}

/// The narrowest terminal on which a line of the audit log says from where.
const WITH_ADDRESS: usize = 110;

/// A line of the audit log. Its columns are as wide as most need, because the
/// next one has not come yet. On a terminal it is cut to fit.
pub(super) fn entry_line(entry: &Entry, shape: &Shape) -> String {
    let refused = match entry.result.as_str() {
        "ok" => Style::new(),
        _ if shape.colour => AnsiColor::Red.on_default(),
        _ => Style::new(),
    };
    let shown = |text: &str| match text {
        "" => "-".to_owned(),
        text => visible(text).into_owned(),
    };
    let mut line = format!("{:.0}", entry.at);
    let mut room = shape.width.map(|width| width.saturating_sub(line.width()));
    let mut add = |text: &str, column: usize, style: Style| {
        let text = match &mut room {
            Some(left) if *left <= GAP => return,
            Some(left) => {
                // What comes last has all that is left.
                let widest = (*left - GAP).min(if column > 0 { column } else { *left });
                let text = cut(text, widest);
                *left -= GAP + text.width().max(column).min(widest);
                text
            }
            None => text.into(),
        };
        let pad = column.saturating_sub(text.width());
        line.push_str(&format!("  {style}{text}{style:#}{:pad$}", ""));
    };
    add(&shown(&entry.who), 16, Style::new());
    if shape.width.is_none_or(|width| width >= WITH_ADDRESS) {
        let address = entry.address.as_deref().unwrap_or_default();
        add(&shown(address), 21, Style::new());
    }
    add(&shown(&entry.action), 12, Style::new());
    add(&shown(&entry.result), 0, refused);
    add(&shown(&entry.target), 0, Style::new());
    line.push('\n');
    line
}

pub(super) fn job_row(job: &Job, wide: bool, now: Timestamp) -> Vec<Cell> {
    let mut row = vec![
        cell(job.id.short()),
        cell_or(job.name.as_ref()),
        styled(job.state.as_str(), job_colour(job.state)),
        cell_or(outcome(job)),
        cell_or(job.worker.as_ref()),
    ];
    if wide {
        row.push(cell_or(job.pid));
    }
    row.push(cell(age(now, job.created_at)));
    if wide {
        row.push(cell_or(ran(job, now).map(length)));
        row.push(cell(size(job.output_bytes)));
        row.push(cell_or(job.reason.as_ref()));
    }
    row.push(cell(command_line(job)));
    row
}

/// What the shell would call its status.
pub(super) fn outcome(job: &Job) -> Option<i32> {
    job.signal.map(|signal| 128 + signal).or(job.exit_code)
}

/// How long it ran, by a monotonic clock of its worker; while it runs, and of an
/// older worker, by the wall clocks, which may say that it ended before it
/// started.
pub(super) fn ran(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    if let Some(ran) = job.ran_ms {
        return Some(SignedDuration::from_millis_i128(i128::from(ran)));
    }
    let until = job.ended_at.unwrap_or(now);
    let ran = job.started_at.map(|started| until.duration_since(started));
    ran.map(|ran| ran.max(SignedDuration::ZERO))
}

pub(super) fn job_colour(state: JobState) -> Option<AnsiColor> {
    match state {
        JobState::Pending => None,
        JobState::Running => Some(AnsiColor::Cyan),
        JobState::Succeeded => Some(AnsiColor::Green),
        JobState::Failed | JobState::Lost => Some(AnsiColor::Red),
        JobState::Unknown | JobState::Stopped | JobState::TimedOut => Some(AnsiColor::Yellow),
    }
}

fn worker_colour(state: WorkerState) -> Option<AnsiColor> {
    match state {
        WorkerState::Joining => Some(AnsiColor::Cyan),
        WorkerState::Ready => Some(AnsiColor::Green),
        WorkerState::Draining | WorkerState::Short => Some(AnsiColor::Yellow),
        WorkerState::Unreachable => Some(AnsiColor::Red),
        WorkerState::Left => None,
    }
}

pub(super) fn worker_row(worker: &Worker, wide: bool, now: Timestamp) -> Vec<Cell> {
    let since = |time: Timestamp| age(now, time);
    let slots = match worker.slots {
        Some(slots) => format!("{}/{slots}", worker.running),
        None => format!("{}/-", worker.running),
    };
    let mut row = vec![
        cell(&worker.name),
        styled(worker.state.as_str(), worker_colour(worker.state)),
        cell(since(worker.since)),
        cell(slots),
        cell(format_args!("{:.2}", worker.load)),
    ];
    if wide {
        row.insert(0, cell(worker.id.short()));
        row.push(cell_or(worker.cpus));
        row.push(cell_or(memory(worker, "/")));
    }
    row.push(cell_or(worker.last_heartbeat_at.map(since)));
    if wide {
        row.push(cell(since(worker.registered_at)));
    }
    row.push(cell(&worker.version));
    if wide {
        row.push(cell(&worker.address));
        row.push(cell_or(worker.reason.as_ref()));
    }
    row.push(cell(labels(worker, ",")));
    row
}

/// How much is available of all.
fn memory(worker: &Worker, of: &str) -> Option<String> {
    let all = size(worker.memory_bytes?);
    Some(match worker.memory_available_bytes {
        Some(available) => format!("{}{of}{all}", size(available)),
        None => all,
    })
}

fn labels(worker: &Worker, between: &str) -> String {
    let labels = worker.labels.iter();
    let labels: Vec<_> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.join(between)
}

/// A worker in full, a line for each thing there is to say.
pub(super) fn worker_block(worker: &Worker, now: Timestamp, colour: bool) -> String {
    let style = match worker_colour(worker.state) {
        Some(color) if colour => color.on_default(),
        _ => Style::new(),
    };
    let when = |time: Timestamp| format!("{time:.0} ({} ago)", age(now, time));
    let shown = |text: &str| (!text.is_empty()).then(|| visible(text).into_owned());
    let state = format!("{style}{}{style:#}", worker.state.as_str());
    let drains = match (worker.draining, worker.draining_until) {
        (false, _) => None,
        (true, None) => Some("until its jobs have ended".to_owned()),
        (true, Some(until)) => {
            let when = format!("{until:.0} ({})", units::when(now, until));
            Some(match until > now {
                true => format!("until {when}, then its jobs are stopped"),
                false => format!("since {when} its jobs are stopped"),
            })
        }
    };
    let slots = match worker.slots {
        Some(slots) => format!("{} of {slots} in use", worker.running),
        None => format!("{} in use, without a limit", worker.running),
    };
    let system = [&worker.os, &worker.arch].map(|word| word.clone().unwrap_or_default());
    let mut scripts: Vec<_> = worker.scripts.iter().map(|path| visible(path)).collect();
    if worker.more_scripts {
        scripts.push("… and more".into());
    }
    in_full([
        ("Worker", Some(worker.id.to_string())),
        ("Name", shown(&worker.name)),
        ("State", Some(state)),
        ("Since", Some(when(worker.since))),
        ("Reason", worker.reason.as_deref().and_then(shown)),
        ("Draining", drains),
        ("Labels", shown(&labels(worker, " "))),
        ("Slots", Some(slots)),
        ("Load", Some(format!("{:.2}", worker.load))),
        ("Processors", worker.cpus.map(|cpus| cpus.to_string())),
        ("Memory", memory(worker, " available of ")),
        ("System", shown(system.join(" ").trim())),
        ("Address", shown(&worker.address)),
        ("Version", shown(&worker.version)),
        ("Registered", Some(when(worker.registered_at))),
        ("Heard", worker.last_heartbeat_at.map(when)),
        (
            "Scripts",
            (!scripts.is_empty()).then(|| scripts.join("\n            ")),
        ),
    ])
}

pub(super) fn context_row(named: &Named, wide: bool) -> Vec<Cell> {
    let context = &named.context;
    let mut row = vec![
        cell(&named.name),
        cell(if named.current { "yes" } else { "-" }),
        cell(&context.server),
    ];
    let files = [
        &context.ca_file,
        &context.identity_file,
        &context.token_file,
    ];
    if wide {
        row.extend(files.map(|file| cell_or(file.as_ref().map(|file| file.display()))));
    } else {
        row.push(cell(match files {
            [_, Some(_), _] => "identity",
            [_, None, Some(_)] => "token",
            [_, None, None] => "-",
        }));
    }
    row
}

/// A context in full.
pub(super) fn context_block(Whose { named, who }: &Whose, now: Timestamp) -> String {
    let context = &named.context;
    let you = |who: &Who| match who.name.as_str() {
        "" => who.role.to_string(),
        name => format!("{} {name}", who.role),
    };
    let until = |at: Timestamp| format!("{at:.0} ({})", when(now, at));
    let path = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string());
    in_full(
        [
            ("Context", Some(named.name.clone())),
            (
                "Current",
                Some(if named.current { "yes" } else { "no" }.to_owned()),
            ),
            ("Server", Some(context.server.to_string())),
            ("CA", path(&context.ca_file)),
            ("Identity", path(&context.identity_file)),
            ("Token", path(&context.token_file)),
            ("You", who.as_ref().map(you)),
            ("Your id", who.as_ref().map(|who| who.id.to_string())),
            (
                "Good until",
                who.as_ref().and_then(|who| who.expires_at).map(until),
            ),
        ]
        .map(|(key, value)| (key, value.map(|value| visible(&value).into_owned()))),
    )
}

/// A line for each thing that there is.
pub(super) fn in_full<const N: usize>(lines: [(&str, Option<String>); N]) -> String {
    lines
        .into_iter()
        .fold(String::new(), |mut text, (key, value)| {
            if let Some(value) = value {
                writeln!(text, "{:<12}{value}", format!("{key}:")).unwrap_or_default();
            }
            text
        })
}

/// A job in full, a line for each thing there is to say.
pub(super) fn block(job: &Job, now: Timestamp, colour: bool) -> String {
    let style = match job_colour(job.state) {
        Some(color) if colour => color.on_default(),
        _ => Style::new(),
    };
    let when =
        |time: Option<Timestamp>| time.map(|time| format!("{time:.3} ({} ago)", age(now, time)));
    let word = job.state.as_str();
    let state = match &job.reason {
        Some(reason) => {
            // Some reasons say the state themselves.
            let reason = reason.strip_prefix(&format!("{word}: ")).unwrap_or(reason);
            format!("{style}{word}{style:#} ({})", visible(reason))
        }
        None => format!("{style}{word}{style:#}"),
    };
    let worker = match (&job.worker, job.worker_id) {
        (Some(name), Some(id)) => Some(format!("{} ({id})", visible(name))),
        (None, Some(id)) => Some(id.to_string()),
        (name, None) => name.as_deref().map(|name| visible(name).into_owned()),
    };
    let shown = |text: &String| visible(text).into_owned();
    let env = (!job.env.is_empty()).then(|| job.env.join(" "));
    let labels = (!job.labels.is_empty()).then(|| job.labels.join(", "));
    let group = job.group_id.map(|group| match (job.index, &job.item) {
        (Some(index), Some(item)) => format!("{group}/{index} ({})", visible(item)),
        (Some(index), None) => format!("{group}/{index}"),
        (None, _) => group.to_string(),
    });
    let duration =
        |milliseconds| length(SignedDuration::from_millis_i128(i128::from(milliseconds)));
    let attempt = (job.retries > 0 || job.attempt > 1).then(|| match job.on_lost {
        OnLost::Fail => format!("{} of {} at most", job.attempt, job.retries + 1),
        OnLost::Requeue => job.attempt.to_string(),
    });
    let mut text = in_full([
        ("Job", Some(job.id.to_string())),
        ("Name", job.name.as_ref().map(shown)),
        ("Group", group),
        ("State", Some(state)),
        ("Exit code", job.exit_code.map(|code| code.to_string())),
        ("Signal", job.signal.map(|signal| signal.to_string())),
        ("Worker", worker),
        ("Attempt", attempt),
        ("Process", job.pid.map(|pid| pid.to_string())),
        ("Command", Some(visible(&command_line(job)).into_owned())),
        ("Folder", job.cwd.as_ref().map(shown)),
        ("User", job.user.as_ref().map(shown)),
        ("Labels", labels),
        (
            "Priority",
            (job.priority != 0).then(|| job.priority.to_string()),
        ),
        ("Variables", env.as_ref().map(shown)),
        ("Timeout", job.timeout_ms.map(duration)),
        (
            "Not before",
            job.not_before.map(|time| format!("{time:.0}")),
        ),
        ("Deadline", job.deadline_ms.map(duration)),
        ("After", after(job)),
        ("Created", when(Some(job.created_at))),
        ("Started", when(job.started_at)),
        ("Ended", when(job.ended_at)),
        (
            "Kept until",
            job.kept_until.map(|time| format!("{time:.0}")),
        ),
        ("Ran for", ran(job, now).map(length)),
        ("Left", left(job.swept)),
        ("Output", Some(size(job.output_bytes))),
    ]);
    // One that it has, or had last, is told of above.
    let above = usize::from(job.worker.is_some());
    for attempt in job.attempts.iter().rev().skip(above).rev() {
        let (number, worker) = (attempt.number, visible(&attempt.worker));
        let how = attempt.reason.as_deref().unwrap_or_default();
        let how = visible(how);
        let output = size(attempt.output_bytes);
        let word = attempt.state.as_str();
        writeln!(
            text,
            "{:<12}{word} ({how}) on {worker}, {output} of output",
            format!("Attempt {number}:")
        )
        .unwrap_or_default();
    }
    text
}

/// What was ended when its main process had.
fn left(swept: u32) -> Option<String> {
    match swept {
        0 => None,
        1 => Some("1 process, which was ended".to_owned()),
        count => Some(format!("{count} processes, which were ended")),
    }
}

/// The jobs it waits for, or waited for.
fn after(job: &Job) -> Option<String> {
    let each = job.after.iter().map(|one| {
        let id = one.job_id.short();
        match (one.state, one.until) {
            (Some(state), _) => format!("{id} ({})", state.as_str()),
            (None, Until::Succeeded) => format!("{id} (to succeed)"),
            (None, Until::Ended) => format!("{id} (to end)"),
        }
    });
    let each: Vec<_> = each.collect();
    (!each.is_empty()).then(|| each.join(", "))
}

/// What runs, as one could type it into a shell.
fn command_line(job: &Job) -> String {
    let words = job.command.iter().chain(&job.path).chain(&job.args);
    words.map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// As one word of a shell.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::table::laid_out, *};

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    pub(in super::super) fn job() -> Job {
        Job {
            id: "3f2a8b1c-9d4e-4f00-8000-000000000000".parse().unwrap(),
            group_id: None,
            index: None,
            item: None,
            name: Some("nightly".into()),
            state: JobState::Failed,
            reason: Some("exit status 3".into()),
            worker_id: Some("7c00b51c-0d77-40a9-90aa-470f25a197bb".parse().unwrap()),
            worker: Some("w1".into()),
            command: Some("bash".into()),
            path: None,
            args: vec!["-c".into(), "echo 'a b'\nexit 3".into()],
            env: vec!["A".into(), "B".into()],
            cwd: None,
            user: None,
            labels: Vec::new(),
            priority: 0,
            timeout_ms: Some(90_000),
            not_before: None,
            deadline_ms: None,
            after: Vec::new(),
            retries: 0,
            retry_pause_ms: None,
            on_lost: OnLost::Fail,
            attempt: 1,
            attempts: Vec::new(),
            pid: Some(17),
            exit_code: Some(3),
            signal: None,
            start_error: None,
            output_bytes: 1536,
            created_at: now() - SignedDuration::from_secs(180),
            started_at: Some(now() - SignedDuration::from_secs(180)),
            ended_at: Some(now() - SignedDuration::from_secs(170)),
            ran_ms: None,
            swept: 0,
            kept_until: None,
        }
    }

    fn shape(width: Option<usize>) -> Shape {
        Shape {
            width,
            colour: false,
        }
    }

    #[test]
    fn how_long_a_job_ran_does_not_hang_on_wall_clocks() {
        let mut job = job();
        let started = job.started_at.unwrap();
        // Set back by a day, and forward by two hours, while it ran for six seconds.
        for shift in [-24, 2] {
            job.ended_at = Some(started + SignedDuration::from_hours(shift));
            job.ran_ms = Some(6000);
            assert_eq!(ran(&job, now()), Some(SignedDuration::from_secs(6)));
            let text = block(&job, now(), false);
            let mut lines = text
                .lines()
                .filter_map(|line| line.strip_prefix("Ran for:"));
            assert_eq!(lines.next().map(str::trim), Some("6s"), "{text}");
        }
        job.ended_at = Some(started - SignedDuration::from_hours(24));
        job.ran_ms = None;
        assert_eq!(ran(&job, now()), Some(SignedDuration::ZERO));
    }

    #[test]
    fn processes_that_a_job_left_are_shown() {
        let mut job = job();
        assert!(!block(&job, now(), false).contains("Left"));
        job.swept = 2;
        let text = block(&job, now(), false);
        assert!(text.contains("2 processes, which were ended"), "{text}");
    }

    #[test]
    fn a_piped_table_has_one_line_a_row_and_nothing_cut() {
        let rows = vec![job_row(&job(), false, now())];
        let text = laid_out(&shape(None), &JOBS, true, rows);
        assert_eq!(
            text,
            "ID            NAME     STATE   EXIT  WORKER  AGE  COMMAND\n\
             3f2a8b1c9d4e  nightly  failed  3     w1      3m   \
             bash -c 'echo '\\''a b'\\''\\nexit 3'\n"
        );
    }

    #[test]
    fn a_table_on_a_terminal_fits_it_and_cuts_only_the_command() {
        let mut long = job();
        long.args = vec!["word".into(); 100];
        for width in [80, 100] {
            let rows = vec![job_row(&long, false, now()), job_row(&job(), false, now())];
            let text = laid_out(&shape(Some(width)), &JOBS, true, rows);
            assert_eq!(text.lines().count(), 3, "{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{line}");
            }
            assert!(text.contains("3f2a8b1c9d4e  nightly  failed  3     w1      3m   bash word"));
            assert!(text.contains('…'));
        }
    }

    fn fits(text: &str, width: usize) {
        for line in text.lines() {
            assert!(line.width() <= width, "{} columns: {line}", line.width());
        }
    }

    #[test]
    fn a_wide_table_and_a_long_name_have_one_line_a_row_in_80_columns() {
        let mut long = job();
        long.name = Some("n".repeat(64));
        for wide in [false, true] {
            let header: &[&str] = if wide { &JOBS_WIDE } else { &JOBS };
            for first in [job(), long.clone()] {
                let rows = vec![job_row(&first, wide, now()), job_row(&job(), wide, now())];
                let text = laid_out(&shape(Some(80)), header, true, rows);
                assert_eq!(text.lines().count(), 3, "{text}");
                for (line, begin) in text.lines().zip(["ID  ", "3f2a8b1c9d4e  n"]) {
                    assert!(line.starts_with(begin), "{text}");
                }
                // Eleven columns fit no terminal of 80; they are one line all the same.
                if !wide {
                    fits(&text, 80);
                    assert!(text.contains("bash"), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_table_that_cannot_fit_is_not_cut_at_all() {
        let rows = || vec![job_row(&job(), true, now())];
        let whole = laid_out(&shape(None), &JOBS_WIDE, true, rows());
        assert_eq!(laid_out(&shape(Some(30)), &JOBS_WIDE, true, rows()), whole);
    }

    #[test]
    fn rows_without_headers_and_no_rows_at_all() {
        let rows = vec![job_row(&job(), true, now())];
        let text = laid_out(&shape(None), &JOBS_WIDE, false, rows);
        assert!(
            text.starts_with("3f2a8b1c9d4e  nightly  failed  3  "),
            "{text}"
        );
        assert!(text.contains("  1.5KiB  exit status 3  bash"), "{text}");
        assert_eq!(laid_out(&shape(None), &JOBS, true, Vec::new()), "");
        assert_eq!(job_row(&job(), true, now()).len(), JOBS_WIDE.len());
        assert_eq!(job_row(&job(), false, now()).len(), JOBS.len());
    }

    #[test]
    fn colour_adds_to_the_words_and_replaces_none() {
        let coloured = Shape {
            width: None,
            colour: true,
        };
        let rows = || vec![job_row(&job(), false, now())];
        let text = laid_out(&coloured, &JOBS, false, rows());
        assert!(text.contains('\u{1b}'), "{text:?}");
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(plain, laid_out(&shape(None), &JOBS, false, rows()));
    }

    fn worker() -> Worker {
        Worker {
            id: "7c00b51c-0d77-40a9-90aa-470f25a197bb".parse().unwrap(),
            name: "w1".into(),
            state: WorkerState::Draining,
            since: now() - SignedDuration::from_mins(3),
            reason: None,
            address: "10.0.0.7:30000".into(),
            version: "0.1.0".into(),
            running: 2,
            slots: Some(4),
            labels: std::sync::Arc::new(
                [("gpu", "a100"), ("zone", "eu-1")]
                    .map(|(key, value)| (key.into(), value.into()))
                    .into(),
            ),
            load: 0.5,
            cpus: Some(8),
            memory_bytes: Some(16 << 30),
            memory_available_bytes: Some(5 << 30),
            os: Some("linux".into()),
            arch: Some("x86_64".into()),
            draining: true,
            draining_until: Some(now() + SignedDuration::from_mins(5)),
            scripts: ["a.sh".to_owned(), "b\u{1b}.sh".to_owned()].into(),
            more_scripts: true,
            registered_at: now() - SignedDuration::from_hours(2),
            last_heartbeat_at: Some(now() - SignedDuration::from_secs(1)),
            removed: false,
        }
    }

    #[test]
    fn a_worker_has_a_row_that_fits_and_loses_only_labels() {
        let row = |worker: &Worker, width| {
            let rows = vec![worker_row(worker, false, now())];
            laid_out(&shape(width), &WORKERS, true, rows)
        };
        assert_eq!(
            row(&worker(), Some(80)),
            "NAME  STATE     SINCE  SLOTS  LOAD  HEARD  VERSION  LABELS\n\
             w1    draining  3m     2/4    0.50  1s     0.1.0    gpu=a100,zone=eu-1\n"
        );
        let mut many = worker();
        many.slots = None;
        many.labels = std::sync::Arc::new((0..64).map(|n| (format!("l{n}"), "x".into())).collect());
        let text = row(&many, Some(80));
        fits(&text, 80);
        assert!(text.contains("  2/-    ") && text.contains("l0=x") && text.contains('…'));
        assert!(row(&many, None).contains("l9=x\n"), "a file has them all");
        let wide = worker_row(&worker(), true, now());
        assert_eq!(wide.len(), WORKERS_WIDE.len());
        let text = laid_out(&shape(None), &WORKERS_WIDE, false, vec![wide]);
        assert!(
            text.contains("  8  5.0GiB/16GiB  1s  2h  0.1.0  10.0.0.7:30000  -  gpu="),
            "{text}"
        );
    }

    #[test]
    fn a_worker_in_full_says_what_there_is() {
        let text = worker_block(&worker(), now(), false);
        for line in [
            "Draining:   until 2026-01-02T03:09:05Z (in 5m), then its jobs are stopped",
            "Labels:     gpu=a100 zone=eu-1",
            "Slots:      2 of 4 in use",
            "Memory:     5.0GiB available of 16GiB",
            "System:     linux x86_64",
            "Scripts:    a.sh",
            "            b^[.sh",
            "            … and more",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let over = Worker {
            draining_until: Some(now()),
            ..worker()
        };
        let text = worker_block(&over, now(), false);
        let line = "Draining:   since 2026-01-02T03:04:05Z (0s ago) its jobs are stopped\n";
        assert!(text.contains(line), "{text}");
        let old = Worker {
            slots: None,
            draining: false,
            os: None,
            arch: None,
            memory_bytes: None,
            scripts: [].into(),
            more_scripts: false,
            ..worker()
        };
        let text = worker_block(&old, now(), false);
        assert!(
            text.contains("Slots:      2 in use, without a limit\n"),
            "{text}"
        );
        for absent in ["Draining", "System", "Memory", "Scripts"] {
            assert!(!text.contains(absent), "{text}");
        }
    }

    #[test]
    fn a_token_and_a_certificate_say_whether_they_are_good() {
        let hour = SignedDuration::from_hours(1);
        let good = Token {
            id: "aaaabbbb".parse().unwrap(),
            kind: crate::api::TokenKind::Join,
            role: crate::identity::Role::Worker,
            name: String::new(),
            created_at: now() - hour,
            expires_at: now() + hour,
            used_at: None,
            revoked_at: None,
        };
        let row = |token: &Token| {
            let rows = vec![token_row(token, false, now())];
            laid_out(&shape(None), &TOKENS, false, rows)
        };
        assert_eq!(row(&good), "aaaabbbb  join  worker  -  good  in 1h\n");
        let mut token = good.clone();
        token.expires_at = now() - hour;
        assert_eq!(row(&token), "aaaabbbb  join  worker  -  expired  1h ago\n");
        token.used_at = Some(now());
        assert!(row(&token).contains("  used  "));
        token.revoked_at = Some(now());
        assert!(row(&token).contains("  revoked  "));
        assert_eq!(token_row(&good, true, now()).len(), TOKENS_WIDE.len());

        let mut certificate = Certificate {
            id: Uuid::from_u128(0x3f2a_8b1c_9d4e << 80),
            role: Some(crate::identity::Role::Admin),
            name: "root".into(),
            serial: "5a".repeat(16),
            issued_at: Some(now() - hour),
            expires_at: Some(now() + hour),
            revoked_at: None,
        };
        let row = |certificate: &Certificate| {
            let rows = vec![certificate_row(certificate, false, now())];
            let text = laid_out(&shape(Some(80)), &CERTIFICATES, true, rows);
            fits(&text, 80);
            text
        };
        let shown = row(&certificate);
        assert!(
            shown.contains("3f2a8b1c9d4e  admin  root  good   in 1h    5a5a"),
            "{shown}"
        );
        certificate.expires_at = Some(now());
        assert!(row(&certificate).contains("  expired  "));
        certificate.revoked_at = Some(now() - hour);
        let shown = row(&certificate);
        assert!(
            shown.contains("  root  revoked 1h ago  -        5a5a"),
            "{shown}"
        );
        // Of one that was signed elsewhere.
        let certificate = Certificate {
            role: None,
            name: String::new(),
            serial: String::new(),
            issued_at: None,
            expires_at: None,
            ..certificate
        };
        let shown = row(&certificate);
        assert!(
            shown.contains("3f2a8b1c9d4e  -     -     revoked 1h ago  -        -"),
            "{shown}"
        );
        let wide = certificate_row(&certificate, true, now());
        assert_eq!(wide.len(), CERTIFICATES_WIDE.len());
    }

    #[test]
    fn a_line_of_the_audit_log_does_nothing_to_a_terminal() {
        let mut entry = Entry {
            at: now(),
            who: "operator alice".into(),
            address: None,
            action: "start".into(),
            target: "evil\u{1b}[2J\n".into(),
            result: "forbidden".into(),
        };
        let plain = |width| Shape {
            width,
            colour: false,
        };
        let coloured = Shape {
            width: Some(80),
            colour: true,
        };
        let line = entry_line(&entry, &plain(None));
        assert_eq!(
            line,
            "2026-01-02T03:04:05Z  operator alice    -                      start         \
             forbidden  evil^[[2J\\n\n"
        );
        assert!(entry_line(&entry, &coloured).contains('\u{1b}'));
        entry.action = "revoke certificate".into();
        entry.who = "operator of a very long name".into();
        entry.target = "x".repeat(200);
        assert_eq!(
            entry_line(&entry, &plain(Some(80))),
            format!(
                "2026-01-02T03:04:05Z  operator of a v…  revoke cert…  forbidden  {}…\n",
                "x".repeat(14)
            )
        );
        for width in 20..200 {
            let line = entry_line(&entry, &plain(Some(width)));
            assert!(line.trim_end().width() <= width, "{width}: {line}");
        }
        // A pipe gets all of it.
        let whole = entry_line(&entry, &plain(None));
        assert!(whole.contains("revoke certificate  forbidden") && whole.contains(&entry.target));
        entry.result = "ok".into();
        assert!(!entry_line(&entry, &coloured).contains('\u{1b}'));
    }

    #[test]
    fn a_job_in_full_leaves_out_what_it_does_not_have() {
        let text = block(&job(), now(), false);
        assert!(text.starts_with("Job:        3f2a8b1c-9d4e-4f00-8000-000000000000\n"));
        assert!(
            text.contains("State:      failed (exit status 3)\n"),
            "{text}"
        );
        assert!(text.contains("Timeout:    1m 30s\n"), "{text}");
        assert!(text.contains("Ran for:    10s\n"), "{text}");
        assert!(
            text.contains("Ended:      2026-01-02T03:01:15.000Z (2m 50s ago)\n"),
            "{text}"
        );
        assert!(
            !text.contains("Signal") && !text.contains("Folder"),
            "{text}"
        );
    }
}
