//! The two files of a job's output, as a reader sees them: pieces of bounded size,
//! whatever is in them.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{SeekFrom, seek},
    io::{Errno, ReadWriteFlags, preadv2},
};

use crate::{
    blocking::spawn_blocking,
    roles::shim::record::{self, Entry, Stream, data_path, index_path},
};

/// The most output held for one follower, in bytes.
pub(super) const BATCH: u64 = 256 * 1024;

/// The most entries of the index looked at in one go.
pub(super) const ENTRIES: u64 = 1024;

/// An open pair of files.
pub(super) struct Files {
    data: Arc<File>,
    index: Arc<File>,
}

/// What is in one place of the index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Slot {
    Entry(Entry),
    /// It was given back to the disk, or never reached it.
    Empty,
    /// Nothing that was ever written there.
    Broken,
}

impl Slot {
    pub(super) fn entry(self) -> Option<Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Empty | Self::Broken => None,
        }
    }
}

impl Files {
    pub(super) fn open(base: &Path) -> io::Result<Self> {
        Ok(Self {
            data: Arc::new(record::open(&data_path(base), File::options().read(true))?),
            index: Arc::new(record::open(&index_path(base), File::options().read(true))?),
        })
    }

    /// Whether they are the ones that have these names now.
    pub(super) fn are_at(&self, base: &Path) -> bool {
        let is_at = |file: &File, path| {
            let (ours, theirs) = (file.metadata(), fs::symlink_metadata(path));
            let same = |ours: fs::Metadata, theirs: fs::Metadata| {
                (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())
            };
            ours.is_ok_and(|ours| theirs.is_ok_and(|theirs| same(ours, theirs)))
        };
        is_at(&self.data, data_path(base)) && is_at(&self.index, index_path(base))
    }

    /// How many entries there are, and perhaps a few whose bytes lie after the
    /// end that the caller knows of.
    pub(super) fn count(&self) -> io::Result<u64> {
        Ok(self.index.metadata()?.len() / Entry::SIZE as u64)
    }

    /// The first entry that may not have been given back.
    fn first(&self) -> u64 {
        match seek(&*self.index, SeekFrom::Data(0)) {
            Ok(offset) => offset / Entry::SIZE as u64,
            Err(_) => 0,
        }
    }

    /// What is in at most `limit` places of the index from number `first` on.
    pub(super) async fn slots(&self, first: u64, limit: u64) -> io::Result<Vec<Slot>> {
        let size = Entry::SIZE as u64;
        let limit = limit.min(self.count()?.saturating_sub(first));
        let bytes = read(&self.index, first * size, limit * size).await?;
        let slots = bytes.as_chunks::<{ Entry::SIZE }>().0.iter();
        Ok(slots
            .map(|bytes| match Entry::decode(bytes) {
                Some(entry) => Slot::Entry(entry),
                None if *bytes == [0; Entry::SIZE] => Slot::Empty,
                None => Slot::Broken,
            })
            .collect())
    }

