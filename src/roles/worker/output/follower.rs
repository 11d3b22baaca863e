//! One reader of one job's output.

use std::{collections::VecDeque, io, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Extent, Output,
    files::{BATCH, ENTRIES, Files, Slot},
};
use crate::roles::shim::record::{Entry, GapCause, Stream};

/// What a reader wants to see.
#[derive(Clone, Debug)]
pub(in crate::roles::worker) struct Wanted {
    /// Nothing before this byte.
    pub(in crate::roles::worker) offset: u64,
    /// Nothing but the last so many lines.
    pub(in crate::roles::worker) tail: Option<u64>,
    /// Nothing written before, in microseconds since 1970.
    pub(in crate::roles::worker) since_us: Option<i64>,
    /// Nothing but this stream.
    pub(in crate::roles::worker) stream: Option<Stream>,
    /// Go on until the job ends, instead of to the end as it is now.
    pub(in crate::roles::worker) follow: bool,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::roles::worker) struct Chunk {
    pub(in crate::roles::worker) offset: u64,
    pub(in crate::roles::worker) time_us: i64,
    pub(in crate::roles::worker) stream: Stream,
    pub(in crate::roles::worker) bytes: Bytes,
}

/// What a reader is handed.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::roles::worker) enum Piece {
    /// Output.
    Chunk(Chunk),
    /// Output that the job wrote and that is not recorded, or no longer.
    Gap(Gap),
}

/// A stretch of output that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::roles::worker) struct Gap {
    pub(in crate::roles::worker) offset: u64,
    pub(in crate::roles::worker) length: u64,
    pub(in crate::roles::worker) cause: GapCause,
}

impl Piece {
    fn offset(&self) -> u64 {
        match self {
            Self::Chunk(chunk) => chunk.offset,
            Self::Gap(gap) => gap.offset,
        }
    }
}

/// One reader of one job's output. It holds a bounded piece of it, whatever the
/// job writes and however slowly it is asked for more.
pub(in crate::roles::worker) struct Follower {
    output: Output,
    files: Option<Arc<Files>>,
    extent: watch::Receiver<Extent>,
    /// Where it ends, if that is not with the job.
    until: Option<u64>,
    wanted: Wanted,
    /// The first byte that was not looked at.
    position: u64,
    /// The number of the first entry after `position`, once it is known.
    entry: Option<u64>,
    /// A gap at the end of these may go on.
    ready: VecDeque<Piece>,
}

/// A reader claims to have read what was never written.
#[derive(Debug)]
pub(in crate::roles::worker) enum OpenError {
    PastEnd { end: u64 },
    Io(io::Error),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Entries that come one after the other, from the number `first` on.
struct Batch {
    first: u64,
    /// With their numbers.
    entries: Vec<(u64, Entry)>,
}

impl Follower {
    /// Finds the place to begin.
    pub(in crate::roles::worker) async fn open(
        output: Output,
        wanted: Wanted,
    ) -> Result<Self, OpenError> {
        let mut extent = output.extent.clone();
        let end = extent.borrow_and_update().bytes;
        if wanted.offset > end {
            return Err(OpenError::PastEnd { end });
        }
        let mut follower = Self {
            output,
            files: None,
            extent,
            until: (!wanted.follow).then_some(end),
            position: wanted.offset,
            entry: None,
            wanted,
            ready: VecDeque::new(),
        };
        if end > 0 && (follower.wanted.since_us.is_some() || follower.wanted.tail.is_some()) {
            let begin = match follower.files() {
                Ok(_) => follower.begin(end).await?,
                // Nothing is recorded, and of that nothing can be left out.
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error.into()),
            };
            follower.position = follower.position.max(begin);
        }
        Ok(follower)
    }

    /// The first byte that is in the last lines and in the time asked for.
    async fn begin(&mut self, end: u64) -> io::Result<u64> {
        let files = self.files()?.clone();
        let mut begin = 0;
        if let Some(since) = self.wanted.since_us {
            let first = files.partition(|entry| entry.time_us < since).await?;
            let found = files.next_entry(first, files.count()?).await?;
            begin = found.map_or(end, |(_, entry)| entry.offset.min(end));
        }
        if let Some(lines) = self.wanted.tail {
            begin = begin.max(files.tail(lines, self.wanted.stream, end).await?);
        }
        Ok(begin)
    }

    /// The first byte that was not returned by [`Follower::next`] yet.
    pub(in crate::roles::worker) fn position(&self) -> u64 {
        self.ready.front().map_or(self.position, Piece::offset)
    }

