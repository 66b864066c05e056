//! Leases, and who votes on them.

use std::collections::BTreeSet;

use super::types::{LeaseId, NodeId};
use crate::codec::{DecodeError, Field, record};

/// A node's permission to own VIPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The index of the entry that opened it.
    pub id: LeaseId,
    /// Chosen anew by each process, so that a replayed entry is not taken for its own.
    pub nonce: u64,
    /// Its holder has held it validly once, so it may be given VIPs.
    pub ready: bool,
    /// The configuration (the index of its entry) since which its holder counts majorities.
    pub configuration: u64,
}

/// Who votes. While it changes there are two sets of voters, and a majority means one in each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// The index of the entry that it came with.
    pub index: u64,
    /// One set of voters, or two.
    pub halves: Vec<BTreeSet<NodeId>>,
}

impl Configuration {
    /// Everybody who votes.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.halves.iter().flatten().copied().collect()
    }

    /// Whether those nodes are a majority of each half.
    pub fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        !self.halves.is_empty() && self.halves.iter().all(|half| half.intersection(nodes).count() > half.len() / 2)
    }

    /// Whether no half has a majority without those nodes.
    pub fn is_blocked_by(&self, nodes: &BTreeSet<NodeId>) -> bool {
        !self.halves.is_empty() && self.halves.iter().all(|half| lacks_majority_without(half, nodes))
    }

    /// Whether some half has no majority without those nodes: then there is none of the whole.
    pub fn is_lost_without(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.halves.iter().any(|half| lacks_majority_without(half, nodes))
    }
}

fn lacks_majority_without(half: &BTreeSet<NodeId>, nodes: &BTreeSet<NodeId>) -> bool {
    half.difference(nodes).count() <= half.len() / 2
}

/// A lease and whose it is.
pub(super) struct LeaseOf(pub(super) NodeId, pub(super) Lease);

impl Field<record::Lease> for LeaseOf {
    fn put(&self) -> record::Lease {
        let Lease { id, nonce, ready, configuration } = self.1;
        record::Lease { node: self.0, id: id.0, nonce, ready, configuration }
    }

    fn read(record: record::Lease) -> Result<Self, DecodeError> {
        let record::Lease { node, id, nonce, ready, configuration } = record;
        Ok(Self(node, Lease { id: LeaseId(id), nonce, ready, configuration }))
    }
}

impl Field<record::Configuration> for Configuration {
    fn put(&self) -> record::Configuration {
        let half = |half: &BTreeSet<NodeId>| record::Voters { voters: half.iter().copied().collect() };
        record::Configuration { index: self.index, halves: self.halves.iter().map(half).collect() }
    }

    fn read(record: record::Configuration) -> Result<Self, DecodeError> {
        let halves = record.halves.into_iter().map(|half| half.voters.into_iter().collect()).collect();
        Ok(Self { index: record.index, halves })
    }
}
