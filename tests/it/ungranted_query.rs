//! A brand that grants the use and not the query: rights go operation by operation. Its commands have their events in
//! time, whatever needs a look, and no other brand waits for them. The program itself, against the sandbox.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::bed::{Bed, command, until};
use crate::limits::{Program, all_redeemed, publish};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use serde_json::{Value, json};

fn denied() -> Value {
    json!({"kind": "status", "status": 403, "code": "NO_AUTH", "signed": true})
}

/// How many coupons were looked at twice and not used.
fn waiting(bed: &Bed) -> usize {
    let mut looks = BTreeMap::new();
    for attempt in bed.ledger()["attempts"].as_array().unwrap() {
        let looked = usize::from(attempt["operation"] == "query");
        *looks.entry(attempt["coupon_code"].to_string()).or_insert(0) += looked;
    }
    for (code, _) in bed.uses() {
        looks.remove(&json!(code).to_string());
    }
    looks.values().filter(|looks| **looks >= 2).count()
}

/// No call fails; a restart in good order hands commands back, which must be looked at and cannot. Deliveries that are on
/// their way when the consumer is canceled come again, marked as redelivered: only these wait for the right to look.
#[tokio::test(flavor = "multi_thread")]
async fn restart_ends_all_but_redelivered_commands_without_queries() {
    const COMMANDS: usize = 400;
    let mut bed = Bed::new().await;
    bed.config.rate_limit.calls_per_second = 100;
    // No answer is lost, however slow the machine is.
    bed.config.wechat.read_timeout = Span(Duration::from_secs(60));
    bed.config.wechat.total_timeout = Span(Duration::from_secs(60));
    bed.faults(json!([{"operation": "query", "fault": denied()}]));
    bed.config.retry.delays = [1, 2].map(|seconds| Span(Duration::from_secs(seconds))).to_vec();
    bed = bed.relaid().await;
    publish(&bed, "C", COMMANDS).await;
    let program = Program::start(&bed).await;
    until("a part of them", async || bed.uses().len() >= COMMANDS / 4).await;
    program.stop().await;
    let left = COMMANDS - bed.uses().len();
    assert!(left > 0, "all were used before the stop");
    let program = Program::start(&bed).await;
    // One that waits is looked at again and again.
    until("the use of each, or its wait", async || waiting(&bed) + bed.uses().len() == COMMANDS).await;
    let redelivered = waiting(&bed);
    assert!(redelivered <= COMMANDS / 10, "{redelivered} of {left} wait");
    all_redeemed(&mut bed, COMMANDS - redelivered).await;
    program.wait_ready().await;
    bed.faults(json!([]));
    all_redeemed(&mut bed, redelivered).await;
    assert_eq!(bed.uses().len(), COMMANDS);
    program.stop().await;
}

/// Forty answers of the one brand are lost, and none of them can be looked for.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_without_queries_delay_neither_brand() {
    let [lost_count, good_count, other_count] = [40, 98, 138];
    let mut bed = Bed::new().await;
    let no_query = |prefix: &str| json!({"coupon_prefix": prefix, "operation": "query", "fault": denied()});
    let lost = json!({"coupon_prefix": "L", "operation": "use", "fault": {"kind": "cut_after_effect"}});
    bed.faults(json!([lost, no_query("L"), no_query("G")]));
    let soon = Timestamp::now() + SignedDuration::from_secs(25);
    let mut headers = FieldTable::default();
    headers.insert("x-redemption-deadline".into(), AMQPValue::LongString(soon.to_string().into()));
    let of_each = [("L", lost_count, "666666"), ("G", good_count, "666666"), ("O", other_count, "120344")];
    // Those that are lost come first.
    for (prefix, count, brand) in of_each {
        for nth in 0..count {
            let code = format!("{prefix}{nth}");
            bed.issue(&code, json!({ "brand_id": brand }));
            let mut command = command(&code, &format!("USE_{code}"));
            command["brand_id"] = json!(brand);
            let headers = if prefix == "L" { headers.clone() } else { FieldTable::default() };
            let properties = BasicProperties::default().with_headers(headers);
            bed.publish_bytes(command.to_string().as_bytes(), properties).await;
        }
    }
    let (program, since) = (Program::start(&bed).await, Instant::now());
    let (mut counts, mut good) = (BTreeMap::new(), Duration::ZERO);
    for _ in 0..lost_count + good_count + other_count {
        let reported = bed.next_event().await;
        let time: Timestamp = reported.event["time"].as_str().unwrap().parse().unwrap();
        let brand = reported.data("/brand_id").as_str().unwrap().to_owned();
        *counts.entry((brand, reported.gist())).or_insert(0) += 1;
        if reported.gist() == "redeemed - USED" {
            good = since.elapsed();
        } else {
            let late = time.duration_since(soon);
            assert!(
                !late.is_negative() && late < SignedDuration::from_mins(1),
                "{late:#} after its deadline"
            );
        }
    }
    let expected = [
        (("120344", "redeemed - USED"), other_count),
        (("666666", "redeemed - USED"), good_count),
        (("666666", "unresolved deadline_passed -"), lost_count),
    ];
    let expected = expected.map(|((brand, gist), count)| ((brand.to_owned(), gist.to_owned()), count));
    assert_eq!(counts, BTreeMap::from(expected));
    assert!(good < Duration::from_secs(20), "those whose answers are not lost took {good:?}");
    assert_eq!(bed.uses().len(), lost_count + good_count + other_count, "one effect each");
    assert_eq!(program.metric(r#"redeemer_suspended{reason="unauthorized"}"#).await, 0.0);
    program.stop().await;
}
