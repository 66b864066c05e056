use super::super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn new_node(label: &str) -> NewNode {
    let byte = label.as_bytes()[label.len() - 1];
    NewNode {
        name: name(label),
        role: Role::Lb,
        address: format!("10.77.1.{byte}:7401"),
        store: Uuid::from_bytes([byte; 16]),
    }
}

/// A table under test, fed as the log would feed it.
struct Log {
    table: Table,
    index: u64,
}

impl Log {
    /// A cluster of `count` nodes lb1.. on 192.168.2.0/24, each with a ready lease.
    fn with_nodes(count: u8) -> (Self, Vec<NodeId>) {
        let mut log = Self { table: Table::default(), index: 1 };
        log.ok(Body::CreateCluster {
            cluster: Uuid::from_u128(7),
            cluster_name: name("lb"),
            hash_seed: 9,
            heartbeat_key: 11,
            node: new_node("lb1"),
        });
        let mut ids = vec![BOOTSTRAP_NODE];
        for number in 2..=count {
            match log.ok(Body::AddNode(new_node(&format!("lb{number}")))) {
                Effect::NodeAdded(id) => ids.push(id),
                other => panic!("{other:?}"),
            }
        }
        for (&id, last) in ids.iter().zip(2u8..) {
            let attachment = Attachment {
                interface: "eth0".into(),
                mac: MacAddr::try_from([2, 0, 0, 0, 0, last]).unwrap(),
                address: IpAddr::from([192, 168, 2, last]),
                prefix_len: 24,
                hears: Vec::new(),
                silence: Silence::None,
                gateway_silence: Silence::None,
            };
            log.ok(Body::PublishNode {
                node: id,
                attachments: vec![attachment],
                heartbeat: vec!["10.77.1.9:7401".parse().unwrap()],
                feature_level: 1,
                unfit: String::new(),
                starts: 0,
            });
            log.open_and_ready(id);
        }
        (log, ids)
    }

    /// What a node publishes of itself changes.
    fn publish(&mut self, id: NodeId, level: u32, unfit: &str) -> Effect {
        let Node { attachments, heartbeat, .. } = self.table.node(id).unwrap().clone();
        self.ok(Body::PublishNode {
            node: id,
            attachments,
            heartbeat,
            feature_level: level,
            unfit: unfit.into(),
            starts: 0,
        })
    }

    /// All nodes know a feature level, and the cluster has agreed on it.
    fn at_level(&mut self, level: u32) {
        let ids: Vec<NodeId> = self.table.nodes().map(|node| node.id).collect();
        for id in ids {
            self.publish(id, level, "");
        }
        self.ok(Body::RaiseFeatureLevel { level });
    }

    fn apply(&mut self, command: impl Into<Command>) -> Reply {
        let command = command.into();
        self.index += 1;
        // Everything goes through its wire form, as it does in the log.
        let command = decode_command(&encode_command(&command)).unwrap();
        let reply = self.table.apply(self.index, &command).reply;
        assert_eq!(decode_table(&encode_table(&self.table)).as_ref(), Ok(&self.table));
        decode_reply(&encode_reply(&reply)).unwrap()
    }

    fn ok(&mut self, command: impl Into<Command>) -> Effect {
        let command = command.into();
        self.apply(command.clone()).result.unwrap_or_else(|rejection| panic!("{command:?}: {rejection}"))
    }

    fn refused(&mut self, command: impl Into<Command>) -> Rejection {
        let before = self.table.clone();
        let rejection = self.apply(command).result.unwrap_err();
        assert_eq!(self.table, before, "a refused command changed the table");
        rejection
    }

    fn mutate(&mut self, mutations: Vec<Mutation>) -> Effect {
        self.ok(mutation(mutations))
    }

    fn open_and_ready(&mut self, node: NodeId) -> LeaseId {
        let previous = self.table.lease(node).map(|lease| lease.id);
        match self.ok(Body::OpenLease { node, nonce: self.index, previous }) {
            Effect::LeaseOpened(lease) => {
                self.ok(Body::Ready { node, lease });
                lease
            }
            other => panic!("{other:?}"),
        }
    }

    fn owner(&self, vip: &str) -> Option<Owner> {
        self.table.vip(ip(vip)).unwrap().owner
    }

    fn fence(&mut self, node: NodeId) -> Effect {
        let Lease { id: lease, nonce, .. } = *self.table.lease(node).unwrap();
        self.ok(Body::Fence { node, lease, evidence: Evidence::Obituary { nonce }, heard: Vec::new() })
    }

    fn configure(&mut self, halves: &[&[NodeId]]) -> u64 {
        self.index += 1;
        self.table.configure(self.index, halves.iter().map(|half| half.iter().copied().collect()).collect());
        assert_eq!(decode_table(&encode_table(&self.table)).as_ref(), Ok(&self.table));
        self.index
    }

    /// A supporter's withdrawal under its present lease, as of now.
    fn withdrawal(&self, supporter: NodeId) -> Withdrawal {
        Withdrawal { supporter, lease: self.table.lease(supporter).unwrap().id, as_of: self.index }
    }

    fn fence_by(&mut self, node: NodeId, against: &[Withdrawal]) -> Effect {
        let lease = self.table.lease(node).unwrap().id;
        let evidence = Evidence::Withdrawals(against.to_vec());
        self.ok(Body::Fence { node, lease, evidence, heard: Vec::new() })
    }

