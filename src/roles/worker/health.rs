//! Whether this worker can start jobs at all: what it lacks is told with every
//! heartbeat, and keeps jobs away until it is there again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use rustix::{
    fs::{Access, StatVfsMountFlags, access, statvfs},
    io::Errno,
    process::{Resource, getrlimit},
};

use super::cgroup;

/// Files that a disk still has room for. A job makes three.
const FILES: u64 = 64;

/// Descriptors that are left: a start needs a few at a time, and so does a follower.
const DESCRIPTORS: u64 = 32;

/// Processes that may still be made. A job is two, its shim and itself, before it makes
/// any.
const PROCESSES: u64 = 8;

/// Bytes of memory that are available: a shim and a shell need less than one hundredth.
const MEMORY: u64 = 16 << 20;

/// What a worker needs to start any job.
#[derive(Clone, Debug)]
pub(super) struct Health {
    data: PathBuf,
    /// Those in the data folder that every job needs.
    folders: Vec<PathBuf>,
    /// Bytes that the disk of the data folder is to have left.
    min_free_disk: u64,
    /// The control groups that this process is in, the innermost first.
    groups: Vec<PathBuf>,
}

impl Health {
    pub(super) fn new(data: &Path, folders: Vec<PathBuf>, min_free_disk: u64) -> Self {
        Self {
            data: data.to_owned(),
            folders,
            min_free_disk,
            groups: cgroup::own(),
        }
    }

    /// What is missing or short, in words that stay the same as long as it is; nothing
    /// if jobs can be started. What was short `before` is so until there is a quarter
    /// more than is needed.
    pub(super) fn lacks(&self, before: &[String]) -> Vec<String> {
        let mut lacks = Vec::new();
        let mut note = |what: Option<String>| lacks.extend(what);
        note(self.disk(before));
        for folder in &self.folders {
            note(usable(folder));
        }
        note(descriptors());
        note(processes());
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        note(available_memory(&memory).and_then(|left| {
            let what = format!("less than {} of memory is available", ByteSize(MEMORY));
            (left < wanted(MEMORY, &what, before)).then_some(what)
        }));
        for group in &self.groups {
            note(group_processes(group));
            note(group_memory(group, before));
        }
        lacks
    }

    fn disk(&self, before: &[String]) -> Option<String> {
        let found = match statvfs(&self.data) {
            Ok(found) => found,
            Err(error) => return Some(format!("its data folder cannot be used: {error}")),
        };
        if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Some("the disk of its data folder is read-only".to_owned());
        }
        let least = ByteSize(self.min_free_disk);
        let what = format!("the disk of its data folder has less than {least} left");
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free < wanted(self.min_free_disk, &what, before) {
            return Some(what);
        }
        // Some file systems do not count their files, and have none.
        let is_out = self.min_free_disk > 0 && found.f_files > 0 && found.f_favail < FILES;
        is_out.then(|| "the disk of its data folder has no room for more files".to_owned())
    }
}

/// How much of something has to be there: more, once it was short.
fn wanted(least: u64, what: &str, before: &[String]) -> u64 {
    match before.iter().any(|short| short == what) {
        true => least.saturating_add(least / 4),
        false => least,
    }
}

fn usable(folder: &Path) -> Option<String> {
    let error = access(folder, Access::WRITE_OK | Access::EXEC_OK).err()?;
    let error = io::Error::from(error);
    Some(match error.kind() {
        io::ErrorKind::NotFound => format!("its folder {} is missing", folder.display()),
        _ => format!("its folder {} cannot be used: {error}", folder.display()),
    })
}

fn descriptors() -> Option<String> {
    let limit = getrlimit(Resource::Nofile).current?;
    let is_short = match fs::read_dir("/proc/self/fd") {
        Ok(used) => limit.saturating_sub(used.count() as u64) < DESCRIPTORS,
        Err(error) => error.raw_os_error() == Some(Errno::MFILE.raw_os_error()),
    };
    is_short.then(|| format!("fewer than {DESCRIPTORS} of its {limit} descriptors are free"))
}

/// Of the whole machine (proc_loadavg(5), proc_sys_kernel(5)).
fn processes() -> Option<String> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let (_, count) = load.split_whitespace().nth(3)?.split_once('/')?;
    let count: u64 = count.parse().ok()?;
    let limits = ["threads-max", "pid_max"];
    let limits = limits.map(|name| number(&Path::new("/proc/sys/kernel").join(name)));
    let limit = limits.into_iter().flatten().min()?;
    let is_short = limit.saturating_sub(count) < PROCESSES;
    is_short.then(|| format!("its machine has nearly all of the {limit} processes that it may"))
}

