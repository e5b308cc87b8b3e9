//! TLS to the broker: the trusted CA, our certificate, and the meaning of a failed handshake.
//!
//! The client checks the broker's certificate against the system's CAs and the configured one, and its names against
//! the host of the URI. Both are done by rustls, which speaks TLS 1.2 and 1.3 and nothing older. There is no way to
//! switch either off.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use lapin::ErrorKind;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use rustls::{AlertDescription, CertificateError, Error};

use crate::policy::file_name::Shown;
use crate::wechat::keys::{KeyFault, read_key, read_public};
use crate::wechat::pem::{self, Expected, Found};

/// The certificate files. They are read for each connection, so that replaced ones are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The CA that signed the broker's certificate, beside those of the system.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A file that cannot be used, by its config key.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct BadFile {
    /// The config key.
    pub key: &'static str,
    /// What is wrong.
    pub problem: String,
    /// The same, if it is a fault that has a remedy of its own.
    pub fault: Option<Box<KeyFault>>,
}

impl BadFile {
    fn new(key: &'static str, fault: KeyFault) -> Self {
        Self { key, problem: fault.to_string(), fault: Some(Box::new(fault)) }
    }
}

/// The config keys, as faults name them.
const CA: &str = "broker.ca_file";
const CERTIFICATE: &str = "broker.client_certificate_file";
const KEY: &str = "broker.client_key_file";

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`BadFile`] for the first that cannot be read, holds something else, or is a key that others may read.
    pub fn read(&self) -> Result<OwnedTLSConfig, BadFile> {
        let cert_chain = self.ca.as_deref().map(|path| certificates(CA, path)).transpose()?;
        let identity = match &self.identity {
            None => None,
            Some((certificate, key)) => {
                let pem = certificates(CERTIFICATE, certificate)?.into_bytes();
                let bytes = read_key(key).map_err(|fault| BadFile::new(KEY, fault))?;
                let key_pem = pem::any_private_key(&bytes)
                    .map_err(|found| BadFile::new(KEY, not_a_key(key, Expected::ClientKey, found)))?;
                // The client's own type: its memory is not wiped.
                Some(OwnedIdentity::PKCS8 { pem, key: key_pem.as_bytes().to_vec() })
            }
        };
        Ok(OwnedTLSConfig { identity, cert_chain })
    }
}

/// Every certificate of a file, in the plain form that the client reads.
fn certificates(key: &'static str, path: &Path) -> Result<String, BadFile> {
    let bytes = read_public(path).map_err(|fault| BadFile::new(key, fault))?;
    pem::certificates_in_plain_pem(&bytes)
        .map_err(|found| BadFile::new(key, not_a_key(path, Expected::Certificate, found)))
}

fn not_a_key(path: &Path, expected: Expected, found: Found) -> KeyFault {
    KeyFault::NotAKey { what: Shown(path).to_string(), expected, found }
}

/// What a failed handshake means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsProblem {
    /// The broker's certificate is signed by a CA that is not trusted here.
    UnknownIssuer,
    /// It is for another name.
    OtherName,
    /// It is outside its validity.
    NotValidNow,
    /// It is not accepted for another reason.
    NotAccepted,
    /// The broker requires ours, and none is configured.
    CertificateRequired,
    /// The broker does not accept ours.
    OurCertificate,
    /// Ours and its key are not a pair.
    NotAPair,
    /// The broker has only outdated versions of TLS.
    OldVersion,
    /// The peer does not speak TLS.
    NotTls,
    /// The broker ended the connection at once, and we have shown no certificate.
    EndedWithoutOurs,
    /// The same, although we have shown one.
    EndedWithOurs,
    /// Anything else.
    Other,
}

