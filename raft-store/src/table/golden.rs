//! Golden bytes: what stands in logs, snapshots and messages between nodes never changes its meaning. The bytes of feature
//! level 1 were written by the version before there was a level 2.
//!
//! A new command, a new field or a new record adds lines here; none that is there changes.

use super::*;

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

const VIP: &str = "192.168.2.100";

fn commands() -> Vec<(&'static str, Command)> {
    let request = || RequestId::parse("r1").unwrap();
    let guarded = |body: Body| Command { request: request(), expected_revision: 5, ..body.into() };
    let mac: MacAddr = "02:00:00:00:00:05".parse().unwrap();
    let cluster = Body::CreateCluster {
        cluster: Uuid::from_u128(7),
        cluster_name: name("lb"),
        hash_seed: 9,
        heartbeat_key: 11,
        node: new_node("lb1"),
    };
    let attachment = Attachment {
        interface: "eth0".into(),
        mac,
        address: ip("192.168.2.2"),
        prefix_len: 24,
        hears: vec![4, 7],
        silence: Silence::None,
        gateway_silence: Silence::None,
    };
    let network: Cidr = "192.168.2.0/24".parse().unwrap();
    let heartbeat = vec!["10.77.1.9:7401".parse().unwrap(), "[2001:db8::9]:7401".parse().unwrap()];
    let fence = |evidence, heard| Body::Fence { node: 1, lease: LeaseId(3), evidence, heard };
    let withdrawal = Withdrawal { supporter: 4, lease: LeaseId(8), as_of: 20 };
    let settings = ClusterSettings {
        timing: Timing::RELAXED,
        on_quorum_loss: QuorumLoss::Hold,
        failback_s: 600,
        flow_timeouts: FlowTimeouts { tcp_s: 100, fin_s: 5, udp_s: 7 },
    };
    let port = |protocol, first, last| PortRange { protocol, first, last };
    let creations = vec![
        Mutation::CreateVip(VipSettings {
            address: ip(VIP),
            prefer: Some(1),
            segment: Some("192.168.2.0/24".parse().unwrap()),
            unmatched: Unmatched::Reject,
        }),
        Mutation::CreateVip(VipSettings {
            address: ip("2001:db8::100"),
            prefer: None,
            segment: None,
            unmatched: Unmatched::Drop,
        }),
        Mutation::CreateService(ServiceSettings {
            affinity: Affinity::Source,
            table_size: 4093,
            ..ServiceSettings::new(name("web"), ip(VIP), vec![port(Protocol::Tcp, 80, 89), port(Protocol::Udp, 0, 0)])
        }),
        Mutation::CreateBackend(BackendSettings {
            weight: Weight::try_from(7).unwrap(),
            mac: Some(mac),
            state: AdminState::Drain,
            ..BackendSettings::new(name("web"), ip("192.168.2.50"))
        }),
        Mutation::CreateBackend(BackendSettings {
            state: AdminState::Down,
            ..BackendSettings::new(name("web"), ip("192.168.2.51"))
        }),
    ];
    let vip = |prefer, segment, unmatched| VipPatch { address: ip(VIP), prefer, segment, unmatched };
    let web = |ports, affinity| ServicePatch { ports, affinity, ..ServicePatch::of(name("web")) };
    let server =
        |last, weight, mac, state| BackendPatch { weight, mac, state, ..BackendPatch::of(name("web"), ip(last)) };
    let updates = vec![
        Mutation::UpdateVip(vip(Some(None), Some(None), Some(Unmatched::Drop))),
        Mutation::UpdateVip(vip(Some(Some(4)), None, None)),
        Mutation::UpdateService(web(Some(vec![port(Protocol::Tcp, 443, 443)]), Some(Affinity::Flow))),
        Mutation::UpdateService(web(None, None)),
        Mutation::UpdateBackend(server("192.168.2.50", Some(Weight::DEFAULT), Some(None), Some(AdminState::Active))),
        Mutation::UpdateBackend(server("192.168.2.51", None, Some(Some(mac)), None)),
    ];
    let deletions = vec![
        Mutation::DeleteBackend { service: name("web"), address: ip("192.168.2.50") },
        Mutation::DeleteService { name: name("web"), cascade: true },
        Mutation::DeleteVip { address: ip(VIP), cascade: false },
    ];
    let open = |previous| Body::OpenLease { node: 1, nonce: 99, previous };
    let released = vec![(ip(VIP), Epoch(9)), (ip("2001:db8::100"), Epoch(10))];
    vec![
        ("create_cluster", cluster.into()),
        ("add_node", Body::AddNode(NewNode { role: Role::Witness, ..new_node("lb2") }).into()),
        ("remove_node", Body::RemoveNode { node: 4, heartbeat_key: 12 }.into()),
        (
            "publish_node",
            Body::PublishNode {
                node: 1,
                attachments: vec![attachment.clone()],
                heartbeat,
                feature_level: 1,
                unfit: String::new(),
                starts: 0,
            }
            .into(),
        ),
        ("set_draining", guarded(Body::SetDraining { node: 1, draining: true })),
        ("open_lease", open(Some(LeaseId(3))).into()),
        ("open_first_lease", open(None).into()),
        ("ready", Body::Ready { node: 1, lease: LeaseId(3) }.into()),
        ("fence_own_release", fence(Evidence::OwnRelease, vec![4]).into()),
        ("fence_obituary", fence(Evidence::Obituary { nonce: 99 }, vec![]).into()),
        ("fence_withdrawals", fence(Evidence::Withdrawals(vec![withdrawal]), vec![4, 7]).into()),
        ("confirm", Body::Confirm { node: 1, lease: LeaseId(3), configuration: 6 }.into()),
        ("retract", Body::Retract { supporter: 4, supporter_lease: LeaseId(8), node: 1, lease: LeaseId(3) }.into()),
        ("update_settings", guarded(Body::UpdateSettings(settings))),
        ("rebalance", guarded(Body::Rebalance)),
        ("raise_feature_level", Body::RaiseFeatureLevel { level: 1 }.into()),
        ("released", Body::Released { grants: released }.into()),
        ("move_intent", guarded(Body::MoveIntent { vip: ip(VIP), to: 4 })),
        ("create_all", guarded(Body::Mutate(creations))),
        ("update_all", Body::Mutate(updates).into()),
        ("delete_all", Body::Mutate(deletions).into()),
        // Feature level 2.
        (
            "patch_settings",
            guarded(Body::PatchSettings(SettingsPatch {
                heartbeat_ms: Some(5),
                lease_ms: Some(36),
                withdraw_ms: None,
                on_quorum_loss: Some(QuorumLoss::Release),
                failback_s: Some(0),
                flow_tcp_s: Some(100),
                flow_fin_s: None,
                flow_udp_s: Some(7),
            })),
        ),
        // Feature level 3.
        (
            "publish_unfit",
            Body::PublishNode {
                node: 4,
                attachments: vec![],
                heartbeat: vec![],
                feature_level: 3,
                unfit: "worker 0 has stopped".into(),
                starts: 0,
            }
            .into(),
        ),
        // Feature level 4.
        (
            "publish_starts",
            Body::PublishNode {
                node: 4,
                attachments: vec![],
                heartbeat: vec![],
                feature_level: 4,
                unfit: String::new(),
                starts: 7,
            }
            .into(),
        ),
        ("set_node_address", guarded(Body::SetNodeAddress { node: 4, address: "10.77.1.14:7401".into() })),
        ("fence_operator", fence(Evidence::Operator, vec![4]).into()),
        (
            "settings_among_mutations",
            guarded(Body::Mutate(vec![Mutation::PatchSettings(SettingsPatch {
                failback_s: Some(60),
                ..SettingsPatch::default()
            })])),
        ),
        (
            "envelope",
            Command {
                stamp_ms: 1_795_000_000_000,
                principal: Some(Principal { name: "uid 0".into(), node: 1 }),
                ..guarded(Body::RemoveNode { node: 4, heartbeat_key: 12 })
            },
        ),
        // Feature level 6.
        (
            "report",
            Body::Report {
                node: 4,
                lease: LeaseId(8),
                verdicts: vec![
                    Verdict {
                        backend: 9,
                        health: Health::Unreachable,
                        reason: "no answer to ARP".into(),
                        since_ms: 1_795_000_000_000,
                    },
                    Verdict { backend: 10, ..Verdict::default() },
                ],
            }
            .into(),
        ),
        (
            "publish_silence",
            Body::PublishNode {
                node: 4,
                attachments: vec![Attachment { silence: Silence::Lasting, ..attachment.clone() }],
                heartbeat: vec![],
                feature_level: 6,
                unfit: String::new(),
                starts: 7,
            }
            .into(),
        ),
        // Feature level 7.
        (
            "tiers",
            Body::Mutate(vec![
                Mutation::CreateService(ServiceSettings {
                    min_healthy: 3,
                    fails_open: true,
                    ..ServiceSettings::new(name("web"), ip(VIP), vec![port(Protocol::Tcp, 80, 80)])
                }),
                Mutation::UpdateService(ServicePatch {
                    min_healthy: Some(0),
                    fails_open: Some(false),
                    ..ServicePatch::of(name("web"))
                }),
                Mutation::CreateBackend(BackendSettings {
                    tier: Tier::Second,
                    ..BackendSettings::new(name("web"), ip("192.168.2.50"))
                }),
                Mutation::UpdateBackend(BackendPatch {
                    tier: Some(Tier::First),
                    ..BackendPatch::of(name("web"), ip("192.168.2.50"))
                }),
            ])
            .into(),
        ),
        // Feature level 8.
        ("checks", Body::Mutate(checks()).into()),
        (
            "report_checked",
            Body::Report {
                node: 8,
                lease: LeaseId(16),
                verdicts: vec![verdict(9, Health::Healthy), verdict(8, Health::Unhealthy)],
            }
            .into(),
        ),
        // Feature level 9.
        ("progress", Body::Progress { drained: vec![9, 11], shares: vec![Share { backend: 12, eighths: 3 }] }.into()),
        (
            "times",
            Body::Mutate(vec![
                Mutation::CreateService(ServiceSettings {
                    drain_timeout_s: 60,
                    slow_start_s: 30,
                    ..ServiceSettings::new(
                        name("web"),
                        ip(VIP),
                        vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }],
                    )
                }),
                Mutation::UpdateService(ServicePatch {
                    drain_timeout_s: Some(0),
                    slow_start_s: Some(8),
                    ..ServicePatch::of(name("web"))
                }),
            ])
            .into(),
        ),
        // Feature level 10.
        (
            "publish_gateway_silence",
            Body::PublishNode {
                node: 4,
                attachments: vec![Attachment { gateway_silence: Silence::Begun, ..attachment.clone() }],
                heartbeat: vec![],
                feature_level: 10,
                unfit: String::new(),
                starts: 7,
            }
            .into(),
        ),
        (
            "segments",
            Body::Mutate(vec![
                Mutation::CreateSegment(SegmentSettings { network, gateway: ip("192.168.2.254") }),
                Mutation::UpdateSegment(SegmentPatch { network, gateway: Some(ip("192.168.2.253")) }),
                Mutation::UpdateSegment(SegmentPatch::of(network)),
                Mutation::DeleteSegment { network },
            ])
            .into(),
        ),
        // Feature level 11.
        (
            "of_object",
            Command {
                expected_of: Expected::Object,
                asked: 0x0123_4567_89ab_cdef,
                ..guarded(Body::RemoveNode { node: 4, heartbeat_key: 12 })
            },
        ),
        ("of_configuration", Command { expected_of: Expected::Configuration, ..guarded(Body::Mutate(vec![])) }),
        (
            "reset",
            Body::Mutate(vec![
                Mutation::CreateService(ServiceSettings {
                    resets_flows: true,
                    ..ServiceSettings::new(
                        name("web"),
                        ip(VIP),
                        vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }],
                    )
                }),
                Mutation::UpdateService(ServicePatch { resets_flows: Some(false), ..ServicePatch::of(name("web")) }),
            ])
            .into(),
        ),
    ]
}

