//! The processes of one job: all descendants of the shim, which is their child
//! subreaper, so that even a daemon that left its session stays among them. Where
//! the job has a control group, that is killed first, in one stroke.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open, pidfd_send_signal,
        wait,
    },
};

use super::protocol::{Birth, OutOfMemory};
use crate::ids::JobId;

/// How often one [`kill`] looks again for processes born meanwhile. A tree that
/// outgrows this is met again at the next call.
const PASSES: usize = 32;

/// Sends `signal` to every process of the job, and lets those that were stopped
/// run on so that they can act upon it. With a control group its members are the
/// processes; without, all of the machine's are looked through for them.
pub(super) fn signal(signal: Signal, cgroup: Option<&Path>) -> io::Result<()> {
    let processes = match cgroup {
        Some(cgroup) => members(cgroup)?,
        None => descendants()?,
    };
    for process in processes {
        process.send(signal);
        if signal != Signal::STOP && signal != Signal::KILL {
            process.send(Signal::CONT);
        }
    }
    Ok(())
}

/// Kills every descendant of this process, also those that a job with the rights
/// for it has moved to another control group. They are frozen first, until no new
/// one turns up: what forks faster than it is killed does not get away.
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
    signal(Signal::KILL, None)
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

/// Kills what is left of a job whose shim is gone, so that nobody is its
/// subreaper: the processes of its control group, those that bear its id in their
/// environment, and those of the session that its `main` process led, where it is
/// certain that this is still the same one. Returns when there are none.
///
/// # Errors
///
/// When `/proc` cannot be read, or when some are still there after many passes.
pub fn kill_orphans(
    job_id: JobId,
    main: Option<(u32, Birth)>,
    cgroup: Option<&Path>,
) -> io::Result<()> {
    if let Some(cgroup) = cgroup {
        kill_cgroup(cgroup)?;
    }
    let bears_mark = |pid: i32| {
        let environment = read_of(pid, "environ")?;
        io::Result::Ok(is_of(&environment, &job_id.to_string()))
    };
    let session = match main {
        Some((leader, birth)) if is_session_of(leader, birth, bears_mark)? => Some(leader),
        _ => None,
    };
    let is_marked = |pid: i32| {
        let stat = parse_stat(&read_of(pid, "stat")?).filter(|stat| !stat.has_ended);
        match stat {
            Some(stat) if session == Some(stat.session) => Ok(true),
            Some(_) => bears_mark(pid),
            None => Ok(false),
        }
    };
    for _ in 0..PASSES {
        let mut marked = Vec::new();
        for pid in processes()? {
            if is_marked(pid)? {
                marked.push(pid);
            }
        }
        if marked.is_empty() {
            if let Some(cgroup) = cgroup {
                // What is left of it is no worse than an empty folder.
                let _ = remove_cgroup(cgroup);
            }
            return Ok(());
        }
        let pidfds = marked.into_iter().filter_map(|pid| {
            let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            matches!(is_marked(pid), Ok(true)).then_some(pidfd)
        });
        let pidfds: Vec<_> = pidfds.collect();
        for signal in [Signal::STOP, Signal::KILL] {
            for pidfd in &pidfds {
                // Gone meanwhile is as good.
                let _ = pidfd_send_signal(pidfd, signal);
            }
        }
        // No event says when somebody else's children are gone.
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(io::Error::other("some of its processes cannot be killed"))
}

/// The variable with the id under which a worker has a job.
pub const MARK: &str = "JOBCTL_RUN_ID";

/// Whether this is the environment of a process of this very job.
fn is_of(environment: &[u8], id: &str) -> bool {
    let value = |name: &str| {
        let mut variables = environment.split(|byte| *byte == 0);
        variables.find_map(|variable| {
            let value = variable.strip_prefix(name.as_bytes())?;
            value.strip_prefix(b"=")
        })
    };
    // Without the mark it was started by a worker that knew of no attempts.
    let marked = value(MARK).or_else(|| value("JOBCTL_JOB_ID"));
    marked == Some(id.as_bytes())
}

/// Whether the session that `leader` led is still the one it led, and not a later
/// one of the same number. In doubt it is not: another process is not to be hit.
fn is_session_of(
    leader: u32,
    birth: Birth,
    bears_mark: impl Fn(i32) -> io::Result<bool>,
) -> io::Result<bool> {
    let Ok(pid) = i32::try_from(leader) else {
        return Ok(false);
    };
    // A number is free only when neither a process nor a session has it.
    if let Some(stat) = parse_stat(&read_of(pid, "stat")?) {
        return Ok(stat.born == birth.ticks);
    }
    let number_is_kept = match (forks(), number_of_pids()) {
        (Some(forks), Some(pids)) => !may_come_again(birth.forks, forks, pids),
        _ => false,
    };
    if number_is_kept {
        return Ok(true);
    }
    // A process leaves its session only for one of its own, and so one of the job's
    // is in a session of this number only if that is the job's.
    for pid in processes()? {
        let is_in_session = stat_of(pid).is_some_and(|stat| stat.session == leader);
        if is_in_session && bears_mark(pid)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a number given out when the machine had started `then` processes may be
/// another's when it has started `now`. They are given out in turn, so that all
/// others come first. Half of them may be skipped, because they are in use or
/// because their process came to nothing.
fn may_come_again(then: u64, now: u64, pids: u64) -> bool {
    now.checked_sub(then).is_none_or(|since| since >= pids / 2)
}

/// How many processes and threads the machine has started.
fn forks() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let mut lines = stat.lines();
    let count = lines.find_map(|line| line.strip_prefix("processes "))?;
    count.trim().parse().ok()
}

/// The number that pids stay below (proc_sys_kernel(5)).
fn number_of_pids() -> Option<u64> {
    let pids = fs::read_to_string("/proc/sys/kernel/pid_max").ok()?;
    pids.trim().parse().ok()
}

/// What tells a process from a later one of the same number; `None` if there is
/// no such process, not even one that has ended.
pub(super) fn birth_of(pid: u32) -> Option<Birth> {
    let stat = read_stat(i32::try_from(pid).ok()?)?;
    Some(Birth {
        ticks: stat.born,
        forks: forks()?,
    })
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
struct Process {
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
    /// Signals through a pidfd, and only if the process behind it is still the
    /// one that was found: a pid given to somebody else meanwhile is not hit.
    fn send(&self, signal: Signal) {
        let Ok(pidfd) = pidfd_open(self.pid, PidfdFlags::empty()) else {
            return;
        };
        let pid = self.pid.as_raw_nonzero();
        let is_still_there = match &self.found {
            Found::Under(found) => {
                let own = getpid().as_raw_nonzero().get();
                stat_of(pid.get()).is_some_and(|stat| stat.parent == *found || stat.parent == own)
            }
            Found::In(group) => fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|groups| groups.contains(group.as_str())),
        };
        if is_still_there {
            // It may have ended since, and then there is nothing to signal.
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }
}

/// All descendants of this process that have not ended, parents before children.
fn descendants() -> io::Result<Vec<Process>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in processes()? {
        if let Some(stat) = stat_of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = parents.pop() {
        for pid in children.remove(&parent).unwrap_or_default() {
            parents.push(pid);
            found.extend(Pid::from_raw(pid).map(|pid| Process {
                pid,
                found: Found::Under(parent),
            }));
        }
    }
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
fn processes() -> io::Result<Vec<i32>> {
    // A process may end while its entry is read.
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.collect())
}

/// What there is to know of a process.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: i32,
    session: u32,
    /// In clock ticks since the boot.
    born: u64,
    has_ended: bool,
}

/// A file of a process; empty where the process has gone, or is hidden from us.
///
/// # Errors
///
/// When it is this process that cannot read: what it does not see may be there.
fn read_of(pid: i32, file: &str) -> io::Result<Vec<u8>> {
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
fn stat_of(pid: i32) -> Option<Stat> {
    read_stat(pid).filter(|stat| !stat.has_ended)
}

/// Reads `/proc/PID/stat`, which is there until an ended process is collected.
fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid pgrp session …`, where the name may hold anything,
/// parentheses too (proc_pid_stat(5)).
fn parse_stat(stat: &[u8]) -> Option<Stat> {
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
        mine.iter().for_each(|process| process.send(Signal::STOP));
        mine.iter()
            .rev()
            .for_each(|process| process.send(Signal::KILL));
        assert!(!child.wait().unwrap().success());
        assert_eq!(stat_of(pid), None);
    }

    /// A session whose leader runs `script`, and the first line that it writes.
    fn session(script: &str) -> (std::process::Child, String) {
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = io::BufReader::new(leader.stdout.take().unwrap());
        io::BufRead::read_line(&mut { output }, &mut line).unwrap();
        (leader, line.trim().to_owned())
    }

    #[test]
    fn the_session_of_a_main_process_that_is_gone_is_ended() {
        let script = "sleep 600 > /dev/null & echo $!; read x < /dev/null";
        let (mut leader, member) = session(script);
        let birth = birth_of(leader.id()).unwrap();
        leader.wait().unwrap();
        let member: i32 = member.parse().unwrap();
        assert!(stat_of(member).is_some());
        kill_orphans(JobId::random(), Some((leader.id(), birth)), None).unwrap();
        assert_eq!(stat_of(member), None);
    }

    #[test]
    fn a_session_that_only_has_the_number_is_left_alone() {
        let (mut leader, member) = session("sleep 600 > /dev/null & echo $!; wait");
        let birth = birth_of(leader.id()).unwrap();
        let older = Birth {
            ticks: birth.ticks - 1,
            ..birth
        };
        kill_orphans(JobId::random(), Some((leader.id(), older)), None).unwrap();
        assert!(
            stat_of(member.parse().unwrap()).is_some(),
            "its leader is another"
        );
        leader.kill().unwrap();
        leader.wait().unwrap();
        let older = Birth {
            // More than the machine has started.
            forks: u64::MAX,
            ..birth
        };
        kill_orphans(JobId::random(), Some((leader.id(), older)), None).unwrap();
        assert!(
            stat_of(member.parse().unwrap()).is_some(),
            "its leader may have been another"
        );
        kill_orphans(JobId::random(), Some((leader.id(), birth)), None).unwrap();
        assert_eq!(stat_of(member.parse().unwrap()), None);
    }

    #[test]
    fn an_attempt_is_not_another_one_of_its_job() {
        let of = |environment: &str| is_of(environment.replace(' ', "\0").as_bytes(), "b");
        assert!(of("A=a JOBCTL_JOB_ID=a JOBCTL_RUN_ID=b C=c"));
        assert!(of("JOBCTL_JOB_ID=b"), "of an older worker");
        assert!(!of("JOBCTL_JOB_ID=b JOBCTL_RUN_ID=c"), "a later attempt");
        assert!(!of("JOBCTL_JOB_ID=bb XJOBCTL_JOB_ID=b"));
        assert!(!of(""));
    }

    #[test]
    fn a_session_with_a_marked_member_is_the_jobs() {
        let job_id = JobId::random();
        // Told by itself, so that it has its environment by then.
        let marked = format!("JOBCTL_JOB_ID={job_id} sh -c 'echo $$; sleep 600 > /dev/null; :'");
        let script = format!("sleep 600 > /dev/null & {marked} & :");
        let (mut leader, marked) = session(&script);
        leader.wait().unwrap();
        let in_session = |pid: &i32| {
            let stat = stat_of(*pid);
            stat.is_some_and(|stat| stat.session == leader.id())
        };
        assert!(in_session(&marked.parse().unwrap()));
        let long_ago = Birth { ticks: 0, forks: 0 };
        kill_orphans(job_id, Some((leader.id(), long_ago)), None).unwrap();
        assert!(!processes().unwrap().iter().any(in_session));
    }

    #[test]
    fn a_number_comes_again_only_after_the_others() {
        assert!(!may_come_again(1000, 1000, 32768));
        assert!(!may_come_again(1000, 1000 + 16383, 32768));
        assert!(may_come_again(1000, 1000 + 16384, 32768));
        assert!(may_come_again(1000, 999, 32768), "of another boot");
    }
}
