//! Compares the objects on the broker with the plan.

use crate::amqp::topology::declare::{Form, TopologyFault, declare, declare_as};
use crate::amqp::topology::{NONE, Object};

use lapin::Connection;
use tokio::time::timeout;

use crate::amqp::connection::{AmqpSettings, CannotConnect, NOT_FOUND, connect_any};

/// The state of an object on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectState {
    /// It exists as planned.
    Present,
    /// It was missing and has been created.
    Created,
    /// It does not exist.
    Missing,
    /// It exists with other arguments.
    Differs(Vec<Difference>),
    /// It exists; its arguments may not be read or could not be parsed.
    Unreadable {
        /// AMQP's reply code.
        code: u16,
        /// The broker's words.
        broker: String,
    },
    /// It could not be created: the broker's words.
    NotCreated(String),
    /// A binding: AMQP cannot check one without creating it.
    NotQueryable,
}

impl ObjectState {
    /// Whether it needs a remedy.
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Missing | Self::Differs(_) | Self::NotCreated(_))
    }
}

/// One argument that differs from the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The argument, or `type`, `durable`, `auto_delete`, `internal`.
    pub argument: String,
    /// What it has to be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// More differences than any object has arguments.
pub(super) const DIFFERENCES_MAX: usize = 32;

/// Inspects every object, each on channels of its own, and with `make` creates those that are missing. No object is
/// changed or deleted.
///
/// # Errors
/// [`CannotConnect`] if the broker cannot be reached, or is lost.
pub async fn inspect(
    settings: &AmqpSettings,
    make: bool,
) -> Result<(String, Vec<(Object, ObjectState)>), CannotConnect> {
    let (connection, at) = connect_any(settings, "redeemer topology").await?;
    let limit = settings.connect_timeout;
    let mut found = Vec::new();
    for object in settings.topology.plan() {
        let inspected = timeout(limit, inspect_object(&connection, &object, make)).await;
        let timed_out = || CannotConnect::TimedOut { at: at.clone(), step: "the topology check", limit };
        let state = inspected
            .map_err(|_| timed_out())?
            .map_err(|source| CannotConnect::Refused { at: at.clone(), source })?;
        found.push((object, state));
    }
    let _ = timeout(limit, connection.close(200, "done".into())).await;
    Ok((at, found))
}

pub(super) async fn inspect_object(
    connection: &Connection,
    object: &Object,
    make: bool,
) -> lapin::Result<ObjectState> {
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
        Err(TopologyFault::Refused { code: NOT_FOUND, .. }) => {
            if make {
                made().await
            } else {
                Ok(ObjectState::Missing)
            }
        }
        Err(TopologyFault::Refused { code, broker, .. }) => Ok(ObjectState::Unreadable { code, broker }),
        Err(TopologyFault::Connection(error)) => Err(error),
    }
}

/// Declares the planned object until the broker agrees. It names one difference at a time, so the next declaration takes
/// over the value that it named. A declaration with the existing arguments changes nothing.
pub(super) async fn differences(connection: &Connection, object: &Object) -> lapin::Result<ObjectState> {
    let mut form = Form::of(object);
    let mut differences: Vec<Difference> = Vec::new();
    while differences.len() < DIFFERENCES_MAX {
        let (code, words) = match declare_as(connection, object, false, &form).await {
            Ok(()) => break,
            Err(TopologyFault::Refused { code, broker, .. }) => (code, broker),
            Err(TopologyFault::Connection(error)) => return Err(error),
        };
        let Some(named) = Named::read(&words) else {
            // The differences so far are certain; the rest is reported in the broker's words.
            if differences.is_empty() {
                return Ok(ObjectState::Unreadable { code, broker: words });
            }
            let expected = "what is configured".to_owned();
            differences.push(Difference { argument: "something else".to_owned(), expected, found: words });
            break;
        };
        let known = differences.iter().any(|difference| difference.argument == named.argument);
        let conceded = !known && form.accept_existing(named.argument, named.found, named.kind);
        if !known {
            differences.push(Difference {
                argument: named.argument.to_owned(),
                expected: named.expected.to_owned(),
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
pub(super) struct Named<'a> {
    pub(super) argument: &'a str,
    pub(super) expected: &'a str,
    pub(super) found: &'a str,
    /// The type of what was found, if the broker gives one.
    pub(super) kind: Option<&'a str>,
}

impl<'a> Named<'a> {
    pub(super) fn read(words: &'a str) -> Option<Self> {
        let (_, rest) = words.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        let (_, rest) = rest.split_once(": received ")?;
        let (expected, found) = rest.split_once(" but current is ")?;
        let value = |words: &'a str| -> (&'a str, Option<&'a str>) {
            let Some(words) = words.strip_prefix("the value '") else {
                return (words.split('\'').nth(1).unwrap_or(NONE), None);
            };
            match words.split_once("' of type '") {
                Some((value, kind)) => (value, kind.split('\'').next()),
                None => (words, None),
            }
        };
        let (expected, (found, kind)) = (value(expected).0, value(found));
        Some(Self { argument, expected, found, kind })
    }
}
