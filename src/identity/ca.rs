//! The authority of a cluster: its key, the certificates it signs, and how it
//! gives way to the next one. Everything in a certificate is decided here: of
//! what somebody asks for, the public key alone is used.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use uuid::Uuid;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificationRequest};

use super::{
    Identity, Role, clock,
    files::{self, Pem},
    tls::{self, Credentials},
    token::Fingerprint,
};

/// How long the certificates live that are signed here, unless it is said.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long an authority does.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What the names of authorities begin with; the cluster follows.
const NAME: &str = "jobctl ";

/// Clocks of a fleet differ: certificates are valid from so long ago.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A signing request that is none, or is not signed by its own key.
    #[error("the signing request is not valid")]
    BadRequest,
    /// A key or a name that no certificate can bear.
    #[error("cannot make a certificate")]
    Rcgen(#[from] rcgen::Error),
    /// What was signed cannot be shown.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The files of the authority cannot be used.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// It is damaged.
    #[error("{0} does not hold an authority")]
    Damaged(String),
    /// The one before is still trusted.
    #[error("the authority was changed before, and the one before it is trusted until {0:.0}")]
    Overlapping(jiff::Timestamp),
}

/// The authority.
pub struct Ca {
    cluster: String,
    key: KeyPair,
    /// Signed by itself: what everybody trusts.
    root: CertificateDer<'static>,
    before: Option<Before>,
    /// Of what it signs.
    lifetime: Duration,
}

/// The authority before, as long as it is trusted.
struct Before {
    /// Signed by itself.
    root: CertificateDer<'static>,
    /// The present one, signed by the one before; its end is the end of all of this.
    bridge: CertificateDer<'static>,
    until: SystemTime,
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its number, as openssl shows it.
    pub serial: String,
    /// From when on it counts for nothing.
    pub not_after: SystemTime,
}

/// A public key whose owner has proven to have the other half.
#[derive(Clone, Debug)]
pub struct PublicKey(SubjectPublicKeyInfo);

impl PublicKey {
    /// Of a PKCS #10 request. Whatever else it asks for is not looked at.
    pub fn of_request(request: &[u8]) -> Result<Self, Error> {
        let (rest, parsed) =
            X509CertificationRequest::from_der(request).map_err(|_| Error::BadRequest)?;
        let is_proven = parsed.verify_signature().is_ok();
        if !rest.is_empty() || !is_proven {
            return Err(Error::BadRequest);
        }
        let key = parsed.certification_request_info.subject_pki.raw;
        Ok(Self(SubjectPublicKeyInfo::from_der(key)?))
    }
}

/// A key of one's own, and the request to have it signed.
pub struct Request {
    /// Stays where it was made.
    pub key: KeyPair,
    /// For the authority.
    pub request: CertificateSigningRequestDer<'static>,
}

impl Request {
    /// With a new key (P-256).
    pub fn new() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut asked = CertificateParams::default();
        asked.distinguished_name = DistinguishedName::new();
        let request = asked.serialize_request(&key)?.der().clone();
        Ok(Self { key, request })
    }
}

