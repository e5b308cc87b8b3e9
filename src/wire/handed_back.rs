//! The header of a command that was handed back before any work on it: when it was first seen and whether it may have been
//! sent.
//!
//! Anyone who may publish commands can forge it. It moves no time into the future, and one that cannot be read ends the
//! command like any other corrupt header of ours.

use jiff::Timestamp;

use crate::policy::attempt::Progress;
use crate::wire::retry_message::{CorruptRetryMessage, DeadlineLimits, deadline};

/// Marks a command that was published to its queue again, as a new message: the first message may exist, too. Its text is
/// that of [`HandedBack`].
pub const HANDED_BACK: &str = "x-redemption-handed-back";

/// The longest text that is read, in bytes. A time with nanoseconds takes 30.
const TEXT_BYTES_MAX: usize = 64;

/// The state of a command at its first delivery, as `<RFC 3339 time> unsent` or `<RFC 3339 time> tried`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedBack {
    /// When the command was first seen.
    pub first_seen: Timestamp,
    /// Whether an earlier consumer may have sent the command.
    pub may_have_been_sent: bool,
}

impl HandedBack {
    /// The text of the header.
    pub fn to_words(self) -> String {
        format!("{} {}", self.first_seen, if self.may_have_been_sent { "tried" } else { "unsent" })
    }

    /// Reads the text back. A time in the future counts as now.
    ///
    /// # Errors
    /// [`CorruptRetryMessage::Unreadable`] if the text is not one that [`HandedBack::to_words`] writes.
    pub fn from_words(words: &str, now: Timestamp) -> Result<Self, CorruptRetryMessage> {
        let corrupt = CorruptRetryMessage::Unreadable(HANDED_BACK);
        let (at, word) = Some(words)
            .filter(|words| words.len() <= TEXT_BYTES_MAX)
            .and_then(|words| words.split_once(' '))
            .ok_or(corrupt.clone())?;
        let first_seen: Timestamp = at.parse().map_err(|_| corrupt.clone())?;
        let may_have_been_sent = match word {
            "tried" => true,
            "unsent" => false,
            _ => return Err(corrupt),
        };
        Ok(Self { first_seen: first_seen.min(now), may_have_been_sent })
    }

    /// The progress of the command. `deadline_header` sets its deadline, `redelivered` says whether the broker delivered
    /// this message before.
    ///
    /// # Errors
    /// [`CorruptRetryMessage::Unreadable`] if the deadline cannot be read.
    pub fn progress(
        self,
        deadline_header: Option<&str>,
        redelivered: bool,
        deadline_limits: DeadlineLimits,
    ) -> Result<Progress, CorruptRetryMessage> {
        let deadline = deadline(deadline_header, self.first_seen, deadline_limits)?;
        let mut progress = Progress::new(self.first_seen, deadline, redelivered || self.may_have_been_sent);
        progress.require_query();
        // No delivery of this command is older.
        progress.unsent_before = (!self.may_have_been_sent).then_some(self.first_seen);
        Ok(progress)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn handed_back_header_is_read_back() {
        let now = at("2026-03-05T05:00:00Z");
        for (first_seen, may_have_been_sent) in
            [(now, true), (now, false), (at("2026-03-05T04:59:59.123456789Z"), false)]
        {
            let handed_back = HandedBack { first_seen, may_have_been_sent };
            assert_eq!(HandedBack::from_words(&handed_back.to_words(), now), Ok(handed_back));
        }
    }

    #[test]
    fn handed_back_header_moves_no_time_into_the_future() {
        let now = at("2026-03-05T05:00:00Z");
        let ahead = HandedBack { first_seen: at("2030-01-01T00:00:00Z"), may_have_been_sent: false };
        let read = HandedBack::from_words(&ahead.to_words(), now).unwrap();
        assert_eq!(read.first_seen, now);
        let hours = SignedDuration::from_hours;
        let deadline_limits = DeadlineLimits { default: hours(24), furthest: hours(72) };
        let progress = read.progress(Some("9999-01-01T00:00:00Z"), false, deadline_limits).unwrap();
        assert_eq!(progress.deadline, at("2026-03-08T05:00:00Z"));
    }

    #[test]
    fn handed_back_header_that_makes_no_sense_is_corrupt() {
        let now = at("2026-03-05T05:00:00Z");
        let long = format!("2026-03-05T04:00:00.{:0>64}Z unsent", 0);
        for words in
            ["", "1", "unsent", "soon unsent", "2026-03-05T04:00:00Z", "2026-03-05T04:00:00Z sent", &long]
        {
            let read = HandedBack::from_words(words, now);
            assert_eq!(read, Err(CorruptRetryMessage::Unreadable(HANDED_BACK)), "{words:?}");
        }
    }
}
