//! Whom a caller's address stands for, before he has shown who he is.

use std::net::IpAddr;

/// What one host has all addresses of: its IPv6 network of 64 bits (RFC 4291 2.5.4), or its IPv4 address.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}
