//! Why an outcome is not `redeemed`. The words are part of the contract with order services.

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
    /// The brand has not authorized this service provider.
    NotAuthorized,
    /// The provider rejected a parameter.
    InvalidParameter,
    /// Any other rejection, or one that the coupon's own state contradicts.
    Rejected,
    /// The command could not be read or breaks a rule.
    InvalidCommand,
    /// The deadline passed and the effect is still unknown.
    DeadlinePassed,
    /// The limit of attempts is reached and the effect is still unknown.
    AttemptsExhausted,
    /// Every query was rejected for minutes because of an id of the command, and the effect is still unknown.
    QueryRejected,
    /// A retry message came back corrupt, so earlier operations are not known.
    CorruptRetryMessage,
    /// The broker reached its delivery limit before the command was settled.
    DeliveryLimit,
    /// It expired in the command queue, by the expiration that its sender set.
    MessageExpired,
    /// The broker dead-lettered it for another reason.
    DeadLettered,
}

impl Reason {
    /// Every reason, for metrics, schemas and tables.
    pub const ALL: [Self; 26] = [
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
        Self::NotAuthorized,
        Self::InvalidParameter,
        Self::Rejected,
        Self::InvalidCommand,
        Self::DeadlinePassed,
        Self::AttemptsExhausted,
        Self::QueryRejected,
        Self::CorruptRetryMessage,
        Self::DeliveryLimit,
        Self::MessageExpired,
        Self::DeadLettered,
    ];

    /// The reasons of rejections by the provider, and the only ones that a retry message may carry.
    pub const REJECTIONS: [Self; 14] = [
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
        Self::NotAuthorized,
        Self::InvalidParameter,
        Self::Rejected,
    ];

    /// Whether a rejection for this reason may report an earlier use of ours as "this number was already used". The
    /// provider does not document the status, code and number of that response.
    pub fn may_be_our_own_use(self) -> bool {
        matches!(self, Self::UsedByAnother | Self::NumberConflict | Self::InvalidParameter | Self::Rejected)
    }

    /// Whether a rejection for this reason says so little that it may meet every command alike.
    pub fn may_be_common(self) -> bool {
        matches!(self, Self::InvalidParameter | Self::Rejected)
    }

    /// Whether a rejection for this reason is about the coupon itself, which implies that the provider checked our
    /// authorization first.
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

    /// Whether a rejection for this reason is about an id that a use and a query share.
    pub fn is_about_an_id(self) -> bool {
        matches!(self, Self::OpenidMismatch | Self::AppidNotBound | Self::NotFound | Self::NoSuchCoupon)
    }

    /// Whether a usable coupon contradicts this reason.
    pub fn contradicts_usable_coupon(self) -> bool {
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
            Self::NotAuthorized => "not_authorized",
            Self::InvalidParameter => "invalid_parameter",
            Self::Rejected => "rejected",
            Self::InvalidCommand => "invalid_command",
            Self::DeadlinePassed => "deadline_passed",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::QueryRejected => "query_rejected",
            Self::CorruptRetryMessage => "corrupt_retry_message",
            Self::DeliveryLimit => "delivery_limit",
            Self::MessageExpired => "message_expired",
            Self::DeadLettered => "dead_lettered",
        }
    }

    /// Reads the word back.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}
