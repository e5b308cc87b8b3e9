//! What must exist on the broker: exchanges, queues and bindings, planned as values and then made or verified.
//!
//! The plan is a pure function of names and delays. Every queue is a quorum queue; everything that dead-letters
//! does so at least once, which the broker only honors together with `reject-publish` and a dead-letter exchange,
//! and forgets silently otherwise.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use tokio::time::timeout;

use crate::amqp::connection::{AmqpSettings, CannotConnect, connect_any};

/// The names on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Topic exchange and quorum queue of commands.
    pub commands: String,
    /// Direct exchange of the delay queues; the queues are called `<retry>.<wait>`.
    pub retry: String,
    /// Topic exchange of results: the reply exchange.
    pub results: String,
    /// Fanout exchange and quorum queue of results that nobody has bound.
    pub unrouted: String,
    /// Fanout exchange and quorum queue of commands that a person must look at; the queue of what people did with them
    /// is called `<parked>.audit`.
    pub parked: String,
    /// Fanout exchange and quorum queue of commands that the broker itself dead-lettered, until the service has published
    /// their events.
    pub dead: String,
    /// Quorum queue without messages that each instance consumes while it consumes commands: its consumers are the
    /// instances.
    pub instances: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            commands: "redemption.commands".to_owned(),
            retry: "redemption.retry".to_owned(),
            results: "redemption.results".to_owned(),
            unrouted: "redemption.unrouted".to_owned(),
            parked: "redemption.parked".to_owned(),
            dead: "redemption.dead".to_owned(),
            instances: "redemption.instances".to_owned(),
        }
    }
}

/// What to do about the topology when a connection is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make what is missing; what exists with other arguments is an error.
    Create,
    /// Make nothing; what is missing or differs is an error.
    Verify,
    /// Trust that it is there.
    Off,
}

/// What must exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The names.
    pub names: Names,
    /// The waits of the delays, shortest first.
    pub delays: Vec<Duration>,
    /// Deliveries of one command that fail before the broker parks it.
    pub delivery_limit: u32,
}

/// One object on the broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// An exchange, durable.
    Exchange {
        /// Its name.
        name: String,
        /// Its kind.
        kind: Kind,
        /// Its arguments.
        arguments: Vec<(&'static str, Argument)>,
    },
    /// A quorum queue.
    Queue {
        /// Its name.
        name: String,
        /// Its arguments.
        arguments: Vec<(&'static str, Argument)>,
    },
    /// A queue bound to an exchange.
    Binding {
        /// The exchange.
        exchange: String,
        /// The queue.
        queue: String,
        /// The routing key or pattern.
        routing_key: String,
    },
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange { name, .. } => write!(f, "exchange {name}"),
            Self::Queue { name, .. } => write!(f, "queue {name}"),
            Self::Binding { exchange, queue, routing_key } if routing_key.is_empty() => {
                write!(f, "binding of {queue} to {exchange}")
            }
            Self::Binding { exchange, queue, routing_key } => {
                write!(f, "binding of {queue} to {exchange} under {routing_key}")
            }
        }
    }
}

/// The kinds of exchange in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By exact routing key.
    Direct,
    /// To every queue that is bound.
    Fanout,
    /// By routing pattern.
    Topic,
}

impl Kind {
    /// The broker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
        }
    }
}

/// The value of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// Deliveries of one dead-lettered command that may fail before the broker parks it without an event: few, because such a
/// command has failed many times before.
const DEAD_DELIVERY_LIMIT: u32 = 3;

