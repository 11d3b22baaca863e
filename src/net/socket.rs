//! The sockets of both roles: the system's, or in a test those of a simulated network.

#[cfg(not(test))]
pub use tokio::net::{TcpListener, TcpStream};

#[cfg(test)]
pub use self::either::{TcpListener, TcpStream};

#[cfg(test)]
mod either {
    use std::{
        io::{self, IoSlice},
        net::SocketAddr,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::{
        io::{AsyncRead, AsyncWrite, ReadBuf},
        net,
    };
    use tokio_util::either::Either;

    /// A connection.
    #[derive(Debug)]
    pub struct TcpStream(Either<net::TcpStream, turmoil::net::TcpStream>);

    impl TcpStream {
        /// Dials host:port.
        pub async fn connect(address: &str) -> io::Result<Self> {
            Ok(Self(match crate::simulation::is_on() {
                true => Either::Right(turmoil::net::TcpStream::connect(address).await?),
                false => Either::Left(net::TcpStream::connect(address).await?),
            }))
        }

        /// As that of the system.
        pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
            match &self.0 {
                Either::Left(stream) => stream.set_nodelay(nodelay),
                Either::Right(stream) => stream.set_nodelay(nodelay),
            }
        }
    }

    impl AsyncRead for TcpStream {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for TcpStream {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.0.is_write_vectored()
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().0).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
        }
    }

    /// Where connections come in.
    #[derive(Debug)]
    pub struct TcpListener(Source);

    #[derive(Debug)]
    enum Source {
        System(net::TcpListener),
        Simulated(Simulated),
    }

    struct Simulated(turmoil::net::TcpListener);

    impl std::fmt::Debug for Simulated {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_tuple("Simulated")
                .field(&self.0.local_addr())
                .finish()
        }
    }

    impl From<net::TcpListener> for TcpListener {
        fn from(listener: net::TcpListener) -> Self {
            Self(Source::System(listener))
        }
    }

    impl TcpListener {
        /// Listens at an address of this machine.
        pub async fn bind(address: impl net::ToSocketAddrs) -> io::Result<Self> {
            Ok(net::TcpListener::bind(address).await?.into())
        }

        /// Listens at this port of a simulated machine.
        pub async fn simulated(port: u16) -> io::Result<Self> {
            let listener = turmoil::net::TcpListener::bind(("0.0.0.0", port)).await?;
            Ok(Self(Source::Simulated(Simulated(listener))))
        }

        /// The next connection, and from where it comes. Cancel-safe.
        pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
            let (stream, address) = match &self.0 {
                Source::System(listener) => {
                    let (stream, address) = listener.accept().await?;
                    (Either::Left(stream), address)
                }
                Source::Simulated(listener) => {
                    let (stream, address) = listener.0.accept().await?;
                    (Either::Right(stream), address)
                }
            };
            Ok((TcpStream(stream), address))
        }

        /// Where it listens.
        pub fn local_addr(&self) -> io::Result<SocketAddr> {
            match &self.0 {
                Source::System(listener) => listener.local_addr(),
                Source::Simulated(listener) => listener.0.local_addr(),
            }
        }
    }
}
