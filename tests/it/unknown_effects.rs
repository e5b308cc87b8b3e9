//! Sequences of responses after which an answer was wrong or a second use was sent, played by the sandbox against the
//! service and the program as they are: each ends with at most one use, and with the outcome that is true.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::bed::{self, Bed, command, until};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use serde_json::{Value, json};
use tokio::process::Command;

const TOTAL_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_DELAY: Duration = Duration::from_millis(100);

async fn quick() -> Bed {
    let mut bed = Bed::new().await;
    bed.config.retry.initial = Span(Duration::from_millis(50));
    bed.config.retry.query_delay = Span(QUERY_DELAY);
    bed.config.retry.in_process_max = Span(Duration::from_millis(1_000));
    bed.config.retry.delays = [200, 400].map(|millis| Span(Duration::from_millis(millis))).to_vec();
    bed.config.wechat.read_timeout = Span(Duration::from_millis(1_500));
    bed.config.wechat.total_timeout = Span(TOTAL_TIMEOUT);
    bed
}

/// The true coupon with this merged into it, signed.
fn patched(times: Option<u64>, patch: Value) -> Value {
    let mut rule = json!({"operation": "query", "fault": {"kind": "patched_body", "patch": patch}});
    times.into_iter().for_each(|times| rule["times"] = json!(times));
    rule
}

/// The use, once: with effect, and without an answer.
fn lost() -> Value {
    json!({"operation": "use", "times": 1, "fault": {"kind": "cut_after_effect"}})
}

fn sent(bed: &Bed, operation: &str) -> usize {
    bed.attempts("C1").iter().filter(|call| call["operation"] == operation).count()
}

/// One command for `C1`, to its end.
async fn ends(bed: &mut Bed, command: &Value) -> String {
    let service = bed.start().await;
    bed.publish(command).await;
    let reported = bed.next_event().await;
    service.stop().await;
    reported.gist()
}

fn one() -> Value {
    command("C1", "USE_0001")
}

/// The answer is lost, the user returns it, and another order uses the round that was ours: what is usable now is the
/// next round.
#[tokio::test(flavor = "multi_thread")]
async fn round_used_by_another_after_a_return_lets_no_use_out() {
    for index in [None, Some(1)] {
        let mut bed = quick().await;
        bed.issue("C1", json!({}));
        let round = |state: &str| {
            json!({"detail_state": state, "valid_begin_time": "2026-01-01T00:00:00+08:00",
                "valid_end_time": "2036-01-01T00:00:00+08:00"})
        };
        let mut first = round("USED");
        first["use_request_no"] = json!("OTHER_0001");
        first["return_request_no"] = json!("RETURN_1");
        let rounds =
            json!({"total_count": 2, "used_count": 1, "detail_item_list": [first, round("EFFECTIVE")]});
        let patch = json!({"coupon_state": "EFFECTIVE", "single_usage_detail": null,
            "sequential_usage_detail": rounds});
        bed.faults(json!([lost(), patched(None, patch)]));
        let mut redemption = one();
        index.into_iter().for_each(|index| redemption["sequential_coupon_index"] = json!(index));
        assert_eq!(ends(&mut bed, &redemption).await, "refused returned_since EFFECTIVE", "{index:?}");
        assert_eq!(sent(&bed, "use"), 1, "{index:?}");
    }
}

/// 202, and a 429 or 401 that is not signed: the use has taken effect all the same, and the user returned it meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn unsigned_and_unfinished_answers_let_no_second_use_out() {
    for (status, signed) in [(202, true), (429, false), (401, false), (403, false)] {
        let mut bed = quick().await;
        bed.issue("C1", json!({}));
        let answer = json!({"kind": "status", "status": status, "signed": signed, "effect": true});
        let returned = json!({"coupon_state": "EFFECTIVE", "single_usage_detail": {
            "return_request_no": "RETURN_1", "return_time": "2036-01-01T00:00:00+08:00"}});
        bed.faults(json!([
            {"operation": "use", "times": 1, "fault": answer},
            patched(None, returned),
        ]));
        assert_eq!(ends(&mut bed, &one()).await, "refused returned_since EFFECTIVE", "{status}");
        assert_eq!((sent(&bed, "use"), bed.uses().len()), (1, 1), "{status}");
    }
}

/// The same without a return: what was answered is no ground to refuse.
#[tokio::test(flavor = "multi_thread")]
async fn unsigned_and_unfinished_answers_refuse_nothing() {
    for (status, signed) in [(202, true), (429, false), (401, false), (403, false)] {
        let mut bed = quick().await;
        bed.issue("C1", json!({}));
        let answer = json!({"kind": "status", "status": status, "signed": signed, "effect": true});
        bed.faults(json!([{"operation": "use", "times": 1, "fault": answer}]));
        assert_eq!(ends(&mut bed, &one()).await, "redeemed - USED", "{status}");
        assert_eq!(bed.uses().len(), 1, "{status}");
    }
}

