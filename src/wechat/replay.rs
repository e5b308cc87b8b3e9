//! Binds answers to their operations, as far as the protocol allows: a signed answer names neither the request nor its
//! nonce, so anyone who can intercept answers could keep one and give it to a later operation.
//!
//! Two rules. An answer is accepted once: its signature is remembered for as long as it could be accepted again. And an
//! answer was signed after its operation was sent. For that the provider's clock is compared with ours by the signed
//! timestamps, never by `Date`, which no signature covers: an answer arrives after it was signed, so a kept one can only
//! make the provider's clock look slower than it is. The fastest eighth of the last answers is left out, lest one machine
//! of the provider whose clock runs ahead shut out the others; and what is not accepted is learned from as well, so that a
//! clock that was set back is believed again within some answers; but one answer is learned from once.
//!
//! What remains: an answer that was withheld and is given to another operation within [`TOLERANCE`] of its signing; the
//! first answers of a process, or of one that heard none for ten minutes, before its clock is known; and dozens of
//! withheld answers, which together look like a clock that was set back. All are bounded by the five minutes of
//! [`super::verify`], and none is shared between processes.
//! Pure: times are arguments, on a clock that is never set.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::policy::classify::SignatureFlaw;

/// How much earlier than its operation an answer may have been signed, by the clocks. Timestamps are whole seconds, and
/// the provider answers from many machines whose clocks need not agree to the second.
pub const TOLERANCE: Duration = Duration::from_secs(10);

/// How long one generation of what is remembered lasts. The last three are kept: an answer can be accepted from five
/// minutes before the time that it was signed at to five minutes after it.
const GENERATION: Duration = Duration::from_secs(300);
const GENERATIONS: usize = 3;

/// The most answers that one generation remembers, some bytes each: a third more than are made at 500 a second. With
/// more it ends early.
const ANSWERS_MAX: usize = 200_000;

/// The answers that the provider's clock is read from: this many, none older than this.
const CLOCK_ANSWERS: usize = 64;
const CLOCK_RECENT: Duration = Duration::from_secs(600);

/// What distinguishes one signed answer from another.
#[derive(Debug, Clone, Copy)]
pub struct Marks<'a> {
    /// `Wechatpay-Timestamp`, in seconds since 1970.
    pub signed_at: i64,
    /// `Wechatpay-Nonce`.
    pub nonce: &'a str,
    /// `Wechatpay-Signature`.
    pub signature: &'a str,
}

/// Remembers accepted answers, and how far the provider's clock is from ours.
#[derive(Debug, Default)]
pub struct ReplayGuard {
    /// The newest generation last.
    generations: Vec<Generation>,
    /// Keyed by chance, so that nobody can make two answers look alike.
    hasher: RandomState,
    clock: Clock,
}

/// The provider's clock less ours, in milliseconds, as each of the last answers showed it when it arrived, and when that
/// was. Each is less than the truth by as long as the answer was under way or kept.
#[derive(Debug, Default)]
struct Clock(VecDeque<(Duration, i64)>);

impl Clock {
    /// By how much the provider's clock is ahead at least.
    fn ahead_ms(&self, now: Duration) -> Option<i64> {
        let recent = self.0.iter().filter(|(at, _)| now.saturating_sub(*at) <= CLOCK_RECENT);
        let mut shown: Vec<_> = recent.map(|(_, shown)| *shown).collect();
        shown.sort_unstable_by(|one, other| other.cmp(one));
        shown.get(shown.len() / 8).copied()
    }

    fn learn(&mut self, signed_ms: i64, heard: Duration) {
        if self.0.len() >= CLOCK_ANSWERS {
            self.0.pop_front();
        }
        self.0.push_back((heard, signed_ms.saturating_sub(millis(heard))));
    }
}

#[derive(Debug)]
struct Generation {
    since: Duration,
    seen: HashSet<u64>,
}

