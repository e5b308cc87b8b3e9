//! Publishes commands and reads results, as order services and subscribers do.
//!
//! For the command line only. One [`Link`] is one connection, and it is not established again when it is lost: the user at
//! the terminal decides. A program that publishes and reads needs two, because an alarm of the broker stops every write on
//! a connection that publishes, acknowledgements included.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Confirmation, ExchangeKind};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::amqp::confirm::PublishFailure;
use crate::amqp::connection::{
    AmqpSettings, BLOCKED_REPORTED_AFTER, BrokerConnection, CannotConnect, Health, blocked_for, connect_any,
    lost, watch_events,
};
use crate::amqp::session_end::SessionEnd;
use crate::amqp::topology::{Object, Topology};
use crate::wire::retry_message::DEADLINE;

/// One connection.
pub struct Link {
    connection: BrokerConnection,
    health: watch::Sender<Health>,
    at: String,
    limit: Duration,
    confirm_timeout: Duration,
}

/// Why a request to the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The broker refused, or the connection is gone.
    #[error("{what}: {source}")]
    Refused {
        /// The request.
        what: String,
        /// The client's words.
        source: lapin::Error,
    },
    /// An exchange that the service creates does not exist.
    #[error("exchange {0} does not exist: check broker.names, or run redeemer topology apply")]
    NoExchange(String),
    /// The broker blocks the connection.
    #[error(transparent)]
    Blocked(PublishFailure),
    /// No response in time.
    #[error("{what}: no response within {limit:?}")]
    TimedOut {
        /// The request.
        what: String,
        /// The deadline.
        limit: Duration,
    },
}

/// A command to publish.
#[derive(Debug, Clone, Copy, Default)]
pub struct CommandMessage<'a> {
    /// The command.
    pub body: &'a [u8],
    /// Its routing key.
    pub routing_key: &'a str,
    /// `message_id`.
    pub message_id: &'a str,
    /// `correlation_id`: comes back with the event.
    pub correlation_id: &'a str,
    /// `reply_to`: a further routing key of the event.
    pub reply_to: Option<&'a str>,
    /// The header `x-redemption-deadline`.
    pub deadline: Option<jiff::Timestamp>,
    /// `timestamp`: the start of its age.
    pub sent: Option<jiff::Timestamp>,
}

/// A received event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// The event.
    pub body: Vec<u8>,
    /// Its own routing key.
    pub routing_key: String,
    /// The id of the command at its sender.
    pub correlation_id: Option<String>,
}

impl Link {
    /// Connects to the first of the configured nodes that responds. The broker shows the connection under `name`.
    ///
    /// # Errors
    /// [`CannotConnect`] of the last node that was tried.
    pub async fn connect(settings: &AmqpSettings, name: &str) -> Result<Self, CannotConnect> {
        let (connection, at) = connect_any(settings, name).await?;
        let health = watch::Sender::new(Health::default());
        watch_events(&connection, &health, true);
        let (limit, confirm_timeout) = (settings.connect_timeout, settings.confirm_timeout);
        Ok(Self { connection, health, at, limit, confirm_timeout })
    }

    /// Host, port and virtual host.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// Why the connection is gone, once it is.
    pub async fn lost(&self) -> SessionEnd {
        lost(&self.health).await
    }

    /// Opens a channel that publishes to `exchange` with confirms.
    ///
    /// # Errors
    /// [`LinkError`], if the exchange does not exist or the broker refuses.
    pub async fn publisher(&self, exchange: &str) -> Result<CommandPublisher, LinkError> {
        self.expect_exchange(exchange).await?;
        let channel = self
            .bounded(format!("publishing to {exchange}"), async {
                let channel = self.connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                Ok(channel)
            })
            .await?;
        let (exchange, limit) = (exchange.to_owned(), self.confirm_timeout);
        Ok(CommandPublisher { channel, exchange, limit, health: self.health.subscribe() })
    }

