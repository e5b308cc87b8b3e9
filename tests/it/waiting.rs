//! Waiting, lanes, hosts and stops: the service against a real broker and the sandbox where answers stay away, come
//! late, or speak of a world that has changed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::bed;
use crate::bed::{Bed, ReceivedEvent, command, header, until};
use crate::ports;
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use redeemer::wechat::client::Prepared;
use redeemer::wire::{command as wire_command, retry_message};
use redeemer_sandbox::{ActionRequest, Tuning};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A bed whose waits are short: tenths of seconds where the defaults have seconds.
async fn quick() -> Bed {
    let mut bed = Bed::new().await;
    let span = |millis| Span(Duration::from_millis(millis));
    bed.config.retry.initial = span(50);
    bed.config.retry.query_delay = span(200);
    bed.config.retry.in_process_max = span(800);
    bed.config.retry.delays = vec![span(500), span(1_000), span(2_000)];
    bed
}

/// What a sender asked of the broker: a delayed retry keeps the priority, and not the expiration, which would end the delay
/// early.
#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_retry_keeps_the_priority_and_not_the_expiration() {
    let mut bed = quick().await;
    bed.config.retry.delays = vec![Span(Duration::from_secs(7))];
    bed.faults(json!([{"fault": {"kind": "html_502"}}]));
    let service = bed.start_unready().await;
    service.wait_metric("redeemer_broker_connected", 1.0).await;
    let mut delayed = bed.in_delay("7s").await;
    for priority in [0_u8, 5, 9] {
        bed.issue(&format!("P{priority}"), json!({}));
        let properties = BasicProperties::default()
            .with_priority(priority)
            .with_expiration("600000".into())
            .with_message_id("kept".into());
        let bytes = command(&format!("P{priority}"), &format!("USE_P{priority}")).to_string();
        bed.publish_bytes(bytes.as_bytes(), properties).await;
    }
    let mut priorities = BTreeSet::new();
    for _ in 0..3 {
        let delivery = bed::next(&mut delayed, "a delayed retry").await;
        assert_eq!(delivery.properties.expiration(), &None);
        assert_eq!(delivery.properties.message_id().as_ref().map(|id| id.as_str()), Some("kept"));
        priorities.insert(delivery.properties.priority().unwrap_or_default());
    }
    assert_eq!(priorities, BTreeSet::from([0, 5, 9]));
    service.stop().await;
}

