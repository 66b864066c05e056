//! Which questions this node asks, and by which way: those of the services on the VIPs that it owns. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lb_dataplane::{SeenBackend, packet::Mac};
use lb_raft_store::table::{AdminState, Backend, Health, MacAddr, Probe, Rhythm, Service, Table};

use super::judge::Standing;
use crate::link::{Link, is_beside};

/// So many backends are pinged at once.
const PINGS: usize = 500;

/// What is asked of one backend; services that ask the same share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Question {
    pub(super) vip: IpAddr,
    pub(super) backend: IpAddr,
    /// Where it was given.
    pub(super) mac: Option<MacAddr>,
    pub(super) what: Arc<What>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct What {
    pub(super) port: u16,
    pub(super) probe: Probe,
    pub(super) rhythm: Rhythm,
}

/// For whom a question is asked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// The ids of the backends.
    pub(super) backends: Vec<u64>,
    pub(super) way: WayTo,
    /// What the table says already.
    pub(super) standing: Standing,
}

/// By which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WayTo {
    /// It is this node.
    Local,
    /// By an interface.
    Segment { port: usize, mac: Mac, source: IpAddr },
    /// There is none at present: it is not asked.
    None,
}

/// All that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan(pub(super) BTreeMap<Question, Asked>);

impl Plan {
    /// `seen`: what the dataplane has found of the backends, by their ids.
    pub(in crate::health) fn new(
        table: &Table,
        owns: impl Fn(IpAddr) -> bool,
        seen: &HashMap<u64, SeenBackend>,
        links: &[Link],
    ) -> Self {
        let mut plan = Self::default();
        let checked = |service: &&Service| !service.settings.checks.is_empty() && owns(service.settings.vip);
        for service in table.services().filter(checked) {
            let whats = whats(service);
            let asked = |backend: &&Backend| backend.settings.state != AdminState::Down;
            for backend in table.backends_of(&service.settings.name).filter(asked) {
                let vip = service.settings.vip;
                let to = || {
                    (way(table, vip, backend.settings.address, seen.get(&backend.id), links), standing(table, backend))
                };
                whats.iter().for_each(|what| plan.ask(vip, backend, what, to));
            }
        }
        plan
    }

    /// Has a backend asked something. `to`: by which way, and what is known.
    fn ask(&mut self, vip: IpAddr, backend: &Backend, what: &Arc<What>, to: impl FnOnce() -> (WayTo, Standing)) {
        let (address, mac) = (backend.settings.address, backend.settings.mac);
        let question = Question { vip, backend: address, mac, what: what.clone() };
        let asked = || {
            let (way, standing) = to();
            Asked { backends: Vec::new(), way, standing }
        };
        let backends = &mut self.0.entry(question).or_insert_with(asked).backends;
        // Of two checks of a service that ask the same, it is asked once.
        if backends.last() != Some(&backend.id) {
            backends.push(backend.id);
        }
    }

    /// A ping of each backend of which it is not known whether it has the VIP of its service: no more of them than may be asked at
    /// once.
    pub(in crate::health) fn of_pings(
        table: &Table,
        owns: impl Fn(IpAddr) -> bool,
        seen: &HashMap<u64, SeenBackend>,
        links: &[Link],
    ) -> Self {
        let rhythm = Rhythm { interval_ms: 200, timeout_ms: 350, rise: 1, fall: 2, jitter_percent: 0 };
        let what = Arc::new(What { port: 0, probe: Probe::Icmp, rhythm });
        let services = table.services().filter(|service| owns(service.settings.vip));
        let backends = services.flat_map(|service| {
            table.backends_of(&service.settings.name).map(|backend| (service.settings.vip, backend))
        });
        let mut plan = Self::default();
        let own: HashSet<IpAddr> =
            table.nodes().flat_map(|node| &node.attachments).map(|attachment| attachment.address).collect();
        // One that is healthy has answered at the VIP; and a node's guard keeps pings from its kernel.
        let wanted = |(_, backend): &(IpAddr, &Backend)| {
            backend.settings.state != AdminState::Down
                && table.health(backend) != Health::Healthy
                && !own.contains(&backend.settings.address)
        };
        for (vip, backend) in backends.filter(wanted).take(PINGS) {
            let to = || (way(table, vip, backend.settings.address, seen.get(&backend.id), links), Standing::Unknown);
            plan.ask(vip, backend, &what, to);
        }
        plan
    }
}

fn whats(service: &Service) -> Vec<Arc<What>> {
    let (settings, rhythm) = (&service.settings, service.settings.rhythm());
    let with_port = settings.checks.iter().filter_map(|check| Some((settings.port_of(check)?, check.probe.clone())));
    with_port.map(|(port, probe)| Arc::new(What { port, probe, rhythm })).collect()
}

