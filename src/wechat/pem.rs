//! Reads key material as people, editors and other tools write it: one reader for keys and certificates.
//!
//! Accepted are a byte order mark, CRLF, everything on one line, other line widths, blanks, blank lines, text around the
//! blocks, `\n` spelled out, quotes, and the bare Base64 without its two lines. For any other content its kind is
//! reported, so that the remedy can be a command. No error quotes a byte of the content.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rsa::pkcs1::{DecodeRsaPrivateKey as _, DecodeRsaPublicKey as _};
use rsa::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use rsa::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::telemetry::untrusted::is_hidden;

/// The kind of content found in a text or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// Nothing at all.
    Empty,
    /// A folder.
    Folder,
    /// A private key, encrypted with a passphrase.
    EncryptedKey,
    /// A PKCS#12 bundle (`.p12`, `.pfx`).
    Pkcs12,
    /// The binary form of a private key.
    DerPrivateKey,
    /// The binary form of a public key.
    DerPublicKey,
    /// The binary form of a certificate.
    DerCertificate,
    /// Text in UTF-16, as some editors save it.
    Utf16,
    /// Other bytes that are not text.
    Binary,
    /// A certificate.
    Certificate,
    /// A request for a certificate.
    CertificateRequest,
    /// A public key.
    PublicKey,
    /// A private key.
    PrivateKey,
    /// A key that is not RSA.
    OtherAlgorithm,
    /// A block without its end, or with something else than Base64 in it.
    Damaged,
    /// Text without a block.
    OtherText,
}

impl Found {
    /// Each of them, for tables.
    pub const ALL: [Self; 16] = [
        Self::Empty,
        Self::Folder,
        Self::EncryptedKey,
        Self::Pkcs12,
        Self::DerPrivateKey,
        Self::DerPublicKey,
        Self::DerCertificate,
        Self::Utf16,
        Self::Binary,
        Self::Certificate,
        Self::CertificateRequest,
        Self::PublicKey,
        Self::PrivateKey,
        Self::OtherAlgorithm,
        Self::Damaged,
        Self::OtherText,
    ];

    /// The word in the ids of findings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Folder => "folder",
            Self::EncryptedKey => "encrypted",
            Self::Pkcs12 => "pkcs12",
            Self::DerPrivateKey | Self::DerPublicKey | Self::DerCertificate => "der",
            Self::Utf16 => "utf16",
            Self::Binary => "binary",
            Self::Certificate => "certificate",
            Self::CertificateRequest => "certificate_request",
            Self::PublicKey => "public_key",
            Self::PrivateKey => "private_key",
            Self::OtherAlgorithm => "other_algorithm",
            Self::Damaged => "damaged",
            Self::OtherText => "other_text",
        }
    }

    /// A description for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Empty => "is empty",
            Self::Folder => "is a folder",
            Self::EncryptedKey => "holds a private key that is encrypted with a passphrase",
            Self::Pkcs12 => "is a PKCS#12 bundle",
            Self::DerPrivateKey => "holds a private key in DER, the binary form",
            Self::DerPublicKey => "holds a public key in DER, the binary form",
            Self::DerCertificate => "holds a certificate in DER, the binary form",
            Self::Utf16 => "is text in UTF-16",
            Self::Binary => "is not text",
            Self::Certificate => "holds a certificate",
            Self::CertificateRequest => "holds a request for a certificate",
            Self::PublicKey => "holds a public key",
            Self::PrivateKey => "holds a private key",
            Self::OtherAlgorithm => "holds a key that is not RSA",
            Self::Damaged => "is damaged: a PEM block is cut short or is not Base64",
            Self::OtherText => "holds no PEM block",
        }
    }
}

/// The expected kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expected {
    /// The merchant's private key: RSA.
    PrivateKey,
    /// The private key of a client certificate, of any algorithm.
    ClientKey,
    /// WeChat Pay's public key: RSA.
    PublicKey,
    /// One or more platform certificates of WeChat Pay.
    PlatformCertificate,
    /// One or more other X.509 certificates.
    Certificate,
}

