//! Everything a client command writes: data on stdout; notes, errors and the
//! spinner on stderr. Names, commands and messages come from other people, so
//! their control characters are made visible; only a job's output goes through
//! as it is.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::Duration,
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use indicatif::ProgressBar;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::{
    api::{Job, JobState, Worker, WorkerState},
    proto::{OutputStream, StreamJobResponse},
};

/// Output is written in pieces of at most about this size, in bytes.
const PIECE: usize = 256 * 1024;

/// What takes no longer than this needs no spinner.
const AT_ONCE: Duration = Duration::from_millis(300);

/// Stdout, or the stderr of a followed job, did not take what was written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Nobody reads on; which is no failure.
    #[error("the output is closed")]
    Closed,
    /// The disk is full, say.
    #[error("cannot write the output")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(error),
        }
    }
}

/// Why data could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// It could not be put into JSON.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
    /// It could not be put into YAML.
    #[error("cannot write YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// The shape of data on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table {
        /// With every column.
        wide: bool,
        /// With a line of column names.
        headers: bool,
    },
    /// One indented document.
    Json,
    /// One object a line.
    Jsonl,
    /// One document.
    Yaml,
    /// Names, or ids where there is no name, one a line.
    Name,
    /// Whole ids, one a line.
    Id,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Many {
    /// Whatever there is: a table, or an array.
    List,
    /// Several by name: each in full, or an array.
    Several,
    /// One by name: in full, or the thing itself instead of an array.
    Named,
}

/// Shows jobs as they were asked for.
pub fn jobs(jobs: &[Job], format: Format, many: Many) -> Result<(), Error> {
    let id = |job: &Job| job.id.to_string();
    let name = |job: &Job| job.name.clone().unwrap_or_else(|| job.id.to_string());
    match (format, many) {
        (Format::Table { wide, headers }, Many::List) => {
            let now = Timestamp::now();
            let header: &[&str] = if wide { &JOBS_WIDE } else { &JOBS };
            let rows = jobs.iter().map(|job| job_row(job, wide, now)).collect();
            table(&Shape::of_stdout(), header, headers, rows)
        }
        (Format::Table { .. }, Many::Several | Many::Named) => {
            let now = Timestamp::now();
            let style = Shape::of_stdout().colour;
            let blocks: Vec<_> = jobs.iter().map(|job| block(job, now, style)).collect();
            Ok(data(&blocks.join("\n"))?)
        }
        _ => documents(jobs, format, many, id, name),
    }
}

/// Shows workers as a list.
pub fn workers(workers: &[Worker], format: Format) -> Result<(), Error> {
    match format {
        Format::Table { wide, headers } => {
            let now = Timestamp::now();
            let header: &[&str] = if wide { &WORKERS_WIDE } else { &WORKERS };
            let row = |worker| worker_row(worker, wide, now);
            let rows = workers.iter().map(row).collect();
            table(&Shape::of_stdout(), header, headers, rows)
        }
        _ => documents(
            workers,
            format,
            Many::List,
            |worker| worker.id.to_string(),
            |worker| worker.name.clone(),
        ),
    }
}

