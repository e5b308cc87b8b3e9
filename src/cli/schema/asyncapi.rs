//! The AsyncAPI 3.0 document, from the service's side: it receives commands and sends events. Exchanges, queues and
//! their arguments are taken from the plan that the service itself sets up.

use anyhow::{Context as _, anyhow};
use serde_json::{Map, Value, json};

use crate::amqp::topology::{Argument, Object, Topology};
use crate::domain::outcome::OutcomeKind;
use crate::wire::console_event::ConsoleAction;
use crate::wire::schema::{self, Dialect};
use crate::wire::{result_event, retry_message};

/// The version of the AMQP bindings that are used.
const BINDING: &str = "0.3.0";

macro_rules! golden {
    ($file:literal) => {
        include_str!(concat!("../../../docs/contract/examples/", $file))
    };
}

/// The golden messages of `docs/contract/examples`: name, summary, payload.
const COMMANDS: [(&str, &str, &str); 3] = [
    ("nested", "the vendor's example, in the spelling of its PHP SDK", golden!("command.nested.json")),
    ("flat", "the same redemption, every field side by side", golden!("command.flat.json")),
    ("pay-score", "for a pay-score order, with every optional field", golden!("command.pay-score.json")),
];
const EVENTS: [(&str, &str, &str, &str); 8] = [
    ("redeemed", "the coupon was used by this command", "34657", golden!("event.redeemed.json")),
    ("single", "a coupon that is used once", "34660", golden!("event.redeemed.single.json")),
    ("bundle", "a coupon of a bundle", "34661", golden!("event.redeemed.bundle.json")),
    (
        "sequential",
        "the first example, with every member of the coupon",
        "34657",
        golden!("event.redeemed.sequential.json"),
    ),
    (
        "refused",
        "the coupon was not used by this command, and will not be",
        "34658",
        golden!("event.refused.json"),
    ),
    ("invalid", "the message is not a valid command", "34659", golden!("event.invalid.json")),
    (
        "unresolved",
        "the outcome was still unknown at the deadline",
        "34658",
        golden!("event.unresolved.json"),
    ),
    (
        "corrupt",
        "a retry message came back corrupt from a delay queue",
        "34658",
        golden!("event.corrupt.json"),
    ),
];
const AUDITS: [(&str, &str, &str); 2] = [
    ("replayed", "a parked command was published again", golden!("audit.replayed.json")),
    ("discarded", "a parked command was removed from the queue", golden!("audit.discarded.json")),
];
const CONSOLES: [(&str, &str, &str); 3] = [
    ("logged_in", "an operator logged in", golden!("console.logged_in.json")),
    ("logged_out", "an operator logged out", golden!("console.logged_out.json")),
    ("login_refused", "logins were refused within a minute", golden!("console.login_refused.json")),
];

