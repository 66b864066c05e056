//! The forwarding table: what a worker needs of the replicated one, compiled for lookups. Built off
//! the workers' threads, published whole, never changed afterwards.
//!
//! A worker loads one snapshot a batch. Backends stand in slots that stay theirs from snapshot to
//! snapshot, so a flow entry finds its backend without a search, and a slot's generation tells when
//! it has become another backend's.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    flow::Timeouts,
    hash::HashKey,
    maglev::{Maglev, Member},
};
use crate::{
    io::{Instruction, filter, memory::prefetch},
    packet::{Address, Mac, Protocol},
    segment::{Peer, PeerSpec},
    stats::TrafficByWorker,
};

/// What the control plane wants forwarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableSpec {
    /// The key of all flow hashes, equal on every node.
    pub hash_key: u128,
    /// The interfaces, in the order in which the dataplane was started with them.
    pub ports: Vec<PortSpec>,
    /// All VIPs, owned or not: a frame that arrives for our MAC is forwarded in any case.
    pub vips: Vec<VipSpec>,
    /// The hardware addresses of the other load balancers.
    pub peer_macs: Vec<Mac>,
    /// Their addresses on segments of ours.
    pub peers: Vec<PeerSpec>,
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
    /// Its hardware address.
    pub mac: Mac,
    /// The largest IP packet that it sends.
    pub mtu: u32,
    /// Whether there is a carrier.
    pub carrier: bool,
    /// Whether it segments TCP super-frames itself.
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
    fn segment_of(&self, address: IpAddr) -> Option<&(IpAddr, u8)> {
        let with = self.addresses.iter().filter(|(own, len)| network(*own, *len) == network(address, *len));
        with.max_by_key(|(_, len)| *len)
    }

    /// Whether there is no such interface at present.
    pub(crate) fn is_gone(&self) -> bool {
        self.ifindex == 0
    }

    /// Whether an address is the node's own.
    fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(own, _)| *own == address)
    }

    /// An address of the node's own, of the same family as another one.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        let mut own = self.addresses.iter().map(|(own, _)| *own);
        own.find(|own| own.is_ipv4() == other.is_ipv4())
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
    /// The grant under which this node owns it; `None` if it does not.
    pub owned: Option<u64>,
    /// Nobody has owned it before: whoever else may have the address is asked first (RFC 5227 2.1).
    pub first_grant: bool,
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
    /// Unique for ever: a backend that was removed and added again has another one.
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
    /// Nothing.
    Down,
}

/// Names a backend in a flow entry: its slot and the slot's generation. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendRef(NonZeroU32);

/// Enough for twice the table's bound on backends, so that a freed slot rests before it is used again.
const SLOT_BITS: u32 = 17;

impl BackendRef {
    fn new(slot: usize, generation: u32) -> Self {
        let raw = (generation << SLOT_BITS) | slot as u32;
        Self(NonZeroU32::new(raw).unwrap_or(NonZeroU32::MIN))
    }

    /// From what [`Self::get`] gave.
    pub(crate) fn from_raw(raw: u32) -> Self {
        Self(NonZeroU32::new(raw).unwrap_or(NonZeroU32::MIN))
    }

    /// As it stands in a flow entry.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    fn slot(self) -> usize {
        (self.get() & ((1 << SLOT_BITS) - 1)) as usize
    }
}

/// What stays with a backend across snapshots: its counters and its resolved MAC.
#[derive(Debug)]
#[repr(align(64))]
pub struct BackendRuntime {
    /// Packets and bytes that were forwarded to it.
    pub traffic: TrafficByWorker,
    /// The MAC in the low 48 bits, and a bit that says that there is one.
    mac: AtomicU64,
}

const MAC_KNOWN: u64 = 1 << 48;

impl BackendRuntime {
    fn new(traffic: TrafficByWorker) -> Self {
        Self { traffic, mac: AtomicU64::new(0) }
    }

    /// Its hardware address, if known.
    pub fn mac(&self) -> Option<Mac> {
        let raw = self.mac.load(Ordering::Relaxed);
        let [_, _, a, b, c, d, e, f] = raw.to_be_bytes();
        (raw & MAC_KNOWN != 0).then_some(Mac([a, b, c, d, e, f]))
    }