fn verdict(backend: u64, health: Health) -> Verdict {
    Verdict { backend, health, reason: "HTTP status 503".into(), since_ms: 1_795_699_200_000 }
}

/// One of each kind.
fn checks() -> Vec<Mutation> {
    let tls = Some(TlsProbe { server_name: "a.example".into(), verify: true });
    let http = HttpProbe {
        tls: tls.clone(),
        method: "GET".into(),
        host: "b.example".into(),
        path: "/healthz".into(),
        status_first: 200,
        status_last: 299,
        body: "ok".into(),
    };
    let probes = [
        Probe::Tcp,
        Probe::Icmp,
        Probe::Http(http),
        Probe::Grpc(GrpcProbe { tls: None, service: "a.Service".into() }),
        Probe::Udp(UdpProbe { payload: vec![1, 0], answer: vec![2] }),
        Probe::Dns(DnsProbe { name: "example.org".into(), record: DnsRecord::Aaaa }),
    ];
    let checks = probes.into_iter().zip([0, 0, 8443, 0, 53, 0]).map(|(probe, port)| Check { port, probe }).collect();
    vec![
        Mutation::CreateService(ServiceSettings {
            checks,
            check_interval_ms: 2000,
            check_timeout_ms: 1500,
            check_jitter_percent: 20,
            rise: 3,
            fall: 4,
            ..ServiceSettings::new(
                name("web"),
                ip(VIP),
                vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }],
            )
        }),
        Mutation::UpdateService(ServicePatch {
            checks: Some(Vec::new()),
            check_interval_ms: Some(0),
            ..ServicePatch::of(name("web"))
        }),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the golden files' hexadecimal digits stand for.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

