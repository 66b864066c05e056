//! The whole way of a frame, without a socket: what hostile frames do to a worker, and that each is accounted for.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4::DestUnreachableHeader};

use fastrand::Rng;

use super::{pipeline::REPLIES_PER_S, *};
use crate::{
    forward::{
        compile::Compiler,
        flow::Tick,
        spec::{BackendSpec, BackendState, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, Timeouts, VipSpec},
        steering::Steering,
    },
    io::{departure::Parting, engine::Lost},
    packet::{self, FrameMeta, Mac, Packet, Protocol, VnetHeader, arp, ndp},
    query::{Outcome, Question, Report},
    speaker::permit::{Grant, LeaseClock, Owned},
    stats::WorkerStats,
    verdict::{DropReason, Verdict},
};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 1]);
const BACKEND: Mac = Mac([2, 0, 0, 0, 0, 5]);
const CLIENT: [u8; 4] = [192, 168, 1, 10];
const VIP: [u8; 4] = [192, 168, 2, 1];
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);

/// Frames that are run in `cargo test`. `LB_FUZZ_FRAMES=10000000` runs more.
const FRAMES: u64 = 300_000;

/// Takes everything.
struct Sink(u64);

impl Engine<Pipeline> for Sink {
    fn turn(&mut self, _: Duration, _: &mut Pipeline) -> io::Result<bool> {
        Ok(false)
    }