/// The short name of a wait: `10s`, `1m`, `2h`.
pub fn delay_name(wait: Duration) -> String {
    let millis = wait.as_millis();
    match (millis % 3_600_000, millis % 60_000, millis % 1_000) {
        (0, ..) => format!("{}h", millis / 3_600_000),
        (_, 0, _) => format!("{}m", millis / 60_000),
        (_, _, 0) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

impl Topology {
    /// The queue of a delay.
    pub fn delay_queue(&self, wait: Duration) -> String {
        format!("{}.{}", self.names.retry, delay_name(wait))
    }

    /// The queue of audit events: what people did with parked commands.
    pub fn audit_queue(&self) -> String {
        format!("{}.audit", self.names.parked)
    }

    /// Every object, in an order in which it can be made.
    pub fn plan(&self) -> Vec<Object> {
        let Names { commands, retry, results, unrouted, parked, dead, instances } = &self.names;
        let text = |text: &str| Argument::Text(text.to_owned());
        let exchange =
            |name: &str, kind| Object::Exchange { name: name.to_owned(), kind, arguments: Vec::new() };
        let kept = |name: &str| Object::Queue {
            name: name.to_owned(),
            // 4.x drops what was delivered more than 20 times from a queue without a dead-letter exchange. What
            // people look at, again and again, must not vanish.
            arguments: vec![
                ("x-queue-type", text("quorum")),
                ("x-delivery-limit", Argument::Number(1_000_000)),
            ],
        };
        let binding = |exchange: &str, queue: &str, routing_key: &str| Object::Binding {
            exchange: exchange.to_owned(),
            queue: queue.to_owned(),
            routing_key: routing_key.to_owned(),
        };
        let mut plan = vec![
            exchange(parked, Kind::Fanout),
            kept(parked),
            binding(parked, parked, ""),
            exchange(unrouted, Kind::Fanout),
            kept(unrouted),
            binding(unrouted, unrouted, ""),
            exchange(dead, Kind::Fanout),
            Object::Queue {
                name: dead.clone(),
                arguments: vec![
                    ("x-queue-type", text("quorum")),
                    ("x-delivery-limit", Argument::Number(i64::from(DEAD_DELIVERY_LIMIT))),
                    ("x-dead-letter-exchange", text(parked)),
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-overflow", text("reject-publish")),
                ],
            },
            binding(dead, dead, ""),
            Object::Exchange {
                name: results.clone(),
                kind: Kind::Topic,
                arguments: vec![("alternate-exchange", text(unrouted))],
            },
            // Or what a person did would lie among the results that nobody has bound.
            kept(&self.audit_queue()),
            binding(results, &self.audit_queue(), "audit.#"),
            exchange(commands, Kind::Topic),
            Object::Queue {
                name: commands.clone(),
                arguments: vec![
                    ("x-queue-type", text("quorum")),
                    ("x-delivery-limit", Argument::Number(i64::from(self.delivery_limit))),
                    ("x-dead-letter-exchange", text(dead)),
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-overflow", text("reject-publish")),
                ],
            },
            binding(commands, commands, "#"),
            kept(instances),
            exchange(retry, Kind::Direct),
        ];
        for wait in &self.delays {
            let queue = self.delay_queue(*wait);
            let millis = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
            plan.push(Object::Queue {
                name: queue.clone(),
                arguments: vec![
                    ("x-queue-type", text("quorum")),
                    ("x-message-ttl", Argument::Number(millis)),
                    ("x-dead-letter-exchange", text("")),
                    ("x-dead-letter-routing-key", text(commands)),
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-overflow", text("reject-publish")),
                ],
            });
            plan.push(binding(retry, &queue, &delay_name(*wait)));
        }
        plan
    }
}

/// Why the topology is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyFault {
    /// The broker refused an object; its words name the argument that differs.
    #[error("{what} is not as it must be: {broker}")]
    Refused {
        /// Which object.
        what: String,
        /// The broker's words.
        broker: String,
    },
    /// The connection failed on the way.
    #[error("the topology could not be looked at: {0}")]
    Connection(#[from] lapin::Error),
}

/// Makes or verifies every object, one after the other on one channel; the broker closes it on a difference.
///
/// # Errors
/// [`TopologyFault::Refused`] for the first object that is missing or differs.
pub async fn establish(
    connection: &Connection,
    topology: &Topology,
    mode: Mode,
) -> Result<(), TopologyFault> {
    let plan = topology.plan();
    let mut declarer = Declarer::new(connection);
    for object in &plan {
        match mode {
            Mode::Off => {}
            Mode::Create => declarer.declare(object, false).await?,
            Mode::Verify => declarer.verify(object).await?,
        }
    }
    // A copy is only safe in a queue that is known to exist: `mandatory` is a hint under load.
    for object in &plan {
        if let Object::Queue { .. } = object {
            declarer.declare(object, true).await?;
        }
    }
    declarer.close().await;
    Ok(())
}

/// Makes one object, or with `passive` only looks whether it is there (a binding cannot be looked at).
///
/// # Errors
/// [`TopologyFault::Refused`] if it is missing or differs.
pub async fn declare(connection: &Connection, object: &Object, passive: bool) -> Result<(), TopologyFault> {
    declare_as(connection, object, passive, &Form::of(object)).await
}

async fn declare_as(
    connection: &Connection,
    object: &Object,
    passive: bool,
    form: &Form,
) -> Result<(), TopologyFault> {
    let mut declarer = Declarer::new(connection);
    declarer.declare_as(object, passive, form).await?;
    declarer.close().await;
    Ok(())
}

/// Declares one object after the other on one channel, and opens another where the broker closed it over a refusal. A
/// user's limit on channels counts one that was closed a moment ago, so there is never more than one.
struct Declarer<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl<'a> Declarer<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { connection, channel: None }
    }

    async fn verify(&mut self, object: &Object) -> Result<(), TopologyFault> {
        if let Object::Binding { .. } = object {
            // AMQP cannot ask for a binding without making it.
            return Ok(());
        }
        self.declare(object, true).await?;
        match self.declare(object, false).await {
            // Without the right to configure, existence is all that can be seen.
            Err(TopologyFault::Refused { broker, .. }) if broker.contains("ACCESS_REFUSED") => Ok(()),
            result => result,
        }
    }

    async fn declare(&mut self, object: &Object, passive: bool) -> Result<(), TopologyFault> {
        self.declare_as(object, passive, &Form::of(object)).await
    }

    async fn declare_as(&mut self, object: &Object, passive: bool, form: &Form) -> Result<(), TopologyFault> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.connection.create_channel().await?,
        };
        declare_on(&channel, object, passive, form).await.map_err(|error| match error.kind() {
            lapin::ErrorKind::ProtocolError(fault) => {
                TopologyFault::Refused { what: object.to_string(), broker: fault.to_string() }
            }
            _ => TopologyFault::Connection(error),
        })?;
        self.channel = Some(channel);
        Ok(())
    }

    /// The channel has done its work; whether its close is confirmed changes nothing.
    async fn close(self) {
        if let Some(channel) = self.channel {
            let _ = channel.close(200, "done".into()).await;
        }
    }
}

