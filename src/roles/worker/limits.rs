//! How much a job may use: what the operator asked for, and what makes each of it
//! hold on this machine. It is done by `cgroup.rs` for all processes of a job
//! together, or by the shim for each of them.

use std::fmt;

use rustix::process::{Resource, getrlimit};

use super::{
    cgroup::{Bounds, Cgroups},
    error::RunError,
    users::Users,
};
use crate::roles::shim::protocol;

/// How much each job may use; `None`: as much as the worker's service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Open files of each process.
    pub open_files: Option<u64>,
    /// Processors, and parts of one.
    pub cpus: Option<f64>,
}

/// Why nothing would make a limit hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unenforceable {
    /// Only control groups share processors out.
    #[error("the cpu controller of cgroup v2 is not available to this worker's jobs")]
    NoCpuController,
    /// The kernel counts no processes of root (RLIMIT_NPROC).
    #[error(
        "the pids controller of cgroup v2 is not available to this worker's jobs, \
         and without it processes of root are not counted"
    )]
    RootIsNotCounted,
}

/// What makes a limit hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// For the job as a whole.
    Group,
    /// For each process of it, or for the user.
    Process,
}

/// The limits of jobs, with what makes them hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct InForce {
    limits: Limits,
    memory: By,
    processes: By,
}

impl InForce {
    /// Takes control groups where they have the controller, and has them bounded.
    ///
    /// # Errors
    ///
    /// When a limit would not hold. Control groups are as they were.
    pub(super) fn decide(
        asked: &Limits,
        cgroups: Option<&mut Cgroups>,
        users: &Users,
    ) -> Result<Self, RunError> {
        let by = |is_asked: bool, controller: &str| match &cgroups {
            Some(cgroups) if is_asked && cgroups.enable(controller) => By::Group,
            Some(_) | None => By::Process,
        };
        let memory = by(asked.memory.is_some(), "memory");
        let processes = by(asked.processes.is_some(), "pids");
        let cpus = by(asked.cpus.is_some(), "cpu");
        let unenforceable = match (processes, cpus) {
            (_, By::Process) if asked.cpus.is_some() => {
                Some(("cpus", Unenforceable::NoCpuController))
            }
            (By::Process, _) if asked.processes.is_some() && users.has_root() => {
                Some(("processes", Unenforceable::RootIsNotCounted))
            }
            _ => None,
        };
        if let Some((setting, source)) = unenforceable {
            if let Some(cgroups) = cgroups {
                cgroups.clear();
            }
            return Err(RunError::Limit { setting, source });
        }
        if let Some(cgroups) = cgroups {
            cgroups.bound(Bounds {
                memory: asked.memory.filter(|_| memory == By::Group),
                processes: asked.processes.filter(|_| processes == By::Group),
                cpus: asked.cpus,
            });
        }
        // A process has no more than the worker, whatever was asked for.
        let most = |by: By, resource, asked: Option<u64>| match by {
            By::Group => asked,
            By::Process => asked.map(|asked| match getrlimit(resource).maximum {
                Some(most) => most.min(asked),
                None => asked,
            }),
        };
        let limits = Limits {
            memory: most(memory, Resource::As, asked.memory),
            processes: most(processes, Resource::Nproc, asked.processes),
            open_files: most(By::Process, Resource::Nofile, asked.open_files),
            cpus: asked.cpus,
        };
        Ok(Self {
            limits,
            memory,
            processes,
        })
    }

    /// What is left for the shim to see to.
    pub(super) fn processes(&self) -> protocol::Limits {
        let limits = &self.limits;
        protocol::Limits {
            memory: limits.memory.filter(|_| self.memory == By::Process),
            processes: limits.processes.filter(|_| self.processes == By::Process),
            open_files: limits.open_files,
        }
    }
}

/// For the log.
impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GROUP: &str = "by control group";
        let limits = &self.limits;
        let memory = limits.memory.map(|bytes| {
            let by = match self.memory {
                By::Group => GROUP,
                By::Process => "per process (RLIMIT_AS)",
            };
            format!("memory={} {by}", size(bytes))
        });
        let processes = limits.processes.map(|count| {
            let by = match self.processes {
                By::Group => GROUP,
                By::Process => "per user (RLIMIT_NPROC)",
            };
            format!("processes={count} {by}")
        });
        let open_files = limits
            .open_files
            .map(|count| format!("open_files={count} per process (RLIMIT_NOFILE)"));
        let cpus = limits.cpus.map(|cpus| format!("cpus={cpus} {GROUP}"));
        let all = [memory, processes, open_files, cpus];
        let all: Vec<_> = all.into_iter().flatten().collect();
        match all.is_empty() {
            true => f.write_str("none of its own"),
            false => f.write_str(&all.join(", ")),
        }
    }
}

