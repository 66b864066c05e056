//! Waiting on conditions. Tests never sleep for a time in the hope that something has happened.

use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks until there is something, or panics with what was waited for.
#[track_caller]
pub fn until_some<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain until {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks until it is so, or panics with what was waited for.
#[track_caller]
pub fn until(what: &str, timeout: Duration, mut look: impl FnMut() -> bool) {
    until_some(what, timeout, || look().then_some(()));
}

/// Looks until there is no error any more, or returns the last one.
pub fn until_ok<T>(timeout: Duration, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match look() {
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("still so after {timeout:?}")));
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
            found => return found,
        }
    }
}

/// Sends traffic at a pace: calls `act` every `interval` for `duration`.
pub fn paced(interval: Duration, duration: Duration, mut act: impl FnMut()) {
    let start = Instant::now();
    let mut next = start;
    while start.elapsed() < duration {
        act();
        next += interval;
        if let Some(pause) = next.checked_duration_since(Instant::now()) {
            std::thread::sleep(pause);
        }
    }
}
