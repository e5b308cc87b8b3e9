//! Publishes, and proves it: a [`Published`] exists only for what the broker confirmed and did not return.
//!
//! Events go side by side on one channel. While several wait for their confirms the client can attach a return to the
//! wrong one, and what was returned then looks confirmed; an event that no queue takes is still caught by the alternate
//! exchange. A copy or a parked command has no such net: these go one at a time on each of a few channels of their own.
//!
//! A channel's error (a missing right, a missing exchange, a message that is too large) ends that channel and nothing
//! else. The broker closes it over one message and takes all others on it along, so each of these is published again
//! alone, and only what is rejected alone is [`PublishFailure::Rejected`].

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

/// How many channels there are at most for what is published alone. A flood of commands that end without a call, or are
/// delayed, is as fast as these: each waits for the disks of the quorum.
const ISOLATE_AFTER: usize = 4;
/// How long everything is published alone after the broker closed the shared channel: another message like the one that
/// it closed it over would take its neighbors along again.
const ISOLATION: Duration = Duration::from_secs(5);
/// How long the answer of a probe holds: many publishes that are rejected at once ask for one.
const PROBE_HOLDS: Duration = Duration::from_secs(1);

/// Publishes on two channels of one connection.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    /// Channels are opened on it as long as its owner lives.
    connection: Weak<BrokerConnection>,
    health: watch::Receiver<Health>,
    /// Where messages go side by side.
    channel: Mutex<Channel>,
    /// Held by who takes another channel in place of one that has ended.
    isolating: tokio::sync::Mutex<()>,
    /// Until when nothing goes side by side.
    isolated_until: Mutex<Option<Instant>>,
    /// Where one goes at a time on each, from the publish to its confirm. None once a confirm was not waited for, because
    /// the next message could get the confirm that was meant for the last, and none after the broker closed it: then the
    /// next one opens another.
    alone: [tokio::sync::Mutex<Option<Channel>>; ISOLATE_AFTER],
    /// Counts those who found none of these free.
    queued: AtomicUsize,
    /// When results were probed last, and what the broker said.
    results_probed: tokio::sync::Mutex<Option<(Instant, EventsAccepted)>>,
    /// The confirm is registered and the frames are queued under different locks inside the client: two tasks that
    /// publish at once can get each other's confirms. Anyone who publishes holds this lock for both.
    order: Mutex<()>,
    confirm_timeout: Duration,
    /// Whether a publish waits for the end of an alarm, or fails soon: a person waits for it.
    waits_while_blocked: bool,
    commands: ShortString,
    results: ShortString,
    retry: ShortString,
    parked: ShortString,
    dead: ShortString,
}

impl Publisher {
    /// Opens every channel that it uses: one that exceeds a user's limit ends the whole connection, and nothing must be in
    /// hand then.
    pub(super) async fn open(
        connection: &Arc<BrokerConnection>,
        health: watch::Receiver<Health>,
        confirm_timeout: Duration,
        names: &Names,
    ) -> lapin::Result<Self> {
        let open = || confirming(connection);
        let (channel, first, second, third, fourth) =
            tokio::try_join!(open(), open(), open(), open(), open())?;
        let alone = [first, second, third, fourth];
        Ok(Self(Arc::new(Inner {
            connection: Arc::downgrade(connection),
            health,
            channel: Mutex::new(channel),
            isolating: tokio::sync::Mutex::default(),
            isolated_until: Mutex::default(),
            alone: alone.map(|channel| tokio::sync::Mutex::new(Some(channel))),
            queued: AtomicUsize::new(0),
            results_probed: tokio::sync::Mutex::default(),
            order: Mutex::default(),
            confirm_timeout,
            waits_while_blocked: true,
            commands: names.commands.as_str().into(),
            results: names.results.as_str().into(),
            retry: names.retry.as_str().into(),
            parked: names.parked.as_str().into(),
            dead: names.dead.as_str().into(),
        })))
    }

