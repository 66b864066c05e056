//! What the accelerator's program makes of frames, beside what a worker makes of them: the same, or nothing.

use super::*;
use crate::{
    accel::{Accelerator, FRESH_S},
    forward::snapshot::Snapshot,
};

/// The loopback interface: a test run wants one that is there.
const LOOPBACK: u32 = 1;
/// linux/bpf.h, enum xdp_action
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
/// Frames of the short form. `LB_FUZZ_FRAMES=10000000` runs more.
const FRAMES: u64 = 60_000;

/// A worker that enters flows, the accelerator, and what compiles their tables. `None` where the kernel does not let us have one.
fn accelerated(redirects: bool, spec: &TableSpec) -> Option<(Pipeline, Arc<Accelerator>, Compiler)> {
    let Some(accelerator) = Accelerator::detached(LOOPBACK, redirects) else {
        eprintln!("skipped: the kernel takes no program from whom has no CAP_BPF");
        return None;
    };
    let accelerator = Arc::new(accelerator);
    let (mut pipeline, _) = pipeline();
    let mut compiler = Compiler::default();
    pipeline.accelerator = Some(accelerator.clone());
    adopt(&mut pipeline, &accelerator, &mut compiler, spec);
    pipeline.keep_accelerator();
    Some((pipeline, accelerator, compiler))
}

/// VIPs with one backend.
fn plain_spec() -> TableSpec {
    let mut spec = spec();
    spec.ports[0].ifindex = LOOPBACK;
    spec
}

fn adopt(pipeline: &mut Pipeline, accelerator: &Accelerator, compiler: &mut Compiler, spec: &TableSpec) {
    let timeouts = Timeouts { unseen_s: FRESH_S, ..spec.timeouts };
    let snapshot = Arc::new(compiler.compile(&TableSpec { timeouts, ..spec.clone() }));
    accelerator.follow(&snapshot);
    pipeline.adopt(snapshot);
}

/// The accelerator gets to know which flows are elsewhere.
fn settle(pipeline: &Pipeline, accelerator: &Accelerator) {
    settle_by(&pipeline.snapshot, pipeline, accelerator);
}

fn settle_by(snapshot: &Snapshot, pipeline: &Pipeline, accelerator: &Accelerator) {
    let mut sweep = accelerator.sweep(snapshot);
    for entry in pipeline.flows.entries(0..pipeline.flows.slots(), Tick::from_ns(pipeline.now_ns)) {
        snapshot.vip_of(entry.vip).into_iter().for_each(|vip| sweep.see(&entry.tuple(vip.address), entry.backend));
    }
    sweep.end();
}

/// Has the program and then the worker look at a frame. Whether the program has forwarded it, or what is wrong.
fn both(pipeline: &mut Pipeline, accelerator: &Accelerator, frame: &[u8]) -> Result<bool, String> {
    let ran = accelerator.run(frame, LOOPBACK);
    let mut judged = frame.to_vec();
    let verdict = judge(pipeline, FrameMeta::default(), &mut judged);
    empty_outbox(pipeline);
    match ran.verdict {
        XDP_PASS if ran.frame == frame => Ok(false),
        XDP_PASS => Err("it was changed and passed".into()),
        XDP_TX | XDP_REDIRECT => match verdict {
            Verdict::Forward { trailer: 0, .. } if ran.frame == judged => Ok(true),
            _ => Err(format!("the worker says {verdict:?} and {judged:02x?}, the program {:02x?}", ran.frame)),
        },
        other => Err(format!("the program ends with {other}")),
    }
}

/// As in life: what the program forwards the worker does not see. Which backend's it is, or why not.
fn live(pipeline: &mut Pipeline, accelerator: &Accelerator, frame: &[u8]) -> (bool, Option<Vec<u8>>) {
    let ran = accelerator.run(frame, LOOPBACK);
    if ran.verdict != XDP_PASS {
        return (true, Some(ran.frame[..6].to_vec()));
    }
    let mut judged = frame.to_vec();
    let verdict = judge(pipeline, FrameMeta::default(), &mut judged);
    empty_outbox(pipeline);
    (false, matches!(verdict, Verdict::Forward { .. }).then(|| judged[..6].to_vec()))
}

