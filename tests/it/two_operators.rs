//! Two operators at the parked queue: a look that is lost publishes nothing, and a refusal is published on the evidence
//! that the service itself requires. The look is ended by the broker while the call of its replay is under way.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::bed;
use crate::bed::{Bed, command, until};
use crate::broker;
use crate::proxy::{Manner, Proxy};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use redeemer::amqp::parked_queue::{ParkedQueue, ParkedQueueError};
use redeemer::config::Span;
use serde_json::{Value, json};
use tokio::process::Command;

const SETTLING: Duration = Duration::from_millis(400);

/// A bed with one parked command for the coupon `C1`.
async fn bed(coupon: Value) -> Bed {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = Span(SETTLING);
    bed.config.wechat.read_timeout = Span(Duration::from_secs(60));
    bed.config.wechat.total_timeout = Span(Duration::from_secs(60));
    bed.leave_parked().await;
    bed.issue("C1", coupon);
    park(&bed, "C1").await;
    bed
}

async fn park(bed: &Bed, code: &str) {
    park_since(bed, code, SignedDuration::from_hours(1)).await;
}

async fn park_since(bed: &Bed, code: &str, ago: SignedDuration) {
    let at = Timestamp::now() - ago;
    let mut headers = FieldTable::default();
    for (name, text) in [
        ("x-redemption-parked-reason", "deadline_passed".to_owned()),
        ("x-redemption-parked-at", at.to_string()),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    }
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let exchange = bed.config.broker.names.parked.as_str();
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let bytes = command(code, &format!("USE_{code}")).to_string();
    let confirm =
        bed.channel().basic_publish(exchange.into(), "".into(), options, bytes.as_bytes(), properties);
    assert!(confirm.await.unwrap().await.unwrap().is_ack());
}

fn program(bed: &Bed, arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    program.arg("--config").arg(bed.config_file()).arg("parked").args(arguments);
    program.env("USER", "night-shift").stdin(Stdio::null()).kill_on_drop(true);
    program
}

/// The JSON lines of a run that ends with this exit code.
fn lines(output: &Output, code: i32) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How many messages a queue has.
async fn depth(bed: &Bed, queue: &str) -> u32 {
    match bed.channel().basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
        None => 0,
        Some(got) => {
            got.delivery.nack(BasicNackOptions { requeue: true, multiple: false }).await.unwrap();
            got.message_count + 1
        }
    }
}

/// Has the broker close the connection that holds the lock of the parked queue.
fn close_look(bed: &Bed) {
    broker::shared().close_owner(&format!("{}.lock", bed.config.broker.names.parked));
}

/// A first operator replays and loses the look while the call is under way; a second operator does `second` meanwhile.
/// Gives the effects in the audit events, and how many messages are in the command queue at the end.
async fn overtaken(coupon: Value, first: &[&str], second: &[&str]) -> (Vec<String>, u32) {
    let mut bed = bed(coupon).await;
    let direct = bed.config.wechat.base_url.clone();
    let port = direct.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
    let held = Proxy::start(port).await;
    held.behave(Manner::Silent);
    bed.config.wechat.base_url = format!("http://127.0.0.1:{}", held.port);
    let first = program(&bed, first).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let first = tokio::spawn(first.wait_with_output());
    until("the first operator's call is under way", async || held.ill_treated() > 0).await;
    tokio::task::block_in_place(|| close_look(&bed));

    bed.config.wechat.base_url = direct;
    let output = program(&bed, second).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    held.behave(Manner::Good);
    let output = first.await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "nothing is reported as done: {output:?}");

    let names = &bed.config.broker.names;
    assert_eq!(depth(&bed, &names.parked).await, 0);
    let mut effects = Vec::new();
    let options = BasicGetOptions { no_ack: true };
    let audits = format!("{}.audit", names.parked);
    while let Some(got) = bed.channel().basic_get(audits.as_str().into(), options).await.unwrap() {
        let event: Value = serde_json::from_slice(&got.delivery.data).unwrap();
        effects.push(event["data"]["effect"].as_str().unwrap().to_owned());
    }
    (effects, depth(&bed, &names.commands).await)
}

const REPLAY: &[&str] = &["replay", "--yes", "--json"];
const TELL: &[&str] = &["replay", "--yes", "--json", "--publish-refused"];
const DISCARD: &[&str] = &["discard", "--all", "--yes", "--json", "--because", "refunded by hand"];

