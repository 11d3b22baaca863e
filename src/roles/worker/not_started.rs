//! Why a job has no process, in words: whether the worker lacks what any job needs, or
//! the job cannot be started anywhere as it was asked for.

use std::io;

use rustix::io::Errno;

use super::{error::Refusal, job::Spec};
use crate::roles::shim::protocol::{Failure, Limits, NotStarted, Step};

/// What a job is to its refusal.
pub(super) struct About<'a> {
    pub(super) worker: &'a str,
    pub(super) spec: &'a Spec,
    /// Its limits may be what is short.
    pub(super) limits: Limits,
}

impl About<'_> {
    /// Of what a shim says.
    pub(super) fn refusal(
        &self,
        why: NotStarted,
        message: String,
        failure: Option<Failure>,
    ) -> Refusal {
        let Some(Failure {
            step,
            errno,
            interpreter,
        }) = failure
        else {
            return self.of_older_shim(why, message);
        };
        match step {
            Step::Process => self.short(format!("no process can be started: {message}")),
            Step::Group => self.short(format!("a control group cannot be used: {message}")),
            Step::User if is_short(errno) => {
                self.short(format!("no process can be started: {message}"))
            }
            Step::User => self.not_started(format!("it cannot become its user: {message}")),
            Step::Folder => Refusal::BadCwd {
                cwd: match &self.spec.cwd {
                    Some(cwd) => cwd.display().to_string(),
                    None => "its folder".to_owned(),
                },
                worker: self.worker.to_owned(),
                why: message,
            },
            Step::Limits => self.not_started(format!("its limits cannot be set: {message}")),
            Step::Exec => self.not_executed(errno, message, interpreter),
        }
    }

    /// A process was there, and the kernel did not execute the program.
    fn not_executed(
        &self,
        errno: Option<i32>,
        message: String,
        interpreter: Option<String>,
    ) -> Refusal {
        let (program, worker) = (self.spec.program(), self.worker.to_owned());
        let why = match errno.map(Errno::from_raw_os_error) {
            Some(Errno::NOENT) => match interpreter {
                Some(name) if name.ends_with('\r') => format!(
                    "its first line ends with a carriage return, so the interpreter {name:?} \
                     is looked for; save it with line ends of Unix"
                ),
                name => {
                    let name = name.map(|name| format!("its interpreter {name}"));
                    let loader = "the program, or the loader it was linked for,";
                    return Refusal::InterpreterNotFound {
                        program,
                        worker,
                        interpreter: name.unwrap_or_else(|| loader.to_owned()),
                    };
                }
            },
            Some(Errno::NOMEM) if self.limits.memory.is_some() => {
                return self.not_started(format!("its limit of memory is too low: {message}"));
            }
            Some(Errno::TXTBSY) => format!("it is open for writing: {message}"),
            Some(Errno::TOOBIG) => format!(
                "its arguments and its environment are more than the kernel takes: {message}"
            ),
            _ if is_short(errno) => {
                return self.short(format!("no program can be executed: {message}"));
            }
            _ => message,
        };
        Refusal::NotExecutable {
            program,
            worker,
            why,
        }
    }

    fn of_older_shim(&self, why: NotStarted, message: String) -> Refusal {
        match why {
            NotStarted::NotFound => self.not_started(
                "it, or the interpreter its first line names, does not exist".to_owned(),
            ),
            NotStarted::NotExecutable => Refusal::NotExecutable {
                program: self.spec.program(),
                worker: self.worker.to_owned(),
                why: message,
            },
            NotStarted::Other => self.not_started(message),
        }
    }

    fn short(&self, what: String) -> Refusal {
        let worker = self.worker.to_owned();
        Refusal::WorkerShort { worker, what }
    }

    fn not_started(&self, why: String) -> Refusal {
        Refusal::NotStarted {
            program: self.spec.program(),
            worker: self.worker.to_owned(),
            why,
        }
    }
}

/// Processes, descriptors or memory are short, or the disk is full: it may be
/// otherwise in a moment, and has nothing to do with what was asked for.
fn is_short(errno: Option<i32>) -> bool {
    matches!(
        errno.map(Errno::from_raw_os_error),
        Some(
            Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOSPC | Errno::DQUOT
        )
    )
}

/// As [`is_short`], of an error of this process.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    is_short(error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::ids::JobId;

    fn refusal(step: Step, errno: Errno, interpreter: Option<&str>) -> Refusal {
        limited(step, errno, interpreter, Limits::default())
    }

    fn limited(step: Step, errno: Errno, interpreter: Option<&str>, limits: Limits) -> Refusal {
        let spec = Spec {
            id: JobId::random(),
            command: Some("prog".into()),
            path: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: Some("/srv".into()),
            user: None,
            attempt: None,
            name: None,
            timeout: None,
            created: Timestamp::now(),
        };
        let about = About {
            worker: "w1",
            spec: &spec,
            limits,
        };
        let failure = Failure {
            step,
            errno: Some(errno.raw_os_error()),
            interpreter: interpreter.map(str::to_owned),
        };
        about.refusal(NotStarted::Other, errno.to_string(), Some(failure))
    }

    #[test]
    fn what_the_worker_lacks_is_not_the_jobs_fault() {
        for (step, errno) in [
            (Step::Process, Errno::AGAIN),
            (Step::Process, Errno::MFILE),
            (Step::Process, Errno::NOENT),
            (Step::Group, Errno::NODEV),
            (Step::User, Errno::AGAIN),
            (Step::Exec, Errno::NFILE),
            (Step::Exec, Errno::NOMEM),
            (Step::Exec, Errno::AGAIN),
        ] {
            let refusal = refusal(step, errno, None);
            assert_eq!(refusal.code(), "worker_short", "{step:?} {errno}");
            let text = refusal.to_string();
            assert!(
                text.contains("worker w1") && !text.contains("prog "),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_job_asked_for_is_told_in_its_own_words() {
        for (step, errno, interpreter, code, said) in [
            (
                Step::Exec,
                Errno::NOENT,
                Some("/no/py"),
                "interpreter_not_found",
                "interpreter /no/py",
            ),
            (
                Step::Exec,
                Errno::NOENT,
                None,
                "interpreter_not_found",
                "loader",
            ),
            (
                Step::Exec,
                Errno::NOENT,
                Some("/bin/sh\r"),
                "not_executable",
                "carriage return",
            ),
            (
                Step::Exec,
                Errno::TXTBSY,
                None,
                "not_executable",
                "open for writing",
            ),
            (
                Step::Exec,
                Errno::TOOBIG,
                None,
                "not_executable",
                "arguments",
            ),
            (
                Step::Exec,
                Errno::ACCESS,
                None,
                "not_executable",
                "ermission",
            ),
            (Step::Exec, Errno::LOOP, None, "not_executable", "links"),
            (Step::Folder, Errno::NOENT, None, "bad_cwd", "/srv"),
            (
                Step::User,
                Errno::PERM,
                None,
                "not_started",
                "become its user",
            ),
            (Step::Limits, Errno::PERM, None, "not_started", "limits"),
        ] {
            let refusal = refusal(step, errno, interpreter);
            assert_eq!(refusal.code(), code, "{errno}");
            let text = refusal.to_string();
            assert!(text.contains(said) && text.contains("w1"), "{text}");
        }
        let limits = Limits {
            memory: Some(1),
            ..Limits::default()
        };
        let refusal = limited(Step::Exec, Errno::NOMEM, None, limits);
        assert_eq!(refusal.code(), "not_started");
    }
}
