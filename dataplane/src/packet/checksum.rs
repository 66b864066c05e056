//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::Ipv6Addr;

/// The complement of the one's complement sum over `bytes`.
pub fn internet(bytes: &[u8]) -> u16 {
    !fold(sum(0, bytes))
}

/// Over an ICMPv6 message and its pseudo-header (RFC 4443 2.3). Zero over a message whose checksum is right.
pub fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    const NEXT_HEADER: u32 = 58;
    let addresses = sum(sum(0, &source.octets()), &destination.octets());
    // A message has less than 2^16 bytes, so its length fits into one word.
    !fold(sum(addresses + NEXT_HEADER + message.len() as u32, message))
}

/// The checksum after a 16-bit word that it covers changed (RFC 1624 equation 3).
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

/// Writes the checksum that a frame lacks: `start` is where the bytes begin that it covers, `offset` where it stands behind
/// that, and there the sum of the pseudo-header is now (Documentation/networking/checksum-offloads.rst). Nothing happens
/// where that is outside of the frame.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let Some(covered) = frame.get_mut(start..) else { return };
    let sum = internet(covered);
    // A checksum of zero would say that there is none (RFC 768).
    let sum = if sum == 0 { u16::MAX } else { sum };
    if let Some(place) = covered.get_mut(offset..offset + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Of at most 64 KiB: the sum does not overflow.
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).fold(start, |sum, pair| sum + word(pair))
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}
