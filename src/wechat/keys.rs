//! Keys: the merchant's own, which signs, and the provider's, which verify.
//!
//! The `rsa` and `sha2` crates read and check every key; aws-lc-rs signs and verifies (4.8 times faster, and
//! constant in time). When the merchant key is read, both libraries sign one text and must agree: a key that one
//! of them misreads never signs a redemption.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
};
use jiff::Timestamp;
use rsa::pkcs1v15::{Signature, SigningKey, VerifyingKey};
use rsa::pkcs8::{DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use rsa::signature::{SignatureEncoding as _, Signer as _, Verifier as _};
use rsa::traits::PublicKeyParts as _;
use rsa::{PrivateKey, PublicKey};
use sha2::Sha256;
use x509_parser::certificate::X509Certificate;
use zeroize::Zeroizing;

use crate::policy::file_name::Shown;
use crate::wechat::pem::{self, Expected, Found};
use crate::wechat::secret_file::{self, Exposure, NotOpened};

/// The smallest modulus that is accepted, in bits.
pub const MODULUS_BITS_MIN: u32 = 2048;

/// The largest file with a secret that is read, in bytes.
pub const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// The same for public keys and certificates: a bundle of all authorities has about a quarter of a megabyte.
pub const PUBLIC_BYTES_MAX: u64 = 1024 * 1024;

/// Why a key is not accepted. Says which file and what to do; never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// The file could not be read.
    #[error("cannot read {}: {source}", Shown(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// Other users may read the secret.
    #[error("{} {exposure}; run: {}", Shown(path), exposure.remedy(path))]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Who may read it.
        exposure: Exposure,
    },
    /// The content is not a key of the expected kind.
    #[error("{what} {}; {} is expected", found.in_words(), expected.in_words())]
    NotAKey {
        /// Where it came from.
        what: String,
        /// What was expected.
        expected: Expected,
        /// What was found.
        found: Found,
    },
    /// The content is not text, or the path is not a file.
    #[error("{} {}; a file with text in UTF-8 is expected", Shown(path), found.in_words())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: Found,
    },
    /// A file is larger than any valid one: the rest of it would not be read.
    #[error("{} has more than {bytes_max} bytes, which is more than is read", Shown(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        bytes_max: u64,
    },
    /// The merchant's own key is configured in place of WeChat Pay's.
    #[error(
        "{what} is your own, made of the merchant key; WeChat Pay's is expected, which the merchant platform has for \
         download"
    )]
    OwnKey {
        /// Where it came from.
        what: String,
    },
    /// The key is too short to be safe.
    #[error("{what} has {bits} bits; at least {MODULUS_BITS_MIN} are needed")]
    TooShort {
        /// Where it came from.
        what: String,
        /// Its size.
        bits: u32,
    },
    /// The two libraries disagree about the key.
    #[error("{what} is damaged: two independent libraries do not agree on its signature")]
    Disagreement {
        /// Where it came from.
        what: String,
    },
    /// A certificate outside its validity.
    #[error("{what} is valid from {from} to {until}, not now")]
    NotValidNow {
        /// Where it came from.
        what: String,
        /// Begin of validity.
        from: Timestamp,
        /// End of validity.
        until: Timestamp,
    },
    /// The merchant key and the merchant API certificate are not a pair.
    #[error("{} does not belong to the merchant key; put both in place together", Shown(certificate))]
    NotAPair {
        /// The certificate.
        certificate: PathBuf,
    },
    /// No key to sign with.
    #[error(
        "no merchant key is configured: set wechat.merchant_key_file, or REDEEMER_MERCHANT_KEY to the key itself"
    )]
    NoMerchantKey,
    /// No key to verify responses with.
    #[error(
        "no verification key is configured: set wechat.public_keys, wechat.platform_certificates or wechat.apiv3_key_file"
    )]
    NoVerificationKey,
}

impl KeyFault {
    /// The id of the finding, stable for machines.
    pub fn id(&self) -> String {
        match self {
            Self::Unreadable { .. } => "key_unreadable".to_owned(),
            Self::Exposed { .. } => "key_exposed".to_owned(),
            Self::NotAKey { found, .. } | Self::NotText { found, .. } => format!("key_is_{}", found.as_str()),
            Self::TooLarge { .. } => "key_too_large".to_owned(),
            Self::OwnKey { .. } => "key_is_our_own".to_owned(),
            Self::TooShort { .. } => "key_too_short".to_owned(),
            Self::Disagreement { .. } => "key_disagreement".to_owned(),
            Self::NotValidNow { .. } => "certificate_not_valid_now".to_owned(),
            Self::NotAPair { .. } => "certificate_of_another_key".to_owned(),
            Self::NoMerchantKey => "merchant_key_missing".to_owned(),
            Self::NoVerificationKey => "verification_key_missing".to_owned(),
        }
    }
}

