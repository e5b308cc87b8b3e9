//! `redeemer topology`: shows, creates or verifies the exchanges and queues on the broker. Never deletes or changes any.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::amqp::topology::inspect::{ObjectState, inspect};
use crate::amqp::topology::{Argument, Object};
use crate::cli::{Failure, print};
use crate::config::Config;

/// Arguments of `topology`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the plan; needs no broker.
    Plan {
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
        /// Print a RabbitMQ definitions file, for `rabbitmqctl import_definitions` or the management page.
        #[arg(long, conflicts_with = "json")]
        definitions: bool,
    },
    /// Create missing objects, and report objects that differ. Deletes and changes nothing.
    Apply {
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Report every object that is missing or differs, argument by argument. Creates nothing.
    Verify {
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
}

/// The remedy for an object that differs: the broker cannot change the arguments of an existing one.
const REMEDY: &str = "stop the service, let the queue run empty, delete the object (rabbitmqctl delete_queue \
                      NAME), then redeemer topology apply; or configure what it has";

/// Shows, creates or verifies.
///
/// # Errors
/// [`Failure::Unexpected`] if an object is missing or differs.
pub async fn run(arguments: Arguments, config: Config) -> Result<(), Failure> {
    match arguments.command {
        Command::Plan { json, definitions } => plan(&config, json, definitions),
        Command::Apply { json } => report_states(&config, true, json).await,
        Command::Verify { json } => report_states(&config, false, json).await,
    }
}

fn plan(config: &Config, json: bool, definitions: bool) -> Result<(), Failure> {
    let plan = config.topology().plan();
    if definitions {
        let vhost = config.broker_settings()?.vhost().map_err(anyhow::Error::from)?;
        let text = serde_json::to_string_pretty(&as_definitions(&plan, &vhost)).context("no JSON")?;
        return Ok(print(&text)?);
    }
    for object in &plan {
        if json {
            print(&as_json(object).to_string())?;
            continue;
        }
        let arguments = match object {
            Object::Exchange { kind, arguments, .. } => {
                std::iter::once(kind.as_str().to_owned()).chain(list_plan(arguments)).collect()
            }
            Object::Queue { arguments, .. } => list_plan(arguments),
            Object::Binding { .. } => Vec::new(),
        };
        print(&format!("{object}"))?;
        for argument in arguments {
            print(&format!("    {argument}"))?;
        }
    }
    Ok(())
}

fn list_plan(arguments: &[(&'static str, Argument)]) -> Vec<String> {
    arguments.iter().map(|(name, value)| format!("{name} = {value}")).collect()
}

async fn report_states(config: &Config, make: bool, as_lines: bool) -> Result<(), Failure> {
    let settings = config.broker_settings()?;
    let (at, found) = inspect(&settings, make).await.context("the topology cannot be inspected")?;
    let mut unaskable = 0;
    for (object, standing) in &found {
        if as_lines {
            let mut line = as_json(object);
            add_standing(&mut line, standing);
            print(&line.to_string())?;
            continue;
        }
        match standing {
            ObjectState::Present => print(&format!("ok       {object}"))?,
            ObjectState::Created if matches!(object, Object::Binding { .. }) => {
                print(&format!("ok       {object}"))?
            }
            ObjectState::Created => print(&format!("made     {object}"))?,
            ObjectState::Missing => print(&format!("MISSING  {object}"))?,
            ObjectState::Differs(differences) => {
                for difference in differences {
                    let (argument, expected, found) =
                        (&difference.argument, &difference.expected, &difference.found);
                    print(&format!("DIFFERS  {object}: {argument} is {found}, must be {expected}"))?;
                }
            }
            ObjectState::Unreadable { broker: words, .. } => print(&format!("unseen   {object}: {words}"))?,
            ObjectState::NotCreated(words) => print(&format!("NOT MADE {object}: {words}"))?,
            ObjectState::NotQueryable => unaskable += 1,
        }
    }
    let faults = found.iter().filter(|(_, standing)| standing.is_fault()).count();
    if !as_lines && unaskable > 0 {
        print(&format!(
            "         {unaskable} bindings: AMQP cannot ask for one; redeemer topology apply makes what is missing"
        ))?;
    }
    if faults == 0 {
        return Ok(());
    }
    let differs = found.iter().any(|(_, standing)| matches!(standing, ObjectState::Differs(_)));
    if !as_lines && !make && found.iter().any(|(_, standing)| *standing == ObjectState::Missing) {
        print("remedy for what is missing: redeemer topology apply")?;
    }
    if !as_lines && differs {
        print(&format!("remedy for what differs: {REMEDY}"))?;
    }
    let word = if make { "apply" } else { "verify" };
    let objects = if faults == 1 { "1 object is" } else { &format!("{faults} objects are") };
    Err(Failure::Unexpected(format!("topology {word}: {objects} not as they must be at {at}")))
}

fn as_json(object: &Object) -> Value {
    match object {
        Object::Exchange { name, kind, arguments } => json!({
            "object": "exchange", "name": name, "kind": kind.as_str(), "arguments": as_map(arguments),
        }),
        Object::Queue { name, arguments } => {
            json!({"object": "queue", "name": name, "arguments": as_map(arguments)})
        }
        Object::Binding { exchange, queue, routing_key } => {
            json!({"object": "binding", "exchange": exchange, "queue": queue, "routing_key": routing_key})
        }
    }
}

fn add_standing(line: &mut Value, standing: &ObjectState) {
    let (word, more) = match standing {
        ObjectState::Present => ("there", Value::Null),
        ObjectState::Created => ("made", Value::Null),
        ObjectState::Missing => ("missing", Value::Null),
        ObjectState::Differs(differences) => {
            let entry = |argument: &str, expected: &str, found: &str| json!({"argument": argument, "expected": expected, "found": found});
            let entries = differences.iter().map(|one| entry(&one.argument, &one.expected, &one.found));
            ("differs", entries.collect())
        }
        ObjectState::Unreadable { broker, .. } => ("unseen", json!(broker)),
        ObjectState::NotCreated(words) => ("not_made", json!(words)),
        ObjectState::NotQueryable => ("unaskable", Value::Null),
    };
    line["standing"] = json!(word);
    match standing {
        ObjectState::Differs(_) => line["differences"] = more,
        ObjectState::Unreadable { .. } | ObjectState::NotCreated(_) => line["broker"] = more,
        _ => {}
    }
}

fn as_map(arguments: &[(&'static str, Argument)]) -> BTreeMap<&'static str, Value> {
    let value = |argument: &Argument| match argument {
        Argument::Text(text) => json!(text),
        Argument::Number(number) => json!(number),
    };
    arguments.iter().map(|(name, argument)| (*name, value(argument))).collect()
}

fn as_definitions(plan: &[Object], vhost: &str) -> Value {
    let (mut exchanges, mut queues, mut bindings) = (Vec::new(), Vec::new(), Vec::new());
    for object in plan {
        match object {
            Object::Exchange { name, kind, arguments } => exchanges.push(json!({
                "name": name, "vhost": vhost, "type": kind.as_str(), "durable": true, "auto_delete": false,
                "internal": false, "arguments": as_map(arguments),
            })),
            Object::Queue { name, arguments } => queues.push(json!({
                "name": name, "vhost": vhost, "durable": true, "auto_delete": false,
                "arguments": as_map(arguments),
            })),
            Object::Binding { exchange, queue, routing_key } => bindings.push(json!({
                "source": exchange, "vhost": vhost, "destination": queue, "destination_type": "queue",
                "routing_key": routing_key, "arguments": {},
            })),
        }
    }
    json!({"exchanges": exchanges, "queues": queues, "bindings": bindings})
}
