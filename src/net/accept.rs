//! Accepts connections for both roles: how many, from whom, how long each may
//! take to say who it is and what it wants, and what a single one may ask for.
//! Who calls is told to the handlers as a [`Connection`]; what a caller may do
//! is decided by them.

use std::{
    collections::{HashMap, VecDeque},
    error::Error as _,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, CONTENT_TYPE},
    },
    response::Response,
};
use http_body_util::LengthLimitError;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::{
    bounds::Bounds,
    socket::{TcpListener, TcpStream},
};
use crate::identity::{Identity, ca, tls::Tls};

/// What is tried again after a pause when there are no descriptors left.
const PAUSE: Duration = Duration::from_secs(1);

/// An HTTP/2 connection that says nothing is asked whether it is there, and given
/// up after twice this time, or twice that of headers where this is less: between
/// the frames of headers nothing else may be said, so who drips them cannot answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The largest body of somebody who is not known, in bytes: a signing request is
/// much less.
pub const MAX_STRANGE: usize = 16 * 1024;

/// Where a request comes from; an extension of every request.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The other end.
    pub address: SocketAddr,
    /// Whom the certificate names; `None`: there is none.
    pub identity: Option<Arc<Identity>>,
    /// When the certificate ends, which connections do not by themselves.
    pub expires_at: Option<SystemTime>,
}

/// Tells when the connections of somebody are to be cut.
pub type Cuts = Arc<dyn Fn(&Identity) -> CancellationToken + Send + Sync>;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// HTTP/2 alone, which no page can make a browser speak in plain text.
    Grpc,
}

/// What is served, and how.
pub struct Server {
    /// Where.
    pub listener: TcpListener,
    /// `None`: in plain text.
    pub tls: Option<Tls>,
    /// Answers the requests.
    pub router: Router,
    /// What it takes.
    pub bounds: Bounds,
    /// Whom it stops serving.
    pub cuts: Cuts,
    /// What it speaks.
    pub protocol: Protocol,
    /// For the log.
    pub name: &'static str,
}

