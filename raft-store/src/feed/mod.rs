//! The table's way out: whoever watches sees every state that was applied last, never one half-made.

mod fingerprints;
mod history;

use std::{collections::BTreeSet, sync::Arc};

pub(crate) use fingerprints::Fingerprints;
pub use history::{Cause, Change, History};

use tokio::sync::watch;

use crate::table::{NodeId, Table};

/// The table after an entry.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The table.
    pub table: Table,
    /// The index of the last applied entry, also of one that changed nothing.
    pub applied: u64,
    /// The index of the last entry that changed how frames are forwarded, and not only who owns what.
    pub forwarding: u64,
    /// The voters of the present configuration.
    pub voters: BTreeSet<NodeId>,
    /// What the last entries have changed.
    pub history: History,
}

/// Where the state machine puts each new table.
#[derive(Clone)]
pub(crate) struct Publisher(Arc<watch::Sender<Arc<View>>>);

/// Sees each newest table.
pub type Watcher = watch::Receiver<Arc<View>>;

pub(crate) fn channel() -> (Publisher, Watcher) {
    let (sender, watcher) = watch::channel(Arc::new(View::default()));
    (Publisher(Arc::new(sender)), watcher)
}

impl Publisher {
    pub(crate) fn publish(&self, view: View) {
        self.0.send_replace(Arc::new(view));
    }
}
