//! What a subscriber gets of a coupon: every member and every word of the table is shown by the sandbox, and the service
//! passes it on byte for byte. What the provider may send beside it is passed on, or leads to a look, and never to a
//! wrong outcome.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::bed;
use crate::bed::{Bed, PATIENCE, command};
use futures_util::StreamExt as _;
use lapin::Consumer;
use lapin::options::BasicAckOptions;
use redeemer::config::Span;
use redeemer::wire::coupon::MEMBERS;
use redeemer_sandbox::{ActionRequest, App, BodyDigest, CouponAction, Store};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::presence::breaks_of_presence;

/// The sandbox's looks go through each list of words: this many show every list and what goes with it.
const LOOKS: usize = 20;

/// What no revision documents: the sandbox's own members, to see them passed on.
const OURS: &str = "sandbox_";

/// An event with its coupon as bytes.
struct Passed {
    bytes: usize,
    event: Value,
    coupon: String,
}

async fn next(results: &mut Consumer) -> Passed {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        data: Data<'a>,
    }
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        coupon: &'a RawValue,
    }
    let delivery = timeout(PATIENCE, results.next()).await.expect("a result event").unwrap().unwrap();
    delivery.ack(BasicAckOptions::default()).await.unwrap();
    let raw: Event<'_> = serde_json::from_slice(&delivery.data).unwrap();
    let coupon = raw.data.coupon.get().to_owned();
    Passed { bytes: delivery.data.len(), event: serde_json::from_slice(&delivery.data).unwrap(), coupon }
}

impl Passed {
    fn data(&self, field: &str) -> &Value {
        &self.event["data"][field]
    }

    fn code(&self) -> &str {
        self.data("coupon_code").as_str().unwrap()
    }

    /// Whether the coupon is, byte for byte, a body that the sandbox signed for this coupon.
    fn is_as_sent(&self, ledger: &Value) -> bool {
        let digest = BodyDigest::of(self.coupon.as_bytes()).to_string();
        let attempts = ledger["attempts"].as_array().unwrap();
        let mut own = attempts.iter().filter(|attempt| attempt["coupon_code"] == self.code());
        own.any(|attempt| attempt["answer_sha256"] == digest && attempt["answered"] == 200)
    }
}

/// All values at a path of the table.
fn values_at<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    path.split('.').fold(vec![value], |values, step| {
        let (name, list) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        let found = values.into_iter().filter_map(|value| value.get(name));
        found
            .flat_map(|value| if list { value.as_array().unwrap().iter().collect() } else { vec![value] })
            .collect()
    })
}

/// The paths of all members.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter().filter(|(name, _)| !name.starts_with(OURS)) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                found.insert(path.clone());
                paths(member, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{path}[]"), found)),
        _ => {}
    }
}

const MODES: [(&str, &str); 3] = [("S", "SINGLE"), ("B", "PROGRESSIVE_BUNDLE"), ("Q", "SEQUENTIAL")];

/// A command for a coupon of this mode; every second one is for a pay-score order, if the mode knows them.
fn use_of(code: &str, mode: &str, nth: usize) -> Value {
    let mut command = command(code, &format!("USE_{code}"));
    if mode != "SEQUENTIAL" {
        command["saved_amount"] = json!(2000);
    }
    if mode != "SEQUENTIAL" && nth % 2 == 1 {
        command.as_object_mut().unwrap().remove("associated_order_info");
        command["associated_pay_score_order_info"] = json!({ "order_id": "15646546545165651651", "out_order_no": "A|1", "mchid": "1", "sub_mchid": "2" });
    } else {
        command["associated_order_info"] =
            json!({ "transaction_id": "42", "out_trade_no": "T1", "mchid": "1", "sub_mchid": "2" });
    }
    command
}

fn act(bed: &Bed, code: &str, action: CouponAction) {
    bed.sandbox.act(code, &ActionRequest { action, number: None, round: None }).unwrap();
}

