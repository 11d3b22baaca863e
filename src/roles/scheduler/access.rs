//! Who calls, and whether they may: tokens, certificates and what was revoked of
//! them, the cluster's authority, and the lines of the audit log. What each role
//! may call is in `identity/rules.rs`.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    error::Error,
    store::{AccessChange, AuditEntry, Certificate, Store, Token},
};
use crate::{
    api::{self, TokenKind},
    identity::{
        Identity, Role,
        ca::{self, Ca, PublicKey},
        rules::{self, Callers, Rule, Verdict},
        tls::{Strangers, Tls},
        token::{Bearer, Fingerprint, TokenId},
    },
    ids::WorkerId,
    net::accept::{Connection, Cuts},
};

/// How long a token is good, unless its maker says otherwise.
const TTL: Duration = Duration::from_secs(3600);

/// The longest it may be.
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// So many tokens may be good at the same time.
const MAX_TOKENS: usize = 10_000;

/// So many refusals have a line each in the audit log within [`WINDOW`], of people
/// nobody knows and of all; of the rest it says how many there were.
const MAX_REFUSALS: u32 = 100;
const MAX_KNOWN_REFUSALS: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(60);

/// What is told of a call that was refused, in characters: a stranger chose it.
const MAX_TARGET: usize = 200;

/// Somebody, as far as they can be told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
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
pub(super) struct Caller {
    /// None: nobody knows.
    pub(super) role: Option<Role>,
    subject: Option<Subject>,
    name: String,
    address: Option<SocketAddr>,
    /// Cancelled when they are no longer believed.
    pub(super) cut: CancellationToken,
    /// When what they showed ends.
    pub(super) expires_at: Option<Timestamp>,
}

