//! What becomes of a job's output on the worker's disk, and how what is missing is
//! said: with real processes.

use std::{fs, io::Write as _, path::Path};

use jobctl::{
    api::{GapCause, JobState, LogsQuery},
    client::{Client, logs::Event},
    ids::JobId,
};

use crate::{
    cluster::{Place, Process, connected, end_of, everything, job as job_of, sh},
    support::{Folder, LIMIT, eventually, within},
    typed::Jobctl,
};

/// A scheduler and a worker as processes, and who asks them.
struct Pair {
    place: Place,
    dir: Folder,
    _scheduler: Process,
    worker: Option<Process>,
    client: Client,
}

impl Pair {
    async fn start() -> Self {
        let (place, dir) = (Place::new(), Folder::new());
        let scheduler = Process::scheduler(place, dir.path());
        let worker = Process::worker(place, 1, &dir.path().join("w1"));
        Self {
            place,
            _scheduler: scheduler,
            worker: Some(worker),
            client: connected(place).await,
            dir,
        }
    }

    /// The file of a job's output with this ending.
    fn file(&self, id: JobId, ending: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("w1/output/{id}.{ending}"))
    }

    fn kill_worker(&mut self) {
        self.worker.take().unwrap().kill();
    }

    async fn restart_worker(&mut self) {
        let data = self.dir.path().join("w1");
        self.worker = Some(Process::worker(self.place, 1, &data));
        self.client.ready(1, LIMIT).await.unwrap();
    }

    /// Returns once the worker needs to know of a job no more.
    async fn is_acknowledged(&self) {
        let journal = self.dir.path().join("w1/journal");
        let word = b"delivered";
        let has = |bytes: Vec<u8>| bytes.windows(word.len()).any(|at| at == word);
        eventually(|| fs::read(&journal).is_ok_and(has)).await;
    }

    async fn start_job(&self, script: &str) -> JobId {
        self.client.start(&sh(script)).await.unwrap().job_id
    }
}

/// The output and the gaps of a job.
async fn read(client: &Client, query: LogsQuery) -> (Vec<u8>, Vec<(u64, Option<GapCause>)>) {
    let mut logs = within(client.logs(query)).await.unwrap();
    let (mut bytes, mut gaps) = (Vec::new(), Vec::new());
    loop {
        match within(logs.next()).await.unwrap() {
            Event::Output(message) => bytes.extend_from_slice(&message.output),
            Event::Gap { bytes, cause } => gaps.push((bytes, cause)),
            Event::End(_) => return (bytes, gaps),
            Event::Away(_) => {}
        }
    }
}

/// Lets a job go on that reads from this.
async fn go_on(fifo: &Path) -> fs::File {
    eventually(|| fifo.exists()).await;
    let mut held = fs::File::options()
        .read(true)
        .write(true)
        .open(fifo)
        .unwrap();
    held.write_all(b"\n").unwrap();
    held
}

#[tokio::test]
async fn a_lost_tail_has_its_size_after_a_restart_of_the_worker() {
    let mut pair = Pair::start().await;
    let id = pair.start_job("echo one; echo two; echo three").await;
    assert_eq!(within(end_of(&pair.client, id)).await.output_bytes, 14);
    pair.is_acknowledged().await;
    pair.kill_worker();
    let data = fs::File::options()
        .write(true)
        .open(pair.file(id, "out"))
        .unwrap();
    data.set_len(5).unwrap();
    pair.restart_worker().await;
    let (bytes, gaps) = read(&pair.client, everything(id)).await;
    assert!(b"one\n".starts_with(&bytes), "{bytes:?}");
    let missing: u64 = gaps.iter().map(|(bytes, _)| bytes).sum();
    assert_eq!(bytes.len() as u64 + missing, 14);
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    // Who has read beyond what is left is at no wrong place.
    for offset in [9, 14] {
        let query = LogsQuery {
            offset: Some(offset),
            ..everything(id)
        };
        let (bytes, gaps) = read(&pair.client, query).await;
        let missing: u64 = gaps.iter().map(|(bytes, _)| bytes).sum();
        assert_eq!((bytes.len(), missing), (0, 14 - offset));
    }
    // Nothing is left.
    pair.kill_worker();
    fs::remove_file(pair.file(id, "out")).unwrap();
    fs::remove_file(pair.file(id, "idx")).unwrap();
    pair.restart_worker().await;
    let (bytes, gaps) = read(&pair.client, everything(id)).await;
    assert_eq!(
        (bytes.len(), gaps),
        (0, vec![(14, Some(GapCause::Removed))])
    );
}

