//! When the next call may be made: the merchant's limit, this instance's share of it by the number of consumers, less
//! while the provider throttles, and no call while other instances may not have counted this one yet.
//!
//! The limit holds for any second, wherever it begins, over all instances and over restarts. The unknown is assumed to be
//! the worst: before its start an instance is assumed to have made all the calls that are allowed.
//!
//! Pure: `now` is the time since the limiter was created.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::adaptive_rate::{AdaptiveRate, CallRecord};

/// Calls are counted over this much more than a second, because they do not arrive as evenly as they are sent.
const WINDOW_STRETCH: f64 = 1.014;
/// The fewest calls of a window; a lower rate gets a second, longer window that limits what the first rounds up.
const WINDOW_CALLS_MIN: f64 = 20.0;
/// How much faster than allowed calls may follow each other to catch up, within what the window leaves. A machine
/// with much else to do runs tens of milliseconds late, and what could not be caught up would be lost.
const CATCH_UP_FACTOR: f64 = 1.4;
/// The lateness of a timer that is made up for at once, in seconds.
const CATCH_UP: f64 = 0.01;
/// The same below the share, where no window shows what was missed.
const CATCH_UP_REDUCED: f64 = 0.05;
/// How long it takes until the others have counted a new instance: they count once a second, and a bit.
pub const JOINING: Duration = Duration::from_millis(1_500);
/// A smaller consumer count is used after this long: an instance that lost the broker is usually back by then, and one
/// that stopped made its last call more than a second ago.
const LEAVING: Duration = Duration::from_secs(5);
/// Just after a start an instance that is gone is most likely this one's predecessor, whose last call was made earlier.
const JUST_STARTED: Duration = Duration::from_secs(10);
const LEAVING_JUST_STARTED: Duration = Duration::from_millis(1_100);
/// The longest wait before the rate is checked again, because it may rise meanwhile.
const RECHECK_MAX: Duration = Duration::from_millis(100);

/// The limiter of one instance.
#[derive(Debug)]
pub struct RateLimit {
    /// Calls per second of the whole merchant.
    allowed: f64,
    /// The consumer counts of the last [`LEAVING`].
    counts: VecDeque<(Duration, u32)>,
    /// No call is made before.
    joining_until: Duration,
    adaptive: AdaptiveRate,
    gate: Gate,
}

impl RateLimit {
    /// `allowed` calls per second for the whole merchant.
    pub fn new(allowed: f64) -> Self {
        let mut gate = Gate::default();
        // A predecessor may have made all the calls of the last second.
        let [second, _] = windows(allowed);
        gate.granted.extend(std::iter::repeat_n(Duration::ZERO, second.calls));
        Self {
            allowed,
            counts: VecDeque::new(),
            joining_until: Duration::ZERO,
            adaptive: AdaptiveRate::new(),
            gate,
        }
    }

    /// This instance's share of the limit, in calls per second.
    fn share(&self) -> f64 {
        self.allowed / f64::from(self.instances())
    }

    fn instances(&self) -> u32 {
        self.counts.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1)
    }

    /// Calls per second that this instance makes at most now.
    pub fn per_second(&self, now: Duration) -> f64 {
        self.share() * self.adaptive.part(now)
    }

    /// The part of its share that is used, and the share of 429 among the calls counted last.
    pub fn reduced(&self, now: Duration) -> (f64, f64) {
        (self.adaptive.part(now), self.adaptive.throttled_share())
    }

    /// Whether this instance waits to be counted by others.
    pub fn is_joining(&self, now: Duration) -> bool {
        now < self.joining_until
    }

    /// Records the response to a call.
    pub fn record(&mut self, response: CallRecord, now: Duration) {
        let shared = self.instances() > 1;
        self.adaptive.record(response, now, self.share(), shared);
    }

    /// This instance has begun to consume, for the first time or again, with this many consumers in all.
    pub fn join(&mut self, count: u32, now: Duration) {
        // Others keep the share of an instance that is gone for a while.
        let kept = match self.counts.back() {
            Some((counted_at, _)) => now.saturating_sub(*counted_at) + JOINING <= LEAVING,
            None => false,
        };
        let before = self.instances();
        self.counts.clear();
        // Usually all instances lost the broker, and reconnect like this one.
        self.counts.push_back((now, count.max(before)));
        if count > 1 && !kept {
            self.joining_until = now + JOINING;
        }
    }

    /// Records the consumer count.
    pub fn adjust(&mut self, count: u32, now: Duration) {
        self.adaptive.advance(now);
        if self.gate.is_untouched {
            // No call depends on it yet. One of the consumers may have been that of our own, former process.
            self.counts.clear();
            if count <= 1 {
                self.joining_until = Duration::ZERO;
            }
        }
        self.counts.push_back((now, count));
        let leaving = if now < JUST_STARTED { LEAVING_JUST_STARTED } else { LEAVING };
        while self.counts.pop_front_if(|(at, _)| *at + leaving < now).is_some() {}
    }

    /// Grants one call, if it is allowed now: `serve` returns whether a waiter took the permit.
    ///
    /// # Errors
    /// How long to wait before the next try.
    pub fn grant(&mut self, now: Duration, serve: impl FnOnce() -> bool) -> Result<(), Duration> {
        if let Some(wait) = self.joining_until.checked_sub(now).filter(|wait| !wait.is_zero()) {
            return Err(wait.min(RECHECK_MAX));
        }
        self.gate.grant(now, self.share(), self.adaptive.part(now), serve)
    }
}

