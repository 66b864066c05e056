//! By which credentials this node speaks TCP, or that it does without.

use std::{
    fmt,
    io::ErrorKind,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use lb_proto::tls::{Certified, Credentials, CredentialsError, Identity, Paths, Role, Sources};
use lb_raft_store::table::Name;
use rustix::process::geteuid;
use tokio::{sync::watch, time::timeout};

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
    pub(super) paths: Paths,
    /// `lb://CLUSTER/node/NAME`: what the certificate must say.
    wanted: Identity,
    /// What it was started with.
    pub(super) first: Sources,
    pub(super) present: ArcSwap<Credentials>,
    /// There are others now.
    replaced: watch::Sender<()>,
}

/// A certificate is looked at so often, because the clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Security {
    /// Reads the credentials of a node; `None` is for a node without.
    pub(crate) fn load(paths: Option<&Paths>, cluster: &Name, name: &Name) -> Result<Self, CredentialsError> {
        let Some(paths) = paths else { return Ok(Self::Plain) };
        let wanted = Identity::new(cluster.as_str(), Role::Node, name.as_str());
        let wanted = wanted.map_err(|error| wrong(paths, &error))?;
        let first = read(paths)?;
        let present = ArcSwap::from_pointee(load(paths, &wanted, &first)?);
        let replaced = watch::Sender::default();
        Ok(Self::Tls(Arc::new(Tls { paths: paths.clone(), wanted, first, present, replaced })))
    }

    /// When the certificate ends, if there is one.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        match self {
            Self::Plain => None,
            Self::Tls(tls) => Some(tls.present.load().not_after()),
        }
    }

    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// Whether a certificate that was shown has been revoked since.
    pub(super) fn is_revoked(&self, serial: &[u8]) -> bool {
        match self {
            Self::Plain => false,
            Self::Tls(tls) => tls.present.load().is_revoked(serial),
        }
    }

    /// Waits until a certificate that was shown counts no more.
    pub(super) async fn end_of(self, certified: Arc<Certified>) -> End {
        let Self::Tls(tls) = self else { return std::future::pending().await };
        let mut replaced = tls.replaced.subscribe();
        loop {
            if tls.present.load().is_revoked(&certified.serial) {
                return End::Revoked;
            }
            let Ok(left) = certified.not_after.duration_since(SystemTime::now()) else { return End::Expired };
            // Whether there are others or it is time: it is looked at again.
            drop(timeout(left.min(LOOK_EVERY), replaced.changed()).await);
        }
    }
}

/// Why a certificate that was shown counts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Revoked,
    Expired,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revoked => "was revoked",
            Self::Expired => "has expired",
        })
    }
}

impl Tls {
    /// New connections are made by these; those that are there are looked at.
    pub(super) fn replace(&self, credentials: Credentials) {
        self.present.store(credentials.into());
        self.replaced.send_replace(());
    }

    /// Whether what was read makes credentials of this node.
    pub(super) fn load(&self, sources: &Sources) -> Result<Credentials, CredentialsError> {
        load(&self.paths, &self.wanted, sources)
    }
}

fn load(paths: &Paths, wanted: &Identity, sources: &Sources) -> Result<Credentials, CredentialsError> {
    let credentials = Credentials::of(sources, paths)?;
    match credentials.identity() {
        identity if identity == wanted => Ok(credentials),
        identity => Err(wrong(paths, &format!("it is for {identity}, and this node is {wanted}"))),
    }
}

/// The files as they are now.
pub(super) fn read(paths: &Paths) -> Result<Sources, CredentialsError> {
    Sources::read(paths).map_err(whose)
}

/// A file that may not be read, with who would have read it.
fn whose(error: CredentialsError) -> CredentialsError {
    match error {
        CredentialsError::Read { path, source } if source.kind() == ErrorKind::PermissionDenied => {
            let uid = geteuid();
            let name = nix::unistd::User::from_uid(uid.as_raw().into()).ok().flatten().map(|user| user.name);
            let name = name.unwrap_or_else(|| uid.as_raw().to_string());
            let problem = format!("{source}: lbd runs as the user {name}: chown {name} {}", path.display());
            CredentialsError::Wrong { path, problem }
        }
        other => other,
    }
}

fn wrong(paths: &Paths, problem: &dyn ToString) -> CredentialsError {
    CredentialsError::Wrong { path: paths.cert.clone(), problem: problem.to_string() }
}
