//! Why a publish was not confirmed.

use std::time::Duration;

use lapin::ErrorKind;

use crate::telemetry::metrics::PublishFailureKind;

/// Exists only if a publish was confirmed and not returned: only a publisher can make one.
#[derive(Debug)]
pub struct Published(pub(super) ());

impl Published {
    /// One value for two publishes.
    pub fn join(self, other: Self) -> Self {
        let (Self(()), Self(())) = (self, other);
        Self(())
    }
}

/// Why a publish was not confirmed. The broker may have the message all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishFailure {
    /// No confirm within the deadline.
    #[error("the broker did not confirm within {0:?}")]
    TimedOut(Duration),
    /// The broker refused it: a full queue, or a queue without a leader.
    #[error("the broker refused the message (nack)")]
    Refused,
    /// No queue took it.
    #[error("the broker returned a message: {0}")]
    Returned(String),
    /// The broker blocks publishing, and the publish does not wait for the end of that.
    #[error(
        "the broker blocks publishing ({0}): memory or disk is low; check rabbitmqctl status, and try again when the \
         alarm is over"
    )]
    Blocked(String),
    /// The broker closed an isolated channel because of this message.
    #[error("{0}")]
    Rejected(PublishRejection),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Connection(String),
}

/// Why the broker closed a channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the broker does not accept what is published to exchange {exchange} under {routing_key}: {}{text}",
    code_text(*code)
)]
pub struct PublishRejection {
    /// Which exchange it was published to.
    pub exchange: String,
    /// Under which key.
    pub routing_key: String,
    /// AMQP reply code: 403 a missing right, 404 a missing exchange, 406 a message that is too large; 0 where the client
    /// does not say.
    pub code: u16,
    /// The broker's words.
    pub text: String,
}

/// Whether the broker takes events in general.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventsAccepted {
    /// It does: a rejection concerns the one event.
    Accepted,
    /// It does not.
    Rejected(PublishRejection),
    /// Unknown: the probe failed.
    Unknown,
}

impl PublishFailure {
    /// The kind of it, for metrics.
    pub fn kind(&self) -> PublishFailureKind {
        match self {
            Self::TimedOut(_) | Self::Blocked(_) => PublishFailureKind::TimedOut,
            Self::Refused => PublishFailureKind::Refused,
            Self::Returned(_) => PublishFailureKind::Returned,
            Self::Rejected(_) => PublishFailureKind::Channel,
            Self::Connection(_) => PublishFailureKind::Connection,
        }
    }
}

fn code_text(code: u16) -> String {
    if code == 0 { String::new() } else { format!("{code} ") }
}

impl PublishRejection {
    /// The broker's words when it closed the channel of a message.
    pub(crate) fn new(exchange: String, routing_key: String, error: &lapin::Error) -> Self {
        let exchange = if exchange.is_empty() { "amq.default".to_owned() } else { exchange };
        let (code, text) = match error.kind() {
            ErrorKind::ProtocolError(fault) => (fault.get_id(), fault.get_message().to_string()),
            _ => (0, error.to_string()),
        };
        let mut text: String = text.chars().filter(|letter| !letter.is_control()).collect();
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        Self { exchange, routing_key, code, text }
    }
}

/// The longest text of the broker that is kept, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 300;
