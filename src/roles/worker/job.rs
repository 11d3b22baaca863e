//! One job: what was asked for, how it stands, and the task that follows its
//! shim. How many jobs there are, and which, is the business of `jobs.rs`.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixStream, unix::OwnedWriteHalf},
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::{
    error::Refusal,
    jobs::Changes,
    output::Extent,
    scripts::{Runnable, Scripts},
};
use crate::{
    ids::JobId,
    roles::shim::protocol::{self, Cause, Ended, Event, NotStarted},
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spec {
    pub(super) id: JobId,
    pub(super) command: Option<String>,
    pub(super) path: Option<String>,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) name: Option<String>,
    pub(super) timeout: Option<Duration>,
    pub(super) created: Timestamp,
}

impl Spec {
    /// What a person would call the thing that is executed.
    fn program(&self) -> String {
        match (&self.command, &self.path) {
            (Some(command), _) => command.clone(),
            (None, Some(path)) => format!("script {path}"),
            (None, None) => String::new(),
        }
    }
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// Accepted; there is no process yet.
    Starting,
    /// Its main process, or something that process left behind, exists.
    Running { pid: u32, since: Timestamp },
    /// Nothing of it is left.
    Ended(End),
}

/// How, and when, a job ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct End {
    /// The main process and its start; `None` if there never was one.
    pub(super) started: Option<(u32, Timestamp)>,
    pub(super) at: Timestamp,
    pub(super) how: How,
    /// Bytes of output that could not be recorded, and why.
    pub(super) output_lost: Option<String>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum How {
    /// It never ran.
    Refused(Refusal),
    /// The main process returned.
    Exited { code: i32, cause: Cause },
    /// A signal ended the main process.
    Signaled { signal: i32, cause: Cause },
    /// Nobody can tell.
    Lost(&'static str),
}

impl End {
    /// In one line, empty after a success without a blemish.
    pub(super) fn reason(&self, timeout: Option<Duration>) -> String {
        let process = |how: &How| match how {
            How::Exited { code, .. } => format!("exit status {code}"),
            How::Signaled { signal, .. } => format!("signal: {}", describe(*signal)),
            How::Refused(_) | How::Lost(_) => String::new(),
        };
        let mut reason = match &self.how {
            How::Refused(refusal) => format!("could not start: {refusal}"),
            How::Lost(why) => format!("lost: {why}"),
            How::Exited {
                code: 0,
                cause: Cause::Itself,
            } => String::new(),
            How::Exited { cause, .. } | How::Signaled { cause, .. } => match cause {
                Cause::Itself => process(&self.how),
                Cause::Stopped => format!("stopped: {}", process(&self.how)),
                Cause::TimedOut => {
                    match timeout.and_then(|t| jiff::SignedDuration::try_from(t).ok()) {
                        Some(timeout) => format!("timed out after {timeout:#}"),
                        None => "timed out".to_owned(),
                    }
                }
            },
        };
        if let Some(lost) = &self.output_lost {
            if !reason.is_empty() {
                reason.push_str("; ");
            }
            reason.push_str(lost);
        }
        reason
    }
}

/// A signal in the words that shells and Go use for it.
fn describe(signal: i32) -> String {
    let words = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        24 => "CPU time limit exceeded",
        25 => "file size limit exceeded",
        other => return format!("signal {other}"),
    };
    words.to_owned()
}

/// What the rest of the worker holds of a job.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) spec: Arc<Spec>,
    pub(super) state: watch::Receiver<State>,
    pub(super) extent: watch::Receiver<Extent>,
    /// The output's path, without its endings.
    pub(super) output: PathBuf,
    stops: mpsc::Sender<Stop>,
}

/// A request to end a job.
struct Stop {
    signal: i32,
    grace: Duration,
    /// Told when the signal was sent; dropped when the job ended before.
    sent: oneshot::Sender<()>,
}

impl Job {
    /// A job and the task that will start and follow it.
    pub(super) fn new(spec: Spec, output: PathBuf, changes: Changes) -> (Self, Task) {
        let (state_sender, state) = watch::channel(State::Starting);
        let (extent_sender, extent) = watch::channel(Extent::default());
        let (stops, stop_receiver) = mpsc::channel(16);
        let job = Self {
            spec: Arc::new(spec),
            state,
            extent,
            output,
            stops,
        };
        let task = Task {
            job: job.clone(),
            state: state_sender,
            extent: extent_sender,
            stops: stop_receiver,
            changes,
        };
        (job, task)
    }

    /// Waits until the job runs or will never do so.
    pub(super) async fn begun(&self) -> State {
        self.reached(|state| !matches!(state, State::Starting))
            .await
    }

