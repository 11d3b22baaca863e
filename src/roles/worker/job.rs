//! One job: what was asked for, how it stands, and the task that follows it to its
//! end, be it one that this worker started or one that an earlier worker left
//! behind. How its shim is spoken to is the business of `shim.rs`; how many jobs
//! there are, and which, that of `jobs.rs`.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    cgroup::Cgroups,
    error::Refusal,
    folders::make_dir,
    jobs::{Change, Changes},
    journal::{AppendError, Journal, Record},
    limits::size,
    not_started::About,
    output::{Extent, Output},
    output_sync::OutputSync,
    rules::Rules,
    scripts::Scripts,
    shim::Shim,
};
use crate::{
    blocking::{fs, spawn_blocking},
    ids::JobId,
    roles::shim::{
        kill_adopted, kill_orphans,
        protocol::{Birth, Cause, Ended, Event, Limits, OutOfMemory, OutputLost},
        record::{GapCause, Repaired, repair},
    },
};

/// Between two attempts to record an end where there was no room for it; its
/// shim keeps it meanwhile.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) id: JobId,
    pub(super) command: Option<String>,
    pub(super) path: Option<String>,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: Option<PathBuf>,
    #[serde(default)]
    pub(super) user: Option<String>,
    pub(super) name: Option<String>,
    pub(super) timeout: Option<Duration>,
    pub(super) created: Timestamp,
    /// None: a job's first one.
    #[serde(default)]
    pub(super) attempt: Option<Attempt>,
}

/// A job that is started again has another id here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// The job.
    pub(super) of: JobId,
    /// Counted from 1.
    pub(super) number: u32,
}

impl Spec {
    /// What a person would call the thing that is executed.
    pub(super) fn program(&self) -> String {
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

/// The main process of a job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Began {
    pub(super) pid: u32,
    pub(super) since: Timestamp,
    pub(super) birth: Option<Birth>,
}

/// How, and when, a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct End {
    /// The main process and its start; `None` if there never was one.
    pub(super) started: Option<(u32, Timestamp)>,
    pub(super) at: Timestamp,
    pub(super) how: How,
    /// Bytes of output that could not be recorded, and why.
    pub(super) output_lost: Option<String>,
    /// Why, as far as it is known.
    #[serde(default)]
    pub(super) gap_cause: GapCause,
    /// Processes of it were killed for want of memory.
    #[serde(default)]
    pub(super) out_of_memory: Option<OutOfMemory>,
    /// How long there were processes of it, by a monotonic clock; `None`: its shim did
    /// not say.
    #[serde(default)]
    pub(super) ran_ms: Option<u64>,
    /// Processes that its main process left, and that were ended.
    #[serde(default)]
    pub(super) swept: u32,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    /// It never ran.
    Refused(Refusal),
    /// The main process returned.
    Exited { code: i32, cause: Cause },
    /// A signal ended the main process.
    Signaled { signal: i32, cause: Cause },
    /// Nobody can tell.
    Lost(String),
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
        let memory = self.out_of_memory.map(|why| match why {
            OutOfMemory::Job(limit) => format!("out of memory: the limit is {}", size(limit)),
            OutOfMemory::Others => "out of memory, though below its own limit".to_owned(),
        });
        let swept = match self.swept {
            0 => None,
            1 => Some("ended 1 process that it left".to_owned()),
            count => Some(format!("ended {count} processes that it left")),
        };
        for more in [&memory, &self.output_lost, &swept].into_iter().flatten() {
            if !reason.is_empty() {
                reason.push_str("; ");
            }
            reason.push_str(more);
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
    pub(super) output: Output,
    /// Somebody else than the scheduler has asked for it.
    pub(super) is_from_elsewhere: bool,
    stops: mpsc::Sender<Stop>,
}

/// A request to end a job.
struct Stop {
    signal: i32,
    grace: Duration,
    /// Dropped when the signal was sent, or the job ended before.
    _sent: oneshot::Sender<()>,
}

impl Job {
    /// A job and the task that will follow it. `known` is an end that was
    /// recorded before, with the bytes of its output.
    pub(super) fn new(
        spec: Spec,
        known: Option<(End, u64)>,
        launch: Arc<Launch>,
        changes: Changes,
    ) -> (Self, Task) {
        let extent = known
            .as_ref()
            .map_or(Extent::default(), |(end, bytes)| Extent {
                bytes: *bytes,
                complete: true,
                gap_cause: end.gap_cause,
            });
        let state = known.map_or(State::Starting, |(end, _)| State::Ended(end));
        let (state_sender, state) = watch::channel(state);
        let (extent_sender, extent) = watch::channel(extent);
        let output = Output::new(launch.place.output(spec.id), extent);
        let (stops, stop_receiver) = mpsc::channel(16);
        let job = Self {
            spec: Arc::new(spec),
            state,
            output,
            is_from_elsewhere: false,
            stops,
        };
        let task = Task {
            job: job.clone(),
            state: state_sender,
            extent: extent_sender,
            stops: stop_receiver,
            changes,
            launch,
            began: None,
            same_boot: true,
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
        let (sent, sent_or_over) = oneshot::channel();
        let stop = Stop {
            signal,
            grace,
            _sent: sent,
        };
        // Either error says that the job has ended.
        if self.stops.send(stop).await.is_ok() {
            let _ = sent_or_over.await;
        }
    }
}

/// Where a worker keeps what belongs to its jobs.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) output: PathBuf,
    pub(super) results: PathBuf,
}

impl Place {
    /// Makes what was removed of it again.
    fn make(&self) -> Result<(), String> {
        for folder in [&self.output, &self.results] {
            let made = make_dir(folder);
            made.map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        }
        Ok(())
    }

