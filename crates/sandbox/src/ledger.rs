//! The ledger: every call and its effect. It is the oracle of every test, so nothing is left out or rounded.
//!
//! An attempt is entered on arrival and completed with its response, whether or not the client still listens.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::coupon::{Coupon, as_text};

/// What an operation changed: the ledger makes an effect of it.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub kind: EffectKind,
    pub coupon_code: Arc<str>,
    pub round: usize,
    pub out_request_no: Option<Arc<str>>,
    pub body: Option<BodyDigest>,
}

/// The operation of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `POST …/use`.
    Use,
    /// `GET …/coupons/{coupon_code}`.
    Query,
    /// `POST …/return`.
    Return,
    /// `POST …/coupons`.
    Send,
    /// `POST …/confirm`.
    Confirm,
    /// `POST …/deactivate`.
    Deactivate,
    /// `GET /v3/certificates`.
    Certificates,
    /// `POST /v3/security/echo`.
    Echo,
    /// Any other method or path.
    Unknown,
}

/// The effect on a coupon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    /// A redemption, by the API or from outside.
    Used,
    /// The return of one.
    Returned,
    /// It was sent by the API. Issuing by the control API leaves no effect.
    Sent,
    /// It was confirmed.
    Confirmed,
    /// It was withdrawn.
    Deactivated,
    /// The user deleted it.
    Deleted,
    /// Its time ended.
    Expired,
}

/// The SHA-256 of a body; written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BodyDigest([u8; 32]);

/// One complete call.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    /// Its place among attempts and effects together, from 1, by arrival.
    pub sequence: u64,
    /// Arrival, in microseconds since the start of the sandbox.
    pub at_us: u64,
    /// Arrival, by the system's clock.
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
    /// How long the response took, in microseconds; absent until then.
    pub took_us: Option<u64>,
    /// The operation.
    pub operation: Operation,
    /// The first and the last three characters of the user.
    pub openid: Option<Arc<str>>,
    /// From the path.
    pub coupon_code: Option<Arc<str>>,
    /// From the body, however wrong the rest of it was.
    pub out_request_no: Option<Arc<str>>,
    /// Of the body as received.
    pub body_sha256: BodyDigest,
    /// From the `Authorization` header, whether or not it is valid.
    pub mchid: Option<Arc<str>>,
    /// Whether the signature was one of the merchant's.
    pub authenticated: bool,
    /// The name of the fault that the script applied.
    pub fault: Option<&'static str>,
    /// The status of the response, `"cut"`, or nothing until then.
    pub answered: Option<ResponseRecord>,
    /// The number at the end of the `Request-ID` of the response.
    pub sub_code: Option<u64>,
    /// Of the body that was signed; absent until then.
    pub answer_sha256: Option<BodyDigest>,
}

/// The response to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResponseRecord {
    /// With this status.
    Status(u16),
    /// None: the connection was closed.
    Cut,
}

/// One change of a coupon.
#[derive(Clone, Debug, Serialize)]
pub struct Effect {
    /// Its place among attempts and effects together, from 1.
    pub sequence: u64,
    /// In microseconds since the start of the sandbox.
    pub at_us: u64,
    /// By the system's clock.
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
    /// Its kind.
    pub kind: EffectKind,
    /// Whose.
    pub coupon_code: Arc<str>,
    /// Which round; 0 but for the legacy mode.
    pub round: usize,
    /// The number of the request, or the one made up for an external action; none for time and the user.
    pub out_request_no: Option<Arc<str>>,
    /// The SHA-256 of the request body; none for what no request did.
    pub body_sha256: Option<BodyDigest>,
}

/// A copy of everything: the response of `GET /_sandbox/ledger`.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// All coupons, by code.
    pub coupons: Vec<Coupon>,
    /// All effects, oldest first.
    pub effects: Vec<Effect>,
    /// All attempts since the last clearing, oldest first.
    pub attempts: Vec<Attempt>,
}

