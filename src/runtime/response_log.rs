//! What the payment API answered lately, by class: how often, and the last answer of each class in few words.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::policy::circuit::ResponseClass;
use crate::policy::classify::CallResult;
use crate::wechat::client::CallOutcome;

/// The most of the provider's message that is kept, in bytes.
const MESSAGE_BYTES_MAX: usize = 200;
/// The same of a code or a request id.
const WORD_BYTES_MAX: usize = 64;

/// The last answer of a class, without control characters and bounded.
#[derive(Debug, Clone, PartialEq)]
pub struct LastResponse {
    /// When it came.
    pub at: Instant,
    /// Its HTTP status, if there was a whole answer.
    pub status: Option<u16>,
    /// `code` of its body.
    pub code: Option<String>,
    /// `message` of its body, or what the network said.
    pub message: Option<String>,
    /// `Request-ID`.
    pub request_id: Option<String>,
}

impl LastResponse {
    fn new(heard: &CallOutcome, at: Instant) -> Self {
        let answer = match &heard.result {
            CallResult::Response(answer) => Some(answer),
            CallResult::NotSent(_) | CallResult::NoResponse(_) => None,
        };
        let seen = heard.unbelieved.as_ref().map(|seen| seen.in_words());
        let said = answer.and_then(|answer| answer.message.clone()).map(String::from);
        let message = match (said, seen) {
            (Some(said), Some(seen)) => Some(format!("{seen}; {said}")),
            (said, seen) => said.or(seen).or_else(|| heard.trouble.clone()),
        };
        Self {
            at,
            status: answer.map(|answer| answer.status),
            code: answer.and_then(|answer| answer.code.as_deref()).map(|code| bounded(code, WORD_BYTES_MAX)),
            message: message.map(|message| bounded(&message, MESSAGE_BYTES_MAX)),
            request_id: answer
                .and_then(|answer| answer.request_id.as_deref())
                .map(|id| bounded(id, WORD_BYTES_MAX)),
        }
    }

    /// In words, for people.
    pub fn describe(&self) -> String {
        let status = self.status.map_or_else(|| "no whole answer".to_owned(), |status| status.to_string());
        let mut words = vec![status];
        words.extend(self.code.clone());
        words.extend(self.message.clone());
        let id = self.request_id.as_ref().map(|id| format!(" (request {id})")).unwrap_or_default();
        words.join(" ") + &id
    }
}

fn bounded(text: &str, bytes_max: usize) -> String {
    let mut text: String = text.chars().filter(|letter| !letter.is_control()).collect();
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// How often each class came, in the order of [`ResponseClass::ALL`].
pub type Counts = [u64; ResponseClass::ALL.len()];

/// What came of the calls so far.
#[derive(Debug, Default)]
pub struct ResponseLog(Mutex<Log>);

#[derive(Debug, Default)]
struct Log {
    counts: Counts,
    last: [Option<LastResponse>; ResponseClass::ALL.len()],
}

impl ResponseLog {
    /// Remembers what came of a call. Answers that are as they should be are only counted.
    pub fn record(&self, class: ResponseClass, heard: &CallOutcome, at: Instant) {
        let mut log = self.lock();
        log.counts[class as usize] += 1;
        if class != ResponseClass::Verified {
            log.last[class as usize] = Some(LastResponse::new(heard, at));
        }
    }

    /// How often each class came since the start.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// The last answer of a class.
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
    use crate::policy::classify::{Authenticity, Response};

    #[test]
    fn what_is_kept_of_an_answer_is_bounded_and_breaks_no_line() {
        let log = ResponseLog::default();
        let long = "签\n\u{1b}".repeat(10_000);
        let answer = Response {
            status: 403,
            authenticity: Authenticity::Unsigned,
            code: Some(long.as_str().into()),
            sub_code: None,
            coupon: None,
            message: Some(long.as_str().into()),
            request_id: Some(long.as_str().into()),
        };
        let heard = CallOutcome::only(CallResult::Response(answer));
        log.record(ResponseClass::Unverified, &heard, Instant::now());
        let last = log.last(ResponseClass::Unverified).unwrap();
        assert_eq!(last.status, Some(403));
        assert_eq!([last.code, last.request_id].map(|word| word.unwrap().len()), [63; 2]);
        assert_eq!(last.message.unwrap().len(), 198);
        assert_eq!(log.counts().iter().sum::<u64>(), 1);
        assert_eq!(log.last(ResponseClass::Throttled), None);
    }
}
