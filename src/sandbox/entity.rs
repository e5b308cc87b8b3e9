//! The coupon as replies show it: every object of the published shapes, with members by usage mode.
//!
//! What decides nothing (names, pictures, rules) is filled in with fixed values of realistic size. One member is in no
//! published revision: clients must pass it through.

use serde_json::{Map, Value, json};

use super::clock::{china_time, china_time_without_seconds};
use super::coupons::{Coupon, CouponState, Round, UsageMode};

/// The member that no published revision has.
pub(super) const UNPUBLISHED: &str = "sandbox_unpublished_field";

/// The entity of `use`, `inquire`, `return`, `send`, `confirm` and `deactivate`.
pub(super) fn entity(coupon: &Coupon, used_in_bundle: usize) -> Value {
    // Every coupon has at least one round, and the first one tells when the whole begins.
    let first = &coupon.rounds[0];
    let mut entity = json!({
        "coupon_code": coupon.coupon_code,
        "coupon_state": coupon.state,
        "valid_begin_time": begin_time(coupon.usage_mode, first),
        "valid_end_time": china_time(first.valid_end),
        "receive_time": china_time(coupon.sent.at),
        "send_request_no": coupon.sent.number,
        "send_channel": "API",
        "product_coupon": product_coupon(coupon),
        "stock": stock(coupon),
        "brand_id": coupon.brand_id,
        UNPUBLISHED: { "revision": 7, "labels": ["later", "以后"], "nested": { "empty": {} } },
    });
    if let Some(attach) = &coupon.attach {
        entity["attach"] = json!(attach);
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
        UsageMode::Single => entity["single_usage_detail"] = usage_detail(first),
        UsageMode::ProgressiveBundle => {
            entity["progressive_bundle_usage_detail"] = usage_detail(first);
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

/// An empty object where the coupon was neither used nor returned.
fn usage_detail(round: &Round) -> Value {
    let mut detail = Map::new();
    if let Some(used) = &round.used {
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
        let mut item = usage_detail(round);
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

fn product_coupon(coupon: &Coupon) -> Value {
    let mut product = json!({
        "product_coupon_id": coupon.product_coupon_id,
        "scope": "ALL",
        "type": "NORMAL",
        "usage_mode": coupon.usage_mode,
        "display_info": {
            "name": "满100减20",
            "image_url": "https://wxpaylogo.qpic.cn/wxpaylogo/PiajxSqBRaEIPAeia7ImvtsmBgADN5dCbCZlGmCLbgNMJ7lVhRrMPDaA/0",
            "background_url": "https://wxpaylogo.qpic.cn/wxpaylogo/PiajxSqBRaEIPAeia7ImvtsmBgADN5dCbCZlGmCLbgNMJ7lVhRrMPDaB/0",
            "detail_image_url_list": [
                "https://wxpaylogo.qpic.cn/wxpaylogo/PiajxSqBRaEIPAeia7ImvtsmBgADN5dCbCZlGmCLbgNMJ7lVhRrMPDaC/0",
                "https://wxpaylogo.qpic.cn/wxpaylogo/PiajxSqBRaEIPAeia7ImvtsmBgADN5dCbCZlGmCLbgNMJ7lVhRrMPDaD/0",
            ],
            "original_price": 0,
            "combo_package_list": [{
                "name": "双人套餐",
                "pick_count": 1,
                "choice_list": [
                    { "name": "美式咖啡", "price": 2800, "count": 1, "image_url": "https://wxpaylogo.qpic.cn/wxpaylogo/E/0" },
                    { "name": "拿铁咖啡", "price": 3200, "count": 1, "image_url": "https://wxpaylogo.qpic.cn/wxpaylogo/F/0" },
                ],
            }],
        },
        "out_product_no": "SKU_0077",
        "state": "EFFECTIVE",
        "brand_id": coupon.brand_id,
    });
    match (coupon.usage_mode, &coupon.bundle) {
        (UsageMode::Single, _) => {
            product["single_usage_info"] =
                json!({ "normal_coupon": { "threshold": 10000, "discount_amount": 2000 } });
        }
        (UsageMode::ProgressiveBundle, bundle) => {
            let count = bundle.as_ref().map_or(1, |bundle| bundle.total);
            product["progressive_bundle_usage_info"] = json!({ "count": count, "interval_days": 1 });
        }
        (UsageMode::Sequential, _) => {
            let count = coupon.rounds.len();
            product["sequential_usage_info"] =
                json!({ "type": "INCREMENTAL", "count": count, "available_days": 30, "interval_days": 0 });
        }
    }
    product
}

fn stock(coupon: &Coupon) -> Value {
    let first = &coupon.rounds[0];
    let period = json!({
        "available_begin_time": china_time(first.valid_begin),
        "available_end_time": china_time(first.valid_end),
        "available_days": 30,
        // Two kinds of begin_time: seconds of the day here, RFC 3339 below.
        "weekly_available_period": {
            "day_list": ["MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY"],
            "day_period_list": [{ "begin_time": 0, "end_time": 86399 }],
        },
        "irregular_available_period_list": [
            { "begin_time": china_time(first.valid_begin), "end_time": china_time(first.valid_end) },
        ],
    });
    let mut stock = json!({
        "product_coupon_id": coupon.product_coupon_id,
        "stock_id": coupon.stock_id,
        "remark": "三月活动",
        "coupon_code_mode": "API_ASSIGN",
        "stock_send_rule": { "max_count": 100000, "max_count_per_day": 5000, "max_count_per_user": 1 },
        "usage_rule_display_info": {
            "coupon_usage_method_list": ["OFFLINE", "MINI_PROGRAM"],
            "mini_program_appid": coupon.appid,
            "mini_program_path": "/pages/use",
            "usage_description": "到店消费时向店员出示券码，单笔订单满100元立减20元。".repeat(12),
            "coupon_available_store_info": {
                "description": "所有门店可用，可使用小程序查看门店列表",
                "mini_program_appid": coupon.appid,
                "mini_program_path": "/pages/stores",
            },
        },
        "coupon_display_info": {
            "code_display_mode": "QRCODE",
            "background_color": "Color020",
            "entrance_mini_program": {
                "appid": coupon.appid,
                "path": "/pages/index",
                "entrance_wording": "欢迎选购",
                "guidance_wording": "获取更多优惠",
            },
            "entrance_official_account": { "appid": coupon.appid },
        },
        "notify_config": { "notify_appid": coupon.appid },
        "store_scope": "NONE",
        "sent_count_info": { "total_count": 42, "today_count": 3 },
        "state": "SENDING",
        "brand_id": coupon.brand_id,
    });
    match (coupon.usage_mode, &coupon.bundle) {
        (UsageMode::Single, _) => stock["single_usage_rule"] = json!({ "coupon_available_period": period }),
        (UsageMode::ProgressiveBundle, bundle) => {
            stock["progressive_bundle_usage_rule"] = json!({ "coupon_available_period": period, "normal_coupon": { "threshold": 10000, "discount_amount": 2000 } });
            if let Some(bundle) = bundle {
                stock["stock_bundle_info"] = json!({ "stock_bundle_id": format!("1{}", coupon.stock_id), "stock_bundle_index": bundle.index });
            }
        }
        (UsageMode::Sequential, _) => {
            let prices: Vec<_> = (1..=coupon.rounds.len())
                .map(|turn| json!({ "threshold": 10000, "discount_amount": turn * 100 }))
                .collect();
            stock["sequential_usage_rule"] = json!({ "coupon_available_period": period, "normal_coupon_list": prices, "special_first": true });
        }
    }
    stock
}

#[cfg(test)]
mod tests {
    use super::super::coupons::{Act, Coupons, Deed, NewCoupon};
    use super::*;

    fn issued(mode: UsageMode, state: CouponState) -> Coupons {
        let new = NewCoupon {
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
        let act = Act { deed: Deed::Return, number: Some("return_1".into()), round: None };
        let coupon = coupons.act("C1", &act, "2026-03-05T05:00:00Z".parse().unwrap()).unwrap();
        let detail = &entity(&coupon, 0)["single_usage_detail"];
        assert_eq!(
            *detail,
            json!({ "return_request_no": "return_1", "return_time": "2026-03-05T13:00:00+08:00" })
        );
    }
}
