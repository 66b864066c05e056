//! From a [`TableSpec`] to a [`Snapshot`], off the workers' threads.
//!
//! Backends stand in slots that stay theirs from snapshot to snapshot, so a flow entry finds its backend without a
//! search, and a slot's generation tells when it has become another backend's.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::BuildHasher,
    net::IpAddr,
    sync::Arc,
};

use super::{
    hash::HashKey,
    maglev::{Candidate, Maglev},
    runtime::{BackendRef, BackendRuntime, Liveness, Peer, SLOT_BITS, VipId},
    snapshot::{Backend, Service, Snapshot, Vip, VipParts},
    spec::{BackendSpec, BackendState, MAX_PORTS, PortRangeSpec, ServiceSpec, TableSpec, VipSpec, broadcast},
};
use crate::{
    packet::{Address, Mac, Protocol},
    stats::TrafficByWorker,
};

/// Whom a table was made of, which of them were active, its size, and it.
type Built = (Vec<(Candidate, bool)>, u32, Arc<Maglev>);

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
    vips: BTreeMap<IpAddr, KeptVip>,
    ports_version: u32,
    vip_count: u32,
    maglevs: HashMap<String, Built>,
    peers: Vec<Peer>,
}

/// Slots that are freed and not yet used again.
const RESTING_SLOTS: usize = 1024;

/// Which service takes which ports.
type PortsOf = Vec<(String, Vec<PortRangeSpec>)>;

#[derive(Debug)]
struct KeptVip {
    id: VipId,
    traffic: Arc<TrafficByWorker>,
    ports: PortsOf,
    /// Counts up with each change of them, over all VIPs.
    ports_version: u32,
}

#[derive(Debug)]
struct Kept {
    slot: usize,
    runtime: Arc<BackendRuntime>,
    /// In the last snapshot.
    state: BackendState,
    losses: u32,
}

impl Compiler {
    /// From the next snapshot on there are so many. The workers so far count nothing any more.
    pub(crate) fn set_workers(&mut self, workers: usize) {
        self.workers = workers;
        for vip in self.vips.values_mut() {
            vip.traffic = Arc::new(vip.traffic.divided_anew(workers));
        }
        for Kept { runtime, .. } in self.slots.values_mut() {
            let renewed = BackendRuntime::new(runtime.traffic.divided_anew(workers));
            renewed.resolve(runtime.mac(), runtime.liveness());
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
        let mut sorted: Vec<&VipSpec> = spec.vips.iter().collect();
        sorted.sort_unstable_by_key(|vip| vip.address);
        for (vip, at) in sorted.into_iter().zip(0..) {
            let first_service = services.len();
            let (id, traffic, ports_version) = self.keep_vip(vip);
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
                let compiled = self.service(spec, hash_key, service, (at, index), &mut backends);
                services.push(Service { ports_version, ..compiled });
            }
            let parts = VipParts {
                id,
                address: vip.address,
                answer_on: vip.answer_on.iter().filter(|&&port| port < MAX_PORTS).fold(0, |set, port| set | 1 << port),
                rules,
                any,
                rejects: vip.rejects,
                is_served_here: services[first_service..].iter().any(|service: &Service| service.is_served_here),
                traffic,
            };
            vips.push(parts.into());
        }
        let vips_at = vips.iter().zip(0..).map(|(vip, at)| (vip.address.into(), at)).collect();
        let mut peer_macs: Vec<Mac> = spec.peer_addresses.iter().map(|(mac, _)| *mac).collect();
        peer_macs.sort_unstable();
        peer_macs.dedup();
        self.peers = spec.peers.iter().map(|peer| Peer::new(peer, &self.peers)).collect();
        Snapshot {
            generation: self.generation,
            hash_key,
            ports: spec.ports.clone(),
            vips_at,
            vips,
            services,
            backends,
            peer_macs,
            peer_addresses: spec.peer_addresses.iter().copied().collect(),
            never_sources: never_sources(spec),
            peers: self.peers.clone(),
            timeouts: spec.timeouts,
        }
    }