/// A worker that sees one packet of a flow in a minute takes it for no other, whatever its table of backends has become meanwhile.
#[test]
fn a_flow_that_a_worker_seldom_sees_keeps_its_backend() {
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 6]);
    for after in [None, Some(0x04), Some(0x02), Some(0x11)] {
        let mut spec = plain_spec();
        spec.timeouts.fin_s = 10;
        let Some((mut pipeline, accelerator, mut compiler)) = accelerated(false, &spec) else { return };
        let data = sound()[1].clone();
        let flagged = |flags: u8| {
            let mut frame = data.clone();
            frame[47] = flags;
            frame
        };
        // The program's clock cannot be set: what is past is so for both.
        let end_ns = pipeline.now_ns;
        let go_to = |pipeline: &mut Pipeline, before_s: u64| pipeline.set_time(end_ns - before_s * 1_000_000_000);
        go_to(&mut pipeline, 50);
        let seen: Vec<_> = (0..4).map(|_| live(&mut pipeline, &accelerator, &data)).collect();
        assert!(seen.iter().all(|(_, to)| to.as_deref() == Some(&BACKEND.0[..])) && seen[3].0, "{seen:?}");
        // The backend that it has takes no new flows any more, and another one does.
        let backends = &mut spec.vips[0].services[0].backends;
        backends[0].state = BackendState::Draining;
        let address = [192, 168, 2, 6].into();
        backends.push(BackendSpec { id: 7, address, mac: Some(OTHER), weight: 1, state: BackendState::Active });
        adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
        // The worker has seen its first packets alone, and then a segment that changes what it knows.
        if let Some(flags) = after {
            go_to(&mut pipeline, 34);
            assert!(!live(&mut pipeline, &accelerator, &flagged(flags)).0, "{flags:#x} is for the worker");
        }
        // A SYN opens another connection, which a drained backend does not get.
        let kept = if after == Some(0x02) { OTHER } else { BACKEND };
        for before_s in [33, 22, 11] {
            go_to(&mut pipeline, before_s);
            let (_, to) = live(&mut pipeline, &accelerator, &data);
            assert_eq!(to.as_deref(), Some(&kept.0[..]), "{after:x?}, {before_s} s before the end");
        }
        // Whatever the program had in the meantime, the worker still knows.
        go_to(&mut pipeline, 0);
        accelerator.pause();
        assert_eq!(live(&mut pipeline, &accelerator, &data), (false, Some(kept.0.to_vec())), "{after:x?}");
    }
}

/// What stands in the table from before a SYN does not come back by a segment that was behind in the ring.
#[test]
fn an_entry_ends_with_its_connection() {
    let Some((mut pipeline, accelerator, _)) = accelerated(false, &plain_spec()) else { return };
    let data = sound()[1].clone();
    (0..4).for_each(|_| drop(live(&mut pipeline, &accelerator, &data)));
    let mut syn = data.clone();
    syn[47] = 0x02;
    // In the ring: data of the old connection, then the SYN.
    assert_eq!(accelerator.run(&syn, LOOPBACK).verdict, XDP_PASS);
    for frame in [&data, &syn] {
        judge(&mut pipeline, FrameMeta::default(), &mut frame.clone());
    }
    assert_eq!(accelerator.run(&data, LOOPBACK).verdict, XDP_PASS, "whose it is the worker says");
}

#[test]
fn frames_from_no_station_are_for_the_worker() {
    let Some((mut pipeline, accelerator, _)) = accelerated(false, &plain_spec()) else { return };
    let mut udp = sound()[3].clone();
    (0..3).for_each(|_| drop(live(&mut pipeline, &accelerator, &udp)));
    assert!(live(&mut pipeline, &accelerator, &udp).0);
    for source in [[0; 6], OWN.0, [0xff; 6], [3, 0, 0, 0, 0, 1]] {
        udp[6..12].copy_from_slice(&source);
        assert_eq!(live(&mut pipeline, &accelerator, &udp), (false, None), "{source:?}");
    }
}

