//! Rejects replayed responses, as far as the protocol allows: a signed response names neither the request nor its nonce, so
//! an attacker who can intercept responses could withhold one and send it in response to a later operation.
//!
//! Two rules. A response is accepted once: its signature is remembered for as long as it could be accepted again. And a
//! response must be signed after its operation was sent. For that the provider's clock is compared with ours by the signed
//! timestamps, never by `Date`, which no signature covers: a response arrives after it was signed, so a withheld one can
//! only make the provider's clock look slower than it is. The fastest eighth of the last responses is ignored, so that one
//! machine of the provider whose clock is ahead does not exclude the others. Rejected responses count for the clock, too, so
//! that a clock that was set back is accepted after some responses; but each response counts once.
//!
//! Not rejected: a withheld response that is sent to another operation within [`TOLERANCE`] of its signing; the first
//! responses of a process, or of one that received none for ten minutes, before the clock is known; and dozens of withheld
//! responses, which together look like a clock that was set back. All are bounded by the five minutes of
//! [`super::verify`], and none is shared between processes.
//! Pure: times are arguments, on a clock that is never set.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::policy::classify::SignatureFlaw;

/// How much earlier than its operation a response may have been signed, by the clocks. Timestamps are whole seconds, and
/// the provider responds from many machines whose clocks need not agree to the second.
pub const TOLERANCE: Duration = Duration::from_secs(10);

/// How long one generation of remembered responses lasts. The last three are kept: a response can be accepted from five
/// minutes before its timestamp to five minutes after it.
const GENERATION: Duration = Duration::from_secs(300);
const GENERATIONS: usize = 3;

/// The most responses that one generation remembers, some bytes each: a third more than arrive at 500 a second. With
/// more it ends early.
const RESPONSES_MAX: usize = 200_000;

/// The responses that show the provider's clock: at most this many, none older than this.
const CLOCK_RESPONSES: usize = 64;
const CLOCK_RECENT: Duration = Duration::from_secs(600);

/// What identifies a signed response.
#[derive(Debug, Clone, Copy)]
pub struct ReplayKey<'a> {
    /// `Wechatpay-Timestamp`, in seconds since 1970.
    pub signed_at: i64,
    /// `Wechatpay-Nonce`.
    pub nonce: &'a str,
    /// `Wechatpay-Signature`.
    pub signature: &'a str,
}

/// Remembers responses, and how far the provider's clock is from ours.
#[derive(Debug, Default)]
pub struct ReplayGuard {
    /// The newest generation last.
    generations: Vec<Generation>,
    /// With a random key, so that nobody can construct two responses with one fingerprint.
    hasher: RandomState,
    clock: Clock,
}

/// For each of the last responses, when it arrived and the provider's clock minus ours by its timestamp, in milliseconds.
/// Each is too small by the time that the response was under way or withheld.
#[derive(Debug, Default)]
struct Clock(VecDeque<(Duration, i64)>);

impl Clock {
    /// By how much the provider's clock is ahead, at least.
    fn ahead_ms(&self, now: Duration) -> Option<i64> {
        let recent = self.0.iter().filter(|(at, _)| now.saturating_sub(*at) <= CLOCK_RECENT);
        let mut offsets_ms: Vec<_> = recent.map(|(_, offset_ms)| *offset_ms).collect();
        offsets_ms.sort_unstable_by(|one, other| other.cmp(one));
        offsets_ms.get(offsets_ms.len() / 8).copied()
    }

    fn record(&mut self, signed_ms: i64, received_at: Duration) {
        if self.0.len() >= CLOCK_RESPONSES {
            self.0.pop_front();
        }
        self.0.push_back((received_at, signed_ms.saturating_sub(millis(received_at))));
    }
}

#[derive(Debug)]
struct Generation {
    since: Duration,
    seen: HashSet<u64>,
}

impl ReplayGuard {
    /// Admits a response whose signature verified and whose timestamp is near our clock. `sent` and `received_at` are when
    /// its operation was sent and when it arrived, on one clock that is never set.
    ///
    /// # Errors
    /// [`SignatureFlaw::Replayed`] if it was accepted before, or was signed before its operation was sent.
    pub fn admit(
        &mut self,
        key: ReplayKey<'_>,
        sent: Duration,
        received_at: Duration,
    ) -> Result<(), SignatureFlaw> {
        let signed_ms = key.signed_at.saturating_mul(1_000);
        let fingerprint = self.hasher.hash_one((key.nonce, key.signature));
        if self.generations.iter().any(|generation| generation.seen.contains(&fingerprint)) {
            return Err(SignatureFlaw::Replayed);
        }
        // The clock without this response, which must not justify itself. Each response counts once, whether it is accepted
        // or not, however often it is replayed.
        let ahead_ms = self.clock.ahead_ms(received_at);
        self.clock.record(signed_ms, received_at);
        self.generation(received_at).seen.insert(fingerprint);
        let earliest_ms =
            ahead_ms.map(|ahead| ahead.saturating_add(millis(sent)).saturating_sub(millis(TOLERANCE)));
        if earliest_ms.is_some_and(|earliest| signed_ms < earliest) {
            return Err(SignatureFlaw::Replayed);
        }
        Ok(())
    }

