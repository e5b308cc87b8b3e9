//! Whether a signed rejection concerns the command or the headers of every call.
//!
//! The provider responds to a typo in an id of ours as to a wrong field: 400 `PARAM_ERROR`, correctly signed. Attributed to
//! commands it would end the whole backlog as refused. Two things show the difference: the provider names a header as the
//! cause, or commands that share nothing are rejected alike, one after the other, and none is accepted in between.
//!
//! A service with a single brand has no commands that share nothing. There more of them are required, of different users,
//! coupons and stocks, with the same message of the provider, and the queries about their coupons must be rejected alike,
//! too: a query shares nothing with a command but the user and the coupon. Any number of bad commands of one publisher
//! suspends nothing if their coupons can be queried, if any call was accepted in between, or if another brand
//! was served recently.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

use crate::domain::evidence::Operation;
use crate::domain::redemption::Redemption;
use crate::policy::classify::{UnknownCause, Verdict};

/// The number of commands that share nothing and are rejected alike from which on the fault is our own.
pub const UNRELATED_MIN: usize = 3;

/// The number of commands of one brand or app, of as many users and coupons and of [`UNRELATED_MIN`] stocks, that are
/// rejected alike from which on the fault is our own.
pub const RELATED_MIN: usize = 8;

/// The number of queries that must be rejected alike, too, if the commands are of one brand or app.
pub const QUERIES_MIN: usize = 3;

/// A call of another brand that was accepted no longer ago than this shows that a streak of one brand concerns this brand.
pub const OTHER_BRAND: Duration = Duration::from_secs(3_600);

/// How long such a streak must last.
pub const STREAK_MIN_AGE: Duration = Duration::from_secs(5);

/// After this long a streak of fewer commands shows a fault of each command.
pub const STREAK_UNDECIDED_MAX: Duration = Duration::from_secs(30);

/// A call that was accepted no longer ago than this shows that the headers of calls are valid.
pub const ACCEPTED_RECENTLY: Duration = Duration::from_secs(5);

/// A streak without a further rejection for this long is over.
const STREAK_ENDS: Duration = Duration::from_secs(600);

/// The most streaks that are kept, of one kind of rejection each. With more, the one with the oldest last rejection is forgotten.
const STREAKS_MAX: usize = 8;

/// What identifies a kind of rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectionKind {
    /// HTTP status.
    pub status: u16,
    /// `code` of its body.
    pub code: Box<str>,
    /// The number at the end of its `Request-ID`.
    pub sub_code: Option<u64>,
}

/// The side at fault for a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionOwner {
    /// The command's.
    Command,
    /// Unknown yet: the coupon is queried, which shows whether calls are accepted at all. If they are, the command is
    /// sent again.
    Unclear,
    /// Ours: every command is rejected alike.
    Common,
}

impl RejectionOwner {
    /// The `verdict` on a signed rejection that names no cause. `is_alike` if a query is rejected as the use of its command
    /// was.
    pub fn attribute(self, operation: Operation, is_alike: bool, verdict: Verdict) -> Verdict {
        match (self, &verdict) {
            (Self::Common, Verdict::Rejected { reason, .. }) => Verdict::RejectedAlike(*reason),
            // Queries show whether calls are accepted at all.
            (Self::Unclear, Verdict::Rejected { reason, .. })
                if operation == Operation::Redeem || is_alike =>
            {
                Verdict::Unknown(UnknownCause::MayBeCommon(*reason))
            }
            _ => verdict,
        }
    }
}

/// The recent rejections that name no cause, one streak for each kind.
#[derive(Debug, Default)]
pub struct CommonRejection {
    streaks: Vec<Streak>,
    accepted_at: Option<Instant>,
    /// The two brands that were accepted last, the later one first: one of them differs from any given brand.
    accepted_brands: Vec<(Box<str>, Instant)>,
}

