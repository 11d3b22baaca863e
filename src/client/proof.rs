//! How a client shows who it is, and whom it trusts: what a context's files
//! hold, and how a certificate is got and replaced.

use std::{path::Path, sync::Arc, time::SystemTime};

use data_encoding::BASE64;
use jiff::Timestamp;
use rustls::{
    ClientConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime},
    server::WebPkiClientVerifier,
};
use serde::Serialize;
use uuid::Uuid;

use super::contexts::{Context, Error};
use crate::{
    api::{CertificateResponse, JoinRequest, RenewRequest},
    identity::{
        Identity, Role,
        ca::{self, Request},
        files::{self, Pem},
        tls::{self, Credentials, Peer, Trust},
        token::{Bearer, Fingerprint, Invitation},
    },
};

/// HTTP/1.1, as ALPN knows it: one connection a follower, none in another's way.
const ALPN: &[u8] = b"http/1.1";

/// How a client shows who it is, and whom it trusts.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// None: those that this machine trusts.
    trust: Option<Trust>,
    own: Option<Arc<Credentials>>,
    token: Option<String>,
}

impl Proof {
    /// What the files of a context hold.
    ///
    /// # Errors
    ///
    /// If one of them is not there, not private, or not what it should be.
    pub fn of(context: &Context) -> Result<Self, Error> {
        let roots = match &context.ca_file {
            Some(file) => certificates(file)?,
            None => Vec::new(),
        };
        let own = match &context.identity_file {
            Some(file) => {
                let missing = |what| {
                    Error::Files(files::Error::Missing {
                        file: file.clone(),
                        what,
                    })
                };
                let pem = Pem::read_secret(file)?.ok_or_else(|| files::Error::not_there(file))?;
                let key = pem.key.ok_or_else(|| missing("key"))?;
                let own = Credentials::new(pem.certificates, key, roots.clone());
                Some(Arc::new(own.map_err(|source| Error::Identity {
                    file: file.clone(),
                    source,
                })?))
            }
            None => None,
        };
        let token = match &context.token_file {
            Some(file) => Some(token(file)?),
            None => None,
        };
        let trust = match roots.is_empty() {
            true => None,
            false => Some(tls::roots(&roots).map(Trust::Roots)?),
        };
        Ok(Self { trust, own, token })
    }

    /// Of what is at hand.
    pub fn with(own: Credentials) -> Result<Self, tls::Error> {
        Ok(Self {
            trust: Some(Trust::Roots(tls::roots(&own.roots)?)),
            own: Some(Arc::new(own)),
            token: None,
        })
    }

    /// Of somebody who joins: nothing yet, but whom to trust.
    pub fn joining(authority: Fingerprint) -> Self {
        Self {
            trust: Some(Trust::Fingerprint(authority)),
            ..Self::default()
        }
    }

    /// A bearer token alone.
    #[cfg(test)]
    pub(super) fn of_token(token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..Self::default()
        }
    }

    /// What `Authorization: Bearer` is followed by.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Who shows a certificate.
    pub fn identity(&self) -> Option<&Identity> {
        self.own.as_ref().map(|own| &own.identity)
    }

    /// Whether the certificate is in the second half of its life.
    pub fn is_old(&self) -> bool {
        let own = self.own.as_ref().and_then(|own| own.chain.first());
        let half = own.and_then(ca::half_life);
        half.is_some_and(|half| half <= SystemTime::now())
    }

    /// None: as every program of this machine does it.
    pub(super) fn config(&self) -> Result<Option<ClientConfig>, tls::Error> {
        let Some(trust) = self.trust.clone() else {
            return Ok(None);
        };
        let own = self.own.as_deref();
        let cluster = own.map(|own| own.identity.cluster.clone());
        let mut config = tls::client(trust, Peer::HttpApi, cluster, own)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(config))
    }
}

/// The authorities in a file.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let missing = || files::Error::Missing {
        file: file.to_owned(),
        what: "certificate",
    };
    let pem = Pem::read(file)?.ok_or_else(|| files::Error::not_there(file))?;
    match pem.certificates.is_empty() {
        true => Err(missing().into()),
        false => Ok(pem.certificates),
    }
}

