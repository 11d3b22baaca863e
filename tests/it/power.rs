//! Power losses: a real scheduler and a real worker on a file system of their own,
//! whose backing file is copied while they run. Such a copy is what a disk holds
//! at that moment: what no sync has put there is missing, or there in part. The real
//! binaries are started on each copy, in another boot of the machine.
//!
//! That takes root and loop devices. Where they are not to be had the tests say so.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use jobctl::{
    api::JobState,
    client::Client,
    ids::JobId,
    proto::{
        self, QueryJobRequest, StartJobRequest, StreamJobRequest, worker_client::WorkerClient,
    },
};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use tokio::time::Instant;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    cluster::{Place, Process, connected, end_of, job, sh},
    support::{Folder, LIMIT, eventually, kill, within},
    takeover,
};

/// Whether output is synced, so that it can be checked what of it is left.
const OUTPUT_IS_SYNCED: bool = true;

/// How much of its latest output a job may lose, and how late a busy machine may be
/// with a sync.
const LOSS: Duration = Duration::from_secs(3);

/// Room for a file system, of which little is used.
const SIZE: u64 = 320 << 20;

/// A file system, how it is made, and how it is mounted. A short `commit` has ext4
/// record the sizes of files long before their bytes, which stay in memory.
struct Kind {
    make: &'static [&'static str],
    options: &'static str,
}

const EXT4: Kind = Kind {
    make: &["mkfs.ext4", "-q", "-F", "-J", "size=4"],
    options: "loop,commit=1",
};

/// Without any order between the bytes of files and what is recorded of them.
const EXT4_WRITEBACK: Kind = Kind {
    make: EXT4.make,
    options: "loop,commit=1,data=writeback",
};

const XFS: Kind = Kind {
    make: &["mkfs.xfs", "-q", "-f"],
    options: "loop,nouuid",
};

/// Those that can be made here.
fn kinds() -> Vec<Kind> {
    let is_there = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .any(|folder| folder.join(program).exists())
    };
    let kinds = [EXT4, EXT4_WRITEBACK, XFS].into_iter();
    kinds.filter(|kind| is_there(kind.make[0])).collect()
}

/// A mounted file system that no other process sees. It is gone with the processes that
/// see it, however this one ends.
struct Disk {
    image: PathBuf,
    holder: Child,
    /// Where alone it is seen; `None` until it is.
    namespace: Option<PathBuf>,
}

impl Disk {
    /// A new file system in `dir`, with what is in the folder `at`.
    fn new(kind: &Kind, dir: &Path, at: &Path) -> Result<Self, String> {
        let image = dir.join("image");
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let mut make = Command::new(kind.make[0]);
        let made = make.args(&kind.make[1..]).arg(&image).output();
        let made = made.map_err(|error| error.to_string())?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        let fill = "cp -a \"$5\"/. \"$4\" && sync -f \"$4\"";
        Self::mounted(kind, &image, at, ("first boot", fill))
    }

    /// Mounts what a power loss left over the folder `at`, in another boot.
    fn after(kind: &Kind, loss: &Loss, at: &Path) -> Self {
        Self::mounted(kind, &loss.image, at, ("second boot", "true")).unwrap()
    }

