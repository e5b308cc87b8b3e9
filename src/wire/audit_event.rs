//! Writes the audit event: what an operator did with a parked command, who, and why. A CloudEvent like a result event, on
//! the same exchange, under `audit.parked.<word>`, so a subscriber of results does not receive it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::domain::evidence::Evidence;
use crate::domain::redemption::{Appid, BrandId, CouponCode, Openid, ProductCouponId, RequestNo, StockId};
use crate::wire::command::PartialCommand;
use crate::wire::result_event::Entry;
use crate::wire::schema_words;

/// The space of audit ids.
const ID_SPACE: Uuid = Uuid::from_u128(0x7a4e_0d1c_93b8_4c56_8e02_b1f7_3d60_c9a4);

/// An audit event, ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// `id` of the CloudEvent and `message_id` of the AMQP message.
    pub id: Uuid,
    /// `type` of the CloudEvent and of the AMQP message.
    pub kind: String,
    /// `audit.parked.<word>`.
    pub routing_key: String,
    /// The CloudEvent as JSON.
    pub body: Vec<u8>,
}

/// What an operator did with a parked command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorAction {
    /// Published to the command exchange again.
    Republished,
    /// A query showed that it had taken effect: published as redeemed.
    PublishedRedeemed,
    /// A query showed that it has not and will not take effect: published as refused.
    PublishedRefused,
    /// Removed from the queue without another event.
    Discarded,
}

impl OperatorAction {
    /// Every action, for schemas.
    pub const ALL: [Self; 4] =
        [Self::Republished, Self::PublishedRedeemed, Self::PublishedRefused, Self::Discarded];

    /// The word in the type and the routing key.
    pub fn type_word(self) -> &'static str {
        match self {
            Self::Republished | Self::PublishedRedeemed | Self::PublishedRefused => "replayed",
            Self::Discarded => "discarded",
        }
    }

    /// The result of the action: `data.effect`.
    pub fn effect(self) -> &'static str {
        match self {
            Self::Republished => "republished",
            Self::PublishedRedeemed => "published_redeemed",
            Self::PublishedRefused => "published_refused",
            Self::Discarded => "discarded",
        }
    }
}

/// What an audit event reports.
#[derive(Debug, Clone, Copy)]
pub struct AuditContext<'a> {
    /// The name of the service: `source` of the event.
    pub source: &'a str,
    /// When it was done.
    pub at: Timestamp,
    /// What was done.
    pub action: OperatorAction,
    /// The operator, by the name that they gave.
    pub operator: &'a str,
    /// Why, in the operator's words.
    pub because: Option<&'a str>,
    /// Why the command was parked.
    pub reason: &'a str,
    /// When it was parked, if that is known.
    pub parked_at: Option<Timestamp>,
    /// SHA-256 of its bytes in hex.
    pub sha256: &'a str,
    /// The number of its bytes.
    pub bytes: usize,
    /// Its identifying fields, as far as they can be read.
    pub partial: &'a PartialCommand,
    /// The query that it rests on.
    pub query: Option<&'a Evidence>,
    /// The coupon's state, if the query returned it.
    pub coupon_state: Option<&'a str>,
}

/// The CloudEvent that carries an operator's action.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "audit event of a parked command", extend("$id" = "urn:redeemer:schema:v1:audit"))]
pub struct CloudEvent<'a> {
    /// Always `1.0`.
    #[schemars(extend("const" = "1.0"))]
    specversion: &'static str,
    /// Name-based UUID of the bytes, the time of parking and the effect: equal for repeats of one action.
    #[schemars(schema_with = "schema_words::uuid")]
    id: Uuid,
    /// The name of the service, a URI reference.
    #[schemars(extend("format" = "uri-reference"), length(min = 1))]
    source: &'a str,
    /// `redemption.parked.replayed.v1` or `redemption.parked.discarded.v1`.
    #[serde(rename = "type")]
    #[schemars(schema_with = "schema_words::audit_types")]
    kind: &'a str,
    /// The coupon code; absent if it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CouponCode")]
    subject: Option<&'a str>,
    /// When it was done, RFC 3339.
    #[schemars(schema_with = "schema_words::time")]
    time: Timestamp,
    /// Always `application/json`.
    #[schemars(extend("const" = "application/json"))]
    datacontenttype: &'static str,
    /// What was done.
    data: Data<'a>,
}

