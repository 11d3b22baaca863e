//! The shim: one small process per job (`jobctl shim`, hidden), which owns the
//! job's processes, its pipes and its end. One thread, no async runtime.
//!
//! The worker starts it with a socket as standard input, over which
//! [`protocol`] is spoken, with the opened script, where there is one, as standard
//! output, and with the socket on which later workers call as standard error. The
//! shim is the child subreaper of everything the job starts, so a job has ended
//! only when nothing of it is left: what the main process leaves behind is ended
//! too. It outlives the worker, waits for the next one to call, and keeps the job's
//! end until a worker has recorded it.
//!
//! What may be run is the worker's business; what the bytes of the output mean
//! is its readers'.

mod control;
mod orphans;
pub mod protocol;
pub mod record;
mod spawn;
mod tree;

pub use self::{
    orphans::{MARK, is_alone, kill_adopted, kill_orphans, proc_is_ours},
    spawn::hear_signals,
};

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::FileExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, ioctl_fionread, read},
    process::{
        DumpableBehavior, Pid, Resource, Signal, WaitStatus, getpid, getrlimit,
        set_child_subreaper, set_dumpable_behavior, setrlimit,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    thread::set_name,
    time::{ClockId, clock_gettime},
};
use signal_hook::{
    consts::{SIGCHLD, SIGINT, SIGTERM},
    low_level::pipe,
};

use self::{
    control::Control,
    protocol::{Cause, Command, Ended, Event, Spec, VERSION},
    record::{Recorder, Stream},
    tree::Reaped,
};

/// The most read from a pipe at once, and so the longest piece of output: what
/// a pipe holds (pipe(7)).
const PIECE: usize = 64 * 1024;

/// What lists of processes call a shim.
pub const NAME: &str = "jobctl-shim";

/// Between two attempts to kill what could not be killed, growing from the
/// first to the last: a process may be stuck in the kernel for a while.
const KILL_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The whole life of a shim: from the specification on standard input to the end
/// of the job. Returns when nothing of the job is left.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // There is nobody to tell: to the worker a shim that is gone says enough.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> io::Result<()> {
    spawn::ignore_signals();
    spawn::close_inherited()?;
    // The worker has named it on the command line; a list may show no more than this.
    set_name(c"jobctl-shim")?;
    // Not to be opened any more after the next step.
    let oom_score = OomScore::open();
    // Or a job of the same user could rewrite what watches it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let script = io::stdout().as_fd().try_clone_to_owned()?;
    let calls = io::stderr().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    set_child_subreaper(Some(getpid()))?;
    let mut control = Control::new(control);
    let Some(spec) = control.spec() else {
        return Ok(());
    };
    control.listen(UnixListener::from(calls))?;
    // The worker has raised its own.
    let mut files = getrlimit(Resource::Nofile);
    files.current = spec.open_files;
    setrlimit(Resource::Nofile, files)?;
    match Shim::start(control, &spec, script, oom_score)? {
        Some(shim) => shim.follow(),
        None => Ok(()),
    }
}

struct Shim {
    control: Control,
    children: UnixStream,
    signals: UnixStream,
    pipes: [Option<OwnedFd>; 2],
    recorder: Recorder,
    buffer: Box<[u8]>,
    main: Pid,
    /// Set once the main process has ended.
    status: Option<WaitStatus>,
    cause: Cause,
    /// On the clock of [`uptime`].
    started: Duration,
    /// Processes that the main process left when it ended.
    swept: u32,
    grace: Duration,
    timeout_at: Option<Instant>,
    kill_at: Option<Instant>,
    kill_pause: Duration,
    result: PathBuf,
    cgroup: Option<PathBuf>,
}

impl Shim {
    /// `None`: the job could not be started, and the worker was told why.
    fn start(
        mut control: Control,
        spec: &Spec,
        script: OwnedFd,
        oom_score: Option<OomScore>,
    ) -> io::Result<Option<Self>> {
        // Registered before there is a child that could end.
        let (children, signalled) = UnixStream::pair()?;
        pipe::register(SIGCHLD, signalled)?;
        let (signals, signalled) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM] {
            pipe::register(signal, signalled.try_clone()?)?;
        }
        children.set_nonblocking(true)?;
        signals.set_nonblocking(true)?;

