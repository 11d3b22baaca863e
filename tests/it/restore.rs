//! Time that goes back: a store or a worker's data folder that is put back from a
//! copy, cloned, or removed, while the others remember. With real processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use jobctl::{
    api::{
        DrainWorkerRequest, Job, JobState, QueryAnswer, QueryRequest, ResumeWorkerRequest,
        StartRequest, StopRequest, WorkerState,
    },
    client::Client,
    ids::JobId,
};
use rusqlite::Connection;

use crate::{
    cluster::{Place, Process, connected, end_of, job, job_is, sh, worker_is},
    support::{Folder, eventually, processes_of, within},
};

/// A scheduler and workers that are killed, and whose folders are copied.
struct Cluster {
    place: Place,
    dir: Folder,
    scheduler: Option<Process>,
    workers: Vec<Option<Process>>,
    client: Client,
}

impl Cluster {
    async fn start(workers: usize) -> Self {
        let place = Place::new();
        let mut cluster = Self {
            place,
            dir: Folder::new(),
            scheduler: None,
            workers: Vec::new(),
            client: place.client(),
        };
        cluster.start_scheduler();
        for number in 1..=workers {
            cluster.workers.push(None);
            cluster.start_worker(number);
        }
        connected(place).await;
        for number in 1..=workers {
            cluster.is(number, WorkerState::Ready).await;
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_scheduler(&mut self) {
        self.scheduler = Some(Process::impatient_scheduler(self.place, self.dir.path()));
    }

    fn start_worker(&mut self, number: usize) {
        let data = self.path(&format!("w{number}"));
        self.workers[number - 1] = Some(Process::worker(self.place, number, &data));
    }

    fn kill_scheduler(&mut self) {
        self.scheduler.take().unwrap().kill();
    }

    fn kill_worker(&mut self, number: usize) {
        self.workers[number - 1].take().unwrap().kill();
    }

    async fn is(&self, number: usize, state: WorkerState) {
        worker_is(&self.client, &format!("w{number}"), state).await;
    }

    /// Has the scheduler go on with records that were copied before.
    async fn restore(&mut self, copy: &str) {
        self.kill_scheduler();
        self.put_back(copy, "scheduler");
        // As where the disk was lost: the workers alone know which epochs there were.
        let epoch = self.path("scheduler").join("epoch");
        if epoch.exists() {
            fs::remove_file(epoch).unwrap();
        }
        self.start_scheduler();
        within(async {
            let mut pause = tokio::time::interval(Duration::from_millis(10));
            while self.client.workers().await.is_err() {
                pause.tick().await;
            }
        })
        .await;
    }

    /// A copy of the records as they are now, made by SQLite itself.
    fn back_up(&self, copy: &str) {
        let copy = self.path(copy);
        fs::create_dir_all(&copy).unwrap();
        let from = Connection::open(self.path("scheduler").join("store.sqlite")).unwrap();
        let to = copy.join("store.sqlite");
        from.execute("VACUUM INTO ?", [to.to_str().unwrap()])
            .unwrap();
    }

    /// A copy of a folder as it is now.
    fn copy(&self, from: &str, to: &str) {
        run(Command::new("cp")
            .arg("-a")
            .arg(self.path(from))
            .arg(self.path(to)));
    }

    /// The records of `copy` take the place of the scheduler's.
    fn put_back(&self, copy: &str, data: &str) {
        for ending in ["", "-wal", "-shm"] {
            let file = self.path(data).join(format!("store.sqlite{ending}"));
            if file.exists() {
                fs::remove_file(file).unwrap();
            }
        }
        let file = self.path(copy).join("store.sqlite");
        fs::copy(file, self.path(data).join("store.sqlite")).unwrap();
    }

    /// How many transactions a copy of the records has.
    fn commits(&self, copy: &str) -> u64 {
        let store = Connection::open(self.path(copy).join("store.sqlite")).unwrap();
        let query = "SELECT value FROM meta WHERE key = 'commits'";
        let commits: i64 = store.query_row(query, (), |row| row.get(0)).unwrap();
        commits.unsigned_abs()
    }

    /// The last commit that a worker without jobs has in its journal.
    fn heard_commit(&self, worker: usize) -> u64 {
        let journal = self.path(&format!("w{worker}")).join("journal");
        let text = fs::read(journal).unwrap();
        let text = String::from_utf8_lossy(&text);
        let last = text.rsplit("{\"commit\":").next().unwrap();
        last.split('}').next().unwrap().parse().unwrap_or(0)
    }

    fn marks(&self) -> PathBuf {
        let marks = self.path("marks");
        fs::create_dir_all(&marks).unwrap();
        marks
    }

    async fn start_job(&self, request: &StartRequest) -> JobId {
        within(self.client.start(request)).await.unwrap().job_id
    }

    async fn notice(&self) -> Option<String> {
        within(self.client.workers()).await.unwrap().notice
    }

    async fn stop(&self, job: JobId) {
        let stop = StopRequest {
            job_id: job.to_string(),
            ..Default::default()
        };
        within(self.client.stop(&stop)).await.unwrap();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// A job that leaves a line in a file for each of its starts.
fn marked(marks: &Path, name: &str) -> StartRequest {
    let file = marks.join(name);
    sh(&format!("echo x >> {}; exit 7", file.display()))
}

fn starts(marks: &Path, name: &str) -> usize {
    fs::read_to_string(marks.join(name)).map_or(0, |text| text.lines().count())
}

/// Waits for something that has to be asked for.
async fn eventually_async(mut condition: impl AsyncFnMut() -> bool) {
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        while !condition().await {
            pause.tick().await;
        }
    })
    .await;
}

/// Waits until its worker has in its journal that the end is on record.
async fn delivered(cluster: &Cluster, worker: usize, job: JobId) {
    let journal = cluster.path(&format!("w{worker}")).join("journal");
    // The second is of earlier versions.
    let words = ["{\"delivered\":{\"jobs\":[", "{\"acknowledged\":["];
    eventually(|| {
        let text = fs::read(&journal).unwrap();
        let text = String::from_utf8_lossy(&text);
        let mut lists = words.iter().flat_map(|word| text.split(word).skip(1));
        lists.any(|list| list.split(']').next().unwrap().contains(&job.to_string()))
    })
    .await;
}

async fn drained(cluster: &Cluster, worker: &str) {
    let drain = DrainWorkerRequest {
        worker_id: worker.to_owned(),
        deadline_ms: None,
    };
    within(cluster.client.drain_worker(&drain)).await.unwrap();
}

async fn resumed(cluster: &Cluster, worker: &str) {
    let worker_id = worker.to_owned();
    let resume = ResumeWorkerRequest { worker_id };
    within(cluster.client.resume_worker(&resume)).await.unwrap();
}

async fn by_name(cluster: &Cluster, named: &str) -> Job {
    let request = QueryRequest {
        job_id: named.to_owned(),
        ..Default::default()
    };
    match within(cluster.client.query(&request)).await.unwrap() {
        QueryAnswer::Job(answer) => answer.job,
        QueryAnswer::Group(answer) => panic!("{answer:?}"),
    }
}

#[tokio::test]
async fn nothing_starts_twice_after_the_store_was_put_back() {
    let mut cluster = Cluster::start(2).await;
    let marks = cluster.marks();
    // All wait when the copy is made, and run on the first worker after that.
    drained(&cluster, "w1").await;
    drained(&cluster, "w2").await;
    let alone = cluster.start_job(&marked(&marks, "alone")).await;
    let group = StartRequest {
        count: Some(8),
        ..marked(&marks, "group")
    };
    let group = within(cluster.client.start_group(&group, "k"))
        .await
        .unwrap();
    let lives = sh(&format!(
        "echo x >> {}; sleep 600",
        marks.join("lives").display()
    ));
    let lives = cluster.start_job(&lives).await;
    let mut ids = vec![alone];
    for index in 0..8 {
        ids.push(
            by_name(&cluster, &format!("{}/{index}", group.group_id))
                .await
                .id,
        );
    }
    cluster.back_up("copy");
    resumed(&cluster, "w1").await;
    for id in &ids {
        let end = end_of(&cluster.client, *id).await;
        assert_eq!((end.state, end.exit_code), (JobState::Failed, Some(7)));
        delivered(&cluster, 1, *id).await;
    }
    job_is(&cluster.client, lives, JobState::Running).await;
    eventually(|| starts(&marks, "lives") == 1).await;
    // The other worker has heard since that there is more than in the copy.
    let copied = cluster.commits("copy");
    eventually(|| cluster.heard_commit(2) > copied).await;
    // What the worker knows of them is on its disk alone.
    cluster.kill_worker(1);
    cluster.restore("copy").await;
    cluster.is(2, WorkerState::Draining).await;
    resumed(&cluster, "w2").await;
    cluster.is(2, WorkerState::Ready).await;
    eventually_async(async || {
        let waiting = job(&cluster.client, alone).await;
        assert_eq!(waiting.state, JobState::Pending, "{waiting:?}");
        let reason = waiting.reason.unwrap();
        reason.contains("older") && reason.ends_with(": w1")
    })
    .await;
    // New jobs are not held up.
    let new = cluster.start_job(&marked(&marks, "new")).await;
    assert_eq!(end_of(&cluster.client, new).await.exit_code, Some(7));
    cluster.start_worker(1);
    for id in &ids {
        let end = end_of(&cluster.client, *id).await;
        let told = (end.state, end.exit_code, end.worker.as_deref());
        assert_eq!(told, (JobState::Failed, Some(7), Some("w1")), "{end:?}");
    }
    let still = job_is(&cluster.client, lives, JobState::Running).await;
    assert_eq!(still.worker.as_deref(), Some("w1"));
    cluster.stop(lives).await;
    assert_eq!(
        end_of(&cluster.client, lives).await.state,
        JobState::Stopped
    );
    let counts = ["alone", "group", "lives"].map(|name| starts(&marks, name));
    assert_eq!(counts, [1, 8, 1]);
    let notice = cluster.notice().await.unwrap();
    assert!(notice.contains("older than what worker"), "{notice}");
}

#[tokio::test]
async fn a_scheduler_of_a_lower_epoch_rises_above_what_its_workers_know() {
    let mut cluster = Cluster::start(1).await;
    let job = cluster.start_job(&sh("sleep 600")).await;
    cluster.back_up("copy");
    // As after many starts, or with a clock that was ahead.
    cluster.kill_scheduler();
    let store = Connection::open(cluster.path("scheduler").join("store.sqlite")).unwrap();
    let raise = "UPDATE meta SET value = value + 1000000 WHERE key = 'epoch'";
    store.execute(raise, ()).unwrap();
    drop(store);
    cluster.start_scheduler();
    connected(cluster.place).await;
    job_is(&cluster.client, job, JobState::Running).await;
    cluster.restore("copy").await;
    cluster.is(1, WorkerState::Ready).await;
    job_is(&cluster.client, job, JobState::Running).await;
    let notice = cluster.notice().await.unwrap();
    assert!(notice.contains("put back from a copy"), "{notice}");
    cluster.stop(job).await;
    assert_eq!(end_of(&cluster.client, job).await.state, JobState::Stopped);
    // And does so for good.
    cluster.kill_scheduler();
    cluster.start_scheduler();
    connected(cluster.place).await;
    let again = cluster.start_job(&sh("exit 3")).await;
    assert_eq!(end_of(&cluster.client, again).await.exit_code, Some(3));
}

#[tokio::test]
async fn a_job_that_a_restored_folder_does_not_know_is_taken_over() {
    let mut cluster = Cluster::start(1).await;
    let before = cluster.start_job(&sh("exit 3")).await;
    end_of(&cluster.client, before).await;
    cluster.copy("w1", "copy");
    let job = cluster.start_job(&sh("echo it lives; sleep 600")).await;
    job_is(&cluster.client, job, JobState::Running).await;
    cluster.kill_worker(1);
    fs::rename(cluster.path("w1"), cluster.path("gone")).unwrap();
    cluster.copy("copy", "w1");
    cluster.is(1, WorkerState::Unreachable).await;
    cluster.start_worker(1);
    cluster.is(1, WorkerState::Ready).await;
    job_is(&cluster.client, job, JobState::Running).await;
    cluster.stop(job).await;
    assert_eq!(end_of(&cluster.client, job).await.state, JobState::Stopped);
    eventually(|| processes_of(job).is_empty()).await;
}

#[tokio::test]
async fn a_job_whose_workers_folder_was_removed_is_ended() {
    let mut cluster = Cluster::start(1).await;
    let job = cluster.start_job(&sh("sleep 600")).await;
    job_is(&cluster.client, job, JobState::Running).await;
    eventually(|| !processes_of(job).is_empty()).await;
    cluster.kill_worker(1);
    fs::remove_dir_all(cluster.path("w1")).unwrap();
    // Another identity: the one before went with the folder.
    cluster.start_worker(1);
    eventually(|| processes_of(job).is_empty() && cluster.dir.shims().is_empty()).await;
}

#[tokio::test]
async fn a_clone_of_a_worker_takes_nothing_from_the_one_that_runs() {
    let mut cluster = Cluster::start(1).await;
    let job = cluster.start_job(&sh("sleep 600")).await;
    job_is(&cluster.client, job, JobState::Running).await;
    eventually(|| !processes_of(job).is_empty()).await;
    cluster.copy("w1", "w2");
    let mut clone = Process::worker_command(cluster.place, 2, &cluster.path("w2"));
    clone.stdin(Stdio::null()).stderr(Stdio::piped());
    let clone = Process::from(clone.spawn().unwrap());
    let (code, said) = clone.end_of().await;
    assert_ne!(code, Some(0));
    assert!(said.contains("runs already on this machine"), "{said}");
    assert!(said.contains("`--join TOKEN`"), "{said}");
    job_is(&cluster.client, job, JobState::Running).await;
    // With the first one gone the clone is that worker.
    cluster.kill_worker(1);
    cluster.is(1, WorkerState::Unreachable).await;
    fs::remove_dir_all(cluster.path("w1")).unwrap();
    fs::rename(cluster.path("w2"), cluster.path("w1")).unwrap();
    cluster.start_worker(1);
    cluster.is(1, WorkerState::Ready).await;
    job_is(&cluster.client, job, JobState::Running).await;
    cluster.stop(job).await;
    assert_eq!(end_of(&cluster.client, job).await.state, JobState::Stopped);
}
