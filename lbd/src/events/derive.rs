//! What an entry of the log has brought, in words: a function of the entry and the tables before and after it, so that all
//! nodes tell the same. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use lb_raft_store::{
    Cause, Change,
    table::{Evidence, Health, NodeId, Table, Vip},
};

use super::event::{Kind, News};

/// Of objects that one event names.
const NAMED: usize = 16;

/// What has come about with an entry.
pub(super) fn news(change: &Change) -> Vec<News> {
    let mut all = Vec::new();
    let mut tell = |kind, is_bad, reason: String, objects: Vec<String>| {
        all.push(News { kind, is_bad, reason, objects, revision: change.index });
    };
    nodes(change, &mut tell);
    leases(change, &mut tell);
    owners(change, &mut tell);
    backends(change, &mut tell);
    configuration(change, &mut tell);
    all
}

/// A node, as people call it.
pub(crate) fn name_of(table: &Table, node: NodeId) -> String {
    table.node(node).map_or_else(|| format!("node {node}"), |node| node.name.to_string())
}

fn nodes(change: &Change, tell: &mut impl FnMut(Kind, bool, String, Vec<String>)) {
    let Change { before, after, touched, .. } = change;
    for id in &touched.nodes {
        let (old, new) = (before.node(*id), after.node(*id));
        let name = new.or(old).map(|node| node.name.to_string()).unwrap_or_default();
        let object = vec![format!("node {name}")];
        match (old, new) {
            (None, Some(node)) => {
                tell(Kind::Node, false, format!("node {name} was added, at {}", node.address), object);
            }
            (Some(_), None) => tell(Kind::Node, false, format!("node {name} was removed"), object),
            (Some(old), Some(new)) => {
                if old.address != new.address {
                    let reason = format!("node {name} is at {}, and was at {}", new.address, old.address);
                    tell(Kind::Node, false, reason, object.clone());
                }
                if old.draining != new.draining {
                    let does = if new.draining { "is drained: its VIPs move" } else { "may own VIPs again" };
                    tell(Kind::Node, false, format!("node {name} {does}"), object.clone());
                }
                if old.unfit != new.unfit {
                    let (is_bad, reason) = match new.unfit.as_str() {
                        "" => (false, format!("node {name} can own VIPs again")),
                        // A start takes a moment, and is no trouble.
                        why => (old.starts == new.starts, format!("node {name} can own no VIP: {why}")),
                    };
                    tell(Kind::Node, is_bad, reason, object);
                }
            }
            (None, None) => {}
        }
    }
}

/// Why a lease has ended.
fn because(cause: &Cause, table: &Table) -> Option<String> {
    match cause {
        Cause::Fence { evidence, .. } => Some(in_words(evidence, table)),
        _ => None,
    }
}

/// What evidence against a lease says of its holder.
fn in_words(evidence: &Evidence, table: &Table) -> String {
    match evidence {
        Evidence::OwnRelease => "it has given it back".to_owned(),
        Evidence::Obituary { .. } => "its process is dead".to_owned(),
        Evidence::Operator => "an operator says that it is off".to_owned(),
        Evidence::Withdrawals(withdrawals) => {
            let by: Vec<String> = withdrawals.iter().map(|withdrawal| name_of(table, withdrawal.supporter)).collect();
            format!("it is not heard by {}", by.join(", "))
        }
    }
}

fn leases(change: &Change, tell: &mut impl FnMut(Kind, bool, String, Vec<String>)) {
    let Change { before, after, touched, cause, .. } = change;
    for id in &touched.leases {
        let (old, new) = (before.lease(*id), after.lease(*id));
        let name = name_of(if after.node(*id).is_some() { after } else { before }, *id);
        let object = vec![format!("node {name}")];
        match (old.map(|lease| lease.id), new.map(|lease| lease.id)) {
            (Some(_), None) => {
                let why = because(cause, before).unwrap_or_else(|| "the node was removed".to_owned());
                let is_bad = !matches!(cause, Cause::Fence { evidence: Evidence::OwnRelease, .. });
                tell(Kind::Lease, is_bad, format!("the lease of {name} has ended: {why}"), object);
            }
            (old, Some(new)) if old != Some(new) => {
                let instead = if old.is_some() { ", in place of the one that it had" } else { "" };
                tell(Kind::Lease, false, format!("{name} has a lease{instead}"), object);
            }
            _ => {}
        }
    }
}

