//! The keys by which two nodes sign what they say to each other by UDP. Each is exported (RFC 8446 7.5) from the TLS connection by
//! which one of them watches the other: both ends have it, nobody else has, and it is in no log and no file. A connection
//! that ends leaves its key; the next one brings another.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use lb_raft_store::table::NodeId;

use crate::connection::Secret;

/// Of a pair of nodes: each watches the other, and a datagram may be under way while a key comes.
const KEPT: usize = 4;

/// A key, and by which number a datagram says that it is signed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PairKey {
    pub(super) id: u64,
    pub(super) key: u128,
}

impl From<&Secret> for PairKey {
    fn from(secret: &Secret) -> Self {
        let mut parts = ([0; 8], [0; 16]);
        parts.0.copy_from_slice(&secret[..8]);
        parts.1.copy_from_slice(&secret[8..]);
        Self { id: u64::from_be_bytes(parts.0), key: u128::from_be_bytes(parts.1) }
    }
}

/// What this node shares with each other node, the newest last; and whether the other one is known to have it.
#[derive(Debug, Clone, Default)]
pub(super) struct Pairs {
    of: BTreeMap<NodeId, Vec<(PairKey, bool)>>,
    /// Another one whenever something else is signed by.
    version: u64,
}

impl Pairs {
    pub(super) fn add(&mut self, peer: NodeId, key: PairKey, is_shared: bool) {
        let keys = self.of.entry(peer).or_default();
        keys.retain(|(known, _)| *known != key);
        keys.push((key, is_shared));
        if keys.len() > KEPT {
            // What was not shared for want of an answer goes first.
            let earlier = &keys[..KEPT];
            keys.remove(earlier.iter().position(|(_, is_shared)| !is_shared).unwrap_or(0));
        }
        self.version += 1;
    }

    pub(super) fn retain(&mut self, is_node: impl Fn(NodeId) -> bool) {
        self.of.retain(|peer, _| is_node(*peer));
    }

    /// By which to sign: the newest that the other one is known to have.
    pub(super) fn signing(&self, peer: NodeId) -> Option<PairKey> {
        self.of.get(&peer)?.iter().rev().find(|(_, is_shared)| *is_shared).map(|(key, _)| *key)
    }

    /// Whose key that is.
    pub(super) fn by_id(&self, id: u64) -> Option<(NodeId, PairKey)> {
        let of_peer = |(peer, keys): (&NodeId, &Vec<(PairKey, bool)>)| {
            keys.iter().find(|(key, _)| key.id == id).map(|(key, _)| (*peer, *key))
        };
        self.of.iter().find_map(of_peer)
    }

    /// By the numbers that datagrams begin with which are to be looked at.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.of.values().flatten().map(|(key, _)| key.id)
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

/// The same for all who hold it; reading it waits for nobody.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedPairs(Arc<ArcSwap<Pairs>>);

impl SharedPairs {
    pub(super) fn load(&self) -> Arc<Pairs> {
        self.0.load_full()
    }

    pub(super) fn update(&self, change: impl Fn(&mut Pairs)) {
        self.0.rcu(|pairs| {
            let mut pairs = Pairs::clone(pairs);
            change(&mut pairs);
            pairs
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64) -> PairKey {
        PairKey { id, key: id.into() }
    }

    #[test]
    fn what_the_other_end_may_not_have_is_taken_and_not_signed_by() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.signing(2), None);
        pairs.add(2, key(1), true);
        pairs.add(2, key(2), false);
        assert_eq!((pairs.signing(2), pairs.by_id(2)), (Some(key(1)), Some((2, key(2)))));
        let before = pairs.version();
        pairs.add(2, key(2), true);
        assert_eq!(pairs.signing(2), Some(key(2)));
        assert!(pairs.version() > before);
        for id in 3..9 {
            pairs.add(2, key(id), true);
        }
        assert_eq!((pairs.by_id(4), pairs.by_id(5)), (None, Some((2, key(5)))), "the oldest go");
        for id in 20..30 {
            pairs.add(2, key(id), false);
        }
        assert_eq!(pairs.signing(2), Some(key(8)), "keys that nobody else has do not take its place");
        pairs.retain(|node| node != 2);
        assert_eq!((pairs.signing(2), pairs.by_id(8)), (None, None));
    }
}
