//! The commands of the demo: each kind with its coupon, its fault and its expected outcome.

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::domain::outcome::OutcomeKind;
use crate::domain::reason::Reason;
use redeemer_sandbox::{ActionRequest, CouponAction, CouponState, Fault, NewCoupon, Rule, Target, UsageMode};

/// The vendor's published example, word for word, in the spelling of the PHP SDK.
pub(super) const EXAMPLE: &str = include_str!("../../../docs/contract/examples/command.nested.json");

const EXAMPLE_KIND: &str = "the vendor's example";

/// One command with its expected result.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// A row of the table.
    pub kind: &'static str,
    /// The command.
    pub body: Vec<u8>,
    /// How often it is published.
    pub times: usize,
    /// Its request number, if it has a valid one.
    pub number: Option<String>,
    /// The expected result.
    pub expected: Expected,
    /// Whether its calls meet no fault.
    pub undisturbed: bool,
    coupon: Option<NewCoupon>,
    act: Option<ActionRequest>,
}

/// The expected result of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    /// The outcome.
    pub outcome: OutcomeKind,
    /// Why it is not `redeemed`.
    pub reason: Option<Reason>,
    /// The coupon's state in the event.
    pub state: Option<&'static str>,
}

/// All cases of one run.
#[derive(Debug)]
pub(super) struct Program {
    /// The vendor's example first, then the rest in an order of the seed.
    pub cases: Vec<Case>,
    /// The coupons to issue.
    pub coupons: Vec<NewCoupon>,
    /// The earlier actions on coupons.
    pub acts: Vec<(String, ActionRequest)>,
    /// The faults.
    pub rules: Vec<Rule>,
}

/// A kind of command: the state of its coupon, its fault and its expected result.
struct Kind {
    name: &'static str,
    /// The prefix of its coupons.
    prefix: &'static str,
    /// Its number, for each one of the rarest kind.
    weight: usize,
    coupon: Holding,
    fault: Option<(Target, u64, Fault)>,
    expected: Expected,
}

/// The coupon of a command.
enum Holding {
    /// In this state.
    State(CouponState),
    /// Usable, and the command is published twice.
    Twice,
    /// One of a progressive bundle.
    Bundle,
    /// Used already, under this command's number.
    UsedByUs,
    /// Used already, under another number.
    UsedByAnother,
    /// It does not exist.
    Unknown,
    /// The message is not a command.
    Malformed,
}

fn kinds() -> Vec<Kind> {
    use CouponState::{Confirming, Deactivated, Deleted, Effective, Expired, Pending};
    let redeemed = Expected { outcome: OutcomeKind::Redeemed, reason: None, state: Some("USED") };
    let refused = |reason, state| Expected { outcome: OutcomeKind::Refused, reason: Some(reason), state };
    let invalid =
        Expected { outcome: OutcomeKind::Invalid, reason: Some(Reason::InvalidCommand), state: None };
    let kind =
        |name, prefix, weight, coupon, expected| Kind { name, prefix, weight, coupon, fault: None, expected };
    // The first `calls` of a coupon meet this fault; the outcome is still `redeemed`.
    let faulty = |name, prefix, about, calls, fault| Kind {
        name,
        prefix,
        weight: 1,
        coupon: Holding::State(Effective),
        fault: Some((about, calls, fault)),
        expected: redeemed,
    };
    let error_500 = Fault::Status {
        status: 500,
        code: None,
        message: None,
        detail: None,
        sub_code: None,
        signed: None,
        effect: false,
    };
    let unsigned = Fault::UnsignedRefusal {};
    vec![
        kind("fresh coupon", "fresh_", 12, Holding::State(Effective), redeemed),
        kind("the same command twice", "twice_", 1, Holding::Twice, redeemed),
        kind("one of a bundle", "bundle_", 2, Holding::Bundle, redeemed),
        kind("used by us before", "ours_", 1, Holding::UsedByUs, redeemed),
        faulty("slow response", "slow_", Target::Use, 1, Fault::Slow { ms: 1_500, late_effect: false }),
        faulty("failing twice, then well", "fails_", Target::Use, 2, error_500),
        faulty("cut before the effect", "early_", Target::Use, 1, Fault::CutBeforeEffect {}),
        faulty("cut after the effect", "late_", Target::Use, 1, Fault::CutAfterEffect {}),
        faulty("response with a probe signature", "probe_", Target::Use, 1, Fault::ProbeSignature {}),
        faulty("unsigned refusal, not true", "liar_", Target::Use, 1, unsigned),
        kind(
            "used by another",
            "taken_",
            1,
            Holding::UsedByAnother,
            refused(Reason::UsedByAnother, Some("USED")),
        ),
        kind("expired", "old_", 1, Holding::State(Expired), refused(Reason::Expired, Some("EXPIRED"))),
        kind("deleted", "gone_", 1, Holding::State(Deleted), refused(Reason::Deleted, Some("DELETED"))),
        kind(
            "withdrawn",
            "drawn_",
            1,
            Holding::State(Deactivated),
            refused(Reason::Deactivated, Some("DEACTIVATED")),
        ),
        kind(
            "not valid yet",
            "young_",
            1,
            Holding::State(Pending),
            refused(Reason::NotYetValid, Some("PENDING")),
        ),
        kind(
            "not confirmed yet",
            "sent_",
            1,
            Holding::State(Confirming),
            refused(Reason::NotConfirmed, Some("CONFIRMING")),
        ),
        kind("unknown coupon", "none_", 1, Holding::Unknown, refused(Reason::NoSuchCoupon, None)),
        kind("malformed", "bad_", 3, Holding::Malformed, invalid),
    ]
}

