//! The remedy for key material that cannot be used: one command each, which shows no secret and does no harm.

use std::path::Path;

use jiff::Timestamp;

use crate::policy::file_name::{self, Shown, quote};
use crate::wechat::keys::{IN_ENVIRONMENT, KeyFault};
use crate::wechat::pem::{Expected, Found};
use crate::wechat::secret_file::Reader;

/// What fixes a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// A command, complete.
    Command(String),
    /// A command that writes a new file, which is to be configured instead.
    Convert {
        /// Writes the file, with the owner and the mode of the original.
        command: String,
        /// The new file.
        file: String,
    },
    /// Another value if this one is configured.
    SetKey {
        /// Which.
        how: String,
        /// The file that cannot be used, which may be one of several.
        file: Option<String>,
    },
    /// A public key, of which nothing is known.
    AddPublicKey,
}

/// The file with the merchant's private key in the archive that the merchant platform gives out.
const PRIVATE_KEY_FILE: &str = "apiclient_key.pem";

fn set_key(how: impl Into<String>, what: &str) -> Remedy {
    Remedy::SetKey { how: how.into(), file: Some(what.to_owned()) }
}

impl KeyFault {
    /// The remedy. `variable` is the variable of the environment that may hold the merchant key itself.
    pub fn remedy(&self, variable: &str) -> Remedy {
        use Remedy::Command;
        let name = |path: &Path| Shown(path).to_string();
        match self {
            Self::Unreadable { path, source } => match path.to_str().map(file_name::check) {
                Some(Ok(())) => unreadable(&name(path), source),
                _ => set_key("the name of a file", &name(path)),
            },
            Self::Exposed { path, exposure } => Command(exposure.remedy(path)),
            Self::NotText { path, found: Found::Folder } => folder(&name(path)),
            Self::NotText { path, found: Found::Utf16 } => convert_encoding(&name(path)),
            Self::NotText { path, .. } => set_key("a text file, perhaps a new copy of this one", &name(path)),
            Self::NotAKey { what, expected, found } => fix(what, *expected, *found, variable),
            Self::TooLarge { path, .. } => keep_blocks(&name(path)),
            Self::OwnKey { what } => set_key(
                "WeChat Pay's public key (pub_key.pem) or platform certificate, from the merchant platform: account \
                 center, API security",
                what,
            ),
            Self::TooShort { .. } => Command(
                "openssl genrsa -out apiclient_key.new.pem 2048 # then have a certificate made for it on the merchant platform"
                    .to_owned(),
            ),
            Self::Disagreement { what } if what == IN_ENVIRONMENT => read_again(variable),
            Self::Disagreement { what } => set_key("a new copy of the key", what),
            Self::NotValidNow { from, .. } if *from > Timestamp::now() => {
                Command("timedatectl set-ntp true # or the clock of the machine that made the certificate".to_owned())
            }
            Self::NotValidNow { what, .. } => {
                set_key("the next certificate, which the merchant platform has for download", what)
            }
            Self::NotAPair { certificate } => {
                set_key("the certificate (apiclient_cert.pem) that was made for the key", &name(certificate))
            }
            Self::NoMerchantKey => Remedy::SetKey {
                how: format!("the private key, {PRIVATE_KEY_FILE} of the merchant platform's archive"),
                file: None,
            },
            Self::NoVerificationKey => Remedy::AddPublicKey,
        }
    }
}

/// What lets this process read a file: its right name, or a right for its group.
fn unreadable(file: &str, source: &std::io::Error) -> Remedy {
    // What cannot be looked at is behind a folder that is closed.
    let is_closed = source.kind() == std::io::ErrorKind::PermissionDenied && Path::new(file).exists();
    match is_closed {
        true => {
            let group = Reader::current().gid;
            let file = quote(file);
            Remedy::Command(format!("sudo chown :{group} {file}; sudo chmod g+r {file} # {group}: our group"))
        }
        false => set_key(format!("a file that can be read: {source}"), file),
    }
}

fn folder(what: &str) -> Remedy {
    set_key("a file in this folder", what)
}

/// The command that makes the variable hold the key of a file.
fn read_again(variable: &str) -> Remedy {
    Remedy::Command(format!(
        "printf 'file with the merchant key: '; read -r FILE; export {variable}=\"$(cat \"$FILE\")\""
    ))
}

/// The command that writes the key in the environment, in lines, or nothing where a file is read.
fn pipe(what: &str, variable: &str) -> String {
    // Line feeds may be spelled out.
    if what == IN_ENVIRONMENT { format!("printf '%b\\n' \"${variable}\" | ") } else { String::new() }
}

