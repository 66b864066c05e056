//! What the table holds: VIPs, services, backends, nodes and leases. Plain values without behaviour
//! that depends on a clock, a socket or a random number, so that every node holds the same table.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use uuid::Uuid;

use super::types::{Cidr, Epoch, LeaseId, MacAddr, Name, NodeId, Revision, Weight};

/// What happens to a packet for a VIP that no service takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// It is answered by a TCP reset or an ICMP port unreachable.
    Reject,
}

/// What an operator says of a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipSettings {
    /// The virtual address.
    pub address: IpAddr,
    /// The node that should own it while it is able to.
    pub prefer: Option<NodeId>,
    /// The network whose nodes answer for it, where that is not simply the one it is in.
    pub segment: Option<Cidr>,
    /// What becomes of packets that no service takes.
    pub unmatched: Unmatched,
}

/// A VIP's owner: who, under which lease, since which grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The node that answers for the VIP.
    pub node: NodeId,
    /// The lease under which it does.
    pub lease: LeaseId,
    /// The grant; it grows with every move.
    pub epoch: Epoch,
}

/// A virtual address and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// What the operator said.
    pub settings: VipSettings,
    /// Its owner, if any node is able to own it.
    pub owner: Option<Owner>,
    /// While unowned: its last owner, which gets it back if it is as good as any other.
    pub home: Option<NodeId>,
    /// Where it is moving to, once its owner has released it.
    pub intent: Option<NodeId>,
    /// How often it was granted to a node; its first owner asks whether somebody else has the address.
    pub grants: u64,
    /// It vanishes when its owner releases it or its owner's lease ends.
    pub deleting: bool,
    /// The revision of its last change of settings.
    pub revision: Revision,
}

/// Transport protocols that are balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293
    Tcp,
    /// RFC 768
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Destination ports of a service, inclusive. `first = 0` stands for any port that no other service
/// of the VIP names, `last` is then 0 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// Whether it takes every port that no other service of the VIP names.
    pub fn is_any(&self) -> bool {
        self.first == 0
    }

    /// Whether both claim a port. Any port gives way to a named one, so the two do not collide.
    pub fn collides_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.is_any() == other.is_any()
            && self.first <= other.last
            && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0, _) => write!(f, "any/{}", self.protocol),
            (first, last) if first == last => write!(f, "{first}/{}", self.protocol),
            (first, last) => write!(f, "{first}-{last}/{}", self.protocol),
        }
    }
}

/// What ties a client to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Affinity {
    /// Each flow (5-tuple) is placed by itself.
    #[default]
    Flow,
    /// All flows of a source address go to one backend.
    Source,
}

/// The sizes that a Maglev table may have: primes near the powers of two.
pub const TABLE_SIZES: [u32; 4] = [4093, 16381, 65537, 655_373];

/// The table size of a service that names none.
pub const DEFAULT_TABLE_SIZE: u32 = 16381;

/// What an operator says of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Its name, unique in the cluster.
    pub name: Name,
    /// The VIP it is on.
    pub vip: IpAddr,
    /// The ports that share its backends, sorted.
    pub ports: Vec<PortRange>,
    /// What ties a client to a backend.
    pub affinity: Affinity,
    /// Entries of its Maglev table; fixed at creation.
    pub table_size: u32,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What the operator said.
    pub settings: ServiceSettings,
    /// The revision of its last change.
    pub revision: Revision,
}

/// What an operator wants of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdminState {
    /// It takes flows.
    #[default]
    Active,
    /// It keeps the flows it has and takes no new ones.
    Drain,
    /// It takes nothing; its flows are placed anew.
    Down,
}

/// What an operator says of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    /// The service that it serves.
    pub service: Name,
    /// Its own address, which serves to find its MAC.
    pub address: IpAddr,
    /// Its share of new flows.
    pub weight: Weight,
    /// Its MAC, where it shall not be resolved.
    pub mac: Option<MacAddr>,
    /// What the operator wants of it.
    pub state: AdminState,
}

