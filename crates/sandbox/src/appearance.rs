//! The product coupon and the stock as replies show them, in every documented combination that occurs.
//!
//! Members without an effect (names, pictures, rules) vary by the number of an appearance: each list of words is cycled by
//! itself, and a word comes with the members that belong to it. Without a number it is one plain appearance.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::clock::{DAY, china_time};
use super::coupon::{Coupon, UsageMode};

const HOUR: i64 = 3600;

/// The number of appearances before they repeat: the lists below have 2 to 10 entries.
const APPEARANCES: u32 = 2520;

const SIDE_BY_SIDE: &str =
    "https://wxpaylogo.qpic.cn/wxpaylogo/PiajxSqBRaEIPAeia7ImvtsmBgADN5dCbCZlGmCLbgNMJ7lVhRrMPDa";

/// Scope and type that go together.
const OFFERS: [(&str, &str); 7] = [
    ("ALL", "NORMAL"),
    ("ALL", "DISCOUNT"),
    ("CATEGORY", "NORMAL"),
    ("CATEGORY", "DISCOUNT"),
    ("SINGLE", "NORMAL"),
    ("SINGLE", "DISCOUNT"),
    ("SINGLE", "EXCHANGE"),
];

const COLORS: [&str; 10] = [
    "Color010", "Color020", "Color030", "Color040", "Color050", "Color060", "Color070", "Color080",
    "Color090", "Color100",
];

/// A way in which a coupon can be used, and how a user gets into the app for it.
const METHODS: [(&str, Option<&str>); 6] = [
    ("OFFLINE", None),
    ("MINI_PROGRAM", None),
    ("PAYMENT_CODE", None),
    ("APP", Some("H5")),
    ("APP", Some("PASSCODE_LINK")),
    ("APP", Some("USAGE_GUIDE")),
];

/// How many days after it is received a coupon becomes valid, if its stock says so.
pub(super) const WAIT_DAYS: i64 = 1;

/// How the time of a coupon is limited: by one of these, never by all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limits {
    None,
    Days,
    DaysAndWeek,
    Irregular,
    Seconds,
}

/// The appearance of the coupon with this code, by the seed.
pub(super) fn by_seed(seed: u64, coupon_code: &str) -> u32 {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(coupon_code).finalize();
    let (first, _) = digest.split_at(4);
    first.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)) % APPEARANCES
}

/// What `plain` is without a number, and one of `all` with it.
fn pick<T: Copy>(coupon: &Coupon, plain: T, all: &[T]) -> T {
    pick_by(coupon.look, plain, all)
}

fn pick_by<T: Copy>(look: Option<u32>, plain: T, all: &[T]) -> T {
    match look.map(|number| number as usize % all.len().max(1)) {
        Some(index) => all.get(index).copied().unwrap_or(plain),
        None => plain,
    }
}

/// How the stock of a coupon limits its time.
pub(super) fn limits(look: Option<u32>, mode: UsageMode) -> Limits {
    const ALL: [Limits; 5] =
        [Limits::DaysAndWeek, Limits::Days, Limits::Irregular, Limits::Seconds, Limits::None];
    match pick_by(look, Limits::DaysAndWeek, &ALL) {
        Limits::Seconds if mode == UsageMode::Sequential => Limits::None,
        limits => limits,
    }
}

/// Whether this is a coupon of the 2025-09 revision, which knows no newer words.
fn is_legacy(coupon: &Coupon) -> bool {
    coupon.usage_mode == UsageMode::Sequential
}

fn offer(coupon: &Coupon) -> (&'static str, &'static str) {
    let (scope, kind) = pick(coupon, OFFERS[0], &OFFERS);
    (if scope == "CATEGORY" && is_legacy(coupon) { "ALL" } else { scope }, kind)
}

