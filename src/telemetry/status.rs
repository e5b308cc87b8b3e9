//! The state of the service as readiness and the status page show it.

use jiff::Timestamp;
use serde::Serialize;

use crate::telemetry::untrusted::{VALUE_CHARS_MAX, visible_within};

/// The reason while a consumer is being begun.
pub const NOT_CONSUMING_YET: &str = "starting: not consuming yet";

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
    pub reasons: Vec<String>,
    /// What needs somebody's attention and keeps nothing else from being worked on, in words.
    pub warnings: Vec<String>,
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
        let reasons = vec!["starting: not connected to the broker yet".to_owned()];
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

    /// The words of others among it visible, as pages and probes show it.
    pub fn visible(mut self) -> Self {
        let notices = self.notices.iter_mut().map(|notice| &mut notice.words);
        let texts = self.broker.iter_mut().chain(&mut self.reasons).chain(&mut self.warnings);
        for words in texts.chain(notices) {
            *words = visible_within(words, VALUE_CHARS_MAX);
        }
        self
    }

    pub fn ready(&self) -> bool {
        self.reasons.is_empty()
    }
}
