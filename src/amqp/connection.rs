//! One connection to the broker: its address, the handshake within a deadline, and why it ended.

use std::ops::Deref;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::protocol::AMQPErrorKind;
use lapin::runtime::default_runtime;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind, Event};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::amqp::confirm::{PublishFailure, PublishRejection};
use crate::amqp::session_end::SessionEnd;
use crate::amqp::socket_guard::{Socket, SocketGuard};
use crate::amqp::tls::{self, BadFile, Tls, TlsProblem};
use crate::amqp::topology::{Mode, Topology, TopologyFault};

/// How the broker is reached.
#[derive(Debug, Clone)]
pub struct AmqpSettings {
    /// `amqp://` or `amqps://` URIs with user and password, one per node, tried in turn.
    pub uris: Vec<SecretString>,
    /// The longest wait for a connection and its handshake, and for every request on the way to consuming.
    pub connect_timeout: Duration,
    /// The longest wait for a confirm.
    pub confirm_timeout: Duration,
    /// Heartbeat; a silent connection is dead after twice this time.
    pub heartbeat: Duration,
    /// The CA and our certificate, for URIs with `amqps://`.
    pub tls: Tls,
    /// The required topology.
    pub topology: Topology,
    /// Whether the topology is created, verified or trusted.
    pub mode: Mode,
}

impl AmqpSettings {
    /// The virtual host, as the first URI names it.
    ///
    /// # Errors
    /// [`CannotConnect::Uri`] if it is invalid.
    pub fn vhost(&self) -> Result<String, CannotConnect> {
        Ok(address(self, 0)?.0.vhost)
    }

    /// Host and port of each node.
    ///
    /// # Errors
    /// [`CannotConnect::Uri`] if one is invalid.
    pub fn hosts(&self) -> Result<Vec<(String, u16)>, CannotConnect> {
        let authority = |nth| Ok(address(self, nth)?.0.authority);
        let authorities = (0..self.uris.len()).map(authority);
        authorities.map(|each| each.map(|authority| (authority.host, authority.port))).collect()
    }

    /// The user, as the first URI names it.
    ///
    /// # Errors
    /// [`CannotConnect::Uri`] if it is invalid.
    pub fn user(&self) -> Result<String, CannotConnect> {
        Ok(address(self, 0)?.0.authority.userinfo.username)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum CannotConnect {
    /// The URI is invalid. It may hold a password, so neither it nor the parser's message, which may quote it, is shown.
    #[error("broker.uri is not a broker URI such as amqp://user:password@host:5672/%2f{0}")]
    Uri(&'static str),
    /// A step was not complete in time.
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
    #[error("{at}: {problem} ({source})")]
    Tls {
        /// Host, port and virtual host.
        at: String,
        /// The meaning.
        problem: TlsProblem,
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
        /// The cause.
        why: SessionEnd,
    },
    /// The topology differs from the plan.
    #[error("{at}: {source}{remedy}")]
    Topology {
        /// Host, port and virtual host.
        at: String,
        /// What differs.
        source: Box<TopologyFault>,
        /// The remedy, after a semicolon; empty if the fault names it.
        remedy: String,
    },
    /// Longer frames are needed than the broker, or the URI, allows.
    #[error(
        "{at} accepts frames of at most {bytes} bytes, and the headers of a retry message may need {least} bytes; set frame_max in \
         rabbitmq.conf, and in broker.uri if it names one, to that or more"
    )]
    Frames {
        /// Host, port and virtual host.
        at: String,
        /// The negotiated size.
        bytes: u32,
        /// The required size.
        least: u32,
    },
    /// The user lacks a right to publish, or an exchange is missing.
    #[error("{at}: {rejection}; {remedy}")]
    MayNotPublish {
        /// Host, port and virtual host.
        at: String,
        /// Which exchange, and the broker's words.
        rejection: Box<PublishRejection>,
        /// The command that grants or creates what is missing.
        remedy: String,
    },
    /// Publishing is not possible now: most likely an alarm of the broker.
    #[error(
        "{at} does not confirm a publish ({source}); check for a memory or disk alarm: rabbitmqctl status"
    )]
    NoConfirms {
        /// Host, port and virtual host.
        at: String,
        /// What happened.
        source: PublishFailure,
    },
}

/// What is known of a session while it lives.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// The broker's reason for blocking our publishing connection.
    pub blocked: Option<String>,
    /// Why the session has ended.
    pub lost: Option<SessionEnd>,
    /// The broker's reason for closing the consumer's channel.
    pub consumer_channel: Option<lapin::Error>,
}

/// A connection, and the guard that shuts its socket down.
pub(crate) struct BrokerConnection {
    connection: Connection,
    _guard: SocketGuard,
}

impl Deref for BrokerConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// The longest frame, in bytes: what RabbitMQ allows unless it is configured otherwise. Named before the handshake, because
/// the client then reserves its room for frames (64 of them for each connection) where it would otherwise fill it with
/// zeros, and it takes up memory only as it is used.
const FRAME_BYTES_MAX: u32 = 128 * 1024;

