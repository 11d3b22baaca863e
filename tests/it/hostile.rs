//! Jobs that mean harm: what they cannot reach, and what holds although they try.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{PermissionsExt as _, chown, symlink},
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use jobctl::{
    ids::JobId,
    proto::{JobState, StartJobRequest, worker_client::WorkerClient},
    roles::{
        shim::protocol::{self, Event, OutOfMemory},
        worker::{Config, ControlGroups, Limits},
    },
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
    let mut worker = Process::worker_command(place, 1, &dir.path().join("w1"));
    // These tests call the worker themselves, in place of a scheduler.
    worker.arg("--insecure");
    if !geteuid().is_root() {
        return worker;
    }
    // The folder with the binary may not be open to everybody.
    let binary: PathBuf = dir.path().join("jobctl");
    if !binary.exists() && fs::hard_link(support::binary(), &binary).is_err() {
        fs::copy(support::binary(), &binary).unwrap();
    }
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let data = dir.path().join("w1");
    for entry in fs::read_dir(&data).unwrap() {
        chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    chown(data, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(binary);
    command.args(worker.get_args()).uid(NOBODY).gid(NOBODY);
    command.env("JOBCTL_JOBS_GRACE", "300ms");
    command
}

fn mkfifo(path: &Path) {
    use rustix::fs::{CWD, FileType, mknodat};
    mknodat(CWD, path, FileType::Fifo, 0o666.into(), 0).unwrap();
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
    assert!(text.contains("parents jobctl jobctl-shim"), "{text}");
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
    let [fifo, shot] = ["go", "shot"].map(|name| {
        let fifo = dir.path().join(name);
        mkfifo(&fifo);
        fs::set_permissions(&fifo, fs::Permissions::from_mode(0o666)).unwrap();
        fifo
    });
    let waits = format!("read go < {}; ", fifo.display());
    let bystander = start(&first, &format!("{waits} echo unharmed")).await;
    // Not before its start was answered.
    let kill = format!(
        "read shot < {}; kill -9 $(ps -o ppid= -p $PPID)",
        shot.display()
    );
    let killer = start(&first, &format!("{kill}; echo done; exit 7")).await;
    fs::write(&shot, "\n").unwrap();
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

/// Has jobs run as somebody for whom limits hold, where the tests are root.
fn as_nobody(config: &mut Config) {
    config.rules.user = geteuid().is_root().then(|| "nobody".into());
}

#[tokio::test]
async fn each_process_of_a_job_is_bounded_where_there_are_no_control_groups() {
    let worker = TestWorker::with(|config| {
        as_nobody(config);
        config.control_groups = ControlGroups::Never;
        config.rules.limits = Limits {
            memory: Some(64 << 20),
            open_files: Some(64),
            ..Limits::default()
        };
    })
    .await;
    let id = worker
        .sh("ulimit -Sv; ulimit -Hv; ulimit -Sn; ulimit -Hn")
        .await;
    assert_eq!(worker.text(id).await, "65536\n65536\n64\n64\n");
    for raises in ["ulimit -n 65", "ulimit -v 65537"] {
        let id = worker.sh(&format!("{raises} && echo raised")).await;
        let (bytes, status) = worker.follow(id).await;
        assert!(!String::from_utf8(bytes).unwrap().contains("raised"));
        assert_eq!(status.state(), JobState::Failed, "{raises}");
    }
    let id = worker
        .sh("x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo \"has ${#x}\"")
        .await;
    let (bytes, status) = worker.follow(id).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(!text.contains("has 100000000"), "{text}");
    assert_eq!(status.state(), JobState::Failed, "{text}");
    worker.shut_down().await;
}

#[tokio::test]
async fn a_job_cannot_fork_beyond_its_limit() {
    if !geteuid().is_root() {
        // Whoever runs the tests has processes of their own, which count too.
        return;
    }
    let worker = TestWorker::with(|config| {
        as_nobody(config);
        config.control_groups = ControlGroups::Never;
        config.rules.limits.processes = Some(20);
    })
    .await;
    let id = worker.sh("ulimit -u 2> /dev/null || ulimit -p").await;
    assert_eq!(worker.text(id).await, "20\n");
    let id = worker
        .sh("for i in $(seq 30); do sleep 600 & done; echo all 30")
        .await;
    let (bytes, status) = worker.follow(id).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("fork"), "{text}");
    assert_eq!(status.state(), JobState::Failed, "{text}");
    worker.shut_down().await;
}

#[test]
fn a_worker_refuses_limits_that_would_not_hold() {
    let (place, dir) = (Place::new(), Folder::new());
    let refusal = |setting: &str, value: &str| {
        let mut command = Process::worker_command(place, 1, &dir.path().join("w1"));
        command.env(format!("JOBCTL_JOBS_{}", setting.to_uppercase()), value);
        command.args(["--control-groups", "false"]);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("`jobs.{setting}` cannot hold")));
        assert!(text.contains("hint: leave") && text.contains("Delegate=yes"));
        text
    };
    let text = refusal("cpus", "1.5");
    assert!(text.contains("the cpu controller"), "{text}");
    if geteuid().is_root() {
        let text = refusal("processes", "512");
        assert!(text.contains("of root are not counted"), "{text}");
        assert!(text.contains("`jobs.user`"), "{text}");
    }
}