    /// Binds a queue of our own to `exchange` under every one of `keys`, and reads from it. The queue is deleted with the
    /// connection. `longest` is the most events that it holds for a slow reader; older ones are dropped.
    ///
    /// # Errors
    /// [`LinkError`], if the exchange does not exist or the broker refuses.
    pub async fn subscribe(
        &self,
        exchange: &str,
        keys: &[String],
        longest: Option<i32>,
    ) -> Result<Subscription, LinkError> {
        self.expect_exchange(exchange).await?;
        self.bounded(format!("reading from {exchange}"), async {
            let channel = self.connection.create_channel().await?;
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let mut arguments = FieldTable::default();
            if let Some(longest) = longest {
                arguments.insert("x-max-length".into(), AMQPValue::LongInt(longest));
            }
            let queue = channel.queue_declare("".into(), options, arguments).await?;
            for key in keys {
                let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
                channel
                    .queue_bind(
                        queue.name().clone(),
                        exchange.into(),
                        key.as_str().into(),
                        options,
                        arguments,
                    )
                    .await?;
            }
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer = channel.basic_consume(queue.name().clone(), "".into(), options, arguments).await?;
            Ok(Subscription::new(consumer, channel))
        })
        .await
    }

    /// The exact number of messages that are ready in a queue. It gets one and requeues it: the count that a declaration
    /// returns for a quorum queue is up to five seconds old.
    ///
    /// # Errors
    /// [`LinkError`], if there is no such queue.
    pub async fn depth(&self, queue: &str) -> Result<u32, LinkError> {
        self.bounded(format!("queue {queue}"), async {
            let channel = self.connection.create_channel().await?;
            let taken = channel.basic_get(queue.into(), BasicGetOptions::default()).await?;
            let depth = taken.as_ref().map_or(0, |taken| taken.message_count + 1);
            if let Some(taken) = taken {
                taken.delivery.acker.nack(BasicNackOptions { requeue: true, multiple: false }).await?;
            }
            let _ = channel.close(200, "done".into()).await;
            Ok(depth)
        })
        .await
    }

