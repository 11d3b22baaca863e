//! What an attacker has: certificates of any shape, connections on which any
//! bytes are sent, and a look at what came of it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use jobctl::identity::{
    Identity, Role,
    ca::Ca,
    files::Pem,
    tls::{Credentials, roots},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    version::TLS13,
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::{enrolled, support::within};

/// Whom an attacker trusts: anybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What somebody shows of themselves.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Clone for Shown {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl From<&Credentials> for Shown {
    fn from(own: &Credentials) -> Self {
        Self {
            chain: own.chain.clone(),
            key: own.key.clone_key(),
        }
    }
}

impl Shown {
    /// What is in a file of certificate and key.
    pub(crate) fn of(file: &std::path::Path) -> Self {
        let pem = Pem::read_secret(file).unwrap().unwrap();
        Self {
            chain: pem.certificates,
            key: pem.key.unwrap(),
        }
    }

    /// Of somebody new in the cluster of the tests.
    pub(crate) fn new(role: Role, name: &str) -> Self {
        Self::from(&enrolled::credentials(role, name))
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity::of(&self.chain[0]).unwrap()
    }

    /// For a server that lets everybody in and proves to be this.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(self.chain.clone(), self.key.clone_key())
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// An authority of which the attacker has the key, genuine or not.
pub(crate) struct Maker {
    pub(crate) root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate says.
pub(crate) struct Forged {
    pub(crate) uris: Vec<String>,
    pub(crate) name: String,
    /// From when to when, in seconds from now.
    pub(crate) valid: (i64, i64),
    pub(crate) is_ca: bool,
}

impl Forged {
    /// As the authority makes them.
    pub(crate) fn of(identity: &Identity) -> Self {
        Self {
            uris: vec![identity.uri()],
            name: identity.name.clone(),
            valid: (-3600, 3600),
            is_ca: false,
        }
    }
}

impl Maker {
    /// The one of all clusters here, whose key was stolen.
    pub(crate) fn genuine() -> Self {
        Self::stolen(enrolled::authority())
    }

    /// Somebody's own.
    pub(crate) fn own() -> Self {
        Self::stolen(&Ca::create(enrolled::authority().cluster()).unwrap())
    }

    pub(crate) fn stolen(ca: &Ca) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        ca.store(&file).unwrap();
        let held = Shown::of(&file);
        Self::with(&held)
    }

    /// Any certificate and its key, whether it may sign or not.
    pub(crate) fn with(held: &Shown) -> Self {
        let key = KeyPair::try_from(&held.key).unwrap();
        Self {
            root: held.chain[0].clone(),
            issuer: Issuer::from_ca_cert_der(&held.chain[0], key).unwrap(),
        }
    }

    pub(crate) fn make(&self, forged: &Forged) -> Shown {
        let at = |seconds| OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        let mut asked = CertificateParams::default();
        asked.not_before = at(forged.valid.0);
        asked.not_after = at(forged.valid.1);
        asked.distinguished_name = DistinguishedName::new();
        asked
            .distinguished_name
            .push(DnType::CommonName, forged.name.as_str());
        let names = forged.uris.iter();
        asked.subject_alt_names = names
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        asked.is_ca = match forged.is_ca {
            true => IsCa::Ca(BasicConstraints::Unconstrained),
            false => IsCa::ExplicitNoCa,
        };
        asked.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
        ];
        asked.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let made = asked.signed_by(&key, &self.issuer).unwrap();
        Shown {
            chain: vec![made.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }
}

/// Of a client that shows this, or nothing, and speaks `protocol`.
pub(crate) fn config(shown: Option<&Shown>, protocol: &str) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match shown {
        // Whatever it is, and whoever is asked for.
        Some(shown) => config
            .with_client_auth_cert(shown.chain.clone(), shown.key.clone_key())
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    config
}

/// Connects from an address of this machine; None: from the usual one.
pub(crate) async fn dial(to: &str, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(to).await
}

/// A TLS connection, as far as the client can tell: what the server thinks of its
/// certificate it hears with the first answer.
pub(crate) async fn connect(
    to: &str,
    shown: Option<&Shown>,
    protocol: &str,
) -> io::Result<TlsStream<TcpStream>> {
    secure(dial(to, None).await?, shown, protocol).await
}

pub(crate) async fn secure(
    stream: TcpStream,
    shown: Option<&Shown>,
    protocol: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(config(shown, protocol)));
    let name = ServerName::try_from("127.0.0.1").unwrap();
    connector.connect(name, stream).await
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The connection ended without an answer.
    Closed,
    /// HTTP: its status.
    Answered(u16),
    /// gRPC: its code.
    Called(Code),
}

/// An answer to a request over HTTP/1.1.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        let (_, body) = self.text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn of(text: Vec<u8>) -> Self {
        let text = String::from_utf8_lossy(&text).into_owned();
        let status = text
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|status| status.parse().ok());
        Self {
            outcome: status.map_or(Outcome::Closed, Outcome::Answered),
            text,
        }
    }
}

