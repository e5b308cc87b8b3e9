//! Configuration: the defaults, then a file, then the environment, validated as a whole.
//!
//! `config.toml` in the repository documents every key with its default; a test compares the file with
//! [`Config::default`]. All faults are reported at once, each with the name of its key.

mod load;
mod span;
pub mod startup;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::amqp::connection::check_uri;
use crate::amqp::management::web_address;
use crate::amqp::tls::{BadFile, Tls};
use crate::amqp::topology::{Mode, Names, Topology};
use crate::policy::attempt::Limits;
use crate::policy::backoff::Backoff;
use crate::policy::file_name;
use crate::telemetry::log::Format;
use crate::telemetry::spans;
use crate::telemetry::untrusted::is_hidden;
use crate::wechat::certificates::{ApiV3Key, NoApiV3Key};
use crate::wechat::key_remedy::Remedy;
use crate::wechat::keys::{KeyFault, KeyFiles, read_secret};
use crate::wechat::sign::Merchant;
use crate::wire::retry_message::DeadlineLimits;

pub use load::{NAME_NOT_SHOWN, load, parse, shown_name};
pub use span::Span;
use validate::is_serial;
pub use validate::{PUBLIC_KEY_ID, check_public_key_id};

/// The table of WeChat Pay's public keys: ids and files.
pub const PUBLIC_KEYS: &str = "wechat.public_keys";

/// The prefix of environment variables.
pub const PREFIX: &str = "REDEEMER_";

/// The shortest token of the operator console, in characters. One that cannot be guessed needs no lock-out, which others
/// could abuse.
pub const TOKEN_CHARS_MIN: usize = 32;

/// The environment variable that may hold the merchant's private key itself.
pub const MERCHANT_KEY: &str = "REDEEMER_MERCHANT_KEY";

/// The configuration. `config.toml` documents each key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "config.toml documents every key, and is shipped with the program")]
pub struct Config {
    pub broker: BrokerConfig,
    pub wechat: WechatConfig,
    pub concurrency: ConcurrencyConfig,
    pub retry: RetryConfig,
    pub rate_limit: RateLimitConfig,
    pub event: EventConfig,
    pub admin: AdminConfig,
    pub log: LogConfig,
    pub telemetry: TelemetryConfig,
    pub shutdown: ShutdownConfig,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs, reason = "see Config")]
        pub struct $name { $(pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

section! {
    /// `[broker]`
    BrokerConfig {
        uri: String = "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned(),
        uri_file: String = String::new(),
        connect_timeout: Span = Span::seconds(5),
        confirm_timeout: Span = Span::seconds(30),
        heartbeat: Span = Span::seconds(10),
        prefetch: u16 = 200,
        topology: String = "create".to_owned(),
        delivery_limit: u32 = 20,
        ca_file: String = String::new(),
        client_certificate_file: String = String::new(),
        client_key_file: String = String::new(),
        management_uri: String = String::new(),
        names: NamesConfig = NamesConfig::default(),
    }
}
section! {
    /// `[broker.names]`
    NamesConfig {
        commands: String = Names::default().commands,
        retry: String = Names::default().retry,
        results: String = Names::default().results,
        unrouted: String = Names::default().unrouted,
        parked: String = Names::default().parked,
        dead: String = Names::default().dead,
        instances: String = Names::default().instances,
    }
}
section! {
    /// `[wechat]`
    WechatConfig {
        base_url: String = "https://api.mch.weixin.qq.com".to_owned(),
        backup_base_url: String = "https://api2.mch.weixin.qq.com".to_owned(),
        mchid: String = String::new(),
        merchant_serial: String = String::new(),
        merchant_key_file: String = String::new(),
        merchant_certificate_file: String = String::new(),
        verification_serial: String = String::new(),
        platform_certificates: Vec<PathBuf> = Vec::new(),
        apiv3_key_file: String = String::new(),
        download_every: Span = Span::seconds(36_000),
        reload_every: Span = Span::seconds(10),
        connect_timeout: Span = Span::seconds(2),
        read_timeout: Span = Span::seconds(10),
        total_timeout: Span = Span::seconds(15),
        response_bytes_max: usize = 262_144,
        public_keys: BTreeMap<String, PathBuf> = BTreeMap::new(),
    }
}
section! {
    /// `[concurrency]`
    ConcurrencyConfig {
        commands: usize = 100,
        per_coupon: usize = 16,
    }
}
section! {
    /// `[retry]`
    RetryConfig {
        initial: Span = Span::seconds(1),
        multiplier: f64 = 2.0,
        jitter: f64 = 0.2,
        max_interval: Span = Span::seconds(30),
        in_process_max: Span = Span::seconds(8),
        query_delay: Span = Span::seconds(2),
        delays: Vec<Span> = [10, 60, 300, 1_800, 7_200].map(Span::seconds).to_vec(),
        attempts_max: u32 = 1_000,
        deadline: Span = Span::seconds(86_400),
        deadline_max: Span = Span::seconds(604_800),
        budget_ratio: f64 = 0.2,
    }
}
section! {
    /// `[rate_limit]`
    RateLimitConfig { calls_per_second: u32 = 500, }
}
section! {
    /// `[event]`
    EventConfig {
        source: String = "/redeemer".to_owned(),
        publish_retry_max: Span = Span::seconds(300),
    }
}
section! {
    /// `[admin]`
    AdminConfig {
        listen: String = "127.0.0.1:9464".to_owned(),
        console_token_file: String = String::new(),
        hosts: Vec<String> = Vec::new(),
    }
}
section! {
    /// `[log]`
    LogConfig {
        format: String = "plain".to_owned(),
        filter: String = "info,lapin=off".to_owned(),
    }
}
section! {
    /// `[telemetry]`
    TelemetryConfig {
        otlp_endpoint: String = String::new(),
        otlp_sample: f64 = 1.0,
        otlp_timeout: Span = Span::seconds(5),
        otlp_every: Span = Span::seconds(5),
        otlp_queue: usize = 2_048,
    }
}
section! {
    /// `[shutdown]`
    ShutdownConfig { deadline: Span = Span::seconds(25), }
}

/// One fault of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The key, with its sections: `broker.prefetch`.
    pub key: String,
    /// What is wrong and what is expected. It never quotes a secret.
    pub problem: String,
    /// The id of the finding, stable for machines.
    pub id: String,
    /// The remedy for the file that the key names, if the file is at fault.
    pub remedy: Option<Box<Remedy>>,
}

impl ConfigFault {
    /// An invalid value.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), id: "config_value".to_owned(), remedy: None }
    }

    /// Replaces the id of the finding.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// A file that a key names and that cannot be used.
    fn of_file(key: &str, fault: &KeyFault) -> Self {
        let remedy = Some(Box::new(fault.remedy(MERCHANT_KEY)));
        Self { key: key.to_owned(), problem: fault.to_string(), id: fault.id(), remedy }
    }
}

