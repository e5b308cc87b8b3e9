//! Why a session, or one connection of it, ended.

use std::time::Duration;

use crate::amqp::confirm::PublishFailure;
use crate::amqp::delivery::AckError;

/// The cause of a session's end. Programs read its code; its words are for people.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionEnd {
    /// The broker or the network ended a connection.
    #[error("{0}")]
    Connection(lapin::Error),
    /// A connection ended, and the client gives no reason.
    #[error("the connection ended")]
    ConnectionClosed,
    /// The broker did not respond to a request in time.
    #[error("no response within {0:?}")]
    NoResponse(Duration),
    /// The broker closed the channel that consumes.
    #[error(
        "the broker closed the consumer's channel: {0}; if a delivery timed out, a command was held for longer than the \
         broker's consumer_timeout: check for results or retries that it does not accept"
    )]
    ConsumerChannelClosed(lapin::Error),
    /// The broker canceled the consumer.
    #[error(
        "the broker canceled the consumer: queue {queue} was deleted, or a command was held for longer than the broker's \
         consumer_timeout (RabbitMQ 4.3 and later)"
    )]
    ConsumerCanceled {
        /// The command queue.
        queue: String,
    },
    /// A consumer could not be started.
    #[error("cannot consume {queue}: {source}")]
    CannotConsume {
        /// The command queue.
        queue: String,
        /// What failed.
        source: Box<Self>,
    },
    /// A consumer could not be canceled.
    #[error("the consumer could not be stopped: {0}")]
    CancelFailed(lapin::Error),
    /// The broker did not confirm in time that a consumer is canceled.
    #[error("the broker did not stop the consumer within {0:?}")]
    CancelTimedOut(Duration),
    /// A delivery was not acknowledged.
    #[error("{0}")]
    NotAcknowledged(#[from] AckError),
    /// A publish was not confirmed.
    #[error("{0}")]
    NotPublished(#[from] PublishFailure),
    /// A publish was held until its job was canceled.
    #[error("canceled while the broker did not accept a message")]
    PublishCanceled,
    /// A worker has a defect.
    #[error("a worker panicked")]
    WorkerPanicked,
    /// A hand-back has a defect.
    #[error("a hand-back panicked")]
    HandBackPanicked,
}

impl SessionEnd {
    /// The code in logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connection(_) => "connection_failed",
            Self::ConnectionClosed => "connection_closed",
            Self::NoResponse(_) => "no_response",
            Self::ConsumerChannelClosed(_) => "consumer_channel_closed",
            Self::ConsumerCanceled { .. } => "consumer_canceled",
            Self::CannotConsume { .. } => "cannot_consume",
            Self::CancelFailed(_) => "cancel_failed",
            Self::CancelTimedOut(_) => "cancel_timed_out",
            Self::NotAcknowledged(_) => "not_acknowledged",
            Self::NotPublished(_) => "not_published",
            Self::PublishCanceled => "publish_canceled",
            Self::WorkerPanicked => "worker_panicked",
            Self::HandBackPanicked => "hand_back_panicked",
        }
    }
}
