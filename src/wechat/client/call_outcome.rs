//! The outcome of a call, and what is known of a response that was not verified.

use crate::wechat::client::network_succeeded;
use std::time::Duration;

use http::header::HeaderMap;
use jiff::SignedDuration;

use crate::policy::classify::CallResult;
use crate::policy::host_choice::Host;
use crate::telemetry::masking::beginning;
use crate::telemetry::untrusted::Untrusted;
use crate::wechat::response::Detail;
use crate::wechat::verify::SERIAL;

/// The outcome of one call.
#[derive(Debug, Clone, PartialEq)]
pub struct CallOutcome {
    /// The result.
    pub result: CallResult,
    /// The domain that was called.
    pub host: Host,
    /// Its name, for evidence.
    pub host_name: String,
    /// The serial of the key that verified the response.
    pub serial: Option<String>,
    /// The provider's clock minus ours, by the `Date` of the response; precise to a second.
    pub clock_skew: Option<SignedDuration>,
    /// From sending to the last byte.
    pub took: Duration,
    /// The error, if the network failed.
    pub error: Option<String>,
    /// What an error body names as its cause.
    pub detail: Option<Detail>,
    /// Details of a response that was not verified.
    pub unverified: Option<Box<UnverifiedResponse>>,
}

/// A response that was not verified, for operators: it shows who responds in the provider's place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnverifiedResponse {
    /// The serial that it claims to be signed under.
    pub serial: Option<String>,
    /// Its `Server` header.
    pub server: Option<String>,
    /// Its `Content-Type`.
    pub content_type: Option<String>,
    /// The beginning of its body, as text.
    pub first_words: String,
}

/// The longest beginning of an unverified body that is kept, in characters.
pub(super) const FIRST_WORDS_CHARS: usize = 80;

/// The same of one of its headers.
pub(super) const HEADER_CHARS: usize = 100;

impl UnverifiedResponse {
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let text = |name: &str| {
            let value = headers.get(name)?;
            Some(beginning(&String::from_utf8_lossy(value.as_bytes()), HEADER_CHARS).to_owned())
        };
        let start = String::from_utf8_lossy(&body[..body.len().min(8 * FIRST_WORDS_CHARS)]).into_owned();
        let words = start.split_whitespace().collect::<Vec<_>>().join(" ");
        Self {
            serial: text(SERIAL),
            server: text("server"),
            content_type: text("content-type"),
            first_words: beginning(&words, FIRST_WORDS_CHARS).to_owned(),
        }
    }

    /// The serial, whole if it has the format of one, because the operator looks for it. Anything else is shortened like
    /// all text of others.
    pub fn shown_serial(&self) -> Option<String> {
        let serial = self.serial.as_deref()?;
        let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
        let is_hex = serial.len() <= 40 && serial.bytes().all(|byte| byte.is_ascii_hexdigit());
        let has_shape =
            is_hex || serial.len() <= 64 && serial.strip_prefix("PUB_KEY_ID_").is_some_and(is_word);
        Some(if has_shape { serial.to_owned() } else { Untrusted(serial).to_string() })
    }

    /// As text for operators.
    pub fn in_words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.shown_serial().map(|serial| format!("serial {serial}")));
        words.extend(self.server.as_ref().map(|server| format!("Server {}", Untrusted(server))));
        words.extend(self.content_type.as_ref().map(|kind| Untrusted(kind).to_string()));
        words.push(match self.first_words.as_str() {
            "" => "an empty body".to_owned(),
            words => format!("it begins: {}", Untrusted(words)),
        });
        words.join(", ")
    }
}

impl CallOutcome {
    /// A result without details.
    #[cfg(test)]
    pub(crate) fn only(result: CallResult) -> Self {
        let (host, host_name) = (Host::Primary, String::new());
        let (serial, clock_skew, took, error) = (None, None, Duration::ZERO, None);
        Self { result, host, host_name, serial, clock_skew, took, error, detail: None, unverified: None }
    }

    /// The domain where the network failed, if it did.
    pub fn failed_at(&self) -> Option<Host> {
        (!network_succeeded(&self.result)).then_some(self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_an_unverified_response_show_no_part_of_an_openid() {
        let openid = "oh-394z-6CGkNoJrsDLTTUKiAnp4";
        for before in 0..FIRST_WORDS_CHARS.max(HEADER_CHARS) + 5 {
            let text = format!("{}={openid}", "=".repeat(before));
            let mut headers = HeaderMap::new();
            for name in [SERIAL, "server", "content-type"] {
                headers.insert(name, text.parse().unwrap());
            }
            let shown = UnverifiedResponse::read(&headers, text.as_bytes()).in_words();
            assert!(!shown.contains(&openid[..9]) && !shown.contains(&openid[10..]), "{before}: {shown}");
        }
    }
}
