//! Shims of a simulation: each speaks the protocol of a real one, and its job does what
//! its arguments say. Like a real one it outlives its worker, hands its result over
//! until it has a receipt, and leaves it on the disk where no worker is there.

use std::{collections::BTreeMap, fs, io, path::PathBuf, sync::Mutex, time::Duration};

use jiff::Timestamp;
use tokio::io::{
    AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split,
};

use super::{lock, note, now, one_of};
use crate::{
    ids::JobId,
    roles::shim::protocol::{self, Cause, Command, Ended, Event},
};

/// From a signal to the end of what heeds it.
const DIES_IN: Duration = Duration::from_millis(20);

/// More than is ever said at once.
const LINE: usize = 1024 * 1024;

static RUNS: Mutex<BTreeMap<JobId, Run>> = Mutex::new(BTreeMap::new());

/// What a job does: arguments of whatever program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Script {
    /// What it returns.
    pub(super) code: i32,
    /// For how long it runs; None: until it is stopped.
    pub(super) runs_for: Option<Duration>,
    /// Only KILL ends it.
    pub(super) is_stubborn: bool,
}

impl Script {
    pub(super) fn args(self) -> Vec<String> {
        let millis = self.runs_for.map(|time| time.as_millis());
        vec![
            self.code.to_string(),
            millis.map_or_else(String::new, |millis| millis.to_string()),
            self.is_stubborn.to_string(),
        ]
    }

    fn of(args: &[String]) -> Option<Self> {
        let [code, millis, is_stubborn] = args else {
            return None;
        };
        Some(Self {
            code: code.parse().ok()?,
            runs_for: millis.parse().ok().map(Duration::from_millis),
            is_stubborn: is_stubborn.parse().ok()?,
        })
    }
}

/// How it is with the processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    Exited(i32),
    Signaled(i32),
    /// Its machine lost power, or its shim was killed, before its end was recorded
    /// anywhere.
    Lost,
}

/// What is true of a run, whatever the records say.
#[derive(Clone, Debug)]
pub(super) struct Truth {
    pub(super) worker: String,
    /// How often it began.
    pub(super) begun: u32,
    pub(super) fate: Fate,
    /// It had ended, and its worker may not have recorded that when the power failed.
    pub(super) may_be_lost: bool,
}

struct Run {
    truth: Truth,
    script: Script,
    began: Duration,
    began_us: i64,
    result: PathBuf,
    stop: Option<Stop>,
    /// The number of the last connection, and whether it is there.
    connection: (u64, bool),
    /// The shim is gone: it had its receipt, it has left a result, or it was killed.
    is_gone: bool,
}

#[derive(Clone, Copy)]
struct Stop {
    signal: i32,
    at: Duration,
    kill_at: Duration,
}

impl Run {
    /// When it ends, how, and on whose account, if nothing else happens.
    fn end(&self) -> Option<(Duration, Fate, Cause)> {
        let (script, began) = (self.script, self.began);
        let by_itself = script
            .runs_for
            .map(|time| (began + time, Fate::Exited(script.code), Cause::Itself));
        let stopped = self.stop.map(|stop| match script.is_stubborn {
            true => (stop.kill_at, Fate::Signaled(9), Cause::Stopped),
            false => (
                stop.at + DIES_IN,
                Fate::Signaled(stop.signal),
                Cause::Stopped,
            ),
        });
        let ends = by_itself.into_iter().chain(stopped);
        ends.min_by_key(|(at, ..)| *at)
    }

    /// Its end, told as a shim does. From here on its fate is certain.
    fn ended(&mut self) -> Option<Event> {
        let (at, fate, cause) = self.end()?;
        self.truth.fate = fate;
        let ran = at.saturating_sub(self.began);
        let (exit_code, signal) = match fate {
            Fate::Exited(code) => (Some(code), None),
            Fate::Signaled(signal) => (None, Some(signal)),
            Fate::Lives | Fate::Lost => return None,
        };
        Some(Event::Ended(Ended {
            at_us: self.began_us + ran.as_micros() as i64,
            exit_code,
            signal,
            cause,
            output_bytes: 0,
            output_lost: None,
            out_of_memory: None,
            ran_ms: Some(ran.as_millis() as u64),
            swept: 0,
        }))
    }

    fn has_ended(&self) -> bool {
        self.truth.fate != Fate::Lives || self.end().is_some_and(|(at, ..)| at <= now())
    }

    /// Where no worker takes the end of the job, it goes to the disk, and the shim goes.
    fn leave_result(&mut self) -> io::Result<()> {
        if self.is_gone || self.connection.1 || !self.has_ended() {
            return Ok(());
        }
        if let Some(last) = self.ended() {
            fs::write(&self.result, serde_json::to_vec(&last)?)?;
        }
        self.is_gone = true;
        Ok(())
    }
}

/// Starts the shim of this worker that is told `message`, and returns the worker's end
/// of the line to it.
///
/// # Errors
///
/// When that is no message with which a shim starts a job of a simulation.
pub(crate) fn spawn(worker: &str, message: &Command) -> Result<DuplexStream, String> {
    let Command::Start(spec) = message else {
        return Err("that is no start".to_owned());
    };
    let script = Script::of(&spec.args).ok_or("no script of a simulation")?;
    note(&format!("{worker} starts {}", spec.job_id));
    let mut runs = lock(&RUNS);
    let run = runs.entry(spec.job_id).or_insert_with(|| Run {
        truth: Truth {
            worker: worker.to_owned(),
            begun: 0,
            fate: Fate::Lives,
            may_be_lost: false,
        },
        script,
        began: now(),
        began_us: Timestamp::now().as_microsecond(),
        result: spec.result.clone(),
        stop: None,
        connection: (0, false),
        is_gone: false,
    });
    run.truth.begun += 1;
    Ok(connect(spec.job_id, run))
}