impl fmt::Display for TlsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownIssuer => {
                "the broker's certificate is signed by no CA that is trusted here: set broker.ca_file to the CA that \
                 signed it"
            }
            Self::OtherName => {
                "the broker's certificate is for another host name: use one of its names in broker.uri, or \
                 have it made for this one"
            }
            Self::NotValidNow => {
                "the broker's certificate is not valid now: check its dates and the clock here"
            }
            Self::NotAccepted => {
                "the broker's certificate is not accepted: check it and broker.ca_file"
            }
            Self::CertificateRequired => {
                "the broker requires a client certificate: set broker.client_certificate_file and broker.client_key_file"
            }
            Self::OurCertificate => {
                "the broker does not accept our certificate: have broker.client_certificate_file signed by a CA that it \
                 trusts"
            }
            Self::NotAPair => {
                "our certificate and its key are not a pair: check broker.client_certificate_file and \
                 broker.client_key_file"
            }
            Self::OldVersion => "the broker supports only outdated TLS versions: enable TLS 1.2 or 1.3",
            Self::NotTls => "the peer does not speak TLS: is the port of broker.uri the one for amqps?",
            Self::EndedWithoutOurs => {
                "the broker ended the connection right after the TLS handshake; if that lasts, it requires a client \
                 certificate: set broker.client_certificate_file and broker.client_key_file"
            }
            Self::EndedWithOurs => {
                "the broker ended the connection right after the TLS handshake; if that lasts, it does not accept our \
                 certificate: have broker.client_certificate_file signed by a CA that it trusts"
            }
            Self::Other => "TLS failed: check broker.uri and broker.ca_file",
        })
    }
}

/// The meaning of a failed handshake; `None` if the failure is not one of TLS. `shown` says whether we have a certificate.
pub fn problem(error: &lapin::Error, shown: bool) -> Option<TlsProblem> {
    let ErrorKind::IOError(error) = error.kind() else { return None };
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return closed_after_handshake(error.kind(), shown);
    };
    Some(match error {
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsProblem::UnknownIssuer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsProblem::OtherName
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => TlsProblem::NotValidNow,
            _ => TlsProblem::NotAccepted,
        },
        Error::AlertReceived(AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure)
            if !shown =>
        {
            TlsProblem::CertificateRequired
        }
        Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure,
        ) => TlsProblem::OurCertificate,
        Error::InconsistentKeys(_) => TlsProblem::NotAPair,
        Error::AlertReceived(AlertDescription::ProtocolVersion) => TlsProblem::OldVersion,
        Error::InvalidMessage(_) => TlsProblem::NotTls,
        _ => TlsProblem::Other,
    })
}

/// In TLS 1.3 our side of the handshake is complete before the broker has checked our certificate, and its alert may be lost
/// in the reset that follows.
fn closed_after_handshake(kind: io::ErrorKind, shown: bool) -> Option<TlsProblem> {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ended = matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
    ended.then_some(if shown { TlsProblem::EndedWithOurs } else { TlsProblem::EndedWithoutOurs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(error: Error, shown: bool) -> String {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        problem(&lapin::Error::from(error), shown).unwrap().to_string()
    }

    #[test]
    fn handshake_failure_names_the_key_that_fixes_it() {
        let check = |error: Error, shown, key: &str| {
            let words = reported(error.clone(), shown);
            assert!(words.contains(key), "{error:?}: {words}");
        };
        check(Error::InvalidCertificate(CertificateError::UnknownIssuer), false, "broker.ca_file");
        check(Error::InvalidCertificate(CertificateError::NotValidForName), false, "host name");
        check(Error::InvalidCertificate(CertificateError::Expired), false, "clock");
        for alert in [AlertDescription::CertificateRequired, AlertDescription::HandshakeFailure] {
            check(Error::AlertReceived(alert), false, "set broker.client_certificate_file");
            check(Error::AlertReceived(alert), true, "does not accept our certificate");
        }
        check(Error::AlertReceived(AlertDescription::UnknownCA), true, "does not accept our certificate");
        let other = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(problem(&lapin::Error::from(other), false), None);
        let ended = || lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(problem(&ended(), false), Some(TlsProblem::EndedWithoutOurs));
        assert_eq!(problem(&ended(), true), Some(TlsProblem::EndedWithOurs));
    }

    #[test]
    fn invalid_certificate_is_reported_by_its_key() {
        let tls = Tls { ca: Some(PathBuf::from("/nowhere/ca.pem")), identity: None };
        assert!(tls.read().unwrap_err().to_string().starts_with("broker.ca_file: cannot read"));
        let key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/documentation_test_key.pem");
        let tls = Tls { ca: Some(PathBuf::from(key)), identity: None };
        assert!(tls.read().unwrap_err().to_string().contains("holds a private key; an X.509 certificate"));
        assert_eq!(Tls::default().read().unwrap(), OwnedTLSConfig::default());
    }
}
