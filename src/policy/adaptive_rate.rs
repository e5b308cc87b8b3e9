//! How much of its share of the limit an instance uses: all of it, or less while the share of 429 among its calls shows
//! that the limit itself is too high. Why this law and not another: docs/decisions/0011-cubic-on-accepted-calls.md.
//!
//! A 429 may concern the merchant, the interface, one user or one coupon, and does not say which. So a lowered rate is a
//! trial: if the share of 429 drops, the limit was exceeded; if it stays, it does not depend on the rate, which is
//! restored.
//!
//! Pure: `now` and `sent_at` are times since the limiter was created.

use std::collections::VecDeque;
use std::time::Duration;

/// The time over which calls are counted; longer if the rate is low.
const WINDOW: Duration = Duration::from_secs(1);
/// The longest time over which calls are counted.
const WINDOW_MAX: Duration = Duration::from_secs(10);
/// Fewer calls in a window show nothing.
const CALLS_MIN: usize = 20;
/// The share of 429 above which the configured limit is presumed too high at once. Below it 429s cost less than a trial:
/// three in ten coupons that are throttled once or twice make a share of 31 %.
const SHARE_AT_ONCE: f64 = 0.35;
/// For how many windows that share must last, retries included: a burst of coupons that are throttled once fills one
/// window, and their retries succeed.
const WINDOWS_AT_ONCE: u32 = 2;
/// The share above which it is presumed too high after [`LONG_FULL`].
const SHARE_AT_LENGTH: f64 = 0.2;
/// The share above which a limit that is known to be lower is exceeded again.
const SHARE_REDUCED: f64 = 0.04;
/// This many standard deviations above a share are significant.
const SIGMAS: f64 = 3.0;
/// A trial needs enough calls to show a difference of this size before it may say that the share of 429 is unchanged.
const DIFFERENCE: f64 = 0.06;
/// A difference of this many standard deviations is significant.
const SIGMAS_DIFFERENCE: f64 = 3.0;
/// A trial has shown nothing about the limit before the rate is down to this part: other instances share the limit, and
/// may not have lowered theirs.
const SIGNIFICANT: f64 = 0.6;
/// A larger share of 429 always means the limit: nothing else throttles every other call.
const BASELINE_SHARE_MAX: f64 = 0.45;
/// The same two where others share the limit, and may not have lowered their rates yet.
const DIFFERENCE_SHARED: f64 = 0.04;
const BASELINE_SHARE_MAX_SHARED: f64 = 0.35;
/// The part of the accepted calls that is made after a reduction.
const BELOW_ACCEPTED: f64 = 0.93;
/// The lowest part of its share that an instance goes down to.
const LOWEST: f64 = 1.0 / 64.0;
/// The seconds from nothing to the whole share, once the accepted rate is exceeded.
const RECOVERY: f64 = 18.0;
/// A trial without enough calls to judge it is over after this long.
const TRIAL_MAX: Duration = Duration::from_secs(30);
/// The time over which smaller shares are evaluated, while the whole share is used and while it is not.
const LONG_FULL: Duration = Duration::from_secs(60);
const LONG_REDUCED: Duration = Duration::from_secs(3);
/// For how long a share of 429 is known to be independent of the rate: the first time, and at most.
const BASELINE: Duration = Duration::from_secs(20);
const BASELINE_MAX: Duration = Duration::from_secs(600);

/// The result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallRecord {
    /// When the call was made.
    pub sent_at: Duration,
    /// Whether the response was a 429.
    pub throttled: bool,
    /// Whether its command was throttled before: most likely that concerns only its coupon, or its user.
    pub throttled_before: bool,
}

/// The part of its share that an instance uses.
#[derive(Debug)]
pub struct AdaptiveRate {
    phase: Phase,
    /// The results of calls that were sent earlier are ignored.
    changed_at: Duration,
    window: Results,
    /// The calls that are counted for longer than a window, and since when.
    long: (Duration, Tally),
    /// All calls, retries included, while the whole share is used.
    all: Results,
    /// Since when the share of 429 has been above [`SHARE_AT_ONCE`], first among first calls.
    exceeded_since: Option<Duration>,
    baseline: Baseline,
}

/// Where the rate comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The whole share is used.
    Full,
    /// Lowered, to see whether the share of 429 drops.
    Trial { curve: Curve, before: Before },
    /// It dropped: the rate grows from there.
    Growing(Growth),
}

/// CUBIC: up to what was accepted soon, slowly past it, then ever faster.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Curve {
    from: f64,
    accepted: f64,
}

/// The state that is restored after a trial without effect.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Before {
    growth: Option<Growth>,
    part: f64,
    at: Duration,
    /// The share of 429.
    share: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Growth {
    curve: Curve,
    since: Duration,
}

impl Curve {
    fn after(self, grown: Duration) -> f64 {
        let steepness = RECOVERY.powi(-3);
        let plateau = ((self.accepted - self.from).max(0.0) / steepness).cbrt();
        steepness * (grown.as_secs_f64() - plateau).powi(3) + self.accepted
    }
}

