//! The worker alone, through its gRPC API, as a program would use it that was
//! generated from the published contract.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    time::Duration,
};

use jobctl::{
    ids::JobId,
    proto::{
        CODE, JobState, JobStatus, OutputStream, QueryJobRequest, StartJobRequest, StopJobRequest,
        StreamJobRequest, StreamJobResponse, worker_client::WorkerClient,
    },
    roles::worker::{self, Config, ControlGroups, OnStop, Security},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::support::{self, Folder, gone, within};

/// How jobs are ended: here with control groups, if the machine has them.
const BOTH_WAYS: [ControlGroups; 2] = [ControlGroups::WherePossible, ControlGroups::Never];

/// A worker whose scheduler is not there.
pub(crate) struct TestWorker {
    pub(crate) dir: Folder,
    pub(crate) client: WorkerClient<Channel>,
    address: String,
    shutdown: CancellationToken,
    role: JoinHandle<Result<(), worker::Error>>,
}

fn config(dir: &Path) -> Config {
    Config {
        name: "w1".into(),
        labels: Default::default(),
        slots: None,
        // Reserved for tests like this one: nothing ever listens there.
        scheduler: Some("127.0.0.1:1".into()),
        security: Security::Insecure,
        bounds: worker::bounds(1024),
        advertise: None,
        data_dir: dir.join("data"),
        script_dir: None,
        shim: support::binary(),
        grace: Duration::from_millis(300),
        output_limit: 1 << 30,
        min_free_disk: 0,
        keep_finished: 100,
        on_stop: OnStop::EndJobs,
        control_groups: ControlGroups::WherePossible,
        rules: Default::default(),
    }
}

impl TestWorker {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = Folder::new();
        let mut config = config(dir.path());
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let role = tokio::spawn(worker::run(config, listener, shutdown.clone()));
        let client = within(WorkerClient::connect(format!("http://{address}")));
        Self {
            dir,
            client: client.await.unwrap(),
            address,
            shutdown,
            role,
        }
    }

    pub(crate) fn scripts(&self) -> std::path::PathBuf {
        self.dir.path().join("data/scripts")
    }

    pub(crate) async fn start_job(&self, request: StartJobRequest) -> Result<JobId, Status> {
        let response = within(self.client.clone().start_job(request)).await?;
        Ok(response.into_inner().job_id.parse().unwrap())
    }

    pub(crate) async fn sh(&self, script: &str) -> JobId {
        self.start_job(sh(script)).await.unwrap()
    }

    pub(crate) async fn stop(&self, id: JobId, grace_ms: Option<u64>) -> Result<(), Status> {
        let request = StopJobRequest {
            job_id: id.to_string(),
            grace_ms,
            ..Default::default()
        };
        within(self.client.clone().stop_job(request)).await?;
        Ok(())
    }

    pub(crate) async fn query(&self, id: JobId) -> Result<JobStatus, Status> {
        let job_id = id.to_string();
        let request = QueryJobRequest { job_id, epoch: 0 };
        let response = within(self.client.clone().query_job(request)).await?;
        Ok(response.into_inner().status.unwrap())
    }

    async fn stream(&self, request: StreamJobRequest) -> Result<Vec<StreamJobResponse>, Status> {
        stream(&self.client, request).await
    }

    /// Follows a job to its end. Returns what it wrote and how it ended.
    pub(crate) async fn follow(&self, id: JobId) -> (Vec<u8>, JobStatus) {
        follow(&self.client, id).await
    }

    pub(crate) async fn text(&self, id: JobId) -> String {
        String::from_utf8(self.follow(id).await.0).unwrap()
    }

    /// Shuts the worker down and returns once it has ended.
    pub(crate) async fn shut_down(self) {
        self.shutdown.cancel();
        within(self.role).await.unwrap().unwrap();
    }
}