/// A server of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// What the operator said.
    pub settings: BackendSettings,
    /// Counted up with each backend ever added, so that a removed and re-added one is another one.
    pub id: u64,
    /// The revision of its last change.
    pub revision: Revision,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It forwards and votes.
    #[default]
    Lb,
    /// It votes only.
    Witness,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lb => "lb",
            Self::Witness => "witness",
        })
    }
}

/// An address of a node on one of its listed interfaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The interface's name on that node.
    pub interface: String,
    /// The interface's MAC.
    pub mac: MacAddr,
    /// The node's own address there.
    pub address: IpAddr,
    /// The length of that network's prefix.
    pub prefix_len: u8,
    /// The other nodes that answer ARP there, sorted.
    pub hears: Vec<NodeId>,
}

impl Attachment {
    /// The network that this attaches the node to.
    pub fn segment(&self) -> Option<Cidr> {
        Cidr::containing(self.address, self.prefix_len)
    }
}

/// A machine that runs `lbd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// Its cluster address, `HOST:PORT`.
    pub address: String,
    /// The identity of its store; another store under the same id is refused.
    pub store: Uuid,
    /// The addresses on its listed interfaces, as it published them.
    pub attachments: Vec<Attachment>,
    /// Where it listens for heartbeats, as it published them.
    pub heartbeat: Vec<SocketAddr>,
    /// The highest feature level that it knows.
    pub feature_level: u32,
    /// It shall own nothing while another node can.
    pub draining: bool,
}

impl Node {
    /// Whether the node is on the segment that `address` is in.
    pub fn is_attached_to(&self, address: IpAddr) -> bool {
        self.attachments.iter().filter_map(Attachment::segment).any(|s| s.contains(address))
    }
}

/// A node's permission to own VIPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The index of the entry that opened it.
    pub id: LeaseId,
    /// Chosen anew by each process, so that a replayed entry is not taken for its own.
    pub nonce: u64,
    /// Its holder has held it validly once, so it may be given VIPs.
    pub ready: bool,
    /// The configuration (the index of its entry) since which its holder counts majorities.
    pub configuration: u64,
}

/// Who votes. While it changes there are two sets of voters, and a majority means one in each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// The index of the entry that it came with.
    pub index: u64,
    /// One set of voters, or two.
    pub halves: Vec<BTreeSet<NodeId>>,
}

impl Configuration {
    /// Everybody who votes.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.halves.iter().flatten().copied().collect()
    }

    /// Whether those nodes are a majority of each half.
    pub fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        !self.halves.is_empty() && self.halves.iter().all(|half| half.intersection(nodes).count() > half.len() / 2)
    }

    /// Whether no half has a majority without those nodes.
    pub fn is_blocked_by(&self, nodes: &BTreeSet<NodeId>) -> bool {
        !self.halves.is_empty() && self.halves.iter().all(|half| lacks_majority_without(half, nodes))
    }

    /// Whether some half has no majority without those nodes: then there is none of the whole.
    pub fn is_lost_without(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.halves.iter().any(|half| lacks_majority_without(half, nodes))
    }
}

fn lacks_majority_without(half: &BTreeSet<NodeId>, nodes: &BTreeSet<NodeId>) -> bool {
    half.difference(nodes).count() <= half.len() / 2
}

/// What owners do when no majority of the voters can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QuorumLoss {
    /// They fall silent when their leases run out: never two owners, and no service without a majority.
    #[default]
    Release,
    /// They go on answering, announce nothing, and fall silent at the first claim of another station: service
    /// before the promise of one owner.
    Hold,
}

/// What holds for the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterSettings {
    /// How fast a silent node is noticed.
    pub timing: Timing,
    /// What owners do without a majority.
    pub on_quorum_loss: QuorumLoss,
    /// A VIP goes back to the node that it prefers when that has been able for so long; 0 for never.
    pub failback_s: u32,
    /// For how long flows are remembered.
    pub flow_timeouts: FlowTimeouts,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            timing: Timing::DEFAULT,
            on_quorum_loss: QuorumLoss::Release,
            failback_s: 0,
            flow_timeouts: FlowTimeouts::default(),
        }
    }
}

