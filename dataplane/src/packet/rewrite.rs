//! The two rewrites: a frame to its backend, and an echo request into its reply.

use super::{ETHERNET_HEADER_LEN, Echo, Mac, be16, checksum};

const TTL_AT: usize = ETHERNET_HEADER_LEN + 8;
const IP_CHECKSUM_AT: usize = ETHERNET_HEADER_LEN + 10;
/// RFC 1700, as Linux sends it.
const TTL: u8 = 64;

/// Sends the frame on: only the two hardware addresses change. The source too, or switches would
/// learn the router's address on our port.
pub fn to_backend(frame: &mut [u8], backend: Mac, own: Mac) {
    frame[..6].copy_from_slice(&backend.0);
    frame[6..12].copy_from_slice(&own.0);
}

/// Turns an echo request in place into its reply (RFC 792): addresses swapped, type 0, a TTL of its own (a
/// traceroute's request arrives with its last one), the checksums updated. The swap of the addresses
/// does not change the IP checksum.
pub fn echo_reply(frame: &mut [u8], echo: &Echo, own: Mac) {
    let asker: [u8; 6] = [frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]];
    frame[..6].copy_from_slice(&asker);
    frame[6..12].copy_from_slice(&own.0);
    let addresses = &mut frame[ETHERNET_HEADER_LEN + 12..ETHERNET_HEADER_LEN + 20];
    let (source, destination) = addresses.split_at_mut(4);
    source.swap_with_slice(destination);
    let ttl_word = be16(frame, TTL_AT).unwrap_or_default();
    frame[TTL_AT] = TTL;
    let new_ttl_word = be16(frame, TTL_AT).unwrap_or_default();
    if let Some(sum) = be16(frame, IP_CHECKSUM_AT) {
        let sum = checksum::update(sum, ttl_word, new_ttl_word);
        frame[IP_CHECKSUM_AT..IP_CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let at = echo.icmp_at;
    let code = u16::from(frame[at + 1]);
    let before = u16::from(frame[at]) << 8 | code;
    if let Some(sum) = be16(frame, at + 2) {
        frame[at] = 0;
        frame[at + 2..at + 4].copy_from_slice(&checksum::update(sum, before, code).to_be_bytes());
    }
}
