//! The log, and the things worth both a line and a count.
//!
//! One line per settled command, written when it is settled. Openid and coupon code are shortened; keys,
//! signatures and passwords never get near.

use std::fmt;
use std::io::{self, IsTerminal as _};

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::telemetry::untrusted::{visible_lines, visible_within};

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
            let layer = layer.json().flatten_event(true).with_writer(VisibleJson(io::stderr));
            registry.with(layer).try_init()
        }
    };
    Ok(())
}

/// A field of a line for people. Whatever its value holds, it is one line and bounded.
fn write_field(to: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = visible_within(&format!("{value:?}"), crate::telemetry::untrusted::VALUE_CHARS_MAX);
    match (field.name(), to.has_ansi_escapes()) {
        ("message", _) => to.write_str(&value),
        (name, true) => write!(to, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}"),
        (name, false) => write!(to, "{name}={value}"),
    }
}

/// Writes lines of JSON without hidden characters.
#[derive(Debug, Clone, Copy)]
struct VisibleJson<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for VisibleJson<M> {
    type Writer = VisibleJson<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        VisibleJson(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for VisibleJson<W> {
    /// Takes a line whole, as the layer gives it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(visible_lines(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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
const TOKEN_MIN: usize = 20;
/// Names of a command's fields that are as long as one.
const LONG_NAMES: [&str; 3] =
    ["associated_order_info", "associated_pay_score_order_info", "sequential_coupon_index"];

impl fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let mut rest = self.0;
        while !rest.is_empty() {
            let token = &rest[..rest.find(|c| !in_token(c)).unwrap_or(rest.len())];
            // Codes of errors are capitals; an openid has more than these.
            let is_code = token.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            match token.len() >= TOKEN_MIN && !is_code && !LONG_NAMES.contains(&token) {
                true => write!(f, "{}", Short(token))?,
                false => f.write_str(token)?,
            }
            rest = &rest[token.len()..];
            let between = &rest[..rest.find(in_token).unwrap_or(rest.len())];
            f.write_str(between)?;
            rest = &rest[between.len()..];
        }
        Ok(())
    }
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

    #[test]
    fn log_lines_hide_nothing_and_are_bounded() {
        let hostile = format!("a\n2026-01-01 ERROR forged\u{1b}[2J\u{202e}{}", "x ".repeat(100_000));
        let write = || {
            tracing::warn!(why = %hostile, "{hostile}");
        };
        let (plain, json) = (Written::default(), Written::default());
        let (to_plain, to_json) = (plain.clone(), json.clone());
        let layer = tracing_subscriber::fmt::layer().with_ansi(false);
        let layer =
            layer.fmt_fields(debug_fn(write_field).delimited(" ")).with_writer(move || to_plain.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), write);
        let layer = tracing_subscriber::fmt::layer().json().with_writer(VisibleJson(move || to_json.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), write);
        for written in [&plain, &json] {
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.chars().any(crate::telemetry::untrusted::is_hidden), "{:?}", &line[..200]);
        }
        let text = String::from_utf8(plain.0.lock().unwrap().clone()).unwrap();
        assert!(text.len() < 3 * crate::telemetry::untrusted::VALUE_CHARS_MAX, "{}", text.len());
        let text = json.0.lock().unwrap().clone();
        let line: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(line["fields"]["why"], hostile);
    }

    #[test]
    fn identifiers_are_shortened_whatever_they_are() {
        let short = |text| Short(text).to_string();
        assert_eq!(short("oh-394z-6CGkNoJrsDLTTUKiAnp4"), "oh…Anp4");
        assert_eq!([short(""), short("12345678"), short("中文中文")], ["…", "…", "…"]);
    }
}
