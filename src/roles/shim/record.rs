//! Records a job's output: one file with the bytes of both streams in the order
//! in which they arrived, and beside it an index of fixed-size entries.
//!
//! Neither file exists before the first byte. The bytes are written before their
//! entry, so an entry never points at bytes that are not there.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::protocol::OutputLost;

/// Which of the two streams a piece of output came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One piece of output, as one read from the job's pipe returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of its first byte in the output file.
    pub offset: u64,
    /// When it was read, in microseconds since 1970; never less than in the
    /// entry before, even if the clock was set back.
    pub time_us: i64,
    /// In bytes, at least one.
    pub length: u32,
    /// Where the job wrote it.
    pub stream: Stream,
}

impl Entry {
    /// How long an entry is in the index file, in bytes.
    pub const SIZE: usize = 24;

    /// The first byte behind the piece.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }

    /// Little-endian: offset (8 bytes), time (8), length (4), stream (1: stdout,
    /// 2: stderr), three zeros.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.time_us.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_le_bytes());
        bytes[20] = match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        bytes
    }

    /// The reverse of [`Entry::encode`]; `None` for what it never returns.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let (offset, rest) = bytes.split_first_chunk()?;
        let (time_us, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let entry = Self {
            offset: u64::from_le_bytes(*offset),
            time_us: i64::from_le_bytes(*time_us),
            length: u32::from_le_bytes(*length),
            stream: match rest {
                [1, 0, 0, 0] => Stream::Stdout,
                [2, 0, 0, 0] => Stream::Stderr,
                _ => return None,
            },
        };
        let fits = entry.offset.checked_add(entry.length.into()).is_some();
        (entry.length > 0 && fits).then_some(entry)
    }
}

/// The file that holds the bytes.
pub fn data_path(base: &Path) -> PathBuf {
    with_ending(base, ".out")
}

/// The file that holds the entries.
pub fn index_path(base: &Path) -> PathBuf {
    with_ending(base, ".idx")
}

fn with_ending(base: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(base);
    path.push(ending);
    path.into()
}

/// Writes the two files.
pub(super) struct Recorder {
    base: PathBuf,
    files: Option<Files>,
    end: u64,
    entries: u64,
    time_us: i64,
    lost: Option<OutputLost>,
}

struct Files {
    data: File,
    index: File,
}

impl Recorder {
    pub(super) fn new(base: PathBuf) -> Self {
        Self {
            base,
            files: None,
            end: 0,
            entries: 0,
            time_us: 0,
            lost: None,
        }
    }

    /// The end of what is recorded.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What could not be recorded.
    pub(super) fn lost(&self) -> Option<OutputLost> {
        self.lost.clone()
    }

    /// Records one piece. A job does not suffer from a full disk: what cannot be
    /// written is counted as lost, and the next piece is tried again.
    pub(super) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        if let Err(error) = self.write(stream, bytes) {
            let lost = self.lost.get_or_insert_with(|| OutputLost {
                bytes: 0,
                why: error.to_string(),
            });
            lost.bytes += bytes.len() as u64;
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let files = match &mut self.files {
            Some(files) => files,
            None => self.files.insert(Files::create(&self.base)?),
        };
        self.time_us = self.time_us.max(Timestamp::now().as_microsecond());
        let entry = Entry {
            offset: self.end,
            time_us: self.time_us,
            length: bytes.len() as u32,
            stream,
        };
        let written = files
            .data
            .write_all(bytes)
            .and_then(|()| files.index.write_all(&entry.encode()));
        if let Err(error) = written {
            // Half a piece would shift every offset behind it.
            files.data.set_len(self.end)?;
            files.index.set_len(self.entries * Entry::SIZE as u64)?;
            return Err(error);
        }
        self.end = entry.end();
        self.entries += 1;
        Ok(())
    }
}

impl Files {
    fn create(base: &Path) -> io::Result<Self> {
        let create = |path: PathBuf| {
            OpenOptions::new()
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        };
        let data = create(data_path(base))?;
        match create(index_path(base)) {
            Ok(index) => Ok(Self { data, index }),
            Err(error) => {
                // Or the next try would find the name taken.
                std::fs::remove_file(data_path(base))?;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_created_before_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let mut recorder = Recorder::new(base.clone());
        assert!(!data_path(&base).exists() && !index_path(&base).exists());
        recorder.append(Stream::Stderr, b"oops");
        recorder.append(Stream::Stdout, b"\xff\n");
        assert_eq!(std::fs::read(data_path(&base)).unwrap(), b"oops\xff\n");
        let index = std::fs::read(index_path(&base)).unwrap();
        let (entries, rest) = index.as_chunks::<{ Entry::SIZE }>();
        let entries: Vec<_> = entries.iter().map(|e| Entry::decode(e).unwrap()).collect();
        assert!(rest.is_empty());
        assert_eq!((entries[0].offset, entries[0].end()), (0, 4));
        assert_eq!((entries[1].offset, entries[1].end()), (4, 6));
        assert_eq!(entries[0].stream, Stream::Stderr);
        assert_eq!(recorder.end(), 6);
        assert_eq!(recorder.lost(), None);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(dir.path().join("no such folder/job"));
        recorder.append(Stream::Stdout, b"abc");
        recorder.append(Stream::Stdout, b"de");
        assert_eq!(recorder.end(), 0);
        let lost = recorder.lost().unwrap();
        assert_eq!(lost.bytes, 5);
        assert!(lost.why.contains("No such file"), "{}", lost.why);
    }

    proptest! {
        #[test]
        fn an_entry_survives_the_file(
            offset in 0..u64::MAX / 2, time_us: i64, length in 1u32.., stdout: bool,
        ) {
            let stream = if stdout { Stream::Stdout } else { Stream::Stderr };
            let entry = Entry { offset, time_us, length, stream };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn any_bytes_are_an_entry_or_refused(bytes: [u8; Entry::SIZE]) {
            if let Some(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(entry.encode(), bytes);
            }
        }
    }
}
