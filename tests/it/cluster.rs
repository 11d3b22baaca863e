//! A cluster of real roles inside the test, on a loopback address of its own,
//! with short heartbeats and graces; and the same as real processes, for tests
//! that kill.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use jobctl::{
    api::{
        self, Job, JobState, LogsQuery, QueryAnswer, QueryRequest, StartRequest, Worker,
        WorkerState,
    },
    client::{Client, Error, Logs, Proof, logs::Event},
    identity::{Role, ca},
    ids::JobId,
    net::bounds::Bounds,
    roles::{
        scheduler::{self, Listeners},
        worker,
    },
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    enrolled,
    support::{Folder, binary, within},
};

/// How often the workers of a test send heartbeats: seldom enough that one on a
/// busy machine is never given up.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// As [`HEARTBEAT`], where a test is about a worker that is given up.
const SHORT_HEARTBEAT: &str = "300ms";

/// TERM to KILL in a test.
const GRACE: Duration = Duration::from_millis(300);

/// The ports of a scheduler and its workers, which can be fixed, and so are there
/// again after a restart, because the address is nobody else's.
#[derive(Clone, Copy)]
pub(crate) struct Place(Ipv4Addr);

impl Place {
    pub(crate) fn new() -> Self {
        let [a, b, c, ..] = uuid::Uuid::new_v4().into_bytes();
        // 127.0.0.0 is where everybody else is.
        Self(Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254)))
    }

    pub(crate) fn http(self) -> String {
        format!("{}:3000", self.0)
    }

    pub(crate) fn grpc(self) -> String {
        format!("{}:50000", self.0)
    }

    pub(crate) fn worker(self, number: usize) -> String {
        format!("{}:{}", self.0, 30000 + number)
    }

    pub(crate) fn server(self) -> String {
        format!("https://{}", self.http())
    }

    /// Of an admin.
    pub(crate) fn client(self) -> Client {
        self.client_as(Role::Admin)
    }

    pub(crate) fn client_as(self, role: Role) -> Client {
        let proof = Proof::with(enrolled::credentials(role, "test")).unwrap();
        Client::new(self.server().parse().unwrap(), &proof).unwrap()
    }
}

/// Roles in this process.
pub(crate) struct TestCluster {
    pub(crate) client: Client,
    pub(crate) place: Place,
    pub(crate) scheduler: Running<scheduler::Error>,
    pub(crate) workers: Vec<Running<worker::Error>>,
    dir: Folder,
}

/// One role.
pub(crate) struct Running<E> {
    pub(crate) shutdown: CancellationToken,
    task: JoinHandle<Result<(), E>>,
}

impl<E: std::fmt::Debug> Running<E> {
    /// Asks it to end and waits until it has.
    pub(crate) async fn end(self) {
        self.shutdown.cancel();
        within(self.task).await.unwrap().unwrap();
    }
}

impl TestCluster {
    /// A scheduler and `workers` workers named w1, w2, …, all ready.
    pub(crate) async fn start(workers: usize) -> Self {
        Self::start_with(workers, |_| {}).await
    }

    /// With a scheduler that differs from the others here.
    pub(crate) async fn start_with(
        workers: usize,
        change: impl FnOnce(&mut scheduler::Config),
    ) -> Self {
        let place = Place::new();
        let dir = Folder::new();
        let mut cluster = Self {
            client: place.client(),
            place,
            scheduler: start_scheduler_with(place, &dir.path().join("scheduler"), change).await,
            workers: Vec::new(),
            dir,
        };
        for number in 1..=workers {
            let worker = cluster.start_worker(number).await;
            cluster.workers.push(worker);
        }
        cluster.ready(workers).await;
        cluster
    }

    pub(crate) async fn start_worker(&self, number: usize) -> Running<worker::Error> {
        start_worker_with(self.place, number, &self.data_dir(number), |_| {}).await
    }

