//! Who is in the cluster: joining, missing heartbeats, coming back, leaving.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use jobctl::{
    api::{
        DrainWorkerRequest, JobState, LabelWorkerRequest, QueryAnswer, QueryRequest, StartRequest,
        StopRequest, Worker, WorkerState, code,
    },
    client::{Client, Error, logs::Event},
    identity::Role,
    ids::JobId,
    proto::{self, worker_client::WorkerClient},
    roles::worker,
};
use rustix::process::Signal;

use crate::{
    attacker::{self, Shown},
    cluster::{
        Place, Process, Running, TestCluster, connected, end_of, everything, job as job_of, job_is,
        output, rest, sh, start_worker_with, worker_is, worker_named,
    },
    support::{Folder, eventually, processes_of, within},
    typed::Jobctl,
};

async fn stop(client: &Client, id: JobId) {
    let stop = StopRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    within(client.stop(&stop)).await.unwrap();
    assert_eq!(end_of(client, id).await.state, JobState::Stopped);
}

#[tokio::test]
async fn a_worker_that_says_goodbye_has_left() {
    let mut cluster = TestCluster::start(2).await;
    let id = cluster
        .start_job(&StartRequest {
            worker_id: Some("w2".into()),
            ..sh("echo begun; sleep 600")
        })
        .await
        .unwrap();
    let before = cluster.worker("w2").await;
    cluster.workers.pop().unwrap().end().await;
    let after = cluster.worker("w2").await;
    assert_eq!((after.state, after.id), (WorkerState::Left, before.id));
    let job = cluster.job(id).await;
    assert_eq!(
        job.state,
        JobState::Stopped,
        "its jobs were ended and reported: {job:?}"
    );
    assert!(processes_of(id).is_empty());
    let error = cluster
        .start_job(&StartRequest {
            worker_id: Some("w2".into()),
            ..sh("true")
        })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("worker_left"));

    let back = cluster.start_worker(2).await;
    cluster.workers.push(back);
    let again = cluster.worker_is("w2", WorkerState::Ready).await;
    assert_eq!(again.id, before.id, "the same worker under the same id");
    cluster.end().await;
}

#[tokio::test]
async fn workers_and_jobs_are_known_again_after_a_restart_of_the_scheduler() {
    let mut cluster = TestCluster::start(2).await;
    let before = [cluster.worker("w1").await.id, cluster.worker("w2").await.id];
    let running = cluster.sh("echo hello; sleep 600").await;
    let ended = cluster.sh("exit 5").await;
    cluster.end_of(ended).await;
    cluster.restart_scheduler().await;
    cluster.ready(2).await;
    assert_eq!(
        [cluster.worker("w1").await.id, cluster.worker("w2").await.id],
        before
    );
    assert_eq!(cluster.job(running).await.state, JobState::Running);
    let job = cluster.job(ended).await;
    assert_eq!((job.state, job.exit_code), (JobState::Failed, Some(5)));
    let stop = StopRequest {
        job_id: running.to_string(),
        ..Default::default()
    };
    within(cluster.client.stop(&stop)).await.unwrap();
    assert_eq!(cluster.output(running).await, b"hello\n");
    cluster.end().await;
}

#[tokio::test]
async fn a_second_worker_of_a_name_is_refused() {
    let cluster = TestCluster::start(1).await;
    let dir = Folder::new();
    let config = jobctl::roles::worker::Config {
        name: "w1".into(),
        labels: Default::default(),
        slots: None,
        scheduler: Some(cluster.place.grpc()),
        security: jobctl::roles::worker::Security::Joined(None),
        bounds: jobctl::roles::worker::bounds(1024),
        advertise: None,
        data_dir: crate::enrolled::worker(dir.path(), "w1"),
        script_dir: None,
        shim: crate::support::binary(),
        grace: std::time::Duration::from_secs(1),
        output_limit: 1,
        min_free_disk: 0,
        keep_finished: 1,
        on_stop: jobctl::roles::worker::OnStop::EndJobs,
        control_groups: jobctl::roles::worker::ControlGroups::WherePossible,
        rules: Default::default(),
    };
    let listener = tokio::net::TcpListener::bind(cluster.place.worker(2))
        .await
        .unwrap();
    let role = jobctl::roles::worker::run(config, listener, Default::default());
    let error = within(role).await.unwrap_err().to_string();
    assert!(error.contains("w1") && error.contains("refused"), "{error}");
    cluster.end().await;
}

