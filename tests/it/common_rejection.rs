//! Faults of our own in a running service, against a real broker and the sandbox: what meets every command alike is charged
//! to none, and readiness says what the operator needs.

use std::time::Duration;

use crate::bed::{Bed, command, until};
use redeemer::config::Span;
use serde_json::{Value, json};

async fn quick() -> Bed {
    let mut bed = Bed::new().await;
    bed.config.retry.initial = Span(Duration::from_millis(50));
    bed.config.retry.query_delay = Span(Duration::from_millis(100));
    bed.config.retry.in_process_max = Span(Duration::from_millis(1_000));
    bed.config.retry.delays = [200, 400].map(|millis| Span(Duration::from_millis(millis))).to_vec();
    bed.config.wechat.read_timeout = Span(Duration::from_millis(1_500));
    bed.config.wechat.total_timeout = Span(Duration::from_secs(2));
    bed
}

/// A command that shares nothing with those of other numbers, and its coupon.
fn unrelated(bed: &Bed, nth: usize) -> Value {
    let code = format!("C{nth}");
    let mut redemption = command(&code, &format!("USE_{nth:04}"));
    let own = json!({
        "openid": format!("oUser_{nth}"), "brand_id": format!("{}", 700_000 + nth),
        "product_coupon_id": format!("10000001{nth:02}"), "stock_id": format!("10000001{nth:02}001"),
        "appid": format!("wx23354454654{nth:04}"),
    });
    bed.issue(&code, own.clone());
    for (name, value) in own.as_object().unwrap() {
        redemption[name] = value.clone();
    }
    redemption
}

/// A command of the one brand and app that a service has, and its coupon.
fn of_one_brand(bed: &Bed, nth: usize) -> Value {
    let code = format!("C{nth}");
    let mut redemption = command(&code, &format!("USE_{nth:04}"));
    let own = json!({
        "openid": format!("oUser_{nth}"), "product_coupon_id": format!("10000001{:02}", nth % 4),
        "stock_id": format!("10000001{:02}001", nth % 4),
    });
    bed.issue(&code, own.clone());
    for (name, value) in own.as_object().unwrap() {
        redemption[name] = value.clone();
    }
    redemption
}

fn rejected(code: &str, sub_code: u64) -> Value {
    json!({"kind": "status", "status": 400, "code": code, "sub_code": sub_code, "signed": true,
        "message": "Wechatpay-Serial 有误"})
}

const SUSPENDED: &str = r#"redeemer_suspended{reason="rejected"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn rejection_of_every_command_suspends_and_charges_none() {
    let mut bed = quick().await;
    bed.faults(json!([{ "fault": rejected("PARAM_ERROR", 268_435_461) }]));
    let service = bed.start().await;
    for nth in 0..6 {
        bed.publish(&unrelated(&bed, nth)).await;
    }
    until("the suspension", async || service.get("/readyz").await.1.starts_with("[suspended_rejected] "))
        .await;
    let (status, words) = service.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(words.contains("PARAM_ERROR: Wechatpay-Serial 有误"), "{words}");
    assert_eq!(service.metric(SUSPENDED).await, 1.0);
    assert_eq!(bed.uses().len(), 0);
    bed.faults(json!([]));
    for _ in 0..6 {
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED", "no coupon is charged with it: {:#}", reported.event);
    }
    service.wait_ready().await;
    assert_eq!(service.metric(SUSPENDED).await, 0.0);
    service.stop().await;
}

