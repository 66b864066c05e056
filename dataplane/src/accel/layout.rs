//! What the program and this process both know, as `bpf/accelerator.bpf.c` has it. Pure.

use crate::{
    forward::{
        runtime::mac_word,
        snapshot::{Backend, Snapshot},
        spec::PortSpec,
    },
    io::sys::bpf::{MapKind, MapShape},
    packet::{Address, Mac, Protocol},
};

/// Backends in higher slots are not forwarded to.
pub(super) const SLOTS: usize = 16_384;
/// Of processors beyond that frames are passed.
pub(super) const PROCESSORS: usize = 256;
/// Interfaces with higher indexes are not accelerated.
pub(super) const PORTS: usize = 4096;

/// Words of the elements of arrays, and where in them is what.
pub(super) const VALID_UNTIL: usize = 0;
pub(super) const FRESH: usize = 1;
pub(super) const STRANGERS: usize = 2;
pub(super) const HASH_KEY: usize = 3;
pub(super) const MASKS: usize = 4;
pub(super) const FRAME_NS: usize = 5;
pub(super) const FLOW_KEY: usize = 6;
pub(super) const ELSEWHERE: usize = 8;
const SETTINGS_WORDS: usize = 9;
pub(super) const PORT_WORDS: usize = 2;
pub(super) const BACKEND_WORDS: usize = 4;
pub(super) const NAME: usize = 0;
pub(super) const GIVEN_MAC: usize = 1;
pub(super) const RESOLVED_MAC: usize = 2;
pub(super) const WAY: usize = 3;
pub(super) const TRAFFIC_WORDS: usize = 3;
pub(super) const PROCESSOR_WORDS: usize = 16;
pub(super) const PLACED: usize = 12;
pub(super) const SERVICE_WORDS: usize = 8;
pub(super) const SERVICE_VERSION: usize = 0;
pub(super) const SERVICE_ADDRESS: usize = 1;
pub(super) const SERVICE_PORT: usize = 3;
pub(super) const SERVICE_TABLE: usize = 4;

/// Services stand in groups in which they are looked for.
pub(super) const GROUP_SERVICES: usize = 8;
const SERVICE_GROUPS: usize = 4096;
/// Hashes are marked by a bit for so many of their upper bits.
pub(super) const BITS_BAD: u32 = 20;
pub(super) const BITS_ELSEWHERE: u32 = 23;
/// In the word of a service's port: its VIP is an IPv6 address.
pub(super) const V6: u32 = 1 << 24;
/// For all Maglev tables: 32 MiB, four entries in a word.
pub(super) const MAGLEV_WORDS: usize = 1 << 22;

/// Why frames were passed to the usual way, in the order of the program's counters, of which the first is that of frames
/// that were not.
pub(super) const PASSED: [&str; 8] =
    ["stale", "not_ours", "odd", "partial_checksum", "unknown", "expired", "backend", "too_big"];

/// Flows of either family stand in groups of 256 bytes, in which they are looked for.
pub(super) const GROUP_BYTES: usize = 256;
pub(super) const MAPS: usize = 13;

/// The maps, with so many groups of flows.
pub(super) fn shapes(processors: usize, groups: [usize; 2]) -> [MapShape; MAPS] {
    let map = |name, kind, (key_bytes, value_bytes), entries| MapShape { name, kind, key_bytes, value_bytes, entries };
    let array = |name, words: usize, entries| map(name, MapKind::Array, (4, words * 8), entries);
    [
        array("settings", SETTINGS_WORDS, 1),
        array("ports", PORT_WORDS, PORTS),
        map("strangers", MapKind::Hash, (8, 8), 4096),
        array("flows_v4", GROUP_BYTES / 8, groups[0]),
        array("flows_v6", GROUP_BYTES / 8, groups[1]),
        array("backends", BACKEND_WORDS, SLOTS),
        array("traffic", TRAFFIC_WORDS, processors * SLOTS),
        array("processors", PROCESSOR_WORDS, processors),
        map("devices", MapKind::DevmapHash, (4, 8), 64),
        array("services", GROUP_SERVICES * SERVICE_WORDS, SERVICE_GROUPS),
        array("maglev", 1, MAGLEV_WORDS),
        array("bad_sources", 1, 1 << (BITS_BAD - 6)),
        array("elsewhere", 1, 2 << (BITS_ELSEWHERE - 6)),
    ]
}

/// Some fields, one behind the other.
pub(super) fn laid<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut rest = &mut bytes[..];
    for field in fields {
        let (place, behind) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = behind;
    }
    bytes
}

/// What entries of flows call a backend, as long as the ports of its service stay as they are and it loses no flows: both counts
/// only grow.
pub(super) fn name(snapshot: &Snapshot, backend: &Backend) -> u64 {
    let ports = snapshot.services.get(backend.service as usize).map_or(0, |service| service.ports_version);
    let version = ports.wrapping_add(backend.losses);
    u64::from(version) << 32 | u64::from(backend.reference.get())
}

/// The words of a backend but for its MAC address that is resolved; its service has a number. `None`: no frame goes to it by
/// this way.
pub(super) fn backend(snapshot: &Snapshot, backend: &Backend, service: u32) -> Option<[u64; 3]> {
    let keeps = |protocol| u64::from(backend.state.keeps(protocol));
    let takes = keeps(Protocol::Tcp) | keeps(Protocol::Udp) << 1;
    if takes == 0 {
        return None;
    }
    let port = snapshot.ports.get(backend.port().filter(|_| !backend.is_self)?)?;
    let way = (u64::from(service) << 2 | takes) << 32 | u64::from(port.ifindex);
    Some([name(snapshot, backend), mac_word(backend.given_mac), way])
}

/// An address as it stands in frames; one of IPv4 in the first word.
pub(super) fn raw_address(address: Address) -> [u64; 2] {
    match address.is_ipv4() {
        true => [address.last_word().to_be().into(), 0],
        false => address.halves().map(u64::to_be),
    }
}

/// A hash goes on with a word. Keyed, so that it is not the same on two nodes or after a start.
pub(super) fn mixed(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 32
}

/// Where a hash is marked that goes by so many of its bits: the word, and the bit there.
pub(super) fn mark(bits: u32, hash: u64) -> (usize, u64) {
    let at = hash >> (u64::BITS - bits);
    ((at >> 6) as usize, 1 << (at & 63))
}

/// The words of an interface.
pub(super) fn port(port: &PortSpec, redirects: bool) -> [u64; PORT_WORDS] {
    // No frame is longer that comes whole.
    let mtu = u16::try_from(port.mtu).unwrap_or(u16::MAX);
    [u64::from_ne_bytes(laid(&[&port.mac.0, &mtu.to_ne_bytes()])), redirects.into()]
}

/// The bit of a stranger in the word that tells of most stations that they are none.
pub(super) fn stranger_bit(key: [u8; 8]) -> u64 {
    1 << (key[5] & 63)
}

/// Who sends frames that were balanced before.
pub(super) fn stranger(mac: Mac) -> [u8; 8] {
    laid(&[&mac.0])
}
