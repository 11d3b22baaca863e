//! Certificates: bought with a token, renewed, revoked.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use uuid::Uuid;

use super::{
    super::{
        error::Error,
        store::{AccessChange, AuditEntry, Certificate, Written},
    },
    Access, Caller, CutOff, Known, Subject,
};
use crate::{
    api::TokenKind,
    identity::{Identity, Role, token::Bearer},
};

/// A certificate that was just signed, and whom its bearer may trust.
#[derive(Clone, Debug)]
pub(in super::super) struct Signed {
    pub(in super::super) certificate: CertificateDer<'static>,
    pub(in super::super) authorities: Vec<CertificateDer<'static>>,
    pub(in super::super) role: Role,
    pub(in super::super) about: Certificate,
}

impl Access {
    /// A token buys a certificate for the key of this signing request. `called`
    /// is what people call the one who joins, where the token does not say.
    pub(in super::super) async fn join(
        &self,
        caller: &Caller,
        token: &str,
        request: &[u8],
        roles: &[Role],
        called: &str,
    ) -> Result<Signed, Error> {
        let joined = async {
            let shown: Bearer = token.parse().map_err(|_| Error::BadToken)?;
            let token = self.known().shown_token(&shown)?.clone();
            token.is_of(TokenKind::Join)?;
            token.is_good(Timestamp::now())?;
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
                Some(owner) => return Err(name_taken(name, owner)),
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
            let written = self.0.store.access(change, Some(entry)).await?;
            written.certificate(name)?;
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
    pub(in super::super) fn worker_called(&self, name: &str) -> Option<Uuid> {
        let known = self.known();
        let bears = known.certificates.values().filter(|certificate| {
            certificate.role == Some(Role::Worker)
                && certificate.name == name
                && certificate.revoked_at.is_none()
        });
        let first = bears.min_by_key(|certificate| (certificate.issued_at, certificate.id));
        first.map(|certificate| certificate.id)
    }

    /// A new certificate for who calls with one, for the key of this request.
    pub(in super::super) async fn renew(
        &self,
        caller: &Caller,
        request: &[u8],
    ) -> Result<Signed, Error> {
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
    pub(in super::super) async fn issue(
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
        self.known().unless_revoked(signed.about.id)?;
        let change = AccessChange::Certificate(signed.about.clone(), None);
        let written = self.0.store.access(change, Some(entry)).await?;
        written.certificate(&signed.about.name)?;
        self.keep(signed)
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
        known.unless_revoked(id)?;
        Ok(signed)
    }

    /// Whether nothing this id has is accepted any more.
    pub(in super::super) fn is_revoked(&self, id: Uuid) -> bool {
        self.known().unless_revoked(id).is_err()
    }

    /// From now on nothing this id has is accepted, and its connections are closed with
    /// what is returned.
    ///
    /// # Errors
    ///
    /// Where the cluster has an authority of its own, if that never signed for the
    /// id and nobody has called with it: then it is misspelt.
    pub(in super::super) async fn revoke(
        &self,
        caller: &Caller,
        id: Uuid,
    ) -> Result<CutOff, Error> {
        let now = Timestamp::now();
        let what = {
            let known = self.known();
            let has_called = known.cuts.contains_key(&Subject::Certificate(id));
            match known.certificates.get(&id) {
                Some(Certificate {
                    role: Some(role),
                    name,
                    ..
                }) => format!("{role} {name}"),
                Some(_) => id.to_string(),
                None if has_called || self.0.authority.is_none() => id.to_string(),
                None => return Err(Error::CertificateNotFound(id)),
            }
        };
        let entry = caller.did("revoke certificate", what.trim_end(), json!({ "id": id }));
        self.0
            .store
            .access(AccessChange::Revoked(id, now), Some(entry))
            .await?;
        let mut known = self.known();
        let certificate = known.certificates.entry(id).or_insert(Certificate {
            id,
            role: None,
            name: String::new(),
            serial: String::new(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
            revoked_at: None,
        });
        certificate.revoked_at.get_or_insert(now);
        Ok(CutOff::new(self, Subject::Certificate(id)))
    }

    /// Of everybody the newest certificate, the newest first.
    pub(in super::super) fn certificates(&self) -> Vec<Certificate> {
        let mut all: Vec<Certificate> = self.known().certificates.values().cloned().collect();
        all.sort_by_key(|certificate| (std::cmp::Reverse(certificate.issued_at), certificate.id));
        all
    }
}

impl Known {
    /// Whether something this id has may be accepted.
    pub(super) fn unless_revoked(&self, id: Uuid) -> Result<(), Error> {
        let certificate = self.certificates.get(&id);
        match certificate.and_then(|certificate| certificate.revoked_at) {
            Some(at) => Err(revoked(at)),
            None => Ok(()),
        }
    }
}

impl Written {
    /// What became of a certificate for somebody of this name.
    fn certificate(self, name: &str) -> Result<(), Error> {
        match self {
            Self::Done => Ok(()),
            Self::Revoked(at) => Err(revoked(at)),
            Self::TokenSpent => Err(Error::TokenSpent),
            Self::NameTaken(owner) => Err(name_taken(name, owner)),
        }
    }
}

fn revoked(at: Timestamp) -> Error {
    let what = "certificate";
    Error::Revoked { what, at }
}

fn name_taken(name: &str, owner: Uuid) -> Error {
    Error::WorkerNameTaken {
        name: name.to_owned(),
        id: owner.into(),
    }
}
