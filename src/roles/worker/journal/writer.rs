//! The thread that writes the journal.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    AppendError, Contents, OpenError, Record,
    format::{self, Decoded, Format},
};

/// Below this size the file is not worth rewriting.
pub(super) const REWRITE_FROM: u64 = 1024 * 1024;

/// How many records one sync may cover.
pub(super) const BATCH: usize = 1024;

/// How much more is written before a rewrite that failed is tried again.
const REWRITE_AGAIN: u64 = 64 * 1024;

/// How often in a row the file may be taken away while a record is written.
const TAKEN_AWAY: usize = 3;

/// What the thread is asked for: a record to write, and who is to know how that went;
/// `None`: to see whether the file is still where it was.
pub(super) type Ask = Option<(Record, oneshot::Sender<Result<(), AppendError>>)>;

/// Why a journal can no longer be written.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The disk.
    Io(io::Error),
    /// Its folder is not the one in which it was opened.
    Removed,
}

/// Why something was not written.
enum Failure {
    Full,
    Broken(Broken),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(Broken::Io(error))
    }
}

/// Which file or folder this is, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Which {
    device: u64,
    inode: u64,
}

impl Which {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// What has this name now.
    fn named(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(Self::of(&metadata))),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

pub(super) struct Writer {
    path: PathBuf,
    /// The folder of the file, which stays the same one as long as it is open.
    folder: File,
    file: File,
    format: Format,
    length: u64,
    /// How much of it is on the disk.
    synced: u64,
    /// How much of it the file itself says is on the disk.
    marked: u64,
    contents: Contents,
    /// The length from which it is to be rewritten.
    rewrite_at: u64,
    /// A new file has taken the place of the old, and that is not yet on the disk.
    renamed: bool,
}

/// The bytes of a journal, and what they mean; `None` if there is no file.
///
/// # Errors
///
/// When it cannot be read, or is damaged.
pub(super) fn load(path: &Path) -> Result<Option<(Vec<u8>, Decoded)>, OpenError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })?,
    };
    let decoded = format::decode(&bytes).map_err(|damage| OpenError::Damaged {
        path: path.to_owned(),
        at: damage.at,
        what: damage.what,
    })?;
    Ok(Some((bytes, decoded)))
}