#[tokio::test]
async fn a_frozen_worker_is_unreachable_and_then_the_same_again() {
    let place = Place::new();
    let dir = Folder::new();
    let _scheduler = Process::impatient_scheduler(place, dir.path());
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let before = worker_named(&client, "w1").await;
    let id = client
        .start(&sh("echo hello; sleep 600"))
        .await
        .unwrap()
        .job_id;
    worker.signal(Signal::STOP);
    worker_is(&client, "w1", WorkerState::Unreachable).await;
    let unknown = job_is(&client, id, JobState::Unknown).await;
    assert!(unknown.reason.unwrap().contains("w1"));
    let on_w1 = StartRequest {
        worker_id: Some("w1".into()),
        ..sh("true")
    };
    let waiting = client.start(&on_w1).await.unwrap();
    assert_eq!(waiting.state, JobState::Pending);
    let reason = waiting.reason.unwrap();
    assert!(
        reason.starts_with("worker w1 has not answered since"),
        "{reason}"
    );
    let now_or_never = StartRequest {
        no_queue: true,
        ..sh("true")
    };
    let error = client.start(&now_or_never).await.unwrap_err();
    assert_eq!(error.code(), Some(code::NO_FREE_SLOT));
    assert!(matches!(error, Error::Refused { status: 503, .. }));
    worker.signal(Signal::CONT);
    job_is(&client, waiting.job_id, JobState::Succeeded).await;
    let after = worker_is(&client, "w1", WorkerState::Ready).await;
    assert_eq!(after.id, before.id);
    job_is(&client, id, JobState::Running).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.code().await, Some(0));
    job_is(&client, id, JobState::Unknown).await;
}

#[tokio::test]
async fn a_killed_scheduler_comes_back_to_the_same_workers_and_jobs() {
    let place = Place::new();
    let dir = Folder::new();
    let scheduler = Process::scheduler(place, dir.path());
    let _worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let before = worker_named(&client, "w1").await.id;
    let fifo = dir.path().join("fifo");
    let script = format!(
        "mkfifo {0}; echo one; read x < {0}; echo two; exit 7",
        fifo.display()
    );
    let id = client.start(&sh(&script)).await.unwrap().job_id;
    let mut logs = within(client.logs(everything(id))).await.unwrap();
    let Event::Output(first) = within(logs.next()).await.unwrap() else {
        panic!("no output");
    };
    assert_eq!(first.output, "one\n");
    let follower = tokio::spawn(async move { rest(&mut logs).await });
    scheduler.kill();
    let _scheduler = Process::scheduler(place, dir.path());
    let client = connected(place).await;
    assert_eq!(worker_named(&client, "w1").await.id, before);
    let held = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    std::io::Write::write_all(&mut &held, b"\n").unwrap();
    let job = end_of(&client, id).await;
    assert_eq!((job.state, job.exit_code), (JobState::Failed, Some(7)));
    assert_eq!(within(follower).await.unwrap(), b"two\n");
}

#[tokio::test]
async fn jobs_outlive_a_killed_worker_and_are_taken_over() {
    let place = Place::new();
    let dir = Folder::new();
    let _scheduler = Process::impatient_scheduler(place, dir.path());
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let fifo = dir.path().join("fifo");
    let script = format!(
        "mkfifo {0}; echo one; read x < {0}; echo two; exit 7",
        fifo.display()
    );
    let lives = client.start(&sh(&script)).await.unwrap().job_id;
    let ends = client
        .start(&sh("read x < $PWD/../../fifo; echo away; exit 5"))
        .await
        .unwrap()
        .job_id;
    let stays = client.start(&sh("sleep 600")).await.unwrap().job_id;
    let mut logs = within(client.logs(everything(lives))).await.unwrap();
    within(logs.next()).await.unwrap();
    worker.kill();
    worker_is(&client, "w1", WorkerState::Unreachable).await;
    job_is(&client, lives, JobState::Unknown).await;
    assert!(
        !processes_of(stays).is_empty(),
        "it goes on without a worker"
    );
    // Both end while there is no worker.
    let held = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    std::io::Write::write_all(&mut &held, b"\n\n").unwrap();
    eventually(|| dir.shims().len() == 1).await;
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    worker_is(&client, "w1", WorkerState::Ready).await;
    let job = end_of(&client, lives).await;
    assert_eq!(
        (job.state, job.exit_code, job.output_bytes),
        (JobState::Failed, Some(7), 8)
    );
    assert_eq!(rest(&mut logs).await, b"two\n");
    let job = end_of(&client, ends).await;
    assert_eq!((job.state, job.exit_code), (JobState::Failed, Some(5)));
    assert_eq!(output(&client, ends).await, b"away\n");
    job_is(&client, stays, JobState::Running).await;
    let stop = StopRequest {
        job_id: stays.to_string(),
        ..Default::default()
    };
    within(client.stop(&stop)).await.unwrap();
    assert!(processes_of(stays).is_empty());
    assert_eq!(job_of(&client, stays).await.state, JobState::Stopped);
    worker.signal(Signal::TERM);
    assert_eq!(worker.code().await, Some(0));
    worker_is(&client, "w1", WorkerState::Left).await;
}