    /// Cuts the scheduler off, and starts another where it was, on its records.
    pub(crate) async fn restart_scheduler(&mut self) {
        self.scheduler.task.abort();
        within(&mut self.scheduler.task).await.unwrap_err();
        self.scheduler = start_scheduler(self.place, &self.scheduler_dir()).await;
    }

    fn scheduler_dir(&self) -> PathBuf {
        self.dir.path().join("scheduler")
    }

    pub(crate) fn data_dir(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("w{number}"))
    }

    /// Puts a script into the script folder of a worker.
    pub(crate) fn script(&self, number: usize, name: &str, text: &str) {
        fs::write(self.data_dir(number).join("scripts").join(name), text).unwrap();
    }

    pub(crate) async fn ready(&self, workers: usize) {
        let ready = self.client.ready(workers, Duration::from_secs(30));
        within(ready).await.unwrap();
    }

    pub(crate) async fn start_job(&self, request: &StartRequest) -> Result<JobId, Error> {
        Ok(within(self.client.start(request)).await?.job_id)
    }

    pub(crate) async fn sh(&self, script: &str) -> JobId {
        self.start_job(&sh(script)).await.unwrap()
    }

    pub(crate) async fn job(&self, id: JobId) -> Job {
        job(&self.client, id).await
    }

    /// Waits for the job's end.
    pub(crate) async fn end_of(&self, id: JobId) -> Job {
        end_of(&self.client, id).await
    }

    /// The job's whole output; waits for its end.
    pub(crate) async fn output(&self, id: JobId) -> Vec<u8> {
        output(&self.client, id).await
    }

    pub(crate) async fn worker(&self, name: &str) -> Worker {
        worker_named(&self.client, name).await
    }

    /// Waits until the scheduler shows a worker in this state.
    pub(crate) async fn worker_is(&self, name: &str, state: WorkerState) -> Worker {
        worker_is(&self.client, name, state).await
    }

    /// Ends everything, workers first, and returns when it has ended.
    pub(crate) async fn end(self) {
        for worker in self.workers {
            worker.end().await;
        }
        self.scheduler.end().await;
    }
}

pub(crate) async fn start_scheduler(place: Place, data: &Path) -> Running<scheduler::Error> {
    start_scheduler_with(place, data, |_| {}).await
}

/// One that differs from the others here.
pub(crate) async fn start_scheduler_with(
    place: Place,
    data: &Path,
    change: impl FnOnce(&mut scheduler::Config),
) -> Running<scheduler::Error> {
    let listeners = Listeners {
        http: bind(place.http()).await,
        grpc: bind(place.grpc()).await,
    };
    let mut config = scheduler::Config {
        heartbeat_interval: HEARTBEAT,
        call_deadline: Duration::from_secs(10),
        data_dir: enrolled::scheduler(data),
        keep_finished: 2000,
        keep_for: Duration::from_secs(3600),
        keep_audit: Duration::from_secs(3600),
        names: vec!["localhost".to_owned()],
        security: scheduler::Security::OwnAuthority,
        bounds: Bounds::default(),
        body_bytes: api::MAX_BODY,
        job_followers: 128,
        certificate_lifetime: ca::LIFETIME,
    };
    change(&mut config);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(scheduler::run(config, listeners, shutdown.clone()));
    Running { shutdown, task }
}

/// A worker that differs from the others here.
pub(crate) async fn start_worker_with(
    place: Place,
    number: usize,
    data: &Path,
    change: impl FnOnce(&mut worker::Config),
) -> Running<worker::Error> {
    let mut config = worker::Config {
        name: format!("w{number}"),
        labels: Default::default(),
        slots: None,
        scheduler: Some(place.grpc()),
        security: worker::Security::Joined(None),
        bounds: worker::bounds(Bounds::default().followers),
        advertise: None,
        data_dir: enrolled::worker(data, &format!("w{number}")),
        script_dir: None,
        shim: binary(),
        grace: GRACE,
        output_limit: 1 << 30,
        min_free_disk: 0,
        keep_finished: 1000,
        on_stop: worker::OnStop::EndJobs,
        control_groups: worker::ControlGroups::WherePossible,
        rules: worker::Rules::default(),
    };
    change(&mut config);
    let listener = TcpListener::bind(place.worker(number)).await.unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(worker::run(config, listener, shutdown.clone()));
    Running { shutdown, task }
}

