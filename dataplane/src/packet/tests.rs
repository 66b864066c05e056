use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::verdict::DropReason;

const CLIENT: [u8; 4] = [192, 168, 1, 10];
const VIP: [u8; 4] = [192, 168, 2, 1];
const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn tcp_frame(
    flags: impl FnOnce(
        etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    ) -> etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], OWN.0).ipv4(CLIENT, VIP, 64).tcp(40000, 80, 1, 65535);
    let mut frame = Vec::new();
    flags(builder).write(&mut frame, payload).unwrap();
    frame
}

fn flow(frame: &[u8]) -> FlowPacket {
    match parse(frame) {
        Packet::Flow(flow) => flow,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tcp_segment_is_a_flow_and_its_flags_are_seen() {
    let syn = flow(&tcp_frame(|b| b.syn(), b""));
    assert_eq!(
        syn.tuple,
        Tuple {
            source: CLIENT.into(),
            destination: VIP.into(),
            source_port: 40000,
            destination_port: 80,
            protocol: Protocol::Tcp
        }
    );
    assert!(syn.opens && !syn.ends);
    assert_eq!(syn.headers_len, 54);
    assert!(!flow(&tcp_frame(|b| b.syn().ack(1), b"")).opens);
    assert!(flow(&tcp_frame(|b| b.fin(), b"")).ends);
    assert!(flow(&tcp_frame(|b| b.rst(), b"")).resets);
}

#[test]
fn lying_lengths_and_cut_headers_are_malformed() {
    let sound = tcp_frame(|b| b.syn(), b"data");
    let malformed = |frame: &[u8]| matches!(parse(frame), Packet::Other(DropReason::Malformed, _));
    for len in 0..sound.len() {
        assert!(malformed(&sound[..len]), "cut to {len}");
    }
    let with = |at: usize, byte: u8| {
        let mut frame = sound.clone();
        frame[at] = byte;
        frame
    };
    assert!(malformed(&with(14, 0x65)), "version 6 in an IPv4 frame");
    assert!(malformed(&with(14, 0x44)), "header of 16 bytes");
    assert!(malformed(&with(14, 0x4f)), "header longer than the packet");
    assert!(malformed(&with(16, 0xff)), "total length beyond the frame");
    assert!(malformed(&with(17, 10)), "total length below the header");
    assert!(malformed(&with(46, 0x40)), "TCP header of 16 bytes");
    assert!(malformed(&with(46, 0xf0)), "TCP header beyond the segment");
}

#[test]
fn fragments_tunnels_and_foreign_ethertypes_are_told_apart() {
    let mut frame = tcp_frame(|b| b.syn(), b"four");
    frame[20] = 0x20;
    let Packet::Fragment(first) = parse(&frame) else { panic!("no fragment") };
    assert_eq!((first.offset, first.len, first.more), (0, 24, true));
    assert!(first.flow.is_some_and(|flow| flow.opens));
    (frame[20], frame[21]) = (0, 3);
    let Packet::Fragment(last) = parse(&frame) else { panic!("no fragment") };
    assert_eq!((last.offset, last.len, last.more, last.flow), (24, 24, false, None));
    assert_eq!(last.datagram, first.datagram);
    frame[20] = 0x3f;
    frame[21] = 0xff;
    assert_eq!(parse(&frame), Packet::Other(DropReason::Malformed, Some(VIP.into())), "beyond 64 KiB");
    (frame[20], frame[21]) = (0, 0);
    frame[23] = 47;
    assert_eq!(parse(&frame), Packet::Other(DropReason::ProtocolUnsupported, Some(VIP.into())));
    frame[12..14].copy_from_slice(&[0x81, 0]);
    assert_eq!(parse(&frame), Packet::Other(DropReason::NotIp, None));
}

#[test]
fn a_padded_frame_is_read_by_its_ip_length() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], OWN.0)
        .ipv4(CLIENT, VIP, 64)
        .udp(1, 53)
        .write(&mut frame, b"")
        .unwrap();
    frame.resize(60, 0);
    assert_eq!(flow(&frame).headers_len, 42);
}

#[test]
fn an_echo_reply_is_what_the_kernel_would_send() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], OWN.0)
        .ipv4(CLIENT, VIP, 1)
        .icmpv4_echo_request(7, 9)
        .write(&mut frame, b"ping payload")
        .unwrap();
    let Packet::Echo(echo) = parse(&frame) else { panic!("no echo") };
    assert_eq!(echo.destination, VIP.into());
    rewrite::echo_reply(&mut frame, &echo, OWN);
    let mut expected = Vec::new();
    PacketBuilder::ethernet2(OWN.0, [2, 0, 0, 0, 0, 1])
        .ipv4(VIP, CLIENT, 64)
        .icmpv4_echo_reply(7, 9)
        .write(&mut expected, b"ping payload")
        .unwrap();
    assert_eq!(frame, expected);
}

