//! The processes of one job: all descendants of the shim, which is their child
//! subreaper, so that even a daemon that left its session stays among them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open, pidfd_send_signal,
        wait,
    },
};

/// How often one [`kill`] looks again for processes born meanwhile. A tree that
/// outgrows this is met again at the next call.
const PASSES: usize = 32;

/// Sends `signal` to every process of the job, and lets those that were stopped
/// run on so that they can act upon it.
pub(super) fn signal(signal: Signal) -> io::Result<()> {
    for process in descendants()? {
        process.send(signal);
        if signal != Signal::STOP && signal != Signal::KILL {
            process.send(Signal::CONT);
        }
    }
    Ok(())
}

/// Kills every process of the job. They are frozen first, until no new one
/// turns up: what forks faster than it is killed does not get away.
pub(super) fn kill() -> io::Result<()> {
    let mut frozen = HashSet::new();
    for _ in 0..PASSES {
        let fresh: Vec<_> = descendants()?
            .into_iter()
            .filter(|process| frozen.insert(process.pid))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for process in fresh {
            process.send(Signal::STOP);
        }
    }
    signal(Signal::KILL)
}

/// Collects one process that has ended.
pub(super) enum Reaped {
    /// This one, with this status.
    Process(Pid, WaitStatus),
    /// None of those that are there has ended.
    StillRunning,
    /// There is no process of the job any more.
    Empty,
}

/// Collects a process that has ended, without waiting for one.
pub(super) fn reap() -> io::Result<Reaped> {
    match wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => Ok(Reaped::Process(pid, status)),
        Ok(None) => Ok(Reaped::StillRunning),
        Err(Errno::CHILD) => Ok(Reaped::Empty),
        Err(error) => Err(error.into()),
    }
}

/// A process, with the parent it was found under.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: Pid,
    parent: i32,
}

impl Process {
    /// Signals through a pidfd, and only if the process behind it is still the
    /// one that was found: a pid given to somebody else meanwhile is not hit.
    fn send(self, signal: Signal) {
        let Ok(pidfd) = pidfd_open(self.pid, PidfdFlags::empty()) else {
            return;
        };
        let own = getpid().as_raw_nonzero().get();
        let still = parent_of(self.pid.as_raw_nonzero().get())
            .is_some_and(|parent| parent == self.parent || parent == own);
        if still {
            // It may have ended since, and then there is nothing to signal.
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }
}

/// All descendants of this process that have not ended, parents before children.
fn descendants() -> io::Result<Vec<Process>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        // A process may end while its entry is read.
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = parents.pop() {
        for pid in children.remove(&parent).unwrap_or_default() {
            parents.push(pid);
            found.extend(Pid::from_raw(pid).map(|pid| Process { pid, parent }));
        }
    }
    Ok(found)
}

/// The parent of a process that has not ended, from `/proc/PID/stat`
/// (proc_pid_stat(5)): `pid (name) state ppid …`, where the name may hold
/// anything, parentheses too.
fn parent_of(pid: i32) -> Option<i32> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &[u8]) -> Option<i32> {
    let behind_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = stat[behind_name..].split(|byte| *byte == b' ').skip(1);
    let state = fields.next()?;
    let parent = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    (state != b"Z" && state != b"X").then_some(parent)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn stat_is_read_behind_the_last_parenthesis() {
        assert_eq!(parse_stat(b"12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parse_stat(b"12 (a) Z 1 (b)) R 9 1"), Some(9));
        assert_eq!(parse_stat(b"12 (sh) Z 7 12"), None);
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b"12 (sh)"), None);
    }

    #[test]
    fn grandchildren_are_found_and_signalled() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 600 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // One byte says that the grandchild is there.
        let mut byte = [0];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        let pid = child.id() as i32;
        let mine: Vec<_> = descendants()
            .unwrap()
            .into_iter()
            .filter(|process| process.pid.as_raw_nonzero().get() == pid || process.parent == pid)
            .collect();
        assert_eq!(mine.len(), 2, "{mine:?}");
        // The children first: one whose parent is gone is somebody else's child here.
        for process in mine.into_iter().rev() {
            process.send(Signal::KILL);
        }
        assert!(!child.wait().unwrap().success());
        assert!(parent_of(pid).is_none());
    }
}
