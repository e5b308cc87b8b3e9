//! Publishes the messages of a job until the broker confirms them.
//!
//! A publish that the broker refuses (a subscriber's queue is full, a quorum queue has no leader), returns (a queue or a
//! binding is missing) or rejects (a right or an exchange is missing, a message is too large) is repeated with growing
//! pauses, while the job keeps its permit: the permits fill up and consumption stops by itself. Ending the session
//! instead would count a failed delivery against every command in hand, until the broker parks them all.
//!
//! An event that is rejected while other events are accepted concerns its own command: that command is delayed, and the
//! others continue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::amqp::confirm::{EventsAccepted, PublishFailure, PublishRejection, Published};
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::Publisher;
use crate::domain::outcome::OutcomeKind;
use crate::domain::reason::Reason;
use crate::policy::backoff::Backoff;
use crate::policy::prefetch_ramp::PrefetchRamp;
use crate::runtime::failpoints::{self, Failpoint};
use crate::telemetry::metrics::{Message, Metrics};
use crate::telemetry::spans::ChildSpan;
use crate::wire::result_event::Event;

/// Why a job did not settle its delivery.
#[derive(Debug, thiserror::Error)]
pub enum PublishInterrupted {
    /// The job was canceled; the headers carry its progress.
    #[error("canceled while waiting")]
    Canceled(Box<Delivery>, Vec<(&'static str, String)>),
    /// The job was canceled while a publish was held. The caller, which has the delivery, makes it
    /// [`PublishInterrupted::Canceled`].
    #[error("canceled while the broker did not accept a message")]
    HeldTooLong,
    /// A publish was not confirmed.
    #[error("{0}")]
    NotPublished(PublishFailure),
}

impl PublishInterrupted {
    /// Adds the delivery and the headers that carry its progress.
    pub fn into_worked(self, delivery: Delivery, headers: Vec<(&'static str, String)>) -> Self {
        match self {
            Self::HeldTooLong => Self::Canceled(Box::new(delivery), headers),
            other => other,
        }
    }
}

/// What a job publishes with.
#[derive(Clone, Copy)]
pub struct PublishContext<'a> {
    /// The publisher of the session.
    pub publisher: &'a Publisher,
    /// Counters.
    pub metrics: &'a Metrics,
    /// The faults of publishes.
    pub faults: &'a PublishFaults,
    /// Canceled once waiting jobs must hand their deliveries back.
    pub cancel: &'a CancellationToken,
}

/// A message about a delivery.
#[derive(Clone, Copy)]
pub enum Outgoing<'a> {
    /// A result event.
    Event(&'a Event),
    /// A retry message for the delay queue with this wait, with headers.
    Retry(Duration, &'a [(&'static str, String)]),
    /// A parked command, with headers.
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

/// How many events in a row the broker may reject while it accepts probes. More are not the fault of single events: the
/// broker's size limit may be below every event, for example.
const REJECTED_IN_A_ROW_MAX: u32 = 5;
/// How long such an event is then held: other events must be tried, or nothing would show that events are accepted again.
const REJECTED_HELD_MAX: Duration = Duration::from_secs(10);

/// Publishes until the broker confirms.
///
/// # Errors
/// [`PublishInterrupted`]
pub async fn publish(
    context: PublishContext<'_>,
    delivery: &Delivery,
    outgoing: Outgoing<'_>,
    child_span: ChildSpan,
) -> Result<Published, PublishInterrupted> {
    // Without a limit only a cancellation ends it.
    publish_within(context, delivery, outgoing, child_span, Duration::MAX)
        .await?
        .ok_or(PublishInterrupted::HeldTooLong)
}

/// Publishes until the broker confirms. `None` if it has not accepted the message for `held_max`, or rejects this event
/// alone, or the job is canceled: the caller then delays the command. With [`Duration::MAX`] the caller hands it back.
///
/// # Errors
/// [`PublishInterrupted`]
pub async fn publish_within(
    PublishContext { publisher, metrics, faults, cancel }: PublishContext<'_>,
    delivery: &Delivery,
    outgoing: Outgoing<'_>,
    mut child_span: ChildSpan,
    held_max: Duration,
) -> Result<Option<Published>, PublishInterrupted> {
    let message = outgoing.message();
    let pauses = Backoff::default();
    let mut nth = 0;
    let mut held: Option<Held<'_>> = None;
    let mut held_since = None;
    loop {
        // Boxed: the client's future is large and short, and would otherwise take memory while a command waits.
        let publishing = async {
            match outgoing {
                Outgoing::Event(event) => {
                    Box::pin(publisher.publish_event(event, delivery, child_span.traceparent())).await
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
        metrics.broker.record_publish(message, published.as_ref().map(|_| ()).map_err(PublishFailure::kind));
        let mut why = match published {
            Ok(confirmed) => {
                failpoints::reached(Failpoint::Published(message));
                if let Outgoing::Event(event) = outgoing {
                    faults.record_confirmed(event.kind);
                }
                return Ok(Some(confirmed));
            }
            Err(why) => why,
        };
        let accepted = events_accepted(publisher, &why, outgoing).await;
        if is_of_session(&why, accepted.as_ref()) {
            child_span.record_failure(&why.to_string());
            return Err(PublishInterrupted::NotPublished(why));
        }
        let held_for = held_since.get_or_insert_with(Instant::now).elapsed();
        let mut delays = held_for >= held_max;
        if let Outgoing::Event(event) = outgoing {
            match accepted {
                Some(EventsAccepted::Rejected(of_all)) => why = PublishFailure::Rejected(of_all),
                // The failure of the publish itself says more.
                Some(EventsAccepted::Unknown) | None => {}
                Some(EventsAccepted::Accepted) => {
                    let in_a_row = faults.record_rejected(event.kind, &publisher.rejection_of(event, &why));
                    delays |= held_max != Duration::MAX
                        && (in_a_row <= REJECTED_IN_A_ROW_MAX || held_for >= REJECTED_HELD_MAX);
                }
            }
        }
        if delays {
            child_span.record_failure(&why.to_string());
            return Ok(None);
        }
        let pause = pause_of(outgoing, &why, pauses.wait(nth, rand::random()));
        nth = nth.saturating_add(1);
        child_span.set_attribute("redemption.publishes", i64::from(nth) + 1);
        match &mut held {
            Some(held) => held.change(&why),
            None => {
                if PrefetchRamp::counts_when_waiting(delivery.delivery_count()) {
                    faults.through.fetch_add(1, Ordering::Relaxed);
                }
                held = Some(faults.start_holding(&why));
            }
        }
        if timeout(pause, cancel.cancelled()).await.is_ok() {
            child_span.record_failure(&why.to_string());
            // Delayed or handed back, it costs no delivery; what is lost with its session is delivered again.
            return match publisher.is_lost() {
                true => Err(PublishInterrupted::NotPublished(why)),
                false => Ok(None),
            };
        }
    }
}

/// The pause before a message is published again, at least `pause`.
fn pause_of(outgoing: Outgoing<'_>, why: &PublishFailure, pause: Duration) -> Duration {
    match outgoing {
        // A subscriber recognizes a repeat by its id.
        Outgoing::Event(_) => pause,
        Outgoing::Retry(..) | Outgoing::Parked(..) => pause_after(why, pause),
    }
}

/// The pause before a command is published again: a long one if it may be in its queue already, or its copies would
/// multiply.
pub(super) fn pause_after(why: &PublishFailure, pause: Duration) -> Duration {
    match why {
        PublishFailure::TimedOut(_) => pause.max(COPIED_PAUSE),
        _ => pause,
    }
}

const COPIED_PAUSE: Duration = Duration::from_secs(120);

/// Whether events in general are accepted, by a probe if the failure does not show it; `None` if no probe is needed.
async fn events_accepted(
    publisher: &Publisher,
    why: &PublishFailure,
    outgoing: Outgoing<'_>,
) -> Option<EventsAccepted> {
    match (why, outgoing) {
        (PublishFailure::TimedOut(_), _) | (PublishFailure::Rejected(_), Outgoing::Event(_)) => {
            Some(Box::pin(publisher.results_accept_events()).await)
        }
        _ => None,
    }
}

/// Whether a failure means that the session is no longer usable. A confirm that is missing for one queue (it has lost its
/// majority, say) concerns the messages of that queue; if a probe is not confirmed either, it concerns all.
fn is_of_session(why: &PublishFailure, accepted: Option<&EventsAccepted>) -> bool {
    match why {
        PublishFailure::Connection(_) | PublishFailure::Blocked(_) => true,
        PublishFailure::TimedOut(_) => accepted == Some(&EventsAccepted::Unknown),
        PublishFailure::Refused | PublishFailure::Returned(_) | PublishFailure::Rejected(_) => false,
    }
}

/// The messages that the broker does not accept now. A fault is known while a publish is held for it.
#[derive(Debug, Default)]
pub struct PublishFaults {
    faults: Mutex<Faults>,
    /// Events rejected in a row, each by itself.
    in_a_row: AtomicU32,
    /// Trusted commands whose publish is held: they harm no session, and the prefetch ramp does not wait for them.
    through: AtomicU16,
}

#[derive(Debug, Default)]
struct Faults {
    /// How many publishes are held for each fault.
    held: BTreeMap<FaultKey, (PublishFailure, usize)>,
    /// Single events that were rejected, by outcome, until an event of that outcome is confirmed.
    rejected: BTreeMap<&'static str, (Instant, PublishRejection)>,
}

/// Faults that differ only in the routing key are one fault.
type FaultKey = (&'static str, u16, String);

/// How long a rejected event is shown if no other follows: longer than the longest delay.
const REJECTED_LATELY: Duration = Duration::from_secs(3 * 3_600);

impl PublishFaults {
    /// The faults that publishes are held for now.
    pub fn longest_held(&self) -> Vec<PublishFailure> {
        self.lock().held.values().map(|(why, _)| why.clone()).collect()
    }

    /// The single events that were rejected recently; their commands are delayed.
    pub fn last_rejection(&self) -> Vec<PublishRejection> {
        let faults = self.lock();
        let lately = faults.rejected.values().filter(|(at, _)| at.elapsed() < REJECTED_LATELY);
        lately.map(|(_, rejection)| rejection.clone()).collect()
    }

    /// How many publishes are held now.
    pub fn held_count(&self) -> usize {
        self.lock().held.values().map(|(_, count)| count).sum()
    }

    /// How many trusted commands have been held since the last call.
    pub fn take_held_count(&self) -> u16 {
        self.through.swap(0, Ordering::Relaxed)
    }

    /// Shows a fault for as long as the result lives.
    pub(super) fn start_holding(&self, why: &PublishFailure) -> Held<'_> {
        let key = key(why);
        self.lock().held.entry(key.clone()).or_insert_with(|| (why.clone(), 0)).1 += 1;
        Held { faults: self, key }
    }

    fn record_confirmed(&self, kind: OutcomeKind) {
        // Every event passes here: the lock is taken only after a rejection.
        if self.in_a_row.swap(0, Ordering::Relaxed) > 0 || !self.lock().rejected.is_empty() {
            self.lock().rejected.remove(kind.as_str());
        }
    }

    /// Returns how many events were rejected in a row.
    fn record_rejected(&self, kind: OutcomeKind, rejection: &PublishRejection) -> u32 {
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
        PublishFailure::Rejected(PublishRejection { exchange, code, .. }) => {
            (why.kind().as_str(), *code, exchange.clone())
        }
        _ => (why.kind().as_str(), 0, String::new()),
    }
}

/// A publish that is held, until it is dropped.
pub(super) struct Held<'a> {
    faults: &'a PublishFaults,
    key: FaultKey,
}

impl Held<'_> {
    pub(super) fn change(&mut self, why: &PublishFailure) {
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

    fn rejection(routing_key: &str) -> PublishRejection {
        let (exchange, text) = ("redemption.results".to_owned(), "refused".to_owned());
        PublishRejection { exchange, routing_key: routing_key.to_owned(), code: 403, text }
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
