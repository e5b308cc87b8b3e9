//! The same signatures by a faster library, for measurements and long loads only: the one place in the sandbox that
//! uses the client's cryptography.
//!
//! A sandbox that signs with `rsa` takes five times the processor of the client that it serves, so on one machine the
//! client's own cost would not be seen. Anyone who judges a client leaves this off: one misreading could pass on both
//! sides.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rsa::PrivateKey;
use rsa::pkcs1v15::VerifyingKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use sha2::Sha256;

/// Signs responses.
pub(super) struct FastSigner(RsaKeyPair);

impl FastSigner {
    /// Reads a PKCS#8 PEM.
    pub(crate) fn from_pem(pem: &str) -> Result<FastSigner, String> {
        let key = PrivateKey::from_pkcs8_pem(pem.trim()).map_err(|error| error.to_string())?;
        let der = key.to_pkcs8_der().map_err(|error| error.to_string())?;
        RsaKeyPair::from_pkcs8(der.as_bytes()).map(FastSigner).map_err(|error| error.to_string())
    }

    /// RSASSA-PKCS1-v1_5 over SHA-256, in base64 on one line.
    pub(crate) fn sign(&self, text: &[u8]) -> Option<String> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).ok()?;
        Some(STANDARD.encode(signature))
    }
}

/// Verifies requests.
pub(super) struct FastVerifier(ParsedPublicKey);

impl FastVerifier {
    /// The same key as `key`.
    pub(crate) fn of(key: &VerifyingKey<Sha256>) -> Result<FastVerifier, String> {
        let der = key.to_public_key_der().map_err(|error| error.to_string())?;
        ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der.as_bytes())
            .map(FastVerifier)
            .map_err(|error| error.to_string())
    }

    /// Whether `signature` is one of `text`. Text that is not base64 is never one.
    pub(crate) fn verifies(&self, text: &[u8], signature: &str) -> bool {
        STANDARD.decode(signature).is_ok_and(|signature| self.0.verify_sig(text, &signature).is_ok())
    }
}
