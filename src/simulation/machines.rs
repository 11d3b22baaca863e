//! The machines of workers: which boot they are in, and what a loss of power takes
//! from the disk.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{lock, note, one_of};

static MACHINES: Mutex<BTreeMap<String, Machine>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Machine {
    boots: u32,
    journal: Option<Journal>,
}

struct Journal {
    path: PathBuf,
    /// So many bytes of it are on the disk.
    synced: u64,
    length: u64,
}

/// The boot of the machine of this worker.
pub(crate) fn boot_id(worker: &str) -> String {
    let boots = lock(&MACHINES).entry(worker.to_owned()).or_default().boots;
    format!("{worker}-{boots}")
}

/// A journal is so long, of which so much is on the disk of the machine.
pub(crate) fn journal_is(path: &Path, synced: u64, length: u64) {
    let mut machines = lock(&MACHINES);
    let of_path = |machine: &&mut Machine| {
        machine
            .journal
            .as_ref()
            .is_some_and(|journal| journal.path == path)
    };
    if let Some(journal) = machines
        .values_mut()
        .find(of_path)
        .and_then(|it| it.journal.as_mut())
    {
        (journal.synced, journal.length) = (synced, length);
    }
}

/// The worker of this machine keeps its journal there.
pub(super) fn keeps_journal(worker: &str, path: PathBuf) {
    lock(&MACHINES)
        .entry(worker.to_owned())
        .or_default()
        .journal = Some(Journal {
        path,
        synced: 0,
        length: 0,
    });
}

/// The power of a machine has failed, and its worker and shims are gone: of what was
/// written to the journal and not synced any part may be missing.
pub(super) fn lose_power(worker: &str) -> io::Result<()> {
    let mut machines = lock(&MACHINES);
    let machine = machines.entry(worker.to_owned()).or_default();
    machine.boots += 1;
    let Some(journal) = &machine.journal else {
        return Ok(());
    };
    let unsynced = journal.length.saturating_sub(journal.synced);
    let kept = journal.synced + one_of(unsynced + 1);
    let is_zero = one_of(2) == 0;
    note(&format!(
        "{worker} loses power: {kept} of {} bytes are left",
        journal.length
    ));
    let file = match OpenOptions::new().write(true).open(&journal.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    match is_zero {
        // The size was on the disk, the bytes were not.
        true => file.write_all_at(&vec![0; (journal.length - kept) as usize], kept),
        false => file.set_len(kept),
    }
}
