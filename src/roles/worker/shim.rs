//! The worker's line to the shim of one job: starting the shim, calling one that
//! lives, and what is said between them. What the job makes of that is the
//! business of `job.rs`, the other end of the line `roles/shim/control.rs`.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::DirBuilderExt as _,
            net::{SocketAddr, UnixListener, UnixStream as StdUnixStream},
        },
    },
    path::Path,
    process::Stdio,
    time::Duration,
};

use futures_util::StreamExt as _;
use rustix::{net::sockopt::socket_peercred, process::geteuid};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::{
    job::{Launch, Spec},
    scripts::Runnable,
};
#[cfg(test)]
use crate::simulation;
use crate::{
    ids::JobId,
    roles::shim::{
        self,
        protocol::{self, Event, socket_name},
    },
};

/// The worker's end of one shim.
pub(super) struct Shim {
    /// `None`: an earlier worker's.
    process: Option<Child>,
    events: FramedRead<Box<dyn AsyncRead + Send + Sync + Unpin>, LengthDelimitedCodec>,
    commands: Box<dyn AsyncWrite + Send + Sync + Unpin>,
}

impl Shim {
    /// Starts a shim and tells it what to run.
    ///
    /// # Errors
    ///
    /// What the worker lacks; the job has not begun then, and never will.
    pub(super) fn spawn(launch: &Launch, spec: &Spec, runnable: Runnable) -> Result<Self, String> {
        let place = &launch.place;
        for folder in [&place.output, &place.results] {
            make_folder(folder)?;
        }
        let socket = |error: io::Error| format!("no socket can be made: {error}");
        let (ours, theirs) = StdUnixStream::pair().map_err(socket)?;
        let cgroup = match &launch.cgroups {
            Some(cgroups) => Some(cgroups.make(spec.id).map_err(|error| error.to_string())?),
            None => None,
        };
        let message = protocol::Command::Start(Box::new(protocol::Spec {
            job_id: spec.id,
            program: runnable.program,
            arg0: runnable.arg0,
            script: runnable.script.is_some(),
            args: spec.args.clone(),
            env: runnable.env,
            cwd: runnable.cwd,
            user: runnable.user.map(|user| protocol::User {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups,
            }),
            timeout_ms: spec.timeout.map(whole_milliseconds),
            grace_ms: whole_milliseconds(launch.grace),
            output: launch.place.output(spec.id),
            output_limit: launch.output_limit,
            open_files: launch.open_files,
            result: launch.place.result(spec.id),
            cgroup,
            allow_new_privileges: launch.rules.allow_new_privileges,
            limits: launch.limits,
            oom_score_adj: Some(launch.rules.oom_score_adj),
        }));
        #[cfg(test)]
        if simulation::is_on() {
            let line = simulation::shims::spawn(&launch.worker, &message)?;
            return Ok(Self::over(tokio::io::split(line), None));
        }
        // Made here, so that there is no moment in which the shim lives and cannot
        // be called.
        let name = SocketAddr::from_abstract_name(socket_name(spec.id)).map_err(socket)?;
        let calls = UnixListener::bind_addr(&name).map_err(socket)?;
        let process = Command::new(&launch.shim)
            .arg0(shim::NAME)
            .arg("shim")
            // So that a list of processes says whose it is.
            .arg(spec.id.to_string())
            // And that its worker finds it, whatever became of its data folder.
            .arg(&launch.place.output)
            .env_clear()
            // Its files are there; any other folder would be held for no reason.
            .current_dir(&launch.place.output)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(runnable.script.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::from(OwnedFd::from(calls)))
            // A Ctrl-C at the worker's terminal is the worker's alone.
            .process_group(0)
            .spawn()
            .map_err(|error| not_spawned(&launch.shim, &error))?;
        let mut shim = Self::new(ours, Some(process)).map_err(socket)?;
        let message = protocol::encode(&message);
        // A shim that has not read all of it starts nothing.
        let told = tokio::runtime::Handle::current().block_on(shim.commands.write_all(&message));
        told.map_err(|error| format!("a shim ended at once: {error}"))?;
        Ok(shim)
    }

    /// Returns when the process of a shim that does not answer has gone, as far as
    /// this worker started it. True if what the shim leaves is a child of this
    /// process by then, where it adopts.
    pub(super) async fn gone(&mut self) -> bool {
        match &mut self.process {
            // What it returned says nothing.
            Some(process) => process.wait().await.is_ok(),
            None => false,
        }
    }

