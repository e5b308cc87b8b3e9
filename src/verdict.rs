//! What a reply means: one total function from question and reply to a verdict.
//!
//! The order of reading is fixed: HTTP status first, `code` second, the number at the end of `Request-ID` third,
//! never the message. The provider's signature covers the body alone, neither the status line nor `Request-ID`: so
//! success is only read from a signed coupon, a rejection only from a signed error body whose code fits the status,
//! and the number refines the reason of a rejection, but never how carefully it is checked.
//!
//! Pure: no clock, no dice, no IO. What follows from a verdict is decided in [`crate::attempt`].

use crate::coupon::{Coupon, CouponState, Standing};
use crate::redemption::Redemption;

/// What is asked of the payment API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Question {
    /// Use the coupon: `POST …/use` with the frozen body.
    Redeem,
    /// Look at the coupon: `GET` of its detail. Changes nothing.
    Inquire,
}

impl Question {
    /// Every question, for metrics and tables.
    pub const ALL: [Self; 2] = [Self::Redeem, Self::Inquire];

    /// The word in logs, labels and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redeem => "redeem",
            Self::Inquire => "inquire",
        }
    }
}

/// What the wire said.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant, reason = "nearly every reply is an answer")]
pub enum Reply {
    /// Nothing reached the provider.
    NotSent(NotSent),
    /// The request may have arrived; no whole answer came back.
    Lost(Lost),
    /// An answer came back.
    Answered(Answer),
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotSent {
    /// The host could not be resolved, the connection was refused or timed out, or TLS failed.
    Connect,
}

/// Why no whole answer came back after sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lost {
    /// No answer within the deadline.
    Timeout,
    /// The connection ended.
    Reset,
    /// The answer was larger than is read.
    TooLarge,
}

/// An answer as far as judgement needs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Whether the provider can be held to it.
    pub authenticity: Authenticity,
    /// `code` of the body, where it is an error body.
    pub code: Option<Box<str>>,
    /// The number after the last `-` of `Request-ID`. No signature covers it.
    pub sub_code: Option<u64>,
    /// The coupon, where the body describes one and is verified, whatever the status says.
    pub coupon: Option<Coupon>,
    /// `message` of the error body, at most 1 KiB. Told on, never judged by.
    pub message: Option<Box<str>>,
    /// `Request-ID`, for the provider's support.
    pub request_id: Option<Box<str>>,
}

impl Answer {
    /// The coupon that was asked about, as this answer describes it: `None` where it is not to be believed, or where by
    /// its `verdict` it speaks of another coupon.
    pub fn into_coupon(self, verdict: &Verdict) -> Option<Coupon> {
        let believed = self.authenticity == Authenticity::Verified && self.status == 200;
        self.coupon.filter(|_| believed && *verdict != Verdict::Unsure(Doubt::AnotherCoupon))
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
    Unconvincing(Flaw),
}

/// What is wrong with a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// Some of the signature's headers are missing or unreadable.
    Malformed,
    /// No key is known for the serial.
    UnknownSerial,
    /// The timestamp is more than five minutes away from our clock.
    Stale,
    /// The signature does not fit the content; the provider's probes look like this.
    Mismatch,
    /// The answer to an earlier question: it was accepted before, or signed before this one was sent.
    Replayed,
}

impl Flaw {
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
    Objected {
        /// What it rejects the operation for.
        reason: Reason,
        /// Whether its code leaves open that it is an earlier use of ours, reported back as "already used".
        doubtful: bool,
    },
    /// An inquiry found the coupon usable and never returned.
    NotExecuted,
    /// The provider did not take the question; the same question later.
    NotAccepted(Declined),
    /// Nothing reached the provider; the same question, by another way.
    NotSent,
    /// It may have taken effect, or not.
    Unsure(Doubt),
    /// Not this coupon's fault: every further call would fail the same way.
    Stop(Fault),
    /// This brand has not authorised us for this operation. Our own fault where it is so for every brand lately.
    NotAuthorised,
}

/// Why the provider did not take a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Declined {
    /// A signed 429 or one of its namesakes.
    TooFrequent,
    /// The coupon is locked by a concurrent use.
    Locked,
    /// The brand has not authorised us for a use, and whether it alone has not is not known yet.
    NotAuthorised,
}

/// Why a reply leaves us unsure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// No whole answer came back.
    Lost,
    /// 5xx: the provider itself does not know.
    ServerError,
    /// A success or a rejection that is not believed, for want of a signature that verifies.
    NotBelieved,
    /// 202: noted; nobody says whether it will be worked on.
    Accepted,
    /// 429 without a signature: whoever answered need not know what became of the request.
    TooFrequent,
    /// A verified answer that contradicts itself or us: it speaks of another number or of a coupon that was returned,
    /// or its body does not belong under its status.
    Contradicted,
    /// A verified answer shows a use, and does not say under which number.
    Unnamed,
    /// A verified success that speaks of another coupon.
    AnotherCoupon,
    /// A status or a body outside the contract.
    Unexpected,
}