async fn stream(
    client: &WorkerClient<Channel>,
    request: StreamJobRequest,
) -> Result<Vec<StreamJobResponse>, Status> {
    let mut stream = within(client.clone().stream_job(request))
        .await?
        .into_inner();
    let mut messages = Vec::new();
    while let Some(message) = within(stream.message()).await? {
        messages.push(message);
    }
    Ok(messages)
}

/// Follows a job to its end. Returns what it wrote and how it ended.
pub(crate) async fn follow(client: &WorkerClient<Channel>, id: JobId) -> (Vec<u8>, JobStatus) {
    let messages = stream(client, from(id, 0)).await.unwrap();
    let (end, output) = messages.split_last().unwrap();
    let bytes: Vec<u8> = output.iter().flat_map(|m| m.output.to_vec()).collect();
    assert_eq!(end.offset, bytes.len() as u64);
    (bytes, end.end.clone().unwrap())
}

pub(crate) fn sh(script: &str) -> StartJobRequest {
    StartJobRequest {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        ..Default::default()
    }
}

fn from(id: JobId, offset: u64) -> StreamJobRequest {
    StreamJobRequest {
        job_id: id.to_string(),
        offset,
        ..Default::default()
    }
}

pub(crate) fn code(status: &Status) -> &str {
    status.metadata().get(CODE).unwrap().to_str().unwrap()
}

#[tokio::test]
async fn a_published_client_starts_streams_and_queries() {
    let worker = TestWorker::start().await;
    fs::write(worker.scripts().join("count.sh"), "echo one; echo two\n").unwrap();
    let request = StartJobRequest {
        command: "bash".into(),
        path: "count.sh".into(),
        ..Default::default()
    };
    let id = worker.start_job(request).await.unwrap();
    let (output, status) = worker.follow(id).await;
    assert_eq!(output, b"one\ntwo\n");
    assert_eq!(status.state(), JobState::Succeeded);
    assert_eq!(status.exit_code, Some(0));
    assert_eq!(status.output_bytes, 8);
    assert!(status.started_us.unwrap() <= status.ended_us.unwrap());
    assert_eq!(worker.query(id).await.unwrap(), status);
    worker.shut_down().await;
}

#[tokio::test]
async fn ends_are_told_apart() {
    let worker = TestWorker::start().await;
    let id = worker.sh("exit 7").await;
    let (_, status) = worker.follow(id).await;
    assert_eq!(status.state(), JobState::Failed);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (Some(7), "exit status 7")
    );

    let id = worker.sh("kill -9 $$").await;
    let (_, status) = worker.follow(id).await;
    assert_eq!(status.state(), JobState::Failed);
    assert_eq!(
        (status.signal, status.reason.as_str()),
        (Some(9), "signal: killed")
    );

    let mut request = sh("sleep 600");
    request.timeout_ms = 100;
    let id = worker.start_job(request).await.unwrap();
    let (_, status) = worker.follow(id).await;
    assert_eq!(status.state(), JobState::TimedOut);
    assert_eq!(status.reason, "timed out after 100ms");
    worker.shut_down().await;
}

#[tokio::test]
async fn a_job_has_a_clean_place_to_run_in() {
    let worker = TestWorker::start().await;
    let mut request = sh(
        "env | sort; echo cwd=$(pwd); echo fds=$(ls /proc/self/fd | tr '\\n' ' '); \
         echo session=$(ps -o sid= -p $$ | tr -d ' ') pid=$$; cat; echo stdin at its end",
    );
    request.env = [("GREETING".to_owned(), "hello world".to_owned())].into();
    let id = worker.start_job(request).await.unwrap();
    let text = worker.text(id).await;
    let line = |start: &str| {
        let found = text.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} in {text}"))
    };
    assert_eq!(line("GREETING="), "GREETING=hello world");
    assert_eq!(line("JOBCTL_JOB_ID="), format!("JOBCTL_JOB_ID={id}"));
    assert!(
        !text.contains("CARGO"),
        "the worker's environment leaks: {text}"
    );
    let cwd = worker.scripts().canonicalize().unwrap();
    assert_eq!(line("cwd="), format!("cwd={}", cwd.display()));
    // 3 is the folder that ls itself opened.
    assert_eq!(line("fds=").trim_end(), "fds=0 1 2 3");
    let (session, pid) = line("session=").split_once(' ').unwrap();
    assert_eq!(
        session.trim_start_matches("session="),
        pid.trim_start_matches("pid=")
    );
    assert_eq!(line("stdin"), "stdin at its end");
    worker.shut_down().await;
}

