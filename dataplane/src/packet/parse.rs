//! What a frame is: one pass, bounds-checked, without a copy.

use super::{Address, ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, arp, be16, ndp};
use crate::verdict::DropReason;

const IPV4_MIN_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// The longest datagram that can be put together again.
const MAX_DATAGRAM_LEN: usize = 65_535;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// IPv6 extension headers (RFC 8200 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// More of them have no use in a packet to a service.
const MAX_EXTENSION_HEADERS: usize = 8;

/// RFC 792
const ECHO_REQUEST: u8 = 8;
/// RFC 4443 4.1
const ECHO_REQUEST_V6: u8 = 128;

/// A frame as far as the load balancer looks into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// A TCP segment or UDP datagram.
    Flow(FlowPacket),
    /// A part of one.
    Fragment(Fragment),
    /// An ICMP or ICMPv6 error about a packet that was sent from the destination.
    Error(IcmpError),
    /// An echo request.
    Echo(Echo),
    /// A request or a reply of ARP (RFC 826).
    Arp(arp::Arp),
    /// A neighbour solicitation or advertisement.
    Neighbor(ndp::Message),
    /// Nothing that can be forwarded, and why. The destination is known if the IP header is sound.
    Other(DropReason, Option<Address>),
}

/// The transport protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293
    Tcp,
    /// RFC 768
    Udp,
}

impl Protocol {
    /// As IP headers have it (IANA).
    #[inline]
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// What identifies a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The client.
    pub source: Address,
    /// The VIP.
    pub destination: Address,
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
    /// TCP: its sender sends no more (FIN).
    pub ends: bool,
    /// TCP: it breaks one off (RST).
    pub resets: bool,
    /// Bytes from the start of the frame to the header of TCP or UDP.
    pub transport_at: u16,
    /// Bytes from the start of the frame to its payload.
    pub headers_len: u16,
}

impl FlowPacket {
    /// TCP: it opens, ends or breaks off a connection.
    #[inline]
    pub fn is_flagged(&self) -> bool {
        self.opens | self.ends | self.resets
    }

    /// Some packet of a flow of which no bytes are at hand.
    pub fn of(tuple: Tuple) -> Self {
        Self { tuple, opens: false, ends: false, resets: false, transport_at: 0, headers_len: 0 }
    }
}

/// What the fragments of a datagram have in common (RFC 791 3.2, RFC 8200 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatagramId {
    /// The sender.
    pub source: Address,
    /// The VIP.
    pub destination: Address,
    /// IPv4: the protocol. IPv6 does not tell datagrams apart by it.
    pub protocol: u8,
    /// The identification field.
    pub id: u32,
}

/// A part of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Which datagram.
    pub datagram: DatagramId,
    /// Where its bytes stand in the datagram's payload.
    pub offset: u32,
    /// How many there are.
    pub len: u32,
    /// Whether others stand behind them.
    pub more: bool,
    /// The flow, which only the first fragment names.
    pub flow: Option<FlowPacket>,
}

/// An error that quotes a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// Who sent it: a router on the way, or the client.
    pub source: Address,
    /// To whom it is sent: the sender of the quoted packet.
    pub destination: Address,
    /// The flow that the quoted packet answers: its addresses and ports the other way round.
    pub tuple: Tuple,
}

/// An echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Who asks.
    pub source: Address,
    /// Who is asked.
    pub destination: Address,
    /// Where the ICMP header starts in the frame.
    pub icmp_at: usize,
    /// Where the packet ends.
    pub end: usize,
}

/// Looks at a frame.
pub fn parse(frame: &[u8]) -> Packet {
    look(frame)
}

/// The packet of a flow in a frame, if there is one. The same look as [`parse`], of which nothing else is kept: almost
/// all frames are such, and the other kinds of packets take three times the memory.
#[inline]
pub fn flow(frame: &[u8]) -> Option<FlowPacket> {
    match look(frame) {
        Packet::Flow(flow) => Some(flow),
        _ => None,
    }
}