fn documents<T: Serialize>(
    things: &[T],
    format: Format,
    many: Many,
    id: impl Fn(&T) -> String,
    name: impl Fn(&T) -> String,
) -> Result<(), Error> {
    let one = match (things, many) {
        ([one], Many::Named) => Some(one),
        _ => None,
    };
    let text = match format {
        Format::Json | Format::Yaml => match one {
            Some(one) => document(one, format)?,
            None => document(&things, format)?,
        },
        Format::Jsonl => {
            let mut text = String::new();
            for thing in things {
                text.push_str(&document(thing, format)?);
            }
            text
        }
        Format::Name => lines(
            things
                .iter()
                .map(|thing| visible(&name(thing)).into_owned()),
        ),
        Format::Id | Format::Table { .. } => lines(things.iter().map(id)),
    };
    Ok(data(&text)?)
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

/// Shows one value as JSON or YAML.
pub fn value(value: &impl Serialize, format: Format) -> Result<(), Error> {
    Ok(data(&document(value, format)?)?)
}

fn document(value: &impl Serialize, format: Format) -> Result<String, Error> {
    Ok(match format {
        Format::Yaml => {
            let text = serde_saphyr::to_string(value)?;
            format!("{}\n", text.trim_end_matches('\n'))
        }
        Format::Jsonl => escaped(serde_json::to_string(value)?) + "\n",
        Format::Json | Format::Table { .. } | Format::Name | Format::Id => {
            escaped(serde_json::to_string_pretty(value)?) + "\n"
        }
    })
}

/// serde_json escapes the controls below U+0020, but a terminal also acts upon
/// the ones from U+007F on.
fn escaped(json: String) -> String {
    if !json.chars().any(|c| c != '\n' && is_unsafe(c)) {
        return json;
    }
    json.chars().fold(String::new(), |mut text, c| {
        if c != '\n' && is_unsafe(c) {
            write!(text, "\\u{:04x}", u32::from(c)).unwrap_or_default();
        } else {
            text.push(c);
        }
        text
    })
}

/// Whether a terminal would act upon `c`, or show the text in another order.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with every character escaped that a terminal would act upon.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::new();
    for c in text.chars() {
        if is_unsafe(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Whether stderr is looked at by a person.
pub fn is_attended() -> bool {
    io::stderr().is_terminal()
}

/// Lets `--color` win over what the environment and the terminal suggest.
pub fn set_colour(choice: Option<bool>) {
    match choice {
        None => ColorChoice::Auto,
        Some(true) => ColorChoice::Always,
        Some(false) => ColorChoice::Never,
    }
    .write_global();
}

/// Whether stderr takes colour.
pub fn stderr_has_colour() -> bool {
    AutoStream::choice(&io::stderr()) != ColorChoice::Never
}

/// Writes to stdout, whole.
pub fn data(text: &str) -> Result<(), OutputError> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Writes one line to stderr. A closed stderr is no reason to stop.
pub fn note(text: &str) {
    writeln!(anstream::stderr().lock(), "{}", visible(text)).unwrap_or_default();
}

/// As [`note`], but only where a person looks on.
pub fn remark(text: &str) {
    if is_attended() {
        note(text);
    }
}

/// How wide errors are at most, in columns.
const WIDTH: usize = 80;

/// `text` with its long lines broken between words; colour takes no room.
fn wrapped(text: &str) -> String {
    let width = |text: &str| anstream::adapter::strip_str(text).to_string().width();
    let mut all = String::new();
    for line in text.split_inclusive('\n') {
        if width(line.trim_end()) <= WIDTH {
            all.push_str(line);
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let mut used = 0;
        for word in line.split_inclusive(' ') {
            if used > indent && used + width(word.trim_end()) > WIDTH {
                all.truncate(all.trim_end_matches(' ').len());
                write!(all, "\n{:indent$}  ", "").unwrap_or_default();
                used = indent + 2;
            }
            all.push_str(word);
            used += width(word.trim_end_matches('\n'));
        }
    }
    all
}

/// Writes what is wrong with a command line, styled already.
pub fn usage(text: &str) {
    let mut stderr = anstream::stderr().lock();
    stderr
        .write_all(wrapped(text).as_bytes())
        .unwrap_or_default();
}

/// Writes `error: what`, a line for each cause, and what to do about it.
pub fn failure(what: &str, causes: &[String], hint: Option<&str>) {
    let red = AnsiColor::Red.on_default().bold();
    let cyan = AnsiColor::Cyan.on_default().bold();
    let mut text = format!("{red}error:{red:#} {}\n", visible(what));
    for cause in causes {
        // A cause may be a picture of several lines, of a place in a file.
        let mut lines = cause.trim_end().lines();
        let first = lines.next().unwrap_or_default();
        writeln!(text, "  cause: {}", visible(first)).unwrap_or_default();
        for line in lines {
            writeln!(text, "         {}", visible(line)).unwrap_or_default();
        }
    }
    if let Some(hint) = hint {
        writeln!(text, "{cyan}hint:{cyan:#} {}", visible(hint)).unwrap_or_default();
    }
    // What reads a pipe wants each of them in one line.
    let text = if is_attended() { wrapped(&text) } else { text };
    anstream::stderr()
        .lock()
        .write_all(text.as_bytes())
        .unwrap_or_default();
}

/// Turns on stderr while something is waited for, if stderr is a terminal;
/// vanishes when dropped.
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Starts to turn.
    pub fn new(text: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(visible(text).into_owned());
        // Else each of the lines that -v writes would be torn by it.
        if tracing::enabled!(tracing::Level::DEBUG) {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// As [`note`], above the spinner.
    pub fn note(&self, text: &str) {
        self.0.suspend(|| note(text));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        // A last turn may otherwise come behind the end.
        self.0.disable_steady_tick();
        self.0.finish_and_clear();
    }
}

/// Waits for `answer`, under a spinner if it is not there at once.
pub async fn patiently<T>(text: &str, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    if let Ok(answer) = tokio::time::timeout(AT_ONCE, &mut answer).await {
        return answer;
    }
    let _spinner = Spinner::new(text);
    answer.await
}

/// How stdout is to be written to.
struct Shape {
    /// In columns, on a terminal.
    width: Option<usize>,
    colour: bool,
}

impl Shape {
    fn of_stdout() -> Self {
        Self {
            width: width_of_stdout(),
            colour: AutoStream::choice(&io::stdout()) != ColorChoice::Never,
        }
    }
}

const JOBS: [&str; 7] = ["ID", "NAME", "STATE", "EXIT", "WORKER", "AGE", "COMMAND"];
const JOBS_WIDE: [&str; 11] = [
    "ID", "NAME", "STATE", "EXIT", "WORKER", "PID", "AGE", "TIME", "OUTPUT", "REASON", "COMMAND",
];
const WORKERS: [&str; 7] = ["ID", "NAME", "STATE", "SINCE", "JOBS", "LOAD", "ADDRESS"];
const WORKERS_WIDE: [&str; 10] = [
    "ID", "NAME", "STATE", "SINCE", "JOBS", "LOAD", "HEARD", "AGE", "VERSION", "ADDRESS",
];

/// Columns that are cut where the terminal is too narrow, along with the last.
const SHRINKING: [&str; 3] = ["REASON", "NAME", "WORKER"];

/// What shrinks keeps so much at first, in columns of the terminal.
const SHRUNK: usize = 20;

/// And so much in the end.
const LEAST: usize = 8;

/// Between two columns.
const GAP: usize = 2;

/// A cell of a table; its text is safe to show.
struct Cell {
    text: String,
    style: Style,
}

/// The columns of the terminal on stdout, if it is one.
fn width_of_stdout() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

fn table(shape: &Shape, header: &[&str], headers: bool, rows: Vec<Vec<Cell>>) -> Result<(), Error> {
    Ok(data(&laid_out(shape, header, headers, rows))?)
}

/// A table without lines, which both people and `awk` can read. On a terminal
/// the last column is cut to fit, then reasons and names; where that is not
/// enough, nothing is.
fn laid_out(shape: &Shape, header: &[&str], headers: bool, mut rows: Vec<Vec<Cell>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    if headers {
        rows.insert(0, header.iter().map(cell).collect());
    }
    let natural = (0..header.len()).map(|column| {
        let widths = rows
            .iter()
            .filter_map(|row| Some(row.get(column)?.text.width()));
        widths.max().unwrap_or_default()
    });
    let natural: Vec<usize> = natural.collect();
    let fitted = shape
        .width
        .and_then(|width| fitted(header, &natural, width));
    let widths = fitted.unwrap_or(natural);
    lines(rows.iter().map(|row| {
        let mut line = String::new();
        let mut gap = 0;
        for (cell, width) in row.iter().zip(&widths) {
            let text = cut(&cell.text, *width);
            let style = match shape.colour {
                true => cell.style,
                false => Style::new(),
            };
            write!(line, "{:gap$}{style}{text}{style:#}", "").unwrap_or_default();
            gap = width + GAP - text.width();
        }
        line
    }))
}

/// The widths of the columns where the table is to fit into `width`; `None`
/// where it cannot.
fn fitted(header: &[&str], natural: &[usize], width: usize) -> Option<Vec<usize>> {
    let mut widths = natural.to_vec();
    let last = widths.len().checked_sub(1)?;
    let room = width.checked_sub(GAP * last)?;
    let named = |name| header.iter().position(|column| *column == name);
    let shrinking: Vec<usize> = SHRINKING.into_iter().filter_map(named).collect();
    let least = shrinking.iter().map(|column| (*column, LEAST));
    let first = shrinking.iter().map(|column| (*column, SHRUNK));
    for (column, least) in [(last, SHRUNK)]
        .into_iter()
        .chain(first)
        .chain([(last, LEAST)])
        .chain(least)
    {
        let surplus = widths.iter().sum::<usize>().saturating_sub(room);
        widths[column] -= surplus.min(widths[column].saturating_sub(least));
    }
    (widths.iter().sum::<usize>() <= room).then_some(widths)
}

/// `text`, with its end replaced by `…` where it is wider than `width`.
fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    let mut room = width.saturating_sub(1);
    let kept = text.chars().take_while(|c| {
        let width = c.width().unwrap_or_default();
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    });
    Cow::Owned(kept.chain(['…']).collect())
}

fn cell(text: impl fmt::Display) -> Cell {
    styled(text, None)
}

fn styled(text: impl fmt::Display, colour: Option<AnsiColor>) -> Cell {
    let text = text.to_string();
    Cell {
        text: match text.is_empty() {
            true => "-".to_owned(),
            false => visible(&text).into_owned(),
        },
        style: colour.map_or(Style::new(), AnsiColor::on_default),
    }
}

fn cell_or(text: Option<impl fmt::Display>) -> Cell {
    text.map_or_else(|| cell("-"), cell)
}

fn job_row(job: &Job, wide: bool, now: Timestamp) -> Vec<Cell> {
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
fn outcome(job: &Job) -> Option<i32> {
    job.signal.map(|signal| 128 + signal).or(job.exit_code)
}

fn ran(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    let until = job.ended_at.unwrap_or(now);
    job.started_at.map(|started| until.duration_since(started))
}

fn job_colour(state: JobState) -> Option<AnsiColor> {
    match state {
        JobState::Pending => None,
        JobState::Running => Some(AnsiColor::Cyan),
        JobState::Succeeded => Some(AnsiColor::Green),
        JobState::Failed | JobState::Lost => Some(AnsiColor::Red),
        JobState::Unknown | JobState::Stopped | JobState::TimedOut => Some(AnsiColor::Yellow),
    }
}

fn worker_row(worker: &Worker, wide: bool, now: Timestamp) -> Vec<Cell> {
    let colour = match worker.state {
        WorkerState::Joining => Some(AnsiColor::Cyan),
        WorkerState::Ready => Some(AnsiColor::Green),
        WorkerState::Unreachable => Some(AnsiColor::Red),
        WorkerState::Left => None,
    };
    let since = |time: Timestamp| age(now, time);
    let mut row = vec![
        cell(worker.id.short()),
        cell(&worker.name),
        styled(worker.state.as_str(), colour),
        cell(since(worker.since)),
        cell(worker.running),
        cell(format_args!("{:.2}", worker.load)),
    ];
    if wide {
        row.push(cell_or(worker.last_heartbeat_at.map(since)));
        row.push(cell(since(worker.registered_at)));
        row.push(cell(&worker.version));
    }
    row.push(cell(&worker.address));
    row
}

/// A job in full, a line for each thing there is to say.
fn block(job: &Job, now: Timestamp, colour: bool) -> String {
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
    let duration =
        |milliseconds| length(SignedDuration::from_millis_i128(i128::from(milliseconds)));
    let lines = [
        ("Job", Some(job.id.to_string())),
        ("Name", job.name.as_ref().map(shown)),
        ("State", Some(state)),
        ("Exit code", job.exit_code.map(|code| code.to_string())),
        ("Signal", job.signal.map(|signal| signal.to_string())),
        ("Worker", worker),
        ("Process", job.pid.map(|pid| pid.to_string())),
        ("Command", Some(visible(&command_line(job)).into_owned())),
        ("Folder", job.cwd.as_ref().map(shown)),
        ("Variables", env.as_ref().map(shown)),
        ("Timeout", job.timeout_ms.map(duration)),
        ("Created", when(Some(job.created_at))),
        ("Started", when(job.started_at)),
        ("Ended", when(job.ended_at)),
        (
            "Kept until",
            job.kept_until.map(|time| format!("{time:.0}")),
        ),
        ("Ran for", ran(job, now).map(length)),
        ("Output", Some(size(job.output_bytes))),
    ];
    lines
        .into_iter()
        .fold(String::new(), |mut text, (key, value)| {
            if let Some(value) = value {
                writeln!(text, "{:<12}{value}", format!("{key}:")).unwrap_or_default();
            }
            text
        })
}

/// What runs, as one could type it into a shell.
fn command_line(job: &Job) -> String {
    let words = job.command.iter().chain(&job.path).chain(&job.args);
    words.map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

/// How long ago `then` was, in whole seconds or more.
fn age(now: Timestamp, then: Timestamp) -> String {
    length(SignedDuration::from_secs(
        now.duration_since(then).as_secs(),
    ))
}

/// A length of time in one or two units: `3m`, `2h 5m`, `250ms`.
fn length(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0 if duration.subsec_millis() > 0 => format!("{}ms", duration.subsec_millis()),
        0 => "0s".to_owned(),
        1..60 => format!("{seconds}s"),
        60..600 if seconds % 60 != 0 => format!("{minutes}m {}s", seconds % 60),
        60..3600 => format!("{minutes}m"),
        3600..86400 if minutes % 60 != 0 => format!("{hours}h {}m", minutes % 60),
        3600..86400 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// Bytes in binary units: `512B`, `1.5KiB`, `100MiB`.
fn size(bytes: u64) -> String {
    let (mut unit, mut amount) = ("B", bytes as f64);
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if amount < 1024.0 {
            break;
        }
        (unit, amount) = (larger, amount / 1024.0);
    }
    let decimals = usize::from(unit != "B" && amount < 10.0);
    format!("{amount:.decimals$}{unit}")
}

/// Whether each line of a job's output is to bear the time it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamps {
    /// The bytes alone.
    Hidden,
    /// RFC 3339 with milliseconds and a space before each line.
    Shown,
}

/// A job's stdout and stderr, on ours.
pub struct JobOutput {
    /// Not yet written, and meant for `to`.
    pending: Vec<u8>,
    to: OutputStream,
    timestamps: Timestamps,
    out_line: Line,
    err_line: Line,
}

/// Where in a line the last byte left off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Beginning,
    Middle,
}

impl JobOutput {
    /// Nothing is written yet.
    pub fn new(timestamps: Timestamps) -> Self {
        Self {
            pending: Vec::new(),
            to: OutputStream::Stdout,
            timestamps,
            out_line: Line::Beginning,
            err_line: Line::Beginning,
        }
    }

    /// Takes a piece in. It is seen after [`JobOutput::flush`], if not before.
    pub async fn write(&mut self, message: &StreamJobResponse) -> Result<(), OutputError> {
        let to = match message.stream() {
            OutputStream::Stderr => OutputStream::Stderr,
            OutputStream::Stdout | OutputStream::Unspecified => OutputStream::Stdout,
        };
        // Both may be one terminal, where the order is part of what is shown.
        if to != self.to || self.pending.len() >= PIECE {
            self.flush().await?;
            self.to = to;
        }
        match self.timestamps {
            Timestamps::Hidden => self.pending.extend_from_slice(&message.output),
            Timestamps::Shown => {
                let line = match to {
                    OutputStream::Stderr => &mut self.err_line,
                    OutputStream::Stdout | OutputStream::Unspecified => &mut self.out_line,
                };
                stamp(&mut self.pending, message.time_us, &message.output, line);
            }
        }
        Ok(())
    }

    /// Returns once everything taken in so far was handed to the system.
    pub async fn flush(&mut self) -> Result<(), OutputError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (bytes, to) = (std::mem::take(&mut self.pending), self.to);
        // On a thread of its own: a pager that does not read on must not keep
        // Ctrl-C from being heard.
        let written = tokio::task::spawn_blocking(move || {
            let written = write_all(to, &bytes);
            (bytes, written)
        });
        let (bytes, written) = written.await.map_err(io::Error::other)?;
        self.pending = bytes;
        self.pending.clear();
        Ok(written?)
    }
}

fn write_all(to: OutputStream, bytes: &[u8]) -> io::Result<()> {
    match to {
        OutputStream::Stderr => io::stderr().lock().write_all(bytes),
        OutputStream::Stdout | OutputStream::Unspecified => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        }
    }
}

/// Appends `bytes` to `out`, with the time wherever a line begins.
fn stamp(out: &mut Vec<u8>, time_us: i64, bytes: &[u8], line: &mut Line) {
    let time = Timestamp::from_microsecond(time_us).unwrap_or(Timestamp::UNIX_EPOCH);
    let time = format!("{time:.3} ");
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        if *line == Line::Beginning {
            out.extend_from_slice(time.as_bytes());
        }
        out.extend_from_slice(part);
        *line = match part.last() {
            Some(b'\n') => Line::Beginning,
            _ => Line::Middle,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn job() -> Job {
        Job {
            id: "3f2a8b1c-9d4e-4f00-8000-000000000000".parse().unwrap(),
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
            timeout_ms: Some(90_000),
            pid: Some(17),
            exit_code: Some(3),
            signal: None,
            start_error: None,
            output_bytes: 1536,
            created_at: now() - SignedDuration::from_secs(180),
            started_at: Some(now() - SignedDuration::from_secs(180)),
            ended_at: Some(now() - SignedDuration::from_secs(170)),
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
    fn errors_are_broken_between_words() {
        assert_eq!(wrapped("error: short\n"), "error: short\n");
        let long = format!(
            "\u{1b}[31merror:\u{1b}[0m {}\n\n  next\n",
            "word ".repeat(30)
        );
        let text = wrapped(&long);
        fits(&anstream::adapter::strip_str(&text).to_string(), WIDTH);
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&text), words(&long));
        assert!(text.ends_with("\n\n  next\n"), "{text:?}");
    }

    #[test]
    fn wide_characters_are_cut_by_the_columns_they_take() {
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
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

    #[test]
    fn one_named_job_is_an_object_and_a_list_is_an_array() {
        let one = document(&job(), Format::Json).unwrap();
        let read: Job = serde_json::from_str(&one).unwrap();
        assert_eq!(read, job());
        let line = document(&job(), Format::Jsonl).unwrap();
        assert_eq!(line.lines().count(), 1);
        let none: &[Job] = &[];
        assert_eq!(document(&none, Format::Json).unwrap(), "[]\n");
        assert_eq!(document(&none, Format::Yaml).unwrap(), "[]\n");
        let yaml = document(&job(), Format::Yaml).unwrap();
        let read: Job = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(read, job(), "{yaml}");
    }

    #[test]
    fn nothing_reaches_a_terminal_that_it_would_act_upon() {
        assert_eq!(
            visible("a\u{1b}[2J\tb\n\u{9b}"),
            "a\\u{1b}[2J\\tb\\n\\u{9b}"
        );
        assert_eq!(visible("\u{202e}txt"), "\\u{202e}txt");
        assert_eq!(visible("naïve 日本"), "naïve 日本");
        let mut evil = job();
        evil.name = Some("\u{7f}\u{9b}2J\u{1b}".into());
        for format in [Format::Json, Format::Jsonl, Format::Yaml] {
            let text = document(&evil, format).unwrap();
            assert!(!text.chars().any(|c| c != '\n' && is_unsafe(c)), "{text:?}");
        }
        let text = document(&evil, Format::Json).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), evil);
    }

    #[test]
    fn lengths_of_time_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (170, "2m 50s"),
            (1234, "20m"),
            (7200, "2h"),
            (7500, "2h 5m"),
            (200_000, "2d"),
            (-5, "0s"),
        ] {
            assert_eq!(length(SignedDuration::from_secs(seconds)), text);
        }
        assert_eq!(length(SignedDuration::from_millis(250)), "250ms");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (100 << 20, "100MiB"),
            (3 << 40, "3.0TiB"),
            (5000 << 40, "5000TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_time_stands_at_each_beginning_of_a_line_even_across_pieces() {
        let (mut out, mut line) = (Vec::new(), Line::Beginning);
        let time_us = now().as_microsecond() + 6000;
        stamp(&mut out, time_us, b"one\ntw", &mut line);
        stamp(&mut out, time_us + 1000, b"o\n", &mut line);
        stamp(&mut out, time_us + 2000, b"\n\xff", &mut line);
        assert_eq!(
            out,
            b"2026-01-02T03:04:05.006Z one\n2026-01-02T03:04:05.006Z two\n\
              2026-01-02T03:04:05.008Z \n2026-01-02T03:04:05.008Z \xff"
        );
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(closed.into(), OutputError::Closed));
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(matches!(full.into(), OutputError::Failed(_)));
    }
}
