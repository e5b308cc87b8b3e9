//! What a `NO_AUTH` is worth: one brand's word, or a fault of our own.
//!
//! Rights are granted brand by brand and operation by operation: a brand may let us use its coupons and not query them.
//! So a denial concerns one brand and one operation. It suspends nothing while any brand was let in lately, and never
//! because of a brand that was denied for the first time: however many new brands are denied, the others are served.
//!
//! Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a use that some brand let in shows that our own rights are in order, unless the same brand denies one since.
pub const RECENT: Duration = Duration::from_secs(600);

/// How long a brand must have been denied, with nobody let in, before the fault is taken for our own.
pub const ALLOWED_FOR: Duration = Duration::from_secs(5);

/// How long no further use of a brand is tried that was just denied, while nobody knows whose fault it is.
pub const PAUSE: Duration = Duration::from_secs(5);

/// Brands remembered as denied, and as many that let us in. With more, the one heard of longest ago is forgotten.
pub const BRANDS_MAX: usize = 10_000;

/// What a denied use means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// This brand alone keeps us out: another was let in since it first did.
    ThisBrandOnly,
    /// Nobody knows yet whose fault it is: its commands wait, and nobody else's. A brand that was let in before, and has
    /// not been tried since, may be as shut as this one.
    Undecided,
    /// No brand was let in lately, and this one has been denied for a while: a fault of our own.
    AllBrands,
}

/// Which brands let us use their coupons, as far as answers have said.
#[derive(Debug, Default)]
pub struct BrandAccess {
    /// When the last use was sent that each brand let in, until it denies one.
    let_in: HashMap<Box<str>, Instant>,
    denied: HashMap<Box<str>, Denied>,
    /// When a brand was last denied that had been denied before.
    denied_again: Option<Instant>,
}

/// Since when a brand has denied us, and when it did last.
#[derive(Debug, Clone, Copy)]
struct Denied {
    since: Instant,
    last: Instant,
}

impl BrandAccess {
    /// A brand let in a use that was sent at `asked_at`. That it let us query says nothing about that.
    pub fn record_allowed(&mut self, brand: &str, asked_at: Instant) {
        self.denied.remove(brand);
        match self.let_in.get_mut(brand) {
            Some(at) => *at = (*at).max(asked_at),
            None => {
                make_room(&mut self.let_in, |at| *at);
                self.let_in.insert(brand.into(), asked_at);
            }
        }
    }

