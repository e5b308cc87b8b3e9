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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_shortened_whatever_they_are() {
        let short = |text| Short(text).to_string();
        assert_eq!(short("oh-394z-6CGkNoJrsDLTTUKiAnp4"), "oh…Anp4");
        assert_eq!([short(""), short("12345678"), short("中文中文")], ["…", "…", "…"]);
    }
}
