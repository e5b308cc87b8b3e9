//! Creates a coupon to issue: its times, its rounds, and the numbers that the request leaves out.

use std::sync::Arc;

use jiff::Timestamp;

use super::appearance::{self, Limits};
use super::bundles::ROUNDS;
use super::clock::{DAY, china_time, shifted};
use super::coupon::{Bundle, Coupon, CouponState, Mark, NewCoupon, Round, Usage, UsageMode};

const HOUR: i64 = 3600;
const VALID_SECONDS: i64 = 30 * DAY;

/// When a coupon was received, and from when to when it can be used.
struct Times {
    received: Timestamp,
    begin: Timestamp,
    end: Timestamp,
}

impl Times {
    /// In accord with how the coupon's stock limits the time of its coupons.
    fn of(new: &NewCoupon, limits: Limits, now: Timestamp) -> Times {
        // A limit in seconds is of a day at most, and begins when the coupon is received.
        let (since, lasts) = match limits {
            Limits::Seconds => (HOUR, DAY - HOUR),
            _ => (DAY, VALID_SECONDS),
        };
        let (begin, end) = match new.state {
            CouponState::Pending => {
                let lasts = new.valid_seconds.unwrap_or(if limits == Limits::Seconds { DAY } else { lasts });
                (shifted(now, DAY), shifted(now, DAY + lasts))
            }
            CouponState::Expired => (shifted(now, -2 * DAY), shifted(now, -DAY)),
            _ => (shifted(now, -since), shifted(now, new.valid_seconds.unwrap_or(lasts))),
        };
        let received = if begin > now { shifted(now, -DAY) } else { begin };
        let wait = if limits == Limits::Days { appearance::WAIT_DAYS * DAY } else { 0 };
        Times { received: shifted(received, -wait), begin, end }
    }
}

/// The coupon as it is from now on.
pub(super) fn issued(new: NewCoupon, looks_seed: Option<u64>, now: Timestamp) -> Coupon {
    let code: Arc<str> = new.coupon_code.as_str().into();
    let look = new.look.or_else(|| looks_seed.map(|seed| appearance::by_seed(seed, &code)));
    let times = Times::of(&new, appearance::limits(look, new.usage_mode), now);
    let mark = |prefix: &str, at| Mark { number: generate_name(prefix, &code).into(), at };
    let is_withdrawn = new.state == CouponState::Deactivated;
    let bundle = (new.usage_mode == UsageMode::ProgressiveBundle).then(|| Bundle {
        id: new.bundle_id.clone().unwrap_or_else(|| format!("bundle_{code}")).into(),
        index: new.bundle_index,
        total: new.rounds.unwrap_or(ROUNDS),
    });
    let mut coupon = Coupon {
        usage_mode: new.usage_mode,
        state: new.state,
        rounds: rounds(&new, &times, now),
        bundle,
        sent: mark("SANDBOX_SEND", times.received),
        // A coupon past the first state was confirmed.
        confirmed: (new.state != CouponState::Confirming).then(|| mark("SANDBOX_CONFIRM", times.received)),
        deactivated: is_withdrawn.then(|| mark("SANDBOX_DEACTIVATE", now)),
        deactivate_reason: is_withdrawn.then(|| "issued so".to_owned()),
        openid: new.openid.into(),
        appid: new.appid.into(),
        brand_id: new.brand_id.into(),
        product_coupon_id: new.product_coupon_id.into(),
        stock_id: new.stock_id.into(),
        attach: Some("campaign=sandbox".to_owned()),
        locked_by: None,
        stores: new.stores,
        look,
        shows_returned_use: new.shows_returned_use,
        coupon_code: code,
    };
    coupon.update_state();
    coupon
}

fn rounds(new: &NewCoupon, times: &Times, now: Timestamp) -> Vec<Round> {
    let used = (new.state == CouponState::Used).then(|| Usage {
        number: match &new.used_by {
            Some(number) => number.as_str().into(),
            None => generate_name("SANDBOX_OTHER_ORDER", &new.coupon_code).into(),
        },
        use_time: china_time(now),
        order: None,
        saved_amount: None,
    });
    let total = match new.usage_mode {
        UsageMode::Sequential => new.rounds.unwrap_or(ROUNDS),
        UsageMode::Single | UsageMode::ProgressiveBundle => 1,
    };
    let round = |index| Round {
        // Only the first round of a usable or used coupon is usable or used; the others wait their turn.
        state: match (index, new.state) {
            (0, state) => state,
            (1, CouponState::Used) => CouponState::Effective,
            (_, CouponState::Used | CouponState::Effective) => CouponState::Pending,
            (_, state) => state,
        },
        valid_begin: times.begin,
        valid_end: times.end,
        used: used.clone().filter(|_| index == 0),
        returned: None,
        returned_use: None,
        deleted: (new.state == CouponState::Deleted).then_some(now),
    };
    (0..total).map(round).collect()
}

/// A number for what no client asked, within the 40 characters that a number may have.
pub(super) fn generate_name(prefix: &str, tail: &str) -> String {
    let room = 39 - prefix.len();
    let characters = tail.chars().count();
    format!("{prefix}_{}", tail.chars().skip(characters.saturating_sub(room)).collect::<String>())
}
