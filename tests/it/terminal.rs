//! What a terminal gets to see of what jobs and schedulers say, and what others
//! get.

use std::future::IntoFuture as _;

use axum::{Json, Router, http::StatusCode, routing::get};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{cluster::TestCluster, typed::Jobctl};

/// Writes to the clipboard of a terminal.
const CLIPBOARD: &str = "\u{1b}]52;c;ZXZpbA==\u{7}";
const PICTURE: &str = "^[]52;c;ZXZpbA==^G";

const SCRIPT: &str = "printf '\\033]52;c;ZXZpbA==\\007\\n'; \
    printf 'safe\\rrm\\342\\200\\256\\r\\n' >&2";
const STDERR: &str = "safe\rrm\u{202e}\r\n";
const STDERR_PICTURE: &str = "safe^Mrm<U+202E>\r\n";

#[tokio::test]
async fn output_acts_on_a_terminal_only_if_it_is_asked_for_raw() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let id = cluster.sh(SCRIPT).await;
    cluster.end_of(id).await;
    for args in [
        &["logs", "last"][..],
        &["logs", "--follow", "--timestamps", "last"],
        &["start", "--follow", "--", "sh", "-c", SCRIPT],
    ] {
        let seen = jobctl.on_terminal(args, "").await;
        assert_eq!(seen.code, Some(0), "{seen:?}");
        assert!(!seen.shown.contains(CLIPBOARD), "{seen:?}");
        assert!(seen.shown.contains(PICTURE), "{seen:?}");
        assert!(seen.shown.contains(STDERR_PICTURE), "{seen:?}");
        let raw = jobctl
            .on_terminal(&[&args[..1], &["--raw"], &args[1..]].concat(), "")
            .await;
        assert!(raw.shown.contains(CLIPBOARD), "{raw:?}");
        assert!(raw.shown.contains(STDERR), "{raw:?}");
    }
    let piped = jobctl.ask(&["logs", "last"]).await;
    piped.is(0, &format!("{CLIPBOARD}\n"));
    assert_eq!(piped.stderr, STDERR);
    cluster.end().await;
}

#[tokio::test]
async fn the_job_of_dev_acts_on_a_terminal_only_if_it_is_asked_for_raw() {
    let jobctl = Jobctl::new();
    let seen = jobctl
        .on_terminal(&["dev", "--", "sh", "-c", SCRIPT], "")
        .await;
    assert_eq!(seen.code, Some(0), "{seen:?}");
    assert!(!seen.shown.contains(CLIPBOARD), "{seen:?}");
    assert!(seen.shown.contains(PICTURE), "{seen:?}");
    let raw = ["dev", "--raw", "--", "sh", "-c", SCRIPT];
    let raw = jobctl.on_terminal(&raw, "").await;
    assert!(raw.shown.contains(CLIPBOARD), "{raw:?}");
}

#[tokio::test]
async fn half_a_character_is_shown_at_the_end() {
    let cluster = TestCluster::start(1).await;
    let id = cluster.sh("printf 'a\\342\\202'; printf 'b\\r' >&2").await;
    cluster.end_of(id).await;
    let seen = Jobctl::of(&cluster)
        .on_terminal(&["logs", "last"], "")
        .await;
    for end in ["a", "<E2><82>", "b", "^M"] {
        assert!(seen.shown.contains(end), "{seen:?}");
    }
    cluster.end().await;
}

/// Something that answers like a scheduler, and means harm.
async fn hostile() -> String {
    let words = format!("no\u{9b}2J{CLIPBOARD}\nerror: \u{202e}");
    let refusal = json!({"error": words, "code": "job_not_found"});
    let version = json!({"version": words});
    let router = Router::new()
        .route("/version", get(move || async { Json(version) }))
        .fallback(move || async { (StatusCode::NOT_FOUND, Json(refusal)) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    server
}

#[tokio::test]
async fn a_wrong_word_of_a_command_line_does_not_act_on_a_terminal() {
    let args = ["jobs", "--state", CLIPBOARD];
    let seen = Jobctl::new().on_terminal(&args, "").await;
    assert_eq!(seen.code, Some(2), "{seen:?}");
    assert!(seen.shown.contains(PICTURE), "{seen:?}");
    assert!(!seen.shown.contains(CLIPBOARD), "{seen:?}");
}

#[tokio::test]
async fn what_a_scheduler_says_does_not_act_on_a_terminal() {
    let jobctl = Jobctl::at(hostile().await);
    for (args, code) in [
        (&["query", "x"][..], 3),
        (&["jobs"], 3),
        (&["logs", "-f", "x"], 125),
        (&["version"], 0),
        (&["version", "-o", "json"], 0),
        (&["version", "-o", "yaml"], 0),
    ] {
        let seen = jobctl.on_terminal(args, "").await;
        assert_eq!(seen.code, Some(code), "{args:?}: {seen:?}");
        assert!(seen.shown.contains("52;c;ZXZpbA=="), "{args:?}: {seen:?}");
        for raw in ["\u{1b}]", "\u{9b}", "\u{202e}", "\nerror: "] {
            assert!(!seen.shown.contains(raw), "{args:?}: {seen:?}");
        }
    }
    let seen = jobctl.on_terminal(&["query", "x"], "").await;
    let shown = format!("no<U+009B>2J{PICTURE}\\nerror: <U+202E>");
    assert!(seen.shown.contains(&shown), "{seen:?}");
}