/// What an operator did with one parked command.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Data<'a> {
    /// `republished`, `published_redeemed`, `published_refused` or `discarded`.
    #[schemars(schema_with = "effects")]
    effect: &'static str,
    /// The operator, by the name that they gave.
    operator: &'a str,
    /// Why, in the operator's words.
    because: Option<&'a str>,
    /// Why the command was parked.
    parked_reason: &'a str,
    /// When it was parked, RFC 3339.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    parked_at: Option<Timestamp>,
    /// SHA-256 of all bytes of the message, in hex.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    body_sha256: &'a str,
    /// How many bytes.
    body_bytes: usize,
    /// The user, as the command named it.
    #[schemars(with = "Option<Openid>")]
    openid: Option<&'a str>,
    /// The coupon, as the command named it.
    #[schemars(with = "Option<CouponCode>")]
    coupon_code: Option<&'a str>,
    /// The brand, as the command named it.
    #[schemars(with = "Option<BrandId>")]
    brand_id: Option<&'a str>,
    /// The product coupon, as the command named it.
    #[schemars(with = "Option<ProductCouponId>")]
    product_coupon_id: Option<&'a str>,
    /// The stock, as the command named it.
    #[schemars(with = "Option<StockId>")]
    stock_id: Option<&'a str>,
    /// The app, as the command named it.
    #[schemars(with = "Option<Appid>")]
    appid: Option<&'a str>,
    /// The request number, as the command named it.
    #[schemars(with = "Option<RequestNo>")]
    out_request_no: Option<&'a str>,
    /// The coupon's state, if the query returned it.
    coupon_state: Option<&'a str>,
    /// The query that the action is based on.
    query: Option<Entry>,
}

/// Encodes the audit event.
pub fn encode(context: AuditContext<'_>) -> Audit {
    let AuditContext { source, at, action, operator, because, reason, parked_at, sha256, bytes, .. } =
        context;
    let AuditContext { partial, query, coupon_state, .. } = context;
    let kind = format!("redemption.parked.{}.v1", action.type_word());
    let parked = parked_at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let id = Uuid::new_v5(&ID_SPACE, [sha256, &parked, action.effect()].join("\n").as_bytes());
    let coupon_code = partial.coupon_code.as_ref().map(|it| it.as_str());
    let event = CloudEvent {
        specversion: "1.0",
        id,
        source,
        kind: &kind,
        subject: coupon_code,
        time: at,
        datacontenttype: "application/json",
        data: Data {
            effect: action.effect(),
            operator,
            because,
            parked_reason: reason,
            parked_at,
            body_sha256: sha256,
            body_bytes: bytes,
            openid: partial.openid.as_ref().map(|it| it.as_str()),
            coupon_code,
            brand_id: partial.brand_id.as_ref().map(|it| it.as_str()),
            product_coupon_id: partial.product_coupon_id.as_ref().map(|it| it.as_str()),
            stock_id: partial.stock_id.as_ref().map(|it| it.as_str()),
            appid: partial.appid.as_ref().map(|it| it.as_str()),
            out_request_no: partial.out_request_no.as_ref().map(|it| it.as_str()),
            coupon_state,
            query: query.map(Entry::from),
        },
    };
    let body = serde_json::to_vec(&event)
        .expect("an event has string keys only and writes to memory, so it cannot fail");
    Audit { id, routing_key: format!("audit.parked.{}", action.type_word()), kind, body }
}
/// `data.effect` of an audit event.
fn effects(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_words::one_of(OperatorAction::ALL.map(OperatorAction::effect))
}