#[derive(Debug)]
struct Streak {
    rejection: RejectionKind,
    since: Instant,
    last: Instant,
    /// Commands that share nothing with each other: [`UNRELATED_MIN`] at most.
    unrelated: Vec<Facts>,
    related: Related,
}

/// The part of a streak that counts commands of one brand or app.
#[derive(Debug, Default)]
struct Related {
    /// The provider's message about each. Another message starts over.
    message: Option<Box<str>>,
    /// Commands of different users and coupons: [`RELATED_MIN`] at most.
    commands: Vec<Facts>,
    /// Stocks of these commands: [`UNRELATED_MIN`] at most.
    stocks: Vec<Box<str>>,
    /// Queries that were rejected alike: [`QUERIES_MIN`] at most.
    queries: usize,
    /// Whether another brand was served recently.
    is_one_of_many: bool,
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

    fn is_of_another_user_and_coupon(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).take(2).all(|(ours, theirs)| ours != theirs)
    }
}

impl Related {
    fn add(&mut self, message: Option<&str>, facts: Facts, redemption: &Redemption) {
        if self.message.as_deref() != message {
            *self = Self {
                message: message.map(Into::into),
                is_one_of_many: self.is_one_of_many,
                ..Self::default()
            };
        }
        let stock = redemption.stock_id.as_str();
        if self.stocks.len() < UNRELATED_MIN && self.stocks.iter().all(|other| &**other != stock) {
            self.stocks.push(stock.into());
        }
        let is_new = self.commands.iter().all(|other| facts.is_of_another_user_and_coupon(other));
        if is_new && self.commands.len() < RELATED_MIN {
            self.commands.push(facts);
        }
    }

    fn is_common(&self) -> bool {
        !self.is_one_of_many
            && self.commands.len() >= RELATED_MIN
            && self.stocks.len() >= UNRELATED_MIN
            && self.queries >= QUERIES_MIN
    }
}

impl CommonRejection {
    /// A call about a command of this brand that was sent at `sent_at` was accepted, or rejected for a reason that is the
    /// command's alone.
    pub fn accept(&mut self, brand: &str, sent_at: Instant) {
        self.accepted_at = self.accepted_at.max(Some(sent_at));
        self.accepted_brands.retain(|(other, _)| &**other != brand);
        self.accepted_brands.insert(0, (brand.into(), sent_at));
        self.accepted_brands.truncate(2);
        self.streaks.retain(|streak| streak.since > sent_at);
    }

    /// A command was rejected without a cause; `message` is the provider's.
    pub fn reject(
        &mut self,
        rejection: RejectionKind,
        message: Option<&str>,
        command: &Redemption,
        now: Instant,
    ) -> RejectionOwner {
        self.forget_old_streaks(now);
        // Commands that are rejected differently are not rejected alike.
        self.streaks.retain(|streak| streak.rejection == rejection);
        let at = self.add_to_streak(rejection, message, command, now);
        if self.is_accepted_recently(now) { RejectionOwner::Command } else { self.cause(at, now) }
    }

    /// A query was rejected without a cause: queries and uses have the same headers. `is_alike` if the use of the `command`
    /// was rejected for the same reason. Then it is the command's fault only if a call has been accepted since, or the
    /// streak has lasted; and a process that has not seen the use counts it now.
    pub fn reject_query(
        &mut self,
        rejection: RejectionKind,
        message: Option<&str>,
        command: &Redemption,
        is_alike: bool,
        now: Instant,
    ) -> RejectionOwner {
        self.forget_old_streaks(now);
        let known = self.streaks.iter().position(|streak| streak.rejection == rejection);
        if known.is_none() && (!is_alike || self.is_accepted_recently(now)) {
            return RejectionOwner::Command;
        }
        let at = match known {
            Some(at) if !is_alike => at,
            _ => self.add_to_streak(rejection, message, command, now),
        };
        let related = &mut self.streaks[at].related;
        related.queries = QUERIES_MIN.min(related.queries + 1);
        self.cause(at, now)
    }

