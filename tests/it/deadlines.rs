//! A command past its deadline has its event within a minute of it, whatever keeps calls from being made: a rate limit that
//! a flood of such commands exhausts, an open circuit, a suspension.

#![allow(clippy::print_stdout)] // it says what it counted

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bed::{self, Bed, Service, command, until};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use serde_json::{Value, json};

/// Publishes commands that have this long until their deadline.
async fn publish(bed: &Bed, prefix: &str, count: usize, left: Option<SignedDuration>) {
    for nth in 0..count {
        let code = format!("{prefix}{nth}");
        bed.issue(&code, json!({}));
        let mut properties = BasicProperties::default();
        if let Some(left) = left {
            let deadline = (Timestamp::now() + left).to_string();
            let mut headers = FieldTable::default();
            headers.insert("x-redemption-deadline".into(), AMQPValue::LongString(deadline.as_str().into()));
            properties = properties.with_headers(headers).with_message_id(deadline.into());
        }
        let bytes = command(&code, &format!("USE_{code}")).to_string();
        bed.publish_bytes(bytes.as_bytes(), properties).await;
    }
}

/// How many events there are of each gist among the next `count`, and the longest time from a command's deadline, which the
/// message id contains, to its event. How fast this machine is decides over that; what is asserted is that no call was waited
/// for.
async fn reported(bed: &mut Bed, count: usize) -> (BTreeMap<String, usize>, SignedDuration) {
    let (mut gists, mut oldest) = (BTreeMap::new(), SignedDuration::ZERO);
    for _ in 0..count {
        let reported = bed.next_event().await;
        let time: Timestamp = reported.event["time"].as_str().unwrap().parse().unwrap();
        let deadline = reported.properties.correlation_id().as_ref().unwrap().as_str().parse::<Timestamp>();
        oldest = oldest.max(time.duration_since(deadline.unwrap()));
        *gists.entry(reported.gist()).or_default() += 1;
    }
    (gists, oldest)
}

