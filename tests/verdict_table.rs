//! The meaning of every call result, enumerated in full and written to `docs/verdicts.md` for review.
//!
//! The page is compared with what the code does; `UPDATE=1 cargo test --test verdict_table` rewrites it.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::fmt::Write as _;

use redeemer::domain::coupon::{Coupon, Usage};
use redeemer::domain::evidence::Operation;
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::classify::{
    Authenticity, CallResult, NoResponse, NotAccepted, NotSent, Response, SignatureFlaw, SuspendReason,
    UnknownCause, Verdict, classify,
};
use redeemer::wechat::response;
use redeemer::wire::command;
use serde_json::{Value, json};

const OURS: &str = "USE_0001";
const SINGLE: &str = include_str!("fixtures/coupon_single.json");
const PROGRESSIVE: &str = include_str!("fixtures/coupon_progressive_bundle.json");
const SEQUENTIAL: &str = include_str!("fixtures/coupon_sequential.json");

const AUTHENTICITIES: [Authenticity; 7] = [
    Authenticity::Verified,
    Authenticity::Unsigned,
    Authenticity::Invalid(SignatureFlaw::Malformed),
    Authenticity::Invalid(SignatureFlaw::UnknownSerial),
    Authenticity::Invalid(SignatureFlaw::Stale),
    Authenticity::Invalid(SignatureFlaw::Mismatch),
    Authenticity::Invalid(SignatureFlaw::Replayed),
];

/// Every code of the "use" page, of related pages and of the platform's common rules, and unknown ones.
const CODES: [&str; 25] = [
    "PARAM_ERROR",
    "INVALID_REQUEST",
    "SIGN_ERROR",
    "NOT_ENOUGH",
    "NOT_FOUND",
    "RATELIMIT_EXCEEDED",
    "SYSTEM_ERROR",
    "ALREADY_EXISTS",
    "OUT_TRADE_NO_USED",
    "NO_AUTH",
    "NOAUTH",
    "FREQUENCY_LIMITED",
    "FREQUENCY_LIMIT_EXCEED",
    "FREQUENCY_LIMIT",
    "FREQENCY_LIMIT",
    "RATE_LIMITED",
    "RULE_LIMIT",
    "RULELIMIT",
    "REQUEST_BLOCKED",
    "RESOURCE_NOT_EXISTS",
    "SERVICE_UNAVAILABLE",
    "ERROR",
    "no_auth",
    "",
    "SOMETHING_NEW",
];

/// The documented numbers at the end of `Request-ID`, with their meaning in the provider's manual.
const SUB_CODES: [(u64, &str); 24] = [
    (272_756_745, "already redeemed under another number"),
    (272_756_746, "locked by a concurrent redemption"),
    (268_578_927, "same number, other data"),
    (268_578_367, "illegal state"),
    (268_578_776, "expired"),
    (272_756_790, "expired, no further operation"),
    (272_755_715, "outside the absolute validity"),
    (272_755_717, "outside the weekly or irregular period"),
    (272_756_769, "deleted by the user"),
    (268_578_851, "no such user coupon"),
    (268_584_404, "illegal store"),
    (268_435_461, "illegal parameter"),
    (268_435_462, "parameter too long"),
    (268_435_463, "parameter too short"),
    (268_435_464, "parameter out of range"),
    (268_578_101, "illegal parameters"),
    (268_578_224, "illegal parameters, see detail"),
    (268_578_526, "openid of another app"),
    (268_578_704, "illegal appid"),
    (268_578_608, "not there, or not created by us"),
    (268_579_803, "no permission for this API"),
    (270_924_289, "too frequent"),
    (269_546_525, "signature failure"),
    (0, "success"),
];

fn redemption(code: &str, round: Option<u32>) -> Redemption {
    let mut command = json!({
        "openid": "oUser", "coupon_code": code, "brand_id": "120344", "product_coupon_id": "1000000077",
        "stock_id": "1000000077001", "appid": "wx1", "use_time": "2026-03-05T12:30:45+08:00",
        "out_request_no": OURS, "associated_order_info": {"transaction_id": "4200002600202603051234567890"},
    });
    if let Some(round) = round {
        command["sequential_coupon_index"] = json!(round);
    }
    command::decode(command.to_string().as_bytes()).unwrap()
}

fn answer(status: u16, authenticity: Authenticity) -> Response {
    Response {
        status,
        authenticity,
        code: None,
        sub_code: None,
        coupon: None,
        message: None,
        request_id: None,
    }
}

fn words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Redeemed => "**redeemed**".to_owned(),
        Verdict::Refused(reason) => format!("**refused**: {}", reason.as_str()),
        Verdict::Rejected { reason, may_be_our_own_use: true } => {
            format!("rejected, unverified: {}", reason.as_str())
        }
        Verdict::Rejected { reason, may_be_our_own_use: false } => format!("rejected: {}", reason.as_str()),
        Verdict::NotExecuted => "not executed".to_owned(),
        Verdict::NotAccepted(NotAccepted::TooFrequent) => "not accepted: too frequent".to_owned(),
        Verdict::NotAccepted(NotAccepted::NotAuthorized) => "not accepted: not authorized".to_owned(),
        Verdict::NotAccepted(NotAccepted::Locked) => "not accepted: locked".to_owned(),
        Verdict::NotSent => "not sent".to_owned(),
        Verdict::Unknown(UnknownCause::NoResponse) => "unknown: no response".to_owned(),
        Verdict::Unknown(UnknownCause::ServerError) => "unknown: server error".to_owned(),
        Verdict::Unknown(UnknownCause::Unverified) => "unknown: not verified".to_owned(),
        Verdict::Unknown(UnknownCause::Accepted) => "unknown: accepted only".to_owned(),
        Verdict::Unknown(UnknownCause::TooFrequent) => "unknown: too frequent".to_owned(),
        Verdict::Unknown(UnknownCause::NoNumber) => "unknown: used without a number".to_owned(),
        Verdict::Unknown(UnknownCause::NoNumberNextUsable) => {
            "unknown: used without a number, next round usable".to_owned()
        }
        Verdict::Unknown(UnknownCause::Contradiction) => "unknown: contradiction".to_owned(),
        Verdict::Unknown(UnknownCause::AnotherCoupon) => "unknown: another coupon".to_owned(),
        Verdict::Unknown(UnknownCause::Unexpected) => "unknown: unexpected".to_owned(),
        Verdict::Unknown(UnknownCause::MayBeCommon(_)) => "unknown: may be common".to_owned(),
        Verdict::Suspended(SuspendReason::Unauthenticated) => "**suspended**: unauthenticated".to_owned(),
        Verdict::Suspended(SuspendReason::Unauthorized) => "**suspended**: unauthorized".to_owned(),
        Verdict::Suspended(SuspendReason::Rejected) => "**suspended**: rejected".to_owned(),
        Verdict::RejectedAlike(_) => "**suspended**: rejected alike".to_owned(),
        Verdict::NotAuthorized => "not authorized".to_owned(),
    }
}