    /// Waits until nothing of the job is left.
    pub(super) async fn ended(&self) -> State {
        self.reached(|state| matches!(state, State::Ended(_))).await
    }

    async fn reached(&self, condition: impl FnMut(&State) -> bool) -> State {
        let mut state = self.state.clone();
        match state.wait_for(condition).await {
            Ok(state) => state.clone(),
            // The task is gone, and this is the last it said.
            Err(_) => self.state.borrow().clone(),
        }
    }

    /// Returns once the first signal was sent, or the job has ended without it.
    pub(super) async fn stop(&self, signal: i32, grace: Duration) {
        let (sent, done) = oneshot::channel();
        let stop = Stop {
            signal,
            grace,
            sent,
        };
        // Either error says that the job has ended.
        if self.stops.send(stop).await.is_ok() {
            let _ = done.await;
        }
    }
}

/// What starting a job needs beside the job.
pub(super) struct Launch {
    pub(super) worker: String,
    pub(super) shim: PathBuf,
    pub(super) scripts: Scripts,
    pub(super) grace: Duration,
}

/// Starts a job and follows it to its end.
pub(super) struct Task {
    job: Job,
    state: watch::Sender<State>,
    extent: watch::Sender<Extent>,
    stops: mpsc::Receiver<Stop>,
    changes: Changes,
}

impl Task {
    /// Returns when nothing of the job is left.
    pub(super) async fn run(mut self, launch: Launch) {
        let spec = self.job.spec.clone();
        let output = self.job.output.clone();
        // Looking up files and starting a process may wait for a disk.
        let launched =
            tokio::task::spawn_blocking(move || Shim::launch(&launch, &spec, output)).await;
        match launched {
            Ok(Ok(shim)) => self.follow(shim).await,
            Ok(Err(refusal)) => self.end(None, How::Refused(refusal)),
            Err(_) => self.end(None, How::Lost("the worker failed to start it")),
        }
    }

    async fn follow(&mut self, mut shim: Shim) {
        let mut started = None;
        let mut stopping = Vec::new();
        let result = loop {
            tokio::select! {
                event = shim.events.next() => match event.and_then(read_event) {
                    Some(Event::Started { pid, at_us }) => {
                        let since = timestamp(at_us);
                        started = Some((pid, since));
                        self.set(State::Running { pid, since });
                    }
                    Some(Event::Output { end }) => {
                        self.extent.send_replace(Extent { bytes: end, complete: false });
                    }
                    Some(Event::Stopping) => stopping.clear(),
                    Some(Event::NotStarted { why, message }) => {
                        break How::Refused(shim.refusal(why, message));
                    }
                    Some(Event::Ended(ended)) => {
                        self.extent.send_replace(Extent { bytes: ended.output_bytes, complete: false });
                        self.finish(started, &ended);
                        shim.reap().await;
                        return;
                    }
                    None => break How::Lost("its shim was killed"),
                },
                Some(stop) = self.stops.recv() => {
                    // An error here is an end of `events` in a moment.
                    let _ = shim.stop(&stop).await;
                    stopping.push(stop.sent);
                }
            }
        };
        shim.reap().await;
        self.end(started, result);
    }

    fn finish(&mut self, started: Option<(u32, Timestamp)>, ended: &Ended) {
        let cause = ended.cause;
        let how = match (ended.exit_code, ended.signal) {
            (Some(code), _) => How::Exited { code, cause },
            (None, Some(signal)) => How::Signaled { signal, cause },
            (None, None) => How::Lost("its shim could not tell"),
        };
        self.set_ended(End {
            started,
            at: timestamp(ended.at_us),
            how,
            output_lost: ended
                .output_lost
                .as_ref()
                .map(|lost| format!("{} bytes of output lost: {}", lost.bytes, lost.why)),
        });
    }

    fn end(&mut self, started: Option<(u32, Timestamp)>, how: How) {
        self.set_ended(End {
            started,
            at: Timestamp::now(),
            how,
            output_lost: None,
        });
    }

    fn set_ended(&mut self, end: End) {
        self.set(State::Ended(end));
        // After the state: a follower that saw the last byte finds the end there.
        self.extent.send_modify(|extent| extent.complete = true);
    }

    fn set(&mut self, state: State) {
        let job_id = self.job.spec.id;
        match &state {
            State::Starting => {}
            State::Running { pid, .. } => tracing::info!(%job_id, pid, "job started"),
            State::Ended(end) => {
                let reason = end.reason(self.job.spec.timeout);
                tracing::info!(%job_id, reason, "job ended");
            }
        }
        self.state.send_replace(state);
        self.changes.record(job_id);
    }
}

fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn read_event(frame: io::Result<bytes::BytesMut>) -> Option<Event> {
    serde_json::from_slice(&frame.ok()?).ok()
}