#[tokio::test]
async fn a_worker_that_is_asked_to_end_leaves_its_jobs_running() {
    let place = Place::new();
    let dir = Folder::new();
    let _scheduler = Process::scheduler(place, dir.path());
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let id = client
        .start(&sh("echo $$; sleep 600"))
        .await
        .unwrap()
        .job_id;
    worker.signal(Signal::TERM);
    assert_eq!(worker.code().await, Some(0));
    assert!(!processes_of(id).is_empty());
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    worker_is(&client, "w1", WorkerState::Ready).await;
    job_is(&client, id, JobState::Running).await;
    worker.kill();
    // The other way to end them.
    let mut command = std::process::Command::new(crate::support::binary());
    command
        .args(["worker", "kill-all", "--grace", "300ms"])
        .arg("--data-dir")
        .arg(dir.path().join("w1"));
    let ended = within(tokio::task::spawn_blocking(move || command.output()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "1 job is ended\n");
    assert!(ended.status.success() && processes_of(id).is_empty());
    let _worker = Process::worker(place, 1, &dir.path().join("w1"));
    let job = end_of(&client, id).await;
    assert_eq!(job.state, JobState::Stopped);
}

#[tokio::test]
async fn a_second_signal_ends_a_draining_worker_at_once() {
    let place = Place::new();
    let dir = Folder::new();
    let _scheduler = Process::scheduler(place, dir.path());
    let mut command = Process::worker_command(place, 1, &dir.path().join("w1"));
    command.args(["--drain-on-stop", "--grace", "1h"]);
    let worker = Process::from(command.spawn().unwrap());
    let client = connected(place).await;
    let id = client
        .start(&sh("trap '' TERM; echo ready; sleep 600; sleep 600"))
        .await
        .unwrap()
        .job_id;
    let mut logs = within(client.logs(everything(id))).await.unwrap();
    within(logs.next()).await.unwrap();
    worker.signal(Signal::TERM);
    // It says so at once, long before the next heartbeat is due.
    let draining = worker_is(&client, "w1", WorkerState::Draining).await;
    assert!(draining.draining && draining.draining_until.is_none());
    let waiting = client.start(&sh("true")).await.unwrap();
    assert_eq!(waiting.state, JobState::Pending);
    assert_eq!(waiting.reason.as_deref(), Some("1 worker, not ready"));
    worker.signal(Signal::TERM);
    assert_eq!(worker.code().await, Some(143));
    assert!(
        !processes_of(id).is_empty(),
        "the job did not heed TERM, and its grace is not over"
    );
}

#[tokio::test]
async fn a_copy_of_a_data_folder_does_not_become_the_worker_it_was_taken_from() {
    let place = Place::new();
    let dir = Folder::new();
    let logging_to = |mut command: Command, name: &str| {
        let log = dir.path().join(name);
        command.stderr(fs::File::create(&log).unwrap());
        (Process::from(command.spawn().unwrap()), log)
    };
    let command = Process::scheduler_command(place, dir.path());
    let (_scheduler, log) = logging_to(command, "scheduler.log");
    let refusals = || {
        let log = fs::read_to_string(&log).unwrap();
        log.matches("a registration was refused").count()
    };
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let copy = dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for file in ["identity.pem", "ca.pem", "scheduler", "journal"] {
        fs::copy(dir.path().join("w1").join(file), copy.join(file)).unwrap();
    }
    let id = client.start(&sh("sleep 600")).await.unwrap().job_id;
    let before = worker_named(&client, "w1").await;

    let command = Process::worker_command(place, 2, &copy);
    let (second, its_log) = logging_to(command, "copy.log");
    assert_eq!(second.code().await, Some(1));
    let its_log = fs::read_to_string(its_log).unwrap();
    assert!(its_log.contains(&before.id.to_string()), "{its_log}");
    assert_eq!(refusals(), 0, "it has not even asked");
    let workers = within(client.workers()).await.unwrap().workers;
    assert_eq!(workers.len(), 1);
    assert_eq!(
        (workers[0].state, workers[0].registered_at),
        (WorkerState::Ready, before.registered_at)
    );
    assert_eq!(job_of(&client, id).await.state, JobState::Running);

    worker.kill();
    let _worker = Process::worker(place, 1, &dir.path().join("w1"));
    within(async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(10));
        while worker_is(&client, "w1", WorkerState::Ready)
            .await
            .registered_at
            == before.registered_at
        {
            pause.tick().await;
        }
    })
    .await;
    assert_eq!(refusals(), 0, "it is let in at once");
    job_is(&client, id, JobState::Running).await;
}