/// One whose word is taken for who somebody is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Authority {
    /// As it stands in tokens.
    pub fingerprint: String,
    /// From when on it is not accepted.
    pub expires_at: Option<Timestamp>,
}

impl Authority {
    /// Those in a file.
    pub fn of(file: &Path) -> Result<Vec<Self>, Error> {
        let of = |certificate: &CertificateDer<'_>| Self {
            fingerprint: ca::fingerprint(certificate)
                .map(|fingerprint| fingerprint.to_string())
                .unwrap_or_default(),
            expires_at: time(ca::not_after(certificate)),
        };
        Ok(certificates(file)?.iter().map(of).collect())
    }
}

/// Who the certificate of a context is for. It may have expired.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Who {
    /// What they are.
    pub role: Role,
    /// What people call them; may be empty.
    pub name: String,
    /// Which of all.
    pub id: Uuid,
    /// From when on the certificate counts for nothing.
    pub expires_at: Option<Timestamp>,
}

impl Who {
    /// None: the context has no certificate.
    pub fn of(context: &Context) -> Result<Option<Self>, Error> {
        let Some(file) = &context.identity_file else {
            return Ok(None);
        };
        let missing = || files::Error::Missing {
            file: file.clone(),
            what: "certificate",
        };
        let pem = Pem::read_secret(file)?.unwrap_or_default();
        let certificate = pem.certificates.first().ok_or_else(missing)?;
        let who = Identity::of(certificate).map_err(|error| Error::Identity {
            file: file.clone(),
            source: error.into(),
        })?;
        Ok(Some(Self {
            role: who.role,
            name: who.name,
            id: who.id,
            expires_at: time(ca::not_after(certificate)),
        }))
    }
}

fn time(at: Option<SystemTime>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::try_from(at).ok())
}

/// Whether one of these authorities, and no other, has signed a certificate.
pub fn is_signed_by(
    certificate: &CertificateDer<'_>,
    authorities: &[CertificateDer<'static>],
) -> bool {
    let Ok(roots) = tls::roots(authorities) else {
        return false;
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.is_ok_and(|verifier| {
        let verified = verifier.verify_client_cert(certificate, &[], UnixTime::now());
        verified.is_ok()
    })
}

/// The bearer token in a file that nobody else may read.
pub fn token(file: &Path) -> Result<String, Error> {
    let missing = || files::Error::Missing {
        file: file.to_owned(),
        what: "token",
    };
    let text = files::secret(file)?.ok_or_else(|| files::Error::not_there(file))?;
    let text = String::from_utf8(text).map_err(|_| missing())?;
    let token = text.trim();
    token.parse::<Bearer>().map_err(|_| missing())?;
    Ok(token.to_owned())
}

/// A key that is to be signed for.
pub struct Asked(Request);

impl Asked {
    /// With a new key.
    pub fn new() -> Result<Self, ca::Error> {
        Request::new().map(Self)
    }

    /// PKCS #10 in DER.
    pub fn request(&self) -> &[u8] {
        &self.0.request
    }

    /// What buys a certificate for it.
    pub fn join(&self, invitation: &Invitation) -> JoinRequest {
        JoinRequest {
            token: invitation.token.reveal(),
            signing_request: BASE64.encode(self.request()),
        }
    }

    /// What replaces a certificate by one for it.
    pub fn renew(&self) -> RenewRequest {
        RenewRequest {
            signing_request: BASE64.encode(self.request()),
        }
    }

    /// Writes what was signed where a context has it: the authorities, and then,
    /// for its owner alone, certificate and key. Each is there as a whole.
    pub fn keep(
        &self,
        signed: &CertificateResponse,
        identity_file: &Path,
        ca_file: &Path,
    ) -> Result<(), Error> {
        let certificates = Pem::parse(signed.certificate.as_bytes(), identity_file)?.certificates;
        files::write(ca_file, signed.authorities.as_bytes())?;
        files::write_secret(identity_file, &certificates, Some(&self.0.key))?;
        Ok(())
    }
}
