//! The whole role over real HTTP and gRPC on port 0, with a worker that does
//! what a test tells it.

mod after;
mod durable;
mod events;
mod jobs;
mod later;
mod model;
mod output;
mod queue;
mod retries;
mod serving;
mod workers;

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Server, server::TcpIncoming},
};

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
    /// Of an admin.
    token: String,
}

fn client_with(token: &str) -> reqwest::Client {
    crate::identity::install_crypto();
    let bearer = format!("Bearer {token}").parse().unwrap();
    let headers = [(header::AUTHORIZATION, bearer)].into_iter().collect();
    let client = reqwest::Client::builder().default_headers(headers);
    client.build().unwrap()
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
        self.restart_after(|| ()).await
    }

    /// With what happens to the records in between.
    async fn restart_after(self, meanwhile: impl FnOnce()) -> Self {
        self.task.abort();
        assert!(soon(self.task).await.unwrap_err().is_cancelled());
        meanwhile();
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
            keep_audit: Duration::from_secs(3600),
            names: vec!["localhost".to_owned()],
            security: Security::Insecure,
            bounds: Bounds::default(),
            body_bytes: api::MAX_BODY,
            job_followers: 128,
            certificate_lifetime: crate::identity::ca::LIFETIME,
        };
        let http = listeners.http.local_addr().unwrap();
        let grpc = listeners.grpc.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let opened = open(config, listeners).await.unwrap();
        let issuer = opened.issuer();
        let (kind, day) = (api::TokenKind::Bearer, Duration::from_secs(24 * 3600));
        let token = issuer.token(kind, Role::Admin, "test", day).await.unwrap();
        Self {
            http,
            grpc,
            store: opened.store.clone(),
            dir,
            task: tokio::spawn(opened.run(shutdown.clone())),
            shutdown,
            client: client_with(&token),
            token,
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

impl FakeWorker {
    fn serve(self, listener: tokio::net::TcpListener) {
        tokio::spawn(
            Server::builder()
                .add_service(WorkerServer::new(self))
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
    }
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
            "draining" => Err(refused(
                Code::Unavailable,
                "worker_draining",
                "the worker is ending",
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
            status: Some(JobStatus {
                output_bytes: 9,
                ..status(proto::JobState::Running)
            }),
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
    /// It was called.
    is_ready: bool,
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

fn status_report(job: &str) -> JobReport {
    report(job, status(proto::JobState::Running))
}

fn chunk(offset: u64, output: &'static [u8]) -> StreamJobResponse {
    StreamJobResponse {
        output: output.into(),
        offset,
        time_us: 1_000_000,
        stream: proto::OutputStream::Stderr.into(),
        ..Default::default()
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
            is_ready: false,
        }
    }

    /// Sends a message, and returns when it was taken in; with the last of the list of
    /// jobs, when the worker is ready.
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
        self.acknowledged().await?;
        while snapshot_complete && !self.is_ready {
            self.answer().await?;
        }
        Ok(())
    }

    async fn answer(&mut self) -> Result<HeartbeatResponse, Status> {
        let answer = soon(self.answers.message()).await?;
        let mut answer = answer.ok_or_else(|| Status::aborted("closed"))?;
        self.forget.append(&mut answer.forget);
        self.is_ready |= answer.ready;
        Ok(answer)
    }

    /// Returns when everything that was sent was taken in.
    async fn acknowledged(&mut self) -> Result<(), Status> {
        while self.answer().await?.acknowledged != self.sequence {}
        Ok(())
    }

    /// Waits until it was told to forget so many jobs.
    async fn forgets(&mut self, count: usize) -> Vec<String> {
        while self.forget.len() < count {
            self.answer().await.unwrap();
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
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (started, started_rx) = mpsc::unbounded_channel();
        let (stopped, stopped_rx) = mpsc::unbounded_channel();
        let (streamed, streamed_rx) = mpsc::unbounded_channel();
        let service = FakeWorker {
            started,
            stopped,
            streamed,
            script: Arc::default(),
            refusal: Arc::default(),
            followers: watch::channel(0).0,
            seen: Arc::default(),
        };
        let (script, refusal) = (service.script.clone(), service.refusal.clone());
        let followers = service.followers.subscribe();
        service.serve(listener);
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
            started: started_rx,
            stopped: stopped_rx,
            streamed: streamed_rx,
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