/// A fault of our own that concerns every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// 401: wrong key, wrong serial, wrong merchant or wrong clock.
    Unauthenticated,
    /// Every brand tried lately answered that we are not authorised.
    Unauthorised,
    /// What stands in the head of every call is rejected, such as the id of a key.
    Rejected,
}

impl Fault {
    /// Every fault, for metrics and tables.
    pub const ALL: [Self; 3] = [Self::Unauthenticated, Self::Unauthorised, Self::Rejected];

    /// The word in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Unauthorised => "unauthorised",
            Self::Rejected => "rejected",
        }
    }
}

/// Why an outcome is not `redeemed`: the closed list of `problem.reason` in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The coupon was used under another request number.
    UsedByAnother,
    /// The coupon was returned after an attempt of ours; using it again would be a second use.
    ReturnedSince,
    /// Issued, and waiting for the partner's confirmation.
    NotConfirmed,
    /// Its validity has not begun.
    NotYetValid,
    /// Its validity has ended.
    Expired,
    /// The user deleted it.
    Deleted,
    /// It was withdrawn.
    Deactivated,
    /// Usable as a whole, but not at this time of day or week.
    OutsidePeriod,
    /// The provider says that it cannot be used now.
    NotUsable,
    /// No such coupon of this user.
    NoSuchCoupon,
    /// The product coupon, the stock or another thing named does not exist, or is not ours.
    NotFound,
    /// The same request number was sent with other content before.
    NumberConflict,
    /// The store may not redeem this coupon.
    StoreNotAllowed,
    /// `openid` and `appid` do not belong together.
    OpenidMismatch,
    /// `appid` is not bound to this service provider.
    AppidNotBound,
    /// The brand has not authorised this service provider.
    NotAuthorised,
    /// The provider calls a parameter wrong.
    InvalidParameter,
    /// Any other objection, or one that the coupon's own state contradicts.
    Rejected,
    /// The command could not be read or breaks a rule.
    InvalidCommand,
    /// The deadline passed and the truth is still not known.
    DeadlinePassed,
    /// As many attempts as are ever made, and the truth is still not known.
    AttemptsExhausted,
    /// A wait-queue copy came back damaged: nobody knows what was asked before.
    DamagedCopy,
    /// The broker delivered it as often as it may, and it was not settled.
    DeliveryLimit,
    /// It expired in the command queue, as its sender had asked for.
    MessageExpired,
    /// The broker dead-lettered it for another reason.
    DeadLettered,
}

impl Reason {
    /// Every reason, for metrics, schemas and tables.
    pub const ALL: [Self; 25] = [
        Self::UsedByAnother,
        Self::ReturnedSince,
        Self::NotConfirmed,
        Self::NotYetValid,
        Self::Expired,
        Self::Deleted,
        Self::Deactivated,
        Self::OutsidePeriod,
        Self::NotUsable,
        Self::NoSuchCoupon,
        Self::NotFound,
        Self::NumberConflict,
        Self::StoreNotAllowed,
        Self::OpenidMismatch,
        Self::AppidNotBound,
        Self::NotAuthorised,
        Self::InvalidParameter,
        Self::Rejected,
        Self::InvalidCommand,
        Self::DeadlinePassed,
        Self::AttemptsExhausted,
        Self::DamagedCopy,
        Self::DeliveryLimit,
        Self::MessageExpired,
        Self::DeadLettered,
    ];

    /// The reasons that the provider can object for, and the only ones that a copy may carry.
    pub const OBJECTIONS: [Self; 14] = [
        Self::UsedByAnother,
        Self::Expired,
        Self::Deleted,
        Self::OutsidePeriod,
        Self::NotUsable,
        Self::NoSuchCoupon,
        Self::NotFound,
        Self::NumberConflict,
        Self::StoreNotAllowed,
        Self::OpenidMismatch,
        Self::AppidNotBound,
        Self::NotAuthorised,
        Self::InvalidParameter,
        Self::Rejected,
    ];

    /// Whether an objection for this reason may be an earlier use of ours, told back as "this number was already
    /// used": under which status, code and number that comes is not published.
    pub fn may_be_our_own_use(self) -> bool {
        matches!(self, Self::UsedByAnother | Self::NumberConflict | Self::InvalidParameter | Self::Rejected)
    }

    /// Whether an objection for this reason is about the coupon itself, so that our right to use it was looked at.
    pub fn is_about_the_coupon(self) -> bool {
        matches!(
            self,
            Self::UsedByAnother
                | Self::Expired
                | Self::Deleted
                | Self::OutsidePeriod
                | Self::NotUsable
                | Self::StoreNotAllowed
        )
    }

