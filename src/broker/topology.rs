//! What must exist on the broker: exchanges, queues and bindings, planned as values and then made or verified.
//!
//! The plan is a pure function of names and tiers. Every queue is a quorum queue; everything that dead-letters
//! does so at least once, which the broker only honours together with `reject-publish` and a dead-letter exchange,
//! and forgets silently otherwise.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ExchangeKind};

/// The names on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Topic exchange and quorum queue of commands.
    pub commands: String,
    /// Direct exchange of the wait queues; the queues are called `<retry>.<wait>`.
    pub retry: String,
    /// Topic exchange of results: the reply exchange.
    pub results: String,
    /// Fanout exchange and quorum queue of results that nobody has bound.
    pub unrouted: String,
    /// Fanout exchange and quorum queue of commands that a person must look at.
    pub parked: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            commands: "redemption.commands".to_owned(),
            retry: "redemption.retry".to_owned(),
            results: "redemption.results".to_owned(),
            unrouted: "redemption.unrouted".to_owned(),
            parked: "redemption.parked".to_owned(),
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
    /// The waits of the tiers, shortest first.
    pub tiers: Vec<Duration>,
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

/// The short name of a wait: `10s`, `1m`, `2h`.
pub fn wait_name(wait: Duration) -> String {
    let millis = wait.as_millis();
    match (millis % 3_600_000, millis % 60_000, millis % 1_000) {
        (0, ..) => format!("{}h", millis / 3_600_000),
        (_, 0, _) => format!("{}m", millis / 60_000),
        (_, _, 0) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

impl Topology {
    /// The queue of a tier.
    pub fn tier_queue(&self, wait: Duration) -> String {
        format!("{}.{}", self.names.retry, wait_name(wait))
    }

    /// Every object, in an order in which it can be made.
    pub fn plan(&self) -> Vec<Object> {
        let Names { commands, retry, results, unrouted, parked } = &self.names;
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
            Object::Exchange {
                name: results.clone(),
                kind: Kind::Topic,
                arguments: vec![("alternate-exchange", text(unrouted))],
            },
            exchange(commands, Kind::Topic),
            Object::Queue {
                name: commands.clone(),
                arguments: vec![
                    ("x-queue-type", text("quorum")),
                    ("x-delivery-limit", Argument::Number(i64::from(self.delivery_limit))),
                    ("x-dead-letter-exchange", text(parked)),
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-overflow", text("reject-publish")),
                ],
            },
            binding(commands, commands, "#"),
            exchange(retry, Kind::Direct),
        ];
        for wait in &self.tiers {
            let queue = self.tier_queue(*wait);
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
            plan.push(binding(retry, &queue, &wait_name(*wait)));
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

/// Makes or verifies every object. Each is looked at on a channel of its own, because the broker closes the channel
/// on the first difference.
///
/// # Errors
/// [`TopologyFault::Refused`] for the first object that is missing or differs.
pub async fn establish(
    connection: &Connection,
    topology: &Topology,
    mode: Mode,
) -> Result<(), TopologyFault> {
    let plan = topology.plan();
    match mode {
        Mode::Off => {}
        Mode::Create => {
            for object in &plan {
                declare(connection, object, false).await?;
            }
        }
        Mode::Verify => {
            for object in &plan {
                verify(connection, object).await?;
            }
        }
    }
    // A copy is only safe in a queue that is known to exist: `mandatory` is a hint under load.
    for object in &plan {
        if let Object::Queue { .. } = object {
            declare(connection, object, true).await?;
        }
    }
    Ok(())
}

async fn verify(connection: &Connection, object: &Object) -> Result<(), TopologyFault> {
    if let Object::Binding { .. } = object {
        // AMQP cannot ask for a binding without making it.
        return Ok(());
    }
    declare(connection, object, true).await?;
    match declare(connection, object, false).await {
        // Without the right to configure, existence is all that can be seen.
        Err(TopologyFault::Refused { broker, .. }) if broker.contains("ACCESS_REFUSED") => Ok(()),
        result => result,
    }
}

/// Makes one object, or with `passive` only looks whether it is there (a binding cannot be looked at).
///
/// # Errors
/// [`TopologyFault::Refused`] where it is missing or differs.
pub async fn declare(connection: &Connection, object: &Object, passive: bool) -> Result<(), TopologyFault> {
    let channel = connection.create_channel().await?;
    let refused = |error: lapin::Error, what: String| match error.kind() {
        lapin::ErrorKind::ProtocolError(fault) => TopologyFault::Refused { what, broker: fault.to_string() },
        _ => TopologyFault::Connection(error),
    };
    match object {
        Object::Exchange { name, kind, arguments } => {
            let kind = match kind {
                Kind::Direct => ExchangeKind::Direct,
                Kind::Fanout => ExchangeKind::Fanout,
                Kind::Topic => ExchangeKind::Topic,
            };
            let options = ExchangeDeclareOptions { durable: true, passive, ..Default::default() };
            let arguments = if passive { FieldTable::default() } else { table(arguments) };
            channel
                .exchange_declare(name.as_str().into(), kind, options, arguments)
                .await
                .map_err(|error| refused(error, format!("exchange {name}")))?;
        }
        Object::Queue { name, arguments } => {
            let options = QueueDeclareOptions { durable: true, passive, ..Default::default() };
            let arguments = if passive { FieldTable::default() } else { table(arguments) };
            channel
                .queue_declare(name.as_str().into(), options, arguments)
                .await
                .map_err(|error| refused(error, format!("queue {name}")))?;
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
                .map_err(|error| refused(error, format!("binding of {queue} to {exchange}")))?;
        }
    }
    // The channel has done its work; whether its close is confirmed changes nothing.
    let _ = channel.close(200, "done".into()).await;
    Ok(())
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
        let name = |millis| wait_name(Duration::from_millis(millis));
        assert_eq!([10_000, 60_000, 1_800_000, 7_200_000].map(name), ["10s", "1m", "30m", "2h"]);
        assert_eq!([250, 90_000, 1_000].map(name), ["250ms", "90s", "1s"]);
    }

    #[test]
    fn whatever_dead_letters_does_so_at_least_once() {
        let topology = Topology {
            names: Names::default(),
            tiers: [10, 60].map(Duration::from_secs).to_vec(),
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
        assert_eq!(dead_lettering, 3);
    }
}