    /// The path of a job's output, without its endings.
    pub(super) fn output(&self, id: JobId) -> PathBuf {
        self.output.join(id.to_string())
    }

    /// Where a shim leaves an end that no worker takes.
    pub(super) fn result(&self, id: JobId) -> PathBuf {
        self.results.join(id.to_string())
    }
}

/// What every job of a worker shares.
pub(super) struct Launch {
    pub(super) worker: String,
    pub(super) shim: PathBuf,
    pub(super) scripts: Scripts,
    pub(super) grace: Duration,
    pub(super) output_limit: u64,
    /// The soft limit of open files that jobs get; `None`: none.
    pub(super) open_files: Option<u64>,
    /// What each process of a job may use; what all of them may, the groups know.
    pub(super) limits: Limits,
    /// What a killed shim leaves becomes a child of this process.
    pub(super) adopts: bool,
    pub(super) rules: Rules,
    pub(super) place: Place,
    pub(super) cgroups: Option<Cgroups>,
    pub(super) boot_id: String,
    pub(super) journal: Journal,
    pub(super) output_sync: OutputSync,
    /// The worker ends, and the jobs go on without it.
    pub(super) closing: CancellationToken,
}

/// The worker ends before a job does: the next one goes on from here.
struct Closing;

/// Follows a job to its end.
pub(super) struct Task {
    job: Job,
    state: watch::Sender<State>,
    extent: watch::Sender<Extent>,
    stops: mpsc::Receiver<Stop>,
    changes: Changes,
    launch: Arc<Launch>,
    /// Its main process, as soon as that is known, as the journal has it.
    began: Option<Began>,
    /// The machine was not restarted since the job began.
    same_boot: bool,
}

impl Task {
    /// Starts the job. Returns when nothing of it is left, or the worker ends. Before
    /// it says that the worker cannot start any job, it has the worker `forget` this
    /// one, so that it can come again.
    pub(super) async fn start(mut self, forget: impl FnOnce()) {
        match self.launch().await {
            Ok(shim) => {
                if let Some((refusal, shim)) = self.follow(shim).await {
                    self.withdraw(refusal, forget).await;
                    shim.receipt().await;
                }
            }
            Err(refusal @ Refusal::WorkerShort { .. }) => self.withdraw(refusal, forget).await,
            Err(refusal) => {
                // The intent may have been recorded by then, and then so must be this.
                let may_be_known = matches!(refusal, Refusal::NotStarted { .. });
                self.end(How::Refused(refusal));
                if may_be_known {
                    self.record_end().await;
                }
            }
        }
    }

