//! `jobctl login`: a token buys a certificate, and becomes a context.

use std::{
    io::Read as _,
    path::{self, Path, PathBuf},
};

use anyhow::{Context as _, anyhow};

use super::{
    BadSetting, Codes, DONE, Reach, SET_THE_CLOCK, context, hint, hint_of_refusal, report_with,
};
use crate::{
    client::{
        Client, Error, Server,
        contexts::{self, Context, Contexts},
        proof::{Asked, Proof},
        render,
    },
    identity::{files, token::Invitation},
    ids::is_name,
};

/// What is read of a token.
const MAX_TOKEN: u64 = 4096;

const EXAMPLES: &str = "\
Examples:
  jobctl login TOKEN@10.0.0.1:3000
  jobctl login --name prod - < token        it is a secret: keep it off the screen
  an admin makes one: jobctl token create --role operator --name alice";

/// Join a cluster as a user, with a token an admin made
///
/// The token buys a certificate, once. It is kept as a context, with which the
/// other commands reach the cluster.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    /// What the admin was given, as TOKEN@HOST:PORT; `-` reads it from standard
    /// input
    token: String,

    /// What to call the context [default: the scheduler's host]
    #[arg(long, value_parser = super::name)]
    name: Option<String>,

    /// Where there is a context of that name, give up its credentials for the new
    /// ones
    #[arg(long)]
    replace: bool,

    /// Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default:
    /// ~/.config/jobctl]
    #[arg(long, value_name = "DIR", help_heading = "Global options")]
    client_dir: Option<PathBuf>,
}

pub(super) async fn run(args: Args, before: &Reach) -> anyhow::Result<u8> {
    let outcome = join(args, before).await;
    Ok(outcome.unwrap_or_else(|error| {
        let hint = match error.downcast_ref() {
            Some(contexts::Error::Exists(_)) => Some(
                "if its credentials are worth nothing any more, have new ones in their place with \
                 `--replace`; else give this one another name: `--name NAME`"
                    .to_owned(),
            ),
            _ => refusal(&error).or_else(|| hint(&error)),
        };
        report_with(&error, Codes::Jobctl, hint)
    }))
}

async fn join(args: Args, before: &Reach) -> anyhow::Result<u8> {
    let text = match args.token.as_str() {
        "-" => read_token()?,
        token => token.to_owned(),
    };
    let invitation: Invitation = text.parse().map_err(|_| BadSetting {
        message: "the token is not TOKEN@HOST:PORT".to_owned(),
        hint: "copy the whole of it, as `jobctl token create` printed it".to_owned(),
    })?;
    let server: Server = format!("https://{}", invitation.address)
        .parse()
        .map_err(|error: String| anyhow!(error))?;
    let flag = args.client_dir.or_else(|| before.client_dir.clone());
    let folder = context::folder(flag, super::variable).ok_or_else(context::no_folder)?;
    let name = args.name.unwrap_or_else(|| name_of(&server));
    let made = made(&folder, &name, &server)?;
    // Before the token is spent.
    let known = Contexts::load(&folder).map_err(context::plain)?;
    if !args.replace && known.get(&name).is_ok() {
        return Err(contexts::Error::Exists(name).into());
    }
    known.may_write(&name, &made)?;
    let client = Client::new(server.clone(), &Proof::joining(invitation.authority))?;
    let asked = Asked::new()?;
    let signed = render::patiently(
        &format!("joining at {server}"),
        client.join(&asked.join(&invitation)),
    )
    .await?;
    let taken = match args.replace {
        true => Taken::Replaced,
        false => Taken::Refused,
    };
    let is_current = keep(&folder, &name, &server, taken, |identity, authorities| {
        asked.keep(&signed, identity, authorities)
    })?;
    let who = match signed.name.as_str() {
        "" => String::new(),
        name => format!(" {name}"),
    };
    render::remark(&format!(
        "logged in as {}{who}; the context is {name}",
        signed.role
    ));
    if !is_current {
        render::note(&format!("use it with `jobctl context use {name}`"));
    }
    Ok(DONE)
}