/// Spaces calls at a rate that may change with every call.
#[derive(Debug)]
struct Gate {
    /// When calls were last made. It outlasts changes of the rate.
    granted: VecDeque<Duration>,
    /// Calls that may be made at once.
    credit: f64,
    credited_at: Duration,
    /// Whether no call was made yet.
    is_untouched: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self { granted: VecDeque::new(), credit: 1.0, credited_at: Duration::ZERO, is_untouched: true }
    }
}

impl Gate {
    /// One call of an instance that makes `part` of its `share` of the limit.
    fn grant(
        &mut self,
        now: Duration,
        share: f64,
        part: f64,
        serve: impl FnOnce() -> bool,
    ) -> Result<(), Duration> {
        let share = share.clamp(0.001, 1e5);
        let windows = windows(share);
        let full = windows.iter().filter_map(|window| self.full_until(*window)).max();
        if let Some(wait) = full.and_then(|until| until.checked_sub(now)).filter(|wait| !wait.is_zero()) {
            return Err(wait.min(RECHECK_MAX));
        }
        let (per_second, catch_up) = match part < 1.0 {
            true => (share * part, CATCH_UP_REDUCED),
            false => (share * CATCH_UP_FACTOR, CATCH_UP),
        };
        let earned = now.saturating_sub(self.credited_at).as_secs_f64() * per_second;
        self.credit = (self.credit + earned).min(1.0 + catch_up * per_second);
        self.credited_at = now.max(self.credited_at);
        // The small addition is for sums such as 0.99999999.
        if self.credit + 1e-6 < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - self.credit) / per_second).max(Duration::from_nanos(1));
            return Err(wait.min(RECHECK_MAX));
        }
        if serve() {
            self.credit -= 1.0;
            self.is_untouched = false;
            self.granted.push_back(now);
            let longest = windows.iter().map(|window| window.time).max().unwrap_or_default();
            while self.granted.pop_front_if(|at| *at + longest < now).is_some() {}
        }
        Ok(())
    }

    /// The time before which the window is full.
    fn full_until(&self, window: Window) -> Option<Duration> {
        let first = self.granted.len().checked_sub(window.calls)?;
        self.granted.get(first).map(|at| *at + window.time)
    }
}

/// How many calls may be made within which time, wherever that time begins.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    calls: usize,
    time: Duration,
}

