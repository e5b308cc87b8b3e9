//! The rate limiter of this instance: its share of the merchant's limit, with priorities.
//!
//! The first call of a command goes first: a failing command needs several calls and must not delay the others. Every
//! tenth permit is for a query and every tenth for another attempt if one waits, so that neither starves; within a
//! priority the order is first in, first out. [`crate::policy::rate_limit`] decides when a call may go; this module has
//! the clock and the waiting calls.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::policy::adaptive_rate::CallRecord;
use crate::policy::rate_limit::RateLimit;
use crate::runtime::counted::Counted;

/// One permit in this many is for a query, and one for another attempt, if one waits.
const QUERY_EVERY: u64 = 10;
/// More calls than this that wait behind first calls are a crowd: they hold permits that first calls need.
const CROWD: usize = 50;

/// The priority of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// The first call of a command.
    First,
    /// Another attempt to redeem.
    Again,
    /// A query.
    Query,
}

/// The limiter. Cheap to clone; all clones share one rate.
#[derive(Clone)]
pub struct RateLimiter(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    arrived: Notify,
    limit: Mutex<RateLimit>,
    /// How many calls wait in [`RateLimiter::acquire_within`].
    hurried: AtomicUsize,
    /// The start of the time that [`RateLimit`] counts.
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

    /// Waits for the permit of one call. A dropped wait loses its place.
    pub async fn acquire(&self, rank: Priority) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut queues = lock(&self.0.queues);
            // If no call waits and the rate allows it, the call goes without a task switch.
            if queues.is_empty() && self.0.grant(|| true).is_ok() {
                queues.turns += 1;
                return;
            }
            queues.arrivals += 1;
            let arrival = queues.arrivals;
            queues.waiting[rank as usize].push_back((arrival, sender));
        }
        self.0.arrived.notify_one();
        // The clockwork ends with the last clone, and one is borrowed here.
        let _ = receiver.await;
    }

    /// The same with a time limit: false if there is no permit within `patience`, and at once if a crowd waits already. Of
    /// a flood only a crowd waits; the others continue without a call.
    pub async fn acquire_within(&self, rank: Priority, patience: Duration) -> bool {
        let waiting = Counted::start(&self.0.hurried);
        waiting.before < CROWD && tokio::time::timeout(patience, self.acquire(rank)).await.is_ok()
    }

    /// Whether so large a crowd waits behind first calls that another call should come much later.
    pub fn is_congested(&self) -> bool {
        let [first, again, queries] = &lock(&self.0.queues).waiting;
        !first.is_empty() && again.len() + queries.len() > CROWD
    }

    /// Records the response to a call that was sent at `sent_at`: `throttled` if it was a 429, `again` if its command had
    /// been throttled before.
    pub fn record(&self, sent_at: Instant, throttled: bool, again: bool) {
        let (sent_at, now) = (self.0.time(sent_at), self.0.time(now()));
        lock(&self.0.limit).record(CallRecord { sent_at, throttled, throttled_before: again }, now);
    }

    /// This instance begins to consume, with `consumers` in all. If it is not alone, the others must count it before it
    /// uses its share, or together they would exceed the limit.
    pub fn join(&self, instances: u32, now: Instant) {
        lock(&self.0.limit).join(instances, self.0.time(now));
    }

    /// Whether it waits until the others have counted it. A new count may shorten the wait.
    pub fn is_joining(&self) -> bool {
        lock(&self.0.limit).is_joining(self.0.time(now()))
    }

    /// Sets this instance's share by the number of consumers.
    pub fn adjust(&self, instances: u32, now: Instant) {
        lock(&self.0.limit).adjust(instances, self.0.time(now));
    }

    /// Calls per second that this instance makes at most now.
    pub fn per_second(&self) -> f64 {
        lock(&self.0.limit).per_second(self.0.time(now()))
    }

    /// The part of its share that this instance uses, and its recent share of 429.
    pub fn reduced(&self) -> (f64, f64) {
        lock(&self.0.limit).reduced(self.0.time(now()))
    }
}

/// Grants permits to waiting calls, one by one, while a clone of the rate limiter exists.
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

    /// The priority that is next; `None` if no call waits.
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

    /// Grants one permit to the next call that still waits; false if there is no such call.
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

/// The runtime's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the first permits each priority gets while all of them wait.
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
        // Although the others have waited longer.
        assert_eq!(served(&[Priority::Query, Priority::Again, Priority::First], 50), [40, 5, 5]);
        assert_eq!(served(&[Priority::First, Priority::Query], 20), [18, 0, 2]);
        assert_eq!(served(&[Priority::Again, Priority::Query], 20), [0, 18, 2]);
        assert_eq!(served(&[Priority::Query, Priority::Again], 20), [0, 2, 18]);
    }

    #[tokio::test(start_paused = true)]
    async fn crowd_waits_and_the_rest_of_a_flood_goes_without() {
        let rate_limiter = RateLimiter::start(NonZeroU32::new(1).unwrap());
        let patience = Duration::from_millis(10);
        // Time does not pass for the limit, so only the first gets a permit.
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
