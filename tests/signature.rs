//! Signing and verification, against the vendor's published vector and against the openssl program: neither
//! shares a line of code with this one.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use redeemer::domain::evidence::Operation;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::classify::{
    Authenticity, CallResult, NoResponse, NotSent, Response, SignatureFlaw, UnknownCause, Verdict, classify,
};
use redeemer::wechat::client::{CannotStart, Client, PaymentSettings, Prepared};
use redeemer::wechat::keys::{
    KeyFault, KeyFiles, Keyring, KeyringFault, MerchantKey, PublicKeys, VerificationKey,
};
use redeemer::wechat::sign::{Merchant, canonical, sign};
use redeemer::wechat::verify::{NONCE, SERIAL, SIGNATURE, SIGNATURE_TYPE, TIMESTAMP, verify};
use redeemer::wire::command;

/// The test key of the provider's page on signing (pay.weixin.qq.com/doc/v3/partner/4012365862), which prints it
/// in full together with the signature that it makes. It opens nothing.
const DOCUMENTATION_KEY: &str = include_str!("fixtures/documentation_test_key.pem");
const DOCUMENTATION_SIGNATURE: &str = "Lc9VXxmeonkdV8Xk9tmigQFLhl0vRWTerdmoRu01aAnYwIrD/5nsSwE1WlmZGLRlAFTNQ3QsMa0+\
    VRDlJp1Wp5p0nO8EK68b5sJBbjouxaFciIfq1zfDWWz+jqhcMoKXI1A6dPm1AW7D4d30WsMTNzp6g23OXakIsh9LO3lUmwvTuE0BY8ncf6tN\
    Gk4wKmvXwERd/ZpoQY3MAVKz+Nakwc+2XBmzT66KcUehU5kr4IvGa/lEU5RZb/q00zP9VLdBhC/jQSX3X1UcJLCtEc4gTmib4tnmAT+bHF/e\
    17ZAuxDNcx6rqT8gNEXqaJGG+1OflMSTU2tpyG65G4dMKdFcoA==";

const KEY_ID: &str = "PUB_KEY_ID_0000000000000024101100397200000006";
const NOW: i64 = 1_772_685_045;
const BODY: &[u8] = "{\"coupon_state\":\"USED\",\"名\":\"券\"}\n".as_bytes();

/// A directory of keys made by openssl; gone when dropped.
struct Keys(PathBuf);

