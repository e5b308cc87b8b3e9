//! The fault script: which faults, for which calls, how often.
//!
//! A rule's chance depends on the seed, the coupon, the operation and how often that was called, never on the order in
//! which coupons arrive: a concurrent run fails in the same places each time.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ledger::Operation;

/// A whole script: the body of `PUT /_sandbox/faults`. It replaces the one before, with all its counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The first rule that matches a call wins.
    pub rules: Vec<Rule>,
    /// How often each rule was applied. Read-only: a written value has no effect.
    #[serde(default)]
    pub applied: Vec<u64>,
}

/// One rule. An absent member matches everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Only this coupon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coupon_code: Option<String>,
    /// Only coupons whose code begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coupon_prefix: Option<String>,
    /// Only this operation.
    #[serde(default)]
    pub operation: Target,
    /// The chance that a matching call is hit: 0 to 1, 1 where absent. A spared call goes on to the next rule.
    #[serde(default = "always")]
    pub share: f64,
    /// At most this many hits of this rule; without end where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// Only as many first calls of one coupon with one operation, counted from when the script was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempts: Option<u64>,
    /// The fault.
    pub fault: Fault,
}

/// The operations of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is the operation of the same name")]
pub enum Target {
    #[default]
    Any,
    Use,
    Query,
    Return,
    Send,
    Confirm,
    Deactivate,
    Certificates,
    Echo,
}

/// The faults of an authenticated call. "The effect" is that of the call without the fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The response comes this many milliseconds late. The effect happens at once, or, if `late_effect`, at the end of the
    /// wait, even if the client has hung up by then.
    Slow {
        /// How late.
        ms: u64,
        /// Whether the effect is as late as the response.
        #[serde(default)]
        late_effect: bool,
    },
    /// The connection closes without a byte; no effect.
    CutBeforeEffect {},
    /// The connection closes without a byte; the effect has happened.
    CutAfterEffect {},
    /// The connection closes in the middle of the body; the effect has happened.
    CutInBody {},
    /// This status instead of the genuine response.
    Status {
        /// Any from 200 to 599.
        status: u16,
        /// The `code` of the body; the usual one of the status where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        /// The `message` of the body.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// The `detail` of the body: `field`, `value`, `issue` and `location` as the provider writes them, or any other
        /// JSON; absent by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<serde_json::Value>,
        /// The end of the `Request-ID`; a usual one where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sub_code: Option<u64>,
        /// Whether it is signed; where absent, all are but 401 and 5xx.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed: Option<bool>,
        /// Whether the effect happens all the same.
        #[serde(default)]
        effect: bool,
    },
    /// A gateway's 502: HTML, unsigned, without a request id.
    #[serde(rename = "html_502")]
    Html502 {
        /// Whether the effect happens all the same.
        #[serde(default)]
        effect: bool,
    },
    /// The genuine response with the vendor's signature probe in place of a signature.
    ProbeSignature {},
    /// The genuine response under an unknown serial.
    UnknownSerial {},
    /// The genuine response with a signature of another text.
    BadSignature {},
    /// The genuine response without any `Wechatpay-` header.
    NoSignature {},
    /// The genuine response, signed as of ten minutes ago.
    StaleTimestamp {},
    /// The genuine response, signed and dated by a clock that is this many seconds ahead.
    SkewedClock {
        /// Negative: behind.
        seconds: i64,
    },
    /// An unsigned 403 `NOT_ENOUGH` in any real state; no effect.
    UnsignedRefusal {},
    /// A 200 that shows the coupon as used under the request's number, in any real state; no effect. A request without
    /// a number gets the last number of a request. It has no signature.
    ForgedSuccess {
        /// Whether it has one all the same, under the provider's serial and of another text.
        #[serde(default)]
        signed: bool,
    },
    /// The genuine response; a refusal comes without its signature.
    Unsigned {},
    /// The genuine response with a member of this many bytes, correctly signed: a list of small objects.
    HugeBody {
        /// How many more bytes.
        bytes: usize,
    },
    /// The genuine response without `product_coupon` and `stock`, correctly signed: about half as long.
    LeanBody {},
    /// The genuine response with these members put before all others, correctly signed: text, so that a name can be there twice,
    /// and a value can be what no parser makes of it.
    RawMembers {
        /// `"name": value`, one or more, joined by commas.
        members: String,
    },
    /// The genuine response with this merged into it, member by member, correctly signed; null takes a member away (RFC 7396).
    PatchedBody {
        /// What is merged.
        patch: serde_json::Value,
    },
    /// The effect happens, and the body of the response never ends.
    EndlessBody {},
    /// The genuine response with a member of this many arrays within each other, correctly signed.
    DeepJson {
        /// How deep; 100,000 where absent.
        #[serde(default = "deep")]
        depth: usize,
    },
    /// The genuine response, signed and then compressed, although the request does not accept that.
    Gzip {},
    /// The first half of the genuine body as if it were complete, with the signature of the complete body.
    TruncatedBody {},
    /// The genuine response with another `use_request_no`, correctly signed.
    WrongNumber {},
    /// The effect happens; the response to a success is "this number was already used".
    AlreadyUsedNumber {},
}

