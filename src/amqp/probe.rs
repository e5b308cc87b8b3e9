//! The broker's version and the permissions of its user: for `redeemer check`, and for a session before it consumes. Nothing
//! here changes anything.
//!
//! The broker checks a permission before it checks the rest of a request. So each right is probed with a request that it
//! must refuse for another reason: a publish with an invalid expiration, a consumer with an invalid priority. The
//! broker does not report its message size limit, so that is probed, too.

use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPErrorKind;
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPScheme;
use lapin::{Channel, Connection, ErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::amqp::confirm::PublishRejection;
use crate::amqp::connection::{AmqpSettings, BrokerConnection, CannotConnect, address, connect, connect_any};
use crate::amqp::topology::{Mode, Names, Topology, delay_name, lock_name};

/// The routing key of probes, in the form of that of an event of a redeemed coupon.
pub(crate) const EVENT_PROBE_KEY: &str = "redemption.redeemed.0";

/// The user of a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The service.
    Service,
    /// Only `redeemer parked`, which may run as another user.
    Console,
}

/// A right that the service or the operator console needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    /// To publish to an exchange; the one without a name is `amq.default` in permissions.
    Write {
        /// The exchange.
        exchange: String,
        /// The routing key, for topic permissions.
        routing_key: String,
    },
    /// To consume from this queue.
    Read(String),
    /// To declare this queue: the lock of operators.
    Configure(String),
}

/// Whether a right is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RightStatus {
    Granted,
    /// With the words of the broker.
    Missing(String),
    /// Unknown, with the words of the broker.
    Undetermined(String),
}

impl Right {
    fn write(exchange: &str, routing_key: &str) -> Self {
        Self::Write { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() }
    }
}

/// What a session must be able to publish before it takes a command: an event, a delayed retry, a parked command, and a
/// command that is handed back.
pub(super) fn needed_to_publish(topology: &Topology) -> Vec<Right> {
    let names = &topology.names;
    let retry = topology.delays.first().map(|wait| Right::write(&names.retry, &delay_name(*wait)));
    let results = Right::write(&names.results, EVENT_PROBE_KEY);
    let parked = Right::write(&names.parked, "");
    [results].into_iter().chain(retry).chain([parked, Right::write("", &names.commands)]).collect()
}

/// Probes one right on a channel of its own. `None` if it is held.
///
/// # Errors
/// The client's, if the broker did not respond.
pub(super) async fn rejection(
    connection: &Connection,
    right: &Right,
) -> lapin::Result<Option<PublishRejection>> {
    rejection_on(&connection.create_channel().await?, right).await
}

/// Probes one right on a channel, which it ends.
pub(super) async fn rejection_on(
    channel: &Channel,
    right: &Right,
) -> lapin::Result<Option<PublishRejection>> {
    let Err(error) = probe_right_on(channel, right).await else { return Ok(None) };
    let (place, routing_key) = match right {
        Right::Write { exchange, routing_key } => (exchange.clone(), routing_key.clone()),
        Right::Read(queue) | Right::Configure(queue) => (queue.clone(), String::new()),
    };
    match error.kind() {
        // The refusal that the probe provokes.
        ErrorKind::ProtocolError(fault) if fault.get_id() == 406 => Ok(None),
        ErrorKind::ProtocolError(fault) if matches!(fault.kind(), AMQPErrorKind::Soft(_)) => {
            Ok(Some(PublishRejection::new(place, routing_key, &error)))
        }
        _ => Err(error),
    }
}

