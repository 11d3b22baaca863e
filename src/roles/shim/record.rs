//! The files in which a job's output is recorded: one with the bytes of both
//! streams in the order in which they arrived, and beside it an index of
//! fixed-size entries, one for each piece.
//!
//! Offsets count every byte the job wrote: what is not recorded is a gap between
//! two entries, and a hole in the files. An entry has a checksum of itself and one
//! of its bytes, because a power loss may leave either without the other: what
//! does not fit its checksum is not shown. Who writes the files is `recorder.rs`,
//! who mends them after the writer was killed `repair.rs`.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

pub use super::repair::{Repaired, repair};

/// The longest piece of output, in bytes: what a pipe holds (pipe(7)).
pub const PIECE: usize = 64 * 1024;

/// Which of the two streams a piece of output came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why output is missing from the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// It is not known.
    #[default]
    Unknown,
    /// The limit of a job's output: the oldest is given back to the disk.
    Limit,
    /// There was no room for it on the disk.
    DiskFull,
    /// It could not be written, for another reason.
    NotWritten,
    /// The files were removed while the job ran.
    Removed,
    /// What is in the files is not what was written there.
    Damaged,
    /// The machine stopped before it was on the disk.
    PowerLoss,
}

impl GapCause {
    /// All of them, each at its number in an entry.
    const ALL: [Self; 7] = [
        Self::Unknown,
        Self::Limit,
        Self::DiskFull,
        Self::NotWritten,
        Self::Removed,
        Self::Damaged,
        Self::PowerLoss,
    ];

    /// Why a write failed.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::NotWritten,
        }
    }

    /// This cause, or the other one where this is not known.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Unknown => other,
            known => known,
        }
    }

    fn number(self) -> u8 {
        let at = Self::ALL.iter().position(|cause| *cause == self);
        at.unwrap_or_default() as u8
    }
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
    /// The CRC-32 of its bytes; `None`: an older version wrote it.
    pub checksum: Option<u32>,
    /// Why output is missing just before it, where that was known.
    pub gap_before: GapCause,
}

/// Offsets and times take seven bytes each.
const SEVEN_BYTES: u64 = 1 << 56;

impl Entry {
    /// How long an entry is in the index file, in bytes.
    pub const SIZE: usize = 24;

    /// The entry of a piece of at most [`PIECE`] bytes.
    pub fn of(offset: u64, time_us: i64, stream: Stream, bytes: &[u8]) -> Self {
        Self {
            offset,
            time_us,
            length: bytes.len() as u32,
            stream,
            checksum: Some(crc32fast::hash(bytes)),
            gap_before: GapCause::Unknown,
        }
    }

    /// The first byte after the piece.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }

