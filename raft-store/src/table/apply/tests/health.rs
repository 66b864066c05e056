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

/// What a node says of the backends on its only segment.
fn publish_silence(log: &mut Log, node: NodeId, silence: Silence) {
    publish_as(log, node, |attachment| attachment.silence = silence);
}

fn publish_as(log: &mut Log, node: NodeId, change: impl Fn(&mut Attachment)) {
    let Node { mut attachments, heartbeat, feature_level, unfit, starts, .. } = log.table.node(node).unwrap().clone();
    attachments.iter_mut().for_each(change);
    log.ok(Body::PublishNode { node, attachments, heartbeat, feature_level, unfit, starts });
}

#[test]
fn a_node_that_hears_no_backends_where_another_one_does_loses_its_vips() {
    let (mut log, owners, _) = two_owners();
    let intent = |log: &Log| log.table.vip(ip(VIP)).unwrap().intent;
    publish_silence(&mut log, owners[0], Silence::Begun);
    assert_eq!((log.table.is_blind(owners[0]), intent(&log)), (false, None), "the other may not have noticed yet");
    publish_silence(&mut log, owners[0], Silence::Lasting);
    assert!(log.table.is_blind(owners[0]));
    assert_eq!(intent(&log), Some(owners[1]));
    let attachment = log.table.node(owners[0]).unwrap().attachments[0].clone();
    assert_eq!(log.table.blindness(owners[0], &attachment).collect::<Vec<_>>(), [Sign::Backends]);
}

#[test]
fn a_node_that_alone_does_not_hear_the_gateway_loses_its_vips() {
    let (mut log, owners, _) = two_owners();
    log.at_level(10);
    let of_gateway = |silence| move |attachment: &mut Attachment| attachment.gateway_silence = silence;
    publish_as(&mut log, owners[0], of_gateway(Silence::Begun));
    assert!(!log.table.is_blind(owners[0]));
    publish_as(&mut log, owners[0], of_gateway(Silence::Lasting));
    let attachment = log.table.node(owners[0]).unwrap().attachments[0].clone();
    assert_eq!(log.table.blindness(owners[0], &attachment).collect::<Vec<_>>(), [Sign::Gateway]);
    assert_eq!(log.table.vip(ip(VIP)).unwrap().intent, Some(owners[1]));
    // A gateway that nobody hears is down, and hides no blindness of another kind.
    publish_as(&mut log, owners[1], of_gateway(Silence::Lasting));
    assert!(!log.table.is_blind(owners[0]));
    publish_silence(&mut log, owners[0], Silence::Lasting);
    assert_eq!(log.table.blindness(owners[0], &attachment).count(), 0, "as it was before");
    let attachment = log.table.node(owners[0]).unwrap().attachments[0].clone();
    assert_eq!(log.table.blindness(owners[0], &attachment).collect::<Vec<_>>(), [Sign::Backends]);
}

