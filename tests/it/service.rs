//! The service against a real broker and the sandbox: what goes in, and what comes out.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use crate::bed;
use crate::bed::{Bed, command, header, until};
use crate::broker::Broker;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::amqp::connection::CannotConnect;
use redeemer::amqp::session::Session;
use redeemer::config::Span;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_coupon_is_redeemed_and_reported_with_its_state() {
    let mut bed = Bed::new().await;
    bed.issue("C1", json!({}));
    let service = bed.start().await;
    let properties =
        BasicProperties::default().with_correlation_id("order-77".into()).with_reply_to("till-3".into());
    bed.publish_bytes(command("C1", "USE_C1_0001").to_string().as_bytes(), properties).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    assert_eq!(reported.routing_key, "redemption.redeemed.120344");
    assert_eq!(reported.properties.correlation_id().as_ref().unwrap().as_str(), "order-77");
    assert_eq!(reported.event["specversion"], "1.0");
    assert_eq!(reported.event["type"], "redemption.redeemed.v1");
    assert_eq!(reported.event["subject"], "C1");
    assert_eq!(reported.data("/established_by"), "response");
    assert_eq!(reported.data("/attempts"), 1);
    assert_eq!(reported.data("/coupon/single_usage_detail/use_request_no"), "USE_C1_0001");
    assert_ne!(
        *reported.data("/coupon/sandbox_unpublished_field"),
        Value::Null,
        "unknown fields pass through"
    );
    assert_eq!(reported.data("/evidence/0/verdict"), "redeemed");
    assert_eq!(reported.data("/evidence/0/serial"), &json!(bed.sandbox.card().public_key_id));
    assert_eq!(bed.uses(), [("C1".to_owned(), "USE_C1_0001".to_owned())]);
    assert_eq!(service.metric(r#"redeemer_outcomes_total{outcome="redeemed",reason=""}"#).await, 1.0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_reported_with_the_coupons_state_from_an_query() {
    let mut bed = Bed::new().await;
    let service = bed.start().await;
    for (code, more, expected) in [
        ("C1", json!({"state": "USED", "used_by": "OTHER_0001"}), "refused used_by_another USED"),
        ("C2", json!({"state": "EXPIRED"}), "refused expired EXPIRED"),
        ("C3", json!({"state": "DELETED"}), "refused deleted DELETED"),
        ("C4", json!({"state": "DEACTIVATED"}), "refused deactivated DEACTIVATED"),
        ("C5", json!({"state": "PENDING"}), "refused not_yet_valid PENDING"),
        ("C6", json!({"state": "CONFIRMING"}), "refused not_confirmed CONFIRMING"),
    ] {
        bed.issue(code, more);
        bed.publish(&command(code, "USE_0001")).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), expected);
        assert_eq!(reported.data("/established_by"), "query");
        assert_eq!(reported.data("/problem/http_status"), 403);
    }
    bed.publish(&command("C7", "USE_0001")).await;
    assert_eq!(bed.next_event().await.gist(), "refused no_such_coupon -");
    assert!(bed.uses().is_empty());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_command_is_reported_and_parked_byte_for_byte() {
    let mut bed = Bed::new().await;
    bed.issue("C1", json!({}));
    let service = bed.start().await;
    let good = command("C1", "USE_0001").to_string();
    let long = format!("{good}{}", " ".repeat(64 * 1024));
    let hostile: Vec<(Vec<u8>, &[&str])> = vec![
        (b"\xff\xfe".to_vec(), &[""]),
        (b"".to_vec(), &[""]),
        (long.into_bytes(), &[""]),
        (b"[1,2]".to_vec(), &[""]),
        (good.replace("\"120344\"", "120344").into_bytes(), &["/brand_id"]),
        (good.replace("\"C1\"", "\"../C1\"").into_bytes(), &["/coupon_code"]),
        (good.replace("\"C1\"", "\"C%2f1\"").into_bytes(), &["/coupon_code"]),
        (good.replace("USE_0001", "USE_😀").into_bytes(), &["/out_request_no"]),
        (good.replace("USE_0001", "USE\\u0000_0001").into_bytes(), &["/out_request_no"]),
        (good.replace("\"1000000013001\"", "null").into_bytes(), &["/stock_id"]),
        (good.replace("stock_id", "stok_id").into_bytes(), &["/stock_id", "/stok_id"]),
        (
            good.replace("{\"transaction_id\"", "{\"x\":{},\"transaction_id\"").into_bytes(),
            &["/associated_order_info/x"],
        ),
        (
            good.replace("associated_order_info", "remark").into_bytes(),
            &["/associated_order_info", "/remark"],
        ),
    ];
    for (bytes, pointers) in hostile {
        bed.publish_bytes(&bytes, BasicProperties::default().with_message_id("m-1".into())).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "invalid invalid_command -", "{bytes:?}");
        let faults = reported.data("/problem/faults").as_array().unwrap();
        let found: Vec<_> = faults.iter().map(|fault| fault["pointer"].as_str().unwrap()).collect();
        assert_eq!(found, pointers, "{bytes:?}");
        assert_eq!(reported.properties.correlation_id().as_ref().unwrap().as_str(), "m-1");
        let (kept, headers) = bed.parked().await;
        assert_eq!(kept, bytes);
        assert_eq!(header(&headers, "x-redemption-parked-reason"), "invalid_command");
    }
    bed.publish(&command("C1", "USE_0001")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED", "the next command is unharmed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_cannot_be_read_is_a_fault_of_the_command() {
    let mut bed = Bed::new().await;
    let service = bed.start().await;
    for value in [AMQPValue::LongString("tomorrow".into()), AMQPValue::Boolean(true)] {
        let mut headers = FieldTable::default();
        headers.insert("x-redemption-deadline".into(), value);
        let bytes = command("C1", "USE_0001").to_string();
        bed.publish_bytes(bytes.as_bytes(), BasicProperties::default().with_headers(headers)).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "invalid invalid_command -");
        assert!(
            reported.data("/problem/faults/0/problem").as_str().unwrap().contains("x-redemption-deadline")
        );
        assert_eq!(reported.data("/out_request_no"), "USE_0001");
        assert_eq!(bed.parked().await.0, bytes.as_bytes());
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_command_takes_effect_once_with_one_event_id() {
    let mut bed = Bed::new().await;
    bed.issue("C1", json!({}));
    let service = bed.start().await;
    bed.publish(&command("C1", "USE_0001")).await;
    bed.publish(&command("C1", "USE_0001")).await;
    let (first, second) = (bed.next_event().await, bed.next_event().await);
    assert_eq!(first.gist(), "redeemed - USED");
    assert_eq!(first.event["id"], second.event["id"]);
    assert_eq!(bed.uses().len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_on_the_way_is_found_out_and_never_done_twice() {
    let mut bed = Bed::new().await;
    let service = bed.start().await;
    for (code, fault, by, operation) in [
        ("F1", json!({"kind": "cut_after_effect"}), "query", "use"),
        ("F2", json!({"kind": "cut_before_effect"}), "response", "use"),
        ("F3", json!({"kind": "probe_signature"}), "query", "use"),
        ("F4", json!({"kind": "unknown_serial"}), "query", "use"),
        ("F5", json!({"kind": "stale_timestamp"}), "query", "use"),
        ("F6", json!({"kind": "no_signature"}), "query", "use"),
        ("F7", json!({"kind": "html_502"}), "response", "use"),
        ("F8", json!({"kind": "status", "status": 202}), "response", "use"),
        ("F9", json!({"kind": "status", "status": 429, "code": "RATELIMIT_EXCEEDED"}), "response", "use"),
        ("F10", json!({"kind": "unsigned_refusal"}), "response", "use"),
        ("F11", json!({"kind": "wrong_number"}), "query", "use"),
        ("F12", json!({"kind": "already_used_number"}), "query", "use"),
        ("F13", json!({"kind": "huge_body", "bytes": 10_000_000}), "query", "use"),
        ("F14", json!({"kind": "truncated_body"}), "query", "use"),
        ("F15", json!({"kind": "deep_json"}), "response", "use"),
        ("F16", json!({"kind": "gzip"}), "query", "use"),
        ("F17", json!({"kind": "forged_success"}), "response", "use"),
        ("F18", json!({"kind": "forged_success", "signed": true}), "response", "use"),
    ] {
        bed.issue(code, json!({}));
        bed.faults(json!([{"coupon_code": code, "operation": operation, "times": 1, "fault": fault}]));
        bed.publish(&command(code, &format!("USE_{code}_1"))).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED", "{code} {fault}");
        assert_eq!(reported.data("/established_by"), by, "{code} {fault}: {:#}", reported.event);
        assert_eq!(bed.uses().iter().filter(|(used, _)| used == code).count(), 1, "{code}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_waits_for_its_broker_and_reconnects() {
    let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    let bed = Bed::on(&broker).await;
    for nth in 0..20 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let broker = off(broker, Broker::kill9).await;
    let service = bed.start_unready().await;
    until("the broker named", async || service.get("/readyz").await.1.starts_with("[broker_unavailable] "))
        .await;
    assert_eq!(service.get("/livez").await.0, 200);

    // The bed's own connection died with the broker, so the ledger and the broker's queues report what happened.
    let broker = off(broker, Broker::restart).await;
    service.wait_ready().await;
    until("every command redeemed", async || bed.uses().len() == 20).await;
    service.wait_metric(r#"redeemer_outcomes_total{outcome="redeemed",reason=""}"#, 20.0).await;

    let broker = off(broker, Broker::kill9).await;
    service.wait_unready().await;
    let broker = off(broker, Broker::restart).await;
    service.wait_ready().await;
    let bed = bed.reconnect(&broker).await;
    let unrouted = &bed.config.broker.names.unrouted;
    until("results that nobody had bound, kept", async || bed.ready(unrouted).await == 20).await;
    bed.issue("C20", json!({}));
    let mut bed = bed;
    bed.publish(&command("C20", "USE_0020")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    // A broker that is still choosing the leader of the queue may cost one more.
    assert!(service.metric("redeemer_broker_sessions_total").await >= 2.0);
    service.stop().await;
    drop(bed);
    off(broker, |_| ()).await;
}

async fn off(broker: Broker, what: impl FnOnce(&Broker) + Send + 'static) -> Broker {
    tokio::task::spawn_blocking(move || {
        what(&broker);
        broker
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivered_command_begins_with_the_query() {
    let mut bed = Bed::new().await;
    bed.issue("C1", json!({}));
    bed.issue("C2", json!({"state": "USED", "used_by": "USE_0002"}));
    for nth in 1..=2 {
        bed.publish(&command(&format!("C{nth}"), &format!("USE_000{nth}"))).await;
    }
    // Somebody takes both and dies.
    let mut dead = bed.consume_elsewhere(&bed.config.broker.names.commands).await;
    for _ in 0..2 {
        bed::next(&mut dead.1, "a command").await;
    }
    drop(dead);
    until("both back in the queue", async || bed.ready(&bed.config.broker.names.commands).await == 2).await;

    let service = bed.start().await;
    for _ in 0..2 {
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED");
        assert_eq!(reported.data("/evidence/0/operation"), "query");
        let code = reported.data("/coupon_code").as_str().unwrap();
        let calls = bed.attempts(code);
        let looks = calls.iter().take_while(|call| call["operation"] == "query").count();
        let (by, uses, least) = match code {
            // An early look, and found usable twice, a query delay apart, before the redemption is sent.
            "C1" => ("response", 1, 3),
            _ => ("query", 0, 1),
        };
        assert_eq!(
            (reported.data("/established_by"), reported.data("/attempts")),
            (&json!(by), &json!(calls.len()))
        );
        // Where the machine holds a use up for long, it is preceded by a further look.
        assert!(calls.len() == looks + uses && (least..=least + uses).contains(&looks), "{calls:#?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_calls_and_hands_back_the_rest() {
    let mut bed = Bed::new().await;
    bed.config.concurrency.commands = 4;
    for nth in 0..40 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    // Ten seconds of work, of which the first second is done when it is stopped.
    bed.faults(json!([{"fault": {"kind": "slow", "ms": 1_000}}]));
    let service = bed.start().await;
    bed.next_event().await;
    service.stop().await;
    bed.faults(json!([]));
    let commands = bed.config.broker.names.commands.clone();
    let done = bed.uses().len();
    assert!(done < 40, "it was stopped in the middle");
    until("each done or handed back", async || bed.ready(&commands).await as usize + done == 40).await;
    let service = bed.start().await;
    until("the rest done", async || bed.uses().len() == 40).await;
    service.stop().await;
    assert_eq!(bed.ready(&commands).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_is_reported_by_the_argument() {
    let mut bed = Bed::new().await;
    bed.config.broker.delivery_limit = 7;
    let service = bed.start_unready().await;
    until("the reason in words", async || service.get("/readyz").await.1.contains("x-delivery-limit")).await;
    bed.config.broker.names.commands = "no.such.queue".to_owned();
    bed.config.broker.topology = "verify".to_owned();
    let other = bed.start_unready().await;
    until("what is missing in words", async || {
        other.get("/readyz").await.1.contains("exchange no.such.queue")
    })
    .await;
    service.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_to_is_a_routing_key_on_the_reply_exchange() {
    let mut bed = Bed::new().await;
    bed.issue("C1", json!({}));
    let mut till = bed.bind_results("till-3").await;
    let service = bed.start().await;
    let properties = BasicProperties::default().with_reply_to("till-3".into());
    bed.publish_bytes(command("C1", "USE_0001").to_string().as_bytes(), properties).await;
    let delivery = bed::next(&mut till, "the result by reply_to").await;
    assert_eq!(delivery.exchange.as_str(), bed.config.broker.names.results);
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_command_returns_unchanged_from_a_delay_queue() {
    let mut bed = Bed::new().await;
    bed.config.retry.delays = vec![Span(Duration::from_millis(500)), Span(Duration::from_secs(1))];
    bed.config.retry.in_process_max = Span(Duration::from_millis(300));
    bed.config.retry.query_delay = Span(Duration::from_millis(100));
    bed.config.retry.initial = Span(Duration::from_millis(100));
    bed.config.broker.topology = "create".to_owned();
    bed.issue("C1", json!({}));
    bed.faults(json!([{"coupon_code": "C1", "times": 6, "fault": {"kind": "html_502"}}]));
    let service = bed.start().await;
    bed.publish(&command("C1", "USE_0001")).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    assert!(reported.data("/attempts").as_u64() > Some(6), "{:#}", reported.event);
    assert!(service.metric(r#"redeemer_commands_settled_total{settlement="delayed"}"#).await >= 1.0);
    let attempts = bed.ledger()["attempts"].as_array().unwrap().clone();
    let uses = attempts.iter().filter(|attempt| attempt["operation"] == "use");
    let bodies: std::collections::BTreeSet<_> =
        uses.map(|attempt| attempt["body_sha256"].to_string()).collect();
    assert_eq!(bodies.len(), 1, "the body never changes");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_what_is_still_unknown_is_reported_and_parked() {
    let mut bed = Bed::new().await;
    bed.issue("C1", json!({}));
    bed.faults(json!([{"coupon_code": "C1", "fault": {"kind": "cut_before_effect"}}]));
    let service = bed.start().await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let mut headers = FieldTable::default();
    let soon = AMQPValue::LongString(soon.to_string().into());
    headers.insert("x-redemption-deadline".into(), soon);
    let bytes = command("C1", "USE_0001").to_string();
    bed.publish_bytes(bytes.as_bytes(), BasicProperties::default().with_headers(headers)).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "unresolved deadline_passed -");
    let evidence = reported.data("/evidence").as_array().unwrap();
    assert_eq!(evidence.last().unwrap()["operation"], "query", "a last query comes first");
    let (kept, headers) = bed.parked().await;
    assert_eq!(kept, bytes.as_bytes());
    assert_eq!(header(&headers, "x-redemption-parked-reason"), "deadline_passed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_key_suspends_until_it_is_replaced() {
    let mut bed = Bed::new().await;
    bed.config.wechat.reload_every = Span(Duration::from_millis(100));
    let key = bed.dir.join("merchant_key.pem");
    let right = std::fs::read(&key).unwrap();
    std::fs::write(&key, another_key()).unwrap();
    for nth in 0..50 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let service = bed.start_unready().await;
    until("the stop", async || service.get("/readyz").await.1.starts_with("[suspended_unauthenticated] "))
        .await;
    let reason = service.get("/readyz").await.1;
    assert!(reason.contains("it says: SIGN_ERROR: 错误的签名，验签失败"), "{reason}");
    assert_eq!(service.metric(r#"redeemer_suspended{reason="unauthenticated"}"#).await, 1.0);
    let calls = bed.ledger()["attempts"].as_array().unwrap().len();
    assert!(calls <= 5, "{calls} calls before the stop");
    std::fs::write(&key, right).unwrap();
    for _ in 0..50 {
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    assert_eq!(bed.uses().len(), 50);
    service.wait_ready().await;
    service.stop().await;
}

/// A merchant key that the sandbox does not know.
fn another_key() -> Vec<u8> {
    let key = std::process::Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .unwrap();
    assert!(key.status.success());
    key.stdout
}

/// Calls that were signed with the right key are answered well after the wrong one is in use: they must not speak for
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_put_in_place_under_load_costs_five_calls_at_most() {
    let mut bed = Bed::new().await;
    bed.config.wechat.reload_every = Span(Duration::from_millis(50));
    let tuning = redeemer_sandbox::Tuning { latency_ms: Some(300), ..Default::default() };
    bed.sandbox.tune(tuning);
    let key = bed.dir.join("merchant_key.pem");
    let (right, wrong) = (std::fs::read(&key).unwrap(), another_key());
    let all = 600;
    for nth in 0..all {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let service = bed.start().await;
    until("the load", async || bed.uses().len() >= 100).await;
    std::fs::write(&key, wrong).unwrap();
    until("the stop", async || service.get("/readyz").await.1.starts_with("[suspended_unauthenticated] "))
        .await;
    assert!(bed.uses().len() < all, "nothing was left to do with the wrong key");
    std::fs::write(&key, right).unwrap();
    for _ in 0..all {
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    assert_eq!(bed.uses().len(), all);
    let attempts = bed.ledger()["attempts"].as_array().unwrap().clone();
    let rejected = attempts.iter().filter(|attempt| attempt["authenticated"] == false).count();
    assert!((1..=5).contains(&rejected), "{rejected} calls with the wrong key");
    service.wait_ready().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn platform_certificates_are_downloaded_and_verify_answers() {
    let mut bed = Bed::new().await;
    bed.config.wechat.public_keys.clear();
    bed.config.wechat.apiv3_key_file = bed.dir.join("apiv3_key.txt").display().to_string();
    bed.issue("C1", json!({}));
    bed.faults(json!([{"operation": "certificates", "times": 1, "fault": {"kind": "bad_signature"}}]));
    bed.config.wechat.download_every = Span(Duration::from_secs(1));
    bed.config.wechat.reload_every = Span(Duration::from_millis(200));
    let service = bed.start_unready().await;
    bed.publish(&command("C1", "USE_0001")).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    assert_eq!(reported.data("/evidence/0/serial"), &json!(bed.sandbox.card().platform_serial));
    service.wait_ready().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_apiv3_key_consumes_nothing_until_it_is_replaced() {
    let mut bed = Bed::new().await;
    bed.config.wechat.reload_every = Span(Duration::from_millis(50));
    bed.config.wechat.public_keys.clear();
    let file = bed.dir.join("apiv3_key.txt");
    let right = std::fs::read(&file).unwrap();
    std::fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
    bed.config.wechat.apiv3_key_file = file.display().to_string();
    let service = bed.start_unready().await;
    bed.publish(&command("C1", "USE_0001")).await;
    until("the reason", async || service.get("/readyz").await.1.starts_with("[no_verification_key] ")).await;
    let commands = &bed.config.broker.names.commands;
    until("the command left where it was", async || bed.ready(commands).await == 1).await;
    bed.issue("C1", json!({}));
    std::fs::write(&file, right).unwrap();
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    service.wait_ready().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_each_fault_and_its_remedy() {
    let bed = Bed::new().await;
    let file = bed.dir.join("redeemer.toml");
    let check = async |config: &redeemer::config::Config| {
        std::fs::write(&file, toml::to_string(config).unwrap()).unwrap();
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .args(["check", "--json", "--config"])
            .arg(&file)
            .output()
            .await
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("geheim") && !String::from_utf8_lossy(&output.stderr).contains("geheim"));
        let findings: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let faults = findings.iter().filter(|finding| finding["gravity"] == "fault");
        for fault in faults.clone() {
            assert!(fault["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{fault}");
        }
        let faults: Vec<_> = faults.map(|fault| fault["what"].as_str().unwrap().to_owned()).collect();
        (output.status.code().unwrap(), faults)
    };
    let mut config = bed.config.clone();
    config.broker.topology = "verify".to_owned();
    assert_eq!(check(&config).await, (4, vec!["topology".to_owned()]), "the delays are not made yet");
    config.broker.topology = "create".to_owned();
    assert_eq!(check(&config).await, (0, vec![]), "and the service will make them");
    let service = bed.start().await;
    assert_eq!(check(&config).await, (0, vec![]));
    service.stop().await;

    config.broker.uri = "amqp://user:geheim@127.0.0.1:1/%2f".to_owned();
    assert_eq!(check(&config).await, (4, vec!["broker".to_owned()]));
    let mut config = bed.config.clone();
    config.broker.delivery_limit = 7;
    config.wechat.merchant_serial = "0123456789".repeat(4);
    bed.sandbox.set_clock_offset(600);
    let faults = ["clock", "payment API", "topology"].map(str::to_owned).to_vec();
    assert_eq!(check(&config).await, (4, faults));
    let key = bed.dir.join("merchant_key.pem");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(check(&config).await, (4, ["keys", "topology"].map(str::to_owned).to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_and_certificate_are_exchanged_together_without_a_restart() {
    let mut bed = Bed::new().await;
    bed.config.wechat.reload_every = Span(Duration::from_millis(50));
    bed.config.wechat.merchant_serial = String::new();
    let (key, certificate) = (bed.dir.join("merchant_key.pem"), bed.dir.join("merchant_cert.pem"));
    bed.config.wechat.merchant_certificate_file = certificate.display().to_string();
    let service = bed.start().await;
    bed.issue("C1", json!({}));
    bed.publish(&command("C1", "USE_0001")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");

    // The next pair, first registered at the provider and then put in place, one file after the other.
    let (new_key, new_certificate) = (bed.dir.join("new_key.pem"), bed.dir.join("new_cert.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=merchant", "-days", "30"])
        .args(["-set_serial", "0x5A5A5A5A5A5A5A5A", "-keyout"])
        .arg(&new_key)
        .arg("-out")
        .arg(&new_certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    bed.sandbox.register_merchant(&std::fs::read_to_string(&new_certificate).unwrap()).unwrap();
    std::fs::copy(&new_certificate, &certificate).unwrap();
    std::fs::write(&key, std::fs::read(&new_key).unwrap()).unwrap();
    bed.issue("C2", json!({}));
    bed.publish(&command("C2", "USE_0002")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    service.wait_ready().await;
    service.stop().await;

    // A certificate that belongs to another key is named at the start.
    bed.config.wechat.merchant_certificate_file = bed.dir.join("platform_cert.pem").display().to_string();
    let (_trigger, listener) = redeemer::runtime::shutdown::channel();
    let refused = redeemer::app::run(bed.config.clone(), None, listener, |_| ()).await.unwrap_err();
    assert!(refused.to_string().contains("does not belong to the merchant key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn result_refused_by_a_full_queue_is_published_again() {
    let bed = Bed::new().await;
    let full = full_queue(&bed).await;
    let service = bed.start().await;
    let sessions = async || service.metric("redeemer_broker_sessions_total").await;
    let begun = sessions().await;
    for nth in 1..=4 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_000{nth}"))).await;
    }
    until("the refusal in words", async || service.get("/readyz").await.1.contains("not accepted")).await;
    until("every effect", async || bed.uses().len() == 4).await;
    assert_eq!(sessions().await, begun);

    // The subscriber reads at last.
    let options = lapin::options::BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut reader =
        bed.channel().basic_consume(full, "".into(), options, FieldTable::default()).await.unwrap();
    let mut read = std::collections::BTreeSet::new();
    while read.len() < 4 {
        let delivery = bed::next(&mut reader, "a result").await;
        read.insert(delivery.properties.message_id().as_ref().unwrap().to_string());
    }
    service.wait_metric(r#"redeemer_outcomes_total{outcome="redeemed",reason=""}"#, 4.0).await;
    service.wait_ready().await;
    assert_eq!(sessions().await, begun);
    assert_eq!(bed.uses().len(), 4);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn result_refused_for_long_is_delayed_until_there_is_room() {
    let mut bed = Bed::new().await;
    let span = |millis| Span(Duration::from_millis(millis));
    bed.config.event.publish_retry_max = span(200);
    bed.config.retry.query_delay = span(100);
    bed.config.retry.delays = vec![span(500), span(3_600_000)];
    bed.leave_results().await;
    let full = full_queue(&bed).await;
    let service = bed.start().await;
    for nth in 1..=3 {
        // The third does not exist, and is refused.
        if nth < 3 {
            bed.issue(&format!("C{nth}"), json!({}));
        }
        bed.publish(&command(&format!("C{nth}"), &format!("USE_000{nth}"))).await;
    }
    let (metric, label) = ("redeemer_delayed_retries_total", r#"reason="event_rejected""#);
    until("six delayed retries", async || service.metric_sum(metric, label).await >= 6.0).await;
    assert_eq!(bed.uses().len(), 2);

    let options = lapin::options::BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut reader =
        bed.channel().basic_consume(full, "".into(), options, FieldTable::default()).await.unwrap();
    let mut read = std::collections::BTreeMap::new();
    while read.len() < 3 {
        let delivery = bed::next(&mut reader, "a result").await;
        let event: serde_json::Value = serde_json::from_slice(&delivery.data).unwrap();
        bed::keeps_the_contract(&event);
        let outcome = event["data"]["outcome"].as_str().unwrap().to_owned();
        read.insert(event["data"]["coupon_code"].as_str().unwrap().to_owned(), outcome);
    }
    let read: Vec<_> = read.iter().map(|(code, outcome)| (code.as_str(), outcome.as_str())).collect();
    assert_eq!(read, [("C1", "redeemed"), ("C2", "redeemed"), ("C3", "refused")]);
    service.wait_metric(r#"redeemer_commands_settled_total{settlement="finished"}"#, 3.0).await;
    service.wait_ready().await;
    let attempts = bed.ledger()["attempts"].as_array().unwrap().clone();
    let uses = attempts.iter().filter(|attempt| attempt["operation"] == "use").count();
    assert_eq!((uses, bed.uses().len()), (3, 2), "what was delayed queries, and sends nothing again");
    assert_eq!(service.metric("redeemer_broker_sessions_total").await, 1.0);
    service.stop().await;
}

/// A queue for every result that has room for one and refuses what comes on top.
async fn full_queue(bed: &Bed) -> lapin::types::ShortString {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = lapin::options::QueueDeclareOptions { exclusive: true, ..Default::default() };
    let full = bed.channel().queue_declare("".into(), options, arguments).await.unwrap().name().clone();
    let (results, key) = (bed.config.broker.names.results.clone(), "redemption.#");
    let options = lapin::options::QueueBindOptions::default();
    let bound =
        bed.channel().queue_bind(full.clone(), results.into(), key.into(), options, FieldTable::default());
    bound.await.unwrap();
    full
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sender_sets_beside_the_command_breaks_nothing() {
    let mut bed = Bed::new().await;
    let service = bed.start().await;
    let begun = service.metric("redeemer_broker_sessions_total").await;
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString("00-\n\u{1}".into()));
    headers.insert("long".into(), AMQPValue::LongString("x".repeat(100_000).into()));
    headers.insert("kept".into(), AMQPValue::LongString("yes".into()));
    let user = bed.config.broker.uri.split("//").nth(1).unwrap().split(':').next().unwrap().to_owned();
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_expiration("60000".into())
        .with_user_id(user.as_str().into());
    bed.issue("C1", json!({}));
    bed.publish_bytes(command("C1", "USE_0001").to_string().as_bytes(), properties.clone()).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    bed.publish_bytes(b"nonsense", properties).await;
    assert_eq!(bed.next_event().await.gist(), "invalid invalid_command -");
    let (kept, headers) = bed.parked().await;
    assert_eq!((kept.as_slice(), header(&headers, "kept")), (b"nonsense".as_slice(), "yes"));
    assert!(!headers.contains_key("long"), "what would not fit into a frame beside our own headers");
    let (mut headers, much) = (FieldTable::default(), "x".repeat(32_000));
    headers.insert("much".into(), AMQPValue::LongString(much.as_str().into()));
    bed.publish_bytes(b"nonsense", BasicProperties::default().with_headers(headers)).await;
    assert_eq!(bed.next_event().await.gist(), "invalid invalid_command -");
    let (_, headers) = bed.parked().await;
    assert_eq!(header(&headers, "much"), much, "the most that is kept goes out in one frame");
    let mut headers = FieldTable::default();
    for nth in 0..2_050 {
        headers.insert(format!("x-redemption-{nth:04}").as_str().into(), AMQPValue::Void);
    }
    bed.publish_bytes(b"nonsense", BasicProperties::default().with_headers(headers)).await;
    assert_eq!(bed.next_event().await.gist(), "invalid invalid_command -");
    let (kept, _) = bed.parked().await;
    assert_eq!(kept, b"nonsense", "what a mark of each of these would make too long goes out all the same");
    assert_eq!(service.metric("redeemer_broker_sessions_total").await, begun);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_a_copy_may_not_fit_into_are_refused_in_words() {
    let mut bed = Bed::new().await;
    bed.config.broker.uri = format!("{}?frame_max=8192", bed.config.broker.uri);
    let service = bed.start_unready().await;
    until("the refusal in words", async || {
        service.get("/readyz").await.1.contains("accepts frames of at most 8192 bytes")
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_gone_is_made_again_and_costs_no_delivery() {
    a_queue_is_gone("create").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_gone_and_may_not_be_made_is_waited_for() {
    a_queue_is_gone("verify").await;
}

async fn a_queue_is_gone(topology: &str) {
    let mut bed = Bed::new().await;
    bed.config.broker.topology = "create".to_owned();
    bed.start().await.stop().await;
    bed.config.broker.topology = topology.to_owned();
    bed.leave_parked().await;
    let service = bed.start().await;
    let begun = service.metric("redeemer_broker_sessions_total").await;
    let parked = bed.config.broker.names.parked.clone();
    let options = lapin::options::QueueDeleteOptions::default();
    bed.channel().queue_delete(parked.as_str().into(), options).await.unwrap();
    for _ in 0..4 {
        bed.publish_bytes(b"no command", BasicProperties::default()).await;
    }
    until("the return in words", async || service.get("/readyz").await.1.contains("returned a message"))
        .await;
    if topology != "create" {
        let settings = bed.config.broker_settings().unwrap();
        redeemer::amqp::topology::inspect::inspect(&settings, true).await.unwrap();
    }
    service.wait_metric(r#"redeemer_outcomes_total{outcome="invalid",reason="invalid_command"}"#, 4.0).await;
    service.wait_ready().await;
    until("all of them parked", async || bed.ready(&parked).await == 4).await;
    assert_eq!(service.metric("redeemer_broker_sessions_total").await, begun);
    assert_eq!(service.metric(r#"redeemer_commands_taken_total{arrival="redelivered"}"#).await, 0.0);
    service.stop().await;
}

/// Debian's own: an interpreter found earlier on PATH does not have Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

/// Publishes from a program that writes a property in GBK where `garbled` says so.
async fn publish_from_python(bed: &Bed, published: Vec<(Value, bool)>) {
    let published: Vec<_> = published
        .into_iter()
        .map(|(command, garbled)| json!({"command": command.to_string(), "garbled": garbled}))
        .collect();
    let (uri, commands) = (&bed.config.broker.uri, &bed.config.broker.names.commands);
    let asked = json!({"uri": uri, "commands": commands, "published": published}).to_string();
    let mut python = tokio::process::Command::new(PYTHON)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/garbled_order_service.py"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(asked.as_bytes()).await.unwrap();
    let output = python.wait_with_output().await.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`make test` installs python3-pika: {complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_that_is_not_utf8_is_invalid_and_costs_no_session() {
    let mut bed = Bed::new().await;
    bed.leave_parked().await;
    let mut published: Vec<_> = (0..16)
        .map(|nth| {
            bed.issue(&format!("C{nth}"), json!({}));
            (command(&format!("C{nth}"), &format!("USE_{nth:04}")), false)
        })
        .collect();
    published.insert(8, (command("C99", "USE_0099"), true));
    publish_from_python(&bed, published).await;
    let service = bed.start().await;
    let mut reported = BTreeSet::new();
    for _ in 0..17 {
        let event = bed.next_event().await;
        let (code, outcome) = (event.data("/coupon_code"), event.data("/outcome"));
        reported.insert((code.as_str().unwrap().to_owned(), outcome.as_str().unwrap().to_owned()));
    }
    let mut expected: BTreeSet<_> = (0..16).map(|nth| (format!("C{nth}"), "redeemed".to_owned())).collect();
    expected.insert(("C99".to_owned(), "invalid".to_owned()));
    assert_eq!(reported, expected);
    assert_eq!(service.metric("redeemer_broker_sessions_total").await, 1.0, "no session was lost");
    assert_eq!(bed.ready(&bed.config.broker.names.parked).await, 1);
    assert_eq!(bed.uses().len(), 16, "what is invalid is not executed");
    service.stop().await;
}

/// Threads and open files of this process.
fn held() -> (usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    (count("task"), count("fd"))
}

#[test]
fn connections_that_came_to_nothing_leave_nothing_behind() {
    // By itself in a process of its own: what other tests hold must not be counted.
    const ALONE: &str = "REDEEMER_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "service::connections_that_came_to_nothing_leave_nothing_behind",
                "--nocapture",
            ])
            .env(ALONE, "yes")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(alone.status.success(), "{}{}", text(&alone.stdout), text(&alone.stderr));
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
        let mut bed = Bed::on(&broker).await;
        bed.config.broker.connect_timeout = Span(Duration::from_millis(200));

        // A peer that accepts and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut settings = bed.config.broker_settings().unwrap();
        let uri = format!("amqp://guest:guest@{}/%2f", silent.local_addr().unwrap());
        settings.uris = vec![uri.into()];
        let attempt = async || {
            let Err(fault) = Session::establish(&settings, 0).await else { panic!("it said something") };
            assert!(matches!(fault, CannotConnect::TimedOut { .. }), "{fault}");
        };
        // The first one makes what stays once and for all.
        attempt().await;
        let before = held();
        for _ in 0..5 {
            attempt().await;
        }
        until("no thread or socket of five attempts is left", async || held() <= before).await;

        // A broker in alarm: one attempt takes as long as the alarm.
        bed.config.broker.connect_timeout = Span(Duration::from_secs(1));
        let alarm = |limit: &'static str| broker.ctl(&["set_vm_memory_high_watermark", limit]);
        tokio::task::block_in_place(|| alarm("0.0001"));
        let service = bed.start_unready().await;
        let names =
            || tokio::task::block_in_place(|| broker.ctl(&["-q", "list_connections", "client_properties"]));
        let ours = || names().matches("redeemer publish").count();
        until("the alarm is reported", async || service.get("/readyz").await.1.contains("alarm")).await;
        // By its own clock it has come round after several attempts' time.
        let reported = jiff::Timestamp::now();
        until("it has tried again and again", async || {
            let status: Value = serde_json::from_str(&service.get("/status.json").await.1).unwrap();
            let turned: jiff::Timestamp = status["heartbeat_at"].as_str().unwrap().parse().unwrap();
            turned.duration_since(reported) > jiff::SignedDuration::from_secs(4)
        })
        .await;
        assert_eq!(ours(), 1, "{}", names());
        assert_eq!(service.get("/livez").await.0, 200);
        tokio::task::block_in_place(|| alarm("0.6"));
        service.wait_ready().await;
        bed.issue("C1", json!({}));
        bed.publish(&command("C1", "USE_0001")).await;
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
        service.stop().await;
    });
}
