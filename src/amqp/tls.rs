//! TLS to the broker: the trusted CA, our certificate, and the meaning of a failed handshake.
//!
//! The client checks the broker's certificate against the system's CAs and the configured one, and its names against
//! the host of the URI. Both are done by rustls, which speaks TLS 1.2 and 1.3 and nothing older. There is no way to
//! switch either off.

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

/// The meaning of a failed handshake, and the config key that fixes it; `None` if the failure is not one of TLS. `shown`
/// says whether we have a certificate.
pub fn advice(error: &lapin::Error, shown: bool) -> Option<&'static str> {
    let ErrorKind::IOError(error) = error.kind() else { return None };
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return closed_after_handshake(error.kind(), shown);
    };
    Some(match error {
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the broker's certificate is signed by no CA that is trusted here: set broker.ca_file to the CA that \
                 signed it"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the broker's certificate is for another host name: use one of its names in broker.uri, or \
                 have it made for this one"
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                "the broker's certificate is not valid now: check its dates and the clock here"
            }
            _ => "the broker's certificate is not accepted: check it and broker.ca_file",
        },
        Error::AlertReceived(AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure)
            if !shown =>
        {
            "the broker requires a client certificate: set broker.client_certificate_file and broker.client_key_file"
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
        ) => {
            "the broker does not accept our certificate: have broker.client_certificate_file signed by a CA that it \
             trusts"
        }
        Error::InconsistentKeys(_) => {
            "our certificate and its key are not a pair: check broker.client_certificate_file and \
             broker.client_key_file"
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the broker supports only outdated TLS versions: enable TLS 1.2 or 1.3"
        }
        Error::InvalidMessage(_) => {
            "the peer does not speak TLS: is the port of broker.uri the one for amqps?"
        }
        _ => "TLS failed: check broker.uri and broker.ca_file",
    })
}

/// In TLS 1.3 our side of the handshake is complete before the broker has checked our certificate, and its alert may be lost
/// in the reset that follows.
fn closed_after_handshake(kind: io::ErrorKind, shown: bool) -> Option<&'static str> {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ended = matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
    ended.then_some(match shown {
        false => {
            "the broker ended the connection right after the TLS handshake; if that lasts, it requires a client \
             certificate: set broker.client_certificate_file and broker.client_key_file"
        }
        true => {
            "the broker ended the connection right after the TLS handshake; where that lasts it does not accept our \
             certificate: have broker.client_certificate_file signed by a CA that it trusts"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(error: Error, shown: bool) -> &'static str {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        advice(&lapin::Error::from(error), shown).unwrap()
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
        assert_eq!(advice(&lapin::Error::from(other), false), None);
        let ended = || lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert!(advice(&ended(), false).unwrap().contains("set broker.client_certificate_file"));
        assert!(advice(&ended(), true).unwrap().contains("signed by a CA that it trusts"));
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