/// Listens; waits for the last task of an aborted role to give the address up.
async fn bind(address: String) -> TcpListener {
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            pause.tick().await;
            match TcpListener::bind(&address).await {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                bound => return bound.unwrap(),
            }
        }
    })
    .await
}

/// A request for a shell that runs `script`.
pub(crate) fn sh(script: &str) -> StartRequest {
    StartRequest {
        command: Some("sh".into()),
        args: vec!["-c".into(), script.into()],
        ..Default::default()
    }
}

pub(crate) async fn job(client: &Client, id: JobId) -> Job {
    let request = QueryRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    job_of(within(client.query(&request)).await.unwrap())
}

pub(crate) async fn end_of(client: &Client, id: JobId) -> Job {
    let request = QueryRequest {
        job_id: id.to_string(),
        wait_ms: Some(60_000),
        ..Default::default()
    };
    let answer = within(client.query(&request)).await.unwrap();
    let job = job_of(answer);
    assert!(job.state.is_final(), "{job:?}");
    job
}

/// What was asked about is a job.
fn job_of(answer: QueryAnswer) -> Job {
    match answer {
        QueryAnswer::Job(answer) => answer.job,
        QueryAnswer::Group(answer) => panic!("{answer:?}"),
    }
}

pub(crate) fn everything(id: JobId) -> LogsQuery {
    LogsQuery {
        job_id: id.to_string(),
        follow: true,
        ..Default::default()
    }
}

pub(crate) async fn output(client: &Client, id: JobId) -> Vec<u8> {
    read(client, everything(id)).await.unwrap()
}

/// What `GET /logs` returns, to its end.
pub(crate) async fn read(client: &Client, query: LogsQuery) -> Result<Vec<u8>, Error> {
    Ok(rest(&mut within(client.logs(query)).await?).await)
}

/// What is left of an output.
pub(crate) async fn rest(logs: &mut Logs) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        match within(logs.next()).await.unwrap() {
            Event::Output(message) => bytes.extend_from_slice(&message.output),
            Event::End(_) => return bytes,
            Event::Gap { .. } | Event::Away(_) => {}
        }
    }
}

pub(crate) async fn worker_named(client: &Client, name: &str) -> Worker {
    let workers = within(client.workers()).await.unwrap().workers;
    let found = workers.into_iter().find(|worker| worker.name == name);
    found.unwrap_or_else(|| panic!("no worker {name}"))
}

pub(crate) async fn worker_is(client: &Client, name: &str, state: WorkerState) -> Worker {
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            pause.tick().await;
            let workers = client.workers().await.unwrap().workers;
            let found = workers.into_iter().find(|worker| worker.name == name);
            if let Some(worker) = found.filter(|worker| worker.state == state) {
                return worker;
            }
        }
    })
    .await
}

/// Waits until the scheduler shows a job in this state.
pub(crate) async fn job_is(client: &Client, id: JobId, state: JobState) -> Job {
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            pause.tick().await;
            let job = job(client, id).await;
            if job.state == state {
                return job;
            }
            assert!(!job.state.is_final(), "{job:?}");
        }
    })
    .await
}

/// The roles as processes are up once a worker is ready.
pub(crate) async fn connected(place: Place) -> Client {
    let client = place.client();
    within(back(&client)).await;
    client
}

/// Returns when the scheduler answers and a worker is ready, whoever is away.
pub(crate) async fn back(client: &Client) {
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    loop {
        pause.tick().await;
        if client.ready(1, Duration::from_secs(30)).await.is_ok() {
            return;
        }
    }
}

