//! `jobctl wait`: the exit code of a job, of several, and of none.

use std::sync::Arc;

use axum::{Json, Router, routing::post};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    cluster::{TestCluster, sh},
    support::within,
    typed::Jobctl,
};

#[tokio::test]
async fn wait_ends_as_the_job_does() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        let id = cluster.sh(script).await.to_string();
        jobctl.ask(&["wait", &id]).await.is(code, "");
        jobctl.ask(&["wait", "last"]).await.is(code, "");
    }
    let timed = jobctl::api::StartRequest {
        timeout_ms: Some(50),
        ..sh("sleep 600")
    };
    cluster.start_job(&timed).await.unwrap();
    let run = jobctl.ask(&["wait", "last"]).await;
    run.is(124, "");
    assert!(run.stderr.contains("timed out after 50ms"), "{run:?}");
    jobctl.ask(&["wait", "no-such-job"]).await.is(125, "");
    cluster.end().await;
}

#[tokio::test]
async fn a_job_that_returned_130_is_no_ctrl_c() {
    let cluster = TestCluster::start(1).await;
    let first = cluster.sh("exit 130").await.to_string();
    let second = cluster.sh("exit 131").await.to_string();
    let run = Jobctl::of(&cluster).ask(&["wait", &first, &second]).await;
    run.is(130, "");
    assert!(!run.stderr.contains("detached"), "{run:?}");
    cluster.end().await;
}

#[tokio::test]
async fn what_waited_in_vain_does_not_hide_what_failed() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let start = |args: &'static [&'static str]| {
        let jobctl = &jobctl;
        async move { jobctl.ask(&[&["start"], args].concat()).await.is_done() }
    };
    start(&["--name", "build", "sh", "-c", "exit 9"]).await;
    start(&["--name", "check", "--after", "build", "true"]).await;
    start(&["--name", "fine", "true"]).await;
    let run = jobctl.ask(&["wait", "fine", "check", "build"]).await;
    run.is(9, "");
    let said: Vec<_> = run.stderr.lines().collect();
    assert_eq!(said.len(), 2, "{run:?}");
    assert!(
        said[0].starts_with("job check (") && said[0].contains("was stopped"),
        "{run:?}"
    );
    assert!(said[1].starts_with("job build (") && said[1].ends_with("failed: exit status 9"));
    jobctl.ask(&["wait", "fine", "check"]).await.is(143, "");
    cluster.end().await;
}

#[tokio::test]
async fn ctrl_c_detaches_from_what_has_not_ended_yet() {
    let cluster = TestCluster::start(1).await;
    let ended = cluster.sh("exit 0").await;
    let id = cluster.sh("sleep 600").await;
    cluster.end_of(ended).await;
    let jobctl = Jobctl::of(&cluster);
    let mut wait = jobctl.begin(&["wait", "-v", &ended.to_string(), "last"]);
    wait.says("POST /query 200", 2).await;
    wait.signal(Signal::INT);
    let run = wait.end().await;
    run.is(130, "");
    let note = "detached; job last not stopped: `jobctl stop last`\n";
    assert!(run.stderr.ends_with(note), "{run:?}");
    assert!(!cluster.job(id).await.state.is_final());
    cluster.end().await;
}

/// A scheduler that knows the job `a`, which has ended, and says nothing about
/// any other.
async fn taciturn(asked_of_another: Arc<Notify>) -> String {
    let ended = json!({
        "done": true, "error": false, "error_text": "", "job": {
            "id": "3f2a8b1c-9d4e-4f00-8000-000000000000", "name": "a",
            "state": "succeeded", "reason": null, "worker_id": null, "worker": null,
            "command": "true", "path": null, "args": [], "env": [], "cwd": null, "user": null,
            "timeout_ms": null, "pid": null, "exit_code": 0, "signal": null,
            "start_error": null, "output_bytes": 0, "created_at": "2026-01-02T03:04:05Z",
            "started_at": null, "ended_at": null
        }
    });
    let query = move |Json(body): Json<Value>| {
        let (ended, asked) = (ended.clone(), asked_of_another.clone());
        async move {
            if body["job_id"] != "a" {
                asked.notify_one();
                std::future::pending::<()>().await;
            }
            Json(ended)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/query", post(query));
    tokio::spawn(async move { axum::serve(listener, router).await });
    server
}

#[tokio::test]
async fn ctrl_c_is_heard_while_the_second_job_is_asked_about() {
    let asked = Arc::new(Notify::new());
    let server = taciturn(asked.clone()).await;
    let wait = Jobctl::at(server).begin(&["wait", "a", "b", "c"]);
    within(asked.notified()).await;
    wait.signal(Signal::INT);
    let run = wait.end().await;
    run.is(130, "");
    let note = "detached; jobs b c not stopped: `jobctl stop b c`\n";
    assert!(run.stderr.ends_with(note), "{run:?}");
}

#[tokio::test]
async fn jobs_are_read_from_standard_input() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let mut ids = String::new();
    for code in [3, 5, 4] {
        let id = cluster.sh(&format!("exit {code}")).await;
        ids.push_str(&format!("{id}\n"));
    }
    let all = jobctl.ask_with(&["wait", "-"], ids.as_bytes()).await;
    all.is(3, "");
    let said: Vec<_> = all.stderr.lines().collect();
    assert_eq!(said.len(), 3, "{all:?}");
    for ((line, id), code) in said.iter().zip(ids.lines()).zip([3, 5, 4]) {
        let short = id.replace('-', "");
        let words = format!("job {} failed: exit status {code}", &short[..12]);
        assert_eq!(*line, words);
    }
    let none = jobctl.ask_with(&["wait", "-"], b"").await;
    none.is(0, "");
    assert_eq!(none.stderr, "no jobs on standard input\n");
    let run = jobctl.ask_with(&["wait", "-"], b"a\xff").await;
    run.is(125, "");
    assert!(run.stderr.contains("standard input"), "{run:?}");
    cluster.end().await;
}
