//! Reads recorded output back, from any offset, and goes on with the job as it
//! writes. Who writes it, and in which format, is `shim::record`.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::sync::watch;

use crate::roles::shim::record::{self, Entry, Stream, data_path, index_path};

/// The most output held for one follower, in bytes.
const BATCH: u64 = 256 * 1024;

/// The most entries of the index looked at in one go.
const ENTRIES: u64 = 1024;

/// How far the output is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) bytes: u64,
    /// There will be no more.
    pub(super) complete: bool,
}

/// A job's output, whoever reads it. Its files are opened when the first reader
/// needs them, and closed with the last.
#[derive(Clone)]
pub(super) struct Output {
    base: Arc<Path>,
    extent: watch::Receiver<Extent>,
    open: Arc<Mutex<Weak<Files>>>,
}

impl Output {
    /// `base` is the path of the files without their endings.
    pub(super) fn new(base: PathBuf, extent: watch::Receiver<Extent>) -> Self {
        Self {
            base: base.into(),
            extent,
            open: Arc::default(),
        }
    }

    /// How far it is recorded.
    pub(super) fn extent(&self) -> Extent {
        *self.extent.borrow()
    }

    fn files(&self) -> io::Result<Arc<Files>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = open.upgrade() {
            return Ok(files);
        }
        let files = Arc::new(Files::open(&self.base)?);
        *open = Arc::downgrade(&files);
        Ok(files)
    }
}

/// What a reader wants to see.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Nothing before this byte.
    pub(super) offset: u64,
    /// Nothing but the last so many lines.
    pub(super) tail: Option<u64>,
    /// Nothing written before, in microseconds since 1970.
    pub(super) since_us: Option<i64>,
    /// Nothing but this stream.
    pub(super) stream: Option<Stream>,
    /// Go on until the job ends.
    pub(super) follow: bool,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    pub(super) time_us: i64,
    pub(super) stream: Stream,
    pub(super) bytes: Bytes,
}

/// What a reader is handed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// Output.
    Chunk(Chunk),
    /// Output that the job wrote and that is not recorded, or no longer.
    Gap { offset: u64, length: u64 },
}

impl Piece {
    fn offset(&self) -> u64 {
        match self {
            Self::Chunk(chunk) => chunk.offset,
            Self::Gap { offset, .. } => *offset,
        }
    }
}

/// One reader of one job's output. It holds a bounded piece of it, whatever the
/// job writes and however slowly it is asked for more.
pub(super) struct Follower {
    output: Output,
    files: Option<Arc<Files>>,
    extent: watch::Receiver<Extent>,
    wanted: Wanted,
    /// The first byte that was not looked at.
    position: u64,
    /// The number of the first entry behind `position`, once it is known.
    entry: Option<u64>,
    ready: VecDeque<Piece>,
}

