//! What a worker and a shim say to each other over the shim's socket: JSON
//! objects, each behind its length (32 bits, little-endian). JSON, because a shim
//! outlives its worker and may meet a newer one: fields may be added, never
//! renamed or removed, and a worker sends no command that is younger than the
//! [`VERSION`] the shim has told.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ids::JobId;

/// The longest message taken, in bytes: a specification with all its arguments.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The version of this protocol. It rises when a [`Command`] is added.
pub const VERSION: u32 = 1;

/// The abstract name of the socket where a job's shim is found by the next
/// worker, after the one that started it is gone.
pub fn socket_name(job_id: JobId) -> String {
    format!("jobctl-shim-{job_id}")
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The first message, and only that: what to run.
    Start(Box<Spec>),
    /// Send `signal` to the whole tree, and KILL after `grace_ms`. A second
    /// stop can bring the KILL forward, never put it off.
    Stop {
        /// The number of the first signal.
        signal: i32,
        /// From the signal to KILL.
        grace_ms: u64,
    },
    /// The last message has been recorded for good: the shim may go.
    Receipt,
}

/// What to run, with everything looked up and checked by the worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The job.
    pub job_id: JobId,
    /// What to execute; `None`: the script itself.
    pub program: Option<PathBuf>,
    /// What the program is told it is called.
    pub arg0: String,
    /// The script was handed over as the shim's standard output, and goes
    /// before the arguments.
    pub script: bool,
    /// The arguments.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder to run in.
    pub cwd: PathBuf,
    /// Whom to run as; `None`: as the shim.
    #[serde(default)]
    pub user: Option<User>,
    /// Counted from the start of the process.
    pub timeout_ms: Option<u64>,
    /// TERM to KILL, for the timeout and for what the main process leaves behind.
    pub grace_ms: u64,
    /// Where output goes: this path with `.out` and `.idx` behind it.
    pub output: PathBuf,
    /// The most output kept, in bytes: beyond it the oldest goes back to the disk.
    pub output_limit: u64,
    /// Where the last message goes, as JSON, if no worker is there to take it.
    pub result: PathBuf,
    /// The soft limit of open files; `None`: none.
    pub open_files: Option<u64>,
    /// The control group to run in, where there is one for the job alone.
    pub cgroup: Option<PathBuf>,
    /// Programs like sudo may give the job rights that the worker does not have.
    #[serde(default)]
    pub allow_new_privileges: bool,
    /// What the job may use, as far as no control group sees to it.
    #[serde(default)]
    pub limits: Limits,
    /// How readily the kernel ends the job where memory is short, from -1000 to 1000
    /// (proc_pid_oom_score_adj(5)); `None`: as readily as the shim.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
}

/// Limits that each process of a job has (getrlimit(2)); `None`: as the shim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of address space, of each process for itself (RLIMIT_AS).
    pub memory: Option<u64>,
    /// Processes and threads of the user, inside the job and outside (RLIMIT_NPROC).
    pub processes: Option<u64>,
    /// Open files of each process, which it cannot raise (RLIMIT_NOFILE).
    pub open_files: Option<u64>,
}

/// A user and all its groups, by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// Its own group.
    pub gid: u32,
    /// All of its groups.
    pub groups: Vec<u32>,
}

/// From the shim. To every worker that connects it says `Started` and how far
/// the output is, and at the end the last message, until it has a receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The main process runs. The first message, unless it is `NotStarted`.
    Started {
        /// What the shim speaks; see [`VERSION`].
        version: u32,
        /// The main process.
        pid: u32,
        /// Microseconds since 1970.
        at_us: i64,
        /// `None`: the shim is older than this, or could not read it.
        birth: Option<Birth>,
    },
    /// There will be no process; the last message.
    NotStarted {
        /// Why.
        why: NotStarted,
        /// The system's own words.
        message: String,
        /// At which step; `None`: the shim is older than this.
        #[serde(default)]
        failure: Option<Failure>,
    },
    /// Output is recorded up to here. Comes after the bytes are in the file;
    /// several may be folded into the last of them.
    Output {
        /// The end of the recorded bytes.
        end: u64,
    },
    /// The first signal of a stop was sent.
    Stopping,
    /// Nothing of the job is left, and its output is complete; the last message.
    Ended(Ended),
}

