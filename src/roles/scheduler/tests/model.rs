//! A model of the cluster: workers that never forget what they run, a network and
//! a scheduler that fail in every order, and what must be true all the same.
//!
//! The scheduler is the real one, with its store. A crash is a copy of what is
//! committed at that moment: whatever was still to be written is gone.

use std::collections::BTreeMap;

use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{sync::Notify, task::JoinSet};

use super::*;

/// Short, so that silence is noticed within a test.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// What is left to do is done within this time once every way is open.
const HEALED: Duration = Duration::from_secs(30);

const WORKERS: usize = 3;

/// How a worker answers calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    /// As it should.
    Answered,
    /// With an error, before anything was done.
    Refused,
    /// Never, and nothing is done.
    Swallowed,
    /// Never, but what was asked for is done.
    DoneInSilence,
}

/// One step. Numbers choose among what is there, modulo.
#[derive(Clone, Debug)]
enum Step {
    Start {
        code: u8,
        worker: Option<usize>,
        after: Option<usize>,
    },
    StartGroup {
        count: u8,
        code: u8,
        at_once: Option<u8>,
        stop_on_failure: bool,
    },
    /// The same start once more, under its key.
    Repeat(usize),
    Finish {
        worker: usize,
        run: usize,
    },
    Stop(usize),
    Calls(usize, Calls),
    /// The heartbeats stop, calls go on.
    Silence(usize),
    Speak(usize),
    /// The worker process is replaced; its jobs go on.
    RestartWorker(usize),
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let worker = 0..WORKERS;
    let which = 0..1000_usize;
    let code = prop_oneof![3 => Just(0_u8), 1 => 1..5_u8];
    let calls = prop_oneof![
        3 => Just(Calls::Answered),
        2 => Just(Calls::Refused),
        1 => Just(Calls::Swallowed),
        1 => Just(Calls::DoneInSilence),
    ];
    let step = prop_oneof![
        6 => (code.clone(), proptest::option::of(worker.clone()), proptest::option::weighted(0.2, which.clone()))
            .prop_map(|(code, worker, after)| Step::Start { code, worker, after }),
        2 => (2..6_u8, code, proptest::option::of(1..3_u8), any::<bool>())
            .prop_map(|(count, code, at_once, stop_on_failure)| Step::StartGroup { count, code, at_once, stop_on_failure }),
        1 => which.clone().prop_map(Step::Repeat),
        8 => (worker.clone(), which.clone()).prop_map(|(worker, run)| Step::Finish { worker, run }),
        3 => which.prop_map(Step::Stop),
        2 => (worker.clone(), calls).prop_map(|(worker, calls)| Step::Calls(worker, calls)),
        1 => worker.clone().prop_map(Step::Silence),
        2 => worker.clone().prop_map(Step::Speak),
        1 => worker.prop_map(Step::RestartWorker),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

/// What a worker knows of a run.
#[derive(Clone, Debug)]
struct Run {
    request: StartJobRequest,
    status: JobStatus,
    /// When it changed last, in the order of all changes of this worker.
    sequence: u64,
    acknowledged: bool,
}

#[derive(Debug)]
struct Truth {
    id: String,
    session: String,
    calls: Calls,
    speaks: bool,
    runs: BTreeMap<String, Run>,
    /// How often each run began.
    begun: BTreeMap<String, u32>,
    sequence: u64,
    /// The scheduler of this moment; `None`: it is dead, and whatever still comes from
    /// it in this process would never have been sent.
    grpc: Option<SocketAddr>,
}

/// A worker whose memory is perfect.
#[derive(Clone)]
struct Perfect {
    name: String,
    address: SocketAddr,
    truth: Arc<Mutex<Truth>>,
    /// Something is to be said, or the way to say it is another.
    news: Arc<Notify>,
    /// The connection that counts is another.
    reconnect: Arc<Notify>,
}

impl Perfect {
    fn truth(&self) -> std::sync::MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    async fn new(name: String, grpc: SocketAddr, tasks: &mut JoinSet<()>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let worker = Self {
            name,
            address: listener.local_addr().unwrap(),
            truth: Arc::new(Mutex::new(Truth {
                // As one has it whose certificate names it: no lost answer loses it.
                id: WorkerId::random().to_string(),
                session: String::new(),
                calls: Calls::Answered,
                speaks: true,
                runs: BTreeMap::new(),
                begun: BTreeMap::new(),
                sequence: 0,
                grpc: Some(grpc),
            })),
            news: Arc::default(),
            reconnect: Arc::default(),
        };
        let service = WorkerServer::new(worker.clone());
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        tasks.spawn(async move { drop(serving.await) });
        let speaker = worker.clone();
        tasks.spawn(async move {
            loop {
                let Some(to) = speaker.listener() else {
                    speaker.reconnect.notified().await;
                    continue;
                };
                tokio::select! {
                    biased;
                    () = speaker.reconnect.notified() => {}
                    _ = speaker.speak(to) => {}
                }
                // A scheduler that is being replaced is asked again in a moment.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        worker
    }

    /// Who it speaks to.
    fn listener(&self) -> Option<SocketAddr> {
        let truth = self.truth();
        truth.grpc.filter(|_| truth.speaks)
    }

    /// Registers, tells of all its jobs, and of every change from then on.
    async fn speak(
        &self,
        grpc: SocketAddr,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let id = self.truth().id.clone();
        let mut client = SchedulerClient::connect(format!("http://{grpc}")).await?;
        let request = RegisterWorkerRequest {
            address: self.address.to_string(),
            name: self.name.clone(),
            worker_id: id,
            slots: Some(2),
            ..Default::default()
        };
        let answer = client.register_worker(request).await?.into_inner();
        let (snapshot, mut sent) = {
            let mut truth = self.truth();
            truth.id = answer.worker_id.clone();
            truth.session = answer.session.clone();
            let all = truth.runs.iter().map(|(id, run)| JobReport {
                spec: Some(run.request.clone()),
                ..report(id, run.status.clone())
            });
            (all.collect::<Vec<_>>(), truth.sequence)
        };
        let (requests, messages) = mpsc::channel(64);
        let first = HeartbeatRequest {
            worker_id: answer.worker_id,
            session: answer.session,
            sequence: sent,
            jobs: snapshot,
            snapshot_complete: true,
            ..Default::default()
        };
        requests.send(first).await?;
        let answers = client.heartbeat(ReceiverStream::new(messages)).await?;
        let mut answers = answers.into_inner();
        let mut beat = tokio::time::interval(HEARTBEAT / 2);
        loop {
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer?.ok_or("closed")?;
                    let mut truth = self.truth();
                    for run in truth.runs.values_mut() {
                        let told = run.sequence <= answer.acknowledged;
                        run.acknowledged |= told && run.status.ended_us.is_some();
                    }
                    for id in &answer.forget {
                        truth.runs.remove(id);
                    }
                    continue;
                }
                () = self.news.notified() => {}
                _ = beat.tick() => {}
            }
            let (jobs, sequence) = {
                let truth = self.truth();
                let news = truth.runs.iter().filter(|(_, run)| run.sequence > sent);
                let jobs = news.map(|(id, run)| report(id, run.status.clone()));
                (jobs.collect(), truth.sequence)
            };
            sent = sequence;
            let message = HeartbeatRequest {
                sequence,
                jobs,
                ..Default::default()
            };
            requests.send(message).await?;
        }
    }

    /// Ends a run that lives; how it ends is in its command, or by a stop.
    fn end(&self, id: &str, state: Option<proto::JobState>) {
        let mut truth = self.truth();
        truth.sequence += 1;
        let sequence = truth.sequence;
        let Some(run) = truth.runs.get_mut(id) else {
            return;
        };
        if run.status.ended_us.is_some() {
            return;
        }
        let code: i32 = run.request.command["code-".len()..].parse().unwrap();
        run.sequence = sequence;
        run.status = match (state, code) {
            (Some(state), _) => JobStatus {
                signal: Some(15),
                exit_code: None,
                ..ended(state, 143)
            },
            (None, 0) => ended(proto::JobState::Succeeded, 0),
            (None, code) => ended(proto::JobState::Failed, code),
        };
        drop(truth);
        self.news.notify_one();
    }

    fn living(&self) -> Vec<String> {
        let truth = self.truth();
        let living = truth.runs.iter();
        let living = living.filter(|(_, run)| run.status.ended_us.is_none());
        living.map(|(id, _)| id.clone()).collect()
    }

    /// The way of a call to this worker, as it is now.
    async fn way(&self) -> Result<Calls, Status> {
        let calls = self.truth().calls;
        if self.truth().grpc.is_none() {
            return std::future::pending().await;
        }
        match calls {
            Calls::Refused => Err(Status::unavailable("no way")),
            Calls::Swallowed => std::future::pending().await,
            Calls::Answered | Calls::DoneInSilence => Ok(calls),
        }
    }
}

async fn answered<T>(calls: Calls, answer: T) -> Result<Response<T>, Status> {
    match calls {
        Calls::DoneInSilence => std::future::pending().await,
        _ => Ok(Response::new(answer)),
    }
}

#[tonic::async_trait]
impl Worker for Perfect {
    async fn start_job(
        &self,
        request: Request<StartJobRequest>,
    ) -> Result<Response<proto::StartJobResponse>, Status> {
        let calls = self.way().await?;
        let request = request.into_inner();
        let job_id = request.job_id.clone();
        {
            let mut truth = self.truth();
            if request.session != truth.session {
                let why = "of another registration";
                return Err(refused(Code::FailedPrecondition, "session_over", why));
            }
            if truth.runs.contains_key(&job_id) {
                return Err(refused(Code::AlreadyExists, "job_exists", "it is here"));
            }
            truth.sequence += 1;
            let run = Run {
                request,
                status: status(proto::JobState::Running),
                sequence: truth.sequence,
                acknowledged: false,
            };
            truth.runs.insert(job_id.clone(), run);
            *truth.begun.entry(job_id.clone()).or_default() += 1;
        }
        self.news.notify_one();
        let status = Some(status(proto::JobState::Running));
        answered(calls, proto::StartJobResponse { job_id, status }).await
    }

    async fn stop_job(
        &self,
        request: Request<proto::StopJobRequest>,
    ) -> Result<Response<proto::StopJobResponse>, Status> {
        let calls = self.way().await?;
        let id = request.into_inner().job_id;
        let run = self.truth().runs.get(&id).cloned();
        match run {
            None => return Err(refused(Code::NotFound, "job_not_found", "no such job")),
            Some(run) if run.status.ended_us.is_some() => {
                let why = "it has ended";
                return Err(refused(Code::FailedPrecondition, "job_finished", why));
            }
            Some(_) => self.end(&id, Some(proto::JobState::Stopped)),
        }
        answered(calls, proto::StopJobResponse {}).await
    }

    async fn query_job(
        &self,
        request: Request<proto::QueryJobRequest>,
    ) -> Result<Response<proto::QueryJobResponse>, Status> {
        let calls = self.way().await?;
        let id = request.into_inner().job_id;
        let run = self.truth().runs.get(&id).cloned();
        let run = run.ok_or_else(|| refused(Code::NotFound, "job_not_found", "no such job"))?;
        let answer = proto::QueryJobResponse {
            status: Some(run.status),
            ..Default::default()
        };
        answered(calls, answer).await
    }

    type StreamJobStream = BoxStream<'static, Result<StreamJobResponse, Status>>;

    async fn stream_job(
        &self,
        _: Request<proto::StreamJobRequest>,
    ) -> Result<Response<Self::StreamJobStream>, Status> {
        Err(Status::unimplemented("nothing is read here"))
    }
}

fn is_final(job: &Value) -> bool {
    let states = api::JobState::ALL.into_iter();
    let mut finals = states.filter(|state| state.is_final());
    finals.any(|state| job["state"] == state.as_str())
}

/// A start that was asked for.
#[derive(Clone, Debug)]
struct Asked {
    key: String,
    body: Value,
    /// A job, or a group.
    id: Arc<Mutex<Option<String>>>,
    stop: Arc<Mutex<bool>>,
}

impl Asked {
    fn id(&self) -> Option<String> {
        self.id.lock().unwrap().clone()
    }

    fn is_group(&self) -> bool {
        self.body["count"].is_number()
    }

    /// Notes the id that is answered, which must be the same each time.
    fn note(&self, answer: &Value) {
        let id = answer["group_id"].as_str().or(answer["job_id"].as_str());
        let Some(id) = id else { return };
        let mut known = self.id.lock().unwrap();
        if let Some(known) = &*known {
            assert_eq!(known, id, "the same key is the same start");
        }
        *known = Some(id.to_owned());
    }
}

struct World {
    scheduler: TestScheduler,
    workers: Vec<Perfect>,
    asked: Vec<Asked>,
    /// Final states that were answered, and after how many crashes: they never change.
    seen: BTreeMap<String, (String, u32)>,
    crashes: u32,
    /// Calls that are not waited for.
    calls: JoinSet<()>,
    _tasks: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let scheduler = TestScheduler::on(dir, HEARTBEAT, KEEP).await;
        let mut tasks = JoinSet::new();
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let name = format!("w{number}");
            workers.push(Perfect::new(name, scheduler.grpc, &mut tasks).await);
        }
        Self {
            scheduler,
            workers,
            asked: Vec::new(),
            seen: BTreeMap::new(),
            crashes: 0,
            calls: JoinSet::new(),
            _tasks: tasks,
        }
    }

    /// Sends a start, whose answer may come much later or never.
    fn send(&mut self, asked: &Asked) {
        let url = format!("http://{}/start", self.scheduler.http);
        let request = self.scheduler.client.post(url);
        let request = request.header(api::IDEMPOTENCY_KEY, &asked.key);
        let (request, asked) = (request.json(&asked.body), asked.clone());
        self.calls.spawn(async move {
            if let Ok(answer) = request.send().await
                && let Ok(body) = answer.json().await
            {
                asked.note(&body);
            }
        });
    }

    fn start(&mut self, body: Value) {
        let asked = Asked {
            key: format!("key-{}", self.asked.len()),
            body,
            id: Arc::default(),
            stop: Arc::default(),
        };
        self.send(&asked);
        self.asked.push(asked);
    }

    /// One of those that were asked for, if there is one.
    fn one(&self, number: usize) -> Option<Asked> {
        let count = self.asked.len();
        (count > 0).then(|| self.asked[number % count].clone())
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Start {
                code,
                worker,
                after,
            } => {
                let mut body = json!({ "command": format!("code-{code}") });
                if let Some(worker) = worker {
                    body["worker_id"] = json!(self.workers[worker].name);
                }
                if let Some(after) = after.and_then(|after| self.one(after)?.id()) {
                    body["after"] = json!([after]);
                }
                self.start(body);
            }
            Step::StartGroup {
                count,
                code,
                at_once,
                stop_on_failure,
            } => self.start(json!({
                "command": format!("code-{code}"), "count": count, "at_once": at_once,
                "stop_on_failure": stop_on_failure,
            })),
            Step::Repeat(number) => {
                if let Some(asked) = self.one(number) {
                    self.send(&asked);
                }
            }
            Step::Finish { worker, run } => {
                let worker = &self.workers[worker];
                let living = worker.living();
                if !living.is_empty() {
                    worker.end(&living[run % living.len()], None);
                }
            }
            Step::Stop(number) => self.stop(number).await,
            Step::Calls(worker, calls) => self.workers[worker].truth().calls = calls,
            Step::Silence(worker) => {
                self.workers[worker].truth().speaks = false;
                self.workers[worker].reconnect.notify_one();
            }
            Step::Speak(worker) => {
                self.workers[worker].truth().speaks = true;
                self.workers[worker].reconnect.notify_one();
            }
            Step::RestartWorker(worker) => {
                let worker = &self.workers[worker];
                worker.truth().runs.retain(|_, run| !run.acknowledged);
                worker.reconnect.notify_one();
            }
            Step::Crash => self.crash().await,
        }
        // Others get their turn, as on a machine with one processor.
        tokio::task::yield_now().await;
    }

