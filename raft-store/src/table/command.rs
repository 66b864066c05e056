//! What the log carries and what applying it answers. Whatever depends on time or chance was decided
//! by a node before and travels inside the command.

use std::net::{IpAddr, SocketAddr};

use uuid::Uuid;

use super::{
    model::{
        AdminState, Affinity, Attachment, BackendSettings, ClusterSettings, PortRange, Role, ServiceSettings,
        Unmatched, VipSettings,
    },
    types::{Cidr, Epoch, LeaseId, MacAddr, Name, NodeId, Revision, Weight},
};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The first entry of a cluster.
    CreateCluster {
        /// The cluster's identity, carried by every message between nodes.
        cluster: Uuid,
        /// Its name, fixed for good.
        cluster_name: Name,
        /// The key of all flow hashes, equal on every node.
        hash_seed: u128,
        /// The first key of the heartbeats' signatures.
        heartbeat_key: u128,
        /// The node that bootstraps it; its id is 1.
        node: NewNode,
    },
    /// Changes to VIPs, services and backends: all or none.
    Mutate(Mutate),
    /// A machine becomes known; its id is this entry's index.
    AddNode(NewNode),
    /// A node is forgotten and its lease ends. Refused while it owns a VIP.
    RemoveNode {
        /// Who.
        node: NodeId,
        /// The key of the heartbeats' signatures from now on, which the removed node does not learn.
        heartbeat_key: u128,
    },
    /// What a node says of itself.
    PublishNode {
        /// Who.
        node: NodeId,
        /// Its addresses on its listed interfaces.
        attachments: Vec<Attachment>,
        /// Where it listens for heartbeats.
        heartbeat: Vec<SocketAddr>,
        /// The highest feature level it knows.
        feature_level: u32,
    },
    /// A node is drained, or no longer so.
    SetDraining {
        /// Makes a repeated request apply once.
        request: Option<RequestId>,
        /// The revision that the caller has seen; 0 for any.
        expected_revision: Revision,
        /// Who.
        node: NodeId,
        /// Whether it shall own nothing while another node can.
        draining: bool,
    },
    /// A process asks for a lease. A no-op unless the node's lease is `previous`.
    OpenLease {
        /// Who.
        node: NodeId,
        /// Chosen by that process.
        nonce: u64,
        /// The lease that it ends.
        previous: Option<LeaseId>,
    },
    /// The holder has held its lease validly once and can own VIPs from now on.
    Ready {
        /// Who.
        node: NodeId,
        /// Which lease.
        lease: LeaseId,
    },
    /// A lease ends and its VIPs are placed anew. A no-op unless it is the node's lease.
    Fence {
        /// Whose.
        node: NodeId,
        /// Which.
        lease: LeaseId,
        /// Why this is safe; weighed again when it is applied.
        evidence: Evidence,
        /// The nodes that the proposer has heard lately: they are given the VIPs first.
        heard: Vec<NodeId>,
    },
    /// A holder counts in this configuration from now on, and in no older one again.
    Confirm {
        /// Who.
        node: NodeId,
        /// Which lease.
        lease: LeaseId,
        /// The index of the configuration's entry.
        configuration: u64,
    },
    /// A supporter hears a holder again from which it had withdrawn: its evidence up to here is void.
    Retract {
        /// Who takes it back.
        supporter: NodeId,
        /// Under which lease of its own.
        supporter_lease: LeaseId,
        /// The holder.
        node: NodeId,
        /// The holder's lease.
        lease: LeaseId,
    },
    /// Settings of the whole cluster change.
    UpdateSettings {
        /// Makes a repeated request apply once.
        request: Option<RequestId>,
        /// The revision that the caller has seen; 0 for any.
        expected_revision: Revision,
        /// The settings from now on.
        settings: ClusterSettings,
    },
    /// VIPs move until no node has two more than another that could own them. Preferred nodes keep theirs.
    Rebalance {
        /// Makes a repeated request apply once.
        request: Option<RequestId>,
        /// The revision that the caller has seen; 0 for any.
        expected_revision: Revision,
    },
    /// Commands up to this level may be proposed from now on. A no-op unless every node knows it.
    RaiseFeatureLevel {
        /// The level.
        level: u32,
    },
    /// An owner has stopped answering for VIPs. A no-op for those whose epoch is not the VIP's.
    Released {
        /// Which, and in which grant.
        grants: Vec<(IpAddr, Epoch)>,
    },
    /// A VIP shall move; it does when its owner has released it.
    MoveIntent {
        /// Makes a repeated request apply once.
        request: Option<RequestId>,
        /// The revision that the caller has seen; 0 for any.
        expected_revision: Revision,
        /// Which.
        vip: IpAddr,
        /// Where to.
        to: NodeId,
    },
}