/// The response of `GET /_sandbox/summary`. Counts of attempts are since the last clearing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All coupons there are.
    pub coupons: usize,
    /// All attempts.
    pub attempts: usize,
    /// Attempts without a response yet.
    pub unanswered: usize,
    /// Attempts whose signature was not the merchant's.
    pub unauthenticated: usize,
    /// By status, or `"cut"`.
    pub by_status: BTreeMap<String, u64>,
    /// By operation.
    pub by_operation: BTreeMap<String, u64>,
    /// By the name of the fault.
    pub by_fault: BTreeMap<String, u64>,
    /// All effects.
    pub effects: usize,
    /// By kind.
    pub effects_by_kind: BTreeMap<String, u64>,
    /// The most calls in one second since the start, counted by arrival in whole seconds.
    pub busiest_second: BusiestSecond,
}

/// The second with the most calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BusiestSecond {
    /// Whole seconds since the start.
    pub second: u64,
    /// Calls that arrived in it.
    pub calls: u64,
}

/// The time of an entry, by both clocks.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub at_us: u64,
    pub at: Timestamp,
}

/// An attempt on its arrival.
pub(super) struct PendingAttempt {
    pub operation: Operation,
    pub openid: Option<Arc<str>>,
    pub coupon_code: Option<Arc<str>>,
    pub out_request_no: Option<Arc<str>>,
    pub body: BodyDigest,
    pub mchid: Option<Arc<str>>,
}

#[derive(Default)]
pub(super) struct Ledger {
    last_sequence: u64,
    attempts: Vec<Attempt>,
    effects: Vec<Effect>,
    calls_by_second: BTreeMap<u64, u64>,
}

impl BodyDigest {
    /// The digest of these bytes.
    pub fn of(body: &[u8]) -> BodyDigest {
        BodyDigest(Sha256::digest(body).into())
    }
}

impl std::fmt::Display for BodyDigest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl std::fmt::Debug for BodyDigest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for BodyDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::fmt::Display for ResponseRecord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ResponseRecord::Status(status) => write!(formatter, "{status}"),
            ResponseRecord::Cut => formatter.write_str("cut"),
        }
    }
}

impl Serialize for ResponseRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ResponseRecord::Status(status) => serializer.serialize_u16(*status),
            ResponseRecord::Cut => serializer.serialize_str("cut"),
        }
    }
}

impl Ledger {
    /// Enters an attempt and returns its sequence.
    pub(crate) fn record_arrival(&mut self, moment: Moment, arrival: PendingAttempt) -> u64 {
        *self.calls_by_second.entry(moment.at_us / 1_000_000).or_default() += 1;
        let sequence = self.next();
        self.attempts.push(Attempt {
            sequence,
            at_us: moment.at_us,
            at: moment.at,
            took_us: None,
            operation: arrival.operation,
            openid: arrival.openid,
            coupon_code: arrival.coupon_code,
            out_request_no: arrival.out_request_no,
            body_sha256: arrival.body,
            mchid: arrival.mchid,
            authenticated: false,
            fault: None,
            answered: None,
            sub_code: None,
            answer_sha256: None,
        });
        sequence
    }

    /// The entry of an attempt, to be completed; none if the ledger was cleared meanwhile.
    pub(crate) fn attempt(&mut self, sequence: u64) -> Option<&mut Attempt> {
        let index = self.attempts.binary_search_by_key(&sequence, |attempt| attempt.sequence).ok()?;
        self.attempts.get_mut(index)
    }

    /// The number of the last attempt on a coupon that had one.
    pub(crate) fn last_number_of(&self, coupon_code: &str) -> Option<Arc<str>> {
        let mut latest = self.attempts.iter().rev();
        latest.find_map(|attempt| {
            attempt.out_request_no.clone().filter(|_| attempt.coupon_code.as_deref() == Some(coupon_code))
        })
    }

