//! Whether a signed rejection is about the command that met it, or about what stands in the head of every call.
//!
//! A typo in an id of ours is answered by the provider like a wrong field: 400 `PARAM_ERROR`, rightly signed. Charged to
//! commands it would end the whole backlog as refused. Two things tell the difference: the provider names a header as the
//! cause, or commands that share nothing are rejected alike, one after the other, and none is accepted between. Commands of
//! one publisher share an app or a brand: however many bad ones it sends, they are never a ground to suspend.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

use crate::domain::redemption::Redemption;

/// Commands that share nothing and are rejected alike, until that is taken for a fault of our own.
pub const UNRELATED_MIN: usize = 3;

/// How long such a row must have lasted.
pub const STANDING: Duration = Duration::from_secs(5);

/// How long a row of fewer has lasted until each is taken to be rejected for its own sake.
pub const SETTLED: Duration = Duration::from_secs(30);

/// A call that was accepted no longer ago than this shows that what stands in the head of calls is in order.
pub const LATELY: Duration = Duration::from_secs(5);

/// A row that nothing was added to for so long is over.
const ROW_ENDS: Duration = Duration::from_secs(600);

/// What a rejection says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// HTTP status.
    pub status: u16,
    /// `code` of its body.
    pub code: Box<str>,
    /// The number at the end of its `Request-ID`.
    pub sub_code: Option<u64>,
}

/// Whose fault a rejection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The command's.
    Command,
    /// Not known yet: the coupon is looked at, which shows whether calls are accepted at all, and the command sent again.
    Unclear,
    /// Ours: every command is rejected so.
    Common,
}

/// The rejections of late that name no cause.
#[derive(Debug, Default)]
pub struct CommonRejection {
    row: Option<Row>,
    accepted_at: Option<Instant>,
}

#[derive(Debug)]
struct Row {
    rejection: Rejection,
    since: Instant,
    last: Instant,
    /// Commands that share nothing with each other: [`UNRELATED_MIN`] at most.
    unrelated: Vec<Facts>,
}

/// What commands of one publisher, or about one coupon, have in common.
#[derive(Debug, PartialEq, Eq)]
struct Facts([Box<str>; 6]);

impl Facts {
    fn of(redemption: &Redemption) -> Self {
        let Redemption { openid, coupon_code, brand_id, product_coupon_id, stock_id, appid, .. } = redemption;
        Self(
            [
                openid.as_str(),
                coupon_code.as_str(),
                brand_id.as_str(),
                product_coupon_id.as_str(),
                stock_id.as_str(),
                appid.as_str(),
            ]
            .map(Into::into),
        )
    }

    fn shares_nothing_with(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(ours, theirs)| ours != theirs)
    }
}

impl CommonRejection {
    /// A call that was sent at `asked_at` was accepted, or rejected for a reason that is the command's alone.
    pub fn accept(&mut self, asked_at: Instant) {
        self.accepted_at = self.accepted_at.max(Some(asked_at));
        if self.row.as_ref().is_some_and(|row| row.since <= asked_at) {
            self.row = None;
        }
    }

    /// A command was rejected, and nothing says for what.
    pub fn reject(&mut self, rejection: Rejection, command: &Redemption, now: Instant) -> Cause {
        if self.accepted_at.is_some_and(|at| now.saturating_duration_since(at) < LATELY) {
            return Cause::Command;
        }
        let goes_on =
            |row: &Row| row.rejection == rejection && now.saturating_duration_since(row.last) < ROW_ENDS;
        let row = match self.row.take().filter(goes_on) {
            Some(row) => self.row.insert(row),
            None => self.row.insert(Row { rejection, since: now, last: now, unrelated: Vec::new() }),
        };
        row.last = now;
        let facts = Facts::of(command);
        let is_new = row.unrelated.iter().all(|other| facts.shares_nothing_with(other));
        if is_new && row.unrelated.len() < UNRELATED_MIN {
            row.unrelated.push(facts);
        }
        row.cause(now)
    }

    /// Whether this rejection meets every command now, as a query finds that shares their heads.
    pub fn is_common(&self, rejection: &Rejection, now: Instant) -> bool {
        self.row.as_ref().is_some_and(|row| row.rejection == *rejection && row.cause(now) == Cause::Common)
    }
}

