//! Writes the files of a job's output; their format is that of `record.rs`.
//!
//! Neither file exists before the first byte. The bytes are written before their
//! entry. Nothing here waits for the disk: the worker has the files
//! synced, or in its absence the shim.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rustix::fs::{FallocateFlags, fallocate, fstat};

use super::{
    protocol::OutputLost,
    record::{Entry, GapCause, PIECE, Stream, data_path, index_path, with_ending},
};

/// The most output that is carried over to new files, in bytes, where old output
/// cannot be given back otherwise.
const CARRIED: u64 = 4 * 1024 * 1024;

/// How many entries are read at once.
const ENTRIES: u64 = 256;

/// Gives the beginning of a file back to the disk.
type GiveBack = fn(&File, u64) -> io::Result<()>;

/// Writes the two files.
pub(super) struct Recorder {
    base: PathBuf,
    files: Option<Arc<Files>>,
    /// How much the job has written.
    end: u64,
    /// How many entries are in the index, those that were given back included.
    entries: u64,
    time_us: i64,
    limit: u64,
    /// The first entry that was not given back to the disk, and its offset.
    kept: (u64, u64),
    /// The bytes of all entries that were not given back.
    held: u64,
    lost: Option<OutputLost>,
    /// Why what lies between the last entry and the next is missing.
    gap: GapCause,
    /// `None`: the file system cannot make holes.
    give_back: Option<GiveBack>,
}

/// The two files.
pub(super) struct Files {
    base: PathBuf,
    data: File,
    index: File,
}

impl Recorder {
    /// Keeps the last `limit` bytes, with their entries, and up to an eighth more.
    pub(super) fn new(base: PathBuf, limit: u64) -> Self {
        Self {
            base,
            files: None,
            end: 0,
            entries: 0,
            time_us: 0,
            limit,
            kept: (0, 0),
            held: 0,
            lost: None,
            gap: GapCause::Unknown,
            give_back: Some(make_hole),
        }
    }

    /// How much the job has written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What could not be recorded, or was removed.
    pub(super) fn lost(&self) -> Option<OutputLost> {
        self.lost.clone()
    }

    /// The files, once there is output.
    pub(super) fn files(&self) -> Option<Arc<Files>> {
        self.files.clone()
    }