impl Expected {
    /// A description for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::PrivateKey => "an RSA private key in PEM (PKCS#8 or PKCS#1)",
            Self::ClientKey => "a private key in PEM (PKCS#8, PKCS#1 or SEC1)",
            Self::PublicKey => "an RSA public key in PEM",
            Self::PlatformCertificate => "a platform certificate of WeChat Pay in PEM",
            Self::Certificate => "an X.509 certificate in PEM",
        }
    }
}

/// Reads the first RSA private key.
///
/// # Errors
/// [`Found`] if there is something else.
pub fn private_key(bytes: &[u8]) -> Result<PrivateKey, Found> {
    let blocks = read(bytes)?;
    let mut keys = blocks.iter().filter(|block| block.kind == Kind::PrivateKey).peekable();
    match keys.peek() {
        // A PKCS#8 key of another algorithm has the same label.
        Some(_) => keys.find_map(|block| parse_private(&block.der)).ok_or_else(|| match is_pkcs8(&blocks) {
            true => Found::OtherAlgorithm,
            false => Found::Damaged,
        }),
        None => Err(instead_of_private(&blocks)),
    }
}

/// Reads the first RSA public key.
///
/// # Errors
/// [`Found`] if there is something else.
pub fn public_key(bytes: &[u8]) -> Result<PublicKey, Found> {
    let blocks = read(bytes)?;
    let found = |block: &Block| (block.kind == Kind::PublicKey).then(|| parse_public(&block.der));
    match blocks.iter().find_map(found) {
        Some(key) => key.ok_or(Found::OtherAlgorithm),
        None => Err(first(&blocks)),
    }
}

/// Reads every certificate, in DER: one at least.
///
/// # Errors
/// [`Found`] if none exists, or one of them is damaged.
pub fn certificates(bytes: &[u8]) -> Result<Vec<Zeroizing<Vec<u8>>>, Found> {
    let blocks = read(bytes)?;
    let instead = first(&blocks);
    let ders: Vec<_> =
        blocks.into_iter().filter(|block| block.kind == Kind::Certificate).map(|block| block.der).collect();
    match ders.iter().all(|der| x509_parser::parse_x509_certificate(der).is_ok()) {
        true if ders.is_empty() => Err(instead),
        true => Ok(ders),
        false => Err(Found::Damaged),
    }
}

/// The first private key of any algorithm, in plain PEM.
///
/// # Errors
/// [`Found`] if there is something else.
pub fn any_private_key(bytes: &[u8]) -> Result<Zeroizing<String>, Found> {
    let blocks = read(bytes)?;
    let key = blocks
        .iter()
        .find(|block| matches!(block.kind, Kind::PrivateKey | Kind::Other(Found::OtherAlgorithm)));
    let block = key.ok_or_else(|| instead_of_private(&blocks))?;
    let label = match content(&block.der) {
        Some([2, 1, 0, 0x30, ..] | [2, 1, 1, 0x30, ..]) => "PRIVATE KEY",
        Some([2, 1, 0, ..]) => "RSA PRIVATE KEY",
        Some([2, 1, 1, ..]) => "EC PRIVATE KEY",
        _ => return Err(Found::Damaged),
    };
    Ok(Zeroizing::new(plain(label, &block.der)))
}

/// Every certificate, in plain PEM.
///
/// # Errors
/// As of [`certificates`].
pub fn certificates_in_plain_pem(bytes: &[u8]) -> Result<String, Found> {
    Ok(certificates(bytes)?.iter().map(|der| plain("CERTIFICATE", der)).collect())
}

fn plain(label: &str, der: &[u8]) -> String {
    let base64 = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let lines = base64.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line)));
    format!("{BEGIN}{label}{DASHES}\n{}{END}{label}{DASHES}\n", lines.collect::<String>())
}