impl Server {
    /// Serves until `closing`. Then connections end with the answers they owe,
    /// and it returns when all have ended; dropped, it cuts them.
    pub async fn run(self, closing: CancellationToken) {
        let mut connections = JoinSet::new();
        let shared = Arc::new(Shared {
            tls: self.tls,
            router: self.router,
            bounds: self.bounds,
            cuts: self.cuts,
            protocol: self.protocol,
            name: self.name,
            peers: Mutex::default(),
        });
        let mut short = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = closing.cancelled() => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    if std::mem::take(&mut short) {
                        tracing::info!(server = self.name, "connections are accepted again");
                    }
                    let one = shared.clone().serve(stream, address, closing.clone());
                    connections.spawn(one);
                }
                // It was gone before it was taken.
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    // Out of descriptors, most likely: trying at once would try for ever.
                    if !std::mem::replace(&mut short, true) {
                        tracing::warn!(server = self.name, %error, "cannot accept connections");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

struct Shared {
    tls: Option<Tls>,
    router: Router,
    bounds: Bounds,
    cuts: Cuts,
    protocol: Protocol,
    name: &'static str,
    peers: Mutex<Peers>,
}

/// All connections.
#[derive(Default)]
struct Peers {
    of: HashMap<IpAddr, Peer>,
    /// How many there are, but for those that have to go.
    count: usize,
    /// Of the next connection.
    number: u64,
    /// It was said that there are as many as may be.
    full: bool,
}

/// What counts as one address: of IPv6 a /64, within which one machine may have
/// every address.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// The connections from one address.
#[derive(Default)]
struct Peer {
    /// Those that have asked for nothing yet, the oldest first.
    silent: VecDeque<(u64, CancellationToken)>,
    served: usize,
}

impl Peers {
    /// Has the oldest of this address go that has asked for nothing.
    fn evict_of(&mut self, address: IpAddr) {
        let peer = self.of.get_mut(&address);
        if let Some((_, oldest)) = peer.and_then(|peer| peer.silent.pop_front()) {
            oldest.cancel();
            self.count -= 1;
        }
    }

    /// Has the oldest of all go that has asked for nothing.
    fn evict(&mut self) {
        let fronts = self
            .of
            .iter()
            .filter_map(|(address, peer)| Some((peer.silent.front()?.0, *address)));
        if let Some((_, address)) = fronts.min() {
            self.evict_of(address);
        }
    }
}

impl Shared {
    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        closing: CancellationToken,
    ) {
        let place = Place::take(&self, counted(address.ip()));
        let too_many = place.evicted.clone();
        let served = async {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY refused");
            }
            match &self.tls {
                None => {
                    let connection = Connection {
                        address,
                        identity: None,
                        expires_at: None,
                    };
                    let cut = CancellationToken::new();
                    self.talk(stream, connection, place, cut, closing).await;
                }
                Some(tls) => {
                    let handshake = TlsAcceptor::from(tls.server()).accept(stream);
                    match timeout(self.bounds.handshake, handshake).await {
                        Ok(Ok(stream)) => {
                            let shown = stream.get_ref().1.peer_certificates();
                            // Whom it names was checked with it.
                            let identity =
                                shown.and_then(|chain| Identity::of(chain.first()?).ok());
                            let cut = identity.as_ref().map(|identity| (self.cuts)(identity));
                            // Whom to accept may have changed since the handshake
                            // began; if it changes from here on, `cut` tells.
                            if !tls.accepts(shown) {
                                tracing::debug!(server = self.name, %address, "not accepted any more");
                                return;
                            }
                            let connection = Connection {
                                address,
                                identity: identity.map(Arc::new),
                                expires_at: shown.and_then(|chain| ca::not_after(chain.first()?)),
                            };
                            let cut = cut.unwrap_or_default();
                            self.talk(stream, connection, place, cut, closing).await;
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(server = self.name, %address, %error, "no TLS");
                        }
                        Err(_) => {
                            tracing::debug!(server = self.name, %address, "no TLS in time");
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = served => {}
            () = too_many.cancelled() => {
                tracing::debug!(server = self.name, %address, "one connection too many");
            }
        }
    }

    async fn talk(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        connection: Connection,
        place: Arc<Place>,
        cut: CancellationToken,
        closing: CancellationToken,
    ) {
        let address = connection.address;
        let handler = {
            let (router, place) = (self.router.clone(), place.clone());
            service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(connection.clone());
                let answer = place.ask().then(|| router.clone().call(request));
                let has_to_go = place.evicted.is_cancelled();
                async move {
                    match answer {
                        Some(answer) => answer.await,
                        // It is cut, and what was asked was not begun.
                        None if has_to_go => std::future::pending().await,
                        None => Ok(too_many()),
                    }
                }
            })
        };
        let builder = self.builder();
        let serving = builder.serve_connection(TokioIo::new(stream), handler);
        tokio::pin!(serving);
        let overdue = async {
            match timeout(self.bounds.headers, place.asked.notified()).await {
                Ok(()) => std::future::pending().await,
                Err(_) => "no request in time",
            }
        };
        let ended = tokio::select! {
            ended = &mut serving => Some(ended),
            why = overdue => {
                tracing::debug!(server = self.name, %address, why, "connection closed");
                return;
            }
            () = cut.cancelled() => None,
            () = closing.cancelled() => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = serving => Some(ended),
                    () = cut.cancelled() => None,
                }
            }
        };
        let Some(ended) = ended else {
            tracing::info!(server = self.name, %address, "connection closed: revoked");
            return;
        };
        if let Err(error) = ended {
            tracing::debug!(server = self.name, %address, %error, "a connection broke");
        }
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let bounds = &self.bounds;
        let mut builder = match self.protocol {
            Protocol::Http => auto::Builder::new(TokioExecutor::new()),
            Protocol::Grpc => auto::Builder::new(TokioExecutor::new()).http2_only(),
        };
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.headers)
            .max_buf_size(bounds.header_bytes.max(8192) as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(bounds.header_bytes)
            .max_concurrent_streams(bounds.streams)
            // Streams that are opened and reset at once (CVE-2023-44487), and
            // those this side had to reset (CVE-2025-8671).
            .max_pending_accept_reset_streams(Some(bounds.streams as usize))
            .max_local_error_reset_streams(Some(bounds.streams as usize))
            .keep_alive_interval(KEEPALIVE.min(bounds.headers))
            .keep_alive_timeout(KEEPALIVE.min(bounds.headers));
        builder
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection among those of its address; given back when dropped.
struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
    number: u64,
    /// Others came, and it had asked for nothing.
    evicted: CancellationToken,
    /// Whether it is one of those that are served; unset until it asks.
    served: OnceLock<bool>,
    asked: Notify,
}

impl Place {
    /// Among those that have asked for nothing yet, of which the oldest may have to
    /// go: somebody who only holds connections open keeps nobody out. Where every
    /// other has asked for something, that is this one.
    fn take(shared: &Arc<Shared>, address: IpAddr) -> Arc<Self> {
        let evicted = CancellationToken::new();
        let mut peers = shared.peers();
        let number = peers.number;
        peers.number += 1;
        peers.count += 1;
        let peer = peers.of.entry(address).or_default();
        peer.silent.push_back((number, evicted.clone()));
        if peer.silent.len() > shared.bounds.silent {
            peers.evict_of(address);
        }
        let limit = shared.bounds.total_connections;
        let is_over = peers.count > limit;
        if is_over {
            peers.evict();
        }
        let is_news = is_over && !std::mem::replace(&mut peers.full, true);
        drop(peers);
        if is_news {
            tracing::warn!(
                server = shared.name,
                limit,
                "no connection is left: for each new one the oldest goes that asked for nothing"
            );
        }
        Arc::new(Self {
            shared: shared.clone(),
            address,
            number,
            evicted,
            served: OnceLock::new(),
            asked: Notify::new(),
        })
    }

