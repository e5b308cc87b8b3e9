//! `redeemer parked`, against a real broker, the service and the sandbox.

use std::process::{Output, Stdio};
use std::time::Duration;

use crate::bed;
use crate::bed::{Bed, command, until};
use jiff::{SignedDuration, Timestamp};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Consumer};
use redeemer::amqp::parked_queue::ParkedQueue;
use redeemer::config::Span;
use redeemer::wechat::client::hex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// A bed whose parked commands stay where they are.
async fn bed() -> Bed {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = Span(Duration::from_millis(100));
    bed.config.retry.initial = Span(Duration::from_millis(50));
    bed.leave_parked().await;
    bed
}

/// Sets bytes aside as the service does.
async fn park(bed: &Bed, bytes: &[u8], reason: &str, ago: Duration) {
    let at = Timestamp::now() - SignedDuration::try_from(ago).unwrap();
    let mut headers = FieldTable::default();
    for (name, text) in
        [("x-redemption-parked-reason", reason.to_owned()), ("x-redemption-parked-at", at.to_string())]
    {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    }
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_correlation_id("order-77".into());
    let exchange = bed.config.broker.names.parked.as_str();
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = bed.channel().basic_publish(exchange.into(), "".into(), options, bytes, properties);
    assert!(confirm.await.unwrap().await.unwrap().is_ack());
}

async fn park_command(bed: &Bed, code: &str, reason: &str) {
    let bytes = command(code, &format!("USE_{code}")).to_string();
    park(bed, bytes.as_bytes(), reason, Duration::from_secs(3_600)).await;
}

fn program(bed: &Bed, arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    program.arg("--config").arg(bed.config_file()).arg("parked").args(arguments);
    program.env("USER", "night-shift").stdin(Stdio::null()).kill_on_drop(true);
    program
}

async fn output(bed: &Bed, arguments: &[&str]) -> Output {
    program(bed, arguments).output().await.unwrap()
}

/// Runs it, expects this exit code, and gives its standard output.
async fn run(bed: &Bed, arguments: &[&str], code: i32) -> String {
    let output = output(bed, arguments).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{text}\n{complaint}");
    text
}

/// The same with its standard output read as JSON lines.
async fn lines(bed: &Bed, arguments: &[&str], code: i32) -> Vec<Value> {
    let text = run(bed, arguments, code).await;
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Takes everything out of a queue.
async fn drain(bed: &Bed, queue: &str) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    while let Some(got) = bed.channel().basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
        got.delivery.ack(BasicAckOptions::default()).await.unwrap();
        bodies.push(got.delivery.data);
    }
    bodies
}

/// How many messages a queue has, exactly; what a declare says is seconds old.
async fn depth(bed: &Bed, queue: &str) -> u32 {
    match bed.channel().basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
        None => 0,
        Some(got) => {
            let options = lapin::options::BasicNackOptions { requeue: true, multiple: false };
            got.delivery.nack(options).await.unwrap();
            got.message_count + 1
        }
    }
}

async fn audit(audits: &mut Consumer) -> (String, Value) {
    let delivery = bed::next(audits, "an audit event").await;
    delivery.ack(BasicAckOptions::default()).await.unwrap();
    let event: Value = serde_json::from_slice(&delivery.data).unwrap();
    assert_eq!(delivery.properties.message_id().as_ref().unwrap().as_str(), event["id"]);
    assert_eq!(delivery.properties.kind().as_ref().unwrap().as_str(), event["type"]);
    bed::keeps_the_contract(&event);
    (delivery.routing_key.to_string(), event)
}

