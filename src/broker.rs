//! The broker's edge: one *generation* is one pair of connections and everything on them.
//!
//! The client's own recovery stays off. A channel that the broker closed leaves its consumer waiting for ever, and
//! old delivery tags acknowledge other messages after a reconnect; so whatever goes wrong ends the generation, and
//! [`crate::app`] builds a new one, from the handshake to the consumer. One connection consumes and one publishes,
//! because an alarm of the broker stops *every* write on a connection that publishes, acknowledgements included.

pub mod client;
pub mod delivery;
mod line;
pub mod management;
pub mod parked;
pub mod probe;
pub mod publisher;
pub mod tls;
pub mod topology;

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::protocol::AMQPErrorKind;
use lapin::runtime::default_runtime;
use lapin::types::FieldTable;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use crate::broker::delivery::{Delivery, Inlet};
use crate::broker::line::{Line, Socket};
use crate::broker::publisher::{NotPublished, Publisher};
use crate::broker::tls::{BadFile, Tls};
use crate::broker::topology::{Mode, Topology, TopologyFault, establish};

/// How the broker is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `amqp://` or `amqps://` URIs with user and password, one per node, tried in turn.
    pub uris: Vec<SecretString>,
    /// The longest wait for a connection and its handshake, and for every question on the way to consuming.
    pub connect_timeout: Duration,
    /// The longest wait for a confirm.
    pub confirm_timeout: Duration,
    /// Heartbeat; a silent connection is dead after twice this time.
    pub heartbeat: Duration,
    /// What is trusted and shown where a URI begins with `amqps://`.
    pub tls: Tls,
    /// What must exist.
    pub topology: Topology,
    /// What to do about it.
    pub mode: Mode,
}

impl Settings {
    /// The virtual host, as the first URI names it.
    ///
    /// # Errors
    /// [`CannotConnect::Uri`] where it is none.
    pub fn vhost(&self) -> Result<String, CannotConnect> {
        Ok(address(self, 0)?.0.vhost)
    }

    /// The user, as the first URI names it.
    ///
    /// # Errors
    /// [`CannotConnect::Uri`] where it is none.
    pub fn user(&self) -> Result<String, CannotConnect> {
        Ok(address(self, 0)?.0.authority.userinfo.username)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum CannotConnect {
    /// The URI is none. It may hold a password, so neither it nor the parser's words, which may quote it, are shown.
    #[error("broker.uri is not a broker URI such as amqp://user:password@host:5672/%2f{0}")]
    Uri(&'static str),
    /// No whole handshake in time.
    #[error("{at} did not complete {step} within {limit:?}")]
    TimedOut {
        /// Host, port and virtual host.
        at: String,
        /// What was under way.
        step: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// The broker or the network refused.
    #[error("{at}: {source}")]
    Refused {
        /// Host, port and virtual host.
        at: String,
        /// The client's words.
        source: lapin::Error,
    },
    /// The handshake of TLS failed.
    #[error("{at}: {advice} ({source})")]
    Tls {
        /// Host, port and virtual host.
        at: String,
        /// What it means, and which key mends it.
        advice: &'static str,
        /// The client's words.
        source: lapin::Error,
    },
    /// A file that TLS needs cannot be used.
    #[error("{0}")]
    File(#[from] BadFile),
    /// The topology is not as it must be.
    #[error("{at}: {source}")]
    Topology {
        /// Host, port and virtual host.
        at: String,
        /// What differs.
        source: TopologyFault,
    },
    /// Longer frames are needed than the broker, or the URI, allows.
    #[error(
        "{at} takes frames of {bytes} bytes at most, and the headers of a copy may need {least}; set frame_max in \
         rabbitmq.conf, and in broker.uri if it names one, to that or more"
    )]
    Frames {
        /// Host, port and virtual host.
        at: String,
        /// What was agreed on.
        bytes: u32,
        /// What is needed.
        least: u32,
    },
    /// Publishing is not possible now: most likely an alarm of the broker.
    #[error(
        "{at} does not confirm a publish ({source}); look for a memory or disk alarm: rabbitmqctl status"
    )]
    NoConfirms {
        /// Host, port and virtual host.
        at: String,
        /// What happened.
        source: NotPublished,
    },
}

/// What is known of a generation while it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The broker's reason for blocking our publishing connection.
    pub blocked: Option<String>,
    /// Why the generation has ended.
    pub lost: Option<String>,
    /// It ended because the client could not read what the broker delivered.
    pub illegible: bool,
}

/// A connection, and the line that its socket ends with.
struct Wire {
    connection: Connection,
    _line: Line,
}

