//! What is published and not acknowledged comes again: the connection of the program itself is cut at the very `basic.ack`,
//! or while a call is under way. A second outcome is one of those that docs/guarantees.md lists, and the best one is true.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::bed::{self, Bed, command, until};
use crate::limits::Program;
use crate::proxy::{Manner, Proxy};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use serde_json::{Value, json};
use tokio::process::Command;

const GUARANTEES: &str = include_str!("../../docs/guarantees.md");

/// A bed and a proxy before its broker, which the configuration leads to.
async fn behind_proxy() -> (Bed, Proxy) {
    let mut bed = Bed::new().await;
    let (before, after) = bed.config.broker.uri.rsplit_once(':').unwrap();
    let (port, path) = after.split_once('/').unwrap();
    let proxy = Proxy::start(port.parse().unwrap()).await;
    bed.config.broker.uri = format!("{before}:{}/{path}", proxy.port);
    (bed, proxy)
}

async fn quick() -> (Bed, Proxy) {
    let (mut bed, proxy) = behind_proxy().await;
    bed.config.retry.query_delay = Span(Duration::from_millis(100));
    bed.config.retry.delays = [200, 400].map(|millis| Span(Duration::from_millis(millis))).to_vec();
    bed.config.wechat.read_timeout = Span(Duration::from_millis(1_500));
    bed.config.wechat.total_timeout = Span(Duration::from_secs(2));
    (bed, proxy)
}

/// Publishes a command for `C1`; the connection is cut at the acknowledgement that follows its event, and none is made
/// before `meanwhile` has been done. Gives the event.
async fn published_and_not_acked(
    (bed, proxy): (&mut Bed, &Proxy),
    left: SignedDuration,
    meanwhile: impl FnOnce(&Bed),
) -> Value {
    proxy.behave(Manner::Refusing);
    proxy.cut_at_acks(1);
    let deadline = (Timestamp::now() + left).to_string();
    let mut headers = FieldTable::default();
    headers.insert("x-redemption-deadline".into(), AMQPValue::LongString(deadline.into()));
    let properties = BasicProperties::default().with_headers(headers);
    bed.publish_bytes(command("C1", "USE_0001").to_string().as_bytes(), properties).await;
    let reported = bed.next_event().await;
    until("the cut", async || proxy.ill_treated() > 0).await;
    meanwhile(bed);
    proxy.behave(Manner::Good);
    json!([reported.gist(), reported.event["id"]])
}

/// Everything that comes until another command is settled, which the service receives afterwards.
async fn further(bed: &mut Bed, program: &Program) -> Vec<(String, Value)> {
    let commands = bed.config.broker.names.commands.clone();
    let (mut seen, unsettled) = (Vec::new(), "redeemer_commands_in_flight");
    let reported = bed.next_event().await;
    seen.push((reported.gist(), reported.event["id"].clone()));
    until("nothing in hand", async || {
        bed.ready(&commands).await == 0 && program.metric(unsettled).await == 0.0
    })
    .await;
    bed.issue("C2", json!({}));
    bed.publish(&command("C2", "USE_0002")).await;
    loop {
        let reported = bed.next_event().await;
        if reported.data("/coupon_code") == "C2" {
            return seen;
        }
        seen.push((reported.gist(), reported.event["id"].clone()));
    }
}

fn is_admitted(first: &str, then: &str) -> bool {
    let cause = "a crash or a lost connection between the confirmation of the event and the ack";
    GUARANTEES.contains(&format!("| `{first}`, then `{then}` | {cause} |"))
}

/// Refused as not yet valid; it is valid when the command comes again.
#[tokio::test(flavor = "multi_thread")]
async fn refusal_whose_ack_is_lost_may_become_redeemed_alone() {
    let (mut bed, proxy) = quick().await;
    bed.issue("C1", json!({}));
    let rejected = json!({"kind": "status", "status": 403, "code": "NOT_ENOUGH", "signed": true});
    let pending = json!({"kind": "patched_body", "patch": {"coupon_state": "PENDING"}});
    bed.faults(json!([{"operation": "use", "fault": rejected}, {"operation": "query", "fault": pending}]));
    let program = Program::start(&bed).await;
    program.wait_ready().await;
    let becomes_valid = |bed: &Bed| bed.faults(json!([]));
    let first =
        published_and_not_acked((&mut bed, &proxy), SignedDuration::from_hours(1), becomes_valid).await;
    assert_eq!(first[0], "refused not_yet_valid PENDING");
    let seen = further(&mut bed, &program).await;
    assert_eq!(seen.iter().map(|(gist, _)| gist.as_str()).collect::<Vec<_>>(), ["redeemed - USED"]);
    assert!(is_admitted("refused", "redeemed"));
    assert_eq!(bed.uses().iter().filter(|(code, _)| code == "C1").count(), 1);
    program.stop().await;
}

