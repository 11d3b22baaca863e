//! `jobctl context`, and which context the other commands use.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::builder::NonEmptyStringValueParser;

use super::{BadSetting, Codes, DONE, FAILED, Reach, Shown, report_with, usage};
use crate::{
    client::{
        Server,
        contexts::{Context, Contexts, Error, FILE, Named},
        proof::{Proof, Who},
        render::{self, Whose},
    },
    ids::is_name,
};

const EXAMPLES: &str = "\
Examples:
  jobctl context add prod --server https://10.0.0.1:3000 --ca-file ca.pem \\
      --identity-file me.pem --use
  jobctl context list
  jobctl context use prod
  jobctl --context test jobs          for one command alone";

/// Choose and keep how clusters are reached
///
/// Kept in client.toml of the client's folder: --client-dir, or
/// JOBCTL_CLIENT_DIR, by default ~/.config/jobctl.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,

    /// Where the contexts are kept [env: JOBCTL_CLIENT_DIR] [default:
    /// ~/.config/jobctl]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    client_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    List(List),
    Use(Use),
    Show(Show),
    Add(Add),
    Remove(Remove),
}

/// List the contexts
#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    shown: Shown,
}

/// Make a context the current one
#[derive(Debug, clap::Args)]
struct Use {
    /// The context
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
}

/// Show one context in full
#[derive(Debug, clap::Args)]
struct Show {
    /// The context [default: the one that commands use]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,

    #[command(flatten)]
    shown: Shown,
}

/// Add a context
///
/// Never overwrites one. The files stay where they are. It becomes the current one
/// if there is none.
#[derive(Debug, clap::Args)]
struct Add {
    /// What to call it
    #[arg(value_parser = name)]
    name: String,

    /// The scheduler's HTTP API
    #[arg(long, value_name = "URL")]
    server: Server,

    /// What signs the scheduler's certificate, in PEM
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    ca_file: Option<PathBuf>,

    /// The client's certificate and key, in PEM; nobody else may read it
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "token_file",
        help_heading = "Credentials"
    )]
    identity_file: Option<PathBuf>,

    /// A bearer token; nobody else may read it
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    token_file: Option<PathBuf>,

    /// Make it the current one
    #[arg(long = "use")]
    use_it: bool,
}

/// Remove a context, with those of its files that lie in the client's folder
#[derive(Debug, clap::Args)]
struct Remove {
    /// The context
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) fn run(args: Args, before: &Reach) -> u8 {
    let flag = args.client_dir.or_else(|| before.client_dir.clone());
    let mut jobctl = "jobctl".to_owned();
    let outcome = run_in(args.action, flag, &mut jobctl);
    outcome.unwrap_or_else(|error| {
        let hint = hint(&error, &jobctl).or_else(|| super::hint(&error));
        report_with(&error, Codes::Jobctl, hint)
    })
}

fn run_in(action: Action, flag: Option<PathBuf>, jobctl: &mut String) -> anyhow::Result<u8> {
    if let Some(flag) = &flag {
        push_flag(jobctl, "--client-dir", &flag.to_string_lossy());
    }
    let folder = folder(flag, super::variable).ok_or_else(no_folder)?;
    match action {
        Action::List(args) => list(&args, &folder, jobctl),
        Action::Use(args) => use_it(&args.name, &folder),
        Action::Show(args) => show(args, &folder),
        Action::Add(args) => add(args, &folder, jobctl),
        Action::Remove(args) => remove(&args, &folder),
    }
}

/// What to type next; `jobctl` finds the same folder.
fn hint(error: &anyhow::Error, jobctl: &str) -> Option<String> {
    match error.downcast_ref()? {
        Error::NotFound { .. } => Some(format!("list the contexts with `{jobctl} context list`")),
        Error::NoneCurrent => Some(format!(
            "name one, or choose it with `{jobctl} context use NAME`"
        )),
        Error::Exists(name) => Some(format!(
            "pick another name, or remove it with `{jobctl} context remove {name}`"
        )),
        Error::Files(_)
        | Error::Identity { .. }
        | Error::Authorities(_)
        | Error::BadName(_)
        | Error::TwoCredentials(_)
        | Error::File(_)
        | Error::FileOfAnother { .. }
        | Error::Failed { .. }
        | Error::Toml(_) => None,
    }
}