impl Ca {
    /// A new authority for a cluster, which is known to nobody yet.
    pub fn create(cluster: &str) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        // Each has a name of its own, or a chain could be looked for in the wrong one.
        let name = format!("{NAME}{cluster} {}", Uuid::new_v4());
        let root = authority(&name, CA_LIFETIME, 1).self_signed(&key)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            key,
            root: root.der().clone(),
            before: None,
            lifetime: LIFETIME,
        })
    }

    /// The same, whose certificates live for so long from now on.
    pub fn signing_for(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    /// The one that was stored in this file; `None` if there is no file.
    pub fn load(file: &Path) -> Result<Option<Self>, Error> {
        let Some(pem) = Pem::read_secret(file)? else {
            return Ok(None);
        };
        let damaged = || Error::Damaged(file.display().to_string());
        let key = pem.key.as_ref().ok_or_else(damaged)?;
        let key = KeyPair::try_from(key).map_err(|_| damaged())?;
        let ca = match &pem.certificates[..] {
            [root] => Self {
                cluster: cluster_of(root).ok_or_else(damaged)?,
                key,
                root: root.clone(),
                before: None,
                lifetime: LIFETIME,
            },
            [root, bridge, before] => Self {
                cluster: cluster_of(root).ok_or_else(damaged)?,
                key,
                root: root.clone(),
                before: Some(Before {
                    root: before.clone(),
                    until: not_after(bridge).ok_or_else(damaged)?,
                    bridge: bridge.clone(),
                }),
                lifetime: LIFETIME,
            },
            _ => return Err(damaged()),
        };
        // A key and a certificate that do not belong together sign for nobody.
        match Fingerprint::of(&ca.key.subject_public_key_info()) == ca.fingerprint() {
            true => Ok(Some(ca)),
            false => Err(damaged()),
        }
    }

    /// Writes it, all or nothing, for its owner alone.
    pub fn store(&self, file: &Path) -> Result<(), Error> {
        let mut certificates = vec![self.root.clone()];
        if let Some(before) = &self.before {
            certificates.extend([before.bridge.clone(), before.root.clone()]);
        }
        files::write_secret(file, &certificates, Some(&self.key))?;
        Ok(())
    }

    /// The authority that follows this one. For the time of `overlap` both are
    /// trusted; with none of it, only the new one is, at once.
    pub fn rotate(&self, overlap: Duration) -> Result<Self, Error> {
        let mut next = Self::create(&self.cluster)?.signing_for(self.lifetime);
        if overlap.is_zero() {
            return Ok(next);
        }
        if let Some(before) = self.before() {
            let until = jiff::Timestamp::try_from(before.until).unwrap_or(jiff::Timestamp::MAX);
            return Err(Error::Overlapping(until));
        }
        let issuer = Issuer::from_ca_cert_der(&self.root, &self.key)?;
        let bridge =
            authority(&common_name(&next.root), overlap, 0).signed_by(&next.key, &issuer)?;
        next.before = Some(Before {
            root: self.root.clone(),
            bridge: bridge.der().clone(),
            until: clock::now().steady + overlap,
        });
        Ok(next)
    }

    /// The trust domain it signs for.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What a join token says of it.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.root).unwrap_or_else(|| Fingerprint::of(&[]))
    }

    /// Whom to trust: this one, and for a while the one before it.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        let before = self.before().map(|before| before.root.clone());
        std::iter::once(self.root.clone()).chain(before).collect()
    }

    /// What a server shows behind its own certificate, so that it is trusted by
    /// who knows only the authority before, or only the fingerprint of one.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        let before = self.before();
        let before = before.map(|before| [before.bridge.clone(), before.root.clone()]);
        let before = before.into_iter().flatten();
        before.chain(std::iter::once(self.root.clone())).collect()
    }

    /// When the one before this one is no longer trusted.
    pub fn overlaps_until(&self) -> Option<SystemTime> {
        self.before().map(|before| before.until)
    }

    /// When it took over from another one, to the second and not before; `None`:
    /// it is the first, or the one before was given up at once.
    pub fn since(&self) -> Option<SystemTime> {
        self.before.as_ref()?;
        let (_, root) = X509Certificate::from_der(&self.root).ok()?;
        let from = u64::try_from(root.validity().not_before.timestamp()).ok()?;
        // The second has begun at the time that is written.
        let from = Duration::from_secs(from + 1) + BACKDATED;
        SystemTime::UNIX_EPOCH.checked_add(from)
    }

    /// When it was last decided who is trusted: certificates that are older are
    /// behind, and so is what came with them.
    pub fn decided(&self) -> Option<SystemTime> {
        let until = self.before.as_ref().map(|before| before.until);
        let ended = until.filter(|until| *until <= clock::now().steady);
        ended.or_else(|| self.since())
    }

    fn before(&self) -> Option<&Before> {
        let before = self.before.as_ref();
        before.filter(|before| before.until > clock::now().steady)
    }

    /// Signs that `key` is `identity`. `hosts` are names and addresses of a
    /// server, for clients that know no other way to tell it (curl).
    pub fn issue(
        &self,
        identity: &Identity,
        key: &PublicKey,
        hosts: &[String],
    ) -> Result<Issued, Error> {
        self.sign(identity, &key.0, hosts)
    }

    /// Of somebody whose key is made here, with what stands behind the certificate.
    pub fn credentials(&self, identity: &Identity, hosts: &[String]) -> Result<Credentials, Error> {
        let key = KeyPair::generate()?;
        let issued = self.sign(identity, &key, hosts)?;
        let signed = Credentials::signed(issued.certificate, self.chain(), &key, self.roots());
        Ok(signed?)
    }

    fn sign(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        hosts: &[String],
    ) -> Result<Issued, Error> {
        let mut asked = CertificateParams::default();
        let now = clock::now();
        let not_after = now.later + self.lifetime;
        // The middle of a short life is not to be over when it begins.
        let backdated = BACKDATED.min(self.lifetime / 10);
        let serial = Uuid::new_v4().into_bytes();
        asked.not_before = OffsetDateTime::from(now.earlier - backdated);
        asked.not_after = OffsetDateTime::from(not_after);
        // The highest bit would make it negative.
        let serial: Vec<u8> = [&[serial[0] & 0x7f | 0x40], &serial[1..]].concat();
        asked.serial_number = Some(SerialNumber::from_slice(&serial));
        asked.distinguished_name = DistinguishedName::new();
        if !identity.name.is_empty() {
            let name = identity.name.as_str();
            asked.distinguished_name.push(DnType::CommonName, name);
        }
        asked.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
        for host in hosts {
            asked.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        asked.is_ca = IsCa::ExplicitNoCa;
        asked.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        asked.extended_key_usages = match identity.role {
            // Both answer calls, and both make them.
            Role::Scheduler | Role::Worker => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Role::Viewer | Role::Operator | Role::Admin => {
                vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        asked.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.root, &self.key)?;
        let certificate = asked.signed_by(key, &issuer)?.der().clone();
        Ok(Issued {
            certificate,
            serial: data_encoding::HEXLOWER.encode(&serial),
            not_after,
        })
    }
}

/// `below` is how many authorities may stand between it and who it signs for.
fn authority(name: &str, lifetime: Duration, below: u8) -> CertificateParams {
    let mut asked = CertificateParams::default();
    let now = clock::now();
    // What begins with it is counted from when it took over.
    asked.not_before = OffsetDateTime::from(now.steady - BACKDATED);
    asked.not_after = OffsetDateTime::from(now.later + lifetime);
    asked.distinguished_name = DistinguishedName::new();
    asked.distinguished_name.push(DnType::CommonName, name);
    asked.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    asked.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    asked
}

/// What a certificate is called.
fn common_name(certificate: &CertificateDer<'_>) -> String {
    let parsed = X509Certificate::from_der(certificate);
    let name = parsed.ok().and_then(|(_, parsed)| {
        let name = parsed.subject().iter_common_name().next()?.as_str().ok();
        name.map(str::to_owned)
    });
    name.unwrap_or_default()
}

/// The trust domain of an authority, which is in its name.
fn cluster_of(root: &CertificateDer<'_>) -> Option<String> {
    let name = common_name(root);
    let (cluster, _) = name.strip_prefix(NAME)?.split_once(' ')?;
    Some(cluster.to_owned())
}

/// Of the public key in a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Option<Fingerprint> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Fingerprint::of(parsed.public_key().raw))
}

/// When a certificate ends.
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// In the middle of a certificate's time: when it is to be replaced.
pub fn half_life(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let validity = parsed.validity();
    let (from, to) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let middle = u64::try_from(from + (to - from) / 2).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(middle))
}
