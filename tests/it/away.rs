//! What commands do while the scheduler, or the worker of their job, is away: they say
//! it once, wait, and go on. With real processes and kill -9.

use std::{fs, path::PathBuf};

use jobctl::{
    api::{JobState, WorkerState},
    client::Client,
    ids::JobId,
};
use rustix::process::Signal;

use crate::{
    cluster::{Place, Process, back, connected, everything, job_is, sh, worker_is},
    support::{Folder, within},
    typed::{Jobctl, Outcome, Typed},
};

/// A scheduler and a worker, either of which can be killed and come back.
struct Cluster {
    place: Place,
    dir: Folder,
    client: Client,
    jobctl: Jobctl,
    scheduler: Option<Process>,
    worker: Option<Process>,
}

/// Longer than anything here takes, so that no test depends on it.
const PATIENCE: [&str; 2] = ["--patience", "10m"];

const WORKER_IS_AWAY: &str = "worker w1 is away, waiting";

impl Cluster {
    async fn start() -> Self {
        let (place, dir) = (Place::new(), Folder::new());
        let scheduler = Process::impatient_scheduler(place, dir.path());
        let worker = Process::worker(place, 1, &dir.path().join("w1"));
        Self {
            client: connected(place).await,
            jobctl: Jobctl::at(place.server()),
            place,
            dir,
            scheduler: Some(scheduler),
            worker: Some(worker),
        }
    }

    fn kill_scheduler(&mut self) {
        self.scheduler.take().unwrap().kill();
    }

    async fn restart_scheduler(&mut self) {
        self.scheduler = Some(Process::impatient_scheduler(self.place, self.dir.path()));
        within(back(&self.client)).await;
    }

    fn kill_worker(&mut self) {
        self.worker.take().unwrap().kill();
    }

    fn restart_worker(&mut self) {
        let data = self.dir.path().join("w1");
        self.worker = Some(Process::worker(self.place, 1, &data));
    }

    fn scheduler_is_away(&self) -> String {
        format!("the scheduler at {} is away, waiting", self.place.server())
    }

    /// A job that writes a line, and another one and its end once it is let go on.
    async fn held_job(&self) -> (JobId, Held) {
        let fifo = self.dir.path().join(uuid::Uuid::new_v4().to_string());
        let script = format!(
            "mkfifo {0}; echo one; read x < {0}; echo two; exit 7",
            fifo.display()
        );
        let id = self.client.start(&sh(&script)).await.unwrap().job_id;
        let mut logs = within(self.client.logs(everything(id))).await.unwrap();
        within(logs.next()).await.unwrap();
        (id, Held(fifo))
    }
}

/// The way on of a job.
struct Held(PathBuf);

impl Held {
    /// The file is to stay open until the job has read.
    fn let_go(self) -> fs::File {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(self.0)
            .unwrap();
        std::io::Write::write_all(&mut &file, b"\n").unwrap();
        file
    }
}

/// What it says while it waits is to be said once.
async fn said_once(mut typed: Typed, words: &str) -> Outcome {
    typed.says(words, 1).await;
    let outcome = typed.end().await;
    assert_eq!(outcome.said(words), 0, "said again: {outcome:?}");
    outcome
}

