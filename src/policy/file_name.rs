//! Whether a text of the configuration can be a file name, and how it may be shown.
//!
//! A user may put the key itself in place of the name of its file. So a text is only quoted if it looks like a file name
//! and not like a secret. Pure: it does not check whether the file exists.

use std::fmt;
use std::path::Path;

/// The longest file name that is taken for one, in bytes.
const BYTES_MAX: usize = 1_024;
/// The longest part between two slashes, in bytes; Linux allows no longer one.
const PART_BYTES_MAX: usize = 255;
/// From this length on, a part of nothing but letters, digits, `+` and `=` is taken for Base64.
const BASE64_MIN: usize = 40;
/// What a name without a folder must end with: a bare word may be a password.
const ENDINGS: [&str; 16] = [
    "pem", "key", "crt", "cer", "cert", "der", "p12", "pfx", "txt", "uri", "url", "token", "secret", "pub",
    "toml", "conf",
];

/// Why a text is not a file name. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAFileName {
    /// A key or a certificate in PEM.
    Pem,
    /// A URI, perhaps with a password.
    Uri,
    /// A line break or another control character.
    ControlCharacter,
    /// Longer than any name, or a long run of Base64.
    TooLong,
    /// Neither a folder nor a usual ending: a password or a key, most likely.
    Bare,
}

impl NotAFileName {
    /// Each of them, for tables.
    pub const ALL: [Self; 5] = [Self::Pem, Self::Uri, Self::ControlCharacter, Self::TooLong, Self::Bare];

    /// What the text looks like, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pem => "it holds a key or a certificate itself",
            Self::Uri => "it holds a URI",
            Self::ControlCharacter => "it holds a line break or another control character",
            Self::TooLong => "it is longer than a file name",
            Self::Bare => "it has neither a folder nor an ending such as .pem; write ./NAME for a file here",
        }
    }
}

/// Checks that a text can be a file name.
///
/// # Errors
/// [`NotAFileName`] if it cannot, or may be a secret.
pub fn check(text: &str) -> Result<(), NotAFileName> {
    if text.contains("-----") {
        return Err(NotAFileName::Pem);
    }
    if text.contains("://") || text.split_once('@').is_some_and(|(user, _)| user.contains(':')) {
        return Err(NotAFileName::Uri);
    }
    if text.chars().any(char::is_control) {
        return Err(NotAFileName::ControlCharacter);
    }
    if text.len() > BYTES_MAX || text.split('/').any(is_overlong) {
        return Err(NotAFileName::TooLong);
    }
    let has_folder = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    let ends_as_files_do = text.rsplit_once('.').is_some_and(|(name, ending)| {
        !name.is_empty() && ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
    });
    if has_folder || ends_as_files_do { Ok(()) } else { Err(NotAFileName::Bare) }
}

fn is_overlong(part: &str) -> bool {
    let in_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'=');
    // Folders of containers are named by SHA-256 in hex.
    let is_hex = part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    part.len() > PART_BYTES_MAX || part.len() >= BASE64_MIN && !is_hex && part.bytes().all(in_base64)
}

/// A file name as it may be shown: itself if it can be one, else that it is not shown.
#[derive(Clone, Copy)]
pub struct Shown<'a>(pub &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_str().map(|text| (text, check(text))) {
            Some((text, Ok(()))) => f.write_str(text),
            _ => f.write_str("(a value that is not shown, for it does not look like a file name)"),
        }
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A file name of the command line as it may be shown. The user has just typed it, so any ending is accepted.
#[derive(Clone, Copy)]
pub struct Typed<'a>(pub &'a Path);

impl fmt::Display for Typed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_ending = |text: &str| {
            let ending = text.rsplit_once('.').map(|(_, ending)| ending);
            ending.is_some_and(|ending| {
                (1..=8).contains(&ending.len()) && ending.bytes().all(|byte| byte.is_ascii_alphanumeric())
            })
        };
        match self.0.to_str().map(|text| (text, check(text))) {
            Some((text, Err(NotAFileName::Bare))) if has_ending(text) => f.write_str(text),
            _ => fmt::Display::fmt(&Shown(self.0), f),
        }
    }
}

/// A text as one word of a shell: in quotes only if it needs them.
pub fn quote(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_./@%+=:,-".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_of_a_shell_is_quoted_only_if_it_must_be() {
        for plain in ["/etc/redeemer/key.pem", "..data/uri", "/home/李/密钥.pem", "PUB_KEY_ID_01"] {
            assert_eq!(quote(plain), plain);
        }
        for (text, word) in
            [("", "''"), ("/with blank/key", "'/with blank/key'"), ("a'b", r"'a'\''b'"), ("$x", "'$x'")]
        {
            assert_eq!(quote(text), word);
        }
    }

    #[test]
    fn file_name_that_was_typed_is_shown_with_any_ending() {
        for name in ["orders.jsonl", "Cargo.toml", "/tmp/x", "./orders", "a.b.csv"] {
            assert_eq!(Typed(Path::new(name)).to_string(), name);
        }
        for secret in [
            "amqp://u:geheim@h",
            "u:geheim@h.pem",
            "geheim-4711-kennwort",
            "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "-----BEGIN",
        ] {
            assert!(!Typed(Path::new(secret)).to_string().contains(secret), "{secret}");
        }
    }

    #[test]
    fn file_names_are_distinguished_from_secrets() {
        for name in [
            "/etc/redeemer/apiclient_key.pem",
            "/run/secrets/merchant_key",
            "./key",
            "../keys/key",
            "key.pem",
            "apiclient_key.PEM",
            "/etc/redeemer/..data/uri",
            "/var/lib/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef/key.pem",
            "/home/李/密钥.pem",
            "/with blank/key.pem",
        ] {
            assert_eq!(check(name), Ok(()), "{name}");
            assert_eq!(Shown(Path::new(name)).to_string(), name);
        }
        let base64 = "MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQC7".repeat(30);
        for (secret, why) in [
            ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n", NotAFileName::Pem),
            ("-----BEGIN PRIVATE KEY----- MIIE -----END PRIVATE KEY-----", NotAFileName::Pem),
            ("amqps://redeemer:geheim@rabbit:5671/%2f", NotAFileName::Uri),
            ("redeemer:geheim@rabbit.example.com:5672/x.pem", NotAFileName::Uri),
            ("/etc/redeemer/key.pem\n", NotAFileName::ControlCharacter),
            ("\u{1b}[2J/key.pem", NotAFileName::ControlCharacter),
            (&base64, NotAFileName::TooLong),
            (&base64.replace("Bgkq", "/gkq"), NotAFileName::TooLong),
            (&format!("/{}", "x".repeat(256)), NotAFileName::TooLong),
            (&"/x".repeat(1_000), NotAFileName::TooLong),
            ("MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSi.pemAgEAAoIBAQC7", NotAFileName::Bare),
            ("0123456789abcdef0123456789ABCDEF", NotAFileName::Bare),
            ("9d1f-lamp-geheim-4712-0123456789ab", NotAFileName::Bare),
            ("p/w.x", NotAFileName::Bare),
            ("", NotAFileName::Bare),
        ] {
            assert_eq!(check(secret), Err(why), "{secret}");
            let shown = Shown(Path::new(secret));
            assert!(secret.is_empty() || !format!("{shown} {shown:?}").contains(secret));
        }
    }
}