impl Caller {
    /// Of whom nothing is known but where they are.
    pub(super) fn nobody(address: Option<SocketAddr>) -> Self {
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
    pub(super) fn may(&self, rules: &[Rule], call: &str) -> Result<(), Error> {
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
    pub(super) fn itself() -> Self {
        Self {
            role: Some(Role::Scheduler),
            ..Self::nobody(None)
        }
    }

    /// The worker this is; None where there is no TLS, and nobody can tell.
    pub(super) fn worker(&self) -> Option<WorkerId> {
        match (self.role, self.subject) {
            (Some(Role::Worker), Some(Subject::Certificate(id))) => {
                Some(WorkerId::from_bytes(id.into_bytes()))
            }
            _ => None,
        }
    }

    /// A line of the audit log: what they did to what, and what came of it.
    pub(super) fn did(
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

/// A handle to who is who; clones share it.
#[derive(Clone)]
pub(super) struct Access(Arc<Inner>);

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

struct Inner {
    store: Store,
    known: Mutex<Known>,
    /// None: somebody else signs the certificates, or there are none.
    authority: Option<Authority>,
    /// Whether workers must show who they are.
    plain: bool,
}

/// How an authority signs.
pub(super) struct Signing {
    /// Where it is, or is made.
    pub(super) file: PathBuf,
    /// The names under which the scheduler is reached.
    pub(super) hosts: Vec<String>,
    /// Of every certificate.
    pub(super) lifetime: Duration,
}

struct Authority {
    file: PathBuf,
    ca: Mutex<Arc<Ca>>,
    rotating: tokio::sync::Mutex<()>,
    /// Who the scheduler is.
    own: Identity,
    /// Under which names it is reached.
    hosts: Vec<String>,
    tls: Tls,
    /// Another authority took over.
    rotated: Notify,
}

#[derive(Default)]
struct Known {
    tokens: HashMap<TokenId, Token>,
    certificates: HashMap<Uuid, Certificate>,
    /// Of those who have connections or streams open.
    cuts: HashMap<Subject, CancellationToken>,
    refusals: Refusals,
}

/// How many refusals were written since a time, and how many were not.
struct Refusals {
    since: tokio::time::Instant,
    written: u32,
    passed_over: u32,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            since: tokio::time::Instant::now(),
            written: 0,
            passed_over: 0,
        }
    }
}

/// A certificate that was just signed, and whom its bearer may believe.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
    pub(super) about: Certificate,
}

impl Access {
    pub(super) fn new(
        store: Store,
        tokens: Vec<Token>,
        certificates: Vec<Certificate>,
        plain: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            known: Mutex::new(Known::new(tokens, certificates)),
            authority: None,
            plain,
        }))
    }

    /// With an authority, which is made if it is not there.
    pub(super) fn with_authority(
        store: Store,
        tokens: Vec<Token>,
        certificates: Vec<Certificate>,
        signing: Signing,
    ) -> Result<(Self, Tls), ca::Error> {
        let Signing {
            file,
            hosts,
            lifetime,
        } = signing;
        let ca = match Ca::load(&file)? {
            Some(ca) => ca,
            None => {
                let ca = Ca::create(&Uuid::new_v4().to_string())?;
                ca.store(&file)?;
                ca
            }
        };
        let ca = ca.signing_for(lifetime);
        let own = Identity {
            cluster: ca.cluster().to_owned(),
            role: Role::Scheduler,
            id: Uuid::new_v4(),
            name: String::new(),
        };
        let tls = Tls::new(ca.credentials(&own, &hosts)?, Strangers::Heard)?;
        let access = Self(Arc::new(Inner {
            store,
            known: Mutex::new(Known::new(tokens, certificates)),
            authority: Some(Authority {
                file,
                ca: Mutex::new(Arc::new(ca)),
                rotating: tokio::sync::Mutex::default(),
                own,
                hosts,
                tls: tls.clone(),
                rotated: Notify::new(),
            }),
            plain: false,
        }));
        Ok((access, tls))
    }

    /// Has the scheduler's own certificate replaced in good time, and the
    /// authority before given up at its end. Never returns.
    pub(super) async fn keep_current(&self) {
        let Some(authority) = &self.0.authority else {
            return std::future::pending().await;
        };
        loop {
            let until = authority.ca().overlaps_until();
            let overlap = until.and_then(|end| end.duration_since(SystemTime::now()).ok());
            let replace = authority.tls.replace_in();
            let due = overlap.map_or(replace, |overlap| overlap.min(replace));
            tokio::select! {
                () = tokio::time::sleep(due) => {}
                // There is another end to wait for.
                () = authority.rotated.notified() => continue,
            }
            if let Err(error) = authority.replace_own() {
                tracing::error!(%error, "the scheduler's certificate cannot be replaced");
            }
            let ca = authority.ca();
            if until.is_some()
                && ca.overlaps_until().is_none()
                && let Some(since) = ca.since()
            {
                self.cut_signed_before(since);
            }
        }
    }

    /// Cuts the connections of all who have no certificate of the authority that
    /// there is since then.
    fn cut_signed_before(&self, since: SystemTime) {
        let mut known = self.known();
        let all: Vec<_> = known.cuts.keys().copied().collect();
        for subject in all {
            let Subject::Certificate(id) = subject else {
                continue;
            };
            let newest = known.certificates.get(&id);
            let is_new = newest.is_some_and(|newest| SystemTime::from(newest.issued_at) >= since);
            if !is_new {
                known.cut(subject);
            }
        }
    }

    /// Tells when the connections of somebody are to be cut.
    pub(super) fn cuts(&self) -> Cuts {
        let access = self.clone();
        Arc::new(move |identity| access.known().cut_of(Subject::Certificate(identity.id)))
    }

    /// Who is there. `bearer` is what the request says of a token.
    pub(super) fn identify(
        &self,
        connection: Option<&Connection>,
        bearer: Option<&str>,
    ) -> Result<Caller, Error> {
        let address = connection.map(|connection| connection.address);
        match bearer {
            Some(text) => self.bearer(text, address),
            None => self.certified(connection, address),
        }
    }

    /// As [`Access::identify`] where workers call: without TLS nobody can tell
    /// who they are, and whoever is on this machine passes for one.
    pub(super) fn identify_worker(&self, connection: Option<&Connection>) -> Result<Caller, Error> {
        let caller = self.identify(connection, None)?;
        let role = match self.0.plain {
            true => Some(Role::Worker),
            false => caller.role,
        };
        Ok(Caller { role, ..caller })
    }

    fn bearer(&self, text: &str, address: Option<SocketAddr>) -> Result<Caller, Error> {
        let shown: Bearer = text.parse().map_err(|_| Error::BadToken)?;
        // One look at both: nobody is let in by what was revoked in between, and
        // nothing is kept of tokens that never were.
        let mut known = self.known();
        let token = known.good_token(&shown, TokenKind::Bearer)?;
        let cut = known.cut_of(Subject::Token(token.id));
        drop(known);
        Ok(Caller {
            role: Some(token.role),
            subject: Some(Subject::Token(token.id)),
            name: token.name,
            address,
            cut,
            expires_at: Some(token.expires_at),
        })
    }

    fn certified(
        &self,
        connection: Option<&Connection>,
        address: Option<SocketAddr>,
    ) -> Result<Caller, Error> {
        let identity = connection.and_then(|connection| connection.identity.as_ref());
        let Some(identity) = identity else {
            return Ok(Caller::nobody(address));
        };
        let subject = Subject::Certificate(identity.id);
        let expires_at = connection.and_then(|connection| connection.expires_at);
        let caller = {
            let mut known = self.known();
            let revoked = known.certificates.get(&identity.id);
            if revoked.is_some_and(|certificate| certificate.revoked_at.is_some()) {
                return Err(Error::Revoked);
            }
            Caller {
                role: Some(identity.role),
                subject: Some(subject),
                name: identity.name.clone(),
                address,
                cut: known.cut_of(subject),
                expires_at: expires_at
                    .map(|end| Timestamp::try_from(end).unwrap_or(Timestamp::MAX)),
            }
        };
        match self.ends(&caller) {
            Some(end) if end <= Timestamp::now() => Err(Error::CertificateExpired(end)),
            Some(_) | None => Ok(caller),
        }
    }

    /// Until when a caller is believed; None: for ever. Who has renewed a
    /// certificate is believed as long as with the new one.
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

    /// Whether what a caller has shown has ended since.
    pub(super) fn has_expired(&self, caller: &Caller) -> bool {
        self.ends(caller).is_some_and(|end| end <= Timestamp::now())
    }

    /// Whether a caller has a certificate from before it was last decided whom
    /// to trust, and had better replace it now.
    pub(super) fn is_behind(&self, caller: &Caller) -> bool {
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
    pub(super) async fn expired(&self, caller: &Caller) {
        while let Some(end) = self.ends(caller) {
            let left = Duration::try_from(end.duration_since(Timestamp::now()));
            match left {
                Ok(left) if !left.is_zero() => tokio::time::sleep(left).await,
                Ok(_) | Err(_) => return,
            }
        }
        std::future::pending().await
    }

    /// Has a refusal in the audit log.
    pub(super) fn refused(&self, caller: &Caller, call: &str, error: &Error) {
        let call: String = call.chars().take(MAX_TARGET).collect();
        let mut details = Value::Null;
        {
            let known = &mut *self.known();
            let refusals = &mut known.refusals;
            if refusals.since.elapsed() > WINDOW {
                if refusals.passed_over > 0 {
                    details = json!({ "refusals_before_without_a_line": refusals.passed_over });
                }
                *refusals = Refusals::default();
            }
            // Whoever is known has a name to answer with, but no disk to fill.
            let most = match caller.role {
                None => MAX_REFUSALS,
                Some(_) => MAX_KNOWN_REFUSALS,
            };
            if refusals.written >= most {
                refusals.passed_over += 1;
                return;
            }
            refusals.written += 1;
        }
        tracing::info!(who = %caller, address = ?caller.address, call, %error, "refused");
        let entry = AuditEntry {
            result: error.code().to_owned(),
            ..caller.did("refuse", call, details)
        };
        // Whether there is room for it is nobody's business who is refused.
        drop(self.0.store.access(AccessChange::Nothing, Some(entry)));
    }

    /// Has a line of the audit log on the disk before it returns.
    pub(super) async fn record(&self, entry: AuditEntry) -> Result<(), Error> {
        self.0
            .store
            .access(AccessChange::Nothing, Some(entry))
            .await?;
        Ok(())
    }

    /// A token buys a certificate for the key of this signing request. `called`
    /// is what people call the one who joins, where the token does not say.
    pub(super) async fn join(
        &self,
        caller: &Caller,
        token: &str,
        request: &[u8],
        roles: &[Role],
        called: &str,
    ) -> Result<Signed, Error> {
        let joined = async {
            let shown: Bearer = token.parse().map_err(|_| Error::BadToken)?;
            let token = self.known().good_token(&shown, TokenKind::Join)?;
            if !roles.contains(&token.role) {
                return Err(Error::TokenOfRole(token.role));
            }
            let authority = self.authority()?;
            let name = match token.name.as_str() {
                "" => called,
                name => name,
            };
            let owner = match token.role {
                Role::Worker => self.worker_called(name),
                Role::Scheduler | Role::Viewer | Role::Operator | Role::Admin => None,
            };
            let id = match owner {
                // An admin has said that it is that worker again.
                Some(owner) if !token.name.is_empty() => owner,
                Some(owner) => {
                    let name = name.to_owned();
                    let id = WorkerId::from_bytes(owner.into_bytes());
                    return Err(Error::WorkerNameTaken { name, id });
                }
                None => Uuid::new_v4(),
            };
            let identity = Identity {
                cluster: authority.own.cluster.clone(),
                role: token.role,
                id,
                name: name.to_owned(),
            };
            let signed = authority.sign(&identity, request)?;
            let entry = Caller {
                role: Some(identity.role),
                subject: Some(Subject::Certificate(identity.id)),
                name: identity.name.clone(),
                ..caller.clone()
            };
            let details = json!({ "token": token.id, "serial": signed.about.serial });
            let entry = entry.did("join", &identity, details);
            let change = AccessChange::Certificate(signed.about.clone(), Some(token.id));
            if !self.0.store.access(change, Some(entry)).await? {
                return Err(match self.is_revoked(identity.id) {
                    true => Error::Revoked,
                    false => Error::TokenSpent,
                });
            }
            if let Some(token) = self.known().tokens.get_mut(&token.id) {
                token.used_at = Some(Timestamp::now());
            }
            let signed = self.keep(signed)?;
            tracing::info!(who = %identity, id = %identity.id, token = %token.id, "joined");
            Ok(signed)
        };
        joined
            .await
            .inspect_err(|error| self.refused(caller, "join", error))
    }

    /// The worker that this name belongs to: it joined under it first, and was not
    /// revoked. A certificate that has ended does not give the name away.
    pub(super) fn worker_called(&self, name: &str) -> Option<Uuid> {
        let known = self.known();
        let bears = known.certificates.values().filter(|certificate| {
            certificate.role == Role::Worker
                && certificate.name == name
                && certificate.revoked_at.is_none()
        });
        let first = bears.min_by_key(|certificate| (certificate.issued_at, certificate.id));
        first.map(|certificate| certificate.id)
    }

    /// A new certificate for who calls with one, for the key of this request.
    pub(super) async fn renew(&self, caller: &Caller, request: &[u8]) -> Result<Signed, Error> {
        let (Some(role), Some(Subject::Certificate(id))) = (caller.role, caller.subject) else {
            return Err(Error::NoCertificate);
        };
        let authority = self.authority()?;
        let identity = Identity {
            cluster: authority.own.cluster.clone(),
            role,
            id,
            name: caller.name.clone(),
        };
        let signed = authority.sign(&identity, request)?;
        let details = json!({ "serial": signed.about.serial });
        let entry = caller.did("renew", &identity, details);
        self.certify(signed, entry).await
    }

    /// A certificate by the scheduler's own decision, for the one of this id.
    pub(super) async fn issue(
        &self,
        id: Uuid,
        role: Role,
        name: &str,
        request: &[u8],
    ) -> Result<Signed, Error> {
        let authority = self.authority()?;
        let identity = Identity {
            cluster: authority.own.cluster.clone(),
            role,
            id,
            name: name.to_owned(),
        };
        let signed = authority.sign(&identity, request)?;
        let details = json!({ "serial": signed.about.serial });
        let entry = Caller::itself().did("issue", &identity, details);
        self.certify(signed, entry).await
    }

    async fn certify(&self, signed: Signed, entry: AuditEntry) -> Result<Signed, Error> {
        let id = signed.about.id;
        if self.is_revoked(id) {
            return Err(Error::Revoked);
        }
        let change = AccessChange::Certificate(signed.about.clone(), None);
        match self.0.store.access(change, Some(entry)).await? {
            true => self.keep(signed),
            false => Err(Error::Revoked),
        }
    }

    /// Takes a certificate that is on the disk into account.
    fn keep(&self, signed: Signed) -> Result<Signed, Error> {
        let id = signed.about.id;
        let mut known = self.known();
        // Revoked meanwhile stays revoked.
        let before = known.certificates.get(&id);
        let revoked_at = before.and_then(|before| before.revoked_at);
        let about = Certificate {
            revoked_at,
            ..signed.about.clone()
        };
        known.certificates.insert(id, about);
        match revoked_at {
            None => Ok(signed),
            Some(_) => Err(Error::Revoked),
        }
    }

    /// Whether nothing this id has is believed any more.
    pub(super) fn is_revoked(&self, id: Uuid) -> bool {
        let known = self.known();
        let certificate = known.certificates.get(&id);
        certificate.is_some_and(|certificate| certificate.revoked_at.is_some())
    }

    /// Makes a token. The secret is in the answer, and nowhere else.
    pub(super) async fn create_token(
        &self,
        caller: &Caller,
        asked: &api::CreateTokenRequest,
    ) -> Result<(Token, Bearer), Error> {
        let ttl = asked.ttl_ms.map_or(TTL, Duration::from_millis);
        if ttl.is_zero() || ttl > MAX_TTL {
            let message = "ttl_ms is not between 1 and ten years".to_owned();
            return Err(Error::BadRequest(message));
        }
        let is_possible = match (asked.kind, asked.role) {
            (_, Role::Scheduler) => false,
            (TokenKind::Bearer, Role::Worker) => false,
            (TokenKind::Join, _) => {
                self.authority()?;
                true
            }
            (TokenKind::Bearer, _) => true,
        };
        if !is_possible {
            let (kind, role) = (asked.kind.as_str(), asked.role);
            let message = format!("there are no {kind} tokens for the role {role}");
            return Err(Error::BadRequest(message));
        }
        let name = asked.name.clone().unwrap_or_default();
        if !name.is_empty() && !crate::ids::is_name(&name) {
            return Err(Error::BadRequest(format!("'{name}' cannot be a name")));
        }
        let bearer = Bearer::random();
        let created_at = Timestamp::now();
        let expires_at = created_at.checked_add(ttl);
        let token = Token {
            id: bearer.id,
            kind: asked.kind,
            role: asked.role,
            name,
            digest: bearer.secret.digest(),
            created_at,
            expires_at: expires_at.map_err(|error| Error::BadRequest(error.to_string()))?,
            used_at: None,
            revoked_at: None,
        };
        {
            let mut known = self.known();
            let now = Timestamp::now();
            let good = known.tokens.values().filter(|token| token.expires_at > now);
            if good.count() >= MAX_TOKENS {
                return Err(Error::TooManyTokens(MAX_TOKENS));
            }
            known.forget();
        }
        let details = json!({
            "kind": token.kind, "role": token.role, "name": token.name,
            "expires_at": token.expires_at,
        });
        let entry = caller.did("create token", token.id, details);
        let change = AccessChange::Token(token.clone());
        self.0.store.access(change, Some(entry)).await?;
        self.known().tokens.insert(token.id, token.clone());
        Ok((token, bearer))
    }

    /// A join token as a person passes it on, but for where to go.
    pub(super) fn join_token(&self, token: &Bearer) -> Result<String, Error> {
        let authority = self.authority()?.ca().fingerprint();
        Ok(format!("{authority}.{}", token.reveal()))
    }

    /// From now on it is not taken.
    pub(super) async fn revoke_token(&self, caller: &Caller, id: TokenId) -> Result<(), Error> {
        if !self.known().tokens.contains_key(&id) {
            return Err(Error::TokenNotFound(id));
        }
        let now = Timestamp::now();
        let entry = caller.did("revoke token", id, Value::Null);
        let change = AccessChange::TokenRevoked(id, now);
        self.0.store.access(change, Some(entry)).await?;
        let mut known = self.known();
        if let Some(token) = known.tokens.get_mut(&id) {
            token.revoked_at.get_or_insert(now);
        }
        known.cut(Subject::Token(id));
        Ok(())
    }

    /// From now on nothing this id has is believed, and its connections are cut.
    pub(super) async fn revoke(&self, caller: &Caller, id: Uuid) -> Result<(), Error> {
        let now = Timestamp::now();
        let known = self.known().certificates.get(&id).cloned();
        let what = known.as_ref().map_or_else(
            || id.to_string(),
            |known| format!("{} {}", known.role, known.name),
        );
        let entry = caller.did("revoke certificate", what.trim_end(), json!({ "id": id }));
        self.0
            .store
            .access(AccessChange::Revoked(id, now), Some(entry))
            .await?;
        let mut known = self.known();
        let certificate = known.certificates.entry(id).or_insert(Certificate {
            id,
            role: Role::Viewer,
            name: String::new(),
            serial: String::new(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
            revoked_at: None,
        });
        certificate.revoked_at.get_or_insert(now);
        known.cut(Subject::Certificate(id));
        Ok(())
    }

    /// Changes the authority; see [`Ca::rotate`].
    pub(super) async fn rotate(
        &self,
        caller: &Caller,
        overlap: Duration,
    ) -> Result<Arc<Ca>, Error> {
        let authority = self.authority()?;
        // One after the other, or one would be on the disk and another in use.
        let _turn = authority.rotating.lock().await;
        let next = authority
            .ca()
            .rotate(overlap)
            .map_err(|error| match error {
                ca::Error::Overlapping(until) => Error::Overlapping(until),
                error => internal(&error),
            })?;
        let details =
            json!({ "overlap_ms": u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX) });
        let entry = caller.did("rotate authority", next.fingerprint(), details);
        // Said before it is done: it cannot be taken back.
        self.record(entry).await?;
        next.store(&authority.file)
            .map_err(|error| internal(&error))?;
        let next = Arc::new(next);
        *authority.ca.lock().unwrap_or_else(PoisonError::into_inner) = next.clone();
        authority.replace_own().map_err(|error| internal(&error))?;
        authority.rotated.notify_one();
        if overlap.is_zero() {
            // Nobody has a certificate of the new one yet.
            let mut known = self.known();
            let all: Vec<_> = known.cuts.keys().copied().collect();
            for subject in all {
                if matches!(subject, Subject::Certificate(_)) {
                    known.cut(subject);
                }
            }
        }
        Ok(next)
    }

    /// Every token, the newest first.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let mut tokens: Vec<Token> = self.known().tokens.values().cloned().collect();
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.created_at), token.id));
        tokens
    }

    /// Of everybody the newest certificate, the newest first.
    pub(super) fn certificates(&self) -> Vec<Certificate> {
        let mut all: Vec<Certificate> = self.known().certificates.values().cloned().collect();
        all.sort_by_key(|certificate| (std::cmp::Reverse(certificate.issued_at), certificate.id));
        all
    }

    /// The authorities that are trusted, unless they are somebody else's.
    pub(super) fn authorities(&self) -> Vec<CertificateDer<'static>> {
        let authority = self.0.authority.as_ref();
        authority.map_or_else(Vec::new, |authority| authority.ca().roots())
    }

    /// Of the authorities that are trusted; None: they are somebody else's.
    pub(super) fn fingerprints(&self) -> Option<Vec<Fingerprint>> {
        let ca = self.0.authority.as_ref()?.ca();
        Some(ca.roots().iter().filter_map(ca::fingerprint).collect())
    }

    fn authority(&self) -> Result<&Authority, Error> {
        self.0.authority.as_ref().ok_or(Error::NoAuthority)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(tokens: Vec<Token>, certificates: Vec<Certificate>) -> Self {
        Self {
            tokens: tokens.into_iter().map(|token| (token.id, token)).collect(),
            certificates: certificates
                .into_iter()
                .map(|certificate| (certificate.id, certificate))
                .collect(),
            ..Self::default()
        }
    }

    /// A token that is what it says it is, and can be used now.
    fn good_token(&self, shown: &Bearer, kind: TokenKind) -> Result<Token, Error> {
        let token = self.tokens.get(&shown.id).cloned();
        let token = token.filter(|token| token.digest.is(&shown.secret.digest()));
        // From here on whoever shows it knows the secret.
        let token = token.ok_or(Error::BadToken)?;
        if token.kind != kind {
            return Err(Error::WrongToken(token.kind));
        }
        if token.revoked_at.is_some() {
            return Err(Error::Revoked);
        }
        if token.used_at.is_some() {
            return Err(Error::TokenSpent);
        }
        if token.expires_at <= Timestamp::now() {
            return Err(Error::TokenExpired(token.expires_at));
        }
        Ok(token)
    }

    /// Tells when somebody is to be cut off.
    fn cut_of(&mut self, subject: Subject) -> CancellationToken {
        self.cuts.entry(subject).or_default().clone()
    }

    fn cut(&mut self, subject: Subject) {
        if let Some(cut) = self.cuts.remove(&subject) {
            cut.cancel();
        }
    }

    /// Drops what ended long ago; the store does the same.
    fn forget(&mut self) {
        let long_ago = Timestamp::now().checked_sub(jiff::SignedDuration::from_hours(30 * 24));
        let long_ago = long_ago.unwrap_or(Timestamp::UNIX_EPOCH);
        self.tokens.retain(|_, token| token.expires_at > long_ago);
        self.certificates.retain(|_, certificate| {
            certificate.expires_at > long_ago || certificate.revoked_at.is_some()
        });
    }
}