impl Writer {
    /// Opens or makes the file. What is left of a torn record goes, and so does what
    /// is of no more use; where there is no room for a new file, the old one is used.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let loaded = load(path)?;
        let contents = match &loaded {
            Some((_, decoded)) => decoded.records.iter().cloned().collect(),
            None => Contents::default(),
        };
        let folder = File::open(folder_of(path)).map_err(io)?;
        let error = match NewFile::write(path, &contents) {
            Ok(new) => {
                folder.sync_all().map_err(io)?;
                return Ok(Self::with(path, folder, new, contents));
            }
            Err(error) => error,
        };
        match loaded {
            Some((bytes, decoded)) if is_full(&error) => {
                tracing::warn!(path = %path.display(), %error, "no room to rewrite the journal");
                Self::continued(path, folder, contents, &bytes, &decoded).map_err(io)
            }
            _ => Err(io(error)),
        }
    }

    fn with(path: &Path, folder: File, new: NewFile, contents: Contents) -> Self {
        Self {
            path: path.to_owned(),
            folder,
            file: new.file,
            format: new.format,
            length: new.length,
            synced: new.length,
            marked: new.length,
            contents,
            rewrite_at: REWRITE_FROM.max(new.length * 2),
            renamed: false,
        }
    }

    /// Goes on with the file that is there, which takes no room: only its torn end
    /// is cut off.
    fn continued(
        path: &Path,
        folder: File,
        contents: Contents,
        bytes: &[u8],
        decoded: &Decoded,
    ) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        file.set_len(decoded.end)?;
        // What an earlier worker could not sync may have been read from memory
        // alone. Written again, it is part of this sync.
        let unsynced = decoded.synced.min(decoded.end);
        let again = &bytes[unsynced as usize..decoded.end as usize];
        let synced = match file.write_all_at(again, unsynced) {
            Ok(()) => decoded.end,
            // A file system that never writes in place has no room for that either.
            Err(error) if is_full(&error) => unsynced,
            Err(error) => return Err(error),
        };
        file.sync_data()?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            file,
            format: decoded.format,
            length: decoded.end,
            synced,
            marked: unsynced,
            contents,
            // As soon as there is room.
            rewrite_at: 0,
            renamed: false,
        })
    }

    /// What is in the file.
    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Writes what it is asked to, until no caller is left. `broken` is told, with the
    /// reason, when that is no longer possible.
    pub(super) fn run(mut self, mut asked: mpsc::Receiver<Ask>, broken: impl FnOnce(Broken)) {
        while let Some(first) = asked.blocking_recv() {
            if let Err(why) = self.turn(first, &mut asked) {
                return broken(why);
            }
        }
    }

    /// As [`Writer::run`], as a task of a simulation, with a disk that takes its time.
    #[cfg(test)]
    pub(super) async fn run_simulated(
        mut self,
        mut asked: mpsc::Receiver<Ask>,
        broken: impl FnOnce(Broken),
    ) {
        use crate::simulation::{disk, machines};
        loop {
            machines::journal_is(&self.path, self.synced, self.length);
            let Some(first) = asked.recv().await else {
                return;
            };
            disk().await;
            if let Err(why) = self.turn(first, &mut asked) {
                return broken(why);
            }
        }
    }

    /// Writes this and all that was asked for behind it.
    fn turn(&mut self, first: Ask, asked: &mut mpsc::Receiver<Ask>) -> Result<(), Broken> {
        let (mut records, mut callers) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(ask) = next {
            if let Some((record, caller)) = ask {
                records.push(record);
                callers.push(caller);
            }
            next = match records.len() < BATCH {
                true => asked.try_recv().ok(),
                false => None,
            };
        }
        let answer = match self.commit(&records) {
            Ok(()) => Ok(()),
            Err(Failure::Full) => Err(AppendError::Full),
            Err(Failure::Broken(why)) => return Err(why),
        };
        if answer.is_ok() {
            records
                .into_iter()
                .for_each(|record| self.contents.apply(record));
        }
        for caller in callers {
            // One who has gone away wants no answer.
            let _ = caller.send(answer.clone());
        }
        self.tidy()
    }

    /// Records on the disk, in the file that has the journal's name.
    fn commit(&mut self, records: &[Record]) -> Result<(), Failure> {
        let needs_sync =
            |record: &Record| !matches!(record, Record::Began { .. } | Record::Commit(_));
        for _ in 0..TAKEN_AWAY {
            self.keep_place()?;
            self.write(records)?;
            if records.iter().any(needs_sync) {
                // Never again after a failed one: the kernel may have dropped the
                // bytes and forgotten that it did.
                self.file.sync_data()?;
                self.synced = self.length;
            }
            if self.is_in_place()? {
                return Ok(());
            }
        }
        Err(Failure::Broken(Broken::Removed))
    }

    /// Writes at the end of the file, in whose middle half a record would be damage.
    fn write(&mut self, records: &[Record]) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        if self.marked < self.synced {
            bytes.extend(self.format.mark(self.length, self.synced));
        }
        for record in records {
            let at = self.length + bytes.len() as u64;
            bytes.extend(self.format.record(at, record));
        }
        if let Err(error) = self.file.write_all_at(&bytes, self.length) {
            self.file.set_len(self.length)?;
            return Err(match is_full(&error) {
                true => Failure::Full,
                false => error.into(),
            });
        }
        self.length += bytes.len() as u64;
        self.marked = self.synced;
        Ok(())
    }

    /// Says in the file what is synced, and rewrites it where that is worth it. Both
    /// can be done another time.
    fn tidy(&mut self) -> Result<(), Broken> {
        if let Err(Failure::Broken(why)) = self.write(&[]) {
            return Err(why);
        }
        if self.length <= self.rewrite_at {
            return Ok(());
        }
        match self.rewrite() {
            Ok(()) => Ok(()),
            Err(error) if self.renamed => Err(Broken::Io(error)),
            Err(error) => {
                // The old file is whole; it is only longer than it need be.
                tracing::warn!(%error, "cannot rewrite the journal");
                self.rewrite_at = self.length + REWRITE_AGAIN;
                Ok(())
            }
        }
    }

    /// Whether the name still leads to the file.
    fn is_in_place(&self) -> io::Result<bool> {
        let own = Which::of(&self.file.metadata()?);
        Ok(Which::named(&self.path)? == Some(own))
    }

    /// A file that was removed or replaced is written again from what is known of it.
    fn keep_place(&mut self) -> Result<(), Failure> {
        if self.is_in_place()? {
            return Ok(());
        }
        let own = Which::of(&self.folder.metadata()?);
        if Which::named(folder_of(&self.path))? != Some(own) {
            return Err(Failure::Broken(Broken::Removed));
        }
        let path = self.path.display();
        tracing::error!(%path, "the journal was removed or replaced; it is written again");
        self.rewrite().map_err(|error| match self.renamed {
            false if is_full(&error) => Failure::Full,
            _ => error.into(),
        })
    }

    /// Writes a new file with what is of use, and puts it in the place of the old.
    fn rewrite(&mut self) -> io::Result<()> {
        let new = NewFile::write(&self.path, &self.contents)?;
        self.file = new.file;
        self.format = new.format;
        self.length = new.length;
        (self.synced, self.marked) = (new.length, new.length);
        self.rewrite_at = REWRITE_FROM.max(new.length * 2);
        // From here on what follows is in the new file, and must be found there.
        self.renamed = true;
        self.folder.sync_all()?;
        self.renamed = false;
        Ok(())
    }
}

