//! The broker's edge: one *session* is one pair of connections and everything on them.
//!
//! The client's own recovery stays off. A channel that the broker closed leaves its consumer waiting for ever, and
//! old delivery tags acknowledge other messages after a reconnect; so whatever goes wrong ends the session, and
//! [`crate::app`] builds a new one, from the handshake to the consumer. One connection consumes and one publishes,
//! because an alarm of the broker stops *every* write on a connection that publishes, acknowledgements included.

pub mod client;
pub mod dead_letters;
pub mod delivery;
mod line;
pub mod management;
pub mod parked;
pub mod probe;
pub mod publisher;
pub mod tls;
pub mod topology;

use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::protocol::AMQPErrorKind;
use lapin::runtime::default_runtime;
use lapin::types::FieldTable;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::broker::delivery::{ConsumerChannel, Delivery};
use crate::broker::line::{Socket, SocketGuard};
use crate::broker::publisher::{PublishFailure, Publisher, Rejection};
use crate::broker::tls::{BadFile, Tls};
use crate::broker::topology::{Mode, Names, Topology, TopologyFault, establish};

/// How the broker is reached.
#[derive(Debug, Clone)]
pub struct AmqpSettings {
    /// `amqp://` or `amqps://` URIs with user and password, one per node, tried in turn.
    pub uris: Vec<SecretString>,
    /// The longest wait for a connection and its handshake, and for every operation on the way to consuming.
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

impl AmqpSettings {
    /// The virtual host, as the first URI names it.
    ///
    /// # Errors
    /// [`CannotConnect::Uri`] where it is none.
    pub fn vhost(&self) -> Result<String, CannotConnect> {
        Ok(address(self, 0)?.0.vhost)
    }

    /// Host and port of each node.
    ///
    /// # Errors
    /// [`CannotConnect::Uri`] where one is none.
    pub fn hosts(&self) -> Result<Vec<(String, u16)>, CannotConnect> {
        let authority = |nth| Ok(address(self, nth)?.0.authority);
        let authorities = (0..self.uris.len()).map(authority);
        authorities.map(|each| each.map(|authority| (authority.host, authority.port))).collect()
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
    /// The connection ended while it was prepared.
    #[error("{at}: the connection ended: {why}")]
    Lost {
        /// Host, port and virtual host.
        at: String,
        /// The broker's words, or the client's.
        why: String,
    },
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
    /// The user lacks a right to publish, or an exchange is missing.
    #[error("{at}: {rejection}; {remedy}")]
    MayNotPublish {
        /// Host, port and virtual host.
        at: String,
        /// Which exchange, and the broker's words.
        rejection: Box<Rejection>,
        /// The command that helps.
        remedy: String,
    },
    /// Publishing is not possible now: most likely an alarm of the broker.
    #[error(
        "{at} does not confirm a publish ({source}); look for a memory or disk alarm: rabbitmqctl status"
    )]
    NoConfirms {
        /// Host, port and virtual host.
        at: String,
        /// What happened.
        source: PublishFailure,
    },
}

/// What is known of a session while it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The broker's reason for blocking our publishing connection.
    pub blocked: Option<String>,
    /// Why the session has ended.
    pub lost: Option<String>,
    /// Why the broker closed the consumer's channel, in its own words.
    pub consumer_channel: Option<String>,
}

/// A connection, and the line that its socket ends with.
struct BrokerConnection {
    connection: Connection,
    _line: SocketGuard,
}

impl Deref for BrokerConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// A pair of connections with everything on them.
///
/// It opens every channel before it consumes: a user's limit on channels ends a whole connection when it is exceeded, and
/// nothing must be in hand then.
pub struct Session {
    consuming: BrokerConnection,
    publishing: Arc<BrokerConnection>,
    inlet: Arc<ConsumerChannel>,
    /// Where queues are counted; the broker closes it over one that is missing.
    auxiliary: tokio::sync::Mutex<Auxiliary>,
    publisher: Publisher,
    /// How many consumers of the command queue are our own.
    consumers: AtomicU32,
    health: watch::Sender<Health>,
    at: String,
    settings: AmqpSettings,
}