fn list(args: &List, folder: &Path, jobctl: &str) -> anyhow::Result<u8> {
    let contexts = Contexts::load(folder).map_err(plain)?.all();
    render::contexts(&contexts, args.shown.format())?;
    if contexts.is_empty() {
        render::note(&format!(
            "no contexts; add one with `{jobctl} context add NAME --server URL`"
        ));
    }
    Ok(DONE)
}

fn show(args: Show, folder: &Path) -> anyhow::Result<u8> {
    let contexts = Contexts::load(folder).map_err(plain)?;
    let name = args.name.or_else(|| named_by(super::variable));
    let name = name.or_else(|| contexts.current().map(str::to_owned));
    let named = contexts.get(&name.ok_or(Error::NoneCurrent)?)?;
    // What is wrong with a file is no reason to hide how it is called.
    let who = Who::of(&named.context).unwrap_or_else(|error| {
        render::note(&error.to_string());
        None
    });
    render::context(&Whose { named, who }, args.shown.format())?;
    Ok(DONE)
}

fn use_it(name: &str, folder: &Path) -> anyhow::Result<u8> {
    Contexts::change(folder, |contexts| contexts.set_current(name)).map_err(plain)?;
    render::remark(&format!("{name} is the current context"));
    say_what_wins();
    Ok(DONE)
}

fn add(args: Add, folder: &Path, jobctl: &str) -> anyhow::Result<u8> {
    // Whoever uses it may be in another folder then.
    let whole = |file: Option<PathBuf>| file.map(std::path::absolute).transpose();
    let context = Context {
        server: args.server,
        ca_file: whole(args.ca_file)?,
        identity_file: whole(args.identity_file)?,
        token_file: whole(args.token_file)?,
    };
    Proof::of(&context)?;
    let name = &args.name;
    let is_current = Contexts::change(folder, |contexts| {
        contexts.add(name, context)?;
        if args.use_it || contexts.current().is_none() {
            contexts.set_current(name)?;
        }
        Ok(contexts.current() == Some(name))
    })
    .map_err(plain)?;
    if is_current {
        render::remark(&format!("context {name} is added, and the current one"));
        say_what_wins();
    } else {
        render::remark(&format!(
            "context {name} is added; use it with `{jobctl} context use {name}`"
        ));
    }
    Ok(DONE)
}

/// Of what is set in this shell and makes the current context idle.
fn say_what_wins() {
    for key in ["JOBCTL_CONTEXT", "JOBCTL_SERVER"] {
        if super::variable(key).is_some() {
            render::note(&format!("{key} is set, and wins over the current context"));
        }
    }
}

fn remove(args: &Remove, folder: &Path) -> anyhow::Result<u8> {
    let name = &args.name;
    let files = Contexts::load(folder).map_err(plain)?.files_of(name)?;
    if !args.yes {
        let what: String = files
            .iter()
            .map(|file| format!(" and {}", file.display()))
            .collect();
        let question = format!("remove the context {name}{what}?");
        match render::ask(&question).context("cannot ask")? {
            Some(true) => {}
            Some(false) => {
                render::note(&format!("context {name} is not removed"));
                return Ok(FAILED);
            }
            None => {
                return Err(usage(
                    "context remove",
                    "without a terminal, `--yes` is needed",
                ));
            }
        }
    }
    let was_current = Contexts::change(folder, |contexts| {
        let was_current = contexts.current() == Some(name);
        contexts.remove(name).map(|()| was_current)
    })
    .map_err(plain)?;
    render::remark(&format!("context {name} is removed"));
    if was_current {
        render::remark("no context is the current one");
    }
    Ok(DONE)
}

