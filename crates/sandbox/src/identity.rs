//! The identity of the sandbox and of its one merchant: keys, serials and the files that a client reads.
//!
//! Everything follows from the seed, so two sandboxes of one seed are the same party. What is found in the directory
//! is kept, so a restart keeps the keys. None of it protects anything: it is test material.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rsa::pkcs1v15::{SigningKey, VerifyingKey};
use rsa::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::signature::Keypair;
use rsa::{PrivateKey, PublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::UtcTime;
use x509_cert::der::{Decode, DecodePem, Encode, EncodePem};
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity};

use super::fast::{FastSigner, FastVerifier};

/// The merchant number of the one merchant that the sandbox knows.
pub const MCHID: &str = "1900000109";

const KEY_BITS: usize = 2048;
const DAY: Duration = Duration::from_secs(24 * 3600);
const FIVE_YEARS: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// The data that a client needs besides the key files: the content of `identity.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Where the sandbox listens, e.g. `http://127.0.0.1:38211`. Rewritten at every start.
    pub base_url: String,
    /// The merchant number to sign with.
    pub mchid: String,
    /// The serial of `merchant_cert.pem`: 40 upper-case hex digits.
    pub merchant_serial: String,
    /// The id of `wechatpay_public_key.pem`: `PUB_KEY_ID_` and 34 digits.
    pub public_key_id: String,
    /// The serial of `platform_cert.pem`: 40 upper-case hex digits.
    pub platform_serial: String,
}

/// Why no identity could be read or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of an earlier run is not what this program wrote. Deleting the directory makes a new identity.
    #[error("{path} is not usable: {why}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A key or a certificate could not be made.
    #[error("cannot make {what}: {why}")]
    Make {
        /// Which one.
        what: &'static str,
        /// What the library said.
        why: String,
    },
}

/// The private side of the sandbox, and the registered merchant.
pub(super) struct Identity {
    pub card: Card,
    pub merchant: Registered,
    /// Signs for `public_key_id`.
    pub wechatpay: Arc<SigningKey<Sha256>>,
    /// Signs for `platform_serial`.
    pub platform: Arc<SigningKey<Sha256>>,
    pub platform_cert_pem: String,
    /// Seals `GET /v3/certificates`.
    pub apiv3_key: [u8; 32],
    /// The two signing keys once more, where speed was asked for.
    pub fast: Option<Fast>,
}

/// What signs in place of `wechatpay` and `platform`.
pub(super) struct Fast {
    pub wechatpay: Arc<FastSigner>,
    pub platform: Arc<FastSigner>,
}

/// A merchant key as the provider knows it: the public half only.
#[derive(Clone)]
pub(super) struct Registered {
    pub serial: String,
    pub key: Arc<VerifyingKey<Sha256>>,
    /// Verifies in place of `key`, where speed was asked for.
    pub fast: Option<Arc<FastVerifier>>,
}

impl Identity {
    /// Reads the identity in `dir`, or makes one from `seed`. Making takes about a second: call it off the runtime.
    pub(crate) fn open(dir: &Path, seed: u64) -> Result<Identity, IdentityError> {
        if !dir.join("identity.json").exists() {
            // identity.json is written after all others, so its absence means an unfinished directory.
            create(dir, seed)?;
        }
        read(dir)
    }

    /// Signs and verifies by the faster library from now on.
    pub(crate) fn prepare_signers(&mut self, dir: &Path) -> Result<(), IdentityError> {
        let signer = |name: &str| {
            let path = dir.join(name);
            let pem = fs::read_to_string(&path)
                .map_err(|source| IdentityError::File { path: path.clone(), source })?;
            let signer = FastSigner::from_pem(&pem).map_err(|why| IdentityError::Unreadable { path, why })?;
            Ok::<_, IdentityError>(Arc::new(signer))
        };
        self.fast = Some(Fast {
            wechatpay: signer("wechatpay_private_key.pem")?,
            platform: signer("platform_private_key.pem")?,
        });
        self.merchant.prepare_signers().map_err(|why| IdentityError::Make { what: "a fast key", why })
    }

