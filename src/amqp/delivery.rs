//! A delivery: a message of the broker until it is acknowledged. Settling consumes it.
//!
//! Acknowledgements that become due within two milliseconds of each other are sent together: one that is sent by itself
//! wakes the client's own thread and is a separate write, which is most of its cost.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use lapin::Channel;
use lapin::options::BasicAckOptions;
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::amqp::confirm::Published;
use crate::wire::{result_event, retry_message};

/// A message taken from the command queue and not acknowledged yet.
#[derive(Debug)]
pub struct Delivery {
    body: Vec<u8>,
    properties: AMQPProperties,
    redelivered: bool,
    /// The broker's number of it, valid only on the channel that delivered it.
    tag: u64,
    channel: Arc<ConsumerChannel>,
    received_at: Timestamp,
    /// Whether a copy of it may be in the queue: a hand-back was not confirmed in time.
    copied: bool,
}

/// A channel that delivers messages, and on which they are acknowledged.
#[derive(Debug)]
pub(super) struct ConsumerChannel {
    channel: Channel,
    /// Never longer than the unsettled deliveries, which the prefetch bounds.
    due: mpsc::UnboundedSender<PendingAck>,
}

/// An acknowledgement to be sent.
#[derive(Debug)]
struct PendingAck {
    tag: u64,
    sent: oneshot::Sender<Result<(), AckError>>,
}

/// Marks a command that was published to its queue again, as a new message, and had been delivered before; a header.
pub const TRIED: &str = "x-redemption-tried";

/// Marks headers that the client could not decode, at any level.
const UNDECODABLE: &str = lapin::types::parsing::UNDECODABLE;

/// How often a message was delayed because its event was not accepted, as a header.
pub const EVENT_DELAYS: &str = "x-redemption-event-delays";

/// Why and when (RFC 3339) the broker dead-lettered a command that was published to the dead-letter queue again, as headers.
pub const DEAD_REASON: &str = "x-redemption-dead-reason";
/// See [`DEAD_REASON`].
pub const DEAD_AT: &str = "x-redemption-dead-at";

/// How often in a row the event of a dead letter was not accepted, and when it is tried next (RFC 3339), as headers.
pub const DEAD_TRIES: &str = "x-redemption-dead-tries";
/// See [`DEAD_TRIES`].
pub const DEAD_AGAIN: &str = "x-redemption-dead-again";

/// Why the broker itself moved a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death<'a> {
    /// `delivery_limit`, `rejected`, `expired` or `maxlen`.
    pub reason: &'a str,
    /// When.
    pub at: Option<Timestamp>,
}

/// Why an acknowledgement was not sent: the broker will deliver the message again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AckError {
    /// The channel has ended.
    #[error("delivery not acknowledged: its channel is closed")]
    ChannelClosed,
    /// The client's error.
    #[error("delivery not acknowledged: {0}")]
    Client(lapin::Error),
    /// The connection accepted nothing in time.
    #[error("delivery not acknowledged: nothing could be sent for {0:?}")]
    TimedOut(Duration),
}

impl Delivery {
    /// `channel` is the channel that delivered it.
    pub(super) fn new(delivery: lapin::message::Delivery, channel: &Arc<ConsumerChannel>) -> Self {
        let lapin::message::Delivery { data, properties, redelivered, delivery_tag, .. } = delivery;
        Self {
            body: data,
            properties,
            redelivered,
            tag: delivery_tag,
            channel: channel.clone(),
            received_at: Timestamp::now(),
            copied: false,
        }
    }

    /// The message.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Whether it was delivered before, to any consumer: each may have sent its use.
    pub fn redelivered(&self) -> bool {
        self.redelivered || self.delivery_count() > 0 || self.has_header(TRIED)
    }

    /// Whether it was delivered before, or moved by the broker, so that its use may have been sent.
    pub fn may_have_been_tried(&self) -> bool {
        self.redelivered() || ["x-death", "x-first-death-reason"].iter().any(|name| self.has_header(name))
    }

