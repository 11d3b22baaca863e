//! What a worker does when there is no room in its data folder, or when the folder
//! is taken away: real processes, and file systems that are really full.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use jobctl::{
    api::{JobState, StopRequest},
    client::Client,
    identity::Role,
    ids::JobId,
    proto::{self, worker_client::WorkerClient},
};

use crate::{
    attacker::{self, Shown},
    cluster::{Place, Process, connected, end_of, inside, job_is, sh},
    support::{Folder, binary, eventually, gone, processes_of, within},
    takeover::{self, BY_PROCESS, Succession, first_words, query},
    worker,
};

/// A scheduler, and a worker whose disk has not a byte and not an inode left.
struct Crammed {
    place: Place,
    dir: Folder,
    client: Client,
    _scheduler: Process,
    /// Has written until the disk was full.
    large: JobId,
    /// Has written nothing.
    silent: JobId,
}

impl Crammed {
    /// The worker has been killed, and its jobs go on.
    async fn new() -> Self {
        let (place, dir) = (Place::new(), Folder::new());
        let scheduler = Process::scheduler(place, dir.path());
        let data = dir.path().join("w1");
        let command = Self::worker(place, &data);
        let worker = Process::on_small_disk(&command, &data, "2m,nr_inodes=100");
        let client = connected(place).await;
        let start = async |script: &str| within(client.start(&sh(script))).await.unwrap().job_id;
        let silent = start("sleep 600").await;
        let large = start("head -c 5000000 /dev/zero; sleep 600").await;
        let crammed = Self {
            place,
            dir,
            client,
            _scheduler: scheduler,
            large,
            silent,
        };
        crammed.refuses_starts().await;
        worker.kill();
        let script = "rm lock; cat /dev/zero > filler; i=0; while touch empty-$i; do i=$((i+1)); done; \
            df --output=avail,iavail .";
        let mut fill = Command::new("sh");
        fill.arg("-c")
            .arg(format!("cd {} && {script}", data.display()));
        let filled = inside(crammed.shim(), &fill)
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let left = String::from_utf8(filled.stdout).unwrap();
        let left: Vec<_> = left.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(left, ["0", "0"]);
        crammed
    }

    fn worker(place: Place, data: &Path) -> Command {
        let mut command = Process::worker_command(place, 1, data);
        command.args(["--control-groups", "false", "--min-free-disk", "0"]);
        command
    }