async fn declare_on(channel: &Channel, object: &Object, passive: bool, form: &Form) -> lapin::Result<()> {
    let Form { kind, durable, auto_delete, internal, arguments } = form;
    let (durable, auto_delete, internal) = (*durable, *auto_delete, *internal);
    let arguments = if passive { FieldTable::default() } else { arguments.clone() };
    match object {
        Object::Exchange { name, .. } => {
            let options =
                ExchangeDeclareOptions { durable, auto_delete, internal, passive, ..Default::default() };
            channel.exchange_declare(name.as_str().into(), kind.clone(), options, arguments).await
        }
        Object::Queue { name, .. } => {
            let options = QueueDeclareOptions { durable, auto_delete, passive, ..Default::default() };
            channel.queue_declare(name.as_str().into(), options, arguments).await.map(drop)
        }
        Object::Binding { exchange, queue, routing_key } => {
            channel
                .queue_bind(
                    queue.as_str().into(),
                    exchange.as_str().into(),
                    routing_key.as_str().into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
        }
    }
}

/// What a declaration says beside the name.
struct Form {
    kind: ExchangeKind,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    arguments: FieldTable,
}

impl Form {
    fn of(object: &Object) -> Self {
        let (kind, arguments) = match object {
            Object::Exchange { kind: Kind::Direct, arguments, .. } => {
                (ExchangeKind::Direct, table(arguments))
            }
            Object::Exchange { kind: Kind::Fanout, arguments, .. } => {
                (ExchangeKind::Fanout, table(arguments))
            }
            Object::Exchange { kind: Kind::Topic, arguments, .. } => (ExchangeKind::Topic, table(arguments)),
            Object::Queue { arguments, .. } => (ExchangeKind::Direct, table(arguments)),
            Object::Binding { .. } => (ExchangeKind::Direct, FieldTable::default()),
        };
        Self { kind, durable: true, auto_delete: false, internal: false, arguments }
    }

    /// Takes on what the broker has, so that it names the next difference. False if that cannot be said.
    fn accept_existing(&mut self, argument: &str, found: &str, kind: Option<&str>) -> bool {
        let was = self.arguments.inner().get(argument);
        let number = || found.parse().map(AMQPValue::LongLongInt).ok();
        let value = match (argument, kind) {
            ("type", _) => {
                self.kind = ExchangeKind::Custom(found.to_owned());
                return true;
            }
            ("durable" | "auto_delete" | "internal", _) => {
                let which = match argument {
                    "durable" => &mut self.durable,
                    "auto_delete" => &mut self.auto_delete,
                    _ => &mut self.internal,
                };
                *which = found == "true";
                return true;
            }
            (_, None) if found == NONE => None,
            (_, Some("bool")) => Some(AMQPValue::Boolean(found == "true")),
            // Of some arguments the broker does not report the type.
            (_, None) if matches!(was, Some(AMQPValue::LongLongInt(_))) => number(),
            (_, Some("longstr") | None) => Some(AMQPValue::LongString(found.into())),
            (_, Some(_)) => number(),
        };
        match value {
            Some(value) => {
                self.arguments.insert(argument.into(), value);
            }
            None if found == NONE => {
                let rest = self.arguments.inner().iter().filter(|(name, _)| name.as_str() != argument);
                self.arguments = rest
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect::<BTreeMap<_, _>>()
                    .into();
            }
            None => return false,
        }
        true
    }
}

/// How an object stands on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectState {
    /// It is there, as it must be.
    Present,
    /// It was missing and has been made.
    Created,
    /// It is not there.
    Missing,
    /// It is there with something else in it.
    Differs(Vec<Difference>),
    /// It is there; what is in it may not be seen or could not be understood: the broker's words.
    Unreadable(String),
    /// It could not be made: the broker's words.
    NotCreated(String),
    /// A binding: AMQP cannot ask for one without making it.
    NotQueryable,
}

