//! By which revision the dataplane forwards, and how long a change takes until it does.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_raft_store::latency_histogram;
use prometheus_client::metrics::histogram::Histogram;

/// Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct InForce {
    revision: Arc<AtomicU64>,
    delays: Histogram,
}

impl Default for InForce {
    fn default() -> Self {
        Self { revision: Arc::default(), delays: latency_histogram() }
    }
}

impl fmt::Debug for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InForce({})", self.revision())
    }
}

impl InForce {
    /// 0 before the first one.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// From its entry's being applied to the workers' judging by it, in seconds.
    pub(crate) fn delays(&self) -> &Histogram {
        &self.delays
    }

    pub(super) fn set(&self, revision: u64) {
        self.revision.store(revision, Ordering::Relaxed);
    }

    pub(super) fn took(&self, delay: Duration) {
        self.delays.observe(delay.as_secs_f64());
    }
}
