//! Text from outside, from publishers, the payment API, the broker or a party in their place, on its way to the log,
//! terminals, readiness, pages and spans.
//!
//! A text is bounded, every invisible character, and every one that changes how others are shown, is written out as
//! `\u202e` is here, and what may be an openid is shortened. That escape is JSON's own, so that a line of JSON stays the
//! same JSON.

use std::borrow::Cow;
use std::fmt;

use crate::telemetry::masking::Masked;

/// The longest fragment from outside within a text of ours, in characters.
pub const FRAGMENT_CHARS_MAX: usize = 256;
/// The longest value of a field in the log, in characters.
pub const VALUE_CHARS_MAX: usize = 2_048;

/// Whether a character is invisible, or changes how its neighbors are shown: controls, directions, joiners,
/// selectors, fillers, tags, and every white space but the plain and the ideographic one.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{1680}'
            | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A text on one line, with its hidden characters written out.
#[derive(Debug, Clone, Copy)]
pub struct Visible<'a>(pub &'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| write_visible(f, c))
    }
}

/// The same of a text of several lines: line feeds and tabs stay.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| matches!(c, '\n' | '\t') || !is_hidden(c);
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        match is_plain(c) {
            true => visible.push(c),
            // Writing to a text does not fail.
            false => drop(write_visible(&mut visible, c)),
        }
    }
    Cow::Owned(visible)
}

/// A text on one line, visible, of this many characters at most; what is left out is counted.
pub fn visible_within(text: &str, chars_max: usize) -> String {
    match cut(text, chars_max) {
        None => Visible(text).to_string(),
        Some((shown, left_out)) => format!("{}{left_out}", Visible(shown)),
    }
}

/// The first characters of a text that has more than this many, and the words that count what is left out.
pub(super) fn cut(text: &str, chars_max: usize) -> Option<(&str, String)> {
    let (at, _) = text.char_indices().nth(chars_max)?;
    let (shown, left_out) = text.split_at(at);
    Some((shown, format!("… ({} more)", left_out.chars().count())))
}

/// A fragment from outside within a text of ours: visible, without an openid, and of [`FRAGMENT_CHARS_MAX`]
/// characters at most.
#[derive(Debug, Clone, Copy)]
pub struct Untrusted<'a>(pub &'a str);

impl fmt::Display for Untrusted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Shortened first: a cut must not make a short word of a long one.
        f.write_str(&visible_within(&Masked(self.0).to_string(), FRAGMENT_CHARS_MAX))
    }
}

fn write_visible(to: &mut impl fmt::Write, c: char) -> fmt::Result {
    if !is_hidden(c) {
        return to.write_char(c);
    }
    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(to, "\\u{unit:04x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: [char; 12] = [
        '\0',
        '\n',
        '\u{1b}',
        '\u{7f}',
        '\u{9b}',
        '\u{ad}',
        '\u{200b}',
        '\u{200f}',
        '\u{202e}',
        '\u{2066}',
        '\u{feff}',
        '\u{e0041}',
    ];

    #[test]
    fn hidden_characters_are_written_out() {
        for c in HIDDEN {
            let text = format!("a{c}b");
            for shown in [Visible(&text).to_string(), visible_within(&text, 3), Untrusted(&text).to_string()]
            {
                assert!(!shown.chars().any(is_hidden), "{c:?}: {shown:?}");
                assert!(shown.starts_with("a\\u") && shown.ends_with('b'), "{c:?}: {shown:?}");
            }
        }
        assert_eq!(Visible("\u{202e}\u{e0041}").to_string(), "\\u202e\\udb40\\udc41");
        for plain in ["签名 错误\u{3000}", "é ü ñ", "🎫", "a b"] {
            assert_eq!(Visible(plain).to_string(), plain);
        }
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({ "text": String::from_iter(HIDDEN) });
        let line = value.to_string();
        let shown = visible_lines(&line);
        assert!(!shown.chars().any(is_hidden));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert!(matches!(visible_lines("a\n\tb"), Cow::Borrowed(_)));
    }

    #[test]
    fn fragments_are_bounded_and_show_no_openid() {
        let long = "错 ".repeat(100_000);
        assert!(Untrusted(&long).to_string().chars().count() < FRAGMENT_CHARS_MAX + 20);
        let openid = "oh-394z-6CGkNoJrsDLTTUKiAnp4";
        for before in 0..FRAGMENT_CHARS_MAX + 30 {
            let text = format!("{} {openid}", "x ".repeat(before / 2) + &" ".repeat(before % 2));
            let shown = Untrusted(&text).to_string();
            assert!(!shown.contains(&openid[..12]), "{before}: {shown}");
        }
    }
}
