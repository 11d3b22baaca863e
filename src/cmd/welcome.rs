//! What whoever starts a scheduler gets: an admin's context in their own folder, kept
//! in order, and the line with which a worker joins.

use std::{
    convert::Infallible,
    iter,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::anyhow;
use uuid::Uuid;

use super::{context, login, role::Secured, variable};
use crate::{
    api::TokenKind,
    client::{
        Server,
        contexts::{Context, Contexts},
        proof::{self, Asked},
        render,
    },
    identity::{
        Identity, Role, ca,
        files::{self, Pem},
    },
    ids::is_name,
    roles::scheduler::{self, Issuer, Listeners},
};

/// How long the first tokens are good.
const LOGIN: Duration = Duration::from_secs(3600);

/// How long the token of a scheduler without TLS is.
const PLAIN_TOKEN: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often it is seen whether an admin's certificate is to be replaced.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Where a new cluster is found.
pub(super) struct Place {
    pub(super) server: Server,
    pub(super) grpc: String,
}

impl Place {
    /// `called` is the name that it was given.
    pub(super) fn of(
        listeners: &Listeners,
        secured: Secured,
        called: Option<&str>,
    ) -> anyhow::Result<Self> {
        let scheme = match secured {
            Secured::ByTls => "https",
            Secured::Not => "http",
        };
        let http = dialled_at(listeners.http.local_addr()?, called);
        let server = format!("{scheme}://{http}").parse();
        Ok(Self {
            server: server.map_err(|error: String| anyhow!(error))?,
            grpc: dialled_at(listeners.grpc.local_addr()?, called),
        })
    }
}

/// Without room for a token there are jobs to be shown and stopped all the same.
fn said(token: Result<String, scheduler::Error>) -> Option<String> {
    let why = |error: &scheduler::Error| {
        let source = std::error::Error::source(error);
        source.map_or_else(|| error.to_string(), ToString::to_string)
    };
    token
        .inspect_err(|error| {
            tracing::warn!(
                error = why(error),
                "no token was made: make one with `jobctl token create` when that is mended"
            );
        })
        .ok()
}

/// Who listens everywhere is called by the name it was given, or its machine's.
fn dialled_at(listens: SocketAddr, called: Option<&str>) -> String {
    if !listens.ip().is_unspecified() {
        return listens.to_string();
    }
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    format!("{}:{}", called.unwrap_or(&host), listens.port())
}

/// Sees to it that whoever starts a scheduler can use it, and says how workers
/// join.
pub(super) struct Welcome {
    pub(super) issuer: Issuer,
    /// Where the user's contexts are; None: nobody knows.
    pub(super) folder: Option<PathBuf>,
    pub(super) place: Place,
    /// The scheduler's own.
    pub(super) data_dir: PathBuf,
}

impl Welcome {
    pub(super) async fn say(&self) -> anyhow::Result<()> {
        if !self.issuer.has_authority() && self.place.server.is_secure() {
            return Ok(());
        }
        match &self.folder {
            Some(folder) => {
                match self.context(folder).await {
                    Ok(Some(name)) => {
                        render::remark(&format!("you are an admin here; the context is {name}"));
                    }
                    Ok(None) => {}
                    // Jobs go on without it.
                    Err(error) => tracing::warn!(
                        folder = %folder.display(),
                        "no context for an admin here: {error:#}"
                    ),
                }
            }
            None => {
                let role = Role::Admin;
                let token = self.issuer.token(TokenKind::Join, role, "", LOGIN).await;
                let Some(token) = said(token) else {
                    return Ok(());
                };
                let at = self.place.server.authority();
                // What is printed may be kept in the log of a service manager.
                let file = self.data_dir.join("admin.token");
                files::write(&file, format!("{token}@{at}\n").as_bytes())?;
                render::note(&format!(
                    "log in, within an hour, with `jobctl login - < {}`",
                    file.display()
                ));
            }
        }
        if self.issuer.has_authority() && !self.issuer.has_workers() {
            let token = self.issuer.token(TokenKind::Join, Role::Worker, "", LOGIN);
            if let Some(token) = said(token.await) {
                let at = &self.place.grpc;
                render::remark("a worker joins, within an hour, with:");
                render::data(&format!("jobctl worker --join {token}@{at}\n"))?;
            }
        }
        Ok(())
    }

    /// With which a worker joins, but for where to go.
    pub(super) async fn worker_token(&self) -> anyhow::Result<String> {
        let token = self.issuer.token(TokenKind::Join, Role::Worker, "", LOGIN);
        Ok(token.await?)
    }

    /// Adds a context for this cluster, or puts the one that is there in order.
    /// Returns its name if it is new.
    pub(super) async fn context(&self, folder: &Path) -> anyhow::Result<Option<String>> {
        let contexts = Contexts::load(folder).map_err(context::plain)?.all();
        let own = contexts
            .iter()
            .find(|named| self.is_of_cluster(&named.context));
        if let Some(named) = own {
            self.renew(&named.context).await?;
            return Ok(None);
        }
        let taken = |name: &String| contexts.iter().any(|named| named.name == *name);
        let numbered = (2..).map(|number| format!("local-{number}"));
        let mut free = iter::once("local".to_owned()).chain(numbered);
        let name = free.find(|name| !taken(name)).unwrap_or_default();
        let user = user();
        let is_current = if self.place.server.is_secure() {
            let asked = Asked::new()?;
            let id = Uuid::new_v4();
            let signed = self.issuer.admin(id, &user, asked.request()).await?;
            login::keep(
                folder,
                &name,
                &self.place.server,
                login::Taken::Refused,
                |identity, authorities| asked.keep(&signed, identity, authorities),
            )?
        } else {
            let role = Role::Admin;
            let kind = TokenKind::Bearer;
            let token = self.issuer.token(kind, role, &user, PLAIN_TOKEN).await?;
            login::keep_token(folder, &name, &self.place.server, &token)?
        };
        let current = contexts.iter().find(|named| named.current);
        if current.is_some_and(|current| current.context.server == self.place.server) {
            // What reached this very server is not of its cluster any more.
            Contexts::change(folder, |contexts| contexts.set_current(&name))
                .map_err(context::plain)?;
        } else if !is_current {
            render::note(&format!("use it with `jobctl context use {name}`"));
        }
        Ok(Some(name))
    }

    /// Whether a context is an admin's of this very cluster.
    fn is_of_cluster(&self, context: &Context) -> bool {
        match (&context.ca_file, &context.identity_file) {
            (Some(authorities), Some(identity)) => {
                let authorities = proof::certificates(authorities).unwrap_or_default();
                let mut known = authorities.iter().filter_map(ca::fingerprint);
                let admin = Pem::read_secret(identity).ok().flatten().and_then(|pem| {
                    let who = Identity::of(pem.certificates.first()?).ok()?;
                    Some(who.role == Role::Admin && !self.issuer.is_revoked(who.id))
                });
                known.any(|one| self.issuer.is_authority(one)) && admin == Some(true)
            }
            (None, None) => {
                let token = context
                    .token_file
                    .as_deref()
                    .and_then(|file| proof::token(file).ok());
                context.server == self.place.server
                    && token.is_some_and(|token| self.issuer.is_good(&token))
            }
            _ => false,
        }
    }

    /// Replaces the admin's certificate once half of its life, or all of it, is
    /// over, or it is of another authority than today's: whoever has the
    /// scheduler's folder could make one anyway.
    async fn renew(&self, context: &Context) -> anyhow::Result<()> {
        let (Some(authorities), Some(identity)) = (&context.ca_file, &context.identity_file) else {
            return Ok(());
        };
        let pem = Pem::read_secret(identity)?.unwrap_or_default();
        let Some(own) = pem.certificates.first() else {
            return Ok(());
        };
        let half = ca::half_life(own);
        let today = self.issuer.authorities();
        let is_of_today = proof::is_signed_by(own, &today);
        let is_known = proof::certificates(authorities)? == today;
        if is_of_today && is_known && half.is_some_and(|half| half > SystemTime::now()) {
            return Ok(());
        }
        let who = Identity::of(own)?;
        let asked = Asked::new()?;
        let signed = self
            .issuer
            .admin(who.id, &who.name, asked.request())
            .await?;
        asked.keep(&signed, identity, authorities)?;
        tracing::info!(file = %identity.display(), "admin's certificate replaced");
        Ok(())
    }

    /// Does that as long as the scheduler runs.
    pub(super) async fn keep_current(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let Some(folder) = &self.folder else {
                continue;
            };
            let own = Contexts::load(folder).map(|contexts| contexts.all());
            let own = own.unwrap_or_default().into_iter();
            for named in own.filter(|named| self.is_of_cluster(&named.context)) {
                if let Err(error) = self.renew(&named.context).await {
                    tracing::warn!(%error, "an admin's certificate is not replaced");
                }
            }
        }
    }
}

/// Who starts the scheduler.
fn user() -> String {
    let set = variable("USER").or_else(|| variable("LOGNAME"));
    let name = set.map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| is_name(name))
        .unwrap_or_else(|| "admin".to_owned())
}
