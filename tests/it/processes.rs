//! The processes of jobs: in containers, under signals, and with what a launcher left.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use jobctl::{
    ids::JobId,
    proto::{JobState, StartJobRequest, StopJobRequest},
};
use rustix::process::Signal;
use tonic::Code;

use crate::{
    cluster::Process,
    support::{binary, eventually, gone, kill, within},
    takeover::{BY_PROCESS, Succession, end_of, first_words, query, sh},
    typed::Jobctl,
    worker::{self, TestWorker, code},
};

/// The words of `stat` after the name, of which the first is the state, the second the
/// parent (proc_pid_stat(5)).
fn stat(pid: &str) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// All processes, with the parent of each.
fn parents() -> Vec<(String, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let known = pids.filter_map(|pid| Some((stat(&pid)?.get(1)?.clone(), pid)));
    known.map(|(parent, pid)| (pid, parent)).collect()
}

/// The processes that come from this one.
fn descendants(pid: u32) -> Vec<String> {
    let parents = parents();
    let mut found = vec![pid.to_string()];
    let mut next = 0;
    while let Some(parent) = found.get(next).cloned() {
        found.extend(
            parents
                .iter()
                .filter(|one| one.1 == parent)
                .map(|one| one.0.clone()),
        );
        next += 1;
    }
    found.split_off(1)
}

fn is_zombie(pid: &str) -> bool {
    stat(pid).is_some_and(|stat| stat[0] == "Z")
}

/// The living processes with these words on their command line.
fn with_words(words: &str) -> Vec<String> {
    let words = words.replace(' ', "\0");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let has = |pid: &String| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(&words) && !gone(pid)
    };
    pids.filter(has).collect()
}

/// Runs a command as the first process of a pid namespace of its own, as a container
/// has one, after `before`. `None`, with a message, where that is not allowed.
fn in_container(command: &Command, before: &str) -> Option<Command> {
    const FLAGS: [&str; 6] = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ];
    let tried = Command::new("unshare").args(FLAGS).arg("true").status();
    if !tried.is_ok_and(|tried| tried.success()) {
        eprintln!("skipped: this machine allows no pid namespaces");
        return None;
    }
    let mut contained = Command::new("unshare");
    contained.args(FLAGS).args(["sh", "-c"]);
    contained.arg(format!("{before}\nexec \"$@\"")).arg("sh");
    contained
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        contained.env(name, value.unwrap_or_default());
    }
    Some(contained)
}

#[tokio::test]
async fn a_session_of_the_next_container_is_left_alone() {
    let workers = Succession::new();
    let Some(mut first) = in_container(&workers.command(BY_PROCESS), ":") else {
        return;
    };
    let container = first.spawn().unwrap();
    let outside = container.id();
    let container = Process::from(container);
    let client = workers.client().await;
    let id = sh(&client, "sleep 600").await;
    let main = query(&client, id).await.pid.unwrap();
    workers.has_begun(id).await;
    let inside = descendants(outside);
    container.kill();
    eventually(|| inside.iter().all(|pid| gone(pid))).await;

    // A session of the same number, whose leader has gone.
    let innocent = format!("sleep 5{}", main + 1_000_000);
    let before = format!(
        "echo {} > /proc/sys/kernel/ns_last_pid; setsid sh -c '{innocent} & :'",
        main - 1
    );
    let mut second = in_container(&workers.command(BY_PROCESS), &before).unwrap();
    let _container = Process::from(second.spawn().unwrap());
    let client = workers.client().await;
    let status = end_of(&client, id).await;
    assert_eq!(status.state(), JobState::Lost);
    let found = with_words(&innocent);
    assert_eq!(found.len(), 1, "an innocent session was hit");
    let session = fs::read_to_string(format!("/proc/{}/status", found[0])).unwrap();
    let session = session.lines().find_map(|line| line.strip_prefix("NSsid:"));
    let session = session.unwrap().split_whitespace().next_back().unwrap();
    assert_eq!(
        session,
        main.to_string(),
        "not the session this test is about"
    );
}

