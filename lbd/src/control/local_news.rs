//! What this node sees itself and nobody tells of, as events: links, the guard, MAC addresses of backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_dataplane::{Dataplane, packet::Mac};
use lb_raft_store::table::Table;

use crate::{
    events::{Events, Kind, News},
    link::Link,
};

/// What was seen last.
#[derive(Debug, Default)]
pub(crate) struct LocalNews {
    /// By interface: whether it has a carrier.
    carriers: BTreeMap<String, bool>,
    guard_restored: u64,
    /// By the backend's id.
    macs: BTreeMap<u64, (IpAddr, Mac)>,
}

impl LocalNews {
    /// Tells what has changed of the links. What is seen for the first time is no news.
    pub(super) fn look_at_links(&mut self, links: &[Link], events: &Events) {
        for link in links {
            let name = &link.name;
            let before = self.carriers.insert(name.clone(), link.carrier);
            let reason = match (before, link.carrier) {
                (Some(true), false) => format!("{name} has lost its carrier: VIPs of its segments are given up"),
                (Some(false), true) => format!("{name} has its carrier back"),
                _ => continue,
            };
            let objects = vec![format!("interface {name}")];
            // Whoever reads the links has written its line.
            events.note(News { objects, ..News::of_node(Kind::Kernel, !link.carrier, reason) });
        }
    }

    /// `restored`: how often the guard was put back.
    pub(super) fn look_at(&mut self, dataplane: &Dataplane, restored: u64, table: &Table, events: &Events) {
        if restored > std::mem::replace(&mut self.guard_restored, restored) {
            let reason = "another program has changed or removed the nftables guard: it was put back".to_owned();
            events.tell(News::of_node(Kind::Kernel, true, reason));
        }
        let mut macs = BTreeMap::new();
        dataplane.look_at_backends(|seen| {
            if let Some(mac) = seen.mac {
                macs.insert(seen.id, (seen.address, mac));
            }
        });
        for reason in changes(&self.macs, &macs) {
            // The worker has written its line.
            events.note(News::of_node(Kind::Health, false, reason));
        }
        // One that is not resolved now is compared with what it had when it is again.
        self.macs.extend(macs);
        // Those that are removed are forgotten.
        if self.macs.len() > table.backends().count() {
            let there: BTreeSet<u64> = table.backends().map(|backend| backend.id).collect();
            self.macs.retain(|id, _| there.contains(id));
        }
    }
}

fn changes(before: &BTreeMap<u64, (IpAddr, Mac)>, now: &BTreeMap<u64, (IpAddr, Mac)>) -> Vec<String> {
    let changed = now.iter().filter_map(|(id, (address, mac))| {
        let (known, old) = before.get(id)?;
        (known == address && old != mac)
            .then(|| format!("backend {address} has another MAC address: {old} before, now {mac}"))
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_with_another_mac_address_is_told_of() {
        let address = IpAddr::from([192, 0, 2, 11]);
        let of = |last: u8| BTreeMap::from([(7, (address, Mac([2, 0, 0, 0, 0, last])))]);
        assert_eq!(changes(&of(1), &of(1)), Vec::<String>::new());
        assert_eq!(changes(&BTreeMap::new(), &of(1)), Vec::<String>::new());
        let told = changes(&of(1), &of(2));
        assert_eq!(
            told,
            ["backend 192.0.2.11 has another MAC address: 02:00:00:00:00:01 before, now 02:00:00:00:00:02"]
        );
    }
}
