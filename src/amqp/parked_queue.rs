//! The parked queue, as a person looks at it.
//!
//! A [`ParkedQueue`] takes messages one by one and holds them, so that each is seen once and in its order. When it ends,
//! however it ends, the broker puts back what was not acknowledged: a crash half-way loses nothing. A look that took
//! everything leaves the order as it was; what a partial one took comes behind the rest.
//! Two looks at once would each see half, so a look holds an exclusive queue beside it, which ends with its
//! connection.
//!
//! What a person decides is published on the connection of the look: the broker accepts it only as long as the look
//! holds its lock and its messages. A look that is lost publishes nothing.

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
use crate::amqp::topology::{Object, TopologyFault, declare};

/// Why the parked queue cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ParkedQueueError {
    /// The broker is not reached.
    #[error(transparent)]
    Connect(#[from] CannotConnect),
    /// Someone else looks.
    #[error("someone else is looking at {0}; what they hold cannot be seen. Try again when they are done")]
    Busy(String),
    /// There is no such queue.
    #[error("queue {0} is not there: look at broker.names, or run redeemer topology apply")]
    NoQueue(String),
    /// The lock is not ours any more: somebody deleted its queue.
    #[error("the lock {0} is gone: somebody deleted that queue. Nothing more is done; try again")]
    LockLost(String),
    /// The look was opened to read only.
    #[error("this look was opened without a publisher")]
    ReadOnly,
    /// The broker blocks the connection, which has published.
    #[error(
        "{at} blocks publishing ({reason}): look at rabbitmqctl status, and try again when the alarm is over"
    )]
    Blocked {
        /// Host, port and virtual host.
        at: String,
        /// The broker's words.
        reason: String,
    },
    /// The connection is gone; whatever was held is back in the queue.
    #[error("{at}: {source}")]
    Lost {
        /// Host, port and virtual host.
        at: String,
        /// The client's words.
        source: lapin::Error,
    },
    /// No answer in time.
    #[error("{at} did not answer within {limit:?}")]
    TimedOut {
        /// Host, port and virtual host.
        at: String,
        /// The deadline.
        limit: Duration,
    },
}

/// One look at the parked queue.
pub struct ParkedQueue {
    connection: Arc<BrokerConnection>,
    /// What the broker says of the connection as one that publishes.
    publishing: watch::Sender<Health>,
    publisher: Option<Publisher>,
    inlet: Arc<ConsumerChannel>,
    queue: String,
    lock: Option<String>,
    at: String,
    limit: Duration,
    begun: Instant,
    waiting: Option<u32>,
    taken: u32,
}

