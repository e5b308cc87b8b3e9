//! Events, and what a reader of docs/coupon.md says of each: did our order use the coupon, who did, when, what did it
//! save, what is left, until when.

use serde_json::{Value, json};

/// An event, its name for those who debug, and the answers.
pub(crate) type Case = (String, Value, String);

const NOBODY: &str = "by - when - saved -";
const OURS: &str = "by 34657_20260305_000042 when 2026-03-05T12:30:45+08:00 saved 2000";
const OUR_ROUND: &str = "by 34657_20260305_000041 when 2026-03-05T12:30:45+08:00 saved -";
const OUR_COUPON: &str = "by 34657_20260306_000043 when 2026-03-06T18:00:00+08:00 saved 840";
const MARCH: &str = "2026-03-30T23:59:59+08:00";
const APRIL: &str = "2026-04-03T23:59:59+08:00";

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(crate::golden(name)).unwrap()).unwrap()
}

/// A golden event with other values at some places of its data.
fn changed(name: &str, changes: &[(&str, Value)]) -> Value {
    let mut event = golden(name);
    for (pointer, value) in changes {
        let (holder, member) = pointer.rsplit_once('/').unwrap();
        let holder = event["data"].pointer_mut(holder).unwrap_or_else(|| panic!("{name} has no {holder}"));
        match holder {
            Value::Array(items) => items[member.parse::<usize>().unwrap()] = value.clone(),
            holder => holder[member] = value.clone(),
        }
    }
    event
}

/// The same, refused for this reason in place of redeemed.
fn refused(name: &str, reason: &str, changes: &[(&str, Value)]) -> Value {
    let mut event = changed(name, changes);
    event["type"] = json!("redemption.refused.v1");
    event["data"]["outcome"] = json!("refused");
    event["data"]["established_by"] = json!("query");
    event["data"]["problem"] = golden("event.refused.json")["data"]["problem"].clone();
    event["data"]["problem"]["reason"] = json!(reason);
    event["data"]["coupon_state"] = event["data"]["coupon"]["coupon_state"].clone();
    event
}

const SINGLE: &str = "event.redeemed.single.json";
const BUNDLE: &str = "event.redeemed.bundle.json";
const ROUNDS: &str = "event.redeemed.sequential.json";
const STATE: &str = "/coupon/coupon_state";
const USAGE: &str = "/coupon/single_usage_detail";
const ITEMS: &str = "/coupon/sequential_usage_detail/detail_item_list";

/// Events that keep the schema.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, event: Value, answers: String| cases.push((name.to_owned(), event, answers));
    add("single", golden(SINGLE), format!("used yes {OURS} left 0 until {MARCH}"));
    add("bundle", golden(BUNDLE), format!("used yes {OUR_COUPON} left 2 until -"));
    add("rounds", golden(ROUNDS), format!("used yes {OUR_ROUND} left 2 until {MARCH}"));
    let february = "2026-02-28T23:59:59+08:00";
    add("expired", golden("event.refused.json"), format!("used no {NOBODY} left 0 until {february}"));
    add("invalid", golden("event.invalid.json"), format!("used no {NOBODY} left - until -"));
    add("unresolved", golden("event.unresolved.json"), format!("used unknown {NOBODY} left - until -"));
    let use_of_old = "by 34657_20250101_123456 when 2025-07-24T00:00:00+08:00 saved -";
    let until_old = "2025-07-30T23:59:59+08:00";
    add("modeless", golden("event.redeemed.json"), format!("used yes {use_of_old} left 0 until {until_old}"));
    add_single(&mut add);
    add_bundle(&mut add);
    add_rounds(&mut add);
    cases
}

