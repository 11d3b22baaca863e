//! TLS 1.3, with certificates on both sides: what a process shows of itself,
//! whom it trusts, and how both are exchanged while it runs.

use std::{
    error::Error as StdError,
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError,
    OtherError, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use uuid::Uuid;

use super::{Identity, NotAnIdentity, Role, ca, clock, token::Fingerprint};

/// HTTP/2 and HTTP/1.1, as ALPN knows them (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate is not replaced more often than this, whatever it says.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// So often it is looked at whether one is to be replaced: the clock may have been set.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or a key cannot be used.
    #[error("cannot use the certificate")]
    Tls(#[from] TlsError),
    /// It names nobody.
    #[error("the certificate names nobody")]
    Nobody(#[from] NotAnIdentity),
    /// It belongs to somebody else.
    #[error("the certificate is for {found}, and this is a {wanted}")]
    WrongRole {
        /// Whose it is.
        found: Identity,
        /// Who needs one.
        wanted: Role,
    },
    /// Its time is over.
    #[error("the certificate of {who} expired at {at:.0}")]
    Expired {
        /// Whose it is.
        who: Identity,
        /// When it ended.
        at: jiff::Timestamp,
    },
    /// No certificate at all.
    #[error("there is no certificate")]
    Missing,
    /// Nobody is trusted.
    #[error("there is no authority to trust")]
    NoRoots,
    /// An authority that is none.
    #[error("an authority cannot be trusted")]
    Root(#[source] TlsError),
}

/// What a process shows of itself, and whom it trusts.
pub struct Credentials {
    /// Who it is.
    pub identity: Identity,
    /// Its own certificate, and those between it and an authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of its own certificate.
    pub key: PrivateKeyDer<'static>,
    /// The authorities it trusts.
    pub roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Of a chain whose first certificate is the own one.
    ///
    /// # Errors
    ///
    /// Also if it has expired.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let identity = Identity::of(chain.first().ok_or(Error::Missing)?)?;
        let this = Self {
            identity,
            chain,
            key,
            roots,
        };
        match this.not_after() {
            Some(end) if end <= clock::now().earlier => Err(Error::Expired {
                at: jiff::Timestamp::try_from(end).unwrap_or_default(),
                who: this.identity,
            }),
            _ => Ok(this),
        }
    }

    /// Of a certificate that was just signed, for a key of one's own.
    pub fn signed(
        certificate: CertificateDer<'static>,
        behind: Vec<CertificateDer<'static>>,
        key: &KeyPair,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let chain = std::iter::once(certificate).chain(behind).collect();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Self::new(chain, key, roots)
    }

    fn not_after(&self) -> Option<SystemTime> {
        ca::not_after(self.chain.first()?)
    }

    /// Refuses the credentials of somebody else.
    pub fn expect(self, role: Role) -> Result<Self, Error> {
        match self.identity.role == role {
            true => Ok(self),
            false => Err(Error::WrongRole {
                found: self.identity,
                wanted: role,
            }),
        }
    }
}

/// Whether a server is called with a certificate alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Who joins, or shows a token, has none; what they may call is decided later.
    Optional,
    /// Without one, the handshake fails.
    Required,
}

/// Credentials in use; clones share them. Those that are put in their place
/// count for connections made from then on, and open ones go on.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    client_certificates: ClientCertificates,
    current: ArcSwap<Current>,
}

struct Current {
    credentials: Arc<Credentials>,
    server: Arc<ServerConfig>,
    callers: Arc<Callers>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.credentials().fmt(f)
    }
}

impl Tls {
    /// For a process that is called, and calls others.
    pub fn new(
        credentials: Credentials,
        client_certificates: ClientCertificates,
    ) -> Result<Self, Error> {
        let current = Current::new(credentials, client_certificates)?;
        Ok(Self(Arc::new(Shared {
            client_certificates,
            current: ArcSwap::from_pointee(current),
        })))
    }

    /// From now on these.
    pub fn replace(&self, credentials: Credentials) -> Result<(), Error> {
        let current = Current::new(credentials, self.0.client_certificates)?;
        self.0.current.store(Arc::new(current));
        Ok(())
    }

