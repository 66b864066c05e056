//! The counters at one moment, over all workers.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    forward::snapshot::{Backend, Snapshot, Vip},
    packet::Mac,
    stats::{Claims, Conflict, Totals, WorkerStats},
    verdict::DropReason,
};

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What the workers count, added up: received = forwarded + answered + all drops + held.
    pub totals: Totals,
    /// Frames not sent, by reason; only reasons that occurred.
    pub drops: Vec<(DropReason, u64)>,
    /// The workers at work.
    pub workers: Vec<WorkerReport>,
    /// Other stations that claimed a VIP of ours.
    pub conflicts: Vec<Conflict>,
    /// Per VIP.
    pub vips: Vec<VipReport>,
    /// Per backend.
    pub backends: Vec<BackendReport>,
}

/// A worker's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerReport {
    /// Frames taken from its rings.
    pub received: u64,
    /// Frames handed off to the workers that own their flows.
    pub handed_off: u64,
}

/// A VIP's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipReport {
    /// The VIP.
    pub address: IpAddr,
    /// Frames for it that were sent on.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Flows for which a backend was chosen.
    pub new_flows: u64,
}

/// A backend's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendReport {
    /// What the control plane calls it.
    pub id: u64,
    /// Its service.
    pub service: String,
    /// Its own address.
    pub address: IpAddr,
    /// Its MAC address, if known.
    pub mac: Option<Mac>,
    /// Frames sent to it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Flows for which it was chosen.
    pub new_flows: u64,
}

impl Report {
    /// Of the workers at work, and of all that were.
    pub(crate) fn new(at_work: &[&WorkerStats], retired: &WorkerStats, snapshot: &Snapshot) -> Self {
        let all = || at_work.iter().copied().chain([retired]);
        let vip = |Vip { address, traffic, .. }: &Vip| VipReport {
            address: *address,
            packets: traffic.packets(),
            bytes: traffic.bytes(),
            new_flows: traffic.new_flows(),
        };
        let backend = |backend: &Backend| BackendReport {
            id: backend.id,
            service: snapshot.services[backend.service as usize].name.clone(),
            address: backend.address,
            mac: backend.mac(),
            packets: backend.runtime.traffic.packets(),
            bytes: backend.runtime.traffic.bytes(),
            new_flows: backend.runtime.traffic.new_flows(),
        };
        let dropped = |reason| all().map(|stats| stats.dropped(reason).get()).sum();
        let drops = DropReason::ALL.iter().map(|&reason| (reason, dropped(reason)));
        let drops = drops.filter(|(_, count)| *count > 0).collect();
        let worker =
            |stats: &&WorkerStats| WorkerReport { received: stats.received.get(), handed_off: stats.handed_off.get() };
        Self {
            totals: totals(all),
            drops,
            workers: at_work.iter().map(worker).collect(),
            conflicts: conflicts(all()),
            vips: snapshot.vips.iter().map(vip).collect(),
            backends: snapshot.backends().map(backend).collect(),
        }
    }
}

/// What several workers count, added up.
pub(crate) fn totals<'a, I: Iterator<Item = &'a WorkerStats>>(all: impl Fn() -> I) -> Totals {
    // In this order: what is taken over in between must not be missing.
    let taken_over: u64 = all().map(|stats| stats.taken_over.get()).sum();
    let mut totals = Totals::default();
    all().for_each(|stats| totals.add(stats));
    // What is on its way between two workers waits too.
    totals.held += totals.handed_off.saturating_sub(taken_over);
    totals
}

/// Other stations that claimed a VIP of ours.
pub(crate) fn conflicts<'a>(all: impl Iterator<Item = &'a WorkerStats>) -> Vec<Conflict> {
    let mut by_station = BTreeMap::<(IpAddr, Mac), Claims>::new();
    for Conflict { vip, mac, count, questions } in all.flat_map(WorkerStats::conflicts) {
        *by_station.entry((vip, mac)).or_default() += Claims { count, questions };
    }
    by_station.into_iter().map(|(of, claims)| Conflict::new(of, claims)).collect()
}
