//! Where the authority is: a certificate for whoever has the token, once.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use lb_proto::tls::network_of;

use rcgen::{CertificateParams, KeyPair};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        version::TLS13,
    },
    server::TlsStream,
};

use super::{Answer, Ask, EXCHANGE, receive, send, token, token::Token};
use crate::{
    authority::{Authority, AuthorityError, Wanted},
    exit::{Failure, complain},
};

/// Exchanges at a time: whoever says nothing holds one place for [`EXCHANGE`].
const AT_A_TIME: usize = 64;
/// Of one host.
const OF_A_NETWORK: usize = 16;
/// After the system had no descriptor.
const AFTER_A_FAULT: Duration = Duration::from_millis(20);

/// What became of a token.
pub(crate) enum Served {
    /// The certificate was issued to whoever called from there.
    Issued(SocketAddr),
    /// Nobody came in time.
    Expired,
}

/// A token that is printed by `tell`, and honoured for a while: once.
pub(crate) async fn serve(
    dir: &Path,
    wanted: &Wanted,
    listener: TcpListener,
    (address, valid): (String, Duration),
    tell: impl FnOnce(&Token) -> Result<(), Failure>,
) -> Result<Served, Failure> {
    let pair = KeyPair::generate().map_err(AuthorityError::from)?;
    let own = CertificateParams::new(vec![wanted.name.clone()]).and_then(|params| params.self_signed(&pair));
    let own = own.map_err(AuthorityError::from)?.der().clone();
    // Open no longer than it is used: others wait for it.
    let of_authority = CertificateDer::from_pem_slice(Authority::open(dir)?.certificate().as_bytes());
    let of_authority = of_authority.map_err(|error| AuthorityError::Refused(format!("ca.pem: {error:?}")))?;
    let shown = token::digest(&wanted.name, &own, &of_authority);
    let token = Arc::new(Token { name: wanted.name.clone(), address, shown, secret: token::secret() });
    let acceptor = acceptor(vec![own, of_authority], &pair).map_err(AuthorityError::Refused)?;
    tell(&token)?;
    let deadline = Instant::now() + valid;
    let (asked, mut asks) = mpsc::channel(1);
    let mut exchanges = JoinSet::new();
    let mut room = Room::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let (acceptor, token, asked) = (acceptor.clone(), token.clone(), asked.clone());
                    let exchange = exchanges.spawn(async move {
                        if let Ok(Ok((stream, request))) = timeout(EXCHANGE, hear(acceptor, stream, from, &token)).await {
                            drop(asked.send((stream, from, request)).await);
                        }
                    });
                    room.give(from.ip(), exchange);
                }
                Err(_) => sleep(AFTER_A_FAULT).await,
            },
            Some((mut stream, from, request)) = asks.recv() => match issue(dir, &request, wanted) {
                Ok(answer) => {
                    // It was issued: the token is used up, whether the answer arrives or not.
                    drop(timeout(EXCHANGE, send(&mut stream, &answer)).await);
                    return Ok(Served::Issued(from));
                }
                Err(error) => {
                    complain(&format!("{from} has the token, and is refused: {error}"));
                    drop(timeout(EXCHANGE, send(&mut stream, &Answer::Refused(error.to_string()))).await);
                }
            },
            () = sleep_until(deadline) => return Ok(Served::Expired),
        }
        while exchanges.try_join_next().is_some() {}
    }
}

/// By the authority as it is now, with what was issued and revoked meanwhile.
fn issue(dir: &Path, request: &str, wanted: &Wanted) -> Result<Answer, AuthorityError> {
    let mut authority = Authority::open(dir)?;
    let certificate = authority.issue_for(request, wanted)?;
    let revoked = authority.list()?;
    Ok(Answer::Issued { certificate, authority: authority.certificate().to_owned(), revoked })
}

/// The exchanges that go on, the oldest first. Whoever says nothing keeps nobody out: where there is no place, the oldest of
/// those who have most goes.
#[derive(Default)]
struct Room {
    taken: Vec<(IpAddr, AbortHandle)>,
}

impl Room {
    fn give(&mut self, from: IpAddr, exchange: AbortHandle) {
        self.taken.retain(|(_, exchange)| !exchange.is_finished());
        let network = network_of(from);
        let count = |of: IpAddr| self.taken.iter().filter(|(network, _)| *network == of).count();
        let to_go = if count(network) >= OF_A_NETWORK {
            Some(network)
        } else if self.taken.len() >= AT_A_TIME {
            self.taken.iter().map(|(network, _)| *network).max_by_key(|network| count(*network))
        } else {
            None
        };
        if let Some(at) = to_go.and_then(|of| self.taken.iter().position(|(network, _)| *network == of)) {
            self.taken.remove(at).1.abort();
        }
        self.taken.push((network, exchange));
    }
}

fn acceptor(chain: Vec<CertificateDer<'static>>, pair: &KeyPair) -> Result<TlsAcceptor, String> {
    let key = PrivateKeyDer::try_from(pair.serialize_der()).map_err(ToOwned::to_owned)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    Ok(TlsAcceptor::from(Arc::new(config.map_err(|error| error.to_string())?)))
}

/// The certificate request of somebody who has the token.
async fn hear(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    token: &Token,
) -> io::Result<(TlsStream<TcpStream>, String)> {
    let mut stream = acceptor.accept(stream).await?;
    let ask: Ask = receive(&mut stream).await?;
    if token.is_secret(&ask.secret) {
        return Ok((stream, ask.request));
    }
    complain(&format!("{from} is refused: it has another token"));
    send(&mut stream, &Answer::Refused("the token is another one, or was used".to_owned())).await?;
    Err(io::ErrorKind::PermissionDenied.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_host_keeps_nobody_else_out() {
        let (mut room, mut exchanges) = (Room::default(), JoinSet::new());
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let mut silent = |room: &mut Room, from| room.give(from, exchanges.spawn(std::future::pending::<()>()));
        silent(&mut room, other);
        (0..2 * AT_A_TIME).for_each(|_| silent(&mut room, one));
        let of = |room: &Room, from| room.taken.iter().filter(|(network, _)| *network == from).count();
        assert_eq!((of(&room, one), of(&room, other)), (OF_A_NETWORK, 1));
        // From many: the newest has a place.
        for last in 0..200 {
            silent(&mut room, IpAddr::from([198, 51, 100, last]));
            assert_eq!(room.taken.last().unwrap().0, IpAddr::from([198, 51, 100, last]));
        }
        assert_eq!(room.taken.len(), AT_A_TIME);
    }
}