/// The channel that may fail without harm.
struct Auxiliary {
    channel: Channel,
    opened: Instant,
    /// What makes us count among the instances, on a channel of its own: a queue that is missing must not end it.
    instance: Option<(Channel, lapin::Consumer)>,
}

impl Session {
    /// Connects and establishes the topology; [`Session::prove`] comes next. `nth` chooses among several nodes.
    ///
    /// # Errors
    /// [`CannotConnect`] says which step failed and where.
    pub async fn establish(settings: &AmqpSettings, nth: usize) -> Result<Self, CannotConnect> {
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
        let publishing = Arc::new(publishing);
        let health = watch::Sender::new(Health::default());
        watch_events(&consuming, &health, false);
        watch_events(&publishing, &health, true);

        let refused = |source| CannotConnect::Refused { at: at.clone(), source };
        let steps = async {
            establish(&publishing, &settings.topology, settings.mode)
                .await
                .map_err(|source| CannotConnect::Topology { at: at.clone(), source })?;
            let inlet = ConsumerChannel::new(consuming.create_channel().await.map_err(refused)?);
            let channel = consuming.create_channel().await.map_err(refused)?;
            let auxiliary = Auxiliary { channel, opened: Instant::now(), instance: None };
            let (names, confirm_timeout) = (&settings.topology.names, settings.confirm_timeout);
            let publisher = Publisher::open(&publishing, health.subscribe(), confirm_timeout, names).await;
            Ok::<_, CannotConnect>((inlet, auxiliary, publisher.map_err(refused)?))
        };
        let built = tokio::select! {
            // The client does not always answer for a connection that ends while it is asked.
            biased;
            built = timeout(limit, steps) => built,
            why = lost(&health) => return Err(CannotConnect::Lost { at, why }),
        };
        let (inlet, auxiliary, publisher) = built.map_err(|_| CannotConnect::TimedOut {
            at: at.clone(),
            step: "looking at the topology",
            limit,
        })??;
        let (auxiliary, settings) = (tokio::sync::Mutex::new(auxiliary), settings.clone());
        let consumers = AtomicU32::new(0);
        Ok(Self { consuming, publishing, inlet, auxiliary, publisher, consumers, health, at, settings })
    }

    /// Tries with probes that publish nothing whether events, delayed retries and parked commands may be published. A right
    /// that was given back is felt by the next call.
    ///
    /// # Errors
    /// [`CannotConnect::MayNotPublish`] for the first that is rejected; [`CannotConnect::Lost`].
    pub async fn probe_publish_rights(&self) -> Result<(), CannotConnect> {
        for right in probe::needed_to_publish(&self.settings.topology) {
            let asked = self.bounded(probe::rejection(&self.publishing, &right)).await;
            let lost = |why| CannotConnect::Lost { at: self.at.clone(), why };
            match asked.map_err(lost)? {
                Ok(None) => {}
                Ok(Some(rejection)) => {
                    let remedy = remedy(&rejection, &self.settings);
                    let (at, rejection) = (self.at.clone(), Box::new(rejection));
                    return Err(CannotConnect::MayNotPublish { at, rejection, remedy });
                }
                Err(error) => return Err(lost(error.to_string())),
            }
        }
        Ok(())
    }

    /// The command that helps against a rejection.
    pub fn remedy(&self, rejection: &Rejection) -> String {
        remedy(rejection, &self.settings)
    }

    /// Proves that confirms come. While the broker raises an alarm they do not, and [`Session::is_blocked`] tells: then
    /// this is to be called again, on the same connections. The broker looks at one that it has blocked only when the
    /// alarm is over, so each one that was given up meanwhile would stay with it.
    ///
    /// # Errors
    /// [`CannotConnect::NoConfirms`]
    pub async fn confirm_publishing(&self) -> Result<(), CannotConnect> {
        let (limit, blocked) = (self.settings.connect_timeout, self.is_blocked());
        let mut health = self.health();
        let proving = async {
            if blocked {
                // What was not confirmed in time has used up its channels.
                let _ = health.wait_for(|now| now.blocked.is_none() || now.lost.is_some()).await;
                let renewed = self.publisher.renew(&self.publishing).await;
                renewed.map_err(|error| PublishFailure::Connection(error.to_string()))?;
            }
            self.publisher.confirm_probe().await
        };
        let proved = timeout(limit, proving).await.unwrap_or(Err(PublishFailure::TimedOut(limit)));
        proved.map(drop).map_err(|source| CannotConnect::NoConfirms { at: self.at.clone(), source })
    }

