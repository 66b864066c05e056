//! The counters at one moment, over all workers.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    crew::Member,
    forward::{
        DropReason,
        table::{Backend, Snapshot, Vip},
    },
    packet::Mac,
    stats::{Counter, WorkerStats},
};

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames taken from the rings: forwarded + answered + all drops + held.
    pub received: u64,
    /// Frames sent on to backends.
    pub forwarded: u64,
    /// Frames answered.
    pub answered: u64,
    /// Frames not sent, by reason; only reasons that occurred.
    pub drops: Vec<(DropReason, u64)>,
    /// Fragments that wait for the first of their datagram, and frames on their way between two workers.
    pub held: u64,
    /// The workers at work.
    pub workers: Vec<WorkerReport>,
    /// Frames lost before the ring.
    pub ring_full: u64,
    /// Frames made by the workers themselves.
    pub originated: u64,
    /// Super-frames that the kernel segmented because the outgoing interface does not.
    pub segmented: u64,
    /// Other stations that claimed a VIP of ours.
    pub conflicts: Vec<Conflict>,
    /// Flows put into the flow table.
    pub flows_remembered: u64,
    /// Flows that found no room there.
    pub flows_not_remembered: u64,
    /// Per VIP: address, packets, bytes.
    pub vips: Vec<(IpAddr, u64, u64)>,
    /// Per backend.
    pub backends: Vec<BackendReport>,
}

/// Somebody else's claim to a VIP that this node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// The VIP.
    pub vip: IpAddr,
    /// The hardware address that claims it.
    pub mac: Mac,
    /// ARP packets and neighbour advertisements that did.
    pub count: u64,
}

/// A worker's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerReport {
    /// Frames taken from its rings.
    pub received: u64,
    /// Frames handed over to the workers that have their flows.
    pub handed_over: u64,
}

/// A backend's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendReport {
    /// Its service.
    pub service: String,
    /// Its own address.
    pub address: IpAddr,
    /// Its hardware address, if known.
    pub mac: Option<Mac>,
    /// Frames sent to it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Report {
    /// Of the workers at work, and of all that were.
    pub(crate) fn new(at_work: &[Arc<Member>], retired: &WorkerStats, snapshot: &Snapshot) -> Self {
        let all = at_work.iter().map(|member| &member.stats).chain([retired]);
        let sum =
            |counter: fn(&WorkerStats) -> &Counter| -> u64 { all.clone().map(|stats| counter(stats).get()).sum() };
        let dropped = |reason| all.clone().map(|stats| stats.dropped(reason).get()).sum();
        let drops = DropReason::ALL.iter().map(|&reason| (reason, dropped(reason)));
        let vip = |vip: &Vip| (vip.address, vip.traffic.packets(), vip.traffic.bytes());
        let backend = |backend: &Backend| BackendReport {
            service: snapshot.services[backend.service as usize].name.clone(),
            address: backend.address,
            mac: backend.mac(),
            packets: backend.runtime.traffic.packets(),
            bytes: backend.runtime.traffic.bytes(),
        };
        // In this order: what is taken over in between must not be missing.
        let taken_over = sum(|stats| &stats.taken_over);
        let handed_over = sum(|stats| &stats.handed_over);
        Self {
            received: sum(|stats| &stats.received),
            forwarded: sum(|stats| &stats.forwarded),
            answered: sum(|stats| &stats.answered),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            held: sum(|stats| &stats.held) + handed_over.saturating_sub(taken_over),
            workers: at_work
                .iter()
                .map(|member| WorkerReport {
                    received: member.stats.received.get(),
                    handed_over: member.stats.handed_over.get(),
                })
                .collect(),
            ring_full: sum(|stats| &stats.ring_full),
            originated: sum(|stats| &stats.originated),
            segmented: sum(|stats| &stats.segmented),
            conflicts: conflicts(all.clone()),
            flows_remembered: sum(|stats| &stats.flows_remembered),
            flows_not_remembered: sum(|stats| &stats.flows_not_remembered),
            vips: snapshot.vips.iter().map(vip).collect(),
            backends: snapshot.backends().map(backend).collect(),
        }
    }
}

/// Other stations that claimed a VIP of ours.
pub(crate) fn conflicts<'a>(all: impl Iterator<Item = &'a WorkerStats>) -> Vec<Conflict> {
    let mut by_claim: BTreeMap<(IpAddr, Mac), u64> = BTreeMap::new();
    for conflict in all.flat_map(WorkerStats::conflicts) {
        *by_claim.entry((conflict.vip, conflict.mac)).or_default() += conflict.count;
    }
    by_claim.into_iter().map(|((vip, mac), count)| Conflict { vip, mac, count }).collect()
}