#[test]
fn known_flows_are_forwarded_as_a_worker_does() {
    for redirects in [false, true] {
        let Some((mut pipeline, accelerator, _)) = accelerated(redirects, &plain_spec()) else { return };
        let mut look = |frame: &[u8]| both(&mut pipeline, &accelerator, frame).unwrap();
        let frames = sound();
        // TCP from the first segment after the SYN on that was seen twice, UDP from the third datagram on; either family.
        let v6 = |write: &dyn Fn(etherparse::PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8>| {
            write(PacketBuilder::ethernet2(ROUTER.0, OWN.0).ipv6(CLIENT6.octets(), VIP6.octets(), 64))
        };
        let data6 = v6(&|packet| {
            let mut frame = Vec::new();
            packet.tcp(40000, 80, 1, 9).ack(2).write(&mut frame, b"data").unwrap();
            frame
        });
        let [syn, data, udp, syn6, udp6] = [0, 1, 3, 6, 7].map(|at| frames[at].clone());
        assert!(!look(&syn) && !look(&data) && !look(&data) && look(&data), "TCP");
        assert!(!look(&udp) && !look(&udp) && look(&udp) && look(&udp), "UDP");
        assert!(!look(&syn6) && !look(&data6) && look(&data6), "TCP over IPv6");
        assert!(!look(&udp6) && !look(&udp6) && look(&udp6), "UDP over IPv6");
        // A SYN begins another connection on the same ports.
        let again = |flags: u8| {
            let mut frame = data.clone();
            frame[47] = flags;
            frame
        };
        assert!(!look(&again(0x02)) && !look(&data) && look(&data), "after a SYN");
        assert!(!look(&again(0x11)) && !look(&data) && look(&data), "a FIN is for the worker");
        let report = accelerator.report();
        assert_eq!(report.forwarded, 7);
        assert!(report.passed.contains(&("unknown", 13)), "{report:?}");
    }
}

#[test]
fn what_the_table_says_holds_for_the_accelerator_at_once() {
    let mut spec = plain_spec();
    let Some((mut pipeline, accelerator, mut compiler)) = accelerated(false, &spec) else { return };
    let udp = sound()[3].clone();
    let mut warm = |pipeline: &mut Pipeline, spec: &TableSpec| {
        adopt(pipeline, &accelerator, &mut compiler, spec);
        (0..4).map(|_| both(pipeline, &accelerator, &udp).unwrap()).collect::<Vec<_>>()
    };
    let known = [false, false, true, true];
    assert_eq!(warm(&mut pipeline, &spec), known);
    assert_eq!(warm(&mut pipeline, &spec), [true; 4], "an unchanged table");
    spec.vips[0].services[0].backends[0].state = BackendState::Draining;
    assert_eq!(warm(&mut pipeline, &spec), [true; 4], "a drained backend keeps its flows");
    spec.vips[0].services[0].backends[0].state = BackendState::Down;
    assert_eq!(warm(&mut pipeline, &spec), [false; 4], "one that is down has none");
    spec.vips[0].services[0].backends[0].state = BackendState::Active;
    let again = warm(&mut pipeline, &spec);
    assert!(!again[0] && again[3], "what it lost is not its own again, whoever has it now");
    spec.vips[0].services[0].ports[1].first = 52;
    assert!(!warm(&mut pipeline, &spec)[0], "other ports");
    spec.ports[0].mtu = 60;
    assert_eq!(warm(&mut pipeline, &spec), [false; 4], "it does not fit");
    spec.ports[0].mtu = 1500;
    assert!(warm(&mut pipeline, &spec)[3]);
    spec.peer_addresses = vec![(ROUTER, [192, 168, 2, 12].into())];
    assert_eq!(warm(&mut pipeline, &spec), [false; 4], "another load balancer has sent it");
    spec.peer_addresses.clear();
    assert!(warm(&mut pipeline, &spec)[3]);
    spec.vips.remove(0);
    assert_eq!(warm(&mut pipeline, &spec), [false; 4], "the VIP is gone");
}

#[test]
fn entries_are_good_for_a_while_and_nothing_without_a_worker() {
    let Some((mut pipeline, accelerator, _)) = accelerated(false, &plain_spec()) else { return };
    let udp = sound()[3].clone();
    let look = |pipeline: &mut Pipeline| both(pipeline, &accelerator, &udp).unwrap();
    // Entered by a clock that is behind.
    let now_ns = pipeline.now_ns;
    pipeline.set_time(now_ns - (u64::from(FRESH_S) + 1) * 1_000_000_000);
    assert_eq!([0; 4].map(|_| look(&mut pipeline)), [false; 4], "too old");
    pipeline.set_time(now_ns);
    assert!(!look(&mut pipeline) && look(&mut pipeline));
    accelerator.pause();
    assert_eq!([0; 3].map(|_| look(&mut pipeline)), [false; 3]);
    assert!(accelerator.report().passed.contains(&("stale", 3)));
    pipeline.keep_accelerator();
    assert!(look(&mut pipeline));
    // An old one is seen by a worker, but not when there has been none for a second.
    accelerator.pause();
    pipeline.set_time(now_ns - (u64::from(FRESH_S) + 1) * 1_000_000_000);
    assert!(!look(&mut pipeline));
    accelerator.go_on(now_ns - 1_000_000_000);
    assert!(look(&mut pipeline));
    pipeline.set_time(now_ns);
    pipeline.keep_accelerator();
    assert!(!look(&mut pipeline) && look(&mut pipeline));
    // What it has forwarded is counted where a worker's frames are.
    let (_, before) = counted(std::iter::once(&*pipeline.stats));
    pipeline.count_accelerated();
    let (received, ended) = counted(std::iter::once(&*pipeline.stats));
    assert_eq!(received, ended);
    assert_eq!(ended - before, accelerator.report().forwarded);
    let backend = pipeline.snapshot.backends().next().unwrap();
    assert!(backend.runtime.traffic.packets() >= 2);
}

/// Frames and their mutations, each of which the program passes as it is or forwards as the worker does.
#[test]
fn mutations_are_passed_or_forwarded_alike() {
    let Some((mut pipeline, accelerator, _)) = accelerated(false, &plain_spec()) else { return };
    look_at_mutations(&mut pipeline, &accelerator, &sound());
}

/// The same, where all new flows are the program's.
#[test]
fn mutations_are_passed_or_placed_alike() {
    let Some((mut pipeline, accelerator, _)) = placing(&shared_spec()) else { return };
    let placed = [true, false].into_iter().flat_map(|tcp| [new_v4(CLIENT, 9, tcp), new_v6(CLIENT6, 9, tcp)]);
    let frames: Vec<_> = sound().into_iter().chain(placed).collect();
    look_at_mutations(&mut pipeline, &accelerator, &frames);
    assert!(accelerator.report().placed > 1000);
}

fn look_at_mutations(pipeline: &mut Pipeline, accelerator: &Accelerator, sound: &[Vec<u8>]) {
    let frames = std::env::var("LB_FUZZ_FRAMES").ok().and_then(|frames| frames.parse().ok()).unwrap_or(FRAMES);
    let (mut random, mut forwarded) = (Rng::with_seed(7), 0);
    for round in 0..frames {
        let mut frame = sound[random.usize(..sound.len())].clone();
        if round % 4 > 0 {
            mutate(&mut random, &mut frame);
        }
        // The kernel runs nothing on less.
        if !(14..1500).contains(&frame.len()) {
            continue;
        }
        match both(pipeline, accelerator, &frame) {
            Ok(by_program) => forwarded += u64::from(by_program),
            Err(problem) => panic!("round {round}: {problem}: {frame:02x?}"),
        }
    }
    assert!(forwarded > frames / 50, "{forwarded} of {frames}");
}

#[test]
fn a_fault_of_the_accelerator_is_found() {
    let Some((mut pipeline, accelerator, _)) = accelerated(false, &plain_spec()) else { return };
    let udp = sound()[3].clone();
    assert_eq!([0; 3].map(|_| both(&mut pipeline, &accelerator, &udp)), [Ok(false), Ok(false), Ok(true)]);
    accelerator.confuse();
    assert!(both(&mut pipeline, &accelerator, &udp).is_err());
}

/// The last byte of the MAC addresses of several backends.
const BACKENDS: [u8; 5] = [1, 2, 3, 4, 5];

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 5, last])
}