impl From<BadFile> for ConfigFault {
    fn from(BadFile { key, problem, fault }: BadFile) -> Self {
        match fault {
            Some(fault) => Self::of_file(key, &fault),
            None => Self::new(key, problem),
        }
    }
}

/// All faults of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration has faults:")?;
        for ConfigFault { key, problem, .. } in &self.0 {
            write!(f, "\n  {key}: {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}

impl Config {
    /// Every value that names a file, by its key.
    pub fn file_names(&self) -> Vec<(String, &str)> {
        let Self { broker, wechat, admin, .. } = self;
        let single = [
            ("broker.uri_file", &broker.uri_file),
            ("broker.ca_file", &broker.ca_file),
            ("broker.client_certificate_file", &broker.client_certificate_file),
            ("broker.client_key_file", &broker.client_key_file),
            ("wechat.merchant_key_file", &wechat.merchant_key_file),
            ("wechat.merchant_certificate_file", &wechat.merchant_certificate_file),
            ("wechat.apiv3_key_file", &wechat.apiv3_key_file),
            ("admin.console_token_file", &admin.console_token_file),
        ];
        let single = single.into_iter().filter(|(_, value)| !value.is_empty());
        let single = single.map(|(key, value)| (key.to_owned(), value.as_str()));
        let certificates = wechat.platform_certificates.iter();
        let certificates =
            certificates.filter_map(|path| Some(("wechat.platform_certificates".to_owned(), path.to_str()?)));
        let public = wechat.public_keys.iter().filter_map(|(id, path)| {
            let key = if check_public_key_id(id).is_ok() {
                format!("wechat.public_keys.{id}")
            } else {
                "wechat.public_keys".to_owned()
            };
            Some((key, path.to_str()?))
        });
        single.chain(certificates).chain(public).collect()
    }

    /// The settings of the broker.
    ///
    /// # Errors
    /// The URI's file cannot be read, or other users can read it.
    pub fn broker_settings(&self) -> Result<crate::amqp::connection::AmqpSettings, ConfigFault> {
        let broker = &self.broker;
        let text = match broker.uri_file.as_str() {
            "" => broker.uri.clone(),
            file => read_secret(Path::new(file))
                .map_err(|fault| ConfigFault::of_file("broker.uri_file", &fault))?
                .to_string(),
        };
        let key = if broker.uri_file.is_empty() { "broker.uri" } else { "broker.uri_file" };
        let not_a_uri = |why: &str| {
            let problem = format!("must be a URI such as amqp://user:password@host:5672/%2f{why}");
            ConfigFault::new(key, problem).with_id("broker_uri")
        };
        if text.trim().is_empty() {
            return Err(not_a_uri(": it is empty"));
        }
        for uri in text.split_whitespace() {
            check_uri(uri).map_err(not_a_uri)?;
        }
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        let tls = Tls {
            ca: path(&broker.ca_file),
            identity: path(&broker.client_certificate_file).zip(path(&broker.client_key_file)),
        };
        if text.contains("amqps://") {
            tls.read().map_err(ConfigFault::from)?;
        }
        Ok(crate::amqp::connection::AmqpSettings {
            tls,
            uris: text.split_whitespace().map(SecretString::from).collect(),
            connect_timeout: broker.connect_timeout.0,
            confirm_timeout: broker.confirm_timeout.0,
            heartbeat: broker.heartbeat.0,
            topology: self.topology(),
            mode: mode(&broker.topology).unwrap_or(Mode::Verify),
        })
    }

    /// The topology.
    pub fn topology(&self) -> Topology {
        let NamesConfig { commands, retry, results, unrouted, parked, dead, instances } =
            self.broker.names.clone();
        Topology {
            names: Names { commands, retry, results, unrouted, parked, dead, instances },
            delays: self.retry.delays.iter().map(|delay| delay.0).collect(),
            delivery_limit: self.broker.delivery_limit,
        }
    }

    /// The files of the keys.
    pub fn key_files(&self) -> KeyFiles {
        let file = &self.wechat.merchant_key_file;
        KeyFiles {
            merchant_key: (!file.is_empty()).then(|| PathBuf::from(file)),
            merchant_certificate: self.merchant_certificate(),
            public_keys: self.wechat.public_keys.clone(),
            platform_certificates: self.wechat.platform_certificates.clone(),
            downloads: !self.wechat.apiv3_key_file.is_empty(),
        }
    }

    fn merchant_certificate(&self) -> Option<PathBuf> {
        let file = &self.wechat.merchant_certificate_file;
        (!file.is_empty()).then(|| PathBuf::from(file))
    }

    /// The APIv3 key, if one is configured.
    ///
    /// # Errors
    /// Its file cannot be read, other users can read it, or it contains no such key.
    pub fn apiv3_key(&self) -> Result<Option<ApiV3Key>, ConfigFault> {
        let key = self.apiv3_key_file().map(|file| ApiV3Key::read(&file)).transpose();
        key.map_err(|fault| match fault {
            NoApiV3Key::File(fault) => ConfigFault::of_file("wechat.apiv3_key_file", &fault),
            NoApiV3Key::Length(fault) => {
                ConfigFault::new("wechat.apiv3_key_file", fault.to_string()).with_id("apiv3_key_length")
            }
        })
    }

    /// The file of the APIv3 key, if one is configured.
    pub fn apiv3_key_file(&self) -> Option<PathBuf> {
        let file = &self.wechat.apiv3_key_file;
        (!file.is_empty()).then(|| PathBuf::from(file))
    }

    /// The settings of the payment API.
    ///
    /// # Errors
    /// Every required key that is not set.
    pub fn wechat_settings(&self) -> Result<crate::wechat::client::PaymentSettings, ConfigFaults> {
        let wechat = &self.wechat;
        let mut faults = Vec::new();
        let digits =
            (1..=32).contains(&wechat.mchid.len()) && wechat.mchid.bytes().all(|byte| byte.is_ascii_digit());
        let serial = &wechat.merchant_serial;
        let hex = is_serial(serial) && serial.len() == 40;
        let hex = hex || (serial.is_empty() && self.merchant_certificate().is_some());
        for (holds, key, problem) in [
            (digits, "wechat.mchid", "must be the service provider's merchant number, digits only"),
            (
                hex,
                "wechat.merchant_serial",
                "must be the serial of the merchant API certificate: 40 digits in hex",
            ),
        ] {
            if !holds {
                faults.push(ConfigFault::new(key, problem));
            }
        }
        if !faults.is_empty() {
            return Err(ConfigFaults(faults));
        }
        let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(crate::wechat::client::PaymentSettings {
            merchant: Merchant { mchid: wechat.mchid.clone(), serial: wechat.merchant_serial.clone() },
            verification_serial: set(&wechat.verification_serial),
            base_url: wechat.base_url.clone(),
            backup_base_url: set(&wechat.backup_base_url),
            connect_timeout: wechat.connect_timeout.0,
            read_timeout: wechat.read_timeout.0,
            total_timeout: wechat.total_timeout.0,
            response_bytes_max: wechat.response_bytes_max,
        })
    }

    /// Bounds on the time and the attempts of one command.
    pub fn limits(&self) -> Limits {
        Limits {
            // `check` has built it before.
            backoff: self.retry.backoff().unwrap_or_default(),
            in_process_max: self.retry.in_process_max.0,
            query_delay: self.retry.query_delay.0,
            longest_call: self.wechat.total_timeout.0,
            delays: self.retry.delays.iter().map(|delay| delay.0).collect(),
            attempts_max: self.retry.attempts_max,
        }
    }

    /// How far deadlines may lie ahead.
    pub fn deadline_limits(&self) -> DeadlineLimits {
        DeadlineLimits { default: self.retry.deadline.signed(), furthest: self.retry.deadline_max.signed() }
    }

    /// Calls per second of the whole merchant.
    pub fn calls_per_second(&self) -> NonZeroU32 {
        NonZeroU32::new(self.rate_limit.calls_per_second).unwrap_or(NonZeroU32::MIN)
    }

    /// Where the admin port listens.
    pub fn admin_listen(&self) -> SocketAddr {
        // `check` has parsed it before.
        self.admin.listen.parse().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9464)))
    }

    /// The token of the operator console; `None` if the console is disabled.
    ///
    /// # Errors
    /// The token's file cannot be read, other users can read it, or its token is too short.
    pub fn console_token(&self) -> Result<Option<SecretString>, ConfigFault> {
        let file = &self.admin.console_token_file;
        if file.is_empty() {
            return Ok(None);
        }
        const KEY: &str = "admin.console_token_file";
        let token = read_secret(Path::new(file)).map_err(|fault| ConfigFault::of_file(KEY, &fault))?;
        if token.trim().chars().count() < TOKEN_CHARS_MIN {
            let problem = format!("{file} must hold a token of {TOKEN_CHARS_MIN} characters or more");
            return Err(ConfigFault::new(KEY, problem).with_id("token_too_short"));
        }
        Ok(Some(SecretString::from(token.trim())))
    }

    /// The collector of spans, if one is configured.
    pub fn traces(&self) -> Option<spans::TraceSettings> {
        let TelemetryConfig { otlp_endpoint, otlp_sample, otlp_timeout, otlp_every, otlp_queue } =
            &self.telemetry;
        (!otlp_endpoint.is_empty()).then(|| spans::TraceSettings {
            endpoint: otlp_endpoint.clone(),
            sample: *otlp_sample,
            timeout: otlp_timeout.0,
            every: otlp_every.0,
            queue: *otlp_queue,
        })
    }

    /// How log lines are written.
    pub fn log_format(&self) -> Format {
        format(&self.log.format).unwrap_or(Format::Plain)
    }
}