    /// Whether the broker lets us publish nothing now, and the connections live.
    pub fn is_blocked(&self) -> bool {
        let health = self.health.borrow();
        health.blocked.is_some() && health.lost.is_none()
    }

    /// Host, port and virtual host.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// The publisher of this session.
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

    /// Follows the health of this session.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Ends the session for a reason that only its user could see: a failed ack, a missing confirm.
    pub fn abort(&self, why: &str) {
        mark_lost(&self.health, why);
    }

    /// Waits within the bound, and no longer than the connections live: the client does not always answer what was asked of
    /// one that has just ended.
    async fn bounded<T>(&self, asked: impl Future<Output = T>) -> Result<T, String> {
        tokio::select! {
            answer = timeout(self.settings.connect_timeout, asked) => {
                answer.map_err(|_| format!("no answer within {:?}", self.settings.connect_timeout))
            }
            why = lost(&self.health) => Err(why),
        }
    }

    /// Why the consumer has ended, in the broker's own words: with its connection or its channel, whose reason may come a
    /// moment later, or by itself.
    pub async fn ended(&self) -> String {
        let mut health = self.health();
        let known = health.wait_for(|now| now.lost.is_some() || now.consumer_channel.is_some());
        let known = timeout(REASON_WITHIN, known).await;
        let known =
            known.ok().and_then(Result::ok).map(|now| (now.lost.clone(), now.consumer_channel.clone()));
        match known {
            Some((Some(lost), _)) => lost,
            Some((None, Some(words))) => format!(
                "the broker closed the consumer's channel: {words}; where a delivery timed out, a command was held \
                 for longer than the broker's consumer_timeout: look for results or retries that it does not accept"
            ),
            _ => format!(
                "the broker canceled the consumer: queue {} was deleted, or a command was held for longer than \
                 the broker's consumer_timeout (RabbitMQ 4.3 and later)",
                self.settings.topology.names.commands
            ),
        }
    }

    /// Begins to consume commands, at most `prefetch` of them unsettled.
    ///
    /// # Errors
    /// Whatever stops it ends the session, and is told in words.
    pub async fn consume(&self, prefetch: u16) -> Result<Deliveries, String> {
        self.join_instances().await;
        let mut deliveries = Deliveries::new(&self.inlet, &self.settings.topology.names.commands);
        self.set_prefetch(&mut deliveries, prefetch).await?;
        Ok(deliveries)
    }

    /// Lets `prefetch` commands be unsettled at once, where that is more than before.
    ///
    /// # Errors
    /// As for [`Session::consume`].
    pub async fn set_prefetch(&self, deliveries: &mut Deliveries, prefetch: u16) -> Result<(), String> {
        let queue = self.settings.topology.names.commands.as_str();
        let widened = self.bounded(deliveries.set_prefetch(prefetch)).await;
        let widened = widened.and_then(|widened| widened.map_err(|error| error.to_string()));
        let own = u32::try_from(deliveries.consumers.len()).unwrap_or(u32::MAX);
        self.consumers.store(own, Ordering::Relaxed);
        widened.map_err(|why| format!("cannot consume {queue}: {why}"))
    }

