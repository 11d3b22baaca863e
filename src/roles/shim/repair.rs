//! Makes the files of a job whose shim was killed, or whose machine stopped, agree
//! again.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use jiff::Timestamp;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::record::{Entry, PIECE, Stream, data_path, index_path, open};

/// How many entries are read at once.
const ENTRIES: u64 = 1024;

/// How much of the output is held against its checksums, in bytes, from the end
/// back: more than a machine writes between two syncs. Readers check all of it.
const CHECKED: u64 = 64 * 1024 * 1024;

/// What is left of a job's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Its end, as far as the files know.
    pub end: u64,
    /// How many of the bytes before are known to be lost, which the limit of the
    /// output has no part in.
    pub missing: u64,
}

struct Files {
    data: File,
    index: File,
    /// The length of `data`.
    length: u64,
}

/// Makes the two files agree, syncs them, and says what they hold. What is no
/// entry at the end of the index is cut off. In the boot of the machine in which
/// they were written, bytes without an entry get one; which stream they came by,
/// is not known any more, and they are taken for standard output. After another
/// boot such bytes may be anything, and are not taken for output. Only for files that
/// are no longer written to.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn repair(base: &Path, same_boot: bool) -> io::Result<Repaired> {
    let mut access = OpenOptions::new();
    access.read(true).write(true);
    let data = match open(&data_path(base), &mut access) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Repaired::default()),
        Err(error) => return Err(error),
    };
    let index = open(&index_path(base), access.create(true).mode(0o600))?;
    let length = data.metadata()?.len();
    let files = Files {
        data,
        index,
        length,
    };
    let mut last = files.cut()?;
    if same_boot {
        last = files.adopt(last)?;
    }
    let end = last.map_or(0, |(_, entry)| entry.end()).max(length);
    let missing = files.missing(last.map_or(0, |(number, _)| number + 1), end)?;
    files.data.sync_data()?;
    files.index.sync_data()?;
    Ok(Repaired { end, missing })
}

impl Files {
    /// The entries with numbers from `first` on.
    fn entries(&self, first: u64, count: u64) -> io::Result<Vec<Option<Entry>>> {
        let mut bytes = vec![0; count as usize * Entry::SIZE];
        let place = first * Entry::SIZE as u64;
        self.index.read_exact_at(&mut bytes, place)?;
        Ok(bytes.as_chunks().0.iter().map(Entry::decode).collect())
    }

    /// Cuts off what is no entry. Returns the last one, with its number.
    fn cut(&self) -> io::Result<Option<(u64, Entry)>> {
        let size = Entry::SIZE as u64;
        let mut count = self.index.metadata()?.len() / size;
        let mut last = None;
        while count > 0 && last.is_none() {
            let first = count.saturating_sub(ENTRIES);
            let entries = self.entries(first, count - first)?;
            let found = (first..count).zip(entries);
            last = found
                .filter_map(|(number, entry)| Some((number, entry?)))
                .last();
            count = last.map_or(first, |(number, _)| number + 1);
        }
        self.index.set_len(count * size)?;
        Ok(last)
    }

    /// Gives bytes after the last entry an entry.
    fn adopt(&self, mut last: Option<(u64, Entry)>) -> io::Result<Option<(u64, Entry)>> {
        let time_us = last.map(|(_, entry)| entry.time_us);
        let time_us = time_us.unwrap_or_else(|| Timestamp::now().as_microsecond());
        let mut buffer = vec![0; PIECE];
        loop {
            let end = last.map_or(0, |(_, entry)| entry.end());
            if end >= self.length {
                return Ok(last);
            }
            // Holes were given back, or never written: they are no output.
            let offset = match seek(&self.data, SeekFrom::Data(end)) {
                Ok(offset) => offset,
                Err(Errno::NXIO) => return Ok(last),
                Err(error) => return Err(error.into()),
            };
            let stop = seek(&self.data, SeekFrom::Hole(offset))?;
            let length = (stop - offset).min(PIECE as u64) as usize;
            self.data.read_exact_at(&mut buffer[..length], offset)?;
            let entry = Entry::of(offset, time_us.max(0), Stream::Stdout, &buffer[..length]);
            let number = last.map_or(0, |(number, _)| number + 1);
            let place = number * Entry::SIZE as u64;
            self.index.write_all_at(&entry.encode(), place)?;
            last = Some((number, entry));
        }
    }

    /// How many bytes before `end` are lost, as far as it is looked: those between
    /// entries, those after the last, and those that do not fit their checksums.
    fn missing(&self, count: u64, end: u64) -> io::Result<u64> {
        let (mut first, mut next) = (count, end);
        let (mut missing, mut checked) = (0, 0);
        let mut buffer = vec![0; PIECE];
        while first > 0 && checked < CHECKED {
            let from = first.saturating_sub(ENTRIES);
            for entry in self.entries(from, first - from)?.into_iter().rev() {
                let Some(entry) = entry.filter(|entry| entry.end() <= next) else {
                    continue;
                };
                missing += next - entry.end();
                next = entry.offset;
                if checked < CHECKED && !self.has(&entry, &mut buffer)? {
                    missing += u64::from(entry.length);
                }
                checked += u64::from(entry.length);
            }
            first = from;
        }
        // Before the first entry is what was given back, unless there is none.
        Ok(if next == end { end } else { missing })
    }

