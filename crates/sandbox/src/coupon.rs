//! One coupon as the sandbox keeps it, and the requests of tests and people: how it is issued, and actions on it.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::error_response::{ErrorResponse, sub_code};
use super::request::Path;

/// How often a coupon can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UsageMode {
    /// Once.
    #[default]
    Single,
    /// Once, as one of a bundle: every round of the bundle is a coupon of its own.
    ProgressiveBundle,
    /// Legacy: one coupon of several rounds, each with its own state.
    Sequential,
}

/// The states of a coupon, and of a round of the legacy mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CouponState {
    /// Sent, and waiting for `confirm`.
    Confirming,
    /// Confirmed, but not yet valid; or a later round of the legacy mode.
    Pending,
    /// Usable.
    #[default]
    Effective,
    /// Used. A return makes it usable again.
    Used,
    /// Past its end. Final.
    Expired,
    /// Deleted by the user, of which nobody is notified. Final.
    Deleted,
    /// Withdrawn by the merchant. Final.
    Deactivated,
}

/// A coupon to issue: an element of `POST /_sandbox/coupons`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCoupon {
    /// The user who holds it.
    pub openid: String,
    /// Unique over the whole sandbox.
    pub coupon_code: String,
    /// The application that `openid` belongs to.
    pub appid: String,
    /// The brand that issued it.
    pub brand_id: String,
    /// The product coupon it is an instance of.
    pub product_coupon_id: String,
    /// The stock it was sent from.
    pub stock_id: String,
    /// `SINGLE` where absent.
    #[serde(default)]
    pub usage_mode: UsageMode,
    /// Rounds of a `SEQUENTIAL` coupon, 1 to 15, or coupons in the whole bundle, 3 to 15: 3 where absent. No use for
    /// `SINGLE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<usize>,
    /// The bundle of a `PROGRESSIVE_BUNDLE` coupon; a bundle of its own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_id: Option<String>,
    /// Its place in the bundle, from 0 and below `rounds`; one coupon for each place.
    #[serde(default)]
    pub bundle_index: usize,
    /// `EFFECTIVE` where absent.
    #[serde(default)]
    pub state: CouponState,
    /// The number that used it, where `state` is `USED`; `SANDBOX_OTHER_ORDER` and the code's last characters where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
    /// How long it stays valid, in seconds of the sandbox clock from now; 30 days where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_seconds: Option<i64>,
    /// The only stores that may redeem it; every store if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<String>,
    /// Which of the documented members and words its product coupon and its stock show: a number from 0 on. Each list of
    /// words has its next word under the next number. If absent, one plain appearance, or one by the seed if the
    /// settings say `vary_looks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<u32>,
    /// Whether a use that was returned is still shown, beside the return. The provider's documents say both.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shows_returned_use: bool,
}

/// An external action on a coupon: the body of `POST /_sandbox/coupons/{code}/act`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRequest {
    /// The action.
    #[serde(rename = "do")]
    pub action: CouponAction,
    /// The request number of a use, return, confirmation or deactivation; one is made up where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<String>,
    /// Which round of a legacy coupon, from 0; the one that a client would get where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
}

/// The external actions on a coupon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CouponAction {
    /// The user deletes it.
    Delete,
    /// It expires.
    Expire,
    /// The merchant returns it.
    Return,
    /// The merchant withdraws it.
    Deactivate,
    /// The merchant confirms it.
    Confirm,
    /// Another party uses it.
    Use,
    /// Another party starts a use that does not end: other numbers are refused until it is unlocked.
    Lock,
    /// That use ended without effect.
    Unlock,
}

/// A coupon as the sandbox keeps it.
#[derive(Clone, Debug, Serialize)]
pub struct Coupon {
    /// The user who holds it.
    pub openid: Arc<str>,
    /// Its code.
    pub coupon_code: Arc<str>,
    /// The application of `openid`.
    pub appid: Arc<str>,
    /// Its brand.
    pub brand_id: Arc<str>,
    /// Its product coupon.
    pub product_coupon_id: Arc<str>,
    /// Its stock.
    pub stock_id: Arc<str>,
    /// How often it can be used.
    pub usage_mode: UsageMode,
    /// The state of the coupon as a whole.
    pub state: CouponState,
    /// One, but for the legacy mode.
    pub rounds: Vec<Round>,
    /// Its place in its bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Bundle>,
    /// The number and time of its sending.
    pub sent: Mark,
    /// Number and time of its confirmation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Mark>,
    /// Number and time of its withdrawal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deactivated: Option<Mark>,
    /// Why it was withdrawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deactivate_reason: Option<String>,
    /// What the sender attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach: Option<String>,
    /// The number of a use that has begun and not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_by: Option<Arc<str>>,
    /// The only stores that may redeem it; every store if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<String>,
    /// Which appearance its product coupon and its stock have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look: Option<u32>,
    /// Whether a use that was returned is still shown.
    pub shows_returned_use: bool,
}

