//! `jobctl context`: the real binary, and which scheduler it asks.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};

use crate::{
    cluster::TestCluster,
    enrolled,
    typed::{Jobctl, nowhere},
};

fn added(jobctl: &Jobctl, name: &str, server: &str) {
    jobctl
        .run(&["context", "add", name, "--server", server])
        .is(0, "");
}

fn file(jobctl: &Jobctl) -> std::path::PathBuf {
    jobctl.client_dir().join("client.toml")
}

#[test]
fn contexts_are_added_chosen_shown_and_removed() {
    let jobctl = Jobctl::new();
    let none = jobctl.run(&["context", "list"]);
    none.is(0, "");
    let hint = "no contexts; add one with `jobctl context add NAME --server URL`\n";
    assert_eq!(none.stderr, hint);
    jobctl.run(&["context", "list", "-o", "json"]).is(0, "[]\n");
    let show = jobctl.run(&["context", "show"]);
    show.is(3, "");
    assert!(
        show.stderr.contains("`jobctl context use NAME`"),
        "{show:?}"
    );
    assert_eq!(fs::read_dir(jobctl.client_dir()).unwrap().count(), 0);

    added(&jobctl, "prod", "https://10.0.0.1:3000");
    // The first is the current one, and the second leaves it so.
    added(&jobctl, "test", "http://10.0.0.2:3000/");
    jobctl.run(&["context", "list"]).is(
        0,
        "NAME  CURRENT  SERVER                 CREDENTIAL\n\
         prod  yes      https://10.0.0.1:3000  -\n\
         test  -        http://10.0.0.2:3000   -\n",
    );
    jobctl.run(&["context", "list", "-q"]).is(0, "prod\ntest\n");
    let wide = jobctl.run(&["context", "list", "-o", "wide", "--no-headers"]);
    wide.is(
        0,
        "prod  yes  https://10.0.0.1:3000  -  -  -\n\
         test  -    http://10.0.0.2:3000   -  -  -\n",
    );
    jobctl.run(&["context", "use", "test"]).is(0, "");
    jobctl.run(&["context", "use", "prod"]).is(0, "");
    let shown = jobctl.run(&["context", "show"]);
    shown.is(
        0,
        "Context:    prod\nCurrent:    yes\nServer:     https://10.0.0.1:3000\n",
    );
    let json = jobctl.run(&["context", "show", "test", "-o", "json"]);
    let read: Value = serde_json::from_str(&json.stdout).unwrap();
    let whole = json!({
        "name": "test", "current": false, "server": "http://10.0.0.2:3000",
        "ca_file": null, "identity_file": null, "token_file": null
    });
    assert_eq!(read, whole);
    let yaml = jobctl.run(&["context", "list", "-o", "yaml"]);
    let read: Value = serde_saphyr::from_str(&yaml.stdout).unwrap();
    assert_eq!(read[1], whole);

    jobctl
        .run(&["context", "remove", "--yes", "prod"])
        .is(0, "");
    jobctl.run(&["context", "show"]).is(3, "");
    jobctl.run(&["context", "list", "-q"]).is(0, "test\n");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(file(&jobctl)), 0o600);
}

#[test]
fn what_is_refused_says_why_and_changes_nothing() {
    let jobctl = Jobctl::new();
    added(&jobctl, "prod", "http://10.0.0.1:3000");
    let before = fs::read(file(&jobctl)).unwrap();
    let loose = jobctl.folder().join("loose");
    fs::write(&loose, "secret").unwrap();
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).unwrap();
    for (args, code, words) in [
        (
            &["add", "prod", "--server", "http://x"][..],
            1,
            "there is a context prod already\nhint: pick another name, or remove it with \
             `jobctl context remove prod`",
        ),
        (&["add", "x"], 2, "--server <URL>"),
        (
            &["add", "x", "--server", "http://x", "--ca-file", "missing"],
            2,
            "/missing",
        ),
        (
            &["add", "x", "--server", "http://x", "--token-file", "loose"],
            2,
            "loose is not private: its mode is 0644\nhint: take it from others: `chmod 600 ",
        ),
        (
            &[
                "add",
                "x",
                "--server",
                "http://x",
                "--token-file",
                "a",
                "--identity-file",
                "b",
            ],
            2,
            "cannot be used with",
        ),
        (
            &["use", "prdo"],
            3,
            "context prdo not found, did you mean prod?",
        ),
        (
            &["show", "nope"],
            3,
            "list the contexts with `jobctl context list`",
        ),
        (&["remove", "nope", "--yes"], 3, "context nope not found"),
        (
            &["remove", "prod"],
            2,
            "without a terminal, `--yes` is needed",
        ),
    ] {
        let run = jobctl.run(&[&["context"], args].concat());
        run.is(code, "");
        assert!(run.stderr.contains(words), "{args:?}: {run:?}");
        assert_eq!(fs::read(file(&jobctl)).unwrap(), before, "{args:?}");
    }
}