    /// Whether a copy of it may be in the queue, and be worked on by another instance.
    pub fn may_have_copy(&self) -> bool {
        self.copied
    }

    /// A hand-back was not confirmed in time, and may have reached the queue.
    pub fn mark_copied(&mut self) {
        self.copied = true;
    }

    /// When it was received.
    pub fn received_at(&self) -> Timestamp {
        self.received_at
    }

    /// Whether it has a header of this name, of whatever type.
    pub fn has_header(&self, name: &str) -> bool {
        self.headers().is_some_and(|headers| headers.contains_key(name))
    }

    /// The text of a header; `None` if it is absent or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.headers()?.inner().get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// The first property that cannot be read, with the reason. The client accepts such a message: it marks headers that it
    /// could not decode and replaces bytes that are not UTF-8.
    pub fn undecodable_property(&self) -> Option<(&'static str, &'static str)> {
        if self.headers().is_some_and(is_marked) {
            return Some((
                "headers",
                "is nested more than 64 levels deep, or has a value of an unknown type",
            ));
        }
        let texts = [
            ("correlation_id", self.properties.correlation_id()),
            ("message_id", self.properties.message_id()),
            ("reply_to", self.properties.reply_to()),
            ("content_encoding", self.properties.content_encoding()),
        ];
        let replaced = |text: &Option<lapin::types::ShortString>| {
            text.as_ref().is_some_and(|text| text.as_str().contains(char::REPLACEMENT_CHARACTER))
        };
        let found = texts.into_iter().find(|(_, text)| replaced(text));
        found.map(|(name, _)| (name, "is not UTF-8"))
    }

    /// `content_encoding`, if it is not that of plain JSON.
    pub fn content_encoding(&self) -> Option<&str> {
        let encoding = self.properties.content_encoding().as_ref()?.as_str();
        let plain = ["", "identity", "utf-8", "utf8"];
        (!plain.contains(&encoding.to_ascii_lowercase().as_str())).then_some(encoding)
    }