    /// A brand denied a use.
    pub fn record_denied(&mut self, brand: &str, now: Instant) -> Denial {
        self.let_in.remove(brand);
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

    /// Whether a use of this brand is worth a call. One that was just denied is tried again after a pause, by one command
    /// in place of all; once it is known to be this brand's own word, each command needs its own answer. While no brand
    /// lets us in, all that were denied share one try in a pause: brands that were not tried yet find out sooner whether
    /// the fault is ours, and a thousand invented ones must not take their turns.
    pub fn may_try(&self, brand: &str, now: Instant) -> bool {
        let Some(denied) = self.denied.get(brand) else { return true };
        let paused = |since: Instant| now.saturating_duration_since(since) >= PAUSE;
        let shared = self.last_allowed(now).is_some() || self.denied_again.is_none_or(paused);
        paused(denied.last) && shared || self.is_only_one_denied(denied.since, now)
    }

    /// Whether another brand was let in since this one was first denied.
    fn is_only_one_denied(&self, since: Instant, now: Instant) -> bool {
        self.last_allowed(now).is_some_and(|at| at > since)
    }

    /// When a brand was last let in that has denied nothing since. What was let in before another brand was first denied
    /// may be as shut as it by now; what was let in after that is open while the other is shut.
    fn last_allowed(&self, now: Instant) -> Option<Instant> {
        let last = self.let_in.values().copied().max()?;
        (now.saturating_duration_since(last) < RECENT).then_some(last)
    }
}

/// Makes room for one more brand.
fn make_room<T>(brands: &mut HashMap<Box<str>, T>, heard_of: impl Fn(&T) -> Instant) {
    if brands.len() < BRANDS_MAX {
        return;
    }
    let oldest = brands.iter().min_by_key(|(_, brand)| heard_of(brand)).map(|(name, _)| name.clone());
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
    fn denied_brands_share_one_try_in_a_pause_while_none_is_let_in() {
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
    fn a_brand_is_alone_once_another_was_let_in_since() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        let at = |seconds: u64| clock.at(seconds * 1_000);
        assert_eq!(access.record_denied("a", at(0)), Denial::Undecided);
        access.record_allowed("b", at(1));
        assert_eq!(access.record_denied("a", at(2)), Denial::ThisBrandOnly);
        assert_eq!(
            access.record_denied("b", at(3)),
            Denial::Undecided,
            "what was let in before may be shut by now"
        );
        access.record_allowed("c", at(2));
        assert_eq!(
            access.record_denied("b", at(4)),
            Denial::Undecided,
            "an answer to an operation from before"
        );
        access.record_allowed("a", at(6));
        assert_eq!(access.record_denied("b", at(7)), Denial::ThisBrandOnly);
        assert_eq!(
            access.record_denied("a", at(8)),
            Denial::Undecided,
            "its own word of before is forgotten"
        );
    }

    #[test]
    fn no_brand_that_still_lets_us_in_is_our_own_fault_once_it_stands() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        let at = |seconds: u64| clock.at(seconds * 1_000);
        assert_eq!(access.record_denied("a", at(0)), Denial::Undecided);
        assert_eq!(access.record_denied("a", at(4)), Denial::Undecided);
        assert_eq!(access.record_denied("a", at(5)), Denial::AllBrands);
        access.record_allowed("b", at(6));
        assert_eq!(access.record_denied("a", at(605)), Denial::ThisBrandOnly);
        assert_eq!(access.record_denied("a", at(606)), Denial::AllBrands, "a word of long ago");
        access.record_allowed("b", at(607));
        assert_eq!(access.record_denied("a", at(608)), Denial::ThisBrandOnly);
        assert_eq!(access.record_denied("c", at(608)), Denial::Undecided);
        assert_eq!(access.record_denied("c", at(667)), Denial::Undecided, "nobody was tried since");
        assert_eq!(access.record_denied("c", at(668)), Denial::Undecided, "however long");
        assert_eq!(access.record_denied("b", at(669)), Denial::Undecided);
        assert_eq!(access.record_denied("a", at(670)), Denial::AllBrands, "nobody lets us in any longer");
    }

    /// Another brand was let in and has been quiet since; then all rights are withdrawn, and one brand is tried.
    #[test]
    fn brand_let_in_before_the_first_denial_shows_nothing_however_long_it_lasts() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        access.record_allowed("b", clock.at(0));
        for seconds in 60..600 {
            assert_eq!(access.record_denied("a", clock.at(seconds * 1_000)), Denial::Undecided, "{seconds}");
        }
        assert_eq!(access.record_denied("a", clock.at(600_000)), Denial::AllBrands);
    }

    #[test]
    fn a_brand_just_denied_is_tried_by_one_command() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        assert!(access.may_try("a", clock.at(0)));
        access.record_denied("a", clock.at(0));
        assert!(!access.may_try("a", clock.at(4_999)));
        assert!(access.may_try("b", clock.at(1)));
        assert!(access.may_try("a", clock.at(5_000)));
        access.record_allowed("b", clock.at(5_000));
        assert!(access.may_try("a", clock.at(5_001)), "each command needs its own answer now");
    }

    #[test]
    fn brands_without_end_are_not_remembered_without_end() {
        let (mut access, clock) = (BrandAccess::default(), clock());
        access.record_denied("first", clock.at(0));
        access.record_denied("kept", clock.at(1));
        for nth in 0..BRANDS_MAX as u64 {
            access.record_denied("kept", clock.at(2 + nth));
            access.record_denied(&format!("brand {nth}"), clock.at(2 + nth));
            access.record_allowed(&format!("open {nth}"), clock.at(2 + nth));
        }
        access.record_allowed("one more", clock.at(0));
        assert_eq!((access.denied.len(), access.let_in.len()), (BRANDS_MAX, BRANDS_MAX));
        assert!(access.denied.contains_key("kept") && !access.denied.contains_key("first"));
    }

    proptest! {
        /// Whatever order: nothing is suspended while a brand was let in lately, nor by brands that are new.
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

        /// Ever new brands among those that are let in: not one is a ground to suspend.
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