    /// Counts among the instances from now on. Where the user may not, commands are consumed all the same: the broker
    /// closes nothing but the auxiliary channel.
    async fn join_instances(&self) {
        let mut auxiliary = self.auxiliary.lock().await;
        if auxiliary.instance.is_some() {
            return;
        }
        let queue = self.settings.topology.names.instances.as_str();
        let joining = async {
            let channel = self.consuming.create_channel().await?;
            let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
            let joined =
                channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
            Ok::<_, lapin::Error>((channel, joined))
        };
        auxiliary.instance = self.bounded(joining).await.ok().and_then(Result::ok);
        if auxiliary.instance.is_none() {
            warn!(
                queue,
                remedy = probe::granting(&self.settings, self.settings.mode),
                "instances cannot be counted; consumers of the command queue are counted instead"
            );
        }
    }

    /// How many instances there are, and how many commands wait; `None` where it cannot be said.
    pub async fn consumer_count(&self) -> Option<(u32, u32)> {
        let Names { commands, instances, .. } = &self.settings.topology.names;
        let joined = self.auxiliary.lock().await.instance.is_some();
        let (consumers, messages) = self.count(commands).await?;
        match joined {
            true => Some((self.count(instances).await?.0, messages)),
            // Each instance has as many as its prefetch was widened, all of them about alike.
            false => Some((consumers.div_ceil(self.consumers.load(Ordering::Relaxed).max(1)), messages)),
        }
    }

    /// Messages that are ready in a queue; `None` where it cannot be said.
    pub async fn messages(&self, queue: &str) -> Option<u32> {
        Some(self.count(queue).await?.1)
    }

    /// Consumers of a queue and messages in it. The broker closes the channel over a queue that is missing, or that we may
    /// not see; another one is opened after a while, because a user's limit still counts the old one for a moment.
    async fn count(&self, queue: &str) -> Option<(u32, u32)> {
        let mut auxiliary = self.auxiliary.lock().await;
        if !auxiliary.channel.status().connected() {
            if auxiliary.opened.elapsed() < REOPEN_AFTER {
                return None;
            }
            auxiliary.opened = Instant::now();
            auxiliary.channel = self.bounded(self.consuming.create_channel()).await.ok()?.ok()?;
        }
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let look = auxiliary.channel.queue_declare(queue.into(), options, FieldTable::default());
        let queue = self.bounded(look).await.ok()?.ok()?;
        Some((queue.consumer_count(), queue.message_count()))
    }

    /// Closes both connections, within a bound: a close can hang while the broker raises an alarm.
    pub async fn close(&self) {
        let both = async {
            let _ = self.consuming.close(200, "done".into()).await;
            let _ = self.publishing.close(200, "done".into()).await;
        };
        let _ = timeout(Duration::from_secs(2), both).await;
    }
}

/// What helps against a rejection: a right is granted, an exchange is made, a limit is raised.
fn remedy(rejection: &Rejection, settings: &AmqpSettings) -> String {
    match rejection.code {
        403 => {
            let vhost = settings.vhost().unwrap_or_default();
            format!(
                "look at rabbitmqctl list_topic_permissions -p '{vhost}'; grant what is missing: {}",
                probe::granting(settings, settings.mode)
            )
        }
        404 => "make it: redeemer topology apply".to_owned(),
        406 => "look at max_message_size in rabbitmq.conf".to_owned(),
        _ => "look at the broker's log".to_owned(),
    }
}

/// How long after it was opened a channel that the broker closed is replaced.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

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
fn address(settings: &AmqpSettings, nth: usize) -> Result<(AMQPUri, String), CannotConnect> {
    let uri =
        settings.uris.get(nth % settings.uris.len().max(1)).ok_or(CannotConnect::Uri(": it is empty"))?;
    check_uri(uri.expose_secret()).map_err(CannotConnect::Uri)?;
    let mut uri: AMQPUri = uri.expose_secret().parse().map_err(|_| CannotConnect::Uri(""))?;
    uri.query.heartbeat = Some(u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX).max(1));
    uri.query.frame_max.get_or_insert(FRAME_BYTES_MAX);
    let at = format!("{}:{}, virtual host {}", uri.authority.host, uri.authority.port, uri.vhost);
    Ok((uri, at))
}

