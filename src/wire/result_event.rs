//! Writes the result event: a CloudEvent 1.0 in structured mode (`application/cloudevents+json`).
//!
//! AMQP 0-9-1 has no official CloudEvents binding, so the whole event is the body. Its `id` is a name-based UUID of
//! the brand, the openid, the coupon code, the request number and the outcome: the same command with the same outcome
//! always makes the same id, that of another brand or user never, and a subscriber drops what it has seen.

use std::borrow::Cow;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::domain::coupon::{Coupon, Reduction};
use crate::domain::evidence::{Evidence, Operation};
use crate::domain::outcome::{EstablishedBy, Outcome, OutcomeKind};
use crate::domain::reason::Reason;
use crate::domain::redemption::{
    Appid, BrandId, CouponCode, Openid, ProductCouponId, Redemption, RequestNo, StockId,
};
use crate::policy::classify::Verdict;
use crate::wire::command::{FAULTS_MAX, PartialCommand, Rejected};
use crate::wire::{coupon, schema_words};

/// `content_type` of a published event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// The space of event ids. Changing it makes every subscriber see every event again.
const ID_SPACE: Uuid = Uuid::from_u128(0x6f1c_83f1_52a5_4d38_9a5e_0c5c_56b1_7d11);

/// The largest entity that an event holds whole, in bytes. Brokers bound a message (the shipped ones to 128 KiB), and an
/// event beyond that could never be published. A quarter of the limit is left for the other members.
pub const ENTITY_BYTES_MAX: usize = 96 * 1024;

/// The size of an event of one attempt without the coupon's entity, in bytes, rounded up.
const BYTES_AROUND_ENTITY: usize = 1536;

/// An event, ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `id` of the CloudEvent and `message_id` of the AMQP message.
    pub id: Uuid,
    /// `redemption.<outcome>.<brand_id>`.
    pub routing_key: String,
    /// The outcome.
    pub kind: OutcomeKind,
    /// The CloudEvent as JSON.
    pub body: Vec<u8>,
}

/// The CloudEvent that carries an outcome.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(
    title = "redemption result event",
    extend("$id" = "urn:redeemer:schema:v1:event"),
    extend("allOf" = schema_words::by_outcome())
)]
pub struct CloudEvent<'a> {
    /// Always `1.0`.
    #[schemars(extend("const" = "1.0"))]
    specversion: &'static str,
    /// Name-based UUID of brand, openid, coupon code, request number and outcome: equal for repeats of one result.
    #[schemars(schema_with = "schema_words::uuid")]
    id: Uuid,
    /// The name of the service, a URI reference.
    #[schemars(extend("format" = "uri-reference"), length(min = 1))]
    source: &'a str,
    /// `redemption.<outcome>.v1`.
    #[serde(rename = "type")]
    #[schemars(schema_with = "schema_words::event_types")]
    kind: String,
    /// The coupon code; absent if it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CouponCode")]
    subject: Option<&'a str>,
    /// When the outcome was established, RFC 3339.
    #[schemars(schema_with = "schema_words::time")]
    time: Timestamp,
    /// Always `application/json`.
    #[schemars(extend("const" = "application/json"))]
    datacontenttype: &'static str,
    /// W3C trace context of the command, continued.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^[0-9A-Fa-f-]{55}$"))]
    traceparent: Option<&'a str>,
    /// What happened.
    data: Data<'a>,
}

/// What happened to one command.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Data<'a> {
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
    /// `redeemed`, `refused`, `invalid` or `unresolved`.
    #[schemars(schema_with = "schema_words::outcome_words")]
    outcome: &'static str,
    /// The coupon's state in the last response with a verified signature that describes the coupon; null if there was no
    /// such response, or if a later one said that the coupon does not exist, or rejected the use for a reason that the
    /// state contradicts.
    coupon_state: Option<&'a str>,
    /// `response`, `query`, `validation` or `deadline`.
    #[schemars(schema_with = "schema_words::established_by_words")]
    established_by: &'static str,
    /// Calls made for this command, including those before each delay queue.
    attempts: u32,
    /// The coupon exactly as WeChat Pay sent it, signature verified; fields may appear at any time. Types are those that
    /// WeChat Pay documents: a field of another type is passed on too. Half a surrogate pair in it is replaced by U+FFFD.
    /// A coupon that a strict JSON parser rejects, or that is too large, is reduced to its code and state. Null if only
    /// the state is known.
    #[schemars(schema_with = "coupon::schema")]
    coupon: Option<Cow<'a, RawValue>>,
    /// Why `coupon` holds no more than `coupon_code` and `coupon_state`: `size`, if WeChat Pay sent more than 98,304 bytes;
    /// `nesting`, if they were nested more than 64 levels deep; `number`, if a number in them is beyond the range of a
    /// double. Else null.
    #[schemars(extend("examples" = Reduction::ALL.map(Reduction::as_str)))]
    coupon_reduced: Option<&'static str>,
    /// Why the outcome is not `redeemed`; null if it is.
    problem: Option<Problem<'a>>,
    /// The last attempts, oldest first, at most 16.
    #[schemars(length(max = Evidence::KEPT))]
    evidence: Vec<Entry>,
}

