//! The remedy for key material that cannot be used: one command each, which shows no secret and does no harm.

use crate::policy::file_name::{self, Shown, quote};
use crate::wechat::keys::{IN_ENVIRONMENT, KeyFault};
use crate::wechat::pem::{Expected, Found};

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
    SetKey(String),
}

/// The file with the merchant's private key in the archive that the merchant platform gives out.
const PRIVATE_KEY_FILE: &str = "apiclient_key.pem";

impl KeyFault {
    /// The remedy. `variable` is the variable of the environment that may hold the merchant key itself.
    pub fn remedy(&self, variable: &str) -> Remedy {
        use Remedy::{Command, SetKey};
        match self {
            Self::Unreadable { path, .. } => match path.to_str().map(file_name::check) {
                Some(Ok(())) => Command(format!("ls -l {}; id", quote(&Shown(path).to_string()))),
                _ => SetKey("the name of a file".to_owned()),
            },
            Self::Exposed { path, exposure } => Command(exposure.remedy(path)),
            Self::NotText { path, found: Found::Folder } => {
                let path = Shown(path);
                SetKey(format!("{path} is a folder: name a file in it; ls {}", quote(&path.to_string())))
            }
            Self::NotText { path, found: Found::Utf16 } => convert_encoding(&Shown(path).to_string()),
            Self::NotText { path, .. } => Command(format!("ls -l {}", quote(&Shown(path).to_string()))),
            Self::NotAKey { what, expected, found } => fix(what, *expected, *found, variable),
            Self::TooLarge { path, .. } => {
                Command(format!("ls -l {}", quote(&Shown(path).to_string())))
            }
            Self::OwnKey { .. } => SetKey(
                "WeChat Pay's public key (pub_key.pem) or platform certificate, from the merchant platform: account \
                 center, API security"
                    .to_owned(),
            ),
            Self::TooShort { .. } => Command(
                "openssl genrsa -out apiclient_key.new.pem 2048 # then have a certificate made for it on the merchant platform"
                    .to_owned(),
            ),
            Self::Disagreement { what } => {
                Command(format!("openssl rsa -check -noout {}", key_argument(what, variable)))
            }
            Self::NotValidNow { what, .. } => Command(format!("date; openssl x509 -noout -dates -in {}", quote(what))),
            Self::NotAPair { certificate } => Command(format!(
                "openssl x509 -noout -pubkey -in {} # against: openssl pkey -pubout -in KEY",
                quote(&Shown(certificate).to_string())
            )),
            Self::NoMerchantKey => {
                Command("export REDEEMER_WECHAT__MERCHANT_KEY_FILE=/etc/redeemer/apiclient_key.pem".to_owned())
            }
            Self::NoVerificationKey => Command(
                "export REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_…=/etc/redeemer/wechatpay_public_key.pem".to_owned(),
            ),
        }
    }
}

/// The argument that passes a key to a command: from its file, or from the environment if it came from there.
pub fn key_argument(what: &str, variable: &str) -> String {
    if what == IN_ENVIRONMENT { format!("<<< \"${variable}\"") } else { format!("-in {}", quote(what)) }
}

fn fix(what: &str, expected: Expected, found: Found, variable: &str) -> Remedy {
    let from = key_argument(what, variable);
    let convert_der =
        |program: &str, options: &str| convert(what, &format!("openssl {program} {from} {options}"));
    match (found, expected) {
        (Found::Folder, _) => {
            Remedy::SetKey(format!("{what} is a folder: name a file in it; ls {}", quote(what)))
        }
        (Found::Utf16, _) => convert_encoding(what),
        (Found::EncryptedKey, Expected::PrivateKey | Expected::ClientKey) => {
            convert_with_passphrase(what, "passphrase of the key", &[format!("openssl pkey {from}")])
        }
        // A bundle holds the merchant's own key and certificate, and nothing of WeChat Pay's.
        (Found::Pkcs12, Expected::PrivateKey | Expected::ClientKey | Expected::Certificate) => {
            let part = if expected == Expected::Certificate { "-nokeys" } else { "-nocerts -nodes" };
            // OpenSSL 3 reads the bundles of the merchant platform, in the old format, only with `-legacy`.
            let either = ["", "-legacy "].map(|legacy| format!("openssl pkcs12 {from} {legacy}{part}"));
            convert_with_passphrase(what, "password of the bundle (the merchant number)", &either)
        }
        (Found::DerPrivateKey, Expected::PrivateKey | Expected::ClientKey) => {
            convert_der("pkey", "-inform DER")
        }
        (Found::DerPublicKey, Expected::PublicKey) => convert_der("pkey", "-pubin -inform DER"),
        (Found::DerCertificate, Expected::Certificate | Expected::PlatformCertificate) => {
            convert_der("x509", "-inform DER")
        }
        // The number of PEM blocks shows nothing of their content.
        (Found::Damaged | Found::OtherText, _) if what != IN_ENVIRONMENT => {
            let file = quote(what);
            Remedy::Command(format!("grep -c -e '-----BEGIN' {file}; ls -l {file}"))
        }
        (Found::Empty | Found::Binary, _) if what != IN_ENVIRONMENT => {
            Remedy::Command(format!("ls -l {}", quote(what)))
        }
        _ if what == IN_ENVIRONMENT => {
            Remedy::Command(format!("export {variable}=\"$(cat {PRIVATE_KEY_FILE})\""))
        }
        _ => Remedy::SetKey(expected_instead(found, expected)),
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
    convert_with(what, &format!("read -rsp {prompt} PASSPHRASE; export PASSPHRASE; "), &commands)
}

fn convert_with(what: &str, first: &str, commands: &[String]) -> Remedy {
    let in_environment = what == IN_ENVIRONMENT;
    let file = if in_environment { format!("./{PRIVATE_KEY_FILE}") } else { format!("{what}.pem") };
    let (from, to) = (quote(what), quote(&file));
    let commands: Vec<_> = commands.iter().map(|command| format!("{command} -out {to}")).collect();
    let same_readers = match in_environment {
        true => String::new(),
        false => format!(" && chown --reference={from} {to} && chmod --reference={from} {to}"),
    };
    let command = format!("(umask 077; {first}{}{same_readers})", commands.join(" || "));
    Remedy::Convert { command, file }
}

fn convert_encoding(what: &str) -> Remedy {
    let file = format!("{what}.pem");
    let (from, to) = (quote(what), quote(&file));
    let command = format!(
        "(umask 077; iconv -f UTF-16 -t UTF-8 {from} > {to} && chown --reference={from} {to} && chmod --reference={from} \
         {to})"
    );
    Remedy::Convert { command, file }
}