impl Keys {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("redeemer-signature-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs openssl in the directory; gives what it printed.
    fn openssl(&self, arguments: &str) -> Vec<u8> {
        let ran = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .output()
            .expect("the openssl program is needed for this test");
        assert!(ran.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
        ran.stdout
    }

    /// `key.pem` (PKCS#8) and `public.pem`.
    fn pair(&self) {
        self.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem");
        self.openssl("pkey -in key.pem -pubout -out public.pem");
    }

    /// `certificate.pem` of `key.pem` with this serial.
    fn certificate(&self, serial: &str) {
        self.openssl(&format!(
            "req -x509 -new -key key.pem -sha256 -days 30 -subj /CN=platform -set_serial {serial} -out certificate.pem"
        ));
    }

    /// `key.pem` of the merchant, and `public.pem` and `certificate.pem` of somebody else.
    fn of_two(&self) {
        self.pair();
        self.certificate("0x1234");
        self.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem");
        fs::set_permissions(self.path("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        fs::write(self.path("message"), message).unwrap();
        self.openssl("dgst -sha256 -sign key.pem message")
    }

    fn verification_key(&self) -> VerificationKey {
        VerificationKey::from_public_pem(&self.text("public.pem"), "public.pem").unwrap()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn today() -> Timestamp {
    Timestamp::now()
}

fn kinds(faults: &[KeyringFault]) -> Vec<&'static str> {
    faults.iter().map(|fault| kind(&fault.fault)).collect()
}

fn kind(fault: &KeyFault) -> &'static str {
    match fault {
        KeyFault::Unreadable { .. } => "unreadable",
        KeyFault::Exposed { .. } => "exposed",
        KeyFault::NotAKey { .. } => "not a key",
        KeyFault::NotText { .. } => "not text",
        KeyFault::TooLarge { .. } => "too large",
        KeyFault::OwnKey { .. } => "our own",
        KeyFault::TooShort { .. } => "too short",
        KeyFault::Disagreement { .. } => "disagreement",
        KeyFault::NotValidNow { .. } => "not valid now",
        KeyFault::NoVerificationKey => "no verification key",
        KeyFault::NoMerchantKey => "no merchant key",
        KeyFault::NotAPair { .. } => "not a pair",
    }
}

// ---- signing

#[test]
fn the_published_vector_is_signed_as_published() {
    let key = MerchantKey::from_pem(DOCUMENTATION_KEY, "the documentation").unwrap();
    let merchant = Merchant {
        mchid: "1900007291".to_owned(),
        serial: "408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB".to_owned(),
    };
    let signed = sign(
        &key,
        &merchant,
        "GET",
        "/v3/refund/domestic/refunds/123123123123",
        b"",
        Timestamp::from_second(1_554_208_460).unwrap(),
        0x593B_EC0C_930B_F1AF_EB40_B4A0_8C8F_B242,
    )
    .unwrap();
    let header = signed.into_header();
    assert!(header.is_sensitive(), "the header must not be logged");
    assert_eq!(
        header.to_str().unwrap(),
        format!(
            "WECHATPAY2-SHA256-RSA2048 mchid=\"1900007291\",nonce_str=\"593BEC0C930BF1AFEB40B4A08C8FB242\",\
             signature=\"{DOCUMENTATION_SIGNATURE}\",timestamp=\"1554208460\",\
             serial_no=\"408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB\""
        )
    );
}

#[test]
fn the_canonical_text_has_five_lines_and_the_body_as_it_is() {
    let check = |method, target, body: &str, text: &str| {
        let canonical = canonical(method, target, 1_554_208_460, "593B", body.as_bytes());
        assert_eq!(String::from_utf8(canonical).unwrap(), text);
    };
    check("GET", "/v3/certificates", "", "GET\n/v3/certificates\n1554208460\n593B\n\n");
    check("POST", "/v3/a?b=c%20d", "{\n}\n", "POST\n/v3/a?b=c%20d\n1554208460\n593B\n{\n}\n\n");
}

#[test]
fn a_signature_is_the_one_that_openssl_makes() {
    let keys = Keys::new();
    keys.pair();
    let key = MerchantKey::from_pem(&keys.text("key.pem"), "key.pem").unwrap();
    for body in ["", "{}", "{\"名\":\"券\"}", &"x".repeat(100_000)] {
        let text = canonical("POST", "/v3/x", NOW, "N", body.as_bytes());
        let signature = key.sign(&text).unwrap();
        assert_eq!(signature, keys.sign(&text));
        fs::write(keys.path("signature"), &signature).unwrap();
        keys.openssl("dgst -sha256 -verify public.pem -signature signature message");
    }
}

#[test]
fn a_short_nonce_is_filled_up_and_no_two_nonces_are_alike() {
    let key = MerchantKey::from_pem(DOCUMENTATION_KEY, "the documentation").unwrap();
    let merchant = Merchant { mchid: "1".to_owned(), serial: "2".to_owned() };
    let header = |nonce| sign(&key, &merchant, "GET", "/", b"", now(), nonce).unwrap().into_header();
    assert!(header(1).to_str().unwrap().contains("nonce_str=\"00000000000000000000000000000001\""));
    assert_ne!(header(1), header(2));
    let broken = Merchant { mchid: "1\n".to_owned(), serial: "2".to_owned() };
    assert!(sign(&key, &broken, "GET", "/", b"", now(), 1).is_err());
}

// ---- verification

/// An answer signed by openssl, its headers open to change.
struct Signed {
    keys: Keys,
    ring: PublicKeys,
    headers: HeaderMap,
}

impl Signed {
    fn new() -> Self {
        Self::at(&NOW.to_string())
    }

    fn at(timestamp: &str) -> Self {
        let keys = Keys::new();
        keys.pair();
        let mut ring = PublicKeys::default();
        ring.insert(KEY_ID.to_owned(), keys.verification_key());
        let mut signed = Self { keys, ring, headers: HeaderMap::new() };
        signed.sign(timestamp);
        signed
    }

    fn sign(&mut self, timestamp: &str) {
        let message = [timestamp.as_bytes(), b"\n", b"NONCE", b"\n", BODY, b"\n"].concat();
        let signature = STANDARD.encode(self.keys.sign(&message));
        for (name, value) in
            [(TIMESTAMP, timestamp), (NONCE, "NONCE"), (SIGNATURE, signature.as_str()), (SERIAL, KEY_ID)]
        {
            self.set(name, value);
        }
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }

    fn heard(&self, body: &[u8]) -> Authenticity {
        verify(&self.headers, body, &self.ring, now())
    }

    /// What is made of the answer when a header has another value.
    fn with(&self, name: &'static str, value: &[u8]) -> Authenticity {
        let mut headers = self.headers.clone();
        headers.insert(name, HeaderValue::from_bytes(value).unwrap());
        verify(&headers, BODY, &self.ring, now())
    }

    fn without(&self, names: &[&'static str]) -> Authenticity {
        let mut headers = self.headers.clone();
        for name in names {
            assert!(headers.remove(*name).is_some());
        }
        verify(&headers, BODY, &self.ring, now())
    }

    fn twice(&self, name: &'static str) -> Authenticity {
        let mut headers = self.headers.clone();
        headers.append(HeaderName::from_static(name), headers[name].clone());
        verify(&headers, BODY, &self.ring, now())
    }
}

const MALFORMED: Authenticity = Authenticity::Invalid(SignatureFlaw::Malformed);
const UNKNOWN: Authenticity = Authenticity::Invalid(SignatureFlaw::UnknownSerial);
const STALE: Authenticity = Authenticity::Invalid(SignatureFlaw::Stale);
const MISMATCH: Authenticity = Authenticity::Invalid(SignatureFlaw::Mismatch);

#[test]
fn genuine_answer_is_verified_and_a_changed_one_is_not() {
    let mut signed = Signed::new();
    assert_eq!(signed.heard(BODY), Authenticity::Verified);
    assert_eq!(signed.heard(&BODY[..BODY.len() - 1]), MISMATCH, "a line feed is part of the body");
    assert_eq!(signed.heard(b""), MISMATCH);
    assert_eq!(signed.with(NONCE, b"NONCE2"), MISMATCH);
    assert_eq!(signed.with(NONCE, b""), MISMATCH);
    assert_eq!(signed.with(TIMESTAMP, (NOW + 1).to_string().as_bytes()), MISMATCH);
    signed.set(SIGNATURE_TYPE, "WECHATPAY2-SHA256-RSA2048");
    assert_eq!(signed.heard(BODY), Authenticity::Verified);
    signed.set(SIGNATURE_TYPE, "WECHATPAY2-SM2-WITH-SM3");
    assert_eq!(signed.heard(BODY), MALFORMED);
}

#[test]
fn answer_more_than_five_minutes_off_is_not_verified() {
    let check = |offset: i64, wanted: Authenticity| {
        let signed = Signed::at(&(NOW + offset).to_string());
        assert_eq!(signed.heard(BODY), wanted, "{offset} s");
    };
    check(-299, Authenticity::Verified);
    check(299, Authenticity::Verified);
    check(-300, STALE);
    check(300, STALE);
}

#[test]
fn the_timestamp_is_read_as_it_stands_in_the_header() {
    // Signed with a leading zero, the text and not the number is what was signed.
    assert_eq!(Signed::at(&format!("0{NOW}")).heard(BODY), Authenticity::Verified);
    let signed = Signed::new();
    for text in ["", "now", "17726850450000000000000", "1772685045.0", " "] {
        assert_eq!(signed.with(TIMESTAMP, text.as_bytes()), MALFORMED, "{text:?}");
    }
    assert_eq!(signed.with(TIMESTAMP, i64::MIN.to_string().as_bytes()), STALE);
    assert_eq!(signed.with(TIMESTAMP, b"0"), STALE);
}

#[test]
fn only_a_serial_that_is_held_is_believed() {
    let mut signed = Signed::new();
    assert_eq!(signed.with(SERIAL, b"PUB_KEY_ID_0"), UNKNOWN);
    assert_eq!(signed.with(SERIAL, b""), UNKNOWN);
    let strangers = Keys::new();
    strangers.pair();
    signed.ring.insert("OTHER".to_owned(), strangers.verification_key());
    assert_eq!(signed.with(SERIAL, b"OTHER"), MISMATCH, "a key that is held, but did not sign this");
    assert_eq!(signed.heard(BODY), Authenticity::Verified);
}

#[test]
fn probe_and_invalid_base64_are_mismatched_signatures() {
    let signed = Signed::new();
    let genuine = signed.headers[SIGNATURE].to_str().unwrap().to_owned();
    let check =
        |signature: &str| assert_eq!(signed.with(SIGNATURE, signature.as_bytes()), MISMATCH, "{signature}");
    check(&format!("WECHATPAY/SIGNTEST/{genuine}"));
    check("WECHATPAY/SIGNTEST/");
    check("***");
    check("");
    check("AAAA");
    check(&genuine[..genuine.len() - 4]);
    check(&genuine.replace('=', ""));
    check(&genuine.replace(['+', '/'], "_"));
    check(&STANDARD.encode([0; 256]));
    check(&STANDARD.encode([0xff; 257]));
}

#[test]
fn a_signature_must_be_whole_and_single() {
    let mut signed = Signed::new();
    for name in [TIMESTAMP, NONCE, SIGNATURE, SERIAL] {
        assert_eq!(signed.without(&[name]), MALFORMED, "without {name}");
        assert_eq!(signed.twice(name), MALFORMED, "twice {name}");
        assert_eq!(signed.with(name, b"\xe5\x88\xb8"), MALFORMED, "{name} beyond ASCII");
    }
    assert_eq!(signed.without(&[TIMESTAMP, NONCE, SIGNATURE, SERIAL]), Authenticity::Unsigned);
    assert_eq!(signed.without(&[TIMESTAMP, NONCE, SIGNATURE]), MALFORMED);
    signed.set(SIGNATURE_TYPE, "WECHATPAY2-SHA256-RSA2048");
    assert_eq!(signed.twice(SIGNATURE_TYPE), MALFORMED);
}

#[test]
fn nothing_is_believed_without_keys() {
    let mut signed = Signed::new();
    signed.ring = PublicKeys::default();
    assert!(signed.ring.is_empty());
    assert_eq!(signed.heard(BODY), UNKNOWN);
}

// ---- keys

#[test]
fn both_pem_forms_of_a_merchant_key_are_read() {
    let keys = Keys::new();
    keys.pair();
    keys.openssl("rsa -in key.pem -traditional -out pkcs1.pem");
    assert!(keys.text("pkcs1.pem").contains("BEGIN RSA PRIVATE KEY"));
    keys.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out long.pem");
    keys.openssl("pkey -in key.pem -pubout -outform DER -out public.der");
    let read = |name: &str| MerchantKey::from_pem(&keys.text(name), name).unwrap();
    let text = b"one text";
    assert_eq!(read("key.pem").sign(text), read("pkcs1.pem").sign(text));
    assert_eq!(read("key.pem").public_der(), fs::read(keys.path("public.der")).unwrap());
    assert_eq!((read("key.pem").bits(), read("long.pem").bits()), (2048, 3072));
    let padded = format!("\r\n{}\r\n\n", keys.text("key.pem").replace('\n', "\r\n"));
    assert_eq!(MerchantKey::from_pem(&padded, "padded").unwrap().sign(text), read("key.pem").sign(text));
}

#[test]
fn what_is_no_merchant_key_is_refused_with_the_reason() {
    let keys = Keys::new();
    keys.pair();
    keys.certificate("0x1234");
    keys.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out short.pem");
    keys.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem");
    keys.openssl("pkcs8 -topk8 -in key.pem -passout pass:secret -out encrypted.pem");
    let check = |text: &str, wanted: &str| {
        let fault = MerchantKey::from_pem(text, "the key").unwrap_err();
        assert_eq!(kind(&fault), wanted, "{fault}");
        assert!(fault.to_string().contains("the key"));
    };
    check(&keys.text("short.pem"), "too short");
    check(&keys.text("ec.pem"), "not a key");
    check(&keys.text("certificate.pem"), "not a key");
    check(&keys.text("public.pem"), "not a key");
    check(&keys.text("encrypted.pem"), "not a key");
    check("", "not a key");
    check("secret", "not a key");
    check(&DOCUMENTATION_KEY[..DOCUMENTATION_KEY.len() / 2], "not a key");
}

#[test]
fn what_is_no_verification_key_is_refused_with_the_reason() {
    let keys = Keys::new();
    keys.pair();
    keys.certificate("0x1234");
    keys.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out short.pem");
    keys.openssl("pkey -in short.pem -pubout -out short_public.pem");
    keys.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem");
    keys.openssl("pkey -in ec.pem -pubout -out ec_public.pem");
    keys.openssl("req -x509 -new -key ec.pem -sha256 -days 30 -subj /CN=platform -out ec_certificate.pem");
    let public = |name: &str| kind(&VerificationKey::from_public_pem(&keys.text(name), name).unwrap_err());
    assert_eq!(public("short_public.pem"), "too short");
    assert_eq!(public("ec_public.pem"), "not a key");
    assert_eq!(public("certificate.pem"), "not a key");
    assert_eq!(public("key.pem"), "not a key");
    let certificate = |name: &str| {
        kind(&VerificationKey::from_certificate_pem(&keys.text(name), name, today()).unwrap_err())
    };
    assert_eq!(certificate("public.pem"), "not a key");
    assert_eq!(certificate("ec_certificate.pem"), "not a key");
    assert_eq!(certificate("key.pem"), "not a key");
}

#[test]
fn the_serial_of_a_certificate_is_the_one_that_openssl_reads() {
    let keys = Keys::new();
    keys.pair();
    // The highest bit set makes a leading zero byte in DER, which is no part of the number.
    for serial in ["0x1234", "0xF00D", "0x408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB", "0x0A", "0x00FF00"] {
        keys.certificate(serial);
        let printed = String::from_utf8(keys.openssl("x509 -in certificate.pem -noout -serial")).unwrap();
        let (_, theirs) = printed.trim().split_once('=').unwrap();
        let (ours, key) =
            VerificationKey::from_certificate_pem(&keys.text("certificate.pem"), "it", today()).unwrap();
        assert_eq!(ours, theirs, "{serial}");
        assert!(key.expires.is_some());
        assert!(key.verifies(b"text", &keys.sign(b"text")));
        assert!(!key.verifies(b"texts", &keys.sign(b"text")));
    }
}

#[test]
fn a_certificate_outside_its_validity_is_refused() {
    let keys = Keys::new();
    keys.pair();
    keys.certificate("0x1234");
    let check = |days: i64, wanted: Option<&str>| {
        let at = today().saturating_add(jiff::SignedDuration::from_hours(24 * days)).unwrap();
        let read = VerificationKey::from_certificate_pem(&keys.text("certificate.pem"), "it", at);
        assert_eq!(read.err().as_ref().map(kind), wanted, "after {days} days");
    };
    check(-1, Some("not valid now"));
    check(1, None);
    check(31, Some("not valid now"));
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let keys = Keys::new();
    keys.of_two();
    let load = |mode: u32, merchant: &Path| {
        let _ = fs::set_permissions(merchant, fs::Permissions::from_mode(mode));
        Keyring::load(
            &KeyFiles {
                merchant_key: Some(merchant.to_owned()),
                public_keys: [(KEY_ID.to_owned(), keys.path("public.pem"))].into(),
                platform_certificates: vec![],
                merchant_certificate: None,
                downloads: false,
            },
            None,
            now(),
        )
    };
    let key = keys.path("key.pem");
    for mode in [0o600, 0o400] {
        assert!(load(mode, &key).is_ok(), "{mode:o}");
    }
    // Whom root lends a file to by 0640 is tested where the rule is.
    for mode in [0o644, 0o604, 0o620, 0o601] {
        let faults = load(mode, &key).unwrap_err();
        assert_eq!(kinds(&faults), ["exposed"], "{mode:o}");
        assert!(faults[0].to_string().contains("run: ch"));
    }
    assert_eq!(kinds(&load(0o600, &keys.path("missing.pem")).unwrap_err()), ["unreadable"]);
}

#[test]
fn every_fault_of_the_keys_is_reported_at_once() {
    let keys = Keys::new();
    keys.of_two();
    let load = |files: KeyFiles| {
        let loaded = Keyring::load(&files, None, today());
        loaded
            .map(|keys| keys.public.iter().map(|(serial, _)| serial.to_owned()).collect::<Vec<_>>())
            .map_err(|faults| kinds(&faults))
    };
    let files = |key: &str, public: &[(&str, &str)], certificates: &[&str]| KeyFiles {
        merchant_key: Some(keys.path(key)),
        public_keys: public.iter().map(|(serial, name)| ((*serial).to_owned(), keys.path(name))).collect(),
        platform_certificates: certificates.iter().map(|name| keys.path(name)).collect(),
        merchant_certificate: None,
        downloads: false,
    };
    let both = files("key.pem", &[(KEY_ID, "public.pem")], &["certificate.pem"]);
    assert_eq!(load(both), Ok(vec!["1234".to_owned(), KEY_ID.to_owned()]));
    assert_eq!(load(files("key.pem", &[], &[])), Err(vec!["no verification key"]));
    let wrong = files("gone.pem", &[(KEY_ID, "certificate.pem")], &["public.pem", "gone.pem"]);
    assert_eq!(load(wrong), Err(vec!["not a key", "not a key", "unreadable", "unreadable"]));
}

#[test]
fn nothing_secret_is_shown() {
    let key = MerchantKey::from_pem(DOCUMENTATION_KEY, "the documentation").unwrap();
    let shown = format!("{key:?} {key:#?}");
    assert_eq!(format!("{key:?}"), "MerchantKey { bits: 2048, .. }");
    assert!(!shown.contains("MII") && !shown.contains('['), "{shown}");
    let merchant = Merchant { mchid: "1".to_owned(), serial: "2".to_owned() };
    let signed = sign(&key, &merchant, "GET", "/", b"", now(), 1).unwrap();
    assert!(!format!("{signed:?}").contains("signature="), "{signed:?}");
    // What a fault says of a text that was to be a key is never the text.
    let fault = MerchantKey::from_pem("hunter2", "wechat.merchant_key").unwrap_err();
    assert!(!format!("{fault:?} {fault}").contains("hunter2"));
}

// ---- where the operations go

fn client(base_url: &str, backup: Option<&str>) -> Result<Client, CannotStart> {
    client_with(PublicKeys::default(), base_url, backup)
}

fn client_with(public: PublicKeys, base_url: &str, backup: Option<&str>) -> Result<Client, CannotStart> {
    let merchant = MerchantKey::from_pem(DOCUMENTATION_KEY, "the documentation").unwrap();
    let keys = Arc::new(RwLock::new(Arc::new(Keyring {
        merchant,
        merchant_serial: None,
        merchant_expires: None,
        left_out: vec![],
        public,
    })));
    let settings = PaymentSettings {
        merchant: Merchant { mchid: "1".to_owned(), serial: "2".to_owned() },
        verification_serial: Some(KEY_ID.to_owned()),
        base_url: base_url.to_owned(),
        backup_base_url: backup.map(str::to_owned),
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        total_timeout: Duration::from_secs(1),
        response_bytes_max: 2048,
    };
    Client::new(settings, keys)
}

#[test]
fn a_base_url_is_a_host_and_nothing_else() {
    for url in [
        "https://api.mch.weixin.qq.com",
        "https://api.mch.weixin.qq.com/",
        "https://api.mch.weixin.qq.com:8443",
        "http://127.0.0.1:8080",
        "http://[::1]:8080/",
        "http://localhost:8080",
    ] {
        assert!(client(url, None).is_ok(), "{url}");
        assert!(client("https://api.mch.weixin.qq.com", Some(url)).is_ok(), "{url}");
    }
    let refused = |url: &str| match client(url, None).err() {
        Some(CannotStart::BaseUrl { key: "wechat.base_url", .. }) => "not a base url",
        Some(CannotStart::Unencrypted { key: "wechat.base_url", .. }) => "not encrypted",
        other => panic!("{url}: {other:?}"),
    };
    for url in [
        "",
        "api.mch.weixin.qq.com",
        "ftp://api.mch.weixin.qq.com",
        "file:///etc/passwd",
        "https://",
        "https://api.mch.weixin.qq.com/v3",
        "https://api.mch.weixin.qq.com//",
        "https://api.mch.weixin.qq.com/?a=b",
        "https://api.mch.weixin.qq.com/#a",
        "https://user@api.mch.weixin.qq.com",
        "https://user:secret@api.mch.weixin.qq.com",
        "https://:secret@api.mch.weixin.qq.com",
        "https://api.mch.weixin.qq.com\\",
        " https://api.mch.weixin.qq.com",
        "http://user@127.0.0.1",
    ] {
        assert_eq!(refused(url), "not a base url", "{url}");
    }
    for url in [
        "http://api.mch.weixin.qq.com",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://[::]",
    ] {
        assert_eq!(refused(url), "not encrypted", "{url}");
    }
    let backup = client("https://api.mch.weixin.qq.com", Some("http://api2.mch.weixin.qq.com")).err();
    assert!(matches!(backup, Some(CannotStart::Unencrypted { key: "wechat.backup_base_url", .. })));
}

// ---- on the wire

/// Answers one request with these bytes; gives what was asked.
fn answer_once(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let (url, asked) = answer_each(vec![answer.to_owned()]);
    (url, std::thread::spawn(move || asked.join().unwrap().remove(0)))
}

/// Answers as many requests with these bytes, each on a connection of its own; gives what was asked.
fn answer_each(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |answer: &String| {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut asked = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).unwrap();
            asked.extend_from_slice(&piece[..read]);
            let text = String::from_utf8(asked.clone()).unwrap();
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && body.len() == header(head, "content-length").map_or(0, |length| length.parse().unwrap())
            {
                stream.write_all(answer.as_bytes()).unwrap();
                return text;
            }
            assert_ne!(read, 0, "the request ended too early: {text}");
        }
    };
    (url, std::thread::spawn(move || answers.iter().map(answer).collect()))
}

/// A whole answer, signed by these keys at a time.
fn signed_answer(
    keys: &Keys,
    status: u16,
    request_id: &str,
    nonce: &str,
    signed_at: i64,
    body: &str,
) -> String {
    let message = format!("{signed_at}\n{nonce}\n{body}\n");
    let signature = STANDARD.encode(keys.sign(message.as_bytes()));
    format!(
        "HTTP/1.1 {status} Whatever\r\nconnection: close\r\ncontent-length: {}\r\nrequest-id: {request_id}\r\n\
         {TIMESTAMP}: {signed_at}\r\n{NONCE}: {nonce}\r\n{SERIAL}: {KEY_ID}\r\n{SIGNATURE}: {signature}\r\n\r\n{body}",
        body.len()
    )
}

/// What is made of these answers, one after the other, by one client.
async fn heard_by_one_client(keys: &Keys, operation: Operation, answers: Vec<String>) -> Vec<Response> {
    let mut ring = PublicKeys::default();
    ring.insert(KEY_ID.to_owned(), keys.verification_key());
    let count = answers.len();
    let (url, asked) = answer_each(answers);
    let client = client_with(ring, &url, None).unwrap();
    let mut heard = Vec::new();
    for _ in 0..count {
        let reply = client.send(operation, &prepared(), None, now(), 7, 0.5).await.result;
        let CallResult::Response(answer) = reply else { panic!("{reply:?}") };
        heard.push(answer);
    }
    asked.join().unwrap();
    heard
}

const USED: &str = r#"{"coupon_code":"C0001","coupon_state":"USED",
    "single_usage_detail":{"use_request_no":"USE_0001"},"brand_id":"120344"}"#;
const REPLAYED: Authenticity = Authenticity::Invalid(SignatureFlaw::Replayed);

#[tokio::test]
async fn answer_given_twice_is_accepted_once() {
    let keys = Keys::new();
    keys.pair();
    for operation in [Operation::Redeem, Operation::Query] {
        let answer = |nonce| signed_answer(&keys, 200, "08-0", nonce, NOW, USED);
        let script = vec![answer("A"), answer("A"), answer("B"), answer("A"), answer("B")];
        let heard = heard_by_one_client(&keys, operation, script).await;
        let believed: Vec<_> = heard.iter().map(|answer| answer.authenticity).collect();
        let verified = Authenticity::Verified;
        assert_eq!(believed, [verified, REPLAYED, verified, REPLAYED, REPLAYED], "{operation:?}");
        for answer in heard.into_iter().filter(|answer| answer.authenticity != verified) {
            assert_eq!(answer.coupon, None);
        }
    }
}

#[tokio::test]
async fn answer_signed_before_its_operation_is_not_accepted() {
    let keys = Keys::new();
    keys.pair();
    // Whatever the provider's clock says: it is its own answers that are compared.
    for skew in [-200, -30, 0, 30, 200] {
        let answer = |nonce, age: i64| signed_answer(&keys, 200, "08-0", nonce, NOW + skew - age, USED);
        let script = vec![answer("A", 0), answer("B", 60), answer("C", 13), answer("D", 1), answer("E", 90)];
        let heard = heard_by_one_client(&keys, Operation::Query, script).await;
        let believed: Vec<_> = heard.iter().map(|answer| answer.authenticity).collect();
        let verified = Authenticity::Verified;
        assert_eq!(believed, [verified, REPLAYED, REPLAYED, verified, REPLAYED], "{skew}");
    }
}

#[tokio::test]
async fn a_body_under_a_status_that_is_not_its_own_concludes_nothing() {
    let keys = Keys::new();
    keys.pair();
    let redemption = redemption();
    const USABLE: &str = r#"{"coupon_code":"C0001","coupon_state":"EFFECTIVE"}"#;
    const GONE: &str = r#"{"code":"NOT_FOUND","message":"x"}"#;
    const NOT_ENOUGH: &str = r#"{"code":"NOT_ENOUGH","message":"x"}"#;
    let cases = [
        (404, "08-0", USED),
        (403, "08-268579803", USED),
        (403, "08-268578776", USABLE),
        (404, "08-268578851", USABLE),
        (403, "08-272756746", USABLE),
        (429, "08-0", USABLE),
        (200, "08-268578776", NOT_ENOUGH),
        (200, "08-0", GONE),
        (403, "08-268578851", GONE),
        (404, "08-268578851", NOT_ENOUGH),
        (403, "08-268578776", "{}"),
        (404, "08-268578851", ""),
    ];
    for operation in Operation::ALL {
        let answers = cases.iter().enumerate().map(|(nth, (status, request_id, body))| {
            signed_answer(&keys, *status, request_id, &nth.to_string(), NOW, body)
        });
        for (answer, case) in
            heard_by_one_client(&keys, operation, answers.collect()).await.into_iter().zip(cases)
        {
            assert_eq!(answer.authenticity, Authenticity::Verified, "{case:?}");
            let verdict = classify(operation, &CallResult::Response(answer), &redemption);
            assert_eq!(verdict, Verdict::Unknown(UnknownCause::Contradiction), "{operation:?} {case:?}");
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn prepared() -> Prepared {
    Prepared::new(&redemption())
}

fn redemption() -> Redemption {
    let command = r#"{"openid": "oUser", "coupon_code": "C0001", "brand_id": "120344",
        "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx1",
        "use_time": "2026-03-05T12:30:45+08:00", "out_request_no": "USE_0001",
        "associated_order_info": {"transaction_id": "4200000000123456789123456789"}}"#;
    command::decode(command.as_bytes()).unwrap()
}

#[tokio::test]
async fn what_is_sent_is_what_was_signed() {
    for (operation, line) in [
        (
            Operation::Redeem,
            "POST /v3/marketing/partner/product-coupon/users/oUser/coupons/C0001/use HTTP/1.1",
        ),
        (
            Operation::Query,
            "GET /v3/marketing/partner/product-coupon/users/oUser/coupons/C0001?product_coupon_id=1000000013\
             &stock_id=1000000013001&appid=wx1&brand_id=120344 HTTP/1.1",
        ),
    ] {
        let (url, asked) =
            answer_once("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n");
        let trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let heard = client(&url, None).unwrap().send(operation, &prepared(), trace, now(), 7, 0.5).await;
        let CallResult::Response(answer) = &heard.result else { panic!("{heard:?}") };
        assert_eq!(
            (answer.status, answer.authenticity),
            (302, Authenticity::Unsigned),
            "no redirect is followed"
        );

        let asked = asked.join().unwrap();
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert_eq!(head.lines().next(), Some(line));
        let frozen = prepared().body().to_vec();
        assert_eq!(body.as_bytes(), if operation == Operation::Redeem { frozen } else { vec![] });
        assert_eq!(header(head, "accept"), Some("application/json"));
        assert_eq!(
            header(head, "content-type"),
            (operation == Operation::Redeem).then_some("application/json")
        );
        assert_eq!(header(head, "wechatpay-serial"), Some(KEY_ID));
        assert_eq!(header(head, "traceparent"), trace);
        assert!(header(head, "user-agent").unwrap().starts_with("redeemer/"));

        let authorization = header(head, "authorization").unwrap();
        let item = |name: &str| {
            let (_, rest) = authorization.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0
        };
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let message = format!("{method}\n{target}\n{}\n{}\n{body}\n", item("timestamp"), item("nonce_str"));
        assert_eq!(item("timestamp"), NOW.to_string());
        let keys = Keys::new();
        fs::write(keys.path("key.pem"), DOCUMENTATION_KEY).unwrap();
        assert_eq!(STANDARD.decode(item("signature")).unwrap(), keys.sign(message.as_bytes()));
    }
}

#[tokio::test]
async fn a_number_survives_the_cutting_of_a_long_request_id() {
    const LONG: &str = concat!(
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nrequest-id: ",
        "0123456789012345678901234567890123456789012345678901234567890123",
        "012345678901234567890123456789012345678901234567890123456789-272756746\r\n\r\n{}"
    );
    let (url, asked) = answer_once(LONG);
    let heard = client(&url, None).unwrap().send(Operation::Redeem, &prepared(), None, now(), 7, 0.5).await;
    asked.join().unwrap();
    let CallResult::Response(answer) = heard.result else { panic!("{heard:?}") };
    assert_eq!(answer.sub_code, Some(272_756_746));
    assert_eq!(answer.request_id.unwrap().len(), 128);
}

#[tokio::test]
async fn incomplete_response_is_unknown_and_no_connection_not_sent() {
    for (text, lost) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"coupon_code\"", NoResponse::Reset),
        ("HTTP/1.1 200 OK\r\ncontent-len", NoResponse::Reset),
        ("", NoResponse::Reset),
    ] {
        let (url, asked) = answer_once(text);
        let heard =
            client(&url, None).unwrap().send(Operation::Redeem, &prepared(), None, now(), 7, 0.5).await;
        asked.join().unwrap();
        assert_eq!(heard.result, CallResult::NoResponse(lost), "{text}");
    }
    let (url, asked) = answer_once(TOO_LARGE);
    let heard = client(&url, None).unwrap().send(Operation::Redeem, &prepared(), None, now(), 7, 0.5).await;
    asked.join().unwrap();
    assert_eq!(heard.result, CallResult::NoResponse(NoResponse::TooLarge));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = client(&format!("http://{closed}"), None).unwrap();
    let heard = client.send(Operation::Redeem, &prepared(), None, now(), 7, 0.5).await;
    assert_eq!(heard.result, CallResult::NotSent(NotSent::Connect));
}

/// Nearly 3 KiB, where 2 KiB are read.
const TOO_LARGE: &str =
    concat!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", include_str!("fixtures/coupon_single.json"));

#[test]
fn downloaded_certificate_does_not_replace_a_configured_one() {
    let public = MerchantKey::from_pem(include_str!("fixtures/documentation_test_key.pem"), "test").unwrap();
    let lines = STANDARD.encode(public.public_der()).into_bytes();
    let lines: Vec<_> = lines.chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
    let key = |expires| {
        let mut key = VerificationKey::from_public_pem(&pem, "test").unwrap();
        key.expires = expires;
        key
    };
    let (mut held, mut downloaded) = (PublicKeys::default(), PublicKeys::default());
    held.insert("A1".to_owned(), key(None));
    downloaded.insert("A1".to_owned(), key(Some(Timestamp::MAX)));
    downloaded.insert("B2".to_owned(), key(Some(Timestamp::MAX)));
    held.extend(downloaded);
    let expires = |serial| held.get(serial).map(|key| key.expires);
    assert_eq!([expires("A1"), expires("B2")], [Some(None), Some(Some(Timestamp::MAX))]);
}
