//! The state machine of one command, played through: scripted replies, one row of the design at a time, and then
//! the laws, against a provider that keeps a ledger and breaks in every way that is known.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use redeemer::domain::coupon::{Coupon, CouponState, Round, Trace, UsageTrace};
use redeemer::domain::evidence::{Operation, Rejection};
use redeemer::domain::outcome::Outcome;
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::attempt::{EffectState, Limits, Progress, Step};
use redeemer::policy::classify::{
    Authenticity, CallResult, NoResponse, NotAccepted, NotSent, Response, SignatureFlaw, SuspendReason,
    UnknownCause, Verdict, classify,
};
use redeemer::wechat::client::Prepared;
use redeemer::wire::command;
use redeemer::wire::handed_back::HandedBack;
use redeemer::wire::retry_message::{self, DeadlineLimits};

const OURS: &str = "USE_0001";
const CODE: &str = "C0001";
const DEADLINE_LIMITS: DeadlineLimits =
    DeadlineLimits { default: SignedDuration::from_hours(24), furthest: SignedDuration::from_hours(24 * 7) };

fn redemption() -> Redemption {
    let text = r#"{"openid": "oUser", "coupon_code": "C0001", "brand_id": "120344",
        "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx1",
        "use_time": "2026-03-05T12:30:45+08:00", "out_request_no": "USE_0001",
        "associated_order_info": {"transaction_id": "4200000000123456789123456789"}}"#;
    command::decode(text.as_bytes()).unwrap()
}

fn start() -> Timestamp {
    "2026-03-05T04:30:45Z".parse().unwrap()
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.saturating_add(by).unwrap()
}

// ---- replies, by the names that people use for them

fn coupon(state: &str, used: Option<&str>, returned: Option<&str>) -> Coupon {
    Coupon {
        code: CODE.into(),
        state: CouponState::from_wire(state),
        usage: UsageTrace::Single(Trace {
            use_request_no: used.map(Into::into),
            return_request_no: returned.map(Into::into),
            ..Trace::default()
        }),
        ids: Box::default(),
        entity: "{}".into(),
        reduced: None,
    }
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

fn says(coupon: Coupon) -> CallResult {
    CallResult::Response(Response { coupon: Some(coupon), ..answer(200, Authenticity::Verified) })
}

fn used_by_us() -> CallResult {
    says(coupon("USED", Some(OURS), None))
}

fn usable() -> CallResult {
    says(coupon("EFFECTIVE", None, None))
}

fn returned() -> CallResult {
    says(coupon("EFFECTIVE", None, Some("R1")))
}

fn in_state(state: &str) -> CallResult {
    says(coupon(state, None, None))
}

fn error(status: u16, code: &str, sub_code: Option<u64>, authenticity: Authenticity) -> CallResult {
    CallResult::Response(Response { code: Some(code.into()), sub_code, ..answer(status, authenticity) })
}

fn signed(status: u16, code: &str) -> CallResult {
    error(status, code, None, Authenticity::Verified)
}

fn unsigned(status: u16, code: &str) -> CallResult {
    error(status, code, None, Authenticity::Unsigned)
}

/// The same answer under another status, as anyone who carries it may write one.
fn under(status: u16, reply: CallResult) -> CallResult {
    let CallResult::Response(answer) = reply else { panic!("{reply:?}") };
    CallResult::Response(Response { status, ..answer })
}

/// A signed answer about a coupon that was not asked about, used under our number.
fn about_another_coupon() -> CallResult {
    says(Coupon { code: "C0002".into(), ..coupon("USED", Some(OURS), None) })
}

fn used_by_another() -> CallResult {
    says(coupon("USED", Some("OTHER_1"), None))
}

/// What a copy carries if the provider has rejected.
fn rejection() -> Rejection {
    let code = Some("NOT_ENOUGH".into());
    Rejection { http_status: 403, code, sub_code: None, message: None, request_id: None }
}

fn cut() -> CallResult {
    CallResult::NoResponse(NoResponse::Reset)
}

fn probe() -> CallResult {
    CallResult::Response(answer(200, Authenticity::Invalid(SignatureFlaw::Mismatch)))
}

fn unreachable() -> CallResult {
    CallResult::NotSent(NotSent::Connect)
}

// ---- the driver: a script of replies in, the steps and the outcome out

/// What is known of the command when the script begins.
#[derive(Clone, Copy)]
enum Start {
    Fresh,
    Redelivered,
    Copy(EffectState),
    CopyRedelivered(EffectState),
    /// A copy of which nobody knows when it was delayed.
    CopyOfNow(EffectState),
}

struct Run {
    limits: Limits,
    time_allowed: Duration,
    redemption: Redemption,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            time_allowed: Duration::from_secs(24 * 3600),
            redemption: redemption(),
        }
    }
}

impl Run {
    fn of(time_allowed: u64, attempts_max: u32) -> Self {
        let limits = Limits { attempts_max, ..Limits::default() };
        Self { limits, time_allowed: Duration::from_secs(time_allowed), ..Self::default() }
    }

    /// Plays the script to its end; every reply must be used up by the time of the outcome.
    fn play(&self, from: Start, script: &[CallResult]) -> (Vec<String>, Outcome) {
        let (reported, left, outcome) = self.perform(from, script);
        assert_eq!(left, 0, "the command ended before the script: {reported:?}");
        (reported.clone(), outcome.unwrap_or_else(|| panic!("the script is too short: {reported:?}")))
    }

    /// How a fresh command ends within the script, if it does.
    fn outcome(&self, script: &[CallResult]) -> Option<Outcome> {
        self.perform(Start::Fresh, script).2
    }

    /// Plays the script as far as it goes: the steps, the replies that are left, and the outcome if there is one.
    fn perform(&self, from: Start, script: &[CallResult]) -> (Vec<String>, usize, Option<Outcome>) {
        let Self { limits, time_allowed, redemption } = self;
        let mut now = start();
        let deadline = later(now, *time_allowed);
        // Delayed long ago: whatever anybody had begun by then has ended.
        let copied = |effect| {
            let mut progress = Progress::resumed(3, 1, effect, now, deadline, Some(rejection()));
            progress.negatives_from = Some(now);
            progress
        };
        let mut progress = match from {
            Start::Fresh => Progress::new(now, deadline, false),
            Start::Redelivered => Progress::new(now, deadline, true),
            Start::Copy(effect) => copied(effect),
            Start::CopyOfNow(effect) => {
                let mut progress = copied(effect);
                progress.negatives_from = None;
                progress
            }
            Start::CopyRedelivered(effect) => {
                let mut progress = copied(effect);
                progress.mark_redelivered();
                progress
            }
        };
        let mut replies = script.iter();
        let mut reported = Vec::new();
        let mut step = progress.start(limits, now);
        loop {
            step = match step {
                Step::Send { after, operation } => {
                    reported.push(format!("{}s {}", after.as_secs_f64(), operation.as_str()));
                    now = later(now, after);
                    let Some(reply) = replies.next() else { return (reported, 0, None) };
                    let verdict = progress.advance(operation, reply, redemption);
                    progress.follow_verdict(operation, reply.clone(), verdict, limits, now, 0.5)
                }
                Step::Delay { queue: delay } => {
                    reported.push(format!("delay {}s", limits.delays[delay].as_secs()));
                    now = later(now, limits.delays[delay]);
                    progress = through_a_wait_queue(&progress, now);
                    progress.start(limits, now)
                }
                Step::Suspend(fault) => {
                    reported.push(format!("halt {}", fault.as_str()));
                    now = later(now, Duration::from_secs(60));
                    progress.resume(limits, now)
                }
                Step::Finish(outcome) => return (reported, replies.len(), Some(outcome)),
            }
        }
    }

    fn check(&self, from: Start, script: &[CallResult], steps: &[&str], ending: &str) {
        let (reported, outcome) = self.play(from, script);
        assert_eq!(
            (reported.iter().map(String::as_str).collect(), in_words(&outcome)),
            (steps.to_vec(), ending.to_owned())
        );
    }
}

/// Written to headers and read back, as the broker would carry it.
fn through_a_wait_queue(progress: &Progress, now: Timestamp) -> Progress {
    let headers = retry_message::write(progress, &[], "00");
    let header = |name| headers.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str());
    retry_message::read(header, "00", now, DEADLINE_LIMITS).unwrap().progress
}

fn in_words(outcome: &Outcome) -> String {
    let reason = outcome.reason().map(|reason| format!(" {}", reason.as_str())).unwrap_or_default();
    format!("{}{reason} by {}", outcome.kind().as_str(), outcome.established_by().as_str())
}

fn check(script: &[CallResult], steps: &[&str], ending: &str) {
    Run::default().check(Start::Fresh, script, steps, ending);
}

// ---- replies to "redeem"

/// What was handed back exists twice where anyone who handed it back died before the acknowledgement.
#[test]
fn handed_back_command_looks_before_it_sends() {
    let limits = Limits::default();
    let mut progress = Progress::new(start(), later(start(), HOUR * 24), false);
    progress.require_query();
    let look = Step::Send { after: Duration::ZERO, operation: Operation::Query };
    assert_eq!(progress.start(&limits, start()), look);
    let verdict = progress.advance(Operation::Query, &usable(), &redemption());
    let next = progress.follow_verdict(Operation::Query, usable(), verdict, &limits, start(), 0.5);
    assert_eq!(next, Step::Send { after: Duration::ZERO, operation: Operation::Redeem });
    let mut progress = Progress::new(start(), later(start(), HOUR * 24), false);
    progress.require_query();
    progress.start(&limits, start());
    let verdict = progress.advance(Operation::Query, &returned(), &redemption());
    let next = progress.follow_verdict(Operation::Query, returned(), verdict, &limits, start(), 0.5);
    assert!(matches!(next, Step::Finish(Outcome::Refused { reason: Reason::ReturnedSince, .. })), "{next:?}");
}

/// A command that was handed back untouched was refused for a return that was over before anybody had the command.
#[test]
fn handed_back_command_keeps_what_its_first_delivery_knew() {
    let limits = Limits::default();
    let long_before = start().saturating_sub(SignedDuration::from_hours(1)).unwrap();
    let old_return = says(Coupon {
        usage: UsageTrace::Single(Trace {
            use_request_no: None,
            return_request_no: Some("R1".into()),
            return_time: Some(long_before),
            shows_return_time: true,
        }),
        ..coupon("EFFECTIVE", None, None)
    });
    let words = HandedBack { first_seen: start(), may_have_been_sent: false }.to_words();
    let now = later(start(), HOUR * 20);
    for redelivered in [false, true] {
        let read = HandedBack::from_words(&words, now).unwrap();
        let mut progress = read.progress(None, redelivered, DEADLINE_LIMITS).unwrap();
        assert_eq!(
            (progress.first_seen, progress.deadline, progress.unsent_before),
            (start(), later(start(), HOUR * 24), Some(start()))
        );
        let query = Step::Send { after: Duration::ZERO, operation: Operation::Query };
        assert_eq!(progress.start(&limits, now), query, "redelivered: {redelivered}");
        let verdict = progress.advance(Operation::Query, &old_return, &redemption());
        assert_eq!(verdict, Verdict::NotExecuted);
        let next = progress.follow_verdict(Operation::Query, old_return.clone(), verdict, &limits, now, 0.5);
        assert!(!matches!(next, Step::Finish(_)), "{next:?}");
    }
    // Who knows what its first holder did.
    let tried = HandedBack { first_seen: start(), may_have_been_sent: true };
    assert_eq!(tried.progress(None, false, DEADLINE_LIMITS).unwrap().unsent_before, None);
}

/// Found by tests/model: a use that had to wait for its turn went out after the deadline.
#[test]
fn use_whose_deadline_passed_meanwhile_becomes_the_last_query() {
    let (limits, deadline) = (Limits::default(), later(start(), Duration::from_secs(5)));
    let mut progress = Progress::new(start(), deadline, false);
    assert_eq!(
        progress.start(&limits, start()),
        Step::Send { after: Duration::ZERO, operation: Operation::Redeem }
    );
    let before = later(start(), Duration::from_millis(4_999));
    assert!(!progress.is_overtaken(false, before) && !progress.is_overtaken(true, before));
    for held_back in [false, true] {
        assert!(progress.is_overtaken(held_back, deadline));
    }
    let last = progress.resume(&limits, deadline);
    assert_eq!(last, Step::Send { after: Duration::ZERO, operation: Operation::Query });
    let mut copied = Progress::resumed(1, 1, EffectState::NoEffect, start(), deadline, None);
    copied.start(&limits, start());
    assert!(copied.is_overtaken(true, start()) && !copied.is_overtaken(false, start()));
}