    /// Asks for the end of a job or a group; once that is recorded, it must come.
    async fn stop(&mut self, number: usize) {
        let Some(asked) = self.one(number) else {
            return;
        };
        let Some(id) = asked.id() else { return };
        let body = json!({ "job_id": id, "no_wait": true });
        let (status, answer) = self.scheduler.post("/stop", body).await;
        let message = answer["error"].as_str().unwrap_or_default();
        if status.is_success() || message.contains("recorded") {
            *asked.stop.lock().unwrap() = true;
        } else {
            let known = ["job_finished", "worker_unreachable", "worker_not_ready"];
            let code = answer["code"].as_str().unwrap_or_default();
            assert!(known.contains(&code), "{answer}");
        }
    }

    /// The scheduler is gone, and with it what was not committed.
    async fn crash(&mut self) {
        self.crashes += 1;
        self.calls.abort_all();
        for worker in &self.workers {
            worker.truth().grpc = None;
            worker.reconnect.notify_one();
        }
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let from = self.scheduler.dir.path().join("store.sqlite");
        let to = dir.path().join("store.sqlite");
        let committed = rusqlite::Connection::open(from).unwrap();
        let copy = "VACUUM INTO ?";
        committed.execute(copy, [to.to_str().unwrap()]).unwrap();
        self.scheduler.task.abort();
        while self.calls.join_next().await.is_some() {}
        self.scheduler = TestScheduler::on(dir, HEARTBEAT, KEEP).await;
        for worker in &self.workers {
            worker.truth().grpc = Some(self.scheduler.grpc);
            worker.reconnect.notify_one();
        }
    }