#[test]
fn a_worker_says_which_limits_hold_and_by_what() {
    let dir = Folder::new();
    let mut command = Command::new(support::binary());
    command.args(["worker", "--insecure", "--name", "w1"]);
    command.args(["--grpc-addr", "127.0.0.1:0", "--control-groups", "false"]);
    command.args(["--memory", "1GiB", "--open-files", "64"]);
    command.arg("--data-dir").arg(dir.path());
    // Where a log goes that nobody has asked for elsewhere.
    let mut worker = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let worker = Process::from(worker);
    let said = lines
        .map_while(Result::ok)
        .find(|line| line.contains("what a job may use"));
    let expected = "memory=1GiB per process (RLIMIT_AS), open_files=64 per process (RLIMIT_NOFILE)";
    assert!(said.unwrap().contains(expected));
    worker.kill();
}

#[test]
fn a_shim_tells_that_its_job_was_killed_for_want_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let group = dir.path().join("group");
    fs::create_dir(&group).unwrap();
    for (file, text) in [
        ("cgroup.procs", ""),
        ("memory.max", "1048576\n"),
        ("memory.events", "max 3\noom 1\noom_kill 1\n"),
    ] {
        fs::write(group.join(file), text).unwrap();
    }
    let job_id = JobId::random();
    let spec = protocol::Spec {
        job_id,
        program: Some("/bin/sh".into()),
        arg0: "sh".into(),
        script: false,
        args: vec!["-c".into(), "kill -9 $$".into()],
        env: Default::default(),
        cwd: "/".into(),
        user: None,
        timeout_ms: None,
        grace_ms: 100,
        output: dir.path().join("output"),
        output_limit: 1 << 20,
        result: dir.path().join("result"),
        open_files: Some(1024),
        cgroup: Some(group.clone()),
        allow_new_privileges: false,
        limits: protocol::Limits::default(),
        oom_score_adj: None,
    };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let name = SocketAddr::from_abstract_name(protocol::socket_name(job_id)).unwrap();
    let calls = UnixListener::bind_addr(&name).unwrap();
    let mut shim = Command::new(support::binary())
        .arg("shim")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(OwnedFd::from(calls))
        .spawn()
        .unwrap();
    ours.set_read_timeout(Some(support::LIMIT)).unwrap();
    let start = protocol::Command::Start(Box::new(spec));
    ours.write_all(&protocol::encode(&start)).unwrap();
    let mut bytes = Vec::new();
    let ended = loop {
        match protocol::decode(&mut bytes).unwrap() {
            Some(Event::Ended(ended)) => break ended,
            Some(_) => {}
            None => {
                let mut buffer = [0; 1024];
                let length = ours.read(&mut buffer).unwrap();
                assert_ne!(length, 0, "it has gone");
                bytes.extend_from_slice(&buffer[..length]);
            }
        }
    };
    assert_eq!(ended.signal, Some(9));
    assert_eq!(ended.out_of_memory, Some(OutOfMemory::Job(1_048_576)));
    assert_eq!(fs::read(group.join("cgroup.procs")).unwrap(), b"0");
    let receipt = protocol::Command::Receipt;
    ours.write_all(&protocol::encode(&receipt)).unwrap();
    assert!(shim.wait().unwrap().success());
}

