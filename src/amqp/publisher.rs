//! Publishes with confirms: a [`Published`] exists only for a message that the broker confirmed and did not return.
//!
//! Events share one channel. While several wait for their confirms the client can attach a return to the wrong one, and the
//! returned message then looks confirmed; an event that no queue receives is still routed by the alternate exchange. A
//! retry message or a parked command has no such fallback, so these are published one at a time on each of a few isolated
//! channels.
//!
//! A channel's error (a missing right, a missing exchange, a message that is too large) ends that channel and nothing
//! else. The broker closes it because of one message, and the others on it are not confirmed either. So each of them is
//! published again on an isolated channel, and only one that is rejected there is [`PublishFailure::Rejected`].

mod carried;

use crate::amqp::confirm::{EventsAccepted, PublishFailure, PublishRejection, Published};
use crate::amqp::publisher::carried::carried_on;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use lapin::{Channel, Confirmation, Connection, ErrorKind, PublisherConfirm};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::amqp::connection::{BLOCKED_REPORTED_AFTER, BrokerConnection, Health, blocked_for, is_soft};
use crate::amqp::delivery::{Delivery, TRIED};
use crate::amqp::probe::{self, Right};
use crate::amqp::topology::{Names, delay_name};
use crate::wire::audit_event::Audit;
use crate::wire::handed_back::{HANDED_BACK, HandedBack};
use crate::wire::result_event::{self, Event};

/// Why a command is parked, as a header.
pub const PARKED_REASON: &str = "x-redemption-parked-reason";
/// When a command was parked, RFC 3339, as a header.
pub const PARKED_AT: &str = "x-redemption-parked-at";

/// The number of isolated channels. It limits the rate of commands that are delayed or parked: each waits for the disks of
/// the quorum.
const ISOLATED_CHANNELS: usize = 4;
/// How long only isolated channels are used after the broker closed the shared channel: another message like the one that
/// caused it would affect the others again.
const ISOLATION: Duration = Duration::from_secs(5);
/// How long the result of a probe is used: many publishes that are rejected at once need it.
const PROBE_VALID_FOR: Duration = Duration::from_secs(1);

/// Publishes on a shared channel and up to four isolated ones.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    /// Channels are opened on it as long as its owner lives.
    connection: Weak<BrokerConnection>,
    health: watch::Receiver<Health>,
    /// The shared channel.
    channel: Mutex<Channel>,
    /// Held by the task that replaces a shared channel that has ended.
    isolating: tokio::sync::Mutex<()>,
    /// Until when the shared channel is not used.
    isolated_until: Mutex<Option<Instant>>,
    /// Each is used for one message at a time, from the publish to its confirm. `None` once a confirm was not waited for,
    /// because the next message could get the confirm of the last one, and after the broker closed it: then the next
    /// message opens another.
    isolated_channels: [tokio::sync::Mutex<Option<Channel>>; ISOLATED_CHANNELS],
    /// Counts the publishes that found none of these free.
    queued: AtomicUsize,
    /// When the results exchange was probed last, and the result.
    results_probed: tokio::sync::Mutex<Option<(Instant, EventsAccepted)>>,
    /// The confirm is registered and the frames are queued under different locks inside the client: two tasks that
    /// publish at once can get each other's confirms. Every publish holds this lock for both.
    publish_order: Mutex<()>,
    confirm_timeout: Duration,
    /// Whether a publish waits for the end of an alarm, or fails soon because an operator waits for it.
    waits_while_blocked: bool,
    commands: ShortString,
    results: ShortString,
    retry: ShortString,
    parked: ShortString,
    dead: ShortString,
}

impl Publisher {
    /// Opens every channel that it uses: one that exceeds a user's limit ends the whole connection, and no delivery must be
    /// unsettled then.
    pub(super) async fn open(
        connection: &Arc<BrokerConnection>,
        health: watch::Receiver<Health>,
        confirm_timeout: Duration,
        names: &Names,
    ) -> lapin::Result<Self> {
        let open = || confirming(connection);
        let (channel, first, second, third, fourth) =
            tokio::try_join!(open(), open(), open(), open(), open())?;
        let isolated = [first, second, third, fourth];
        Ok(Self(Arc::new(Inner {
            connection: Arc::downgrade(connection),
            health,
            channel: Mutex::new(channel),
            isolating: tokio::sync::Mutex::default(),
            isolated_until: Mutex::default(),
            isolated_channels: isolated.map(|channel| tokio::sync::Mutex::new(Some(channel))),
            queued: AtomicUsize::new(0),
            results_probed: tokio::sync::Mutex::default(),
            publish_order: Mutex::default(),
            confirm_timeout,
            waits_while_blocked: true,
            commands: names.commands.as_str().into(),
            results: names.results.as_str().into(),
            retry: names.retry.as_str().into(),
            parked: names.parked.as_str().into(),
            dead: names.dead.as_str().into(),
        })))
    }