/// How many calls there were, and how many of them were throttled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Tally {
    calls: usize,
    throttled: usize,
}

impl Tally {
    fn share(self) -> f64 {
        self.throttled as f64 / self.calls.max(1) as f64
    }

    /// Whether the throttled ones exceed this share by more than chance.
    fn exceeds(self, share: f64) -> bool {
        let mean = self.calls as f64 * share;
        self.throttled as f64 > mean + SIGMAS * (mean * (1.0 - share)).sqrt()
    }

    /// How much its share and an earlier one may differ by chance.
    fn chance(self, earlier: f64) -> f64 {
        let share = (self.share() + earlier) / 2.0;
        SIGMAS_DIFFERENCE * (2.0 * share * (1.0 - share) / self.calls.max(1) as f64).sqrt()
    }
}

/// The results of recent calls, by the time of the response.
#[derive(Debug, Default)]
struct Results {
    each: VecDeque<(Duration, bool)>,
    tally: Tally,
    since: Option<Duration>,
}

impl Results {
    fn record(&mut self, now: Duration, throttled: bool, window: Duration) {
        self.since.get_or_insert(now);
        self.each.push_back((now, throttled));
        self.tally.calls += 1;
        self.tally.throttled += usize::from(throttled);
        while let Some((_, throttled)) = self.each.pop_front_if(|(at, _)| *at + window < now) {
            self.tally.calls -= 1;
            self.tally.throttled -= usize::from(throttled);
        }
    }

    /// The window, once it is full.
    fn full(&self, now: Duration, window: Duration) -> Option<Tally> {
        let spans = self.since.is_some_and(|since| now.saturating_sub(since) >= window);
        (spans && self.tally.calls >= CALLS_MIN).then_some(self.tally)
    }
}

/// The share of 429 that is independent of the rate.
#[derive(Debug)]
struct Baseline {
    share: f64,
    until: Duration,
    /// Doubled at every trial without effect.
    lasts: Duration,
}

impl AdaptiveRate {
    /// Nothing is known: the whole share.
    pub fn new() -> Self {
        Self {
            phase: Phase::Full,
            changed_at: Duration::ZERO,
            window: Results::default(),
            long: (Duration::ZERO, Tally::default()),
            all: Results::default(),
            exceeded_since: None,
            baseline: Baseline { share: 0.0, until: Duration::ZERO, lasts: BASELINE },
        }
    }

    /// The part of its share that the instance uses, above 0 and at most 1.
    pub fn part(&self, now: Duration) -> f64 {
        match self.phase {
            Phase::Full => 1.0,
            Phase::Trial { curve, .. } => curve.from,
            Phase::Growing(growth) => growth.part(now),
        }
    }

    /// The share of 429 among the calls counted last.
    pub fn throttled_share(&self) -> f64 {
        self.window.tally.share()
    }

    /// Records the response to a call; `share` is this instance's share of the limit in calls per second, and `shared` whether
    /// there are others.
    pub fn record(&mut self, response: CallRecord, now: Duration, share: f64, shared: bool) {
        self.advance(now);
        let CallRecord { sent_at, throttled, throttled_before } = response;
        // Retries come in waves: alone in a window they would show that everything is throttled.
        if sent_at < self.changed_at {
            return;
        }
        let window = window(share * self.part(now));
        if self.phase == Phase::Full {
            self.all.record(now, throttled, window);
            self.lower_if_sustained(now, window, share);
            // It may have lowered the rate just now: the call was made at the rate before.
            if throttled_before || sent_at < self.changed_at {
                return;
            }
        }
        self.window.record(now, throttled, window);
        self.long.1.calls += 1;
        self.long.1.throttled += usize::from(throttled);
        if let Some(tally) = self.window.full(now, window) {
            self.evaluate(tally, now, window, (share, shared));
        }
        self.renew_long(now);
    }

    /// Lowers the rate if a share of 429 that first calls met has lasted, retries included.
    fn lower_if_sustained(&mut self, now: Duration, window: Duration, share: f64) {
        let Some(since) = self.exceeded_since else { return };
        let limit = SHARE_AT_ONCE.max(self.baseline.share + SHARE_REDUCED);
        let lasted = now.saturating_sub(since);
        let tally = self.all.full(now, window);
        if tally.map_or(lasted > WINDOW_MAX, |tally| !tally.exceeds(limit)) {
            self.exceeded_since = None;
        } else if let Some(tally) = tally
            && lasted >= window * WINDOWS_AT_ONCE
        {
            let before = self.before(None, tally, now);
            self.lower(tally, before, now, window, share);
        }
    }

    fn renew_long(&mut self, now: Duration) {
        let lasts = match self.phase {
            Phase::Full => LONG_FULL,
            Phase::Trial { .. } => Duration::MAX,
            Phase::Growing(_) => LONG_REDUCED,
        };
        if now.saturating_sub(self.long.0) >= lasts {
            self.long = (now, Tally::default());
        }
    }

