//! Verifies a response: signed by the provider, with a key that we hold, within five minutes.
//!
//! Order of checks as the platform documents it: serial known, timestamp within five minutes, signature. A signature that
//! cannot be decoded is a failed verification, never another class of error: the provider sends probes whose
//! signatures are not even Base64 (`WECHATPAY/SIGNTEST/…`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use jiff::Timestamp;

use crate::policy::classify::{Authenticity, SignatureFlaw};
use crate::wechat::keys::{PublicKeys, VerificationKey};
use crate::wechat::replay::ReplayKey;

/// How far a response's timestamp may be from our clock, in seconds.
pub const CLOCK_TOLERANCE_SECONDS: i64 = 300;

/// Header with the time of signing, in seconds since 1970.
pub const TIMESTAMP: &str = "wechatpay-timestamp";
/// Header with the nonce of the signature.
pub const NONCE: &str = "wechatpay-nonce";
/// Header with the signature in Base64.
pub const SIGNATURE: &str = "wechatpay-signature";
/// Header with the serial of the signing key; in a request, of the key that the response must be signed with.
pub const SERIAL: &str = "wechatpay-serial";
/// Header with the kind of signature. Absent means RSA.
pub const SIGNATURE_TYPE: &str = "wechatpay-signature-type";

/// Verifies a response with the held keys. `body` is the body exactly as received.
pub fn verify(headers: &HeaderMap, body: &[u8], keys: &PublicKeys, now: Timestamp) -> Authenticity {
    let present = [TIMESTAMP, NONCE, SIGNATURE, SERIAL].map(|name| headers.contains_key(name));
    if present == [false; 4] {
        return Authenticity::Unsigned;
    }
    match check(headers, body, keys, now) {
        Ok(()) => Authenticity::Verified,
        Err(flaw) => Authenticity::Invalid(flaw),
    }
}

fn check(headers: &HeaderMap, body: &[u8], keys: &PublicKeys, now: Timestamp) -> Result<(), SignatureFlaw> {
    let text = |name| one(headers, name).ok_or(SignatureFlaw::Malformed);
    let (timestamp, nonce) = (text(TIMESTAMP)?, text(NONCE)?);
    let (signature, serial) = (text(SIGNATURE)?, text(SERIAL)?);
    if headers.contains_key(SIGNATURE_TYPE) && one(headers, SIGNATURE_TYPE) != Some(super::sign::SCHEME) {
        return Err(SignatureFlaw::Malformed);
    }
    let lasts = |key: &&VerificationKey| key.expires.is_none_or(|until| now <= until);
    let key = keys.get(serial).filter(lasts).ok_or(SignatureFlaw::UnknownSerial)?;
    let signed_at: i64 = timestamp.parse().map_err(|_| SignatureFlaw::Malformed)?;
    if now.as_second().abs_diff(signed_at) >= CLOCK_TOLERANCE_SECONDS.unsigned_abs() {
        return Err(SignatureFlaw::Stale);
    }
    let signature = STANDARD.decode(signature).map_err(|_| SignatureFlaw::Mismatch)?;
    // The header's own text goes into the message: formatting the number again could differ from what was signed.
    let message = [timestamp.as_bytes(), b"\n", nonce.as_bytes(), b"\n", body, b"\n"].concat();
    key.verifies(&message, &signature).then_some(()).ok_or(SignatureFlaw::Mismatch)
}

/// What identifies this response, if it has a signature.
pub fn replay_key(headers: &HeaderMap) -> Option<ReplayKey<'_>> {
    let (nonce, signature) = (one(headers, NONCE)?, one(headers, SIGNATURE)?);
    Some(ReplayKey { signed_at: one(headers, TIMESTAMP)?.parse().ok()?, nonce, signature })
}

/// The text of a header that is given exactly once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
