//! Records a job's output: one file with the bytes of both streams in the order
//! in which they arrived, and beside it an index of fixed-size entries.
//!
//! Neither file exists before the first byte. The bytes are written before their
//! entry, so an entry never points at bytes that are not there. Offsets count
//! every byte the job wrote: what is not recorded (the disk was full) or no longer
//! (the limit) is a gap between two entries, and a hole in the files.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::{
    fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek},
    io::Errno,
};

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
    limit: u64,
    /// The first entry that was not given back to the disk, and its offset.
    kept: (u64, u64),
    lost: Option<OutputLost>,
}

struct Files {
    data: File,
    index: File,
}

impl Recorder {
    /// Keeps the last `limit` bytes, and up to an eighth more.
    pub(super) fn new(base: PathBuf, limit: u64) -> Self {
        Self {
            base,
            files: None,
            end: 0,
            entries: 0,
            time_us: 0,
            limit,
            kept: (0, 0),
            lost: None,
        }
    }

    /// How much the job has written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What could not be recorded.
    pub(super) fn lost(&self) -> Option<OutputLost> {
        self.lost.clone()
    }

    /// Records one piece. A job does not suffer from a full disk: what cannot be
    /// written becomes a gap, and the next piece is tried again.
    pub(super) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        if let Err(error) = self.write(stream, bytes) {
            let lost = self.lost.get_or_insert_with(|| OutputLost {
                bytes: 0,
                why: error.to_string(),
            });
            lost.bytes += bytes.len() as u64;
        }
        self.end += bytes.len() as u64;
        if self.end - self.kept.1 > self.limit.saturating_add(self.limit / 8) {
            // Without holes the file just stays longer than it was meant to be.
            let _ = self.give_back();
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
        // At fixed places, so that what a failed write left is written over.
        files.data.write_all_at(bytes, entry.offset)?;
        let place = self.entries * Entry::SIZE as u64;
        files.index.write_all_at(&entry.encode(), place)?;
        self.entries += 1;
        Ok(())
    }

    /// Gives all but the last `limit` bytes back to the disk, whole entries at a
    /// time. The holes read as zeros, which no entry is.
    fn give_back(&mut self) -> io::Result<()> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        let (mut number, mut offset) = self.kept;
        let first = self.end.saturating_sub(self.limit);
        let mut bytes = [0; Entry::SIZE];
        while number < self.entries {
            files
                .index
                .read_exact_at(&mut bytes, number * Entry::SIZE as u64)?;
            let Some(entry) = Entry::decode(&bytes).filter(|entry| entry.end() <= first) else {
                break;
            };
            (number, offset) = (number + 1, entry.end());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if offset > 0 {
            // The index first: bytes without an entry are a gap, an entry without
            // its bytes would be a lie.
            fallocate(&files.index, hole, 0, number * Entry::SIZE as u64)?;
            fallocate(&files.data, hole, 0, offset)?;
        }
        self.kept = (number, offset);
        Ok(())
    }
}

