//! What a worker tells a scheduler when it registers: what that one cannot know, and
//! not what it has acknowledged before. The scheduler is one that does what a test says.

use futures_util::{StreamExt as _, stream::BoxStream};
use jobctl::{
    ids::JobId,
    proto::{
        self, HeartbeatRequest, HeartbeatResponse, JobState,
        scheduler_server::{Scheduler, SchedulerServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    support::within,
    worker::{TestWorker, sh},
};

/// Passes each heartbeat stream on to the test.
struct FakeScheduler(mpsc::UnboundedSender<Told>);

/// A heartbeat stream.
struct Told {
    messages: Streaming<HeartbeatRequest>,
    answers: mpsc::Sender<Result<HeartbeatResponse, Status>>,
}

#[tonic::async_trait]
impl Scheduler for FakeScheduler {
    async fn register_worker(
        &self,
        _: Request<proto::RegisterWorkerRequest>,
    ) -> Result<Response<proto::RegisterWorkerResponse>, Status> {
        Ok(Response::new(proto::RegisterWorkerResponse {
            success: true,
            worker_id: "6c1b1c9e-9d0e-4b57-8f4b-0d8a4a3c9f10".to_owned(),
            session: "s".to_owned(),
            heartbeat_interval_ms: 60_000,
            epoch: 7,
        }))
    }

    async fn deregister_worker(
        &self,
        _: Request<proto::DeregisterWorkerRequest>,
    ) -> Result<Response<proto::DeregisterWorkerResponse>, Status> {
        Ok(Response::new(proto::DeregisterWorkerResponse {
            success: true,
        }))
    }

    async fn join(
        &self,
        _: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::CertificateResponse>, Status> {
        Err(Status::unimplemented("join"))
    }

    async fn renew_certificate(
        &self,
        _: Request<proto::RenewCertificateRequest>,
    ) -> Result<Response<proto::CertificateResponse>, Status> {
        Err(Status::unimplemented("renew"))
    }

    type HeartbeatStream = BoxStream<'static, Result<HeartbeatResponse, Status>>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let (answers, answered) = mpsc::channel(16);
        let told = Told {
            messages: request.into_inner(),
            answers,
        };
        self.0.send(told).unwrap();
        Ok(Response::new(ReceiverStream::new(answered).boxed()))
    }
}

/// What a worker told with its first list.
struct List {
    jobs: Vec<proto::JobReport>,
    sequence: u64,
    ends_left_out: bool,
}

impl List {
    fn names(&self, id: JobId) -> bool {
        names(&self.jobs, id)
    }
}

fn names(jobs: &[proto::JobReport], id: JobId) -> bool {
    jobs.iter().any(|job| job.job_id == id.to_string())
}

impl Told {
    async fn next(&mut self) -> HeartbeatRequest {
        within(self.messages.message()).await.unwrap().unwrap()
    }

    /// All messages up to the first that is so.
    async fn until(
        &mut self,
        is_last: impl Fn(&HeartbeatRequest) -> bool,
    ) -> Vec<HeartbeatRequest> {
        let mut all = Vec::new();
        loop {
            all.push(self.next().await);
            if is_last(&all[all.len() - 1]) {
                return all;
            }
        }
    }

    async fn list(&mut self) -> List {
        let messages = self.until(|message| message.snapshot_complete).await;
        let last = &messages[messages.len() - 1];
        List {
            sequence: last.sequence,
            ends_left_out: last.ends_left_out,
            jobs: messages.iter().flat_map(|m| m.jobs.clone()).collect(),
        }
    }

    async fn answer(&self, answer: HeartbeatResponse) {
        self.answers.send(Ok(answer)).await.unwrap();
    }

    /// Takes in what comes until the end of `id`, and acknowledges it.
    async fn acknowledge_end(&mut self, id: JobId, commit: u64) {
        let has_ended = |message: &HeartbeatRequest| {
            message.jobs.iter().any(|job| {
                let state = job.status.as_ref().unwrap().state();
                job.job_id == id.to_string() && state == JobState::Succeeded
            })
        };
        let messages = self.until(has_ended).await;
        let acknowledged = messages[messages.len() - 1].sequence;
        let answer = HeartbeatResponse {
            acknowledged,
            commit,
            ..Default::default()
        };
        self.answer(answer).await;
        // What is asked after it is answered after it was taken in.
        let probe = HeartbeatResponse {
            acknowledged,
            commit,
            tell_of: vec![JobId::random().to_string()],
            ..Default::default()
        };
        self.answer(probe).await;
        let answers = self.until(|message| message.told_of).await;
        assert!(answers.iter().all(|message| message.jobs.is_empty()));
    }
}

struct Cluster {
    worker: TestWorker,
    streams: mpsc::UnboundedReceiver<Told>,
    server: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl Cluster {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (told, streams) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            Server::builder()
                .add_service(SchedulerServer::new(FakeScheduler(told)))
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
                    let _ = ended.await;
                })
                .await
                .unwrap();
        });
        let worker = TestWorker::with(|config| config.scheduler = Some(address)).await;
        Self {
            worker,
            streams,
            server,
            end,
        }
    }

    async fn next(&mut self) -> Told {
        within(self.streams.recv()).await.unwrap()
    }

    async fn job(&self, script: &str) -> JobId {
        let request = proto::StartJobRequest {
            session: "s".to_owned(),
            ..sh(script)
        };
        self.worker.start_job(request).await.unwrap()
    }

    async fn end(self, stream: Told) {
        drop(stream);
        self.end.send(()).unwrap();
        within(self.server).await.unwrap();
        self.worker.shut_down().await;
    }
}

