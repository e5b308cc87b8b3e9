//! Publishes what a worker has to say until the broker has taken it, and knows what to do while it does not.
//!
//! What the broker refuses (a subscriber's queue is full, a quorum queue has no leader), returns (a queue or a binding is
//! gone) or rejects (a right or an exchange is missing, a message is too large) is published again with growing pauses,
//! here, under the worker's permit: the permits fill up and consumption comes to rest by itself. Ending the session
//! instead would count a failed delivery against every command in hand, until the broker parks them all.
//!
//! One event that is rejected while events in general are taken concerns its own command alone: that is delayed, and
//! others go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::{EventsAccepted, PublishFailure, Published, Publisher, Rejection};
use crate::domain::outcome::OutcomeKind;
use crate::domain::reason::Reason;
use crate::policy::backoff::Backoff;
use crate::policy::prefetch_ramp::PrefetchRamp;
use crate::runtime::failpoints::{self, Failpoint};
use crate::telemetry::metrics::{Message, Metrics};
use crate::telemetry::spans::ChildSpan;
use crate::wire::result_event::Event;

/// Reports a waiting worker to hand back what it holds. True once it is time.
pub type CancelSignal = watch::Receiver<bool>;

/// Why a delivery was not settled as it should have been.
#[derive(Debug, thiserror::Error)]
pub enum PublishInterrupted {
    /// It was time to hand back, with the headers that carry its progress.
    #[error("cancel short while waiting")]
    Canceled(Box<Delivery>, Vec<(&'static str, String)>),
    /// It was time to hand back while a publish was held: anyone who has the delivery makes [`PublishInterrupted::Canceled`] of it.
    #[error("cancel short while the broker did not take a message")]
    HeldTooLong,
    /// A publish was not proven.
    #[error("{0}")]
    NotPublished(PublishFailure),
}

impl PublishInterrupted {
    /// With the delivery that it happened to, and the headers that carry its progress.
    pub fn into_worked(self, delivery: Delivery, headers: Vec<(&'static str, String)>) -> Self {
        match self {
            Self::HeldTooLong => Self::Canceled(Box::new(delivery), headers),
            other => other,
        }
    }
}

/// What something is published with.
#[derive(Clone, Copy)]
pub struct PublishContext<'a> {
    /// Publishes.
    pub publisher: &'a Publisher,
    /// Counts.
    pub metrics: &'a Metrics,
    /// Remembers what the broker does not take.
    pub faults: &'a PublishFaults,
    /// Ends a wait.
    pub cancel: &'a CancelSignal,
}

/// What goes out about a delivery.
#[derive(Clone, Copy)]
pub enum Outgoing<'a> {
    /// A result event.
    Event(&'a Event),
    /// A retry message for the delay queue of this wait, with headers.
    Retry(Duration, &'a [(&'static str, String)]),
    /// A command for people to look at, with headers.
    Parked(Reason, Timestamp, &'a [(&'static str, String)]),
}

impl Outgoing<'_> {
    fn message(self) -> Message {
        match self {
            Self::Event(_) => Message::Event,
            Self::Retry(..) => Message::Retry,
            Self::Parked(..) => Message::Parked,
        }
    }
}

/// How many events in a row the broker may reject, while it takes probes, until that no longer looks like a fault of single
/// events: a limit on sizes below all of them, for example.
const REJECTED_IN_A_ROW_MAX: u32 = 5;
/// How long such an event is then held: others must get their turn, or nothing would ever show that events are taken.
const REJECTED_HELD_MAX: Duration = Duration::from_secs(10);

/// Publishes until it is proven.
///
/// # Errors
/// [`PublishInterrupted`]
pub async fn publish(
    context: PublishContext<'_>,
    delivery: &Delivery,
    outgoing: Outgoing<'_>,
    leg: ChildSpan,
) -> Result<Published, PublishInterrupted> {
    // Held without end it is not given up before it is time to hand back.
    publish_within(context, delivery, outgoing, leg, Duration::MAX)
        .await?
        .ok_or(PublishInterrupted::HeldTooLong)
}