impl ObjectState {
    /// Whether someone must do something about it.
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Missing | Self::Differs(_) | Self::NotCreated(_))
    }
}

/// One argument that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The argument, or `type`, `durable`, `auto_delete`, `internal`.
    pub argument: String,
    /// What must be.
    pub wanted: String,
    /// What is.
    pub found: String,
}

/// What the broker says of an argument that is not there.
const NONE: &str = "none";
/// More differences than any object has arguments.
const DIFFERENCES_MAX: usize = 32;

/// Looks at every object, each on channels of its own, and with `make` makes what is missing. Nothing that is there
/// is changed or deleted.
///
/// # Errors
/// [`CannotConnect`] if the broker is not reached, or is lost on the way.
pub async fn inspect(
    settings: &AmqpSettings,
    make: bool,
) -> Result<(String, Vec<(Object, ObjectState)>), CannotConnect> {
    let (connection, at) = connect_any(settings, "redeemer topology").await?;
    let limit = settings.connect_timeout;
    let mut found = Vec::new();
    for object in settings.topology.plan() {
        let looked = timeout(limit, print_standing(&connection, &object, make)).await;
        let late = || CannotConnect::TimedOut { at: at.clone(), step: "looking at the topology", limit };
        let standing = looked
            .map_err(|_| late())?
            .map_err(|source| CannotConnect::Refused { at: at.clone(), source })?;
        found.push((object, standing));
    }
    let _ = timeout(limit, connection.close(200, "done".into())).await;
    Ok((at, found))
}

async fn print_standing(connection: &Connection, object: &Object, make: bool) -> lapin::Result<ObjectState> {
    let made = async || match declare(connection, object, false).await {
        Ok(()) => Ok(ObjectState::Created),
        Err(TopologyFault::Refused { broker, .. }) => Ok(ObjectState::NotCreated(broker)),
        Err(TopologyFault::Connection(error)) => Err(error),
    };
    if let Object::Binding { .. } = object {
        return if make { made().await } else { Ok(ObjectState::NotQueryable) };
    }
    match declare(connection, object, true).await {
        Ok(()) => differences(connection, object).await,
        Err(TopologyFault::Refused { broker, .. }) if broker.contains("NOT_FOUND") => {
            if make {
                made().await
            } else {
                Ok(ObjectState::Missing)
            }
        }
        Err(TopologyFault::Refused { broker, .. }) => Ok(ObjectState::Unreadable(broker)),
        Err(TopologyFault::Connection(error)) => Err(error),
    }
}

/// Asks for what must be until the broker agrees. It names one difference at a time, so each that it named is
/// conceded in the next operation. A declaration of what is there changes nothing.
async fn differences(connection: &Connection, object: &Object) -> lapin::Result<ObjectState> {
    let mut form = Form::of(object);
    let mut differences: Vec<Difference> = Vec::new();
    while differences.len() < DIFFERENCES_MAX {
        let words = match declare_as(connection, object, false, &form).await {
            Ok(()) => break,
            Err(TopologyFault::Refused { broker, .. }) => broker,
            Err(TopologyFault::Connection(error)) => return Err(error),
        };
        let Some(named) = Named::read(&words) else {
            // What was named so far is sure; the rest stays in the broker's words.
            if differences.is_empty() {
                return Ok(ObjectState::Unreadable(words));
            }
            let wanted = "what is configured".to_owned();
            differences.push(Difference { argument: "something else".to_owned(), wanted, found: words });
            break;
        };
        let known = differences.iter().any(|difference| difference.argument == named.argument);
        let conceded = !known && form.accept_existing(named.argument, named.found, named.kind);
        if !known {
            differences.push(Difference {
                argument: named.argument.to_owned(),
                wanted: named.wanted.to_owned(),
                found: named.found.to_owned(),
            });
        }
        if !conceded {
            break;
        }
    }
    Ok(if differences.is_empty() { ObjectState::Present } else { ObjectState::Differs(differences) })
}

