//! The promises, with real processes and real kill -9.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jobctl::{
    api::{
        self, GapCause, Job, JobState, QueryAnswer, QueryRequest, StartRequest, StopRequest,
        WorkerState,
    },
    client::{Client, Error, logs::Event},
    ids::JobId,
};
use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    cluster::{
        Place, Process, back, connected, end_of, everything, inside, job as job_of, job_is, output,
        rest, sh, worker_is, worker_named,
    },
    processes::wrong_clock,
    support::{Folder, eventually, processes_of, sha256, within},
};

/// A scheduler and a worker that are killed and come back.
struct Victims {
    place: Place,
    dir: Folder,
    scheduler: Option<Process>,
    worker: Option<Process>,
}

impl Victims {
    async fn start() -> (Self, Client) {
        let mut victims = Self {
            place: Place::new(),
            dir: Folder::new(),
            scheduler: None,
            worker: None,
        };
        victims.restart_scheduler();
        victims.restart_worker();
        let client = connected(victims.place).await;
        (victims, client)
    }

    fn worker_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("w1")
    }

    fn kill_scheduler(&mut self) {
        self.scheduler.take().unwrap().kill();
    }

    fn kill_worker(&mut self) {
        self.worker.take().unwrap().kill();
    }

    fn restart_scheduler(&mut self) {
        self.scheduler = Some(Process::impatient_scheduler(self.place, self.dir.path()));
    }

    fn restart_worker(&mut self) {
        self.worker = Some(Process::worker(self.place, 1, &self.worker_dir()));
    }
}

/// splitmix64: what a seed decides, it decides every time.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A job that leaves one line in a file for each of its starts, writes `bytes`
/// bytes, and ends with `code` a moment later.
pub(crate) fn marked(marks: &Path, number: u64, bytes: u64, code: u64) -> StartRequest {
    let mark = marks.join(number.to_string());
    sh(&format!(
        "echo $JOBCTL_JOB_ID >> {}; head -c {bytes} /dev/zero; sleep 0.{number:03}; exit {code}",
        mark.display()
    ))
}

/// The answer to a start.
pub(crate) struct Started {
    pub(crate) id: JobId,
    pub(crate) promise: Promise,
}

/// What an answer says of its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// 201: it runs.
    Began,
    /// 201: it is recorded, and goes to a worker as soon as one has room.
    Waits,
    /// An error, with the reason why it never will begin.
    NeverBegins,
}

/// Asks until there is an answer that will not change.
async fn start(client: &Client, request: &StartRequest, key: &str) -> Started {
    let started = start_or_refusal(client, request, key).await;
    started.unwrap_or_else(|error| panic!("{error:?}"))
}

/// As [`start`], where it may be refused for good.
pub(crate) async fn start_or_refusal(
    client: &Client,
    request: &StartRequest,
    key: &str,
) -> Result<Started, api::Error> {
    loop {
        let (id, promise) = match client.start_with_key(request, key).await {
            Ok(started) if started.state == JobState::Pending => (started.job_id, Promise::Waits),
            Ok(started) => (started.job_id, Promise::Began),
            // Recorded, and then its worker was killed before there was a process.
            Err(Error::Refused { error, .. }) if error.error.contains("lost: ") => {
                (error.job_id.unwrap(), Promise::NeverBegins)
            }
            // Recorded as one that the worker did not take.
            Err(Error::Refused { error, .. }) if error.code == "worker_draining" => {
                (error.job_id.unwrap(), Promise::NeverBegins)
            }
            Err(Error::Refused { status, error }) if status < 500 => return Err(error),
            Err(_) => {
                back(client).await;
                continue;
            }
        };
        return Ok(Started { id, promise });
    }
}

/// Asks until the job has ended, whoever is away meanwhile.
async fn end(client: &Client, id: JobId) -> Job {
    let request = QueryRequest {
        job_id: id.to_string(),
        wait_ms: Some(10_000),
        ..Default::default()
    };
    loop {
        match client.query(&request).await {
            Ok(QueryAnswer::Job(answer)) if answer.done => return answer.job,
            Ok(_) => {}
            Err(Error::Refused { status, error }) if status < 500 => panic!("{error:?}"),
            Err(_) => back(client).await,
        }
    }
}

/// A start in the middle of kills.
struct Asked {
    number: u64,
    started: Started,
    /// How often the worker had been killed before the first attempt.
    kills_before: u64,
}

