//! The checks of configuration and keys: everything that prevents a start, by the same code as `run`.

use std::sync::{Arc, PoisonError};

use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;

use super::remedies::{LIST_OF_FILES, MERCHANT_SERIAL, Origin, apiv3_key, merchant_serial};
use super::{Finding, Severity, payment_api};
use crate::app::merchant_key_from_environment;
use crate::config::startup::{Inspected, StartFault, serial_not_held};
use crate::config::{Config, ConfigFault, MERCHANT_KEY, PUBLIC_KEY_ID};
use crate::policy::file_name::{Shown, quote};
use crate::wechat::certificates::ApiV3Key;
use crate::wechat::client::{CannotStart, Client, SharedKeyring};
use crate::wechat::keys::{KeyFault, Keyring, KeyringFault};

pub(super) fn misconfigured(fault: &ConfigFault, origin: &Origin) -> Finding {
    let ConfigFault { key, problem, id, remedy } = fault;
    // If the whole text is at fault, the name of the file replaces the key.
    let file = origin.file.map(|file| Shown(file).to_string()).unwrap_or_default();
    let detail = if key.is_empty() { problem.clone() } else { format!("{key}: {problem}") };
    let remedy_command = match remedy {
        Some(remedy) => origin.remedy(remedy, key),
        None if file == *key => origin.correcting_file(id),
        None if key == MERCHANT_SERIAL => merchant_serial(origin),
        None => origin.remedies(key, problem),
    };
    Finding::fault("configuration", detail, remedy_command).with_id(id.clone())
}

/// A fault that prevents a start, with its remedy.
fn start_fault(fault: &StartFault, config: &Config, origin: &Origin) -> Finding {
    match fault {
        StartFault::Config(fault) => {
            let what = match fault.key.as_str() {
                key if key.starts_with("broker.") => "broker",
                "wechat.mchid" | "wechat.merchant_serial" | "admin.listen" | "telemetry.otlp_endpoint" => {
                    "configuration"
                }
                _ => "keys",
            };
            let finding = misconfigured(fault, origin);
            let wechat = &config.wechat;
            let remedy_command = match (fault.id.as_str(), fault.key.as_str()) {
                ("apiv3_key_length", _) => Some(apiv3_key(config)),
                ("broker_uri", _) => Some(origin.asking_uri(config)),
                ("token_too_short", _) => {
                    let file = quote(&config.admin.console_token_file);
                    Some(format!("openssl rand -hex 32 > {file} # its owner and its mode stay"))
                }
                ("serial_not_held", _) => {
                    Some(origin.removing(&fault.key, "a key that is held is asked for"))
                }
                // With a certificate the serial need not be known.
                (_, MERCHANT_SERIAL) if !wechat.merchant_certificate_file.is_empty() => {
                    Some(origin.removing(&fault.key, "it is read from wechat.merchant_certificate_file"))
                }
                (_, MERCHANT_SERIAL) => Some(merchant_serial(origin)),
                _ => None,
            };
            Finding { what, remedy: remedy_command.or(finding.remedy), ..finding }
        }
        StartFault::Key(KeyringFault { key, fault: wrong }) => {
            let fixed = key.as_deref().unwrap_or("wechat.merchant_key_file");
            let remedy = origin.remedy(&wrong.remedy(MERCHANT_KEY), fixed);
            Finding::fault("keys", fault.to_string(), remedy).with_id(wrong.id())
        }
        StartFault::Client(fault) => {
            let remedy = match fault {
                CannotStart::BaseUrl { key } | CannotStart::Unencrypted { key } => {
                    origin.remedies(key, "such as https://api.mch.weixin.qq.com")
                }
                CannotStart::Header(name) => {
                    origin.remedies(&format!("wechat.{name}"), "letters, digits and underscores")
                }
                CannotStart::Http(_) => {
                    "openssl version -d # are the system's certificates there?".to_owned()
                }
            };
            let id = match fault {
                CannotStart::BaseUrl { .. } | CannotStart::Unencrypted { .. } => "config_base_url",
                CannotStart::Header(_) => "config_value",
                CannotStart::Http(_) => "tls_unavailable",
            };
            Finding::fault("configuration", fault.to_string(), remedy).with_id(id)
        }
    }
}

