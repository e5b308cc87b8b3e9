//! `redeemer check`: looks at everything that can be wrong before it is; each fault with its remedy.
//!
//! Changes nothing: the topology is verified, never made, and the one call to the payment API only reads.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde::Serialize;

use crate::app::merchant_key_from_environment;
use crate::broker::management::{self, Alarm, Management, Mismatch, Queue, Unanswered};
use crate::broker::probe::{self, Held, MessageBound, Need, Right};
use crate::broker::topology::{Difference, Mode, Object, Standing, survey};
use crate::broker::{CannotConnect, Generation, Settings};
use crate::cli::{Failure, say};
use crate::config::{Config, ConfigFault, ConfigFaults, MERCHANT_KEY, PREFIX};
use crate::redemption::{
    Appid, AssociatedOrder, BrandId, CouponCode, Openid, OrderNo, OrderNumbers, ProductCouponId, Redemption,
    RequestNo, StockId, Unfit, UseTime,
};
use crate::verdict::{Authenticity, Flaw, Question, Reply, Verdict, judge};
use crate::wechat::api::{CannotStart, Client, Heard, Prepared, SharedKeyring};
use crate::wechat::keys::{KeyFault, Keyring};
use crate::wechat::verify::CLOCK_TOLERANCE_SECONDS;

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
enum Gravity {
    Ok,
    Warning,
    Fault,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    gravity: Gravity,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, gravity: Gravity::Ok, detail: detail.into(), remedy: None }
    }

    fn warning(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, gravity: Gravity::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn fault(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, gravity: Gravity::Fault, detail: detail.into(), remedy: Some(remedy.into()) }
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
            if let Some((client, keyring)) = keys(&config, &origin, &mut findings) {
                download(&config, &client, &keyring, &mut findings).await;
                payment_api(&config, &client, &mut findings).await;
            }
            broker(&config, &mut findings).await;
            Failure::Unexpected
        }
        Err(faults) => {
            findings.extend(faults.0.iter().map(|fault| misconfigured(fault, &origin)));
            Failure::Misconfigured
        }
    };

    for finding in &findings {
        if arguments.json {
            let line = serde_json::to_string(finding).map_err(anyhow::Error::from)?;
            say(&line)?;
        } else {
            let mark = match finding.gravity {
                Gravity::Ok => "ok     ",
                Gravity::Warning => "warning",
                Gravity::Fault => "FAULT  ",
            };
            say(&format!("{mark} {}: {}", finding.what, finding.detail))?;
            if let Some(remedy) = &finding.remedy {
                say(&format!("        remedy: {remedy}"))?;
            }
        }
    }
    match findings.iter().filter(|finding| finding.gravity == Gravity::Fault).count() {
        0 => Ok(()),
        1 => Err(failure("check: 1 fault".to_owned())),
        faults => Err(failure(format!("check: {faults} faults"))),
    }
}

fn misconfigured(fault: &ConfigFault, origin: &Origin) -> Finding {
    let ConfigFault { key, problem } = fault;
    // Where the text as a whole is at fault, the file's name stands for the key; without a file, nothing does.
    let (detail, remedy) = match origin.file {
        Some(file) if file.to_str() == Some(key) => {
            (format!("{key}: {problem}"), format!("ls -l {key}; ${{EDITOR:-vi}} {key}"))
        }
        None if key.is_empty() => (problem.clone(), format!("env | grep -o '^{PREFIX}[^=]*'")),
        _ => (format!("{key}: {problem}"), origin.mending(key, problem)),
    };
    Finding::fault("configuration", detail, remedy)
}

/// Where the configuration comes from, which decides how a key is mended.
struct Origin<'a> {
    file: Option<&'a Path>,
    /// The variables of the environment that set keys.
    variables: Vec<String>,
}

impl<'a> Origin<'a> {
    fn of(file: Option<&'a Path>) -> Self {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let variables = names.filter(|name| name.starts_with(PREFIX) && name.contains("__")).collect();
        Self { file, variables }
    }

