//! A role as the first process of a container. The kernel makes that process the
//! parent of all whose own has ended, and only it can collect them. Here it does
//! nothing else: the role is its child, hears the signals that come for it, and says
//! with which code both end.

use std::{
    env, io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, kill_process, wait},
    stdio::stdin,
    termios::{tcgetpgrp, tcsetpgrp},
};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::worker::SHIM as OWN_PROGRAM;

/// What is for the role. Those of a terminal go there by themselves.
const PASSED_ON: [Signal; 8] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::WINCH,
];

/// Whether this is the first process of a pid namespace.
pub fn is_first_process() -> bool {
    getpid() == Pid::INIT
}

/// Runs the same command line in another process until that ends, and returns its exit
/// code. Until then nothing stays a zombie.
///
/// # Errors
///
/// When the process cannot be started, or signals cannot be heard of.
pub async fn run() -> anyhow::Result<u8> {
    // Heard of before there is a child that could end.
    let mut children = signal(SignalKind::child())?;
    let heard: io::Result<Vec<(Signal, Stream)>> = PASSED_ON
        .into_iter()
        .map(|one| Ok((one, signal(SignalKind::from_raw(one.as_raw()))?)))
        .collect();
    let role = start()?;
    let role = Pid::from_child(&role);
    for (one, mut stream) in heard? {
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                // It has ended where this fails, and then so does this process.
                let _ = kill_process(role, one);
            }
        });
    }
    loop {
        if let Some(code) = collect(role)? {
            return Ok(code);
        }
        children.recv().await;
    }
}

/// The role, in a process group of its own: what a terminal sends goes to either of
/// the two, and not to both.
fn start() -> io::Result<Child> {
    let mut words = env::args_os();
    let mut command = Command::new(OWN_PROGRAM);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let child = command.args(words).process_group(0).spawn()?;
    // The one in front of a terminal, where there is one that is not of outside.
    if tcgetpgrp(stdin()).is_ok() {
        let role = Pid::from_child(&child);
        tcsetpgrp(stdin(), role)?;
        // It may have touched the terminal before it was its own.
        kill_process(role, Signal::CONT)?;
    }
    Ok(child)
}

/// Collects everything that has ended. The exit code of the role, if it is among that.
fn collect(role: Pid) -> io::Result<Option<u8>> {
    let mut code = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == role => {
                code = Some(code_of(ExitStatus::from_raw(status.as_raw())));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(code),
            Err(error) => return Err(error.into()),
        }
    }
}

/// As a shell has it.
fn code_of(status: ExitStatus) -> u8 {
    let by_signal = status.signal().map(|signal| signal + 128);
    let code = status
        .code()
        .or(by_signal)
        .and_then(|code| u8::try_from(code).ok());
    code.unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_the_role() {
        for (raw, code) in [(0, 0), (3 << 8, 3), (9, 137), (15, 143)] {
            assert_eq!(code_of(ExitStatus::from_raw(raw)), code);
        }
    }
}
