//! What may be run: looks up programs, opens scripts below the script folder, and
//! decides the folder and the environment of a job.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
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

use super::{
    error::Refusal,
    job::Spec,
    not_started::is_shortage,
    rules::Allowed,
    users::{User, Users},
};
use crate::roles::shim;

/// What a job gets of the worker's own environment, where the worker has it;
/// beside it only what the job asked for, and what names the job.
const PASSED_ON: [&str; 6] = ["HOME", "LANG", "LOGNAME", "PATH", "TZ", "USER"];

/// The same of a whole family: each is `LANG` for one thing (locale(7)).
const PASSED_ON_START: &str = "LC_";

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
    /// `None`: as the worker.
    pub(super) user: Option<User>,
}

/// The script folder, and what there is to know about running jobs here.
#[derive(Clone, Debug)]
pub(super) struct Scripts {
    worker: String,
    dir: PathBuf,
    allowed: Allowed,
    users: Users,
}

impl Scripts {
    pub(super) fn new(worker: String, dir: PathBuf, allowed: Allowed, users: Users) -> Self {
        Self {
            worker,
            dir,
            allowed,
            users,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a job could be started with this script.
    pub(super) fn holds(&self, path: &str) -> bool {
        self.open(path).is_ok()
    }

    /// Finds everything the job needs, or says what is missing.
    pub(super) fn prepare(&self, spec: &Spec) -> Result<Runnable, Refusal> {
        // First, so that what is refused anyway tells nothing of the machine.
        if let Some(command) = &spec.command {
            self.allowed.check_name(command, &self.worker)?;
        }
        self.allowed
            .check_variables(spec.env.keys(), &self.worker)?;
        let user = self.users.choose(spec.user.as_deref(), &self.worker)?;
        let cwd = self.cwd(spec, user)?;
        let env = environment(spec, user);
        let script = match &spec.path {
            Some(path) => Some(self.open(path)?),
            None => None,
        };
        let (program, arg0) = match (&spec.command, &spec.path) {
            (Some(command), _) => {
                let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
                let found = self.find(command, path, &cwd)?;
                let program = self.allowed.check(command, found, &self.worker)?;
                (Some(program), command.clone())
            }
            (None, path) => (None, path.clone().unwrap_or_default()),
        };
        Ok(Runnable {
            program,
            arg0,
            script,
            env,
            cwd,
            user: user.cloned(),
        })
    }

    fn cwd(&self, spec: &Spec, user: Option<&User>) -> Result<PathBuf, Refusal> {
        let cwd = match (&spec.cwd, user) {
            (Some(cwd), _) => cwd,
            // The script folder is the worker's, and perhaps closed to others.
            (None, Some(_)) => Path::new("/"),
            (None, None) => &self.dir,
        };
        let checked = fs::metadata(cwd).and_then(|metadata| match metadata.is_dir() {
            true => Ok(accessat(CWD, cwd, Access::EXEC_OK, AtFlags::EACCESS)?),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        match checked {
            Ok(()) => Ok(cwd.to_owned()),
            Err(error) if cwd == self.dir => Err(self.without_folder(&error)),
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
        let dir = open(&self.dir, flags | OFlags::DIRECTORY, Mode::empty());
        let dir = dir.map_err(|error| self.without_folder(&error.into()))?;
        let opened = loop {
            match openat2(&dir, &path, flags, Mode::empty(), resolve) {
                // A rename anywhere on the machine made the kernel unsure.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => break result,
            }
        };
        let script = match opened {
            Ok(script) => script,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(Refusal::ScriptNotFound { path, worker });
            }
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(Refusal::OutsideScriptFolder { path, worker });
            }
            Err(error) if is_shortage(&error.into()) => {
                let what = format!("no file can be opened: {error}");
                return Err(Refusal::WorkerShort { worker, what });
            }
            Err(error) => {
                return Err(Refusal::NotExecutable {
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

    /// The script folder, which was there when the worker began, cannot be used.
    fn without_folder(&self, error: &io::Error) -> Refusal {
        Refusal::WorkerShort {
            worker: self.worker.clone(),
            what: format!("its script folder {}: {error}", self.dir.display()),
        }
    }

    fn find(&self, program: &str, path: &str, cwd: &Path) -> Result<PathBuf, Refusal> {
        lookup(program, path, cwd).map_err(|error| {
            let program = program.to_owned();
            let worker = self.worker.clone();
            match error.kind() {
                io::ErrorKind::PermissionDenied => Refusal::NotExecutable {
                    program,
                    worker,
                    why: error.to_string(),
                },
                _ => Refusal::ProgramNotFound { program, worker },
            }
        })
    }
}

/// Finds a program as execvp(3) would: with a slash in it, relative to the job's
/// folder; else along `path`.
pub(super) fn lookup(program: &str, path: &str, cwd: &Path) -> io::Result<PathBuf> {
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
    Err(not_executable.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// The worker's own `PATH`.
pub(super) fn own_path() -> String {
    env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned())
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

fn environment(spec: &Spec, user: Option<&User>) -> BTreeMap<String, String> {
    let mut environment = passed_on(env::vars_os());
    environment
        .entry("PATH".to_owned())
        .or_insert_with(|| DEFAULT_PATH.to_owned());
    if let Some(user) = user {
        let home = user.home.display().to_string();
        for (name, value) in [
            ("HOME", &home),
            ("LOGNAME", &user.name),
            ("USER", &user.name),
        ] {
            environment.insert(name.to_owned(), value.clone());
        }
    }
    environment.extend(spec.env.clone());
    // Last, so that a job can always tell who it is.
    let (job, attempt) = spec
        .attempt
        .map_or((spec.id, 1), |one| (one.of, one.number));
    for (name, value) in [
        ("JOBCTL_JOB_ID", job.to_string()),
        ("JOBCTL_ATTEMPT", attempt.to_string()),
        (shim::MARK, spec.id.to_string()),
    ] {
        environment.insert(name.to_owned(), value);
    }
    if let Some(path) = &spec.path {
        environment.insert("JOBCTL_SCRIPT".to_owned(), path.clone());
    }
    environment
}

/// What a job gets of these variables of the worker. What is not UTF-8 it does not.
fn passed_on(variables: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    let texts = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let passes = |name: &str| PASSED_ON.contains(&name) || name.starts_with(PASSED_ON_START);
    texts.filter(|(name, _)| passes(name)).collect()
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
    use crate::{
        ids::JobId,
        roles::worker::{job::Attempt, rules::Commands},
    };

    #[test]
    fn every_variable_of_the_locale_is_passed_on() {
        let variables = [
            ("LC_ALL", "C.UTF-8"),
            ("LC_TIME", "de_DE"),
            ("LANG", "C"),
            ("LCX", "no"),
            ("SECRET", "no"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let passed = passed_on(variables.into_iter());
        let names: Vec<_> = passed.keys().map(String::as_str).collect();
        assert_eq!(names, ["LANG", "LC_ALL", "LC_TIME"]);
    }

    #[test]
    fn a_script_folder_that_is_gone_is_the_workers_fault() {
        let place = place();
        fs::remove_dir_all(&place.scripts.dir).unwrap();
        let error = place.scripts.open("count.sh").unwrap_err();
        assert_eq!(error.code(), "worker_short");
        let folder = place.scripts.dir.display().to_string();
        assert!(error.to_string().contains(&folder), "{error}");
    }

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
            scripts: Scripts::new("w1".into(), dir, Allowed::All, Users::default()),
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
            user: None,
            attempt: None,
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

    /// The place, where only `programs` are allowed.
    fn place_with(programs: &[&str]) -> Place {
        let mut place = place();
        let programs = programs.iter().map(|program| (*program).to_owned());
        let commands = Commands::Programs(programs.collect());
        place.scripts.allowed = Allowed::find(&commands, DEFAULT_PATH).unwrap();
        place
    }

    #[test]
    fn a_listed_program_is_known_by_its_file() {
        let place = place_with(&["sh", "/bin/ls"]);
        let folder = place.root.path();
        let sh = fs::canonicalize("/bin/sh").unwrap();
        symlink(&sh, folder.join("sh")).unwrap();
        fs::copy(&sh, folder.join("ls")).unwrap();
        fs::hard_link(folder.join("ls"), folder.join("evil")).unwrap();
        symlink(&sh, folder.join("link")).unwrap();
        let shown = folder.display();
        let prepare = |command: &str, change: fn(&mut Spec)| {
            let mut spec = spec(Some(command), None);
            spec.cwd = Some(folder.to_owned());
            change(&mut spec);
            place.scripts.prepare(&spec)
        };
        for good in ["sh", "/bin/sh", "./sh", &format!("{shown}/sh")] {
            let runnable = prepare(good, |_| {}).unwrap();
            assert_eq!(runnable.program.as_deref(), Some(&*sh), "{good}");
        }
        for bad in [
            "./ls",
            "./evil",
            "./link",
            "cat",
            "/bin/cat",
            "/",
            &format!("{shown}/ls"),
            "/lib64/ld-linux-x86-64.so.2",
        ] {
            let error = prepare(bad, |_| {}).unwrap_err();
            assert_eq!(error.code(), "command_not_allowed", "{bad}");
            let text = error.to_string();
            assert!(text.contains(bad) && text.contains("w1") && text.contains("sh, /bin/ls"));
        }
        for name in [
            "LD_PRELOAD",
            "BASH_ENV",
            "ENV",
            "PATH",
            "PYTHONSTARTUP",
            "PERL5OPT",
        ] {
            let mut spec = spec(Some("sh"), None);
            spec.env.insert(name.to_owned(), "x".to_owned());
            let error = place.scripts.prepare(&spec).unwrap_err();
            assert_eq!(error.code(), "variable_not_allowed");
            assert!(error.to_string().contains(name), "{error}");
        }
        let greets = |spec: &mut Spec| drop(spec.env.insert("GREETING".into(), "x".into()));
        assert!(prepare("sh", greets).is_ok());
    }

    #[test]
    fn one_file_of_many_programs_is_allowed_by_name() {
        let place = place();
        let tool = place.root.path().join("tool");
        fs::copy("/bin/sh", &tool).unwrap();
        for name in ["tool-list", "tool-shell"] {
            symlink(&tool, place.root.path().join(name)).unwrap();
        }
        let listed = format!("{}-list", tool.display());
        let commands = Commands::Programs(vec![listed.clone()]);
        let allowed = Allowed::find(&commands, DEFAULT_PATH).unwrap();
        let check = |program: String| allowed.check(&program, program.clone().into(), "w1");
        assert_eq!(check(listed).unwrap(), tool.canonicalize().unwrap());
        assert!(check(format!("{}-shell", tool.display())).is_err());
        assert!(check(tool.display().to_string()).is_err());
    }

    #[test]
    fn scripts_alone_run_by_their_own_line() {
        let mut place = place();
        place.scripts.allowed = Allowed::Scripts;
        assert!(place.scripts.prepare(&spec(None, Some("count.sh"))).is_ok());
        let refused = |command, path| place.scripts.prepare(&spec(command, path)).unwrap_err();
        for error in [
            refused(Some("sh"), Some("count.sh")),
            refused(Some("sh"), None),
        ] {
            assert_eq!(error.code(), "command_not_allowed");
        }
    }

    #[test]
    fn a_list_names_programs_that_are_there() {
        for bad in ["no-such-program", "./sh", "bin/sh", "/bin/", "/etc/passwd"] {
            let commands = Commands::Programs(vec![bad.to_owned()]);
            let (program, _) = Allowed::find(&commands, DEFAULT_PATH).unwrap_err();
            assert_eq!(program, bad);
        }
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
        let env = environment(&spec, None);
        assert_eq!(env["JOBCTL_JOB_ID"], spec.id.to_string());
        assert_eq!(env["JOBCTL_ATTEMPT"], "1");
        let of = JobId::random();
        let again = Spec {
            attempt: Some(Attempt { of, number: 2 }),
            ..spec.clone()
        };
        let again = environment(&again, None);
        assert_eq!(again["JOBCTL_JOB_ID"], of.to_string());
        assert_eq!(again["JOBCTL_ATTEMPT"], "2");
        assert_eq!(again["JOBCTL_RUN_ID"], spec.id.to_string());
        assert_eq!(env["GREETING"], "hello");
        assert_eq!(env["JOBCTL_SCRIPT"], "count.sh");
        assert!(
            !env.contains_key("CARGO_PKG_NAME"),
            "the worker's own environment is not passed on"
        );
    }
}
