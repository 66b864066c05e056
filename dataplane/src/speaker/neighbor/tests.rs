use std::net::Ipv4Addr;

use super::*;
use crate::forward::{
    compile::Compiler,
    spec::{BackendSpec, BackendState, PortSpec, ServiceSpec, TableSpec, VipSpec},
};

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0x66, 0x66]);

fn claim(mac: Mac) -> Claim {
    Claim { port: 0, address: A, mac, overrides: true }
}

fn heard(neighbors: &mut Neighbors, mac: Mac, now_ns: u64) -> Heard {
    neighbors.heard(&claim(mac), now_ns)
}

/// A backend that is known, and the moment when it was heard.
fn known(snapshot: &Snapshot) -> (Neighbors, u64) {
    let mut neighbors = Neighbors::default();
    neighbors.set_backends(snapshot, 0);
    assert_eq!(heard(&mut neighbors, MAC, SECOND), Heard::Taken);
    (neighbors, SECOND)
}

/// Asks all that is due until then; `answers` says who answers a question. When the first change came.
fn ask_until(
    neighbors: &mut Neighbors,
    until_ns: u64,
    answers: impl Fn(Option<Mac>) -> Option<Mac>,
) -> Option<(u64, Change)> {
    while let Some(at) = neighbors.next_due_ns().filter(|at| *at <= until_ns) {
        let Due { probes, changes, .. } = neighbors.due(at);
        if let Some(change) = changes.first() {
            return Some((at, *change));
        }
        for probe in probes {
            let answer = answers(probe.last_known).map(|mac| heard(neighbors, mac, at + MS));
            if let Some(Heard::Changed(change)) = answer {
                return Some((at + MS, change));
            }
        }
    }
    None
}

fn spec(addresses: &[IpAddr]) -> TableSpec {
    let backend = |(address, id): (&IpAddr, u64)| BackendSpec {
        id,
        address: *address,
        mac: None,
        weight: 1,
        state: BackendState::Active,
    };
    TableSpec {
        ports: vec![PortSpec {
            name: "eth0".into(),
            ifindex: 2,
            mac: Mac([2, 0, 0, 0, 0, 9]),
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: vec![(Ipv4Addr::new(10, 0, 255, 254).into(), 8)],
        }],
        vips: vec![VipSpec {
            address: Ipv4Addr::new(192, 0, 2, 1).into(),
            answer_on: vec![],
            rejects: false,
            services: vec![ServiceSpec {
                name: "s".into(),
                ports: vec![],
                by_source: false,
                resets_flows: false,
                table_size: 4093,
                backends: addresses.iter().zip(1..).map(backend).collect(),
            }],
        }],
        ..TableSpec::default()
    }
}

fn mac_of(snapshot: &Snapshot) -> Option<Mac> {
    snapshot.backends().next().unwrap().runtime.mac()
}

#[test]
fn an_unknown_backend_is_asked_for_until_it_answers_and_then_kept_fresh() {
    let mut neighbors = Neighbors::default();
    let snapshot = Compiler::default().compile(&spec(&[A]));
    neighbors.set_backends(&snapshot, 0);
    let broadcast = Probe { port: 0, target: A, last_known: None };
    assert_eq!(neighbors.due(0).probes, [broadcast]);
    assert_eq!(neighbors.due(FIRST_RETRY_NS - 1).probes, []);
    assert_eq!(neighbors.due(FIRST_RETRY_NS).probes, [broadcast]);
    heard(&mut neighbors, MAC, FIRST_RETRY_NS);
    assert_eq!(mac_of(&snapshot), Some(MAC));
    let refresh = neighbors.next_due_ns().unwrap();
    assert!(refresh <= RETRY_NS + 30 * SECOND);
    assert_eq!(neighbors.due(refresh).probes, [Probe { last_known: Some(MAC), ..broadcast }]);
}

#[test]
fn a_backend_that_falls_silent_is_forgotten_within_half_a_minute() {
    let mut neighbors = Neighbors::default();
    let snapshot = Compiler::default().compile(&spec(&[A]));
    neighbors.set_backends(&snapshot, 0);
    heard(&mut neighbors, MAC, 0);
    let mut broadcasts = 0;
    while let Some(at) = neighbors.next_due_ns().filter(|at| *at <= 30 * SECOND) {
        broadcasts += neighbors.due(at).probes.iter().filter(|probe| probe.last_known.is_none()).count();
    }
    assert!(broadcasts >= 5);
    assert_eq!(mac_of(&snapshot), None);
}

