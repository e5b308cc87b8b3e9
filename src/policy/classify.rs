//! What a reply means: one total function from operation and reply to a verdict.
//!
//! The order of reading is fixed: HTTP status first, `code` second, the number at the end of `Request-ID` third,
//! never the message. The provider's signature covers the body alone, neither the status line nor `Request-ID`: so
//! success is only read from a signed coupon, a rejection only from a signed error body whose code fits the status,
//! and the number refines the reason of a rejection, but never how carefully it is checked.
//!
//! Pure: no clock, no dice, no IO. What follows from a verdict is decided in [`crate::policy::attempt`].

use crate::domain::coupon::{Coupon, CouponState, Usage};
use crate::domain::evidence::Operation;
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;

/// What the wire said.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant, reason = "nearly every reply is an answer")]
pub enum CallResult {
    /// Nothing reached the provider.
    NotSent(NotSent),
    /// The request may have arrived; no whole answer came back.
    NoResponse(NoResponse),
    /// An answer came back.
    Response(Response),
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotSent {
    /// The host could not be resolved, the connection was refused or timed out, or TLS failed.
    Connect,
}

/// Why no whole answer came back after sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoResponse {
    /// No answer within the deadline.
    Timeout,
    /// The connection ended.
    Reset,
    /// The answer was larger than is read.
    TooLarge,
}

/// An answer as far as judgment needs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Whether the provider can be held to it.
    pub authenticity: Authenticity,
    /// `code` of the body, if it is an error body.
    pub code: Option<Box<str>>,
    /// The number after the last `-` of `Request-ID`. No signature covers it.
    pub sub_code: Option<u64>,
    /// The coupon, where the body describes one and is verified, whatever the status says.
    pub coupon: Option<Coupon>,
    /// `message` of the error body, at most 1 KiB. Reported on, never judged by.
    pub message: Option<Box<str>>,
    /// `Request-ID`, for the provider's support.
    pub request_id: Option<Box<str>>,
}

impl Response {
    /// The coupon that was asked about, as this answer describes it: `None` if it is not to be believed, or where by
    /// its `verdict` it speaks of another coupon.
    pub fn into_coupon(self, verdict: &Verdict) -> Option<Coupon> {
        let believed = self.authenticity == Authenticity::Verified && self.status == 200;
        self.coupon.filter(|_| believed && *verdict != Verdict::Unknown(UnknownCause::AnotherCoupon))
    }
}

/// Whether an answer was signed by the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Authenticity {
    /// Signed with a key that we hold, and fresh.
    Verified,
    /// Carries no signature at all.
    Unsigned,
    /// Carries a signature that does not convince.
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
    /// The answer to an earlier operation: it was accepted before, or signed before this one was sent.
    Replayed,
}

impl SignatureFlaw {
    /// Every flaw, for metrics and tables.
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

/// What a reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Our redemption took effect.
    Redeemed,
    /// It will not take effect, and the coupon's state has been seen or cannot matter.
    Refused(Reason),
    /// A signed error body rejects the operation. The coupon's state is still to be seen.
    Rejected {
        /// What it rejects the operation for.
        reason: Reason,
        /// Whether its code leaves open that it is an earlier use of ours, reported back as "already used".
        may_be_our_own_use: bool,
    },
    /// A query found the coupon usable and never returned.
    NotExecuted,
    /// The provider did not take the operation; the same operation later.
    NotAccepted(NotAccepted),
    /// Nothing reached the provider; the same operation, by another way.
    NotSent,
    /// It may have taken effect, or not.
    Unknown(UnknownCause),
    /// Not this coupon's fault: every further call would fail the same way.
    Suspended(SuspendReason),
    /// This brand has not authorized us for this operation. Our own fault if it is so for every brand lately.
    NotAuthorized,
}

/// Why the provider did not take a operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotAccepted {
    /// A signed 429 or one of its namesakes.
    TooFrequent,
    /// The coupon is locked by a concurrent use.
    Locked,
    /// The brand has not authorized us for a use, and whether it alone has not is not known yet.
    NotAuthorized,
}

