//! Backends that die and come back, and what the VIPs' owners say of them.

use lb_raft_store::table::{BackendSettings, Health, Name, PortRange, Protocol, ServiceSettings};

use super::*;
use crate::health::{Found, differing};

/// In one world of so many there are backends.
const ONE_IN: u64 = 4;
const LEVEL: u32 = 6;
/// Between two looks of a node.
const LOOK_EVERY: u64 = 100 * MS;

impl World {
    /// Services with two backends on each VIP, in some worlds.
    pub(super) fn add_backends(&mut self, seed: u64, nodes: u64) {
        if seed % ONE_IN != ONE_IN - 1 {
            return;
        }
        for node in 1..=nodes {
            self.attach(node, LEVEL);
        }
        self.append(Entry::Command(Body::RaiseFeatureLevel { level: LEVEL }));
        for number in 0..VIPS {
            let name: Name = format!("s{number}").parse().expect("a name");
            let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
            let service = ServiceSettings::new(name.clone(), vip(number), ports);
            let backend = |last| BackendSettings::new(name.clone(), IpAddr::from([192, 168, 2, last]));
            let mut rows = vec![Mutation::CreateService(service)];
            rows.extend([50, 51].map(|last| Mutation::CreateBackend(backend(last))));
            self.append(Entry::Command(Body::Mutate(rows)));
        }
        let ids = self.newest().table.backends().map(|backend| backend.id);
        self.silent = Some(ids.map(|id| (id, false)).collect());
        for node in 1..=nodes {
            self.schedule(LOOK_EVERY, Event::Look { node });
        }
    }

    /// A backend dies, or comes back.
    pub(super) fn turn_a_backend(&mut self) {
        let count = self.silent.as_ref().map_or(0, BTreeMap::len);
        if count > 0 {
            let at = self.random.usize(..count);
            self.silent
                .iter_mut()
                .flat_map(BTreeMap::values_mut)
                .nth(at)
                .into_iter()
                .for_each(|silent| *silent ^= true);
        }
    }

    /// A node looks at the backends of the VIPs that it owns, and says what the table does not.
    pub(super) fn look(&mut self, id: NodeId) {
        self.schedule(LOOK_EVERY, Event::Look { node: id });
        let Some(node) = self.nodes.get(&id).filter(|_| self.runs(id)) else { return };
        let table = &self.views[node.applied].table;
        let (Some(me), Some(truth)) = (table.node(id), &self.silent) else { return };
        let plan = node.grants.plan(id, table);
        let Some(lease) = plan.lease else { return };
        let mut found = Found::default();
        for (backend, is_silent) in truth {
            if *is_silent {
                found.silent.insert(*backend)
            } else {
                found.there.insert(*backend)
            };
        }
        let owns = |vip| plan.answered.contains_key(&vip);
        let verdicts = differing(table, &me.name, owns, &found, self.now / MS);
        if !verdicts.is_empty() {
            self.propose(id, Body::Report { node: id, lease, verdicts }, None);
        }
    }

    /// P5: in the end the table says of each backend what is so.
    pub(super) fn check_verdicts(&self) {
        let table = &self.newest().table;
        for backend in table.backends() {
            let silent = self.silent.as_ref().and_then(|truth| truth.get(&backend.id)).copied().unwrap_or_default();
            let said = table.verdict(backend).is_some_and(|verdict| verdict.health == Health::Unreachable);
            assert_eq!(said, silent, "P5: of {} the table says {:?}", backend.settings.address, table.verdict(backend));
        }
    }
}
