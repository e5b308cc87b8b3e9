//! Messages that somebody wrote who may publish commands and means harm: too deep, too large, forged. The service lives,
//! the commands around them are redeemed, and what is shown of them harms nobody who looks.

#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;
#[path = "support/raw_amqp.rs"]
mod raw_amqp;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use bed::{Bed, OPENID, Service, command, until};
use broker::{Broker, shared};
use lapin::BasicProperties;
use raw_amqp::{Properties, Published, RawPublisher, nested};
use redeemer::telemetry::untrusted::is_hidden;
use redeemer::wechat::client::hex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Publishes to an exchange with headers that no client writes.
async fn publish_raw(bed: &Bed, exchange: &str, headers: Vec<u8>, body: Vec<u8>) -> Published {
    publish_with(bed, exchange, Properties { headers, ..Properties::default() }, body).await
}

/// The same with properties that no client writes.
async fn publish_with(bed: &Bed, exchange: &str, properties: Properties, body: Vec<u8>) -> Published {
    let (uri, exchange) = (bed.config.broker.uri.clone(), exchange.to_owned());
    let key = "redemption.redeemed.1";
    let publish = move || RawPublisher::connect(&uri).publish_with(&exchange, key, &properties, &body);
    tokio::task::spawn_blocking(publish).await.unwrap()
}