/// Found by tests/model: the use of a lost answer stood on a round that shows no number, looks found the next round
/// usable, or another round returned, or the whole coupon gone.
#[test]
fn round_used_under_no_number_lets_no_use_out_and_no_refusal() {
    let round = |state: &str, returned: Option<&str>| Round {
        state: CouponState::from_wire(state),
        trace: Trace { return_request_no: returned.map(Into::into), ..Trace::default() },
    };
    let shown = |whole: &str, beside: Round, first: bool| {
        let unnamed = round("USED", None);
        let rounds = if first { vec![unnamed, beside] } else { vec![beside, unnamed] };
        let state = CouponState::from_wire(whole);
        says(Coupon { state, usage: UsageTrace::Rounds(rounds), ..coupon("EFFECTIVE", None, None) })
    };
    for (whole, beside) in [
        ("EFFECTIVE", round("EFFECTIVE", None)),
        ("EFFECTIVE", round("EFFECTIVE", Some("R1"))),
        ("DELETED", round("EFFECTIVE", None)),
        ("EXPIRED", round("EXPIRED", None)),
    ] {
        for first in [true, false] {
            let look = shown(whole, beside.clone(), first);
            let script: Vec<_> = [cut()].into_iter().chain(std::iter::repeat_n(look, 8)).collect();
            let (reported, _, outcome) = Run::default().perform(Start::Fresh, &script);
            let uses = reported.iter().filter(|step| step.ends_with("redeem")).count();
            assert_eq!((uses, &outcome), (1, &None), "{whole} {reported:?}");
        }
    }
}

/// A command that was never sent ended as unresolved, because an earlier round of its coupon shows no number.
#[test]
fn round_of_another_under_no_number_stops_no_unsent_command() {
    let round = |state: &str, returned: Option<&str>| Round {
        state: CouponState::from_wire(state),
        trace: Trace { return_request_no: returned.map(Into::into), ..Trace::default() },
    };
    let rounds = |rounds: &[Round]| {
        says(Coupon { usage: UsageTrace::Rounds(rounds.to_vec()), ..coupon("EFFECTIVE", None, None) })
    };
    let (used, usable) = (|| round("USED", None), || round("EFFECTIVE", None));
    let before = rounds(&[used(), usable(), usable()]);
    let after = rounds(&[used(), used(), usable()]);
    let limits = Limits::default();
    for looks in [vec![before.clone()], vec![cut(), before.clone()]] {
        let mut progress = Progress::new(start(), later(start(), HOUR * 24), false);
        progress.require_query();
        let (mut now, mut step) = (start(), progress.start(&limits, start()));
        for look in &looks {
            let Step::Send { after, operation: Operation::Query } = step else { panic!("{step:?}") };
            now = later(now, after);
            let verdict = progress.advance(Operation::Query, look, &redemption());
            step = progress.follow_verdict(Operation::Query, look.clone(), verdict, &limits, now, 0.5);
        }
        assert_eq!(step, Step::Send { after: Duration::ZERO, operation: Operation::Redeem });
    }
    let run = Run::default();
    let script = [before.clone(), signed(429, "RATELIMIT_EXCEEDED"), before.clone(), after.clone()];
    let steps = ["0s query", "0s redeem", "1s query", "0s redeem"];
    run.check(Start::Copy(EffectState::NoEffect), &script, &steps, "redeemed by response");
    // What is unknown stays so, and a return on any round may have ended a use of ours.
    for (from, look) in [
        (EffectState::Unknown, before.clone()),
        (EffectState::SeenUsed, before),
        (EffectState::NoEffect, rounds(&[used(), usable(), round("EFFECTIVE", Some("R1"))])),
        (EffectState::NoEffect, rounds(&[used(), round("PENDING", None)])),
    ] {
        let script: Vec<_> = std::iter::repeat_n(look, 8).collect();
        let (steps, _, outcome) = run.perform(Start::Copy(from), &script);
        assert!(
            outcome.is_none() && steps.iter().all(|step| !step.ends_with("redeem")),
            "{from:?} {steps:?}"
        );
    }
}

/// Found by tests/model: a retry message that came twice saw the coupon deleted after a return, too early to count; then
/// the right to look was withdrawn, and it sent the use.
#[test]
fn early_look_at_a_coupon_that_is_gone_lets_no_use_out() {
    for state in ["EXPIRED", "DELETED", "DEACTIVATED"] {
        let gone = || says(coupon(state, None, Some("R1")));
        let script = [gone(), denied(), denied(), denied()];
        let (reported, _, outcome) = Run::default().perform(Start::CopyOfNow(EffectState::NoEffect), &script);
        assert!(reported.iter().all(|step| !step.ends_with("redeem")), "{state} {reported:?}");
        assert_eq!(outcome, None, "{state}");
    }
}

/// What the broker dead-lettered is asked about a few times, whatever is heard, and never sent.
#[test]
fn dead_letters_are_only_queried_and_end_after_three_calls() {
    let replies: [fn() -> CallResult; 12] = [
        used_by_us,
        usable,
        returned,
        used_by_another,
        cut,
        probe,
        unreachable,
        denied,
        about_another_coupon,
        || in_state("EXPIRED"),
        || signed(401, "SIGN_ERROR"),
        || signed(429, "RATELIMIT_EXCEEDED"),
    ];
    let effects = [
        EffectState::NoEffect,
        EffectState::Unknown,
        EffectState::SeenUsed,
        EffectState::Rejected { reason: Reason::NotUsable, may_be_ours: false },
        EffectState::Rejected { reason: Reason::NumberConflict, may_be_ours: true },
    ];
    // Every three replies in every order, from every effect that a retry message may carry, long over or just ended.
    for (script, effect) in (0..replies.len().pow(3)).flat_map(|nth| effects.map(|effect| (nth, effect))) {
        'each: for ended in [None, Some(start()), Some(later(start(), Duration::from_secs(3_600)))] {
            let mut now = later(start(), Duration::from_secs(3_600));
            let rejection = effect.rejection().map(|_| rejection());
            let mut progress = Progress::resumed(4, 1, effect, start(), later(start(), HOUR * 24), rejection);
            let limits = progress.only_query(Reason::DeliveryLimit, ended, &Limits::default());
            let mut step = progress.start(&limits, now);
            let mut calls = 0;
            let outcome = loop {
                match step {
                    Step::Finish(outcome) => break outcome,
                    Step::Send { after, operation } => {
                        assert_eq!(operation, Operation::Query, "{script} {effect:?} {ended:?}");
                        now = later(now, after);
                        let nth = script / replies.len().pow(calls % 3) % replies.len();
                        let reply = replies[nth]();
                        calls += 1;
                        let verdict = progress.advance(operation, &reply, &redemption());
                        step = progress.follow_verdict(operation, reply, verdict, &limits, now, 0.5);
                    }
                    // It goes back to the others, and is asked about when the fault is gone.
                    Step::Suspend(_) => continue 'each,
                    Step::Delay { .. } => panic!("{script} {effect:?} {ended:?}: {step:?}"),
                }
                assert!(calls <= 5, "{script} {effect:?} {ended:?}: no end");
            };
            match &outcome {
                Outcome::Unresolved { reason, .. } => assert_eq!(*reason, Reason::DeliveryLimit),
                Outcome::Redeemed { .. } => assert!(heard(script, &replies, calls, 0), "{script}"),
                Outcome::Refused { .. } => {}
                Outcome::Invalid => panic!("{script} {effect:?}"),
            }
        }
    }
}

/// Whether one of the replies that were heard is the one of this number.
fn heard(script: usize, replies: &[fn() -> CallResult], calls: u32, wanted: usize) -> bool {
    (0..calls).any(|call| script / replies.len().pow(call % 3) % replies.len() == wanted)
}

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn a_verified_answer_that_names_us_ends_it() {
    check(&[used_by_us()], &["0s redeem"], "redeemed by response");
    check(&[in_state("USED")], &["0s redeem"], "redeemed by response");
}

#[test]
fn a_verified_answer_that_contradicts_us_is_asked_about() {
    let asked = ["0s redeem", "2s query"];
    check(&[used_by_another(), used_by_us()], &asked, "redeemed by query");
    check(&[returned(), returned()], &asked, "refused returned_since by query");
    check(&[usable(), used_by_another()], &asked, "refused used_by_another by query");
}

#[test]
fn what_was_not_accepted_is_asked_again() {
    let again = ["0s redeem", "1s redeem"];
    let locked = error(403, "NOT_ENOUGH", Some(272_756_746), Authenticity::Verified);
    for reply in [signed(429, "RATELIMIT_EXCEEDED"), signed(403, "RATE_LIMITED"), locked, unreachable()] {
        check(&[reply, used_by_us()], &again, "redeemed by response");
    }
}

#[test]
fn unknown_effect_is_queried_after_the_query_delay() {
    let asked = ["0s redeem", "2s query"];
    for reply in [
        cut(),
        CallResult::NoResponse(NoResponse::Timeout),
        CallResult::NoResponse(NoResponse::TooLarge),
        probe(),
        CallResult::Response(answer(200, Authenticity::Unsigned)),
        CallResult::Response(answer(202, Authenticity::Invalid(SignatureFlaw::UnknownSerial))),
        CallResult::Response(answer(200, Authenticity::Invalid(SignatureFlaw::Stale))),
        signed(500, "SYSTEM_ERROR"),
        unsigned(502, ""),
        unsigned(408, ""),
        about_another_coupon(),
        CallResult::Response(answer(202, Authenticity::Verified)),
        unsigned(429, "FREQUENCY_LIMITED"),
        unsigned(403, "RATE_LIMITED"),
        unsigned(403, "NO_AUTH"),
        error(403, "NOT_ENOUGH", Some(272_756_746), Authenticity::Unsigned),
        unsigned(400, "PARAM_ERROR"),
        unsigned(404, "NOT_FOUND"),
        // A body that does not belong under its status.
        under(403, usable()),
        under(404, used_by_us()),
        under(429, usable()),
        signed(403, "NOT_FOUND"),
        signed(429, "NOT_ENOUGH"),
        signed(404, "RATELIMIT_EXCEEDED"),
        signed(200, "NOT_ENOUGH"),
        error(403, "", Some(268_578_776), Authenticity::Verified),
    ] {
        check(&[reply, used_by_us()], &asked, "redeemed by query");
    }
}

#[test]
fn a_401_without_a_signature_leaves_the_effect_unknown() {
    let halted = ["0s redeem", "halt unauthenticated", "0s query"];
    check(&[unsigned(401, "SIGN_ERROR"), used_by_us()], &halted, "redeemed by query");
    // A minute later whatever was under way has ended.
    let republished = ["0s redeem", "halt unauthenticated", "0s query", "2s query", "0s redeem"];
    let script = [unsigned(401, "SIGN_ERROR"), usable(), usable(), used_by_us()];
    check(&script, &republished, "redeemed by response");
    // A signed one says that nobody worked on it.
    let refused = ["0s redeem", "halt unauthenticated", "0s redeem"];
    check(&[signed(401, "SIGN_ERROR"), used_by_us()], &refused, "redeemed by response");
}

#[test]
fn unsigned_rejections_never_end_a_command() {
    for status in (400..=499).filter(|status| *status != 401) {
        for code in ["NOT_ENOUGH", "NOT_FOUND", "NO_AUTH", "PARAM_ERROR", ""] {
            let run = Run::of(60, 1_000);
            let (mut script, mut ended) = (Vec::new(), None);
            // As many as it takes, each followed by looks that find the coupon usable, until the deadline.
            for _ in 0..40 {
                script.extend([unsigned(status, code), usable(), usable()]);
                if let Some(outcome) = run.outcome(&script) {
                    ended = Some(outcome);
                    break;
                }
            }
            let ended = ended.unwrap_or_else(|| panic!("{status} {code}: it does not end"));
            assert_eq!(in_words(&ended), "unresolved deadline_passed by deadline", "{status} {code}");
        }
    }
}

#[test]
fn same_body_is_sent_again_after_two_settled_negatives() {
    check(
        &[cut(), usable(), usable(), used_by_us()],
        &["0s redeem", "2s query", "2s query", "0s redeem"],
        "redeemed by response",
    );
}

/// The ways in which "this number was already used" may be reported: none is published.
fn already_used() -> [CallResult; 6] {
    [
        signed(400, "INVALID_REQUEST"),
        signed(400, "ALREADY_EXISTS"),
        signed(403, "OUT_TRADE_NO_USED"),
        error(400, "INVALID_REQUEST", Some(268_578_101), Authenticity::Verified),
        error(400, "PARAM_ERROR", Some(268_578_927), Authenticity::Verified),
        error(403, "NOT_ENOUGH", Some(272_756_745), Authenticity::Verified),
    ]
}

#[test]
fn a_number_said_to_be_used_already_turns_out_to_be_ours() {
    let twice = ["0s redeem", "2s query", "2s query", "0s redeem", "2s query"];
    let slow = ["0s redeem", "2s query", "2s query"];
    for reported in already_used() {
        check(&[cut(), usable(), usable(), reported.clone(), used_by_us()], &twice, "redeemed by query");
        check(&[reported.clone(), used_by_us()], &slow[..2], "redeemed by query");
        check(&[reported, usable(), used_by_us()], &slow, "redeemed by query");
    }
}

#[test]
fn number_already_used_is_refused_on_two_settled_queries() {
    let slow = ["0s redeem", "2s query", "2s query"];
    for reported in already_used() {
        let (steps, outcome) = Run::default().play(Start::Fresh, &[reported.clone(), usable(), usable()]);
        assert_eq!(steps, slow);
        let reason = outcome.reason().unwrap();
        assert!(
            [Reason::Rejected, Reason::NumberConflict, Reason::InvalidParameter].contains(&reason),
            "a usable coupon is used by nobody: {reason:?}"
        );
        assert!(outcome.rejection().is_some());
        check(&[reported.clone(), used_by_another()], &slow[..2], "refused used_by_another by query");
        check(&[reported, in_state("DELETED"), in_state("DELETED")], &slow, "refused deleted by query");
    }
}

