//! The log, and the things worth both a line and a count.
//!
//! One line per settled command, written when it is settled. Openid and coupon code are shortened; keys,
//! signatures and passwords never get near.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal as _};

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::telemetry::json_log::SanitizedJson;
use crate::telemetry::untrusted::{VALUE_CHARS_MAX, visible_within};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Plain,
    /// One JSON object per line.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[error("log.filter is not a filter such as info or redeemer=debug: {0}")]
pub struct BadFilter(String);

/// Whether a text is a filter.
///
/// # Errors
/// [`BadFilter`]
pub fn check_filter(filter: &str) -> Result<(), BadFilter> {
    EnvFilter::try_new(filter).map(drop).map_err(|error| BadFilter(error.to_string()))
}

/// Begins to write the log to standard error.
///
/// # Errors
/// [`BadFilter`]
pub fn init(format: Format, filter: &str) -> Result<(), BadFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|error| BadFilter(error.to_string()))?;
    // Colours are for terminals: in a file or a journal they are noise.
    let colors = std::io::stderr().is_terminal();
    // It would go to standard error, which is what failed.
    let layer = tracing_subscriber::fmt::layer().with_ansi(colors).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    // A log that is there already (a test's) stays.
    let _ = match format {
        Format::Plain => {
            let fields = debug_fn(write_field).delimited(" ");
            let layer = layer.with_target(false).fmt_fields(fields).with_writer(io::stderr);
            registry.with(layer).try_init()
        }
        Format::Json => {
            let layer = layer.json().flatten_event(true).with_writer(SanitizedJson(io::stderr));
            registry.with(layer).try_init()
        }
    };
    Ok(())
}

/// A field of a line for people. Whatever its value holds, it is one line, bounded, and without an openid.
fn write_field(to: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = visible_within(&masked_value(field.name(), &format!("{value:?}")), VALUE_CHARS_MAX);
    match (field.name(), to.has_ansi_escapes()) {
        ("message", _) => to.write_str(&value),
        (name, true) => write!(to, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}"),
        (name, false) => write!(to, "{name}={value}"),
    }
}

/// The field that shows a request number, which is whole in the log: a publisher chooses it, and operators search by it.
const WHOLE_FIELD: &str = "out_request_no";

/// The value of a field without an openid. What others wrote is shortened before it gets here; this is for the text that
/// was forgotten, so words of ours, serials, hashes and paths stay whole.
pub(super) fn masked_value<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    match name {
        WHOLE_FIELD => Cow::Borrowed(value),
        _ => without_openids(value),
    }
}

/// An identifier as it may stand in a log: its first two and last four characters.
#[derive(Debug, Clone, Copy)]
pub struct Short<'a>(pub &'a str);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        let (head, tail) = (text.get(..2), text.len().checked_sub(4).and_then(|at| text.get(at..)));
        match (head, tail) {
            (Some(head), Some(tail)) if text.len() > 8 => write!(f, "{head}…{tail}"),
            _ => f.write_str("…"),
        }
    }
}

/// Bytes from outside as they may be seen: each run of 20 letters, digits, `_` and `-` or more is shortened,
/// for it may be somebody's openid. Names of fields stay as they are.
#[derive(Debug, Clone, Copy)]
pub struct Masked<'a>(pub &'a str);

/// The shortest token that may be an openid.
pub(super) const TOKEN_MIN: usize = 20;
/// Names of a command's fields that are as long as one.
const LONG_NAMES: [&str; 3] =
    ["associated_order_info", "associated_pay_score_order_info", "sequential_coupon_index"];

impl fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_masked(f, self.0, |token| {
            // Codes of errors are capitals; an openid has more than these.
            let is_code = token.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            !is_code && !LONG_NAMES.contains(&token)
        })
    }
}

/// A text that others wrote, as an operator sees it who must find out what it is: long tokens are shortened but those
/// that `is_known` names, and numbers, hashes and codes, which no openid is.
pub fn masked_except(text: &str, is_known: impl Fn(&str) -> bool) -> String {
    let mut masked = String::with_capacity(text.len());
    // Writing to a text does not fail.
    let _ = write_masked(&mut masked, text, |token| {
        let is_number = token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        let is_code = !token.bytes().any(|byte| byte.is_ascii_lowercase());
        !is_number && !is_code && !LONG_NAMES.contains(&token) && !is_known(token)
    });
    masked
}