fn act(deed: &str) -> ActionRequest {
    serde_json::from_value(json!({ "do": deed })).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

async fn in_order(bed: &mut Bed, count: usize) -> Vec<ReceivedEvent> {
    let mut reported = Vec::new();
    for _ in 0..count {
        reported.push(bed.next_event().await);
    }
    reported
}

#[tokio::test(flavor = "multi_thread")]
async fn coupon_gets_one_call_at_a_time_and_delays_no_other() {
    let mut bed = quick().await;
    bed.issue("SLOW", json!({}));
    // Two of its commands take four seconds at least: time enough for forty others on any machine.
    bed.faults(json!([{"coupon_code": "SLOW", "operation": "use", "fault": {"kind": "slow", "ms": 2_000}}]));
    for nth in 0..5 {
        bed.publish(&command("SLOW", &format!("USE_SLOW_{nth}"))).await;
    }
    for nth in 0..40 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let service = bed.start().await;
    let reported = in_order(&mut bed, 45).await;
    let slow: Vec<_> = reported.iter().filter(|reported| reported.data("/coupon_code") == "SLOW").collect();
    let numbers: Vec<_> =
        slow.iter().map(|reported| reported.data("/out_request_no").as_str().unwrap()).collect();
    // One may be delivered twice while the service begins, and then waits in a queue for what may be under way.
    assert_eq!(numbers[0], "USE_SLOW_0");
    let all = BTreeSet::from(["USE_SLOW_0", "USE_SLOW_1", "USE_SLOW_2", "USE_SLOW_3", "USE_SLOW_4"]);
    assert_eq!(numbers.iter().copied().collect::<BTreeSet<_>>(), all);
    assert_eq!(slow[0].gist(), "redeemed - USED");
    assert!(slow[1..].iter().all(|reported| reported.gist() == "refused used_by_another USED"));
    let third =
        reported.iter().position(|reported| reported.data("/out_request_no") == "USE_SLOW_2").unwrap();
    assert!(third >= 40, "others waited: the slow coupon's third command was reported as number {third}");
    alone(&bed.attempts("SLOW"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_coupon_with_many_commands_delays_no_other() {
    let mut bed = quick().await;
    bed.config.broker.prefetch = 50;
    bed.issue("SLOW", json!({}));
    bed.faults(json!([{"coupon_code": "SLOW", "fault": {"kind": "slow", "ms": 20}}]));
    for nth in 0..300 {
        bed.publish(&command("SLOW", &format!("USE_SLOW_{nth:03}"))).await;
    }
    for nth in 0..40 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let service = bed.start().await;
    let reported = in_order(&mut bed, 340).await;
    let last = reported.iter().rposition(|reported| reported.data("/coupon_code") != "SLOW").unwrap();
    assert!(last < 140, "others waited: the last of them was reported as number {last}");
    let slow: BTreeMap<_, _> = reported
        .iter()
        .filter(|reported| reported.data("/coupon_code") == "SLOW")
        .map(|reported| (reported.data("/out_request_no").to_string(), reported.gist()))
        .collect();
    assert_eq!(slow.len(), 300, "every one ended");
    assert_eq!(slow.values().filter(|gist| **gist == "redeemed - USED").count(), 1);
    assert!(
        service.metric_sum("redeemer_delayed_retries_total", r#"reason="per_coupon_limit""#).await >= 200.0
    );
    assert_eq!(bed.uses().len(), 41);
    alone(&bed.attempts("SLOW"));
    service.stop().await;
}

/// No two of these calls were under way at the same time.
fn alone(attempts: &[Value]) {
    for pair in attempts.windows(2) {
        let ended = number(&pair[0]["at_us"]) + pair[0]["took_us"].as_u64().unwrap_or(0);
        assert!(ended <= number(&pair[1]["at_us"]), "two calls at once: {pair:#?}");
    }
}

/// A network in front of the sandbox that can be cut.
struct Line {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Line {
    /// On a port that stays ours while the line is cut.
    async fn open(to: SocketAddr) -> Self {
        Self::open_at(SocketAddr::from(([127, 0, 0, 1], ports::unused())), to).await
    }

    async fn open_at(address: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let task = tokio::spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                carried.spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { address, task }
    }

    /// Every connection ends, and new ones are refused.
    async fn cut(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

/// Works this many fresh commands one after the other, and counts the hosts that gave the last word on each.
async fn hosts_of(bed: &mut Bed, prefix: &str, count: usize, gist: &str) -> BTreeMap<String, usize> {
    let mut hosts = BTreeMap::new();
    for nth in 0..count {
        let code = format!("{prefix}{nth}");
        if gist.starts_with("redeemed") {
            bed.issue(&code, json!({}));
        }
        bed.publish(&command(&code, &format!("USE_{code}"))).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), gist, "{:#}", reported.event);
        let evidence = reported.data("/evidence").as_array().unwrap();
        let host = evidence.last().unwrap()["host"].as_str().unwrap().to_owned();
        *hosts.entry(host).or_default() += 1;
    }
    hosts
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_serves_only_while_the_primary_is_unreachable() {
    let mut bed = quick().await;
    let line = Line::open(bed.sandbox.addr()).await;
    let primary = line.address.to_string();
    let backup = bed.sandbox.addr().to_string();
    bed.config.wechat.base_url = format!("http://{primary}");
    bed.config.wechat.backup_base_url = format!("http://{backup}");
    let service = bed.start().await;
    // A hundredth of the calls keeps the backup proven; a handful among these is as much as chance allows.
    let on = |hosts: &BTreeMap<String, usize>, name: &str| hosts.get(name).copied().unwrap_or(0);
    let hosts = hosts_of(&mut bed, "A", 20, "redeemed - USED").await;
    assert!(on(&hosts, &primary) >= 16, "{hosts:?}");
    let hosts = hosts_of(&mut bed, "X", 20, "refused no_such_coupon -").await;
    assert!(on(&hosts, &primary) >= 16, "a business error switches nothing: {hosts:?}");
    bed.faults(json!([{"operation": "use", "first_attempts": 1, "fault": {"kind": "html_502"}}]));
    let hosts = hosts_of(&mut bed, "G", 5, "redeemed - USED").await;
    assert!(on(&hosts, &primary) >= 3, "a gateway's 502 came over the network, too: {hosts:?}");
    bed.faults(json!([]));

    let address = line.cut().await;
    let hosts = hosts_of(&mut bed, "B", 20, "redeemed - USED").await;
    assert_eq!(on(&hosts, &backup), 20, "{hosts:?}");

    let line = Line::open_at(address, bed.sandbox.addr()).await;
    let mut back = 0;
    for round in 0..40 {
        let hosts = hosts_of(&mut bed, &format!("D{round}_"), 20, "redeemed - USED").await;
        back = on(&hosts, &primary);
        if back >= 16 {
            break;
        }
    }
    assert!(back >= 16, "it never switched back");
    let uses = bed.uses();
    let codes: std::collections::BTreeSet<_> = uses.iter().map(|(code, _)| code).collect();
    assert_eq!(codes.len(), uses.len(), "one effect each, whichever way it went");
    service.stop().await;
    line.cut().await;
}

/// The provider asks for it: on a failure of the network the same request once more, on the other domain.
#[tokio::test(flavor = "multi_thread")]
async fn lost_call_is_queried_at_the_other_host() {
    let mut bed = quick().await;
    let line = Line::open(bed.sandbox.addr()).await;
    let hosts = [line.address.to_string(), bed.sandbox.addr().to_string()];
    [bed.config.wechat.base_url, bed.config.wechat.backup_base_url] =
        hosts.each_ref().map(|host| format!("http://{host}"));
    let service = bed.start().await;
    hosts_of(&mut bed, "A", 20, "redeemed - USED").await;
    for (nth, fault) in
        ["cut_before_effect", "cut_after_effect", "cut_in_body"].iter().cycle().take(9).enumerate()
    {
        let code = format!("L{nth}");
        bed.faults(json!([
            {"coupon_code": code, "operation": "use", "times": 1, "fault": {"kind": fault}},
        ]));
        bed.issue(&code, json!({}));
        bed.publish(&command(&code, &format!("USE_{code}"))).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED", "{:#}", reported.event);
        let evidence = reported.data("/evidence").as_array().unwrap();
        let [first, second] = [0, 1].map(|nth| evidence[nth]["host"].as_str().unwrap());
        assert_ne!(first, second, "{:#}", reported.event);
        // The record of the first one stays good: most calls are carried.
        hosts_of(&mut bed, &format!("G{nth}_"), 10, "redeemed - USED").await;
    }
    service.stop().await;
    line.cut().await;
}

/// The headers of a copy that was delayed once, for this command.
fn copy_headers(bytes: &[u8]) -> BTreeMap<&'static str, AMQPValue> {
    let prepared = Prepared::new(&wire_command::decode(bytes).unwrap());
    let now = Timestamp::now();
    let text = |text: &str| AMQPValue::LongString(text.into());
    BTreeMap::from([
        (retry_message::ATTEMPTS, text("3")),
        (retry_message::DELAYS_PASSED, text("1")),
        (retry_message::FIRST_SEEN, text(&(now - SignedDuration::from_secs(60)).to_string())),
        (retry_message::DEADLINE, text(&(now + SignedDuration::from_hours(1)).to_string())),
        (retry_message::LAST_VERDICT, text("unknown")),
        // Whatever anybody had begun by then has ended.
        (retry_message::NEGATIVES_FROM, text(&now.to_string())),
        (retry_message::BODY_SHA256, text(prepared.body_sha256())),
        (retry_message::EVIDENCE, text("[]")),
        (retry_message::REJECTION, text(r#"{"http_status": 403, "code": "NOT_ENOUGH"}"#)),
    ])
}

async fn publish_copy(bed: &Bed, bytes: &[u8], headers: BTreeMap<&'static str, AMQPValue>) {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), value);
    }
    bed.publish_bytes(bytes, BasicProperties::default().with_headers(table)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_bad_headers_ends_with_a_reason_and_harms_nobody() {
    let mut bed = quick().await;
    let service = bed.start().await;
    let text = |text: &str| Some(AMQPValue::LongString(text.into()));
    let damaged = "unresolved corrupt_retry_message -";
    let redeemed = "redeemed - USED";
    let past = "2001-01-01T00:00:00Z";
    let cases: Vec<(&'static str, Option<AMQPValue>, &str)> = vec![
        (retry_message::ATTEMPTS, None, damaged),
        (retry_message::DELAYS_PASSED, None, damaged),
        (retry_message::FIRST_SEEN, None, damaged),
        (retry_message::DEADLINE, None, damaged),
        (retry_message::LAST_VERDICT, None, damaged),
        (retry_message::BODY_SHA256, None, damaged),
        (retry_message::EVIDENCE, None, damaged),
        (retry_message::ATTEMPTS, text("seven"), damaged),
        (retry_message::ATTEMPTS, text("-1"), damaged),
        (retry_message::ATTEMPTS, Some(AMQPValue::LongInt(3)), damaged),
        (retry_message::ATTEMPTS, Some(AMQPValue::FieldTable(FieldTable::default())), damaged),
        (retry_message::DELAYS_PASSED, text("99999999999999999999"), damaged),
        (retry_message::FIRST_SEEN, text("yesterday"), damaged),
        (retry_message::DEADLINE, text("tomorrow"), damaged),
        (retry_message::DEADLINE, text("10000-01-01T00:00:00Z"), damaged),
        (retry_message::DEADLINE, Some(AMQPValue::Timestamp(1_772_685_045)), damaged),
        (retry_message::LAST_VERDICT, text("redeemed"), damaged),
        (retry_message::LAST_VERDICT, text("rejected because"), damaged),
        (retry_message::LAST_VERDICT, text("rejected deadline_passed"), damaged),
        (retry_message::LAST_VERDICT, text("rejected_unverified returned_since"), damaged),
        (retry_message::BODY_SHA256, text(&"0".repeat(64)), damaged),
        (retry_message::BODY_SHA256, text(""), damaged),
        (retry_message::EVIDENCE, text("[{\"at\": 1}]"), damaged),
        (retry_message::EVIDENCE, text(&"[".repeat(10_000)), damaged),
        (retry_message::REJECTION, text("{\"http_status\": 99999999}"), damaged),
        (retry_message::REJECTION, Some(AMQPValue::Boolean(true)), damaged),
        (retry_message::REJECTION, None, redeemed),
        // Nothing says that these are forged: they are believed as far as they can do no harm.
        (retry_message::ATTEMPTS, text("1000000"), "unresolved attempts_exhausted EFFECTIVE"),
        (retry_message::ATTEMPTS, text("4294967295"), "unresolved attempts_exhausted EFFECTIVE"),
        (retry_message::DEADLINE, text(past), "unresolved deadline_passed EFFECTIVE"),
        (retry_message::DEADLINE, text("9999-12-30T00:00:00Z"), redeemed),
        (retry_message::FIRST_SEEN, text("9999-12-30T00:00:00Z"), redeemed),
        // First seen before the furthest deadline that is ever kept to.
        (retry_message::FIRST_SEEN, text(past), "unresolved deadline_passed EFFECTIVE"),
        (retry_message::DELAYS_PASSED, text("4294967295"), redeemed),
        (retry_message::LAST_VERDICT, text("no_effect"), redeemed),
        (retry_message::LAST_VERDICT, text("rejected expired"), "refused rejected EFFECTIVE"),
        (retry_message::LAST_VERDICT, text("rejected_unverified not_usable"), "refused not_usable EFFECTIVE"),
        (retry_message::LAST_VERDICT, text("used"), "refused returned_since EFFECTIVE"),
        (retry_message::LAST_VERDICT, text("rejected-unsigned expired"), damaged),
        (retry_message::SUSPENDED, text("many"), damaged),
        (retry_message::SUSPENDED, Some(AMQPValue::LongInt(3)), damaged),
        (retry_message::NEGATIVES_FROM, text("soon"), damaged),
        (retry_message::UNSENT_BEFORE, text("yesterday"), damaged),
        (retry_message::QUERY_REJECTED_SINCE, text("lately"), damaged),
        (retry_message::COUPON_STATE, text(""), damaged),
    ];
    let published = cases.len();
    for (nth, (name, value, expected)) in cases.into_iter().enumerate() {
        let code = format!("C{nth}");
        bed.issue(&code, json!({}));
        let bytes = command(&code, &format!("USE_{nth:04}")).to_string().into_bytes();
        let mut headers = copy_headers(&bytes);
        match &value {
            Some(value) => headers.insert(name, value.clone()),
            None => headers.remove(name),
        };
        publish_copy(&bed, &bytes, headers).await;
        let reported = bed.next_event().await;
        let what = format!("{name}: {value:?}");
        assert_eq!(reported.gist(), expected, "{what}: {:#}", reported.event);
        assert_eq!(reported.data("/coupon_code"), &json!(code), "{what}");
        if expected.starts_with("unresolved") {
            let (kept, headers) = bed.parked().await;
            assert_eq!(kept, bytes, "{what}");
            let reason = header(&headers, "x-redemption-parked-reason");
            assert_eq!(reason, reported.data("/problem/reason").as_str().unwrap(), "{what}");
        }
        let calls = bed.attempts(&code);
        let uses = calls.iter().filter(|call| call["operation"] == "use").count();
        assert_eq!(uses, usize::from(expected == redeemed), "{what}: {calls:#?}");
        if expected == damaged {
            assert!(calls.is_empty(), "{what}: nobody knows what was asked before, so nothing is asked now");
            let problem = reported.data("/problem/faults/0/problem").as_str().unwrap_or_default();
            let changed = name == retry_message::BODY_SHA256 && problem.contains("body differs");
            assert!(problem.contains(name) || changed, "{what}: {problem}");
        }
    }
    bed.issue("GOOD", json!({}));
    bed.publish(&command("GOOD", "USE_GOOD")).await;
    assert_eq!(bed.next_event().await.gist(), redeemed, "the next command is unharmed");
    // Every one was taken once and ended: none of them went round.
    assert_eq!(service.metric(r#"redeemer_commands_taken_total{arrival="retry"}"#).await as usize, published);
    let ended = r#"redeemer_commands_settled_total{settlement="finished"}"#;
    service.wait_metric(ended, (published + 1) as f64).await;
    assert_eq!(service.metric(r#"redeemer_commands_settled_total{settlement="delayed"}"#).await, 0.0);
    service.stop().await;
    assert_eq!(bed.ready(&bed.config.broker.names.commands).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_delays_a_command_beyond_the_maximum_deadline() {
    let bed = quick().await;
    bed.issue("C1", json!({}));
    bed.faults(json!([{"fault": {"kind": "html_502"}}]));
    let service = bed.start_unready().await;
    // The delay queues are made before it counts as connected.
    service.wait_metric("redeemer_broker_connected", 1.0).await;
    let mut delay = bed.in_delay("2s").await;
    let bytes = command("C1", "USE_0001").to_string().into_bytes();
    let mut headers = copy_headers(&bytes);
    headers.insert(retry_message::DELAYS_PASSED, AMQPValue::LongString("7".into()));
    headers.insert(retry_message::FIRST_SEEN, AMQPValue::LongString("9999-12-30T00:00:00Z".into()));
    headers.insert(retry_message::DEADLINE, AMQPValue::LongString("9999-12-30T00:00:00Z".into()));
    publish_copy(&bed, &bytes, headers).await;
    let copied = bed::next(&mut delay, "the copy in the last delay").await;
    let headers = copied.properties.headers().clone().unwrap();
    let time = |name| header(&headers, name).parse::<Timestamp>().unwrap();
    assert!(time(retry_message::FIRST_SEEN) <= Timestamp::now());
    let furthest = Timestamp::now() + SignedDuration::try_from(bed.config.retry.deadline_max.0).unwrap();
    assert!(time(retry_message::DEADLINE) <= furthest);
    assert_eq!(header(&headers, retry_message::DELAYS_PASSED), "8");
    assert_eq!(copied.data, bytes);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coupon_returned_between_attempts_is_refused() {
    let mut bed = quick().await;
    let service = bed.start().await;
    for (code, fault) in [("C1", "cut_after_effect"), ("C2", "probe_signature")] {
        bed.issue(code, json!({}));
        bed.faults(json!([
            {"coupon_code": code, "operation": "use", "times": 1, "fault": {"kind": fault}},
            // Nothing is found out before the coupon is returned.
            {"coupon_code": code, "operation": "query", "fault": {"kind": "html_502"}},
        ]));
        bed.publish(&command(code, &format!("USE_{code}"))).await;
        until("the effect", async || bed.uses().iter().any(|(used, _)| used == code)).await;
        bed.sandbox.act(code, &act("return")).unwrap();
        bed.faults(json!([]));
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "refused returned_since EFFECTIVE", "{:#}", reported.event);
        assert_eq!(reported.data("/established_by"), "query");
        let calls = bed.attempts(code);
        let asked: Vec<_> = calls.iter().map(|call| call["operation"].as_str().unwrap()).collect();
        assert_eq!(asked[0], "use");
        assert!(asked[1..].iter().all(|operation| *operation == "query"), "nothing is sent again: {asked:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coupon_that_ends_between_attempts_is_refused_by_state() {
    let mut bed = quick().await;
    let service = bed.start().await;
    for (code, deed, expected) in [
        ("C1", "delete", "refused deleted DELETED"),
        ("C2", "expire", "refused expired EXPIRED"),
        ("C3", "deactivate", "refused deactivated DEACTIVATED"),
        ("C4", "use", "refused used_by_another USED"),
    ] {
        bed.issue(code, json!({}));
        let fault = json!({"kind": "cut_before_effect"});
        bed.faults(json!([
            {"coupon_code": code, "operation": "use", "times": 1, "fault": fault},
            // Nothing is found out before the deed is done.
            {"coupon_code": code, "operation": "query", "fault": {"kind": "html_502"}},
        ]));
        bed.publish(&command(code, &format!("USE_{code}"))).await;
        let answered = |attempt: &Value| attempt["operation"] == "use" && !attempt["answered"].is_null();
        until("the first attempt", async || bed.attempts(code).iter().any(answered)).await;
        bed.sandbox.act(code, &act(deed)).unwrap();
        bed.faults(json!([]));
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), expected, "{:#}", reported.event);
        let calls = bed.attempts(code);
        assert_eq!(calls.iter().filter(|call| call["operation"] == "use").count(), 1, "{calls:#?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sequential_and_bundle_coupons_are_redeemed_as_requested() {
    let mut bed = quick().await;
    let service = bed.start().await;
    bed.issue("SEQ", json!({"usage_mode": "SEQUENTIAL", "rounds": 3}));
    bed.issue("CUT", json!({"usage_mode": "SEQUENTIAL", "rounds": 2}));
    bed.issue("B0", json!({"usage_mode": "PROGRESSIVE_BUNDLE", "bundle_id": "BUNDLE", "bundle_index": 0}));
    bed.issue("B1", json!({"usage_mode": "PROGRESSIVE_BUNDLE", "bundle_id": "BUNDLE", "bundle_index": 1}));
    let cut = |kind: &str| json!([{"operation": "use", "first_attempts": 1, "fault": {"kind": kind}}]);
    let round = |code: &str, number: &str, index: u32| {
        let mut command = command(code, number);
        command["sequential_coupon_index"] = json!(index);
        command
    };
    for (faults, asked, expected, by) in [
        (json!([]), round("SEQ", "USE_SEQ_0", 0), "redeemed -", "response"),
        (json!([]), round("SEQ", "USE_SEQ_0", 0), "redeemed -", "response"),
        (json!([]), round("SEQ", "USE_SEQ_1", 1), "redeemed -", "response"),
        (json!([]), round("SEQ", "USE_SEQ_X", 0), "refused used_by_another", "query"),
        (cut("cut_after_effect"), round("CUT", "USE_CUT_0", 0), "redeemed -", "query"),
        (cut("cut_before_effect"), round("CUT", "USE_CUT_1", 1), "redeemed -", "response"),
        (json!([]), command("B0", "USE_B0"), "redeemed -", "response"),
        (cut("cut_after_effect"), command("B1", "USE_B1"), "redeemed -", "query"),
    ] {
        bed.faults(faults);
        bed.publish(&asked).await;
        let reported = bed.next_event().await;
        assert!(reported.gist().starts_with(expected), "{asked}: {} {:#}", reported.gist(), reported.event);
        assert_eq!(reported.data("/established_by"), by, "{asked}: {:#}", reported.event);
    }
    let mut uses = bed.uses();
    uses.sort();
    let expected = [
        ("B0", "USE_B0"),
        ("B1", "USE_B1"),
        ("CUT", "USE_CUT_0"),
        ("CUT", "USE_CUT_1"),
        ("SEQ", "USE_SEQ_0"),
        ("SEQ", "USE_SEQ_1"),
    ];
    assert_eq!(uses, expected.map(|(code, number)| (code.to_owned(), number.to_owned())));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_better_outcome_supersedes_an_unresolved_one() {
    let mut bed = quick().await;
    let service = bed.start().await;
    for (code, fault, keeps_headers) in [
        ("C1", "cut_before_effect", false),
        ("C2", "cut_after_effect", false),
        ("C3", "cut_after_effect", true),
    ] {
        bed.issue(code, json!({}));
        // Queries fail, too: nobody can find out in time.
        bed.faults(json!([
            {"coupon_code": code, "operation": "use", "fault": {"kind": fault}},
            {"coupon_code": code, "operation": "query", "fault": {"kind": "no_signature"}},
        ]));
        let bytes = command(code, &format!("USE_{code}")).to_string().into_bytes();
        let mut headers = FieldTable::default();
        let soon = Timestamp::now() + SignedDuration::from_secs(2);
        headers.insert(retry_message::DEADLINE.into(), AMQPValue::LongString(soon.to_string().into()));
        bed.publish_bytes(&bytes, BasicProperties::default().with_headers(headers)).await;
        let unresolved = bed.next_event().await;
        assert_eq!(unresolved.gist(), "unresolved deadline_passed -");
        let (kept, headers) = bed.parked().await;
        assert_eq!(kept, bytes);

        bed.faults(json!([]));
        let properties = match keeps_headers {
            true => BasicProperties::default().with_headers(headers),
            false => BasicProperties::default(),
        };
        bed.publish_bytes(&kept, properties).await;
        let redeemed = bed.next_event().await;
        assert_eq!(redeemed.gist(), "redeemed - USED", "{code}: {:#}", redeemed.event);
        assert_ne!(redeemed.event["id"], unresolved.event["id"]);
        for same in ["/coupon_code", "/out_request_no"] {
            assert_eq!(redeemed.data(same), unresolved.data(same));
        }
        assert_eq!(bed.uses().iter().filter(|(used, _)| used == code).count(), 1);
    }
    service.stop().await;
}

fn of_brand(code: &str, brand: &str, number: &str) -> Value {
    let mut command = command(code, number);
    command["brand_id"] = json!(brand);
    command
}

fn unauthorized(bed: &Bed, brands: &[&str]) {
    let brands = brands.iter().map(|brand| (*brand).to_owned()).collect();
    bed.sandbox.tune(Tuning { unauthorized_brands: Some(brands), ..Tuning::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthorized_brand_is_refused_while_another_is_served() {
    let mut bed = quick().await;
    bed.config.retry.in_process_max = Span(Duration::from_secs(8));
    unauthorized(&bed, &["666666"]);
    // The stranger comes first, when no brand has let us in yet.
    for nth in 0..5 {
        let code = format!("B{nth}");
        bed.issue(&code, json!({"brand_id": "666666"}));
        bed.publish(&of_brand(&code, "666666", &format!("USE_{code}"))).await;
    }
    for nth in 0..20 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let service = bed.start_unready().await;
    for reported in in_order(&mut bed, 25).await {
        let expected = match reported.data("/brand_id").as_str() {
            Some("666666") => "refused not_authorized -",
            _ => "redeemed - USED",
        };
        assert_eq!(reported.gist(), expected, "{:#}", reported.event);
    }
    service.wait_ready().await;
    assert_eq!(bed.uses().len(), 20);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_brands_denied_stops_consumption_until_allowed() {
    let mut bed = quick().await;
    let service = bed.start().await;
    for (nth, brand) in ["120344", "666666"].into_iter().enumerate() {
        bed.issue(&format!("A{nth}"), json!({"brand_id": brand}));
        bed.publish(&of_brand(&format!("A{nth}"), brand, &format!("USE_A{nth}"))).await;
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    unauthorized(&bed, &["*"]);
    for nth in 0..30 {
        let (code, brand) = (format!("C{nth}"), if nth % 2 == 0 { "120344" } else { "666666" });
        bed.issue(&code, json!({"brand_id": brand}));
        bed.publish(&of_brand(&code, brand, &format!("USE_{code}"))).await;
    }
    let suspended = async || {
        let status: Value = serde_json::from_str(&service.get("/status.json").await.1).unwrap();
        status["reasons"][0]["code"] == "suspended_unauthorized"
    };
    until("the suspension", &suspended).await;
    assert_eq!(service.metric(r#"redeemer_suspended{reason="unauthorized"}"#).await, 1.0);
    let calls = || bed.ledger()["attempts"].as_array().unwrap().len();
    let before = calls();
    until("three more probes", async || calls() >= before + 3).await;
    assert!(suspended().await, "it stays suspended");
    assert_eq!(bed.uses().len(), 2);
    unauthorized(&bed, &[]);
    for reported in in_order(&mut bed, 30).await {
        assert_eq!(reported.gist(), "redeemed - USED", "no coupon is charged with it: {:#}", reported.event);
    }
    service.wait_ready().await;
    assert_eq!(bed.uses().len(), 32);
    service.stop().await;
}

/// Its commands are at the head of the queue, many of them, and it was let in a moment before.
#[tokio::test(flavor = "multi_thread")]
async fn a_brand_that_withdraws_its_rights_holds_up_nobody() {
    let mut bed = quick().await;
    let service = bed.start().await;
    for (nth, brand) in ["120344", "666666"].into_iter().enumerate() {
        bed.issue(&format!("A{nth}"), json!({"brand_id": brand}));
        bed.publish(&of_brand(&format!("A{nth}"), brand, &format!("USE_A{nth}"))).await;
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    unauthorized(&bed, &["666666"]);
    for nth in 0..100 {
        let code = format!("B{nth}");
        bed.issue(&code, json!({"brand_id": "666666"}));
        bed.publish(&of_brand(&code, "666666", &format!("USE_{code}"))).await;
    }
    let since = Instant::now();
    for nth in 0..20 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let mut good = None;
    let mut counts = BTreeMap::new();
    for reported in in_order(&mut bed, 120).await {
        *counts.entry(reported.gist()).or_insert(0) += 1;
        if counts.get("redeemed - USED") == Some(&20) {
            good.get_or_insert(since.elapsed());
        }
    }
    let expected = [("redeemed - USED".to_owned(), 20), ("refused not_authorized -".to_owned(), 100)];
    assert_eq!(counts, BTreeMap::from(expected));
    // One after the other, with a pause for each of the denied, they would take nine minutes.
    assert!(good.unwrap() < Duration::from_secs(30), "{good:?}");
    assert_eq!(service.metric(r#"redeemer_suspended{reason="unauthorized"}"#).await, 0.0);
    service.stop().await;
}

/// At the start, when no brand has let us in yet, and more of them than others.
#[tokio::test(flavor = "multi_thread")]
async fn ever_new_brands_without_rights_stop_nothing() {
    let mut bed = quick().await;
    let strangers: Vec<_> = (0..120).map(|nth| format!("9{nth:05}")).collect();
    unauthorized(&bed, &strangers.iter().map(String::as_str).collect::<Vec<_>>());
    for (nth, brand) in strangers.iter().enumerate() {
        let code = format!("B{nth}");
        bed.issue(&code, json!({"brand_id": brand}));
        bed.publish(&of_brand(&code, brand, &format!("USE_{code}"))).await;
        if nth % 6 == 5 {
            bed.issue(&format!("C{nth}"), json!({}));
            bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
        }
    }
    let service = bed.start_unready().await;
    let since = Instant::now();
    until("those with rights", async || bed.uses().len() == 20).await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    service.wait_ready().await;
    // Once each was denied, it takes one more that is let in to know that it is their own word.
    let tried = |nth: usize| !bed.attempts(&format!("B{nth}")).is_empty();
    until("every stranger", async || (0..120).all(tried)).await;
    bed.issue("D", json!({}));
    bed.publish(&command("D", "USE_000D")).await;
    for reported in in_order(&mut bed, 141).await {
        let expected = match reported.data("/brand_id").as_str() {
            Some("120344") => "redeemed - USED",
            _ => "refused not_authorized -",
        };
        assert_eq!(reported.gist(), expected, "{:#}", reported.event);
    }
    service.stop().await;
}

/// Rights go operation by operation: what was used, and whose answer was lost, cannot be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn denied_query_delays_no_other_until_the_deadline() {
    let mut bed = quick().await;
    let no_auth = json!({"kind": "status", "status": 403, "code": "NO_AUTH", "signed": true});
    let lost: Vec<_> = (0..5).map(|nth| format!("L{nth}")).collect();
    let rules = lost.iter().flat_map(|code| {
        let cut = json!({"kind": "cut_after_effect"});
        [
            json!({"coupon_code": code, "operation": "use", "times": 1, "fault": cut}),
            json!({"coupon_code": code, "operation": "query", "fault": no_auth}),
        ]
    });
    bed.faults(rules.collect());
    let service = bed.start().await;
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(8)).to_string();
    for code in &lost {
        bed.issue(code, json!({}));
        let headers = BTreeMap::from([("x-redemption-deadline", AMQPValue::LongString(soon.clone().into()))]);
        publish_copy(&bed, command(code, &format!("USE_{code}")).to_string().as_bytes(), headers).await;
    }
    until("the uses", async || bed.uses().len() == 5).await;
    for nth in 0..20 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    for reported in in_order(&mut bed, 20).await {
        assert_eq!(reported.gist(), "redeemed - USED", "{:#}", reported.event);
    }
    for reported in in_order(&mut bed, 5).await {
        assert_eq!(reported.gist(), "unresolved deadline_passed -", "{:#}", reported.event);
    }
    for code in &lost {
        let calls = bed.attempts(code);
        assert_eq!(calls.iter().filter(|call| call["operation"] == "use").count(), 1, "{calls:#?}");
    }
    assert_eq!(service.metric(r#"redeemer_suspended{reason="unauthorized"}"#).await, 0.0);
    service.stop().await;
}

/// The provider grants rights interface by interface: looking at a coupon may be allowed where using it is not.
#[tokio::test(flavor = "multi_thread")]
async fn query_success_keeps_unauthorized_service_suspended() {
    let mut bed = quick().await;
    let no_auth = json!({"kind": "status", "status": 403, "code": "NO_AUTH"});
    bed.faults(json!([{"operation": "use", "fault": no_auth}]));
    for nth in 0..30 {
        let (code, brand) = (format!("C{nth}"), if nth % 3 == 1 { "666666" } else { "120344" });
        bed.issue(&code, json!({"brand_id": brand}));
        let bytes = of_brand(&code, brand, &format!("USE_{code}")).to_string().into_bytes();
        match nth % 3 {
            // It begins with the query, which is answered.
            0 => publish_copy(&bed, &bytes, copy_headers(&bytes)).await,
            _ => bed.publish_bytes(&bytes, BasicProperties::default()).await,
        }
    }
    let service = bed.start_unready().await;
    until("the stop", async || service.get("/readyz").await.1.contains("NO_AUTH")).await;
    let asked = |operation: &str| {
        let attempts = bed.ledger()["attempts"].as_array().unwrap().clone();
        attempts.iter().filter(|attempt| attempt["operation"] == operation).count()
    };
    // Queries are answered meanwhile, and redemptions go on being tried one by one.
    until("queries", async || asked("query") >= 4).await;
    let before = asked("use");
    until("further redemptions", async || asked("use") >= before + 2).await;
    assert!(service.get("/readyz").await.1.contains("NO_AUTH"), "it stays stopped");
    assert_eq!(service.metric(r#"redeemer_suspended{reason="unauthorized"}"#).await, 1.0);
    bed.faults(json!([]));
    for reported in in_order(&mut bed, 30).await {
        assert_eq!(reported.gist(), "redeemed - USED", "no coupon is charged with it: {:#}", reported.event);
    }
    service.wait_ready().await;
    assert_eq!(bed.uses().len(), 30);
    service.stop().await;
}

/// A command whose parameters are rejected shows no right to use the brand's coupons.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_parameter_does_not_make_a_denied_brand_the_only_one() {
    let mut bed = quick().await;
    let no_auth = json!({"kind": "status", "status": 403, "code": "NO_AUTH"});
    let wrong = json!({"kind": "status", "status": 400, "code": "PARAM_ERROR"});
    bed.faults(json!([
        {"coupon_prefix": "EVIL", "fault": wrong},
        {"operation": "use", "fault": no_auth},
    ]));
    for nth in 0..12 {
        let (code, brand) = (format!("C{nth}"), ["120344", "666666"][nth % 2]);
        bed.issue(&code, json!({"brand_id": brand}));
        bed.publish(&of_brand(&code, brand, &format!("USE_{code}"))).await;
    }
    bed.issue("EVIL", json!({"brand_id": "888888"}));
    bed.publish(&of_brand("EVIL", "888888", "USE_EVIL")).await;
    let service = bed.start_unready().await;
    until("the stop", async || service.get("/readyz").await.1.contains("NO_AUTH")).await;
    bed.faults(json!([]));
    for reported in in_order(&mut bed, 13).await {
        let good = reported.event["subject"] != "EVIL";
        assert!(!good || reported.gist() == "redeemed - USED", "charged to a coupon: {:#}", reported.event);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_clock_stops_consumption_and_reports_the_skew() {
    let mut bed = quick().await;
    for nth in 0..20 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    bed.sandbox.set_clock_offset(600);
    let service = bed.start_unready().await;
    until("the stop", async || service.get("/readyz").await.1.contains("clock is")).await;
    let reason = service.get("/readyz").await.1;
    let seconds = |text: &str| text.split("clock is ").nth(1)?.split(' ').next()?.parse::<f64>().ok();
    let behind = seconds(&reason).unwrap_or_else(|| panic!("{reason}"));
    assert!((590.0..=610.0).contains(&behind), "{reason}");
    assert!(reason.contains("s behind the provider's"), "{reason}");
    assert!(reason.contains("it says: SIGN_ERROR: timestamp"), "{reason}");
    let skew = service.metric("redeemer_clock_skew_seconds").await;
    assert!((590.0..=610.0).contains(&skew), "{skew}");
    assert!(bed.uses().is_empty());
    bed.sandbox.set_clock_offset(0);
    for reported in in_order(&mut bed, 20).await {
        assert_eq!(reported.gist(), "redeemed - USED", "{:#}", reported.event);
    }
    service.wait_ready().await;
    service.stop().await;
}