/// Probes every permission that the service or an operator needs. What the service may configure is shown by the check of
/// the topology.
///
/// # Errors
/// [`CannotConnect`]
pub async fn rights(settings: &AmqpSettings) -> Result<Vec<(Right, Need, RightStatus)>, CannotConnect> {
    let (connection, at) = connect_any(settings, "redeemer check").await?;
    let (names, limit) = (&settings.topology.names, settings.connect_timeout);
    let mut rights = Vec::new();
    for (need, right) in [
        (Need::Service, Right::Read(names.commands.clone())),
        (Need::Console, Right::Read(names.parked.clone())),
        (Need::Console, Right::write(&names.commands, "redeemer.check")),
        (Need::Console, Right::Configure(lock_name(&names.parked))),
        (Need::Service, Right::Read(names.dead.clone())),
        (Need::Service, Right::Read(names.instances.clone())),
        (Need::Service, Right::write(&names.retry, "redeemer.check")),
        (Need::Service, Right::write(&names.results, EVENT_PROBE_KEY)),
        (Need::Service, Right::write(&names.parked, "")),
        // For the confirm probe of every connection.
        (Need::Service, Right::write("", "redeemer.check")),
    ] {
        let tried = timeout(limit, probe_right(&connection, &right)).await;
        let step = "the permission probes";
        let tried = tried.map_err(|_| CannotConnect::TimedOut { at: at.clone(), step, limit })?;
        let held = match tried {
            Ok(()) => RightStatus::Granted,
            Err(error) => match error.kind() {
                ErrorKind::ProtocolError(fault) if fault.get_id() == 403 => {
                    RightStatus::Missing(fault.get_message().to_string())
                }
                // The provoked refusal; or the object does not exist, or another connection holds it, which the broker
                // checks after the right.
                ErrorKind::ProtocolError(fault) if matches!(fault.get_id(), 404..=406) => {
                    RightStatus::Granted
                }
                _ => RightStatus::Undetermined(error.to_string()),
            },
        };
        rights.push((right, need, held));
    }
    let _ = timeout(limit, connection.close(200, "done".into())).await;
    Ok(rights)
}

async fn probe_right(connection: &Connection, right: &Right) -> lapin::Result<()> {
    probe_right_on(&connection.create_channel().await?, right).await
}