#[tokio::test(flavor = "multi_thread")]
async fn lost_look_does_not_send_again_after_discard() {
    assert_eq!(overtaken(json!({}), REPLAY, DISCARD).await, (vec!["discarded".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_look_does_not_send_again_after_replay() {
    assert_eq!(overtaken(json!({}), REPLAY, REPLAY).await, (vec!["republished".to_owned()], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_look_publishes_no_redeemed_after_discard() {
    let used = json!({"state": "USED", "used_by": "USE_C1"});
    assert_eq!(overtaken(used, REPLAY, DISCARD).await, (vec!["discarded".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_look_publishes_no_refused_after_discard() {
    let expired = json!({"state": "EXPIRED"});
    assert_eq!(overtaken(expired, TELL, DISCARD).await, (vec!["discarded".to_owned()], 0));
}

/// When each query came to the sandbox, in microseconds.
fn queries(bed: &Bed) -> Vec<u64> {
    let attempts = bed.attempts("C1");
    let queries = attempts.iter().filter(|attempt| attempt["operation"] == "query");
    queries.map(|attempt| attempt["at_us"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_signed_404_does_not_refuse_a_redeemed_command() {
    let mut bed = bed(json!({"state": "USED", "used_by": "USE_C1"})).await;
    bed.faults(json!([{"operation": "query", "times": 1, "fault": {
        "kind": "status", "status": 404, "code": "NOT_FOUND", "signed": true}}]));
    let output = program(&bed, TELL).output().await.unwrap();
    assert_eq!(lines(&output, 0)[0]["did"], "published_redeemed");
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    assert_eq!(queries(&bed).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_rests_on_two_spaced_queries() {
    let mut bed = bed(json!({"state": "EXPIRED"})).await;
    let output = program(&bed, TELL).output().await.unwrap();
    assert_eq!(lines(&output, 0)[0]["did"], "published_refused");
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "refused expired EXPIRED");
    let queries = queries(&bed);
    assert_eq!(queries.len(), 2);
    let apart = Duration::from_micros(queries[1] - queries[0]);
    // The first may have been long on its way to the ledger, which the program cannot see; the second left after it.
    assert!(apart >= SETTLING, "{apart:?}");
    let evidence = reported.data("/evidence").as_array().unwrap();
    assert_eq!((evidence.len(), reported.data("/attempts")), (2, &json!(2)), "{evidence:#?}");
}

/// A call of the service may take 60 s, and the command was parked 55 s before the query began: what the query saw at its
/// beginning may change, although its answer came after that time.
#[tokio::test(flavor = "multi_thread")]
async fn query_during_a_possible_call_refuses_nothing() {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = Span(SETTLING);
    bed.config.wechat.read_timeout = Span(Duration::from_secs(60));
    bed.config.wechat.total_timeout = Span(Duration::from_secs(60));
    bed.leave_parked().await;
    bed.issue("C1", json!({"state": "EXPIRED"}));
    bed.faults(json!([{"operation": "query", "times": 1, "fault": {"kind": "slow", "ms": 8_000}}]));
    park_since(&bed, "C1", SignedDuration::from_secs(55)).await;
    let output = program(&bed, TELL).output().await.unwrap();
    assert!(lines(&output, 4)[0]["left"].is_string(), "{output:?}");
    assert_eq!((queries(&bed).len(), depth(&bed, &bed.config.broker.names.parked).await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_without_a_second_answer_stays_parked() {
    let bed = bed(json!({"state": "EXPIRED"})).await;
    bed.faults(json!([
        {"operation": "query", "times": 1, "fault": {"kind": "status", "status": 404, "code": "NOT_FOUND", "signed": true}},
        {"operation": "query", "fault": {"kind": "html_502"}},
    ]));
    let output = program(&bed, TELL).output().await.unwrap();
    assert!(lines(&output, 4)[0]["left"].is_string());
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_of_a_lost_look_publishes_nothing() {
    let bed = bed(json!({})).await;
    let settings = bed.config.broker_settings().unwrap();
    let mut look = ParkedQueue::begin(&settings).await.unwrap();
    assert!(matches!(look.verified_publisher().await, Err(ParkedQueueError::ReadOnly)));
    look.open_publisher(&settings).await.unwrap();
    let held = look.next().await.unwrap().unwrap();
    let publisher = look.verified_publisher().await.unwrap();
    // The connection ends after the broker was asked: no check beforehand could know.
    tokio::task::block_in_place(|| close_look(&bed));
    assert!(publisher.publish_replay(&held, Vec::new(), Timestamp::now()).await.is_err());
    assert!(look.verify().await.is_err());
    look.end().await;
    let names = &bed.config.broker.names;
    assert_eq!((depth(&bed, &names.commands).await, depth(&bed, &names.parked).await), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn look_without_its_lock_publishes_nothing() {
    let bed = bed(json!({})).await;
    let settings = bed.config.broker_settings().unwrap();
    let mut look = ParkedQueue::begin(&settings).await.unwrap();
    look.open_publisher(&settings).await.unwrap();
    look.next().await.unwrap().unwrap();
    look.verify().await.unwrap();
    // The connection stays; only the queue that is the lock is deleted, as a policy of somebody else may do.
    let pattern = format!("^{}\\.lock$", bed.config.broker.names.parked.replace('.', "\\."));
    let policy = ["set_policy", &pattern, &pattern, r#"{"expires":1}"#, "--apply-to", "queues"];
    tokio::task::block_in_place(|| broker::shared().ctl(&policy));
    let lock = format!("{}.lock", bed.config.broker.names.parked);
    let refused = tokio::time::timeout(bed::PATIENCE, async {
        loop {
            if let Err(refused) = look.verified_publisher().await {
                return refused;
            }
        }
    });
    let refused = refused.await.unwrap();
    assert!(matches!(&refused, ParkedQueueError::LockLost(name) if *name == lock), "{refused}");
    look.end().await;
    tokio::task::block_in_place(|| broker::shared().ctl(&["clear_policy", &pattern]));
    assert_eq!(depth(&bed, &bed.config.broker.names.parked).await, 1);
}

/// Each permission of an operator's user but that for the lock; then that one, too.
#[tokio::test(flavor = "multi_thread")]
async fn missing_lock_is_reported_and_a_lock_keeps_others_away() {
    let mut bed = bed(json!({})).await;
    let names = bed.config.broker.names.clone();
    let token = bed.dir.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    bed.config.admin.console_token_file = token.display().to_string();
    // Everything is created before, by a user who may.
    let service = bed.start().await;
    service.stop().await;
    bed.config.broker.topology = "verify".to_owned();
    let user = format!("operator-{}", names.parked);
    let look = format!("{}.lock", names.parked);
    let allow = |configure: &str| {
        let permissions = ["set_permissions", user.as_str(), configure, ".*", ".*"];
        tokio::task::block_in_place(|| broker::shared().ctl(&permissions));
    };
    tokio::task::block_in_place(|| broker::shared().ctl(&["add_user", &user, "geheim"]));
    allow("^$");
    bed.config.broker.uri = broker::shared().uri_of(&user, "geheim");
    let settings = bed.config.broker_settings().unwrap();

    let first = ParkedQueue::begin(&settings).await.unwrap();
    let second = ParkedQueue::begin(&settings).await.unwrap();
    for unlocked in [&first, &second] {
        assert!(unlocked.missing_lock().is_some_and(|why| why.contains(&look)));
    }
    first.end().await;
    second.end().await;
    let discard = ["discard", "--all", "--because", "x"];
    let service = bed.start().await;
    for (is_locked, configure) in
        [(false, "^$".to_owned()), (true, format!("^{}$", look.replace('.', "\\.")))]
    {
        allow(&configure);
        for arguments in [&["list"][..], &["show"], &discard] {
            let output = program(&bed, arguments).output().await.unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(text.matches(&look).count(), usize::from(!is_locked), "{arguments:?}: {text}");
        }
        let page = console_page(&service).await;
        assert!(page.contains("USE_C1"), "{page}");
        assert_eq!(page.contains(&look), !is_locked, "{page}");
    }
    let first = ParkedQueue::begin(&settings).await.unwrap();
    assert_eq!(first.missing_lock(), None);
    let second = ParkedQueue::begin(&settings).await.map(|_| ());
    assert!(matches!(second, Err(ParkedQueueError::Busy(_))), "{second:?}");
    first.end().await;
    service.stop().await;
    tokio::task::block_in_place(|| broker::shared().ctl(&["delete_user", &user]));
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The list of the console, seen by an operator who has just logged in.
async fn console_page(service: &bed::Service) -> String {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let login = http.post(service.url("/parked/login")).body(format!("token={TOKEN}&operator=lin"));
    let login = login.send().await.unwrap();
    let cookie = login.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    http.get(service.url("/parked")).header("cookie", cookie).send().await.unwrap().text().await.unwrap()
}
