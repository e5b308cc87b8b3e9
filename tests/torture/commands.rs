//! What the rig publishes: commands whose right outcome is known beforehand, and the coupons they are about.

use std::collections::BTreeSet;

use redeemer::runtime::failpoints::Failpoint;
use serde_json::{Value, json};

use crate::dice::Dice;

/// One command.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// Its `message_id`, which events echo.
    pub id: String,
    /// The coupon.
    pub code: String,
    /// The request number.
    pub number: String,
    /// The message.
    pub body: Vec<u8>,
    /// How it must end.
    pub right: Right,
    /// Whether it may be reported as unresolved first, because it gets little time and much trouble.
    pub hopeless: bool,
    /// Properties that no client writes, instead of the usual ones.
    pub raw: Option<RawProperties>,
}

/// What makes a message kill a client that reads it carelessly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RawProperties {
    /// Headers of this many arrays (`b'A'`) or tables (`b'F'`) in one another.
    Nested(u8, usize),
    /// A `reply_to` that is not UTF-8.
    NoText,
}

/// How a command must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Redeemed.
    Redeemed,
    /// Redeemed, or refused as used by the other command about the same coupon: one each.
    Rival,
    /// Refused for this reason.
    Refused(&'static str),
    /// ReceivedEvent as no command.
    Invalid,
    /// Used once at most, and then returned by the user: redeemed if that was reported before, refused otherwise, as
    /// returned or as used by the order that used it next.
    Returned,
}

impl Right {
    /// The coupon's state in an event of this outcome.
    pub(crate) fn state(self) -> &'static str {
        match self {
            Self::Redeemed | Self::Rival | Self::Refused("used_by_another") => "USED",
            Self::Refused("expired") => "EXPIRED",
            Self::Refused("deactivated") => "DEACTIVATED",
            Self::Refused("deleted") => "DELETED",
            Self::Refused("not_yet_valid") => "PENDING",
            Self::Refused(_) | Self::Invalid | Self::Returned => "",
        }
    }
}

/// What befalls commands in the sandbox by the beginning of their code.
const STUBBORN: &str = "ST";
const HOPELESS: &str = "HL";
const HOPELESS_DONE: &str = "HE";
const UNGRANTED: &str = "NQ";
/// Coupons that the user returns once they are used.
pub(crate) const RETURNED: &str = "RT";

const OPENID: &str = "oh-394z-6CGkNoJrsDLTTUKiAnp4";

#[derive(Clone, Copy)]
enum Kind {
    Fresh,
    Nested,
    Repeated,
    Rivals,
    Used,
    Gone(&'static str, &'static str),
    Unknown,
    Malformed,
    Stubborn,
    Ungranted,
    Returned,
    Hopeless,
    HopelessDone,
}

/// `count` commands of every kind, then `stubborn` ones that must pass a delay queue, and the coupons to issue for
/// them.
pub(crate) fn make(count: usize, stubborn: usize, dice: &mut Dice) -> (Vec<Command>, Vec<Value>) {
    let (mut commands, mut coupons) = (Vec::with_capacity(count + 40), Vec::new());
    while commands.len() < count {
        let mut kinds = vec![Kind::Fresh; 16];
        kinds.extend([
            Kind::Nested,
            Kind::Nested,
            Kind::Repeated,
            Kind::Repeated,
            Kind::Rivals,
            Kind::Rivals,
        ]);
        kinds.extend([Kind::Used, Kind::Unknown, Kind::Stubborn, Kind::Stubborn]);
        kinds.extend([Kind::Malformed, Kind::Malformed, Kind::Malformed]);
        kinds.push(dice.pick(&[
            Kind::Gone("EXPIRED", "expired"),
            Kind::Gone("DEACTIVATED", "deactivated"),
            Kind::Gone("DELETED", "deleted"),
            Kind::Gone("PENDING", "not_yet_valid"),
        ]));
        kinds.push(dice.pick(&[Kind::Hopeless, Kind::HopelessDone]));
        kinds.push(Kind::Ungranted);
        dice.shuffle(&mut kinds);
        let from = commands.len();
        for kind in kinds {
            add(kind, commands.len(), &mut commands, &mut coupons, dice);
        }
        // Repeats and rivals come close together or far apart within the batch.
        dice.shuffle(&mut commands[from..]);
    }
    commands.truncate(count);
    settle_rivals(&mut commands);
    // The cut may have left the coupons of numbers that these would have: they go on from far away.
    for nth in 0..stubborn {
        let (mut last, mut coupon) = (Vec::new(), Vec::new());
        add(Kind::Stubborn, 900_000 + nth, &mut last, &mut coupon, dice);
        commands.append(&mut last);
        coupons.append(&mut coupon);
    }
    for (nth, command) in commands.iter_mut().enumerate() {
        command.id = format!("m-{nth:06}");
    }
    (commands, coupons)
}

