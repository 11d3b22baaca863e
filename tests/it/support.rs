//! What every test here needs: limits, and a look at processes from outside.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jobctl::ids::JobId;
use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes on a busy machine; reached only by a hang.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_jobctl").into()
}

/// What `future` returns, which has to be soon.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("it did not happen in time")
}

/// Waits for something that nobody announces.
pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        while !condition() {
            pause.tick().await;
        }
    })
    .await;
}

/// Whether there is no such process, or only what is left of it.
pub(crate) fn gone(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z'),
        Err(_) => true,
    }
}

/// The living processes that bear a job's mark in their environment.
pub(crate) fn processes_of(id: JobId) -> Vec<String> {
    // A run of a job has its own id.
    let marks = ["JOBCTL_JOB_ID", "JOBCTL_RUN_ID"].map(|name| format!("{name}={id}\0"));
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().into_string().ok()?;
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let has = |mark: &String| environ.windows(mark.len()).any(|w| w == mark.as_bytes());
            let marked = marks.iter().any(has);
            (marked && !gone(&pid)).then_some(pid)
        })
        .collect()
}

/// kill -9.
pub(crate) fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// In hexadecimal, by the machine's own tool.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new("sha256sum")
        .arg(file.path())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// A folder for workers, which at the end takes along whatever they left running.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The shims of the workers below, with their jobs.
    pub(crate) fn shims(&self) -> Vec<(i32, JobId)> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let folder = fs::read_link(entry.path().join("cwd")).ok()?;
                let command = fs::read_to_string(entry.path().join("cmdline")).ok()?;
                let mut words = command.split('\0').skip(1);
                let is_shim = words.next() == Some("shim") && folder.starts_with(self.path());
                let job = words.next()?.parse().ok()?;
                is_shim.then_some((pid, job))
            })
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let signal = |pid: i32| Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        for (shim, job) in self.shims() {
            signal(shim);
            for pid in processes_of(job) {
                pid.parse().ok().and_then(signal);
            }
        }
        let below = fs::read_dir(self.path()).unwrap().flatten();
        let folders = below
            .map(|entry| entry.path())
            .chain([self.path().to_owned()]);
        for folder in folders {
            let Ok(folder) = fs::metadata(folder) else {
                continue;
            };
            let mark = format!("-{}-{}", folder.dev(), folder.ino());
            for group in fs::read_dir("/sys/fs/cgroup/unified")
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = group.file_name().into_string().unwrap();
                if name.starts_with("jobctl-") && name.ends_with(&mark) {
                    remove_group(&group.path());
                }
            }
        }
    }
}

/// Removes a control group with those within, once the last of the killed has
/// gone from it.
fn remove_group(path: &Path) {
    for within in fs::read_dir(path).into_iter().flatten().flatten() {
        if within.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&within.path());
        }
    }
    for _ in 0..400 {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => return,
        }
    }
}