    fn send(&mut self, frames: &[Parting<'_>], _: &mut Pipeline) -> io::Result<()> {
        self.0 += frames.len() as u64;
        Ok(())
    }

    fn set_filter(&mut self, _: &[crate::io::cbpf::Instruction]) -> io::Result<()> {
        Ok(())
    }

    fn lost(&mut self) -> Lost {
        Lost { frames: 0, is_stuck: false }
    }
}

/// One interface, a VIP of each family that this node owns, TCP on some ports and UDP on one.
fn spec() -> TableSpec {
    let range = |protocol, first, last| PortRangeSpec { protocol, first, last };
    let vip = |address: IpAddr, id: u64| VipSpec {
        address,
        answer_on: vec![0],
        rejects: true,
        services: vec![ServiceSpec {
            name: format!("s{id}"),
            ports: vec![range(Protocol::Tcp, 80, 89), range(Protocol::Udp, 53, 53)],
            by_source: false,
            resets_flows: false,
            table_size: 4093,
            backends: vec![BackendSpec {
                id,
                address: [192, 168, 2, 5].into(),
                mac: Some(BACKEND),
                weight: 1,
                state: BackendState::Active,
            }],
        }],
    };
    TableSpec {
        hash_key: 7,
        ports: vec![PortSpec {
            name: "eth0".into(),
            ifindex: 2,
            mac: OWN,
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: vec![([192, 168, 2, 11].into(), 24), ("2001:db8:2::11".parse().unwrap(), 64)],
        }],
        vips: vec![vip(VIP.into(), 1), vip(VIP6.into(), 2)],
        ..TableSpec::default()
    }
}

fn owned() -> Arc<Owned> {
    let grants = [VIP.into(), VIP6.into()].map(|vip| Grant { vip, epoch: 1, first: false });
    Arc::new(Owned::new(1, &grants))
}

fn flow_table() -> FlowTable {
    FlowTable::new(1 << 12, Timeouts::default()).unwrap()
}

fn workers(count: usize) -> Vec<Worker> {
    let mut compiler = Compiler::default();
    compiler.set_workers(count);
    let published = Arc::new(Published::new(compiler.compile(&spec()), None));
    published.owned.store(owned());
    published.lease.set(u64::MAX);
    let (workers, inboxes) = Workers::new(Steering::new(count, 0x5eed_1234)).unwrap();
    let ends = workers.all.iter().cloned().zip(inboxes);
    ends.map(|end| Worker::new(published.clone(), &workers, end, flow_table(), None)).collect()
}

/// A worker that is alone, without a thread or a descriptor, and its lease.
fn pipeline() -> (Pipeline, Arc<LeaseClock>) {
    let lease = Arc::new(LeaseClock::default());
    lease.set(u64::MAX);
    let snapshot = Arc::new(Compiler::default().compile(&spec()));
    let mut pipeline = Pipeline::new(snapshot.clone(), flow_table(), Arc::default(), lease.clone());
    pipeline.set_time(boottime_ns());
    pipeline.adopt(snapshot);
    pipeline.own(owned());
    (pipeline, lease)
}

/// One sound frame of each kind that a worker looks into.
fn sound() -> Vec<Vec<u8>> {
    let v4 = || PacketBuilder::ethernet2(ROUTER.0, OWN.0).ipv4(CLIENT, VIP, 64);
    let v6 = || PacketBuilder::ethernet2(ROUTER.0, OWN.0).ipv6(CLIENT6.octets(), VIP6.octets(), 64);
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = Vec::new();
        write(&mut frame);
        frames.push(frame);
    };
    add(&|f| v4().tcp(40000, 80, 1, 9).syn().write(f, b"").unwrap());
    add(&|f| v4().tcp(40000, 81, 1, 9).ack(2).write(f, b"some data").unwrap());
    add(&|f| v4().tcp(40000, 99, 1, 9).syn().write(f, b"").unwrap());
    add(&|f| v4().udp(4000, 53).write(f, &[7; 64]).unwrap());
    add(&|f| v4().udp(4000, 9).write(f, &[7; 3000]).unwrap());
    add(&|f| v4().icmpv4_echo_request(1, 2).write(f, b"ping").unwrap());
    add(&|f| v6().tcp(40000, 80, 1, 9).syn().write(f, b"").unwrap());
    add(&|f| v6().udp(4000, 53).write(f, &[7; 64]).unwrap());
    add(&|f| v6().udp(4000, 9).write(f, &[7; 2000]).unwrap());
    add(&|f| v6().icmpv6_echo_request(1, 2).write(f, b"ping").unwrap());
    let (mut answer, mut answer6) = (Vec::new(), Vec::new());
    PacketBuilder::ethernet2([2; 6], [2; 6])
        .ipv4(VIP, CLIENT, 64)
        .tcp(80, 40000, 1, 9)
        .write(&mut answer, b"")
        .unwrap();
    let from_vip = PacketBuilder::ethernet2([2; 6], [2; 6]).ipv6(VIP6.octets(), CLIENT6.octets(), 64);
    from_vip.udp(53, 4000).write(&mut answer6, &[0; 40]).unwrap();
    let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
    add(&|f| v4().icmpv4(Icmpv4Type::DestinationUnreachable(needed.clone())).write(f, &answer[14..]).unwrap());
    add(&|f| v6().icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 }).write(f, &answer6[14..]).unwrap());
    for frame in 0..2 {
        // The first fragment and a later one, of either family.
        let mut v4 = frames[3].clone();
        (v4[18], v4[20], v4[21]) = (frame, if frame == 0 { 0x20 } else { 0 }, 9 * frame);
        let mut v6 = frames[7].clone();
        v6.splice(54..54, [17, 0, 0, if frame == 0 { 1 } else { 72 }, 0, 0, 0, 5]);
        (v6[20], v6[19]) = (44, v6[19] + 8);
        frames.extend([v4, v6]);
    }
    let station = [192, 168, 2, 254].into();
    frames.push(arp::request(ROUTER, station, VIP.into(), None).to_vec());
    frames.push(arp::probe(ROUTER, VIP.into()).to_vec());
    frames.extend(arp::announcements(ROUTER, VIP.into()).map(|frame| frame.to_vec()));
    frames.push(ndp::solicitation(ROUTER, CLIENT6, VIP6, None).to_vec());
    frames.push(ndp::solicitation(ROUTER, CLIENT6, VIP6, Some(OWN)).to_vec());
    frames.push(ndp::probe(ROUTER, VIP6).to_vec());
    frames.push(ndp::announcement(ROUTER, VIP6).to_vec());
    frames
}