/// What to do about a token that is not taken.
fn refusal(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref()? {
        Error::Refused { error, .. } => hint_of_refusal(&error.code),
        Error::ClocksDiffer { .. } => Some(SET_THE_CLOCK.to_owned()),
        Error::Untrusted { .. } => Some(
            "the token is of another cluster, or something stands between: compare it with what \
             `jobctl token create` printed"
                .to_owned(),
        ),
        Error::Unreachable { .. } => {
            Some("have an admin say under which address you reach it: TOKEN@HOST:PORT".to_owned())
        }
        Error::Interrupted { .. } | Error::Unreadable { .. } => Some(
            "if workers join at that address, people do not: log in at the scheduler's HTTP \
             address, as TOKEN@HOST:3000"
                .to_owned(),
        ),
        Error::NotAccepted { .. }
        | Error::OtherScheme { .. }
        | Error::Proof(_)
        | Error::PlainToken(_) => None,
    }
}

pub(super) fn read_token() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text);
    read.context("cannot read the token from standard input")?;
    Ok(text)
}

/// What becomes of a context that bears the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It stays, and nothing is kept.
    Refused,
    /// It goes.
    Replaced,
}

/// A context that shows a certificate, with its files in the folder of contexts.
fn made(folder: &Path, name: &str, server: &Server) -> anyhow::Result<Context> {
    let folder = path::absolute(folder)?;
    Ok(Context {
        server: server.clone(),
        ca_file: Some(folder.join(format!("{name}.ca.pem"))),
        identity_file: Some(folder.join(format!("{name}.pem"))),
        token_file: None,
    })
}

/// Adds a context whose files `write` writes. It becomes the current one if there
/// is none; returns whether it is.
pub(super) fn keep(
    folder: &Path,
    name: &str,
    server: &Server,
    taken: Taken,
    write: impl FnOnce(&Path, &Path) -> Result<(), contexts::Error>,
) -> anyhow::Result<bool> {
    let context = made(folder, name, server)?;
    let files = (context.identity_file.clone(), context.ca_file.clone());
    add(folder, name, context, taken, || match files {
        (Some(identity), Some(authorities)) => write(&identity, &authorities),
        _ => Ok(()),
    })
}

/// As [`keep`], for a bearer token.
pub(super) fn keep_token(
    folder: &Path,
    name: &str,
    server: &Server,
    token: &str,
) -> anyhow::Result<bool> {
    let folder = &path::absolute(folder)?;
    let token_file = folder.join(format!("{name}.token"));
    let context = Context {
        server: server.clone(),
        ca_file: None,
        identity_file: None,
        token_file: Some(token_file.clone()),
    };
    add(folder, name, context, Taken::Refused, || {
        Ok(files::write(&token_file, format!("{token}\n").as_bytes())?)
    })
}

fn add(
    folder: &Path,
    name: &str,
    context: Context,
    taken: Taken,
    write: impl FnOnce() -> Result<(), contexts::Error>,
) -> anyhow::Result<bool> {
    let added = Contexts::change(folder, |contexts| {
        contexts.may_write(name, &context)?;
        match taken {
            Taken::Replaced if contexts.get(name).is_ok() => contexts.replace(name, context)?,
            Taken::Replaced | Taken::Refused => contexts.add(name, context)?,
        }
        write()?;
        if contexts.current().is_none() {
            contexts.set_current(name)?;
        }
        Ok(contexts.current() == Some(name))
    });
    added.map_err(context::plain)
}

/// The nearest thing to a host that a context can be called.
fn name_of(server: &Server) -> String {
    let sane = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') => c,
        _ => '-',
    };
    let host = server.host().trim_matches(['[', ']']);
    let name: String = host.chars().map(sane).collect();
    match is_name(&name) {
        true => name,
        false => "cluster".to_owned(),
    }
}
