//! Connections to other nodes.

use std::{io, sync::Arc};

use lb_proto::tls::{Certified, Role};
use tokio::net::TcpStream;

use super::{
    keepalive::keep_alive,
    lasting::{Lasting, Stream, Tls},
    peer::{From, Peer, Shown},
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
                self.lasting(credentials.connect(stream).await?.into(), address, name)
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
        let secret = secret(&stream)?;
        Ok(Watch { stream: self.lasting(stream, address, Some(name))?, secret: Some(secret) })
    }

    /// For as long as the other end's certificate counts, which is a node's; that of that name, if one is wanted.
    fn lasting(&self, stream: Tls, address: &str, name: Option<&str>) -> io::Result<Box<dyn Stream>> {
        let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
        let certified = shown.and_then(|shown| Certified::read(shown).ok());
        match certified {
            Some(certified)
                if certified.identity.role == Role::Node && name.is_none_or(|name| certified.identity.name == name) =>
            {
                let from = From::Tcp(stream.get_ref().0.peer_addr()?);
                let peer = Peer { from, shown: Shown::Certificate(Arc::new(certified), self.clone()) };
                Ok(Box::new(Lasting::made(Box::new(stream), peer)))
            }
            certified => {
                let found = certified.map_or_else(|| "nobody".to_owned(), |certified| certified.identity.to_string());
                Err(io::Error::other(format!("{found} answers at {address}, and not {}", name.unwrap_or("a node"))))
            }
        }
    }
}

async fn tcp(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    Ok(stream)
}
