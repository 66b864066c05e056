//! What a frame is: one pass, bounds-checked, without a copy.

use std::net::Ipv4Addr;

use super::{ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, arp, be16};
use crate::forward::DropReason;

const IPV4_MIN_HEADER_LEN: usize = 20;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// RFC 792
const ECHO_REQUEST: u8 = 8;

/// A frame as far as the load balancer looks into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// A TCP segment or UDP datagram.
    Flow(FlowPacket),
    /// ARP.
    Arp(arp::Arp),
    /// An ICMP echo request.
    Echo(Echo),
    /// Nothing that can be forwarded, and why. The destination is known if the IP header is sound.
    Other(DropReason, Option<Ipv4Addr>),
}

/// The transport protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293
    Tcp,
    /// RFC 768
    Udp,
}

/// What identifies a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The client.
    pub source: Ipv4Addr,
    /// The VIP.
    pub destination: Ipv4Addr,
    /// The client's port.
    pub source_port: u16,
    /// The service's port.
    pub destination_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// A packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowPacket {
    /// Which flow.
    pub tuple: Tuple,
    /// TCP: it opens a connection (SYN without ACK).
    pub opens: bool,
    /// TCP: it ends one (FIN or RST).
    pub ends: bool,
    /// Bytes from the start of the frame to the payload of TCP or UDP.
    pub headers_len: usize,
}

/// An ICMP echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Who is asked.
    pub destination: Ipv4Addr,
    /// Where the ICMP header starts in the frame.
    pub icmp_at: usize,
}

/// Looks at a frame.
pub fn parse(frame: &[u8]) -> Packet {
    match be16(frame, 12) {
        Some(ETHERTYPE_IPV4) => ipv4(frame).unwrap_or_else(|reason| Packet::Other(reason, None)),
        Some(ETHERTYPE_ARP) => match arp::parse(&frame[ETHERNET_HEADER_LEN..]) {
            Some(arp) => Packet::Arp(arp),
            None => Packet::Other(DropReason::Malformed, None),
        },
        Some(_) => Packet::Other(DropReason::NotIp, None),
        None => Packet::Other(DropReason::Malformed, None),
    }
}

fn ipv4(frame: &[u8]) -> Result<Packet, DropReason> {
    let packet = &frame[ETHERNET_HEADER_LEN..];
    let header: &[u8; IPV4_MIN_HEADER_LEN] = packet.first_chunk().ok_or(DropReason::Malformed)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let sound = header[0] >> 4 == 4
        && header_len >= IPV4_MIN_HEADER_LEN
        && total_len >= header_len
        // Short frames are padded, so a frame may be longer than its packet, never shorter.
        && packet.len() >= total_len;
    if !sound {
        return Err(DropReason::Malformed);
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let other = |reason| Ok(Packet::Other(reason, Some(destination)));
    if u16::from_be_bytes([header[6], header[7]]) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return other(DropReason::Fragment);
    }
    let payload = &packet[header_len..total_len];
    let l4_at = ETHERNET_HEADER_LEN + header_len;
    let tuple = |protocol| {
        Some(Tuple {
            source,
            destination,
            source_port: be16(payload, 0)?,
            destination_port: be16(payload, 2)?,
            protocol,
        })
    };
    let flow = match header[9] {
        TCP => tcp(payload, l4_at, tuple(Protocol::Tcp)),
        UDP => tuple(Protocol::Udp).filter(|_| payload.len() >= 8).map(|tuple| FlowPacket {
            tuple,
            opens: false,
            ends: false,
            headers_len: l4_at + 8,
        }),
        ICMP if payload.first() == Some(&ECHO_REQUEST) && payload.len() >= 8 => {
            return Ok(Packet::Echo(Echo { destination, icmp_at: l4_at }));
        }
        _ => return other(DropReason::ProtocolUnsupported),
    };
    flow.map_or_else(|| other(DropReason::Malformed), |flow| Ok(Packet::Flow(flow)))
}

fn tcp(segment: &[u8], at: usize, tuple: Option<Tuple>) -> Option<FlowPacket> {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    let header: &[u8; 20] = segment.first_chunk()?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < 20 || header_len > segment.len() {
        return None;
    }
    let flags = header[13];
    Some(FlowPacket {
        tuple: tuple?,
        opens: flags & (SYN | ACK) == SYN,
        ends: flags & (FIN | RST) != 0,
        headers_len: at + header_len,
    })
}