    /// Lets time pass: a rate that has grown back is no longer reduced, a trial without results is over.
    pub fn advance(&mut self, now: Duration) {
        match self.phase {
            Phase::Growing(growth) if growth.part(now) >= 1.0 => {
                self.phase = Phase::Full;
                self.long = (now, Tally::default());
            }
            Phase::Trial { curve, .. } if now.saturating_sub(self.changed_at) > TRIAL_MAX => {
                self.change(Phase::Growing(Growth { curve, since: now }), now);
            }
            _ => {}
        }
    }

    fn evaluate(&mut self, tally: Tally, now: Duration, window: Duration, (share, shared): (f64, bool)) {
        self.baseline.observe(tally, now);
        let (since, long) = self.long;
        let lasted = |lasts| now.saturating_sub(since) >= lasts;
        let limit = self.baseline.share + SHARE_REDUCED;
        let exceeds_limit = tally.exceeds(limit);
        match self.phase {
            Phase::Full => {
                if tally.exceeds(SHARE_AT_ONCE.max(limit)) {
                    self.exceeded_since.get_or_insert(now);
                }
                if lasted(LONG_FULL) && long.exceeds(SHARE_AT_LENGTH.max(limit)) {
                    let before = self.before(None, tally, now);
                    self.lower(tally, before, now, window, share);
                }
            }
            Phase::Growing(growth) => {
                if exceeds_limit || lasted(LONG_REDUCED) && long.exceeds(limit) {
                    let before = self.before(Some(growth), tally, now);
                    self.lower(tally, before, now, window, share);
                }
            }
            Phase::Trial { curve, before } => {
                let dropped = |tally: Tally| {
                    before.share - tally.share() > tally.chance(before.share) && !tally.exceeds(limit)
                };
                let (change, chance) = (long.share() - before.share, long.chance(before.share));
                let (baseline_max, difference) = match shared {
                    true => (BASELINE_SHARE_MAX_SHARED, DIFFERENCE_SHARED),
                    false => (BASELINE_SHARE_MAX, DIFFERENCE),
                };
                let is_significant = curve.from <= before.part * SIGNIFICANT && long.share() <= baseline_max;
                if dropped(tally) || dropped(long) {
                    self.baseline.lasts = BASELINE;
                    self.change(Phase::Growing(Growth { curve, since: now }), now);
                } else if change.abs() > chance {
                    // The share rose, or it dropped but not enough.
                    let here = Growth { curve, since: now };
                    let before = if change < 0.0 { self.before(Some(here), long, now) } else { before };
                    self.lower(tally, before, now, window, share);
                } else if chance <= if is_significant { difference } else { before.share / 2.0 } {
                    if is_significant {
                        // No effect.
                        self.baseline.record_baseline(long.share(), now);
                        self.change(before.restored(now), now);
                    } else {
                        self.lower(tally, before, now, window, share);
                    }
                }
            }
        }
    }

    fn before(&self, growth: Option<Growth>, tally: Tally, now: Duration) -> Before {
        Before { growth, part: self.part(now), at: now, share: tally.share() }
    }

    fn lower(&mut self, tally: Tally, before: Before, now: Duration, window: Duration, share: f64) {
        let accepted = (tally.calls - tally.throttled) as f64 / window.as_secs_f64();
        let accepted = (accepted / share.max(f64::MIN_POSITIVE)).min(self.part(now));
        let from = (accepted * BELOW_ACCEPTED).max(LOWEST).min(self.part(now));
        let curve = Curve { from, accepted: accepted.max(from) };
        self.change(Phase::Trial { curve, before }, now);
    }

    fn change(&mut self, phase: Phase, now: Duration) {
        self.phase = phase;
        self.changed_at = now;
        self.window = Results::default();
        self.long = (now, Tally::default());
        self.all = Results::default();
        self.exceeded_since = None;
    }
}

impl Default for AdaptiveRate {
    fn default() -> Self {
        Self::new()
    }
}

impl Before {
    /// The phase without the trial.
    fn restored(self, now: Duration) -> Phase {
        self.growth.map_or(Phase::Full, |growth| {
            Phase::Growing(Growth { since: growth.since + now.saturating_sub(self.at), ..growth })
        })
    }
}

impl Growth {
    fn part(self, now: Duration) -> f64 {
        self.curve.after(now.saturating_sub(self.since)).clamp(self.curve.from, 1.0)
    }
}

impl Baseline {
    /// The baseline is at most the observed share.
    fn observe(&mut self, tally: Tally, now: Duration) {
        if now >= self.until {
            self.share = 0.0;
        }
        self.share = self.share.min(tally.share() + tally.chance(self.share));
    }

    fn record_baseline(&mut self, share: f64, now: Duration) {
        self.share = share;
        self.until = now + self.lasts;
        self.lasts = (self.lasts * 2).min(BASELINE_MAX);
    }
}

/// Long enough for [`CALLS_MIN`] calls at this rate.
fn window(per_second: f64) -> Duration {
    let seconds = 1.25 * CALLS_MIN as f64 / per_second.max(0.1);
    Duration::from_secs_f64(seconds.clamp(WINDOW.as_secs_f64(), WINDOW_MAX.as_secs_f64()))
}
