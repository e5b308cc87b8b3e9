//! How a command ended, and what established it. `policy::attempt` decides both.

use crate::domain::coupon::Coupon;
use crate::domain::evidence::Rejection;
use crate::domain::reason::Reason;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The coupon was used, under our number.
    Redeemed {
        /// What establishes the conclusion.
        by: EstablishedBy,
        /// The coupon as the authentic response described it.
        coupon: Coupon,
    },
    /// The coupon was not used by this command, and will not be.
    Refused {
        /// Why.
        reason: Reason,
        /// What establishes the conclusion.
        by: EstablishedBy,
        /// The coupon, if an authentic response described it.
        coupon: Option<Coupon>,
        /// The last response to the redemption with a status of 400 or more, even if the refusal does not rest on it.
        rejection: Option<Rejection>,
    },
    /// The message is not a valid command.
    Invalid,
    /// The effect is still unknown at the end of the time allowed.
    Unresolved {
        /// Why no further query is sent.
        reason: Reason,
        /// The coupon, if an authentic response described it.
        coupon: Option<Coupon>,
        /// The provider's error response, if there was one.
        rejection: Option<Rejection>,
    },
}

/// The kinds of [`Outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// Used under our request number.
    Redeemed,
    /// Not used by this command, now or later.
    Refused,
    /// Not a valid command.
    Invalid,
    /// Unknown at the end of the time allowed.
    Unresolved,
}

impl OutcomeKind {
    /// Every kind, for metrics, schemas and tables.
    pub const ALL: [Self; 4] = [Self::Redeemed, Self::Refused, Self::Invalid, Self::Unresolved];

    /// The word in events, routing keys, logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redeemed => "redeemed",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
            Self::Unresolved => "unresolved",
        }
    }
}

impl Outcome {
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Self::Redeemed { .. } => OutcomeKind::Redeemed,
            Self::Refused { .. } => OutcomeKind::Refused,
            Self::Invalid => OutcomeKind::Invalid,
            Self::Unresolved { .. } => OutcomeKind::Unresolved,
        }
    }

    /// `None` for `redeemed`.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Redeemed { .. } => None,
            Self::Refused { reason, .. } | Self::Unresolved { reason, .. } => Some(*reason),
            Self::Invalid => Some(Reason::InvalidCommand),
        }
    }

    /// The coupon, if an authentic response described it.
    pub fn coupon(&self) -> Option<&Coupon> {
        match self {
            Self::Redeemed { coupon, .. } => Some(coupon),
            Self::Refused { coupon, .. } | Self::Unresolved { coupon, .. } => coupon.as_ref(),
            Self::Invalid => None,
        }
    }

    pub fn established_by(&self) -> EstablishedBy {
        match self {
            Self::Redeemed { by, .. } | Self::Refused { by, .. } => *by,
            Self::Invalid => EstablishedBy::Validation,
            Self::Unresolved { .. } => EstablishedBy::Deadline,
        }
    }

    /// The provider's error response, if there was one.
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Refused { rejection, .. } | Self::Unresolved { rejection, .. } => rejection.as_ref(),
            Self::Redeemed { .. } | Self::Invalid => None,
        }
    }
}

/// What establishes an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EstablishedBy {
    /// The response to the redemption itself.
    Response,
    /// The response to a query.
    Query,
    /// Our own validation of the command.
    Validation,
    /// Only the end of the time allowed.
    Deadline,
}

impl EstablishedBy {
    /// Every way, for schemas.
    pub const ALL: [Self; 4] = [Self::Response, Self::Query, Self::Validation, Self::Deadline];

    /// The word in events and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::Query => "query",
            Self::Validation => "validation",
            Self::Deadline => "deadline",
        }
    }
}