/// What tells a process from a later one of the same number, in the same boot of
/// the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// When it was born, in clock ticks since the boot (proc_pid_stat(5)).
    pub ticks: u64,
    /// How many processes and threads the machine had started by then
    /// (`processes` of proc_stat(5)).
    pub forks: u64,
    /// Where its number counts; `None`: the shim is older than this, or could not
    /// tell.
    #[serde(default)]
    pub namespace: Option<PidNamespace>,
}

/// What tells a pid namespace from every other of the same boot: a container that is
/// started again has a new one, in which the numbers begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidNamespace {
    /// Of `/proc/self/ns/pid`. The kernel gives it out again (namespaces(7)).
    pub inode: u64,
    /// When the first process of it was born, in clock ticks since the boot.
    pub init_ticks: u64,
}

/// Where the start of a process failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// At which step.
    pub step: Step,
    /// The system's number for the error (errno(3)).
    pub errno: Option<i32>,
    /// What the first line of the program names, where it names something.
    #[serde(default)]
    pub interpreter: Option<String>,
}

/// The steps from a specification to a running program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A process, and the pipes for its output.
    Process,
    /// It joins its control group.
    Group,
    /// It becomes its user.
    User,
    /// It enters its folder.
    Folder,
    /// It is bounded.
    Limits,
    /// The kernel executes the program.
    Exec,
}

/// Why there is no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotStarted {
    /// The program, or the interpreter its first line names, does not exist.
    NotFound,
    /// The kernel does not execute it.
    NotExecutable,
    /// Anything else: no memory, no more processes, …
    Other,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When the last process was gone, in microseconds since 1970.
    pub at_us: i64,
    /// What the main process returned, if it returned.
    pub exit_code: Option<i32>,
    /// The signal that ended the main process, if one did.
    pub signal: Option<i32>,
    /// On whose account.
    pub cause: Cause,
    /// Bytes of output the job wrote.
    pub output_bytes: u64,
    /// Those of them that could not be recorded, and why.
    pub output_lost: Option<OutputLost>,
    /// Processes of it were killed for want of memory. Always `None` without a
    /// control group, which is what knows.
    #[serde(default)]
    pub out_of_memory: Option<OutOfMemory>,
    /// From the start of the main process to the end of the last one, by a monotonic clock;
    /// `None`: the shim is older than this.
    #[serde(default)]
    pub ran_ms: Option<u64>,
    /// Processes that the main process left when it ended, and that were ended.
    #[serde(default)]
    pub swept: u32,
}

/// Why the kernel killed processes of a job for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutOfMemory {
    /// The job had reached its own limit, of this many bytes.
    Job(u64),
    /// The machine, or a group that the job shares with others, had none left.
    Others,
}

/// Output that is missing from the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLost {
    /// How many bytes.
    pub bytes: u64,
    /// The system's words for the first of them.
    pub why: String,
}

/// On whose account a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The main process ended by itself, or by a signal of somebody else.
    Itself,
    /// A stop.
    Stopped,
    /// Its timeout.
    TimedOut,
}

/// One message with its length in front.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    // Strings, numbers and maps with string keys: there is nothing to fail on.
    serde_json::to_writer(&mut bytes, message).expect("a message is always valid JSON");
    let length = u32::try_from(bytes.len() - 4).expect("messages are far below 4 GiB");
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Takes one message from the front of `bytes`, if it is there in full.
///
/// # Errors
///
/// Where the bytes are not a message, or one longer than [`MAX_MESSAGE`].
pub fn decode<T: DeserializeOwned>(bytes: &mut Vec<u8>) -> std::io::Result<Option<T>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return Err(std::io::Error::other(format!("message of {length} bytes")));
    }
    let Some(body) = rest.get(..length) else {
        return Ok(None);
    };
    let message = serde_json::from_slice(body)?;
    bytes.drain(..4 + length);
    Ok(Some(message))
}