    /// How often it was delayed because the broker did not accept its event, by [`EVENT_DELAYS`].
    pub fn event_delays(&self) -> usize {
        self.header(EVENT_DELAYS).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Failed deliveries so far, as the broker counts them (`x-delivery-count`).
    pub fn delivery_count(&self) -> u64 {
        self.number("x-delivery-count").and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
    }

    /// `correlation_id`, or else `message_id`: the sender's id of the command.
    pub fn correlation(&self) -> Option<&str> {
        let own = self.properties.correlation_id().as_ref();
        own.or(self.properties.message_id().as_ref()).map(|id| id.as_str())
    }

    /// The end of the second in which it was sent, by its `timestamp`: that has whole seconds, and an age must not be
    /// overstated.
    pub fn sent_by(&self) -> Option<Timestamp> {
        let seconds = i64::try_from((*self.properties.timestamp())?).ok()?;
        Timestamp::from_second(seconds.checked_add(1)?).ok()
    }

    /// `reply_to`, if it is usable. A key under which the service itself publishes is not: the event would reach queues that
    /// are bound for other events.
    pub fn reply_to(&self) -> Option<&str> {
        self.named_reply_to().filter(|key| !result_event::is_reserved_key(key))
    }

    /// Whether `reply_to` names a key under which the service itself publishes.
    pub fn names_reserved_reply_to(&self) -> bool {
        self.named_reply_to().is_some_and(result_event::is_reserved_key)
    }

    fn named_reply_to(&self) -> Option<&str> {
        self.properties.reply_to().as_ref().map(|key| key.as_str()).filter(|key| !key.is_empty())
    }

    /// Every header, and the properties that have a meaning here, as texts for operators.
    pub fn visible_headers(&self) -> Vec<(String, String)> {
        let properties = [
            ("message_id", self.properties.message_id()),
            ("correlation_id", self.properties.correlation_id()),
            ("reply_to", self.properties.reply_to()),
            ("content_type", self.properties.content_type()),
        ];
        let properties = properties
            .into_iter()
            .filter_map(|(name, text)| Some((name.to_owned(), text.as_ref()?.as_str().to_owned())));
        let headers = self.headers().into_iter().flat_map(|headers| headers.inner());
        properties.chain(headers.map(|(name, value)| (name.to_string(), display_value(value)))).collect()
    }

    /// Why and when the broker itself moved it here last, if it did.
    pub fn death(&self) -> Option<Death<'_>> {
        let AMQPValue::FieldArray(deaths) = self.headers()?.inner().get("x-death")? else { return None };
        let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
        let AMQPValue::LongString(reason) = last.inner().get("reason")? else { return None };
        let at = match last.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => {
                i64::try_from(*seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok())
            }
            _ => None,
        };
        Some(Death { reason: std::str::from_utf8(reason.as_bytes()).ok()?, at })
    }

    /// The same of a dead letter, which may have been published to its queue again.
    pub fn last_death(&self) -> Option<Death<'_>> {
        let put_back = self
            .header(DEAD_REASON)
            .map(|reason| Death { reason, at: self.header(DEAD_AT).and_then(|at| at.parse().ok()) });
        self.death().or(put_back)
    }

    /// How often in a row its event was not accepted, as a dead letter.
    pub fn dead_tries(&self) -> u32 {
        self.header(DEAD_TRIES).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// When its event is to be tried next, as a dead letter.
    pub fn dead_again(&self) -> Option<Timestamp> {
        self.header(DEAD_AGAIN)?.parse().ok()
    }

    /// The wait of the last delay queue, by its short name, and when that wait was over.
    pub fn delay_due(&self) -> Option<(&str, Timestamp)> {
        let Death { reason: "expired", at } = self.death()? else { return None };
        let AMQPValue::FieldArray(deaths) = self.headers()?.inner().get("x-death")? else { return None };
        let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
        let AMQPValue::LongString(queue) = last.inner().get("queue")? else { return None };
        let (_, delay) = std::str::from_utf8(queue.as_bytes()).ok()?.rsplit_once('.')?;
        Some((delay, at?))
    }

    /// W3C trace context, if it has that format: it is passed on in an HTTP header.
    pub fn traceparent(&self) -> Option<&str> {
        self.trace("traceparent")
    }

    /// The command span that delayed this retry message, in the same format.
    pub fn retry_trace(&self) -> Option<&str> {
        self.trace(retry_message::TRACE)
    }

    fn trace(&self, name: &str) -> Option<&str> {
        let hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        self.header(name).filter(|text| text.len() == 55 && text.bytes().all(hex))
    }

    pub(super) fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    pub(super) fn properties(&self) -> &AMQPProperties {
        &self.properties
    }

    fn number(&self, name: &str) -> Option<i64> {
        match self.headers()?.inner().get(name)? {
            AMQPValue::LongLongInt(number) => Some(*number),
            AMQPValue::LongInt(number) => Some(i64::from(*number)),
            AMQPValue::LongUInt(number) => Some(i64::from(*number)),
            AMQPValue::ShortInt(number) => Some(i64::from(*number)),
            AMQPValue::ShortShortUInt(number) => Some(i64::from(*number)),
            _ => None,
        }
    }

    /// Removes it from its queue. `Published`: the publish that follows from it was confirmed.
    ///
    /// # Errors
    /// [`AckError`]; the broker will deliver it again.
    pub async fn ack(self, _published: Published) -> Result<(), AckError> {
        let (sent, reported) = oneshot::channel();
        // If the sender task has ended, `sent` is dropped and the result is an error.
        let _ = self.channel.due.send(PendingAck { tag: self.tag, sent });
        reported.await.unwrap_or_else(|_| Err(AckError::ChannelClosed))
    }
}

