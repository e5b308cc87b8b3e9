//! `redeemer check`: looks at everything that can be wrong before it is; each fault with its remedy.
//!
//! Changes nothing: the topology is verified, never made, and the calls to the payment API only read.

mod payment_api;
mod remedies;

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde::Serialize;

use crate::amqp::connection::{AmqpSettings, CannotConnect};
use crate::amqp::management::{self, Alarm, Management, ManagementError, Mismatch, Queue};
use crate::amqp::probe::{self, MessageBound, Need, Permissions, Right};
use crate::amqp::session::Session;
use crate::amqp::topology::{Difference, Mode, Object, ObjectState, inspect};
use crate::app::merchant_key_from_environment;
use crate::cli::check::remedies::{Origin, setting};
use crate::cli::{Failure, print};
use crate::config::startup::{Inspected, StartFault};
use crate::config::{Config, ConfigFault, ConfigFaults, MERCHANT_KEY, PREFIX};
use crate::policy::file_name::Shown;
use crate::wechat::certificates::ApiV3Key;
use crate::wechat::client::{CannotStart, Client, SharedKeyring};
use crate::wechat::keys::Keyring;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print one JSON object per finding.
    #[arg(long)]
    json: bool,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Ok,
    Warning,
    Fault,
}

/// One thing that was looked at.
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
        Self { id: what.replace(' ', "_"), what, gravity, detail, remedy }
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

/// Looks at everything and tells. `read` is what became of the configuration, and `file` is where it was read.
///
/// # Errors
/// [`Failure::Misconfigured`] where the configuration is at fault, so that there is nothing else to look at;
/// [`Failure::Unexpected`] where anything else is.
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
            let looked = Inspected::with_address(&config, merchant_key.as_ref());
            check_keys(&config, &origin, &looked, &mut findings);
            if let (Some(client), Some(keyring)) = (&looked.client, &looked.keys) {
                check_download(&config, &origin, (client, keyring), looked.apiv3_key.as_ref(), &mut findings)
                    .await;
                payment_api::check_calls(&config, &origin, client, &mut findings).await;
            }
            if let Some(settings) = looked.broker {
                check_broker(&config, settings, &mut findings).await;
            }
            Failure::Unexpected
        }
        Err(faults) => {
            findings.extend(faults.0.iter().map(|fault| config_findings(fault, &origin)));
            Failure::Misconfigured
        }
    };

    for finding in &findings {
        if arguments.json {
            let line = serde_json::to_string(finding).map_err(anyhow::Error::from)?;
            print(&line)?;
        } else {
            let mark = match finding.gravity {
                Severity::Ok => "ok     ",
                Severity::Warning => "warning",
                Severity::Fault => "FAULT  ",
            };
            print(&format!("{mark} {}: {}", finding.what, finding.detail))?;
            if let Some(remedy) = &finding.remedy {
                print(&format!("        remedy: {remedy}"))?;
            }
        }
    }
    match findings.iter().filter(|finding| finding.gravity == Severity::Fault).count() {
        0 => Ok(()),
        1 => Err(failure("check: 1 fault".to_owned())),
        faults => Err(failure(format!("check: {faults} faults"))),
    }
}

fn config_findings(fault: &ConfigFault, origin: &Origin) -> Finding {
    let ConfigFault { key, problem, id, remedy } = fault;
    // Where the text as a whole is at fault, the file's name stands for the key; without a file, nothing does.
    let file = origin.file.map(|file| Shown(file).to_string());
    let (detail, mending) = match (file, remedy) {
        (_, Some(remedy)) => (format!("{key}: {problem}"), origin.remedy(remedy, key)),
        (Some(file), None) if file == *key => {
            (format!("{key}: {problem}"), format!("ls -l {key}; ${{EDITOR:-vi}} {key}"))
        }
        (None, None) if key.is_empty() => (problem.clone(), format!("env | grep -o '^{PREFIX}[^=]*'")),
        _ => (format!("{key}: {problem}"), origin.remedies(key, problem)),
    };
    Finding::fault("configuration", detail, mending).with_id(id.clone())
}

