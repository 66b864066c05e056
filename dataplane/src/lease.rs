//! Until when this node may answer for its VIPs. The control plane extends it, the workers look at it
//! right before each answer and each announcement. CLOCK_BOOTTIME, because it counts the time that a
//! suspended machine slept through.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Nanoseconds of CLOCK_BOOTTIME.
pub fn boottime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The deadline that the control plane and the workers share.
#[derive(Debug, Default)]
pub struct LeaseClock {
    deadline_ns: AtomicU64,
    /// Answers are given past the deadline too, until another station claims the VIP.
    held: AtomicBool,
}

impl LeaseClock {
    /// Answers are allowed until then, whatever was allowed before.
    pub fn set(&self, deadline_ns: u64) {
        self.deadline_ns.store(deadline_ns, Ordering::Release);
    }

    /// Whether answers go on past the deadline, because the operator prefers service over one owner at a time.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    /// Whether they do.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// No answer from now on.
    pub fn revoke(&self) {
        self.hold(false);
        self.deadline_ns.store(0, Ordering::Release);
    }

    /// Whether an answer is allowed at this moment. Reads the clock each time: that is the point.
    pub fn is_valid(&self) -> bool {
        boottime_ns() < self.deadline_ns.load(Ordering::Acquire)
    }

    /// The moment until which answers are allowed.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns.load(Ordering::Acquire)
    }
}
