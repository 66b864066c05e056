//! How far away the other nodes are, and which timing bears that. A heartbeat counts only if it echoes an answer that is not
//! older than two and a half periods; the answer travels back, the next heartbeat leaves within a period, and travels too.
//! Pure.

use std::collections::BTreeMap;

use lb_raft_store::table::{NodeId, Timing as Settings};

use super::timing::Timing;

/// The least of the last one or two such spans is what is taken: queues and late threads come and go, a way stays as long.
const SPAN_NS: u64 = 1_000_000_000;

/// The round trips to other nodes, in nanoseconds.
pub(crate) type RoundTrips = BTreeMap<NodeId, u64>;

/// The round trip to one node.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    since_ns: u64,
    least_ns: Option<u64>,
    before_ns: Option<u64>,
}

impl RoundTrip {
    /// An answer has come, so long after the question.
    pub(super) fn on_answer(&mut self, took_ns: u64, now_ns: u64) {
        if now_ns >= self.since_ns + SPAN_NS {
            self.before_ns = self.least_ns.take();
            self.since_ns = now_ns;
        }
        self.least_ns = Some(self.least_ns.map_or(took_ns, |least| least.min(took_ns)));
    }

    /// The least that was measured lately.
    pub(super) fn ns(&self) -> Option<u64> {
        self.least_ns.into_iter().chain(self.before_ns).min()
    }
}

/// The longest round trip between two nodes that a timing bears without leases that run out.
pub(crate) fn longest_round_trip_ns(timing: Settings) -> u64 {
    Timing::new(timing, 0).echo_ns / 2
}

/// The setting that bears a round trip, as `lbctl cluster set` takes it.
pub(crate) fn timing_for(round_trip_ns: u64) -> String {
    let named = [Settings::DEFAULT, Settings::RELAXED];
    match named.into_iter().find(|timing| longest_round_trip_ns(*timing) >= round_trip_ns).and_then(|t| t.name()) {
        Some(name) => format!("timing={name}"),
        None => {
            // As the named ones are made: a lease lasts for 7.3 heartbeats, and a promise for 7.5.
            let heartbeat_ms = round_trip_ns.div_ceil(1_250_000);
            let (lease_ms, withdraw_ms) = (heartbeat_ms * 73 / 10, heartbeat_ms * 75 / 10);
            format!("heartbeat_ms={heartbeat_ms} lease_ms={lease_ms} withdraw_ms={withdraw_ms}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_named_timings_bear_the_distances_that_the_documents_name() {
        let longest = [Settings::FAST, Settings::DEFAULT, Settings::RELAXED].map(longest_round_trip_ns);
        assert_eq!(longest, [6_250_000, 25 * MS, 100 * MS]);
        assert_eq!(timing_for(25 * MS), "timing=default");
        assert_eq!(timing_for(25 * MS + 1), "timing=relaxed");
        assert_eq!(timing_for(100 * MS), "timing=relaxed");
        assert_eq!(timing_for(101 * MS), "heartbeat_ms=81 lease_ms=591 withdraw_ms=607");
        for round_trip_ms in 101..=1600 {
            let heartbeat_ms = u32::try_from((round_trip_ms * MS).div_ceil(1_250_000)).unwrap();
            let timing =
                Settings { heartbeat_ms, lease_ms: heartbeat_ms * 73 / 10, withdraw_ms: heartbeat_ms * 75 / 10 };
            assert_eq!(timing.problem(), None, "for {round_trip_ms} ms");
            assert!(longest_round_trip_ns(timing) >= round_trip_ms * MS);
        }
    }

    #[test]
    fn a_late_answer_is_not_a_longer_way_and_a_longer_way_is_noticed() {
        let mut trip = RoundTrip::default();
        assert_eq!(trip.ns(), None);
        for ms in 0..3000 {
            trip.on_answer(if ms % 10 == 0 { 2 * MS } else { 90 * MS }, ms * MS);
        }
        assert_eq!(trip.ns(), Some(2 * MS));
        for ms in 3000..5100 {
            trip.on_answer(40 * MS, ms * MS);
        }
        assert_eq!(trip.ns(), Some(40 * MS));
    }
}