/// What is wrong with a key, and the config key that names its file: several may name one file.
#[derive(Debug, thiserror::Error)]
#[error("{}{fault}", .key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
pub struct KeyringFault {
    /// The config key, if one names it.
    pub key: Option<String>,
    /// What is wrong.
    pub fault: KeyFault,
}

impl KeyringFault {
    fn at(key: impl Into<String>) -> impl Fn(KeyFault) -> Self {
        let key = key.into();
        move |fault| Self { key: Some(key.clone()), fault }
    }

    fn of_nothing(fault: KeyFault) -> Self {
        Self { key: None, fault }
    }
}

/// The config keys, as faults name them.
const PLATFORM_CERTIFICATES: &str = "wechat.platform_certificates";
const MERCHANT_KEY_FILE: &str = "wechat.merchant_key_file";
const MERCHANT_CERTIFICATE_FILE: &str = "wechat.merchant_certificate_file";

/// The merchant's signing key.
pub struct MerchantKey {
    pair: RsaKeyPair,
    public_der: Vec<u8>,
    bits: u32,
}

impl fmt::Debug for MerchantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MerchantKey").field("bits", &self.bits).finish_non_exhaustive()
    }
}

impl MerchantKey {
    /// Reads a PKCS#8 or PKCS#1 PEM, as [`pem`] reads it. `what` names its origin in errors.
    ///
    /// # Errors
    /// [`KeyFault`] for anything but a sound RSA private key of 2048 bits or more.
    pub fn from_pem(pem: &(impl AsRef<[u8]> + ?Sized), what: &str) -> Result<Self, KeyFault> {
        let not_a_key =
            |found| KeyFault::NotAKey { what: what.to_owned(), expected: Expected::PrivateKey, found };
        let disagreement = || KeyFault::Disagreement { what: what.to_owned() };
        let key = pem::private_key(pem.as_ref()).map_err(not_a_key)?;
        let bits = bits(&key.to_public_key());
        if bits < MODULUS_BITS_MIN {
            return Err(KeyFault::TooShort { what: what.to_owned(), bits });
        }
        let der = key.to_pkcs8_der().map_err(|_| disagreement())?;
        let pair = RsaKeyPair::from_pkcs8(der.as_bytes()).map_err(|_| disagreement())?;
        let read = Self { pair, public_der: spki(&key.to_public_key()).ok_or_else(disagreement)?, bits };
        read.cross_check(key).then_some(read).ok_or_else(disagreement)
    }

    /// Signs one text with both libraries. PKCS#1 v1.5 is deterministic, so the signatures must be equal.
    fn cross_check(&self, key: PrivateKey) -> bool {
        const TEXT: &[u8] = b"redeemer: the two libraries agree on this key";
        let theirs = VerifyingKey::<Sha256>::new(key.to_public_key());
        let signer = SigningKey::<Sha256>::new(key);
        let Some(ours) = self.sign(TEXT) else { return false };
        let verified = Signature::try_from(ours.as_slice())
            .is_ok_and(|signature| theirs.verify(TEXT, &signature).is_ok());
        let equal = signer.try_sign(TEXT).is_ok_and(|signature| *signature.to_bytes() == *ours.as_slice());
        verified && equal && self.pair.public_key().as_ref().len() > 256
    }

    /// Signs a text: RSASSA-PKCS1-v1_5 with SHA-256.
    pub fn sign(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).ok()?;
        Some(signature)
    }

    /// Size of the modulus in bits.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The public half as SubjectPublicKeyInfo in DER: to compare it with a certificate.
    pub fn public_der(&self) -> &[u8] {
        &self.public_der
    }
}

/// A certificate's serial and key, or what is wrong with it.
type ReadCertificate = Result<(String, VerificationKey), KeyFault>;