impl Deref for Wire {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// A pair of connections with everything on them.
pub struct Generation {
    consuming: Wire,
    publishing: Wire,
    inlet: Arc<Inlet>,
    queue: String,
    publisher: Publisher,
    health: watch::Sender<Health>,
    at: String,
    limit: Duration,
}

impl Generation {
    /// Connects and establishes the topology; [`Generation::prove`] comes next. `nth` chooses among several nodes.
    ///
    /// # Errors
    /// [`CannotConnect`] says which step failed and where.
    pub async fn build(settings: &Settings, nth: usize) -> Result<Self, CannotConnect> {
        let (uri, at) = address(settings, nth)?;
        let limit = settings.connect_timeout;
        let mut publishing = uri.clone();
        publishing.query.frame_max = publishing.query.frame_max.min(Some(PUBLISHED_FRAME_BYTES_MAX));

        let (consuming, publishing) = tokio::try_join!(
            connect(&uri, "redeemer consume", &at, settings),
            connect(&publishing, "redeemer publish", &at, settings)
        )?;
        let bytes = publishing.configuration().frame_max();
        if (1..PUBLISHED_FRAME_BYTES_MAX).contains(&bytes) {
            return Err(CannotConnect::Frames { at, bytes, least: PUBLISHED_FRAME_BYTES_MAX });
        }
        let health = watch::Sender::new(Health::default());

        let refused = |source| CannotConnect::Refused { at: at.clone(), source };
        let steps = async {
            establish(&publishing, &settings.topology, settings.mode)
                .await
                .map_err(|source| CannotConnect::Topology { at: at.clone(), source })?;
            let inlet = Inlet::new(consuming.create_channel().await.map_err(refused)?);
            let names = &settings.topology.names;
            let publisher = Publisher::open(&publishing, settings.confirm_timeout, names).await;
            Ok::<_, CannotConnect>((inlet, publisher.map_err(refused)?))
        };
        let (inlet, publisher) = timeout(limit, steps).await.map_err(|_| CannotConnect::TimedOut {
            at: at.clone(),
            step: "looking at the topology",
            limit,
        })??;
        // Only from here on: what the broker refuses while the topology is looked at ends no generation.
        watch_events(&consuming, &health, false);
        watch_events(&publishing, &health, true);
        let queue = settings.topology.names.commands.clone();
        Ok(Self { consuming, publishing, inlet, queue, publisher, health, at, limit })
    }

    /// Proves that confirms come. While the broker raises an alarm they do not, and [`Generation::is_blocked`] tells: then
    /// this is to be called again, on the same connections. The broker looks at one that it has blocked only when the
    /// alarm is over, so each one that was given up meanwhile would stay with it.
    ///
    /// # Errors
    /// [`CannotConnect::NoConfirms`]
    pub async fn prove(&self) -> Result<(), CannotConnect> {
        let (limit, blocked) = (self.limit, self.is_blocked());
        let mut health = self.health();
        let proving = async {
            if blocked {
                // What was not confirmed in time has used up its channels.
                let _ = health.wait_for(|now| now.blocked.is_none() || now.lost.is_some()).await;
                let renewed = self.publisher.renew(&self.publishing).await;
                renewed.map_err(|error| NotPublished::Connection(error.to_string()))?;
            }
            self.publisher.prove().await
        };
        let proved = timeout(limit, proving).await.unwrap_or(Err(NotPublished::TimedOut(limit)));
        proved.map(drop).map_err(|source| CannotConnect::NoConfirms { at: self.at.clone(), source })
    }

    /// Whether the broker lets us publish nothing now, and the connections live.
    pub fn is_blocked(&self) -> bool {
        let health = self.health.borrow();
        health.blocked.is_some() && health.lost.is_none()
    }

    /// Whether it ended because the client could not read what the broker delivered.
    pub fn met_the_illegible(&self) -> bool {
        self.health.borrow().illegible
    }

    /// Host, port and virtual host.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// The publisher of this generation.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Publishes by other channels from now on: the broker may go on refusing what comes by these. Where that fails, it
    /// goes on as before.
    pub async fn renew_channels(&self) {
        if !matches!(self.bounded(self.publisher.renew(&self.publishing)).await, Ok(Ok(()))) {
            debug!("no other channels to publish by");
        }
    }

    /// Follows the health of this generation.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Ends the generation for a reason that only its user could see: a failed ack, a missing confirm.
    pub fn give_up(&self, why: &str) {
        lose(&self.health, why);
    }