/// What jobs choose a worker by.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// Three workers that differ in what they tell of themselves.
async fn three_workers() -> TestCluster {
    let mut cluster = TestCluster::start(0).await;
    let first: Labels<'_> = &[("zone", "eu"), ("gpu", "a100")];
    for (number, labels, slots) in [
        (1, first, Some(2)),
        (2, &[("zone", "us")], Some(0)),
        (3, &[], None),
    ] {
        let worker = labelled(&cluster, number, labels, slots).await;
        cluster.workers.push(worker);
    }
    cluster.ready(3).await;
    cluster
}

pub(crate) async fn labelled(
    cluster: &TestCluster,
    number: usize,
    labels: Labels<'_>,
    slots: Option<u32>,
) -> Running<worker::Error> {
    let data = cluster.data_dir(number);
    start_worker_with(cluster.place, number, &data, |config| {
        let labels = labels.iter();
        let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        config.labels = labels.collect();
        config.slots = slots;
    })
    .await
}

/// Waits until the scheduler shows a worker like this.
async fn worker_shows(
    cluster: &TestCluster,
    name: &str,
    wanted: impl Fn(&Worker) -> bool,
) -> Worker {
    within(async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(10));
        loop {
            pause.tick().await;
            let worker = cluster.worker(name).await;
            if wanted(&worker) {
                return worker;
            }
        }
    })
    .await
}

fn on(worker: &str, script: &str) -> StartRequest {
    StartRequest {
        worker_id: Some(worker.into()),
        ..sh(script)
    }
}