impl ParkedQueue {
    /// Connects and makes sure that nobody else looks.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn begin(settings: &AmqpSettings) -> Result<Self, ParkedQueueError> {
        let (connection, at) = connect_any(settings, "redeemer parked").await?;
        let (queue, limit) = (settings.topology.names.parked.clone(), settings.connect_timeout);
        let bound = Bound { at: &at, limit };
        let lock = lock(&connection, &queue, bound).await?;
        let inlet = ConsumerChannel::new(bound.wait(connection.create_channel()).await?);
        let begun = Instant::now();
        Ok(Self {
            connection: Arc::new(connection),
            publishing: watch::Sender::default(),
            publisher: None,
            inlet,
            queue,
            lock,
            at,
            limit,
            begun,
            waiting: None,
            taken: 0,
        })
    }

    /// Opens the publisher of what a person decides, on the connection of this look.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn open_publisher(&mut self, settings: &AmqpSettings) -> Result<(), ParkedQueueError> {
        watch_events(&self.connection, &self.publishing, true);
        let (health, names) = (self.publishing.subscribe(), &settings.topology.names);
        let opening = Publisher::open(&self.connection, health, settings.confirm_timeout, names);
        self.publisher = Some(self.answered(opening).await?.failing_while_blocked());
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

    /// Has the broker confirm that the lock is still ours. The request goes on the channel that holds the messages, so
    /// an answer also proves that these are still held, and that acknowledgements sent before have reached the broker.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn verify(&self) -> Result<(), ParkedQueueError> {
        // Without a lock its own queue serves: the channel is proven all the same.
        let name = self.lock.as_deref().unwrap_or(&self.queue);
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.inlet.channel();
        match self.answered(channel.queue_declare(name.into(), options, FieldTable::default())).await {
            Ok(_) => Ok(()),
            Err(ParkedQueueError::Lost { source, .. }) if matches!(reply_code(&source), Some(404 | 405)) => {
                Err(ParkedQueueError::LockLost(name.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// An answer within the limit; none while the broker blocks the connection.
    async fn answered<T>(
        &self,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, ParkedQueueError> {
        let bound = Bound { at: &self.at, limit: self.limit };
        tokio::select! {
            answer = bound.wait(asked) => answer,
            reason = blocked_for(self.publishing.subscribe(), BLOCKED_REPORTED_AFTER) => {
                Err(ParkedQueueError::Blocked { at: self.at.clone(), reason })
            }
        }
    }

    /// Host, port and virtual host.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// Why nothing keeps another operator from looking at the same time, where that is so.
    pub fn missing_lock(&self) -> Option<String> {
        let name = lock_name(&self.queue);
        self.lock.is_none().then(|| {
            format!(
                "this look has no lock, so another operator may be at work too, on other commands: the broker's user may \
                 not configure {name}. Grant that (docs/operations.md, \"Broker permissions\"), or work one at a time"
            )
        })
    }

    /// How many messages waited when the first was taken; zero before that.
    pub fn waiting(&self) -> u32 {
        self.waiting.unwrap_or(0)
    }

    /// How long it has held what it took. A broker takes everything back after its `consumer_timeout`.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The next message, held until it is settled or the look ends. `None` after the last of those that waited at the
    /// beginning.
    ///
    /// # Errors
    /// [`ParkedQueueError`]
    pub async fn next(&mut self) -> Result<Option<Delivery>, ParkedQueueError> {
        if self.waiting.is_some_and(|waiting| self.taken >= waiting) {
            return Ok(None);
        }
        let channel = self.inlet.channel();
        let got = self.answered(channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()));
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
        Ok(Some(Delivery::new(got.delivery, &self.inlet)))
    }

    /// Puts back what was not settled and closes the connection, within a bound.
    pub async fn end(self) {
        let put_back = async {
            // Tag 0 with `multiple` is everything; the connection's end would do the same a moment later.
            let options = BasicNackOptions { requeue: true, multiple: true };
            if self.taken > 0 {
                let _ = self.inlet.channel().basic_nack(0, options).await;
            }
            let _ = self.inlet.channel().close(200, "done".into()).await;
            if let (Some(lock), Ok(channel)) = (&self.lock, self.connection.create_channel().await) {
                let _ = channel.queue_delete(lock.as_str().into(), QueueDeleteOptions::default()).await;
            }
            let _ = self.connection.close(200, "done".into()).await;
        };
        let _ = timeout(self.limit, put_back).await;
    }
}

fn lock_name(queue: &str) -> String {
    format!("{queue}.look")
}

/// Holds an exclusive queue. Without the right to configure one, the look goes on without, and says so.
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
            // Anyone who ended a moment ago may still hold it.
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

/// Looks, on a connection of its own, that the command queue and the results exchange are there, and proves that confirms
/// come. A look whose connection the broker blocks would keep its lock until the alarm is over, so this comes first.
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
    let late = |_| CannotConnect::TimedOut { at: at.to_owned(), step: "looking at the topology", limit };
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
    async fn wait<T>(self, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, ParkedQueueError> {
        let (at, limit) = (self.at.to_owned(), self.limit);
        match timeout(limit, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(ParkedQueueError::Lost { at, source }),
            Err(_) => Err(ParkedQueueError::TimedOut { at, limit }),
        }
    }
}