/// Why an outcome is not `redeemed`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Problem<'a> {
    /// A word of a closed list.
    #[schemars(schema_with = "schema_words::reason_words")]
    reason: &'static str,
    /// HTTP status of the provider's rejection.
    #[schemars(range(min = 400, max = 999))]
    http_status: Option<u16>,
    /// `code` of the provider's rejection.
    code: Option<&'a str>,
    /// The number at the end of the provider's `Request-ID`.
    sub_code: Option<u64>,
    /// The provider's message, for people; never decide by it.
    message: Option<&'a str>,
    /// The provider's `Request-ID`, for its support.
    request_id: Option<&'a str>,
    /// What is wrong with an invalid command; empty for other outcomes.
    #[schemars(length(max = FAULTS_MAX))]
    faults: Vec<FaultEntry<'a>>,
}

/// One fault of an invalid command.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FaultEntry<'a> {
    /// A JSON pointer into the command; empty for the command as a whole.
    #[schemars(extend("format" = "json-pointer"))]
    pointer: &'a str,
    /// What is wrong and what is expected.
    problem: &'a str,
}

/// One call, as events and the headers of retry messages spell it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When the call began, RFC 3339.
    #[schemars(schema_with = "schema_words::time")]
    at: Timestamp,
    /// `redeem` or `query`.
    #[serde(deserialize_with = "operation_word")]
    #[schemars(schema_with = "schema_words::operation_words")]
    operation: String,
    /// The host that was called.
    host: String,
    /// HTTP status of the response; null if there was no response.
    #[serde(deserialize_with = "http_status")]
    #[schemars(range(min = 100, max = 999))]
    status: Option<u16>,
    /// `Request-ID` of the response.
    request_id: Option<String>,
    /// The serial of the key that verified the response; null if it was not verified.
    serial: Option<String>,
    /// What the result of the call means.
    #[serde(deserialize_with = "verdict_word")]
    #[schemars(schema_with = "schema_words::verdict_words")]
    verdict: String,
}

/// The headers of a retry message can be forged; an event still contains only words of the closed lists.
fn operation_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    word(deserializer, &Operation::ALL.map(Operation::as_str))
}

fn verdict_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    word(deserializer, &Verdict::WORDS)
}

fn http_status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    match Option::<u16>::deserialize(deserializer)? {
        Some(status) if !(100..=999).contains(&status) => Err(D::Error::custom("no HTTP status")),
        status => Ok(status),
    }
}

fn word<'de, D: Deserializer<'de>>(deserializer: D, known: &[&str]) -> Result<String, D::Error> {
    let word = String::deserialize(deserializer)?;
    if known.contains(&word.as_str()) { Ok(word) } else { Err(D::Error::custom("a word of no list")) }
}

impl From<&Evidence> for Entry {
    fn from(evidence: &Evidence) -> Self {
        let Evidence { at, operation, host, status, request_id, serial, verdict } = evidence.clone();
        Self { at, operation, host, status, request_id, serial, verdict }
    }
}

impl From<Entry> for Evidence {
    fn from(entry: Entry) -> Self {
        let Entry { at, operation, host, status, request_id, serial, verdict } = entry;
        Self { at, operation, host, status, request_id, serial, verdict }
    }
}

/// What an event contains beside the command and its outcome.
#[derive(Debug, Clone, Copy)]
pub struct EventContext<'a> {
    /// The name of the service: `source` of the event.
    pub source: &'a str,
    /// When the outcome was established.
    pub at: Timestamp,
    /// Trace context to continue.
    pub traceparent: Option<&'a str>,
    /// Calls made.
    pub attempts: u32,
    /// The attempts that are remembered, oldest first.
    pub evidence: &'a [Evidence],
}