    fn cause(&self, at: usize, now: Instant) -> RejectionOwner {
        self.streaks[at].cause(self.streaks.len() == 1, now)
    }

    fn is_accepted_recently(&self, now: Instant) -> bool {
        self.accepted_at.is_some_and(|at| now.saturating_duration_since(at) < ACCEPTED_RECENTLY)
    }

    fn forget_old_streaks(&mut self, now: Instant) {
        self.streaks.retain(|streak| now.saturating_duration_since(streak.last) < STREAK_ENDS);
    }

    /// Adds a command to the streak of its rejection, or to a new one; returns its index.
    fn add_to_streak(
        &mut self,
        rejection: RejectionKind,
        message: Option<&str>,
        command: &Redemption,
        now: Instant,
    ) -> usize {
        let at = self.streaks.iter().position(|streak| streak.rejection == rejection).unwrap_or_else(|| {
            if self.streaks.len() >= STREAKS_MAX {
                let oldest = self.streaks.iter().enumerate().min_by_key(|(_, streak)| streak.last);
                oldest.map(|(at, _)| at).into_iter().for_each(|at| drop(self.streaks.swap_remove(at)));
            }
            let related = Related::default();
            self.streaks.push(Streak { rejection, since: now, last: now, unrelated: Vec::new(), related });
            self.streaks.len() - 1
        });
        let streak = &mut self.streaks[at];
        streak.last = now;
        let brand = command.brand_id.as_str();
        let served = |(other, at): &(Box<str>, Instant)| {
            &**other != brand && now.saturating_duration_since(*at) < OTHER_BRAND
        };
        streak.related.is_one_of_many = self.accepted_brands.iter().any(served);
        streak.related.add(message, Facts::of(command), command);
        let facts = Facts::of(command);
        let is_new = streak.unrelated.iter().all(|other| facts.shares_nothing_with(other));
        if is_new && streak.unrelated.len() < UNRELATED_MIN {
            streak.unrelated.push(facts);
        }
        at
    }
}