/// A reader claims to have read what was never written.
#[derive(Debug)]
pub(super) enum OpenError {
    PastEnd { end: u64 },
    Io(io::Error),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Follower {
    /// Finds the place to begin.
    pub(super) async fn open(output: Output, wanted: Wanted) -> Result<Self, OpenError> {
        let mut extent = output.extent.clone();
        let end = extent.borrow_and_update().bytes;
        if wanted.offset > end {
            return Err(OpenError::PastEnd { end });
        }
        let mut follower = Self {
            output,
            files: None,
            extent,
            position: wanted.offset,
            entry: None,
            wanted,
            ready: VecDeque::new(),
        };
        if end > 0
            && let Some(since) = follower.wanted.since_us
        {
            let files = follower.files()?;
            let first = files.partition(end, |entry| entry.time_us < since).await?;
            let offset = match files.entries(first, 1, end).await?.first() {
                Some((_, entry)) => entry.offset,
                None => end,
            };
            follower.position = follower.position.max(offset);
        }
        if end > 0
            && let Some(lines) = follower.wanted.tail
        {
            let stream = follower.wanted.stream;
            let offset = follower.files()?.tail(lines, stream, end).await?;
            follower.position = follower.position.max(offset);
        }
        Ok(follower)
    }

    /// The first byte that was not returned by [`Follower::next`] yet.
    pub(super) fn position(&self) -> u64 {
        self.ready.front().map_or(self.position, Piece::offset)
    }

    /// The next piece; `None` when there will be none. Waits for the job where
    /// the reader follows it. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            // The end is asked for before the bytes: the last of them are there then.
            let extent = *self.extent.borrow_and_update();
            if self.position < extent.bytes {
                self.fill(extent.bytes).await?;
            } else if extent.complete || !self.wanted.follow || self.extent.changed().await.is_err()
            {
                return Ok(None);
            }
        }
    }

    /// Looks at the next batch below `end`, which is more than there was.
    async fn fill(&mut self, end: u64) -> io::Result<()> {
        let position = self.position;
        let files = match self.files() {
            Ok(files) => files.clone(),
            // Nothing at all could be recorded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.gap(end);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let number = match self.entry {
            Some(number) => number,
            None => {
                files
                    .partition(end, |entry| entry.end() <= position)
                    .await?
            }
        };
        let mut entries = files.entries(number, ENTRIES, end).await?;
        let Some((_, first)) = entries.first() else {
            if number + ENTRIES < files.count()? {
                // A stretch that was given back meanwhile.
                self.entry = Some(number + ENTRIES);
                return Ok(());
            }
            self.gap(end);
            return Ok(());
        };
        let (from, limit) = (first.offset.max(position), first.offset + BATCH);
        let within = entries
            .iter()
            .take_while(|(_, entry)| entry.end() <= limit)
            .count();
        entries.truncate(within.max(1));
        let (first, (last_number, last)) = (entries[0].0, entries[entries.len() - 1]);
        let bytes = files.data(from, last.end()).await?;
        // Entries go before their bytes: with the first of them still there, what
        // was read are its bytes and not the hole that came after.
        if files.entries(first, 1, end).await?.first().map(|(n, _)| *n) != Some(first) {
            self.entry = Some(first);
            return Ok(());
        }
        for (_, entry) in &entries {
            self.gap(entry.offset);
            let start = entry.offset.max(position);
            if self
                .wanted
                .stream
                .is_none_or(|stream| stream == entry.stream)
            {
                let range = (start - from) as usize..(entry.end() - from) as usize;
                self.ready.push_back(Piece::Chunk(Chunk {
                    offset: start,
                    time_us: entry.time_us,
                    stream: entry.stream,
                    bytes: bytes.slice(range),
                }));
            }
            self.position = entry.end();
        }
        self.entry = Some(last_number + 1);
        Ok(())
    }

    /// Goes on at `offset`; what is passed over is said.
    fn gap(&mut self, offset: u64) {
        if offset > self.position {
            self.ready.push_back(Piece::Gap {
                offset: self.position,
                length: offset - self.position,
            });
            self.position = offset;
        }
    }

    fn files(&mut self) -> io::Result<&Arc<Files>> {
        match self.files {
            Some(ref files) => Ok(files),
            None => Ok(self.files.insert(self.output.files()?)),
        }
    }
}

struct Files {
    data: Arc<File>,
    index: Arc<File>,
}

impl Files {
    fn open(base: &Path) -> io::Result<Self> {
        Ok(Self {
            data: Arc::new(record::open(&data_path(base), File::options().read(true))?),
            index: Arc::new(record::open(&index_path(base), File::options().read(true))?),
        })
    }

    /// How many entries there are, and perhaps a few whose bytes lie behind the
    /// end that the caller knows of.
    fn count(&self) -> io::Result<u64> {
        Ok(self.index.metadata()?.len() / Entry::SIZE as u64)
    }

