//! The evidence for a dispute: operations, attempts, and the provider's error response.

use jiff::Timestamp;

/// An operation of the payment API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Use the coupon: `POST …/use` with the frozen body.
    Redeem,
    /// Read the coupon: `GET` of its detail. It changes nothing.
    Query,
}

impl Operation {
    /// Every operation, for metrics and tables.
    pub const ALL: [Self; 2] = [Self::Redeem, Self::Query];

    /// The word in logs, labels and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redeem => "redeem",
            Self::Query => "query",
        }
    }
}

/// The provider's error response to a redemption.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rejection {
    /// HTTP status.
    pub http_status: u16,
    /// `code` of the error body.
    pub code: Option<Box<str>>,
    /// The number after the last `-` of `Request-ID`.
    pub sub_code: Option<u64>,
    /// `message` of the error body.
    pub message: Option<Box<str>>,
    /// `Request-ID`.
    pub request_id: Option<Box<str>>,
}

/// One attempt, recorded for a dispute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// When the call began.
    pub at: Timestamp,
    /// [`Operation::as_str`].
    pub operation: String,
    /// The host that was called.
    pub host: String,
    /// HTTP status, if there was a response.
    pub status: Option<u16>,
    /// `Request-ID` of the response.
    pub request_id: Option<String>,
    /// The serial of the key that verified the response.
    pub serial: Option<String>,
    /// The word of the verdict on the response.
    pub verdict: String,
}

impl Evidence {
    /// The most attempts that a command keeps.
    pub const KEPT: usize = 16;

    /// The last [`Evidence::KEPT`] of these attempts.
    pub fn last(evidence: &[Self]) -> &[Self] {
        &evidence[evidence.len().saturating_sub(Self::KEPT)..]
    }

    /// Drops all but the last [`Evidence::KEPT`] attempts.
    pub fn keep_last(evidence: &mut Vec<Self>) {
        let surplus = evidence.len().saturating_sub(Self::KEPT);
        evidence.drain(..surplus);
    }
}
