//! Looks for what nobody tells of: others that claim VIPs, a guard that is not in place, a VIP on an interface of this node,
//! an address that differs from the table's, little space, a flow table that is too small.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use lb_dataplane::{Dataplane, stats::Totals};
use lb_raft_store::{Consensus, table::Table};
use tokio::sync::watch;

use super::{conflicts::Conflicts, local_news::LocalNews};
use crate::{
    alarms::{Alarm, Alarms},
    config::Config,
    events::Events,
    link::Link,
    ownership::{Cause, Ownership},
};

/// What keeps this node from its work is looked for so often: its VIPs wait for it.
const LOOK_AT_WORK: Duration = Duration::from_millis(50);
/// All the rest.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// Flows without room, a second: more than chance.
const CROWDED: u64 = 100;

/// The ring is well again when nothing was lost in so many looks.
const CALM: u32 = 10;

/// Whether frames are lost before the worker.
#[derive(Debug, Default)]
struct Ring {
    lost: u64,
    /// Looks without a loss; `None` where there was none yet.
    calm: Option<u32>,
}

impl Ring {
    /// `lost`: since the start.
    fn look(&mut self, lost: u64) -> Option<String> {
        let more = lost.saturating_sub(std::mem::replace(&mut self.lost, lost));
        self.calm = match (more, self.calm) {
            (1.., _) => Some(0),
            (0, Some(calm)) if calm + 1 < CALM => Some(calm + 1),
            (0, _) => None,
        };
        self.calm.map(|_| {
            format!(
                "frames are lost because the ring is full, {more} in the last second: the worker's core does not keep up \
                 (dataplane.realtime, dataplane.workers)"
            )
        })
    }
}

/// What is looked at, and where it is told.
pub(crate) struct LookOut {
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) links: watch::Receiver<Vec<Link>>,
    pub(crate) config: Arc<Config>,
    pub(crate) alarms: Alarms,
    /// Claims of others to VIPs.
    pub(crate) conflicts: Conflicts,
    pub(crate) events: Events,
    pub(crate) news: LocalNews,
}

impl LookOut {
    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut look_at_work = tokio::time::interval(LOOK_AT_WORK);
        let mut look_around = tokio::time::interval(LOOK_AROUND);
        let links = self.links.borrow_and_update().clone();
        self.news.look_at_links(&links, &self.events);
        let (mut crowded, mut ring) = (0, Ring::default());
        loop {
            tokio::select! {
                changed = self.links.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let links = self.links.borrow_and_update().clone();
                    self.news.look_at_links(&links, &self.events);
                }
                _ = look_at_work.tick() => self.look_at_work(),
                _ = look_around.tick() => {
                    let view = self.consensus.view();
                    if let Some(dataplane) = self.dataplane.clone() {
                        self.conflicts.look(&dataplane, &view.table, &self.alarms);
                        let totals = dataplane.totals();
                        self.look_at_flows(&totals, &mut crowded);
                        self.alarms.set(Alarm::Ring, ring.look(totals.ring_full));
                        self.news.look_at(&dataplane, totals.guard_restored, &view.table, &self.events);
                    }
                    self.look_at_links(&view.table);
                    self.look_at_itself(&view.table);
                    self.look_at_space();
                }
            }
        }
    }

    fn look_at_work(&self) {
        let Some(dataplane) = &self.dataplane else { return };
        let fitness = self.ownership.fitness();
        fitness.set(Cause::Guard, dataplane.guard_problem());
        if dataplane.is_warm() { fitness.set(Cause::Memory, None) } else { fitness.not_yet(Cause::Memory) }
    }

    fn look_at_flows(&self, totals: &Totals, before: &mut u64) {
        let without_room = totals.flows_not_remembered + totals.flows_displaced;
        let more = without_room.saturating_sub(std::mem::replace(before, without_room));
        let problem = || {
            let slots = self.config.dataplane.as_ref().map_or(0, |dataplane| dataplane.flows);
            format!(
                "the flow table is too small: {more} flows a second find no room or displace others (dataplane.flows = \
                 {slots}; about twice the number of flows is right)"
            )
        };
        self.alarms.set(Alarm::FlowTable, (more > CROWDED).then(problem));
    }

    /// A VIP must be on no machine's interface: its kernel would answer for it, with or without a lease.
    fn look_at_links(&self, table: &Table) {
        let mut problems: BTreeMap<IpAddr, String> = BTreeMap::new();
        for link in self.links.borrow().iter() {
            for (address, len) in link.addresses.iter().filter(|(address, _)| table.vip(*address).is_some()) {
                let problem = format!(
                    "VIP {address} is configured on this node's interface {name}: when lbd stops, its kernel answers for it \
                     beside the owner: ip address del {address}/{len} dev {name}",
                    name = link.name
                );
                problems.insert(*address, problem);
            }
        }
        let kind = |alarm| match alarm {
            Alarm::OwnVip(vip) => Some(vip),
            _ => None,
        };
        self.alarms.set_each(Alarm::OwnVip, kind, &problems);
    }

    /// Whether the others know this node where, and as whom, it knows itself.
    fn look_at_itself(&self, table: &Table) {
        let advertise = &self.config.cluster.advertise;
        let row = self.consensus.status().node.and_then(|me| table.node(me));
        let differs = row.filter(|row| row.address != *advertise).map(|row| {
            format!(
                "the cluster knows this node at {}, and its configuration says {advertise} (cluster.advertise): the others do \
                 not reach it. If it has moved, run 'lbctl node set {} --address {advertise}' on another node; else correct \
                 the configuration",
                row.address, row.name
            )
        });
        self.alarms.set(Alarm::Address, differs);
        self.alarms.set(Alarm::Identity, self.consensus.mistaken());
    }

    fn look_at_space(&self) {
        let problem = self.consensus.space().filter(|space| space.is_short()).map(|space| {
            let refused = if space.is_low() { ": changes are refused until there is more" } else { "" };
            format!(
                "{} MiB are left on the file system of {}{refused}",
                space.free >> 20,
                self.config.data_dir.display()
            )
        });
        self.alarms.set(Alarm::Space, problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_is_complained_of_until_it_is_calm() {
        let mut ring = Ring::default();
        assert_eq!(ring.look(0), None);
        assert!(ring.look(5).is_some_and(|problem| problem.contains("5 in the last second")));
        assert_eq!((0..20).filter(|_| ring.look(5).is_some()).count(), CALM as usize - 1);
        assert!(ring.look(6).is_some());
    }
}
