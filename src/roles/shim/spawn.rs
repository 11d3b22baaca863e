//! Turns a [`Spec`] into a running process.

#![expect(
    unsafe_code,
    reason = "a process can only be given a session of its own between fork and exec"
)]

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{
        Resource, Rlimit, Signal, chdir, set_parent_process_death_signal, setrlimit, setsid,
    },
    thread::set_no_new_privs,
};

use super::protocol::{Limits, NotStarted, Spec, User};

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

/// Starts the main process: in its own session, with pipes for its output and
/// nothing to read. The script, if there is one, stays open in the job and only
/// there: what the worker opened is what runs, whatever its path means by now.
pub(super) fn spawn(spec: &Spec, script: Option<OwnedFd>) -> io::Result<Child> {
    let script_path = match &script {
        Some(script) => {
            fcntl_setfd(script, FdFlags::empty())?;
            Some(PathBuf::from(format!(
                "/proc/self/fd/{}",
                script.as_raw_fd()
            )))
        }
        None => None,
    };
    let mut command = match (&spec.program, &script_path) {
        (Some(program), None) => Command::new(program),
        (Some(program), Some(script)) => {
            let mut command = Command::new(program);
            command.arg(script);
            command
        }
        (None, Some(script)) => Command::new(script),
        (None, None) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    command
        .arg0(&spec.arg0)
        .args(&spec.args)
        .env_clear()
        .envs(&spec.env)
        .stdin(Stdio::from(File::open("/dev/null")?))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let cgroup = match &spec.cgroup {
        Some(cgroup) => Some(
            File::options()
                .write(true)
                .open(cgroup.join("cgroup.procs"))?,
        ),
        None => None,
    };
    let cwd = CString::new(spec.cwd.as_os_str().as_encoded_bytes())?;
    let user = spec.user.clone();
    let allow_new_privileges = spec.allow_new_privileges;
    let limits = spec.limits;
    // SAFETY: each is a single system call, allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if let Some(cgroup) = &cgroup {
                // 0 stands for the process that writes it (cgroups(7)).
                rustix::io::write(cgroup, b"0")?;
            }
            // Whoever started the worker may have had it ignore some.
            for signal in 1..=libc::SIGRTMAX() {
                // Those that cannot be set say so, and are not ignored either.
                libc::signal(signal, libc::SIG_DFL);
            }
            setsid()?;
            if let Some(user) = &user {
                become_user(user)?;
            }
            // As the user, who may not be let in.
            chdir(&*cwd)?;
            // Behind the change of user, which resets it.
            // Should the shim be killed, its job does not run on unseen.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if !allow_new_privileges {
                set_no_new_privs(true)?;
            }
            // Last, so that they bound the job alone and not what is done for it here.
            limit(limits)
        });
    }
    command.spawn()
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

/// What an error of [`spawn`] means.
pub(super) fn why(error: &io::Error) -> NotStarted {
    const ENOEXEC: i32 = rustix::io::Errno::NOEXEC.raw_os_error();
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => NotStarted::NotFound,
        (io::ErrorKind::PermissionDenied, _) | (_, Some(ENOEXEC)) => NotStarted::NotExecutable,
        _ => NotStarted::Other,
    }
}
