//! What all nodes have found, side by side: what no node sees alone.

use std::collections::BTreeSet;

use lb_proto::v1;
use lb_raft_store::table::{Node, NodeId, Sign, Table};

use super::finding::{Id, finding};
use crate::{health::unserved, peers::Silent};

/// With fewer, the shares of backends with the same weight differ by more than about two percent (Maglev, section 5.3).
const SLOTS_A_BACKEND: usize = 50;

/// The answers by the nodes' names, and those that were not given; which nodes are heard by whoever compares.
pub(crate) fn compare(
    answers: Vec<(String, v1::Diagnosis)>,
    silent: &[Silent],
    heard: impl Fn(NodeId) -> bool,
    table: &Table,
) -> Vec<v1::Finding> {
    let mut found = Vec::new();
    let (older, silent): (Vec<&Silent>, Vec<&Silent>) = silent.iter().partition(|silent| silent.is_older);
    for Silent { node, reason, .. } in silent {
        found.push(finding(
            Id::NodeSilent,
            format!("node {node}"),
            format!("it does not say what it finds: {reason}"),
            format!("on {node}: systemctl status lbd; and the way there: cluster.listen is reached by TCP"),
        ));
    }
    for (name, _) in &answers {
        let node = table.node_named(name);
        if node.is_some_and(|node| !heard(node.id)) {
            found.push(finding(
                Id::HeartbeatsBlocked,
                format!("node {name}"),
                "it answers by TCP, and its heartbeats (UDP to the same port) do not come here; where a majority misses them it holds no lease",
                "let UDP to the port of cluster.listen through in every firewall between the nodes, in both directions",
            ));
        }
    }
    let versions: BTreeSet<&str> = answers.iter().map(|(_, answer)| answer.version.as_str()).collect();
    if versions.len() > 1 || !older.is_empty() {
        let known = answers.iter().map(|(name, answer)| format!("{name} {}", answer.version));
        let each: Vec<String> = known.chain(older.iter().map(|older| format!("{} an older one", older.node))).collect();
        found.push(finding(
            Id::VersionsDiffer,
            "cluster",
            format!("the nodes run different versions: {}", each.join(", ")),
            "finish the upgrade: what only the newer one knows is not used until then",
        ));
    }
    of_table(table, &mut found);
    let of_nodes = answers.into_iter().flat_map(|(name, answer)| {
        answer.found.into_iter().map(move |finding| v1::Finding { node: name.clone(), ..finding })
    });
    found.extend(of_nodes);
    found.sort_by(|a, b| {
        b.severity.cmp(&a.severity).then_with(|| (&a.id, &a.object, &a.node).cmp(&(&b.id, &b.object, &b.node)))
    });
    found
}

/// What the table alone says.
fn of_table(table: &Table, found: &mut Vec<v1::Finding>) {
    for problem in unserved(table) {
        let mend = "lbctl backend list shows why each is out; add one, enable one, or mend what its check says";
        found.push(finding(Id::ServiceUnserved, "cluster", problem, mend));
    }
    for vip in table.vips().filter(|vip| vip.owner.is_none()) {
        let address = vip.settings.address;
        found.push(finding(
            Id::Unowned,
            format!("vip {address}"),
            "no node is able to own it: nobody answers for it",
            "lbctl node list: a node must be ready, and on the VIP's segment; lbctl describe vip says more",
        ));
    }
    for node in table.nodes() {
        cut_off(node, table, found);
    }
    for service in table.services() {
        let settings = &service.settings;
        let backends = table.backends_of(&settings.name).count();
        if backends * SLOTS_A_BACKEND > settings.table_size as usize {
            found.push(finding(
                Id::MaglevTableSmall,
                format!("service {}", settings.name),
                format!("{} slots for {backends} backends: their shares of new flows differ by more than two percent", settings.table_size),
                "make the service anew with a larger table: lbctl service add ... --table-size 65537 (its size is fixed when it is made)",
            ));
        }
    }
}

fn cut_off(node: &Node, table: &Table, found: &mut Vec<v1::Finding>) {
    for attachment in &node.attachments {
        let object = format!("node {} {}", node.name, attachment.interface);
        if table.is_isolated(node.id, attachment) {
            let what = "it hears no other node there, and others hear each other: its segment is cut off";
            found.push(finding(
                Id::SegmentCutOff,
                object.clone(),
                what,
                "look at the cable, the port of the switch and its VLAN",
            ));
        }
        for sign in table.blindness(node.id, attachment) {
            let whom = match sign {
                Sign::Backends => "hardly any backend",
                Sign::Gateway => "no gateway",
            };
            let what = format!("it hears {whom} there, and others hear them: it can own no VIP of the segment");
            found.push(finding(Id::SegmentCutOff, object.clone(), what, "look at the port of the switch and its VLAN"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_raft_store::table::{
        BackendSettings, Body, Mutation, Name, PortRange, Protocol, ServiceSettings, Unmatched, VipSettings,
    };

    use super::*;

    #[test]
    fn what_the_table_alone_says_is_found() {
        let ids = |table: &Table| -> Vec<String> {
            compare(Vec::new(), &[], |_| true, table).into_iter().map(|finding| finding.id).collect()
        };
        let mut table = Table::default();
        let mut apply = |mutations: Vec<Mutation>| {
            let index = table.revision() + 1;
            let applied = table.apply(index, &Body::Mutate(mutations).into());
            applied.reply.result.unwrap();
            ids(&table)
        };
        let vip: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(
            apply(vec![Mutation::CreateVip(VipSettings {
                address: vip,
                prefer: None,
                segment: None,
                unmatched: Unmatched::Drop,
            })]),
            ["unowned"]
        );
        let name: Name = "web".parse().unwrap();
        let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
        let service = ServiceSettings { table_size: 4093, ..ServiceSettings::new(name.clone(), vip, ports) };
        assert_eq!(apply(vec![Mutation::CreateService(service)]), ["unowned"]);
        let backend = |last: u8| {
            let mac = Some("02:00:00:00:00:01".parse().unwrap());
            let settings = BackendSettings::new(name.clone(), IpAddr::from([10, 0, 0, last]));
            Mutation::CreateBackend(BackendSettings { mac, ..settings })
        };
        assert_eq!(apply((1..=81).map(backend).collect()), ["unowned"]);
        assert_eq!(apply(vec![backend(82)]), ["unowned", "maglev-table-small"]);
    }

    #[test]
    fn what_no_node_sees_alone_is_found() {
        let answer = |name: &str, version: &str| {
            (name.to_owned(), v1::Diagnosis { version: version.to_owned(), found: Vec::new() })
        };
        let silent = |is_older| Silent { node: "lb2".to_owned(), reason: "no answer".to_owned(), is_older };
        let ids = |answers: Vec<_>, silent: &[Silent]| -> Vec<String> {
            compare(answers, silent, |_| true, &Table::default()).into_iter().map(|finding| finding.id).collect()
        };
        assert!(ids(vec![answer("lb1", "1.0"), answer("lb2", "1.0")], &[]).is_empty());
        assert_eq!(ids(vec![answer("lb1", "1.0"), answer("lb2", "1.1")], &[]), ["versions-differ"]);
        assert_eq!(ids(vec![answer("lb1", "1.0")], &[silent(false)]), ["node-silent"]);
        assert_eq!(ids(vec![answer("lb1", "1.0")], &[silent(true)]), ["versions-differ"]);
    }
}