async fn probe_right_on(channel: &Channel, right: &Right) -> lapin::Result<()> {
    match right {
        Right::Write { exchange, routing_key } => {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let properties = AMQPProperties::default().with_expiration("no number".into());
            let options = BasicPublishOptions::default();
            let key = routing_key.as_str().into();
            channel.basic_publish(exchange.as_str().into(), key, options, b"", properties).await?.await?;
        }
        Right::Read(queue) => {
            // If a broker accepts it all the same, it delivers one message, which is requeued at once.
            channel.basic_qos(1, BasicQosOptions::default()).await?;
            let mut arguments = FieldTable::default();
            arguments.insert("x-priority".into(), AMQPValue::LongString("no number".into()));
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await?;
        }
        Right::Configure(queue) => {
            // If a broker accepts it all the same, the queue ends with this connection.
            let mut arguments = FieldTable::default();
            arguments.insert("x-expires".into(), AMQPValue::LongString("no number".into()));
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        }
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

/// The command that grants the service's user the rights that it needs, and no others.
pub fn set_permissions_command(settings: &AmqpSettings, mode: Mode) -> String {
    let (user, vhost) = (settings.user().unwrap_or_default(), settings.vhost().unwrap_or_default());
    let [configure, write, read] = least_rights(&settings.topology.names, mode);
    format!("rabbitmqctl set_permissions -p '{vhost}' '{user}' '{configure}' '{write}' '{read}'")
}

/// The command that grants an operator's user the rights of the service's and those of an operator. If both are one user,
/// it grants that user what it lacks.
pub fn set_operator_permissions_command(settings: &AmqpSettings, mode: Mode) -> String {
    let (user, vhost) = (settings.user().unwrap_or_default(), settings.vhost().unwrap_or_default());
    let [configure, write, read] = operator_rights(&settings.topology.names, mode);
    format!("rabbitmqctl set_permissions -p '{vhost}' '{user}' '{configure}' '{write}' '{read}'")
}

/// The patterns of [`least_rights`], with those of an operator.
fn operator_rights(names: &Names, mode: Mode) -> [String; 3] {
    let least = least_rights(names, mode);
    if mode == Mode::Create {
        return least;
    }
    let [_, write, read] = least;
    let [lock, commands, parked] =
        [&lock_name(&names.parked), &names.commands, &names.parked].map(|it| literal(it));
    let with = |pattern: &str, name: &str| format!("{}|{name})$", pattern.trim_end_matches(")$"));
    [format!("^({lock})$"), with(&write, &commands), with(&read, &parked)]
}

/// A name as a pattern that matches it alone.
fn literal(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    name.chars().flat_map(|c| (!plain(c)).then_some('\\').into_iter().chain([c])).collect()
}

/// The patterns for configure, write and read: those of docs/operations.md, "Broker permissions", for these names.
fn least_rights(names: &Names, mode: Mode) -> [String; 3] {
    let Names { commands, retry, results, unrouted, parked, dead, instances } = names;
    let [commands, retry, results, unrouted, parked, dead, instances] =
        [commands, retry, results, unrouted, parked, dead, instances].map(|name| literal(name));
    // A passive declaration needs no right, so a service that creates nothing needs no more to verify.
    if mode != Mode::Create {
        let write = format!("^({results}|{retry}|{parked}|amq\\.default)$");
        return ["^$".to_owned(), write, format!("^({commands}|{dead}|{instances})$")];
    }
    // To declare a queue that dead-letters needs the right to read it and to write to its dead-letter exchange.
    let all = format!(
        "{commands}|{retry}(\\..*)?|{results}|{unrouted}|{dead}|{instances}|{parked}(\\.(audit|lock))?"
    );
    [format!("^({all})$"), format!("^({all}|amq\\.default)$"), format!("^({all})$")]
}

/// What a broker must accept: a command of 64 KiB, and an event with the coupon and the evidence of 16 attempts.
pub const MESSAGE_BYTES_NEEDED: usize = 128 * 1024;
/// The most that a broker should take: both sides hold a whole message before its length is checked.
pub const MESSAGE_BYTES_ACCEPTABLE: usize = 1024 * 1024;

/// Which messages the broker accepts: those of [`MESSAGE_BYTES_NEEDED`], and whether those of more than
/// [`MESSAGE_BYTES_ACCEPTABLE`].
///
/// # Errors
/// [`SizesUnknown`]
pub async fn message_bound(settings: &AmqpSettings) -> Result<Accepted, SizesUnknown> {
    let (connection, at) = connect_any(settings, CONNECTION_NAME).await?;
    largest_on(connection, at, settings, &[MESSAGE_BYTES_ACCEPTABLE]).await
}

/// The sizes that the node of session `nth` accepts: up to the first of these, in bytes, that it refuses one byte more
/// than.
///
/// # Errors
/// [`SizesUnknown`]
pub async fn accepted_sizes(
    settings: &AmqpSettings,
    nth: usize,
    sizes: &[usize],
) -> Result<Accepted, SizesUnknown> {
    let (uri, at) = address(settings, nth)?;
    let connection = connect(&uri, CONNECTION_NAME, &at, settings).await?;
    largest_on(connection, at, settings, sizes).await
}

const CONNECTION_NAME: &str = "redeemer message size";

/// Which messages a broker accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Not even [`MESSAGE_BYTES_NEEDED`]: the broker's words.
    TooLittle(String),
    /// No more than this many bytes.
    UpTo(usize),
    /// More than the largest size that was tried.
    More,
}

/// Why the sizes that a broker accepts are unknown.
#[derive(Debug, thiserror::Error)]
pub enum SizesUnknown {
    /// There is no connection.
    #[error(transparent)]
    CannotConnect(#[from] CannotConnect),
    /// The broker does not accept the probe, for another reason than its size.
    #[error("{0}")]
    ProbeRejected(lapin::Error),
}

async fn largest_on(
    connection: BrokerConnection,
    at: String,
    settings: &AmqpSettings,
    sizes: &[usize],
) -> Result<Accepted, SizesUnknown> {
    let limit = settings.connect_timeout;
    let largest = async {
        match publish_zeros(&connection, MESSAGE_BYTES_NEEDED).await {
            Err(error) if refused_for_size(&error) => return Ok(Accepted::TooLittle(error.to_string())),
            Err(error) => return Err(SizesUnknown::ProbeRejected(error)),
            Ok(()) => {}
        }
        for size in sizes {
            match publish_zeros(&connection, size + 1).await {
                Ok(()) => {}
                Err(error) if refused_for_size(&error) => return Ok(Accepted::UpTo(*size)),
                Err(error) => return Err(SizesUnknown::ProbeRejected(error)),
            }
        }
        Ok(Accepted::More)
    };
    let step = "the probe of message sizes";
    let accepted = timeout(limit, largest).await;
    let _ = timeout(limit, connection.close(200, "done".into())).await;
    accepted.map_err(|_| CannotConnect::TimedOut { at, step, limit })?
}

/// The broker checks the size before it routes a message. This one is not persistent and not routed.
async fn publish_zeros(connection: &Connection, bytes: usize) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (options, properties) = (BasicPublishOptions::default(), AMQPProperties::default());
    let body = vec![0; bytes];
    channel.basic_publish("".into(), "redemption.nobody".into(), options, &body, properties).await?.await?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

fn refused_for_size(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(fault) if fault.get_id() == 406)
}

/// The version that the broker names in its greeting, before anyone has logged in. `None` if it does not, or over
/// TLS: the client does not pass it on, so it is read from a connection of its own.
pub async fn version(settings: &AmqpSettings) -> Option<String> {
    let (uri, _) = address(settings, 0).ok()?;
    if uri.scheme != AMQPScheme::AMQP {
        return None;
    }
    let greeting = timeout(settings.connect_timeout.min(Duration::from_secs(5)), async {
        let mut stream = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await.ok()?;
        stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
        // Frame: type, channel, size. Method: class and id. Then the protocol's two numbers.
        let mut head = [0; 7];
        stream.read_exact(&mut head).await.ok()?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut frame = vec![0; usize::try_from(size.min(GREETING_BYTES_MAX)).ok()?];
        stream.read_exact(&mut frame).await.ok()?;
        Some(frame)
    });
    let frame = greeting.await.ok()??;
    text_of(frame.strip_prefix(&[0, 10, 0, 10, 0, 9])?, "version")
}

const GREETING_BYTES_MAX: u32 = 64 * 1024;

/// The text under a name in a table as AMQP writes it. Knows only the types that a greeting has.
fn text_of(table: &[u8], expected: &str) -> Option<String> {
    let (size, rest) = table.split_first_chunk::<4>()?;
    let mut rest = rest.get(..usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
    while let Some((length, more)) = rest.split_first() {
        let (name, more) = more.split_at_checked(usize::from(*length))?;
        let (kind, more) = more.split_first()?;
        rest = match kind {
            b't' => more.get(1..)?,
            b'S' | b'F' => {
                let (size, more) = more.split_first_chunk::<4>()?;
                let (value, more) =
                    more.split_at_checked(usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
                if name == expected.as_bytes() && *kind == b'S' {
                    return Some(String::from_utf8_lossy(value).into_owned());
                }
                more
            }
            _ => return None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_name_what_there_is_and_nothing_else() {
        let rights = |mode| least_rights(&Names::default(), mode);
        let off = [
            "^$",
            r"^(redemption\.results|redemption\.retry|redemption\.parked|amq\.default)$",
            r"^(redemption\.commands|redemption\.dead|redemption\.instances)$",
        ];
        assert_eq!(rights(Mode::Off), off);
        assert_eq!(rights(Mode::Verify), off);
        let [configure, write, read] = rights(Mode::Create);
        let all = r"redemption\.commands|redemption\.retry(\..*)?|redemption\.results|redemption\.unrouted|redemption\.dead|redemption\.instances|redemption\.parked(\.(audit|lock))?";
        assert_eq!([&configure, &read], [&format!("^({all})$"); 2]);
        assert_eq!(write, format!(r"^({all}|amq\.default)$"));
        let operator = |mode| operator_rights(&Names::default(), mode);
        assert_eq!(operator(Mode::Create), rights(Mode::Create));
        let off = [
            r"^(redemption\.parked\.lock)$",
            r"^(redemption\.results|redemption\.retry|redemption\.parked|amq\.default|redemption\.commands)$",
            r"^(redemption\.commands|redemption\.dead|redemption\.instances|redemption\.parked)$",
        ];
        assert_eq!(operator(Mode::Off), off);
        assert_eq!(operator(Mode::Verify), off);
    }

    #[test]
    fn text_is_found_in_a_greeting_within_its_end() {
        let mut entries = b"\x0ccapabilitiesF\0\0\0\x05\x02ok".to_vec();
        entries.extend(b"t\x01\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8");
        let mut table = u32::try_from(entries.len()).unwrap().to_be_bytes().to_vec();
        table.extend(&entries);
        assert_eq!(text_of(&table, "version").as_deref(), Some("3.10.8"));
        assert_eq!(text_of(&table, "product").as_deref(), Some("RabbitMQ"));
        assert_eq!(text_of(&table, "absent"), None);
        for end in 0..table.len() {
            assert_eq!(text_of(&table[..end], "version"), None, "{end}");
        }
    }
}
