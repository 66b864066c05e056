//! A packet of a VIP: which service, which backend, and why.

use super::{
    DropReason,
    flow::{FlowKey, FlowTable, Known, Tick},
    hash::TupleHash,
    table::{Backend, BackendRef, BackendState, Snapshot, Vip},
};
use crate::packet::{FlowPacket, Tuple};

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

/// Decides on a packet, and remembers the flow if it is new. `hash` is that of its tuple.
#[inline]
pub fn decide<'a>(
    snapshot: &'a Snapshot,
    flows: &mut FlowTable,
    packet: &FlowPacket,
    hash: TupleHash,
    now: Tick,
) -> Result<Decision<'a>, DropReason> {
    let place = look_up(snapshot, &packet.tuple, hash)?;
    let known = flows.touch(hash, &place.key, packet, now);
    let decision = choose(snapshot, &place, known, packet)?;
    if let Why::Maglev { .. } = decision.why {
        flows.insert(hash, &place.key, packet, decision.backend.reference, now);
    }
    Ok(decision)
}

/// What [`decide`] would do now with a packet; nothing is remembered.
pub fn foresee<'a>(
    snapshot: &'a Snapshot,
    flows: &FlowTable,
    packet: &FlowPacket,
    now: Tick,
) -> Result<Decision<'a>, DropReason> {
    let place = look_up(snapshot, &packet.tuple, snapshot.hash_key.tuple(&packet.tuple))?;
    let known = flows.peek(place.hash, &place.key, packet.opens, now);
    choose(snapshot, &place, known, packet)
}

/// Where a packet belongs.
struct Place<'a> {
    vip: &'a Vip,
    service: u32,
    hash: TupleHash,
    key: FlowKey,
}

#[inline]
fn look_up<'a>(snapshot: &'a Snapshot, tuple: &Tuple, hash: TupleHash) -> Result<Place<'a>, DropReason> {
    let vip = snapshot.vip(tuple.destination).ok_or(DropReason::NotVip)?;
    let service = vip.service(tuple.protocol, tuple.destination_port).ok_or(DropReason::NoService)?;
    Ok(Place { vip, service, hash, key: FlowKey::new(tuple, vip.id) })
}

#[inline]
fn choose<'a>(
    snapshot: &'a Snapshot,
    place: &Place<'a>,
    known: Known,
    packet: &FlowPacket,
) -> Result<Decision<'a>, DropReason> {
    let vip = place.vip;
    // The backend that the flow had, while it serves this service and has not been taken down.
    let had = |reference: BackendRef| {
        let backend = snapshot.backend(reference)?;
        (backend.service == place.service && backend.state != BackendState::Down).then_some(backend)
    };
    if let Known::Flow(reference) = known
        && let Some(backend) = had(reference)
        && !(packet.opens && backend.state != BackendState::Active)
    {
        return Ok(Decision { vip, backend, why: Why::Known });
    }
    let service = &snapshot.services[place.service as usize];
    let maglev = service.maglev.as_ref().ok_or(DropReason::NoBackend)?;
    let size = maglev.size();
    let entry = match service.by_source {
        true => (snapshot.hash_key.source(packet.tuple.source) % u64::from(size)) as u32,
        false => place.hash.spread(size),
    };
    let backend = snapshot.member(service.members[maglev.lookup(entry)]).ok_or(DropReason::NoBackend)?;
    Ok(Decision { vip, backend, why: Why::Maglev { entry } })
}
