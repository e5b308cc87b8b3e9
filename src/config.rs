//! Configuration: the defaults, then a file, then the environment; checked as a whole.
//!
//! `config.toml` in the repository holds every key with its default and says what it does; a test proves that the
//! file and [`Config::default`] are equal. All faults are reported at once, each with the name of its key.

pub mod startup;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

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

/// Environment variables begin with this.
pub const PREFIX: &str = "REDEEMER_";

/// The shortest token of the operator console, in characters. One that cannot be guessed needs no lock-out, which others
/// could abuse.
pub const TOKEN_CHARS_MIN: usize = 32;

/// The environment variable that may hold the merchant's private key itself.
pub const MERCHANT_KEY: &str = "REDEEMER_MERCHANT_KEY";

/// Everything that can be configured. What each key does stands beside it in `config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(
    missing_docs,
    reason = "config.toml documents every key where it stands, and is shipped with the program"
)]
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

/// A time span as people write it: `250ms`, `8s`, `5m`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    fn parse(text: &str) -> Option<Self> {
        let signed: SignedDuration = text.parse().ok()?;
        // The general parser also takes "1 day ago".
        (!signed.is_negative()).then(|| Self(signed.unsigned_abs()))
    }

    fn signed(self) -> SignedDuration {
        SignedDuration::try_from(self.0).unwrap_or(SignedDuration::MAX)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.signed())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("must be a time such as 250ms, 8s, 5m or 2h"))
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The key, with its sections: `broker.prefetch`.
    pub key: String,
    /// What is wrong and what is wanted. Never quotes a secret.
    pub problem: String,
    /// The id of the finding, stable for machines.
    pub id: String,
    /// What fixes the file that the key names, if that is at fault.
    pub remedy: Option<Remedy>,
}

impl ConfigFault {
    /// A value that is not as it must be.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), id: "config_value".to_owned(), remedy: None }
    }

    /// The same under the id of a kind of its own.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// A file that a key names and that cannot be used.
    fn of_file(key: &str, fault: &KeyFault) -> Self {
        let remedy = Some(fault.remedy(MERCHANT_KEY));
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

/// Everything that is wrong with the configuration.
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

/// Reads the configuration: defaults, then the file, then the environment.
///
/// # Errors
/// [`ConfigFaults`] with every fault at once.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigFaults> {
    let text = match file {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            let key = file_name::Shown(path).to_string();
            ConfigFaults(vec![
                ConfigFault::new(key, format!("cannot be read: {error}")).with_id("config_unreadable"),
            ])
        })?,
    };
    let name = file.map_or_else(String::new, |path| file_name::Shown(path).to_string());
    parse(&text, &name, environment)
}

/// Reads the configuration from a text. `name` stands for it in faults.
///
/// # Errors
/// [`ConfigFaults`] with every fault at once.
pub fn parse(
    text: &str,
    name: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigFaults> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        // The general message quotes the line, which may hold a password.
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        let problem = format!("is not TOML at line {line}: {}", error.message());
        ConfigFaults(vec![ConfigFault::new(name, problem).with_id("config_syntax")])
    })?;
    let mut faults = Vec::new();
    let model = Table::try_from(Config::default()).unwrap_or_default();
    for (variable, value) in environment {
        if let Some(place) = variable.strip_prefix(PREFIX)
            && place.contains("__")
        {
            override_by(&mut table, &model, place, value);
        }
    }
    compare(&table, &model, "", &mut faults);
    if !faults.is_empty() {
        return Err(ConfigFaults(faults));
    }
    let config: Config = table
        .try_into()
        .map_err(|error: toml::de::Error| ConfigFaults(vec![ConfigFault::new(name, error.message())]))?;
    config.check(&mut faults);
    if faults.is_empty() { Ok(config) } else { Err(ConfigFaults(faults)) }
}