    /// The entries among the `limit` from number `first` on that lie below
    /// `end`, with their numbers. Those that were given back to the disk are none.
    async fn entries(&self, first: u64, limit: u64, end: u64) -> io::Result<Vec<(u64, Entry)>> {
        let size = Entry::SIZE as u64;
        let limit = limit.min(self.count()?.saturating_sub(first));
        let bytes = read(&self.index, first * size, (limit * size) as usize).await?;
        let (entries, _) = bytes.as_chunks::<{ Entry::SIZE }>();
        let mut found = Vec::with_capacity(entries.len());
        for (number, bytes) in (first..).zip(entries) {
            match Entry::decode(bytes) {
                Some(entry) if entry.end() > end => break,
                Some(entry) => found.push((number, entry)),
                None if *bytes == [0; Entry::SIZE] => {}
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the index of the output is damaged",
                    ));
                }
            }
        }
        Ok(found)
    }

    /// The number of the first entry that is not `before`; entries are ordered
    /// by offset and by time, and those that were given back come first.
    async fn partition(&self, end: u64, before: impl Fn(&Entry) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.count()?);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entries(middle, 1, u64::MAX).await?;
            match entry.first() {
                Some((_, entry)) if entry.end() > end || !before(entry) => high = middle,
                _ => low = middle + 1,
            }
        }
        Ok(low)
    }

    /// Where the last `lines` lines of a stream begin. A last line without its
    /// newline counts.
    async fn tail(&self, lines: u64, stream: Option<Stream>, end: u64) -> io::Result<u64> {
        if lines == 0 {
            return Ok(end);
        }
        let mut high = self.partition(end, |entry| entry.end() <= end).await?;
        let (mut newlines, mut is_last_byte, mut oldest) = (0, true, end);
        while high > 0 {
            let low = high.saturating_sub(64);
            let entries = self.entries(low, high - low, end).await?;
            let whole = entries.len() as u64 == high - low;
            let start = entries.first().map_or(0, |(_, entry)| entry.offset);
            let stop = entries.last().map_or(0, |(_, entry)| entry.end());
            let all = self.data(start, stop).await?;
            for (_, entry) in entries.iter().rev() {
                oldest = entry.offset;
                if stream.is_some_and(|stream| stream != entry.stream) {
                    continue;
                }
                let range = (entry.offset - start) as usize..(entry.end() - start) as usize;
                for (at, byte) in all[range].iter().enumerate().rev() {
                    // The newline at the very end closes a line, it opens none.
                    if *byte == b'\n' && !is_last_byte {
                        newlines += 1;
                        if newlines == lines {
                            return Ok(entry.offset + at as u64 + 1);
                        }
                    }
                    is_last_byte = false;
                }
            }
            if !whole {
                break;
            }
            high = low;
        }
        Ok(oldest)
    }

    async fn data(&self, from: u64, to: u64) -> io::Result<Bytes> {
        read(&self.data, from, (to - from) as usize).await
    }
}