    /// Nothing that was seen has changed, and nothing began twice.
    async fn check(&mut self) {
        let (_, page) = self.scheduler.get("/jobs?limit=1000").await;
        for job in page["jobs"].as_array().unwrap() {
            let id = job["id"].as_str().unwrap().to_owned();
            let state = job["state"].as_str().unwrap().to_owned();
            if let Some((seen, crashes)) = self.seen.get(&id) {
                // An end that was shown before it was committed is told once more.
                let is_told_again = state == "unknown" && *crashes < self.crashes;
                assert!(*seen == state || is_told_again, "{seen}: {job}");
                if is_told_again {
                    continue;
                }
            }
            assert_ne!(state, "lost", "its worker forgets nothing: {job}");
            if is_final(job) {
                self.seen.insert(id, (state, self.crashes));
            }
        }
        let mut begun = BTreeMap::new();
        for worker in &self.workers {
            for (id, count) in &worker.truth().begun {
                *begun.entry(id.clone()).or_insert(0) += count;
            }
        }
        let twice: Vec<_> = begun.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "began more than once: {twice:?}");
    }

    fn living(&self) -> Vec<(Perfect, String)> {
        let of = |worker: &Perfect| {
            let living = worker.living().into_iter();
            let living: Vec<_> = living.map(|id| (worker.clone(), id)).collect();
            living
        };
        self.workers.iter().flat_map(of).collect()
    }

    /// With every way open, all that was asked for comes to its end by itself.
    async fn heal(&mut self) {
        for worker in &self.workers {
            let mut truth = worker.truth();
            truth.calls = Calls::Answered;
            if !std::mem::replace(&mut truth.speaks, true) {
                worker.reconnect.notify_one();
            }
        }
        // Each start is asked for until it has an answer that names it.
        let all = self.asked.clone();
        for asked in &all {
            let named = async {
                while asked.id().is_none() {
                    self.send(asked);
                    self.calls.join_next().await;
                }
            };
            let named = tokio::time::timeout(HEALED, named).await;
            assert!(named.is_ok(), "no answer to {asked:?}");
        }
        let stopped: HashSet<String> = {
            let stopped = all.iter().filter(|asked| *asked.stop.lock().unwrap());
            stopped.filter_map(Asked::id).collect()
        };
        let ended = tokio::time::timeout(HEALED, async {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            loop {
                pause.tick().await;
                let (_, page) = self.scheduler.get("/jobs?limit=1000").await;
                let jobs = page["jobs"].as_array().unwrap().clone();
                if jobs.iter().all(is_final) && self.living().is_empty() {
                    break;
                }
                let of = |id: &str| jobs.iter().find(|job| job["id"] == *id);
                for (worker, id) in self.living() {
                    // Those that are to stop are not helped along.
                    let is_stopped = of(&id).is_some_and(|job| {
                        let group = job["group_id"].as_str().unwrap_or_default();
                        stopped.contains(&id) || stopped.contains(group)
                    });
                    if !is_stopped {
                        worker.end(&id, None);
                    }
                }
            }
        });
        if ended.await.is_err() {
            let (_, page) = self.scheduler.get("/jobs?limit=1000").await;
            let mut jobs = page["jobs"].as_array().unwrap().clone();
            jobs.retain(|job| !is_final(job));
            let living: Vec<_> = self.living().into_iter().map(|(_, id)| id).collect();
            panic!("not all has ended: {jobs:?}\nliving: {living:?}\nstopped: {stopped:?}");
        }
        self.check().await;
        self.compare().await;
    }

    /// What the records say at the end is what the workers know.
    async fn compare(&self) {
        let (_, page) = self.scheduler.get("/jobs?limit=1000").await;
        let jobs = page["jobs"].as_array().unwrap();
        for job in jobs {
            let id = job["id"].as_str().unwrap();
            let truth = self.workers.iter().find_map(|worker| {
                let truth = worker.truth();
                truth.runs.get(id).map(|run| run.status.clone())
            });
            // One that ran and is not there any more was acknowledged and given up.
            let Some(truth) = truth else { continue };
            assert_eq!(
                job["exit_code"].as_i64(),
                truth.exit_code.map(i64::from),
                "{job}"
            );
            assert_eq!(job["signal"].is_null(), truth.signal.is_none(), "{job}");
        }
        for asked in self.asked.iter().filter(|asked| asked.is_group()) {
            let id = asked.id().unwrap();
            let members: Vec<_> = jobs.iter().filter(|job| job["group_id"] == *id).collect();
            let (_, answer) = self.scheduler.post("/query", json!({ "job_id": id })).await;
            let group = &answer["group"];
            assert_eq!(group["count"], asked.body["count"], "{answer}");
            assert_eq!(
                members.len() as u64,
                group["count"].as_u64().unwrap(),
                "{answer}"
            );
            let states = group["states"].as_object().unwrap();
            for (state, count) in states {
                let really = members.iter().filter(|job| job["state"] == **state).count();
                assert_eq!(count.as_u64(), Some(really as u64), "{state} of {answer}");
            }
        }
    }
}

fn run(steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        for step in steps {
            world.step(step).await;
            world.check().await;
        }
        world.heal().await;
        world.scheduler.end().await;
    });
}

fn cases(count: u32) {
    let config = ProptestConfig {
        cases: count,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&steps(), |steps| {
        run(steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn whatever_fails_everything_ends_once_and_as_it_did() {
    cases(4);
}

#[test]
#[ignore = "takes half an hour: cargo test --lib -- --ignored thousand_histories"]
fn a_thousand_histories_of_the_model() {
    cases(1000);
}
