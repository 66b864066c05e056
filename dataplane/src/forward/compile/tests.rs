use std::net::{IpAddr, Ipv4Addr};

use super::{
    super::{
        decide::{Place, decide},
        flow::{FlowTable, Tick},
        spec::{PortRangeSpec, PortSpec, Timeouts, VipSpec},
    },
    *,
};
use crate::{
    packet::{FlowPacket, Mac, Protocol, Tuple},
    verdict::DropReason,
};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 1));

fn backend(id: u64, weight: u16) -> BackendSpec {
    BackendSpec { id, address: IpAddr::from([10, 0, 0, id as u8]), mac: None, weight, state: BackendState::Active }
}

fn spec(backends: Vec<BackendSpec>) -> TableSpec {
    let range = |protocol, first, last| PortRangeSpec { protocol, first, last };
    TableSpec {
        hash_key: 0x1234_5678_9abc,
        ports: vec![PortSpec {
            name: "eth0".into(),
            ifindex: 2,
            mac: Mac([2, 0, 0, 0, 0, 9]),
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: vec![(IpAddr::from([10, 0, 0, 254]), 24), ("2001:db8::ff".parse().unwrap(), 64)],
        }],
        vips: vec![VipSpec {
            address: VIP,
            answer_on: vec![0],
            rejects: false,
            services: vec![ServiceSpec {
                name: "web".into(),
                ports: vec![range(Protocol::Udp, 53, 53), range(Protocol::Tcp, 80, 89), range(Protocol::Tcp, 0, 0)],
                by_source: false,
                resets_flows: false,
                table_size: 16381,
                backends,
            }],
        }],
        peers: vec![],
        peer_addresses: vec![],
        timeouts: Timeouts::default(),
    }
}

fn packet(source_port: u16, protocol: Protocol, port: u16) -> FlowPacket {
    let tuple = Tuple {
        source: [192, 168, 1, 10].into(),
        destination: VIP.into(),
        source_port,
        destination_port: port,
        protocol,
    };
    FlowPacket { tuple, opens: false, ends: false, resets: false, transport_at: 34, headers_len: 42 }
}

fn flows() -> FlowTable {
    FlowTable::new(1 << 17, Timeouts::default()).unwrap()
}

const NOW: u64 = 1 << 40;

fn address_of(snapshot: &Snapshot, flows: &mut FlowTable, packet: &FlowPacket) -> Result<IpAddr, DropReason> {
    let place = Place::find(snapshot, &packet.tuple)?;
    decide(snapshot, flows, packet, &place, Tick::from_ns(NOW)).map(|decision| decision.backend.address)
}

#[test]
fn ports_ranges_and_any_find_their_service() {
    let mut compiler = Compiler::default();
    let snapshot = compiler.compile(&spec(vec![backend(1, 1)]));
    let vip = snapshot.vip(VIP).unwrap();
    assert_eq!(vip.service(Protocol::Udp, 53), Some(0));
    assert_eq!(vip.service(Protocol::Udp, 54), None, "any is for TCP only");
    for port in [1, 79, 80, 85, 89, 90, 65535] {
        assert_eq!(vip.service(Protocol::Tcp, port), Some(0), "{port}");
    }
    assert!(snapshot.vip(IpAddr::from([192, 168, 2, 2])).is_none());
}

#[test]
fn all_ports_of_a_client_spread_within_two_percent_of_the_shares() {
    for weights in [[1, 1, 1, 1], [1, 2, 3, 4]] {
        for key in [1u128, 99, 0xfeed_beef_0000_0001_dead, u128::MAX - 5] {
            let backends = weights.iter().zip(1..).map(|(&weight, id)| backend(id, weight)).collect();
            let spec = TableSpec { hash_key: key, ..spec(backends) };
            let snapshot = Compiler::default().compile(&spec);
            let (mut flows, mut counts) = (flows(), BTreeMap::<IpAddr, f64>::new());
            for port in 0..=u16::MAX {
                let address = address_of(&snapshot, &mut flows, &packet(port, Protocol::Udp, 53)).unwrap();
                *counts.entry(address).or_default() += 1.0;
            }
            let total: u16 = weights.iter().sum();
            for (weight, (address, count)) in weights.iter().zip(counts) {
                let expected = 65536.0 * f64::from(*weight) / f64::from(total);
                assert!((count - expected).abs() <= 0.02 * expected, "{address}: {count} of {expected}, key {key}");
            }
        }
    }
}