// ---- the laws, over every status, code, number and signature

/// Whether a code belongs to a status. An undocumented code belongs to any 4xx.
fn belongs(status: u16, code: &str) -> bool {
    let documented: &[u16] = match code {
        "" => &[],
        "PARAM_ERROR" | "INVALID_REQUEST" => &[400],
        "SIGN_ERROR" => &[401],
        "NOT_ENOUGH" | "NO_AUTH" | "NOAUTH" | "RULE_LIMIT" | "RULELIMIT" | "REQUEST_BLOCKED" => &[403],
        "NOT_FOUND" | "RESOURCE_NOT_EXISTS" => &[404],
        "SYSTEM_ERROR" | "SERVICE_UNAVAILABLE" => &[500, 502, 503],
        "RATELIMIT_EXCEEDED"
        | "FREQUENCY_LIMITED"
        | "FREQUENCY_LIMIT_EXCEED"
        | "FREQUENCY_LIMIT"
        | "FREQENCY_LIMIT"
        | "RATE_LIMITED" => &[403, 429],
        _ => return true,
    };
    documented.contains(&status)
}

/// The names of "too frequent".
fn says_too_frequent(code: &str) -> bool {
    belongs(429, code) && !belongs(400, code)
}

/// Whether an answer is a signed error body whose code belongs under its status: only these are rejections.
fn rejects(answer: &Response) -> bool {
    answer.authenticity == Authenticity::Verified
        && answer.coupon.is_none()
        && (400..500).contains(&answer.status)
        && answer.status != 408
        && answer.code.as_deref().is_some_and(|code| belongs(answer.status, code))
}

/// Panics if a verdict on `answer` breaks a law that holds for every response.
fn obey(operation: Operation, answer: &Response, verdict: &Verdict, standing: Option<&Usage>) {
    let verified = answer.authenticity == Authenticity::Verified;
    let redeem = operation == Operation::Redeem;
    let (rejects, seen) = (rejects(answer), verified && answer.status == 200 && answer.coupon.is_some());
    let lawful = match verdict {
        Verdict::Redeemed => {
            let is_unnumbered = matches!(standing, Some(Usage::NoNumber | Usage::UsableBesideNoNumber));
            seen && (standing == Some(&Usage::Ours) || redeem && is_unnumbered)
        }
        Verdict::Refused(Reason::NoSuchCoupon) => !redeem && rejects && answer.status == 404,
        Verdict::Refused(_) => !redeem && seen,
        Verdict::Rejected { reason, may_be_our_own_use: may_be_ours } => {
            rejects && Reason::REJECTIONS.contains(reason) && (*may_be_ours || !reason.may_be_our_own_use())
        }
        Verdict::NotExecuted => !redeem && seen && standing == Some(&Usage::Usable),
        Verdict::NotAccepted(_) => rejects,
        Verdict::NotSent | Verdict::Unknown(UnknownCause::NoResponse) => false,
        Verdict::Suspended(fault) => {
            *fault == SuspendReason::Unauthenticated && answer.status == 401 && (rejects || !verified)
        }
        Verdict::RejectedAlike(_) => false,
        Verdict::NotAuthorized => rejects && answer.status == 403,
        Verdict::Unknown(_) => true,
    };
    assert!(lawful, "{operation:?} {answer:?} -> {verdict:?}");
    let wanted = match (answer.status, verified) {
        (401, false) => *verdict == Verdict::Suspended(SuspendReason::Unauthenticated),
        (429, false) => *verdict == Verdict::Unknown(UnknownCause::TooFrequent),
        (200..=299, false) => *verdict == Verdict::Unknown(UnknownCause::Unverified),
        (202, true) => *verdict == Verdict::Unknown(UnknownCause::Accepted),
        (408, true) => *verdict == Verdict::Unknown(UnknownCause::Unexpected),
        (400..=499, false) => *verdict == Verdict::Unknown(UnknownCause::Unverified),
        (400..=499, true) if !rejects => *verdict == Verdict::Unknown(UnknownCause::Contradiction),
        (401, true) => *verdict == Verdict::Suspended(SuspendReason::Unauthenticated),
        (429, true) if answer.code.as_deref().is_some_and(says_too_frequent) => {
            *verdict == Verdict::NotAccepted(NotAccepted::TooFrequent)
        }
        (429, true) => *verdict == Verdict::Unknown(UnknownCause::TooFrequent),
        (500..=599, _) => *verdict == Verdict::Unknown(UnknownCause::ServerError),
        (100..=199 | 300..=399, true) => *verdict == Verdict::Unknown(UnknownCause::Unexpected),
        (100..=199 | 300..=399, false) => *verdict == Verdict::Unknown(UnknownCause::Unverified),
        _ => true,
    };
    assert!(wanted, "{operation:?} {answer:?} -> {verdict:?}");
}

/// No code, every documented one, and unknown ones.
fn codes() -> Vec<Option<&'static str>> {
    [None].into_iter().chain(CODES.map(Some)).collect()
}