    /// Those in use.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.0.current.load().credentials.clone()
    }

    /// For the next connection that comes.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.0.current.load().server.clone()
    }

    /// Whether a caller who showed this, and may have been let in by credentials
    /// that were replaced since, would be let in by those in use.
    pub fn accepts(&self, shown: Option<&[CertificateDer<'_>]>) -> bool {
        let current = self.0.current.load();
        match shown.unwrap_or_default() {
            [] => !current.callers.client_auth_mandatory(),
            [own, behind @ ..] => {
                let verified = current
                    .callers
                    .verify_client_cert(own, behind, UnixTime::now());
                verified.is_ok()
            }
        }
    }

    /// For the next connection to `peer`, over HTTP/2.
    pub fn client(&self, peer: Peer) -> Result<Arc<ClientConfig>, Error> {
        let credentials = self.credentials();
        let trust = Trust::Roots(roots(&credentials.roots)?);
        let cluster = Some(credentials.identity.cluster.clone());
        let mut config = client(trust, peer, cluster, Some(&credentials))?;
        config.alpn_protocols = vec![ALPN[0].to_vec()];
        Ok(Arc::new(config))
    }

    /// How long until the certificate is to be replaced: the middle of its life.
    pub fn replace_in(&self) -> Duration {
        let credentials = self.credentials();
        let due = credentials.chain.first().and_then(ca::half_life);
        let due = due.and_then(|due| due.duration_since(clock::now().steady).ok());
        due.unwrap_or_default().max(SHORTEST_PAUSE)
    }

    /// Returns when the certificate is to be replaced. It looks at the clock again now
    /// and then, which may have been set. Cancel-safe.
    pub async fn replace_due(&self) {
        loop {
            let due = self.replace_in();
            tokio::time::sleep(due.min(LOOK_AGAIN)).await;
            if due <= LOOK_AGAIN {
                return;
            }
        }
    }
}

impl Current {
    fn new(
        credentials: Credentials,
        client_certificates: ClientCertificates,
    ) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let trusted = Arc::new(roots(&credentials.roots)?);
        let genuine = WebPkiClientVerifier::builder_with_provider(trusted, provider.clone());
        let genuine = match client_certificates {
            ClientCertificates::Optional => genuine.allow_unauthenticated().build(),
            ClientCertificates::Required => genuine.build(),
        };
        let genuine = genuine.map_err(|error| TlsError::General(error.to_string()))?;
        let callers = Arc::new(Callers {
            cluster: credentials.identity.cluster.clone(),
            genuine,
        });
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(callers.clone())
            .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
        server.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        // A session taken up again would not be looked at again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            credentials: Arc::new(credentials),
            server: Arc::new(server),
            callers,
        })
    }
}

/// Who is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The scheduler of one's cluster.
    Scheduler,
    /// The worker of this id.
    Worker(Uuid),
    /// The scheduler, as a client reaches it: its certificate may also be an
    /// ordinary one, which names the host and nobody of a cluster.
    HttpApi,
}

/// Who vouches for others: the authorities that are trusted.
#[derive(Clone, Debug)]
pub enum Trust {
    /// These authorities.
    Roots(RootCertStore),
    /// Whichever authority bears this fingerprint: for joining.
    Fingerprint(Fingerprint),
}

/// Authorities to be trusted.
pub fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for root in certificates {
        store.add(root.clone()).map_err(Error::Root)?;
    }
    match store.is_empty() {
        true => Err(Error::NoRoots),
        false => Ok(store),
    }
}

