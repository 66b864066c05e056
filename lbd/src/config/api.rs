//! `[api]`.

use std::{fmt, net::SocketAddr, path::PathBuf};

use super::{
    cluster::{refuse_twice, socket_address},
    node::absolute_path,
    reader::Section,
};

const DEFAULT_SOCKET: &str = "/run/lbd/lbd.sock";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ApiListener {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for ApiListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// `cluster`: where the other nodes are listened to.
pub(super) fn read(api: &mut Section, cluster: &[SocketAddr]) -> Vec<ApiListener> {
    let listen_given = api.contains("listen");
    let mut listeners = api.list("listen", api_listener);
    if listeners.is_empty() && listen_given && !api.has_fault("listen") {
        api.fault("listen", "is empty: nobody could reach this node; leave it out for the Unix socket");
    } else if listeners.is_empty() {
        listeners.push(ApiListener::Unix(DEFAULT_SOCKET.into()));
    }
    refuse_twice(api, &listeners);
    let meet = |one: &SocketAddr, other: &SocketAddr| {
        one.port() == other.port()
            && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
    };
    for listener in &listeners {
        if let ApiListener::Tcp(address) = listener
            && let Some(taken) = cluster.iter().find(|taken| meet(taken, address))
        {
            api.fault("listen", &format!("{address} and cluster.listen, {taken}, cannot have one port both"));
        }
    }
    listeners
}

fn api_listener(text: &str) -> Result<ApiListener, String> {
    match text.strip_prefix("unix:") {
        // sockaddr_un has room for 107 bytes and a zero.
        Some(path) if path.len() > 107 => Err(format!("{path:?} is too long for a socket: at most 107 bytes")),
        Some(path) => Ok(ApiListener::Unix(absolute_path(path)?)),
        None if text.parse::<SocketAddr>().is_err() => {
            Err(format!("{text:?} is neither \"unix:/PATH\" nor an address and port such as \"10.77.1.1:7400\""))
        }
        None => socket_address(text).map(ApiListener::Tcp),
    }
}
