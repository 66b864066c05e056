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
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    admitted::{Admitted, Tls},
    authority::Authority,
    keepalive::keep_alive,
    peer::{From, Peer, Shown},
    secret::{Secret, secret},
    security::{End, Security},
    shares::{Share, Shares},
};
use crate::descriptors::at_most_a;

/// For a handshake (TLS, in which a certificate is shown).
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time.
const HANDSHAKES: usize = 1024;
/// Of one network.
const HANDSHAKES_OF_A_NETWORK: usize = 32;
/// Whom a certificate is for has one of so many parts of the room.
const SHARES: usize = 4;
/// Connections that are let in and not served yet.
const WAITING: usize = 16;
/// After the system had no descriptor or no memory for one.
const AFTER_A_FAULT: Duration = Duration::from_millis(50);

/// The room for connections of listeners together. Clones are of the same.
#[derive(Clone)]
pub(crate) struct Room {
    whole: Arc<Semaphore>,
    /// By whom a certificate is for.
    by_holder: Shares<String>,
    /// Of those who have not shown who they are: they take no place from others.
    unknown: Arc<Semaphore>,
    by_network: Shares<IpAddr>,
}

/// A connection has its place, until this is dropped.
pub(super) struct Place {
    _whole: OwnedSemaphorePermit,
    _share: Option<Share<String>>,
}

impl Room {
    pub(crate) fn for_connections(count: usize) -> Self {
        let room = |count| Arc::new(Semaphore::new(count));
        let count = at_most_a(8, count);
        Self {
            whole: room(count),
            by_holder: Shares::of(count.div_ceil(SHARES)),
            unknown: room(at_most_a(16, HANDSHAKES)),
            by_network: Shares::of(HANDSHAKES_OF_A_NETWORK),
        }
    }

    /// A place for a connection. If there is none for it, that is told, and the connection is to be closed.
    fn take(&self, peer: &Peer) -> Option<Place> {
        let share = match peer.holder() {
            Some(holder) => match self.by_holder.take(holder) {
                None => {
                    let caller = peer.who();
                    tracing::debug!(%caller, from = %peer, "a connection is closed: its holder has as many as one gets");
                    return None;
                }
                share => share,
            },
            None => None,
        };
        let Ok(whole) = self.whole.clone().try_acquire_owned() else {
            tracing::debug!(from = %peer, "a connection is closed: there are as many as are taken");
            return None;
        };
        Some(Place { _whole: whole, _share: share })
    }

    fn begin_handshake(&self, address: IpAddr) -> Option<Handshake> {
        let place = self.unknown.clone().try_acquire_owned().ok()?;
        Some(Handshake { _place: place, _share: self.by_network.take(network_of(address))? })
    }
}

/// One that is under way.
struct Handshake {
    _place: OwnedSemaphorePermit,
    _share: Share<IpAddr>,
}

/// One host has all addresses of its IPv6 network.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

/// A node that watches whether this process lives, for as long as its connection lasts.
pub(crate) struct Watched {
    /// The node's name.
    pub(crate) by: String,
    pub(crate) secret: Secret,
    pub(crate) stream: Box<Tls>,
    /// When the node's certificate counts no more.
    pub(crate) ends: BoxFuture<'static, End>,
    _place: Place,
}

/// Those who come to a TCP listener and are let in. `watches`: where those go who watch; `None` where nobody may.
pub(crate) fn incoming(
    listener: TcpListener,
    security: Security,
    room: Room,
    watches: Option<mpsc::UnboundedSender<Watched>>,
) -> io::Result<impl Stream<Item = io::Result<Admitted>> + Send + 'static> {
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
                    if sender.send(Ok(Admitted::new(Box::new(stream), peer, None, place))).await.is_err() {
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
                        let secured = secure(stream, &peer, security).await;
                        drop(handshake);
                        let Some((stream, shown)) = secured else { return };
                        let peer = Peer { shown, ..peer };
                        if watches.is_some()
                            && let Err(who) = peer.node()
                        {
                            tracing::warn!(target: "audit", caller = %who, from = %peer, "refused: only nodes speak here");
                            return;
                        }
                        let Some(place) = room.take(&peer) else { return };
                        if stream.get_ref().1.alpn_protocol() != Some(WATCHDOG) {
                            drop(sender.send(Ok(Admitted::new(stream, peer, None, place))).await);
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

async fn secure(stream: TcpStream, peer: &Peer, security: Security) -> Option<(Box<Tls>, Shown)> {
    let Security::Tls(tls) = &security else { return None };
    let config = tls.present.load().server.clone();
    let shaken = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
    let refused = |reason: &dyn std::fmt::Display| tracing::info!(from = %peer, %reason, "a connection was refused");
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
) -> io::Result<impl Stream<Item = io::Result<Admitted>> + Send + 'static> {
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
                let admitted = Admitted::new(Box::new(stream), peer, Some(Authority::default()), place);
                return Some((Ok(admitted), listener));
            }
        }
    };
    Ok(futures::stream::unfold(listener, accept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_takes_all_the_room_for_handshakes() {
        let room = Room::for_connections(1);
        let [one, neighbor, other] = ["2001:db8::1", "2001:db8::ffff:2", "192.0.2.1"].map(|text| text.parse().unwrap());
        let begun: Vec<_> = (0..HANDSHAKES_OF_A_NETWORK).map_while(|_| room.begin_handshake(one)).collect();
        assert_eq!(begun.len(), HANDSHAKES_OF_A_NETWORK);
        assert!(room.begin_handshake(neighbor).is_none(), "of the same network");
        assert!(room.begin_handshake(other).is_some());
        drop(begun);
        assert!(room.begin_handshake(neighbor).is_some());
    }
}
