//! ARP for IPv4 over Ethernet (RFC 826): reading, answering in place, asking and announcing.

use std::net::Ipv4Addr;

use super::{ETHERNET_HEADER_LEN, ETHERTYPE_ARP, Mac, be16};

/// Header and one ARP packet, unpadded.
pub const FRAME_LEN: usize = ETHERNET_HEADER_LEN + 28;

const ETHERNET: u16 = 1;
const IPV4: u16 = 0x0800;

/// What a packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has its address.
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// What it does.
    pub operation: Operation,
    /// The sender's MAC address.
    pub sender_mac: Mac,
    /// The sender's protocol address.
    pub sender: Ipv4Addr,
    /// The target's MAC address; unknown in a request.
    pub target_mac: Mac,
    /// The target's protocol address.
    pub target: Ipv4Addr,
}

/// Reads what follows the Ethernet header. `None` for anything but IPv4 over Ethernet.
pub fn parse(packet: &[u8]) -> Option<Arp> {
    let packet: &[u8; 28] = packet.first_chunk()?;
    let sound = be16(packet, 0)? == ETHERNET && be16(packet, 2)? == IPV4 && packet[4] == 6 && packet[5] == 4;
    let operation = match be16(packet, 6)? {
        1 => Operation::Request,
        2 => Operation::Reply,
        _ => return None,
    };
    let mac = |at: usize| Mac(packet[at..at + 6].try_into().unwrap_or_default());
    let ip = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    sound.then(|| Arp { operation, sender_mac: mac(8), sender: ip(14), target_mac: mac(18), target: ip(24) })
}

/// A whole frame.
pub fn emit(destination: Mac, source: Mac, arp: &Arp) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&destination.0);
    frame[6..12].copy_from_slice(&source.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    let packet = &mut frame[ETHERNET_HEADER_LEN..];
    packet[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    packet[7] = match arp.operation {
        Operation::Request => 1,
        Operation::Reply => 2,
    };
    packet[8..14].copy_from_slice(&arp.sender_mac.0);
    packet[14..18].copy_from_slice(&arp.sender.octets());
    packet[18..24].copy_from_slice(&arp.target_mac.0);
    packet[24..28].copy_from_slice(&arp.target.octets());
    frame
}

/// Turns a request in place into the answer that `mac` has the target address.
pub fn answer_in_place(frame: &mut [u8], request: &Arp, mac: Mac) {
    let reply = Arp {
        operation: Operation::Reply,
        sender_mac: mac,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
    };
    frame[..FRAME_LEN].copy_from_slice(&emit(request.sender_mac, mac, &reply));
}

/// Asks for the MAC address of `target`: by broadcast, or of the host that had it last.
pub fn request(own: Mac, sender: Ipv4Addr, target: Ipv4Addr, last_known: Option<Mac>) -> [u8; FRAME_LEN] {
    let arp = Arp { operation: Operation::Request, sender_mac: own, sender, target_mac: Mac::ZERO, target };
    emit(last_known.unwrap_or(Mac::BROADCAST), own, &arp)
}

/// Asks whether anybody has `address` (RFC 5227 2.1.1): the sender's own address stays unsaid.
pub fn probe(own: Mac, address: Ipv4Addr) -> [u8; FRAME_LEN] {
    request(own, Ipv4Addr::UNSPECIFIED, address, None)
}

/// Announces that `own` has `vip`, in the two forms that were found to be always accepted: a request
/// whose sender and target are the VIP (RFC 5227 2.3), and a reply whose target MAC address is
/// the sender's. A reply with another target address is ignored by Linux routers within the first
/// second of an entry; some switches learn from the request alone.
pub fn announcements(own: Mac, vip: Ipv4Addr) -> [[u8; FRAME_LEN]; 2] {
    let request =
        Arp { operation: Operation::Request, sender_mac: own, sender: vip, target_mac: Mac::ZERO, target: vip };
    let reply = Arp { operation: Operation::Reply, target_mac: own, ..request };
    [emit(Mac::BROADCAST, own, &request), emit(Mac::BROADCAST, own, &reply)]
}
