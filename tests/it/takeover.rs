//! What a worker finds that comes after another: the worker alone, as a real
//! process that is killed, with no scheduler there.

use std::{
    fs,
    io::{self, Read as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixStream},
    },
    path::PathBuf,
    process::Command,
    time::Duration,
};

use jobctl::{
    ids::JobId,
    proto::{
        JobState, JobStatus, QueryJobRequest, StartJobRequest, StopJobRequest, StreamJobRequest,
        worker_client::WorkerClient,
    },
    roles::shim::protocol::{Event, decode, socket_name},
};
use rustix::process::Signal;
use tonic::transport::Channel;

use crate::{
    cluster::{Place, Process},
    support::{Folder, LIMIT, eventually, gone, kill, within},
};

/// The first worker of a place, called without a scheduler; returns once it answers.
pub(crate) async fn worker_at(place: Place) -> WorkerClient<Channel> {
    let address = format!("http://{}", place.worker(1));
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            pause.tick().await;
            if let Ok(client) = WorkerClient::connect(address.clone()).await {
                return client;
            }
        }
    })
    .await
}

/// A data folder, and the workers that hold it one after the other.
pub(crate) struct Succession {
    pub(crate) place: Place,
    pub(crate) dir: Folder,
}

/// How the jobs of a worker are ended.
pub(crate) const BY_PROCESS: &[&str] = &["--control-groups", "false"];

impl Succession {
    pub(crate) fn new() -> Self {
        Self {
            place: Place::new(),
            dir: Folder::new(),
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("w1")
    }

    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let mut command = Process::worker_command(self.place, 1, &self.data());
        // With no scheduler there, these tests call the worker in its place.
        command.arg("--insecure").args(flags);
        command
    }

    /// The next worker, which has taken over what there was.
    pub(crate) async fn next(&self, flags: &[&str]) -> (Process, WorkerClient<Channel>) {
        let worker = Process::from(self.command(flags).spawn().unwrap());
        (worker, self.client().await)
    }

    pub(crate) async fn client(&self) -> WorkerClient<Channel> {
        worker_at(self.place).await
    }

    pub(crate) fn shim_of(&self, id: JobId) -> i32 {
        let shims = self.dir.shims();
        let found = shims.iter().find(|(_, job)| *job == id);
        found.unwrap().0
    }

    /// Waits until the journal has the main process of a job, which nobody waits for.
    pub(crate) async fn has_begun(&self, id: JobId) {
        let record = format!("{{\"began\":{{\"job_id\":\"{id}\"");
        eventually(|| {
            let journal = fs::read(self.data().join("journal")).unwrap();
            String::from_utf8_lossy(&journal).contains(&record)
        })
        .await;
    }
}

pub(crate) async fn sh(client: &WorkerClient<Channel>, script: &str) -> JobId {
    let request = StartJobRequest {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        ..Default::default()
    };
    let response = within(client.clone().start_job(request)).await.unwrap();
    response.into_inner().job_id.parse().unwrap()
}

pub(crate) async fn query(client: &WorkerClient<Channel>, id: JobId) -> JobStatus {
    let request = QueryJobRequest {
        job_id: id.to_string(),
        epoch: 0,
    };
    let response = within(client.clone().query_job(request)).await.unwrap();
    response.into_inner().status.unwrap()
}

/// The first piece of a job's output.
pub(crate) async fn first_words(client: &WorkerClient<Channel>, id: JobId) -> String {
    let request = StreamJobRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    let stream = within(client.clone().stream_job(request)).await;
    let mut stream = stream.unwrap().into_inner();
    let message = within(stream.message()).await.unwrap().unwrap();
    String::from_utf8(message.output.to_vec()).unwrap()
}

/// How a job ended; waits for that.
pub(crate) async fn end_of(client: &WorkerClient<Channel>, id: JobId) -> JobStatus {
    let request = StreamJobRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    let stream = within(client.clone().stream_job(request)).await;
    let mut stream = stream.unwrap().into_inner();
    loop {
        if let Some(end) = within(stream.message()).await.unwrap().unwrap().end {
            return end;
        }
    }
}

#[tokio::test]
async fn a_job_without_its_mark_is_ended_when_worker_and_shim_were_killed() {
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let id = sh(&client, "env -i sh -c 'echo $$; sleep 600; :' & wait").await;
    let unmarked = first_words(&client, id).await.trim().to_owned();
    let pid = query(&client, id).await.pid;
    workers.has_begun(id).await;
    worker.kill();
    kill(workers.shim_of(id));
    // It goes with its shim, and takes nobody along.
    eventually(|| gone(&pid.unwrap().to_string())).await;
    assert!(!gone(&unmarked));
    let (_worker, client) = workers.next(BY_PROCESS).await;
    let status = end_of(&client, id).await;
    assert_eq!(status.state(), JobState::Lost);
    assert_eq!(
        status.reason,
        "lost: worker restarted; processes that had left its session may still be there"
    );
    assert_eq!(status.pid, pid, "what was known of it still is");
    assert!(gone(&unmarked), "lost means that nothing is left");
}