#[tokio::test]
async fn scripts_run_with_and_without_a_command() {
    let worker = TestWorker::start().await;
    let script = worker.scripts().join("show.sh");
    fs::write(&script, "#!/bin/sh\necho \"$JOBCTL_SCRIPT: $1, $2\"\n").unwrap();
    let request = |command: &str| StartJobRequest {
        command: command.into(),
        path: "show.sh".into(),
        args: vec!["$(id)".into(), "-x".into()],
        ..Default::default()
    };
    let id = worker.start_job(request("sh")).await.unwrap();
    assert_eq!(worker.text(id).await, "show.sh: $(id), -x\n");

    let error = worker.start_job(request("")).await.unwrap_err();
    assert_eq!(code(&error), "not_executable");
    assert!(error.message().contains("script show.sh"), "{error}");

    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let id = worker.start_job(request("")).await.unwrap();
    assert_eq!(worker.text(id).await, "show.sh: $(id), -x\n");
    worker.shut_down().await;
}

#[tokio::test]
async fn what_cannot_run_is_refused_by_name_and_recorded() {
    let worker = TestWorker::start().await;
    symlink("/etc/passwd", worker.scripts().join("link")).unwrap();
    let program = |command: &str| StartJobRequest {
        command: command.into(),
        ..Default::default()
    };
    let script = |path: &str| StartJobRequest {
        command: "sh".into(),
        path: path.into(),
        ..Default::default()
    };
    for (mut request, name, expected) in [
        (
            program("no-such-program"),
            "no-such-program",
            "program_not_found",
        ),
        (program("/etc/passwd"), "/etc/passwd", "not_executable"),
        (script("no.sh"), "no.sh", "script_not_found"),
        (
            script("../../etc/passwd"),
            "../../etc/passwd",
            "outside_script_folder",
        ),
        (
            script("/etc/passwd"),
            "/etc/passwd",
            "outside_script_folder",
        ),
        (script("link"), "link", "outside_script_folder"),
        (script("."), ".", "not_a_file"),
    ] {
        let id = JobId::random();
        request.job_id = id.to_string();
        let error = worker.start_job(request).await.unwrap_err();
        assert_eq!(code(&error), expected, "{error}");
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(
            error.message().contains(name) && error.message().contains("w1"),
            "{error}"
        );
        let status = worker.query(id).await.unwrap();
        assert_eq!(status.state(), JobState::Failed);
        assert_eq!(status.start_error, expected);
        assert_eq!((status.pid, status.exit_code), (None, None));
    }
    let error = worker.start_job(program("")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    worker.shut_down().await;
}

#[tokio::test]
async fn stdout_and_stderr_stay_apart_and_in_order() {
    let worker = TestWorker::start().await;
    let fifo = worker.dir.path().join("fifo");
    // Each write waits until the one before was seen, so their order is known.
    let script = format!(
        "mkfifo {fifo}; for i in 1 2 3; do echo out $i; read x < {fifo}; echo err $i >&2; read x < {fifo}; done",
        fifo = fifo.display()
    );
    let id = worker.sh(&script).await;
    let mut client = worker.client.clone();
    let mut stream = within(client.stream_job(from(id, 0)))
        .await
        .unwrap()
        .into_inner();
    let mut offset = 0;
    let mut held = Vec::new();
    for expected in [
        "out 1\n", "err 1\n", "out 2\n", "err 2\n", "out 3\n", "err 3\n",
    ] {
        let message = within(stream.message()).await.unwrap().unwrap();
        assert_eq!(message.output, expected);
        assert_eq!(message.offset, offset);
        let stream = match expected.starts_with("out") {
            true => OutputStream::Stdout,
            false => OutputStream::Stderr,
        };
        assert_eq!(message.stream(), stream);
        offset += message.output.len() as u64;
        // For reading too, so that opening it does not wait for the job.
        let mut fifo = File::options().read(true).write(true).open(&fifo).unwrap();
        fifo.write_all(b"\n").unwrap();
        held.push(fifo);
    }
    assert!(
        within(stream.message())
            .await
            .unwrap()
            .unwrap()
            .end
            .is_some()
    );
    let request = StreamJobRequest {
        stream: OutputStream::Stderr.into(),
        ..from(id, 7)
    };
    let messages = worker.stream(request).await.unwrap();
    let text: Vec<_> = messages.iter().map(|m| m.output.clone()).collect();
    assert_eq!(text.concat(), b"rr 1\nerr 2\nerr 3\n");
    worker.shut_down().await;
}

#[tokio::test]
async fn a_reader_behind_the_end_is_told_so() {
    let worker = TestWorker::start().await;
    let id = worker.sh("printf 12345").await;
    worker.follow(id).await;
    assert_eq!(worker.stream(from(id, 5)).await.unwrap().len(), 1);
    let error = worker.stream(from(id, 6)).await.unwrap_err();
    assert_eq!(
        (error.code(), code(&error)),
        (Code::OutOfRange, "offset_past_end")
    );
    let error = worker.stream(from(JobId::random(), 0)).await.unwrap_err();
    assert_eq!(
        (error.code(), code(&error)),
        (Code::NotFound, "job_not_found")
    );
    worker.shut_down().await;
}

#[tokio::test]
async fn stop_ends_a_job_that_ignores_term() {
    for control_groups in BOTH_WAYS {
        let worker = TestWorker::with(|config| config.control_groups = control_groups).await;
        let id = worker
            .sh("trap '' TERM; echo ready; while :; do sleep 600; done")
            .await;
        let mut stream = within(worker.client.clone().stream_job(from(id, 0)))
            .await
            .unwrap()
            .into_inner();
        within(stream.message()).await.unwrap();
        worker.stop(id, None).await.unwrap();
        let status = worker.query(id).await.unwrap();
        assert_eq!(status.state(), JobState::Stopped);
        assert_eq!(
            (status.signal, status.reason.as_str()),
            (Some(9), "stopped: signal: killed")
        );
        let error = worker.stop(id, None).await.unwrap_err();
        assert_eq!(
            (error.code(), code(&error)),
            (Code::FailedPrecondition, "job_finished")
        );
        worker.shut_down().await;
    }
}

#[tokio::test]
async fn stop_kills_a_daemon_that_left_the_session() {
    for control_groups in BOTH_WAYS {
        let worker = TestWorker::with(|config| config.control_groups = control_groups).await;
        let script = "setsid sh -c 'trap \"\" TERM; setsid sleep 600 & echo $! $$; wait' & wait";
        let id = worker.sh(script).await;
        let mut stream = within(worker.client.clone().stream_job(from(id, 0)))
            .await
            .unwrap()
            .into_inner();
        let pids = within(stream.message()).await.unwrap().unwrap().output;
        let pids = String::from_utf8(pids.to_vec()).unwrap();
        let neighbour = worker.sh("sleep 600").await;
        worker.stop(id, None).await.unwrap();
        for pid in pids.split_whitespace() {
            assert!(gone(pid), "{pid} survived");
        }
        assert_eq!(worker.query(id).await.unwrap().state(), JobState::Stopped);
        assert_eq!(
            worker.query(neighbour).await.unwrap().state(),
            JobState::Running
        );
        worker.shut_down().await;
    }
}

#[tokio::test]
async fn stop_overtakes_a_tree_that_forks_on() {
    for control_groups in BOTH_WAYS {
        let worker = TestWorker::with(|config| config.control_groups = control_groups).await;
        let script = "spin() { trap '' TERM; while :; do sleep 0.01 & sleep 0.01; done; }; \
                  spin & spin & (setsid sh -c 'while :; do sleep 0.01; done' &) ; echo ready; wait";
        let id = worker.sh(script).await;
        let mut stream = within(worker.client.clone().stream_job(from(id, 0)))
            .await
            .unwrap()
            .into_inner();
        within(stream.message()).await.unwrap();
        worker.stop(id, Some(0)).await.unwrap();
        assert_eq!(worker.query(id).await.unwrap().state(), JobState::Stopped);
        assert!(support::processes_of(id).is_empty());
        worker.shut_down().await;
    }
}

#[tokio::test]
async fn what_the_main_process_leaves_behind_is_ended_too() {
    for control_groups in BOTH_WAYS {
        let worker = TestWorker::with(|config| config.control_groups = control_groups).await;
        let id = worker.sh("sleep 600 & echo $!; exit 3").await;
        let (output, status) = worker.follow(id).await;
        assert_eq!(status.exit_code, Some(3));
        assert_eq!(status.state(), JobState::Failed);
        assert_eq!(status.reason, "exit status 3; ended 1 process that it left");
        assert!(gone(String::from_utf8(output).unwrap().trim()));
        // A success stays one, and is not silent about what was ended.
        let id = worker
            .sh("setsid sleep 600 & setsid sleep 600 & sleep 0")
            .await;
        let (_, status) = worker.follow(id).await;
        assert_eq!(status.state(), JobState::Succeeded);
        assert_eq!(
            (status.swept, status.reason.as_str()),
            (2, "ended 2 processes that it left")
        );
        let id = worker.sh("sleep 0 & wait").await;
        let (_, status) = worker.follow(id).await;
        assert_eq!((status.swept, status.reason.as_str()), (0, ""));
        worker.shut_down().await;
    }
}

#[tokio::test]
async fn a_stop_shortens_the_grace_of_an_earlier_one() {
    let worker = TestWorker::start().await;
    let id = worker
        .sh("trap '' TERM; echo ready; while :; do sleep 600; done")
        .await;
    let mut stream = within(worker.client.clone().stream_job(from(id, 0)))
        .await
        .unwrap()
        .into_inner();
    within(stream.message()).await.unwrap();
    let patient = StopJobRequest {
        job_id: id.to_string(),
        grace_ms: Some(3_600_000),
        no_wait: true,
        ..Default::default()
    };
    within(worker.client.clone().stop_job(patient))
        .await
        .unwrap();
    assert_eq!(worker.query(id).await.unwrap().state(), JobState::Running);
    worker.stop(id, Some(0)).await.unwrap();
    assert_eq!(worker.query(id).await.unwrap().state(), JobState::Stopped);
    worker.shut_down().await;
}

#[tokio::test]
async fn a_signal_can_be_chosen() {
    let worker = TestWorker::start().await;
    let id = worker
        .sh("trap 'echo got INT; exit 5' INT; echo ready; while :; do sleep 0.05; done")
        .await;
    let mut stream = within(worker.client.clone().stream_job(from(id, 0)))
        .await
        .unwrap()
        .into_inner();
    within(stream.message()).await.unwrap();
    let request = StopJobRequest {
        job_id: id.to_string(),
        signal: 2,
        grace_ms: Some(60_000),
        ..Default::default()
    };
    within(worker.client.clone().stop_job(request))
        .await
        .unwrap();
    let (output, status) = worker.follow(id).await;
    assert_eq!(output, b"ready\ngot INT\n");
    assert_eq!(
        (status.state(), status.exit_code),
        (JobState::Stopped, Some(5))
    );
    let request = StopJobRequest {
        job_id: id.to_string(),
        signal: 99,
        ..Default::default()
    };
    let error = within(worker.client.clone().stop_job(request))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    worker.shut_down().await;
}

#[tokio::test]
async fn an_id_is_used_once() {
    let worker = TestWorker::start().await;
    let mut request = sh("true");
    request.job_id = JobId::random().to_string();
    worker.start_job(request.clone()).await.unwrap();
    let error = worker.start_job(request).await.unwrap_err();
    assert_eq!(
        (error.code(), code(&error)),
        (Code::AlreadyExists, "job_exists")
    );
    let request = StartJobRequest {
        session: "an older one".into(),
        ..sh("true")
    };
    let error = worker.start_job(request).await.unwrap_err();
    assert_eq!(code(&error), "session_over");
    worker.shut_down().await;
}

#[tokio::test]
async fn every_byte_of_a_large_output_arrives() {
    let worker = TestWorker::start().await;
    let id = worker
        .sh("head -c 20000000 /dev/urandom | tee /dev/stderr | sha256sum >&2")
        .await;
    let messages = worker.stream(from(id, 0)).await.unwrap();
    let mut of = [Vec::new(), Vec::new()];
    for message in &messages {
        of[usize::from(message.stream() == OutputStream::Stderr)]
            .extend_from_slice(&message.output);
    }
    // tee's own standard output went into the pipe; all is on stderr, hash last.
    let [stdout, stderr] = of;
    assert!(stdout.is_empty());
    assert_eq!(stderr.len(), 20_000_000 + 68);
    let (bytes, hash) = stderr.split_at(20_000_000);
    assert!(hash.starts_with(support::sha256(bytes).as_bytes()));
    worker.shut_down().await;
}

#[tokio::test]
async fn followers_that_do_not_read_slow_nobody() {
    let worker = TestWorker::start().await;
    let id = worker.sh("head -c 50000000 /dev/zero; echo done >&2").await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut client = worker.client.clone();
        idle.push(within(client.stream_job(from(id, 0))).await.unwrap());
    }
    let other = WorkerClient::connect(format!("http://{}", worker.address))
        .await
        .unwrap();
    let mut stream = within(other.clone().stream_job(from(id, 0)))
        .await
        .unwrap()
        .into_inner();
    let mut bytes = 0;
    while let Some(message) = within(stream.message()).await.unwrap() {
        bytes += message.output.len();
    }
    assert_eq!(bytes, 50_000_005);
    drop(idle);
    worker.shut_down().await;
}

