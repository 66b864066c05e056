//! Other stations that claim a VIP of ours: the dataplane counts them, here they get a name.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
    time::Duration,
};

use lb_dataplane::{BackendReport, Dataplane, packet::Mac, stats::Conflict};
use lb_raft_store::table::{Node, Table};
use tokio::time::Instant;

use crate::alarms::{Alarm, Alarms};

/// A VIP is contested for so long after the last claim.
const CONTESTED: Duration = Duration::from_secs(60);

/// Another node's claims are a late frame, or a fence, unless they come at so many looks in a row, one a second.
const STREAK: u32 = 3;

/// The claims so far.
#[derive(Default)]
pub(crate) struct Conflicts {
    seen: HashMap<(IpAddr, Mac), Claims>,
}

/// Of one station for one VIP.
struct Claims {
    count: u64,
    /// When the last one came.
    at: Instant,
    /// At so many looks in a row there were new ones.
    streak: u32,
}

impl Conflicts {
    /// Looks for new claims.
    pub(crate) fn look(&mut self, dataplane: &Dataplane, table: &Table, alarms: &Alarms) {
        let backends = dataplane.report().backends;
        for Conflict { vip, mac, count, .. } in dataplane.conflicts() {
            let seen = self.seen.entry((vip, mac)).or_insert(Claims { count: 0, at: Instant::now(), streak: 0 });
            if count == seen.count {
                seen.streak = 0;
                continue;
            }
            *seen = Claims { count, at: Instant::now(), streak: seen.streak + 1 };
            if let Claimant::Node(name) = claimant(table, &backends, mac)
                && seen.streak == 1
            {
                tracing::info!(%vip, %mac, node = name, count, "another node claimed this VIP: a late frame, or a fence");
            }
        }
        let mut problems = BTreeMap::new();
        for ((vip, mac), seen) in self.seen.iter().filter(|(_, seen)| seen.at.elapsed() < CONTESTED) {
            let problem = match claimant(table, &backends, *mac) {
                Claimant::Node(_) if seen.streak < STREAK => continue,
                Claimant::Node(name) => format!(
                    "node {name} ({mac}) answers for VIP {vip} too: is the VIP on an interface there, and lbd stopped?"
                ),
                Claimant::Backend(address) => format!(
                    "backend {address} ({mac}) answers ARP for VIP {vip} and takes its traffic: set arp_ignore=1 and \
                     arp_announce=2 there"
                ),
                Claimant::Unknown => format!(
                    "the station with the MAC address {mac} uses the address of VIP {vip}: find that machine, or remove the \
                     VIP"
                ),
            };
            problems.insert(*vip, problem);
        }
        let kind = |alarm| match alarm {
            Alarm::Contested(vip) => Some(vip),
            _ => None,
        };
        alarms.set_each(Alarm::Contested, kind, &problems);
    }
}

/// Whose MAC address it is.
pub(crate) enum Claimant {
    Node(String),
    Backend(String),
    Unknown,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Backend(address) => write!(f, "backend {address}"),
            Self::Unknown => Ok(()),
        }
    }
}

/// Looks for a MAC address among the nodes and the backends.
pub(crate) fn claimant(table: &Table, backends: &[BackendReport], mac: Mac) -> Claimant {
    let is_its = |node: &&Node| node.attachments.iter().any(|attachment| attachment.mac.octets() == mac.0);
    if let Some(node) = table.nodes().find(is_its) {
        return Claimant::Node(node.name.to_string());
    }
    match backends.iter().find(|backend| backend.mac == Some(mac)) {
        Some(backend) => Claimant::Backend(backend.address.to_string()),
        None => Claimant::Unknown,
    }
}