/// VIPs of either family whose TCP on port 80 and UDP on port 53 several backends take.
fn shared_spec() -> TableSpec {
    let mut spec = plain_spec();
    for (vip, first) in spec.vips.iter_mut().zip([30, 40]) {
        let service = &mut vip.services[0];
        service.ports[0].last = 80;
        service.backends = BACKENDS
            .iter()
            .zip(first..)
            .map(|(last, id)| BackendSpec {
                id,
                address: [192, 168, 2, id as u8].into(),
                mac: Some(mac(*last)),
                weight: 1 + id as u16 % 3,
                state: BackendState::Active,
            })
            .collect();
    }
    spec
}

/// An accelerator that leaves no new flow to the workers.
fn placing(spec: &TableSpec) -> Option<(Pipeline, Arc<Accelerator>, Compiler)> {
    let (pipeline, accelerator, compiler) = accelerated(false, spec)?;
    // Nobody can know a flow of a new service.
    assert!(!accelerator.wants_sweep());
    accelerator.leave_nothing_to_workers();
    Some((pipeline, accelerator, compiler))
}

fn new_v4(source: [u8; 4], port: u16, tcp: bool) -> Vec<u8> {
    new_flow(PacketBuilder::ethernet2(ROUTER.0, OWN.0).ipv4(source, VIP, 64), port, tcp)
}

