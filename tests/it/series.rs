//! What is counted: that whatever arrives adds no time series (a hundred thousand commands and answers, sound, damaged
//! and hostile, go from their bytes through the reading, the judging and the counting), and from when an age counts.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // in the helpers too; and it reports its seed

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bed;
use crate::bed::Bed;
use crate::damage;
use jiff::Timestamp;
use lapin::BasicProperties;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redeemer::domain::evidence::Operation;
use redeemer::domain::outcome::{EstablishedBy, Outcome};
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::classify::{
    Authenticity, CallResult, NoResponse, NotSent, Response, SignatureFlaw, Verdict, classify,
};
use redeemer::telemetry::metrics::{
    Arrival, CallDelay, ConsoleDenial, DelayReason, Key, Message, Metrics, PublishFailureKind, Queue,
    Settlement,
};
use redeemer::wechat::response;
use redeemer::wire::command;
use serde_json::{Value, json};

const COUPON: &str = include_str!("../fixtures/coupon_single.json");

fn series(metrics: &Metrics) -> Vec<String> {
    let text = metrics.render();
    let lines = text.lines().filter(|line| line.starts_with("redeemer_"));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn a_hundred_thousand_commands_add_no_series() {
    let metrics = Metrics::default();
    let before = series(&metrics);
    assert!(before.iter().any(|name| name.contains(r#"outcome="refused",reason="expired""#)), "{before:?}");
    assert!(before.iter().any(|name| name.contains(r#"queue="retry.10s""#)), "{before:?}");
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let (mut verdicts, mut readable) = (BTreeSet::new(), 0);
    for nth in 0..100_000 {
        let bytes = bytes(nth, &mut dice);
        let outcome = match command::decode(&bytes) {
            Err(_) => Outcome::Invalid,
            Ok(redemption) => {
                readable += 1;
                let verdict = ask(&metrics, &redemption, &mut dice);
                verdicts.insert(verdict.as_str());
                outcome(&verdict, &redemption, &mut dice)
            }
        };
        let age = dice.random::<bool>().then(|| any_time(&mut dice));
        metrics.commands.record_outcome(&outcome, age);
        around(&metrics, &mut dice);
    }
    assert_eq!(verdicts, Verdict::WORDS.into(), "every verdict was met");
    assert!((20_000..80_000).contains(&readable), "{readable} of them were commands");
    assert_eq!(series(&metrics), before);
}

fn any<T: Copy>(all: &[T], dice: &mut StdRng) -> T {
    all[dice.random_range(0..all.len())]
}

fn any_time(dice: &mut StdRng) -> Duration {
    Duration::from_millis(dice.random_range(0..100_000_000))
}

/// A command with numbers of its own, in every second case damaged.
fn bytes(nth: u32, dice: &mut StdRng) -> Vec<u8> {
    let sound = json!({
        "openid": format!("oUser{nth}"), "coupon_code": format!("C{nth}"), "brand_id": nth.to_string(),
        "product_coupon_id": "1000000077", "stock_id": "1000000077001", "appid": format!("wx{nth}"),
        "use_time": "2026-03-05T12:30:45+08:00", "out_request_no": format!("USE_{nth}"),
        "associated_order_info": {"transaction_id": "4200002600202603051234567890"},
    });
    match dice.random_range(0..4) {
        0 => damage::json(&sound, dice),
        1 => damage::bytes(sound.to_string().as_bytes(), dice),
        _ => sound.to_string().into_bytes(),
    }
}

/// One operation and what came back, counted as a worker counts it.
fn ask(metrics: &Metrics, redemption: &Redemption, dice: &mut StdRng) -> Verdict {
    let operation = any(&Operation::ALL, dice);
    let reply = match dice.random_range(0..10) {
        0 => CallResult::NotSent(NotSent::Connect),
        1 => CallResult::NoResponse(NoResponse::Reset),
        _ => CallResult::Response(answer(redemption, dice)),
    };
    if let CallResult::Response(Response { authenticity: Authenticity::Invalid(flaw), .. }) = &reply {
        metrics.provider.record_signature_flaw(*flaw);
    }
    let verdict = classify(operation, &reply, redemption);
    metrics.provider.record_attempt(operation, &verdict, any_time(dice));
    verdict
}

fn answer(redemption: &Redemption, dice: &mut StdRng) -> Response {
    let status = any(&[200, 202, 400, 401, 403, 404, 429, 500, 503, dice.random_range(100..600)], dice);
    let codes = ["NO_AUTH", "PARAM_ERROR", "NOT_FOUND", "SIGN_ERROR", "RATE_LIMITED", "SYSTEM_ERROR"];
    let code = match dice.random_range(0..4) {
        0 => None,
        1 => Some(damage::text("INVALID_REQUEST", dice)),
        _ => Some(any(&codes, dice).to_owned()),
    };
    let sub_codes = [272_756_745, 272_756_746, 268_578_776, 268_578_851, dice.random()];
    Response {
        status,
        authenticity: match dice.random_range(0..4) {
            0 => Authenticity::Unsigned,
            1 => Authenticity::Invalid(any(&SignatureFlaw::ALL, dice)),
            _ => Authenticity::Verified,
        },
        code: code.map(Into::into),
        sub_code: dice.random::<bool>().then(|| any(&sub_codes, dice)),
        coupon: (status == 200).then(|| coupon(redemption, dice)).flatten(),
        message: Some(damage::text("the coupon of oUser", dice).into()),
        request_id: Some(damage::text("08-268578776", dice).into()),
    }
}

/// The coupon asked about, in any state, used by us or by another.
fn coupon(redemption: &Redemption, dice: &mut StdRng) -> Option<redeemer::domain::coupon::Coupon> {
    let mut coupon: Value = serde_json::from_str(COUPON).unwrap();
    coupon["coupon_code"] = json!(redemption.coupon_code.as_str());
    for place in ["/brand_id", "/product_coupon/brand_id", "/stock/brand_id"] {
        *coupon.pointer_mut(place).unwrap() = json!(redemption.brand_id.as_str());
    }
    for place in ["/product_coupon/product_coupon_id", "/stock/product_coupon_id"] {
        *coupon.pointer_mut(place).unwrap() = json!(redemption.product_coupon_id.as_str());
    }
    coupon["stock"]["stock_id"] = json!(redemption.stock_id.as_str());
    let states = ["USED", "EFFECTIVE", "EXPIRED", "DELETED", "CONFIRMING", "PENDING", "SOMETHING_NEW"];
    coupon["coupon_state"] = json!(any(&states, dice));
    let number = any(&[redemption.out_request_no.as_str(), "SOMEBODY_ELSE"], dice);
    coupon["single_usage_detail"] = match dice.random_range(0..3) {
        0 => json!({}),
        _ => json!({ "use_request_no": number }),
    };
    response::coupon(coupon.to_string().as_bytes())
}

fn outcome(verdict: &Verdict, redemption: &Redemption, dice: &mut StdRng) -> Outcome {
    let by = EstablishedBy::Response;
    match (verdict, coupon(redemption, dice)) {
        (Verdict::Redeemed, Some(coupon)) => Outcome::Redeemed { by, coupon },
        (Verdict::Refused(reason) | Verdict::Rejected { reason, .. }, coupon) => {
            Outcome::Refused { reason: *reason, by, coupon, rejection: None }
        }
        (_, coupon) => {
            let reasons = [Reason::DeadlinePassed, Reason::AttemptsExhausted, Reason::CorruptRetryMessage];
            Outcome::Unresolved { reason: any(&reasons, dice), coupon, rejection: None }
        }
    }
}

/// What is counted around a command, with hostile words where a word comes from outside.
fn around(metrics: &Metrics, dice: &mut StdRng) {
    let hostile = damage::text("10s", dice);
    let delay = if dice.random() { any(&["10s", "1m", "2h", "", "other", "10s\"}"], dice) } else { &hostile };
    let time = any_time(dice);
    metrics.commands.record_taken(any(Arrival::ALL, dice));
    metrics.queues.record_delayed(delay, any(DelayReason::ALL, dice));
    metrics.queues.record_delay_lateness(delay, time);
    metrics.commands.observe_lane_wait(time);
    metrics.rate_limit.observe_rate_limit_wait(time);
    let proven = if dice.random() { Ok(()) } else { Err(any(PublishFailureKind::ALL, dice)) };
    metrics.broker.record_publish(any(Message::ALL, dice), proven);
    metrics.queues.set_delay_queue_depth(delay, dice.random::<bool>().then(|| dice.random()));
    metrics.queues.set_queue_depth(any(Queue::ALL, dice), dice.random::<bool>().then(|| dice.random()));
    metrics.keys.set_key_expiry(any(Key::ALL, dice), dice.random::<bool>().then(|| dice.random()));
    metrics.circuit.set_circuit(dice.random::<bool>().then(|| any(&CallDelay::ALL, dice)));
    metrics.commands.record_settled(any(Settlement::ALL, dice));
    metrics.console.record_console_denied(any(ConsoleDenial::ALL, dice));
}

#[tokio::test(flavor = "multi_thread")]
async fn age_counts_from_the_timestamp_if_it_is_plausible() {
    let mut bed = Bed::new().await;
    let now = u64::try_from(Timestamp::now().as_second()).unwrap();
    // Ten minutes in the queue; sent tomorrow, in 1970, or beyond all time, which nobody believes; and not reported.
    let sent = [Some(now - 700), Some(now + 86_400), Some(0), Some(86_400), Some(u64::MAX), None];
    for (nth, at) in sent.into_iter().enumerate() {
        bed.issue(&format!("C{nth}"), json!({}));
        let properties =
            at.map_or_else(BasicProperties::default, |at| BasicProperties::default().with_timestamp(at));
        let bytes = bed::command(&format!("C{nth}"), &format!("USE_000{nth}")).to_string();
        bed.publish_bytes(bytes.as_bytes(), properties).await;
    }
    bed.publish_bytes(b"no command", BasicProperties::default().with_timestamp(now - 700)).await;
    let service = bed.start().await;
    for _ in 0..7 {
        bed.next_event().await;
    }
    service.wait_metric(r#"redeemer_commands_settled_total{settlement="finished"}"#, 7.0).await;
    let within =
        async |le: &str| service.metric(&format!("redeemer_command_age_seconds_bucket{{le=\"{le}\"}}")).await;
    assert_eq!([within("180").await, within("600").await, within("3600").await], [5.0, 5.0, 6.0]);
    assert_eq!(service.metric("redeemer_command_age_seconds_count").await, 6.0, "what is invalid has no age");
    assert!(service.metric("redeemer_command_age_seconds_sum").await < 3_600.0);
    service.stop().await;
}