/// A few bytes changed, mostly in the headers; or cut, stretched, or stuttered.
fn mutate(random: &mut Rng, frame: &mut Vec<u8>) {
    for _ in 0..1 + random.usize(..6) {
        let len = frame.len().max(1);
        let reach = if random.usize(..4) == 0 { len } else { 80 };
        let at = random.usize(..len.min(reach));
        match random.usize(..12) {
            0 => frame.truncate(at),
            1 => frame.extend_from_within(..frame.len().min(at)),
            2 => drop(frame.splice(at.min(frame.len()).., vec![0xff; at])),
            3 => frame.insert(at.min(frame.len()), 0),
            4 if at < frame.len() => drop(frame.remove(at)),
            5..8 if at < frame.len() => frame[at] ^= 1 << random.usize(..8),
            _ if at < frame.len() => frame[at] = random.u8(..),
            _ => {}
        }
    }
}

fn judge(pipeline: &mut Pipeline, meta: FrameMeta, frame: &mut [u8]) -> Verdict {
    let mut peek = Peek::NOTHING;
    pipeline.peek(frame, &mut peek);
    pipeline.look_ahead(&mut peek);
    pipeline.look_closer(&peek);
    pipeline.judge(0, meta, frame, &peek)
}

/// Sends what has gathered; nothing of it is seen again.
fn empty_outbox(pipeline: &mut Pipeline) -> usize {
    pipeline.outbox.drain(..).count()
}

/// Frames received, and frames that have ended or wait, over all workers.
fn counted<'a>(all: impl Iterator<Item = &'a WorkerStats>) -> (u64, u64) {
    let empty = Compiler::default().compile(&TableSpec::default());
    let Report { totals, drops, .. } = Report::new(&all.collect::<Vec<_>>(), &WorkerStats::default(), &empty);
    let ended = totals.forwarded + totals.answered + drops.iter().map(|(_, count)| count).sum::<u64>();
    (totals.received, ended + totals.held)
}

#[test]
fn sound_frames_go_where_they_belong() {
    let (mut pipeline, _) = pipeline();
    let plain = |verdict| match verdict {
        Verdict::Forward { port, trailer, .. } => Verdict::Forward { port, trailer, backend: 0 },
        other => other,
    };
    let verdicts: Vec<Verdict> =
        sound().iter().map(|frame| plain(judge(&mut pipeline, FrameMeta::default(), &mut frame.clone()))).collect();
    let forward = Verdict::Forward { port: 0, trailer: 0, backend: 0 };
    let drop = Verdict::Drop;
    use DropReason::{ArpConflict, NdpConflict, Rejected};
    let expected = [
        forward,
        forward,
        drop(Rejected),
        forward,
        drop(Rejected),
        Verdict::Answer,
        forward,
        forward,
        drop(Rejected),
        Verdict::Answer,
        forward,
        forward,
        forward,
        forward,
        Verdict::Hold,
        forward,
        Verdict::Answer,
        Verdict::Answer,
        drop(ArpConflict),
        drop(ArpConflict),
        Verdict::Answer,
        Verdict::Answer,
        drop(NdpConflict),
        drop(NdpConflict),
    ];
    assert_eq!(verdicts, expected);
    let (received, ended) = counted(std::iter::once(&*pipeline.stats));
    assert_eq!(received, ended);
}

