//! Connections to other nodes.

use std::io;

use lb_proto::tls::{Certified, Role};
use tokio::net::TcpStream;

use super::{
    admitted::{Stream, Tls},
    keepalive::keep_alive,
    secret::{Secret, secret},
    security::Security,
};

/// A connection by which a node's process is watched.
pub(crate) struct Watch {
    pub(crate) stream: Box<dyn Stream>,
    /// What only the two ends know; nothing on a plain connection.
    pub(crate) secret: Option<Secret>,
}

impl Security {
    /// Connects to a node, whose certificate shows that it is one; if its name is known, that it is this one.
    pub(crate) async fn dial(&self, address: &str, name: Option<&str>) -> io::Result<Box<dyn Stream>> {
        let stream = tcp(address).await?;
        match self {
            Self::Plain => Ok(Box::new(stream)),
            Self::Tls(tls) => {
                let credentials = tls.present.load_full();
                let stream = credentials.connect(stream).await?.into();
                name.map_or(Ok(()), |name| check(&stream, address, name))?;
                Ok(Box::new(stream))
            }
        }
    }

    /// Connects to the node of that name, to watch it.
    pub(crate) async fn watch(&self, address: &str, name: &str) -> io::Result<Watch> {
        let stream = tcp(address).await?;
        let tls = match self {
            Self::Plain => return Ok(Watch { stream: Box::new(stream), secret: None }),
            Self::Tls(tls) => tls.present.load_full(),
        };
        let stream: Tls = tls.watch(stream).await?.into();
        check(&stream, address, name)?;
        let secret = secret(&stream)?;
        Ok(Watch { stream: Box::new(stream), secret: Some(secret) })
    }
}

/// Whether the node of that name has answered.
fn check(stream: &Tls, address: &str, name: &str) -> io::Result<()> {
    let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
    let identity = shown.and_then(|shown| Certified::read(shown).ok()).map(|certified| certified.identity);
    match identity {
        Some(identity) if (identity.role, &*identity.name) == (Role::Node, name) => Ok(()),
        identity => {
            let found = identity.map_or_else(|| "nobody".to_owned(), |identity| identity.to_string());
            Err(io::Error::other(format!("{found} answers at {address}, and not {name}")))
        }
    }
}

async fn tcp(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    Ok(stream)
}