/// No number, two unknown ones, and every documented one.
fn numbers() -> Vec<Option<u64>> {
    let documented = SUB_CODES.map(|(number, _)| Some(number));
    [None, Some(1), Some(u64::MAX)].into_iter().chain(documented).collect()
}

/// The verdicts on a redemption and on a query, each signed and not verified.
type Verdicts = [Verdict; 4];

/// The verdicts under one status: for each of [`codes`], on each of [`numbers`]. Checks every law.
fn under(status: u16, redemption: &Redemption) -> Vec<Vec<Verdicts>> {
    let mut reply = CallResult::Response(answer(status, Authenticity::Verified));
    let mut verdict = |operation, authenticity, code: Option<&str>, number| {
        let CallResult::Response(answer) = &mut reply else { unreachable!() };
        answer.authenticity = authenticity;
        if answer.code.as_deref() != code {
            answer.code = code.map(Into::into);
        }
        answer.sub_code = number;
        let verdict = classify(operation, &reply, redemption);
        let CallResult::Response(answer) = &reply else { unreachable!() };
        obey(operation, answer, &verdict, None);
        verdict
    };
    let mut verdicts = |code, number| {
        let [redeem, query] = Operation::ALL.map(|operation| {
            let [verified, unsigned, unconvincing @ ..] =
                AUTHENTICITIES.map(|authenticity| verdict(operation, authenticity, code, number));
            // One column is enough: a bad signature counts the same as none.
            for as_little in unconvincing {
                assert_eq!(as_little, unsigned, "{operation:?} {status} {code:?} {number:?}");
            }
            [verified, unsigned]
        });
        let ([redeem, redeem_unsigned], [query, query_unsigned]) = (redeem, query);
        [redeem, redeem_unsigned, query, query_unsigned]
    };
    let numbers = numbers();
    codes().into_iter().map(|code| numbers.iter().map(|number| verdicts(code, *number)).collect()).collect()
}

/// Groups keys with equal values, in the order of first appearance.
fn fold<K: Copy, V: PartialEq>(all: impl IntoIterator<Item = (K, V)>) -> Vec<(Vec<K>, V)> {
    let mut groups: Vec<(Vec<K>, V)> = Vec::new();
    for (key, value) in all {
        match groups.iter_mut().find(|(_, known)| *known == value) {
            Some((keys, _)) => keys.push(key),
            None => groups.push((vec![key], value)),
        }
    }
    groups
}

#[test]
fn every_coupon_keeps_the_laws_under_every_status_and_signature() {
    for case in coupons() {
        let redemption = redemption(case.code, case.round);
        let coupon = case.coupon();
        for operation in Operation::ALL {
            let standing = standing(&coupon, &redemption);
            for authenticity in AUTHENTICITIES {
                for status in 100..=599 {
                    for code in [None, Some("NOT_ENOUGH"), Some("NOT_FOUND")] {
                        let (code, coupon) = (code.map(Into::into), Some(coupon.clone()));
                        let answer = Response { code, coupon, ..answer(status, authenticity) };
                        let reply = CallResult::Response(answer.clone());
                        obey(operation, &answer, &classify(operation, &reply, &redemption), Some(&standing));
                    }
                }
            }
        }
    }
}

#[test]
fn a_message_is_never_judged_by() {
    let redemption = redemption("C1", None);
    for operation in Operation::ALL {
        for authenticity in AUTHENTICITIES {
            for status in 100..=599 {
                let silent = answer(status, authenticity);
                let message = Some("已使用过此单号核销券 NO_AUTH RATE_LIMITED PARAM_ERROR 200 OK".into());
                let request_id = Some("08E6-272756746".into());
                let loud = Response { message, request_id, ..silent.clone() };
                let verdict = |answer| classify(operation, &CallResult::Response(answer), &redemption);
                assert_eq!(verdict(silent), verdict(loud), "{operation:?} {status} {authenticity:?}");
            }
        }
    }
}

#[test]
fn locked_and_too_frequent_count_only_where_the_code_belongs() {
    let redemption = redemption("C1", None);
    let check = |status: u16, code: &str, number: Option<u64>, declined: NotAccepted| {
        for authenticity in AUTHENTICITIES {
            let answer =
                Response { code: Some(code.into()), sub_code: number, ..answer(status, authenticity) };
            let verdict = classify(Operation::Redeem, &CallResult::Response(answer.clone()), &redemption);
            assert_eq!(verdict == Verdict::NotAccepted(declined), rejects(&answer), "{answer:?}");
        }
    };
    for status in (400..=499).filter(|status| ![401, 429].contains(status)) {
        check(status, "NOT_ENOUGH", Some(272_756_746), NotAccepted::Locked);
        check(status, "RATE_LIMITED", None, NotAccepted::TooFrequent);
        check(status, "FREQUENCY_LIMITED", Some(0), NotAccepted::TooFrequent);
    }
}

#[test]
fn request_id_never_makes_a_rejection_less_careful() {
    let redemption = redemption("C1", None);
    for status in 400..=499 {
        for code in codes() {
            let verdict = |sub_code| {
                let code = code.map(Into::into);
                let answer = Response { code, sub_code, ..answer(status, Authenticity::Verified) };
                classify(Operation::Redeem, &CallResult::Response(answer), &redemption)
            };
            let plain = verdict(None);
            for number in numbers() {
                let refined = verdict(number);
                let lawful = match (&plain, &refined) {
                    (
                        Verdict::Rejected { may_be_our_own_use: may_be_ours, .. },
                        Verdict::Rejected { may_be_our_own_use: more, .. },
                    ) => more >= may_be_ours,
                    // Both say, signed, that the request was not executed.
                    (Verdict::Rejected { may_be_our_own_use: may_be_ours, .. }, Verdict::NotAccepted(_)) => {
                        !may_be_ours
                    }
                    // The body is sent again only after queries that show no use of ours.
                    (Verdict::Rejected { .. }, Verdict::Unknown(_)) => true,
                    (plain, refined) => plain == refined,
                };
                assert!(lawful, "{status} {code:?} {number:?}: {plain:?} -> {refined:?}");
            }
        }
    }
}

