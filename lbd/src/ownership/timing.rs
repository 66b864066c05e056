//! The protocol's durations, in nanoseconds of CLOCK_BOOTTIME, from the table's settings.

use lb_raft_store::table::{CLOCK_DRIFT_PPM, Timing as Settings};

const MS: u64 = 1_000_000;

/// All durations that the state machines use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    /// Between two heartbeats (p).
    pub(super) period_ns: u64,
    /// How old an acknowledgement may be that a heartbeat echoes (H): older, and its sender does not hear.
    pub(super) echo_ns: u64,
    /// How long a promise is used at most (D).
    pub(super) lease_ns: u64,
    /// What an acknowledgement promises (W).
    pub(super) withdraw_ns: u64,
    /// From its start on, a process gives no evidence for so long: the one before may have promised.
    pub(super) silence_after_start_ns: u64,
    /// A holder whose table is older than what the supporter had so long ago is not supported.
    pub(super) lag_ns: u64,
    /// Heard again for so long, a holder gets the withdrawal taken back.
    pub(super) retract_after_ns: u64,
    /// Between a node that should start an election and the next one.
    pub(super) rank_ns: u64,
    /// Between two proposals of the same thing.
    pub(super) again_ns: u64,
    /// A node that was unfit takes VIPs again only after it has done its work for so long.
    pub(super) steady_ns: u64,
    /// A worker that has not shown itself for so long does not do its work.
    pub(super) stall_ns: u64,
    /// A node that has answered no heartbeat for so long is silent.
    pub(super) silent_ns: u64,
    /// Between two attempts to replace the same leader because it is not heard: time for it to bring the others up to
    /// date, should they have elected it again.
    pub(super) depose_again_ns: u64,
}

/// Between two immediate repeats to a peer that called an echo stale.
pub(super) const REPEAT_NS: u64 = 5 * MS;

impl Timing {
    /// `longest_withdraw_ms` is the longest promise that was ever asked for.
    pub(super) fn new(settings: Settings, longest_withdraw_ms: u32) -> Self {
        let period_ns = u64::from(settings.heartbeat_ms) * MS;
        // What the design calls 500, 200 and 15 ms belongs to the default period; a quicker heartbeat does
        // not make the log or an election quicker.
        let slower = period_ns.div_ceil(20 * MS).max(1);
        let longest_ns = u64::from(longest_withdraw_ms) * MS;
        Self {
            period_ns,
            echo_ns: period_ns * 5 / 2,
            lease_ns: u64::from(settings.lease_ms) * MS,
            withdraw_ns: u64::from(settings.withdraw_ms) * MS,
            silence_after_start_ns: longest_ns + longest_ns / (1_000_000 / CLOCK_DRIFT_PPM) + MS,
            lag_ns: 500 * MS * slower,
            retract_after_ns: 200 * MS * slower,
            rank_ns: 15 * MS * slower,
            again_ns: 50 * MS * slower,
            steady_ns: 1000 * MS * slower,
            stall_ns: (u64::from(settings.lease_ms) * MS).max(100 * MS),
            silent_ns: 1000 * MS * slower,
            depose_again_ns: 1000 * MS * slower,
        }
    }

    /// A short while: a node was heard lately, a lease has been valid without a break.
    pub(super) fn short_ns(&self) -> u64 {
        3 * self.period_ns
    }
}
