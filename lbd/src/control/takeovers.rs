//! How often this node has taken VIPs over, and for how long the last of them had nobody.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_raft_store::table::{NodeId, Table};

use crate::ownership::LastHeard;

/// The counts. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Takeovers(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    count: AtomicU64,
    last_gap_ns: AtomicU64,
}

impl Takeovers {
    /// VIPs for which this node has begun to answer after another one.
    pub(crate) fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// From the last word of the node before to this one's answering.
    pub(crate) fn last_gap(&self) -> Duration {
        Duration::from_nanos(self.0.last_gap_ns.load(Ordering::Relaxed))
    }
}

/// Which other node owned each VIP last.
#[derive(Debug, Default)]
pub(super) struct Before(BTreeMap<IpAddr, NodeId>);

impl Before {
    pub(super) fn look(&mut self, me: NodeId, table: &Table) {
        self.0.retain(|vip, _| table.vip(*vip).is_some());
        for vip in table.vips() {
            if let Some(owner) = vip.owner.filter(|owner| owner.node != me) {
                self.0.insert(vip.settings.address, owner.node);
            }
        }
    }

    /// This node answers for these from now on.
    pub(super) fn taken_on<'a>(
        &mut self,
        vips: impl Iterator<Item = &'a IpAddr>,
        heard: &LastHeard,
        takeovers: &Takeovers,
    ) {
        for before in vips.filter_map(|vip| self.0.remove(vip)) {
            takeovers.0.count.fetch_add(1, Ordering::Relaxed);
            if let Some(at) = heard.of(before) {
                let gap_ns = u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX);
                takeovers.0.last_gap_ns.store(gap_ns, Ordering::Relaxed);
            }
        }
    }
}