/// The same command, where it sees disks as the process `pid` does.
pub(crate) fn inside(pid: u32, command: &Command) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--mount", "--user", "--preserve-credentials"]);
    nsenter.args(["--target", &pid.to_string()]);
    nsenter.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        nsenter.env(name, value.unwrap_or_default());
    }
    nsenter
}

/// A role as a process of its own; killed when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn scheduler(place: Place, data: &Path) -> Self {
        Self::run(Self::scheduler_command(place, data))
    }

    /// Gives a worker up after a second.
    pub(crate) fn impatient_scheduler(place: Place, data: &Path) -> Self {
        let mut command = Self::scheduler_command(place, data);
        command.args(["--heartbeat-interval", SHORT_HEARTBEAT]);
        Self::run(command)
    }

    /// Runs a command with a file system of its own at `dir`, which holds only
    /// `size`, and in the beginning what was there. It is nobody else's, and gone
    /// with the last process that sees it.
    pub(crate) fn on_small_disk(command: &Command, dir: &Path, size: &str) -> Self {
        let before = dir.with_extension("before");
        fs::rename(dir, &before).unwrap();
        fs::create_dir_all(dir).unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--user", "--map-root-user", "sh", "-c"]);
        let mount = format!("mount -t tmpfs -o size={size} tmpfs {}", dir.display());
        let copy = format!("cp -a {}/. {}", before.display(), dir.display());
        unshare.arg(format!("{mount} && {copy} && exec \"$@\""));
        unshare.arg("sh");
        unshare.arg(command.get_program()).args(command.get_args());
        Self::run(unshare)
    }

    /// Gives that file system another size.
    pub(crate) fn resize_disk(&self, dir: &Path, size: &str) {
        let mut mount = Command::new("mount");
        mount.arg("-o").arg(format!("remount,size={size}")).arg(dir);
        assert!(inside(self.id(), &mount).status().unwrap().success());
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn run(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn scheduler_command(place: Place, data: &Path) -> Command {
        let mut command = Command::new(binary());
        command.args(["scheduler", "--log-level", "warn"]);
        command.args(["--http-addr", &place.http(), "--grpc-addr", &place.grpc()]);
        command.arg("--data-dir");
        command.arg(enrolled::scheduler(&data.join("scheduler")));
        command.arg("--client-dir").arg(data.join("client"));
        // What it prints is a token, which nobody needs.
        command.stdout(Stdio::null());
        command
    }

    pub(crate) fn worker(place: Place, number: usize, data: &Path) -> Self {
        Self::run(Self::worker_command(place, number, data))
    }

    pub(crate) fn worker_command(place: Place, number: usize, data: &Path) -> Command {
        let mut command = Command::new(binary());
        command.args(["worker", "--log-level", "warn", "--slots", "unlimited"]);
        command.env("JOBCTL_JOBS_GRACE", "300ms");
        command.args(["--name", &format!("w{number}")]);
        command.args([
            "--grpc-addr",
            &place.worker(number),
            "--scheduler",
            &place.grpc(),
        ]);
        command.arg("--data-dir");
        command.arg(enrolled::worker(data, &format!("w{number}")));
        command
    }

    /// kill -9, and wait until it is gone.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; returns its exit code, and what it said on a standard
    /// error that is piped.
    pub(crate) async fn end_of(mut self) -> (Option<i32>, String) {
        let ended = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            if let Some(mut stderr) = self.0.stderr.take() {
                std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
            }
            (self.0.wait().unwrap().code(), said)
        });
        within(ended).await.unwrap()
    }

    /// Waits for its end; returns its exit code.
    pub(crate) async fn code(mut self) -> Option<i32> {
        let ended = tokio::task::spawn_blocking(move || self.0.wait().unwrap().code());
        within(ended).await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self(child)
    }
}
