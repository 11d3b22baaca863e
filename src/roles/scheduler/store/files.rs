//! The files that are open are the files in the folder: a commit to a file that
//! was removed or replaced is on no disk that the next start reads.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Error, reserve, schema};

/// The store's files, as they were when it was opened.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    opened: [(PathBuf, (u64, u64)); 2],
}

impl Files {
    /// Of a store that was just read, so that both are there.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let file = |name: String| {
            let path = folder.join(name);
            let is = identity(&path)?;
            Ok::<_, io::Error>((path, is))
        };
        Ok(Self {
            folder: folder.to_owned(),
            opened: [
                file(schema::FILE.to_owned())?,
                file(format!("{}-wal", schema::FILE))?,
            ],
        })
    }

    /// They are still there.
    pub(super) fn check(&self) -> Result<(), Error> {
        for (path, is) in &self.opened {
            match identity(path) {
                Ok(found) if found == *is => {}
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Folder {
                        folder: self.folder.clone(),
                        source,
                    });
                }
                Ok(_) | Err(_) => return Err(Error::Replaced { file: path.clone() }),
            }
        }
        Ok(())
    }

    /// Keeps room for the next start, if there is any.
    pub(super) fn reserve(&self) {
        reserve::take(&self.folder);
    }

    /// How large the write-ahead log is.
    pub(super) fn log_bytes(&self) -> u64 {
        fs::metadata(&self.opened[1].0).map_or(0, |log| log.len())
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}