fn add_single(add: &mut impl FnMut(&str, Value, String)) {
    let reduced = json!({ "coupon_code": "2603010000000042", "coupon_state": "USED" });
    let event = changed(SINGLE, &[("/coupon", reduced), ("/coupon_reduced", json!("size"))]);
    add("reduced", event, "used yes by 34657_20260305_000042 when - saved - left - until -".to_owned());
    let returned = |mut usage: Value| {
        usage["return_request_no"] = json!("RETURN_1");
        usage["return_time"] = json!("2026-03-06T09:00:00+08:00");
        refused(SINGLE, "returned_since", &[(STATE, json!("EFFECTIVE")), (USAGE, usage)])
    };
    let left_one = format!("used no {NOBODY} left 1 until {MARCH}");
    add("returned", returned(json!({})), left_one.clone());
    let usage = golden(SINGLE)["data"]["coupon"]["single_usage_detail"].clone();
    add("returned, its use shown", returned(usage.clone()), left_one.clone());
    for (state, reason) in [
        ("PENDING", "not_yet_valid"),
        ("CONFIRMING", "not_confirmed"),
        ("EXPIRED", "expired"),
        ("DELETED", "deleted"),
        ("DEACTIVATED", "deactivated"),
        ("FROZEN", "rejected"),
    ] {
        let event = refused(SINGLE, reason, &[(STATE, json!(state)), (USAGE, json!({}))]);
        let answers = match state {
            "PENDING" | "CONFIRMING" => left_one.clone(),
            "FROZEN" => format!("used no {NOBODY} left - until -"),
            _ => format!("used no {NOBODY} left 0 until {MARCH}"),
        };
        add(state, event, answers);
    }
    let another =
        refused(SINGLE, "used_by_another", &[(&format!("{USAGE}/use_request_no"), json!("OTHER_1"))]);
    let use_of_another = "by OTHER_1 when 2026-03-05T12:30:45+08:00 saved 2000";
    add("used by another", another, format!("used no {use_of_another} left 0 until {MARCH}"));
    let mode = "/coupon/product_coupon/usage_mode";
    let event = changed(SINGLE, &[(mode, json!("A_NEW_MODE"))]);
    let unknown = "used yes by 34657_20260305_000042 when - saved - left - until -";
    add("a new mode", event, unknown.to_owned());
    let event = changed(SINGLE, &[(mode, Value::Null)]);
    add("mode null", event, format!("used yes {OURS} left 0 until {MARCH}"));
    let event = changed(SINGLE, &[(mode, Value::Null), ("/coupon/sequential_usage_detail", json!({}))]);
    add("mode null, two usages", event, unknown.to_owned());
    let event = changed(SINGLE, &[("/coupon/valid_end_time", Value::Null)]);
    add("end null", event, format!("used yes {OURS} left 0 until -"));
}

fn add_bundle(add: &mut impl FnMut(&str, Value, String)) {
    let usage = "/coupon/progressive_bundle_usage_detail";
    let counts = "/coupon/user_product_coupon_bundle_info";
    let used = format!("{counts}/used_count");
    let as_of = |state: &str| {
        let changes = [(STATE, json!(state)), (usage, json!({})), (&used, json!(2))];
        refused(BUNDLE, "not_usable", &changes)
    };
    add("bundle, usable", as_of("EFFECTIVE"), format!("used no {NOBODY} left 3 until {APRIL}"));
    add("bundle, expired", as_of("EXPIRED"), format!("used no {NOBODY} left - until -"));
    add("bundle, a new state", as_of("FROZEN"), format!("used no {NOBODY} left - until -"));
    for lack in [counts, &used] {
        let event = changed(BUNDLE, &[(lack, Value::Null)]);
        add("bundle, uncounted", event, format!("used yes {OUR_COUPON} left - until -"));
    }
}

