//! The examples for others, run as they stand: each language publishes the golden commands and receives their events,
//! on a real broker, beside the real service and the sandbox, under the names that everybody has by default.
//!
//! `make test-contract` installs what they need. A runtime that is missing is a failure, not a pass.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/broker.rs"]
mod broker;
#[path = "support/programs.rs"]
mod programs;
#[path = "examples/reading.rs"]
mod reading;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

use authority::Authority;
use broker::Broker;
use programs::{Programs, post, run, until, unused_dir};

const PATIENCE: Duration = Duration::from_secs(60);

const LANGUAGES: [&str; 5] = ["python", "node", "php", "java", "go"];

/// Whose outcome, and so whose id, the golden events contain.
const GOLDEN: [(&str, &str); 3] = [
    ("command.nested.json", "event.redeemed.json"),
    ("command.pay-score.json", "event.refused.json"),
    ("command.invalid.json", "event.invalid.json"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn golden(name: &str) -> PathBuf {
    root().join("docs/contract/examples").join(name)
}

/// What `deploy/local/node-packages` has installed.
fn node_packages() -> PathBuf {
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/contract/node_modules");
    assert!(packages.is_dir(), "run deploy/local/node-packages first, or make test-contract");
    packages
}

/// The program of an example, ready to be started in `dir`.
fn example(language: &str, name: &str, dir: &Path) -> Command {
    let folder = root().join("docs/examples").join(language);
    let mut command = match language {
        // Debian's own: an interpreter found earlier on PATH does not have Debian's packages.
        "python" => Command::new("/usr/bin/python3"),
        "node" => Command::new("node"),
        "php" => Command::new("php"),
        "java" => Command::new("java"),
        "go" => Command::new(built(&folder.join(format!("{name}.go")), dir)),
        other => panic!("{other}"),
    };
    match language {
        "python" => command.arg(folder.join(format!("{name}.py"))),
        "node" => command.arg(folder.join(format!("{name}.js"))).env("NODE_PATH", node_packages()),
        "php" => command.arg(folder.join(format!("{name}.php"))),
        "java" => {
            let class = name[..1].to_uppercase() + &name[1..];
            command.args(["-cp", &java_classes()]).arg(folder.join(format!("{class}.java")))
        }
        _ => &mut command,
    };
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// Debian's jars: the AMQP client, and what reads JSON.
fn java_classes() -> String {
    let jars = ["amqp-client", "slf4j-api", "jackson-databind", "jackson-core", "jackson-annotations"];
    jars.map(|jar| format!("/usr/share/java/{jar}.jar")).join(":")
}

/// Go's programs are built first: `go run` would not hand on a signal.
fn built(source: &Path, dir: &Path) -> PathBuf {
    let program = dir.join(source.file_stem().unwrap());
    if !program.exists() {
        let mut build = Command::new("go");
        build.arg("build").arg("-o").arg(&program).arg(source);
        if source.ends_with("subscribe.go") {
            build.arg(source.with_file_name("coupon.go"));
        }
        // Debian's packages stand in a workspace of the older kind.
        build.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode").env("GOFLAGS", "");
        build.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/go"));
        let output = run(&mut build);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    program
}

/// A subscriber that runs, and its lines.
struct Subscriber {
    child: Child,
    lines: Receiver<String>,
}

impl Subscriber {
    fn start(language: &str, dir: &Path, uri: &str) -> Self {
        let mut child =
            example(language, "subscribe", dir).env("AMQP_URI", uri).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let subscriber = Self { child, lines };
        assert_eq!(subscriber.line(), "waiting", "{language}");
        subscriber
    }

    fn line(&self) -> String {
        without_time(self.lines.recv_timeout(PATIENCE).expect("the subscriber goes on"))
    }

    fn lines(&self, count: usize) -> BTreeSet<String> {
        let lines: Vec<_> = (0..count).map(|_| self.line()).collect();
        let set: BTreeSet<_> = lines.iter().cloned().collect();
        assert_eq!(set.len(), lines.len(), "{lines:?}");
        set
    }
}

impl Drop for Subscriber {
    /// As hard as it can be: what it has not acknowledged comes again.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a publisher to its end. One that goes on for too long is ended, and so has failed.
fn ended(publisher: &mut Command) -> Output {
    let mut child = publisher.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let give_up_at = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > give_up_at {
            child.kill().unwrap();
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn publish(language: &str, dir: &Path, uri: &str, files: &[&str]) -> Output {
    ended(example(language, "publish", dir).env("AMQP_URI", uri).args(files.iter().map(|name| golden(name))))
}

fn publish_well(language: &str, dir: &Path, uri: &str, files: &[&str]) {
    let output = publish(language, dir, uri, files);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{language}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let wanted: Vec<_> = files.iter().map(|name| format!("confirmed {}", golden(name).display())).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted, "{language}");
}

/// What a subscriber says of the event of a golden command: the golden event's type and id, and what the coupon of the
/// sandbox says, of which only the end is not known beforehand.
fn said(word: &str, command: &str, event: &str) -> String {
    let answers = match event {
        "event.redeemed.json" => {
            "used yes by 34657_20250101_123456 when 2025-07-24T00:00:00+08:00 saved - left 2 until TIME"
        }
        "event.refused.json" => "used no by - when - saved - left 0 until TIME",
        _ => "used no by - when - saved - left - until -",
    };
    let event: Value = serde_json::from_slice(&fs::read(golden(event)).unwrap()).unwrap();
    let (kind, id) = (event["type"].as_str().unwrap(), event["id"].as_str().unwrap());
    format!("{word} {kind} {id} {command} {answers}")
}

/// A line with `TIME` in the place of a time of day in China.
fn without_time(line: String) -> String {
    match line.rsplit_once(' ') {
        Some((rest, time)) if time.ends_with("+08:00") && time.parse::<jiff::Timestamp>().is_ok() => {
            format!("{rest} TIME")
        }
        _ => line,
    }
}

/// Virtual hosts in which a command cannot be taken: without any queue, and with one that is full.
async fn hosts_that_take_nothing(broker: &Broker) -> [(&'static str, String); 2] {
    let user = broker.uri().trim_start_matches("amqp://").split(':').next().unwrap();
    let mut uris = ["no queue", "a full queue"].map(|what| (what, String::new()));
    for (nth, (_, uri)) in uris.iter_mut().enumerate() {
        let name = format!("takes_nothing_{nth}");
        broker.ctl(&["add_vhost", &name]);
        broker.ctl(&["set_permissions", "-p", &name, user, ".*", ".*", ".*"]);
        *uri = broker.uri().replace("%2f", &name);
        assert!(uri.ends_with(&name), "{uri}");
        let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let (exchange, durable) = ("redemption.commands", true);
        let options = ExchangeDeclareOptions { durable, ..Default::default() };
        channel
            .exchange_declare(exchange.into(), ExchangeKind::Topic, options, FieldTable::default())
            .await
            .unwrap();
        if nth == 1 {
            let mut full = FieldTable::default();
            full.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
            full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            let options = QueueDeclareOptions { durable, ..Default::default() };
            channel.queue_declare("full".into(), options, full).await.unwrap();
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind("full".into(), exchange.into(), "#".into(), options, none).await.unwrap();
        }
        connection.close(200, "done".into()).await.unwrap();
    }
    uris
}

#[test]
fn every_example_does_what_it_says() {
    let broker = Broker::start_counting();
    let programs = Programs::start_by_default_names(broker.uri());
    let coupon = |code: &str, product: &str, more: Value| {
        let mut coupon = json!({
            "openid": "oh-394z-6CGkNoJrsDLTTUKiAnp4", "coupon_code": code, "appid": "wx233544546545989",
            "brand_id": "120344", "product_coupon_id": product, "stock_id": format!("{product}001"),
        });
        coupon.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        coupon
    };
    let coupons = json!([
        coupon("123446565767", "1000000013", json!({"usage_mode": "SEQUENTIAL"})),
        coupon("123446565768", "1000000014", json!({"state": "EXPIRED"})),
    ]);
    let sandbox = programs.base_url.trim_start_matches("http://");
    let issued = post(sandbox, "/_sandbox/coupons", &coupons).unwrap();
    assert!(issued.contains("\"issued\":2"), "{issued}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let closed = runtime.block_on(hosts_that_take_nothing(&broker));

    for language in LANGUAGES {
        let dir = unused_dir(language);
        let subscriber = Subscriber::start(language, &dir, broker.uri());
        let commands = GOLDEN.map(|(command, _)| command);
        publish_well(language, &dir, broker.uri(), &commands);
        let new = GOLDEN.map(|(command, event)| said("new", command, event));
        assert_eq!(subscriber.lines(3), BTreeSet::from(new), "{language}");

        // The same command again is the same result.
        let repeat = |command: &str| said("repeat", command, "event.redeemed.json");
        publish_well(language, &dir, broker.uri(), &["command.nested.json"]);
        assert_eq!(subscriber.line(), repeat("command.nested.json"), "{language}");
        // Everything is acknowledged, so nothing of it comes again.
        let queue = format!("orders.{language}");
        until("everything is acknowledged", || {
            let queues = broker.ctl(&["list_queues", "--quiet", "--no-table-headers", "name", "messages"]);
            queues.lines().any(|line| line.split_whitespace().eq([queue.as_str(), "0"])).then_some(())
        });

        // Nothing is lost while the subscriber is away, and it remembers what it had.
        drop(subscriber);
        publish_well(language, &dir, broker.uri(), &["command.nested.json", "command.flat.json"]);
        let subscriber = Subscriber::start(language, &dir, broker.uri());
        let wanted = ["command.nested.json", "command.flat.json"].map(repeat);
        assert_eq!(subscriber.lines(2), BTreeSet::from(wanted), "{language}");

        // A command that the broker does not take is not called confirmed.
        for (what, uri) in &closed {
            let output = publish(language, &dir, uri, &["command.nested.json"]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{language}, {what}: {text}{complaints}");
            assert!(
                text.starts_with("NOT taken ") && !text.contains("confirmed"),
                "{language}, {what}: {text}"
            );
        }
        drop(subscriber);
        fs::remove_dir_all(dir).unwrap();
        eprintln!("{language}: publisher and subscriber were run");
    }
}

/// Publishes events as the service does.
async fn publish_events(broker: &Broker, cases: &[reading::Case]) {
    let connection = Connection::connect(broker.uri(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for (nth, (_, event, _)) in cases.iter().enumerate() {
        let kind = event["type"].as_str().unwrap();
        let properties = BasicProperties::default()
            .with_type(kind.into())
            .with_message_id(event["id"].as_str().unwrap().into())
            .with_correlation_id(format!("case_{nth}").into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let body = event.to_string();
        let published = channel.basic_publish(
            "redemption.results".into(),
            kind.into(),
            options,
            body.as_bytes(),
            properties,
        );
        assert!(published.await.unwrap().await.unwrap().is_ack());
    }
    connection.close(200, "done".into()).await.unwrap();
}

/// Every subscriber says of each coupon what docs/coupon.md says, and survives every type in the place of another.
#[test]
fn every_subscriber_answers_by_the_coupon_page() {
    let broker = Broker::start_counting();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let connection = Connection::connect(broker.uri(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (name, none) = ("redemption.results".into(), FieldTable::default());
        channel.exchange_declare(name, ExchangeKind::Topic, options, none).await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
    });
    let mut cases = reading::cases();
    cases.extend(reading::mistyped());
    // Each is an event of its own.
    for (nth, (_, event, _)) in cases.iter_mut().enumerate() {
        event["id"] = json!(format!("00000000-0000-5000-8000-{nth:012}"));
    }
    for language in LANGUAGES {
        let dir = unused_dir(language);
        let subscriber = Subscriber::start(language, &dir, broker.uri());
        runtime.block_on(publish_events(&broker, &cases));
        for (nth, (name, event, answers)) in cases.iter().enumerate() {
            let (kind, id) = (event["type"].as_str().unwrap(), event["id"].as_str().unwrap());
            let expected = format!("new {kind} {id} case_{nth} {answers}");
            assert_eq!(subscriber.line(), without_time(expected), "{language}: {name}");
        }
        drop(subscriber);
        fs::remove_dir_all(dir).unwrap();
        let queue = format!("orders.{language}");
        broker.ctl(&["delete_queue", &queue]);
        eprintln!("{language}: {} events were read", cases.len());
    }
}

/// Over TLS a publisher takes a broker whose certificate is of a CA that it trusts, and names the host; no other.
#[test]
fn every_publisher_believes_only_the_right_broker_over_tls() {
    let dir = unused_dir("tls");
    let ours = Authority::new(&dir.join("authority"));
    ours.sign("server", "DNS:localhost", "serverAuth");
    let (folder, ca, store) = (ours.dir.display().to_string(), ours.path("ca.pem"), ours.path("trust.p12"));
    let asks_nobody = "ssl_options.fail_if_no_peer_cert = false";
    let broker = Broker::start_as(&["--tls", &folder, "--config", asks_nobody]);
    let _programs = Programs::start_by_default_names(broker.uri());
    let mut keytool = Command::new("keytool");
    keytool.args(["-importcert", "-noprompt", "-alias", "ca", "-file", &ca, "-keystore", &store]);
    let made = run(keytool.args(["-storetype", "PKCS12", "-storepass", "changeit"]));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    let java = format!("-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStorePassword=changeit");
    for language in LANGUAGES {
        for (host, trusts, taken) in
            [("localhost", true, true), ("localhost", false, false), ("127.0.0.1", true, false)]
        {
            let mut publisher = example(language, "publish", &dir);
            publisher.arg(golden("command.nested.json")).env("AMQP_URI", broker.amqps(host));
            if trusts {
                // Python, PHP and Go; Node; Java.
                publisher.env("SSL_CERT_FILE", &ca).env("NODE_EXTRA_CA_CERTS", &ca);
                publisher.env("JAVA_TOOL_OPTIONS", &java);
            }
            let output = ended(&mut publisher);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            let what = format!("{language} at {host}, trusting: {trusts}: {text}{complaints}");
            assert_eq!((output.status.success(), text.contains("confirmed")), (taken, taken), "{what}");
        }
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn every_example_is_short_and_complete() {
    for language in LANGUAGES {
        let entries = fs::read_dir(root().join("docs/examples").join(language)).unwrap();
        let paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        // The reader of the coupon is a file of its own in Go.
        assert_eq!(paths.len(), if language == "go" { 3 } else { 2 }, "{paths:?}");
        for path in paths {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines < 120, "{}: {lines} lines", path.display());
        }
    }
    let folders = fs::read_dir(root().join("docs/examples")).unwrap();
    let folders = folders.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).count();
    assert_eq!(folders, LANGUAGES.len(), "a language is not run");
}

fn judged(document: &Value) -> Output {
    let dir = unused_dir("asyncapi");
    let file = dir.join("asyncapi.json");
    fs::write(&file, document.to_string()).unwrap();
    let script = root().join("tests/node/asyncapi.cjs");
    let output = run(Command::new("node").arg(script).arg(&file).env("NODE_PATH", node_packages()));
    fs::remove_dir_all(dir).unwrap();
    output
}

#[test]
fn asyncapi_parser_accepts_ours_and_rejects_a_broken_one() {
    let document: Value =
        serde_json::from_slice(&fs::read(root().join("docs/contract/asyncapi.json")).unwrap()).unwrap();
    let output = judged(&document);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // The parser reads all of it.
    let counts = ["channels", "operations"].map(|part| document[part].as_object().unwrap().len());
    let read = format!("AsyncAPI 3.0.0: {} channels, {} operations, ", counts[0], counts[1]);
    assert!(text.contains(&read), "{text}");
    for (pointer, value) in [
        ("/operations/send_result/channel/$ref", json!("#/channels/none")),
        ("/channels/results/bindings/amqp/exchange/type", json!("topics")),
        ("/channels/results/address", json!("redemption.{outcome}.{brand}")),
        ("/components/messages/result/payload/required", json!("everything")),
    ] {
        let mut broken = document.clone();
        *broken.pointer_mut(pointer).unwrap() = value;
        let output = judged(&broken);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && text.contains("error: /"), "{pointer}: {text}");
    }
}

// ---- schemas and types, with other tools

fn run_well(command: &mut Command) -> String {
    let output = run(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Judges golden messages by a schema of `docs/contract`, in Node.
fn validated(schema: &str, files: &[PathBuf]) -> Output {
    let mut node = Command::new("node");
    node.arg(root().join("tests/node/validate.cjs")).arg(root().join("docs/contract").join(schema));
    run(node.args(files).env("NODE_PATH", node_packages()))
}

/// The golden messages of a kind.
fn golden_of(kind: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs/contract/examples")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_of = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(kind);
    let mut paths: Vec<_> = paths.filter(is_of).collect();
    paths.sort();
    paths
}

#[test]
fn every_golden_message_keeps_its_schema_by_another_validator() {
    let invalid = golden("command.invalid.json");
    for (kind, schema, count) in [
        ("command.", "command", 3),
        ("event.", "event", 8),
        ("audit.", "audit", 2),
        ("console.", "console", 3),
    ] {
        let schema = format!("{schema}.schema.json");
        let mut files = golden_of(kind);
        files.retain(|file| *file != invalid);
        let output = validated(&schema, &files);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text, format!("{count} of {count}\n"));
    }
    let output = validated("command.schema.json", &[invalid]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));

    // What is open passes there, too; what is of another type than documented is seen.
    let dir = unused_dir("validator");
    let event = |name: &str, pointer: &str, value: Value| {
        let mut event: Value =
            serde_json::from_slice(&fs::read(golden("event.redeemed.single.json")).unwrap()).unwrap();
        *event.pointer_mut(pointer).unwrap() = value;
        let file = dir.join(name);
        fs::write(&file, event.to_string()).unwrap();
        file
    };
    let open = [
        event("word.json", "/data/coupon/send_channel", json!("A_NEW_WORD")),
        event("time.json", "/data/coupon/valid_end_time", json!("2026-03-30T23:59+08:00")),
        event("member.json", "/data/coupon/stock/single_usage_rule", json!({ "surprise": [1] })),
        event(
            "large.json",
            "/data/coupon/single_usage_detail/saved_amount",
            json!(9_007_199_254_740_993_u64),
        ),
        event("none.json", "/data/coupon", json!({ "coupon_code": "C", "coupon_state": "NEW" })),
    ];
    let output = validated("event.schema.json", &open);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "5 of 5\n");
    let broken = event("type.json", "/data/coupon/stock/stock_send_rule/max_count", json!("many"));
    assert_eq!(validated("event.schema.json", &[broken]).status.code(), Some(1));
    fs::remove_dir_all(dir).unwrap();
}

/// Writes the events of some cases into a folder; their files, in order.
fn written(cases: &[reading::Case], dir: &Path) -> Vec<PathBuf> {
    let write = |(nth, (_, event, _)): (usize, &reading::Case)| {
        let file = dir.join(format!("case-{nth}.json"));
        fs::write(&file, event.to_string()).unwrap();
        file
    };
    cases.iter().enumerate().map(write).collect()
}

#[test]
fn schema_accepts_each_case_and_no_mistyped_one() {
    let dir = unused_dir("cases");
    let output = validated("event.schema.json", &written(&reading::cases(), &dir));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = reading::cases().len();
    assert_eq!(text, format!("{count} of {count}\n"), "{}", String::from_utf8_lossy(&output.stderr));
    let mistyped = reading::mistyped();
    let output = validated("event.schema.json", &written(&mistyped, &dir));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The last one has the right type: a whole number, but more than 64 bits hold.
    assert_eq!(text.lines().last(), Some(format!("1 of {}", mistyped.len()).as_str()));
    fs::remove_dir_all(dir).unwrap();
}

/// Generates the types of an event in `dir`, puts the reader of `tests/types` beside them, and checks that it says what
/// it should once `build` has made a command of it.
fn read_by_types(reader: &str, build: impl FnOnce(&Path, &Path) -> Command) {
    let dir = unused_dir("types");
    fs::copy(root().join("tests/types").join(reader), dir.join(reader)).unwrap();
    let mut program = build(&dir, &root().join("docs/contract/event.schema.json"));
    let cases = reading::cases();
    let said = run_well(program.current_dir(&dir).args(written(&cases, &dir)));
    let said: Vec<_> = said.lines().collect();
    assert_eq!(said.len(), cases.len(), "{reader}: {said:?}");
    for ((name, _, answers), said) in cases.iter().zip(said) {
        assert_eq!(said, answers, "{reader}: {name}");
    }
    fs::remove_dir_all(dir).unwrap();
}

fn quicktype(dir: &Path, schema: &Path, file: &str, arguments: &[&str]) {
    let mut quicktype = Command::new("node");
    quicktype.arg(node_packages().join(".bin/quicktype")).args(["--src-lang", "schema"]);
    quicktype
        .args(["--top-level", "RedemptionEvent"])
        .args(arguments)
        .arg(schema)
        .arg("-o")
        .arg(dir.join(file));
    run_well(&mut quicktype);
}

#[test]
fn generated_typescript_types_read_the_golden_events() {
    read_by_types("read.ts", |dir, schema| {
        quicktype(dir, schema, "event.ts", &["--lang", "ts"]);
        let mut tsc = Command::new("node");
        tsc.arg(node_packages().join(".bin/tsc")).args(["--strict", "--noEmitOnError", "--ignoreConfig"]);
        run_well(
            tsc.args(["--target", "es2022", "--module", "commonjs", "event.ts", "read.ts"]).current_dir(dir),
        );
        let mut node = Command::new("node");
        node.arg("read.js");
        node
    });
}

#[test]
fn types_for_go_are_generated_and_read_the_golden_events() {
    read_by_types("read.go", |dir, schema| {
        quicktype(dir, schema, "event.go", &["--lang", "go", "--package", "main"]);
        let mut build = Command::new("go");
        build.args(["build", "-o", "read", "event.go", "read.go"]).current_dir(dir);
        build.env("GO111MODULE", "off").env("GOFLAGS", "");
        build.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/go"));
        run_well(&mut build);
        Command::new(dir.join("read"))
    });
}

#[test]
fn types_for_java_are_generated_and_read_the_golden_events() {
    read_by_types("Read.java", |dir, schema| {
        let events = dir.join("events");
        fs::create_dir(&events).unwrap();
        quicktype(&events, schema, "RedemptionEvent.java", &["--lang", "java", "--package", "events"]);
        // Debian's Jackson declares an exception more than the one that the generator writes for.
        let converter = events.join("Converter.java");
        let text = fs::read_to_string(&converter).unwrap();
        let declared = "obj) throws JsonProcessingException {";
        assert_eq!(text.matches(declared).count(), 1);
        fs::write(&converter, text.replace(declared, "obj) throws IOException {")).unwrap();
        let sources = fs::read_dir(&events).unwrap().map(|entry| entry.unwrap().path());
        let mut javac = Command::new("javac");
        javac.args(["-cp", &java_classes(), "-d", "out"]).args(sources).arg("Read.java").current_dir(dir);
        run_well(&mut javac);
        let mut java = Command::new("java");
        java.args(["-cp", &format!("{}:out", java_classes()), "Read"]);
        java
    });
}

#[test]
fn types_for_python_are_generated_and_read_the_golden_events() {
    read_by_types("read.py", |dir, schema| {
        let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/contract/venv/bin");
        assert!(tools.is_dir(), "run deploy/local/python-packages first, or make test-contract");
        let mut generator = Command::new(tools.join("datamodel-codegen"));
        generator.arg("--input").arg(schema).args([
            "--input-file-type",
            "jsonschema",
            "--formatters",
            "builtin",
        ]);
        generator.args(["--output-model-type", "typing.TypedDict", "--target-python-version", "3.11"]);
        run_well(generator.args(["--disable-timestamp", "--output", "event.py"]).current_dir(dir));
        let mut mypy = Command::new(tools.join("mypy"));
        run_well(mypy.args(["--strict", "--no-incremental", "event.py", "read.py"]).current_dir(dir));
        let mut python = Command::new(tools.join("python"));
        python.arg("read.py");
        python
    });
}
