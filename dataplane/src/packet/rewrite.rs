//! The two rewrites: a frame to its backend, and an echo request into its reply.

use super::{ETHERNET_HEADER_LEN, Echo, Mac, be16, checksum, icmp::TTL};

const TTL_AT: usize = ETHERNET_HEADER_LEN + 8;
const IP_CHECKSUM_AT: usize = ETHERNET_HEADER_LEN + 10;
const HOP_LIMIT_AT: usize = ETHERNET_HEADER_LEN + 7;
/// RFC 792
const ECHO_REPLY: u8 = 0;
/// RFC 4443 4.2
const ECHO_REPLY_V6: u8 = 129;

/// Sends the frame on: only the two MAC addresses change. The source too, or switches would
/// learn the router's address on our port.
pub fn to_backend(frame: &mut [u8], backend: Mac, own: Mac) {
    frame[..6].copy_from_slice(&backend.0);
    frame[6..12].copy_from_slice(&own.0);
}

/// Turns an echo request in place into its reply (RFC 792, RFC 4443 4.2): addresses swapped, the type of a reply,
/// a TTL of its own (a traceroute's request arrives with its last one), the checksums updated. The swap of the
/// addresses changes no checksum.
pub fn echo_reply(frame: &mut [u8], echo: &Echo, own: Mac) {
    let asker: [u8; 6] = [frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]];
    frame[..6].copy_from_slice(&asker);
    frame[6..12].copy_from_slice(&own.0);
    let (addresses, len, reply) = match echo.destination.is_ipv4() {
        true => (ETHERNET_HEADER_LEN + 12, 4, ECHO_REPLY),
        false => (ETHERNET_HEADER_LEN + 8, 16, ECHO_REPLY_V6),
    };
    let (source, destination) = frame[addresses..addresses + 2 * len].split_at_mut(len);
    source.swap_with_slice(destination);
    match echo.destination.is_ipv4() {
        true => renew_ttl(frame),
        false => frame[HOP_LIMIT_AT] = TTL,
    }
    let at = echo.icmp_at;
    let word = |kind: u8| u16::from_be_bytes([kind, frame[at + 1]]);
    let (before, after) = (word(frame[at]), word(reply));
    if let Some(sum) = be16(frame, at + 2) {
        frame[at] = reply;
        frame[at + 2..at + 4].copy_from_slice(&checksum::update(sum, before, after).to_be_bytes());
    }
}

fn renew_ttl(frame: &mut [u8]) {
    let before = be16(frame, TTL_AT).unwrap_or_default();
    frame[TTL_AT] = TTL;
    let after = be16(frame, TTL_AT).unwrap_or_default();
    if let Some(sum) = be16(frame, IP_CHECKSUM_AT) {
        let sum = checksum::update(sum, before, after);
        frame[IP_CHECKSUM_AT..IP_CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
