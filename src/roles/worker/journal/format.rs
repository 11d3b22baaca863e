//! How records lie in the file, and how a reader tells what a power loss left of
//! the file's end from damage.
//!
//! After a power loss whatever follows the last sync may be anything: zeros, bytes
//! of another file, pages out of order, any length. So the file says itself how much
//! of it was synced: in its header, which is synced before the file gets its name,
//! and in a *mark* that is written after each sync. What cannot be read and is not
//! covered by any mark, wherever in the file that mark is, was promised to no caller
//! and is cut off. What is covered by one is damage and is refused.
//!
//! Numbers are little-endian, checksums CRC-32. The header is a magic number, a
//! number that no other journal has, how much of the file was synced when it got its
//! name, and a checksum. A record is the length of its body, a checksum of that, the
//! body (JSON), and a checksum of the body. A mark is a record with a bit set in its
//! length, whose body is the number of bytes that are synced. All checksums after
//! the header cover the journal's number and the place in the file too, so that what
//! another journal left in the same blocks is not taken for a record of this one.

use super::Record;

/// The longest body, in bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// In the first format this would be a length that is refused.
const MAGIC: [u8; 8] = *b"\xf1jobjrn2";

/// Magic, number, synced, checksum.
pub(super) const HEADER: usize = 28;

/// What a record has beside its body.
const FRAME: usize = 12;

/// The length word of a mark. No JSON has its bytes.
const MARK: u32 = 0x8000_0008;

/// How a journal is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Without a header, a place in the checksums, and marks: that of jobctl before
    /// the marks. Such a file is replaced as soon as there is room for another.
    First,
    /// As described above.
    Second {
        /// No other journal has it.
        number: [u8; 8],
    },
}

/// What a file holds.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) format: Format,
    pub(super) records: Vec<Record>,
    /// Where the last whole record ends. What follows is to be cut off.
    pub(super) end: u64,
    /// How much is known to have been synced.
    pub(super) synced: u64,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// The first byte of what cannot be read.
    pub(super) at: u64,
    pub(super) what: &'static str,
}

impl Format {
    /// One with a number of its own.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut number = [0; 8];
        getrandom::fill(&mut number)?;
        Ok(Self::Second { number })
    }

    /// A whole file with these records. What it says of itself is true once it is
    /// synced.
    pub(super) fn file(self, records: &[Record]) -> Vec<u8> {
        let mut bytes = match self {
            Self::First => Vec::new(),
            Self::Second { .. } => vec![0; HEADER],
        };
        for record in records {
            bytes.extend(self.record(bytes.len() as u64, record));
        }
        if let Self::Second { number } = self {
            let mut header = Vec::with_capacity(HEADER);
            header.extend(MAGIC);
            header.extend(number);
            header.extend((bytes.len() as u64).to_le_bytes());
            header.extend(crc32fast::hash(&header).to_le_bytes());
            bytes[..HEADER].copy_from_slice(&header);
        }
        bytes
    }

    /// A record that is to lie at this place.
    pub(super) fn record(self, at: u64, record: &Record) -> Vec<u8> {
        let body = serde_json::to_vec(record).expect("a record is always valid JSON");
        let length = u32::try_from(body.len()).expect("records are far below 4 GiB");
        self.frame(at, length, &body)
    }

    /// Says, at this place, that so many bytes are synced. Empty where the format has
    /// no marks.
    pub(super) fn mark(self, at: u64, synced: u64) -> Vec<u8> {
        match self {
            Self::First => Vec::new(),
            Self::Second { .. } => self.frame(at, MARK, &synced.to_le_bytes()),
        }
    }

    fn frame(self, at: u64, length: u32, body: &[u8]) -> Vec<u8> {
        let length = length.to_le_bytes();
        let mut bytes = Vec::with_capacity(body.len() + FRAME);
        bytes.extend(length);
        bytes.extend(self.checksum(at, &length).to_le_bytes());
        bytes.extend(body);
        bytes.extend(self.checksum(at, body).to_le_bytes());
        bytes
    }

    fn checksum(self, at: u64, bytes: &[u8]) -> u32 {
        match self {
            Self::First => crc32fast::hash(bytes),
            Self::Second { number } => {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&number);
                hasher.update(&at.to_le_bytes());
                hasher.update(bytes);
                hasher.finalize()
            }
        }
    }

    /// What lies at this place.
    fn read(self, bytes: &[u8], at: usize) -> Read<'_> {
        let Some((length, rest)) = bytes[at..].split_first_chunk::<4>() else {
            return Read::Short;
        };
        let Some((checksum, rest)) = rest.split_first_chunk::<4>() else {
            return Read::Short;
        };
        let sum = |bytes| self.checksum(at as u64, bytes).to_le_bytes();
        if sum(length) != *checksum {
            return Read::Bad("the checksum of a length is wrong");
        }
        let is_mark = self != Self::First && *length == MARK.to_le_bytes();
        let length = match is_mark {
            true => 8,
            false => u32::from_le_bytes(*length) as usize,
        };
        if length > MAX_BODY {
            return Read::Bad("a record is too long");
        }
        let Some((body, rest)) = rest.split_at_checked(length) else {
            return Read::Short;
        };
        let Some((checksum, _)) = rest.split_first_chunk::<4>() else {
            return Read::Short;
        };
        if sum(body) != *checksum {
            return Read::Bad("the checksum of a record is wrong");
        }
        match body.try_into() {
            Ok(body) if is_mark => Read::Mark(u64::from_le_bytes(body)),
            _ => Read::Body(body),
        }
    }

    /// The most that a mark somewhere after this place says is synced.
    fn marked_after(self, bytes: &[u8], at: usize) -> u64 {
        let mut most = 0;
        if let Self::Second { .. } = self {
            let word = MARK.to_le_bytes();
            for (place, found) in bytes.windows(word.len()).enumerate().skip(at + 1) {
                if found == word
                    && let Read::Mark(synced) = self.read(bytes, place)
                {
                    most = most.max(synced);
                }
            }
        }
        most
    }
}