#[test]
fn few_flows_of_many_clients_spread_as_chance_has_it() {
    for key in 0..20u128 {
        let weights = [1u16, 2, 3, 4];
        let backends = weights.iter().zip(1..).map(|(&weight, id)| backend(id, weight)).collect();
        let spec = TableSpec { hash_key: key * 0x1_0000_0001_0000_0001 + 77, ..spec(backends) };
        let snapshot = Compiler::default().compile(&spec);
        let (mut flows, mut counts) = (flows(), BTreeMap::<IpAddr, f64>::new());
        for i in 0..10_000u32 {
            let mut packet = packet(1024 + (i % 10) as u16 * 7, Protocol::Udp, 53);
            packet.tuple.source = Ipv4Addr::from(0x0a01_0000 + i / 10).into();
            *counts.entry(address_of(&snapshot, &mut flows, &packet).unwrap()).or_default() += 1.0;
        }
        for (weight, (address, count)) in weights.iter().zip(counts) {
            let expected = f64::from(*weight) / 10.0;
            assert!((count / 10_000.0 - expected).abs() < 0.015, "{address}: {count} of 10000, key {key}");
        }
    }
}

#[test]
fn a_flow_stays_when_a_backend_comes_and_moves_when_its_own_goes() {
    let mut compiler = Compiler::default();
    let mut flows = flows();
    let two = compiler.compile(&spec(vec![backend(1, 1), backend(2, 1)]));
    let ports: Vec<u16> = (1000..2000).collect();
    let at = |snapshot: &Snapshot, flows: &mut FlowTable| -> Vec<IpAddr> {
        ports.iter().map(|&p| address_of(snapshot, flows, &packet(p, Protocol::Tcp, 80)).unwrap()).collect()
    };
    let before = at(&two, &mut flows);
    let three = compiler.compile(&spec(vec![backend(1, 1), backend(2, 1), backend(3, 1)]));
    assert_eq!(at(&three, &mut flows), before, "a new backend takes no known flow");
    let one = compiler.compile(&spec(vec![backend(2, 1), backend(3, 1)]));
    let after = at(&one, &mut flows);
    for (before, after) in before.iter().zip(&after) {
        if *before == IpAddr::from([10, 0, 0, 2]) {
            assert_eq!(after, before, "a flow of another backend moved");
        } else {
            assert_ne!(after, before);
        }
    }
}

#[test]
fn a_draining_backend_keeps_its_flows_and_a_down_one_does_not() {
    let mut compiler = Compiler::default();
    let mut flows = flows();
    let known = packet(1, Protocol::Tcp, 80);
    let snapshot = compiler.compile(&spec(vec![backend(1, 1)]));
    let first = address_of(&snapshot, &mut flows, &known).unwrap();
    let with = |state| vec![BackendSpec { state, ..backend(1, 1) }, backend(2, 1)];
    let draining = compiler.compile(&spec(with(BackendState::Draining)));
    assert_eq!(address_of(&draining, &mut flows, &known), Ok(first));
    let opening = FlowPacket { opens: true, ..known };
    let second = IpAddr::from([10, 0, 0, 2]);
    assert_eq!(address_of(&draining, &mut flows, &opening), Ok(second), "a new connection on the same ports");
    assert_eq!(address_of(&draining, &mut flows, &packet(2, Protocol::Tcp, 80)), Ok(second));
    let down = compiler.compile(&spec(with(BackendState::Down)));
    assert_eq!(address_of(&down, &mut flows, &known), Ok(second));
    let none = compiler.compile(&spec(vec![BackendSpec { state: BackendState::Down, ..backend(1, 1) }]));
    assert_eq!(address_of(&none, &mut flows, &packet(3, Protocol::Tcp, 80)), Err(DropReason::NoBackend));
}

