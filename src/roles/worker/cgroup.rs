//! Control groups (cgroups(7), version 2): one per job where this worker may
//! make them, so that the kernel itself can end all of a job in one stroke, and
//! bound what all of its processes use together. What is to be bounded is decided
//! in `limits.rs`.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::ids::{JobId, WorkerId};

/// Of `cpu.max`, in microseconds: what the kernel itself takes.
const PERIOD: u64 = 100_000;

/// Where this worker makes the control groups of its jobs.
#[derive(Clone, Debug)]
pub(super) struct Cgroups {
    root: PathBuf,
    /// The group around it, where controllers are this worker's to enable.
    unit: Option<PathBuf>,
    bounds: Bounds,
    /// The controllers that are on for the groups of jobs.
    enabled: Arc<Mutex<Vec<String>>>,
}

/// What all processes of a job may use together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bounds {
    /// Bytes, none of them swapped out.
    pub(super) memory: Option<u64>,
    /// Processes and threads.
    pub(super) processes: Option<u64>,
    /// Of one processor each.
    pub(super) cpus: Option<f64>,
}

impl Cgroups {
    /// `None` where there is no writable hierarchy of version 2, or a kernel
    /// older than 5.14, which cannot kill a group.
    pub(super) fn find(worker: &str, data: &Path) -> Option<Self> {
        let (mount, own) = place_of_own()?;
        // The data folder is this worker's alone, the name perhaps not.
        let folder = fs::metadata(data).ok()?;
        let name = format!("jobctl-{worker}-{}-{}", folder.dev(), folder.ino());
        let own = mount.join(own);
        let unit = unit_of(&own);
        let beside = unit.and_then(|unit| Self::within(unit, &name));
        match beside {
            Some(beside) => Some(Self {
                unit: unit.map(Path::to_owned),
                ..beside
            }),
            None => Self::within(&own, &name),
        }
    }

    /// With a root of this name in `group`.
    fn within(group: &Path, name: &str) -> Option<Self> {
        let root = group.join(name);
        fs::create_dir_all(&root).ok()?;
        let probe = root.join(WorkerId::random().to_string());
        fs::create_dir(&probe).ok()?;
        let can_kill = probe.join("cgroup.kill").exists();
        fs::remove_dir(&probe).ok()?;
        can_kill.then(|| Self::at(root))
    }

    /// With this root, which is there.
    pub(super) fn at(root: PathBuf) -> Self {
        Self {
            root,
            unit: None,
            bounds: Bounds::default(),
            enabled: Arc::default(),
        }
    }

    /// Switches a controller on for the groups of jobs. False where it is not to be
    /// had.
    pub(super) fn enable(&self, controller: &str) -> bool {
        let is_enabled = self.switch_on(controller);
        if is_enabled {
            let mut enabled = self.enabled.lock().unwrap_or_else(PoisonError::into_inner);
            enabled.push(controller.to_owned());
        }
        is_enabled
    }

    fn switch_on(&self, controller: &str) -> bool {
        let is_there = |group: &Path| {
            fs::read_to_string(group.join("cgroup.controllers"))
                .is_ok_and(|all| all.split_whitespace().any(|one| one == controller))
        };
        let enable =
            |group: &Path| write(group, "cgroup.subtree_control", &format!("+{controller}"));
        if let Some(unit) = self.unit.as_deref().filter(|_| !is_there(&self.root)) {
            // It is seen below whether that helped.
            let _ = enable(unit);
        }
        is_there(&self.root) && enable(&self.root).is_ok()
    }

    /// Has each group that is made from now on bounded. The controllers for it must
    /// be enabled.
    pub(super) fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The group of one job, whether it is there or not.
    pub(super) fn of(&self, job: JobId) -> PathBuf {
        self.root.join(job.to_string())
    }

