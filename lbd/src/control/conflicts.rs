//! Other stations that claim a VIP of ours: the dataplane counts them, here they get a name.

use std::{collections::HashMap, fmt, net::IpAddr, time::Duration};

use lb_dataplane::{BackendReport, Dataplane, packet::Mac, stats::Conflict};
use lb_raft_store::table::{Node, Table};
use tokio::time::Instant;

/// A claimant that goes on is told of again.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Of which claims was told: how many there were, and when.
#[derive(Default)]
pub(crate) struct Conflicts {
    told: HashMap<(IpAddr, Mac), (u64, Option<Instant>)>,
}

impl Conflicts {
    /// Tells the log of new claims.
    pub(crate) fn tell(&mut self, dataplane: &Dataplane, table: &Table) {
        for Conflict { vip, mac, count } in dataplane.conflicts() {
            let told = self.told.entry((vip, mac)).or_default();
            if count == told.0 || told.1.is_some_and(|at| at.elapsed() < TELL_AGAIN) {
                continue;
            }
            *told = (count, Some(Instant::now()));
            match claimant(table, &dataplane.report().backends, mac) {
                Claimant::Node(name) => {
                    tracing::info!(%vip, %mac, node = name, count, "another node claimed this VIP: a late frame, or a fence");
                }
                Claimant::Backend(address) => tracing::warn!(
                    %vip, %mac, backend = address, count,
                    "this backend answers ARP for the VIP and takes its traffic: set arp_ignore=1 and arp_announce=2 there"
                ),
                Claimant::Unknown => tracing::warn!(
                    %vip, %mac, count,
                    "somebody else uses the address of this VIP: find that machine by its MAC address, or remove the VIP"
                ),
            }
        }
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
