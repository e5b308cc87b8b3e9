//! Creates the objects of the plan, or verifies that they exist.

use crate::amqp::connection::ACCESS_REFUSED;
use crate::amqp::topology::{self, Argument, Mode, NONE, Object, Topology};
use std::collections::BTreeMap;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

/// Why the topology could not be created or verified.
#[derive(Debug, thiserror::Error)]
pub enum TopologyFault {
    /// The broker refused an object; its words name the argument that differs.
    #[error("{what} is not as it must be: {broker}")]
    Refused {
        /// Which object.
        what: String,
        /// AMQP's reply code.
        code: u16,
        /// The broker's words.
        broker: String,
    },
    /// The connection failed.
    #[error("the topology cannot be inspected: {0}")]
    Connection(#[from] lapin::Error),
}

/// Creates or verifies every object, one after the other on one channel; the broker closes it on a difference.
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
    // A retry message is only safe in a queue that is known to exist: `mandatory` is not reliable under load.
    for object in &plan {
        if let Object::Queue { .. } = object {
            declarer.declare(object, true).await?;
        }
    }
    declarer.close().await;
    Ok(())
}

/// Creates one object, or with `passive` only checks that it exists (a binding cannot be checked).
///
/// # Errors
/// [`TopologyFault::Refused`] if it is missing or differs.
pub async fn declare(connection: &Connection, object: &Object, passive: bool) -> Result<(), TopologyFault> {
    declare_as(connection, object, passive, &Form::of(object)).await
}

pub(super) async fn declare_as(
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

/// Declares one object after the other on one channel, and opens another if the broker closed it. A user's limit on channels
/// still counts one that was closed a moment ago, so there is never more than one.
pub(super) struct Declarer<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl<'a> Declarer<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { connection, channel: None }
    }

    async fn verify(&mut self, object: &Object) -> Result<(), TopologyFault> {
        if let Object::Binding { .. } = object {
            // AMQP cannot check a binding without creating it.
            return Ok(());
        }
        self.declare(object, true).await?;
        match self.declare(object, false).await {
            // Without the right to configure only the existence can be checked.
            Err(TopologyFault::Refused { code: ACCESS_REFUSED, .. }) => Ok(()),
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
                let (what, broker) = (object.to_string(), fault.to_string());
                TopologyFault::Refused { what, code: fault.get_id(), broker }
            }
            _ => TopologyFault::Connection(error),
        })?;
        self.channel = Some(channel);
        Ok(())
    }

    /// Closes the channel; a failure has no effect.
    async fn close(self) {
        if let Some(channel) = self.channel {
            let _ = channel.close(200, "done".into()).await;
        }
    }
}

pub(super) async fn declare_on(
    channel: &Channel,
    object: &Object,
    passive: bool,
    form: &Form,
) -> lapin::Result<()> {
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

/// The content of a declaration beside the name.
pub(super) struct Form {
    kind: ExchangeKind,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    arguments: FieldTable,
}

impl Form {
    pub(super) fn of(object: &Object) -> Self {
        let (kind, arguments) = match object {
            Object::Exchange { kind: topology::ExchangeKind::Direct, arguments, .. } => {
                (ExchangeKind::Direct, table(arguments))
            }
            Object::Exchange { kind: topology::ExchangeKind::Fanout, arguments, .. } => {
                (ExchangeKind::Fanout, table(arguments))
            }
            Object::Exchange { kind: topology::ExchangeKind::Topic, arguments, .. } => {
                (ExchangeKind::Topic, table(arguments))
            }
            Object::Queue { arguments, .. } => (ExchangeKind::Direct, table(arguments)),
            Object::Binding { .. } => (ExchangeKind::Direct, FieldTable::default()),
        };
        Self { kind, durable: true, auto_delete: false, internal: false, arguments }
    }

    /// Takes over the broker's value, so that it names the next difference. False if the value cannot be expressed.
    pub(super) fn accept_existing(&mut self, argument: &str, found: &str, kind: Option<&str>) -> bool {
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
            // The broker does not name the type of some arguments.
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

pub(super) fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
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