#[test]
fn a_new_address_is_learnt_and_a_group_address_is_not() {
    let mut neighbors = Neighbors::default();
    let mut compiler = Compiler::default();
    let snapshot = compiler.compile(&spec(&[A]));
    neighbors.set_backends(&snapshot, 0);
    heard(&mut neighbors, Mac::BROADCAST, 1);
    assert_eq!(mac_of(&snapshot), None);
    heard(&mut neighbors, MAC, 1);
    neighbors.heard(&Claim { port: 1, ..claim(OTHER) }, 1);
    neighbors.heard(&Claim { address: Ipv4Addr::new(10, 0, 0, 7).into(), ..claim(OTHER) }, 1);
    assert_eq!(mac_of(&snapshot), Some(MAC), "another port or another host changes nothing");
    let snapshot = compiler.compile(&spec(&[A, Ipv4Addr::new(10, 0, 0, 2).into()]));
    neighbors.set_backends(&snapshot, 2);
    assert_eq!(mac_of(&snapshot), Some(MAC), "a new table forgets nothing");
}

#[test]
fn many_backends_are_asked_for_in_bursts() {
    let addresses: Vec<IpAddr> = (0..200).map(|i| Ipv4Addr::new(10, 0, 0, i).into()).collect();
    let mut neighbors = Neighbors::default();
    neighbors.set_backends(&Compiler::default().compile(&spec(&addresses)), 0);
    let mut asked = 0;
    let mut bursts = 0;
    while asked < 200 {
        let at = neighbors.next_due_ns().unwrap();
        let probes = neighbors.due(at).probes;
        assert!(probes.len() <= BURST);
        asked += probes.len();
        bursts += 1;
    }
    assert_eq!(bursts, 4);
}

#[test]
fn a_claim_is_verified_with_the_station_that_has_the_address() {
    let snapshot = Compiler::default().compile(&spec(&[A]));
    let (mut neighbors, start) = known(&snapshot);
    let at = start + 100 * MS;
    assert_eq!(heard(&mut neighbors, OTHER, at), Heard::Taken);
    assert_eq!(mac_of(&snapshot), Some(MAC), "nothing changes by the claim alone");
    assert_eq!(neighbors.due(at).probes, [Probe { port: 0, target: A, last_known: Some(MAC) }], "asked at once");
    assert_eq!(heard(&mut neighbors, MAC, at + MS), Heard::Refused { claimed: OTHER }, "the answer refutes the claim");
    assert_eq!(
        heard(&mut neighbors, OTHER, at + 2 * MS),
        Heard::Refused { claimed: OTHER },
        "a flood of them asks nobody again"
    );
    assert!(neighbors.next_due_ns().unwrap() > at + SECOND / 2);
    // The claims go on, and whoever has the address goes on answering for it.
    for round in 0..100u64 {
        let now = at + round * 97 * MS;
        heard(&mut neighbors, OTHER, now);
        assert_eq!(ask_until(&mut neighbors, now + 50 * MS, |asked| asked.filter(|mac| *mac == MAC)), None);
    }
    assert_eq!(mac_of(&snapshot), Some(MAC));
}

#[test]
fn a_true_change_is_followed_within_two_seconds_announced_or_not() {
    let snapshot = Compiler::default().compile(&spec(&[A]));
    for announced in [true, false] {
        let (mut neighbors, start) = known(&snapshot);
        if announced {
            assert_eq!(heard(&mut neighbors, OTHER, start + MS), Heard::Taken);
        }
        let answers = |asked: Option<Mac>| (asked != Some(MAC)).then_some(OTHER);
        let (at, change) = ask_until(&mut neighbors, start + 30 * SECOND, answers).unwrap();
        assert_eq!(change, Change { address: A, from: MAC, to: OTHER });
        assert_eq!(mac_of(&snapshot), Some(OTHER));
        let limit = if announced { SECOND } else { 2 * SECOND };
        assert!(at < start + limit, "announced: {announced}, after {} ms", (at - start) / MS);
        heard(&mut neighbors, MAC, at + 10 * SECOND);
        assert_eq!(mac_of(&snapshot), Some(OTHER), "the former one claims it like anybody else");
    }
}