    /// Mounts an image over a folder, in a boot of this name, when it is filled.
    fn mounted(
        kind: &Kind,
        image: &Path,
        at: &Path,
        (boot, fill): (&str, &str),
    ) -> Result<Self, String> {
        let boot_id = image.with_extension("boot");
        fs::write(&boot_id, boot).unwrap();
        fs::create_dir_all(at).unwrap();
        let aside = image.with_extension("mount");
        fs::create_dir_all(&aside).unwrap();
        let script = format!(
            "mount --bind \"$1\" /proc/sys/kernel/random/boot_id \
             && mount -o \"$2\" \"$3\" \"$4\" && {fill} \
             && mount --move \"$4\" \"$5\" && echo mounted && exec cat"
        );
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        unshare.arg("sh").arg(&boot_id).arg(kind.options);
        unshare.arg(image).arg(&aside).arg(at);
        // It ends with its standard input, and so with this process.
        unshare.stdin(Stdio::piped()).stdout(Stdio::piped());
        unshare.stderr(Stdio::piped());
        let holder = unshare.spawn().map_err(|error| error.to_string())?;
        let mut disk = Self {
            image: image.to_owned(),
            holder,
            namespace: None,
        };
        let mut line = String::new();
        let said = disk.holder.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        if line != "mounted\n" {
            let mut why = String::new();
            let mut stderr = disk.holder.stderr.take().unwrap();
            stderr.read_to_string(&mut why).unwrap();
            return Err(why);
        }
        let namespace = namespace_of(&disk.holder.id().to_string());
        assert_ne!(namespace, namespace_of("self"), "all would be ended");
        disk.namespace = namespace;
        Ok(disk)
    }

    /// The same command, where it sees the disk.
    fn on(&self, command: &Command) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        nsenter.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            nsenter.env(name, value.unwrap_or_default());
        }
        nsenter.stdout(Stdio::null());
        nsenter
    }

    /// Puts what the disk holds at one moment into a file.
    fn copy(&self, to: &Path) {
        let source = File::open(&self.image).unwrap();
        let mut before = data(&source);
        let copied = loop {
            // What is the same twice was so in between, all of it at once.
            let again = data(&source);
            if again == before {
                break again;
            }
            before = again;
        };
        let copy = File::create(to).unwrap();
        copy.set_len(SIZE).unwrap();
        for (place, bytes) in copied {
            copy.write_all_at(&bytes, place).unwrap();
        }
    }

    /// The processes that see it.
    fn processes(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        pids.filter(|pid| self.namespace.is_some() && namespace_of(pid) == self.namespace)
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }
}

/// What mounts a process sees.
fn namespace_of(pid: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

impl Drop for Disk {
    fn drop(&mut self) {
        let holder = self.holder.id() as i32;
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            let others = self.processes();
            let others: Vec<_> = others.into_iter().filter(|pid| *pid != holder).collect();
            if others.is_empty() {
                break;
            }
            for pid in others {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                // It may have ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::yield_now();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // The last of a mount goes a moment after the last who sees it.
        while is_in_use(&self.image) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if is_in_use(&self.image) {
            eprintln!("{} is still on a loop device", self.image.display());
        }
    }
}

/// Whether a loop device has this file.
fn is_in_use(image: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let mut files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.any(|file| Path::new(file.trim_end()) == image)
}

/// What a sparse file holds, and where.
fn data(file: &File) -> Vec<(u64, Vec<u8>)> {
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return found,
            Err(error) => panic!("{error}"),
        };
        at = seek(file, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (at - start) as usize];
        file.read_exact_at(&mut bytes, start).unwrap();
        found.push((start, bytes));
    }
}

/// splitmix64: what a seed decides, it decides every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What was promised so far.
#[derive(Clone, Default)]
struct Promised {
    /// Jobs whose start was answered.
    known: Vec<JobId>,
    /// Jobs whose end is recorded, and that the test knows to be.
    ended: Vec<(JobId, i32)>,
    /// A job that writes lines, and when it had written how many bytes.
    writes: Option<(JobId, Vec<(Instant, u64)>)>,
}

type Promises = Arc<Mutex<Promised>>;

/// What the disk held at a moment, and what was promised by then.
struct Loss {
    /// A copy of the disk.
    image: PathBuf,
    promised: Promised,
    at: Instant,
}

/// What the job that writes writes.
const LINES: &str = "i=0; while :; do i=$((i+1)); echo \"line $i\"; sleep 0.05; done";

/// The first so many bytes of that.
fn lines(length: u64) -> Vec<u8> {
    let lines = (1..).map(|number| format!("line {number}\n").into_bytes());
    let mut bytes = Vec::new();
    for line in lines {
        if bytes.len() as u64 >= length {
            break;
        }
        bytes.extend(line);
    }
    bytes.truncate(length as usize);
    bytes
}

