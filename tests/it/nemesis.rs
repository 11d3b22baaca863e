//! A nemesis: real processes, with a network between them that can be cut one way,
//! both ways, or refuse; and processes that are killed or frozen, at moments that a
//! seed draws. It heals without restarting anything. Then it is checked that no job
//! began twice, that each has its own end and output, and that everything that was
//! asked for has been done.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use jobctl::{
    api::{
        Job, JobState, JobsQuery, LogsQuery, QueryAnswer, QueryRequest, StopRequest, WorkerState,
    },
    client::{Client, logs::Event},
    ids::JobId,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use crate::{
    cluster::{Place, Process, job as job_of, sh},
    enrolled,
    faults::{Chance, Promise, Started, marked, start_or_refusal},
    support::{Folder, LIMIT, binary, eventually, processes_of, within},
};

const WORKERS: usize = 3;

/// How many starts are under way at the same time.
const LANES: u64 = 6;

/// What a wire lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wire {
    /// From who connected.
    up: bool,
    down: bool,
    /// Connections are ended, and new ones too.
    refuses: bool,
}

const OPEN: Wire = Wire {
    up: true,
    down: true,
    refuses: false,
};

/// A way to a server that can be cut. While it is, bytes wait, as they do in a network
/// that loses packets for a while.
struct Proxy {
    address: SocketAddr,
    wire: watch::Sender<Wire>,
    /// Ends with the proxy.
    _serving: JoinSet<()>,
}

impl Proxy {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (wire, seen) = watch::channel(OPEN);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                while connections.try_join_next().is_some() {}
                connections.spawn(carry(socket, server.clone(), seen.clone()));
            }
        });
        Self {
            address,
            wire,
            _serving: serving,
        }
    }

    fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

/// One connection, until either side or the wire ends it.
async fn carry(client: TcpStream, server: String, mut wire: watch::Receiver<Wire>) {
    if wire.borrow().refuses {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    // Small messages are what this is about.
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let up = pump(from_client, to_server, wire.clone(), |wire| wire.up);
    let down = pump(from_server, to_client, wire.clone(), |wire| wire.down);
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = wire.wait_for(|wire| wire.refuses) => {}
    }
}

/// Passes on what comes, whenever the gate is open.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
    is_open: impl Fn(&Wire) -> bool,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if wire.wait_for(&is_open).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// A worker, and the wires between it and the scheduler.
struct Worker {
    data: PathBuf,
    process: Option<Process>,
    /// On which it calls the scheduler.
    calls: Proxy,
    /// On which the scheduler calls it.
    is_called: Proxy,
}

/// What is done to a job may be the reason for its loss.
#[derive(Default)]
struct Hurt {
    /// Their shims were killed.
    shims: HashSet<JobId>,
    /// When workers were killed.
    kills: Vec<Instant>,
    /// Folders below a worker's data folder were removed: what they held is lost.
    folders: u32,
}

struct Cluster {
    place: Place,
    dir: Folder,
    scheduler: Option<Process>,
    workers: Vec<Worker>,
    hurt: Hurt,
}

impl Cluster {
    async fn start() -> Self {
        let (place, dir) = (Place::new(), Folder::new());
        let scheduler = Some(Process::impatient_scheduler(place, dir.path()));
        let mut workers = Vec::new();
        for number in 1..=WORKERS {
            workers.push(Worker {
                data: dir.path().join(format!("w{number}")),
                process: None,
                calls: Proxy::to(place.grpc()).await,
                is_called: Proxy::to(place.worker(number)).await,
            });
        }
        let mut cluster = Self {
            place,
            dir,
            scheduler,
            workers,
            hurt: Hurt::default(),
        };
        for number in 0..WORKERS {
            cluster.start_worker(number);
        }
        cluster.all_are_ready().await;
        cluster
    }

    fn start_worker(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        let name = format!("w{}", number + 1);
        let mut command = Command::new(binary());
        command.args(["worker", "--log-level", "error", "--slots", "4"]);
        command.args(["--name", &name]);
        command.env("JOBCTL_JOBS_GRACE", "300ms");
        command.args(["--grpc-addr", &self.place.worker(number + 1)]);
        command.args(["--advertise", &worker.is_called.address.to_string()]);
        command.args(["--scheduler", &worker.calls.address.to_string()]);
        command
            .arg("--data-dir")
            .arg(enrolled::worker(&worker.data, &name));
        command.stderr(Stdio::null());
        worker.process = Some(Process::run(command));
    }

