//! Ethernet: MAC addresses, ethertypes, VLAN tags, and where they stand in a frame.

use std::fmt;

/// The two MAC addresses at its beginning: all that forwarding changes.
pub(crate) const ADDRESSES_LEN: usize = 12;
/// Destination, source, ethertype (IEEE 802.3 3.2).
pub const ETHERNET_HEADER_LEN: usize = 14;
/// IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// A customer's VLAN tag (IEEE 802.1Q 9.5).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// A service provider's.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// The VLAN's number in the tag control information; the other bits are priority. 0 names no VLAN (IEEE 802.1Q 9.6).
pub(crate) const VLAN_NUMBER: u16 = 0x0fff;

/// An Ethernet MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No station; the unknown address in an ARP request.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether a host can have it: neither zero nor a group address.
    pub fn is_host(self) -> bool {
        self != Self::ZERO && !self.is_group()
    }

    /// Whether it stands for several stations.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The destination of an Ethernet frame.
pub fn destination(frame: &[u8]) -> Option<Mac> {
    frame.first_chunk().map(|octets| Mac(*octets))
}

/// The source of an Ethernet frame.
pub fn source(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok().map(Mac)
}

/// What a frame carries.
pub(super) fn ethertype(frame: &[u8]) -> Option<u16> {
    be16(frame, 12)
}

/// The number in a frame's VLAN tag, and the frame without it.
pub(crate) fn vlan(frame: &[u8]) -> Option<(u16, Vec<u8>)> {
    let is_tagged = matches!(be16(frame, 12)?, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN);
    let number = be16(frame, 14)? & VLAN_NUMBER;
    is_tagged.then(|| (number, [&frame[..12], &frame[16..]].concat()))
}

/// Two bytes in network order.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
