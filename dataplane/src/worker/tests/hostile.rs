//! Frames by which others take what is not theirs, and rare ones that networks send for good reason.

use std::net::Ipv4Addr;

use super::*;
use crate::{forward::spec::PeerSpec, packet::fragments::len_without_trailer, stats::Conflict};

const NODE: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FIRST: Mac = Mac([2, 0, 0, 0, 0, 0x21]);
const SECOND: Mac = Mac([2, 0, 0, 0, 0, 0x22]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 3]);
const GATEWAY: Mac = Mac([2, 0, 0, 0, 0, 0xfe]);
const STRANGER: Mac = Mac([2, 0, 0, 0, 0x66, 0x66]);
const NODE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const VIP_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const BACKEND4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 21);
const BACKEND6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x21);
const OUTSIDE: [u8; 4] = [198, 51, 100, 9];
const SECOND_NS: u64 = 1_000_000_000;

/// A backend whose address ends in this number, with a MAC address that ends in it, once it has been asked.
fn backend(id: u64, address: IpAddr) -> BackendSpec {
    BackendSpec { id, address, mac: None, weight: 1, state: BackendState::Active }
}

fn segment(backends: &[BackendSpec]) -> TableSpec {
    let range = |protocol, port| PortRangeSpec { protocol, first: port, last: port };
    let vip = |address: IpAddr, backends: Vec<BackendSpec>| VipSpec {
        address,
        answer_on: vec![0],
        rejects: true,
        services: vec![ServiceSpec {
            name: address.to_string(),
            ports: vec![range(Protocol::Tcp, 80), range(Protocol::Udp, 53)],
            by_source: false,
            resets_flows: false,
            table_size: 4093,
            backends,
        }],
    };
    TableSpec {
        hash_key: 7,
        ports: vec![PortSpec {
            name: "eth0".into(),
            ifindex: 2,
            mac: NODE,
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: vec![(NODE4.into(), 24), (NODE6.into(), 64)],
        }],
        vips: vec![
            vip(VIP4.into(), backends.to_vec()),
            vip(OTHER4.into(), vec![backend(9, BACKEND4.into())]),
            vip(VIP_6.into(), vec![backend(8, BACKEND6.into())]),
        ],
        peer_addresses: vec![(PEER, [192, 0, 2, 3].into()), (PEER, [198, 51, 100, 3].into())],
        peers: vec![PeerSpec { port: 0, address: [192, 0, 2, 3].into(), mac: Some(PEER) }],
        ..TableSpec::default()
    }
}

/// A node on a segment where the backends answer for themselves, unless they are silent.
struct Segment {
    pipeline: Pipeline,
    compiler: Compiler,
    /// Who answers for an address.
    stations: Vec<(IpAddr, Mac)>,
    /// Questions to one station alone.
    asked: Vec<Mac>,
}

impl Segment {
    /// All VIPs are this node's; `first`: nobody had them before.
    fn new(first: bool) -> Self {
        let lease = Arc::new(LeaseClock::default());
        lease.set(u64::MAX);
        let mut compiler = Compiler::default();
        let snapshot = Arc::new(compiler.compile(&segment(&[backend(1, BACKEND4.into())])));
        let mut pipeline = Pipeline::new(snapshot.clone(), flow_table(), Arc::default(), lease);
        pipeline.set_time(100 * SECOND_NS);
        pipeline.adopt(snapshot);
        let grants = [VIP4.into(), OTHER4.into(), VIP_6.into()].map(|vip: IpAddr| Grant { vip, epoch: 1, first });
        pipeline.own(Arc::new(Owned::new(1, &grants)));
        let second = IpAddr::from([192, 0, 2, 22]);
        let stations = vec![(BACKEND4.into(), FIRST), (BACKEND6.into(), FIRST), (second, SECOND)];
        Self { pipeline, compiler, stations, asked: Vec::new() }
    }

    /// The backends are known, and the VIPs answered.
    fn at_rest() -> Self {
        let mut segment = Self::new(false);
        segment.pass(SECOND_NS);
        assert_eq!((segment.mac(BACKEND4), segment.mac(BACKEND6)), (Some(FIRST), Some(FIRST)));
        segment.asked.clear();
        segment
    }