/// A service with one brand has no commands that share nothing.
#[tokio::test(flavor = "multi_thread")]
async fn rejection_of_every_command_of_a_single_brand_suspends() {
    const COMMANDS: usize = 12;
    let mut bed = quick().await;
    bed.faults(json!([{ "fault": rejected("PARAM_ERROR", 268_435_461) }]));
    let service = bed.start().await;
    for nth in 0..COMMANDS {
        bed.publish(&of_one_brand(&bed, nth)).await;
    }
    until("the suspension", async || service.get("/readyz").await.1.starts_with("[suspended_rejected] "))
        .await;
    assert_eq!(service.metric(SUSPENDED).await, 1.0);
    assert_eq!(bed.uses(), []);
    bed.faults(json!([]));
    for _ in 0..COMMANDS {
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED", "no coupon is charged with it: {:#}", reported.event);
    }
    service.wait_ready().await;
    service.stop().await;
}

/// One bad command, and nothing else happens: its queries are rejected like its use. It was unresolved after a day.
#[tokio::test(flavor = "multi_thread")]
async fn lone_command_rejected_with_its_queries_is_refused_soon() {
    let mut bed = quick().await;
    bed.faults(json!([{ "coupon_code": "BAD1", "fault": rejected("INVALID_REQUEST", 268_435_461) }]));
    let service = bed.start().await;
    bed.issue("BAD1", json!({}));
    bed.publish(&command("BAD1", "USE_BAD1")).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "refused invalid_parameter -", "{:#}", reported.event);
    assert_eq!(reported.event["data"]["problem"]["code"], "INVALID_REQUEST", "{:#}", reported.event);
    assert_eq!(service.metric(SUSPENDED).await, 0.0);
    assert_eq!(bed.uses(), []);
    service.stop().await;
}

