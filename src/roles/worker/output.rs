//! Reads recorded output back, from any offset, and goes on with the job as it
//! writes. Who writes it, and in which format, is `shim::record`.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::sync::watch;

use crate::roles::shim::record::{Entry, Stream, data_path, index_path};

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

/// One reader of one job's output. It holds a bounded piece of it, whatever the
/// job writes and however slowly it is asked for more.
pub(super) struct Follower {
    base: PathBuf,
    files: Option<Files>,
    extent: watch::Receiver<Extent>,
    wanted: Wanted,
    /// The first byte that was not looked at.
    position: u64,
    /// The number of the entry that holds `position`, once it is known.
    entry: Option<u64>,
    ready: VecDeque<Chunk>,
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
    pub(super) async fn open(
        base: &Path,
        mut extent: watch::Receiver<Extent>,
        wanted: Wanted,
    ) -> Result<Self, OpenError> {
        let end = extent.borrow_and_update().bytes;
        if wanted.offset > end {
            return Err(OpenError::PastEnd { end });
        }
        let mut follower = Self {
            base: base.to_owned(),
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
                Some(entry) => entry.offset,
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
        self.ready
            .front()
            .map_or(self.position, |chunk| chunk.offset)
    }

    /// The next piece; `None` when there will be none. Waits for the job where
    /// the reader follows it. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Option<Chunk>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
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
        let files = self.files()?.clone();
        let number = match self.entry {
            Some(number) => number,
            None => {
                files
                    .partition(end, |entry| entry.end() <= position)
                    .await?
            }
        };
        let mut entries = files.entries(number, ENTRIES, end).await?;
        let Some(first) = entries.first() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the index of the output is shorter than the output",
            ));
        };
        let limit = first.offset + BATCH;
        let within = entries
            .iter()
            .take_while(|entry| entry.end() <= limit)
            .count();
        entries.truncate(within.max(1));
        let last = entries[entries.len() - 1].end();
        let bytes = files.data(position, last).await?;
        for entry in &entries {
            let from = entry.offset.max(position);
            if self
                .wanted
                .stream
                .is_none_or(|stream| stream == entry.stream)
            {
                let range = (from - position) as usize..(entry.end() - position) as usize;
                self.ready.push_back(Chunk {
                    offset: from,
                    time_us: entry.time_us,
                    stream: entry.stream,
                    bytes: bytes.slice(range),
                });
            }
        }
        self.entry = Some(number + entries.len() as u64);
        self.position = last;
        Ok(())
    }

    fn files(&mut self) -> io::Result<&Files> {
        match self.files {
            Some(ref files) => Ok(files),
            None => Ok(self.files.insert(Files::open(&self.base)?)),
        }
    }
}

#[derive(Clone)]
struct Files {
    data: Arc<File>,
    index: Arc<File>,
}

impl Files {
    fn open(base: &Path) -> io::Result<Self> {
        Ok(Self {
            data: Arc::new(File::open(data_path(base))?),
            index: Arc::new(File::open(index_path(base))?),
        })
    }

    /// How many entries there are, and perhaps a few whose bytes lie behind the
    /// end that the caller knows of.
    fn count(&self) -> io::Result<u64> {
        Ok(self.index.metadata()?.len() / Entry::SIZE as u64)
    }

    /// Up to `limit` entries from number `first` on that lie below `end`.
    async fn entries(&self, first: u64, limit: u64, end: u64) -> io::Result<Vec<Entry>> {
        let size = Entry::SIZE as u64;
        let limit = limit.min(self.count()?.saturating_sub(first));
        let bytes = read(&self.index, first * size, (limit * size) as usize).await?;
        let (entries, _) = bytes.as_chunks::<{ Entry::SIZE }>();
        let mut found = Vec::with_capacity(entries.len());
        for bytes in entries {
            let entry = Entry::decode(bytes).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the index of the output is damaged",
                )
            })?;
            if entry.end() > end {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    /// The number of the first entry that is not `before`; entries are ordered
    /// by offset and by time.
    async fn partition(&self, end: u64, before: impl Fn(&Entry) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.count()?);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entries(middle, 1, end).await?.first() {
                Some(entry) if before(entry) => low = middle + 1,
                _ => high = middle,
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
        let mut newlines = 0;
        let mut is_last_byte = true;
        while high > 0 {
            let low = high.saturating_sub(64);
            for entry in self.entries(low, high - low, end).await?.iter().rev() {
                if stream.is_some_and(|stream| stream != entry.stream) {
                    continue;
                }
                let bytes = self.data(entry.offset, entry.end()).await?;
                for (at, byte) in bytes.iter().enumerate().rev() {
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
            high = low;
        }
        Ok(0)
    }

    async fn data(&self, from: u64, to: u64) -> io::Result<Bytes> {
        read(&self.data, from, (to - from) as usize).await
    }
}

/// Reads exactly `length` bytes. Recent output is in memory and is copied right
/// here; what has to come from a disk is read where waiting harms nobody.
async fn read(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
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
        let mut follower = Follower::open(&recorded.base, recorded.extent.subscribe(), wanted)
            .await
            .unwrap();
        let start = follower.position();
        let mut bytes = Vec::new();
        while let Some(chunk) = follower.next().await.unwrap() {
            bytes.extend_from_slice(&chunk.bytes);
        }
        (start, bytes)
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
        let past = Follower::open(&recorded.base, recorded.extent.subscribe(), wanted).await;
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
        let mut follower = Follower::open(&recorded.base, recorded.extent.subscribe(), all())
            .await
            .unwrap();
        assert_eq!(follower.next().await.unwrap().unwrap().bytes, "one\ntwo\n");
        let next = tokio::spawn(async move { (follower.next().await.unwrap(), follower) });
        recorded.extent.send_replace(Extent {
            bytes: 13,
            complete: false,
        });
        let (chunk, mut follower) = next.await.unwrap();
        assert_eq!(chunk.unwrap().bytes, "oops\n");
        recorded.extent.send_replace(Extent {
            bytes: 19,
            complete: true,
        });
        assert_eq!(follower.next().await.unwrap().unwrap().offset, 13);
        assert_eq!(follower.next().await.unwrap().unwrap().offset, 16);
        assert_eq!(follower.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_damaged_index_is_an_error_and_not_less_output() {
        let recorded = recorded(&PIECES);
        std::fs::write(index_path(&recorded.base), [7; 96]).unwrap();
        let mut follower = Follower::open(&recorded.base, recorded.extent.subscribe(), all())
            .await
            .unwrap();
        assert!(follower.next().await.is_err());
    }
}
