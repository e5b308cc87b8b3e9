//! `redeemer topology`, and what `redeemer check` says of a broker, against a real one.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::broker;
use crate::broker::Broker;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use redeemer::config::{self, Config};
use serde_json::Value;

/// A configuration with names of its own, in a file of its own.
struct Place {
    config: Config,
    file: PathBuf,
}

impl Place {
    fn new(uri: &str, name: &str) -> Self {
        let mut config = config::parse("", "test", std::iter::empty()).unwrap();
        config.broker.uri = uri.to_owned();
        let prefix = format!("t{}.{name}", std::process::id());
        let names = &mut config.broker.names;
        for (which, what) in [
            (&mut names.commands, "commands"),
            (&mut names.retry, "retry"),
            (&mut names.results, "results"),
            (&mut names.unrouted, "unrouted"),
            (&mut names.parked, "parked"),
            (&mut names.dead, "dead"),
            (&mut names.instances, "instances"),
        ] {
            *which = format!("{prefix}.{what}");
        }
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{prefix}.toml"));
        let place = Self { config, file };
        place.write();
        place
    }

    fn write(&self) {
        std::fs::write(&self.file, toml::to_string(&self.config).unwrap()).unwrap();
    }

    fn run(&self, arguments: &[&str], code: i32) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .arg("--config")
            .arg(&self.file)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{text}\n{complaint}");
        text
    }

    fn lines(&self, arguments: &[&str], code: i32) -> Vec<Value> {
        self.run(arguments, code).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

async fn channel(uri: &str) -> (Connection, Channel) {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_can_be_imported_and_then_everything_is_there() {
    let node = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    let place = Place::new(node.uri(), "plan");
    let text = place.run(&["topology", "plan"], 0);
    let name = &place.config.broker.names.commands;
    assert!(text.contains(&format!("queue {name}\n")), "{text}");
    assert!(text.contains("x-dead-letter-strategy = \"at-least-once\""), "{text}");
    assert_eq!(place.lines(&["topology", "plan", "--json"], 0).len(), place.config.topology().plan().len());

    let missing = place.lines(&["topology", "verify", "--json"], 4);
    let standings: Vec<_> = missing.iter().map(|line| line["standing"].as_str().unwrap()).collect();
    assert!(standings.iter().all(|word| ["missing", "unaskable"].contains(word)), "{standings:?}");
    let definitions = place.run(&["topology", "plan", "--definitions"], 0);
    let file = node.dir().join("definitions.json");
    std::fs::write(&file, definitions).unwrap();
    node.ctl(&["import_definitions", &file.display().to_string()]);
    place.run(&["topology", "verify"], 0);
    let bindings = node.ctl(&["-q", "list_bindings", "source_name", "destination_name", "routing_key"]);
    for wait in ["10s", "2h"] {
        let retry = &place.config.broker.names.retry;
        assert!(bindings.contains(&format!("{retry}\t{retry}.{wait}\t{wait}")), "{bindings}");
    }
    // What apply makes is the same: it finds nothing to make.
    let applied = place.lines(&["topology", "apply", "--json"], 0);
    assert!(applied.iter().all(|line| line["standing"] == "there" || line["object"] == "binding"));
    tokio::task::spawn_blocking(move || drop(node)).await.unwrap();
}

#[test]
fn the_definitions_that_are_shipped_are_the_plan() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    let plan = program.env_clear().args(["topology", "plan", "--definitions"]).output().unwrap();
    assert!(plan.status.success(), "{plan:?}");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rabbitmq/definitions.json");
    let shipped = std::fs::read_to_string(shipped).unwrap();
    let planned = String::from_utf8(plan.stdout).unwrap();
    assert!(planned == shipped, "redeemer topology plan --definitions > deploy/rabbitmq/definitions.json");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_each_difference_and_apply_creates_missing() {
    let uri = tokio::task::spawn_blocking(|| broker::shared().uri().to_owned()).await.unwrap();
    let place = Place::new(&uri, "differs");
    let names = place.config.broker.names.clone();
    let (_connection, channel) = channel(&uri).await;

    // A command queue with three faults and a stranger's argument, a parked queue of another type that holds
    // something, and a results exchange of another kind.
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(5));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("elsewhere".into()));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(9));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(names.commands.as_str().into(), durable, arguments).await.unwrap();
    channel.queue_declare(names.parked.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let kept = channel.basic_publish(
        "".into(),
        names.parked.as_str().into(),
        BasicPublishOptions::default(),
        b"precious",
        BasicProperties::default().with_delivery_mode(2),
    );
    kept.await.unwrap();
    let options = ExchangeDeclareOptions { durable: false, ..Default::default() };
    let results = names.results.as_str();
    channel
        .exchange_declare(results.into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
        .unwrap();

    let named = |lines: &[Value], object: &str, name: &str| -> Vec<String> {
        let line = lines.iter().find(|line| line["object"] == object && line["name"] == name).unwrap();
        let differences = line["differences"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let entry = |one: &Value| {
            format!("{} {} {}", text(&one["argument"]), text(&one["found"]), text(&one["expected"]))
        };
        let mut named: Vec<_> = differences.iter().map(entry).collect();
        named.sort();
        named
    };
    let commands = [
        format!("x-dead-letter-exchange elsewhere {}", names.dead),
        "x-dead-letter-strategy none at-least-once".to_owned(),
        "x-delivery-limit 5 20".to_owned(),
        "x-max-length 9 none".to_owned(),
    ];
    let check = |lines: &[Value]| {
        assert_eq!(named(lines, "queue", &names.commands), commands, "{lines:#?}");
        let parked = named(lines, "queue", &names.parked);
        // Of a queue of another type 3.10 compares nothing more.
        assert!(parked.iter().any(|one| one.starts_with("x-queue-type ")), "{parked:?}");
        let results = named(lines, "exchange", &names.results);
        let wanted = format!("alternate-exchange none {}", names.unrouted);
        assert_eq!(results, [wanted, "durable false true".to_owned(), "type fanout topic".to_owned()]);
    };
    let before = place.lines(&["topology", "verify", "--json"], 4);
    check(&before);
    let missing = |lines: &[Value]| lines.iter().filter(|line| line["standing"] == "missing").count();
    assert_eq!(missing(&before), 14, "five exchanges, four queues and five delay queues: {before:#?}");
    assert_eq!(missing(&place.lines(&["topology", "verify", "--json"], 4)), 14, "verify makes nothing");
    let text = place.run(&["topology", "verify"], 4);
    let line = format!("DIFFERS  queue {}: x-delivery-limit is 5, must be 20", names.commands);
    assert!(text.lines().any(|one| one == line), "{text}");
    assert!(text.contains("remedy for what differs"), "{text}");

    let applied = place.lines(&["topology", "apply", "--json"], 4);
    check(&applied);
    assert_eq!(
        applied.iter().filter(|line| line["standing"] == "made" && line["object"] != "binding").count(),
        14
    );
    let after = place.lines(&["topology", "verify", "--json"], 4);
    check(&after);
    assert_eq!(missing(&after), 0);
    let got = channel.basic_get(names.parked.as_str().into(), BasicGetOptions::default()).await.unwrap();
    assert_eq!(got.unwrap().delivery.data, b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_version_differences_and_permissions() {
    let node = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    let mut place = Place::new(node.uri(), "check");
    let names = place.config.broker.names.clone();
    // Without keys the check always fails; only what it says of the broker is looked at.
    let details = |place: &Place, what: &str, gravity: &str| -> Vec<String> {
        let lines = place.lines(&["check", "--json"], 4);
        let meant = lines.iter().filter(|line| line["what"] == what && line["gravity"] == gravity);
        meant.map(|line| line["detail"].as_str().unwrap().to_owned()).collect()
    };
    let missing = details(&place, "topology", "warning");
    // One finding for what one command makes.
    assert!(missing.len() == 1 && missing[0].starts_with("17 of 27 "), "{missing:#?}");
    assert_eq!(details(&place, "topology", "fault"), Vec::<String>::new());
    place.config.broker.topology = "verify".to_owned();
    place.write();
    assert_eq!(details(&place, "topology", "fault"), missing, "and nobody will");
    place.run(&["topology", "apply"], 0);
    assert_eq!(details(&place, "topology", "ok").len(), 1);
    assert_eq!(details(&place, "permissions", "ok").len(), 1);
    let version = details(&place, "broker version", "ok");
    assert!(version[0].starts_with(['3', '4']), "{version:?}");
    let (_connection, channel) = channel(node.uri()).await;
    for queue in [&names.commands, &names.parked, &names.unrouted] {
        let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap();
        assert!(got.is_none(), "the tries have left something in {queue}");
    }

    // A user who may look at everything, and publish nothing but results.
    node.ctl(&["add_user", "poor", "poor"]);
    let write = format!("^{}$", names.results.replace('.', "\\."));
    node.ctl(&["set_permissions", "poor", "^$", &write, ".*"]);
    let (_, address) = node.uri().split_once('@').unwrap();
    let mut poor = Place::new(&format!("amqp://poor:poor@{address}"), "check");
    poor.config.broker.topology = "verify".to_owned();
    poor.write();
    let lacking = details(&poor, "permissions", "fault");
    assert_eq!(lacking.len(), 3, "{lacking:#?}");
    let console = details(&poor, "permissions", "warning");
    assert_eq!(console.len(), 2, "{console:#?}");
    for may_not in [
        format!("may not publish to {}:", names.commands),
        format!("may not configure {}.lock,", names.parked),
    ] {
        assert!(console.iter().any(|one| one.contains(&may_not)), "{console:#?}");
    }
    for name in [&names.retry, &names.parked, &"amq.default".to_owned()] {
        assert!(
            lacking.iter().any(|one| one.contains(&format!("may not publish to {name}:"))),
            "{lacking:#?}"
        );
    }
    let unseen = details(&poor, "topology", "warning");
    assert_eq!(unseen.len(), 17, "{unseen:#?}");
    node.ctl(&["set_permissions", "poor", ".*", ".*", "^$"]);
    let lacking = details(&poor, "permissions", "fault");
    assert_eq!(lacking.len(), 3, "{lacking:#?}");
    for name in [&names.commands, &names.dead, &names.instances] {
        assert!(lacking.iter().any(|one| one.contains(&format!("may not consume {name}:"))), "{lacking:#?}");
    }

    poor.config.broker.delivery_limit = 7;
    poor.write();
    let differs = details(&poor, "topology", "fault");
    assert_eq!(differs, [format!("queue {}: x-delivery-limit is 20, must be 7", names.commands)]);
    tokio::task::spawn_blocking(move || drop(node)).await.unwrap();
}
