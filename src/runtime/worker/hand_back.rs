//! Hands a delivery back without a count against it: a new message in the queue, confirmed, then the acknowledgement.
//!
//! What the broker does not accept (the queue is full, or has no leader; a right is missing) stays in hand: to end the
//! session over it would count a failed delivery against every command in hand.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::amqp::confirm::PublishFailure;
use crate::amqp::delivery::{DEAD_AGAIN, DEAD_AT, DEAD_REASON, DEAD_TRIES, Delivery};
use crate::amqp::publisher::Publisher;
use crate::amqp::session_end::SessionEnd;
use crate::policy::backoff::Backoff;
use crate::runtime::failpoints::{self, Failpoint};
use crate::runtime::publishing::{Held, PublishFaults, pause_after};
use crate::telemetry::metrics::{Message, Metrics};

/// Why a delivery was not handed back.
pub enum NotHandedBack {
    /// The broker did not accept it. It is still in hand.
    NotAccepted(Box<Delivery>, PublishFailure),
    /// Its session has ended. The broker delivers it again by itself.
    Lost(SessionEnd),
}

/// The queue that a delivery came from, and goes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The command queue.
    Commands,
    /// The queue of dead letters, and never the command queue.
    Dead,
}

/// Publishes the message to its queue again, with `headers`, and acknowledges the delivery. A dead letter carries the reason
/// why it was dead-lettered, and not the progress of the command: its coupon is only queried.
///
/// # Errors
/// [`NotHandedBack`]
pub async fn return_once(
    publisher: &Publisher,
    mut delivery: Delivery,
    mut headers: Vec<(&'static str, String)>,
    target: Target,
    metrics: &Metrics,
) -> Result<(), NotHandedBack> {
    let publishing = async {
        match target {
            Target::Commands => publisher.publish_requeued(&delivery, headers).await,
            Target::Dead => {
                headers.retain(|(name, _)| [DEAD_TRIES, DEAD_AGAIN].contains(name));
                if let Some(death) = delivery.last_death() {
                    headers.push((DEAD_REASON, death.reason.to_owned()));
                    headers.extend(death.at.map(|at| (DEAD_AT, at.to_string())));
                }
                publisher.publish_requeued_dead_letter(&delivery, headers).await
            }
        }
    };
    let published = failpoints::during(Failpoint::Publishing(Message::HandedBack), publishing).await;
    metrics
        .broker
        .record_publish(Message::HandedBack, published.as_ref().map(|_| ()).map_err(PublishFailure::kind));
    match published {
        Ok(confirmed) => {
            failpoints::reached(Failpoint::Published(Message::HandedBack));
            delivery.ack(confirmed).await.map_err(|unsettled| NotHandedBack::Lost(unsettled.into()))
        }
        Err(why @ (PublishFailure::Connection(_) | PublishFailure::Blocked(_))) => {
            Err(NotHandedBack::Lost(why.into()))
        }
        Err(why) => {
            if let PublishFailure::TimedOut(_) = why {
                delivery.mark_copied();
            }
            Err(NotHandedBack::NotAccepted(Box::new(delivery), why))
        }
    }
}

/// Hands a delivery back with growing pauses until the broker accepts it.
///
/// # Errors
/// Why its session has ended. The broker delivers it again by itself.
pub async fn return_until_accepted(
    publisher: &Publisher,
    mut delivery: Delivery,
    headers: Vec<(&'static str, String)>,
    target: Target,
    (metrics, faults): (&Metrics, &PublishFaults),
) -> Result<(), SessionEnd> {
    let pauses = Backoff::default();
    let mut nth = 0_u32;
    let mut held: Option<Held<'_>> = None;
    loop {
        let why = match return_once(publisher, delivery, headers.clone(), target, metrics).await {
            Ok(()) => return Ok(()),
            Err(NotHandedBack::Lost(why)) => return Err(why),
            Err(NotHandedBack::NotAccepted(back, why)) => {
                delivery = *back;
                why
            }
        };
        match &mut held {
            Some(held) => held.change(&why),
            None => held = Some(faults.start_holding(&why)),
        }
        let pause = pause_after(&why, pauses.wait(nth, rand::random()));
        nth = nth.saturating_add(1);
        if timeout(pause, publisher.lost()).await.is_ok() {
            return Err(why.into());
        }
    }
}

/// The first and the longest pause between two attempts to publish the event of a dead letter.
pub(super) const DEAD_PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// The headers of a dead letter whose event was not accepted: when it is published again, which costs a query. None if
/// the wait for the broker was canceled.
pub(super) fn dead_letter_retry_headers(
    delivery: &Delivery,
    cancel: &CancellationToken,
) -> Vec<(&'static str, String)> {
    if cancel.is_cancelled() {
        return Vec::new();
    }
    let tries = delivery.dead_tries();
    let at = Timestamp::now().saturating_add(dead_letter_pause(tries)).unwrap_or(Timestamp::MAX);
    vec![(DEAD_TRIES, tries.saturating_add(1).to_string()), (DEAD_AGAIN, at.to_string())]
}

/// Doubles with each attempt.
pub(super) fn dead_letter_pause(tries: u32) -> Duration {
    let (first, longest) = DEAD_PAUSES;
    first.saturating_mul(1 << tries.min(16)).min(longest)
}

/// Whether the event of a dead letter is published later. A time that is further ahead than we ever set is forged.
pub fn is_retry_pending(delivery: &Delivery, now: Timestamp) -> bool {
    let latest = now.saturating_add(DEAD_PAUSES.1).unwrap_or(Timestamp::MAX);
    delivery.dead_again().is_some_and(|at| now < at && at <= latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_a_dead_letter_double_up_to_ten_minutes() {
        let pauses = [0, 1, 2, 5, 6, 7, u32::MAX].map(|tries| dead_letter_pause(tries).as_secs());
        assert_eq!(pauses, [10, 20, 40, 320, 600, 600, 600]);
    }
}
