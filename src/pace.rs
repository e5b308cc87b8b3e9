//! How fast calls are made: one limiter per merchant, this instance's share of it, and a budget for retries.
//!
//! The provider allows so many calls per second and merchant. Every tenth call is an inquiry's if one waits, so that
//! finding out is never starved by trying; otherwise the longest waiting goes first. A 429 halves the pace, quiet
//! time restores it.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{Notify, oneshot};

use crate::verdict::Question;

/// Part of the allowed rate that is used: timers are late by up to a millisecond and must be allowed to catch up
/// without ever passing the limit in any one second.
const USED_SHARE: f64 = 0.985;
/// How much of a second's calls may be caught up at once.
const CATCH_UP_SHARE: f64 = 0.01;
/// Every so manieth call is an inquiry's, if one waits.
const INQUIRY_TURN: u64 = 10;
/// The pace never falls below this part of the allowed one.
const SLOWEST_FACTOR: f64 = 1.0 / 64.0;
/// One restoring step after so much time without a 429.
const RESTORE_AFTER: Duration = Duration::from_secs(10);
const RESTORE_BY: f64 = 1.5;

/// The limiter. Cheap to clone; all clones share one pace.
#[derive(Clone)]
pub struct Pacer(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    arrived: Notify,
    rate: Mutex<Rate>,
}

#[derive(Default)]
struct Queues {
    waiting: [VecDeque<(u64, oneshot::Sender<()>)>; 2],
    arrivals: u64,
    turns: u64,
}

struct Rate {
    allowed: f64,
    instances: u32,
    factor: f64,
    slowed_at: Option<Instant>,
    limiter: Arc<DefaultDirectRateLimiter>,
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.allowed * self.factor / f64::from(self.instances)
    }

    fn renew(&mut self) {
        self.limiter = Arc::new(limiter(self.per_second()));
    }
}

fn limiter(per_second: f64) -> DefaultDirectRateLimiter {
    let period = Duration::from_secs_f64(1.0 / (per_second * USED_SHARE).clamp(0.001, 1e6));
    // Two at least: with one, every millisecond by which a timer is late would be lost.
    let burst = NonZeroU32::new((per_second * CATCH_UP_SHARE) as u32).unwrap_or(NonZeroU32::MIN);
    let burst = burst.max(NonZeroU32::MIN.saturating_add(1));
    let quota = Quota::with_period(period).unwrap_or(Quota::per_second(NonZeroU32::MIN));
    RateLimiter::direct(quota.allow_burst(burst))
}

impl Pacer {
    /// A pacer for `calls_per_second` of the whole merchant. Its clockwork runs until the last clone is gone.
    pub fn start(calls_per_second: NonZeroU32) -> Self {
        let allowed = f64::from(calls_per_second.get());
        let shared = Arc::new(Shared {
            queues: Mutex::default(),
            arrived: Notify::new(),
            rate: Mutex::new(Rate {
                allowed,
                instances: 1,
                factor: 1.0,
                slowed_at: None,
                limiter: Arc::new(limiter(allowed)),
            }),
        });
        tokio::spawn(dispense(Arc::downgrade(&shared)));
        Self(shared)
    }

    /// Waits for the turn of one call. Giving up the wait gives up the place.
    pub async fn turn(&self, question: Question) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut queues = lock(&self.0.queues);
            queues.arrivals += 1;
            let arrival = queues.arrivals;
            queues.waiting[place(question)].push_back((arrival, sender));
        }
        self.0.arrived.notify_one();
        // The clockwork only ends with the last clone, and one is borrowed here.
        let _ = receiver.await;
    }

    /// The provider said "too frequent".
    pub fn slow_down(&self, now: Instant) {
        let mut rate = lock(&self.0.rate);
        // One wave of 429 answers to calls already under way is one sign, not many.
        if rate.slowed_at.is_some_and(|at| now.duration_since(at) < Duration::from_secs(1)) {
            return;
        }
        rate.slowed_at = Some(now);
        rate.factor = (rate.factor / 2.0).max(SLOWEST_FACTOR);
        rate.renew();
    }

    /// Lets quiet time restore the pace, and takes this instance's share of it.
    pub fn adjust(&self, instances: u32, now: Instant) {
        let mut rate = lock(&self.0.rate);
        let restored = rate.slowed_at.filter(|at| now.duration_since(*at) >= RESTORE_AFTER).is_some();
        if restored {
            rate.factor = (rate.factor * RESTORE_BY).min(1.0);
            rate.slowed_at = (rate.factor < 1.0).then_some(now);
        }
        let instances = instances.max(1);
        if restored || rate.instances != instances {
            rate.instances = instances;
            rate.renew();
        }
    }

    /// Calls per second that this instance makes at most now.
    pub fn per_second(&self) -> f64 {
        lock(&self.0.rate).per_second()
    }
}