    fn receive(&mut self, frame: &[u8]) -> Verdict {
        judge(&mut self.pipeline, FrameMeta::default(), &mut frame.to_vec())
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        self.pipeline.outbox.drain(..).map(|outgoing| outgoing.frame.frame().to_vec()).collect()
    }

    /// Time passes; questions are answered by whoever has the address.
    fn pass(&mut self, ns: u64) {
        let until = self.pipeline.now_ns + ns;
        while self.pipeline.now_ns < until {
            let due = self.pipeline.next_due_ns().unwrap_or(until).clamp(self.pipeline.now_ns + 1_000_000, until);
            self.pipeline.set_time(due);
            self.pipeline.tick();
            for frame in self.sent() {
                self.answer(&frame);
            }
        }
    }

    fn answer(&mut self, question: &[u8]) {
        let to = packet::destination(question).unwrap();
        if to.is_host() {
            self.asked.push(to);
        }
        let target: IpAddr = match packet::parse(question) {
            Packet::Arp(arp) if !arp.sender.is_unspecified() => arp.target.into(),
            Packet::Neighbor(message) if message.kind == ndp::Kind::Solicitation => message.target.into(),
            _ => return,
        };
        let station = self.stations.iter().find(|(address, mac)| *address == target && (to.is_group() || to == *mac));
        let Some((_, mac)) = station.copied() else { return };
        let answer = match packet::parse(question) {
            Packet::Arp(arp) => {
                let mut frame = question.to_vec();
                arp::answer_in_place(&mut frame, &arp, mac);
                frame
            }
            Packet::Neighbor(message) => ndp_answer(mac, &message, to.is_host()),
            _ => unreachable!("it was a question"),
        };
        self.receive(&answer);
    }

    fn mac(&self, address: impl Into<IpAddr>) -> Option<Mac> {
        let address = address.into();
        self.pipeline.snapshot.backends().find(|backend| backend.address == address)?.mac()
    }

    fn counted(&self, reason: DropReason) -> u64 {
        self.pipeline.stats.dropped(reason).get()
    }

    fn flows(&self) -> usize {
        self.pipeline.flows.entries(0..usize::MAX, Tick::from_ns(self.pipeline.now_ns)).count()
    }

    /// Other backends from now on.
    fn change(&mut self, backends: &[BackendSpec]) {
        let snapshot = self.compiler.compile(&segment(backends));
        self.pipeline.adopt(Arc::new(snapshot));
    }
}

/// As Linux answers: without its MAC address and without the Override flag, if it was asked alone (RFC 4861 4.4, 7.2.4).
fn ndp_answer(mac: Mac, question: &ndp::Message, was_asked_alone: bool) -> Vec<u8> {
    let mut frame = ndp::advertisement(mac, NODE, question).to_vec();
    if was_asked_alone {
        let icmp_at = 14 + 40;
        frame.truncate(frame.len() - 8);
        (frame[19], frame[icmp_at + 4]) = (24, 0x40);
        frame[icmp_at + 2..icmp_at + 4].fill(0);
        let sum = packet::checksum::icmpv6(question.target, question.source, &frame[icmp_at..]);
        frame[icmp_at + 2..icmp_at + 4].copy_from_slice(&sum.to_be_bytes());
        assert!(matches!(packet::parse(&frame), Packet::Neighbor(ndp::Message { mac: None, .. })));
    }
    frame
}

fn arp(source: Mac, destination: Mac, operation: arp::Operation, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let target_mac = if operation == arp::Operation::Reply { NODE } else { Mac::ZERO };
    let (sender_mac, sender) = sender;
    arp::emit(destination, source, &arp::Arp { operation, sender_mac, sender, target_mac, target }).to_vec()
}

/// A broadcast request that says who the sender is.
fn claim4(mac: Mac) -> Vec<u8> {
    arp(mac, Mac::BROADCAST, arp::Operation::Request, (mac, BACKEND4), Ipv4Addr::new(192, 0, 2, 1))
}

/// An unsolicited advertisement.
fn claim6(mac: Mac) -> Vec<u8> {
    ndp::announcement(mac, BACKEND6).to_vec()
}