#[tokio::test]
async fn kill_of_a_shim_ends_the_whole_job_which_is_lost() {
    for control_groups in BOTH_WAYS {
        let worker = TestWorker::with(|config| config.control_groups = control_groups).await;
        let neighbour = worker.sh("sleep 600").await;
        let id = worker
            .sh("env -i sleep 600 & sh -c 'trap \"\" TERM; sleep 600; :' & echo $PPID; wait")
            .await;
        let mut stream = within(worker.client.clone().stream_job(from(id, 0)))
            .await
            .unwrap()
            .into_inner();
        let shim = within(stream.message()).await.unwrap().unwrap().output;
        let shim: i32 = String::from_utf8(shim.to_vec())
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        support::kill(shim);
        let (output, status) = worker.follow(id).await;
        assert_eq!(status.state(), JobState::Lost);
        let reason = match control_groups == ControlGroups::WherePossible {
            true if groups(&worker).is_some() => "lost: its shim was killed",
            // This worker shares its process with others, and adopts nothing.
            _ => {
                "lost: its shim was killed; processes that had left its session may still be there"
            }
        };
        assert_eq!((status.exit_code, status.reason.as_str()), (None, reason));
        assert!(
            support::processes_of(id).is_empty(),
            "lost means that nothing is left"
        );
        assert_eq!(output, format!("{shim}\n").into_bytes());
        assert_eq!(
            worker.query(neighbour).await.unwrap().state(),
            JobState::Running
        );
        worker.shut_down().await;
    }
}