/// A script at work.
#[derive(Default)]
pub(super) struct Faults {
    rules: Vec<Rule>,
    applied: Vec<u64>,
    asked: HashMap<(Arc<str>, Operation), u64>,
}

impl Script {
    /// A script of these rules.
    pub fn of(rules: impl IntoIterator<Item = Rule>) -> Script {
        Script { rules: rules.into_iter().collect(), applied: Vec::new() }
    }
}

impl Rule {
    /// A rule that hits every call.
    pub fn new(fault: Fault) -> Rule {
        Rule {
            coupon_code: None,
            coupon_prefix: None,
            operation: Target::Any,
            share: 1.0,
            times: None,
            first_attempts: None,
            fault,
        }
    }

    fn matches(&self, operation: Operation, coupon: &str) -> bool {
        self.operation.includes(operation)
            && self.coupon_code.as_deref().is_none_or(|code| code == coupon)
            && self.coupon_prefix.as_deref().is_none_or(|prefix| coupon.starts_with(prefix))
    }
}

impl Target {
    fn includes(self, operation: Operation) -> bool {
        match self {
            Target::Any => true,
            Target::Use => operation == Operation::Use,
            Target::Query => operation == Operation::Query,
            Target::Return => operation == Operation::Return,
            Target::Send => operation == Operation::Send,
            Target::Confirm => operation == Operation::Confirm,
            Target::Deactivate => operation == Operation::Deactivate,
            Target::Certificates => operation == Operation::Certificates,
            Target::Echo => operation == Operation::Echo,
        }
    }
}

impl Fault {
    /// Its name in scripts and in the ledger.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Slow { .. } => "slow",
            Fault::CutBeforeEffect {} => "cut_before_effect",
            Fault::CutAfterEffect {} => "cut_after_effect",
            Fault::CutInBody {} => "cut_in_body",
            Fault::Status { .. } => "status",
            Fault::Html502 { .. } => "html_502",
            Fault::ProbeSignature {} => "probe_signature",
            Fault::UnknownSerial {} => "unknown_serial",
            Fault::BadSignature {} => "bad_signature",
            Fault::NoSignature {} => "no_signature",
            Fault::StaleTimestamp {} => "stale_timestamp",
            Fault::SkewedClock { .. } => "skewed_clock",
            Fault::UnsignedRefusal {} => "unsigned_refusal",
            Fault::ForgedSuccess { .. } => "forged_success",
            Fault::Unsigned {} => "unsigned",
            Fault::HugeBody { .. } => "huge_body",
            Fault::LeanBody {} => "lean_body",
            Fault::RawMembers { .. } => "raw_members",
            Fault::PatchedBody { .. } => "patched_body",
            Fault::EndlessBody {} => "endless_body",
            Fault::DeepJson { .. } => "deep_json",
            Fault::Gzip {} => "gzip",
            Fault::TruncatedBody {} => "truncated_body",
            Fault::WrongNumber {} => "wrong_number",
            Fault::AlreadyUsedNumber {} => "already_used_number",
        }
    }

    /// Whether the call does nothing.
    pub(super) fn prevents_effect(&self) -> bool {
        matches!(
            self,
            Fault::CutBeforeEffect {}
                | Fault::UnsignedRefusal {}
                | Fault::ForgedSuccess { .. }
                | Fault::Status { effect: false, .. }
                | Fault::Html502 { effect: false }
        )
    }
}

