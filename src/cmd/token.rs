//! `jobctl token`: what lets people, programs and workers in.

use std::{
    fs::{self, OpenOptions},
    io::{IsTerminal as _, Write as _, stdout},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use super::{
    Asking, Caller, Codes, DONE, Document, Effect, Reach, Shown, Unmatched, listed, usage,
    whole_milliseconds,
};
use crate::{
    api::{CreateTokenRequest, CreateTokenResponse, RevokeTokenRequest, Token, TokenKind},
    client::{Server, render},
    config,
    identity::Role,
};

const EXAMPLES: &str = "\
Examples:
  jobctl token create --role worker
  jobctl token create --role operator --name alice --ttl 1d
  jobctl token create --role operator --name ci --bearer --ttl 90d --out ci.token
  jobctl token list
  jobctl token revoke aaaabbbb";

/// Make, list and revoke the tokens with which others are let in
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Create(Asking<Create>),
    List(Asking<List>),
    Revoke(Asking<Revoke>),
}

impl Args {
    pub(super) fn reach(&self) -> &Reach {
        match &self.action {
            Action::Create(Asking { reach, .. })
            | Action::List(Asking { reach, .. })
            | Action::Revoke(Asking { reach, .. }) => reach,
        }
    }

    pub(super) fn effect(&self) -> Effect {
        match self.action {
            Action::List(_) => Effect::Reads,
            Action::Create(_) | Action::Revoke(_) => Effect::ChangesAccess,
        }
    }
}

/// Make a token, and print what is to be passed on
///
/// A join token is good once: on the other machine, `jobctl login` or
/// `jobctl worker --join` make a certificate of it. A bearer token is for
/// programs, which show it with every call; the scheduler keeps only its hash.
#[derive(Debug, clap::Args)]
struct Create {
    /// What its bearer becomes: viewer, operator, admin or worker
    #[arg(long, hide_possible_values = true, value_parser = role())]
    role: Role,

    /// How long it is good [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = config::interval)]
    ttl: Option<Duration>,

    /// What to call its bearer
    ///
    /// A worker that joins under the name of one that is known is that worker
    /// again.
    #[arg(long, value_parser = super::name)]
    name: Option<String>,

    /// A token for programs: `Authorization: Bearer`, or `--token-file`
    #[arg(long)]
    bearer: bool,

    /// Write it to a file that is not there yet, for its owner alone
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "output",
        help_heading = "Output"
    )]
    out: Option<PathBuf>,

    /// How to show it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        hide_possible_values = true,
        help = "How to show it: json, jsonl or yaml [default: the token alone]",
        help_heading = "Output"
    )]
    output: Option<Document>,
}

fn role() -> impl clap::builder::TypedValueParser<Value = Role> {
    let roles = [Role::Viewer, Role::Operator, Role::Admin, Role::Worker];
    PossibleValuesParser::new(roles.map(Role::as_str)).try_map(|role| role.parse::<Role>())
}

/// List the tokens, the newest first
#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    shown: Shown,
}

/// Revoke tokens: from now on they are not taken
///
/// A certificate that a token has bought stays good: `jobctl cert revoke`.
#[derive(Debug, clap::Args)]
struct Revoke {
    /// Tokens, each by id or a prefix of at least 4 characters; `-` reads them
    /// from stdin
    #[arg(
        required = true,
        value_name = "ID",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    ids: Vec<String>,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    match args.action {
        Action::Create(Asking { args, .. }) => create(args, caller).await,
        Action::List(Asking { args, .. }) => list(&args, caller).await,
        Action::Revoke(Asking { args, .. }) => revoke(args, caller).await,
    }
}

/// The answer, and what is to be passed on.
#[derive(serde::Serialize)]
struct Made {
    #[serde(flatten)]
    answer: CreateTokenResponse,
    /// As `jobctl login` and `jobctl worker --join` take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    invitation: Option<String>,
}

async fn create(args: Create, caller: &Caller) -> anyhow::Result<u8> {
    let kind = match args.bearer {
        true => TokenKind::Bearer,
        false => TokenKind::Join,
    };
    if args.bearer && args.role == Role::Worker {
        let message = "a worker joins with a token that is good once: leave out `--bearer`";
        return Err(usage("token create", message));
    }
    let request = CreateTokenRequest {
        kind,
        role: args.role,
        name: args.name,
        ttl_ms: args.ttl.map(whole_milliseconds),
    };
    // Before there is a secret that could not be kept.
    let file = args.out.as_deref().map(NewFile::create).transpose()?;
    let answer = caller
        .patiently(caller.client.create_token(&request))
        .await?;
    let address = match (kind, args.role) {
        (TokenKind::Bearer, _) => None,
        (TokenKind::Join, Role::Worker) => Some(workers_join_at(
            caller.client.server(),
            &answer.grpc_address,
        )),
        (TokenKind::Join, _) => Some(caller.client.server().authority().to_owned()),
    };
    let invitation = address.map(|address| format!("{}@{address}", answer.token));
    let passed_on = invitation.as_ref().unwrap_or(&answer.token).clone();
    let expires_at = answer.about.expires_at;
    let mut shown = match stdout().is_terminal() && file.is_none() && args.output.is_none() {
        true => passed_on.clone(),
        // Not on a screen that does not show it anyway.
        false => "TOKEN".to_owned(),
    };
    if let Some(mut file) = file {
        file.keep(&passed_on)?;
        shown = match kind {
            TokenKind::Join if args.role != Role::Worker => {
                format!("- < {}", render::quoted(&file.path.to_string_lossy()))
            }
            TokenKind::Join | TokenKind::Bearer => shown,
        };
        render::remark(&format!("the token is in {}", file.path.display()));
    } else {
        match args.output {
            Some(format) => render::value(&Made { answer, invitation }, format.into())?,
            None => render::data(&format!("{passed_on}\n"))?,
        }
    }
    let until = format!("until {expires_at:.0}");
    render::remark(&match (kind, args.role) {
        (TokenKind::Join, Role::Worker) => {
            format!("once, {until}, on the machine of the worker: `jobctl worker --join {shown}`")
        }
        (TokenKind::Join, _) => format!("once, {until}, where they are: `jobctl login {shown}`"),
        (TokenKind::Bearer, _) => {
            format!("{until}: `Authorization: Bearer`, or `jobctl --token-file FILE`")
        }
    });
    Ok(DONE)
}