#[test]
fn the_bytes_of_every_command_are_frozen() {
    let golden: Vec<(&str, &str)> =
        include_str!("golden/commands.txt").lines().map(|line| line.split_once(' ').unwrap()).collect();
    let commands = commands();
    let now: Vec<(&str, String)> =
        commands.iter().map(|(label, command)| (*label, hex(&encode_command(command)))).collect();
    for ((label, now), (_, command)) in now.iter().zip(&commands) {
        let then = golden.iter().find(|(of, _)| of == label).map(|(_, bytes)| *bytes);
        assert_eq!(Some(now.as_str()), then, "{label}");
        assert_eq!(decode_command(&bytes(now)).as_ref(), Ok(command), "{label}");
    }
    assert_eq!(now.len(), golden.len(), "a command is missing");
}

/// Every body has a line: the compiler asks for a new one here.
#[test]
fn no_body_is_without_golden_bytes() {
    let kind = |body: &Body| match body {
        Body::CreateCluster { .. } => 0,
        Body::Mutate(_) => 1,
        Body::AddNode(_) => 2,
        Body::RemoveNode { .. } => 3,
        Body::PublishNode { .. } => 4,
        Body::SetDraining { .. } => 5,
        Body::OpenLease { .. } => 6,
        Body::Ready { .. } => 7,
        Body::Fence { .. } => 8,
        Body::Confirm { .. } => 9,
        Body::Retract { .. } => 10,
        Body::UpdateSettings(_) => 11,
        Body::PatchSettings(_) => 12,
        Body::Rebalance => 13,
        Body::RaiseFeatureLevel { .. } => 14,
        Body::Released { .. } => 15,
        Body::MoveIntent { .. } => 16,
        Body::SetNodeAddress { .. } => 17,
        Body::Report { .. } => 18,
        Body::Progress { .. } => 19,
    };
    let mut kinds: Vec<u8> = commands().iter().map(|(_, command)| kind(&command.body)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, (0..=19).collect::<Vec<u8>>());
}

