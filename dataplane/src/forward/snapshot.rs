//! The forwarding table as the workers read it: one published state, built off their threads by [`super::compile`],
//! never changed afterwards. A worker loads one snapshot a batch.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    net::IpAddr,
    sync::Arc,
};

use super::{
    hash::HashKey,
    maglev::Maglev,
    runtime::{BackendRef, BackendRuntime, Peer, VipId},
    spec::{BackendState, PortRangeSpec, PortSpec, Timeouts},
};
use crate::{
    io::sys::memory::prefetch,
    packet::{Address, Mac, Protocol},
    stats::TrafficByWorker,
};

/// A backend as workers see it: in one line of the cache.
#[derive(Debug)]
#[repr(align(64))]
pub struct Backend {
    /// What the control plane calls it.
    pub id: u64,
    /// What flow entries call it.
    pub reference: BackendRef,
    /// Its own address.
    pub address: IpAddr,
    /// The service that it serves.
    pub service: u32,
    /// The interface on whose segment it is; `None` if on none of this node's.
    pub(super) port: Option<u8>,
    /// It is this node: its frames are for the node's own kernel.
    pub is_self: bool,
    /// What it takes.
    pub state: BackendState,
    /// How often it has lost flows that it had: those that come to it again are others.
    pub losses: u32,
    /// Its MAC, where it was given and is not to be resolved.
    pub given_mac: Option<Mac>,
    /// Its counters and its resolved MAC.
    pub runtime: Arc<BackendRuntime>,
}

const _: () = assert!(size_of::<Option<Backend>>() == 64);

impl Backend {
    /// The interface on whose segment it is; `None` if on none of this node's.
    pub fn port(&self) -> Option<usize> {
        self.port.map(usize::from)
    }

    /// Its MAC address, if known.
    pub fn mac(&self) -> Option<Mac> {
        self.given_mac.or_else(|| self.runtime.mac())
    }
}

/// A service as workers see it.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Where its VIP stands.
    pub vip: u32,
    /// All flows of a source address go to one backend.
    pub by_source: bool,
    /// Flows of TCP whose backend is down are reset, and not placed anew.
    pub resets_flows: bool,
    /// `None` while no backend takes new flows.
    pub maglev: Option<Arc<Maglev>>,
    /// The slots of the Maglev table's members, by position.
    pub members: Box<[u32]>,
    /// This node is one of its backends, and takes flows.
    pub is_served_here: bool,
    /// Another one when it or another service of its VIP has got other ports.
    pub ports_version: u32,
}

/// A VIP as workers see it. What each of its frames needs stands in the first line of the cache.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Vip {
    /// Packets and bytes of all its services.
    pub traffic: Arc<TrafficByWorker>,
    /// What flow entries call it.
    pub id: VipId,
    rules: Rules,
    /// Whoever asks for a port that no service takes is told so.
    pub rejects: bool,
    /// This node is a backend of one of its services, and takes flows.
    pub is_served_here: bool,
    /// A bit for each interface on which it is answered.
    pub answer_on: u64,
    /// The address.
    pub address: IpAddr,
    /// All rules, where there are many.
    many: Box<[Rule]>,
}

const _: () = assert!(std::mem::offset_of!(Vip, answer_on) <= 64);

/// Ports, and the service that takes them.
type Rule = (PortRangeSpec, u32);

/// So many of a VIP's rules are found without a detour.
const FEW: usize = 3;

/// Which service takes which ports.
#[derive(Debug)]
#[repr(C)]
struct Rules {
    /// The services that take any other port.
    any: [u32; 2],
    /// Sorted by protocol and first port.
    few: [Rule; FEW],
    /// How many of the few there are; more than there can be, if all stand elsewhere.
    count: u8,
}

/// For no service.
const NONE: u32 = u32::MAX;

/// A VIP as it is compiled.
pub(super) struct VipParts {
    pub(super) id: VipId,
    pub(super) address: IpAddr,
    pub(super) answer_on: u64,
    pub(super) rejects: bool,
    pub(super) is_served_here: bool,
    pub(super) rules: Vec<Rule>,
    pub(super) any: [Option<u32>; 2],
    pub(super) traffic: Arc<TrafficByWorker>,
}

