//! Shortens openids, in text of ours and from outside.

use std::borrow::Cow;
use std::fmt;

/// The field that shows a request number, which is whole in the log: a publisher chooses it, and operators search by it.
const WHOLE_FIELD: &str = "out_request_no";

/// The value of a field without an openid. Text from outside is shortened earlier; this is the last line of defense, so
/// words of ours, serials, hashes and paths stay whole.
pub(super) fn masked_value<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    match name {
        WHOLE_FIELD => Cow::Borrowed(value),
        _ => without_openids(value),
    }
}

/// An identifier for logs: its first two and last four characters.
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

/// Bytes from outside for display: each run of at least 20 letters, digits, `_` and `-` is shortened, because it may be
/// an openid. Names of fields stay as they are.
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
            !is_code && !is_serial(token) && !LONG_NAMES.contains(&token)
        })
    }
}

/// A text from outside for operators: long tokens are shortened, except for numbers, hashes, codes, and the tokens that
/// `is_known` names.
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

/// The first characters of a text that is masked later. A long token that crosses the bound is left out.
pub fn beginning(text: &str, chars_max: usize) -> &str {
    let Some((cut, next)) = text.char_indices().nth(chars_max) else { return text };
    let kept = &text[..cut];
    let token = kept.len() - kept.trim_end_matches(in_token).len();
    if in_token(next) && token < TOKEN_MIN { &kept[..cut - token] } else { kept }
}

/// Whether a token names a key: the serial of a certificate, or the id of a public key. Operators compare it.
fn is_serial(token: &str) -> bool {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
    token.len() == 40 && token.bytes().all(is_hex) || token.starts_with("PUB_KEY_ID_")
}

fn in_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Writes a text, with the long tokens that `is_secret` names shortened.
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
    fn possible_openids_are_shortened_everywhere() {
        let masked = |text| Masked(text).to_string();
        assert_eq!(masked("{\"openid\": \"oh-394z-6CGkNoJrsDLTTUKiAnp4\", "), "{\"openid\": \"oh…Anp4\", ");
        assert_eq!(masked("/json/oh-394z-6CGkNoJrsDLTTUKiAnp4"), "/json/oh…Anp4");
        assert_eq!(
            masked("/associated_pay_score_order_info/mchid"),
            "/associated_pay_score_order_info/mchid"
        );
        assert_eq!(masked("中文oh-394z-6CGkNoJrsDLTTUKiAnp4中文 12"), "中文oh…Anp4中文 12");
        assert_eq!(masked("APPID_MCHID_NOT_MATCH"), "APPID_MCHID_NOT_MATCH");
        for serial in ["7E57000000000000000000000000000000000000", "PUB_KEY_ID_0114232134912410000000000000"]
        {
            assert_eq!(masked(serial), serial);
        }
        assert_eq!([masked(""), masked("签"), masked("short-one_2")], ["", "签", "short-one_2"]);
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
    fn identifiers_are_shortened_whatever_they_are() {
        let short = |text| Short(text).to_string();
        assert_eq!(short("oh-394z-6CGkNoJrsDLTTUKiAnp4"), "oh…Anp4");
        assert_eq!([short(""), short("12345678"), short("中文中文")], ["…", "…", "…"]);
    }
}