/// How long acknowledgements are collected before they are sent.
const ACK_BATCH_DELAY: Duration = Duration::from_millis(2);

impl ConsumerChannel {
    /// Starts the task that sends acknowledgements on `channel`, until the last delivery of it is dropped.
    pub(super) fn new(channel: Channel) -> Arc<Self> {
        let (due, next) = mpsc::unbounded_channel();
        tokio::spawn(acknowledge(channel.clone(), next));
        Arc::new(Self { channel, due })
    }

    /// The channel.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }
}

/// Sends one acknowledgement for each tag and never one for several: the publishes of deliveries with lower tags may not be
/// confirmed yet. The frames of those that are due together are written together.
async fn acknowledge(channel: Channel, mut next: mpsc::UnboundedReceiver<PendingAck>) {
    let mut due = Vec::new();
    while next.recv_many(&mut due, usize::MAX).await > 0 {
        join_all(due.drain(..).map(async |PendingAck { tag, sent }| {
            // By the channel itself: the client's `Acker` would spawn a task for each.
            let acknowledging = channel.basic_ack(tag, BasicAckOptions::default());
            // A canceled worker no longer waits for the result.
            let _ = sent.send(acknowledged(ACK_SEND_TIMEOUT, acknowledging).await);
        }))
        .await;
        sleep(ACK_BATCH_DELAY).await;
    }
}

/// The longest wait until the connection accepts a few bytes.
const ACK_SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// `Ok` once the frame was written. A channel that has ended, or ends first, is an error; because the client's own recovery
/// is off, it never comes back with other meanings for its tags. If the connection ends at the wrong moment, the client may
/// never complete the request, and a worker that waited for it would hold its coupon's lane forever.
async fn acknowledged(
    limit: Duration,
    sending: impl Future<Output = lapin::Result<()>>,
) -> Result<(), AckError> {
    match timeout(limit, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(AckError::Client(error)),
        Err(_) => Err(AckError::TimedOut(limit)),
    }
}

/// Whether the client could not decode some of these headers, at any level.
fn is_marked(headers: &FieldTable) -> bool {
    headers.inner().iter().any(|(name, value)| name.as_str() == UNDECODABLE || has_mark(value))
}

fn has_mark(value: &AMQPValue) -> bool {
    match value {
        AMQPValue::FieldArray(values) => values.as_slice().iter().any(has_mark),
        AMQPValue::FieldTable(table) => is_marked(table),
        _ => false,
    }
}

/// A header for operators: a text as it is, a table as `{name: value, …}`.
fn display_value(value: &AMQPValue) -> String {
    let listed = |values: Vec<String>| values.join(", ");
    match value {
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::FieldArray(values) => {
            format!("[{}]", listed(values.as_slice().iter().map(display_value).collect()))
        }
        AMQPValue::FieldTable(table) => {
            let entries =
                table.inner().iter().map(|(name, value)| format!("{name}: {}", display_value(value)));
            format!("{{{}}}", listed(entries.collect()))
        }
        AMQPValue::Timestamp(seconds) => match i64::try_from(*seconds).map(Timestamp::from_second) {
            Ok(Ok(time)) => time.to_string(),
            _ => seconds.to_string(),
        },
        AMQPValue::DecimalValue(_) | AMQPValue::ByteArray(_) => format!("{value:?}"),
        AMQPValue::Void => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_acknowledgement_that_was_sent_settles() {
        acknowledged(ACK_SEND_TIMEOUT, async { Ok(()) }).await.unwrap();
        let closed = lapin::ErrorKind::InvalidConnectionState(lapin::ConnectionState::Closed);
        acknowledged(ACK_SEND_TIMEOUT, async { Err(closed.into()) }).await.unwrap_err();
        acknowledged(Duration::from_millis(1), std::future::pending()).await.unwrap_err();
    }
}