fn add_rounds(add: &mut impl FnMut(&str, Value, String)) {
    let detail = "/coupon/sequential_usage_detail";
    for state in ["EXPIRED", "DELETED", "DEACTIVATED"] {
        let changes = [(STATE, json!(state)), ("/coupon_state", json!(state))];
        let event = changed(ROUNDS, &changes);
        add(state, event, format!("used yes {OUR_ROUND} left 0 until {MARCH}"));
    }
    let used = |number: &str| json!({ "detail_state": "USED", "use_request_no": number, "use_time": "2026-03-04T08:00:00+08:00" });
    let others = [
        (format!("{ITEMS}/0"), used("OTHER_1")),
        (format!("{ITEMS}/1"), used("OTHER_2")),
        (format!("{detail}/used_count"), json!(2)),
    ];
    let others: Vec<_> = others.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    let by_others = "by OTHER_1,OTHER_2 when 2026-03-04T08:00:00+08:00,2026-03-04T08:00:00+08:00 saved -";
    let event = refused(ROUNDS, "used_by_another", &others);
    add("rounds of others", event, format!("used no {by_others} left 1 until {MARCH}"));
    // Our round is the second one, and others have one, too.
    let event = changed(
        ROUNDS,
        &[
            (
                others[1].0,
                golden(ROUNDS)["data"]["coupon"]["sequential_usage_detail"]["detail_item_list"][0].clone(),
            ),
            (others[0].0, used("OTHER_1")),
            (others[2].0, json!(2)),
        ],
    );
    add("our round beside another's", event, format!("used yes {OUR_ROUND} left 1 until {MARCH}"));
    // WeChat Pay may name no number, though the response says that the use succeeded.
    let event = changed(ROUNDS, &[(&format!("{ITEMS}/0/use_request_no"), Value::Null)]);
    let ours_unnumbered = "used yes by 34657_20260305_000041 when - saved -";
    add("rounds without a number", event, format!("{ours_unnumbered} left 2 until {MARCH}"));
    let returned = [
        (format!("{ITEMS}/0/detail_state"), json!("EFFECTIVE")),
        (format!("{ITEMS}/0/return_request_no"), json!("RETURN_1")),
        (format!("{detail}/used_count"), json!(0)),
    ];
    let returned: Vec<_> =
        returned.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    let event = refused(ROUNDS, "returned_since", &returned);
    add("our round returned", event, format!("used no {NOBODY} left 3 until {MARCH}"));
    for (pointer, value) in
        [("/total_count", Value::Null), ("/used_count", Value::Null), ("/used_count", json!(4))]
    {
        let event = changed(ROUNDS, &[(&format!("{detail}{pointer}"), value)]);
        add("rounds, uncounted", event, format!("used yes {OUR_ROUND} left - until -"));
    }
    let event = changed(ROUNDS, &[(detail, Value::Null)]);
    let ours = "used yes by 34657_20260305_000041 when - saved -";
    add("rounds, no detail", event, format!("{ours} left - until -"));
}

/// Events that break the schema: a member is of another type than documented, and is read as one that is absent.
pub(crate) fn mistyped() -> Vec<Case> {
    let mut cases = Vec::new();
    let all = [
        json!({}),
        json!({ "\u{0}": 1, "": 2 }),
        json!([]),
        json!([1]),
        json!(7.5),
        json!(true),
        json!("many"),
    ];
    let mut add = |golden: &str, pointer: &str, is_right: fn(&Value) -> bool, answers: &str| {
        for value in all.iter().filter(|value| !is_right(value)) {
            let name = format!("{golden} {pointer} {value}");
            cases.push((name, changed(golden, &[(pointer, value.clone())]), answers.to_owned()));
        }
    };
    let is_empty_list = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    let known = "used yes by 34657_20260305_000042";
    add(SINGLE, "/coupon/valid_end_time", Value::is_string, &format!("used yes {OURS} left 0 until -"));
    add(SINGLE, "/coupon/product_coupon", Value::is_object, &format!("used yes {OURS} left 0 until {MARCH}"));
    add(
        SINGLE,
        "/coupon/product_coupon/usage_mode",
        Value::is_string,
        &format!("used yes {OURS} left 0 until {MARCH}"),
    );
    let unread = format!("{known} when - saved - left 0 until {MARCH}");
    add(SINGLE, USAGE, Value::is_object, &unread);
    let untimed = format!("{known} when - saved 2000 left 0 until {MARCH}");
    add(SINGLE, &format!("{USAGE}/use_time"), Value::is_string, &untimed);
    let unsaved = format!("{known} when 2026-03-05T12:30:45+08:00 saved - left 0 until {MARCH}");
    add(SINGLE, &format!("{USAGE}/saved_amount"), Value::is_i64, &unsaved);
    let uncounted = format!("used yes {OUR_COUPON} left - until -");
    add(BUNDLE, "/coupon/user_product_coupon_bundle_info", Value::is_object, &uncounted);
    add(BUNDLE, "/coupon/user_product_coupon_bundle_info/total_count", Value::is_i64, &uncounted);
    let uncounted = format!("used yes {OUR_ROUND} left - until -");
    add(ROUNDS, "/coupon/sequential_usage_detail/used_count", Value::is_i64, &uncounted);
    let unlisted = format!("used yes by 34657_20260305_000041 when - saved - left 2 until {MARCH}");
    add(ROUNDS, ITEMS, is_empty_list, &unlisted);
    add(ROUNDS, &format!("{ITEMS}/0"), Value::is_object, &unlisted);
    add(ROUNDS, &format!("{ITEMS}/0/detail_state"), Value::is_string, &unlisted);
    add(ROUNDS, &format!("{ITEMS}/0/use_request_no"), Value::is_string, &unlisted);
    let large = changed(ROUNDS, &[("/coupon/sequential_usage_detail/total_count", json!(1e30))]);
    cases.push(("a count beyond all".to_owned(), large, uncounted));
    cases
}
