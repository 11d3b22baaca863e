//! Groups of jobs: how they stand, how they ended, and their output line by line.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _},
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use unicode_width::UnicodeWidthStr as _;

use super::{
    Controls, Error, JobOutput, Look, OutputError, data,
    rows::{in_full, job_colour, outcome, quoted, ran},
    table::{Cell, Shape, cell, cell_or, styled, table},
    units::{age, length},
};
use crate::{
    api::{Counts, Group, Job, JobState},
    client::visible::{Visible, visible},
    ids::JobId,
    proto::{OutputStream, StreamJobResponse},
};

/// A line that is longer is shown in pieces.
const LONGEST_LINE: usize = 64 * 1024;

/// The colours that tell jobs apart, one after the other.
const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::Red,
];

const ENDS_OF_WORKERS: [&str; 5] = ["WORKER", "STATE", "EXIT", "TIME", "REASON"];
const ENDS: [&str; 6] = ["JOB", "STATE", "EXIT", "WORKER", "TIME", "REASON"];

/// How a job of a group ended, and the last it wrote to stderr if it failed.
#[derive(Debug)]
pub struct MemberEnd {
    /// The job.
    pub job: Job,
    /// A line.
    pub last_words: Option<String>,
}

/// Shows how jobs of a group ended, a row each.
pub fn ends(group: &Group, ends: &[MemberEnd]) -> Result<(), Error> {
    let now = Timestamp::now();
    let rows = ends.iter().map(|end| {
        let job = &end.job;
        let mut row = match group.all {
            true => vec![cell_or(job.worker.as_ref())],
            false => vec![cell(member_label(group, job))],
        };
        row.push(styled(job.state.as_str(), job_colour(job.state)));
        row.push(cell_or(outcome(job)));
        if !group.all {
            row.push(cell_or(job.worker.as_ref()));
        }
        row.push(cell_or(ran(job, now).map(length)));
        row.push(why(end));
        row
    });
    let header: &[&str] = match group.all {
        true => &ENDS_OF_WORKERS,
        false => &ENDS,
    };
    table(&Shape::of_stdout(), header, true, rows.collect())
}

fn why(end: &MemberEnd) -> Cell {
    let words = end.last_words.as_ref().or(end.job.reason.as_ref());
    cell_or(words)
}

/// What a job of this group is called beside the others: its worker, or its number.
pub fn member_label(group: &Group, job: &Job) -> String {
    match (group.all, &job.worker, job.index) {
        (true, Some(worker), _) => worker.clone(),
        (_, _, Some(index)) => index.to_string(),
        (_, _, None) => job.id.short(),
    }
}

/// How many jobs are in which state, those that there are: `3 running, 1 failed`.
fn counted(states: Counts) -> String {
    let states = JobState::ALL.into_iter().filter_map(|state| {
        let mut states = states;
        let count = *states.of(state);
        (count > 0).then(|| format!("{count} {}", state.as_str().replace('_', " ")))
    });
    states.collect::<Vec<_>>().join(", ")
}

/// How a group stands or has ended, in one line.
pub fn in_short(group: &Group) -> String {
    let (id, states) = (group.id.short(), counted(group.states));
    let took = group.ended_at.map(|ended| {
        let took = length(ended.duration_since(group.created_at));
        format!(" in {took}")
    });
    format!("group {id}: {states}{}", took.unwrap_or_default())
}

/// Shows groups in full.
pub fn groups(groups: &[Group]) -> Result<(), Error> {
    let now = Timestamp::now();
    let blocks: Vec<_> = groups.iter().map(|group| block(group, now)).collect();
    Ok(data(&blocks.join("\n"))?)
}

fn block(group: &Group, now: Timestamp) -> String {
    let shown = |text: &String| visible(text).into_owned();
    let words = group.command.iter().chain(&group.path).chain(&group.args);
    let words: Vec<_> = words.map(|word| quoted(word)).collect();
    let when =
        |time: Option<Timestamp>| time.map(|time| format!("{time:.3} ({} ago)", age(now, time)));
    let jobs = match group.all {
        true => format!("{}, one on each worker", group.count),
        false => group.count.to_string(),
    };
    in_full([
        ("Group", Some(group.id.to_string())),
        ("Name", group.name.as_ref().map(shown)),
        ("Jobs", Some(jobs)),
        ("States", Some(counted(group.states))),
        (
            "Exit code",
            group.ended_at.map(|_| group.exit_code.to_string()),
        ),
        ("Command", Some(visible(&words.join(" ")).into_owned())),
        (
            "Labels",
            (!group.labels.is_empty()).then(|| group.labels.join(", ")),
        ),
        ("At once", group.at_once.map(|count| count.to_string())),
        (
            "On failure",
            group
                .stop_on_failure
                .then(|| "the rest is stopped".to_owned()),
        ),
        ("Created", when(Some(group.created_at))),
        ("Ended", when(group.ended_at)),
        (
            "Ran for",
            group
                .ended_at
                .map(|ended| length(ended.duration_since(group.created_at))),
        ),
    ])
}

/// The output of several jobs, on our stdout and stderr, in whole lines, each
/// behind the label of its job.
pub struct GroupOutput {
    output: JobOutput,
    /// Those that have begun to write, and have not ended.
    jobs: HashMap<JobId, Lines>,
    /// Jobs that have written so far, each in the next colour.
    seen: usize,
    /// In columns.
    width: usize,
    colour: bool,
    /// On stdout and on stderr.
    is_visible: [bool; 2],
}

