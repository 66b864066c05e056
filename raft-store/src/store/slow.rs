//! What has taken long, for whoever looks for what has held a node up: `RUST_LOG=lb_raft_store=debug`.

use std::time::{Duration, Instant};

/// Shorter is nobody's trouble: a node may be behind the others for several times that.
const SLOW: Duration = Duration::from_millis(100);

/// Says so at its end, if it has taken long.
pub(super) struct Watched {
    what: &'static str,
    begun: Instant,
}

impl Watched {
    pub(super) fn begin(what: &'static str) -> Self {
        Self { what, begun: Instant::now() }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let took_ms = self.begun.elapsed().as_millis() as u64;
        if took_ms > SLOW.as_millis() as u64 {
            tracing::debug!(took_ms, "{} took long", self.what);
        }
    }
}
