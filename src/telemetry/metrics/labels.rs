//! The words of labels: every label is a word of an enum here or of the domain, never an id.

use crate::policy::classify::SuspendReason;

/// How a command came to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// For the first time.
    First,
    /// Again, from the broker: somebody held it before.
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
    /// Its copy is confirmed in a delay queue and it is acknowledged.
    Delayed,
    /// It was handed back.
    HandedBack,
    /// The connection was gone first; the broker delivers it again.
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

/// Why a copy was put into a delay queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayReason {
    /// It is not settled yet, and asked again later.
    Unresolved,
    /// The broker refused its event for too long.
    EventRejected,
    /// Too many commands of its coupon are held already.
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

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A result event.
    Event,
    /// A copy for a delay queue.
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

/// Why a publish is not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFailureKind {
    /// No confirm came in time.
    TimedOut,
    /// The broker refused it.
    Refused,
    /// The broker gave it back: no queue took it.
    Returned,
    /// The broker closed the channel over it: a missing right or exchange, or it is too large.
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
    /// The provider does not answer.
    NoResponse,
    /// The provider answers that it is in trouble.
    ServerError,
    /// Its answers cannot be verified.
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

/// A queue whose depth is reported. Delay queues are labelled `retry.<wait>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Commands.
    Commands,
    /// Commands that a person must look at.
    Parked,
    /// Results that nobody has bound.
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

/// A key that can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The merchant API certificate.
    Merchant,
    /// The platform certificate that lasts longest.
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
    /// The token was another one.
    WrongToken,
    /// A form came without a session, or its session had ended.
    NoSession,
    /// A form was not made by a page of its session, or came from another site.
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