/// Puts `count` commands among the first `within` whose coupons the user returns once they are used, and gives the coupons.
#[allow(dead_code)] // for the torture alone
pub(crate) fn add_returned(
    commands: &mut Vec<Command>,
    count: usize,
    within: usize,
    dice: &mut Dice,
) -> Vec<Value> {
    let mut coupons = Vec::new();
    for nth in 0..count {
        let mut one = Vec::new();
        add(Kind::Returned, 800_000 + nth, &mut one, &mut coupons, dice);
        let place = dice.below(within);
        commands.splice(place..place, one);
    }
    for (nth, command) in commands.iter_mut().enumerate() {
        command.id = format!("m-{nth:06}");
    }
    coupons
}

/// Puts `count` messages among the first `within` whose bodies are sound commands and whose properties cannot be decoded,
/// and gives their coupons, which must stay unused.
#[allow(dead_code)] // for the torture alone
pub(crate) fn add_undecodable(
    commands: &mut Vec<Command>,
    count: usize,
    within: usize,
    dice: &mut Dice,
) -> Vec<Value> {
    let mut coupons = Vec::new();
    // Each way at least once, if there is room for it.
    let ways =
        [RawProperties::Nested(b'A', 1_500), RawProperties::Nested(b'F', 2_000), RawProperties::NoText];
    for nth in 0..count {
        let mut one = Vec::new();
        add(Kind::Fresh, 700_000 + nth, &mut one, &mut coupons, dice);
        for command in &mut one {
            command.right = Right::Invalid;
            command.raw = Some(ways[nth % ways.len()].clone());
        }
        let place = dice.below(within);
        commands.splice(place..place, one);
    }
    for (nth, command) in commands.iter_mut().enumerate() {
        command.id = format!("m-{nth:06}");
    }
    coupons
}

/// A rival whose other half was cut off at the end has none.
fn settle_rivals(commands: &mut [Command]) {
    for nth in 0..commands.len() {
        let code = commands[nth].code.clone();
        let alone = commands.iter().filter(|other| other.code == code).count() == 1;
        if commands[nth].right == Right::Rival && alone {
            commands[nth].right = Right::Redeemed;
        }
    }
}