    fn retract(&mut self, supporter: NodeId, node: NodeId) -> Effect {
        let lease = |id| self.table.lease(id).unwrap().id;
        self.ok(Body::Retract { supporter, supporter_lease: lease(supporter), node, lease: lease(node) })
    }
}

fn mutation(mutations: Vec<Mutation>) -> Body {
    Body::Mutate(mutations)
}

fn vip(address: &str) -> Mutation {
    Mutation::CreateVip(VipSettings { address: ip(address), prefer: None, segment: None, unmatched: Unmatched::Drop })
}

fn service(label: &str, address: &str, ports: &[(u16, u16)]) -> Mutation {
    let range = |&(first, last): &(u16, u16)| PortRange { protocol: Protocol::Tcp, first, last };
    Mutation::CreateService(ServiceSettings::new(name(label), ip(address), ports.iter().map(range).collect()))
}

fn backend(label: &str, address: &str) -> Mutation {
    Mutation::CreateBackend(BackendSettings::new(name(label), ip(address)))
}

const VIP: &str = "192.168.2.100";

#[test]
fn a_batch_is_made_whole_or_not_at_all() {
    let (mut log, _) = Log::with_nodes(1);
    let rejection = log.refused(mutation(vec![vip(VIP), service("web", "192.168.2.99", &[(80, 80)])]));
    assert_eq!(rejection.kind, RejectionKind::NotFound);
    assert_eq!(log.mutate(vec![vip(VIP), service("web", VIP, &[(80, 80)])]), Effect::Changed);
}

#[test]
fn what_is_so_already_is_unchanged_and_what_differs_is_refused() {
    let (mut log, _) = Log::with_nodes(1);
    let all = vec![vip(VIP), service("web", VIP, &[(80, 80)]), backend("web", "192.168.2.50")];
    log.mutate(all.clone());
    let revision = log.table.revision();
    assert_eq!(log.mutate(all), Effect::Unchanged);
    assert_eq!(log.table.revision(), revision);
    let other = log.refused(mutation(vec![service("web", VIP, &[(81, 81)])]));
    assert_eq!(other.kind, RejectionKind::AlreadyExists);
    assert!(other.message.contains("lbctl service set web"), "{other}");
    assert_eq!(
        log.mutate(vec![Mutation::DeleteBackend { service: name("web"), address: ip("192.168.2.51") }]),
        Effect::Unchanged
    );
}

#[test]
fn what_has_dependants_goes_only_with_them() {
    let (mut log, _) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP), service("web", VIP, &[(80, 80)]), backend("web", "192.168.2.50")]);
    let delete = |cascade| mutation(vec![Mutation::DeleteService { name: name("web"), cascade }]);
    assert_eq!(log.refused(delete(false)).subject, "dependants");
    log.ok(delete(true));
    assert_eq!(log.table.backends().count(), 0);
}

#[test]
fn ports_of_two_services_never_collide_but_any_gives_way() {
    let (mut log, _) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP), service("range", VIP, &[(5000, 5999)]), service("rest", VIP, &[(0, 0)])]);
    assert_eq!(log.refused(mutation(vec![service("one", VIP, &[(5999, 6000)])])).subject, "ports");
    assert_eq!(log.refused(mutation(vec![service("any", VIP, &[(0, 0)])])).subject, "ports");
    assert_eq!(log.refused(mutation(vec![service("bad", VIP, &[(9, 8)])])).kind, RejectionKind::InvalidArgument);
    log.mutate(vec![service("one", VIP, &[(6000, 6000)])]);
}

#[test]
fn a_backend_on_no_segment_needs_its_mac() {
    let (mut log, _) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP), service("web", VIP, &[(80, 80)])]);
    let rejection = log.refused(mutation(vec![backend("web", "203.0.113.5")]));
    assert!(rejection.message.contains("--mac"), "{rejection}");
    let mut given = match backend("web", "203.0.113.5") {
        Mutation::CreateBackend(settings) => settings,
        other => panic!("{other:?}"),
    };
    given.mac = Some("02:00:00:00:05:05".parse().unwrap());
    log.mutate(vec![Mutation::CreateBackend(given)]);
    // A node may be one too.
    log.mutate(vec![backend("web", "192.168.2.2")]);
}

#[test]
fn a_request_id_applies_once_even_after_a_snapshot() {
    let (mut log, _) = Log::with_nodes(1);
    let request = RequestId::parse("r-1").unwrap();
    let add = Command { request: request.clone(), ..mutation(vec![vip(VIP)]).into() };
    let first = log.apply(add.clone());
    log.mutate(vec![Mutation::DeleteVip { address: ip(VIP), cascade: false }]);
    let again = log.apply(add);
    assert_eq!(again, first, "the same answer, and nothing is done again");
    let other = Command { request, ..mutation(vec![vip("192.168.2.101")]).into() };
    assert_eq!(log.refused(other).subject, "request_id");
}

#[test]
fn remembered_requests_are_bounded() {
    let mut table = Table::default();
    for index in 1..=(Table::default().rules().requests as u64 + 10) {
        let request = RequestId::parse(&format!("r{index}")).unwrap();
        table.apply(index, &Command { request, ..mutation(vec![]).into() });
    }
    assert_eq!(table.requests.size(), Table::default().rules().requests);
    assert_eq!(table.request_order.size(), Table::default().rules().requests);
}

