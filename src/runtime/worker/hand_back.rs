//! Hands a delivery back without a count against it: a new message in the queue, confirmed, then the acknowledgement.

use std::time::Duration;

use jiff::Timestamp;

use crate::amqp::delivery::{DEAD_AGAIN, DEAD_AT, DEAD_REASON, DEAD_TRIES, Delivery};
use crate::amqp::publisher::Publisher;

/// Publishes the command to its queue again, with `headers`, and acknowledges the delivery.
///
/// # Errors
/// In words, if the broker was not reached. It delivers the command again by itself.
pub async fn return_to_queue(
    publisher: &Publisher,
    delivery: Delivery,
    headers: Vec<(&'static str, String)>,
) -> Result<(), String> {
    let proof = publisher.publish_requeued(&delivery, headers).await.map_err(|why| why.to_string())?;
    delivery.ack(proof).await.map_err(|unsettled| unsettled.to_string())
}

/// Publishes a dead letter to its queue again, with `headers` and the reason why it was dead-lettered.
///
/// # Errors
/// In words, if the broker was not reached. It delivers the command again by itself.
pub async fn return_dead_letter_to_queue(
    publisher: &Publisher,
    delivery: Delivery,
    mut headers: Vec<(&'static str, String)>,
) -> Result<(), String> {
    // The progress of the command is not carried: its coupon is only queried.
    headers.retain(|(name, _)| [DEAD_TRIES, DEAD_AGAIN].contains(name));
    if let Some(death) = delivery.last_death() {
        headers.push((DEAD_REASON, death.reason.to_owned()));
        headers.extend(death.at.map(|at| (DEAD_AT, at.to_string())));
    }
    let proof =
        publisher.publish_requeued_dead_letter(&delivery, headers).await.map_err(|why| why.to_string())?;
    delivery.ack(proof).await.map_err(|unsettled| unsettled.to_string())
}

/// The first and the longest pause between two attempts to publish the event of a dead letter.
pub(super) const DEAD_PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// The headers of a dead letter whose event was not accepted: when it is published again, which costs a query.
pub(super) fn dead_letter_retry_headers(delivery: &Delivery) -> Vec<(&'static str, String)> {
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