/// Takes copies while jobs begin and end: one while the roles start, the others at
/// random moments and right after answers.
async fn losses(disk: &Disk, promises: &Promises, count: usize, chance: &mut Chance) -> Vec<Loss> {
    let mut losses = Vec::new();
    for number in 0..count {
        match chance.below(3) {
            _ if number == 0 => tokio::time::sleep(Duration::from_millis(chance.below(300))).await,
            0 => {
                let before = promises.lock().unwrap().ended.len();
                let more = || promises.lock().unwrap().ended.len() > before;
                eventually(more).await;
            }
            1 => {
                let before = promises.lock().unwrap().known.len();
                let more = || promises.lock().unwrap().known.len() > before;
                eventually(more).await;
            }
            // It is the file system that decides what it writes when, and no event
            // says so.
            _ => tokio::time::sleep(Duration::from_millis(chance.below(2500))).await,
        }
        let (promised, at) = (promises.lock().unwrap().clone(), Instant::now());
        let image = disk
            .image
            .with_extension(format!("loss-{}", Uuid::new_v4()));
        disk.copy(&image);
        losses.push(Loss {
            image,
            promised,
            at,
        });
    }
    losses
}

/// A worker that is asked directly, with no scheduler there.
struct Alone {
    dir: Folder,
    place: Place,
}

