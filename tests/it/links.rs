//! The links: TLS to the broker and to the payment API, and the least that the broker's user must be allowed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use crate::authority::Authority;
use crate::broker;
use crate::broker::{Broker, unused_dir};
use crate::programs;
use crate::programs::{Programs, command, err, out, run};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind};
use serde_json::Value;

/// What check says is at fault with this environment: details and remedies.
fn faults(programs: &Programs, environment: &[(&str, &str)]) -> Vec<String> {
    let output = run(programs.command(&["check", "--json"]).envs(environment.iter().copied()));
    let findings = out(&output);
    let findings = findings.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let faults: Vec<_> = findings
        .filter(|finding| finding["gravity"] == "fault")
        .map(|finding| format!("{}: {}; remedy: {}", finding["what"], finding["detail"], finding["remedy"]))
        .collect();
    match (output.status.code(), faults.len()) {
        // With 3 where the configuration itself is at fault, so that nothing else is looked at.
        (Some(0), 0) | (Some(3 | 4), 1..) => faults,
        other => panic!("{other:?}: {faults:#?}\n{}", err(&output)),
    }
}

#[test]
fn amqps_checks_the_ca_the_host_name_and_shows_a_certificate() {
    let dir = unused_dir();
    let (ours, theirs) = (Authority::new(&dir.join("ours")), Authority::new(&dir.join("theirs")));
    ours.sign("server", "DNS:localhost", "serverAuth");
    ours.sign("client", "DNS:redeemer", "clientAuth");
    theirs.sign("client", "DNS:redeemer", "clientAuth");
    let broker = Broker::start_as(&["--tls", &ours.dir.display().to_string()]);
    let mut programs = Programs::start(broker.uri());
    programs.stop_service();

    let uri = broker.amqps("localhost");
    let (ca, certificate, key) = (ours.path("ca.pem"), ours.path("client.pem"), ours.path("client.key"));
    let right = [
        ("REDEEMER_BROKER__URI", uri.as_str()),
        ("REDEEMER_BROKER__CA_FILE", &ca),
        ("REDEEMER_BROKER__CLIENT_CERTIFICATE_FILE", &certificate),
        ("REDEEMER_BROKER__CLIENT_KEY_FILE", &key),
    ];
    assert_eq!(faults(&programs, &right), Vec::<String>::new());
    // The whole way: a command goes in and its result comes back over TLS.
    let address = programs.file("tls.address", b"");
    let mut service = programs.command(&["run", "--with-parent", "--admin-address-file"]);
    service.arg(&address).env("REDEEMER_WECHAT__RELOAD_EVERY", "100ms");
    let mut service = service.envs(right).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let text = command("tls").to_string();
    let mut publishing = programs.command(&["publish", "--wait", "--expect", "redeemed", &text]);
    let output = run(publishing.envs(right));
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    // Files of the connection that break while it lasts: a warning at once, for the next one would fail.
    let admin = fs::read_to_string(&address).unwrap();
    let failing = |count: u32| {
        let wanted = format!("\nredeemer_key_files_failing {count}\n");
        programs::until(&format!("{count} files fail"), || {
            programs::get(&admin, "/metrics").filter(|metrics| metrics.contains(&wanted))
        });
    };
    failing(0);
    let contents = [&ca, &certificate, &key].map(|file| (file, fs::read(file).unwrap()));
    let [(_, authority), (_, shown), _] = &contents;
    for (file, content, mode) in [
        (&ca, &b""[..], 0o600),
        (&ca, &authority[..400], 0o600),
        (&certificate, b"see the wiki\n", 0o600),
        (&key, shown, 0o600),
        (&key, b"", 0o600),
        (&key, &contents[2].1, 0o644),
    ] {
        fs::write(file, content).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        failing(1);
        let ready = programs::get(&admin, "/readyz").unwrap();
        assert!(ready.starts_with("HTTP/1.1 200"), "{file}: {ready}");
        for (file, content) in &contents {
            fs::write(file, content).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        failing(0);
    }
    programs::terminate(&service);
    assert_eq!(programs::ended(&mut service).code(), Some(0));

    // Each thing that is wrong is refused, and reported with the key that fixes it.
    let (their_ca, their_certificate, their_key) =
        (theirs.path("ca.pem"), theirs.path("client.pem"), theirs.path("client.key"));
    let by_address = broker.amqps("127.0.0.1");
    let plain = broker.uri().replace("amqp://", "amqps://");
    for (changed, wanted) in [
        (vec![("REDEEMER_BROKER__CA_FILE", "")], "set broker.ca_file to the CA"),
        (vec![("REDEEMER_BROKER__CA_FILE", their_ca.as_str())], "set broker.ca_file to the CA"),
        (vec![("REDEEMER_BROKER__URI", by_address.as_str())], "is for another host name"),
        (
            vec![("REDEEMER_BROKER__CLIENT_CERTIFICATE_FILE", ""), ("REDEEMER_BROKER__CLIENT_KEY_FILE", "")],
            "set broker.client_certificate_file and broker.client_key_file",
        ),
        (
            vec![
                ("REDEEMER_BROKER__CLIENT_CERTIFICATE_FILE", their_certificate.as_str()),
                ("REDEEMER_BROKER__CLIENT_KEY_FILE", their_key.as_str()),
            ],
            "have broker.client_certificate_file signed by a CA that it trusts",
        ),
        (
            vec![("REDEEMER_BROKER__CLIENT_KEY_FILE", their_key.as_str())],
            "our certificate and its key are not a pair",
        ),
        (vec![("REDEEMER_BROKER__CLIENT_KEY_FILE", "")], "must be set together"),
        (
            vec![("REDEEMER_BROKER__CA_FILE", "/nowhere/ca.pem")],
            "broker.ca_file: cannot read /nowhere/ca.pem",
        ),
        (vec![("REDEEMER_BROKER__CA_FILE", key.as_str())], "holds a private key; an X.509 certificate"),
        (vec![("REDEEMER_BROKER__URI", plain.as_str())], "is the port of broker.uri the one for amqps?"),
    ] {
        let environment: Vec<_> = right.into_iter().chain(changed.iter().copied()).collect();
        let reported = faults(&programs, &environment);
        assert!(
            reported.iter().any(|fault| fault.contains(wanted)),
            "{changed:?}: no {wanted:?} in {reported:#?}"
        );
        assert!(!reported.iter().any(|fault| fault.contains(broker.password())), "{reported:#?}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let reported = faults(&programs, &right);
    assert!(
        reported[0].contains("broker.client_key_file") && reported[0].contains("can be read by others"),
        "{reported:#?}"
    );
    drop(broker);
    let _ = fs::remove_dir_all(dir);
}

/// An `openssl s_server` that speaks one version of TLS; ended when it is dropped.
struct Server(Child, u16);

impl Server {
    fn start(authority: &Authority, version: &str, ciphers: &str) -> Option<Self> {
        let mut child = Command::new("openssl")
            .current_dir(&authority.dir)
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-key", "server.key", "-www"])
            .args([version, "-cipher", ciphers])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It reports its port, or ends if this version is not built in.
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.parse().ok());
        std::thread::spawn(move || lines.for_each(drop));
        let mut server = Self(child, 0);
        server.1 = port?;
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The payment API is called over TLS 1.2 or later. The client trusts the system's CAs alone, here a file of its own.
#[test]
fn the_payment_api_is_not_called_over_an_old_tls() {
    let dir = unused_dir();
    let ours = Authority::new(&dir);
    ours.sign("server", "DNS:localhost", "serverAuth");
    let programs = Programs::start(broker::shared().uri());
    let ca = ours.path("ca.pem");
    let reported = |server: &Server| -> String {
        let base_url = format!("https://localhost:{}", server.1);
        let environment = [("REDEEMER_WECHAT__BASE_URL", base_url.as_str()), ("SSL_CERT_FILE", &ca)];
        let reported = faults(&programs, &environment);
        reported.into_iter().find(|fault| fault.starts_with("\"payment API\"")).unwrap_or_default()
    };
    // A server that speaks 1.2 is heard: what it says is no answer of the payment API, but TLS came about.
    let heard = reported(&Server::start(&ours, "-tls1_2", "DEFAULT").unwrap());
    assert!(heard.contains("responded"), "{heard}");
    let old = Server::start(&ours, "-tls1_1", "DEFAULT@SECLEVEL=0").expect("this openssl speaks TLS 1.1");
    let mut client = Command::new("openssl");
    client.args(["s_client", "-connect", &format!("localhost:{}", old.1), "-tls1_1", "-cipher"]);
    let spoken = client.arg("DEFAULT@SECLEVEL=0").stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&spoken.stdout).contains("TLSv1.1"), "it speaks 1.1 with who does");
    let refused = reported(&old);
    assert!(refused.contains("does not respond") && refused.contains("rotocol"), "{refused}");
    drop(old);
    let _ = fs::remove_dir_all(dir);
}

/// What `docs/operations.md` says that a user must be allowed: whose row begins so, with this word in its first cell.
fn documented(user: &str, word: &str) -> [String; 3] {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let user = format!("| {user}");
    let row = page.lines().find(|line| {
        line.starts_with(&user) && line.split('|').nth(1).is_some_and(|first| first.contains(word))
    });
    let row = row.unwrap_or_else(|| panic!("no row for {user}, {word}")).replace("\\|", "\u{1}");
    let cells: Vec<_> = row.split('|').skip(2).take(3).collect();
    let pattern = |cell: &str| cell.trim().trim_matches('`').replace('\u{1}', "|");
    [pattern(cells[0]), pattern(cells[1]), pattern(cells[2])]
}

#[test]
fn the_least_permissions_suffice_and_one_less_is_reported() {
    let broker = Broker::start();
    let mut programs = Programs::start(broker.uri());
    programs.stop_service();
    let prefix = programs.prefix.clone();
    broker.ctl(&["add_user", "least", "geheim"]);
    let uri = broker.uri_of("least", "geheim");
    let allow = |patterns: &[&str; 3]| {
        broker.ctl(&["set_permissions", "least", patterns[0], patterns[1], patterns[2]]);
    };
    for (nth, mode) in ["create", "verify", "off"].into_iter().enumerate() {
        // The page speaks of the default names; ours begin with something else.
        let documented = documented("service, `broker.topology` is ", &format!("`{mode}`"));
        let documented = documented.map(|pattern| pattern.replace("redemption", &prefix));
        let [configure, write, read] = documented.each_ref().map(String::as_str);
        let environment = [("REDEEMER_BROKER__URI", uri.as_str()), ("REDEEMER_BROKER__TOPOLOGY", mode)];
        if mode == "create" {
            // From nothing: it makes everything by itself.
            for object in [
                "commands",
                "parked",
                "parked.audit",
                "unrouted",
                "dead",
                "instances",
                "retry.10s",
                "retry.1m",
                "retry.5m",
                "retry.30m",
                "retry.2h",
            ] {
                broker.ctl(&["delete_queue", &format!("{prefix}.{object}")]);
            }
        }
        allow(&[configure, write, read]);
        let address = programs.file(&format!("{mode}.address"), b"");
        fs::remove_file(&address).unwrap();
        let mut service = programs.command(&["run", "--with-parent", "--admin-address-file"]);
        service.arg(&address).envs(environment).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut service = service.spawn().unwrap();
        let text = command(&format!("least_{nth}")).to_string();
        programs::until("the service is ready", || {
            let address = fs::read_to_string(&address).ok()?;
            programs::get(&address, "/readyz").filter(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        let output = run(&mut programs.command(&["publish", "--wait", "--expect", "redeemed", &text]));
        assert_eq!(output.status.code(), Some(0), "{mode}: {}", err(&output));
        // It sets aside what is no command: parking is among the rights.
        let output = run(&mut programs.command(&["publish", "--wait", "{}"]));
        assert_eq!(output.status.code(), Some(0), "{mode}: {}", err(&output));
        programs::terminate(&service);
        assert_eq!(programs::ended(&mut service).code(), Some(0));
        assert_eq!(faults(&programs, &environment), Vec::<String>::new(), "{mode}");

        // One right less, each in turn.
        let without = |name: &str| write.replace(name, "nothing");
        let no_default = without("amq\\.default");
        let mut less = vec![
            ([configure, &no_default, read], "may not publish to amq.default"),
            ([configure, "^amq\\.default$", read], "may not publish to"),
            ([configure, write, "^$"], "may not consume"),
        ];
        // Where it makes nothing it has no right to: none exists to take away.
        match mode {
            "create" => less.push((["^$", write, read], "may not declare")),
            _ => assert_eq!(configure, "^$"),
        }
        for (patterns, part) in less {
            allow(&patterns);
            let reported = faults(&programs, &environment);
            assert!(reported.iter().any(|fault| fault.contains(part)), "{mode} {patterns:?}: {reported:#?}");
            // The remedy is a command, and it is one.
            let remedy =
                reported.iter().map(|fault| fault.split_once("remedy: ").unwrap().1.trim_matches('"'));
            let remedy: BTreeSet<_> = remedy.map(|text| text.replace("\\\\", "\\")).collect();
            assert_eq!(remedy.len(), 1, "{remedy:#?}");
            let remedy = remedy.into_iter().next().unwrap();
            let words: Vec<_> = remedy.split('\'').collect();
            assert_eq!((words[0], words[3]), ("rabbitmqctl set_permissions -p ", "least"), "{remedy}");
            assert_eq!([words[5], words[7], words[9]], [configure, write, read], "check and page agree");
            allow(&[words[5], words[7], words[9]]);
            assert_eq!(faults(&programs, &environment), Vec::<String>::new(), "{mode}: {remedy}");
        }
        if mode != "create" {
            for name in ["results", "retry", "parked"] {
                let write = without(name);
                allow(&[configure, &write, read]);
                let reported = faults(&programs, &environment);
                let wanted = format!("may not publish to {prefix}.{name}");
                assert!(reported.iter().any(|fault| fault.contains(&wanted)), "{write}: {reported:#?}");
            }
        }
    }
}

/// A subscriber with a queue of its own below `till.`, from nothing to its first delivery.
async fn subscribe(channel: &Channel) -> lapin::Result<lapin::Consumer> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(1_000_000));
    let (queue, options) = ("till.results", QueueDeclareOptions { durable: true, ..Default::default() });
    channel.queue_declare(queue.into(), options, arguments).await?;
    let (results, all, none) = ("redemption.results", "redemption.#", FieldTable::default());
    channel.queue_bind(queue.into(), results.into(), all.into(), QueueBindOptions::default(), none).await?;
    let none = FieldTable::default();
    channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), none).await
}

async fn look(channel: &Channel, passive: bool) -> lapin::Result<lapin::Queue> {
    let options = QueueDeclareOptions { durable: true, passive, ..Default::default() };
    channel.queue_declare("redemption.commands".into(), options, FieldTable::default()).await
}

async fn channel(uri: &str) -> Channel {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
    connection.create_channel().await.unwrap()
}

#[track_caller]
fn assert_forbidden<T>(tried: lapin::Result<T>, what: &str) {
    let error = tried.err().unwrap_or_else(|| panic!("{what}: allowed"));
    assert!(
        matches!(error.kind(), ErrorKind::ProtocolError(fault) if fault.get_id() == 403),
        "{what}: {error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_permissions_suffice_for_each_user() {
    let broker = Broker::start();
    // The page speaks of the names that everybody has by default.
    let programs = Programs::start_by_default_names(broker.uri());
    let uri = |user: &str| broker.uri_of(user, "geheim");
    let allow = |user: &str, patterns: [&str; 3]| {
        broker.ctl(&["set_permissions", user, patterns[0], patterns[1], patterns[2]]);
    };
    for user in ["order", "till", "scaler"] {
        broker.ctl(&["add_user", user, "geheim"]);
    }
    let publish = |name: &str| {
        let text = command(name).to_string();
        run(programs.command(&["publish", &text]).env("REDEEMER_BROKER__URI", uri("order")))
    };

    let row = documented("subscriber", "`till.`");
    let [configure, write, read] = row.each_ref().map(String::as_str);
    allow("till", [configure, write, read]);
    let till = channel(&uri("till")).await;
    let mut events = subscribe(&till).await.unwrap();

    let row = documented("order service", "order service");
    allow("order", row.each_ref().map(String::as_str));
    let output = publish("by_right");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let event = events.next().await.unwrap().unwrap();
    assert_eq!(event.routing_key.as_str(), "redemption.redeemed.120344");
    event.ack(BasicAckOptions::default()).await.unwrap();

    allow("order", ["^$", "^$", "^$"]);
    let output = publish("by_no_right");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("ACCESS_REFUSED"), "{}", err(&output));
    for less in [
        ["^$", write, read],
        [configure, "^$", read],
        [configure, write, "^till\\."],
        [configure, write, "^redemption\\.results$"],
    ] {
        allow("till", less);
        let till = channel(&uri("till")).await;
        assert_forbidden(subscribe(&till).await, &format!("{less:?}"));
    }

    let row = documented("KEDA's scaler", "KEDA");
    allow("scaler", row.each_ref().map(String::as_str));
    let scaler = channel(&uri("scaler")).await;
    assert_eq!(look(&scaler, true).await.unwrap().message_count(), 0);
    assert_forbidden(look(&scaler, false).await, "the scaler makes nothing");
}

/// What a results subscriber with the rights of the page may not do.
#[tokio::test(flavor = "multi_thread")]
async fn subscriber_can_neither_publish_nor_read_beyond_its_queues() {
    let broker = Broker::start();
    let _programs = Programs::start_by_default_names(broker.uri());
    let row = documented("subscriber", "`till.`");
    broker.ctl(&["add_user", "till", "geheim"]);
    broker.ctl(&["set_permissions", "till", &row[0], &row[1], &row[2]]);
    let uri = broker.uri_of("till", "geheim");
    for exchange in ["redemption.commands", "redemption.results", "redemption.retry", "redemption.parked", ""]
    {
        let till = channel(&uri).await;
        till.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let (key, options) = ("redemption.redeemed.120344".into(), BasicPublishOptions::default());
        let sent = till.basic_publish(exchange.into(), key, options, b"{}", BasicProperties::default()).await;
        let confirmed = match sent {
            Ok(confirm) => confirm.await.map(drop),
            Err(error) => Err(error),
        };
        assert_forbidden(confirmed, &format!("publish to {exchange:?}"));
    }
    for queue in ["commands", "parked", "parked.audit", "unrouted", "dead", "instances", "retry.10s"] {
        let queue = format!("redemption.{queue}");
        let got = channel(&uri).await.basic_get(queue.as_str().into(), BasicGetOptions::default()).await;
        assert_forbidden(got, &format!("read {queue}"));
        let none = FieldTable::default();
        let options = BasicConsumeOptions::default();
        let consuming =
            channel(&uri).await.basic_consume(queue.as_str().into(), "".into(), options, none).await;
        assert_forbidden(consuming, &format!("consume {queue}"));
    }
}
