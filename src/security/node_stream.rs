//! A connection between two nodes, as it is or inside TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection between two nodes.
pub enum NodeStream {
    /// As it is.
    Plain(TcpStream),
    /// Inside TLS, both ends having shown their certificates.
    Tls(Box<TlsStream<Socket>>),
}

/// A connection on its way to another runtime.
pub enum MovedStream {
    /// As it is.
    Plain(std::net::TcpStream),
    /// Inside TLS.
    Tls(Box<TlsStream<Socket>>),
}

/// The socket below TLS. It belongs to one runtime, and to none while it is moved.
pub enum Socket {
    /// With a runtime.
    Here(TcpStream),
    /// Without one.
    Between(Option<std::net::TcpStream>),
}

impl NodeStream {
    /// Takes the connection from the present runtime.
    ///
    /// # Errors
    /// Where the runtime does not let go of the socket.
    pub fn leave(self) -> io::Result<MovedStream> {
        Ok(match self {
            NodeStream::Plain(stream) => MovedStream::Plain(stream.into_std()?),
            NodeStream::Tls(mut stream) => {
                let socket = stream.get_mut().0;
                if let Socket::Here(here) = std::mem::replace(socket, Socket::Between(None)) {
                    *socket = Socket::Between(Some(here.into_std()?));
                }
                MovedStream::Tls(stream)
            }
        })
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            NodeStream::Plain(stream) => Some(stream),
            NodeStream::Tls(stream) => stream.get_ref().0.here(),
        }
    }

    /// Ends the connection when the other end has acknowledged nothing for `limit`, or does not answer probes.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn notice_silence(&self, limit: Duration) -> io::Result<()> {
        let Some(socket) = self.socket() else { return Ok(()) };
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        setsockopt(socket, sockopt::TcpKeepIdle, &u32::try_from(limit.as_secs() / 2).unwrap_or(1).max(1))?;
        setsockopt(socket, sockopt::TcpUserTimeout, &millis)?;
        Ok(())
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket()?.peer_addr().ok()
    }
}

impl MovedStream {
    /// Gives the connection to the present runtime.
    ///
    /// # Errors
    /// Where the runtime does not take the socket.
    pub fn arrive(self) -> io::Result<NodeStream> {
        Ok(match self {
            MovedStream::Plain(stream) => NodeStream::Plain(TcpStream::from_std(stream)?),
            MovedStream::Tls(mut stream) => {
                let socket = stream.get_mut().0;
                if let Socket::Between(between) = socket
                    && let Some(between) = between.take()
                {
                    *socket = Socket::Here(TcpStream::from_std(between)?);
                }
                NodeStream::Tls(stream)
            }
        })
    }
}

impl Socket {
    fn here(&self) -> Option<&TcpStream> {
        match self {
            Socket::Here(stream) => Some(stream),
            Socket::Between(_) => None,
        }
    }

    fn pinned(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        match self.get_mut() {
            Socket::Here(stream) => Ok(Pin::new(stream)),
            Socket::Between(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.pinned()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.pinned()?.poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pinned()?.poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned()?.poll_shutdown(cx)
    }
}

/// The same call on whichever of the two it is.
macro_rules! either {
    ($stream:ident.$call:ident($($argument:expr),*)) => {
        match $stream.get_mut() {
            NodeStream::Plain(stream) => Pin::new(stream).$call($($argument),*),
            NodeStream::Tls(stream) => Pin::new(&mut **stream).$call($($argument),*),
        }
    };
}

impl AsyncRead for NodeStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.poll_read(cx, buf))
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.poll_write(cx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            NodeStream::Plain(stream) => stream.is_write_vectored(),
            NodeStream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.poll_shutdown(cx))
    }
}

impl hyper_util::client::legacy::connect::Connection for NodeStream {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connected::new()
    }
}

impl Connected for NodeStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo {
            local_addr: self.socket().and_then(|socket| socket.local_addr().ok()),
            remote_addr: self.peer_addr(),
        }
    }
}