/// The way a coupon was sent, its attachment under the name that this way has, and its tags.
pub(super) fn add_channel(entity: &mut Map<String, Value>, coupon: &Coupon) {
    const OLDER: [&str; 5] = ["API", "BRAND_MANAGE", "MERCHANT_CARD", "MEMBER", "SMALL_ACTIVITY"];
    const NEWER: [&str; 3] = ["API", "BRAND_MANAGE", "RECEIVE_COMPONENT"];
    let channel = pick(coupon, "API", if is_legacy(coupon) { &OLDER } else { &NEWER });
    entity.insert("send_channel".to_owned(), json!(channel));
    if channel != "API" {
        entity.insert("channel_custom_info".to_owned(), json!("{\"page\":\"home\"}"));
    } else if let Some(attach) = &coupon.attach {
        entity.insert("attach".to_owned(), json!(attach));
    }
    if !is_legacy(coupon) && pick(coupon, false, &[false, true, false]) {
        let card = json!({ "member_card_id": "pDF3iY9tv9zCGCj4jTXFOo1DxHdo" });
        entity.insert(
            "coupon_tag_info".to_owned(),
            json!({ "coupon_tag_list": ["MEMBER"], "member_tag_info": card }),
        );
    }
}

pub(super) fn product_coupon(coupon: &Coupon) -> Value {
    let (scope, kind) = offer(coupon);
    let state = product_state(coupon);
    let mut product = json!({
        "product_coupon_id": coupon.product_coupon_id,
        "scope": scope,
        "type": kind,
        "usage_mode": coupon.usage_mode,
        "display_info": display_info(scope),
        "out_product_no": "SKU_0077",
        "state": state,
        "brand_id": coupon.brand_id,
    });
    add_withdrawal(&mut product, coupon, state);
    match (coupon.usage_mode, &coupon.bundle) {
        // The offer of a single item is in the rule of the stock.
        (UsageMode::Single, _) if scope == "SINGLE" => product["single_usage_info"] = json!({}),
        (UsageMode::Single, _) => {
            product["single_usage_info"] = json!({ price_name(kind): price(kind, 2000) })
        }
        (UsageMode::ProgressiveBundle, bundle) => {
            let count = bundle.as_ref().map_or(1, |bundle| bundle.total);
            // All places of a bundle can be issued at once, so no days need pass between them.
            product["progressive_bundle_usage_info"] = json!({ "count": count, "interval_days": 0 });
        }
        (UsageMode::Sequential, _) => {
            let days = (seconds_valid(coupon) + DAY - 1) / DAY;
            product["sequential_usage_info"] = json!({
                "type": sequential_type(coupon),
                "count": coupon.rounds.len(),
                "available_days": days,
                "interval_days": 0,
            });
        }
    }
    product
}

fn display_info(scope: &str) -> Value {
    let mut info = json!({
        "name": "满100减20",
        "image_url": format!("{SIDE_BY_SIDE}A/0"),
        "background_url": format!("{SIDE_BY_SIDE}B/0"),
        "detail_image_url_list": [format!("{SIDE_BY_SIDE}C/0"), format!("{SIDE_BY_SIDE}D/0")],
        "original_price": 0,
    });
    if scope == "SINGLE" {
        let item = |name: &str, price: u32| {
            json!({
                "name": name, "price": price, "count": 1, "image_url": format!("{SIDE_BY_SIDE}E/0"),
                "mini_program_appid": "wx1234567890abcdef", "mini_program_path": "/pages/item",
            })
        };
        let choices = [item("美式咖啡", 2800), item("拿铁咖啡", 3200)];
        info["combo_package_list"] = json!([{ "name": "咖啡2选1", "pick_count": 1, "choice_list": choices }]);
    }
    info
}

fn product_state(coupon: &Coupon) -> &'static str {
    pick(coupon, "EFFECTIVE", &["EFFECTIVE", "EFFECTIVE", "DEACTIVATED", "AUDITING"])
}

/// A product coupon that is withdrawn or under review leaves no stock that sends.
fn stock_state(coupon: &Coupon) -> &'static str {
    match product_state(coupon) {
        "EFFECTIVE" => pick(coupon, "SENDING", &["SENDING", "PAUSED", "STOPPED", "DEACTIVATED", "AUDITING"]),
        state => state,
    }
}

fn add_withdrawal(object: &mut Value, coupon: &Coupon, state: &str) {
    if state == "DEACTIVATED" {
        object["deactivate_request_no"] = json!("SANDBOX_WITHDRAWN_1");
        object["deactivate_time"] = json!(china_time(coupon.sent.at));
        object["deactivate_reason"] = json!("商品已下线");
    }
}