#[test]
fn the_flows_of_a_silent_backend_stay_if_they_are_of_tcp() {
    let (mut compiler, mut flows) = (Compiler::default(), flows());
    let known = [packet(1, Protocol::Tcp, 80), packet(1, Protocol::Udp, 53)];
    let snapshot = compiler.compile(&spec(vec![backend(1, 1)]));
    let first = known.map(|packet| address_of(&snapshot, &mut flows, &packet));
    let silent = BackendSpec { state: BackendState::Silent, ..backend(1, 1) };
    let snapshot = compiler.compile(&spec(vec![silent, backend(2, 1)]));
    let second = Ok(IpAddr::from([10, 0, 0, 2]));
    assert_eq!(known.map(|packet| address_of(&snapshot, &mut flows, &packet)), [first[0], second]);
    assert_eq!(address_of(&snapshot, &mut flows, &packet(2, Protocol::Tcp, 80)), second);
    // It is back: the flow of UDP stays where it is now.
    let snapshot = compiler.compile(&spec(vec![backend(1, 1), backend(2, 1)]));
    assert_eq!(known.map(|packet| address_of(&snapshot, &mut flows, &packet)), [first[0], second]);
}

#[test]
fn flows_of_tcp_whose_backend_has_gone_are_reset_where_that_is_wanted() {
    let (mut compiler, mut flows) = (Compiler::default(), flows());
    let known = [packet(1, Protocol::Tcp, 80), packet(1, Protocol::Udp, 53)];
    let with = |backends| {
        let mut spec = spec(backends);
        spec.vips[0].services[0].resets_flows = true;
        spec
    };
    let snapshot = compiler.compile(&with(vec![backend(1, 1)]));
    known.iter().for_each(|packet| assert!(address_of(&snapshot, &mut flows, packet).is_ok()));
    let second = Ok(IpAddr::from([10, 0, 0, 2]));
    let down = BackendSpec { state: BackendState::Down, ..backend(1, 1) };
    for backends in [vec![down, backend(2, 1)], vec![backend(2, 1)]] {
        let snapshot = compiler.compile(&with(backends));
        let found = known.map(|packet| address_of(&snapshot, &mut flows, &packet));
        assert_eq!(found, [Err(DropReason::BackendDown), second]);
        assert_eq!(address_of(&snapshot, &mut flows, &packet(2, Protocol::Tcp, 80)), second, "not known before");
    }
    // A connection that begins anew on the same ports is placed.
    let snapshot = compiler.compile(&with(vec![backend(2, 1)]));
    assert_eq!(address_of(&snapshot, &mut flows, &FlowPacket { opens: true, ..known[0] }), second);
    assert_eq!(address_of(&snapshot, &mut flows, &known[0]), second);
}

#[test]
fn a_backend_added_again_is_another_one() {
    let mut compiler = Compiler::default();
    let mut flows = flows();
    let snapshot = compiler.compile(&spec(vec![backend(1, 1)]));
    address_of(&snapshot, &mut flows, &packet(1, Protocol::Tcp, 80)).unwrap();
    let reference = snapshot.backends().next().unwrap().reference;
    let again = BackendSpec { id: 77, ..backend(1, 1) };
    let snapshot = compiler.compile(&spec(vec![again]));
    assert!(snapshot.backend(reference).is_none());
}