    async fn all_are_ready(&self) {
        let client = self.place.client();
        within(async {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            loop {
                pause.tick().await;
                let Ok(answer) = client.workers().await else {
                    continue;
                };
                let ready = |worker: &&jobctl::api::Worker| worker.state == WorkerState::Ready;
                if answer.workers.iter().filter(ready).count() == WORKERS {
                    return;
                }
            }
        })
        .await;
    }

    /// Hurts something, waits a while, and heals it. Only what was killed is started.
    async fn round(&mut self, chance: &mut Chance) -> String {
        let number = chance.below(WORKERS as u64) as usize;
        let length = Duration::from_millis(100 + chance.below(1900));
        let what = chance.below(10);
        let said = match what {
            0 => {
                self.scheduler.take().unwrap().kill();
                sleep(length / 4).await;
                let dir = self.dir.path();
                self.scheduler = Some(Process::impatient_scheduler(self.place, dir));
                "the scheduler was killed".to_owned()
            }
            1 | 2 => {
                self.workers[number].process.take().unwrap().kill();
                self.hurt.kills.push(Instant::now());
                sleep(length / 4).await;
                self.start_worker(number);
                format!("worker {number} was killed")
            }
            3 => {
                let scheduler = self.scheduler.as_ref().unwrap();
                scheduler.signal(Signal::STOP);
                sleep(length).await;
                scheduler.signal(Signal::CONT);
                "the scheduler was frozen".to_owned()
            }
            4 => {
                let worker = self.workers[number].process.as_ref().unwrap();
                worker.signal(Signal::STOP);
                sleep(length).await;
                worker.signal(Signal::CONT);
                format!("worker {number} was frozen")
            }
            5..=8 => self.cut(number, length, chance).await,
            _ => {
                // Not all of them at once.
                let shims = self.dir.shims();
                let at = chance.below(shims.len().max(1) as u64) as usize;
                // It may have ended since it was seen.
                let killed = shims.get(at).filter(|(pid, _)| {
                    let pid = Pid::from_raw(*pid).unwrap();
                    kill_process(pid, Signal::KILL).is_ok()
                });
                match killed {
                    Some((_, job)) => {
                        self.hurt.shims.insert(*job);
                        format!("the shim of {job} was killed")
                    }
                    None => "no shim was there".to_owned(),
                }
            }
        };
        format!("{said}, {length:?}")
    }

    async fn cut(&mut self, number: usize, length: Duration, chance: &mut Chance) -> String {
        let worker = &self.workers[number];
        let wire = match chance.below(4) {
            0 => Wire { up: false, ..OPEN },
            1 => Wire {
                down: false,
                ..OPEN
            },
            2 => Wire::default(),
            _ => Wire {
                refuses: true,
                ..OPEN
            },
        };
        let proxies = match chance.below(3) {
            0 => vec![&worker.calls],
            1 => vec![&worker.is_called],
            _ => vec![&worker.calls, &worker.is_called],
        };
        for proxy in &proxies {
            proxy.set(wire);
        }
        sleep(length).await;
        for proxy in &proxies {
            proxy.set(OPEN);
        }
        format!("{} wires of worker {number}: {wire:?}", proxies.len())
    }

    /// As a cleaner of old files does. What is in it is lost, and the worker may
    /// end for it; then it is started again, which is said.
    async fn remove_a_folder(&mut self, chance: &mut Chance) -> String {
        let number = chance.below(WORKERS as u64) as usize;
        let name = ["output", "results"][chance.below(2) as usize];
        self.hurt.folders += 1;
        // Something may be written there at this moment.
        let removed = fs::remove_dir_all(self.workers[number].data.join(name));
        sleep(Duration::from_millis(300)).await;
        let has_ended = self.workers[number].process.as_mut().unwrap().has_ended();
        if has_ended {
            self.hurt.kills.push(Instant::now());
            self.start_worker(number);
        }
        format!("{name} of worker {number} was removed ({removed:?}), it ended: {has_ended}")
    }
}