/// Why a reply leaves us unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnknownCause {
    /// No whole answer came back.
    NoResponse,
    /// 5xx: the provider itself does not know.
    ServerError,
    /// A success or a rejection that is not believed, for want of a signature that verifies.
    Unverified,
    /// 202: noted; nobody says whether it will be worked on.
    Accepted,
    /// 429 without a signature: anyone who answered need not know what became of the request.
    TooFrequent,
    /// A verified answer that contradicts itself or us: it speaks of another number or of a coupon that was returned,
    /// or its body does not belong under its status.
    Contradiction,
    /// A verified answer shows a use, and does not say under which number.
    NoNumber,
    /// A verified success that speaks of another coupon.
    AnotherCoupon,
    /// A status or a body outside the contract.
    Unexpected,
}

/// A fault of our own that concerns every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SuspendReason {
    /// 401: wrong key, wrong serial, wrong merchant or wrong clock.
    Unauthenticated,
    /// Every brand tried lately answered that we are not authorized.
    Unauthorized,
    /// What stands in the head of every call is rejected, such as the id of a key.
    Rejected,
}

impl SuspendReason {
    /// Every fault, for metrics and tables.
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

    /// Whether the provider said, signed, that there is no such coupon.
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
            Self::Suspended(_) => "suspended",
            Self::NotAuthorized => "not_authorized",
        }
    }
}

/// Judges a reply to `operation` about `redemption`.
pub fn classify(operation: Operation, reply: &CallResult, redemption: &Redemption) -> Verdict {
    match (operation, reply) {
        (_, CallResult::NotSent(_)) => Verdict::NotSent,
        (_, CallResult::NoResponse(_)) => Verdict::Unknown(UnknownCause::NoResponse),
        (Operation::Redeem, CallResult::Response(answer)) => classify_redeem(answer, redemption),
        (Operation::Query, CallResult::Response(answer)) => classify_query(answer, redemption),
    }
}

fn classify_redeem(answer: &Response, redemption: &Redemption) -> Verdict {
    let verified = answer.authenticity == Authenticity::Verified;
    match answer.status {
        200..=299 if !verified => Verdict::Unknown(UnknownCause::Unverified),
        200 => match usage_of(answer, redemption) {
            // USED without a number contradicts nothing: the number is shown "where present".
            Usage::Ours | Usage::NoNumber => Verdict::Redeemed,
            Usage::AnotherCoupon => Verdict::Unknown(UnknownCause::AnotherCoupon),
            _ => Verdict::Unknown(UnknownCause::Contradiction),
        },
        400..=499 => classify_rejection(answer),
        status => classify_inconclusive(status, verified),
    }
}

fn classify_query(answer: &Response, redemption: &Redemption) -> Verdict {
    let verified = answer.authenticity == Authenticity::Verified;
    match answer.status {
        200..=299 if !verified => Verdict::Unknown(UnknownCause::Unverified),
        200 => match usage_of(answer, redemption) {
            Usage::Ours => Verdict::Redeemed,
            Usage::Another => Verdict::Refused(Reason::UsedByAnother),
            Usage::Usable => Verdict::NotExecuted,
            Usage::Returned => Verdict::Refused(Reason::ReturnedSince),
            Usage::Unusable(state) => classify_unusable(&state),
            Usage::AnotherCoupon => Verdict::Unknown(UnknownCause::AnotherCoupon),
            Usage::NoNumber => Verdict::Unknown(UnknownCause::NoNumber),
            Usage::Unclear => Verdict::Unknown(UnknownCause::Contradiction),
        },
        400..=499 => match (classify_rejection(answer), answer.code.as_deref()) {
            // Three causes are documented: no product coupon, no stock, no coupon. No coupon is what they have in common.
            (Verdict::Rejected { .. }, Some(code)) if is_not_found(answer.status, code) => {
                Verdict::Refused(Reason::NoSuchCoupon)
            }
            (verdict, _) => verdict,
        },
        status => classify_inconclusive(status, verified),
    }
}