    /// Makes the group of one job, with its bounds, or none at all. The root is made
    /// again where it was removed. An error names the group.
    pub(super) fn make(&self, job: JobId) -> io::Result<PathBuf> {
        let path = self.of(job);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_root()?;
                fs::create_dir(&path).map_err(|error| named(&path, &error))?;
            }
            made => made.map_err(|error| named(&path, &error))?,
        }
        if let Err(error) = self.bounds.set(&path) {
            self.remove(job);
            return Err(error);
        }
        Ok(path)
    }

    fn make_root(&self) -> io::Result<()> {
        match fs::create_dir(&self.root) {
            // Another job was first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(|error| named(&self.root, &error))?,
        }
        tracing::warn!(root = %self.root.display(), "the control group of all jobs was removed; made again");
        let enabled = self
            .enabled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for controller in enabled {
            if !self.switch_on(&controller) {
                let root = self.root.display();
                let message =
                    format!("{root}: the {controller} controller cannot be enabled again");
                return Err(io::Error::other(message));
            }
        }
        Ok(())
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

impl Bounds {
    /// Writes them into a group.
    fn set(&self, group: &Path) -> io::Result<()> {
        if let Some(bytes) = self.memory {
            write(group, "memory.max", &bytes.to_string())?;
            // Not there where the kernel does not count what is swapped out.
            if group.join("memory.swap.max").exists() {
                write(group, "memory.swap.max", "0")?;
            }
        }
        if let Some(processes) = self.processes {
            write(group, "pids.max", &processes.to_string())?;
        }
        if let Some(cpus) = self.cpus {
            let share = (cpus * PERIOD as f64).round() as u64;
            write(group, "cpu.max", &format!("{share} {PERIOD}"))?;
        }
        Ok(())
    }
}

/// Writes to a file of a group. An error names it.
/// Where the hierarchy of version 2 is mounted, and the group of this process in it.
fn place_of_own() -> Option<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mounts.lines().find_map(mount_of_version_2)?;
    Some((mount, own.into()))
}

/// The groups of version 2 that this process is in, the innermost first; none where
/// there is no such hierarchy.
pub(super) fn own() -> Vec<PathBuf> {
    let Some((mount, own)) = place_of_own() else {
        return Vec::new();
    };
    let own = mount.join(own);
    let groups = own
        .ancestors()
        .take_while(|group| group.starts_with(&mount));
    groups.map(Path::to_owned).collect()
}

fn write(group: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = group.join(file);
    let written = File::options()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| named(&path, &error))
}

/// The same error, with what it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    let message = format!("control group {}: {error}", path.display());
    io::Error::new(error.kind(), message)
}

/// The group of systemd's unit, where the worker was put into one below that
/// (`DelegateSubgroup=`). There controllers can be enabled, for the group itself has
/// no processes, and the worker need not be moved for it.
fn unit_of(own: &Path) -> Option<&Path> {
    own.parent()
        .filter(|around| is_unit(around) && !is_unit(own))
}

