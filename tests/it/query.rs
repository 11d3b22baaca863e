//! `jobctl query`: one job or several, in every form.

use jobctl::api::{Job, StartRequest};

use crate::{
    cluster::{TestCluster, sh},
    typed::Jobctl,
};

#[tokio::test]
async fn a_job_is_shown_in_the_form_that_was_asked_for() {
    let cluster = TestCluster::start(1).await;
    let request = StartRequest {
        name: Some("nightly".into()),
        ..sh("exit 7")
    };
    let id = cluster.start_job(&request).await.unwrap();
    let job = cluster.end_of(id).await;
    let jobctl = Jobctl::of(&cluster);
    let shown = jobctl.ask(&["query", "nightly"]).await;
    assert_eq!(shown.code, Some(0));
    let first = format!("Job:        {id}\nName:       nightly\nState:      failed");
    assert!(shown.stdout.starts_with(&first), "{shown:?}");
    let json = jobctl.ask(&["query", "-o", "json", &id.short()]).await;
    assert_eq!(serde_json::from_str::<Job>(&json.stdout).unwrap(), job);
    let jsonl = jobctl.ask(&["query", "-o", "jsonl", "last"]).await;
    assert_eq!(serde_json::from_str::<Job>(&jsonl.stdout).unwrap(), job);
    assert_eq!(jsonl.stdout.lines().count(), 1);
    let yaml = jobctl.ask(&["query", "-o", "yaml", "last"]).await;
    assert_eq!(serde_saphyr::from_str::<Job>(&yaml.stdout).unwrap(), job);
    let name = jobctl.ask(&["query", "-o", "name", "last"]).await;
    name.is(0, "nightly\n");
    let quiet = jobctl.ask(&["query", "-q", "last"]).await;
    quiet.is(0, &format!("{id}\n"));
    cluster.end().await;
}

#[tokio::test]
async fn several_are_an_array_and_one_that_is_not_there_fails() {
    let cluster = TestCluster::start(1).await;
    let first = cluster.sh("true").await.to_string();
    let second = cluster.sh("true").await.to_string();
    let jobctl = Jobctl::of(&cluster);
    let ids = format!("{first}\n{second}\n");
    let json = jobctl
        .ask_with(&["query", "-o", "json", "-"], ids.as_bytes())
        .await;
    let jobs: Vec<Job> = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, jobs.len()), (Some(0), 2));
    let run = jobctl
        .ask(&["query", "-q", &first, "nihgtly", &second])
        .await;
    run.is(3, &ids);
    let error = "error: job nihgtly not found\nhint: list the jobs with `jobctl jobs`\n";
    assert_eq!(run.stderr, error);
    let named = StartRequest {
        name: Some("nightly".into()),
        ..sh("true")
    };
    cluster.start_job(&named).await.unwrap();
    let run = jobctl.ask(&["query", "nihgtly"]).await;
    run.is(3, "");
    let error = "error: job nihgtly not found, did you mean nightly?\n";
    assert!(run.stderr.starts_with(error), "{run:?}");
    cluster.end().await;
}
