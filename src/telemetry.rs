//! What is told: the log, and the things worth both a line and a count.
//!
//! One line per settled command, written where it is settled. Openid and coupon code are shortened; keys,
//! signatures and passwords never get near.

pub mod traces;

use std::fmt;
use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

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

/// Begins to write the log to standard error.
///
/// # Errors
/// [`BadFilter`]
pub fn init(format: Format, filter: &str) -> Result<(), BadFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|error| BadFilter(error.to_string()))?;
    // Colours are for terminals: in a file or a journal they are noise.
    let colours = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let registry = tracing_subscriber::registry().with(filter);
    // A log that is there already (a test's) stays.
    let _ = match format {
        Format::Plain => registry.with(layer.with_target(false)).try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    Ok(())
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
            match token.len() >= TOKEN_MIN && !LONG_NAMES.contains(&token) {
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
        assert_eq!([masked(""), masked("签"), masked("short-one_2")], ["", "签", "short-one_2"]);
    }

    #[test]
    fn identifiers_are_shortened_whatever_they_are() {
        let short = |text| Short(text).to_string();
        assert_eq!(short("oh-394z-6CGkNoJrsDLTTUKiAnp4"), "oh…Anp4");
        assert_eq!([short(""), short("12345678"), short("中文中文")], ["…", "…", "…"]);
    }
}
