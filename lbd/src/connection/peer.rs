//! Who is at a connection's other end.

use std::{fmt, net::SocketAddr, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use lb_proto::tls::{Certified, Identity, Role};

use super::security::{End, Security};

/// The other end, as it showed itself when the connection began.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(super) from: From,
    pub(super) shown: Shown,
}

#[derive(Clone)]
pub(super) enum From {
    Tcp(SocketAddr),
    /// A process of that user.
    Unix(Option<u32>),
}

#[derive(Clone)]
pub(super) enum Shown {
    /// Nothing, because nothing is asked for.
    Nothing,
    Certificate(Arc<Certified>, Security),
}

/// Whom it is taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever may open the Unix socket: the operating system lets in root and the socket's group.
    Local,
    /// Anybody: the operator has said that the network is trusted (`tls.insecure`).
    Anybody,
    /// Whom the cluster's authority says it is.
    Certified(Identity),
    /// The authority has taken that back.
    Revoked(Identity),
}

impl Peer {
    /// Whom it is taken for now: a certificate may have been revoked since the connection began.
    pub(crate) fn who(&self) -> Who {
        match (&self.shown, &self.from) {
            (Shown::Certificate(certified, security), _) if security.is_revoked(&certified.serial) => {
                Who::Revoked(certified.identity.clone())
            }
            (Shown::Certificate(certified, _), _) => Who::Certified(certified.identity.clone()),
            (Shown::Nothing, From::Unix(_)) => Who::Local,
            (Shown::Nothing, From::Tcp(_)) => Who::Anybody,
        }
    }

    /// Whose share of this node's room it takes; `None` where everybody is the same.
    pub(crate) fn holder(&self) -> Option<String> {
        match &self.shown {
            Shown::Certificate(certified, _) => Some(certified.identity.to_string()),
            Shown::Nothing => None,
        }
    }

    /// Waits until what it has shown counts no more.
    pub(super) fn ends(&self) -> BoxFuture<'static, End> {
        match &self.shown {
            Shown::Certificate(certified, security) => security.clone().end_of(certified.clone()).boxed(),
            Shown::Nothing => std::future::pending().boxed(),
        }
    }

    /// As which node it may speak; `Ok(None)` where anybody may speak as any.
    pub(crate) fn node(&self) -> Result<Option<String>, Who> {
        match self.who() {
            Who::Certified(Identity { role: Role::Node, name, .. }) => Ok(Some(name)),
            Who::Anybody => Ok(None),
            who => Err(who),
        }
    }
}

/// Where it calls from, for the log.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            From::Tcp(address) => write!(f, "{address}"),
            From::Unix(Some(user)) => write!(f, "unix:uid={user}"),
            From::Unix(None) => f.write_str("unix"),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Anybody => f.write_str("anybody"),
            Self::Certified(identity) => write!(f, "{identity}"),
            Self::Revoked(identity) => write!(f, "{identity} (revoked)"),
        }
    }
}
