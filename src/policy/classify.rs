//! The meaning of a call's result: one total function from an operation and its result to a verdict.
//!
//! The order of evidence is fixed: HTTP status first, `code` second, the number at the end of `Request-ID` third,
//! never the message. The provider's signature covers the body alone, neither the status line nor `Request-ID`: so
//! success is only read from a signed coupon, a rejection only from a signed error body whose code fits the status,
//! and the number refines the reason of a rejection, but never how carefully it is checked.
//!
//! Pure: no clock, no random numbers, no IO. The step after a verdict is decided in [`crate::policy::attempt`].

use crate::domain::coupon::{Coupon, CouponState, Usage};
use crate::domain::evidence::Operation;
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;

/// The result of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant, reason = "nearly every result is a response")]
pub enum CallResult {
    /// Nothing reached the provider.
    NotSent(NotSent),
    /// The request may have reached the provider; no complete response came back.
    NoResponse(NoResponse),
    /// A response came back.
    Response(Response),
}

impl CallResult {
    /// The response, if one came back.
    pub fn response(&self) -> Option<&Response> {
        match self {
            Self::Response(response) => Some(response),
            Self::NotSent(_) | Self::NoResponse(_) => None,
        }
    }

    /// As [`CallResult::response`].
    pub fn into_response(self) -> Option<Response> {
        match self {
            Self::Response(response) => Some(response),
            Self::NotSent(_) | Self::NoResponse(_) => None,
        }
    }
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotSent {
    /// The host could not be resolved, the connection was refused or timed out, or TLS failed.
    Connect,
}

/// Why no complete response came back after sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoResponse {
    /// No response within the call's timeout.
    Timeout,
    /// The connection ended.
    Reset,
    /// The response was larger than the limit.
    TooLarge,
}

/// The parts of a response that a verdict needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Whether the provider signed it.
    pub authenticity: Authenticity,
    /// `code` of an error body.
    pub code: Option<Box<str>>,
    /// The number after the last `-` of `Request-ID`. No signature covers it.
    pub sub_code: Option<u64>,
    /// The coupon, if the body describes one and is verified, with any status.
    pub coupon: Option<Coupon>,
    /// `message` of the error body, at most 1 KiB. It is passed on and never affects a verdict.
    pub message: Option<Box<str>>,
    /// `Request-ID`, for the provider's support.
    pub request_id: Option<Box<str>>,
}

impl Response {
    /// The coupon of the operation as this response describes it: `None` if the response is not verified, or if its
    /// `verdict` is that it describes another coupon.
    pub fn into_coupon(self, verdict: &Verdict) -> Option<Coupon> {
        let is_verified = self.authenticity == Authenticity::Verified && self.status == 200;
        self.coupon.filter(|_| is_verified && *verdict != Verdict::Unknown(UnknownCause::AnotherCoupon))
    }
}

/// Whether the provider signed a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Authenticity {
    /// Signed with a key that we hold, and fresh.
    Verified,
    /// Carries no signature at all.
    Unsigned,
    /// Carries a signature that does not verify.
    Invalid(SignatureFlaw),
}

/// What is wrong with a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignatureFlaw {
    /// Some of the signature's headers are missing or unreadable.
    Malformed,
    /// No key is known for the serial.
    UnknownSerial,
    /// The timestamp is more than five minutes away from our clock.
    Stale,
    /// The signature does not fit the content; the provider's probes look like this.
    Mismatch,
    /// The response to an earlier operation: it was accepted before, or signed before this request was sent.
    Replayed,
}

impl SignatureFlaw {
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::UnknownSerial, Self::Stale, Self::Mismatch, Self::Replayed];

    /// The word in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSerial => "unknown_serial",
            Self::Stale => "stale",
            Self::Mismatch => "mismatch",
            Self::Replayed => "replayed",
        }
    }
}

/// The meaning of a call's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Our redemption took effect.
    Redeemed,
    /// It will not take effect, and the coupon's state has been seen or cannot matter.
    Refused(Reason),
    /// A signed error body rejects the operation. A query must still show the coupon's state.
    Rejected {
        /// The reason of the rejection.
        reason: Reason,
        /// Whether the code may report an earlier use of ours as "already used".
        may_be_our_own_use: bool,
    },
    /// A query found the coupon usable and never returned.
    NotExecuted,
    /// The provider did not accept the operation; the same operation can follow later.
    NotAccepted(NotAccepted),
    /// Nothing reached the provider; the same operation can follow at another host.
    NotSent,
    /// It may have taken effect, or not.
    Unknown(UnknownCause),
    /// Not this coupon's fault: every further call would fail the same way.
    Suspended(SuspendReason),
    /// The same of a signed rejection, for this reason, that commands get alike which share nothing. It names no cause, so
    /// it may report an earlier use of ours all the same. Never made by [`classify`].
    RejectedAlike(Reason),
    /// This brand has not authorized us for this operation. Our own fault if every brand recently responded so.
    NotAuthorized,
}

