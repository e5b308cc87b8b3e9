//! Decides when to report a condition that lasts: when it begins, and once a minute while it goes on, however often it begins and ends.
//!
//! Pure: `now` is a time since any fixed moment.

use std::time::Duration;

/// Interval of the warnings about one condition.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// A change to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// The condition has begun, or lasts.
    Lasts,
    /// A reported condition is over.
    Over,
}

/// A condition that may last.
#[derive(Debug, Default)]
pub struct Reminder {
    reported_at: Option<Duration>,
    /// Whether its end is to be logged.
    is_reported: bool,
}

impl Reminder {
    /// Records whether the condition holds now.
    pub fn update(&mut self, is_so: bool, now: Duration) -> Option<Announcement> {
        if !is_so {
            return std::mem::take(&mut self.is_reported).then_some(Announcement::Over);
        }
        if self.reported_at.is_some_and(|reported_at| now.saturating_sub(reported_at) < REPEAT_AFTER) {
            return None;
        }
        self.reported_at = Some(now);
        self.is_reported = true;
        Some(Announcement::Lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasting_state_is_reported_at_once_and_once_a_minute() {
        let mut lasting = Reminder::default();
        let reported: Vec<_> = (0..1_000)
            .filter(|tick| {
                lasting.update(true, Duration::from_millis(tick * 250)) == Some(Announcement::Lasts)
            })
            .collect();
        assert_eq!(reported, [0, 240, 480, 720, 960]);
        assert_eq!(lasting.update(false, Duration::from_secs(250)), Some(Announcement::Over));
        assert_eq!(lasting.update(false, Duration::from_secs(251)), None);
    }

    #[test]
    fn recurring_state_is_reported_once_a_minute() {
        let mut lasting = Reminder::default();
        let reported = (0..1_000)
            .filter(|tick| {
                lasting.update(tick % 2 == 0, Duration::from_millis(tick * 250)) == Some(Announcement::Lasts)
            })
            .count();
        assert_eq!(reported, 5);
    }
}
