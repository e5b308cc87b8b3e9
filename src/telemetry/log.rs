//! The log.
//!
//! One line per settled command, written when it is settled. Openid and coupon code are shortened; keys,
//! signatures and passwords are never logged.

use std::fmt;
use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::telemetry::json_log::SanitizedJson;
use crate::telemetry::masking::masked_value;
use crate::telemetry::untrusted::{VALUE_CHARS_MAX, visible_within};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text.
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
    // A log that is there already (a test's) stays.
    let _ = subscriber(format, filter, colors, io::stderr).try_init();
    Ok(())
}

/// The log, written to `to`.
pub fn subscriber<W>(
    format: Format,
    filter: EnvFilter,
    colors: bool,
    to: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Errors of the log would go to standard error, which is what failed.
    let layer = tracing_subscriber::fmt::layer().with_ansi(colors).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Plain => {
            let fields = debug_fn(write_field).delimited(" ");
            Box::new(registry.with(layer.with_target(false).fmt_fields(fields).with_writer(to)))
        }
        Format::Json => {
            Box::new(registry.with(layer.json().flatten_event(true).with_writer(SanitizedJson(to))))
        }
    }
}

/// A field of a text line: one line, bounded, and without an openid.
fn write_field(to: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = visible_within(&masked_value(field.name(), &format!("{value:?}")), VALUE_CHARS_MAX);
    match (field.name(), to.has_ansi_escapes()) {
        ("message", _) => to.write_str(&value),
        (name, true) => write!(to, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}"),
        (name, false) => write!(to, "{name}={value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