/// Publishes until it is proven. Gives no proof if the broker has not taken it for `held_max`, or rejects this very
/// event, or it is time to hand back: then the command is to be delayed. With [`Duration::MAX`] nothing may be delayed, and
/// it is to be handed back.
///
/// # Errors
/// [`PublishInterrupted`]
pub async fn publish_within(
    PublishContext { publisher, metrics, faults, cancel }: PublishContext<'_>,
    delivery: &Delivery,
    outgoing: Outgoing<'_>,
    mut leg: ChildSpan,
    held_max: Duration,
) -> Result<Option<Published>, PublishInterrupted> {
    let message = outgoing.message();
    let pauses = Backoff::default();
    let mut nth = 0;
    let mut held: Option<Held<'_>> = None;
    let mut held_since = None;
    loop {
        // In boxes: the client's part is large, short, and would otherwise be kept free for it while a command waits.
        let publishing = async {
            match outgoing {
                Outgoing::Event(event) => {
                    Box::pin(publisher.publish_event(event, delivery, leg.traceparent())).await
                }
                Outgoing::Retry(wait, headers) => {
                    Box::pin(publisher.publish_retry_message(delivery, wait, headers.to_vec())).await
                }
                Outgoing::Parked(reason, at, headers) => {
                    Box::pin(publisher.publish_parked(delivery, reason.as_str(), at, headers.to_vec())).await
                }
            }
        };
        let published = failpoints::during(Failpoint::Publishing(message), publishing).await;
        metrics.record_publish(message, published.as_ref().map(|_| ()).map_err(PublishFailure::kind));
        let mut why = match published {
            Ok(proof) => {
                failpoints::reached(Failpoint::Published(message));
                if let Outgoing::Event(event) = outgoing {
                    faults.record_confirmed(event.kind);
                }
                return Ok(Some(proof));
            }
            Err(
                why @ (PublishFailure::Refused | PublishFailure::Returned(_) | PublishFailure::Rejected(_)),
            ) => why,
            Err(why) => {
                leg.failed(&why.to_string());
                return Err(PublishInterrupted::NotPublished(why));
            }
        };
        let held_for = held_since.get_or_insert_with(Instant::now).elapsed();
        let mut delays = held_for >= held_max;
        if let (PublishFailure::Rejected(rejection), Outgoing::Event(event)) = (&why, outgoing) {
            match Box::pin(publisher.results_accept_events()).await {
                EventsAccepted::Rejected(of_all) => why = PublishFailure::Rejected(of_all),
                // The publish itself says more.
                EventsAccepted::Unknown => {}
                EventsAccepted::Accepted => {
                    let in_a_row = faults.record_rejected(event.kind, rejection);
                    delays |= held_max != Duration::MAX
                        && (in_a_row <= REJECTED_IN_A_ROW_MAX || held_for >= REJECTED_HELD_MAX);
                }
            }
        }
        if delays {
            leg.failed(&why.to_string());
            return Ok(None);
        }
        let pause = pauses.wait(nth, rand::random());
        nth = nth.saturating_add(1);
        leg.set_attribute("redemption.publishes", i64::from(nth) + 1);
        match &mut held {
            Some(held) => held.change(&why),
            None => {
                if PrefetchRamp::is_full(delivery.delivery_count()) {
                    faults.through.fetch_add(1, Ordering::Relaxed);
                }
                held = Some(faults.start_holding(&why));
            }
        }
        if timeout(pause, cancel.clone().wait_for(|now| *now)).await.is_ok() {
            leg.failed(&why.to_string());
            // Delayed or handed back it costs no delivery; what was lost with its session comes again by itself.
            return match publisher.is_lost() {
                true => Err(PublishInterrupted::NotPublished(why)),
                false => Ok(None),
            };
        }
    }
}

/// What the broker does not take now, for readiness: a fault is known as long as a publish is held for it.
#[derive(Debug, Default)]
pub struct PublishFaults {
    faults: Mutex<Faults>,
    /// Events rejected in a row, each alone.
    in_a_row: AtomicU32,
    /// Trusted commands of which a publish began to be held: they harm no session, and others need not wait for them.
    through: AtomicU16,
}

#[derive(Debug, Default)]
struct Faults {
    /// How many publishes are held for each fault.
    held: BTreeMap<FaultKey, (PublishFailure, usize)>,
    /// Single events that were rejected, by outcome; none once an event of that outcome was confirmed again.
    rejected: BTreeMap<&'static str, (Instant, Rejection)>,
}

