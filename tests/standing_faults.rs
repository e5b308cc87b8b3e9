//! Standing faults of our own at the broker: a right, an exchange, a size, a limit. While one lasts nothing is parked,
//! readiness names it, and once it is gone every command is redeemed and its event arrives.

#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;

use std::collections::{BTreeMap, BTreeSet};

use bed::{Bed, Service, command, until};
use broker::{Broker, shared};
use lapin::BasicProperties;
use lapin::options::{
    BasicPublishOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

const PASSWORD: &str = "standing-faults";

/// Commands that wait in the queue when the fault begins.
const BACKLOG: usize = 1_000;

async fn ctl(broker: &'static Broker, arguments: &[&str]) {
    let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
    tokio::task::spawn_blocking(move || {
        broker.ctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    })
    .await
    .unwrap();
}

/// A broker of this test's own. It ends with the process, which its script watches.
async fn own_broker(config: &'static [&'static str]) -> &'static Broker {
    tokio::task::spawn_blocking(|| &*Box::leak(Box::new(Broker::start_with(config)))).await.unwrap()
}

/// A bed whose service logs in as a user of its own, with every right.
async fn bed_as(broker: &'static Broker, user: &str) -> Bed {
    let mut bed = Bed::on(broker).await;
    ctl(broker, &["add_user", user, PASSWORD]).await;
    ctl(broker, &["set_permissions", user, ".*", ".*", ".*"]).await;
    bed.config.broker.uri = broker.uri_of(user, PASSWORD);
    bed
}

async fn shared_bed_as(user: &str) -> (&'static Broker, Bed) {
    let broker = tokio::task::spawn_blocking(shared).await.unwrap();
    (broker, bed_as(broker, user).await)
}

/// Every name but that of one exchange, as a pattern for a permission.
fn all_but(exchange: &str) -> String {
    format!("^(?!{}$).*$", exchange.replace('.', r"\."))
}

async fn publish_backlog(bed: &Bed, count: usize) {
    for nth in 0..count {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:05}"))).await;
    }
}

/// Waits until `count` different commands have their event, and each says `redeemed`.
async fn all_redeemed(bed: &mut Bed, seen: &mut BTreeSet<String>, count: usize) {
    while seen.len() < count {
        let event = bed.next_event().await;
        assert_eq!(event.gist(), "redeemed - USED");
        seen.insert(event.data("/out_request_no").as_str().unwrap().to_owned());
    }
}

const REDELIVERED: &str = r#"redeemer_commands_taken_total{arrival="redelivered"}"#;

/// Nothing was parked, nothing took effect twice, and no command was delivered twice or session lost.
async fn nothing_burned(bed: &Bed, service: &Service, sessions: f64) {
    parked_nothing(bed).await;
    assert_eq!(service.metric("redeemer_broker_sessions_total").await, sessions);
    assert_eq!(service.metric(REDELIVERED).await, 0.0);
}

async fn parked_nothing(bed: &Bed) {
    bed.leave_parked().await;
    assert_eq!(bed.ready(&bed.config.broker.names.parked).await, 0, "parked");
    let uses = bed.uses();
    let numbers: BTreeSet<_> = uses.iter().map(|(_, number)| number.clone()).collect();
    assert_eq!(numbers.len(), uses.len(), "a number took effect twice");
}

/// Waits until a service holds a permit for each command in hand and makes no more calls: all of them are to be published.
async fn at_rest(bed: &Bed, service: &Service) {
    let calls = async || bed.ledger()["attempts"].as_array().unwrap().len();
    until("consumption at rest", async || {
        let before = calls().await;
        let busy = service.metric("redeemer_concurrency_permits_used").await;
        let rejected =
            service.metric(r#"redeemer_publish_failures_total{message="event",reason="channel"}"#).await;
        busy > 0.0
            && busy == service.metric("redeemer_commands_in_flight").await.min(100.0)
            && rejected >= busy
            && before == calls().await
    })
    .await;
}

/// Makes the provider slow, so that there is work left when the cause begins, or quick again.
fn provider_takes(bed: &Bed, latency_ms: u64) {
    bed.sandbox.tune(redeemer_sandbox::Tuning { latency_ms: Some(latency_ms), ..Default::default() });
}

async fn status(service: &Service) -> serde_json::Value {
    serde_json::from_str(&service.get("/status.json").await.1).unwrap()
}

/// Stops the broker's process of a queue from doing anything, or lets it continue.
async fn set_suspended(broker: &'static Broker, queue: &str, is_suspended: bool) {
    let act = if is_suspended { "suspend" } else { "resume" };
    let find = format!(r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>))"#);
    // A quorum queue is known by its name, a classic one by its process.
    let process = "case amqqueue:get_pid(Q) of {Name, _} -> Name; Pid -> Pid end";
    ctl(broker, &["eval", &format!("{find}, sys:{act}({process}).")]).await;
}

async fn sessions(service: &Service) -> f64 {
    service.metric("redeemer_broker_sessions_total").await
}