/// The document for these names, delays and limits.
///
/// # Errors
/// None in practice: the plan holds what the topology names, and the golden messages are JSON.
pub fn document(topology: &Topology) -> anyhow::Result<Value> {
    let plan = topology.plan();
    let names = &topology.names;
    let channels = json!({
        "commands": {
            "address": "{routing_key}",
            "title": "Commands",
            "description": "The command exchange. Every routing key leads to the command queue.",
            "parameters": { "routing_key": { "description": "Any, such as redemption.use; the service ignores it.",
                "default": "redemption.use" } },
            "messages": { "command": { "$ref": "#/components/messages/command" } },
            "bindings": by_routing_key(&plan, &names.commands)?,
        },
        "results": {
            "address": "redemption.{outcome}.{brand_id}",
            "title": "Results",
            "description": "The results exchange. An event that no queue is bound for goes to the unrouted queue.",
            "parameters": {
                "outcome": { "description": "The outcome of the command.",
                    "enum": OutcomeKind::ALL.map(OutcomeKind::as_str) },
                "brand_id": { "description": "The brand, or unknown if it could not be read." },
            },
            "messages": { "result": { "$ref": "#/components/messages/result" } },
            "bindings": by_routing_key(&plan, &names.results)?,
        },
        "replies": {
            "address": "{reply_to}",
            "title": "Replies",
            "description": "The same events on the same exchange under a second routing key (header CC), the reply_to of \
                            the command. Bind a queue to it before you publish. It must not begin with audit., redemption. or \
                            return.",
            "parameters": { "reply_to": { "description": "The reply_to of the command.",
                "location": "$message.header#/reply_to" } },
            "messages": { "result": { "$ref": "#/components/messages/result" } },
            "bindings": by_routing_key(&plan, &names.results)?,
        },
        "audit": {
            "address": "audit.parked.{action}",
            "title": "Audit",
            "description": "What operators did with parked commands.",
            "parameters": { "action": { "description": "What the operator did.", "enum": ["replayed", "discarded"] } },
            "messages": { "audit": { "$ref": "#/components/messages/audit" } },
            "bindings": by_routing_key(&plan, &names.results)?,
        },
        "console": {
            "address": "audit.console.{action}",
            "title": "Console",
            "description": "Logins, logouts and refused logins of the operator console.",
            "parameters": { "action": { "description": "What happened.",
                "enum": ConsoleAction::ALL.map(ConsoleAction::as_str) } },
            "messages": { "console": { "$ref": "#/components/messages/console" } },
            "bindings": by_routing_key(&plan, &names.results)?,
        },
        "command_queue": of_queue(&plan, &names.commands, &["command"], "The queue that every instance consumes.")?,
        "unrouted": of_queue(&plan, &names.unrouted, &["result"], "Results that no queue was bound for.")?,
        "audit_queue": of_queue(&plan, &topology.audit_queue(), &["audit", "console"],
            "Audit events, kept until they are read.")?,
        "parked": of_queue(&plan, &names.parked, &["command"],
            "Messages that an operator must look at. Some of them are not commands, so the schema does not always hold.")?,
    });
    let delays = topology.delays.iter().map(|wait| topology.delay_queue(*wait)).collect::<Vec<_>>();
    let operations = json!({
        "receive_command": {
            "action": "receive",
            "title": "Receive a command",
            "description": "A publisher sends it persistent and mandatory, and waits for the confirm. The service \
                acknowledges it only after the broker has confirmed its event.",
            "channel": { "$ref": "#/channels/commands" },
            "messages": [{ "$ref": "#/channels/commands/messages/command" }],
            "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "ack": true, "bindingVersion": BINDING } },
            "reply": {
                "address": { "location": "$message.header#/reply_to",
                    "description": "A routing key on the results exchange, never a queue." },
                "channel": { "$ref": "#/channels/replies" },
                "messages": [{ "$ref": "#/channels/replies/messages/result" }],
            },
        },
        "send_result": sends("results", "result", "Send a result",
            "At least once. Equal results have equal ids: store the ids you have seen and drop repeats."),
        "send_audit": sends("audit", "audit", "Send what an operator did with a parked command", "At least once."),
        "send_console": sends("console", "console", "Send a login, a logout or refused logins",
            "At least once, unless the process ends first."),
    });
    Ok(json!({
        "asyncapi": "3.0.0",
        "id": "urn:redeemer:contract:v1",
        "info": {
            "title": "redeemer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": concat!(env!("CARGO_PKG_DESCRIPTION"),
                ". AMQP properties (correlation_id, message_id, reply_to, content_type) are written as headers here; \
                 see docs/contract.md for all rules."),
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "defaultContentType": "application/json",
        "servers": { "broker": {
            "host": "{host}:5671",
            "protocol": "amqps",
            "protocolVersion": "0.9.1",
            "description": "RabbitMQ 3.10 or later, virtual host of your choice; amqp on port 5672 without TLS.",
            "variables": { "host": { "default": "rabbitmq.example.com", "description": "A node of the broker." } },
            "security": [
                { "$ref": "#/components/securitySchemes/password" },
                { "$ref": "#/components/securitySchemes/certificate" },
            ],
        } },
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {
                "command": command_message()?,
                "result": result_message()?,
                "audit": audit_message("audit", "Audit event", schema::audit(Dialect::Draft07), &AUDITS)?,
                "console": audit_message("console", "Console event", schema::console(Dialect::Draft07), &CONSOLES)?,
            },
            "correlationIds": { "correlation": {
                "location": "$message.header#/correlation_id",
                "description": "The event has the correlation_id of the command, else its message_id.",
            } },
            "securitySchemes": {
                "password": { "type": "plain", "description": "User and password (SASL PLAIN); use it over TLS only." },
                "certificate": { "type": "X509", "description": "A client certificate that the broker checks." },
            },
        },
        "x-topology": {
            "description": "Everything that must exist on the broker, in the order of declaration; \
                `redeemer topology apply` declares it. Only the service uses the delay queues.",
            "delayQueues": delays,
            "objects": plan.iter().map(object).collect::<Vec<_>>(),
        },
    }))
}