/// Every start that was answered with 201 and ran began once, and has the end and
/// all the output of what ran; so has every one that waited, unless it is lost. What
/// is lost never began, and had its worker killed after it was asked for.
async fn survive(seed: u64, jobs: u64) {
    let (mut victims, client) = Victims::start().await;
    let mut chance = Chance(seed);
    let marks = victims.dir.path().join("marks");
    fs::create_dir(&marks).unwrap();
    let kills = Arc::new(AtomicU64::new(0));
    let mut starts = JoinSet::new();
    for lane in 0..8 {
        let (client, marks) = (victims.place.client(), marks.clone());
        let kills = kills.clone();
        starts.spawn(async move {
            let mut asked = Vec::new();
            for number in (lane..jobs).step_by(8) {
                let request = marked(&marks, number, number * 37, number % 5);
                let before = kills.load(Ordering::SeqCst);
                let started = start(&client, &request, &format!("{seed}-{number}")).await;
                asked.push(Asked {
                    number,
                    started,
                    kills_before: before,
                });
            }
            asked
        });
    }
    let mut asked = Vec::new();
    let chaos = async {
        loop {
            let pause = 50 + chance.below(400);
            tokio::select! {
                () = sleep(Duration::from_millis(pause)) => {}
                lane = starts.join_next() => match lane {
                    Some(lane) => {
                        asked.extend(lane.unwrap());
                        continue;
                    }
                    None => break,
                },
            }
            let what = chance.below(3);
            if what != 1 {
                victims.kill_scheduler();
            }
            if what != 0 {
                victims.kill_worker();
                kills.fetch_add(1, Ordering::SeqCst);
            }
            sleep(Duration::from_millis(chance.below(100))).await;
            if what != 1 {
                victims.restart_scheduler();
            }
            if what != 0 {
                victims.restart_worker();
            }
        }
    };
    within(chaos).await;
    assert_eq!(asked.len() as u64, jobs);
    let ids: HashSet<_> = asked.iter().map(|asked| asked.started.id).collect();
    assert_eq!(ids.len() as u64, jobs, "each key its own job");
    within(connected(victims.place)).await;
    let mut ends = Vec::new();
    for asked in asked {
        let job = within(end(&client, asked.started.id)).await;
        ends.push((asked, job));
    }
    // From here on nothing can begin any more that should not have.
    eventually(|| victims.dir.shims().is_empty()).await;
    victims.kill_scheduler();
    victims.kill_worker();
    victims.restart_worker();
    victims.restart_scheduler();
    connected(victims.place).await;
    for (asked, job) in ends {
        let (id, number) = (asked.started.id, asked.number);
        let mark = fs::read_to_string(marks.join(number.to_string())).unwrap_or_default();
        let told = format!("seed {seed}, number {number}, mark {mark:?}: {job:?}");
        assert_eq!(job_of(&client, id).await, job, "an end is final; {told}");
        let bytes = within(output(&client, id)).await;
        assert_eq!(bytes.len() as u64, job.output_bytes, "{told}");
        assert!(bytes.iter().all(|byte| *byte == 0), "{told}");
        let promise = asked.started.promise;
        // Its worker was killed when it had noted that it begins the job, and before
        // it did; whether it did cannot be known to anybody.
        let never_began = job.state == JobState::Lost && promise != Promise::Began;
        assert!(never_began || promise != Promise::NeverBegins, "{told}");
        if !never_began {
            assert_eq!(mark, format!("{id}\n"), "one start, and its own; {told}");
            let (state, code) = match number % 5 {
                0 => (JobState::Succeeded, 0),
                code => (JobState::Failed, code as i32),
            };
            assert_eq!((job.state, job.exit_code), (state, Some(code)), "{told}");
            assert_eq!(job.output_bytes, number * 37, "{told}");
        } else {
            let killed = kills.load(Ordering::SeqCst) > asked.kills_before;
            assert!(killed, "lost without a reason; {told}");
            assert_eq!((job.state, job.exit_code), (JobState::Lost, None), "{told}");
            assert_eq!((mark.as_str(), job.output_bytes), ("", 0), "{told}");
        }
    }
}

#[tokio::test]
async fn jobs_survive_kills_of_both_at_random_moments() {
    for seed in 1..=2 {
        survive(seed, 60).await;
    }
}

