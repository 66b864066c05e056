use std::net::Ipv4Addr;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::forward::DropReason;

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
    assert!(flow(&tcp_frame(|b| b.rst(), b"")).ends);
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
    let mut frame = tcp_frame(|b| b.syn(), b"");
    frame[20] = 0x20;
    assert_eq!(parse(&frame), Packet::Other(DropReason::Fragment, Some(VIP.into())));
    frame[20] = 0;
    frame[21] = 1;
    assert_eq!(parse(&frame), Packet::Other(DropReason::Fragment, Some(VIP.into())));
    frame[21] = 0;
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
    assert_eq!(echo.destination, Ipv4Addr::from(VIP));
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
    assert_eq!((reply.sender, reply.sender_mac), (VIP.into(), OWN));
    assert_eq!((reply.target, reply.target_mac), (CLIENT.into(), asker));
}

#[test]
fn both_announcements_claim_the_vip_for_us() {
    for frame in arp::announcements(OWN, VIP.into()) {
        let Packet::Arp(arp) = parse(&frame) else { panic!("no ARP") };
        assert_eq!(destination(&frame), Some(Mac::BROADCAST));
        assert_eq!((arp.sender, arp.target, arp.sender_mac), (VIP.into(), VIP.into(), OWN));
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        parse(&frame);
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
