//! The state of the service as readiness and the status page show it.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

use crate::telemetry::masking::without_openids;
use crate::telemetry::untrusted::{VALUE_CHARS_MAX, visible_within};

/// The code of a reason or a warning, for programs and tests. The list is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, Serialize, VariantArray)]
#[serde(into = "&'static str")]
#[strum(serialize_all = "snake_case")]
pub enum ReasonCode {
    /// Not connected to the broker yet.
    Starting,
    /// Shutting down.
    Stopping,
    /// Connected; the consumer is not running yet.
    NotConsuming,
    /// No key to verify responses with.
    NoVerificationKey,
    /// No session with the broker.
    BrokerUnavailable,
    /// The broker blocks publishing, because memory or disk is low.
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
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The word in `/readyz`, `/status.json` and logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether it belongs to every start.
    pub fn is_starting(self) -> bool {
        matches!(self, Self::Starting | Self::NotConsuming)
    }

    /// Whether calls to the payment API are held back: the backlog waits.
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

/// A reason why the service is not ready, or a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusReason {
    /// The code.
    pub code: ReasonCode,
    /// The fault, its likely cause and the remedy.
    pub words: String,
}

impl StatusReason {
    /// `words` are for operators.
    pub fn new(code: ReasonCode, words: impl Into<String>) -> Self {
        Self { code, words: words.into() }
    }

    /// The consumer is about to run.
    pub fn not_consuming() -> Self {
        Self::new(ReasonCode::NotConsuming, "starting: not consuming yet")
    }
}

/// The reasons as one text.
pub fn join(reasons: &[StatusReason], separator: &str) -> String {
    reasons.iter().map(StatusReason::to_string).collect::<Vec<_>>().join(separator)
}

/// `[code] words`, the line of `/readyz`.
impl fmt::Display for StatusReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code.as_str(), self.words)
    }
}

/// The state of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The last heartbeat of the main loop.
    #[serde(rename = "heartbeat_at")]
    pub heartbeat: Timestamp,
    /// Host, port and virtual host of the broker, while connected.
    pub broker: Option<String>,
    /// Whether commands are being consumed.
    pub consuming: bool,
    /// Commands held now.
    pub in_flight: usize,
    /// Why the service is not ready; empty if it is.
    pub reasons: Vec<StatusReason>,
    /// Faults that need attention and stop nothing else.
    pub warnings: Vec<StatusReason>,
    /// Conditions that operators should know.
    pub notices: Vec<Notice>,
}

/// A condition that operators should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// Its kind.
    pub kind: NoticeKind,
    /// Its description.
    pub words: String,
}

/// The kind of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// The rate is below the configured limit, because the provider throttles.
    RateReduced,
    /// Responses cannot be verified.
    ResponsesUnverified,
}

impl Status {
    /// The state of a process that has just started.
    pub fn starting(now: Timestamp) -> Self {
        let reasons =
            vec![StatusReason::new(ReasonCode::Starting, "starting: not connected to the broker yet")];
        Self {
            heartbeat: now,
            broker: None,
            consuming: false,
            in_flight: 0,
            reasons,
            notices: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// With hidden characters visible and without openids, as pages and probes show it.
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
