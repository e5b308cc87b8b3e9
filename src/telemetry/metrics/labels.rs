//! The words of labels: every label is a word of an enum here or of the domain, never an id.

use crate::policy::classify::SuspendReason;

/// How a delivery arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// For the first time.
    First,
    /// Delivered again by the broker: a consumer held it before.
    Redelivered,
    /// From a delay queue.
    Retry,
}

impl Arrival {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::First, Self::Redelivered, Self::Retry];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Redelivered => "redelivered",
            Self::Retry => "retry",
        }
    }
}

/// How a delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Its event is confirmed and it is acknowledged.
    Finished,
    /// Its retry message is confirmed in a delay queue and it is acknowledged.
    Delayed,
    /// It was handed back.
    HandedBack,
    /// Its session ended first; the broker delivers it again.
    Lost,
}

impl Settlement {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Finished, Self::Delayed, Self::HandedBack, Self::Lost];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Delayed => "delayed",
            Self::HandedBack => "handed_back",
            Self::Lost => "lost",
        }
    }
}

/// Why a command was delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayReason {
    /// Its outcome is not known yet.
    Unresolved,
    /// The broker rejected its event for too long.
    EventRejected,
    /// The per-coupon limit is reached.
    PerCouponLimit,
}

impl DelayReason {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Unresolved, Self::EventRejected, Self::PerCouponLimit];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::EventRejected => "event_rejected",
            Self::PerCouponLimit => "per_coupon_limit",
        }
    }
}

/// The kind of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A result event.
    Event,
    /// A retry message.
    Retry,
    /// A parked command.
    Parked,
    /// A command that is handed back.
    HandedBack,
}

impl Message {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Event, Self::Retry, Self::Parked, Self::HandedBack];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Retry => "retry",
            Self::Parked => "parked",
            Self::HandedBack => "handed_back",
        }
    }
}

/// Why a publish was not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFailureKind {
    /// No confirm in time.
    TimedOut,
    /// A nack.
    Refused,
    /// The broker returned it: it was not routed to any queue.
    Returned,
    /// The broker closed its channel: a right or an exchange is missing, or it is too large.
    Channel,
    /// The connection failed first.
    Connection,
}

impl PublishFailureKind {
    /// Every way.
    pub const ALL: [Self; 5] =
        [Self::TimedOut, Self::Refused, Self::Returned, Self::Channel, Self::Connection];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Returned => "returned",
            Self::Channel => "channel",
            Self::Connection => "connection",
        }
    }
}

/// Why calls are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallDelay {
    /// The provider does not respond.
    NoResponse,
    /// The provider responds with 5xx.
    ServerError,
    /// Its responses cannot be verified.
    Unverified,
    /// A fault of our own.
    Suspended(SuspendReason),
}

impl CallDelay {
    /// Every cause.
    pub const ALL: [Self; 6] = [
        Self::NoResponse,
        Self::ServerError,
        Self::Unverified,
        Self::Suspended(SuspendReason::Unauthenticated),
        Self::Suspended(SuspendReason::Unauthorized),
        Self::Suspended(SuspendReason::Rejected),
    ];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoResponse => "no_response",
            Self::ServerError => "server_error",
            Self::Unverified => "unverified",
            Self::Suspended(fault) => fault.as_str(),
        }
    }
}

/// A queue whose depth is reported. Delay queues have the label `retry.<wait>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Commands.
    Commands,
    /// Commands that need an operator.
    Parked,
    /// Results without a bound queue.
    Unrouted,
    /// Commands that the broker dead-lettered, and that have no event yet.
    Dead,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 4] = [Self::Commands, Self::Parked, Self::Unrouted, Self::Dead];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Parked => "parked",
            Self::Unrouted => "unrouted",
            Self::Dead => "dead",
        }
    }
}

/// A key that can expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The merchant API certificate.
    Merchant,
    /// The platform certificate that is valid longest.
    Verification,
}

impl Key {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Merchant, Self::Verification];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Merchant => "merchant",
            Self::Verification => "verification",
        }
    }
}

/// Why the operator console denied a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleDenial {
    /// The token is wrong.
    WrongToken,
    /// A form without a session, or with one that has ended.
    NoSession,
    /// A form without the CSRF token of its session, or from another site.
    Forged,
}

impl ConsoleDenial {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::WrongToken, Self::NoSession, Self::Forged];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongToken => "wrong_token",
            Self::NoSession => "no_session",
            Self::Forged => "forged",
        }
    }
}