fn owners(change: &Change, tell: &mut impl FnMut(Kind, bool, String, Vec<String>)) {
    let Change { before, after, touched, cause, .. } = change;
    // VIPs that go the same way have one event.
    let mut ways: BTreeMap<(Option<NodeId>, Option<NodeId>), Vec<IpAddr>> = BTreeMap::new();
    for address in touched.owners.iter().chain(&touched.vips) {
        let of = |vip: Option<&Vip>| vip.and_then(|vip| vip.owner).map(|owner| owner.node);
        let (old, new) = (before.vip(*address), after.vip(*address));
        // One that is no more has no owner, and that is all right.
        if of(old) != of(new) && new.is_some() {
            ways.entry((of(old), of(new))).or_default().push(*address);
        }
    }
    for ((from, to), mut vips) in ways {
        vips.sort_unstable();
        vips.dedup();
        let names: Vec<String> = vips.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if vips.len() > NAMED { format!(" and {} more", vips.len() - NAMED) } else { String::new() };
        let which = format!("{} {}{more}", if vips.len() == 1 { "VIP" } else { "VIPs" }, names.join(", "));
        let (is, has) = if vips.len() == 1 { ("is", "has") } else { ("are", "have") };
        let name = |node| name_of(if after.node(node).is_some() { after } else { before }, node);
        let why = because(cause, before);
        let asked = vips.iter().any(|vip| before.vip(*vip).is_some_and(|vip| vip.intent.is_some()));
        let why = why.or_else(|| asked.then(|| "as it was asked to".to_owned()));
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        let (is_bad, reason) = match (from, to) {
            (Some(from), Some(to)) => (false, format!("{which} {has} moved from {} to {}{why}", name(from), name(to))),
            (None, Some(to)) => (false, format!("{which} {is} owned by {}{why}", name(to))),
            (Some(from), None) => (true, format!("{which} {has} no owner, and had {}{why}", name(from))),
            (None, None) => continue,
        };
        tell(Kind::Vip, is_bad, reason, names.iter().map(|vip| format!("vip {vip}")).collect());
    }
}

fn backends(change: &Change, tell: &mut impl FnMut(Kind, bool, String, Vec<String>)) {
    let Change { before, after, touched, .. } = change;
    for id in &touched.verdicts {
        let Some(backend) = after.backend_with_id(*id) else { continue };
        let old = before.backend_with_id(*id).map_or(Health::Unchecked, |backend| before.health(backend));
        let new = after.health(backend);
        if old == new {
            continue;
        }
        let (service, address) = backend.key();
        let (is_bad, is) = match new {
            Health::Unreachable => (true, "answers neither ARP nor neighbour discovery"),
            Health::Unhealthy => (true, "is not healthy"),
            Health::Healthy => (false, "is healthy"),
            Health::Unchecked => (false, "is there"),
        };
        let reason = after.verdict(backend).map(|verdict| &verdict.reason).filter(|reason| !reason.is_empty());
        let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let object = format!("backend {service} {address}");
        tell(Kind::Health, is_bad, format!("backend {address} of {service} {is}{why}"), vec![object]);
    }
}