    /// Records one piece. A job does not suffer from a full disk: what cannot be
    /// written becomes a gap, and the next piece is tried again.
    pub(super) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        if self.files.as_ref().is_some_and(|files| files.are_removed()) {
            self.begin_after_removal();
        }
        if let Err(error) = self.write(stream, bytes) {
            let cause = GapCause::of(&error);
            self.lose(bytes.len() as u64, error.to_string(), cause);
        }
        self.end += bytes.len() as u64;
        if self.size() > self.limit.saturating_add(self.limit / 8) {
            self.shrink();
        }
    }

    fn lose(&mut self, bytes: u64, why: String, cause: GapCause) {
        self.gap = self.gap.or(cause);
        let lost = self.lost.get_or_insert(OutputLost {
            bytes: 0,
            why,
            cause,
        });
        lost.bytes += bytes;
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if !Entry::takes(self.end) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let files = match &self.files {
            Some(files) => files,
            None => self.files.insert(Arc::new(Files::create(&self.base)?)),
        };
        self.time_us = self.time_us.max(Timestamp::now().as_microsecond());
        // At fixed places, so that what a failed write left is written over.
        files.data.write_all_at(bytes, self.end)?;
        let entry = Entry {
            gap_before: self.gap,
            ..Entry::of(self.end, self.time_us, stream, bytes)
        };
        files.put(self.entries, &entry)?;
        self.gap = GapCause::Unknown;
        self.entries += 1;
        self.held += bytes.len() as u64;
        Ok(())
    }

    /// What the files take up on the disk, in bytes.
    fn size(&self) -> u64 {
        self.held + (self.entries - self.kept.0) * Entry::SIZE as u64
    }

    /// Gives all but the last `limit` bytes back to the disk, whole entries at a
    /// time.
    fn shrink(&mut self) {
        let Some(files) = self.files.clone() else {
            return;
        };
        if let Some(give_back) = self.give_back {
            match self.give_back(&files, give_back) {
                Ok(()) => return,
                // It would fail each time.
                Err(_) => self.give_back = None,
            }
        }
        if self.rewrite(&files).is_err() {
            // Without room even for that all of it goes, which needs none.
            self.empty(&files);
        }
    }

    /// Leaves holes, which read as zeros, and these are no entry.
    fn give_back(&mut self, files: &Files, give_back: GiveBack) -> io::Result<()> {
        let (mut number, mut offset) = self.kept;
        let (mut held, mut size) = (self.held, self.size());
        'all: while number < self.entries {
            let entries = files.entries(number, ENTRIES.min(self.entries - number))?;
            for entry in entries {
                let length = entry.map_or(0, |entry| u64::from(entry.length));
                let left = size.saturating_sub(length + Entry::SIZE as u64);
                if left < self.limit {
                    break 'all;
                }
                offset = entry.map_or(offset, |entry| entry.end());
                (number, held, size) = (number + 1, held.saturating_sub(length), left);
            }
        }
        // The index first: bytes without an entry are a gap, an entry without
        // its bytes would be taken for damage.
        give_back(&files.index, number * Entry::SIZE as u64)?;
        give_back(&files.data, offset)?;
        (self.kept, self.held) = ((number, offset), held);
        Ok(())
    }

    /// Puts new files in the place of the old ones, with the last of what these
    /// have at the same offsets.
    fn rewrite(&mut self, old: &Files) -> io::Result<()> {
        let carried = CARRIED.min(self.limit / 8);
        let mut first = self.entries;
        let mut entries = Vec::new();
        let mut bytes = 0;
        'all: while first > 0 {
            let from = first.saturating_sub(ENTRIES);
            for entry in old.entries(from, first - from)?.into_iter().rev() {
                let Some(entry) = entry else { break 'all };
                bytes += u64::from(entry.length) + Entry::SIZE as u64;
                if bytes > carried {
                    break 'all;
                }
                entries.push(entry);
            }
            first = from;
        }
        let base = with_ending(&self.base, ".new");
        for path in [data_path(&base), index_path(&base)] {
            // What an attempt that failed has left.
            let _ = fs::remove_file(path);
        }
        let mut new = Files::create(&base)?;
        let carried = copy(&entries, old, &new).and_then(|held| {
            fs::rename(data_path(&base), data_path(&self.base))?;
            fs::rename(index_path(&base), index_path(&self.base))?;
            Ok(held)
        });
        let held = match carried {
            Ok(held) => held,
            Err(error) => {
                for path in [data_path(&base), index_path(&base)] {
                    let _ = fs::remove_file(path);
                }
                return Err(error);
            }
        };
        new.base.clone_from(&self.base);
        self.files = Some(Arc::new(new));
        self.kept = (0, entries.last().map_or(self.end, |entry| entry.offset));
        (self.entries, self.held) = (entries.len() as u64, held);
        if entries.is_empty() {
            self.gap = GapCause::Limit;
        }
        Ok(())
    }

    fn empty(&mut self, files: &Files) {
        // The index first, as above. Nothing else can be done where this fails.
        let _ = files.index.set_len(0);
        let _ = files.data.set_len(0);
        self.none_held(GapCause::Limit);
    }

    /// The files, or one of them, were removed from outside.
    fn begin_after_removal(&mut self) {
        for path in [data_path(&self.base), index_path(&self.base)] {
            // One without the other is of no use, and would be in the way.
            let _ = fs::remove_file(path);
        }
        self.files = None;
        if self.held > 0 {
            let why = "the files of the output were removed".to_owned();
            self.lose(self.held, why, GapCause::Removed);
        }
        self.none_held(GapCause::Removed);
    }

    fn none_held(&mut self, gap: GapCause) {
        (self.kept, self.entries, self.held) = ((0, self.end), 0, 0);
        self.gap = gap;
    }
}