#[tokio::test]
async fn on_a_terminal_a_removal_is_asked_about() {
    let jobctl = Jobctl::new();
    let own = jobctl.client_dir().join("prod.pem");
    let authorities = jobctl.folder().join("ca.pem");
    enrolled::admin(&own, &authorities);
    let add = ["context", "add", "prod", "--server", "https://x"];
    let (own_file, ca_file) = (own.to_str().unwrap(), authorities.to_str().unwrap());
    let files = ["--identity-file", own_file, "--ca-file", ca_file];
    jobctl.run(&[&add[..], &files[..]].concat()).is(0, "");
    let remove = ["context", "remove", "prod"];
    let seen = jobctl.on_terminal(&remove, "\n").await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let question = format!("remove the context prod and {}? [y/N] ", own.display());
    assert!(seen.shown.contains(&question), "{seen:?}");
    assert!(own.exists());
    let seen = jobctl.on_terminal(&remove, "y\n").await;
    assert_eq!(seen.code, Some(0), "{seen:?}");
    assert!(!own.exists());
    jobctl.run(&["context", "list"]).is(0, "");
}

#[tokio::test]
async fn commands_reach_the_cluster_of_the_context() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::new();
    let server = cluster.place.server();
    let (identity, authorities) = (
        jobctl.client_dir().join("here.pem"),
        jobctl.client_dir().join("here.ca.pem"),
    );
    enrolled::admin(&identity, &authorities);
    let (identity, authorities) = (identity.to_str().unwrap(), authorities.to_str().unwrap());
    let files = ["--identity-file", identity, "--ca-file", authorities];
    let add = ["context", "add", "here", "--server", &server];
    jobctl.run(&[&add[..], &files[..]].concat()).is(0, "");
    added(&jobctl, "nowhere", &nowhere());
    jobctl.run(&["context", "use", "nowhere"]).is(0, "");
    let unreachable = jobctl.ask(&["workers", "-o", "name"]).await;
    unreachable.is(5, "");
    let hint = "hint: see how it is reached with `jobctl context show nowhere`";
    assert!(unreachable.stderr.contains(hint), "{unreachable:?}");
    for args in [
        &["workers", "--context", "here"][..],
        &["--context", "here", "workers"],
        &["workers", "--server", &server],
    ] {
        let args = [args, &["-o", "name"]].concat();
        jobctl.ask(&args).await.is(0, "w1\n");
    }
    let typo = jobctl.ask(&["--context", "hre", "query", "x"]).await;
    typo.is(2, "");
    assert!(typo.stderr.contains("did you mean here?"), "{typo:?}");
    jobctl.run(&["context", "use", "here"]).is(0, "");
    jobctl.ask(&["workers", "-o", "name"]).await.is(0, "w1\n");
    // From anywhere, and the hint leads to the same place.
    let other = Jobctl::new();
    let dir = jobctl.client_dir().to_str().unwrap();
    let query = other.ask(&["query", "x", "--client-dir", dir]).await;
    query.is(3, "");
    let hint = format!("`jobctl --client-dir {dir} jobs`");
    assert!(query.stderr.contains(&hint), "{query:?}");
    cluster.end().await;
}

#[test]
fn a_variable_that_wins_is_named_when_a_context_is_chosen() {
    let jobctl = Jobctl::at(nowhere());
    added(&jobctl, "prod", "http://10.0.0.1:3000");
    let run = jobctl.run(&["context", "use", "prod"]);
    run.is(0, "");
    let note = "JOBCTL_SERVER is set, and wins over the current context\n";
    assert_eq!(run.stderr, note);
    // Nor is the file read then, or in the way.
    fs::write(file(&jobctl), "nonsense").unwrap();
    let run = jobctl.run(&["jobs"]);
    run.is(5, "");
}

#[test]
fn a_misspelt_key_is_named_with_the_nearest() {
    let jobctl = Jobctl::new();
    fs::write(file(&jobctl), "[contexts.prod]\nsever = \"http://x\"\n").unwrap();
    for args in [&["jobs"][..], &["context", "list"]] {
        let run = jobctl.run(args);
        run.is(2, "");
        let what = format!(
            "error: unknown key `contexts.prod.sever` in {}\n\
             hint: did you mean `contexts.prod.server`?\n",
            file(&jobctl).display()
        );
        assert_eq!(run.stderr, what, "{args:?}");
    }
}

#[test]
fn a_secret_that_others_may_read_is_not_used() {
    let jobctl = Jobctl::new();
    let token = jobctl.client_dir().join("token");
    fs::write(&token, "secret").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o640)).unwrap();
    let text =
        "current = \"prod\"\n[contexts.prod]\nserver = \"http://x\"\ntoken_file = \"token\"\n";
    fs::write(file(&jobctl), text).unwrap();
    let run = jobctl.run(&["jobs"]);
    run.is(2, "");
    assert!(run.stderr.contains("token is not private"), "{run:?}");
}
