//! The state of the service as readiness and the status page show it.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use crate::telemetry::masking::without_openids;
use crate::telemetry::untrusted::{VALUE_CHARS_MAX, visible_within};

/// What a reason or a warning is about. Closed: programs and tests read the code, people read the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum ReasonCode {
    /// Not connected to the broker yet.
    Starting,
    /// Shutting down in good order.
    Stopping,
    /// Connected; the consumer is not running yet.
    NotConsuming,
    /// No key to verify responses with.
    NoVerificationKey,
    /// No session with the broker.
    BrokerUnavailable,
    /// The broker blocks publishing, for want of memory or disk.
    BrokerBlocked,
    /// Results or retry messages are not accepted; commands are held.
    PublishingRejected,
    /// The provider does not respond.
    ProviderUnreachable,
    /// The provider responds with 5xx.
    ProviderFailing,
    /// Responses cannot be verified.
    ResponsesUnverified,
    /// 401: suspended until the key, serial, merchant or clock is right.
    SuspendedUnauthenticated,
    /// NO_AUTH for every brand: suspended until a brand authorizes us.
    SuspendedUnauthorized,
    /// Every call is rejected alike: suspended until the configuration is right.
    SuspendedRejected,
    /// Warning: one command's event is rejected and the command is delayed.
    EventRejected,
    /// Warning: dead-lettered commands have no event yet.
    DeadLettersWaiting,
    /// Warning: dead-lettered commands cannot be read.
    DeadLetterSweepFailed,
    /// Warning: the broker accepts messages that fill our memory.
    MessageSizeUnbounded,
    /// Warning: a key file can no longer be used.
    KeyFileUnusable,
}

impl ReasonCode {
    /// Every code.
    pub const ALL: [Self; 18] = [
        Self::Starting,
        Self::Stopping,
        Self::NotConsuming,
        Self::NoVerificationKey,
        Self::BrokerUnavailable,
        Self::BrokerBlocked,
        Self::PublishingRejected,
        Self::ProviderUnreachable,
        Self::ProviderFailing,
        Self::ResponsesUnverified,
        Self::SuspendedUnauthenticated,
        Self::SuspendedUnauthorized,
        Self::SuspendedRejected,
        Self::EventRejected,
        Self::DeadLettersWaiting,
        Self::DeadLetterSweepFailed,
        Self::MessageSizeUnbounded,
        Self::KeyFileUnusable,
    ];

    /// The word in `/readyz`, `/status.json` and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::NotConsuming => "not_consuming",
            Self::NoVerificationKey => "no_verification_key",
            Self::BrokerUnavailable => "broker_unavailable",
            Self::BrokerBlocked => "broker_blocked",
            Self::PublishingRejected => "publishing_rejected",
            Self::ProviderUnreachable => "provider_unreachable",
            Self::ProviderFailing => "provider_failing",
            Self::ResponsesUnverified => "responses_unverified",
            Self::SuspendedUnauthenticated => "suspended_unauthenticated",
            Self::SuspendedUnauthorized => "suspended_unauthorized",
            Self::SuspendedRejected => "suspended_rejected",
            Self::EventRejected => "event_rejected",
            Self::DeadLettersWaiting => "dead_letters_waiting",
            Self::DeadLetterSweepFailed => "dead_letter_sweep_failed",
            Self::MessageSizeUnbounded => "message_size_unbounded",
            Self::KeyFileUnusable => "key_file_unusable",
        }
    }

    /// Whether it passes by itself in the first moments of a start.
    pub fn is_starting(self) -> bool {
        matches!(self, Self::Starting | Self::NotConsuming)
    }

    /// Whether the payment API, or our standing with it, is the cause: the backlog waits.
    pub fn is_about_provider(self) -> bool {
        matches!(
            self,
            Self::ProviderUnreachable
                | Self::ProviderFailing
                | Self::ResponsesUnverified
                | Self::SuspendedUnauthenticated
                | Self::SuspendedUnauthorized
                | Self::SuspendedRejected
        )
    }
}

impl From<ReasonCode> for &'static str {
    fn from(code: ReasonCode) -> Self {
        code.as_str()
    }
}

/// A reason why the service is not ready, or a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusReason {
    /// What it is about.
    pub code: ReasonCode,
    /// What broke, the likely cause and the remedy, for people.
    pub words: String,
}

impl StatusReason {
    /// A reason in words.
    pub fn new(code: ReasonCode, words: impl Into<String>) -> Self {
        Self { code, words: words.into() }
    }

    /// The consumer is about to run.
    pub fn not_consuming() -> Self {
        Self::new(ReasonCode::NotConsuming, "starting: not consuming yet")
    }
}

/// Reasons as text, with a separator between two.
pub fn join(reasons: &[StatusReason], separator: &str) -> String {
    reasons.iter().map(StatusReason::to_string).collect::<Vec<_>>().join(separator)
}

/// `[code] words`, the line of `/readyz`.
impl fmt::Display for StatusReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code.as_str(), self.words)
    }
}

/// What is going on, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// When the main loop last turned.
    #[serde(rename = "turned_at")]
    pub turned: Timestamp,
    /// Host, port and virtual host of the broker, while connected.
    pub broker: Option<String>,
    /// Whether commands are being consumed.
    pub consuming: bool,
    /// Commands held now.
    pub in_flight: usize,
    /// Everything that stands in the way of work, in words; empty when ready.
    pub reasons: Vec<StatusReason>,
    /// What needs somebody's attention and keeps nothing else from being worked on, in words.
    pub warnings: Vec<StatusReason>,
    /// What an operator should know, though work goes on.
    pub notices: Vec<Notice>,
}

/// Something that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// What it is about.
    pub kind: NoticeKind,
    /// In words.
    pub words: String,
}

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// Fewer calls are made than are configured, because the provider throttles.
    RateReduced,
    /// Responses carry no signature that can be verified.
    NotBelieved,
}

impl Status {
    /// The state of a process that has just begun.
    pub fn starting(now: Timestamp) -> Self {
        let reasons =
            vec![StatusReason::new(ReasonCode::Starting, "starting: not connected to the broker yet")];
        Self {
            turned: now,
            broker: None,
            consuming: false,
            in_flight: 0,
            reasons,
            notices: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The words of others among it visible and without an openid, as pages and probes show it.
    pub fn visible(mut self) -> Self {
        let notices = self.notices.iter_mut().map(|notice| &mut notice.words);
        let reasons = self.reasons.iter_mut().chain(&mut self.warnings).map(|reason| &mut reason.words);
        let texts = self.broker.iter_mut().chain(reasons);
        for words in texts.chain(notices) {
            *words = visible_within(&without_openids(words), VALUE_CHARS_MAX);
        }
        self
    }

    pub fn ready(&self) -> bool {
        self.reasons.is_empty()
    }
}