    /// The command that mends a key, or several with commas between them, there where it is set.
    fn mending(&self, key: &str, how: &str) -> String {
        let keys: Vec<_> = key.split(", ").collect();
        let names: Vec<_> = keys.iter().map(|key| variable(key)).collect();
        let sets = |set: &&String| {
            let set = set.to_uppercase();
            names.iter().any(|name| {
                set.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("__"))
            })
        };
        let set: Vec<_> = self.variables.iter().filter(sets).cloned().collect();
        let how = how.replace('\n', " ");
        match (set.is_empty(), self.file) {
            (true, Some(file)) => format!("${{EDITOR:-vi}} {} # {key}: {how}", file.display()),
            (false, _) if !keys.iter().all(|key| is_known(key)) => format!("unset {} # {how}", set.join(" ")),
            _ => format!("{} # {how}", exports(&names)),
        }
    }
}

fn exports(names: &[String]) -> String {
    let each: Vec<_> = names.iter().map(|name| format!("export {name}=…")).collect();
    each.join("; ")
}

fn is_known(key: &str) -> bool {
    toml::Value::try_from(Config::default())
        .is_ok_and(|model| key.split('.').try_fold(&model, |section, name| section.get(name)).is_some())
}

fn keys(config: &Config, origin: &Origin, findings: &mut Vec<Finding>) -> Option<(Client, SharedKeyring)> {
    let from_environment = merchant_key_from_environment();
    let from_environment = from_environment.as_ref().map(|key| key.expose_secret());
    let now = Timestamp::now();
    let apiv3 = config.apiv3_key();
    if let Err(fault) = &apiv3 {
        let remedy = format!("chmod 600 {0}; wc -c {0} # 32 characters", config.wechat.apiv3_key_file);
        findings.push(Finding::fault("keys", format!("{}: {}", fault.key, fault.problem), remedy));
    }
    if let Err(fault) = config.console_token() {
        let file = &config.admin.console_token_file;
        let remedy = format!("(umask 077; openssl rand -hex 32 > {file}); chmod 600 {file}");
        findings.push(Finding::fault("keys", format!("{}: {}", fault.key, fault.problem), remedy));
    }
    let keyring = match Keyring::load(&config.key_files(), from_environment, now) {
        Ok(keyring) => keyring,
        Err(faults) => {
            for fault in faults {
                findings.push(Finding::fault("keys", fault.to_string(), mended_by(&fault)));
            }
            return None;
        }
    };
    let bits = keyring.merchant.bits();
    findings.push(Finding::ok("keys", format!("merchant key: RSA, {bits} bits, signs and verifies")));
    let month = SignedDuration::from_hours(30 * 24);
    if let Some(until) = keyring.merchant_expires {
        let next = format!(
            "openssl x509 -noout -serial -dates -in {} # then apply for the next one on the merchant platform, and put \
             key and certificate in place together",
            config.wechat.merchant_certificate_file
        );
        findings.push(match until.duration_since(now) {
            left if left.is_negative() => {
                Finding::fault("keys", format!("the merchant API certificate ended at {until}"), next)
            }
            left if left < month => {
                Finding::warning("keys", format!("the merchant API certificate ends at {until}"), next)
            }
            _ => Finding::ok(
                "keys",
                format!("the merchant API certificate belongs to the key, valid until {until}"),
            ),
        });
    }
    for fault in &keyring.left_out {
        let remedy = origin.mending("wechat.platform_certificates", "take it out");
        findings.push(Finding::warning("keys", fault.to_string(), remedy));
    }
    for (serial, key) in keyring.public.iter() {
        findings.push(match key.expires {
            None => Finding::ok("keys", format!("public key {serial}")),
            Some(until) if until.duration_since(now) < month => Finding::warning(
                "keys",
                format!("platform certificate {serial} expires at {until}"),
                origin.mending(
                    "wechat.platform_certificates",
                    "add the next one, which the merchant platform has for download",
                ),
            ),
            Some(until) => Finding::ok("keys", format!("platform certificate {serial}, valid until {until}")),
        });
    }
    let settings = match config.wechat_settings() {
        Ok(settings) => settings,
        Err(faults) => {
            for fault in faults.0 {
                let detail = format!("{}: {}", fault.key, fault.problem);
                findings.push(Finding::fault("configuration", detail, setting(&fault.key)));
            }
            return None;
        }
    };
    let keyring: SharedKeyring = Arc::new(RwLock::new(Arc::new(keyring)));
    match Client::new(settings, keyring.clone()) {
        Ok(client) => Some((client, keyring)),
        Err(fault) => {
            let remedy = match &fault {
                CannotStart::BaseUrl { key, .. } | CannotStart::Unencrypted { key, .. } => {
                    origin.mending(key, "such as https://api.mch.weixin.qq.com")
                }
                CannotStart::Header(name) => {
                    origin.mending(&format!("wechat.{name}"), "letters, digits and underscores")
                }
                CannotStart::Http(_) => {
                    "openssl version -d # are the system's certificates there?".to_owned()
                }
            };
            findings.push(Finding::fault("configuration", fault.to_string(), remedy));
            None
        }
    }
}

