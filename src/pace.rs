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

/// Calls are counted over so much more than a second, for they do not arrive as evenly as they set out.
const WINDOW_STRETCH: f64 = 1.014;
/// A window has room for so many calls at least, or it is made longer than a second.
const WINDOW_CALLS_MIN: f64 = 20.0;
/// How much faster than allowed calls may follow each other to catch up, within what the window leaves. A machine
/// with much else to do runs tens of milliseconds late, and what could not be caught up would be lost.
const HASTE: f64 = 1.4;
/// So much lateness of a timer is made up for at once.
const CATCH_UP: Duration = Duration::from_millis(10);
/// Cells of the limiter that make one call, so that fractions of a call can be caught up.
const CELLS: NonZeroU32 = NonZeroU32::new(100).expect("100 is not 0");
/// How long it takes until the others have counted a newcomer: they look once a second, and a bit.
const JOINING: Duration = Duration::from_millis(1_500);
/// How much slower than its share an instance goes that is back after it lost the broker, for as long.
const BACK_SLOWER: f64 = 10.0;
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
    joining: Option<Joining>,
    /// Whether it consumed before.
    known: bool,
    limiter: DefaultDirectRateLimiter,
    granted: Granted,
}

/// The others may not have counted this instance yet.
#[derive(Debug, Clone, Copy)]
struct Joining {
    until: Instant,
    /// A newcomer makes no call. One that is back is mostly back with all the others, after the broker was gone, and
    /// in hand is what nobody else can settle: it makes a few.
    apart: Option<Duration>,
}

impl Joining {
    /// When the next call may be made, the last having been made at `last`.
    fn next(self, last: Option<Instant>) -> Option<Instant> {
        match (self.apart, last) {
            (None, _) => Some(self.until),
            (Some(apart), Some(last)) => Some(self.until.min(last + apart)),
            (Some(_), None) => None,
        }
    }
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.allowed * self.factor / f64::from(self.instances)
    }

    fn renew(&mut self) {
        self.limiter = RateLimiter::direct(quota(self.per_second()));
    }

    /// Lets one call go, if it may: `serve` tells whether anybody took the turn.
    ///
    /// # Errors
    /// How long to wait before the next look.
    fn grant(&mut self, now: Instant, serve: impl FnOnce() -> bool) -> Result<(), Duration> {
        let window = Window::of(self.per_second());
        let joined = self.joining.and_then(|joining| joining.next(self.granted.last()));
        let full = self.granted.full_until(window);
        if let Some(until) = joined.max(full).filter(|until| *until > now) {
            // Bounded, because the pace may rise meanwhile.
            return Err(until.duration_since(now).min(Duration::from_millis(100)));
        }
        match self.limiter.check_n(CELLS) {
            Ok(Ok(())) => {
                if serve() {
                    self.granted.note(now, window);
                }
                Ok(())
            }
            Ok(Err(early)) => Err(early.wait_time_from(DefaultClock::default().now())),
            // The burst is never less than the cells of one call; a pause is all that could be done about it.
            Err(_) => Err(CATCH_UP),
        }
    }
}

/// How close calls may follow each other: the quota in cells, [`CELLS`] for each call.
fn quota(per_second: f64) -> Quota {
    let cells_per_second = (per_second * HASTE).clamp(0.001, 1e5) * f64::from(CELLS.get());
    let catch_up = (CATCH_UP.as_secs_f64() * cells_per_second) as u32;
    let cell = Duration::from_secs_f64(1.0 / cells_per_second);
    // A period is only refused where it is zero, and the clamp above keeps it from that.
    Quota::with_period(cell).unwrap_or(Quota::per_second(CELLS)).allow_burst(CELLS.saturating_add(catch_up))
}

/// How many calls may go within which time, wherever that time begins.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    calls: usize,
    time: Duration,
}

impl Window {
    fn of(per_second: f64) -> Self {
        let per_second = per_second.clamp(0.001, 1e5);
        let seconds = (WINDOW_CALLS_MIN / per_second).max(1.0);
        // Rounded down: together the instances must not exceed what one would be allowed. The small addition is for
        // products such as 19.999999.
        let calls = (per_second * seconds + 1e-6) as usize;
        Self { calls: calls.max(1), time: Duration::from_secs_f64(seconds * WINDOW_STRETCH) }
    }
}

/// When calls were last made. It outlasts changes of the pace.
#[derive(Debug, Default)]
struct Granted(VecDeque<Instant>);

impl Granted {
    /// The time before which the window is full.
    fn full_until(&self, window: Window) -> Option<Instant> {
        let first = self.0.len().checked_sub(window.calls)?;
        self.0.get(first).map(|at| *at + window.time)
    }

    fn last(&self) -> Option<Instant> {
        self.0.back().copied()
    }

    fn note(&mut self, at: Instant, window: Window) {
        self.0.push_back(at);
        let surplus = self.0.len().saturating_sub(window.calls);
        self.0.drain(..surplus);
    }
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
                joining: None,
                known: false,
                limiter: RateLimiter::direct(quota(allowed)),
                granted: Granted::default(),
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
            // Where nobody waits and the pace allows it, it goes without a change of tasks.
            if queues.is_empty() && lock(&self.0.rate).grant(Instant::now(), || true).is_ok() {
                queues.turns += 1;
                return;
            }
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

