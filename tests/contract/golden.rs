//! The golden events, made from the golden commands by the code that makes real ones.

use std::collections::BTreeSet;

use redeemer::config::Config;
use redeemer::domain::evidence::{Evidence, Operation, Rejection};
use redeemer::domain::outcome::{EstablishedBy, Outcome};
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::wechat::response;
use redeemer::wire::audit_event::{self, AuditContext, OperatorAction};
use redeemer::wire::command::{self, PartialCommand};
use redeemer::wire::console_event::{self, ConsoleAction, ConsoleContext};
use redeemer::wire::result_event::{self, EventContext};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) const COMMANDS: [(&str, &str); 3] = [
    ("command.nested.json", include_str!("../../docs/contract/examples/command.nested.json")),
    ("command.flat.json", include_str!("../../docs/contract/examples/command.flat.json")),
    ("command.pay-score.json", include_str!("../../docs/contract/examples/command.pay-score.json")),
];
pub(crate) const INVALID: &str = include_str!("../../docs/contract/examples/command.invalid.json");

const USED: &str = r#"{
  "coupon_code": "123446565767", "coupon_state": "USED",
  "valid_begin_time": "2025-07-01T00:00:00+08:00", "valid_end_time": "2025-07-30T23:59:59+08:00",
  "receive_time": "2025-07-01T09:10:11+08:00", "send_request_no": "SEND_20250701_000040", "send_channel": "API",
  "brand_id": "120344",
  "sequential_usage_detail": {
    "total_count": 1, "used_count": 1,
    "detail_item_list": [
      { "detail_state": "USED", "use_request_no": "34657_20250101_123456", "use_time": "2025-07-24T00:00:00+08:00" }
    ]
  }
}"#;
const SINGLE: &str = include_str!("coupons/single.json");
const BUNDLE: &str = include_str!("coupons/bundle.json");
const SEQUENTIAL: &str = include_str!("coupons/sequential.json");
const EXPIRED: &str = include_str!("coupons/expired.json");

fn attempt(at: &str, operation: Operation, status: Option<u16>, verdict: &str) -> Evidence {
    Evidence {
        at: at.parse().unwrap(),
        operation: operation.as_str().to_owned(),
        host: "api.mch.weixin.qq.com".to_owned(),
        status,
        request_id: status.map(|status| match status {
            200 => "08A5BAEAA90610C70318F9A8D45820B0D65C-0".to_owned(),
            _ => "08A5BAEAA90610C70318F9A8D45820B0D65D-268578776".to_owned(),
        }),
        serial: status.map(|_| "PUB_KEY_ID_0116000000000000000000000000000001".to_owned()),
        verdict: verdict.to_owned(),
    }
}

/// The use of one coupon: code, product coupon, request number and time; and the order.
fn used((code, product, number, time): (&str, &str, &str, &str), order: Value) -> Redemption {
    let mut command = json!({
        "openid": "oh-394z-6CGkNoJrsDLTTUKiAnp4", "coupon_code": code, "brand_id": "120344",
        "product_coupon_id": product, "stock_id": format!("{product}001"), "appid": "wx233544546545989",
        "use_time": time, "out_request_no": number,
    });
    command.as_object_mut().unwrap().extend(order.as_object().unwrap().clone());
    command::decode(command.to_string().as_bytes()).unwrap()
}

