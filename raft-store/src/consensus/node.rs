//! A node's part in the cluster: waiting to be added, or a member with a running openraft.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use openraft::{
    BasicNode, Config, Raft, ReadPolicy, SnapshotPolicy,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, RaftError},
    raft::TransferLeaderRequest,
};
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    message::{Answer, Request},
    network::{CallError, Lane, Peers, Transport, TransportError},
    types::TypeConfig,
};
use crate::{
    store::{
        StoreError,
        db::{Identity, Store},
        state_machine::StateMachine,
    },
    table::{BOOTSTRAP_NODE, Command, NewNode, NodeId, Reply, Role, decode_reply, encode_command},
    watch::{self as table_watch, View, Watcher},
};

/// Between two attempts at something that an election or a lost packet may have prevented.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// For one attempt at the leader, so that a dead one does not use up the whole deadline.
const ATTEMPT: Duration = Duration::from_millis(1000);

/// Between two attempts of a leader that no majority has confirmed yet.
const FRESH_LEADER: Duration = Duration::from_millis(1);

/// For another voter to take the lead that is offered to it.
const HAND_OVER: Duration = Duration::from_millis(500);

/// What a node needs to know to take part.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its cluster's name.
    pub cluster_name: crate::table::Name,
    /// Its name.
    pub name: crate::table::Name,
    /// What it does.
    pub role: Role,
    /// The address at which peers reach it.
    pub address: String,
    /// Where it keeps its store.
    pub data_dir: PathBuf,
    /// Create a new cluster if the store is empty.
    pub bootstrap: bool,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store belongs to a node of another name or role.
    #[error(
        "{field} is {configured:?} in the configuration and {stored:?} in the store: data_dir belongs to another node"
    )]
    OtherNode {
        /// The configuration key.
        field: &'static str,
        /// What the configuration says.
        configured: String,
        /// What the store says.
        stored: String,
    },
    /// openraft does not start.
    #[error("the consensus engine does not start: {0}")]
    Raft(String),
}

/// Why a command was not applied, or may not have been.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// This node belongs to no cluster.
    #[error("this node waits to be added to a cluster: run 'lbctl node add' on a node of that cluster")]
    NotAMember,
    /// No leader could be found within the deadline: nothing was proposed.
    #[error("there is no leader: a majority of the cluster's nodes must be up and reach each other")]
    NoLeader,
    /// No answer came within the deadline: it may be applied yet.
    #[error("no majority confirmed it in time: it may or may not be applied yet")]
    TimedOut,
    /// This node's store is broken.
    #[error("this node's store cannot be written: {0}")]
    Broken(String),
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
}

/// Who leads, as far as a node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lead {
    /// The leader, if there is one.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
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
    watcher: Watcher,
    lead: watch::Sender<Lead>,
    joined: watch::Sender<bool>,
    store_failure: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

/// What exists only in a cluster.
pub(super) struct Member {
    pub(super) identity: Identity,
    pub(super) peers: Peers,
    pub(super) raft: Raft<TypeConfig, StateMachine>,
}

impl Consensus {
    /// Opens the store and takes up the node's place in its cluster, if it has one.
    pub async fn start(settings: Settings, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        let (publisher, watcher) = table_watch::channel();
        let store = Store::open(&settings.data_dir, publisher)?;
        let identity = match store.identity.clone() {
            Some(identity) => {
                same_node(&settings, &identity)?;
                Some(identity)
            }
            None if settings.bootstrap => {
                let cluster = Uuid::new_v4();
                tracing::warn!(%cluster, node = %settings.name, "the store is empty and bootstrap is set: created a NEW cluster");
                let name = settings.name.to_string();
                let cluster_name = settings.cluster_name.to_string();
                let (role, recovered_from) = (settings.role, Vec::new());
                let identity = Identity { node: BOOTSTRAP_NODE, cluster, cluster_name, name, role, recovered_from };
                store.adopt(&identity).await.map_err(|e| StoreError::io("write", &settings.data_dir, e))?;
                Some(identity)
            }
            None => None,
        };
        let consensus = Self {
            inner: Arc::new(Inner {
                store_failure: Box::new(store.failure_probe()),
                settings,
                transport,
                store,
                member: OnceLock::new(),
                joining: Mutex::new(()),
                changing_membership: Mutex::new(()),
                fatal: watch::Sender::new(None),
                watcher,
                lead: watch::Sender::default(),
                joined: watch::Sender::new(false),
            }),
        };
        if let Some(identity) = identity {
            consensus.become_member(identity).await?;
        }
        Ok(consensus)
    }

