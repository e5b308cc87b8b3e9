//! The laws of the rate limit, in virtual time against a provider with a seed: what moves the rate and what does not,
//! how soon it is back, and that no second ever holds more calls than are allowed.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use redeemer::policy::adaptive_rate::CallRecord;
use redeemer::policy::rate_limit::RateLimit;

/// The configured limit, in calls per second.
const LIMIT: f64 = 500.0;
/// Virtual time goes on by so much.
const STEP: Duration = Duration::from_millis(1);

/// A token bucket of one second, and chance.
struct Provider {
    per_second: f64,
    tokens: f64,
    filled_at: Duration,
    /// The share of calls that are throttled whatever the rate.
    throttled: f64,
    chance: StdRng,
}

impl Provider {
    fn new(per_second: f64, throttled: f64, seed: u64) -> Self {
        let chance = StdRng::seed_from_u64(seed);
        Self { per_second, tokens: per_second, filled_at: Duration::ZERO, throttled, chance }
    }

    /// Whether the call is accepted.
    fn accepts(&mut self, now: Duration) -> bool {
        let earned = (now - self.filled_at).as_secs_f64() * self.per_second;
        (self.tokens, self.filled_at) = ((self.tokens + earned).min(self.per_second), now);
        if self.chance.random_bool(self.throttled) || self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// Instances that share the limit and call one provider.
struct World {
    now: Duration,
    limiters: Vec<RateLimit>,
    /// When the next instances start.
    later: Vec<Duration>,
    provider: Provider,
    /// Calls per second that each instance has to make; more than allowed is a backlog.
    offered: f64,
    due: Vec<f64>,
    under_way: BinaryHeap<Reverse<(Duration, usize, Duration, bool)>>,
    /// Of every call: when it was made, and whether it was accepted.
    calls: Vec<(Duration, bool)>,
}

impl World {
    fn new(instances: u32, offered: f64, provider: Provider) -> Self {
        let mut limiters: Vec<_> = (0..instances).map(|_| RateLimit::new(LIMIT)).collect();
        for limiter in &mut limiters {
            limiter.join(instances, Duration::ZERO);
        }
        let due = vec![0.0; limiters.len()];
        let (now, under_way, calls) = (Duration::ZERO, BinaryHeap::new(), Vec::new());
        Self { now, limiters, later: Vec::new(), provider, offered, due, under_way, calls }
    }

    /// The same, where each further instance starts so much later than the one before it.
    fn staggered(instances: u32, apart: Duration, offered: f64, provider: Provider) -> Self {
        let later = (1..instances).rev().map(|nth| apart * nth).collect();
        Self { later, ..Self::new(1, offered, provider) }
    }

    /// Starts the instances that are due. An instance's clock begins with itself, which only its limiter notices.
    fn start_due(&mut self) {
        while self.later.pop_if(|at| *at <= self.now).is_some() {
            let mut limiter = RateLimit::new(LIMIT);
            limiter.join(self.limiters.len() as u32 + 1, self.now);
            self.limiters.push(limiter);
            self.due.push(0.0);
        }
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        self.start_due();
        while let Some(Reverse((at, which, sent_at, throttled))) = self.under_way.peek().copied()
            && at <= now
        {
            self.under_way.pop();
            self.limiters[which].record(CallRecord { sent_at, throttled, throttled_before: false }, now);
        }
        let instances = self.limiters.len() as u32;
        // Nobody is always first.
        let first = self.provider.chance.random_range(0..self.limiters.len());
        for nth in 0..self.limiters.len() {
            let which = (first + nth) % self.limiters.len();
            if now.subsec_millis() == which as u32 * 7 % 1_000 {
                self.limiters[which].adjust(instances, now);
            }
            self.due[which] = (self.due[which] + self.offered * STEP.as_secs_f64()).min(10_000.0);
            while self.due[which] >= 1.0 && self.limiters[which].grant(now, || true).is_ok() {
                self.due[which] -= 1.0;
                let accepted = self.provider.accepts(now);
                let answered = now + Duration::from_millis(self.provider.chance.random_range(10..60));
                self.under_way.push(Reverse((answered, which, now, !accepted)));
                self.calls.push((now, accepted));
            }
        }
        self.now += STEP;
    }

    /// Calls per second that were accepted, and the share of those that were not, since then.
    fn since(&self, since: Duration) -> (f64, f64) {
        let calls: Vec<_> = self.calls.iter().filter(|(at, _)| *at >= since).collect();
        let accepted = calls.iter().filter(|(_, accepted)| *accepted).count() as f64;
        let seconds = (self.now - since).as_secs_f64();
        (accepted / seconds, 1.0 - accepted / calls.len().max(1) as f64)
    }

    fn rate(&self) -> f64 {
        self.limiters.iter().map(|limiter| limiter.per_second(self.now)).sum()
    }

    /// The most calls in any second, whenever it begins.
    fn busiest(&self) -> usize {
        let second = Duration::from_secs(1);
        let later = |at: Duration| self.calls.partition_point(|(other, _)| *other < at + second);
        self.calls.iter().enumerate().map(|(nth, (at, _))| later(*at) - nth).max().unwrap_or(0)
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn isolated_429s_never_move_the_rate(
        seed: u64, instances in 1..4_u32, offered in prop::sample::select(vec![0.5, 5.0, 40.0, 300.0, 1_000.0])
    ) {
        let mut world = World::new(instances, offered, Provider::new(10_000.0, 0.0, seed));
        for _ in 0..60 {
            world.run(1);
            // One in a second, or several retries of one command.
            world.provider.tokens = 0.0;
            let many = world.provider.chance.random_range(1..4);
            for _ in 0..many {
                for limiter in &mut world.limiters {
                    limiter.record(CallRecord { sent_at: world.now, throttled: true, throttled_before: false }, world.now);
                }
            }
            prop_assert_eq!(world.rate(), LIMIT);
        }
    }

    #[test]
    fn a_wave_of_retries_never_moves_the_rate(seed: u64, wave in 20..400_usize) {
        let mut world = World::new(1, 50.0, Provider::new(10_000.0, 0.0, seed));
        for _ in 0..10 {
            world.run(1);
            for _ in 0..wave {
                let response = CallRecord { sent_at: world.now, throttled: true, throttled_before: true };
                world.limiters[0].record(response, world.now);
            }
            prop_assert_eq!(world.rate(), LIMIT);
        }
    }

    #[test]
    fn burst_of_coupons_throttled_once_never_moves_the_rate(seed: u64, burst in 20..400_usize, offered in 5.0..60.0) {
        let mut world = World::new(1, offered, Provider::new(10_000.0, 0.0, seed));
        world.run(10);
        // Each of other coupons, all within half a second, and each accepted when it is retried.
        for _ in 0..burst {
            let response = CallRecord { sent_at: world.now, throttled: true, throttled_before: false };
            world.limiters[0].record(response, world.now);
            if world.provider.chance.random_bool(0.5) {
                world.step();
            }
        }
        for _ in 0..30 {
            prop_assert_eq!(world.rate(), LIMIT);
            world.run(1);
        }
        let (accepted, throttled) = world.since(seconds(10));
        prop_assert!(accepted >= 0.97 * offered && throttled == 0.0, "{accepted}/s of {offered}/s, {throttled}");
    }

    #[test]
    fn three_percent_of_429_never_moves_the_rate(seed: u64, instances in 1..3_u32) {
        let mut world = World::new(instances, 1_000.0, Provider::new(10_000.0, 0.03, seed));
        for _ in 0..300 {
            world.run(1);
            prop_assert_eq!(world.rate(), LIMIT);
        }
    }

    #[test]
    fn a_true_limit_is_found_kept_and_left_again(seed: u64, instances in 1..3_u32) {
        let mut world = World::new(instances, 1_000.0, Provider::new(100.0, 0.0, seed));
        world.run(10);
        let found = world.now;
        world.run(90);
        let (accepted, throttled) = world.since(found);
        prop_assert!(accepted >= 92.0, "{accepted}/s accepted");
        prop_assert!(throttled <= 0.05, "{throttled} throttled");
        world.provider.per_second = 500.0;
        world.run(30);
        let raised = world.now;
        prop_assert!(world.rate() >= 475.0, "{} 30 s after the limit was raised", world.rate());
        world.run(10);
        let (accepted, _) = world.since(raised);
        prop_assert!(accepted >= 475.0, "{accepted}/s accepted");
        prop_assert!(world.busiest() as f64 <= LIMIT, "{} in a second", world.busiest());
    }

    #[test]
    fn calls_made_before_a_reduction_do_not_count_after_it(seed: u64, took in 10..400_u64) {
        let (mut limiter, mut chance) = (RateLimit::new(LIMIT), StdRng::seed_from_u64(seed));
        limiter.join(1, Duration::ZERO);
        let (mut before, mut reductions) = (1.0, 0);
        for now in (0..20_000).map(Duration::from_millis) {
            let (throttled, throttled_before) = (chance.random_bool(0.6), chance.random_bool(0.3));
            let sent_at = now.saturating_sub(Duration::from_millis(took));
            limiter.record(CallRecord { sent_at, throttled, throttled_before }, now);
            let (part, share) = limiter.reduced(now);
            if part < before {
                reductions += 1;
                prop_assert_eq!(share, 0.0, "a call of before the reduction at {:?}", now);
            }
            before = part;
        }
        prop_assert!(reductions > 1, "{reductions} reductions");
    }

    #[test]
    fn a_true_limit_is_kept_when_an_instance_joins(seed: u64, apart in 200..20_000_u64) {
        let apart = Duration::from_millis(apart);
        let mut world = World::staggered(2, apart, 1_000.0, Provider::new(100.0, 0.0, seed));
        while !world.later.is_empty() {
            world.run(1);
        }
        world.run(10);
        let found = world.now;
        world.run(60);
        let (accepted, throttled) = world.since(found);
        prop_assert!(accepted >= 92.0, "{accepted}/s accepted");
        prop_assert!(throttled <= 0.08, "{throttled} throttled");
    }

    #[test]
    fn any_true_limit_is_found_soon(seed: u64, limit in 25.0..360.0, instances in 1..3_u32) {
        let mut world = World::new(instances, 1_000.0, Provider::new(limit, 0.0, seed));
        // Where less than half of the calls are throttled, that must last for a minute.
        world.run(if limit < 0.5 * LIMIT { 10 } else { 75 });
        let found = world.now;
        world.run(60);
        let (accepted, throttled) = world.since(found);
        prop_assert!(accepted >= 0.92 * limit, "{accepted}/s of {limit}/s accepted");
        prop_assert!(throttled <= 0.12, "{throttled} throttled");
    }

    #[test]
    fn a_true_limit_is_found_among_commands_in_trouble(seed: u64, throttled in 0.0..0.15) {
        let mut world = World::new(1, 1_000.0, Provider::new(100.0, throttled, seed));
        world.run(30);
        let found = world.now;
        world.run(60);
        let (accepted, all) = world.since(found);
        prop_assert!(accepted >= 40.0, "{accepted}/s accepted");
        prop_assert!(all <= throttled + 0.15, "{all} throttled");
    }

    #[test]
    fn commands_in_trouble_do_not_slow_the_rest(seed: u64, throttled in 0.0..0.31) {
        // Nothing that the rate could change: whatever it is lowered for is restored.
        let mut world = World::new(1, 300.0 / (1.0 - throttled), Provider::new(10_000.0, throttled, seed));
        world.run(60);
        let (accepted, _) = world.since(seconds(2));
        prop_assert!(accepted >= 0.97 * 300.0, "{accepted}/s of 300/s accepted");
    }

    #[test]
    fn the_rate_is_back_half_a_minute_after_a_wave(seed: u64, wave in 1..20_u64, share in 0.25..1.0) {
        let mut world = World::new(1, 1_000.0, Provider::new(10_000.0, 0.0, seed));
        world.run(20);
        world.provider.throttled = share;
        world.run(wave);
        world.provider.throttled = 0.0;
        world.run(30);
        prop_assert_eq!(world.rate(), LIMIT);
        let (accepted, _) = world.since(world.now - seconds(2));
        prop_assert!(accepted >= 475.0, "{accepted}/s");
    }
}
