//! What the table holds: VIPs, services, backends, nodes and leases. Plain values without behaviour
//! that depends on a clock, a socket or a random number, so that every node holds the same table.

use std::{fmt, net::IpAddr};

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
}