/// Judges a frame, and sees that only what may have changed has.
fn judge_by_the_laws(pipeline: &mut Pipeline, meta: FrameMeta, frame: &mut [u8], what: &str) -> Verdict {
    let (before, gathered) = (frame.to_vec(), pipeline.outbox.len());
    let verdict = judge(pipeline, meta, frame);
    match verdict {
        Verdict::Forward { trailer, .. } => {
            assert_eq!((&frame[..6], &frame[6..12]), (&BACKEND.0[..], &OWN.0[..]), "{what}");
            assert_eq!(frame[12..], before[12..], "{what}: {before:02x?}");
            let len = packet::fragments::len_without_trailer(&before).unwrap();
            assert!(usize::from(trailer) <= frame.len() - len, "{what}: of the packet nothing is left out");
        }
        // Into fragments that stand for the same packet.
        Verdict::Apart => {
            let parts: Vec<Vec<u8>> =
                pipeline.outbox[gathered..].iter().map(|sent| sent.frame.frame().to_vec()).collect();
            assert!(parts.len() > 1 && parts.iter().all(|part| part.len() <= 14 + 1500), "{what}");
            assert_eq!(before[20] & 0x40, 0, "{what}: DF");
            let payload = |frame: &[u8]| frame[14 + usize::from(frame[14] & 15) * 4..].to_vec();
            let together: Vec<u8> = parts.iter().flat_map(|part| payload(part)).collect();
            let len = packet::fragments::len_without_trailer(&before).unwrap();
            assert!(together == payload(&before[..len]), "{what}");
        }
        Verdict::Answer => assert_eq!(frame.len(), before.len(), "{what}"),
        Verdict::Deliver { .. } | Verdict::Hold | Verdict::HandOff | Verdict::Drop(_) => {
            assert_eq!(frame, before, "{what}");
        }
    }
    verdict
}

/// Whether this node may answer.
#[derive(Debug, Clone, Copy)]
enum Lease {
    Valid,
    Expired,
    /// Run out, and held on to.
    Held,
}

impl Lease {
    const ALL: [Self; 3] = [Self::Valid, Self::Expired, Self::Held];

    fn set(self, lease: &LeaseClock) {
        lease.set(if matches!(self, Self::Valid) { u64::MAX } else { 1 });
        lease.hold(matches!(self, Self::Held));
    }
}

/// The law of `explain`: what it says of a frame is what the judgement then does with it.
fn explain_and_judge(pipeline: &mut Pipeline, meta: FrameMeta, frame: &mut [u8], what: &str) -> Verdict {
    let explained = pipeline.explain_frame(0, meta, frame);
    let again = pipeline.explain_frame(0, meta, frame);
    assert_eq!(explained, again, "{what}: an explanation changes nothing");
    let verdict = judge_by_the_laws(pipeline, meta, frame, what);
    let expected = match verdict {
        Verdict::Forward { .. } | Verdict::Apart => Outcome::Forward,
        Verdict::Deliver { .. } => Outcome::Deliver,
        Verdict::Answer => Outcome::Answer,
        Verdict::Hold | Verdict::HandOff => Outcome::WithFirstFragment,
        Verdict::Drop(reason) => Outcome::Drop(reason),
    };
    assert_eq!(explained.outcome, expected, "{what}: {explained:?}");
    if let Verdict::Forward { port, .. } = verdict {
        assert_eq!(explained.interface.as_ref(), Some(&pipeline.snapshot.ports[usize::from(port)].name), "{what}");
        assert_eq!(explained.mac.map(|mac| mac.0.to_vec()), Some(frame[..6].to_vec()), "{what}");
        assert!(explained.backend.is_some(), "{what}");
    }
    verdict
}

/// What the fuzzer runs: the first byte says what the kernel tells beside the frame and how the lease is, the rest is the
/// frame. Twice, so that the second meets what the first has left behind; with a worker of its own, so that what is found
/// replays alone.
fn fuzz(input: &[u8]) {
    let Some((flags, frame)) = input.split_first() else { return };
    let vnet = if flags & 1 != 0 { VnetHeader::tcp_segments_of(1400) } else { VnetHeader::default() };
    let meta = FrameMeta { vlan_tagged: flags & 2 != 0, vnet };
    let (mut pipeline, lease) = pipeline();
    Lease::ALL[usize::from(flags >> 2) % Lease::ALL.len()].set(&lease);
    for what in ["once", "again"] {
        explain_and_judge(&mut pipeline, meta, &mut frame.to_vec(), what);
        pipeline.now_ns += 20_000;
    }
    pipeline.tick();
    empty_outbox(&mut pipeline);
    let (received, ended) = counted(std::iter::once(&*pipeline.stats));
    assert_eq!(received, ended);
}