    /// Writes `identity.json`, once the address is known.
    pub(crate) fn publish(&mut self, dir: &Path, base_url: String) -> Result<(), IdentityError> {
        self.card.base_url = base_url;
        let text = serde_json::to_string_pretty(&self.card)
            .map_err(|error| IdentityError::Make { what: "identity.json", why: error.to_string() })?;
        write(dir, "identity.json", 0o644, &(text + "\n"))
    }
}

impl Registered {
    /// Reads a public key (`PUBLIC KEY`) or a certificate (`CERTIFICATE`) in PEM. A bare key keeps `serial`.
    pub(crate) fn from_pem(pem: &str, serial: &str) -> Result<Registered, String> {
        if pem.contains("BEGIN CERTIFICATE") {
            let certificate = Certificate::from_pem(pem.trim()).map_err(|error| error.to_string())?;
            let tbs = certificate.tbs_certificate();
            let spki = tbs.subject_public_key_info().to_der().map_err(|error| error.to_string())?;
            let key = PublicKey::from_public_key_der(&spki).map_err(|error| error.to_string())?;
            return Ok(Registered {
                serial: hex(tbs.serial_number().as_bytes()),
                key: Arc::new(VerifyingKey::new(key)),
                fast: None,
            });
        }
        let key = PublicKey::from_public_key_pem(pem.trim()).map_err(|error| error.to_string())?;
        Ok(Registered { serial: serial.to_owned(), key: Arc::new(VerifyingKey::new(key)), fast: None })
    }

    /// Verifies by the faster library from now on.
    pub(crate) fn prepare_signers(&mut self) -> Result<(), String> {
        self.fast = Some(Arc::new(FastVerifier::of(&self.key)?));
        Ok(())
    }
}

/// Upper-case hex, as serials and request ids are written.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// 32 bytes that depend on the seed and on what they are for.
fn derive(seed: u64, purpose: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"sandbox identity")
        .chain_update(seed.to_be_bytes())
        .chain_update(purpose)
        .finalize()
        .into()
}

fn card(seed: u64) -> Card {
    let digits = derive(seed, "public key id")
        .iter()
        .take(22)
        .map(|byte| char::from(b'0' + byte % 10))
        .collect::<String>();
    Card {
        base_url: String::new(),
        mchid: MCHID.to_owned(),
        merchant_serial: hex(&serial(seed, "merchant")),
        public_key_id: format!("PUB_KEY_ID_01{MCHID}{digits}"),
        platform_serial: hex(&serial(seed, "platform")),
    }
}

fn serial(seed: u64, whose: &str) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes.copy_from_slice(&derive(seed, &format!("serial {whose}"))[..20]);
    // DER drops leading zeroes and guards a set top bit by one more byte: either would change the 40 digits.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    bytes
}

fn apiv3_key(seed: u64) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    derive(seed, "apiv3 key").iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % 62])).collect()
}

