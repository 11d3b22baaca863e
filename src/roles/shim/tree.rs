//! The processes of one job: all descendants of the shim, which is their child
//! subreaper, so that even a daemon that left its session stays among them. Where
//! the job has a control group, that is killed first, in one stroke.

use std::{collections::HashSet, fs, io, path::Path};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open, pidfd_send_signal,
        wait,
    },
};

use super::protocol::OutOfMemory;

/// How often one [`kill`] looks again for processes born meanwhile. A tree that
/// outgrows this is met again at the next call.
pub(super) const PASSES: usize = 32;

/// How often a tree is listed at most, until two lists are the same: a process that
/// ends in between may hide others from one list.
const LISTS: usize = 4;

/// Sends `signal` to every process of the job, and lets those that were stopped
/// run on so that they can act upon it. With a control group its members are the
/// processes; without, the descendants of this one. Returns how many there were.
pub(super) fn signal(signal: Signal, cgroup: Option<&Path>) -> io::Result<u32> {
    let processes = match cgroup {
        Some(cgroup) => members(cgroup)?,
        None => descendants()?,
    };
    Ok(send_to(&processes, signal))
}

fn send_to(processes: &[Process], signal: Signal) -> u32 {
    let mut reached = 0;
    for process in processes {
        reached += u32::from(process.send(signal));
        if signal != Signal::STOP && signal != Signal::KILL {
            process.send(Signal::CONT);
        }
    }
    reached
}

/// Kills every descendant of this process, also those that a job with the rights
/// for it has moved to another control group. They are frozen first, until no new
/// one turns up: what forks faster than it is killed does not get away.
pub(super) fn kill() -> io::Result<()> {
    kill_each(descendants)
}

pub(super) fn kill_each(listed: impl Fn() -> io::Result<Vec<Process>>) -> io::Result<()> {
    let mut frozen = HashSet::new();
    for _ in 0..PASSES {
        let fresh: Vec<_> = listed()?
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
    send_to(&listed()?, Signal::KILL);
    Ok(())
}

/// Kills all processes of a control group and the groups within, which the
/// kernel does without letting one fork away. None there is fine too.
pub(super) fn kill_cgroup(cgroup: &Path) -> io::Result<()> {
    match fs::write(cgroup.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes a control group that has no processes any more, with the groups that
/// the job may have made within.
pub(super) fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Whether the kernel has killed processes of a control group for want of memory
/// (`memory.events` in the kernel's cgroup-v2.rst). To be asked before it is removed.
pub(super) fn out_of_memory(cgroup: &Path) -> Option<OutOfMemory> {
    // Without the memory controller there is no such file.
    let events = fs::read_to_string(cgroup.join("memory.events")).ok()?;
    let happened = |event: &str| {
        let mut events = events.lines().filter_map(|line| line.split_once(' '));
        events.any(|(name, count)| name == event && count != "0")
    };
    if !happened("oom_kill") {
        return None;
    }
    let limit = || {
        let limit = fs::read_to_string(cgroup.join("memory.max")).ok()?;
        limit.trim().parse().ok()
    };
    // Without it the limit that was reached is that of a group around this one.
    match happened("oom").then(limit).flatten() {
        Some(limit) => Some(OutOfMemory::Job(limit)),
        None => Some(OutOfMemory::Others),
    }
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
#[derive(Clone, Debug)]
pub(super) struct Process {
    pid: Pid,
    found: Found,
}

/// Where a process was found, and where it must still be to be meant.
#[derive(Clone, Debug)]
enum Found {
    /// Among the children of this one, or by now of this shim.
    Under(i32),
    /// In the control group that has this last name.
    In(String),
}

impl Process {
    pub(super) fn under(pid: i32, parent: i32) -> Option<Self> {
        let found = Found::Under(parent);
        Pid::from_raw(pid).map(|pid| Self { pid, found })
    }

    /// Signals through a pidfd, and only if the process that it refers to is still
    /// the one that was found: a process that has got its pid since is not hit.
    /// Returns whether it was.
    fn send(&self, signal: Signal) -> bool {
        let Ok(pidfd) = pidfd_open(self.pid, PidfdFlags::empty()) else {
            return false;
        };
        let pid = self.pid.as_raw_nonzero();
        let is_still_there = match &self.found {
            Found::Under(found) => {
                let own = own_pid();
                stat_of(pid.get()).is_some_and(|stat| stat.parent == *found || stat.parent == own)
            }
            Found::In(group) => fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|groups| groups.contains(group.as_str())),
        };
        // It may have ended since, and then there is nothing to signal.
        is_still_there && pidfd_send_signal(pidfd, signal).is_ok()
    }
}

pub(super) fn own_pid() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// All descendants of this process, parents before children.
fn descendants() -> io::Result<Vec<Process>> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for _ in 0..LISTS {
        let before = found.len();
        let listed = below(own_pid())?;
        found.extend(listed.into_iter().filter(|one| known.insert(one.pid)));
        if found.len() == before {
            break;
        }
    }
    Ok(found)
}

/// The descendants of a process as one look shows them.
pub(super) fn below(pid: i32) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for child in children_of(parent)? {
            parents.push(child);
            found.extend(Process::under(child, parent));
        }
    }
    Ok(found)
}