impl NamesConfig {
    fn all(&self) -> [(&'static str, &str); 7] {
        [
            ("broker.names.commands", &self.commands),
            ("broker.names.retry", &self.retry),
            ("broker.names.results", &self.results),
            ("broker.names.unrouted", &self.unrouted),
            ("broker.names.parked", &self.parked),
            ("broker.names.dead", &self.dead),
            ("broker.names.instances", &self.instances),
        ]
    }
}

/// The remedy if a key for a file name has the secret itself as its value.
fn belongs(key: &str) -> String {
    match key {
        "wechat.merchant_key_file" => format!("the key itself goes into {MERCHANT_KEY}"),
        "broker.uri_file" => format!("the URI itself goes into {PREFIX}BROKER__URI"),
        _ => "put the content into a file, and name that".to_owned(),
    }
}

impl RetryConfig {
    fn backoff(&self) -> Result<Backoff, String> {
        Backoff::new(self.initial.0, self.multiplier, self.jitter, self.max_interval.0)
            .map_err(|fault| fault.to_string())
    }
}

fn mode(word: &str) -> Option<Mode> {
    match word {
        "create" => Some(Mode::Create),
        "verify" => Some(Mode::Verify),
        "off" => Some(Mode::Off),
        _ => None,
    }
}

fn format(word: &str) -> Option<Format> {
    match word {
        "plain" => Some(Format::Plain),
        "json" => Some(Format::Json),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
