//! What a job of this worker may be, as its operator decided it. What only holds
//! between fork and exec is the business of the shim.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::{error::Refusal, limits::Limits, scripts};

/// Variables that have a program run something else, look for it elsewhere, or
/// load code into it. Every program has its own; these are those of the dynamic
/// linker, of shells, and of the interpreters and tools met most often.
const TREACHEROUS: [&str; 33] = [
    "BASHOPTS",
    "BASH_ENV",
    "CDPATH",
    "CLASSPATH",
    "EDITOR",
    "ENV",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "HOME",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LESSCLOSE",
    "LESSOPEN",
    "LOCPATH",
    "MANPAGER",
    "NLSPATH",
    "OPENSSL_CONF",
    "PAGER",
    "PATH",
    "PROMPT_COMMAND",
    "PS4",
    "RSYNC_RSH",
    "SHELL",
    "SHELLOPTS",
    "SSH_ASKPASS",
    "TAR_OPTIONS",
    "VISUAL",
    "WGETRC",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "ZDOTDIR",
    "_JAVA_OPTIONS",
];

/// The same of whole families.
const TREACHEROUS_STARTS: [&str; 14] = [
    "BASH_FUNC_",
    "DYLD_",
    "GIT_",
    "LD_",
    "LUA_",
    "MALLOC_",
    "NODE_",
    "NPM_",
    "PERL",
    "PHP",
    "PYTHON",
    "RUBY",
    "SSH_",
    "TCL",
];

/// What jobs may be and do. The default allows whatever the worker may do
/// itself, but no more than that.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// What may be executed.
    pub allow_commands: Commands,
    /// Whom jobs run as; `None`: as the worker.
    pub user: Option<String>,
    /// Whom else a start may ask for. Names, which are looked up when the worker
    /// starts; root is among them only if it is named.
    pub allow_users: Vec<String>,
    /// Programs like sudo, and files with capabilities, give a job the rights that
    /// the worker does not have. Without this they do not.
    pub allow_new_privileges: bool,
    /// How much each job may use.
    pub limits: Limits,
    /// How readily the kernel ends a job where memory is short, from -1000 to 1000
    /// (proc_pid_oom_score_adj(5)).
    pub oom_score_adj: i32,
}

/// What may be executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Commands {
    /// Anything.
    #[default]
    All,
    /// Scripts of the script folder, by their own `#!` line.
    Scripts,
    /// These programs, by path or by a name that is looked up in the worker's
    /// `PATH` when it starts; and scripts as above.
    Programs(Vec<String>),
}

/// [`Commands`], looked up.
#[derive(Clone, Debug)]
pub(super) enum Allowed {
    All,
    Scripts,
    Programs(Vec<Program>),
}

/// A program that is allowed.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// As the operator wrote it.
    asked: String,
    /// The last part of it. Programs like busybox are many under one path and go by
    /// the name they are called.
    name: String,
    /// Where it is, without links.
    path: PathBuf,
}

impl Allowed {
    /// Looks the programs up, along `path` where they have no slash.
    pub(super) fn find(commands: &Commands, path: &str) -> Result<Self, (String, io::Error)> {
        let programs = match commands {
            Commands::All => return Ok(Self::All),
            Commands::Scripts => return Ok(Self::Scripts),
            Commands::Programs(programs) => programs,
        };
        let find = |asked: &String| {
            let found = match asked.contains('/') {
                true if !asked.starts_with('/') => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a path must be absolute",
                )),
                _ => scripts::lookup(asked, path, Path::new("/")),
            };
            let found = found.and_then(|found| Ok((last_part(asked)?, found.canonicalize()?)));
            match found {
                Ok((name, path)) => Ok(Program {
                    asked: asked.clone(),
                    name,
                    path,
                }),
                Err(error) => Err((asked.clone(), error)),
            }
        };
        programs
            .iter()
            .map(find)
            .collect::<Result<_, _>>()
            .map(Self::Programs)
    }

    /// The file to execute for `program`, which was found at `found`. It is the one
    /// that is allowed, not whatever bears its name by then.
    pub(super) fn check(
        &self,
        program: &str,
        found: PathBuf,
        worker: &str,
    ) -> Result<PathBuf, Refusal> {
        let programs = match self {
            Self::All => return Ok(found),
            Self::Scripts => &[][..],
            Self::Programs(programs) => programs,
        };
        let name = last_part(program).ok();
        let path = found.canonicalize().ok();
        let allowed = programs.iter().find(|allowed| {
            name.as_ref() == Some(&allowed.name) && path.as_ref() == Some(&allowed.path)
        });
        match allowed {
            Some(allowed) => Ok(allowed.path.clone()),
            None => Err(self.refusal(program, worker)),
        }
    }

    /// Refuses a command before it is looked for, so that nobody learns which
    /// programs there are.
    pub(super) fn check_name(&self, program: &str, worker: &str) -> Result<(), Refusal> {
        let known = match self {
            Self::All => true,
            Self::Scripts => false,
            Self::Programs(programs) => last_part(program)
                .is_ok_and(|name| programs.iter().any(|allowed| allowed.name == name)),
        };
        match known {
            true => Ok(()),
            false => Err(self.refusal(program, worker)),
        }
    }

    /// Refuses variables that would make something else of what is allowed.
    pub(super) fn check_variables<'a>(
        &self,
        mut names: impl Iterator<Item = &'a String>,
        worker: &str,
    ) -> Result<(), Refusal> {
        if matches!(self, Self::All) {
            return Ok(());
        }
        let is_treacherous = |name: &&String| {
            TREACHEROUS.contains(&name.as_str())
                || TREACHEROUS_STARTS
                    .iter()
                    .any(|start| name.starts_with(start))
        };
        match names.find(is_treacherous) {
            None => Ok(()),
            Some(name) => Err(Refusal::VariableNotAllowed {
                variable: name.clone(),
                worker: worker.to_owned(),
            }),
        }
    }

    fn refusal(&self, program: &str, worker: &str) -> Refusal {
        Refusal::CommandNotAllowed {
            program: program.to_owned(),
            worker: worker.to_owned(),
            allowed: self.to_string(),
        }
    }
}

/// What is allowed, for an error and for the log.
impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all programs"),
            Self::Scripts => f.write_str("scripts of its script folder"),
            Self::Programs(programs) => {
                let names: Vec<_> = programs.iter().map(|program| &*program.asked).collect();
                write!(f, "{}, scripts of its script folder", names.join(", "))
            }
        }
    }
}

fn last_part(program: &str) -> io::Result<String> {
    match program.rsplit('/').next() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
