use std::path::PathBuf;

use proptest::prelude::*;
use tokio::sync::watch;

use super::{
    Extent, Follower, OpenError, Output, Piece, Wanted,
    files::{BATCH, ENTRIES},
    follower::{Chunk, Gap},
};
use crate::roles::shim::record::{Entry, GapCause, Stream, data_path, index_path};

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
        let time_us = (number as i64 + 1) * 1000;
        let entry = Entry::of(data.len() as u64, time_us, *stream, bytes);
        index.extend(entry.encode());
        data.extend_from_slice(bytes);
    }
    std::fs::write(data_path(&base), &data).unwrap();
    std::fs::write(index_path(&base), &index).unwrap();
    let extent = Extent {
        bytes: data.len() as u64,
        complete: true,
        gap_cause: GapCause::Unknown,
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
        ..Extent::default()
    });
    let mut follower = Follower::open(recorded.output(), all()).await.unwrap();
    assert_eq!(chunk(follower.next().await.unwrap()).bytes, "one\ntwo\n");
    let next = tokio::spawn(async move { (follower.next().await.unwrap(), follower) });
    recorded.extent.send_replace(Extent {
        bytes: 13,
        ..Extent::default()
    });
    let (next, mut follower) = next.await.unwrap();
    assert_eq!(chunk(next).bytes, "oops\n");
    recorded.extent.send_replace(Extent {
        bytes: 19,
        complete: true,
        ..Extent::default()
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
                Piece::Gap(gap) => (gap.offset, gap.length, false),
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

/// Everything that a reader is handed.
async fn pieces(output: Output, wanted: Wanted) -> Vec<Piece> {
    let mut follower = Follower::open(output, wanted).await.unwrap();
    let mut pieces = Vec::new();
    while let Some(piece) = follower.next().await.unwrap() {
        pieces.push(piece);
    }
    pieces
}

fn gap(offset: u64, length: u64, cause: GapCause) -> Piece {
    Piece::Gap(Gap {
        offset,
        length,
        cause,
    })
}

/// Of each piece where it begins, how long it is, and why it is missing.
fn outline(pieces: &[Piece]) -> Vec<(u64, u64, Option<GapCause>)> {
    let outline = pieces.iter().map(|piece| match piece {
        Piece::Chunk(chunk) => (chunk.offset, chunk.bytes.len() as u64, None),
        Piece::Gap(gap) => (gap.offset, gap.length, Some(gap.cause)),
    });
    outline.collect()
}

#[tokio::test]
async fn a_damaged_index_is_a_gap() {
    let recorded = recorded(&PIECES);
    std::fs::write(index_path(&recorded.base), [7; 96]).unwrap();
    let all_of_it = [gap(0, 19, GapCause::Unknown)];
    assert_eq!(pieces(recorded.output(), all()).await, all_of_it);
    let wanted = Wanted {
        tail: Some(2),
        since_us: Some(0),
        ..all()
    };
    assert_eq!(pieces(recorded.output(), wanted).await, []);
}

#[tokio::test]
async fn what_is_left_of_a_damaged_record_is_shown_and_the_rest_is_a_gap() {
    let recorded = recorded(&PIECES);
    let index = std::fs::read(index_path(&recorded.base)).unwrap();
    let data = std::fs::read(data_path(&recorded.base)).unwrap();
    let damaged = Some(GapCause::Damaged);
    // Bytes that are not those that were written.
    let mut wrong = data.clone();
    wrong[9] = 0;
    std::fs::write(data_path(&recorded.base), &wrong).unwrap();
    let shown = outline(&pieces(recorded.output(), all()).await);
    assert_eq!(
        shown,
        [(0, 8, None), (8, 5, damaged), (13, 3, None), (16, 3, None)]
    );
    // In the middle of such a piece as well.
    let wanted = Wanted {
        offset: 11,
        ..all()
    };
    let shown = outline(&pieces(recorded.output(), wanted).await);
    assert_eq!(shown[0], (11, 2, damaged));
    // A file that is shorter than its index.
    std::fs::write(data_path(&recorded.base), &data[..14]).unwrap();
    let shown = outline(&pieces(recorded.output(), all()).await);
    assert_eq!(shown, [(0, 8, None), (8, 5, None), (13, 6, damaged)]);
    // An entry that is none.
    let mut torn = index.clone();
    torn[Entry::SIZE..2 * Entry::SIZE].fill(7);
    std::fs::write(data_path(&recorded.base), &data).unwrap();
    std::fs::write(index_path(&recorded.base), &torn).unwrap();
    let shown = outline(&pieces(recorded.output(), all()).await);
    assert_eq!(
        shown,
        [(0, 8, None), (8, 5, damaged), (13, 3, None), (16, 3, None)]
    );
    // After a power loss that is why.
    recorded
        .extent
        .send_modify(|extent| extent.gap_cause = GapCause::PowerLoss);
    let shown = outline(&pieces(recorded.output(), all()).await);
    assert_eq!(shown[1], (8, 5, Some(GapCause::PowerLoss)));
}

#[tokio::test]
async fn entries_behind_zeros_are_found_from_any_offset() {
    let recorded = recorded(&[(Stdout, b"0123456789".as_slice()); 400]);
    let mut index = std::fs::read(index_path(&recorded.base)).unwrap();
    // A page in the middle, and the one at the end, which the disk never got.
    index[100 * Entry::SIZE..270 * Entry::SIZE].fill(0);
    index[300 * Entry::SIZE..].fill(0);
    std::fs::write(index_path(&recorded.base), &index).unwrap();
    for offset in [0, 5, 999, 1000, 1005, 2699, 2700, 2999, 3000, 3999] {
        let wanted = Wanted { offset, ..all() };
        let shown = outline(&pieces(recorded.output(), wanted).await);
        let is_missing = |at: u64| (1000..2700).contains(&at) || at >= 3000;
        assert_eq!(
            shown[0].2.is_some(),
            is_missing(offset),
            "{offset}: {shown:?}"
        );
        let bytes: u64 = shown.iter().map(|(_, length, _)| length).sum();
        assert_eq!(offset + bytes, 4000);
    }
    let wanted = Wanted {
        since_us: Some(150_000),
        ..all()
    };
    assert_eq!(outline(&pieces(recorded.output(), wanted).await)[0].0, 2700);
}

#[tokio::test]
async fn the_beginning_that_was_given_back_is_told_from_damage() {
    let recorded = recorded(&PIECES);
    let mut index = std::fs::read(index_path(&recorded.base)).unwrap();
    index[..2 * Entry::SIZE].fill(0);
    std::fs::write(index_path(&recorded.base), &index).unwrap();
    let shown = pieces(recorded.output(), all()).await;
    assert_eq!(shown[0], gap(0, 13, GapCause::Limit));
    let cause = GapCause::DiskFull;
    let last = Entry {
        gap_before: cause,
        ..Entry::decode(index[3 * Entry::SIZE..].first_chunk().unwrap()).unwrap()
    };
    index.splice(2 * Entry::SIZE.., last.encode());
    std::fs::write(index_path(&recorded.base), &index).unwrap();
    let shown = pieces(recorded.output(), all()).await;
    assert_eq!(shown[0], gap(0, 16, cause), "the entry knows it");
}

#[tokio::test]
async fn files_that_are_gone_are_a_gap() {
    let recorded = recorded(&PIECES);
    std::fs::remove_file(data_path(&recorded.base)).unwrap();
    for wanted in [
        all(),
        Wanted {
            tail: Some(1),
            since_us: Some(0),
            ..all()
        },
    ] {
        let shown = pieces(recorded.output(), wanted).await;
        assert_eq!(shown, [gap(0, 19, GapCause::Removed)]);
    }
}

#[tokio::test]
async fn a_follower_goes_on_in_new_files() {
    let recorded = recorded(&PIECES);
    recorded
        .extent
        .send_modify(|extent| extent.complete = false);
    let output = recorded.output();
    let mut follower = Follower::open(output.clone(), all()).await.unwrap();
    for _ in PIECES {
        chunk(follower.next().await.unwrap());
    }
    // As the shim does it after they were removed.
    let entry = Entry {
        gap_before: GapCause::Removed,
        ..Entry::of(25, 9, Stdout, b"new\n")
    };
    for (path, bytes, at) in [
        (data_path(&recorded.base), b"new\n".as_slice(), 25),
        (index_path(&recorded.base), &entry.encode(), 0),
    ] {
        std::fs::remove_file(&path).unwrap();
        let file = std::fs::File::create(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    }
    recorded.extent.send_modify(|extent| extent.bytes = 29);
    let next = follower.next().await.unwrap();
    assert_eq!(next, Some(gap(19, 6, GapCause::Removed)));
    assert_eq!(chunk(follower.next().await.unwrap()).bytes, "new\n");
}

#[tokio::test]
async fn without_follow_it_ends_where_the_output_ended_then() {
    let recorded = recorded(&PIECES);
    let running = |bytes| Extent {
        bytes,
        ..Extent::default()
    };
    recorded.extent.send_replace(running(16));
    let wanted = Wanted {
        follow: false,
        tail: Some(2),
        ..all()
    };
    let mut follower = Follower::open(recorded.output(), wanted).await.unwrap();
    recorded.extent.send_replace(running(19));
    assert_eq!(chunk(follower.next().await.unwrap()).bytes, "oops\n");
    assert_eq!(chunk(follower.next().await.unwrap()).bytes, "thr");
    assert_eq!(follower.next().await.unwrap(), None);
    assert_eq!(follower.position(), 16);
}

/// A sparse file with a piece at either end of a hole of 3 GiB.
#[tokio::test]
async fn a_large_hole_costs_no_memory() {
    const HOLE: u64 = 3 << 30;
    let recorded = recorded(&[(Stdout, b"one\ntwo\n".as_slice())]);
    let cause = GapCause::DiskFull;
    let last = Entry {
        gap_before: cause,
        ..Entry::of(HOLE, 9000, Stdout, b"three\nfour\n")
    };
    let mut index = std::fs::read(index_path(&recorded.base)).unwrap();
    index.extend(last.encode());
    std::fs::write(index_path(&recorded.base), index).unwrap();
    let data = std::fs::File::options()
        .write(true)
        .open(data_path(&recorded.base))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&data, b"three\nfour\n", HOLE).unwrap();
    recorded
        .extent
        .send_modify(|extent| extent.bytes = HOLE + 11);
    // No read of more than a batch: `files::read` asserts that.
    for (lines, begin) in [(1, HOLE + 6), (2, 8), (3, 4), (4, 0), (9, 0)] {
        let wanted = Wanted {
            tail: Some(lines),
            ..all()
        };
        let shown = outline(&pieces(recorded.output(), wanted).await);
        assert_eq!(shown[0].0, begin, "the last {lines}");
        let is_across = shown.contains(&(8, HOLE - 8, Some(cause)));
        assert_eq!(is_across, lines > 1, "{shown:?}");
    }
}

/// What an older version has made of a file without an index.
#[tokio::test]
async fn a_piece_longer_than_a_batch_is_read_in_parts() {
    let recorded = recorded(&[]);
    let mut text = vec![b'x'; 3 * BATCH as usize];
    text[100] = b'\n';
    text[2 * BATCH as usize + 5] = b'\n';
    let entry = Entry {
        checksum: None,
        length: text.len() as u32,
        ..Entry::of(0, 1, Stdout, b"")
    };
    std::fs::write(data_path(&recorded.base), &text).unwrap();
    std::fs::write(index_path(&recorded.base), entry.encode()).unwrap();
    recorded
        .extent
        .send_modify(|extent| extent.bytes = text.len() as u64);
    assert!(read_all(&recorded, all()).await == (0, text.clone()));
    for (lines, begin) in [(1, 2 * BATCH + 6), (2, 101), (3, 0)] {
        let wanted = Wanted {
            tail: Some(lines),
            ..all()
        };
        assert_eq!(read_all(&recorded, wanted).await.0, begin);
    }
    // And its file has lost its end.
    std::fs::write(data_path(&recorded.base), &text[..BATCH as usize + 7]).unwrap();
    let shown = outline(&pieces(recorded.output(), all()).await);
    let (begin, length, _) = *shown.last().unwrap();
    assert_eq!((begin, length), (BATCH + 7, 2 * BATCH - 7));
}

/// What a reader without haste makes of the two files: all entries in their order,
/// and of each the bytes that fit it.
fn naively(data: &[u8], index: &[u8], end: u64) -> Vec<(u64, u64, Option<Vec<u8>>)> {
    let mut shown: Vec<(u64, u64, Option<Vec<u8>>)> = Vec::new();
    let mut position = 0;
    let pass = |shown: &mut Vec<(u64, u64, Option<Vec<u8>>)>, from: u64, to: u64| {
        if to > from {
            match shown.last_mut() {
                Some((_, length, None)) => *length += to - from,
                _ => shown.push((from, to - from, None)),
            }
        }
    };
    for entry in index.as_chunks().0.iter().filter_map(Entry::decode) {
        if entry.end() <= position || entry.end() > end {
            continue;
        }
        let start = position.max(entry.offset);
        pass(&mut shown, position, start);
        let length = data.len() as u64;
        let there = |from: u64, to: u64| &data[from as usize..to as usize];
        let stop = match entry.checksum {
            None => entry.end().min(length).max(start),
            Some(_) if entry.end() > length => start,
            Some(_) if entry.is_of(there(entry.offset, entry.end())) => entry.end(),
            Some(_) => start,
        };
        if stop > start {
            shown.push((start, stop - start, Some(there(start, stop).to_vec())));
        }
        pass(&mut shown, stop, entry.end());
        position = entry.end();
    }
    pass(&mut shown, position, end);
    shown
}

/// Files as a job leaves them, and what may become of them.
fn files() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, u64)> {
    let piece = (
        prop::collection::vec(any::<u8>(), 1..40),
        any::<bool>(),
        prop_oneof![4 => Just(0u64), 1 => 1u64..50],
    );
    let harm = (any::<bool>(), 0usize..2000, 1usize..60, any::<u8>());
    let pieces = prop::collection::vec(piece, 0..60);
    (
        pieces,
        any::<bool>(),
        prop::collection::vec(harm, 0..5),
        0u64..100,
    )
        .prop_map(|(pieces, is_old, harms, more)| {
            let (mut data, mut index) = (Vec::new(), Vec::new());
            for (number, (bytes, stdout, lost)) in pieces.iter().enumerate() {
                data.resize(data.len() + *lost as usize, 0);
                let stream = if *stdout { Stdout } else { Stderr };
                let mut entry = Entry::of(data.len() as u64, number as i64, stream, bytes);
                if is_old {
                    entry.checksum = None;
                }
                index.extend(entry.encode());
                data.extend(bytes);
            }
            let end = data.len() as u64 + more;
            for (to_data, at, length, byte) in harms {
                let file = if to_data { &mut data } else { &mut index };
                let at = at.min(file.len());
                let stop = (at + length).min(file.len());
                match byte {
                    200.. => file.truncate(at),
                    byte => file[at..stop].fill(byte.saturating_sub(99)),
                }
            }
            (data, index, end)
        })
}

fn read_back(data: &[u8], index: &[u8], end: u64, wanted: Wanted) -> Vec<Piece> {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("job");
    std::fs::write(data_path(&base), data).unwrap();
    std::fs::write(index_path(&base), index).unwrap();
    let extent = Extent {
        bytes: end,
        complete: true,
        ..Extent::default()
    };
    let (_sender, extent) = watch::channel(extent);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime
        .unwrap()
        .block_on(pieces(Output::new(base, extent), wanted))
}

/// As the naive reader says it, with pieces that belong together as one.
fn as_shown(pieces: &[Piece]) -> Vec<(u64, u64, Option<Vec<u8>>)> {
    let shown = pieces.iter().map(|piece| match piece {
        Piece::Chunk(chunk) => {
            let bytes = chunk.bytes.to_vec();
            (chunk.offset, bytes.len() as u64, Some(bytes))
        }
        Piece::Gap(gap) => (gap.offset, gap.length, None),
    });
    shown.collect()
}

/// Every byte from the first on is there once.
fn is_whole(pieces: &[Piece], end: u64) {
    let outline = outline(pieces);
    for pair in outline.windows(2) {
        assert_eq!(pair[0].0 + pair[0].1, pair[1].0, "{outline:?}");
    }
    if let Some((offset, length, _)) = outline.last() {
        assert_eq!(offset + length, end);
    }
}

proptest! {
    #[test]
    fn a_harmed_record_is_read_as_a_naive_reader_does(
        (data, index, end) in files(), offset in 0u64..2000, lines in 0u64..20,
    ) {
        let read = read_back(&data, &index, end, all());
        prop_assert_eq!(as_shown(&read), naively(&data, &index, end));
        for wanted in [
            Wanted { offset: offset.min(end), ..all() },
            Wanted { tail: Some(lines), ..all() },
            Wanted { since_us: Some(offset as i64), ..all() },
        ] {
            is_whole(&read_back(&data, &index, end, wanted), end);
        }
    }

    #[test]
    fn any_files_are_read_as_a_naive_reader_does(
        data in prop::collection::vec(any::<u8>(), 0..300),
        index in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..600),
        end in 0u64..1000, offset in 0u64..1000, lines in 0u64..5,
    ) {
        let read = read_back(&data, &index, end, all());
        prop_assert_eq!(as_shown(&read), naively(&data, &index, end));
        for wanted in [
            Wanted { offset: offset.min(end), ..all() },
            Wanted { tail: Some(lines), stream: Some(Stderr), ..all() },
        ] {
            let stream = wanted.stream;
            let read = read_back(&data, &index, end, wanted);
            if stream.is_none() {
                is_whole(&read, end);
            }
        }
    }
}