#[tokio::test]
async fn nothing_but_files_of_the_script_folder_is_a_script() {
    let worker = TestWorker::start().await;
    let scripts = worker.scripts();
    let outside = worker.dir.path().join("outside.sh");
    fs::write(&outside, "echo outside\n").unwrap();
    fs::create_dir(scripts.join("folder")).unwrap();
    symlink(&outside, scripts.join("link.sh")).unwrap();
    symlink("..", scripts.join("up")).unwrap();
    symlink("/proc/self/root/etc/passwd", scripts.join("magic")).unwrap();
    mkfifo(&scripts.join("fifo"));
    for (path, word) in [
        ("../outside.sh", "outside_script_folder"),
        ("folder/../../../outside.sh", "outside_script_folder"),
        ("%2e%2e/%2e%2e/outside.sh", "script_not_found"),
        ("..%2foutside.sh", "script_not_found"),
        ("..\\..\\outside.sh", "script_not_found"),
        ("/etc/passwd", "outside_script_folder"),
        (outside.to_str().unwrap(), "outside_script_folder"),
        ("link.sh", "outside_script_folder"),
        ("up/../outside.sh", "outside_script_folder"),
        ("magic", "outside_script_folder"),
        ("fifo", "not_a_file"),
        ("folder", "not_a_file"),
        (".", "not_a_file"),
        ("folder/", "not_a_file"),
    ] {
        let request = StartJobRequest {
            command: "sh".into(),
            path: path.into(),
            ..Default::default()
        };
        let error = worker.start_job(request).await.unwrap_err();
        assert_eq!(code(&error), word, "{path}");
    }
    worker.shut_down().await;
}

#[tokio::test]
async fn a_script_swapped_for_a_link_never_runs_what_is_outside() {
    const SWAPS: usize = 100_000;
    let worker = TestWorker::start().await;
    let scripts = worker.scripts();
    let (outside, ran) = (worker.dir.path().join("evil"), scripts.join("ran"));
    fs::write(&outside, format!("touch {}; echo evil\n", ran.display())).unwrap();
    fs::write(scripts.join("a.sh"), "echo good\n").unwrap();
    symlink(&outside, scripts.join("b.sh")).unwrap();
    let swapping = tokio::task::spawn_blocking(move || {
        let dir = fs::File::open(&scripts).unwrap();
        for _ in 0..SWAPS {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(&dir, "a.sh", &dir, "b.sh", exchange).unwrap();
        }
    });
    let mut started = 0;
    while !swapping.is_finished() || started == 0 {
        let request = StartJobRequest {
            command: "sh".into(),
            path: "a.sh".into(),
            ..Default::default()
        };
        match worker.start_job(request).await {
            Ok(id) => {
                started += 1;
                assert_eq!(worker.text(id).await, "good\n");
            }
            Err(error) => assert_eq!(code(&error), "outside_script_folder"),
        }
    }
    swapping.await.unwrap();
    assert!(!ran.exists());
    worker.shut_down().await;
}

#[tokio::test]
async fn arguments_mean_nothing_on_their_way() {
    let worker = TestWorker::start().await;
    let args = [
        "$(id)", "`id`", "-x", "--", "@file", "a\nb", "*", "~", "", "; id", "%s", "\\",
    ];
    fs::write(worker.scripts().join("show.sh"), "printf '[%s]' \"$@\"\n").unwrap();
    let request = StartJobRequest {
        command: "bash".into(),
        path: "show.sh".into(),
        args: args.map(str::to_owned).into(),
        ..Default::default()
    };
    let id = worker.start_job(request.clone()).await.unwrap();
    let expected: String = args.iter().map(|arg| format!("[{arg}]")).collect();
    assert_eq!(worker.text(id).await, expected);
    let many = StartJobRequest {
        args: vec!["x".into(); 100_000],
        ..request
    };
    let error = worker.start_job(many).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert_eq!(code(&error), "bad_request");
    assert!(
        error.message().contains("1000 are taken at most on worker"),
        "{error}"
    );
    worker.shut_down().await;
}

#[tokio::test]
async fn output_swapped_for_a_secret_is_not_told() {
    let worker = TestWorker::start().await;
    let secret = worker.dir.path().join("secret");
    fs::write(&secret, "hunter2\n").unwrap();
    let data = worker.dir.path().join("data/output");
    // While it runs: what the shim has open is what it writes.
    let script = format!(
        "echo first; until [ -s {0}/$JOBCTL_JOB_ID.out ]; do :; done; \
         ln -sf {1} {0}/$JOBCTL_JOB_ID.out; echo second",
        data.display(),
        secret.display()
    );
    let id = worker.sh(&script).await;
    let mut worker_client = worker.client.clone();
    let query = jobctl::proto::StreamJobRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    let mut told = Vec::new();
    if let Ok(stream) = within(worker_client.stream_job(query)).await {
        let mut stream = stream.into_inner();
        while let Ok(Some(message)) = within(stream.message()).await {
            told.extend_from_slice(&message.output);
        }
    }
    assert!(!String::from_utf8_lossy(&told).contains("hunter2"));
    assert_eq!(fs::read(&secret).unwrap(), b"hunter2\n", "nor written to");
    worker.shut_down().await;
}