fn new_v6(source: Ipv6Addr, port: u16, tcp: bool) -> Vec<u8> {
    new_flow(PacketBuilder::ethernet2(ROUTER.0, OWN.0).ipv6(source.octets(), VIP6.octets(), 64), port, tcp)
}

fn new_flow(packet: etherparse::PacketBuilderStep<etherparse::IpHeaders>, port: u16, tcp: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    match tcp {
        true => packet.tcp(port, 80, 1, 64240).syn().write(&mut frame, b"").unwrap(),
        false => packet.udp(port, 53).write(&mut frame, b"question").unwrap(),
    }
    frame
}

#[test]
fn new_flows_beyond_the_budget_are_placed_where_a_worker_places_them() {
    let Some((mut pipeline, accelerator, _)) = placing(&shared_spec()) else { return };
    let mut random = Rng::with_seed(9);
    let (mut met, mut passed) = (std::collections::HashMap::<Vec<u8>, u32>::new(), 0);
    const EACH: u32 = 2000;
    for round in 0..EACH {
        let (port, tcp) = (random.u16(1..), round % 2 == 0);
        let v6 = Ipv6Addr::from(0x2001_0db8_0001 << 80 | u128::from(random.u64(..)));
        for frame in [new_v4([198, 18, random.u8(..), random.u8(..)], port, tcp), new_v6(v6, port, tcp)] {
            let mut judged = accelerator.run(&frame, LOOPBACK).frame;
            // One frame in 65536 has a checksum that looks partial.
            passed += u32::from(!both(&mut pipeline, &accelerator, &frame).unwrap());
            judged.truncate(6);
            *met.entry(judged).or_default() += 1;
        }
    }
    assert!(passed < 4, "{passed} were passed: {:?}", accelerator.report());
    assert!(BACKENDS.iter().all(|last| met.get(&mac(*last).0[..]).is_some_and(|times| *times > EACH / 5)), "{met:?}");
    let report = accelerator.report();
    assert_eq!(report.placed, report.forwarded);
    // They are the backends' new flows.
    let placed_at = |pipeline: &Pipeline| -> u64 {
        pipeline.snapshot.backends().map(|backend| backend.runtime.traffic.new_flows()).sum()
    };
    let before = placed_at(&pipeline);
    pipeline.count_accelerated();
    assert_eq!(placed_at(&pipeline) - before, report.placed);
}

