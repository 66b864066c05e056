//! Who is let in. Whoever has not shown who he is yet costs little and has little time; there is so much room, and no address
//! takes all of it.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, TcpListener},
    os::unix::net::UnixListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::Stream;
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
    security::Security,
};

/// For a handshake (TLS, in which a certificate is shown).
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time.
const HANDSHAKES: usize = 1024;
/// Of one network.
const HANDSHAKES_OF_A_NETWORK: usize = 32;
/// Connections that are let in and not served yet.
const WAITING: usize = 16;
/// After the system had no descriptor or no memory for one.
const AFTER_A_FAULT: Duration = Duration::from_millis(50);

/// The room for connections of listeners together. Clones are of the same.
#[derive(Clone)]
pub(crate) struct Room {
    whole: Arc<Semaphore>,
    /// Of those who have not shown who they are: they take no place from others.
    unknown: Arc<Semaphore>,
    /// Handshakes by network.
    handshakes: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Room {
    pub(crate) fn for_connections(count: usize) -> Self {
        let unknown = Arc::new(Semaphore::new(HANDSHAKES));
        Self { whole: Arc::new(Semaphore::new(count)), unknown, handshakes: Arc::default() }
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.whole.clone().try_acquire_owned().ok()
    }

    fn begin_handshake(&self, address: IpAddr) -> Option<Handshake> {
        let (network, place) = (network_of(address), self.unknown.clone().try_acquire_owned().ok()?);
        let mut all = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(network).or_default();
        if *count >= HANDSHAKES_OF_A_NETWORK {
            return None;
        }
        *count += 1;
        Some(Handshake { room: self.clone(), network, _place: place })
    }
}

/// One that is under way.
struct Handshake {
    room: Room,
    network: IpAddr,
    _place: OwnedSemaphorePermit,
}

/// One host has all addresses of its IPv6 network.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut all = self.room.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.network);
            }
        }
    }
}

/// A node that watches whether this process lives, for as long as its connection lasts.
pub(crate) struct Watched {
    /// The node's name.
    pub(crate) by: String,
    pub(crate) secret: Secret,
    pub(crate) stream: Box<Tls>,
    _place: OwnedSemaphorePermit,
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
                    let Some(place) = room.take() else {
                        tracing::debug!(from = %address, "a connection is closed: there are as many as are taken");
                        continue;
                    };
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
                        let Some(place) = room.take() else {
                            tracing::debug!(from = %peer, "a connection is closed: there are as many as are taken");
                            return;
                        };
                        if stream.get_ref().1.alpn_protocol() != Some(WATCHDOG) {
                            drop(sender.send(Ok(Admitted::new(stream, peer, None, place))).await);
                        } else if let (Some(watches), Ok(Some(by)), Ok(secret)) =
                            (watches, peer.node(), secret(&stream))
                        {
                            drop(watches.send(Watched { by, secret, stream, _place: place }));
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
                let Some(place) = room.take() else {
                    tracing::debug!("a connection is closed: there are as many as are taken");
                    continue;
                };
                let user = stream.peer_cred().ok().map(|of| of.uid());
                let peer = Peer { from: From::Unix(user), shown: Shown::Nothing };
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
        let [one, other] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        let mut begun: Vec<Handshake> = (0..HANDSHAKES_OF_A_NETWORK).map_while(|_| room.begin_handshake(one)).collect();
        assert_eq!(begun.len(), HANDSHAKES_OF_A_NETWORK);
        assert!(room.begin_handshake(one).is_none());
        assert!(room.begin_handshake(other).is_some());
        begun.pop();
        assert!(room.begin_handshake(one).is_some());
        begun.clear();
        assert!(room.handshakes.lock().unwrap().is_empty());
    }
}
