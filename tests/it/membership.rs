//! Workers that are not accepted any more: what they do, and how they join again.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use jobctl::{
    api::{RevokeCertificateRequest, WorkerState},
    identity::{Identity, ca::Ca, files::Pem},
};

use crate::{
    cluster::{Place, Process, TestCluster},
    support::{Folder, binary, eventually, gone, processes_of, within},
    typed::{Jobctl, Outcome},
};

/// A worker that has not joined, or joins again.
fn joining(place: Place, data: &Path, token: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(["worker", "--name", "w1", "--log-level", "warn"]);
    command.args(["--grpc-addr", &place.worker(1), "--join", token]);
    command.arg("--data-dir").arg(data);
    command
}

/// A command that ends by itself.
async fn end(mut command: Command) -> Outcome {
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    within(ended).await.unwrap().into()
}

fn identity(data: &Path) -> Identity {
    let pem = Pem::read_secret(&data.join("identity.pem")).unwrap();
    Identity::of(&pem.unwrap().certificates[0]).unwrap()
}

async fn token(admin: &Jobctl, args: &[&str]) -> String {
    let create = ["token", "create", "--role", "worker"];
    let made = admin.ask(&[&create, args].concat()).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    made.stdout.trim_end().to_owned()
}

/// A cluster whose one worker is a process that joined.
async fn joined(data: &Path) -> (TestCluster, Jobctl, Process) {
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let token = token(&admin, &[]).await;
    let mut command = joining(cluster.place, data, &token);
    command.stderr(Stdio::piped());
    let worker = Process::run(command);
    cluster.ready(1).await;
    (cluster, admin, worker)
}

#[tokio::test]
async fn a_revoked_worker_ends_and_its_jobs_go_on_until_it_joins_again() {
    let folder = Folder::new();
    let data = folder.path().join("w1");
    let (cluster, admin, worker) = joined(&data).await;
    let job = cluster.sh("exec sleep 600").await;
    eventually(|| !processes_of(job).is_empty()).await;
    let before = identity(&data);
    let revoked = RevokeCertificateRequest { id: before.id };
    within(cluster.client.revoke_certificate(&revoked))
        .await
        .unwrap();
    let (code, said) = worker.end_of().await;
    assert_eq!(code, Some(4), "{said}");
    let errors = said.matches("error: the scheduler does not accept worker w1 any more: ");
    assert_eq!(errors.count(), 1, "{said}");
    assert!(
        said.contains(": the certificate was revoked at 2"),
        "{said}"
    );
    assert!(
        said.contains("jobctl token create --role worker --name w1`"),
        "{said}"
    );
    assert!(!said.contains("cannot register, trying again"), "{said}");
    let pids = processes_of(job);
    assert!(!pids.is_empty());

    // As it is started every day, it says the same.
    let token = token(&admin, &[]).await;
    let mut again = joining(cluster.place, &data, &token);
    again.args(["--scheduler", &cluster.place.grpc()]);
    let daily = {
        let mut command = Command::new(binary());
        command.args(["worker", "--name", "w1", "--log-level", "warn"]);
        command.args(["--grpc-addr", &cluster.place.worker(1)]);
        command.arg("--data-dir").arg(&data);
        end(command).await
    };
    assert_eq!(daily.code, Some(4), "{daily:?}");
    assert!(daily.stderr.contains(" was revoked at "), "{daily:?}");

    let worker = Process::run(again);
    let seen = cluster.worker_is("w1", WorkerState::Ready).await;
    let after = identity(&data);
    assert_eq!(seen.id.to_string(), after.id.to_string());
    assert_ne!(after.id, before.id);
    assert_eq!(after.cluster, before.cluster);
    // On record they were lost when it was revoked: what lives of them is ended.
    eventually(|| pids.iter().all(|pid| gone(pid))).await;
    worker.kill();
    cluster.end().await;
}

