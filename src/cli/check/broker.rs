//! The checks over AMQP: connection, version, topology, permissions and message sizes.

use std::time::Duration;

use super::Finding;
use super::broker_settings::{broker_settings, making_again, of_version};
use super::remedies::Origin;
use crate::amqp::connection::{ACCESS_REFUSED, AmqpSettings, CannotConnect, reply_code};
use crate::amqp::probe::{self, Accepted, Need, Right, RightStatus, SizesUnknown};
use crate::amqp::session::Session;
use crate::amqp::tls::TlsProblem;
use crate::amqp::topology::Mode;
use crate::amqp::topology::inspect::{Difference, ObjectState, inspect};
use crate::config::{Config, MERCHANT_KEY};

pub(super) async fn broker(
    config: &Config,
    origin: &Origin<'_>,
    mut settings: AmqpSettings,
    findings: &mut Vec<Finding>,
) {
    const WHAT: &str = "broker";
    let mode = settings.mode;
    if let Some(finding) = unknown_host(config, origin, &settings).await {
        findings.push(finding);
        return;
    }
    // Each object is inspected below, with every difference.
    settings.mode = Mode::Off;
    let greeted = probe::version(&settings).await;
    if let Some(version) = &greeted {
        findings.push(of_version(version));
    }
    let reached = topology(&settings, mode, findings).await;
    if reached {
        // Before requests to which a broker in alarm would not respond.
        broker_settings(config, origin, &settings, greeted.is_none(), findings).await;
    }
    if reached && !permissions(&settings, mode, findings).await {
        // A connection would fail for the same reason, with less detail.
        return;
    }
    match confirmed_session(&settings).await {
        Ok(session) => {
            findings.push(Finding::ok(
                WHAT,
                format!("{} connects and confirms publishes: no alarm", session.at()),
            ));
            if let Some((consumers, commands)) = session.consumer_count().await {
                let detail = format!("{commands} commands wait, {consumers} consumers");
                findings.push(Finding::ok("queue", detail));
            }
            findings.extend(message_size(&settings).await);
            session.close().await;
        }
        // Missing objects have been reported already.
        Err(CannotConnect::Topology { .. }) if reached => {}
        Err(fault) => {
            let remedy = remedy(&fault, config, origin, &settings);
            findings.push(Finding::fault(WHAT, fault.to_string(), remedy).with_id(id(&fault)));
        }
    }
}

/// What fixes a connection that fails.
fn remedy(fault: &CannotConnect, config: &Config, origin: &Origin<'_>, settings: &AmqpSettings) -> String {
    let host = || {
        // The last one that was tried.
        let host = settings.hosts().ok().and_then(|hosts| hosts.into_iter().next_back());
        origin.asking_host(config, &host.map(|(host, _)| host).unwrap_or_default())
    };
    match fault {
        CannotConnect::Uri(_) => origin.asking_uri(config),
        CannotConnect::File(bad) => {
            let remedy = bad.fault.as_ref().map(|fault| origin.remedy(&fault.remedy(MERCHANT_KEY), bad.key));
            remedy.unwrap_or_else(|| origin.remedies(bad.key, &bad.problem))
        }
        CannotConnect::Tls { problem, .. } => tls_remedy(*problem, origin, host),
        CannotConnect::TimedOut { .. } => {
            format!("{} # or: rabbitmq-diagnostics listeners, there, and the firewall", host())
        }
        // The network refused, not the broker.
        CannotConnect::Refused { source, .. } if reply_code(source).is_none() => {
            format!("{} # or: rabbitmqctl status, there", host())
        }
        CannotConnect::Refused { .. } => format!(
            "{} # user, password and virtual host; or, there: rabbitmqctl list_users; rabbitmqctl list_vhosts; \
             rabbitmqctl list_permissions",
            origin.asking_uri(config)
        ),
        CannotConnect::Frames { .. } => {
            "echo 'frame_max = 131072' >> /etc/rabbitmq/rabbitmq.conf # there, then a restart; no less in broker.uri"
                .to_owned()
        }
        CannotConnect::NoConfirms { .. } => {
            "rabbitmq-diagnostics alarms # there; free memory or disk".to_owned()
        }
        CannotConnect::MayNotPublish { rejection, .. } => match rejection.code {
            404 => "redeemer topology apply".to_owned(),
            ACCESS_REFUSED => {
                let mode = config.broker_settings().map_or(settings.mode, |settings| settings.mode);
                let grant = probe::set_permissions_command(settings, mode);
                format!("{grant}; rabbitmqctl list_topic_permissions # there")
            }
            _ => "rabbitmqctl status # there, and its log".to_owned(),
        },
        CannotConnect::Lost { .. } | CannotConnect::Topology { .. } => {
            "rabbitmqctl status; rabbitmqctl list_permissions # there, with the user and virtual host of the URI"
                .to_owned()
        }
    }
}