/// Refuses a URI in which a character of the password would be read as the end of it: what follows would be shown as a host
/// or a virtual host.
///
/// # Errors
/// What is wrong, to stand behind the form of a URI. It quotes nothing of it.
pub fn check_uri(uri: &str) -> Result<(), &'static str> {
    check_user_information(uri)?;
    uri.parse::<AMQPUri>().map(drop).map_err(|_| "")
}

/// The same of user and password alone.
fn check_user_information(uri: &str) -> Result<(), &'static str> {
    const ENCODE_REMEDY: &str =
        ": in user and password / ? # and @ must be percent-encoded, as %2F %3F %23 %40";
    let (_, rest) = uri.split_once("://").ok_or("")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.matches('@').count() {
        1 if !path.contains('@') => Ok(()),
        0 if !path.contains('@') => {
            Err(": it names no user and password, or holds a / ? # or @ that is not \
                                        percent-encoded, as %2F %3F %23 %40")
        }
        _ => Err(ENCODE_REMEDY),
    }
}

/// One connection to the first of the configured nodes that answers. `name` is what the broker shows of us.
async fn connect_any(
    settings: &AmqpSettings,
    name: &str,
) -> Result<(BrokerConnection, String), CannotConnect> {
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

async fn connect(
    uri: &AMQPUri,
    name: &str,
    at: &str,
    settings: &AmqpSettings,
) -> Result<BrokerConnection, CannotConnect> {
    let limit = settings.connect_timeout;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let (uri, secure) = (uri.clone(), uri.scheme == AMQPScheme::AMQPS);
    // Files that are not needed need not be there.
    let tls = if secure { settings.tls.read()? } else { Default::default() };
    let socket = Socket::default();
    let line = socket.socket_guard();
    let connecting = async {
        // What the client's own `connect` does, but for the hold on the socket.
        let dial = Connection::connector(
            uri,
            default_runtime()?,
            async move |uri, runtime| {
                let addresses = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
                let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    socket.guard(plain.get_ref())?;
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
        Ok(Ok(connection)) => Ok(BrokerConnection { connection, _line: line }),
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
                // It ended one channel. Who publishes on that has the error as its answer; so has who counts queues. The
                // consumer has none but the end of its stream: the one error that a delivery can bring about is kept.
                Event::Error(error) if is_soft(&error) => {
                    let of_delivery = !publishing && reply_code(&error) == Some(PRECONDITION_FAILED);
                    health.send_if_modified(|health| {
                        if of_delivery {
                            health.consumer_channel = Some(error.to_string());
                        }
                        of_delivery
                    });
                }
                Event::Error(error) => {
                    mark_lost(&health, &error.to_string());
                    return;
                }
                _ => {}
            }
        }
        mark_lost(&health, "the connection ended");
    });
}

impl CannotConnect {
    /// Whether a right is missing.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if reply_code(source) == Some(ACCESS_REFUSED))
    }
}

/// AMQP's reply code for a right that is missing.
const ACCESS_REFUSED: u16 = 403;

/// Whether an error ended one channel and not the connection.
fn is_soft(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(_))
}

/// The reply code of the broker, where it gave one.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    Some(error.get_id())
}

/// AMQP's reply code for a delivery that was held for too long.
const PRECONDITION_FAILED: u16 = 406;

/// Why a connection has ended, once it has.
async fn lost(health: &watch::Sender<Health>) -> String {
    let mut health = health.subscribe();
    let lost = health.wait_for(|now| now.lost.is_some()).await;
    // Whoever waits holds the sender, so there is a reason.
    lost.ok().and_then(|now| now.lost.clone()).unwrap_or_default()
}

/// Why the broker blocks the connection, once it has for a while. A connection that was lost blocks nothing.
async fn blocked_for(mut health: watch::Receiver<Health>, grace: Duration) -> String {
    loop {
        let blocked = health.wait_for(|now| now.blocked.is_some()).await;
        let reason = blocked.ok().and_then(|now| now.blocked.clone());
        let Some(reason) = reason else { return std::future::pending().await };
        if timeout(grace, health.wait_for(|now| now.blocked.is_none())).await.is_err() {
            return reason;
        }
    }
}