impl From<VipParts> for Vip {
    fn from(parts: VipParts) -> Self {
        let VipParts { id, address, answer_on, rejects, is_served_here, mut rules, any, traffic } = parts;
        rules.sort_unstable();
        let unused = (PortRangeSpec { protocol: Protocol::Tcp, first: 0, last: 0 }, NONE);
        let mut few = [unused; FEW];
        let is_few = rules.len() <= FEW;
        if is_few {
            few[..rules.len()].copy_from_slice(&rules);
        }
        let count = if is_few { rules.len() as u8 } else { u8::MAX };
        let many = if is_few { Box::default() } else { rules.into() };
        let rules = Rules { any: any.map(|service| service.unwrap_or(NONE)), few, count };
        Self { traffic, id, rules, rejects, is_served_here, answer_on, address, many }
    }
}

impl Vip {
    /// The service that takes a port.
    #[inline]
    pub fn service(&self, protocol: Protocol, port: u16) -> Option<u32> {
        let is_before = |(range, _): &Rule| (range.protocol, range.first) <= (protocol, port);
        let named = match self.rules.few.get(..usize::from(self.rules.count)) {
            Some(few) => few.iter().rev().find(|rule| is_before(rule)),
            None => self.many.partition_point(is_before).checked_sub(1).map(|at| &self.many[at]),
        };
        match named {
            Some((range, service)) if range.protocol == protocol && port <= range.last => Some(*service),
            _ => Some(self.rules.any[protocol as usize]).filter(|service| *service != NONE),
        }
    }

    /// The ports that a service has named one by one.
    pub(crate) fn single_ports(&self) -> impl Iterator<Item = (Protocol, u16, u32)> {
        let rules = self.rules.few.get(..usize::from(self.rules.count)).unwrap_or(&self.many);
        let single = rules.iter().filter(|(range, _)| range.first == range.last);
        single.map(|(range, service)| (range.protocol, range.first, *service))
    }

    /// Whether it is answered on an interface.
    pub fn answers_on(&self, port: usize) -> bool {
        self.answer_on & (1 << port) != 0
    }
}

/// One published state of the forwarding table.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up with every publication.
    pub generation: u64,
    /// The key of all flow hashes.
    pub hash_key: HashKey,
    /// The interfaces.
    pub ports: Vec<PortSpec>,
    /// Where the VIPs stand, by their addresses.
    pub(super) vips_at: HashMap<Address, u32, BuildHasherDefault<AddressHasher>>,
    /// The VIPs, sorted by address.
    pub vips: Vec<Vip>,
    /// The services.
    pub services: Vec<Service>,
    pub(super) backends: Vec<Option<Backend>>,
    /// The MAC addresses of the other load balancers, sorted.
    pub(crate) peer_macs: Vec<Mac>,
    /// Which addresses are their own, where one of them is a backend.
    pub(crate) peer_addresses: HashSet<(Mac, IpAddr)>,
    /// From where no frame comes that is for a VIP: the VIPs, this node's own addresses, and the broadcast addresses of its
    /// segments.
    pub(super) never_sources: HashSet<Address, BuildHasherDefault<AddressHasher>>,
    /// The other load balancers and the gateways on our segments.
    pub peers: Vec<Peer>,
    /// For how long flows are remembered.
    pub timeouts: Timeouts,
}

impl Snapshot {
    /// The VIP with that address.
    pub fn vip(&self, address: impl Into<Address>) -> Option<&Vip> {
        self.vip_at(address.into()).map(|at| &self.vips[at as usize])
    }

    /// Where among the VIPs the one with that address stands.
    #[inline]
    pub fn vip_at(&self, address: Address) -> Option<u32> {
        self.vips_at.get(&address).copied()
    }

    /// Has the processor fetch a backend.
    #[inline]
    pub(crate) fn prefetch_backend(&self, reference: BackendRef) {
        self.backends.get(reference.slot()).inspect(|backend| prefetch(*backend));
    }