    /// This instance has begun to consume, for the first time or again, with so many consumers in all. Where it is not
    /// alone the others must count it before it makes calls at its pace, or together they would exceed the limit.
    pub fn join(&self, instances: u32, now: Instant) {
        self.adjust(instances, now);
        let mut rate = lock(&self.0.rate);
        let apart = rate.known.then(|| Duration::from_secs_f64(BACK_SLOWER / rate.per_second()));
        rate.joining = (instances > 1).then_some(Joining { until: now + JOINING, apart });
        rate.known = true;
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

/// Gives out turns, one by one, to those that could not go at once, while anybody holds the pacer.
async fn dispense(shared: std::sync::Weak<Shared>) {
    loop {
        let Some(held) = shared.upgrade() else { return };
        let next = {
            let mut queues = lock(&held.queues);
            match queues.is_empty() {
                true => None,
                false => Some(lock(&held.rate).grant(Instant::now(), || queues.serve())),
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

    /// Gives one turn to whoever is next and still waits; false where nobody does.
    fn serve(&mut self) -> bool {
        loop {
            let [redeem, inquire] = &self.waiting;
            let next = match (redeem.front(), inquire.front()) {
                (None, None) => return false,
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
                return true;
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

    /// The first attempt of a command is made.
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
    use governor::clock::FakeRelativeClock;

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

    /// Calls of one minute by a clockwork whose timers are late, by the milliseconds that chance gives.
    fn minute(per_second: f64, late: impl Fn(u64) -> u64) -> Vec<u64> {
        let clock = FakeRelativeClock::default();
        let limiter = RateLimiter::direct_with_clock(quota(per_second), clock.clone());
        let (window, mut granted) = (Window::of(per_second), Granted::default());
        let (start, mut elapsed, mut calls, mut timers) = (Instant::now(), Duration::ZERO, Vec::new(), 0);
        while elapsed < Duration::from_secs(60) {
            let now = start + elapsed;
            let wait = match granted.full_until(window).filter(|until| *until > now) {
                Some(until) => until - now,
                None => match limiter.check_n(CELLS).unwrap() {
                    Ok(()) => {
                        granted.note(now, window);
                        calls.push(elapsed.as_micros() as u64);
                        continue;
                    }
                    Err(early) => early.wait_time_from(clock.now()),
                },
            };
            timers += 1;
            let wait = wait + Duration::from_micros(late(timers));
            clock.advance(wait);
            elapsed += wait;
        }
        calls
    }

    #[test]
    fn the_pace_is_held_over_a_minute_and_passed_in_no_second_however_late_timers_are() {
        // Never late, always a millisecond, anything up to 9 ms, and now and then 50 ms.
        let lateness: [fn(u64) -> u64; 4] = [
            |_| 0,
            |_| 1_000,
            |nth| nth.wrapping_mul(6_364_136_223_846_793_005).wrapping_shr(33) % 9_000,
            |nth| if nth.is_multiple_of(400) { 50_000 } else { 100 },
        ];
        for per_second in [20.0, 50.0, 100.0, 250.0, 500.0, 1_000.0] {
            for (nth, late) in lateness.into_iter().enumerate() {
                let calls = minute(per_second, late);
                let average = calls.len() as f64 / 60.0;
                let held = (per_second * 0.98..=per_second).contains(&average);
                assert!(held, "{average} instead of {per_second}, lateness {nth}");
                let busiest = calls
                    .iter()
                    .enumerate()
                    .map(|(nth, at)| calls.partition_point(|other| *other < at + 1_000_000) - nth)
                    .max()
                    .unwrap();
                assert!(busiest as f64 <= per_second, "{busiest} in a second, lateness {nth}");
            }
        }
    }

    #[tokio::test]
    async fn a_newcomer_makes_no_call_before_the_others_have_counted_it() {
        let pacer = Pacer::start(NonZeroU32::new(100).unwrap());
        let turn = async || {
            tokio::time::timeout(Duration::from_millis(500), pacer.turn(Question::Redeem)).await.is_ok()
        };
        pacer.join(1, Instant::now());
        assert!(turn().await, "whoever is alone need not wait");
        let pacer = Pacer::start(NonZeroU32::new(100).unwrap());
        pacer.join(2, Instant::now());
        assert_eq!(pacer.per_second(), 50.0);
        let turn = async || {
            tokio::time::timeout(Duration::from_millis(500), pacer.turn(Question::Redeem)).await.is_ok()
        };
        assert!(!turn().await);
    }

    #[tokio::test]
    async fn who_is_back_makes_a_few_calls_before_the_others_have_counted_it() {
        let pacer = Pacer::start(NonZeroU32::new(100).unwrap());
        pacer.join(1, Instant::now());
        pacer.turn(Question::Redeem).await;
        let back = Instant::now();
        pacer.join(2, back);
        let mut turns = Vec::new();
        while turns.len() < 20 {
            pacer.turn(Question::Redeem).await;
            turns.push(back.elapsed());
        }
        let early = turns.iter().filter(|at| **at < JOINING).count();
        assert!((1..=8).contains(&early), "five a second for 1.5 s: {turns:?}");
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