/// The worker's end of one shim.
struct Shim {
    process: Child,
    events: FramedRead<tokio::net::unix::OwnedReadHalf, LengthDelimitedCodec>,
    commands: OwnedWriteHalf,
    program: String,
    worker: String,
}

impl Shim {
    /// Starts a shim and tells it what to run.
    fn launch(launch: &Launch, spec: &Spec, output: PathBuf) -> Result<Self, Refusal> {
        let runnable = launch.scripts.prepare(spec)?;
        Self::spawn(launch, spec, runnable, output).map_err(|error| Refusal::NotStarted {
            program: spec.program(),
            worker: launch.worker.clone(),
            why: error.to_string(),
        })
    }

    fn spawn(
        launch: &Launch,
        spec: &Spec,
        runnable: Runnable,
        output: PathBuf,
    ) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let message = protocol::Command::Start(protocol::Spec {
            job_id: spec.id,
            program: runnable.program,
            arg0: runnable.arg0,
            script: runnable.script.is_some(),
            args: spec.args.clone(),
            env: runnable.env,
            cwd: runnable.cwd,
            timeout_ms: spec.timeout.map(milliseconds),
            grace_ms: milliseconds(launch.grace),
            output,
        });
        let process = Command::new(&launch.shim)
            .arg("shim")
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(runnable.script.map_or_else(Stdio::null, Stdio::from))
            // A Ctrl-C at the worker's terminal is the worker's alone.
            .process_group(0)
            .spawn()?;
        // Blocking, as it may be more than a socket holds at once.
        io::Write::write_all(&mut &ours, &protocol::encode(&message))?;
        ours.set_nonblocking(true)?;
        let (events, commands) = UnixStream::from_std(ours)?.into_split();
        let codec = LengthDelimitedCodec::builder()
            .little_endian()
            .max_frame_length(protocol::MAX_MESSAGE)
            .new_codec();
        Ok(Self {
            process,
            events: FramedRead::new(events, codec),
            commands,
            program: spec.program(),
            worker: launch.worker.clone(),
        })
    }

    async fn stop(&mut self, stop: &Stop) -> io::Result<()> {
        let command = protocol::Command::Stop {
            signal: stop.signal,
            grace_ms: milliseconds(stop.grace),
        };
        self.commands.write_all(&protocol::encode(&command)).await
    }

    fn refusal(&self, why: NotStarted, message: String) -> Refusal {
        let program = self.program.clone();
        let worker = self.worker.clone();
        match why {
            NotStarted::NotFound => Refusal::NotStarted {
                program,
                worker,
                why: "it, or the interpreter its first line names, does not exist".to_owned(),
            },
            NotStarted::NotExecutable => Refusal::NotExecutable {
                program,
                worker,
                why: message,
            },
            NotStarted::Other => Refusal::NotStarted {
                program,
                worker,
                why: message,
            },
        }
    }

    async fn reap(mut self) {
        // Only so that it does not stay a zombie; what it returned says nothing.
        let _ = self.process.wait().await;
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(how: How) -> String {
        let end = End {
            started: None,
            at: Timestamp::now(),
            how,
            output_lost: None,
        };
        end.reason(Some(Duration::from_secs(600)))
    }

    #[test]
    fn an_end_is_told_in_one_line() {
        let itself = Cause::Itself;
        assert_eq!(
            reason(How::Exited {
                code: 0,
                cause: itself
            }),
            ""
        );
        assert_eq!(
            reason(How::Exited {
                code: 3,
                cause: itself
            }),
            "exit status 3"
        );
        assert_eq!(
            reason(How::Signaled {
                signal: 9,
                cause: itself
            }),
            "signal: killed"
        );
        assert_eq!(
            reason(How::Signaled {
                signal: 40,
                cause: itself
            }),
            "signal: signal 40"
        );
        let cause = Cause::Stopped;
        assert_eq!(
            reason(How::Signaled { signal: 15, cause }),
            "stopped: signal: terminated"
        );
        assert_eq!(
            reason(How::Exited { code: 0, cause }),
            "stopped: exit status 0"
        );
        let cause = Cause::TimedOut;
        assert_eq!(
            reason(How::Signaled { signal: 15, cause }),
            "timed out after 10m"
        );
        assert_eq!(
            reason(How::Lost("its shim was killed")),
            "lost: its shim was killed"
        );
    }

    #[test]
    fn lost_output_is_never_silent() {
        let end = End {
            started: None,
            at: Timestamp::now(),
            how: How::Exited {
                code: 0,
                cause: Cause::Itself,
            },
            output_lost: Some("5 bytes of output lost: disk full".into()),
        };
        assert_eq!(end.reason(None), "5 bytes of output lost: disk full");
    }
}