/// A text of JSON in which letters and digits are no longer spelled with escapes, which would hide an openid.
pub fn unescaped_tokens(text: &str) -> String {
    let mut parts = text.split("\\u");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match code.and_then(char::from_u32).filter(|c| in_token(*c)) {
            Some(letter) => {
                plain.push(letter);
                plain.push_str(&part[4..]);
            }
            None => plain.extend(["\\u", part]),
        }
    }
    plain
}

/// A text of ours that may quote others: only tokens that look like an openid are shortened.
pub fn without_openids(text: &str) -> Cow<'_, str> {
    let is_token = |token: &str| token.len() >= TOKEN_MIN && looks_like_openid(token);
    if text.len() < TOKEN_MIN || !text.split(|c| !in_token(c)).any(is_token) {
        return Cow::Borrowed(text);
    }
    let mut masked = String::with_capacity(text.len());
    // Writing to a text does not fail.
    let _ = write_masked(&mut masked, text, looks_like_openid);
    Cow::Owned(masked)
}

/// Whether a long token may be an openid: 28 letters of both cases, digits, `_` and `-` by chance. Names of ours, hosts,
/// serials, hashes and request ids have letters of one case; names of types are words with a capital each.
fn looks_like_openid(token: &str) -> bool {
    let has = |is: fn(&u8) -> bool| token.bytes().any(|byte| is(&byte));
    has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && !is_camel_case(token)
}

/// Letters only, and two small ones after each capital: by chance, one openid in a million.
fn is_camel_case(token: &str) -> bool {
    let bytes = token.as_bytes();
    bytes.iter().all(u8::is_ascii_alphabetic)
        && (0..bytes.len())
            .filter(|at| bytes[*at].is_ascii_uppercase())
            .all(|at| bytes.get(at + 1..at + 3).is_some_and(|next| next.iter().all(u8::is_ascii_lowercase)))
}

/// The first characters of a text that is masked later: a long token that the bound would make a short one is left out.
pub fn beginning(text: &str, chars_max: usize) -> &str {
    let Some((cut, next)) = text.char_indices().nth(chars_max) else { return text };
    let kept = &text[..cut];
    let token = kept.len() - kept.trim_end_matches(in_token).len();
    if in_token(next) && token < TOKEN_MIN { &kept[..cut - token] } else { kept }
}

