//! Connections in and out, and who is at their other end: TLS in both directions by a node's credentials, plain TCP where the
//! operator wants it so, and the Unix socket.

mod accept;
mod admitted;
mod authority;
mod dial;
mod peer;
mod renew;

use std::sync::Arc;

use arc_swap::ArcSwap;
use lb_proto::tls::{Credentials, CredentialsError, Identity, Paths, Role, Sources};
use lb_raft_store::table::Name;

pub(crate) use accept::{Room, incoming, incoming_unix};
pub(crate) use peer::{Peer, Who};
pub(crate) use renew::renew;

/// How this node's TCP connections are secured. Clones are handles to the same.
#[derive(Clone)]
pub(crate) enum Security {
    /// Not at all.
    Plain,
    /// By credentials, which may be replaced.
    Tls(Arc<Tls>),
}

/// Credentials as files hold them.
pub(crate) struct Tls {
    paths: Paths,
    /// `lb://CLUSTER/node/NAME`: what the certificate must say.
    wanted: Identity,
    present: ArcSwap<Credentials>,
}

impl Security {
    /// Reads the credentials of a node; `None` is for a node without.
    pub(crate) fn load(paths: Option<&Paths>, cluster: &Name, name: &Name) -> Result<Self, CredentialsError> {
        let Some(paths) = paths else { return Ok(Self::Plain) };
        let wanted = Identity::new(cluster.as_str(), Role::Node, name.as_str());
        let wrong =
            |problem: &dyn ToString| CredentialsError::Wrong { path: paths.cert.clone(), problem: problem.to_string() };
        let wanted = wanted.map_err(|error| wrong(&error))?;
        let credentials = load(paths, &wanted, &Sources::read(paths)?)?;
        Ok(Self::Tls(Arc::new(Tls { paths: paths.clone(), wanted, present: ArcSwap::from_pointee(credentials) })))
    }

    /// Whether a certificate that was shown has been revoked since.
    fn is_revoked(&self, serial: &[u8]) -> bool {
        match self {
            Self::Plain => false,
            Self::Tls(tls) => tls.present.load().is_revoked(serial),
        }
    }
}

fn load(paths: &Paths, wanted: &Identity, sources: &Sources) -> Result<Credentials, CredentialsError> {
    let credentials = Credentials::of(sources, paths)?;
    match credentials.identity() {
        identity if identity == wanted => Ok(credentials),
        identity => Err(CredentialsError::Wrong {
            path: paths.cert.clone(),
            problem: format!("it is for {identity}, and this node is {wanted}"),
        }),
    }
}