#[test]
fn counters_and_macs_survive_a_new_table() {
    let mut compiler = Compiler::default();
    let snapshot = compiler.compile(&spec(vec![backend(1, 1)]));
    let runtime = snapshot.backends().next().unwrap().runtime.clone();
    runtime.traffic.of(0).count(60);
    let mac = Mac([2, 0, 0, 0, 5, 5]);
    runtime.resolve(Some(mac), Liveness::Answers);
    let snapshot = compiler.compile(&spec(vec![backend(1, 9), backend(2, 1)]));
    let kept = snapshot.backends().find(|b| b.address == IpAddr::from([10, 0, 0, 1])).unwrap();
    assert_eq!((kept.runtime.mac(), kept.runtime.traffic.packets()), (Some(mac), 1));
    assert_eq!(kept.port, Some(0));
}

#[test]
fn affinity_by_source_ignores_ports() {
    let mut by_source = spec((1..=8).map(|id| backend(id, 1)).collect());
    by_source.vips[0].services[0].by_source = true;
    let snapshot = Compiler::default().compile(&by_source);
    let mut flows = flows();
    let first = address_of(&snapshot, &mut flows, &packet(1, Protocol::Tcp, 80));
    for port in 2..500 {
        assert_eq!(address_of(&snapshot, &mut flows, &packet(port, Protocol::Tcp, 80)), first);
    }
}

#[test]
fn a_vip_of_either_family_may_have_backends_of_the_other() {
    let mut both = spec(vec![]);
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    let backend_v6 = BackendSpec { address: "2001:db8::5".parse().unwrap(), ..backend(7, 1) };
    let services =
        vec![ServiceSpec { name: "v6".into(), backends: vec![backend(8, 1)], ..both.vips[0].services[0].clone() }];
    both.vips.push(VipSpec { address: v6, services, ..both.vips[0].clone() });
    both.vips[0].services[0].backends = vec![backend_v6];
    let snapshot = Compiler::default().compile(&both);
    let mut flows = flows();
    let for_v4 = packet(1, Protocol::Tcp, 80);
    let mut for_v6 = for_v4;
    (for_v6.tuple.source, for_v6.tuple.destination) = (IpAddr::V6("2001:db8:1::9".parse().unwrap()).into(), v6.into());
    assert_eq!(address_of(&snapshot, &mut flows, &for_v4), Ok("2001:db8::5".parse().unwrap()));
    assert_eq!(address_of(&snapshot, &mut flows, &for_v6), Ok(IpAddr::from([10, 0, 0, 8])));
    assert!(snapshot.backends().all(|backend| backend.port() == Some(0)), "both are on the segment");
}

#[test]
fn a_vip_added_again_has_no_flows_of_its_former_life() {
    let mut compiler = Compiler::default();
    let spec = spec(vec![backend(1, 1)]);
    let first = compiler.compile(&spec).vip(VIP).unwrap().id;
    assert_eq!(compiler.compile(&spec).vip(VIP).unwrap().id, first);
    compiler.compile(&TableSpec { vips: vec![], ..spec.clone() });
    assert_ne!(compiler.compile(&spec).vip(VIP).unwrap().id, first);
}

#[test]
fn a_backend_is_behind_the_narrowest_segment_that_has_a_carrier() {
    let mut spec = spec(vec![backend(20, 1)]);
    let narrow =
        PortSpec { name: "eth1".into(), addresses: vec![([10, 0, 0, 17].into(), 28)], ..spec.ports[0].clone() };
    spec.ports.push(narrow);
    let towards = |spec: &TableSpec| port_towards(spec, &spec.vips[0].services[0].backends[0]);
    assert_eq!(towards(&spec), Some(1));
    spec.ports[1].carrier = false;
    assert_eq!(towards(&spec), Some(0), "by the wider one while the other is cut off");
    spec.ports[0].carrier = false;
    assert_eq!(towards(&spec), Some(1));
    spec.ports[1].addresses[0].1 = 24;
    assert_eq!(towards(&spec), Some(0), "of two alike the first");
}
