//! What the owner of VIPs has to say of their backends. Pure: what the dataplane has found, and the table, come in; what the
//! table does not say yet comes out.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use lb_raft_store::table::{Backend, Health, Name, Table, Verdict};

use super::check::Outcome;

/// What the dataplane has found of the backends that this node reaches; of the others it knows nothing.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// They do not answer for their addresses.
    pub(crate) silent: HashSet<u64>,
    /// They do, or nobody asks them.
    pub(crate) there: HashSet<u64>,
    /// What their checks have come to.
    pub(super) checked: HashMap<u64, Outcome>,
}

impl Found {
    /// What is to be said of a backend, and why; `None` where what is said stays so.
    fn of(&self, backend: &Backend, known: Health, me: &Name) -> Option<(Health, String)> {
        let id = backend.id;
        if self.silent.contains(&id) {
            return Some((Health::Unreachable, unanswered(me, backend.settings.address)));
        }
        if known == Health::Unreachable && !self.there.contains(&id) {
            return None;
        }
        match self.checked.get(&id) {
            Some(Outcome::Good) => Some((Health::Healthy, String::new())),
            // The owner before has found it, and said why.
            Some(Outcome::Bad { reason: None, .. }) => None,
            Some(Outcome::Bad { reason: Some(reason), .. }) => {
                Some((Health::Unhealthy, format!("{reason} ({me} asks)")))
            }
            None if known == Health::Unreachable => Some((Health::Unchecked, String::new())),
            None => None,
        }
    }
}

/// The verdicts that differ from the table's, on the backends of the VIPs that `owns` names.
pub(crate) fn differing(
    table: &Table,
    me: &Name,
    owns: impl Fn(IpAddr) -> bool,
    found: &Found,
    now_ms: u64,
) -> Vec<Verdict> {
    let is_ours =
        |backend: &&Backend| table.service(&backend.settings.service).is_some_and(|service| owns(service.settings.vip));
    let judged = table.verdicts().map(|verdict| verdict.backend);
    let ids: BTreeSet<u64> = found.silent.iter().chain(found.checked.keys()).copied().chain(judged).collect();
    let backends = ids.into_iter().filter_map(|id| table.backend_with_id(id)).filter(is_ours);
    let verdicts = backends.filter_map(|backend| {
        let said = table.verdict(backend);
        let known = said.map_or(Health::Unchecked, |verdict| verdict.health);
        let (health, reason) = found.of(backend, known, me)?;
        let is_new_reason = health == Health::Unhealthy && said.is_some_and(|said| said.reason != reason);
        let differs = health != known || is_new_reason;
        differs.then_some(Verdict { backend: backend.id, health, reason, since_ms: now_ms })
    });
    verdicts.collect()
}

fn unanswered(me: &Name, address: IpAddr) -> String {
    let question = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
    format!("it does not answer {question} ({me} asks)")
}

#[cfg(test)]
pub(super) mod tests {
    use lb_raft_store::table::*;

    use super::*;

    const OURS: &str = "192.168.2.1";
    const NOW: u64 = 1_795_000_000_000;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// A node that owns two VIPs, with a backend each, and says that the first backend is unreachable. The backends' ids.
    pub(in crate::health) fn table() -> (Table, Vec<u64>) {
        let mut table = Table::default();
        let node =
            NewNode { name: name("lb1"), role: Role::Lb, address: "10.0.0.1:7401".into(), store: Default::default() };
        let attachment = Attachment {
            interface: "eth0".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            address: ip("192.168.2.2"),
            prefix_len: 24,
            hears: Vec::new(),
            silence: Silence::None,
            gateway_silence: Silence::None,
        };
        let published = Body::PublishNode {
            node: BOOTSTRAP_NODE,
            attachments: vec![attachment],
            heartbeat: Vec::new(),
            feature_level: 8,
            unfit: String::new(),
            starts: 0,
        };
        let mut rows = Vec::new();
        for (vip, service, backend) in [(OURS, "a", "192.168.2.50"), ("192.168.2.9", "b", "2001:db8::50")] {
            let (prefer, segment, unmatched) = (None, None, Unmatched::Drop);
            rows.push(Mutation::CreateVip(VipSettings { address: ip(vip), prefer, segment, unmatched }));
            let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
            rows.push(Mutation::CreateService(ServiceSettings::new(name(service), ip(vip), ports)));
            rows.push(Mutation::CreateBackend(BackendSettings {
                mac: Some("02:00:00:00:00:50".parse().unwrap()),
                ..BackendSettings::new(name(service), ip(backend))
            }));
        }
        let commands = [
            Body::CreateCluster {
                cluster: uuid::Uuid::from_u128(7),
                cluster_name: name("lb"),
                hash_seed: 5,
                heartbeat_key: 6,
                node,
            },
            published,
            Body::RaiseFeatureLevel { level: 8 },
            Body::OpenLease { node: BOOTSTRAP_NODE, nonce: 9, previous: None },
            Body::Ready { node: BOOTSTRAP_NODE, lease: LeaseId(4) },
            Body::Mutate(rows),
        ];
        for (index, command) in (1..).zip(commands) {
            table.apply(index, &command.into()).reply.result.unwrap();
        }
        let ids: Vec<u64> = table.backends().map(|backend| backend.id).collect();
        let verdicts =
            vec![Verdict { backend: ids[0], health: Health::Unreachable, reason: String::new(), since_ms: 1 }];
        let said = Body::Report { node: BOOTSTRAP_NODE, lease: LeaseId(4), verdicts };
        assert_eq!(table.apply(20, &said.into()).reply.result, Ok(Effect::Changed));
        (table, ids)
    }

