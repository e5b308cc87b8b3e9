//! The queue of commands that the broker itself took out of the command queue: delivered too often without being settled,
//! or expired. Read and settled on a connection of its own, because what could not be read before may end it again, and
//! because the end of a session must not count against the dead letters in hand.

use std::sync::Arc;

use lapin::options::BasicGetOptions;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::amqp::connection::{
    AmqpSettings, BrokerConnection, CannotConnect, Health, connect_any, lost, watch_events,
};
use crate::amqp::delivery::{ConsumerChannel, Delivery};
use crate::amqp::publisher::Publisher;

/// A connection that takes dead letters.
pub struct DeadLetters {
    connection: Arc<BrokerConnection>,
    health: watch::Sender<Health>,
    channel: Arc<ConsumerChannel>,
    publisher: Publisher,
    settings: AmqpSettings,
    at: String,
}

impl DeadLetters {
    /// Connects.
    ///
    /// # Errors
    /// [`CannotConnect`]
    pub async fn open(settings: &AmqpSettings) -> Result<Self, CannotConnect> {
        let (connection, at) = connect_any(settings, "redeemer dead letters").await?;
        let connection = Arc::new(connection);
        let health = watch::Sender::new(Health::default());
        watch_events(&connection, &health, true);
        let (limit, names) = (settings.connect_timeout, &settings.topology.names);
        let opening = async {
            let channel = ConsumerChannel::new(connection.create_channel().await?);
            let publisher =
                Publisher::open(&connection, health.subscribe(), settings.confirm_timeout, names).await?;
            Ok((channel, publisher))
        };
        let late = |_| CannotConnect::TimedOut { at: at.clone(), step: "opening channels", limit };
        let opened: lapin::Result<_> = timeout(limit, opening).await.map_err(late)?;
        let (channel, publisher) =
            opened.map_err(|source| CannotConnect::Refused { at: at.clone(), source })?;
        Ok(Self { connection, health, channel, publisher, settings: settings.clone(), at })
    }

    /// Publishes on the same connection.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// The next one; `None` when none exists left.
    ///
    /// # Errors
    /// [`CannotConnect`] if the connection is gone, and with it whatever was not settled.
    pub async fn next(&mut self) -> Result<Option<Delivery>, CannotConnect> {
        let (at, limit) = (self.at.clone(), self.settings.connect_timeout);
        let queue = self.settings.topology.names.dead.as_str();
        let got = self.channel.channel().basic_get(queue.into(), BasicGetOptions::default());
        let got = tokio::select! {
            got = timeout(limit, got) => got,
            // The client does not always answer for a connection that has ended over the answer.
            why = lost(&self.health) => return Err(CannotConnect::Lost { at, why }),
        };
        match got {
            Ok(Ok(got)) => Ok(got.map(|got| Delivery::new(got.delivery, &self.channel))),
            Ok(Err(source)) => Err(CannotConnect::Refused { at, source }),
            Err(_) => Err(CannotConnect::TimedOut { at, step: "handing over a dead letter", limit }),
        }
    }

    /// Closes the connection, within a bound; what was not settled goes back.
    pub async fn close(self) {
        let _ = timeout(self.settings.connect_timeout, self.connection.close(200, "done".into())).await;
    }
}