#[test]
fn a_moved_revision_refuses_a_guarded_change() {
    let (mut log, _) = Log::with_nodes(1);
    let guarded = |expected_revision| Command { expected_revision, ..mutation(vec![vip(VIP)]).into() };
    let seen = log.table.revision();
    assert_eq!(log.refused(guarded(seen - 1)).subject, "expected_revision");
    log.ok(guarded(seen));
}

#[test]
fn a_new_vip_goes_to_the_least_loaded_node_and_preferences_come_first() {
    let (mut log, ids) = Log::with_nodes(3);
    for last in 100..106 {
        log.mutate(vec![vip(&format!("192.168.2.{last}"))]);
    }
    for id in &ids {
        assert_eq!(log.table.vips_of(*id).count(), 2);
    }
    log.mutate(vec![Mutation::CreateVip(VipSettings {
        address: ip("192.168.2.200"),
        prefer: Some(ids[2]),
        segment: None,
        unmatched: Unmatched::Drop,
    })]);
    assert_eq!(log.owner("192.168.2.200").unwrap().node, ids[2]);
}

#[test]
fn a_fence_moves_every_vip_in_the_same_entry_with_a_new_epoch() {
    let (mut log, ids) = Log::with_nodes(3);
    log.mutate((100..109).map(|last| vip(&format!("192.168.2.{last}"))).collect());
    let before: Vec<_> = log.table.vips_of(ids[0]).cloned().collect();
    assert_eq!(before.len(), 3);
    log.fence(ids[0]);
    assert_eq!(log.table.vips_of(ids[0]).count(), 0);
    for vip in before {
        let now = log.table.vip(vip.settings.address).unwrap().owner.unwrap();
        assert!(now.epoch > vip.owner.unwrap().epoch);
        assert_eq!(now.lease, log.table.lease(now.node).unwrap().id);
    }
    assert!(log.table.vips_of(ids[1]).count().abs_diff(log.table.vips_of(ids[2]).count()) <= 1);
}

#[test]
fn a_late_fence_or_a_late_open_ends_no_newer_lease() {
    let (mut log, ids) = Log::with_nodes(1);
    let old = log.table.lease(ids[0]).unwrap().id;
    let new = log.open_and_ready(ids[0]);
    let late = Body::Fence { node: ids[0], lease: old, evidence: Evidence::OwnRelease, heard: Vec::new() };
    assert_eq!(log.ok(late), Effect::Unchanged);
    assert_eq!(log.ok(Body::OpenLease { node: ids[0], nonce: 1, previous: Some(old) }), Effect::Unchanged);
    assert_eq!(log.table.lease(ids[0]).unwrap().id, new);
}

#[test]
fn with_nobody_able_a_vip_waits_unowned_and_returns_home() {
    let (mut log, ids) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP)]);
    log.fence(ids[0]);
    assert_eq!(log.owner(VIP), None);
    assert_eq!(log.table.vip(ip(VIP)).unwrap().home, Some(ids[0]));
    let lease = log.open_and_ready(ids[0]);
    assert_eq!(log.owner(VIP).unwrap().lease, lease);
}

#[test]
fn a_move_waits_for_the_release_of_that_epoch() {
    let (mut log, ids) = Log::with_nodes(2);
    log.mutate(vec![vip(VIP)]);
    let from = log.owner(VIP).unwrap();
    let to = if from.node == ids[0] { ids[1] } else { ids[0] };
    log.ok(Body::MoveIntent { vip: ip(VIP), to });
    assert_eq!(log.owner(VIP), Some(from), "an intent moves nothing");
    let stale = Body::Released { grants: vec![(ip(VIP), Epoch(from.epoch.0 - 1))] };
    assert_eq!(log.ok(stale), Effect::Unchanged);
    log.ok(Body::Released { grants: vec![(ip(VIP), from.epoch)] });
    assert_eq!(log.owner(VIP).unwrap().node, to);
    assert!(log.owner(VIP).unwrap().epoch > from.epoch);
    let back = Body::MoveIntent { vip: ip(VIP), to: 99 };
    assert_eq!(log.refused(back).kind, RejectionKind::NotFound);
}

#[test]
fn a_vip_leaves_an_owner_that_is_no_longer_on_its_segment() {
    let (mut log, ids) = Log::with_nodes(2);
    log.mutate(vec![vip(VIP)]);
    let owner = log.owner(VIP).unwrap();
    let other = if owner.node == ids[0] { ids[1] } else { ids[0] };
    log.ok(Body::PublishNode {
        node: owner.node,
        attachments: vec![],
        heartbeat: vec![],
        feature_level: 1,
        unfit: String::new(),
        starts: 0,
    });
    assert_eq!(log.owner(VIP), Some(owner), "it has to let go first");
    assert_eq!(log.table.vip(ip(VIP)).unwrap().intent, Some(other));
    log.ok(Body::Released { grants: vec![(ip(VIP), owner.epoch)] });
    assert_eq!(log.owner(VIP).unwrap().node, other);
}

