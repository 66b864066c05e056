//! Frames as bytes: bounds-checked views, the parse that every frame goes through, and the few
//! rewrites. Nothing here knows a table, a socket or a clock, and no input makes it panic.
//!
//! After: [`crate::forward`] decides on what [`parse()`] found.

mod address;
pub mod arp;
pub mod checksum;
mod ethernet;
pub mod fragments;
pub mod icmp;
pub mod ndp;
pub mod parse;
pub mod rewrite;
mod vnet;

use std::{net::IpAddr, ops::RangeInclusive};

pub use address::Address;
pub(crate) use ethernet::{ADDRESSES_LEN, VLAN_NUMBER, be16, vlan};
pub use ethernet::{
    ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, Mac,
    destination, source,
};
pub use parse::{DatagramId, Echo, FlowPacket, Fragment, IcmpError, Packet, Protocol, Tuple, flow, parse};
pub use vnet::{FrameMeta, OwnedFrame, VnetHeader};

/// The ports from which this node asks backends how they are, above those that Linux gives to connections of its own
/// (net.ipv4.ip_local_port_range). What comes to them from a VIP is not the kernel's.
pub const CHECK_PORTS: RangeInclusive<u16> = 61_000..=64_999;

/// Asks for the MAC address of `target`, in the way of its family: everybody, or the host that had it last.
/// `None` where the two addresses are of different families.
pub fn question(own: Mac, sender: IpAddr, target: IpAddr, last_known: Option<Mac>) -> Option<Vec<u8>> {
    match (sender, target) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => Some(arp::request(own, sender, target, last_known).to_vec()),
        (IpAddr::V6(sender), IpAddr::V6(target)) => Some(ndp::solicitation(own, sender, target, last_known).to_vec()),
        _ => None,
    }
}

/// Asks whether anybody has an address.
pub fn probe(own: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp::probe(own, address).to_vec(),
        IpAddr::V6(address) => ndp::probe(own, address).to_vec(),
    }
}

/// Announces that `own` has `vip`.
pub fn announcements(own: Mac, vip: IpAddr) -> Vec<Vec<u8>> {
    match vip {
        IpAddr::V4(vip) => arp::announcements(own, vip).map(|frame| frame.to_vec()).into(),
        IpAddr::V6(vip) => vec![ndp::announcement(own, vip).to_vec()],
    }
}

#[cfg(test)]
mod tests;