/// Issues coupons in every look and in every state, and gives a command for each and the outcome that it must have.
fn arranged(bed: &Bed) -> BTreeMap<String, (Value, &'static str)> {
    let mut commands = BTreeMap::new();
    for (letter, mode) in MODES {
        for look in 0..LOOKS {
            let code = format!("{letter}_look_{look}");
            bed.issue(&code, json!({ "usage_mode": mode, "look": look }));
            commands.insert(code.clone(), (use_of(&code, mode, look), "redeemed"));
        }
        for state in ["CONFIRMING", "PENDING", "USED", "EXPIRED", "DELETED", "DEACTIVATED"] {
            let code = format!("{letter}_{state}");
            bed.issue(&code, json!({ "usage_mode": mode, "state": state }));
            let outcome = if (mode, state) == ("SEQUENTIAL", "USED") { "redeemed" } else { "refused" };
            commands.insert(code.clone(), (use_of(&code, mode, 0), outcome));
        }
        let code = format!("{letter}_returned");
        bed.issue(&code, json!({ "usage_mode": mode, "state": "USED" }));
        act(bed, &code, CouponAction::Return);
        commands.insert(code.clone(), (use_of(&code, mode, 0), "redeemed"));
    }
    bed.issue("S_store", json!({ "stores": ["S1"] }));
    let mut command = use_of("S_store", "SINGLE", 0);
    command["store_id"] = json!("S1");
    commands.insert("S_store".to_owned(), (command, "redeemed"));
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_and_word_is_shown_and_passed_on_unchanged() {
    let bed = Bed::new().await;
    let mut results = bed.bind_results("redemption.#").await;
    let commands = arranged(&bed);
    let service = bed.start().await;
    for (command, _) in commands.values() {
        bed.publish(command).await;
    }
    let mut passed = BTreeMap::new();
    while passed.len() < commands.len() {
        let event = next(&mut results).await;
        bed::keeps_the_contract(&event.event);
        passed.insert(event.code().to_owned(), event);
    }
    let (ledger, mut seen) = (bed.ledger(), BTreeSet::new());
    for (code, event) in &passed {
        assert_eq!(*event.data("outcome"), commands[code].1, "{code}: {}", event.event);
        assert!(event.is_as_sent(&ledger), "{code}: {}", event.coupon);
        assert_eq!(
            breaks_of_presence(event.data("coupon")),
            Vec::<String>::new(),
            "{code}: {}",
            event.coupon
        );
        paths(event.data("coupon"), "", &mut seen);
    }
    let known: BTreeSet<String> = MEMBERS.iter().map(|member| member.path.to_owned()).collect();
    assert_eq!(known.difference(&seen).collect::<Vec<_>>(), Vec::<&String>::new(), "never shown");
    assert_eq!(seen.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new(), "not in the table");
    for member in MEMBERS.iter().filter(|member| !member.words.is_empty()) {
        let shown: BTreeSet<&str> = passed
            .values()
            .flat_map(|event| values_at(event.data("coupon"), member.path))
            .flat_map(|value| value.as_array().map_or_else(|| vec![value], |items| items.iter().collect()))
            .filter_map(Value::as_str)
            .collect();
        let known: BTreeSet<&str> = member.words.iter().map(|word| word.word).collect();
        assert_eq!(shown, known, "{}", member.path);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_shapes_of_a_returned_coupon_are_reported() {
    let bed = Bed::new().await;
    let mut results = bed.bind_results("redemption.#").await;
    for (code, shows) in [("R_hides", false), ("R_shows", true)] {
        bed.issue(code, json!({ "state": "USED", "shows_returned_use": shows }));
        act(&bed, code, CouponAction::Return);
        act(&bed, code, CouponAction::Expire);
    }
    let service = bed.start().await;
    for code in ["R_hides", "R_shows"] {
        bed.publish(&use_of(code, "SINGLE", 0)).await;
        let event = next(&mut results).await;
        bed::keeps_the_contract(&event.event);
        assert_eq!(*event.data("outcome"), "refused", "{code}");
        assert_eq!(*event.data("coupon_state"), "EXPIRED", "{code}");
        let usage = &event.data("coupon")["single_usage_detail"];
        assert!(usage["return_request_no"].is_string(), "{usage}");
        assert_eq!(usage["use_request_no"].is_string(), code == "R_shows", "{usage}");
    }
    service.stop().await;
}

/// Our use took effect, its response was lost, and it was returned before anybody looked: the coupon is usable again.
#[tokio::test(flavor = "multi_thread")]
async fn both_shapes_of_our_returned_use_are_reported_in_each_mode() {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = Span(Duration::from_millis(200));
    let mut results = bed.bind_results("redemption.#").await;
    let service = bed.start().await;
    for ((letter, mode), shows) in MODES.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        let code = format!("{letter}_ours_{shows}");
        bed.issue(&code, json!({ "usage_mode": mode, "shows_returned_use": shows }));
        bed.faults(json!([
            { "coupon_code": code, "operation": "use", "times": 1, "fault": { "kind": "cut_after_effect" } },
            // Nothing is found out before the coupon is returned.
            { "coupon_code": code, "operation": "query", "fault": { "kind": "html_502" } },
        ]));
        bed.publish(&use_of(&code, mode, 0)).await;
        bed::until("the effect", async || bed.uses().iter().any(|(used, _)| *used == code)).await;
        act(&bed, &code, CouponAction::Return);
        bed.faults(json!([]));
        let event = next(&mut results).await;
        bed::keeps_the_contract(&event.event);
        assert_eq!(*event.data("outcome"), "refused", "{code}: {}", event.event);
        assert_eq!(event.data("problem")["reason"], "returned_since", "{code}");
        assert_eq!(*event.data("coupon_state"), "EFFECTIVE", "{code}");
        assert!(event.is_as_sent(&bed.ledger()), "{code}: {}", event.coupon);
        let coupon = event.data("coupon");
        let usage = match mode {
            "SINGLE" => &coupon["single_usage_detail"],
            "PROGRESSIVE_BUNDLE" => &coupon["progressive_bundle_usage_detail"],
            _ => &coupon["sequential_usage_detail"]["detail_item_list"][0],
        };
        assert!(usage["return_request_no"].is_string(), "{code}: {usage}");
        let ours = json!(format!("USE_{code}"));
        assert_eq!(usage.get("use_request_no"), shows.then_some(&ours), "{code}: {usage}");
        assert_eq!(bed.uses().iter().filter(|(used, _)| *used == code).count(), 1, "{code}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejections_follow_from_stores_users_and_locks() {
    let mut bed = Bed::new().await;
    let brand = "120344".to_owned();
    let store = |id: &str, open| Store { store_id: id.to_owned(), brand_id: brand.clone(), open };
    bed.sandbox.set_stores([store("S1", true), store("S2", false)]).unwrap();
    let app =
        |appid: &str, openid: &str| App { appid: appid.to_owned(), openids: [openid.to_owned()].into() };
    bed.sandbox.set_apps([app("wx233544546545989", bed::OPENID), app("wx2", "oOther")]).unwrap();
    for code in ["C_open", "C_closed", "C_unknown", "C_openid", "C_locked"] {
        bed.issue(code, json!({}));
    }
    let number = |number: &str| Some(number.to_owned());
    let lock = ActionRequest { action: CouponAction::Lock, number: number("SOMEBODY_1"), round: None };
    bed.sandbox.act("C_locked", &lock).unwrap();
    let service = bed.start().await;
    for (code, store, expected) in [
        ("C_open", "S1", "redeemed - USED"),
        ("C_closed", "S2", "refused store_not_allowed EFFECTIVE"),
        ("C_unknown", "S9", "refused store_not_allowed EFFECTIVE"),
    ] {
        let mut command = use_of(code, "SINGLE", 0);
        command["store_id"] = json!(store);
        bed.publish(&command).await;
        assert_eq!(bed.next_event().await.gist(), expected, "{code}");
    }
    let mut command = use_of("C_openid", "SINGLE", 0);
    command["openid"] = json!("oOther");
    bed.publish(&command).await;
    assert_eq!(bed.next_event().await.gist(), "refused openid_mismatch -");

    bed.publish(&use_of("C_locked", "SINGLE", 0)).await;
    bed::until("an attempt on the locked coupon", async || {
        bed.attempts("C_locked").iter().any(|attempt| attempt["sub_code"] == 272_756_746)
    })
    .await;
    bed.sandbox.act("C_locked", &ActionRequest { action: CouponAction::Unlock, ..lock }).unwrap();
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED", "a lock refuses nothing for good");
    service.stop().await;
}

/// What the contract takes, the sandbox takes: the service checks nothing by guess, and nor does its judge.
#[tokio::test(flavor = "multi_thread")]
async fn every_field_at_its_longest_is_redeemed() {
    let mut bed = Bed::new().await;
    let of = |letter: &str, length: usize| letter.repeat(length);
    let (openid, code, brand) = (of("o", 128), of("C", 40), of("1", 40));
    let (product, stock, appid) = (of("2", 40), of("3", 40), of("w", 32));
    let coupon = json!({
        "openid": openid, "brand_id": brand, "product_coupon_id": product, "stock_id": stock, "appid": appid,
    });
    bed.issue(&code, coupon.clone());
    let mut command = json!({
        "coupon_code": code, "use_time": "2026-03-05T12:30:45.123456789+08:00", "out_request_no": of("N", 40),
        "store_id": of("S", 64), "saved_amount": 10_000_000_000_u64,
        "associated_order_info": {
            "transaction_id": format!("|*{}", of("4", 62)), "out_trade_no": format!("|*{}", of("5", 62)),
            "mchid": of("6", 32), "sub_mchid": of("7", 32),
        },
    });
    command.as_object_mut().unwrap().extend(coupon.as_object().unwrap().clone());
    let schema = redeemer::wire::schema::command(redeemer::wire::schema::Dialect::Draft2020);
    let schema = jsonschema::validator_for(&schema).unwrap();
    let service = bed.start().await;
    let pay_score = json!({
        "order_id": format!("|*{}", of("4", 62)), "out_order_no": format!("|-_{}", of("5", 29)),
        "mchid": of("6", 32), "sub_mchid": of("7", 32),
    });
    for (name, order) in [
        ("associated_order_info", command["associated_order_info"].clone()),
        ("associated_pay_score_order_info", pay_score),
    ] {
        let mut command = command.clone();
        command.as_object_mut().unwrap().remove("associated_order_info");
        command[name] = order.clone();
        if name == "associated_pay_score_order_info" {
            command["coupon_code"] = json!(of("D", 40));
            command["out_request_no"] = json!(of("O", 40));
            bed.issue(&of("D", 40), coupon.clone());
        }
        assert!(schema.is_valid(&command), "{name}");
        for field in order.as_object().unwrap().keys() {
            let mut longer = command.clone();
            longer[name][field] = json!(format!("{}1", order[field].as_str().unwrap()));
            assert!(!schema.is_valid(&longer), "{name}/{field} is not at its longest");
        }
        bed.publish(&command).await;
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED", "{}", reported.event);
        assert_eq!(reported.data(&format!("/coupon/single_usage_detail/{name}")), &order);
    }
    service.stop().await;
}

/// What becomes of an entity.
#[derive(Debug, Clone, PartialEq)]
enum Becomes {
    /// It is passed on as it came.
    Whole,
    /// Its code and state are passed on, and this is why.
    Reduced(String),
    /// It says nothing that can be believed; a query that is answered as usual does.
    Unknown,
}

/// What the provider may send, signed, in place of a usual answer, and what becomes of it.
struct Odd {
    code: String,
    mode: &'static str,
    /// `use` or `query`.
    operation: &'static str,
    fault: Value,
    becomes: Becomes,
    /// Where it is of another type than documented, and so breaks the schema: pointers into the coupon.
    mistyped: Vec<&'static str>,
}

fn patched(patch: Value) -> Value {
    json!({ "kind": "patched_body", "patch": patch })
}

fn raw(members: &str) -> Value {
    json!({ "kind": "raw_members", "members": members })
}

/// Of a coupon that is used once, in the answer to the use.
fn odd_answers() -> Vec<Odd> {
    let huge = |bytes: usize| json!({ "kind": "huge_body", "bytes": bytes });
    let nested = |depth: usize| format!("\"sandbox_depth\":{}{}", "[".repeat(depth), "]".repeat(depth));
    let reduced = |reason: &str| Becomes::Reduced(reason.to_owned());
    let mistyped = json!({
        "valid_end_time": 7, "receive_time": [], "attach": { "a": 1 }, "send_channel": ["API"],
        "product_coupon": { "scope": 1, "display_info": "none", "single_usage_info": [1] },
        "stock": { "stock_send_rule": "many", "single_usage_rule": 3, "state": false },
    });
    let pointers = vec![
        "/attach",
        "/product_coupon/display_info",
        "/product_coupon/scope",
        "/product_coupon/single_usage_info",
        "/receive_time",
        "/send_channel",
        "/stock/single_usage_rule",
        "/stock/state",
        "/stock/stock_send_rule",
        "/valid_end_time",
    ];
    // Raw members come before the true ones, which a reader that takes the last of two believes.
    let answers: Vec<(&str, Value, Becomes, Vec<&'static str>)> = vec![
        ("size_80k", huge(80 * 1024), Becomes::Whole, vec![]),
        ("size_100k", huge(100 * 1024), reduced("size"), vec![]),
        ("size_250k", huge(250 * 1024), reduced("size"), vec![]),
        ("size_256k", huge(256 * 1024), Becomes::Unknown, vec![]),
        ("types_unread", patched(mistyped), Becomes::Whole, pointers),
        ("type_state", patched(json!({ "coupon_state": 3 })), Becomes::Unknown, vec![]),
        ("type_code", patched(json!({ "coupon_code": ["C1"] })), Becomes::Unknown, vec![]),
        ("type_usage", patched(json!({ "single_usage_detail": "used" })), Becomes::Unknown, vec![]),
        (
            "type_number",
            patched(json!({ "single_usage_detail": { "use_request_no": 7 } })),
            Becomes::Unknown,
            vec![],
        ),
        ("type_stock", patched(json!({ "stock": { "stock_id": 7 } })), Becomes::Unknown, vec![]),
        ("twice_unread", raw(r#""attach":"a","attach":{"b":[]}"#), Becomes::Whole, vec![]),
        ("twice_state", raw(r#""coupon_state":"EXPIRED""#), Becomes::Unknown, vec![]),
        ("twice_code", raw(r#""coupon_code":"C_other""#), Becomes::Unknown, vec![]),
        (
            "twice_usage",
            raw(r#""single_usage_detail":{"use_request_no":"OTHER_1"}"#),
            Becomes::Unknown,
            vec![],
        ),
        ("deep_60", raw(&nested(60)), Becomes::Whole, vec![]),
        ("deep_100", raw(&nested(100)), reduced("nesting"), vec![]),
        ("deep_9999", raw(&nested(9_999)), reduced("nesting"), vec![]),
        (
            "beyond_double",
            raw(r#""a":9007199254740993,"b":18446744073709551616,"c":1e15,"d":-0.0"#),
            Becomes::Whole,
            vec![],
        ),
        ("beyond_all", raw(r#""a":1e999"#), reduced("number"), vec![]),
        ("deep_64", raw(&nested(63)), Becomes::Whole, vec![]),
        ("deep_65", raw(&nested(64)), reduced("nesting"), vec![]),
        ("digits_300", raw(&format!("\"a\":{}", "1".repeat(300))), Becomes::Whole, vec![]),
        ("digits_309", raw(&format!("\"a\":{}", "9".repeat(309))), reduced("number"), vec![]),
        (
            "new_words",
            patched(json!({ "send_channel": "NEW", "stock": { "state": "NEW" } })),
            Becomes::Whole,
            vec![],
        ),
        ("brand_number", raw(r#""brand_id":120344"#), Becomes::Whole, vec![]),
        ("brand_another", raw(r#""brand_id":4711"#), Becomes::Unknown, vec![]),
        ("stock_list", patched(json!({ "stock": [] })), Becomes::Whole, vec!["/stock"]),
        (
            "block_list",
            raw(r#""sequential_usage_detail":[]"#),
            Becomes::Whole,
            vec!["/sequential_usage_detail"],
        ),
        ("nulls", raw(r#""coupon_tag_info":null,"confirm_no":null"#), Becomes::Whole, vec![]),
    ];
    answers
        .into_iter()
        .map(|(code, fault, becomes, mistyped)| Odd {
            code: code.to_owned(),
            mode: "SINGLE",
            operation: "use",
            fault,
            becomes,
            mistyped,
        })
        .collect()
}

/// Of the kinds with several uses, in the answer to the use and in that to a query.
fn odd_answers_of_several_uses() -> Vec<Odd> {
    use Becomes::{Unknown, Whole};
    let block = "progressive_bundle_usage_detail";
    let item =
        |members: Value| patched(json!({ "sequential_usage_detail": { "detail_item_list": [members] } }));
    let list = |items: Value| patched(json!({ "sequential_usage_detail": { "detail_item_list": items } }));
    let twice = |members: &str| raw(&format!("\"sequential_usage_detail\":{{{members}}}"));
    let other = r#"{"detail_state":"USED","use_request_no":"OTHER_1"}"#;
    let bundle: Vec<(&str, Value, Becomes, Vec<&'static str>)> = vec![
        ("usage", patched(json!({ block: "used" })), Unknown, vec![]),
        ("usage_list", patched(json!({ block: [1] })), Unknown, vec![]),
        ("number", patched(json!({ block: { "use_request_no": 7 } })), Unknown, vec![]),
        (
            "saved",
            patched(json!({ block: { "saved_amount": "2000" } })),
            Whole,
            vec!["/progressive_bundle_usage_detail/saved_amount"],
        ),
        ("twice", raw(&format!("\"{block}\":{{\"use_request_no\":\"OTHER_1\"}}")), Unknown, vec![]),
        (
            "counts",
            patched(json!({ "user_product_coupon_bundle_info": "many" })),
            Whole,
            vec!["/user_product_coupon_bundle_info"],
        ),
        ("nulls", raw(r#""channel_custom_info":null,"coupon_tag_info":null"#), Whole, vec![]),
    ];
    let rounds: Vec<(&str, Value, Becomes, Vec<&'static str>)> = vec![
        ("detail", patched(json!({ "sequential_usage_detail": "used" })), Unknown, vec![]),
        ("list_object", list(json!({})), Unknown, vec![]),
        ("list_text", list(json!("none")), Unknown, vec![]),
        ("list_numbers", list(json!([7])), Unknown, vec![]),
        ("list_nulls", list(json!([null])), Unknown, vec![]),
        ("list_empty", list(json!([])), Unknown, vec![]),
        ("state", item(json!({ "detail_state": 3, "use_request_no": "OTHER_1" })), Unknown, vec![]),
        ("number", item(json!({ "detail_state": "USED", "use_request_no": 7 })), Unknown, vec![]),
        ("twice_detail", twice(&format!("\"detail_item_list\":[{other}]")), Unknown, vec![]),
        (
            "twice_list",
            twice(&format!("\"detail_item_list\":[{other}],\"detail_item_list\":[]")),
            Unknown,
            vec![],
        ),
        (
            "counts",
            patched(json!({ "sequential_usage_detail": { "used_count": "one", "total_count": [] } })),
            Whole,
            vec!["/sequential_usage_detail/total_count", "/sequential_usage_detail/used_count"],
        ),
        ("new_word", patched(json!({ "send_channel": "NEW" })), Whole, vec![]),
    ];
    let of = |letter: &'static str,
              mode: &'static str,
              answers: Vec<(&str, Value, Becomes, Vec<&'static str>)>| {
        let both = answers.into_iter().flat_map(move |(name, fault, becomes, mistyped)| {
            ["use", "query"].map(|operation| Odd {
                code: format!("{letter}_{operation}_{name}"),
                mode,
                operation,
                fault: fault.clone(),
                becomes: becomes.clone(),
                mistyped: mistyped.clone(),
            })
        });
        both.collect::<Vec<_>>()
    };
    let mut all = of("B", "PROGRESSIVE_BUNDLE", bundle);
    all.extend(of("Q", "SEQUENTIAL", rounds));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_entities_are_passed_on_or_leave_the_effect_unknown() {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = Span(Duration::from_millis(200));
    let mut results = bed.bind_results("redemption.#").await;
    let mut odds = odd_answers();
    odds.extend(odd_answers_of_several_uses());
    let mut rules = Vec::new();
    for Odd { code, operation, fault, .. } in &odds {
        if *operation == "query" {
            let lost = json!({ "kind": "cut_after_effect" });
            rules.push(json!({ "coupon_code": code, "operation": "use", "times": 1, "fault": lost }));
        }
        rules.push(json!({ "coupon_code": code, "operation": operation, "times": 1, "fault": fault }));
    }
    bed.faults(json!(rules));
    let service = bed.start().await;
    for odd in &odds {
        bed.issue(&odd.code, json!({ "usage_mode": odd.mode }));
        bed.publish(&use_of(&odd.code, odd.mode, 0)).await;
    }
    let mut passed = BTreeMap::new();
    while passed.len() < odds.len() {
        let event = next(&mut results).await;
        passed.insert(event.code().to_owned(), event);
    }
    let ledger = bed.ledger();
    for odd in &odds {
        let (code, event) = (&odd.code, &passed[&odd.code]);
        assert_eq!(*event.data("outcome"), "redeemed", "{code}: {}", event.data("evidence"));
        let state = if odd.mode == "SEQUENTIAL" { "EFFECTIVE" } else { "USED" };
        assert_eq!(*event.data("coupon_state"), state, "{code}");
        assert!(event.bytes < 128 * 1024, "{code}: {} bytes", event.bytes);
        let rest = json!({ "coupon_code": code, "coupon_state": state });
        let queries = bed.attempts(code).iter().filter(|attempt| attempt["operation"] == "query").count();
        // The odd answer was believed if nobody had to ask again.
        let is_believed = queries == usize::from(odd.operation == "query");
        let became = match (event.is_as_sent(&ledger), *event.data("coupon") == rest) {
            (true, _) if is_believed => Becomes::Whole,
            (true, _) => Becomes::Unknown,
            (false, true) => {
                Becomes::Reduced(event.data("coupon_reduced").as_str().unwrap_or("no reason").to_owned())
            }
            (false, false) => panic!("{code}: neither: {}", event.coupon),
        };
        assert_eq!(became, odd.becomes, "{code}: {}", event.data("evidence"));
        let is_whole = !matches!(odd.becomes, Becomes::Reduced(_));
        assert_eq!(event.data("coupon_reduced").is_null(), is_whole, "{code}");
        // What is published keeps the contract but where the provider sent another type than it documents.
        let faults: Vec<_> = bed::faults_by_contract(&event.event).into_keys().collect();
        let expected: Vec<_> = odd.mistyped.iter().map(|pointer| format!("/data/coupon{pointer}")).collect();
        assert_eq!(faults, expected, "{code}");
    }
    assert_eq!(bed.uses().len(), odds.len(), "each has one effect");
    service.stop().await;
}