/// Headers that no client writes, and a text that is not UTF-8, each as a message among good ones.
fn undecodable() -> Vec<(&'static str, Properties)> {
    let with_headers = |headers| Properties { headers, ..Properties::default() };
    vec![
        ("arrays", with_headers(nested(b'A', 1_500))),
        ("tables", with_headers(nested(b'F', 2_000))),
        ("as deep as can be", with_headers(nested(b'A', 20_000))),
        ("a property of bytes", Properties { reply_to: Some(b"\xff\xfe".to_vec()), ..Properties::default() }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_headers_are_invalid_and_cost_no_session() {
    let mut bed = Bed::new().await;
    bed.leave_parked().await;
    let names = bed.config.broker.names.clone();
    let service = bed.start().await;
    let mut expected = BTreeSet::new();
    for (nth, (name, properties)) in undecodable().into_iter().enumerate() {
        for part in 0..20 {
            let code = format!("GOOD{nth}_{part}");
            bed.issue(&code, json!({}));
            bed.publish(&command(&code, &format!("USE_{code}"))).await;
            expected.insert((code, "redeemed".to_owned()));
        }
        let code = format!("DEEP{nth}");
        let body = command(&code, &format!("USE_{code}")).to_string().into_bytes();
        let published = publish_with(&bed, &names.commands, properties, body).await;
        assert_eq!(published, Published::Acked, "{name}");
        expected.insert((code, "invalid".to_owned()));
    }
    let mut reported = BTreeSet::new();
    while reported.len() < expected.len() {
        let event = bed.next_event().await;
        let text = |pointer: &str| event.data(pointer).as_str().unwrap().to_owned();
        reported.insert((text("/coupon_code"), text("/outcome")));
    }
    assert_eq!(reported, expected);
    assert_eq!(service.metric("redeemer_broker_sessions_total").await, 1.0, "no session was lost");
    assert_eq!([bed.ready(&names.commands).await, bed.ready(&names.parked).await], [0, 4]);
    assert_eq!(bed.uses().len(), 80, "what is invalid is not executed");
    service.stop().await;
}

/// A message that nobody has thought of ends the whole process, each time that it is delivered: it costs its own deliveries
/// until the broker gives it up, and its neighbors nothing.
#[tokio::test(flavor = "multi_thread")]
async fn message_that_kills_the_process_parks_no_neighbor() {
    const GOOD: usize = 150;
    let mut bed = Bed::new().await;
    bed.leave_parked().await;
    let names = bed.config.broker.names.clone();
    // The queues are there before the first process is.
    bed.start().await.stop().await;
    let publish_good = async |from: usize| {
        for nth in from..from + GOOD / 2 {
            let code = format!("N{nth}");
            bed.issue(&code, json!({}));
            bed.publish(&command(&code, &format!("USE_{code}"))).await;
        }
    };
    publish_good(0).await;
    bed.issue("KILLER", json!({}));
    bed.publish(&command("KILLER", "USE_KILLER")).await;
    publish_good(GOOD / 2).await;

    let (mut deaths, log) = (0, bed.dir.join("killed.log"));
    let limit = usize::from(u16::try_from(bed.config.broker.delivery_limit).unwrap());
    loop {
        let mut program = Command::new(env!("CARGO_BIN_EXE_redeemer"));
        program.arg("--config").arg(bed.config_file()).args(["run", "--with-parent"]);
        program.env(redeemer::runtime::failpoints::ABORT, "USE_KILLER").stdin(Stdio::piped());
        program.stdout(Stdio::null()).kill_on_drop(true);
        program.stderr(std::fs::File::options().create(true).append(true).open(&log).unwrap());
        let mut running = program.spawn().unwrap();
        // It lives as long as this is open, and a wait would close it.
        let _stdin = running.stdin.take();
        let all_done = async {
            until("all good ones redeemed, and the killer given up", async || {
                bed.uses().len() == GOOD
                    && bed.ready(&names.commands).await == 0
                    && bed.ready(&names.parked).await == 1
            })
            .await;
        };
        tokio::select! {
            () = all_done => break,
            status = running.wait() => {
                use std::os::unix::process::ExitStatusExt as _;
                assert_eq!(status.unwrap().signal(), Some(6), "see {}", log.display());
                deaths += 1;
                assert!(deaths <= limit + 2, "{deaths} deaths");
            }
        }
    }
    assert!(deaths >= limit, "{deaths} deaths of {limit} deliveries");
    let mut events = std::collections::BTreeMap::<String, BTreeSet<String>>::new();
    while events.len() < GOOD + 1 {
        let event = bed.next_event().await;
        let text = |pointer: &str| event.data(pointer).as_str().unwrap().to_owned();
        events.entry(text("/coupon_code")).or_default().insert(text("/outcome"));
    }
    let killed = events.remove("KILLER").unwrap();
    assert_eq!(killed, BTreeSet::from(["unresolved".to_owned()]));
    assert!(
        events.values().all(|outcomes| outcomes.len() == 1 && outcomes.contains("redeemed")),
        "{events:?}"
    );
    let codes: BTreeSet<_> = bed.uses().into_iter().map(|(code, _)| code).collect();
    assert_eq!((codes.len(), bed.uses().len()), (GOOD, GOOD), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_headers_in_the_parked_queue_hide_nothing() {
    let bed = bed_with_console(tokio::task::spawn_blocking(shared).await.unwrap()).await;
    let parked = bed.config.broker.names.parked.clone();
    let sound = command("BEHIND", "USE_BEHIND").to_string().into_bytes();
    for (headers, body) in [(nested(b'A', 1_500), b"{}".to_vec()), (Vec::new(), sound)] {
        assert_eq!(publish_raw(&bed, &parked, headers, body).await, Published::Acked);
    }
    for arguments in [&["list"][..], &["show"]] {
        let output = run(&bed, &[&["parked"], arguments].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("USE_BEHIND"), "{output:?}");
    }
    until("both are back", async || bed.ready(&parked).await == 2).await;
    let service = bed.start().await;
    let cookie = log_in(&service).await;
    let (status, page) = console(&service, &cookie, "/parked").await;
    assert!(status == 200 && page.contains("USE_BEHIND"), "{status}: {page}");
    until("both are still parked", async || bed.ready(&parked).await == 2).await;
    service.stop().await;
}

/// A bed with the operator console enabled, and the commands that are parked left there.
async fn bed_with_console(broker: &Broker) -> Bed {
    let mut bed = Bed::on(broker).await;
    let token = bed.dir.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    bed.config.admin.console_token_file = token.display().to_string();
    bed.leave_parked().await;
    bed
}

/// Logs in, and gives the session's cookie.
async fn log_in(service: &Service) -> String {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let login = http.post(service.url("/parked/login")).body(format!("token={TOKEN}&operator=lin"));
    let login = login.send().await.unwrap();
    login.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

async fn console(service: &Service, cookie: &str, path: &str) -> (u16, String) {
    let page = reqwest::Client::new().get(service.url(path)).header("cookie", cookie).send().await.unwrap();
    (page.status().as_u16(), page.text().await.unwrap())
}

/// A command line on the bed's configuration.
async fn run(bed: &Bed, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    program.arg("--config").arg(bed.config_file()).args(arguments);
    program.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

/// What `check` says of the size of messages.
async fn checked_message_size(bed: &Bed) -> String {
    let output = run(bed, &["check", "--json"]).await;
    let lines = String::from_utf8(output.stdout).unwrap();
    let findings = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut sizes = findings.filter(|finding| finding["what"] == "message size");
    let finding = sizes.next().unwrap_or_else(|| panic!("no finding in {lines}"));
    finding["gravity"].as_str().unwrap().to_owned()
}

#[test]
fn shipped_broker_files_bound_messages() {
    for file in ["rabbitmq.conf", "cluster/rabbitmq.conf"] {
        let file = format!("{}/deploy/rabbitmq/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.lines().any(|line| line == "max_message_size = 131072"), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shipped_broker_refuses_a_message_over_128_kib() {
    let bed = Bed::new().await;
    let commands = bed.config.broker.names.commands.clone();
    let size = async |bytes: usize| publish_raw(&bed, &commands, Vec::new(), vec![b' '; bytes]).await;
    assert_eq!(size(128 * 1024).await, Published::Acked);
    assert_eq!(size(128 * 1024 + 1).await, Published::Closed(406));
    let service = bed.start().await;
    assert_eq!(checked_message_size(&bed).await, "ok");
    assert_eq!(service.get("/readyz").await, (200, "ok\n".to_owned()));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_without_message_bound_is_warned_of() {
    let start = || Broker::start_with(&["max_message_size = 134217728"]);
    let broker = tokio::task::spawn_blocking(start).await.unwrap();
    let bed = bed_with_console(&broker).await;
    let service = bed.start().await;
    assert_eq!(checked_message_size(&bed).await, "warning");
    let warned = async || service.get("/readyz").await.1.contains("\nwarning: [message_size_unbounded]");
    until("a warning in readiness", warned).await;
    assert_eq!(service.get("/readyz").await.0, 200, "it consumes all the same");

    // A body of megabytes is shown in part.
    let body = "\u{202e}<&".repeat(500_000).into_bytes();
    let id = hex(&Sha256::digest(&body));
    let parked = bed.config.broker.names.parked.clone();
    assert_eq!(publish_raw(&bed, &parked, Vec::new(), body).await, Published::Acked);
    let cookie = log_in(&service).await;
    let (status, page) = console(&service, &cookie, &format!("/parked/{id}")).await;
    assert_eq!(status, 200, "{page}");
    assert!(page.len() < 512 * 1024, "{} bytes", page.len());
    for arguments in [&["parked", "show"][..], &["parked", "show", "--json"]] {
        let output = run(&bed, arguments).await;
        let bytes = output.stdout.len();
        assert!(output.status.success() && bytes > 64 * 1024 && bytes < 512 * 1024, "{bytes} bytes");
    }
    service.stop().await;
    drop(bed);
    tokio::task::spawn_blocking(|| drop(broker)).await.unwrap();
}

/// A program of the broker's node: `rabbitmqctl`, off this task.
async fn ctl(broker: &'static Broker, arguments: &[&str]) {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || {
        broker.ctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

/// Sets the size from which on the broker refuses a message, as from the next session on.
async fn limit_messages(broker: &'static Broker, bytes: u32) {
    let set = format!(
        "application:set_env(rabbit, max_message_size, {bytes}), persistent_term:put(max_message_size, {bytes})."
    );
    ctl(broker, &["eval", &set]).await;
    ctl(broker, &["close_all_connections", "a new session"]).await;
}

/// What is buffered is bounded by what the broker accepts now, not by what it accepted at the start of the process.
#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_the_broker_accepts_bound_what_is_taken_at_once() {
    let broker = tokio::task::spawn_blocking(|| &*Box::leak(Box::new(Broker::start()))).await.unwrap();
    let mut bed = Bed::on(broker).await;
    // Each call takes a while, so as many are held as may be.
    bed.faults(json!([{"fault": {"kind": "slow", "ms": 300}}]));
    let service = bed.start().await;
    let warned = async || service.get("/readyz").await.1.contains("[message_size_unbounded] ");
    let mut all = 0;
    for (nth, (bytes, at_once, warns)) in [
        (128 * 1024, 60, false),
        (134_217_728, 1, true),
        (1024 * 1024, 60, false),
        (16 * 1024 * 1024, 8, true),
    ]
    .into_iter()
    .enumerate()
    {
        limit_messages(broker, bytes).await;
        bed = bed.reconnect(broker).await;
        let session = f64::from(u32::try_from(nth + 2).unwrap());
        until("the next session", async || {
            service.metric("redeemer_broker_sessions_total").await >= session
                && service.metric("redeemer_consuming").await == 1.0
        })
        .await;
        until("the warning or none", async || warned().await == warns).await;
        let commands = if at_once == 1 { 8 } else { 200 };
        all += commands;
        for part in 0..commands {
            let code = format!("L{nth}_{part}");
            bed.issue(&code, json!({}));
            bed.publish(&command(&code, &format!("USE_{code}"))).await;
        }
        let most = std::cell::Cell::new(0.0_f64);
        until("all redeemed", async || {
            most.set(most.get().max(service.metric("redeemer_commands_in_flight").await));
            bed.uses().len() >= all && service.metric("redeemer_commands_in_flight").await == 0.0
        })
        .await;
        let bound = f64::from(at_once);
        let most = most.get();
        assert!(if at_once < 60 { most <= bound } else { most > 8.0 }, "{bytes}: {most} held at once");
        assert_eq!(warned().await, warns, "{bytes}");
    }
    service.stop().await;
}

/// What a terminal would obey, what turns a line around, what forges one, and an openid.
fn hostile_words() -> String {
    format!("\u{1b}[2J\n2026-01-01 forged\u{202e}\u{200b}\u{9b}{OPENID} ")
}

/// The text shows all that is in it, and no openid.
fn assert_harmless(what: &str, text: &str) {
    let hidden: Vec<_> = text.chars().filter(|c| *c != '\n' && is_hidden(*c)).collect();
    assert!(hidden.is_empty(), "{what}: {hidden:?} in {text:?}");
    assert!(!text.contains(OPENID), "{what}: {text}");
    assert!(!text.lines().any(|line| line.starts_with("2026-01-01 forged")), "{what}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusing_provider_cannot_forge_readiness_or_page() {
    let bed = Bed::new().await;
    bed.issue("R1", json!({}));
    let message = hostile_words() + &"x ".repeat(400);
    bed.faults(
        json!([{"fault": {"kind": "status", "status": 401, "code": "SIGN_ERROR", "message": message}}]),
    );
    let service = bed.start().await;
    bed.publish(&command("R1", "USE_R1")).await;
    until("the words in readiness", async || service.get("/readyz").await.1.contains("SIGN_ERROR")).await;
    for path in ["/readyz", "/status.json", "/"] {
        let (_, text) = service.get(path).await;
        assert!(text.contains("SIGN_ERROR"), "{path}: {text}");
        assert_harmless(path, &text);
    }
    bed.faults(json!([]));
    service.wait_ready().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_words_are_visible_wherever_they_are_shown() {
    let bed = bed_with_console(tokio::task::spawn_blocking(shared).await.unwrap()).await;
    let names = bed.config.broker.names.clone();
    let service = bed.start().await;
    let text = |name: &str, value: &str| {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        [&[u8::try_from(name.len()).unwrap()][..], name.as_bytes(), b"S", &length, value.as_bytes()].concat()
    };
    let words = hostile_words();
    let headers = [text("x-redemption-parked-reason", &words), text("note", &words)].concat();
    let sound = command("H1", "USE_H1").to_string().into_bytes();
    // Line feeds stay in a body, and stand within its frame on the page.
    let one_line = words.replace('\n', " ");
    let garbled = format!("{{\"{one_line}\": \"{one_line}\"").into_bytes();
    let mut ids = Vec::new();
    for body in [sound, garbled] {
        ids.push(hex(&Sha256::digest(&body)));
        assert_eq!(publish_raw(&bed, &names.parked, headers.clone(), body).await, Published::Acked);
    }
    let cookie = log_in(&service).await;
    let pages = ids.iter().map(|id| format!("/parked/{id}")).chain(["/parked".to_owned()]);
    for path in pages {
        let (status, page) = console(&service, &cookie, &path).await;
        assert_eq!(status, 200, "{path}: {page}");
        assert_harmless(&path, &page);
    }
    let discard = ["parked", "discard", "--all", "--because", "x"];
    for arguments in [&["parked", "list"][..], &["parked", "show"], &discard] {
        let output = run(&bed, arguments).await;
        assert!(output.status.success(), "{output:?}");
        for bytes in [output.stdout, output.stderr] {
            assert_harmless(arguments[1], &String::from_utf8(bytes).unwrap());
        }
    }

    // Events of anyone who may publish to the exchange of results.
    let mut watch = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    watch.arg("--config").arg(bed.config_file()).args(["watch", "--count", "2"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut reported = BufReader::new(watch.stderr.take().unwrap()).lines();
    let first = reported.next_line().await.unwrap().unwrap();
    assert!(first.contains("watching"), "{first}");
    let event = json!({"time": words, "data": {"outcome": words, "coupon_code": "C", "out_request_no": "1",
        "coupon_state": "USED"}});
    for body in [event.to_string(), words.clone()] {
        let published = publish_raw(&bed, &names.results, Vec::new(), body.into_bytes()).await;
        assert_eq!(published, Published::Acked);
    }
    let output = watch.wait_with_output().await.unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    let hidden: Vec<_> = lines.chars().filter(|c| *c != '\n' && is_hidden(*c)).collect();
    assert!(hidden.is_empty(), "{hidden:?} in {lines:?}");
    service.stop().await;
}

/// Of a user whom no command of the test is about.
const STRANGER: &str = "oZz9-Other_Person-0123456789";

/// A header, as AMQP writes it, whose value has this type.
fn header(name: &str, kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    [&[u8::try_from(name.len()).unwrap()][..], name.as_bytes(), &[kind], &length, value].concat()
}

/// Headers with an openid in every place that is shown.
fn headers_with_openid(openid: &str) -> Vec<u8> {
    let evidence = json!([{"at": "2026-03-05T04:30:45Z", "operation": openid, "host": openid, "status": 200,
        "request_id": openid, "serial": openid, "verdict": openid}]);
    let listed = [&b"S"[..], &u32::try_from(openid.len()).unwrap().to_be_bytes(), openid.as_bytes()].concat();
    [
        header("note", b'S', openid.as_bytes()),
        header(&format!("x-{openid}"), b'S', b"1"),
        header("list", b'A', &listed),
        header("table", b'F', &header(openid, b'S', openid.as_bytes())),
        header("x-redemption-evidence", b'S', evidence.to_string().as_bytes()),
        header("x-redemption-body-sha256", b'S', openid.as_bytes()),
        // A bound must not make a short word of a long one.
        header("x-redemption-parked-reason", b'S', format!("{}{openid}", "=".repeat(50)).as_bytes()),
    ]
    .concat()
}

/// Bodies with an openid beside the command's own: valid or not, spelled with escapes or not.
fn bodies_with_openid(openid: &str) -> Vec<String> {
    let escaped: String = openid.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let plain = command("S1", "USE_S1");
    let mut with_stranger = plain.clone();
    with_stranger["associated_order_info"]["transaction_id"] = json!(openid);
    let mut named = plain.clone();
    named[openid] = json!(openid);
    let cut = format!("{{\"openid\": \"{OPENID}\", \"x\": \"{openid}\"");
    // Its own openid with escapes in one place and plain in another, and the other way around.
    let own_escaped = plain.to_string().replace(OPENID, &format!("\\u006f{}", &OPENID[1..]));
    let twice = own_escaped.replacen('{', &format!("{{\"note\": \"{OPENID}\", "), 1);
    let own_twice = plain.to_string().replacen('{', &format!("{{\"note\": \"\\u006f{}\", ", &OPENID[1..]), 1);
    let in_escapes = plain.to_string().replacen('{', &format!("{{\"note\": \"{escaped}\", "), 1);
    let mut bodies = vec![with_stranger.to_string(), named.to_string(), cut, own_escaped, twice, own_twice];
    bodies.extend([in_escapes, format!("{openid}\u{0}{openid}")]);
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn no_openid_is_shown_of_what_is_parked_whose_ever_it_is() {
    let bed = bed_with_console(tokio::task::spawn_blocking(shared).await.unwrap()).await;
    let parked = bed.config.broker.names.parked.clone();
    let mut ids = Vec::new();
    for body in bodies_with_openid(STRANGER) {
        let body = body.into_bytes();
        ids.push(hex(&Sha256::digest(&body)));
        let published = publish_raw(&bed, &parked, headers_with_openid(STRANGER), body).await;
        assert_eq!(published, Published::Acked);
    }
    let properties = ["correlation_id", "message_id", "reply_to", "content_type"];
    let with_properties = BasicProperties::default()
        .with_correlation_id(STRANGER.into())
        .with_message_id(STRANGER.into())
        .with_reply_to(STRANGER.into())
        .with_content_type(STRANGER.into());
    let body = command("S2", "USE_S2").to_string();
    ids.push(hex(&Sha256::digest(&body)));
    let publish = bed.channel().basic_publish(
        parked.as_str().into(),
        "".into(),
        lapin::options::BasicPublishOptions::default(),
        body.as_bytes(),
        with_properties,
    );
    publish.await.unwrap().await.unwrap();
    until("all are parked", async || bed.ready(&parked).await == u32::try_from(ids.len()).unwrap()).await;

    let mut shown = Vec::new();
    let discard = ["parked", "discard", "--all", "--because", "x"];
    for arguments in [&["parked", "list"][..], &["parked", "show"], &["parked", "show", "--query"], &discard]
    {
        let output = run(&bed, arguments).await;
        assert!(output.status.success(), "{output:?}");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        shown.push((arguments.join(" "), text.concat()));
    }
    let service = bed.start().await;
    let cookie = log_in(&service).await;
    for path in ids.iter().map(|id| format!("/parked/{id}")).chain(["/parked".to_owned()]) {
        let (status, page) = console(&service, &cookie, &path).await;
        assert_eq!(status, 200, "{path}: {page}");
        shown.push((path, page));
    }
    service.stop().await;
    for (what, text) in &shown {
        for openid in [STRANGER, OPENID] {
            // Whatever part of it would name somebody.
            assert!(!text.contains(&openid[1..12]) && !text.contains(&openid[12..]), "{what}: {text}");
            let escaped: String = openid[2..12].bytes().map(|byte| format!("\\u{byte:04x}")).collect();
            assert!(!text.contains(&escaped), "{what}: {text}");
        }
    }
    let (_, text) = &shown[1];
    for own in properties.into_iter().chain(["USE_S1", "oh…Anp4", "oZ…6789", "1000000013001"]) {
        assert!(text.contains(own), "{own}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_reply_to_is_a_fault_and_no_routing_key() {
    let mut bed = Bed::new().await;
    let mut redeemed = bed.bind_results("redemption.redeemed.120344").await;
    let mut audits = bed.bind_results("audit.#").await;
    let service = bed.start().await;
    bed.issue("P1", json!({}));
    for key in ["redemption.redeemed.120344", "audit.parked.replayed", "return.x", "redemption"] {
        let properties = BasicProperties::default().with_reply_to(key.into());
        bed.publish_bytes(command("P1", "USE_P1").to_string().as_bytes(), properties).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "invalid invalid_command -", "{key}");
        let problem = reported.data("/problem/faults/0/problem").as_str().unwrap();
        assert!(problem.contains("reply_to"), "{problem}");
        assert_eq!(bed.parked().await.0, command("P1", "USE_P1").to_string().into_bytes());
    }
    // Bytes that are no command go under no key of ours either.
    let properties = BasicProperties::default().with_reply_to("audit.parked.discarded".into());
    bed.publish_bytes(b"no command", properties).await;
    assert_eq!(bed.next_event().await.gist(), "invalid invalid_command -");
    assert!(bed.attempts("P1").is_empty(), "nothing was asked for");
    // The first event in the queue of redeemed ones is one.
    let properties = BasicProperties::default().with_reply_to("orders.redemption".into());
    bed.publish_bytes(command("P1", "USE_P1").to_string().as_bytes(), properties).await;
    let first = bed::next(&mut redeemed, "a redeemed event").await;
    let event: Value = serde_json::from_slice(&first.data).unwrap();
    assert_eq!(event["data"]["outcome"], "redeemed");
    let audit = tokio::time::timeout(Duration::from_millis(1), bed::next(&mut audits, "nothing")).await;
    assert!(audit.is_err(), "no event under a key of audits");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_within_the_depth_bound_are_read() {
    let mut bed = Bed::new().await;
    bed.issue("D1", json!({}));
    let service = bed.start().await;
    // The header table is the first level.
    let body = command("D1", "USE_D1").to_string().into_bytes();
    let commands = bed.config.broker.names.commands.clone();
    assert_eq!(publish_raw(&bed, &commands, nested(b'F', 63), body).await, Published::Acked);
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    service.stop().await;
}