    /// The number of the first entry that is not `before`. Entries are ordered by
    /// offset and by time; what is no entry may be anywhere between them.
    pub(super) async fn partition(&self, before: impl Fn(&Entry) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (self.first(), self.count()?);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.next_entry(middle, high).await? {
                Some((number, entry)) if before(&entry) => low = number + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The first entry from number `first` to before `limit`.
    pub(super) async fn next_entry(
        &self,
        mut first: u64,
        limit: u64,
    ) -> io::Result<Option<(u64, Entry)>> {
        // Nearly always the first place has one.
        let mut count = 1;
        while first < limit {
            let slots = self.slots(first, count.min(limit - first)).await?;
            if slots.is_empty() {
                return Ok(None);
            }
            let after = first + slots.len() as u64;
            let mut entries = (first..).zip(slots);
            if let Some(found) = entries.find_map(|(n, slot)| Some((n, slot.entry()?))) {
                return Ok(Some(found));
            }
            (first, count) = (after, ENTRIES);
        }
        Ok(None)
    }

    /// Where the last `lines` lines of a stream before `end` begin. A last line
    /// without its newline counts; what is missing has no lines.
    pub(super) async fn tail(
        &self,
        lines: u64,
        stream: Option<Stream>,
        end: u64,
    ) -> io::Result<u64> {
        if lines == 0 {
            return Ok(end);
        }
        let mut tail = Tail {
            lines,
            is_last_byte: true,
            begin: end,
        };
        let first = self.first();
        let mut high = self.partition(|entry| entry.end() <= end).await?;
        // What is not read yet of pieces one next to the other.
        let mut run = Vec::new();
        while high > first {
            let low = high.saturating_sub(ENTRIES).max(first);
            for slot in self.slots(low, high - low).await?.into_iter().rev() {
                let bound = run.last().map_or(tail.begin, |entry: &Entry| entry.offset);
                let Some(entry) = slot.entry().filter(|entry| entry.end() <= bound) else {
                    continue;
                };
                let is_shown = stream.is_none_or(|stream| stream == entry.stream);
                let goes_on = is_shown && goes_before(&run, &entry);
                if !goes_on && self.lines(&mut run, &mut tail).await? {
                    return Ok(tail.begin);
                }
                match is_shown {
                    true => run.push(entry),
                    false => tail.begin = entry.offset,
                }
            }
            if self.lines(&mut run, &mut tail).await? {
                break;
            }
            high = low;
        }
        Ok(tail.begin)
    }

    /// Looks for lines in pieces, the last of which comes first. True when there are
    /// enough.
    async fn lines(&self, run: &mut Vec<Entry>, tail: &mut Tail) -> io::Result<bool> {
        let (Some(last), Some(first)) = (run.first(), run.last()) else {
            return Ok(false);
        };
        let (start, mut stop) = (first.offset, last.end());
        while stop > start {
            // More than a batch is only one piece, of an older version.
            let from = stop.saturating_sub(BATCH).max(start);
            let bytes = self.bytes(from, stop - from).await?;
            for entry in run.iter() {
                let (begin, end) = (entry.offset.max(from), entry.end().min(stop));
                let piece = bytes.get((begin - from) as usize..(end - from) as usize);
                let is_old = entry.checksum.is_none();
                let piece = piece.filter(|piece| is_old || entry.is_of(piece));
                if tail.find(begin, piece.unwrap_or_default()) {
                    return Ok(true);
                }
            }
            stop = from;
        }
        run.clear();
        Ok(false)
    }

    /// At most [`BATCH`] bytes of the output; fewer where the file is shorter, or
    /// the disk does not give them.
    pub(super) async fn bytes(&self, from: u64, length: u64) -> io::Result<Bytes> {
        match read(&self.data, from, length).await {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                tracing::error!(%error, from, length, "cannot read output");
                Ok(Bytes::new())
            }
            read => read,
        }
    }
}

/// Whether a piece ends where the others begin, and all of them are a batch at
/// most.
fn goes_before(run: &[Entry], entry: &Entry) -> bool {
    match (run.first(), run.last()) {
        (Some(last), Some(first)) => {
            entry.end() == first.offset && last.end() - entry.offset <= BATCH
        }
        _ => true,
    }
}

/// Lines that are looked for from the end on.
struct Tail {
    /// So many more.
    lines: u64,
    /// Nothing that is shown was looked at.
    is_last_byte: bool,
    /// Where what was looked at begins.
    begin: u64,
}

impl Tail {
    /// Looks through a piece, from its end. True when there are enough.
    fn find(&mut self, offset: u64, piece: &[u8]) -> bool {
        for (at, byte) in piece.iter().enumerate().rev() {
            // The newline at the very end closes a line, it opens none.
            if *byte == b'\n' && !self.is_last_byte {
                self.lines -= 1;
                if self.lines == 0 {
                    self.begin = offset + at as u64 + 1;
                    return true;
                }
            }
            self.is_last_byte = false;
        }
        self.begin = offset;
        false
    }
}

/// Reads `length` bytes, or what there is of them. Recent output is in memory and is
/// copied right here; what has to come from a disk is read where waiting does
/// no harm.
async fn read(file: &Arc<File>, offset: u64, length: u64) -> io::Result<Bytes> {
    debug_assert!(length <= BATCH, "a reader asks for {length} bytes");
    // Someone who reads all from memory would never let anybody else run.
    tokio::task::consume_budget().await;
    let mut buffer = vec![0; length.min(BATCH) as usize];
    let mut done = 0;
    while done < buffer.len() {
        let slices = &mut [IoSliceMut::new(&mut buffer[done..])];
        let flags = ReadWriteFlags::NOWAIT;
        match preadv2(&**file, slices, offset + done as u64, flags) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            // Not in memory, or a file system that cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let file = file.clone();
                let read = spawn_blocking(move || {
                    let rest = read_rest(&file, &mut buffer[done..], offset + done as u64)?;
                    buffer.truncate(done + rest);
                    Ok::<_, io::Error>(buffer)
                });
                return Ok(read.await.map_err(io::Error::other)??.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(done);
    Ok(buffer.into())
}

/// As much as there is of what is asked for.
fn read_rest(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
