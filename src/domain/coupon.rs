//! A coupon: its code, its state, and the redemption that it carries.
//!
//! Pure values. Parsing the provider's JSON into a [`Coupon`] happens at the edge (`wechat::response`);
//! nothing here knows about text formats beyond the spelling of a single word.

use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::domain::redemption::{CouponCode, Redemption, RequestNo};

/// The state of a user's coupon, as WeChat Pay names it.
///
/// The provider may add states at any time; an unknown one is carried through as it was spelled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CouponState {
    /// Issued; the partner must confirm it before it can be used.
    Confirming,
    /// Confirmed; its validity has not begun.
    Pending,
    /// Usable now.
    Effective,
    /// Redeemed. Not final: a return makes it effective again.
    Used,
    /// Its validity has ended.
    Expired,
    /// Deleted by the user in the card wallet; nobody is notified.
    Deleted,
    /// Withdrawn by the brand or its partner.
    Deactivated,
    /// A state that this program does not know.
    Other(Box<str>),
}

impl CouponState {
    /// Reads the provider's spelling.
    pub fn from_wire(word: &str) -> Self {
        match word {
            "CONFIRMING" => Self::Confirming,
            "PENDING" => Self::Pending,
            "EFFECTIVE" => Self::Effective,
            "USED" => Self::Used,
            "EXPIRED" => Self::Expired,
            "DELETED" => Self::Deleted,
            "DEACTIVATED" => Self::Deactivated,
            other => Self::Other(other.into()),
        }
    }

    /// The provider's spelling.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Confirming => "CONFIRMING",
            Self::Pending => "PENDING",
            Self::Effective => "EFFECTIVE",
            Self::Used => "USED",
            Self::Expired => "EXPIRED",
            Self::Deleted => "DELETED",
            Self::Deactivated => "DEACTIVATED",
            Self::Other(word) => word,
        }
    }
}

impl fmt::Display for CouponState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A coupon as a verified response describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Coupon {
    /// The code, as the response spells it.
    pub code: Box<str>,
    /// The state of the coupon as a whole.
    pub state: CouponState,
    /// How it is used: once, or round by round.
    pub usage: UsageTrace,
    /// The brand, product coupon and stock that the response names, each as often as it does.
    pub ids: Box<[Id]>,
    /// The entity as it is passed on, one JSON object: exactly as it was sent, unknown fields included, if a strict
    /// reader can read that. [`NO_ENTITY`] if only the state is known.
    pub entity: Arc<str>,
    /// Why `entity` holds no more than the code and the state, if it was reduced to them.
    pub reduced: Option<Reduction>,
}

/// Why no more than the code and the state of an entity is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// It is too large for a message.
    Size,
    /// It is nested too deeply for common readers of JSON.
    Nesting,
    /// It holds a number that is beyond the range of a double.
    Number,
}

impl Reduction {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Size, Self::Nesting, Self::Number];

    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Nesting => "nesting",
            Self::Number => "number",
        }
    }
}

/// The JSON of an entity that is not known.
pub const NO_ENTITY: &str = "null";

/// Something that a coupon belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Id {
    /// `brand_id`.
    Brand(Box<str>),
    /// `product_coupon_id`.
    ProductCoupon(Box<str>),
    /// `stock_id`.
    Stock(Box<str>),
}

/// The usage block of a coupon. Three forms exist on the wire; two of them mean the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UsageTrace {
    /// `single_usage_detail` or `progressive_bundle_usage_detail`: this code is used once.
    Single(Trace),
    /// Legacy `sequential_usage_detail`: one code, used round by round.
    Rounds(Vec<Round>),
}

/// The use and the return that a coupon, or one of its rounds, shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Trace {
    /// The request number that used it. Shown only while it is used.
    pub use_request_no: Option<Box<str>>,
    /// The request number of the last return. It stays visible after a later use.
    pub return_request_no: Option<Box<str>>,
    /// When that return was, if it can be read.
    pub return_time: Option<Timestamp>,
    /// Whether a time of a return is shown, readable or not: a return without a number is still a return.
    pub shows_return_time: bool,
}

/// One round of a legacy sequential coupon.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Round {
    /// `detail_state` of the round.
    pub state: CouponState,
    /// Its use and its return.
    pub trace: Trace,
}

