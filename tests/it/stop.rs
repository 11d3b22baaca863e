//! `POST /stop`.

use jobctl::{
    api::{JobState, StopRequest, code},
    client::Error,
};

use crate::{
    cluster::{TestCluster, everything, sh},
    support::{processes_of, within},
    typed::Jobctl,
};

#[tokio::test]
async fn stop_returns_when_the_job_is_gone() {
    let cluster = TestCluster::start(1).await;
    let id = cluster.sh("trap '' TERM; sleep 600 & wait; wait").await;
    let request = StopRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    assert!(within(cluster.client.stop(&request)).await.unwrap().success);
    assert!(processes_of(id).is_empty());
    let job = cluster.job(id).await;
    assert_eq!(job.state, JobState::Stopped);

    let again = within(cluster.client.stop(&request)).await.unwrap_err();
    assert_eq!(again.code(), Some(code::JOB_FINISHED));
    assert!(matches!(again, Error::Refused { status: 409, .. }));
    cluster.end().await;
}

#[tokio::test]
async fn no_wait_returns_when_the_signal_was_sent() {
    let cluster = TestCluster::start(1).await;
    let id = cluster
        .sh("trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done")
        .await;
    let first = jobctl::api::LogsQuery {
        follow: true,
        job_id: "last".into(),
        ..Default::default()
    };
    let mut logs = within(cluster.client.logs(first)).await.unwrap();
    within(logs.next()).await.unwrap();
    let request = StopRequest {
        job_id: id.to_string(),
        signal: Some("USR1".into()),
        grace_ms: Some(3_600_000),
        no_wait: true,
        ..Default::default()
    };
    within(cluster.client.stop(&request)).await.unwrap();
    let job = cluster.end_of(id).await;
    assert_eq!((job.state, job.exit_code), (JobState::Stopped, Some(9)));
    assert_eq!(job.reason.as_deref(), Some("stopped: exit status 9"));
    cluster.end().await;
}

#[tokio::test]
async fn what_cannot_be_stopped_is_said() {
    let cluster = TestCluster::start(2).await;
    let id = cluster.sh("sleep 600").await;
    let on = cluster.job(id).await.worker.unwrap();
    let other = if on == "w1" { "w2" } else { "w1" };
    let stop = |job: &str, worker: Option<&str>, signal: Option<&str>| StopRequest {
        job_id: job.into(),
        worker_id: worker.map(str::to_owned),
        signal: signal.map(str::to_owned),
        ..Default::default()
    };
    for (request, status, code, names) in [
        (
            stop("no-such-job", None, None),
            404,
            "job_not_found",
            "no-such-job",
        ),
        (
            stop("last", Some("w9"), None),
            404,
            "worker_not_found",
            "w9",
        ),
        (
            stop("last", Some(other), None),
            409,
            "job_on_other_worker",
            on.as_str(),
        ),
        (
            stop("last", None, Some("NOSIG")),
            400,
            "bad_request",
            "NOSIG",
        ),
    ] {
        let error = within(cluster.client.stop(&request)).await.unwrap_err();
        assert_eq!(error.code(), Some(code));
        assert!(matches!(error, Error::Refused { status: s, .. } if s == status));
        assert!(error.to_string().contains(names), "{error}");
    }
    assert_eq!(cluster.job(id).await.state, JobState::Running);
    cluster.end().await;
}

#[tokio::test]
async fn a_job_that_has_ended_is_a_note_and_no_failure() {
    let cluster = TestCluster::start(1).await;
    let id = cluster
        .start_job(&jobctl::api::StartRequest {
            name: Some("nightly".into()),
            ..sh("true")
        })
        .await
        .unwrap();
    cluster.end_of(id).await;
    let jobctl = Jobctl::of(&cluster);
    for (asked, called) in [
        ("nightly", format!("nightly ({})", id.short())),
        ("last", id.short()),
    ] {
        let run = jobctl.ask(&["stop", asked]).await;
        run.is(0, "");
        assert_eq!(run.stderr, format!("job {called} has ended already\n"));
    }
    cluster.end().await;
}

#[tokio::test]
async fn every_running_job_is_stopped_from_standard_input() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let first = cluster.sh("sleep 600").await;
    let second = cluster.sh("sleep 600").await;
    let listed = jobctl
        .ask(&["jobs", "--all", "-q", "--state", "running"])
        .await;
    let run = jobctl
        .ask_with(&["stop", "-"], listed.stdout.as_bytes())
        .await;
    run.is(0, "");
    for id in [first, second] {
        assert_eq!(cluster.job(id).await.state, JobState::Stopped);
    }
    jobctl.ask(&["stop", "no-such-job"]).await.is(3, "");
    cluster.end().await;
}

#[tokio::test]
async fn ctrl_c_says_that_the_stop_goes_on() {
    let cluster = TestCluster::start(1).await;
    let id = cluster
        .sh("trap '' TERM; echo ready; while :; do sleep 0.05; done")
        .await;
    let mut logs = within(cluster.client.logs(everything(id))).await.unwrap();
    within(logs.next()).await.unwrap();
    let jobctl = Jobctl::of(&cluster);
    let mut stop = jobctl.begin(&["stop", "-v", "--grace", "1h", "last"]);
    stop.says("POST /query 200", 1).await;
    stop.signal(rustix::process::Signal::INT);
    let run = stop.end().await;
    run.is(130, "");
    assert!(run.stderr.contains("goes on stopping"), "{run:?}");
    cluster.end().await;
}