/// Reads exactly `length` bytes. Recent output is in memory and is copied right
/// here; what has to come from a disk is read where waiting harms nobody.
async fn read(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    // Someone who reads all from memory would never let anybody else run.
    tokio::task::consume_budget().await;
    let mut buffer = vec![0; length];
    let mut done = 0;
    while done < length {
        let slices = &mut [IoSliceMut::new(&mut buffer[done..])];
        match preadv2(
            &**file,
            slices,
            offset + done as u64,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            // Not in memory, or a file system that cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let file = file.clone();
                let read = tokio::task::spawn_blocking(move || {
                    file.read_exact_at(&mut buffer[done..], offset + done as u64)
                        .map(|()| buffer)
                });
                return Ok(read.await.map_err(io::Error::other)??.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(buffer.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorded {
        _dir: tempfile::TempDir,
        base: PathBuf,
        extent: watch::Sender<Extent>,
    }

    impl Recorded {
        fn output(&self) -> Output {
            Output::new(self.base.clone(), self.extent.subscribe())
        }
    }

    /// Times are 1000, 2000, ...
    fn recorded(pieces: &[(Stream, &[u8])]) -> Recorded {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("job");
        let (mut data, mut index) = (Vec::new(), Vec::new());
        for (number, (stream, bytes)) in pieces.iter().enumerate() {
            let entry = Entry {
                offset: data.len() as u64,
                time_us: (number as i64 + 1) * 1000,
                length: bytes.len() as u32,
                stream: *stream,
            };
            index.extend(entry.encode());
            data.extend_from_slice(bytes);
        }
        std::fs::write(data_path(&base), &data).unwrap();
        std::fs::write(index_path(&base), &index).unwrap();
        let extent = Extent {
            bytes: data.len() as u64,
            complete: true,
        };
        Recorded {
            _dir: dir,
            base,
            extent: watch::channel(extent).0,
        }
    }

    fn all() -> Wanted {
        Wanted {
            offset: 0,
            tail: None,
            since_us: None,
            stream: None,
            follow: true,
        }
    }

    async fn read_all(recorded: &Recorded, wanted: Wanted) -> (u64, Vec<u8>) {
        let mut follower = Follower::open(recorded.output(), wanted).await.unwrap();
        let start = follower.position();
        let mut bytes = Vec::new();
        while let Some(piece) = follower.next().await.unwrap() {
            bytes.extend_from_slice(&chunk(Some(piece)).bytes);
        }
        (start, bytes)
    }

    fn chunk(piece: Option<Piece>) -> Chunk {
        match piece {
            Some(Piece::Chunk(chunk)) => chunk,
            other => panic!("{other:?}"),
        }
    }

    use Stream::{Stderr, Stdout};

    const PIECES: [(Stream, &[u8]); 4] = [
        (Stdout, b"one\ntwo\n"),
        (Stderr, b"oops\n"),
        (Stdout, b"thr"),
        (Stdout, b"ee\n"),
    ];

    #[tokio::test]
    async fn every_offset_is_a_place_to_begin() {
        let recorded = recorded(&PIECES);
        let whole = b"one\ntwo\noops\nthree\n";
        for offset in 0..=whole.len() {
            let wanted = Wanted {
                offset: offset as u64,
                ..all()
            };
            let (_, bytes) = read_all(&recorded, wanted).await;
            assert_eq!(bytes, &whole[offset..], "from {offset}");
        }
        let wanted = Wanted {
            offset: 20,
            ..all()
        };
        let past = Follower::open(recorded.output(), wanted).await;
        assert!(matches!(past, Err(OpenError::PastEnd { end: 19 })));
    }

    #[tokio::test]
    async fn one_stream_is_told_from_the_other() {
        let recorded = recorded(&PIECES);
        let wanted = Wanted {
            stream: Some(Stderr),
            ..all()
        };
        assert_eq!(read_all(&recorded, wanted).await.1, b"oops\n");
        let wanted = Wanted {
            stream: Some(Stdout),
            offset: 4,
            ..all()
        };
        assert_eq!(read_all(&recorded, wanted).await.1, b"two\nthree\n");
    }

    #[tokio::test]
    async fn tail_counts_lines_of_what_is_shown() {
        let recorded = recorded(&PIECES);
        let tail = async |lines, stream| {
            let wanted = Wanted {
                tail: Some(lines),
                stream,
                ..all()
            };
            String::from_utf8(read_all(&recorded, wanted).await.1).unwrap()
        };
        assert_eq!(tail(0, None).await, "");
        assert_eq!(tail(1, None).await, "three\n");
        assert_eq!(tail(2, None).await, "oops\nthree\n");
        assert_eq!(tail(2, Some(Stdout)).await, "two\nthree\n");
        assert_eq!(tail(9, None).await, "one\ntwo\noops\nthree\n");
    }

    #[tokio::test]
    async fn an_unfinished_last_line_is_a_line() {
        let recorded = recorded(&[(Stdout, b"one\ntwo\nthr")]);
        let wanted = Wanted {
            tail: Some(1),
            ..all()
        };
        assert_eq!(read_all(&recorded, wanted).await, (8, b"thr".to_vec()));
    }

    #[tokio::test]
    async fn since_begins_with_the_first_piece_of_that_time() {
        let recorded = recorded(&PIECES);
        for (since, expected) in [
            (0, 0),
            (1000, 0),
            (1001, 8),
            (2000, 8),
            (4000, 16),
            (4001, 19),
        ] {
            let wanted = Wanted {
                since_us: Some(since),
                ..all()
            };
            assert_eq!(
                read_all(&recorded, wanted).await.0,
                expected,
                "since {since}"
            );
        }
    }

    #[tokio::test]
    async fn many_small_pieces_are_read_in_batches() {
        let pieces = vec![(Stdout, b"0123456789".as_slice()); 3 * ENTRIES as usize + 7];
        let recorded = recorded(&pieces);
        let wanted = Wanted {
            offset: 10_005,
            ..all()
        };
        let (start, bytes) = read_all(&recorded, wanted).await;
        assert_eq!(start, 10_005);
        assert_eq!(bytes.len(), pieces.len() * 10 - 10_005);
        assert!(bytes.starts_with(b"5678901234"));
    }

    #[tokio::test]
    async fn a_follower_sees_what_comes_and_then_the_end() {
        let recorded = recorded(&PIECES);
        recorded.extent.send_replace(Extent {
            bytes: 8,
            complete: false,
        });
        let mut follower = Follower::open(recorded.output(), all()).await.unwrap();
        assert_eq!(chunk(follower.next().await.unwrap()).bytes, "one\ntwo\n");
        let next = tokio::spawn(async move { (follower.next().await.unwrap(), follower) });
        recorded.extent.send_replace(Extent {
            bytes: 13,
            complete: false,
        });
        let (next, mut follower) = next.await.unwrap();
        assert_eq!(chunk(next).bytes, "oops\n");
        recorded.extent.send_replace(Extent {
            bytes: 19,
            complete: true,
        });
        assert_eq!(chunk(follower.next().await.unwrap()).offset, 13);
        assert_eq!(chunk(follower.next().await.unwrap()).offset, 16);
        assert_eq!(follower.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_was_given_back_or_never_recorded_is_a_gap() {
        let recorded = recorded(&PIECES);
        let mut index = std::fs::read(index_path(&recorded.base)).unwrap();
        // The first entry was given back; the third was never written.
        index[..Entry::SIZE].fill(0);
        let last = index.split_off(3 * Entry::SIZE);
        index.truncate(2 * Entry::SIZE);
        index.extend(last);
        std::fs::write(index_path(&recorded.base), &index).unwrap();
        recorded.extent.send_modify(|extent| extent.bytes = 25);
        let pieces = async |wanted| {
            let mut follower = Follower::open(recorded.output(), wanted).await.unwrap();
            let mut pieces = Vec::new();
            while let Some(piece) = follower.next().await.unwrap() {
                pieces.push(match piece {
                    Piece::Chunk(chunk) => (chunk.offset, chunk.bytes.len() as u64, true),
                    Piece::Gap { offset, length } => (offset, length, false),
                });
            }
            pieces
        };
        let all_of_it = [
            (0, 8, false),
            (8, 5, true),
            (13, 3, false),
            (16, 3, true),
            (19, 6, false),
        ];
        assert_eq!(pieces(all()).await, all_of_it);
        let wanted = Wanted {
            offset: 10,
            ..all()
        };
        assert_eq!(pieces(wanted).await[0], (10, 3, true));
        let wanted = Wanted {
            tail: Some(100),
            ..all()
        };
        assert_eq!(
            pieces(wanted).await[0],
            (8, 5, true),
            "what is gone has no lines"
        );
        let wanted = Wanted {
            since_us: Some(0),
            ..all()
        };
        assert_eq!(pieces(wanted).await[0], (8, 5, true));
        let wanted = Wanted {
            offset: 22,
            ..all()
        };
        assert_eq!(pieces(wanted).await, [(22, 3, false)]);
    }

    #[tokio::test]
    async fn a_damaged_index_is_an_error_and_not_less_output() {
        let recorded = recorded(&PIECES);
        std::fs::write(index_path(&recorded.base), [7; 96]).unwrap();
        let mut follower = Follower::open(recorded.output(), all()).await.unwrap();
        assert!(follower.next().await.is_err());
    }
}