/// A second, and if that would round much away, one that is longer: together the instances must not exceed what one
/// would be allowed.
fn windows(per_second: f64) -> [Window; 2] {
    let seconds = (WINDOW_CALLS_MIN / per_second).max(1.0);
    let window = |calls: f64, seconds: f64| Window {
        calls: (calls as usize).max(1),
        time: Duration::from_secs_f64(seconds * WINDOW_STRETCH),
    };
    // The small addition is for products such as 19.999999.
    let long = per_second * seconds + 1e-6;
    let second = if seconds > 1.0 { (per_second - 1e-6).ceil() } else { long };
    [window(second, 1.0), window(long, seconds)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Calls that go between two times by a clockwork whose timers are late, by the milliseconds that chance gives.
    fn calls(
        limit: &mut RateLimit,
        from: Duration,
        to: Duration,
        late: impl Fn(u64) -> u64,
    ) -> Vec<Duration> {
        let (mut now, mut calls, mut timers) = (from, Vec::new(), 0);
        while now < to {
            match limit.grant(now, || true) {
                Ok(()) => calls.push(now),
                Err(wait) => {
                    timers += 1;
                    now += wait + Duration::from_micros(late(timers));
                }
            }
        }
        calls
    }

    fn busiest(calls: &[Duration]) -> usize {
        let later = |at: Duration| calls.partition_point(|other| *other < at + SECOND);
        calls.iter().enumerate().map(|(nth, at)| later(*at) - nth).max().unwrap_or(0)
    }

    #[test]
    fn rate_is_kept_in_every_second_with_late_timers() {
        // Never late, always a millisecond, anything up to 9 ms, and now and then 50 ms.
        let lateness: [fn(u64) -> u64; 4] = [
            |_| 0,
            |_| 1_000,
            |nth| nth.wrapping_mul(6_364_136_223_846_793_005).wrapping_shr(33) % 9_000,
            |nth| if nth.is_multiple_of(400) { 50_000 } else { 100 },
        ];
        for per_second in [1.0, 3.0, 10.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1_000.0] {
            for (nth, late) in lateness.into_iter().enumerate() {
                let mut limit = RateLimit::new(per_second);
                let calls = calls(&mut limit, SECOND * 2, SECOND * 62, late);
                let average = calls.len() as f64 / 60.0;
                let held = (per_second * 0.975..=per_second + 1.0 / 60.0).contains(&average);
                assert!(held, "{average} instead of {per_second}, lateness {nth}");
                let busiest = busiest(&calls);
                assert!(busiest as f64 <= per_second, "{busiest} in a second, lateness {nth}");
            }
        }
    }

    #[test]
    fn no_call_goes_in_the_second_after_a_start() {
        for per_second in [1.0, 5.0, 100.0, 500.0] {
            let mut limit = RateLimit::new(per_second);
            limit.join(1, SECOND / 5);
            let calls = calls(&mut limit, Duration::ZERO, SECOND * 5, |_| 0);
            assert!((SECOND..SECOND * 11 / 10).contains(&calls[0]), "{:?}", calls[0]);
        }
    }

    #[test]
    fn restart_beside_its_own_dying_consumer_counts_one() {
        let mut limit = RateLimit::new(100.0);
        limit.join(2, SECOND / 10);
        assert!(limit.is_joining(SECOND / 5));
        limit.adjust(1, SECOND * 2 / 5);
        assert!(!limit.is_joining(SECOND * 2 / 5));
        let calls = calls(&mut limit, SECOND * 2 / 5, SECOND * 11 / 5, |_| 0);
        assert!(calls.len() >= 95, "{}", calls.len());
    }

    #[test]
    fn dying_consumer_counted_late_halves_the_rate_briefly() {
        let mut limit = RateLimit::new(100.0);
        limit.join(1, SECOND / 10);
        calls(&mut limit, SECOND, SECOND * 2, |_| 0);
        limit.adjust(2, SECOND * 2);
        assert_eq!(limit.per_second(SECOND * 2), 50.0);
        limit.adjust(1, SECOND * 3);
        limit.adjust(1, SECOND * 4);
        assert_eq!(limit.per_second(SECOND * 4), 100.0);
    }

    #[test]
    fn new_instance_waits_until_the_others_have_counted_it() {
        let mut limit = RateLimit::new(100.0);
        limit.join(2, SECOND);
        assert_eq!(limit.per_second(SECOND), 50.0);
        let calls = calls(&mut limit, SECOND, SECOND * 4, |_| 0);
        assert!(calls[0] >= SECOND + JOINING, "{:?}", calls[0]);
    }

    #[test]
    fn instance_that_lost_the_broker_keeps_its_share() {
        let mut limit = RateLimit::new(90.0);
        limit.join(3, Duration::ZERO);
        limit.adjust(3, SECOND * 10);
        calls(&mut limit, SECOND * 10, SECOND * 11, |_| 0);
        limit.adjust(3, SECOND * 11);
        // Back as the first of three.
        limit.join(1, SECOND * 13);
        assert_eq!(limit.per_second(SECOND * 13), 30.0);
        assert!(!limit.is_joining(SECOND * 13));
        limit.adjust(2, SECOND * 14);
        limit.adjust(2, SECOND * 18);
        assert_eq!(limit.per_second(SECOND * 18), 30.0);
        limit.adjust(2, SECOND * 19);
        assert_eq!(limit.per_second(SECOND * 19), 45.0, "the third did not come back");
        // Away for this long that the others have taken its share.
        limit.join(2, SECOND * 60);
        assert!(limit.is_joining(SECOND * 61));
    }
}
