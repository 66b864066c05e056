//! A packet of a VIP: which service, which backend, and where to.

use std::net::Ipv4Addr;

use super::{
    DropReason,
    flow::{FlowTable, Known, Tick},
    table::{Backend, BackendState, Snapshot, Vip},
};
use crate::packet::FlowPacket;

/// A packet that goes on.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// The VIP.
    pub vip: &'a Vip,
    /// The backend.
    pub backend: &'a Backend,
}

/// Decides on a packet, and remembers the flow if it is new. `None` if it is for no VIP.
pub fn decide<'a>(
    snapshot: &'a Snapshot,
    flows: &mut FlowTable,
    packet: &FlowPacket,
    now: Tick,
) -> Result<Decision<'a>, DropReason> {
    let tuple = &packet.tuple;
    let vip = snapshot.vip(tuple.destination).ok_or(DropReason::NotVip)?;
    let service = vip.service(tuple.protocol, tuple.destination_port).ok_or(DropReason::NoService)?;
    let hash = snapshot.hash_key.tuple(tuple);
    // The backend that the flow had, while it serves this service and has not been taken down.
    let had = |reference| {
        let backend = snapshot.backend(reference)?;
        (backend.service == service && backend.state != BackendState::Down).then_some(backend)
    };
    match flows.touch(hash, packet, now) {
        Known::Flow(reference) => {
            if let Some(backend) = had(reference)
                && !(packet.opens && backend.state != BackendState::Active)
            {
                return Ok(Decision { vip, backend });
            }
        }
        Known::Reused(_) | Known::No => {}
    }
    let entry = &snapshot.services[service as usize];
    let maglev = entry.maglev.as_ref().ok_or(DropReason::NoBackend)?;
    let at =
        if entry.by_source { by_source(snapshot, tuple.source, maglev.size()) } else { hash.spread(maglev.size()) };
    let slot = entry.members[maglev.lookup(at)];
    let backend = snapshot.member(slot).ok_or(DropReason::NoBackend)?;
    flows.insert(hash, packet, backend.reference, now);
    Ok(Decision { vip, backend })
}

fn by_source(snapshot: &Snapshot, source: Ipv4Addr, size: u32) -> u32 {
    (snapshot.hash_key.source(source) % u64::from(size)) as u32
}
