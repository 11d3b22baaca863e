//! Dials the other role, over TLS unless there is none.

use std::{io, sync::Arc};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use super::socket::TcpStream;
use crate::identity::tls::{Distrust, Peer, Tls};

/// How the other side is reached.
#[derive(Clone, Debug)]
pub enum Security {
    /// With a certificate on both sides.
    Tls(Tls),
    /// By somebody who has no certificate yet.
    Joining(Arc<ClientConfig>),
    /// In plain text.
    Insecure,
}

impl Security {
    fn config(&self, peer: Peer) -> io::Result<Option<Arc<ClientConfig>>> {
        match self {
            Self::Tls(tls) => tls.client(peer).map(Some).map_err(io::Error::other),
            Self::Joining(config) => Ok(Some(config.clone())),
            Self::Insecure => Ok(None),
        }
    }
}

/// A connection, however it is secured.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A channel that dials with the first call, and again whenever it broke, each
/// time with the credentials of that moment. Nobody but `peer` is spoken to.
pub fn channel(endpoint: &Endpoint, security: Security, peer: Peer) -> Channel {
    let dial = move |uri: Uri| {
        let security = security.clone();
        async move {
            let stream = connect(&uri, &security, peer).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    };
    endpoint.connect_with_connector_lazy(service_fn(dial))
}

/// Why a call failed, where tonic says "tcp connect error": its causes know.
pub fn innermost(status: &Status) -> String {
    if let Some(distrust) = Distrust::of(status) {
        return distrust.why;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(deeper) = cause.and_then(|error| error.source()) {
        cause = Some(deeper);
    }
    let is_cut = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
    match cause {
        None => status.message().to_owned(),
        Some(cause) if cause.downcast_ref().is_some_and(is_cut) => {
            "the connection was closed".to_owned()
        }
        Some(cause) => cause.to_string(),
    }
}

async fn connect(uri: &Uri, security: &Security, peer: Peer) -> io::Result<Box<dyn Stream>> {
    let unusable = || io::Error::from(io::ErrorKind::InvalidInput);
    let authority = uri.authority().ok_or_else(unusable)?;
    let stream = TcpStream::connect(authority.as_str()).await?;
    stream.set_nodelay(true)?;
    let Some(config) = security.config(peer)? else {
        return Ok(Box::new(stream));
    };
    // An IPv6 address stands in brackets here, and not there.
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(|_| unusable())?;
    let secured = TlsConnector::from(config).connect(name, stream).await?;
    Ok(Box::new(secured))
}