/// A journal that has just got its name.
struct NewFile {
    file: File,
    format: Format,
    length: u64,
}

impl NewFile {
    /// All or nothing: it gets its name when it is on the disk. That the name is there
    /// too is the caller's business.
    fn write(path: &Path, contents: &Contents) -> io::Result<Self> {
        let format = Format::new().map_err(io::Error::other)?;
        let bytes = format.file(&contents.records());
        // Always the same name, so that workers that are killed here leave one
        // file at most.
        let unfinished = path.with_extension("new");
        remove(&unfinished)?;
        let written = Self::create(&unfinished, &bytes).and_then(|file| {
            fs::rename(&unfinished, path)?;
            Ok(file)
        });
        match written {
            Ok(file) => Ok(Self {
                file,
                format,
                length: bytes.len() as u64,
            }),
            Err(error) => {
                // Its room is needed.
                let _ = remove(&unfinished);
                Err(error)
            }
        }
    }

    fn create(path: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(file)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{began, ended, intent, spec},
        *,
    };

    /// What a power loss does to a file.
    #[derive(Clone, Debug)]
    struct Loss {
        /// What is written as a whole or not at all.
        sector: usize,
        /// How many bytes beyond what was synced the file has afterwards.
        longer: usize,
        /// What becomes of each sector: 0 it is there, 1 zeros, 2 what another journal
        /// has there, 3 what this one has elsewhere, 4 other bytes.
        sectors: Vec<u8>,
    }

    fn loss() -> impl Strategy<Value = Loss> {
        let sector = prop_oneof![Just(512), Just(4096)];
        let sectors = prop::collection::vec(0..5u8, 1..12);
        (sector, 0..20_000usize, sectors).prop_map(|(sector, longer, sectors)| Loss {
            sector,
            longer,
            sectors,
        })
    }

    impl Loss {
        /// What is on the disk of a file of which so much was synced.
        fn of(&self, whole: &[u8], synced: usize, older: &[u8]) -> Vec<u8> {
            let mut left = whole.to_vec();
            left.resize(synced + self.longer, 0);
            let chance = self.sectors.iter().cycle();
            for ((number, sector), what) in left.chunks_mut(self.sector).enumerate().zip(chance) {
                let start = number * self.sector;
                for (place, byte) in (start..).zip(sector.iter_mut()) {
                    let of = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
                    if place >= synced {
                        *byte = match what {
                            0 => *byte,
                            1 => 0,
                            2 => of(older, place),
                            3 => of(whole, place.saturating_sub(self.sector)),
                            _ => (place * 31 + 7) as u8,
                        };
                    }
                }
            }
            left
        }
    }