#[test]
fn what_is_not_sure_to_be_new_or_sound_is_not_placed() {
    let Some((mut pipeline, accelerator, _)) = placing(&shared_spec()) else { return };
    let mut is_placed = |frame: &[u8]| both(&mut pipeline, &accelerator, frame).unwrap();
    assert!(is_placed(&new_v4(CLIENT, 1, true)) && is_placed(&new_v4(CLIENT, 1, false)));
    assert!(is_placed(&new_v6(CLIENT6, 1, true)) && is_placed(&new_v6(CLIENT6, 1, false)));
    // From where no host sends: VIPs, this node, all of a segment, loopback, groups.
    let own = [192, 168, 2, 11];
    for source in [VIP, own, [192, 168, 2, 255], [255; 4], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [239, 9, 9, 9]]
    {
        assert!(!is_placed(&new_v4(source, 2, true)) && !is_placed(&new_v4(source, 2, false)), "{source:?}");
    }
    let own6 = "2001:db8:2::11".parse().unwrap();
    for source in [VIP6, own6, Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, "ff02::1".parse().unwrap()] {
        assert!(!is_placed(&new_v6(source, 2, false)), "{source}");
    }
    // Of TCP, all but what opens a connection.
    for flags in [0x10, 0x12, 0x11, 0x14, 0x03, 0x06, 0x00] {
        let mut frame = new_v4(CLIENT, 3, true);
        frame[47] = flags;
        assert!(!is_placed(&frame), "{flags:#x}");
    }
    // Another port, another address.
    let mut frame = new_v4(CLIENT, 4, false);
    frame[37] = 54;
    assert!(!is_placed(&frame));
    let mut frame = new_v4(CLIENT, 4, false);
    frame[33] = 99;
    assert!(!is_placed(&frame));
    // A flow that the program knows is none.
    let syn = new_v4(CLIENT, 5, true);
    let mut data = syn.clone();
    data[47] = 0x10;
    assert_eq!([0; 3].map(|_| is_placed(&data)), [false, false, true]);
    let placed = accelerator.report().placed;
    assert!(!is_placed(&syn));
    assert_eq!(accelerator.report().placed, placed);
}

