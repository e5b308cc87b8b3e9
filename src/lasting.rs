//! Tells of something that lasts: when it begins, and once a minute while it goes on, however often it comes and goes.
//!
//! Pure: `now` is a time since any fixed moment.

use std::time::Duration;

/// Between two warnings of one thing.
const AGAIN: Duration = Duration::from_secs(60);

/// What is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It is so now, or still.
    Lasts,
    /// What was told is over.
    Over,
}

/// Something that may be so for a while.
#[derive(Debug, Default)]
pub struct Lasting {
    told_at: Option<Duration>,
    /// Whether its end is worth a line.
    is_told: bool,
}

impl Lasting {
    /// It is so now, or not.
    pub fn news(&mut self, is_so: bool, now: Duration) -> Option<News> {
        if !is_so {
            return std::mem::take(&mut self.is_told).then_some(News::Over);
        }
        if self.told_at.is_some_and(|told_at| now.saturating_sub(told_at) < AGAIN) {
            return None;
        }
        self.told_at = Some(now);
        self.is_told = true;
        Some(News::Lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_at_once_and_once_a_minute() {
        let mut lasting = Lasting::default();
        let told: Vec<_> = (0..1_000)
            .filter(|tick| lasting.news(true, Duration::from_millis(tick * 250)) == Some(News::Lasts))
            .collect();
        assert_eq!(told, [0, 240, 480, 720, 960]);
        assert_eq!(lasting.news(false, Duration::from_secs(250)), Some(News::Over));
        assert_eq!(lasting.news(false, Duration::from_secs(251)), None);
    }

    #[test]
    fn what_comes_and_goes_is_told_once_a_minute_too() {
        let mut lasting = Lasting::default();
        let told = (0..1_000)
            .filter(|tick| {
                lasting.news(tick % 2 == 0, Duration::from_millis(tick * 250)) == Some(News::Lasts)
            })
            .count();
        assert_eq!(told, 5);
    }
}