/// The event for the `outcome` of a valid command.
pub fn encode(redemption: &Redemption, outcome: &Outcome, context: EventContext<'_>) -> Event {
    let coupon = outcome.coupon();
    let (entity, coupon_reduced) = coupon.map_or((None, None), embed);
    let rejection = outcome.rejection();
    let problem = outcome.reason().map(|reason| Problem {
        reason: reason.as_str(),
        http_status: rejection.map(|rejection| rejection.http_status),
        code: rejection.and_then(|rejection| rejection.code.as_deref()),
        sub_code: rejection.and_then(|rejection| rejection.sub_code),
        message: rejection.and_then(|rejection| rejection.message.as_deref()),
        request_id: rejection.and_then(|rejection| rejection.request_id.as_deref()),
        faults: Vec::new(),
    });
    let code = redemption.coupon_code.as_str();
    let number = redemption.out_request_no.as_str();
    let kind = outcome.kind();
    let data = Data {
        openid: Some(redemption.openid.as_str()),
        coupon_code: Some(code),
        brand_id: Some(redemption.brand_id.as_str()),
        product_coupon_id: Some(redemption.product_coupon_id.as_str()),
        stock_id: Some(redemption.stock_id.as_str()),
        appid: Some(redemption.appid.as_str()),
        out_request_no: Some(number),
        outcome: kind.as_str(),
        coupon_state: coupon.and_then(state_word),
        established_by: outcome.established_by().as_str(),
        attempts: context.attempts,
        coupon: entity,
        coupon_reduced,
        problem,
        evidence: Evidence::last(context.evidence).iter().map(Entry::from).collect(),
    };
    let openid = redemption.openid.as_str();
    let id = id(
        [Some("command"), Some(redemption.brand_id.as_str()), Some(openid), Some(code), Some(number)],
        kind,
    );
    write(id, kind, data, context)
}

/// The event for an invalid command. `digest` is the SHA-256 of its bytes in hex; the id of the event is made of it and of
/// the fields that could be read.
pub fn encode_invalid(rejected: &Rejected, digest: &str, context: EventContext<'_>) -> Event {
    let partial = &rejected.partial;
    let faults =
        rejected.faults.iter().map(|fault| FaultEntry { pointer: &fault.pointer, problem: &fault.problem });
    encode_unread(
        partial,
        OutcomeKind::Invalid,
        Reason::InvalidCommand,
        EstablishedBy::Validation,
        faults.collect(),
        digest,
        context,
    )
}

/// The event for a corrupt retry message: earlier calls are unknown.
pub fn encode_corrupt_retry_message(
    redemption: &Redemption,
    corruption: &str,
    digest: &str,
    context: EventContext<'_>,
) -> Event {
    let partial = PartialCommand::from(redemption);
    encode_unread(
        &partial,
        OutcomeKind::Unresolved,
        Reason::CorruptRetryMessage,
        EstablishedBy::Validation,
        vec![FaultEntry { pointer: "", problem: corruption }],
        digest,
        context,
    )
}

fn encode_unread(
    partial: &PartialCommand,
    kind: OutcomeKind,
    reason: Reason,
    by: EstablishedBy,
    faults: Vec<FaultEntry<'_>>,
    digest: &str,
    context: EventContext<'_>,
) -> Event {
    let problem = Problem {
        reason: reason.as_str(),
        http_status: None,
        code: None,
        sub_code: None,
        message: None,
        request_id: None,
        faults,
    };
    let data = Data {
        openid: partial.openid.as_ref().map(|it| it.as_str()),
        coupon_code: partial.coupon_code.as_ref().map(|it| it.as_str()),
        brand_id: partial.brand_id.as_ref().map(|it| it.as_str()),
        product_coupon_id: partial.product_coupon_id.as_ref().map(|it| it.as_str()),
        stock_id: partial.stock_id.as_ref().map(|it| it.as_str()),
        appid: partial.appid.as_ref().map(|it| it.as_str()),
        out_request_no: partial.out_request_no.as_ref().map(|it| it.as_str()),
        outcome: kind.as_str(),
        coupon_state: None,
        established_by: by.as_str(),
        attempts: context.attempts,
        coupon: None,
        coupon_reduced: None,
        problem: Some(problem),
        evidence: Evidence::last(context.evidence).iter().map(Entry::from).collect(),
    };
    let id = id([Some(digest), data.brand_id, data.openid, data.coupon_code, data.out_request_no], kind);
    write(id, kind, data, context)
}

