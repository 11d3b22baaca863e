//! What is left of a job when its shim was killed, and with it its subreaper: it
//! is found by its control group, by its marks, by the session that its main process
//! led, or because the kernel made it a child of the worker; and ended.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

use super::{
    protocol::{Birth, PidNamespace},
    tree::{
        PASSES, Process, below, children_of, kill_cgroup, kill_each, own_pid, parse_stat,
        processes, read_of, read_stat, remove_cgroup, stat_of,
    },
};
use crate::ids::JobId;

/// Kills what is left of a job whose shim is gone, and with it its subreaper: the processes of its control group, those that bear its id in their
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
                // It has ended by itself, which is as good.
                let _ = pidfd_send_signal(pidfd, signal);
            }
        }
        // No event says when the children of another process are gone.
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
    // In another container the number is that of another process.
    if birth.namespace.is_some() && birth.namespace == pid_namespace() {
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
        namespace: pid_namespace(),
    })
}

/// The one in which this process sees others; `None` where it cannot be told.
fn pid_namespace() -> Option<PidNamespace> {
    Some(PidNamespace {
        inode: fs::metadata("/proc/self/ns/pid").ok()?.ino(),
        init_ticks: read_stat(1)?.born,
    })
}

/// Whether `/proc` shows the processes of this pid namespace. In another's the same
/// numbers are other processes.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn proc_is_ours() -> io::Result<bool> {
    let shown = fs::read_link("/proc/self")?;
    Ok(shown.to_str().and_then(|pid| pid.parse().ok()) == Some(own_pid()))
}

/// Whether this process has no children. One that adopts what a killed shim leaves
/// ([`kill_adopted`]) must begin without any.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn is_alone() -> io::Result<bool> {
    Ok(children_of(own_pid())?.is_empty())
}

/// Kills what killed shims have left to this process, which is their parent and a
/// child subreaper, whatever it did to its session and its environment; and collects
/// it. A job leaves its shim's session before anything else, so children of other
/// sessions than this one's are what is left of jobs. Returns when there are none.
///
/// # Errors
///
/// When `/proc` cannot be read, or when some are still there after many passes.
pub fn kill_adopted() -> io::Result<()> {
    let own = read_stat(own_pid()).ok_or(io::ErrorKind::NotFound)?.session;
    let adopted = || {
        let children = children_of(own_pid())?.into_iter();
        let others = children.filter(|pid| read_stat(*pid).is_some_and(|one| one.session != own));
        io::Result::Ok(others.collect::<Vec<i32>>())
    };
    for _ in 0..PASSES {
        let found = adopted()?;
        if found.is_empty() {
            return Ok(());
        }
        kill_each(|| {
            let mut all = Vec::new();
            for child in adopted()? {
                all.extend(Process::under(child, own_pid()));
                all.extend(below(child)?);
            }
            Ok(all)
        })?;
        for child in found.into_iter().filter_map(Pid::from_raw) {
            // One that has not ended yet is met again.
            let _ = waitpid(Some(child), WaitOptions::NOHANG);
        }
        // Which of them ends next, no event says.
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(io::Error::other("some of its processes cannot be killed"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

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
    fn a_session_of_another_pid_namespace_is_left_alone() {
        let script = "sleep 600 > /dev/null & echo $!; read x < /dev/null";
        let (mut leader, member) = session(script);
        let birth = birth_of(leader.id()).unwrap();
        leader.wait().unwrap();
        let member: i32 = member.parse().unwrap();
        let own = birth.namespace.unwrap();
        for namespace in [
            None,
            Some(PidNamespace {
                inode: own.inode + 1,
                ..own
            }),
            // The kernel has given the number of the namespace out again.
            Some(PidNamespace {
                init_ticks: own.init_ticks + 1,
                ..own
            }),
        ] {
            let elsewhere = Birth { namespace, ..birth };
            kill_orphans(JobId::random(), Some((leader.id(), elsewhere)), None).unwrap();
            assert!(stat_of(member).is_some(), "{namespace:?}");
        }
        kill_orphans(JobId::random(), Some((leader.id(), birth)), None).unwrap();
        assert_eq!(stat_of(member), None);
    }

    #[test]
    fn proc_is_of_the_namespace_that_the_test_is_in() {
        assert!(proc_is_ours().unwrap());
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
        let long_ago = Birth {
            ticks: 0,
            forks: 0,
            namespace: pid_namespace(),
        };
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
