//! The JSON Schemas of the messages: the command, the result event and the two audit events.
//!
//! Events are described by the very types that write them. A command is read by hand, so that all its faults can be
//! reported together; `Command` is its twin, and a test holds decoder and schema against each other. What JSON Schema
//! cannot say is listed there by name.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::domain::redemption::{
    Appid, BrandId, CouponCode, Mchid, Openid, OrderNo, ProductCouponId, RequestNo, SavedAmount,
    ServiceOrderNo, StockId, StoreId, UseTime,
};
use crate::wire::{audit_event, console_event, result_event};

/// The dialects that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Draft 2020-12, for files.
    Draft2020,
    /// Draft 7, which is what AsyncAPI embeds.
    Draft07,
}

/// The schema of a command, in either spelling.
pub fn command(dialect: Dialect) -> Value {
    let mut schema = settings(dialect).into_generator().into_root_schema_for::<Command>();
    RecursiveTransform(without_null).transform(&mut schema);
    finished(schema, dialect)
}

/// The schema of a result event.
pub fn event(dialect: Dialect) -> Value {
    // What is written as null is never absent: hence the contract of writing.
    let settings = settings(dialect).for_serialize();
    open(settings.into_generator().into_root_schema_for::<result_event::CloudEvent<'static>>(), dialect)
}

/// The schema of an audit event.
pub fn audit(dialect: Dialect) -> Value {
    let settings = settings(dialect).for_serialize();
    open(settings.into_generator().into_root_schema_for::<audit_event::CloudEvent<'static>>(), dialect)
}

/// The schema of an audit event of the operator console.
pub fn console(dialect: Dialect) -> Value {
    let settings = settings(dialect).for_serialize();
    open(settings.into_generator().into_root_schema_for::<console_event::CloudEvent<'static>>(), dialect)
}

fn settings(dialect: Dialect) -> SchemaSettings {
    let settings = match dialect {
        Dialect::Draft2020 => SchemaSettings::draft2020_12(),
        Dialect::Draft07 => SchemaSettings::draft07(),
    };
    settings.with(|settings| settings.inline_subschemas = true)
}

/// An event may gain fields within `v1`, wherever it has an object: even an attempt, which is read strictly where it
/// comes back in a header.
fn open(mut schema: Schema, dialect: Dialect) -> Value {
    RecursiveTransform(|schema: &mut Schema| {
        if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
            schema.remove("additionalProperties");
        }
    })
    .transform(&mut schema);
    finished(schema, dialect)
}

fn finished(mut schema: Schema, dialect: Dialect) -> Value {
    // No standard knows these; the bounds beside them say the same.
    RecursiveTransform(|schema: &mut Schema| {
        if schema.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
            schema.remove("format");
        }
    })
    .transform(&mut schema);
    if dialect == Dialect::Draft07 {
        // The older name of the same rule.
        RecursiveTransform(|schema: &mut Schema| {
            if let Some(rule) = schema.remove("dependentRequired") {
                schema.insert("dependencies".to_owned(), rule);
            }
        })
        .transform(&mut schema);
    }
    schema.to_value()
}

// ---- the command

/// A redemption command: use this coupon of this user for this order. Flat, or with all but `openid` and `coupon_code`
/// under `json`. A command with an unknown field is invalid.
#[derive(JsonSchema)]
#[schemars(untagged, title = "redemption command", extend("$id" = "urn:redeemer:schema:v1:command"))]
#[expect(dead_code, reason = "it describes what wire::command reads, and holds nothing")]
enum Command {
    /// Every field side by side.
    Flat(Flat),
    /// The spelling of the vendor's PHP SDK.
    Nested(Nested),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct Nested {
    /// The user, under `appid`.
    openid: Openid,
    /// The user's coupon.
    coupon_code: CouponCode,
    /// Every other field.
    json: Body,
}

/// Declares the fields of a body once, for both spellings: a flattened struct would not be strict.
macro_rules! bodies {
    ($($(#[$meta:meta])* struct $name:ident { $($before:tt)* })*) => {$(
        $(#[$meta])*
        #[derive(JsonSchema)]
        #[schemars(deny_unknown_fields, extend("oneOf" = one_order()))]
        #[expect(dead_code, reason = "as above")]
        struct $name {
            $($before)*
            /// The brand that the coupon belongs to.
            brand_id: BrandId,
            /// The product coupon that the stock belongs to.
            product_coupon_id: ProductCouponId,
            /// The stock that the coupon was issued from.
            stock_id: StockId,
            /// The app under which `openid` is known.
            appid: Appid,
            /// When the coupon was used, RFC 3339. If the seconds are missing, `:00` is added.
            use_time: UseTime,
            /// The number of this redemption. The same number with the same content takes effect at most once.
            out_request_no: RequestNo,
            /// A WeChat Pay order.
            associated_order_info: Option<PaymentOrder>,
            /// A pay-score service order.
            associated_pay_score_order_info: Option<PayScoreOrder>,
            /// The store that redeems.
            store_id: Option<StoreId>,
            /// What the user saved, in fen.
            saved_amount: Option<SavedAmount>,
            /// The round of a legacy sequential coupon, counted from 0.
            sequential_coupon_index: Option<Round>,
        }
    )*};
}

bodies! {
    struct Flat {
        /// The user, under `appid`.
        openid: Openid,
        /// The user's coupon.
        coupon_code: CouponCode,
    }
    /// Every field but the user and the coupon.
    struct Body {}
}

/// A WeChat Pay order: WeChat Pay's number, the merchant's number, or both if both mean the same order.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    extend("anyOf" = one_number("transaction_id", "out_trade_no")),
    extend("dependentRequired" = merchant_with("out_trade_no"))
)]
#[expect(dead_code, reason = "as above")]
struct PaymentOrder {
    /// WeChat Pay's number.
    transaction_id: Option<OrderNo>,
    /// The merchant's number.
    out_trade_no: Option<OrderNo>,
    /// The merchant. Required with the merchant's number, not allowed without it.
    mchid: Option<Mchid>,
    /// The sub-merchant. Optional with the merchant's number, not allowed without it.
    sub_mchid: Option<Mchid>,
}

/// A pay-score service order: WeChat Pay's number, the merchant's number, or both if both mean the same order.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    extend("anyOf" = one_number("order_id", "out_order_no")),
    extend("dependentRequired" = merchant_with("out_order_no"))
)]
#[expect(dead_code, reason = "as above")]
struct PayScoreOrder {
    /// WeChat Pay's number.
    order_id: Option<OrderNo>,
    /// The merchant's number.
    out_order_no: Option<ServiceOrderNo>,
    /// The merchant. Required with the merchant's number, not allowed without it.
    mchid: Option<Mchid>,
    /// The sub-merchant. Optional with the merchant's number, not allowed without it.
    sub_mchid: Option<Mchid>,
}