impl Faults {
    /// Starts a new script, or reports its error.
    pub(crate) fn replace(&mut self, script: Script) -> Result<(), String> {
        for (index, rule) in script.rules.iter().enumerate() {
            if !(0.0..=1.0).contains(&rule.share) {
                return Err(format!("rules[{index}].share is not from 0 to 1"));
            }
            if matches!(rule.fault, Fault::Status { status, .. } if !(200..600).contains(&status)) {
                return Err(format!("rules[{index}].fault.status is not from 200 to 599"));
            }
        }
        *self = Faults { applied: vec![0; script.rules.len()], rules: script.rules, asked: HashMap::new() };
        Ok(())
    }

    pub(crate) fn script(&self) -> Script {
        Script { rules: self.rules.clone(), applied: self.applied.clone() }
    }

    /// The fault of this call, if it has one. Calls without a coupon count as those of one nameless coupon.
    pub(crate) fn choose(&mut self, seed: u64, operation: Operation, coupon: &str) -> Option<Fault> {
        if self.rules.is_empty() {
            return None;
        }
        let asked = self.asked.entry((coupon.into(), operation)).or_default();
        *asked += 1;
        for (index, rule) in self.rules.iter().enumerate() {
            if !rule.matches(operation, coupon)
                || rule.times.is_some_and(|times| self.applied[index] >= times)
                || rule.first_attempts.is_some_and(|first| *asked > first)
                || chance(seed, index, operation, coupon, *asked) >= rule.share
            {
                continue;
            }
            self.applied[index] += 1;
            return Some(rule.fault.clone());
        }
        None
    }
}

/// From 0 to below 1, the same for the same arguments on every machine.
fn chance(seed: u64, rule: usize, operation: Operation, coupon: &str, asked: u64) -> f64 {
    let digest = Sha256::new()
        .chain_update(seed.to_be_bytes())
        .chain_update((rule as u64).to_be_bytes())
        .chain_update([operation as u8])
        .chain_update(asked.to_be_bytes())
        .chain_update(coupon)
        .finalize();
    let (first, _) = digest.split_at(4);
    let number = first.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(number) / (f64::from(u32::MAX) + 1.0)
}

fn always() -> f64 {
    1.0
}