    /// And what its frames change and are changed by, when the backend is there.
    #[inline]
    pub(crate) fn prefetch_runtime(&self, reference: BackendRef) {
        if let Some(Some(backend)) = self.backends.get(reference.slot()) {
            prefetch(&*backend.runtime);
        }
    }

    /// The VIP that a flow entry names.
    pub fn vip_of(&self, id: VipId) -> Option<&Vip> {
        self.vips.iter().find(|vip| vip.id == id)
    }

    /// The backend of a flow entry, if it is still the same one.
    pub fn backend(&self, reference: BackendRef) -> Option<&Backend> {
        self.backends.get(reference.slot())?.as_ref().filter(|backend| backend.reference == reference)
    }

    /// The same, and the VIP that it serves.
    pub(crate) fn served_by(&self, reference: BackendRef) -> Option<(&Vip, &Backend)> {
        let backend = self.backend(reference)?;
        let vip = self.vips.get(self.services.get(backend.service as usize)?.vip as usize)?;
        Some((vip, backend))
    }

    /// The backend in a slot that a service named.
    pub fn member(&self, slot: u32) -> Option<&Backend> {
        self.backends.get(slot as usize)?.as_ref()
    }

    /// All backends.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().flatten()
    }

    /// The interfaces on which a VIP is answered and announced.
    pub(crate) fn ports_of(&self, vip: &Vip) -> impl Iterator<Item = (usize, &PortSpec)> {
        let answers_on = vip.answer_on;
        self.ports.iter().enumerate().filter(move |(at, _)| answers_on & (1 << at) != 0)
    }

    /// Whether no host on a segment of ours, or behind one, may send from an address: nothing is answered to it.
    pub fn is_bad_source(&self, source: Address) -> bool {
        source.is_never_a_source() || self.never_sources.contains(&source)
    }

    /// The addresses for which that is so here, besides those for which it is so everywhere.
    pub(crate) fn bad_sources(&self) -> impl Iterator<Item = Address> {
        self.never_sources.iter().copied()
    }

    /// Whether an interface of this node has that MAC address.
    pub(crate) fn is_own_mac(&self, mac: Mac) -> bool {
        self.ports.iter().any(|port| port.mac == mac)
    }

    /// Whether a frame from this MAC was balanced already.
    pub fn is_peer(&self, mac: Mac) -> bool {
        self.peer_macs.binary_search(&mac).is_ok()
    }
}

/// VIPs are chosen by the operator, not by an attacker: a multiplication mixes well enough.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64((value >> 64) as u64);
        self.write_u64(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many rules there are, the greatest range that begins at or before a port counts, and else whoever takes any.
    #[test]
    fn few_rules_and_many_say_the_same() {
        let range = |protocol, first, last| PortRangeSpec { protocol, first, last };
        let all = [
            range(Protocol::Tcp, 80, 80),
            range(Protocol::Udp, 53, 53),
            range(Protocol::Tcp, 1000, 2000),
            range(Protocol::Udp, 80, 90),
            range(Protocol::Tcp, 443, 443),
        ];
        for count in 0..=all.len() {
            for any in [[None, None], [Some(7), None], [Some(7), Some(8)]] {
                let rules: Vec<Rule> = all[..count].iter().copied().zip(10..).collect();
                let vip = Vip::from(VipParts {
                    id: VipId(1),
                    address: [192, 0, 2, 1].into(),
                    answer_on: 0,
                    rejects: false,
                    is_served_here: false,
                    rules: rules.clone(),
                    any,
                    traffic: Arc::new(TrafficByWorker::new(1)),
                });
                assert_eq!(vip.many.is_empty(), count <= FEW);
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    for port in [0, 1, 53, 79, 80, 81, 443, 999, 1000, 1500, 2000, 2001, u16::MAX] {
                        let takes = |(of, _): &&Rule| of.protocol == protocol && (of.first..=of.last).contains(&port);
                        let named = rules.iter().find(takes).map(|(_, service)| *service);
                        let expected = named.or(any[protocol as usize]);
                        assert_eq!(vip.service(protocol, port), expected, "{count} {any:?} {protocol:?} {port}");
                    }
                }
            }
        }
    }
}
