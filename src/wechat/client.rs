//! Sends an operation to the payment API and returns the result.
//!
//! One operation is one request: no redirects, no retries, no implicit proxy, every wait bounded. The body of a redemption
//! is written once, when it is prepared, and borrowed by every attempt.

mod call_outcome;
mod prepared;

pub use call_outcome::{CallOutcome, UnverifiedResponse};
pub use prepared::{Prepared, hex};

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, USER_AGENT};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, Response as HttpResponse};

use crate::domain::evidence::Operation;
use crate::policy::classify::{Authenticity, CallResult, NoResponse, NotSent, Response, SignatureFlaw};
use crate::policy::host_choice::{Host, HostChoice};
use crate::telemetry::masking::beginning;
use crate::wechat::certificates::{self, ApiV3Key, NoCertificates};
use crate::wechat::keys::{Keyring, PublicKeys};
use crate::wechat::replay::ReplayGuard;
use crate::wechat::response::{self, Detail};
use crate::wechat::sign::{CannotSign, Merchant, sign};
use crate::wechat::verify::{SERIAL, replay_key, verify};

/// The provider closes connections that were idle for 8 s; a pool must not keep them longer.
const POOL_IDLE: Duration = Duration::from_secs(7);

/// The most memory that is allocated for a body before any of it arrives, in bytes: several times a usual one.
const ALLOCATED_AT_ONCE_MAX: usize = 64 * 1024;

/// The longest `Request-ID` that is kept, in characters: twice a usual one.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// How the payment API is reached.
#[derive(Debug, Clone, PartialEq)]
pub struct PaymentSettings {
    /// Who details.
    pub merchant: Merchant,
    /// The serial of the key that responses must be signed with: sent as `Wechatpay-Serial`. `None`: that of a held key.
    pub verification_serial: Option<String>,
    /// The primary domain, without a path: `https://api.mch.weixin.qq.com`.
    pub base_url: String,
    /// The backup domain, if there is one.
    pub backup_base_url: Option<String>,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait between two parts of a response.
    pub read_timeout: Duration,
    /// The longest duration of a call.
    pub total_timeout: Duration,
    /// The longest response that is read, in bytes.
    pub response_bytes_max: usize,
}

