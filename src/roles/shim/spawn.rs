//! Turns a [`Spec`] into a running process.

#![expect(
    unsafe_code,
    reason = "a process can only be given a session of its own between fork and exec"
)]

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    ptr,
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd, read, write},
    pipe::{PipeFlags, pipe_with},
    process::{
        Resource, Rlimit, Signal, chdir, getpid, getppid, set_parent_process_death_signal,
        setrlimit, setsid,
    },
    thread::set_no_new_privs,
};

use super::protocol::{Failure, Limits, NotStarted, Spec, Step, User};

/// The longest first line in which the kernel looks for an interpreter (execve(2)).
const FIRST_LINE: usize = 256;

/// The signals that the C library keeps for itself, and does not let a program set.
const RESERVED: u64 = 0b11 << 31;

/// Undoes what the launcher of this process had it do with signals: none is blocked,
/// and it hears of the end of its children. What it was to ignore otherwise, the end
/// of a terminal say, it goes on ignoring.
pub fn hear_signals() {
    set_mask(0);
    // SAFETY: there is no handler that this takes the place of.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Has this process ignore whatever it is sent, but for KILL and STOP, which cannot
/// be. Signals with a meaning get it afterwards. A fault of its own ends it all
/// the same.
pub(super) fn ignore_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: no handler is set, and one of the runtime that is replaced would
        // only have told a fault in other words. Those that cannot be set say so.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: as above. It would hide the end of children.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    set_mask(RESERVED);
}

/// Has each signal do what it does by default, those of the C library too.
fn forget_dispositions() {
    // The kernel's own structure, which is as long at most, and all zero for that
    // (rt_sigaction(2)).
    let default = [0_u64; 4];
    for signal in 1..=64 {
        let none = ptr::null_mut::<u64>();
        // SAFETY: the kernel reads a structure that lives, and writes nothing. Allowed
        // between fork and exec. KILL and STOP cannot be set, and need not be.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &default, none, 8) };
    }
}

/// Blocks these signals and no others. The C library would leave its own out.
fn set_mask(mask: u64) {
    let none = ptr::null_mut::<u64>();
    // SAFETY: the kernel reads a set of 64 signals and writes nothing. It cannot fail
    // with these arguments, and is allowed between fork and exec.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &mask, none, 8) };
}

/// Closes every descriptor but the three standard ones. Whoever started the
/// worker may have left some open, and neither shim nor job shall hold them.
pub(super) fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The one of the listing itself is closed by now.
        if fs::read_link(format!("/proc/self/fd/{descriptor}")).is_ok() {
            // SAFETY: it is open, and as the shim has opened nothing yet, nothing
            // in this process relies on it.
            unsafe { rustix::io::close(descriptor) };
        }
    }
    Ok(())
}

/// A process that was not started.
#[derive(Debug)]
pub(super) struct SpawnError {
    pub(super) failure: Failure,
    pub(super) error: io::Error,
}

impl SpawnError {
    fn at(step: Step, error: io::Error) -> Self {
        let failure = Failure {
            step,
            errno: error.raw_os_error(),
            interpreter: None,
        };
        Self { failure, error }
    }

    /// The same in the words of an older worker.
    pub(super) fn why(&self) -> NotStarted {
        const ENOEXEC: i32 = Errno::NOEXEC.raw_os_error();
        if self.failure.step != Step::Exec {
            return NotStarted::Other;
        }
        match (self.error.kind(), self.failure.errno) {
            (io::ErrorKind::NotFound, _) => NotStarted::NotFound,
            (io::ErrorKind::PermissionDenied, _) | (_, Some(ENOEXEC)) => NotStarted::NotExecutable,
            _ => NotStarted::Other,
        }
    }
}

/// Starts the main process: in its own session, with pipes for its output and
/// nothing to read. The script, if there is one, stays open in the job and only
/// there: what the worker opened is what runs, whatever its path means by now.
pub(super) fn spawn(spec: &Spec, script: Option<OwnedFd>) -> Result<Child, SpawnError> {
    let own = |error: io::Error| SpawnError::at(Step::Process, error);
    let script_path = match &script {
        Some(script) => {
            fcntl_setfd(script, FdFlags::empty()).map_err(|error| own(error.into()))?;
            Some(PathBuf::from(format!(
                "/proc/self/fd/{}",
                script.as_raw_fd()
            )))
        }
        None => None,
    };
    let executed = spec.program.as_ref().or(script_path.as_ref());
    let executed = executed.ok_or_else(|| own(io::ErrorKind::InvalidInput.into()))?;
    let mut command = Command::new(executed);
    if let (Some(_), Some(script)) = (&spec.program, &script_path) {
        command.arg(script);
    }
    command
        .arg0(&spec.arg0)
        .args(&spec.args)
        .env_clear()
        .envs(&spec.env)
        .stdin(Stdio::from(File::open("/dev/null").map_err(own)?))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let cgroup = match &spec.cgroup {
        Some(cgroup) => Some(open_group(cgroup)?),
        None => None,
    };
    let cwd = CString::new(spec.cwd.as_os_str().as_bytes());
    let cwd = cwd.map_err(|error| SpawnError::at(Step::Folder, error.into()))?;
    // Only a number comes back from a child that failed; this says of what.
    let (steps, step) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|error| own(error.into()))?;
    let prepare = prepare(spec, cgroup, cwd, step);
    // SAFETY: each is a single system call, allowed between fork and exec.
    unsafe { command.pre_exec(prepare) };
    command.spawn().map_err(|error| {
        let mut passed = [0; 16];
        let passed = read(&steps, &mut passed).map_or(&[][..], |length| &passed[..length]);
        let step = passed.last().copied().map_or(Step::Process, step_of);
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let mut failed = SpawnError::at(step, error);
        if step == Step::Exec && is_missing {
            failed.failure.interpreter = interpreter(executed);
        }
        failed
    })
}