/// The URI of a node and what may be shown of it: host, port and virtual host. `nth` chooses among several nodes.
pub(crate) fn address(settings: &AmqpSettings, nth: usize) -> Result<(AMQPUri, String), CannotConnect> {
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
/// The fault, as the end of an error message. It quotes nothing of the URI.
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

/// One connection to the first of the configured nodes that responds. The broker shows the connection under `name`.
pub(crate) async fn connect_any(
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

pub(crate) async fn connect(
    uri: &AMQPUri,
    name: &str,
    at: &str,
    settings: &AmqpSettings,
) -> Result<BrokerConnection, CannotConnect> {
    let limit = settings.connect_timeout;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let (uri, secure) = (uri.clone(), uri.scheme == AMQPScheme::AMQPS);
    // The files may be missing if they are not needed.
    let tls = if secure { settings.tls.read()? } else { Default::default() };
    let socket = Socket::default();
    let guard = socket.socket_guard();
    let connecting = async {
        // As the client's own `connect`, except for the guard of the socket.
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
        Ok(Ok(connection)) => Ok(BrokerConnection { connection, _guard: guard }),
        Ok(Err(source)) => {
            let at = at.to_owned();
            Err(match tls::problem(&source, settings.tls.identity.is_some()).filter(|_| secure) {
                Some(problem) => CannotConnect::Tls { at, problem, source },
                None => CannotConnect::Refused { at, source },
            })
        }
        Err(_) => Err(CannotConnect::TimedOut { at: at.to_owned(), step: "the handshake", limit }),
    }
}

pub(crate) fn watch_events(connection: &Connection, health: &watch::Sender<Health>, publishing: bool) {
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
                // It ended one channel. A publish or a count on it returns the error. The
                // consumer only gets the end of its stream, so the one error that a delivery can cause is kept.
                Event::Error(error) if is_soft(&error) => {
                    let of_delivery = !publishing && reply_code(&error) == Some(PRECONDITION_FAILED);
                    health.send_if_modified(|health| {
                        if of_delivery {
                            health.consumer_channel = Some(error);
                        }
                        of_delivery
                    });
                }
                Event::Error(error) => {
                    mark_lost(&health, SessionEnd::Connection(error));
                    return;
                }
                _ => {}
            }
        }
        mark_lost(&health, SessionEnd::ConnectionClosed);
    });
}

impl CannotConnect {
    /// Whether the broker was reached and refuses: that lasts until its configuration is changed. It also ends a
    /// connection that opens too many channels.
    pub fn is_standing(&self) -> bool {
        match self {
            Self::Topology { .. } | Self::Lost { .. } => true,
            Self::Refused { source, .. } => reply_code(source).is_some(),
            _ => false,
        }
    }

    /// Whether a right is missing.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if reply_code(source) == Some(ACCESS_REFUSED))
    }
}

/// AMQP's reply code for a right that is missing.
pub(crate) const ACCESS_REFUSED: u16 = 403;

/// AMQP's reply code for an exchange or a queue that does not exist.
pub(crate) const NOT_FOUND: u16 = 404;

/// Whether an error ended one channel and not the connection.
pub(crate) fn is_soft(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(_))
}

/// The reply code of the broker, if it gave one.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    Some(error.get_id())
}

/// AMQP's reply code for a delivery that was held for too long.
pub(crate) const PRECONDITION_FAILED: u16 = 406;

/// Why a connection has ended, once it has.
pub(crate) async fn lost(health: &watch::Sender<Health>) -> SessionEnd {
    let mut health = health.subscribe();
    let lost = health.wait_for(|now| now.lost.is_some()).await;
    // The caller holds the sender, so there is a reason.
    lost.ok().and_then(|now| now.lost.clone()).unwrap_or(SessionEnd::ConnectionClosed)
}

/// Why the broker blocks the connection, once it has for `grace`. A lost connection is not blocked.
pub(crate) async fn blocked_for(mut health: watch::Receiver<Health>, grace: Duration) -> String {
    loop {
        let blocked = health.wait_for(|now| now.blocked.is_some()).await;
        let reason = blocked.ok().and_then(|now| now.blocked.clone());
        let Some(reason) = reason else { return std::future::pending().await };
        if timeout(grace, health.wait_for(|now| now.blocked.is_none())).await.is_err() {
            return reason;
        }
    }
}

/// How long a subcommand waits for a blocked broker before it reports that.
pub(crate) const BLOCKED_REPORTED_AFTER: Duration = Duration::from_millis(700);

/// The first reason is the cause; later ones are its consequences.
pub(crate) fn mark_lost(health: &watch::Sender<Health>, why: SessionEnd) {
    health.send_if_modified(|health| {
        let first = health.lost.is_none();
        if first {
            health.lost = Some(why);
        }
        first
    });
}

/// The same for the connection that publishes: half as much. The headers of a command may fill the longest frame, but those
/// that are passed on are bounded, see [`publisher`], and bodies are split into frames. A broker that accepts less is an
/// error.
pub(crate) const PUBLISHED_FRAME_BYTES_MAX: u32 = 64 * 1024;

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