    pub(crate) fn set_mac(&self, mac: Option<Mac>) {
        let raw = mac.map_or(0, |Mac([a, b, c, d, e, f])| u64::from_be_bytes([0, 1, a, b, c, d, e, f]));
        self.mac.store(raw, Ordering::Relaxed);
    }
}

/// A backend as workers see it.
#[derive(Debug)]
pub struct Backend {
    /// What flow entries call it.
    pub reference: BackendRef,
    /// Its own address.
    pub address: IpAddr,
    /// The service that it serves.
    pub service: u32,
    /// The interface on whose segment it is; `None` if on none of this node's.
    pub port: Option<usize>,
    /// It is this node: its frames are for the node's own kernel.
    pub is_self: bool,
    /// What it takes.
    pub state: BackendState,
    /// Its MAC, where it was given and is not to be resolved.
    pub given_mac: Option<Mac>,
    /// Its counters and its resolved MAC.
    pub runtime: Arc<BackendRuntime>,
}

impl Backend {
    /// Its hardware address, if known.
    pub fn mac(&self) -> Option<Mac> {
        self.given_mac.or_else(|| self.runtime.mac())
    }
}

/// A service as workers see it.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// All flows of a source address go to one backend.
    pub by_source: bool,
    /// `None` while no backend takes new flows.
    pub maglev: Option<Arc<Maglev>>,
    /// The slots of the Maglev table's members, by position.
    pub members: Box<[u32]>,
    /// This node is one of its backends, and takes flows.
    pub is_served_here: bool,
}

/// Names a VIP in a flow entry. A VIP that was removed and added again has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipId(pub u32);

/// A VIP as workers see it.
#[derive(Debug)]
pub struct Vip {
    /// What flow entries call it.
    pub id: VipId,
    /// The address.
    pub address: IpAddr,
    /// The grant under which this node owns it.
    pub owned: Option<u64>,
    /// Nobody has owned it before.
    pub first_grant: bool,
    /// A bit for each interface on which it is answered.
    pub answer_on: u64,
    /// Whoever asks for a port that no service takes is told so.
    pub rejects: bool,
    /// This node is a backend of one of its services, and takes flows.
    pub is_served_here: bool,
    /// Which service takes which ports, sorted by protocol and first port.
    rules: Box<[(PortRangeSpec, u32)]>,
    /// The services that take any other port.
    any: [Option<u32>; 2],
    /// Packets and bytes of all its services.
    pub traffic: Arc<TrafficByWorker>,
}

impl Vip {
    /// The service that takes a port.
    pub fn service(&self, protocol: Protocol, port: u16) -> Option<u32> {
        let after = self.rules.partition_point(|(range, _)| (range.protocol, range.first) <= (protocol, port));
        let named = after.checked_sub(1).map(|at| &self.rules[at]);
        match named {
            Some((range, service)) if range.protocol == protocol && port <= range.last => Some(*service),
            _ => self.any[protocol as usize],
        }
    }

    /// Whether it is answered on an interface.
    pub fn answers_on(&self, port: usize) -> bool {
        self.answer_on & (1 << port) != 0
    }
}