/// For how long a flow is remembered after its last packet. In seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// An open TCP connection.
    pub tcp_s: u32,
    /// A TCP connection of which a FIN or RST was seen.
    pub fin_s: u32,
    /// UDP.
    pub udp_s: u32,
}

impl Default for FlowTimeouts {
    fn default() -> Self {
        Self { tcp_s: 7200, fin_s: 10, udp_s: 30 }
    }
}

impl FlowTimeouts {
    /// A week; a flow that is silent for longer is not one.
    pub const MAX_S: u32 = 7 * 86_400;

    /// Why they cannot be used, if so: the setting, and what is wrong with it.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let all = [("flow_tcp_s", self.tcp_s), ("flow_fin_s", self.fin_s), ("flow_udp_s", self.udp_s)];
        let (name, value) = all.into_iter().find(|(_, value)| !(1..=Self::MAX_S).contains(value))?;
        Some((name, format!("{value} is not between 1 and {} seconds", Self::MAX_S)))
    }
}

/// How fast a silent node is noticed. In milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats (p).
    pub heartbeat_ms: u32,
    /// How long a heartbeat that a majority acknowledged lets its sender answer (D).
    pub lease_ms: u32,
    /// For how long an acknowledgement promises to say nothing against the sender (W).
    pub withdraw_ms: u32,
}

impl Timing {
    /// Takeover in about 0.16 s.
    pub const DEFAULT: Self = Self { heartbeat_ms: 20, lease_ms: 146, withdraw_ms: 150 };
    /// Four times slower, for noisy machines and stretched networks.
    pub const RELAXED: Self = Self { heartbeat_ms: 80, lease_ms: 584, withdraw_ms: 600 };
    /// Four times faster, for dedicated machines with real-time priority.
    pub const FAST: Self = Self { heartbeat_ms: 5, lease_ms: 36, withdraw_ms: 38 };
    /// The longest promise that can be set.
    pub const MAX_WITHDRAW_MS: u32 = 10_000;

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&'static str> {
        [("default", Self::DEFAULT), ("relaxed", Self::RELAXED), ("fast", Self::FAST)]
            .into_iter()
            .find_map(|(name, timing)| (timing == *self).then_some(name))
    }

    /// The inverse of [`Self::name`].
    pub fn named(name: &str) -> Option<Self> {
        [Self::DEFAULT, Self::RELAXED, Self::FAST].into_iter().find(|timing| timing.name() == Some(name))
    }

    /// How long a promise of `withdraw_ns` may be used by a holder whose clock, like the supporter's, may be
    /// off by [`CLOCK_DRIFT_PPM`].
    pub fn usable_ns(withdraw_ns: u64) -> u64 {
        let drift = CLOCK_DRIFT_PPM;
        (u128::from(withdraw_ns) * u128::from(1_000_000 - drift) / u128::from(1_000_000 + drift)) as u64
    }

    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<String> {
        let Self { heartbeat_ms, lease_ms, withdraw_ms } = *self;
        let ns = |ms: u32| u64::from(ms) * 1_000_000;
        if heartbeat_ms == 0 || heartbeat_ms.saturating_mul(4) > lease_ms {
            return Some(format!(
                "heartbeat_ms = {heartbeat_ms} with lease_ms = {lease_ms}: a lease must outlast 4 heartbeats"
            ));
        }
        if ns(lease_ms) > Self::usable_ns(ns(withdraw_ms)) {
            return Some(format!(
                "withdraw_ms = {withdraw_ms} with lease_ms = {lease_ms}: it must be longer by the clocks' drift (0.2 %)"
            ));
        }
        (withdraw_ms > Self::MAX_WITHDRAW_MS)
            .then(|| format!("withdraw_ms = {withdraw_ms}: at most {} is taken", Self::MAX_WITHDRAW_MS))
    }
}

/// By how much a node's clock may run fast or slow, in parts per million.
pub const CLOCK_DRIFT_PPM: u64 = 1000;