#[test]
fn an_advertisement_that_does_not_override_displaces_nothing() {
    let snapshot = Compiler::default().compile(&spec(&[A]));
    let (mut neighbors, start) = known(&snapshot);
    let weak = Claim { overrides: false, ..claim(OTHER) };
    neighbors.heard(&weak, start + MS);
    assert_eq!(neighbors.due(start + MS).probes.len(), 1, "but who has the address is asked");
    assert_eq!(ask_until(&mut neighbors, start + 5 * SECOND, |_| None), None);
    neighbors.heard(&weak, start + 5 * SECOND);
    assert_eq!(mac_of(&snapshot), Some(MAC));
    ask_until(&mut neighbors, start + 30 * SECOND, |_| None);
    assert_eq!(mac_of(&snapshot), None);
    neighbors.heard(&weak, start + 31 * SECOND);
    assert_eq!(mac_of(&snapshot), Some(OTHER), "where nothing is known it is as good as any");
}

#[test]
fn no_backend_takes_over_what_another_one_has_but_a_machine_may_have_several_addresses() {
    let b: IpAddr = Ipv4Addr::new(10, 0, 0, 2).into();
    let snapshot = Compiler::default().compile(&spec(&[A, b]));
    let (mut neighbors, start) = known(&snapshot);
    assert_eq!(neighbors.heard(&Claim { address: b, ..claim(OTHER) }, start), Heard::Taken);
    assert_eq!(heard(&mut neighbors, OTHER, start), Heard::Refused { claimed: OTHER }, "another backend's");
    let later = start + 60 * SECOND;
    ask_until(&mut neighbors, later, |_| None);
    assert_eq!(mac_of(&snapshot), None, "silent");
    for address in [A, b] {
        assert_eq!(neighbors.heard(&Claim { address, ..claim(OTHER) }, later), Heard::Taken);
    }
    assert!(snapshot.backends().all(|backend| backend.runtime.mac() == Some(OTHER)));
}

#[test]
fn questions_that_were_lost_here_do_not_make_a_claim_true() {
    let snapshot = Compiler::default().compile(&spec(&[A]));
    let (mut neighbors, start) = known(&snapshot);
    heard(&mut neighbors, OTHER, start + MS);
    let mut now = start + MS;
    while now < start + EXCUSED_NS {
        neighbors.due(now);
        neighbors.excuse_silence(now);
        now += UNICAST_RETRY_NS;
    }
    assert_eq!(mac_of(&snapshot), Some(MAC));
    // But not for ever.
    for _ in 0..20 {
        neighbors.due(now);
        neighbors.excuse_silence(now);
        now += UNICAST_RETRY_NS;
    }
    assert_eq!(mac_of(&snapshot), Some(OTHER));
}

#[test]
fn many_backends_are_refreshed_less_often() {
    let addresses: Vec<IpAddr> = (0..5000u32).map(|i| Ipv4Addr::from(0x0a00_0000 + i).into()).collect();
    let mut neighbors = Neighbors::default();
    neighbors.set_backends(&Compiler::default().compile(&spec(&addresses)), 0);
    for address in addresses {
        neighbors.heard(&Claim { address, ..claim(MAC) }, SECOND);
    }
    assert!(neighbors.due(5 * SECOND).probes.is_empty());
    assert_eq!(neighbors.due(6 * SECOND).probes.len(), BURST);
}

fn liveness(snapshot: &Snapshot) -> Liveness {
    snapshot.backends().next().unwrap().runtime.liveness()
}