    /// Gives the job back: it has not begun, through no fault of its own, and this
    /// worker is to know nothing of it any more.
    async fn withdraw(self, refusal: Refusal, forget: impl FnOnce()) {
        let job_id = self.job.spec.id;
        tracing::warn!(%job_id, error = %refusal, "no job can be started");
        // Without room for it the next worker takes the job for lost, and is not
        // believed where it has begun elsewhere.
        let record = Record::Acknowledged(vec![job_id]);
        let _ = self.launch.journal.append(record).await;
        forget();
        // No change that the scheduler is told of: it has its answer.
        self.state
            .send_replace(State::Ended(self.ended(How::Refused(refusal))));
        self.extent.send_modify(|extent| extent.complete = true);
    }

    async fn launch(&self) -> Result<Shim, Refusal> {
        let (launch, spec) = (self.launch.clone(), self.job.spec.clone());
        let worker = launch.worker.clone();
        let broken = |why: String| Refusal::NotStarted {
            program: spec.program(),
            worker: worker.clone(),
            why,
        };
        // Looking up files and starting a process may wait for a disk.
        let runnable = {
            let (launch, spec) = (launch.clone(), spec.clone());
            spawn_blocking(move || launch.scripts.prepare(&spec))
        };
        let runnable = runnable
            .await
            .map_err(|error| broken(error.to_string()))??;
        let intent = Record::Intent {
            spec: (*spec).clone(),
            boot_id: launch.boot_id.clone(),
        };
        // Nothing is started that a later worker would not know of.
        launch
            .journal
            .append(intent)
            .await
            .map_err(|error| match error {
                AppendError::Full => Refusal::WorkerShort {
                    worker: worker.clone(),
                    what: "the disk of its data folder is full".to_owned(),
                },
                AppendError::Broken => broken("the journal cannot be written".to_owned()),
            })?;
        let shim = {
            let (launch, spec) = (launch.clone(), spec.clone());
            spawn_blocking(move || {
                launch.place.make()?;
                Shim::spawn(&launch, &spec, runnable)
            })
        };
        let refusal = match shim.await {
            Ok(Ok(shim)) => return Ok(shim),
            Ok(Err(what)) => Refusal::WorkerShort {
                worker: worker.clone(),
                what,
            },
            Err(error) => broken(error.to_string()),
        };
        if let Some(cgroups) = &launch.cgroups {
            cgroups.remove(spec.id);
        }
        Err(refusal)
    }

    /// Takes over a job that an earlier worker started, in a boot of the machine
    /// that `boot_id` names: from its shim, or from the result it left behind.
    /// Without either the job is lost.
    pub(super) async fn take_over(mut self, boot_id: &str, began: Option<Began>) {
        self.same_boot = boot_id == self.launch.boot_id;
        let is_same_boot = self.same_boot;
        // Times and numbers of another boot say nothing in this one.
        self.began = began.map(|began| Began {
            birth: began.birth.filter(|_| is_same_boot),
            ..began
        });
        let Ok(shim) = self.call().await else {
            return;
        };
        if let Some(shim) = shim {
            if let Some((refusal, shim)) = self.follow(shim).await {
                // The caller has had no answer, and hears of it as of an end.
                self.end(How::Refused(refusal));
                if self.record_end().await {
                    shim.receipt().await;
                }
            }
            return;
        }
        let why = match is_same_boot {
            true => "worker restarted",
            false => "its machine was restarted",
        };
        self.without_shim(why, false).await;
        self.record_end().await;
    }