impl Row {
    fn cause(&self, now: Instant) -> Cause {
        let lasted = now.saturating_duration_since(self.since);
        match self.unrelated.len() >= UNRELATED_MIN {
            true if lasted >= STANDING => Cause::Common,
            false if lasted >= SETTLED => Cause::Command,
            _ => Cause::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command(who: u32, brand: u32) -> Redemption {
        let mut text = include_str!("../../docs/contract/examples/command.flat.json").to_owned();
        for (name, value) in [
            ("openid", format!("oUser_{who}")),
            ("coupon_code", format!("coupon_{who}")),
            ("brand_id", format!("{brand}")),
            ("product_coupon_id", format!("product_{brand}")),
            ("stock_id", format!("stock_{brand}")),
            ("appid", format!("wx{brand}")),
        ] {
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json[name] = value.into();
            text = json.to_string();
        }
        crate::wire::command::decode(text.as_bytes()).unwrap()
    }

    fn rejection(code: &str) -> Rejection {
        Rejection { status: 400, code: code.into(), sub_code: Some(268_435_461) }
    }

    struct Case {
        common: CommonRejection,
        begun: Instant,
    }

    impl Case {
        fn new() -> Self {
            Self { common: CommonRejection::default(), begun: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.begun + Duration::from_secs(seconds)
        }

        fn reject(&mut self, seconds: u64, who: u32, brand: u32) -> Cause {
            let now = self.at(seconds);
            self.common.reject(rejection("PARAM_ERROR"), &command(who, brand), now)
        }
    }

    #[test]
    fn unrelated_commands_rejected_alike_are_our_fault() {
        let mut case = Case::new();
        assert_eq!(case.reject(0, 1, 1), Cause::Unclear);
        assert_eq!(case.reject(1, 2, 2), Cause::Unclear);
        assert_eq!(case.reject(2, 3, 3), Cause::Unclear, "three, and not for long enough");
        assert_eq!(case.reject(5, 1, 1), Cause::Common);
        assert!(case.common.is_common(&rejection("PARAM_ERROR"), case.at(6)));
        assert!(!case.common.is_common(&rejection("INVALID_REQUEST"), case.at(6)));
        assert_eq!(case.reject(40, 9, 9), Cause::Common, "however long it lasts");
        case.common.accept(case.at(41));
        assert_eq!(case.reject(42, 4, 4), Cause::Command, "one was accepted just now");
        assert_eq!(case.reject(50, 4, 4), Cause::Unclear, "a new row");
    }

    #[test]
    fn flood_of_one_publisher_suspends_nothing() {
        let mut case = Case::new();
        for nth in 0..1_000 {
            let cause = case.reject(u64::from(nth) / 10, nth, 7);
            let expected = if nth < 300 { Cause::Unclear } else { Cause::Command };
            assert_eq!(cause, expected, "{nth}");
        }
    }

    #[test]
    fn another_rejection_begins_another_row() {
        let mut case = Case::new();
        for nth in 0..60 {
            let code = ["PARAM_ERROR", "INVALID_REQUEST"][nth as usize % 2];
            let now = case.at(u64::from(nth));
            assert_eq!(case.common.reject(rejection(code), &command(nth, nth), now), Cause::Unclear);
        }
    }

    #[test]
    fn call_from_before_the_row_does_not_end_it() {
        let mut case = Case::new();
        for nth in 0..3 {
            case.reject(10, nth, nth);
        }
        case.common.accept(case.at(9));
        assert_eq!(case.reject(16, 1, 1), Cause::Common);
    }

    proptest! {
        /// Whatever the order: nothing is common that somebody else's accepted call contradicts, and nothing by commands
        /// that share an app or a brand.
        #[test]
        fn common_only_without_acceptance_and_relation(
            calls in prop::collection::vec((0..5u32, 0..3u32, prop::bool::weighted(0.2), 0..8u64), 1..60),
        ) {
            let mut case = Case::new();
            let (mut now, mut accepted, mut brands) = (0, None, Vec::new());
            for (who, brand, granted, pause) in calls {
                now += pause;
                if granted {
                    case.common.accept(case.at(now));
                    accepted = Some(now);
                    brands.clear();
                    continue;
                }
                let cause = case.reject(now, who * 3 + brand, brand);
                if accepted.is_none_or(|at| now - at >= LATELY.as_secs()) {
                    brands.push(brand);
                }
                if cause == Cause::Common {
                    prop_assert!(accepted.is_none_or(|at| now - at >= STANDING.as_secs()));
                    prop_assert!((0..3).all(|brand| brands.contains(&brand)));
                }
            }
        }
    }
}