/// What keeps the service from starting, with what mends it.
fn start_finding(fault: &StartFault, config: &Config, origin: &Origin) -> Finding {
    match fault {
        StartFault::Config(fault) => {
            let what = match fault.key.as_str() {
                key if key.starts_with("broker.") => "broker",
                "wechat.mchid" | "wechat.merchant_serial" => "configuration",
                _ => "keys",
            };
            let finding = config_findings(fault, origin);
            let mending = match (fault.id.as_str(), fault.key.as_str()) {
                ("apiv3_key_length", _) => {
                    Some(format!("wc -c {} # 32 characters", config.wechat.apiv3_key_file))
                }
                ("token_too_short", _) => {
                    let file = &config.admin.console_token_file;
                    Some(format!("openssl rand -hex 32 > {file} # its owner and its mode stay"))
                }
                ("serial_not_held", _) => {
                    Some(origin.remedies(&fault.key, "leave it out: a key that is held is asked for"))
                }
                _ => None,
            };
            Finding { what, remedy: mending.or(finding.remedy), ..finding }
        }
        StartFault::Key { key, fault: wrong } => {
            let mended = key.as_deref().unwrap_or("wechat.merchant_key_file");
            let remedy = origin.remedy(&wrong.remedy(MERCHANT_KEY), mended);
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
            Finding::fault("configuration", fault.to_string(), remedy)
        }
    }
}