/// Sends `bytes` and reads to the end of the connection.
pub(crate) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    bytes: &[u8],
) -> Vec<u8> {
    // Whoever is cut off while they write may still have an answer to read.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    read_all(stream).await
}

pub(crate) async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut answer = Vec::new();
    // However it ends, it is what came.
    let _ = within(stream.read_to_end(&mut answer)).await;
    answer
}

/// A request over HTTP/1.1 and TLS, `headers` with a CRLF behind each.
pub(crate) async fn http(
    to: &str,
    shown: Option<&Shown>,
    call: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let host = match headers.to_lowercase().contains("host:") {
        true => String::new(),
        false => format!("host: {to}\r\n"),
    };
    let length = body.len();
    let request = format!(
        "{call} HTTP/1.1\r\n{host}connection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    let answer = match within(connect(to, shown, "http/1.1")).await {
        Ok(mut stream) => exchange(&mut stream, request.as_bytes()).await,
        Err(_) => Vec::new(),
    };
    Answer::of(answer)
}

pub(crate) const JSON: &str = "content-type: application/json\r\n";

/// The same with a JSON body.
pub(crate) async fn post(
    to: &str,
    shown: Option<&Shown>,
    path: &str,
    body: &serde_json::Value,
) -> Answer {
    http(to, shown, &format!("POST {path}"), JSON, &body.to_string()).await
}

/// A channel over which any call is made.
pub(crate) fn channel(to: &str, shown: Option<Shown>) -> Channel {
    let to = to.to_owned();
    let endpoint = Endpoint::from_shared(format!("http://{to}")).unwrap();
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (to, shown) = (to.clone(), shown.clone());
        async move { Ok::<_, io::Error>(TokioIo::new(connect(&to, shown.as_ref(), "h2").await?)) }
    }))
}

/// An empty message to this method, with a token where there is one; what the
/// server says of who calls.
pub(crate) async fn rpc(
    to: &str,
    shown: Option<Shown>,
    bearer: Option<&str>,
    path: &'static str,
) -> Outcome {
    let mut request = tonic::Request::new(());
    if let Some(token) = bearer {
        let token = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", token);
    }
    let mut client = Grpc::new(channel(to, shown));
    let called = async {
        client.ready().await.map_err(|error| {
            let mut status = Status::unavailable("not connected");
            status.set_source(Arc::new(error));
            status
        })?;
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = PathAndQuery::from_static(path);
        let call = client.server_streaming(request, path, codec);
        call.await.map(drop)
    };
    match within(called).await {
        Ok(()) => Outcome::Called(Code::Ok),
        Err(status) => refusal(&status),
    }
}

/// Whether it was the server that said no, or the connection that broke.
pub(crate) fn refusal(status: &Status) -> Outcome {
    match std::error::Error::source(status) {
        Some(_) => Outcome::Closed,
        None => Outcome::Called(status.code()),
    }
}

/// A signing request as `change` asks for it, in DER.
pub(crate) fn signing_request(change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut asked = CertificateParams::default();
    change(&mut asked);
    let request = asked.serialize_request(&key).unwrap().der().to_vec();
    (key, request)
}

/// Whether this server is trusted by who knows these authorities alone.
pub(crate) async fn is_trusted(to: &str, trusted: &[CertificateDer<'static>]) -> bool {
    let trust = jobctl::identity::tls::Trust::Roots(roots(trusted).unwrap());
    let peer = jobctl::identity::tls::Peer::Scheduler;
    let config = jobctl::identity::tls::client(trust, peer, None, None).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = dial(to, None).await.unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    within(connected).await.is_ok()
}

/// The resident memory of a process, in KiB.
pub(crate) fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let text = line.unwrap().split_whitespace().nth(1).unwrap();
    text.parse().unwrap()
}