/// What callers have changed: which objects. What they were and are stands in the audit.
fn configuration(change: &Change, tell: &mut impl FnMut(Kind, bool, String, Vec<String>)) {
    let Change { before, after, touched, cause, .. } = change;
    let Cause::Caller { name: caller, .. } = cause else { return };
    let became = |was: bool, is: bool| match (was, is) {
        (false, true) => "added",
        (true, false) => "removed",
        _ => "changed",
    };
    let mut objects = Vec::new();
    for vip in &touched.vips {
        objects.push((format!("vip {vip}"), became(before.vip(*vip).is_some(), after.vip(*vip).is_some())));
    }
    for name in &touched.services {
        let became = became(before.service(name).is_some(), after.service(name).is_some());
        objects.push((format!("service {name}"), became));
    }
    for (service, address) in &touched.backends {
        let is_in = |table: &Table| table.backend(service, *address).is_some();
        objects.push((format!("backend {service} {address}"), became(is_in(before), is_in(after))));
    }
    for network in &touched.segments {
        let became = became(before.segment(network).is_some(), after.segment(network).is_some());
        objects.push((format!("segment {network}"), became));
    }
    if before.settings() != after.settings() {
        objects.push(("settings".to_owned(), "changed"));
    }
    if objects.is_empty() {
        return;
    }
    let more = if objects.len() > NAMED { format!(" and {} more", objects.len() - NAMED) } else { String::new() };
    objects.truncate(NAMED);
    let told: Vec<String> = objects.iter().map(|(object, became)| format!("{object} {became}")).collect();
    let objects = objects.into_iter().map(|(object, _)| object).collect();
    tell(Kind::Configuration, false, format!("{}{more} by {caller}", told.join(", ")), objects);
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::{
        Attachment, Body, Command, LeaseId, Mutation, NewNode, Principal, Role, Silence, Unmatched, VipSettings,
    };
    use uuid::Uuid;

    use super::*;

    /// The news of each command, one after the other.
    fn told(commands: &[Command]) -> Vec<Vec<News>> {
        let mut table = Table::default();
        let apply = |(index, command): (u64, &Command)| {
            let before = table.clone();
            let applied = table.apply(index, command);
            applied.reply.result.as_ref().unwrap();
            let after = table.clone();
            news(&Change { index, cause: Cause::from(command), touched: applied.touched, before, after })
        };
        (1..).zip(commands).map(apply).collect()
    }

    fn new_node(id: u64) -> NewNode {
        let name = format!("lb{id}").parse().unwrap();
        NewNode { name, role: Role::Lb, address: format!("10.0.0.{id}:7401"), store: Uuid::from_u128(id.into()) }
    }

    fn by_alice(body: Body) -> Command {
        Command { principal: Some(Principal { name: "alice".into(), node: 1 }), ..body.into() }
    }

    #[test]
    fn a_takeover_is_told_with_its_reason() {
        let create = Body::CreateCluster {
            cluster: Uuid::from_u128(1),
            cluster_name: "lb".parse().unwrap(),
            hash_seed: 5,
            heartbeat_key: 1,
            node: new_node(1),
        };
        let open = |node| Body::OpenLease { node, nonce: 10 + node, previous: None };
        let publish = |node: u64| {
            let attachment = Attachment {
                interface: "eth0".to_owned(),
                mac: format!("02:00:00:00:00:0{node}").parse().unwrap(),
                address: IpAddr::from([192, 0, 2, 100 + node as u8]),
                prefix_len: 24,
                hears: vec![3 - node],
                silence: Silence::None,
                gateway_silence: Silence::None,
            };
            let (attachments, unfit) = (vec![attachment], String::new());
            Body::PublishNode { node, attachments, heartbeat: Vec::new(), feature_level: 1, unfit, starts: 0 }
        };
        let ready = |node, lease| Body::Ready { node, lease: LeaseId(lease) };
        let vip = |last| {
            let address = IpAddr::from([192, 0, 2, last]);
            Mutation::CreateVip(VipSettings { address, prefer: Some(1), segment: None, unmatched: Unmatched::Drop })
        };
        let evidence = Evidence::Obituary { nonce: 11 };
        let commands = [
            create.into(),
            by_alice(Body::AddNode(new_node(2))),
            open(1).into(),
            open(2).into(),
            ready(1, 3).into(),
            ready(2, 4).into(),
            publish(1).into(),
            publish(2).into(),
            by_alice(Body::Mutate((1..=2).map(vip).collect())),
            Body::Fence { node: 1, lease: LeaseId(3), evidence, heard: vec![2] }.into(),
        ];
        let told = told(&commands);
        let lines = |at: usize| told[at].iter().map(|news| (news.kind, news.reason.as_str())).collect::<Vec<_>>();
        assert_eq!(lines(1), [(Kind::Node, "node lb2 was added, at 10.0.0.2:7401")]);
        assert_eq!(lines(2), [(Kind::Lease, "lb1 has a lease")]);
        let added = "vip 192.0.2.1 added, vip 192.0.2.2 added by alice";
        let owned = "VIPs 192.0.2.1, 192.0.2.2 are owned by lb1";
        assert_eq!(lines(8), [(Kind::Vip, owned), (Kind::Configuration, added)]);
        let moved = "VIPs 192.0.2.1, 192.0.2.2 have moved from lb1 to lb2: its process is dead";
        assert_eq!(lines(9), [(Kind::Lease, "the lease of lb1 has ended: its process is dead"), (Kind::Vip, moved)]);
        assert_eq!(
            told[9].iter().map(|news| (news.is_bad, news.revision)).collect::<Vec<_>>(),
            [(true, 10), (false, 10)]
        );
        assert_eq!(told[9][1].objects, ["vip 192.0.2.1", "vip 192.0.2.2"]);
    }
}