#[inline(always)]
fn look(frame: &[u8]) -> Packet {
    let ip = match be16(frame, 12) {
        Some(ETHERTYPE_IPV4) => ipv4(&frame[ETHERNET_HEADER_LEN..]),
        Some(ETHERTYPE_IPV6) => ipv6(&frame[ETHERNET_HEADER_LEN..]),
        Some(ETHERTYPE_ARP) => {
            return match arp::parse(&frame[ETHERNET_HEADER_LEN..]) {
                Some(arp) => Packet::Arp(arp),
                None => Packet::Other(DropReason::Malformed, None),
            };
        }
        Some(_) => return Packet::Other(DropReason::NotIp, None),
        None => return Packet::Other(DropReason::Malformed, None),
    };
    match ip {
        Ok(ip) => transport(frame, &ip),
        Err((reason, destination)) => Packet::Other(reason, destination),
    }
}

/// An IP packet, its headers read. Positions count from the start of the frame.
struct Ip {
    source: Address,
    destination: Address,
    /// What follows the headers.
    protocol: u8,
    payload_at: usize,
    end: usize,
    fragment: Option<Part>,
    /// It has an IPv6 fragment header and is whole all the same.
    is_atomic_fragment: bool,
}

impl Ip {
    /// Behind the IPv6 header.
    #[inline(always)]
    fn v6(source: Address, destination: Address, protocol: u8, end: usize) -> Self {
        let payload_at = IPV6_HEADER_LEN;
        Self { source, destination, protocol, payload_at, end, fragment: None, is_atomic_fragment: false }
    }
}

/// Of the IPv4 header or the IPv6 fragment header.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    offset: u32,
    more: bool,
    /// Where its bytes start: in IPv6 at the first header behind the fragment header.
    at: usize,
}

type Unsound = (DropReason, Option<Address>);

#[inline(always)]
fn ipv4(packet: &[u8]) -> Result<Ip, Unsound> {
    let malformed = (DropReason::Malformed, None);
    let header: &[u8; IPV4_MIN_HEADER_LEN] = packet.first_chunk().ok_or(malformed)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let sound = header[0] >> 4 == 4
        && header_len >= IPV4_MIN_HEADER_LEN
        && total_len >= header_len
        // Short frames are padded, so a frame may be longer than its packet, never shorter.
        && packet.len() >= total_len;
    if !sound {
        return Err(malformed);
    }
    let part = u16::from_be_bytes([header[6], header[7]]);
    let fragment = (part & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0).then(|| Part {
        id: u16::from_be_bytes([header[4], header[5]]).into(),
        offset: u32::from(part & FRAGMENT_OFFSET) * 8,
        more: part & MORE_FRAGMENTS != 0,
        at: ETHERNET_HEADER_LEN + header_len,
    });
    Ok(Ip {
        source: Address::from([header[12], header[13], header[14], header[15]]),
        destination: Address::from([header[16], header[17], header[18], header[19]]),
        protocol: header[9],
        payload_at: ETHERNET_HEADER_LEN + header_len,
        end: ETHERNET_HEADER_LEN + total_len,
        fragment,
        is_atomic_fragment: false,
    })
}

#[inline(always)]
fn ipv6(packet: &[u8]) -> Result<Ip, Unsound> {
    let malformed = (DropReason::Malformed, None);
    let header: &[u8; IPV6_HEADER_LEN] = packet.first_chunk().ok_or(malformed)?;
    let end = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || packet.len() < end {
        return Err(malformed);
    }
    let (source, destination) = ipv6_addresses(header).ok_or(malformed)?;
    let mut ip = Ip::v6(source, destination, header[6], end);
    if matches!(ip.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
        extensions(packet, &mut ip).map_err(|reason| (reason, Some(destination)))?;
    }
    ip.payload_at += ETHERNET_HEADER_LEN;
    ip.end += ETHERNET_HEADER_LEN;
    if let Some(part) = &mut ip.fragment {
        part.at += ETHERNET_HEADER_LEN;
    }
    Ok(ip)
}

/// Source and destination. `None` if one is a mapped IPv4 address.
#[inline(always)]
fn ipv6_addresses(header: &[u8; IPV6_HEADER_LEN]) -> Option<(Address, Address)> {
    let (source, destination) = header[8..].split_first_chunk::<16>()?;
    let (source, destination) = (Address::from(*source), Address::from(*destination.first_chunk::<16>()?));
    (!source.is_ipv4() && !destination.is_ipv4()).then_some((source, destination))
}