/// What one job has begun to write.
struct Lines {
    label: String,
    style: Style,
    /// On stdout and on stderr.
    begun: [Vec<u8>; 2],
}

impl GroupOutput {
    /// Labels are as wide as `width`, or wider.
    pub fn new(look: Look, width: usize) -> Self {
        let is_visible = |is_terminal: bool| is_terminal && look.controls == Controls::Visible;
        Self {
            // What a terminal must not act upon is taken out here, where a label
            // may still be in colour.
            output: JobOutput::new(Look {
                controls: Controls::Raw,
                ..look
            }),
            jobs: HashMap::new(),
            seen: 0,
            width,
            colour: AutoStream::choice(&io::stdout()) != ColorChoice::Never,
            is_visible: [
                is_visible(io::stdout().is_terminal()),
                is_visible(io::stderr().is_terminal()),
            ],
        }
    }

    /// Takes a piece of a job's output in; the lines that are whole are seen after
    /// [`GroupOutput::flush`], if not before.
    pub async fn write(
        &mut self,
        job: JobId,
        label: &str,
        message: &StreamJobResponse,
    ) -> Result<(), OutputError> {
        let seen = &mut self.seen;
        let lines = self.jobs.entry(job).or_insert_with(|| {
            *seen += 1;
            Lines {
                label: visible(label).into_owned(),
                style: COLOURS[(*seen - 1) % COLOURS.len()].on_default(),
                begun: Default::default(),
            }
        });
        let side = side(message.stream());
        lines.begun[side].extend_from_slice(&message.output);
        while let Some(length) = whole_line(&lines.begun[side]) {
            let line: Vec<u8> = lines.begun[side].drain(..length).collect();
            let line = labelled(lines, &line, self.width, self.colour, self.is_visible[side]);
            let message = StreamJobResponse {
                output: line.into(),
                ..message.clone()
            };
            self.output.write(&message).await?;
        }
        Ok(())
    }

    /// Returns once every whole line taken in so far was handed to the system.
    pub async fn flush(&mut self) -> Result<(), OutputError> {
        self.output.flush().await
    }

    /// A job has ended: what it left without an end of line is a line.
    pub async fn end(&mut self, job: JobId) -> Result<(), OutputError> {
        let Some(mut lines) = self.jobs.remove(&job) else {
            return Ok(());
        };
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let side = side(stream);
            let mut line = std::mem::take(&mut lines.begun[side]);
            if line.is_empty() {
                continue;
            }
            line.push(b'\n');
            let line = labelled(
                &lines,
                &line,
                self.width,
                self.colour,
                self.is_visible[side],
            );
            let message = StreamJobResponse {
                output: line.into(),
                stream: stream.into(),
                time_us: Timestamp::now().as_microsecond(),
                ..StreamJobResponse::default()
            };
            self.output.write(&message).await?;
        }
        self.output.flush().await
    }
}

fn side(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout | OutputStream::Unspecified => 0,
        OutputStream::Stderr => 1,
    }
}

/// The length of the first line with its end, if it is there.
fn whole_line(begun: &[u8]) -> Option<usize> {
    match begun.iter().position(|byte| *byte == b'\n') {
        Some(at) => Some(at + 1),
        None if begun.len() >= LONGEST_LINE => Some(begun.len()),
        None => None,
    }
}

fn labelled(lines: &Lines, line: &[u8], width: usize, colour: bool, is_visible: bool) -> Vec<u8> {
    let (label, gap) = (&lines.label, width.saturating_sub(lines.label.width()));
    let style = match colour {
        true => lines.style,
        false => Style::new(),
    };
    let mut text = format!("{style}{label}{style:#}{:gap$} | ", "").into_bytes();
    match is_visible {
        false => text.extend_from_slice(line),
        true => {
            let (mut filter, mut shown) = (Visible::default(), String::new());
            filter.push(line, &mut shown);
            filter.finish(&mut shown);
            text.extend_from_slice(shown.as_bytes());
        }
    }
    if !line.ends_with(b"\n") {
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines {
        Lines {
            label: "w1".to_owned(),
            style: Style::new(),
            begun: Default::default(),
        }
    }

    #[test]
    fn lines_stand_behind_their_label() {
        let shown = |line: &[u8], visible| labelled(&lines(), line, 4, false, visible);
        assert_eq!(shown(b"a\x1b\n", false), b"w1   | a\x1b\n");
        assert_eq!(shown(b"a\x1b\n", true), b"w1   | a^[\n");
        assert_eq!(shown(b"no end", false), b"w1   | no end\n");
    }

    #[test]
    fn a_line_that_never_ends_is_shown_in_pieces() {
        assert_eq!(whole_line(b"abc"), None);
        assert_eq!(whole_line(b"abc\nd"), Some(4));
        assert_eq!(whole_line(&vec![b'x'; LONGEST_LINE]), Some(LONGEST_LINE));
    }

    #[test]
    fn states_are_counted_in_words() {
        let states = Counts {
            running: 3,
            timed_out: 1,
            ..Counts::default()
        };
        assert_eq!(counted(states), "3 running, 1 timed out");
    }
}