#[test]
fn a_signed_refusal_stands_once_the_coupon_was_seen() {
    let asked = ["0s redeem", "0s query"];
    check(&[signed(403, "NOT_ENOUGH"), usable()], &asked, "refused not_usable by query");
    // A coupon that is seen is there, whatever was said.
    check(&[signed(404, "NOT_FOUND"), usable()], &asked, "refused rejected by query");
    check(&[signed(403, "NOT_ENOUGH"), in_state("EXPIRED")], &asked, "refused expired by query");
    // What the use was rejected for says more than that there is no such coupon.
    for (rejection, ending) in [
        (signed(403, "NOT_ENOUGH"), "refused not_usable by query"),
        (signed(404, "NOT_FOUND"), "refused not_found by query"),
        (
            error(404, "NOT_FOUND", Some(268_578_851), Authenticity::Verified),
            "refused no_such_coupon by query",
        ),
    ] {
        // An error names no coupon: it may belong to another command, so it is asked about once more.
        let (gone, again) = (|| signed(404, "NOT_FOUND"), ["0s redeem", "0s query", "2s query"]);
        check(&[rejection.clone(), gone(), gone()], &again, ending);
        check(&[rejection, gone(), used_by_us()], &again, "redeemed by query");
    }
}

/// The use took effect. Its response is withheld, and those of other commands to a coupon that is not there come instead.
#[test]
fn two_errors_of_another_command_do_not_refuse_a_redeemed_one() {
    let errors = [
        signed(404, "NOT_FOUND"),
        error(404, "NOT_FOUND", Some(268_578_851), Authenticity::Verified),
        error(400, "INVALID_REQUEST", Some(268_578_704), Authenticity::Verified),
    ];
    for error in errors {
        let script = [error.clone(), error, used_by_us()];
        let (steps, outcome) = Run::default().play(Start::Fresh, &script);
        assert_eq!(in_words(&outcome), "redeemed by query", "{steps:?}");
    }
}

#[test]
fn usable_coupon_is_not_reported_beside_a_denying_reason() {
    for number in [272_756_745, 268_578_776, 272_756_790, 272_756_769, 268_578_851, 268_578_608] {
        for (status, code) in [(403, "NOT_ENOUGH"), (404, "NOT_FOUND"), (400, "INVALID_REQUEST")] {
            let rejection = error(status, code, Some(number), Authenticity::Verified);
            let ended = [1, 2].map(|looks| {
                let script: Vec<_> =
                    [rejection.clone()].into_iter().chain((0..looks).map(|_| usable())).collect();
                Run::default().outcome(&script)
            });
            let outcome = ended.into_iter().flatten().next().unwrap();
            assert_eq!(outcome.reason(), Some(Reason::Rejected), "{status} {code} {number}");
            assert_eq!(outcome.coupon().unwrap().state, CouponState::Effective);
        }
    }
}

#[test]
fn coupon_is_not_reported_beside_a_later_denial() {
    let gone = |code, number| error(403, code, Some(number), Authenticity::Verified);
    // Usable when it was looked at, then rejected as deleted, and no further look is granted.
    let script = [usable(), error(404, "NOT_FOUND", Some(268_578_851), Authenticity::Verified), denied()];
    let (_, outcome) = Run::default().play(Start::Copy(EffectState::NoEffect), &script);
    assert_eq!(in_words(&outcome), "refused no_such_coupon by response");
    assert_eq!(outcome.coupon(), None);
    let script = [
        usable(),
        gone("NOT_ENOUGH", 268_578_776),
        gone("NOT_ENOUGH", 268_578_776),
        gone("NOT_ENOUGH", 268_578_776),
    ];
    let (_, outcome) = Run::default().play(Start::Copy(EffectState::NoEffect), &script);
    assert_eq!(in_words(&outcome), "refused expired by query");
    assert_eq!(outcome.coupon(), None);
}

#[test]
fn a_clock_that_is_set_back_makes_no_wait_longer() {
    let limits = Limits { delays: vec![], ..Limits::default() };
    let (now, deadline) = (start(), later(start(), Duration::from_secs(864_000)));
    let mut progress = Progress::new(now, deadline, true);
    progress.start(&limits, now);
    let back = now.saturating_sub(SignedDuration::from_hours(5)).unwrap();
    let verdict = classify(Operation::Query, &usable(), &redemption());
    let step = progress.follow_verdict(Operation::Query, usable(), verdict, &limits, back, 0.5);
    assert_eq!(step, Step::Send { after: Duration::from_secs(17), operation: Operation::Query });
}

#[test]
fn an_query_rejected_like_the_redeem_confirms_the_rejection() {
    let appid = |code: &str, number| error(400, code, number, Authenticity::Verified);
    let same = || appid("INVALID_REQUEST", Some(268_578_704));
    let slow = ["0s redeem", "2s query", "2s query"];
    check(&[same(), same(), same()], &slow, "refused appid_not_bound by query");
    check(&[same(), same(), used_by_us()], &slow, "redeemed by query");
    let unlike = [
        appid("PARAM_ERROR", Some(268_578_704)),
        appid("INVALID_REQUEST", Some(268_578_526)),
        appid("INVALID_REQUEST", None),
        error(400, "INVALID_REQUEST", Some(268_578_704), Authenticity::Unsigned),
    ];
    for other in unlike {
        let steps = ["0s redeem", "2s query", "1s query"];
        check(&[same(), other, used_by_us()], &steps, "redeemed by query");
    }
    // Without a number nobody knows which of its causes a code means; and that a use took effect is the answer to a use only.
    for rejection in [
        signed(400, "INVALID_REQUEST"),
        appid("INVALID_REQUEST", Some(0)),
        appid("INVALID_REQUEST", Some(272_756_745)),
        appid("INVALID_REQUEST", Some(268_578_927)),
    ] {
        let script = [rejection.clone(), rejection, used_by_us()];
        check(&script, &["0s redeem", "2s query", "1s query"], "redeemed by query");
    }
}

/// How long these steps take in all.
fn seconds_of(steps: &[String]) -> f64 {
    let seconds = |step: &String| {
        let word = step.split(' ').find(|word| word.ends_with('s') && word.len() > 1)?;
        word.trim_end_matches('s').parse::<f64>().ok()
    };
    steps.iter().filter_map(seconds).sum()
}

/// A redelivered command with the openid of another app stayed unresolved until its deadline, a day later.
#[test]
fn unknown_use_ends_in_minutes_if_queries_reject_an_id() {
    let by_number = |number| error(400, "INVALID_REQUEST", Some(number), Authenticity::Verified);
    let run = Run::default();
    for number in [268_578_526, 268_578_704, 268_578_608] {
        let query = || by_number(number);
        let rejected: Vec<_> = std::iter::repeat_n(query(), 100).collect();
        let lost: Vec<_> = [cut()].into_iter().chain(rejected.clone()).collect();
        for (from, script, uses) in [
            (Start::Redelivered, &rejected, 0),
            (Start::Copy(EffectState::Unknown), &rejected, 0),
            (Start::Fresh, &lost, 1),
        ] {
            let (steps, _, outcome) = run.perform(from, script);
            let Some(Outcome::Unresolved { reason, rejection, .. }) = outcome else { panic!("{steps:?}") };
            assert_eq!(reason.as_str(), "query_rejected", "{steps:?}");
            assert_eq!(rejection.and_then(|said| said.sub_code), Some(number));
            assert_eq!(steps.iter().filter(|step| step.ends_with("redeem")).count(), uses, "{steps:?}");
            assert!((300.0..600.0).contains(&seconds_of(&steps)), "{} s: {steps:?}", seconds_of(&steps));
        }
        // Whatever else comes in between begins the time again, and what shows our use ends it.
        let mut script = rejected[..12].to_vec();
        script.push(cut());
        script.push(used_by_us());
        let (_, _, outcome) = run.perform(Start::Redelivered, &script[8..]);
        assert_eq!(in_words(&outcome.unwrap()), "redeemed by query");
    }
    // These say nothing about an id, or not by a signature, or a use was seen: they wait for the deadline.
    let unsigned = error(400, "INVALID_REQUEST", Some(268_578_526), Authenticity::Unsigned);
    for (from, query) in [
        (Start::Redelivered, signed(400, "INVALID_REQUEST")),
        (Start::Redelivered, unsigned),
        (Start::Redelivered, denied()),
        (Start::Copy(EffectState::SeenUsed), by_number(268_578_526)),
    ] {
        let script: Vec<_> = std::iter::repeat_n(query, 400).collect();
        let (steps, _, outcome) = run.perform(from, &script);
        assert_eq!(in_words(&outcome.unwrap()), "unresolved deadline_passed by deadline");
        assert!(seconds_of(&steps) > 23.0 * 3_600.0, "{steps:?}");
    }
}

/// Without delay queues as well, and a retry message carries since when.
#[test]
fn minutes_of_rejected_queries_are_counted_over_delays() {
    let openid = || error(400, "INVALID_REQUEST", Some(268_578_526), Authenticity::Verified);
    let script: Vec<_> = std::iter::repeat_n(openid(), 400).collect();
    for delays in [vec![], vec![HOUR], vec![Duration::from_secs(30)]] {
        let limits = Limits { delays: delays.clone(), ..Limits::default() };
        let (steps, _, outcome) = Run { limits, ..Run::default() }.perform(Start::Redelivered, &script);
        assert_eq!(in_words(&outcome.unwrap()), "unresolved query_rejected by deadline", "{delays:?}");
        assert!(steps.len() < 100, "{delays:?} {steps:?}");
    }
}

/// What was never sent is refused: no use of ours is known that might have taken effect.
#[test]
fn unsent_command_is_refused_if_queries_reject_an_id() {
    let openid = || error(400, "INVALID_REQUEST", Some(268_578_526), Authenticity::Verified);
    let script = [openid(), openid()];
    let from = Start::Copy(EffectState::NoEffect);
    Run::default().check(from, &script, &["0s query", "2s query"], "refused openid_mismatch by query");
    // One that comes while another delivery may be under way does not count.
    let script = [openid(), openid(), openid()];
    let steps = ["0s query", "delay 10s", "0s query"];
    let (reported, _, outcome) = Run::default().perform(Start::CopyOfNow(EffectState::NoEffect), &script);
    assert_eq!((&reported[..3], &outcome), (&steps.map(str::to_owned)[..], &None));
    let script = [openid(), usable(), used_by_us()];
    let (reported, outcome) = Run::default().play(Start::Copy(EffectState::NoEffect), &script);
    assert_eq!(in_words(&outcome), "redeemed by response", "{reported:?}");
}

/// Plays calls whose rejections are read in the light of other commands: `true` if this one may meet every command.
fn play_attributed(script: &[(CallResult, bool)]) -> (Vec<String>, Option<Outcome>) {
    let limits = Limits { delays: vec![], in_process_max: HOUR, ..Limits::default() };
    let mut now = start();
    let mut progress = Progress::new(now, later(now, HOUR * 24), false);
    let mut step = progress.start(&limits, now);
    let mut steps = Vec::new();
    for (reply, may_be_common) in script {
        step = match step {
            Step::Suspend(_) => progress.resume(&limits, now),
            step => step,
        };
        let Step::Send { after, operation } = step else { break };
        steps.push(format!("{}s {}", after.as_secs_f64(), operation.as_str()));
        now = later(now, after);
        let verdict = match progress.advance(operation, reply, &redemption()) {
            Verdict::Rejected { reason, .. } if *may_be_common => {
                Verdict::Unknown(UnknownCause::MayBeCommon(reason))
            }
            verdict => verdict,
        };
        step = progress.follow_verdict(operation, reply.clone(), verdict, &limits, now, 0.5);
    }
    match step {
        Step::Finish(outcome) => (steps, Some(outcome)),
        _ => (steps, None),
    }
}

#[test]
fn rejection_maybe_common_counts_after_two_queries() {
    let wrong = || error(400, "PARAM_ERROR", Some(268_435_461), Authenticity::Verified);
    let (unclear, own) = (|| (wrong(), true), || (wrong(), false));
    let script = [unclear(), unclear(), unclear(), own(), own()];
    let (steps, outcome) = play_attributed(&script);
    assert_eq!(steps, ["0s redeem", "2s query", "1s query", "2s query", "2s query"]);
    assert_eq!(outcome.as_ref().map(in_words).as_deref(), Some("refused invalid_parameter by query"));
    assert_eq!(outcome.unwrap().rejection().unwrap().sub_code, Some(268_435_461));
    // Any other result in between starts the row again.
    for between in [unclear(), (cut(), false), (usable(), false)] {
        let script = [unclear(), own(), between, own()];
        assert_eq!(play_attributed(&script).1, None);
    }
    // As long as it may be common it ends nothing, and a look that is accepted lets the command out again.
    let waiting: Vec<_> = (0..40).map(|_| unclear()).collect();
    assert_eq!(play_attributed(&waiting).1, None);
    let fixed = [unclear(), unclear(), (usable(), false), (usable(), false), (used_by_us(), false)];
    let (steps, outcome) = play_attributed(&fixed);
    assert_eq!(steps[2..], ["1s query", "2s query", "0s redeem"]);
    assert!(matches!(outcome, Some(Outcome::Redeemed { .. })));
    let (_, outcome) = play_attributed(&[unclear(), (returned(), false)]);
    assert_eq!(outcome.as_ref().map(in_words).as_deref(), Some("refused returned_since by query"));
    let (_, outcome) = play_attributed(&[unclear(), (used_by_us(), false)]);
    assert_eq!(outcome.as_ref().map(in_words).as_deref(), Some("redeemed by query"));
}