/// Why a lease may be ended without two nodes answering for a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// The holder itself has stopped answering.
    OwnRelease,
    /// The process is dead: whoever waited for it says so.
    Obituary {
        /// Of the process.
        nonce: u64,
    },
    /// So many voters have withdrawn their support that no majority is left.
    Withdrawals(Vec<Withdrawal>),
}

/// A voter's word that its promise to a holder has run out and that it gives no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Withdrawal {
    /// Who.
    pub supporter: NodeId,
    /// Under which lease of its own: another process of the same node knows nothing of it.
    pub lease: LeaseId,
    /// The last entry that it had applied when it said so.
    pub as_of: u64,
}

/// A machine that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// Its name.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// Its cluster address.
    pub address: String,
    /// The identity of its store.
    pub store: Uuid,
}

/// Chosen by a caller: the same id twice applies once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// `None` for an empty text, which asks for no such protection; an error past 64 bytes.
    pub fn parse(text: &str) -> Result<Option<Self>, Rejection> {
        match text.len() {
            0 => Ok(None),
            1..=64 => Ok(Some(Self(text.to_owned()))),
            len => Err(Rejection::invalid("request_id", format!("it has {len} bytes; at most 64 are taken"))),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Changes that are made together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutate {
    /// Makes a repeated request apply once.
    pub request: Option<RequestId>,
    /// The revision that the caller has seen; 0 for any.
    pub expected_revision: Revision,
    /// In this order.
    pub mutations: Vec<Mutation>,
}

/// One change. In a patch, `None` leaves a value as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the settings that they change")]
pub enum Mutation {
    CreateVip(VipSettings),
    UpdateVip {
        address: IpAddr,
        prefer: Option<Option<NodeId>>,
        segment: Option<Option<Cidr>>,
        unmatched: Option<Unmatched>,
    },
    DeleteVip {
        address: IpAddr,
        cascade: bool,
    },
    CreateService(ServiceSettings),
    UpdateService {
        name: Name,
        ports: Option<Vec<PortRange>>,
        affinity: Option<Affinity>,
    },
    DeleteService {
        name: Name,
        cascade: bool,
    },
    CreateBackend(BackendSettings),
    UpdateBackend {
        service: Name,
        address: IpAddr,
        weight: Option<Weight>,
        mac: Option<Option<MacAddr>>,
        state: Option<AdminState>,
    },
    DeleteBackend {
        service: Name,
        address: IpAddr,
    },
}

/// What applying an entry answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The table's revision after the entry.
    pub revision: Revision,
    /// What it did, or why it did nothing.
    pub result: Result<Effect, Rejection>,
}

impl Default for Reply {
    fn default() -> Self {
        Self { revision: 0, result: Ok(Effect::Unchanged) }
    }
}

/// What an entry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effect {
    /// It was already so.
    #[default]
    Unchanged,
    /// The table changed.
    Changed,
    /// A node got this id.
    NodeAdded(NodeId),
    /// A lease got this id.
    LeaseOpened(LeaseId),
}

/// Which kind of refusal a rejection is; it picks the caller's status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionKind {
    /// A value that can never be right.
    InvalidArgument,
    /// What is named is not there.
    NotFound,
    /// It is there already, with other settings.
    AlreadyExists,
    /// The table as it is does not allow it.
    FailedPrecondition,
    /// A bound is reached.
    ResourceExhausted,
}

/// Why the table refused a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// Which kind of refusal.
    pub kind: RejectionKind,
    /// The field or the rule, in the API's words.
    pub subject: String,
    /// For people: what is wrong and what to try.
    pub message: String,
}

impl Rejection {
    fn new(kind: RejectionKind, subject: &str, message: String) -> Self {
        Self { kind, subject: subject.to_owned(), message }
    }

    /// A field's value can never be right.
    pub fn invalid(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::new(RejectionKind::InvalidArgument, field, format!("{field}: {problem}"))
    }

    /// What is named is not there.
    pub fn not_found(what: &str, message: String) -> Self {
        Self::new(RejectionKind::NotFound, what, message)
    }

    /// It is there already, with other settings.
    pub fn exists(what: &str, message: String) -> Self {
        Self::new(RejectionKind::AlreadyExists, what, message)
    }

    /// The table as it is does not allow it.
    pub fn precondition(rule: &str, message: String) -> Self {
        Self::new(RejectionKind::FailedPrecondition, rule, message)
    }

    /// A bound is reached.
    pub fn exhausted(bound: &str, message: String) -> Self {
        Self::new(RejectionKind::ResourceExhausted, bound, message)
    }
}
