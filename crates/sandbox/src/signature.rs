//! Signatures: the sandbox's own implementation of the signing rules.
//!
//! It shares no line and no cryptographic library with the client that it judges, so that one misreading cannot pass
//! on both sides. RSA here takes milliseconds: callers run it off the runtime.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1v15::{Signature, SigningKey, VerifyingKey};
use rsa::signature::{SignatureEncoding, Signer, Verifier};
use sha2::Sha256;

/// The only scheme there is; also the value of `Wechatpay-Signature-Type`.
pub(super) const SCHEME: &str = "WECHATPAY2-SHA256-RSA2048";

/// The five items of the `Authorization` header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authorization {
    pub mchid: String,
    pub nonce_str: String,
    pub signature: String,
    pub timestamp: String,
    pub serial_no: String,
}

impl Authorization {
    /// Parses `SCHEME key="value",…`: each of the five items once, in any order, no blanks between them. The error names
    /// the fault in the provider's manner.
    pub(crate) fn parse(header: &str) -> Result<Authorization, &'static str> {
        let items = header
            .strip_prefix(SCHEME)
            .and_then(|rest| rest.strip_prefix(' '))
            .ok_or("Authorization scheme must be WECHATPAY2-SHA256-RSA2048 and one blank")?;
        let [mut mchid, mut nonce_str, mut signature, mut timestamp, mut serial_no] = [const { None }; 5];
        for item in items.split(',') {
            let (name, quoted) = item.split_once('=').ok_or("an Authorization item is not name=\"value\"")?;
            let value = quoted
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'))
                .filter(|value| !value.is_empty() && !value.contains('"'))
                .ok_or("an Authorization item is not quoted, or is empty")?;
            let permit = match name {
                "mchid" => &mut mchid,
                "nonce_str" => &mut nonce_str,
                "signature" => &mut signature,
                "timestamp" => &mut timestamp,
                "serial_no" => &mut serial_no,
                _ => return Err("an Authorization item is unknown, or blanks surround it"),
            };
            if permit.replace(value.to_owned()).is_some() {
                return Err("an Authorization item is given twice");
            }
        }
        match (mchid, nonce_str, signature, timestamp, serial_no) {
            (Some(mchid), Some(nonce_str), Some(signature), Some(timestamp), Some(serial_no)) => {
                Ok(Authorization { mchid, nonce_str, signature, timestamp, serial_no })
            }
            _ => Err("an Authorization item is missing"),
        }
    }
}

/// The text a client signs: five lines, each ended, over the request target exactly as it was received.
pub(super) fn request_text(method: &str, target: &str, timestamp: &str, nonce: &str, body: &[u8]) -> Vec<u8> {
    lines(&[method.as_bytes(), target.as_bytes(), timestamp.as_bytes(), nonce.as_bytes(), body])
}

/// The text the provider signs: three lines, each ended.
pub(super) fn response_text(timestamp: &str, nonce: &str, body: &[u8]) -> Vec<u8> {
    lines(&[timestamp.as_bytes(), nonce.as_bytes(), body])
}

/// RSASSA-PKCS1-v1_5 over SHA-256, in base64 on one line.
pub(super) fn sign(key: &SigningKey<Sha256>, text: &[u8]) -> Result<String, rsa::signature::Error> {
    Ok(STANDARD.encode(key.try_sign(text)?.to_bytes()))
}

/// Whether `signature` is one of `text` by `key`. Text that is not base64 is never one.
pub(super) fn verifies(key: &VerifyingKey<Sha256>, text: &[u8], signature: &str) -> bool {
    STANDARD
        .decode(signature)
        .ok()
        .and_then(|bytes| Signature::try_from(bytes.as_slice()).ok())
        .is_some_and(|signature| key.verify(text, &signature).is_ok())
}

fn lines(lines: &[&[u8]]) -> Vec<u8> {
    let mut text = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsa::PrivateKey;
    use rsa::pkcs8::DecodePrivateKey;
    use rsa::signature::Keypair;
    use std::process::Command;

    const HEADER: &str =
        r#"WECHATPAY2-SHA256-RSA2048 mchid="1",nonce_str="n",signature="s==",timestamp="9",serial_no="AB""#;

    #[test]
    fn the_five_items_come_in_any_order() {
        let parsed = Authorization::parse(HEADER).unwrap();
        assert_eq!(parsed.signature, "s==");
        let other = r#"WECHATPAY2-SHA256-RSA2048 serial_no="AB",timestamp="9",signature="s==",nonce_str="n",mchid="1""#;
        assert_eq!(Authorization::parse(other).unwrap(), parsed);
    }

    #[test]
    fn any_other_authorization_is_refused() {
        for wrong in [
            "",
            "WECHATPAY2-SHA256-RSA2048",
            "WECHATPAY2-SHA256-RSA2048 ",
            &HEADER.replace("WECHATPAY2-SHA256", "WECHATPAY2-SM2"),
            &HEADER.replace("RSA2048 ", "RSA2048  "),
            &HEADER.replace(",", ", "),
            &HEADER.replace("\"n\"", "n"),
            &HEADER.replace("\"n\"", "\"\""),
            &HEADER.replace("nonce_str", "nonce"),
            &HEADER.replace(",timestamp=\"9\"", ""),
            &format!("{HEADER},mchid=\"1\""),
            &format!("{HEADER},"),
        ] {
            assert!(Authorization::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn signatures_are_those_of_openssl() {
        let dir = std::env::temp_dir().join(format!("redeemer-signature-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let run = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).current_dir(&dir).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        run(&[
            "genpkey",
            "-quiet",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
            "key.pem",
        ]);
        let text = request_text("POST", "/v3/a?b=%20", "1554208460", "N", "{\"名\":1}".as_bytes());
        std::fs::write(dir.join("text"), &text).unwrap();
        let theirs = STANDARD.encode(run(&["dgst", "-sha256", "-sign", "key.pem", "text"]));

        let pem = std::fs::read_to_string(dir.join("key.pem")).unwrap();
        let key = SigningKey::<Sha256>::new(PrivateKey::from_pkcs8_pem(&pem).unwrap());
        assert_eq!(sign(&key, &text).unwrap(), theirs);
        assert!(verifies(&key.verifying_key(), &text, &theirs));
        assert!(!verifies(&key.verifying_key(), &text[1..], &theirs));
        assert!(!verifies(&key.verifying_key(), &text, &format!("WECHATPAY/SIGNTEST/{theirs}")));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn each_line_of_the_text_is_ended_even_an_empty_one() {
        assert_eq!(request_text("GET", "/p", "1", "n", b""), b"GET\n/p\n1\nn\n\n");
        assert_eq!(response_text("1", "n", b"{}"), b"1\nn\n{}\n");
    }
}
