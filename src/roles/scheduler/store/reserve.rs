//! Room for a start on a full disk: what SQLite needs before it can read.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// The file in the scheduler's data folder.
const FILE: &str = "reserve";

/// The index of the write-ahead log has 32 KiB; the rest is for names and for what a
/// file system that never writes in place needs.
const BYTES: usize = 96 * 1024;

/// Gives the room back; false: there was none.
pub(super) fn release(folder: &Path) -> bool {
    fs::remove_file(folder.join(FILE)).is_ok()
}

/// Takes the room, unless it is taken already. Without any there is nothing to take: it
/// is tried again.
pub(super) fn take(folder: &Path) {
    let file = folder.join(FILE);
    let is_whole = fs::metadata(&file).is_ok_and(|found| found.len() == BYTES as u64);
    if !is_whole && let Err(error) = fill(&file) {
        tracing::debug!(%error, "no room can be reserved for the next start");
        // What is there of it may be all that others have.
        drop(fs::remove_file(file));
    }
}

fn fill(file: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    // Not zeros, which some file systems do not keep.
    let text: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    file.write_all(&text)?;
    file.sync_all()
}