/// What keeps the service from starting, and how the keys stand that could be read.
fn check_keys(config: &Config, origin: &Origin, looked: &Inspected, findings: &mut Vec<Finding>) {
    findings.extend(looked.faults.iter().map(|fault| start_finding(fault, config, origin)));
    let Some(keyring) = &looked.keys else { return };
    let keyring = keyring.read().unwrap_or_else(PoisonError::into_inner).clone();
    let now = Timestamp::now();
    let bits = keyring.merchant.bits();
    findings.push(Finding::ok("keys", format!("merchant key: RSA, {bits} bits, signs and verifies")));
    let month = SignedDuration::from_hours(30 * 24);
    if let Some(until) = keyring.merchant_expires {
        findings.push(check_merchant_certificate(config, until, now, month));
    }
    for fault in &keyring.left_out {
        let remedy = origin.remedies("wechat.platform_certificates", "take it out");
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

fn check_merchant_certificate(
    config: &Config,
    until: Timestamp,
    now: Timestamp,
    month: SignedDuration,
) -> Finding {
    let next = format!(
        "openssl x509 -noout -serial -dates -in {} # then apply for the next one on the merchant platform, and put key \
         and certificate in place together",
        config.wechat.merchant_certificate_file
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

/// Where nothing but downloaded platform certificates verifies answers, downloads them as the service does: without
/// them every answer would look like a fault.
async fn check_download(
    config: &Config,
    origin: &Origin<'_>,
    (client, keyring): (&Client, &SharedKeyring),
    key: Option<&ApiV3Key>,
    findings: &mut Vec<Finding>,
) {
    const WHAT: &str = "keys";
    let without_keys = keyring.read().unwrap_or_else(PoisonError::into_inner).public.is_empty();
    // A key that cannot be read has been told.
    let (true, Some(key)) = (without_keys, key) else { return };
    let now = Timestamp::now();
    match client.certificates(key, now, rand::random()).await {
        Ok(brought) => {
            for (serial, _) in brought.iter() {
                findings.push(Finding::ok(WHAT, format!("platform certificate {serial}, downloaded")));
            }
            let merchant_key = merchant_key_from_environment();
            let merchant_key = merchant_key.as_ref().map(|key| key.expose_secret());
            // It was read a moment ago; where it no longer can be, the call below says what is missing.
            if let Ok(mut with) = Keyring::load(&config.key_files(), merchant_key, now) {
                with.public.extend(brought);
                *keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(with);
            }
        }
        Err(fault) => {
            let detail = format!("platform certificates could not be downloaded: {fault}");
            let (id, remedy) = payment_api::download_remedy(&fault, config, origin);
            findings.push(Finding::fault(WHAT, detail, remedy).with_id(id));
        }
    }
}

async fn check_broker(config: &Config, mut settings: AmqpSettings, findings: &mut Vec<Finding>) {
    const WHAT: &str = "broker";
    let mode = settings.mode;
    if let Some(finding) = unknown_host_finding(&settings).await {
        findings.push(finding);
        return;
    }
    // Each object is looked at below, with every difference.
    settings.mode = Mode::Off;
    let greeted = probe::version(&settings).await;
    if let Some(version) = &greeted {
        findings.push(check_version(version));
    }
    let reached = check_topology(&settings, mode, findings).await;
    if reached {
        // Before anything that a broker in alarm would not answer.
        check_broker_settings(config, &settings, greeted.is_none(), findings).await;
    }
    if reached && !check_permissions(&settings, mode, findings).await {
        // A connection would fail for the same reason, and say less.
        return;
    }
    let remedy = match check_connection(&settings).await {
        Ok(session) => {
            findings.push(Finding::ok(
                WHAT,
                format!("{} connects and confirms publishes: no alarm", session.at()),
            ));
            if let Some((consumers, commands)) = session.consumer_count().await {
                let detail = format!("{commands} commands wait, {consumers} consumers");
                findings.push(Finding::ok("queue", detail));
            }
            findings.extend(check_message_size(&settings).await);
            session.close().await;
            return;
        }
        // What is missing has been told already.
        Err(CannotConnect::Topology { .. }) if reached => return,
        Err(fault @ CannotConnect::Tls { advice, .. }) => {
            findings.push(Finding::fault(WHAT, fault.to_string(), advice));
            return;
        }
        Err(fault) => {
            findings.push(Finding::fault(WHAT, fault.to_string(), ""));
            match fault {
                CannotConnect::Uri(_) => "export REDEEMER_BROKER__URI=amqp://USER:PASSWORD@HOST:5672/%2f",
                CannotConnect::File(_) => "ls -l on the file that the key names; a key: chmod 600",
                CannotConnect::TimedOut { .. } => {
                    "rabbitmq-diagnostics listeners # is the address among them, and reachable from here?"
                }
                CannotConnect::Frames { .. } => {
                    "echo 'frame_max = 131072' >> /etc/rabbitmq/rabbitmq.conf # there, then a restart; no less in broker.uri"
                }
                CannotConnect::NoConfirms { .. } => "rabbitmqctl status; free memory or disk on the broker",
                CannotConnect::MayNotPublish { .. } => {
                    "rabbitmqctl list_permissions; rabbitmqctl list_topic_permissions"
                }
                CannotConnect::Refused { .. }
                | CannotConnect::Lost { .. }
                | CannotConnect::Topology { .. }
                | CannotConnect::Tls { .. } => {
                    "rabbitmqctl status; rabbitmqctl list_permissions # and user, password and virtual host of the URI"
                }
            }
        }
    };
    if let Some(last) = findings.last_mut() {
        last.remedy = Some(remedy.to_owned());
    }
}

/// The longest wait for a name server.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// A node whose name nobody knows: permissions, which are looked at next, would have nothing to do with it.
async fn unknown_host_finding(settings: &AmqpSettings) -> Option<Finding> {
    for (host, port) in settings.hosts().ok()? {
        let looked = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host((host.as_str(), port))).await;
        let problem = match looked {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no name server answered within {LOOKUP_MAX:?}"),
        };
        return Some(Finding::fault(
            "broker",
            format!("the host name {host} cannot be resolved: {problem}"),
            format!("getent hosts '{host}'; cat /etc/resolv.conf # or correct the name in broker.uri"),
        ));
    }
    None
}

/// Whether the broker bounds messages. What the user may not try, the permissions have told.
async fn check_message_size(settings: &AmqpSettings) -> Option<Finding> {
    const WHAT: &str = "message size";
    let mending = format!(
        "echo 'max_message_size = {}' >> /etc/rabbitmq/rabbitmq.conf # there, then a restart",
        probe::MESSAGE_BYTES_NEEDED
    );
    Some(match probe::message_bound(settings).await {
        Ok(MessageBound::Sufficient) => {
            Finding::ok(WHAT, "the broker takes 128 KiB and refuses more than 1 MiB")
        }
        Ok(MessageBound::Excessive) => Finding::warning(
            WHAT,
            "the broker takes messages of more than 1 MiB; a few large ones would fill this service's memory",
            mending,
        ),
        Ok(MessageBound::TooSmall(words)) => {
            Finding::fault(WHAT, format!("the broker refuses a message of 128 KiB: {words}"), mending)
        }
        Ok(MessageBound::Unclear(_)) => return None,
        Err(fault) => Finding::warning(WHAT, fault.to_string(), "redeemer check # once more"),
    })
}

/// Connects as the service does, and proves that confirms come.
async fn check_connection(settings: &AmqpSettings) -> Result<Session, CannotConnect> {
    let session = Session::establish(settings, 0).await?;
    session.confirm_publishing().await?;
    Ok(session)
}

/// The first version whose quorum queues dead-letter at least once.
const OLDEST: (u32, u32) = (3, 10);
const UPGRADE: &str =
    "rabbitmqctl version # RabbitMQ 3.10 or later is needed: https://www.rabbitmq.com/docs/upgrade";

fn check_version(version: &str) -> Finding {
    const WHAT: &str = "broker version";
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => Finding::fault(
            WHAT,
            format!("{version} cannot dead-letter at least once: commands could be lost on the way"),
            UPGRADE,
        ),
        (Some(_), Some(_)) => Finding::ok(WHAT, version),
        _ => Finding::warning(WHAT, format!("{version} is no version of RabbitMQ"), UPGRADE),
    }
}

/// Tells whatever is missing or differs, argument by argument; `mode` is what the service does about it. False where
/// the broker is not reached.
async fn check_topology(settings: &AmqpSettings, mode: Mode, findings: &mut Vec<Finding>) -> bool {
    const WHAT: &str = "topology";
    let Ok((_, found)) = inspect(settings, false).await else { return false };
    let vhost = settings.vhost().unwrap_or_default();
    let (mut sound, all) = (true, found.len());
    let mut missing = Vec::new();
    for (object, standing) in found {
        match standing {
            ObjectState::Present | ObjectState::Created | ObjectState::NotQueryable => continue,
            ObjectState::Missing | ObjectState::NotCreated(_) => missing.push(object.to_string()),
            ObjectState::Differs(differences) => {
                for Difference { argument, wanted, found } in differences {
                    let detail = format!("{object}: {argument} is {found}, must be {wanted}");
                    findings.push(Finding::fault(WHAT, detail, recreate_remedy(&object, &vhost)));
                }
            }
            ObjectState::Unreadable(words) if mode == Mode::Create && words.contains("ACCESS_REFUSED") => {
                let detail =
                    format!("the user may not declare {object}, as broker.topology = create wants: {words}");
                findings.push(Finding::fault("permissions", detail, probe::granting(settings, mode)));
            }
            ObjectState::Unreadable(words) => findings.push(Finding::warning(
                WHAT,
                format!("{object} is there; its arguments cannot be compared: {words}"),
                "redeemer topology verify # as a user who may configure it",
            )),
        }
        sound = false;
    }
    if !missing.is_empty() {
        findings.push(missing_objects_finding(&missing, all, mode));
    }
    if sound {
        findings.push(Finding::ok(WHAT, "every exchange and queue is there with its arguments"));
    }
    true
}

/// One finding however many are missing: they have one cause and one remedy.
fn missing_objects_finding(missing: &[String], all: usize, mode: Mode) -> Finding {
    const WHAT: &str = "topology";
    const NAMED_MAX: usize = 3;
    let mut detail = format!("{} of {all} objects are missing: ", missing.len());
    detail.push_str(&missing.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", "));
    if missing.len() > NAMED_MAX {
        detail.push_str(&format!(" and {} more", missing.len() - NAMED_MAX));
    }
    let finding = match mode {
        Mode::Create => {
            Finding::warning(WHAT, detail, "redeemer topology apply # or nothing: redeemer run makes them")
        }
        Mode::Verify | Mode::Off => Finding::fault(WHAT, detail, "redeemer topology apply"),
    };
    finding.with_id("topology_missing")
}

/// What can be done about an object that differs: the broker changes no argument of one that exists. What deletes is
/// left for the operator to run, once nothing can be lost.
fn recreate_remedy(object: &Object, vhost: &str) -> String {
    let (look, delete) = match object {
        Object::Queue { name, .. } => (
            format!("rabbitmqctl list_queues -p '{vhost}' name messages"),
            format!("when {name} is empty: rabbitmqctl delete_queue -p '{vhost}' '{name}'"),
        ),
        Object::Exchange { name, .. } => (
            format!("rabbitmqctl list_exchanges -p '{vhost}' name type arguments"),
            format!("delete exchange {name} on the management page"),
        ),
        Object::Binding { .. } => return "redeemer topology apply".to_owned(),
    };
    format!("{look} # stop the service; {delete}; redeemer topology apply; or configure what it has")
}

/// Tells what the user may not do. False where anything that the service needs is among it.
async fn check_permissions(settings: &AmqpSettings, mode: Mode, findings: &mut Vec<Finding>) -> bool {
    const WHAT: &str = "permissions";
    let rights = match probe::rights(settings).await {
        Ok(rights) => rights,
        Err(fault) => {
            findings.push(Finding::warning(WHAT, fault.to_string(), "redeemer check # once more"));
            return true;
        }
    };
    let (mut sound, mut lacking) = (true, false);
    for (right, need, held) in rights {
        let what = match right {
            Right::Write { exchange, .. } if exchange.is_empty() => "publish to amq.default".to_owned(),
            Right::Write { exchange, .. } => format!("publish to {exchange}"),
            Right::Read(queue) => format!("consume {queue}"),
        };
        findings.push(match (held, need) {
            (Permissions::Granted, _) => continue,
            (Permissions::Missing(words), Need::Service) => {
                lacking = true;
                let detail = format!("the user may not {what}: {words}");
                Finding::fault(WHAT, detail, probe::granting(settings, mode))
            }
            (Permissions::Missing(_), Need::Console) => {
                let detail =
                    format!("the user may not {what}: the service does not need it, redeemer parked does");
                Finding::warning(
                    WHAT,
                    detail,
                    "redeemer parked list # as a user who may; nothing to do for the service",
                )
            }
            (Permissions::Unclear(words), _) => {
                let detail = format!("whether the user may {what} could not be found out: {words}");
                Finding::warning(WHAT, detail, "redeemer check # once more")
            }
        });
        sound = false;
    }
    if sound {
        findings.push(Finding::ok(WHAT, "the user may consume and publish whatever it takes"));
    }
    !lacking
}

/// The longest that a command is usually held without an acknowledgement.
fn longest_held(config: &Config) -> Duration {
    config.retry.in_process_max.0 + config.wechat.total_timeout.0 * 2 + config.retry.query_delay.0 * 3
}

const SETTINGS: &str = "broker settings";
/// The command that shows it.
const CONSUMER_TIMEOUT: &str = "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'";

/// Policies, alarms, bindings, effective arguments and consumer timeouts: seen through the management API where it is
/// configured, else said not to be seen.
async fn check_broker_settings(
    config: &Config,
    settings: &AmqpSettings,
    tell_version: bool,
    findings: &mut Vec<Finding>,
) {
    let uri = config.broker.management_uri.as_str();
    if uri.is_empty() {
        findings.push(not_visible_finding(config));
        return;
    }
    let before = findings.len();
    let looked = match Management::new(uri, settings) {
        Ok(management) => {
            check_through_management(&management, config, settings, tell_version, findings).await
        }
        Err(fault) => Err(fault),
    };
    if let Err(fault) = looked {
        let remedy = match &fault {
            ManagementError::Forbidden { user, .. } => format!("rabbitmqctl set_user_tags {user} management"),
            ManagementError::Uri(_) | ManagementError::Settings(_) => setting("broker.management_uri"),
            ManagementError::NoResponse { .. } => {
                "rabbitmq-plugins enable rabbitmq_management # or mend broker.management_uri".to_owned()
            }
        };
        findings.push(Finding::fault(SETTINGS, fault.to_string(), remedy));
        findings.push(not_visible_finding(config));
    } else if !findings[before..].iter().any(|finding| finding.gravity == Severity::Fault) {
        let detail = "no alarm; every queue has its arguments, and no policy takes anything away (the broker's \
                      listing may be some seconds old)";
        findings.push(Finding::ok(SETTINGS, detail));
    }
}

async fn check_through_management(
    management: &Management,
    config: &Config,
    settings: &AmqpSettings,
    tell_version: bool,
    findings: &mut Vec<Finding>,
) -> Result<(), ManagementError> {
    if management.exposed() {
        findings.push(Finding::warning(
            SETTINGS,
            "broker.management_uri is not encrypted: the password goes over the network as it is",
            format!("{} # https:// instead of http://", setting("broker.management_uri")),
        ));
    }
    if let Some(version) = management.version().await?.filter(|_| tell_version) {
        findings.push(check_version(&version));
    }
    for Alarm { node, resource } in management.alarms().await? {
        let remedy = match resource.as_str() {
            "memory" => format!("rabbitmq-diagnostics -n {node} memory_breakdown"),
            _ => format!("rabbitmq-diagnostics -n {node} status # free disk space there"),
        };
        let detail = format!("{resource} alarm on {node}: nobody can publish until it is over");
        findings.push(Finding::fault("alarm", detail, remedy));
    }
    let vhost = settings.vhost()?;
    let (mut timeout_seen, held) = (false, longest_held(config));
    for object in settings.topology.plan() {
        match &object {
            Object::Exchange { .. } => {}
            Object::Binding { exchange, queue, routing_key } => {
                // What is not there has been told.
                let there = management.queue(queue).await?.is_some();
                if there && !management.is_bound(exchange, queue, routing_key).await? {
                    let detail = format!("{object} is missing: what is published there goes nowhere");
                    findings.push(Finding::fault("topology", detail, "redeemer topology apply"));
                }
            }
            Object::Queue { name, .. } => {
                let Some(queue) = management.queue(name).await? else { continue };
                timeout_seen |= queue.consumer_details.iter().any(|one| one.consumer_timeout.is_some());
                for unfit in management::unfit(&object, &queue, held) {
                    findings.push(limit_mismatch(&object, name, &vhost, &queue, &unfit));
                }
            }
        }
    }
    if !timeout_seen {
        findings.push(Finding::warning(
            "consumer timeout",
            format!(
                "not visible from here: the broker's consumer_timeout must be well over {held:?}, the longest that a \
                 command is usually held"
            ),
            CONSUMER_TIMEOUT,
        ));
    }
    Ok(())
}

fn limit_mismatch(object: &Object, name: &str, vhost: &str, queue: &Queue, unfit: &Mismatch) -> Finding {
    let Mismatch { key, found, wanted, by_policy } = unfit;
    if key == "consumer_timeout" {
        return Finding::fault(
            "consumer timeout",
            format!("queue {name}: the broker takes a command back after {found} ms, must be {wanted}"),
            "rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, 1800000).' # and for its next start: \
             consumer_timeout = 1800000 in rabbitmq.conf",
        );
    }
    if !by_policy {
        let detail = format!("queue {name}: {key} is {found}, must be {wanted}");
        return Finding::fault("arguments", detail, recreate_remedy(object, vhost));
    }
    let (policy, operator) = (queue.policy.as_deref(), queue.operator_policy.as_deref());
    let named: Vec<_> = policy.into_iter().chain(operator).collect();
    let clears = policy.map(|policy| format!("rabbitmqctl clear_policy -p {vhost} {policy}"));
    let clears_operators =
        operator.map(|policy| format!("rabbitmqctl clear_operator_policy -p {vhost} {policy}"));
    let remedies: Vec<_> = clears.into_iter().chain(clears_operators).collect();
    Finding::fault(
        "policy",
        format!("queue {name}: policy {} sets {key} to {found}, must be {wanted}", named.join(" with ")),
        format!(
            "{} # or let it leave out {key}; the broker lists a policy some seconds after it was set or cleared",
            remedies.join("; ")
        ),
    )
}

/// What no client is told over AMQP: for the operator to compare.
fn not_visible_finding(config: &Config) -> Finding {
    let held = longest_held(config);
    let detail = format!(
        "not visible from here without broker.management_uri: a consumer_timeout of the broker must be well over \
         {held:?}, the longest that a command is usually held; no policy may override a queue; no alarm; every binding"
    );
    let remedy = format!(
        "{CONSUMER_TIMEOUT}; rabbitmqctl list_queues name policy effective_policy_definition; \
         rabbitmq-diagnostics alarms; rabbitmqctl list_bindings # or: {}",
        setting("broker.management_uri")
    );
    Finding::warning(SETTINGS, detail, remedy)
}