/// Gives out turns, one by one, while anybody holds the pacer.
async fn dispense(shared: std::sync::Weak<Shared>) {
    let clock = DefaultClock::default();
    loop {
        let Some(held) = shared.upgrade() else { return };
        let limiter = lock(&held.rate).limiter.clone();
        let idle = lock(&held.queues).is_empty();
        if idle {
            // Bounded, so that the clockwork ends soon after the last clone.
            let _ = tokio::time::timeout(Duration::from_secs(1), held.arrived.notified()).await;
            continue;
        }
        match limiter.check() {
            Ok(()) => lock(&held.queues).serve(),
            Err(early) => {
                drop(held);
                tokio::time::sleep(early.wait_time_from(clock.now())).await;
            }
        }
    }
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Gives one turn to whoever is next and still waits.
    fn serve(&mut self) {
        loop {
            let [redeem, inquire] = &self.waiting;
            let next = match (redeem.front(), inquire.front()) {
                (None, None) => return,
                (Some(_), None) => Question::Redeem,
                (None, Some(_)) => Question::Inquire,
                (Some(_), Some(_)) if self.turns.is_multiple_of(INQUIRY_TURN) => Question::Inquire,
                (Some((first, _)), Some((second, _))) if first < second => Question::Redeem,
                (Some(_), Some(_)) => Question::Inquire,
            };
            if let Some((_, turn)) = self.waiting[place(next)].pop_front()
                && turn.send(()).is_ok()
            {
                self.turns += 1;
                return;
            }
        }
    }
}

fn place(question: Question) -> usize {
    match question {
        Question::Redeem => 0,
        Question::Inquire => 1,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many retries are allowed: a share of the first attempts. What exceeds it waits in a tier, so that an outage
/// is never answered with a multiple of the usual calls.
#[derive(Debug)]
pub struct Budget {
    share: f64,
    tokens: Mutex<f64>,
}

/// Retries that are always allowed after quiet.
const BUDGET_MAX: f64 = 100.0;

impl Budget {
    /// A budget of `share` retries per first attempt.
    pub fn new(share: f64) -> Self {
        Self { share, tokens: Mutex::new(BUDGET_MAX) }
    }

    /// A first attempt was made.
    pub fn earn(&self) {
        let mut tokens = lock(&self.tokens);
        *tokens = (*tokens + self.share).min(BUDGET_MAX);
    }

    /// Whether one more retry is allowed; if so it is spent.
    pub fn spend(&self) -> bool {
        let mut tokens = lock(&self.tokens);
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_first_attempts() {
        let budget = Budget::new(0.2);
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), 100);
        for _ in 0..50 {
            budget.earn();
        }
        let spent = (0..1_000).filter(|_| budget.spend()).count();
        assert!((9..=10).contains(&spent), "{spent}");
    }

    #[test]
    fn every_tenth_turn_is_an_inquirys_and_the_rest_go_by_arrival() {
        let mut queues = Queues::default();
        let mut receivers = Vec::new();
        for arrival in 0..40 {
            let (sender, receiver) = oneshot::channel();
            let question = if arrival < 20 { Question::Redeem } else { Question::Inquire };
            queues.waiting[place(question)].push_back((arrival, sender));
            receivers.push((question, receiver));
        }
        queues.turns = 1;
        for _ in 0..20 {
            queues.serve();
        }
        let served = |wanted| {
            let each = receivers.iter_mut().filter(|(question, _)| *question == wanted);
            each.filter_map(|(_, receiver)| receiver.try_recv().ok()).count()
        };
        let mut served = served;
        assert_eq!((served(Question::Redeem), served(Question::Inquire)), (18, 2));
    }

    #[test]
    fn a_waiter_that_gave_up_takes_no_turn() {
        let mut queues = Queues::default();
        let (gone, _) = oneshot::channel();
        let (there, mut receiver) = oneshot::channel();
        queues.waiting[0].push_back((1, gone));
        queues.waiting[0].push_back((2, there));
        queues.serve();
        assert!(receiver.try_recv().is_ok());
    }

    #[tokio::test]
    async fn a_429_halves_the_pace_and_quiet_restores_it() {
        let pacer = Pacer::start(NonZeroU32::new(100).unwrap());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        pacer.slow_down(at(0));
        pacer.slow_down(at(0));
        assert_eq!(pacer.per_second(), 50.0);
        pacer.slow_down(at(2));
        assert_eq!(pacer.per_second(), 25.0);
        for second in (12..60).step_by(10) {
            pacer.adjust(2, at(second));
        }
        assert_eq!(pacer.per_second(), 50.0, "half the merchant's pace, for two instances");
    }
}