/// Why the provider did not accept an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotAccepted {
    /// A signed 429 or one of its namesakes.
    TooFrequent,
    /// The coupon is locked by a concurrent use.
    Locked,
    /// The brand has not authorized us for a use, and it is not known yet whether this concerns only this brand.
    NotAuthorized,
}

/// Why the effect is unknown after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnknownCause {
    /// No complete response came back.
    NoResponse,
    /// 5xx: the provider itself does not know.
    ServerError,
    /// A success or a rejection without a signature that verifies.
    Unverified,
    /// 202: accepted, without a promise that it will be executed.
    Accepted,
    /// 429 without a signature: its sender may not know the effect of the request.
    TooFrequent,
    /// A verified response that contradicts itself or the request: it names another number or a returned coupon, or its
    /// body does not belong to its status.
    Contradiction,
    /// A verified response shows a use without its number.
    NoNumber,
    /// The same, and the next round of the coupon is usable.
    NoNumberNextUsable,
    /// A verified success that describes another coupon.
    AnotherCoupon,
    /// A signed rejection, for this reason, that may meet every command alike: only responses to other commands show
    /// whether it is about this one. Never made by [`classify`].
    MayBeCommon(Reason),
    /// A status or a body outside the contract.
    Unexpected,
}

/// A fault of our own that concerns every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SuspendReason {
    /// 401: wrong key, wrong serial, wrong merchant or wrong clock.
    Unauthenticated,
    /// Every brand that was called recently has not authorized us.
    Unauthorized,
    /// A header that every call carries is rejected, such as the id of a key.
    Rejected,
}

impl SuspendReason {
    pub const ALL: [Self; 3] = [Self::Unauthenticated, Self::Unauthorized, Self::Rejected];

    /// The word in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Unauthorized => "unauthorized",
            Self::Rejected => "rejected",
        }
    }
}

impl Verdict {
    /// Every word of [`Verdict::as_str`], for metrics and tables.
    pub const WORDS: [&'static str; 9] = [
        "redeemed",
        "refused",
        "rejected",
        "not_executed",
        "not_accepted",
        "not_sent",
        "unknown",
        "suspended",
        "not_authorized",
    ];

    /// Whether a signed response says that there is no such coupon.
    pub fn denies_coupon(&self) -> bool {
        let reason = Reason::NoSuchCoupon;
        match self {
            Self::Refused(said) | Self::Rejected { reason: said, .. } => *said == reason,
            _ => false,
        }
    }

    /// The word in evidence, logs and labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Redeemed => "redeemed",
            Self::Refused(_) => "refused",
            Self::Rejected { .. } => "rejected",
            Self::NotExecuted => "not_executed",
            Self::NotAccepted(NotAccepted::NotAuthorized) => "not_authorized",
            Self::NotAccepted(_) => "not_accepted",
            Self::NotSent => "not_sent",
            Self::Unknown(_) => "unknown",
            Self::Suspended(_) | Self::RejectedAlike(_) => "suspended",
            Self::NotAuthorized => "not_authorized",
        }
    }
}

/// Classifies the result of `operation` on the coupon of `redemption`.
pub fn classify(operation: Operation, result: &CallResult, redemption: &Redemption) -> Verdict {
    match (operation, result) {
        (_, CallResult::NotSent(_)) => Verdict::NotSent,
        (_, CallResult::NoResponse(_)) => Verdict::Unknown(UnknownCause::NoResponse),
        (Operation::Redeem, CallResult::Response(response)) => classify_redeem(response, redemption),
        (Operation::Query, CallResult::Response(response)) => classify_query(response, redemption),
    }
}