// ---- coupons, from bodies as the provider sends them

/// A coupon, and the redemption `USE_0001`.
struct Case {
    shape: &'static str,
    detail: String,
    code: &'static str,
    round: Option<u32>,
    body: Value,
}

impl Case {
    fn coupon(&self) -> Coupon {
        response::coupon(self.body.to_string().as_bytes())
            .unwrap_or_else(|| panic!("not read: {}", self.body))
    }
}

fn trace(used: Option<&str>, returned: Option<&str>) -> Value {
    let mut trace = json!({});
    if let Some(used) = used {
        trace["use_request_no"] = json!(used);
        trace["use_time"] = json!("2026-03-05T12:30:45+08:00");
        trace["associated_order_info"] = json!({"transaction_id": "4200002600202603051234567890"});
    }
    if let Some(returned) = returned {
        trace["return_request_no"] = json!(returned);
        trace["return_time"] = json!("2026-03-06T08:00:00+08:00");
    }
    trace
}

fn in_words(trace: &Value) -> String {
    let reported = |name: &str| trace[name].as_str().map(|number| format!("{name} {number}"));
    let reported: Vec<_> = ["use_request_no", "return_request_no"].into_iter().filter_map(reported).collect();
    if reported.is_empty() { "empty".to_owned() } else { reported.join(", ") }
}

fn coupons() -> Vec<Case> {
    let mut cases = Vec::new();
    let (ours, other) = (Some(OURS), Some("OTHER_01"));
    for (shape, text, member, code) in [
        ("single", SINGLE, "single_usage_detail", "Code_7f3a91c2"),
        ("progressive bundle", PROGRESSIVE, "progressive_bundle_usage_detail", "BNDL0003"),
    ] {
        let mut add = |state: &str, trace: Value, another: Option<(&str, Value)>, detail: Option<&str>| {
            let mut body: Value = serde_json::from_str(text).unwrap();
            body["coupon_state"] = json!(state);
            let detail = detail.map_or_else(|| in_words(&trace), str::to_owned);
            body[member] = trace;
            if let Some((name, value)) = another {
                body[name] = value;
            }
            cases.push(Case { shape, detail, code, round: None, body });
        };
        add("USED", trace(ours, None), None, None);
        add("USED", trace(ours, Some("R1")), None, None);
        add("USED", trace(other, None), None, None);
        add("USED", trace(other, Some("R1")), None, None);
        add("USED", json!({}), None, None);
        add("USED", json!({"use_request_no": ""}), None, Some("use_request_no given, but empty"));
        add("EFFECTIVE", json!({}), None, None);
        add("EFFECTIVE", Value::Null, None, Some("null"));
        add("EFFECTIVE", trace(None, Some("R1")), None, None);
        add("EFFECTIVE", trace(ours, Some("R1")), None, None);
        add("EFFECTIVE", trace(ours, None), None, None);
        for state in ["CONFIRMING", "PENDING", "EXPIRED", "DELETED", "DEACTIVATED"] {
            add(state, json!({}), None, None);
        }
        add("EXPIRED", trace(None, Some("R1")), None, None);
        add("EXPIRED", trace(ours, None), None, None);
        add("EXPIRED", trace(ours, Some("R1")), None, None);
        add("DELETED", trace(other, Some("R1")), None, None);
        add("FROZEN", json!({}), None, None);
        // Blocks that do not apply may be present, empty.
        let beside = if member == "single_usage_detail" {
            "progressive_bundle_usage_detail"
        } else {
            "single_usage_detail"
        };
        add(
            "USED",
            trace(ours, None),
            Some((beside, json!({}))),
            Some("ours; the other block is there, empty"),
        );
        add(
            "USED",
            trace(ours, None),
            Some(("sequential_usage_detail", json!({}))),
            Some("ours; a sequential block is there, empty"),
        );
        add(
            "USED",
            trace(ours, None),
            Some(("coupon_code", json!("C_ANOTHER"))),
            Some("ours, but another coupon_code"),
        );
        let text: Value = serde_json::from_str(text).unwrap();
        let of_another = |pointer: &str| {
            let mut body = text.clone();
            *body.pointer_mut(pointer).unwrap() = json!("4711");
            body
        };
        let places = ["/brand_id", "/product_coupon/brand_id", "/product_coupon/product_coupon_id"];
        for pointer in
            places.into_iter().chain(["/stock/brand_id", "/stock/product_coupon_id", "/stock/stock_id"])
        {
            let (name, whole) = (pointer[1..].split('/').next().unwrap(), of_another(pointer));
            let detail = format!("ours, but another {}", &pointer[1..]);
            add("USED", trace(ours, None), Some((name, whole[name].clone())), Some(&detail));
        }
    }
    for round in [Some(0), Some(1), None] {
        let shape = match round {
            Some(0) => "sequential, round 0",
            Some(_) => "sequential, round 1",
            None => "sequential, no round named",
        };
        let mut add = |state: &str, rounds: &[(&str, Value)]| {
            let mut body: Value = serde_json::from_str(SEQUENTIAL).unwrap();
            body["coupon_state"] = json!(state);
            let list = rounds.iter().map(|(state, trace)| {
                let mut item = trace.clone();
                item["detail_state"] = json!(state);
                item["valid_begin_time"] = json!("2026-01-01T00:00+08:00");
                item["valid_end_time"] = json!("2026-01-30T23:59:59+08:00");
                item
            });
            body["sequential_usage_detail"]["detail_item_list"] = list.collect();
            let reported = rounds.iter().map(|(state, trace)| match in_words(trace) {
                reported if reported == "empty" => (*state).to_owned(),
                reported => format!("{state} {reported}"),
            });
            let detail = format!("[{}]", reported.collect::<Vec<_>>().join("; "));
            cases.push(Case { shape, detail, code: "123446565767", round, body });
        };
        let none = || trace(None, None);
        add("EFFECTIVE", &[("EFFECTIVE", none())]);
        add("EFFECTIVE", &[("USED", trace(ours, None)), ("EFFECTIVE", none())]);
        add("EFFECTIVE", &[("USED", trace(other, None)), ("EFFECTIVE", none())]);
        add("EFFECTIVE", &[("USED", trace(other, None)), ("USED", trace(ours, None)), ("EFFECTIVE", none())]);
        add("USED", &[("USED", trace(other, None)), ("USED", trace(ours, None))]);
        add("USED", &[("USED", trace(other, None)), ("USED", trace(Some("OTHER_02"), None))]);
        add("EFFECTIVE", &[("EFFECTIVE", trace(None, Some("R1")))]);
        add("EFFECTIVE", &[("USED", trace(other, None)), ("EFFECTIVE", trace(None, Some("R1")))]);
        add("EFFECTIVE", &[("USED", none()), ("EFFECTIVE", none())]);
        add("EFFECTIVE", &[("USED", trace(other, Some("R1"))), ("EFFECTIVE", none())]);
        add("EFFECTIVE", &[("EFFECTIVE", trace(ours, Some("R1"))), ("EFFECTIVE", none())]);
        add("EFFECTIVE", &[("USED", trace(other, None)), ("PENDING", none())]);
        add("EXPIRED", &[("USED", trace(ours, None)), ("EXPIRED", none())]);
        add("DELETED", &[("USED", trace(other, None)), ("EFFECTIVE", none())]);
        add("EFFECTIVE", &[]);
    }
    cases
}