#[tokio::test]
async fn a_worker_that_is_shown_the_processes_of_others_does_not_begin() {
    let workers = Succession::new();
    let whole = workers.command(BY_PROCESS);
    if in_container(&whole, ":").is_none() {
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    unshare.arg(whole.get_program()).args(whole.get_args());
    let worker = unshare.stderr(Stdio::piped()).spawn().unwrap();
    let (code, said) = Process::from(worker).end_of().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("of another pid namespace"), "{said}");
    assert!(said.contains("--mount-proc"), "{said}");
}

#[tokio::test]
async fn as_the_first_process_of_a_container_nothing_stays_a_zombie() {
    let workers = Succession::new();
    let mark = std::process::id();
    let before = format!("(sleep 600.{mark} & sleep 0.{mark} &)");
    let Some(mut command) = in_container(&workers.command(BY_PROCESS), &before) else {
        return;
    };
    let container = command.spawn().unwrap();
    let id = container.id();
    let container = Process::from(container);
    let client = workers.client().await;
    // Processes that others left to the first one, and what a killed shim leaves.
    let job = sh(
        &client,
        "(env -i sh -c 'sleep 0' &); env -i sleep 600 & echo; wait",
    )
    .await;
    first_words(&client, job).await;
    kill(workers.shim_of(job));
    assert_eq!(end_of(&client, job).await.state(), JobState::Lost);
    let left = with_words(&format!("sleep 600.{mark}"));
    assert_eq!(left.len(), 1, "the first process had nothing to collect");
    kill(left[0].parse().unwrap());
    eventually(|| descendants(id).iter().all(|pid| !is_zombie(pid))).await;
    eventually(|| with_words(&format!("sleep 0.{mark}")).is_empty()).await;
    eventually(|| descendants(id).iter().all(|pid| !is_zombie(pid))).await;
    // Jobs start and end as ever, and what is said to the first process is heard.
    let job = sh(&client, "exit 7").await;
    assert_eq!(end_of(&client, job).await.exit_code, Some(7));
    let first = descendants(id).remove(0);
    let first = rustix::process::Pid::from_raw(first.parse().unwrap()).unwrap();
    rustix::process::kill_process(first, Signal::TERM).unwrap();
    assert_eq!(container.code().await, Some(0));
}

#[tokio::test]
async fn what_escaped_from_a_killed_shim_is_ended() {
    let workers = Succession::new();
    let (_worker, client) = workers.next(BY_PROCESS).await;
    let neighbour = sh(&client, "env -i setsid sleep 600 & wait").await;
    let script = "env -i setsid sh -c 'echo $$; setsid sleep 600; :' & wait";
    let id = sh(&client, script).await;
    let escaped = first_words(&client, id).await.trim().to_owned();
    let child = || {
        let parents = parents().into_iter();
        parents
            .filter(|one| one.1 == escaped)
            .map(|one| one.0)
            .next()
    };
    eventually(|| child().is_some()).await;
    let child = child().unwrap();
    kill(workers.shim_of(id));
    let status = end_of(&client, id).await;
    assert_eq!(status.reason, "lost: its shim was killed");
    assert!(gone(&escaped) && gone(&child), "{escaped} {child}");
    assert!(
        !Path::new("/proc").join(&escaped).exists(),
        "it is collected"
    );
    assert_eq!(query(&client, neighbour).await.state(), JobState::Running);
}

#[tokio::test]
async fn what_may_have_escaped_for_good_is_said() {
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let id = sh(
        &client,
        "env -i setsid sh -c 'echo $$; sleep 600; :' & wait",
    )
    .await;
    let escaped = first_words(&client, id).await.trim().to_owned();
    worker.kill();
    // The shim is no child of this one.
    let (_worker, client) = workers.next(BY_PROCESS).await;
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        while query(&client, id).await.state() != JobState::Running {
            pause.tick().await;
        }
    })
    .await;
    kill(workers.shim_of(id));
    let status = end_of(&client, id).await;
    assert_eq!(
        status.reason,
        "lost: its shim was killed; processes that had left its session may still be there"
    );
    for pid in descendants(escaped.parse().unwrap())
        .into_iter()
        .chain([escaped])
    {
        kill(pid.parse().unwrap());
    }
}