/// A worker that remembers a flow at the backend that it had sends it there: such a flow is never placed, and all others are.
#[test]
fn flows_that_are_elsewhere_are_not_placed() {
    let mut spec = shared_spec();
    let Some((mut pipeline, accelerator, mut compiler)) = placing(&spec) else { return };
    let udp: Vec<Vec<u8>> = (1..400).map(|port| new_v4(CLIENT, port, false)).collect();
    let tcp: Vec<Vec<u8>> = (1..400).map(|port| new_v6(CLIENT6, port, true)).collect();
    // The worker remembers all, and the program knows none of them: others have displaced them there.
    pipeline.accelerator = None;
    for frame in udp.iter().chain(&tcp) {
        judge(&mut pipeline, FrameMeta::default(), &mut frame.clone());
    }
    let tuple_of = |frames: &[Vec<u8>]| packet::flow(&frames[0]).unwrap().tuple;
    let (of_udp, of_tcp) = (tuple_of(&udp), tuple_of(&tcp));
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    assert!(accelerator.places(&of_udp) && accelerator.places(&of_tcp) && !accelerator.wants_sweep(), "the same table");

    let placed = |pipeline: &mut Pipeline, frames: &[Vec<u8>]| {
        let is_placed = |frame: &&Vec<u8>| both(pipeline, &accelerator, frame).unwrap();
        frames.iter().filter(is_placed).count()
    };
    for (weight, family) in [(9, &udp), (2, &udp), (9, &tcp)] {
        let changed = usize::from(packet::flow(&family[0]).unwrap().tuple.source == of_tcp.source);
        let before = pipeline.snapshot.clone();
        spec.vips[changed].services[0].backends[0].weight = weight;
        adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
        accelerator.leave_nothing_to_workers();
        let tuple = tuple_of(family);
        assert!(!accelerator.places(&tuple) && accelerator.wants_sweep());
        assert_eq!(placed(&mut pipeline, &family[..50]), 0, "as long as it is not known who is elsewhere");
        let unknown = if changed == 0 { new_v6(CLIENT6, 5000, true) } else { new_v4(CLIENT, 5000, false) };
        assert!(both(&mut pipeline, &accelerator, &unknown).unwrap(), "the other service goes on");
        settle_by(&before, &pipeline, &accelerator);
        assert!(!accelerator.places(&tuple), "who was elsewhere before says nothing");
        settle(&pipeline, &accelerator);
        assert!(accelerator.places(&tuple) && !accelerator.wants_sweep());
        let at_maglevs = placed(&mut pipeline, family);
        assert!((200..390).contains(&at_maglevs), "{at_maglevs}");
    }
    // Back to where all of the one service are at Maglev's backends, as far as they were not those of the other.
    spec.vips[0] = shared_spec().vips[0].clone();
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    settle(&pipeline, &accelerator);
    assert_eq!(placed(&mut pipeline, &udp), udp.len());

    // Flows of a backend that was down are known again when it takes its own, while Maglev says the same.
    spec.vips[0].services[0].backends[1].state = BackendState::Down;
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    settle(&pipeline, &accelerator);
    spec.vips[0].services[0].backends[1].state = BackendState::Draining;
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    assert!(accelerator.places(&of_udp), "the same table");
    let at_maglevs = placed(&mut pipeline, &udp);
    assert!((200..390).contains(&at_maglevs), "{at_maglevs}");

    spec.timeouts.udp_s -= 1;
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    assert!(accelerator.places(&of_udp), "nothing is known again that was forgotten");
    spec.timeouts.udp_s += 60;
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    assert!(!accelerator.places(&of_udp), "flows that were forgotten are known again");
    spec.vips[0].services[0].by_source = true;
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    settle(&pipeline, &accelerator);
    assert!(accelerator.places(&of_tcp) && !accelerator.places(&of_udp), "where the source decides");
    spec.vips.remove(1);
    adopt(&mut pipeline, &accelerator, &mut compiler, &spec);
    settle(&pipeline, &accelerator);
    assert!(!accelerator.places(&of_tcp), "the VIP is gone");
}

/// A worker gets new flows as long as they are not too many.
#[test]
fn new_flows_within_the_budget_are_for_the_workers() {
    let Some((pipeline, accelerator, _)) = placing(&shared_spec()) else { return };
    // With the next look at the counters it leaves to the workers what it should.
    pipeline.count_accelerated();
    // What could not be placed is no part of that.
    for port in 1..=20_000 {
        assert_eq!(accelerator.run(&new_v4(VIP, port, false), LOOPBACK).verdict, XDP_PASS);
    }
    let is_placed = |port: u16| accelerator.run(&new_v4(CLIENT, port, false), LOOPBACK).verdict != XDP_PASS;
    assert_eq!((1..=2000).filter(|port| is_placed(*port)).count(), 0);
}

#[test]
fn a_misplaced_flow_is_found() {
    let Some((mut pipeline, accelerator, _)) = placing(&shared_spec()) else { return };
    accelerator.misplace();
    let wrong = (1..100).filter(|port| both(&mut pipeline, &accelerator, &new_v4(CLIENT, *port, false)).is_err());
    assert!(wrong.count() > 20);
}