/// As people write it: in the largest unit of which it is a whole number.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match unit {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, fs};

    use super::*;
    use crate::{ids::JobId, roles::worker::rules::Rules};

    const ALL: Limits = Limits {
        memory: Some(1 << 30),
        processes: Some(512),
        open_files: Some(1024),
        cpus: Some(1.5),
    };

    const NO_CPUS: Limits = Limits { cpus: None, ..ALL };

    /// Jobs run as this user, or as whoever runs this test and is not root.
    fn users(name: &str) -> Users {
        let is_root = rustix::process::geteuid().is_root();
        Users::find(&Rules {
            user: is_root.then(|| name.to_owned()),
            ..Rules::default()
        })
        .unwrap()
    }

    /// A folder that looks like the control group of all jobs.
    fn groups(dir: &tempfile::TempDir, controllers: &str) -> Cgroups {
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        Cgroups::at(dir.path().to_owned())
    }

    #[test]
    fn control_groups_make_hold_what_they_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut cgroups = groups(&dir, "cpu io memory pids");
        let limits = InForce::decide(&ALL, Some(&mut cgroups), &users("root")).unwrap();
        assert_eq!(
            limits.to_string(),
            "memory=1GiB by control group, processes=512 by control group, \
             open_files=1024 per process (RLIMIT_NOFILE), cpus=1.5 by control group"
        );
        let left = protocol::Limits {
            open_files: Some(1024),
            ..protocol::Limits::default()
        };
        assert_eq!(limits.processes(), left);
        // The folder of a job has none of the files that the kernel would put there.
        let error = cgroups.make(JobId::random()).unwrap_err();
        assert!(error.to_string().contains("memory.max"), "{error}");
    }

    #[test]
    fn each_limit_has_its_own_controller() {
        let dir = tempfile::tempdir().unwrap();
        let mut cgroups = groups(&dir, "memory");
        let limits = InForce::decide(&NO_CPUS, Some(&mut cgroups), &users("nobody")).unwrap();
        assert_eq!(
            limits.to_string(),
            "memory=1GiB by control group, processes=512 per user (RLIMIT_NPROC), \
             open_files=1024 per process (RLIMIT_NOFILE)"
        );
        assert_eq!(limits.processes().memory, None);
        assert_eq!(limits.processes().processes, Some(512));
        let written = fs::read_to_string(dir.path().join("cgroup.subtree_control"));
        assert_eq!(written.unwrap(), "+memory");
    }

    #[test]
    fn without_control_groups_each_process_is_bounded() {
        let limits = InForce::decide(&NO_CPUS, None, &users("nobody")).unwrap();
        assert_eq!(
            limits.to_string(),
            "memory=1GiB per process (RLIMIT_AS), processes=512 per user (RLIMIT_NPROC), \
             open_files=1024 per process (RLIMIT_NOFILE)"
        );
        let all = protocol::Limits {
            memory: Some(1 << 30),
            processes: Some(512),
            open_files: Some(1024),
        };
        assert_eq!(limits.processes(), all);
        let none = InForce::decide(&Limits::default(), None, &users("root")).unwrap();
        assert_eq!(none.to_string(), "none of its own");
        assert_eq!(none.processes(), protocol::Limits::default());
    }

    #[test]
    fn no_more_is_told_than_a_process_can_have() {
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let asked = Limits {
            open_files: Some(u64::MAX),
            ..Limits::default()
        };
        let limits = InForce::decide(&asked, None, &users("nobody")).unwrap();
        assert_eq!(limits.processes().open_files, Some(most));
        let text = format!("open_files={most} per process (RLIMIT_NOFILE)");
        assert_eq!(limits.to_string(), text);
    }

    #[test]
    fn what_nothing_would_make_hold_is_refused() {
        let why = |limits: &Limits, cgroups: Option<&mut Cgroups>| {
            let users = users("root");
            match InForce::decide(limits, cgroups, &users) {
                Ok(limits) => limits.to_string(),
                Err(error) => format!("{error}: {}", error.source().unwrap()),
            }
        };
        let cpus = Limits {
            cpus: Some(0.5),
            ..Limits::default()
        };
        let dir = tempfile::tempdir().unwrap();
        for cgroups in [None, Some(&mut groups(&dir, "cpuset memory pids"))] {
            let error = why(&cpus, cgroups);
            assert!(error.contains("`jobs.cpus`"), "{error}");
            assert!(error.contains("cpu controller"), "{error}");
        }
        if rustix::process::geteuid().is_root() {
            let error = why(&NO_CPUS, None);
            assert!(error.contains("`jobs.processes`"), "{error}");
            assert!(error.contains("of root are not counted"), "{error}");
        }
    }

    #[test]
    fn sizes_are_whole_numbers() {
        for (bytes, text) in [
            (1 << 30, "1GiB"),
            (1536 << 20, "1536MiB"),
            (4096, "4KiB"),
            (1_500_000_000, "1500000000B"),
            (0, "0B"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
