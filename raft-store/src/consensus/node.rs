//! A node's part in the cluster: waiting to be added, or a member with a running openraft.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use openraft::{Raft, async_runtime::WatchReceiver as _};
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{Mutex, watch},
    time::{Duration, Instant},
};
use uuid::Uuid;

use super::{
    in_flight::InFlight,
    network::{Peers, Transport},
};
use crate::{
    feed::{View, Watcher},
    raft::TypeConfig,
    store::{StoreFailure, identity::Identity, open::Store, state_machine::StateMachine},
    table::{Name, NodeId, Role},
};

/// What another node said is forgotten after this.
const LATELY: Duration = Duration::from_secs(10);

/// What a node needs to know to take part.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its cluster's name.
    pub cluster_name: Name,
    /// Its name.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// The address at which peers reach it.
    pub address: String,
    /// Where it keeps its store.
    pub data_dir: PathBuf,
    /// Create a new cluster if the store is empty.
    pub bootstrap: bool,
    /// More of the log than so many bytes is replaced by a snapshot.
    pub log_bytes: u64,
}

impl Settings {
    /// Of the log, in bytes, what is right where nothing else is asked for.
    pub const LOG_BYTES: u64 = 64 << 20;
}

/// Where a node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Its id; `None` while it waits to be added.
    pub node: Option<NodeId>,
    /// The cluster it belongs to.
    pub cluster: Option<Uuid>,
    /// The leader, as far as it knows.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// The last applied entry.
    pub applied: u64,
    /// Why it must stop, if it must.
    pub fatal: Option<String>,
    /// That is because its disk is full.
    pub disk_full: bool,
}

/// Who leads, as far as a node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lead {
    /// The leader, if there is one.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
}

/// What an operator measures of a node's part in the cluster.
#[derive(Debug)]
pub struct Measures {
    /// The index of the last entry of its log.
    pub last_index: u64,
    /// Where it leads: by how many entries each other node is behind.
    pub behind: Vec<(NodeId, u64)>,
    /// Where it leads: how long it has taken to have entries agreed on and applied, in seconds.
    pub commits: Histogram,
    /// How long it has taken to make records durable, in seconds.
    pub syncs: Histogram,
    /// How many bytes the store takes, by part.
    pub sizes: [(&'static str, u64); 3],
}

/// The node. Clones are handles to the same one.
#[derive(Clone)]
pub struct Consensus {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) store: Store,
    pub(super) member: OnceLock<Member>,
    pub(super) joining: Mutex<()>,
    pub(super) changing_membership: Mutex<()>,
    pub(super) fatal: watch::Sender<Option<String>>,
    /// See [`Peers::doubts`].
    pub(super) doubts: watch::Sender<u64>,
    pub(super) in_flight: InFlight,
    /// Callers' writes are refused: what is left is for leases and membership.
    pub(super) low_on_space: AtomicBool,
    /// For whom another node took this one last, and when.
    pub(super) mistaken: std::sync::Mutex<Option<(Instant, String)>>,
    /// When the leader was last heard; at first, when this process began to listen, and false.
    pub(super) heard_leader: std::sync::Mutex<(Instant, bool)>,
    pub(super) watcher: Watcher,
    pub(super) lead: watch::Sender<Lead>,
    pub(super) joined: watch::Sender<bool>,
    /// The cluster has not heard of a later start on this store: this one may be made known.
    pub(super) is_newest: AtomicBool,
    pub(super) store_failure: Box<dyn Fn() -> Option<StoreFailure> + Send + Sync>,
}

/// What exists only in a cluster.
pub(super) struct Member {
    pub(super) identity: Identity,
    pub(super) peers: Peers,
    pub(super) raft: Raft<TypeConfig, StateMachine>,
}

impl Consensus {
    /// The newest applied table.
    pub fn view(&self) -> Arc<View> {
        self.inner.watcher.borrow().clone()
    }

    /// Follows the table.
    pub fn watch(&self) -> Watcher {
        self.inner.watcher.clone()
    }

    /// Becomes true when the node is part of a cluster.
    pub fn joined(&self) -> watch::Receiver<bool> {
        self.inner.joined.subscribe()
    }

    /// Says why the node must stop, once it must.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.inner.fatal.subscribe()
    }

    /// For whom another node takes this one, as far as one did so lately.
    pub fn mistaken(&self) -> Option<String> {
        let mistaken = self.inner.mistaken.lock().unwrap_or_else(PoisonError::into_inner);
        mistaken.as_ref().filter(|(at, _)| at.elapsed() < LATELY).map(|(_, problem)| problem.clone())
    }

    /// How often this node was started on its store, this time included, once it is known that the cluster has not heard
    /// of so many.
    pub fn starts(&self) -> Option<u32> {
        self.inner.is_newest.load(Ordering::Relaxed).then_some(self.inner.store.starts)
    }

    /// The identity of this node's store.
    pub fn store_uuid(&self) -> Uuid {
        self.inner.store.uuid
    }

    /// Where the node stands.
    pub fn status(&self) -> Status {
        let member = self.inner.member.get();
        // Cloned at once: holding the guard would hold up openraft. Before the store is asked: that one is told first of what
        // has failed, and knows why.
        let metrics = member.map(|member| member.raft.metrics().borrow_watched().clone());
        let failure = (self.inner.store_failure)();
        let disk_full = failure.as_ref().is_some_and(|failure| failure.disk_full);
        let fatal = self.inner.fatal.borrow().clone().or_else(|| failure.map(|failure| failure.reason));
        let (Some(member), Some(metrics)) = (member, metrics) else {
            return Status { fatal, disk_full, ..Status::default() };
        };
        Status {
            node: Some(member.identity.node),
            cluster: Some(member.identity.cluster),
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: self.view().applied,
            fatal: fatal.or_else(|| metrics.running_state.err().map(|error| error.to_string())),
            disk_full,
        }
    }

    /// What an operator measures of it.
    pub fn measures(&self) -> Measures {
        let inner = &self.inner;
        let member = inner.member.get();
        let me = member.map(|member| member.identity.node);
        let metrics = member.map(|member| member.raft.metrics().borrow_watched().clone());
        let last = metrics.as_ref().and_then(|metrics| metrics.last_log_index).unwrap_or_default();
        let behind = metrics.and_then(|metrics| metrics.replication).unwrap_or_default().into_iter();
        let behind = behind.map(|(node, matching)| (node, last - matching.map_or(0, |of| of.index()).min(last)));
        Measures {
            last_index: last,
            behind: behind.filter(|(node, _)| Some(*node) != me).collect(),
            commits: inner.in_flight.commits().clone(),
            syncs: inner.store.syncs().clone(),
            sizes: inner.store.sizes(),
        }
    }

    /// Whether this node believes to be the leader.
    pub fn is_leader(&self) -> bool {
        let status = self.status();
        status.node.is_some() && status.node == status.leader
    }

    /// Stops taking part. The store is closed when the last handle is dropped.
    pub async fn shutdown(&self) {
        if let Some(member) = self.inner.member.get()
            && let Err(error) = member.raft.shutdown().await
        {
            tracing::warn!(%error, "the consensus engine did not stop cleanly");
        }
    }
}