/// The fault begins a moment after a call was accepted, so the first uses look like the commands' own fault.
#[tokio::test(flavor = "multi_thread")]
async fn rejection_that_begins_after_an_accepted_call_charges_none() {
    const COMMANDS: usize = 6;
    let mut bed = quick().await;
    let service = bed.start().await;
    bed.publish(&unrelated(&bed, COMMANDS)).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    bed.faults(json!([{ "fault": rejected("PARAM_ERROR", 268_435_461) }]));
    for nth in 0..COMMANDS {
        bed.publish(&unrelated(&bed, nth)).await;
    }
    until("the suspension", async || service.get("/readyz").await.1.starts_with("[suspended_rejected] "))
        .await;
    bed.faults(json!([]));
    for _ in 0..COMMANDS {
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED", "no coupon is charged with it: {:#}", reported.event);
    }
    service.stop().await;
}

/// The uses are rejected and the coupons can be queried: that is about the commands.
#[tokio::test(flavor = "multi_thread")]
async fn flood_of_rejected_uses_of_a_single_brand_suspends_nothing() {
    let mut bed = quick().await;
    bed.faults(json!([{ "operation": "use", "fault": rejected("INVALID_REQUEST", 268_578_101) }]));
    let service = bed.start().await;
    for nth in 0..40 {
        bed.publish(&of_one_brand(&bed, nth)).await;
    }
    for _ in 0..40 {
        assert_eq!(bed.next_event().await.gist(), "refused invalid_parameter EFFECTIVE");
        assert_eq!(service.metric(SUSPENDED).await, 0.0);
    }
    service.stop().await;
}

/// However many bad commands one publisher sends, they end as refused, and nobody else waits for them.
#[tokio::test(flavor = "multi_thread")]
async fn flood_of_rejected_commands_of_one_publisher_suspends_nothing() {
    let mut bed = quick().await;
    bed.faults(json!([
        { "coupon_prefix": "bad", "operation": "use", "fault": rejected("INVALID_REQUEST", 268_578_101) }
    ]));
    let service = bed.start().await;
    for nth in 0..60 {
        let code = format!("bad{nth}");
        bed.issue(&code, json!({}));
        bed.publish(&command(&code, &format!("USE_BAD_{nth:04}"))).await;
        if nth % 10 == 5 {
            bed.publish(&unrelated(&bed, nth)).await;
        }
    }
    let mut ends = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..66 {
        *ends.entry(bed.next_event().await.gist()).or_default() += 1;
        assert_eq!(service.metric(SUSPENDED).await, 0.0);
    }
    let expected = [("redeemed - USED", 6), ("refused invalid_parameter EFFECTIVE", 60)];
    assert_eq!(ends, expected.map(|(end, count)| (end.to_owned(), count)).into());
    service.stop().await;
}

/// The number at the end of `Request-ID` says more than the code, whatever the code is; a state's reason is held against
/// the coupon.
#[tokio::test(flavor = "multi_thread")]
async fn reason_of_the_number_is_kept_under_any_code() {
    let mut bed = quick().await;
    let service = bed.start().await;
    let numbers = [
        (268_578_704, "appid_not_bound"),
        (268_578_526, "openid_mismatch"),
        (268_584_404, "store_not_allowed"),
        (272_755_715, "outside_period"),
        (268_578_367, "not_usable"),
        (268_578_927, "number_conflict"),
        // The coupon is usable: it is neither expired, deleted, absent nor used.
        (268_578_776, "rejected"),
        (272_756_769, "rejected"),
        (268_578_851, "rejected"),
        (272_756_745, "rejected"),
        (268_435_461, "invalid_parameter"),
        (268_578_224, "invalid_parameter"),
    ];
    for (nth, (number, reason)) in numbers.into_iter().enumerate() {
        for code in ["PARAM_ERROR", "INVALID_REQUEST"] {
            let coupon = format!("C{nth}{code}");
            bed.faults(
                json!([{ "coupon_code": coupon, "operation": "use", "fault": rejected(code, number) }]),
            );
            bed.issue(&coupon, json!({}));
            bed.publish(&command(&coupon, &format!("USE_{nth:04}_{code}"))).await;
            let reported = bed.next_event().await;
            assert_eq!(
                reported.gist(),
                format!("refused {reason} EFFECTIVE"),
                "{number} {code}: {:#}",
                reported.event
            );
        }
    }
    service.stop().await;
}

/// Of what cannot be verified, what there is to see is reported.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_serial_and_missing_signature_are_counted() {
    let mut bed = quick().await;
    bed.faults(json!([{ "fault": {"kind": "unknown_serial"} }]));
    let service = bed.start().await;
    for nth in 0..3 {
        bed.publish(&unrelated(&bed, nth)).await;
    }
    let not_held = "serial 7E57000000000000000000000000000000000000";
    until("the serial", async || service.get("/readyz").await.1.contains(not_held)).await;
    until("the serial on the page", async || service.get("/").await.1.contains(not_held)).await;
    bed.faults(json!([{ "fault": {"kind": "no_signature"} }]));
    let unsigned = r#"redeemer_signature_failures_total{flaw="unsigned"}"#;
    until("an answer without a signature", async || service.metric(unsigned).await >= 1.0).await;
    bed.faults(json!([]));
    for _ in 0..3 {
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    service.stop().await;
}

/// A file that cannot be used any more is a warning at once, not a failure at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn broken_key_file_is_a_warning_until_it_is_fixed() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bed = quick().await;
    bed.config.wechat.reload_every = Span(Duration::from_millis(100));
    let secret = bed.dir.join("broker.uri");
    std::fs::write(&secret, &bed.config.broker.uri).unwrap();
    let mode = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&secret, 0o600);
    bed.config.broker.uri_file = secret.display().to_string();
    // Read at the start only, and judged by what is in them all the same.
    let (apiv3, token) = (bed.dir.join("apiv3_key.txt"), bed.dir.join("console_token"));
    let apiv3_key = std::fs::read(&apiv3).unwrap();
    let console_token = "0123456789abcdef0123456789abcdef";
    std::fs::write(&token, console_token).unwrap();
    mode(&token, 0o600);
    bed.config.wechat.apiv3_key_file = apiv3.display().to_string();
    bed.config.admin.console_token_file = token.display().to_string();
    let service = bed.start().await;
    let failing = "redeemer_key_files_failing";
    assert_eq!(service.metric(failing).await, 0.0);
    let key = bed.dir.join("merchant_key.pem");
    let (public, content) = (bed.dir.join("wechatpay_public_key.pem"), std::fs::read(&key).unwrap());
    let verifying = std::fs::read(&public).unwrap();
    let breaks: [(&str, &dyn Fn()); 12] = [
        ("key_damaged", &|| std::fs::write(&key, "damaged").unwrap()),
        ("key_exposed", &|| mode(&key, 0o644)),
        ("key_gone", &|| std::fs::remove_file(&key).unwrap()),
        ("public_key_empty", &|| std::fs::write(&public, "").unwrap()),
        ("uri_exposed", &|| mode(&secret, 0o604)),
        ("uri_gone", &|| std::fs::remove_file(&secret).unwrap()),
        ("uri_empty", &|| std::fs::write(&secret, "\n").unwrap()),
        ("uri_cut", &|| std::fs::write(&secret, "amqp:/").unwrap()),
        ("apiv3_cut", &|| std::fs::write(&apiv3, &apiv3_key[..16]).unwrap()),
        ("apiv3_exposed", &|| mode(&apiv3, 0o644)),
        ("token_cut", &|| std::fs::write(&token, &console_token[1..]).unwrap()),
        ("token_in_utf16", &|| std::fs::write(&token, [0xff, 0xfe, b'a', 0]).unwrap()),
    ];
    for (nth, (what, break_it)) in breaks.into_iter().enumerate() {
        break_it();
        until(what, async || service.metric(failing).await == 1.0).await;
        until(what, async || service.get("/readyz").await.1.contains("keys: ")).await;
        assert_eq!(service.get("/readyz").await.0, 200, "{what} is a warning");
        // The keys that are held stay in use.
        bed.publish(&unrelated(&bed, nth)).await;
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED", "{what}");
        std::fs::write(&key, &content).unwrap();
        std::fs::write(&public, &verifying).unwrap();
        std::fs::write(&secret, &bed.config.broker.uri).unwrap();
        std::fs::write(&apiv3, &apiv3_key).unwrap();
        std::fs::write(&token, console_token).unwrap();
        [&key, &secret, &apiv3, &token].into_iter().for_each(|path| mode(path, 0o600));
        until("it is fixed", async || service.metric(failing).await == 0.0).await;
    }
    service.stop().await;
}

