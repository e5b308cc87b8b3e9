//! The coupon as replies show it: every object of the published shapes, with members by usage mode.
//!
//! Members without an effect (names, pictures, rules) are filled in by `appearance`. One member is in no published revision: clients
//! must pass it through.

use serde_json::{Map, Value, json};

use super::appearance;
use super::clock::{china_time, china_time_without_seconds};
use super::coupon::{Coupon, CouponState, Round, UsageMode};

/// The member that no published revision has.
pub(super) const UNPUBLISHED: &str = "sandbox_unpublished_field";

/// The entity of `use`, `query`, `return`, `send`, `confirm` and `deactivate`.
pub(super) fn entity(coupon: &Coupon, used_in_bundle: usize) -> Value {
    // Every coupon has at least one round, and the first one says when the whole begins.
    let first = &coupon.rounds[0];
    let mut entity = json!({
        "coupon_code": coupon.coupon_code,
        "coupon_state": coupon.state,
        "valid_begin_time": begin_time(coupon.usage_mode, first),
        "valid_end_time": china_time(first.valid_end),
        "receive_time": china_time(coupon.sent.at),
        "send_request_no": coupon.sent.number,
        "product_coupon": appearance::product_coupon(coupon),
        "stock": appearance::stock(coupon),
        "brand_id": coupon.brand_id,
        UNPUBLISHED: { "revision": 7, "labels": ["later", "以后"], "nested": { "empty": {} } },
    });
    if let Value::Object(members) = &mut entity {
        appearance::add_channel(members, coupon);
    }
    if let Some(mark) = &coupon.confirmed {
        entity["confirm_request_no"] = json!(mark.number);
        entity["confirm_time"] = json!(china_time(mark.at));
    }
    if let Some(mark) = coupon.deactivated.as_ref().filter(|_| coupon.state == CouponState::Deactivated) {
        entity["deactivate_request_no"] = json!(mark.number);
        entity["deactivate_time"] = json!(china_time(mark.at));
        entity["deactivate_reason"] = json!(coupon.deactivate_reason);
    }
    match coupon.usage_mode {
        UsageMode::Single => entity["single_usage_detail"] = usage_detail(coupon, first),
        UsageMode::ProgressiveBundle => {
            entity["progressive_bundle_usage_detail"] = usage_detail(coupon, first);
            if let Some(bundle) = &coupon.bundle {
                entity["user_product_coupon_bundle_info"] = json!({
                    "user_coupon_bundle_id": bundle.id,
                    "user_coupon_bundle_index": bundle.index,
                    "total_count": bundle.total,
                    "used_count": used_in_bundle,
                });
            }
        }
        UsageMode::Sequential => entity["sequential_usage_detail"] = sequential_detail(coupon),
    }
    entity
}

/// An empty object if the coupon was neither used nor returned. Of a use that was returned the provider's documents
/// say both that it is shown and that it is not.
fn usage_detail(coupon: &Coupon, round: &Round) -> Value {
    let mut detail = Map::new();
    let past = round.returned_use.as_ref().filter(|_| coupon.shows_returned_use);
    if let Some(used) = round.used.as_ref().or(past) {
        detail.insert("use_request_no".to_owned(), json!(used.number));
        detail.insert("use_time".to_owned(), json!(used.use_time));
        if let Some((name, order)) = &used.order {
            detail.insert((*name).to_owned(), order.clone());
        }
        if let Some(saved_amount) = used.saved_amount {
            detail.insert("saved_amount".to_owned(), json!(saved_amount));
        }
    }
    if let Some(mark) = &round.returned {
        detail.insert("return_request_no".to_owned(), json!(mark.number));
        detail.insert("return_time".to_owned(), json!(china_time(mark.at)));
    }
    Value::Object(detail)
}

fn sequential_detail(coupon: &Coupon) -> Value {
    let item = |round: &Round| {
        let mut item = usage_detail(coupon, round);
        // The list of `detail_state` has no CONFIRMING.
        let state = if round.state == CouponState::Confirming { CouponState::Pending } else { round.state };
        item["detail_state"] = json!(state);
        item["valid_begin_time"] = json!(begin_time(coupon.usage_mode, round));
        item["valid_end_time"] = json!(china_time(round.valid_end));
        if let Some(at) = round.deleted {
            item["delete_time"] = json!(china_time(at));
        }
        item
    };
    json!({
        "total_count": coupon.rounds.len(),
        "used_count": coupon.rounds.iter().filter(|round| round.state == CouponState::Used).count(),
        "detail_item_list": coupon.rounds.iter().map(item).collect::<Vec<_>>(),
    })
}

/// The legacy shape writes this one time without seconds, as the vendor's own samples do.
fn begin_time(mode: UsageMode, round: &Round) -> String {
    match mode {
        UsageMode::Sequential => china_time_without_seconds(round.valid_begin),
        UsageMode::Single | UsageMode::ProgressiveBundle => china_time(round.valid_begin),
    }
}

#[cfg(test)]
mod tests {
    use super::super::coupon::{ActionRequest, CouponAction, NewCoupon};
    use super::super::coupons::Coupons;
    use super::*;