    /// The same publisher for somebody who waits in front of it: what is published while the broker blocks the connection
    /// fails within a second.
    pub(super) fn failing_while_blocked(mut self) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.waits_while_blocked = false;
        }
        self
    }

    /// Takes other channels for what is published from now on. Where the leader of a quorum queue is lost at the wrong
    /// moment, the broker goes on refusing whatever comes by a channel that it had open then, long after there is another
    /// leader (seen for minutes on a cluster of RabbitMQ 3.10.8). What waits for its confirm keeps its channel.
    pub(super) async fn renew(&self, connection: &Connection) -> lapin::Result<()> {
        let channel = confirming(connection).await?;
        *self.0.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
        // Anyone who publishes there now comes again, and finds the new one then.
        for place in &self.0.alone {
            if let Ok(mut place) = place.try_lock()
                && place.is_some()
            {
                *place = Some(confirming(connection).await?);
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

    /// Publishes a copy of `command` to the delay queue of `wait`, with `headers` that carry its progress.
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

    /// Puts `command` back into the command queue as a new message, with `headers` that carry its progress if it has
    /// any. Given back as it is, it would count as delivered in vain.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_requeued(
        &self,
        command: &Delivery,
        mut headers: Vec<(&'static str, String)>,
    ) -> Result<Published, PublishFailure> {
        // A session that has ended has given it back already.
        if let Some(why) = self.0.health.borrow().lost.clone() {
            return Err(PublishFailure::Connection(why));
        }
        if headers.is_empty() {
            // Should we die before the acknowledgement, two of it exist: this one looks before it sends.
            let tried = command.may_have_been_tried();
            // One that it has already stays: it says more.
            if !command.has_header(HANDED_BACK) {
                let first_seen = command.received_at();
                headers.push((HANDED_BACK, HandedBack { first_seen, tried }.to_words()));
            }
            if tried {
                headers.push((TRIED, "1".to_owned()));
            }
        }
        let mut properties = carried_on(command, headers);
        // It has not waited anywhere: what its sender bounded stays bounded.
        if let Some(expiration) = command.properties().expiration() {
            properties = properties.with_expiration(expiration.clone());
        }
        self.publish_alone(&ShortString::default(), self.0.commands.as_str(), properties, command.body())
            .await
    }

    /// Whether the broker closed the channel on which messages go side by side.
    pub(super) fn needs_channel(&self) -> bool {
        !self.0.channel.lock().unwrap_or_else(PoisonError::into_inner).status().connected()
    }

    /// Whether its session has ended.
    pub fn is_lost(&self) -> bool {
        self.0.health.borrow().lost.is_some()
    }

    /// Puts a dead letter back behind the others as a new message, with why and when it was dead-lettered.
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

    /// Sets `command` aside for a person, bytes and properties as they came.
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

    /// Sends a parked `command` to the command exchange again, with `headers` in place of all that it carried of ours,
    /// and `at` for when it was sent: its age must not count the days that it was parked.
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

    /// Publishes what a person did with a parked `command` to the reply exchange.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn publish_audit(
        &self,
        audit: &Audit,
        command: &Delivery,
    ) -> Result<Published, PublishFailure> {
        let mut properties = AMQPProperties::default()
            .with_content_type(result_event::CONTENT_TYPE.into())
            .with_delivery_mode(carried::PERSISTENT)
            .with_message_id(audit.id.to_string().as_str().into())
            .with_type(audit.kind.as_str().into())
            .with_app_id("redeemer".into());
        if let Some(correlation) = command.correlation() {
            properties = properties.with_correlation_id(correlation.into());
        }
        self.publish(&self.0.results, &audit.routing_key, properties, &audit.body).await
    }

    /// Publishes nothing to nobody: proves that confirms come, on both channels. While the broker raises an alarm they
    /// do not.
    ///
    /// # Errors
    /// [`PublishFailure`]
    pub async fn confirm_probe(&self) -> Result<Published, PublishFailure> {
        let nothing = || Message {
            exchange: "".into(),
            routing_key: "redemption.nobody".into(),
            options: BasicPublishOptions::default(),
            properties: AMQPProperties::default(),
            body: b"",
        };
        let side_by_side = async {
            self.side_by_side(nothing()).await.map_err(|why| match why {
                SideBySide::Ended(error) => PublishFailure::Rejected(PublishRejection::new(
                    String::new(),
                    nothing().routing_key.to_string(),
                    &error,
                )),
                SideBySide::NotPublished(why) => why,
            })
        };
        let side_by_side = self.within(side_by_side).await?;
        Ok(side_by_side.join(self.within(self.isolated(nothing())).await?))
    }

    /// What the broker said about one event that it does not accept, or that it never answered.
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

    /// Whether events in general are taken, asked with a probe that publishes nothing. Many may ask at once.
    pub async fn results_accept_events(&self) -> EventsAccepted {
        let mut probed = self.0.results_probed.lock().await;
        if let Some((at, answer)) = &*probed
            && at.elapsed() < PROBE_HOLDS
        {
            return answer.clone();
        }
        let right = Right::Write {
            exchange: self.0.results.to_string(),
            routing_key: probe::EVENT_PROBE_KEY.to_owned(),
        };
        let answer = match self.0.connection.upgrade() {
            Some(connection) => {
                let probing = probe::rejection(&connection, &right);
                timeout(self.0.confirm_timeout, probing).await
            }
            None => return EventsAccepted::Unknown,
        };
        let answer = match answer {
            Ok(Ok(None)) => EventsAccepted::Accepted,
            Ok(Ok(Some(of_all))) => EventsAccepted::Rejected(of_all),
            Ok(Err(_)) | Err(_) => EventsAccepted::Unknown,
        };
        *probed = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn publish(
        &self,
        exchange: &ShortString,
        routing_key: &str,
        properties: AMQPProperties,
        body: &[u8],
    ) -> Result<Published, PublishFailure> {
        let message = Message::mandatory(exchange, routing_key, properties, body);
        let publishing = async {
            if !self.is_isolating() {
                let again = message.clone();
                match self.side_by_side(message).await {
                    Err(SideBySide::Ended(_)) => self.isolate().await?,
                    Err(SideBySide::NotPublished(why)) => return Err(why),
                    Ok(published) => return Ok(published),
                }
                return self.isolated(again).await;
            }
            self.isolated(message).await
        };
        self.within(publishing).await
    }

    async fn publish_alone(
        &self,
        exchange: &ShortString,
        routing_key: &str,
        properties: AMQPProperties,
        body: &[u8],
    ) -> Result<Published, PublishFailure> {
        let message = Message::mandatory(exchange, routing_key, properties, body);
        self.within(self.isolated(message)).await
    }

    /// Bounds a publish from its first wait to its confirm. While the broker blocks the connection nothing can be
    /// confirmed, and the alarm is reported elsewhere: such time does not count, or each alarm would cost a session.
    async fn within(
        &self,
        publishing: impl Future<Output = Result<Published, PublishFailure>>,
    ) -> Result<Published, PublishFailure> {
        let limit = self.0.confirm_timeout;
        let mut health = self.0.health.clone();
        let mut publishing = pin!(publishing);
        if !self.0.waits_while_blocked {
            return tokio::select! {
                published = timeout(limit, publishing) => published.unwrap_or(Err(PublishFailure::TimedOut(limit))),
                reason = blocked_for(health.clone(), BLOCKED_REPORTED_AFTER) => Err(PublishFailure::Blocked(reason)),
            };
        }
        loop {
            if let Ok(published) = timeout(limit, publishing.as_mut()).await {
                return published;
            }
            if health.borrow_and_update().blocked.is_none() {
                return Err(PublishFailure::TimedOut(limit));
            }
            tokio::select! {
                published = publishing.as_mut() => return published,
                unblocked = health.wait_for(|now| now.blocked.is_none() || now.lost.is_some()) => {
                    let lost = unblocked.map_or_else(|_| Some(String::new()), |now| now.lost.clone());
                    if let Some(why) = lost {
                        return Err(PublishFailure::Connection(why));
                    }
                }
            }
        }
    }

    async fn side_by_side(&self, message: Message<'_>) -> Result<Published, SideBySide> {
        let Inner { channel, order, .. } = &*self.0;
        let channel = channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut publish = pin!(message.publish(&channel));
        // The client does both in the first poll, before it waits for the frames to be written. Only that poll is
        // under the lock: to hold it any longer would mean one write, and two changes of thread, per message.
        let queued = poll_fn(|context| {
            let _order = order.lock().unwrap_or_else(PoisonError::into_inner);
            Poll::Ready(publish.as_mut().poll(context))
        });
        let written = match queued.await {
            Poll::Ready(written) => written,
            Poll::Pending => publish.await,
        };
        let ended =
            |error| if self.ended_channel(&error) { SideBySide::Ended(error) } else { lost(error).into() };
        Ok(await_confirm(written.map_err(ended)?.await.map_err(ended)?)?)
    }

    async fn isolated(&self, message: Message<'_>) -> Result<Published, PublishFailure> {
        let mut place = self.place().await;
        // Taken out, so that anyone who is cut short here, before its confirm, leaves nothing behind.
        let channel = match place.take() {
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
        *place = Some(channel);
        await_confirm(confirmation)
    }

    /// A channel to publish alone on, or room for one: the first that is free.
    async fn place(&self) -> tokio::sync::MutexGuard<'_, Option<Channel>> {
        if let Some(free) = self.0.alone.iter().find_map(|place| place.try_lock().ok()) {
            return free;
        }
        let nth = self.0.queued.fetch_add(1, Ordering::Relaxed) % ISOLATE_AFTER;
        self.0.alone[nth].lock().await
    }

    /// Whether an error ended a channel and left the connection alive.
    fn ended_channel(&self, error: &lapin::Error) -> bool {
        let of_channel = is_soft(error) || matches!(error.kind(), ErrorKind::InvalidChannelState(..));
        of_channel && self.0.connection.upgrade().is_some_and(|connection| connection.status().connected())
    }

    fn is_isolating(&self) -> bool {
        let until = *self.0.isolated_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Publishes alone for a while, and gives others another channel to publish side by side on.
    async fn isolate(&self) -> Result<(), PublishFailure> {
        let until = Instant::now() + ISOLATION;
        *self.0.isolated_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        let ended = |channel: &Mutex<Channel>| {
            !channel.lock().unwrap_or_else(PoisonError::into_inner).status().connected()
        };
        // One of all whose channel has ended opens another.
        let _alone = self.0.isolating.lock().await;
        if ended(&self.0.channel) {
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

/// Why a message that went side by side with others is not proven.
enum SideBySide {
    /// The channel ended, over this message or over another one.
    Ended(lapin::Error),
    NotPublished(PublishFailure),
}

impl From<PublishFailure> for SideBySide {
    fn from(why: PublishFailure) -> Self {
        Self::NotPublished(why)
    }
}

/// A message as it goes out.
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

/// A channel on which the broker confirms.
async fn confirming(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

fn await_confirm(confirmation: Confirmation) -> Result<Published, PublishFailure> {
    match confirmation {
        // Side by side a return can be attached to a neighbor's confirm. Either way a message of ours was not routed,
        // and to doubt the wrong one costs a repeat, not a loss.
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
