//! Signs a request: the canonical text, the signature, the `Authorization` header.
//!
//! Five lines, each ended by a line feed, also the last: method, target exactly as sent, timestamp, nonce, body
//! exactly as sent. RSASSA-PKCS1-v1_5 with SHA-256 by the service provider's key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use jiff::Timestamp;

use crate::wechat::keys::MerchantKey;

/// The authentication scheme of partner mode.
pub const SCHEME: &str = "WECHATPAY2-SHA256-RSA2048";

/// The caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merchant {
    /// The service provider's merchant number.
    pub mchid: String,
    /// The serial of the merchant API certificate that belongs to the signing key.
    pub serial: String,
}

/// A request's signature. It is made for one request at one time and consumed by sending it.
#[derive(Debug)]
pub struct Signed {
    authorization: HeaderValue,
}

impl Signed {
    /// The value of the `Authorization` header.
    pub fn into_header(self) -> HeaderValue {
        self.authorization
    }
}

/// Why a request could not be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotSign {
    /// The library failed; the key was checked when it was read, so this is not expected.
    #[error("the merchant key could not make a signature")]
    Key,
    /// The merchant number or the serial is invalid in a header.
    #[error("the merchant number or serial has characters that no header may carry")]
    Header,
}

/// The text that is signed.
pub fn canonical(method: &str, target: &str, timestamp: i64, nonce: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{method}\n{target}\n{timestamp}\n{nonce}\n");
    [head.as_bytes(), body, b"\n"].concat()
}

/// Signs one request. `nonce` is random.
///
/// # Errors
/// [`CannotSign`]
pub fn sign(
    key: &MerchantKey,
    merchant: &Merchant,
    method: &str,
    target: &str,
    body: &[u8],
    now: Timestamp,
    nonce: u128,
) -> Result<Signed, CannotSign> {
    let timestamp = now.as_second();
    let nonce = format!("{nonce:032X}");
    let signature = key.sign(&canonical(method, target, timestamp, &nonce, body)).ok_or(CannotSign::Key)?;
    let signature = STANDARD.encode(signature);
    let Merchant { mchid, serial } = merchant;
    let value = format!(
        "{SCHEME} mchid=\"{mchid}\",nonce_str=\"{nonce}\",signature=\"{signature}\",\
         timestamp=\"{timestamp}\",serial_no=\"{serial}\""
    );
    let mut authorization = HeaderValue::try_from(value).map_err(|_| CannotSign::Header)?;
    authorization.set_sensitive(true);
    Ok(Signed { authorization })
}