/// How many bytes a process has read so far; `None`, with a message, where it cannot be
/// asked for.
fn bytes_read(pid: i32) -> Option<u64> {
    let Ok(io) = fs::read_to_string(format!("/proc/{pid}/io")) else {
        eprintln!("skipped: only root may see what a shim has read");
        return None;
    };
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    Some(read.unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_stop_looks_at_the_jobs_own_processes_and_no_others() {
    const CROWD: usize = 200;
    /// Of each process a look at all takes more than this (proc_pid_stat(5)).
    const STAT: u64 = 100;
    let worker = TestWorker::with(|config| {
        config.control_groups = jobctl::roles::worker::ControlGroups::Never;
    })
    .await;
    let script = format!("for i in $(seq {CROWD}); do sleep 600 & done; echo; wait");
    let crowd = worker.sh(&script).await;
    let stays = worker
        .sh("trap '' TERM; echo; while :; do sleep 600; done")
        .await;
    for id in [crowd, stays] {
        let output = worker.dir.path().join(format!("data/output/{id}.out"));
        eventually(|| fs::metadata(&output).is_ok_and(|data| data.len() > 0)).await;
    }
    let shims = worker.dir.shims();
    let shim = shims.iter().find(|(_, id)| *id == stays).unwrap().0;
    let Some(before) = bytes_read(shim) else {
        return;
    };
    let request = StopJobRequest {
        job_id: stays.to_string(),
        grace_ms: Some(3_600_000),
        no_wait: true,
        ..Default::default()
    };
    within(worker.client.clone().stop_job(request))
        .await
        .unwrap();
    let read = bytes_read(shim).unwrap() - before;
    assert!(read < CROWD as u64 * STAT, "{read} bytes");
    worker.shut_down().await;
}

#[tokio::test]
async fn a_job_goes_on_whatever_its_shim_is_sent() {
    let workers = Succession::new();
    let (_worker, client) = workers.next(BY_PROCESS).await;
    let fifo = workers.dir.path().join("fifo");
    let script = format!("mkfifo {0}; echo; read x < {0}; exit 7", fifo.display());
    let id = sh(&client, &script).await;
    first_words(&client, id).await;
    let shim = workers.shim_of(id);
    // Two end a job, and two cannot be ignored.
    let apart = [Signal::KILL, Signal::STOP, Signal::INT, Signal::TERM].map(Signal::as_raw);
    for signal in (1..=64).filter(|signal| !apart.contains(signal)) {
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{signal} {shim}")])
            .status();
        assert!(sent.unwrap().success(), "{signal}");
    }
    fs::write(&fifo, "\n").unwrap();
    let status = end_of(&client, id).await;
    assert_eq!(status.exit_code, Some(7), "{}", status.reason);
}

#[tokio::test]
async fn what_a_launcher_did_to_signals_changes_nothing() {
    let workers = Succession::new();
    let whole = workers.command(BY_PROCESS);
    let mut launched = Command::new("env");
    launched.args(["--block-signal", "--ignore-signal=CHLD,USR1,PIPE,TERM"]);
    launched.arg(whole.get_program()).args(whole.get_args());
    let worker = launched.spawn().unwrap();
    let process = worker.id();
    let worker = Process::from(worker);
    let client = workers.client().await;
    let id = sh(&client, "grep -E 'Sig(Blk|Ign)' /proc/self/status; exit 7").await;
    let status = end_of(&client, id).await;
    assert_eq!(status.exit_code, Some(7));
    let output = fs::read_to_string(workers.data().join(format!("output/{id}.out"))).unwrap();
    for line in output.lines() {
        let set = line.split_whitespace().next_back().unwrap();
        assert_eq!(u64::from_str_radix(set, 16), Ok(0), "{output}");
    }
    let blocked = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    assert!(blocked.contains("SigBlk:\t0000000000000000"), "{blocked}");
    worker.signal(Signal::TERM);
    assert_eq!(worker.code().await, Some(0));
}

#[tokio::test]
async fn a_shim_whose_data_folder_is_gone_ends_with_its_job() {
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let fifo = workers.dir.path().join("fifo");
    let script = format!("mkfifo {0}; echo; read x < {0}", fifo.display());
    let id = sh(&client, &script).await;
    first_words(&client, id).await;
    let shim = workers.shim_of(id).to_string();
    worker.kill();
    fs::remove_dir_all(workers.data()).unwrap();
    fs::write(&fifo, "\n").unwrap();
    eventually(|| gone(&shim)).await;
    assert!(!workers.data().exists());
}

#[tokio::test]
async fn a_result_whose_folder_was_removed_alone_is_kept() {
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let fifo = workers.dir.path().join("fifo");
    let script = format!("mkfifo {0}; echo; read x < {0}; exit 7", fifo.display());
    let id = sh(&client, &script).await;
    first_words(&client, id).await;
    let shim = workers.shim_of(id).to_string();
    worker.kill();
    fs::remove_dir_all(workers.data().join("results")).unwrap();
    fs::write(&fifo, "\n").unwrap();
    eventually(|| gone(&shim)).await;
    let (_worker, client) = workers.next(BY_PROCESS).await;
    assert_eq!(end_of(&client, id).await.exit_code, Some(7));
}

#[tokio::test]
async fn a_control_group_that_was_removed_is_made_again() {
    let worker = TestWorker::start().await;
    let first = worker.sh("cat /proc/self/cgroup").await;
    let text = worker.text(first).await;
    let Some(group) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        eprintln!("skipped: this machine has no control groups of version 2");
        return;
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let mount = mount.unwrap().split(' ').nth(4).unwrap();
    let group = Path::new(mount).join(group);
    let root = group.parent().unwrap();
    if !group.ends_with(first.to_string()) {
        eprintln!("skipped: jobs have no control groups of their own here");
        return;
    }
    eventually(|| fs::remove_dir(root).is_ok()).await;
    let second = worker.sh("cat /proc/self/cgroup").await;
    let text = worker.text(second).await;
    assert!(text.contains(&format!("/{second}\n")), "{text}");
    worker.shut_down().await;
}

#[tokio::test]
async fn jobs_begin_with_their_own_oom_score_and_shims_keep_theirs() {
    let workers = Succession::new();
    for (flags, of_job) in [(&[][..], "0"), (&["--oom-score-adj", "700"], "700")] {
        let whole = workers.command(&[BY_PROCESS, flags].concat());
        let mut launched = Command::new("sh");
        launched.args([
            "-c",
            "echo 300 > /proc/self/oom_score_adj; exec \"$@\"",
            "sh",
        ]);
        launched.arg(whole.get_program()).args(whole.get_args());
        let worker = launched.spawn().unwrap();
        let process = worker.id();
        let worker = Process::from(worker);
        let client = workers.client().await;
        let id = sh(&client, "cat /proc/self/oom_score_adj; sleep 600").await;
        assert_eq!(first_words(&client, id).await.trim(), of_job);
        let score = |pid: i64| -> i32 {
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
            score.unwrap().trim().parse().unwrap()
        };
        let own = score(process.into());
        assert_eq!(score(workers.shim_of(id).into()), own);
        // Where a process may have less than it was given.
        if own != 300 {
            assert!(own < of_job.parse().unwrap(), "{own}");
        }
        worker.kill();
    }
}

#[tokio::test]
async fn a_list_of_processes_says_what_a_shim_is() {
    let workers = Succession::new();
    let (_worker, client) = workers.next(BY_PROCESS).await;
    let id = sh(&client, "sleep 600").await;
    let shim = workers.shim_of(id);
    let output = Command::new("ps")
        .args(["-o", "comm=,args=", "-p", &shim.to_string()])
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(
        words[..4],
        ["jobctl-shim", "jobctl-shim", "shim", &id.to_string()]
    );
}

/// A library that sets the wall clock of a program forward by as many seconds as stand
/// in the file that `WRONG` names, once it is there. `None`, with a message, where there
/// is no compiler.
pub(crate) fn wrong_clock(dir: &Path) -> Option<PathBuf> {
    let source = dir.join("clock.c");
    let library = dir.join("clock.so");
    let text = r#"
        #define _GNU_SOURCE
        #include <time.h>
        #include <fcntl.h>
        #include <stdlib.h>
        #include <unistd.h>
        #include <sys/syscall.h>
        int clock_gettime(clockid_t clock, struct timespec *time) {
            long result = syscall(SYS_clock_gettime, clock, time);
            int file = clock == CLOCK_REALTIME ? open(getenv("WRONG"), O_RDONLY | O_CLOEXEC) : -1;
            if (file >= 0) {
                char text[32] = "";
                if (read(file, text, sizeof text - 1) > 0)
                    time->tv_sec += atoll(text);
                close(file);
            }
            return (int) result;
        }
    "#;
    fs::write(&source, text).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    if !compiler.status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine has no C compiler");
        return None;
    }
    Some(library)
}

#[tokio::test]
async fn how_long_a_job_ran_does_not_hang_on_the_wall_clock() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = wrong_clock(dir.path()) else {
        return;
    };
    let (shim, wrong) = (dir.path().join("shim"), dir.path().join("wrong"));
    let script = format!(
        "#!/bin/sh\nLD_PRELOAD={} WRONG={} exec {} \"$@\"\n",
        library.display(),
        wrong.display(),
        binary().display()
    );
    fs::write(&shim, script).unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let worker = TestWorker::with(|config| config.shim = shim).await;
    let fifo = dir.path().join("fifo");
    let id = worker
        .sh(&format!("mkfifo {0}; read x < {0}", fifo.display()))
        .await;
    eventually(|| fifo.exists()).await;
    fs::write(&wrong, "7200").unwrap();
    fs::write(&fifo, "\n").unwrap();
    let (_, status) = worker.follow(id).await;
    let by_the_wall = status.ended_us.unwrap() - status.started_us.unwrap();
    assert!(by_the_wall >= 7200 * 1_000_000, "its clock was not wrong");
    assert!(status.ran_ms.unwrap() < 3600 * 1000, "{:?}", status.ran_ms);
    worker.shut_down().await;
}