    fn found(silent: &[u64], there: &[u64]) -> Found {
        Found {
            silent: silent.iter().copied().collect(),
            there: there.iter().copied().collect(),
            checked: HashMap::new(),
        }
    }

    #[test]
    fn what_the_table_says_already_is_not_said_again() {
        let (table, ids) = table();
        let said = |found: Found| differing(&table, &name("lb1"), |_| true, &found, NOW);
        assert_eq!(said(found(&[ids[0]], &[])), [], "it is known to be unreachable");
        assert_eq!(said(found(&[], &[])), [], "nothing was found of either");
        assert_eq!(said(found(&[99], &[98])), [], "there is no such backend any more");
        let lifted = Verdict { backend: ids[0], since_ms: NOW, ..Verdict::default() };
        let other = Verdict {
            backend: ids[1],
            health: Health::Unreachable,
            reason: "it does not answer neighbour discovery (lb1 asks)".into(),
            since_ms: NOW,
        };
        assert_eq!(said(found(&[ids[1]], &[ids[0]])), [lifted, other]);
    }

    #[test]
    fn nothing_is_said_of_backends_of_vips_that_others_own() {
        let (table, ids) = table();
        let ours = |vip| vip == ip(OURS);
        let verdicts = differing(&table, &name("lb1"), ours, &found(&[ids[1]], &[ids[0]]), NOW);
        assert_eq!(verdicts.iter().map(|verdict| verdict.backend).collect::<Vec<_>>(), [ids[0]]);
        assert_eq!(differing(&table, &name("lb1"), |_| false, &found(&[ids[1]], &[ids[0]]), NOW), []);
    }

    #[test]
    fn silence_comes_before_checks_and_they_before_nothing() {
        let (table, ids) = table();
        let said = |silent: &[u64], there: &[u64], checked: &[(u64, Outcome)]| {
            let found = Found { checked: checked.iter().cloned().collect(), ..found(silent, there) };
            let verdicts = differing(&table, &name("lb1"), |_| true, &found, NOW);
            verdicts.into_iter().map(|verdict| (verdict.backend, verdict.health, verdict.reason)).collect::<Vec<_>>()
        };
        let bad = || Outcome::Bad { reason: Some("tcp 80: it refuses the connection".into()), is_said: true };
        let (first, second) = (ids[0], ids[1]);
        let refused = "tcp 80: it refuses the connection (lb1 asks)".to_owned();
        assert_eq!(
            said(&[], &[first, second], &[(second, Outcome::Good)])[1],
            (second, Health::Healthy, String::new())
        );
        assert_eq!(said(&[], &[second], &[(second, bad())]), [(second, Health::Unhealthy, refused.clone())]);
        assert_eq!(said(&[second], &[], &[(second, bad())])[0].1, Health::Unreachable);
        // The first one is known to be unreachable: checks count again once it answers.
        assert_eq!(said(&[], &[], &[(first, Outcome::Good)]), []);
        assert_eq!(said(&[], &[first], &[(first, bad())]), [(first, Health::Unhealthy, refused)]);
    }
}