/// Without the Override flag, its checksum right all the same.
fn claim6_without_override(mac: Mac) -> Vec<u8> {
    let mut frame = claim6(mac);
    let at = 14 + 40;
    frame[at + 4] &= !0x20;
    let sum = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
    let sum = packet::checksum::update(sum, 0x2000, 0);
    frame[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
    assert!(matches!(packet::parse(&frame), Packet::Neighbor(_)));
    frame
}

fn udp_from(source: [u8; 4], vip: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let ip = PacketBuilder::ethernet2(GATEWAY.0, NODE.0).ipv4(source, vip.octets(), 64);
    ip.udp(7, port).write(&mut frame, &[0x78; 18]).unwrap();
    frame
}

fn udp6_from(source: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let ip = PacketBuilder::ethernet2(GATEWAY.0, NODE.0).ipv6(source.octets(), VIP_6.octets(), 64);
    ip.udp(7, port).write(&mut frame, &[0x78; 18]).unwrap();
    frame
}

fn tcp(fin: bool, sequence: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    let ip = PacketBuilder::ethernet2(GATEWAY.0, NODE.0).ipv4(OUTSIDE, VIP4.octets(), 64);
    let tcp = ip.tcp(4002, 80, sequence, 8192).ack(2000);
    (if fin { tcp.fin() } else { tcp }).write(&mut frame, &[]).unwrap();
    frame
}

#[test]
fn a_forged_claim_moves_no_traffic_and_the_station_that_has_the_address_is_asked() {
    for claim in [claim4(STRANGER), claim6(STRANGER)] {
        let mut segment = Segment::at_rest();
        for _ in 0..50 {
            segment.receive(&claim);
            segment.pass(SECOND_NS / 7);
        }
        assert_eq!((segment.mac(BACKEND4), segment.mac(BACKEND6)), (Some(FIRST), Some(FIRST)));
        assert!(segment.asked.contains(&FIRST));
        assert_eq!(segment.pipeline.stats.backend_mac_changed.get(), 0);
        assert!(segment.pipeline.stats.backend_mac_refused.get() > 0);
    }
}

#[test]
fn a_backend_that_has_another_mac_address_is_followed_within_two_seconds() {
    for announced in [true, false] {
        let mut segment = Segment::at_rest();
        for (_, mac) in &mut segment.stations[..2] {
            *mac = STRANGER;
        }
        if announced {
            segment.receive(&claim4(STRANGER));
            segment.receive(&claim6(STRANGER));
        }
        segment.pass(2 * SECOND_NS);
        assert_eq!((segment.mac(BACKEND4), segment.mac(BACKEND6)), (Some(STRANGER), Some(STRANGER)), "{announced}");
        assert_eq!(segment.pipeline.stats.backend_mac_changed.get(), 2, "each is counted once");
    }
}

#[test]
fn who_cannot_be_the_backend_is_not_learnt() {
    let mut segment = Segment::at_rest();
    // The gateway is known by a new flow from beyond the segment.
    assert!(matches!(segment.receive(&udp_from(OUTSIDE, VIP4, 53)), Verdict::Forward { .. }));
    let other = IpAddr::from([192, 0, 2, 22]);
    segment.change(&[backend(1, BACKEND4.into()), backend(2, other)]);
    segment.pass(SECOND_NS);
    assert_eq!(segment.mac(other), Some(SECOND));
    // Those that have the addresses are silent, so that nothing but the rules keeps others away.
    segment.stations.clear();
    let reply = arp::Operation::Reply;
    let lies = arp(STRANGER, NODE, reply, (SECOND, BACKEND4), NODE4);
    let own = arp(STRANGER, NODE, reply, (NODE, BACKEND4), NODE4);
    let mut lies6 = claim6(STRANGER);
    lies6[6..12].copy_from_slice(&SECOND.0);
    let before = segment.pipeline.stats.backend_mac_refused.get();
    let frames =
        [lies, own, lies6, claim4(GATEWAY), claim6(GATEWAY), claim4(PEER), claim6(PEER), claim4(SECOND), claim4(NODE)];
    for frame in &frames {
        segment.receive(frame);
    }
    segment.pass(2 * SECOND_NS);
    for frame in &frames[..7] {
        segment.receive(frame);
        let macs = [segment.mac(BACKEND4), segment.mac(BACKEND6)];
        assert!(macs.iter().all(|mac| *mac == Some(FIRST)), "{macs:?} after {frame:02x?}");
    }
    assert!(segment.pipeline.stats.backend_mac_refused.get() >= before + 14);
    assert_eq!(segment.pipeline.stats.backend_mac_changed.get(), 0);
}

#[test]
fn a_load_balancer_may_be_a_backend_at_its_own_address() {
    let mut segment = Segment::at_rest();
    let address = IpAddr::from([192, 0, 2, 3]);
    segment.stations.push((address, PEER));
    segment.change(&[backend(3, address)]);
    segment.pass(SECOND_NS);
    assert_eq!(segment.mac(address), Some(PEER));
}

#[test]
fn a_router_that_is_a_backend_is_learnt_by_its_answer_alone() {
    let mut segment = Segment::at_rest();
    let address = IpAddr::from([192, 0, 2, 1]);
    segment.receive(&udp_from(OUTSIDE, VIP4, 53));
    segment.change(&[backend(4, address)]);
    let unasked = arp(GATEWAY, Mac::BROADCAST, arp::Operation::Request, (GATEWAY, [192, 0, 2, 1].into()), VIP4);
    segment.receive(&unasked);
    assert_eq!(segment.mac(address), None);
    segment.stations.push((address, GATEWAY));
    segment.pass(2 * SECOND_NS);
    assert_eq!(segment.mac(address), Some(GATEWAY));
}

#[test]
fn an_advertisement_without_override_displaces_nothing() {
    let mut segment = Segment::at_rest();
    segment.stations.clear();
    for _ in 0..30 {
        segment.receive(&claim6_without_override(STRANGER));
        segment.pass(SECOND_NS / 10);
    }
    assert_eq!(segment.mac(BACKEND6), Some(FIRST));
}

#[test]
fn another_probe_for_an_address_that_is_probed_for_is_a_conflict() {
    let probe4 = arp(STRANGER, Mac::BROADCAST, arp::Operation::Request, (STRANGER, Ipv4Addr::UNSPECIFIED), OTHER4);
    let probe6 = ndp::probe(STRANGER, VIP_6).to_vec();
    for (probe, vip, reason) in [
        (probe4, IpAddr::from(OTHER4), DropReason::ArpConflict),
        (probe6, IpAddr::from(VIP_6), DropReason::NdpConflict),
    ] {
        let mut segment = Segment::new(true);
        let active = |segment: &Segment| segment.pipeline.speaker.as_ref().unwrap().announcer.is_active(vip);
        segment.pass(100_000_000);
        assert!(!active(&segment));
        assert_eq!(segment.receive(&probe), Verdict::Drop(reason));
        assert_eq!(segment.pipeline.stats.conflicts(), [Conflict { vip, mac: STRANGER, count: 1, questions: 0 }]);
        segment.pass(SECOND_NS);
        assert!(!active(&segment), "it waits");
        segment.pass(SECOND_NS);
        assert!(active(&segment), "and is taken when the other one has gone");
        // From now on it is answered for.
        let answered = segment.receive(&probe);
        assert!(answered == Verdict::Answer || !segment.sent().is_empty(), "{answered:?}");
    }
}

#[test]
fn what_no_host_sends_from_is_not_answered_and_not_remembered() {
    let sources4: [[u8; 4]; 9] = [
        [224, 0, 0, 5],
        [239, 255, 255, 255],
        [255; 4],
        [127, 0, 0, 1],
        [0; 4],
        [0, 1, 2, 3],
        OTHER4.octets(),
        NODE4.octets(),
        [192, 0, 2, 255],
    ];
    let sources6 = [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, "ff02::1".parse().unwrap(), VIP_6, NODE6];
    let mut segment = Segment::at_rest();
    // A service, one that nobody has and that is refused to others, an echo request, a fragment; and an error.
    let mut frames = Vec::new();
    for source in sources4 {
        let echo = |f: &mut Vec<u8>| {
            let ip = PacketBuilder::ethernet2(GATEWAY.0, NODE.0).ipv4(source, VIP4.octets(), 64);
            ip.icmpv4_echo_request(1, 2).write(f, b"ping").unwrap();
        };
        frames.extend([udp_from(source, VIP4, 53), udp_from(source, VIP4, 9), Vec::new()]);
        echo(frames.last_mut().unwrap());
        let mut fragment = udp_from(source, VIP4, 53);
        fragment[20] = 0x20;
        // Eight bytes of UDP and sixteen of data.
        fragment.truncate(14 + 20 + 24);
        fragment[17] = 44;
        frames.push(fragment);
        let mut error = Vec::new();
        let quoted = udp_from(VIP4.octets(), OUTSIDE.into(), 7);
        let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        let ip = PacketBuilder::ethernet2(GATEWAY.0, NODE.0).ipv4(source, VIP4.octets(), 64);
        ip.icmpv4(kind).write(&mut error, &quoted[14..]).unwrap();
        frames.push(error);
    }
    for source in sources6 {
        let mut echo = Vec::new();
        let ip = PacketBuilder::ethernet2(GATEWAY.0, NODE.0).ipv6(source.octets(), VIP_6.octets(), 64);
        ip.icmpv6_echo_request(1, 2).write(&mut echo, b"ping").unwrap();
        frames.extend([udp6_from(source, 53), udp6_from(source, 9), echo]);
    }
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(segment.receive(frame), Verdict::Drop(DropReason::BadSource), "frame {number}: {frame:02x?}");
        assert_eq!(segment.counted(DropReason::BadSource), number as u64 + 1);
    }
    assert!(segment.sent().is_empty());
    assert_eq!(segment.flows(), 0);
    for source in [OUTSIDE, [192, 0, 2, 77], [192, 0, 2, 0], [240, 0, 0, 1], [10, 0, 0, 255]] {
        assert!(matches!(segment.receive(&udp_from(source, VIP4, 53)), Verdict::Forward { .. }), "{source:?}");
    }
}