#[tokio::test]
async fn output_beyond_the_limit_goes_and_readers_are_told() {
    let worker = TestWorker::with(|config| config.output_limit = 1 << 20).await;
    let id = worker.sh("head -c 5000000 /dev/zero; echo end").await;
    let messages = worker.stream(from(id, 0)).await.unwrap();
    let mut position = 0;
    let (mut gaps, mut bytes) = (0, 0);
    for message in &messages[..messages.len() - 1] {
        assert_eq!(
            message.offset, position,
            "every byte is shown or said to be missing"
        );
        position += message.gap + message.output.len() as u64;
        gaps += message.gap;
        bytes += message.output.len() as u64;
    }
    let end = &messages[messages.len() - 1];
    assert_eq!((position, end.offset), (5_000_004, 5_000_004));
    assert_eq!(gaps + bytes, 5_000_004);
    assert!(bytes >= 1 << 20);
    assert_eq!(end.end.as_ref().unwrap().output_bytes, 5_000_004);
    // Whoever comes later sees the last of it.
    let messages = worker.stream(from(id, 0)).await.unwrap();
    assert!(messages[0].gap >= 5_000_004 - (1 << 20) - (1 << 18));
    let tail: Vec<u8> = messages.iter().flat_map(|m| m.output.to_vec()).collect();
    assert!(tail.ends_with(b"end\n"));
    worker.shut_down().await;
}

