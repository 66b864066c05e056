//! IP addresses as every packet has them compared and hashed: one number, whatever the family.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP address. IPv4 is mapped into IPv6 (RFC 4291 2.5.5.2), which no packet may carry as such: the parser refuses it,
/// so that the two families never meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    high: u64,
    low: u64,
}

/// What stands before a mapped IPv4 address, of the low half.
const MAPPED: u64 = 0xffff << 32;

impl Address {
    /// The unspecified IPv6 address.
    pub const ZERO: Self = Self { high: 0, low: 0 };

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub fn is_ipv4(self) -> bool {
        self.high == 0 && self.low >> 32 == MAPPED >> 32
    }

    /// Whether no host may send from it (RFC 1122 3.2.1.3, RFC 4291 2.5.2, 2.5.3 and 2.7): the unspecified address, "this
    /// network", loopback, a group's, and the limited broadcast.
    pub fn is_never_a_source(self) -> bool {
        match self.is_ipv4() {
            true => matches!(self.low as u32 >> 24, 0 | 127 | 224..=239) || self.low as u32 == u32::MAX,
            false => self.high >> 56 == 0xff || self.high == 0 && self.low <= 1,
        }
    }

    /// The halves of the IPv6 address.
    #[inline(always)]
    pub fn halves(self) -> [u64; 2] {
        [self.high, self.low]
    }

    /// Its last 32 bits: all of an IPv4 address.
    #[inline(always)]
    pub fn last_word(self) -> u32 {
        self.low as u32
    }
}

impl From<[u8; 4]> for Address {
    #[inline(always)]
    fn from(octets: [u8; 4]) -> Self {
        Self { high: 0, low: MAPPED | u64::from(u32::from_be_bytes(octets)) }
    }
}

impl From<[u8; 16]> for Address {
    #[inline(always)]
    fn from(octets: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(octets);
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        address.octets().into()
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        address.octets().into()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(Address { high, low }: Address) -> Self {
        Self::V6(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low))).to_canonical()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&IpAddr::from(*self), f)
    }
}