/// Whatever comes over the socket is a message, the beginning of one, or refused;
/// what is taken reads the same when it is sent on. See [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub fn fuzz(bytes: &[u8]) {
    fn all<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        let mut left = bytes.to_vec();
        while let Ok(Some(message)) = decode::<T>(&mut left) {
            let sent = encode(&message);
            if sent.len() > MAX_MESSAGE {
                continue;
            }
            let again: T = decode(&mut sent.clone())
                .expect("what was encoded is a message")
                .expect("it is whole");
            assert_eq!(encode(&again), sent);
        }
        assert!(left.len() <= bytes.len());
    }
    all::<Command>(bytes);
    all::<Event>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_only_when_it_is_whole() {
        let sent = encode(&Event::Output { end: 7 });
        let mut got = Vec::new();
        for byte in &sent[..sent.len() - 1] {
            got.push(*byte);
            assert_eq!(decode::<Event>(&mut got).unwrap(), None);
        }
        got.push(sent[sent.len() - 1]);
        got.extend(encode(&Event::Stopping));
        assert_eq!(decode(&mut got).unwrap(), Some(Event::Output { end: 7 }));
        assert_eq!(decode(&mut got).unwrap(), Some(Event::Stopping));
        assert!(got.is_empty());
    }

    #[test]
    fn an_older_shim_does_not_tell_of_the_birth() {
        let told = r#"{"started":{"version":1,"pid":7,"at_us":9}}"#;
        let event = Event::Started {
            version: 1,
            pid: 7,
            at_us: 9,
            birth: None,
        };
        assert_eq!(serde_json::from_str::<Event>(told).unwrap(), event);
    }

    #[test]
    fn limits_and_want_of_memory_are_no_words_of_older_versions() {
        let older = r#"{"ended":{"at_us":9,"exit_code":0,"signal":null,"cause":"itself",
            "output_bytes":0,"output_lost":null}}"#;
        match serde_json::from_str(older).unwrap() {
            Event::Ended(ended) => {
                assert_eq!(ended.out_of_memory, None);
                assert_eq!((ended.ran_ms, ended.swept), (None, 0));
            }
            other => panic!("{other:?}"),
        }
        let older = r#"{"job_id":"JOB","program":"/bin/true","arg0":"true","script":false,
            "args":[],"env":{},"cwd":"/","timeout_ms":null,"grace_ms":1,"output":"/o",
            "output_limit":1,"result":"/r","open_files":null,"cgroup":null}"#;
        let older = older.replace("JOB", &JobId::random().to_string());
        let spec: Spec = serde_json::from_str(&older).unwrap();
        assert_eq!(spec.limits, Limits::default());
        assert_eq!(spec.oom_score_adj, None);
        let older = r#"{"not_started":{"why":"not_found","message":"m"}}"#;
        match serde_json::from_str(older).unwrap() {
            Event::NotStarted { failure, .. } => assert_eq!(failure, None),
            other => panic!("{other:?}"),
        }
        let older: Birth = serde_json::from_str(r#"{"ticks":3,"forks":40}"#).unwrap();
        assert_eq!(older.namespace, None);
        let newer = r#"{"memory":1,"of_a_later_version":2}"#;
        let limits: Limits = serde_json::from_str(newer).unwrap();
        assert_eq!((limits.memory, limits.processes), (Some(1), None));
    }

    #[test]
    fn a_length_out_of_bounds_is_refused() {
        let mut got = u32::MAX.to_le_bytes().to_vec();
        assert!(decode::<Event>(&mut got).is_err());
    }
}