#[tokio::test]
async fn a_job_starts_with_no_signal_ignored() {
    let worker = TestWorker::start().await;
    let id = worker.sh("grep SigIgn /proc/self/status").await;
    let text = worker.text(id).await;
    let ignored = u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(ignored, 0, "{text}");
    worker.shut_down().await;
}

#[tokio::test]
async fn jobs_get_the_limit_of_open_files_that_the_worker_was_given() {
    let given = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let worker = TestWorker::start().await;
    let id = worker.sh("ulimit -n").await;
    let text = worker.text(id).await;
    // Another worker of this test process may have raised it by now.
    let raised = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let seen: u64 = text.trim().parse().unwrap();
    assert!(
        [given, raised].contains(&Some(seen)),
        "{seen} {given:?} {raised:?}"
    );
    worker.shut_down().await;
}

#[tokio::test]
async fn a_drained_worker_ends_jobs_and_finishes_streams() {
    let worker = TestWorker::start().await;
    let id = worker
        .sh("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
        .await;
    let mut stream = within(worker.client.clone().stream_job(from(id, 0)))
        .await
        .unwrap()
        .into_inner();
    within(stream.message()).await.unwrap();
    worker.shutdown.cancel();
    let mut output = Vec::new();
    let end = loop {
        let message = within(stream.message()).await.unwrap().unwrap();
        match message.end {
            Some(end) => break end,
            None => output.extend_from_slice(&message.output),
        }
    };
    // The shell may add a word of its own about the signal.
    assert!(String::from_utf8(output).unwrap().contains("bye\n"));
    assert_eq!(
        (end.state(), end.reason.as_str()),
        (JobState::Stopped, "stopped: exit status 0")
    );
    within(worker.role).await.unwrap().unwrap();
    assert!(support::processes_of(id).is_empty());
}

#[tokio::test]
async fn a_data_folder_has_one_worker() {
    let worker = TestWorker::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = worker::run(
        config(worker.dir.path()),
        listener,
        CancellationToken::new(),
    );
    let error = within(second).await.unwrap_err();
    assert!(matches!(error, worker::Error::DataDirInUse(_)));
    assert!(error.to_string().contains("is in use by another worker"));
    worker.shut_down().await;
}

#[tokio::test]
async fn a_script_folder_that_is_not_there_is_named() {
    let dir = Folder::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        script_dir: Some("/no/such/folder".into()),
        ..config(dir.path())
    };
    let error = within(worker::run(config, listener, CancellationToken::new()))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot use /no/such/folder");
}

