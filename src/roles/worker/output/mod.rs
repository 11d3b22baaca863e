//! Reads recorded output back, from any offset, and goes on with the job as it
//! writes. Who writes it, and in which format, is `shim::record`.
//!
//! Whatever the files hold, a reader is handed each byte below the end once, as
//! output or as part of a gap, and never more of it at once than a batch.

mod files;
mod follower;
#[cfg(test)]
mod tests;

pub(super) use self::follower::{Follower, OpenError, Piece, Wanted};

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::watch;

use self::files::Files;
use crate::roles::shim::record::{GapCause, data_path, index_path};

/// How far the output is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) bytes: u64,
    /// There will be no more.
    pub(super) complete: bool,
    /// Why what is missing at the end is missing, and what does not fit its
    /// checksum.
    pub(super) gap_cause: GapCause,
}

/// A job's output, for all its readers. Its files are opened when the first reader
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

    /// Whether these are the files that are there now: a job goes on in new ones
    /// when the old ones were removed, and on file systems without holes.
    fn has(&self, files: &Files) -> bool {
        files.are_at(&self.base)
    }

    /// Whether there are any.
    fn is_there(&self) -> bool {
        data_path(&self.base).exists() && index_path(&self.base).exists()
    }

    /// Has the next reader open the files again.
    fn reopen(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
    }
}