#[test]
fn a_node_that_hears_nobody_while_others_hear_each_other_is_not_able() {
    let (mut log, ids) = Log::with_nodes(3);
    log.mutate(vec![vip(VIP)]);
    let owner = log.owner(VIP).unwrap();
    let hear = |log: &mut Log, id: NodeId, hears: &[NodeId]| {
        let mut attachments = log.table.node(id).unwrap().attachments.clone();
        attachments[0].hears = hears.to_vec();
        log.ok(Body::PublishNode {
            node: id,
            attachments,
            heartbeat: vec![],
            feature_level: 1,
            unfit: String::new(),
            starts: 0,
        });
    };
    for (at, id) in ids.iter().enumerate() {
        hear(&mut log, *id, &[ids[(at + 1) % 3], ids[(at + 2) % 3]]);
    }
    let others: Vec<NodeId> = ids.iter().copied().filter(|id| *id != owner.node).collect();
    hear(&mut log, owner.node, &[]);
    assert!(others.contains(&log.table.vip(ip(VIP)).unwrap().intent.unwrap()), "the others hear each other");
    // Nor does it hear that one of two that are left; nobody knows whose fault that is.
    log.ok(Body::Released { grants: vec![(ip(VIP), owner.epoch)] });
    let now = log.owner(VIP).unwrap();
    log.fence(others.iter().copied().find(|id| *id != now.node).unwrap());
    hear(&mut log, now.node, &[]);
    assert_eq!(log.table.vip(ip(VIP)).unwrap().intent, None);
}

#[test]
fn a_release_with_no_other_node_able_comes_back_under_a_new_epoch() {
    let (mut log, ids) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP)]);
    let before = log.owner(VIP).unwrap();
    log.ok(Body::Released { grants: vec![(ip(VIP), before.epoch)] });
    let after = log.owner(VIP).unwrap();
    assert_eq!(after.node, ids[0]);
    assert!(after.epoch > before.epoch);
}

#[test]
fn an_owned_vip_vanishes_only_when_its_owner_lets_go() {
    let (mut log, ids) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP)]);
    let epoch = log.owner(VIP).unwrap().epoch;
    log.mutate(vec![Mutation::DeleteVip { address: ip(VIP), cascade: false }]);
    assert!(log.table.vip(ip(VIP)).unwrap().deleting);
    assert_eq!(log.refused(mutation(vec![vip(VIP)])).subject, "vip");
    log.ok(Body::Released { grants: vec![(ip(VIP), epoch)] });
    assert!(log.table.vip(ip(VIP)).is_none());
    log.mutate(vec![vip(VIP)]);
    log.mutate(vec![Mutation::DeleteVip { address: ip(VIP), cascade: false }]);
    log.fence(ids[0]);
    assert!(log.table.vip(ip(VIP)).is_none());
}

#[test]
fn a_drained_node_sends_its_vips_away_and_is_the_last_to_get_new_ones() {
    let (mut log, ids) = Log::with_nodes(3);
    log.mutate((100..106).map(|last| vip(&format!("192.168.2.{last}"))).collect());
    log.ok(Body::SetDraining { node: ids[0], draining: true });
    let leaving: Vec<_> = log.table.vips_of(ids[0]).cloned().collect();
    let targets: Vec<_> = leaving.iter().map(|vip| vip.intent.unwrap()).collect();
    assert_eq!(targets.iter().filter(|to| **to == ids[1]).count(), 1, "{targets:?}");
    for vip in leaving {
        log.ok(Body::Released { grants: vec![(vip.settings.address, vip.owner.unwrap().epoch)] });
    }
    assert_eq!(log.table.vips_of(ids[0]).count(), 0);
    log.mutate(vec![vip("192.168.2.150")]);
    assert_ne!(log.owner("192.168.2.150").unwrap().node, ids[0]);
    log.fence(ids[1]);
    log.fence(ids[2]);
    assert_eq!(log.table.vips_of(ids[0]).count(), 7, "the last preference, not a ban");
}

#[test]
fn a_drained_nodes_vips_leave_when_another_node_becomes_able() {
    let (mut log, ids) = Log::with_nodes(2);
    log.mutate(vec![vip(VIP)]);
    let from = log.owner(VIP).unwrap().node;
    let other = if from == ids[0] { ids[1] } else { ids[0] };
    log.fence(other);
    log.ok(Body::SetDraining { node: from, draining: true });
    assert_eq!(log.table.vip(ip(VIP)).unwrap().intent, None, "nobody else is able");
    log.open_and_ready(other);
    assert_eq!(log.table.vip(ip(VIP)).unwrap().intent, Some(other));
}

#[test]
fn a_node_that_owns_a_vip_is_not_removed() {
    let (mut log, ids) = Log::with_nodes(2);
    log.mutate(vec![vip(VIP)]);
    let owner = log.owner(VIP).unwrap();
    assert_eq!(
        log.refused(Body::RemoveNode { node: owner.node, heartbeat_key: 12 }).kind,
        RejectionKind::FailedPrecondition
    );
    log.fence(owner.node);
    log.ok(Body::RemoveNode { node: owner.node, heartbeat_key: 12 });
    let keys: Vec<u128> = log.table.heartbeat_keys().map(|(_, key)| key).collect();
    assert_eq!(keys, [11, 12], "the removed node does not know the last one");
    assert_eq!(log.table.nodes().count(), 1);
    assert_ne!(log.owner(VIP).unwrap().node, owner.node);
    assert!(ids.contains(&log.owner(VIP).unwrap().node));
}

#[test]
fn a_known_name_with_another_store_is_refused() {
    let (mut log, ids) = Log::with_nodes(2);
    assert_eq!(log.ok(Body::AddNode(new_node("lb2"))), Effect::NodeAdded(ids[1]));
    let wiped = NewNode { store: Uuid::from_u128(1234), ..new_node("lb2") };
    let rejection = log.refused(Body::AddNode(wiped));
    assert!(rejection.message.contains("lbctl node remove lb2"), "{rejection}");
}