#[test]
fn a_segment_has_a_gateway_that_a_router_there_can_have() {
    let (mut log, ids) = Log::with_nodes(1);
    log.at_level(10);
    log.mutate(vec![vip(VIP)]);
    let own = log.table.node(ids[0]).unwrap().attachments[0].address.to_string();
    let segment = |network: &str, gateway: &str| {
        let settings = SegmentSettings { network: network.parse().unwrap(), gateway: ip(gateway) };
        mutation(vec![Mutation::CreateSegment(settings)])
    };
    let wrong = [
        ("192.168.2.0/24", "192.168.3.1", "is not in"),
        ("192.168.2.0/24", "192.168.2.255", "broadcast"),
        ("192.168.2.0/24", "192.168.2.0", "network address"),
        ("192.168.2.0/24", VIP, "is a VIP"),
        ("192.168.2.0/24", &own, "own address"),
        ("192.168.2.0/24", "fe80::1", "is not in"),
        ("224.0.0.0/4", "224.0.0.5", "no address that a router can have"),
    ];
    for (network, gateway, why) in wrong {
        let refused = log.refused(segment(network, gateway));
        assert!(refused.subject == "gateway" && refused.message.contains(why), "{gateway}: {refused:?}");
    }
    assert_eq!(log.ok(segment("2001:db8:2::/64", "fe80::1")), Effect::Changed);
    assert_eq!(log.ok(segment("192.168.2.0/24", "192.168.2.254")), Effect::Changed);
    assert_eq!(log.ok(segment("192.168.2.0/24", "192.168.2.254")), Effect::Unchanged);
    let network: Cidr = "192.168.2.0/24".parse().unwrap();
    assert!(log.refused(segment("192.168.2.0/24", "192.168.2.253")).message.contains("lbctl segment set"));
    let patch = |gateway| Mutation::UpdateSegment(SegmentPatch { network, gateway: Some(ip(gateway)) });
    log.index += 1;
    let applied = log.table.apply(log.index, &mutation(vec![patch("192.168.2.253")]).into());
    assert_eq!(applied.touched, Touched { segments: vec![network], ..Touched::default() });
    assert!(applied.touched.changes_forwarding());
    assert_eq!(log.table.segment(&network).unwrap().settings.gateway, ip("192.168.2.253"));
    assert_eq!(log.refused(mutation(vec![patch(VIP)])).subject, "gateway");
    // A snapshot brings back what was.
    let saved = decode_saved(&encode_saved(&log.table)).unwrap();
    log.mutate(vec![Mutation::DeleteSegment { network }, patch_of("2001:db8:2::/64", "fe80::2")]);
    assert_eq!(log.table.segments().count(), 1);
    log.ok(restore(&log.table, &saved).unwrap());
    assert_eq!(restore(&log.table, &saved), None);
    let gateways = |table: &Table| table.segments().map(|segment| segment.settings.clone()).collect::<Vec<_>>();
    assert_eq!(gateways(&log.table), gateways(&saved));
    assert_eq!(
        log.ok(mutation(vec![Mutation::DeleteSegment { network: "10.0.0.0/8".parse().unwrap() }])),
        Effect::Unchanged
    );
    assert!(log.refused(mutation(vec![patch_of("10.0.0.0/8", "10.0.0.1")])).message.contains("lbctl segment add"));
}

fn patch_of(network: &str, gateway: &str) -> Mutation {
    Mutation::UpdateSegment(SegmentPatch { network: network.parse().unwrap(), gateway: Some(ip(gateway)) })
}

#[test]
fn where_all_nodes_hear_no_backends_no_node_is_blind() {
    let (mut log, owners, _) = two_owners();
    publish_silence(&mut log, owners[1], Silence::Begun);
    publish_silence(&mut log, owners[0], Silence::Lasting);
    assert!(!log.table.is_blind(owners[0]), "the other has begun to notice");
    publish_silence(&mut log, owners[1], Silence::Lasting);
    assert!(owners.iter().all(|node| !log.table.is_blind(*node)));
    assert_eq!(log.table.vip(ip(VIP)).unwrap().intent, None);
    // Only whoever could do its work is a witness against it.
    publish_silence(&mut log, owners[1], Silence::None);
    assert!(log.table.is_blind(owners[0]));
    log.publish(owners[1], 6, "the guard is not in place");
    assert!(!log.table.is_blind(owners[0]));
    log.publish(owners[1], 6, "");
    log.fence(owners[1]);
    assert!(!log.table.is_blind(owners[0]));
}

#[test]
fn whoever_is_elsewhere_is_no_witness() {
    let (mut log, owners, _) = two_owners();
    let Node { mut attachments, heartbeat, feature_level, unfit, starts, .. } =
        log.table.node(owners[1]).unwrap().clone();
    attachments[0].address = ip("10.9.0.2");
    log.ok(Body::PublishNode { node: owners[1], attachments, heartbeat, feature_level, unfit, starts });
    publish_silence(&mut log, owners[0], Silence::Lasting);
    assert!(!log.table.is_blind(owners[0]));
}

/// A service with two backends of the first tier (.51, .52) and two of the second (.53, .54).
fn with_tiers(change: impl Fn(&mut ServiceSettings)) -> (Log, NodeId) {
    let (mut log, ids) = Log::with_nodes(1);
    log.at_level(7);
    let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
    let mut web = ServiceSettings::new(name("web"), ip(VIP), ports);
    change(&mut web);
    let mut rows = vec![vip(VIP), Mutation::CreateService(web)];
    for (last, tier) in [(51, Tier::First), (52, Tier::First), (53, Tier::Second), (54, Tier::Second)] {
        let address = IpAddr::from([192, 168, 2, last]);
        rows.push(Mutation::CreateBackend(BackendSettings { tier, ..BackendSettings::new(name("web"), address) }));
    }
    log.mutate(rows);
    (log, ids[0])
}