fn classify_redeem(response: &Response, redemption: &Redemption) -> Verdict {
    let verified = response.authenticity == Authenticity::Verified;
    match response.status {
        200..=299 if !verified => Verdict::Unknown(UnknownCause::Unverified),
        200 => match usage_of(response, redemption) {
            // USED without a number contradicts nothing: the provider shows the number "where present".
            Usage::Ours | Usage::NoNumber | Usage::UsableBesideNoNumber => Verdict::Redeemed,
            Usage::AnotherCoupon => Verdict::Unknown(UnknownCause::AnotherCoupon),
            _ => Verdict::Unknown(UnknownCause::Contradiction),
        },
        400..=499 => classify_rejection(response),
        status => classify_inconclusive(status, verified),
    }
}

fn classify_query(response: &Response, redemption: &Redemption) -> Verdict {
    let verified = response.authenticity == Authenticity::Verified;
    match response.status {
        200..=299 if !verified => Verdict::Unknown(UnknownCause::Unverified),
        200 => match usage_of(response, redemption) {
            Usage::Ours => Verdict::Redeemed,
            Usage::Another => Verdict::Refused(Reason::UsedByAnother),
            Usage::Usable => Verdict::NotExecuted,
            Usage::Returned => Verdict::Refused(Reason::ReturnedSince),
            Usage::Unusable(state) => classify_unusable(&state),
            Usage::AnotherCoupon => Verdict::Unknown(UnknownCause::AnotherCoupon),
            Usage::NoNumber => Verdict::Unknown(UnknownCause::NoNumber),
            Usage::UsableBesideNoNumber => Verdict::Unknown(UnknownCause::NoNumberNextUsable),
            Usage::Unclear => Verdict::Unknown(UnknownCause::Contradiction),
        },
        400..=499 => match (classify_rejection(response), response.code.as_deref()) {
            // Three causes are documented: no product coupon, no stock, no coupon. In all three there is no coupon.
            (Verdict::Rejected { .. }, Some(code)) if is_not_found(response.status, code) => {
                Verdict::Refused(Reason::NoSuchCoupon)
            }
            (verdict, _) => verdict,
        },
        status => classify_inconclusive(status, verified),
    }
}

/// Statuses that neither confirm nor reject. An unsigned status that no API of the provider uses comes from another
/// party, such as a proxy.
fn classify_inconclusive(status: u16, verified: bool) -> Verdict {
    Verdict::Unknown(match status {
        202 => UnknownCause::Accepted,
        500..=599 => UnknownCause::ServerError,
        _ if !verified => UnknownCause::Unverified,
        _ => UnknownCause::Unexpected,
    })
}

/// Classifies a 4xx. Without a signature it shows nothing, even if it repeats; a signed body that is not an error body,
/// or whose code belongs to another status, is the response to another request.
fn classify_rejection(response: &Response) -> Verdict {
    let (status, verified) = (response.status, response.authenticity == Authenticity::Verified);
    let code = match (status, verified, response.code.as_deref(), &response.coupon) {
        // The request may still be in flight behind a gateway that timed out.
        (408, true, ..) => return Verdict::Unknown(UnknownCause::Unexpected),
        (401, false, ..) => return Verdict::Suspended(SuspendReason::Unauthenticated),
        (429, false, ..) => return Verdict::Unknown(UnknownCause::TooFrequent),
        (_, false, ..) => return Verdict::Unknown(UnknownCause::Unverified),
        (_, true, Some(code), None) if code_fits_status(status, code) => code,
        (_, true, ..) => return Verdict::Unknown(UnknownCause::Contradiction),
    };
    match (status, code) {
        (401, _) => Verdict::Suspended(SuspendReason::Unauthenticated),
        // No signature covers the status, so it must not turn a code with another meaning into "not accepted".
        (429, code) if !is_rate_limit(code) => Verdict::Unknown(UnknownCause::TooFrequent),
        (403, "NO_AUTH" | "NOAUTH") => Verdict::NotAuthorized,
        _ if is_rate_limit(code) => Verdict::NotAccepted(NotAccepted::TooFrequent),
        _ => match response.sub_code {
            // An attacker who changes the number must not cause a second use without a query.
            Some(272_756_746 | 270_924_289) if reason_of_code(status, code).may_be_our_own_use() => {
                Verdict::Unknown(UnknownCause::Unexpected)
            }
            Some(272_756_746) => Verdict::NotAccepted(NotAccepted::Locked),
            Some(270_924_289) if !is_not_found(status, code) => {
                Verdict::NotAccepted(NotAccepted::TooFrequent)
            }
            number => {
                let named = reason_of_code(status, code);
                let reason = number.and_then(reason_of_sub_code).unwrap_or(named);
                // An attacker who changes the number must not remove a query.
                let may_be_ours = named.may_be_our_own_use() || reason.may_be_our_own_use();
                Verdict::Rejected { reason, may_be_our_own_use: may_be_ours }
            }
        },
    }
}