fn deep() -> usize {
    100_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Faults {
        let mut faults = Faults::default();
        faults.replace(serde_json::from_str(json).unwrap()).unwrap();
        faults
    }

    #[test]
    fn the_first_matching_rule_wins_until_it_is_spent() {
        let mut faults = faults(
            r#"{"rules": [
                {"coupon_code": "C1", "operation": "use", "times": 1, "fault": {"kind": "cut_after_effect"}},
                {"operation": "query", "fault": {"kind": "slow", "ms": 5}},
                {"coupon_prefix": "X", "first_attempts": 2, "fault": {"kind": "html_502"}}
            ]}"#,
        );
        let mut hit = |operation, coupon| faults.choose(1, operation, coupon).map(|fault| fault.name());
        assert_eq!(hit(Operation::Use, "C2"), None);
        assert_eq!(hit(Operation::Use, "C1"), Some("cut_after_effect"));
        assert_eq!(hit(Operation::Use, "C1"), None);
        assert_eq!(hit(Operation::Query, "C1"), Some("slow"));
        assert_eq!(hit(Operation::Use, "X1"), Some("html_502"));
        assert_eq!(hit(Operation::Use, "X1"), Some("html_502"));
        assert_eq!(hit(Operation::Use, "X1"), None);
        assert_eq!(hit(Operation::Use, "X2"), Some("html_502"));
        assert_eq!(faults.script().applied, [1, 1, 3]);
    }

    #[test]
    fn chance_is_the_seeds_and_not_the_arrivals() {
        let run = |seed, order: &mut dyn Iterator<Item = u32>| {
            let mut faults = faults(r#"{"rules": [{"share": 0.3, "fault": {"kind": "no_signature"}}]}"#);
            let mut hit: Vec<u32> =
                order.filter(|n| faults.choose(seed, Operation::Use, &format!("C{n}")).is_some()).collect();
            hit.sort_unstable();
            hit
        };
        let hits = run(1, &mut (0..1000));
        assert_eq!(hits, run(1, &mut (0..1000).rev()));
        assert_ne!(hits, run(2, &mut (0..1000)));
        assert!((250..350).contains(&hits.len()), "{}", hits.len());
    }

    #[test]
    fn every_fault_is_read_back_under_its_name() {
        for json in [
            r#"{"kind":"slow","ms":5,"late_effect":true}"#,
            r#"{"kind":"cut_before_effect"}"#,
            r#"{"kind":"cut_after_effect"}"#,
            r#"{"kind":"cut_in_body"}"#,
            r#"{"kind":"status","status":429}"#,
            r#"{"kind":"status","status":400,"detail":{"field":"Wechatpay-Serial","issue":"unknown"}}"#,
            r#"{"kind":"html_502"}"#,
            r#"{"kind":"probe_signature"}"#,
            r#"{"kind":"unknown_serial"}"#,
            r#"{"kind":"bad_signature"}"#,
            r#"{"kind":"no_signature"}"#,
            r#"{"kind":"stale_timestamp"}"#,
            r#"{"kind":"skewed_clock","seconds":-400}"#,
            r#"{"kind":"unsigned_refusal"}"#,
            r#"{"kind":"forged_success","signed":true}"#,
            r#"{"kind":"unsigned"}"#,
            r#"{"kind":"huge_body","bytes":5}"#,
            r#"{"kind":"lean_body"}"#,
            r#"{"kind":"raw_members","members":"\"a\":1"}"#,
            r#"{"kind":"patched_body","patch":{"stock":{"state":1}}}"#,
            r#"{"kind":"endless_body"}"#,
            r#"{"kind":"deep_json"}"#,
            r#"{"kind":"gzip"}"#,
            r#"{"kind":"truncated_body"}"#,
            r#"{"kind":"wrong_number"}"#,
            r#"{"kind":"already_used_number"}"#,
        ] {
            let fault: Fault = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_value(&fault).unwrap()["kind"], fault.name());
        }
        serde_json::from_str::<Fault>(r#"{"kind":"gzip","level":5}"#).unwrap_err();
        serde_json::from_str::<Fault>(r#"{"kind":"unheard_of"}"#).unwrap_err();
    }

    #[test]
    fn nonsense_is_refused_and_leaves_the_script() {
        let mut faults = faults(r#"{"rules": [{"fault": {"kind": "gzip"}}]}"#);
        faults.replace(Script::of([Rule { share: 2.0, ..Rule::new(Fault::Gzip {}) }])).unwrap_err();
        let status = Fault::Status {
            status: 99,
            code: None,
            message: None,
            detail: None,
            sub_code: None,
            signed: None,
            effect: false,
        };
        faults.replace(Script::of([Rule::new(status)])).unwrap_err();
        assert_eq!(faults.script().rules.len(), 1);
    }
}
