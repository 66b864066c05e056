//! A connection that lasts no longer than the certificate by which its other end has shown who it is.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::{authority::Authority, peer::Peer, security::End, shares::Place};

pub(super) type Tls = TlsStream<TcpStream>;

/// Bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// All that is open on it ends with it.
pub(crate) struct Lasting {
    stream: Box<dyn Stream>,
    peer: Peer,
    /// When whoever is at the other end counts no more; `None` when that has come.
    ends: Option<BoxFuture<'static, End>>,
    /// On a Unix socket, where an authority may be a path.
    authority: Option<Authority>,
    /// One that was let in counts against the room for connections as long as it lasts.
    _place: Option<Place<String>>,
}

impl Lasting {
    /// One that this node has made.
    pub(super) fn made(stream: Box<dyn Stream>, peer: Peer) -> Self {
        let ends = Some(peer.ends());
        Self { stream, peer, ends, authority: None, _place: None }
    }

    /// One that was let in.
    pub(super) fn admitted(
        stream: Box<dyn Stream>,
        peer: Peer,
        authority: Option<Authority>,
        place: Place<String>,
    ) -> Self {
        Self { authority, _place: Some(place), ..Self::made(stream, peer) }
    }

    /// Whether it goes on.
    fn goes_on(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(ends) = &mut self.ends {
            let Poll::Ready(end) = ends.poll_unpin(cx) else { return Ok(()) };
            self.ends = None;
            let caller = self.peer.who();
            tracing::warn!(target: "audit", %caller, from = %self.peer, "a connection is ended: the certificate {end}");
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}

impl Connected for Lasting {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Lasting {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.goes_on(cx)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if let (Poll::Ready(Ok(())), Some(authority)) = (&read, &mut this.authority) {
            authority.pass(&mut buffer.filled_mut()[before..]);
        }
        read
    }
}

impl AsyncWrite for Lasting {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.goes_on(cx)?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.goes_on(cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.goes_on(cx)?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
