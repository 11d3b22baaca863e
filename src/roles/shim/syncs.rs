//! Has the output put on the disk while no worker is there to do it.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::recorder::Recorder;

/// From the first byte that is not on the disk to the sync.
const PERIOD: Duration = Duration::from_millis(500);

/// A sync needs little of it.
const STACK: usize = 64 * 1024;

/// When, and how far, the output was synced by this shim.
#[derive(Default)]
pub(super) struct Syncs {
    due: Option<Instant>,
    /// The end of what is synced, or will be by the thread; the worker does not say
    /// what it has synced.
    synced: u64,
    /// Syncs while the job goes on writing; gone when it is done.
    thread: Option<JoinHandle<()>>,
}

impl Syncs {
    /// When to look next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins a sync if it is time for one.
    pub(super) fn look(&mut self, is_followed: bool, recorder: &Recorder) {
        if is_followed {
            (self.due, self.synced) = (None, 0);
            return;
        }
        if recorder.end() == self.synced {
            return;
        }
        let now = Instant::now();
        if *self.due.get_or_insert(now + PERIOD) > now {
            return;
        }
        self.due = None;
        if self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            // A slow disk is not asked twice at once.
            self.due = Some(now + PERIOD);
            return;
        }
        let Some(files) = recorder.files() else {
            self.synced = recorder.end();
            return;
        };
        let thread = thread::Builder::new().stack_size(STACK).spawn(move || {
            // Readers find out by the checksums what the disk did not take.
            let _ = files.sync();
        });
        if thread.is_ok() {
            self.synced = recorder.end();
        }
        self.thread = thread.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::shim::record::Stream;

    #[test]
    fn output_is_synced_only_while_no_worker_does_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(dir.path().join("job"), u64::MAX);
        let mut syncs = Syncs::default();
        syncs.look(false, &recorder);
        assert_eq!(syncs.due(), None, "there is nothing to sync");
        recorder.append(Stream::Stdout, b"x");
        syncs.look(true, &recorder);
        assert_eq!(syncs.due(), None, "the worker does it");
        syncs.look(false, &recorder);
        assert!(syncs.due().is_some(), "the worker has gone");
        syncs.due = Some(Instant::now());
        syncs.look(false, &recorder);
        assert_eq!((syncs.due(), syncs.synced), (None, 1));
        syncs.thread.take().unwrap().join().unwrap();
        syncs.look(false, &recorder);
        assert_eq!(syncs.due(), None, "all of it is on the disk");
        recorder.append(Stream::Stdout, b"y");
        syncs.look(false, &recorder);
        assert!(syncs.due().is_some());
    }
}