#[test]
fn nothing_is_answered_to_a_group() {
    let mut segment = Segment::at_rest();
    let group = Mac([1, 0, 0x5e, 0, 0, 1]);
    let request = arp::Operation::Request;
    for sha in [Mac::BROADCAST, group, Mac::ZERO] {
        let frame = arp(STRANGER, NODE, request, (sha, OUTSIDE.into()), VIP4);
        assert_eq!(segment.receive(&frame), Verdict::Drop(DropReason::BadSource), "{sha}");
        let mut asked = ndp::solicitation(STRANGER, BACKEND6, VIP_6, Some(NODE)).to_vec();
        let (at, option) = (14 + 40, 14 + 40 + 24 + 2);
        let words =
            |octets: &[u8]| octets.chunks(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect::<Vec<_>>();
        let (before, after) = (words(&STRANGER.0), words(&sha.0));
        asked[option..option + 6].copy_from_slice(&sha.0);
        let mut sum = u16::from_be_bytes([asked[at + 2], asked[at + 3]]);
        for (old, new) in before.into_iter().zip(after) {
            sum = packet::checksum::update(sum, old, new);
        }
        asked[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(segment.receive(&asked), Verdict::Drop(DropReason::BadSource), "{sha} by neighbour discovery");
    }
    let from_group = arp(STRANGER, NODE, request, (STRANGER, Ipv4Addr::new(224, 0, 0, 1)), VIP4);
    assert_eq!(segment.receive(&from_group), Verdict::Drop(DropReason::BadSource));
    let from_group = ndp::solicitation(STRANGER, "ff02::5".parse().unwrap(), VIP_6, Some(NODE));
    assert_eq!(segment.receive(&from_group), Verdict::Drop(DropReason::BadSource));
    assert!(segment.sent().is_empty());
    let sound = arp(STRANGER, NODE, request, (STRANGER, OUTSIDE.into()), VIP4);
    assert_eq!(segment.receive(&sound), Verdict::Answer);
}

#[test]
fn a_fragment_identification_that_returns_is_another_datagram() {
    let mut segment = Segment::at_rest();
    let part = |first: bool| {
        let mut frame = udp_from(OUTSIDE, VIP4, 53);
        frame.truncate(34);
        frame.extend(if first { vec![0x0f, 0xa0, 0, 53, 7, 0xd8, 0, 0] } else { Vec::new() });
        frame.resize(if first { 34 + 1480 } else { 34 + 528 }, 0x61);
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[18..20].copy_from_slice(&77u16.to_be_bytes());
        let position = if first { 0x2000u16 } else { 185 };
        frame[20..22].copy_from_slice(&position.to_be_bytes());
        frame
    };
    // The second fragment of the first datagram is lost.
    assert!(matches!(segment.receive(&part(true)), Verdict::Forward { .. }));
    segment.pass(2 * SECOND_NS);
    for first in [true, false] {
        assert!(matches!(segment.receive(&part(first)), Verdict::Forward { .. }), "the second datagram is whole");
    }
}

#[test]
fn a_trailer_behind_a_full_packet_is_left_out_and_complained_of_by_nobody() {
    let mut segment = Segment::at_rest();
    let mut full = tcp(false, 1);
    full.resize(14 + 1500, 0x64);
    (full[16], full[17], full[20]) = (5, 0xdc, 0x40);
    let mut full6 = udp6_from("2001:db8:9::1".parse().unwrap(), 53);
    full6.resize(14 + 1500, 0x64);
    let len = 1460u16.to_be_bytes();
    full6[18..20].copy_from_slice(&len);
    full6[58..60].copy_from_slice(&len);
    for packet in [full, full6] {
        for trailer in [4, 6] {
            let frame = [&packet[..], &vec![9; usize::from(trailer)]].concat();
            assert_eq!(len_without_trailer(&frame), Some(packet.len()));
            let verdict = segment.receive(&frame);
            assert!(matches!(verdict, Verdict::Forward { trailer: cut, .. } if cut == trailer), "{verdict:?}");
        }
        assert!(matches!(segment.receive(&packet), Verdict::Forward { trailer: 0, .. }));
    }
    assert!(segment.sent().is_empty() && segment.counted(DropReason::TooBig) == 0);
    // What fits with its padding keeps it.
    let padded = [&tcp(false, 1)[..], &[0; 6]].concat();
    assert!(matches!(segment.receive(&padded), Verdict::Forward { trailer: 0, .. }));
}

#[test]
fn what_does_not_fit_and_may_be_fragmented_goes_on_in_fragments() {
    let mut segment = Segment::at_rest();
    let mut frame = udp_from(OUTSIDE, VIP4, 53);
    frame.resize(14 + 4000, 0x64);
    (frame[16], frame[17]) = (0x0f, 0xa0);
    (frame[20], frame[38], frame[39]) = (0, 0x0f, 0x8c);
    assert_eq!(segment.receive(&frame), Verdict::Apart);
    let parts: Vec<Outgoing> = segment.pipeline.outbox.drain(..).collect();
    assert_eq!(parts.len(), 3);
    assert!(parts.iter().all(|part| part.to == To::Port(0) && part.frame.frame().starts_with(&FIRST.0)));
    assert_eq!((segment.pipeline.stats.fragmented.get(), segment.pipeline.stats.forwarded.get()), (1, 1));
    // It was counted once; that is taken back if its first fragment is not taken.
    let traffic = |segment: &Segment| {
        let vip = &segment.pipeline.snapshot.vip(IpAddr::from(VIP4)).unwrap().traffic;
        (vip.packets(), vip.bytes())
    };
    assert_eq!(traffic(&segment), (1, 4014));
    for part in &parts {
        segment.pipeline.send_failed(part.sent);
    }
    assert_eq!(traffic(&segment), (0, 0));
    assert_eq!((segment.pipeline.stats.forwarded.get(), segment.counted(DropReason::SendFailed)), (0, 1));
    frame[20] = 0x40;
    assert_eq!(segment.receive(&frame), Verdict::Drop(DropReason::TooBig));
    assert_eq!(segment.sent().len(), 1, "the sender is told");
}

#[test]
fn a_half_closed_connection_keeps_its_backend_for_two_minutes_of_silence() {
    let mut segment = Segment::at_rest();
    let all = [21u8, 22, 23, 24].map(|last| backend(last.into(), [192, 0, 2, last].into()));
    segment.stations.extend([23u8, 24].map(|last| ([192, 0, 2, last].into(), Mac([2, 0, 0, 0, 0, last]))));
    segment.change(&all);
    segment.pass(2 * SECOND_NS);
    let to = |segment: &mut Segment, frame: &[u8]| {
        let mut frame = frame.to_vec();
        let verdict = judge(&mut segment.pipeline, FrameMeta::default(), &mut frame);
        assert!(matches!(verdict, Verdict::Forward { .. }), "{verdict:?}");
        packet::destination(&frame).unwrap()
    };
    let had = to(&mut segment, &tcp(false, 999));
    assert_eq!(to(&mut segment, &tcp(true, 1000)), had);
    // New connections do not go where this one is any more.
    let rest: Vec<BackendSpec> = all
        .into_iter()
        .map(|backend| match segment.mac(backend.address) == Some(had) {
            true => BackendSpec { state: BackendState::Draining, ..backend },
            false => backend,
        })
        .collect();
    segment.change(&rest);
    for silence in [60, 119] {
        segment.pass(silence * SECOND_NS);
        assert_eq!(to(&mut segment, &tcp(false, 1001)), had, "after {silence} s");
    }
    segment.pass(121 * SECOND_NS);
    assert_ne!(to(&mut segment, &tcp(false, 1001)), had);
}

/// By the owner alone, which knows of the flow; and by no more resets than are worth it.
#[test]
fn the_flows_of_a_backend_that_is_down_are_reset_where_that_is_wanted() {
    let down = BackendSpec { state: BackendState::Down, ..backend(1, BACKEND4.into()) };
    let mut spec = segment(&[down]);
    let mut segment = Segment::at_rest();
    segment.receive(&tcp(false, 999));
    spec.vips.iter_mut().for_each(|vip| vip.rejects = false);
    spec.vips[0].services[0].resets_flows = true;
    segment.pipeline.adopt(Arc::new(segment.compiler.compile(&spec)));
    segment.sent();
    assert_eq!(segment.receive(&tcp(false, 1000)), Verdict::Drop(DropReason::FlowReset));
    let [reset] = &segment.sent()[..] else { panic!("one reset") };
    let Packet::Flow(flow) = packet::parse(reset) else { panic!("{reset:?}") };
    assert!(flow.resets && flow.tuple.source == VIP4.into() && packet::destination(reset) == Some(GATEWAY));
    for _ in 1..REPLIES_PER_S {
        segment.receive(&tcp(false, 1000));
    }
    assert_eq!(segment.receive(&tcp(false, 1000)), Verdict::Drop(DropReason::BackendDown), "not for all of a flood");
    segment.pass(SECOND_NS);
    segment.pipeline.own(Arc::default());
    segment.sent();
    assert_eq!(segment.receive(&tcp(false, 1000)), Verdict::Drop(DropReason::BackendDown));
    assert_eq!(segment.sent(), Vec::<Vec<u8>>::new(), "another node owns it");
}

/// What was not sent is nobody's traffic.
#[test]
fn a_frame_that_is_not_taken_is_taken_back_from_all_counters() {
    let mut segment = Segment::at_rest();
    let frame = udp_from(OUTSIDE, VIP4, 53);
    let traffic = |segment: &Segment| {
        let snapshot = &segment.pipeline.snapshot;
        let vip = &snapshot.vip(IpAddr::from(VIP4)).unwrap().traffic;
        let backend = snapshot.backends().find(|backend| backend.service == 0).unwrap();
        let of = &backend.runtime.traffic;
        [(vip.packets(), vip.bytes()), (of.packets(), of.bytes())]
    };
    for _ in 0..2 {
        let Verdict::Forward { backend, .. } = segment.receive(&frame) else { panic!() };
        assert_eq!(traffic(&segment), [(1, frame.len() as u64); 2]);
        segment.pipeline.send_failed(Sent::Forwarded { backend, bytes: frame.len() as u32 });
        assert_eq!(traffic(&segment), [(0, 0); 2]);
    }
}

/// What a load balancer itself sends to a VIP is nobody's to balance, and an explanation does not say otherwise.
#[test]
fn the_nodes_as_clients_of_a_vip_are_explained_as_they_fare() {
    let mut segment = Segment::at_rest();
    for (source, mac, reason) in
        [([192, 0, 2, 3], PEER, DropReason::BalancedTwice), (NODE4.octets(), GATEWAY, DropReason::BadSource)]
    {
        let mut frame = udp_from(source, VIP4, 53);
        let Packet::Flow(flow) = packet::parse(&frame) else { panic!() };
        for question in [Question::Flow(flow.tuple), Question::Frame(frame.clone())] {
            assert_eq!(segment.pipeline.explain(&question).outcome, Outcome::Drop(reason), "{source:?}");
        }
        frame[6..12].copy_from_slice(&mac.0);
        assert_eq!(segment.receive(&frame), Verdict::Drop(reason), "{source:?}");
    }
}
