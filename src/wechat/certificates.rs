//! Downloads platform certificates: `GET /v3/certificates`, each encrypted with AES-256-GCM under the APIv3 key.
//!
//! The first download cannot be verified by a held key, because it delivers the keys. They are trusted because only the
//! holder of the APIv3 key can encrypt them; the signature of the response must then be by one of the downloaded
//! certificates, or by one that was held before.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::policy::classify::{Authenticity, SignatureFlaw};
use crate::telemetry::untrusted::Untrusted;
use crate::wechat::keys::{KeyFault, PublicKeys, VerificationKey, read_secret};
use crate::wechat::verify::verify;

/// The target of the request.
pub const TARGET: &str = "/v3/certificates";

/// The APIv3 key: 32 bytes that the merchant chose on the platform.
pub struct ApiV3Key(LessSafeKey);

impl std::fmt::Debug for ApiV3Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiV3Key")
    }
}

/// The APIv3 key is not 32 bytes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the APIv3 key must be 32 characters long, as it was set on the merchant platform")]
pub struct NotAnApiV3Key;

/// Why there is no APIv3 key.
#[derive(Debug, thiserror::Error)]
pub enum NoApiV3Key {
    /// Its file cannot be used.
    #[error("{0}")]
    File(#[from] KeyFault),
    /// It is not 32 bytes long.
    #[error("{0}")]
    Length(#[from] NotAnApiV3Key),
}

impl ApiV3Key {
    /// Parses the key; blanks around it are dropped.
    ///
    /// # Errors
    /// [`NotAnApiV3Key`]
    pub fn parse(text: &str) -> Result<Self, NotAnApiV3Key> {
        let key = UnboundKey::new(&AES_256_GCM, text.trim().as_bytes()).map_err(|_| NotAnApiV3Key)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Reads the key from a file that only its owner may read.
    ///
    /// # Errors
    /// [`NoApiV3Key`] if the file cannot be read, is open to others, or holds no such key.
    pub fn read(file: &Path) -> Result<Self, NoApiV3Key> {
        Ok(Self::parse(&read_secret(file)?)?)
    }

    /// Decrypts a text. `ciphertext` is Base64 with the tag at its end.
    pub fn decrypt(&self, nonce: &str, associated: &str, ciphertext: &str) -> Option<Zeroizing<Vec<u8>>> {
        let nonce = Nonce::try_assume_unique_for_key(nonce.as_bytes()).ok()?;
        let mut encrypted = Zeroizing::new(STANDARD.decode(ciphertext).ok()?);
        let decrypted =
            self.0.open_in_place(nonce, Aad::from(associated.as_bytes()), &mut encrypted).ok()?.len();
        encrypted.truncate(decrypted);
        Some(encrypted)
    }
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum NoCertificates {
    /// No complete response.
    #[error("no response: {0}")]
    NoResponse(String),
    /// The provider refused.
    #[error("the payment API responded {status} {} {}", Untrusted(code), Untrusted(message))]
    Refused {
        /// HTTP status.
        status: u16,
        /// `code` of the error body.
        code: String,
        /// `message` of the error body.
        message: String,
        /// Whether it bears a `Request-ID`, as every response of the provider does.
        has_request_id: bool,
    },
    /// The response is invalid.
    #[error("the response is not a list of certificates")]
    Unreadable,
    /// A certificate does not decrypt: most likely the APIv3 key is not the one set on the platform.
    #[error(
        "certificate {} does not decrypt; compare wechat.apiv3_key_file with the key set on the platform",
        Untrusted(.0)
    )]
    Undecryptable(String),
    /// A certificate is invalid.
    #[error("{0}")]
    Key(#[from] KeyFault),
    /// A certificate has another serial than the response names.
    #[error("certificate {} has another serial inside", Untrusted(.0))]
    OtherSerial(String),
    /// The signature of the response cannot be verified.
    #[error("the response signature cannot be verified ({})", .0.map_or("unsigned", SignatureFlaw::as_str))]
    Unverified(Option<SignatureFlaw>),
}

#[derive(Deserialize)]
struct ListText {
    data: Vec<EntryText>,
}

#[derive(Deserialize)]
struct EntryText {
    serial_no: String,
    encrypt_certificate: EncryptedText,
}

#[derive(Deserialize)]
struct EncryptedText {
    nonce: String,
    #[serde(default)]
    associated_data: String,
    ciphertext: String,
}

/// Reads a download. `held` are the keys held before. Certificates outside their validity are left out.
///
/// # Errors
/// [`NoCertificates`]
pub fn read(
    headers: &HeaderMap,
    body: &[u8],
    key: &ApiV3Key,
    held: &PublicKeys,
    now: Timestamp,
) -> Result<PublicKeys, NoCertificates> {
    let list: ListText = serde_json::from_slice(body).map_err(|_| NoCertificates::Unreadable)?;
    let mut downloaded = PublicKeys::default();
    for EntryText { serial_no, encrypt_certificate: encrypted } in list.data {
        let pem = key
            .decrypt(&encrypted.nonce, &encrypted.associated_data, &encrypted.ciphertext)
            .ok_or_else(|| NoCertificates::Undecryptable(serial_no.clone()))?;
        let pem = std::str::from_utf8(&pem).map_err(|_| NoCertificates::Unreadable)?;
        let what = format!("platform certificate {}", Untrusted(&serial_no));
        match VerificationKey::from_certificate_pem(pem, &what, now) {
            Ok((serial, key)) if serial.eq_ignore_ascii_case(&serial_no) => downloaded.insert(serial, key),
            Ok(_) => return Err(NoCertificates::OtherSerial(serial_no)),
            // A certificate is published before it is valid, and after it has expired.
            Err(KeyFault::NotValidNow { .. }) => {}
            Err(fault) => return Err(fault.into()),
        }
    }
    let verified = [&downloaded, held].map(|keys| verify(headers, body, keys, now));
    match verified {
        [Authenticity::Verified, _] | [_, Authenticity::Verified] => Ok(downloaded),
        [Authenticity::Invalid(flaw), _] => Err(NoCertificates::Unverified(Some(flaw))),
        [Authenticity::Unsigned, _] => Err(NoCertificates::Unverified(None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vector_decrypts() {
        let key = ApiV3Key::parse("a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb\n").unwrap();
        let decrypt =
            |nonce, associated, text| key.decrypt(nonce, associated, text).map(|text| text.to_vec());
        let encrypted = "ulwSiIajGClcvcOYvOQ7+l+0PAbzzwI=";
        assert_eq!(decrypt("uluk4a9R25RW", "associatedData", encrypted).unwrap(), b"message");
        assert_eq!(decrypt("uluk4a9R25RW", "other", encrypted), None);
        assert_eq!(decrypt("uluk4a9R25RX", "associatedData", encrypted), None);
        assert_eq!(decrypt("short", "associatedData", encrypted), None);
        assert_eq!(decrypt("uluk4a9R25RW", "associatedData", "ulwSiIajGClcvcOYvOQ7+l+0PAbzzwM="), None);
        assert_eq!(decrypt("uluk4a9R25RW", "associatedData", "AAAA"), None);
        assert_eq!(decrypt("uluk4a9R25RW", "associatedData", "not base64!"), None);
    }

    #[test]
    fn texts_of_a_refused_download_are_visible_and_short() {
        let hostile = format!("\u{1b}[2J\n\u{202e}oh-394z-6CGkNoJrsDLTTUKiAnp4{}", "x ".repeat(100_000));
        let list = serde_json::json!({ "data": [{
            "serial_no": hostile,
            "encrypt_certificate": { "nonce": "n", "ciphertext": "AAAA" },
        }] });
        let key = ApiV3Key::parse("a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb").unwrap();
        let (headers, held, now) = (HeaderMap::new(), PublicKeys::default(), Timestamp::UNIX_EPOCH);
        let encrypted = read(&headers, list.to_string().as_bytes(), &key, &held, now).unwrap_err();
        assert!(matches!(&encrypted, NoCertificates::Undecryptable(serial) if *serial == hostile));
        let refused = NoCertificates::Refused {
            status: 403,
            code: hostile.clone(),
            message: hostile.clone(),
            has_request_id: true,
        };
        for shown in [encrypted, refused, NoCertificates::OtherSerial(hostile)].map(|fault| fault.to_string())
        {
            assert!(!shown.chars().any(crate::telemetry::untrusted::is_hidden), "{shown}");
            assert!(shown.chars().count() < 700 && !shown.contains("oh-394z"), "{shown}");
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        assert!(ApiV3Key::parse("0123456789abcdef").is_err());
        assert!(ApiV3Key::parse("").is_err());
    }
}