/// The command that sets a key of the configuration.
fn setting(key: &str) -> String {
    format!("export {}=…", variable(key))
}

/// The variable of the environment that sets a key.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// Where nothing but downloaded platform certificates verifies answers, downloads them as the service does: without
/// them every answer would look like a fault.
async fn download(config: &Config, client: &Client, keyring: &SharedKeyring, findings: &mut Vec<Finding>) {
    const WHAT: &str = "keys";
    let without_keys = keyring.read().unwrap_or_else(PoisonError::into_inner).public.is_empty();
    // A key that cannot be read has been told.
    let (true, Ok(Some(key))) = (without_keys, config.apiv3_key()) else { return };
    let now = Timestamp::now();
    match client.certificates(&key, now, rand::random()).await {
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
        Err(fault) => findings.push(Finding::fault(
            WHAT,
            format!("platform certificates could not be downloaded: {fault}"),
            format!(
                "wc -c {} # 32 characters, as set on the merchant platform",
                config.wechat.apiv3_key_file
            ),
        )),
    }
}

/// The command that mends a key, or shows what is wrong with it.
fn mended_by(fault: &KeyFault) -> String {
    match fault {
        KeyFault::Unreadable { path, .. } => format!("ls -l {}; id", path.display()),
        KeyFault::Exposed { path, .. } => format!("chmod 600 {}", path.display()),
        KeyFault::NotAKey { what, .. } => format!("head -n 1 {}", standing_in(what)),
        KeyFault::TooShort { .. } => {
            "openssl genrsa -out apiclient_key.pem 2048 # then have a certificate made for it on the merchant platform"
                .to_owned()
        }
        KeyFault::Disagreement { what } => format!("openssl rsa -check -noout {}", standing_in(what)),
        KeyFault::NotValidNow { what, .. } => format!("date; openssl x509 -noout -dates -in {what}"),
        KeyFault::NotAPair { certificate } => {
            format!("openssl x509 -noout -pubkey -in {} # against openssl pkey -pubout -in KEY", certificate.display())
        }
        KeyFault::NoMerchantKey => {
            "export REDEEMER_WECHAT__MERCHANT_KEY_FILE=/etc/redeemer/apiclient_key.pem".to_owned()
        }
        KeyFault::NoVerificationKey => {
            "export REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_…=/etc/redeemer/wechatpay_public_key.pem".to_owned()
        }
    }
}

/// How a shell gives a key to a command: from its file, or from the environment where it came from there.
fn standing_in(what: &str) -> String {
    if Path::new(what).is_file() { format!("< {what}") } else { format!("<<< \"${MERCHANT_KEY}\"") }
}

/// Asks for a coupon that nobody has: any authentic answer proves both signatures, ours and theirs.
async fn payment_api(config: &Config, client: &Client, findings: &mut Vec<Finding>) {
    let Ok(nobody) = nobody() else { return };
    let prepared = Prepared::new(&nobody);
    let now = Timestamp::now();
    let heard = client.ask(Question::Inquire, &prepared, None, now, rand::random(), 1.0).await;
    let verdict = judge(Question::Inquire, &heard.reply, &nobody);
    findings.push(clock(config, &heard));
    findings.push(call(config, &heard, &verdict));
}

/// From here on the alert `ClockOff` wakes somebody.
const CLOCK_OFF_SECONDS: i64 = 30;

fn clock(config: &Config, heard: &Heard) -> Finding {
    const SET: &str = "timedatectl set-ntp true; timedatectl status";
    let off = |skew| format!("this machine's clock differs from the payment API's by {:#}", round(skew));
    match heard.clock_skew {
        None => Finding::warning("clock", "the payment API did not tell its time", reaching(config)),
        Some(skew) if skew.abs() >= SignedDuration::from_secs(CLOCK_TOLERANCE_SECONDS) => {
            Finding::fault("clock", off(skew), SET)
        }
        Some(skew) if skew.abs() >= SignedDuration::from_secs(CLOCK_OFF_SECONDS) => {
            Finding::warning("clock", off(skew), SET)
        }
        Some(skew) => Finding::ok("clock", format!("{:#} from the payment API's", round(skew))),
    }
}