#[tokio::test]
#[ignore = "takes minutes: cargo test --release -- --ignored a_hundred_seeds"]
async fn jobs_survive_a_hundred_seeds() {
    for seed in 100..200 {
        survive(seed, 200).await;
        println!("seed {seed} survived");
    }
}

#[tokio::test]
async fn one_key_is_one_job_through_kills_of_the_scheduler() {
    let (mut victims, client) = Victims::start().await;
    let marks = victims.dir.path().join("marks");
    fs::create_dir(&marks).unwrap();
    let mut cut_off = 0;
    for answers_before in [0, 1, 5, 20] {
        let mark = marks.join(answers_before.to_string());
        let request = marked(&marks, answers_before, 10, 3);
        let mut starts = JoinSet::new();
        for _ in 0..200 {
            let (client, request) = (victims.place.client(), request.clone());
            let key = format!("key-{answers_before}");
            starts.spawn(async move { start(&client, &request, &key).await });
        }
        let mut answers = Vec::new();
        match answers_before {
            // It has begun, and nobody was told.
            0 => eventually(|| mark.exists()).await,
            _ => {
                for _ in 0..answers_before {
                    answers.push(within(starts.join_next()).await.unwrap().unwrap());
                }
            }
        }
        victims.kill_scheduler();
        // Several round trips, in which those come in that were sent before.
        for _ in 0..3 {
            within(client.version()).await.unwrap_err();
        }
        while let Some(answer) = starts.try_join_next() {
            answers.push(answer.unwrap());
        }
        cut_off += starts.len();
        victims.restart_scheduler();
        while let Some(answer) = within(starts.join_next()).await {
            answers.push(answer.unwrap());
        }
        assert!(
            answers
                .iter()
                .all(|answer| answer.promise != Promise::NeverBegins)
        );
        let ids: HashSet<_> = answers.iter().map(|answer| answer.id).collect();
        assert_eq!(ids.len(), 1);
        let id = *ids.iter().next().unwrap();
        assert_eq!(within(end(&client, id)).await.exit_code, Some(3));
        eventually(|| victims.dir.shims().is_empty()).await;
        assert_eq!(fs::read_to_string(mark).unwrap(), format!("{id}\n"));
    }
    assert!(cut_off > 0, "every kill came when all had their answer");
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_known_when_both_are_back() {
    let (mut victims, client) = Victims::start().await;
    let fifo = victims.dir.path().join("fifo");
    let script = format!(
        "mkfifo {0}; echo before; read x < {0}; echo after; exit 7",
        fifo.display()
    );
    let id = client.start(&sh(&script)).await.unwrap().job_id;
    let mut logs = within(client.logs(everything(id))).await.unwrap();
    within(logs.next()).await.unwrap();
    victims.kill_worker();
    let held = fs::File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    std::io::Write::write_all(&mut &held, b"\n").unwrap();
    eventually(|| victims.dir.shims().is_empty()).await;
    victims.kill_scheduler();
    victims.restart_worker();
    victims.restart_scheduler();
    connected(victims.place).await;
    let job = within(end_of(&client, id)).await;
    assert_eq!((job.state, job.exit_code), (JobState::Failed, Some(7)));
    assert_eq!(output(&client, id).await, b"before\nafter\n");
}

#[tokio::test]
async fn a_stop_that_the_worker_cannot_hear_is_delivered_when_it_can() {
    let (victims, client) = Victims::start().await;
    let id = client
        .start(&sh("trap 'exit 0' TERM; sleep 600 & wait"))
        .await
        .unwrap()
        .job_id;
    let worker = victims.worker.as_ref().unwrap();
    worker.signal(Signal::STOP);
    worker_is(&client, "w1", WorkerState::Unreachable).await;
    job_is(&client, id, JobState::Unknown).await;
    let request = StopRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    let error = within(client.stop(&request)).await.unwrap_err();
    assert_eq!(error.code(), Some("worker_unreachable"));
    assert!(error.to_string().contains("stop"), "{error}");
    worker.signal(Signal::CONT);
    let job = within(end(&client, id)).await;
    assert_eq!(job.state, JobState::Stopped);
    assert!(processes_of(id).is_empty());
}

#[tokio::test]
async fn followers_at_any_offset_see_the_same_bytes_while_the_worker_is_killed() {
    let (mut victims, client) = Victims::start().await;
    let copy = victims.dir.path().join("copy");
    let script = format!(
        "for i in $(seq 40); do head -c 50000 /dev/urandom; sleep 0.05; done | tee {}",
        copy.display()
    );
    let id = client.start(&sh(&script)).await.unwrap().job_id;
    let mut chance = Chance(7);
    let mut followers = JoinSet::new();
    for _ in 0..50 {
        let offset = chance.below(40_000);
        let client = victims.place.client();
        followers.spawn(async move {
            let query = jobctl::api::LogsQuery {
                offset: Some(offset),
                ..everything(id)
            };
            let mut pause = tokio::time::interval(Duration::from_millis(10));
            let mut logs = loop {
                pause.tick().await;
                // Nothing is written yet, or the worker is away.
                if let Ok(logs) = client.logs(query.clone()).await {
                    break logs;
                }
            };
            (offset, rest(&mut logs).await)
        });
    }
    for written in [300_000, 1_000_000] {
        eventually(|| fs::metadata(&copy).is_ok_and(|copy| copy.len() >= written)).await;
        victims.kill_worker();
        victims.restart_worker();
    }
    let mut seen = Vec::new();
    while let Some(follower) = within(followers.join_next()).await {
        seen.push(follower.unwrap());
    }
    let whole = fs::read(copy).unwrap();
    assert_eq!(whole.len(), 2_000_000);
    for (offset, bytes) in seen {
        assert_eq!(
            sha256(&bytes),
            sha256(&whole[offset as usize..]),
            "from {offset}"
        );
    }
}

#[tokio::test]
async fn a_full_disk_of_a_worker_is_a_gap_and_no_end() {
    let (place, dir) = (Place::new(), Folder::new());
    let _scheduler = Process::scheduler(place, dir.path());
    let data = dir.path().join("w1");
    let mut command = Process::worker_command(place, 1, &data);
    command.args(["--control-groups", "false", "--min-free-disk", "0"]);
    let worker = Process::on_small_disk(&command, &data, "2m");
    let client = connected(place).await;
    let fifo = dir.path().join("fifo");
    let script = format!(
        "mkfifo {0}; head -c 5000000 /dev/zero; read x < {0}; echo after; exit 3",
        fifo.display()
    );
    let id = client.start(&sh(&script)).await.unwrap().job_id;
    // The fifo is there before the output, and opened for reading behind it.
    let held = within(tokio::task::spawn_blocking(move || {
        loop {
            if let Ok(held) = fs::File::options().write(true).open(&fifo) {
                break held;
            }
        }
    }))
    .await
    .unwrap();
    // More than what is left of the last page.
    let mut large = sh("true");
    large.args.push("x".repeat(50_000));
    let waits = client.start(&large).await.unwrap();
    assert_eq!(waits.state, JobState::Pending);
    let why = waits.reason.unwrap();
    assert!(why.contains("can start jobs now: the disk"), "{why}");
    worker.resize_disk(&data, "64m");
    std::io::Write::write_all(&mut &held, b"\n").unwrap();
    let job = within(end_of(&client, id)).await;
    assert_eq!((job.state, job.exit_code), (JobState::Failed, Some(3)));
    let begun = within(end_of(&client, waits.job_id)).await;
    assert_eq!(begun.state, JobState::Succeeded, "with room it is begun");
    assert_eq!(
        job.output_bytes, 5_000_006,
        "every byte it wrote is counted"
    );
    let reason = job.reason.unwrap();
    assert!(
        reason.contains("bytes of output lost: No space left"),
        "{reason}"
    );
    let mut logs = within(client.logs(everything(id))).await.unwrap();
    let (mut position, mut missing, mut last) = (0, 0, Vec::new());
    loop {
        match within(logs.next()).await.unwrap() {
            Event::Output(message) => {
                assert_eq!(message.offset, position);
                position += message.output.len() as u64;
                last = message.output.to_vec();
            }
            Event::Gap { bytes, cause } => {
                assert_eq!(cause, Some(GapCause::DiskFull));
                (position, missing) = (position + bytes, missing + bytes);
            }
            Event::Away(_) => {}
            Event::End(_) => break,
        }
    }
    assert_eq!(
        (position, last.as_slice()),
        (5_000_006, b"after\n".as_slice())
    );
    assert!((2_900_000..5_000_000).contains(&missing), "{missing}");
    let next = client.start(&sh("true")).await.unwrap().job_id;
    assert_eq!(within(end_of(&client, next)).await.exit_code, Some(0));
}

#[tokio::test]
async fn a_full_disk_of_the_scheduler_refuses_starts_until_there_is_room() {
    let (place, dir) = (Place::new(), Folder::new());
    let data = dir.path().join("scheduler");
    let mut command = Process::scheduler_command(place, dir.path());
    command.args(["--heartbeat-interval", "1s"]);
    let scheduler = Process::on_small_disk(&command, &data, "1m");
    let worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let before = worker_named(&client, "w1").await;
    let fifo = dir.path().join("fifo");
    let mut request = sh(&format!("mkfifo {0}; read x < {0}; exit 4", fifo.display()));
    // Its end takes more room than whatever is left behind a start that is refused.
    request.args.push("x".repeat(100_000));
    let ends_meanwhile = client.start(&request).await.unwrap().job_id;
    eventually(|| fifo.exists()).await;
    let mut started = vec![ends_meanwhile];
    let mut large = sh("exit 4");
    large.args.push("x".repeat(20_000));
    let error = loop {
        match client.start(&large).await {
            Ok(answer) => started.push(answer.job_id),
            Err(error) => break error,
        }
        assert!(started.len() < 1000, "it never gets full");
    };
    assert!(
        matches!(error, Error::Refused { status: 507, .. }),
        "{error}"
    );
    let full_since = jiff::Timestamp::now();
    let held = fs::File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    std::io::Write::write_all(&mut &held, b"\n").unwrap();
    let job = within(end(&client, ends_meanwhile)).await;
    assert_eq!(job.exit_code, Some(4));
    // As many heartbeats as make one side give the other up, and more.
    let long_enough = Some(full_since + Duration::from_secs(4));
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            pause.tick().await;
            let worker = worker_named(&client, "w1").await;
            assert_eq!(
                (worker.state, worker.registered_at),
                (WorkerState::Ready, before.registered_at)
            );
            if worker.last_heartbeat_at >= long_enough {
                break;
            }
        }
    })
    .await;
    let error = client.start(&large).await.unwrap_err();
    assert_eq!(error.code(), Some("disk_full"), "{error}");
    scheduler.resize_disk(&data, "64m");
    started.push(start(&client, &sh("exit 4"), "after").await.id);
    for id in started {
        assert_eq!(within(end(&client, id)).await.exit_code, Some(4));
    }
    // It says goodbye only when every end is acknowledged.
    worker.signal(Signal::TERM);
    assert_eq!(worker.code().await, Some(0));
    worker_is(&client, "w1", WorkerState::Left).await;
}

