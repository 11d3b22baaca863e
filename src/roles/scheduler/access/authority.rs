//! The cluster's own authority: what it signs, and the one that follows it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    super::{
        error::Error,
        store::{Certificate, Store, Token},
    },
    Access, Caller, Inner, Known, Signed, Subject,
};
use crate::identity::{
    Identity, Role,
    ca::{self, Ca, PublicKey},
    clock,
    tls::{ClientCertificates, Tls},
    token::Fingerprint,
};

/// How an authority signs.
pub(in super::super) struct Signing {
    /// Where it is, or is made.
    pub(in super::super) file: PathBuf,
    /// The names under which the scheduler is reached.
    pub(in super::super) hosts: Vec<String>,
    /// Of every certificate.
    pub(in super::super) lifetime: Duration,
}

pub(super) struct Authority {
    file: PathBuf,
    ca: Mutex<Arc<Ca>>,
    rotating: tokio::sync::Mutex<()>,
    /// Who the scheduler is.
    pub(super) own: Identity,
    /// Under which names it is reached.
    hosts: Vec<String>,
    tls: Tls,
    /// Another authority took over.
    rotated: Notify,
}

impl Access {
    /// With an authority, which is made if it is not there.
    pub(in super::super) fn with_authority(
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
        let tls = Tls::new(ca.credentials(&own, &hosts)?, ClientCertificates::Optional)?;
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
    pub(in super::super) async fn keep_current(&self) {
        let Some(authority) = &self.0.authority else {
            return std::future::pending().await;
        };
        loop {
            let until = authority.ca().overlaps_until();
            let overlap = until.and_then(|end| end.duration_since(clock::now().steady).ok());
            let overlap = async {
                match overlap {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = overlap => {}
                () = authority.tls.replace_due() => {}
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

    /// Changes the authority; see [`Ca::rotate`].
    pub(in super::super) async fn rotate(
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

    /// The authorities that are trusted, unless they are somebody else's.
    pub(in super::super) fn authorities(&self) -> Vec<CertificateDer<'static>> {
        let authority = self.0.authority.as_ref();
        authority.map_or_else(Vec::new, |authority| authority.ca().roots())
    }

    /// Of the authorities that are trusted; None: they are somebody else's.
    pub(in super::super) fn fingerprints(&self) -> Option<Vec<Fingerprint>> {
        let ca = self.0.authority.as_ref()?.ca();
        Some(ca.roots().iter().filter_map(ca::fingerprint).collect())
    }

    pub(super) fn authority(&self) -> Result<&Authority, Error> {
        self.0.authority.as_ref().ok_or(Error::NoAuthority)
    }
}

impl Authority {
    pub(super) fn ca(&self) -> Arc<Ca> {
        self.ca
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn sign(&self, identity: &Identity, request: &[u8]) -> Result<Signed, Error> {
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
            role: identity.role,
            about: Certificate {
                id: identity.id,
                role: Some(identity.role),
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