fn calls(bed: &Bed) -> usize {
    bed.ledger()["attempts"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_past_its_deadline_ends_without_calls_beyond_the_rate() {
    const FLOOD: usize = 2_000;
    let mut bed = Bed::new().await;
    bed.config.rate_limit.calls_per_second = 2;
    bed.leave_parked().await;
    publish(&bed, "L", FLOOD, Some(SignedDuration::ZERO)).await;
    let from = Timestamp::now();
    let service = bed.start_unready().await;
    let (gists, _) = reported(&mut bed, FLOOD).await;
    let took = Timestamp::now().duration_since(from);
    println!("{FLOOD} commands past their deadline at 2 calls/s: {took:#}, {gists:?}, {} calls", calls(&bed));
    let asked = gists.get("unresolved deadline_passed EFFECTIVE").copied().unwrap_or_default();
    let unasked = gists.get("unresolved deadline_passed -").copied().unwrap_or_default();
    assert_eq!(asked + unasked, FLOOD);
    assert_eq!(calls(&bed), asked, "one call for each that had one");
    assert!(asked > 0, "those that can have a call have it");
    assert!(unasked > 2 * asked, "the flood waited for the rate");
    assert!(bed.uses().is_empty());
    service.stop().await;
}

/// Fresh commands stay where they are while nothing can be called; commands past their deadline end.
async fn end_while_held_back(fault: Value, cause: &str) {
    const FRESH: usize = 150;
    const LATE: usize = 1_000;
    let mut bed = Bed::new().await;
    bed.config.broker.prefetch = 100;
    // What was in hand when calls were held back is delayed meanwhile.
    bed.config.retry.delays = [1, 5].map(|seconds| Span(Duration::from_secs(seconds))).to_vec();
    bed = bed.relaid().await;
    bed.leave_parked().await;
    bed.faults(json!([{"fault": fault}]));
    publish(&bed, "C", FRESH, None).await;
    let service = bed.start_unready().await;
    let held_back = format!("redeemer_circuit_open_cause{{cause=\"{cause}\"}}");
    service.wait_metric(&held_back, 1.0).await;
    // Among them, and behind them, in the queue: some before and some after the service has begun to sift.
    publish(&bed, "L", LATE / 2, Some(SignedDuration::from_secs(1))).await;
    publish(&bed, "D", 20, None).await;
    publish(&bed, "M", LATE / 2, Some(SignedDuration::from_secs(5))).await;
    let (gists, oldest) = reported(&mut bed, LATE).await;
    assert_eq!(service.metric(&held_back).await, 1.0, "still held back");
    let unresolved = gists.iter().filter(|(gist, _)| gist.starts_with("unresolved deadline_passed"));
    assert_eq!(unresolved.map(|(_, count)| count).sum::<usize>(), LATE, "{gists:?}");
    // Some attempts at the end of an outage, none for each command.
    println!("{LATE} commands past their deadline under {cause}: {} calls, oldest {oldest:#}", calls(&bed));
    // The promise itself, not a measure of speed.
    assert!(oldest < SignedDuration::from_secs(60), "{oldest:#} after its deadline");
    assert!(calls(&bed) < LATE / 2, "{} calls", calls(&bed));
    bed.faults(json!([]));
    for _ in 0..FRESH + 20 {
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    until("readiness", async || service.get("/readyz").await.0 == 200).await;
    assert_eq!(bed.uses().len(), FRESH + 20);
    stop(service).await;
}

/// No call can be made about it: that is not its fault, and its next delay is no longer for it.
#[tokio::test(flavor = "multi_thread")]
async fn command_held_back_in_an_outage_does_not_age() {
    let mut bed = Bed::new().await;
    bed.config.broker.prefetch = 100;
    bed.config.retry.delays = vec![Span(Duration::from_secs(1))];
    bed = bed.relaid().await;
    bed.faults(json!([{"fault": {"kind": "html_502"}}]));
    publish(&bed, "C", 60, None).await;
    let service = bed.start_unready().await;
    service.wait_metric(r#"redeemer_circuit_open_cause{cause="server_error"}"#, 1.0).await;
    publish(&bed, "L", 20, Some(SignedDuration::from_hours(1))).await;
    let mut delayed = bed.in_delay("1s").await;
    let mut held = 0;
    while held < 5 {
        let delivery = bed::next(&mut delayed, "a command that was held back").await;
        let headers = delivery.properties.headers().clone().unwrap();
        if bed::header(&headers, "x-redemption-attempts") == "0" {
            assert_eq!(bed::header(&headers, "x-redemption-delays"), "0");
            held += 1;
        }
    }
    // Nobody stops it in good order: what was taken from the delay queue is missing.
    drop(service);
}

async fn stop(service: Service) {
    service.wait_metric("redeemer_commands_in_flight", 0.0).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_past_their_deadline_end_under_an_open_circuit() {
    end_while_held_back(json!({"kind": "html_502"}), "server_error").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_past_their_deadline_end_under_401() {
    end_while_held_back(json!({"kind": "status", "status": 401}), "unauthenticated").await;
}

/// A command with the deadline of the configuration is handed back while calls are suspended, again and again: it ends at
/// that deadline, too.
#[tokio::test(flavor = "multi_thread")]
async fn commands_handed_back_end_at_the_default_deadline() {
    const LATE: usize = 60;
    let mut bed = Bed::new().await;
    bed.leave_parked().await;
    bed.faults(json!([{"fault": {"kind": "status", "status": 401}}]));
    publish(&bed, "C", 1, None).await;
    let service = bed.start_unready().await;
    let held_back = r#"redeemer_circuit_open_cause{cause="unauthenticated"}"#;
    service.wait_metric(held_back, 1.0).await;
    let first_seen = Timestamp::now() - SignedDuration::from_hours(80);
    for nth in 0..LATE {
        let code = format!("L{nth}");
        bed.issue(&code, json!({}));
        let mut headers = FieldTable::default();
        let words = format!("{first_seen} unsent");
        headers.insert("x-redemption-handed-back".into(), AMQPValue::LongString(words.as_str().into()));
        let bytes = command(&code, &format!("USE_{code}")).to_string();
        bed.publish_bytes(bytes.as_bytes(), BasicProperties::default().with_headers(headers)).await;
    }
    for _ in 0..LATE {
        let gist = bed.next_event().await.gist();
        assert!(gist.starts_with("unresolved deadline_passed"), "{gist}");
    }
    assert_eq!(service.metric(held_back).await, 1.0, "still suspended");
    assert!(calls(&bed) < LATE / 2, "{} calls", calls(&bed));
    bed.faults(json!([]));
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    stop(service).await;
}
