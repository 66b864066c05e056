//! What the control plane wants forwarded, in plain values: [`super::compile`] makes a [`super::snapshot::Snapshot`] of
//! it.

use std::net::{IpAddr, Ipv4Addr};

use crate::packet::{Mac, Protocol};

/// What the control plane wants forwarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableSpec {
    /// The key of all flow hashes, equal on every node.
    pub hash_key: u128,
    /// The interfaces, in the order in which the dataplane was started with them.
    pub ports: Vec<PortSpec>,
    /// All VIPs, owned or not: a frame that arrives for our MAC is forwarded in any case.
    pub vips: Vec<VipSpec>,
    /// The other load balancers' addresses on segments of ours, and the gateways there.
    pub peers: Vec<PeerSpec>,
    /// All addresses of the other load balancers, and the MAC addresses of the interfaces that have them.
    pub peer_addresses: Vec<(Mac, IpAddr)>,
    /// For how long flows are remembered.
    pub timeouts: Timeouts,
}

/// An interface as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name.
    pub name: String,
    /// Its index in the kernel: another one after it was gone, 0 meanwhile.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// The largest IP packet that it sends.
    pub mtu: u32,
    /// Whether there is a carrier.
    pub carrier: bool,
    /// Whether it segments TCP GSO frames itself.
    pub segments: bool,
    /// The node's own addresses on it, with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl PortSpec {
    /// The node's own address on the segment that `address` is in.
    pub fn address_towards(&self, address: IpAddr) -> Option<IpAddr> {
        self.segment_of(address).map(|(own, _)| *own)
    }

    /// The narrowest of the interface's segments that `address` is in: the node's address there, and the length of the
    /// prefix.
    pub(super) fn segment_of(&self, address: IpAddr) -> Option<&(IpAddr, u8)> {
        let with = self.addresses.iter().filter(|(own, len)| network(*own, *len) == network(address, *len));
        with.max_by_key(|(_, len)| *len)
    }

    /// Whether there is no such interface at present.
    pub(crate) fn is_gone(&self) -> bool {
        self.ifindex == 0
    }

    /// Whether an address is the node's own.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(own, _)| *own == address)
    }

    /// An address of the node's own, of the same family as another one.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        let mut own = self.addresses.iter().map(|(own, _)| *own);
        own.find(|own| own.is_ipv4() == other.is_ipv4())
    }
}

/// The broadcast address of a segment (RFC 919 7). IPv6 has none, and a point-to-point link neither (RFC 3021 2.1).
pub(super) fn broadcast(own: IpAddr, len: u8) -> Option<IpAddr> {
    match own {
        IpAddr::V4(own) if len <= 30 => Some(Ipv4Addr::from(u32::from(own) | u32::MAX >> len).into()),
        _ => None,
    }
}

/// The network of an address, and of which family it is.
fn network(address: IpAddr, len: u8) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
            (true, (u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            (false, u128::from(address) & u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0))
        }
    }
}

/// A VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipSpec {
    /// The address.
    pub address: IpAddr,
    /// The interfaces on which it is answered and announced.
    pub answer_on: Vec<usize>,
    /// Whoever asks for a port that no service takes is told so, while this node owns the VIP.
    pub rejects: bool,
    /// What is balanced on it.
    pub services: Vec<ServiceSpec>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name, unique.
    pub name: String,
    /// Its ports.
    pub ports: Vec<PortRangeSpec>,
    /// All flows of a source address go to one backend.
    pub by_source: bool,
    /// Entries of its Maglev table.
    pub table_size: u32,
    /// Flows of TCP whose backend is down are reset, and not placed anew.
    pub resets_flows: bool,
    /// Its backends, sorted by address.
    pub backends: Vec<BackendSpec>,
}

/// Ports of a service, inclusive; 0 to 0 for any that no other service names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRangeSpec {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSpec {
    /// Unique for ever: a backend that was removed and added again, or serves another service, has another one.
    pub id: u64,
    /// Its own address.
    pub address: IpAddr,
    /// Its MAC, if it shall not be resolved.
    pub mac: Option<Mac>,
    /// Its share of new flows.
    pub weight: u16,
    /// Whether it takes new flows, keeps those it has, or has none.
    pub state: BackendState,
}

/// What a backend takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendState {
    /// New and known flows.
    Active,
    /// Known flows only.
    Draining,
    /// Known flows of TCP only: it does not answer for its address.
    Silent,
    /// No flows: those that it had are placed anew.
    Down,
}

impl BackendState {
    /// Whether a backend still gets the packets of the flows of a protocol that it has.
    pub fn keeps(self, protocol: Protocol) -> bool {
        match self {
            Self::Active | Self::Draining => true,
            Self::Silent => protocol == Protocol::Tcp,
            Self::Down => false,
        }
    }
}

/// Whom this node listens for on a segment of ours: another load balancer, or a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// The interface towards it.
    pub port: usize,
    /// Its own address there.
    pub address: IpAddr,
    /// Its MAC address there; `None` of a gateway, which is found by its address.
    pub mac: Option<Mac>,
}

/// At most so many interfaces: they are bits of a word.
pub const MAX_PORTS: usize = 64;

/// How long a flow is remembered after its last packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// An open TCP connection (RFC 5382 REQ-5 asks for 2 h 4 min of a NAT; a load balancer may forget
    /// earlier, because Maglev knows the backend as long as the set of backends stays).
    pub tcp_s: u32,
    /// A TCP connection of which a FIN was seen (IPVS has the same for FIN_WAIT). After a RST it is 10 s.
    pub fin_s: u32,
    /// A flow of UDP, which nobody opens or closes.
    pub udp_s: u32,
    /// So long a flow may live without a worker's seeing it: an accelerator forwards its packets. All others are longer by that.
    pub unseen_s: u32,
}

impl Timeouts {
    /// Whether nothing is remembered for longer than by the other ones.
    pub(crate) fn is_within(self, other: Self) -> bool {
        let of = |Self { tcp_s, fin_s, udp_s, unseen_s }| [tcp_s, fin_s, udp_s, unseen_s];
        of(self).iter().zip(of(other)).all(|(own, other)| *own <= other)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { tcp_s: 7200, fin_s: 120, udp_s: 30, unseen_s: 0 }
    }
}