    fn issued(mode: UsageMode, state: CouponState) -> Coupons {
        issued_with_look(mode, state, None)
    }

    fn issued_with_look(mode: UsageMode, state: CouponState, look: Option<u32>) -> Coupons {
        let new = NewCoupon {
            look,
            openid: "o1".into(),
            coupon_code: "C1".into(),
            appid: "wx1234567890abcdef".into(),
            brand_id: "120344".into(),
            product_coupon_id: "1000000077".into(),
            stock_id: "1000000077001".into(),
            usage_mode: mode,
            state,
            ..NewCoupon::default()
        };
        let mut coupons = Coupons::default();
        coupons.issue(vec![new], "2026-03-05T04:30:45Z".parse().unwrap()).unwrap();
        coupons
    }

    fn shown(mode: UsageMode, state: CouponState) -> Value {
        entity(issued(mode, state).get("C1").unwrap(), 2)
    }

    #[test]
    fn looks_by_seed_are_the_same_for_the_same_code_and_many() {
        let looks: Vec<u32> = (0..100).map(|n| appearance::by_seed(7, &format!("C{n}"))).collect();
        assert_eq!(looks, (0..100).map(|n| appearance::by_seed(7, &format!("C{n}"))).collect::<Vec<_>>());
        let distinct: std::collections::BTreeSet<_> = looks.iter().collect();
        assert!(distinct.len() > 90, "{}", distinct.len());
        assert_ne!(looks[0], appearance::by_seed(8, "C0"));
    }

    const MODES: [UsageMode; 3] = [UsageMode::Single, UsageMode::ProgressiveBundle, UsageMode::Sequential];

    const STATES: [CouponState; 7] = [
        CouponState::Confirming,
        CouponState::Pending,
        CouponState::Effective,
        CouponState::Used,
        CouponState::Expired,
        CouponState::Deleted,
        CouponState::Deactivated,
    ];

    fn rule(entity: &Value) -> &Value {
        let names = ["single_usage_rule", "progressive_bundle_usage_rule", "sequential_usage_rule"];
        let rules: Vec<_> = names.iter().filter_map(|name| entity["stock"].get(name)).collect();
        assert_eq!(rules.len(), 1, "{}", entity["stock"]);
        rules[0]
    }

    #[test]
    fn no_look_shows_what_cannot_be_together() {
        for (number, mode) in (0..2520).flat_map(|number| MODES.map(|mode| (number, mode))) {
            let coupons = issued_with_look(mode, CouponState::Effective, Some(number));
            let entity = entity(coupons.get("C1").unwrap(), 0);
            let (product, stock) = (&entity["product_coupon"], &entity["stock"]);
            let period = &rule(&entity)["coupon_available_period"];
            let limits = ["available_days", "weekly_available_period"];
            if period.get("irregular_available_period_list").is_some()
                || period.get("available_seconds").is_some()
            {
                assert!(limits.iter().all(|name| period.get(name).is_none()), "{number}: {period}");
            }
            let combos = product["display_info"].get("combo_package_list").is_some();
            assert_eq!(combos, product["scope"] == "SINGLE", "{number}");
            assert!(product["type"] != "EXCHANGE" || product["scope"] == "SINGLE", "{number}");
            let uploaded = stock.get("coupon_code_count_info").is_some();
            assert_eq!(uploaded, stock["coupon_code_mode"] == "UPLOAD", "{number}");
            if mode == UsageMode::ProgressiveBundle {
                assert_ne!(stock["coupon_code_mode"], "API_ASSIGN", "{number}");
            }
            for object in [product, stock] {
                let withdrawn = object.get("deactivate_time").is_some();
                assert_eq!(withdrawn, object["state"] == "DEACTIVATED", "{number}");
            }
        }
    }

    fn seconds(time: &Value) -> i64 {
        let text = time.as_str().unwrap();
        let whole = if text.matches(':').count() == 2 { text.replace('+', ":00+") } else { text.to_owned() };
        whole.parse::<jiff::Timestamp>().unwrap().as_second()
    }

    /// The time of a coupon is what its stock allows. The legacy shape writes its begin without seconds.
    #[test]
    fn the_limits_of_each_look_fit_the_times_of_the_coupon() {
        const DAY: i64 = 24 * 3600;
        let mut shown = std::collections::BTreeSet::new();
        for (number, mode) in (0..20).flat_map(|number| MODES.map(|mode| (number, mode))) {
            for state in STATES {
                let coupons = issued_with_look(mode, state, Some(number));
                let entity = entity(coupons.get("C1").unwrap(), 0);
                let what = format!("look {number}, {mode:?}, {state:?}: {entity}");
                let [begin, end, received] =
                    ["valid_begin_time", "valid_end_time", "receive_time"].map(|name| seconds(&entity[name]));
                let confirmed = entity.get("confirm_time").map_or(received, seconds);
                let rounding = if mode == UsageMode::Sequential { 59 } else { 0 };
                let is_lasting = |length: i64| (end - begin - rounding..=end - begin).contains(&length);
                assert!(received <= begin + rounding && received <= confirmed && begin < end, "{what}");
                let period = &rule(&entity)["coupon_available_period"];
                if let Some(days) = period.get("available_days") {
                    shown.insert("days");
                    assert!(is_lasting(days.as_i64().unwrap() * DAY), "{what}");
                }
                if let Some(lasts) = period.get("available_seconds").map(|lasts| lasts.as_i64().unwrap()) {
                    shown.insert("seconds");
                    assert!(is_lasting(lasts) && lasts <= DAY && lasts % 3600 == 0, "{what}");
                    assert!(begin == received || state == CouponState::Pending, "{what}");
                }
                if let Some(wait) = period.get("wait_days_after_receive") {
                    shown.insert("wait");
                    assert!(begin + rounding - received >= wait.as_i64().unwrap() * DAY, "{what}");
                }
                if mode == UsageMode::Sequential {
                    let days = &entity["product_coupon"]["sequential_usage_info"]["available_days"];
                    assert!(is_lasting(days.as_i64().unwrap() * DAY), "{what}");
                }
            }
        }
        assert_eq!(shown.into_iter().collect::<Vec<_>>(), ["days", "seconds", "wait"]);
    }

