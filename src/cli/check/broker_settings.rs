//! The checks over the management API, for settings that AMQP does not show.

use std::time::Duration;

use super::remedies::Origin;
use super::{Finding, Severity};
use crate::amqp::connection::AmqpSettings;
use crate::amqp::management::{self, Alarm, Management, ManagementError, Mismatch, Queue};
use crate::amqp::topology::Object;
use crate::config::Config;

/// The longest time for which a command is usually held unacknowledged.
fn held(config: &Config) -> Duration {
    config.retry.in_process_max.0 + config.wechat.total_timeout.0 * 2 + config.retry.query_delay.0 * 3
}

const SETTINGS: &str = "broker settings";
/// The command that shows it.
const CONSUMER_TIMEOUT: &str = "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'";

/// Policies, alarms, bindings, effective arguments and consumer timeouts: seen through the management API if it is
/// configured, else reported as not checked.
pub(super) async fn broker_settings(
    config: &Config,
    origin: &Origin<'_>,
    settings: &AmqpSettings,
    report_version: bool,
    findings: &mut Vec<Finding>,
) {
    let uri = config.broker.management_uri.as_str();
    if uri.is_empty() {
        findings.push(unseen(config, origin));
        return;
    }
    let before = findings.len();
    let inspected = match Management::new(uri, settings) {
        Ok(management) => inspect(&management, (config, origin), settings, report_version, findings).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = inspected {
        let remedy = match &fault {
            ManagementError::Forbidden { user, .. } => format!("rabbitmqctl set_user_tags {user} management"),
            ManagementError::Uri(_) | ManagementError::Settings(_) => origin.asking("broker.management_uri"),
            ManagementError::NoResponse { .. } => format!(
                "{} # or, there: rabbitmq-plugins enable rabbitmq_management",
                origin.asking("broker.management_uri")
            ),
        };
        findings.push(Finding::fault(SETTINGS, fault.to_string(), remedy));
        findings.push(unseen(config, origin));
    } else if !findings[before..].iter().any(|finding| finding.gravity == Severity::Fault) {
        let detail = "no alarm; every queue has its arguments, and no policy takes anything away (the broker's \
                      listing may be some seconds old)";
        findings.push(Finding::ok(SETTINGS, detail));
    }
}

async fn inspect(
    management: &Management,
    (config, origin): (&Config, &Origin<'_>),
    settings: &AmqpSettings,
    report_version: bool,
    findings: &mut Vec<Finding>,
) -> Result<(), ManagementError> {
    if management.is_cleartext() {
        findings.push(Finding::warning(
            SETTINGS,
            "broker.management_uri is not encrypted: the password goes over the network as it is",
            format!("{} # https:// instead of http://", origin.asking("broker.management_uri")),
        ));
    }
    if let Some(version) = management.version().await?.filter(|_| report_version) {
        findings.push(of_version(&version));
    }
    for Alarm { node, resource } in management.alarms().await? {
        let remedy = match resource.as_str() {
            "memory" => format!("rabbitmq-diagnostics -n {node} memory_breakdown"),
            _ => format!("rabbitmq-diagnostics -n {node} status # free disk space there"),
        };
        let detail = format!("{resource} alarm on {node}: nobody can publish until it is over");
        findings.push(Finding::fault("alarm", detail, remedy));
    }
    let vhost = settings.vhost()?;
    let (mut timeout_seen, held) = (false, held(config));
    for object in settings.topology.plan() {
        match &object {
            Object::Exchange { .. } => {}
            Object::Binding { exchange, queue, routing_key } => {
                // Missing objects have been reported.
                let there = management.queue(queue).await?.is_some();
                if there && !management.is_bound(exchange, queue, routing_key).await? {
                    let detail = format!("{object} is missing: what is published there goes nowhere");
                    findings.push(Finding::fault("topology", detail, "redeemer topology apply"));
                }
            }
            Object::Queue { name, .. } => {
                let Some(queue) = management.queue(name).await? else { continue };
                timeout_seen |= queue.consumer_details.iter().any(|one| one.consumer_timeout.is_some());
                for mismatch in management::mismatches(&object, &queue, held) {
                    findings.push(misfit(&object, name, &vhost, &queue, &mismatch));
                }
            }
        }
    }
    if !timeout_seen {
        findings.push(Finding::warning(
            "consumer timeout",
            format!(
                "not visible from here: the broker's consumer_timeout must be well over {held:?}, the longest that a \
                 command is usually held"
            ),
            CONSUMER_TIMEOUT,
        ));
    }
    Ok(())
}

fn misfit(object: &Object, name: &str, vhost: &str, queue: &Queue, mismatch: &Mismatch) -> Finding {
    let Mismatch { key, found, expected, by_policy } = mismatch;
    if key == "consumer_timeout" {
        return Finding::fault(
            "consumer timeout",
            format!("queue {name}: the broker takes a command back after {found} ms, must be {expected}"),
            "rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, 1800000).' # and for its next start: \
             consumer_timeout = 1800000 in rabbitmq.conf",
        );
    }
    if !by_policy {
        let detail = format!("queue {name}: {key} is {found}, must be {expected}");
        return Finding::fault("arguments", detail, making_again(object, vhost));
    }
    let (policy, operator) = (queue.policy.as_deref(), queue.operator_policy.as_deref());
    let named: Vec<_> = policy.into_iter().chain(operator).collect();
    let clears = policy.map(|policy| format!("rabbitmqctl clear_policy -p {vhost} {policy}"));
    let clears_operators =
        operator.map(|policy| format!("rabbitmqctl clear_operator_policy -p {vhost} {policy}"));
    let remedies: Vec<_> = clears.into_iter().chain(clears_operators).collect();
    Finding::fault(
        "policy",
        format!("queue {name}: policy {} sets {key} to {found}, must be {expected}", named.join(" with ")),
        format!(
            "{} # or let it leave out {key}; the broker lists a policy some seconds after it was set or cleared",
            remedies.join("; ")
        ),
    )
}

/// A reminder of settings that AMQP does not show.
fn unseen(config: &Config, origin: &Origin<'_>) -> Finding {
    let held = held(config);
    let detail = format!(
        "not visible from here without broker.management_uri: a consumer_timeout of the broker must be well over \
         {held:?}, the longest that a command is usually held; no policy may override a queue; no alarm; every binding"
    );
    let remedy = format!(
        "{} # or look, there: {CONSUMER_TIMEOUT}; rabbitmqctl list_queues name policy effective_policy_definition; \
         rabbitmq-diagnostics alarms; rabbitmqctl list_bindings",
        origin.asking("broker.management_uri")
    );
    Finding::warning(SETTINGS, detail, remedy)
}

/// The first version whose quorum queues dead-letter at least once.
const OLDEST: (u32, u32) = (3, 10);
const UPGRADE: &str =
    "rabbitmqctl version # RabbitMQ 3.10 or later is needed: https://www.rabbitmq.com/docs/upgrade";

pub(super) fn of_version(version: &str) -> Finding {
    const WHAT: &str = "broker version";
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => Finding::fault(
            WHAT,
            format!("{version} cannot dead-letter at least once: commands could be lost on the way"),
            UPGRADE,
        ),
        (Some(_), Some(_)) => Finding::ok(WHAT, version),
        _ => Finding::warning(WHAT, format!("{version} is not a version of RabbitMQ"), UPGRADE),
    }
}

/// The remedy for an object that differs: the broker cannot change the arguments of an existing one. The operator runs
/// the command that deletes it, once nothing can be lost.
pub(super) fn making_again(object: &Object, vhost: &str) -> String {
    let (inspect, delete) = match object {
        Object::Queue { name, .. } => (
            format!("rabbitmqctl list_queues -p '{vhost}' name messages"),
            format!("when {name} is empty: rabbitmqctl delete_queue -p '{vhost}' '{name}'"),
        ),
        Object::Exchange { name, .. } => (
            format!("rabbitmqctl list_exchanges -p '{vhost}' name type arguments"),
            format!("delete exchange {name} on the management page"),
        ),
        Object::Binding { .. } => return "redeemer topology apply".to_owned(),
    };
    format!("{inspect} # stop the service; {delete}; redeemer topology apply; or configure what it has")
}
