//! What may be run: looks up programs, opens scripts below the script folder, and
//! decides the folder and the environment of a job.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, accessat, fstat, open, openat2,
    },
    io::Errno,
};

use super::{error::Refusal, job::Spec};

/// What a job gets of the worker's own environment, where the worker has it;
/// beside it only what the job asked for, and what names the job.
const PASSED_ON: [&str; 6] = ["HOME", "LANG", "LOGNAME", "PATH", "TZ", "USER"];

/// Where programs are looked for if the worker has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A job that can be run: everything found and opened.
#[derive(Debug)]
pub(super) struct Runnable {
    /// `None`: the script itself.
    pub(super) program: Option<PathBuf>,
    pub(super) arg0: String,
    /// Opened with O_PATH: it names the file that was found, whatever happens to
    /// its path afterwards.
    pub(super) script: Option<OwnedFd>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: PathBuf,
}

/// The script folder, and what there is to know about running jobs here.
#[derive(Clone, Debug)]
pub(super) struct Scripts {
    worker: String,
    dir: PathBuf,
}

impl Scripts {
    pub(super) fn new(worker: String, dir: PathBuf) -> Self {
        Self { worker, dir }
    }

    /// Finds everything the job needs, or says what is missing.
    pub(super) fn prepare(&self, spec: &Spec) -> Result<Runnable, Refusal> {
        let cwd = self.cwd(spec)?;
        let env = environment(spec);
        let script = match &spec.path {
            Some(path) => Some(self.open(path)?),
            None => None,
        };
        let (program, arg0) = match (&spec.command, &spec.path) {
            (Some(command), _) => {
                let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
                (Some(self.find(command, path, &cwd)?), command.clone())
            }
            (None, path) => (None, path.clone().unwrap_or_default()),
        };
        Ok(Runnable {
            program,
            arg0,
            script,
            env,
            cwd,
        })
    }

    fn cwd(&self, spec: &Spec) -> Result<PathBuf, Refusal> {
        let cwd = spec.cwd.as_ref().map_or(&self.dir, |cwd| cwd);
        let checked = fs::metadata(cwd).and_then(|metadata| match metadata.is_dir() {
            true => Ok(accessat(CWD, cwd, Access::EXEC_OK, AtFlags::EACCESS)?),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        match checked {
            Ok(()) => Ok(cwd.clone()),
            Err(error) => Err(Refusal::BadCwd {
                cwd: cwd.display().to_string(),
                worker: self.worker.clone(),
                why: error.to_string(),
            }),
        }
    }

    /// Opens a script without ever leaving the script folder: the kernel refuses
    /// `..` and links that lead out, and where it cannot promise that, nothing
    /// is opened (openat2(2)).
    fn open(&self, path: &str) -> Result<OwnedFd, Refusal> {
        let worker = self.worker.clone();
        let path = path.to_owned();
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = open(&self.dir, flags | OFlags::DIRECTORY, Mode::empty()).and_then(|dir| {
            loop {
                match openat2(&dir, &path, flags, Mode::empty(), resolve) {
                    // A rename anywhere on the machine made the kernel unsure.
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    result => return result,
                }
            }
        });
        let script = match opened {
            Ok(script) => script,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(Refusal::ScriptNotFound { path, worker });
            }
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(Refusal::OutsideScriptFolder { path, worker });
            }
            Err(error) => {
                return Err(Refusal::NotStarted {
                    program: format!("script {path}"),
                    worker,
                    why: error.to_string(),
                });
            }
        };
        let is_file = fstat(&script)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        match is_file {
            true => Ok(script),
            false => Err(Refusal::NotAFile { path, worker }),
        }
    }

    /// Finds a program as execvp(3) would: with a slash in it, relative to the
    /// job's folder; else along `path`.
    fn find(&self, program: &str, path: &str, cwd: &Path) -> Result<PathBuf, Refusal> {
        let candidates: Vec<PathBuf> = match program.contains('/') {
            true => vec![cwd.join(program)],
            false => env::split_paths(path)
                .map(|dir| cwd.join(dir).join(program))
                .collect(),
        };
        let mut not_executable = None;
        for candidate in candidates {
            match executable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    not_executable.get_or_insert(error);
                }
                Err(_) => {}
            }
        }
        let program = program.to_owned();
        let worker = self.worker.clone();
        Err(match not_executable {
            Some(error) => Refusal::NotExecutable {
                program,
                worker,
                why: error.to_string(),
            },
            None => Refusal::ProgramNotFound { program, worker },
        })
    }
}

fn executable(path: &Path) -> io::Result<()> {
    // As for the kernel, a folder is there but cannot be executed.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not a regular file",
        ));
    }
    Ok(accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

fn environment(spec: &Spec) -> BTreeMap<String, String> {
    let passed_on = PASSED_ON
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?)));
    let mut environment: BTreeMap<_, _> = passed_on.collect();
    environment
        .entry("PATH".to_owned())
        .or_insert_with(|| DEFAULT_PATH.to_owned());
    environment.extend(spec.env.clone());
    // Last, so that a job can always tell who it is.
    environment.insert("JOBCTL_JOB_ID".to_owned(), spec.id.to_string());
    if let Some(path) = &spec.path {
        environment.insert("JOBCTL_SCRIPT".to_owned(), path.clone());
    }
    environment
}