/// Sets `A__B__KEY` to a value: as it stands if the model has a text, as TOML if it has a number or a list.
fn override_by(table: &mut Table, model: &Table, place: &str, text: String) {
    let mut keys: Vec<String> = place.split("__").map(str::to_lowercase).collect();
    // Serials are the one kind of key that is not lower case.
    if keys.len() == 3 && keys[1] == "public_keys" {
        keys[2] = place.rsplit("__").next().unwrap_or_default().to_owned();
    }
    let Some(last) = keys.pop() else { return };
    let (mut section, mut model) = (table, Some(model));
    for key in keys {
        model = model.and_then(|model| model.get(&key)).and_then(Value::as_table);
        let entry = section.entry(key).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else { return };
        section = inner;
    }
    let wants_toml = model.and_then(|model| model.get(&last)).is_some_and(|value| !value.is_str());
    let value = wants_toml
        .then(|| format!("v = {text}").parse::<Table>().ok()?.remove("v"))
        .flatten()
        .unwrap_or(Value::String(text));
    section.insert(last, value);
}

/// Reports every key that the model does not have, and every value of another type than the model's.
fn compare(table: &Table, model: &Table, path: &str, faults: &mut Vec<ConfigFault>) {
    for (name, value) in table {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let mut fault = |problem: String| faults.push(ConfigFault::new(key.clone(), problem));
        match (model.get(name), value) {
            (None, _) => {
                let problem = "is not a key; see config.toml for all of them";
                faults.push(ConfigFault::new(shown_name(&key), problem).with_id("config_unknown_key"));
            }
            (Some(Value::Table(_)), Value::Table(files)) if key == "wechat.public_keys" => {
                for (serial, file) in files.iter().filter(|(_, file)| !file.is_str()) {
                    fault(format!("{serial} must be a file name in quotes, not {}", file.type_str()));
                }
            }
            (Some(Value::Table(model)), Value::Table(table)) => compare(table, model, &key, faults),
            (Some(Value::Float(_)), Value::Integer(_) | Value::Float(_)) => {}
            (Some(Value::Integer(_)), Value::Integer(number)) if *number < 0 => {
                fault("must not be negative".to_owned());
            }
            (Some(model @ Value::String(span)), Value::String(text)) => {
                if is_span(model) && Span::parse(text).is_none() {
                    fault(format!("must be a time such as {span}"));
                }
            }
            (Some(Value::Array(model)), Value::Array(items)) => {
                let spans = model.iter().any(is_span);
                let fits = |item: &Value| match item.as_str() {
                    Some(text) => !spans || Span::parse(text).is_some(),
                    None => false,
                };
                if !items.iter().all(fits) {
                    let wanted = if spans { "times such as 10s" } else { "texts" };
                    fault(format!("must be a list of {wanted}"));
                }
            }
            (Some(model), value) if model.same_type(value) => {}
            (Some(model), value) => {
                fault(format!("must be {}, not {}", kind(model), kind(value)));
            }
        }
    }
}

/// The name of a key as it may be shown: what stands there may be a secret that was put on the wrong side.
fn shown_name(key: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
    match key.len() <= 64 && key.chars().all(plain) {
        true => key.to_owned(),
        false => "(a name that is not shown)".to_owned(),
    }
}

