//! A bound on how often something is done: a bucket of tokens that fills with time. Pure.

const SECOND_NS: u64 = 1_000_000_000;

/// Admits so many a second, a tenth of them at once.
#[derive(Debug)]
pub(crate) struct Limiter {
    per_token_ns: u64,
    burst_ns: u64,
    /// Up to when time has been spent.
    spent_ns: u64,
}

impl Limiter {
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_token_ns: SECOND_NS / per_second, burst_ns: SECOND_NS / 10, spent_ns: 0 }
    }

    /// Whether one more is admitted now.
    pub(crate) fn admits(&mut self, now_ns: u64) -> bool {
        let admitted = self.would_admit(now_ns);
        if admitted {
            self.spent_ns = self.after_one_more(now_ns);
        }
        admitted
    }

    /// Whether one more would be; it is not counted.
    pub(crate) fn would_admit(&self, now_ns: u64) -> bool {
        self.after_one_more(now_ns) <= now_ns
    }

    fn after_one_more(&self, now_ns: u64) -> u64 {
        self.spent_ns.max(now_ns.saturating_sub(self.burst_ns)) + self.per_token_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut limiter = Limiter::new(1000);
        let start = 10 * SECOND_NS;
        let admitted = |limiter: &mut Limiter, at| (0..500).filter(|_| limiter.admits(at)).count();
        assert_eq!(admitted(&mut limiter, start), 100);
        assert_eq!(admitted(&mut limiter, start), 0);
        assert_eq!(admitted(&mut limiter, start + SECOND_NS / 100), 10);
        assert_eq!(admitted(&mut limiter, start + 2 * SECOND_NS), 100, "what was not used is not saved up");
    }
}