fn sends(channel: &str, message: &str, title: &str, description: &str) -> Value {
    json!({
        "action": "send",
        "title": title,
        "description": description,
        "channel": { "$ref": format!("#/channels/{channel}") },
        "messages": [{ "$ref": format!("#/channels/{channel}/messages/{message}") }],
        "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "bindingVersion": BINDING } },
    })
}

// ---- exchanges and queues

fn by_routing_key(plan: &[Object], expected: &str) -> anyhow::Result<Value> {
    let exchange = plan.iter().find_map(|object| match object {
        Object::Exchange { name, kind, .. } if name == expected => Some(json!({
            "name": name, "type": kind.as_str(), "durable": true, "autoDelete": false,
        })),
        _ => None,
    });
    let exchange = exchange.with_context(|| format!("the plan has no exchange {expected}"))?;
    Ok(json!({ "amqp": { "is": "routingKey", "exchange": exchange, "bindingVersion": BINDING } }))
}

fn of_queue(plan: &[Object], expected: &str, messages: &[&str], description: &str) -> anyhow::Result<Value> {
    let there = |object: &&Object| matches!(object, Object::Queue { name, .. } if name == expected);
    let queue = plan.iter().find(there).with_context(|| format!("the plan has no queue {expected}"))?;
    let message =
        |name: &&str| ((*name).to_owned(), json!({ "$ref": format!("#/components/messages/{name}") }));
    Ok(json!({
        "address": expected,
        "title": format!("Queue {expected}"),
        "description": description,
        "messages": messages.iter().map(message).collect::<Map<_, _>>(),
        "bindings": { "amqp": {
            "is": "queue",
            "queue": { "name": expected, "durable": true, "exclusive": false, "autoDelete": false },
            "bindingVersion": BINDING,
        } },
        "x-queue-arguments": object(queue)["arguments"],
    }))
}

