//! How long to wait between operations while a delivery is held in process.
//!
//! The arithmetic is the `backoff` crate's; chance is an argument here, so that the laws below can be tested and
//! a run can be repeated. This is the only file that knows the crate.

use std::time::Duration;

use ::backoff::ExponentialBackoffBuilder;
use ::backoff::backoff::Backoff as _;

/// A schedule of growing waits with jitter: about `initial`, then twice that, and so on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    initial: Duration,
    multiplier: f64,
    jitter: f64,
    longest: Duration,
}

/// Why a schedule is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidBackoff {
    /// A wait of nothing is a hot loop.
    #[error("the first wait must be longer than zero")]
    NoWait,
    /// Waits must not shrink.
    #[error("the multiplier must be between 1 and 10, not {0}")]
    Multiplier(f64),
    /// Jitter is a share of the wait.
    #[error("the jitter must be between 0 and 1, not {0}")]
    Jitter(f64),
    /// The longest wait must hold the first one.
    #[error("the longest wait must not be shorter than the first")]
    Longest,
}

impl Backoff {
    /// A schedule that begins with `initial`, grows by `multiplier` up to `longest`, each wait varied by up to
    /// `jitter` of itself in both directions.
    ///
    /// # Errors
    /// [`InvalidBackoff`] if the numbers would make a hot loop or shrink.
    pub fn new(
        initial: Duration,
        multiplier: f64,
        jitter: f64,
        longest: Duration,
    ) -> Result<Self, InvalidBackoff> {
        if initial.is_zero() {
            return Err(InvalidBackoff::NoWait);
        }
        if !(1.0..=10.0).contains(&multiplier) {
            return Err(InvalidBackoff::Multiplier(multiplier));
        }
        if !(0.0..=1.0).contains(&jitter) {
            return Err(InvalidBackoff::Jitter(jitter));
        }
        if longest < initial {
            return Err(InvalidBackoff::Longest);
        }
        Ok(Self { initial, multiplier, jitter, longest })
    }

    /// The wait after the `nth` failure in a row, counted from 0. `chance` is between 0 and 1.
    pub fn wait(&self, nth: u32, chance: f64) -> Duration {
        let mut schedule = ExponentialBackoffBuilder::new()
            .with_initial_interval(self.initial)
            .with_multiplier(self.multiplier)
            .with_max_interval(self.longest)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        // The schedule reaches its longest wait long before the 64th failure; the bound keeps a forged count cheap.
        let base = (0..=nth.min(64)).filter_map(|_| schedule.next_backoff()).last().unwrap_or(self.longest);
        base.mul_f64(1.0 - self.jitter + 2.0 * self.jitter * chance.clamp(0.0, 1.0))
    }
}

impl Default for Backoff {
    /// About 1 s, 2 s, 4 s: what the payment API's troubleshooting manual asks for.
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            multiplier: 2.0,
            jitter: 0.2,
            longest: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_without_jitter_are_one_two_and_four_seconds() {
        let waits: Vec<_> = (0..3).map(|nth| Backoff::default().wait(nth, 0.5)).collect();
        assert_eq!(waits, [1, 2, 4].map(Duration::from_secs));
    }

    #[test]
    fn nonsense_is_refused() {
        let second = Duration::from_secs(1);
        let make = |initial, multiplier, jitter, longest| Backoff::new(initial, multiplier, jitter, longest);
        assert_eq!(make(Duration::ZERO, 2.0, 0.1, second), Err(InvalidBackoff::NoWait));
        assert_eq!(make(second, 0.5, 0.1, second), Err(InvalidBackoff::Multiplier(0.5)));
        assert!(make(second, f64::NAN, 0.1, second).is_err());
        assert_eq!(make(second, 2.0, 1.5, second), Err(InvalidBackoff::Jitter(1.5)));
        assert_eq!(make(second, 2.0, 0.1, second / 2), Err(InvalidBackoff::Longest));
    }

    proptest! {
        #[test]
        fn a_wait_stays_within_its_jitter_and_its_bound(nth in 0u32..2_000_000, chance in -1.0f64..2.0) {
            let backoff = Backoff::default();
            let (least, most) = (backoff.wait(nth, 0.0), backoff.wait(nth, 1.0));
            let wait = backoff.wait(nth, chance);
            prop_assert!(least <= wait && wait <= most);
            prop_assert!(wait <= Duration::from_secs(36));
            prop_assert!(backoff.wait(nth + 1, 0.5) >= backoff.wait(nth, 0.5));
        }
    }
}