    /// Waits within the bound, and no longer than the connections live: the client does not always answer what was asked of
    /// one that has just ended.
    async fn bounded<T>(&self, asked: impl Future<Output = T>) -> Result<T, String> {
        tokio::select! {
            answer = timeout(self.limit, asked) => answer.map_err(|_| format!("no answer within {:?}", self.limit)),
            why = lost(&self.health) => Err(why),
        }
    }

    /// Why the consumer has ended: with its connection, whose reason comes a moment later, or by itself.
    pub async fn ended(&self) -> String {
        let why = timeout(REASON_WITHIN, lost(&self.health)).await;
        why.unwrap_or_else(|_| "the broker ended the consumer".to_owned())
    }

    /// Begins to consume commands, at most `prefetch` of them unsettled.
    ///
    /// # Errors
    /// Whatever stops it ends the generation, and is told in words.
    pub async fn consume(&self, prefetch: u16) -> Result<Deliveries, String> {
        let steps = async {
            let channel = self.inlet.channel();
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            channel.basic_consume(self.queue.as_str().into(), "".into(), options, arguments).await
        };
        match self.bounded(steps).await {
            Ok(Ok(consumer)) => Ok(Deliveries { consumer, inlet: self.inlet.clone() }),
            Ok(Err(error)) => Err(format!("cannot consume {}: {error}", self.queue)),
            Err(why) => Err(format!("cannot consume {}: {why}", self.queue)),
        }
    }

    /// How many consumers the command queue has, and how many commands wait in it.
    pub async fn census(&self) -> Option<(u32, u32)> {
        let look = async {
            let channel = self.consuming.create_channel().await.ok()?;
            let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
            let queue = channel
                .queue_declare(self.queue.as_str().into(), options, FieldTable::default())
                .await
                .ok()?;
            let _ = channel.close(200, "done".into()).await;
            Some((queue.consumer_count(), queue.message_count()))
        };
        self.bounded(look).await.ok().flatten()
    }

    /// What queues are counted with: a channel of its own, which ends at the first queue that is missing.
    pub async fn scales(&self) -> Option<Scales> {
        let channel = self.bounded(self.consuming.create_channel()).await.ok()?.ok()?;
        Some(Scales { channel, limit: self.limit })
    }

    /// Closes both connections, within a bound: a close can hang while the broker raises an alarm.
    pub async fn close(self) {
        let both = async {
            let _ = self.consuming.close(200, "done".into()).await;
            let _ = self.publishing.close(200, "done".into()).await;
        };
        let _ = timeout(Duration::from_secs(2), both).await;
    }
}

/// Counts messages in queues.
pub struct Scales {
    channel: Channel,
    limit: Duration,
}

impl Scales {
    /// Messages that are ready in a queue; `None` where it cannot be said.
    pub async fn messages(&self, queue: &str) -> Option<u32> {
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let look = self.channel.queue_declare(queue.into(), options, FieldTable::default());
        Some(timeout(self.limit, look).await.ok()?.ok()?.message_count())
    }

    /// Ends the counting.
    pub async fn close(self) {
        let _ = timeout(self.limit, self.channel.close(200, "done".into())).await;
    }
}

/// How long after a consumer its connection may be known to have ended.
const REASON_WITHIN: Duration = Duration::from_millis(500);

/// The longest frame, in bytes: what RabbitMQ allows unless it is told otherwise. Named before the handshake, because
/// the client then reserves its room for frames (64 of them for each connection) where it would otherwise fill it with
/// zeros, and it takes up memory only as it is used.
const FRAME_BYTES_MAX: u32 = 128 * 1024;

/// The same where we publish: half the room. A command may come with headers that fill the longest frame, but what goes on
/// of them is bounded, see [`publisher`], and bodies are cut into frames. A broker that takes less is not published to.
pub(crate) const PUBLISHED_FRAME_BYTES_MAX: u32 = 64 * 1024;

/// The URI of a node and what may be shown of it: host, port and virtual host. `nth` chooses among several nodes.
fn address(settings: &Settings, nth: usize) -> Result<(AMQPUri, String), CannotConnect> {
    let uri =
        settings.uris.get(nth % settings.uris.len().max(1)).ok_or(CannotConnect::Uri(": it is empty"))?;
    let mut uri: AMQPUri = uri.expose_secret().parse().map_err(|_| CannotConnect::Uri(""))?;
    uri.query.heartbeat = Some(u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX).max(1));
    uri.query.frame_max.get_or_insert(FRAME_BYTES_MAX);
    let at = format!("{}:{}, virtual host {}", uri.authority.host, uri.authority.port, uri.vhost);
    Ok((uri, at))
}