    /// The next piece; `None` when there will be none. Waits for the job where
    /// the reader follows it. Dropping the future loses nothing.
    pub(in crate::roles::worker) async fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            // The end is asked for before the bytes: the last of them are there then.
            let mut extent = *self.extent.borrow_and_update();
            if let Some(until) = self.until {
                (extent.bytes, extent.complete) = (until, true);
            }
            let may_go_on = self.position < extent.bytes
                && self.ready.len() == 1
                && matches!(self.ready.front(), Some(Piece::Gap(_)));
            if !may_go_on && let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.position < extent.bytes {
                self.fill(extent).await?;
            } else if extent.complete || self.extent.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Looks at the next batch below the end, which is more than there was.
    async fn fill(&mut self, extent: Extent) -> io::Result<()> {
        let files = match self.files() {
            Ok(files) => files.clone(),
            // Nothing at all could be recorded, or all of it was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.gap(extent.bytes, extent.gap_cause.or(GapCause::Removed));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Some(batch) = self.batch(&files, extent.bytes).await? else {
            if !self.has_moved(&files) {
                let guess = match extent.complete {
                    true => GapCause::Unknown,
                    false if self.output.has(&files) => GapCause::NotWritten,
                    false => GapCause::Removed,
                };
                self.gap(extent.bytes, extent.gap_cause.or(guess));
            }
            return Ok(());
        };
        let (Some((_, first)), Some((_, last))) = (batch.entries.first(), batch.entries.last())
        else {
            return Ok(());
        };
        let from = self.begin_of(first);
        let length = (last.end() - from).min(BATCH);
        let bytes = files.bytes(from, length).await?;
        if self.is_outdated(&files, &batch, from, &bytes).await? {
            return Ok(());
        }
        self.hand_out(&files, &batch, (from, bytes), extent).await
    }

    /// The next entries below the end, at most a batch of bytes from the first to
    /// the last, or one. What is out of its order is passed over. `None`: there are none.
    async fn batch(&mut self, files: &Files, end: u64) -> io::Result<Option<Batch>> {
        let position = self.position;
        let mut first = match self.entry {
            Some(number) => number,
            None => files.partition(|entry| entry.end() <= position).await?,
        };
        self.entry = Some(first);
        let start = first;
        loop {
            let slots = files.slots(first, ENTRIES).await?;
            if slots.is_empty() {
                return Ok(None);
            }
            let after = first + slots.len() as u64;
            let mut entries: Vec<(u64, Entry)> = Vec::new();
            let (mut next, mut from) = (position, 0);
            for (number, slot) in (first..).zip(slots) {
                let Some(entry) = slot.entry() else { continue };
                if entry.end() <= next || entry.end() > end {
                    continue;
                }
                if entries.is_empty() {
                    from = self.begin_of(&entry);
                } else if entry.offset < from || entry.end() - from > BATCH {
                    break;
                }
                entries.push((number, entry));
                next = entry.end();
            }
            if !entries.is_empty() {
                return Ok(Some(Batch {
                    first: start,
                    entries,
                }));
            }
            first = after;
        }
    }

    /// The first byte to read of a piece, which is held against its checksum as a
    /// whole.
    fn begin_of(&self, entry: &Entry) -> u64 {
        match entry.checksum {
            Some(_) => entry.offset,
            None => entry.offset.max(self.position),
        }
    }

    /// Whether the files have changed since the entries were read, in a way that
    /// calls for another look.
    async fn is_outdated(
        &mut self,
        files: &Files,
        batch: &Batch,
        from: u64,
        bytes: &Bytes,
    ) -> io::Result<bool> {
        let fits = |(_, entry): &(u64, Entry)| {
            let piece = within(bytes, from, entry.offset, entry.end());
            entry.checksum.is_some() && piece.is_some_and(|piece| entry.is_of(&piece))
        };
        if batch.entries.iter().all(fits) {
            return Ok(false);
        }
        // Entries go before their bytes: with the first of them still there, what
        // was read are its bytes and not the hole that came after.
        let (number, entry) = batch.entries[0];
        let now = files.slots(number, 1).await?;
        let is_there = now.first() == Some(&Slot::Entry(entry));
        Ok(!is_there || self.has_moved(files))
    }

    /// Whether other files are in the place of these; then they are opened next.
    fn has_moved(&mut self, files: &Files) -> bool {
        // Where they are gone, what these hold is all there is.
        let has_moved = !self.output.has(files) && self.output.is_there();
        if has_moved {
            self.output.reopen();
            (self.files, self.entry) = (None, None);
        }
        has_moved
    }

