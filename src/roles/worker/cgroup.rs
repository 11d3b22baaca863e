//! Control groups (cgroups(7), version 2): one per job where this worker may
//! make them, so that the kernel itself can end all of a job in one stroke.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::ids::{JobId, WorkerId};

/// Where this worker makes the control groups of its jobs.
#[derive(Clone, Debug)]
pub(super) struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    /// `None` where there is no writable hierarchy of version 2, or a kernel
    /// older than 5.14, which cannot kill a group.
    pub(super) fn find(worker: &str, data: &Path) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let mount = mounts.lines().find_map(mount_of_version_2)?;
        // The data folder is this worker's alone, the name perhaps not.
        let folder = fs::metadata(data).ok()?;
        let name = format!("jobctl-{worker}-{}-{}", folder.dev(), folder.ino());
        let root = mount.join(own).join(name);
        fs::create_dir_all(&root).ok()?;
        let probe = root.join(WorkerId::random().to_string());
        fs::create_dir(&probe).ok()?;
        let can_kill = probe.join("cgroup.kill").exists();
        fs::remove_dir(&probe).ok()?;
        can_kill.then_some(Self { root })
    }

    /// The group of one job, whether it is there or not.
    pub(super) fn of(&self, job: JobId) -> PathBuf {
        self.root.join(job.to_string())
    }

    /// Makes the group of one job.
    pub(super) fn make(&self, job: JobId) -> io::Result<PathBuf> {
        let path = self.of(job);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Removes the group of a job that never had a process.
    pub(super) fn remove(&self, job: JobId) {
        // There may be none; and an empty one that stays behind harms nobody.
        let _ = fs::remove_dir(self.of(job));
    }

    /// Removes what is empty: with the last job, everything.
    pub(super) fn clear(&self) {
        // One that still has jobs stays.
        let _ = fs::remove_dir(&self.root);
    }

    /// For the log.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

/// The mount point, if a line of mountinfo (proc_pid_mountinfo(5)) is about a
/// hierarchy of version 2.
fn mount_of_version_2(line: &str) -> Option<PathBuf> {
    let (fields, rest) = line.split_once(" - ")?;
    let is_version_2 = rest.split(' ').next() == Some("cgroup2");
    let point = fields.split(' ').nth(4)?;
    is_version_2.then(|| PathBuf::from(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_of_version_2_is_told_from_the_others() {
        let v2 = "42 32 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(
            mount_of_version_2(v2),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let v1 = "33 32 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu";
        assert_eq!(mount_of_version_2(v1), None);
        assert_eq!(mount_of_version_2(""), None);
    }
}