/// The relation of a coupon to one redemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// It carries our request number: our redemption took effect.
    Ours,
    /// It was used under another request number.
    Another,
    /// It is usable and was never returned.
    Usable,
    /// It is usable because a redemption of it was returned; it is unknown whose.
    Returned,
    /// It cannot be used in this state.
    Unusable(CouponState),
    /// It was used, and the response does not show under which number.
    NoNumber,
    /// A round is usable and none was returned, and another one was used under a number that is not shown.
    UsableBesideNoNumber,
    /// It is another coupon, so the response shows nothing about ours.
    AnotherCoupon,
    /// The response is incomplete, or contradicts itself.
    Unclear,
}

impl Coupon {
    /// A coupon of which only the state is known.
    pub fn in_state(state: CouponState) -> Self {
        let usage = UsageTrace::Single(Trace::default());
        Self { code: "".into(), state, usage, ids: Box::default(), entity: NO_ENTITY.into(), reduced: None }
    }

    /// Whether the brand, the product coupon and the stock are those of the redemption, as far as the response names them.
    pub fn is_of(&self, redemption: &Redemption) -> bool {
        let Redemption { brand_id, product_coupon_id, stock_id, .. } = redemption;
        self.ids.iter().all(|id| match id {
            Id::Brand(id) => **id == *brand_id.as_str(),
            Id::ProductCoupon(id) => **id == *product_coupon_id.as_str(),
            Id::Stock(id) => **id == *stock_id.as_str(),
        })
    }

    /// Whether every return that it shows was over before `from`, when the first use of `number` can have been sent. By
    /// the provider's clock, so with room for the difference of clocks; never if the number itself is shown.
    pub fn returned_before(&self, from: Timestamp, number: &RequestNo) -> bool {
        let long_ago = |at: Timestamp| from.duration_since(at) > CLOCKS_DIFFER_MAX;
        self.traces().iter().all(|trace| {
            !trace.carries(number) && (!trace.is_returned() || trace.return_time.is_some_and(long_ago))
        })
    }

    fn traces(&self) -> Vec<&Trace> {
        match &self.usage {
            UsageTrace::Single(trace) => vec![trace],
            UsageTrace::Rounds(rounds) => rounds.iter().map(|round| &round.trace).collect(),
        }
    }

    /// The relation of this coupon to the redemption `number` of `code`, which means round `index` if the coupon is a legacy
    /// sequential one.
    pub fn usage(&self, code: &CouponCode, number: &RequestNo, index: Option<u32>) -> Usage {
        if *self.code != *code.as_str() {
            return Usage::AnotherCoupon;
        }
        match &self.usage {
            UsageTrace::Single(trace) => usage_of_traces(&self.state, trace, number),
            UsageTrace::Rounds(rounds) => self.usage_by_round(rounds, number, index),
        }
    }

    fn usage_by_round(&self, rounds: &[Round], number: &RequestNo, index: Option<u32>) -> Usage {
        // Our number decides on any round: the provider may have counted the round itself.
        let carrier = rounds.iter().find(|round| round.trace.carries(number));
        if let Some(round) = carrier {
            return match (&round.state, round.trace.is_returned()) {
                // Whatever the state of the round is now.
                (state, true) if *state != CouponState::Used => Usage::Returned,
                _ => usage_of_traces(&round.state, &round.trace, number),
            };
        }
        // The provider may count rounds in its own way: one that is used without a number may be ours.
        let is_shown = |is_shown_by: fn(&Round) -> bool| match index {
            Some(index) => rounds.get(index as usize).is_some_and(is_shown_by),
            None => rounds.iter().any(is_shown_by),
        };
        if is_shown(Round::is_used_without_number) {
            return match index.is_none() && self.next_round_is_free(rounds, number) {
                true => Usage::UsableBesideNoNumber,
                false => Usage::NoNumber,
            };
        }
        if is_shown(Round::says_nothing) {
            return Usage::Unclear;
        }
        // A coupon that has ended has ended for every round, whatever the rounds still show.
        if !matches!(self.state, CouponState::Effective | CouponState::Used) {
            return usage_of_traces(&self.state, &Trace::default(), number);
        }
        let meant = match index {
            Some(index) => rounds.get(index as usize),
            None => next_round(rounds).or_else(|| rounds.last()),
        };
        match meant.map(|round| usage_of_traces(&round.state, &round.trace, number)) {
            // The provider may have counted the round itself: a return on any of them may have ended our use.
            Some(Usage::Usable) if rounds.iter().any(|round| round.trace.is_returned()) => Usage::Returned,
            Some(standing) => standing,
            None => Usage::Unclear,
        }
    }