pub(super) fn stock(coupon: &Coupon) -> Value {
    let state = stock_state(coupon);
    let mut stock = json!({
        "product_coupon_id": coupon.product_coupon_id,
        "stock_id": coupon.stock_id,
        "remark": "三月活动",
        "stock_send_rule": { "max_count": 100000, "max_count_per_day": 5000, "max_count_per_user": 1 },
        "usage_rule_display_info": usage_rule_display_info(coupon),
        "coupon_display_info": coupon_display_info(coupon),
        "notify_config": { "notify_appid": coupon.appid },
        "store_scope": if coupon.stores.is_empty() { pick(coupon, "NONE", &["NONE", "ALL"]) } else { "SPECIFIC" },
        "sent_count_info": { "total_count": 42, "today_count": 3 },
        "state": state,
        "brand_id": coupon.brand_id,
    });
    add_withdrawal(&mut stock, coupon, state);
    let mode = pick(coupon, "API_ASSIGN", &["API_ASSIGN", "WECHATPAY", "UPLOAD"]);
    // The brand does not give out the codes of a bundle.
    let assigns = mode == "API_ASSIGN" && coupon.usage_mode != UsageMode::ProgressiveBundle;
    stock["coupon_code_mode"] = json!(if mode == "API_ASSIGN" && !assigns { "WECHATPAY" } else { mode });
    if mode == "UPLOAD" {
        stock["coupon_code_count_info"] = json!({ "total_count": 5000, "available_count": 4958 });
    }
    add_usage_rule(&mut stock, coupon);
    stock
}

fn add_usage_rule(stock: &mut Value, coupon: &Coupon) {
    let (scope, kind) = offer(coupon);
    let period = period(coupon);
    match (coupon.usage_mode, &coupon.bundle) {
        (UsageMode::Single, _) => {
            let mut rule = json!({ "coupon_available_period": period });
            if scope == "SINGLE" {
                rule[price_name(kind)] = price(kind, 2000);
            }
            stock["single_usage_rule"] = rule;
        }
        (UsageMode::ProgressiveBundle, bundle) => {
            stock["progressive_bundle_usage_rule"] =
                json!({ "coupon_available_period": period, price_name(kind): price(kind, 2000) });
            if let Some(bundle) = bundle {
                let id = format!("1{}", coupon.stock_id);
                stock["stock_bundle_info"] =
                    json!({ "stock_bundle_id": id, "stock_bundle_index": bundle.index });
            }
        }
        (UsageMode::Sequential, _) => {
            let is_first_special = pick(coupon, false, &[false, false, true]);
            stock["sequential_usage_rule"] = json!({
                "coupon_available_period": period,
                format!("{}_list", price_name(kind)): prices(coupon, kind, is_first_special),
                "special_first": is_first_special,
            });
        }
    }
}

fn sequential_type(coupon: &Coupon) -> &'static str {
    pick(coupon, "INCREMENTAL", &["INCREMENTAL", "EQUAL"])
}

/// A price for each round: better from round to round or always the same, but for a first one that is the best of all.
fn prices(coupon: &Coupon, kind: &str, is_first_special: bool) -> Vec<Value> {
    let grows = sequential_type(coupon) == "INCREMENTAL";
    let rounds = coupon.rounds.len();
    let price_of = |round: usize| {
        let steps = match round {
            0 if is_first_special => rounds + 1,
            round if grows => round + 1,
            _ => 1,
        };
        // A better offer takes more off, and a better exchange costs less.
        price(kind, if kind == "EXCHANGE" { 2000 - 100 * steps } else { 100 * steps })
    };
    (0..rounds).map(price_of).collect()
}

fn price_name(kind: &str) -> &'static str {
    match kind {
        "DISCOUNT" => "discount_coupon",
        "EXCHANGE" => "exchange_coupon",
        _ => "normal_coupon",
    }
}

fn price(kind: &str, amount: usize) -> Value {
    match kind {
        "DISCOUNT" => json!({ "threshold": 10000, "percent_off": amount / 100 }),
        "EXCHANGE" => json!({ "threshold": 10000, "exchange_price": amount }),
        _ => json!({ "threshold": 10000, "discount_amount": amount }),
    }
}

