//! The clock on the wall, for what people read. No decision depends on it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// RFC 3339, UTC.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    // What others have written may be past the year 9999.
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms.min(LATEST_MS)));
    at.map(|at| humantime::format_rfc3339_millis(at).to_string()).unwrap_or_default()
}

/// The end of the year 9999.
const LATEST_MS: u64 = 253_402_300_799_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_for_people_whatever_it_is() {
        assert_eq!(rfc3339(1_795_000_000_123), "2026-11-18T11:06:40.123Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
