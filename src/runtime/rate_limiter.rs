//! How fast calls are made: one limiter per merchant, this instance's share of it, and a budget for retries.
//!
//! The provider allows this many calls per second and merchant. First calls go first: commands in trouble need several,
//! and must not keep waiting those that nothing is wrong with. Every tenth call is a query's and every tenth another
//! try's if one waits, so that none starves; otherwise the longest waiting goes first. When a call may go is decided in
//! [`crate::policy::rate_limit`]; here are the clock and those who wait.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::policy::adaptive_rate::Response;
use crate::policy::rate_limit::RateLimit;

/// Every so manieth call is a query's, and as often it is another try's, if one waits.
const QUERY_EVERY: u64 = 10;
/// More calls than this that wait behind first ones are too many: they hold what first ones need.
const CROWD: usize = 50;

/// How a call waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// The first call of a command.
    First,
    /// Another try to redeem.
    Again,
    /// A query.
    Query,
}

/// The limiter. Cheap to clone; all clones share one pace.
#[derive(Clone)]
pub struct RateLimiter(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    arrived: Notify,
    limit: Mutex<RateLimit>,
    /// How many wait in [`Rate_limiter::turn_within`].
    hurried: AtomicUsize,
    /// When the time of [`RateLimit`] began.
    origin: Instant,
}

impl Shared {
    fn time(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.origin)
    }

    fn grant(&self, serve: impl FnOnce() -> bool) -> Result<(), Duration> {
        lock(&self.limit).grant(self.time(now()), serve)
    }
}

#[derive(Default)]
struct Queues {
    waiting: [VecDeque<(u64, oneshot::Sender<()>)>; 3],
    arrivals: u64,
    turns: u64,
}

impl RateLimiter {
    /// A rate limiter for `calls_per_second` of the whole merchant. Its clockwork runs until the last clone is gone.
    pub fn start(calls_per_second: NonZeroU32) -> Self {
        let (rate_limiter, clockwork) = Self::with_clockwork(calls_per_second);
        tokio::spawn(clockwork);
        rate_limiter
    }

    /// The same, with the clockwork that the caller must run.
    pub fn with_clockwork(calls_per_second: NonZeroU32) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let shared = Arc::new(Shared {
            queues: Mutex::default(),
            arrived: Notify::new(),
            limit: Mutex::new(RateLimit::new(f64::from(calls_per_second.get()))),
            hurried: AtomicUsize::new(0),
            origin: now(),
        });
        let clockwork = grant_permits(Arc::downgrade(&shared));
        (Self(shared), clockwork)
    }

    /// Waits for the turn of one call. Giving up the wait gives up the place.
    pub async fn acquire(&self, rank: Priority) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut queues = lock(&self.0.queues);
            // Where nobody waits and the pace allows it, it goes without a change of tasks.
            if queues.is_empty() && self.0.grant(|| true).is_ok() {
                queues.turns += 1;
                return;
            }
            queues.arrivals += 1;
            let arrival = queues.arrivals;
            queues.waiting[rank as usize].push_back((arrival, sender));
        }
        self.0.arrived.notify_one();
        // The clockwork only ends with the last clone, and one is borrowed here.
        let _ = receiver.await;
    }

    /// The same for a call that is worth no long wait: false if it is not its turn within `patience`, and at once where
    /// a crowd waits so already. Of a flood only a crowd waits, and the rest goes on without a call.
    pub async fn acquire_within(&self, rank: Priority, patience: Duration) -> bool {
        let waiting = Waiter::join(&self.0.hurried);
        waiting.before < CROWD && tokio::time::timeout(patience, self.acquire(rank)).await.is_ok()
    }

    /// Whether this many calls wait behind first ones that another one had better come again much later.
    pub fn is_crowded(&self) -> bool {
        let [first, again, queries] = &lock(&self.0.queues).waiting;
        !first.is_empty() && again.len() + queries.len() > CROWD
    }

    /// A call that was sent then was answered, with a 429 if `throttled`; `again` if its command was throttled before.
    pub fn record(&self, sent_at: Instant, throttled: bool, again: bool) {
        let (sent_at, now) = (self.0.time(sent_at), self.0.time(now()));
        lock(&self.0.limit).record(Response { sent_at, throttled, again }, now);
    }

    /// This instance has begun to consume, for the first time or again, with this many consumers in all. If it is not
    /// alone the others must count it before it makes calls at its pace, or together they would exceed the limit.
    pub fn join(&self, instances: u32, now: Instant) {
        lock(&self.0.limit).join(instances, self.0.time(now));
    }

    /// Whether it waits for the others to count it. What it sees of them meanwhile may shorten that.
    pub fn is_joining(&self) -> bool {
        lock(&self.0.limit).is_joining(self.0.time(now()))
    }

    /// Takes this instance's share among this many.
    pub fn adjust(&self, instances: u32, now: Instant) {
        lock(&self.0.limit).adjust(instances, self.0.time(now));
    }

    /// Calls per second that this instance makes at most now.
    pub fn per_second(&self) -> f64 {
        lock(&self.0.limit).per_second(self.0.time(now()))
    }

    /// The part of its share that this instance uses, and the share of 429 that it met lately.
    pub fn reduced(&self) -> (f64, f64) {
        lock(&self.0.limit).reduced(self.0.time(now()))
    }
}

