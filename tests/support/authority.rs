//! Certificates for tests of TLS, made by `openssl`.
#![allow(clippy::unwrap_used)] // in the helpers too

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A CA made for one test, and what it signed.
pub(crate) struct Authority {
    /// Where all of it is.
    pub dir: PathBuf,
}

impl Authority {
    /// Makes the folder and the CA.
    pub(crate) fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let authority = Self { dir: dir.to_owned() };
        openssl(
            dir,
            &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test CA"],
            &["-keyout", "ca.key", "-out", "ca.pem"],
        );
        authority
    }

    /// A certificate with its key, for these names.
    pub(crate) fn sign(&self, name: &str, alternatives: &str, usage: &str) {
        let (key, request, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        openssl(
            &self.dir,
            &["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject],
            &["-keyout", &key, "-out", &request],
        );
        let extensions =
            format!("basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\nsubjectAltName={alternatives}\n");
        fs::write(self.dir.join("extensions"), extensions).unwrap();
        openssl(
            &self.dir,
            &["x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"],
            &["-in", &request, "-out", &certificate, "-extfile", "extensions"],
        );
        fs::set_permissions(self.dir.join(&key), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The path of one of its files.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

fn openssl(dir: &Path, first: &[&str], rest: &[&str]) {
    let made = Command::new("openssl").current_dir(dir).args(first).args(rest).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