/// Faults that differ in nothing but a routing key are one.
type FaultKey = (&'static str, u16, String);

/// How long a rejected event is news where no other of its kind follows: longer than the longest delay.
const REJECTED_LATELY: Duration = Duration::from_secs(3 * 3_600);

impl PublishFaults {
    /// Every fault that a publish is held for now.
    pub fn longest_held(&self) -> Vec<PublishFailure> {
        self.lock().held.values().map(|(why, _)| why.clone()).collect()
    }

    /// Single events that were rejected lately: their commands are delayed.
    pub fn last_rejection(&self) -> Vec<Rejection> {
        let faults = self.lock();
        let lately = faults.rejected.values().filter(|(at, _)| at.elapsed() < REJECTED_LATELY);
        lately.map(|(_, rejection)| rejection.clone()).collect()
    }

    /// How many trusted commands began to be held since this was asked last.
    pub fn complete_with(&self) -> u16 {
        self.through.swap(0, Ordering::Relaxed)
    }

    fn start_holding(&self, why: &PublishFailure) -> Held<'_> {
        let key = key(why);
        self.lock().held.entry(key.clone()).or_insert_with(|| (why.clone(), 0)).1 += 1;
        Held { faults: self, key }
    }

    fn record_confirmed(&self, kind: OutcomeKind) {
        // On the way of every event: the lock is taken only after something was rejected.
        if self.in_a_row.swap(0, Ordering::Relaxed) > 0 || !self.lock().rejected.is_empty() {
            self.lock().rejected.remove(kind.as_str());
        }
    }

    /// Gives how many events were rejected in a row.
    fn record_rejected(&self, kind: OutcomeKind, rejection: &Rejection) -> u32 {
        let news = (Instant::now(), rejection.clone());
        if self.lock().rejected.insert(kind.as_str(), news).is_none() {
            warn!(
                code = rejection.code,
                exchange = rejection.exchange,
                routing_key = rejection.routing_key,
                broker = rejection.text,
                "event rejected by the broker; its command is delayed"
            );
        }
        self.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    fn lock(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(why: &PublishFailure) -> FaultKey {
    match why {
        PublishFailure::Rejected(Rejection { exchange, code, .. }) => {
            (why.kind().as_str(), *code, exchange.clone())
        }
        _ => (why.kind().as_str(), 0, String::new()),
    }
}

/// A publish that is held; dropped once it is not.
struct Held<'a> {
    faults: &'a PublishFaults,
    key: FaultKey,
}

impl Held<'_> {
    fn change(&mut self, why: &PublishFailure) {
        if key(why) != self.key {
            *self = self.faults.start_holding(why);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut faults = self.faults.lock();
        if let Some((_, count)) = faults.held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                faults.held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(routing_key: &str) -> Rejection {
        let (exchange, text) = ("redemption.results".to_owned(), "refused".to_owned());
        Rejection { exchange, routing_key: routing_key.to_owned(), code: 403, text }
    }

    #[test]
    fn fault_is_known_while_held_whatever_the_key() {
        let faults = PublishFaults::default();
        let first = faults.start_holding(&PublishFailure::Rejected(rejection("a")));
        let mut second = faults.start_holding(&PublishFailure::Rejected(rejection("b")));
        assert_eq!(faults.longest_held().len(), 1);
        second.change(&PublishFailure::Refused);
        assert_eq!(faults.longest_held().len(), 2);
        drop(first);
        assert_eq!(faults.longest_held(), [PublishFailure::Refused]);
        drop(second);
        assert!(faults.longest_held().is_empty());
    }

    #[test]
    fn rejected_events_count_in_a_row_and_end_with_one_confirmed() {
        let faults = PublishFaults::default();
        assert_eq!(faults.record_rejected(OutcomeKind::Invalid, &rejection("a")), 1);
        assert_eq!(faults.record_rejected(OutcomeKind::Invalid, &rejection("b")), 2);
        faults.record_confirmed(OutcomeKind::Redeemed);
        assert_eq!(faults.last_rejection(), [rejection("b")], "another kind says nothing about this one");
        assert_eq!(faults.record_rejected(OutcomeKind::Invalid, &rejection("c")), 1);
        faults.record_confirmed(OutcomeKind::Invalid);
        assert!(faults.last_rejection().is_empty());
    }
}