/// A rejection was taken for the command's own, and then it turns out that every command may be rejected so.
#[test]
fn common_rejection_is_not_attributed_to_the_command() {
    let wrong = || error(400, "PARAM_ERROR", Some(268_435_461), Authenticity::Verified);
    let fixed = [(usable(), false), (usable(), false), (used_by_us(), false)];
    let doubt = [(wrong(), false), (wrong(), true)];
    let script: Vec<_> = doubt.into_iter().chain(fixed).collect();
    assert!(matches!(play_attributed(&script).1, Some(Outcome::Redeemed { .. })));
    // The same if calls are suspended for it meanwhile; a reason that says more than that stays.
    let limits = Limits { delays: vec![], ..Limits::default() };
    for (first, kept) in [(wrong(), false), (signed(403, "NOT_ENOUGH"), true)] {
        let mut progress = Progress::new(start(), later(start(), HOUR * 24), false);
        progress.start(&limits, start());
        let verdict = progress.advance(Operation::Redeem, &first, &redemption());
        progress.follow_verdict(Operation::Redeem, first, verdict, &limits, start(), 0.5);
        let common = Verdict::Suspended(SuspendReason::Rejected);
        progress.follow_verdict(Operation::Query, wrong(), common, &limits, start(), 0.5);
        assert_eq!(progress.effect.rejection().is_some(), kept);
        assert!(progress.effect.signed_rejection().is_some());
    }
}

/// A use is rejected like those of commands that share nothing with it. That names no cause: it may report an earlier use of
/// the same number, so nothing is sent, and nothing refused, before queries.
#[test]
fn rejection_alike_leaves_the_effect_unknown() {
    let limits = Limits { delays: vec![], ..Limits::default() };
    let play = |script: &[CallResult]| {
        let mut now = start();
        let mut progress = Progress::new(now, later(now, HOUR * 24), false);
        progress.start(&limits, now);
        let wrong = signed(400, "PARAM_ERROR");
        let alike = Verdict::RejectedAlike(Reason::InvalidParameter);
        let step = progress.follow_verdict(Operation::Redeem, wrong, alike, &limits, now, 0.5);
        assert_eq!(step, Step::Suspend(SuspendReason::Rejected));
        assert_eq!((progress.attempts, progress.suspended), (1, 1));
        let mut step = progress.resume(&limits, now);
        let mut steps = Vec::new();
        for reply in script {
            let Step::Send { after, operation } = step else { break };
            steps.push(operation.as_str());
            now = later(now, after);
            let verdict = progress.advance(operation, reply, &redemption());
            step = progress.follow_verdict(operation, reply.clone(), verdict, &limits, now, 0.5);
        }
        (steps, step)
    };
    // The model's shortest trace: a query that is not granted let the same body out, and the user had returned the coupon.
    let (steps, _) = play(&[denied(), denied(), denied()]);
    assert_eq!(steps, ["query", "query", "query"]);
    let (steps, step) = play(&[usable(), usable(), usable(), used_by_us()]);
    assert_eq!(steps.last(), Some(&"redeem"));
    assert!(matches!(step, Step::Finish(Outcome::Redeemed { .. })), "{step:?}");
    let (_, step) = play(&[returned(), returned()]);
    assert!(matches!(step, Step::Finish(Outcome::Refused { reason: Reason::ReturnedSince, .. })), "{step:?}");
}

/// The words of an answer that was not believed are kept for people. A look with the same words confirms nothing, shows no
/// usable coupon, and lets no use out.
#[test]
fn signed_look_confirms_no_rejection_that_was_not_believed() {
    let unbelieved = [
        error(400, "INVALID_REQUEST", Some(268_578_704), Authenticity::Unsigned),
        error(500, "INVALID_REQUEST", Some(268_578_704), Authenticity::Unsigned),
        error(400, "INVALID_REQUEST", Some(268_578_704), Authenticity::Invalid(SignatureFlaw::Mismatch)),
    ];
    let twin = || error(400, "INVALID_REQUEST", Some(268_578_704), Authenticity::Verified);
    for first in unbelieved {
        let script = [first, twin(), twin(), twin(), used_by_us()];
        let (steps, outcome) = Run::default().play(Start::Fresh, &script);
        assert_eq!(steps.iter().filter(|step| step.ends_with("redeem")).count(), 1, "{steps:?}");
        assert!(matches!(outcome, Outcome::Redeemed { .. }), "{outcome:?}");
    }
}

#[test]
fn a_signed_refusal_after_a_doubt_stands_on_two_settled_queries() {
    let refusal = || signed(403, "NOT_ENOUGH");
    let steps = ["0s redeem", "2s query", "2s query", "0s redeem", "2s query", "2s query"];
    check(&[cut(), usable(), usable(), refusal(), usable(), usable()], &steps, "refused not_usable by query");
    check(
        &[cut(), usable(), usable(), signed(400, "PARAM_ERROR"), usable(), usable()],
        &steps,
        "refused invalid_parameter by query",
    );
    check(
        &[unsigned(403, ""), usable(), usable(), refusal(), usable(), used_by_us()],
        &steps,
        "redeemed by query",
    );
    // Of a copy it is always assumed: another delivery of the command may have sent the body.
    let copied = ["0s query", "0s redeem", "2s query", "2s query"];
    for (last, ending) in [(usable(), "refused not_usable by query"), (used_by_us(), "redeemed by query")] {
        let script = [usable(), refusal(), usable(), last];
        Run::default().check(Start::Copy(EffectState::NoEffect), &script, &copied, ending);
    }
}

#[test]
fn shared_command_is_queried_after_every_wait_before_a_use() {
    let declined = || signed(429, "RATELIMIT_EXCEEDED");
    let script = [usable(), declined(), usable(), declined(), used_by_us()];
    let steps = ["0s query", "0s redeem", "1s query", "0s redeem", "2s query"];
    Run::default().check(Start::Copy(EffectState::NoEffect), &script, &steps, "redeemed by query");
    // A look that comes to nothing permits nothing.
    let script = [usable(), declined(), cut(), usable(), used_by_us()];
    let steps = ["0s query", "0s redeem", "1s query", "2s query", "0s redeem"];
    Run::default().check(Start::Copy(EffectState::NoEffect), &script, &steps, "redeemed by response");
    // Who alone has ever held it need not look.
    check(
        &[declined(), declined(), used_by_us()],
        &["0s redeem", "1s redeem", "2s redeem"],
        "redeemed by response",
    );
}

#[test]
fn a_parameter_the_provider_calls_wrong_is_looked_at_first() {
    let slow = ["0s redeem", "2s query", "2s query"];
    let wrong = || signed(400, "PARAM_ERROR");
    check(&[wrong(), used_by_us()], &slow[..2], "redeemed by query");
    check(&[wrong(), usable(), used_by_us()], &slow, "redeemed by query");
    check(&[wrong(), usable(), usable()], &slow, "refused invalid_parameter by query");
}

// ---- a brand that keeps us out

fn denied() -> CallResult {
    signed(403, "NO_AUTH")
}

#[test]
fn a_denied_use_is_refused_after_a_look_where_one_is_granted() {
    let asked = ["0s redeem", "0s query"];
    check(&[denied(), usable()], &asked, "refused not_authorized by query");
    check(&[denied(), denied()], &asked, "refused not_authorized by response");
    check(&[denied(), used_by_us()], &asked, "redeemed by query");
    check(&[denied(), in_state("EXPIRED")], &asked, "refused expired by query");
}

#[test]
fn a_denied_look_is_no_ground_where_nothing_is_unknown() {
    let run = Run::default();
    let sent = ["0s query", "0s redeem"];
    run.check(Start::Copy(EffectState::NoEffect), &[denied(), used_by_us()], &sent, "redeemed by response");
    let steps = ["0s query", "0s redeem", "2s query"];
    let script = [denied(), signed(404, "NOT_FOUND"), denied()];
    run.check(Start::Copy(EffectState::NoEffect), &script, &steps, "refused not_found by response");
    let script = [denied(), denied(), denied()];
    run.check(Start::Copy(EffectState::NoEffect), &script, &steps, "refused not_authorized by response");
}

/// The same command was published twice, and the query is not granted: the second delivery was refused for the use of
/// the first one.
#[test]
fn rejection_maybe_by_our_use_needs_a_query() {
    let run = Run::of(400, 1_000);
    let numbers = [None, Some(0), Some(272_756_745), Some(268_578_367), Some(268_578_776), Some(272_756_769)];
    for (status, code) in [
        (403, "NOT_ENOUGH"),
        (400, "PARAM_ERROR"),
        (400, "INVALID_REQUEST"),
        (400, "ALREADY_EXISTS"),
        (403, "RULE_LIMIT"),
        (409, "SOMETHING_NEW"),
    ] {
        for number in numbers {
            let rejected = error(status, code, number, Authenticity::Verified);
            let denials = || (0..100).map(|_| denied());
            for from in [Start::Fresh, Start::Copy(EffectState::NoEffect)] {
                let looked = matches!(from, Start::Copy(_)).then(denied);
                let script: Vec<_> = looked.into_iter().chain([rejected.clone()]).chain(denials()).collect();
                let (steps, _, outcome) = run.perform(from, &script);
                let outcome = outcome.map(|outcome| in_words(&outcome));
                let expected = Some("unresolved deadline_passed by deadline");
                assert_eq!(outcome.as_deref(), expected, "{status} {code} {number:?} {steps:?}");
                assert_eq!(steps.iter().filter(|step| step.ends_with("redeem")).count(), 1, "{steps:?}");
            }
            // Once the right is granted, the matter is settled.
            for (seen, ending) in
                [(used_by_us(), "redeemed by query"), (returned(), "refused returned_since by query")]
            {
                let script = [rejected.clone(), denied(), seen.clone(), seen.clone(), seen];
                let outcome = Run::default().outcome(&script).as_ref().map(in_words);
                assert_eq!(outcome.as_deref(), Some(ending), "{status} {code} {number:?}");
            }
        }
    }
    // What no use of ours can cause concludes all the same.
    for (status, code, number, ending) in [
        (404, "NOT_FOUND", None, "refused not_found by response"),
        (404, "NOT_FOUND", Some(268_578_851), "refused no_such_coupon by response"),
        (404, "RESOURCE_NOT_EXISTS", None, "refused not_found by response"),
        (403, "NO_AUTH", None, "refused not_authorized by response"),
    ] {
        let script = [error(status, code, number, Authenticity::Verified), denied()];
        check(&script, &["0s redeem", "0s query"], ending);
    }
}

#[test]
fn an_unknown_use_is_never_republished_without_a_look() {
    // The same body again would be answered alike, but be a second effect after a return. So it waits for the right to
    // look, and no longer than until the deadline.
    let run = Run::of(400, 1_000);
    for unknown in
        [cut(), signed(500, "SYSTEM_ERROR"), unsigned(403, "NO_AUTH"), signed(400, "INVALID_REQUEST")]
    {
        let script: Vec<_> = [unknown].into_iter().chain((0..100).map(|_| denied())).collect();
        let (steps, left, outcome) = run.perform(Start::Fresh, &script);
        assert_eq!(steps.iter().filter(|step| step.ends_with("redeem")).count(), 1, "{steps:?}");
        assert_eq!(in_words(&outcome.unwrap()), "unresolved deadline_passed by deadline");
        assert!(left > 80, "it asks rarely: {steps:?}");
    }
    check(
        &[cut(), denied(), used_by_us()],
        &["0s redeem", "2s query", "delay 10s", "0s query"],
        "redeemed by query",
    );
}

#[test]
fn a_brand_denied_for_a_start_makes_no_command_older() {
    let (limits, redemption) = (Limits { attempts_max: 3, ..Limits::default() }, redemption());
    let (mut now, deadline) = (start(), later(start(), Duration::from_secs(86_400)));
    let mut progress = Progress::new(now, deadline, false);
    let verdict = Verdict::NotAccepted(NotAccepted::NotAuthorized);
    progress.start(&limits, now);
    for nth in 1..=50 {
        // The copy may look no more than redeem; the look is given up, and the redeem is denied again.
        let step = progress.follow_verdict(Operation::Redeem, denied(), verdict.clone(), &limits, now, 0.5);
        assert_eq!(step, Step::Delay { queue: 0 });
        now = later(now, limits.delays[0]);
        progress = through_a_wait_queue(&progress, now);
        assert_eq!((progress.delays_passed, progress.effect), (0, EffectState::NoEffect));
        assert_eq!((progress.attempts, progress.suspended), (nth, nth));
        assert!(matches!(progress.start(&limits, now), Step::Send { .. }));
    }
    let step = progress.follow_verdict(
        Operation::Redeem,
        used_by_us(),
        classify(Operation::Redeem, &used_by_us(), &redemption),
        &limits,
        now,
        0.5,
    );
    assert!(matches!(step, Step::Finish(Outcome::Redeemed { .. })));
}