/// Statuses that say neither yes nor no. One that no API of the provider answers with, unsigned, is the word of something
/// in its place.
fn classify_inconclusive(status: u16, verified: bool) -> Verdict {
    Verdict::Unknown(match status {
        202 => UnknownCause::Accepted,
        500..=599 => UnknownCause::ServerError,
        _ if !verified => UnknownCause::Unverified,
        _ => UnknownCause::Unexpected,
    })
}

/// Reads a 4xx. Without a signature it proves nothing, however often it comes; a signed body that is no error body, or
/// whose code belongs under another status, is the answer to something else.
fn classify_rejection(answer: &Response) -> Verdict {
    let (status, verified) = (answer.status, answer.authenticity == Authenticity::Verified);
    let code = match (status, verified, answer.code.as_deref(), &answer.coupon) {
        // The request may still be under way behind a gateway that lost patience.
        (408, true, ..) => return Verdict::Unknown(UnknownCause::Unexpected),
        (401, false, ..) => return Verdict::Suspended(SuspendReason::Unauthenticated),
        (429, false, ..) => return Verdict::Unknown(UnknownCause::TooFrequent),
        (_, false, ..) => return Verdict::Unknown(UnknownCause::Unverified),
        (_, true, Some(code), None) if code_fits_status(status, code) => code,
        (_, true, ..) => return Verdict::Unknown(UnknownCause::Contradiction),
    };
    match (status, code) {
        (401, _) => Verdict::Suspended(SuspendReason::Unauthenticated),
        // A status that no signature covers must not make a code that says something else "not accepted".
        (429, code) if !is_rate_limit(code) => Verdict::Unknown(UnknownCause::TooFrequent),
        (403, "NO_AUTH" | "NOAUTH") => Verdict::NotAuthorized,
        _ if is_rate_limit(code) => Verdict::NotAccepted(NotAccepted::TooFrequent),
        _ => match answer.sub_code {
            // Anyone who can change the number must not be able to have the body sent again without a look.
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
                // Anyone who can change the number must not be able to make us less careful.
                let doubtful = named.may_be_our_own_use() || reason.may_be_our_own_use();
                Verdict::Rejected { reason, may_be_our_own_use: doubtful }
            }
        },
    }
}

/// Whether a code may stand under a status. Codes that are not documented may stand under any 4xx: the provider adds
/// some at any time, and what follows from one is checked as carefully as can be.
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

/// The names under which products of the provider say "too frequent".
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

/// Whether a signed rejection may come of a use under our own number that took effect: a used coupon is not usable, and
/// "this number was used before" has no code of its own. If no query can report, such a rejection concludes nothing.
pub fn may_follow_our_own_use(status: u16, code: Option<&str>) -> bool {
    let named = code.map_or(Reason::Rejected, |code| reason_of_code(status, code));
    named.may_be_our_own_use() || named == Reason::NotUsable
}

fn is_not_found(status: u16, code: &str) -> bool {
    status == 404 && matches!(code, "NOT_FOUND" | "RESOURCE_NOT_EXISTS")
}

/// The reason of a rejection, by what is signed.
fn reason_of_code(status: u16, code: &str) -> Reason {
    match (status, code) {
        _ if is_not_found(status, code) => Reason::NotFound,
        (403, "NOT_ENOUGH") => Reason::NotUsable,
        (400, "PARAM_ERROR") => Reason::InvalidParameter,
        _ => Reason::Rejected,
    }
}

/// The reason of a rejection more exactly, by the number at the end of `Request-ID`.
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

fn usage_of(answer: &Response, redemption: &Redemption) -> Usage {
    let Redemption { coupon_code, out_request_no, sequential_coupon_index, .. } = redemption;
    match &answer.coupon {
        None => Usage::Unclear,
        Some(coupon) if !coupon.is_of(redemption) => Usage::AnotherCoupon,
        Some(coupon) => coupon.usage(coupon_code, out_request_no, *sequential_coupon_index),
    }
}