#[test]
fn arp_is_answered_with_the_vip_at_our_address() {
    let asker = Mac([2, 0, 0, 0, 0, 1]);
    let mut frame = arp::request(asker, CLIENT.into(), VIP.into(), None).to_vec();
    let Packet::Arp(request) = parse(&frame) else { panic!("no ARP") };
    arp::answer_in_place(&mut frame, &request, OWN);
    assert_eq!((destination(&frame), source(&frame)), (Some(asker), Some(OWN)));
    let Packet::Arp(reply) = parse(&frame) else { panic!("no ARP") };
    assert_eq!(reply.operation, arp::Operation::Reply);
    assert_eq!((reply.sender, reply.sender_mac), (Ipv4Addr::from(VIP), OWN));
    assert_eq!((reply.target, reply.target_mac), (Ipv4Addr::from(CLIENT), asker));
}

#[test]
fn both_announcements_claim_the_vip_for_us() {
    for frame in arp::announcements(OWN, VIP.into()) {
        let Packet::Arp(arp) = parse(&frame) else { panic!("no ARP") };
        assert_eq!(destination(&frame), Some(Mac::BROADCAST));
        assert_eq!((arp.sender, arp.target, arp.sender_mac), (Ipv4Addr::from(VIP), Ipv4Addr::from(VIP), OWN));
    }
}