#[tokio::test]
async fn workers_tell_of_themselves_and_are_found_by_their_labels() {
    let cluster = three_workers().await;
    let jobctl = Jobctl::of(&cluster);
    let w1 = cluster.worker("w1").await;
    assert_eq!((w1.slots, &*w1.labels["gpu"]), (Some(2), "a100"));
    assert_eq!(cluster.worker("w2").await.slots, Some(0));
    let w3 = cluster.worker("w3").await;
    assert!(w3.slots.is_none() && w3.labels.is_empty() && w3.scripts.is_empty());
    assert_eq!(w1.cpus, Some(worker::processors()));
    let (all, available) = (w1.memory_bytes.unwrap(), w1.memory_available_bytes.unwrap());
    assert!(available > 0 && available <= all, "{available} of {all}");
    assert_eq!(w1.os.as_deref(), Some("linux"));
    assert_eq!(w1.arch.as_deref(), Some(std::env::consts::ARCH));

    for (label, names) in [
        ("zone=eu", "w1\n"),
        ("zone", "w1\nw2\n"),
        ("zone,gpu=a100", "w1\n"),
        ("gpu=h100", ""),
    ] {
        let args = ["workers", "--label", label, "-o", "name"];
        jobctl.ask(&args).await.is(0, names);
    }
    let none = jobctl.ask(&["workers", "-l", "disk"]).await;
    none.is(0, "");
    assert_eq!(none.stderr, "no worker has such labels\n");
    let bad = jobctl.ask(&["workers", "-l", "a b"]).await;
    bad.is(1, "");
    assert!(bad.stderr.contains("`a b` is not `key=value`"), "{bad:?}");

    // Told when it changed, and again by whoever registers anew.
    cluster.script(1, "a.sh", "exit 0");
    worker_shows(&cluster, "w1", |w1| *w1.scripts == ["a.sh"]).await;
    fs::create_dir(cluster.data_dir(1).join("scripts/sub")).unwrap();
    cluster.script(1, "sub/b.sh", "exit 0");
    let w1 = worker_shows(&cluster, "w1", |w1| *w1.scripts == ["a.sh", "sub/b.sh"]).await;
    assert!(!w1.more_scripts);

    let table = jobctl.ask(&["workers"]).await.stdout;
    let line = |begin: &str| {
        let found = table.lines().find(|line| line.starts_with(begin));
        let words = found.unwrap().split_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("NAME")[7], "LABELS");
    assert_eq!(
        (&*line("w1")[3], &*line("w1")[7]),
        ("0/2", "gpu=a100,zone=eu")
    );
    assert_eq!((&*line("w3")[3], &*line("w3")[7]), ("0/-", "-"));
    let shown = jobctl.ask(&["workers", "show", "w1"]).await.stdout;
    for word in ["Slots:      0 of 2 in use", "a.sh\n            sub/b.sh"] {
        assert!(shown.contains(word), "{shown}");
    }
    let json = jobctl.ask(&["workers", "show", "w3", "-o", "json"]).await;
    let read: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&read["name"], &read["slots"]), (&"w3".into(), &().into()));
    let (server, show) = (cluster.place.server(), ["show", "w1", "-o", "name"]);
    let before = [&["workers", "--server", &server], &show[..]].concat();
    jobctl.ask(&before).await.is(0, "w1\n");
    let before = [&["workers", "--label", "zone"], &show[..]].concat();
    jobctl.ask(&before).await.is(2, "");
    let absent = jobctl.ask(&["workers", "show", "w1", "w9"]).await;
    assert_eq!(absent.code, Some(3));
    assert!(absent.stdout.contains("Name:       w1\n"), "{absent:?}");
    cluster.end().await;
}

#[tokio::test]
async fn labels_that_an_admin_sets_survive_both_restarts() {
    let mut cluster = three_workers().await;
    let jobctl = Jobctl::of(&cluster);
    let args = ["workers", "label", "w1", "zone=us", "gpu-", "disk=ssd"];
    jobctl.ask(&args).await.is(0, "");
    let count = async |cluster: &TestCluster| {
        let labels = cluster.worker("w1").await.labels;
        assert_eq!(labels.len(), 2, "{labels:?}");
        assert_eq!((&*labels["zone"], &*labels["disk"]), ("us", "ssd"));
    };
    count(&cluster).await;
    cluster.restart_scheduler().await;
    count(&cluster).await;
    cluster.ready(3).await;
    cluster.workers.remove(0).end().await;
    let labels = [("zone", "eu"), ("gpu", "h100")];
    let again = labelled(&cluster, 1, &labels, None).await;
    cluster.workers.push(again);
    cluster.worker_is("w1", WorkerState::Ready).await;
    count(&cluster).await;
    for (bad, code) in [("a b=c", 2), ("zone", 2), ("-x", 2)] {
        let refused = jobctl.ask(&["workers", "label", "w1", bad]).await;
        refused.is(code, "");
    }
    let nobody = jobctl.ask(&["workers", "label", "w9", "a=b"]).await;
    nobody.is(3, "");
    let asked = LabelWorkerRequest {
        worker_id: "w1".into(),
        labels: [("a b".to_owned(), Some("c".to_owned()))].into(),
    };
    let error = within(cluster.client.label_worker(&asked))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("bad_label"));
    let audit = jobctl.ask(&["audit", "-n", "20"]).await.stdout;
    assert_eq!(audit.matches("label worker").count(), 1, "{audit}");
    cluster.end().await;
}

