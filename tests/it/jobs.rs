//! `jobctl jobs` and `jobctl workers`: lists.

use jobctl::{
    api::{Job, StartRequest, Worker},
    ids::JobId,
};

use crate::{
    cluster::TestCluster,
    typed::{Jobctl, Typed},
};

/// Starts so many jobs that cannot run: recorded, and ended at once.
async fn refused(cluster: &TestCluster, count: usize) {
    let request = StartRequest {
        command: Some("no-such-program".into()),
        name: Some("nobody".into()),
        ..Default::default()
    };
    for _ in 0..count {
        cluster.start_job(&request).await.unwrap_err();
    }
}

#[tokio::test]
async fn nothing_found_is_a_note_and_no_failure() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let run = jobctl.ask(&["jobs"]).await;
    run.is(0, "");
    assert_eq!(run.stderr, "no jobs found\n");
    jobctl.ask(&["jobs", "-o", "json"]).await.is(0, "[]\n");
    for (asked, told) in [("W1", ", did you mean w1?"), ("w9", "; there is w1")] {
        let run = jobctl.ask(&["jobs", "--worker", asked]).await;
        run.is(3, "");
        let error = format!("error: worker {asked} not found{told}\n");
        assert!(run.stderr.starts_with(&error), "{run:?}");
    }
    cluster.end().await;
}

#[tokio::test]
async fn all_goes_through_every_page_and_a_limit_says_there_are_more() {
    let cluster = TestCluster::start(1).await;
    refused(&cluster, 1010).await;
    let jobctl = Jobctl::of(&cluster);
    let all = jobctl.ask(&["jobs", "--all", "-q"]).await;
    let mut ids: Vec<JobId> = all.stdout.lines().map(|id| id.parse().unwrap()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((all.code, ids.len()), (Some(0), 1010));
    assert_eq!(all.stderr, "");
    // A script must not take the first page for all there is.
    let some = jobctl.ask(&["jobs", "-q"]).await;
    assert_eq!(some.stdout.lines().count(), 50);
    assert!(some.stderr.contains("`--all`"), "{some:?}");
    cluster.end().await;
}

#[tokio::test]
async fn jobs_are_listed_in_every_form_and_by_state_and_name() {
    let cluster = TestCluster::start(1).await;
    refused(&cluster, 1).await;
    let id = cluster.sh("exit 7").await;
    cluster.end_of(id).await;
    let jobctl = Jobctl::of(&cluster);
    let table = jobctl.ask(&["jobs"]).await;
    let lines: Vec<_> = table.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{table:?}");
    assert!(
        lines[0].starts_with("ID            NAME    STATE"),
        "{table:?}"
    );
    let row = format!("{}  -       failed  7     w1", id.short());
    assert!(lines[1].starts_with(&row), "{table:?}");
    let bare = jobctl.ask(&["jobs", "--no-headers"]).await;
    assert_eq!(bare.stdout.lines().count(), 2);
    let json = jobctl.ask(&["jobs", "-o", "json"]).await;
    let jobs: Vec<Job> = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((jobs.len(), jobs[0].id), (2, id));
    let names = jobctl.ask(&["jobs", "-o", "name"]).await;
    names.is(0, &format!("{id}\nnobody\n"));
    let named = jobctl
        .ask(&["jobs", "--name", "nobody", "-o", "name"])
        .await;
    named.is(0, "nobody\n");
    // Asked for by flag, colour wins over the variable that forbids it.
    let mut coloured = jobctl.command(&["jobs", "--color", "always"]);
    coloured.env("NO_COLOR", "1");
    let coloured = Typed::new(coloured).end().await;
    let word = "\u{1b}[31mfailed\u{1b}[0m  7 ";
    assert!(coloured.stdout.contains(word), "{coloured:?}");
    let running = jobctl.ask(&["jobs", "--state", "running,pending"]).await;
    running.is(0, "");
    let workers = jobctl.ask(&["workers", "-o", "json"]).await;
    let workers: Vec<Worker> = serde_json::from_str(&workers.stdout).unwrap();
    assert_eq!(workers[0].name, "w1");
    jobctl.ask(&["workers", "-o", "name"]).await.is(0, "w1\n");
    cluster.end().await;
}
