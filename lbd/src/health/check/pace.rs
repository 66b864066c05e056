//! When the next question is due, and what all of them together may cost.

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lb_raft_store::table::Rhythm;

/// Of one core, in thousandths. Past it intervals stretch.
pub(super) const BUDGET: u32 = 250;
/// In thousandths.
const UNSTRETCHED: u32 = 1000;
const STRETCHED_AT_MOST: u32 = 20 * UNSTRETCHED;
/// A refusal tells at once, and is asked again so much sooner.
const SOONER: u32 = 10;
const SOONEST: Duration = Duration::from_millis(50);

/// How much longer intervals are than was asked for.
pub(super) struct Stretch(AtomicU32);

impl Default for Stretch {
    fn default() -> Self {
        Self(UNSTRETCHED.into())
    }
}

impl Stretch {
    /// In thousandths.
    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// `used`: of one core, in thousandths, at the present stretch.
    pub(super) fn adapt(&self, used: u32) {
        let needed = u64::from(used) * u64::from(self.get()) / u64::from(BUDGET);
        let needed = needed.clamp(UNSTRETCHED.into(), STRETCHED_AT_MOST.into()) as u32;
        self.0.store(needed, Ordering::Relaxed);
    }
}

/// The times of one question.
pub(super) struct Pace {
    rhythm: Rhythm,
    random: u64,
}

impl Pace {
    /// Questions are spread over the first interval by what they are.
    pub(super) fn new(rhythm: Rhythm, of: &impl Hash) -> Self {
        Self { rhythm, random: BuildHasherDefault::<DefaultHasher>::default().hash_one(of) | 1 }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.rhythm.interval_ms.into())
    }

    /// Until the first question.
    pub(super) fn first(&mut self) -> Duration {
        self.interval().mul_f64(self.draw())
    }

    /// From the beginning of one question to the next.
    pub(super) fn next(&mut self, was_refused: bool, stretch: &Stretch) -> Duration {
        let jitter = (2.0 * self.draw() - 1.0) * f64::from(self.rhythm.jitter_percent) / 100.0;
        let interval = self.interval();
        let interval = if was_refused { (interval / SOONER).max(SOONEST.min(interval)) } else { interval };
        interval.mul_f64((1.0 + jitter) * f64::from(stretch.get()) / f64::from(UNSTRETCHED))
    }

    /// From 0 to 1 (xorshift64, Marsaglia 2003).
    fn draw(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RHYTHM: Rhythm = Rhythm { interval_ms: 1000, timeout_ms: 500, rise: 2, fall: 3, jitter_percent: 10 };

    #[test]
    fn questions_are_spread_and_stay_within_their_jitter() {
        let stretch = Stretch::default();
        let mut tenths = [0; 10];
        for of in 0..1000 {
            let mut pace = Pace::new(RHYTHM, &of);
            tenths[(pace.first().as_millis() / 100) as usize] += 1;
            let next = pace.next(false, &stretch).as_millis();
            assert!((900..=1100).contains(&next), "{next}");
            let sooner = pace.next(true, &stretch).as_millis();
            assert!((90..=110).contains(&sooner), "{sooner}");
        }
        assert!(tenths.iter().all(|tenth| (60..150).contains(tenth)), "{tenths:?}");
    }

    #[test]
    fn past_the_budget_intervals_stretch_and_below_it_they_are_as_they_were() {
        let stretch = Stretch::default();
        stretch.adapt(100);
        assert_eq!(stretch.get(), 1000);
        stretch.adapt(500);
        assert_eq!(stretch.get(), 2000, "at twice the budget twice as long");
        stretch.adapt(250);
        assert_eq!(stretch.get(), 2000, "that is enough");
        stretch.adapt(125);
        assert_eq!(stretch.get(), 1000);
        stretch.adapt(u32::MAX);
        assert_eq!(stretch.get(), 20_000);
    }
}