/// A text other than PEM, such as a token: without a byte order mark.
///
/// # Errors
/// [`Found::Utf16`] and [`Found::Binary`] if the bytes are not UTF-8.
pub fn text(bytes: &[u8]) -> Result<&str, Found> {
    if is_utf16(bytes) {
        return Err(Found::Utf16);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Found::Binary)?;
    Ok(text.trim_start_matches('\u{feff}'))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    PrivateKey,
    PublicKey,
    Certificate,
    Other(Found),
}

struct Block {
    kind: Kind,
    der: Zeroizing<Vec<u8>>,
}

/// The kind of a content that is not the expected one, by its first conclusive block.
fn first(blocks: &[Block]) -> Found {
    let named = |block: &Block| match block.kind {
        Kind::PrivateKey => Found::PrivateKey,
        Kind::PublicKey => Found::PublicKey,
        Kind::Certificate => Found::Certificate,
        Kind::Other(found) => found,
    };
    blocks.first().map_or(Found::OtherText, named)
}

/// The same if a private key is expected: an unusable one is reported rather than the certificate beside it.
fn instead_of_private(blocks: &[Block]) -> Found {
    let unusable = blocks.iter().find_map(|block| match block.kind {
        Kind::Other(found @ (Found::EncryptedKey | Found::OtherAlgorithm)) => Some(found),
        _ => None,
    });
    unusable.unwrap_or_else(|| first(blocks))
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

fn read(bytes: &[u8]) -> Result<Vec<Block>, Found> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Found::Empty);
    }
    let lossy;
    let text = match text(bytes) {
        Ok(text) => text,
        // Names and notes around a block are in whatever encoding their machine has; a block itself is ASCII.
        Err(Found::Binary) if bytes.windows(BEGIN.len()).any(|part| part == BEGIN.as_bytes()) => {
            lossy = Zeroizing::new(String::from_utf8_lossy(bytes).into_owned());
            lossy.as_str()
        }
        Err(Found::Binary) => return Err(name_binary(bytes)),
        Err(found) => return Err(found),
    };
    if text.chars().all(|letter| letter.is_whitespace() || is_hidden(letter)) {
        return Err(Found::Empty);
    }
    let text = Zeroizing::new(match text.contains("\\n") {
        true => text.replace("\\r", "").replace("\\n", "\n"),
        false => text.to_owned(),
    });
    let (mut rest, mut blocks) = (text.as_str(), Vec::new());
    while let Some((_, after)) = rest.split_once(BEGIN) {
        let (label, after) = after.split_once(DASHES).ok_or(Found::Damaged)?;
        let (body, after) = after.split_once(END).ok_or(Found::Damaged)?;
        blocks.extend(block(label.trim(), body)?);
        rest = after;
    }
    if blocks.is_empty() {
        // Some tools accept the Base64 alone, and some documents show it so.
        let der = decode(&text).ok_or(Found::OtherText)?;
        blocks.push(Block { kind: kind_of_der(&der).ok_or(Found::OtherText)?, der });
    }
    Ok(blocks)
}

/// One block; `None` if it only accompanies others.
fn block(label: &str, body: &str) -> Result<Option<Block>, Found> {
    let kind = match label {
        "PRIVATE KEY" | "RSA PRIVATE KEY" => Kind::PrivateKey,
        "PUBLIC KEY" | "RSA PUBLIC KEY" => Kind::PublicKey,
        "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => Kind::Certificate,
        "ENCRYPTED PRIVATE KEY" => Kind::Other(Found::EncryptedKey),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Kind::Other(Found::CertificateRequest),
        label if label.ends_with("PRIVATE KEY") => Kind::Other(Found::OtherAlgorithm),
        // Parameters of elliptic curves, revocation lists.
        _ => return Ok(None),
    };
    // RFC 1421: headers, then a blank line; the traditional form of an encrypted key.
    if body.contains("Proc-Type:") && body.contains("ENCRYPTED") {
        return Ok(Some(Block { kind: Kind::Other(Found::EncryptedKey), der: Zeroizing::default() }));
    }
    let lines = body.lines().filter(|line| !line.contains(':'));
    let der = decode(&Zeroizing::new(lines.collect::<String>())).ok_or(Found::Damaged)?;
    // The label of one form above the content of the other.
    let kind = match (kind, kind_of_der(&der)) {
        (Kind::PrivateKey | Kind::PublicKey | Kind::Certificate, Some(kind)) => kind,
        (kind, _) => kind,
    };
    Ok(Some(Block { kind, der }))
}

