//! What the program and this process both know, as `bpf/accelerator.bpf.c` has it. Pure.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    forward::{
        flow::Tick,
        runtime::mac_word,
        snapshot::{Backend, Snapshot},
        spec::PortSpec,
    },
    io::sys::bpf::{MapKind, MapShape},
    packet::{Address, Mac, Protocol, Tuple},
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
const SETTINGS_WORDS: usize = 5;
pub(super) const PORT_WORDS: usize = 2;
pub(super) const BACKEND_WORDS: usize = 4;
pub(super) const NAME: usize = 0;
pub(super) const GIVEN_MAC: usize = 1;
pub(super) const RESOLVED_MAC: usize = 2;
pub(super) const WAY: usize = 3;
pub(super) const TRAFFIC_WORDS: usize = 2;
pub(super) const PROCESSOR_WORDS: usize = 16;

/// Why frames were passed to the usual way, in the order of the program's counters, of which the first is that of frames
/// that were not.
pub(super) const PASSED: [&str; 8] =
    ["stale", "not_ours", "odd", "partial_checksum", "unknown", "expired", "backend", "too_big"];

/// Flows of either family stand in groups of 256 bytes, in which they are looked for.
const GROUP_BYTES: usize = 256;
/// Words of a flow, with one address in a word or in two.
const V4_WORDS: usize = 4;
const V6_WORDS: usize = 8;
/// Of a stamp, the bits of its tick.
const TICK_MASK: u32 = (1 << 29) - 1;
/// By so many ticks, 8 s, entries differ in how long they are good.
const JITTER: u32 = 120;
/// In the upper half of the word of ports: it is a flow of UDP.
const UDP_FLOW: u64 = 1 << 63;

/// How many groups there are for about so many flows: a power of two.
pub(super) fn groups(flows: usize, family: Family) -> usize {
    (flows / (GROUP_BYTES / 8 / family.words())).next_power_of_two()
}

/// Of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn words(self) -> usize {
        match self {
            Self::V4 => V4_WORDS,
            Self::V6 => V6_WORDS,
        }
    }

    /// Of these, for the addresses; behind them stand the ports and the stamp, the backend, and the check.
    fn addresses(self) -> usize {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }
}

/// The maps, with so many groups of flows.
pub(super) fn shapes(processors: usize, groups: [usize; 2]) -> [MapShape; 9] {
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
    ]
}

/// A flow as it is looked for: its addresses, its ports and its protocol.
pub(super) struct FlowAt {
    pub(super) family: Family,
    addresses: [u64; 4],
    /// The ports in the lower half, and [`UDP_FLOW`].
    ports: u64,
    hash: u64,
}

impl FlowAt {
    pub(super) fn new(tuple: &Tuple, hash_key: u64) -> Self {
        let ports = [tuple.source_port.to_be_bytes(), tuple.destination_port.to_be_bytes()];
        let ports = u64::from(u32::from_ne_bytes(laid(&[ports.as_flattened()])));
        let ports = ports | if tuple.protocol == Protocol::Udp { UDP_FLOW } else { 0 };
        let [source, destination] = [tuple.source, tuple.destination];
        let word = |address: Address| u32::from_ne_bytes(address.last_word().to_be_bytes());
        let (family, addresses) = match source.is_ipv4() && destination.is_ipv4() {
            true => (Family::V4, [u64::from(word(destination)) << 32 | u64::from(word(source)), 0, 0, 0]),
            false => {
                // As they stand in the frame.
                let [[a, b], [c, d]] = [source, destination].map(|of| of.halves().map(u64::to_be));
                (Family::V6, [a, b, c, d])
            }
        };
        let hash = addresses[..family.addresses()].iter().fold(hash_key, |hash, word| mixed(hash, *word));
        // As the program has them: the mark stands one bit above the ports there.
        let hash = mixed(hash, (ports & UDP_FLOW) >> 31 | ports & u64::from(u32::MAX));
        Self { family, addresses, ports, hash }
    }

    /// The places in the table of its family where it may stand, the likeliest first.
    fn places<'a>(&self, table: &'a [AtomicU64]) -> impl DoubleEndedIterator<Item = &'a [AtomicU64]> + use<'a> {
        const IN_GROUP: usize = GROUP_BYTES / 8;
        let words = self.family.words();
        let group = (self.hash >> 8) as usize & (table.len() / IN_GROUP - 1);
        let group = &table[group * IN_GROUP..(group + 1) * IN_GROUP];
        let (first, count) = (self.hash as usize, IN_GROUP / words);
        (0..count).map(move |i| (first + i) % count).map(move |at| &group[at * words..(at + 1) * words])
    }

    /// Whether it stands there, whole or not.
    fn stands_in(&self, place: &[AtomicU64]) -> bool {
        let (addresses, mark) = (self.family.addresses(), u64::from(u32::MAX) | UDP_FLOW);
        load(&place[addresses]) & mark == self.ports
            && place.iter().zip(&self.addresses[..addresses]).all(|(word, wanted)| load(word) == *wanted)
    }

    /// Takes it out of the table of its family.
    pub(super) fn forget(&self, table: &[AtomicU64]) {
        for place in self.places(table).filter(|place| self.stands_in(place)) {
            place[self.family.addresses() + 1].store(0, Ordering::Release);
        }
    }

    /// Enters it into the table of its family, in place of itself, of nothing, or of what was entered longest ago.
    pub(super) fn enter(&self, table: &[AtomicU64], backend: u64, now: Tick) {
        let addresses = self.family.addresses();
        // Flows that begin together do not end together.
        let entered = now.number().wrapping_sub((self.hash >> 56) as u32 % JITTER) & TICK_MASK;
        let stamp = u64::from(entered) << 32 | self.ports;
        let age = |slot: &&[AtomicU64]| match load(&slot[addresses + 1]) {
            0 => u32::MAX,
            _ => now.number().wrapping_sub((load(&slot[addresses]) >> 32) as u32) & TICK_MASK,
        };
        let own = self.places(table).find(|place| self.stands_in(place));
        let Some(slot) = own.or_else(|| self.places(table).rev().max_by_key(age)) else { return };
        let store = |at: usize, value: u64| slot[at].store(value, Ordering::Release);
        let is_whole = load(&slot[addresses + 2]) == backend ^ self.hash;
        if own.is_some() && load(&slot[addresses + 1]) == backend && is_whole {
            return store(addresses, stamp);
        }
        // Nobody finds it here until all is written.
        store(addresses + 1, 0);
        self.addresses[..addresses].iter().enumerate().for_each(|(at, word)| store(at, *word));
        store(addresses, stamp);
        store(addresses + 2, backend ^ self.hash);
        store(addresses + 1, backend);
    }
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// Spreads a word over all bits.
fn mixed(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 32
}

/// Some fields, one behind the other.
fn laid<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
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

/// The words of a backend but for its MAC address that is resolved. `None`: no frame goes to it by this way.
pub(super) fn backend(snapshot: &Snapshot, backend: &Backend) -> Option<[u64; 3]> {
    let keeps = |protocol| u64::from(backend.state.keeps(protocol));
    let takes = keeps(Protocol::Tcp) | keeps(Protocol::Udp) << 1;
    if takes == 0 {
        return None;
    }
    let port = snapshot.ports.get(backend.port().filter(|_| !backend.is_self)?)?;
    let way = takes << 32 | u64::from(port.ifindex);
    Some([name(snapshot, backend), mac_word(backend.given_mac), way])
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