    /// The same publisher for an operator: a publish fails within a second if the broker blocks the connection.
    pub(super) fn failing_while_blocked(mut self) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.waits_while_blocked = false;
        }
        self
    }

    /// Replaces the channels. If the leader of a quorum queue is lost at the wrong moment, the broker rejects every message
    /// on a channel that was open then, long after there is another leader (seen for minutes on a cluster of RabbitMQ
    /// 3.10.8). A publish that waits for its confirm keeps its channel.
    pub(super) async fn renew(&self, connection: &Connection) -> lapin::Result<()> {
        let channel = confirming(connection).await?;
        *self.0.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
        // A publish that uses one now returns it; it is replaced by the next renewal.
        for slot in &self.0.isolated_channels {
            if let Ok(mut slot) = slot.try_lock()
                && slot.is_some()
            {
                *slot = Some(confirming(connection).await?);
            }
        }
        Ok(())
    }

    /// Publishes the result of `command` to the reply exchange, and under its `reply_to` as a further routing key.
    /// `traceparent` is the trace context that goes with it.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_event(
        &self,
        event: &Event,
        command: &Delivery,
        traceparent: Option<&str>,
    ) -> Result<Published, PublishFailure> {
        let mut properties = AMQPProperties::default()
            .with_content_type(result_event::CONTENT_TYPE.into())
            .with_delivery_mode(carried::PERSISTENT)
            .with_message_id(event.id.to_string().as_str().into())
            .with_type(format!("redemption.{}.v1", event.kind.as_str()).as_str().into())
            .with_app_id("redeemer".into());
        if let Some(correlation) = command.correlation() {
            properties = properties.with_correlation_id(correlation.into());
        }
        let mut headers = FieldTable::default();
        if let Some(reply_to) = command.reply_to() {
            let mut keys = FieldArray::default();
            keys.push(AMQPValue::LongString(reply_to.into()));
            headers.insert("CC".into(), AMQPValue::FieldArray(keys));
        }
        if let Some(traceparent) = traceparent {
            headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
        }
        let properties = properties.with_headers(headers);
        self.publish(&self.0.results, &event.routing_key, properties, &event.body).await
    }

    /// Publishes the retry message of `command` to the delay queue of `wait`, with its progress in `headers`.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_retry_message(
        &self,
        command: &Delivery,
        wait: Duration,
        headers: Vec<(&'static str, String)>,
    ) -> Result<Published, PublishFailure> {
        let properties = carried_on(command, headers);
        self.publish_alone(&self.0.retry, &delay_name(wait), properties, command.body()).await
    }

    /// Publishes `command` to the command queue again, as a new message, with its progress, if any, in `headers`. A
    /// requeued delivery would count as a failed one.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_requeued(
        &self,
        command: &Delivery,
        mut headers: Vec<(&'static str, String)>,
    ) -> Result<Published, PublishFailure> {
        // If the session has ended, the broker has requeued it already.
        if let Some(why) = self.0.health.borrow().lost.clone() {
            return Err(PublishFailure::Connection(why.to_string()));
        }
        if headers.is_empty() {
            // If the process ends before the acknowledgement, two messages of it exist: this one queries before its use.
            let tried = command.may_have_been_tried();
            // An existing header is kept: it has the earlier time.
            if !command.has_header(HANDED_BACK) {
                let first_seen = command.received_at();
                headers.push((HANDED_BACK, HandedBack { first_seen, may_have_been_sent: tried }.to_words()));
            }
            if tried {
                headers.push((TRIED, "1".to_owned()));
            }
        }
        let mut properties = carried_on(command, headers);
        // It has not been delayed, so the expiration that its sender set still applies.
        if let Some(expiration) = command.properties().expiration() {
            properties = properties.with_expiration(expiration.clone());
        }
        self.publish_alone(&ShortString::default(), self.0.commands.as_str(), properties, command.body())
            .await
    }

    /// Whether the broker closed the shared channel.
    pub(super) fn needs_channel(&self) -> bool {
        !self.0.channel.lock().unwrap_or_else(PoisonError::into_inner).status().connected()
    }

    /// Waits until its session has ended.
    pub async fn lost(&self) {
        let mut health = self.0.health.clone();
        // An error means that the session is gone.
        let _ = health.wait_for(|now| now.lost.is_some()).await;
    }

    /// Whether its session has ended.
    pub fn is_lost(&self) -> bool {
        self.0.health.borrow().lost.is_some()
    }

    /// Publishes a dead letter to its queue again, as a new message, with why and when it was dead-lettered.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_requeued_dead_letter(
        &self,
        command: &Delivery,
        headers: Vec<(&'static str, String)>,
    ) -> Result<Published, PublishFailure> {
        let properties = carried_on(command, headers);
        self.publish_alone(&ShortString::default(), self.0.dead.as_str(), properties, command.body()).await
    }

    /// Publishes `command` to the parked queue with its body and properties unchanged.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_parked(
        &self,
        command: &Delivery,
        reason: &str,
        at: jiff::Timestamp,
        mut headers: Vec<(&'static str, String)>,
    ) -> Result<Published, PublishFailure> {
        headers.push((PARKED_REASON, reason.to_owned()));
        headers.push((PARKED_AT, at.to_string()));
        let properties = carried_on(command, headers);
        self.publish_alone(&self.0.parked, reason, properties, command.body()).await
    }

    /// Publishes a parked `command` to the command exchange again, with `headers` in place of its headers of ours, and `at`
    /// as its time of sending: its age must not include the days that it was parked.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_replay(
        &self,
        command: &Delivery,
        headers: Vec<(&'static str, String)>,
        at: jiff::Timestamp,
    ) -> Result<Published, PublishFailure> {
        let at = u64::try_from(at.as_second()).unwrap_or_default();
        let properties = carried_on(command, headers).with_timestamp(at);
        self.publish_alone(&self.0.commands, "redemption.replay", properties, command.body()).await
    }

    /// Publishes an audit event to the reply exchange, with the correlation id of its command, if it has one.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_audit(
        &self,
        audit: &Audit,
        correlation: Option<&str>,
    ) -> Result<Published, PublishFailure> {
        let mut properties = AMQPProperties::default()
            .with_content_type(result_event::CONTENT_TYPE.into())
            .with_delivery_mode(carried::PERSISTENT)
            .with_message_id(audit.id.to_string().as_str().into())
            .with_type(audit.kind.as_str().into())
            .with_app_id("redeemer".into());
        if let Some(correlation) = correlation {
            properties = properties.with_correlation_id(correlation.into());
        }
        self.publish(&self.0.results, &audit.routing_key, properties, &audit.body).await
    }

    /// Publishes an empty, unroutable message on both kinds of channel and waits for its confirm. While the broker raises an
    /// alarm there is no confirm.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn confirm_probe(&self) -> Result<Published, PublishFailure> {
        let probe = || Message {
            exchange: "".into(),
            routing_key: "redemption.nobody".into(),
            options: BasicPublishOptions::default(),
            properties: AMQPProperties::default(),
            body: b"",
        };
        let shared =
            async {
                self.publish_shared(probe()).await.map_err(|why| match why {
                    SharedPublishError::ChannelClosed(error) => PublishFailure::Rejected(
                        PublishRejection::new(String::new(), probe().routing_key.to_string(), &error),
                    ),
                    SharedPublishError::NotConfirmed(why) => why,
                })
            };
        let shared = self.within(shared).await?;
        Ok(shared.join(self.publish_on_free_channel(probe()).await?))
    }

    /// The broker's rejection of one event, or why it was not confirmed.
    pub fn rejection_of(&self, event: &Event, why: &PublishFailure) -> PublishRejection {
        match why {
            PublishFailure::Rejected(rejection) => rejection.clone(),
            other => PublishRejection {
                exchange: self.0.results.to_string(),
                routing_key: event.routing_key.clone(),
                code: 0,
                text: other.to_string(),
            },
        }
    }

    /// Whether events in general are accepted, by a probe that publishes nothing. Concurrent callers share one probe.
    pub async fn results_accept_events(&self) -> EventsAccepted {
        let mut probed = self.0.results_probed.lock().await;
        if let Some((at, result)) = &*probed
            && at.elapsed() < PROBE_VALID_FOR
        {
            return result.clone();
        }
        let right = Right::Write {
            exchange: self.0.results.to_string(),
            routing_key: probe::EVENT_PROBE_KEY.to_owned(),
        };
        let result = match self.0.connection.upgrade() {
            Some(connection) => {
                let probing = probe::rejection(&connection, &right);
                timeout(self.0.confirm_timeout, probing).await
            }
            None => return EventsAccepted::Unknown,
        };
        let result = match result {
            Ok(Ok(None)) => EventsAccepted::Accepted,
            Ok(Ok(Some(of_all))) => EventsAccepted::Rejected(of_all),
            Ok(Err(_)) | Err(_) => EventsAccepted::Unknown,
        };
        *probed = Some((Instant::now(), result.clone()));
        result
    }

    async fn publish(
        &self,
        exchange: &ShortString,
        routing_key: &str,
        properties: AMQPProperties,
        body: &[u8],
    ) -> Result<Published, PublishFailure> {
        let message = Message::mandatory(exchange, routing_key, properties, body);
        if !self.is_isolating() {
            match self.within(self.publish_shared(message.clone())).await {
                Err(SharedPublishError::ChannelClosed(_)) => self.within(self.isolate()).await?,
                Err(SharedPublishError::NotConfirmed(why)) => return Err(why),
                Ok(published) => return Ok(published),
            }
        }
        self.publish_on_free_channel(message).await
    }

    async fn publish_alone(
        &self,
        exchange: &ShortString,
        routing_key: &str,
        properties: AMQPProperties,
        body: &[u8],
    ) -> Result<Published, PublishFailure> {
        let message = Message::mandatory(exchange, routing_key, properties, body);
        self.publish_on_free_channel(message).await
    }

    /// Publishes on an isolated channel once one is free. Each publish before it has a time limit of its own, and the wait
    /// for them must not use up that of this message.
    async fn publish_on_free_channel(&self, message: Message<'_>) -> Result<Published, PublishFailure> {
        let slot = self.isolated_channel().await;
        self.within(self.publish_isolated(slot, message)).await
    }

    /// Bounds a publish from its first byte to its confirm. While the broker blocks the connection nothing can be
    /// confirmed, and the alarm is reported elsewhere: such time does not count, or each alarm would end a session.
    async fn within<T, E: From<PublishFailure>>(
        &self,
        publishing: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let limit = self.0.confirm_timeout;
        let mut health = self.0.health.clone();
        let mut publishing = pin!(publishing);
        if !self.0.waits_while_blocked {
            return tokio::select! {
                published = timeout(limit, publishing) => published.unwrap_or(Err(PublishFailure::TimedOut(limit).into())),
                reason = blocked_for(health.clone(), BLOCKED_REPORTED_AFTER) => Err(PublishFailure::Blocked(reason).into()),
            };
        }
        loop {
            if let Ok(published) = timeout(limit, publishing.as_mut()).await {
                return published;
            }
            if health.borrow_and_update().blocked.is_none() {
                return Err(PublishFailure::TimedOut(limit).into());
            }
            tokio::select! {
                published = publishing.as_mut() => return published,
                unblocked = health.wait_for(|now| now.blocked.is_none() || now.lost.is_some()) => {
                    let lost = unblocked.map_or_else(|_| Some(String::new()), |now| now.lost.as_ref().map(ToString::to_string));
                    if let Some(why) = lost {
                        return Err(PublishFailure::Connection(why).into());
                    }
                }
            }
        }
    }

    async fn publish_shared(&self, message: Message<'_>) -> Result<Published, SharedPublishError> {
        let Inner { channel, publish_order, .. } = &*self.0;
        let channel = channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut publish = pin!(message.publish(&channel));
        // The client does both in the first poll, before it waits for the frames to be written. Only that poll holds the
        // lock: holding it longer would mean one write, and two changes of thread, per message.
        let queued = poll_fn(|context| {
            let _order = publish_order.lock().unwrap_or_else(PoisonError::into_inner);
            Poll::Ready(publish.as_mut().poll(context))
        });
        let written = match queued.await {
            Poll::Ready(written) => written,
            Poll::Pending => publish.await,
        };
        let ended = |error| {
            if self.ended_channel(&error) {
                SharedPublishError::ChannelClosed(error)
            } else {
                lost(error).into()
            }
        };
        Ok(await_confirm(written.map_err(ended)?.await.map_err(ended)?)?)
    }

    async fn publish_isolated(
        &self,
        mut slot: tokio::sync::MutexGuard<'_, Option<Channel>>,
        message: Message<'_>,
    ) -> Result<Published, PublishFailure> {
        // Taken out, so that a publish that is canceled before its confirm leaves no channel behind.
        let channel = match slot.take() {
            Some(channel) if channel.status().connected() => channel,
            _ => self.open_channel().await?,
        };
        let (exchange, routing_key) = (message.exchange.to_string(), message.routing_key.to_string());
        let ended = |error: lapin::Error| match self.ended_channel(&error) {
            true => {
                PublishFailure::Rejected(PublishRejection::new(exchange.clone(), routing_key.clone(), &error))
            }
            false => lost(error),
        };
        let confirmation = message.publish(&channel).await.map_err(ended)?.await.map_err(ended)?;
        *slot = Some(channel);
        await_confirm(confirmation)
    }

    /// The first free isolated channel; `None` in it if it must be opened.
    async fn isolated_channel(&self) -> tokio::sync::MutexGuard<'_, Option<Channel>> {
        if let Some(free) = self.0.isolated_channels.iter().find_map(|slot| slot.try_lock().ok()) {
            return free;
        }
        let nth = self.0.queued.fetch_add(1, Ordering::Relaxed) % ISOLATED_CHANNELS;
        self.0.isolated_channels[nth].lock().await
    }

    /// Whether an error ended a channel and not the connection.
    fn ended_channel(&self, error: &lapin::Error) -> bool {
        let of_channel = is_soft(error) || matches!(error.kind(), ErrorKind::InvalidChannelState(..));
        of_channel && self.0.connection.upgrade().is_some_and(|connection| connection.status().connected())
    }

    fn is_isolating(&self) -> bool {
        let until = *self.0.isolated_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Uses only isolated channels for a while, and replaces the shared channel.
    async fn isolate(&self) -> Result<(), PublishFailure> {
        let until = Instant::now() + ISOLATION;
        *self.0.isolated_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        // Only one of the tasks whose channel has ended opens another.
        let _isolating = self.0.isolating.lock().await;
        if self.needs_channel() {
            let channel = self.open_channel().await?;
            *self.0.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
        }
        Ok(())
    }

    async fn open_channel(&self) -> Result<Channel, PublishFailure> {
        let connection = self.0.connection.upgrade();
        let connection =
            connection.ok_or_else(|| PublishFailure::Connection("its session has ended".to_owned()))?;
        confirming(&connection).await.map_err(lost)
    }
}