/// The children of a process, with those that have ended and were not collected.
pub(super) fn children_of(pid: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let threads = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads,
        Err(error) if is_shortage(&error) => return Err(error),
        // It has gone, and its children are those of another.
        Err(_) => return Ok(found),
    };
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(children) => {
                found.extend(
                    children
                        .split_whitespace()
                        .filter_map(|child| child.parse::<i32>().ok()),
                );
            }
            Err(error) if is_shortage(&error) => return Err(error),
            // A kernel that does not list children (CONFIG_PROC_CHILDREN).
            Err(error) if error.kind() == io::ErrorKind::NotFound && thread.path().exists() => {
                return children_among_all(pid);
            }
            Err(_) => {}
        }
    }
    Ok(found)
}

/// The children of a process, of all that the machine has.
fn children_among_all(pid: i32) -> io::Result<Vec<i32>> {
    let mut found = processes()?;
    found.retain(|child| read_stat(*child).is_some_and(|stat| stat.parent == pid));
    Ok(found)
}

/// The processes of a control group and of those within.
fn members(cgroup: &Path) -> io::Result<Vec<Process>> {
    let name = cgroup.file_name().unwrap_or_default().to_string_lossy();
    let mut found = Vec::new();
    let mut groups = vec![cgroup.to_owned()];
    while let Some(group) = groups.pop() {
        let pids = fs::read_to_string(group.join("cgroup.procs"))?;
        let pids = pids.lines().filter_map(|line| line.parse().ok());
        found.extend(pids.filter_map(Pid::from_raw).map(|pid| Process {
            pid,
            found: Found::In(name.clone().into_owned()),
        }));
        for entry in fs::read_dir(&group)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                groups.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// All processes of the machine.
pub(super) fn processes() -> io::Result<Vec<i32>> {
    // A process may end while its entry is read.
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.collect())
}

/// What there is to know of a process.
#[derive(Debug, PartialEq)]
pub(super) struct Stat {
    parent: i32,
    pub(super) session: u32,
    /// In clock ticks since the boot.
    pub(super) born: u64,
    pub(super) has_ended: bool,
}

/// A file of a process; empty where the process has gone, or is hidden from us.
///
/// # Errors
///
/// When it is this process that cannot read: what it does not see may be there.
pub(super) fn read_of(pid: i32, file: &str) -> io::Result<Vec<u8>> {
    match fs::read(format!("/proc/{pid}/{file}")) {
        Err(error) if is_shortage(&error) => Err(error),
        read => Ok(read.unwrap_or_default()),
    }
}

/// Too many open files, or too little memory.
fn is_shortage(error: &io::Error) -> bool {
    let error = Errno::from_io_error(error);
    matches!(error, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// What there is to know of a process that has not ended; `None` for others.
pub(super) fn stat_of(pid: i32) -> Option<Stat> {
    read_stat(pid).filter(|stat| !stat.has_ended)
}

/// Reads `/proc/PID/stat`, which is there until an ended process is collected.
pub(super) fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid pgrp session …`, where the name may hold anything,
/// parentheses too (proc_pid_stat(5)).
pub(super) fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let behind_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = str::from_utf8(&stat[behind_name..]).ok()?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    // The first thread of a process may have ended before the others, which live.
    let threads: u32 = fields.get(17)?.parse().ok()?;
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        born: fields.get(19)?.parse().ok()?,
        has_ended: matches!(*fields.first()?, "Z" | "X") && threads <= 1,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn stat_is_read_behind_the_last_parenthesis() {
        let stat = |start: &str, threads: u32| {
            parse_stat(
                format!("{start} 12 13 0 -1 4 1 0 0 0 0 0 0 0 20 0 {threads} 0 9").as_bytes(),
            )
            .map(|stat| (stat.parent, stat.session, stat.born, stat.has_ended))
        };
        assert_eq!(stat("12 (sh) S 7", 1), Some((7, 13, 9, false)));
        assert_eq!(stat("12 (a) Z 1 (b)) R 9", 1), Some((9, 13, 9, false)));
        assert_eq!(stat("12 (sh) Z 7", 1), Some((7, 13, 9, true)));
        assert_eq!(
            stat("12 (sh) Z 7", 2),
            Some((7, 13, 9, false)),
            "its other threads live"
        );
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b"12 (sh)"), None);
    }

    #[test]
    fn a_kill_for_want_of_memory_is_told_from_others() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(out_of_memory(dir.path()), None, "no memory controller");
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("memory.max", "1073741824\n");
        write("memory.events", "low 0\nmax 7\noom 0\noom_kill 0\n");
        assert_eq!(out_of_memory(dir.path()), None);
        write("memory.events", "low 0\nmax 7\noom 2\noom_kill 1\n");
        assert_eq!(
            out_of_memory(dir.path()),
            Some(OutOfMemory::Job(1_073_741_824))
        );
        write("memory.events", "low 0\nmax 7\noom 0\noom_kill 1\n");
        assert_eq!(out_of_memory(dir.path()), Some(OutOfMemory::Others));
        write("memory.events", "oom 1\noom_kill 1\noom_group_kill 0\n");
        write("memory.max", "max\n");
        assert_eq!(out_of_memory(dir.path()), Some(OutOfMemory::Others));
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
            .filter(|process| {
                let is_child = matches!(process.found, Found::Under(parent) if parent == pid);
                is_child || process.pid.as_raw_nonzero().get() == pid
            })
            .collect();
        assert_eq!(mine.len(), 2, "{mine:?}");
        // Frozen, the parent cannot end by itself when its child does; and the child
        // goes first, for without its parent it is somebody else's child here.
        for process in &mine {
            assert!(process.send(Signal::STOP));
        }
        for process in mine.iter().rev() {
            assert!(process.send(Signal::KILL));
        }
        assert!(!child.wait().unwrap().success());
        assert_eq!(stat_of(pid), None);
    }

    #[test]
    fn children_are_those_that_a_look_at_all_processes_finds() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 600 & sleep 600 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        let pid = child.id() as i32;
        let (mut found, mut all) = (children_of(pid).unwrap(), children_among_all(pid).unwrap());
        found.sort_unstable();
        all.sort_unstable();
        assert_eq!((found.len(), &found), (2, &all));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(children_of(pid).unwrap().is_empty());
        for orphan in found {
            let orphan = Pid::from_raw(orphan).unwrap();
            rustix::process::kill_process(orphan, Signal::KILL).unwrap();
        }
    }
}
