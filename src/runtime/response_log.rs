//! Recent responses of the payment API by class: their number, and the last one of each class.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::policy::call_signal::ResponseClass;
use crate::telemetry::masking::Masked;
use crate::telemetry::untrusted::visible_within;
use crate::wechat::client::CallOutcome;

/// The most of the provider's message that is kept, in characters.
const MESSAGE_CHARS_MAX: usize = 200;
/// The same of a code or a request id.
const WORD_CHARS_MAX: usize = 64;

/// The last response of a class: bounded, hidden characters visible, openids masked.
#[derive(Debug, Clone, PartialEq)]
pub struct LastResponse {
    /// When it was received.
    pub at: Instant,
    /// Its HTTP status, if the response was complete.
    pub status: Option<u16>,
    /// `code` of its body.
    pub code: Option<String>,
    /// `message` of its body, or the network error.
    pub message: Option<String>,
    /// `Request-ID`.
    pub request_id: Option<String>,
}

impl LastResponse {
    fn new(outcome: &CallOutcome, at: Instant) -> Self {
        let response = outcome.result.response();
        let seen = outcome.unverified.as_ref().map(|seen| seen.in_words());
        let said = response.and_then(|response| response.message.clone()).map(String::from);
        let message = match (said, seen) {
            (Some(said), Some(seen)) => Some(format!("{seen}; {said}")),
            (said, seen) => said.or(seen).or_else(|| outcome.error.clone()),
        };
        Self {
            at,
            status: response.map(|response| response.status),
            code: response
                .and_then(|response| response.code.as_deref())
                .map(|code| bounded(code, WORD_CHARS_MAX)),
            message: message.map(|message| bounded(&message, MESSAGE_CHARS_MAX)),
            request_id: response.and_then(|response| response.request_id.as_deref()).map(shown_request_id),
        }
    }

    /// A description for operators.
    pub fn describe(&self) -> String {
        let status =
            self.status.map_or_else(|| "no complete response".to_owned(), |status| status.to_string());
        let mut words = vec![status];
        words.extend(self.code.clone());
        words.extend(self.message.clone());
        let id = self.request_id.as_ref().map(|id| format!(" (request {id})")).unwrap_or_default();
        words.join(" ") + &id
    }
}

fn bounded(text: &str, chars_max: usize) -> String {
    // Masked first: a cut must not make a short word of a long one.
    visible_within(&Masked(text).to_string(), chars_max)
}

/// A request id stays whole if it has the format of one, capitals and digits: the support of the provider needs it.
fn shown_request_id(id: &str) -> String {
    let has_shape = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'-';
    if id.bytes().all(has_shape) { visible_within(id, WORD_CHARS_MAX) } else { bounded(id, WORD_CHARS_MAX) }
}

/// The number of responses of each class, in the order of [`ResponseClass::ALL`].
pub type Counts = [u64; ResponseClass::ALL.len()];

/// The results of the calls so far.
#[derive(Debug, Default)]
pub struct ResponseLog(Mutex<Log>);

#[derive(Debug, Default)]
struct Log {
    counts: Counts,
    last: [Option<LastResponse>; ResponseClass::ALL.len()],
}

impl ResponseLog {
    /// Records the result of a call. Verified responses are only counted.
    pub fn record(&self, class: ResponseClass, outcome: &CallOutcome, at: Instant) {
        let mut log = self.lock();
        log.counts[class as usize] += 1;
        if class != ResponseClass::Verified {
            log.last[class as usize] = Some(LastResponse::new(outcome, at));
        }
    }

    /// The number of responses of each class since the start.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// The last response of a class.
    pub fn last(&self, class: ResponseClass) -> Option<LastResponse> {
        self.lock().last[class as usize].clone()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::classify::{Authenticity, CallResult, Response};

    fn last_of(text: &str, request_id: &str) -> LastResponse {
        let log = ResponseLog::default();
        let response = Response {
            status: 403,
            authenticity: Authenticity::Unsigned,
            code: Some(text.into()),
            sub_code: None,
            coupon: None,
            message: Some(text.into()),
            request_id: Some(request_id.into()),
        };
        let outcome = CallOutcome::only(CallResult::Response(response));
        log.record(ResponseClass::Unverified, &outcome, Instant::now());
        assert_eq!(log.counts().iter().sum::<u64>(), 1);
        assert_eq!(log.last(ResponseClass::Throttled), None);
        log.last(ResponseClass::Unverified).unwrap()
    }

    #[test]
    fn what_is_kept_of_an_answer_is_bounded_and_breaks_no_line() {
        let long = "签\n\u{1b}\u{202e}".repeat(10_000);
        let last = last_of(&long, &long);
        assert_eq!(last.status, Some(403));
        let texts = [last.code, last.request_id, last.message].map(Option::unwrap);
        for text in &texts {
            assert!(!text.chars().any(crate::telemetry::untrusted::is_hidden), "{text}");
        }
        let words = WORD_CHARS_MAX..7 * WORD_CHARS_MAX;
        assert!(words.contains(&texts[0].chars().count()) && words.contains(&texts[1].chars().count()));
        assert!((MESSAGE_CHARS_MAX..7 * MESSAGE_CHARS_MAX).contains(&texts[2].chars().count()));
    }

    #[test]
    fn no_openid_is_kept_of_an_answer() {
        let openid = "oh-394z-6CGkNoJrsDLTTUKiAnp4";
        for before in 0..MESSAGE_CHARS_MAX + 30 {
            let text = format!("{} {openid}", " ".repeat(before));
            let last = last_of(&text, &text);
            let shown = last.describe();
            assert!(!shown.contains(&openid[..9]), "{before}: {shown}");
            assert!(!shown.contains(&openid[15..]), "{before}: {shown}");
        }
        let request_id = "08E68E97CC0610DF0618AC86BCA80120082880CF05-268578704";
        assert_eq!(last_of("", request_id).request_id.as_deref(), Some(request_id));
    }
}