fn add(kind: Kind, nth: usize, commands: &mut Vec<Command>, coupons: &mut Vec<Value>, dice: &mut Dice) {
    let prefix = match kind {
        Kind::Stubborn => STUBBORN,
        Kind::Hopeless => HOPELESS,
        Kind::HopelessDone => HOPELESS_DONE,
        Kind::Ungranted => UNGRANTED,
        Kind::Returned => RETURNED,
        _ => "C",
    };
    let code = format!("{prefix}{nth:06}");
    let number = format!("USE_{nth:06}");
    let mut issue = |more: Value| {
        let mut coupon = json!({
            "openid": OPENID, "coupon_code": code, "appid": "wx233544546545989", "brand_id": "120344",
            "product_coupon_id": "1000000013", "stock_id": "1000000013001",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            coupon[key] = value.clone();
        }
        coupons.push(coupon);
    };
    let good = |number: &str| Command {
        id: String::new(),
        code: code.clone(),
        number: number.to_owned(),
        body: flat(&code, number).to_string().into_bytes(),
        right: Right::Redeemed,
        hopeless: false,
        raw: None,
    };
    let command = good(&number);
    match kind {
        Kind::Fresh | Kind::Stubborn | Kind::Ungranted => {
            issue(json!({}));
            commands.push(command);
        }
        Kind::Returned => {
            issue(json!({}));
            commands.push(Command { right: Right::Returned, ..command });
        }
        Kind::Nested => {
            issue(json!({}));
            let mut json = flat(&code, &number);
            let inner = json.as_object_mut().unwrap();
            let (openid, code) = (inner.remove("openid"), inner.remove("coupon_code"));
            let nested = json!({"openid": openid, "coupon_code": code, "json": json});
            commands.push(Command { body: nested.to_string().into_bytes(), ..command });
        }
        Kind::Repeated => {
            issue(json!({}));
            commands.push(command.clone());
            commands.push(command);
        }
        Kind::Rivals => {
            issue(json!({}));
            commands.push(Command { right: Right::Rival, ..command });
            commands.push(Command { right: Right::Rival, ..good(&format!("{number}_B")) });
        }
        Kind::Used => {
            issue(json!({"state": "USED"}));
            commands.push(Command { right: Right::Refused("used_by_another"), ..command });
        }
        Kind::Gone(state, reason) => {
            issue(json!({"state": state}));
            commands.push(Command { right: Right::Refused(reason), ..command });
        }
        Kind::Unknown => commands.push(Command { right: Right::Refused("no_such_coupon"), ..command }),
        Kind::Malformed => {
            issue(json!({}));
            let text = flat(&code, &number).to_string();
            let body = match dice.below(4) {
                0 => text.replace("stock_id", "stok_id").into_bytes(),
                1 => text.as_bytes()[..text.len() / 2].to_vec(),
                2 => [b"\xff\xfe", text.as_bytes()].concat(),
                _ => text.replace("\"120344\"", "120344").into_bytes(),
            };
            commands.push(Command { right: Right::Invalid, body, ..command });
        }
        Kind::Hopeless | Kind::HopelessDone => {
            issue(json!({}));
            commands.push(Command { hopeless: true, ..command });
        }
    }
}

fn flat(code: &str, number: &str) -> Value {
    json!({
        "openid": OPENID, "coupon_code": code, "brand_id": "120344", "product_coupon_id": "1000000013",
        "stock_id": "1000000013001", "appid": "wx233544546545989", "use_time": "2025-07-24T00:00:00+08:00",
        "out_request_no": number, "associated_order_info": {"transaction_id": "4200000000123456789123456789"},
    })
}

/// The sandbox's fault script: `share` of all calls, and more, go wrong, by every fault that does not lie about the coupon.
pub(crate) fn faults(share: f64, commands: usize) -> Value {
    let mut rules = vec![
        json!({"coupon_prefix": HOPELESS, "fault": {"kind": "cut_before_effect"}}),
        json!({"coupon_prefix": HOPELESS_DONE, "operation": "use", "fault": {"kind": "cut_after_effect"}}),
        json!({"coupon_prefix": HOPELESS_DONE, "fault": {"kind": "cut_before_effect"}}),
        stubbornness(),
        // Looks are not granted for a while, and one is needed.
        json!({"coupon_prefix": UNGRANTED, "operation": "use", "first_attempts": 1,
            "fault": {"kind": "cut_after_effect"}}),
        json!({"coupon_prefix": UNGRANTED, "operation": "query", "first_attempts": 2,
            "fault": {"kind": "status", "status": 403, "code": "NO_AUTH"}}),
        // Nothing is seen of the use before the user has returned the coupon.
        json!({"coupon_prefix": RETURNED, "operation": "use", "first_attempts": 1,
            "fault": {"kind": "cut_after_effect"}}),
        json!({"coupon_prefix": RETURNED, "operation": "query", "first_attempts": 4,
            "fault": {"kind": "cut_before_effect"}}),
        // Rare, because each one halves the pace or stops consumption.
        json!({"share": 0.02, "times": commands / 500 + 2, "fault": {"kind": "status", "status": 429}}),
        json!({"share": 0.02, "times": commands / 1000 + 1, "fault": {"kind": "status", "status": 401}}),
        json!({"share": 0.02, "times": commands / 500 + 2, "operation": "use", "fault":
            {"kind": "status", "status": 429, "signed": false, "effect": true, "sub_code": UNSIGNED_429}}),
        json!({"share": 0.02, "times": commands / 1000 + 1, "operation": "use", "fault":
            {"kind": "status", "status": 401, "effect": true}}),
    ];
    let any = [
        json!({"kind": "slow", "ms": 300}),
        json!({"kind": "slow", "ms": 1300}),
        json!({"kind": "slow", "ms": 1200, "late_effect": true}),
        json!({"kind": "cut_before_effect"}),
        json!({"kind": "cut_after_effect"}),
        json!({"kind": "cut_in_body"}),
        json!({"kind": "status", "status": 500}),
        json!({"kind": "status", "status": 503, "effect": true}),
        json!({"kind": "status", "status": 202}),
        json!({"kind": "status", "status": 202, "effect": true}),
        json!({"kind": "html_502"}),
        json!({"kind": "html_502", "effect": true}),
        json!({"kind": "probe_signature"}),
        json!({"kind": "unknown_serial"}),
        json!({"kind": "bad_signature"}),
        json!({"kind": "no_signature"}),
        json!({"kind": "forged_success"}),
        json!({"kind": "forged_success", "signed": true}),
        json!({"kind": "stale_timestamp"}),
        json!({"kind": "skewed_clock", "seconds": -900}),
        json!({"kind": "unsigned"}),
        json!({"kind": "huge_body", "bytes": 400_000}),
        json!({"kind": "endless_body"}),
        json!({"kind": "deep_json"}),
        json!({"kind": "gzip"}),
        json!({"kind": "truncated_body"}),
    ];
    // Of a query these would be lies under a good signature, which nobody can see through.
    let of_a_use = [json!({"kind": "wrong_number"}), json!({"kind": "already_used_number"})];
    // A spared call goes on to the next rule. This many are for every call; the rest makes uses go wrong more often.
    let each = 1.0 - (1.0 - share).powf(1.0 / any.len() as f64);
    rules.extend(any.iter().map(|fault| json!({"share": each, "fault": fault})));
    rules.extend(of_a_use.iter().map(|fault| json!({"share": each, "operation": "use", "fault": fault})));
    // A second one in a row would stand as a refusal.
    let unsigned = json!({"kind": "unsigned_refusal"});
    rules.push(json!({"share": each, "operation": "use", "first_attempts": 1, "fault": unsigned}));
    json!({"rules": rules})
}

/// Marks a 429 without a signature in the ledger: it declines nothing.
pub(crate) const UNSIGNED_429: u64 = 429_000_001;

/// What became of one rule of a fault script.
#[derive(Debug)]
pub(crate) struct Hit {
    /// The rule.
    pub rule: Value,
    /// How often it was applied.
    pub times: u64,
}

/// What became of the rules of a script, as the sandbox shows it.
pub(crate) fn hits(script: &Value) -> Vec<Hit> {
    let rules = script["rules"].as_array().into_iter().flatten();
    let times = script["applied"].as_array().into_iter().flatten().filter_map(Value::as_u64);
    rules.cloned().zip(times).map(|(rule, times)| Hit { rule, times }).collect()
}

/// How many kinds of faults came. Two are of one kind where nothing distinguishes them: neither status nor code, nor whether
/// the effect happens, nor whether they are signed, nor how late or how large they are.
pub(crate) fn kinds(hits: &[Hit]) -> usize {
    let came = hits.iter().filter(|hit| hit.times > 0);
    came.map(|hit| hit.rule["fault"].to_string()).collect::<BTreeSet<_>>().len()
}

/// Whether the script makes calls about this coupon fail whatever the dice say.
pub(crate) fn is_singled_out(code: &str) -> bool {
    [STUBBORN, HOPELESS, HOPELESS_DONE, UNGRANTED, RETURNED].iter().any(|prefix| code.starts_with(prefix))
}

/// What makes a command pass a delay queue.
fn stubbornness() -> Value {
    json!({"coupon_prefix": STUBBORN, "first_attempts": 3, "fault": {"kind": "html_502"}})
}

/// What makes a command pass every delay queue, and looks like no outage, which would be waited for. Each use that was
/// accepted is looked for twice before the next one, so a few are enough.
pub(crate) fn reluctance() -> Value {
    json!({"coupon_prefix": STUBBORN, "first_attempts": 5, "fault": {"kind": "status", "status": 202}})
}

/// How many commands must pass on average until a failpoint is reached: for choosing when it kills.
pub(crate) fn is_rare(point: Failpoint) -> bool {
    use redeemer::telemetry::metrics::Message;
    matches!(
        point,
        Failpoint::Publishing(Message::Retry | Message::Parked)
            | Failpoint::Published(Message::Retry | Message::Parked)
    )
}