/// The same outcome again, under the same id, where nothing has changed.
#[tokio::test(flavor = "multi_thread")]
async fn outcome_whose_ack_is_lost_is_repeated_under_its_id() {
    for (state, expected) in [("EFFECTIVE", "redeemed - USED"), ("EXPIRED", "refused expired EXPIRED")] {
        let (mut bed, proxy) = quick().await;
        bed.issue("C1", json!({ "state": state }));
        let program = Program::start(&bed).await;
        program.wait_ready().await;
        let first = published_and_not_acked((&mut bed, &proxy), SignedDuration::from_hours(1), |_| ()).await;
        assert_eq!(first[0], expected);
        assert_eq!(further(&mut bed, &program).await, [(expected.to_owned(), first[1].clone())]);
        assert!(bed.attempts("C1").iter().filter(|call| call["operation"] == "use").count() == 1);
        program.stop().await;
    }
}

/// Redeemed; then no query is answered until the deadline. What is parked is settled by the next look, with the
/// event that was published before.
#[tokio::test(flavor = "multi_thread")]
async fn redeemed_whose_ack_is_lost_may_be_unresolved_at_its_deadline() {
    let (mut bed, proxy) = quick().await;
    bed.leave_parked().await;
    bed.issue("C1", json!({}));
    let program = Program::start(&bed).await;
    program.wait_ready().await;
    let silent = |bed: &Bed| {
        bed.faults(json!([{"coupon_code": "C1", "fault": {"kind": "cut_before_effect"}}]));
    };
    let first = published_and_not_acked((&mut bed, &proxy), SignedDuration::from_secs(4), silent).await;
    assert_eq!(first[0], "redeemed - USED");
    let seen = further(&mut bed, &program).await;
    let gists: Vec<_> = seen.iter().map(|(gist, _)| gist.as_str()).collect();
    assert_eq!(gists, ["unresolved deadline_passed -"]);
    assert!(is_admitted("redeemed", "unresolved"));
    assert_eq!(bed.attempts("C1").iter().filter(|call| call["operation"] == "use").count(), 1);

    bed.faults(json!([]));
    let mut operator = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    operator.arg("--config").arg(bed.config_file()).args(["parked", "replay", "--yes", "--json"]);
    operator.env("USER", "night-shift").stdin(Stdio::null()).kill_on_drop(true);
    let output = operator.output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let again = bed.next_event().await;
    assert_eq!((again.gist().as_str(), &again.event["id"]), ("redeemed - USED", &first[1]));
    program.stop().await;
}

/// A call of nine seconds is under way when its instance loses the broker; the other instance sees the coupon expired for
/// as long as it lasts.
#[tokio::test(flavor = "multi_thread")]
async fn call_of_a_cut_off_instance_is_waited_for_before_a_refusal() {
    const CALL: Duration = Duration::from_secs(9);
    let (mut bed, proxy) = behind_proxy().await;
    bed.config.wechat.read_timeout = Span(Duration::from_secs(14));
    bed.config.wechat.total_timeout = Span(Duration::from_secs(15));
    bed.issue("C1", json!({}));
    let expired = json!({"kind": "patched_body", "patch": {"coupon_state": "EXPIRED"}});
    bed.faults(json!([
        {"operation": "use", "fault": {"kind": "slow", "ms": CALL.as_millis() as u64, "late_effect": true}},
        {"operation": "query", "fault": expired},
    ]));
    let cut_off = Program::start(&bed).await;
    cut_off.wait_ready().await;
    bed.publish(&command("C1", "USE_0001")).await;
    until("the call is under way", async || !bed.attempts("C1").is_empty()).await;
    let begun = Instant::now();
    proxy.behave(Manner::Refusing);
    proxy.cut();
    bed.config.broker.uri = bed::broker_uri().await;
    let other = bed.start().await;
    until("the other instance has looked", async || {
        bed.attempts("C1").iter().any(|call| call["operation"] == "query")
    })
    .await;
    assert!(begun.elapsed() < CALL, "the call is under way for {CALL:?} only");
    until("the effect", async || bed.uses().len() == 1).await;
    bed.faults(json!([]));
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    assert_eq!(bed.uses().len(), 1);
    other.stop().await;
    drop(cut_off);
}