    /// What an offer is worth to the user.
    fn worth(offer: &Value) -> i64 {
        let of = |name: &str| offer.get(name).map(|amount| amount.as_i64().unwrap());
        let cost = || -of("exchange_price").unwrap();
        of("discount_amount").or_else(|| of("percent_off")).unwrap_or_else(cost)
    }

    #[test]
    fn the_offers_of_each_round_follow_their_type() {
        let mut shown = std::collections::BTreeSet::new();
        for number in 0..2520 {
            let coupons = issued_with_look(UsageMode::Sequential, CouponState::Effective, Some(number));
            let entity = entity(coupons.get("C1").unwrap(), 0);
            let rule = rule(&entity);
            let lists = ["normal_coupon_list", "discount_coupon_list", "exchange_coupon_list"];
            let offers: Vec<i64> = lists
                .iter()
                .filter_map(|name| rule.get(name))
                .flat_map(|list| list.as_array().unwrap())
                .map(worth)
                .collect();
            let is_special = rule["special_first"].as_bool().unwrap();
            let common = if is_special { &offers[1..] } else { &offers[..] };
            assert_eq!(offers.len(), 3, "{number}");
            let is_equal = entity["product_coupon"]["sequential_usage_info"]["type"] == "EQUAL";
            shown.insert((is_equal, is_special));
            let follows = |two: &[i64]| if is_equal { two[0] == two[1] } else { two[0] < two[1] };
            assert!(common.windows(2).all(follows), "{number}: {rule}");
            assert!(!is_special || common.iter().all(|offer| *offer < offers[0]), "{number}: {rule}");
        }
        assert_eq!(shown.len(), 4, "{shown:?}");
    }

    #[test]
    fn an_unused_coupon_has_an_empty_usage_detail() {
        let entity = shown(UsageMode::Single, CouponState::Effective);
        assert_eq!(entity["single_usage_detail"], json!({}));
        assert_eq!(entity["coupon_state"], "EFFECTIVE");
        assert!(entity[UNPUBLISHED].is_object());
        let size = entity.to_string().len();
        assert!((3_000..5_000).contains(&size), "{size}");
    }

    #[test]
    fn each_mode_has_the_members_of_its_own_shape() {
        let entity = shown(UsageMode::ProgressiveBundle, CouponState::Used);
        assert_eq!(entity["progressive_bundle_usage_detail"]["use_request_no"], "SANDBOX_OTHER_ORDER_C1");
        assert_eq!(entity["user_product_coupon_bundle_info"]["used_count"], 2);
        assert!(entity.get("single_usage_detail").is_none());

        let entity = shown(UsageMode::Sequential, CouponState::Used);
        assert_eq!(entity["valid_begin_time"], "2026-03-04T12:30+08:00");
        let detail = &entity["sequential_usage_detail"];
        assert_eq!((&detail["total_count"], &detail["used_count"]), (&json!(3), &json!(1)));
        assert_eq!(detail["detail_item_list"][0]["use_request_no"], "SANDBOX_OTHER_ORDER_C1");
        assert_eq!(detail["detail_item_list"][1]["detail_state"], "EFFECTIVE");
    }

    #[test]
    fn a_returned_coupon_shows_the_return_and_not_the_use() {
        let mut coupons = issued(UsageMode::Single, CouponState::Used);
        let act =
            ActionRequest { action: CouponAction::Return, number: Some("return_1".into()), round: None };
        let coupon = coupons.act("C1", &act, "2026-03-05T05:00:00Z".parse().unwrap()).unwrap();
        let detail = &entity(&coupon, 0)["single_usage_detail"];
        assert_eq!(
            *detail,
            json!({ "return_request_no": "return_1", "return_time": "2026-03-05T13:00:00+08:00" })
        );
        let shown = Coupon { shows_returned_use: true, ..coupon };
        let detail = &entity(&shown, 0)["single_usage_detail"];
        assert_eq!(detail["use_request_no"], "SANDBOX_OTHER_ORDER_C1");
        assert_eq!(detail["return_request_no"], "return_1");
    }
}