/// One use that a coupon allows.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Its state.
    pub state: CouponState,
    /// When it can be used first.
    #[serde(serialize_with = "as_text")]
    pub valid_begin: Timestamp,
    /// When it can be used last.
    #[serde(serialize_with = "as_text")]
    pub valid_end: Timestamp,
    /// The current use. A return removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<Usage>,
    /// The latest return, which a later use does not remove.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returned: Option<Mark>,
    /// The use that the latest return ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returned_use: Option<Usage>,
    /// When the user deleted it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_as_text")]
    pub deleted: Option<Timestamp>,
}

/// A use, as the usage detail of the entity reports it.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// The number of the redemption.
    pub number: Arc<str>,
    /// As the client wrote it.
    pub use_time: String,
    /// The name and the content of the order object; nothing for a use from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<(&'static str, serde_json::Value)>,
    /// In fen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_amount: Option<u64>,
}

/// The place of a coupon in its bundle.
#[derive(Clone, Debug, Serialize)]
pub struct Bundle {
    /// Shared by the coupons of the bundle.
    pub id: Arc<str>,
    /// From 0.
    pub index: usize,
    /// How many coupons the bundle has.
    pub total: usize,
}

/// The number and the time of a request.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    /// The request number.
    pub number: Arc<str>,
    /// On the sandbox clock.
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
}

impl CouponState {
    pub(super) fn is_over(self) -> bool {
        matches!(self, CouponState::Expired | CouponState::Deleted | CouponState::Deactivated)
    }

    /// Why a coupon in this state cannot be used; `None` if it can.
    pub(super) fn refusal(self) -> Option<ErrorResponse> {
        let (code, message) = match self {
            CouponState::Effective => return None,
            CouponState::Confirming | CouponState::Deactivated => (sub_code::STATE_ILLEGAL, "用户券状态非法"),
            CouponState::Pending => (sub_code::OUTSIDE_VALIDITY, "用户商品券当前无法使用：未到可用时间"),
            CouponState::Used => (sub_code::USED_BY_ANOTHER, "用户商品券当前无法使用：券已被其他订单核销"),
            CouponState::Expired => (sub_code::EXPIRED, "用户商品券当前无法使用：券已过期"),
            CouponState::Deleted => (sub_code::DELETED, "券已被删除"),
        };
        Some(ErrorResponse::unusable(code, message))
    }
}

impl Coupon {
    /// The state of the whole follows from its rounds, unless it was never confirmed.
    pub(super) fn update_state(&mut self) {
        let has = |state| self.rounds.iter().any(|round| round.state == state);
        self.state = match self.rounds.as_slice() {
            [only] => only.state,
            _ if has(CouponState::Effective) => CouponState::Effective,
            _ if has(CouponState::Confirming) => CouponState::Confirming,
            _ if has(CouponState::Pending) => CouponState::Pending,
            rounds => rounds.last().map_or(CouponState::Used, |round| round.state),
        };
    }

    /// The round a use goes to: the one asked for, else the first usable, else the first that is not used, else the last.
    pub(super) fn round_to_use(&self, asked: Option<usize>) -> usize {
        let first = |is_match: fn(&Round) -> bool| self.rounds.iter().position(is_match);
        asked
            .or_else(|| first(|round| round.state == CouponState::Effective))
            .or_else(|| first(|round| round.state != CouponState::Used))
            .unwrap_or(self.rounds.len() - 1)
    }

    pub(super) fn round_to_return(&self, asked: Option<usize>) -> usize {
        asked.or_else(|| self.rounds.iter().rposition(|round| round.state == CouponState::Used)).unwrap_or(0)
    }
}

impl NewCoupon {
    /// A usable `SINGLE` coupon with the names that a request gave.
    pub(super) fn at(openid: &str, code: &str, place: &Path) -> NewCoupon {
        NewCoupon {
            openid: openid.to_owned(),
            coupon_code: code.to_owned(),
            appid: place.appid.clone(),
            brand_id: place.brand_id.clone(),
            product_coupon_id: place.product_coupon_id.clone(),
            stock_id: place.stock_id.clone(),
            ..NewCoupon::default()
        }
    }
}

pub(super) fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

fn maybe_as_text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}