/// Whether a group is that of a unit that has processes (systemd names them so).
fn is_unit(group: &Path) -> bool {
    let suffix = group.extension();
    suffix.is_some_and(|suffix| suffix == "service" || suffix == "scope")
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

    /// What the kernel would show below a temporary folder, with these controllers.
    fn groups(root: PathBuf, controllers: &str) -> Cgroups {
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("cgroup.controllers"), controllers).unwrap();
        fs::write(root.join("cgroup.subtree_control"), "").unwrap();
        Cgroups::at(root)
    }

    fn read(group: &Path, file: &str) -> String {
        fs::read_to_string(group.join(file)).unwrap()
    }

    #[test]
    fn only_controllers_that_are_there_are_enabled() {
        let dir = tempfile::tempdir().unwrap();
        let groups = groups(dir.path().join("jobs"), "cpuset memory pids\n");
        assert!(!groups.enable("cpu"), "only part of another's name");
        assert_eq!(read(groups.root(), "cgroup.subtree_control"), "");
        assert!(groups.enable("memory"));
        assert_eq!(read(groups.root(), "cgroup.subtree_control"), "+memory");
        // One that the kernel does not let it enable.
        fs::remove_file(groups.root().join("cgroup.subtree_control")).unwrap();
        assert!(!groups.enable("memory"));
    }

    #[test]
    fn controllers_are_enabled_around_the_jobs_only_in_the_unit() {
        for (is_unit, touched) in [(true, "+memory"), (false, "")] {
            let dir = tempfile::tempdir().unwrap();
            let around = dir.path().join("w.service");
            let mut groups = groups(around.join("jobs"), "pids");
            groups.unit = is_unit.then(|| around.clone());
            fs::write(around.join("cgroup.subtree_control"), "").unwrap();
            // No kernel is here that would pass it on.
            assert!(!groups.enable("memory"));
            assert!(groups.enable("pids"));
            assert_eq!(read(&around, "cgroup.subtree_control"), touched);
        }
    }

    #[test]
    fn jobs_are_beside_a_worker_that_is_in_a_group_of_its_unit() {
        let unit = |own| unit_of(Path::new(own)).map(|unit| unit.display().to_string());
        assert_eq!(
            unit("/s/system.slice/jobctl.service/worker").as_deref(),
            Some("/s/system.slice/jobctl.service")
        );
        assert_eq!(unit("/s/system.slice/jobctl.service"), None);
        assert_eq!(unit("/s/user@1.service/app.slice/x.scope"), None);
        assert_eq!(unit("/s/user@1.service/init.scope"), None);
        assert_eq!(unit("/s"), None);
    }

    #[test]
    fn bounds_are_written_as_the_kernel_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["memory.max", "memory.swap.max", "pids.max", "cpu.max"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let bounds = Bounds {
            memory: Some(1 << 30),
            processes: Some(512),
            cpus: Some(1.5),
        };
        bounds.set(dir.path()).unwrap();
        assert_eq!(read(dir.path(), "memory.max"), "1073741824");
        assert_eq!(read(dir.path(), "memory.swap.max"), "0");
        assert_eq!(read(dir.path(), "pids.max"), "512");
        assert_eq!(read(dir.path(), "cpu.max"), "150000 100000");

        fs::remove_file(dir.path().join("memory.swap.max")).unwrap();
        bounds.set(dir.path()).unwrap();
        assert!(!dir.path().join("memory.swap.max").exists());
        fs::remove_file(dir.path().join("pids.max")).unwrap();
        let error = bounds.set(dir.path()).unwrap_err();
        assert!(error.to_string().contains("pids.max"), "{error}");
        Bounds::default().set(Path::new("/nonexistent")).unwrap();
    }

    #[test]
    fn a_root_that_was_removed_is_made_again_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("around/jobs");
        let groups = groups(root.clone(), "pids");
        fs::remove_dir_all(&root).unwrap();
        let made = groups.make(JobId::random()).unwrap();
        assert!(made.is_dir());
        // What was on for jobs is to be on again, and here is no kernel to do it.
        fs::write(root.join("cgroup.controllers"), "pids").unwrap();
        fs::write(root.join("cgroup.subtree_control"), "").unwrap();
        assert!(groups.enable("pids"));
        fs::remove_dir_all(&root).unwrap();
        let error = groups.make(JobId::random()).unwrap_err().to_string();
        assert!(
            error.contains("pids") && error.contains("around/jobs"),
            "{error}"
        );
        fs::remove_dir_all(dir.path().join("around")).unwrap();
        let error = groups.make(JobId::random()).unwrap_err().to_string();
        assert!(
            error.contains("control group") && error.contains("around/jobs"),
            "{error}"
        );
    }

    #[test]
    fn a_group_that_cannot_be_bounded_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut groups = groups(dir.path().join("jobs"), "pids");
        let job = JobId::random();
        assert!(groups.make(job).unwrap().is_dir());
        groups.remove(job);
        groups.bound(Bounds {
            processes: Some(7),
            ..Bounds::default()
        });
        groups.make(job).unwrap_err();
        assert!(!groups.of(job).exists());
    }
}