    /// Starts jobs until the disk has no room for what is to be known of another one.
    /// They are asked of the worker itself: the scheduler would have them wait.
    async fn refuses_starts(&self) {
        let scheduler = Shown::new(Role::Scheduler, "scheduler");
        let channel = attacker::channel(&self.place.worker(1), Some(scheduler));
        let mut worker = WorkerClient::new(channel);
        for size in [50_000, 2_000, 300, 0] {
            let mut request = worker::sh("true");
            request.args.push("x".repeat(size));
            let mut refused = false;
            for _ in 0..100 {
                match within(worker.start_job(request.clone())).await {
                    Ok(_) => {}
                    Err(error) if worker::code(&error) == "worker_short" => {
                        refused = true;
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(refused, "it never gets full");
        }
    }

    /// One of those that go on without the worker.
    fn shim(&self) -> u32 {
        self.dir.shims()[0].0 as u32
    }

    fn restart(&self) -> Process {
        let command = Self::worker(self.place, &self.dir.path().join("w1"));
        Process::run(inside(self.shim(), &command))
    }

    fn make_room(&self, worker: &Process) {
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,size=64m,nr_inodes=10000"]);
        remount.arg(self.dir.path().join("w1"));
        let mut remount = inside(worker.id(), &remount);
        assert!(remount.status().unwrap().success());
    }

    async fn stop(&self, id: JobId) {
        let request = StopRequest {
            job_id: id.to_string(),
            ..Default::default()
        };
        within(self.client.stop(&request)).await.unwrap();
        let job = within(end_of(&self.client, id)).await;
        assert_eq!(job.state, JobState::Stopped, "{job:?}");
        assert!(processes_of(id).is_empty());
    }
}

#[tokio::test]
async fn a_worker_on_a_full_disk_starts_and_stops_its_jobs() {
    let crammed = Crammed::new().await;
    let worker = crammed.restart();
    connected(crammed.place).await;
    for id in [crammed.large, crammed.silent] {
        job_is(&crammed.client, id, JobState::Running).await;
        crammed.stop(id).await;
    }
    crammed.refuses_starts().await;
    // What could not be recorded is kept by the shims, and is recorded as soon as
    // there is room.
    crammed.make_room(&worker);
    let next = within(crammed.client.start(&sh("exit 3")))
        .await
        .unwrap()
        .job_id;
    assert_eq!(
        within(end_of(&crammed.client, next)).await.exit_code,
        Some(3)
    );
    eventually(|| crammed.dir.shims().is_empty()).await;
}

#[tokio::test]
async fn the_jobs_of_a_worker_on_a_full_disk_are_killed() {
    let crammed = Crammed::new().await;
    let data = crammed.dir.path().join("w1");
    let mut command = Command::new(binary());
    command.args(["worker", "kill-all", "--grace", "300ms", "--data-dir"]);
    command.arg(&data);
    let killed = inside(crammed.shim(), &command).output().unwrap();
    let said = String::from_utf8_lossy(&killed.stderr);
    assert!(killed.status.success(), "{said}");
    // With them perhaps one of those that filled the disk.
    assert!(said.contains("jobs are ended"), "{said}");
    for id in [crammed.large, crammed.silent] {
        assert!(processes_of(id).is_empty());
    }
    let worker = crammed.restart();
    connected(crammed.place).await;
    for id in [crammed.large, crammed.silent] {
        let job = within(end_of(&crammed.client, id)).await;
        assert_eq!(job.state, JobState::Stopped, "{job:?}");
    }
    crammed.make_room(&worker);
    eventually(|| crammed.dir.shims().is_empty()).await;
}

#[tokio::test]
async fn kill_all_changes_nothing_in_a_data_folder() {
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let id = takeover::sh(&client, "exec sleep 600").await;
    worker.kill();
    let journal = workers.data().join("journal");
    let before = fs::read(&journal).unwrap();
    let mut command = Command::new(binary());
    command.args(["worker", "kill-all", "--grace", "300ms", "--data-dir"]);
    let killed = command.arg(workers.data()).output().unwrap();
    assert!(killed.status.success());
    assert!(processes_of(id).is_empty());
    assert_eq!(fs::read(&journal).unwrap(), before);
}

#[tokio::test]
async fn folders_that_are_removed_are_made_again() {
    let workers = Succession::new();
    let (_worker, client) = workers.next(BY_PROCESS).await;
    let id = takeover::sh(&client, "echo before; exec sleep 600").await;
    assert_eq!(first_words(&client, id).await, "before\n");
    for name in ["output", "results", "scripts"] {
        let folder = workers.data().join(name);
        fs::remove_dir_all(&folder).unwrap();
        eventually(|| folder.is_dir()).await;
    }
    let next = takeover::sh(&client, "echo after").await;
    assert_eq!(first_words(&client, next).await, "after\n");
}

#[tokio::test]
async fn a_journal_that_is_removed_is_written_again() {
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let id = takeover::sh(&client, "exec sleep 600").await;
    let ended = takeover::sh(&client, "exit 3").await;
    takeover::end_of(&client, ended).await;
    eventually(|| workers.dir.shims().iter().all(|(_, job)| *job != ended)).await;
    let journal = workers.data().join("journal");
    fs::remove_file(&journal).unwrap();
    eventually(|| journal.exists()).await;
    worker.kill();
    let (_worker, client) = workers.next(BY_PROCESS).await;
    assert_eq!(query(&client, id).await.state(), proto::JobState::Running);
    assert_eq!(query(&client, ended).await.exit_code, Some(3));
}

/// A worker ends, and says why, when this is done to its data folder.
async fn ends_when(change: impl Fn(&Path)) {
    let workers = Succession::new();
    let mut command = workers.command(BY_PROCESS);
    let worker = Process::from(command.stderr(Stdio::piped()).spawn().unwrap());
    let client = workers.client().await;
    let id = takeover::sh(&client, "exec sleep 600").await;
    let pid = query(&client, id).await.pid.unwrap();
    change(&workers.data());
    let (code, said) = worker.end_of().await;
    assert_eq!(code, Some(1), "{said}");
    let folder = format!("data folder {} was removed", workers.data().display());
    assert!(said.contains(&folder), "{said}");
    assert!(!gone(&pid.to_string()), "its jobs go on");
}

#[tokio::test]
async fn a_worker_whose_data_folder_is_moved_away_ends() {
    ends_when(|data| fs::rename(data, data.with_extension("elsewhere")).unwrap()).await;
}

#[tokio::test]
async fn a_worker_whose_data_folder_is_removed_ends() {
    // The folder itself may stay: the worker writes its journal again until the last.
    ends_when(|data| {
        let _ = fs::remove_dir_all(data);
    })
    .await;
}

#[tokio::test]
async fn a_worker_whose_data_folder_is_replaced_by_a_copy_ends() {
    ends_when(|data| {
        let aside = data.with_extension("aside");
        let copied = Command::new("cp").arg("-a").args([data, &aside]).status();
        assert!(copied.unwrap().success());
        fs::rename(data, data.with_extension("before")).unwrap();
        fs::rename(&aside, data).unwrap();
    })
    .await;
}

#[tokio::test]
async fn nothing_is_promised_when_the_folder_around_the_data_is_moved_away() {
    let workers = Succession::new();
    let outer = workers.dir.path().join("outer");
    let mut command = Process::worker_command(workers.place, 1, &outer.join("w1"));
    command.arg("--insecure").args(BY_PROCESS);
    let worker = Process::from(command.stderr(Stdio::piped()).spawn().unwrap());
    let client = workers.client().await;
    let before = takeover::sh(&client, "true").await;
    takeover::end_of(&client, before).await;
    // Of this the data folder itself has no event.
    fs::rename(&outer, workers.dir.path().join("elsewhere")).unwrap();
    let request = proto::StartJobRequest {
        command: "true".into(),
        ..Default::default()
    };
    let mut asked = client.clone();
    let error = within(asked.start_job(request)).await.unwrap_err();
    assert!(!error.message().is_empty());
    let (code, said) = worker.end_of().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("was removed or replaced"), "{said}");
}
