//! Publishes the event of an invalid command or of a corrupt retry message, and parks it.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::amqp::confirm::Published;
use crate::amqp::delivery::{Delivery, EVENT_DELAYS};
use crate::amqp::publisher::Publisher;
use crate::amqp::topology::delay_name;
use crate::domain::evidence::Evidence;
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;
use crate::runtime::publishing::{Outgoing, PublishContext, PublishInterrupted, publish, publish_within};
use crate::telemetry::events;
use crate::telemetry::masking::Masked;
use crate::telemetry::metrics::{Message, Settlement};
use crate::telemetry::spans::{ChildSpan, CommandSpan};
use crate::wechat::client::hex;
use crate::wire::command::Rejected;
use crate::wire::result_event::{self, Event, EventContext};
use crate::wire::retry_message::CorruptRetryMessage;
use tokio_util::sync::CancellationToken;

use crate::runtime::worker::hand_back::dead_letter_retry_headers;
use crate::runtime::worker::{Worked, WorkerContext};

/// Publisher, cancel signal and worker context of one delivery.
#[derive(Clone, Copy)]
pub(super) struct PublishingContext<'a> {
    pub(super) context: &'a WorkerContext,
    pub(super) publisher: &'a Publisher,
    pub(super) cancel: &'a CancellationToken,
    /// Whether it is about a dead letter, which never returns to the command queue.
    pub(super) dead_letter: bool,
}

impl<'a> PublishingContext<'a> {
    pub(super) fn publishing(self) -> PublishContext<'a> {
        self.context.publish_context(self.publisher, self.cancel)
    }
}

/// Publishes an `invalid` event with every fault of the message, then parks its bytes.
pub(super) async fn publish_invalid(
    publishing: PublishingContext<'_>,
    delivery: Delivery,
    rejected: &Rejected,
    command_span: &mut CommandSpan,
    at: Timestamp,
) -> Worked {
    let PublishingContext { context, .. } = publishing;
    let digest = hex(&Sha256::digest(delivery.body()));
    let publish_span = command_span.start_publish(Message::Event.as_str());
    let event =
        result_event::encode_invalid(rejected, &digest, event_context(context, &publish_span, at, 0, &[]));
    let faults = rejected.faults.iter().map(|fault| format!("{}: {}", Masked(&fault.pointer), fault.problem));
    let faults = faults.collect::<Vec<_>>().join("; ");
    let parking = Parking { event: &event, reason: Reason::InvalidCommand, at };
    let confirmed = match publish_and_park(publishing, &delivery, parking, command_span, publish_span).await {
        Ok(Some(confirmed)) => confirmed,
        Ok(None) => return delay_unreadable(publishing, delivery, command_span).await,
        Err(why) => return Err(why.into_worked(delivery, Vec::new())),
    };
    events::command_invalid(&context.metrics, command_span, &rejected.partial, &faults);
    Ok((Settlement::Finished, delivery, confirmed))
}

/// The event of a parked message.
pub(super) struct Parking<'a> {
    pub(super) event: &'a Event,
    pub(super) reason: Reason,
    pub(super) at: Timestamp,
}

/// Publishes `unresolved` for a retry message with corrupt headers, then parks it. Which calls were made is unknown, so
/// none is made now.
pub(super) async fn park_corrupt_retry_message(
    publishing: PublishingContext<'_>,
    delivery: Delivery,
    redemption: &Redemption,
    fault: &CorruptRetryMessage,
    command_span: &mut CommandSpan,
    at: Timestamp,
) -> Worked {
    let PublishingContext { context, .. } = publishing;
    let digest = hex(&Sha256::digest(delivery.body()));
    let publish_span = command_span.start_publish(Message::Event.as_str());
    let event_context = event_context(context, &publish_span, at, 0, &[]);
    let event =
        result_event::encode_corrupt_retry_message(redemption, &fault.to_string(), &digest, event_context);
    let parking = Parking { event: &event, reason: Reason::CorruptRetryMessage, at };
    let confirmed = match publish_and_park(publishing, &delivery, parking, command_span, publish_span).await {
        Ok(Some(confirmed)) => confirmed,
        Ok(None) => return delay_unreadable(publishing, delivery, command_span).await,
        Err(why) => return Err(why.into_worked(delivery, Vec::new())),
    };
    events::retry_message_corrupt(&context.metrics, command_span, redemption, fault);
    Ok((Settlement::Finished, delivery, confirmed))
}

pub(super) async fn publish_and_park(
    publishing: PublishingContext<'_>,
    delivery: &Delivery,
    Parking { event, reason, at }: Parking<'_>,
    command_span: &CommandSpan,
    publish_span: ChildSpan,
) -> Result<Option<Published>, PublishInterrupted> {
    let context = publishing.context;
    let (context, held_max) = (publishing.publishing(), context.event_held_max(&context.limits));
    let published = publish_within(context, delivery, Outgoing::Event(event), publish_span, held_max).await?;
    let Some(published) = published else { return Ok(None) };
    let publish_span = command_span.start_publish(Message::Parked.as_str());
    let parked = publish(context, delivery, Outgoing::Parked(reason, at, &[]), publish_span).await?;
    Ok(Some(published.join(parked)))
}

/// Delays an invalid message because the broker does not accept its event: body and headers stay, and each time the
/// next delay queue is used.
pub(super) async fn delay_unreadable(
    publishing: PublishingContext<'_>,
    delivery: Delivery,
    command_span: &CommandSpan,
) -> Worked {
    let delays = &publishing.context.limits.delays;
    let passed = delivery.event_delays();
    if publishing.dead_letter {
        let headers = dead_letter_retry_headers(&delivery, publishing.cancel);
        return Err(PublishInterrupted::Canceled(Box::new(delivery), headers));
    }
    let Some(wait) = delays.get(passed.min(delays.len().saturating_sub(1))).copied() else {
        return Err(PublishInterrupted::Canceled(Box::new(delivery), Vec::new()));
    };
    let headers = [(EVENT_DELAYS, passed.saturating_add(1).to_string())];
    let publish_span = command_span.start_publish(Message::Retry.as_str());
    let published =
        publish(publishing.publishing(), &delivery, Outgoing::Retry(wait, &headers), publish_span).await;
    let confirmed = match published {
        Ok(confirmed) => confirmed,
        Err(why) => return Err(why.into_worked(delivery, Vec::new())),
    };
    let metrics = &publishing.context.metrics;
    events::invalid_delayed(metrics, command_span, &delay_name(wait), wait.as_secs());
    Ok((Settlement::Delayed, delivery, confirmed))
}

pub(super) fn event_context<'a>(
    context: &'a WorkerContext,
    publish_span: &'a ChildSpan,
    at: Timestamp,
    attempts: u32,
    evidence: &'a [Evidence],
) -> EventContext<'a> {
    let traceparent = publish_span.traceparent();
    EventContext { source: &context.source, at, traceparent, attempts, evidence }
}