fn fix(what: &str, expected: Expected, found: Found, variable: &str) -> Remedy {
    let is_variable = what == IN_ENVIRONMENT;
    let input = if is_variable { String::new() } else { format!(" -in {}", quote(what)) };
    let openssl = |program: &str| format!("{}openssl {program}{input}", pipe(what, variable));
    let convert_der =
        |program: &str, options: &str| convert(what, &format!("{} {options}", openssl(program)));
    match (found, expected) {
        (Found::Folder, _) => folder(what),
        (Found::Utf16, _) => convert_encoding(what),
        (Found::EncryptedKey, Expected::PrivateKey | Expected::ClientKey) => {
            convert_with_passphrase(what, "passphrase of the key", &[openssl("pkey")])
        }
        // A bundle holds the merchant's own key and certificate, and nothing of WeChat Pay's.
        (Found::Pkcs12, Expected::PrivateKey | Expected::ClientKey | Expected::Certificate) => {
            let part = if expected == Expected::Certificate { "-nokeys" } else { "-nocerts -nodes" };
            // OpenSSL 3 reads the bundles of the merchant platform, in the old format, only with `-legacy`.
            let either = ["", "-legacy "].map(|legacy| format!("{} {legacy}{part}", openssl("pkcs12")));
            convert_with_passphrase(what, "password of the bundle (the merchant number)", &either)
        }
        (Found::DerPrivateKey, Expected::PrivateKey | Expected::ClientKey) => {
            convert_der("pkey", "-inform DER")
        }
        (Found::DerPublicKey, Expected::PublicKey) => convert_der("pkey", "-pubin -inform DER"),
        (Found::DerCertificate, Expected::Certificate | Expected::PlatformCertificate) => {
            convert_der("x509", "-inform DER")
        }
        _ if is_variable => read_again(variable),
        (Found::Damaged | Found::OtherText | Found::Empty | Found::Binary, _) => {
            set_key(format!("a good copy: {}", expected_instead(found, expected)), what)
        }
        _ => set_key(expected_instead(found, expected), what),
    }
}

/// What to configure instead, if no command can convert the key.
fn expected_instead(found: Found, expected: Expected) -> String {
    let meant = match expected {
        Expected::PrivateKey => format!("the private key, {PRIVATE_KEY_FILE} of the merchant platform's archive"),
        Expected::ClientKey => "the private key of broker.client_certificate_file".to_owned(),
        Expected::PublicKey => "WeChat Pay's public key (pub_key.pem), from the merchant platform".to_owned(),
        Expected::PlatformCertificate => {
            "WeChat Pay's platform certificate; its public key (pub_key.pem) goes into wechat.public_keys, under its id"
                .to_owned()
        }
        Expected::Certificate => "the file with the certificate".to_owned(),
    };
    match (found, expected) {
        (Found::Certificate | Found::DerCertificate, Expected::PublicKey) => {
            format!("{meant}; a platform certificate goes into wechat.platform_certificates")
        }
        _ => meant,
    }
}

/// Converts a file by a command, for the same readers.
fn convert(what: &str, command: &str) -> Remedy {
    convert_with(what, "", &[command.to_owned()])
}

/// As [`convert`], by the first of these commands that succeeds, after the shell has read a secret: it is not shown, is no
/// argument of a process, and ends with the shell.
fn convert_with_passphrase(what: &str, secret: &str, commands: &[String]) -> Remedy {
    let prompt = quote(&format!("{secret}: "));
    let commands: Vec<_> =
        commands.iter().map(|command| format!("{command} -passin env:PASSPHRASE")).collect();
    let read = format!("stty -echo; printf {prompt}; read -r PASSPHRASE; stty echo; export PASSPHRASE; ");
    convert_with(what, &read, &commands)
}

fn convert_with(what: &str, first: &str, commands: &[String]) -> Remedy {
    let file = if what == IN_ENVIRONMENT { format!("./{PRIVATE_KEY_FILE}") } else { format!("{what}.pem") };
    let to = quote(&file);
    let commands: Vec<_> = commands.iter().map(|command| format!("{command} -out {to}")).collect();
    let command = format!("(umask 077; {first}{}{})", commands.join(" || "), same_readers(what, &to));
    Remedy::Convert { command, file }
}

/// The commands, behind others, that give a new file owner and mode of the one that it is made of.
fn same_readers(what: &str, to: &str) -> String {
    match what {
        IN_ENVIRONMENT => String::new(),
        file => {
            let from = quote(file);
            format!(" && chown --reference={from} {to} && chmod --reference={from} {to}")
        }
    }
}

/// Each block of PEM once, without the text around: what makes a file of keys or certificates large.
fn keep_blocks(what: &str) -> Remedy {
    let file = format!("{what}.pem");
    let (from, to) = (quote(what), quote(&file));
    let awk = r#"awk '/-----BEGIN/ {sub(/^.*-----BEGIN/, "-----BEGIN"); block = ""} {block = block $0 "\n"} /-----END/ && !seen[block]++ {printf "%s", block}'"#;
    let command = format!("(umask 077; {awk} {from} > {to}{})", same_readers(what, &to));
    Remedy::Convert { command, file }
}

fn convert_encoding(what: &str) -> Remedy {
    let file = format!("{what}.pem");
    let (from, to) = (quote(what), quote(&file));
    let same_readers = same_readers(what, &to);
    let command = format!("(umask 077; iconv -f UTF-16 -t UTF-8 {from} > {to}{same_readers})");
    Remedy::Convert { command, file }
}