#[tokio::test]
async fn a_drained_worker_keeps_its_jobs_and_gets_no_more() {
    let mut cluster = TestCluster::start(2).await;
    let jobctl = Jobctl::of(&cluster);
    let begun = cluster.start_job(&on("w1", "sleep 600")).await.unwrap();
    jobctl.ask(&["workers", "drain", "w1"]).await.is(0, "");
    let w1 = cluster.worker("w1").await;
    assert_eq!(w1.state, WorkerState::Draining);
    assert!(w1.draining && w1.draining_until.is_none());
    let queued = within(cluster.client.start(&on("w1", "true")))
        .await
        .unwrap();
    let reason = queued.reason.unwrap();
    assert_eq!(reason, "worker w1 is draining");
    for _ in 0..3 {
        let job = cluster.sh("true").await;
        assert_eq!(cluster.job(job).await.worker.as_deref(), Some("w2"));
    }
    assert_eq!(cluster.job(begun).await.state, JobState::Running);

    cluster.restart_scheduler().await;
    cluster.worker_is("w1", WorkerState::Draining).await;
    // It answers for its jobs, and a stop reaches them.
    let waiting = jobctl.begin(&["workers", "drain", "w1", "--wait"]);
    let stop = StopRequest {
        job_id: begun.to_string(),
        ..Default::default()
    };
    within(cluster.client.stop(&stop)).await.unwrap();
    waiting.end().await.is(0, "");

    cluster.workers.remove(0).end().await;
    cluster.worker_is("w1", WorkerState::Left).await;
    let again = cluster.start_worker(1).await;
    cluster.workers.push(again);
    cluster.worker_is("w1", WorkerState::Draining).await;
    jobctl.ask(&["workers", "resume", "w1"]).await.is(0, "");
    assert_eq!(cluster.worker("w1").await.state, WorkerState::Ready);
    let waited = cluster.end_of(queued.job_id).await;
    assert_eq!(waited.state, JobState::Succeeded);
    let audit = jobctl.ask(&["audit", "-n", "20"]).await.stdout;
    assert_eq!(audit.matches("drain worker").count(), 2, "{audit}");
    assert_eq!(audit.matches("resume worker").count(), 1, "{audit}");
    cluster.end().await;
}

#[tokio::test]
async fn what_is_left_when_the_time_to_drain_is_over_is_stopped() {
    let mut cluster = TestCluster::start(2).await;
    let jobctl = Jobctl::of(&cluster);
    let left = cluster.start_job(&on("w1", "sleep 600")).await.unwrap();
    let other = cluster.start_job(&on("w2", "sleep 600")).await.unwrap();
    let args = ["workers", "drain", "w1", "--wait", "--deadline", "100ms"];
    jobctl.ask(&args).await.is(0, "");
    assert_eq!(cluster.job(left).await.state, JobState::Stopped);
    assert_eq!(cluster.job(other).await.state, JobState::Running);
    // Time goes on while there is no scheduler.
    let asked = DrainWorkerRequest {
        worker_id: "w2".into(),
        deadline_ms: Some(1500),
    };
    within(cluster.client.drain_worker(&asked)).await.unwrap();
    let until = cluster.worker("w2").await.draining_until.unwrap();
    cluster.restart_scheduler().await;
    assert_eq!(cluster.worker("w2").await.draining_until, Some(until));
    let job = cluster.end_of(other).await;
    assert_eq!(job.state, JobState::Stopped);
    assert!(job.ended_at.unwrap() >= until);
    cluster.end().await;
}

#[tokio::test]
async fn a_worker_that_is_gone_is_removed_and_its_jobs_are_lost() {
    let place = Place::new();
    let dir = Folder::new();
    let _scheduler = Process::impatient_scheduler(place, dir.path());
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let jobctl = Jobctl::at(place.server());
    let id = client.start(&sh("sleep 600")).await.unwrap().job_id;
    let refused = jobctl.ask(&["workers", "remove", "--yes", "w1"]).await;
    refused.is(1, "");
    let error = "error: worker w1 is ready: drain and stop it first\nhint: have its jobs end";
    assert!(refused.stderr.starts_with(error), "{refused:?}");

    worker.kill();
    worker_is(&client, "w1", WorkerState::Unreachable).await;
    job_is(&client, id, JobState::Unknown).await;
    let unsure = jobctl.ask(&["workers", "remove", "w1"]).await;
    unsure.is(2, "");
    assert!(unsure.stderr.contains("`--yes` is needed"), "{unsure:?}");
    let no = jobctl
        .on_terminal(&["workers", "remove", "w1"], "n\n")
        .await;
    assert_eq!(no.code, Some(1), "{}", no.shown);
    assert!(
        no.shown.contains("remove w1, and give up the jobs there?"),
        "{}",
        no.shown
    );
    jobctl
        .ask(&["workers", "remove", "-y", "w1"])
        .await
        .is(0, "");
    let job = job_of(&client, id).await;
    assert_eq!(job.state, JobState::Lost);
    assert_eq!(job.reason.as_deref(), Some("lost: worker w1 was removed"));
    jobctl.ask(&["workers", "-o", "json"]).await.is(0, "[]\n");
    jobctl
        .ask(&["workers", "remove", "-y", "w1"])
        .await
        .is(3, "");
    let audit = jobctl.ask(&["audit", "-n", "20"]).await.stdout;
    assert_eq!(audit.matches("remove worker").count(), 1, "{audit}");
}