/// Why a publish on the shared channel was not confirmed.
enum SharedPublishError {
    /// The channel ended, because of this message or another one.
    ChannelClosed(lapin::Error),
    NotConfirmed(PublishFailure),
}

impl From<PublishFailure> for SharedPublishError {
    fn from(why: PublishFailure) -> Self {
        Self::NotConfirmed(why)
    }
}

/// A message to publish.
#[derive(Clone)]
struct Message<'a> {
    exchange: ShortString,
    routing_key: ShortString,
    options: BasicPublishOptions,
    properties: AMQPProperties,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn mandatory(
        exchange: &ShortString,
        routing_key: &str,
        properties: AMQPProperties,
        body: &'a [u8],
    ) -> Self {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        Self { exchange: exchange.clone(), routing_key: routing_key.into(), options, properties, body }
    }

    async fn publish(self, channel: &Channel) -> lapin::Result<PublisherConfirm> {
        let Self { exchange, routing_key, options, properties, body } = self;
        channel.basic_publish(exchange, routing_key, options, body, properties).await
    }
}

/// A channel with confirms.
async fn confirming(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

fn await_confirm(confirmation: Confirmation) -> Result<Published, PublishFailure> {
    match confirmation {
        // On the shared channel a return can be attached to another message's confirm. Either way a message of ours was not
        // routed, and publishing the wrong one again costs a repeat, not a loss.
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            Err(PublishFailure::Returned(returned.reply_text.to_string()))
        }
        Confirmation::Ack(None) => Ok(Published(())),
        Confirmation::Nack(None) | Confirmation::NotRequested => Err(PublishFailure::Refused),
    }
}

fn lost(error: lapin::Error) -> PublishFailure {
    PublishFailure::Connection(error.to_string())
}