/// The paths of all members of a JSON value, lists marked by `[]`, each once.
pub(crate) fn members_of(value: &Value) -> BTreeSet<String> {
    fn walk(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    found.insert(path.clone());
                    walk(member, &path, found);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, &format!("{path}[]"), found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(value, "", &mut found);
    found
}

/// Every golden event with the name of its file.
pub(crate) fn events() -> Vec<(&'static str, String)> {
    let config = Config::default();
    let telling = |at: &str, attempts, evidence| EventContext {
        source: &config.event.source,
        at: at.parse().unwrap(),
        traceparent: None,
        attempts,
        evidence,
    };
    let read = |text: &str| -> Redemption { command::decode(text.as_bytes()).unwrap() };
    let (vendors, pay_score) = (read(COMMANDS[0].1), read(COMMANDS[2].1));
    let coupon = |text: &str| response::coupon(text.as_bytes()).unwrap();

    let redeemed = Outcome::Redeemed { by: EstablishedBy::Response, coupon: coupon(USED) };
    let refused = Outcome::Refused {
        reason: Reason::Expired,
        by: EstablishedBy::Query,
        coupon: Some(coupon(EXPIRED)),
        rejection: Some(Rejection {
            http_status: 403,
            code: Some("RULE_LIMIT".into()),
            sub_code: Some(268_578_776),
            message: Some("用户商品券当前无法使用".into()),
            request_id: Some("08A5BAEAA90610C70318F9A8D45820B0D65D-268578776".into()),
        }),
    };
    // Commands of the same order service, for other kinds of coupon.
    let single = used(
        ("2603010000000042", "1000000015", "34657_20260305_000042", "2026-03-05T12:30:45+08:00"),
        json!({ "associated_order_info": { "transaction_id": "4200000000123456789123456789" } }),
    );
    let bundle = used(
        ("2603010000000043", "1000000016", "34657_20260306_000043", "2026-03-06T18:00:00+08:00"),
        json!({ "associated_pay_score_order_info":
            { "out_order_no": "order_no_20260306180000", "mchid": "1234567890" } }),
    );
    let sequential = used(
        ("2603010000000041", "1000000013", "34657_20260305_000041", "2026-03-05T12:30:45+08:00"),
        json!({ "sequential_coupon_index": 0, "associated_order_info": {
            "transaction_id": "4200000000123456789123456789", "out_trade_no": "trade_no_20260305123045",
            "mchid": "1234567890", "sub_mchid": "1234567890" } }),
    );
    let whole = |text: &str| Outcome::Redeemed { by: EstablishedBy::Response, coupon: coupon(text) };
    let unresolved = Outcome::Unresolved { reason: Reason::DeadlinePassed, coupon: None, rejection: None };
    let rejected = command::decode(INVALID.as_bytes()).unwrap_err();
    let digest =
        |text: &str| -> String { Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect() };
    let (invalid_digest, pay_score_digest) = (digest(INVALID), digest(COMMANDS[2].1));

    let at_midnight = "2025-07-23T16:00:00.923940153Z";
    let first = [attempt("2025-07-23T16:00:00.918427827Z", Operation::Redeem, Some(200), "redeemed")];
    let once = [attempt("2026-03-05T04:30:45.918427827Z", Operation::Redeem, Some(200), "redeemed")];
    let evening = "2026-03-06T10:00:01.204Z";
    let later = [attempt("2026-03-06T10:00:01.104Z", Operation::Redeem, Some(200), "redeemed")];
    let twice = [
        attempt("2026-03-05T04:30:45.918427827Z", Operation::Redeem, Some(403), "rejected"),
        attempt("2026-03-05T04:30:46.021178411Z", Operation::Query, Some(200), "refused"),
    ];
    let lost = [
        attempt("2026-03-05T04:30:45.918427827Z", Operation::Redeem, None, "unknown"),
        attempt("2026-03-06T04:30:44.018427827Z", Operation::Query, None, "not_sent"),
    ];
    let reported = "2026-03-05T04:30:45.923940153Z";
    let context = |action, because, query| AuditContext {
        source: &config.event.source,
        at: "2026-03-07T09:00:00Z".parse().unwrap(),
        action,
        operator: "ops@example.com",
        because,
        reason: Reason::DeadlinePassed.as_str(),
        parked_at: Some("2026-03-06T04:30:45Z".parse().unwrap()),
        sha256: &pay_score_digest,
        bytes: COMMANDS[2].1.len(),
        partial: Box::leak(Box::new(PartialCommand::from(&pay_score))),
        query,
        coupon_state: query.map(|_| "EFFECTIVE"),
    };
    let asked = attempt("2026-03-07T08:59:59.5Z", Operation::Query, Some(200), "not_executed");
    let text = |body: Vec<u8>| laid_out(&String::from_utf8(body).unwrap());
    vec![
        (
            "event.redeemed.json",
            text(result_event::encode(&vendors, &redeemed, telling(at_midnight, 1, &first)).body),
        ),
        (
            "event.refused.json",
            text(
                result_event::encode(&pay_score, &refused, telling("2026-03-05T04:30:46.127Z", 2, &twice))
                    .body,
            ),
        ),
        (
            "event.redeemed.single.json",
            text(result_event::encode(&single, &whole(SINGLE), telling(reported, 1, &once)).body),
        ),
        (
            "event.redeemed.bundle.json",
            text(result_event::encode(&bundle, &whole(BUNDLE), telling(evening, 1, &later)).body),
        ),
        (
            "event.redeemed.sequential.json",
            text(result_event::encode(&sequential, &whole(SEQUENTIAL), telling(reported, 1, &once)).body),
        ),
        (
            "event.invalid.json",
            text(result_event::encode_invalid(&rejected, &invalid_digest, telling(reported, 0, &[])).body),
        ),
        (
            "event.unresolved.json",
            text(
                result_event::encode(&pay_score, &unresolved, telling("2026-03-06T04:30:45Z", 2, &lost)).body,
            ),
        ),
        (
            "event.corrupt.json",
            text(
                result_event::encode_corrupt_retry_message(
                    &pay_score,
                    "header x-redemption-delays is missing",
                    &pay_score_digest,
                    telling(reported, 0, &[]),
                )
                .body,
            ),
        ),
        (
            "audit.replayed.json",
            text(
                audit_event::encode(context(
                    OperatorAction::Republished,
                    Some("the provider is back"),
                    Some(&asked),
                ))
                .body,
            ),
        ),
        (
            "audit.discarded.json",
            text(audit_event::encode(context(OperatorAction::Discarded, None, None)).body),
        ),
        ("console.logged_in.json", text(console_event(&config, ConsoleAction::LoggedIn))),
        ("console.logged_out.json", text(console_event(&config, ConsoleAction::LoggedOut))),
        ("console.login_refused.json", text(console_event(&config, ConsoleAction::LoginRefused))),
    ]
}

fn console_event(config: &Config, action: ConsoleAction) -> Vec<u8> {
    let is_refused = action == ConsoleAction::LoginRefused;
    let (at, first_at) = ("2026-03-07T09:00:59.5Z", "2026-03-07T09:00:00.25Z");
    let context = ConsoleContext {
        source: &config.event.source,
        at: at.parse().unwrap(),
        action,
        operator: (!is_refused).then_some("lin"),
        session: (!is_refused).then_some("5d41402a"),
        peer: Some("10.0.0.7"),
        count: if is_refused { 119 } else { 1 },
        first_at: if is_refused { first_at } else { at }.parse().unwrap(),
    };
    console_event::encode(context).body
}

/// JSON with a line for every member, in the order in which it was written.
fn laid_out(json: &str) -> String {
    let (mut out, mut depth, mut quoted, mut escaped) = (String::new(), 0, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    let mut rest = json.chars().peekable();
    while let Some(c) = rest.next() {
        if quoted {
            out.push(c);
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                while rest.next_if(|c| c.is_whitespace()).is_some() {}
                if let Some(end) = rest.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            '"' => {
                quoted = true;
                out.push(c);
            }
            c if c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

#[test]
fn laying_out_changes_nothing_but_blanks() {
    let text = r#"{"a":[],"b":[1,{"c":"x, {\"y\": [\\"},{}],"d":null}"#;
    let wide = laid_out(text);
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(parse(&wide), parse(text));
    assert_eq!(laid_out(&wide), wide);
    assert!(wide.contains("  \"a\": [],\n") && wide.contains("\"x, {\\\"y\\\": [\\\\\""), "{wide}");
}