fn round(skew: SignedDuration) -> SignedDuration {
    SignedDuration::from_secs(skew.as_secs())
}

/// The command that shows whether the payment API is reached: any status is an answer.
fn reaching(config: &Config) -> String {
    format!("curl -sSI {}/v3/certificates", config.wechat.base_url)
}

fn call(config: &Config, heard: &Heard, verdict: &Verdict) -> Finding {
    const WHAT: &str = "payment API";
    let host = &heard.host_name;
    let answer = match &heard.reply {
        Reply::NotSent(_) | Reply::Lost(_) => {
            let why = heard.trouble.as_deref().unwrap_or("no whole answer");
            let remedy = format!("{} # then name resolution, the firewall and the proxy", reaching(config));
            return Finding::fault(WHAT, format!("{host} does not answer: {why}"), remedy);
        }
        Reply::Answered(answer) => answer,
    };
    let status = answer.status;
    match (status, answer.authenticity) {
        (401, _) => Finding::fault(
            WHAT,
            format!("{host} rejects our signature (401)"),
            format!(
                "timedatectl status; openssl pkey -pubout -in {} # against the certificate, wechat.merchant_serial and \
                 wechat.mchid on the merchant platform",
                config.wechat.merchant_key_file
            ),
        ),
        (_, Authenticity::Verified) => {
            let serial = heard.serial.as_deref().unwrap_or_default();
            let signed = format!("{host} answered {status}, signed by {serial}");
            match (status, verdict) {
                (500.., _) => Finding::fault(
                    WHAT,
                    format!("{signed}: it is in trouble"),
                    "redeemer check # again, until it is well; nothing of ours has to be changed",
                ),
                (_, Verdict::NotAccepted(_)) => Finding::warning(
                    WHAT,
                    format!("{signed}: it did not take the call now"),
                    "redeemer check # again in a minute; if it stays, lower pace.calls_per_second",
                ),
                (403, _) => Finding::warning(
                    WHAT,
                    format!("{signed}: not authorised, for the brand 0 that check asks about"),
                    "redeemer parked show --inquire # shows it for a brand of yours; see the merchant platform",
                ),
                _ => Finding::ok(WHAT, signed),
            }
        }
        (_, Authenticity::Unconvincing(Flaw::UnknownSerial)) => Finding::fault(
            WHAT,
            format!("{host} signs with a key that is not held"),
            format!(
                "{} # the serial of a key that is held; or add the key to wechat.public_keys",
                setting("wechat.verification_serial")
            ),
        ),
        (_, Authenticity::Unconvincing(flaw)) => Finding::fault(
            WHAT,
            format!("{host} answered {status}, and its signature does not verify ({})", flaw.as_str()),
            "redeemer check # again, for a probe of the provider looks the same; if it stays, compare \
             wechat.public_keys with the merchant platform",
        ),
        (400..=499, Authenticity::Unsigned) => Finding::warning(
            WHAT,
            format!("{host} accepts our signature, and answered {status} unsigned"),
            "redeemer watch # nothing to mend: the first redemption proves the other direction",
        ),
        (_, Authenticity::Unsigned) => Finding::fault(
            WHAT,
            format!("{host} answered {status} unsigned"),
            format!(
                "{} # does it lead to the payment API, and does no proxy strip headers?",
                reaching(config)
            ),
        ),
    }
}

/// A redemption that is never sent: it only names a coupon to ask for.
fn nobody() -> Result<Redemption, Unfit> {
    Ok(Redemption {
        openid: Openid::parse("oRedeemerCheckNobody00000000")?,
        coupon_code: CouponCode::parse("redeemer-check")?,
        brand_id: BrandId::parse("0")?,
        product_coupon_id: ProductCouponId::parse("0")?,
        stock_id: StockId::parse("0")?,
        appid: Appid::parse("wx0000000000000000")?,
        use_time: UseTime::parse("2025-01-01T00:00:00+08:00")?,
        out_request_no: RequestNo::parse("redeemer-check")?,
        order: AssociatedOrder::Payment(OrderNumbers::Provider(OrderNo::parse("0")?)),
        store_id: None,
        saved_amount: None,
        sequential_coupon_index: None,
    })
}