/// What the provider answers to a typo in the id of a public key, with the words of wechat-pay-issues.
fn names_a_header() -> Value {
    json!({"kind": "status", "status": 400, "code": "PARAM_ERROR", "sub_code": 268_435_461, "signed": true,
        "message": "参数错误", "detail": {"field": "Wechatpay-Serial", "location": "header",
            "value": "PUB_KEY_ID_0116", "issue": "微信支付公钥ID有误"}})
}

/// One answer that names a header of ours is enough, also if all commands are of one publisher.
#[tokio::test(flavor = "multi_thread")]
async fn detail_that_names_a_header_suspends_at_once_and_charges_none() {
    const COMMANDS: usize = 20;
    let mut bed = quick().await;
    bed.faults(json!([{ "fault": names_a_header() }]));
    for nth in 0..COMMANDS {
        let code = format!("C{nth}");
        bed.issue(&code, json!({}));
        bed.publish(&command(&code, &format!("USE_{nth:04}"))).await;
    }
    let service = bed.start_unready().await;
    until("the suspension", async || service.get("/readyz").await.1.starts_with("[suspended_rejected] "))
        .await;
    let (status, words) = service.get("/readyz").await;
    assert_eq!(status, 503);
    for said in ["PARAM_ERROR: 参数错误", "field Wechatpay-Serial", "location header", "微信支付公钥ID有误"]
    {
        assert!(words.contains(said), "{said}: {words}");
    }
    assert!(!words.contains("PUB_KEY_ID_0116"), "a value may be a person's: {words}");
    assert_eq!(service.metric(SUSPENDED).await, 1.0);
    // A probe now and then, one at a time; every command stays.
    let probes = bed.ledger()["attempts"].as_array().unwrap().len();
    until("more probes", async || bed.ledger()["attempts"].as_array().unwrap().len() >= probes + 3).await;
    let attempts = bed.ledger()["attempts"].as_array().unwrap().clone();
    assert!(attempts.len() < COMMANDS, "{} calls for {COMMANDS} commands", attempts.len());
    for pair in attempts.windows(2) {
        let ended = pair[0]["at_us"].as_u64().unwrap() + pair[0]["took_us"].as_u64().unwrap_or(0);
        assert!(ended <= pair[1]["at_us"].as_u64().unwrap(), "two probes at once: {pair:#?}");
    }
    for outcome in ["refused", "invalid", "unresolved", "redeemed"] {
        let (_, metrics) = service.get("/metrics").await;
        let reported = format!("redeemer_outcomes_total{{outcome=\"{outcome}\"");
        let ended = metrics.lines().filter(|line| line.starts_with(&reported) && !line.ends_with(" 0"));
        assert_eq!(ended.count(), 0, "{outcome}");
    }
    assert_eq!(bed.uses(), []);
    bed.faults(json!([]));
    for _ in 0..COMMANDS {
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED", "{:#}", reported.event);
    }
    service.wait_ready().await;
    assert_eq!(service.metric(SUSPENDED).await, 0.0);
    service.stop().await;
}