impl Alone {
    fn at(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn command(&self) -> Command {
        let mut command = Process::worker_command(self.place, 1, &self.at().join("w1"));
        command.args(["--insecure", "--control-groups", "false"]);
        command
    }

    async fn client(&self) -> WorkerClient<Channel> {
        takeover::worker_at(self.place).await
    }

    async fn start(&self, client: &WorkerClient<Channel>, script: &str) -> JobId {
        let request = StartJobRequest {
            command: "sh".into(),
            args: vec!["-c".into(), script.into()],
            ..Default::default()
        };
        let response = within(client.clone().start_job(request)).await.unwrap();
        response.into_inner().job_id.parse().unwrap()
    }

    /// Has jobs begin and end, for ever.
    async fn load(&self, promises: &Promises, mut chance: Chance) {
        let client = self.client().await;
        let promise = |what: &dyn Fn(&mut Promised)| what(&mut promises.lock().unwrap());
        let writes = self.start(&client, LINES).await;
        promise(&|promised| promised.writes = Some((writes, Vec::new())));
        let reading = self.read_along(&client, writes, promises);
        let starting = async {
            for number in 0.. {
                let code = number % 7;
                let ends = self
                    .start(&client, &format!("echo {code}; exit {code}"))
                    .await;
                promise(&|promised| promised.known.push(ends));
                // Once its shim has gone, its end is in the journal.
                let shims = || self.dir.shims().iter().all(|(_, job)| *job != ends);
                eventually(shims).await;
                promise(&|promised| promised.ended.push((ends, code)));
                let stays = self.start(&client, "exec sleep 600").await;
                promise(&|promised| promised.known.push(stays));
                // For a while nothing is written.
                tokio::time::sleep(Duration::from_millis(chance.below(1500))).await;
                let shims = self.dir.shims();
                let shim = shims.iter().find(|(_, job)| *job == stays).unwrap();
                kill(shim.0);
            }
        };
        tokio::join!(reading, starting);
    }

    async fn read_along(&self, client: &WorkerClient<Channel>, id: JobId, promises: &Promises) {
        let request = StreamJobRequest {
            job_id: id.to_string(),
            ..Default::default()
        };
        let stream = within(client.clone().stream_job(request)).await;
        let mut stream = stream.unwrap().into_inner();
        while let Ok(Some(message)) = stream.message().await {
            let end = message.offset + message.output.len() as u64;
            if let Some((_, seen)) = &mut promises.lock().unwrap().writes {
                seen.push((Instant::now(), end));
            }
        }
    }

    /// The worker starts on what is left, and has kept every promise.
    async fn check(&self, kind: &Kind, loss: &Loss) {
        let told = loss.image.display();
        let disk = Disk::after(kind, loss, &self.at());
        let worker = Process::run(disk.on(&self.command()));
        let client = self.client().await;
        for (id, code) in &loss.promised.ended {
            let status = status(&client, *id).await;
            assert_eq!(status.exit_code, Some(*code), "{told}: {id} {status:?}");
        }
        for id in &loss.promised.known {
            let (_, end) = output(&client, *id).await;
            assert!(end.is_some(), "{told}: {id}");
        }
        if OUTPUT_IS_SYNCED {
            self.check_output(&client, loss).await;
        }
        // It goes on as if nothing had been.
        let id = self.start(&client, "echo after; exit 3").await;
        assert_eq!(output(&client, id).await.1.unwrap().exit_code, Some(3));
        worker.kill();
    }

    async fn check_output(&self, client: &WorkerClient<Channel>, loss: &Loss) {
        let told = loss.image.display();
        for (id, code) in &loss.promised.ended {
            let (pieces, end) = output(client, *id).await;
            let bytes: Vec<u8> = pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
            assert_eq!(
                bytes,
                format!("{code}\n").as_bytes(),
                "{told}: {id} {end:?}"
            );
        }
        let Some((id, seen)) = &loss.promised.writes else {
            return;
        };
        let old = seen.iter().filter(|(at, _)| *at + LOSS < loss.at);
        let expected = old.map(|(_, end)| *end).max().unwrap_or(0);
        let (pieces, end) = output(client, *id).await;
        let length = pieces
            .iter()
            .map(|(at, bytes)| at + bytes.len() as u64)
            .max();
        let length = length.unwrap_or(0);
        assert!(
            length >= expected,
            "{told}: {length} of {expected} bytes, {end:?}"
        );
        let whole = lines(length);
        for (at, bytes) in pieces {
            let at = at as usize;
            assert_eq!(bytes, whole[at..at + bytes.len()], "{told}: at {at}");
        }
    }
}

async fn status(client: &WorkerClient<Channel>, id: JobId) -> proto::JobStatus {
    let request = QueryJobRequest {
        job_id: id.to_string(),
        epoch: 0,
    };
    let response = within(client.clone().query_job(request)).await;
    response.unwrap().into_inner().status.unwrap()
}

/// The pieces of an output with their places, and how the job ended.
async fn output(
    client: &WorkerClient<Channel>,
    id: JobId,
) -> (Vec<(u64, Vec<u8>)>, Option<proto::JobStatus>) {
    let request = StreamJobRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    let stream = within(client.clone().stream_job(request)).await;
    let mut stream = stream.unwrap().into_inner();
    let mut pieces = Vec::new();
    while let Some(message) = within(stream.message()).await.unwrap() {
        if !message.output.is_empty() {
            pieces.push((message.offset, message.output.to_vec()));
        }
        if message.end.is_some() {
            return (pieces, message.end);
        }
    }
    (pieces, None)
}

/// A worker alone on a disk that loses its power so many times.
async fn worker_loses_power(kind: &Kind, count: usize, seed: u64) {
    let alone = Alone {
        dir: Folder::new(),
        place: Place::new(),
    };
    let command = alone.command();
    let disk = match Disk::new(kind, alone.dir.path(), &alone.at()) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("not tested, {} cannot be mounted: {why}", kind.make[0]),
    };
    let promises = Promises::default();
    let (mut chance, mut all) = (Chance(seed), Vec::new());
    // The next worker makes a new journal of what it finds.
    for _ in 0..2 {
        let worker = Process::run(disk.on(&command));
        let losses = tokio::select! {
            losses = losses(&disk, &promises, count / 2, &mut chance) => losses,
            () = alone.load(&promises, Chance(seed + 1)) => unreachable!("it never ends"),
        };
        worker.kill();
        all.extend(losses);
    }
    drop(disk);
    for loss in &all {
        alone.check(kind, loss).await;
        fs::remove_file(&loss.image).unwrap();
    }
}

