//! IPv6 neighbour discovery (RFC 4861): reading, answering, asking and announcing.

use std::net::Ipv6Addr;

use super::{ETHERNET_HEADER_LEN, ETHERTYPE_IPV6, Mac, checksum};

/// The ICMPv6 type of a neighbour solicitation.
pub const SOLICITATION: u8 = 135;
/// The ICMPv6 type of a neighbour advertisement.
pub const ADVERTISEMENT: u8 = 136;

/// Ethernet, IPv6, a message, and one option with a MAC address.
pub const FRAME_LEN: usize = IPV6_END + MESSAGE_LEN + OPTION_LEN;

const IPV6_END: usize = ETHERNET_HEADER_LEN + 40;
/// Type, code, checksum, flags, target.
const MESSAGE_LEN: usize = 24;
/// One with an Ethernet address.
const OPTION_LEN: usize = 8;
const ICMPV6: u8 = 58;
/// A message from another segment has passed a router, and has less (RFC 4861 7.1).
const HOP_LIMIT: u8 = 255;
const HOP_LIMIT_AT: usize = ETHERNET_HEADER_LEN + 7;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A neighbour solicitation or advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// What it does.
    pub kind: Kind,
    /// Who sent it; unspecified while the sender has no address yet.
    pub source: Ipv6Addr,
    /// The address that is asked for or told of.
    pub target: Ipv6Addr,
    /// The MAC address in its option: the sender's in a solicitation, the target's in an advertisement.
    pub mac: Option<Mac>,
}

impl Message {
    /// Whose MAC address it tells.
    pub fn of(&self) -> Ipv6Addr {
        match self.kind {
            Kind::Advertisement { .. } => self.target,
            Kind::Solicitation => self.source,
        }
    }
}

/// What a message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who has the target address?
    Solicitation,
    /// The target has this MAC address.
    Advertisement {
        /// It answers a solicitation.
        solicited: bool,
        /// It takes the place of another MAC address (RFC 4861 7.2.5).
        overrides: bool,
    },
}

/// Reads a message, valid by RFC 4861 7.1, whose ICMPv6 header is at `at`.
pub fn parse(frame: &[u8], at: usize, end: usize) -> Option<Message> {
    let message = frame.get(at..end)?;
    let fixed: &[u8; MESSAGE_LEN] = message.first_chunk()?;
    let addresses: &[u8; 32] = frame.get(IPV6_END - 32..)?.first_chunk()?;
    let address = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from);
    let (source, destination) = (address(&addresses[..16])?, address(&addresses[16..])?);
    let target = address(&fixed[8..])?;
    let sound = frame[HOP_LIMIT_AT] == HOP_LIMIT
        && fixed[1] == 0
        && !target.is_multicast()
        && checksum::icmpv6(source, destination, message) == 0;
    if !sound {
        return None;
    }
    let is_solicitation = fixed[0] == SOLICITATION;
    let mac = option(&message[MESSAGE_LEN..], if is_solicitation { SOURCE_LINK_LAYER } else { TARGET_LINK_LAYER })?;
    let solicited = fixed[4] & SOLICITED != 0;
    let sound = match is_solicitation {
        // Of an address that is being tested (RFC 4862 5.4).
        true if source.is_unspecified() => mac.is_none() && destination == solicited_node(target),
        true => true,
        false => !(destination.is_multicast() && solicited),
    };
    let kind = match is_solicitation {
        true => Kind::Solicitation,
        false => Kind::Advertisement { solicited, overrides: fixed[4] & OVERRIDE != 0 },
    };
    sound.then_some(Message { kind, source, target, mac })
}

/// The MAC address in the option of that type; `None` if the options are not sound.
fn option(mut options: &[u8], kind: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while let [of_kind, units, ..] = options {
        let len = usize::from(*units) * OPTION_LEN;
        let option = options.get(..len).filter(|option| !option.is_empty())?;
        if *of_kind == kind && len == OPTION_LEN {
            found = option.last_chunk().map(|octets| Mac(*octets));
        }
        options = &options[len..];
    }
    options.is_empty().then_some(found)
}

/// The group to which solicitations for an address are sent (RFC 4291 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The Ethernet group of an IPv6 group (RFC 2464 7).
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// Asks for the MAC address of `target`: its group, or the host that had it last.
pub fn solicitation(own: Mac, sender: Ipv6Addr, target: Ipv6Addr, last_known: Option<Mac>) -> [u8; FRAME_LEN] {
    let group = solicited_node(target);
    // A known neighbour is asked at its own address (RFC 4861 7.2.4).
    let (mac, destination) = last_known.map_or((group_mac(group), group), |mac| (mac, target));
    let message = [SOLICITATION, 0];
    emit((mac, own), (sender, destination), message, target, (SOURCE_LINK_LAYER, own))
}

/// Asks whether anybody has `address` (RFC 4862 5.4.2): without a source, and so without an option.
pub fn probe(own: Mac, address: Ipv6Addr) -> [u8; FRAME_LEN - OPTION_LEN] {
    let group = solicited_node(address);
    let mut frame = [0; FRAME_LEN - OPTION_LEN];
    let whole = emit(
        (group_mac(group), own),
        (Ipv6Addr::UNSPECIFIED, group),
        [SOLICITATION, 0],
        address,
        (SOURCE_LINK_LAYER, own),
    );
    frame.copy_from_slice(&whole[..FRAME_LEN - OPTION_LEN]);
    seal(&mut frame, Ipv6Addr::UNSPECIFIED, group);
    frame
}

/// Answers a solicitation: `own` has the target. One who has no address yet hears it in the group of all
/// nodes, unsolicited (RFC 4861 7.2.4).
pub fn advertisement(own: Mac, asker: Mac, solicitation: &Message) -> [u8; FRAME_LEN] {
    let vip = solicitation.target;
    if solicitation.source.is_unspecified() {
        return announcement(own, vip);
    }
    let message = [ADVERTISEMENT, SOLICITED | OVERRIDE];
    emit((asker, own), (vip, solicitation.source), message, vip, (TARGET_LINK_LAYER, own))
}

/// Announces to all nodes that `own` has `vip` (RFC 4861 7.2.6).
pub fn announcement(own: Mac, vip: Ipv6Addr) -> [u8; FRAME_LEN] {
    let message = [ADVERTISEMENT, OVERRIDE];
    emit((group_mac(ALL_NODES), own), (vip, ALL_NODES), message, vip, (TARGET_LINK_LAYER, own))
}

fn emit(
    (to_mac, from_mac): (Mac, Mac),
    (source, destination): (Ipv6Addr, Ipv6Addr),
    [kind, flags]: [u8; 2],
    target: Ipv6Addr,
    (option, mac): (u8, Mac),
) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&to_mac.0);
    frame[6..12].copy_from_slice(&from_mac.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    let ip = &mut frame[ETHERNET_HEADER_LEN..];
    ip[0] = 0x60;
    ip[6] = ICMPV6;
    ip[7] = HOP_LIMIT;
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..40].copy_from_slice(&destination.octets());
    let message = &mut frame[IPV6_END..];
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[option, 1]);
    message[26..32].copy_from_slice(&mac.0);
    seal(&mut frame, source, destination);
    frame
}

/// Writes the length and the checksum of what stands behind the IPv6 header.
fn seal(frame: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) {
    let message = &mut frame[IPV6_END..];
    let len = message.len() as u16;
    message[2..4].fill(0);
    let sum = checksum::icmpv6(source, destination, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame[ETHERNET_HEADER_LEN + 4..ETHERNET_HEADER_LEN + 6].copy_from_slice(&len.to_be_bytes());
}