/// What fixes a handshake that fails. `host` gives the command that corrects the host.
fn tls_remedy(problem: TlsProblem, origin: &Origin<'_>, host: impl Fn() -> String) -> String {
    const OURS: &str = "broker.client_certificate_file, broker.client_key_file";
    match problem {
        TlsProblem::UnknownIssuer | TlsProblem::NotAccepted => {
            origin.remedies("broker.ca_file", "the file of the CA that signed the broker's certificate")
        }
        TlsProblem::OtherName => format!("{} # one of the names in its certificate", host()),
        TlsProblem::NotValidNow => {
            "timedatectl set-ntp true # if the clock was right, the broker needs a new \
                                    certificate: openssl x509 -noout -dates -in, there"
                .to_owned()
        }
        TlsProblem::CertificateRequired | TlsProblem::EndedWithoutOurs => {
            origin.remedies(OURS, "a certificate that a CA of the broker signed, and its key")
        }
        TlsProblem::OurCertificate | TlsProblem::EndedWithOurs | TlsProblem::NotAPair => {
            origin.remedies(OURS, "a pair, signed by a CA that the broker trusts")
        }
        TlsProblem::OldVersion => {
            "echo 'ssl_options.versions.1 = tlsv1.2' >> /etc/rabbitmq/rabbitmq.conf # there, then a restart"
                .to_owned()
        }
        TlsProblem::NotTls | TlsProblem::Other => format!("{} # the port for amqps, usually 5671", host()),
    }
}

fn id(fault: &CannotConnect) -> &'static str {
    match fault {
        CannotConnect::Uri(_) => "broker_uri",
        CannotConnect::File(_) => "broker_file",
        CannotConnect::Tls { .. } => "broker_tls",
        CannotConnect::TimedOut { .. } => "broker_timed_out",
        CannotConnect::Refused { .. } => "broker_refused",
        CannotConnect::Lost { .. } => "broker_lost",
        CannotConnect::Frames { .. } => "broker_frame_max",
        CannotConnect::NoConfirms { .. } => "broker_no_confirms",
        CannotConnect::MayNotPublish { .. } => "broker_may_not_publish",
        CannotConnect::Topology { .. } => "topology",
    }
}

/// The longest wait for a name server.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// A finding for a node whose name cannot be resolved.
async fn unknown_host(config: &Config, origin: &Origin<'_>, settings: &AmqpSettings) -> Option<Finding> {
    for (host, port) in settings.hosts().ok()? {
        let resolved = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host((host.as_str(), port))).await;
        let problem = match resolved {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no name server responded within {LOOKUP_MAX:?}"),
        };
        let finding = Finding::fault(
            "broker",
            format!("the host name {host} cannot be resolved: {problem}"),
            format!("{} # or: getent hosts, and /etc/resolv.conf", origin.asking_host(config, &host)),
        );
        return Some(finding.with_id("broker_host_unknown"));
    }
    None
}

/// Whether the broker bounds messages. A missing right is in the finding about permissions.
async fn message_size(settings: &AmqpSettings) -> Option<Finding> {
    const WHAT: &str = "message size";
    let remedy_command = format!(
        "echo 'max_message_size = {}' >> /etc/rabbitmq/rabbitmq.conf # there, then a restart",
        probe::MESSAGE_BYTES_NEEDED
    );
    Some(match probe::message_bound(settings).await {
        Ok(Accepted::UpTo(_)) => Finding::ok(WHAT, "the broker takes 128 KiB and refuses more than 1 MiB"),
        Ok(Accepted::More) => Finding::warning(
            WHAT,
            "the broker takes messages of more than 1 MiB; a few large ones would fill this service's memory",
            remedy_command,
        ),
        Ok(Accepted::TooLittle(words)) => {
            Finding::fault(WHAT, format!("the broker refuses a message of 128 KiB: {words}"), remedy_command)
        }
        Err(SizesUnknown::ProbeRejected(_)) => return None,
        Err(SizesUnknown::CannotConnect(fault)) => {
            Finding::warning(WHAT, fault.to_string(), "redeemer check # once more")
        }
    })
}

/// Connects as the service does, and waits for the confirm of a probe.
async fn confirmed_session(settings: &AmqpSettings) -> Result<Session, CannotConnect> {
    let session = Session::establish(settings, 0).await?;
    session.confirm_publishing().await?;
    Ok(session)
}

