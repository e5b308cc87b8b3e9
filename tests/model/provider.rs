//! The provider: one coupon, and what uses, returns and its owner do to it.
//!
//! The answers are of the types that the service reads answers into; their signatures are taken as judged already.

use jiff::{SignedDuration, Timestamp};
use redeemer::domain::coupon::{Coupon, CouponState, Round, Trace, UsageTrace};
use redeemer::policy::classify::{Authenticity, CallResult, NoResponse, NotSent, Response};

pub(crate) const OURS: &str = "USE_0001";
pub(crate) const CODE: &str = "C0001";

/// Under whose number it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum User {
    Ours,
    Other,
}

/// The last return of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Return {
    /// An hour before the command was published.
    LongBefore,
    Ours,
    Others,
}

/// What becomes of a coupon as a whole beside its uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Gone {
    Pending,
    Expired,
    Deleted,
}

impl Gone {
    fn state(self) -> CouponState {
        match self {
            Self::Pending => CouponState::Pending,
            Self::Expired => CouponState::Expired,
            Self::Deleted => CouponState::Deleted,
        }
    }
}

/// One use that the coupon is good for: one of a single or bundle coupon, several rounds of a legacy sequential one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Permit {
    pub used: Option<User>,
    pub returned: Option<Return>,
}

/// How the coupon and its provider are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ways {
    pub rounds: usize,
    /// Whether a number that was returned can be used once more. Documented is neither.
    pub forgets_returned: bool,
    /// Whether rejections of the business are signed.
    pub signs_rejections: bool,
    /// Whether a used coupon shows under which number.
    pub shows_numbers: bool,
    /// Whether a returned one still does, as the provider's own sample has it against its own table.
    pub keeps_numbers: bool,
}

/// The coupon as the provider has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Card {
    pub permits: Vec<Permit>,
    pub gone: Option<Gone>,
    /// How often our number took effect.
    pub effects: u8,
    /// Why the provider rejects whatever names this coupon.
    pub rejected: Option<Rejects>,
}

/// What every call about a coupon is rejected for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rejects {
    /// The coupon is another user's.
    Openid,
    /// Some parameter, none in particular: the same may meet every command.
    Parameter,
    /// There is no such coupon.
    NotFound,
}

impl Rejects {
    fn answer(self, ways: Ways) -> CallResult {
        match self {
            Self::Openid => rejection(400, "PARAM_ERROR", Some(268_578_526), ways),
            Self::Parameter => rejection(400, "PARAM_ERROR", Some(268_435_461), ways),
            Self::NotFound => rejection(404, "NOT_FOUND", Some(268_578_851), ways),
        }
    }
}

impl Card {
    pub(crate) fn new(ways: Ways) -> Self {
        Self { permits: vec![Permit::default(); ways.rounds], gone: None, effects: 0, rejected: None }
    }

    /// Whether our use stands.
    pub(crate) fn is_ours(&self) -> bool {
        self.permits.iter().any(|permit| permit.used == Some(User::Ours))
    }

    fn free(&self) -> Option<usize> {
        let usable = self.gone.is_none() && self.rejected.is_none();
        self.permits.iter().position(|permit| permit.used.is_none()).filter(|_| usable)
    }

    /// Whether a use of our number would take effect now.
    pub(crate) fn would_take_effect(&self, ways: Ways) -> bool {
        !self.is_ours() && self.free().is_some() && (self.effects == 0 || ways.forgets_returned)
    }

    /// A use under our number arrives.
    pub(crate) fn take_effect(&mut self, ways: Ways) {
        if self.would_take_effect(ways)
            && let Some(free) = self.free()
        {
            self.permits[free].used = Some(User::Ours);
            self.effects += 1;
        }
    }