#[tokio::test]
async fn a_worker_that_cannot_be_dialled_says_so_and_gets_no_jobs() {
    let cluster = TestCluster::start(1).await;
    let dir = Folder::new();
    let mut command = Process::worker_command(cluster.place, 2, &dir.path().join("w2"));
    command.args(["--advertise", "127.0.0.1:1"]);
    let worker = Process::from(command.stderr(Stdio::piped()).spawn().unwrap());
    let why = "cannot be dialled at 127.0.0.1:1: Connection refused (os error 111)";
    let shown = cluster.worker_is("w2", WorkerState::Unreachable).await;
    assert_eq!(shown.reason.as_deref(), Some(why));
    for _ in 0..8 {
        let job = cluster.sh("true").await;
        let job = cluster.end_of(job).await;
        assert_eq!(
            (job.state, job.worker.as_deref()),
            (JobState::Succeeded, Some("w1"))
        );
    }
    let jobctl = Jobctl::of(&cluster);
    let listed = jobctl.ask(&["workers"]).await;
    assert!(
        listed.stderr.contains(&format!("worker w2 {why}")),
        "{listed:?}"
    );
    let whole = jobctl.ask(&["workers", "show", "w2"]).await;
    assert!(
        whole.stdout.contains(&format!("Reason:     {why}\n")),
        "{whole:?}"
    );
    let refused = jobctl.ask(&["workers", "remove", "-y", "w2"]).await;
    refused.is(1, "");
    let since = cluster.worker("w2").await.since;
    worker.signal(Signal::TERM);
    let (code, said) = worker.end_of().await;
    assert_eq!(code, Some(0), "{said}");
    let told = format!("the scheduler gives this worker no jobs, because it {why}");
    assert_eq!(said.matches(&told).count(), 1, "{said}");
    assert!(!said.contains("lost the scheduler"), "{said}");
    let left = cluster.worker_is("w2", WorkerState::Left).await;
    assert!(left.since > since && left.reason.is_none());
    cluster.end().await;
}

#[tokio::test]
async fn a_worker_that_ends_and_leaves_its_jobs_is_unreachable_at_once() {
    let place = Place::new();
    let dir = Folder::new();
    // Three missed heartbeats would be longer than this test may take.
    let mut command = Process::scheduler_command(place, dir.path());
    command.args(["--heartbeat-interval", "60s"]);
    let _scheduler = Process::run(command);
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let id = client.start(&sh("sleep 600")).await.unwrap().job_id;
    job_is(&client, id, JobState::Running).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.code().await, Some(0));
    let stopped = worker_is(&client, "w1", WorkerState::Unreachable).await;
    let why = stopped.reason.unwrap();
    assert!(
        why.starts_with("was stopped at 2") && why.ends_with(", and its jobs go on"),
        "{why}"
    );
    assert_eq!(job_of(&client, id).await.state, JobState::Running);
    let jobctl = Jobctl::at(place.server());
    let refused = jobctl.ask(&["start", "--all", "true"]).await;
    refused.is(1, "");
    assert!(
        refused.stderr.contains("1 worker, not ready"),
        "{refused:?}"
    );
    let listed = jobctl.ask(&["workers"]).await;
    assert!(
        listed.stderr.contains(&format!("worker w1 {why}")),
        "{listed:?}"
    );
    let _worker = Process::worker(place, 1, &dir.path().join("w1"));
    worker_is(&client, "w1", WorkerState::Ready).await;
    stop(&client, id).await;
}

