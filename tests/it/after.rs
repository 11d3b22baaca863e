//! Jobs that start after others.

use jobctl::api::JobState;

use crate::{cluster::TestCluster, typed::Jobctl};

#[tokio::test]
async fn a_job_starts_after_another_one_and_not_behind_a_failure() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let file = jobctl.folder().join("written");
    let write = format!(
        "while [ ! -e {0}.go ]; do sleep 0.01; done; echo one > {0}",
        file.display()
    );
    let line = ["start", "--name", "build", "sh", "-c", &write];
    let build = jobctl.ask(&line).await.stdout;
    let read = format!("cat {}", file.display());
    let line = [
        "start", "--name", "test", "--after", "build", "sh", "-c", &read,
    ];
    jobctl.ask(&line).await;
    let shown = jobctl.ask(&["query", "test"]).await.stdout;
    let id: jobctl::ids::JobId = build.trim().parse().unwrap();
    let state = format!("pending (waits for job {} to succeed)", id.short());
    assert!(shown.contains(&state), "{shown}");
    let after = format!("After:      {} (to succeed)\n", id.short());
    assert!(shown.contains(&after), "{shown}");
    std::fs::write(file.with_extension("go"), "").unwrap();
    jobctl
        .ask(&["logs", "--follow", "test"])
        .await
        .is(0, "one\n");
    let line = ["start", "--after", "test", "--wait", "false"];
    jobctl.ask(&line).await.is(1, "");

    let line = ["start", "--after", "last", "--follow", "echo", "never"];
    let outcome = jobctl.ask(&line).await;
    outcome.is(143, "");
    let jobs = cluster.client.jobs(&Default::default()).await.unwrap().jobs;
    let [last, failed, ..] = &jobs[..] else {
        panic!("too few jobs: {jobs:?}");
    };
    assert_eq!(last.state, JobState::Stopped);
    let said = format!("job {} failed: exit status 1", failed.id.short());
    assert_eq!(last.reason.as_deref(), Some(&*said));
    let line = ["start", "--after-any", "last", "--follow", "echo", "ends"];
    jobctl.ask(&line).await.is(0, "ends\n");
    cluster.end().await;
}
