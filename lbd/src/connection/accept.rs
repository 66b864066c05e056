//! Who is let in. Whoever has not shown who he is yet costs little and has little time; there is so much room, and no address
//! takes all of it.

use std::{
    io,
    net::{IpAddr, TcpListener},
    os::unix::net::UnixListener,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, future::BoxFuture};
use lb_proto::tls::{Certified, WATCHDOG};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    authority::Authority,
    keepalive::keep_alive,
    lasting::{Lasting, Tls},
    peer::{From, Peer, Shown},
    refusals::{Refusal, Refusals},
    room::Room,
    secret::{Secret, secret},
    security::{End, Security},
    shares::Place,
};

/// For a handshake (TLS, in which a certificate is shown).
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that are let in and not served yet.
const WAITING: usize = 16;
/// After the system had no descriptor or no memory for one.
const AFTER_A_FAULT: Duration = Duration::from_millis(50);

/// A node that watches whether this process lives, for as long as its connection lasts.
pub(crate) struct Watched {
    /// The node's name.
    pub(crate) by: String,
    pub(crate) secret: Secret,
    pub(crate) stream: Box<Tls>,
    /// When the node's certificate counts no more.
    pub(crate) ends: BoxFuture<'static, End>,
    _place: Place<String>,
}

/// Those who come to a TCP listener and are let in. `watches`: where those go who watch; `None` where nobody may.
pub(crate) fn incoming(
    listener: TcpListener,
    security: Security,
    room: Room,
    watches: Option<mpsc::UnboundedSender<Watched>>,
) -> io::Result<impl Stream<Item = io::Result<Lasting>> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (sender, admitted) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::debug!(%error, "a connection was not accepted");
                        sleep(AFTER_A_FAULT).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let _ = stream.set_nodelay(true);
            keep_alive(&stream);
            let peer = Peer { from: From::Tcp(address), shown: Shown::Nothing };
            match &security {
                Security::Plain => {
                    let Some(place) = room.take(&peer) else { continue };
                    if sender.send(Ok(Lasting::admitted(Box::new(stream), peer, None, place))).await.is_err() {
                        return;
                    }
                }
                Security::Tls(_) => {
                    let Some(handshake) = room.begin_handshake(address.ip()) else {
                        tracing::debug!(from = %address, "a connection is closed: its address has as many that have shown no certificate");
                        continue;
                    };
                    let (security, sender, watches) = (security.clone(), sender.clone(), watches.clone());
                    let room = room.clone();
                    tokio::spawn(async move {
                        let secured = secure(stream, address.ip(), security, room.refusals()).await;
                        drop(handshake);
                        let Some((stream, shown)) = secured else { return };
                        let peer = Peer { shown, ..peer };
                        if watches.is_some()
                            && let Err(who) = peer.node()
                        {
                            room.refusals().count(Refusal::NoNode);
                            tracing::warn!(target: "audit", caller = %who, from = %peer, "refused: only nodes speak here");
                            return;
                        }
                        let Some(place) = room.take(&peer) else { return };
                        if stream.get_ref().1.alpn_protocol() != Some(WATCHDOG) {
                            drop(sender.send(Ok(Lasting::admitted(stream, peer, None, place))).await);
                        } else if let (Some(watches), Ok(Some(by)), Ok(secret)) =
                            (watches, peer.node(), secret(&stream))
                        {
                            drop(watches.send(Watched { by, secret, stream, ends: peer.ends(), _place: place }));
                        }
                    });
                }
            }
        }
    });
    Ok(ReceiverStream::new(admitted))
}

async fn secure(stream: TcpStream, from: IpAddr, security: Security, refusals: &Refusals) -> Option<(Box<Tls>, Shown)> {
    let Security::Tls(tls) = &security else { return None };
    let config = tls.present.load().server.clone();
    let shaken = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
    let refused = |reason: &dyn ToString| refusals.tell(from, Refusal::Certificate, reason);
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        // Another node's watch looks whether somebody listens.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
        Ok(Err(error)) => {
            refused(&error);
            return None;
        }
        Err(_) => {
            refused(&"it showed no certificate in time");
            return None;
        }
    };
    let certified = stream.get_ref().1.peer_certificates().and_then(|shown| Certified::read(shown.first()?).ok());
    let Some(certified) = certified else {
        refused(&"its certificate names nobody");
        return None;
    };
    Some((Box::new(stream.into()), Shown::Certificate(Arc::new(certified), security)))
}

/// Those who come to a Unix socket, which the operating system guards.
pub(crate) fn incoming_unix(
    listener: UnixListener,
    room: Room,
) -> io::Result<impl Stream<Item = io::Result<Lasting>> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let accept = move |listener: tokio::net::UnixListener| {
        let room = room.clone();
        async move {
            loop {
                let stream: UnixStream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "a connection was not accepted");
                        sleep(AFTER_A_FAULT).await;
                        continue;
                    }
                };
                let user = stream.peer_cred().ok().map(|of| of.uid());
                let peer = Peer { from: From::Unix(user), shown: Shown::Nothing };
                let Some(place) = room.take(&peer) else { continue };
                let admitted = Lasting::admitted(Box::new(stream), peer, Some(Authority::default()), place);
                return Some((Ok(admitted), listener));
            }
        }
    };
    Ok(futures::stream::unfold(listener, accept))
}