    /// Calls the shim; `None` only if it is certain that there is none.
    async fn call(&self) -> Result<Option<Shim>, Closing> {
        let job_id = self.job.spec.id;
        loop {
            match Shim::call(job_id) {
                Ok(shim) => return Ok(Some(shim)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
                // Of this machine, not of the shim: too many open files, say.
                Err(error) => tracing::error!(%job_id, %error, "cannot call a shim, trying again"),
            }
            self.pause().await?;
        }
    }

    /// Before another attempt at what no event announces.
    async fn pause(&self) -> Result<(), Closing> {
        let pause = tokio::time::sleep(TRY_AGAIN);
        let passed = self.launch.closing.run_until_cancelled(pause).await;
        passed.ok_or(Closing)
    }

    /// The shim is gone. Only then is it certain that it has left a result behind,
    /// or never will.
    async fn without_shim(&mut self, why: &str, is_adopted: bool) {
        let result = self.launch.place.result(self.job.spec.id);
        let result = loop {
            match fs::read(&result).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(path = %result.display(), %error, "cannot read a result");
                    if self.pause().await.is_err() {
                        return;
                    }
                }
                read => break read,
            }
        };
        match result.map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(Event::Ended(ended))) => self.finish(ended).await,
            Ok(Ok(Event::NotStarted {
                why,
                message,
                failure,
            })) => {
                let refusal = self.about().refusal(why, message, failure);
                self.end(How::Refused(refusal));
            }
            _ => self.lost(why, is_adopted).await,
        }
    }

    /// Follows the job to its end. Returns why it did not begin, if that is because
    /// the worker cannot start any job; then the end is not recorded.
    async fn follow(&mut self, mut shim: Shim) -> Option<(Refusal, Shim)> {
        // In the order in which the shim says that it has sent their signals.
        let mut stopping: VecDeque<Stop> = VecDeque::new();
        let closing = self.launch.closing.clone();
        loop {
            tokio::select! {
                event = shim.event() => match event {
                    Some(Ok(Event::Started { pid, at_us, birth, .. })) => {
                        let since = timestamp(at_us);
                        self.begin(Began { pid, since, birth }).await;
                        self.set(State::Running { pid, since });
                    }
                    Some(Ok(Event::Output { end })) => {
                        let bytes = end;
                        self.extent.send_replace(Extent { bytes, ..Extent::default() });
                        if bytes > 0 {
                            self.launch.output_sync.note(self.job.spec.id);
                        }
                    }
                    Some(Ok(Event::Stopping)) => {
                        stopping.pop_front();
                    }
                    Some(Ok(Event::NotStarted { why, message, failure })) => {
                        let refusal = self.about().refusal(why, message, failure);
                        if matches!(refusal, Refusal::WorkerShort { .. }) {
                            return Some((refusal, shim));
                        }
                        self.end(How::Refused(refusal));
                        break;
                    }
                    Some(Ok(Event::Ended(ended))) => {
                        self.finish(ended).await;
                        break;
                    }
                    Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                        tracing::warn!(job_id = %self.job.spec.id, %error, "a shim cannot be understood");
                    }
                    Some(Err(_)) | None => {
                        // The connection has ended, which a shim may survive.
                        let again = self.call().await.ok()?;
                        if let Some(again) = again {
                            shim = shim.reconnected(again);
                            // It may never have heard of them; twice does no harm.
                            for stop in &stopping {
                                let _ = shim.stop(stop.signal, stop.grace).await;
                            }
                            continue;
                        }
                        // Only then is what it leaves a child of this process.
                        let gone = closing.run_until_cancelled(shim.gone()).await?;
                        let is_adopted = gone && self.launch.adopts;
                        self.without_shim("its shim was killed", is_adopted).await;
                        break;
                    }
                },
                Some(stop) = self.stops.recv() => {
                    // If it does not arrive, it is sent again.
                    let _ = shim.stop(stop.signal, stop.grace).await;
                    stopping.push_back(stop);
                }
                () = closing.cancelled() => return None,
            }
        }
        if self.record_end().await {
            shim.receipt().await;
        }
        None
    }

    /// Has the main process in the journal, so that a later worker knows what to
    /// look for should the shim be gone by then. A start is not held up for that:
    /// without the record its job is still found by its other marks.
    async fn begin(&mut self, began: Began) {
        if self.began.replace(began) != Some(began) {
            let job_id = self.job.spec.id;
            self.launch
                .journal
                .note(Record::Began { job_id, began })
                .await;
        }
    }

    /// Has the end in the journal, so that whoever kept it may forget it. False
    /// if that will not be.
    async fn record_end(&self) -> bool {
        let State::Ended(end) = self.state.borrow().clone() else {
            return false;
        };
        let record = Record::Ended {
            job_id: self.job.spec.id,
            end,
            output_bytes: self.extent.borrow().bytes,
        };
        loop {
            match self.launch.journal.append(record.clone()).await {
                Ok(()) => break,
                Err(AppendError::Broken) => return false,
                Err(AppendError::Full) if self.pause().await.is_err() => return false,
                Err(AppendError::Full) => {}
            }
        }
        // There is one only if a shim had to leave it behind.
        let _ = fs::remove_file(self.launch.place.result(self.job.spec.id)).await;
        true
    }

    /// The shim is gone without a word: what it left of the job is ended, and
    /// what it recorded made whole.
    async fn lost(&mut self, why: &str, is_adopted: bool) {
        let id = self.job.spec.id;
        let main = self.began.and_then(|began| Some((began.pid, began.birth?)));
        loop {
            let cgroup = self.launch.cgroups.as_ref().map(|cgroups| cgroups.of(id));
            let killed = spawn_blocking(move || {
                kill_orphans(id, main, cgroup.as_deref())?;
                match is_adopted {
                    true => kill_adopted(),
                    false => Ok(()),
                }
            });
            match killed
                .await
                .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            {
                Ok(()) => break,
                // Lost means that nothing is left, and that is not yet so.
                Err(error) => tracing::error!(job_id = %id, %error, "cannot end a lost job"),
            }
            if self.pause().await.is_err() {
                return;
            }
        }
        let may_have_escaped = self.began.is_some() && !is_adopted && self.launch.cgroups.is_none();
        let why = match may_have_escaped {
            true => format!("{why}; processes that had left its session may still be there"),
            false => why.to_owned(),
        };
        let repaired = self.repair().await;
        // What was told before is not taken back: the rest of it is a gap.
        let told = self.extent.borrow().bytes;
        let missing = repaired.missing + told.saturating_sub(repaired.end);
        let (lost, gap_cause) = match (missing, self.same_boot) {
            (0, _) => (None, GapCause::Unknown),
            (bytes, true) => (
                Some(format!("{bytes} bytes of output lost")),
                GapCause::Unknown,
            ),
            (bytes, false) => (
                Some(format!(
                    "{bytes} bytes of output lost: they were not on the disk when the machine stopped"
                )),
                GapCause::PowerLoss,
            ),
        };
        self.extent.send_modify(|extent| {
            extent.bytes = told.max(repaired.end);
            extent.gap_cause = gap_cause;
        });
        self.set_ended(End {
            output_lost: lost,
            gap_cause,
            ..self.ended(How::Lost(why))
        });
    }

    /// Makes the output whole that a shim has left without a word, and has it put on
    /// the disk.
    async fn repair(&self) -> Repaired {
        let id = self.job.spec.id;
        let (output, same_boot) = (self.launch.place.output(id), self.same_boot);
        let repaired = spawn_blocking(move || repair(&output, same_boot)).await;
        let repaired = repaired.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let synced = self.launch.output_sync.finish(id).await;
        if let Err(error) = &synced {
            tracing::error!(job_id = %id, %error, "cannot put repaired output on the disk");
        }
        repaired.unwrap_or_else(|error| {
            tracing::error!(job_id = %id, %error, "cannot repair output");
            Repaired::default()
        })
    }

    fn about(&self) -> About<'_> {
        About {
            worker: &self.launch.worker,
            spec: &self.job.spec,
            limits: self.launch.limits,
        }
    }

    /// Takes over how the job has ended, once its output is on the disk: who hears
    /// of the end relies on that.
    async fn finish(&mut self, ended: Ended) {
        let job_id = self.job.spec.id;
        let mut lost = ended.output_lost;
        if let Err(error) = self.launch.output_sync.finish(job_id).await {
            tracing::error!(%job_id, %error, "cannot put output on the disk");
            lost.get_or_insert_with(|| OutputLost {
                bytes: 0,
                why: error.to_string(),
                cause: GapCause::of(&error),
            });
        }
        let gap_cause = lost.as_ref().map(|lost| lost.cause).unwrap_or_default();
        self.extent.send_modify(|extent| {
            extent.bytes = ended.output_bytes;
            extent.gap_cause = gap_cause;
        });
        let cause = ended.cause;
        let how = match (ended.exit_code, ended.signal) {
            (Some(code), _) => How::Exited { code, cause },
            (None, Some(signal)) => How::Signaled { signal, cause },
            (None, None) => How::Lost("its shim could not tell".to_owned()),
        };
        self.set_ended(End {
            at: timestamp(ended.at_us),
            output_lost: lost.map(|lost| match lost.bytes {
                0 => format!("output may be lost: {}", lost.why),
                bytes => format!("{bytes} bytes of output lost: {}", lost.why),
            }),
            gap_cause,
            out_of_memory: ended.out_of_memory,
            ran_ms: ended.ran_ms,
            swept: ended.swept,
            ..self.ended(how)
        });
    }

    fn end(&mut self, how: How) {
        self.set_ended(self.ended(how));
    }

    fn ended(&self, how: How) -> End {
        End {
            started: self.started(),
            at: Timestamp::now(),
            how,
            output_lost: None,
            gap_cause: GapCause::Unknown,
            out_of_memory: None,
            ran_ms: None,
            swept: 0,
        }
    }

    fn started(&self) -> Option<(u32, Timestamp)> {
        self.began.map(|began| (began.pid, began.since))
    }

    fn set_ended(&mut self, end: End) {
        self.set(State::Ended(end));
        // After the state: a follower that saw the last byte finds the end there.
        self.extent.send_modify(|extent| extent.complete = true);
    }

    fn set(&mut self, state: State) {
        let job_id = self.job.spec.id;
        let change = match &state {
            State::Starting => Change::Start,
            State::Running { pid, .. } => {
                tracing::info!(%job_id, pid, "job runs");
                Change::Start
            }
            State::Ended(end) => {
                let reason = end.reason(self.job.spec.timeout);
                tracing::info!(%job_id, reason, "job ended");
                Change::End
            }
        };
        self.state.send_replace(state);
        self.changes.record(job_id, change);
    }
}

fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::{
        os::{
            linux::net::SocketAddrExt as _,
            unix::net::{SocketAddr, UnixListener},
        },
        path::Path,
    };

    use tokio_util::task::TaskTracker;

    use crate::roles::worker::{rules::Allowed, users::Users};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixStream,
    };

    use super::*;
    use crate::roles::{
        shim::{
            protocol::{self, socket_name},
            record::{Entry, Stream, data_path, index_path},
        },
        worker::output::{Follower, Piece, Wanted},
    };

    fn reason(how: How) -> String {
        let end = End {
            started: None,
            at: Timestamp::now(),
            how,
            output_lost: None,
            gap_cause: GapCause::Unknown,
            out_of_memory: None,
            ran_ms: None,
            swept: 0,
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
            reason(How::Lost("its shim was killed".into())),
            "lost: its shim was killed"
        );
    }

    /// A job and its task, in a worker whose folders are in `dir`.
    fn task(dir: &Path) -> (Job, Task) {
        let place = Place {
            output: dir.join("output"),
            results: dir.join("results"),
        };
        let closing = CancellationToken::new();
        let launch = Launch {
            worker: "w1".into(),
            shim: "/no/such/jobctl".into(),
            scripts: Scripts::new("w1".into(), dir.to_owned(), Allowed::All, Users::default()),
            grace: Duration::from_secs(10),
            output_limit: 1 << 20,
            open_files: None,
            limits: Limits::default(),
            adopts: false,
            rules: Rules::default(),
            output_sync: OutputSync::start(place.clone(), &TaskTracker::new(), closing.clone()),
            place,
            cgroups: None,
            boot_id: "b".into(),
            journal: Journal::open(&dir.join("journal"), |_| {}).unwrap().0,
            closing,
        };
        let spec = Spec {
            id: JobId::random(),
            command: Some("true".into()),
            path: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            attempt: None,
            name: None,
            timeout: None,
            created: Timestamp::now(),
        };
        Job::new(spec, None, Arc::new(launch), Changes::default())
    }

    /// A shim that is there only as far as the worker can see.
    struct FakeShim(tokio::net::UnixListener);

    impl FakeShim {
        fn of(job: JobId) -> Self {
            let name = SocketAddr::from_abstract_name(socket_name(job)).unwrap();
            let listener = UnixListener::bind_addr(&name).unwrap();
            listener.set_nonblocking(true).unwrap();
            Self(tokio::net::UnixListener::from_std(listener).unwrap())
        }

        /// Takes the next call, and says that the job runs.
        async fn accept(&self) -> UnixStream {
            let (mut worker, _) = self.0.accept().await.unwrap();
            let started = Event::Started {
                version: protocol::VERSION,
                pid: 7,
                at_us: 0,
                birth: None,
            };
            say(&mut worker, &started).await;
            worker
        }
    }

    async fn say(worker: &mut UnixStream, event: &Event) {
        worker.write_all(&protocol::encode(event)).await.unwrap();
    }

    /// The next command, which must be a stop: its signal.
    async fn hear_stop(worker: &mut UnixStream) -> i32 {
        let length = worker.read_u32_le().await.unwrap();
        let mut body = vec![0; length as usize];
        worker.read_exact(&mut body).await.unwrap();
        match serde_json::from_slice(&body).unwrap() {
            protocol::Command::Stop { signal, .. } => signal,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_stop_that_was_not_confirmed_is_sent_again_on_the_next_connection() {
        let dir = tempfile::tempdir().unwrap();
        let (job, task) = task(dir.path());
        let shim = FakeShim::of(job.spec.id);
        let following = tokio::spawn(task.take_over("b", None));
        let stop = |signal| {
            let job = job.clone();
            tokio::spawn(async move { job.stop(signal, Duration::from_secs(1)).await })
        };

        let mut worker = shim.accept().await;
        let confirmed = stop(1);
        assert_eq!(hear_stop(&mut worker).await, 1);
        let second = stop(2);
        assert_eq!(hear_stop(&mut worker).await, 2);
        let third = stop(3);
        assert_eq!(hear_stop(&mut worker).await, 3);
        say(&mut worker, &Event::Stopping).await;
        confirmed.await.unwrap();
        drop(worker);

        let mut worker = shim.accept().await;
        assert_eq!(hear_stop(&mut worker).await, 2);
        assert_eq!(hear_stop(&mut worker).await, 3);
        say(&mut worker, &Event::Stopping).await;
        second.await.unwrap();
        assert!(!third.is_finished(), "each is answered for itself");
        let ended = Event::Ended(Ended {
            at_us: 0,
            exit_code: None,
            signal: Some(3),
            cause: Cause::Stopped,
            output_bytes: 0,
            output_lost: None,
            out_of_memory: None,
            ran_ms: None,
            swept: 0,
        });
        say(&mut worker, &ended).await;
        third.await.unwrap();
        following.await.unwrap();
        assert!(matches!(job.ended().await, State::Ended(_)));
    }

    /// The files of a job's output as a power loss may leave them: the sizes are
    /// there, the last entry and the bytes of the one before are not.
    fn lose_power(output: &Path, id: JobId) {
        std::fs::create_dir_all(output).unwrap();
        let base = output.join(id.to_string());
        let entry = |offset, bytes| Entry::of(offset, 7, Stream::Stdout, bytes).encode();
        let index = [entry(0, b"one\n"), entry(4, b"two\n"), [0; Entry::SIZE]];
        std::fs::write(index_path(&base), index.concat()).unwrap();
        std::fs::write(data_path(&base), b"one\n\0\0\0\0\0\0\0\0\0\0").unwrap();
    }

    async fn shown(job: &Job) -> Vec<Piece> {
        let wanted = Wanted {
            offset: 0,
            tail: None,
            since_us: None,
            stream: None,
            follow: true,
        };
        let mut follower = Follower::open(job.output.clone(), wanted).await.unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = follower.next().await.unwrap() {
            pieces.push(piece);
        }
        pieces
    }

    #[tokio::test]
    async fn what_a_power_loss_took_of_an_output_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let (job, task) = task(dir.path());
        lose_power(&dir.path().join("output"), job.spec.id);
        task.take_over("another boot", None).await;
        let State::Ended(end) = job.ended().await else {
            panic!("it has not ended");
        };
        assert_eq!(
            end.reason(None),
            "lost: its machine was restarted; 10 bytes of output lost: they were not on the \
             disk when the machine stopped"
        );
        let pieces = shown(&job).await;
        let [Piece::Chunk(chunk), Piece::Gap(gap)] = &pieces[..] else {
            panic!("{pieces:?}");
        };
        assert_eq!(chunk.bytes, "one\n");
        assert_eq!((gap.offset, gap.length), (4, 10));
        assert_eq!(gap.cause, GapCause::PowerLoss);
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
            gap_cause: GapCause::DiskFull,
            out_of_memory: None,
            ran_ms: None,
            swept: 0,
        };
        assert_eq!(end.reason(None), "5 bytes of output lost: disk full");
    }

    #[test]
    fn processes_that_were_left_are_told_and_success_stays_success() {
        let mut end = End {
            started: None,
            at: Timestamp::now(),
            how: How::Exited {
                code: 0,
                cause: Cause::Itself,
            },
            output_lost: None,
            gap_cause: GapCause::Unknown,
            out_of_memory: None,
            ran_ms: Some(7),
            swept: 1,
        };
        assert_eq!(end.reason(None), "ended 1 process that it left");
        end.swept = 2;
        assert_eq!(end.reason(None), "ended 2 processes that it left");
        // As a journal of an earlier version has it.
        let mut record = serde_json::to_value(&end).unwrap();
        let fields = record.as_object_mut().unwrap();
        fields.remove("ran_ms");
        fields.remove("swept");
        let older = serde_json::from_value::<End>(record).unwrap();
        assert_eq!((older.ran_ms, older.swept), (None, 0));
    }

    #[test]
    fn an_end_for_want_of_memory_says_so() {
        let (signal, code) = (9, 137);
        let mut end = End {
            started: None,
            at: Timestamp::now(),
            how: How::Signaled {
                signal,
                cause: Cause::Itself,
            },
            output_lost: None,
            gap_cause: GapCause::Unknown,
            out_of_memory: Some(OutOfMemory::Job(1 << 30)),
            ran_ms: None,
            swept: 0,
        };
        assert_eq!(
            end.reason(None),
            "signal: killed; out of memory: the limit is 1GiB"
        );
        end.how = How::Exited {
            code,
            cause: Cause::Itself,
        };
        end.out_of_memory = Some(OutOfMemory::Others);
        end.output_lost = Some("5 bytes of output lost: disk full".into());
        assert_eq!(
            end.reason(None),
            "exit status 137; out of memory, though below its own limit; \
             5 bytes of output lost: disk full"
        );
        // As a journal of an earlier version has it.
        let mut record = serde_json::to_value(&end).unwrap();
        for added in ["out_of_memory", "gap_cause"] {
            record.as_object_mut().unwrap().remove(added);
        }
        end.out_of_memory = None;
        assert_eq!(serde_json::from_value::<End>(record).unwrap(), end);
    }
}
