//! The words for a coupon: what it is called, what state it is in, and whose redemption it carries.
//!
//! Pure values. Parsing the provider's JSON into a [`Coupon`] happens at the edge (`wechat::reply`);
//! nothing here knows about text formats beyond the spelling of a single word.

use std::fmt;
use std::sync::Arc;

use crate::redemption::{CouponCode, Redemption, RequestNo};

/// The state of a user's coupon, as WeChat Pay names it.
///
/// The provider may add states at any time; an unknown one is carried through as it was spelt.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Deleted by the user in the card wallet; nobody is told.
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

/// A coupon as an authentic reply described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coupon {
    /// The code, as the reply spells it.
    pub code: Box<str>,
    /// The state of the coupon as a whole.
    pub state: CouponState,
    /// How it is used: once, or round by round.
    pub usage: Usage,
    /// The brand, product coupon and stock that the reply names, each as often as it does.
    pub ids: Vec<Id>,
    /// The entity exactly as it was sent, unknown fields included: one JSON object.
    pub entity: Arc<str>,
}

/// Something that a coupon belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Id {
    /// `brand_id`.
    Brand(Box<str>),
    /// `product_coupon_id`.
    ProductCoupon(Box<str>),
    /// `stock_id`.
    Stock(Box<str>),
}

/// The usage block of a coupon. Three shapes exist on the wire; two of them say the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// `single_usage_detail` or `progressive_bundle_usage_detail`: this code is used once.
    Once(Trace),
    /// Legacy `sequential_usage_detail`: one code, used round by round.
    Rounds(Vec<Round>),
}

/// What earlier redemptions and returns left on a coupon or on one of its rounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The request number that used it. Shown only while it is used.
    pub use_request_no: Option<Box<str>>,
    /// The request number of the last return. It stays visible after a later use.
    pub return_request_no: Option<Box<str>>,
}

/// One round of a legacy sequential coupon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// `detail_state` of the round.
    pub state: CouponState,
    /// What use and return left on it.
    pub trace: Trace,
}

/// How a coupon stands towards one redemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It carries our request number: our redemption took effect.
    Ours,
    /// It was used under another request number.
    Another,
    /// It is usable and was never returned.
    Usable,
    /// It is usable because a redemption of it was returned; nobody can say whose.
    Returned,
    /// It cannot be used in this state.
    Unusable(CouponState),
    /// It was used, and the reply does not say under which number.
    Unnamed,
    /// It is another coupon: whatever the reply says of it, it says nothing of the one meant.
    AnotherCoupon,
    /// The reply does not say enough, or contradicts itself.
    Unclear,
}

impl Coupon {
    /// Whether the brand, the product coupon and the stock are those of the redemption, where the reply names them.
    pub fn is_of(&self, redemption: &Redemption) -> bool {
        let Redemption { brand_id, product_coupon_id, stock_id, .. } = redemption;
        self.ids.iter().all(|id| match id {
            Id::Brand(id) => **id == *brand_id.as_str(),
            Id::ProductCoupon(id) => **id == *product_coupon_id.as_str(),
            Id::Stock(id) => **id == *stock_id.as_str(),
        })
    }

    /// How this coupon stands towards the redemption `number` of `code`, which meant round `index` where the
    /// coupon is a legacy sequential one.
    pub fn standing(&self, code: &CouponCode, number: &RequestNo, index: Option<u32>) -> Standing {
        if *self.code != *code.as_str() {
            return Standing::AnotherCoupon;
        }
        match &self.usage {
            Usage::Once(trace) => stand(&self.state, trace, number),
            Usage::Rounds(rounds) => self.stand_by_round(rounds, number, index),
        }
    }

    fn stand_by_round(&self, rounds: &[Round], number: &RequestNo, index: Option<u32>) -> Standing {
        // Our number settles the matter wherever it stands: the provider may have counted the round itself.
        let carrier = rounds.iter().find(|round| round.trace.carries(number));
        if let Some(round) = carrier {
            return stand(&round.state, &round.trace, number);
        }
        // A coupon that is gone as a whole is gone for every round, whatever the rounds still say.
        if !matches!(self.state, CouponState::Effective | CouponState::Used) {
            return stand(&self.state, &Trace::default(), number);
        }
        let meant = match index {
            Some(index) => rounds.get(index as usize),
            None => rounds.iter().find(|round| round.state != CouponState::Used).or_else(|| rounds.last()),
        };
        match meant {
            Some(round) => stand(&round.state, &round.trace, number),
            None => Standing::Unclear,
        }
    }
}