/// The rows of the table, in their order.
pub(super) fn rows() -> Vec<&'static str> {
    std::iter::once(EXAMPLE_KIND).chain(kinds().into_iter().map(|kind| kind.name)).collect()
}

/// The vendor's example and `messages` more messages of every kind, the same for the same seed.
pub(super) fn program(messages: usize, seed: u64) -> Program {
    let mut random = StdRng::seed_from_u64(seed);
    let kinds = kinds();
    let mut cases = Vec::new();
    let mut left = messages;
    // One of each first, so that a small demo shows every kind; then by weight.
    let once = kinds.iter().map(|kind| (kind, 1));
    let rounds = std::iter::repeat_with(|| kinds.iter().map(|kind| (kind, kind.weight))).flatten();
    'fill: for (kind, count) in once.chain(rounds) {
        for _ in 0..count {
            if left == 0 {
                break 'fill;
            }
            let case = case(kind, cases.len(), &mut random);
            if case.times <= left {
                left -= case.times;
                cases.push(case);
            }
        }
    }
    cases.shuffle(&mut random);
    cases.insert(0, example());

    let code = |coupon: &NewCoupon| coupon.coupon_code.clone();
    Program {
        coupons: cases.iter().filter_map(|case| case.coupon.clone()).collect(),
        acts: cases
            .iter()
            .filter_map(|case| Some((code(case.coupon.as_ref()?), case.act.clone()?)))
            .collect(),
        rules: kinds
            .into_iter()
            .filter_map(|kind| {
                let (operation, first_attempts, fault) = kind.fault?;
                Some(Rule {
                    coupon_prefix: Some(kind.prefix.to_owned()),
                    operation,
                    first_attempts: Some(first_attempts),
                    ..Rule::new(fault)
                })
            })
            .collect(),
        cases,
    }
}

fn example() -> Case {
    Case {
        kind: EXAMPLE_KIND,
        body: EXAMPLE.as_bytes().to_vec(),
        times: 1,
        number: Some("34657_20250101_123456".to_owned()),
        // The first of three rounds: the coupon as a whole stays usable.
        expected: Expected { outcome: OutcomeKind::Redeemed, reason: None, state: Some("EFFECTIVE") },
        undisturbed: true,
        coupon: Some(NewCoupon {
            openid: "oh-394z-6CGkNoJrsDLTTUKiAnp4".to_owned(),
            coupon_code: "123446565767".to_owned(),
            appid: "wx233544546545989".to_owned(),
            brand_id: "120344".to_owned(),
            product_coupon_id: "1000000013".to_owned(),
            stock_id: "1000000013001".to_owned(),
            usage_mode: UsageMode::Sequential,
            ..NewCoupon::default()
        }),
        act: None,
    }
}