    /// The provider's own, signed answer to a use of ours, once it was worked on.
    pub(crate) fn answer_use(&self, ways: Ways) -> CallResult {
        if self.is_ours() {
            return self.describe(ways);
        }
        if let Some(rejects) = self.rejected {
            return rejects.answer(ways);
        }
        if self.effects > 0 {
            return rejection(400, "PARAM_ERROR", Some(268_578_927), ways);
        }
        match self.permits.iter().all(|permit| permit.used.is_some()) {
            true => rejection(403, "NOT_ENOUGH", Some(272_756_745), ways),
            false => rejection(403, "NOT_ENOUGH", None, ways),
        }
    }

    /// The provider's own, signed answer to a query.
    pub(crate) fn answer_query(&self, ways: Ways) -> CallResult {
        match self.rejected {
            Some(rejects) => rejects.answer(ways),
            None => self.describe(ways),
        }
    }

    fn describe(&self, ways: Ways) -> CallResult {
        let number = |user| match user {
            User::Ours => OURS,
            User::Other => "OTHER_1",
        };
        let state = |used: Option<User>| match (used, self.gone) {
            (Some(_), _) => CouponState::Used,
            (None, Some(gone)) => gone.state(),
            (None, None) => CouponState::Effective,
        };
        let user = |permit: &Permit| match (permit.used, permit.returned) {
            (Some(user), _) => Some(user),
            (None, Some(Return::Ours)) if ways.keeps_numbers => Some(User::Ours),
            (None, Some(Return::LongBefore | Return::Others)) if ways.keeps_numbers => Some(User::Other),
            (None, _) => None,
        };
        let trace = |permit: &Permit| Trace {
            use_request_no: user(permit).filter(|_| ways.shows_numbers).map(|user| number(user).into()),
            return_request_no: permit.returned.map(|_| "R1".into()),
            return_time: permit.returned.filter(|at| *at == Return::LongBefore).map(|_| long_before()),
            ..Trace::default()
        };
        let every = self.permits.iter().all(|permit| permit.used.is_some());
        let usage = match &self.permits[..] {
            [permit] => UsageTrace::Single(trace(permit)),
            permits => {
                let round = |permit: &Permit| Round { state: state(permit.used), trace: trace(permit) };
                UsageTrace::Rounds(permits.iter().map(round).collect())
            }
        };
        let whole = state(every.then_some(User::Ours));
        let coupon = Coupon {
            code: CODE.into(),
            state: whole,
            usage,
            ids: Box::default(),
            entity: "{}".into(),
            reduced: None,
        };
        CallResult::Response(Response { coupon: Some(coupon), ..answer(200, Authenticity::Verified) })
    }

    /// A coupon that looks used by us, under no signature.
    pub(crate) fn forge_success(&self, ways: Ways) -> CallResult {
        let mut used = Self::new(Ways { rounds: 1, ..ways });
        used.permits[0].used = Some(User::Ours);
        match used.describe(Ways { shows_numbers: true, ..ways }) {
            CallResult::Response(answer) => {
                CallResult::Response(Response { authenticity: Authenticity::Unsigned, ..answer })
            }
            other => other,
        }
    }
}

fn long_before() -> Timestamp {
    start().saturating_sub(SignedDuration::from_hours(1)).unwrap_or(Timestamp::MIN)
}

/// When the first command is published.
pub(crate) fn start() -> Timestamp {
    Timestamp::from_second(1_772_685_045).unwrap_or(Timestamp::MIN)
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

fn rejection(status: u16, code: &str, sub_code: Option<u64>, ways: Ways) -> CallResult {
    let authenticity = if ways.signs_rejections { Authenticity::Verified } else { Authenticity::Unsigned };
    error(status, code, sub_code, authenticity)
}

/// An error body.
pub(crate) fn error(
    status: u16,
    code: &str,
    sub_code: Option<u64>,
    authenticity: Authenticity,
) -> CallResult {
    CallResult::Response(Response { code: Some(code.into()), sub_code, ..answer(status, authenticity) })
}

/// No answer, though it may have arrived.
pub(crate) fn lost() -> CallResult {
    CallResult::NoResponse(NoResponse::Timeout)
}

/// Nothing arrived.
pub(crate) fn not_sent() -> CallResult {
    CallResult::NotSent(NotSent::Connect)
}
