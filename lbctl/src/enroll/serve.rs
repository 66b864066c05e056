//! Where the authority is: a certificate for whoever has the token, once.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
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
/// After the system had no descriptor, or there was no place.
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
    authority: &mut Authority,
    wanted: &Wanted,
    listener: TcpListener,
    (address, valid): (String, Duration),
    tell: impl FnOnce(&Token) -> Result<(), Failure>,
) -> Result<Served, Failure> {
    let pair = KeyPair::generate().map_err(AuthorityError::from)?;
    let own = CertificateParams::new(vec![wanted.name.clone()]).and_then(|params| params.self_signed(&pair));
    let own = own.map_err(AuthorityError::from)?.der().clone();
    let of_authority = CertificateDer::from_pem_slice(authority.certificate().as_bytes());
    let of_authority = of_authority.map_err(|error| AuthorityError::Refused(format!("ca.pem: {error:?}")))?;
    let shown = token::digest(&wanted.name, &own, &of_authority);
    let token = Arc::new(Token { name: wanted.name.clone(), address, shown, secret: token::secret() });
    let acceptor = acceptor(vec![own, of_authority], &pair).map_err(AuthorityError::Refused)?;
    tell(&token)?;
    let deadline = Instant::now() + valid;
    let (asked, mut asks) = mpsc::channel(1);
    let mut exchanges = JoinSet::new();
    let room = Arc::new(Semaphore::new(AT_A_TIME));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (Ok((stream, from)), Ok(place)) = (accepted, room.clone().try_acquire_owned()) else {
                    sleep(AFTER_A_FAULT).await;
                    continue;
                };
                let (acceptor, token, asked) = (acceptor.clone(), token.clone(), asked.clone());
                exchanges.spawn(async move {
                    if let Ok(Ok((stream, request))) = timeout(EXCHANGE, hear(acceptor, stream, from, &token)).await {
                        drop(asked.send((stream, from, request)).await);
                    }
                    drop(place);
                });
            }
            // What was issued and revoked meanwhile is read anew.
            Some((mut stream, from, request)) = asks.recv() => match authority.reopen().and_then(|()| authority.issue_for(&request, wanted)) {
                Ok(certificate) => {
                    let revoked = authority.list()?;
                    let answer = Answer::Issued { certificate, authority: authority.certificate().to_owned(), revoked };
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