/// What was found at a place.
enum Read<'a> {
    /// The body of a record.
    Body(&'a [u8]),
    /// So much is synced.
    Mark(u64),
    /// The file ends here, or in the middle of what is here.
    Short,
    /// What is here is nothing that was written here.
    Bad(&'static str),
}

/// What a file holds.
///
/// # Errors
///
/// When something in it is wrong that no power loss makes wrong.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, Damage> {
    let (format, start, mut synced) = header(bytes)?;
    let (mut records, mut at) = (Vec::new(), start);
    let wrong = loop {
        match format.read(bytes, at) {
            Read::Body(body) => {
                let record = serde_json::from_slice(body).map_err(|_| Damage {
                    at: at as u64,
                    what: "a record of a newer version of jobctl, perhaps",
                })?;
                records.push(record);
                at += body.len() + FRAME;
            }
            Read::Mark(said) => {
                synced = synced.max(said);
                at += size_of::<u64>() + FRAME;
            }
            Read::Short => break "the file ends too early",
            Read::Bad(what) => break what,
        }
    };
    let damage = Damage {
        at: at as u64,
        what: wrong,
    };
    let is_torn = match format {
        // Such a file does not say what was synced, but for its first record. It was
        // torn where it ends in the middle of a record, or has its size without its
        // bytes.
        Format::First if at == start => bytes.is_empty(),
        Format::First => {
            matches!(format.read(bytes, at), Read::Short)
                || bytes[at..].iter().all(|byte| *byte == 0)
        }
        Format::Second { .. } => synced.max(format.marked_after(bytes, at)) <= damage.at,
    };
    match is_torn {
        true => Ok(Decoded {
            format,
            records,
            end: damage.at,
            synced,
        }),
        false => Err(damage),
    }
}

/// The format of a file, where its first record lies, and how much of it was synced
/// before it got its name.
fn header(bytes: &[u8]) -> Result<(Format, usize, u64), Damage> {
    let Some(rest) = bytes.strip_prefix(&MAGIC) else {
        return Ok((Format::First, 0, 0));
    };
    let damage = Damage {
        at: 0,
        what: "its header is wrong",
    };
    let (Some((number, rest)), Some(covered)) = (
        rest.split_first_chunk::<8>(),
        bytes.get(..HEADER - size_of::<u32>()),
    ) else {
        return Err(damage);
    };
    let Some((synced, rest)) = rest.split_first_chunk::<8>() else {
        return Err(damage);
    };
    if !rest.starts_with(&crc32fast::hash(covered).to_le_bytes()) {
        return Err(damage);
    }
    let format = Format::Second { number: *number };
    Ok((format, HEADER, u64::from_le_bytes(*synced)))
}