#[tokio::test]
async fn a_job_that_the_worker_could_not_begin_may_come_again() {
    // A place for the program of shims, and nothing there yet.
    let bin = tempfile::tempdir().unwrap();
    let shim = bin.path().join("jobctl");
    let worker = TestWorker::with(|config| config.shim = shim.clone()).await;
    let mut request = sh("echo here");
    let id = JobId::random();
    request.job_id = id.to_string();
    let error = worker.start_job(request.clone()).await.unwrap_err();
    assert_eq!(
        (error.code(), code(&error)),
        (Code::Unavailable, "worker_short"),
        "{error}"
    );
    let missing = format!("{}, is missing", shim.display());
    assert!(error.message().contains(&missing), "{error}");
    let unknown = worker.query(id).await.unwrap_err();
    assert_eq!(code(&unknown), "job_not_found");
    symlink(support::binary(), &shim).unwrap();
    worker.start_job(request).await.unwrap();
    assert_eq!(worker.text(id).await, "here\n");
    // Nor does the next worker take the first attempt for lost.
    let journal = fs::read(worker.dir.path().join("data/journal")).unwrap();
    let journal = String::from_utf8_lossy(&journal);
    assert!(journal.contains(&format!("{{\"acknowledged\":[\"{id}\"]}}")));
    worker.shut_down().await;
}