/// How to call `peer`, of `cluster` where that is known, showing `own`.
pub fn client(
    trust: Trust,
    peer: Peer,
    cluster: Option<String>,
    own: Option<&Credentials>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier {
        trust,
        peer,
        cluster,
        provider: provider.clone(),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => config.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Whether something is so by the wall clock, which shows `now`, or would be so without a
/// step of it that may be undone.
fn in_time<T>(
    now: UnixTime,
    judge: impl Fn(UnixTime) -> Result<T, TlsError>,
) -> Result<T, TlsError> {
    judge(now).or_else(|error| {
        let steady = clock::now().steady.duration_since(SystemTime::UNIX_EPOCH);
        let steady = UnixTime::since_unix_epoch(steady.unwrap_or_default());
        match steady == now {
            true => Err(error),
            false => judge(steady).map_err(|_| error),
        }
    })
}

/// Somebody else than was to be there.
#[derive(Debug, thiserror::Error)]
enum WrongPeer {
    #[error("the certificate there names nobody of a cluster: {0}")]
    Nobody(NotAnIdentity),
    #[error("the certificate there is of {found}, not of {wanted}")]
    Other { found: String, wanted: String },
    #[error("the scheduler there is of cluster {found}, not of {wanted}")]
    OtherCluster { found: String, wanted: String },
    #[error("the authority there is not the one the token names")]
    OtherAuthority,
}

impl From<WrongPeer> for TlsError {
    fn from(error: WrongPeer) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The code word where a certificate is not valid at the time of this machine.
pub const CLOCKS_DIFFER: &str = "clocks_differ";

/// What to say where a certificate is not valid at the time of this machine: its
/// limits and the clock here in words, so that a person sees which clock is wrong.
pub fn clocks_differ(error: &CertificateError) -> Option<String> {
    let (time, limit, is_early) = match error {
        CertificateError::NotValidYetContext { time, not_before } => (time, not_before, true),
        CertificateError::ExpiredContext { time, not_after } => (time, not_after, false),
        CertificateError::NotValidYet => {
            return Some("its certificate is not valid yet, or the clocks differ".to_owned());
        }
        CertificateError::Expired => {
            return Some("its certificate has expired, or the clocks differ".to_owned());
        }
        _ => return None,
    };
    let shown = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX)
    };
    let (now, limit, apart) = (
        shown(time),
        shown(limit),
        in_words(time.as_secs().abs_diff(limit.as_secs())),
    );
    Some(match is_early {
        true => format!(
            "this machine's clock says {now}, and its certificate is valid from {limit} on; the \
             clocks differ by {apart} or more"
        ),
        false => format!(
            "this machine's clock says {now}, and its certificate was valid until {limit}; it has \
             expired, or the clocks differ by {apart} or more"
        ),
    })
}

/// The largest unit of a length of time.
fn in_words(seconds: u64) -> String {
    let (count, unit) = match seconds {
        86_400.. => (seconds / 86_400, "day"),
        3600.. => (seconds / 3600, "hour"),
        60.. => (seconds / 60, "minute"),
        _ => (seconds, "second"),
    };
    match count {
        1 => format!("1 {unit}"),
        count => format!("{count} {unit}s"),
    }
}

/// Why somebody who was called is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distrust {
    /// Whether its certificate is not valid at the time that it is here.
    pub is_of_clocks: bool,
    /// Whether it is the scheduler of another cluster; else its certificate is of no
    /// authority that is trusted, or not what it should be.
    pub is_of_other_cluster: bool,
    /// The same in words.
    pub why: String,
}

impl Distrust {
    /// Whether that is what is at the bottom of an error, and why.
    pub fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(TlsError::InvalidCertificate(error)) = error.downcast_ref() {
                let (is_of_other_cluster, why) = match error {
                    CertificateError::Other(OtherError(error)) => (
                        matches!(error.downcast_ref(), Some(WrongPeer::OtherCluster { .. })),
                        error.to_string(),
                    ),
                    CertificateError::UnknownIssuer => {
                        let why = "its certificate is of another authority than those that are \
                                   trusted here";
                        (false, why.to_owned())
                    }
                    error => {
                        let why = clocks_differ(error);
                        (false, why.unwrap_or_else(|| error.to_string()))
                    }
                };
                return Some(Self {
                    is_of_clocks: clocks_differ(error).is_some(),
                    is_of_other_cluster,
                    why,
                });
            }
            // An I/O error does not count what is in it among its sources.
            let within = error.downcast_ref::<io::Error>();
            cause = match within.and_then(io::Error::get_ref) {
                Some(within) => Some(within),
                None => error.source(),
            };
        }
        None
    }
}

