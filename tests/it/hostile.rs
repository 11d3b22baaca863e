//! Jobs that mean harm: what they cannot reach, and what holds although they try.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::PathBuf,
    process::Command,
};

use jobctl::{
    ids::JobId,
    proto::{JobState, StartJobRequest, worker_client::WorkerClient},
};
use rustix::process::geteuid;
use tonic::transport::Channel;

use crate::{
    cluster::{Place, Process},
    support::{self, Folder, eventually, within},
    worker::{TestWorker, code, follow, sh},
};

/// Somebody who may do nothing in particular (nobody).
const NOBODY: u32 = 65534;

/// Has a worker run without the rights of root, where the tests have them: root
/// could do what is tried here in any case.
fn without_rights(place: Place, dir: &Folder) -> Command {
    let worker = Process::worker_command(place, 1, &dir.path().join("w1"));
    if !geteuid().is_root() {
        return worker;
    }
    // The folder with the binary may not be open to everybody.
    let binary: PathBuf = dir.path().join("jobctl");
    if !binary.exists() && fs::hard_link(support::binary(), &binary).is_err() {
        fs::copy(support::binary(), &binary).unwrap();
    }
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(binary);
    command.args(worker.get_args()).uid(NOBODY).gid(NOBODY);
    command
}

async fn client(place: Place) -> WorkerClient<Channel> {
    let address = format!("http://{}", place.worker(1));
    within(async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(10));
        loop {
            pause.tick().await;
            if let Ok(client) = WorkerClient::connect(address.clone()).await {
                return client;
            }
        }
    })
    .await
}

async fn output(client: &WorkerClient<Channel>, script: &str) -> String {
    let started = within(client.clone().start_job(sh(script))).await.unwrap();
    let id: JobId = started.into_inner().job_id.parse().unwrap();
    String::from_utf8(follow(client, id).await.0).unwrap()
}

#[tokio::test]
async fn a_job_cannot_look_into_its_worker_or_its_shim() {
    let (place, dir) = (Place::new(), Folder::new());
    let mut command = without_rights(place, &dir);
    command.env("JOBCTL_SECRET", "hunter2");
    let worker = Process::from(command.spawn().unwrap());
    let client = client(place).await;
    let text = output(
        &client,
        "worker=$(ps -o ppid= -p $PPID | tr -d ' '); echo parents $(cat /proc/$worker/comm) \
         $(cat /proc/$PPID/comm); for pid in $PPID $worker; do \
         for file in environ mem maps fd/0 exe; do \
         (exec 3< /proc/$pid/$file) 2> /dev/null && echo $file of $pid is open; done; done; \
         cat /proc/$$/environ > /dev/null && echo own is open; env",
    )
    .await;
    assert!(text.contains("parents jobctl exe"), "{text}");
    assert!(text.contains("own is open"), "{text}");
    assert_eq!(text.matches("is open").count(), 1, "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    worker.kill();
}

#[tokio::test]
async fn jobs_get_no_new_privileges_unless_the_operator_says_so() {
    for (allowed, expected) in [(false, "1"), (true, "0")] {
        let worker = TestWorker::with(|config| config.rules.allow_new_privileges = allowed).await;
        let id = worker.sh("grep NoNewPrivs /proc/self/status").await;
        let text = worker.text(id).await;
        assert_eq!(text.split_whitespace().last(), Some(expected));
        worker.shut_down().await;
    }
}

#[tokio::test]
async fn a_job_that_kills_its_worker_and_one_that_kills_its_shim_do_not_hide_their_end() {
    let (place, dir) = (Place::new(), Folder::new());
    let worker = Process::from(without_rights(place, &dir).spawn().unwrap());
    let first = client(place).await;
    let start = async |client: &WorkerClient<Channel>, script: &str| -> JobId {
        let started = within(client.clone().start_job(sh(script))).await.unwrap();
        started.into_inner().job_id.parse().unwrap()
    };
    let fifo = dir.path().join("go");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o666.into(),
        0,
    )
    .unwrap();
    fs::set_permissions(&fifo, fs::Permissions::from_mode(0o666)).unwrap();
    let waits = format!("read go < {}; ", fifo.display());
    let bystander = start(&first, &format!("{waits} echo unharmed")).await;
    let killer = start(&first, "kill -9 $(ps -o ppid= -p $PPID); echo done; exit 7").await;
    assert_eq!(within(worker.code()).await, None, "it was killed");

    let worker = Process::from(without_rights(place, &dir).spawn().unwrap());
    let second = client(place).await;
    let (bytes, status) = follow(&second, killer).await;
    assert_eq!((&*bytes, status.exit_code), (&b"done\n"[..], Some(7)));

    let suicide = start(&second, "kill -9 $PPID; echo free; sleep 600").await;
    let (_, status) = follow(&second, suicide).await;
    assert_eq!(status.state(), JobState::Lost);
    assert_eq!(status.reason, "lost: its shim was killed");
    assert!(support::processes_of(suicide).is_empty());

    fs::write(&fifo, "go\n").unwrap();
    let (bytes, status) = follow(&second, bystander).await;
    assert_eq!((&*bytes, status.exit_code), (&b"unharmed\n"[..], Some(0)));
    eventually(|| dir.shims().is_empty()).await;
    worker.kill();
}

