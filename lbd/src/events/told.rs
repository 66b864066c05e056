//! The same has a line in the log once in a while, with how often it was.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Once in so long.
const TOLD_AGAIN: Duration = Duration::from_secs(10);
/// Different ones in that time; what is more has no line.
const REMEMBERED: usize = 1024;

/// When a line was last written, and how often it would have been since.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<String, (Instant, u64)>);

impl Told {
    /// How often something has happened since its last line, if it is time for another one.
    pub(crate) fn times(&mut self, what: &str, now: Instant) -> Option<u64> {
        if let Some((at, times)) = self.0.get_mut(what) {
            *times += 1;
            if now.duration_since(*at) < TOLD_AGAIN {
                return None;
            }
            *at = now;
            return Some(std::mem::take(times));
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, (at, _)| now.duration_since(*at) < TOLD_AGAIN);
        }
        (self.0.len() < REMEMBERED).then(|| {
            self.0.insert(what.to_owned(), (now, 0));
            1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_has_a_line_once_in_a_while() {
        let (mut told, begun) = (Told::default(), Instant::now());
        let mut times = |what: &str, ms| told.times(what, begun + Duration::from_millis(ms));
        assert_eq!((times("a", 0), times("a", 1), times("b", 2), times("a", 9_999)), (Some(1), None, Some(1), None));
        assert_eq!(times("a", 10_001), Some(3));
        assert_eq!((times("a", 10_002), times("a", 20_002)), (None, Some(2)));
        // Whoever can say much fills neither the memory nor the log.
        assert_eq!((0..5000).filter(|at| times(&format!("c{at}"), 20_003).is_some()).count(), REMEMBERED - 1);
        assert_eq!(times("d", 40_000), Some(1));
    }
}