    fn service(
        &mut self,
        spec: &TableSpec,
        key: HashKey,
        service: &ServiceSpec,
        (vip, index): (u32, u32),
        backends: &mut Vec<Option<Backend>>,
    ) -> Service {
        let mut members = Vec::new();
        let mut places = Vec::new();
        let mut is_served_here = false;
        for backend in &service.backends {
            let kept = self.keep(backend.id);
            let loses = |protocol| kept.state.keeps(protocol) && !backend.state.keeps(protocol);
            kept.losses += u32::from([Protocol::Tcp, Protocol::Udp].into_iter().any(loses));
            kept.state = backend.state;
            let (slot, runtime, losses) = (kept.slot, kept.runtime.clone(), kept.losses);
            if backends.len() <= slot {
                backends.resize_with(slot + 1, || None);
            }
            let own_port = spec.ports.iter().find(|port| port.has(backend.address));
            if let Some(port) = own_port {
                // Nobody would answer a question for it.
                runtime.resolve(Some(port.mac), Liveness::NotAsked);
                // Also while it is down: whoever owns the VIP asks whether it still is.
                is_served_here = true;
            }
            backends[slot] = Some(Backend {
                id: backend.id,
                reference: BackendRef::new(slot, self.generations[slot]),
                address: backend.address,
                service: index,
                port: port_towards(spec, backend).and_then(|port| port.try_into().ok()),
                is_self: own_port.is_some(),
                state: backend.state,
                losses,
                given_mac: backend.mac,
                runtime,
            });
            let is_active = backend.state == BackendState::Active;
            if is_active {
                members.push(slot as u32);
            }
            places.push((Candidate::new(key, backend.address, backend.weight, service.table_size), is_active));
        }
        let maglev = match self.maglevs.get(&service.name) {
            Some((built, size, maglev)) if *built == places && *size == service.table_size => Some(maglev.clone()),
            _ => Maglev::of_active(&places, service.table_size).map(Arc::new),
        };
        match &maglev {
            Some(maglev) => {
                self.maglevs.insert(service.name.clone(), (places, service.table_size, maglev.clone()));
            }
            None => drop(self.maglevs.remove(&service.name)),
        }
        Service {
            name: service.name.clone(),
            vip,
            by_source: service.by_source,
            resets_flows: service.resets_flows,
            maglev,
            members: members.into(),
            is_served_here,
            ports_version: 0,
        }
    }

    /// What goes on with a VIP, and the version of its services' ports.
    fn keep_vip(&mut self, vip: &VipSpec) -> (VipId, Arc<TrafficByWorker>, u32) {
        let ports: PortsOf = vip.services.iter().map(|service| (service.name.clone(), service.ports.clone())).collect();
        let kept = self.vips.entry(vip.address).or_insert_with(|| {
            self.vip_count += 1;
            let traffic = Arc::new(TrafficByWorker::new(self.workers));
            KeptVip { id: VipId(self.vip_count), traffic, ports: PortsOf::new(), ports_version: 0 }
        });
        if kept.ports != ports {
            self.ports_version += 1;
            (kept.ports, kept.ports_version) = (ports, self.ports_version);
        }
        (kept.id, kept.traffic.clone(), kept.ports_version)
    }

    fn keep(&mut self, id: u64) -> &mut Kept {
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
            let runtime = Arc::new(BackendRuntime::new(TrafficByWorker::new(self.workers)));
            Kept { slot, runtime, state: BackendState::Down, losses: 0 }
        })
    }

    fn forget_what_is_gone(&mut self, spec: &TableSpec) {
        let services = || spec.vips.iter().flat_map(|vip| &vip.services);
        let alive: HashSet<u64> = services().flat_map(|service| &service.backends).map(|backend| backend.id).collect();
        let free = &mut self.free;
        self.slots.retain(|id, kept| {
            let stays = alive.contains(id);
            if !stays {
                free.push_back(kept.slot);
            }
            stays
        });
        let vips: HashSet<IpAddr> = spec.vips.iter().map(|vip| vip.address).collect();
        self.vips.retain(|address, _| vips.contains(address));
        let names: HashSet<&str> = services().map(|service| service.name.as_str()).collect();
        self.maglevs.retain(|name, _| names.contains(name.as_str()));
    }
}

fn never_sources<S: BuildHasher + Default>(spec: &TableSpec) -> HashSet<Address, S> {
    let vips = spec.vips.iter().map(|vip| vip.address);
    let segments = || spec.ports.iter().flat_map(|port| &port.addresses);
    let own = segments().map(|(own, _)| *own);
    let broadcasts = segments().filter_map(|(own, len)| broadcast(*own, *len));
    vips.chain(own).chain(broadcasts).map(Address::from).collect()
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
mod tests;
