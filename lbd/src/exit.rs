//! Why the daemon ends, and with which code: the one place where the two are mapped. The numbers are
//! those of sysexits.h.

use std::{io, net::SocketAddr, path::PathBuf, process::ExitCode};

use lb_raft_store::StoreError;

/// The daemon's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// EX_USAGE
    Usage = 64,
    /// EX_DATAERR
    Config = 65,
    /// EX_UNAVAILABLE: an interface, an address or a capability is not to be had.
    Unavailable = 69,
    /// EX_SOFTWARE
    Software = 70,
    /// EX_IOERR
    Store = 74,
    /// EX_TEMPFAIL: a full disk. It mends itself when somebody makes room, so the unit restarts on it.
    DiskFull = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Consensus(#[from] lb_raft_store::StartError),
    #[error(transparent)]
    Recover(#[from] lb_raft_store::RecoverError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Link(#[from] crate::link::LinkError),
    #[error(transparent)]
    FlowKey(#[from] crate::flow_key::FlowKeyError),
    #[error("tls: {0}")]
    Credentials(#[from] lb_proto::tls::CredentialsError),
    #[error("the dataplane does not start: {0}")]
    Dataplane(#[from] lb_dataplane::StartError),
    #[error("{key}: cannot listen on {address}: {source}{holder}")]
    Listen { key: &'static str, address: SocketAddr, source: io::Error, holder: String },
    #[error("cluster.listen: cannot receive heartbeats (UDP) on {address}: {source}")]
    Heartbeat { address: SocketAddr, source: io::Error },
    #[error("api.listen: cannot listen on {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Removed(String),
    #[error("{reason}")]
    StoreBroke { reason: String, disk_full: bool },
    #[error("the dataplane's worker has ended")]
    WorkerEnded,
    #[error("a task that follows the table or the heartbeat has ended: {0}")]
    FollowerEnded(String),
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        use lb_raft_store::StartError;
        match self {
            Self::StoreBroke { disk_full: true, .. } => Exit::DiskFull,
            Self::Consensus(StartError::Store(error)) if error.is_disk_full() => Exit::DiskFull,
            Self::Consensus(StartError::Store(
                StoreError::Damaged { .. }
                | StoreError::TooNew { .. }
                | StoreError::Unfinished { .. }
                | StoreError::Locked { .. }
                | StoreError::Io { .. },
            ))
            | Self::StoreBroke { .. }
            | Self::Store(_)
            | Self::FlowKey(_)
            | Self::Recover(_) => Exit::Store,
            Self::Consensus(StartError::OtherNode { .. }) | Self::Removed(_) | Self::Credentials(_) => Exit::Config,
            Self::Link(_) | Self::Dataplane(_) | Self::Listen { .. } | Self::Heartbeat { .. } | Self::Socket { .. } => {
                Exit::Unavailable
            }
            Self::Consensus(StartError::Raft(_)) | Self::WorkerEnded | Self::FollowerEnded(_) | Self::System(..) => {
                Exit::Software
            }
        }
    }
}