/// One connection to the first of the configured nodes that answers. `name` is what the broker shows of us.
async fn connect_any(settings: &Settings, name: &str) -> Result<(Wire, String), CannotConnect> {
    let mut refusal = CannotConnect::Uri(": it is empty");
    for nth in 0..settings.uris.len() {
        let (uri, at) = address(settings, nth)?;
        match connect(&uri, name, &at, settings).await {
            Ok(connection) => return Ok((connection, at)),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

async fn connect(uri: &AMQPUri, name: &str, at: &str, settings: &Settings) -> Result<Wire, CannotConnect> {
    let limit = settings.connect_timeout;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let (uri, secure) = (uri.clone(), uri.scheme == AMQPScheme::AMQPS);
    // Files that are not needed need not be there.
    let tls = if secure { settings.tls.read()? } else { Default::default() };
    let socket = Socket::default();
    let line = socket.line();
    let connecting = async {
        // What the client's own `connect` does, but for the hold on the socket.
        let dial = Connection::connector(
            uri,
            default_runtime()?,
            async move |uri, runtime| {
                let addresses = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
                let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    socket.hold(plain.get_ref())?;
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => Ok(stream.into_tls(&uri.authority.host, tls.as_ref()).await?),
                }
            },
            properties,
        );
        dial.await
    };
    match timeout(limit, connecting).await {
        Ok(Ok(connection)) => Ok(Wire { connection, _line: line }),
        Ok(Err(source)) => {
            let at = at.to_owned();
            Err(match tls::advice(&source, settings.tls.identity.is_some()).filter(|_| secure) {
                Some(advice) => CannotConnect::Tls { at, advice, source },
                None => CannotConnect::Refused { at, source },
            })
        }
        Err(_) => Err(CannotConnect::TimedOut { at: at.to_owned(), step: "the handshake", limit }),
    }
}

fn watch_events(connection: &Connection, health: &watch::Sender<Health>, publishing: bool) {
    let mut events = Box::pin(connection.events_listener());
    let health = health.clone();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                Event::ConnectionBlocked(reason) if publishing => {
                    health.send_modify(|health| health.blocked = Some(reason));
                }
                Event::ConnectionUnblocked if publishing => {
                    health.send_modify(|health| health.blocked = None);
                }
                // Queues are counted on channels of their own, and one that is missing ends only such a channel. What
                // ends the consumer's channel ends its stream.
                Event::Error(error) if !publishing && is_soft(&error) => {}
                Event::Error(error) => {
                    if matches!(error.kind(), ErrorKind::ParsingError(_)) && !publishing {
                        health.send_modify(|health| health.illegible = health.lost.is_none());
                    }
                    lose(&health, &error.to_string());
                    return;
                }
                _ => {}
            }
        }
        lose(&health, "the connection ended");
    });
}

/// Whether an error ended one channel and not the connection.
fn is_soft(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(_))
}

/// Why a connection has ended, once it has.
async fn lost(health: &watch::Sender<Health>) -> String {
    let mut health = health.subscribe();
    let lost = health.wait_for(|now| now.lost.is_some()).await;
    // Whoever waits holds the sender, so there is a reason.
    lost.ok().and_then(|now| now.lost.clone()).unwrap_or_default()
}

/// The first reason is the cause; later ones are its consequences.
fn lose(health: &watch::Sender<Health>, why: &str) {
    health.send_if_modified(|health| {
        let first = health.lost.is_none();
        if first {
            health.lost = Some(why.to_owned());
        }
        first
    });
}

/// The stream of deliveries of one consumer.
pub struct Deliveries {
    consumer: lapin::Consumer,
    inlet: Arc<Inlet>,
}

impl Deliveries {
    /// The next delivery. `None` is final: the queue was deleted, the broker cancelled the consumer, or the
    /// connection is gone. After it, nothing more may be asked.
    pub async fn next(&mut self) -> Option<Delivery> {
        let delivery = self.consumer.next().await?.ok()?;
        Some(Delivery::new(delivery, &self.inlet))
    }

    /// Stops the consumer and gives back what it had already handed over but nobody has taken.
    ///
    /// # Errors
    /// Where the broker does not confirm in time. What it had handed over then stays unsettled, so the generation
    /// must end.
    pub async fn cancel(mut self, limit: Duration) -> Result<Vec<Delivery>, String> {
        let cancelled = self.inlet.channel().basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        match timeout(limit, cancelled).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("the consumer could not be stopped: {error}")),
            Err(_) => return Err(format!("the broker did not stop the consumer within {limit:?}")),
        }
        let mut left = Vec::new();
        while let Ok(Some(Ok(delivery))) = timeout(limit, self.consumer.next()).await {
            left.push(Delivery::new(delivery, &self.inlet));
        }
        Ok(left)
    }
}
