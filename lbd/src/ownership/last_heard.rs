//! When each other node was last heard: what a takeover's gap is told by.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use lb_raft_store::table::NodeId;

/// Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastHeard(Arc<Mutex<BTreeMap<NodeId, Instant>>>);

impl LastHeard {
    /// It says something.
    pub(super) fn note(&self, node: NodeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, Instant::now());
    }

    /// When it last said something.
    pub(crate) fn of(&self, node: NodeId) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }
}