#[tokio::test]
async fn an_acknowledged_end_is_told_to_whom_it_is_news_alone() {
    let mut cluster = Cluster::start().await;
    let mut stream = cluster.next().await;
    assert!(stream.list().await.jobs.is_empty());
    let over = cluster.job("exit 0").await;
    stream.acknowledge_end(over, 5).await;
    let lives = cluster.job("sleep 600").await;
    let untold = cluster.job("exit 0").await;
    cluster.worker.follow(untold).await;

    // A scheduler that was started again knows what it has acknowledged.
    drop(stream);
    let mut stream = cluster.next().await;
    let list = stream.list().await;
    assert!(list.ends_left_out);
    assert!(list.names(lives) && list.names(untold) && !list.names(over));
    assert!(list.jobs.iter().all(|job| job.spec.is_some()));

    // Where it has it on record all the same, it asks.
    let ask = HeartbeatResponse {
        tell_of: vec![over.to_string(), JobId::random().to_string()],
        ..Default::default()
    };
    stream.answer(ask).await;
    let answers = stream.until(|message| message.told_of).await;
    let [job] = &answers[answers.len() - 1].jobs[..] else {
        panic!("{answers:?}");
    };
    assert_eq!(job.job_id, over.to_string());
    assert_eq!(job.status.as_ref().unwrap().state(), JobState::Succeeded);

    // One whose records are older is told with all that was asked for.
    let older = HeartbeatResponse {
        tell_since: Some(4),
        ..Default::default()
    };
    stream.answer(older).await;
    let messages = stream.until(|message| message.ran_complete).await;
    let full = messages.iter().flat_map(|message| &message.jobs);
    let full: Vec<_> = full.filter(|job| job.job_id == over.to_string()).collect();
    assert_eq!(full[0].spec.as_ref().unwrap().args, ["-c", "exit 0"]);
    assert!(messages.iter().any(|message| names(&message.ran, over)));

    // One whose records are not so old knows it.
    drop(stream);
    let mut stream = cluster.next().await;
    assert!(!stream.list().await.names(over));
    let older = HeartbeatResponse {
        tell_since: Some(5),
        ..Default::default()
    };
    stream.answer(older).await;
    let messages = stream.until(|message| message.ran_complete).await;
    let told = |message: &HeartbeatRequest| names(&message.jobs, over) || names(&message.ran, over);
    assert!(!messages.iter().any(told));
    cluster.worker.stop(lives, Some(0)).await.unwrap();
    cluster.end(stream).await;
}

#[tokio::test]
async fn a_scheduler_that_tells_no_commit_is_told_of_everything() {
    let mut cluster = Cluster::start().await;
    let mut stream = cluster.next().await;
    stream.list().await;
    let over = cluster.job("exit 0").await;
    stream.acknowledge_end(over, 0).await;
    drop(stream);
    let mut stream = cluster.next().await;
    let list = stream.list().await;
    assert!(list.names(over) && !list.ends_left_out && list.sequence > 0);
    cluster.end(stream).await;
}