/// What the broker says when a declaration does not fit: `inequivalent arg 'x-overflow' for queue 'q' in vhost '/':
/// received the value 'a' of type 'longstr' but current is not one`.
struct Named<'a> {
    argument: &'a str,
    wanted: &'a str,
    found: &'a str,
    /// The type of what was found, if the broker gives one.
    kind: Option<&'a str>,
}

impl<'a> Named<'a> {
    fn read(words: &'a str) -> Option<Self> {
        let (_, rest) = words.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        let (_, rest) = rest.split_once(": received ")?;
        let (wanted, found) = rest.split_once(" but current is ")?;
        let value = |words: &'a str| -> (&'a str, Option<&'a str>) {
            let Some(words) = words.strip_prefix("the value '") else {
                return (words.split('\'').nth(1).unwrap_or(NONE), None);
            };
            match words.split_once("' of type '") {
                Some((value, kind)) => (value, kind.split('\'').next()),
                None => (words, None),
            }
        };
        let (wanted, (found, kind)) = (value(wanted).0, value(found));
        Some(Self { argument, wanted, found, kind })
    }
}

fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_have_short_names() {
        let name = |millis| delay_name(Duration::from_millis(millis));
        assert_eq!([10_000, 60_000, 1_800_000, 7_200_000].map(name), ["10s", "1m", "30m", "2h"]);
        assert_eq!([250, 90_000, 1_000].map(name), ["250ms", "90s", "1s"]);
    }

    #[test]
    fn a_difference_is_read_from_every_wording_of_the_broker() {
        let check = |words: &str, argument: &str, wanted: &str, found: &str, kind: Option<&str>| {
            let named = Named::read(words).unwrap();
            assert_eq!(
                (named.argument, named.wanted, named.found, named.kind),
                (argument, wanted, found, kind)
            );
        };
        check(
            "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'it''s' in vhost '/': received the \
             value '1000000' of type 'long' but current is the value '5' of type 'signedint'",
            "x-delivery-limit",
            "1000000",
            "5",
            Some("signedint"),
        );
        check(
            "inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received none but current is the value '7' \
             of type 'long'",
            "x-max-length",
            "none",
            "7",
            Some("long"),
        );
        check(
            "inequivalent arg 'type' for exchange 'e' in vhost '/': received 'topic' but current is 'fanout'",
            "type",
            "topic",
            "fanout",
            None,
        );
        check(
            "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received 'a' but current is 'b'",
            "x-dead-letter-exchange",
            "a",
            "b",
            None,
        );
        check(
            "inequivalent arg 'x-overflow' for queue 'q' in vhost '/': received the value 'reject-publish' of type \
             'longstr' but current is not one",
            "x-overflow",
            "reject-publish",
            "none",
            None,
        );
        assert!(Named::read("ACCESS_REFUSED - access to queue 'q' refused").is_none());
    }

    #[test]
    fn whatever_dead_letters_does_so_at_least_once() {
        let topology = Topology {
            names: Names::default(),
            delays: [10, 60].map(Duration::from_secs).to_vec(),
            delivery_limit: 20,
        };
        let mut dead_lettering = 0;
        for object in topology.plan() {
            let Object::Queue { name, arguments } = object else { continue };
            let has = |wanted: &str, value: &str| {
                arguments.iter().any(|(name, is)| *name == wanted && *is == Argument::Text(value.to_owned()))
            };
            assert!(has("x-queue-type", "quorum"), "{name}");
            if arguments.iter().any(|(name, _)| *name == "x-dead-letter-exchange") {
                dead_lettering += 1;
                assert!(has("x-dead-letter-strategy", "at-least-once"), "{name}");
                assert!(has("x-overflow", "reject-publish"), "{name}");
            }
        }
        assert_eq!(dead_lettering, 4);
    }
}