#[test]
fn a_vip_on_no_segment_is_routed_and_any_node_may_own_it() {
    let (mut log, _) = Log::with_nodes(2);
    log.mutate(vec![vip("198.51.100.7")]);
    let vip = log.table.vip(ip("198.51.100.7")).unwrap();
    assert!(log.table.is_routed(vip) && vip.owner.is_some());
}

#[test]
fn bounds_hold() {
    let (mut log, _) = Log::with_nodes(1);
    let fill = |count: usize| (0..count).map(|i| vip(&format!("10.{}.{}.1", i / 256, i % 256))).collect::<Vec<_>>();
    log.table.apply(1000, &mutation(fill(Table::default().rules().vips)).into());
    assert_eq!(log.table.vips().count(), Table::default().rules().vips);
    let reply = log.table.apply(1001, &mutation(vec![vip("172.16.0.1")]).into()).reply;
    assert_eq!(reply.result.unwrap_err().kind, RejectionKind::ResourceExhausted);
}

#[test]
fn a_lease_ends_when_no_majority_is_left_and_not_before() {
    let (mut log, ids) = Log::with_nodes(5);
    log.configure(&[&ids]);
    let all: Vec<Withdrawal> = ids[1..].iter().map(|id| log.withdrawal(*id)).collect();
    assert_eq!(log.fence_by(ids[0], &all[..2]), Effect::Unchanged, "three voters may still support it");
    assert_eq!(log.fence_by(ids[0], &[all[0], all[0], all[1]]), Effect::Unchanged, "one voice counts once");
    let own = log.withdrawal(ids[0]);
    assert_eq!(log.fence_by(ids[0], &[all[0], all[1], own]), Effect::Unchanged, "it cannot testify against itself");
    assert_eq!(log.fence_by(ids[0], &all[1..]), Effect::Changed);
    assert_eq!(log.table.lease(ids[0]), None);
}

#[test]
fn evidence_of_a_process_before_is_void() {
    let (mut log, ids) = Log::with_nodes(3);
    log.configure(&[&ids]);
    let (old, other) = (log.withdrawal(ids[1]), log.withdrawal(ids[2]));
    log.open_and_ready(ids[1]);
    assert_eq!(log.fence_by(ids[0], &[old, other]), Effect::Unchanged);
    assert_eq!(log.fence_by(ids[0], &[log.withdrawal(ids[1]), other]), Effect::Changed);
}

#[test]
fn evidence_from_before_a_retraction_is_void() {
    let (mut log, ids) = Log::with_nodes(3);
    log.configure(&[&ids]);
    let (early, other) = (log.withdrawal(ids[1]), log.withdrawal(ids[2]));
    assert_eq!(log.retract(ids[1], ids[0]), Effect::Changed);
    assert_eq!(log.table.retraction(ids[0], ids[1]), Some(log.index));
    assert_eq!(log.fence_by(ids[0], &[early, other]), Effect::Unchanged);
    // Withdrawn anew, after it had applied its own retraction.
    assert_eq!(log.fence_by(ids[0], &[log.withdrawal(ids[1]), other]), Effect::Changed);
    assert_eq!(log.table.retraction(ids[0], ids[1]), None, "nothing is left of it");
}

#[test]
fn evidence_blocks_every_configuration_that_the_holder_may_count_in() {
    let (mut log, ids) = Log::with_nodes(5);
    log.configure(&[&ids[..3]]);
    let holder = ids[0];
    let lease = log.open_and_ready(holder);
    log.configure(&[&ids[..3], &ids]);
    let wide = log.configure(&[&ids]);
    let against = |log: &Log, of: &[NodeId]| of.iter().map(|id| log.withdrawal(*id)).collect::<Vec<_>>();
    let new = against(&log, &ids[2..]);
    assert_eq!(log.fence_by(holder, &new), Effect::Unchanged, "a majority of the first three may support it");
    assert!(!log.table.is_configuration_confirmed());
    log.ok(Body::Confirm { node: holder, lease, configuration: wide });
    assert_eq!(log.table.lease(holder).unwrap().configuration, wide);
    assert_eq!(log.fence_by(holder, &new), Effect::Changed, "it counts in the five alone");
}

#[test]
fn an_old_configuration_is_forgotten_when_no_lease_counts_in_it() {
    let (mut log, ids) = Log::with_nodes(2);
    log.configure(&[&ids[..1]]);
    for id in &ids {
        log.open_and_ready(*id);
    }
    let both = log.configure(&[&ids]);
    assert_eq!(log.table.configurations.size(), 2);
    for id in &ids {
        let lease = log.table.lease(*id).unwrap().id;
        log.ok(Body::Confirm { node: *id, lease, configuration: both });
    }
    assert!(log.table.is_configuration_confirmed());
    assert_eq!(log.table.configurations.size(), 1);
}