/// A log that the version before feature level 2 wrote makes the table that it made.
#[test]
fn a_recorded_log_makes_the_table_that_it_made() {
    let mut table = first_entries();
    for (index, line) in (14..).zip(include_str!("golden/log.txt").lines()) {
        // Refusals and repetitions are in it too.
        drop(table.apply(index, &decode_command(&bytes(line)).unwrap()));
    }
    assert_eq!(hex(&encode_table(&table)), hex(include_bytes!("golden/table.bin")));
    assert_eq!(decode_table(include_bytes!("golden/table.bin")), Ok(table));
}

/// Three nodes with ready leases, by entries 2 to 13.
fn first_entries() -> Table {
    let mut table = Table::default();
    let mut index = 1;
    let mut apply = |body: Body| {
        index += 1;
        table.apply(index, &body.into()).reply.result.unwrap();
        index
    };
    apply(Body::CreateCluster {
        cluster: Uuid::from_u128(7),
        cluster_name: name("lb"),
        hash_seed: 9,
        heartbeat_key: 11,
        node: new_node("lb1"),
    });
    apply(Body::AddNode(new_node("lb2")));
    apply(Body::AddNode(new_node("lb3")));
    for (node, last) in [1, 3, 4].into_iter().zip(2u8..) {
        let attachment = Attachment {
            interface: "eth0".into(),
            mac: MacAddr::try_from([2, 0, 0, 0, 0, last]).unwrap(),
            address: IpAddr::from([192, 168, 2, last]),
            prefix_len: 24,
            hears: Vec::new(),
            silence: Silence::None,
            gateway_silence: Silence::None,
        };
        let heartbeat = vec!["10.77.1.9:7401".parse().unwrap()];
        let before = apply(Body::PublishNode {
            node,
            attachments: vec![attachment],
            heartbeat,
            feature_level: 1,
            unfit: String::new(),
            starts: 0,
        });
        apply(Body::OpenLease { node, nonce: before, previous: None });
        apply(Body::Ready { node, lease: LeaseId(before + 1) });
    }
    table
}

