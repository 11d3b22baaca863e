//! A job's output: its stdout on ours, its stderr on ours, in the order it was
//! written.

use std::io::{self, Write as _};

use jiff::Timestamp;

use super::OutputError;
use crate::proto::{OutputStream, StreamJobResponse};

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
