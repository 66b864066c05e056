//! What a load balancer has to say itself: that a packet is too big for the way to its backend (RFC 1191,
//! RFC 8201), and that nobody serves a port (RFC 792, RFC 4443, and a reset for TCP, RFC 9293 3.10.7.1). Rare, so
//! built with a library, and never about what must not be answered: the caller asks only for packets of flows.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Type, Icmpv6Type, PacketBuilder, TcpHeaderSlice, icmpv4::DestUnreachableHeader, icmpv6::DestUnreachableCode,
};

use super::{ETHERNET_HEADER_LEN, FlowPacket, Mac, Protocol, fragments::len_without_trailer, source};

/// RFC 1700, as Linux sends it.
pub(super) const TTL: u8 = 64;
/// RFC 1812 4.3.2.3: the whole error has at most 576 bytes.
const QUOTED_V4: usize = 576 - 20 - 8;
/// RFC 4443 2.4 (c): at most the smallest MTU.
const QUOTED_V6: usize = 1280 - 40 - 8;

/// An answer to a frame: back to the station that it came from, and from `own` to the packet's source.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// The frame.
    pub to: &'a [u8],
    /// What was found in it.
    pub packet: &'a FlowPacket,
    /// The MAC address of the interface that it came by.
    pub mac: Mac,
}

impl Reply<'_> {
    /// The packet does not fit where it has to go. `own`: the node's address, of the packet's family.
    pub fn too_big(&self, own: IpAddr, mtu: u32) -> Option<Vec<u8>> {
        let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let v4 = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu });
        self.error(own, v4, Icmpv6Type::PacketTooBig { mtu })
    }

    /// Nobody serves the port: a reset, or an error.
    pub fn refusal(&self) -> Option<Vec<u8>> {
        if self.packet.tuple.protocol == Protocol::Tcp {
            return self.reset();
        }
        let v4 = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        let v6 = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port);
        self.error(self.packet.tuple.destination.into(), v4, v6)
    }

    /// Whether there is a [`Self::refusal`]: a reset is not answered by a reset (RFC 9293 3.10.7.1).
    pub fn is_refusable(&self) -> bool {
        let is_reset = || self.tcp().is_none_or(|tcp| tcp.rst());
        source(self.to).is_some()
            && self.ip_packet().is_some()
            && !(self.packet.tuple.protocol == Protocol::Tcp && is_reset())
    }

    fn tcp(&self) -> Option<TcpHeaderSlice<'_>> {
        let header = usize::from(self.packet.transport_at)..usize::from(self.packet.headers_len);
        TcpHeaderSlice::from_slice(self.to.get(header)?).ok()
    }

    fn error(&self, own: IpAddr, v4: Icmpv4Type, v6: Icmpv6Type) -> Option<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(self.mac.0, source(self.to)?.0);
        let quote = |longest: usize| self.ip_packet().map(|packet| &packet[..packet.len().min(longest)]);
        let mut frame = Vec::new();
        match (own, self.packet.tuple.source.into()) {
            (IpAddr::V4(own), IpAddr::V4(client)) => {
                let ip = ethernet.ipv4(own.octets(), client.octets(), TTL);
                ip.icmpv4(v4).write(&mut frame, quote(QUOTED_V4)?).ok()?;
            }
            (IpAddr::V6(own), IpAddr::V6(client)) => {
                let ip = ethernet.ipv6(own.octets(), client.octets(), TTL);
                ip.icmpv6(v6).write(&mut frame, quote(QUOTED_V6)?).ok()?;
            }
            _ => return None,
        }
        Some(frame)
    }

    fn reset(&self) -> Option<Vec<u8>> {
        let tuple = &self.packet.tuple;
        let ip_packet = self.ip_packet()?;
        let headers_len = usize::from(self.packet.headers_len);
        let payload_len = ip_packet.len().checked_sub(headers_len - ETHERNET_HEADER_LEN)?;
        let tcp = self.tcp()?;
        if tcp.rst() {
            return None;
        }
        let ethernet = PacketBuilder::ethernet2(self.mac.0, source(self.to)?.0);
        let ip = match (tuple.destination.into(), tuple.source.into()) {
            (IpAddr::V4(vip), IpAddr::V4(client)) => ethernet.ipv4(vip.octets(), client.octets(), TTL),
            (IpAddr::V6(vip), IpAddr::V6(client)) => ethernet.ipv6(vip.octets(), client.octets(), TTL),
            _ => return None,
        };
        let sequence = if tcp.ack() { tcp.acknowledgment_number() } else { 0 };
        let mut reset = ip.tcp(tuple.destination_port, tuple.source_port, sequence, 0).rst();
        if !tcp.ack() {
            let len = payload_len as u32 + u32::from(tcp.syn()) + u32::from(tcp.fin());
            reset = reset.ack(tcp.sequence_number().wrapping_add(len));
        }
        let mut frame = Vec::new();
        reset.write(&mut frame, &[]).ok()?;
        Some(frame)
    }

    /// Without the padding of a short frame.
    fn ip_packet(&self) -> Option<&[u8]> {
        self.to.get(ETHERNET_HEADER_LEN..len_without_trailer(self.to)?)
    }
}