/// What was asked for.
struct Asked {
    number: u64,
    started: Started,
    begun: Instant,
    /// A stop of it is asked for too.
    stopped: bool,
}

/// A job of a number: it either ends soon, or never by itself.
fn is_endless(number: u64) -> bool {
    number % 7 == 5
}

/// It may run on one worker only.
fn is_bound(number: u64) -> bool {
    number % 4 == 3
}

async fn ask(client: &Client, marks: &std::path::Path, seed: u64, number: u64) -> Asked {
    let begun = Instant::now();
    let mut request = match is_endless(number) {
        true => sh(&format!(
            "echo $JOBCTL_JOB_ID >> {}/{number}; exec sleep 3600",
            marks.display()
        )),
        false => marked(marks, number, number * 37, number % 5),
    };
    // Some may go nowhere else.
    if is_bound(number) {
        request.worker_id = Some(format!("w{}", number % WORKERS as u64 + 1));
    }
    let key = format!("nemesis-{seed}-{number}");
    let started = match start_or_refusal(client, &request, &key).await {
        Ok(started) => started,
        // It is recorded that it could not be started; why is looked at in the end.
        Err(error) => Started {
            id: error.job_id.unwrap_or_else(|| panic!("{error:?}")),
            promise: Promise::NeverBegins,
        },
    };
    Asked {
        number,
        started,
        begun,
        stopped: is_endless(number),
    }
}

/// Waits for its end, as long as the faults go on.
async fn ended_before(client: &Client, id: JobId, until: Instant) {
    let request = QueryRequest {
        job_id: id.to_string(),
        wait_ms: Some(500),
        ..Default::default()
    };
    while Instant::now() < until {
        match client.query(&request).await {
            Ok(QueryAnswer::Job(answer)) if answer.done => return,
            Ok(_) => {}
            Err(_) => crate::cluster::back(client).await,
        }
    }
}

/// Asks until the stop is recorded: from then on it is owed.
async fn stop(client: &Client, id: JobId) {
    let request = StopRequest {
        job_id: id.to_string(),
        no_wait: true,
        ..Default::default()
    };
    loop {
        match client.stop(&request).await {
            Ok(_) => return,
            Err(error) if error.code() == Some("job_finished") => return,
            // Recorded, and delivered as soon as the worker can be reached.
            Err(error) if error.code() == Some("worker_unreachable") => return,
            Err(_) => crate::cluster::back(client).await,
        }
    }
}

/// What a nemesis does with one seed.
struct Plan {
    seed: u64,
    /// How long it goes on.
    lasts: Duration,
    removes_folders: bool,
    /// In the end stops are asked for while only the way to the workers is cut.
    ends_with_a_cut: bool,
}

async fn survive(plan: Plan) {
    let mut cluster = Cluster::start().await;
    let mut chance = Chance(plan.seed);
    let marks = cluster.dir.path().join("marks");
    fs::create_dir(&marks).unwrap();
    let until = Instant::now() + plan.lasts;
    let mut starts = JoinSet::new();
    for lane in 0..LANES {
        let (client, marks, seed) = (cluster.place.client(), marks.clone(), plan.seed);
        starts.spawn(async move {
            let (mut asked, mut number) = (Vec::new(), lane);
            let mut endless = Vec::new();
            while Instant::now() < until {
                let new = ask(&client, &marks, seed, number).await;
                // Else more jobs would wait in the end than can be waited for.
                if (number / LANES).is_multiple_of(3) {
                    ended_before(&client, new.started.id, until).await;
                }
                // Not at once: until then it may have been given up, or found again.
                if let Some(before) = endless.pop() {
                    stop(&client, before).await;
                }
                endless.extend(new.stopped.then_some(new.started.id));
                asked.push(new);
                number += LANES;
            }
            for last in endless {
                stop(&client, last).await;
            }
            asked
        });
    }
    let mut story = Vec::new();
    while Instant::now() < until {
        sleep(Duration::from_millis(chance.below(300))).await;
        story.push(match plan.removes_folders && chance.below(12) == 0 {
            true => cluster.remove_a_folder(&mut chance).await,
            false => cluster.round(&mut chance).await,
        });
    }
    let healed = Instant::now();
    let mut asked = Vec::new();
    while let Some(lane) = in_time(starts.join_next(), &story, "a start has no answer").await {
        asked.extend(lane.unwrap());
    }
    if plan.ends_with_a_cut {
        asked.extend(cut_the_way_of_stops(&cluster, plan.seed, &story).await);
    }
    let ids: HashSet<_> = asked.iter().map(|asked| asked.started.id).collect();
    assert_eq!(ids.len(), asked.len(), "each key its own job");
    let client = cluster.place.client();
    let story = format!("seed {}: {story:#?}", plan.seed);
    all_is_done(&client, &story).await;
    cluster.all_are_ready().await;
    println!(
        "seed {}: {} jobs, all done {:?} after the last fault",
        plan.seed,
        asked.len(),
        healed.elapsed()
    );
    let mut states: HashMap<&str, u32> = HashMap::new();
    for asked in &asked {
        let job = job_of(&client, asked.started.id).await;
        *states.entry(job.state.as_str()).or_default() += 1;
        check(&cluster, &client, asked, &job, &story).await;
    }
    println!("seed {}: {states:?}", plan.seed);
    eventually(|| cluster.dir.shims().is_empty()).await;
    for asked in &asked {
        let left = processes_of(asked.started.id);
        assert!(left.is_empty(), "{:?} lives on; {story}", asked.started.id);
    }
}

