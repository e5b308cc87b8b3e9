//! The laws of the circuit breaker, in virtual time against a provider with a seed: what opens it and how soon, what
//! never does, and how it comes back.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use redeemer::domain::evidence::Operation;
use redeemer::policy::call_signal::{CallSignal, FailureKind};
use redeemer::policy::circuit::{Circuit, CircuitCause, Grant, State};
use redeemer::policy::rate_limit::RateLimit;

const TROUBLES: [FailureKind; 3] =
    [FailureKind::NoResponse, FailureKind::ServerError, FailureKind::Unverified];

/// Calls at an even rate, each answered at once.
struct Calls {
    circuit: Circuit,
    now: Duration,
    apart: Duration,
    chance: StdRng,
}

impl Calls {
    fn new(per_second: u32, seed: u64) -> Self {
        let (apart, chance) = (Duration::from_secs(1) / per_second, StdRng::seed_from_u64(seed));
        let mut calls = Self { circuit: Circuit::default(), now: Duration::ZERO, apart, chance };
        calls.make(1, |_| (Operation::Redeem, CallSignal::Success));
        assert_eq!(calls.circuit.state(), State::Closed);
        calls
    }

    /// This many calls; the time from the first one until the circuit opened, if it did.
    fn make(
        &mut self,
        count: usize,
        mut answer: impl FnMut(&mut StdRng) -> (Operation, CallSignal),
    ) -> Option<Duration> {
        let start = self.now;
        for _ in 0..count {
            self.now += self.apart;
            if let Some(grant) = self.circuit.try_pass(self.now) {
                let (operation, sign) = answer(&mut self.chance);
                self.circuit.record_call(grant, operation, sign, self.now);
            }
            if matches!(self.circuit.state(), State::Open { .. }) {
                return Some(self.now - start);
            }
        }
        None
    }
}

fn fails(share: f64, trouble: FailureKind) -> impl FnMut(&mut StdRng) -> (Operation, CallSignal) {
    move |chance| match chance.random_bool(share) {
        true => (Operation::Redeem, CallSignal::Failing(trouble)),
        false => (Operation::Redeem, CallSignal::Success),
    }
}

