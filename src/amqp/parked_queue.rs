//! One pass over the parked queue, for an operator.
//!
//! A [`ParkedQueue`] takes messages one by one and holds them, so that each is seen once and in its order. When the pass
//! ends, also in a crash, the broker requeues every message that was not acknowledged. A pass that took every message
//! leaves their order as it was; a partial pass puts its messages behind the others. Two passes at once would each see
//! half of the messages, so a pass holds a lock: an exclusive queue, which the broker deletes with its connection.
//!
//! An operator action is published on the connection of the pass: the broker accepts it only as long as the pass holds
//! its lock and its messages. A pass that is lost publishes nothing.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::Connection;
use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::amqp::confirm::PublishFailure;
use crate::amqp::connection::{
    AmqpSettings, BLOCKED_REPORTED_AFTER, BrokerConnection, CannotConnect, Health, blocked_for, connect_any,
    reply_code, watch_events,
};
use crate::amqp::delivery::{ConsumerChannel, Delivery};
use crate::amqp::publisher::Publisher;
use crate::amqp::session::topology_fault;
use crate::amqp::topology::{Object, TopologyFault, declare, lock_name};
use crate::wire::audit_event::Audit;

/// Why the parked queue cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ParkedQueueError {
    /// The broker cannot be reached.
    #[error(transparent)]
    Connect(#[from] CannotConnect),
    /// Another operator holds the lock.
    #[error("another operator is reading {0} and holds its messages; try again later")]
    Busy(String),
    /// There is no such queue.
    #[error("queue {0} does not exist; check broker.names, or run redeemer topology apply")]
    NoQueue(String),
    /// The queue that is the lock was deleted.
    #[error("the lock {0} is lost, because that queue was deleted; nothing more is done, try again")]
    LockLost(String),
    /// No publisher was opened.
    #[error("the parked queue was opened for reading only")]
    ReadOnly,
    /// The broker blocks the connection, because it has published.
    #[error(
        "{at} blocks publishing ({reason}); check rabbitmqctl status, and try again when the alarm is over"
    )]
    Blocked {
        /// Host, port and virtual host.
        at: String,
        /// The broker's words.
        reason: String,
    },
    /// The connection is lost; the broker has requeued the messages.
    #[error("{at}: {source}")]
    Lost {
        /// Host, port and virtual host.
        at: String,
        /// The client's words.
        source: lapin::Error,
    },
    /// No response in time.
    #[error("{at} did not respond within {limit:?}")]
    TimedOut {
        /// Host, port and virtual host.
        at: String,
        /// The deadline.
        limit: Duration,
    },
}

/// One pass over the parked queue.
pub struct ParkedQueue {
    connection: Arc<BrokerConnection>,
    /// Whether the broker blocks the connection.
    publishing: watch::Sender<Health>,
    publisher: Option<Publisher>,
    consumer_channel: Arc<ConsumerChannel>,
    queue: String,
    lock: Option<String>,
    at: String,
    limit: Duration,
    begun: Instant,
    waiting: Option<u32>,
    taken: u32,
}