/// A parameter is called wrong because the number was used before: by us.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_parameter_does_not_refuse_a_used_number() {
    let mut bed = quick().await;
    bed.issue("C1", json!({"state": "USED", "used_by": "USE_0001"}));
    bed.faults(json!([{"operation": "use", "fault": {"kind": "status", "status": 400, "code": "PARAM_ERROR",
        "sub_code": 268_435_461, "signed": true}}]));
    assert_eq!(ends(&mut bed, &one()).await, "redeemed - USED");
    assert_eq!(sent(&bed, "use"), 1);
}

/// Usable, used without a number, usable: the use that was seen may have been ours.
#[tokio::test(flavor = "multi_thread")]
async fn use_seen_between_two_negatives_lets_no_use_out() {
    let mut bed = quick().await;
    bed.issue("C1", json!({}));
    bed.faults(json!([
        {"operation": "use", "times": 1, "fault": {"kind": "cut_before_effect"}},
        patched(Some(1), json!({})),
        patched(Some(1), json!({"coupon_state": "USED", "single_usage_detail": {}})),
    ]));
    assert_eq!(ends(&mut bed, &one()).await, "refused returned_since EFFECTIVE");
    assert_eq!(sent(&bed, "use"), 1);
}

/// Expired, expired under our number, expired: not two in a row.
#[tokio::test(flavor = "multi_thread")]
async fn negatives_that_are_not_in_a_row_refuse_nothing() {
    let mut bed = quick().await;
    bed.issue("C1", json!({"state": "EXPIRED"}));
    bed.faults(json!([
        {"operation": "use", "times": 1, "fault": {"kind": "cut_before_effect"}},
        patched(Some(1), json!({})),
        patched(Some(1), json!({"single_usage_detail": {"use_request_no": "USE_0001"}})),
    ]));
    assert_eq!(ends(&mut bed, &one()).await, "refused expired EXPIRED");
    assert_eq!((sent(&bed, "use"), sent(&bed, "query")), (1, 4), "two in a row after what was in between");
}

/// The openid belongs to another app. Sent before or not, nobody knows: it is not refused, and does not wait for a day.
#[tokio::test(flavor = "multi_thread")]
async fn redelivered_command_of_a_wrong_openid_ends_soon() {
    let mut bed = quick().await.relaid().await;
    bed.issue("C1", json!({}));
    bed.faults(json!([{"fault": {"kind": "status", "status": 400, "code": "INVALID_REQUEST",
        "sub_code": 268_578_526, "signed": true}}]));
    bed.publish(&one()).await;
    let mut dead = bed.consume_elsewhere(&bed.config.broker.names.commands).await;
    bed::next(&mut dead.1, "a command").await;
    drop(dead);
    until("it is back in the queue", async || bed.ready(&bed.config.broker.names.commands).await == 1).await;
    let service = bed.start().await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "unresolved query_rejected -");
    assert_eq!(reported.data("/problem/sub_code"), 268_578_526);
    let (_, headers) = bed.parked().await;
    assert_eq!(bed::header(&headers, "x-redemption-parked-reason"), "query_rejected");
    assert_eq!(sent(&bed, "use"), 0);
    service.stop().await;
}

/// Publishes the command as an instance hands it back that has not sent it.
async fn publish_handed_back(bed: &Bed) {
    let words = format!("{} unsent", Timestamp::now());
    let mut headers = FieldTable::default();
    headers.insert("x-redemption-handed-back".into(), AMQPValue::LongString(words.into()));
    let properties = BasicProperties::default().with_headers(headers);
    bed.publish_bytes(one().to_string().as_bytes(), properties).await;
}

/// The same, of a command that was handed back before anybody sent it.
#[tokio::test(flavor = "multi_thread")]
async fn unsent_command_of_a_wrong_openid_is_refused() {
    let mut bed = quick().await.relaid().await;
    bed.issue("C1", json!({}));
    bed.faults(json!([{"fault": {"kind": "status", "status": 400, "code": "INVALID_REQUEST",
        "sub_code": 268_578_526, "signed": true}}]));
    publish_handed_back(&bed).await;
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "refused openid_mismatch -");
    assert_eq!(sent(&bed, "use"), 0);
    service.stop().await;
}

