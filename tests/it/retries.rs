//! Jobs that are tried again, on a real worker.

use jobctl::api::{JobState, OnLost, StartRequest};

use crate::{
    cluster::{TestCluster, everything, read, sh},
    typed::Jobctl,
};

#[tokio::test]
async fn a_job_is_tried_until_it_succeeds_and_all_its_output_is_there() {
    let cluster = TestCluster::start(2).await;
    let jobctl = Jobctl::of(&cluster);
    let script = "echo $JOBCTL_ATTEMPT $JOBCTL_JOB_ID; [ $JOBCTL_ATTEMPT = 3 ]";
    let line = [
        "start",
        "--retries",
        "5",
        "--retry-pause",
        "10ms",
        "--name",
        "flaky",
        "--follow",
        "sh",
        "-c",
        script,
    ];
    let outcome = jobctl.ask(&line).await;
    let jobs = cluster.client.jobs(&Default::default()).await.unwrap().jobs;
    let [job] = &jobs[..] else {
        panic!("not one job: {jobs:?}");
    };
    let id = job.id;
    outcome.is(0, &format!("1 {id}\n2 {id}\n3 {id}\n"));
    let job = cluster.job(id).await;
    assert_eq!((job.state, job.attempt), (JobState::Succeeded, 3));
    let states: Vec<_> = job.attempts.iter().map(|one| one.state).collect();
    let expected = [JobState::Failed, JobState::Failed, JobState::Succeeded];
    assert_eq!(states, expected);
    let offsets: Vec<_> = job.attempts.iter().map(|one| one.offset).collect();
    assert_eq!(offsets, [0, 39, 78]);
    assert_eq!(job.output_bytes, 117);

    let logs = async |args: &[&str]| {
        let args = [&["logs", "flaky"], args].concat();
        jobctl.ask(&args).await
    };
    logs(&[]).await.is(0, &format!("3 {id}\n"));
    logs(&["--attempt", "1"]).await.is(0, &format!("1 {id}\n"));
    logs(&["--offset", "41"])
        .await
        .is(0, &format!("{id}\n3 {id}\n"));
    let outcome = logs(&["--attempt", "1", "--follow"]).await;
    outcome.is(1, &format!("1 {id}\n"));
    let shown = jobctl.ask(&["query", "flaky"]).await.stdout;
    assert!(shown.contains("Attempt:    3 of 6 at most\n"), "{shown}");
    assert!(
        shown.contains("Attempt 2:  failed (exit status 1) on w"),
        "{shown}"
    );
    cluster.end().await;
}

#[tokio::test]
async fn a_job_that_times_out_each_time_has_timed_out() {
    let cluster = TestCluster::start(1).await;
    let request = StartRequest {
        timeout_ms: Some(100),
        retries: 1,
        retry_pause_ms: Some(1),
        ..sh("echo begun; exec sleep 600")
    };
    let id = cluster.start_job(&request).await.unwrap();
    let job = cluster.end_of(id).await;
    assert_eq!((job.state, job.attempts.len()), (JobState::TimedOut, 2));
    let all = jobctl::api::LogsQuery {
        offset: Some(0),
        ..everything(id)
    };
    let output = read(&cluster.client, all).await.unwrap();
    assert_eq!(output, b"begun\nbegun\n");
    cluster.end().await;
}

#[tokio::test]
async fn a_job_waits_for_its_next_attempt_across_a_restart_and_can_be_stopped() {
    let mut cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let line = ["start", "--retries", "1", "--retry-pause", "1h", "false"];
    let id = jobctl.ask(&line).await.stdout.trim().parse().unwrap();
    let query = jobctl::api::LogsQuery {
        attempt: Some(1),
        ..everything(id)
    };
    // Ends with the attempt.
    read(&cluster.client, query).await.unwrap();
    cluster.restart_scheduler().await;
    let job = cluster.job(id).await;
    assert_eq!(job.state, JobState::Pending);
    let reason = job.reason.unwrap();
    assert!(reason.ends_with("; attempt 1: exit status 1"), "{reason}");
    jobctl.ask(&["stop", "last"]).await.is(0, "");
    let job = cluster.job(id).await;
    let said = "stopped between attempts, after attempt 1: exit status 1";
    assert_eq!(
        (job.state, &*job.reason.unwrap()),
        (JobState::Stopped, said)
    );
    cluster.end().await;
}

#[tokio::test]
async fn a_job_whose_shim_is_killed_is_started_again_where_that_was_asked_for() {
    let cluster = TestCluster::start(1).await;
    let request = StartRequest {
        on_lost: OnLost::Requeue,
        ..sh("[ $JOBCTL_ATTEMPT = 2 ] || { kill -9 $PPID; sleep 600; }; echo again")
    };
    let id = cluster.start_job(&request).await.unwrap();
    let job = cluster.end_of(id).await;
    assert_eq!((job.state, job.attempt), (JobState::Succeeded, 2));
    assert_eq!(job.attempts[0].state, JobState::Lost);
    assert_eq!(cluster.output(id).await, b"again\n");
    cluster.end().await;
}