#[tokio::test]
async fn no_step_of_a_clock_ends_a_job_or_makes_a_worker_unreachable() {
    let (place, dir) = (Place::new(), Folder::new());
    let Some(library) = wrong_clock(dir.path()) else {
        return;
    };
    let clock_of = |mut command: Command, name: &str| {
        let wrong = dir.path().join(name);
        command.env("LD_PRELOAD", &library).env("WRONG", &wrong);
        (command, wrong)
    };
    let scheduler_command = || Process::scheduler_command(place, dir.path());
    let (command, of_scheduler) = clock_of(scheduler_command(), "scheduler-is-wrong-by");
    let mut scheduler = Process::run(command);
    let worker = || Process::worker_command(place, 1, &dir.path().join("w1"));
    let (command, of_worker) = clock_of(worker(), "worker-is-wrong-by");
    let mut running = Process::run(command);
    let client = connected(place).await;
    let job = within(client.start(&sh("sleep 600"))).await.unwrap().job_id;
    let hour = 3_600_000;
    let patient = StartRequest {
        labels: vec!["gpu".to_owned()],
        deadline_ms: Some(hour),
        ..sh("true")
    };
    let delayed = StartRequest {
        delay_ms: Some(hour),
        ..sh("true")
    };
    let mut waiting = Vec::new();
    for request in [&patient, &delayed] {
        waiting.push(within(client.start(request)).await.unwrap().job_id);
    }
    let step = |wrong: &Path, days: i64| {
        // At once, or it would be read in part.
        let next = wrong.with_extension("next");
        fs::write(&next, (days * 86_400).to_string()).unwrap();
        fs::rename(next, wrong).unwrap();
    };
    for (wrong, days) in [
        (&of_scheduler, 40),
        (&of_scheduler, -40),
        (&of_scheduler, 0),
        (&of_worker, 40),
        (&of_worker, -40),
    ] {
        // When this is due, whatever is due by a wrong clock would be acted upon as well.
        let due = StartRequest {
            deadline_ms: Some(1000),
            ..patient.clone()
        };
        let due = within(client.start(&due)).await.unwrap().job_id;
        step(wrong, days);
        if wrong == &of_worker {
            // It has to connect again.
            scheduler.kill();
            scheduler = Process::run(clock_of(scheduler_command(), "scheduler-is-wrong-by").0);
            back(&client).await;
        } else {
            // One whose clock is right, so that only the scheduler is wrong.
            running.kill();
            let (command, _) = clock_of(worker(), "worker-is-wrong-by");
            running = Process::run(command);
            job_is(&client, job, JobState::Running).await;
            worker_is(&client, "w1", WorkerState::Ready).await;
        }
        assert_eq!(within(end_of(&client, due)).await.state, JobState::TimedOut);
        for id in &waiting {
            let job = job_of(&client, *id).await;
            assert_eq!(job.state, JobState::Pending, "{days}: {job:?}");
        }
        let next = within(client.start(&sh("exit 3"))).await.unwrap().job_id;
        assert_eq!(within(end_of(&client, next)).await.exit_code, Some(3));
    }
    job_is(&client, job, JobState::Running).await;
}

