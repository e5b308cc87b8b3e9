//! A delivery as it was received, with the command that was read from it.

use jiff::Timestamp;

use crate::amqp::delivery::Delivery;
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;
use crate::telemetry::metrics::Arrival;
use crate::wire::command::{self, Fault, PartialCommand, Rejected};
use crate::wire::handed_back::{HANDED_BACK, HandedBack};
use crate::wire::retry_message::{self, DeadlineLimits};

/// A delivery and the command read from it.
#[derive(Debug)]
pub struct ReceivedDelivery {
    /// The message.
    pub delivery: Delivery,
    /// Its command, or why it is not one.
    pub command: Result<Redemption, Box<Rejected>>,
    /// When it was received.
    pub at: Timestamp,
    /// The deadline that the sender set, if it can be read, or that of a command that was handed back.
    pub deadline: Option<Timestamp>,
    /// Whether the per-coupon limit is reached. Then it is delayed at once.
    pub over_coupon_limit: bool,
    /// Whether calls are held back for long: then it makes the call that is possible now, or none, and is delayed.
    pub calls_held_back: bool,
    /// Why the broker dead-lettered it, if it did. Then its coupon is only queried.
    pub dead_lettered: Option<Reason>,
}

impl ReceivedDelivery {
    /// Reads the command of a delivery, with the deadline that it has: one that was handed back again and again while
    /// calls are suspended is as old as its first delivery.
    pub fn with_deadline(delivery: Delivery, at: Timestamp, limits: DeadlineLimits) -> Self {
        let mut received = Self::new(delivery, at);
        if received.deadline.is_none()
            && let Some(words) = received.delivery.header(HANDED_BACK)
            && let Ok(handed_back) = HandedBack::from_words(words, at)
        {
            received.deadline = retry_message::deadline(None, handed_back.first_seen, limits).ok();
        }
        received
    }

    /// Reads the command of a delivery.
    pub fn new(delivery: Delivery, at: Timestamp) -> Self {
        let command = match (command::decode(delivery.body()), delivery.undecodable_property()) {
            // The unreadable headers may be those of a retry message.
            (decoded, Some((name, problem))) => {
                let partial =
                    decoded.as_ref().map_or_else(|rejected| rejected.partial.clone(), PartialCommand::from);
                let problem = format!("its property {name} {problem}; send text in UTF-8 and flat headers");
                let faults = vec![Fault { pointer: String::new(), problem }];
                Err(Box::new(Rejected { faults, partial }))
            }
            (decoded, None) => decoded.map_err(|rejected| match delivery.content_encoding() {
                None => rejected,
                // The command may be valid, but it cannot be read.
                Some(encoding) => {
                    let problem = format!(
                        "its content_encoding is {:?}; send JSON in UTF-8, neither compressed nor encoded",
                        encoding.chars().take(32).collect::<String>()
                    );
                    let faults = vec![Fault { pointer: String::new(), problem }];
                    Box::new(Rejected { faults, partial: PartialCommand::default() })
                }
            }),
        };
        let deadline = delivery.header(retry_message::DEADLINE).and_then(|text| text.parse().ok());
        Self {
            delivery,
            command,
            at,
            deadline,
            over_coupon_limit: false,
            calls_held_back: false,
            dead_lettered: None,
        }
    }

    /// Reads the command of a dead-lettered delivery.
    pub fn dead_letter(delivery: Delivery, at: Timestamp) -> Self {
        let reason = match delivery.last_death().map(|death| death.reason) {
            Some("delivery_limit") => Reason::DeliveryLimit,
            Some("expired") => Reason::MessageExpired,
            _ => Reason::DeadLettered,
        };
        Self { dead_lettered: Some(reason), ..Self::new(delivery, at) }
    }

    /// The coupon code, the lane of the command.
    pub fn lane(&self) -> Option<&str> {
        self.command.as_ref().ok().map(|redemption| redemption.coupon_code.as_str())
    }

    /// Whether it can wait while calls are held back: it is a command, and its deadline is not near. With delay queues
    /// (`delays`) a command with a deadline waits there instead.
    pub fn may_wait_for_calls(&self, delays: bool) -> bool {
        if self.command.is_err() {
            return false;
        }
        if delays {
            return self.arrival() != Arrival::Retry && !self.delivery.has_header(retry_message::DEADLINE);
        }
        self.deadline.is_none_or(|deadline| Timestamp::now() < deadline)
    }

    /// New, redelivered, or a retry message.
    pub fn arrival(&self) -> Arrival {
        if retry_message::is_retry_message(|name| self.delivery.has_header(name)) {
            Arrival::Retry
        } else if self.delivery.redelivered() {
            Arrival::Redelivered
        } else {
            Arrival::First
        }
    }
}
