//! `redeemer check`: checks everything that the service needs, and reports each fault with its remedy.
//!
//! Changes nothing: the topology is verified and never created, and the calls to the payment API only read.

mod admin_port;
mod broker;
mod broker_settings;
mod config_file;
mod keys;
pub mod ids;
mod payment_api;
mod remedies;
mod service_user;

use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::app::merchant_key_from_environment;
use crate::cli::check::remedies::Origin;
use crate::cli::{Failure, print};
use crate::config::startup::Inspected;
use crate::config::{Config, ConfigFaults};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print one JSON object per finding.
    #[arg(long)]
    json: bool,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Ok,
    Warning,
    Fault,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    /// Stable for machines.
    id: String,
    what: &'static str,
    gravity: Severity,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn new(what: &'static str, gravity: Severity, detail: String, remedy: Option<String>) -> Self {
        Self { id: what.replace(' ', "_").to_lowercase(), what, gravity, detail, remedy }
    }

    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self::new(what, Severity::Ok, detail.into(), None)
    }

    fn warning(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(what, Severity::Warning, detail.into(), Some(remedy.into()))
    }

    fn fault(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(what, Severity::Fault, detail.into(), Some(remedy.into()))
    }

    fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }
}

/// Runs all checks and reports. `read` is the configuration or its faults, and `file` is its source.
///
/// # Errors
/// [`Failure::Misconfigured`] if the configuration is at fault, so that nothing else can be checked;
/// [`Failure::Unexpected`] if anything else is.
pub async fn run(
    arguments: Arguments,
    file: Option<&Path>,
    read: Result<Config, ConfigFaults>,
) -> Result<(), Failure> {
    let origin = Origin::of(file);
    let mut findings = Vec::new();
    let failure = match read {
        Ok(config) => {
            findings.push(Finding::ok("configuration", "every key is known and in its range"));
            let merchant_key = merchant_key_from_environment();
            let inspected = Inspected::with_address(&config, merchant_key.as_ref());
            keys::keys(&config, &origin, &inspected, &mut findings);
            findings.extend(admin_port::in_use(&config, &origin).await);
            service_user::hidden_files(&config, &origin, file, &mut findings);
            if let (Some(client), Some(keyring)) = (&inspected.client, &inspected.keys) {
                keys::download(
                    &config,
                    &origin,
                    (client, keyring),
                    inspected.apiv3_key.as_ref(),
                    &mut findings,
                )
                .await;
                payment_api::check_calls(&config, &origin, client, &mut findings).await;
            }
            if let Some(settings) = inspected.broker {
                broker::broker(&config, &origin, settings, &mut findings).await;
            }
            Failure::Unexpected
        }
        Err(faults) => {
            findings.extend(faults.0.iter().map(|fault| keys::misconfigured(fault, &origin)));
            Failure::Misconfigured
        }
    };

    print_findings(&findings, arguments.json)?;
    match findings.iter().filter(|finding| finding.gravity == Severity::Fault).count() {
        0 => Ok(()),
        1 => Err(failure("check: 1 fault".to_owned())),
        faults => Err(failure(format!("check: {faults} faults"))),
    }
}

/// Prints each finding, as JSON or as text.
fn print_findings(findings: &[Finding], in_json: bool) -> Result<(), Failure> {
    for finding in findings {
        debug_assert!(
            finding.gravity == Severity::Ok || ids::ALL.contains(&finding.id.as_str()),
            "{finding:?}"
        );
        if in_json {
            let line = serde_json::to_string(finding).map_err(anyhow::Error::from)?;
            print(&line)?;
        } else {
            let mark = match finding.gravity {
                Severity::Ok => "ok     ",
                Severity::Warning => "warning",
                Severity::Fault => "FAULT  ",
            };
            match finding.gravity {
                Severity::Ok => print(&format!("{mark} {}: {}", finding.what, finding.detail))?,
                // The documents list findings by id.
                _ => print(&format!("{mark} {} [{}]: {}", finding.what, finding.id, finding.detail))?,
            }
            if let Some(remedy) = &finding.remedy {
                print(&format!("        remedy: {remedy}"))?;
            }
        }
    }
    Ok(())
}
