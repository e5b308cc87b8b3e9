//! What a response said that suspended us.

use crate::telemetry::untrusted::Untrusted;
use crate::wechat::client::CallOutcome;

/// The response that suspended calls, for readiness.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SuspendedBy {
    /// `code` and `message`: control characters made visible, openids masked, 200 bytes at most.
    pub said: String,
    /// The provider's clock less ours, in seconds, by this response.
    pub clock_skew: Option<f64>,
}

/// The longest text of the provider in a reason, in bytes.
pub(super) const SAID_BYTES_MAX: usize = 200;

impl SuspendedBy {
    pub(super) fn new(outcome: &CallOutcome) -> Self {
        let answer = outcome.result.response();
        let words = answer.map(|answer| [answer.code.as_deref(), answer.message.as_deref()]);
        let words: Vec<_> = words.into_iter().flatten().flatten().collect();
        let mut said = Untrusted(&words.join(": ")).to_string();
        said.truncate(said.floor_char_boundary(SAID_BYTES_MAX));
        Self { said, clock_skew: outcome.clock_skew.map(|skew| skew.as_secs_f64()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    use crate::policy::classify::{Authenticity, CallResult, Response};

    #[test]
    fn what_stopped_us_is_reported_in_few_words_that_break_no_line() {
        let answer = |code: Option<&str>, message: Option<&str>| Response {
            status: 401,
            authenticity: Authenticity::Unsigned,
            code: code.map(Into::into),
            sub_code: None,
            coupon: None,
            message: message.map(Into::into),
            request_id: None,
        };
        let said = |reply| {
            let mut outcome = CallOutcome::only(reply);
            outcome.clock_skew = Some(SignedDuration::from_secs(-3));
            let SuspendedBy { said, clock_skew } = SuspendedBy::new(&outcome);
            assert_eq!(clock_skew, Some(-3.0));
            said
        };
        let check = |code: Option<&str>, message: Option<&str>, expected: &str| {
            assert_eq!(said(CallResult::Response(answer(code, message))), expected);
        };
        check(Some("SIGN_ERROR"), Some("错误的签名\n\u{1b}[0m"), r"SIGN_ERROR: 错误的签名\u000a\u001b[0m");
        let with_openid = "openid=oh-394z-6CGkNoJrsDLTTUKiAnp4 is wrong";
        check(Some("SIGN_ERROR"), Some(with_openid), "SIGN_ERROR: openid=oh…Anp4 is wrong");
        check(None, Some("no"), "no");
        check(Some("SIGN_ERROR"), None, "SIGN_ERROR");
        check(None, None, "");
        check(None, Some(&"签".repeat(500)), &"签".repeat(66));
    }
}
