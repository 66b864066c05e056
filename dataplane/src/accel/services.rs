//! The ports of services whose new flows the program may place, as they stand in its tables: written under a lock, read by the
//! program without one.

use std::sync::atomic::Ordering;

use super::layout::{
    GROUP_SERVICES, SERVICE_ADDRESS, SERVICE_PORT, SERVICE_TABLE, SERVICE_VERSION, SERVICE_WORDS, V6, mixed,
    raw_address,
};
use crate::{
    io::sys::bpf::Words,
    packet::{Address, Protocol},
};

/// A port of a VIP, as the program looks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PortKey {
    address: [u64; 2],
    port: u32,
}

impl PortKey {
    pub(super) fn new(address: Address, protocol: Protocol, port: u16) -> Self {
        let family = if address.is_ipv4() { 0 } else { V6 };
        let port = u32::from(port.to_be()) | u32::from(protocol.number()) << 16 | family;
        Self { address: raw_address(address), port }
    }
}

/// Where a Maglev table stands, and whose it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placing {
    /// The number of the service.
    pub(super) number: u32,
    /// Its first word.
    pub(super) table: u32,
    /// How many entries it has.
    pub(super) size: u32,
}

/// The program's table of services.
#[derive(Debug)]
pub(super) struct Services {
    words: Words,
    hash_key: u64,
}

impl Services {
    pub(super) fn new(words: Words, hash_key: u64) -> Self {
        Self { words, hash_key }
    }

    /// Has the program place new flows of a port. Whether there was room for it.
    pub(super) fn open(&self, key: &PortKey, placing: Placing) -> bool {
        let Some(place) = self.places(key).find(|place| self.load(place + SERVICE_PORT) as u32 == 0) else {
            return false;
        };
        let store = |at: usize, value: u64| self.words[place + at].store(value, Ordering::Release);
        self.set_written(place, false);
        let [high, low] = key.address;
        store(SERVICE_ADDRESS, high);
        store(SERVICE_ADDRESS + 1, low);
        store(SERVICE_PORT, u64::from(placing.number) << 32 | u64::from(key.port));
        store(SERVICE_TABLE, u64::from(placing.size) << 32 | u64::from(placing.table));
        self.set_written(place, true);
        true
    }

    /// Has it place none any more.
    pub(super) fn close(&self, key: &PortKey) {
        if let Some(place) = self.find(key) {
            self.set_written(place, false);
            self.words[place + SERVICE_PORT].store(0, Ordering::Release);
        }
    }

    /// Whether it places new flows of a port.
    #[cfg(test)]
    pub(super) fn is_open(&self, key: &PortKey) -> bool {
        self.find(key).is_some()
    }

    /// While its version is odd nothing that stands there holds.
    fn set_written(&self, place: usize, is_written: bool) {
        let version = &self.words[place + SERVICE_VERSION];
        if version.load(Ordering::Relaxed).is_multiple_of(2) != is_written {
            version.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn find(&self, key: &PortKey) -> Option<usize> {
        let [high, low] = key.address;
        self.places(key).find(|place| {
            self.load(place + SERVICE_PORT) as u32 == key.port
                && self.load(place + SERVICE_ADDRESS) == high
                && self.load(place + SERVICE_ADDRESS + 1) == low
        })
    }

    /// The first words of the places where a port may stand, the likeliest first.
    fn places(&self, key: &PortKey) -> impl Iterator<Item = usize> + use<> {
        let [high, low] = key.address;
        let hash = [high, low, key.port.into()].into_iter().fold(self.hash_key, mixed);
        let groups = self.words.len() / (GROUP_SERVICES * SERVICE_WORDS);
        let group = (hash >> 8) as usize & (groups - 1);
        (0..GROUP_SERVICES)
            .map(move |i| (group * GROUP_SERVICES + (hash as usize + i) % GROUP_SERVICES) * SERVICE_WORDS)
    }

    fn load(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::Acquire)
    }
}
