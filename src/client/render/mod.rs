//! Everything a client command writes: data on stdout; notes, errors and the
//! spinner on stderr. Names, commands and messages come from other people, so
//! their control characters are made visible wherever they go: each row and each
//! message is to be one line. A job's output keeps them in files and pipes.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use anstream::{AutoStream, ColorChoice};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::{Certificate, Job, QueryAnswer, Token, Worker},
    client::{
        audit::Entry,
        contexts::Named,
        proof::{Authority, Who},
        visible::{is_unsafe, visible},
    },
};

mod groups;
mod messages;
mod output;
mod progress;
mod rows;
mod table;
mod units;

pub use groups::{GroupOutput, MemberEnd, ends, groups, in_short, member_label};
pub use messages::{ask, failure, is_attended, note, remark, usage};
pub use output::{Controls, JobOutput, Look, Timestamps};
pub use progress::{GroupBar, Spinner, patiently};
pub use rows::{quoted, short};

use rows::{
    AUTHORITIES, CERTIFICATES, CERTIFICATES_WIDE, CONTEXTS, CONTEXTS_WIDE, JOBS, JOBS_WIDE, TOKENS,
    TOKENS_WIDE, WORKERS, WORKERS_WIDE, authority_row, block, certificate_row, context_block,
    context_row, entry_line, job_row, token_row, worker_block, worker_row,
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

/// Jobs and groups of them, as they were asked for.
pub fn answers(answers: &[QueryAnswer], format: Format, many: Many) -> Result<(), Error> {
    let (mut only_jobs, mut only_groups) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            QueryAnswer::Job(answer) => only_jobs.push(answer.job.clone()),
            QueryAnswer::Group(answer) => only_groups.push(answer.group.clone()),
        }
    }
    if only_groups.is_empty() {
        return jobs(&only_jobs, format, many);
    }
    if let Format::Table { .. } = format {
        if !only_jobs.is_empty() {
            jobs(&only_jobs, format, many)?;
            data("\n")?;
        }
        return groups(&only_groups);
    }
    let things = answers.iter().map(|answer| match answer {
        QueryAnswer::Job(answer) => serde_json::to_value(&answer.job),
        QueryAnswer::Group(answer) => serde_json::to_value(&answer.group),
    });
    let things: Vec<serde_json::Value> = things.collect::<Result<_, _>>()?;
    let word = |thing: &serde_json::Value, field: &str| {
        thing
            .get(field)
            .and_then(|word| word.as_str())
            .map(str::to_owned)
    };
    let id = |thing: &serde_json::Value| word(thing, "id").unwrap_or_default();
    documents(&things, format, many, id, |thing| {
        word(thing, "name").unwrap_or_else(|| id(thing))
    })
}

/// Shows workers as they were asked for.
pub fn workers(workers: &[Worker], format: Format, many: Many) -> Result<(), Error> {
    let id = |worker: &Worker| worker.id.to_string();
    let name = |worker: &Worker| worker.name.clone();
    match (format, many) {
        (Format::Table { wide, headers }, Many::List) => {
            let now = Timestamp::now();
            let header: &[&str] = if wide { &WORKERS_WIDE } else { &WORKERS };
            let row = |worker| worker_row(worker, wide, now);
            let rows = workers.iter().map(row).collect();
            table(&Shape::of_stdout(), header, headers, rows)
        }
        (Format::Table { .. }, Many::Several | Many::Named) => {
            let (now, colour) = (Timestamp::now(), Shape::of_stdout().colour);
            let block = |worker| worker_block(worker, now, colour);
            let blocks: Vec<_> = workers.iter().map(block).collect();
            Ok(data(&blocks.join("\n"))?)
        }
        _ => documents(workers, format, many, id, name),
    }
}

/// Shows tokens as a list.
pub fn tokens(tokens: &[Token], format: Format) -> Result<(), Error> {
    let id = |token: &Token| token.id.to_string();
    match format {
        Format::Table { wide, headers } => {
            let now = Timestamp::now();
            let header: &[&str] = if wide { &TOKENS_WIDE } else { &TOKENS };
            let rows = tokens.iter().map(|token| token_row(token, wide, now));
            table(&Shape::of_stdout(), header, headers, rows.collect())
        }
        _ => documents(tokens, format, Many::List, id, |token| {
            named_or(&token.name, id(token))
        }),
    }
}

/// Shows certificates as a list.
pub fn certificates(certificates: &[Certificate], format: Format) -> Result<(), Error> {
    let id = |certificate: &Certificate| certificate.id.to_string();
    match format {
        Format::Table { wide, headers } => {
            let now = Timestamp::now();
            let header: &[&str] = if wide {
                &CERTIFICATES_WIDE
            } else {
                &CERTIFICATES
            };
            let row = |certificate| certificate_row(certificate, wide, now);
            let rows = certificates.iter().map(row);
            table(&Shape::of_stdout(), header, headers, rows.collect())
        }
        _ => documents(certificates, format, Many::List, id, |certificate| {
            named_or(&certificate.name, id(certificate))
        }),
    }
}

fn named_or(name: &str, id: String) -> String {
    match name {
        "" => id,
        name => name.to_owned(),
    }
}

/// Shows authorities as a list.
pub fn authorities(authorities: &[Authority], format: Format) -> Result<(), Error> {
    let id = |authority: &Authority| authority.fingerprint.clone();
    match format {
        Format::Table { headers, .. } => {
            let rows = authorities.iter().map(authority_row);
            table(&Shape::of_stdout(), &AUTHORITIES, headers, rows.collect())
        }
        _ => documents(authorities, format, Many::List, id, id),
    }
}

/// Shows a line of the audit log to a person, with what is in it most of all.
pub fn audit_entry(line: &[u8]) -> Result<(), Error> {
    let entry: Entry = serde_json::from_slice(line)?;
    Ok(data(&entry_line(&entry, &Shape::of_stdout()))?)
}

/// Writes a line of the audit log as it is, but on a terminal, which would act
/// upon what is in it.
pub fn audit_line(line: &[u8]) -> Result<(), Error> {
    let text = String::from_utf8_lossy(line);
    if io::stdout().is_terminal() {
        return Ok(data(&(escaped(text.into_owned()) + "\n"))?);
    }
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(line)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    Ok(written.map_err(OutputError::from)?)
}

/// Shows contexts as a list.
pub fn contexts(contexts: &[Named], format: Format) -> Result<(), Error> {
    let name = |named: &Named| named.name.clone();
    match format {
        Format::Table { wide, headers } => {
            let header: &[&str] = if wide { &CONTEXTS_WIDE } else { &CONTEXTS };
            let rows = contexts.iter().map(|named| context_row(named, wide));
            table(&Shape::of_stdout(), header, headers, rows.collect())
        }
        _ => documents(contexts, format, Many::List, name, name),
    }
}

/// A context, and who one is in it.
#[derive(Debug, Serialize)]
pub struct Whose {
    /// The context.
    #[serde(flatten)]
    pub named: Named,
    /// None: it has no certificate that could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<Who>,
}

/// Shows a context in full.
pub fn context(context: &Whose, format: Format) -> Result<(), Error> {
    let name = |context: &Whose| context.named.name.clone();
    match format {
        Format::Table { .. } => Ok(data(&context_block(context, Timestamp::now()))?),
        _ => documents(
            std::slice::from_ref(context),
            format,
            Many::Named,
            name,
            name,
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