impl Trace {
    fn carries(&self, number: &RequestNo) -> bool {
        self.use_request_no.as_deref() == Some(number.as_str())
    }
}

fn stand(state: &CouponState, trace: &Trace, number: &RequestNo) -> Standing {
    match (state, &trace.use_request_no, &trace.return_request_no) {
        (CouponState::Used, Some(user), _) if **user == *number.as_str() => Standing::Ours,
        (CouponState::Used, Some(_), _) => Standing::Another,
        (CouponState::Used, None, _) => Standing::Unnamed,
        (CouponState::Effective, _, Some(_)) => Standing::Returned,
        // A number is shown "if and only if used": one on a usable coupon contradicts itself.
        (CouponState::Effective, Some(_), None) => Standing::Unclear,
        (CouponState::Effective, None, None) => Standing::Usable,
        // Documented transitions never leave USED for these, so a number of ours here cannot be explained.
        (_, Some(_), _) => Standing::Unclear,
        (CouponState::Other(_), None, _) => Standing::Unclear,
        (state, None, _) => Standing::Unusable(state.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "USE_0001";

    fn standing(state: &str, used: Option<&str>, returned: Option<&str>) -> Standing {
        coupon(state, Usage::Once(trace(used, returned))).standing(&code(), &number(), None)
    }

    fn coupon(state: &str, usage: Usage) -> Coupon {
        Coupon {
            code: "C1".into(),
            state: CouponState::from_wire(state),
            usage,
            ids: vec![],
            entity: "{}".into(),
        }
    }

    fn trace(used: Option<&str>, returned: Option<&str>) -> Trace {
        Trace { use_request_no: used.map(Into::into), return_request_no: returned.map(Into::into) }
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
    fn a_coupon_used_once_stands_by_its_state_and_numbers() {
        let gone = |state: &str| Standing::Unusable(CouponState::from_wire(state));
        assert_eq!(standing("USED", Some(OURS), None), Standing::Ours);
        assert_eq!(standing("USED", Some(OURS), Some("R1")), Standing::Ours);
        assert_eq!(standing("USED", Some("OTHER_1"), None), Standing::Another);
        assert_eq!(standing("USED", None, None), Standing::Unnamed);
        assert_eq!(standing("EFFECTIVE", None, None), Standing::Usable);
        assert_eq!(standing("EFFECTIVE", None, Some("R1")), Standing::Returned);
        assert_eq!(standing("EFFECTIVE", Some(OURS), Some("R1")), Standing::Returned);
        assert_eq!(standing("EFFECTIVE", Some(OURS), None), Standing::Unclear);
        for state in ["CONFIRMING", "PENDING", "EXPIRED", "DELETED", "DEACTIVATED"] {
            assert_eq!(standing(state, None, None), gone(state));
            assert_eq!(standing(state, Some(OURS), None), Standing::Unclear);
        }
        assert_eq!(standing("FROZEN", None, None), Standing::Unclear);
    }

    #[test]
    fn another_coupon_says_nothing_about_ours() {
        let reply = coupon("USED", Usage::Once(trace(Some(OURS), None)));
        let other = CouponCode::parse("C2").unwrap();
        assert_eq!(reply.standing(&other, &number(), None), Standing::AnotherCoupon);
    }

    #[test]
    fn a_sequential_coupon_stands_by_the_round_that_was_meant() {
        let rounds =
            vec![round("USED", Some("OTHER_1")), round("USED", Some(OURS)), round("EFFECTIVE", None)];
        let at = |rounds: &[Round], index| {
            coupon("EFFECTIVE", Usage::Rounds(rounds.to_vec())).standing(&code(), &number(), index)
        };
        assert_eq!(at(&rounds, Some(1)), Standing::Ours);
        assert_eq!(at(&rounds, None), Standing::Ours);
        assert_eq!(at(&rounds[..1], Some(0)), Standing::Another);
        assert_eq!(at(&rounds[..1], Some(5)), Standing::Unclear);
        let fresh = [rounds[0].clone(), rounds[2].clone()];
        assert_eq!(at(&fresh, Some(1)), Standing::Usable);
        assert_eq!(at(&fresh, None), Standing::Usable);
        assert_eq!(at(&[], None), Standing::Unclear);
    }

    #[test]
    fn a_sequential_coupon_that_is_gone_is_gone_for_every_round() {
        let rounds = Usage::Rounds(vec![round("EFFECTIVE", None)]);
        assert_eq!(
            coupon("DELETED", rounds).standing(&code(), &number(), Some(0)),
            Standing::Unusable(CouponState::Deleted)
        );
    }
}