/// The faults that prevent a start, and the state of the keys that could be read.
pub(super) fn keys(config: &Config, origin: &Origin, inspected: &Inspected, findings: &mut Vec<Finding>) {
    findings.extend(inspected.faults.iter().map(|fault| start_fault(fault, config, origin)));
    let Some(keyring) = &inspected.keys else { return };
    let keyring = keyring.read().unwrap_or_else(PoisonError::into_inner).clone();
    let now = Timestamp::now();
    let bits = keyring.merchant.bits();
    findings.push(Finding::ok("keys", format!("merchant key: RSA, {bits} bits, signs and verifies")));
    let month = SignedDuration::from_hours(30 * 24);
    if let Some(until) = keyring.merchant_expires {
        findings.push(merchant_certificate(config, until, now, month));
    }
    for fault in &keyring.left_out {
        let how = "the next certificate, which the merchant platform has for download";
        let remedy = match fault {
            // An empty list says more than one file less.
            KeyFault::NotValidNow { what, .. } if keyring.public.iter().next().is_some() => {
                format!("{} # it is of no use", origin.exchanging(LIST_OF_FILES, what, None))
            }
            _ => origin.remedies(LIST_OF_FILES, how),
        };
        findings.push(Finding::warning("keys", fault.to_string(), remedy).with_id(fault.id()));
    }
    for (serial, key) in keyring.public.iter() {
        findings.push(match key.expires {
            None => Finding::ok("keys", format!("public key {serial}")),
            Some(until) if until.duration_since(now) < month => Finding::warning(
                "keys",
                format!("platform certificate {serial} expires at {until}"),
                origin.remedies(
                    "wechat.platform_certificates",
                    "add the next one, which the merchant platform has for download",
                ),
            )
            .with_id("certificate_expires_soon"),
            Some(until) => Finding::ok("keys", format!("platform certificate {serial}, valid until {until}")),
        });
    }
}

fn merchant_certificate(config: &Config, until: Timestamp, now: Timestamp, month: SignedDuration) -> Finding {
    let next = format!(
        "openssl x509 -noout -serial -dates -in {} # then apply for the next one on the merchant platform, and put key \
         and certificate in place together",
        quote(&config.wechat.merchant_certificate_file)
    );
    match until.duration_since(now) {
        left if left.is_negative() => {
            Finding::fault("keys", format!("the merchant API certificate ended at {until}"), next)
                .with_id("certificate_not_valid_now")
        }
        left if left < month => {
            Finding::warning("keys", format!("the merchant API certificate ends at {until}"), next)
                .with_id("certificate_expires_soon")
        }
        _ => Finding::ok(
            "keys",
            format!("the merchant API certificate belongs to the key, valid until {until}"),
        ),
    }
}

/// Downloads platform certificates as the service does: without them no response might verify, and only a download shows
/// whether the requested serial is held.
pub(super) async fn download(
    config: &Config,
    origin: &Origin<'_>,
    (client, keyring): (&Client, &SharedKeyring),
    key: Option<&ApiV3Key>,
    findings: &mut Vec<Finding>,
) {
    const WHAT: &str = "keys";
    // An unreadable key has been reported.
    let Some(key) = key else { return };
    let now = Timestamp::now();
    let held = keyring.read().unwrap_or_else(PoisonError::into_inner).clone();
    match client.certificates(key, now, rand::random()).await {
        Ok(brought) => {
            for (serial, _) in brought.iter() {
                findings.push(Finding::ok(WHAT, format!("platform certificate {serial}, downloaded")));
            }
            let merchant_key = merchant_key_from_environment();
            let merchant_key = merchant_key.as_ref().map(|key| key.expose_secret());
            // It was read a moment ago; if it no longer can be, the call below reports it.
            if let Ok(mut with) = Keyring::load(&config.key_files(), merchant_key, now) {
                with.public.extend(brought);
                findings.extend(misnamed(config, origin, &with));
                *keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(with);
            }
        }
        Err(fault) => {
            let detail = format!("platform certificates could not be downloaded: {fault}");
            let (id, remedy) = payment_api::download_remedy(&fault, config, origin);
            // With other keys, responses can still be verified.
            let are_others_enough = !held.public.is_empty() && serial_not_held(config, &held).is_none();
            let gravity = if are_others_enough { Severity::Warning } else { Severity::Fault };
            if !held.public.is_empty() {
                findings.extend(misnamed(config, origin, &held));
            }
            findings.push(Finding::new(WHAT, gravity, detail, Some(remedy)).with_id(id));
        }
    }
}

/// The serial that is requested of responses, if it is that of a certificate and is not held now. The id of a public key
/// has been checked before.
fn misnamed(config: &Config, origin: &Origin<'_>, keyring: &Keyring) -> Option<Finding> {
    let is_certificate = !config.wechat.verification_serial.starts_with(PUBLIC_KEY_ID);
    let fault = serial_not_held(config, keyring).filter(|_| is_certificate)?;
    Some(start_fault(&StartFault::Config(fault), config, origin))
}
