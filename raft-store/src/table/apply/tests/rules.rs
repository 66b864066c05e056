//! Rules that single faults have once got past, one test each.

use super::*;

#[test]
fn every_command_is_guarded_by_its_expected_revision() {
    let (mut log, ids) = Log::with_nodes(2);
    log.at_level(5);
    log.mutate(vec![vip(VIP)]);
    let owner = log.owner(VIP).unwrap();
    let lease = log.table.lease(ids[1]).unwrap().id;
    let Node { attachments, heartbeat, .. } = log.table.node(ids[0]).unwrap().clone();
    let published = |attachments, heartbeat| Body::PublishNode {
        node: ids[0],
        attachments,
        heartbeat,
        feature_level: 5,
        unfit: "stalled".into(),
        starts: 1,
    };
    let settings = ClusterSettings { failback_s: 9, ..log.table.settings() };
    let patch = SettingsPatch { failback_s: Some(8), ..SettingsPatch::default() };
    let to = ids.iter().copied().find(|id| *id != owner.node).unwrap();
    let bodies = [
        mutation(vec![vip("192.168.2.101")]),
        Body::MoveIntent { vip: ip(VIP), to },
        Body::AddNode(new_node("lb7")),
        Body::RemoveNode { node: 99, heartbeat_key: 1 },
        published(attachments, heartbeat),
        Body::SetNodeAddress { node: ids[0], address: "10.77.9.9:7401".into() },
        Body::SetDraining { node: ids[0], draining: true },
        Body::OpenLease { node: ids[1], nonce: 77, previous: Some(lease) },
        Body::Fence { node: ids[1], lease, evidence: Evidence::Operator, heard: Vec::new() },
        Body::UpdateSettings(settings),
        Body::PatchSettings(patch),
        Body::Rebalance,
        Body::Released { grants: vec![(ip(VIP), owner.epoch)] },
    ];
    for body in bodies {
        let stale = Command { expected_revision: log.table.revision() - 1, ..body.clone().into() };
        assert_eq!(log.refused(stale).subject, "expected_revision", "{body:?}");
        let next = Command { expected_revision: log.table.revision() + 1, ..body.clone().into() };
        assert_eq!(log.refused(next).subject, "expected_revision", "{body:?}");
        let right = Command { expected_revision: log.table.revision(), ..body.clone().into() };
        log.ok(right);
    }
}

#[test]
fn a_cascade_takes_all_services_and_all_their_backends() {
    for from_vip in [true, false] {
        let (mut log, _) = Log::with_nodes(1);
        log.mutate(vec![vip(VIP), service("a", VIP, &[(1, 1)]), service("b", VIP, &[(2, 2)])]);
        for of in ["a", "b"] {
            log.mutate((50..53).map(|last| backend(of, &format!("192.168.2.{last}"))).collect());
        }
        let cascade = true;
        match from_vip {
            true => log.mutate(vec![Mutation::DeleteVip { address: ip(VIP), cascade }]),
            false => log.mutate(["a", "b"].map(|of| Mutation::DeleteService { name: name(of), cascade }).into()),
        };
        assert_eq!((log.table.services().count(), log.table.backends.size()), (0, 0), "from the VIP: {from_vip}");
        assert_eq!(log.table.backends_by_address.size(), 0);
    }
}

#[test]
fn vips_on_their_way_to_a_node_count_as_its_own() {
    let (mut log, ids) = Log::with_nodes(2);
    log.mutate((1..=4).map(|i| vip(&format!("192.168.2.{}", 100 + i))).collect());
    let of = |log: &Log, node| log.table.vips_of(node).count();
    assert_eq!((of(&log, ids[0]), of(&log, ids[1])), (2, 2));
    // Both of the first node's are to go to the second: the next new one is for the first.
    let leaving: Vec<IpAddr> = log.table.vips_of(ids[0]).map(|vip| vip.settings.address).collect();
    for vip in leaving {
        log.ok(Body::MoveIntent { vip, to: ids[1] });
    }
    for next in ["192.168.2.110", "192.168.2.111", "192.168.2.112"] {
        log.mutate(vec![vip(next)]);
        assert_eq!(log.owner(next).unwrap().node, ids[0], "{next}");
    }
}