    /// Whether a coupon that is usable contradicts this reason.
    pub fn denies_a_usable_coupon(self) -> bool {
        matches!(
            self,
            Self::UsedByAnother | Self::Expired | Self::Deleted | Self::NoSuchCoupon | Self::NotFound
        )
    }

    /// The word in events, logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UsedByAnother => "used_by_another",
            Self::ReturnedSince => "returned_since",
            Self::NotConfirmed => "not_confirmed",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
            Self::Deactivated => "deactivated",
            Self::OutsidePeriod => "outside_period",
            Self::NotUsable => "not_usable",
            Self::NoSuchCoupon => "no_such_coupon",
            Self::NotFound => "not_found",
            Self::NumberConflict => "number_conflict",
            Self::StoreNotAllowed => "store_not_allowed",
            Self::OpenidMismatch => "openid_mismatch",
            Self::AppidNotBound => "appid_not_bound",
            Self::NotAuthorised => "not_authorised",
            Self::InvalidParameter => "invalid_parameter",
            Self::Rejected => "rejected",
            Self::InvalidCommand => "invalid_command",
            Self::DeadlinePassed => "deadline_passed",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::DamagedCopy => "damaged_copy",
            Self::DeliveryLimit => "delivery_limit",
            Self::MessageExpired => "message_expired",
            Self::DeadLettered => "dead_lettered",
        }
    }

    /// Reads the word back.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

impl Verdict {
    /// Every word of [`Verdict::as_str`], for metrics and tables.
    pub const WORDS: [&'static str; 9] = [
        "redeemed",
        "refused",
        "objected",
        "not_executed",
        "not_accepted",
        "not_sent",
        "unsure",
        "stop",
        "not_authorised",
    ];

    /// Whether the provider said, signed, that there is no such coupon.
    pub fn denies_the_coupon(&self) -> bool {
        let reason = Reason::NoSuchCoupon;
        match self {
            Self::Refused(said) | Self::Objected { reason: said, .. } => *said == reason,
            _ => false,
        }
    }

    /// The word in evidence, logs and labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Redeemed => "redeemed",
            Self::Refused(_) => "refused",
            Self::Objected { .. } => "objected",
            Self::NotExecuted => "not_executed",
            Self::NotAccepted(Declined::NotAuthorised) => "not_authorised",
            Self::NotAccepted(_) => "not_accepted",
            Self::NotSent => "not_sent",
            Self::Unsure(_) => "unsure",
            Self::Stop(_) => "stop",
            Self::NotAuthorised => "not_authorised",
        }
    }
}

/// Judges a reply to `question` about `redemption`.
pub fn judge(question: Question, reply: &Reply, redemption: &Redemption) -> Verdict {
    match (question, reply) {
        (_, Reply::NotSent(_)) => Verdict::NotSent,
        (_, Reply::Lost(_)) => Verdict::Unsure(Doubt::Lost),
        (Question::Redeem, Reply::Answered(answer)) => judge_redeem(answer, redemption),
        (Question::Inquire, Reply::Answered(answer)) => judge_inquiry(answer, redemption),
    }
}

fn judge_redeem(answer: &Answer, redemption: &Redemption) -> Verdict {
    let verified = answer.authenticity == Authenticity::Verified;
    match answer.status {
        200..=299 if !verified => Verdict::Unsure(Doubt::NotBelieved),
        200 => match standing(answer, redemption) {
            // USED without a number contradicts nothing: the number is shown "where present".
            Standing::Ours | Standing::Unnamed => Verdict::Redeemed,
            Standing::AnotherCoupon => Verdict::Unsure(Doubt::AnotherCoupon),
            _ => Verdict::Unsure(Doubt::Contradicted),
        },
        400..=499 => judge_rejection(answer),
        status => unknown(status, verified),
    }
}

fn judge_inquiry(answer: &Answer, redemption: &Redemption) -> Verdict {
    let verified = answer.authenticity == Authenticity::Verified;
    match answer.status {
        200..=299 if !verified => Verdict::Unsure(Doubt::NotBelieved),
        200 => match standing(answer, redemption) {
            Standing::Ours => Verdict::Redeemed,
            Standing::Another => Verdict::Refused(Reason::UsedByAnother),
            Standing::Usable => Verdict::NotExecuted,
            Standing::Returned => Verdict::Refused(Reason::ReturnedSince),
            Standing::Unusable(state) => unusable(&state),
            Standing::AnotherCoupon => Verdict::Unsure(Doubt::AnotherCoupon),
            Standing::Unnamed => Verdict::Unsure(Doubt::Unnamed),
            Standing::Unclear => Verdict::Unsure(Doubt::Contradicted),
        },
        400..=499 => match (judge_rejection(answer), answer.code.as_deref()) {
            // Three causes are documented: no product coupon, no stock, no coupon. No coupon is what they have in common.
            (Verdict::Objected { .. }, Some(code)) if is_absence(answer.status, code) => {
                Verdict::Refused(Reason::NoSuchCoupon)
            }
            (verdict, _) => verdict,
        },
        status => unknown(status, verified),
    }
}