impl ReplayGuard {
    /// Takes an answer whose signature verified and whose timestamp is near our clock. `sent` and `heard` are when its
    /// operation was sent and when it had arrived, on one clock that is never set.
    ///
    /// # Errors
    /// [`SignatureFlaw::Replayed`] if it was accepted before, or was signed before its operation was sent.
    pub fn admit(&mut self, marks: Marks<'_>, sent: Duration, heard: Duration) -> Result<(), SignatureFlaw> {
        let signed_ms = marks.signed_at.saturating_mul(1_000);
        let fingerprint = self.hasher.hash_one((marks.nonce, marks.signature));
        if self.generations.iter().any(|generation| generation.seen.contains(&fingerprint)) {
            return Err(SignatureFlaw::Replayed);
        }
        // By what is known without this answer: it must not vouch for itself. One that is given out again and again is
        // learned from once, whether it is accepted or not.
        let ahead_ms = self.clock.ahead_ms(heard);
        self.clock.learn(signed_ms, heard);
        self.generation(heard).seen.insert(fingerprint);
        let earliest_ms =
            ahead_ms.map(|ahead| ahead.saturating_add(millis(sent)).saturating_sub(millis(TOLERANCE)));
        if earliest_ms.is_some_and(|earliest| signed_ms < earliest) {
            return Err(SignatureFlaw::Replayed);
        }
        Ok(())
    }

