//! Reads a response that suspends calls.

use crate::runtime::circuit_gate::SuspendedBy;
use crate::telemetry::untrusted::Untrusted;
use crate::wechat::client::CallOutcome;

/// The longest text of the provider in a reason, in bytes.
pub(super) const SAID_BYTES_MAX: usize = 200;

/// The code, the message and the clock skew of a response, for operators.
pub(super) fn suspended_by(outcome: &CallOutcome) -> SuspendedBy {
    let response = outcome.result.response();
    let words = response.map(|response| [response.code.as_deref(), response.message.as_deref()]);
    let words: Vec<_> = words.into_iter().flatten().flatten().collect();
    let mut said = Untrusted(&words.join(": ")).to_string();
    said.truncate(said.floor_char_boundary(SAID_BYTES_MAX));
    SuspendedBy { said, clock_skew: outcome.clock_skew.map(|skew| skew.as_secs_f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    use crate::policy::classify::{Authenticity, CallResult, Response};

    #[test]
    fn suspending_response_is_shown_in_one_bounded_line() {
        let response = |code: Option<&str>, message: Option<&str>| Response {
            status: 401,
            authenticity: Authenticity::Unsigned,
            code: code.map(Into::into),
            sub_code: None,
            coupon: None,
            message: message.map(Into::into),
            request_id: None,
        };
        let said = |result| {
            let mut outcome = CallOutcome::only(result);
            outcome.clock_skew = Some(SignedDuration::from_secs(-3));
            let SuspendedBy { said, clock_skew } = suspended_by(&outcome);
            assert_eq!(clock_skew, Some(-3.0));
            said
        };
        let check = |code: Option<&str>, message: Option<&str>, expected: &str| {
            assert_eq!(said(CallResult::Response(response(code, message))), expected);
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
