//! `POST /start`, from the client to the process and back.

use jobctl::{
    api::{JobState, StartRequest, code},
    client::Error,
};

use crate::{
    cluster::{TestCluster, sh},
    support::within,
    typed::Jobctl,
};

fn refusal(error: &Error) -> (u16, &str, Option<jobctl::ids::JobId>) {
    match error {
        Error::Refused { status, error } => (*status, &error.code, error.job_id),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_script_runs_on_the_worker_that_was_named() {
    let cluster = TestCluster::start(2).await;
    cluster.script(2, "count.sh", "for i in $(seq $1); do echo $i; done\n");
    let request = StartRequest {
        worker_id: Some("w2".into()),
        command: Some("bash".into()),
        path: Some("count.sh".into()),
        args: vec!["3".into()],
        name: Some("counting".into()),
        ..Default::default()
    };
    let id = cluster.start_job(&request).await.unwrap();
    assert_eq!(cluster.output(id).await, b"1\n2\n3\n");
    let job = cluster.end_of(id).await;
    assert_eq!(job.state, JobState::Succeeded);
    assert_eq!(
        (job.exit_code, job.signal, job.reason),
        (Some(0), None, None)
    );
    assert_eq!(job.worker.as_deref(), Some("w2"));
    assert_eq!(job.name.as_deref(), Some("counting"));
    assert_eq!(job.output_bytes, 6);
    assert!(job.created_at <= job.started_at.unwrap());
    assert!(job.started_at.unwrap() <= job.ended_at.unwrap());

    let elsewhere = StartRequest {
        worker_id: Some("w1".into()),
        ..request
    };
    let error = cluster.start_job(&elsewhere).await.unwrap_err();
    assert_eq!(refusal(&error).1, code::SCRIPT_NOT_FOUND);
    cluster.end().await;
}

#[tokio::test]
async fn without_a_worker_the_least_busy_is_taken() {
    let cluster = TestCluster::start(2).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let id = cluster.sh("sleep 600").await;
        seen.push(cluster.job(id).await.worker.unwrap());
    }
    seen.sort();
    assert_eq!(seen, ["w1", "w1", "w2", "w2"]);
    cluster.end().await;
}

#[tokio::test]
async fn environment_folder_and_timeout_arrive() {
    let cluster = TestCluster::start(1).await;
    let request = StartRequest {
        env: [("GREETING".into(), "hello".into())].into(),
        cwd: Some("/".into()),
        timeout_ms: Some(200),
        ..sh("echo $GREETING from $(pwd), $JOBCTL_JOB_ID; sleep 600")
    };
    let id = cluster.start_job(&request).await.unwrap();
    let text = String::from_utf8(cluster.output(id).await).unwrap();
    assert_eq!(text.lines().next().unwrap(), format!("hello from /, {id}"));
    let job = cluster.end_of(id).await;
    assert_eq!(job.state, JobState::TimedOut);
    assert_eq!(job.reason.as_deref(), Some("timed out after 200ms"));
    assert_eq!(job.env, ["GREETING"]);
    cluster.end().await;
}

#[tokio::test]
async fn what_the_worker_refuses_is_recorded_as_failed() {
    let cluster = TestCluster::start(1).await;
    for (request, expected, name) in [
        (
            StartRequest {
                command: Some("no-such-program".into()),
                ..Default::default()
            },
            code::PROGRAM_NOT_FOUND,
            "no-such-program",
        ),
        (
            StartRequest {
                command: Some("/etc/passwd".into()),
                ..Default::default()
            },
            code::NOT_EXECUTABLE,
            "/etc/passwd",
        ),
        (
            StartRequest {
                path: Some("../worker-id".into()),
                ..Default::default()
            },
            "outside_script_folder",
            "../worker-id",
        ),
    ] {
        let error = cluster.start_job(&request).await.unwrap_err();
        let (status, word, id) = refusal(&error);
        assert_eq!((status, word), (422, expected));
        assert!(error.to_string().contains(name), "{error}");
        let job = cluster.job(id.unwrap()).await;
        assert_eq!(job.state, JobState::Failed);
        assert_eq!(job.start_error.as_deref(), Some(expected));
        assert!(job.reason.unwrap().contains(name));
        assert_eq!((job.exit_code, job.pid), (None, None));
        assert_eq!(cluster.output(id.unwrap()).await, b"");
    }
    cluster.end().await;
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_is_recorded() {
    let cluster = TestCluster::start(1).await;
    let nul = sh("echo \0");
    let empty = StartRequest::default();
    let relative = StartRequest {
        cwd: Some("tmp".into()),
        ..sh("true")
    };
    let unnamable = StartRequest {
        name: Some("a b".into()),
        ..sh("true")
    };
    let many = StartRequest {
        args: vec!["x".into(); 100_000],
        ..sh("true")
    };
    let much = StartRequest {
        env: [("A".to_owned(), "x".repeat(256 * 1024))].into(),
        ..sh("true")
    };
    let nowhere = StartRequest {
        worker_id: Some("w9".into()),
        ..sh("true")
    };
    for (request, expected) in [
        (nul, 400),
        (empty, 400),
        (relative, 400),
        (unnamable, 400),
        (many, 400),
        (much, 400),
        (nowhere, 404),
    ] {
        let error = cluster.start_job(&request).await.unwrap_err();
        assert_eq!(refusal(&error).0, expected, "{error}");
    }
    let jobs = cluster.client.jobs(&Default::default()).await.unwrap().jobs;
    assert_eq!(jobs, []);
    cluster.end().await;
}

#[tokio::test]
async fn a_user_that_the_worker_does_not_allow_is_refused() {
    let cluster = TestCluster::start(1).await;
    let request = StartRequest {
        user: Some("no-such-user".into()),
        ..sh("true")
    };
    let error = cluster.start_job(&request).await.unwrap_err();
    let (status, word, id) = refusal(&error);
    assert_eq!((status, word), (422, "user_not_allowed"));
    let job = cluster.job(id.unwrap()).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.user.as_deref(), Some("no-such-user"));
    cluster.end().await;
}

#[tokio::test]
async fn the_command_line_ends_as_the_job_does() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let plain = cluster.data_dir(1).join("plain");
    std::fs::write(&plain, "not a program").unwrap();
    let plain = plain.display().to_string();
    for (args, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["sh", "-c", "kill -15 $$"], 143),
        (&["--timeout", "50ms", "sleep", "600"], 124),
        (&[&plain], 126),
        (&["no-such-program"], 127),
        (&["--worker", "w9", "true"], 125),
    ] {
        for stay in ["--wait", "--follow"] {
            let args = [&["start", stay], args].concat();
            jobctl.ask(&args).await.is(code, "");
        }
    }
    let run = jobctl.ask(&["start", "no-such-program"]).await;
    run.is(1, "");
    let hint = "\nhint: see its record with `jobctl query ";
    assert!(run.stderr.contains(hint), "{run:?}");
    cluster.end().await;
}

#[tokio::test]
async fn an_id_that_cannot_be_written_is_in_the_error() {
    let cluster = TestCluster::start(1).await;
    let jobctl = Jobctl::of(&cluster);
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = tokio::process::Command::from(jobctl.command(&["start", "sleep", "600"]));
    command
        .stdout(full.unwrap())
        .stderr(std::process::Stdio::piped());
    let child = command.kill_on_drop(true).spawn().unwrap();
    let output = within(child.wait_with_output()).await.unwrap();
    let jobs = cluster.client.jobs(&Default::default()).await.unwrap().jobs;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), jobs.len()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains(&jobs[0].id.to_string()), "{stderr}");
    cluster.end().await;
}