const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
const ASKER: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn udp6(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(ASKER.0, OWN.0).ipv6(CLIENT6.octets(), VIP6.octets(), 64).udp(4000, 53);
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// Puts extension headers, the last of which names what followed, behind the IPv6 header.
fn extended(frame: &[u8], kinds: &[(u8, &[u8])]) -> Vec<u8> {
    let (mut next, mut extended) = (frame[20], frame.to_vec());
    for (kind, header) in kinds.iter().rev() {
        let mut header = header.to_vec();
        header[0] = next;
        extended.splice(54..54, header);
        next = *kind;
    }
    extended[20] = next;
    let len = (extended.len() - 54) as u16;
    extended[18..20].copy_from_slice(&len.to_be_bytes());
    extended
}

#[test]
fn datagrams_that_lie_about_their_length_are_malformed() {
    let mut v4 = Vec::new();
    PacketBuilder::ethernet2([2; 6], OWN.0).ipv4(CLIENT, VIP, 64).udp(4000, 53).write(&mut v4, b"data").unwrap();
    for (frame, len_at) in [(v4, 38), (udp6(b"data"), 58)] {
        for (len, is_sound) in [(7, false), (8, true), (12, true), (13, false), (0xffff, false)] {
            let mut frame = frame.clone();
            frame[len_at..len_at + 2].copy_from_slice(&u16::to_be_bytes(len));
            let malformed = matches!(parse(&frame), Packet::Other(DropReason::Malformed, Some(_)));
            assert_eq!(malformed, !is_sound, "{len}");
        }
    }
}

#[test]
fn ipv6_flows_are_found_behind_their_extension_headers() {
    let options = [0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let atomic = [0, 0, 0, 0, 1, 2, 3, 4];
    let plain = flow(&udp6(b"data"));
    assert_eq!((plain.tuple.source, plain.tuple.destination), (CLIENT6.into(), VIP6.into()));
    assert_eq!((plain.tuple.source_port, plain.tuple.destination_port, plain.headers_len), (4000, 53, 62));
    let behind = flow(&extended(&udp6(b"data"), &[(0, &options), (60, &[0, 0, 1, 4, 0, 0, 0, 0]), (44, &atomic)]));
    assert_eq!((behind.tuple, behind.headers_len), (plain.tuple, 62 + 32));
    let most = flow(&extended(&udp6(b"data"), &[(60, &[0; 8][..]); 8]));
    assert_eq!((most.tuple, most.headers_len), (plain.tuple, 62 + 64));
}

#[test]
fn an_ipv6_packet_of_a_mapped_ipv4_address_is_malformed() {
    for (at, address) in [(22, "::ffff:192.0.2.1"), (38, "::ffff:198.51.100.1")] {
        let mut frame = udp6(b"data");
        frame[at..at + 16].copy_from_slice(&address.parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(parse(&frame), Packet::Other(DropReason::Malformed, None), "{address}");
    }
}

#[test]
fn extension_headers_that_lie_are_malformed() {
    let reason = |kinds: &[(u8, &[u8])]| match parse(&extended(&udp6(b"data"), kinds)) {
        Packet::Other(reason, destination) => {
            assert_eq!(destination, Some(VIP6.into()));
            reason
        }
        other => panic!("{other:?}"),
    };
    let (options, fragment) = ([0; 8], [0, 0, 0, 1, 0, 0, 0, 7]);
    assert_eq!(reason(&[(60, &[0, 200, 0, 0, 0, 0, 0, 0])]), DropReason::Malformed, "longer than the packet");
    assert_eq!(reason(&[(60, &options), (0, &options)]), DropReason::Malformed, "hop-by-hop options later on");
    assert_eq!(reason(&[(60, &options[..]); 9]), DropReason::Malformed, "too many");
    assert_eq!(reason(&[(44, &fragment), (44, &fragment)]), DropReason::Malformed, "a fragment of a fragment");
    assert_eq!(reason(&[(43, &[0, 0, 0, 1, 0, 0, 0, 0])]), DropReason::ProtocolUnsupported, "on its way elsewhere");
    let sound = udp6(b"data");
    for len in 0..sound.len() {
        assert!(matches!(parse(&sound[..len]), Packet::Other(DropReason::Malformed, _)), "cut to {len}");
    }
}

#[test]
fn ipv6_fragments_name_their_datagram() {
    let header = |offset: u16, more: u16| {
        let [a, b] = (offset | more).to_be_bytes();
        [0, 0, a, b, 0, 0, 1, 9]
    };
    let Packet::Fragment(first) = parse(&extended(&udp6(&[7; 24]), &[(44, &header(0, 1))])) else { panic!() };
    assert_eq!((first.offset, first.len, first.more, first.datagram.id), (0, 32, true, 0x109));
    assert_eq!(first.flow.map(|flow| flow.tuple.destination_port), Some(53));
    // What follows the header of a later one is data, whatever it looks like.
    let Packet::Fragment(later) = parse(&extended(&udp6(&[0; 21]), &[(44, &header(32, 0))])) else { panic!() };
    assert_eq!((later.offset, later.len, later.more, later.flow), (32, 29, false, None));
    assert_eq!(later.datagram, first.datagram);
    // Options behind its header are of the datagram, as the length is.
    let options = extended(&udp6(&[7; 24]), &[(44, &header(0, 1)), (60, &[0; 8])]);
    let Packet::Fragment(first) = parse(&options) else { panic!() };
    assert_eq!((first.offset, first.len), (0, 40));
    assert_eq!(first.flow.map(|flow| flow.tuple.destination_port), Some(53));
}

#[test]
fn neighbour_discovery_in_fragments_is_malformed() {
    let question = ndp::solicitation(ASKER, CLIENT6, VIP6, None);
    assert!(matches!(parse(&question), Packet::Neighbor(_)));
    let fragment = extended(&question, &[(44, &[0, 0, 0, 0, 1, 2, 3, 4])]);
    assert!(matches!(parse(&fragment), Packet::Other(DropReason::Malformed, _)));
}

#[test]
fn an_icmp_error_names_the_flow_of_the_packet_that_it_quotes() {
    let router = [192, 168, 1, 1];
    let mut answer = Vec::new();
    PacketBuilder::ethernet2([2; 6], [2; 6])
        .ipv4(VIP, CLIENT, 64)
        .tcp(80, 40000, 1, 9)
        .write(&mut answer, &[0; 99])
        .unwrap();
    for cut in [28, 34, 40, 100] {
        let mut frame = Vec::new();
        let kind = etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1280 },
        );
        PacketBuilder::ethernet2(ASKER.0, OWN.0)
            .ipv4(router, VIP, 64)
            .icmpv4(kind)
            .write(&mut frame, &answer[14..14 + cut])
            .unwrap();
        let Packet::Error(error) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
        assert_eq!(error.tuple, flow(&tcp_frame(|b| b.syn(), b"")).tuple, "a quote of {cut} bytes");
        // A quote of a packet that was not sent from here, and one that says nothing of ports.
        let mut foreign = frame.clone();
        foreign[14 + 20 + 8 + 12 + 3] = 77;
        let mut later_fragment = frame.clone();
        later_fragment[14 + 20 + 8 + 7] = 1;
        for frame in [foreign, later_fragment] {
            assert_eq!(parse(&frame), Packet::Other(DropReason::IcmpUnrelated, Some(VIP.into())));
        }
    }
    let mut answer = Vec::new();
    PacketBuilder::ethernet2([2; 6], [2; 6])
        .ipv6(VIP6.octets(), CLIENT6.octets(), 64)
        .udp(53, 4000)
        .write(&mut answer, &[0; 99])
        .unwrap();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(ASKER.0, OWN.0)
        .ipv6(CLIENT6.octets(), VIP6.octets(), 64)
        .icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu: 1280 })
        .write(&mut frame, &answer[14..14 + 48])
        .unwrap();
    let Packet::Error(error) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
    assert_eq!(error.tuple, flow(&udp6(b"")).tuple);
}

