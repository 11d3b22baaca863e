//! Who makes a call, until when they are accepted, and who is cut off.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    super::{error::Error, store::AuditEntry},
    Access, Known,
};
use crate::{
    api::TokenKind,
    identity::{
        Role, clock,
        rules::{self, Callers, Rule, Verdict},
        token::{Bearer, TokenId},
    },
    ids::{WorkerId, is_name},
    net::accept::{Connection, Cuts},
};

/// Somebody, as far as they can be told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum Subject {
    /// Of a certificate.
    Certificate(Uuid),
    /// Of a bearer token.
    Token(TokenId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(id) => id.fmt(f),
            Self::Token(id) => write!(f, "token {id}"),
        }
    }
}

/// Who makes a call; an extension of every request that was let through.
#[derive(Clone, Debug)]
pub(in super::super) struct Caller {
    /// None: nobody knows.
    pub(in super::super) role: Option<Role>,
    pub(super) subject: Option<Subject>,
    pub(super) name: String,
    pub(super) address: Option<SocketAddr>,
    /// Cancelled when they are no longer accepted.
    pub(in super::super) cut: CancellationToken,
    /// When what they showed ends.
    pub(in super::super) expires_at: Option<Timestamp>,
}

impl Caller {
    /// Of whom nothing is known but where they are.
    pub(in super::super) fn nobody(address: Option<SocketAddr>) -> Self {
        Self {
            role: None,
            subject: None,
            name: String::new(),
            address,
            cut: CancellationToken::new(),
            expires_at: None,
        }
    }

    /// Whether the table lets them make this call.
    pub(in super::super) fn may(&self, rules: &[Rule], call: &str) -> Result<(), Error> {
        match rules::judge(rules, call, self.role) {
            Verdict::Allowed => Ok(()),
            Verdict::Unidentified => Err(Error::Unidentified),
            Verdict::Forbidden => {
                let rule = rules.iter().find(|rule| rule.call == call);
                Err(Error::Forbidden {
                    who: self.to_string(),
                    call: call.to_owned(),
                    takes: match rule.map(|rule| rule.callers) {
                        Some(Callers::Roles(roles)) => roles.to_vec(),
                        Some(Callers::Anyone) | None => Vec::new(),
                    },
                })
            }
        }
    }

    /// The scheduler itself.
    pub(in super::super) fn itself() -> Self {
        Self {
            role: Some(Role::Scheduler),
            ..Self::nobody(None)
        }
    }

    /// The worker this is; None where there is no TLS, and nobody can tell.
    pub(in super::super) fn worker(&self) -> Option<WorkerId> {
        match (self.role, self.subject) {
            (Some(Role::Worker), Some(Subject::Certificate(id))) => Some(id.into()),
            _ => None,
        }
    }

    /// What a worker is called: as its certificate says. One that has no name in it,
    /// or none that a worker can bear, leaves it open.
    pub(in super::super) fn called(&self, asked: String) -> Result<String, Error> {
        if self.worker().is_none() || !is_name(&self.name) || self.name == asked {
            return Ok(asked);
        }
        let called = self.name.clone();
        match asked.is_empty() {
            true => Ok(called),
            false => Err(Error::NotItsName { called, asked }),
        }
    }

    /// A line of the audit log: what they did to what, and what came of it.
    pub(in super::super) fn did(
        &self,
        action: &str,
        target: impl fmt::Display,
        details: Value,
    ) -> AuditEntry {
        AuditEntry {
            at: Timestamp::now(),
            who: self.to_string(),
            who_id: self.subject.map(|subject| subject.to_string()),
            address: self.address.map(|address| address.to_string()),
            action: action.to_owned(),
            target: target.to_string(),
            details,
            result: "ok".to_owned(),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.role, self.name.as_str()) {
            (None, _) => f.write_str("nobody"),
            (Some(role), "") => role.fmt(f),
            (Some(role), name) => write!(f, "{role} {name}"),
        }
    }
}

impl Access {
    /// Tells when the connections of somebody are to be cut.
    pub(in super::super) fn cuts(&self) -> Cuts {
        let access = self.clone();
        Arc::new(move |identity| access.known().cut_of(Subject::Certificate(identity.id)))
    }

    /// Makes of a caller of whom nothing is known whoever is there. `bearer` is what
    /// the request says of a token.
    ///
    /// # Errors
    ///
    /// If they are not accepted. The caller is who they are all the same, where that
    /// can be told: whoever was revoked is refused by name.
    pub(in super::super) fn identify(
        &self,
        caller: &mut Caller,
        connection: Option<&Connection>,
        bearer: Option<&str>,
    ) -> Result<(), Error> {
        match bearer {
            Some(text) => self.bearer(caller, text),
            None => self.certified(caller, connection),
        }
    }

    /// As [`Access::identify`] where workers call as well: without TLS nobody can
    /// tell who they are, and whoever is on this machine and shows no token passes
    /// for one.
    pub(in super::super) fn identify_rpc(
        &self,
        caller: &mut Caller,
        connection: Option<&Connection>,
        bearer: Option<&str>,
    ) -> Result<(), Error> {
        self.identify(caller, connection, bearer)?;
        if self.0.plain {
            caller.role = caller.role.or(Some(Role::Worker));
        }
        Ok(())
    }