fn case(kind: &Kind, nth: usize, random: &mut StdRng) -> Case {
    let code = format!("{}{nth:06}", kind.prefix);
    let number = format!("demo_{}{nth:06}", kind.prefix);
    let openid = format!("oDemoUser{:08x}", random.random::<u32>());
    let (brand_id, product_coupon_id, stock_id, appid) =
        ("120344", "1000000014", "1000000014001", "wx233544546545989");
    let mut command = json!({
        "openid": openid,
        "coupon_code": code,
        "brand_id": brand_id,
        "product_coupon_id": product_coupon_id,
        "stock_id": stock_id,
        "appid": appid,
        "use_time": "2026-03-05T12:30:45+08:00",
        "associated_order_info": { "transaction_id": format!("42000000{nth:020}") },
        "out_request_no": number,
    });
    if random.random_bool(0.5) {
        command["store_id"] = json!(format!("S{}", nth % 7));
        command["saved_amount"] = json!(random.random_range(1..10_000));
    }
    let holding = |state| NewCoupon {
        openid: openid.clone(),
        coupon_code: code.clone(),
        appid: appid.to_owned(),
        brand_id: brand_id.to_owned(),
        product_coupon_id: product_coupon_id.to_owned(),
        stock_id: stock_id.to_owned(),
        state,
        ..NewCoupon::default()
    };
    let used = |number| ActionRequest { action: CouponAction::Use, number: Some(number), round: None };
    let usable = Some(holding(CouponState::Effective));
    let (coupon, act, times) = match kind.coupon {
        Holding::State(state) => (Some(holding(state)), None, 1),
        Holding::Twice => (usable, None, 2),
        Holding::Bundle => {
            let mode = UsageMode::ProgressiveBundle;
            (usable.map(|coupon| NewCoupon { usage_mode: mode, ..coupon }), None, 1)
        }
        Holding::UsedByUs => (usable, Some(used(number.clone())), 1),
        Holding::UsedByAnother => (usable, Some(used(format!("another_{nth:06}"))), 1),
        Holding::Unknown | Holding::Malformed => (None, None, 1),
    };
    let malformed = matches!(kind.coupon, Holding::Malformed);
    Case {
        kind: kind.name,
        body: if malformed { break_it(command, nth) } else { command.to_string().into_bytes() },
        times,
        number: (!malformed).then_some(number),
        expected: kind.expected,
        undisturbed: kind.fault.is_none(),
        coupon,
        act,
    }
}

/// Spoils a command in one of many ways.
fn break_it(mut command: Value, way: usize) -> Vec<u8> {
    let fields: [(&str, Value); 9] = [
        ("openid", json!("../../admin")),
        ("coupon_code", json!("a%2fb")),
        ("appid", json!("wx😀")),
        ("out_request_no", json!("bell_\u{7}_rings")),
        ("saved_amount", Value::Null),
        ("brand_id", json!(120_344)),
        ("use_time", json!("yesterday")),
        ("associated_pay_score_order_info", json!({ "order_id": "1" })),
        ("sequential_coupon_idx", json!(0)),
    ];
    match way % (fields.len() + 5) {
        0 => b"please redeem my coupon".to_vec(),
        1 => Vec::new(),
        2 => vec![0xff, 0xfe, b'{', b'}'],
        3 => vec![b' '; 64 * 1024 + 1],
        4 => format!(r#"{{"out_request_no": "given_twice_1", {}"#, &command.to_string()[1..]).into_bytes(),
        n => {
            let (field, value) = &fields[n - 5];
            command[field] = value.clone();
            command.to_string().into_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::command::decode;

    #[test]
    fn what_shall_be_invalid_is_and_nothing_else() {
        for case in program(2_000, 7).cases {
            let decoded = decode(&case.body);
            let invalid = case.expected.outcome == OutcomeKind::Invalid;
            let text = String::from_utf8_lossy(&case.body).into_owned();
            assert_eq!(decoded.is_err(), invalid, "{}: {text}", case.kind);
            if let Ok(redemption) = decoded {
                assert_eq!(Some(redemption.out_request_no.as_str()), case.number.as_deref());
            }
        }
    }

    #[test]
    fn kinds_are_as_many_as_requested_and_follow_the_seed() {
        let messages = |program: &Program| program.cases.iter().map(|case| case.times).sum::<usize>();
        for count in [0, 1, 2, 19, 20, 60, 200, 1_000] {
            assert_eq!(messages(&program(count, 1)), count + 1, "{count}");
        }
        let names = |program: &Program| {
            program.cases.iter().map(|case| case.kind).collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(names(&program(19, 1)), kinds().len() + 1);
        let bodies = |seed| program(50, seed).cases.into_iter().map(|case| case.body).collect::<Vec<_>>();
        assert_eq!(bodies(3), bodies(3));
        assert_ne!(bodies(3), bodies(4));
    }
}