fn standing(coupon: &Coupon, redemption: &Redemption) -> Usage {
    let Redemption { coupon_code, out_request_no, sequential_coupon_index, .. } = redemption;
    match coupon.is_of(redemption) {
        true => coupon.usage(coupon_code, out_request_no, *sequential_coupon_index),
        false => Usage::AnotherCoupon,
    }
}

#[test]
fn the_entity_is_kept_as_it_was_sent() {
    for text in [SINGLE, PROGRESSIVE, SEQUENTIAL] {
        let padded = format!("\n {}\n", text.trim());
        assert_eq!(*response::coupon(padded.as_bytes()).unwrap().entity, *text.trim());
    }
}

/// A signed USED under our number was not believed for a member that decides nothing.
#[test]
fn members_that_decide_nothing_make_no_coupon_unbelievable() {
    let used = |more: &str| {
        format!(
            r#"{{"coupon_code":"Code_7f3a91c2","coupon_state":"USED",{more}
            "single_usage_detail":{{"use_request_no":"{OURS}"}}}}"#
        )
        .into_bytes()
    };
    let traced = |more: &str| {
        format!(
            r#"{{"coupon_code":"Code_7f3a91c2","coupon_state":"USED",
            "single_usage_detail":{{"use_request_no":"{OURS}",{more}}}}}"#
        )
        .into_bytes()
    };
    let rounds = |beside: &str| {
        format!(
            r#"{{"coupon_code":"Code_7f3a91c2","coupon_state":"EFFECTIVE","sequential_usage_detail":
            {{"detail_item_list":[{beside},{{"detail_state":"USED","use_request_no":"{OURS}"}}]}}}}"#
        )
        .into_bytes()
    };
    let at = |body: &[u8], old: &[u8], new: &[u8]| {
        let place = body.windows(old.len()).position(|window| window == old).unwrap();
        [&body[..place], new, &body[place + old.len()..]].concat()
    };
    let named = used(r#""product_coupon":{"display_info":{"name":"NAME"}},"#);
    let believed = [
        ("brand a number", used(r#""brand_id":120344,"#)),
        ("brand null", used(r#""brand_id":null,"#)),
        ("brand an object", used(r#""brand_id":{"id":"4711"},"#)),
        ("brand empty", used(r#""brand_id":"","#)),
        ("brand twice", used(r#""brand_id":"120344","brand_id":120344,"#)),
        ("stock a list", used(r#""stock":[],"#)),
        ("stock a list that is not empty", used(r#""stock":[1],"#)),
        ("stock a text", used(r#""stock":"none","#)),
        ("stock twice", used(r#""stock":{},"stock":{"brand_id":"120344"},"#)),
        ("product coupon a number", used(r#""product_coupon":7,"#)),
        ("ids as numbers", used(r#""stock":{"brand_id":120344,"stock_id":1000000077001},"#)),
        ("control characters", at(&named, b"NAME", b"a\tb\nc\x00d\x1f")),
        ("a control character in a name", used("\"na\x01me\":1,")),
        ("invalid UTF-8", at(&named, b"NAME", b"\xff\xe4\xb8")),
        ("half of a character before the mark", at(&named, b"NAME", b"\xe4")),
        ("half of a surrogate pair", at(&named, b"NAME", br"\ud800")),
        ("all at once", at(&named, b"NAME", b"\xff\x01\\ud800\\\"\x02")),
        ("time of return a number", traced(r#""return_request_no":"R1","return_time":1772685045"#)),
        ("time of return twice", traced(r#""return_time":"x","return_time":[]"#)),
        ("number of return a number", traced(r#""return_request_no":20260305"#)),
        ("sequential block an empty list", used(r#""sequential_usage_detail":[],"#)),
        ("other block an empty list", used(r#""progressive_bundle_usage_detail":[],"#)),
        ("other block a text", used(r#""progressive_bundle_usage_detail":"","#)),
        ("order of another type", traced(r#""associated_order_info":"none","saved_amount":"20""#)),
        ("state of another round null", rounds(r#"{"detail_state":null}"#)),
        ("state of another round absent", rounds("{}")),
        ("another round null", rounds("null")),
        ("another round an empty list", rounds("[]")),
    ];
    let redemption = redemption("Code_7f3a91c2", None);
    for (name, body) in &believed {
        let coupon = response::coupon(body).unwrap_or_else(|| panic!("{name}: not read"));
        assert_eq!(standing(&coupon, &redemption), Usage::Ours, "{name}");
        assert!(serde_json::from_str::<Value>(&coupon.entity).is_ok(), "{name}: {}", coupon.entity);
        assert!(!coupon.entity.contains(|sign: char| sign < ' ' && sign != '\n'), "{name}");
    }
    // What contradicts still does, and what decides is read strictly.
    let other = [
        ("another brand", used(r#""brand_id":"4711","#), Some(Usage::AnotherCoupon)),
        ("another brand, a number", used(r#""brand_id":4711,"#), Some(Usage::AnotherCoupon)),
        ("two brands", used(r#""brand_id":"120344","brand_id":"4711","#), Some(Usage::AnotherCoupon)),
        ("another stock", used(r#""stock":{"stock_id":4711},"#), Some(Usage::AnotherCoupon)),
        ("two stocks", used(r#""stock":{},"stock":{"brand_id":1},"#), Some(Usage::AnotherCoupon)),
        ("state twice", used(r#""coupon_state":"USED","#), None),
        ("code twice", used(r#""coupon_code":"Code_7f3a91c2","#), None),
        ("block twice", used(r#""single_usage_detail":{},"#), None),
        ("number twice", traced(r#""use_request_no":"OTHER_01""#), None),
        ("number unreadable", at(&used(""), OURS.as_bytes(), b"USE_\xff"), None),
        ("number with a control character", at(&used(""), OURS.as_bytes(), b"USE_\x01"), None),
        ("text not ended", at(&used(""), b"USED\",", b"USED,"), None),
        ("state of the round null", at(&rounds("{}"), br#""USED""#, b"null"), Some(Usage::Unclear)),
        ("no round is ours", at(&rounds("{}"), OURS.as_bytes(), b"OTHER_01"), Some(Usage::Unclear)),
    ];
    for (name, body, expected) in other {
        let read = response::coupon(&body).map(|coupon| standing(&coupon, &redemption));
        assert_eq!(read, expected, "{name}");
    }
    let error = |body: &[u8]| response::error(body).code;
    for body in [
        &br#"{"code":"NOT_ENOUGH","message":7}"#[..],
        b"{\"code\":\"NOT_ENOUGH\",\"message\":\"a\xff\x01\"}",
        br#"{"message":"a","message":"b","detail":1,"detail":{},"code":"NOT_ENOUGH"}"#,
    ] {
        assert_eq!(error(body).as_deref(), Some("NOT_ENOUGH"), "{}", String::from_utf8_lossy(body));
    }
    for body in [&br#"{"code":"NOT_ENOUGH","code":"NOT_FOUND"}"#[..], br#"{"code":7}"#, b"[]"] {
        assert_eq!(error(body), None, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn what_is_not_a_coupon_is_not_read_as_one() {
    for text in [
        "",
        "{}",
        "null",
        "[]",
        "<html></html>",
        "{\"coupon_code\": \"C1\"}",
        "{\"coupon_state\": \"USED\"}",
        r#"{"coupon_code": "C1", "coupon_state": 4}"#,
        r#"{"coupon_code": "C1", "coupon_state": "USED""#,
        r#"{"coupon_code": "C1", "coupon_state": "USED", "coupon_state": "EFFECTIVE"}"#,
        r#"{"coupon_code": "C1", "coupon_state": "USED", "single_usage_detail": {"use_request_no": 7}}"#,
    ] {
        assert_eq!(response::coupon(text.as_bytes()), None, "{text}");
    }
    assert_eq!(response::coupon(b"\xff{}"), None);
}

#[test]
fn error_bodies_are_read_as_far_as_they_go() {
    let check = |body: &str, code: Option<&str>, message: Option<&str>| {
        let error = response::error(body.as_bytes());
        assert_eq!((error.code.as_deref(), error.message.as_deref()), (code, message), "{body}");
    };
    check(
        r#"{"code":"PARAM_ERROR","message":"参数错误","detail":{"value":null}}"#,
        Some("PARAM_ERROR"),
        Some("参数错误"),
    );
    let seen = r#"{"code":"SIGN_ERROR","detail":{"detail":{"issue":"sign not match"},"location":"authorization"},"message":"x"}"#;
    check(seen, Some("SIGN_ERROR"), Some("x (location authorization, issue sign not match)"));
    let documented = r#"{"code":"PARAM_ERROR","message":"参数错误","detail":{"field":"/associated_order_info/mchid","value":
        "oh-394z-6CGkNoJrsDLTTUKiAnp4","issue":"wrong","location":"body"}}"#;
    let expected = "参数错误 (field /associated_order_info/mchid, location body, issue wrong)";
    check(documented, Some("PARAM_ERROR"), Some(expected));
    // A detail of another shape is ignored.
    for detail in ["7", "[]", "\"x\"", r#"{"field":7,"issue":[],"location":{}}"#] {
        let body = format!(r#"{{"code":"PARAM_ERROR","message":"x","detail":{detail}}}"#);
        check(&body, Some("PARAM_ERROR"), Some("x"));
    }
    check("<html>502</html>", None, None);
    check("", None, None);
    let long = format!(r#"{{"code":"{}","message":"{}"}}"#, "C".repeat(999), "参".repeat(999));
    let error = response::error(long.as_bytes());
    assert_eq!(error.code.unwrap().len(), 64);
    let message = error.message.unwrap();
    assert!(message.len() <= response::MESSAGE_BYTES_MAX && message.len() > response::MESSAGE_BYTES_MAX - 3);
}

/// The named field or header shows the likely cause of a rejection.
#[test]
fn detail_is_about_our_headers_or_names_a_field() {
    let check = |field: &str, location: &str, ours: bool, theirs: bool| {
        let body = serde_json::json!({"code": "PARAM_ERROR", "detail": {"field": field, "location": location, "issue": "x"}});
        let detail = response::error(body.to_string().as_bytes()).detail.unwrap();
        assert_eq!(
            (detail.is_about_our_headers(), detail.names_a_field()),
            (ours, theirs),
            "{field} {location}"
        );
    };
    for field in [
        "Wechatpay-Serial",
        "wechatpay-serial",
        "/Wechatpay-Serial",
        "Authorization",
        "User-Agent",
        "Accept",
        "Content-Type",
    ] {
        check(field, "", true, false);
        check(field, "header", true, false);
    }
    check("serial_no", "authorization", true, false);
    check("mchid", "authorization", true, false);
    check("", "header", true, false);
    for field in
        ["/appid", "/associated_order_info/mchid", "/out_request_no", "openid", "coupon_code", "brand_id"]
    {
        check(field, "body", false, true);
        check(field, "url", false, true);
        check(field, "", false, true);
    }
    for field in
        ["body.appid", "$.stock_id", "/body/use_time", "query.brand_id", "associated_order_info.mchid"]
    {
        check(field, "body", false, true);
    }
    check("", "body", false, false);
    // No request sends these as a part of its command: what is wrong with them may be wrong with every call.
    for field in [
        "mchid",
        "/mchid",
        "body.mchid",
        "serial_no",
        "nonce_str",
        "signature",
        "sp_mchid",
        "api",
        "request",
        "appid_list",
        "/x/appid",
        "/",
        "参数",
    ] {
        for location in ["body", "url", ""] {
            check(field, location, false, false);
        }
    }
}

/// What is sent of a command is what counts as its own.
#[test]
fn every_field_of_a_request_counts_as_the_commands_own() {
    for text in [
        include_str!("../docs/contract/examples/command.flat.json"),
        include_str!("../docs/contract/examples/command.pay-score.json"),
    ] {
        let redemption = redeemer::wire::command::decode(text.as_bytes()).unwrap();
        let body: serde_json::Value =
            serde_json::from_slice(redeemer::wechat::client::Prepared::new(&redemption).body()).unwrap();
        let names = body.as_object().unwrap().keys().cloned();
        let names: Vec<_> = names.chain(["openid".to_owned(), "coupon_code".to_owned()]).collect();
        assert!(names.len() >= 8, "{names:?}");
        for field in names {
            let error = serde_json::json!({"code": "PARAM_ERROR", "detail": {"field": format!("/{field}")}});
            let detail = response::error(error.to_string().as_bytes()).detail.unwrap();
            assert!(detail.names_a_field(), "{field}");
        }
    }
}

#[test]
fn the_number_is_what_follows_the_last_dash() {
    let check = |id: &str, number: Option<u64>| assert_eq!(response::sub_code(id), number, "{id}");
    check("08E68E97CC0610DF0618AC86BCA80120082880CF05-268578704", Some(268_578_704));
    check("08E6-C405-0", Some(0));
    check("08E6", None);
    check("", None);
    check("08E6-", None);
    check("08E6-12x", None);
    check("08E6-99999999999999999999", None);
}

// ---- the page

struct Page(String);

impl Page {
    fn head(&mut self, title: &str, note: &str, columns: &[&str]) {
        writeln!(self.0, "\n## {title}\n\n{note}\n\n| {} |", columns.join(" | ")).unwrap();
        writeln!(self.0, "|{}", " --- |".repeat(columns.len())).unwrap();
    }

    fn row(&mut self, cells: &[String]) {
        writeln!(self.0, "| {} |", cells.join(" | ")).unwrap();
    }
}

/// Statuses as a person writes them: `400, 402–407`.
fn spans(statuses: &[u16]) -> String {
    let runs = statuses.chunk_by(|one, next| one + 1 == *next);
    let reported = runs.map(|run| match (run[0], run[run.len() - 1]) {
        (first, last) if first == last => format!("{first}"),
        (first, last) => format!("{first}–{last}"),
    });
    reported.collect::<Vec<_>>().join(", ")
}

/// The codes or numbers of a group; the group with "none" also holds every one that no other group names.
fn named<T: Copy + PartialEq>(group: &[Option<T>], groups: usize, spell: impl Fn(T) -> String) -> String {
    match (group.contains(&None), groups) {
        (true, 1) => "any".to_owned(),
        (true, _) => "any other, or none".to_owned(),
        (false, _) => group.iter().copied().flatten().map(spell).collect::<Vec<_>>().join(", "),
    }
}

fn page() -> String {
    let mut page = Page(PREFACE.to_owned());

    page.head("No response", "What the network did.", &["what happened", "redeem", "query"]);
    for (what, reply) in [
        (
            "no connection was made (DNS, refused, timeout while connecting, TLS)",
            CallResult::NotSent(NotSent::Connect),
        ),
        ("no response within the time limit", CallResult::NoResponse(NoResponse::Timeout)),
        ("the connection ended before the end of the response", CallResult::NoResponse(NoResponse::Reset)),
        ("the response was larger than the limit", CallResult::NoResponse(NoResponse::TooLarge)),
    ] {
        let verdict = |operation| words(&classify(operation, &reply, &redemption("C1", None)));
        page.row(&[what.to_owned(), verdict(Operation::Redeem), verdict(Operation::Query)]);
    }

    page.head(
        "By HTTP status alone",
        "Every status from 100 to 599, without a code and without a coupon. Statuses with the same meaning share a row.",
        &["status", "redeem, signed", "redeem, not verified", "query, signed", "query, not verified"],
    );
    let redemption = redemption("C1", None);
    let statuses = fold((100..=599).map(|status| (status, under(status, &redemption))));
    let alone = (100..=599).map(|status| {
        let (_, verdicts) = statuses.iter().find(|(group, _)| group.contains(&status)).unwrap();
        (status, verdicts[0][0].clone())
    });
    for (group, verdicts) in fold(alone) {
        page.row(&[vec![spans(&group)], verdicts.map(|verdict| words(&verdict)).to_vec()].concat());
    }

    page.head(
        "Codes and numbers",
        &format!(
            "The codes of WeChat Pay's \"use\" page, of related pages and of the platform, and three unknown ones: {}.\n\n\
             The numbers at the end of `Request-ID`. WeChat Pay does not publish which status and code they belong to.",
            CODES.map(|code| format!("`{code}`")).join(", ").replace("``", "an empty one"),
        ),
        &["number", "WeChat Pay's meaning"],
    );
    for (number, meaning) in SUB_CODES {
        page.row(&[format!("{number}"), meaning.to_owned()]);
    }

    page.head(
        "By HTTP status, code and number",
        "Every status from 100 to 599 with every code and number above, with none, and with unknown ones. Rows with the\n\
         same meaning are merged.",
        &[
            "status",
            "code",
            "number",
            "redeem, signed",
            "redeem, not verified",
            "query, signed",
            "query, not verified",
        ],
    );
    for (statuses, verdicts) in &statuses {
        let by_code = fold(codes().into_iter().zip(verdicts));
        for (codes, verdicts) in &by_code {
            let by_number = fold(numbers().into_iter().zip(*verdicts));
            for (numbers, verdicts) in &by_number {
                let place = vec![
                    spans(statuses),
                    named(codes, by_code.len(), |code| format!("`{code}`")),
                    named(numbers, by_number.len(), |number| format!("{number}")),
                ];
                page.row(&[place, verdicts.each_ref().map(words).to_vec()].concat());
            }
        }
    }

    page.head(
        "By the coupon in a verified 200",
        &format!("Our number is `{OURS}`. `R1` is the number of a return."),
        &["shape", "coupon_state", "usage detail", "usage", "redeem", "query"],
    );
    let cells = |case: Case| {
        let redemption = self::redemption(case.code, case.round);
        let coupon = case.coupon();
        let standing = standing(&coupon, &redemption);
        let state = coupon.state.to_string();
        let reply =
            CallResult::Response(Response { coupon: Some(coupon), ..answer(200, Authenticity::Verified) });
        let verdict = |operation| words(&classify(operation, &reply, &redemption));
        let standing = match standing {
            Usage::Unusable(state) => format!("unusable ({state})"),
            Usage::AnotherCoupon => "another coupon".to_owned(),
            Usage::UsableBesideNoNumber => "nonumber, next round usable".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        let cells = [state, case.detail, standing, verdict(Operation::Redeem), verdict(Operation::Query)];
        (case.shape, cells)
    };
    for (shapes, cells) in fold(coupons().into_iter().map(cells)) {
        page.row(&[vec![shapes.join("; ")], cells.to_vec()].concat());
    }

    page.head("Reasons", "The closed list of `problem.reason` in events.", &["reason"]);
    for reason in Reason::ALL {
        page.row(&[format!("`{}`", reason.as_str())]);
    }
    page.0
}

const PREFACE: &str = "\
# What a response means

<!-- Written by tests/verdict_table.rs from the code. UPDATE=1 cargo test --test verdict_table -->

The service reads the HTTP status first, then `code`, then the number at the end of `Request-ID`, and never the message.
\"Signed\" is a response with a verified signature. \"Not verified\" is a response without a signature, or with a malformed,
unknown, stale, wrong or repeated one; all of these count the same.

The signature covers only the body, not the status and not `Request-ID`. So only a signed error body is a rejection. A
coupon under a 4xx, an error body under a 2xx, and a `code` that belongs to another status are contradictions: the effect
stays unknown. The number makes the reason of a rejection more exact, and never makes the check that follows less careful.
An unsigned 4xx decides nothing, however often it is repeated.

A redelivered command and a retry message from a delay queue begin with a query, because an earlier call may have taken
effect.

A query is \"delayed\" if it begins the query delay (`retry.query_delay`) after the end of the longest call that may still be
running. The service knows when its own calls ended. For a call of another instance it allows `wechat.total_timeout`.

| verdict | what follows |
| --- | --- |
| **redeemed** | the command ends: we used the coupon |
| **refused** | the command ends: we did not use the coupon and will not. If a use of ours may still take effect, the state must be seen by two delayed queries in a row. A query that is answered by an error shows no coupon and must be repeated, too. A use by another and a return must be seen by one delayed query. A return that ended long before the command was first seen does not count |
| rejected | the service queries the coupon, and the rejection is final. If an earlier effect of this command was unknown, see the next row. Two queries in a row that are rejected with the same code and number confirm it; a query that shows the coupon confirms it at once. If it may meet every command alike (a signed 400 that names no field, and no call was accepted lately), it counts only once other commands show that it is about this one; until then the command is queried, and sent again if queries are accepted. If only queries are rejected, for an id of the command: two in a row refuse it if no use of ours is known; if an effect is unknown, the command ends as `unresolved` (`query_rejected`) after some minutes. If the coupon is usable, a reason that denies this becomes `rejected`; if the coupon does not exist, the reason stays |
| rejected, unverified | the rejection may be caused by an earlier use of ours. Two delayed queries in a row follow; then the rejection is final |
| not executed | the coupon is usable. If no effect was unknown, the same body is sent. If one was, two delayed queries in a row must say so before the same body is sent. If a rejection is pending, the command ends |
| not accepted | signed: WeChat Pay did not execute the call. The same operation later |
| not accepted: not authorized | WeChat Pay denies the use for this brand, and it is not yet known whether only for this brand. The command waits in the shortest delay queue, and its later delays do not grow by it |
| not sent | the same operation later, through the other host if the first one fails |
| unknown | a delayed query |
| unknown: used without a number | a later query; if the coupon is then usable, that use was returned |
| unknown: used without a number, next round usable | if no effect was unknown, the same body is sent: if another delivery of this command caused that use, the same number takes no second effect. Otherwise as the row above |
| not authorized | of a use: as a rejection, because another brand has been authorized since. Of a query: skipped if no effect was unknown, else repeated until the deadline |
| **suspended** | a fault of our own: calls are suspended until it is fixed. Without a signature the effect is unknown as well |
";

#[test]
fn the_page_says_what_the_code_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verdicts.md");
    let page = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    let differing = page.lines().zip(kept.lines()).find(|(now, kept)| now != kept);
    assert!(
        page == kept,
        "docs/verdicts.md is out of date (UPDATE=1 rewrites it); first difference: {differing:?}"
    );
}