fn write(id: Uuid, kind: OutcomeKind, data: Data<'_>, context: EventContext<'_>) -> Event {
    let word = kind.as_str();
    // The alphabet of a brand has no dot, so it is always one word of the routing key.
    let routing_key = format!("redemption.{word}.{}", data.brand_id.unwrap_or("unknown"));
    let event = CloudEvent {
        specversion: "1.0",
        id,
        source: context.source,
        kind: schema_words::event_type(kind),
        subject: data.coupon_code,
        time: context.at,
        datacontenttype: "application/json",
        traceparent: context.traceparent,
        data,
    };
    // Allocated once, or the text would be moved repeatedly while it grows.
    let entity = event.data.coupon.as_ref().map_or(0, |coupon| coupon.get().len());
    let mut body = Vec::with_capacity(entity + BYTES_AROUND_ENTITY);
    serde_json::to_writer(&mut body, &event)
        .expect("an event has string keys only and writes to memory, so it cannot fail");
    Event { id, routing_key, kind, body }
}

/// The id of an event: of the kind of identity, the brand, the openid, the coupon code and the request number, each with
/// its length before it. So different parts never make the same name, whatever they contain; a part that could not be
/// read differs from an empty one.
fn id(parts: [Option<&str>; 5], kind: OutcomeKind) -> Uuid {
    let mut name = String::with_capacity(256);
    for part in parts.into_iter().chain([Some(kind.as_str())]) {
        match part {
            Some(part) => name.extend([part.len().to_string().as_str(), ":", part, ","]),
            None => name.push_str("-,"),
        }
    }
    Uuid::new_v5(&ID_SPACE, name.as_bytes())
}

/// The entity as an event holds it, and why it is reduced if it is.
fn embed(coupon: &Coupon) -> (Option<Cow<'_, RawValue>>, Option<&'static str>) {
    if coupon.entity.len() <= ENTITY_BYTES_MAX {
        return (raw(&coupon.entity), coupon.reduced.map(Reduction::as_str));
    }
    let rest = json!({ "coupon_code": coupon.code, "coupon_state": coupon.state.as_str() }).to_string();
    let rest = (rest.len() <= ENTITY_BYTES_MAX).then(|| RawValue::from_string(rest).ok()).flatten();
    (rest.map(Cow::Owned), Some(Reduction::Size.as_str()))
}

/// The state as an event names it; an unknown word of more than 1 KiB is left out.
fn state_word(coupon: &Coupon) -> Option<&str> {
    const BYTES_MAX: usize = 1024;
    Some(coupon.state.as_str()).filter(|word| word.len() <= BYTES_MAX)
}

fn raw(entity: &str) -> Option<Cow<'_, RawValue>> {
    serde_json::from_str::<&RawValue>(entity).ok().map(Cow::Borrowed)
}

/// The first words of the routing keys that the service uses, or may use later, for its own events.
pub const RESERVED_KEYS: [&str; 3] = ["audit", "redemption", "return"];