fn in_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Writes a text with those of its long tokens shortened that `is_secret` names.
fn write_masked(to: &mut impl fmt::Write, text: &str, is_secret: impl Fn(&str) -> bool) -> fmt::Result {
    let mut rest = text;
    while !rest.is_empty() {
        let token = &rest[..rest.find(|c| !in_token(c)).unwrap_or(rest.len())];
        match token.len() >= TOKEN_MIN && is_secret(token) {
            true => write!(to, "{}", Short(token))?,
            false => to.write_str(token)?,
        }
        rest = &rest[token.len()..];
        let between = &rest[..rest.find(in_token).unwrap_or(rest.len())];
        to.write_str(between)?;
        rest = &rest[between.len()..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_an_openid_is_shortened_wherever_it_stands() {
        let masked = |text| Masked(text).to_string();
        assert_eq!(masked("{\"openid\": \"oh-394z-6CGkNoJrsDLTTUKiAnp4\", "), "{\"openid\": \"oh…Anp4\", ");
        assert_eq!(masked("/json/oh-394z-6CGkNoJrsDLTTUKiAnp4"), "/json/oh…Anp4");
        assert_eq!(
            masked("/associated_pay_score_order_info/mchid"),
            "/associated_pay_score_order_info/mchid"
        );
        assert_eq!(masked("中文oh-394z-6CGkNoJrsDLTTUKiAnp4中文 12"), "中文oh…Anp4中文 12");
        assert_eq!(masked("APPID_MCHID_NOT_MATCH"), "APPID_MCHID_NOT_MATCH");
        assert_eq!([masked(""), masked("签"), masked("short-one_2")], ["", "签", "short-one_2"]);
    }

    /// What a subscriber of a test wrote.
    #[derive(Clone, Default)]
    struct Written(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A line of each format, as written by `write`.
    fn lines(write: impl Fn()) -> [String; 2] {
        let (plain, json) = (Written::default(), Written::default());
        let (to_plain, to_json) = (plain.clone(), json.clone());
        let layer = tracing_subscriber::fmt::layer().with_ansi(false);
        let layer =
            layer.fmt_fields(debug_fn(write_field).delimited(" ")).with_writer(move || to_plain.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), &write);
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let layer = layer.with_writer(SanitizedJson(move || to_json.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), &write);
        [plain, json].map(|written| {
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            text.strip_suffix('\n').unwrap().to_owned()
        })
    }

    #[test]
    fn log_lines_hide_nothing_and_are_bounded() {
        let long = "x ".repeat(100_000);
        let hostile = format!("a\n2026-01-01 ERROR \\ \" forged\u{1b}[2J\u{202e}{long}");
        let [plain, json] = lines(|| tracing::warn!(why = %hostile, text = hostile, "{hostile}"));
        for line in [&plain, &json] {
            assert!(!line.chars().any(crate::telemetry::untrusted::is_hidden), "{:?}", &line[..200]);
            assert!(line.len() < 4 * VALUE_CHARS_MAX, "{}", line.len());
        }
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        for field in ["message", "why", "text"] {
            let shown = line[field].as_str().unwrap();
            let (beginning, left_out) = shown.split_once('…').unwrap();
            assert_eq!(beginning.chars().count(), VALUE_CHARS_MAX, "{field}");
            assert!(hostile.starts_with(beginning), "{field}: {beginning}");
            let expected = format!(" ({} more)", hostile.chars().count() - VALUE_CHARS_MAX);
            assert_eq!(left_out, expected, "{field}");
        }
    }

    #[test]
    fn log_lines_hold_no_openid_whatever_field_it_came_in() {
        let openid = "oh-394z-6CGkNoJrsDLTTUKiAnp4";
        for around in ["", "\n", "\"", "\\", "\u{202e}", "签", " ", "="] {
            let text = format!("{around}{openid}{around}");
            let written = lines(|| {
                tracing::warn!(why = %text, error = text, debug = ?text, some = Some(&text), "{text}");
            });
            for line in written {
                assert!(!line.contains(&openid[2..20]), "{line}");
                assert_eq!(line.matches("Anp4").count(), 5, "{line}");
            }
        }
        // A cut must not make a short word of a long one.
        for before in VALUE_CHARS_MAX - 40..VALUE_CHARS_MAX + 10 {
            let text = format!("{}{openid}", " ".repeat(before));
            for line in lines(|| tracing::warn!(text)) {
                assert!(!line.contains(&openid[..9]), "{before}");
            }
        }
    }

    #[test]
    fn beginning_of_a_text_holds_no_part_of_an_openid() {
        let openid = "oh-394z-6CGkNoJrsDLTTUKiAnp4";
        for chars_max in 0..40 {
            let text = format!("签 {openid} and more");
            let shown = Masked(beginning(&text, chars_max)).to_string();
            assert!(!shown.contains(&openid[..3]), "{chars_max}: {shown}");
            assert!(shown.chars().count() <= chars_max, "{chars_max}: {shown}");
        }
        assert_eq!([beginning("签名", 1), beginning("签名", 2), beginning("a b", 2)], ["签", "签名", "a "]);
        let long = "a".repeat(1_000);
        assert_eq!(beginning(&long, 100), &long[..100]);
    }

    #[test]
    fn log_lines_show_whole_what_is_no_openid() {
        for text in [
            "08E68E97CC0610DF0618AC86BCA80120082880CF05-268578704",
            "PUB_KEY_ID_0114232134912410000000000000",
            "4bf92f3577b34da6a3ce929d0e0e4736",
            "redemption-rabbitmq-server-0.rabbitmq.svc.cluster.local",
            "[suspended_unauthenticated] associated_pay_score_order_info",
            "UnsupportedSignatureAlgorithmContext",
            "/var/lib/redeemer/private/merchant_key_of_2026.pem",
        ] {
            for line in lines(|| tracing::warn!(text, "text")) {
                assert!(line.contains(text), "{text}: {line}");
            }
        }
        let number = "Order-2026-03-05-MixedCase-000001";
        for line in lines(|| tracing::info!(out_request_no = %number, other = number, "settled")) {
            assert_eq!(line.matches(number).count(), 1, "{line}");
        }
    }

    #[test]
    fn identifiers_are_shortened_whatever_they_are() {
        let short = |text| Short(text).to_string();
        assert_eq!(short("oh-394z-6CGkNoJrsDLTTUKiAnp4"), "oh…Anp4");
        assert_eq!([short(""), short("12345678"), short("中文中文")], ["…", "…", "…"]);
    }
}