/// How long a person waits in front of a broker that is blocked until that is told.
const BLOCKED_IS_TOLD_AFTER: Duration = Duration::from_millis(700);

/// The first reason is the cause; later ones are its consequences.
fn mark_lost(health: &watch::Sender<Health>, why: &str) {
    health.send_if_modified(|health| {
        let first = health.lost.is_none();
        if first {
            health.lost = Some(why.to_owned());
        }
        first
    });
}

/// The deliveries of a command queue. What may be unsettled grows by further consumers: a broker does not change the
/// prefetch of one, and one that is canceled while messages are on their way to it has them counted as delivered in vain.
pub struct Deliveries {
    consumers: Vec<lapin::Consumer>,
    inlet: Arc<ConsumerChannel>,
    queue: String,
    prefetch: u16,
}

impl Deliveries {
    fn new(inlet: &Arc<ConsumerChannel>, queue: &str) -> Self {
        Self { consumers: Vec::new(), inlet: inlet.clone(), queue: queue.to_owned(), prefetch: 0 }
    }

    /// How many may be unsettled at once.
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Lets so many be unsettled at once, where that is more than before.
    async fn set_prefetch(&mut self, prefetch: u16) -> lapin::Result<()> {
        let more = prefetch.saturating_sub(self.prefetch);
        if more == 0 {
            return Ok(());
        }
        let channel = self.inlet.channel();
        channel.basic_qos(more, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer =
            channel.basic_consume(self.queue.as_str().into(), "".into(), options, arguments).await?;
        self.consumers.push(consumer);
        self.prefetch = prefetch;
        Ok(())
    }

    /// The next delivery. `None` is final: the queue was deleted, the broker canceled a consumer, or the connection is
    /// gone. After it, nothing more may be asked.
    pub async fn next(&mut self) -> Option<Delivery> {
        let delivery = poll_fn(|context| {
            for consumer in &mut self.consumers {
                if let Poll::Ready(next) = consumer.poll_next_unpin(context) {
                    return Poll::Ready(next);
                }
            }
            Poll::Pending
        });
        Some(Delivery::new(delivery.await?.ok()?, &self.inlet))
    }

    /// Stops the consumers and gives back what they had already handed over but nobody has taken.
    ///
    /// # Errors
    /// Where the broker does not confirm in time. What it had handed over then stays unsettled, so the session
    /// must end.
    pub async fn cancel(mut self, limit: Duration) -> Result<Vec<Delivery>, String> {
        let canceling = async {
            for consumer in &self.consumers {
                self.inlet.channel().basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            }
            Ok::<_, lapin::Error>(())
        };
        match timeout(limit, canceling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("the consumer could not be stopped: {error}")),
            Err(_) => return Err(format!("the broker did not stop the consumer within {limit:?}")),
        }
        let mut left = Vec::new();
        for consumer in &mut self.consumers {
            while let Ok(Some(Ok(delivery))) = timeout(limit, consumer.next()).await {
                left.push(Delivery::new(delivery, &self.inlet));
            }
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_that_would_show_its_password_is_refused() {
        for good in [
            "amqp://guest:guest@127.0.0.1:5672/%2f",
            "amqps://user:p%40ss%2Fw%23@host/vhost?heartbeat=5",
            "amqp://user:secret@[::1]:5672/%2f",
        ] {
            assert_eq!(check_user_information(good), Ok(()), "{good}");
        }
        for bad in [
            "amqp://user:12345/Topsecret9@host:5672/%2f",
            "amqp://user:pa#ss@host:5672/%2f",
            "amqp://user:pa?ss@host:5672/%2f",
            "amqp://user:pa@ss@host:5672/%2f",
            "amqp://user:secret@host:5672/a@b",
            "amqp://host:5672/%2f",
            "amqp://",
            "user:secret@host",
            "",
        ] {
            let fault = check_user_information(bad).unwrap_err();
            for secret in ["Topsecret9", "12345", "pa#", "ss@", "secret"] {
                assert!(!fault.contains(secret), "{bad}");
            }
        }
    }
}
