//! Verdicts about backends.

use super::*;

const OTHER_VIP: &str = "192.168.2.101";

/// Two nodes at the level that knows of verdicts, each the owner of a VIP with a service of one backend. The backends' ids.
fn two_owners() -> (Log, Vec<NodeId>, Vec<u64>) {
    let (mut log, ids) = Log::with_nodes(2);
    log.at_level(6);
    log.mutate(vec![vip(VIP), vip(OTHER_VIP), service("a", VIP, &[(80, 80)]), service("b", OTHER_VIP, &[(80, 80)])]);
    log.mutate(vec![backend("a", "192.168.2.50"), backend("b", "192.168.2.50")]);
    let owners = [VIP, OTHER_VIP].map(|vip| log.owner(vip).unwrap().node);
    assert_ne!(owners[0], owners[1], "of {ids:?}");
    let backends = log.table.backends().map(|backend| backend.id).collect();
    (log, owners.to_vec(), backends)
}

fn unreachable(backend: u64) -> Verdict {
    Verdict { backend, health: Health::Unreachable, reason: "no answer to ARP".into(), since_ms: 1_795_000_000_000 }
}

fn report(log: &Log, node: NodeId, verdicts: Vec<Verdict>) -> Body {
    Body::Report { node, lease: log.table.lease(node).unwrap().id, verdicts }
}

fn health(log: &Log) -> Vec<Option<Health>> {
    log.table.backends().map(|backend| log.table.verdict(backend).map(|verdict| verdict.health)).collect()
}

#[test]
fn only_the_owner_of_a_vip_is_heard_on_its_backends() {
    let (mut log, owners, backends) = two_owners();
    let both = report(&log, owners[0], backends.iter().map(|id| unreachable(*id)).collect());
    assert_eq!(log.ok(both.clone()), Effect::Changed);
    assert_eq!(health(&log), [Some(Health::Unreachable), None], "the other VIP is not its");
    assert_eq!(log.ok(both), Effect::Unchanged, "that is known");
    let lifted = |backend| Verdict { backend, ..Verdict::default() };
    let by_the_other = report(&log, owners[1], vec![lifted(backends[0])]);
    assert_eq!(log.ok(by_the_other), Effect::Unchanged);
    // With the VIP comes the say, and what was found stays until then.
    log.fence(owners[0]);
    assert_eq!(log.owner(VIP).unwrap().node, owners[1]);
    assert_eq!(health(&log), [Some(Health::Unreachable), None]);
    assert_eq!(log.ok(report(&log, owners[1], vec![lifted(backends[0])])), Effect::Changed);
    assert_eq!(health(&log), [None, None]);
}

#[test]
fn what_is_said_under_another_lease_is_void() {
    let (mut log, owners, backends) = two_owners();
    let before = report(&log, owners[0], vec![unreachable(backends[0])]);
    log.open_and_ready(owners[0]);
    let back = log.table.vip(ip(VIP)).unwrap().owner.unwrap().node;
    if back != owners[0] {
        log.fence(back);
        assert_eq!(log.owner(VIP).unwrap().node, owners[0], "it owns the VIP again, under another lease");
    }
    assert_eq!(log.ok(before), Effect::Unchanged);
    assert_eq!(health(&log), [None, None]);
}

#[test]
fn a_verdict_moves_no_revision_touches_its_backend_and_goes_with_it() {
    let (mut log, owners, backends) = two_owners();
    let (revision, row) = (log.table.revision(), log.table.backend(&name("a"), ip("192.168.2.50")).cloned());
    let said = report(&log, owners[0], vec![unreachable(backends[0])]);
    log.index += 1;
    let applied = log.table.apply(log.index, &said.into());
    assert_eq!(applied.touched, Touched { verdicts: vec![backends[0]], ..Touched::default() });
    assert!(applied.touched.changes_forwarding());
    assert_eq!((log.table.revision(), applied.reply.revision), (revision, revision));
    assert_eq!(log.table.backend(&name("a"), ip("192.168.2.50")).cloned(), row);
    let drop_it = Mutation::DeleteBackend { service: name("a"), address: ip("192.168.2.50") };
    log.mutate(vec![drop_it, backend("b", "192.168.2.51")]);
    assert_eq!(log.table.verdicts().count(), 0, "whoever is added again is another backend");
}

#[test]
fn a_table_below_the_level_takes_no_verdict() {
    let (mut log, _) = Log::with_nodes(1);
    let said = report(&log, BOOTSTRAP_NODE, vec![unreachable(1)]);
    assert_eq!(log.refused(said).subject, "feature_level");
}
