//! The retry budget: retries as a share of first attempts.

use std::sync::{Mutex, PoisonError};

/// The retry budget: retries as a share of first attempts. A retry beyond it waits in a delay queue, so that an outage
/// does not multiply the calls.
#[derive(Debug)]
pub struct RetryBudget {
    share: f64,
    tokens: Mutex<f64>,
}

/// Retries that are always allowed after a quiet time.
const BUDGET_MAX: f64 = 100.0;

impl RetryBudget {
    /// A budget of `share` retries per first attempt.
    pub fn new(share: f64) -> Self {
        Self { share, tokens: Mutex::new(BUDGET_MAX) }
    }

    /// Records the first attempt of a command.
    pub fn record_first_attempt(&self) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        *tokens = (*tokens + self.share).min(BUDGET_MAX);
    }

    /// Spends one retry if the budget allows it.
    pub fn try_spend(&self) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_first_attempts() {
        let budget = RetryBudget::new(0.2);
        assert_eq!((0..1_000).filter(|_| budget.try_spend()).count(), 100);
        for _ in 0..50 {
            budget.record_first_attempt();
        }
        let spent = (0..1_000).filter(|_| budget.try_spend()).count();
        assert!((9..=10).contains(&spent), "{spent}");
    }
}