fn one_order() -> Value {
    json!([{ "required": ["associated_order_info"] }, { "required": ["associated_pay_score_order_info"] }])
}

fn one_number(ours: &str, theirs: &str) -> Value {
    json!([{ "required": [ours] }, { "required": [theirs] }])
}

fn merchant_with(number: &str) -> Value {
    json!({ number: ["mchid"], "mchid": [number], "sub_mchid": [number] })
}

/// An optional field is left out; null is a fault.
fn without_null(schema: &mut Schema) {
    let null = json!({ "type": "null" });
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get("anyOf")
        && let [Value::Object(choice), last] = &choices[..]
        && *last == null
    {
        let choice = choice.clone();
        schema.remove("anyOf");
        for (key, value) in choice {
            // The description of the field comes first, then that of its type.
            schema.ensure_object().entry(key).or_insert(value);
        }
    }
}

// ---- words

macro_rules! texts {
    ($($name:ident)*) => {$(
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let ((min, max), alphabet) = ($name::LENGTH, $name::ALPHABET);
                json_schema!({
                    "type": "string", "minLength": min, "maxLength": max, "pattern": format!("^{alphabet}+$"),
                })
            }
        }
    )*};
}

texts! { Openid CouponCode BrandId ProductCouponId StockId Appid RequestNo StoreId Mchid OrderNo ServiceOrderNo }

impl JsonSchema for UseTime {
    fn schema_name() -> Cow<'static, str> {
        "UseTime".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Only the decoder checks the calendar.
        let date = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])";
        let time = "([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\\.[0-9]{1,9})?)?";
        let zone = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
        json_schema!({ "type": "string", "pattern": format!("^{date}T{time}{zone}$") })
    }
}

impl JsonSchema for SavedAmount {
    fn schema_name() -> Cow<'static, str> {
        "SavedAmount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": SavedAmount::MAX })
    }
}

/// The round of a legacy sequential coupon.
struct Round;

impl JsonSchema for Round {
    fn schema_name() -> Cow<'static, str> {
        "Round".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": 999 })
    }
}
