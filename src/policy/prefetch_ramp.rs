//! How many commands are taken from the queue at once after a start and after each lost session: one, then twice as many
//! whenever that many came through.
//!
//! A message may end every connection that it is delivered on, or the whole process, and the broker counts one more
//! delivery in vain for each that was held beside it. So whatever nobody has thought of costs one delivery of few commands
//! each time. Pure: a value that the main loop owns.

use std::time::Duration;

/// The ramp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchRamp {
    /// As many as are taken at the top.
    full: u16,
    at_once: u16,
    /// Commands that came through since the last step.
    through: u16,
}

/// Deliveries in vain from which on a command counts as through only once it is settled. A redelivered command waits for
/// the query delay several times before it ends; after a broker's restart everything in hand is redelivered once, and would
/// hold up the ramp for minutes. What has been in vain this often is what the ramp is for.
const FULL_AFTER: u64 = 3;

impl PrefetchRamp {
    /// At the foot, toward `full`.
    pub fn new(full: u16) -> Self {
        Self { full: full.max(1), at_once: 1, through: 0 }
    }

    /// Back to the foot.
    pub fn restart(&mut self) {
        *self = Self::new(self.full);
    }

    /// How many may be unsettled at once; `None` at the top.
    pub fn limit(&self) -> Option<u16> {
        (self.at_once < self.full).then_some(self.at_once)
    }

    /// This many more commands were settled, or wait for their next call unharmed.
    pub fn record_through(&mut self, commands: u16) {
        if self.at_once >= self.full {
            return;
        }
        self.through = self.through.saturating_add(commands);
        while self.through >= self.at_once && self.at_once < self.full {
            self.through -= self.at_once;
            self.at_once = self.at_once.saturating_mul(2);
        }
    }

    /// Whether a command that was delivered in vain this often counts as through when it waits for its next call, and not
    /// only once it is settled.
    pub fn is_full(delivery_count: u64) -> bool {
        delivery_count < FULL_AFTER
    }
}

/// The longest pause between two sessions.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pause before the next session after `in_vain` sessions in a row that took commands and settled none. With twenty
/// deliveries of a command it takes a quarter of an hour until the broker gives it up.
pub fn pause_after(in_vain: u32) -> Duration {
    let half_seconds = 1_u64 << in_vain.saturating_sub(1).min(10);
    if in_vain == 0 { Duration::ZERO } else { Duration::from_millis(500 * half_seconds).min(PAUSE_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramp_doubles_as_commands_come_through() {
        let mut ramp = PrefetchRamp::new(200);
        let mut limits = Vec::new();
        while let Some(limit) = ramp.limit() {
            limits.push(limit);
            ramp.record_through(limit);
        }
        assert_eq!(limits, [1, 2, 4, 8, 16, 32, 64, 128]);
        ramp.restart();
        assert_eq!(ramp.limit(), Some(1));
        ramp.record_through(u16::MAX);
        assert_eq!(ramp.limit(), None);
        assert_eq!(PrefetchRamp::new(1).limit(), None, "there is nothing below one");
    }

    #[test]
    fn twenty_sessions_in_vain_take_a_quarter_of_an_hour() {
        assert_eq!(pause_after(0), Duration::ZERO);
        assert_eq!(
            [1, 2, 7, 8, 200].map(pause_after),
            [500, 1_000, 32_000, 60_000, 60_000].map(Duration::from_millis)
        );
        let all: Duration = (1..=20).map(pause_after).sum();
        assert!(all > Duration::from_secs(800) && all < Duration::from_secs(1_000), "{all:?}");
    }
}