        let spawn = || spawn::spawn(spec, spec.script.then_some(script));
        let spawned = match (oom_score, spec.oom_score_adj) {
            (Some(score), Some(of_job)) => score.lend(of_job, spawn),
            (_, _) => spawn(),
        };
        let mut child = match spawned {
            Ok(child) => child,
            Err(failed) => {
                if let Some(cgroup) = &spec.cgroup {
                    // An empty one that stays behind harms nobody.
                    let _ = tree::remove_cgroup(cgroup);
                }
                let last = Event::NotStarted {
                    why: failed.why(),
                    message: failed.error.to_string(),
                    failure: Some(failed.failure),
                };
                control.hand_over(&last, &spec.result)?;
                return Ok(None);
            }
        };
        let started = Instant::now();
        control.started(Event::Started {
            version: VERSION,
            pid: child.id(),
            at_us: Timestamp::now().as_microsecond(),
            // Until it is collected its number is nobody else's.
            birth: orphans::birth_of(child.id()),
        });
        let pipes = [
            child.stdout.take().map(OwnedFd::from),
            child.stderr.take().map(OwnedFd::from),
        ];
        for pipe in pipes.iter().flatten() {
            ioctl_fionbio(pipe, true)?;
        }
        let main = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Some(Self {
            control,
            children,
            signals,
            pipes,
            recorder: Recorder::new(spec.output.clone(), spec.output_limit),
            buffer: vec![0; PIECE].into(),
            main: main.ok_or(io::ErrorKind::InvalidData)?,
            status: None,
            cause: Cause::Itself,
            started: uptime(),
            swept: 0,
            grace: Duration::from_millis(spec.grace_ms),
            // A timeout beyond the clock's range is none.
            timeout_at: spec
                .timeout_ms
                .and_then(|ms| started.checked_add(Duration::from_millis(ms))),
            kill_at: None,
            kill_pause: KILL_AGAIN.0,
            result: spec.result.clone(),
            cgroup: spec.cgroup.clone(),
        }))
    }

    /// Until nothing of the job is left and the worker has been told.
    fn follow(mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            // Output first: whoever hears of an end has all that came before.
            for (pipe, stream) in [(0, Stream::Stdout), (1, Stream::Stderr)] {
                if ready.pipes[pipe] {
                    self.record(pipe, stream)?;
                }
            }
            // Then the dead: one that ended by itself was not ended by what comes next.
            if ready.children {
                drain(&self.children)?;
            }
            if self.reap()? {
                return self.finish();
            }
            if ready.signals {
                drain(&self.signals)?;
                // Somebody else than the worker wants the job gone.
                self.end(Signal::TERM, self.grace, Cause::Itself);
            }
            if ready.calls {
                self.control.accept();
            }
            if ready.control || ready.calls {
                self.obey();
            }
            self.meet_deadlines();
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let deadline = [self.timeout_at, self.kill_at].into_iter().flatten().min();
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        let nothing = PollFlags::empty();
        let mut fds = vec![
            PollFd::new(&self.children, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        let [control, calls] = self.control.interests();
        for (fd, flags) in [control, calls].into_iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        for pipe in self.pipes.iter().flatten() {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut fired = fds.iter().map(|fd| fd.revents() != nothing);
        let mut next = || fired.next().unwrap_or(false);
        Ok(Ready {
            children: next(),
            signals: next(),
            control: control.is_some() && next(),
            calls: calls.is_some() && next(),
            pipes: [
                self.pipes[0].is_some() && next(),
                self.pipes[1].is_some() && next(),
            ],
        })
    }

    /// Records what one read of a pipe returns. Returns how much that was.
    fn record(&mut self, pipe: usize, stream: Stream) -> io::Result<usize> {
        let Some(fd) = &self.pipes[pipe] else {
            return Ok(0);
        };
        match read(fd, &mut *self.buffer) {
            Ok(0) => {
                self.pipes[pipe] = None;
                Ok(0)
            }
            Ok(length) => {
                self.recorder.append(stream, &self.buffer[..length]);
                self.control.output(self.recorder.end());
                Ok(length)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn obey(&mut self) {
        while let Some(command) = self.control.receive() {
            match command {
                Command::Stop { signal, grace_ms } => {
                    let signal = Signal::from_named_raw(signal).unwrap_or(Signal::TERM);
                    self.end(signal, Duration::from_millis(grace_ms), Cause::Stopped);
                    self.control.send(&Event::Stopping);
                }
                Command::Start(_) | Command::Receipt => {}
            }
        }
    }

    /// Begins the end of everything the job started; [`Shim::reap`] sees it done.
    /// Returns to how many processes it was said.
    fn end(&mut self, signal: Signal, grace: Duration, cause: Cause) -> u32 {
        if self.status.is_none() && self.cause == Cause::Itself {
            self.cause = cause;
        }
        // Whoever is not reached this time is killed when the grace is over.
        let reached = tree::signal(signal, self.cgroup.as_deref())
            .or_else(|_| tree::signal(signal, None))
            .unwrap_or_default();
        let kill_at = Instant::now().checked_add(grace);
        self.kill_at = [self.kill_at, kill_at].into_iter().flatten().min();
        reached
    }

    fn meet_deadlines(&mut self) {
        let now = Instant::now();
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.timeout_at = None;
            self.end(Signal::TERM, self.grace, Cause::TimedOut);
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            let killed = match self
                .cgroup
                .as_deref()
                .filter(|_| self.kill_pause == KILL_AGAIN.0)
            {
                // Enough, unless the job has left the group.
                Some(cgroup) => tree::kill_cgroup(cgroup),
                None => tree::kill(),
            };
            // It is tried again and again anyway.
            let _ = killed;
            self.kill_at = Some(now + self.kill_pause);
            self.kill_pause = (self.kill_pause * 2).min(KILL_AGAIN.1);
        }
    }

    /// Collects what has ended. True when nothing is left.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match tree::reap()? {
                Reaped::Process(pid, status) if pid == self.main => {
                    self.status = Some(status);
                    self.timeout_at = None;
                }
                Reaped::Process(..) => {}
                Reaped::StillRunning => break,
                Reaped::Empty => return Ok(true),
            }
        }
        if self.status.is_some() && self.kill_at.is_none() {
            self.swept = self.end(Signal::TERM, self.grace, Cause::Itself);
        }
        Ok(false)
    }

    fn finish(mut self) -> io::Result<()> {
        for (pipe, stream) in [(0, Stream::Stdout), (1, Stream::Stderr)] {
            // No more than is there now: somebody outside the job may have been
            // handed the pipe, and may write for ever.
            let mut left = match &self.pipes[pipe] {
                Some(fd) => usize::try_from(ioctl_fionread(fd)?).unwrap_or(usize::MAX),
                None => 0,
            };
            while left > 0 {
                match self.record(pipe, stream)? {
                    0 => break,
                    length => left = left.saturating_sub(length),
                }
            }
        }
        let out_of_memory = self.cgroup.as_deref().and_then(tree::out_of_memory);
        if let Some(cgroup) = &self.cgroup {
            // An empty one that stays behind harms nobody.
            let _ = tree::remove_cgroup(cgroup);
        }
        let last = Event::Ended(Ended {
            at_us: Timestamp::now().as_microsecond(),
            exit_code: self.status.and_then(|status| status.exit_status()),
            signal: self.status.and_then(|status| status.terminating_signal()),
            cause: self.cause,
            output_bytes: self.recorder.end(),
            output_lost: self.recorder.lost(),
            out_of_memory,
            ran_ms: u64::try_from(uptime().saturating_sub(self.started).as_millis()).ok(),
            swept: self.swept,
        });
        self.control.hand_over(&last, &self.result)
    }
}

/// How long the machine has been up: a monotonic clock, which goes on while the machine
/// is suspended.
fn uptime() -> Duration {
    // It is after the boot.
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// How readily the kernel ends this process where memory is short.
struct OomScore(File);

impl OomScore {
    /// `None` where the machine does not have it.
    fn open() -> Option<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true);
        file.open("/proc/self/oom_score_adj").ok().map(Self)
    }

    /// Has what `spawn` starts begin with this one. A child takes its parent's, and
    /// could not open its own before it has executed its program. Where the kernel
    /// does not allow that it keeps that of the shim.
    fn lend<T>(&self, of_child: i32, spawn: impl FnOnce() -> T) -> T {
        let mut own = [0; 16];
        let own = self
            .0
            .read_at(&mut own, 0)
            .map(|length| own[..length].to_owned());
        let _ = self.0.write_at(of_child.to_string().as_bytes(), 0);
        let spawned = spawn();
        if let Ok(own) = own {
            let _ = self.0.write_at(&own, 0);
        }
        spawned
    }
}

/// What [`Shim::wait`] found ready.
#[derive(Default)]
struct Ready {
    children: bool,
    signals: bool,
    control: bool,
    calls: bool,
    pipes: [bool; 2],
}

/// Empties the pipe of a signal handler.
fn drain(mut pipe: &UnixStream) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
