//! The words of labels: every label is a word of an enum here or of the domain, never an id.

use strum::{IntoStaticStr, VariantArray};

use crate::policy::classify::SuspendReason;

macro_rules! label_words {
    ($($label:ident),*) => {
        $(impl $label {
            /// Every variant.
            pub const ALL: &'static [Self] = Self::VARIANTS;

            /// The word in labels and logs.
            pub fn as_str(self) -> &'static str {
                self.into()
            }
        })*
    };
}

label_words!(Arrival, Settlement, DelayReason, Message, PublishFailureKind, Queue, Key, ConsoleDenial);

/// How a delivery arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Arrival {
    /// For the first time.
    First,
    /// Delivered again by the broker: a consumer held it before.
    Redelivered,
    /// From a delay queue.
    Retry,
}

/// How a delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
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

/// Why a command was delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum DelayReason {
    /// Its outcome is not known yet.
    Unresolved,
    /// The broker rejected its event for too long.
    EventRejected,
    /// The per-coupon limit is reached.
    PerCouponLimit,
}

/// The kind of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
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

/// Why a publish was not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
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

/// A key that can expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Key {
    /// The merchant API certificate.
    Merchant,
    /// The platform certificate that is valid longest.
    Verification,
}

/// Why the operator console denied a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ConsoleDenial {
    /// The token is wrong.
    WrongToken,
    /// A form without a session, or with one that has ended.
    NoSession,
    /// A form without the CSRF token of its session, or from another site.
    Forged,
}