    /// Takes over what was read.
    async fn hand_out(
        &mut self,
        files: &Files,
        batch: &Batch,
        (from, bytes): (u64, Bytes),
        extent: Extent,
    ) -> io::Result<()> {
        let mut passed = batch.first;
        for (number, entry) in &batch.entries {
            if entry.offset > self.position {
                let cause = self.cause(files, (passed, *number), entry, extent).await?;
                self.gap(entry.offset, cause);
            }
            let start = self.position.max(entry.offset);
            let there = from + bytes.len() as u64;
            let stop = match entry.checksum {
                Some(_) => entry.end(),
                None => entry.end().min(there.max(start)),
            };
            let piece = within(&bytes, from, entry.offset.max(from), stop);
            let piece = piece.filter(|piece| entry.checksum.is_none() || entry.is_of(piece));
            let shown = piece.and_then(|piece| {
                let offset = entry.offset.max(from);
                within(&piece, offset, start, stop)
            });
            let damaged = damage(extent);
            match shown.filter(|piece| !piece.is_empty()) {
                Some(piece) => self.chunk(entry, start, piece),
                None => self.gap(entry.end(), damaged),
            }
            if self.position < entry.end() {
                // Of an older version, and longer than a batch, or than its file.
                if bytes.len() as u64 == BATCH {
                    self.entry = Some(*number);
                    return Ok(());
                }
                self.gap(entry.end(), damaged);
            }
            passed = number + 1;
            self.entry = Some(passed);
        }
        Ok(())
    }

    /// Why what lies between the position and an entry is missing, of which the
    /// places from the first number on were passed over.
    async fn cause(
        &self,
        files: &Files,
        (passed, number): (u64, u64),
        entry: &Entry,
        extent: Extent,
    ) -> io::Result<GapCause> {
        if entry.gap_before != GapCause::Unknown || entry.checksum.is_none() {
            return Ok(entry.gap_before);
        }
        // What was given back is at the beginning, and nothing but zeros.
        let is_empty = async |number| {
            let slot = files.slots(number, 1).await?.first().copied();
            Ok::<_, io::Error>(slot == Some(Slot::Empty))
        };
        if number > 0 && is_empty(0).await? && is_empty(number - 1).await? {
            return Ok(GapCause::Limit);
        }
        Ok(match passed < number {
            true => damage(extent),
            false => GapCause::Unknown,
        })
    }

    fn chunk(&mut self, entry: &Entry, offset: u64, bytes: Bytes) {
        self.position = offset + bytes.len() as u64;
        let wanted = self.wanted.stream;
        if wanted.is_none_or(|stream| stream == entry.stream) {
            self.ready.push_back(Piece::Chunk(Chunk {
                offset,
                time_us: entry.time_us,
                stream: entry.stream,
                bytes,
            }));
        }
    }

    /// Goes on at `offset`; what is passed over is said, in one with what was passed
    /// over just before.
    fn gap(&mut self, offset: u64, cause: GapCause) {
        let Some(length) = offset.checked_sub(self.position).filter(|l| *l > 0) else {
            return;
        };
        match self.ready.back_mut() {
            Some(Piece::Gap(gap)) if gap.offset + gap.length == self.position => {
                gap.length += length;
                gap.cause = gap.cause.or(cause);
            }
            _ => self.ready.push_back(Piece::Gap(Gap {
                offset: self.position,
                length,
                cause,
            })),
        }
        self.position = offset;
    }

    fn files(&mut self) -> io::Result<&Arc<Files>> {
        match self.files {
            Some(ref files) => Ok(files),
            None => Ok(self.files.insert(self.output.files()?)),
        }
    }
}

/// Why files do not hold what was written there.
fn damage(extent: Extent) -> GapCause {
    match extent.gap_cause {
        GapCause::PowerLoss => GapCause::PowerLoss,
        _ => GapCause::Damaged,
    }
}

/// The part of `bytes`, which begin at the offset `from`, between two offsets.
fn within(bytes: &Bytes, from: u64, start: u64, stop: u64) -> Option<Bytes> {
    let start = usize::try_from(start.checked_sub(from)?).ok()?;
    let stop = usize::try_from(stop.checked_sub(from)?).ok()?;
    (start <= stop && stop <= bytes.len()).then(|| bytes.slice(start..stop))
}
