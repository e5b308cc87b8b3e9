//! The closed words and shapes of events, for their schemas.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::domain::evidence::Operation;
use crate::domain::outcome::{EstablishedBy, OutcomeKind};
use crate::domain::reason::Reason;
use crate::policy::classify::Verdict;

pub(super) fn one_of<const N: usize>(words: [&'static str; N]) -> Schema {
    json_schema!({ "type": "string", "enum": words.as_slice() })
}

/// `type` of the event of an outcome.
pub(super) fn event_type(kind: OutcomeKind) -> String {
    format!("redemption.{}.v1", kind.as_str())
}

/// `type` of a result event.
pub(super) fn event_types(_: &mut SchemaGenerator) -> Schema {
    let types = OutcomeKind::ALL.map(event_type);
    json_schema!({ "type": "string", "enum": types.as_slice() })
}

/// `data.outcome`.
pub(super) fn outcome_words(_: &mut SchemaGenerator) -> Schema {
    one_of(OutcomeKind::ALL.map(OutcomeKind::as_str))
}

/// `data.established_by`.
pub(super) fn established_by_words(_: &mut SchemaGenerator) -> Schema {
    one_of(EstablishedBy::ALL.map(EstablishedBy::as_str))
}

/// `problem.reason`.
pub(super) fn reason_words(_: &mut SchemaGenerator) -> Schema {
    one_of(Reason::ALL.map(Reason::as_str))
}

/// `operation` of an attempt.
pub(super) fn operation_words(_: &mut SchemaGenerator) -> Schema {
    one_of(Operation::ALL.map(Operation::as_str))
}

/// `verdict` of an attempt.
pub(super) fn verdict_words(_: &mut SchemaGenerator) -> Schema {
    one_of(Verdict::WORDS)
}

/// `type` of an audit event.
pub(super) fn audit_types(_: &mut SchemaGenerator) -> Schema {
    one_of(["redemption.parked.replayed.v1", "redemption.parked.discarded.v1"])
}

/// An RFC 3339 time in UTC.
pub(super) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time", "pattern": "Z$" })
}

/// A name-based UUID.
pub(super) fn uuid(_: &mut SchemaGenerator) -> Schema {
    let pattern = "^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$";
    json_schema!({ "type": "string", "format": "uuid", "pattern": pattern })
}

/// What an outcome means for the other fields: one rule for each.
pub(super) fn by_outcome() -> Value {
    let text = json!({ "type": "string" });
    let read =
        ["openid", "coupon_code", "brand_id", "product_coupon_id", "stock_id", "appid", "out_request_no"];
    let rule = |kind: OutcomeKind| {
        let by =
            |ways: &[EstablishedBy]| json!({ "enum": ways.iter().map(|by| by.as_str()).collect::<Vec<_>>() });
        let mut data = json!({ "outcome": { "const": kind.as_str() } });
        if kind != OutcomeKind::Invalid {
            for field in read {
                data[field] = text.clone();
            }
        }
        match kind {
            OutcomeKind::Redeemed => {
                data["problem"] = json!({ "type": "null" });
                data["coupon"] = json!({ "type": "object" });
                data["coupon_state"] = text.clone();
                data["established_by"] = by(&[EstablishedBy::Response, EstablishedBy::Query]);
            }
            OutcomeKind::Refused => {
                data["problem"] = json!({ "type": "object" });
                data["established_by"] = by(&[EstablishedBy::Response, EstablishedBy::Query]);
            }
            OutcomeKind::Invalid => {
                let reason = json!({ "const": Reason::InvalidCommand.as_str() });
                let properties = json!({ "reason": reason, "faults": { "minItems": 1 } });
                data["problem"] = json!({ "type": "object", "properties": properties });
                data["coupon"] = json!({ "type": "null" });
                data["coupon_state"] = json!({ "type": "null" });
                data["established_by"] = by(&[EstablishedBy::Validation]);
            }
            OutcomeKind::Unresolved => {
                data["problem"] = json!({ "type": "object" });
                data["established_by"] = by(&[EstablishedBy::Validation, EstablishedBy::Deadline]);
            }
        }
        json!({
            "if": { "properties": { "type": { "const": event_type(kind) } } },
            "then": { "properties": { "data": { "properties": data } } },
        })
    };
    Value::Array(OutcomeKind::ALL.map(rule).to_vec())
}
