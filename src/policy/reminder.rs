//! Reports of something that lasts: when it begins, and once a minute while it goes on, however often it comes and goes.
//!
//! Pure: `now` is a time since any fixed moment.

use std::time::Duration;

/// Between two warnings of one thing.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// What is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// It is so now, or still.
    Lasts,
    /// What was reported is over.
    Over,
}

/// Something that may be so for a while.
#[derive(Debug, Default)]
pub struct Reminder {
    told_at: Option<Duration>,
    /// Whether its end is worth a line.
    is_told: bool,
}

impl Reminder {
    /// It is so now, or not.
    pub fn update(&mut self, is_so: bool, now: Duration) -> Option<Announcement> {
        if !is_so {
            return std::mem::take(&mut self.is_told).then_some(Announcement::Over);
        }
        if self.told_at.is_some_and(|told_at| now.saturating_sub(told_at) < REPEAT_AFTER) {
            return None;
        }
        self.told_at = Some(now);
        self.is_told = true;
        Some(Announcement::Lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_at_once_and_once_a_minute() {
        let mut lasting = Reminder::default();
        let told: Vec<_> = (0..1_000)
            .filter(|tick| {
                lasting.update(true, Duration::from_millis(tick * 250)) == Some(Announcement::Lasts)
            })
            .collect();
        assert_eq!(told, [0, 240, 480, 720, 960]);
        assert_eq!(lasting.update(false, Duration::from_secs(250)), Some(Announcement::Over));
        assert_eq!(lasting.update(false, Duration::from_secs(251)), None);
    }

    #[test]
    fn what_comes_and_goes_is_told_once_a_minute_too() {
        let mut lasting = Reminder::default();
        let told = (0..1_000)
            .filter(|tick| {
                lasting.update(tick % 2 == 0, Duration::from_millis(tick * 250)) == Some(Announcement::Lasts)
            })
            .count();
        assert_eq!(told, 5);
    }
}