    pub(crate) fn record(&mut self, moment: Moment, change: Change) {
        let sequence = self.next();
        self.effects.push(Effect {
            sequence,
            at_us: moment.at_us,
            at: moment.at,
            kind: change.kind,
            coupon_code: change.coupon_code,
            round: change.round,
            out_request_no: change.out_request_no,
            body_sha256: change.body,
        });
    }

    pub(crate) fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    pub(crate) fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// Whole seconds since the start, and the calls that arrived in each.
    pub(crate) fn calls_by_second(&self) -> &BTreeMap<u64, u64> {
        &self.calls_by_second
    }

    /// Clears the attempts. Effects and calls by second stay.
    pub(crate) fn clear_attempts(&mut self) {
        self.attempts = Vec::new();
    }

    pub(crate) fn summary(&self, coupons: usize) -> Summary {
        let mut summary = Summary {
            coupons,
            attempts: self.attempts.len(),
            effects: self.effects.len(),
            busiest_second: self.busiest_second(),
            ..Summary::default()
        };
        for attempt in &self.attempts {
            match attempt.answered {
                Some(answered) => count(&mut summary.by_status, answered.to_string()),
                None => summary.unanswered += 1,
            }
            summary.unauthenticated += usize::from(attempt.answered.is_some() && !attempt.authenticated);
            count(&mut summary.by_operation, name(attempt.operation));
            if let Some(fault) = attempt.fault {
                count(&mut summary.by_fault, fault.to_owned());
            }
        }
        for effect in &self.effects {
            count(&mut summary.effects_by_kind, name(effect.kind));
        }
        summary
    }

    fn busiest_second(&self) -> BusiestSecond {
        self.calls_by_second.iter().max_by_key(|(_, calls)| **calls).map_or_else(
            BusiestSecond::default,
            |(second, calls)| BusiestSecond { second: *second, calls: *calls },
        )
    }

    fn next(&mut self) -> u64 {
        self.last_sequence += 1;
        self.last_sequence
    }
}

/// `oXy…k3w`: enough to distinguish users in a test, too little to address one.
pub(super) fn shortened(openid: &str) -> Arc<str> {
    let characters: Vec<char> = openid.chars().collect();
    match characters.as_slice() {
        [first @ .., _, _, _] if first.len() > 6 => {
            let tail = &characters[characters.len() - 3..];
            format!("{}…{}", first[..3].iter().collect::<String>(), tail.iter().collect::<String>()).into()
        }
        _ => openid.into(),
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: String) {
    *counts.entry(name).or_default() += 1;
}

/// The name that serde gives a unit variant.
fn name(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_entered_on_arrival_and_completed_later() {
        let mut ledger = Ledger::default();
        let moment = |at_us| Moment { at_us, at: Timestamp::UNIX_EPOCH };
        let arrival = || PendingAttempt {
            operation: Operation::Use,
            openid: Some(shortened("oUpF8uMuAJO_M2pxb1Q9zNjWeS6o")),
            coupon_code: Some("C1".into()),
            out_request_no: None,
            body: BodyDigest::of(b""),
            mchid: None,
        };
        let first = ledger.record_arrival(moment(5), arrival());
        ledger.record_arrival(moment(1_000_001), arrival());
        ledger.record_arrival(moment(1_999_999), arrival());
        ledger.attempt(first).unwrap().answered = Some(ResponseRecord::Cut);
        let summary = ledger.summary(0);
        assert_eq!((summary.attempts, summary.unanswered), (3, 2));
        assert_eq!(summary.by_status, BTreeMap::from([("cut".to_owned(), 1)]));
        assert_eq!(summary.busiest_second, BusiestSecond { second: 1, calls: 2 });

        let text = serde_json::to_value(&ledger.attempts()[0]).unwrap();
        assert_eq!(text["openid"], "oUp…S6o");
        assert_eq!(text["answered"], "cut");
        assert_eq!(text["body_sha256"], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");

        ledger.clear_attempts();
        assert!(ledger.attempt(first).is_none());
    }
}
