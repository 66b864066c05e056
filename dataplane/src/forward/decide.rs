//! A packet of a VIP: which service, which backend, and why.

use super::{
    flow::{FlowKey, FlowTable, Known, Tick},
    hash::TupleHash,
    runtime::BackendRef,
    snapshot::{Backend, Service, Snapshot, Vip},
    spec::BackendState,
};
use crate::{
    io::sys::memory::prefetch,
    packet::{Address, FlowPacket, Protocol, Tuple},
    verdict::DropReason,
};

/// A packet that goes on.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// The VIP.
    pub vip: &'a Vip,
    /// The backend.
    pub backend: &'a Backend,
    /// Why this one.
    pub why: Why,
}

/// What chose a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The flow had it before.
    Known,
    /// The flow is new, and this is the entry of the Maglev table where it stands.
    Maglev {
        /// The entry.
        entry: u32,
    },
}

/// Where a packet belongs, in one snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    vip: u32,
    service: u32,
    hash: TupleHash,
    key: FlowKey,
}

impl Place {
    /// Of a flow to the VIP that stands at `vip`, with its tuple's hash.
    #[inline]
    pub fn at(snapshot: &Snapshot, vip: u32, tuple: &Tuple, hash: TupleHash) -> Result<Self, DropReason> {
        let found = &snapshot.vips[vip as usize];
        let service = found.service(tuple.protocol, tuple.destination_port).ok_or(DropReason::NoService)?;
        Ok(Self { vip, service, hash, key: FlowKey::new(tuple, found.id) })
    }

    /// Of a flow.
    pub fn find(snapshot: &Snapshot, tuple: &Tuple) -> Result<Self, DropReason> {
        let vip = snapshot.vip_at(tuple.destination).ok_or(DropReason::NotVip)?;
        Self::at(snapshot, vip, tuple, snapshot.hash_key.tuple(tuple))
    }

    /// The service.
    pub(crate) fn service<'a>(&self, snapshot: &'a Snapshot) -> &'a Service {
        &snapshot.services[self.service as usize]
    }

    /// The entry of the Maglev table where the flow stands, and its backend; `None` while nobody takes new flows.
    #[inline]
    pub(crate) fn by_maglev<'a>(&self, snapshot: &'a Snapshot, source: Address) -> Option<(u32, &'a Backend)> {
        let service = self.service(snapshot);
        let maglev = service.maglev.as_ref()?;
        let size = maglev.size();
        let entry = match service.by_source {
            true => (snapshot.hash_key.source(source) % u64::from(size)) as u32,
            false => self.hash.spread(size),
        };
        Some((entry, snapshot.member(service.members[maglev.lookup(entry)])?))
    }

    /// Has the processor fetch what [`decide`] will need most likely. The backend, if the flow is known.
    #[inline]
    pub fn prefetch(&self, snapshot: &Snapshot, flows: &FlowTable) -> Option<BackendRef> {
        prefetch(&*snapshot.vips[self.vip as usize].traffic);
        let guess = flows.guess(self.hash, &self.key);
        match guess {
            Some(backend) => snapshot.prefetch_backend(backend),
            None => {
                if let Some(maglev) = &self.service(snapshot).maglev {
                    maglev.prefetch(self.hash.spread(maglev.size()));
                }
            }
        }
        guess
    }
}

/// What is known of flows. A worker that judges notes that a flow lives and remembers new ones; one that explains, or that
/// looks for the flow that an ICMP error quotes, leaves everything as it is.
pub trait Flows {
    /// What is known of the flow of a packet.
    fn known(&mut self, place: &Place, packet: &FlowPacket, now: Tick) -> Known;
    /// A new flow has got its backend.
    fn remember(&mut self, place: &Place, packet: &FlowPacket, backend: BackendRef, now: Tick);
}

impl Flows for FlowTable {
    #[inline]
    fn known(&mut self, place: &Place, packet: &FlowPacket, now: Tick) -> Known {
        self.touch(place.hash, &place.key, packet, now)
    }

    #[inline]
    fn remember(&mut self, place: &Place, packet: &FlowPacket, backend: BackendRef, now: Tick) {
        self.insert(place.hash, &place.key, packet, backend, now);
    }
}

/// A flow table that is only read.
pub struct Unchanged<'a>(pub &'a FlowTable);

impl Flows for Unchanged<'_> {
    fn known(&mut self, place: &Place, packet: &FlowPacket, now: Tick) -> Known {
        self.0.peek(place.hash, &place.key, packet.opens, now)
    }

    fn remember(&mut self, _: &Place, _: &FlowPacket, _: BackendRef, _: Tick) {}
}

/// Decides on a packet of a flow.
#[inline]
pub fn decide<'a>(
    snapshot: &'a Snapshot,
    flows: &mut impl Flows,
    packet: &FlowPacket,
    place: &Place,
    now: Tick,
) -> Result<Decision<'a>, DropReason> {
    let known = flows.known(place, packet, now);
    // What is known was looked at when it was new.
    if !matches!(known, Known::Flow(_)) && snapshot.is_bad_source(packet.tuple.source) {
        return Err(DropReason::BadSource);
    }
    let decision = choose(snapshot, place, known, packet)?;
    if let Why::Maglev { .. } = decision.why {
        flows.remember(place, packet, decision.backend.reference, now);
    }
    Ok(decision)
}

#[inline]
fn choose<'a>(
    snapshot: &'a Snapshot,
    place: &Place,
    known: Known,
    packet: &FlowPacket,
) -> Result<Decision<'a>, DropReason> {
    let vip = &snapshot.vips[place.vip as usize];
    let protocol = packet.tuple.protocol;
    // The backend that the flow had, while it serves this service and keeps the flow.
    let had = |reference: BackendRef| {
        let backend = snapshot.backend(reference)?;
        (backend.service == place.service && backend.state.keeps(protocol)).then_some(backend)
    };
    let service = place.service(snapshot);
    if let Known::Flow(reference) = known {
        match had(reference) {
            Some(backend) if !packet.opens || backend.state == BackendState::Active => {
                return Ok(Decision { vip, backend, why: Why::Known });
            }
            None if service.resets_flows && protocol == Protocol::Tcp && !packet.opens => {
                return Err(DropReason::BackendDown);
            }
            _ => {}
        }
    }
    let (entry, backend) = place.by_maglev(snapshot, packet.tuple.source).ok_or(DropReason::NoBackend)?;
    Ok(Decision { vip, backend, why: Why::Maglev { entry } })
}