#[test]
fn of_the_heartbeat_keys_only_the_last_two_are_kept() {
    let (mut log, _) = Log::with_nodes(1);
    let keys = |log: &Log| log.table.heartbeat_keys().map(|(_, key)| key).collect::<Vec<_>>();
    for number in 2..6u8 {
        let Effect::NodeAdded(node) = log.ok(Body::AddNode(new_node(&format!("lb{number}")))) else { panic!() };
        log.ok(Body::RemoveNode { node, heartbeat_key: u128::from(number) });
        let before = if number == 2 { 11 } else { u128::from(number) - 1 };
        assert_eq!(keys(&log), [before, u128::from(number)], "who left knows all the others");
    }
}

#[test]
fn each_grant_of_a_vip_is_counted() {
    let (mut log, ids) = Log::with_nodes(2);
    log.mutate(vec![vip(VIP)]);
    let grants = |log: &Log| log.table.vip(ip(VIP)).unwrap().grants;
    assert_eq!(grants(&log), 1, "nobody had it before");
    for expected in 2..5 {
        let owner = log.owner(VIP).unwrap();
        let to = ids.iter().copied().find(|id| *id != owner.node).unwrap();
        log.ok(Body::MoveIntent { vip: ip(VIP), to });
        log.ok(Body::Released { grants: vec![(ip(VIP), owner.epoch)] });
        assert_eq!((grants(&log), log.owner(VIP).unwrap().node), (expected, to));
    }
    log.fence(log.owner(VIP).unwrap().node);
    assert_eq!(grants(&log), 5);
}

#[test]
fn an_address_that_a_machine_needs_or_that_none_can_have_is_no_vip() {
    let (mut log, ids) = Log::with_nodes(2);
    let own = "192.168.2.2";
    let refusal = log.refused(mutation(vec![vip(own)]));
    assert!(refusal.message.contains("lb1's own address on eth0"), "{refusal}");
    // What came with feature level 5 does not change what a log of before comes to.
    let reserved = ["192.168.2.0", "192.168.2.255", "10.77.1.49"];
    log.mutate(reserved.map(vip).into());
    log.mutate(reserved.map(|address| Mutation::DeleteVip { address: ip(address), cascade: false }).into());
    let leaving: Vec<(IpAddr, Epoch)> =
        log.table.vips().filter_map(|vip| Some((vip.settings.address, vip.owner?.epoch))).collect();
    log.ok(Body::Released { grants: leaving });
    log.at_level(5);
    for (address, reason) in reserved.into_iter().zip(["network address", "broadcast address", "lb1's cluster address"])
    {
        let refusal = log.refused(mutation(vec![vip(address)]));
        assert!(refusal.subject == "address" && refusal.message.contains(reason), "{address}: {refusal}");
    }
    log.mutate(vec![vip(VIP), service("web", VIP, &[(80, 80)])]);
    let there = NewNode { address: format!("{VIP}:7401"), ..new_node("lb7") };
    let set = Body::SetNodeAddress { node: ids[0], address: format!("{VIP}:7401") };
    for refused in [Body::AddNode(there), set] {
        assert!(log.refused(refused).message.contains("is a VIP"));
    }
    for address in &reserved[..2] {
        assert_eq!(log.refused(mutation(vec![backend("web", address)])).subject, "address");
    }
    // A machine may be a backend itself.
    log.mutate(vec![backend("web", own)]);
    // A link of two has neither a network's nor a broadcast address (RFC 3021), nor an IPv6 network the latter.
    let attachments =
        [("10.9.0.0", 31), ("2001:db8::1", 64), ("2001:db8:1::", 127)].map(|(address, prefix_len)| Attachment {
            interface: "eth1".into(),
            mac: MacAddr::try_from([2, 0, 0, 0, 1, 1]).unwrap(),
            address: ip(address),
            prefix_len,
            hears: Vec::new(),
            silence: Silence::None,
            gateway_silence: Silence::None,
        });
    log.ok(Body::PublishNode {
        node: ids[0],
        attachments: attachments.into(),
        heartbeat: vec![],
        feature_level: 5,
        unfit: String::new(),
        starts: 0,
    });
    log.mutate(vec![vip("10.9.0.1"), vip("2001:db8::ffff:ffff:ffff:ffff"), vip("2001:db8:1::1")]);
    let refusal = log.refused(mutation(vec![vip("2001:db8::")]));
    assert!(refusal.message.contains("subnet-router anycast address of 2001:db8::/64"), "{refusal}");
}

