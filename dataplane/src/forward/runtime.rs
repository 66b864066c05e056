//! What stays with a backend or a peer from snapshot to snapshot, and changes while frames flow: counters, the resolved
//! MAC address, when it was heard. Shared between the workers; each part has one writer.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::spec::PeerSpec;
use crate::{io::sys::bpf::Words, packet::Mac, stats::TrafficByWorker};

/// A MAC address in a word, as programs in the kernel read it: in network order, and a byte that says that there is one.
pub(crate) fn mac_word(mac: Option<Mac>) -> u64 {
    mac.map_or(0, |Mac([a, b, c, d, e, f])| u64::from_ne_bytes([a, b, c, d, e, f, 1, 0]))
}

/// Names a backend in a flow entry: its slot and the slot's generation. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendRef(NonZeroU32);

/// Enough for twice the table's bound on backends, so that a freed slot rests before it is used again.
pub(super) const SLOT_BITS: u32 = 17;

/// Names a VIP in a flow entry. A VIP that was removed and added again has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipId(pub u32);

impl BackendRef {
    pub(super) fn new(slot: usize, generation: u32) -> Self {
        let raw = (generation << SLOT_BITS) | slot as u32;
        Self(NonZeroU32::new(raw).unwrap_or(NonZeroU32::MIN))
    }

    /// From what [`Self::get`] gave.
    pub(crate) fn from_raw(raw: u32) -> Self {
        Self(NonZeroU32::new(raw).unwrap_or(NonZeroU32::MIN))
    }

    /// As it stands in a flow entry.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    pub(crate) fn slot(self) -> usize {
        (self.get() & ((1 << SLOT_BITS) - 1)) as usize
    }
}

/// What stays with a backend across snapshots: its counters and its resolved MAC.
#[derive(Debug)]
#[repr(align(64))]
pub struct BackendRuntime {
    /// Packets and bytes that were forwarded to it.
    pub traffic: TrafficByWorker,
    /// Where else its MAC address is shown.
    shown_in: OnceLock<(Arc<Words>, usize)>,
    /// The MAC in the low 48 bits, a bit that says that there is one, and above it what became of the questions for it.
    resolved: AtomicU64,
}

const MAC_KNOWN: u64 = 1 << 48;
const LIVENESS_SHIFT: u32 = 49;

/// What became of the questions for a backend's MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Liveness {
    /// None is asked: it is this node, its MAC address was given, or it is on none of this node's segments.
    #[default]
    NotAsked,
    /// It has not answered yet, and may.
    Asked,
    /// It answers.
    Answers,
    /// It leaves them unanswered.
    Silent,
}

impl BackendRuntime {
    pub(super) fn new(traffic: TrafficByWorker) -> Self {
        Self { traffic, shown_in: OnceLock::new(), resolved: AtomicU64::new(0) }
    }

    /// Its MAC address, if known.
    pub fn mac(&self) -> Option<Mac> {
        let raw = self.resolved.load(Ordering::Relaxed);
        let [_, _, a, b, c, d, e, f] = raw.to_be_bytes();
        (raw & MAC_KNOWN != 0).then_some(Mac([a, b, c, d, e, f]))
    }

    /// Whether it answers questions for its MAC address.
    pub fn liveness(&self) -> Liveness {
        match self.resolved.load(Ordering::Relaxed) >> LIVENESS_SHIFT {
            0 => Liveness::NotAsked,
            1 => Liveness::Asked,
            2 => Liveness::Answers,
            _ => Liveness::Silent,
        }
    }

    pub(crate) fn resolve(&self, mac: Option<Mac>, liveness: Liveness) {
        let raw = mac.map_or(0, |Mac([a, b, c, d, e, f])| u64::from_be_bytes([0, 1, a, b, c, d, e, f]));
        self.resolved.store(raw | (liveness as u64) << LIVENESS_SHIFT, Ordering::Relaxed);
        if let Some((words, at)) = self.shown_in.get() {
            words[*at].store(mac_word(mac), Ordering::Relaxed);
        }
    }

    /// From now on whoever reads these words sees its MAC address at that place.
    pub(crate) fn show_mac_in(&self, words: &Arc<Words>, at: usize) {
        if self.shown_in.set((words.clone(), at)).is_ok() {
            words[at].store(mac_word(self.mac()), Ordering::Relaxed);
        }
    }
}

/// An answer lets its sender count as heard for so long: four questions may be lost.
const HEARD_NS: u64 = 1_000_000_000;

/// A peer and when it was last heard, which stays with it from table to table.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it is.
    pub spec: PeerSpec,
    heard_ns: Arc<AtomicU64>,
}

impl Peer {
    /// `before`: the peers so far.
    pub(super) fn new(spec: &PeerSpec, before: &[Self]) -> Self {
        let known = before.iter().find(|peer| peer.spec == *spec);
        Self { spec: spec.clone(), heard_ns: known.map(|peer| peer.heard_ns.clone()).unwrap_or_default() }
    }

    /// It has answered.
    pub(crate) fn heard(&self, now_ns: u64) {
        self.heard_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Whether it has answered lately.
    pub fn is_heard(&self, now_ns: u64) -> bool {
        let heard_ns = self.heard_ns.load(Ordering::Relaxed);
        heard_ns != 0 && now_ns < heard_ns + HEARD_NS
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_peer_is_not_heard_for_ever_and_a_new_table_forgets_nothing() {
        let spec = PeerSpec { port: 0, address: IpAddr::from([10, 0, 0, 2]), mac: Some(Mac([2, 0, 0, 0, 0, 2])) };
        let peers = [Peer::new(&spec, &[])];
        assert!(!peers[0].is_heard(1));
        peers[0].heard(5);
        assert!(peers[0].is_heard(6) && !peers[0].is_heard(5 + HEARD_NS));
        assert!(Peer::new(&spec, &peers).is_heard(6));
        let elsewhere = PeerSpec { port: 1, ..spec };
        assert!(!Peer::new(&elsewhere, &peers).is_heard(6), "another segment");
    }
}
