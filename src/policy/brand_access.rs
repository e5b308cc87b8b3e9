//! Whether a `NO_AUTH` concerns one brand or is a fault of our own.
//!
//! Rights are granted brand by brand and operation by operation: a brand may let us use its coupons and not query them.
//! So a denial concerns one brand and one operation. It suspends nothing while any brand allowed a use recently, and never
//! because of a brand that denied one for the first time: however many new brands deny us, the others are served.
//!
//! Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a use that some brand allowed shows that our own rights are in order, unless the same brand denies one since.
pub const RECENT: Duration = Duration::from_secs(600);

/// How long a brand must have denied us, with no use allowed, before that counts as a fault of our own.
pub const ALLOWED_FOR: Duration = Duration::from_secs(5);

/// How long no further use of a brand that just denied one is tried, while it is unknown whether the fault is ours.
pub const PAUSE: Duration = Duration::from_secs(5);

/// The most brands remembered as denied, and as allowed. With more, the one seen longest ago is forgotten.
pub const BRANDS_MAX: usize = 10_000;

/// What a denied use means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// Only this brand denies us: another one allowed a use since it first did.
    ThisBrandOnly,
    /// It is unknown whether the fault is ours: only the commands of this brand wait. A brand that allowed a use before, and has not
    /// been tried since, may deny one by now.
    Undecided,
    /// No brand allowed a use recently, and this one has denied us for a while: a fault of our own.
    AllBrands,
}

/// Which brands allow us to use their coupons, by the responses so far.
#[derive(Debug, Default)]
pub struct BrandAccess {
    /// When the last use that each brand allowed was sent, until it denies one.
    allowed: HashMap<Box<str>, Instant>,
    denied: HashMap<Box<str>, Denied>,
    /// When a brand last denied us that had done so before.
    denied_again: Option<Instant>,
}

/// Since when a brand has denied us, and when it did last.
#[derive(Debug, Clone, Copy)]
struct Denied {
    since: Instant,
    last: Instant,
}

impl BrandAccess {
    /// A brand allowed a use that was sent at `sent_at`. An allowed query shows nothing about uses.
    pub fn record_allowed(&mut self, brand: &str, sent_at: Instant) {
        self.denied.remove(brand);
        match self.allowed.get_mut(brand) {
            Some(at) => *at = (*at).max(sent_at),
            None => {
                make_room(&mut self.allowed, |at| *at);
                self.allowed.insert(brand.into(), sent_at);
            }
        }
    }

    /// A brand denied a use.
    pub fn record_denied(&mut self, brand: &str, now: Instant) -> Denial {
        self.allowed.remove(brand);
        let since = match self.denied.get_mut(brand) {
            Some(denied) => {
                denied.last = now;
                self.denied_again = Some(now);
                denied.since
            }
            None => {
                make_room(&mut self.denied, |denied| denied.last);
                self.denied.insert(brand.into(), Denied { since: now, last: now });
                now
            }
        };
        if self.is_only_one_denied(since, now) {
            Denial::ThisBrandOnly
        } else if self.last_allowed(now).is_some() || now.saturating_duration_since(since) < ALLOWED_FOR {
            Denial::Undecided
        } else {
            Denial::AllBrands
        }
    }

    /// Whether a use of this brand is worth a call. After a denial one command tries again after a pause, in place of all;
    /// once the denial is known to concern this brand only, each command needs its own response. While no brand allows a
    /// use, all denied brands share one attempt per pause, so that a thousand invented brands cannot starve the untried
    /// ones, which show sooner whether the fault is ours.
    pub fn may_try(&self, brand: &str, now: Instant) -> bool {
        let Some(denied) = self.denied.get(brand) else { return true };
        let paused = |since: Instant| now.saturating_duration_since(since) >= PAUSE;
        let shared = self.last_allowed(now).is_some() || self.denied_again.is_none_or(paused);
        paused(denied.last) && shared || self.is_only_one_denied(denied.since, now)
    }

    /// Whether another brand allowed a use since this one first denied one.
    fn is_only_one_denied(&self, since: Instant, now: Instant) -> bool {
        self.last_allowed(now).is_some_and(|at| at > since)
    }

    /// When the last use was allowed by a brand that has denied nothing since. One from before another brand's first denial
    /// shows nothing: all rights may have been withdrawn in between.
    fn last_allowed(&self, now: Instant) -> Option<Instant> {
        let last = self.allowed.values().copied().max()?;
        (now.saturating_duration_since(last) < RECENT).then_some(last)
    }
}