/// The one that a command uses: by flag, by variable, else the current one. As
/// `jobctl` the same contexts are found.
pub(super) fn chosen(
    reach: &Reach,
    jobctl: &str,
    variable: impl Fn(&str) -> Option<OsString>,
) -> anyhow::Result<Option<Named>> {
    let named = reach.context.clone().or_else(|| named_by(&variable));
    let Some(folder) = folder(reach.client_dir.clone(), &variable) else {
        return match named {
            Some(_) => Err(no_folder()),
            None => Ok(None),
        };
    };
    let contexts = Contexts::load(&folder).map_err(plain)?;
    let Some(name) = named.as_deref().or(contexts.current()) else {
        return Ok(None);
    };
    // Not the exit code of a job that is not there: nobody was asked about one.
    let bad = |error: Error| {
        anyhow!(BadSetting {
            message: error.to_string(),
            hint: match named {
                Some(_) => format!("list them with `{jobctl} context list`"),
                None => format!(
                    "{} says that it is the current one; choose another with \
                     `{jobctl} context use NAME`",
                    contexts.folder().join(FILE).display()
                ),
            },
        })
    };
    let chosen = contexts.get(name).map_err(bad)?;
    Ok(Some(chosen))
}

fn name(text: &str) -> Result<String, String> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("use 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit first".to_owned())
        }
    }
}

/// Where contexts are kept: by flag, by variable, else in the user's home.
pub(super) fn folder(
    flag: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    let absolute = |key| {
        variable(key)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let set = flag.or_else(|| variable("JOBCTL_CLIENT_DIR").map(PathBuf::from));
    set.or_else(|| {
        let home = || absolute("HOME").map(|home| home.join(".config"));
        let settings = absolute("XDG_CONFIG_HOME").or_else(home);
        settings.map(|settings| settings.join("jobctl"))
    })
}

fn named_by(variable: impl Fn(&str) -> Option<OsString>) -> Option<String> {
    variable("JOBCTL_CONTEXT").map(|name| name.to_string_lossy().into_owned())
}

pub(super) fn no_folder() -> anyhow::Error {
    BadSetting {
        message: "there is no home folder to keep contexts in".to_owned(),
        hint: "name a folder with `--client-dir DIR`".to_owned(),
    }
    .into()
}

/// The one that reaches this server, the current one before others; without it
/// the server is reached by nobody's credentials.
pub(super) fn reaching(
    server: &Server,
    reach: &Reach,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<Named> {
    let folder = folder(reach.client_dir.clone(), &variable)?;
    // A file that cannot be read is not in the way of who does not need it.
    let contexts = Contexts::load(&folder).map(|contexts| contexts.all());
    let mut reaching = contexts.unwrap_or_default();
    reaching.retain(|named| named.context.server == *server);
    let current = reaching.iter().position(|named| named.current).unwrap_or(0);
    (!reaching.is_empty()).then(|| reaching.swap_remove(current))
}

/// What is wrong with the file is said as of any file of settings.
pub(super) fn plain(error: Error) -> anyhow::Error {
    match error {
        Error::File(error) => error.into(),
        error => error.into(),
    }
}

/// Appends a flag as it has to be typed.
pub(super) fn push_flag(jobctl: &mut String, flag: &str, value: &str) {
    for word in [flag, &render::quoted(value)] {
        jobctl.push(' ');
        jobctl.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_one_that_was_set_last_of_all_in_the_home() {
        let folder = |flag: Option<&str>, set: &[(&str, &str)]| {
            let variable = |key: &str| {
                let found = set.iter().find(|(name, _)| *name == key);
                found.map(|(_, value)| OsString::from(value))
            };
            let folder = folder(flag.map(PathBuf::from), variable);
            folder.map(|folder| folder.display().to_string())
        };
        let all = [
            ("JOBCTL_CLIENT_DIR", "dir"),
            ("XDG_CONFIG_HOME", "/xdg"),
            ("HOME", "/home/me"),
        ];
        assert_eq!(folder(Some("flag"), &all).as_deref(), Some("flag"));
        assert_eq!(folder(None, &all).as_deref(), Some("dir"));
        assert_eq!(folder(None, &all[1..]).as_deref(), Some("/xdg/jobctl"));
        let home = Some("/home/me/.config/jobctl");
        assert_eq!(folder(None, &all[2..]).as_deref(), home);
        let relative = [("XDG_CONFIG_HOME", "xdg"), ("HOME", "/home/me")];
        assert_eq!(folder(None, &relative).as_deref(), home);
        assert_eq!(folder(None, &[]), None);
    }
}