/// Starts until there is no room.
async fn refused_for_want_of_room(client: &Client) {
    let mut large = sh("exit 4");
    large.args.push("x".repeat(20_000));
    for _ in 0..1000 {
        match within(client.start(&large)).await {
            Ok(_) => {}
            Err(Error::Refused { status: 507, .. }) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it never gets full");
}

#[tokio::test]
async fn a_scheduler_starts_on_a_full_disk() {
    let (place, dir) = (Place::new(), Folder::new());
    let data = dir.path().join("scheduler");
    let command = Process::scheduler_command(place, dir.path());
    let mut scheduler = Process::on_small_disk(&command, &data, "2m");
    let _worker = Process::worker(place, 1, &dir.path().join("w1"));
    let client = connected(place).await;
    let mut sleep = Command::new("sleep");
    // Without it the disk goes with the scheduler.
    let disk = Process::run(inside(scheduler.id(), sleep.arg("3600")));
    let again = || {
        let mut again = inside(disk.id(), &command);
        again.stdout(Stdio::null());
        Process::run(again)
    };
    let mut jobs = Vec::new();
    for _ in 0..2 {
        jobs.push(within(client.start(&sh("sleep 600"))).await.unwrap().job_id);
    }
    let later = sh("exit 4");
    let seen = |name: &str| {
        let seen = Path::new("/proc").join(disk.id().to_string());
        seen.join("root")
            .join(data.strip_prefix("/").unwrap())
            .join(name)
    };
    let log = seen("store.sqlite-wal");
    let index = seen("store.sqlite-shm");
    let reserve = seen("reserve");
    let filler = seen("filler");
    // Nothing in the log can make room; and what it has in reserve is gone, or the index
    // of the log, as after another program has looked into the store.
    for (round, (signal, removed)) in [(Signal::KILL, &reserve), (Signal::TERM, &index)]
        .into_iter()
        .enumerate()
    {
        let is_empty = || fs::metadata(&log).is_ok_and(|log| log.len() == 0);
        eventually(|| is_empty() && reserve.exists()).await;
        scheduler.signal(signal);
        within(scheduler.code()).await;
        if removed.exists() {
            fs::remove_file(removed).unwrap();
        }
        // Never has room for it all.
        let mut zeros = fs::File::open("/dev/zero").unwrap();
        let filled = std::io::copy(&mut zeros, &mut fs::File::create(&filler).unwrap());
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        scheduler = again();
        connected(place).await;
        let id = jobs[round];
        job_is(&client, id, JobState::Running).await;
        refused_for_want_of_room(&client).await;
        let stop = StopRequest {
            job_id: id.to_string(),
            ..Default::default()
        };
        within(client.stop(&stop)).await.unwrap();
        let job = within(end_of(&client, id)).await;
        assert_eq!(job.state, JobState::Stopped, "{job:?}");
        assert!(processes_of(id).is_empty());
        refused_for_want_of_room(&client).await;
        fs::remove_file(&filler).unwrap();
        let id = start(&client, &later, &format!("after-{round}")).await.id;
        assert_eq!(within(end(&client, id)).await.exit_code, Some(4));
    }
    // What was done without room is recorded now.
    scheduler.kill();
    let _scheduler = again();
    connected(place).await;
    for id in jobs {
        assert_eq!(within(end(&client, id)).await.state, JobState::Stopped);
    }
}

#[tokio::test]
#[ignore = "starts 10,500 jobs: cargo test --release -- --ignored --nocapture a_long_history"]
async fn a_long_history_does_not_hold_up_a_restart() {
    let (mut victims, client) = Victims::start().await;
    let mut lanes = JoinSet::new();
    for lane in 0..16 {
        let client = victims.place.client();
        lanes.spawn(async move {
            for number in (lane..10_500).step_by(16) {
                let request = sh(if number % 21 == 0 {
                    "sleep 600"
                } else {
                    "exit 0"
                });
                start(&client, &request, &format!("history-{number}")).await;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    let count = async |state: &str| {
        let mut query = jobctl::api::JobsQuery {
            state: Some(state.to_owned()),
            limit: Some(1000),
            ..Default::default()
        };
        let mut count = 0;
        loop {
            let page = client.jobs(&query).await.unwrap();
            count += page.jobs.len();
            match page.next {
                Some(next) => query.after = Some(next),
                None => return count,
            }
        }
    };
    within(async {
        while count("succeeded").await < 10_000 {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    victims.kill_scheduler();
    let killed = std::time::Instant::now();
    victims.restart_scheduler();
    within(async {
        while client.version().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    println!("it answers {:?} after the restart", killed.elapsed());
    within(async {
        while count("running").await < 500 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    println!("and knows its jobs {:?} after it", killed.elapsed());
    assert_eq!(count("succeeded").await, 10_000);
    assert_eq!(count("unknown,lost,failed").await, 0);
}

#[tokio::test]
async fn a_start_in_the_moment_of_a_shutdown_has_a_truthful_end() {
    let (mut victims, client) = Victims::start().await;
    let marks = victims.dir.path().join("marks");
    fs::create_dir(&marks).unwrap();
    let mut chance = Chance(3);
    for number in 0..8 {
        let (other, request) = (victims.place.client(), marked(&marks, number, 5, 3));
        let key = format!("shutdown-{number}");
        let starting = tokio::spawn(async move { start(&other, &request, &key).await });
        sleep(Duration::from_millis(chance.below(15))).await;
        let worker = victims.worker.take().unwrap();
        worker.signal(Signal::TERM);
        // One that was restarted a moment ago may not listen for signals yet.
        let code = worker.code().await;
        assert!(matches!(code, Some(0) | None), "{code:?}");
        victims.restart_worker();
        let Started { id, promise } = within(starting).await.unwrap();
        let job = within(end(&client, id)).await;
        let mark = fs::read_to_string(marks.join(number.to_string())).unwrap_or_default();
        let began_once = mark == format!("{id}\n") && job.exit_code == Some(3);
        let never_began = mark.is_empty() && job.exit_code.is_none() && job.state.is_final();
        let truthful = match promise {
            Promise::Began | Promise::Waits => began_once,
            Promise::NeverBegins => never_began,
        };
        assert!(truthful, "{promise:?}, mark {mark:?}: {job:?}");
    }
}

#[tokio::test]
async fn a_shim_that_does_not_answer_keeps_nobody_waiting() {
    let (mut victims, client) = Victims::start().await;
    let frozen = client.start(&sh("sleep 600")).await.unwrap().job_id;
    let other = client.start(&sh("sleep 600")).await.unwrap().job_id;
    let shims = victims.dir.shims();
    let (shim, _) = shims.iter().find(|(_, job)| *job == frozen).unwrap();
    let shim = rustix::process::Pid::from_raw(*shim).unwrap();
    rustix::process::kill_process(shim, Signal::STOP).unwrap();
    victims.kill_worker();
    victims.restart_worker();
    job_is(&client, other, JobState::Running).await;
    rustix::process::kill_process(shim, Signal::CONT).unwrap();
    job_is(&client, frozen, JobState::Running).await;
    for id in [frozen, other] {
        let request = StopRequest {
            job_id: id.to_string(),
            ..Default::default()
        };
        // Where the worker is not back yet, it is delivered when it is.
        let _ = within(client.stop(&request)).await;
        assert_eq!(within(end(&client, id)).await.state, JobState::Stopped);
        assert!(processes_of(id).is_empty());
    }
}
