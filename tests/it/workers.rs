//! Who is in the cluster: joining, missing heartbeats, coming back, leaving.

use std::{fs, process::Command};

use jobctl::{
    api::{JobState, StopRequest, WorkerState, code},
    client::{Error, logs::Event},
};
use rustix::process::Signal;

use crate::{
    cluster::{
        Place, Process, TestCluster, connected, end_of, everything, job as job_of, job_is, output,
        rest, sh, worker_is, worker_named,
    },
    support::{Folder, eventually, processes_of, within},
};

#[tokio::test]
async fn a_worker_that_says_goodbye_has_left() {
    let mut cluster = TestCluster::start(2).await;
    let id = cluster
        .start_job(&jobctl::api::StartRequest {
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
        .start_job(&jobctl::api::StartRequest {
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
        bounds: jobctl::roles::worker::bounds(),
        advertise: None,
        data_dir: crate::enrolled::worker(dir.path(), "w1"),
        script_dir: None,
        shim: crate::support::binary(),
        grace: std::time::Duration::from_secs(1),
        output_limit: 1,
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
    let on_w1 = jobctl::api::StartRequest {
        worker_id: Some("w1".into()),
        ..sh("true")
    };
    let error = client.start(&on_w1).await.unwrap_err();
    assert_eq!(error.code(), Some(code::WORKER_UNREACHABLE));
    assert!(matches!(error, Error::Refused { status: 504, .. }));
    let error = client.start(&sh("true")).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 503, .. }));
    worker.signal(Signal::CONT);
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
    let error = client.start(&sh("true")).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 503, .. }));
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
    eventually(|| refusals() > 3).await;
    let its_log = fs::read_to_string(its_log).unwrap();
    let reason = format!("is connected from {}", place.worker(1));
    assert_eq!(its_log.matches(&reason).count(), 1, "said once: {its_log}");
    let workers = within(client.workers()).await.unwrap().workers;
    assert_eq!(workers.len(), 1);
    assert_eq!(
        (workers[0].state, workers[0].registered_at),
        (WorkerState::Ready, before.registered_at)
    );
    assert_eq!(job_of(&client, id).await.state, JobState::Running);
    second.kill();

    let refused = refusals();
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
    assert_eq!(refusals(), refused, "it is let in at once");
    job_is(&client, id, JobState::Running).await;
}