/// A command that is held in an outage came back two hours after its end.
#[test]
fn command_held_in_an_outage_grows_no_older() {
    let limits = Limits::default();
    let deadline = later(start(), Duration::from_secs(3_600));
    let mut now = start();
    let mut progress = Progress::new(now, deadline, false);
    while deadline.duration_since(now) > SignedDuration::from_secs(60) {
        let queue = usize::from(now.duration_since(start()) >= SignedDuration::from_secs(60));
        assert_eq!(progress.delay_held(&limits, now), Some(Step::Delay { queue }));
        now = later(now, limits.delays[queue]);
        progress = through_a_wait_queue(&progress, now);
        assert_eq!(
            (progress.delays_passed, progress.attempts, progress.effect),
            (0, 0, EffectState::NoEffect)
        );
    }
    // It comes back before its deadline, if a delay is that short.
    for left in [59, 10, 9, 0] {
        now = deadline.saturating_sub(SignedDuration::from_secs(left)).unwrap();
        assert_eq!(progress.delay_held(&limits, now), Some(Step::Delay { queue: 0 }), "{left} s left");
    }
    // Its own trouble begins with the shortest delay.
    assert_eq!(progress.delay(&limits, start()), Some(Step::Delay { queue: 0 }));
    for (delays, expected) in [(vec![], None), (vec![HOUR, HOUR * 2], Some(Step::Delay { queue: 0 }))] {
        let limits = Limits { delays, ..Limits::default() };
        assert_eq!(progress.delay_held(&limits, start()), expected);
    }
}

#[test]
fn a_fault_of_our_own_halts_and_the_same_operation_follows() {
    check(
        &[signed(401, "SIGN_ERROR"), used_by_us()],
        &["0s redeem", "halt unauthenticated", "0s redeem"],
        "redeemed by response",
    );
    check(
        &[cut(), unsigned(401, "SIGN_ERROR"), used_by_us()],
        &["0s redeem", "2s query", "halt unauthenticated", "0s query"],
        "redeemed by query",
    );
}

/// The evidence showed a 500, and `problem.http_status` was null.
#[test]
fn refusal_tells_the_last_rejected_use_whatever_it_rests_on() {
    let ends = [used_by_another(), returned(), in_state("EXPIRED")];
    for (status, code) in
        [(500, "SYSTEM_ERROR"), (429, "RATELIMIT_EXCEEDED"), (403, "NOT_ENOUGH"), (400, "PARAM_ERROR")]
    {
        for end in &ends {
            let script = [signed(status, code), end.clone(), end.clone(), end.clone()];
            let Some(outcome) = Run::default().outcome(&script) else { continue };
            let reported =
                outcome.rejection().map(|reported| (reported.http_status, reported.code.as_deref()));
            assert_eq!(reported, Some((status, Some(code))), "{}", in_words(&outcome));
        }
    }
    // If the event is not accepted, what its refusal does not rest on is believed no more.
    let rejected = |reply: CallResult| {
        let (limits, now) = (Limits::default(), start());
        let mut progress = Progress::new(now, later(now, HOUR * 24), false);
        let Step::Send { mut operation, .. } = progress.start(&limits, now) else { panic!("no call") };
        for reply in [reply, used_by_another()] {
            let verdict = progress.advance(operation, &reply, &redemption());
            let at = later(now, Duration::from_secs(3_600));
            match progress.follow_verdict(operation, reply, verdict, &limits, at, 0.5) {
                Step::Send { operation: next, .. } => operation = next,
                Step::Finish(outcome) => progress.forget_outcome(&outcome),
                other => panic!("{other:?}"),
            }
        }
        progress.effect
    };
    assert_eq!(rejected(signed(500, "SYSTEM_ERROR")), EffectState::Unknown);
    let reason = Reason::UsedByAnother;
    assert_eq!(rejected(signed(403, "NOT_ENOUGH")), EffectState::Rejected { reason, may_be_ours: false });
}

// ---- replies to "query"

#[test]
fn an_query_settles_what_was_unknown() {
    let asked = ["0s redeem", "2s query"];
    let ends = |reply: CallResult, ending: &str| check(&[cut(), reply], &asked, ending);
    ends(used_by_us(), "redeemed by query");
    ends(used_by_another(), "refused used_by_another by query");
    ends(returned(), "refused returned_since by query");
}

#[test]
fn a_state_that_ends_what_was_unknown_is_seen_twice() {
    let asked = ["0s redeem", "2s query", "2s query"];
    let ends = |reply: CallResult, ending: &str| {
        check(&[cut(), reply.clone(), reply.clone()], &asked, ending);
        check(&[cut(), usable(), reply.clone()], &asked, ending);
        check(&[cut(), reply.clone(), used_by_us()], &asked, "redeemed by query");
        check(&[cut(), reply, used_by_another()], &asked, "refused used_by_another by query");
    };
    ends(in_state("CONFIRMING"), "refused not_confirmed by query");
    ends(in_state("PENDING"), "refused not_yet_valid by query");
    ends(in_state("EXPIRED"), "refused expired by query");
    ends(in_state("DELETED"), "refused deleted by query");
    ends(in_state("DEACTIVATED"), "refused deactivated by query");
    ends(signed(404, "NOT_FOUND"), "refused no_such_coupon by query");
    check(
        &[cut(), in_state("PENDING"), usable(), used_by_us()],
        &["0s redeem", "2s query", "2s query", "0s redeem"],
        "redeemed by response",
    );
}

#[test]
fn a_sequential_coupon_is_judged_by_the_round_that_was_meant() {
    let rounds = |used: &[Option<&str>]| {
        let round = |user: &Option<&str>| Round {
            state: CouponState::from_wire(if user.is_some() { "USED" } else { "EFFECTIVE" }),
            trace: Trace { use_request_no: user.map(Into::into), ..Trace::default() },
        };
        let usage = UsageTrace::Rounds(used.iter().map(round).collect());
        says(Coupon { usage, ..coupon("EFFECTIVE", None, None) })
    };
    let check = |round: u32, script: &[CallResult], steps: &[&str], ending: &str| {
        let redemption = Redemption { sequential_coupon_index: Some(round), ..redemption() };
        Run { redemption, ..Run::default() }.check(Start::Fresh, script, steps, ending);
    };
    let (ours, other) = (Some(OURS), Some("OTHER_1"));
    let asked = ["0s redeem", "2s query"];
    check(0, &[rounds(&[ours, None])], &["0s redeem"], "redeemed by response");
    check(1, &[rounds(&[other, ours, None])], &["0s redeem"], "redeemed by response");
    check(0, &[cut(), rounds(&[other, None])], &asked, "refused used_by_another by query");
    check(1, &[cut(), rounds(&[other, ours])], &asked, "redeemed by query");
    check(
        1,
        &[cut(), rounds(&[other, None]), rounds(&[other, None]), rounds(&[other, ours, None])],
        &["0s redeem", "2s query", "2s query", "0s redeem"],
        "redeemed by response",
    );
}

#[test]
fn an_query_that_is_not_answered_authentically_is_put_again() {
    for reply in [
        cut(),
        unreachable(),
        probe(),
        signed(500, "SYSTEM_ERROR"),
        signed(429, "RATELIMIT_EXCEEDED"),
        unsigned(404, "NOT_FOUND"),
        unsigned(403, "NO_AUTH"),
        error(404, "NOT_FOUND", Some(272_756_746), Authenticity::Verified),
        in_state("FROZEN"),
        in_state("USED"),
        about_another_coupon(),
        CallResult::Response(answer(200, Authenticity::Unsigned)),
        CallResult::Response(answer(200, Authenticity::Verified)),
    ] {
        check(&[cut(), reply, used_by_us()], &["0s redeem", "2s query", "1s query"], "redeemed by query");
    }
}

#[test]
fn a_return_between_two_attempts_ends_the_sending() {
    check(
        &[cut(), usable(), returned()],
        &["0s redeem", "2s query", "2s query"],
        "refused returned_since by query",
    );
    check(
        &[unsigned(403, "NOT_ENOUGH"), usable(), usable(), cut(), returned()],
        &["0s redeem", "2s query", "2s query", "0s redeem", "2s query"],
        "refused returned_since by query",
    );
}

#[test]
fn a_coupon_deleted_meanwhile_is_refused() {
    check(
        &[cut(), usable(), in_state("DELETED")],
        &["0s redeem", "2s query", "2s query"],
        "refused deleted by query",
    );
}

// ---- deliveries that are not the first

#[test]
fn redelivered_command_starts_with_an_early_query() {
    let run = Run::default();
    run.check(Start::Redelivered, &[used_by_us()], &["0s query"], "redeemed by query");
    // Anyone who held it before may have begun a call a moment ago; that takes 15 s at most, and 2 s to be seen.
    let steps = ["0s query", "delay 10s", "0s query", "7s query", "2s query", "0s redeem"];
    for seen in
        [usable(), returned(), used_by_another(), in_state("EXPIRED"), signed(404, "NOT_FOUND"), cut()]
    {
        run.check(
            Start::Redelivered,
            &[seen.clone(), used_by_us()],
            &["0s query", "delay 10s", "0s query"],
            "redeemed by query",
        );
        run.check(Start::Redelivered, &[seen.clone(), seen, used_by_us()], &steps[..4], "redeemed by query");
    }
    let twice = |reply: fn() -> CallResult| [reply(), reply(), reply()];
    run.check(Start::Redelivered, &twice(returned), &steps[..4], "refused returned_since by query");
    let gone = || in_state("EXPIRED");
    let script = [gone(), gone(), gone(), gone()];
    run.check(Start::Redelivered, &script, &steps[..5], "refused expired by query");
    let script = [usable(), usable(), usable(), usable(), used_by_us()];
    run.check(Start::Redelivered, &script, &steps, "redeemed by response");
    // Without delay queues it waits here, and at the end of the time allowed as well.
    let here = Run { limits: Limits { delays: vec![], ..Limits::default() }, ..Run::default() };
    let script = [gone(), gone(), gone()];
    let steps = ["0s query", "17s query", "2s query"];
    here.check(Start::Redelivered, &script, &steps, "refused expired by query");
    Run::of(0, 1_000).check(Start::Redelivered, &[gone(), gone()], &steps[1..], "refused expired by query");
    Run::of(5, 1_000).check(Start::Redelivered, &script, &steps, "refused expired by query");
}

#[test]
fn recent_retry_message_ends_only_after_every_call() {
    let run = Run::default();
    let failing = || signed(500, "SYSTEM_ERROR");
    let in_process = ["0s redeem", "2s query", "1s query", "2s query", "delay 10s"];
    // Should the broker deliver once more what the copy is made of, that may have begun a call when it was made.
    let mut script = vec![failing(), failing(), failing(), failing()];
    script.extend([in_state("EXPIRED"), in_state("EXPIRED"), in_state("EXPIRED")]);
    let steps: Vec<_> = in_process.into_iter().chain(["0s query", "7s query", "2s query"]).collect();
    run.check(Start::Fresh, &script, &steps, "refused expired by query");
    // If nothing was unknown the body goes out on a look at once, as ever.
    let script = [usable(), used_by_us()];
    run.check(
        Start::CopyOfNow(EffectState::NoEffect),
        &script,
        &["0s query", "0s redeem"],
        "redeemed by response",
    );
    let script = [in_state("EXPIRED"), in_state("EXPIRED"), in_state("EXPIRED"), in_state("EXPIRED")];
    let steps = ["0s query", "delay 10s", "0s query", "7s query", "2s query"];
    run.check(Start::CopyOfNow(EffectState::NoEffect), &script, &steps, "refused expired by query");
}

#[test]
fn negatives_count_in_a_row_only() {
    let expired_under_our_number = || says(coupon("EXPIRED", Some(OURS), None));
    for between in [
        cut(),
        probe(),
        signed(429, "RATELIMIT_EXCEEDED"),
        signed(500, "SYSTEM_ERROR"),
        in_state("FROZEN"),
        expired_under_our_number(),
    ] {
        let steps = ["0s redeem", "2s query", "2s query", "1s query", "2s query"];
        let script = |seen: fn() -> CallResult| [cut(), seen(), between.clone(), seen(), seen()];
        check(&script(|| in_state("EXPIRED")), &steps, "refused expired by query");
        let sent: Vec<_> = script(usable).into_iter().chain([used_by_us()]).collect();
        check(&sent, &[&steps[..], &["0s redeem"]].concat(), "redeemed by response");
    }
}

#[test]
fn a_use_seen_under_no_number_and_then_gone_was_returned() {
    let steps = ["0s redeem", "2s query", "2s query", "1s query", "2s query"];
    let script = [cut(), usable(), in_state("USED"), usable(), usable()];
    check(&script, &steps, "refused returned_since by query");
    let script = [cut(), usable(), in_state("USED"), used_by_us()];
    check(&script, &steps[..4], "redeemed by query");
    // Through a delay queue as well.
    let run = Run::default();
    let script = [usable(), usable()];
    run.check(
        Start::Copy(EffectState::SeenUsed),
        &script,
        &["0s query", "2s query"],
        "refused returned_since by query",
    );
}

#[test]
fn return_long_before_the_first_attempt_is_not_of_our_use() {
    let returned_at = |seconds_before: i64| {
        let mut coupon = coupon("EFFECTIVE", None, Some("R1"));
        let UsageTrace::Single(trace) = &mut coupon.usage else { unreachable!() };
        trace.return_time = Some(start().saturating_sub(SignedDuration::from_secs(seconds_before)).unwrap());
        says(coupon)
    };
    let sent = ["0s redeem", "2s query", "2s query", "0s redeem"];
    check(&[cut(), returned_at(3_600), returned_at(3_600), used_by_us()], &sent, "redeemed by response");
    check(&[cut(), returned_at(300)], &sent[..2], "refused returned_since by query");
    check(&[cut(), returned_at(-1)], &sent[..2], "refused returned_since by query");
    check(&[cut(), returned()], &sent[..2], "refused returned_since by query");
    // Of a command that others have held first, nobody knows when it was first sent.
    let script = [returned_at(3_600), returned_at(3_600), returned_at(3_600)];
    let steps = ["0s query", "delay 10s", "0s query", "7s query"];
    Run::default().check(Start::Redelivered, &script, &steps, "refused returned_since by query");
}