/// Walks the extension headers (RFC 8200 4) of an IPv6 packet, as far as they can be read: what follows the
/// header of a later fragment is not a header.
fn extensions(packet: &[u8], ip: &mut Ip) -> Result<(), DropReason> {
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let rest = packet.get(ip.payload_at..ip.end).ok_or(DropReason::Malformed)?;
        let header: &[u8; 8] = match ip.protocol {
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS => rest.first_chunk().ok_or(DropReason::Malformed)?,
            _ => return Ok(()),
        };
        let mut len = (usize::from(header[1]) + 1) * 8;
        match ip.protocol {
            // Only directly after the IPv6 header (RFC 8200 4.1).
            HOP_BY_HOP if ip.payload_at != IPV6_HEADER_LEN => return Err(DropReason::Malformed),
            // On its way through other stations: the VIP is not where it ends.
            ROUTING if header[3] != 0 => return Err(DropReason::ProtocolUnsupported),
            FRAGMENT => {
                len = 8;
                let part = u16::from_be_bytes([header[2], header[3]]);
                let part = Part {
                    id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                    offset: u32::from(part & !7),
                    more: part & 1 != 0,
                    at: ip.payload_at + len,
                };
                if ip.fragment.is_some() || ip.is_atomic_fragment {
                    return Err(DropReason::Malformed);
                }
                // One that is a whole datagram is treated as such (RFC 6946).
                ip.is_atomic_fragment = part.offset == 0 && !part.more;
                ip.fragment = (!ip.is_atomic_fragment).then_some(part);
            }
            _ => {}
        }
        if len > rest.len() {
            return Err(DropReason::Malformed);
        }
        ip.protocol = header[0];
        ip.payload_at += len;
        if ip.fragment.is_some_and(|part| part.offset != 0) {
            return Ok(());
        }
    }
    Err(DropReason::Malformed)
}

#[inline(always)]
fn transport(frame: &[u8], ip: &Ip) -> Packet {
    let other = |reason| Packet::Other(reason, Some(ip.destination));
    let Some(payload) = frame.get(ip.payload_at..ip.end) else { return other(DropReason::Malformed) };
    if let Some(part) = ip.fragment {
        return fragment(payload, ip, part).map_or_else(other, Packet::Fragment);
    }
    match (ip.protocol, ip.destination.is_ipv4()) {
        // Whole, so its length is that of its bytes at most (RFC 768); of a fragment they are only the first.
        (UDP, _) if !be16(payload, 4).is_some_and(|len| (8..=payload.len()).contains(&len.into())) => {
            other(DropReason::Malformed)
        }
        (TCP | UDP, _) => flow_packet(payload, ip).map_or_else(|| other(DropReason::Malformed), Packet::Flow),
        (ICMP, true) => match payload {
            [ECHO_REQUEST, _, _, _, _, _, _, _, ..] => echo(ip),
            // Destination unreachable, time exceeded, parameter problem (RFC 792).
            [3 | 11 | 12, _, _, _, _, _, _, _, quote @ ..] => quoted(ip, quoted_ipv4(quote)),
            _ => other(DropReason::ProtocolUnsupported),
        },
        (ICMPV6, false) => match payload {
            [ECHO_REQUEST_V6, _, _, _, _, _, _, _, ..] => echo(ip),
            // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443 3).
            [1..=4, _, _, _, _, _, _, _, quote @ ..] => quoted(ip, quoted_ipv6(quote)),
            [ndp::SOLICITATION | ndp::ADVERTISEMENT, ..] => match ndp::parse(frame, ip.payload_at, ip.end) {
                // Never in fragments (RFC 6980 5).
                Some(message) if !ip.is_atomic_fragment => Packet::Neighbor(message),
                _ => other(DropReason::Malformed),
            },
            _ => other(DropReason::ProtocolUnsupported),
        },
        _ => other(DropReason::ProtocolUnsupported),
    }
}

fn echo(ip: &Ip) -> Packet {
    Packet::Echo(Echo { source: ip.source, destination: ip.destination, icmp_at: ip.payload_at, end: ip.end })
}

