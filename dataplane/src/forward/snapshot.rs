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

/// A backend as workers see it.
#[derive(Debug)]
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
}

/// A VIP as workers see it.
#[derive(Debug)]
pub struct Vip {
    /// What flow entries call it.
    pub id: VipId,
    /// The address.
    pub address: IpAddr,
    /// A bit for each interface on which it is answered.
    pub answer_on: u64,
    /// Whoever asks for a port that no service takes is told so.
    pub rejects: bool,
    /// This node is a backend of one of its services, and takes flows.
    pub is_served_here: bool,
    /// Which service takes which ports, sorted by protocol and first port.
    pub(super) rules: Box<[(PortRangeSpec, u32)]>,
    /// The services that take any other port.
    pub(super) any: [Option<u32>; 2],
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
    /// Of the backends, by their slots: closer together, so that they can be fetched early.
    pub(super) runtimes: Vec<Option<Arc<BackendRuntime>>>,
    /// The MAC addresses of the other load balancers, sorted.
    pub(super) peer_macs: Vec<Mac>,
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
