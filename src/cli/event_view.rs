//! A result event as the command line reads it: leniently, because it may be of another version.

use std::fmt;

use serde::Deserialize;

use crate::domain::outcome::OutcomeKind;
use crate::telemetry::masking::Short;
use crate::telemetry::untrusted::visible_within;

/// The longest line of an event, in characters: more than twice that of a genuine one.
const LINE_CHARS_MAX: usize = 512;

/// The parts of an event that are shown.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EventView {
    /// When the outcome was established.
    #[serde(default)]
    pub time: String,
    /// What happened.
    pub data: Data,
}

/// What happened to one command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Data {
    /// One of the four outcomes, or a later version's.
    pub outcome: String,
    /// The coupon.
    pub coupon_code: Option<String>,
    /// The request number.
    pub out_request_no: Option<String>,
    /// The coupon's state.
    pub coupon_state: Option<String>,
    /// How the outcome was established.
    #[serde(default)]
    pub established_by: String,
    /// Calls made.
    #[serde(default)]
    pub attempts: u32,
    /// Why it is not `redeemed`.
    pub problem: Option<Problem>,
}

/// Why an outcome is not `redeemed`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// One of a closed list.
    pub reason: String,
}

impl EventView {
    /// Reads an event; `None` if it is not one.
    pub fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// Why it is not `redeemed`.
    pub fn reason(&self) -> Option<&str> {
        self.data.problem.as_ref().map(|problem| problem.reason.as_str())
    }
}

/// One line: time, outcome, coupon, number, reason, state, attempts.
impl fmt::Display for EventView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Data { outcome, coupon_code, out_request_no, coupon_state, attempts, .. } = &self.data;
        // Seconds are enough here.
        let time = self.time.split(['.', 'Z']).next().unwrap_or_default();
        let coupon = coupon_code.as_deref().map_or_else(|| "-".to_owned(), |code| Short(code).to_string());
        let calls = if *attempts == 1 { "1 call" } else { &format!("{attempts} calls") };
        let line = format!(
            "{time}Z  {outcome:<10}  {coupon:<8}  {}  {}  {}  {calls}",
            out_request_no.as_deref().unwrap_or("-"),
            self.reason().unwrap_or("-"),
            coupon_state.as_deref().unwrap_or("-"),
        );
        f.write_str(&visible_within(&line, LINE_CHARS_MAX))
    }
}

/// JSON on one line. A line feed in JSON is only ever white space: within a text it is escaped.
pub fn on_one_line(body: &[u8]) -> String {
    String::from_utf8_lossy(body).replace(['\n', '\r'], " ")
}

/// Reads the word of an outcome from the command line.
///
/// # Errors
/// The valid words.
pub fn outcome(word: &str) -> Result<OutcomeKind, String> {
    let words = OutcomeKind::ALL.map(OutcomeKind::as_str).join(", ");
    OutcomeKind::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or(format!("must be one of {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_harmless_line() {
        let body = br#"{"time": "2026-03-05T04:30:45.123456Z", "later": 1, "data": {"outcome": "refused",
            "coupon_code": "123446565767", "out_request_no": "no\u001b[2J_1", "coupon_state": "EXPIRED",
            "attempts": 2, "problem": {"reason": "expired", "faults": []}}}"#;
        let reported = EventView::read(body).unwrap();
        assert_eq!(
            reported.to_string(),
            "2026-03-05T04:30:45Z  refused     12…5767   no\\u001b[2J_1  expired  EXPIRED  2 calls"
        );
        assert!(!on_one_line(body).contains('\n'));
        assert_eq!(EventView::read(&on_one_line(body).into_bytes()), Some(reported));
    }

    #[test]
    fn what_is_no_event_is_not_read() {
        for body in ["", "{}", "[]", r#"{"data": {}}"#] {
            assert_eq!(EventView::read(body.as_bytes()), None, "{body}");
        }
    }
}