/// A TCP segment or UDP datagram, of which at least the whole header is there.
#[inline(always)]
fn flow_packet(payload: &[u8], ip: &Ip) -> Option<FlowPacket> {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    let ports: &[u8; 8] = payload.first_chunk()?;
    let tuple = |protocol| Tuple {
        source: ip.source,
        destination: ip.destination,
        source_port: u16::from_be_bytes([ports[0], ports[1]]),
        destination_port: u16::from_be_bytes([ports[2], ports[3]]),
        protocol,
    };
    if ip.protocol == UDP {
        return Some(FlowPacket {
            tuple: tuple(Protocol::Udp),
            opens: false,
            ends: false,
            resets: false,
            transport_at: ip.payload_at as u16,
            headers_len: ip.payload_at as u16 + 8,
        });
    }
    let header: &[u8; 20] = payload.first_chunk()?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < 20 || header_len > payload.len() {
        return None;
    }
    let flags = header[13];
    Some(FlowPacket {
        tuple: tuple(Protocol::Tcp),
        opens: flags & (SYN | ACK) == SYN,
        ends: flags & FIN != 0,
        resets: flags & RST != 0,
        transport_at: ip.payload_at as u16,
        headers_len: (ip.payload_at + header_len) as u16,
    })
}

/// The first one must hold the whole transport header (RFC 1858, RFC 7112): without it nobody could tell the
/// flow, and who sends such fragments wants to get around a filter.
fn fragment(payload: &[u8], ip: &Ip, part: Part) -> Result<Fragment, DropReason> {
    let len = ip.end - part.at;
    // Only the last may be no multiple of eight bytes, and none is empty.
    let sound = len > 0 && (!part.more || len.is_multiple_of(8)) && part.offset as usize + len <= MAX_DATAGRAM_LEN;
    if !sound {
        return Err(DropReason::Malformed);
    }
    let (is_flow, protocol) = match ip.destination.is_ipv4() {
        true => (matches!(ip.protocol, TCP | UDP), ip.protocol),
        // A later fragment may be of any protocol: it names only that of the first header behind its own.
        false => (part.offset != 0 || matches!(ip.protocol, TCP | UDP), 0),
    };
    if !is_flow {
        return Err(DropReason::ProtocolUnsupported);
    }
    let flow = match part.offset {
        0 => Some(flow_packet(payload, ip).ok_or(DropReason::Malformed)?),
        _ => None,
    };
    Ok(Fragment {
        datagram: DatagramId { source: ip.source, destination: ip.destination, protocol, id: part.id },
        offset: part.offset,
        len: len as u32,
        more: part.more,
        flow,
    })
}

/// The quoted packet went from the VIP to the client; its flow is the one from the client to the VIP.
fn quoted(ip: &Ip, quote: Option<Quote>) -> Packet {
    match quote {
        Some(quote) if quote.from == ip.destination => Packet::Error(IcmpError {
            source: ip.source,
            destination: ip.destination,
            tuple: Tuple {
                source: quote.to,
                destination: quote.from,
                source_port: quote.to_port,
                destination_port: quote.from_port,
                protocol: quote.protocol,
            },
        }),
        _ => Packet::Other(DropReason::IcmpUnrelated, Some(ip.destination)),
    }
}

/// A packet in an ICMP error. Its end is missing, and its lengths tell of the whole.
struct Quote {
    from: Address,
    to: Address,
    protocol: Protocol,
    from_port: u16,
    to_port: u16,
}

/// RFC 792: the IP header and at least eight bytes.
fn quoted_ipv4(packet: &[u8]) -> Option<Quote> {
    let header: &[u8; IPV4_MIN_HEADER_LEN] = packet.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let is_first = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_OFFSET == 0;
    if header[0] >> 4 != 4 || header_len < IPV4_MIN_HEADER_LEN || !is_first {
        return None;
    }
    let from = Address::from([header[12], header[13], header[14], header[15]]);
    let to = Address::from([header[16], header[17], header[18], header[19]]);
    quoted_ports(packet.get(header_len..)?, header[9], from, to)
}

/// RFC 4443: as much of the packet as fits into 1280 bytes.
fn quoted_ipv6(packet: &[u8]) -> Option<Quote> {
    // Cut as it is: only what is there is read.
    let header: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
    let (from, to) = ipv6_addresses(header)?;
    let mut ip = Ip::v6(from, to, header[6], packet.len());
    extensions(packet, &mut ip).ok()?;
    if header[0] >> 4 != 6 || ip.fragment.is_some_and(|part| part.offset != 0) {
        return None;
    }
    quoted_ports(packet.get(ip.payload_at..)?, ip.protocol, from, to)
}

fn quoted_ports(transport: &[u8], protocol: u8, from: Address, to: Address) -> Option<Quote> {
    let protocol = match protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Quote { from, to, protocol, from_port: be16(transport, 0)?, to_port: be16(transport, 2)? })
}
