//! How far a command has come: new, redelivered, or back from a delay queue.

use jiff::{SignedDuration, Timestamp};

use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::PARKED_REASON;
use crate::policy::attempt::Progress;
use crate::wechat::client::Prepared;
use crate::wire::handed_back::{HANDED_BACK, HandedBack};
use crate::wire::result_event;
use crate::wire::retry_message::{self, CorruptRetryMessage, Restored};

use crate::runtime::worker::WorkerContext;

/// Why a valid command is not processed.
pub(super) enum Unprocessable {
    /// A retry message with corrupt headers.
    Corrupt(CorruptRetryMessage),
    /// A property or header that its sender set is not usable: which one, and the remedy.
    Property(String),
}

/// How far the command has come: new, redelivered, handed back, or back from a delay queue.
pub(super) fn read_progress(
    context: &WorkerContext,
    delivery: &Delivery,
    prepared: &Prepared,
    now: Timestamp,
) -> Result<Restored, Unprocessable> {
    // A replayed parked command carries no mark of a redelivery.
    let parked_before = ["x-death", "x-first-death-reason", PARKED_REASON];
    let again = delivery.redelivered();
    if retry_message::is_retry_message(|name| delivery.has_header(name)) {
        // Optional headers; the others are reported missing if they are not text.
        let no_text = |name: &&str| delivery.header(name).is_none() && delivery.has_header(name);
        if let Some(name) = retry_message::OPTIONAL.into_iter().find(no_text) {
            return Err(Unprocessable::Corrupt(CorruptRetryMessage::Unreadable(name)));
        }
        let header = |name| delivery.header(name);
        let mut carried = retry_message::read(header, prepared.body_sha256(), now, context.deadline_limits)
            .map_err(Unprocessable::Corrupt)?;
        if let Some((delay, at)) = delivery.delay_due() {
            let late = now.duration_since(at).max(SignedDuration::ZERO);
            // A publisher can forge such a time.
            if late <= context.deadline_limits.furthest {
                context.metrics.queues.record_delay_lateness(delay, late.unsigned_abs());
            }
        }
        if again {
            carried.progress.mark_redelivered();
        }
        return Ok(carried);
    }
    if delivery.names_reserved_reply_to() {
        let reserved = result_event::RESERVED_KEYS.map(|word| format!("{word}.")).join(", ");
        return Err(Unprocessable::Property(format!(
            "its property reply_to is a key of the service itself; it must not begin with {reserved}"
        )));
    }
    let text = delivery.header(retry_message::DEADLINE);
    if text.is_none() && delivery.has_header(retry_message::DEADLINE) {
        return Err(unreadable_deadline());
    }
    let again = again || parked_before.into_iter().any(|name| delivery.has_header(name));
    let handed_back = if delivery.has_header(HANDED_BACK) {
        let words = delivery.header(HANDED_BACK).unwrap_or_default();
        Some(HandedBack::from_words(words, now).map_err(Unprocessable::Corrupt)?)
    } else {
        // Its progress is that of its copy in the queue.
        delivery
            .may_have_copy()
            .then(|| HandedBack { first_seen: delivery.received_at(), may_have_been_sent: again })
    };
    let progress = match handed_back {
        Some(handed_back) => handed_back.progress(text, again, context.deadline_limits),
        None => retry_message::deadline(text, now, context.deadline_limits)
            .map(|deadline| Progress::new(now, deadline, again)),
    };
    let progress = progress.map_err(|_| unreadable_deadline())?;
    Ok(Restored { progress, evidence: Vec::new() })
}

fn unreadable_deadline() -> Unprocessable {
    Unprocessable::Property(format!("its header {} is not an RFC 3339 time", retry_message::DEADLINE))
}