#[tokio::test]
async fn a_job_that_somebody_starts_at_a_worker_is_listed_at_once() {
    let cluster = TestCluster::start(1).await;
    let scheduler = Shown::new(Role::Scheduler, "scheduler");
    let channel = attacker::channel(&cluster.place.worker(1), Some(scheduler));
    let mut worker = WorkerClient::new(channel);
    let start = |script: &str| proto::StartJobRequest {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        name: "direct".into(),
        ..Default::default()
    };
    let live = within(worker.start_job(start("sleep 600"))).await.unwrap();
    let live: JobId = live.into_inner().job_id.parse().unwrap();
    let over = within(worker.start_job(start("exit 9"))).await.unwrap();
    let over: JobId = over.into_inner().job_id.parse().unwrap();
    let known = async |id: JobId| {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            pause.tick().await;
            let request = QueryRequest {
                job_id: id.to_string(),
                ..Default::default()
            };
            if let Ok(QueryAnswer::Job(answer)) = cluster.client.query(&request).await {
                return answer.job;
            }
        }
    };
    let job = within(known(live)).await;
    assert_eq!(
        (job.state, job.name.as_deref()),
        (JobState::Running, Some("direct"))
    );
    assert_eq!(job.args, ["-c", "sleep 600"]);
    within(known(over)).await;
    assert_eq!(cluster.end_of(over).await.exit_code, Some(9));
    stop(&cluster.client, live).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_worker_with_little_room_on_its_disk_takes_no_jobs() {
    let (place, dir) = (Place::new(), Folder::new());
    let _scheduler = Process::scheduler(place, dir.path());
    let client = place.client();
    let data = dir.path().join("w1");
    let worker = Process::on_small_disk(&Process::worker_command(place, 1, &data), &data, "2m");
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        while !client
            .workers()
            .await
            .is_ok_and(|answer| !answer.workers.is_empty())
        {
            pause.tick().await;
        }
    })
    .await;
    let short = worker_is(&client, "w1", WorkerState::Short).await;
    let why = "cannot start jobs now: the disk of its data folder has less than 16.0 MiB left";
    assert_eq!(short.reason.as_deref(), Some(why));
    let waiting = within(client.start(&sh("true"))).await.unwrap();
    assert_eq!(waiting.state, JobState::Pending);
    let shown = Jobctl::at(place.server()).ask(&["workers"]).await;
    assert!(shown.stdout.contains(" short "), "{shown:?}");
    assert!(
        shown.stderr.contains(&format!("worker w1 {why}")),
        "{shown:?}"
    );
    worker.resize_disk(&data, "64m");
    worker_is(&client, "w1", WorkerState::Ready).await;
    assert_eq!(end_of(&client, waiting.job_id).await.exit_code, Some(0));
}

#[tokio::test]
async fn no_job_fails_because_one_worker_cannot_start_any() {
    const JOBS: usize = 50;
    let cluster = TestCluster::start(1).await;
    let dir = Folder::new();
    // It has room for a few descriptors more than it needs to be there.
    let whole = Process::worker_command(cluster.place, 2, &dir.path().join("w2"));
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=72");
    limited.arg(whole.get_program()).args(whole.get_args());
    let _worker = Process::run(limited);
    cluster.worker_is("w2", WorkerState::Ready).await;
    // These stay, and take what there is.
    let stay: Vec<JobId> = {
        let on_w2 = StartRequest {
            worker_id: Some("w2".into()),
            ..sh("sleep 600")
        };
        let starts = (0..JOBS).map(|_| cluster.client.start(&on_w2));
        let starts = within(futures_util::future::join_all(starts)).await;
        starts
            .into_iter()
            .map(|start| start.unwrap().job_id)
            .collect()
    };
    let short = cluster.worker_is("w2", WorkerState::Short).await;
    assert!(short.reason.unwrap().starts_with("cannot start jobs now: "));
    let starts = (0..JOBS).map(|_| cluster.sh("true"));
    for job in within(futures_util::future::join_all(starts)).await {
        let job = cluster.end_of(job).await;
        assert_eq!(
            (job.state, job.worker.as_deref()),
            (JobState::Succeeded, Some("w1"))
        );
    }
    for job in stay {
        stop(&cluster.client, job).await;
    }
    cluster.end().await;
}