#[tokio::test]
async fn behind_another_authority_a_worker_joins_as_the_one_it_was() {
    let folder = Folder::new();
    let data = folder.path().join("w1");
    let (cluster, admin, worker) = joined(&data).await;
    let before = identity(&data);
    // A token of the first time changes nothing.
    worker.kill();
    let spent = format!("{}@{}", elsewhere_token(&admin).await, cluster.place.grpc());
    let worker = Process::run(joining(cluster.place, &data, &spent));
    cluster.worker_is("w1", WorkerState::Ready).await;
    worker.kill();

    let bearer = ["--role", "admin", "--bearer", "--out", "admin.token"];
    let bearer = admin
        .ask(&[&["token", "create"], &bearer[..]].concat())
        .await;
    assert_eq!(bearer.code, Some(0), "{bearer:?}");
    let rotated = admin
        .ask(&["ca", "rotate", "--yes", "--overlap", "0s"])
        .await;
    assert_eq!(rotated.code, Some(0), "{rotated:?}");
    let shown = ["--token-file", "admin.token"];
    // Its name is its own, and an old key proves nothing any more.
    let unnamed = token(&admin, &shown).await;
    let refused = end(joining(cluster.place, &data, &unnamed)).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("worker name w1 is taken by"),
        "{refused:?}"
    );
    assert!(
        refused.stderr.contains("--role worker --name NAME`"),
        "{refused:?}"
    );
    assert_eq!(identity(&data), before);

    let named = token(&admin, &[&shown[..], &["--name", "w1"]].concat()).await;
    let worker = Process::run(joining(cluster.place, &data, &named));
    let ready = async || {
        let workers = admin
            .ask(&[&["workers", "-o", "jsonl"], &shown[..]].concat())
            .await;
        workers.stdout.contains("\"state\":\"ready\"")
    };
    within(async { while !ready().await {} }).await;
    assert_eq!(identity(&data), before);
    worker.kill();
    cluster.end().await;
}

#[tokio::test]
async fn a_worker_is_called_what_its_certificate_calls_it() {
    let folder = Folder::new();
    let data = folder.path().join("w1");
    let cluster = TestCluster::start(0).await;
    let admin = Jobctl::of(&cluster);
    let named = token(&admin, &["--name", "a"]).await;
    for _ in 0..2 {
        // Started as w1, and then again with the same flags.
        let worker = Process::run(joining(cluster.place, &data, &named));
        let seen = cluster.worker_is("a", WorkerState::Ready).await;
        assert_eq!(seen.id.to_string(), identity(&data).id.to_string());
        worker.kill();
        cluster.worker_is("a", WorkerState::Unreachable).await;
    }
    cluster.end().await;
}

/// But for where to go.
async fn elsewhere_token(admin: &Jobctl) -> String {
    let token = token(admin, &[]).await;
    token.split_once('@').unwrap().0.to_owned()
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused_and_not_spent() {
    let (folder, other) = (Folder::new(), Folder::new());
    let data = folder.path().join("w1");
    let (cluster, _admin, worker) = joined(&data).await;
    worker.kill();
    let before = identity(&data);
    let place = Place::new();
    let scheduler_dir = other.path().join("scheduler");
    std::fs::create_dir(&scheduler_dir).unwrap();
    let authority = Ca::create("other").unwrap();
    authority.store(&scheduler_dir.join("ca.pem")).unwrap();
    let scheduler = Process::scheduler(place, other.path());
    let client_dir: PathBuf = other.path().join("client");
    eventually(|| client_dir.join("client.toml").exists()).await;
    let jobctl = Jobctl::new();
    let ask = async |args: &[&str]| {
        let client_dir = ["--client-dir", client_dir.to_str().unwrap()];
        jobctl.ask(&[&client_dir, args].concat()).await
    };
    let made = ask(&["token", "create", "--role", "worker"]).await;
    let token = made.stdout.trim_end();
    let refused = end(joining(place, &data, token)).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let words = "the scheduler there is of cluster other, not of test";
    assert!(refused.stderr.contains(words), "{refused:?}");
    assert!(refused.stderr.contains("`--data-dir DIR`"), "{refused:?}");
    let tokens = ask(&["token", "list", "--no-headers"]).await;
    assert!(!tokens.stdout.contains("  used  "), "{tokens:?}");
    assert_eq!(identity(&data), before);
    scheduler.kill();
    cluster.end().await;
}
