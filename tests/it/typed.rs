//! The real binary as a person types it: in an empty folder, with nothing of
//! this environment's settings, and killed if a test fails before it has ended.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, tcgetattr, tcsetattr},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdout},
};

use crate::{
    cluster::{Place, TestCluster},
    enrolled,
    support::{binary, within},
};

/// Where commands are typed.
pub(crate) struct Jobctl {
    folder: TempDir,
    /// Not within the folder, which some tests want to be empty at the end.
    client_dir: TempDir,
    server: Option<String>,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Outcome {
    /// Fails unless it is this one, whatever stood on stderr.
    #[track_caller]
    pub(crate) fn is(&self, code: i32, stdout: &str) {
        let seen = (self.code, self.stdout.as_str());
        assert_eq!(seen, (Some(code), stdout), "stderr: {}", self.stderr);
    }

    /// Fails unless it succeeded, whatever it showed.
    #[track_caller]
    pub(crate) fn is_done(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// How many lines of its stderr are this one.
    pub(crate) fn said(&self, line: &str) -> usize {
        self.stderr.lines().filter(|said| *said == line).count()
    }
}

impl Jobctl {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            client_dir: tempfile::tempdir().unwrap(),
            server: None,
        }
    }

    /// With `JOBCTL_SERVER` set.
    pub(crate) fn at(server: impl fmt::Display) -> Self {
        let jobctl = Self {
            server: Some(server.to_string()),
            ..Self::new()
        };
        enrolled::client(jobctl.client_dir(), &server.to_string());
        jobctl
    }

    pub(crate) fn of(cluster: &TestCluster) -> Self {
        Self::at(cluster.place.server())
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn client_dir(&self) -> &Path {
        self.client_dir.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .env_clear()
            .env("HOME", self.folder())
            .env("JOBCTL_CLIENT_DIR", self.client_dir())
            .env("TMPDIR", self.folder())
            // A test that is about waiting says so.
            .env("JOBCTL_PATIENCE", "0s")
            .env("PATH", "/usr/bin:/bin");
        if let Some(server) = &self.server {
            command.env("JOBCTL_SERVER", server);
        }
        command
    }

    /// Where nothing is needed of a role inside this process.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).output().unwrap().into()
    }

    /// Runs to its end while this process goes on.
    pub(crate) async fn ask(&self, args: &[&str]) -> Outcome {
        Typed::new(self.command(args)).end().await
    }

    /// As [`Jobctl::ask`], with this on standard input.
    pub(crate) async fn ask_with(&self, args: &[&str], stdin: &[u8]) -> Outcome {
        let mut command = self.command(args);
        command.stdin(Stdio::piped());
        let mut typed = Typed::new(command);
        let mut to = typed.child.stdin.take().unwrap();
        to.write_all(stdin).await.unwrap();
        drop(to);
        typed.end().await
    }

    /// Runs to its end on a terminal of its own, on which `keys` are typed.
    pub(crate) async fn on_terminal(&self, args: &[&str], keys: &str) -> Seen {
        let (screen, tty) = terminal();
        rustix::io::write(&screen, keys.as_bytes()).unwrap();
        let mut command = self.command(args);
        command
            .stdin(tty.try_clone().unwrap())
            .stdout(tty.try_clone().unwrap())
            .stderr(tty);
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        // Else this process would keep the terminal open.
        drop(command);
        let shown = tokio::task::spawn_blocking(move || {
            let mut shown = Vec::new();
            // Ends with an error, once nobody else has the terminal.
            File::from(screen).read_to_end(&mut shown).unwrap_err();
            String::from_utf8(shown).unwrap()
        });
        Seen {
            code: within(child.wait()).await.unwrap().code(),
            shown: within(shown).await.unwrap(),
        }
    }

    pub(crate) fn begin(&self, args: &[&str]) -> Typed {
        Typed::new(self.command(args))
    }
}

/// What came of a command on a terminal.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) code: Option<i32>,
    /// Each byte that was written to it.
    pub(crate) shown: String,
}

/// Both ends of a terminal that changes nothing of what it is given.
fn terminal() -> (OwnedFd, OwnedFd) {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let tty = rustix::fs::open(name, flags, Mode::empty()).unwrap();
    let mut settings = tcgetattr(&tty).unwrap();
    settings.make_raw();
    tcsetattr(&tty, OptionalActions::Now, &settings).unwrap();
    (screen, tty)
}

/// A command that goes on.
pub(crate) struct Typed {
    pub(crate) child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Typed {
    pub(crate) fn new(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        Self {
            stdout: BufReader::new(child.stdout.take().unwrap()),
            stderr: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    /// The next line of its stdout.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        within(self.stdout.read_line(&mut line)).await.unwrap();
        line
    }

    /// Waits for so many lines of stderr with `text` in them; returns the last.
    pub(crate) async fn says(&mut self, text: &str, times: usize) -> String {
        let (mut line, mut seen, mut before) = (String::new(), 0, String::new());
        while seen < times {
            before.push_str(&line);
            line.clear();
            let read = within(self.stderr.read_line(&mut line)).await.unwrap();
            assert_ne!(read, 0, "ended without saying {text}: {before}");
            seen += usize::from(line.contains(text));
        }
        line
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Stops reading its stdout, and waits for its end.
    pub(crate) async fn closed(mut self) -> Outcome {
        let mut stderr = String::new();
        drop(self.stdout);
        within(self.stderr.read_to_string(&mut stderr))
            .await
            .unwrap();
        Outcome {
            code: within(self.child.wait()).await.unwrap().code(),
            stdout: String::new(),
            stderr,
        }
    }

    /// Waits for its end; what was read before is left out.
    pub(crate) async fn end(mut self) -> Outcome {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (out, err, status) = within(async {
            tokio::join!(
                self.stdout.read_to_string(&mut stdout),
                self.stderr.read_to_string(&mut stderr),
                self.child.wait()
            )
        })
        .await;
        out.and(err).unwrap();
        Outcome {
            code: status.unwrap().code(),
            stdout,
            stderr,
        }
    }
}

/// A server that nobody runs, on an address of its own, so that nobody will.
pub(crate) fn nowhere() -> String {
    Place::new().server()
}