#[tokio::test]
async fn jobs_run_as_another_user_with_nothing_of_the_workers() {
    if !geteuid().is_root() {
        // Nobody else can; that a worker says so has its own test.
        return;
    }
    let worker = TestWorker::with(|config| {
        config.rules.user = Some("nobody".into());
        config.rules.allow_users = vec!["daemon".into()];
    })
    .await;
    let script = worker.scripts().join("who.sh");
    fs::write(
        &script,
        "#!/bin/sh\necho \"$(id -un) $(id -G) $HOME $USER $LOGNAME $(pwd)\"\n\
         grep CapPrm /proc/self/status; ls -l /proc/self/fd > /dev/null\n\
         echo opened > /dev/stdout; cat /etc/shadow 2> /dev/null || echo closed\n\
         ls \"$JOBCTL_DATA\" 2> /dev/null || echo closed\n",
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let start = async |user: &str| {
        let data = worker.dir.path().join("data").display().to_string();
        let request = StartJobRequest {
            path: "who.sh".into(),
            user: user.into(),
            env: [("JOBCTL_DATA".to_owned(), data)].into(),
            ..Default::default()
        };
        worker.start_job(request).await
    };
    for (asked, name) in [("", "nobody"), ("nobody", "nobody"), ("daemon", "daemon")] {
        let text = worker.text(start(asked).await.unwrap()).await;
        let lines: Vec<_> = text.lines().collect();
        let user = nix::unistd::User::from_name(name).unwrap().unwrap();
        let (gid, home) = (user.gid, user.dir.display());
        let who = format!("{name} {gid} {home} {name} {name} /");
        assert_eq!(lines[0], who, "{text}");
        assert_eq!(lines[1], "CapPrm:\t0000000000000000");
        assert_eq!(lines[2..], ["opened", "closed", "closed"]);
    }
    for stranger in ["root", "bin", "0", "no-such-user"] {
        let error = start(stranger).await.unwrap_err();
        assert_eq!(code(&error), "user_not_allowed");
        assert!(error.message().contains(stranger), "{error}");
    }
    // It is stopped as any other.
    let request = StartJobRequest {
        user: "daemon".into(),
        ..sh("trap '' TERM; sleep 600 & wait; wait")
    };
    let id = worker.start_job(request).await.unwrap();
    worker.shut_down().await;
    assert!(support::processes_of(id).is_empty());
}

#[tokio::test]
async fn a_worker_without_the_right_to_change_users_says_so() {
    let (place, dir) = (Place::new(), Folder::new());
    let mut command = without_rights(place, &dir);
    let output = command.args(["--user", "daemon"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot run jobs as user daemon"), "{text}");
    assert!(
        text.contains("CAP_SETUID") && text.contains("hint:"),
        "{text}"
    );
}