#[test]
fn an_icmpv6_echo_reply_is_what_the_kernel_would_send() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(ASKER.0, OWN.0)
        .ipv6(CLIENT6.octets(), VIP6.octets(), 3)
        .icmpv6_echo_request(7, 9)
        .write(&mut frame, b"ping payload")
        .unwrap();
    let Packet::Echo(echo) = parse(&frame) else { panic!("no echo") };
    rewrite::echo_reply(&mut frame, &echo, OWN);
    let mut expected = Vec::new();
    PacketBuilder::ethernet2(OWN.0, ASKER.0)
        .ipv6(VIP6.octets(), CLIENT6.octets(), 64)
        .icmpv6_echo_reply(7, 9)
        .write(&mut expected, b"ping payload")
        .unwrap();
    assert_eq!(frame, expected);
}

fn neighbor(frame: &[u8]) -> ndp::Message {
    match parse(frame) {
        Packet::Neighbor(message) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_solicitation_is_answered_by_rfc_4861() {
    let asked = ndp::solicitation(ASKER, CLIENT6, VIP6, None);
    assert_eq!(destination(&asked), Some(Mac([0x33, 0x33, 0xff, 0, 0, 1])));
    let message = neighbor(&asked);
    let expected = ndp::Message { kind: ndp::Kind::Solicitation, source: CLIENT6, target: VIP6, mac: Some(ASKER) };
    assert_eq!(message, expected);
    let answer = ndp::advertisement(OWN, ASKER, &message);
    assert_eq!((destination(&answer), source(&answer)), (Some(ASKER), Some(OWN)));
    assert_eq!(answer[58], 0x60, "R=0 S=1 O=1");
    let told = neighbor(&answer);
    assert_eq!(
        (told.kind, told.target, told.mac),
        (ndp::Kind::Advertisement { solicited: true, overrides: true }, VIP6, Some(OWN))
    );
    let to_known = ndp::solicitation(ASKER, CLIENT6, VIP6, Some(OWN));
    assert_eq!((destination(&to_known), neighbor(&to_known).target), (Some(OWN), VIP6));
}

#[test]
fn who_tests_an_address_is_told_in_the_group_of_all_nodes() {
    let probe = ndp::probe(ASKER, VIP6);
    let message = neighbor(&probe);
    assert_eq!((message.source, message.mac), (Ipv6Addr::UNSPECIFIED, None));
    let answer = ndp::advertisement(OWN, ASKER, &message);
    assert_eq!(answer, ndp::announcement(OWN, VIP6));
    assert_eq!((destination(&answer), answer[58]), (Some(Mac([0x33, 0x33, 0, 0, 0, 1])), 0x20));
    assert_eq!(neighbor(&answer).kind, ndp::Kind::Advertisement { solicited: false, overrides: true });
}

#[test]
fn solicitations_that_break_a_rule_are_malformed() {
    let sound = ndp::solicitation(ASKER, CLIENT6, VIP6, None);
    for at in [21, 54 + 1, 54 + 2, 54 + 20, 54 + 25, 54 + 30] {
        let mut frame = sound;
        frame[at] ^= 1;
        assert!(matches!(parse(&frame), Packet::Other(..)), "byte {at}: {:?}", parse(&frame));
    }
    let mut probe = ndp::solicitation(ASKER, Ipv6Addr::UNSPECIFIED, VIP6, None);
    assert!(matches!(parse(&probe), Packet::Other(DropReason::Malformed, _)), "an option without a source");
    probe.fill(0xff);
    parse(&probe);
}

#[test]
fn refusals_and_complaints_are_what_a_host_would_send() {
    for (frame, is_v4) in [(tcp_frame(|b| b.syn(), b""), true), (udp6(&[1; 2000]), false)] {
        let packet = flow(&frame);
        let reply = icmp::Reply { to: &frame, packet: &packet, mac: OWN };
        let own: IpAddr = if is_v4 { [192, 168, 2, 11].into() } else { "2001:db8:2::11".parse().unwrap() };
        let too_big = reply.too_big(own, 1400).unwrap();
        let sliced = etherparse::SlicedPacket::from_ethernet(&too_big).unwrap();
        match sliced.transport.unwrap() {
            etherparse::TransportSlice::Icmpv4(icmp) => {
                let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
                assert_eq!(icmp.icmp_type(), etherparse::Icmpv4Type::DestinationUnreachable(kind));
                assert_eq!(icmp.payload(), &frame[14..]);
            }
            etherparse::TransportSlice::Icmpv6(icmp) => {
                assert_eq!(icmp.icmp_type(), etherparse::Icmpv6Type::PacketTooBig { mtu: 1400 });
                assert_eq!(too_big.len(), 14 + 1280);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(destination(&too_big), Some(ASKER));
        let refusal = reply.refusal().unwrap();
        match etherparse::SlicedPacket::from_ethernet(&refusal).unwrap().transport.unwrap() {
            etherparse::TransportSlice::Tcp(tcp) => {
                assert!(tcp.rst() && tcp.ack());
                assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (0, 2));
                assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40000));
            }
            etherparse::TransportSlice::Icmpv6(icmp) => assert_eq!((icmp.type_u8(), icmp.code_u8()), (1, 4)),
            other => panic!("{other:?}"),
        }
    }
    let reset = tcp_frame(|b| b.rst(), b"");
    let packet = flow(&reset);
    assert_eq!(icmp::Reply { to: &reset, packet: &packet, mac: OWN }.refusal(), None, "no reset for a reset");
}

proptest! {
    #[test]
    fn parsing_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        parse(&frame);
    }

    #[test]
    fn an_address_stays_what_it_is(v4: [u8; 4], v6: [u8; 16]) {
        prop_assert_eq!(IpAddr::from(Address::from(v4)), IpAddr::from(v4));
        prop_assert_eq!(IpAddr::from(Address::from(v6)), IpAddr::from(v6).to_canonical());
    }

    #[test]
    fn a_mutated_frame_never_panics(at in 0usize..74, byte: u8, cut in 0usize..80) {
        let mut frame = tcp_frame(|b| b.ack(1), b"some twenty bytes...");
        let len = frame.len();
        frame[at % len] = byte;
        frame.truncate(cut);
        if let Packet::Echo(echo) = parse(&frame) {
            rewrite::echo_reply(&mut frame, &echo, OWN);
        }
    }

    #[test]
    fn a_mutated_ipv6_frame_never_panics(at in 0usize..200, byte: u8, next: u8, cut in 0usize..200) {
        let fragment = [0, 0, 0, 1, 0, 0, 0, 7];
        let mut frame = extended(&udp6(&[3; 90]), &[(0, &[0; 8]), (44, &fragment), (60, &[0; 16])]);
        let len = frame.len();
        frame[20] = next;
        frame[at % len] = byte;
        frame.truncate(cut);
        if let Packet::Echo(echo) = parse(&frame) {
            rewrite::echo_reply(&mut frame, &echo, OWN);
        }
    }

    #[test]
    fn an_updated_checksum_is_the_recomputed_one(mut words in proptest::collection::vec(any::<u8>(), 8..64), new: u16) {
        words.truncate(words.len() & !1);
        let before = checksum::internet(&words);
        let old = u16::from_be_bytes([words[2], words[3]]);
        words[2..4].copy_from_slice(&new.to_be_bytes());
        let updated = checksum::update(before, old, new);
        let fresh = checksum::internet(&words);
        // 0x0000 and 0xffff both stand for zero in one's complement.
        prop_assert!(updated == fresh || (updated ^ fresh) == 0xffff && (fresh == 0 || updated == 0));
    }

    #[test]
    fn arp_survives_the_wire(operation: bool, sender: [u8; 4], target: [u8; 4], sender_mac: [u8; 6], target_mac: [u8; 6]) {
        let arp = arp::Arp {
            operation: if operation { arp::Operation::Request } else { arp::Operation::Reply },
            sender_mac: Mac(sender_mac), sender: sender.into(),
            target_mac: Mac(target_mac), target: target.into(),
        };
        let frame = arp::emit(Mac::BROADCAST, OWN, &arp);
        prop_assert_eq!(arp::parse(&frame[ETHERNET_HEADER_LEN..]), Some(arp));
    }
}