#[tokio::test]
async fn a_follow_waits_for_a_worker_that_is_away_whenever_it_begins() {
    let mut cluster = Cluster::start().await;
    let (id, held) = cluster.held_job().await;
    let id = id.to_string();
    let follow = ["logs", "--follow", &id];
    let mut before = cluster.jobctl.begin(&follow);
    assert_eq!(before.line().await, "one\n");
    cluster.kill_worker();
    let mut at_once = cluster.jobctl.begin(&follow);
    at_once.says(WORKER_IS_AWAY, 1).await;
    before.says(WORKER_IS_AWAY, 1).await;
    worker_is(&cluster.client, "w1", WorkerState::Unreachable).await;
    job_is(&cluster.client, id.parse().unwrap(), JobState::Unknown).await;
    let mut later = cluster.jobctl.begin(&follow);
    later.says(WORKER_IS_AWAY, 1).await;
    let mut wait = cluster.jobctl.begin(&["wait", &id]);
    wait.says(WORKER_IS_AWAY, 1).await;
    // Who only reads is told, and fails.
    let reads = ["logs", &id, "--patience", "300ms"];
    let run = cluster.jobctl.ask(&reads).await;
    run.is(1, "");
    assert_eq!(run.said(WORKER_IS_AWAY), 1, "{run:?}");
    assert!(run.stderr.contains("error: worker w1 "), "{run:?}");
    let mut patient = cluster
        .jobctl
        .begin(&[&["logs", &id], &PATIENCE[..]].concat());
    patient.says(WORKER_IS_AWAY, 1).await;

    cluster.restart_worker();
    let patient = patient.end().await;
    patient.is(0, "one\n");
    let _held = held.let_go();
    before.end().await.is(7, "two\n");
    for follow in [at_once, later] {
        let run = follow.end().await;
        run.is(7, "one\ntwo\n");
        assert_eq!(run.stderr, "", "said again");
    }
    let run = wait.end().await;
    run.is(7, "");
    assert_eq!(run.stderr, "", "said again");
}

#[tokio::test]
async fn a_group_is_followed_while_a_worker_is_away() {
    let mut cluster = Cluster::start().await;
    let go = cluster.dir.path().join("go");
    let script = format!(
        "mkfifo {0}$JOBCTL_INDEX; echo one; read x < {0}$JOBCTL_INDEX; echo two",
        go.display()
    );
    let start = ["start", "--count", "2", "--follow", "sh", "-c", &script];
    let mut follow = cluster.jobctl.begin(&start);
    follow.line().await;
    follow.line().await;
    cluster.kill_worker();
    // Both jobs are on it, and it is said once.
    follow.says(WORKER_IS_AWAY, 1).await;
    worker_is(&cluster.client, "w1", WorkerState::Unreachable).await;
    cluster.restart_worker();
    let held = ["0", "1"].map(|index| {
        let fifo = cluster.dir.path().join(format!("go{index}"));
        Held(fifo).let_go()
    });
    let run = follow.end().await;
    drop(held);
    assert_eq!(run.code, Some(0), "{run:?}");
    let mut lines: Vec<_> = run.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["0 | two", "1 | two"]);
    assert_eq!(run.said(WORKER_IS_AWAY), 0, "{run:?}");
}

#[tokio::test]
async fn every_verb_waits_for_a_scheduler_that_is_restarted() {
    let mut cluster = Cluster::start().await;
    let (id, held) = cluster.held_job().await;
    let id = id.to_string();
    let away = cluster.scheduler_is_away();
    let script = "echo one; exit 7";
    cluster.kill_scheduler();
    let begin = |args: &[&str]| {
        let args = [args, &PATIENCE].concat();
        cluster.jobctl.begin(&args)
    };
    let verbs = [
        (begin(&["jobs", "-q"]), 0),
        (begin(&["query", &id]), 0),
        (begin(&["workers", "-q"]), 0),
        (begin(&["version"]), 0),
        (begin(&["token", "list"]), 0),
        (begin(&["workers", "label", "w1", "a=b"]), 0),
        (begin(&["logs", &id]), 0),
        (begin(&["logs", "--follow", &id]), 7),
        (begin(&["wait", &id]), 7),
        (
            begin(&["start", "--wait", "--patience", "10m", "sh", "-c", script]),
            7,
        ),
        (
            begin(&["start", "--follow", "--patience", "10m", "sh", "-c", script]),
            7,
        ),
    ];
    let mut waiting = Vec::new();
    for (mut verb, code) in verbs {
        verb.says(&away, 1).await;
        waiting.push((verb, code));
    }
    cluster.restart_scheduler().await;
    let _held = held.let_go();
    for (verb, code) in waiting {
        let run = verb.end().await;
        assert_eq!(run.code, Some(code), "{run:?}");
        assert_eq!(run.said(&away), 0, "said again: {run:?}");
    }
}