/// Verifies a server.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    peer: Peer,
    cluster: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Whether it is who is to be there, at this time.
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let roots = match &self.trust {
            Trust::Roots(roots) => roots.clone(),
            Trust::Fingerprint(fingerprint) => {
                let mut found = RootCertStore::empty();
                for shown in intermediates {
                    if ca::fingerprint(shown) == Some(*fingerprint) {
                        found.add(shown.clone().into_owned())?;
                    }
                }
                if found.is_empty() {
                    return Err(WrongPeer::OtherAuthority.into());
                }
                found
            }
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        self.check(end_entity, &parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        host: &ServerName<'_>,
    ) -> Result<(), TlsError> {
        let found = match Identity::of(certificate) {
            Ok(found) => found,
            Err(NotAnIdentity::Names(0)) if self.peer == Peer::HttpApi => {
                return verify_server_name(parsed, host);
            }
            Err(error) => return Err(WrongPeer::Nobody(error).into()),
        };
        let is_peer = match self.peer {
            Peer::Scheduler | Peer::HttpApi => found.role == Role::Scheduler,
            Peer::Worker(id) => found.role == Role::Worker && found.id == id,
        };
        match &self.cluster {
            _ if !is_peer => Err(WrongPeer::Other {
                found: format!("{found} of cluster {}", found.cluster),
                wanted: match self.peer {
                    Peer::Worker(id) => format!("worker {id}"),
                    Peer::Scheduler | Peer::HttpApi => "a scheduler".to_owned(),
                },
            }
            .into()),
            Some(wanted) if *wanted != found.cluster => Err(WrongPeer::OtherCluster {
                found: found.cluster,
                wanted: wanted.clone(),
            }
            .into()),
            Some(_) | None => Ok(()),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        in_time(now, |now| {
            self.verify(end_entity, intermediates, server_name, now)
        })
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Verifies a caller.
#[derive(Debug)]
struct Callers {
    cluster: String,
    genuine: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Callers {
    fn offer_client_auth(&self) -> bool {
        self.genuine.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.genuine.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.genuine.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let genuine = &self.genuine;
        let verified = in_time(now, |now| {
            genuine.verify_client_cert(end_entity, intermediates, now)
        })?;
        let found = Identity::of(end_entity).map_err(WrongPeer::Nobody)?;
        if found.cluster != self.cluster {
            return Err(WrongPeer::Other {
                found: format!("{found} of cluster {}", found.cluster),
                wanted: format!("somebody of cluster {}", self.cluster),
            }
            .into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.genuine.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.genuine.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.genuine.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_wrong_is_said_with_both_times() {
        crate::identity::install_crypto();
        let ca = ca::Ca::create("c").unwrap();
        let scheduler = Identity {
            cluster: "c".to_owned(),
            role: Role::Scheduler,
            id: Uuid::new_v4(),
            name: String::new(),
        };
        let shown = ca.credentials(&scheduler, &[]).unwrap();
        let verifier = Verifier {
            trust: Trust::Roots(roots(&ca.roots()).unwrap()),
            peer: Peer::Scheduler,
            cluster: None,
            provider: Arc::new(aws_lc_rs::default_provider()),
        };
        let host = ServerName::try_from("localhost").unwrap();
        let month = Duration::from_secs(30 * 86_400);
        let now = UnixTime::now().as_secs();
        let at = |seconds: u64| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let verified = verifier.verify(&shown.chain[0], &shown.chain[1..], &host, time);
            let clock = jiff::Timestamp::from_second(seconds as i64).unwrap();
            (verified.err(), clock.to_string())
        };
        assert_eq!(at(now).0, None);
        for (seconds, words) in [
            (now - month.as_secs(), " days or more"),
            (
                now + month.as_secs(),
                "it has expired, or the clocks differ by ",
            ),
        ] {
            let (error, clock) = at(seconds);
            let distrust = Distrust::of(&error.unwrap()).unwrap();
            assert!(distrust.is_of_clocks, "{distrust:?}");
            let why = distrust.why;
            assert!(
                why.contains(&format!("this machine's clock says {clock}, ")),
                "{why}"
            );
            assert!(
                why.contains(words) && why.contains(" days or more"),
                "{why}"
            );
            assert!(!why.contains(&seconds.to_string()), "{why}");
        }
    }

    #[test]
    fn a_length_of_time_has_one_unit() {
        for (seconds, words) in [
            (1, "1 second"),
            (119, "1 minute"),
            (7_200, "2 hours"),
            (2_592_000, "30 days"),
        ] {
            assert_eq!(in_words(seconds), words);
        }
    }
}