#[tokio::test]
async fn a_worker_without_descriptors_gives_jobs_back() {
    const OPEN_FILES: usize = 40;
    let workers = Succession::new();
    let whole = workers.command(BY_PROCESS);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={OPEN_FILES}"));
    limited.arg(whole.get_program()).args(whole.get_args());
    let _worker = Process::from(limited.spawn().unwrap());
    let client = workers.client().await;
    let mut running = Vec::new();
    let (refused, error) = loop {
        assert!(
            running.len() < OPEN_FILES,
            "it is never short of descriptors"
        );
        let id = JobId::random();
        let request = StartJobRequest {
            job_id: id.to_string(),
            ..worker::sh("sleep 600")
        };
        match within(client.clone().start_job(request.clone())).await {
            Ok(_) => running.push(id),
            Err(error) => break (request, error),
        }
    };
    assert_eq!(
        (error.code(), code(&error)),
        (Code::Unavailable, "worker_short"),
        "{error}"
    );
    assert!(error.message().contains("open files"), "{error}");
    for id in running {
        kill(workers.shim_of(id));
        end_of(&client, id).await;
    }
    within(client.clone().start_job(refused)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_executed_is_told_from_what_is_missing() {
    let worker = TestWorker::start().await;
    let program = |name: &str, text: &str| {
        let path = worker.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let missing = program("missing", "#!/no/such/interpreter\n");
    let windows = program("windows", "#!/bin/sh\r\ntrue\r\n");
    let busy = program("busy", "#!/bin/sh\n");
    let _writing = fs::File::options().append(true).open(&busy).unwrap();
    for (command, cwd, expected, said) in [
        (
            missing.as_str(),
            "",
            "interpreter_not_found",
            "/no/such/interpreter",
        ),
        (&windows, "", "not_executable", "carriage return"),
        (&busy, "", "not_executable", "open for writing"),
        ("true", "/no/such/folder", "bad_cwd", "/no/such/folder"),
    ] {
        let request = StartJobRequest {
            command: command.into(),
            cwd: cwd.into(),
            ..Default::default()
        };
        let error = worker.start_job(request).await.unwrap_err();
        assert_eq!(code(&error), expected, "{error}");
        assert!(error.message().contains(said), "{error}");
    }
    worker.shut_down().await;
}

#[tokio::test]
async fn exit_codes_are_those_of_a_shell() {
    let jobctl = Jobctl::new();
    let dir = tempfile::tempdir().unwrap();
    for (text, code, said) in [
        ("#!/no/such/interpreter\n", 127, "/no/such/interpreter"),
        ("#!/bin/sh\r\n", 126, "carriage return"),
    ] {
        let program = dir.path().join("program");
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let program = program.display().to_string();
        let run = jobctl.ask(&["dev", "--", &program]).await;
        run.is(code, "");
        assert!(run.stderr.contains(said), "{run:?}");
    }
}