/// Whether the model's text is a time: no other default looks like one.
fn is_span(model: &Value) -> bool {
    model.as_str().is_some_and(|text| Span::parse(text).is_some())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

impl Config {
    /// What types cannot say: ranges, and what must be set for real work is checked if it is used.
    fn check(&self, faults: &mut Vec<ConfigFault>) {
        let mut wrong = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(ConfigFault::new(key, problem));
            }
        };
        let Self { broker, wechat, concurrency, retry, rate_limit, event, admin, log, telemetry, .. } = self;
        wrong((1..=2_000).contains(&broker.prefetch), "broker.prefetch", "must be 1 to 2000");
        wrong((1..=2_000).contains(&concurrency.commands), "concurrency.commands", "must be 1 to 2000");
        wrong((1..=2_000).contains(&concurrency.per_coupon), "concurrency.per_coupon", "must be 1 to 2000");
        wrong((1..=60).contains(&broker.heartbeat.0.as_secs()), "broker.heartbeat", "must be 1s to 60s");
        let patient = broker.connect_timeout.0 <= Duration::from_secs(20);
        wrong(patient, "broker.connect_timeout", "must be 20s at most");
        // A delivery is held meanwhile, and the broker closes the channel after half an hour.
        let held = retry.in_process_max.0 <= Duration::from_secs(600);
        wrong(held, "retry.in_process_max", "must be 10m at most");
        wrong(mode(&broker.topology).is_some(), "broker.topology", "must be create, verify or off");
        wrong(broker.delivery_limit >= 1, "broker.delivery_limit", "must be 1 or more");
        for (key, span) in [
            ("broker.connect_timeout", broker.connect_timeout),
            ("broker.confirm_timeout", broker.confirm_timeout),
            ("wechat.connect_timeout", wechat.connect_timeout),
            ("wechat.read_timeout", wechat.read_timeout),
            ("wechat.total_timeout", wechat.total_timeout),
            ("wechat.reload_every", wechat.reload_every),
            ("telemetry.otlp_timeout", telemetry.otlp_timeout),
            ("telemetry.otlp_every", telemetry.otlp_every),
        ] {
            let within = (Duration::from_millis(10)..=Duration::from_secs(600)).contains(&span.0);
            wrong(within, key, "must be 10ms to 10m");
        }
        // As above: a delivery is held meanwhile.
        let held =
            (Duration::from_millis(10)..=Duration::from_secs(900)).contains(&event.publish_retry_max.0);
        wrong(held, "event.publish_retry_max", "must be 10ms to 15m");
        let twelve_hours = Duration::from_secs(12 * 3_600);
        let often = (Duration::from_secs(1)..=twelve_hours).contains(&wechat.download_every.0);
        wrong(often, "wechat.download_every", "must be 1s to 12h");
        let reply = (1_024..=16 * 1024 * 1024).contains(&wechat.response_bytes_max);
        wrong(reply, "wechat.response_bytes_max", "must be 1024 to 16777216");
        if let Err(fault) = retry.backoff() {
            wrong(false, "retry.initial, retry.multiplier, retry.jitter, retry.max_interval", &fault);
        }
        wrong(retry.delays.is_sorted_by(|a, b| a.0 < b.0), "retry.delays", "must grow from one to the next");
        wrong(retry.delays.len() <= 32, "retry.delays", "must be 32 at most");
        let waits = retry.delays.iter().all(|delay| (50..=86_400_000).contains(&delay.0.as_millis()));
        wrong(waits, "retry.delays", "must each be 50ms to 24h");
        // How often a query was negative does not travel through a delay queue: both must fit into one stay.
        wrong(
            retry.query_delay.0.saturating_mul(2) <= retry.in_process_max.0,
            "retry.in_process_max",
            "must be twice retry.query_delay or more",
        );
        wrong(retry.attempts_max >= 1, "retry.attempts_max", "must be 1 or more");
        wrong(!retry.deadline.0.is_zero(), "retry.deadline", "must be longer than zero");
        wrong(
            retry.deadline.0 <= retry.deadline_max.0,
            "retry.deadline_max",
            "must not be under retry.deadline",
        );
        let year = Duration::from_secs(366 * 86_400);
        wrong(retry.deadline_max.0 <= year, "retry.deadline_max", "must be a year at most");
        wrong((0.0..=100.0).contains(&retry.budget_ratio), "retry.budget_ratio", "must be 0 to 100");
        wrong(rate_limit.calls_per_second >= 1, "rate_limit.calls_per_second", "must be 1 or more");
        wrong(
            admin.listen.parse::<SocketAddr>().is_ok(),
            "admin.listen",
            "must be an address such as 127.0.0.1:9464",
        );
        wrong(format(&log.format).is_some(), "log.format", "must be plain or json");
        let filter = crate::telemetry::log::check_filter(&log.filter);
        wrong(filter.is_ok(), "log.filter", "must be a filter such as info or redeemer=debug");
        let both = broker.client_certificate_file.is_empty() == broker.client_key_file.is_empty();
        wrong(both, "broker.client_certificate_file, broker.client_key_file", "must be set together");
        let (endpoint, management) = (telemetry.otlp_endpoint.as_str(), broker.management_uri.as_str());
        let plain = web_address(endpoint).is_some_and(|url| {
            url.query().is_none()
                && url.fragment().is_none()
                && url.password().is_none()
                && url.username().is_empty()
        });
        wrong(
            endpoint.is_empty() || plain,
            "telemetry.otlp_endpoint",
            "must be a base URL such as http://127.0.0.1:4318, without user and query",
        );
        wrong(
            management.is_empty() || web_address(management).is_some(),
            "broker.management_uri",
            "must be a URL such as http://127.0.0.1:15672",
        );
        wrong((0.0..=1.0).contains(&telemetry.otlp_sample), "telemetry.otlp_sample", "must be 0 to 1");
        let queue = (1..=100_000).contains(&telemetry.otlp_queue);
        wrong(queue, "telemetry.otlp_queue", "must be 1 to 100000");
        for (key, name) in broker.names.all() {
            let fits = (1..=255).contains(&name.len()) && !name.contains("://") && !name.contains("-----");
            let fits = fits && !name.chars().any(is_hidden);
            wrong(fits, key, "must be a name of 1 to 255 bytes on one line");
        }
        self.check_identity(&mut wrong);
        for (key, value) in self.file_names() {
            if let Err(why) = file_name::check(value) {
                let problem = format!("expects a file name, and {}; {}", why.as_str(), belongs(&key));
                faults.push(ConfigFault::new(key, problem).with_id("config_not_a_file_name"));
            }
        }
    }

    /// Numbers and serials as people copy them: with a prefix lost, a blank too many, or marks that nobody sees.
    fn check_identity(&self, wrong: &mut impl FnMut(bool, &str, &str)) {
        let wechat = &self.wechat;
        for (key, text) in [
            ("wechat.mchid", &wechat.mchid),
            ("wechat.merchant_serial", &wechat.merchant_serial),
            ("wechat.verification_serial", &wechat.verification_serial),
        ] {
            let hidden = text.chars().any(|letter| letter.is_whitespace() || is_hidden(letter));
            wrong(!hidden, key, "holds a blank or an invisible character; type it again");
        }
        for id in wechat.public_keys.keys() {
            if let Err(problem) = check_public_key_id(id) {
                wrong(false, "wechat.public_keys", problem);
            }
        }
        let serial = wechat.verification_serial.as_str();
        let reported = serial.chars().any(|letter| letter.is_whitespace() || is_hidden(letter));
        let known = reported || serial.is_empty() || is_serial(serial) || check_public_key_id(serial).is_ok();
        wrong(
            known,
            "wechat.verification_serial",
            "must be a PUB_KEY_ID_… or the serial of a certificate, in hex",
        );
    }

    /// The files with secrets that are read at start only, by their keys.
    pub fn secret_files(&self) -> Vec<(&'static str, PathBuf)> {
        let Self { broker, wechat, admin, .. } = self;
        let files = [
            ("broker.uri_file", &broker.uri_file),
            ("broker.client_key_file", &broker.client_key_file),
            ("wechat.apiv3_key_file", &wechat.apiv3_key_file),
            ("admin.console_token_file", &admin.console_token_file),
        ];
        let named = files.into_iter().filter(|(_, file)| !file.is_empty());
        named.map(|(key, file)| (key, PathBuf::from(file))).collect()
    }

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

    /// What makes a connection to the broker.
    ///
    /// # Errors
    /// Where the URI's file cannot be read, or is open to others.
    pub fn broker_settings(&self) -> Result<crate::amqp::connection::AmqpSettings, ConfigFault> {
        let broker = &self.broker;
        let text = match broker.uri_file.as_str() {
            "" => broker.uri.clone(),
            file => read_secret(Path::new(file))
                .map_err(|fault| ConfigFault::of_file("broker.uri_file", &fault))?
                .to_string(),
        };
        let key = if broker.uri_file.is_empty() { "broker.uri" } else { "broker.uri_file" };
        if text.trim().is_empty() {
            let problem = "must be a URI such as amqp://user:password@host:5672/%2f: it is empty".to_owned();
            return Err(ConfigFault::new(key, problem));
        }
        for uri in text.split_whitespace() {
            check_uri(uri).map_err(|problem| {
                let problem = format!("must be a URI such as amqp://user:password@host:5672/%2f{problem}");
                ConfigFault::new(key, problem)
            })?;
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

    /// What must exist on the broker.
    pub fn topology(&self) -> Topology {
        let NamesConfig { commands, retry, results, unrouted, parked, dead, instances } =
            self.broker.names.clone();
        Topology {
            names: Names { commands, retry, results, unrouted, parked, dead, instances },
            delays: self.retry.delays.iter().map(|delay| delay.0).collect(),
            delivery_limit: self.broker.delivery_limit,
        }
    }

    /// If the keys are.
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
    /// Where its file cannot be read, is open to others, or holds no such key.
    pub fn apiv3_key(&self) -> Result<Option<ApiV3Key>, ConfigFault> {
        let key = self.apiv3_key_file().map(|file| ApiV3Key::read(&file)).transpose();
        key.map_err(|fault| match fault {
            NoApiV3Key::File(fault) => ConfigFault::of_file("wechat.apiv3_key_file", &fault),
            NoApiV3Key::Length(fault) => {
                ConfigFault::new("wechat.apiv3_key_file", fault.to_string()).with_id("apiv3_key_length")
            }
        })
    }

    /// Where the APIv3 key is, if one is configured.
    pub fn apiv3_key_file(&self) -> Option<PathBuf> {
        let file = &self.wechat.apiv3_key_file;
        (!file.is_empty()).then(|| PathBuf::from(file))
    }

    /// How the payment API is reached.
    ///
    /// # Errors
    /// Everything that must be set and is not.
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

    /// How long and how often a command is worked on.
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

    /// The token of the operator console; nothing if the console is disabled.
    ///
    /// # Errors
    /// Where the token's file cannot be read, is open to others, or holds no token that is long enough.
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

    /// Where spans go; `None` where nobody collects them.
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

/// Where the secret itself goes, if that is what was meant.
fn belongs(key: &str) -> String {
    match key {
        "wechat.merchant_key_file" => format!("the key itself goes into {MERCHANT_KEY}"),
        "broker.uri_file" => format!("the URI itself goes into {PREFIX}BROKER__URI"),
        _ => "put the content into a file, and name that".to_owned(),
    }
}

/// How the ids of WeChat Pay's public keys begin.
const PUBLIC_KEY_ID: &str = "PUB_KEY_ID_";

/// Whether a name is that of a public key: `PUB_KEY_ID_`, then letters, digits and underscores.
///
/// # Errors
/// What is wrong with it, without the name.
fn check_public_key_id(id: &str) -> Result<(), &'static str> {
    let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match id.strip_prefix(PUBLIC_KEY_ID) {
        Some("") => Err("must have names such as PUB_KEY_ID_0116…: one of them ends after the prefix"),
        Some(rest) if rest.len() <= 64 && is_word(rest) => Ok(()),
        Some(_) => {
            Err("must have names of letters, digits and underscores: one of them holds a blank or another \
                        character, perhaps an invisible one")
        }
        None if is_serial(id) && id.bytes().any(|byte| byte.is_ascii_alphabetic()) => Err(
            "one of its names is the serial of a certificate: that file goes into wechat.platform_certificates",
        ),
        None => Err(
            "must have names such as PUB_KEY_ID_0116…, as the merchant platform shows them: one of them lacks \
                     the prefix",
        ),
    }
}

/// Whether a text is a serial in hex: of a merchant API certificate it has 40 digits.
fn is_serial(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
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
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../config.toml");

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        parse(text, "test", environment)
    }

    fn keys(result: Result<Config, ConfigFaults>) -> Vec<String> {
        result.unwrap_err().0.into_iter().map(|fault| fault.key).collect()
    }

    #[test]
    fn the_shipped_file_holds_every_key_with_its_default() {
        assert_eq!(read(SHIPPED, &[]).unwrap(), Config::default());
        fn leaves(table: &Table, path: &str, into: &mut Vec<String>) {
            for (name, value) in table {
                match value {
                    Value::Table(inner) => leaves(inner, &format!("{path}{name}."), into),
                    _ => into.push(format!("{path}{name}")),
                }
            }
        }
        let (mut shipped, mut known) = (Vec::new(), Vec::new());
        leaves(&SHIPPED.parse().unwrap(), "", &mut shipped);
        leaves(&Table::try_from(Config::default()).unwrap(), "", &mut known);
        shipped.sort();
        known.sort();
        assert_eq!(shipped, known);
    }

    #[test]
    fn every_key_of_the_shipped_file_has_a_comment_above_it() {
        let lines: Vec<_> = SHIPPED.lines().collect();
        let bare = lines.windows(2).filter(|pair| {
            let key = pair[1].contains(" = ") && !pair[1].starts_with('#');
            key && (pair[0].is_empty() || pair[0].starts_with('['))
        });
        assert_eq!(bare.count(), 0);
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let config = read(
            "[concurrency]\ncommands = 7\n[broker]\nprefetch = 9",
            &[
                ("REDEEMER_BROKER__URI", "amqp://u:p@h/%2f"),
                ("REDEEMER_CONCURRENCY__COMMANDS", "8"),
                ("REDEEMER_BROKER__NAMES__COMMANDS", "t.commands"),
                ("REDEEMER_RETRY__DELAYS", "[\"1s\", \"2s\"]"),
                ("REDEEMER_WECHAT__MCHID", "1900000109"),
                ("REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_01", "key.pem"),
                ("REDEEMER_MERCHANT_KEY", "not a config key"),
                ("PATH", "/bin"),
            ],
        );
        // A merchant number is all digits, and still a text.
        let config = config.unwrap();
        assert_eq!(config.broker.uri, "amqp://u:p@h/%2f");
        assert_eq!((config.concurrency.commands, config.broker.prefetch), (8, 9));
        assert_eq!(config.topology().names.commands, "t.commands");
        assert_eq!(config.retry.delays, [1, 2].map(Span::seconds));
        assert_eq!(config.wechat.mchid, "1900000109");
        assert_eq!(config.wechat.public_keys["PUB_KEY_ID_01"], Path::new("key.pem"));
    }

    #[test]
    fn all_faults_are_reported_at_once_by_the_name_of_the_key() {
        let text = r#"
            surprise = 1
            [broker]
            prefetch = "many"
            uri = 5
            heartbeat = "soon"
            [broker.names]
            comands = "x"
            [concurrency]
            commands = -1
            [retry]
            delays = ["1s", 2]
            multiplier = 2
        "#;
        let mut found = keys(read(text, &[]));
        found.sort();
        assert_eq!(
            found,
            [
                "broker.heartbeat",
                "broker.names.comands",
                "broker.prefetch",
                "broker.uri",
                "concurrency.commands",
                "retry.delays",
                "surprise",
            ]
        );
        let ranges = "[broker]\nprefetch = 0\ntopology = \"maybe\"\n[retry]\ndelays = [\"2s\", \"1s\"]\njitter = 3.0\n\
             query_delay = \"5s\"\n";
        assert_eq!(
            keys(read(ranges, &[])),
            [
                "broker.prefetch",
                "broker.topology",
                "retry.initial, retry.multiplier, retry.jitter, retry.max_interval",
                "retry.delays",
                "retry.in_process_max",
            ]
        );
    }

    #[test]
    fn a_fault_of_syntax_names_the_line_and_quotes_nothing() {
        let fault = read("[broker]\nuri = \"amqp://u:geheim@h\n", &[]).unwrap_err();
        assert!(fault.to_string().contains("line 2"), "{fault}");
        assert!(!fault.to_string().contains("geheim"), "{fault}");
    }

    #[test]
    fn what_must_be_set_is_reported_by_name() {
        let faults = Config::default().wechat_settings().unwrap_err();
        let keys: Vec<_> = faults.0.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["wechat.mchid", "wechat.merchant_serial"]);
    }
}