/// A scheduler and a worker on one disk.
struct Both {
    dir: Folder,
    place: Place,
}

impl Both {
    fn at(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn commands(&self) -> [Command; 2] {
        let scheduler = Process::scheduler_command(self.place, &self.at());
        let mut worker = Process::worker_command(self.place, 1, &self.at().join("w1"));
        worker.args(["--control-groups", "false"]);
        [scheduler, worker]
    }

    /// Has jobs begin and end, several at once, for ever.
    async fn load(&self, client: &Client, promises: &Promises) {
        let lane = async |lane: i32| {
            for number in lane.. {
                let code = number % 7;
                let script = format!("echo {code}; sleep 0.{lane}; exit {code}");
                let id = within(client.start(&sh(&script))).await.unwrap().job_id;
                promises.lock().unwrap().known.push(id);
                let job = end_of(client, id).await;
                assert_eq!(job.exit_code, Some(code), "{job:?}");
                // Once its shim has gone, its end is in the journal.
                eventually(|| self.dir.shims().iter().all(|(_, job)| *job != id)).await;
                promises.lock().unwrap().ended.push((id, code));
            }
        };
        tokio::join!(lane(0), lane(1), lane(2));
    }

    /// Both start on what is left, and have kept every promise.
    async fn check(&self, kind: &Kind, loss: &Loss) {
        let told = loss.image.display();
        let disk = Disk::after(kind, loss, &self.at());
        let roles = self
            .commands()
            .map(|command| Process::run(disk.on(&command)));
        let client = connected(self.place).await;
        for (id, code) in &loss.promised.ended {
            let job = job(&client, *id).await;
            assert_eq!(job.exit_code, Some(*code), "{told}: {job:?}");
        }
        for id in &loss.promised.known {
            // None is left as it was: its machine has lost it, or its end was kept.
            let job = end_of(&client, *id).await;
            assert_ne!(job.state, JobState::Stopped, "{told}: {job:?}");
        }
        let id = within(client.start(&sh("exit 3"))).await.unwrap().job_id;
        assert_eq!(end_of(&client, id).await.exit_code, Some(3), "{told}");
        roles.into_iter().for_each(Process::kill);
    }
}

/// A scheduler and a worker on a disk that loses its power so many times.
async fn both_lose_power(kind: &Kind, count: usize, seed: u64) {
    let both = Both {
        dir: Folder::new(),
        place: Place::new(),
    };
    let commands = both.commands();
    let disk = match Disk::new(kind, both.dir.path(), &both.at()) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("not tested, {} cannot be mounted: {why}", kind.make[0]),
    };
    let roles = commands.map(|command| Process::run(disk.on(&command)));
    let client = connected(both.place).await;
    let promises = Promises::default();
    let mut chance = Chance(seed);
    let losses = tokio::select! {
        losses = losses(&disk, &promises, count, &mut chance) => losses,
        () = both.load(&client, &promises) => unreachable!("it never ends"),
    };
    roles.into_iter().for_each(Process::kill);
    drop(disk);
    for loss in &losses {
        both.check(kind, loss).await;
        fs::remove_file(&loss.image).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_starts_after_a_power_loss_and_has_every_end() {
    worker_loses_power(&EXT4, 4, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_starts_after_a_power_loss_and_has_every_end() {
    both_lose_power(&EXT4, 3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "200 power losses: cargo test --test it -- --ignored --nocapture power_losses"]
async fn two_hundred_power_losses() {
    let kinds = kinds();
    // So that as much of the time is spent with each.
    let each = 200_usize.div_ceil(10 * kinds.len());
    for (number, kind) in kinds.iter().enumerate() {
        for round in 0..each as u64 {
            let seed = 1000 * (number as u64 + 1) + round;
            worker_loses_power(kind, 6, seed).await;
            both_lose_power(kind, 4, seed).await;
            let made = kind.make[0];
            println!(
                "{made} {}: seed {seed}: 10 power losses survived",
                kind.options
            );
        }
    }
}
