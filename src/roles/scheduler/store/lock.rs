//! One scheduler for one store: a locked file says who has it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::Error;

const FILE: &str = "lock";

/// A predecessor that is just ending is given this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// The right to the store, until dropped or the process is gone.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Takes the folder for this process and writes down who has it. Waits up
    /// to a second for a predecessor.
    pub(super) fn take(folder: &Path, who: &str) -> Result<Self, Error> {
        let cannot = |source| Error::Folder {
            folder: folder.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(FILE))
            .map_err(cannot)?;
        let began = Instant::now();
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK && error != rustix::io::Errno::INTR {
                return Err(cannot(error.into()));
            }
            if began.elapsed() > PATIENCE {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(cannot)?;
                return Err(Error::InUse {
                    folder: folder.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        match write(&mut file, who) {
            // Only who would take it as well is told less.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            written => written.map_err(cannot)?,
        }
        Ok(Self(file))
    }
}

/// In place of what is there, which has its room already.
fn write(file: &mut File, who: &str) -> io::Result<()> {
    let before = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let text = format!("pid {}, {who}", std::process::id());
    file.rewind()?;
    writeln!(file, "{text:before$}", before = before.saturating_sub(1))
}