/// Statuses that say neither yes nor no. One that no API of the provider answers with, unsigned, is the word of something
/// in its place.
fn unknown(status: u16, verified: bool) -> Verdict {
    Verdict::Unsure(match status {
        202 => Doubt::Accepted,
        500..=599 => Doubt::ServerError,
        _ if !verified => Doubt::NotBelieved,
        _ => Doubt::Unexpected,
    })
}

/// Reads a 4xx. Without a signature it proves nothing, however often it comes; a signed body that is no error body, or
/// whose code belongs under another status, is the answer to something else.
fn judge_rejection(answer: &Answer) -> Verdict {
    let (status, verified) = (answer.status, answer.authenticity == Authenticity::Verified);
    let code = match (status, verified, answer.code.as_deref(), &answer.coupon) {
        // The request may still be under way behind a gateway that lost patience.
        (408, true, ..) => return Verdict::Unsure(Doubt::Unexpected),
        (401, false, ..) => return Verdict::Stop(Fault::Unauthenticated),
        (429, false, ..) => return Verdict::Unsure(Doubt::TooFrequent),
        (_, false, ..) => return Verdict::Unsure(Doubt::NotBelieved),
        (_, true, Some(code), None) if fits(status, code) => code,
        (_, true, ..) => return Verdict::Unsure(Doubt::Contradicted),
    };
    match (status, code) {
        (401, _) => Verdict::Stop(Fault::Unauthenticated),
        // A status that no signature covers must not make a code that says something else "not accepted".
        (429, code) if !is_rate_limit(code) => Verdict::Unsure(Doubt::TooFrequent),
        (403, "NO_AUTH" | "NOAUTH") => Verdict::NotAuthorised,
        _ if is_rate_limit(code) => Verdict::NotAccepted(Declined::TooFrequent),
        _ => match answer.sub_code {
            // Whoever can change the number must not be able to have the body sent again without a look.
            Some(272_756_746 | 270_924_289) if reason(status, code).may_be_our_own_use() => {
                Verdict::Unsure(Doubt::Unexpected)
            }
            Some(272_756_746) => Verdict::NotAccepted(Declined::Locked),
            Some(270_924_289) if !is_absence(status, code) => Verdict::NotAccepted(Declined::TooFrequent),
            number => {
                let named = reason(status, code);
                let reason = number.and_then(refine).unwrap_or(named);
                // Whoever can change the number must not be able to make us less careful.
                let doubtful = named.may_be_our_own_use() || reason.may_be_our_own_use();
                Verdict::Objected { reason, doubtful }
            }
        },
    }
}

/// Whether a code may stand under a status. Codes that are not documented may stand under any 4xx: the provider adds
/// some at any time, and what follows from one is checked as carefully as can be.
fn fits(status: u16, code: &str) -> bool {
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

fn is_absence(status: u16, code: &str) -> bool {
    status == 404 && matches!(code, "NOT_FOUND" | "RESOURCE_NOT_EXISTS")
}

/// The reason of a rejection, by what is signed.
fn reason(status: u16, code: &str) -> Reason {
    match (status, code) {
        _ if is_absence(status, code) => Reason::NotFound,
        (403, "NOT_ENOUGH") => Reason::NotUsable,
        (400, "PARAM_ERROR") => Reason::InvalidParameter,
        _ => Reason::Rejected,
    }
}

/// The reason of a rejection more exactly, by the number at the end of `Request-ID`.
fn refine(number: u64) -> Option<Reason> {
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

fn unusable(state: &CouponState) -> Verdict {
    match state {
        CouponState::Confirming => Verdict::Refused(Reason::NotConfirmed),
        CouponState::Pending => Verdict::Refused(Reason::NotYetValid),
        CouponState::Expired => Verdict::Refused(Reason::Expired),
        CouponState::Deleted => Verdict::Refused(Reason::Deleted),
        CouponState::Deactivated => Verdict::Refused(Reason::Deactivated),
        CouponState::Effective | CouponState::Used | CouponState::Other(_) => {
            Verdict::Unsure(Doubt::Contradicted)
        }
    }
}

fn standing(answer: &Answer, redemption: &Redemption) -> Standing {
    let Redemption { coupon_code, out_request_no, sequential_coupon_index, .. } = redemption;
    match &answer.coupon {
        None => Standing::Unclear,
        Some(coupon) if !coupon.is_of(redemption) => Standing::AnotherCoupon,
        Some(coupon) => coupon.standing(coupon_code, out_request_no, *sequential_coupon_index),
    }
}