/// One of the provider's keys.
#[derive(Clone)]
pub struct VerificationKey {
    key: ParsedPublicKey,
    /// As SubjectPublicKeyInfo in DER.
    public_der: Vec<u8>,
    /// The end of its validity; a bare public key has none.
    pub expires: Option<Timestamp>,
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationKey").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl VerificationKey {
    /// Reads a public key in PEM, as [`pem`] reads it.
    ///
    /// # Errors
    /// [`KeyFault`] for anything but an RSA public key of 2048 bits or more.
    pub fn from_public_pem(pem: &(impl AsRef<[u8]> + ?Sized), what: &str) -> Result<Self, KeyFault> {
        let key = pem::public_key(pem.as_ref()).map_err(|found| KeyFault::NotAKey {
            what: what.to_owned(),
            expected: Expected::PublicKey,
            found,
        })?;
        Self::new(&key, None, what)
    }

    /// Reads one certificate in PEM; gives its serial, upper-case hex, beside the key.
    ///
    /// # Errors
    /// [`KeyFault`] for anything but a certificate with an RSA key of 2048 bits or more that is valid now.
    pub fn from_certificate_pem(
        pem: &(impl AsRef<[u8]> + ?Sized),
        what: &str,
        now: Timestamp,
    ) -> Result<(String, Self), KeyFault> {
        let first = certificates(pem.as_ref(), what, Expected::PlatformCertificate)?.into_iter().next();
        Self::from_certificate_der(&first.unwrap_or_default(), what, now)
    }

    /// Reads every certificate of a text, each by itself: what is wrong with one does not hide the others.
    ///
    /// # Errors
    /// [`KeyFault`] if there is no certificate at all.
    pub fn from_certificates_pem(
        pem: &(impl AsRef<[u8]> + ?Sized),
        what: &str,
        now: Timestamp,
    ) -> Result<Vec<ReadCertificate>, KeyFault> {
        let ders = certificates(pem.as_ref(), what, Expected::PlatformCertificate)?;
        Ok(ders.iter().map(|der| Self::from_certificate_der(der, what, now)).collect())
    }

    fn from_certificate_der(der: &[u8], what: &str, now: Timestamp) -> Result<(String, Self), KeyFault> {
        let expected = Expected::PlatformCertificate;
        let not_a_key = |found| KeyFault::NotAKey { what: what.to_owned(), expected, found };
        let (_, certificate) =
            x509_parser::parse_x509_certificate(der).map_err(|_| not_a_key(Found::Damaged))?;
        let key = PublicKey::from_public_key_der(certificate.public_key().raw)
            .map_err(|_| not_a_key(Found::OtherAlgorithm))?;
        let validity = certificate.validity();
        let second = |time: i64| Timestamp::from_second(time).map_err(|_| not_a_key(Found::Damaged));
        let from = second(validity.not_before.timestamp())?;
        let until = second(validity.not_after.timestamp())?;
        if now < from || until < now {
            return Err(KeyFault::NotValidNow { what: what.to_owned(), from, until });
        }
        Ok((serial_of(&certificate), Self::new(&key, Some(until), what)?))
    }

    fn new(key: &PublicKey, expires: Option<Timestamp>, what: &str) -> Result<Self, KeyFault> {
        let bits = bits(key);
        if bits < MODULUS_BITS_MIN {
            return Err(KeyFault::TooShort { what: what.to_owned(), bits });
        }
        let disagreement = || KeyFault::Disagreement { what: what.to_owned() };
        let der = spki(key).ok_or_else(disagreement)?;
        let parsed = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &der).map_err(|_| disagreement())?;
        Ok(Self { key: parsed, public_der: der, expires })
    }

    /// Whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }
}

fn bits(key: &PublicKey) -> u32 {
    key.n().bit_width()
}

fn spki(key: &PublicKey) -> Option<Vec<u8>> {
    Some(key.to_public_key_der().ok()?.into_vec())
}

/// The provider's keys by serial: public keys and platform certificates side by side, never distinguished.
#[derive(Debug, Clone, Default)]
pub struct PublicKeys(BTreeMap<String, VerificationKey>);

impl PublicKeys {
    /// The key of a serial.
    pub fn get(&self, serial: &str) -> Option<&VerificationKey> {
        self.0.get(serial)
    }

    /// Adds a key, or replaces the one with this serial.
    pub fn insert(&mut self, serial: String, key: VerificationKey) {
        self.0.insert(serial, key);
    }

    /// Adds keys with new serials: a configured key is kept.
    pub fn extend(&mut self, more: Self) {
        for (serial, key) in more.0 {
            self.0.entry(serial).or_insert(key);
        }
    }