/// A file of a secret; it goes again unless the secret is kept in it.
struct NewFile<'a> {
    path: &'a Path,
    file: fs::File,
    is_kept: bool,
}

impl<'a> NewFile<'a> {
    fn create(path: &'a Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path,
            file,
            is_kept: false,
        })
    }

    fn keep(&mut self, secret: &str) -> anyhow::Result<()> {
        let file = &mut self.file;
        let written = writeln!(file, "{secret}").and_then(|()| file.sync_all());
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            // It is empty, and what went wrong is said elsewhere.
            let _ = fs::remove_file(self.path);
        }
    }
}

fn workers_join_at(server: &Server, grpc: &str) -> String {
    let Ok(address) = grpc.parse::<SocketAddr>() else {
        return grpc.to_owned();
    };
    let ip = address.ip();
    if !ip.is_unspecified() && !ip.is_loopback() {
        return grpc.to_owned();
    }
    if ip.is_loopback() && !server.is_loopback() {
        render::note(&format!(
            "the scheduler hears workers of its own machine only: {grpc}"
        ));
    }
    format!("{}:{}", server.host(), address.port())
}

async fn list(args: &List, caller: &Caller) -> anyhow::Result<u8> {
    let tokens = caller.patiently(caller.client.tokens()).await?.tokens;
    render::tokens(&tokens, args.shown.format())?;
    if tokens.is_empty() {
        render::note(&format!(
            "no tokens; make one with `{} token create --role ROLE`",
            caller.jobctl
        ));
    }
    Ok(DONE)
}

async fn revoke(args: Revoke, caller: &Caller) -> anyhow::Result<u8> {
    let ids = listed(args.ids, "tokens")?;
    let tokens = caller.patiently(caller.client.tokens()).await?.tokens;
    let mut highest = DONE;
    for asked in ids {
        let revoked = async {
            let token = found(&tokens, &asked)?;
            let request = RevokeTokenRequest { id: token.id };
            caller.client.revoke_token(&request).await?;
            anyhow::Ok(token)
        };
        match caller.patiently(revoked).await {
            Ok(token) if token.revoked_at.is_some() => {
                render::note(&format!("token {} is revoked already", token.id));
            }
            Ok(token) => render::remark(&format!("token {} is revoked", token.id)),
            Err(error) => highest = highest.max(caller.report(&error, Codes::Jobctl)),
        }
    }
    Ok(highest)
}

/// The token that is meant.
fn found<'a>(tokens: &'a [Token], asked: &str) -> Result<&'a Token, Unmatched> {
    let prefix = asked.to_ascii_lowercase();
    let matching = tokens.iter().filter(|token| {
        let id = token.id.to_string();
        id == prefix || (prefix.len() >= super::PREFIX && id.starts_with(&prefix))
    });
    let label = |token: &&Token| match token.name.as_str() {
        "" => format!("{} ({})", token.id, token.role),
        name => format!("{} ({} {name})", token.id, token.role),
    };
    Unmatched::unless_one("token", asked, matching.collect(), label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_join_where_they_can_reach_the_scheduler() {
        for (server, grpc, address) in [
            ("https://10.0.0.1:3000", "10.0.0.2:50000", "10.0.0.2:50000"),
            (
                "https://jobs.example",
                "0.0.0.0:50000",
                "jobs.example:50000",
            ),
            (
                "https://[2001:db8::1]:3000",
                "[::]:50000",
                "[2001:db8::1]:50000",
            ),
            (
                "https://127.0.0.1:3000",
                "127.0.0.1:50000",
                "127.0.0.1:50000",
            ),
        ] {
            let server = server.parse().unwrap();
            assert_eq!(workers_join_at(&server, grpc), address);
        }
    }

    #[test]
    fn a_token_is_found_by_a_prefix_that_only_it_has() {
        let token = |id: &str| Token {
            id: id.parse().unwrap(),
            kind: TokenKind::Join,
            role: Role::Worker,
            name: String::new(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            expires_at: jiff::Timestamp::UNIX_EPOCH,
            used_at: None,
            revoked_at: None,
        };
        let tokens = [token("aaaabbbb"), token("aaaacccc")];
        let id = |asked: &str| found(&tokens, asked).map(|token| token.id.to_string());
        assert_eq!(id("aaaabbbb").unwrap(), "aaaabbbb");
        assert_eq!(id("AAAAB").unwrap(), "aaaabbbb");
        assert!(matches!(id("aaa"), Err(Unmatched::NotFound { .. })));
        assert!(matches!(id("zzzz"), Err(Unmatched::NotFound { .. })));
        assert_eq!(
            id("aaaa").unwrap_err().to_string(),
            "token aaaa is ambiguous: aaaabbbb (worker), aaaacccc (worker)"
        );
    }
}
