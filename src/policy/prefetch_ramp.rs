//! How many commands are taken from the queue at once after a start and after each lost session: one, then twice as many
//! whenever that many were completed.
//!
//! A message may end every connection that it is delivered on, or the whole process, and the broker counts one more
//! failed delivery for each command that was held beside it. So an unforeseen poison message costs one delivery of few
//! commands each time. Pure: a value that the main loop owns.

use std::time::Duration;

/// The ramp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchRamp {
    /// The full prefetch.
    full: u16,
    at_once: u16,
    /// Commands completed since the last step.
    completed: u16,
}

/// Failed deliveries from which on a command counts as completed only once it is settled. A redelivered command waits for
/// the query delay several times before it ends; after a broker's restart all unsettled commands are redelivered once, and
/// would hold up the ramp for minutes. A command that failed this often is what the ramp is for.
const SETTLED_ONLY_AFTER: u64 = 3;

impl PrefetchRamp {
    /// Starts at one, toward `full`.
    pub fn new(full: u16) -> Self {
        Self { full: full.max(1), at_once: 1, completed: 0 }
    }

    /// Starts at one again.
    pub fn restart(&mut self) {
        *self = Self::new(self.full);
    }

    /// How many may be unsettled at once; `None` at the full prefetch.
    pub fn limit(&self) -> Option<u16> {
        (self.at_once < self.full).then_some(self.at_once)
    }

    /// This many more commands were settled, or wait for their next call unharmed.
    pub fn record_completed(&mut self, commands: u16) {
        if self.at_once >= self.full {
            return;
        }
        self.completed = self.completed.saturating_add(commands);
        while self.completed >= self.at_once && self.at_once < self.full {
            self.completed -= self.at_once;
            self.at_once = self.at_once.saturating_mul(2);
        }
    }

    /// Whether a command with this many failed deliveries counts as completed when it waits for its next call, and not only
    /// once it is settled.
    pub fn counts_when_waiting(delivery_count: u64) -> bool {
        delivery_count < SETTLED_ONLY_AFTER
    }
}

/// The longest pause between two sessions.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pause before the next session after `failed_sessions` in a row that took commands and settled none. With twenty
/// deliveries of a command it takes a quarter of an hour until the broker dead-letters it.
pub fn pause_after(failed_sessions: u32) -> Duration {
    let half_seconds = 1_u64 << failed_sessions.saturating_sub(1).min(10);
    if failed_sessions == 0 {
        Duration::ZERO
    } else {
        Duration::from_millis(500 * half_seconds).min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramp_doubles_as_commands_are_completed() {
        let mut ramp = PrefetchRamp::new(200);
        let mut limits = Vec::new();
        while let Some(limit) = ramp.limit() {
            limits.push(limit);
            ramp.record_completed(limit);
        }
        assert_eq!(limits, [1, 2, 4, 8, 16, 32, 64, 128]);
        ramp.restart();
        assert_eq!(ramp.limit(), Some(1));
        ramp.record_completed(u16::MAX);
        assert_eq!(ramp.limit(), None);
        assert_eq!(PrefetchRamp::new(1).limit(), None, "there is nothing below one");
    }

    #[test]
    fn twenty_failed_sessions_take_a_quarter_of_an_hour() {
        assert_eq!(pause_after(0), Duration::ZERO);
        assert_eq!(
            [1, 2, 7, 8, 200].map(pause_after),
            [500, 1_000, 32_000, 60_000, 60_000].map(Duration::from_millis)
        );
        let all: Duration = (1..=20).map(pause_after).sum();
        assert!(all > Duration::from_secs(800) && all < Duration::from_secs(1_000), "{all:?}");
    }
}