    /// Calls the shim of a job that an earlier worker started.
    pub(super) fn call(id: JobId) -> io::Result<Self> {
        #[cfg(test)]
        if simulation::is_on() {
            let line = simulation::shims::call(id)?;
            return Ok(Self::over(tokio::io::split(line), None));
        }
        let name = SocketAddr::from_abstract_name(socket_name(id))?;
        let socket = StdUnixStream::connect_addr(&name)?;
        // Anybody on this machine can take a name that nobody has.
        if socket_peercred(&socket)?.uid != geteuid() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Self::new(socket, None)
    }

    fn new(socket: StdUnixStream, process: Option<Child>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let line = UnixStream::from_std(socket)?.into_split();
        Ok(Self::over(line, process))
    }

    fn over<R, W>((events, commands): (R, W), process: Option<Child>) -> Self
    where
        R: AsyncRead + Send + Sync + Unpin + 'static,
        W: AsyncWrite + Send + Sync + Unpin + 'static,
    {
        let codec = LengthDelimitedCodec::builder()
            .little_endian()
            .max_frame_length(protocol::MAX_MESSAGE)
            .new_codec();
        Self {
            process,
            events: FramedRead::new(Box::new(events), codec),
            commands: Box::new(commands),
        }
    }

    /// What the shim says next; what is no event is `InvalidData`. `None`: the
    /// connection has ended, which a shim may survive. Safe to be dropped midway.
    pub(super) async fn event(&mut self) -> Option<io::Result<Event>> {
        let frame = self.events.next().await?;
        Some(frame.and_then(|frame| {
            let event = serde_json::from_slice(&frame);
            event.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        }))
    }

    /// The same shim, as it answered another call.
    pub(super) fn reconnected(self, again: Self) -> Self {
        Self {
            process: self.process,
            ..again
        }
    }

    /// Has the whole tree ended, beginning with `signal`. An error here is an end of
    /// the events in a moment.
    pub(super) async fn stop(&mut self, signal: i32, grace: Duration) -> io::Result<()> {
        let command = protocol::Command::Stop {
            signal,
            grace_ms: whole_milliseconds(grace),
        };
        self.commands.write_all(&protocol::encode(&command)).await
    }

    /// Lets the shim go, and returns when it has gone.
    pub(super) async fn receipt(mut self) {
        let receipt = protocol::encode(&protocol::Command::Receipt);
        // One that has gone already needs none.
        let _ = self.commands.write_all(&receipt).await;
        if let Some(mut process) = self.process {
            // Only so that it does not stay a zombie; what it returned says nothing.
            let _ = process.wait().await;
        }
    }
}

/// Ends a job that no worker follows. Returns once nothing of it is left; its
/// shim keeps the result for the next worker.
pub(super) async fn end_unfollowed(id: JobId, grace: Duration) -> io::Result<()> {
    let mut shim = Shim::call(id)?;
    let term = rustix::process::Signal::TERM.as_raw();
    shim.stop(term, grace).await?;
    while let Some(event) = shim.event().await {
        match event? {
            Event::Ended(_) | Event::NotStarted { .. } => return Ok(()),
            Event::Started { .. } | Event::Output { .. } | Event::Stopping => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Ends a job that no worker will ever report, and lets its shim go. Returns once
/// nothing of it is left.
pub(super) async fn end_stray(id: JobId, grace: Duration) -> io::Result<()> {
    let mut shim = Shim::call(id)?;
    let term = rustix::process::Signal::TERM.as_raw();
    shim.stop(term, grace).await?;
    while let Some(event) = shim.event().await {
        match event? {
            Event::Ended(_) | Event::NotStarted { .. } => {
                shim.receipt().await;
                return Ok(());
            }
            Event::Started { .. } | Event::Output { .. } | Event::Stopping => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// One of the worker's own folders, which may have been removed alone.
fn make_folder(folder: &Path) -> Result<(), String> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("its folder {}: {error}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Why there is no shim: the system's error names neither the program nor what else
/// may be missing.
fn not_spawned(program: &Path, error: &io::Error) -> String {
    match (error.kind(), fs::symlink_metadata(program)) {
        (io::ErrorKind::NotFound, Err(_)) => {
            format!("the program of shims, {}, is missing", program.display())
        }
        (_, _) => format!("no process can be started: {error}"),
    }
}

pub(super) fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