/// Replays the corpus, and what a fuzzer has found, beside it in `__fuzz__`; then tries some of its own. For longer:
/// `cargo bolero test -p lb-dataplane worker::tests::fuzzed_frames_keep_the_laws` (cargo-bolero, with a nightly compiler).
#[test]
fn fuzzed_frames_keep_the_laws() {
    bolero::check!().for_each(fuzz);
}

/// Writes the corpus: a sound frame of each kind, plain, as a GSO frame, with a tag, and by a lease that has run out or is
/// held.
#[test]
#[ignore = "only when the kinds of frames have changed"]
fn write_the_corpus() {
    let directory =
        concat!(env!("CARGO_MANIFEST_DIR"), "/src/worker/__fuzz__/worker__tests__fuzzed_frames_keep_the_laws/corpus");
    std::fs::create_dir_all(directory).unwrap();
    for (number, frame) in sound().iter().enumerate() {
        for flags in [0, 1, 2, 4, 8u8] {
            let path = format!("{directory}/{number:02}-{flags}");
            std::fs::write(path, [&[flags][..], &frame[..frame.len().min(600)]].concat()).unwrap();
        }
    }
}

#[test]
fn mutated_frames_are_all_accounted_for_and_only_addresses_change() {
    let frames = std::env::var("LB_FUZZ_FRAMES").ok().and_then(|count| count.parse().ok()).unwrap_or(FRAMES);
    let seed = std::env::var("LB_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let (sound, mut random, (mut pipeline, lease)) = (sound(), Rng::with_seed(seed), pipeline());
    let (mut forwarded, mut sent) = (0, 0);
    for number in 0..frames {
        let mut frame = sound[random.usize(..sound.len())].clone();
        mutate(&mut random, &mut frame);
        let vnet = if random.usize(..20) == 0 { VnetHeader::tcp_segments_of(1400) } else { VnetHeader::default() };
        let meta = FrameMeta { vlan_tagged: random.usize(..50) == 0, vnet };
        let state = Lease::ALL[random.usize(..40) % 20 % Lease::ALL.len()];
        state.set(&lease);
        let what = format!("frame {number} of seed {seed}, lease {state:?}");
        let verdict = explain_and_judge(&mut pipeline, meta, &mut frame, &what);
        forwarded += u64::from(matches!(verdict, Verdict::Forward { .. }));
        pipeline.now_ns += 20_000;
        if number % 64 == 0 {
            pipeline.tick();
            sent += empty_outbox(&mut pipeline);
        }
    }
    // What waits is given up in the end.
    pipeline.now_ns += 60_000_000_000;
    pipeline.tick();
    empty_outbox(&mut pipeline);
    assert_eq!(pipeline.stats.held.get(), 0);
    let (received, ended) = counted(std::iter::once(&*pipeline.stats));
    assert_eq!((received, ended), (frames, frames));
    assert!(forwarded > frames / 100, "only {forwarded} of {frames} were forwarded: this shows nothing");
    assert!(sent > 0);
}

/// Gives a frame to a worker that need not be the right one, and lets all of them go on until nothing is on its way.
fn arrive(workers: &mut [Worker], at: usize, frame: &[u8], sink: &mut Sink) -> Verdict {
    let verdict = judge(&mut workers[at].pipeline, FrameMeta::default(), &mut frame.to_vec());
    for worker in workers {
        worker.open_mail();
        worker.send_outbox(sink).unwrap();
    }
    verdict
}

#[test]
fn a_frame_is_judged_by_the_worker_that_has_its_flow() {
    let mut workers = workers(3);
    let mut sink = Sink(0);
    let (mut alone, _) = pipeline();
    for (at, frame) in sound().iter().enumerate() {
        let expected = judge(&mut alone, FrameMeta::default(), &mut frame.clone());
        // Also where the kernel has not found the right one.
        let verdicts: Vec<Verdict> = (0..3).map(|worker| arrive(&mut workers, worker, frame, &mut sink)).collect();
        let here = verdicts.iter().filter(|verdict| **verdict != Verdict::HandOff).count();
        if !matches!(packet::parse(frame), Packet::Fragment(_)) {
            assert_eq!(here, 1, "frame {at}: {verdicts:?}");
            assert!(verdicts.contains(&expected), "frame {at}: {verdicts:?} and not {expected:?}");
        }
    }
    let (received, ended) = counted(workers.iter().map(|worker| &*worker.handle.stats));
    assert_eq!((received, ended), (3 * sound().len() as u64, received));
    // Each flow is remembered once, by one worker.
    let flows = |of: &Pipeline| of.flows.entries(0..of.flows.slots(), Tick::from_ns(of.now_ns)).count();
    assert_eq!(workers.iter().map(|worker| flows(&worker.pipeline)).sum::<usize>(), flows(&alone));
}

#[test]
fn fragments_meet_at_the_worker_that_has_the_flow_in_any_order() {
    let whole = sound().swap_remove(3);
    let part = |offset: u8, more: bool, client: u8| {
        let mut frame = whole[..34].to_vec();
        frame.extend_from_slice(&whole[34 + usize::from(offset) * 8..][..24]);
        (frame[17], frame[18], frame[20], frame[21]) = (44, client, u8::from(more) * 0x20, offset);
        frame[29] = client;
        frame
    };
    let mut crossed = 0;
    for client in 1..60u8 {
        let parts = [part(0, true, client), part(3, true, client), part(6, false, client)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let (mut workers, mut sink) = (workers(4), Sink(0));
            for at in order {
                let steering = Steering::new(4, 0x5eed_1234);
                let owner = steering.packet(&packet::parse(&parts[at])).unwrap();
                match arrive(&mut workers, owner, &parts[at], &mut sink) {
                    Verdict::Forward { .. } => sink.0 += 1,
                    Verdict::HandOff => crossed += 1,
                    Verdict::Hold => {}
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(sink.0, 3, "client {client}, order {order:?}");
            let (received, ended) = counted(workers.iter().map(|worker| &*worker.handle.stats));
            assert_eq!((received, ended), (3, 3));
        }
    }
    assert!(crossed > 50, "only {crossed} were handed over: this shows nothing");
}

/// A capture's frames are explained as they would be judged.
#[test]
fn explanations_say_what_the_judgement_does() {
    let mut frames = sound();
    let (tcp, udp, udp6, echo) = (frames[0].clone(), frames[3].clone(), frames[7].clone(), frames[5].clone());
    let tagged = |frame: &[u8], vlan: u8| {
        let mut frame = frame.to_vec();
        frame.splice(12..12, [0x81, 0, 0, vlan]);
        frame
    };
    let mut elsewhere = echo.clone();
    elsewhere[33] ^= 1;
    let mut unrelated = frames[10].clone();
    // The port of the VIP that is quoted.
    unrelated[14 + 20 + 8 + 20 + 1] = 99;
    let mut reply = arp::request(ROUTER, [192, 168, 2, 254].into(), VIP.into(), Some(OWN)).to_vec();
    reply[21] = 2;
    let mut advertised = ndp::announcement(ROUTER, CLIENT6).to_vec();
    advertised[..6].copy_from_slice(&OWN.0);
    frames.extend([
        tagged(&tcp, 0),
        tagged(&tcp, 5),
        too_big(&udp),
        too_big(&udp6),
        elsewhere,
        unrelated,
        reply,
        advertised,
    ]);
    let (mut pipeline, _) = pipeline();
    for (at, frame) in frames.iter().enumerate() {
        // Fragments depend on those before them.
        if matches!(packet::parse(frame), Packet::Fragment(_)) {
            continue;
        }
        let explained = pipeline.explain(&Question::Frame(frame.clone()));
        let (vlan_tagged, mut untagged) = match packet::vlan(frame) {
            Some((number, untagged)) => (number != 0, untagged),
            None => (false, frame.clone()),
        };
        let verdict = judge(&mut pipeline, FrameMeta { vlan_tagged, vnet: VnetHeader::default() }, &mut untagged);
        let dropped = match explained.outcome {
            Outcome::Drop(reason) => Some(reason),
            _ => None,
        };
        let expected = match verdict {
            Verdict::Drop(reason) => Some(reason),
            _ => None,
        };
        assert_eq!(dropped, expected, "frame {at}: {verdict:?} and {explained:?}");
    }
}

/// What a worker sends in answer to a frame.
fn answers(pipeline: &mut Pipeline, frame: &[u8]) -> Vec<Vec<u8>> {
    let verdict = judge(pipeline, FrameMeta::default(), &mut frame.to_vec());
    assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
    pipeline.outbox.drain(..).map(|outgoing| outgoing.frame.frame().to_vec()).collect()
}

/// The same with a longer payload, too long for the interface. IPv4 must not be fragmented.
fn too_big(of: &[u8]) -> Vec<u8> {
    let mut frame = of.to_vec();
    frame.resize(14 + 48 + 2000, 0);
    match frame[12] {
        0x08 => (frame[16], frame[17], frame[20]) = (7, 228, frame[20] | 0x40),
        _ => (frame[18], frame[19]) = (7, 216),
    }
    frame
}

#[test]
fn of_fragments_that_are_too_big_the_first_is_complained_of() {
    let (mut pipeline, _) = pipeline();
    let sound = sound();
    let [first4, first6, later4, later6] = &sound[12..16] else { panic!() };
    for (first, later) in [(first4, later4), (first6, later6)] {
        let (first, mut later) = (too_big(first), too_big(later));
        match later[12] {
            0x08 => (later[18], later[21]) = (first[18], 250),
            _ => (later[54 + 2], later[54 + 3]) = (7, 208),
        }
        for (frame, complaints) in [(&first, 1), (&later, 0)] {
            let answers = answers(&mut pipeline, frame);
            assert_eq!(answers.len(), complaints, "{frame:02x?}");
            assert!(answers.iter().all(|answer| answer[..6] == ROUTER.0), "{answers:02x?}");
        }
    }
    assert_eq!(pipeline.stats.dropped(DropReason::TooBig).get(), 4);
}

#[test]
fn a_port_scan_does_not_stop_path_mtu_discovery() {
    let (mut pipeline, _) = pipeline();
    let sound = sound();
    let refused: usize = (0..REPLIES_PER_S).map(|_| answers(&mut pipeline, &sound[2]).len()).sum();
    assert_eq!(refused as u64, REPLIES_PER_S / 10, "the rate is limited");
    assert_eq!(answers(&mut pipeline, &too_big(&sound[3])).len(), 1);
}

#[test]
fn a_node_without_an_address_of_the_family_complains_in_the_name_of_the_vip() {
    let (mut pipeline, _) = pipeline();
    let mut snapshot = Compiler::default().compile(&spec());
    snapshot.ports[0].addresses.clear();
    pipeline.adopt(Arc::new(snapshot));
    let answers = answers(&mut pipeline, &too_big(&sound()[7]));
    let source: Option<&[u8]> = answers.first().map(|answer| &answer[22..38]);
    assert_eq!(source, Some(&VIP6.octets()[..]));
}

#[test]
fn what_a_worker_holds_when_it_ends_is_counted() {
    let mut workers = workers(2);
    let frames = sound();
    for frame in &frames {
        for worker in &mut workers {
            judge(&mut worker.pipeline, FrameMeta::default(), &mut frame.clone());
        }
    }
    let ended: Vec<Pipeline> = workers.into_iter().map(Worker::give_up).collect();
    let (received, ended) = counted(ended.iter().map(|pipeline| &*pipeline.stats));
    assert_eq!((received, ended), (2 * frames.len() as u64, received));
}

mod accelerated;
mod hostile;
mod owner;