    /// Whether the next round is usable, and no round was returned or says nothing.
    fn next_round_is_free(&self, rounds: &[Round], number: &RequestNo) -> bool {
        let is_usable = |round: &Round| usage_of_traces(&round.state, &round.trace, number) == Usage::Usable;
        let is_clear = |round: &Round| !round.trace.is_returned() && !round.says_nothing();
        self.state == CouponState::Effective
            && next_round(rounds).is_some_and(is_usable)
            && rounds.iter().all(is_clear)
    }
}

/// The first round that is not used.
fn next_round(rounds: &[Round]) -> Option<&Round> {
    rounds.iter().find(|round| round.state != CouponState::Used)
}

impl Round {
    fn is_used_without_number(&self) -> bool {
        self.state == CouponState::Used && self.trace.use_request_no.is_none()
    }

    /// Whether it shows neither its state nor a number: its use may be ours.
    fn says_nothing(&self) -> bool {
        self.state.as_str().is_empty() && self.trace.use_request_no.is_none()
    }
}

/// How far the provider's clock may be from ours: the five minutes within which responses are accepted, and one more.
const CLOCKS_DIFFER_MAX: SignedDuration = SignedDuration::from_secs(360);

impl Trace {
    /// Whether it shows a return, by its number or by its time.
    pub fn is_returned(&self) -> bool {
        self.return_request_no.is_some() || self.return_time.is_some() || self.shows_return_time
    }

    fn carries(&self, number: &RequestNo) -> bool {
        self.use_request_no.as_deref() == Some(number.as_str())
    }
}

