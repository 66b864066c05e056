//! How long things take, as metrics tell it.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// From half a millisecond, for a fast disk, to four seconds, in steps of two.
pub fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 14))
}