#[test]
fn what_an_event_tells_of_a_coupon_and_of_calls_travels() {
    let limits = Limits::default();
    let deadline = later(start(), Duration::from_secs(86_400));
    let mut progress = Progress::new(start(), deadline, false);
    progress.start(&limits, start());
    let mut follow = |operation, reply: CallResult| {
        let verdict = progress.advance(operation, &reply, &redemption());
        progress.follow_verdict(operation, reply, verdict, &limits, start(), 0.5);
    };
    for _ in 0..5 {
        follow(Operation::Redeem, signed(401, "SIGN_ERROR"));
    }
    follow(Operation::Redeem, cut());
    follow(Operation::Query, in_state("FROZEN"));
    let now = later(start(), Duration::from_secs(10));
    let back = through_a_wait_queue(&progress, now);
    assert_eq!((back.attempts, back.suspended), (7, 5), "every call is counted, ours to fix or not");
    assert_eq!(back.coupon.unwrap().state, CouponState::from_wire("FROZEN"));
    assert_eq!(back.unsent_before, Some(start()));
}

#[test]
fn every_copy_begins_with_a_look() {
    let reason = Reason::NotUsable;
    for effect in [
        EffectState::NoEffect,
        EffectState::Unknown,
        EffectState::Rejected { reason, may_be_ours: true },
        EffectState::Rejected { reason, may_be_ours: false },
    ] {
        Run::default().check(Start::Copy(effect), &[used_by_us()], &["0s query"], "redeemed by query");
    }
}

#[test]
fn what_a_copy_with_nothing_unknown_sees_stands_at_once() {
    let effect = EffectState::NoEffect;
    let ends = |reply: CallResult, ending: &str| {
        Run::default().check(Start::Copy(effect), &[reply], &["0s query"], ending);
    };
    // The delivery that it was copied from may have lived on, redeemed, and seen a return.
    ends(returned(), "refused returned_since by query");
    ends(used_by_another(), "refused used_by_another by query");
    ends(in_state("EXPIRED"), "refused expired by query");
    ends(in_state("PENDING"), "refused not_yet_valid by query");
    // But for an error, which does not show the coupon.
    let (gone, twice) = (|| signed(404, "NOT_FOUND"), ["0s query", "2s query"]);
    let run = Run::default();
    run.check(Start::Copy(effect), &[gone(), gone()], &twice, "refused no_such_coupon by query");
    run.check(Start::Copy(effect), &[gone(), used_by_us()], &twice, "redeemed by query");
}

#[test]
fn a_copy_sends_the_body_only_once_the_coupon_was_seen_usable() {
    let effect = EffectState::NoEffect;
    let run = Run::default();
    let sent = [usable(), used_by_us()];
    run.check(Start::Copy(effect), &sent, &["0s query", "0s redeem"], "redeemed by response");
    for reply in [
        cut(),
        unreachable(),
        probe(),
        signed(500, "SYSTEM_ERROR"),
        signed(429, "RATELIMIT_EXCEEDED"),
        unsigned(404, "NOT_FOUND"),
        in_state("FROZEN"),
    ] {
        let script = [reply.clone(), reply, usable(), used_by_us()];
        let steps = ["0s query", "1s query", "2s query", "0s redeem"];
        run.check(Start::Copy(effect), &script, &steps, "redeemed by response");
    }
    run.check(
        Start::Copy(effect),
        &[usable(), signed(401, "SIGN_ERROR"), returned()],
        &["0s query", "0s redeem", "halt unauthenticated", "0s query"],
        "refused returned_since by query",
    );
}

#[test]
fn a_copy_with_an_rejection_is_refused_on_two_settled_queries() {
    let steps = ["0s query", "2s query"];
    let effect = EffectState::Rejected { reason: Reason::NotUsable, may_be_ours: false };
    let run = Run::default();
    run.check(Start::Copy(effect), &[usable(), usable()], &steps, "refused not_usable by query");
    run.check(Start::Copy(effect), &[usable(), used_by_us()], &steps, "redeemed by query");
}

#[test]
fn a_copy_delivered_again_begins_with_an_query() {
    let reason = Reason::NotUsable;
    let first = |effect: EffectState, step: &str| {
        let (steps, _) = Run::default().play(Start::CopyRedelivered(effect), &[used_by_us()]);
        assert_eq!(steps, [step], "{effect:?}");
    };
    first(EffectState::NoEffect, "0s query");
    first(EffectState::Unknown, "0s query");
    // A refusal is never followed by a redeem.
    first(EffectState::Rejected { reason, may_be_ours: true }, "0s query");
    first(EffectState::Rejected { reason, may_be_ours: false }, "0s query");
}

// ---- waiting

#[test]
fn waits_grow_in_process_and_then_from_delay_to_delay() {
    let busy = || signed(429, "RATELIMIT_EXCEEDED");
    let script: Vec<_> = (0..4 * 7).map(|_| busy()).chain([usable(), used_by_us()]).collect();
    let (steps, outcome) = Run::default().play(Start::Fresh, &script);
    assert_eq!(in_words(&outcome), "redeemed by response");
    let in_process =
        |operation: &'static str| ["0s", "1s", "2s", "4s"].map(|wait| format!("{wait} {operation}"));
    let delays =
        ["delay 10s", "delay 60s", "delay 300s", "delay 1800s", "delay 7200s", "delay 7200s", "delay 7200s"];
    let mut wanted = Vec::new();
    for (nth, delay) in delays.into_iter().enumerate() {
        wanted.extend(in_process(if nth == 0 { "redeem" } else { "query" }));
        wanted.push(delay.to_owned());
    }
    wanted.extend(["0s query", "0s redeem"].map(str::to_owned));
    assert_eq!(steps, wanted);
}

#[test]
fn no_delay_outlasts_the_deadline() {
    let busy = || signed(429, "RATELIMIT_EXCEEDED");
    // 30 s allowed: after 7 s in process and the delay of 10 s, 6 s more are too few for a delay.
    let script: Vec<_> = (0..9).map(|_| busy()).chain([usable()]).collect();
    let steps = [
        "0s redeem",
        "1s redeem",
        "2s redeem",
        "4s redeem",
        "delay 10s",
        "0s query",
        "1s query",
        "2s query",
        "4s query",
        "6s query",
        "0s query",
    ];
    Run::of(30, 1_000).check(Start::Fresh, &script, &steps, "unresolved deadline_passed by deadline");
}

#[test]
fn without_delays_everything_waits_in_process() {
    let run = Run { limits: Limits { delays: vec![], ..Limits::default() }, ..Run::default() };
    let script: Vec<_> = (0..6).map(|_| signed(429, "RATELIMIT_EXCEEDED")).chain([used_by_us()]).collect();
    let waits = ["0s redeem", "1s redeem", "2s redeem", "4s redeem", "8s redeem", "16s redeem", "30s redeem"];
    run.check(Start::Fresh, &script, &waits, "redeemed by response");
}

// ---- the end of the time allowed

#[test]
fn at_the_deadline_one_last_query_decides() {
    let at_once = |script: &[CallResult], ending: &str| {
        Run::of(0, 1_000).check(Start::Fresh, script, &["0s query"], ending)
    };
    at_once(&[used_by_us()], "redeemed by query");
    at_once(&[in_state("EXPIRED")], "refused expired by query");
    at_once(&[usable()], "unresolved deadline_passed by deadline");
    at_once(&[cut()], "unresolved deadline_passed by deadline");
    at_once(&[signed(500, "SYSTEM_ERROR")], "unresolved deadline_passed by deadline");
}

#[test]
fn a_settling_time_is_never_cut_short_by_the_deadline() {
    // One second is left, and the query that follows may decide: before its time it would prove nothing.
    let run = Run::of(1, 1_000);
    run.check(Start::Fresh, &[cut(), used_by_us()], &["0s redeem", "2s query"], "redeemed by query");
    run.check(
        Start::Fresh,
        &[cut(), returned()],
        &["0s redeem", "2s query"],
        "refused returned_since by query",
    );
    run.check(
        Start::Fresh,
        &[signed(429, "RATELIMIT_EXCEEDED"), cut(), usable()],
        &["0s redeem", "1s redeem", "2s query"],
        "unresolved deadline_passed by deadline",
    );
    // So of a refusal to which a query is owed.
    run.check(
        Start::Copy(EffectState::NoEffect),
        &[usable(), signed(403, "NOT_ENOUGH"), usable(), usable()],
        &["0s query", "0s redeem", "2s query", "2s query"],
        "refused not_usable by query",
    );
}

#[test]
fn last_query_is_repeated_before_refusal_after_unknown() {
    let run = Run::of(1, 1_000);
    let asked = ["0s redeem", "2s query", "2s query"];
    let gone = || in_state("EXPIRED");
    let unknown = "unresolved deadline_passed by deadline";
    let check = |script: &[CallResult], ending: &str| {
        run.check(Start::Fresh, script, &asked[..script.len()], ending);
    };
    check(&[cut(), gone(), gone()], "refused expired by query");
    check(&[cut(), gone(), used_by_us()], "redeemed by query");
    check(&[cut(), gone(), returned()], "refused returned_since by query");
    check(&[cut(), gone(), usable()], unknown);
    check(&[cut(), gone(), cut()], unknown);
    check(&[cut(), usable()], unknown);
    check(&[signed(400, "ALREADY_EXISTS"), usable(), usable()], "refused rejected by query");
    check(&[signed(400, "ALREADY_EXISTS"), usable(), cut()], unknown);
    check(&[unsigned(403, "NOT_ENOUGH"), usable()], unknown);
    check(&[unsigned(403, "NOT_ENOUGH"), gone(), gone()], "refused expired by query");
}

#[test]
fn a_copy_that_is_late_or_exhausted_is_looked_at_once_settled() {
    for (run, unknown) in [
        (Run::of(0, 1_000), "unresolved deadline_passed by deadline"),
        (Run::of(86_400, 3), "unresolved attempts_exhausted by deadline"),
    ] {
        let asked = ["0s query", "2s query"];
        let check = |effect: EffectState, script: &[CallResult], ending: &str| {
            run.check(Start::Copy(effect), script, &asked[..script.len()], ending);
        };
        let stands = EffectState::Rejected { reason: Reason::NotUsable, may_be_ours: false };
        for effect in [EffectState::Unknown, stands] {
            check(effect, &[used_by_us()], "redeemed by query");
            check(effect, &[used_by_another()], "refused used_by_another by query");
            check(effect, &[returned()], "refused returned_since by query");
            check(effect, &[in_state("DELETED"), in_state("DELETED")], "refused deleted by query");
            check(effect, &[in_state("DELETED"), cut()], unknown);
        }
        check(EffectState::Unknown, &[usable()], unknown);
        check(stands, &[usable(), usable()], "refused not_usable by query");
        // Nothing was unknown: one look at once, and whatever it shows stands.
        run.check(
            Start::Copy(EffectState::NoEffect),
            &[in_state("EXPIRED")],
            &["0s query"],
            "refused expired by query",
        );
        run.check(Start::Copy(EffectState::NoEffect), &[usable()], &["0s query"], unknown);
    }
}

#[test]
fn parked_command_keeps_the_rejection_of_its_effect() {
    let run = Run::of(1, 1_000);
    let deadline = later(start(), run.time_allowed);
    let mut progress = Progress::new(start(), deadline, false);
    progress.start(&run.limits, start());
    let mut now = start();
    for (operation, reply) in [(Operation::Redeem, signed(400, "ALREADY_EXISTS")), (Operation::Query, cut())]
    {
        let verdict = classify(operation, &reply, &run.redemption);
        progress.follow_verdict(operation, reply, verdict, &run.limits, now, 0.5);
        now = later(now, Duration::from_secs(2));
    }
    assert_eq!(
        through_a_wait_queue(&progress, now).rejection.unwrap().code.as_deref(),
        Some("ALREADY_EXISTS")
    );
}

#[test]
fn a_last_query_that_meets_a_fault_of_our_own_ends_it() {
    let unknown = "unresolved deadline_passed by deadline";
    for fault in [unsigned(401, "SIGN_ERROR"), signed(401, "SIGN_ERROR"), signed(403, "NO_AUTH")] {
        Run::of(0, 1_000).check(Start::Fresh, &[fault], &["0s query"], unknown);
    }
}

#[test]
fn a_command_past_its_deadline_can_be_given_up_without_a_call() {
    let limits = Limits::default();
    let deadline = later(start(), Duration::from_secs(60));
    let mut progress = Progress::new(start(), deadline, true);
    progress.start(&limits, start());
    assert_eq!(progress.expire(&limits, later(start(), Duration::from_secs(59))), None);
    let Some(Step::Finish(outcome)) = progress.expire(&limits, deadline) else { panic!("it goes on") };
    assert_eq!(in_words(&outcome), "unresolved deadline_passed by deadline");
}