/// Whether a routing key begins with one of [`RESERVED_KEYS`]. Keys are compared as the broker compares them: by case.
pub fn is_reserved_key(key: &str) -> bool {
    RESERVED_KEYS.contains(&key.split('.').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::domain::coupon::{CouponState, Trace, UsageTrace};
    use crate::domain::evidence::Rejection;
    use crate::wire::command::decode;

    /// As the provider might send it: blanks, a number beyond 64 bits, an unknown field, a duplicate key.
    const ENTITY: &str = r#"{ "coupon_code":"C0001" , "coupon_state": "USED",
        "surprise": {"amount": 1.0000000000000000000000000001, "big": 123456789012345678901234567890, "big": 1e3},
        "display_info": {"name": "满100减20 \u6ee1"} }"#;

    fn command() -> String {
        r#"{"openid": "oUser", "coupon_code": "C0001", "brand_id": "120344", "product_coupon_id": "1000000013",
        "stock_id": "1000000013001", "appid": "wx1", "use_time": "2026-03-05T12:30:45+08:00",
        "out_request_no": "USE_0001", "associated_order_info": {"transaction_id": "42"}}"#
            .to_owned()
    }

    fn redemption() -> Redemption {
        decode(command().as_bytes()).unwrap()
    }

    fn coupon() -> Coupon {
        Coupon {
            code: "C0001".into(),
            state: CouponState::Used,
            usage: UsageTrace::Single(Trace::default()),
            ids: Box::default(),
            entity: ENTITY.into(),
            reduced: None,
        }
    }

    fn rejection() -> Rejection {
        Rejection {
            http_status: 403,
            code: Some("NOT_ENOUGH".into()),
            sub_code: Some(268_578_776),
            message: Some("用户商品券当前无法使用".into()),
            request_id: Some("08E68E97CC06-268578776".into()),
        }
    }

    fn attempts(count: usize) -> Vec<Evidence> {
        let attempt = |n: usize| Evidence {
            at: Timestamp::from_second(1_772_685_045 + i64::try_from(n).unwrap()).unwrap(),
            operation: "redeem".to_owned(),
            host: "api.mch.weixin.qq.com".to_owned(),
            status: (n.is_multiple_of(2)).then_some(403),
            request_id: (n.is_multiple_of(2)).then(|| "08E68E97CC06-268578776".to_owned()),
            serial: (n.is_multiple_of(2)).then(|| "PUB_KEY_ID_01".to_owned()),
            verdict: if n.is_multiple_of(2) { "rejected" } else { "unknown" }.to_owned(),
        };
        (0..count).map(attempt).collect()
    }

    fn context(evidence: &[Evidence]) -> EventContext<'_> {
        EventContext {
            source: "redeemer",
            at: "2026-03-05T04:30:47Z".parse().unwrap(),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            attempts: 2,
            evidence,
        }
    }

    fn outcomes() -> [Outcome; 3] {
        let (reason, by) = (Reason::Expired, EstablishedBy::Query);
        let entity = r#"{"coupon_code": "C0001", "coupon_state": "EXPIRED"}"#.into();
        let expired = Coupon { state: CouponState::Expired, entity, ..coupon() };
        [
            Outcome::Redeemed { by: EstablishedBy::Response, coupon: coupon() },
            Outcome::Refused { reason, by, coupon: Some(expired), rejection: Some(rejection()) },
            Outcome::Unresolved { reason: Reason::DeadlinePassed, coupon: None, rejection: None },
        ]
    }

    fn reported(outcome: &Outcome) -> Event {
        encode(&redemption(), outcome, context(&attempts(2)))
    }

    fn invalid(text: &str) -> Event {
        encode_invalid(&decode(text.as_bytes()).unwrap_err(), "d1", context(&[]))
    }

    fn corrupt() -> Event {
        encode_corrupt_retry_message(
            &redemption(),
            "header x-redemption-delays is missing",
            "d1",
            context(&[]),
        )
    }

    fn parsed(event: &Event) -> Value {
        serde_json::from_slice(&event.body).unwrap()
    }

    #[test]
    fn keys_of_the_service_itself_are_reserved() {
        for key in [
            "redemption",
            "redemption.redeemed.1",
            "audit.parked.replayed",
            "audit",
            "return.",
            "redemption.",
        ] {
            assert!(is_reserved_key(key), "{key}");
        }
        for key in ["", "till.7", "redemptions", "my.redemption.x", "Redemption.x", "#", "*.redeemed.1"] {
            assert!(!is_reserved_key(key), "{key}");
        }
    }

    #[test]
    fn one_whole_event_of_each_outcome() {
        let faulty = command().replace("\"120344\"", "null").replace("appid", "app_id");
        let [redeemed, refused, unresolved] = outcomes().map(|outcome| reported(&outcome));
        for (name, event) in [
            ("redeemed", redeemed),
            ("refused", refused),
            ("unresolved", unresolved),
            ("invalid", invalid(&faulty)),
            ("corrupt", corrupt()),
        ] {
            let reported = serde_json::to_string_pretty(&parsed(&event)).unwrap();
            insta::assert_snapshot!(name, format!("{}\n{reported}", event.routing_key));
        }
    }

    #[test]
    fn id_is_equal_for_equal_results_only() {
        let ids = outcomes().map(|outcome| reported(&outcome).id);
        assert_eq!(ids, outcomes().map(|outcome| reported(&outcome).id));
        // Subscribers have stored these: another value makes them see every result again.
        assert_eq!(ids[0].to_string(), "26a03841-bca9-552e-9792-392ad8b27135");
        let other = |from: &str, to: &str| {
            let redemption = decode(command().replace(from, to).as_bytes()).unwrap();
            encode(&redemption, &outcomes()[0], context(&[])).id
        };
        let mut all = ids.to_vec();
        all.extend([other("USE_0001", "USE_0002"), other("C0001", "C0002")]);
        all.extend([other("120344", "120345"), other("oUser", "oAnother")]);
        all.extend([
            invalid("").id,
            corrupt().id,
            encode_corrupt_retry_message(&redemption(), "", "d2", context(&[])).id,
        ]);
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
        // Neither time nor attempts, nor the reason, nor what it rests on, makes it another result.
        let late = EventContext { at: Timestamp::UNIX_EPOCH, attempts: 9, ..context(&[]) };
        assert_eq!(encode(&redemption(), &outcomes()[1], late).id, ids[1]);
        let refused = Outcome::Refused {
            reason: Reason::Deleted,
            by: EstablishedBy::Response,
            coupon: None,
            rejection: None,
        };
        assert_eq!(reported(&refused).id, ids[1]);
        // Nor what the product coupon, the stock, the app or the order is.
        for (from, to) in [
            ("1000000013\"", "1000000014\""),
            ("1000000013001", "1000000013002"),
            ("wx1", "wx2"),
            ("42", "43"),
        ] {
            assert_eq!(other(from, to), ids[0], "{to}");
        }
    }

    #[test]
    fn invalid_commands_of_others_have_other_ids() {
        let of = |from: &str, to: &str, digest: &str| {
            let text = command().replace("appid", "app_id").replace(from, to);
            encode_invalid(&decode(text.as_bytes()).unwrap_err(), digest, context(&[])).id
        };
        let same = of("", "", "d1");
        assert_eq!(same, of("wx1", "wx2", "d1"), "the digest is taken for the bytes");
        let others = [
            of("120344", "120345", "d1"),
            of("oUser", "oAnother", "d1"),
            of("C0001", "C0002", "d1"),
            of("USE_0001", "USE_0002", "d1"),
            of("\"120344\"", "null", "d1"),
            of("", "", "d2"),
        ];
        let distinct: std::collections::BTreeSet<_> = others.iter().chain([&same]).collect();
        assert_eq!(distinct.len(), others.len() + 1);
    }

    #[test]
    fn id_separates_its_parts_unambiguously() {
        let of = |brand: &str, openid: &str, code: &str, number: &str| {
            let text = command().replace("120344", brand).replace("oUser", openid);
            let text = text.replace("C0001", code).replace("USE_0001", number);
            encode(&decode(text.as_bytes()).unwrap(), &outcomes()[0], context(&[])).id
        };
        assert_ne!(of("B", "oU", "C0001A", "BCDEFG"), of("B", "oU", "C0001", "ABCDEFG"));
        assert_ne!(of("B", "oUC", "0001", "ABCDEFG"), of("B", "oU", "C0001", "ABCDEFG"));
        assert_ne!(of("Bo", "U", "C0001", "ABCDEFG"), of("B", "oU", "C0001", "ABCDEFG"));
        assert_ne!(of("oU", "B", "C0001", "ABCDEFG"), of("B", "oU", "C0001", "ABCDEFG"));
    }

    proptest::proptest! {
        /// Different parts make a different id, whether or not they can be read.
        #[test]
        fn no_two_identities_make_one_id(
            one in proptest::array::uniform5(proptest::option::of("[0-9:,a-]{0,4}")),
            other in proptest::array::uniform5(proptest::option::of("[0-9:,a-]{0,4}")),
        ) {
            let of = |parts: &[Option<String>; 5]| id(parts.each_ref().map(Option::as_deref), OutcomeKind::Redeemed);
            proptest::prop_assert_eq!(one == other, of(&one) == of(&other));
        }
    }

    #[test]
    fn the_id_in_the_body_is_the_id_of_the_message() {
        for event in outcomes().iter().map(reported).chain([invalid("{}"), corrupt()]) {
            assert_eq!(parsed(&event)["id"], event.id.to_string());
            assert_eq!(parsed(&event)["type"], format!("redemption.{}.v1", event.kind.as_str()));
            assert_eq!(parsed(&event)["data"]["outcome"], event.kind.as_str());
        }
    }

    #[test]
    fn the_entity_is_passed_through_byte_for_byte() {
        let body = String::from_utf8(reported(&outcomes()[0]).body).unwrap();
        assert!(body.contains(&format!("\"coupon\":{ENTITY},")), "{body}");
        assert!(body.contains("\"coupon_state\":\"USED\""));
    }

    #[test]
    fn entity_beyond_its_bound_is_reduced() {
        let sized = |bytes: usize| {
            let around = r#"{"coupon_code":"C0001","coupon_state":"USED","pad":""}"#;
            format!("{}{}\"}}", &around[..around.len() - 2], "x".repeat(bytes - around.len()))
        };
        for (bytes, whole) in
            [(200, true), (ENTITY_BYTES_MAX, true), (ENTITY_BYTES_MAX + 1, false), (256 * 1024, false)]
        {
            let entity = sized(bytes);
            assert_eq!(entity.len(), bytes);
            let coupon = Coupon { entity: entity.as_str().into(), ..coupon() };
            let outcome = Outcome::Redeemed { by: EstablishedBy::Response, coupon };
            let event = encode(&redemption(), &outcome, context(&attempts(100)));
            assert!(event.body.len() < 128 * 1024, "{} bytes", event.body.len());
            let data = &parsed(&event)["data"];
            let rest = json!({ "coupon_code": "C0001", "coupon_state": "USED" });
            let reported: Value = if whole { serde_json::from_str(&entity).unwrap() } else { rest };
            assert_eq!(data["coupon"], reported, "{bytes}");
            assert_eq!(data["coupon_reduced"], if whole { Value::Null } else { json!("size") }, "{bytes}");
            assert_eq!(data["coupon_state"], "USED");
        }
    }

    #[test]
    fn state_beyond_its_bound_is_left_out() {
        let long = "X".repeat(128 * 1024);
        let entity = json!({ "coupon_code": "C0001", "coupon_state": long }).to_string();
        let state = CouponState::from_wire(&long);
        let coupon = Coupon { state, entity: entity.as_str().into(), ..coupon() };
        let outcome = Outcome::Unresolved {
            reason: Reason::DeadlinePassed,
            coupon: Some(coupon),
            rejection: Some(rejection()),
        };
        let event = reported(&outcome);
        let data = &parsed(&event)["data"];
        assert_eq!((&data["coupon"], &data["coupon_state"]), (&Value::Null, &Value::Null));
        assert_eq!(data["coupon_reduced"], "size");
        assert!(event.body.len() < 4096, "{}", event.body.len());
    }

    #[test]
    fn unknown_state_is_reported_as_spelled() {
        let coupon = Coupon { state: CouponState::from_wire("FRO\"ZEN"), ..coupon() };
        let event = reported(&Outcome::Redeemed { by: EstablishedBy::Response, coupon });
        assert_eq!(parsed(&event)["data"]["coupon_state"], "FRO\"ZEN");
    }

    #[test]
    fn the_routing_key_has_the_outcome_and_the_brand() {
        let [redeemed, refused, unresolved] = outcomes().map(|outcome| reported(&outcome).routing_key);
        assert_eq!(redeemed, "redemption.redeemed.120344");
        assert_eq!(refused, "redemption.refused.120344");
        assert_eq!(unresolved, "redemption.unresolved.120344");
        assert_eq!(corrupt().routing_key, "redemption.unresolved.120344");
        assert_eq!(invalid("{}").routing_key, "redemption.invalid.unknown");
        let faulty = command().replace("wx1", "");
        assert_eq!(invalid(&faulty).routing_key, "redemption.invalid.120344");
        let dotted = command().replace("120344", "120344.#");
        assert_eq!(invalid(&dotted).routing_key, "redemption.invalid.unknown");
    }

    #[test]
    fn last_sixteen_attempts_are_reported() {
        let event = encode(&redemption(), &outcomes()[2], context(&attempts(100)));
        let reported = parsed(&event)["data"]["evidence"].as_array().unwrap().clone();
        assert_eq!(reported.len(), Evidence::KEPT);
        assert_eq!(reported[15]["at"], "2026-03-05T04:32:24Z");
    }
}