#[tokio::test]
async fn without_follow_a_busy_job_is_read_to_where_it_was() {
    let pair = Pair::start().await;
    let id = pair
        .start_job("i=0; while :; do i=$((i+1)); echo $i; done")
        .await;
    eventually(|| fs::metadata(pair.file(id, "out")).is_ok_and(|data| data.len() > 10_000)).await;
    let jobctl = Jobctl::at(pair.place.server());
    for lines in [1, 2, 100] {
        let count = lines.to_string();
        let read = jobctl.ask(&["logs", "-n", &count, "last"]).await;
        assert_eq!((read.code, read.stderr.as_str()), (Some(0), ""));
        assert_eq!(read.stdout.lines().count(), lines);
    }
    let read = jobctl.ask(&["logs", "last"]).await;
    assert_eq!(read.code, Some(0));
    let lines = (1..).zip(read.stdout.split_inclusive('\n'));
    for (number, line) in lines {
        assert!(format!("{number}\n").starts_with(line), "{number}: {line}");
    }
    assert_eq!(job_of(&pair.client, id).await.state, JobState::Running);
}

#[tokio::test]
async fn after_its_files_were_removed_a_job_is_recorded_on_and_the_loss_is_said_once() {
    let pair = Pair::start().await;
    let fifo = pair.dir.path().join("fifo");
    let script = format!(
        "mkfifo {0}; echo before; read x < {0}; for i in 1 2 3; do echo after; sleep 0.02; done",
        fifo.display()
    );
    let id = pair.start_job(&script).await;
    eventually(|| fs::metadata(pair.file(id, "out")).is_ok_and(|data| data.len() == 7)).await;
    let jobctl = Jobctl::at(pair.place.server());
    let mut follower = jobctl.begin(&["logs", "-f", "last"]);
    assert_eq!(follower.line().await, "before\n");
    fs::remove_file(pair.file(id, "out")).unwrap();
    let _held = go_on(&fifo).await;
    // One that was there before has missed nothing.
    let followed = follower.end().await;
    followed.is(0, "after\nafter\nafter\n");
    assert_eq!(followed.stderr, "");
    let job = within(end_of(&pair.client, id)).await;
    assert_eq!(
        job.reason.as_deref(),
        Some("7 bytes of output lost: the files of the output were removed")
    );
    let read = jobctl.ask(&["logs", "last"]).await;
    read.is(0, "after\nafter\nafter\n");
    assert_eq!(
        read.stderr,
        "7 bytes of output are missing here: its files were removed\n"
    );
}

/// The most memory that a process has had, in bytes.
fn most_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
    kibibytes.parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_large_gap_costs_the_worker_no_memory() {
    const LOST: u64 = 1_200_000_000;
    let (place, dir) = (Place::new(), Folder::new());
    let _scheduler = Process::scheduler(place, dir.path());
    let data = dir.path().join("w1");
    let mut command = Process::worker_command(place, 1, &data);
    command.args(["--control-groups", "false", "--output-limit", "10GB"]);
    command.args(["--min-free-disk", "0"]);
    let worker = Process::on_small_disk(&command, &data, "2m");
    let client = connected(place).await;
    let fifo = dir.path().join("fifo");
    let script = format!(
        "mkfifo {0}; echo one; head -c {LOST} /dev/zero; read x < {0}; echo two; echo three",
        fifo.display()
    );
    let id = client.start(&sh(&script)).await.unwrap().job_id;
    // The fifo is opened for reading once all of that was written.
    let mut held = within(tokio::task::spawn_blocking(move || {
        loop {
            if let Ok(held) = fs::File::options().write(true).open(&fifo) {
                break held;
            }
        }
    }))
    .await
    .unwrap();
    worker.resize_disk(&data, "64m");
    held.write_all(b"\n").unwrap();
    let job = within(end_of(&client, id)).await;
    assert_eq!(job.output_bytes, LOST + 14);
    let before = most_memory(worker.id());
    let jobctl = Jobctl::at(place.server());
    jobctl
        .ask(&["logs", "-n", "1", "last"])
        .await
        .is(0, "three\n");
    let more = most_memory(worker.id()) - before;
    assert!(more < 64 << 20, "{more} bytes");
    let (bytes, gaps) = read(&client, everything(id)).await;
    assert!(bytes.starts_with(b"one\n") && bytes.ends_with(b"two\nthree\n"));
    let [(missing, Some(GapCause::DiskFull))] = gaps[..] else {
        panic!("{gaps:?}");
    };
    assert!(missing > 1 << 30, "{missing}");
    assert_eq!(bytes.len() as u64 + missing, LOST + 14);
    let more = most_memory(worker.id()) - before;
    assert!(more < 64 << 20, "{more} bytes");
}