/// Opens the script folder once, so that a worker with a wrong one does not begin.
pub(super) fn check_dir(dir: &Path) -> io::Result<()> {
    let metadata = File::open(dir)?.metadata()?;
    match metadata.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::ids::JobId;

    struct Place {
        root: tempfile::TempDir,
        scripts: Scripts,
    }

    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scripts");
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("count.sh"), "#!/bin/sh\n").unwrap();
        fs::write(dir.join("sub/deep.sh"), "#!/bin/sh\n").unwrap();
        fs::write(root.path().join("secret.sh"), "#!/bin/sh\n").unwrap();
        symlink("../secret.sh", dir.join("out.sh")).unwrap();
        symlink(root.path().join("secret.sh"), dir.join("absolute.sh")).unwrap();
        symlink("count.sh", dir.join("within.sh")).unwrap();
        symlink("/proc/self/exe", dir.join("magic.sh")).unwrap();
        Place {
            scripts: Scripts::new("w1".into(), dir),
            root,
        }
    }

    fn spec(command: Option<&str>, path: Option<&str>) -> Spec {
        Spec {
            id: JobId::random(),
            command: command.map(str::to_owned),
            path: path.map(str::to_owned),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            name: None,
            timeout: None,
            created: jiff::Timestamp::now(),
        }
    }

    #[test]
    fn scripts_are_found_below_the_folder_only() {
        let place = place();
        let open = |path: &str| place.scripts.open(path).map(drop);
        for good in [
            "count.sh",
            "sub/deep.sh",
            "sub/../count.sh",
            "within.sh",
            "./count.sh",
        ] {
            assert_eq!(open(good), Ok(()), "{good}");
        }
        let secret = place.root.path().join("secret.sh");
        for outside in [
            "../secret.sh",
            "sub/../../secret.sh",
            "out.sh",
            "absolute.sh",
            "magic.sh",
            "/etc/passwd",
            secret.to_str().unwrap(),
        ] {
            let error = open(outside).unwrap_err();
            assert_eq!(error.code(), "outside_script_folder", "{outside}");
            assert!(error.to_string().contains(outside));
        }
        assert_eq!(open("no.sh").unwrap_err().code(), "script_not_found");
        assert_eq!(open("count.sh/x").unwrap_err().code(), "script_not_found");
        assert_eq!(open("sub").unwrap_err().code(), "not_a_file");
    }

    #[test]
    fn what_was_opened_stays_what_is_run() {
        let place = place();
        let script = place.scripts.open("count.sh").unwrap();
        let path = place.scripts.dir.join("count.sh");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "evil").unwrap();
        let opened = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&script));
        assert_eq!(fs::read(opened).unwrap(), b"#!/bin/sh\n");
    }

    #[test]
    fn programs_are_found_as_a_shell_would() {
        let place = place();
        let runnable = place.scripts.prepare(&spec(Some("sh"), None)).unwrap();
        assert!(runnable.program.unwrap().ends_with("sh"));
        let refused = |command: &str| {
            let error = place
                .scripts
                .prepare(&spec(Some(command), None))
                .unwrap_err();
            assert!(error.to_string().contains(command), "{error}");
            error.code()
        };
        assert_eq!(refused("no-such-program"), "program_not_found");
        assert_eq!(refused("/no/such/program"), "program_not_found");
        assert_eq!(refused("./count.sh"), "not_executable");
        assert_eq!(refused("./sub"), "not_executable");
        let path = place.scripts.dir.join("count.sh");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(
            place
                .scripts
                .prepare(&spec(Some("./count.sh"), None))
                .is_ok()
        );
    }

    #[test]
    fn the_folder_to_run_in_must_be_one() {
        let place = place();
        for bad in ["/no/such/folder", "/etc/passwd"] {
            let spec = Spec {
                cwd: Some(bad.into()),
                ..spec(Some("sh"), None)
            };
            let error = place.scripts.prepare(&spec).unwrap_err();
            assert_eq!(error.code(), "bad_cwd");
            assert!(error.to_string().contains(bad));
        }
    }

    #[test]
    fn a_job_cannot_take_another_jobs_name() {
        let mut spec = spec(Some("sh"), Some("count.sh"));
        spec.env.insert("JOBCTL_JOB_ID".into(), "another".into());
        spec.env.insert("GREETING".into(), "hello".into());
        let env = environment(&spec);
        assert_eq!(env["JOBCTL_JOB_ID"], spec.id.to_string());
        assert_eq!(env["GREETING"], "hello");
        assert_eq!(env["JOBCTL_SCRIPT"], "count.sh");
        assert!(
            !env.contains_key("CARGO_PKG_NAME"),
            "the worker's own environment is not passed on"
        );
    }
}