    fn has(&self, entry: &Entry, buffer: &mut [u8]) -> io::Result<bool> {
        if entry.end() > self.length {
            return Ok(false);
        }
        let Some(piece) = buffer.get_mut(..entry.length as usize) else {
            // Of an older version, without a checksum.
            return Ok(true);
        };
        self.data.read_exact_at(piece, entry.offset)?;
        Ok(entry.is_of(piece))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::roles::shim::recorder::Recorder;

    fn entries(base: &Path) -> Vec<Option<Entry>> {
        let index = fs::read(index_path(base)).unwrap();
        index.as_chunks().0.iter().map(Entry::decode).collect()
    }

    fn recorded(base: &Path, pieces: &[&str]) {
        let mut recorder = Recorder::new(base.to_owned(), u64::MAX);
        for piece in pieces {
            recorder.append(Stream::Stderr, piece.as_bytes());
        }
    }

    #[test]
    fn a_torn_record_is_repaired_from_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        assert_eq!(repair(&base, true).unwrap(), Repaired::default());
        recorded(&base, &["one\n", "two\n", "three\n"]);
        let index = fs::read(index_path(&base)).unwrap();
        let whole = entries(&base);
        for cut in 0..=index.len() {
            fs::write(index_path(&base), &index[..cut]).unwrap();
            let whole_again = Repaired {
                end: 14,
                missing: 0,
            };
            assert_eq!(repair(&base, true).unwrap(), whole_again);
            let repaired = entries(&base);
            let kept = cut / Entry::SIZE;
            assert_eq!(repaired[..kept], whole[..kept]);
            assert_eq!(repaired.last().unwrap().unwrap().end(), 14);
        }
        for cut in 0..=14 {
            fs::write(index_path(&base), &index).unwrap();
            let data = File::options().write(true).open(data_path(&base)).unwrap();
            data.set_len(cut).unwrap();
            let repaired = repair(&base, true).unwrap();
            assert_eq!(repaired.end, 14, "what was recorded is not forgotten");
            let there = [4, 8, 14].into_iter().filter(|end| *end <= cut).max();
            assert_eq!(repaired.missing, 14 - there.unwrap_or(0), "{cut}");
            fs::write(data_path(&base), "one\ntwo\nthree\n").unwrap();
        }
    }

    #[test]
    fn after_another_boot_bytes_without_an_entry_are_no_output() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        recorded(&base, &["one\n", "two\n", "three\n"]);
        let index = fs::read(index_path(&base)).unwrap();
        // The size reached the disk, the last entry and its bytes did not.
        let mut torn = index.clone();
        torn[2 * Entry::SIZE..].fill(0);
        fs::write(index_path(&base), &torn).unwrap();
        fs::write(data_path(&base), "one\ntwo\n\0\0\0\0\0\0").unwrap();
        let repaired = repair(&base, false).unwrap();
        assert_eq!((repaired.end, repaired.missing), (14, 6));
        assert_eq!(entries(&base).len(), 2, "no entry was made up");
        // The entries reached the disk, and not all bytes.
        fs::write(index_path(&base), &index).unwrap();
        fs::write(data_path(&base), "one\n\0\0\0\0three\n").unwrap();
        let repaired = repair(&base, false).unwrap();
        assert_eq!((repaired.end, repaired.missing), (14, 4));
        // Nothing but the sizes did.
        fs::write(index_path(&base), [0; 3 * Entry::SIZE]).unwrap();
        fs::write(data_path(&base), [0; 14]).unwrap();
        let repaired = repair(&base, false).unwrap();
        assert_eq!((repaired.end, repaired.missing), (14, 14));
        assert_eq!(entries(&base), []);
    }

    #[test]
    fn a_record_is_not_read_or_repaired_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let secret = dir.path().join("secret");
        fs::write(&secret, "hunter2").unwrap();
        for swapped in [data_path(&base), index_path(&base)] {
            fs::write(data_path(&base), "output").unwrap();
            fs::write(index_path(&base), "").unwrap();
            fs::remove_file(&swapped).unwrap();
            std::os::unix::fs::symlink(&secret, &swapped).unwrap();
            assert!(repair(&base, true).is_err());
            assert!(open(&swapped, File::options().read(true)).is_err());
            fs::remove_file(&swapped).unwrap();
            fs::create_dir(&swapped).unwrap();
            assert!(open(&swapped, File::options().read(true)).is_err());
            fs::remove_dir(&swapped).unwrap();
        }
        assert_eq!(fs::read(&secret).unwrap(), b"hunter2");
    }

    #[test]
    fn a_repaired_record_does_not_take_holes_for_output() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let mut recorder = Recorder::new(base.clone(), 1024 * 1024);
        for _ in 0..100 {
            recorder.append(Stream::Stdout, &[7; 64 * 1024]);
        }
        fs::remove_file(index_path(&base)).unwrap();
        let repaired = repair(&base, true).unwrap();
        assert_eq!((repaired.end, repaired.missing), (6_553_600, 0));
        let entries = entries(&base);
        let first = entries[0].unwrap();
        assert!(first.offset > 4_000_000, "{first:?}");
        assert_eq!(entries.last().unwrap().unwrap().end(), 6_553_600);
    }
}