fn period(coupon: &Coupon) -> Value {
    // Every coupon has at least one round.
    let first = &coupon.rounds[0];
    let (begin, end) = (china_time(first.valid_begin), china_time(first.valid_end));
    let mut period = json!({ "available_begin_time": begin, "available_end_time": end });
    match limits(coupon.look, coupon.usage_mode) {
        Limits::None => {}
        Limits::Seconds => {
            let lasts = seconds_valid(coupon);
            // The document has whole hours, up to a day; a coupon that was cut short has no such limit.
            if (HOUR..=DAY).contains(&lasts) && lasts % HOUR == 0 {
                period["available_seconds"] = json!(lasts);
            }
        }
        Limits::Irregular => {
            period["irregular_available_period_list"] = json!([{ "begin_time": begin, "end_time": end }]);
        }
        Limits::Days => {
            period["wait_days_after_receive"] = json!(WAIT_DAYS);
            add_days(&mut period, coupon);
        }
        Limits::DaysAndWeek => {
            add_days(&mut period, coupon);
            // Seconds of the day here, RFC 3339 in the other list.
            period["weekly_available_period"] = json!({
                "day_list": ["MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY"],
                "day_period_list": [{ "begin_time": 0, "end_time": 86399 }],
            });
        }
    }
    period
}

/// As many days as the coupon is valid, if it is whole days. The older rule for several rounds has no such member.
fn add_days(period: &mut Value, coupon: &Coupon) {
    let lasts = seconds_valid(coupon);
    if !is_legacy(coupon) && (DAY..=365 * DAY).contains(&lasts) && lasts % DAY == 0 {
        period["available_days"] = json!(lasts / DAY);
    }
}

fn seconds_valid(coupon: &Coupon) -> i64 {
    coupon.rounds[0].valid_end.as_second() - coupon.rounds[0].valid_begin.as_second()
}

fn usage_rule_display_info(coupon: &Coupon) -> Value {
    let (method, jump) = pick(coupon, METHODS[1], &METHODS);
    let methods = if method == "OFFLINE" { vec!["OFFLINE"] } else { vec!["OFFLINE", method] };
    let mut info = json!({
        "coupon_usage_method_list": methods,
        "usage_description": "到店消费时向店员出示券码，单笔订单满100元立减20元。".repeat(12),
        "coupon_available_store_info": {
            "description": "所有门店可用，可使用小程序查看门店列表",
            "mini_program_appid": coupon.appid,
            "mini_program_path": "/pages/stores",
        },
    });
    if method == "MINI_PROGRAM" {
        info["mini_program_appid"] = json!(coupon.appid);
        info["mini_program_path"] = json!("/pages/use");
    }
    // The older revision names the page and not the way there.
    if let Some(jump) = jump.filter(|_| !is_legacy(coupon)) {
        info["app_jump_type"] = json!(jump);
    }
    match jump {
        Some("PASSCODE_LINK") if !is_legacy(coupon) => {
            info["passcode_link"] = json!("https://example.com/pass");
        }
        Some("H5") => info["app_path"] = json!("https://example.com/app"),
        _ => {}
    }
    info
}

fn coupon_display_info(coupon: &Coupon) -> Value {
    let mut info = json!({
        "code_display_mode": pick(coupon, "QRCODE", &["QRCODE", "BARCODE", "INVISIBLE"]),
        "background_color": pick(coupon, COLORS[1], &COLORS),
        "entrance_official_account": { "appid": coupon.appid },
    });
    if pick(coupon, true, &[true, false]) {
        info["entrance_mini_program"] = json!({
            "appid": coupon.appid,
            "path": "/pages/index",
            "entrance_wording": "欢迎选购",
            "guidance_wording": "获取更多优惠",
        });
    } else {
        info["entrance_finder"] = json!({
            "finder_id": "gh_12345678",
            "finder_video_id": "UDFsdf24df34dD456Hdf34",
            "finder_video_cover_image_url": format!("{SIDE_BY_SIDE}F/0"),
        });
    }
    info
}