/// Why the client could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CannotStart {
    /// A base URL is invalid.
    #[error("{key} is not a base URL such as https://api.mch.weixin.qq.com")]
    BaseUrl {
        /// The config key. Its value may be a secret that was put there.
        key: &'static str,
    },
    /// Unencrypted beyond this machine.
    #[error("{key} is not encrypted; http:// is accepted for loopback only")]
    Unencrypted {
        /// The config key.
        key: &'static str,
    },
    /// A value that no header may carry.
    #[error("wechat.{0} has characters that no header may carry")]
    Header(&'static str),
    /// The HTTP client refused its settings.
    #[error("the HTTP client could not be created: {0}")]
    Http(#[from] reqwest::Error),
}

/// The current keys, replaced as a whole when they are read again.
pub type SharedKeyring = Arc<RwLock<Arc<Keyring>>>;

/// The payment API.
pub struct Client {
    http: reqwest::Client,
    settings: PaymentSettings,
    names: [String; 2],
    hosts: Mutex<HostChoice>,
    keys: SharedKeyring,
    /// When the client was created: the start of the clock of the replay guard.
    made: Instant,
    replays: Mutex<ReplayGuard>,
}

impl Client {
    /// Creates a client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`CannotStart`] names the setting that is wrong.
    pub fn new(settings: PaymentSettings, keys: SharedKeyring) -> Result<Self, CannotStart> {
        let primary = base_url("wechat.base_url", &settings.base_url)?;
        let backup = match &settings.backup_base_url {
            Some(url) => base_url("wechat.backup_base_url", url)?,
            None => primary.clone(),
        };
        if settings.verification_serial.as_ref().is_some_and(|serial| HeaderValue::try_from(serial).is_err())
        {
            return Err(CannotStart::Header("verification_serial"));
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // The platform rejects requests without a User-Agent, and the HTTP client sends none of its own.
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("redeemer/", env!("CARGO_PKG_VERSION"))));
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .tls_version_min(reqwest::tls::Version::TLS_1_2)
            .connect_timeout(settings.connect_timeout)
            .read_timeout(settings.read_timeout)
            .timeout(settings.total_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .build()?;
        let settings = PaymentSettings {
            base_url: settings.base_url.trim_end_matches('/').to_owned(),
            backup_base_url: settings.backup_base_url.map(|url| url.trim_end_matches('/').to_owned()),
            ..settings
        };
        let (hosts, replays) = (Mutex::default(), Mutex::default());
        Ok(Self { http, settings, names: [primary, backup], hosts, keys, made: Instant::now(), replays })
    }

    /// Sends an operation. `now`, `nonce` and `chance` are the clock and the randomness. An operation that cannot be signed
    /// counts as not sent.
    pub async fn send(
        &self,
        operation: Operation,
        prepared: &Prepared,
        traceparent: Option<&str>,
        now: Timestamp,
        nonce: u128,
        chance: f64,
    ) -> CallOutcome {
        self.send_to_other_host(None, operation, prepared, traceparent, now, nonce, chance).await
    }

    /// Sends an operation, to the other domain if the network has just failed the same command at `failed`.
    #[allow(clippy::too_many_arguments, reason = "those of `send`, and one more")]
    pub async fn send_to_other_host(
        &self,
        failed: Option<Host>,
        operation: Operation,
        prepared: &Prepared,
        traceparent: Option<&str>,
        now: Timestamp,
        nonce: u128,
        chance: f64,
    ) -> CallOutcome {
        let host = self.choose(now, chance, failed);
        let started = Instant::now();
        let keys = self.keys();
        let (method, target, body) = match operation {
            Operation::Redeem => (Method::POST, &prepared.redeem_target, prepared.body.clone()),
            Operation::Query => (Method::GET, &prepared.query_target, Bytes::new()),
        };
        let sent = match self.request(&keys, host, method, target, body, traceparent, now, nonce) {
            Ok(request) => request.send().await,
            Err(error) => {
                let result = CallResult::NotSent(NotSent::Connect);
                let details =
                    ResponseDetails { error: Some(error.to_string()), ..ResponseDetails::default() };
                return self.call_outcome(result, host, started, details);
            }
        };
        let (result, details) = match sent {
            Ok(response) => self.read(response, &keys, now, started).await,
            Err(error) => lost(error),
        };
        // The end of the call: a failure after fifteen seconds shows the state of the host at its end.
        let ended_at = now.saturating_add(started.elapsed()).unwrap_or(now);
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.record(host, network_succeeded(&result), ended_at);
        drop(hosts);
        self.call_outcome(result, host, started, details)
    }

    fn call_outcome(
        &self,
        result: CallResult,
        host: Host,
        started: Instant,
        details: ResponseDetails,
    ) -> CallOutcome {
        let host_name = self.names[host as usize].clone();
        let ResponseDetails { serial, clock_skew, error, detail, unverified } = details;
        let took = started.elapsed();
        CallOutcome { result, host, host_name, serial, clock_skew, took, error, detail, unverified }
    }

    fn choose(&self, now: Timestamp, chance: f64, failed: Option<Host>) -> Host {
        if self.settings.backup_base_url.is_none() {
            return Host::Primary;
        }
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).choose(now, chance, failed)
    }

    fn keys(&self) -> Arc<Keyring> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[allow(clippy::too_many_arguments, reason = "one request, spelled out once")]
    fn request(
        &self,
        keys: &Keyring,
        host: Host,
        method: Method,
        target: &str,
        body: Bytes,
        traceparent: Option<&str>,
        now: Timestamp,
        nonce: u128,
    ) -> Result<reqwest::RequestBuilder, CannotSign> {
        let configured = &self.settings.merchant;
        let serial = keys.merchant_serial.as_ref().unwrap_or(&configured.serial);
        let merchant = Merchant { mchid: configured.mchid.clone(), serial: serial.clone() };
        let signed = sign(&keys.merchant, &merchant, method.as_str(), target, &body, now, nonce)?;
        let base = match (host, &self.settings.backup_base_url) {
            (Host::Backup, Some(backup)) => backup,
            _ => &self.settings.base_url,
        };
        let mut request = self
            .http
            .request(method.clone(), format!("{base}{target}"))
            .header(AUTHORIZATION, signed.into_header());
        // Without it the response would be signed with a platform certificate, whichever keys are held.
        if let Some(serial) = self.settings.verification_serial.as_deref().or_else(|| keys.public.preferred())
        {
            request = request.header(SERIAL, serial);
        }
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        Ok(request)
    }

    async fn read(
        &self,
        mut response: HttpResponse,
        keys: &Keyring,
        now: Timestamp,
        started: Instant,
    ) -> (CallResult, ResponseDetails) {
        let (status, headers) = (response.status().as_u16(), std::mem::take(response.headers_mut()));
        let body = match self.body(response).await {
            Ok(body) => body,
            Err(BodyError::TooLarge) => {
                let bytes = self.settings.response_bytes_max;
                let error = format!("status {status}: longer than wechat.response_bytes_max = {bytes} bytes");
                let details = ResponseDetails { error: Some(error), ..ResponseDetails::default() };
                return (CallResult::NoResponse(NoResponse::TooLarge), details);
            }
            Err(BodyError::Network(error)) => return lost(error),
        };
        let ended_at = now.saturating_add(started.elapsed()).unwrap_or(now);
        let authenticity = match verify(&headers, &body, &keys.public, ended_at) {
            Authenticity::Verified => self.admit(&headers, started),
            flawed => flawed,
        };
        let verified = authenticity == Authenticity::Verified;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let serial = text(SERIAL).filter(|_| verified).map(str::to_owned);
        let request_id = text("request-id");
        // A coupon or an error, by the body: no signature covers the status.
        let coupon = verified.then(|| response::coupon(&body)).flatten();
        let error = if coupon.is_none() { response::error(&body) } else { response::ErrorBody::default() };
        let unverified = (!verified).then(|| Box::new(UnverifiedResponse::read(&headers, &body)));
        let clock_skew = clock_skew(&headers, ended_at);
        let details = ResponseDetails { serial, clock_skew, error: None, detail: error.detail, unverified };
        let response = Response {
            status,
            authenticity,
            code: error.code,
            sub_code: request_id.and_then(response::sub_code),
            coupon,
            message: error.message,
            request_id: request_id.map(|id| beginning(id, REQUEST_ID_CHARS_MAX).into()),
        };
        (CallResult::Response(response), details)
    }

    /// Whether a verified response belongs to the operation that was sent at `started`, as far as the protocol shows.
    fn admit(&self, headers: &HeaderMap, started: Instant) -> Authenticity {
        let (sent, received_at) = (started.saturating_duration_since(self.made), self.made.elapsed());
        let mut replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        match replay_key(headers)
            .ok_or(SignatureFlaw::Malformed)
            .and_then(|key| replays.admit(key, sent, received_at))
        {
            Ok(()) => Authenticity::Verified,
            Err(flaw) => Authenticity::Invalid(flaw),
        }
    }

    /// Reads a body of at most `response_bytes_max`.
    async fn body(&self, mut response: HttpResponse) -> Result<Vec<u8>, BodyError> {
        let reported =
            response.content_length().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default();
        // The length that a response claims may be wrong.
        let mut body =
            Vec::with_capacity(reported.min(ALLOCATED_AT_ONCE_MAX).min(self.settings.response_bytes_max));
        while let Some(chunk) = response.chunk().await.map_err(BodyError::Network)? {
            if body.len() + chunk.len() > self.settings.response_bytes_max {
                return Err(BodyError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Downloads the platform certificates that are valid now.
    ///
    /// # Errors
    /// [`NoCertificates`]
    pub async fn certificates(
        &self,
        key: &ApiV3Key,
        now: Timestamp,
        nonce: u128,
    ) -> Result<PublicKeys, NoCertificates> {
        let started = Instant::now();
        let keys = self.keys();
        let host = self.choose(now, 1.0, None);
        let no_response = |why: String| NoCertificates::NoResponse(why);
        let (target, body) = (certificates::TARGET, Bytes::new());
        let request = self
            .request(&keys, host, Method::GET, target, body, None, now, nonce)
            .map_err(|error| no_response(error.to_string()))?;
        let response = request.send().await.map_err(|error| no_response(chain_text(error)))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = self.body(response).await.map_err(|unread| match unread {
            BodyError::TooLarge => no_response("it is too large".to_owned()),
            BodyError::Network(error) => no_response(chain_text(error)),
        })?;
        if status != 200 {
            let response::ErrorBody { code, message, .. } = response::error(&body);
            let [code, message] = [code, message].map(|text| text.unwrap_or_default().into());
            let has_request_id = headers.contains_key("request-id");
            return Err(NoCertificates::Refused { status, code, message, has_request_id });
        }
        let ended_at = now.saturating_add(started.elapsed()).unwrap_or(now);
        let downloaded = certificates::read(&headers, &body, key, &keys.public, ended_at)?;
        // A replayed download could restore a certificate that was withdrawn since.
        match self.admit(&headers, started) {
            Authenticity::Invalid(flaw) => Err(NoCertificates::Unverified(Some(flaw))),
            Authenticity::Verified | Authenticity::Unsigned => Ok(downloaded),
        }
    }
}

/// The details of a response beside its result.
#[derive(Debug, Default)]
struct ResponseDetails {
    serial: Option<String>,
    clock_skew: Option<SignedDuration>,
    error: Option<String>,
    detail: Option<Detail>,
    unverified: Option<Box<UnverifiedResponse>>,
}

/// Why a body was not read to its end.
enum BodyError {
    TooLarge,
    Network(reqwest::Error),
}

/// Whether the network succeeded, as it did if the response was too large.
fn network_succeeded(result: &CallResult) -> bool {
    matches!(result, CallResult::Response(_) | CallResult::NoResponse(NoResponse::TooLarge))
}

/// The result of a failed request: not sent if there was no connection; any other may have reached the provider.
fn lost(error: reqwest::Error) -> (CallResult, ResponseDetails) {
    // A request that could not be built was not sent either.
    let result = if error.is_connect() || error.is_builder() {
        CallResult::NotSent(NotSent::Connect)
    } else if error.is_timeout() {
        CallResult::NoResponse(NoResponse::Timeout)
    } else {
        CallResult::NoResponse(NoResponse::Reset)
    };
    (result, ResponseDetails { error: Some(chain_text(error)), ..ResponseDetails::default() })
}

/// An error with its causes, without the URL, which contains openid and coupon code.
fn chain_text(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

fn clock_skew(headers: &HeaderMap, now: Timestamp) -> Option<SignedDuration> {
    let date = headers.get(DATE)?.to_str().ok()?;
    let theirs = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(theirs.duration_since(now))
}

/// Checks a base URL; returns its host for evidence.
fn base_url(key: &'static str, url: &str) -> Result<String, CannotStart> {
    let invalid = || CannotStart::BaseUrl { key };
    let parsed = reqwest::Url::parse(url).map_err(|_| invalid())?;
    let host = parsed.host_str().ok_or_else(invalid)?;
    // The parser accepts blanks and backslashes, but targets are appended to the text as configured.
    let plain = parsed.path() == "/"
        && parsed.query().is_none()
        && parsed.fragment().is_none()
        && parsed.username().is_empty()
        && parsed.password().is_none()
        && url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let name = match parsed.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let loopback = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match parsed.scheme() {
        "https" if plain => Ok(name),
        "http" if plain && loopback => Ok(name),
        "http" if plain => Err(CannotStart::Unencrypted { key }),
        _ => Err(invalid()),
    }
}
