//! Everything a client command writes: data on stdout; notes, errors and the
//! spinner on stderr. Names, commands and messages come from other people, so
//! their control characters are made visible wherever they go: each row and each
//! message is to be one line. A job's output keeps them in files and pipes.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anstream::{AutoStream, ColorChoice};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::{Job, Worker},
    client::{
        contexts::Named,
        visible::{is_unsafe, visible},
    },
};

mod messages;
mod output;
mod progress;
mod rows;
mod table;
mod units;

pub use messages::{ask, failure, is_attended, note, remark, usage};
pub use output::{Controls, JobOutput, Look, Timestamps};
pub use progress::{Spinner, patiently};
pub use rows::quoted;

use rows::{
    CONTEXTS, CONTEXTS_WIDE, JOBS, JOBS_WIDE, WORKERS, WORKERS_WIDE, block, context_block,
    context_row, job_row, worker_row,
};
use table::{Shape, table};

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

/// Shows contexts as they were asked for.
pub fn contexts(contexts: &[Named], format: Format, many: Many) -> Result<(), Error> {
    let name = |named: &Named| named.name.clone();
    match (format, many) {
        (Format::Table { wide, headers }, Many::List) => {
            let header: &[&str] = if wide { &CONTEXTS_WIDE } else { &CONTEXTS };
            let rows = contexts.iter().map(|named| context_row(named, wide));
            table(&Shape::of_stdout(), header, headers, rows.collect())
        }
        (Format::Table { .. }, Many::Several | Many::Named) => {
            let blocks: Vec<_> = contexts.iter().map(context_block).collect();
            Ok(data(&blocks.join("\n"))?)
        }
        _ => documents(contexts, format, many, name, name),
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
            // It has a way to escape each of them, but does not use it for marks
            // that reorder text; and JSON is YAML, too.
            if acts(&text) {
                return document(value, Format::Json);
            }
            format!("{}\n", text.trim_end_matches('\n'))
        }
        Format::Jsonl => escaped(serde_json::to_string(value)?) + "\n",
        Format::Json | Format::Table { .. } | Format::Name | Format::Id => {
            escaped(serde_json::to_string_pretty(value)?) + "\n"
        }
    })
}

/// serde_json escapes the controls below U+0020, but a terminal also acts upon
/// others.
fn escaped(json: String) -> String {
    if !acts(&json) {
        return json;
    }
    json.chars().fold(String::new(), |mut text, c| {
        if c != '\n' && is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").unwrap_or_default();
            }
        } else {
            text.push(c);
        }
        text
    })
}

/// Whether a document holds what a terminal would act upon.
fn acts(document: &str) -> bool {
    document.chars().any(|c| c != '\n' && is_unsafe(c))
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

#[cfg(test)]
mod tests {
    use super::{rows::tests::job, *};

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
    fn no_document_holds_what_a_terminal_would_act_upon() {
        for name in [
            "\u{7f}\u{9b}2J\u{1b}",
            "\u{202e}txt\u{2066}",
            "\u{e0041}",
            "a\u{2028}b",
        ] {
            let mut evil = job();
            evil.name = Some(name.into());
            for format in [Format::Json, Format::Jsonl, Format::Yaml] {
                let text = document(&evil, format).unwrap();
                assert!(!acts(&text), "{text:?}");
                let read: Job = match format {
                    Format::Yaml => serde_saphyr::from_str(&text).unwrap(),
                    _ => serde_json::from_str(&text).unwrap(),
                };
                assert_eq!(read, evil);
            }
        }
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(closed.into(), OutputError::Closed));
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(matches!(full.into(), OutputError::Failed(_)));
    }
}
