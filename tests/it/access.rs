//! `jobctl token`, `cert`, `ca` and `audit`: who is let in, what they may do, and
//! what is told of it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use jobctl::identity::files;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    cluster::{Place, Process, TestCluster},
    enrolled,
    support::{Folder, eventually},
    typed::{Jobctl, Outcome, nowhere},
};

fn json(outcome: &Outcome) -> Value {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// What `jobctl token create` prints.
async fn token(admin: &Jobctl, args: &[&str]) -> String {
    let made = admin.ask(&[&["token", "create"], args].concat()).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    assert_eq!(made.stdout.lines().count(), 1, "{made:?}");
    made.stdout.trim_end().to_owned()
}

/// Somebody who has just logged in.
async fn user(admin: &Jobctl, role: &str, name: &str) -> Jobctl {
    let token = token(admin, &["--role", role, "--name", name]).await;
    let user = Jobctl::new();
    user.ask(&["login", "--name", "c", &token]).await.is(0, "");
    user
}

async fn refused(jobctl: &Jobctl, args: &[&str], words: &str) {
    let run = jobctl.ask(args).await;
    run.is(4, "");
    assert!(run.stderr.contains(words), "{run:?}");
    assert!(run.stderr.contains("\nhint: "), "{run:?}");
}

#[tokio::test]
async fn a_token_lets_somebody_in_who_may_do_what_the_role_may() {
    let cluster = TestCluster::start(1).await;
    let admin = Jobctl::of(&cluster);
    let viewer = user(&admin, "viewer", "vera").await;
    let operator = user(&admin, "operator", "otto").await;

    let shown = viewer.run(&["context", "show"]);
    assert!(
        shown.stdout.contains("\nYou:        viewer vera\n"),
        "{shown:?}"
    );
    assert!(shown.stdout.contains("\nGood until: "), "{shown:?}");
    let shown = json(&viewer.run(&["context", "show", "-o", "json"]));
    assert_eq!(shown["name"], "c");
    assert_eq!(shown["who"]["role"], "viewer");
    assert_eq!(shown["who"]["name"], "vera");

    viewer.ask(&["workers", "-o", "name"]).await.is(0, "w1\n");
    let start = ["start", "--", "true"];
    refused(&viewer, &start, "viewer vera may not POST /start").await;
    let started = operator.ask(&start).await;
    assert_eq!(started.code, Some(0), "{started:?}");
    for args in [
        &["token", "list"][..],
        &["token", "create", "--role", "admin"],
        &["cert", "list"],
        &["cert", "revoke", "--yes", "vera"],
        &["ca", "rotate", "--yes"],
        &["audit"],
    ] {
        refused(&operator, args, "operator otto may not ").await;
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_token_says_what_it_is_and_is_good_once() {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let made = admin
        .ask(&["token", "create", "--role", "worker", "-o", "json"])
        .await;
    assert_eq!(made.stderr, "");
    let made = json(&made);
    let (id, token) = (
        made["id"].as_str().unwrap(),
        made["token"].as_str().unwrap(),
    );
    assert_eq!(
        (&made["kind"], &made["role"]),
        (&"join".into(), &"worker".into())
    );
    let joined_at = format!("{token}@{}", cluster.place.grpc());
    assert_eq!(made["invitation"], joined_at);

    let args = ["--role", "viewer", "--name", "vera", "--ttl", "10m"];
    let viewer = self::token(&admin, &args).await;
    assert!(
        viewer.ends_with(&format!("@{}", cluster.place.http())),
        "{viewer}"
    );
    let jobctl = Jobctl::new();
    jobctl
        .ask(&["login", "--name", "a", &viewer])
        .await
        .is(0, "");
    refused(
        &jobctl,
        &["login", "--name", "b", &viewer],
        "was used before",
    )
    .await;

    let list = admin.ask(&["token", "list", "--no-headers"]).await;
    let [used, good] = list.stdout.lines().collect::<Vec<_>>()[..] else {
        panic!("{list:?}");
    };
    assert!(used.contains("  join  viewer  vera  used  in "), "{used}");
    assert!(good.contains("  join  worker  -     good  in "), "{good}");
    let all = json(&admin.ask(&["token", "list", "-o", "json"]).await);
    assert_eq!(all[1]["id"], id);
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert!(all[1].get("token").is_none());
    admin
        .ask(&["token", "list", "-o", "name"])
        .await
        .is(0, &format!("vera\n{id}\n"));

    admin
        .ask_with(&["token", "revoke", "-"], id.as_bytes())
        .await
        .is(0, "");
    let again = admin.ask(&["token", "revoke", &id[..4], "zzzz"]).await;
    again.is(3, "");
    assert!(again.stderr.contains("is revoked already\n"), "{again:?}");
    assert!(
        again.stderr.contains("error: token zzzz not found\n"),
        "{again:?}"
    );
    assert!(again.stderr.contains(" token list`"), "{again:?}");
    let list = admin.ask(&["token", "list"]).await;
    assert!(list.stdout.contains("  revoked  "), "{list:?}");
    cluster.end().await;
}

#[tokio::test]
async fn a_bearer_token_in_a_file_is_enough_for_a_program() {
    let cluster = TestCluster::start(1).await;
    let admin = Jobctl::of(&cluster);
    let create = [
        "token", "create", "--role", "operator", "--bearer", "--name", "ci",
    ];
    let create = [&create[..], &["--out", "ci.token"]].concat();
    admin.ask(&create).await.is(0, "");
    let file = admin.folder().join("ci.token");
    let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    let kept = fs::read(&file).unwrap();
    let again = admin.ask(&create).await;
    again.is(1, "");
    assert!(
        again.stderr.starts_with("error: cannot make ci.token\n"),
        "{again:?}"
    );
    assert_eq!(fs::read(&file).unwrap(), kept);
    let worker = ["token", "create", "--role", "worker", "--bearer"];
    admin.ask(&worker).await.is(2, "");

    let ca = admin.client_dir().join("test.ca.pem");
    let program = Jobctl::new();
    let ask = async |args: &[&str], token: &Path| {
        let mut command = program.command(args);
        command
            .env("JOBCTL_SERVER", cluster.place.server())
            .env("JOBCTL_CA_FILE", &ca)
            .env("JOBCTL_TOKEN_FILE", token);
        crate::typed::Typed::new(command).end().await
    };
    let run = ask(&["start", "--wait", "--", "true"], &file).await;
    assert_eq!(run.code, Some(0), "{run:?}");
    let run = ask(&["audit"], &file).await;
    assert_eq!(run.code, Some(4), "{run:?}");
    assert!(
        run.stderr.contains("operator ci may not GET /audit"),
        "{run:?}"
    );
    // The flag wins over the certificate of a context.
    let run = admin
        .ask(&["audit", "--token-file", file.to_str().unwrap()])
        .await;
    assert!(run.stderr.contains("operator ci may not"), "{run:?}");

    let id = String::from_utf8(kept).unwrap();
    let (id, _) = id.split_once('.').unwrap();
    admin.ask(&["token", "revoke", id]).await.is(0, "");
    let run = ask(&["workers"], &file).await;
    assert_eq!(run.code, Some(4), "{run:?}");
    assert!(
        run.stderr.contains("hint: have an admin make another"),
        "{run:?}"
    );
    cluster.end().await;
}

#[tokio::test]
async fn who_is_revoked_is_refused_from_the_next_call_on() {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let otto = user(&admin, "operator", "otto").await;
    otto.ask(&["jobs"]).await.is(0, "");
    let list = json(&admin.ask(&["cert", "list", "-o", "json"]).await);
    let [one] = &list.as_array().unwrap()[..] else {
        panic!("{list}");
    };
    assert_eq!(
        (&one["role"], &one["name"]),
        (&"operator".into(), &"otto".into())
    );
    let id = one["id"].as_str().unwrap();

    let unasked = admin.ask(&["cert", "revoke", "otto"]).await;
    unasked.is(2, "");
    assert!(unasked.stderr.contains("`--yes` is needed"), "{unasked:?}");
    let line = "\nUsage: jobctl cert revoke [OPTIONS] <WHO>...\n";
    assert!(unasked.stderr.contains(line), "{unasked:?}");
    let seen = admin.on_terminal(&["cert", "revoke", "otto"], "n\n").await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let question = format!("revoke operator otto ({})", &id.replace('-', "")[..12]);
    assert!(seen.shown.contains(&question), "{seen:?}");
    otto.ask(&["jobs"]).await.is(0, "");

    let revoked = admin
        .ask(&["cert", "revoke", "--yes", "nobody", &id[..8]])
        .await;
    revoked.is(3, "");
    assert!(
        revoked.stderr.contains("certificate nobody not found"),
        "{revoked:?}"
    );
    // To the second, and it stays so.
    let jobs = otto.ask(&["jobs"]).await;
    let (_, at) = jobs
        .stderr
        .split_once("the certificate was revoked at ")
        .unwrap();
    let (at, _) = at.split_once('\n').unwrap();
    assert_eq!(at.len(), "2026-01-02T03:04:05Z".len(), "{jobs:?}");
    admin.ask(&["cert", "revoke", "--yes", id]).await.is(0, "");
    refused(&otto, &["jobs"], at).await;
    let last = json(&admin.ask(&["audit", "-n", "1", "-o", "json"]).await);
    assert_eq!(
        (&last["who"], &last["who_id"], &last["result"]),
        (&"operator otto".into(), &id.into(), &"revoked".into())
    );
    // An id that nobody has is misspelt.
    let nobody = uuid::Uuid::new_v4().to_string();
    let missed = admin.ask(&["cert", "revoke", "--yes", &nobody]).await;
    missed.is(3, "");
    assert!(
        missed
            .stderr
            .contains(&format!("certificate {nobody} not found")),
        "{missed:?}"
    );
    let list = admin.ask(&["cert", "list", "--no-headers"]).await;
    assert!(
        list.stdout.contains("  operator  otto  revoked ") && list.stdout.contains("s ago  -  "),
        "{list:?}"
    );

    let root = user(&admin, "admin", "root").await;
    let last = root.ask(&["cert", "revoke", "--yes", "root"]).await;
    last.is(0, "");
    assert!(
        last.stderr.contains("warning: no admin is left then"),
        "{last:?}"
    );
    assert!(
        last.stderr
            .contains("warning: that is what this command shows"),
        "{last:?}"
    );
    refused(&root, &["jobs"], "was revoked").await;
    cluster.end().await;
}

#[tokio::test]
async fn by_name_everything_is_revoked_of_who_logged_in_twice() {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let laptop = user(&admin, "operator", "alice").await;
    let desktop = user(&admin, "operator", "alice").await;
    let seen = admin.on_terminal(&["cert", "revoke", "alice"], "n\n").await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let question = "revoke 2 certificates for good: operator alice (";
    assert!(seen.shown.contains(question), "{seen:?}");
    for alice in [&laptop, &desktop] {
        alice.ask(&["jobs"]).await.is(0, "");
    }
    let revoke = ["cert", "revoke", "--yes", "alice"];
    admin.ask(&revoke).await.is(0, "");
    for alice in [&laptop, &desktop] {
        refused(alice, &["jobs"], "was revoked").await;
    }
    cluster.end().await;
}

#[tokio::test]
async fn whoever_was_revoked_logs_in_in_the_place_of_the_context() {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let otto = user(&admin, "operator", "otto").await;
    let vera = token(&admin, &["--role", "viewer", "--name", "vera"]).await;
    otto.ask(&["login", "--name", "d", &vera]).await.is(0, "");
    let file = |name| fs::read(otto.client_dir().join(name)).unwrap();
    let (other, before) = (file("d.pem"), file("c.pem"));
    admin
        .ask(&["cert", "revoke", "--yes", "otto"])
        .await
        .is(0, "");
    let run = otto.ask(&["jobs"]).await;
    run.is(4, "");
    let login = "login --replace --name c TOKEN@HOST:PORT`\n";
    assert!(run.stderr.ends_with(login), "{run:?}");

    let again = token(&admin, &["--role", "operator", "--name", "otto"]).await;
    let taken = otto.ask(&["login", "--name", "c", &again]).await;
    taken.is(1, "");
    assert!(taken.stderr.contains("a context c already"), "{taken:?}");
    assert!(taken.stderr.contains("`--replace`"), "{taken:?}");
    assert_eq!(file("c.pem"), before);
    // What another context shows is not written over, and the token is not spent.
    let config = otto.client_dir().join("client.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"d.pem\"", "\"e.pem\"")).unwrap();
    fs::write(otto.client_dir().join("e.pem"), &other).unwrap();
    let of_another = otto.ask(&["login", "--name", "e", &again]).await;
    of_another.is(1, "");
    assert!(
        of_another.stderr.contains("e.pem belongs to context d"),
        "{of_another:?}"
    );

    otto.ask(&["login", "--replace", "--name", "c", &again])
        .await
        .is(0, "");
    otto.ask(&["jobs"]).await.is(0, "");
    assert_ne!(file("c.pem"), before);
    assert_eq!(file("e.pem"), other);
    otto.ask(&["context", "list", "-o", "name"])
        .await
        .is(0, "c\nd\n");
    cluster.end().await;
}

#[tokio::test]
async fn a_token_at_the_wrong_place_says_where_it_belongs() {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let person = token(&admin, &["--role", "viewer"]).await;
    let worker = token(&admin, &["--role", "worker"]).await;
    let at = |token: &str, address: String| {
        let (token, _) = token.split_once('@').unwrap();
        format!("{token}@{address}")
    };
    let (http, grpc) = (cluster.place.http(), cluster.place.grpc());
    let jobctl = Jobctl::new();
    let join = [
        "worker",
        "--name",
        "w9",
        "--grpc-addr",
        "127.0.0.1:0",
        "--data-dir",
        "w",
    ];
    for (args, code, words, hint) in [
        (
            vec!["login", &*at(&person, grpc.clone())],
            5,
            "",
            "HTTP address, as TOKEN@HOST:3000",
        ),
        (
            vec!["login", &*at(&worker, http.clone())],
            4,
            "for the role worker",
            "`jobctl worker --join`",
        ),
        (
            [&join[..], &["--join", &*at(&person, grpc)]].concat(),
            1,
            "for the role viewer",
            "`jobctl login`",
        ),
        (
            [&join[..], &["--join", &*at(&worker, http)]].concat(),
            1,
            ": what answers there does not speak gRPC\n",
            "gRPC address, as TOKEN@HOST:50000",
        ),
    ] {
        let run = jobctl.ask(&args).await;
        assert_eq!(run.code, Some(code), "{args:?}: {run:?}");
        assert!(run.stderr.contains(words), "{args:?}: {run:?}");
        let (_, said) = run.stderr.split_once("\nhint: ").unwrap();
        assert!(said.contains(hint), "{args:?}: {run:?}");
    }
    cluster.end().await;
}

#[test]
fn whom_a_context_trusts_is_shown_when_its_own_certificate_has_expired() {
    let jobctl = Jobctl::at("https://127.0.0.1:1");
    let file = jobctl.client_dir().join("test.pem");
    let who = crate::attacker::Shown::of(&file).identity();
    let expired = crate::attacker::Maker::genuine().make(&crate::attacker::Forged {
        valid: (-7200, -3600),
        ..crate::attacker::Forged::of(&who)
    });
    let key = rcgen::KeyPair::try_from(&expired.key).unwrap();
    files::write_secret(&file, &expired.chain, Some(&key)).unwrap();
    let fingerprint = enrolled::authority().fingerprint();
    let shown = jobctl.run(&["ca", "show", "-q"]);
    shown.is(0, &format!("{fingerprint}\n"));
    let note = "your own certificate expired at 2";
    assert!(shown.stderr.contains(note), "{shown:?}");
    let jobs = jobctl.run(&["jobs"]);
    assert!(jobs.stderr.contains(" expired at 2"), "{jobs:?}");
    assert_eq!(jobs.code, Some(2), "{jobs:?}");
}

#[tokio::test]
async fn the_audit_log_is_shown_followed_and_verified() {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    token(&admin, &["--role", "viewer", "--name", "vera"]).await;
    token(&admin, &["--role", "worker"]).await;

    let raw = admin.ask(&["audit"]).await;
    assert_eq!(raw.code, Some(0), "{raw:?}");
    let lines: Vec<&str> = raw.stdout.lines().collect();
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(last["action"], "create token");
    assert_eq!(last["number"], lines.len());
    let tail = admin.ask(&["audit", "-n", "1", "-o", "json"]).await;
    tail.is(0, &format!("{}\n", lines.last().unwrap()));
    let http = cluster.place.http();
    let shown = crate::attacker::Shown::of(&admin.client_dir().join("test.pem"));
    for nonsense in [
        "tail=-1",
        "tail=x",
        "after=-1",
        "tail=1&after=1",
        "tail=1.5",
    ] {
        let call = format!("GET /audit?{nonsense}");
        let answer = crate::attacker::http(&http, Some(&shown), &call, "", "").await;
        let refused = crate::attacker::Outcome::Answered(400);
        assert_eq!(answer.outcome, refused, "{nonsense}");
    }
    let all = admin.ask(&["audit", "-n", "1000"]).await;
    assert_eq!(all.stdout, raw.stdout);
    let table = admin.ask(&["audit", "-n", "1", "-o", "table"]).await;
    assert!(table.stdout.contains("Z  admin test  "), "{table:?}");
    assert!(table.stdout.contains("  create token  ok  "), "{table:?}");

    let verified = admin.ask(&["audit", "--verify"]).await;
    let (count, hash) = (lines.len(), last["hash"].as_str().unwrap());
    verified.is(
        0,
        &format!("{count} lines hold: 1 to {count}\n{count} {hash}\n"),
    );
    let document = json(&admin.ask(&["audit", "--verify", "-o", "json"]).await);
    assert_eq!(document["last"], count);
    assert_eq!(document["hash"], hash);
    assert_eq!(document["broken"], Value::Null);

    let mut follower = admin.begin(&["audit", "--follow", "-n", "0"]);
    // It may begin before or behind the next line, but not behind all of them.
    let line = {
        let next = follower.line();
        tokio::pin!(next);
        loop {
            tokio::select! {
                line = &mut next => break line,
                _ = token(&admin, &["--role", "viewer"]) => {}
            }
        }
    };
    assert!(line.contains("\"action\":\"create token\""), "{line}");
    follower.signal(Signal::INT);
    assert_eq!(follower.end().await.code, Some(130));
    cluster.end().await;
}

#[tokio::test]
async fn following_the_audit_log_goes_on_behind_a_scheduler_that_was_restarted() {
    let mut cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    token(&admin, &["--role", "viewer"]).await;
    let mut follower = admin.begin(&["audit", "--follow"]);
    let mut numbers = Vec::new();
    let mut next = async |follower: &mut crate::typed::Typed| {
        let line: Value = serde_json::from_str(&follower.line().await).unwrap();
        numbers.push(line["number"].as_i64().unwrap());
        line["action"] == "create token"
    };
    while !next(&mut follower).await {}
    cluster.restart_scheduler().await;
    token(&admin, &["--role", "viewer"]).await;
    while !next(&mut follower).await {}
    let expected: Vec<i64> = (1..).take(numbers.len()).collect();
    assert_eq!(numbers, expected);
    follower.signal(Signal::INT);
    assert_eq!(follower.end().await.code, Some(130));
    cluster.end().await;
}

#[tokio::test]
async fn everybody_goes_on_where_the_authority_is_changed_with_an_overlap() {
    let cluster = TestCluster::start(1).await;
    let admin = Jobctl::of(&cluster);
    let otto = user(&admin, "operator", "otto").await;
    let shown = |jobctl: &Jobctl| {
        let run = jobctl.run(&["ca", "show", "-q"]);
        assert_eq!(run.code, Some(0), "{run:?}");
        run.stdout
    };
    let before = shown(&admin);
    assert_eq!(before.lines().count(), 1);
    let unasked = admin.ask(&["ca", "rotate"]).await;
    unasked.is(2, "");
    let rotated = admin.ask(&["ca", "rotate", "--yes"]).await;
    assert_eq!(rotated.code, Some(0), "{rotated:?}");
    assert_eq!(shown(&admin), format!("{}{before}", rotated.stdout));
    assert_eq!(shown(&otto), before);
    let table = admin.run(&["ca", "show"]);
    assert!(table.stdout.starts_with("FINGERPRINT "), "{table:?}");

    for jobctl in [&admin, &otto] {
        let run = jobctl.ask(&["start", "--wait", "--", "true"]).await;
        assert_eq!(run.code, Some(0), "{run:?}");
    }
    let vera = user(&admin, "viewer", "vera").await;
    vera.ask(&["workers", "-o", "name"]).await.is(0, "w1\n");
    assert_eq!(shown(&vera), shown(&admin));
    let again = admin.ask(&["ca", "rotate", "--yes"]).await;
    again.is(1, "");
    assert!(
        again.stderr.contains("ca rotate --overlap 0s`"),
        "{again:?}"
    );
    cluster.end().await;
}

#[tokio::test]
async fn without_an_overlap_nobody_is_accepted_who_was() {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let otto = user(&admin, "operator", "otto").await;
    let rotate = ["ca", "rotate", "--yes", "--overlap", "0s", "-o", "json"];
    let rotated = admin.ask(&rotate).await;
    assert_eq!(json(&rotated)["overlap_until"], Value::Null);
    assert!(
        rotated.stderr.contains("start the scheduler again"),
        "{rotated:?}"
    );
    let fingerprint = json(&rotated)["fingerprint"].as_str().unwrap().to_owned();
    admin
        .run(&["ca", "show", "-q"])
        .is(0, &format!("{fingerprint}\n"));
    // The one trusts the scheduler and is not accepted, the other does not.
    refused(
        &admin,
        &["jobs"],
        "does not accept the client's certificate",
    )
    .await;
    let distrusts = otto.ask(&["jobs"]).await;
    distrusts.is(5, "");
    assert!(
        distrusts
            .stderr
            .contains("error: cannot trust what answers"),
        "{distrusts:?}"
    );
    assert!(!distrusts.stderr.contains("UnknownIssuer"), "{distrusts:?}");
    cluster.end().await;
}

#[tokio::test]
async fn whoever_starts_the_scheduler_again_is_an_admin_again() {
    let (place, data) = (Place::new(), Folder::new());
    let scheduler = Process::scheduler(place, data.path());
    let client_dir = data.path().join("client");
    let identity = client_dir.join("local.pem");
    eventually(|| client_dir.join("client.toml").exists()).await;
    let jobctl = Jobctl::new();
    let ask = async |args: &[&str]| {
        let client_dir = ["--client-dir", client_dir.to_str().unwrap()];
        jobctl.ask(&[&client_dir, args].concat()).await
    };
    ask(&["jobs"]).await.is(0, "");
    let before = fs::read(&identity).unwrap();
    let rotated = ask(&["ca", "rotate", "--yes", "--overlap", "0s"]).await;
    assert_eq!(rotated.code, Some(0), "{rotated:?}");
    assert_eq!(ask(&["jobs"]).await.code, Some(4));
    scheduler.kill();
    let _scheduler = Process::scheduler(place, data.path());
    eventually(|| fs::read(&identity).is_ok_and(|now| now != before)).await;
    ask(&["jobs"]).await.is(0, "");
    ask(&["context", "list", "-q"]).await.is(0, "local\n");
}

#[tokio::test]
async fn what_is_wrong_with_a_connection_is_said_in_words() {
    let cluster = TestCluster::start(0).await;
    let plain = format!("http://{}", cluster.place.http());
    let run = Jobctl::at(&plain).ask(&["jobs"]).await;
    run.is(5, "");
    let hint = format!(
        "\nhint: reach it as `--server {}`\n",
        cluster.place.server()
    );
    assert!(run.stderr.ends_with(&hint), "{run:?}");

    // Whoever shows nothing is asked for it.
    let stranger = Jobctl::new();
    let ca = stranger.client_dir().join("ca.pem");
    let authorities = jobctl::identity::files::pem(&enrolled::authority().roots());
    fs::write(&ca, authorities).unwrap();
    let server = cluster.place.server();
    let args = [
        "jobs",
        "--server",
        &server,
        "--ca-file",
        ca.to_str().unwrap(),
    ];
    refused(&stranger, &args, "there is no certificate and no token").await;

    let other = jobctl::identity::ca::Ca::create("other").unwrap();
    fs::write(&ca, jobctl::identity::files::pem(&other.roots())).unwrap();
    let run = stranger.ask(&args).await;
    run.is(5, "");
    assert!(
        run.stderr
            .contains("its certificate is of another authority"),
        "{run:?}"
    );
    assert!(run.stderr.contains("ca show`"), "{run:?}");
    cluster.end().await;

    let listener = tokio::net::TcpListener::bind(Place::new().http())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let serving = axum::serve(listener, axum::Router::new());
    let serving = tokio::spawn(std::future::IntoFuture::into_future(serving));
    let run = Jobctl::at(format!("https://{address}"))
        .ask(&["jobs"])
        .await;
    run.is(5, "");
    assert!(run.stderr.contains(" speaks no TLS\n"), "{run:?}");
    serving.abort();
}

#[test]
fn a_fresh_machine_is_told_what_to_do() {
    let run = Jobctl::new().run(&["jobs"]);
    run.is(2, "");
    assert!(run.stderr.contains("`jobctl scheduler`"), "{run:?}");
    assert!(
        run.stderr.contains("`jobctl login TOKEN@HOST:PORT`"),
        "{run:?}"
    );
    let missing = Jobctl::new().run(&["jobs", "--server", &nowhere(), "--token-file", "x"]);
    missing.is(2, "");
    assert!(
        missing
            .stderr
            .starts_with("error: cannot use x\n  cause: No such file or directory"),
        "{missing:?}"
    );
    let missing = Jobctl::new().run(&["jobs", "--server", &nowhere(), "--ca-file", "/nonexistent"]);
    missing.is(2, "");
    let (first, cause) = missing.stderr.split_once('\n').unwrap();
    assert_eq!(first, "error: cannot use /nonexistent");
    assert!(cause.contains("No such file or directory"), "{missing:?}");
}