    /// The current generation; a new one replaces the oldest.
    fn generation(&mut self, now: Duration) -> &mut Generation {
        let ended = self.generations.last().is_none_or(|newest| {
            now.saturating_sub(newest.since) >= GENERATION || newest.seen.len() >= RESPONSES_MAX
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

        /// The timestamp and nonce that it signs at this millisecond of our clock.
        fn sign(&mut self, at: u64) -> (i64, String) {
            self.count += 1;
            let at = T0 * 1_000 + self.ahead + i64::try_from(at).unwrap();
            (at.div_euclid(1_000), format!("nonce {}", self.count))
        }

        fn admit(
            &mut self,
            (signed_at, nonce): &(i64, String),
            sent: u64,
            received_at: u64,
        ) -> Result<(), SignatureFlaw> {
            let key = ReplayKey { signed_at: *signed_at, nonce, signature: "signature" };
            self.guard.admit(key, Duration::from_millis(sent), Duration::from_millis(received_at))
        }

        /// Sends an operation and receives the response that was signed for it.
        fn call(&mut self, sent: u64, took: u64) -> Result<(), SignatureFlaw> {
            let response = self.sign(sent + took / 2);
            self.admit(&response, sent, sent + took)
        }
    }

    #[test]
    fn response_is_accepted_once() {
        let mut provider = Provider::new(0);
        let response = provider.sign(10);
        assert_eq!(provider.admit(&response, 0, 20), Ok(()));
        for second in [0, 1, 5, 60, 299, 599] {
            let at = second * 1_000 + 20;
            assert_eq!(provider.admit(&response, at, at), Err(SignatureFlaw::Replayed), "{second} s");
            assert_eq!(provider.call(at, 100), Ok(()));
        }
    }

    #[test]
    fn response_signed_before_its_operation_is_rejected() {
        let mut provider = Provider::new(0);
        assert_eq!(provider.call(0, 100), Ok(()));
        let kept = provider.sign(1_000);
        assert_eq!(provider.admit(&kept, 12_500, 12_600), Err(SignatureFlaw::Replayed));
        assert_eq!(provider.admit(&kept, 299_000, 299_100), Err(SignatureFlaw::Replayed));
        // Within the tolerance it looks like the response of a machine whose clock is a little behind.
        let other = provider.sign(1_000);
        assert_eq!(provider.admit(&other, 8_000, 8_100), Ok(()));
    }

    #[test]
    fn response_replayed_many_times_counts_once_for_the_clock() {
        let mut provider = Provider::new(0);
        for nth in 0..500 {
            assert_eq!(provider.call(nth * 100, 100), Ok(()));
        }
        let kept = [provider.sign(50_000), provider.sign(50_000)];
        for nth in 0..200 {
            assert_eq!(provider.admit(&kept[0], 132_000 + nth, 132_100 + nth), Err(SignatureFlaw::Replayed));
        }
        assert_eq!(provider.admit(&kept[1], 132_300, 132_400), Err(SignatureFlaw::Replayed));
    }

    #[test]
    fn clock_that_was_set_back_is_accepted_again() {
        let mut provider = Provider::new(0);
        for nth in 0..200 {
            assert_eq!(provider.call(nth * 100, 100), Ok(()));
        }
        provider.ahead = -60_000;
        assert_eq!(provider.call(20_000, 100), Err(SignatureFlaw::Replayed));
        let refused = (1..).take_while(|nth| provider.call(20_000 + nth * 100, 100).is_err()).count();
        assert!(refused < CLOCK_RESPONSES, "{refused}");
        // One call a minute: after as long as a response counts as recent.
        provider.ahead = -120_000;
        let refused = (1..).take_while(|nth| provider.call(60_000 * nth, 100).is_err()).count();
        assert!(refused <= 11, "{refused}");
    }

    #[test]
    fn machine_whose_clock_is_ahead_excludes_no_other() {
        let mut provider = Provider::new(0);
        let mut refused = 0;
        for nth in 0..2_000 {
            provider.ahead = if nth % 20 == 0 { 120_000 } else { 0 };
            refused += u32::from(provider.call(nth * 100, 100).is_err());
        }
        assert!(refused <= 8, "{refused}: only the first responses, when nothing else was known");
    }

    #[test]
    fn remembered_responses_are_bounded() {
        let mut provider = Provider::new(0);
        for nth in 0..700_000 {
            provider.call(nth, 0).unwrap();
        }
        let kept: Vec<_> =
            provider.guard.generations.iter().map(|generation| generation.seen.len()).collect();
        assert!(kept.len() <= GENERATIONS && kept.iter().all(|count| *count <= RESPONSES_MAX), "{kept:?}");
        assert!(kept.iter().sum::<usize>() >= 2 * RESPONSES_MAX, "{kept:?}");
    }

    proptest! {
        /// However far the provider's clock is off, and however long responses take: a genuine response is accepted, and
        /// none twice.
        #[test]
        fn genuine_responses_are_accepted_once(
            ahead in -299_000..299_000i64,
            calls in prop::collection::vec((0..30_000u64, 0..15_000u64), 1..60),
        ) {
            let mut provider = Provider::new(ahead);
            let mut now = 0;
            let mut accepted = Vec::new();
            for (pause, took) in calls {
                now += pause;
                let response = provider.sign(now + took / 2);
                prop_assert_eq!(provider.admit(&response, now, now + took), Ok(()));
                now += took;
                accepted.push(response);
            }
            for response in &accepted[accepted.len().saturating_sub(10)..] {
                prop_assert_eq!(provider.admit(response, now, now), Err(SignatureFlaw::Replayed));
            }
        }

        /// Whatever an attacker replays, genuine responses are accepted.
        #[test]
        fn replays_never_exclude_genuine_responses(
            ahead in -299_000..299_000i64,
            replays in prop::collection::vec((0..40usize, 0..20_000u64), 1..40),
        ) {
            let mut provider = Provider::new(ahead);
            let kept: Vec<_> = (0..40).map(|nth| provider.sign(nth * 500)).collect();
            let mut now = 20_000;
            for (which, pause) in replays {
                now += pause;
                let _ = provider.admit(&kept[which], now, now + 100);
                prop_assert_eq!(provider.call(now, 100), Ok(()));
            }
        }
    }
}