/// One of those who wait in [`Rate_limiter::turn_within`], until it is dropped.
struct Waiter<'a> {
    all: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiter<'a> {
    fn join(all: &'a AtomicUsize) -> Self {
        Self { all, before: all.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Gives out turns, one by one, to those that could not go at once, while anybody holds the rate limiter.
async fn grant_permits(shared: std::sync::Weak<Shared>) {
    loop {
        let Some(held) = shared.upgrade() else { return };
        let next = {
            let mut queues = lock(&held.queues);
            match queues.is_empty() {
                true => None,
                false => Some(held.grant(|| queues.serve())),
            }
        };
        match next {
            // Bounded, so that the clockwork ends soon after the last clone.
            None => {
                let _ = tokio::time::timeout(Duration::from_secs(1), held.arrived.notified()).await;
            }
            Some(Ok(())) => {}
            Some(Err(pause)) => {
                drop(held);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Whose turn it is; `None` where nobody waits.
    fn next(&self) -> Option<Priority> {
        let first = |rank: Priority| self.waiting[rank as usize].front().map(|(arrival, _)| (*arrival, rank));
        let reserved = match self.turns % QUERY_EVERY {
            0 => first(Priority::Query),
            nth if nth == QUERY_EVERY / 2 => first(Priority::Again),
            _ => None,
        };
        let later =
            || [Priority::Again, Priority::Query].into_iter().filter_map(first).min_by_key(|(at, _)| *at);
        reserved.or_else(|| first(Priority::First)).or_else(later).map(|(_, rank)| rank)
    }

    /// Gives one turn to anyone who is next and still waits; false if nobody does.
    fn serve(&mut self) -> bool {
        loop {
            let Some(next) = self.next() else { return false };
            if let Some((_, turn)) = self.waiting[next as usize].pop_front()
                && turn.send(()).is_ok()
            {
                self.turns += 1;
                return true;
            }
        }
    }
}

/// The time of the runtime: tests hold it still.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many retries are allowed: a share of the first attempts. What exceeds it waits in a delay, so that an outage
/// is never answered with a multiple of the usual calls.
#[derive(Debug)]
pub struct RetryBudget {
    share: f64,
    tokens: Mutex<f64>,
}

/// Retries that are always allowed after quiet.
const BUDGET_MAX: f64 = 100.0;

impl RetryBudget {
    /// A budget of `share` retries per first attempt.
    pub fn new(share: f64) -> Self {
        Self { share, tokens: Mutex::new(BUDGET_MAX) }
    }

    /// The first attempt of a command is made.
    pub fn record_first_attempt(&self) {
        let mut tokens = lock(&self.tokens);
        *tokens = (*tokens + self.share).min(BUDGET_MAX);
    }

    /// Whether one more retry is allowed; if so it is spent.
    pub fn try_spend(&self) -> bool {
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
        let budget = RetryBudget::new(0.2);
        assert_eq!((0..1_000).filter(|_| budget.try_spend()).count(), 100);
        for _ in 0..50 {
            budget.record_first_attempt();
        }
        let spent = (0..1_000).filter(|_| budget.try_spend()).count();
        assert!((9..=10).contains(&spent), "{spent}");
    }

    /// Of the first this many turns, how many each rank has, where all of them wait.
    fn served(ranks: &[Priority], turns: usize) -> [usize; 3] {
        let mut queues = Queues::default();
        let mut receivers = Vec::new();
        for (nth, rank) in ranks.iter().flat_map(|rank| std::iter::repeat_n(*rank, 100)).enumerate() {
            let (sender, receiver) = oneshot::channel();
            queues.waiting[rank as usize].push_back((nth as u64, sender));
            receivers.push((rank, receiver));
        }
        queues.turns = 1;
        for _ in 0..turns {
            queues.serve();
        }
        let mut served = [0; 3];
        for (rank, receiver) in &mut receivers {
            served[*rank as usize] += usize::from(receiver.try_recv().is_ok());
        }
        served
    }

    #[test]
    fn first_calls_go_first_and_none_starves() {
        // However long the others wait already.
        assert_eq!(served(&[Priority::Query, Priority::Again, Priority::First], 50), [40, 5, 5]);
        assert_eq!(served(&[Priority::First, Priority::Query], 20), [18, 0, 2]);
        assert_eq!(served(&[Priority::Again, Priority::Query], 20), [0, 18, 2]);
        assert_eq!(served(&[Priority::Query, Priority::Again], 20), [0, 2, 18]);
    }

    #[tokio::test(start_paused = true)]
    async fn crowd_waits_and_the_rest_of_a_flood_goes_without() {
        let rate_limiter = RateLimiter::start(NonZeroU32::new(1).unwrap());
        let patience = Duration::from_millis(10);
        // Time stands still for the limit, so nobody but the first can have a turn.
        let flood = (0..10 * CROWD).map(|_| rate_limiter.acquire_within(Priority::Query, patience));
        let begun = tokio::time::Instant::now();
        let turns = futures_util::future::join_all(flood).await;
        assert!(turns.iter().filter(|had| **had).count() <= 1);
        assert_eq!(begun.elapsed().as_millis(), 10, "one patience for all, not one after another");
        let waiting = lock(&rate_limiter.0.queues).waiting[Priority::Query as usize].len();
        assert!(waiting <= CROWD, "{waiting}");
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
}
