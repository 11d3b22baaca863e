//! Which start of the scheduler this is, kept so that a start needs no room: beside the
//! tables there is a file that has its block already, and is written in place.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use jiff::Timestamp;

/// The file in the scheduler's data folder.
const FILE: &str = "epoch";

/// A number and the end of its line: so few bytes are written whole or not at all.
const LENGTH: usize = 21;

/// The epoch of this start, above `recorded`, which the tables have, and above that of
/// every start that had no room to write it there. It is on the disk.
///
/// # Errors
///
/// When the file is not there and cannot be made, or cannot be written: then it may not
/// be used unless the tables have it.
pub(super) fn take(folder: &Path, recorded: u64) -> Result<u64, (u64, io::Error)> {
    let (file, before) = match open(folder) {
        Ok((file, before)) => (Ok(file), before),
        Err(error) => (Err(error), 0),
    };
    let now = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
    // The time, so that an epoch that was used after a copy was made of this store is
    // not used again when the copy is put back.
    let epoch = recorded.max(before).saturating_add(1).max(now);
    let written = file.and_then(|file| {
        file.write_all_at(format!("{epoch:020}\n").as_bytes(), 0)?;
        file.sync_all()?;
        // Its name, which may be new.
        File::open(folder)?.sync_all()
    });
    match written {
        Ok(()) => Ok(epoch),
        Err(error) => Err((epoch, error)),
    }
}

fn open(folder: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(FILE))?;
    let mut text = String::new();
    let read = (&mut file).take(LENGTH as u64).read_to_string(&mut text);
    let epoch = match read {
        Ok(0) => 0,
        Ok(_) => text.trim().parse().unwrap_or_else(|_| {
            // The workers know which epochs there were.
            tracing::warn!(file = FILE, "not a number: it is written again");
            0
        }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => 0,
        Err(error) => return Err(error),
    };
    Ok((file, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_epoch_is_taken_twice_whatever_the_tables_have() {
        let folder = tempfile::tempdir().unwrap();
        let far = 1 << 40;
        assert_eq!(take(folder.path(), far).unwrap(), far + 1);
        // The tables never had it.
        assert_eq!(take(folder.path(), far).unwrap(), far + 2);
        assert_eq!(take(folder.path(), 0).unwrap(), far + 3);
        assert_eq!(take(folder.path(), far * 2).unwrap(), far * 2 + 1);
        let file = folder.path().join(FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().len(), LENGTH as u64);
        std::fs::write(&file, [0xff; LENGTH]).unwrap();
        assert_eq!(take(folder.path(), far).unwrap(), far + 1);
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(FILE)).unwrap();
        let (epoch, _) = take(folder.path(), 1 << 40).unwrap_err();
        assert_eq!(epoch, (1 << 40) + 1);
    }
}