async fn broker(config: &Config, findings: &mut Vec<Finding>) {
    const WHAT: &str = "broker";
    let mut settings = match config.broker_settings() {
        Ok(settings) => settings,
        Err(fault) => {
            let detail = format!("{}: {}", fault.key, fault.problem);
            findings.push(Finding::fault(WHAT, detail, shown_file(config, &fault.key)));
            return;
        }
    };
    let mode = settings.mode;
    if let Some(finding) = unknown_host(&settings).await {
        findings.push(finding);
        return;
    }
    // Each object is looked at below, with every difference.
    settings.mode = Mode::Off;
    let greeted = probe::version(&settings).await;
    if let Some(version) = &greeted {
        findings.push(of_version(version));
    }
    let reached = topology(&settings, mode, findings).await;
    if reached {
        // Before anything that a broker in alarm would not answer.
        broker_settings(config, &settings, greeted.is_none(), findings).await;
    }
    if reached && !permissions(&settings, mode, findings).await {
        // A connection would fail for the same reason, and say less.
        return;
    }
    let remedy = match proven(&settings).await {
        Ok(generation) => {
            findings.push(Finding::ok(
                WHAT,
                format!("{} connects and confirms publishes: no alarm", generation.at()),
            ));
            if let Some((consumers, commands)) = generation.census().await {
                let detail = format!("{commands} commands wait, {consumers} consumers");
                findings.push(Finding::ok("queue", detail));
            }
            findings.extend(message_size(&settings).await);
            generation.close().await;
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
async fn unknown_host(settings: &Settings) -> Option<Finding> {
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
async fn message_size(settings: &Settings) -> Option<Finding> {
    const WHAT: &str = "message size";
    let mending = format!(
        "echo 'max_message_size = {}' >> /etc/rabbitmq/rabbitmq.conf # there, then a restart",
        probe::MESSAGE_BYTES_NEEDED
    );
    Some(match probe::message_bound(settings).await {
        Ok(MessageBound::Sound) => Finding::ok(WHAT, "the broker takes 128 KiB and refuses more than 1 MiB"),
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
async fn proven(settings: &Settings) -> Result<Generation, CannotConnect> {
    let generation = Generation::build(settings, 0).await?;
    generation.prove().await?;
    Ok(generation)
}

/// The command that shows the file that a key names; a secret one is closed to others, and not shown.
fn shown_file(config: &Config, key: &str) -> String {
    let broker = &config.broker;
    match key {
        "broker.uri_file" => format!("chmod 600 {0}; ls -l {0}; id", broker.uri_file),
        "broker.client_key_file" => {
            format!("chmod 600 {0}; ls -l {0}; head -n 1 {0}", broker.client_key_file)
        }
        "broker.client_certificate_file" => {
            format!("ls -l {0}; head -n 1 {0}", broker.client_certificate_file)
        }
        "broker.ca_file" => format!("ls -l {0}; head -n 1 {0}", broker.ca_file),
        key => setting(key),
    }
}

/// The first version whose quorum queues dead-letter at least once.
const OLDEST: (u32, u32) = (3, 10);
const UPGRADE: &str =
    "rabbitmqctl version # RabbitMQ 3.10 or later is needed: https://www.rabbitmq.com/docs/upgrade";

fn of_version(version: &str) -> Finding {
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
async fn topology(settings: &Settings, mode: Mode, findings: &mut Vec<Finding>) -> bool {
    const WHAT: &str = "topology";
    let Ok((_, found)) = survey(settings, false).await else { return false };
    let vhost = settings.vhost().unwrap_or_default();
    let mut sound = true;
    for (object, standing) in found {
        match standing {
            Standing::There | Standing::Made | Standing::Unaskable => continue,
            Standing::Missing if mode == Mode::Create => findings.push(Finding::warning(
                WHAT,
                format!("{object} is missing"),
                "redeemer topology apply # or nothing: redeemer run makes it",
            )),
            Standing::Missing | Standing::NotMade(_) => {
                findings.push(Finding::fault(WHAT, format!("{object} is missing"), "redeemer topology apply"))
            }
            Standing::Differs(differences) => {
                for Difference { argument, wanted, found } in differences {
                    let detail = format!("{object}: {argument} is {found}, must be {wanted}");
                    findings.push(Finding::fault(WHAT, detail, making_anew(&object, &vhost)));
                }
            }
            Standing::Unseen(words) if mode == Mode::Create && words.contains("ACCESS_REFUSED") => {
                let detail =
                    format!("the user may not declare {object}, as broker.topology = create wants: {words}");
                findings.push(Finding::fault("permissions", detail, probe::granting(settings, mode)));
            }
            Standing::Unseen(words) => findings.push(Finding::warning(
                WHAT,
                format!("{object} is there; its arguments cannot be compared: {words}"),
                "redeemer topology verify # as a user who may configure it",
            )),
        }
        sound = false;
    }
    if sound {
        findings.push(Finding::ok(WHAT, "every exchange and queue is there with its arguments"));
    }
    true
}

/// What can be done about an object that differs: the broker changes no argument of one that exists. What deletes is
/// left for the operator to run, once nothing can be lost.
fn making_anew(object: &Object, vhost: &str) -> String {
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
async fn permissions(settings: &Settings, mode: Mode, findings: &mut Vec<Finding>) -> bool {
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
            (Held::Yes, _) => continue,
            (Held::No(words), Need::Service) => {
                lacking = true;
                let detail = format!("the user may not {what}: {words}");
                Finding::fault(WHAT, detail, probe::granting(settings, mode))
            }
            (Held::No(_), Need::Console) => {
                let detail =
                    format!("the user may not {what}: the service does not need it, redeemer parked does");
                Finding::warning(
                    WHAT,
                    detail,
                    "redeemer parked list # as a user who may; nothing to do for the service",
                )
            }
            (Held::Unclear(words), _) => {
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
fn held(config: &Config) -> Duration {
    config.retry.in_process_max.0 + config.wechat.total_timeout.0 * 2 + config.retry.settling.0 * 3
}

const SETTINGS: &str = "broker settings";
/// The command that shows it.
const CONSUMER_TIMEOUT: &str = "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'";

/// Policies, alarms, bindings, effective arguments and consumer timeouts: seen through the management API where it is
/// configured, else said not to be seen.
async fn broker_settings(
    config: &Config,
    settings: &Settings,
    tell_version: bool,
    findings: &mut Vec<Finding>,
) {
    let uri = config.broker.management_uri.as_str();
    if uri.is_empty() {
        findings.push(unseen(config));
        return;
    }
    let before = findings.len();
    let looked = match Management::new(uri, settings) {
        Ok(management) => look(&management, config, settings, tell_version, findings).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = looked {
        let remedy = match &fault {
            Unanswered::Forbidden { user, .. } => format!("rabbitmqctl set_user_tags {user} management"),
            Unanswered::Uri(_) | Unanswered::Settings(_) => setting("broker.management_uri"),
            Unanswered::NoAnswer { .. } => {
                "rabbitmq-plugins enable rabbitmq_management # or mend broker.management_uri".to_owned()
            }
        };
        findings.push(Finding::fault(SETTINGS, fault.to_string(), remedy));
        findings.push(unseen(config));
    } else if !findings[before..].iter().any(|finding| finding.gravity == Gravity::Fault) {
        let detail = "no alarm; every queue has its arguments, and no policy takes anything away (the broker's \
                      listing may be some seconds old)";
        findings.push(Finding::ok(SETTINGS, detail));
    }
}

async fn look(
    management: &Management,
    config: &Config,
    settings: &Settings,
    tell_version: bool,
    findings: &mut Vec<Finding>,
) -> Result<(), Unanswered> {
    if management.exposed() {
        findings.push(Finding::warning(
            SETTINGS,
            "broker.management_uri is not encrypted: the password goes over the network as it is",
            format!("{} # https:// instead of http://", setting("broker.management_uri")),
        ));
    }
    if let Some(version) = management.version().await?.filter(|_| tell_version) {
        findings.push(of_version(&version));
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
    let (mut timeout_seen, held) = (false, held(config));
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
                    findings.push(misfit(&object, name, &vhost, &queue, &unfit));
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

fn misfit(object: &Object, name: &str, vhost: &str, queue: &Queue, unfit: &Mismatch) -> Finding {
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
        return Finding::fault("arguments", detail, making_anew(object, vhost));
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
fn unseen(config: &Config) -> Finding {
    let held = held(config);
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