#[test]
fn whoever_leaves_three_questions_unanswered_is_silent_and_is_asked_on() {
    let snapshot = Compiler::default().compile(&spec(&[A]));
    for was_known in [true, false] {
        let (mut neighbors, start) = known(&snapshot);
        if !was_known {
            (neighbors, _) = (Neighbors::default(), neighbors.set_backends(&snapshot, 0));
            neighbors.set_backends(&snapshot, start);
            assert_eq!(liveness(&snapshot), Liveness::Asked, "it may answer yet");
        }
        let first = neighbors.next_due_ns().unwrap();
        let (mut asked, mut silent, mut at) = (0, 0, first);
        while silent == 0 {
            at = neighbors.next_due_ns().unwrap();
            assert_ne!(liveness(&snapshot), Liveness::Silent);
            let due = neighbors.due(at);
            (asked, silent) = (asked + due.probes.len(), due.silent);
        }
        assert_eq!((asked, silent, liveness(&snapshot)), (4, 1, Liveness::Silent), "the fourth one comes too late");
        assert!(at - first < 2 * SECOND, "known: {was_known}, after {} ms", (at - first) / MS);
        // It is counted once, and asked every second, with and without a MAC address.
        for second in 1..20 {
            let due = neighbors.due(at + second * RETRY_NS);
            assert_eq!((due.probes.len(), due.silent), (1, 0));
        }
        neighbors.excuse_silence(at + 20 * SECOND);
        assert_eq!(liveness(&snapshot), Liveness::Silent, "what is lost later does not speak for it");
        assert_eq!(heard(&mut neighbors, MAC, at + 20 * SECOND), Heard::Taken);
        assert_eq!((liveness(&snapshot), neighbors.silent), (Liveness::Answers, 0));
    }
}

#[test]
fn who_is_not_asked_for_any_more_is_not_silent() {
    let b: IpAddr = Ipv4Addr::new(10, 0, 0, 2).into();
    let mut compiler = Compiler::default();
    let both = compiler.compile(&spec(&[A, b]));
    let mut neighbors = Neighbors::default();
    neighbors.set_backends(&both, 0);
    ask_until(&mut neighbors, 10 * SECOND, |_| None);
    assert!(both.backends().all(|backend| backend.runtime.liveness() == Liveness::Silent));
    assert_eq!(neighbors.silent, 2);
    let mut given = spec(&[A, b]);
    given.vips[0].services[0].backends[0].mac = Some(MAC);
    let given = compiler.compile(&given);
    neighbors.set_backends(&given, 11 * SECOND);
    let of: Vec<Liveness> = given.backends().map(|backend| backend.runtime.liveness()).collect();
    assert_eq!((of, neighbors.silent), (vec![Liveness::NotAsked, Liveness::Silent], 1));
}

#[test]
fn a_few_silent_ones_among_many_are_asked_every_second() {
    let addresses: Vec<IpAddr> = (0..5000u32).map(|i| Ipv4Addr::from(0x0a00_0000 + i).into()).collect();
    let mut neighbors = Neighbors::default();
    neighbors.set_backends(&Compiler::default().compile(&spec(&addresses)), 0);
    let mut asked = 0;
    while let Some(at) = neighbors.next_due_ns().filter(|at| *at <= 10 * SECOND) {
        for probe in neighbors.due(at).probes {
            asked += u32::from(probe.target == A);
            if probe.target != A {
                neighbors.heard(&Claim { address: probe.target, ..claim(MAC) }, at);
            }
        }
    }
    assert!((10..=12).contains(&asked), "{asked}");
}

#[test]
fn with_the_first_silent_one_all_others_are_asked() {
    let addresses: Vec<IpAddr> = (1..=10).map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect();
    let snapshot = Compiler::default().compile(&spec(&addresses));
    let mut neighbors = Neighbors::default();
    neighbors.set_backends(&snapshot, 0);
    // They are asked at different times of a second.
    for (address, tenth) in addresses.iter().zip(0..) {
        neighbors.heard(&Claim { address: *address, ..claim(MAC) }, SECOND + tenth * 100 * MS);
    }
    let mut turned = Vec::new();
    while let Some(at) = neighbors.next_due_ns().filter(|at| *at <= 10 * SECOND) {
        let silent = neighbors.due(at).silent;
        turned.extend((0..silent).map(|_| at));
    }
    assert_eq!(turned.len(), addresses.len());
    let spread = turned[9] - turned[0];
    assert!(spread <= 3 * UNICAST_RETRY_NS + 2 * BURST_INTERVAL_NS, "{} ms", spread / MS);
}