#[test]
fn those_that_were_heard_are_given_the_vips_of_a_dead_node_first() {
    let (mut log, ids) = Log::with_nodes(4);
    log.mutate((1..=8).map(|i| vip(&format!("192.168.2.{}", 100 + i))).collect());
    let Lease { id: lease, nonce, .. } = *log.table.lease(ids[0]).unwrap();
    let evidence = Evidence::Obituary { nonce };
    assert!(log.table.vips_of(ids[0]).count() > 0);
    let before = log.table.vips_of(ids[3]).count();
    log.ok(Body::Fence { node: ids[0], lease, evidence, heard: vec![ids[1], ids[2]] });
    assert_eq!(log.table.vips_of(ids[0]).count(), 0);
    assert_eq!(log.table.vips_of(ids[3]).count(), before, "it was not heard");
}

#[test]
fn a_timing_that_could_give_two_owners_is_refused() {
    let (mut log, _) = Log::with_nodes(1);
    let set = |timing| {
        let settings = ClusterSettings { timing, ..ClusterSettings::default() };
        Body::UpdateSettings(settings)
    };
    assert_eq!(log.ok(set(Timing::DEFAULT)), Effect::Unchanged);
    assert_eq!(log.ok(set(Timing::RELAXED)), Effect::Changed);
    assert_eq!(log.ok(set(Timing::FAST)), Effect::Changed);
    assert_eq!(log.table.longest_withdraw_ms(), 600);
    for (timing, word) in [
        (Timing { lease_ms: 150, ..Timing::DEFAULT }, "withdraw_ms = 150"),
        (Timing { heartbeat_ms: 50, ..Timing::DEFAULT }, "heartbeat_ms = 50"),
        (Timing { heartbeat_ms: 0, ..Timing::DEFAULT }, "heartbeat_ms = 0"),
        (Timing { withdraw_ms: 10_001, ..Timing::DEFAULT }, "10001"),
    ] {
        let rejection = log.refused(set(timing));
        assert!(rejection.message.contains(word), "{rejection}");
    }
}

#[test]
fn rebalancing_moves_no_more_than_it_must_and_leaves_what_is_preferred() {
    let (mut log, ids) = Log::with_nodes(3);
    log.mutate((100..109).map(|last| vip(&format!("192.168.2.{last}"))).collect());
    log.fence(ids[0]);
    log.open_and_ready(ids[0]);
    assert_eq!(log.table.vips_of(ids[0]).count(), 0, "nothing moves by itself");
    let rebalance = || Body::Rebalance;
    log.ok(rebalance());
    let leaving: Vec<_> = log.table.vips().filter(|vip| vip.intent.is_some()).cloned().collect();
    assert_eq!(leaving.len(), 3);
    let grants = leaving.iter().map(|vip| (vip.settings.address, vip.owner.unwrap().epoch)).collect();
    log.ok(Body::Released { grants });
    assert!(ids.iter().all(|id| log.table.vips_of(*id).count() == 3));
    assert_eq!(log.ok(rebalance()), Effect::Unchanged);
}

#[test]
fn the_feature_level_rises_only_to_what_every_node_knows() {
    let (mut log, ids) = Log::with_nodes(2);
    let publish = |log: &mut Log, id: NodeId| {
        let attachments = log.table.node(id).unwrap().attachments.clone();
        log.ok(Body::PublishNode {
            node: id,
            attachments,
            heartbeat: vec![],
            feature_level: 2,
            unfit: String::new(),
            starts: 0,
        });
    };
    // Its wire form is refused above what this build knows, so it is applied as it is.
    let raise = |log: &Log, level| {
        let mut table = log.table.clone();
        let effect = table.apply(log.index + 1, &Body::RaiseFeatureLevel { level }.into()).reply.result.unwrap();
        (effect, table.feature_level())
    };
    publish(&mut log, ids[0]);
    assert_eq!(raise(&log, 2), (Effect::Unchanged, 1));
    publish(&mut log, ids[1]);
    assert_eq!(raise(&log, 3), (Effect::Unchanged, 1));
    assert_eq!(raise(&log, 2), (Effect::Changed, 2));
    let unknown = encode_command(&Body::RaiseFeatureLevel { level: 99 }.into());
    assert!(matches!(decode_command(&unknown), Err(DecodeError::TooNew { needed: 99, .. })));
}

#[test]
fn what_must_hold_is_looked_at_once_all_is_done() {
    let (mut log, _) = Log::with_nodes(1);
    log.mutate(vec![vip(VIP), service("a", VIP, &[(1001, 1001)]), service("b", VIP, &[(1002, 1002)])]);
    let ports = |label: &str, port: u16| {
        let range = PortRange { protocol: Protocol::Tcp, first: port, last: port };
        Mutation::UpdateService(ServicePatch { ports: Some(vec![range]), ..ServicePatch::of(name(label)) })
    };
    assert_eq!(log.mutate(vec![ports("a", 1002), ports("b", 1001)]), Effect::Changed, "they swap their ports");
    let refused = log.refused(mutation(vec![ports("a", 1001)]));
    assert_eq!((refused.kind, &*refused.subject), (RejectionKind::FailedPrecondition, "ports"));
    // In any order.
    log.mutate(vec![backend("c", "192.168.2.50"), service("c", "192.168.2.101", &[(80, 80)]), vip("192.168.2.101")]);
    let delete_vip = Mutation::DeleteVip { address: ip("192.168.2.101"), cascade: false };
    let delete_service = Mutation::DeleteService { name: name("c"), cascade: true };
    assert_eq!(log.refused(mutation(vec![delete_vip.clone()])).subject, "dependants");
    log.mutate(vec![delete_vip, delete_service]);
    assert_eq!(log.refused(mutation(vec![backend("d", "192.168.2.50")])).kind, RejectionKind::NotFound);
    assert_eq!(log.refused(mutation(vec![service("d", "192.168.2.99", &[(1, 1)])])).kind, RejectionKind::NotFound);
    let twice = vec![service("e", VIP, &[(7, 9)]), service("f", VIP, &[(9, 9)])];
    assert_eq!(log.refused(mutation(twice)).subject, "ports");
    let both = vec![backend("a", "192.168.2.60"), vip("192.168.2.60")];
    assert_eq!(log.refused(mutation(both)).subject, "address");
}