/// Reports every object that is missing or differs, argument by argument; `mode` is that of the service. False if the
/// broker cannot be reached.
async fn topology(settings: &AmqpSettings, mode: Mode, findings: &mut Vec<Finding>) -> bool {
    const WHAT: &str = "topology";
    let Ok((_, found)) = inspect(settings, false).await else { return false };
    let vhost = settings.vhost().unwrap_or_default();
    let (mut sound, all) = (true, found.len());
    let mut missing = Vec::new();
    for (object, standing) in found {
        match standing {
            ObjectState::Present | ObjectState::Created | ObjectState::NotQueryable => continue,
            ObjectState::Missing | ObjectState::NotCreated(_) => missing.push(object.to_string()),
            ObjectState::Differs(differences) => {
                for Difference { argument, expected, found } in differences {
                    let detail = format!("{object}: {argument} is {found}, must be {expected}");
                    findings.push(Finding::fault(WHAT, detail, making_again(&object, &vhost)));
                }
            }
            ObjectState::Unreadable { code: ACCESS_REFUSED, broker } if mode == Mode::Create => {
                let detail = format!(
                    "the user may not declare {object}, as broker.topology = create requires: {broker}"
                );
                findings.push(Finding::fault(
                    "permissions",
                    detail,
                    probe::set_permissions_command(settings, mode),
                ));
            }
            ObjectState::Unreadable { broker: words, .. } => findings.push(Finding::warning(
                WHAT,
                format!("{object} is there; its arguments cannot be compared: {words}"),
                "redeemer topology verify # as a user who may configure it",
            )),
        }
        sound = false;
    }
    if !missing.is_empty() {
        findings.push(missing_objects(&missing, all, mode));
    }
    if sound {
        findings.push(Finding::ok(WHAT, "every exchange and queue is there with its arguments"));
    }
    true
}

/// One finding for all missing objects: they have one cause and one remedy.
fn missing_objects(missing: &[String], all: usize, mode: Mode) -> Finding {
    const WHAT: &str = "topology";
    const NAMED_MAX: usize = 3;
    let mut detail = format!("{} of {all} objects are missing: ", missing.len());
    detail.push_str(&missing.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", "));
    if missing.len() > NAMED_MAX {
        detail.push_str(&format!(" and {} more", missing.len() - NAMED_MAX));
    }
    let finding = match mode {
        Mode::Create => {
            Finding::warning(WHAT, detail, "redeemer topology apply # or nothing: redeemer run makes them")
        }
        Mode::Verify | Mode::Off => Finding::fault(WHAT, detail, "redeemer topology apply"),
    };
    finding.with_id("topology_missing")
}

fn no_operator_lock(topic: &'static str, what: &str, remedy: String) -> Finding {
    let detail =
        format!("the user may not {what}, so two operators may work at once; the service does not need it");
    Finding::warning(topic, detail, remedy).with_id("operator_lock")
}

/// Reports missing permissions. False if the service needs one of them.
async fn permissions(settings: &AmqpSettings, mode: Mode, findings: &mut Vec<Finding>) -> bool {
    const WHAT: &str = "permissions";
    let rights = match probe::rights(settings).await {
        Ok(rights) => rights,
        Err(fault) => {
            findings.push(Finding::warning(WHAT, fault.to_string(), "redeemer check # once more"));
            return true;
        }
    };
    let (mut sound, mut lacking) = (true, false);
    for (right, need, held) in rights {
        let what = match &right {
            Right::Write { exchange, .. } if exchange.is_empty() => "publish to amq.default".to_owned(),
            Right::Write { exchange, .. } => format!("publish to {exchange}"),
            Right::Read(queue) => format!("consume {queue}"),
            Right::Configure(queue) => format!("configure {queue}"),
        };
        findings.push(match (held, need) {
            (RightStatus::Granted, _) => continue,
            (RightStatus::Missing(words), Need::Service) => {
                lacking = true;
                let detail = format!("the user may not {what}: {words}");
                Finding::fault(WHAT, detail, probe::set_permissions_command(settings, mode))
            }
            (RightStatus::Missing(_), Need::Console) if matches!(right, Right::Configure(_)) => {
                no_operator_lock(WHAT, &what, probe::set_operator_permissions_command(settings, mode))
            }
            (RightStatus::Missing(_), Need::Console) => {
                let detail =
                    format!("the user may not {what}: the service does not need it, redeemer parked does");
                Finding::warning(
                    WHAT,
                    detail,
                    "redeemer parked list # as a user who may; nothing to do for the service",
                )
            }
            (RightStatus::Undetermined(words), _) => {
                let detail = format!("whether the user may {what} could not be found out: {words}");
                Finding::warning(WHAT, detail, "redeemer check # once more")
            }
        });
        sound = false;
    }
    if sound {
        findings.push(Finding::ok(WHAT, "the user may consume and publish whatever it takes"));
    }
    !lacking
}
