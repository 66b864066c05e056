//! A TCP connection to a backend, as the protocols above it want one.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::{
    Kind, Wire,
    flow::Flow,
    outlet::{Ends, lock},
};

/// More than a header, and less than a server that sends for ever could fill quickly.
const RECEIVE_BUFFER: usize = 16 << 10;
const SEND_BUFFER: usize = 4 << 10;

/// A connection. It is reset when it is dropped: a check leaves nothing behind, no port in TIME_WAIT either.
pub(in crate::health::check) struct TcpFlow {
    flow: Arc<Mutex<Flow>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl TcpFlow {
    /// Connects; whoever waits says for how long.
    pub(in crate::health::check) async fn connect(wire: &Arc<Wire>, ends: Ends, port: u16) -> io::Result<Self> {
        let buffer = |len: usize| SocketBuffer::new(vec![0; len]);
        let opened = wire.open(Kind::Port, ends, |flow, _| {
            let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
            socket.set_ack_delay(None);
            socket.set_nagle_enabled(false);
            flow.add(socket);
        });
        let flow = opened.ok_or_else(no_port)?;
        let mut connection = Self { flow, timer: None };
        {
            let mut flow = lock(&connection.flow);
            let own = (smoltcp::wire::IpAddress::from(ends.source), flow.port);
            let (socket, context) = flow.socket::<Socket<'_>>().ok_or_else(no_port)?;
            let to = (smoltcp::wire::IpAddress::from(ends.vip), port);
            socket.connect(context, to, own).map_err(io::Error::other)?;
            flow.turn();
        }
        std::future::poll_fn(|context| {
            connection.poll(context, |socket, waker| match socket.state() {
                State::SynSent => {
                    socket.register_send_waker(waker);
                    socket.register_recv_waker(waker);
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                _ => Poll::Ready(Ok(())),
            })
        })
        .await?;
        Ok(connection)
    }

    /// Does something with the socket, now and whenever something has happened.
    fn poll<R>(
        &mut self,
        context: &mut Context<'_>,
        mut step: impl FnMut(&mut Socket<'static>, &std::task::Waker) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut flow = lock(&self.flow);
            let Some((socket, _)) = flow.socket::<Socket<'_>>() else { return Poll::Ready(Err(no_port())) };
            let stepped = step(socket, context.waker());
            // What was written leaves, and room that was made is told.
            flow.turn();
            if stepped.is_ready() {
                return stepped;
            }
            // What is lost is sent again.
            let Some(due) = flow.due() else { return Poll::Pending };
            drop(flow);
            let sleep = Duration::from_micros(due.total_micros()).max(Duration::from_millis(1));
            let timer = self.timer.insert(Box::pin(tokio::time::sleep(sleep)));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncRead for TcpFlow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(context, |socket, waker| {
            if socket.can_recv() {
                let taken = socket.recv(|bytes| {
                    let len = bytes.len().min(buffer.remaining());
                    buffer.put_slice(&bytes[..len]);
                    (len, ())
                });
                return Poll::Ready(taken.map_err(io::Error::other));
            }
            match socket.recv(|_| (0, ())) {
                // The other side has finished.
                Err(RecvError::Finished) => Poll::Ready(Ok(())),
                Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Ok(()) => {
                    socket.register_recv_waker(waker);
                    Poll::Pending
                }
            }
        })
    }
}

impl AsyncWrite for TcpFlow {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(context, |socket, waker| {
            if !socket.may_send() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if socket.can_send() {
                return Poll::Ready(socket.send_slice(bytes).map_err(io::Error::other));
            }
            socket.register_send_waker(waker);
            Poll::Pending
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        let mut flow = lock(&self.flow);
        if let Some((socket, _)) = flow.socket::<Socket<'_>>() {
            socket.abort();
        }
        flow.turn();
    }
}

pub(super) fn no_port() -> io::Error {
    io::Error::other("all ports for checks are taken")
}
