//! The topology on the broker: exchanges, queues and bindings, planned as values and then created or verified.
//!
//! The plan is a pure function of names and delays. Every queue is a quorum queue; everything that dead-letters
//! does so at least once, which the broker only honors together with `reject-publish` and a dead-letter exchange,
//! and forgets silently otherwise.

mod declare;
pub mod inspect;

pub use declare::{TopologyFault, declare, establish};

use std::fmt;
use std::time::Duration;

/// The names on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Topic exchange and quorum queue of commands.
    pub commands: String,
    /// Direct exchange of the delay queues; the queues are called `<retry>.<wait>`.
    pub retry: String,
    /// Topic exchange of results: the reply exchange.
    pub results: String,
    /// Fanout exchange and quorum queue of results without a bound queue.
    pub unrouted: String,
    /// Fanout exchange and quorum queue of commands that need an operator; the queue of their audit events
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

/// What to do about the topology when a session is established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Create missing objects; one that exists with other arguments is an error.
    Create,
    /// Create nothing; an object that is missing or differs is an error.
    Verify,
    /// Trust that it exists.
    Off,
}

/// The required topology.
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
        kind: ExchangeKind,
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
pub enum ExchangeKind {
    /// By exact routing key.
    Direct,
    /// To every queue that is bound.
    Fanout,
    /// By routing pattern.
    Topic,
}

impl ExchangeKind {
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

/// Deliveries of one dead-lettered command that may fail before the broker parks it without an event: half as many as of a
/// command, because it has failed that often before, and those behind it wait for it.
const DEAD_DELIVERY_LIMIT: u32 = 10;

/// The exclusive queue that prevents two operators from reading this parked queue at the same time.
pub(super) fn lock_name(parked: &str) -> String {
    format!("{parked}.lock")
}

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

    /// The queue of audit events of parked commands.
    pub fn audit_queue(&self) -> String {
        format!("{}.audit", self.names.parked)
    }

    /// Every object, in an order in which it can be created.
    pub fn plan(&self) -> Vec<Object> {
        let Names { commands, retry, results, unrouted, parked, dead, instances } = &self.names;
        let text = |text: &str| Argument::Text(text.to_owned());
        let exchange =
            |name: &str, kind| Object::Exchange { name: name.to_owned(), kind, arguments: Vec::new() };
        let kept = |name: &str| Object::Queue {
            name: name.to_owned(),
            // 4.x drops a message that was delivered more than 20 times from a queue without a dead-letter exchange. Messages
            // that operators read repeatedly must not vanish.
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
            exchange(parked, ExchangeKind::Fanout),
            kept(parked),
            binding(parked, parked, ""),
            exchange(unrouted, ExchangeKind::Fanout),
            kept(unrouted),
            binding(unrouted, unrouted, ""),
            exchange(dead, ExchangeKind::Fanout),
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
                kind: ExchangeKind::Topic,
                arguments: vec![("alternate-exchange", text(unrouted))],
            },
            // Otherwise audit events would be routed to the unrouted results.
            kept(&self.audit_queue()),
            binding(results, &self.audit_queue(), "audit.#"),
            exchange(commands, ExchangeKind::Topic),
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
            exchange(retry, ExchangeKind::Direct),
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

const NONE: &str = "none";

#[cfg(test)]
mod tests {
    use super::inspect::Named;
    use super::*;

    #[test]
    fn waits_have_short_names() {
        let name = |millis| delay_name(Duration::from_millis(millis));
        assert_eq!([10_000, 60_000, 1_800_000, 7_200_000].map(name), ["10s", "1m", "30m", "2h"]);
        assert_eq!([250, 90_000, 1_000].map(name), ["250ms", "90s", "1s"]);
    }

    #[test]
    fn difference_is_read_from_every_wording_of_the_broker() {
        let check = |words: &str, argument: &str, expected: &str, found: &str, kind: Option<&str>| {
            let named = Named::read(words).unwrap();
            assert_eq!(
                (named.argument, named.expected, named.found, named.kind),
                (argument, expected, found, kind)
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
    fn queues_that_dead_letter_do_so_at_least_once() {
        let topology = Topology {
            names: Names::default(),
            delays: [10, 60].map(Duration::from_secs).to_vec(),
            delivery_limit: 20,
        };
        let mut dead_lettering = 0;
        for object in topology.plan() {
            let Object::Queue { name, arguments } = object else { continue };
            let has = |expected: &str, value: &str| {
                arguments
                    .iter()
                    .any(|(name, is)| *name == expected && *is == Argument::Text(value.to_owned()))
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