#[test]
fn half_failing_never_opens_it_in_a_million_calls() {
    for (per_second, seed) in [(5, 1), (50, 2), (500, 3)] {
        let mut calls = Calls::new(per_second, seed);
        let opened = calls.make(1_000_000, fails(0.35, FailureKind::ServerError));
        assert_eq!(opened, None, "at {per_second} a second, seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn nine_in_ten_failing_open_it_in_two_seconds(
        seed: u64, well in 0..20_000_usize, trouble in prop::sample::select(TROUBLES.to_vec()),
        per_second in 100..1_000_u32
    ) {
        let mut calls = Calls::new(per_second, seed);
        calls.make(well, fails(0.0, trouble));
        let opened = calls.make(2 * per_second as usize, fails(0.9, trouble));
        prop_assert!(opened.is_some());
        let State::Open { cause, .. } = calls.circuit.state() else { return Err(TestCaseError::fail("closed")) };
        prop_assert_eq!(cause, CircuitCause::Failing(trouble));
    }

    #[test]
    fn nothing_but_failures_open_it_in_a_second(
        seed: u64, well in 0..20_000_usize, trouble in prop::sample::select(TROUBLES.to_vec()),
        per_second in 30..1_000_u32
    ) {
        let mut calls = Calls::new(per_second, seed);
        calls.make(well, fails(0.0, trouble));
        let opened = calls.make(per_second as usize, fails(1.0, trouble));
        prop_assert!(opened.is_some_and(|after| after <= Duration::from_secs(1)), "{opened:?}");
    }

    #[test]
    fn a_proxy_that_lets_queries_through_opens_it_in_a_second(seed: u64, per_second in 60..1_000_u32) {
        let mut calls = Calls::new(per_second, seed);
        calls.make(5_000, fails(0.0, FailureKind::NoResponse));
        let mut nth = 0;
        let opened = calls.make(per_second as usize, |_| {
            nth += 1;
            match nth % 2 {
                0 => (Operation::Query, CallSignal::QuerySuccess),
                _ => (Operation::Redeem, CallSignal::Failing(FailureKind::Unverified)),
            }
        });
        prop_assert!(opened.is_some(), "at {per_second} a second");
        // A query that gets through does not show that uses do.
        calls.now += Duration::from_secs(1);
        for _ in 0..3 {
            calls.make(1, |_| (Operation::Query, CallSignal::QuerySuccess));
            let cause = CircuitCause::Failing(FailureKind::Unverified);
            prop_assert_eq!(calls.circuit.state(), State::HalfOpen { cause, probing: false });
        }
        calls.make(1, |_| (Operation::Redeem, CallSignal::Success));
        prop_assert_eq!(calls.circuit.state(), State::Closed);
    }

    /// Load ends while a few coupons still fail, or comes back one by one.
    #[test]
    fn retries_that_fail_again_do_not_open_it(seed: u64, retries in 1..60_u32, failure in prop::sample::select(TROUBLES.to_vec())) {
        let mut calls = Calls::new(300, seed);
        prop_assert_eq!(calls.make(3_000, fails(0.1, failure)), None);
        calls.apart = Duration::from_secs(1) / retries;
        for _ in 0..5 * retries {
            calls.now += calls.apart;
            let grant = calls.circuit.try_pass(calls.now);
            prop_assert!(grant.is_some());
            calls.circuit.record_repeated_failure(grant.unwrap(), Operation::Redeem, failure, calls.now);
        }
        prop_assert_eq!(calls.circuit.state(), State::Closed);
    }

    /// An outage that few commands meet, again and again.
    #[test]
    fn retries_open_it_when_nothing_succeeds_any_more(seed: u64, retries in 5..60_u32, failure in prop::sample::select(TROUBLES.to_vec())) {
        let mut calls = Calls::new(300, seed);
        prop_assert_eq!(calls.make(3_000, fails(0.1, failure)), None);
        calls.apart = Duration::from_secs(1) / retries;
        let begin = calls.now;
        while calls.circuit.state() == State::Closed && calls.now - begin < Duration::from_secs(20) {
            calls.now += calls.apart;
            let grant = calls.circuit.try_pass(calls.now).unwrap();
            calls.circuit.record_repeated_failure(grant, Operation::Redeem, failure, calls.now);
        }
        let opened = calls.now - begin;
        prop_assert!((10..16).contains(&opened.as_secs()), "open after {opened:?}");
    }

    #[test]
    fn a_blip_does_not_open_it(seed: u64, millis in 1..400_u64) {
        let mut calls = Calls::new(500, seed);
        calls.make(5_000, fails(0.0, FailureKind::NoResponse));
        prop_assert_eq!(calls.make(millis as usize / 2, fails(1.0, FailureKind::NoResponse)), None);
        prop_assert_eq!(calls.make(10_000, fails(0.2, FailureKind::NoResponse)), None);
    }
}

/// What calls come back with, when they come back.
type UnderWay = BinaryHeap<Reverse<(Duration, u64)>>;

/// Commands without end, at the limit and with this many at once, through an outage.
fn outage(lasts: Duration, silent: Option<Duration>, seed: u64) -> (Duration, Vec<Duration>, Vec<Duration>) {
    const AT_ONCE: usize = 200;
    let second = Duration::from_secs(1);
    let (from, to) = (10 * second, 10 * second + lasts);
    let mut chance = StdRng::seed_from_u64(seed);
    let (mut circuit, mut limit) = (Circuit::default(), RateLimit::new(500.0));
    limit.join(1, Duration::ZERO);
    let mut grants: Vec<(Grant, CallSignal)> = Vec::new();
    let mut under_way = UnderWay::new();
    let (mut calls, mut successes) = (Vec::new(), Vec::new());
    let mut now = Duration::ZERO;
    while now < to + 15 * second {
        while let Some(Reverse((at, nth))) = under_way.peek().copied()
            && at <= now
        {
            under_way.pop();
            let (grant, sign) = grants[nth as usize];
            circuit.record_call(grant, Operation::Redeem, sign, now);
            if sign == CallSignal::Success {
                successes.push(now);
            }
        }
        while under_way.len() < AT_ONCE {
            let Some(grant) = circuit.try_pass(now) else { break };
            if limit.grant(now, || true).is_err() {
                circuit.abandon(grant);
                break;
            }
            let down = now >= from && now < to;
            let (sign, took) = match (down, silent) {
                (false, _) => (CallSignal::Success, Duration::from_millis(chance.random_range(20..120))),
                (true, None) => (CallSignal::Failing(FailureKind::ServerError), Duration::from_millis(20)),
                (true, Some(timeout)) => (CallSignal::Failing(FailureKind::NoResponse), timeout),
            };
            calls.push(now);
            under_way.push(Reverse((now + took, grants.len() as u64)));
            grants.push((grant, sign));
        }
        circuit.tick(now);
        now += Duration::from_millis(1);
    }
    (to, calls, successes)
}

#[test]
fn an_outage_ends_in_two_seconds_and_is_forgotten_in_ten() {
    let second = Duration::from_secs(1);
    for silent in [None, Some(5 * second), Some(10 * second)] {
        for seed in 0..5 {
            let (back, calls, successes) = outage(60 * second, silent, seed);
            let first = *successes.iter().find(|at| **at >= back).unwrap();
            assert!(first - back <= 2 * second, "{:?} after its return, {silent:?}", first - back);
            let full =
                successes.iter().filter(|&at| (back + 10 * second..back + 12 * second).contains(at)).count();
            assert!(full >= 950, "{full} in two seconds, {silent:?}");
            let during = calls.iter().filter(|&at| (back - 40 * second..back).contains(at)).count();
            assert!(during <= 45, "{during} calls in 40 s of an outage, {silent:?}");
            let later = |at: Duration| calls.partition_point(|other| *other < at + second);
            let busiest = calls.iter().enumerate().map(|(nth, at)| later(*at) - nth).max().unwrap();
            assert!(busiest <= 500, "{busiest} in a second");
        }
    }
}