/// Whatever is in the file, what is read of it is read the same when it is written
/// again; and whatever a power loss left after what was synced, that is still there.
/// See [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub fn fuzz(bytes: &[u8]) {
    let format = Format::Second {
        number: *b"a number",
    };
    if let Ok(decoded) = decode(bytes) {
        let again = decode(&bytes[..decoded.end as usize]).expect("it was read before");
        assert_eq!(again.records, decoded.records);
        let again = decode(&format.file(&decoded.records)).expect("it was just written");
        assert_eq!(again.records, decoded.records);
    }
    let mut torn = format.file(&[Record::Epoch(1)]);
    let synced = torn.len() as u64;
    torn.extend(bytes);
    match decode(&torn) {
        Ok(decoded) => assert_eq!(decoded.records.first(), Some(&Record::Epoch(1))),
        Err(damage) => assert!(damage.at >= synced),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{began, ended, intent, spec},
        *,
    };

    /// Each of them with where it ends.
    fn written(format: Format, records: &[Record]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = format.file(&[]);
        let mut ends = vec![bytes.len()];
        for record in records {
            bytes.extend(format.record(bytes.len() as u64, record));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn records() -> Vec<Record> {
        let (a, b) = (spec(), spec());
        vec![
            Record::Epoch(1),
            intent(&a),
            intent(&b),
            began(&a),
            ended(&a),
        ]
    }

    #[test]
    fn every_prefix_is_read_and_cut_where_a_record_ends() {
        let records = records();
        for format in [Format::First, Format::new().unwrap()] {
            let (whole, ends) = written(format, &records);
            for cut in ends[usize::from(format == Format::First)]..=whole.len() {
                let decoded = decode(&whole[..cut]).unwrap();
                let expected = ends.iter().rposition(|end| *end <= cut).unwrap();
                assert_eq!(decoded.records, records[..expected], "cut at {cut}");
                assert_eq!(decoded.end, ends[expected] as u64);
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_what_was_synced_is_refused() {
        let records = records();
        let format = Format::new().unwrap();
        let (mut whole, mut ends) = written(format, &records);
        let synced = whole.len();
        whole.extend(format.mark(synced as u64, synced as u64));
        for torn in [0, 700] {
            // Whatever of what was not synced is there.
            whole.resize(whole.len() + torn, 0);
            for at in 0..synced {
                for bit in 0..8 {
                    let mut flipped = whole.clone();
                    flipped[at] ^= 1 << bit;
                    let damage = decode(&flipped).unwrap_err();
                    let record = ends.iter().rfind(|end| **end <= at).unwrap_or(&0);
                    assert_eq!(damage.at, *record as u64);
                }
            }
        }
        // The mark itself was promised to no caller.
        ends.push(synced);
        for at in synced..synced + 20 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert_eq!(decode(&flipped).unwrap().end, synced as u64);
        }
    }

    #[test]
    fn every_flipped_bit_of_the_first_format_is_refused() {
        let (whole, ends) = written(Format::First, &records());
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let place = *ends.iter().rfind(|end| **end <= at).unwrap();
                assert_eq!(decode(&flipped).unwrap_err().at, place as u64);
            }
        }
        let nothing = vec![0; 4096];
        assert_eq!(decode(&nothing).unwrap_err().at, 0);
    }

    #[test]
    fn files_that_were_written_before_are_read() {
        let first = include_bytes!("../../../../fuzz/corpus/journal/first");
        let second = include_bytes!("../../../../fuzz/corpus/journal/second");
        let [first, second] = [&first[..], &second[..]].map(|file| decode(file).unwrap());
        assert_eq!(first.format, Format::First);
        assert_eq!(first.records.len(), 4);
        assert_eq!(first.records, second.records);
    }

    #[test]
    fn what_was_synced_before_the_file_got_its_name_has_to_be_there() {
        let whole = Format::new().unwrap().file(&records());
        for cut in 1..whole.len() {
            let read = decode(&whole[..cut]);
            assert!(read.is_err(), "cut at {cut}: {read:?}");
        }
        assert_eq!(decode(&whole).unwrap().synced, whole.len() as u64);
    }

    #[test]
    fn what_another_journal_left_in_the_same_place_is_no_record() {
        let (older, ends) = written(Format::new().unwrap(), &records());
        let (mut whole, _) = written(Format::new().unwrap(), &records());
        whole[ends[2]..].copy_from_slice(&older[ends[2]..]);
        let decoded = decode(&whole).unwrap();
        assert_eq!((decoded.records.len(), decoded.end), (2, ends[2] as u64));
    }

    #[test]
    fn a_record_of_a_newer_version_is_not_cut_off() {
        let format = Format::new().unwrap();
        let mut whole = format.file(&records());
        let at = whole.len() as u64;
        let body = br#"{"unheard_of":1}"#;
        whole.extend(format.frame(at, body.len() as u32, body));
        let damage = decode(&whole).unwrap_err();
        assert_eq!(damage.at, at);
        assert!(damage.what.contains("newer version"));
    }
}