fn usage_of_traces(state: &CouponState, trace: &Trace, number: &RequestNo) -> Usage {
    match (state, &trace.use_request_no, trace.is_returned()) {
        (CouponState::Used, Some(user), _) if **user == *number.as_str() => Usage::Ours,
        (CouponState::Used, Some(_), _) => Usage::Another,
        (CouponState::Used, None, _) => Usage::NoNumber,
        (CouponState::Effective, _, true) => Usage::Returned,
        // A number is shown "if and only if used": one on a usable coupon contradicts itself.
        (CouponState::Effective, Some(_), false) => Usage::Unclear,
        (CouponState::Effective, None, false) => Usage::Usable,
        (CouponState::Other(_), ..) => Usage::Unclear,
        // Documented transitions leave USED by a return alone, and then may still show the use: without one, a number
        // here cannot be explained.
        (_, Some(_), false) => Usage::Unclear,
        (state, ..) => Usage::Unusable(state.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "USE_0001";

    fn usage(state: &str, used: Option<&str>, returned: Option<&str>) -> Usage {
        coupon(state, UsageTrace::Single(trace(used, returned))).usage(&code(), &number(), None)
    }

    fn coupon(state: &str, usage: UsageTrace) -> Coupon {
        Coupon {
            code: "C1".into(),
            state: CouponState::from_wire(state),
            usage,
            ids: Box::default(),
            entity: "{}".into(),
            reduced: None,
        }
    }

    fn trace(used: Option<&str>, returned: Option<&str>) -> Trace {
        let (use_request_no, return_request_no) = (used.map(Into::into), returned.map(Into::into));
        Trace { use_request_no, return_request_no, ..Trace::default() }
    }

    fn round(state: &str, used: Option<&str>) -> Round {
        Round { state: CouponState::from_wire(state), trace: trace(used, None) }
    }

    fn code() -> CouponCode {
        CouponCode::parse("C1").unwrap()
    }

    fn number() -> RequestNo {
        RequestNo::parse(OURS).unwrap()
    }

    #[test]
    fn single_use_coupon_is_classified_by_state_and_numbers() {
        let gone = |state: &str| Usage::Unusable(CouponState::from_wire(state));
        assert_eq!(usage("USED", Some(OURS), None), Usage::Ours);
        assert_eq!(usage("USED", Some(OURS), Some("R1")), Usage::Ours);
        assert_eq!(usage("USED", Some("OTHER_1"), None), Usage::Another);
        assert_eq!(usage("USED", None, None), Usage::NoNumber);
        assert_eq!(usage("EFFECTIVE", None, None), Usage::Usable);
        assert_eq!(usage("EFFECTIVE", None, Some("R1")), Usage::Returned);
        assert_eq!(usage("EFFECTIVE", Some(OURS), Some("R1")), Usage::Returned);
        assert_eq!(usage("EFFECTIVE", Some(OURS), None), Usage::Unclear);
        for state in ["CONFIRMING", "PENDING", "EXPIRED", "DELETED", "DEACTIVATED"] {
            assert_eq!(usage(state, None, None), gone(state));
            assert_eq!(usage(state, Some(OURS), None), Usage::Unclear);
            for past in [OURS, "OTHER_1"] {
                assert_eq!(usage(state, Some(past), Some("R1")), gone(state), "a use that was returned");
            }
        }
        assert_eq!(usage("FROZEN", None, None), Usage::Unclear);
    }

    /// A number of the return that is missing or empty makes it no less a return.
    #[test]
    fn a_return_is_shown_by_its_time_alone() {
        let at: Timestamp = "2026-03-05T04:30:45Z".parse().unwrap();
        for (return_time, shows_return_time) in [(Some(at), true), (None, true), (Some(at), false)] {
            let shown = |used: Option<&str>| Trace { return_time, shows_return_time, ..trace(used, None) };
            let usage_of = |state: &str, used| {
                coupon(state, UsageTrace::Single(shown(used))).usage(&code(), &number(), None)
            };
            for used in [None, Some(OURS), Some("OTHER_1")] {
                assert_eq!(usage_of("EFFECTIVE", used), Usage::Returned);
                assert_eq!(usage_of("EXPIRED", used), Usage::Unusable(CouponState::Expired));
            }
            assert_eq!(usage_of("USED", Some(OURS)), Usage::Ours);
            let round = |state: &str, trace| Round { state: CouponState::from_wire(state), trace };
            for rounds in [
                vec![round("EFFECTIVE", shown(Some(OURS))), round("EFFECTIVE", Trace::default())],
                vec![
                    round("USED", Trace { return_time, shows_return_time, ..trace(Some("OTHER_1"), None) }),
                    round("EFFECTIVE", Trace::default()),
                ],
            ] {
                let usage = coupon("EFFECTIVE", UsageTrace::Rounds(rounds)).usage(&code(), &number(), None);
                assert_eq!(usage, Usage::Returned);
            }
            let coupon = coupon("EFFECTIVE", UsageTrace::Single(shown(None)));
            let long_after = at.saturating_add(SignedDuration::from_hours(1)).unwrap();
            assert_eq!(coupon.returned_before(long_after, &number()), return_time.is_some());
            assert!(!coupon.returned_before(at, &number()));
        }
    }

    #[test]
    fn another_coupon_says_nothing_about_ours() {
        let shown = coupon("USED", UsageTrace::Single(trace(Some(OURS), None)));
        let other = CouponCode::parse("C2").unwrap();
        assert_eq!(shown.usage(&other, &number(), None), Usage::AnotherCoupon);
    }

    #[test]
    fn sequential_coupon_is_classified_by_its_round() {
        let rounds =
            vec![round("USED", Some("OTHER_1")), round("USED", Some(OURS)), round("EFFECTIVE", None)];
        let at = |rounds: &[Round], index| {
            coupon("EFFECTIVE", UsageTrace::Rounds(rounds.to_vec())).usage(&code(), &number(), index)
        };
        assert_eq!(at(&rounds, Some(1)), Usage::Ours);
        assert_eq!(at(&rounds, None), Usage::Ours);
        assert_eq!(at(&rounds[..1], Some(0)), Usage::Another);
        assert_eq!(at(&rounds[..1], Some(5)), Usage::Unclear);
        let fresh = [rounds[0].clone(), rounds[2].clone()];
        assert_eq!(at(&fresh, Some(1)), Usage::Usable);
        assert_eq!(at(&fresh, None), Usage::Usable);
        assert_eq!(at(&[], None), Usage::Unclear);
    }

    fn returned(state: &str, used: Option<&str>) -> Round {
        Round { state: CouponState::from_wire(state), trace: trace(used, Some("R1")) }
    }

    #[test]
    fn a_return_on_any_round_may_have_ended_our_use() {
        let at = |rounds: &[Round], index| {
            coupon("EFFECTIVE", UsageTrace::Rounds(rounds.to_vec())).usage(&code(), &number(), index)
        };
        let usable = || round("EFFECTIVE", None);
        for shown in [
            returned("USED", Some("OTHER_1")),
            returned("USED", None),
            returned("EFFECTIVE", None),
            returned("EFFECTIVE", Some("OTHER_1")),
            returned("USED", Some("OTHER_2")),
        ] {
            // Under no number it may be ours, and used again after a return of another command.
            let unnamed = shown.is_used_without_number();
            let by_count = if unnamed { Usage::NoNumber } else { Usage::Returned };
            assert_eq!(at(&[shown.clone(), usable()], None), by_count, "{shown:?}");
            assert_eq!(at(&[shown.clone(), usable()], Some(1)), Usage::Returned, "{shown:?}");
            assert_eq!(at(&[usable(), shown.clone()], Some(0)), Usage::Returned, "{shown:?}");
        }
        for state in ["EFFECTIVE", "EXPIRED", "DELETED"] {
            let ours = returned(state, Some(OURS));
            for index in [None, Some(0), Some(1)] {
                assert_eq!(at(&[ours.clone(), usable()], index), Usage::Returned, "{state} {index:?}");
            }
        }
    }

    #[test]
    fn a_return_of_before_the_first_use_of_ours_was_none_of_it() {
        let from: Timestamp = "2026-03-05T12:00:00Z".parse().unwrap();
        let at = |return_time: Option<&str>, used: Option<&str>| {
            let return_time = return_time.map(|at| at.parse().unwrap());
            let trace = Trace { return_time, ..trace(used, Some("R1")) };
            let rounds = vec![round("USED", Some("OTHER_1")), Round { state: CouponState::Effective, trace }];
            coupon("EFFECTIVE", UsageTrace::Rounds(rounds)).returned_before(from, &number())
        };
        assert!(at(Some("2026-03-05T11:53:59Z"), None));
        assert!(at(Some("2026-03-05T11:53:59Z"), Some("OTHER_1")));
        assert!(
            !at(Some("2026-03-05T11:53:59Z"), Some(OURS)),
            "a number of ours is ours, whatever the clocks say"
        );
        assert!(!at(Some("2026-03-05T11:54:00Z"), None), "within what clocks may differ");
        assert!(!at(Some("2026-03-05T12:30:00Z"), None));
        assert!(!at(None, None), "nobody knows when");
    }

    #[test]
    fn round_used_under_no_number_may_be_ours() {
        let at = |state: &str, rounds: &[Round], index| {
            coupon(state, UsageTrace::Rounds(rounds.to_vec())).usage(&code(), &number(), index)
        };
        let (unnamed, usable, other) =
            (round("USED", None), round("EFFECTIVE", None), round("USED", Some("OTHER_1")));
        // Whatever has become of the coupon and of its other rounds.
        for state in ["EFFECTIVE", "USED", "EXPIRED", "DELETED"] {
            for beside in [usable.clone(), other.clone(), returned("EFFECTIVE", None)] {
                let is_free = state == "EFFECTIVE" && beside == usable;
                let expected = if is_free { Usage::UsableBesideNoNumber } else { Usage::NoNumber };
                for rounds in [[unnamed.clone(), beside.clone()], [beside.clone(), unnamed.clone()]] {
                    assert_eq!(at(state, &rounds, None), expected, "{state} {rounds:?}");
                }
                assert_eq!(at(state, &[unnamed.clone(), beside], Some(0)), Usage::NoNumber, "{state}");
            }
            assert_eq!(at(state, &[unnamed.clone(), round("USED", Some(OURS))], None), Usage::Ours);
        }
        let silent = Round { state: CouponState::from_wire(""), trace: Trace::default() };
        for beside in [returned("USED", None), returned("EFFECTIVE", None), silent] {
            let rounds = [unnamed.clone(), usable.clone(), beside];
            assert_eq!(at("EFFECTIVE", &rounds, None), Usage::NoNumber, "{rounds:?}");
        }
        assert_eq!(at("EFFECTIVE", &[unnamed, usable.clone()], Some(1)), Usage::Usable, "not the one meant");
        assert_eq!(at("EFFECTIVE", &[usable.clone(), usable.clone()], None), Usage::Usable);
        assert_eq!(at("USED", &[other.clone(), other], None), Usage::Another);
        assert_eq!(at("EFFECTIVE", &[returned("EFFECTIVE", None), usable], Some(1)), Usage::Returned);
    }

    #[test]
    fn a_sequential_coupon_that_is_gone_is_gone_for_every_round() {
        let rounds = UsageTrace::Rounds(vec![round("EFFECTIVE", None)]);
        assert_eq!(
            coupon("DELETED", rounds).usage(&code(), &number(), Some(0)),
            Usage::Unusable(CouponState::Deleted)
        );
    }
}