fn object(object: &Object) -> Value {
    let map = |arguments: &[(&'static str, Argument)]| -> Map<String, Value> {
        let value = |argument: &Argument| match argument {
            Argument::Text(text) => json!(text),
            Argument::Number(number) => json!(number),
        };
        arguments.iter().map(|(name, argument)| ((*name).to_owned(), value(argument))).collect()
    };
    match object {
        Object::Exchange { name, kind, arguments } => {
            json!({ "exchange": name, "type": kind.as_str(), "arguments": map(arguments) })
        }
        Object::Queue { name, arguments } => json!({ "queue": name, "arguments": map(arguments) }),
        Object::Binding { exchange, queue, routing_key } => {
            json!({ "binding": { "exchange": exchange, "queue": queue, "routingKey": routing_key } })
        }
    }
}

// ---- messages

fn command_message() -> anyhow::Result<Value> {
    let example = |(name, summary, text): (&str, &str, &str)| {
        let headers = json!({ "correlation_id": "order-34657", "reply_to": "orders.34657" });
        Ok::<_, anyhow::Error>(json!({
            "name": name, "summary": summary, "headers": headers, "payload": payload(text)?,
        }))
    };
    Ok(json!({
        "name": "command",
        "title": "Redemption command",
        "contentType": "application/json",
        "correlationId": { "$ref": "#/components/correlationIds/correlation" },
        "headers": {
            "type": "object",
            "properties": {
                "correlation_id": text("AMQP property; comes back with the event."),
                "message_id": text("AMQP property; used if correlation_id is absent."),
                "reply_to": text("AMQP property; a further routing key of the event on the results exchange."),
                (retry_message::DEADLINE): { "type": "string", "format": "date-time",
                    "description": "How long the service tries to find out the outcome." },
                "timestamp": { "type": "integer",
                    "description": "AMQP property; when the command was sent, in seconds since 1970. Its age counts from then." },
                "traceparent": traceparent(),
            },
        },
        "payload": embedded(schema::command(Dialect::Draft07)),
        "bindings": { "amqp": { "contentEncoding": "utf-8", "messageType": "command", "bindingVersion": BINDING } },
        "examples": COMMANDS.into_iter().map(example).collect::<anyhow::Result<Vec<_>>>()?,
    }))
}

fn result_message() -> anyhow::Result<Value> {
    let example = |(name, summary, order, text): (&str, &str, &str, &str)| {
        let payload = payload(text)?;
        let headers = json!({
            "correlation_id": format!("order-{order}"), "message_id": payload["id"], "type": payload["type"],
            "CC": [format!("orders.{order}")],
        });
        Ok::<_, anyhow::Error>(
            json!({ "name": name, "summary": summary, "headers": headers, "payload": payload }),
        )
    };
    Ok(json!({
        "name": "result",
        "title": "Result event",
        "summary": "A CloudEvent 1.0 in structured mode",
        "contentType": result_event::CONTENT_TYPE,
        "correlationId": { "$ref": "#/components/correlationIds/correlation" },
        "headers": event_headers(),
        "payload": embedded(schema::event(Dialect::Draft07)),
        "bindings": { "amqp": { "contentEncoding": "utf-8", "messageType": "result", "bindingVersion": BINDING } },
        "examples": EVENTS.into_iter().map(example).collect::<anyhow::Result<Vec<_>>>()?,
    }))
}

fn audit_message(
    name: &str,
    title: &str,
    schema: Value,
    examples: &[(&str, &str, &str)],
) -> anyhow::Result<Value> {
    let example = |(name, summary, text): &(&str, &str, &str)| {
        Ok::<_, anyhow::Error>(json!({ "name": name, "summary": summary, "payload": payload(text)? }))
    };
    Ok(json!({
        "name": name,
        "title": title,
        "summary": "A CloudEvent 1.0 in structured mode",
        "contentType": result_event::CONTENT_TYPE,
        "payload": embedded(schema),
        "bindings": { "amqp": { "contentEncoding": "utf-8", "messageType": name, "bindingVersion": BINDING } },
        "examples": examples.iter().map(example).collect::<anyhow::Result<Vec<_>>>()?,
    }))
}

fn event_headers() -> Value {
    json!({
        "type": "object",
        "required": ["message_id", "type"],
        "properties": {
            "message_id": { "type": "string", "format": "uuid", "description": "AMQP property; the event's id." },
            "type": text("AMQP property; the event's type."),
            "correlation_id": text("AMQP property; the command's correlation_id, else its message_id, else absent."),
            "CC": { "type": "array", "items": { "type": "string" },
                "description": "The command's reply_to; absent if it had no reply_to." },
            "traceparent": traceparent(),
        },
    })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn traceparent() -> Value {
    json!({ "type": "string", "minLength": 55, "maxLength": 55, "description": "W3C trace context." })
}

/// A schema as a part of another document: without what only a file of its own has.
fn embedded(mut schema: Value) -> Value {
    if let Some(members) = schema.as_object_mut() {
        members.remove("$schema");
        members.remove("$id");
    }
    schema
}

fn payload(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).map_err(|error| anyhow!("a golden message is not valid JSON: {error}"))
}