/// At most so many interfaces: they are bits of a word.
pub const MAX_PORTS: usize = 64;

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
    vips_at: HashMap<Address, u32, BuildHasherDefault<AddressHasher>>,
    /// The VIPs, sorted by address.
    pub vips: Vec<Vip>,
    /// The services.
    pub services: Vec<Service>,
    backends: Vec<Option<Backend>>,
    /// Of the backends, by their slots: closer together, so that they can be fetched early.
    runtimes: Vec<Option<Arc<BackendRuntime>>>,
    /// The hardware addresses of the other load balancers, sorted.
    peer_macs: Vec<Mac>,
    /// The other load balancers on our segments.
    pub(crate) peers: Vec<Peer>,
    /// What the sockets let by.
    pub(crate) filter: Vec<Instruction>,
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

    /// Has the processor fetch what a frame to a backend needs.
    #[inline]
    pub(crate) fn prefetch_backend(&self, reference: BackendRef) {
        if let Some((backend, runtime)) = self.backends.get(reference.slot()).zip(self.runtimes.get(reference.slot())) {
            prefetch(backend);
            runtime.as_deref().inspect(|runtime| prefetch(*runtime));
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

    /// The backend in a slot that a service named.
    pub fn member(&self, slot: u32) -> Option<&Backend> {
        self.backends.get(slot as usize)?.as_ref()
    }

    /// All backends.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().flatten()
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

/// Compiles snapshots and remembers what goes on from one to the next: slots, counters, MACs, and the
/// Maglev tables that have not changed.
#[derive(Debug, Default)]
pub struct Compiler {
    /// That count packets; at least one in any case.
    workers: usize,
    generation: u64,
    slots: BTreeMap<u64, Kept>,
    slot_count: usize,
    generations: Vec<u32>,
    free: VecDeque<usize>,
    vips: BTreeMap<IpAddr, (VipId, Arc<TrafficByWorker>)>,
    vip_count: u32,
    maglevs: HashMap<String, (Vec<Member>, u32, Arc<Maglev>)>,
    peers: Vec<Peer>,
}

/// Slots that are freed and not yet used again.
const RESTING_SLOTS: usize = 1024;

#[derive(Debug)]
struct Kept {
    slot: usize,
    runtime: Arc<BackendRuntime>,
}

impl Compiler {
    /// From the next snapshot on there are so many. The workers so far count nothing any more.
    pub(crate) fn set_workers(&mut self, workers: usize) {
        self.workers = workers;
        for (_, traffic) in self.vips.values_mut() {
            *traffic = Arc::new(traffic.divided_anew(workers));
        }
        for Kept { runtime, .. } in self.slots.values_mut() {
            let renewed = BackendRuntime::new(runtime.traffic.divided_anew(workers));
            renewed.set_mac(runtime.mac());
            *runtime = Arc::new(renewed);
        }
    }

    /// The snapshot of a table.
    pub fn compile(&mut self, spec: &TableSpec) -> Snapshot {
        self.forget_what_is_gone(spec);
        self.generation += 1;
        let hash_key = HashKey(spec.hash_key);
        let mut services = Vec::new();
        let mut backends: Vec<Option<Backend>> = Vec::new();
        let mut vips: Vec<Vip> = Vec::with_capacity(spec.vips.len());
        for vip in &spec.vips {
            let first_service = services.len();
            let mut rules = Vec::new();
            let mut any = [None, None];
            for service in &vip.services {
                let index = services.len() as u32;
                for range in &service.ports {
                    match range.first {
                        0 => any[range.protocol as usize] = Some(index),
                        _ => rules.push((*range, index)),
                    }
                }
                let compiled = self.service(spec, hash_key, service, index, &mut backends);
                services.push(compiled);
            }
            rules.sort_unstable();
            let (vip_count, workers) = (&mut self.vip_count, self.workers);
            let (id, traffic) = self.vips.entry(vip.address).or_insert_with(|| {
                *vip_count += 1;
                (VipId(*vip_count), Arc::new(TrafficByWorker::new(workers)))
            });
            vips.push(Vip {
                id: *id,
                address: vip.address,
                owned: vip.owned,
                first_grant: vip.first_grant,
                answer_on: vip.answer_on.iter().filter(|&&port| port < MAX_PORTS).fold(0, |set, port| set | 1 << port),
                rules: rules.into(),
                any,
                rejects: vip.rejects,
                is_served_here: services[first_service..].iter().any(|service: &Service| service.is_served_here),
                traffic: traffic.clone(),
            });
        }
        vips.sort_unstable_by_key(|vip| vip.address);
        let vips_at = vips.iter().zip(0..).map(|(vip, at)| (vip.address.into(), at)).collect();
        let runtime = |backend: &Option<Backend>| backend.as_ref().map(|backend| backend.runtime.clone());
        let runtimes = backends.iter().map(runtime).collect();
        let addresses: Vec<IpAddr> = vips.iter().map(|vip| vip.address).collect();
        let mut peer_macs = spec.peer_macs.clone();
        peer_macs.sort_unstable();
        self.peers = spec.peers.iter().map(|peer| Peer::new(peer, &self.peers)).collect();
        Snapshot {
            generation: self.generation,
            hash_key,
            ports: spec.ports.clone(),
            vips_at,
            vips,
            services,
            backends,
            runtimes,
            peer_macs,
            peers: self.peers.clone(),
            filter: filter::program(&addresses),
            timeouts: spec.timeouts,
        }
    }

    fn service(
        &mut self,
        spec: &TableSpec,
        key: HashKey,
        service: &ServiceSpec,
        index: u32,
        backends: &mut Vec<Option<Backend>>,
    ) -> Service {
        let mut members = Vec::new();
        let mut places = Vec::new();
        let mut is_served_here = false;
        for backend in &service.backends {
            let kept = self.keep(backend.id);
            let (slot, runtime) = (kept.slot, kept.runtime.clone());
            if backends.len() <= slot {
                backends.resize_with(slot + 1, || None);
            }
            let own_port = spec.ports.iter().find(|port| port.has(backend.address));
            if let Some(port) = own_port {
                // Nobody would answer a question for it.
                runtime.set_mac(Some(port.mac));
                is_served_here |= backend.state != BackendState::Down;
            }
            backends[slot] = Some(Backend {
                reference: BackendRef::new(slot, self.generations[slot]),
                address: backend.address,
                service: index,
                port: port_towards(spec, backend),
                is_self: own_port.is_some(),
                state: backend.state,
                given_mac: backend.mac,
                runtime,
            });
            if backend.state == BackendState::Active {
                members.push(slot as u32);
                places.push(Member::new(key, backend.address, backend.weight, service.table_size));
            }
        }
        let maglev = match self.maglevs.get(&service.name) {
            Some((built, size, maglev)) if *built == places && *size == service.table_size => Some(maglev.clone()),
            _ => Maglev::build(&places, service.table_size).map(Arc::new),
        };
        match &maglev {
            Some(maglev) => {
                self.maglevs.insert(service.name.clone(), (places, service.table_size, maglev.clone()));
            }
            None => drop(self.maglevs.remove(&service.name)),
        }
        Service {
            name: service.name.clone(),
            by_source: service.by_source,
            maglev,
            members: members.into(),
            is_served_here,
        }
    }

    fn keep(&mut self, id: u64) -> &Kept {
        self.slots.entry(id).or_insert_with(|| {
            // A freed slot rests until others have been freed after it; its generation then tells flow
            // entries of its former backend that this is another one.
            let rested = self.free.len() > RESTING_SLOTS;
            let slot = if !rested && self.slot_count < 1 << SLOT_BITS {
                self.slot_count += 1;
                self.generations.push(1);
                self.slot_count - 1
            } else {
                let slot = self.free.pop_front().unwrap_or(0);
                self.generations[slot] = (self.generations[slot] % ((1 << (32 - SLOT_BITS)) - 1)) + 1;
                slot
            };
            Kept { slot, runtime: Arc::new(BackendRuntime::new(TrafficByWorker::new(self.workers))) }
        })
    }

    fn forget_what_is_gone(&mut self, spec: &TableSpec) {
        let services = || spec.vips.iter().flat_map(|vip| &vip.services);
        let alive: std::collections::HashSet<u64> =
            services().flat_map(|service| &service.backends).map(|backend| backend.id).collect();
        let free = &mut self.free;
        self.slots.retain(|id, kept| {
            let stays = alive.contains(id);
            if !stays {
                free.push_back(kept.slot);
            }
            stays
        });
        let vips: std::collections::HashSet<IpAddr> = spec.vips.iter().map(|vip| vip.address).collect();
        self.vips.retain(|address, _| vips.contains(address));
        let names: std::collections::HashSet<&str> = services().map(|service| service.name.as_str()).collect();
        self.maglevs.retain(|name, _| names.contains(name.as_str()));
    }
}

/// The interface on whose segment a backend is: as the kernel would find it, the narrowest of those that have a carrier.
/// One whose MAC was given may be behind the first.
fn port_towards(spec: &TableSpec, backend: &BackendSpec) -> Option<usize> {
    let segments = spec.ports.iter().enumerate().filter_map(|(at, port)| {
        let (_, len) = port.segment_of(backend.address)?;
        Some(((port.carrier, *len, Reverse(at)), at))
    });
    let on_segment = segments.max().map(|(_, at)| at);
    on_segment.or_else(|| (backend.mac.is_some() && !spec.ports.is_empty()).then_some(0))
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