    /// What is written at once: kinds of records, and whether the mark follows.
    type Turn = (Vec<u8>, bool);

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let kinds = prop::collection::vec(0..5u8, 1..4);
        prop::collection::vec((kinds, any::<bool>()), 1..8)
    }

    fn record(kind: u8) -> Record {
        let mut spec = spec();
        match kind {
            0 => Record::Epoch(9),
            1 => began(&spec),
            2 => ended(&spec),
            3 => {
                spec.args = vec!["x".repeat(3000)];
                intent(&spec)
            }
            _ => intent(&spec),
        }
    }

    /// Writes records; returns them, and how many of them were promised.
    fn write(writer: &mut Writer, turns: &[Turn]) -> (Vec<Record>, usize) {
        let (mut written, mut promised) = (Vec::new(), 0);
        for (kinds, marks) in turns {
            let records: Vec<_> = kinds.iter().map(|kind| record(*kind)).collect();
            assert!(writer.commit(&records).is_ok());
            written.extend(records);
            if writer.synced == writer.length {
                promised = written.len();
            }
            if *marks {
                writer.tidy().unwrap();
            }
        }
        (written, promised)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_power_loss_takes_nothing_that_was_promised(
            first in turns(), second in turns(), one in loss(), two in loss(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            let mut older = Writer::open(&path).unwrap();
            write(&mut older, &second);
            let older = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();

            let mut writer = Writer::open(&path).unwrap();
            let mut before = load(&path).unwrap().unwrap().1.records;
            // After the first loss it goes on in the same file.
            for (turns, loss) in [(&first, &one), (&second, &two)] {
                let (written, promised) = write(&mut writer, turns);
                before.extend(written);
                let unpromised = turns_len(turns) - promised;
                let whole = fs::read(&path).unwrap();
                fs::write(&path, loss.of(&whole, writer.synced as usize, &older)).unwrap();

                let (bytes, decoded) = load(&path).unwrap().unwrap();
                let found = decoded.records.len();
                prop_assert!(found + unpromised >= before.len(), "{found} of {}", before.len());
                prop_assert_eq!(&decoded.records[..], &before[..found]);
                before.truncate(found);
                let contents = before.iter().cloned().collect();
                let folder = File::open(dir.path()).unwrap();
                writer = Writer::continued(&path, folder, contents, &bytes, &decoded).unwrap();
                writer.rewrite_at = u64::MAX;
            }
            let contents = writer.contents().clone();
            let opened = Writer::open(&path).unwrap();
            prop_assert_eq!(opened.contents(), &contents);
        }

        #[test]
        fn damage_in_what_was_synced_is_refused(
            turns in turns(), loss in loss(), place: prop::sample::Index, bit in 0..8,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            let mut writer = Writer::open(&path).unwrap();
            write(&mut writer, &turns);
            // A mark is part of the next sync, and so is there after the loss.
            writer.tidy().unwrap();
            prop_assert!(writer.commit(&[Record::Epoch(10)]).is_ok());
            let marked = writer.marked as usize;
            let whole = fs::read(&path).unwrap();
            let mut left = loss.of(&whole, writer.synced as usize, &[]);
            left[place.index(marked)] ^= 1u8 << bit;
            fs::write(&path, &left).unwrap();
            let refused = matches!(Writer::open(&path), Err(OpenError::Damaged { .. }));
            prop_assert!(refused);
            prop_assert_eq!(fs::read(&path).unwrap(), left);
        }
    }

    fn turns_len(turns: &[Turn]) -> usize {
        turns.iter().map(|(kinds, _)| kinds.len()).sum()
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_cut_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (a, b) = (spec(), spec());
        for format in [Format::First, Format::new().unwrap()] {
            let mut bytes = format.file(&[intent(&a), intent(&b)]);
            let whole = bytes.len() as u64;
            bytes.extend([0; 100]);
            fs::write(&path, &bytes).unwrap();
            let (bytes, decoded) = load(&path).unwrap().unwrap();
            let contents = decoded.records.iter().cloned().collect();
            let folder = File::open(dir.path()).unwrap();
            let mut writer = Writer::continued(&path, folder, contents, &bytes, &decoded).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), whole);
            let inode = fs::metadata(&path).unwrap().ino();
            assert!(writer.commit(&[ended(&a)]).is_ok());
            writer.contents.apply(ended(&a));
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
            let read = load(&path).unwrap().unwrap().1.records;
            assert_eq!(read, [intent(&a), intent(&b), ended(&a)]);
            // There is room now.
            writer.tidy().unwrap();
            assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
            assert_eq!(Writer::open(&path).unwrap().contents(), writer.contents());
        }
    }
}