fn asked(bed: &Bed, operation: &str) -> usize {
    let ledger = bed.ledger();
    ledger["attempts"].as_array().unwrap().iter().filter(|attempt| attempt["operation"] == operation).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_commands_are_listed_filtered_and_stay_parked() {
    let bed = bed().await;
    let hour = Duration::from_secs(3_600);
    let other_brand = command("C2", "USE_C2").to_string().replace("120344", "99");
    park(&bed, command("C1", "USE_C1").to_string().as_bytes(), "deadline_passed", 50 * hour).await;
    park(&bed, other_brand.as_bytes(), "deadline_passed", 3 * hour).await;
    park(&bed, command("C3", "USE_C3").to_string().as_bytes(), "corrupt_retry_message", hour).await;
    park(&bed, b"\xff\x1b[2J not a command", "invalid_command", hour / 60).await;
    let faulty = command("C5", "USE_C5").to_string().replace("appid", "apid");
    park(&bed, faulty.as_bytes(), "invalid_command", Duration::ZERO).await;

    let check = async |filter: &[&str], wanted: &[&str]| {
        let listed = lines(&bed, &[&["list", "--json"], filter].concat(), 0).await;
        let codes: Vec<_> = listed.iter().map(|line| line["coupon_code"].as_str().unwrap_or("-")).collect();
        assert_eq!(codes, wanted, "{filter:?}");
    };
    check(&[], &["C1", "C2", "C3", "-", "C5"]).await;
    check(&["--reason", "deadline_passed"], &["C1", "C2"]).await;
    check(&["--reason", "corrupt_retry_message", "--reason", "invalid_command"], &["C3", "-", "C5"]).await;
    check(&["--older-than", "2h"], &["C1", "C2"]).await;
    check(&["--newer-than", "2h"], &["C3", "-", "C5"]).await;
    check(&["--older-than", "30m", "--newer-than", "2h"], &["C3"]).await;
    check(&["--brand", "99"], &["C2"]).await;
    check(&["--coupon", "C5"], &["C5"]).await;
    check(&["--number", "USE_C3"], &["C3"]).await;
    check(&["--number", "USE_C3", "--brand", "99"], &[]).await;
    check(&["--limit", "2"], &["C1", "C2"]).await;
    let id = hex(&Sha256::digest(other_brand.as_bytes()));
    check(&["--id", &id[..12].to_uppercase()], &["C2"]).await;

    let text = run(&bed, &["list"], 0).await;
    let rows: Vec<_> = text.lines().collect();
    assert_eq!(rows.len(), 6, "{text}");
    assert!(rows[0].starts_with("ID") && rows[2].starts_with(&id[..12]), "{text}");
    assert!(rows[1].contains(" 2d ") && rows[2].contains(" 3h ") && rows[4].contains(" 1m "), "{text}");
    assert!(!text.contains('\u{1b}'));

    // Whole looks have not changed the order.
    let settings = bed.config.broker_settings().unwrap();
    let mut look = ParkedQueue::begin(&settings).await.unwrap();
    let mut order = Vec::new();
    while let Some(delivery) = look.next().await.unwrap() {
        order.push(delivery.body().to_vec());
    }
    look.end().await;
    assert_eq!((order[1].as_slice(), order[4].as_slice()), (other_brand.as_bytes(), faulty.as_bytes()));

    // A look that is cut off puts back what it held; behind the rest, which a list by time does not show.
    let mut look = ParkedQueue::begin(&settings).await.unwrap();
    for _ in 0..3 {
        look.next().await.unwrap().unwrap();
    }
    drop(look);
    check(&[], &["C1", "C2", "C3", "-", "C5"]).await;
    let left = drain(&bed, &bed.config.broker.names.parked).await;
    assert_eq!(left.len(), 5);
    assert!(left.contains(&other_brand.into_bytes()) && left.contains(&faulty.into_bytes()));
    assert_eq!(run(&bed, &["list"], 0).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_do_not_look_at_once() {
    let mut bed = bed().await;
    bed.config.broker.connect_timeout = Span(Duration::from_millis(800));
    park_command(&bed, "C1", "deadline_passed").await;
    let settings = bed.config.broker_settings().unwrap();
    let mut look = ParkedQueue::begin(&settings).await.unwrap();
    look.next().await.unwrap().unwrap();
    let refused = output(&bed, &["list"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty() && !refused.stderr.is_empty(), "{refused:?}");
    look.end().await;
    assert_eq!(lines(&bed, &["list", "--json"], 0).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_shown_whole_with_what_is_true_now() {
    let bed = bed().await;
    bed.issue("C1", json!({"state": "USED", "used_by": "OTHER_0001"}));
    park_command(&bed, "C1", "deadline_passed").await;
    park(&bed, b"\xff{", "invalid_command", Duration::ZERO).await;
    let shown = lines(&bed, &["show", "--query", "--json"], 0).await;
    assert_eq!(shown[0]["query"]["status"], "refused", "{:#}", shown[0]);
    assert_eq!(shown[0]["query"]["reason"], "used_by_another");
    assert_eq!(shown[0]["query"]["coupon_state"], "USED");
    assert_eq!(shown[0]["body"], command("C1", "USE_C1").to_string());
    assert_eq!(shown[0]["headers"]["x-redemption-parked-reason"], "deadline_passed");
    assert_eq!(shown[0]["headers"]["correlation_id"], "order-77");
    assert_eq!(shown[1]["body_base64"], "/3s=");
    assert_eq!(shown[1]["faults"][0]["pointer"], "");
    assert_eq!(shown[1]["query"], Value::Null);
    let text = run(&bed, &["show", "--query", "--coupon", "C1"], 0).await;
    for wanted in ["refused: used_by_another (USED)", "x-redemption-parked-at", "USE_C1", "1h ago"] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    assert_eq!((asked(&bed, "query"), asked(&bed, "use")), (2, 0));
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let bed = bed().await;
    let mut everything = bed.bind_results("#").await;
    bed.issue("C1", json!({}));
    bed.issue("C2", json!({"state": "USED", "used_by": "USE_C2"}));
    bed.issue("C3", json!({"state": "EXPIRED"}));
    bed.issue("C5", json!({}));
    for code in ["C1", "C2", "C3", "C4"] {
        park_command(&bed, code, "deadline_passed").await;
    }
    park_command(&bed, "C5", "invalid_command").await;
    park(&bed, b"{}", "invalid_command", Duration::ZERO).await;
    let said = lines(&bed, &["replay", "--json", "--per-second", "100"], 0).await;
    let gist = |line: &Value| line["would"].as_str().or(line["left"].as_str()).unwrap().to_owned();
    let gists: Vec<_> = said.iter().map(gist).collect();
    assert_eq!(gists[..2], ["republished", "published_redeemed"]);
    assert_eq!(gists[2..], ["refused", "refused", "outcome_final", "not_a_command"]);
    let reasons: Vec<_> = said.iter().map(|line| &line["query"]["reason"]).collect();
    assert_eq!((reasons[2], reasons[3]), (&json!("expired"), &json!("no_such_coupon")));
    run(&bed, &["discard", "--all", "--because", "a rehearsal"], 0).await;

    assert_eq!((asked(&bed, "query"), asked(&bed, "use")), (4, 0));
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 6);
    assert_eq!(depth(&bed, &bed.config.broker.names.commands).await, 0);
    // The next event is the first: nothing was reported before it.
    let first = bed.config.broker.names.results.as_str();
    let sent = bed.channel().basic_publish(
        first.into(),
        "the.end".into(),
        BasicPublishOptions::default(),
        b"",
        BasicProperties::default(),
    );
    sent.await.unwrap().await.unwrap();
    assert_eq!(bed::next(&mut everything, "the end").await.routing_key.as_str(), "the.end");
}

/// A command that the service itself gave up: reported unresolved, and parked.
async fn unresolved(bed: &mut Bed, code: &str, rules: Value) {
    bed.issue(code, json!({}));
    bed.faults(rules);
    let service = bed.start().await;
    let mut headers = FieldTable::default();
    let soon = (Timestamp::now() + SignedDuration::from_millis(1_500)).to_string();
    headers.insert("x-redemption-deadline".into(), AMQPValue::LongString(soon.into()));
    let bytes = command(code, &format!("USE_{code}")).to_string();
    let properties = BasicProperties::default().with_headers(headers).with_correlation_id("order-77".into());
    bed.publish_bytes(bytes.as_bytes(), properties).await;
    assert_eq!(bed.next_event().await.gist(), "unresolved deadline_passed -");
    service.stop().await;
    bed.faults(json!([]));
    until("the command parked", async || depth(bed, &bed.config.broker.names.parked).await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unresolved_command_is_republished_and_redeemed_once() {
    let mut bed = bed().await;
    let mut audits = bed.bind_results("audit.#").await;
    unresolved(&mut bed, "C1", json!([{"fault": {"kind": "html_502"}}])).await;
    let shown = lines(&bed, &["show", "--json"], 0).await;
    assert_eq!(shown[0]["evidence"][0]["operation"], "redeem");
    let before = shown[0]["attempts"].as_u64().unwrap() as usize;
    let said = lines(&bed, &["replay", "--yes", "--json", "--because", "provider is back"], 0).await;
    assert_eq!(said[0]["did"], "republished", "{said:#?}");
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 0);

    let (key, event) = audit(&mut audits).await;
    assert_eq!(
        (key.as_str(), &event["type"]),
        ("audit.parked.replayed", &json!("redemption.parked.replayed.v1"))
    );
    let data = &event["data"];
    assert_eq!((&data["operator"], &data["because"]), (&json!("night-shift"), &json!("provider is back")));
    assert_eq!((&data["effect"], &data["parked_reason"]), (&json!("republished"), &json!("deadline_passed")));
    assert_eq!(data["query"]["verdict"], "not_executed");
    assert_eq!(data["coupon_state"], "EFFECTIVE");

    let service = bed.start().await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    assert_eq!(reported.properties.correlation_id().as_ref().unwrap().as_str(), "order-77");
    let evidence = reported.data("/evidence").as_array().unwrap();
    assert_eq!(evidence[0]["verdict"], "unknown", "what was tried before is reported on: {evidence:#?}");
    let attempts = reported.data("/attempts").as_u64().unwrap() as usize;
    assert_eq!(attempts.min(16), evidence.len(), "each attempt that is shown counts: {evidence:#?}");
    assert!(attempts > before, "{attempts} in all, {before} before the replay");
    assert!(evidence.iter().any(|entry| entry["verdict"] == "not_executed"));
    assert_eq!(bed.uses(), [("C1".to_owned(), "USE_C1".to_owned())]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_reports_a_command_that_has_taken_effect() {
    let mut bed = bed().await;
    let mut audits = bed.bind_results("audit.#").await;
    let rules = json!([
        {"operation": "use", "fault": {"kind": "cut_after_effect"}},
        {"operation": "query", "fault": {"kind": "html_502"}},
    ]);
    unresolved(&mut bed, "C1", rules).await;
    let before = asked(&bed, "use");
    let text = run(&bed, &["replay", "--yes"], 0).await;
    assert!(text.contains("redeemed under this number (USED); published redeemed"), "{text}");
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    assert_eq!(reported.data("/established_by"), "query");
    assert_eq!(reported.properties.correlation_id().as_ref().unwrap().as_str(), "order-77");
    assert_eq!(audit(&mut audits).await.1["data"]["effect"], "published_redeemed");
    assert_eq!(depth(&bed, &bed.config.broker.names.commands).await, 0);
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 0);
    assert_eq!((asked(&bed, "use"), bed.uses().len()), (before, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_now_stays_parked_unless_it_shall_be_reported() {
    let mut bed = bed().await;
    bed.issue("C1", json!({"state": "EXPIRED"}));
    bed.issue("C2", json!({}));
    park_command(&bed, "C1", "deadline_passed").await;
    park_command(&bed, "C2", "deadline_passed").await;
    let said = lines(&bed, &["replay", "--yes", "--json"], 4).await;
    assert_eq!((&said[0]["left"], &said[0]["query"]["reason"]), (&json!("refused"), &json!("expired")));
    assert_eq!(said[1]["did"], "republished");
    let said = lines(&bed, &["replay", "--yes", "--json", "--publish-refused"], 0).await;
    assert_eq!(said[0]["did"], "published_refused");
    assert_eq!(bed.next_event().await.gist(), "refused expired EXPIRED");
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_command_stays_parked_and_suspension_ends_the_run() {
    let mut bed = bed().await;
    for code in ["C1", "C2"] {
        bed.issue(code, json!({}));
        park_command(&bed, code, "deadline_passed").await;
    }
    bed.faults(json!([{"coupon_code": "C1", "fault": {"kind": "no_signature"}}]));
    let said = lines(&bed, &["replay", "--yes", "--json"], 4).await;
    assert_eq!(said[0]["left"], "unknown", "{said:#?}");
    assert_eq!(said[1]["did"], "republished");
    bed.config.wechat.merchant_serial = "0".repeat(40);
    park_command(&bed, "C2", "deadline_passed").await;
    let stopped = output(&bed, &["replay", "--yes"]).await;
    assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
    assert_eq!(String::from_utf8(stopped.stdout).unwrap().lines().count(), 1, "no second call");
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_loses_nothing_and_a_second_run_finishes() {
    const ALL: usize = 40;
    let bed = bed().await;
    for nth in 0..ALL {
        bed.issue(&format!("C{nth:02}"), json!({}));
        park_command(&bed, &format!("C{nth:02}"), "deadline_passed").await;
    }
    let mut child = program(&bed, &["replay", "--yes", "--per-second", "50"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..10 {
        said.next_line().await.unwrap().unwrap();
    }
    child.kill().await.unwrap();
    let rest = lines(&bed, &["replay", "--yes", "--per-second", "100", "--json"], 0).await;
    assert!((20..=30).contains(&rest.len()), "{}", rest.len());
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 0);
    let service = bed.start().await;
    until("all redeemed", async || bed.uses().len() >= ALL).await;
    service.stop().await;
    let mut codes: Vec<_> = bed.uses().into_iter().map(|(code, _)| code).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!((codes.len(), bed.uses().len()), (ALL, ALL));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_copy_and_the_ack_takes_no_second_effect() {
    let mut bed = bed().await;
    bed.issue("C1", json!({}));
    let at = Duration::from_secs(3_600);
    let bytes = command("C1", "USE_C1").to_string();
    // The same parked command twice is what such a crash leaves: a copy under way, and the command still parked.
    for _ in 0..2 {
        park(&bed, bytes.as_bytes(), "deadline_passed", at).await;
        lines(&bed, &["replay", "--yes", "--json"], 0).await;
    }
    assert_eq!(depth(&bed, &bed.config.broker.names.commands).await, 2);
    let service = bed.start().await;
    let (first, second) = (bed.next_event().await, bed.next_event().await);
    assert_eq!((first.gist(), &first.event["id"]), (second.gist(), &second.event["id"]));
    assert_eq!(bed.uses().len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_long_is_put_back_and_nothing_is_asked_twice() {
    let bed = bed().await;
    for nth in 0..9 {
        let state = if nth % 2 == 0 { json!({"state": "EXPIRED"}) } else { json!({}) };
        bed.issue(&format!("C{nth}"), state);
        park_command(&bed, &format!("C{nth}"), "deadline_passed").await;
    }
    let said = lines(&bed, &["replay", "--yes", "--json", "--per-second", "10", "--hold", "300ms"], 4).await;
    assert_eq!(said.iter().filter(|line| line["did"] == "republished").count(), 4);
    assert_eq!((said.len(), asked(&bed, "query")), (9, 9));
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 5);
    let dry = lines(&bed, &["replay", "--json", "--per-second", "10", "--hold", "300ms"], 0).await;
    assert_eq!((dry.len(), asked(&bed, "query")), (5, 14));
    let few = lines(&bed, &["replay", "--json", "--per-second", "10", "--limit", "2"], 0).await;
    assert_eq!(few.len(), 2);
}

/// How long after the first query the last one came to the sandbox.
fn spread(bed: &Bed) -> Duration {
    let ledger = bed.ledger();
    let queries = ledger["attempts"].as_array().unwrap().iter().filter(|each| each["operation"] == "query");
    let at: Vec<_> = queries.map(|each| each["at_us"].as_u64().unwrap()).collect();
    Duration::from_micros(at.iter().max().unwrap() - at.iter().min().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_commands_a_second_are_republished_than_was_said() {
    let bed = bed().await;
    for nth in 0..6 {
        bed.issue(&format!("C{nth}"), json!({}));
        park_command(&bed, &format!("C{nth}"), "deadline_passed").await;
    }
    let said = lines(&bed, &["replay", "--yes", "--json", "--per-second", "4"], 0).await;
    assert!(said.len() == 6 && said.iter().all(|line| line["did"] == "republished"), "{said:#?}");
    // The first may have been long on its way. The second left after it had come, and four more each after a wait.
    assert!(spread(&bed) >= Duration::from_secs(1), "{:?}", spread(&bed));
}

#[tokio::test(flavor = "multi_thread")]
async fn limited_dry_run_shows_the_commands_that_yes_selects() {
    let bed = bed().await;
    for nth in 0..7 {
        park_command(&bed, &format!("C{nth}"), "deadline_passed").await;
    }
    let discard = ["discard", "--all", "--because", "not needed", "--json", "--limit", "2"];
    let ids = async |more: &[&str]| -> Vec<Value> {
        let lines = lines(&bed, &[&discard[..], more].concat(), 0).await;
        lines.iter().map(|line| line["id"].clone()).collect()
    };
    let shown = ids(&[]).await;
    assert_eq!((shown.len(), &shown), (2, &ids(&[]).await), "looking changes nothing");
    assert_eq!(shown, ids(&["--yes"]).await);
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_wants_a_reason_and_leaves_its_audit_event() {
    let bed = bed().await;
    let mut audits = bed.bind_results("audit.#").await;
    park_command(&bed, "C1", "deadline_passed").await;
    park(&bed, b"\xff{", "invalid_command", Duration::ZERO).await;
    run(&bed, &["discard", "--all", "--yes"], 2).await;
    run(&bed, &["discard", "--all", "--yes", "--because", "  "], 2).await;
    run(&bed, &["discard", "--yes", "--because", "no filter"], 1).await;
    let nobody = program(&bed, &["discard", "--all", "--yes", "--because", "x"]).env_remove("USER").output();
    assert_eq!(nobody.await.unwrap().status.code(), Some(1));
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 2);

    let filter = ["--reason", "invalid_command", "--because", "a test of ours", "--operator", "wang"];
    let text = run(&bed, &[&["discard", "--yes"], &filter[..]].concat(), 0).await;
    assert!(text.contains("discarded"), "{text}");
    let (key, event) = audit(&mut audits).await;
    assert_eq!(
        (key.as_str(), &event["type"]),
        ("audit.parked.discarded", &json!("redemption.parked.discarded.v1"))
    );
    let data = &event["data"];
    assert_eq!((&data["operator"], &data["because"]), (&json!("wang"), &json!("a test of ours")));
    assert_eq!(data["body_sha256"], hex(&Sha256::digest(b"\xff{")));
    assert_eq!((&data["body_bytes"], &data["coupon_code"]), (&json!(2), &Value::Null));
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 1);

    run(&bed, &["discard", "--yes", "--all", "--because", "refunded by hand"], 0).await;
    let (_, event) = audit(&mut audits).await;
    assert_eq!((&event["subject"], &event["data"]["out_request_no"]), (&json!("C1"), &json!("USE_C1")));
    assert_eq!(event["data"]["parked_reason"], "deadline_passed");
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 0);
    assert_eq!(bed.ledger()["attempts"], json!([]), "nothing is asked to discard");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_is_reported_parked_and_can_be_republished() {
    let mut bed = bed().await;
    bed.config.retry.query_delay = redeemer::config::Span(Duration::from_millis(100));
    bed.issue("C1", json!({}));
    bed.publish(&command("C1", "USE_C1")).await;
    let commands = bed.config.broker.names.commands.clone();
    until("the broker dead-letters it", async || {
        let got =
            bed.channel().basic_get(commands.as_str().into(), BasicGetOptions::default()).await.unwrap();
        if let Some(got) = got {
            got.delivery.reject(BasicRejectOptions { requeue: true }).await.unwrap();
        }
        depth(&bed, &bed.config.broker.names.dead).await == 1
    })
    .await;
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "unresolved delivery_limit EFFECTIVE");
    until("it is parked", async || depth(&bed, &bed.config.broker.names.parked).await == 1).await;
    service.stop().await;
    assert!(bed.uses().is_empty(), "a dead letter is only asked about");
    let listed =
        lines(&bed, &["list", "--json", "--reason", "delivery_limit", "--newer-than", "5m"], 0).await;
    assert_eq!(listed[0]["out_request_no"], "USE_C1", "{listed:#?}");
    let said = lines(&bed, &["replay", "--yes", "--json"], 0).await;
    assert_eq!(said[0]["did"], "republished");
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    assert_eq!(bed.uses().len(), 1);
    service.stop().await;
}

#[test]
fn command_line_rejects_operator_text_with_hidden_characters() {
    // Before anything is connected.
    let unreachable = ("REDEEMER_BROKER__URI", "amqp://guest:guest@127.0.0.1:1/%2f");
    let long = "y".repeat(201);
    for text in ["refunded\u{202e}dednufer", "a\r\nb", "a\u{200b}b", "a\u{1b}[31m", "tab\t", "", " ", &long] {
        for arguments in [
            ["discard", "--all", "--because", text],
            ["replay", "--yes", "--because", text],
            ["replay", "--yes", "--operator", text],
            ["list", "--json", "--reason", text],
            ["list", "--json", "--brand", text],
            ["list", "--json", "--coupon", text],
            ["list", "--json", "--number", text],
            ["show", "--json", "--id", text],
        ] {
            let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_redeemer"));
            program.arg("parked").args(arguments).env(unreachable.0, unreachable.1);
            let output = program.output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
            let named = String::from_utf8_lossy(&output.stderr).contains(arguments[2]);
            assert!(named, "{arguments:?}: {output:?}");
        }
    }
}