fn create(dir: &Path, seed: u64) -> Result<(), IdentityError> {
    fs::create_dir_all(dir).map_err(|source| IdentityError::File { path: dir.to_owned(), source })?;
    let card = card(seed);
    // Three keys on as many threads: finding primes is the slowest thing a start does.
    let (merchant, wechatpay, platform) = std::thread::scope(|scope| {
        let make = |purpose| scope.spawn(move || generate(seed, purpose));
        let (merchant, wechatpay, platform) =
            (make("merchant key"), make("wechatpay key"), make("platform key"));
        (join(merchant), join(wechatpay), join(platform))
    });
    let (merchant, wechatpay, platform) = (merchant?, wechatpay?, platform?);

    write(dir, "merchant_key.pem", 0o600, &private_pem(&merchant)?)?;
    write(
        dir,
        "merchant_cert.pem",
        0o644,
        &self_signed(&merchant, &serial(seed, "merchant"), &format!("CN={}", card.mchid))?,
    )?;
    write(dir, "wechatpay_private_key.pem", 0o600, &private_pem(&wechatpay)?)?;
    let public = wechatpay
        .to_public_key()
        .to_public_key_pem(LineEnding::LF)
        .map_err(|error| IdentityError::Make { what: "wechatpay_public_key.pem", why: error.to_string() })?;
    write(dir, "wechatpay_public_key.pem", 0o644, &public)?;
    write(dir, "platform_private_key.pem", 0o600, &private_pem(&platform)?)?;
    write(
        dir,
        "platform_cert.pem",
        0o644,
        &self_signed(&platform, &serial(seed, "platform"), "CN=Tenpay.com sandbox CA")?,
    )?;
    write(dir, "apiv3_key.txt", 0o600, &apiv3_key(seed))?;
    let text = serde_json::to_string(&card)
        .map_err(|error| IdentityError::Make { what: "identity.json", why: error.to_string() })?;
    write(dir, "identity.json", 0o644, &text)
}

fn join(
    thread: std::thread::ScopedJoinHandle<'_, Result<PrivateKey, IdentityError>>,
) -> Result<PrivateKey, IdentityError> {
    thread.join().unwrap_or(Err(IdentityError::Make {
        what: "an RSA key",
        why: "the thread that made it panicked".to_owned(),
    }))
}

fn generate(seed: u64, purpose: &str) -> Result<PrivateKey, IdentityError> {
    PrivateKey::new(&mut StdRng::from_seed(derive(seed, purpose)), KEY_BITS)
        .map_err(|error| IdentityError::Make { what: "an RSA key", why: error.to_string() })
}

fn private_pem(key: &PrivateKey) -> Result<String, IdentityError> {
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| IdentityError::Make { what: "a PKCS#8 file", why: error.to_string() })?;
    Ok(pem.as_str().to_owned())
}

fn self_signed(key: &PrivateKey, serial: &[u8; 20], name: &str) -> Result<String, IdentityError> {
    certificate_pem(key, serial, name).map_err(|why| IdentityError::Make { what: "a certificate", why })
}

fn certificate_pem(key: &PrivateKey, serial: &[u8; 20], name: &str) -> Result<String, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let day = |time| UtcTime::from_unix_duration(time).map(Time::UtcTime).map_err(|error| text(&error));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| text(&error))?;
    let signer = SigningKey::<Sha256>::new(key.clone());
    let spki = signer.verifying_key().to_public_key_der().map_err(|error| text(&error))?;
    let builder = CertificateBuilder::new(
        SelfSigned(Name::from_str(name).map_err(|error| text(&error))?),
        SerialNumber::new(serial).map_err(|error| text(&error))?,
        Validity::new(day(now - DAY)?, day(now + FIVE_YEARS)?),
        SubjectPublicKeyInfo::from_der(spki.as_bytes()).map_err(|error| text(&error))?,
    )
    .map_err(|error| text(&error))?;
    let certificate = builder.build::<_, rsa::pkcs1v15::Signature>(&signer).map_err(|error| text(&error))?;
    certificate.to_pem(LineEnding::LF).map_err(|error| text(&error))
}

/// One name as issuer and subject, and no extensions: all that a client looks at is the key, the serial and the dates.
struct SelfSigned(Name);

impl BuilderProfile for SelfSigned {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        self.0.clone()
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        Ok(Vec::new())
    }
}