/// A round that was used months ago shows no number. What was handed back unsent is used all the same.
#[tokio::test(flavor = "multi_thread")]
async fn unsent_command_for_an_unnumbered_coupon_is_used() {
    let mut bed = quick().await;
    bed.issue("C1", json!({}));
    let round = |state: &str| {
        json!({"detail_state": state, "valid_begin_time": "2026-01-01T00:00:00+08:00",
            "valid_end_time": "2036-01-01T00:00:00+08:00"})
    };
    let shown = |states: [&str; 3]| {
        let used = states.iter().filter(|state| **state == "USED").count();
        let rounds = states.map(round);
        let detail = json!({"total_count": 3, "used_count": used, "detail_item_list": rounds});
        json!({"coupon_state": "EFFECTIVE", "single_usage_detail": null, "sequential_usage_detail": detail})
    };
    bed.faults(json!([
        patched(None, shown(["USED", "EFFECTIVE", "EFFECTIVE"])),
        {"operation": "use", "fault": {"kind": "patched_body", "patch": shown(["USED", "USED", "EFFECTIVE"])}},
    ]));
    publish_handed_back(&bed).await;
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - EFFECTIVE");
    assert_eq!((sent(&bed, "use"), bed.uses().len()), (1, 1));
    service.stop().await;
}

/// Another instance held the command before, and a call of it may be under way for as long as a call may last.
#[tokio::test(flavor = "multi_thread")]
async fn redelivered_command_is_refused_only_after_the_longest_call() {
    let mut bed = quick().await;
    bed.issue("C1", json!({"state": "EXPIRED"}));
    bed.publish(&one()).await;
    let mut dead = bed.consume_elsewhere(&bed.config.broker.names.commands).await;
    bed::next(&mut dead.1, "a command").await;
    drop(dead);
    until("it is back in the queue", async || bed.ready(&bed.config.broker.names.commands).await == 1).await;
    let begun = Instant::now();
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "refused expired EXPIRED");
    let took = begun.elapsed();
    assert!(took >= TOTAL_TIMEOUT + 2 * QUERY_DELAY, "{took:?}");
    assert_eq!(sent(&bed, "use"), 0);
    service.stop().await;
}

/// The number of a return may be missing: its time shows it.
#[tokio::test(flavor = "multi_thread")]
async fn return_shown_by_its_time_alone_lets_no_use_out() {
    for number in [json!(null), json!("")] {
        let mut bed = quick().await;
        bed.issue("C1", json!({}));
        let returned = json!({"coupon_state": "EFFECTIVE", "single_usage_detail": {
            "use_request_no": null, "use_time": null, "return_request_no": number,
            "return_time": "2036-01-01T00:00:00+08:00"}});
        bed.faults(json!([lost(), patched(None, returned)]));
        assert_eq!(ends(&mut bed, &one()).await, "refused returned_since EFFECTIVE", "{number}");
        assert_eq!(sent(&bed, "use"), 1, "{number}");
    }
}

/// The response to a use that took effect is replaced by that to another command, and so is the one to the query.
#[tokio::test(flavor = "multi_thread")]
async fn two_errors_of_another_command_do_not_refuse_a_redeemed_one() {
    let mut bed = quick().await;
    bed.issue("C1", json!({}));
    let gone = |effect: bool| json!({"kind": "status", "status": 404, "code": "NOT_FOUND", "signed": true, "effect": effect});
    bed.faults(json!([
        {"operation": "use", "times": 1, "fault": gone(true)},
        {"operation": "query", "times": 1, "fault": gone(false)},
    ]));
    assert_eq!(ends(&mut bed, &one()).await, "redeemed - USED");
    assert_eq!((sent(&bed, "use"), sent(&bed, "query"), bed.uses().len()), (1, 2, 1));
}

/// The use took effect; the queries showed it without its number. Later the user returned it, which is not shown.
#[tokio::test(flavor = "multi_thread")]
async fn use_seen_before_parking_is_known_after_the_replay() {
    let mut bed = quick().await;
    bed.leave_parked().await;
    bed.issue("C1", json!({}));
    bed.faults(json!([lost(), patched(None, json!({"single_usage_detail": {"use_request_no": null}}))]));
    let service = bed.start().await;
    let soon = (Timestamp::now() + SignedDuration::from_millis(1_500)).to_string();
    let mut headers = FieldTable::default();
    headers.insert("x-redemption-deadline".into(), AMQPValue::LongString(soon.into()));
    let properties = BasicProperties::default().with_headers(headers);
    bed.publish_bytes(one().to_string().as_bytes(), properties).await;
    assert_eq!(bed.next_event().await.gist(), "unresolved deadline_passed USED");
    service.stop().await;
    let parked = bed.config.broker.names.parked.clone();
    until("it is parked", async || bed.ready(&parked).await == 1).await;

    bed.faults(json!([patched(None, json!({"coupon_state": "EFFECTIVE", "single_usage_detail": null}))]));
    let mut program = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    program.arg("--config").arg(bed.config_file()).args(["parked", "replay", "--yes", "--json"]);
    program.env("USER", "night-shift");
    let output = program.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let service = bed.start().await;
    assert_eq!(bed.next_event().await.gist(), "refused returned_since EFFECTIVE");
    assert_eq!(sent(&bed, "use"), 1);
    service.stop().await;
}
