//! The parked queue, as a person looks at it.
//!
//! A [`Look`] takes messages one by one and holds them, so that each is seen once and in its order. When it ends,
//! however it ends, the broker puts back what was not acknowledged: a crash half-way loses nothing. A look that took
//! everything leaves the order as it was; what a partial one took comes behind the rest.
//! Two looks at once would each see half, so a look holds an exclusive queue beside it, which ends with its
//! connection.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::broker::delivery::{Delivery, Inlet};
use crate::broker::publisher::{NotPublished, Publisher};
use crate::broker::topology::{Object, TopologyFault, declare};
use crate::broker::{
    BLOCKED_IS_TOLD_AFTER, CannotConnect, Health, Settings, Wire, blocked_for, connect_any, watch_events,
};

/// Why the parked queue cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CannotLook {
    /// The broker is not reached.
    #[error(transparent)]
    Connect(#[from] CannotConnect),
    /// Someone else looks.
    #[error("someone else is looking at {0}; what they hold cannot be seen. Try again when they are done")]
    Busy(String),
    /// The client cannot read a message, and its connection ended over it.
    #[error(
        "message {nth} in {queue} cannot be read: most likely a property or a header's name is not UTF-8, or headers \
         are nested more than 64 levels deep. Take it out with another client, such as the page of RabbitMQ's management (Queues, {queue}, Get messages); see \
         docs/operations.md#illegible-message"
    )]
    Illegible {
        /// The parked queue.
        queue: String,
        /// Counted from 1 at the queue's head.
        nth: u32,
    },
    /// There is no such queue.
    #[error("queue {0} is not there: look at broker.names, or run redeemer topology apply")]
    NoQueue(String),
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
pub struct Look {
    connection: Wire,
    health: watch::Sender<Health>,
    inlet: Arc<Inlet>,
    queue: String,
    lock: Option<String>,
    at: String,
    limit: Duration,
    begun: Instant,
    waiting: Option<u32>,
    taken: u32,
}

impl Look {
    /// Connects and makes sure that nobody else looks.
    ///
    /// # Errors
    /// [`CannotLook`]
    pub async fn begin(settings: &Settings) -> Result<Self, CannotLook> {
        let (connection, at) = connect_any(settings, "redeemer parked").await?;
        let (queue, limit) = (settings.topology.names.parked.clone(), settings.connect_timeout);
        let bound = Bound { at: &at, limit };
        let lock = lock(&connection, &queue, bound).await?;
        let inlet = Inlet::new(bound.wait(connection.create_channel()).await?);
        let begun = Instant::now();
        let health = watch::Sender::new(Health::default());
        watch_events(&connection, &health, false);
        Ok(Self { connection, health, inlet, queue, lock, at, limit, begun, waiting: None, taken: 0 })
    }

    /// Host, port and virtual host.
    pub fn at(&self) -> &str {
        &self.at
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
    /// [`CannotLook`]
    pub async fn next(&mut self) -> Result<Option<Delivery>, CannotLook> {
        if self.waiting.is_some_and(|waiting| self.taken >= waiting) {
            return Ok(None);
        }
        let bound = Bound { at: &self.at, limit: self.limit };
        let channel = self.inlet.channel();
        let got = bound.wait(channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()));
        let mut health = self.health.subscribe();
        // The client does not always answer for a connection that has ended over the answer.
        let illegible = async { health.wait_for(|now| now.illegible).await.is_ok() };
        let illegible_one = || CannotLook::Illegible { queue: self.queue.clone(), nth: self.taken + 1 };
        let got = tokio::select! {
            got = got => got,
            // The sender lives in `self`, so it has come to that.
            _ = illegible => return Err(illegible_one()),
        };
        let got = match got {
            Err(CannotLook::Lost { source, .. }) if code(&source) == Some(404) => {
                return Err(CannotLook::NoQueue(self.queue.clone()));
            }
            Err(CannotLook::Lost { source, .. }) if matches!(source.kind(), ErrorKind::ParsingError(_)) => {
                return Err(illegible_one());
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

/// Holds an exclusive queue. Without the right to configure one, the look goes on without.
async fn lock(connection: &Connection, queue: &str, bound: Bound<'_>) -> Result<Option<String>, CannotLook> {
    let name = format!("{queue}.look");
    let since = Instant::now();
    loop {
        let channel = bound.wait(connection.create_channel()).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        match bound.wait(channel.queue_declare(name.as_str().into(), options, FieldTable::default())).await {
            Ok(_) => {
                let _ = channel.close(200, "done".into()).await;
                return Ok(Some(name));
            }
            Err(CannotLook::Lost { source, .. }) if code(&source) == Some(403) => return Ok(None),
            // Whoever ended a moment ago may still hold it.
            Err(CannotLook::Lost { source, .. }) if code(&source) == Some(405) => {
                if since.elapsed() >= bound.limit {
                    return Err(CannotLook::Busy(queue.to_owned()));
                }
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A connection that publishes what a person decided.
pub struct Writing {
    connection: Arc<Wire>,
    publisher: Publisher,
}

impl Writing {
    /// Connects, looks that the command queue and the results exchange are there, and proves that confirms come.
    ///
    /// # Errors
    /// [`CannotConnect`]
    pub async fn begin(settings: &Settings) -> Result<Self, CannotConnect> {
        let (connection, at) = connect_any(settings, "redeemer parked, publishing").await?;
        let connection = Arc::new(connection);
        let health = watch::Sender::new(Health::default());
        watch_events(&connection, &health, true);
        let names = &settings.topology.names;
        let limit = settings.connect_timeout;
        let steps = async {
            for object in settings.topology.plan() {
                if let Object::Exchange { name, .. } | Object::Queue { name, .. } = &object
                    && [&names.commands, &names.results].contains(&name)
                {
                    declare(&connection, &object, true).await?;
                }
            }
            let (health, confirm_timeout) = (health.subscribe(), settings.confirm_timeout);
            let publisher = Publisher::open(&connection, health, confirm_timeout, names).await?;
            Ok::<_, TopologyFault>(publisher.failing_while_blocked())
        };
        let blocked = |reason| {
            let source = NotPublished::Blocked(reason);
            CannotConnect::NoConfirms { at: at.clone(), source }
        };
        let late = || CannotConnect::TimedOut { at: at.clone(), step: "looking at the topology", limit };
        let opened = tokio::select! {
            opened = timeout(limit, steps) => opened,
            reason = blocked_for(health.subscribe(), BLOCKED_IS_TOLD_AFTER) => return Err(blocked(reason)),
        };
        let publisher = opened
            .map_err(|_| late())?
            .map_err(|source| CannotConnect::Topology { at: at.clone(), source })?;
        timeout(limit, publisher.prove())
            .await
            .map_err(|_| late())?
            .map_err(|source| CannotConnect::NoConfirms { at: at.clone(), source })?;
        Ok(Self { connection, publisher })
    }

    /// The publisher.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Closes the connection, within a bound: a close can hang while the broker raises an alarm.
    pub async fn end(self) {
        let _ = timeout(Duration::from_secs(2), self.connection.close(200, "done".into())).await;
    }
}

#[derive(Clone, Copy)]
struct Bound<'a> {
    at: &'a str,
    limit: Duration,
}

impl Bound<'_> {
    async fn wait<T>(self, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, CannotLook> {
        let (at, limit) = (self.at.to_owned(), self.limit);
        match timeout(limit, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(CannotLook::Lost { at, source }),
            Err(_) => Err(CannotLook::TimedOut { at, limit }),
        }
    }
}

fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(fault) => Some(fault.get_id()),
        _ => None,
    }
}