#[tokio::test]
async fn results_that_nobody_needs_are_removed_and_no_others() {
    let workers = Succession::new();
    let results = workers.data().join("results");
    let (worker, client) = workers.next(BY_PROCESS).await;
    let ended = sh(&client, "exit 3").await;
    end_of(&client, ended).await;
    let fifo = workers.dir.path().join("fifo");
    let script = format!("mkfifo {0}; echo x; read x < {0}; exit 7", fifo.display());
    let running = sh(&client, &script).await;
    first_words(&client, running).await;
    worker.kill();
    // Kept open: what nobody has read goes with the last who has it open.
    let held = fs::File::options().read(true).write(true).open(&fifo);
    let mut held = held.unwrap();
    std::io::Write::write_all(&mut held, b"\n").unwrap();
    eventually(|| workers.dir.shims().is_empty()).await;
    let needed = results.join(running.to_string());
    assert!(needed.exists(), "its shim has left it behind");

    let unknown = JobId::random();
    for stray in [
        ended.to_string(),
        unknown.to_string(),
        format!("{unknown}.part"),
    ] {
        fs::write(results.join(stray), "{}").unwrap();
    }
    fs::write(results.join("README"), "not a result").unwrap();
    let (_worker, client) = workers.next(BY_PROCESS).await;
    let status = end_of(&client, running).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (JobState::Failed, Some(7))
    );
    let status = query(&client, ended).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (JobState::Failed, Some(3))
    );
    // Removed once the end is in the journal.
    eventually(|| !needed.exists()).await;
    let left = fs::read_dir(&results).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["README"]);
}

#[tokio::test]
async fn a_journal_that_was_put_there_anew_costs_no_result() {
    let workers = Succession::new();
    let results = workers.data().join("results");
    fs::create_dir_all(&results).unwrap();
    let result = results.join(JobId::random().to_string());
    fs::write(&result, "{}").unwrap();
    let (_worker, client) = workers.next(BY_PROCESS).await;
    let id = sh(&client, "true").await;
    end_of(&client, id).await;
    assert!(result.exists());
}

#[tokio::test]
async fn a_data_folder_that_is_let_go_in_a_moment_is_waited_for() {
    let workers = Succession::new();
    fs::create_dir_all(workers.data()).unwrap();
    let lock = workers.data().join("lock");
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    let child = workers.command(BY_PROCESS).spawn().unwrap();
    let open = PathBuf::from(format!("/proc/{}/fd", child.id()));
    let _worker = Process::from(child);
    eventually(|| {
        let mut open = fs::read_dir(&open).unwrap().flatten();
        open.any(|file| fs::read_link(file.path()).is_ok_and(|path| path == lock))
    })
    .await;
    held.unlock().unwrap();
    workers.client().await;
}

#[tokio::test]
async fn a_worker_without_room_for_its_shims_takes_them_over_when_there_is() {
    const EACH: usize = 30;
    /// Room for half of the shims and what a worker has besides, not for all.
    const OPEN_FILES: usize = 60;
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let fifo = workers.dir.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let script = format!("read x < {}; exit 7", fifo.display());
    let (mut waiting, mut staying) = (Vec::new(), Vec::new());
    for _ in 0..EACH {
        waiting.push(sh(&client, &script).await);
        staying.push(sh(&client, "sleep 600").await);
    }
    worker.kill();

    let whole = workers.command(BY_PROCESS);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={OPEN_FILES}"));
    limited.arg(whole.get_program()).args(whole.get_args());
    let child = limited.spawn().unwrap();
    let open = PathBuf::from(format!("/proc/{}/fd", child.id()));
    let _worker = Process::from(child);
    eventually(|| fs::read_dir(&open).is_ok_and(|open| open.count() >= OPEN_FILES)).await;

    // Each of those that end makes room for one of those that stay.
    // Kept open: what nobody has read goes with the last who has it open.
    let held = fs::File::options().read(true).write(true).open(&fifo);
    let mut held = held.unwrap();
    let lines = vec![b'\n'; EACH];
    std::io::Write::write_all(&mut held, &lines).unwrap();
    let client = workers.client().await;
    for id in waiting {
        let status = end_of(&client, id).await;
        assert_eq!(status.exit_code, Some(7), "{}", status.reason);
    }
    for id in staying {
        within(async {
            let mut pause = tokio::time::interval(Duration::from_millis(10));
            while query(&client, id).await.state() != JobState::Running {
                pause.tick().await;
            }
        })
        .await;
    }
}

/// A connection to a shim, as a worker has one.
struct Caller {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Caller {
    fn call(id: JobId) -> Self {
        let name = SocketAddr::from_abstract_name(socket_name(id)).unwrap();
        let stream = UnixStream::connect_addr(&name).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// The next thing that the shim says; `None`: it has hung up.
    fn hear(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = decode(&mut self.received).unwrap() {
                return Some(event);
            }
            let mut bytes = [0; 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(length) => self.received.extend_from_slice(&bytes[..length]),
                // A child of another test has ended.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn hears_that_it_runs(&mut self) {
        while !matches!(self.hear().unwrap(), Event::Started { .. }) {}
    }
}

#[tokio::test]
async fn who_calls_a_shim_last_is_its_worker() {
    let workers = Succession::new();
    let (worker, client) = workers.next(BY_PROCESS).await;
    let id = sh(&client, "sleep 600").await;
    // It holds its data folder, and cannot see that it has lost the connection.
    worker.signal(Signal::STOP);
    let mut first = Caller::call(id);
    first.hears_that_it_runs();
    let mut second = Caller::call(id);
    second.hears_that_it_runs();
    assert_eq!(first.hear(), None);
    worker.signal(Signal::CONT);
    assert_eq!(second.hear(), None, "the worker has called again");
    let request = StopJobRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    within(client.clone().stop_job(request)).await.unwrap();
    let status = end_of(&client, id).await;
    assert_eq!(status.reason, "stopped: signal: terminated");
}