    /// It asks for something. False if too many of its address are served, or if
    /// it has to go.
    fn ask(&self) -> bool {
        *self.served.get_or_init(|| {
            self.asked.notify_one();
            let mut peers = self.shared.peers();
            let peer = peers.of.entry(self.address).or_default();
            if peer.served >= self.shared.bounds.connections || self.evicted.is_cancelled() {
                return false;
            }
            peer.served += 1;
            peer.silent.retain(|(number, _)| *number != self.number);
            true
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.shared.peers();
        if !self.evicted.is_cancelled() {
            peers.count -= 1;
        }
        if let Some(peer) = peers.of.get_mut(&self.address) {
            match self.served.get() {
                Some(true) => peer.served -= 1,
                Some(false) | None => peer.silent.retain(|(number, _)| *number != self.number),
            }
            if peer.served == 0 && peer.silent.is_empty() {
                peers.of.remove(&self.address);
            }
        }
        // Not with each that comes and goes at the limit.
        let is_news = peers.full && peers.count <= self.shared.bounds.total_connections / 4 * 3;
        peers.full &= !is_news;
        drop(peers);
        if is_news {
            tracing::info!(server = self.shared.name, "connections are left again");
        }
    }
}

/// A body that is there as a whole, from somebody who may be anybody: it is
/// small, and comes in time.
pub async fn whole(body: Body, within: Duration) -> Result<Body, Unfinished> {
    match timeout(within, axum::body::to_bytes(body, MAX_STRANGE)).await {
        Ok(Ok(body)) => Ok(Body::from(body)),
        Ok(Err(error)) => match error.source().and_then(|source| source.downcast_ref()) {
            Some(LengthLimitError { .. }) => Err(Unfinished::TooLarge),
            None => Err(Unfinished::Broken),
        },
        Err(_) => Err(Unfinished::TooSlow),
    }
}

/// Why a body is not there as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfinished {
    /// Nobody says so much who is not known.
    #[error("the body is larger than {MAX_STRANGE} bytes")]
    TooLarge,
    /// It did not come in time.
    #[error("the body did not come in time")]
    TooSlow,
    /// The connection broke, or the body is none.
    #[error("the body broke off")]
    Broken,
}

/// For somebody who has enough connections.
fn too_many() -> Response {
    let body = serde_json::json!({
        "error": "too many connections from this address",
        "code": "too_many_connections",
    });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(bounds: Bounds) -> Arc<Shared> {
        Arc::new(Shared {
            tls: None,
            router: Router::new(),
            bounds,
            cuts: Arc::new(|_| CancellationToken::new()),
            protocol: Protocol::Http,
            name: "test",
            peers: Mutex::default(),
        })
    }

    #[test]
    fn the_addresses_of_one_network_of_ipv6_count_as_one() {
        let counted = |text: &str| counted(text.parse().unwrap()).to_string();
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:2:ffff::1"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:3::1"), "2001:db8:1:3::");
        assert_eq!(counted("10.1.2.3"), "10.1.2.3");
        assert_eq!(counted("::ffff:10.1.2.3"), "10.1.2.3");
    }

    #[test]
    fn whoever_has_to_go_is_the_oldest_that_asked_for_nothing_and_is_not_served() {
        let bounds = Bounds {
            total_connections: 2,
            ..Bounds::default()
        };
        let shared = shared(bounds);
        let take = |number| Place::take(&shared, IpAddr::from([127, 0, 0, number]));
        let (first, second) = (take(1), take(2));
        assert!(first.ask());
        let third = take(3);
        assert!(second.evicted.is_cancelled() && !second.ask());
        assert!(!first.evicted.is_cancelled() && !third.evicted.is_cancelled());
        assert!(third.ask());
        let fourth = take(1);
        assert!(fourth.evicted.is_cancelled() && !fourth.ask());
        assert_eq!(shared.peers().count, 2);
        drop(third);
        assert!(take(1).ask());
        drop((first, second, fourth));
        let left = shared.peers();
        assert_eq!((left.count, left.of.len()), (0, 0));
    }
}