#[test]
fn attempts_have_an_end() {
    Run::of(86_400, 2).check(
        Start::Fresh,
        &[signed(429, "RATELIMIT_EXCEEDED"), signed(429, "RATELIMIT_EXCEEDED"), usable()],
        &["0s redeem", "1s redeem", "0s query"],
        "unresolved attempts_exhausted by deadline",
    );
    Run::of(86_400, 1).check(
        Start::Fresh,
        &[cut(), used_by_us()],
        &["0s redeem", "2s query"],
        "redeemed by query",
    );
    Run::of(86_400, 3).check(
        Start::Copy(EffectState::NoEffect),
        &[cut()],
        &["0s query"],
        "unresolved attempts_exhausted by deadline",
    );
}

#[test]
fn the_problem_carries_the_words_of_the_refusal() {
    let (_, outcome) = Run::default().play(Start::Fresh, &[signed(403, "NOT_ENOUGH"), in_state("EXPIRED")]);
    let rejection = outcome.rejection().unwrap();
    assert_eq!((rejection.http_status, rejection.code.as_deref()), (403, Some("NOT_ENOUGH")));
    assert_eq!(outcome.coupon().unwrap().state, CouponState::Expired);
}

#[test]
fn only_the_queried_coupon_is_reported_if_verified() {
    let unconvincing = |authenticity| {
        let coupon = Some(coupon("USED", Some(OURS), None));
        CallResult::Response(Response { coupon, ..answer(200, authenticity) })
    };
    // Three attempts: a redeem, the query after it, and the last one.
    let reported = |script: &[CallResult]| {
        let (_, outcome) = Run::of(86_400, 2).play(Start::Fresh, script);
        assert_eq!(in_words(&outcome), "unresolved attempts_exhausted by deadline");
        outcome.coupon().map(|coupon| (coupon.code.to_string(), coupon.state.to_string()))
    };
    let ours = |state: &str| Some((CODE.to_owned(), state.to_owned()));
    for reply in [
        about_another_coupon(),
        unconvincing(Authenticity::Unsigned),
        unconvincing(Authenticity::Invalid(SignatureFlaw::Mismatch)),
    ] {
        assert_eq!(reported(&[signed(429, "RATELIMIT_EXCEEDED"), reply.clone(), reply.clone()]), None);
        assert_eq!(reported(&[signed(429, "RATELIMIT_EXCEEDED"), in_state("FROZEN"), reply]), ours("FROZEN"));
    }
    assert_eq!(reported(&[signed(429, "RATELIMIT_EXCEEDED"), cut(), in_state("USED")]), ours("USED"));
    // A refusal in words alone does not take up what was said of another coupon either.
    let script = [about_another_coupon(), denied(), denied(), denied()];
    let (_, outcome) = Run::default().play(Start::Copy(EffectState::NoEffect), &script);
    assert_eq!(in_words(&outcome), "refused not_authorized by response");
    assert_eq!(outcome.coupon(), None);
}

#[test]
fn a_coupon_that_is_said_not_to_be_there_is_reported_no_more() {
    let gone = || signed(404, "NOT_FOUND");
    let reported = |run: &Run, script: &[CallResult], ending: &str| {
        let (_, outcome) = run.play(Start::Fresh, script);
        assert_eq!(in_words(&outcome), ending);
        outcome.coupon().map(|coupon| coupon.state.clone())
    };
    let day = Run::default();
    assert_eq!(reported(&day, &[cut(), usable(), gone()], "refused no_such_coupon by query"), None);
    assert_eq!(
        reported(&day, &[cut(), gone(), in_state("DELETED")], "refused deleted by query"),
        Some(CouponState::Deleted)
    );
    let short = Run::of(86_400, 2);
    let unknown = "unresolved attempts_exhausted by deadline";
    assert_eq!(reported(&short, &[usable(), gone(), cut()], unknown), None);
    // Without a signature nobody has said it.
    let unsigned = unsigned(404, "NOT_FOUND");
    assert_eq!(reported(&short, &[usable(), unsigned, cut()], unknown), Some(CouponState::Effective));
    // Said in answer to a redeem it is as true, until the coupon is seen again.
    let rejection = error(403, "NOT_ENOUGH", Some(268_578_851), Authenticity::Verified);
    let script = [cut(), usable(), usable(), rejection, cut()];
    assert_eq!(reported(&Run::of(86_400, 4), &script, unknown), None);
}

#[test]
fn a_effect_survives_the_words_it_travels_in() {
    for reason in Reason::REJECTIONS {
        for effect in [
            EffectState::NoEffect,
            EffectState::Unknown,
            EffectState::SeenUsed,
            EffectState::Rejected { reason, may_be_ours: true },
            EffectState::Rejected { reason, may_be_ours: false },
        ] {
            assert_eq!(EffectState::from_header(&effect.to_header()), Some(effect));
        }
    }
    for nonsense in ["", " ", "clear expired", "unknown expired", "rejected", "rejected nothing", "Clear"] {
        assert_eq!(EffectState::from_header(nonsense), None, "{nonsense:?}");
    }
}

#[test]
fn a_body_never_changes() {
    // Another spelling, another order of the fields, another process: the same bytes.
    let nested = r#"{"coupon_code": "C0001", "openid": "oUser", "json": {
        "associated_order_info": {"transaction_id": "4200000000123456789123456789"}, "out_request_no": "USE_0001",
        "use_time": "2026-03-05T12:30:45+08:00", "appid": "wx1", "stock_id": "1000000013001",
        "product_coupon_id": "1000000013", "brand_id": "120344"}}"#;
    let prepared = Prepared::new(&redemption());
    assert_eq!(prepared, Prepared::new(&command::decode(nested.as_bytes()).unwrap()));
    assert_eq!(
        std::str::from_utf8(prepared.body()).unwrap(),
        concat!(
            r#"{"product_coupon_id":"1000000013","stock_id":"1000000013001","appid":"wx1","#,
            r#""use_time":"2026-03-05T12:30:45+08:00","#,
            r#""associated_order_info":{"transaction_id":"4200000000123456789123456789"},"#,
            r#""out_request_no":"USE_0001","brand_id":"120344"}"#,
        )
    );
    // Frozen: a release that writes other bytes meets copies whose body was frozen by the one before.
    assert_eq!(prepared.body_sha256(), "118d90f5667e0d909783b463a9bb0181308a0658719e22aa79d2a65580b15ceb");
}

// ---- the laws, against a provider that keeps a ledger

const SETTLING: u64 = 2_000;

/// How much longer than assumed a call of a process that died may be under way: 14 s, and 3 s as every call here.
const CRASHED: u64 = 7;

/// What becomes of a request that carries a redemption.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Never,
    AtOnce,
    /// This many milliseconds after the caller got its response: never more than the query delay.
    Later(u64),
}

/// The response that the caller gets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ReceivedEvent {
    /// The provider's own, signed answer.
    Truth,
    /// One of the answers that promise "nothing happened", and keep it.
    Unreachable,
    TooFrequent,
    Locked,
    OurFault,
    /// Everything below may hide an effect.
    Accepted,
    UnsignedTooFrequent,
    UnsignedOurFault,
    /// A signed answer to something else, under a status that would end the command.
    Misplaced(u16),
    Cut,
    ServerError,
    Html502,
    Probe,
    UnknownSerial,
    UnsignedSuccess,
    AnotherCoupon,
    Unsigned(u16),
    UnsignedNoAuth,
    /// "This number was already used", in one of the ways of [`already_used`].
    AlreadyUsed(usize),
    /// The process dies before it hears; the broker delivers again.
    Crash,
}

#[derive(Debug, Clone, Copy)]
struct Call {
    effect: Effect,
    reported: ReceivedEvent,
    took: u64,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Return,
    Delete,
    Expire,
    Deactivate,
    UseByAnother,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Effective,
    Ours,
    Another,
    Gone(&'static str),
}

/// The provider: one coupon, and a ledger of what our number did to it.
#[derive(Debug)]
struct Provider {
    state: State,
    returned: bool,
    effects: u32,
    signs_refusals: bool,
    under_way: Vec<Timestamp>,
    events: Vec<(Timestamp, Event)>,
}

impl Provider {
    fn advance(&mut self, to: Timestamp) {
        loop {
            let effect = self.under_way.iter().copied().filter(|at| *at <= to).min();
            let event = self.events.iter().map(|(at, _)| *at).filter(|at| *at <= to).min();
            match (effect, event) {
                (Some(effect), event) if event.is_none_or(|event| effect <= event) => {
                    let place = self.under_way.iter().position(|at| *at == effect).unwrap();
                    self.under_way.remove(place);
                    self.take_effect();
                }
                (_, Some(event)) => {
                    let place = self.events.iter().position(|(at, _)| *at == event).unwrap();
                    let (_, event) = self.events.remove(place);
                    self.happen(event);
                }
                (_, None) => return,
            }
        }
    }

    fn take_effect(&mut self) {
        if self.state == State::Effective {
            self.state = State::Ours;
            self.effects += 1;
        }
    }

    fn happen(&mut self, event: Event) {
        match (event, self.state) {
            (Event::Return, State::Ours | State::Another) => {
                self.state = State::Effective;
                self.returned = true;
            }
            (Event::Delete, State::Effective) => self.state = State::Gone("DELETED"),
            (Event::Expire, State::Effective) => self.state = State::Gone("EXPIRED"),
            (Event::Deactivate, State::Effective) => self.state = State::Gone("DEACTIVATED"),
            (Event::UseByAnother, State::Effective) => self.state = State::Another,
            _ => {}
        }
    }

    fn coupon(&self) -> CallResult {
        let returned = self.returned.then_some("R1");
        says(match self.state {
            State::Effective => coupon("EFFECTIVE", None, returned),
            State::Ours => coupon("USED", Some(OURS), returned),
            State::Another => coupon("USED", Some("OTHER_1"), returned),
            State::Gone(state) => coupon(state, None, returned),
        })
    }

    fn refusal(&self, sub_code: Option<u64>) -> CallResult {
        let authenticity = if self.signs_refusals { Authenticity::Verified } else { Authenticity::Unsigned };
        error(403, "NOT_ENOUGH", sub_code, authenticity)
    }

    /// The provider's own answer, at this moment.
    fn truth(&self, operation: Operation) -> CallResult {
        match (operation, self.state) {
            (Operation::Query, _) | (_, State::Ours) => self.coupon(),
            (Operation::Redeem, State::Another) => self.refusal(Some(272_756_745)),
            (Operation::Redeem, _) => self.refusal(None),
        }
    }

    /// One call, begun at `now`: what the caller learns of it, `None` if it does not live to hear it.
    fn call(&mut self, operation: Operation, call: Call, now: Timestamp) -> Option<CallResult> {
        self.advance(now);
        if operation == Operation::Redeem {
            match call.effect {
                Effect::Never => {}
                Effect::AtOnce => self.take_effect(),
                Effect::Later(after) => {
                    let after = if call.reported == ReceivedEvent::Crash { CRASHED * after } else { after };
                    self.under_way.push(later(now, Duration::from_millis(call.took + after)));
                }
            }
        }
        let reply = match call.reported {
            ReceivedEvent::Truth => self.truth(operation),
            ReceivedEvent::Unreachable => unreachable(),
            ReceivedEvent::Accepted => CallResult::Response(answer(202, Authenticity::Verified)),
            ReceivedEvent::TooFrequent => signed(429, "RATELIMIT_EXCEEDED"),
            ReceivedEvent::Locked => error(403, "NOT_ENOUGH", Some(272_756_746), Authenticity::Verified),
            ReceivedEvent::OurFault => signed(401, "SIGN_ERROR"),
            ReceivedEvent::UnsignedTooFrequent => unsigned(429, "RATELIMIT_EXCEEDED"),
            ReceivedEvent::UnsignedOurFault => unsigned(401, "SIGN_ERROR"),
            ReceivedEvent::Misplaced(status) => under(status, usable()),
            ReceivedEvent::Cut => cut(),
            ReceivedEvent::ServerError => signed(500, "SYSTEM_ERROR"),
            ReceivedEvent::Html502 => unsigned(502, ""),
            ReceivedEvent::Probe => probe(),
            ReceivedEvent::UnknownSerial => {
                CallResult::Response(answer(200, Authenticity::Invalid(SignatureFlaw::UnknownSerial)))
            }
            ReceivedEvent::UnsignedSuccess => CallResult::Response(answer(200, Authenticity::Unsigned)),
            ReceivedEvent::AnotherCoupon => about_another_coupon(),
            ReceivedEvent::Unsigned(status) => unsigned(status, "NOT_ENOUGH"),
            ReceivedEvent::UnsignedNoAuth => unsigned(403, "NO_AUTH"),
            ReceivedEvent::AlreadyUsed(way) => match operation {
                Operation::Redeem => already_used()[way].clone(),
                Operation::Query => self.coupon(),
            },
            ReceivedEvent::Crash => {
                self.advance(later(now, Duration::from_millis(call.took)));
                return None;
            }
        };
        self.advance(later(now, Duration::from_millis(call.took)));
        Some(reply)
    }
}

/// What became of the delivery that a copy was made from, if it lived on: a crash came before its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Original {
    Ended,
    Redeemed,
    RedeemedAndReturned,
}

/// What the laws remember of one stay, from a delivery to the next.
#[derive(Debug, Default)]
struct Seen {
    /// An authentic query found the coupon usable and never returned.
    usable: bool,
    /// From when a negative query counts, where a redeem promised nothing: a query delay after the end of the longest
    /// call that may be under way.
    sent: Option<Timestamp>,
    /// Negative queries in a row since then.
    negatives: u32,
}