#[test]
fn an_entry_says_which_rows_it_has_touched() {
    let (mut log, ids) = Log::with_nodes(2);
    let mut touched = |command: Body| {
        log.index += 1;
        log.table.apply(log.index, &command.into()).touched
    };
    let created = touched(mutation(vec![vip(VIP), service("web", VIP, &[(80, 80)]), backend("web", "192.168.2.50")]));
    assert_eq!((created.vips, created.services), (vec![ip(VIP)], vec![name("web")]));
    assert_eq!(created.backends, [(name("web"), ip("192.168.2.50"))]);
    let again = touched(mutation(vec![vip(VIP)]));
    assert_eq!(again, Touched::default(), "it was so already");
    let refused = touched(mutation(vec![vip("192.168.2.101"), service("x", "192.168.2.99", &[(1, 1)])]));
    assert_eq!(refused, Touched::default());
    let weight = Some(Weight::try_from(9).unwrap());
    let patch = BackendPatch { weight, ..BackendPatch::of(name("web"), ip("192.168.2.50")) };
    let weighed = touched(Body::Mutate(vec![Mutation::UpdateBackend(patch)]));
    assert!(weighed.vips.is_empty() && weighed.owners.is_empty() && weighed.changes_forwarding());
    let moved = touched(Body::SetDraining { node: ids[0], draining: true });
    assert_eq!((moved.vips, moved.owners, moved.nodes), (vec![], vec![ip(VIP)], vec![ids[0]]));
    let fenced = touched(Body::OpenLease { node: ids[1], nonce: 1, previous: None });
    assert!(!fenced.changes_forwarding());
    let settings = touched(Body::UpdateSettings(ClusterSettings { failback_s: 9, ..ClusterSettings::default() }));
    assert!(settings.cluster && settings.changes_forwarding());
}

#[test]
fn the_indexes_are_those_of_the_rows() {
    let (mut log, _) = Log::with_nodes(1);
    let other = "192.168.2.101";
    log.mutate(vec![vip(VIP), vip(other), service("a", VIP, &[(1, 1)]), service("b", other, &[(1, 1)])]);
    log.mutate(vec![service("c", VIP, &[(2, 2)]), backend("a", "192.168.2.50"), backend("c", "192.168.2.50")]);
    let on = |log: &Log, vip| log.table.services_on(ip(vip)).map(|s| s.settings.name.to_string()).collect::<Vec<_>>();
    let with = |log: &Log| log.table.backends_with(ip("192.168.2.50")).count();
    assert_eq!((on(&log, VIP), on(&log, other), with(&log)), (vec!["a".into(), "c".into()], vec!["b".into()], 2));
    log.mutate(vec![Mutation::DeleteService { name: name("a"), cascade: true }]);
    assert_eq!((on(&log, VIP), with(&log)), (vec!["c".to_owned()], 1));
    log.mutate(vec![Mutation::DeleteVip { address: ip(VIP), cascade: true }]);
    assert_eq!((on(&log, VIP).len(), with(&log)), (0, 0));
}

#[test]
fn a_command_is_refused_where_not_all_nodes_know_it() {
    let (mut log, _) = Log::with_nodes(1);
    let patch = Body::PatchSettings(SettingsPatch { failback_s: Some(60), ..SettingsPatch::default() });
    assert_eq!(log.refused(patch.clone()).subject, "feature_level");
    let request = RequestId::parse("r").unwrap();
    let guarded = Command { request, ..Body::RemoveNode { node: 99, heartbeat_key: 1 }.into() };
    assert_eq!(log.refused(guarded.clone()).subject, "feature_level", "an older reader would overlook the request id");
    log.at_level(2);
    log.ok(patch);
    log.ok(guarded);
    assert_eq!(log.table.settings().failback_s, 60);
}

#[test]
fn two_changes_of_settings_at_once_both_hold() {
    let (mut log, _) = Log::with_nodes(1);
    log.at_level(2);
    log.ok(Body::PatchSettings(SettingsPatch { failback_s: Some(600), ..SettingsPatch::default() }));
    let hold = Some(QuorumLoss::Hold);
    log.ok(Body::PatchSettings(SettingsPatch { on_quorum_loss: hold, ..SettingsPatch::default() }));
    let settings = log.table.settings();
    assert_eq!((settings.failback_s, settings.on_quorum_loss), (600, QuorumLoss::Hold));
    let bad = SettingsPatch { flow_udp_s: Some(0), ..SettingsPatch::default() };
    assert_eq!(log.refused(Body::PatchSettings(bad)).kind, RejectionKind::InvalidArgument);
}