/// Starts a job on each worker that never ends by itself, and stops it while the
/// scheduler cannot call the worker, whose heartbeats go on. Nothing happens after that
/// which would have the worker register again.
async fn cut_the_way_of_stops(cluster: &Cluster, seed: u64, story: &[String]) -> Vec<Asked> {
    let client = cluster.place.client();
    cluster.all_are_ready().await;
    let marks = cluster.dir.path().join("marks");
    let mut asked = Vec::new();
    for worker in 0..WORKERS as u64 {
        let mut numbers = 1_000_000..;
        let is_it = |number: &u64| {
            is_endless(*number) && is_bound(*number) && *number % WORKERS as u64 == worker
        };
        let number = numbers.find(is_it).unwrap();
        asked.push(ask(&client, &marks, seed, number).await);
    }
    let all_run = async {
        for asked in &asked {
            let mark = marks.join(asked.number.to_string());
            eventually(|| mark.exists()).await;
        }
    };
    in_time(all_run, story, "a job does not begin").await;
    for worker in &cluster.workers {
        worker.is_called.set(Wire {
            refuses: true,
            ..OPEN
        });
    }
    for asked in &asked {
        in_time(
            stop(&client, asked.started.id),
            story,
            "a stop is not recorded",
        )
        .await;
    }
    for worker in &cluster.workers {
        worker.is_called.set(OPEN);
    }
    asked
}

async fn in_time<T>(future: impl Future<Output = T>, story: &[String], what: &str) -> T {
    let ended = tokio::time::timeout(LIMIT, future).await;
    ended.unwrap_or_else(|_| panic!("{what}: {story:#?}"))
}

/// Nothing is owed to anybody: no job waits, is in doubt, or runs although it was to
/// end. No process is started for that.
async fn all_is_done(client: &Client, story: &str) {
    let query = JobsQuery {
        state: Some("pending,running,unknown".to_owned()),
        limit: Some(jobctl::api::MAX_PAGE),
        ..Default::default()
    };
    let begun = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    loop {
        pause.tick().await;
        let Ok(live) = client.jobs(&query).await else {
            assert!(begun.elapsed() < LIMIT, "the scheduler is away; {story}");
            continue;
        };
        if live.jobs.is_empty() {
            return;
        }
        if begun.elapsed() > LIMIT {
            panic!("{}; {story}", still_owed(client, &live.jobs).await);
        }
    }
}

/// Those that are on a worker first, and what the scheduler says of the workers.
async fn still_owed(client: &Client, jobs: &[Job]) -> String {
    let (placed, waiting): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.worker.is_some());
    let mut text = format!("{} jobs are owed, {} on workers", jobs.len(), placed.len());
    for job in placed.into_iter().chain(waiting).take(20) {
        let (id, state, worker) = (job.id, job.state.as_str(), job.worker.as_deref());
        let command = job.args.last().map_or("", String::as_str);
        let reason = job.reason.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "\n{id} {state} on {worker:?}: {reason}: {command}"
        ));
    }
    for worker in within(client.workers()).await.unwrap().workers {
        let (name, state) = (&worker.name, worker.state);
        text.push_str(&format!("\n{name} {state:?} runs {}", worker.running));
    }
    text
}

