//! How often something is asked for whose effect does not show: at first as often as is useful, later ever more seldom. A
//! node that the log does not reach, or whose heartbeats nobody answers, would else fill the log of all the others. Pure.

use std::ops::RangeInclusive;

/// So many attempts are made before the pauses grow: an election or a lost message may be the reason.
const PATIENT: u32 = 4;

/// Attempts at one thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// When it was last asked for.
    last_ns: Option<u64>,
    attempts: u32,
}

impl Backoff {
    /// Whether it is to be asked for now; then it counts as asked. `pauses_ns`: between the first attempts, and at most.
    pub(crate) fn is_due(&mut self, pauses_ns: RangeInclusive<u64>, now_ns: u64) -> bool {
        let doublings = self.attempts.saturating_sub(PATIENT).min(16);
        let pause_ns = (pauses_ns.start() << doublings).min(*pauses_ns.end());
        let due = self.last_ns.is_none_or(|last| now_ns >= last + pause_ns);
        if due {
            self.last_ns = Some(now_ns);
            self.attempts = self.attempts.saturating_add(1);
        }
        due
    }

    /// Things have changed: the next pauses are short again. What was asked for just now is not asked for again at once.
    pub(crate) fn begin_anew(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_effect_is_asked_for_ever_more_seldom_and_often_again_when_things_change() {
        const MS: u64 = 1_000_000;
        let mut backoff = Backoff::default();
        let attempts = |backoff: &mut Backoff, from_ms: u64, span_ms: u64| {
            (from_ms..from_ms + span_ms).filter(|ms| backoff.is_due(50 * MS..=10_000 * MS, ms * MS)).count()
        };
        assert_eq!(attempts(&mut backoff, 0, 200), 4, "each 50 ms");
        let later = attempts(&mut backoff, 200, 60_000);
        assert!((8..=14).contains(&later), "{later} within a minute");
        assert!(attempts(&mut backoff, 60_200, 100_000) <= 10, "at most one in ten seconds");
        backoff.begin_anew();
        assert_eq!(attempts(&mut backoff, 170_300, 200), 4);
    }
}