/// The last bytes of the addresses of those that take new flows.
fn takers(log: &Log) -> Vec<u8> {
    let takers = log.table.takers(log.table.service(&name("web")).unwrap());
    let of = log.table.backends().filter(|backend| takers.backends.contains(&backend.id));
    of.map(|backend| match backend.settings.address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    })
    .collect()
}

/// Says of the backends with these last bytes that they are unreachable, and of no others.
fn find_unreachable(log: &mut Log, node: NodeId, which: &[u8]) {
    let verdict = |backend: &Backend| {
        let away = which.iter().any(|last| backend.settings.address == IpAddr::from([192, 168, 2, *last]));
        if away { unreachable(backend.id) } else { Verdict { backend: backend.id, ..Verdict::default() } }
    };
    let verdicts = log.table.backends().map(verdict).collect();
    let said = report(log, node, verdicts);
    log.ok(said);
}

#[test]
fn the_second_tier_steps_in_where_the_first_is_below_its_minimum() {
    let (mut log, node) = with_tiers(|_| {});
    assert_eq!(takers(&log), [51, 52]);
    find_unreachable(&mut log, node, &[51]);
    assert_eq!(takers(&log), [52], "one is enough where nothing is said");
    find_unreachable(&mut log, node, &[51, 52, 53]);
    assert_eq!(takers(&log), [54]);
    find_unreachable(&mut log, node, &[]);
    assert_eq!(takers(&log), [51, 52]);
    let two = ServicePatch { min_healthy: Some(2), ..ServicePatch::of(name("web")) };
    log.mutate(vec![Mutation::UpdateService(two)]);
    assert_eq!(takers(&log), [51, 52]);
    // Whatever the reason is, and beside those that are left.
    let state = Some(AdminState::Drain);
    let patch = BackendPatch { state, ..BackendPatch::of(name("web"), ip("192.168.2.51")) };
    log.mutate(vec![Mutation::UpdateBackend(patch)]);
    assert_eq!(takers(&log), [52, 53, 54]);
    let tier = Some(Tier::First);
    let patch = BackendPatch { tier, ..BackendPatch::of(name("web"), ip("192.168.2.53")) };
    log.mutate(vec![Mutation::UpdateBackend(patch)]);
    assert_eq!(takers(&log), [52, 53]);
}

#[test]
fn where_nothing_good_is_known_of_any_new_flows_are_dropped_or_go_to_all_that_shall() {
    for fails_open in [false, true] {
        let (mut log, node) = with_tiers(|service| service.fails_open = fails_open);
        let patch = |last: u8| BackendPatch::of(name("web"), IpAddr::from([192, 168, 2, last]));
        let down = BackendPatch { state: Some(AdminState::Down), ..patch(51) };
        log.mutate(vec![Mutation::UpdateBackend(down)]);
        find_unreachable(&mut log, node, &[51, 52, 53]);
        assert_eq!(takers(&log), [54], "one is left");
        find_unreachable(&mut log, node, &[51, 52, 53, 54]);
        assert_eq!(takers(&log), if fails_open { vec![52, 53, 54] } else { vec![] });
        let of = log.table.takers(log.table.service(&name("web")).unwrap());
        assert_eq!((of.is_open, of.first_tier), (fails_open, 0));
    }
}