#[test]
fn what_is_not_known_is_too_new_and_never_damaged() {
    let too_new = |bytes: &[u8]| matches!(decode_command(bytes), Err(DecodeError::TooNew { .. }));
    let command = encode_command(&Body::RemoveNode { node: 4, heartbeat_key: 12 }.into());
    // An unknown field of the envelope: tag 99, varint 1.
    assert!(too_new(&[&command[..], &[0x98, 0x06, 1]].concat()));
    // An unknown body: tag 90, an empty message; and a command without any.
    assert!(too_new(&[8, 1, 0xd2, 0x05, 0]));
    assert!(too_new(&[8, 1]));
    // A level that is not known, whatever else stands there.
    assert!(too_new(&[8, 99, 0xd2, 0x05, 0]));
    // An unknown value of a closed set, deep inside: add_node with role 9.
    let node = encode_command(&Body::AddNode(new_node("lb2")).into());
    let role = node.windows(2).position(|pair| pair == [0x10, 1]).unwrap();
    let mut unknown = node.clone();
    unknown[role + 1] = 9;
    assert!(too_new(&unknown), "{:?}", decode_command(&unknown));
    // What can never have been written is no command.
    // A grant of a VIP with three bytes.
    let short = [8, 1, 0x5a, 9, 0x0a, 7, 0x0a, 3, 1, 2, 3, 0x10, 9];
    assert_eq!(decode_command(&short), Err(DecodeError::Field("vip")));
    assert!(matches!(decode_command(&[0xff; 5]), Err(DecodeError::Protobuf(_))));
    let table = encode_table(&first_entries());
    let more = [&table[..], &[0x98, 0x06, 1]].concat();
    assert!(matches!(decode_table(&more), Err(DecodeError::TooNew { .. })));
    assert!(matches!(decode_reply(&[0x98, 0x06, 1]), Err(DecodeError::TooNew { .. })));
}