#[tokio::test]
async fn who_stays_for_a_job_goes_on_after_a_restart_of_the_scheduler() {
    let mut cluster = Cluster::start().await;
    let fifo = cluster.dir.path().join("fifo");
    let script = format!("mkfifo {0}; echo one; read x < {0}; exit 9", fifo.display());
    let away = cluster.scheduler_is_away();
    let start = |stay| cluster.jobctl.begin(&["start", stay, "sh", "-c", &script]);
    let mut follow = start("--follow");
    assert_eq!(follow.line().await, "one\n");
    let mut stop = cluster
        .jobctl
        .begin(&["start", "--wait", "-v", "sleep", "600"]);
    stop.says("POST /start 201", 1).await;
    cluster.kill_scheduler();
    follow.says(&away, 1).await;
    stop.says(&away, 1).await;
    let last = [&["stop", "last"], &PATIENCE[..]].concat();
    let mut stopping = cluster.jobctl.begin(&last);
    stopping.says(&away, 1).await;
    cluster.restart_scheduler().await;
    // The worker may come back a moment later than the scheduler.
    let stopped = stopping.end().await;
    let is_recorded = stopped.stderr.contains("the stop is recorded");
    assert!(stopped.code == Some(0) || is_recorded, "{stopped:?}");
    assert_eq!(stop.end().await.code, Some(143));
    let _held = Held(fifo).let_go();
    follow.end().await.is(9, "");
}

#[tokio::test]
async fn version_waits_until_the_scheduler_is_ready() {
    let (place, dir) = (Place::new(), Folder::new());
    let jobctl = Jobctl::at(place.server());
    let wait = jobctl.begin(&["version", "--wait", "10m"]);
    let mut said = wait;
    let away = format!("the scheduler at {} is away, waiting", place.server());
    said.says(&away, 1).await;
    let _scheduler = Process::scheduler(place, dir.path());
    let run = said.end().await;
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("\nserver "), "{run:?}");
    assert_eq!(run.stderr, "");
}

#[tokio::test]
async fn a_wrong_address_is_not_waited_for() {
    let jobctl = Jobctl::at("https://no-such-host.invalid:3000");
    let run = jobctl.ask(&[&["jobs"], &PATIENCE[..]].concat()).await;
    run.is(5, "");
    assert!(!run.stderr.contains("waiting"), "{run:?}");
    // What speaks no TLS there will not speak it later.
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("https://{}", plain.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut socket, _) = plain.accept().unwrap();
        std::io::Write::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let mut rest = Vec::new();
        // The other side may have gone by then.
        std::io::Read::read_to_end(&mut socket, &mut rest).unwrap_or_default();
    });
    let run = Jobctl::at(server)
        .ask(&[&["jobs"], &PATIENCE[..]].concat())
        .await;
    run.is(5, "");
    assert!(!run.stderr.contains("waiting"), "{run:?}");
    answering.join().unwrap();
}

#[tokio::test]
async fn without_a_word_a_scheduler_is_waited_for_some_seconds() {
    let jobctl = Jobctl::at(crate::typed::nowhere());
    let mut command = jobctl.command(&["jobs"]);
    command.env_remove("JOBCTL_PATIENCE");
    let begun = std::time::Instant::now();
    let run = said_once(Typed::new(command), "is away, waiting").await;
    run.is(5, "");
    assert!(begun.elapsed() >= std::time::Duration::from_secs(5));
    assert!(
        run.stderr
            .starts_with("error: cannot reach the scheduler at "),
        "{run:?}"
    );
}

#[tokio::test]
async fn a_start_on_a_worker_that_stops_answering_is_followed_when_it_is_back() {
    let (place, dir) = (Place::new(), Folder::new());
    let mut command = Process::scheduler_command(place, dir.path());
    command.args(["--heartbeat-interval", "300ms"]);
    command.env("JOBCTL_CALLS_DEADLINE", "300ms");
    let _scheduler = Process::run(command);
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    connected(place).await;
    worker.signal(Signal::STOP);
    let jobctl = Jobctl::at(place.server());
    let start = ["start", "--follow", "sh", "-c", "echo one; exit 7"];
    let mut start = jobctl.begin(&start);
    start.says(WORKER_IS_AWAY, 1).await;
    worker.signal(Signal::CONT);
    let run = start.end().await;
    run.is(7, "one\n");
    assert_eq!(run.said(WORKER_IS_AWAY), 0, "{run:?}");
}