/// Makes room for one more brand.
fn make_room<T>(brands: &mut HashMap<Box<str>, T>, last_seen: impl Fn(&T) -> Instant) {
    if brands.len() < BRANDS_MAX {
        return;
    }
    let oldest = brands.iter().min_by_key(|(_, brand)| last_seen(brand)).map(|(name, _)| name.clone());
    if let Some(oldest) = oldest {
        brands.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, millis: u64) -> Instant {
            self.0 + Duration::from_millis(millis)
        }
    }

    fn clock() -> Clock {
        Clock(Instant::now())
    }

    #[test]
    fn denied_brands_share_one_try_per_pause() {
        let clock = clock();
        let (mut access, pause) = (BrandAccess::default(), PAUSE.as_millis() as u64);
        for nth in 0..1_000 {
            assert_eq!(access.record_denied(&format!("invented {nth}"), clock.at(nth)), Denial::Undecided);
        }
        let mut tries = 0;
        for now in (2 * pause..12 * pause).step_by(100) {
            assert!(access.may_try("never tried", clock.at(now)));
            let invented = (0..1_000).map(|nth| format!("invented {nth}"));
            for brand in invented {
                if access.may_try(&brand, clock.at(now)) {
                    tries += 1;
                    access.record_denied(&brand, clock.at(now));
                }
            }
        }
        assert_eq!(tries, 10, "one in each pause");
        access.record_allowed("real", clock.at(12 * pause));
        assert!((0..1_000).all(|nth| access.may_try(&format!("invented {nth}"), clock.at(12 * pause + 1))));
    }

    #[test]
    fn brand_is_the_only_one_denied_after_another_allowed() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        let at = |seconds: u64| clock.at(seconds * 1_000);
        assert_eq!(access.record_denied("a", at(0)), Denial::Undecided);
        access.record_allowed("b", at(1));
        assert_eq!(access.record_denied("a", at(2)), Denial::ThisBrandOnly);
        assert_eq!(
            access.record_denied("b", at(3)),
            Denial::Undecided,
            "an earlier success may be out of date"
        );
        access.record_allowed("c", at(2));
        assert_eq!(access.record_denied("b", at(4)), Denial::Undecided, "a response to an earlier operation");
        access.record_allowed("a", at(6));
        assert_eq!(access.record_denied("b", at(7)), Denial::ThisBrandOnly);
        assert_eq!(access.record_denied("a", at(8)), Denial::Undecided, "an earlier success is forgotten");
    }

    #[test]
    fn all_brands_denied_suspends_after_a_while() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        let at = |seconds: u64| clock.at(seconds * 1_000);
        assert_eq!(access.record_denied("a", at(0)), Denial::Undecided);
        assert_eq!(access.record_denied("a", at(4)), Denial::Undecided);
        assert_eq!(access.record_denied("a", at(5)), Denial::AllBrands);
        access.record_allowed("b", at(6));
        assert_eq!(access.record_denied("a", at(605)), Denial::ThisBrandOnly);
        assert_eq!(access.record_denied("a", at(606)), Denial::AllBrands, "a success of long ago");
        access.record_allowed("b", at(607));
        assert_eq!(access.record_denied("a", at(608)), Denial::ThisBrandOnly);
        assert_eq!(access.record_denied("c", at(608)), Denial::Undecided);
        assert_eq!(access.record_denied("c", at(667)), Denial::Undecided, "nobody was tried since");
        assert_eq!(access.record_denied("c", at(668)), Denial::Undecided, "however long");
        assert_eq!(access.record_denied("b", at(669)), Denial::Undecided);
        assert_eq!(access.record_denied("a", at(670)), Denial::AllBrands, "no brand allows a use any longer");
    }

    /// Another brand allowed a use and has been quiet since; then all rights are withdrawn, and one brand is tried.
    #[test]
    fn brand_allowed_before_the_first_denial_shows_nothing() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        access.record_allowed("b", clock.at(0));
        for seconds in 60..600 {
            assert_eq!(access.record_denied("a", clock.at(seconds * 1_000)), Denial::Undecided, "{seconds}");
        }
        assert_eq!(access.record_denied("a", clock.at(600_000)), Denial::AllBrands);
    }

    #[test]
    fn brand_just_denied_is_tried_by_one_command() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        assert!(access.may_try("a", clock.at(0)));
        access.record_denied("a", clock.at(0));
        assert!(!access.may_try("a", clock.at(4_999)));
        assert!(access.may_try("b", clock.at(1)));
        assert!(access.may_try("a", clock.at(5_000)));
        access.record_allowed("b", clock.at(5_000));
        assert!(access.may_try("a", clock.at(5_001)), "each command needs its own response now");
    }

    #[test]
    fn remembered_brands_are_bounded() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        access.record_denied("first", clock.at(0));
        access.record_denied("kept", clock.at(1));
        for nth in 0..BRANDS_MAX as u64 {
            access.record_denied("kept", clock.at(2 + nth));
            access.record_denied(&format!("brand {nth}"), clock.at(2 + nth));
            access.record_allowed(&format!("open {nth}"), clock.at(2 + nth));
        }
        access.record_allowed("one more", clock.at(0));
        assert_eq!((access.denied.len(), access.allowed.len()), (BRANDS_MAX, BRANDS_MAX));
        assert!(access.denied.contains_key("kept") && !access.denied.contains_key("first"));
    }

    proptest! {
        /// In any order: nothing is suspended while a brand allowed a use recently, nor by new brands.
        #[test]
        fn nothing_is_suspended_that_should_be_served(
            calls in prop::collection::vec((0..6u8, prop::bool::ANY, 0..4_000u64), 1..200),
        ) {
            let (mut access, clock) = (BrandAccess::default(), clock());
            let (mut now, mut open, mut first) = (0, HashMap::new(), HashMap::new());
            for (brand, granted, pause) in calls {
                now += pause;
                let name = format!("brand {brand}");
                if granted {
                    access.record_allowed(&name, clock.at(now));
                    open.insert(brand, now);
                    first.remove(&brand);
                    continue;
                }
                open.remove(&brand);
                let since = *first.entry(brand).or_insert(now);
                let denial = access.record_denied(&name, clock.at(now));
                let lately = open.values().any(|at| now - at < RECENT.as_millis() as u64);
                prop_assert!(!(lately && denial == Denial::AllBrands));
                prop_assert!(!(since == now && denial == Denial::AllBrands));
                prop_assert!(denial != Denial::ThisBrandOnly || lately && open.values().any(|at| *at > since));
            }
        }

        /// New brands that deny us suspend nothing, however many they are.
        #[test]
        fn ever_new_brands_suspend_nothing(count in 1..2_000u32, pause in 0..50u64) {
            let (mut access, clock) = (BrandAccess::default(), clock());
            for nth in 0..count {
                let denial = access.record_denied(&format!("new {nth}"), clock.at(u64::from(nth) * pause));
                prop_assert_eq!(denial, Denial::Undecided);
            }
        }
    }
}
