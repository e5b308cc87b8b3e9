//! Text that an operator enters for others to read: a name, a reason, a filter. It ends up in audit events, logs and
//! pages, so it must be what it looks like. A text that is not is rejected: a part that was dropped silently could
//! change what the rest says.

use crate::telemetry::untrusted::is_hidden;

/// The longest text, in characters.
pub const OPERATOR_TEXT_CHARS_MAX: usize = 200;

/// Why an operator's text is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorTextError {
    /// It holds a character that shows nothing of itself, or changes how others are shown.
    #[error("{field} contains the invisible character U+{code:04X}; remove it, and write one line")]
    Hidden {
        /// What was entered, as the operator knows it.
        field: String,
        /// The first such character.
        code: u32,
    },
    /// It is too long.
    #[error("{field} has {chars} characters; at most {OPERATOR_TEXT_CHARS_MAX} are accepted")]
    TooLong {
        /// What was entered, as the operator knows it.
        field: String,
        /// Its length.
        chars: usize,
    },
}

/// The text without the plain spaces around it; may be empty. `field` is what the operator knows it by.
///
/// # Errors
/// [`OperatorTextError`]
pub fn operator_text<'a>(field: &str, text: &'a str) -> Result<&'a str, OperatorTextError> {
    let text = text.trim_matches(' ');
    if let Some(hidden) = text.chars().find(|c| is_hidden(*c)) {
        return Err(OperatorTextError::Hidden { field: field.to_owned(), code: hidden.into() });
    }
    match text.chars().count() {
        chars if chars > OPERATOR_TEXT_CHARS_MAX => {
            Err(OperatorTextError::TooLong { field: field.to_owned(), chars })
        }
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_accepted_only_as_it_looks() {
        let longest = "签".repeat(OPERATOR_TEXT_CHARS_MAX);
        for (text, expected) in [
            ("", ""),
            ("lin", "lin"),
            ("  publisher fixed ", "publisher fixed"),
            ("林 晓\u{3000}", "林 晓\u{3000}"),
            ("O\u{2019}Neill, <b>&\"'", "O\u{2019}Neill, <b>&\"'"),
            (&longest, &longest),
        ] {
            assert_eq!(operator_text("name", text), Ok(expected), "{text:?}");
        }
        for (text, code) in [
            ("a\r\nSet-Cookie: b", 0x0d),
            ("lin\n", 0x0a),
            ("\tlin", 0x09),
            ("a\0b", 0x00),
            ("\u{1b}[31m", 0x1b),
            ("a\u{85}b", 0x85),
            ("lin\u{a0}", 0xa0),
            ("lin\u{200b}", 0x200b),
            ("\u{202e}nil", 0x202e),
            ("\u{2066}lin\u{2069}", 0x2066),
            ("\u{2028}", 0x2028),
            ("\u{3164}", 0x3164),
            ("\u{feff}lin", 0xfeff),
            ("l\u{fe0f}in", 0xfe0f),
            ("lin\u{e0041}", 0xe0041),
        ] {
            let field = "because".to_owned();
            assert_eq!(
                operator_text("because", text),
                Err(OperatorTextError::Hidden { field, code }),
                "{text:?}"
            );
        }
        let (long, field) = (format!("{longest}x"), "name".to_owned());
        assert_eq!(operator_text("name", &long), Err(OperatorTextError::TooLong { field, chars: 201 }));
    }
}