fn read(dir: &Path) -> Result<Identity, IdentityError> {
    let text = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|source| IdentityError::File { path, source })
    };
    let unusable = |name: &str, why: String| IdentityError::Unreadable { path: dir.join(name), why };
    let signer = |name: &str| {
        PrivateKey::from_pkcs8_pem(text(name)?.trim())
            .map(|key| Arc::new(SigningKey::new(key)))
            .map_err(|error| unusable(name, error.to_string()))
    };

    let card = serde_json::from_str(&text("identity.json")?)
        .map_err(|error| unusable("identity.json", error.to_string()))?;
    let merchant = Registered::from_pem(&text("merchant_cert.pem")?, "")
        .map_err(|why| unusable("merchant_cert.pem", why))?;
    let apiv3_key = text("apiv3_key.txt")?
        .trim()
        .as_bytes()
        .try_into()
        .map_err(|_| unusable("apiv3_key.txt", "it must hold 32 characters".to_owned()))?;
    Ok(Identity {
        card,
        merchant,
        wechatpay: signer("wechatpay_private_key.pem")?,
        platform: signer("platform_private_key.pem")?,
        platform_cert_pem: text("platform_cert.pem")?,
        apiv3_key,
        fast: None,
    })
}

/// Writes through a neighbor and a rename, so that a killed start leaves no half file. The neighbor is one that was not
/// there before, so it is not a link and no other process has it open.
fn write(dir: &Path, name: &str, mode: u32, text: &str) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let part = dir.join(format!(".{name}.{:032x}.part", rand::random::<u128>()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&part, &path));
    written.map_err(|source| IdentityError::File { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn key_is_written_past_links_and_open_files_of_others() {
        let dir = fresh_dir("links");
        fs::create_dir_all(&dir).unwrap();
        let victim = dir.join("victim");
        fs::write(&victim, "untouched").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o666)).unwrap();
        for name in ["key.pem", "key.pem.part"] {
            std::os::unix::fs::symlink(&victim, dir.join(name)).unwrap();
        }
        write(&dir, "key.pem", 0o600, "key").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        let found = fs::symlink_metadata(dir.join("key.pem")).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600, "{found:?}");
        fs::remove_dir_all(dir).unwrap();
    }

    fn fresh_dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("redeemer-identity-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    fn openssl(dir: &Path, arguments: &[&str]) -> String {
        let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_restart_keeps_the_keys_and_openssl_reads_the_files() {
        let dir = fresh_dir("restart");
        let mut first = Identity::open(&dir, 7).unwrap();
        first.publish(&dir, "http://127.0.0.1:1".to_owned()).unwrap();
        let again = Identity::open(&dir, 8).unwrap();
        assert_eq!(again.card, first.card, "the seed of a later start does not matter");
        assert_eq!(again.apiv3_key, first.apiv3_key);

        let serial = openssl(&dir, &["x509", "-in", "merchant_cert.pem", "-noout", "-serial"]);
        assert_eq!(serial.trim(), format!("serial={}", first.card.merchant_serial));
        let serial = openssl(&dir, &["x509", "-in", "platform_cert.pem", "-noout", "-serial"]);
        assert_eq!(serial.trim(), format!("serial={}", first.card.platform_serial));
        openssl(&dir, &["verify", "-check_ss_sig", "-CAfile", "merchant_cert.pem", "merchant_cert.pem"]);
        let of_key = openssl(&dir, &["pkey", "-in", "merchant_key.pem", "-pubout"]);
        let of_cert = openssl(&dir, &["x509", "-in", "merchant_cert.pem", "-noout", "-pubkey"]);
        assert_eq!(of_key, of_cert);

        for secret in
            ["merchant_key.pem", "wechatpay_private_key.pem", "platform_private_key.pem", "apiv3_key.txt"]
        {
            assert_eq!(
                fs::metadata(dir.join(secret)).unwrap().permissions().mode() & 0o777,
                0o600,
                "{secret}"
            );
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn serials_have_forty_digits_for_every_seed() {
        for seed in 0..200 {
            let card = card(seed);
            assert_eq!(card.merchant_serial.len(), 40);
            assert_eq!(card.public_key_id.len(), "PUB_KEY_ID_".len() + 34);
            assert!(apiv3_key(seed).bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
    }
}