    /// Runs openraft for a node that has a place in a cluster.
    pub(super) async fn become_member(&self, identity: Identity) -> Result<(), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
        let inner = &self.inner;
        let config = Config {
            cluster_name: identity.cluster.to_string(),
            heartbeat_interval: 50,
            election_timeout_min: 150,
            election_timeout_max: 300,
            install_snapshot_timeout: 10_000,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(5000),
            max_in_snapshot_log_to_keep: 1000,
            enable_pre_vote: Some(true),
            // A restarted leader must win an election again; its log is never wound back.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            backoff: "20ms".into(),
            ..Config::default()
        };
        let config = config.validate().map_err(|e| failed(&e))?;
        let peers = Peers {
            transport: inner.transport.clone(),
            cluster: identity.cluster,
            me: identity.node,
            fatal: inner.fatal.clone(),
        };
        let (log, machine) = (inner.store.log.clone(), inner.store.machine.clone());
        let raft =
            Raft::new(identity.node, Arc::new(config), peers.clone(), log, machine).await.map_err(|e| failed(&e))?;
        let bootstrap = identity.node == BOOTSTRAP_NODE;
        let cluster = identity.cluster;
        if bootstrap && !raft.is_initialized().await.map_err(|e| failed(&e))? {
            let node = BasicNode { addr: inner.settings.address.clone() };
            raft.initialize(BTreeMap::from([(BOOTSTRAP_NODE, node)])).await.map_err(|e| failed(&e))?;
        }
        let (mut metrics, publish) = (raft.metrics(), inner.lead.clone());
        tokio::spawn(async move {
            loop {
                // Cloned at once: holding the guard would hold up openraft.
                let now = metrics.borrow_watched().clone();
                let lead = Lead { leader: now.current_leader, term: now.current_term };
                publish.send_if_modified(|known| std::mem::replace(known, lead) != lead);
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        });
        if inner.member.set(Member { identity, peers, raft }).is_err() {
            return Err(failed(&"it runs already"));
        }
        if bootstrap && self.view().table.cluster().is_nil() {
            tokio::spawn(self.clone().create_cluster(cluster));
        }
        inner.joined.send_replace(true);
        Ok(())
    }

    /// The first entry of the log. Proposed until it is applied: a crash may have come before it.
    async fn create_cluster(self, cluster: Uuid) {
        let settings = &self.inner.settings;
        let command = Command::CreateCluster {
            cluster,
            cluster_name: settings.cluster_name.clone(),
            hash_seed: Uuid::new_v4().as_u128(),
            heartbeat_key: new_key(),
            node: NewNode {
                name: settings.name.clone(),
                role: settings.role,
                address: settings.address.clone(),
                store: self.inner.store.uuid,
            },
        };
        // A second one is refused by the table.
        while self.view().table.cluster().is_nil() {
            if let Err(error) = self.propose(&command, Instant::now() + ATTEMPT).await {
                tracing::warn!(%error, "the cluster's first entry is not agreed on yet");
            }
        }
    }

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

    /// The identity of this node's store.
    pub fn store_uuid(&self) -> Uuid {
        self.inner.store.uuid
    }

    /// Where the node stands.
    pub fn status(&self) -> Status {
        let fatal = self.inner.fatal.borrow().clone().or_else(|| (self.inner.store_failure)());
        let Some(member) = self.inner.member.get() else { return Status { fatal, ..Status::default() } };
        // Cloned at once: holding the guard would hold up openraft.
        let metrics = member.raft.metrics().borrow_watched().clone();
        Status {
            node: Some(member.identity.node),
            cluster: Some(member.identity.cluster),
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: self.view().applied,
            fatal: fatal.or_else(|| metrics.running_state.err().map(|error| error.to_string())),
        }
    }

