//! What a node has read of itself, of its segments and of its backends.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use lb_dataplane::{Report, SeenBackend, stats::Conflict};
use lb_raft_store::table::{Epoch, NodeId};

use crate::{alarms::Alarm, health::Presence, link::Link};

/// What there was to read.
#[derive(Default)]
pub(super) struct Readings {
    pub(super) me: Option<NodeId>,
    pub(super) links: Vec<Link>,
    /// Interfaces whose frames should be accelerated and are not, with the reason.
    pub(super) not_accelerated: Vec<(String, String)>,
    /// Interfaces that merge what they receive.
    pub(super) merging: Vec<String>,
    pub(super) alarms: Vec<(Alarm, String)>,
    /// Whether this node's kernel routes; not known where /proc/sys is hidden.
    pub(super) forwards: Option<bool>,
    /// Why the kernel is not kept from the VIPs' packets.
    pub(super) guard_problem: Option<String>,
    /// Of the interface `lo` and of all: 1 is strict (ip-sysctl, rp_filter).
    pub(super) rp_filter: BTreeMap<&'static str, u8>,
    /// At the beginning and at the end.
    pub(super) reports: [Report; 2],
    /// The VIPs' owners at the beginning.
    pub(super) owners: HashMap<IpAddr, (NodeId, Epoch)>,
    /// Claims of others, those before the beginning as well.
    pub(super) conflicts: [Vec<Conflict>; 2],
    /// By the backends' ids.
    pub(super) seen: HashMap<u64, SeenBackend>,
    /// By the backend's id: whether it has its VIP.
    pub(super) presence: HashMap<u64, Presence>,
    /// For a small file to be durable in `data_dir`.
    pub(super) disk_sync: Duration,
    /// By how much the clock is sped up or slowed down (CLOCK_MONOTONIC against CLOCK_MONOTONIC_RAW), in millionths.
    pub(super) clock_slew_ppm: f64,
    /// For how long the thread of the heartbeats was ready in the window, and did not run.
    pub(super) stalled: Duration,
    /// By how many entries others are behind, where this node leads.
    pub(super) behind: Vec<(NodeId, u64)>,
}

impl Readings {
    /// Whether an address is in the network of one of this node's interfaces.
    pub(super) fn is_on(&self, address: IpAddr) -> bool {
        self.links.iter().any(|link| link.is_on(address))
    }
}