impl ParkedQueue {
    /// Connects and acquires the lock.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn begin(settings: &AmqpSettings) -> Result<Self, ParkedQueueError> {
        let (connection, at) = connect_any(settings, "redeemer parked").await?;
        let (queue, limit) = (settings.topology.names.parked.clone(), settings.connect_timeout);
        let bound = Bound { at: &at, limit };
        let lock = lock(&connection, &queue, bound).await?;
        let consumer_channel = ConsumerChannel::new(bound.wait(connection.create_channel()).await?);
        let begun = Instant::now();
        Ok(Self {
            connection: Arc::new(connection),
            publishing: watch::Sender::default(),
            publisher: None,
            consumer_channel,
            queue,
            lock,
            at,
            limit,
            begun,
            waiting: None,
            taken: 0,
        })
    }

    /// Opens the publisher for operator actions, on the connection of this pass.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn open_publisher(&mut self, settings: &AmqpSettings) -> Result<(), ParkedQueueError> {
        watch_events(&self.connection, &self.publishing, true);
        let (health, names) = (self.publishing.subscribe(), &settings.topology.names);
        let opening = Publisher::open(&self.connection, health, settings.confirm_timeout, names);
        self.publisher = Some(self.bounded(opening).await?.failing_while_blocked());
        Ok(())
    }

    /// The publisher, once [`ParkedQueue::verify`] has succeeded.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn verified_publisher(&self) -> Result<&Publisher, ParkedQueueError> {
        let publisher = self.publisher.as_ref().ok_or(ParkedQueueError::ReadOnly)?;
        self.verify().await?;
        Ok(publisher)
    }

    /// Verifies that the broker still holds the lock for us. The request uses the channel that holds the messages, so a
    /// response also confirms that these are still held, and that the broker has received earlier acknowledgements.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn verify(&self) -> Result<(), ParkedQueueError> {
        // Without a lock any queue will do: the response confirms the channel.
        let name = self.lock.as_deref().unwrap_or(&self.queue);
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.consumer_channel.channel();
        match self.bounded(channel.queue_declare(name.into(), options, FieldTable::default())).await {
            Ok(_) => Ok(()),
            Err(ParkedQueueError::Lost { source, .. }) if matches!(reply_code(&source), Some(404 | 405)) => {
                Err(ParkedQueueError::LockLost(name.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for a response within the limit, and not while the broker blocks the connection.
    async fn bounded<T>(
        &self,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, ParkedQueueError> {
        let bound = Bound { at: &self.at, limit: self.limit };
        tokio::select! {
            response = bound.wait(request) => response,
            reason = blocked_for(self.publishing.subscribe(), BLOCKED_REPORTED_AFTER) => {
                Err(ParkedQueueError::Blocked { at: self.at.clone(), reason })
            }
        }
    }

    /// Host, port and virtual host.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// A warning if this pass has no lock.
    pub fn missing_lock(&self) -> Option<String> {
        let name = lock_name(&self.queue);
        self.lock.is_none().then(|| {
            format!(
                "the parked queue is read without a lock, so another operator may hold other commands: the broker's user \
                 may not configure {name}; grant that (docs/operations.md, \"Broker permissions\"), or work one at a time"
            )
        })
    }

    /// How many messages waited when the first was taken; zero until then.
    pub fn waiting(&self) -> u32 {
        self.waiting.unwrap_or(0)
    }

    /// How long it has held its messages. The broker requeues them after its `consumer_timeout`.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The next message, held until it is settled or the pass ends. `None` after the last of the messages that waited at
    /// the beginning.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn next(&mut self) -> Result<Option<Delivery>, ParkedQueueError> {
        if self.waiting.is_some_and(|waiting| self.taken >= waiting) {
            return Ok(None);
        }
        let channel = self.consumer_channel.channel();
        let got = self.bounded(channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()));
        let got = match got.await {
            Err(ParkedQueueError::Lost { source, .. }) if reply_code(&source) == Some(404) => {
                return Err(ParkedQueueError::NoQueue(self.queue.clone()));
            }
            got => got?,
        };
        let Some(got) = got else {
            self.waiting.get_or_insert(0);
            return Ok(None);
        };
        self.waiting.get_or_insert(got.message_count + 1);
        self.taken += 1;
        Ok(Some(Delivery::new(got.delivery, &self.consumer_channel)))
    }

    /// Requeues the messages that were not settled and closes the connection, within a bound.
    pub async fn end(self) {
        let ending = async {
            // Tag 0 with `multiple` means every message; the end of the connection would do the same a moment later.
            let options = BasicNackOptions { requeue: true, multiple: true };
            if self.taken > 0 {
                let _ = self.consumer_channel.channel().basic_nack(0, options).await;
            }
            let _ = self.consumer_channel.channel().close(200, "done".into()).await;
            if let (Some(lock), Ok(channel)) = (&self.lock, self.connection.create_channel().await) {
                let _ = channel.queue_delete(lock.as_str().into(), QueueDeleteOptions::default()).await;
            }
            let _ = self.connection.close(200, "done".into()).await;
        };
        let _ = timeout(self.limit, ending).await;
    }
}

/// Declares the exclusive queue that is the lock. `None`, with a warning, if the right to configure it is missing.
async fn lock(
    connection: &Connection,
    queue: &str,
    bound: Bound<'_>,
) -> Result<Option<String>, ParkedQueueError> {
    let name = lock_name(queue);
    let since = Instant::now();
    loop {
        let channel = bound.wait(connection.create_channel()).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        match bound.wait(channel.queue_declare(name.as_str().into(), options, FieldTable::default())).await {
            Ok(_) => {
                let _ = channel.close(200, "done".into()).await;
                return Ok(Some(name));
            }
            Err(ParkedQueueError::Lost { source, .. }) if reply_code(&source) == Some(403) => {
                warn!(
                    lock = name,
                    "no permission for the lock of the parked queue; operators may work at once"
                );
                return Ok(None);
            }
            // A pass that ended a moment ago may still hold it.
            Err(ParkedQueueError::Lost { source, .. }) if reply_code(&source) == Some(405) => {
                if since.elapsed() >= bound.limit {
                    return Err(ParkedQueueError::Busy(queue.to_owned()));
                }
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Checks, on a connection of its own, that the command queue and the results exchange exist and that a publish is
/// confirmed. A pass whose connection the broker blocks would keep its lock until the alarm is over, so this comes first.
///
/// # Errors
/// [`CannotConnect`]
pub async fn check_publishing(settings: &AmqpSettings) -> Result<(), CannotConnect> {
    let (connection, at) = connect_any(settings, "redeemer parked, checking").await?;
    let connection = Arc::new(connection);
    let health = watch::Sender::new(Health::default());
    watch_events(&connection, &health, true);
    let checked = tokio::select! {
        checked = check_on(&connection, &at, health.subscribe(), settings) => checked,
        reason = blocked_for(health.subscribe(), BLOCKED_REPORTED_AFTER) => {
            let source = PublishFailure::Blocked(reason);
            Err(CannotConnect::NoConfirms { at, source })
        }
    };
    // A close can hang while the broker raises an alarm.
    let _ = timeout(Duration::from_secs(2), connection.close(200, "done".into())).await;
    checked
}

/// Publishes an audit event of the operator console on a connection of its own, since no command is held.
///
/// # Errors
/// [`CannotConnect`]
pub async fn publish_console_event(settings: &AmqpSettings, event: &Audit) -> Result<(), CannotConnect> {
    let (connection, at) = connect_any(settings, "redeemer console audit").await?;
    let connection = Arc::new(connection);
    let health = watch::Sender::new(Health::default());
    watch_events(&connection, &health, true);
    let (limit, names) = (settings.connect_timeout, &settings.topology.names);
    let unconfirmed = |source| CannotConnect::NoConfirms { at: at.clone(), source };
    let published = async {
        let opening = Publisher::open(&connection, health.subscribe(), settings.confirm_timeout, names);
        let late = |_| CannotConnect::TimedOut { at: at.clone(), step: "opening channels", limit };
        let lost = |source| topology_fault(settings, &at, TopologyFault::from(source));
        let publisher = timeout(limit, opening).await.map_err(late)?.map_err(lost)?;
        // Its own deadline bounds the confirm.
        publisher.failing_while_blocked().publish_audit(event, None).await.map_err(unconfirmed)?;
        Ok(())
    };
    let published = published.await;
    let _ = timeout(Duration::from_secs(2), connection.close(200, "done".into())).await;
    published
}

async fn check_on(
    connection: &Arc<BrokerConnection>,
    at: &str,
    health: watch::Receiver<Health>,
    settings: &AmqpSettings,
) -> Result<(), CannotConnect> {
    let (names, limit) = (&settings.topology.names, settings.connect_timeout);
    let steps = async {
        for object in settings.topology.plan() {
            if let Object::Exchange { name, .. } | Object::Queue { name, .. } = &object
                && [&names.commands, &names.results].contains(&name)
            {
                declare(connection, &object, true).await?;
            }
        }
        let publisher = Publisher::open(connection, health, settings.confirm_timeout, names).await?;
        Ok::<_, TopologyFault>(publisher.failing_while_blocked())
    };
    let late = |_| CannotConnect::TimedOut { at: at.to_owned(), step: "the topology check", limit };
    let publisher =
        timeout(limit, steps).await.map_err(late)?.map_err(|source| topology_fault(settings, at, source))?;
    timeout(limit, publisher.confirm_probe())
        .await
        .map_err(late)?
        .map_err(|source| CannotConnect::NoConfirms { at: at.to_owned(), source })?;
    Ok(())
}

#[derive(Clone, Copy)]
struct Bound<'a> {
    at: &'a str,
    limit: Duration,
}

impl Bound<'_> {
    async fn wait<T>(self, request: impl Future<Output = lapin::Result<T>>) -> Result<T, ParkedQueueError> {
        let (at, limit) = (self.at.to_owned(), self.limit);
        match timeout(limit, request).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(ParkedQueueError::Lost { at, source }),
            Err(_) => Err(ParkedQueueError::TimedOut { at, limit }),
        }
    }
}