    /// Serials and keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &VerificationKey)> {
        self.0.iter().map(|(serial, key)| (serial.as_str(), key))
    }

    /// The serial to request if none is configured: that of the key that is valid longest. A public key never
    /// expires.
    pub fn preferred(&self) -> Option<&str> {
        let lasts = |key: &VerificationKey| key.expires.unwrap_or(Timestamp::MAX);
        self.iter().max_by_key(|(_, key)| lasts(key)).map(|(serial, _)| serial)
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The files of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    /// The merchant's private key; none means that the environment holds it.
    pub merchant_key: Option<PathBuf>,
    /// The merchant API certificate that belongs to it, if its serial is read from there.
    pub merchant_certificate: Option<PathBuf>,
    /// The provider's public keys: serial (`PUB_KEY_ID_…`) and file.
    pub public_keys: BTreeMap<String, PathBuf>,
    /// Platform certificates; each brings its serial.
    pub platform_certificates: Vec<PathBuf>,
    /// Whether platform certificates are downloaded too, so that none need be configured.
    pub downloads: bool,
}

/// All keys of one moment.
#[derive(Debug)]
pub struct Keyring {
    /// The key that signs.
    pub merchant: MerchantKey,
    /// The serial of the merchant API certificate, if one is configured.
    pub merchant_serial: Option<String>,
    /// When that certificate ends, if one is configured.
    pub merchant_expires: Option<Timestamp>,
    /// Platform certificates that are configured and left out, because they are not valid now.
    pub left_out: Vec<KeyFault>,
    /// The keys that verify.
    pub public: PublicKeys,
}

impl Keyring {
    /// Reads every key. `from_environment` is the merchant key in PEM, used if no file is named.
    ///
    /// # Errors
    /// All faults together, so that they can be fixed at once.
    pub fn load(
        files: &KeyFiles,
        from_environment: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, Vec<KeyringFault>> {
        let (mut faults, mut left_out) = (Vec::new(), Vec::new());
        let mut public = PublicKeys::default();
        // Where each came from: the config key and the file.
        let mut origins = Vec::new();
        for (serial, path) in &files.public_keys {
            let name = format!("wechat.public_keys.{serial}");
            let read =
                read_public(path).and_then(|pem| VerificationKey::from_public_pem(&*pem, &shown(path)));
            match read {
                Ok(key) => {
                    origins.push((name, path, key.public_der.clone()));
                    public.insert(serial.clone(), key);
                }
                Err(fault) => faults.push(KeyringFault::at(name)(fault)),
            }
        }
        for path in &files.platform_certificates {
            let read = read_public(path)
                .and_then(|pem| VerificationKey::from_certificates_pem(&*pem, &shown(path), now));
            for read in read.unwrap_or_else(|fault| vec![Err(fault)]) {
                match read {
                    Ok((serial, key)) => {
                        origins.push((PLATFORM_CERTIFICATES.to_owned(), path, key.public_der.clone()));
                        public.insert(serial, key);
                    }
                    // An expired one must not prevent the use of the others.
                    Err(fault @ KeyFault::NotValidNow { .. }) => left_out.push(fault),
                    Err(fault) => faults.push(KeyringFault::at(PLATFORM_CERTIFICATES)(fault)),
                }
            }
        }
        if public.is_empty() && !files.downloads {
            faults.extend(left_out.drain(..).map(KeyringFault::at(PLATFORM_CERTIFICATES)));
        }
        let none = files.public_keys.is_empty() && files.platform_certificates.is_empty();
        if none && !files.downloads {
            faults.push(KeyringFault::of_nothing(KeyFault::NoVerificationKey));
        }
        let merchant = match (&files.merchant_key, from_environment) {
            (Some(path), _) => read_key(path)
                .map_err(|fault| describe_other_kind(path, fault))
                .and_then(|pem| MerchantKey::from_pem(&*pem, &shown(path)))
                .map_err(KeyringFault::at(MERCHANT_KEY_FILE)),
            (None, Some(pem)) => MerchantKey::from_pem(pem, IN_ENVIRONMENT).map_err(KeyringFault::of_nothing),
            (None, None) => Err(KeyringFault::of_nothing(KeyFault::NoMerchantKey)),
        };
        let merchant = merchant.and_then(|merchant| {
            let certificate = files.merchant_certificate.as_ref();
            let read = certificate.map(|path| merchant_certificate(path, &merchant)).transpose();
            Ok((merchant, read.map_err(KeyringFault::at(MERCHANT_CERTIFICATE_FILE))?.unzip()))
        });
        if let Ok((merchant, _)) = &merchant {
            let own = origins.into_iter().filter(|(.., public_der)| *public_der == merchant.public_der);
            faults.extend(
                own.map(|(key, path, _)| KeyringFault::at(key)(KeyFault::OwnKey { what: shown(path) })),
            );
        }
        match merchant {
            Ok((merchant, (merchant_serial, merchant_expires))) if faults.is_empty() => {
                Ok(Self { merchant, merchant_serial, merchant_expires, left_out, public })
            }
            Ok(_) => Err(faults),
            Err(fault) => {
                faults.push(fault);
                Err(faults)
            }
        }
    }
}

/// If a file holds no private key, it does not matter who may read it, and changing that would not help.
fn describe_other_kind(path: &Path, fault: KeyFault) -> KeyFault {
    let harmless = [
        Found::Certificate,
        Found::CertificateRequest,
        Found::PublicKey,
        Found::DerCertificate,
        Found::Empty,
    ];
    let found = match &fault {
        KeyFault::Exposed { .. } => read_public(path).ok().and_then(|bytes| pem::private_key(&bytes).err()),
        _ => None,
    };
    match found.filter(|found| harmless.contains(found)) {
        Some(found) => KeyFault::NotAKey { what: shown(path), expected: Expected::PrivateKey, found },
        None => fault,
    }
}

/// The name of the merchant key in errors if it comes from the environment itself.
pub const IN_ENVIRONMENT: &str = "the merchant key in the environment";

fn shown(path: &Path) -> String {
    Shown(path).to_string()
}

fn certificates(pem: &[u8], what: &str, expected: Expected) -> Result<Vec<Zeroizing<Vec<u8>>>, KeyFault> {
    pem::certificates(pem).map_err(|found| KeyFault::NotAKey { what: what.to_owned(), expected, found })
}

/// The serial and the end of the merchant API certificate, which must belong to the key. The others of a chain are
/// passed over.
fn merchant_certificate(path: &Path, key: &MerchantKey) -> Result<(String, Timestamp), KeyFault> {
    let what = shown(path);
    let damaged =
        || KeyFault::NotAKey { what: what.clone(), expected: Expected::Certificate, found: Found::Damaged };
    for der in certificates(&read_public(path)?, &what, Expected::Certificate)? {
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|_| damaged())?;
        let public = PublicKey::from_public_key_der(certificate.public_key().raw).ok();
        if public.as_ref().and_then(spki).as_deref() == Some(key.public_der()) {
            let until = certificate.validity().not_after.timestamp();
            let until = Timestamp::from_second(until).map_err(|_| damaged())?;
            return Ok((serial_of(&certificate), until));
        }
    }
    Err(KeyFault::NotAPair { certificate: path.to_owned() })
}