/// Whether a job, which has ended, began at most once and ended as it is said to.
async fn check(cluster: &Cluster, client: &Client, asked: &Asked, job: &Job, story: &str) {
    let (id, number) = (asked.started.id, asked.number);
    let marks = cluster.dir.path().join("marks").join(number.to_string());
    let mark = fs::read_to_string(marks).unwrap_or_default();
    let told = format!("number {number}, mark {mark:?}: {job:#?}; {story}");
    let began_once = mark == format!("{id}\n");
    assert!(began_once || mark.is_empty(), "began twice; {told}");
    let promise = asked.started.promise;
    assert!(!began_once || promise != Promise::NeverBegins, "{told}");
    let hurt = &cluster.hurt;
    let is_hurt = hurt.shims.contains(&id) || hurt.folders > 0;
    let was_killed = hurt.kills.iter().any(|at| *at > asked.begun);
    match job.state {
        // The worker had no folder for its output, and the record says so.
        JobState::Failed if hurt.folders > 0 && job.start_error.is_some() => {
            assert!(mark.is_empty(), "{told}");
        }
        // What looked like its shim was the job itself, before it became its program.
        JobState::Failed if hurt.shims.contains(&id) && job.signal == Some(9) => {}
        JobState::Succeeded | JobState::Failed if !asked.stopped => {
            let code = (number % 5) as i32;
            let has_ended = (job.exit_code, began_once) == (Some(code), true);
            // The worker was ending, and did not take it.
            let never_began = promise == Promise::NeverBegins
                && job.exit_code.is_none()
                && job.start_error.as_deref() == Some("worker_draining");
            assert!(has_ended || never_began, "{told}");
        }
        JobState::Stopped => assert!(asked.stopped, "{told}"),
        // Its shim was killed; or its worker when it had noted that it begins the job,
        // and before it did.
        JobState::Lost => assert!(is_hurt || (was_killed && mark.is_empty()), "{told}"),
        _ => panic!("{told}"),
    }
    if hurt.folders > 0 {
        return;
    }
    let bytes = output(client, id).await;
    let whole = matches!(job.state, JobState::Succeeded | JobState::Failed)
        && began_once
        && !hurt.shims.contains(&id);
    if whole {
        assert_eq!(job.output_bytes, number * 37, "{told}");
    }
    let expected = job.output_bytes as usize;
    assert!(bytes == vec![0; expected], "{} bytes; {told}", bytes.len());
}

/// All that was kept of it.
async fn output(client: &Client, id: JobId) -> Vec<u8> {
    let query = LogsQuery {
        job_id: id.to_string(),
        follow: true,
        offset: Some(0),
        ..Default::default()
    };
    let mut logs = within(client.logs(query)).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        match within(logs.next()).await.unwrap() {
            Event::Output(message) => bytes.extend_from_slice(&message.output),
            Event::Gap { .. } | Event::Away(_) => {}
            Event::End(_) => return bytes,
        }
    }
}

#[tokio::test]
async fn everything_is_done_and_nothing_twice_after_faults_that_heal() {
    survive(Plan {
        seed: 1,
        lasts: Duration::from_secs(12),
        removes_folders: false,
        ends_with_a_cut: false,
    })
    .await;
}

#[tokio::test]
async fn a_stop_is_delivered_though_only_the_way_to_the_worker_was_cut() {
    survive(Plan {
        seed: 2,
        lasts: Duration::ZERO,
        removes_folders: false,
        ends_with_a_cut: true,
    })
    .await;
}

#[tokio::test]
#[ignore = "takes 30 minutes: cargo test --release -- --ignored --nocapture half_an_hour"]
async fn everything_is_done_after_half_an_hour_of_faults() {
    let begun = Instant::now();
    let mut seed = 1000;
    while begun.elapsed() < Duration::from_secs(30 * 60) {
        survive(Plan {
            seed,
            lasts: Duration::from_secs(60),
            removes_folders: seed % 3 == 2,
            ends_with_a_cut: true,
        })
        .await;
        seed += 1;
    }
}
