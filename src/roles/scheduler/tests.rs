//! The whole role over real HTTP and gRPC on port 0, with a worker that does
//! what a test tells it.

mod durable;

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use prost::Message as _;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;
use crate::{
    api,
    proto::{
        HeartbeatRequest, HeartbeatResponse, JobReport, JobStatus, RegisterWorkerRequest,
        StartJobRequest, StreamJobResponse,
        scheduler_client::SchedulerClient,
        worker_server::{Worker, WorkerServer},
    },
};

/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(10);

/// Finished jobs that are kept where a test does not say otherwise.
const KEEP: u64 = 100;

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.unwrap()
}

struct TestScheduler {
    http: SocketAddr,
    grpc: SocketAddr,
    store: Store,
    dir: Arc<tempfile::TempDir>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    client: reqwest::Client,
}

impl TestScheduler {
    async fn new() -> Self {
        Self::with_heartbeat(Duration::from_secs(60)).await
    }

    async fn with_heartbeat(heartbeat_interval: Duration) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::on(dir, heartbeat_interval, KEEP).await
    }

    /// Another scheduler on the same records, as after a crash.
    async fn restart(self) -> Self {
        self.task.abort();
        assert!(soon(self.task).await.unwrap_err().is_cancelled());
        Self::on(self.dir, Duration::from_secs(60), KEEP).await
    }

    async fn on(dir: Arc<tempfile::TempDir>, heartbeat_interval: Duration, keep: u64) -> Self {
        let listeners = Listeners {
            http: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            grpc: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        };
        let config = Config {
            heartbeat_interval,
            call_deadline: Duration::from_secs(1),
            data_dir: dir.path().to_owned(),
            keep_finished: keep,
            keep_for: Duration::from_secs(3600),
        };
        let http = listeners.http.local_addr().unwrap();
        let grpc = listeners.grpc.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let opened = open(&config, &listeners).await.unwrap();
        Self {
            http,
            grpc,
            store: opened.0.clone(),
            dir,
            task: tokio::spawn(run_on(config, listeners, shutdown.clone(), opened)),
            shutdown,
            client: reqwest::Client::new(),
        }
    }

    async fn grpc(&self) -> SchedulerClient<Channel> {
        let address = format!("http://{}", self.grpc);
        soon(SchedulerClient::connect(address)).await.unwrap()
    }

    async fn register(
        &self,
        request: RegisterWorkerRequest,
    ) -> Result<proto::RegisterWorkerResponse, Status> {
        let answer = soon(self.grpc().await.register_worker(request)).await?;
        Ok(answer.into_inner())
    }

    async fn request(&self, method: Method, path: &str, body: Option<Value>) -> reqwest::Response {
        let mut request = self
            .client
            .request(method, format!("http://{}{path}", self.http));
        if let Some(body) = body {
            request = request.json(&body);
        }
        soon(request.send()).await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let answer = self.request(Method::POST, path, Some(body)).await;
        (answer.status(), soon(answer.json()).await.unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let answer = self.request(Method::GET, path, None).await;
        (answer.status(), soon(answer.json()).await.unwrap())
    }

    async fn text(&self, path: &str, accept: &str, headers: &[(&str, &str)]) -> String {
        let url = format!("http://{}{path}", self.http);
        let mut request = self.client.get(url).header(header::ACCEPT, accept);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = soon(request.send()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        soon(answer.text()).await.unwrap()
    }

    async fn start(&self, command: &str) -> String {
        let (status, body) = self.post("/start", json!({ "command": command })).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["job_id"].as_str().unwrap().to_owned()
    }

    /// The job as soon as it is in that state.
    async fn job(&self, id: &str, state: &str) -> Value {
        soon(async {
            loop {
                // Answers at once with a final state; others are few and near.
                let (_, body) = self
                    .post("/query", json!({ "job_id": id, "wait_ms": 20 }))
                    .await;
                if body["job"]["state"] == state {
                    return body;
                }
            }
        })
        .await
    }

    /// Waits until the one worker there is has that state.
    async fn only_worker_is(&self, state: &str) {
        soon(async {
            let mut pause = tokio::time::interval(Duration::from_millis(5));
            while self.get("/workers").await.1["workers"][0]["state"] != state {
                pause.tick().await;
            }
        })
        .await;
    }

    async fn end(self) {
        self.shutdown.cancel();
        soon(self.task).await.unwrap().unwrap();
    }
}

/// What a job writes; None: the stream stays open behind it.
type Script = (Vec<Result<StreamJobResponse, Status>>, Option<()>);

/// A worker that starts anything but `missing`, and never answers about `slow`.
#[derive(Clone)]
struct FakeWorker {
    started: mpsc::UnboundedSender<StartJobRequest>,
    stopped: mpsc::UnboundedSender<proto::StopJobRequest>,
    streamed: mpsc::UnboundedSender<proto::StreamJobRequest>,
    script: Arc<Mutex<Script>>,
    refusal: Arc<Mutex<Option<Status>>>,
    followers: watch::Sender<usize>,
    /// The jobs called `once` that it was sent.
    seen: Arc<Mutex<HashSet<String>>>,
}

struct Guard(watch::Sender<usize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

fn refused(code: Code, word: &'static str, message: &str) -> Status {
    let mut status = Status::new(code, message);
    let word = tonic::metadata::MetadataValue::from_static(word);
    status.metadata_mut().insert(proto::CODE, word);
    status
}

#[tonic::async_trait]
impl Worker for FakeWorker {
    async fn start_job(
        &self,
        request: Request<StartJobRequest>,
    ) -> Result<Response<proto::StartJobResponse>, Status> {
        let request = request.into_inner();
        let (command, job_id) = (request.command.clone(), request.job_id.clone());
        self.started.send(request).unwrap();
        match command.as_str() {
            "missing" => Err(refused(
                Code::NotFound,
                "program_not_found",
                "program 'missing' not found",
            )),
            "slow" => std::future::pending().await,
            // Answers only to whom asks again.
            "once" if self.seen.lock().unwrap().insert(job_id.clone()) => {
                std::future::pending().await
            }
            "twice" if !self.seen.lock().unwrap().insert(job_id.clone()) => {
                Err(refused(Code::AlreadyExists, "job_exists", "it is here"))
            }
            "twice" => std::future::pending().await,
            _ => Ok(Response::new(proto::StartJobResponse {
                job_id,
                status: Some(status(proto::JobState::Running)),
            })),
        }
    }

    async fn stop_job(
        &self,
        request: Request<proto::StopJobRequest>,
    ) -> Result<Response<proto::StopJobResponse>, Status> {
        self.stopped.send(request.into_inner()).unwrap();
        Ok(Response::new(proto::StopJobResponse {}))
    }

    async fn query_job(
        &self,
        _: Request<proto::QueryJobRequest>,
    ) -> Result<Response<proto::QueryJobResponse>, Status> {
        Ok(Response::new(proto::QueryJobResponse {
            status: Some(status(proto::JobState::Running)),
            ..Default::default()
        }))
    }

    type StreamJobStream = BoxStream<'static, Result<StreamJobResponse, Status>>;

    async fn stream_job(
        &self,
        request: Request<proto::StreamJobRequest>,
    ) -> Result<Response<Self::StreamJobStream>, Status> {
        let request = request.into_inner();
        let offset = request.offset;
        self.streamed.send(request).unwrap();
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        if offset > 1000 {
            let message = "offset is past the end of the output";
            return Err(refused(Code::OutOfRange, "offset_past_end", message));
        }
        let (messages, end) = self.script.lock().unwrap().clone();
        let messages = messages.into_iter().filter(move |message| {
            message
                .as_ref()
                .map_or(true, |m| m.end.is_some() || m.offset >= offset)
        });
        self.followers.send_modify(|count| *count += 1);
        let guard = Guard(self.followers.clone());
        let messages = stream::iter(messages.collect::<Vec<_>>());
        let messages = match end {
            Some(()) => messages.boxed(),
            None => messages.chain(stream::pending()).boxed(),
        };
        let messages = messages.inspect(move |_| {
            let _alive = &guard;
        });
        Ok(Response::new(messages.boxed()))
    }
}

/// A registered worker: its service, and its heartbeat stream.
struct Joined {
    id: String,
    session: String,
    address: SocketAddr,
    started: mpsc::UnboundedReceiver<StartJobRequest>,
    stopped: mpsc::UnboundedReceiver<proto::StopJobRequest>,
    streamed: mpsc::UnboundedReceiver<proto::StreamJobRequest>,
    script: Arc<Mutex<Script>>,
    refusal: Arc<Mutex<Option<Status>>>,
    followers: watch::Receiver<usize>,
    beats: Beats,
}

struct Beats {
    requests: mpsc::Sender<HeartbeatRequest>,
    answers: Streaming<HeartbeatResponse>,
    sequence: u64,
    /// What it was told to forget.
    forget: Vec<String>,
}

fn status(state: proto::JobState) -> JobStatus {
    JobStatus {
        state: state.into(),
        pid: Some(7),
        started_us: Some(1_000_000),
        ..Default::default()
    }
}

fn ended(state: proto::JobState, exit_code: i32) -> JobStatus {
    JobStatus {
        ended_us: Some(2_000_000),
        exit_code: Some(exit_code),
        reason: match exit_code {
            0 => String::new(),
            code => format!("exit status {code}"),
        },
        ..status(state)
    }
}

fn report(job: &str, status: JobStatus) -> JobReport {
    JobReport {
        job_id: job.to_owned(),
        status: Some(status),
        spec: None,
    }
}

fn chunk(offset: u64, output: &'static [u8]) -> StreamJobResponse {
    StreamJobResponse {
        output: output.into(),
        offset,
        time_us: 1_000_000,
        stream: proto::OutputStream::Stderr.into(),
        end: None,
        gap: 0,
    }
}

fn last(offset: u64, status: JobStatus) -> StreamJobResponse {
    StreamJobResponse {
        offset,
        end: Some(status),
        ..Default::default()
    }
}

impl Beats {
    async fn open(scheduler: &TestScheduler, id: &str, session: &str) -> Self {
        let (requests, messages) = mpsc::channel(16);
        let first = HeartbeatRequest {
            worker_id: id.to_owned(),
            session: session.to_owned(),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut grpc = scheduler.grpc().await;
        let answers = soon(grpc.heartbeat(ReceiverStream::new(messages)))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            answers,
            sequence: 0,
            forget: Vec::new(),
        }
    }

    /// Sends a message, and returns when it was taken in.
    async fn send(&mut self, jobs: Vec<JobReport>, snapshot_complete: bool) -> Result<(), Status> {
        self.sequence += 1;
        let message = HeartbeatRequest {
            sequence: self.sequence,
            jobs,
            snapshot_complete,
            ..Default::default()
        };
        // A stream that is over says so in its answers.
        let _ = self.requests.send(message).await;
        self.acknowledged().await
    }

    /// Returns when everything that was sent was taken in.
    async fn acknowledged(&mut self) -> Result<(), Status> {
        loop {
            let answer = soon(self.answers.message()).await?;
            let answer = answer.ok_or_else(|| Status::aborted("closed"))?;
            self.forget.extend(answer.forget);
            if answer.acknowledged == self.sequence {
                return Ok(());
            }
        }
    }

    /// Waits until it was told to forget so many jobs.
    async fn forgets(&mut self, count: usize) -> Vec<String> {
        while self.forget.len() < count {
            let answer = soon(self.answers.message()).await.unwrap().unwrap();
            self.forget.extend(answer.forget);
        }
        std::mem::take(&mut self.forget)
    }

    async fn over(&mut self) -> Status {
        loop {
            match soon(self.answers.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

impl Joined {
    /// A worker that is ready.
    async fn new(scheduler: &TestScheduler, name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (started_tx, started) = mpsc::unbounded_channel();
        let (stopped_tx, stopped) = mpsc::unbounded_channel();
        let (streamed_tx, streamed) = mpsc::unbounded_channel();
        let script: Arc<Mutex<Script>> = Arc::default();
        let refusal: Arc<Mutex<Option<Status>>> = Arc::default();
        let (followers_tx, followers) = watch::channel(0);
        let service = FakeWorker {
            started: started_tx,
            stopped: stopped_tx,
            streamed: streamed_tx,
            script: script.clone(),
            refusal: refusal.clone(),
            followers: followers_tx,
            seen: Arc::default(),
        };
        tokio::spawn(
            Server::builder()
                .add_service(WorkerServer::new(service))
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        let answer = scheduler
            .register(RegisterWorkerRequest {
                address: address.to_string(),
                name: name.to_owned(),
                ..Default::default()
            })
            .await
            .unwrap();
        let mut beats = Beats::open(scheduler, &answer.worker_id, &answer.session).await;
        beats.send(Vec::new(), true).await.unwrap();
        Self {
            id: answer.worker_id,
            session: answer.session,
            address,
            started,
            stopped,
            streamed,
            script,
            refusal,
            followers,
            beats,
        }
    }

    /// Registers anew, as after a restart, without a heartbeat yet.
    async fn register(&mut self, scheduler: &TestScheduler) {
        let answer = scheduler
            .register(RegisterWorkerRequest {
                address: self.address.to_string(),
                name: "w1".to_owned(),
                worker_id: self.id.clone(),
                ..Default::default()
            })
            .await
            .unwrap();
        assert_eq!(answer.worker_id, self.id);
        self.session = answer.session;
    }

    async fn beat(&mut self, scheduler: &TestScheduler) {
        self.beats = Beats::open(scheduler, &self.id, &self.session).await;
    }

    fn writes(&self, messages: Vec<Result<StreamJobResponse, Status>>, end: Option<()>) {
        *self.script.lock().unwrap() = (messages, end);
    }
}

#[tokio::test]
async fn a_job_runs_and_its_end_is_known() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let (status, body) = scheduler
        .post(
            "/v1/start",
            json!({"worker_id": "w1", "command": "sh", "args": ["-c", "exit 3"],
                   "env": {"A": "secret"}, "name": "nightly", "timeout_ms": 600_000}),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let id = body["job_id"].as_str().unwrap();
    assert_eq!(body, json!({ "job_id": id }));
    let sent = soon(worker.started.recv()).await.unwrap();
    assert_eq!((sent.job_id.as_str(), &sent.session), (id, &worker.session));
    assert_eq!((sent.args.len(), sent.env["A"].as_str()), (2, "secret"));
    assert_eq!(sent.timeout_ms, 600_000);

    let (_, body) = scheduler
        .post("/query", json!({ "job_id": "nightly" }))
        .await;
    assert_eq!(body["done"], false);
    assert_eq!(body["job"]["state"], "running");
    assert_eq!(body["job"]["env"], json!(["A"]));
    assert_eq!(body["job"]["pid"], 7);

    let waiting = scheduler.post("/query", json!({ "job_id": "last", "wait_ms": 60_000 }));
    let reports = vec![report(id, ended(proto::JobState::Failed, 3))];
    let (answer, sent) = tokio::join!(waiting, worker.beats.send(reports, false));
    sent.unwrap();
    let body = answer.1;
    assert_eq!(
        (&body["done"], &body["error"], &body["error_text"]),
        (&json!(true), &json!(true), &json!("exit status 3"))
    );
    let reports = vec![report(id, ended(proto::JobState::Succeeded, 0))];
    worker.beats.send(reports, false).await.unwrap();
    let body = scheduler.job(id, "failed").await;
    assert_eq!(body["job"]["exit_code"], 3);

    let (_, body) = scheduler.get("/jobs?state=failed,lost&worker_id=w1").await;
    assert_eq!(body["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(body["next"], Value::Null);
    let (_, body) = scheduler.get("/workers").await;
    assert_eq!(body["workers"][0]["state"], "ready");
    scheduler.end().await;
}

#[tokio::test]
async fn a_refused_start_is_recorded_as_failed() {
    let scheduler = TestScheduler::new().await;
    let _worker = Joined::new(&scheduler, "w1").await;
    let (status, body) = scheduler
        .post("/start", json!({"command": "missing"}))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body["code"], "program_not_found");
    assert_eq!(body["error"], "program 'missing' not found");
    let id = body["job_id"].as_str().unwrap();
    let body = scheduler.job(id, "failed").await;
    assert_eq!(body["job"]["start_error"], "program_not_found");
    assert_eq!(
        body["error_text"],
        "could not start: program 'missing' not found"
    );
    let path = format!("/logs?job_id={id}&follow=true");
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["job"]["state"], "failed");
    let (status, body) = scheduler.get(&format!("/logs?job_id={id}&offset=1")).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (416, &json!("offset_past_end"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn a_start_that_is_not_answered_is_unknown_and_sent_again() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    for command in ["once", "twice"] {
        let (status, body) = scheduler
            .post(
                "/start",
                json!({"command": command, "env": {"A": "secret"}}),
            )
            .await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(body["code"], "worker_unreachable");
        assert_eq!(body["error"], "worker w1 did not answer within 1s");
        let id = body["job_id"].as_str().unwrap().to_owned();
        let first = soon(worker.started.recv()).await.unwrap();
        scheduler.job(&id, "unknown").await;
        worker.register(&scheduler).await;
        worker.beat(&scheduler).await;
        worker.beats.send(Vec::new(), true).await.unwrap();
        scheduler.job(&id, "running").await;
        let again = soon(worker.started.recv()).await.unwrap();
        assert_eq!((&again.job_id, &again.session), (&id, &worker.session));
        assert_eq!(again.env["A"], "secret");
        let same = StartJobRequest {
            session: first.session.clone(),
            ..again
        };
        assert_eq!(same, first);
        let reports = vec![report(&id, ended(proto::JobState::Succeeded, 0))];
        worker.beats.send(reports, false).await.unwrap();
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_start_goes_on_when_its_client_goes_away() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let mut client = TcpStream::connect(scheduler.http).await.unwrap();
    let body = r#"{"command":"slow"}"#;
    let request = format!(
        "POST /start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let sent = soon(worker.started.recv()).await.unwrap();
    drop(client);
    scheduler.job(&sent.job_id, "unknown").await;
    scheduler.end().await;
}

#[tokio::test]
async fn a_new_session_loses_the_jobs_it_does_not_name() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let kept = scheduler.start("true").await;
    let gone = scheduler.start("true").await;
    let mut old = Beats::open(&scheduler, &worker.id, &worker.session).await;
    assert_eq!(worker.beats.over().await.code(), Code::FailedPrecondition);
    worker.register(&scheduler).await;
    assert_eq!(old.over().await.code(), Code::FailedPrecondition);
    let (status, body) = scheduler
        .post("/start", json!({"worker_id": "w1", "command": "true"}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (503, &json!("worker_not_ready"))
    );
    let (status, body) = scheduler.post("/start", json!({"command": "true"})).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (503, &json!("no_worker_ready"))
    );

    worker.beat(&scheduler).await;
    let running = || status_report(&kept);
    worker.beats.send(vec![running()], false).await.unwrap();
    let adopted = "11111111-2222-4333-8444-555555555555";
    let spec = StartJobRequest {
        command: "sleep".to_owned(),
        name: "from-before".to_owned(),
        created_us: 1_000_000,
        ..Default::default()
    };
    let found = JobReport {
        spec: Some(spec),
        ..status_report(adopted)
    };
    worker.beats.send(vec![found], true).await.unwrap();
    let body = scheduler.job(&gone, "lost").await;
    assert_eq!(body["error_text"], "lost: worker restarted");
    assert_eq!(body["job"]["exit_code"], Value::Null);
    scheduler.job(&kept, "running").await;
    let body = scheduler.job("from-before", "running").await;
    assert_eq!(body["job"]["id"], adopted);
    let (_, body) = scheduler.get("/jobs").await;
    assert_eq!(body["jobs"][2]["id"], adopted, "it is the oldest");
    scheduler.end().await;
}

fn status_report(job: &str) -> JobReport {
    report(job, status(proto::JobState::Running))
}

#[tokio::test]
async fn a_silent_worker_is_unreachable_until_it_tells_of_its_jobs() {
    let scheduler = TestScheduler::with_heartbeat(Duration::from_millis(500)).await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let stopping = scheduler.post("/stop", json!({ "job_id": id }));
    let (status, body) = stopping.await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (504, &json!("worker_unreachable"))
    );
    let body = scheduler.job(&id, "unknown").await;
    let reason = body["job"]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("worker w1 has not answered since"),
        "{reason}"
    );
    assert_eq!(worker.beats.over().await.code(), Code::FailedPrecondition);
    for (path, body) in [
        ("/start", json!({"worker_id": "w1", "command": "true"})),
        ("/stop", json!({ "job_id": id })),
    ] {
        let (status, body) = scheduler.post(path, body).await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (504, &json!("worker_unreachable"))
        );
    }
    let (status, _) = scheduler.get(&format!("/logs?job_id={id}")).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);

    let ready = scheduler.request(Method::GET, "/readyz?workers=1&wait_ms=60000", None);
    worker.beat(&scheduler).await;
    let snapshot = vec![status_report(&id)];
    let (ready, sent) = tokio::join!(ready, worker.beats.send(snapshot, true));
    sent.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    scheduler.job(&id, "running").await;
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_whose_stream_broke_gets_no_jobs() {
    let scheduler = TestScheduler::with_heartbeat(Duration::from_secs(60)).await;
    let worker = Joined::new(&scheduler, "w1").await;
    drop(worker.beats);
    scheduler.only_worker_is("joining").await;
    let (status, body) = scheduler.post("/start", json!({"command": "true"})).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (503, &json!("no_worker_ready"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_without_name_and_id_is_known_by_its_address() {
    let scheduler = TestScheduler::new().await;
    let request = RegisterWorkerRequest {
        address: "127.0.0.1:9".to_owned(),
        ..Default::default()
    };
    let first = scheduler.register(request.clone()).await.unwrap();
    let again = scheduler.register(request).await.unwrap();
    assert_eq!(first.worker_id, again.worker_id);
    assert_ne!(first.session, again.session);
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_waits_until_the_job_is_gone() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let other = Joined::new(&scheduler, "w2").await;
    let (_, body) = scheduler
        .post("/start", json!({"worker_id": worker.id, "command": "true"}))
        .await;
    let id = body["job_id"].as_str().unwrap();
    let (status, body) = scheduler
        .post("/stop", json!({"worker_id": other.id, "job_id": id}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("job_on_other_worker"))
    );
    assert!(body["error"].as_str().unwrap().contains("w1"));
    let (status, body) = scheduler
        .post("/stop", json!({"job_id": id, "signal": "NOPE"}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (400, &json!("bad_request"))
    );

    let stop = json!({"job_id": id, "signal": "int", "grace_ms": 5, "no_wait": true});
    let (status, body) = scheduler.post("/stop", stop).await;
    assert_eq!((status, body), (StatusCode::OK, json!({"success": true})));
    let sent = soon(worker.stopped.recv()).await.unwrap();
    assert_eq!(
        (sent.signal, sent.grace_ms, sent.no_wait),
        (2, Some(5), true)
    );

    let stopping = scheduler.post("/stop", json!({"worker_id": "w1", "job_id": id}));
    let ending = async {
        let sent = soon(worker.stopped.recv()).await.unwrap();
        assert_eq!((sent.signal, sent.grace_ms, sent.no_wait), (0, None, true));
        let status = JobStatus {
            exit_code: None,
            signal: Some(15),
            reason: "stopped: signal: terminated".to_owned(),
            ..ended(proto::JobState::Stopped, 0)
        };
        let reports = vec![report(id, status)];
        worker.beats.send(reports, false).await.unwrap();
    };
    let ((status, body), ()) = tokio::join!(stopping, ending);
    assert_eq!((status, body), (StatusCode::OK, json!({"success": true})));
    let body = scheduler.job(id, "stopped").await;
    assert_eq!(body["error_text"], "stopped: signal: terminated");
    let (status, body) = scheduler.post("/stop", json!({ "job_id": id })).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("job_finished"))
    );
    assert!(body["error"].as_str().unwrap().contains("terminated"));
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_that_leaves_takes_its_jobs_along() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let mut grpc = scheduler.grpc().await;
    let goodbye = proto::DeregisterWorkerRequest {
        worker_id: worker.id.clone(),
    };
    assert!(
        soon(grpc.deregister_worker(goodbye))
            .await
            .unwrap()
            .into_inner()
            .success
    );
    assert_eq!(worker.beats.over().await.code(), Code::FailedPrecondition);
    let body = scheduler.job(&id, "lost").await;
    assert_eq!(body["error_text"], "lost: worker left");
    let (status, body) = scheduler
        .post("/start", json!({"worker_id": "w1", "command": "true"}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("worker_left"))
    );
    let stranger = proto::DeregisterWorkerRequest {
        worker_id: nobody(),
    };
    let status = soon(grpc.deregister_worker(stranger)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    scheduler.end().await;
}

fn nobody() -> String {
    crate::ids::WorkerId::random().to_string()
}

#[tokio::test]
async fn registrations_are_checked() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    let asked = RegisterWorkerRequest {
        address: "127.0.0.1:1".to_owned(),
        name: "w1".to_owned(),
        ..Default::default()
    };
    let taken = scheduler.register(asked.clone()).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert_eq!(
        taken.metadata().get(proto::CODE).unwrap(),
        "worker_name_taken"
    );
    assert!(taken.message().contains(&worker.id));
    for bad in [
        RegisterWorkerRequest {
            name: "a b".to_owned(),
            ..asked.clone()
        },
        RegisterWorkerRequest {
            address: "nowhere".to_owned(),
            name: "w2".to_owned(),
            ..asked.clone()
        },
        RegisterWorkerRequest {
            worker_id: "x".to_owned(),
            ..asked.clone()
        },
    ] {
        let status = scheduler.register(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    let mut stranger = Beats::open(&scheduler, &nobody(), "").await;
    assert_eq!(stranger.over().await.code(), Code::NotFound);
    let mut stale = Beats::open(&scheduler, &worker.id, &nobody()).await;
    let status = stale.over().await;
    assert_eq!(status.metadata().get(proto::CODE).unwrap(), "session_over");
    scheduler.end().await;
}

#[tokio::test]
async fn an_id_is_one_worker_s_as_long_as_it_is_connected() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let same = RegisterWorkerRequest {
        address: worker.address.to_string(),
        name: "w1".to_owned(),
        worker_id: worker.id.clone(),
        ..Default::default()
    };
    let elsewhere = RegisterWorkerRequest {
        address: "127.0.0.1:1".to_owned(),
        ..same.clone()
    };
    let rebooted = RegisterWorkerRequest {
        boot_id: "another".to_owned(),
        ..same.clone()
    };
    for other in [&elsewhere, &rebooted] {
        let refused = scheduler.register(other.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let word = refused.metadata().get(proto::CODE).unwrap();
        assert_eq!(word, "worker_id_in_use");
        for said in ["w1", &worker.id, &same.address, "`worker-id`, `journal`"] {
            assert!(refused.message().contains(said), "{}", refused.message());
        }
        worker.beats.send(Vec::new(), false).await.unwrap();
    }
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    worker.beats.send(Vec::new(), true).await.unwrap();
    drop(worker.beats);
    scheduler.only_worker_is("joining").await;
    for other in [elsewhere, rebooted] {
        let answer = scheduler.register(other).await.unwrap();
        assert_eq!(answer.worker_id, worker.id);
    }
    scheduler.end().await;
}

#[tokio::test]
async fn output_is_sent_in_every_format() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let end = ended(proto::JobState::Failed, 3);
    worker.writes(
        vec![
            Ok(chunk(0, b"ab\n")),
            Ok(chunk(3, b"\xff\n")),
            Ok(last(5, end)),
        ],
        Some(()),
    );
    let path = format!("/logs?job_id={id}&follow=true");

    let mut client = TcpStream::connect(scheduler.http).await.unwrap();
    let request = format!(
        "GET {path}&tail=2&stream=stderr HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: close\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    soon(client.read_to_end(&mut raw)).await.unwrap();
    let text = String::from_utf8_lossy(&raw).to_ascii_lowercase();
    assert!(text.contains("trailer: jobctl-state"), "{text}");
    assert!(raw.windows(3).any(|bytes| bytes == b"ab\n"));
    assert!(raw.windows(2).any(|bytes| bytes == b"\xff\n"));
    let (_, trailers) = text.rsplit_once("\r\n0\r\n").unwrap();
    assert!(trailers.contains("jobctl-state: failed"), "{trailers}");
    assert!(trailers.contains("jobctl-exit-code: 3"), "{trailers}");
    assert!(
        trailers.contains("jobctl-error-text: exit status 3"),
        "{trailers}"
    );
    let asked = soon(worker.streamed.recv()).await.unwrap();
    assert_eq!((asked.tail_lines, asked.no_follow), (Some(2), false));
    assert_eq!(asked.stream(), proto::OutputStream::Stderr);
    // The end of the output came before any heartbeat told of it.
    let (_, body) = scheduler.post("/query", json!({ "job_id": id })).await;
    assert_eq!(body["error_text"], "exit status 3");

    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0],
        json!({"offset": 0, "time": "1970-01-01T00:00:01Z", "stream": "stderr", "data": "ab\n"})
    );
    assert_eq!(lines[1]["data_base64"], "/wo=");
    assert_eq!(lines[2]["job"]["exit_code"], 3);

    let events = "text/event-stream";
    let text = scheduler
        .text(&path, events, &[("last-event-id", "3")])
        .await;
    assert!(text.starts_with("id: 5\ndata: {\"offset\":3,"), "{text}");
    assert!(
        text.contains("\n\nid: 5\nevent: end\ndata: {\"job\":"),
        "{text}"
    );

    let url = format!("http://{}{path}", scheduler.http);
    let request = scheduler
        .client
        .get(url)
        .header(header::ACCEPT, api::PROTOBUF_STREAM);
    let mut bytes = soon(soon(request.send()).await.unwrap().bytes())
        .await
        .unwrap();
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        messages.push(StreamJobResponse::decode_length_delimited(&mut bytes).unwrap());
    }
    assert_eq!(messages[1], chunk(3, b"\xff\n"));
    let end = messages[2].end.clone().unwrap();
    assert_eq!(
        (messages[2].offset, end.state()),
        (5, proto::JobState::Failed)
    );

    let (status, body) = scheduler
        .get(&format!("/logs?job_id={id}&offset=2000"))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (416, &json!("offset_past_end"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn output_that_breaks_off_is_no_clean_end() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let running = last(2, status(proto::JobState::Running));
    for (script, end) in [
        (
            vec![Ok(chunk(0, b"ab")), Err(Status::internal("gone"))],
            Some(()),
        ),
        (vec![Ok(chunk(0, b"ab"))], Some(())),
        (vec![Ok(chunk(0, b"ab")), Ok(running)], Some(())),
    ] {
        worker.writes(script, end);
        let path = format!("/logs?job_id={id}&follow=true");
        let mut answer = scheduler.request(Method::GET, &path, None).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(soon(answer.chunk()).await.unwrap().unwrap(), "ab");
        assert!(soon(answer.chunk()).await.is_err());
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_follower_who_goes_away_ends_the_worker_s_stream() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    worker.writes(vec![Ok(chunk(0, b"ab"))], None);
    let path = format!("/logs?job_id={id}&follow=true");
    let mut answer = scheduler.request(Method::GET, &path, None).await;
    assert_eq!(soon(answer.chunk()).await.unwrap().unwrap(), "ab");
    soon(worker.followers.wait_for(|count| *count == 1))
        .await
        .unwrap();
    drop(answer);
    soon(worker.followers.wait_for(|count| *count == 0))
        .await
        .unwrap();
    scheduler.end().await;
}

#[tokio::test]
async fn bad_requests_are_told_apart() {
    let scheduler = TestScheduler::new().await;
    let url = |path: &str| format!("http://{}{path}", scheduler.http);
    let raw = |body: &'static str, content_type: &'static str| {
        let request = scheduler.client.post(url("/start")).body(body);
        request.header(header::CONTENT_TYPE, content_type)
    };
    let json_type = "application/json";
    let big = scheduler
        .client
        .post(url("/start"))
        .header(header::CONTENT_TYPE, json_type)
        .body("x".repeat(api::MAX_BODY + 1));
    for (request, status, code, said) in [
        (raw("{", json_type), 400, "bad_request", "line 1"),
        (
            raw(r#"{"command": 3}"#, json_type),
            400,
            "bad_request",
            "command: invalid type",
        ),
        (
            raw(r#"{"comand": "x"}"#, json_type),
            400,
            "bad_request",
            "unknown field `comand`",
        ),
        (
            raw(r#"["w1", "echo"]"#, json_type),
            400,
            "bad_request",
            "not a JSON object",
        ),
        (
            scheduler
                .client
                .post(url("/start"))
                .header(header::CONTENT_TYPE, json_type)
                .body(json!({"command": "x".repeat(20_000)}).to_string()),
            400,
            "bad_request",
            "command is longer than 4096 bytes",
        ),
        (
            raw(r#"{"command": ""}"#, json_type),
            400,
            "bad_request",
            "empty",
        ),
        (
            raw("{}", "text/plain"),
            415,
            "unsupported_media_type",
            "content-type",
        ),
        (big, 413, "body_too_large", "1048576"),
        (
            scheduler.client.get(url("/v1/nowhere")),
            404,
            "route_not_found",
            "/v1/nowhere",
        ),
        (
            scheduler.client.get(url("/v1/start")),
            405,
            "method_not_allowed",
            "/v1/start",
        ),
        (
            scheduler.client.get(url("/logs")),
            400,
            "bad_request",
            "job_id",
        ),
        (
            scheduler.client.get(url("/logs?job_id=x&ofset=1")),
            400,
            "bad_request",
            "ofset",
        ),
        (
            scheduler.client.get(url("/logs?job_id=nobody")),
            404,
            "job_not_found",
            "nobody",
        ),
        (
            scheduler.client.get(url("/jobs?limit=0")),
            400,
            "bad_request",
            "limit",
        ),
        (
            scheduler.client.get(url("/jobs?state=dead")),
            400,
            "bad_request",
            "dead",
        ),
        (
            scheduler.client.get(url("/jobs?after=x")),
            400,
            "bad_request",
            "after",
        ),
        (
            scheduler.client.get(url("/jobs?worker_id=w9")),
            404,
            "worker_not_found",
            "w9",
        ),
        (
            scheduler.client.get(url("/readyz?workers=1")),
            503,
            "not_ready",
            "0 of 1",
        ),
    ] {
        let answer = soon(request.send()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{code} {said}");
        let error: api::Error = soon(answer.json()).await.unwrap();
        assert_eq!(error.code, code);
        assert!(
            error.error.contains(said),
            "{} does not say {said}",
            error.error
        );
    }
    let (status, _) = scheduler.post("/start", json!({"command": "true"})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let (_, body) = scheduler.get("/jobs").await;
    assert_eq!(body, json!({"jobs": [], "next": null}));
    scheduler.end().await;
}

#[tokio::test]
async fn a_request_has_an_id() {
    let scheduler = TestScheduler::new().await;
    let answer = scheduler.request(Method::GET, "/livez", None).await;
    assert!(answer.headers().contains_key(api::REQUEST_ID));
    let request = scheduler
        .client
        .get(format!("http://{}/version", scheduler.http));
    let answer = soon(request.header(api::REQUEST_ID, "mine").send())
        .await
        .unwrap();
    assert_eq!(answer.headers()[api::REQUEST_ID], "mine");
    scheduler.end().await;
}

#[tokio::test]
async fn health_is_told_over_grpc() {
    let scheduler = TestScheduler::new().await;
    let channel = Channel::from_shared(format!("http://{}", scheduler.grpc)).unwrap();
    let channel = soon(channel.connect()).await.unwrap();
    let request = HealthCheckRequest {
        service: "jobscheduler.Scheduler".to_owned(),
    };
    let answer = soon(HealthClient::new(channel).check(request))
        .await
        .unwrap();
    assert_eq!(answer.into_inner().status, ServingStatus::Serving as i32);
    scheduler.end().await;
}

#[tokio::test]
async fn shutdown_ends_what_would_stay_open() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    worker.writes(vec![Ok(chunk(0, b"ab"))], None);
    let path = format!("/logs?job_id={id}&follow=true");
    let mut follower = scheduler.request(Method::GET, &path, None).await;
    assert_eq!(soon(follower.chunk()).await.unwrap().unwrap(), "ab");
    let mut idle = TcpStream::connect(scheduler.http).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    soon(idle.read_exact(&mut first)).await.unwrap();
    let _silent = TcpStream::connect(scheduler.http).await.unwrap();
    let query = json!({"job_id": id, "wait_ms": 60_000});
    let waiting = scheduler.request(Method::POST, "/query", Some(query));
    let stop = async {
        // The request before it on the same connection pool has been answered,
        // so that this one is under way.
        scheduler.get("/workers").await;
        scheduler.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(waiting, stop);
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(soon(follower.chunk()).await.is_err(), "no clean end");
    assert_eq!(worker.beats.over().await.code(), Code::Unavailable);
    let began = std::time::Instant::now();
    soon(scheduler.task).await.unwrap().unwrap();
    assert!(began.elapsed() < DRAIN, "nothing had to be cut off");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_half_a_request() {
    let scheduler = TestScheduler::new().await;
    let mut half = TcpStream::connect(scheduler.http).await.unwrap();
    let request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHo";
    half.write_all(request).await.unwrap();
    let mut first = [0; 12];
    soon(half.read_exact(&mut first)).await.unwrap();
    scheduler.end().await;
}

#[tokio::test]
async fn output_that_is_gone_is_not_passed_over() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let written = scheduler.start("true").await;
    let silent = scheduler.start("true").await;
    let end = |bytes| JobStatus {
        output_bytes: bytes,
        ..ended(proto::JobState::Succeeded, 0)
    };
    let reports = vec![report(&written, end(5)), report(&silent, end(0))];
    worker.beats.send(reports, false).await.unwrap();
    let unknown = "the worker has no such job";
    *worker.refusal.lock().unwrap() = Some(refused(Code::NotFound, "job_not_found", unknown));
    let (status, body) = scheduler.get(&format!("/logs?job_id={written}")).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (404, &json!("output_gone"))
    );
    let path = format!("/logs?job_id={silent}");
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["job"]["state"], "succeeded");
    let (status, body) = scheduler
        .get(&format!("/logs?job_id={}", scheduler.start("true").await))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (404, &json!("job_not_found"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn shutdown_cuts_off_who_would_never_go() {
    let scheduler = TestScheduler::new().await;
    let channel = Channel::from_shared(format!("http://{}", scheduler.grpc)).unwrap();
    let channel = soon(channel.connect()).await.unwrap();
    let request = HealthCheckRequest::default();
    let mut client = HealthClient::new(channel);
    let mut watched = soon(client.watch(request)).await.unwrap().into_inner();
    let mut health = async || soon(watched.message()).await.unwrap().unwrap().status;
    assert_eq!(health().await, ServingStatus::Serving as i32);
    scheduler.shutdown.cancel();
    assert_eq!(health().await, ServingStatus::NotServing as i32);
    scheduler.end().await;
}