/// Base64 with or without its padding, with any blanks and marks of editors.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let is_content =
        |letter: &char| !letter.is_whitespace() && !is_hidden(*letter) && !matches!(letter, '"' | '\'');
    let content = Zeroizing::new(text.chars().filter(is_content).collect::<String>());
    LENIENT.decode(content.as_bytes()).ok().filter(|der| !der.is_empty()).map(Zeroizing::new)
}

fn parse_private(der: &[u8]) -> Option<PrivateKey> {
    PrivateKey::from_pkcs8_der(der).or_else(|_| PrivateKey::from_pkcs1_der(der)).ok()
}

fn parse_public(der: &[u8]) -> Option<PublicKey> {
    let pkcs1 = || PublicKey::from_pkcs1_der(der).ok();
    PublicKey::from_public_key_der(der).ok().or_else(pkcs1)
}

/// Whether the first private key is one of any algorithm: version 0, then a sequence with the algorithm.
fn is_pkcs8(blocks: &[Block]) -> bool {
    let key = blocks.iter().find(|block| block.kind == Kind::PrivateKey);
    key.and_then(|block| content(&block.der)).is_some_and(|content| content.starts_with(&[2, 1, 0, 0x30]))
}

fn kind_of_der(der: &[u8]) -> Option<Kind> {
    if x509_parser::parse_x509_certificate(der).is_ok() {
        return Some(Kind::Certificate);
    }
    if parse_private(der).is_some() {
        return Some(Kind::PrivateKey);
    }
    if parse_public(der).is_some() {
        return Some(Kind::PublicKey);
    }
    match content(der)? {
        // The version of PKCS#12.
        [2, 1, 3, ..] => Some(Kind::Other(Found::Pkcs12)),
        // An encryption scheme of PKCS#5, then the encrypted key.
        inner if begins_with_scheme(inner) => Some(Kind::Other(Found::EncryptedKey)),
        _ => None,
    }
}

/// The content of the outermost sequence.
fn content(der: &[u8]) -> Option<&[u8]> {
    let (tag, length) = (der.first()?, usize::from(*der.get(1)?));
    let length_bytes = length.saturating_sub(0x80);
    (*tag == 0x30 && length_bytes <= 4).then(|| der.get(2 + length_bytes..)).flatten()
}

fn begins_with_scheme(inner: &[u8]) -> bool {
    const PKCS5: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05];
    const PKCS12: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c];
    let oid = content(inner).and_then(|scheme| scheme.get(2..10));
    oid.is_some_and(|oid| oid == PKCS5 || oid == PKCS12)
}

fn is_utf16(bytes: &[u8]) -> bool {
    let marked = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    // Without the mark: every other byte of Latin text is zero.
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    let is_binary = bytes.first() == Some(&0x30) && bytes.get(1).is_some_and(|length| *length >= 0x80);
    marked || !is_binary && bytes.len() >= 2 && zeros * 3 >= bytes.len()
}

fn name_binary(bytes: &[u8]) -> Found {
    match kind_of_der(bytes) {
        Some(Kind::PrivateKey) => Found::DerPrivateKey,
        Some(Kind::PublicKey) => Found::DerPublicKey,
        Some(Kind::Certificate) => Found::DerCertificate,
        Some(Kind::Other(found)) => found,
        None => Found::Binary,
    }
}
