//! Outcomes in corners: the right word where deliveries are handed back, repeated, or wait for each other.

use crate::bed::{Bed, command};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use redeemer_sandbox::ActionRequest;
use serde_json::json;
use std::time::Duration;

/// Publishes a command that has this long until its deadline.
async fn publish_until(bed: &Bed, code: &str, number: &str, left: SignedDuration) {
    let deadline = (Timestamp::now() + left).to_string();
    let mut headers = FieldTable::default();
    headers.insert("x-redemption-deadline".into(), AMQPValue::LongString(deadline.into()));
    let bytes = command(code, number).to_string();
    bed.publish_bytes(bytes.as_bytes(), BasicProperties::default().with_headers(headers)).await;
}

fn act(bed: &Bed, code: &str, deed: &str) {
    let act: ActionRequest = serde_json::from_value(json!({ "do": deed })).unwrap();
    bed.sandbox.act(code, &act).unwrap();
}

/// Handed back before anybody worked on it, it was refused for a return that was over an hour before it was published.
#[tokio::test(flavor = "multi_thread")]
async fn handed_back_command_is_not_refused_for_an_old_return() {
    let mut bed = Bed::new().await;
    bed.config.concurrency.commands = 1;
    bed.sandbox.set_clock_offset(-3_600);
    bed.issue("C2", json!({}));
    act(&bed, "C2", "use");
    act(&bed, "C2", "return");
    bed.sandbox.set_clock_offset(0);
    bed.issue("C1", json!({}));
    bed.faults(json!([{"coupon_code": "C1", "fault": {"kind": "slow", "ms": 3_000}}]));
    let service = bed.start().await;
    // The prefetch grows with what was settled.
    for nth in 0..4 {
        bed.issue(&format!("W{nth}"), json!({}));
        bed.publish(&command(&format!("W{nth}"), &format!("USE_W{nth}"))).await;
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    bed.publish(&command("C1", "USE_C1")).await;
    bed.publish(&command("C2", "USE_C2")).await;
    service.wait_metric("redeemer_commands_in_flight", 2.0).await;
    service.stop().await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    assert_eq!(bed.attempts("C2"), Vec::<serde_json::Value>::new(), "nobody has worked on it");
    let service = bed.start().await;
    let reported = bed.next_event().await;
    assert_eq!((reported.gist().as_str(), reported.data("/coupon_code")), ("redeemed - USED", &json!("C2")));
    service.stop().await;
}

/// The same command was published twice, and the brand does not grant the query: `redeemed`, then `refused: not_usable`.
#[tokio::test(flavor = "multi_thread")]
async fn command_published_twice_is_not_refused_for_its_own_use() {
    let mut bed = Bed::new().await;
    bed.config.retry.delays = [1, 2].map(|seconds| Span(Duration::from_secs(seconds))).to_vec();
    bed = bed.relaid().await;
    let no_auth = json!({"kind": "status", "status": 403, "code": "NO_AUTH", "signed": true});
    let not_usable = json!({"kind": "status", "status": 403, "code": "NOT_ENOUGH", "signed": true});
    let no_query = json!({"operation": "query", "fault": no_auth});
    bed.faults(json!([no_query]));
    bed.issue("C1", json!({}));
    let services = [bed.start().await, bed.start().await];
    bed.publish(&command("C1", "USE_C1")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    bed.faults(json!([no_query, {"operation": "use", "fault": not_usable}]));
    publish_until(&bed, "C1", "USE_C1", SignedDuration::from_secs(3)).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "unresolved deadline_passed -", "{:#}", reported.event);
    assert_eq!(reported.data("/problem/code"), "NOT_ENOUGH");
    assert_eq!(bed.uses(), [("C1".to_owned(), "USE_C1".to_owned())]);
    for service in services {
        service.stop().await;
    }
}