/// The serial of a certificate as the platform writes it: upper-case hex.
fn serial_of(certificate: &X509Certificate<'_>) -> String {
    let serial = certificate.raw_serial();
    let serial = serial.strip_prefix(&[0]).unwrap_or(serial);
    serial.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Reads a secret that is text, as [`secret_file::open`] admits it: without a byte order mark.
///
/// # Errors
/// [`KeyFault`] if others may read it, if we may not, or if it is not text.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyFault> {
    let bytes = read_key(path)?;
    let text = pem::text(&bytes).map_err(|found| KeyFault::NotText { path: path.to_owned(), found })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Reads a secret of any form, as [`secret_file::open`] admits it.
///
/// # Errors
/// [`KeyFault::Exposed`] if others may read it, [`KeyFault::Unreadable`] if we may not.
pub fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let file = secret_file::open(path).map_err(|refused| match refused {
        NotOpened::Unreadable(source) => KeyFault::Unreadable { path: path.to_owned(), source },
        NotOpened::Folder => KeyFault::NotText { path: path.to_owned(), found: Found::Folder },
        NotOpened::Exposed(exposure) => KeyFault::Exposed { path: path.to_owned(), exposure },
    })?;
    read(file, path, SECRET_BYTES_MAX)
}

/// Reads a file that is not secret.
///
/// # Errors
/// [`KeyFault::Unreadable`], [`KeyFault::TooLarge`]
pub fn read_public(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let file = File::open(path).map_err(|source| KeyFault::Unreadable { path: path.to_owned(), source })?;
    read(file, path, PUBLIC_BYTES_MAX)
}

fn read(file: File, path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let unreadable = |source| KeyFault::Unreadable { path: path.to_owned(), source };
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(KeyFault::NotText { path: path.to_owned(), found: Found::Folder });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match u64::try_from(read).is_ok_and(|read| read <= bytes_max) {
        true => Ok(bytes),
        false => Err(KeyFault::TooLarge { path: path.to_owned(), bytes_max }),
    }
}