/// What the kernel thinks a process could still have without swapping
/// (proc_meminfo(5)).
pub(super) fn available_memory(meminfo: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Of a control group (cgroup-v2, `pids.max`); none where it has no limit.
fn group_processes(group: &Path) -> Option<String> {
    let limit = number(&group.join("pids.max"))?;
    let count = number(&group.join("pids.current"))?;
    let is_short = limit.saturating_sub(count) < PROCESSES;
    is_short.then(|| {
        let group = group.display();
        format!("the control group {group} has nearly all of the {limit} processes that it may")
    })
}

/// What is left of `memory.max`, without pages that the kernel can take back.
fn group_memory(group: &Path, before: &[String]) -> Option<String> {
    let limit = number(&group.join("memory.max"))?;
    let used = number(&group.join("memory.current"))?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "));
    let cache = cache.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let left = limit.saturating_sub(used.saturating_sub(cache));
    let what = format!(
        "the control group {} has less than {} of its memory left",
        group.display(),
        ByteSize(MEMORY)
    );
    (left < wanted(MEMORY, &what, before)).then_some(what)
}

/// What a file of the kernel holds, unless that is `max`.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(dir: &Path, min_free_disk: u64) -> Health {
        Health {
            groups: Vec::new(),
            ..Health::new(dir, vec![dir.join("output")], min_free_disk)
        }
    }

    #[test]
    fn what_is_there_is_no_lack() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("output")).unwrap();
        assert_eq!(health(dir.path(), 0).lacks(&[]), [""; 0]);
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("output");
        let missing = format!("its folder {} is missing", folder.display());
        assert_eq!(health(dir.path(), 0).lacks(&[]), [missing]);
        fs::write(&folder, "").unwrap();
        let lacks = health(&folder.join("x"), 0).lacks(&[]);
        assert!(
            lacks[0].starts_with("its data folder cannot be used: "),
            "{lacks:?}"
        );
    }

    #[test]
    fn a_disk_is_short_until_it_has_a_quarter_more() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("output")).unwrap();
        let found = statvfs(dir.path()).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let short = health(dir.path(), free * 2).lacks(&[]);
        let least = ByteSize(free * 2);
        let what = format!("the disk of its data folder has less than {least} left");
        assert_eq!(short, [what]);
        // Others write on this disk as well, but not as much as that.
        let enough = health(dir.path(), free / 10 * 9);
        assert_eq!(enough.lacks(&[]), [""; 0]);
        let least = ByteSize(enough.min_free_disk);
        let before = [format!(
            "the disk of its data folder has less than {least} left"
        )];
        assert_eq!(enough.lacks(&before), before);
        assert_eq!(health(dir.path(), free / 2).lacks(&before), [""; 0]);
    }

    #[test]
    fn a_control_group_is_short_of_processes_and_memory() {
        let group = tempfile::tempdir().unwrap();
        let set = |file: &str, text: &str| fs::write(group.path().join(file), text).unwrap();
        set("pids.max", "max\n");
        set("pids.current", "7000\n");
        assert_eq!(group_processes(group.path()), None);
        set("pids.max", "7008\n");
        assert_eq!(group_processes(group.path()), None);
        set("pids.current", "7001\n");
        let what = group_processes(group.path()).unwrap();
        assert!(
            what.ends_with("has nearly all of the 7008 processes that it may"),
            "{what}"
        );
        set("memory.max", &format!("{}\n", 100 << 20));
        set("memory.current", &format!("{}\n", 99 << 20));
        set(
            "memory.stat",
            &format!("anon 1\ninactive_file {}\n", 20 << 20),
        );
        assert_eq!(group_memory(group.path(), &[]), None);
        set("memory.stat", &format!("inactive_file {}\n", 2 << 20));
        let what = group_memory(group.path(), &[]).unwrap();
        assert!(
            what.ends_with("has less than 16.0 MiB of its memory left"),
            "{what}"
        );
    }

    #[test]
    fn the_memory_that_is_available_is_read() {
        let text = "MemTotal:       24000 kB\nMemFree: 1 kB\nMemAvailable:      512 kB\n";
        assert_eq!(available_memory(text), Some(512 * 1024));
        assert_eq!(available_memory("MemTotal: 1 kB\n"), None);
    }
}
