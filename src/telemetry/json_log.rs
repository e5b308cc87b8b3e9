//! The last stage of a log of JSON: bounds the texts of a line, masks openids and writes hidden characters out.

use std::borrow::Cow;
use std::io;

use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::masking::{TOKEN_MIN, masked_value};
use crate::telemetry::untrusted::{VALUE_CHARS_MAX, cut, visible_lines};

/// Writes lines of JSON whose texts are bounded and hold neither hidden characters nor openids.
#[derive(Debug, Clone, Copy)]
pub(super) struct SanitizedJson<M>(pub(super) M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for SanitizedJson<M> {
    type Writer = SanitizedJson<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        SanitizedJson(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for SanitizedJson<W> {
    /// Takes a whole line, as the layer writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(visible_lines(&sanitized_json(&String::from_utf8_lossy(line))).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A line of JSON with the texts of its values bounded and without openids. Only the ends of texts are
/// parsed, because there is a line per command.
fn sanitized_json(line: &str) -> String {
    let mut sanitized = String::with_capacity(line.len().min(8 * VALUE_CHARS_MAX));
    let (mut rest, mut name) = (line, "");
    while let Some((between, text)) = rest.split_once('"') {
        sanitized.push_str(between);
        let (text, after) = text.split_at(end_of_text(text));
        let is_name = after.starts_with("\":");
        match text.len() >= TOKEN_MIN && !is_name {
            true => sanitized.push_str(&sanitized_text(name, text)),
            false => sanitized.extend(["\"", text, "\""]),
        }
        if is_name {
            name = text;
        }
        rest = after.get(1..).unwrap_or_default();
    }
    sanitized.push_str(rest);
    sanitized
}

/// Where the closing quote is, or the end.
fn end_of_text(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    });
    end.unwrap_or(text.len())
}

/// A text of JSON, quotes included, from its spelling without quotes.
fn sanitized_text(name: &str, spelled: &str) -> String {
    let quoted = format!("\"{spelled}\"");
    let text: String = serde_json::from_str(&quoted).unwrap_or_else(|_| spelled.to_owned());
    let masked = masked_value(name, &text);
    match (cut(&masked, VALUE_CHARS_MAX), &masked) {
        (None, Cow::Borrowed(_)) => quoted,
        (None, Cow::Owned(masked)) => json_text(masked),
        (Some((shown, left_out)), _) => json_text(&format!("{shown}{left_out}")),
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitized_json_stays_json_whatever_the_texts_hold() {
        for text in ["", "\"", "\\", "\\\"", "a\":b", "\":", "\\\\\"", "{\"a\":\"b\"}", "签\u{0}"] {
            for long in ["", "0123456789 0123456789"] {
                let value = serde_json::json!({ "a": format!("{text}{long}"), "n": -1.5, "l": [text, null] });
                let value: serde_json::Value = value;
                let line = value.to_string();
                let read: serde_json::Value = serde_json::from_str(&sanitized_json(&line)).unwrap();
                assert_eq!(read, value);
            }
        }
    }
}