impl Authority {
    fn ca(&self) -> Arc<Ca> {
        self.ca
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn sign(&self, identity: &Identity, request: &[u8]) -> Result<Signed, Error> {
        let key = PublicKey::of_request(request).map_err(|_| Error::BadSigningRequest)?;
        // Before the authority is: one that has just been replaced is not new.
        let issued_at = Timestamp::now();
        let ca = self.ca();
        let issued = ca
            .issue(identity, &key, &[])
            .map_err(|error| internal(&error))?;
        let expires_at = Timestamp::try_from(issued.not_after).unwrap_or(Timestamp::MAX);
        Ok(Signed {
            certificate: issued.certificate,
            authorities: ca.roots(),
            about: Certificate {
                id: identity.id,
                role: identity.role,
                name: identity.name.clone(),
                serial: issued.serial,
                issued_at,
                expires_at,
                revoked_at: None,
            },
        })
    }

    fn replace_own(&self) -> Result<(), ca::Error> {
        let credentials = self.ca().credentials(&self.own, &self.hosts)?;
        self.tls.replace(credentials)?;
        Ok(())
    }
}

fn internal(error: &ca::Error) -> Error {
    tracing::error!(%error, "the authority failed");
    Error::Internal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::scheduler::store;

    #[tokio::test]
    async fn of_tokens_that_never_were_nothing_is_kept() {
        let access = Access::new(store::scratch(), Vec::new(), Vec::new(), true);
        for _ in 0..10 {
            let stranger = Bearer::random().reveal();
            let refused = access.identify(None, Some(&stranger)).unwrap_err();
            assert!(matches!(refused, Error::BadToken));
        }
        assert_eq!(access.known().cuts.len(), 0);
        let asked = api::CreateTokenRequest {
            kind: TokenKind::Bearer,
            role: Role::Viewer,
            name: None,
            ttl_ms: None,
        };
        let made = access.create_token(&Caller::itself(), &asked).await;
        let (token, secret) = made.unwrap();
        let caller = access.identify(None, Some(&secret.reveal())).unwrap();
        assert_eq!(
            (caller.role, caller.cut.is_cancelled()),
            (Some(Role::Viewer), false)
        );
        access
            .revoke_token(&Caller::itself(), token.id)
            .await
            .unwrap();
        assert!(caller.cut.is_cancelled());
        let refused = access.identify(None, Some(&secret.reveal())).unwrap_err();
        assert!(matches!(refused, Error::Revoked));
    }
}