    fn bearer(&self, caller: &mut Caller, text: &str) -> Result<(), Error> {
        let shown: Bearer = text.parse().map_err(|_| Error::BadToken)?;
        // One look at both: nobody is let in by what was revoked in between, and
        // nothing is kept of tokens that never were.
        let mut known = self.known();
        let token = known.shown_token(&shown)?;
        token.is_of(TokenKind::Bearer)?;
        caller.role = Some(token.role);
        caller.subject = Some(Subject::Token(token.id));
        caller.name = token.name.clone();
        caller.expires_at = Some(token.expires_at);
        token.is_good(Timestamp::now())?;
        let id = token.id;
        caller.cut = known.cut_of(Subject::Token(id));
        Ok(())
    }

    fn certified(&self, caller: &mut Caller, connection: Option<&Connection>) -> Result<(), Error> {
        let identity = connection.and_then(|connection| connection.identity.as_ref());
        let Some(identity) = identity else {
            return Ok(());
        };
        let subject = Subject::Certificate(identity.id);
        let expires_at = connection.and_then(|connection| connection.expires_at);
        caller.role = Some(identity.role);
        caller.subject = Some(subject);
        caller.name.clone_from(&identity.name);
        caller.expires_at =
            expires_at.map(|end| Timestamp::try_from(end).unwrap_or(Timestamp::MAX));
        {
            let mut known = self.known();
            known.unless_revoked(identity.id)?;
            caller.cut = known.cut_of(subject);
        }
        match self.ends(caller) {
            Some(end) if end <= now() => Err(Error::CertificateExpired(end)),
            Some(_) | None => Ok(()),
        }
    }

    /// Until when a caller is accepted; None: for ever. Who has renewed a
    /// certificate is accepted as long as with the new one.
    fn ends(&self, caller: &Caller) -> Option<Timestamp> {
        let shown = caller.expires_at?;
        let renewed = match caller.subject {
            Some(Subject::Certificate(id)) => {
                let known = self.known();
                let newest = known.certificates.get(&id);
                newest.map(|certificate| certificate.expires_at)
            }
            Some(Subject::Token(_)) | None => None,
        };
        Some(renewed.map_or(shown, |renewed| renewed.max(shown)))
    }

    /// Why a caller was cut off.
    pub(in super::super) fn why_cut(&self, caller: &Caller) -> Error {
        let known = self.known();
        let revoked = match caller.subject {
            Some(Subject::Certificate(id)) => known.unless_revoked(id).err(),
            Some(Subject::Token(id)) => {
                let token = known.tokens.get(&id);
                let at = token.and_then(|token| token.revoked_at);
                let what = "token";
                at.map(|at| Error::Revoked { what, at })
            }
            None => None,
        };
        revoked.unwrap_or(Error::AuthorityOver)
    }

    /// Whether what a caller has shown has ended since.
    pub(in super::super) fn has_expired(&self, caller: &Caller) -> bool {
        self.ends(caller).is_some_and(|end| end <= now())
    }

    /// Whether a caller has a certificate from before it was last decided whom
    /// to trust, and had better replace it now.
    pub(in super::super) fn is_behind(&self, caller: &Caller) -> bool {
        let decided = self.0.authority.as_ref().map(|own| own.ca().decided());
        let (Some(Some(decided)), Some(Subject::Certificate(id))) = (decided, caller.subject)
        else {
            return false;
        };
        let known = self.known();
        let newest = known.certificates.get(&id);
        newest.is_none_or(|newest| SystemTime::from(newest.issued_at) < decided)
    }

    /// Returns when it has.
    pub(in super::super) async fn expired(&self, caller: &Caller) {
        while let Some(end) = self.ends(caller) {
            let left = Duration::try_from(end.duration_since(now()));
            match left {
                Ok(left) if !left.is_zero() => tokio::time::sleep(left).await,
                Ok(_) | Err(_) => return,
            }
        }
        std::future::pending().await
    }
}

/// Cuts off who was revoked, when it is dropped: one who revokes themselves is answered
/// first.
#[must_use]
pub(in super::super) struct CutOff {
    access: Access,
    subject: Subject,
}

impl CutOff {
    pub(super) fn new(access: &Access, subject: Subject) -> Self {
        Self {
            access: access.clone(),
            subject,
        }
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        self.access.known().cut(self.subject);
    }
}

/// By which certificates have ended: a step of the wall clock that may be undone ends
/// none.
fn now() -> Timestamp {
    Timestamp::try_from(clock::now().earlier).unwrap_or(Timestamp::MIN)
}

impl Known {
    /// Tells when somebody is to be cut off.
    pub(super) fn cut_of(&mut self, subject: Subject) -> CancellationToken {
        self.cuts.entry(subject).or_default().clone()
    }

    pub(super) fn cut(&mut self, subject: Subject) {
        if let Some(cut) = self.cuts.remove(&subject) {
            cut.cancel();
        }
    }
}