#[tokio::test]
async fn folders_of_the_worker_that_were_removed_are_made_again() {
    let worker = TestWorker::start().await;
    let data = worker.dir.path().join("data");
    for folder in ["output", "results", "scripts"] {
        fs::remove_dir_all(data.join(folder)).unwrap();
        let id = worker.sh("echo here").await;
        assert_eq!(worker.text(id).await, "here\n");
        assert!(data.join(folder).is_dir());
    }
    worker.shut_down().await;
}

/// The jobs of a worker that have control groups; `None` where it can make none.
pub(crate) fn groups(worker: &TestWorker) -> Option<Vec<JobId>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mount = Path::new(mount.split(' ').nth(4).unwrap());
    let folder = fs::metadata(worker.dir.path().join("data")).unwrap();
    let name = format!("jobctl-w1-{}-{}", folder.dev(), folder.ino());
    let groups = fs::read_dir(mount.join(own).join(name)).ok()?.flatten();
    let jobs = groups.filter_map(|group| group.file_name().to_str()?.parse().ok());
    Some(jobs.collect())
}

#[tokio::test]
async fn a_job_that_could_not_be_started_leaves_no_control_group() {
    // Refused by its shim, and for want of one.
    for (shim, expected) in [
        (support::binary(), "interpreter_not_found"),
        ("/no/such/jobctl".into(), "worker_short"),
    ] {
        let worker = TestWorker::with(|config| config.shim = shim).await;
        let program = worker.dir.path().join("program");
        fs::write(&program, "#!/no/such/interpreter\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let request = StartJobRequest {
            command: program.display().to_string(),
            ..Default::default()
        };
        let error = worker.start_job(request).await.unwrap_err();
        assert_eq!(code(&error), expected, "{error}");
        if let Some(groups) = groups(&worker) {
            assert_eq!(groups, []);
        }
        worker.shut_down().await;
    }
}

#[tokio::test]
async fn nothing_that_was_not_told_is_forgotten() {
    let worker = TestWorker::with(|config| config.keep_finished = 1).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = worker.sh("echo x").await;
        worker.follow(id).await;
        ids.push(id);
    }
    for id in ids {
        assert_eq!(worker.query(id).await.unwrap().state(), JobState::Succeeded);
    }
    worker.shut_down().await;
}

#[tokio::test]
async fn health_and_reflection_are_there() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let worker = TestWorker::start().await;
    let channel = Channel::from_shared(format!("http://{}", worker.address))
        .unwrap()
        .connect_lazy();
    let service = "jobscheduler.Worker".to_owned();
    let check = HealthCheckRequest { service };
    let health = within(HealthClient::new(channel.clone()).check(check))
        .await
        .unwrap();
    assert_eq!(health.into_inner().status, 1);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let answer = within(client.server_reflection_info(tokio_stream::iter([list])))
        .await
        .unwrap();
    let answer = within(answer.into_inner().message())
        .await
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    assert!(
        list.service
            .iter()
            .any(|service| service.name == "jobscheduler.Worker")
    );
    worker.shut_down().await;
}