    /// The generation of now; the oldest one is forgotten for it.
    fn generation(&mut self, now: Duration) -> &mut Generation {
        let ended = self.generations.last().is_none_or(|newest| {
            now.saturating_sub(newest.since) >= GENERATION || newest.seen.len() >= ANSWERS_MAX
        });
        if ended {
            if self.generations.len() >= GENERATIONS {
                self.generations.remove(0);
            }
            self.generations.push(Generation { since: now, seen: HashSet::new() });
        }
        let newest = self.generations.len() - 1;
        &mut self.generations[newest]
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T0: i64 = 1_772_685_045;

    /// A provider whose clock is `ahead` milliseconds ahead of one that began at [`T0`].
    struct Provider {
        guard: ReplayGuard,
        ahead: i64,
        count: u32,
    }

    impl Provider {
        fn new(ahead: i64) -> Self {
            Self { guard: ReplayGuard::default(), ahead, count: 0 }
        }

        /// What it signs at this millisecond of ours.
        fn sign(&mut self, at: u64) -> (i64, String) {
            self.count += 1;
            let at = T0 * 1_000 + self.ahead + i64::try_from(at).unwrap();
            (at.div_euclid(1_000), format!("nonce {}", self.count))
        }

        fn admit(
            &mut self,
            (signed_at, nonce): &(i64, String),
            sent: u64,
            heard: u64,
        ) -> Result<(), SignatureFlaw> {
            let marks = Marks { signed_at: *signed_at, nonce, signature: "signature" };
            self.guard.admit(marks, Duration::from_millis(sent), Duration::from_millis(heard))
        }

        /// Asks and hears the answer that was signed for it.
        fn ask(&mut self, sent: u64, took: u64) -> Result<(), SignatureFlaw> {
            let answer = self.sign(sent + took / 2);
            self.admit(&answer, sent, sent + took)
        }
    }

    #[test]
    fn an_answer_is_accepted_once_while_it_could_be_accepted() {
        let mut provider = Provider::new(0);
        let answer = provider.sign(10);
        assert_eq!(provider.admit(&answer, 0, 20), Ok(()));
        for second in [0, 1, 5, 60, 299, 599] {
            let at = second * 1_000 + 20;
            assert_eq!(provider.admit(&answer, at, at), Err(SignatureFlaw::Replayed), "{second} s");
            assert_eq!(provider.ask(at, 100), Ok(()));
        }
    }

    #[test]
    fn an_answer_signed_before_its_operation_is_not_accepted() {
        let mut provider = Provider::new(0);
        assert_eq!(provider.ask(0, 100), Ok(()));
        let kept = provider.sign(1_000);
        assert_eq!(provider.admit(&kept, 12_500, 12_600), Err(SignatureFlaw::Replayed));
        assert_eq!(provider.admit(&kept, 299_000, 299_100), Err(SignatureFlaw::Replayed));
        // Within the tolerance nobody can distinguish it from one of a machine whose clock is a little behind.
        let other = provider.sign(1_000);
        assert_eq!(provider.admit(&other, 8_000, 8_100), Ok(()));
    }

    #[test]
    fn kept_answer_given_out_many_times_teaches_no_clock() {
        let mut provider = Provider::new(0);
        for nth in 0..500 {
            assert_eq!(provider.ask(nth * 100, 100), Ok(()));
        }
        let kept = [provider.sign(50_000), provider.sign(50_000)];
        for nth in 0..200 {
            assert_eq!(provider.admit(&kept[0], 132_000 + nth, 132_100 + nth), Err(SignatureFlaw::Replayed));
        }
        assert_eq!(provider.admit(&kept[1], 132_300, 132_400), Err(SignatureFlaw::Replayed));
    }

    #[test]
    fn a_provider_whose_clock_was_set_back_is_believed_again() {
        let mut provider = Provider::new(0);
        for nth in 0..200 {
            assert_eq!(provider.ask(nth * 100, 100), Ok(()));
        }
        provider.ahead = -60_000;
        assert_eq!(provider.ask(20_000, 100), Err(SignatureFlaw::Replayed));
        let refused = (1..).take_while(|nth| provider.ask(20_000 + nth * 100, 100).is_err()).count();
        assert!(refused < CLOCK_ANSWERS, "{refused}");
        // One call a minute: after as long as an answer counts as recent.
        provider.ahead = -120_000;
        let refused = (1..).take_while(|nth| provider.ask(60_000 * nth, 100).is_err()).count();
        assert!(refused <= 11, "{refused}");
    }

    #[test]
    fn one_machine_whose_clock_is_ahead_shuts_out_no_other() {
        let mut provider = Provider::new(0);
        let mut refused = 0;
        for nth in 0..2_000 {
            provider.ahead = if nth % 20 == 0 { 120_000 } else { 0 };
            refused += u32::from(provider.ask(nth * 100, 100).is_err());
        }
        assert!(refused <= 8, "{refused}: those of the first answers, when nothing else was known");
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut provider = Provider::new(0);
        for nth in 0..700_000 {
            provider.ask(nth, 0).unwrap();
        }
        let kept: Vec<_> =
            provider.guard.generations.iter().map(|generation| generation.seen.len()).collect();
        assert!(kept.len() <= GENERATIONS && kept.iter().all(|count| *count <= ANSWERS_MAX), "{kept:?}");
        assert!(kept.iter().sum::<usize>() >= 2 * ANSWERS_MAX, "{kept:?}");
    }

    proptest! {
        /// However far the provider's clock is off, and however long answers take: what is genuine is accepted, and what
        /// was accepted is not accepted again.
        #[test]
        fn genuine_answers_are_accepted_once(
            ahead in -299_000..299_000i64,
            calls in prop::collection::vec((0..30_000u64, 0..15_000u64), 1..60),
        ) {
            let mut provider = Provider::new(ahead);
            let mut now = 0;
            let mut accepted = Vec::new();
            for (pause, took) in calls {
                now += pause;
                let answer = provider.sign(now + took / 2);
                prop_assert_eq!(provider.admit(&answer, now, now + took), Ok(()));
                now += took;
                accepted.push(answer);
            }
            for answer in &accepted[accepted.len().saturating_sub(10)..] {
                prop_assert_eq!(provider.admit(answer, now, now), Err(SignatureFlaw::Replayed));
            }
        }

        /// Whatever somebody who keeps answers does with them, the rest goes on being accepted.
        #[test]
        fn replays_never_shut_out_genuine_answers(
            ahead in -299_000..299_000i64,
            replays in prop::collection::vec((0..40usize, 0..20_000u64), 1..40),
        ) {
            let mut provider = Provider::new(ahead);
            let kept: Vec<_> = (0..40).map(|nth| provider.sign(nth * 500)).collect();
            let mut now = 20_000;
            for (which, pause) in replays {
                now += pause;
                let _ = provider.admit(&kept[which], now, now + 100);
                prop_assert_eq!(provider.ask(now, 100), Ok(()));
            }
        }
    }
}