/// Where the process enters its control group. An error names it.
fn open_group(group: &Path) -> Result<File, SpawnError> {
    let path = group.join("cgroup.procs");
    File::options().write(true).open(&path).map_err(|error| {
        let message = format!("{}: {error}", path.display());
        let mut failed = SpawnError::at(Step::Group, error);
        failed.error = io::Error::other(message);
        failed
    })
}

/// What the new process does to itself before it executes the program, and says to
/// `step` beforehand.
fn prepare(
    spec: &Spec,
    cgroup: Option<File>,
    cwd: CString,
    step: OwnedFd,
) -> impl FnMut() -> io::Result<()> + use<> {
    let user = spec.user.clone();
    let allow_new_privileges = spec.allow_new_privileges;
    let limits = spec.limits;
    let shim = getpid();
    let at = move |next: Step| {
        // Without it an error is told less well, no more.
        let _ = write(&step, &[next as u8]);
    };
    move || {
        if let Some(cgroup) = &cgroup {
            at(Step::Group);
            // 0 is the process that writes it (cgroups(7)).
            write(cgroup, b"0")?;
        }
        at(Step::User);
        // The launcher of the worker may have had it ignore some, and the shim does.
        forget_dispositions();
        set_mask(0);
        setsid()?;
        if let Some(user) = &user {
            become_user(user)?;
        }
        at(Step::Folder);
        // As the user, who may not be let in.
        chdir(&*cwd)?;
        at(Step::Limits);
        // After the change of user, which resets it.
        // Should the shim be killed, its job does not run on unseen.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(shim) {
            // It was, before this could be heard of.
            return Err(Errno::SRCH.into());
        }
        if !allow_new_privileges {
            set_no_new_privs(true)?;
        }
        // Last, so that they bound the job alone and not what is done for it here.
        limit(limits)?;
        at(Step::Exec);
        Ok(())
    }
}

/// The step of the number that was written for it.
fn step_of(number: u8) -> Step {
    let steps = [
        Step::Group,
        Step::User,
        Step::Folder,
        Step::Limits,
        Step::Exec,
    ];
    let found = steps.into_iter().find(|step| *step as u8 == number);
    found.unwrap_or(Step::Process)
}

/// What the first line of a program names as what runs it.
fn interpreter(program: &Path) -> Option<String> {
    let mut start = Vec::new();
    let mut options = File::options();
    // By now it may be a fifo without a writer.
    let file = options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = file.open(program).ok()?;
    file.take(FIRST_LINE as u64).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
    let name = line.split(|byte| matches!(byte, b' ' | b'\t')).next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// Bounds this process, and all that it starts. Without rights none of them can
/// raise what is set here.
fn limit(limits: Limits) -> io::Result<()> {
    for (resource, most) in [
        (Resource::As, limits.memory),
        (Resource::Nproc, limits.processes),
        (Resource::Nofile, limits.open_files),
    ] {
        if most.is_some() {
            let (current, maximum) = (most, most);
            setrlimit(resource, Rlimit { current, maximum })?;
        }
    }
    Ok(())
}

/// Gives the rights of this process up for those of `user`, for good. Its output
/// goes with it, so that it can open `/dev/stdout` as its own.
fn become_user(user: &User) -> io::Result<()> {
    let check = |result: i32| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: system calls with numbers, and a list that lives meanwhile. There is
    // one thread between fork and exec, so the rights of the thread are all of them.
    unsafe {
        for output in [1, 2] {
            // Without the right to, it just cannot be opened again.
            let _ = libc::fchown(output, user.uid, user.gid);
        }
        check(libc::setgroups(user.groups.len(), user.groups.as_ptr()))?;
        check(libc::setresgid(user.gid, user.gid, user.gid))?;
        // From one user to another that is not root rights of the worker would stay.
        let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
        check(libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0))?;
        check(libc::setresuid(user.uid, user.uid, user.uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_told_from_the_others() {
        for step in [
            Step::Process,
            Step::Group,
            Step::User,
            Step::Folder,
            Step::Limits,
            Step::Exec,
        ] {
            assert_eq!(step_of(step as u8), step);
        }
    }

    #[test]
    fn an_interpreter_is_what_the_kernel_would_execute() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        let named = |text: &[u8]| {
            fs::write(&program, text).unwrap();
            interpreter(&program)
        };
        assert_eq!(named(b"#!/bin/sh\n").as_deref(), Some("/bin/sh"));
        assert_eq!(named(b"#! /bin/sh -e\n").as_deref(), Some("/bin/sh"));
        assert_eq!(named(b"#!/bin/sh\r\n").as_deref(), Some("/bin/sh\r"));
        assert_eq!(named(b"#!\n"), None);
        assert_eq!(named(b"\x7fELF"), None);
        assert_eq!(interpreter(&dir.path().join("missing")), None);
    }
}