/// One command from its first delivery to its outcome, with every law checked on the way.
fn live(
    mut provider: Provider,
    calls: &[Call],
    tail: Call,
    original: Original,
    allowed: Duration,
    limits: &Limits,
    chance: f64,
) -> Result<(Outcome, Provider), TestCaseError> {
    let redemption = redemption();
    let mut now = start();
    let deadline = later(now, allowed);
    let settling = limits.query_delay;
    let longest = limits.longest_call + settling;
    let mut calls = calls.iter();
    let mut progress = Progress::new(now, deadline, false);
    let mut copied: Option<Vec<(&'static str, String)>> = None;
    let (mut authentic, mut return_seen) = (false, false);
    let mut described: Option<Coupon> = None;
    let (mut doubted, mut seen) = (false, Seen::default());
    let (mut interruptions, mut late, mut steps) = (0u32, 0u32, 0u32);
    let mut step = progress.start(limits, now);
    loop {
        steps += 1;
        prop_assert!(steps < 3 * limits.attempts_max + 200, "it does not come to an end");
        step = match step {
            Step::Send { after, operation } => {
                now = later(now, after);
                prop_assert!(after <= longest || now <= deadline, "a wait outlasts the deadline");
                late += u32::from(now > deadline);
                prop_assert!(late <= 2 * (1 + interruptions), "more than a last call and its repetition");
                prop_assert!(
                    operation == Operation::Query || copied.is_none() || seen.usable,
                    "a copy redeems without a look"
                );
                prop_assert!(
                    !(return_seen && operation == Operation::Redeem),
                    "sent after a return was seen"
                );
                let call = *calls.next().unwrap_or(&tail);
                let asked = now;
                let reply = provider.call(operation, call, now);
                now = later(now, Duration::from_millis(call.took));
                match reply {
                    Some(reply) => {
                        let verdict = progress.advance(operation, &reply, &redemption);
                        // As long as nobody knows whether every command is rejected so.
                        let verdict = match verdict {
                            Verdict::Rejected { reason, .. }
                                if reason.may_be_common() && call.took % 2 == 1 =>
                            {
                                Verdict::Unknown(UnknownCause::MayBeCommon(reason))
                            }
                            verdict => verdict,
                        };
                        authentic |= !matches!(
                            call.reported,
                            ReceivedEvent::AnotherCoupon | ReceivedEvent::Misplaced(_)
                        ) && matches!(&reply, CallResult::Response(answer) if answer.authenticity == Authenticity::Verified);
                        if let CallResult::Response(Response { coupon: Some(coupon), .. }) = &reply
                            && *coupon.code == *CODE
                            && !matches!(call.reported, ReceivedEvent::Misplaced(_))
                        {
                            described = Some(coupon.clone());
                            let UsageTrace::Single(trace) = &coupon.usage else { unreachable!() };
                            return_seen |=
                                coupon.state == CouponState::Effective && trace.return_request_no.is_some();
                        }
                        let settled = seen.sent.is_none_or(|from| asked >= from);
                        match &verdict {
                            Verdict::NotExecuted => {
                                seen.usable = true;
                                seen.negatives += u32::from(settled);
                                if seen.negatives >= 2 && settled {
                                    seen.sent = None;
                                }
                            }
                            Verdict::Refused(_) if operation == Operation::Query => {
                                seen.negatives += u32::from(settled);
                            }
                            Verdict::NotAccepted(_) | Verdict::NotSent if operation == Operation::Query => {
                                seen.negatives = 0;
                            }
                            Verdict::NotAccepted(_) | Verdict::NotSent => {}
                            Verdict::Suspended(_) if call.reported == ReceivedEvent::OurFault => {}
                            _ if operation == Operation::Query => seen.negatives = 0,
                            verdict => {
                                (seen.sent, seen.negatives) = (Some(later(now, settling)), 0);
                                doubted |= match verdict {
                                    Verdict::Rejected { may_be_our_own_use: may_be_ours, .. } => *may_be_ours,
                                    _ => true,
                                };
                            }
                        }
                        progress.follow_verdict(operation, reply, verdict, limits, now, chance)
                    }
                    None => {
                        interruptions += 1;
                        doubted = true;
                        seen = Seen { sent: Some(later(now, longest)), ..Seen::default() };
                        progress = match &copied {
                            None => Progress::new(start(), deadline, true),
                            Some(headers) => {
                                let mut progress = read_copy(headers, now);
                                progress.mark_redelivered();
                                progress
                            }
                        };
                        described = progress.coupon.clone();
                        progress.start(limits, now)
                    }
                }
            }
            Step::Delay { queue: delay } => {
                now = later(now, limits.delays[delay]);
                prop_assert!(now <= deadline, "a delay outlasts the deadline");
                provider.advance(now);
                // It looks first as well, after every call has ended, and would not use what was used or returned.
                let untouched = provider.effects == 0 && !provider.returned && provider.under_way.is_empty();
                if copied.is_none() && untouched && original != Original::Ended {
                    provider.take_effect();
                    if original == Original::RedeemedAndReturned {
                        provider.happen(Event::Return);
                    }
                }
                let headers = retry_message::write(&progress, &[], "00");
                progress = read_copy(&headers, now);
                copied = Some(headers);
                doubted = true;
                let state = |coupon: &Option<Coupon>| coupon.as_ref().map(|coupon| coupon.state.clone());
                prop_assert_eq!(state(&progress.coupon), state(&described), "a state is lost on the way");
                described = progress.coupon.clone();
                seen.usable = false;
                progress.start(limits, now)
            }
            Step::Suspend(_) => {
                interruptions += 1;
                now = later(now, Duration::from_secs(90));
                progress.resume(limits, now)
            }
            Step::Finish(outcome) => {
                prop_assert!(progress.attempts <= limits.attempts_max + 2 * (1 + interruptions));
                prop_assert_eq!(
                    outcome.coupon(),
                    described.as_ref(),
                    "not what was last reported of this coupon"
                );
                if let Outcome::Refused { reason, .. } = &outcome
                    && ![Reason::UsedByAnother, Reason::ReturnedSince].contains(reason)
                    && seen.sent.is_some()
                    && doubted
                {
                    prop_assert!(seen.negatives >= 2, "refused ({}) on one query", reason.as_str());
                }
                prop_assert!(
                    authentic || matches!(outcome, Outcome::Unresolved { .. }),
                    "nothing authentic was heard"
                );
                // Whatever is still under way comes to pass before the books are compared.
                provider.events.clear();
                provider.advance(later(now, 2 * longest));
                return Ok((outcome, provider));
            }
        };
    }
}

fn read_copy(headers: &[(&'static str, String)], now: Timestamp) -> Progress {
    let header = |name| headers.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str());
    retry_message::read(header, "00", now, DEADLINE_LIMITS).unwrap().progress
}

fn hidden_effect() -> impl Strategy<Value = Effect> {
    prop_oneof![Just(Effect::Never), Just(Effect::AtOnce), (0..=SETTLING).prop_map(Effect::Later)]
}

fn honest() -> impl Strategy<Value = (Effect, ReceivedEvent)> {
    prop_oneof![
        4 => Just((Effect::AtOnce, ReceivedEvent::Truth)),
        1 => prop_oneof![
            Just(ReceivedEvent::Unreachable), Just(ReceivedEvent::TooFrequent), Just(ReceivedEvent::Locked),
        ].prop_map(|reported| (Effect::Never, reported)),
    ]
}

fn unknown() -> impl Strategy<Value = (Effect, ReceivedEvent)> {
    let reported = prop_oneof![
        Just(ReceivedEvent::Cut),
        Just(ReceivedEvent::ServerError),
        Just(ReceivedEvent::Html502),
        Just(ReceivedEvent::Probe),
        Just(ReceivedEvent::UnknownSerial),
        Just(ReceivedEvent::UnsignedSuccess),
        Just(ReceivedEvent::AnotherCoupon),
        Just(ReceivedEvent::Accepted),
        Just(ReceivedEvent::UnsignedTooFrequent),
        prop_oneof![Just(403u16), Just(404), Just(429), Just(400)].prop_map(ReceivedEvent::Misplaced),
    ];
    (hidden_effect(), reported)
}

fn already_used_number() -> impl Strategy<Value = (Effect, ReceivedEvent)> {
    (hidden_effect(), (0..already_used().len()).prop_map(ReceivedEvent::AlreadyUsed))
}

fn original() -> impl Strategy<Value = Original> {
    prop_oneof![
        2 => Just(Original::Ended),
        1 => Just(Original::Redeemed),
        1 => Just(Original::RedeemedAndReturned),
    ]
}

fn unsigned_refusal() -> impl Strategy<Value = (Effect, ReceivedEvent)> {
    let reported = prop_oneof![
        Just(ReceivedEvent::Unsigned(403)),
        Just(ReceivedEvent::Unsigned(404)),
        Just(ReceivedEvent::Unsigned(400)),
        Just(ReceivedEvent::UnsignedNoAuth),
    ];
    (hidden_effect(), reported)
}

fn interruption() -> impl Strategy<Value = (Effect, ReceivedEvent)> {
    prop_oneof![
        Just((Effect::Never, ReceivedEvent::OurFault)),
        hidden_effect().prop_map(|effect| (effect, ReceivedEvent::UnsignedOurFault)),
        hidden_effect().prop_map(|effect| (effect, ReceivedEvent::Crash)),
    ]
}

fn timed(kind: impl Strategy<Value = (Effect, ReceivedEvent)>) -> impl Strategy<Value = Call> {
    (kind, 0..=3_000u64).prop_map(|((effect, reported), took)| Call { effect, reported, took })
}

fn any_call() -> impl Strategy<Value = Call> {
    timed(prop_oneof![
        3 => honest(),
        3 => unknown(),
        3 => unsigned_refusal(),
        2 => interruption(),
        1 => already_used_number(),
    ])
}

fn lasting_call() -> impl Strategy<Value = Call> {
    timed(prop_oneof![3 => honest(), 1 => unknown(), 1 => unsigned_refusal()])
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        8 => Just(State::Effective),
        1 => Just(State::Another),
        1 => prop_oneof![Just("CONFIRMING"), Just("PENDING"), Just("EXPIRED"), Just("DELETED")].prop_map(State::Gone),
    ]
}

fn events() -> impl Strategy<Value = Vec<(Timestamp, Event)>> {
    let event = prop_oneof![
        4 => Just(Event::Return),
        1 => Just(Event::Delete),
        1 => Just(Event::Expire),
        1 => Just(Event::Deactivate),
        2 => Just(Event::UseByAnother),
    ];
    let at = prop_oneof![0..=20_000u64, 0..=600_000u64];
    prop::collection::vec((at, event), 0..4).prop_map(|events| {
        events.into_iter().map(|(at, event)| (later(start(), Duration::from_millis(at)), event)).collect()
    })
}

prop_compose! {
    fn provider()(state in state(), returned in prop::bool::weighted(0.3), signs_refusals: bool, events in events())
        -> Provider
    {
        Provider { state, returned, effects: 0, signs_refusals, under_way: vec![], events }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_reported_is_what_the_ledger_says(
        provider in provider(),
        calls in prop::collection::vec(any_call(), 0..14),
        tail in lasting_call(),
        original in original(),
        allowed in prop_oneof![0..=20_000u64, 0..=10_800_000u64],
        attempts_max in prop_oneof![1..=6u32, Just(1_000u32)],
        chance in 0.0..=1.0,
    ) {
        let limits = Limits { attempts_max, ..Limits::default() };
        let (outcome, provider) = live(provider, &calls, tail, original, Duration::from_millis(allowed), &limits, chance)?;
        prop_assert!(provider.effects <= 1, "took effect {} times", provider.effects);
        match outcome {
            Outcome::Redeemed { .. } => prop_assert_eq!(provider.effects, 1, "reported redeemed, but nothing happened"),
            Outcome::Refused { reason, .. } => {
                prop_assert!(provider.state != State::Ours, "reported refused ({}), but it was used by us", reason.as_str());
            }
            Outcome::Unresolved { .. } => {}
            Outcome::Invalid => prop_assert!(false, "a valid command became invalid"),
        }
    }

    #[test]
    fn a_usable_coupon_is_redeemed_once_the_faults_are_over(
        mut calls in prop::collection::vec(timed(prop_oneof![honest(), unknown(), interruption()]), 0..20),
        lie in prop::option::of((timed(unsigned_refusal()), 0..20usize)),
        signs_refusals: bool,
        chance in 0.0..=1.0,
    ) {
        let provider = Provider {
            state: State::Effective, returned: false, effects: 0, signs_refusals, under_way: vec![], events: vec![],
        };
        // One unsigned refusal is not believed, wherever it comes.
        if let Some((lie, place)) = lie {
            calls.insert(place.min(calls.len()), lie);
        }
        let well = Call { effect: Effect::AtOnce, reported: ReceivedEvent::Truth, took: 100 };
        let day = Duration::from_secs(24 * 3600);
        let (outcome, provider) = live(provider, &calls, well, Original::Ended, day, &Limits::default(), chance)?;
        prop_assert!(matches!(outcome, Outcome::Redeemed { .. }), "{}", in_words(&outcome));
        prop_assert_eq!(provider.effects, 1);
    }
}