impl Streak {
    fn cause(&self, is_only_streak: bool, now: Instant) -> RejectionOwner {
        let lasted = now.saturating_duration_since(self.since);
        match self.unrelated.len() >= UNRELATED_MIN || self.related.is_common() {
            true if lasted >= STREAK_MIN_AGE && is_only_streak => RejectionOwner::Common,
            false if lasted >= STREAK_UNDECIDED_MAX => RejectionOwner::Command,
            _ => RejectionOwner::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::redemption::StockId;

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

    fn rejection(code: &str) -> RejectionKind {
        RejectionKind { status: 400, code: code.into(), sub_code: Some(268_435_461) }
    }

    const MESSAGE: Option<&str> = Some("参数错误");

    /// A command of the only brand there is, for a stock of its own number.
    fn of_one_brand(who: u32, stock: u32) -> Redemption {
        let mut redemption = command(who, 1);
        redemption.stock_id = StockId::parse(&format!("stock_{stock}")).unwrap();
        redemption
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

        fn reject(&mut self, seconds: u64, who: u32, brand: u32) -> RejectionOwner {
            let now = self.at(seconds);
            self.common.reject(rejection("PARAM_ERROR"), MESSAGE, &command(who, brand), now)
        }

        fn reject_of_one_brand(&mut self, seconds: u64, who: u32, stock: u32) -> RejectionOwner {
            let now = self.at(seconds);
            self.common.reject(rejection("PARAM_ERROR"), MESSAGE, &of_one_brand(who, stock), now)
        }

        fn reject_queries(&mut self, seconds: u64, count: usize) -> bool {
            let now = self.at(seconds);
            (0..count)
                .map(|_| self.reject_query("PARAM_ERROR", 1, false, now) == RejectionOwner::Common)
                .last()
                .unwrap_or_default()
        }

        fn reject_query(&mut self, code: &str, who: u32, is_alike: bool, now: Instant) -> RejectionOwner {
            self.common.reject_query(rejection(code), MESSAGE, &command(who, 1), is_alike, now)
        }

        /// A streak of one brand that lacks nothing but the time of a moment.
        fn one_brand() -> Self {
            let mut case = Self::new();
            for nth in 0..RELATED_MIN as u32 {
                assert_eq!(case.reject_of_one_brand(0, nth, nth), RejectionOwner::Unclear);
            }
            assert!(!case.reject_queries(2, QUERIES_MIN), "not for long enough");
            case
        }
    }

    #[test]
    fn unrelated_commands_rejected_alike_are_our_fault() {
        let mut case = Case::new();
        assert_eq!(case.reject(0, 1, 1), RejectionOwner::Unclear);
        assert_eq!(case.reject(1, 2, 2), RejectionOwner::Unclear);
        assert_eq!(case.reject(2, 3, 3), RejectionOwner::Unclear, "three, and not for long enough");
        assert_eq!(case.reject(5, 1, 1), RejectionOwner::Common);
        let now = case.at(6);
        assert_eq!(case.reject_query("PARAM_ERROR", 1, false, now), RejectionOwner::Common);
        assert_eq!(case.reject_query("INVALID_REQUEST", 1, false, now), RejectionOwner::Command);
        assert_eq!(case.reject(40, 9, 9), RejectionOwner::Common, "however long it lasts");
        case.common.accept("1", case.at(41));
        assert_eq!(case.reject(42, 4, 4), RejectionOwner::Command, "one was accepted just now");
        assert_eq!(case.reject(50, 4, 4), RejectionOwner::Unclear, "a new streak");
    }

    #[test]
    fn flood_of_one_publisher_suspends_nothing() {
        let mut case = Case::new();
        for nth in 0..1_000 {
            let cause = case.reject(u64::from(nth) / 10, nth, 7);
            let expected = if nth < 300 { RejectionOwner::Unclear } else { RejectionOwner::Command };
            assert_eq!(cause, expected, "{nth}");
        }
    }

    #[test]
    fn single_brand_rejected_with_its_queries_is_our_fault() {
        let mut case = Case::one_brand();
        assert!(case.reject_queries(5, 1));
        assert_eq!(case.reject_of_one_brand(6, 99, 1), RejectionOwner::Common);
        assert_eq!(case.reject_of_one_brand(60, 3, 1), RejectionOwner::Common, "however long it lasts");
        case.common.accept("1", case.at(61));
        assert_eq!(case.reject_of_one_brand(62, 4, 1), RejectionOwner::Command, "one was accepted just now");
        assert_eq!(case.reject_of_one_brand(70, 4, 1), RejectionOwner::Unclear, "a new streak");
    }

    #[test]
    fn single_brand_whose_queries_pass_is_not_our_fault() {
        let mut case = Case::new();
        for nth in 0..300 {
            let cause = case.reject_of_one_brand(u64::from(nth) / 10, nth, nth);
            assert_eq!(cause, RejectionOwner::Unclear, "no query was rejected: {nth}");
        }
        assert_eq!(case.reject_of_one_brand(30, 300, 300), RejectionOwner::Command);
        // A coupon that can be queried ends the streak, however many uses were rejected.
        let mut case = Case::one_brand();
        case.common.accept("1", case.at(3));
        assert!(!case.reject_queries(9, QUERIES_MIN));
        assert_eq!(case.reject_of_one_brand(9, 9, 9), RejectionOwner::Unclear);
    }

    #[test]
    fn flood_that_shares_more_than_a_brand_is_not_our_fault() {
        // The stock, the user, or the coupon.
        let of_stock: fn(u32) -> Redemption = |nth| of_one_brand(nth, nth % 2);
        let of_user: fn(u32) -> Redemption =
            |nth| Redemption { openid: of_one_brand(1, 1).openid, ..of_one_brand(nth, nth) };
        let of_coupon: fn(u32) -> Redemption =
            |nth| Redemption { coupon_code: of_one_brand(1, 1).coupon_code, ..of_one_brand(nth, nth) };
        for shared in [of_stock, of_user, of_coupon] {
            let mut case = Case::new();
            for nth in 0..400 {
                let now = case.at(u64::from(nth) / 10);
                let cause = case.common.reject(rejection("PARAM_ERROR"), MESSAGE, &shared(nth), now);
                assert_ne!(cause, RejectionOwner::Common);
                assert!(!case.reject_queries(u64::from(nth) / 10, 1));
            }
        }
    }

    #[test]
    fn other_message_restarts_the_streak_of_one_brand() {
        let mut case = Case::new();
        for nth in 0..100 {
            let (now, words) = (case.at(6 * u64::from(nth)), format!("参数错误 {}", nth / 7));
            let cause =
                case.common.reject(rejection("PARAM_ERROR"), Some(&words), &of_one_brand(nth, nth), now);
            assert_ne!(cause, RejectionOwner::Common);
            assert!(!case.reject_queries(6 * u64::from(nth), 1));
        }
    }

    #[test]
    fn brand_rejected_beside_others_is_not_our_fault() {
        for (brand, hours, is_ours) in [("2", 0, false), ("2", 1, true), ("1", 0, true)] {
            let mut case = Case::new();
            // Whatever was accepted after it of the brand itself.
            case.common.accept(brand, case.at(0));
            case.common.accept("1", case.at(1));
            case.common.accept("1", case.at(2));
            let from = hours * 3_600 + 10;
            for nth in 0..RELATED_MIN as u32 {
                case.reject_of_one_brand(from, nth, nth);
            }
            assert_eq!(case.reject_queries(from + 5, QUERIES_MIN), is_ours, "{brand}, {hours} h ago");
        }
    }

    #[test]
    fn another_rejection_starts_another_streak() {
        let mut case = Case::new();
        for nth in 0..60 {
            let code = ["PARAM_ERROR", "INVALID_REQUEST"][nth as usize % 2];
            let now = case.at(u64::from(nth));
            assert_eq!(
                case.common.reject(rejection(code), MESSAGE, &command(nth, nth), now),
                RejectionOwner::Unclear
            );
        }
    }

    /// Its use and its queries are rejected alike, and nothing else happens.
    #[test]
    fn lone_rejected_command_is_at_fault_once_its_streak_lasted() {
        for accepted_before in [None, Some(0)] {
            let mut case = Case::new();
            accepted_before
                .into_iter()
                .for_each(|at| case.common.accept("1", case.begun + Duration::from_secs(at)));
            case.reject(1, 1, 1);
            for seconds in [3, 4, 6, 16, 30] {
                let now = case.at(seconds);
                assert_eq!(
                    case.reject_query("PARAM_ERROR", 1, true, now),
                    RejectionOwner::Unclear,
                    "{seconds}"
                );
            }
            let now = case.at(31);
            assert_eq!(case.reject_query("PARAM_ERROR", 1, true, now), RejectionOwner::Command);
        }
    }

    /// A fault that begins a moment after an accepted call: the uses rejected first looked like the commands' own.
    #[test]
    fn queries_show_a_fault_that_began_just_after_an_accepted_call() {
        let mut case = Case::new();
        case.common.accept("1", case.at(0));
        for nth in 0..3 {
            assert_eq!(case.reject(1, nth, nth), RejectionOwner::Command);
        }
        let now = case.at(3);
        assert_eq!(case.reject_query("PARAM_ERROR", 0, true, now), RejectionOwner::Unclear);
        let now = case.at(6);
        assert_eq!(case.reject_query("PARAM_ERROR", 0, true, now), RejectionOwner::Common);
        // An accepted call of after the rejection shows the opposite.
        case.common.accept("1", case.at(7));
        let now = case.at(8);
        assert_eq!(case.reject_query("PARAM_ERROR", 0, true, now), RejectionOwner::Command);
    }

    /// After a restart a process has not seen the uses of the commands that it queries.
    #[test]
    fn queries_count_for_rejected_commands_with_unseen_uses() {
        let mut case = Case::new();
        for (nth, expected) in
            [(0, RejectionOwner::Unclear), (5, RejectionOwner::Unclear), (6, RejectionOwner::Common)]
        {
            let now = case.at(nth);
            let nth = nth as u32;
            let cause =
                case.common.reject_query(rejection("PARAM_ERROR"), MESSAGE, &command(nth, nth), true, now);
            assert_eq!(cause, expected, "{nth}");
        }
        let now = case.at(7);
        let elsewhere = case.reject_query("INVALID_REQUEST", 1, false, now);
        assert_eq!(elsewhere, RejectionOwner::Command, "its use was not rejected so");
    }

    /// Two bad commands at once, each rejected in its own way.
    #[test]
    fn streaks_of_several_kinds_settle_separately() {
        let mut case = Case::new();
        for seconds in 0..40 {
            for (who, code) in ["PARAM_ERROR", "INVALID_REQUEST"].into_iter().enumerate() {
                let now = case.at(seconds);
                let cause = case.reject_query(code, who as u32, true, now);
                assert_eq!(
                    cause,
                    if seconds < 30 { RejectionOwner::Unclear } else { RejectionOwner::Command },
                    "{code}"
                );
            }
        }
    }

    #[test]
    fn call_from_before_the_streak_does_not_end_it() {
        let mut case = Case::new();
        for nth in 0..3 {
            case.reject(10, nth, nth);
        }
        case.common.accept("1", case.at(9));
        assert_eq!(case.reject(16, 1, 1), RejectionOwner::Common);
    }

    proptest! {
        /// In any order: a rejection is not common if an accepted call of another brand contradicts it, nor by commands that
        /// share an app or a brand.
        #[test]
        fn common_only_without_acceptance_and_relation(
            calls in prop::collection::vec((0..5u32, 0..3u32, prop::bool::weighted(0.2), 0..8u64), 1..60),
        ) {
            let mut case = Case::new();
            let (mut now, mut accepted, mut brands) = (0, None, Vec::new());
            for (who, brand, granted, pause) in calls {
                now += pause;
                if granted {
                    case.common.accept("1", case.at(now));
                    accepted = Some(now);
                    brands.clear();
                    continue;
                }
                let cause = case.reject(now, who * 3 + brand, brand);
                brands.push(brand);
                if cause == RejectionOwner::Common {
                    prop_assert!(accepted.is_none_or(|at| now - at >= STREAK_MIN_AGE.as_secs()));
                    prop_assert!((0..3).all(|brand| brands.contains(&brand)));
                }
            }
        }

        /// Whatever the order: commands of one brand are our fault only if enough of them, and of their queries, were
        /// rejected since the last call that was accepted.
        #[test]
        fn common_of_one_brand_only_after_enough_of_uses_and_queries(
            calls in prop::collection::vec((0..4u8, 0..12u32, 0..6u32, 0..4u64), 1..80),
        ) {
            let mut case = Case::new();
            let (mut now, mut users, mut stocks, mut queries) = (0, BTreeSet::new(), BTreeSet::new(), 0);
            for (kind, who, stock, pause) in calls {
                now += pause;
                let common = match kind {
                    0 if who == 0 => {
                        case.common.accept("1", case.at(now));
                        users.clear();
                        stocks.clear();
                        queries = 0;
                        false
                    }
                    0 | 1 => {
                        queries += 1;
                        case.reject_queries(now, 1)
                    }
                    _ => {
                        users.insert(who);
                        stocks.insert(stock);
                        case.reject_of_one_brand(now, who, stock) == RejectionOwner::Common
                    }
                };
                if common {
                    prop_assert!(users.len() >= RELATED_MIN, "{users:?}");
                    prop_assert!(stocks.len() >= UNRELATED_MIN && queries >= QUERIES_MIN);
                }
            }
        }
    }
}
