//! What lives on this machine that a worker's data folder does not know: shims of
//! jobs that were started after the folder was copied, or before it was removed; and
//! another worker with the same identity, in a copy of the folder.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use rustix::{
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
        sockopt::socket_peercred,
    },
    process::geteuid,
};

use super::{
    error::RunError,
    job::{Place, Spec},
    journal::{Contents, Journal, Known, Record},
    shim::end_stray,
};
use crate::{blocking::spawn_blocking, ids::JobId, roles::shim::protocol::socket_name};

/// What the kernel says of a folder that was removed (proc_pid_cwd(5)).
const REMOVED: &[u8] = b" (deleted)";

/// Held by a worker as long as it runs: no other one on this machine has its
/// identity.
#[derive(Debug)]
pub(super) struct Alone {
    _listener: Option<UnixListener>,
}

/// Refuses to run beside a worker of the same identity, which has another data
/// folder: they would take each other's jobs.
pub(super) fn alone(id: &str) -> Result<Alone, RunError> {
    let held = |listener| Alone {
        _listener: listener,
    };
    if id.is_empty() {
        return Ok(held(None));
    }
    // Each worker of a simulation has a machine of its own.
    #[cfg(test)]
    if crate::simulation::is_on() {
        return Ok(held(None));
    }
    let name = format!("jobctl-worker-{id}");
    let address = SocketAddr::from_abstract_name(&name);
    match address.and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => Ok(held(Some(listener))),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_of_this_user(&name) => {
            Err(RunError::RunsAlready(id.to_owned()))
        }
        Err(error) => {
            // Anybody on this machine can take a name that is free.
            tracing::warn!(%error, "cannot tell whether this worker runs twice on this machine");
            Ok(held(None))
        }
    }
}

fn is_of_this_user(name: &str) -> bool {
    let connected = || -> rustix::io::Result<bool> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(
            &socket,
            &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        )?;
        Ok(socket_peercred(&socket)?.uid == geteuid())
    };
    connected().unwrap_or(false)
}

/// Finds the shims of this data folder that live and that the journal does not know.
/// Where the journal has a past they are added to `contents`, to be taken over like
/// all others; where it has none, the folder was removed, and with it the identity
/// under which the scheduler knows the jobs: they are ended, and that is said.
pub(super) async fn gather(
    contents: &mut Contents,
    journal: &Journal,
    place: &Place,
    boot_id: &str,
    grace: Duration,
) {
    let output = place.output.clone();
    let living = spawn_blocking(move || living(&output)).await;
    let mut strays = living.unwrap_or_default();
    strays.retain(|id| !contents.jobs.contains_key(id) && !journal.memory().contains(*id));
    if strays.is_empty() {
        return;
    }
    let has_past = *contents != Contents::default();
    if !has_past {
        let ended = strays.iter().map(|id| end_stray(*id, grace));
        for (id, ended) in strays
            .iter()
            .zip(futures_util::future::join_all(ended).await)
        {
            match ended {
                Ok(()) => tracing::warn!(
                    job_id = %id,
                    "ended a job of an earlier worker of this data folder, which was removed since"
                ),
                Err(error) => tracing::error!(
                    job_id = %id, %error,
                    "cannot end a job of an earlier worker of this data folder, which was removed"
                ),
            }
        }
        return;
    }
    for id in strays {
        tracing::warn!(
            job_id = %id,
            "took over a job that the journal does not know: was the data folder put back from a \
             copy?"
        );
        let spec = unknown(id);
        let intent = Record::Intent {
            spec: spec.clone(),
            boot_id: boot_id.to_owned(),
        };
        // Without room for it, it is found again by the next worker.
        let _ = journal.append(intent).await;
        let known = Known {
            spec,
            boot_id: boot_id.to_owned(),
            began: None,
            end: None,
        };
        contents.jobs.insert(id, known);
    }
}

/// What was asked for is the scheduler's to know.
fn unknown(id: JobId) -> Spec {
    Spec {
        id,
        command: Some("unknown".to_owned()),
        path: None,
        args: Vec::new(),
        env: Default::default(),
        cwd: None,
        user: None,
        name: None,
        timeout: None,
        created: Timestamp::now(),
        attempt: None,
    }
}

/// The jobs of the shims whose output goes to this folder, or to one that was there
/// before.
fn living(output: &Path) -> Vec<JobId> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.filter_map(|process| {
        let name = process.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0).skip(1);
        if words.next()? != b"shim" {
            return None;
        }
        let id: JobId = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        // The folder of one that another user runs cannot be read, only what it was
        // told.
        let told = words.next().filter(|word| !word.is_empty());
        let is_ours = match told {
            Some(told) => told == output.as_os_str().as_bytes(),
            None => {
                let folder = fs::read_link(process.path().join("cwd")).ok()?;
                let folder = folder.as_os_str().as_bytes();
                folder.strip_suffix(REMOVED).unwrap_or(folder) == output.as_os_str().as_bytes()
            }
        };
        (is_ours && is_run_by_us(&process.path()) && is_called(id)).then_some(id)
    });
    found.collect()
}

/// Whether the process of this folder of /proc runs as the worker does. Who owns the
/// folder does not say so: that of a shim is root's.
fn is_run_by_us(process: &Path) -> bool {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let effective = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
    effective == Some(geteuid().as_raw())
}

/// Whether a shim can be called under the job's name, whatever a command line says.
fn is_called(id: JobId) -> bool {
    let listening = fs::read("/proc/net/unix").unwrap_or_default();
    let name = format!("@{}", socket_name(id));
    let mut lines = listening.split(|byte| *byte == b'\n');
    lines.any(|line| line.ends_with(name.as_bytes()))
}
