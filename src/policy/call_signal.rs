//! What the result of a call shows: to the circuit breaker, and to metrics and logs.

use crate::domain::evidence::Operation;
use crate::policy::classify::{Authenticity, Response, SuspendReason, UnknownCause, Verdict};

/// In what way the provider is failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No complete response.
    NoResponse,
    /// A 5xx.
    ServerError,
    /// Responses without a signature that we can verify: a key of ours may be the wrong one, or another party responds in
    /// the provider's place.
    Unverified,
}

/// What the result of a call shows about the provider and about us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallSignal {
    /// A conclusive response.
    Success,
    /// A conclusive response to a query. Rights are granted interface by interface: it shows nothing about the right to
    /// redeem.
    QuerySuccess,
    /// No response, a failure of the provider, or a response that cannot be verified.
    Failing(FailureKind),
    /// Inconclusive.
    Neutral,
    /// Every call will fail until we are fixed.
    Suspended(SuspendReason),
}

impl CallSignal {
    /// The signal of a verdict on an operation.
    pub fn of(operation: Operation, verdict: &Verdict) -> Self {
        match verdict {
            Verdict::NotSent | Verdict::Unknown(UnknownCause::NoResponse) => {
                Self::Failing(FailureKind::NoResponse)
            }
            Verdict::Unknown(UnknownCause::ServerError) => Self::Failing(FailureKind::ServerError),
            // An unsigned 429 need not be the provider's.
            Verdict::Unknown(UnknownCause::Unverified | UnknownCause::TooFrequent) => {
                Self::Failing(FailureKind::Unverified)
            }
            Verdict::Unknown(
                UnknownCause::Accepted
                | UnknownCause::Contradiction
                | UnknownCause::NoNumber
                | UnknownCause::NoNumberNextUsable
                | UnknownCause::AnotherCoupon
                | UnknownCause::MayBeCommon(_)
                | UnknownCause::Unexpected,
            )
            | Verdict::NotAccepted(_) => Self::Neutral,
            Verdict::Suspended(fault) => Self::Suspended(*fault),
            Verdict::RejectedAlike(_) => Self::Suspended(SuspendReason::Rejected),
            Verdict::Redeemed
            | Verdict::Refused(_)
            | Verdict::Rejected { .. }
            | Verdict::NotExecuted
            | Verdict::NotAuthorized => match operation {
                Operation::Redeem => Self::Success,
                Operation::Query => Self::QuerySuccess,
            },
        }
    }
}

/// The result of a call, for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseClass {
    /// A conclusive response with a verified signature.
    Verified,
    /// A signed 429. One without a signature may be another party's, such as a proxy's, and is [`Self::Unverified`].
    Throttled,
    /// No complete response.
    NoResponse,
    /// 5xx.
    ServerError,
    /// No signature that we can verify.
    Unverified,
    /// A fault of our own, which concerns every call.
    Suspended,
    /// A response from which nothing follows about the provider.
    Other,
}

impl ResponseClass {
    /// Every class.
    pub const ALL: [Self; 7] = [
        Self::Verified,
        Self::Throttled,
        Self::NoResponse,
        Self::ServerError,
        Self::Unverified,
        Self::Suspended,
        Self::Other,
    ];

    /// By the response, if there was a complete one, and by the signal of the call.
    pub fn of(response: Option<&Response>, signal: CallSignal) -> Self {
        let is_verified = |response: &&Response| response.authenticity == Authenticity::Verified;
        match (response.filter(is_verified).map(|response| response.status), signal) {
            (Some(429), _) => Self::Throttled,
            (_, CallSignal::Success | CallSignal::QuerySuccess) => Self::Verified,
            (_, CallSignal::Failing(FailureKind::NoResponse)) => Self::NoResponse,
            (_, CallSignal::Failing(FailureKind::ServerError)) => Self::ServerError,
            (_, CallSignal::Failing(FailureKind::Unverified)) => Self::Unverified,
            (_, CallSignal::Suspended(_)) => Self::Suspended,
            (_, CallSignal::Neutral) => Self::Other,
        }
    }

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Throttled => "throttled",
            Self::NoResponse => "no_response",
            Self::ServerError => "server_error",
            Self::Unverified => "unverified",
            Self::Suspended => "suspended",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::evidence::Operation::{Query, Redeem};

    #[test]
    fn unsigned_rejection_is_a_failure() {
        let unsigned = Verdict::Unknown(UnknownCause::Unverified);
        for operation in [Redeem, Query] {
            assert_eq!(CallSignal::of(operation, &unsigned), CallSignal::Failing(FailureKind::Unverified));
        }
        for reason in crate::domain::reason::Reason::REJECTIONS {
            assert_eq!(
                CallSignal::of(Redeem, &Verdict::Rejected { reason, may_be_our_own_use: false }),
                CallSignal::Success
            );
        }
    }
}
