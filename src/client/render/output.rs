//! A job's output: its stdout on ours, its stderr on ours, in the order it was
//! written. A terminal gets its control characters made visible, everything else
//! the bytes.

use std::io::{self, IsTerminal as _, Write as _};

use jiff::Timestamp;

use super::OutputError;
use crate::{
    client::visible::Visible,
    proto::{OutputStream, StreamJobResponse},
};

/// Output is written in pieces of at most about this size, in bytes.
const PIECE: usize = 256 * 1024;

/// Whether each line of a job's output is to bear the time it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamps {
    /// The bytes alone.
    Hidden,
    /// RFC 3339 with milliseconds and a space before each line.
    Shown,
}

/// What a terminal gets of the control characters in a job's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controls {
    /// A picture of them.
    Visible,
    /// Themselves.
    Raw,
}

/// How a job's output is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Before each line.
    pub timestamps: Timestamps,
    /// On a terminal.
    pub controls: Controls,
}

/// A job's stdout and stderr, on ours.
pub struct JobOutput {
    /// Not yet written, and meant for `to`.
    pending: Vec<u8>,
    to: OutputStream,
    timestamps: Timestamps,
    out: Side,
    err: Side,
}

/// How far one of the two streams has come.
struct Side {
    line: Line,
    /// Where it goes to a terminal.
    visible: Option<Visible>,
}

/// Where in a line the last byte left off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Beginning,
    Middle,
}

impl JobOutput {
    /// Nothing is written yet.
    pub fn new(look: Look) -> Self {
        let side = |is_terminal: bool| Side {
            line: Line::Beginning,
            visible: (is_terminal && look.controls == Controls::Visible).then(Visible::default),
        };
        Self {
            pending: Vec::new(),
            to: OutputStream::Stdout,
            timestamps: look.timestamps,
            out: side(io::stdout().is_terminal()),
            err: side(io::stderr().is_terminal()),
        }
    }

    fn side(&mut self, of: OutputStream) -> &mut Side {
        match of {
            OutputStream::Stderr => &mut self.err,
            OutputStream::Stdout | OutputStream::Unspecified => &mut self.out,
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
                let mut pending = std::mem::take(&mut self.pending);
                let line = &mut self.side(to).line;
                stamp(&mut pending, message.time_us, &message.output, line);
                self.pending = pending;
            }
        }
        Ok(())
    }

    /// Returns once everything taken in so far was handed to the system, save the
    /// beginning of a character, which a terminal sees when it is whole.
    pub async fn flush(&mut self) -> Result<(), OutputError> {
        let (bytes, to) = (std::mem::take(&mut self.pending), self.to);
        match &mut self.side(to).visible {
            None => {
                self.pending = hand_over(to, bytes).await?;
                self.pending.clear();
                Ok(())
            }
            Some(visible) => {
                let mut shown = String::with_capacity(bytes.len());
                visible.push(&bytes, &mut shown);
                hand_over(to, shown.into_bytes()).await.map(drop)
            }
        }
    }

    /// As [`JobOutput::flush`], of everything: what comes next, if anything, does
    /// not go on where this ended.
    pub async fn finish(&mut self) -> Result<(), OutputError> {
        self.flush().await?;
        for to in [OutputStream::Stdout, OutputStream::Stderr] {
            let mut rest = String::new();
            if let Some(visible) = &mut self.side(to).visible {
                visible.finish(&mut rest);
            }
            hand_over(to, rest.into_bytes()).await?;
        }
        Ok(())
    }
}

/// Writes `bytes`, and returns them for their room.
async fn hand_over(to: OutputStream, bytes: Vec<u8>) -> Result<Vec<u8>, OutputError> {
    if bytes.is_empty() {
        return Ok(bytes);
    }
    // On a thread of its own: a pager that does not read on must not keep
    // Ctrl-C from being heard.
    let written = tokio::task::spawn_blocking(move || {
        let written = write_all(to, &bytes);
        (bytes, written)
    });
    let (bytes, written) = written.await.map_err(io::Error::other)?;
    written?;
    Ok(bytes)
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

    #[test]
    fn the_time_stands_at_each_beginning_of_a_line_even_across_pieces() {
        let (mut out, mut line) = (Vec::new(), Line::Beginning);
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let time_us = now.as_microsecond() + 6000;
        stamp(&mut out, time_us, b"one\ntw", &mut line);
        stamp(&mut out, time_us + 1000, b"o\n", &mut line);
        stamp(&mut out, time_us + 2000, b"\n\xff", &mut line);
        assert_eq!(
            out,
            b"2026-01-02T03:04:05.006Z one\n2026-01-02T03:04:05.006Z two\n\
              2026-01-02T03:04:05.008Z \n2026-01-02T03:04:05.008Z \xff"
        );
    }
}