    /// Whether this node believes to be the leader.
    pub fn is_leader(&self) -> bool {
        let status = self.status();
        status.node.is_some() && status.node == status.leader
    }

    /// Has a command agreed on and applied, by way of the leader, whoever that is.
    pub async fn propose(&self, command: &Command, deadline: Instant) -> Result<Reply, ProposeError> {
        let bytes = encode_command(command);
        // Repeating is safe: every command is a no-op the second time, or carries a request id.
        let mut attempted = false;
        while Instant::now() < deadline {
            let until = deadline.min(Instant::now() + ATTEMPT);
            match self.propose_once(command, &bytes, until).await? {
                Attempt::Done(reply) => return Ok(reply),
                Attempt::NotSent => {}
                Attempt::Unknown => attempted = true,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(if attempted { ProposeError::TimedOut } else { ProposeError::NoLeader })
    }

    async fn propose_once(
        &self,
        command: &Command,
        bytes: &[u8],
        until: Instant,
    ) -> Result<Attempt<Reply>, ProposeError> {
        let member = self.inner.member.get().ok_or(ProposeError::NotAMember)?;
        if let Some(failure) = (self.inner.store_failure)() {
            return Err(ProposeError::Broken(failure));
        }
        let Some(leader) = self.leader() else { return Ok(Attempt::NotSent) };
        if leader.0 == member.identity.node {
            return Ok(self.write_as_leader(member, command, until).await);
        }
        let timeout = until.saturating_duration_since(Instant::now());
        let request = Request::Propose(bytes.to_vec());
        Ok(match member.peers.call(leader.0, &leader.1, Lane::Bulk, request, timeout).await {
            Ok(Answer::Proposed(reply)) => decode_reply(&reply).map_or(Attempt::Unknown, Attempt::Done),
            Ok(Answer::NotLeader(_)) | Err(CallError::Transport(TransportError::Unreachable { .. })) => {
                Attempt::NotSent
            }
            _ => Attempt::Unknown,
        })
    }

    /// Writes on this node, if it is the leader.
    pub(super) async fn write_as_leader(&self, member: &Member, command: &Command, until: Instant) -> Attempt<Reply> {
        match tokio::time::timeout_at(until, member.raft.client_write(command.clone())).await {
            Ok(Ok(response)) => Attempt::Done(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Attempt::NotSent,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a command was not written");
                Attempt::Unknown
            }
            Err(_) => Attempt::Unknown,
        }
    }

    /// Proposes as the leader of `term`, and not otherwise: for what only this leader has seen. Whether it was
    /// agreed on.
    pub async fn propose_in_term(&self, command: &Command, term: u64, deadline: Instant) -> bool {
        let Some(member) = self.inner.member.get() else { return false };
        while Instant::now() < deadline && self.leads_in(term) {
            match self.write_as_leader(member, command, deadline).await {
                Attempt::Done(_) => return true,
                // A fresh leader takes nothing until a majority has confirmed it.
                Attempt::NotSent => tokio::time::sleep(FRESH_LEADER).await,
                Attempt::Unknown => return false,
            }
        }
        false
    }

    fn leads_in(&self, term: u64) -> bool {
        let status = self.status();
        status.term == term && status.leader == status.node && status.node.is_some()
    }

    /// Who leads, as far as this node knows, and in which term.
    pub fn lead(&self) -> watch::Receiver<Lead> {
        self.inner.lead.subscribe()
    }

    /// The table as it is at some moment after this call: linearizable.
    pub async fn read(&self, deadline: Instant) -> Result<Arc<View>, ProposeError> {
        let member = self.inner.member.get().ok_or(ProposeError::NotAMember)?;
        while Instant::now() < deadline {
            let until = deadline.min(Instant::now() + ATTEMPT);
            let index = match self.leader() {
                Some((leader, _)) if leader == member.identity.node => self.read_index(until).await,
                Some((leader, address)) => {
                    let timeout = until.saturating_duration_since(Instant::now());
                    let request = Request::ReadIndex(true);
                    match member.peers.call(leader, &address, Lane::Urgent, request, timeout).await {
                        Ok(Answer::ReadIndex(index)) => Some(index),
                        _ => None,
                    }
                }
                None => None,
            };
            if let Some(index) = index {
                return self.applied(index, deadline).await.ok_or(ProposeError::TimedOut);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(ProposeError::NoLeader)
    }

    /// The index up to which a table must be applied to be read now. Only the leader knows, and only
    /// when a majority confirms that it still is: never by its lease, which a hint election voids.
    pub async fn read_index(&self, until: Instant) -> Option<u64> {
        let member = self.inner.member.get()?;
        let read = member.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        let linearizer = tokio::time::timeout_at(until, read).await.ok()?.ok()?;
        Some(linearizer.read_log_id().index())
    }

    /// Waits until the entry at `index` is applied here.
    pub async fn applied(&self, index: u64, deadline: Instant) -> Option<Arc<View>> {
        let mut watcher = self.watch();
        let view = tokio::time::timeout_at(deadline, watcher.wait_for(|view| view.applied >= index)).await;
        view.ok()?.ok().map(|view| view.clone())
    }

    /// The leader and its address, as far as this node knows.
    pub(super) fn leader(&self) -> Option<(NodeId, String)> {
        let member = self.inner.member.get()?;
        let metrics = member.raft.metrics().borrow_watched().clone();
        let leader = metrics.current_leader?;
        let address = metrics.membership_config.get_node(&leader)?.addr.clone();
        Some((leader, address))
    }

    /// Takes the lead from a leader that is gone, without waiting for its lease to run out: it is handed over
    /// as the leader itself would do it. The vote decides; a leader that is not gone merely loses the lead.
    pub async fn take_lead(&self, from: NodeId) {
        let Some(member) = self.inner.member.get() else { return };
        let metrics = member.raft.metrics().borrow_watched().clone();
        if metrics.current_leader != Some(from) {
            return;
        }
        // Its votes are marked as a transfer, which the other voters grant within the leader's lease too.
        let transfer = TransferLeaderRequest::new(metrics.vote, member.identity.node, None);
        if let Err(error) = member.raft.handle_transfer_leader(transfer).await {
            tracing::warn!(%error, "the lead cannot be taken");
        }
    }

    /// Gives the lead to another voter, if this node has it, so that a stop costs no election.
    pub async fn hand_over_lead(&self) {
        let Some(member) = self.inner.member.get() else { return };
        let (true, Some(successor)) = (self.is_leader(), self.successor(member)) else { return };
        if member.raft.trigger().transfer_leader(successor).await.is_err() {
            return;
        }
        let until = Instant::now() + HAND_OVER;
        while self.is_leader() && Instant::now() < until {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// The other voter that has acknowledged most of the log, and of those the one that was heard last: it lives,
    /// and an election takes it.
    pub(super) fn successor(&self, member: &Member) -> Option<NodeId> {
        let me = member.identity.node;
        let metrics = member.raft.metrics().borrow_watched().clone();
        let view = self.view();
        let others = view.voters.iter().copied().filter(|voter| *voter != me);
        others.max_by_key(|voter| {
            let matched = metrics.replication.as_ref().and_then(|nodes| nodes.get(voter).copied().flatten());
            let heard = metrics.heartbeat.as_ref().and_then(|nodes| nodes.get(voter).copied().flatten());
            (matched.map(|id| id.index()), heard.map(|at| *at))
        })
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

/// What became of one attempt.
pub(super) enum Attempt<T> {
    Done(T),
    /// Certainly nothing was done.
    NotSent,
    /// Something may have been done.
    Unknown,
}

/// 128 random bits: a version 4 UUID has 122, so two of them are mixed.
pub(crate) fn new_key() -> u128 {
    Uuid::new_v4().as_u128() ^ Uuid::new_v4().as_u128().rotate_left(64)
}

fn same_node(settings: &Settings, identity: &Identity) -> Result<(), StartError> {
    let other = |field, configured: String, stored: String| {
        if configured == stored { Ok(()) } else { Err(StartError::OtherNode { field, configured, stored }) }
    };
    other("cluster.name", settings.cluster_name.to_string(), identity.cluster_name.clone())?;
    other("node.name", settings.name.to_string(), identity.name.clone())?;
    other("node.role", settings.role.to_string(), identity.role.to_string())
}