/// Copies pieces, the last first, from one pair of files to the other, where they
/// come in their order. Returns how many bytes that were.
fn copy(entries: &[Entry], old: &Files, new: &Files) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut held = 0;
    for (number, entry) in entries.iter().rev().enumerate() {
        let piece = &mut buffer[..entry.length as usize];
        old.data.read_exact_at(piece, entry.offset)?;
        new.data.write_all_at(piece, entry.offset)?;
        let mut entry = *entry;
        if number == 0 {
            entry.gap_before = GapCause::Limit;
        }
        new.put(number as u64, &entry)?;
        held += u64::from(entry.length);
    }
    Ok(held)
}

fn make_hole(file: &File, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, hole, 0, length)?)
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
            Ok(index) => Ok(Self {
                base: base.to_owned(),
                data,
                index,
            }),
            Err(error) => {
                // Or the next try would find the name taken.
                fs::remove_file(data_path(base))?;
                Err(error)
            }
        }
    }

    /// Whether one of them was removed.
    fn are_removed(&self) -> bool {
        let is_removed = |file: &File| fstat(file).is_ok_and(|stat| stat.st_nlink == 0);
        is_removed(&self.data) || is_removed(&self.index)
    }

    fn put(&self, number: u64, entry: &Entry) -> io::Result<()> {
        let place = number * Entry::SIZE as u64;
        self.index.write_all_at(&entry.encode(), place)
    }

    fn entries(&self, first: u64, count: u64) -> io::Result<Vec<Option<Entry>>> {
        let mut bytes = vec![0; count as usize * Entry::SIZE];
        self.index
            .read_exact_at(&mut bytes, first * Entry::SIZE as u64)?;
        Ok(bytes.as_chunks().0.iter().map(Entry::decode).collect())
    }

    /// Returns once all of them is on the disk: the bytes, their entries, and the
    /// names of both.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.data.sync_data()?;
        self.index.sync_data()?;
        match self.base.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn entries(base: &Path) -> Vec<Option<Entry>> {
        let index = fs::read(index_path(base)).unwrap();
        index.as_chunks().0.iter().map(Entry::decode).collect()
    }

    #[test]
    fn nothing_is_created_before_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let mut recorder = Recorder::new(base.clone(), u64::MAX);
        assert!(!data_path(&base).exists() && !index_path(&base).exists());
        recorder.append(Stream::Stderr, b"oops");
        recorder.append(Stream::Stdout, b"\xff\n");
        assert_eq!(fs::read(data_path(&base)).unwrap(), b"oops\xff\n");
        let entries: Vec<_> = entries(&base).into_iter().map(Option::unwrap).collect();
        assert_eq!((entries[0].offset, entries[0].end()), (0, 4));
        assert_eq!((entries[1].offset, entries[1].end()), (4, 6));
        assert_eq!(entries[0].stream, Stream::Stderr);
        assert!(entries[0].is_of(b"oops") && !entries[0].is_of(b"\0\0\0\0"));
        assert_eq!(recorder.end(), 6);
        assert_eq!(recorder.lost(), None);
        recorder.files().unwrap().sync().unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("no such folder");
        let base = folder.join("job");
        let mut recorder = Recorder::new(base.clone(), u64::MAX);
        recorder.append(Stream::Stdout, b"abc");
        recorder.append(Stream::Stdout, b"de");
        assert_eq!(recorder.end(), 5, "offsets count what the job wrote");
        let lost = recorder.lost().unwrap();
        assert_eq!(lost.bytes, 5);
        assert!(lost.why.contains("No such file"), "{}", lost.why);
        fs::create_dir(folder).unwrap();
        recorder.append(Stream::Stdout, b"f");
        let entry = entries(&base)[0].unwrap();
        assert_eq!((entry.offset, entry.gap_before), (5, GapCause::NotWritten));
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes_back_to_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let limit = 1024 * 1024;
        let mut recorder = Recorder::new(base.clone(), limit);
        let piece = vec![7; 64 * 1024];
        for _ in 0..100 {
            recorder.append(Stream::Stdout, &piece);
        }
        assert_eq!((recorder.end(), recorder.lost()), (6_553_600, None));
        let data = fs::metadata(data_path(&base)).unwrap();
        assert_eq!(data.len(), 6_553_600, "offsets stay as they were");
        assert!(
            data.blocks() * 512 <= limit + limit / 4,
            "{}",
            data.blocks()
        );
        let entries = entries(&base);
        let kept: Vec<_> = entries.iter().flatten().collect();
        assert!(kept.len() as u64 * (65_536 + 24) >= limit);
        assert!(
            entries[..entries.len() - kept.len()]
                .iter()
                .all(Option::is_none)
        );
    }

    /// What both files take up.
    fn on_disk(base: &Path) -> u64 {
        let of = |path: PathBuf| fs::metadata(path).unwrap().blocks() * 512;
        of(data_path(base)) + of(index_path(base))
    }

    #[test]
    fn the_index_counts_in_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let limit = 64 * 1024;
        let mut recorder = Recorder::new(base.clone(), limit);
        for _ in 0..20_000 {
            recorder.append(Stream::Stdout, b"x");
        }
        // Blocks in which something is left are not given back.
        let bound = limit + limit / 8 + 4 * 4096;
        assert!(on_disk(&base) <= bound, "{}", on_disk(&base));
    }

    #[test]
    fn the_limit_holds_where_there_are_no_holes() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let limit = 1024 * 1024;
        let mut recorder = Recorder::new(base.clone(), limit);
        recorder.give_back = Some(|_, _| Err(io::ErrorKind::Unsupported.into()));
        for number in 0..40_000_u64 {
            recorder.append(Stream::Stdout, &[number as u8; 100]);
            if number % 1000 == 0 {
                let bound = limit + limit / 4;
                assert!(on_disk(&base) <= bound, "{}", on_disk(&base));
            }
        }
        assert_eq!(recorder.end(), 4_000_000);
        assert_eq!(recorder.lost(), None);
        let entries: Vec<_> = entries(&base).into_iter().map(Option::unwrap).collect();
        let first = entries[0];
        assert_eq!(first.gap_before, GapCause::Limit);
        assert_eq!(entries.last().unwrap().end(), 4_000_000);
        assert!(4_000_000 - first.offset >= limit / 16, "{first:?}");
        let data = File::open(data_path(&base)).unwrap();
        let mut bytes = [0; 100];
        for entry in entries {
            data.read_exact_at(&mut bytes, entry.offset).unwrap();
            assert!(entry.is_of(&bytes), "{entry:?}");
        }
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 2, "nothing else is left there");
    }

    #[test]
    fn the_limit_holds_where_there_is_no_room_for_new_files() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let mut recorder = Recorder::new(base.clone(), 64 * 1024);
        recorder.give_back = None;
        recorder.append(Stream::Stdout, b"x");
        // A folder in the way: they cannot be made.
        fs::create_dir(data_path(&with_ending(&base, ".new"))).unwrap();
        for _ in 0..100 {
            recorder.append(Stream::Stdout, &[1; 4096]);
            assert!(on_disk(&base) <= 96 * 1024, "{}", on_disk(&base));
        }
        let entries = entries(&base);
        assert_eq!(entries[0].unwrap().gap_before, GapCause::Limit);
        assert_eq!(entries.last().unwrap().unwrap().end(), recorder.end());
    }

    #[test]
    fn after_its_files_were_removed_the_output_is_recorded_on() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        for remove in [data_path, index_path] {
            let mut recorder = Recorder::new(base.clone(), u64::MAX);
            recorder.append(Stream::Stdout, b"before\n");
            fs::remove_file(remove(&base)).unwrap();
            recorder.append(Stream::Stdout, b"after\n");
            recorder.append(Stream::Stdout, b"more\n");
            let lost = recorder.lost().unwrap();
            assert_eq!((lost.bytes, lost.cause), (7, GapCause::Removed));
            let entries = entries(&base);
            let first = entries[0].unwrap();
            assert_eq!((first.offset, first.gap_before), (7, GapCause::Removed));
            assert_eq!(entries[1].unwrap().gap_before, GapCause::Unknown);
            assert_eq!(
                fs::read(data_path(&base)).unwrap(),
                b"\0\0\0\0\0\0\0after\nmore\n"
            );
            fs::remove_file(data_path(&base)).unwrap();
            fs::remove_file(index_path(&base)).unwrap();
        }
    }
}