/// Whether a code may occur with a status. A code that is not documented may occur with any 4xx: the provider adds codes
/// at any time, and a rejection by one is confirmed by queries.
fn code_fits_status(status: u16, code: &str) -> bool {
    match code {
        "" => false,
        "PARAM_ERROR" | "INVALID_REQUEST" => status == 400,
        "SIGN_ERROR" => status == 401,
        "NOT_ENOUGH" | "NO_AUTH" | "NOAUTH" | "RULE_LIMIT" | "RULELIMIT" | "REQUEST_BLOCKED" => status == 403,
        "NOT_FOUND" | "RESOURCE_NOT_EXISTS" => status == 404,
        "SYSTEM_ERROR" | "SERVICE_UNAVAILABLE" => (500..=599).contains(&status),
        code if is_rate_limit(code) => [403, 429].contains(&status),
        _ => true,
    }
}

/// The codes that the provider's products use for "too frequent".
fn is_rate_limit(code: &str) -> bool {
    matches!(
        code,
        "RATE_LIMITED"
            | "RATELIMIT_EXCEEDED"
            | "FREQUENCY_LIMITED"
            | "FREQUENCY_LIMIT_EXCEED"
            | "FREQUENCY_LIMIT"
            | "FREQENCY_LIMIT"
    )
}

/// Whether a use under our own number that took effect may cause this signed rejection: a used coupon is not usable, and
/// "this number was used before" has no code of its own. Without a query such a rejection concludes nothing.
pub fn may_follow_our_own_use(status: u16, code: Option<&str>) -> bool {
    let named = code.map_or(Reason::Rejected, |code| reason_of_code(status, code));
    named.may_be_our_own_use() || named == Reason::NotUsable
}

fn is_not_found(status: u16, code: &str) -> bool {
    status == 404 && matches!(code, "NOT_FOUND" | "RESOURCE_NOT_EXISTS")
}

/// The reason of a rejection by its signed code.
fn reason_of_code(status: u16, code: &str) -> Reason {
    match (status, code) {
        _ if is_not_found(status, code) => Reason::NotFound,
        (403, "NOT_ENOUGH") => Reason::NotUsable,
        (400, "PARAM_ERROR") => Reason::InvalidParameter,
        _ => Reason::Rejected,
    }
}

/// The more exact reason of a rejection, by the number at the end of `Request-ID`.
fn reason_of_sub_code(number: u64) -> Option<Reason> {
    match number {
        272_756_745 => Some(Reason::UsedByAnother),
        268_578_927 => Some(Reason::NumberConflict),
        268_578_367 => Some(Reason::NotUsable),
        268_578_776 | 272_756_790 => Some(Reason::Expired),
        272_755_715 | 272_755_717 => Some(Reason::OutsidePeriod),
        272_756_769 => Some(Reason::Deleted),
        268_578_851 => Some(Reason::NoSuchCoupon),
        268_584_404 => Some(Reason::StoreNotAllowed),
        268_435_461..=268_435_464 | 268_578_101 | 268_578_224 => Some(Reason::InvalidParameter),
        268_578_526 => Some(Reason::OpenidMismatch),
        268_578_704 => Some(Reason::AppidNotBound),
        268_578_608 => Some(Reason::NotFound),
        _ => None,
    }
}

fn classify_unusable(state: &CouponState) -> Verdict {
    match state {
        CouponState::Confirming => Verdict::Refused(Reason::NotConfirmed),
        CouponState::Pending => Verdict::Refused(Reason::NotYetValid),
        CouponState::Expired => Verdict::Refused(Reason::Expired),
        CouponState::Deleted => Verdict::Refused(Reason::Deleted),
        CouponState::Deactivated => Verdict::Refused(Reason::Deactivated),
        CouponState::Effective | CouponState::Used | CouponState::Other(_) => {
            Verdict::Unknown(UnknownCause::Contradiction)
        }
    }
}

fn usage_of(response: &Response, redemption: &Redemption) -> Usage {
    let Redemption { coupon_code, out_request_no, sequential_coupon_index, .. } = redemption;
    match &response.coupon {
        None => Usage::Unclear,
        Some(coupon) if !coupon.is_of(redemption) => Usage::AnotherCoupon,
        Some(coupon) => coupon.usage(coupon_code, out_request_no, *sequential_coupon_index),
    }
}
