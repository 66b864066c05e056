//! The flows that the program knows: where one stands in the table of its family, and how it is written there while the program
//! reads.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{GROUP_BYTES, laid, mixed, raw_address};
use crate::{
    forward::flow::Tick,
    packet::{Protocol, Tuple},
};

/// Words of a flow.
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

/// A flow as it is looked for: its addresses, its ports and its protocol.
pub(super) struct FlowAt {
    pub(super) family: Family,
    addresses: [u64; 4],
    /// The ports in the lower half, and [`UDP_FLOW`].
    ports: u64,
    /// As the program has it.
    pub(super) hash: u64,
}

impl FlowAt {
    pub(super) fn new(tuple: &Tuple, hash_key: u64) -> Self {
        let ports = [tuple.source_port.to_be_bytes(), tuple.destination_port.to_be_bytes()];
        let ports = u64::from(u32::from_ne_bytes(laid(&[ports.as_flattened()])));
        let ports = ports | if tuple.protocol == Protocol::Udp { UDP_FLOW } else { 0 };
        let ([a, b], [c, d]) = (raw_address(tuple.source), raw_address(tuple.destination));
        let (family, addresses) = match tuple.source.is_ipv4() && tuple.destination.is_ipv4() {
            true => (Family::V4, [c << 32 | a, 0, 0, 0]),
            false => (Family::V6, [a, b, c, d]),
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