#[test]
fn what_checks_say_counts_while_there_are_checks_and_its_reason_is_the_last_one() {
    let (mut log, owners, backends) = two_owners();
    log.at_level(8);
    let verdict =
        |health, reason: &str, since_ms| Verdict { backend: backends[0], health, reason: reason.into(), since_ms };
    let say = |log: &mut Log, verdict: Verdict| {
        let said = report(log, owners[0], vec![verdict]);
        log.ok(said)
    };
    let checks = |checks| {
        let patch = ServicePatch { checks: Some(checks), ..ServicePatch::of(name("a")) };
        vec![Mutation::UpdateService(patch)]
    };
    let refused = verdict(Health::Unhealthy, "tcp 80: it refuses the connection", 5);
    assert_eq!(say(&mut log, refused.clone()), Effect::Unchanged, "it has no checks");
    log.mutate(checks(vec![Check { port: 0, probe: Probe::Tcp }]));
    assert_eq!(say(&mut log, refused.clone()), Effect::Changed);
    assert_eq!(say(&mut log, refused.clone()), Effect::Unchanged);
    let silent = verdict(Health::Unhealthy, "tcp 80: no answer within 500 ms", 7);
    assert_eq!(say(&mut log, silent.clone()), Effect::Changed);
    let shown = log.table.verdicts().next().unwrap().clone();
    assert_eq!((shown.reason, shown.since_ms), (silent.reason, 5), "another reason, and unhealthy since then");
    assert_eq!(say(&mut log, verdict(Health::Healthy, "", 9)), Effect::Changed);
    log.mutate(checks(Vec::new()));
    assert_eq!(health(&log), [None, None]);
    // Silence has nothing to do with checks.
    assert_eq!(say(&mut log, unreachable(backends[0])), Effect::Changed);
    log.mutate(checks(vec![Check { port: 0, probe: Probe::Icmp }]));
    log.mutate(checks(Vec::new()));
    assert_eq!(health(&log), [Some(Health::Unreachable), None]);
}

#[test]
fn drained_backends_lose_their_flows_and_shares_rise_when_time_says_so() {
    let (mut log, owners, backends) = two_owners();
    log.at_level(9);
    let of = |log: &Log| log.table.backend_with_id(backends[0]).unwrap().clone();
    let state = |state| {
        let patch = BackendPatch { state: Some(state), ..BackendPatch::of(name("a"), ip("192.168.2.50")) };
        Command { stamp_ms: 1000, ..Body::Mutate(vec![Mutation::UpdateBackend(patch)]).into() }
    };
    let progress = |drained: &[u64], eighths: u32| {
        let shares = if eighths > 0 { vec![Share { backend: backends[0], eighths }] } else { vec![] };
        Body::Progress { drained: drained.to_vec(), shares }
    };
    let revision = log.table.revision();
    assert_eq!(log.ok(progress(&backends[..1], 0)), Effect::Unchanged, "it is not drained");
    log.ok(state(AdminState::Drain));
    assert_eq!((of(&log).draining_since_ms, of(&log).is_drained), (1000, false));
    let by_operator = log.table.revision();
    assert_ne!(by_operator, revision);
    assert_eq!(log.ok(progress(&backends[..1], 0)), Effect::Changed);
    assert!(of(&log).is_drained && log.table.revision() == by_operator);
    assert_eq!(log.ok(progress(&backends[..1], 0)), Effect::Unchanged);
    log.ok(state(AdminState::Active));
    assert_eq!((of(&log).draining_since_ms, of(&log).is_drained, of(&log).share()), (0, false, 8), "no slow start");

    let slow = ServicePatch { slow_start_s: Some(8), ..ServicePatch::of(name("a")) };
    log.mutate(vec![Mutation::UpdateService(slow)]);
    assert_eq!(of(&log).share(), 8, "it takes flows already");
    log.ok(state(AdminState::Down));
    log.ok(state(AdminState::Active));
    assert_eq!(of(&log).share(), 1);
    assert_eq!(log.ok(progress(&[], 3)), Effect::Changed);
    assert_eq!(log.ok(progress(&[], 2)), Effect::Unchanged, "it only rises");
    assert_eq!((log.ok(progress(&[], 9)), of(&log).share()), (Effect::Unchanged, 3));
    assert_eq!((log.ok(progress(&[], 8)), of(&log).share()), (Effect::Changed, 8));
    // Whoever was away begins anew, too.
    let said = report(&log, owners[0], vec![unreachable(backends[0])]);
    log.ok(said);
    assert_eq!(of(&log).share(), 8);
    let lifted = report(&log, owners[0], vec![Verdict { backend: backends[0], ..Verdict::default() }]);
    log.ok(lifted);
    assert_eq!(of(&log).share(), 1);
}