#[test]
fn a_weight_of_zero_needs_all_nodes_to_know_what_it_means() {
    let (mut log, _) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP), service("web", VIP, &[(80, 80)]), backend("web", "192.168.2.50")]);
    let weight = |weight: u32| {
        let patch = BackendPatch::of(name("web"), ip("192.168.2.50"));
        mutation(vec![Mutation::UpdateBackend(BackendPatch {
            weight: Some(Weight::try_from(weight).unwrap()),
            ..patch
        })])
    };
    let Mutation::CreateBackend(settings) = backend("web", "192.168.2.51") else { panic!() };
    let created =
        mutation(vec![Mutation::CreateBackend(BackendSettings { weight: Weight::try_from(0).unwrap(), ..settings })]);
    log.ok(weight(1000));
    for refused in [weight(0), created.clone()] {
        assert_eq!(log.refused(refused).subject, "feature_level");
    }
    log.at_level(5);
    log.ok(weight(0));
    log.ok(created);
    assert!(log.table.backends_of(&name("web")).all(|backend| backend.settings.weight.get() == 0));
    for out in [1001, u32::MAX] {
        assert!(Weight::try_from(out).is_err(), "{out}");
    }
}

#[test]
fn a_fin_keeps_a_flow_for_two_minutes_where_nobody_has_said_otherwise() {
    for chosen in [None, Some(10), Some(60)] {
        let (mut log, _) = Log::with_nodes(1);
        log.at_level(4);
        assert_eq!(log.table.settings().flow_timeouts.fin_s, 10);
        if let Some(fin) = chosen.filter(|fin| *fin != 10) {
            log.ok(Body::PatchSettings(SettingsPatch { flow_fin_s: Some(fin), ..SettingsPatch::default() }));
        }
        log.at_level(5);
        let expected = if chosen == Some(60) { 60 } else { 120 };
        assert_eq!(log.table.settings().flow_timeouts.fin_s, expected, "{chosen:?}");
        // Whoever wants the former value may have it.
        log.ok(Body::PatchSettings(SettingsPatch { flow_fin_s: Some(10), ..SettingsPatch::default() }));
        assert_eq!(log.table.settings().flow_timeouts.fin_s, 10);
    }
}

#[test]
fn no_service_takes_the_ports_of_another_by_an_update() {
    let (mut log, _) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP), service("a", VIP, &[(80, 80)]), service("b", VIP, &[(90, 99)])]);
    let patch = |first, last| {
        let ports = Some(vec![PortRange { protocol: Protocol::Tcp, first, last }]);
        mutation(vec![Mutation::UpdateService(ServicePatch { ports, ..ServicePatch::of(name("a")) })])
    };
    for (first, last) in [(90, 90), (99, 99), (80, 90), (85, 200)] {
        assert_eq!(log.refused(patch(first, last)).subject, "ports", "{first}-{last}");
    }
    assert_eq!(log.refused(patch(9, 8)).subject, "ports", "reversed");
    log.ok(patch(100, 200));
}

/// The leases of a change of membership: two sets of voters, of which each must have its majority. What ends a lease and
/// what keeps it valid are each other's opposite; with one fault on either side two nodes could own a VIP.
#[test]
fn of_a_joint_configuration_both_halves_count() {
    let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<std::collections::BTreeSet<NodeId>>();
    let joint = Configuration { index: 1, halves: vec![set(&[1, 2, 3]), set(&[3, 4, 5])] };
    for mask in 0..32u64 {
        let nodes = set(&(1..=5).filter(|node| mask & 1 << (node - 1) != 0).collect::<Vec<_>>());
        let of = |half: &[NodeId]| half.iter().filter(|node| nodes.contains(node)).count();
        let (first, second) = (of(&[1, 2, 3]), of(&[3, 4, 5]));
        assert_eq!(joint.is_majority(&nodes), first >= 2 && second >= 2, "{nodes:?}");
        // Without those nodes a half of three has no majority if they are two or more of it.
        assert_eq!(joint.is_blocked_by(&nodes), first >= 2 && second >= 2, "{nodes:?}");
        assert_eq!(joint.is_lost_without(&nodes), first >= 2 || second >= 2, "{nodes:?}");
    }
    let none = Configuration::default();
    assert!(!none.is_majority(&set(&[1])) && !none.is_blocked_by(&set(&[1])) && !none.is_lost_without(&set(&[1])));
}
