//! Connections to other nodes.

use std::io;

use tokio::net::TcpStream;

use super::{Security, admitted::Stream};

impl Security {
    /// Connects to a node. Whoever answers shows that the cluster's authority knows it as one.
    pub(crate) async fn dial(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match self {
            Self::Plain => Ok(Box::new(stream)),
            Self::Tls(tls) => {
                let credentials = tls.present.load_full();
                Ok(Box::new(credentials.connect(stream).await?))
            }
        }
    }
}