#[test]
fn a_node_that_does_not_do_its_work_is_given_nothing_and_asked_to_leave() {
    let (mut log, ids) = Log::with_nodes(2);
    log.mutate(vec![vip("192.168.2.100")]);
    let owner = log.owner("192.168.2.100").unwrap().node;
    let other = *ids.iter().find(|id| **id != owner).unwrap();
    let stalled = "worker 0 has stopped";
    let Node { attachments, heartbeat, .. } = log.table.node(owner).unwrap().clone();
    let unfit =
        Body::PublishNode { node: owner, attachments, heartbeat, feature_level: 3, unfit: stalled.into(), starts: 0 };
    assert_eq!(log.refused(unfit).subject, "feature_level", "an older build would go on giving it VIPs");
    log.at_level(3);
    assert_eq!(log.publish(owner, 3, stalled), Effect::Changed);
    assert_eq!(log.publish(owner, 3, stalled), Effect::Unchanged);
    let vip = log.table.vip(ip("192.168.2.100")).unwrap().clone();
    assert_eq!(vip.intent, Some(other));
    // Its lease ends, and a new one is ready: it still says so.
    log.fence(owner);
    log.open_and_ready(owner);
    assert_eq!(log.owner("192.168.2.100").unwrap().node, other);
    assert!(!log.table.is_able(owner, &vip));
    log.publish(owner, 3, "");
    assert!(log.table.is_able(owner, &vip));
    assert_eq!(log.owner("192.168.2.100").unwrap().node, other, "nothing moves without need");
}

#[test]
fn an_operators_word_ends_a_lease_and_no_other_one() {
    let (mut log, ids) = Log::with_nodes(2);
    log.at_level(3);
    log.mutate(vec![vip("192.168.2.100")]);
    let owner = log.owner("192.168.2.100").unwrap();
    let fence = |lease| Body::Fence { node: owner.node, lease, evidence: Evidence::Operator, heard: Vec::new() };
    assert_eq!(log.ok(fence(LeaseId(owner.lease.0 + 1))), Effect::Unchanged, "of another process");
    assert_eq!(log.ok(fence(owner.lease)), Effect::Changed);
    let now = log.owner("192.168.2.100").unwrap().node;
    assert!(now != owner.node && ids.contains(&now));
}

#[test]
fn a_node_moves_to_an_address_that_nobody_has() {
    let (mut log, ids) = Log::with_nodes(2);
    log.at_level(3);
    let set = |node, address: &str| Body::SetNodeAddress { node, address: address.into() };
    let taken = log.table.node(ids[1]).unwrap().address.clone();
    assert_eq!(log.refused(set(ids[0], &taken)).subject, "address");
    assert_eq!(log.refused(set(99, "10.77.9.9:7401")).kind, RejectionKind::NotFound);
    assert_eq!(log.ok(set(ids[0], "10.77.9.9:7401")), Effect::Changed);
    assert_eq!(log.ok(set(ids[0], "10.77.9.9:7401")), Effect::Unchanged);
    assert_eq!(log.table.node(ids[0]).unwrap().address, "10.77.9.9:7401");
}

#[test]
fn a_snapshot_is_restored_by_one_entry_whatever_has_changed_places() {
    let (mut log, _) = Log::with_nodes(1);
    log.at_level(3);
    let settings = |failback_s| Mutation::PatchSettings(SettingsPatch { failback_s, ..SettingsPatch::default() });
    log.mutate(vec![
        vip("192.168.2.100"),
        service("sa", "192.168.2.100", &[(1001, 1001)]),
        service("sb", "192.168.2.100", &[(1002, 1002)]),
        settings(Some(600)),
    ]);
    log.mutate(vec![backend("sa", "192.168.2.50")]);
    let bytes = encode_saved(&log.table);
    let secret = log.table.hash_seed().to_be_bytes();
    assert!(!bytes.windows(secret.len()).any(|window| window == secret), "the hash seed is in the file");
    let cluster = log.table.cluster();
    assert!(!bytes.windows(16).any(|window| window == cluster.as_bytes()), "the cluster's id is in the file");
    // Ports change places; the backend's address becomes a VIP, and the VIP's a backend.
    let port = |first| PortRange { protocol: Protocol::Tcp, first, last: first };
    let ports = |label: &str, first| {
        Mutation::UpdateService(ServicePatch { ports: Some(vec![port(first)]), ..ServicePatch::of(name(label)) })
    };
    log.mutate(vec![ports("sa", 1002), ports("sb", 1001), settings(Some(60))]);
    log.mutate(vec![
        Mutation::DeleteVip { address: ip("192.168.2.100"), cascade: true },
        vip("192.168.2.50"),
        service("sa", "192.168.2.50", &[(1001, 1001)]),
        service("sb", "192.168.2.50", &[(1002, 1002)]),
    ]);
    let owned = log.table.vip(ip("192.168.2.100")).and_then(|vip| vip.owner);
    log.ok(Body::Released { grants: owned.map(|owner| (ip("192.168.2.100"), owner.epoch)).into_iter().collect() });
    log.mutate(vec![backend("sb", "192.168.2.100")]);
    let saved = decode_saved(&bytes).unwrap();
    log.ok(restore(&log.table, &saved).unwrap());
    assert_eq!(log.table.settings().failback_s, 600);
    assert_eq!(log.table.service(&name("sa")).unwrap().settings.ports, [port(1001)]);
    assert!(log.table.backend(&name("sa"), ip("192.168.2.50")).is_some());
    assert_eq!(restore(&log.table, &saved), None, "what is restored needs nothing more");
}
mod health;
mod requests;
mod rules;
