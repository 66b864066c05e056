//! The routers of the segments, as new flows show them: whoever sends a packet here that comes from beyond the segment has
//! forwarded it. A backend does not have a router's MAC address: what were sent there would come back. Shared between the
//! workers, which see the flows, and the one that speaks for the node.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::Mac;

/// Each router has its place; two that meet in one are noted in turn.
const PLACES: usize = 64;
/// A router is one for so long after the last new flow.
const REMEMBERED_NS: u64 = 60_000_000_000;
/// It is noted again after this: a flood of new flows writes no memory that others read.
const NOTED_NS: u64 = 1_000_000_000;
/// Beside a MAC address of 48 bits.
const IS_NOTED: u64 = 1 << 63;

/// Who was seen to be a router.
#[derive(Debug)]
pub(crate) struct Routers([Place; PLACES]);

#[derive(Debug, Default)]
struct Place {
    who: AtomicU64,
    seen_ns: AtomicU64,
}

impl Default for Routers {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Place::default()))
    }
}

impl Routers {
    /// A packet from beyond the segment of an interface came from this station.
    pub(crate) fn note(&self, port: usize, mac: Mac, now_ns: u64) {
        let (place, who) = self.place(port, mac);
        let is_noted = place.who.load(Ordering::Relaxed) == who
            && now_ns.saturating_sub(place.seen_ns.load(Ordering::Relaxed)) < NOTED_NS;
        if !is_noted {
            place.who.store(who, Ordering::Relaxed);
            place.seen_ns.store(now_ns, Ordering::Relaxed);
        }
    }

    /// Whether a station is a router.
    pub(crate) fn contains(&self, port: usize, mac: Mac, now_ns: u64) -> bool {
        let (place, who) = self.place(port, mac);
        place.who.load(Ordering::Relaxed) == who
            && now_ns.saturating_sub(place.seen_ns.load(Ordering::Relaxed)) < REMEMBERED_NS
    }

    fn place(&self, port: usize, Mac([a, b, c, d, e, f]): Mac) -> (&Place, u64) {
        let who = IS_NOTED | (port as u64) << 48 | u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        (&self.0[usize::from(d ^ e.rotate_left(3) ^ f) % PLACES], who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_is_one_on_its_segment_and_for_a_while() {
        let (routers, mac) = (Routers::default(), Mac([2, 0, 0, 0, 0, 0xfe]));
        assert!(!routers.contains(0, Mac::ZERO, 0) && !routers.contains(0, mac, 5));
        routers.note(0, mac, 5);
        assert!(routers.contains(0, mac, 6));
        assert!(!routers.contains(1, mac, 6) && !routers.contains(0, Mac([2, 0, 0, 0, 0, 0xfd]), 6));
        routers.note(0, mac, 5 + REMEMBERED_NS / 2);
        assert!(routers.contains(0, mac, 5 + REMEMBERED_NS));
        assert!(!routers.contains(0, mac, 5 + 2 * REMEMBERED_NS));
    }
}
