//! Jobs that start later, or are given up when they have waited too long.

use jiff::Timestamp;
use jobctl::api::JobState;

use crate::{cluster::TestCluster, typed::Jobctl};

#[tokio::test]
async fn a_job_starts_not_before_its_time() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let asked_at = Timestamp::now();
    let outcome = jobctl
        .ask(&["start", "--in", "400ms", "--follow", "echo", "hello"])
        .await;
    outcome.is(0, "hello\n");
    let job = cluster.client.jobs(&Default::default()).await.unwrap().jobs;
    let waited = job[0].started_at.unwrap().duration_since(asked_at);
    assert!(waited.as_millis() >= 400, "{waited}");
    cluster.end().await;
}

#[tokio::test]
async fn a_job_that_waits_for_its_time_is_known_after_a_restart_and_can_be_stopped() {
    let mut cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let line = ["start", "--at", "2999-01-02T03:04:05Z", "true"];
    let id = jobctl.ask(&line).await.stdout;
    let id = id.trim().parse().unwrap();
    cluster.restart_scheduler().await;
    let job = cluster.job(id).await;
    assert_eq!(job.state, JobState::Pending);
    let reason = job.reason.unwrap();
    assert!(
        reason.starts_with("starts at 2999-01-02T03:04:05Z, in "),
        "{reason}"
    );
    let shown = jobctl.ask(&["query", "last"]).await.stdout;
    assert!(
        shown.contains("Not before: 2999-01-02T03:04:05Z"),
        "{shown}"
    );
    jobctl.ask(&["stop", "last"]).await.is(0, "");
    assert_eq!(cluster.job(id).await.state, JobState::Stopped);
    cluster.end().await;
}

#[tokio::test]
async fn a_job_that_waits_longer_than_its_deadline_is_given_up() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let line = [
        "start",
        "--deadline",
        "100ms",
        "-l",
        "gpu",
        "--wait",
        "true",
    ];
    let outcome = jobctl.ask(&line).await;
    outcome.is(124, "");
    let said = "waited longer than its deadline of 100ms";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    cluster.end().await;
}