impl Files {
    fn create(base: &Path) -> io::Result<Self> {
        let create = |path: PathBuf| {
            OpenOptions::new()
                .read(true)
                .write(true)
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

/// Makes the two files of a job whose shim was killed agree again, and returns
/// the end of the output. Entries whose bytes are not there are dropped, bytes
/// without an entry get one; which stream they came by, nobody knows any more,
/// and they are taken for standard output. Only for files that nobody writes to.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn repair(base: &Path) -> io::Result<u64> {
    let mut access = OpenOptions::new();
    access.read(true).write(true);
    let data = match open(&data_path(base), &mut access) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let index = open(&index_path(base), access.create(true).mode(0o600))?;
    let length = data.metadata()?.len();
    let size = Entry::SIZE as u64;
    let mut entries = index.metadata()?.len() / size;
    let mut last = None;
    while entries > 0 {
        let mut bytes = [0; Entry::SIZE];
        index.read_exact_at(&mut bytes, (entries - 1) * size)?;
        last = Entry::decode(&bytes).filter(|entry| entry.end() <= length);
        if last.is_some() {
            break;
        }
        entries -= 1;
    }
    index.set_len(entries * size)?;
    let mut end = last.map_or(0, |entry| entry.end());
    while end < length {
        // Holes were given back, or never written: they are no output.
        let offset = match seek(&data, SeekFrom::Data(end)) {
            Ok(offset) => offset,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let stop = seek(&data, SeekFrom::Hole(offset))?;
        let entry = Entry {
            offset,
            time_us: last.map_or_else(|| Timestamp::now().as_microsecond(), |last| last.time_us),
            length: u32::try_from(stop - offset).unwrap_or(u32::MAX),
            stream: Stream::Stdout,
        };
        index.write_all_at(&entry.encode(), entries * size)?;
        (end, entries) = (entry.end(), entries + 1);
    }
    Ok(end.max(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_created_before_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let mut recorder = Recorder::new(base.clone(), u64::MAX);
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
        let mut recorder = Recorder::new(dir.path().join("no such folder/job"), u64::MAX);
        recorder.append(Stream::Stdout, b"abc");
        recorder.append(Stream::Stdout, b"de");
        assert_eq!(recorder.end(), 5, "offsets count what the job wrote");
        let lost = recorder.lost().unwrap();
        assert_eq!(lost.bytes, 5);
        assert!(lost.why.contains("No such file"), "{}", lost.why);
    }

    fn entries(base: &Path) -> Vec<Option<Entry>> {
        let index = std::fs::read(index_path(base)).unwrap();
        index.as_chunks().0.iter().map(Entry::decode).collect()
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes_back_to_the_disk() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let limit = 1024 * 1024;
        let mut recorder = Recorder::new(base.clone(), limit);
        let piece = vec![7; 64 * 1024];
        for _ in 0..100 {
            recorder.append(Stream::Stdout, &piece);
        }
        assert_eq!((recorder.end(), recorder.lost()), (6_553_600, None));
        let data = File::open(data_path(&base)).unwrap().metadata().unwrap();
        assert_eq!(data.len(), 6_553_600, "offsets stay as they were");
        assert!(
            data.blocks() * 512 <= limit + limit / 4,
            "{}",
            data.blocks()
        );
        let entries = entries(&base);
        let kept: Vec<_> = entries.iter().flatten().collect();
        assert!(kept.len() as u64 * 65_536 >= limit);
        assert!(
            entries[..entries.len() - kept.len()]
                .iter()
                .all(Option::is_none)
        );
    }

    #[test]
    fn a_torn_record_is_repaired_from_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        assert_eq!(repair(&base).unwrap(), 0);
        let mut recorder = Recorder::new(base.clone(), u64::MAX);
        for piece in ["one\n", "two\n", "three\n"] {
            recorder.append(Stream::Stderr, piece.as_bytes());
        }
        let index = std::fs::read(index_path(&base)).unwrap();
        let whole = entries(&base);
        for cut in 0..=index.len() {
            std::fs::write(index_path(&base), &index[..cut]).unwrap();
            assert_eq!(repair(&base).unwrap(), 14);
            let repaired = entries(&base);
            let kept = cut / Entry::SIZE;
            assert_eq!(repaired[..kept], whole[..kept]);
            assert_eq!(repaired.last().unwrap().unwrap().end(), 14);
        }
        for cut in 0..=14 {
            std::fs::write(index_path(&base), &index).unwrap();
            let data = File::options().write(true).open(data_path(&base)).unwrap();
            data.set_len(cut).unwrap();
            assert_eq!(repair(&base).unwrap(), cut);
            data.set_len(14).unwrap();
        }
    }

    #[test]
    fn a_record_is_not_read_or_repaired_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "hunter2").unwrap();
        for swapped in [data_path(&base), index_path(&base)] {
            std::fs::write(data_path(&base), "output").unwrap();
            std::fs::write(index_path(&base), "").unwrap();
            std::fs::remove_file(&swapped).unwrap();
            std::os::unix::fs::symlink(&secret, &swapped).unwrap();
            assert!(repair(&base).is_err());
            assert!(open(&swapped, File::options().read(true)).is_err());
            std::fs::remove_file(&swapped).unwrap();
            std::fs::create_dir(&swapped).unwrap();
            assert!(open(&swapped, File::options().read(true)).is_err());
            std::fs::remove_dir(&swapped).unwrap();
        }
        assert_eq!(std::fs::read(&secret).unwrap(), b"hunter2");
    }

    #[test]
    fn a_repaired_record_does_not_take_holes_for_output() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let mut recorder = Recorder::new(base.clone(), 1024 * 1024);
        for _ in 0..100 {
            recorder.append(Stream::Stdout, &[7; 64 * 1024]);
        }
        std::fs::remove_file(index_path(&base)).unwrap();
        assert_eq!(repair(&base).unwrap(), 6_553_600);
        let entries = entries(&base);
        let first = entries[0].unwrap();
        assert!(first.offset > 4_000_000, "{first:?}");
        assert_eq!(entries.last().unwrap().unwrap().end(), 6_553_600);
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