/// Calls the shim of a job.
///
/// # Errors
///
/// `ConnectionRefused`: there is none any more.
pub(crate) fn call(id: JobId) -> io::Result<DuplexStream> {
    let mut runs = lock(&RUNS);
    let run = runs.get_mut(&id).ok_or(io::ErrorKind::ConnectionRefused)?;
    run.leave_result()?;
    match run.is_gone {
        true => Err(io::ErrorKind::ConnectionRefused.into()),
        false => Ok(connect(id, run)),
    }
}

fn connect(id: JobId, run: &mut Run) -> DuplexStream {
    let (ours, theirs) = duplex(LINE);
    run.connection = (run.connection.0 + 1, true);
    let (reader, writer) = split(ours);
    let line = Line {
        id,
        number: run.connection.0,
        reader,
        writer,
    };
    tokio::spawn(line.follow());
    theirs
}

/// A shim's end of a connection, as long as the worker is there.
struct Line {
    id: JobId,
    number: u64,
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.with(|run| {
            run.connection.1 = false;
            // A folder that is gone has nobody who looks there.
            let _ = run.leave_result();
        });
    }
}

impl Line {
    /// The run, as long as this is the connection of its shim.
    fn with<T>(&self, act: impl FnOnce(&mut Run) -> T) -> Option<T> {
        let mut runs = lock(&RUNS);
        let run = runs.get_mut(&self.id)?;
        let is_current = !run.is_gone && run.connection == (self.number, true);
        is_current.then(|| act(run))
    }

    /// Returns with the connection.
    async fn follow(mut self) {
        // A connection may break without a reason, and the shim lives on.
        let breaks = match one_of(8) {
            0 => Duration::from_millis(one_of(4000)),
            _ => Duration::MAX,
        };
        tokio::select! {
            _ = self.speak() => {}
            () = tokio::time::sleep(breaks) => {}
        }
    }

    async fn speak(&mut self) -> Option<()> {
        let started = self.with(|run| Event::Started {
            version: protocol::VERSION,
            pid: 7,
            at_us: run.began_us,
            birth: None,
        })?;
        self.say(&Event::Output { end: 0 }).await?;
        self.say(&started).await?;
        let (mut inbox, mut has_told) = (Vec::new(), false);
        loop {
            let ends_in = self.with(|run| {
                let end = run.end().map(|(at, ..)| at.saturating_sub(now()));
                end.filter(|_| !has_told).unwrap_or(Duration::MAX)
            })?;
            tokio::select! {
                read = self.reader.read_buf(&mut inbox) => {
                    if read.ok()? == 0 {
                        return None;
                    }
                    while let Some(command) = protocol::decode(&mut inbox).ok()? {
                        self.obey(command).await?;
                    }
                }
                () = tokio::time::sleep(ends_in) => {
                    has_told = true;
                    let last = self.with(Run::ended)??;
                    self.say(&last).await?;
                }
            }
        }
    }

    /// None: there is nothing left to say.
    async fn obey(&mut self, command: Command) -> Option<()> {
        match command {
            Command::Start(_) => Some(()),
            Command::Stop { signal, grace_ms } => {
                note(&format!("{} is to end", self.id));
                self.with(|run| {
                    if run.has_ended() {
                        return;
                    }
                    let at = now();
                    let kill_at = at + Duration::from_millis(grace_ms);
                    let stop = run.stop.get_or_insert(Stop {
                        signal,
                        at,
                        kill_at,
                    });
                    // A second stop brings the KILL forward, and never puts it off.
                    stop.kill_at = stop.kill_at.min(kill_at);
                })?;
                self.say(&Event::Stopping).await
            }
            Command::Receipt => {
                note(&format!("{} has its receipt", self.id));
                self.with(|run| run.is_gone = true);
                None
            }
        }
    }

    async fn say(&mut self, event: &Event) -> Option<()> {
        let said = self.writer.write_all(&protocol::encode(event)).await;
        said.ok()
    }
}

/// All processes of this worker's machine are gone, before anybody can say a word.
pub(super) fn lose_power(worker: &str) -> io::Result<()> {
    for run in lock(&RUNS).values_mut() {
        if run.truth.worker != worker || run.is_gone {
            continue;
        }
        // What had ended while no worker was there is on the disk already.
        run.leave_result()?;
        run.is_gone = true;
        match run.truth.fate {
            Fate::Lives => run.truth.fate = Fate::Lost,
            Fate::Exited(_) | Fate::Signaled(_) | Fate::Lost => run.truth.may_be_lost = true,
        }
    }
    Ok(())
}

/// What is true of this run; None: it never began.
pub(super) fn truth(run: JobId) -> Option<Truth> {
    lock(&RUNS).get(&run).map(|run| run.truth.clone())
}

/// The runs that have processes.
pub(super) fn living() -> Vec<JobId> {
    let runs = lock(&RUNS);
    let living = runs
        .iter()
        .filter(|(_, run)| !run.is_gone && !run.has_ended());
    living.map(|(id, _)| *id).collect()
}

/// The runs that began more than once.
pub(super) fn doubled() -> Vec<JobId> {
    let runs = lock(&RUNS);
    let doubled = runs.iter().filter(|(_, run)| run.truth.begun > 1);
    doubled.map(|(id, _)| *id).collect()
}

/// All runs that began.
pub(super) fn all() -> Vec<JobId> {
    lock(&RUNS).keys().copied().collect()
}