async fn results_right_taken_away(user: &str, instances: usize) {
    let (broker, mut bed) = shared_bed_as(user).await;
    let results = bed.config.broker.names.results.clone();
    publish_backlog(&bed, BACKLOG).await;
    provider_takes(&bed, 200);
    let mut services = Vec::new();
    for _ in 0..instances {
        services.push(bed.start().await);
    }
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, 20).await;
    // So slow from now on that a busy machine has time to take the right away.
    provider_takes(&bed, 5_000);
    ctl(broker, &["set_permissions", user, ".*", &all_but(&results), ".*"]).await;
    // A channel remembers a right that it has used; the sessions that follow feel that it is gone.
    ctl(broker, &["close_all_user_connections", user, "the right is gone"]).await;
    for service in &services {
        until("the missing right named", async || {
            let (status, reason) = service.get("/readyz").await;
            status == 503 && reason.contains(&results) && reason.contains("set_permissions")
        })
        .await;
        service.wait_metric("redeemer_commands_in_flight", 0.0).await;
        assert_eq!(service.metric("redeemer_broker_connected").await, 0.0, "not consuming");
        assert_eq!(service.get("/livez").await.0, 200);
    }
    assert!(bed.uses().len() < BACKLOG, "nothing was left to do");
    provider_takes(&bed, 0);
    ctl(broker, &["set_permissions", user, ".*", ".*", ".*"]).await;
    all_redeemed(&mut bed, &mut seen, BACKLOG).await;
    for service in &services {
        service.wait_ready().await;
    }
    parked_nothing(&bed).await;
    for service in services {
        let redelivered = service.metric(REDELIVERED).await;
        assert!(redelivered <= f64::from(bed.config.broker.prefetch), "{redelivered}: more than once");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_right_taken_away_parks_nothing() {
    results_right_taken_away("sf-results", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_right_taken_away_from_two_parks_nothing() {
    results_right_taken_away("sf-results-two", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_right_missing_delays_one_command_alone() {
    let user = "sf-topic";
    let (broker, mut bed) = shared_bed_as(user).await;
    bed.config.retry.delays = vec![span(500)];
    let results = bed.config.broker.names.results.clone();
    let service = bed.start().await;
    let begun = sessions(&service).await;
    let all_but_invalid = r"^(?!redemption\.invalid\.).*$";
    ctl(broker, &["set_topic_permissions", user, &results, all_but_invalid, ".*"]).await;
    for nth in 0..BACKLOG {
        if nth == 30 {
            bed.publish_bytes(b"{}", BasicProperties::default().with_message_id("bad".into())).await;
        }
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:05}"))).await;
    }
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, BACKLOG).await;
    until("the command delayed", async || {
        service.metric_sum("redeemer_delayed_retries_total", r#"reason="event_rejected""#).await >= 1.0
    })
    .await;
    // It is held for a moment at each return, until a probe has shown that it alone is rejected.
    until("ready, with a warning", async || {
        let (status, warning) = service.get("/readyz").await;
        status == 200 && warning.contains("warning: ") && warning.contains("redemption.invalid.")
    })
    .await;

    ctl(broker, &["clear_topic_permissions", user]).await;
    assert_eq!(bed.next_event().await.gist(), "invalid invalid_command -");
    assert_eq!(bed.parked().await.0, b"{}");
    nothing_burned(&bed, &service, begun).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_exchange_deleted_parks_nothing() {
    let mut bed = Bed::new().await;
    bed.config.broker.topology = "off".to_owned();
    bed.config.retry.delays = Vec::new();
    let results = bed.config.broker.names.results.clone();
    publish_backlog(&bed, BACKLOG).await;
    provider_takes(&bed, 500);
    let service = bed.start().await;
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, 20).await;
    bed.channel().exchange_delete(results.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    let reason = service.wait_unready().await;
    assert!(reason.contains(&results), "{reason}");
    at_rest(&bed, &service).await;
    let begun = sessions(&service).await;
    assert_eq!(service.get("/readyz").await.0, 503);
    provider_takes(&bed, 0);

    let arguments: FieldTable = BTreeMap::from([(
        "alternate-exchange".into(),
        AMQPValue::LongString(bed.config.broker.names.unrouted.as_str().into()),
    )])
    .into();
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    // The queue goes first in a broker that has no such exchange: what is published meanwhile lies with the unrouted.
    bed.channel()
        .exchange_declare(results.as_str().into(), lapin::ExchangeKind::Topic, options, arguments)
        .await
        .unwrap();
    until("every effect", async || bed.uses().len() == BACKLOG).await;
    service.wait_metric(r#"redeemer_outcomes_total{outcome="redeemed",reason=""}"#, BACKLOG as f64).await;
    service.wait_ready().await;
    nothing_burned(&bed, &service, begun).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_size_below_an_event_parks_nothing() {
    let broker = own_broker(&[]).await;
    let mut bed = Bed::on(broker).await;
    bed.config.retry.delays = vec![span(1_000)];
    publish_backlog(&bed, BACKLOG).await;
    let limit = |bytes: u32| {
        format!(
            "application:set_env(rabbit, max_message_size, {bytes}), persistent_term:put(max_message_size, {bytes})."
        )
    };
    // Above a command, below an event. A channel asks for it when it is opened: of the one place in 3.x, of the other in 4.x.
    ctl(broker, &["eval", &limit(1_500)]).await;
    let service = bed.start_unready().await;
    let mut seen = BTreeSet::new();
    until("events refused", async || {
        service.metric(r#"redeemer_publish_failures_total{message="event",reason="channel"}"#).await >= 20.0
    })
    .await;
    let reason = service.wait_unready().await;
    assert!(reason.contains("406"), "{reason}");
    let begun = sessions(&service).await;
    ctl(broker, &["eval", &limit(134_217_728)]).await;
    all_redeemed(&mut bed, &mut seen, BACKLOG).await;
    service.wait_ready().await;
    nothing_burned(&bed, &service, begun).await;
    service.stop().await;
}

/// The channels of an instance, at most: docs/operations.md names the number.
const CHANNELS: u32 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn channel_limit_too_low_consumes_nothing() {
    let user = "sf-channels";
    let (broker, mut bed) = shared_bed_as(user).await;
    publish_backlog(&bed, BACKLOG).await;
    // The broker counts a moment later: near the number it may let one more be opened.
    for limit in 2..CHANNELS - 2 {
        ctl(broker, &["set_user_limits", user, &format!(r#"{{"max-channels": {limit}}}"#)]).await;
        let service = bed.start_unready().await;
        until("a refusal of the broker", async || {
            let (status, reason) = service.get("/readyz").await;
            status == 503 && reason.contains("maximum allowed user limit")
        })
        .await;
        let arrivals = ["first", "redelivered", "retry"];
        for arrival in arrivals {
            let taken = format!(r#"redeemer_commands_taken_total{{arrival="{arrival}"}}"#);
            assert_eq!(service.metric(&taken).await, 0.0, "{arrival}");
        }
        service.stop().await;
    }
    let service = bed.start_unready().await;
    service.wait_unready().await;
    // Enough for whatever is delayed, parked and rejected at once, and not one more.
    ctl(broker, &["set_user_limits", user, &format!(r#"{{"max-channels": {CHANNELS}}}"#)]).await;
    bed.faults(json!([{"operation": "use", "first_attempts": 1, "coupon_prefix": "C1", "fault": {"kind": "status", "status": 429}}]));
    bed.leave_parked().await;
    for _ in 0..40 {
        bed.publish_bytes(b"{}", BasicProperties::default()).await;
    }
    let (mut seen, mut invalid) = (BTreeSet::new(), 0);
    while seen.len() < BACKLOG || invalid < 40 {
        let event = bed.next_event().await;
        match event.gist().as_str() {
            "redeemed - USED" => _ = seen.insert(event.data("/out_request_no").to_string()),
            _ => invalid += 1,
        }
    }
    service.wait_ready().await;
    let begun = sessions(&service).await;
    assert_eq!(begun, 1.0);
    assert_eq!(service.metric(REDELIVERED).await, 0.0);
    service.stop().await;
}

/// What the broker takes out of the command queue itself has its event all the same.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_end_in_the_event_of_what_a_query_finds() {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = span(100);
    for (code, more) in [
        ("C1", json!({"state": "USED", "used_by": "USE_C1_1"})),
        ("C2", json!({"state": "USED", "used_by": "OTHER_1"})),
        ("C3", json!({})),
        ("C4", json!({"state": "EXPIRED"})),
    ] {
        bed.issue(code, more);
        let expired = BasicProperties::default().with_expiration("0".into());
        bed.publish_bytes(command(code, &format!("USE_{code}_1")).to_string().as_bytes(), expired).await;
    }
    let expired = BasicProperties::default().with_expiration("0".into());
    bed.publish_bytes(b"no command", expired).await;
    let dead = bed.config.broker.names.dead.clone();
    until("five dead letters", async || bed.ready(&dead).await == 5).await;
    let service = bed.start().await;
    let mut gists = BTreeSet::new();
    while gists.len() < 5 {
        gists.insert(bed.next_event().await.gist());
    }
    let expected = [
        "invalid invalid_command -",
        "redeemed - USED",
        "refused expired EXPIRED",
        "refused used_by_another USED",
        "unresolved message_expired EFFECTIVE",
    ];
    assert_eq!(gists.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    let mut reasons = BTreeSet::new();
    for _ in 0..2 {
        reasons.insert(bed::header(&bed.parked().await.1, "x-redemption-parked-reason").to_owned());
    }
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), ["invalid_command", "message_expired"]);
    until("none left", async || bed.ready(&dead).await == 0).await;
    assert!(bed.uses().is_empty(), "a dead letter is only asked about");
    until("no warning", async || service.get("/readyz").await.1 == "ok\n").await;
    service.stop().await;
}

/// A broker that ends its consumer over a command held for too long says so, and readiness passes it on.
#[tokio::test(flavor = "multi_thread")]
async fn broker_words_about_a_timed_out_delivery_are_kept() {
    let broker = own_broker(&["consumer_timeout = 2000"]).await;
    // It looks once a minute.
    ctl(broker, &["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]).await;
    let bed = Bed::on(broker).await;
    bed.issue("C1", json!({}));
    let service = bed.start().await;
    provider_takes(&bed, 8_000);
    bed.publish(&command("C1", "USE_C1_1")).await;
    until("a lost session", async || {
        let status = status(&service).await;
        let reasons = status["reasons"].to_string();
        reasons.contains("timed out") && reasons.contains("consumer_timeout")
    })
    .await;
    provider_takes(&bed, 0);
    until("its effect", async || bed.uses().len() == 1).await;
    service.stop().await;
}

/// The service as a process, which writes its address into the bed's folder.
fn spawn(bed: &Bed) -> tokio::process::Child {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_redeemer"))
        .arg("--config")
        .arg(bed.config_file())
        .args(["run", "--admin-address-file"])
        .arg(bed.dir.join("admin.address"))
        .kill_on_drop(true)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// A terminal that is closed stops the service in good order.
#[tokio::test(flavor = "multi_thread")]
async fn hangup_stops_the_service_in_good_order() {
    let bed = Bed::new().await;
    let address = bed.dir.join("admin.address");
    let mut child = spawn(&bed);
    until("readiness", async || match std::fs::read_to_string(&address) {
        Ok(admin) if !admin.trim().is_empty() => {
            let ready = reqwest::get(format!("http://{}/readyz", admin.trim())).await;
            ready.is_ok_and(|answer| answer.status() == 200)
        }
        _ => false,
    })
    .await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let ended = tokio::time::timeout(bed::PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}

/// What a sender compressed is named by its encoding, not by what its bytes look like.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_command_is_invalid_by_its_encoding() {
    let mut bed = Bed::new().await;
    let service = bed.start().await;
    for (encoding, named) in
        [("gzip", true), ("br", true), ("", false), ("UTF-8", false), ("identity", false)]
    {
        let properties = BasicProperties::default().with_content_encoding(encoding.into());
        bed.publish_bytes(b"\x1f\x8b\x08\x00", properties).await;
        let event = bed.next_event().await;
        assert_eq!(event.gist(), "invalid invalid_command -");
        let problem = event.data("/problem/faults/0/problem").as_str().unwrap().to_owned();
        assert_eq!(problem.contains("content_encoding"), named, "{encoding}: {problem}");
    }
    service.stop().await;
}

/// Anyone who publishes by hand learns of an alarm at once.
#[tokio::test(flavor = "multi_thread")]
async fn blocked_broker_is_named_by_every_command_that_publishes() {
    let broker = own_broker(&[]).await;
    let bed = Bed::on(broker).await;
    bed.leave_parked().await;
    let parked = bed.config.broker.names.parked.clone();
    let (options, properties) = (lapin::options::BasicPublishOptions::default(), BasicProperties::default());
    let body = command("C1", "USE_C1_1").to_string();
    bed.channel()
        .basic_publish("".into(), parked.into(), options, body.as_bytes(), properties)
        .await
        .unwrap()
        .await
        .unwrap();
    let commands = bed.dir.join("commands.jsonl");
    std::fs::write(&commands, format!("{body}\n")).unwrap();
    ctl(broker, &["set_vm_memory_high_watermark", "0.0001"]).await;
    let (file, commands) = (bed.config_file(), commands.display().to_string());
    for arguments in [
        vec!["publish", "--lines", commands.as_str()],
        vec!["parked", "replay", "--yes"],
        vec!["parked", "discard", "--all", "--yes", "--because", "a test"],
    ] {
        let begun = std::time::Instant::now();
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .arg("--config")
            .arg(&file)
            .args(&arguments)
            .env("USER", "tester")
            .output();
        let output = tokio::time::timeout(bed::PATIENCE, output).await.unwrap().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_ne!(output.status.code(), Some(0), "{arguments:?}: {complaint}");
        assert!(complaint.contains("blocks publishing"), "{arguments:?}: {complaint}");
        // Far from the five seconds of a connection and the thirty of a confirm.
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{arguments:?}: {:?}", begun.elapsed());
    }
    ctl(broker, &["set_vm_memory_high_watermark", "0.4"]).await;
}

/// Stopping in good order hands commands back; that is no delivery in vain, however often it happens.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_in_good_order_dead_letter_nothing() {
    const COMMANDS: usize = 150;
    const RESTARTS: usize = 25;
    let mut bed = Bed::new().await;
    bed.config.concurrency.commands = 4;
    bed.config.retry.query_delay = span(100);
    publish_backlog(&bed, COMMANDS).await;
    provider_takes(&bed, 2_000);
    for _ in 0..RESTARTS {
        let service = bed.start().await;
        until("commands in hand", async || {
            service.metric("redeemer_commands_in_flight").await > 0.0
                && service.metric("redeemer_concurrency_permits_used").await > 0.0
        })
        .await;
        service.stop().await;
    }
    assert!(bed.uses().len() < COMMANDS, "nothing was left to hand back");
    provider_takes(&bed, 0);
    let service = bed.start().await;
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, COMMANDS).await;
    assert_eq!(service.metric(r#"redeemer_queue_depth{queue="dead"}"#).await, 0.0);
    parked_nothing(&bed).await;
    assert_eq!(bed.uses().len(), COMMANDS);
    service.stop().await;
}

async fn dead_letter(bed: &Bed, code: &str) {
    let expired = BasicProperties::default().with_expiration("0".into());
    bed.publish_bytes(command(code, &format!("USE_{code}_1")).to_string().as_bytes(), expired).await;
}

/// A dead letter that is in hand when the service stops goes back without a count, and has its event at last.
#[tokio::test(flavor = "multi_thread")]
async fn stops_in_good_order_park_no_dead_letter_unreported() {
    let mut bed = Bed::new().await;
    bed.config.wechat.total_timeout = span(2_000);
    bed.issue("C1", json!({}));
    dead_letter(&bed, "C1").await;
    let dead = bed.config.broker.names.dead.clone();
    until("a dead letter", async || bed.ready(&dead).await == 1).await;
    for _ in 0..5 {
        let service = bed.start().await;
        let calls = bed.attempts("C1").len();
        until("a look at it", async || bed.attempts("C1").len() > calls).await;
        service.stop().await;
    }
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "unresolved message_expired EFFECTIVE");
    assert_eq!(bed::header(&bed.parked().await.1, "x-redemption-parked-reason"), "message_expired");
    service.stop().await;
}

/// A dead letter whose event is rejected holds up no other and keeps the service ready.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_dead_letter_holds_up_no_other() {
    let user = "sf-dead";
    let (broker, mut bed) = shared_bed_as(user).await;
    bed.config.wechat.total_timeout = span(2_000);
    bed.config.retry.query_delay = span(100);
    let results = bed.config.broker.names.results.clone();
    ctl(broker, &["set_topic_permissions", user, &results, r"^(?!redemption\.refused\.).*$", ".*"]).await;
    bed.issue("C1", json!({"state": "EXPIRED"}));
    bed.issue("C2", json!({"state": "USED", "used_by": "USE_C2_1"}));
    for code in ["C1", "C2"] {
        dead_letter(&bed, code).await;
    }
    let dead = bed.config.broker.names.dead.clone();
    until("two dead letters", async || bed.ready(&dead).await == 2).await;
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    assert_eq!(service.get("/readyz").await.0, 200);
    ctl(broker, &["clear_topic_permissions", user]).await;
    assert_eq!(bed.next_event().await.gist(), "refused expired EXPIRED");
    parked_nothing(&bed).await;
    service.stop().await;
}

/// A dead letter whose event stays rejected is asked about after growing pauses, not at each sweep.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_dead_letter_is_queried_after_growing_pauses() {
    let user = "sf-dead-pauses";
    let (broker, mut bed) = shared_bed_as(user).await;
    bed.config.wechat.total_timeout = span(2_000);
    bed.config.retry.query_delay = span(100);
    let results = bed.config.broker.names.results.clone();
    ctl(broker, &["set_topic_permissions", user, &results, r"^(?!redemption\.refused\.).*$", ".*"]).await;
    bed.issue("C1", json!({"state": "EXPIRED"}));
    dead_letter(&bed, "C1").await;
    let service = bed.start().await;
    // The calls of one try follow each other within the longest call and the query delay.
    let pauses = || -> Vec<u64> {
        let times: Vec<_> = bed.attempts("C1").iter().map(|call| call["at_us"].as_u64().unwrap()).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).filter(|pause| *pause > 4_000_000).collect()
    };
    until("a second try", async || !pauses().is_empty()).await;
    assert!(pauses()[0] >= 8_000_000, "{:?}", pauses());
    ctl(broker, &["clear_topic_permissions", user]).await;
    assert_eq!(bed.next_event().await.gist(), "refused expired EXPIRED");
    service.stop().await;
}

/// Without the right to read dead letters the service works, says what is missing, and sweeps once it is granted.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_dead_letters_are_reported_with_the_remedy() {
    let user = "sf-dead-read";
    let (broker, mut bed) = shared_bed_as(user).await;
    bed.config.wechat.total_timeout = span(2_000);
    bed.config.retry.query_delay = span(100);
    let dead = bed.config.broker.names.dead.clone();
    // Who makes the topology needs the right for that already.
    bed.start().await.stop().await;
    bed.config.broker.topology = "verify".to_owned();
    ctl(broker, &["set_permissions", user, ".*", ".*", &all_but(&dead)]).await;
    bed.issue("C1", json!({}));
    bed.issue("C2", json!({}));
    dead_letter(&bed, "C1").await;
    until("a dead letter", async || bed.ready(&dead).await == 1).await;
    let service = bed.start().await;
    until("the missing right reported", async || {
        let (_, status) = service.get("/status.json").await;
        status.contains("set_permissions") && status.contains(&dead) && status.contains("ACCESS_REFUSED")
    })
    .await;
    bed.publish(&command("C2", "USE_C2_1")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    assert_eq!(service.get("/readyz").await.0, 200);
    ctl(broker, &["set_permissions", user, ".*", ".*", ".*"]).await;
    assert_eq!(bed.next_event().await.gist(), "unresolved message_expired EFFECTIVE");
    until("nothing reported any more", async || {
        !service.get("/status.json").await.1.contains("set_permissions")
    })
    .await;
    service.stop().await;
}

/// Without delay queues an event that is not taken is held. A stop hands its command back without a count.
#[tokio::test(flavor = "multi_thread")]
async fn stop_costs_a_held_publish_no_delivery_without_delays() {
    let user = "sf-no-delays";
    let (broker, mut bed) = shared_bed_as(user).await;
    bed.config.retry.delays = Vec::new();
    bed.leave_parked().await;
    let results = bed.config.broker.names.results.clone();
    ctl(
        broker,
        &["set_topic_permissions", user, &results, r"^(?!redemption\.(redeemed|invalid)\.1).*$", ".*"],
    )
    .await;
    // Probes go under the key of a brand that does not exist, so that the events alone are rejected.
    bed.issue("C1", json!({}));
    bed.publish(&command("C1", "USE_C1_1")).await;
    let mut wrong = command("C2", "USE_C2_1");
    wrong["coupon_code"] = json!(7);
    bed.publish(&wrong).await;
    for _ in 0..2 {
        let service = bed.start().await;
        // Both, or the one alone that takes no call to find out how the provider is.
        until("what is taken is held", async || {
            let rejected =
                service.metric(r#"redeemer_publish_failures_total{message="event",reason="channel"}"#).await;
            let held = service.metric("redeemer_commands_in_flight").await;
            held > 0.0 && rejected >= held
        })
        .await;
        assert_eq!(service.metric(REDELIVERED).await, 0.0);
        service.stop().await;
        assert_eq!(bed.ready(&bed.config.broker.names.commands).await, 2);
    }
    ctl(broker, &["clear_topic_permissions", user]).await;
    let service = bed.start().await;
    let gists = BTreeSet::from([bed.next_event().await.gist(), bed.next_event().await.gist()]);
    assert_eq!(
        gists.iter().map(String::as_str).collect::<Vec<_>>(),
        ["invalid invalid_command -", "redeemed - USED"]
    );
    assert_eq!(service.metric(REDELIVERED).await, 0.0);
    assert_eq!(bed.uses().len(), 1);
    service.stop().await;
}

/// A subscriber whose queue refuses what is published under one key holds up the commands of that key alone, however many
/// they are.
#[tokio::test(flavor = "multi_thread")]
async fn subscriber_that_refuses_one_key_delays_its_commands_alone() {
    const REFUSED: usize = 40;
    const GOOD: usize = 80;
    let mut bed = Bed::new().await;
    bed.config.concurrency.commands = 10;
    bed.config.event.publish_retry_max = span(500);
    bed.config.retry.query_delay = span(100);
    bed.config.retry.delays = vec![span(1_000), span(3_000)];
    bed.leave_parked().await;
    let (full, results) = (format!("full-{}", std::process::id()), bed.config.broker.names.results.clone());
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let channel = bed.channel().clone();
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare(full.as_str().into(), options, arguments).await.unwrap();
    let filler = channel.basic_publish(
        "".into(),
        full.as_str().into(),
        BasicPublishOptions::default(),
        b"full",
        BasicProperties::default(),
    );
    assert!(filler.await.unwrap().await.unwrap().is_ack());
    let (key, binding) = ("redemption.refused.#", QueueBindOptions::default());
    channel
        .queue_bind(full.as_str().into(), results.as_str().into(), key.into(), binding, FieldTable::default())
        .await
        .unwrap();
    for nth in 0..REFUSED {
        bed.issue(&format!("E{nth}"), json!({"state": "EXPIRED"}));
        bed.publish(&command(&format!("E{nth}"), &format!("USE_E{nth:04}"))).await;
    }
    publish_backlog(&bed, GOOD).await;
    let service = bed.start().await;
    let (mut redeemed, mut refused) = (BTreeSet::new(), BTreeSet::new());
    let mut take = |reported: &bed::ReceivedEvent| {
        let number = reported.data("/out_request_no").as_str().unwrap().to_owned();
        match reported.gist().as_str() {
            "redeemed - USED" => redeemed.insert(number),
            // Those who do take it may have it several times, under one id.
            "refused expired EXPIRED" => refused.insert(number),
            other => panic!("{other}"),
        };
        (redeemed.len(), refused.len())
    };
    while take(&bed.next_event().await).0 < GOOD {}
    assert_eq!(
        service.metric(r#"redeemer_commands_settled_total{settlement="finished"}"#).await,
        GOOD as f64
    );
    assert_eq!(service.get("/livez").await.0, 200);
    channel.queue_delete(full.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    while take(&bed.next_event().await).1 < REFUSED {}
    service
        .wait_metric(r#"redeemer_commands_settled_total{settlement="finished"}"#, (GOOD + REFUSED) as f64)
        .await;
    parked_nothing(&bed).await;
    service.stop().await;
}

fn span(millis: u64) -> redeemer::config::Span {
    redeemer::config::Span(std::time::Duration::from_millis(millis))
}

/// Every message for `queue` is refused from now on, or no longer.
async fn fill(broker: &'static Broker, queue: &str, is_full: bool) {
    let pattern = format!("^{}$", queue.replace('.', r"\."));
    if is_full {
        let policy = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
        ctl(broker, &["set_policy", "full", &pattern, policy, "--apply-to", "queues"]).await;
    } else {
        ctl(broker, &["clear_policy", "full"]).await;
    }
}

/// Commands that the broker does not take back stay in hand, and no session is lost over them.
#[tokio::test(flavor = "multi_thread")]
async fn hand_backs_that_are_not_accepted_cost_no_session() {
    const COMMANDS: usize = 60;
    let broker = own_broker(&[]).await;
    let mut bed = Bed::on(broker).await;
    bed.config.broker.prefetch = 20;
    bed.config.concurrency.commands = 4;
    // A delay queue would wait for minutes for room in the command queue.
    bed.config.retry.delays = Vec::new();
    publish_backlog(&bed, COMMANDS).await;
    provider_takes(&bed, 200);
    let service = bed.start().await;
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, 10).await;
    bed.faults(json!([{"fault": {"kind": "html_502"}}]));
    service.wait_metric(r#"redeemer_circuit_open_cause{cause="server_error"}"#, 1.0).await;
    fill(broker, &bed.config.broker.names.commands, true).await;
    let begun = sessions(&service).await;
    let refused = r#"redeemer_publish_failures_total{message="handed_back",reason="refused"}"#;
    until("hand-backs refused", async || service.metric(refused).await >= 20.0).await;
    assert_eq!(sessions(&service).await, begun);
    provider_takes(&bed, 0);
    // The queue is as full as before.
    bed.faults(json!([]));
    all_redeemed(&mut bed, &mut seen, COMMANDS).await;
    fill(broker, &bed.config.broker.names.commands, false).await;
    service.wait_ready().await;
    nothing_burned(&bed, &service, begun).await;
    service.stop().await;
}

/// A subscriber's queue that never confirms (it has lost its majority, say) holds up its own events alone.
#[tokio::test(flavor = "multi_thread")]
async fn confirms_that_never_come_for_one_key_cost_no_session() {
    const COMMANDS: usize = 100;
    let broker = own_broker(&[]).await;
    let mut bed = Bed::on(broker).await;
    bed.config.broker.confirm_timeout = span(2_000);
    let queue = format!("stuck-{}", std::process::id());
    let (durable, binding) =
        (QueueDeclareOptions { durable: true, ..Default::default() }, QueueBindOptions::default());
    bed.channel().queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let (results, key) = (bed.config.broker.names.results.as_str().into(), "redemption.refused.#".into());
    bed.channel()
        .queue_bind(queue.as_str().into(), results, key, binding, FieldTable::default())
        .await
        .unwrap();
    set_suspended(broker, &queue, true).await;
    let service = bed.start().await;
    for nth in 0..3 {
        bed.issue(&format!("E{nth}"), json!({"state": "EXPIRED"}));
        bed.publish(&command(&format!("E{nth}"), &format!("USE_E{nth}"))).await;
    }
    publish_backlog(&bed, COMMANDS).await;
    let mut redeemed = 0;
    while redeemed < COMMANDS {
        // The broker routes an event to all queues; it is the confirm that waits for one of them.
        redeemed += usize::from(bed.next_event().await.gist() == "redeemed - USED");
    }
    let timed_out = r#"redeemer_publish_failures_total{message="event",reason="timed_out"}"#;
    until("confirms missing", async || service.metric(timed_out).await >= 3.0).await;
    until("ready, with a warning", async || {
        let status = status(&service).await;
        status["reasons"] == json!([]) && status["warnings"][0]["code"] == "event_rejected"
    })
    .await;
    nothing_burned(&bed, &service, 1.0).await;
    set_suspended(broker, &queue, false).await;
    service.wait_metric(r#"redeemer_outcomes_total{outcome="refused",reason="expired"}"#, 3.0).await;
    service.wait_ready().await;
    nothing_burned(&bed, &service, 1.0).await;
    service.stop().await;
}

/// Each right to publish, taken away before the start: connected, not consuming, and the remedy is named.
#[tokio::test(flavor = "multi_thread")]
async fn each_missing_right_to_publish_is_named_and_nothing_is_taken() {
    let user = "sf-each";
    let (broker, mut bed) = shared_bed_as(user).await;
    publish_backlog(&bed, 5).await;
    let names = bed.config.broker.names.clone();
    let service = bed.start().await;
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, 5).await;
    service.stop().await;
    for exchange in [names.results.as_str(), &names.retry, &names.parked, "amq.default"] {
        ctl(broker, &["set_permissions", user, ".*", &all_but(exchange), ".*"]).await;
        let number = seen.len();
        bed.issue(&format!("R{number}"), json!({}));
        bed.publish(&command(&format!("R{number}"), &format!("USE_R{number}"))).await;
        let service = bed.start_unready().await;
        until("the missing right named", async || {
            let status = status(&service).await;
            // A name of several objects: the broker says so when the topology is verified.
            let code = if exchange == names.parked { "broker_unavailable" } else { "publishing_rejected" };
            let (found, text) = (&status["reasons"][0]["code"], status["reasons"].to_string());
            found == code && text.contains(exchange) && text.contains("set_permissions")
        })
        .await;
        assert_eq!(service.metric("redeemer_commands_in_flight").await, 0.0, "{exchange}");
        // The same connections feel the right when it is given back.
        let begun = if exchange == names.parked { BTreeSet::new() } else { connections(broker, user).await };
        ctl(broker, &["set_permissions", user, ".*", ".*", ".*"]).await;
        all_redeemed(&mut bed, &mut seen, number + 1).await;
        let now = connections(broker, user).await;
        assert!(begun.is_subset(&now), "{exchange}: {begun:?} became {now:?}");
        nothing_burned(&bed, &service, 1.0).await;
        service.stop().await;
    }
}

/// The connections of a user, by the broker's own names for them.
async fn connections(broker: &'static Broker, user: &'static str) -> BTreeSet<String> {
    let list = || broker.ctl(&["list_connections", "user", "pid", "--quiet"]);
    let listed = tokio::task::spawn_blocking(list).await.unwrap();
    listed.lines().filter(|line| line.starts_with(user)).map(str::to_owned).collect()
}

/// An exchange that is missing before the start, where nobody may create it: named, and retried on the same connections.
#[tokio::test(flavor = "multi_thread")]
async fn exchange_missing_at_the_start_is_named_and_waited_for() {
    let user = "sf-gone";
    let (_, mut bed) = shared_bed_as(user).await;
    bed.config.broker.topology = "off".to_owned();
    bed.config.retry.delays = Vec::new();
    let names = bed.config.broker.names.clone();
    publish_backlog(&bed, 20).await;
    bed.channel()
        .exchange_delete(names.parked.as_str().into(), ExchangeDeleteOptions::default())
        .await
        .unwrap();
    let service = bed.start_unready().await;
    until("the missing exchange named", async || {
        let status = status(&service).await;
        status["broker"].is_string()
            && status["reasons"][0]["code"] == "publishing_rejected"
            && status["reasons"].to_string().contains(&names.parked)
    })
    .await;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    bed.channel()
        .exchange_declare(
            names.parked.as_str().into(),
            lapin::ExchangeKind::Fanout,
            options,
            FieldTable::default(),
        )
        .await
        .unwrap();
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, 20).await;
    nothing_burned(&bed, &service, 1.0).await;
    service.stop().await;
}

/// Sessions that are lost again and again before a command is settled: what was in hand once costs one delivery each, and
/// from then on one command is taken at a time.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_lost_in_a_row_cost_one_delivery_of_one_command_each() {
    const LOST: u32 = 6;
    let user = "sf-ramp";
    let (broker, mut bed) = shared_bed_as(user).await;
    bed.config.broker.prefetch = 40;
    publish_backlog(&bed, 200).await;
    let service = bed.start().await;
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, 50).await;
    provider_takes(&bed, 9_000);
    for nth in 1..=LOST {
        service.wait_metric("redeemer_broker_sessions_total", f64::from(nth)).await;
        until("a command in hand", async || service.metric("redeemer_commands_in_flight").await > 0.0).await;
        ctl(broker, &["close_all_user_connections", user, "lost in a row"]).await;
    }
    provider_takes(&bed, 0);
    all_redeemed(&mut bed, &mut seen, 200).await;
    let redelivered = service.metric(REDELIVERED).await;
    assert!(redelivered <= f64::from(40 + 2 * LOST), "{redelivered} deliveries in vain");
    parked_nothing(&bed).await;
    service.stop().await;
}

/// A dead letter may be what ends the process: its neighbors must not be in hand then.
#[tokio::test(flavor = "multi_thread")]
async fn killed_sweeps_cost_one_dead_letter_a_delivery_each() {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = span(100);
    for nth in 0..12 {
        bed.issue(&format!("K{nth}"), json!({}));
        dead_letter(&bed, &format!("K{nth}")).await;
    }
    let dead = bed.config.broker.names.dead.clone();
    until("dead letters", async || bed.ready(&dead).await == 12).await;
    provider_takes(&bed, 8_000);
    for _ in 0..4 {
        let mut killed = spawn(&bed);
        until("one in hand", async || bed.ready(&dead).await == 11).await;
        killed.start_kill().unwrap();
        killed.wait().await.unwrap();
        until("it is back", async || bed.ready(&dead).await == 12).await;
    }
    provider_takes(&bed, 0);
    let service = bed.start().await;
    until("dead letters named", async || {
        service.get("/status.json").await.1.contains(r#""code":"dead_letters_waiting""#)
    })
    .await;
    let mut seen = BTreeSet::new();
    while seen.len() < 12 {
        let event = bed.next_event().await;
        assert_eq!(event.gist(), "unresolved message_expired EFFECTIVE");
        seen.insert(event.data("/out_request_no").as_str().unwrap().to_owned());
        assert_eq!(bed::header(&bed.parked().await.1, "x-redemption-parked-reason"), "message_expired");
    }
    service.stop().await;
}

/// A hand-back that is not confirmed in time may have reached the queue, where another instance takes it: the delivery that
/// was kept is queried before it is used.
#[tokio::test(flavor = "multi_thread")]
async fn delivery_with_a_copy_in_the_queue_is_queried_before_its_use() {
    const COMMANDS: usize = 16;
    const PREFETCH: u16 = 8;
    let broker = own_broker(&[]).await;
    let mut bed = Bed::on(broker).await;
    bed.config.broker.prefetch = PREFETCH;
    bed.config.broker.confirm_timeout = span(1_000);
    bed.config.concurrency.commands = 1;
    bed.config.retry.query_delay = span(100);
    bed.config.retry.delays = Vec::new();
    let service = bed.start().await;
    bed.issue("FIRST_1", json!({}));
    bed.publish(&command("FIRST_1", "USE_FIRST_1")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    bed.faults(json!([{"fault": {"kind": "html_502"}}]));
    publish_backlog(&bed, COMMANDS).await;
    service.wait_metric(r#"redeemer_circuit_open_cause{cause="server_error"}"#, 1.0).await;
    // The prefetched ones were handed back; others are held instead, and fill the prefetch.
    until("the first handed back", async || {
        service.metric(r#"redeemer_commands_settled_total{settlement="handed_back"}"#).await >= 4.0
    })
    .await;
    until("others in hand", async || {
        service.metric("redeemer_commands_in_flight").await >= f64::from(PREFETCH)
    })
    .await;
    let queue = &bed.config.broker.names.commands;
    set_suspended(broker, queue, true).await;
    let timed_out = r#"redeemer_publish_failures_total{message="handed_back",reason="timed_out"}"#;
    until("hand-backs without a confirm", async || service.metric(timed_out).await >= 2.0).await;
    set_suspended(broker, queue, false).await;
    bed.faults(json!([]));
    let mut seen = BTreeSet::new();
    all_redeemed(&mut bed, &mut seen, COMMANDS).await;
    let mut queried_first = 0;
    for nth in 0..COMMANDS {
        let calls = bed.attempts(&format!("C{nth}"));
        let is_well = |call: &&serde_json::Value| call["fault"].is_null();
        let uses = calls.iter().filter(is_well).filter(|call| call["operation"] == "use").count();
        assert_eq!(uses, 1, "{calls:#?}");
        queried_first +=
            usize::from(calls.iter().all(|call| call["fault"].is_null()) && calls[0]["operation"] == "query");
    }
    assert!(queried_first >= 2, "{queried_first} of those that were not called before");
    parked_nothing(&bed).await;
    assert_eq!(sessions(&service).await, 1.0);
    service.stop().await;
}