    /// Whether these are its bytes, as far as that can be told.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        let fits = |checksum| checksum == crc32fast::hash(bytes);
        bytes.len() == self.length as usize && self.checksum.is_none_or(fits)
    }

    /// Little-endian. Byte 20 says which version it is. Since checksums: offset (7
    /// bytes), time (7), length less one (2), checksum of the bytes (4), 0x80 plus
    /// four times the number of `gap_before` plus the stream (1: stdout, 2: stderr),
    /// and the lower 24 bits of the CRC-32 of all that. Before: offset (8), time
    /// (8), length (4), stream (1), three zeros.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let stream = match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        let Some(checksum) = self.checksum else {
            bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
            bytes[8..16].copy_from_slice(&self.time_us.to_le_bytes());
            bytes[16..20].copy_from_slice(&self.length.to_le_bytes());
            bytes[20] = stream;
            return bytes;
        };
        let length = self.length.saturating_sub(1) as u16;
        bytes[..7].copy_from_slice(&self.offset.to_le_bytes()[..7]);
        bytes[7..14].copy_from_slice(&self.time_us.to_le_bytes()[..7]);
        bytes[14..16].copy_from_slice(&length.to_le_bytes());
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        bytes[20] = 0x80 | self.gap_before.number() << 2 | stream;
        let own = crc32fast::hash(&bytes[..21]);
        bytes[21..].copy_from_slice(&own.to_le_bytes()[..3]);
        bytes
    }

    /// The reverse of [`Entry::encode`]; `None` for what it never returns.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let stream = match bytes[20] & 3 {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        let entry = match bytes[20] & 0x80 {
            0 => Self::decode_old(bytes, stream)?,
            _ => Self::decode_new(bytes, stream)?,
        };
        let fits = entry.offset.checked_add(entry.length.into()).is_some();
        (entry.length > 0 && fits).then_some(entry)
    }

    fn decode_new(bytes: &[u8; Self::SIZE], stream: Stream) -> Option<Self> {
        let own = crc32fast::hash(&bytes[..21]);
        if bytes[21..] != own.to_le_bytes()[..3] {
            return None;
        }
        let seven = |at: usize| {
            let mut number = [0; 8];
            number[..7].copy_from_slice(&bytes[at..at + 7]);
            u64::from_le_bytes(number)
        };
        Some(Self {
            offset: seven(0),
            time_us: seven(7).cast_signed(),
            length: u32::from(u16::from_le_bytes([bytes[14], bytes[15]])) + 1,
            stream,
            checksum: Some(u32::from_le_bytes([
                bytes[16], bytes[17], bytes[18], bytes[19],
            ])),
            gap_before: *GapCause::ALL.get(usize::from(bytes[20] >> 2 & 31))?,
        })
    }

    fn decode_old(bytes: &[u8; Self::SIZE], stream: Stream) -> Option<Self> {
        if bytes[20] > 2 || bytes[21..] != [0; 3] {
            return None;
        }
        let (offset, rest) = bytes.split_first_chunk()?;
        let (time_us, rest) = rest.split_first_chunk()?;
        let (length, _) = rest.split_first_chunk()?;
        Some(Self {
            offset: u64::from_le_bytes(*offset),
            time_us: i64::from_le_bytes(*time_us),
            length: u32::from_le_bytes(*length),
            stream,
            checksum: None,
            gap_before: GapCause::Unknown,
        })
    }

    /// Whether there is room in an entry for a piece that begins here.
    pub(super) fn takes(offset: u64) -> bool {
        offset < SEVEN_BYTES - PIECE as u64
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

/// Opens a file of the record as the shim made it: not through a link, and
/// nothing but a file, whatever a job with the rights for it has put there.
///
/// # Errors
///
/// When it is something else, or cannot be opened.
pub fn open(path: &Path, access: &mut OpenOptions) -> io::Result<File> {
    // Without NONBLOCK a pipe would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = access.custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Returns once everything that the two files hold is on the disk: the bytes, and
/// then their entries. The number is that of the first file in its file system: with
/// another one it is a new file. Without files there is nothing to do.
///
/// # Errors
///
/// When the disk does not take it. Asking again would say nothing.
pub fn sync(base: &Path) -> io::Result<Option<u64>> {
    let mut first = None;
    for path in [data_path(base), index_path(base)] {
        match open(&path, File::options().read(true)) {
            Ok(file) => {
                file.sync_data()?;
                first.get_or_insert(file.metadata()?.ino());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(first)
}

pub(super) fn with_ending(base: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(base);
    path.push(ending);
    path.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Entry> {
        let cause = prop::sample::select(GapCause::ALL.as_slice());
        (
            0..1u64 << 50,
            0i64..1 << 55,
            1u32..=65_536,
            any::<bool>(),
            any::<u32>(),
            cause,
        )
            .prop_map(
                |(offset, time_us, length, stdout, checksum, gap_before)| Entry {
                    offset,
                    time_us,
                    length,
                    stream: if stdout {
                        Stream::Stdout
                    } else {
                        Stream::Stderr
                    },
                    checksum: Some(checksum),
                    gap_before,
                },
            )
    }

    proptest! {
        #[test]
        fn an_entry_survives_the_file(entry in entries()) {
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn an_entry_of_an_older_version_is_read(
            offset in 0..u64::MAX / 2, time_us: i64, length in 1u32.., stdout: bool,
        ) {
            let stream = if stdout { Stream::Stdout } else { Stream::Stderr };
            let (checksum, gap_before) = (None, GapCause::Unknown);
            let entry = Entry { offset, time_us, length, stream, checksum, gap_before };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn any_bytes_are_an_entry_or_refused(bytes: [u8; Entry::SIZE]) {
            if let Some(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(entry.encode(), bytes);
            }
        }

        #[test]
        fn an_entry_of_which_a_part_is_missing_is_none(
            entry in entries(), cut in 1usize..Entry::SIZE / 8, first: bool,
        ) {
            // A sector ends after 8 or 16 bytes of an entry, never elsewhere.
            let mut bytes = entry.encode();
            match first {
                true => bytes[..cut * 8].fill(0),
                false => bytes[cut * 8..].fill(0),
            }
            prop_assume!(bytes != entry.encode());
            prop_assert_eq!(Entry::decode(&bytes), None);
        }
    }

    #[test]
    fn a_write_that_fails_has_a_cause() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(GapCause::of(&full), GapCause::DiskFull);
        let broken = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(GapCause::of(&broken), GapCause::NotWritten);
    }
}