fn standing(table: &Table, backend: &Backend) -> Standing {
    match table.verdict(backend) {
        Some(verdict) if verdict.health == Health::Healthy => Standing::Good,
        Some(verdict) if verdict.health == Health::Unhealthy => Standing::Bad(None),
        _ => Standing::Unknown,
    }
}

fn way(table: &Table, vip: IpAddr, backend: IpAddr, seen: Option<&SeenBackend>, links: &[Link]) -> WayTo {
    if links.iter().any(|link| link.addresses.iter().any(|(own, _)| *own == backend)) {
        return WayTo::Local;
    }
    let by = seen.and_then(|seen| Some((seen.port, seen.mac?, source(table, vip, backend, seen.port, links)?)));
    by.map_or(WayTo::None, |(port, mac, source)| WayTo::Segment { port, mac, source })
}

/// This node's address that the backend answers to: of the VIP's family, best on the backend's own segment, else on its
/// interface.
fn source(table: &Table, vip: IpAddr, backend: IpAddr, port: usize, links: &[Link]) -> Option<IpAddr> {
    let fits = |own: IpAddr| {
        let is_link_local = matches!(own, IpAddr::V6(own) if own.is_unicast_link_local());
        own.is_ipv4() == vip.is_ipv4() && !is_link_local && table.vip(own).is_none()
    };
    let there = links.get(port)?;
    let beside = there.addresses.iter().filter(|own| is_beside(**own, backend));
    let all = beside.chain(&there.addresses).chain(links.iter().flat_map(|link| &link.addresses));
    all.map(|(own, _)| *own).find(|own| fits(*own))
}

#[cfg(test)]
mod tests {
    use lb_dataplane::forward::runtime::Liveness;

    use super::*;
    use crate::health::verdict::tests::table;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn links() -> Vec<Link> {
        let eth0 = ["192.168.2.1/24", "192.168.2.2/24", "fe80::2/64", "2001:db8:2::2/64"];
        vec![Link::sample("eth0", &eth0), Link::sample("eth1", &["192.168.3.2/24", "10.0.0.2/8", "2001:db8:3::2/64"])]
    }

    #[test]
    fn a_check_comes_from_where_the_backend_answers_to() {
        let (table, _) = table();
        let from = |vip: &str, backend: &str, port: usize| source(&table, ip(vip), ip(backend), port, &links());
        assert_eq!(from("192.168.2.9", "10.0.0.5", 1), Some(ip("10.0.0.2")), "on its own segment");
        assert_eq!(from("192.168.2.9", "2001:db8:3::5", 1), Some(ip("192.168.3.2")), "of the VIP's family");
        assert_eq!(from("2001:db8:2::9", "192.168.2.5", 0), Some(ip("2001:db8:2::2")), "a whole one");
        assert_eq!(from("192.168.2.9", "192.168.2.5", 0), Some(ip("192.168.2.2")), "192.168.2.1 is a VIP");
        assert_eq!(source(&table, ip("2001:db8::9"), ip("10.0.0.5"), 0, &links()[..0]), None);
    }

    #[test]
    fn backends_of_owned_vips_are_asked_once_for_the_same() {
        // Services a and b, of which b's backend is on no interface; checks are added to both.
        let (mut table, ids) = table();
        let check = |index: u64, service: &str, table: &mut Table| {
            use lb_raft_store::table::{Body, Check, Mutation, ServicePatch};
            let checks = Some(vec![Check { port: 0, probe: Probe::Tcp }, Check { port: 80, probe: Probe::Tcp }]);
            let patch = ServicePatch { checks, ..ServicePatch::of(service.parse().unwrap()) };
            table.apply(index, &Body::Mutate(vec![Mutation::UpdateService(patch)]).into()).reply.result.unwrap();
        };
        check(21, "a", &mut table);
        check(22, "b", &mut table);
        let backend = table.backend_with_id(ids[0]).unwrap().settings.address;
        let liveness = Liveness::Answers;
        let seen = SeenBackend { id: ids[0], address: backend, port: 0, mac: Some(MAC), liveness };
        let seen = HashMap::from([(ids[0], seen)]);
        let plan = Plan::new(&table, |_| true, &seen, &links());
        let asked: Vec<_> = plan.0.values().map(|asked| (asked.backends.clone(), asked.way)).collect();
        let by_eth0 = WayTo::Segment { port: 0, mac: MAC, source: ip("192.168.2.2") };
        // Of the two checks of a service both ask the same port.
        assert_eq!(asked, [(vec![ids[0]], by_eth0), (vec![ids[1]], WayTo::None)]);
        assert_eq!(Plan::new(&table, |vip| vip == ip("192.168.2.9"), &seen, &links()).0.len(), 1);
        let mut own = links();
        own[0].addresses.push((backend, 24));
        assert!(Plan::new(&table, |_| true, &seen, &own).0.values().any(|asked| asked.way == WayTo::Local));
    }
}