    /// Deletes every queue and exchange of a topology, with what is in them.
    ///
    /// # Errors
    /// [`LinkError`] of the first that cannot be deleted.
    pub async fn delete(&self, topology: &Topology) -> Result<(), LinkError> {
        for object in topology.plan().iter().rev() {
            self.bounded("deleting the topology".to_owned(), async {
                let channel = self.connection.create_channel().await?;
                match object {
                    Object::Exchange { name, .. } => {
                        channel
                            .exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default())
                            .await?;
                    }
                    Object::Queue { name, .. } => {
                        channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
                    }
                    Object::Binding { .. } => {}
                }
                let _ = channel.close(200, "done".into()).await;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Closes the connection, within a bound: a close can hang while the broker raises an alarm.
    pub async fn close(self) {
        let _ = timeout(Duration::from_secs(2), self.connection.close(200, "done".into())).await;
    }

    async fn expect_exchange(&self, name: &str) -> Result<(), LinkError> {
        let declared = self.bounded(format!("exchange {name}"), async {
            let channel = self.connection.create_channel().await?;
            let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
            channel
                .exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default())
                .await?;
            let _ = channel.close(200, "done".into()).await;
            Ok(())
        });
        match declared.await {
            Err(LinkError::Refused { source, .. }) if is_not_found(&source) => {
                Err(LinkError::NoExchange(name.to_owned()))
            }
            result => result,
        }
    }

    async fn bounded<T>(
        &self,
        what: String,
        steps: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, LinkError> {
        let done = tokio::select! {
            done = timeout(self.limit, steps) => done,
            reason = blocked_for(self.health.subscribe(), BLOCKED_REPORTED_AFTER) => {
                return Err(LinkError::Blocked(PublishFailure::Blocked(reason)));
            }
        };
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(source)) => Err(LinkError::Refused { what, source }),
            Err(_) => Err(LinkError::TimedOut { what, limit: self.limit }),
        }
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(fault) if fault.get_id() == 404)
}

/// Events held here unacknowledged, at most.
const PREFETCH: u16 = 200;
const PERSISTENT: u8 = 2;

/// Publishes commands, one at a time: its `&mut` is the lock that the client needs around publishing.
pub struct CommandPublisher {
    channel: Channel,
    exchange: String,
    limit: Duration,
    health: watch::Receiver<Health>,
}

impl CommandPublisher {
    /// Publishes a command, persistent and mandatory, and returns a future of its confirm.
    ///
    /// # Errors
    /// [`PublishFailure`], here and from the confirm.
    pub async fn publish(
        &mut self,
        command: CommandMessage<'_>,
    ) -> Result<impl Future<Output = Result<(), PublishFailure>> + use<>, PublishFailure> {
        let CommandMessage { body, routing_key, message_id, correlation_id, reply_to, deadline, sent } =
            command;
        let mut properties = AMQPProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(message_id.into())
            .with_correlation_id(correlation_id.into());
        if let Some(at) = sent.and_then(|at| u64::try_from(at.as_second()).ok()) {
            properties = properties.with_timestamp(at);
        }
        if let Some(key) = reply_to {
            properties = properties.with_reply_to(key.into());
        }
        if let Some(deadline) = deadline {
            let mut headers = FieldTable::default();
            headers.insert(DEADLINE.into(), AMQPValue::LongString(deadline.to_string().into()));
            properties = properties.with_headers(headers);
        }
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = (self.exchange.as_str().into(), routing_key.into());
        let queued = self.channel.basic_publish(exchange, key, options, body, properties);
        let (limit, health) = (self.limit, self.health.clone());
        let queued = tokio::select! {
            queued = timeout(limit, queued) => queued,
            reason = blocked_for(health.clone(), BLOCKED_REPORTED_AFTER) => return Err(PublishFailure::Blocked(reason)),
        };
        let confirm = queued
            .map_err(|_| PublishFailure::TimedOut(limit))?
            .map_err(|error| PublishFailure::Connection(error.to_string()))?;
        Ok(async move {
            let confirmed = tokio::select! {
                confirmed = timeout(limit, confirm) => confirmed,
                reason = blocked_for(health.clone(), BLOCKED_REPORTED_AFTER) => {
                    return Err(PublishFailure::Blocked(reason));
                }
            };
            match confirmed {
                Err(_) => Err(PublishFailure::TimedOut(limit)),
                Ok(Err(error)) => Err(PublishFailure::Connection(error.to_string())),
                // A return can be attached to another message's confirm: some command of ours was not routed.
                Ok(Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)))) => {
                    Err(PublishFailure::Returned(returned.reply_text.to_string()))
                }
                Ok(Ok(Confirmation::Ack(None))) => Ok(()),
                Ok(Ok(Confirmation::Nack(None) | Confirmation::NotRequested)) => Err(PublishFailure::Refused),
            }
        })
    }
}

/// Reads events from a queue of our own.
pub struct Subscription {
    events: mpsc::Receiver<ReceivedEvent>,
    reader: JoinHandle<()>,
}

impl Subscription {
    fn new(mut consumer: lapin::Consumer, channel: Channel) -> Self {
        // A task of its own, so that a wait for an event may be canceled without losing one.
        let (sender, events) = mpsc::channel(usize::from(PREFETCH));
        let reader = tokio::spawn(async move {
            let _channel = channel;
            while let Some(Ok(delivery)) = consumer.next().await {
                let event = ReceivedEvent {
                    routing_key: delivery.routing_key.to_string(),
                    correlation_id: delivery.properties.correlation_id().as_ref().map(ToString::to_string),
                    body: delivery.data,
                };
                if sender.send(event).await.is_err() {
                    return;
                }
                // A lost ack has no effect: the queue is deleted with the connection.
                let _ = delivery.acker.ack(BasicAckOptions::default()).await;
            }
        });
        Self { events, reader }
    }

    /// The next event. `None` is final: the connection is gone, or the broker ended the consumer.
    pub async fn next(&mut self) -> Option<ReceivedEvent> {
        self.events.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
