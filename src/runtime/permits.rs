//! How many commands are processed at once. A command that only waits releases its permit meanwhile: after the broker
//! returns, everything in hand is redelivered and may wait for the query delay, and commands that could end at once must
//! not wait behind them. But each one that waits fills the prefetch, so only some wait here; the others wait in a delay
//! queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::runtime::counted::Counted;

/// The permits of one instance.
#[derive(Debug, Clone)]
pub struct Permits {
    all: usize,
    free: Arc<Semaphore>,
    given_up: Arc<Notify>,
    /// Trusted commands that have released their permit for the first time.
    through: Arc<AtomicU16>,
    waiting: Arc<AtomicUsize>,
    /// Those of them that are trusted.
    trusted_waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

/// A permit, held until it is dropped.
#[derive(Debug)]
pub struct Permit {
    permits: Permits,
    /// `None` while it is released, or if it never held one.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether its command counts for the prefetch ramp when it waits.
    trusted: bool,
    /// Whether it has counted.
    counted: bool,
}

impl Permits {
    /// `all` permits, of an instance that holds `prefetch` commands at most.
    pub fn new(all: usize, prefetch: usize) -> Self {
        Self {
            all,
            free: Arc::new(Semaphore::new(all)),
            given_up: Arc::default(),
            through: Arc::default(),
            waiting: Arc::default(),
            trusted_waiting: Arc::default(),
            // At least half of the prefetch is for commands that can be worked on.
            waiting_max: prefetch.saturating_sub(all).max(prefetch / 2).max(1),
        }
    }

    /// A free permit, unless all are in use or promised to a command that comes back from a wait.
    pub fn acquire(&self) -> Option<Permit> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Permit { permits: self.clone(), permit: Some(permit), trusted: false, counted: false })
    }

    /// An empty permit, for a command that is only delayed.
    pub fn none(&self) -> Permit {
        Permit { permits: self.clone(), permit: None, trusted: false, counted: false }
    }

    /// Waits until a permit is released.
    pub async fn released(&self) {
        self.given_up.notified().await;
    }

    /// How many trusted commands have released their permit since the last call.
    pub fn acquire_through(&self) -> u16 {
        self.through.swap(0, Ordering::Relaxed)
    }

    /// How many trusted commands wait without a permit now.
    pub fn trusted_waiting(&self) -> usize {
        self.trusted_waiting.load(Ordering::Relaxed)
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.all - self.free.available_permits()
    }
}

impl Permit {
    /// Counts the first release: the command has made a call and waits for the next one.
    pub fn trust(&mut self) {
        self.trusted = true;
    }

    /// Whether this command may wait here: if too many do, the prefetch is full of them, and others are not delivered.
    pub fn has_room_to_wait(&self) -> bool {
        self.permits.waiting.load(Ordering::Relaxed) < self.permits.waiting_max
    }

    /// Waits without the permit, then for a permit again. If it is dropped meanwhile it holds none.
    pub async fn release_while(&mut self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        if self.trusted && !std::mem::replace(&mut self.counted, true) {
            self.permits.through.fetch_add(1, Ordering::Relaxed);
        }
        if self.permit.take().is_some() {
            self.permits.given_up.notify_one();
        }
        let waiting = Counted::start(&self.permits.waiting);
        let trusted_waiting = self.trusted.then(|| Counted::start(&self.permits.trusted_waiting));
        sleep(wait).await;
        drop((waiting, trusted_waiting));
        // The semaphore is never closed.
        self.permit = self.permits.free.clone().acquire_owned().await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn half_of_the_prefetch_is_left_to_commands_that_do_not_wait() {
        for (all, prefetch, waiting_max) in
            [(100, 200, 100), (100, 8, 4), (10, 200, 190), (1, 1, 1), (100, 1, 1)]
        {
            let permits = Permits::new(all, prefetch);
            let mut waiters = Vec::new();
            for nth in 0..waiting_max {
                assert!(permits.none().has_room_to_wait(), "{nth} of {waiting_max}");
                let mut permit = permits.none();
                waiters.push(tokio::spawn(async move { permit.release_while(Duration::from_secs(1)).await }));
                tokio::task::yield_now().await;
            }
            assert!(!permits.none().has_room_to_wait(), "{waiting_max} wait");
            for waiter in waiters {
                waiter.abort();
                assert!(waiter.await.unwrap_err().is_cancelled());
            }
            assert!(permits.none().has_room_to_wait(), "none waits");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_rests_lets_another_work_and_goes_first_when_it_is_back() {
        let permits = Permits::new(1, 2);
        let mut first = permits.acquire().unwrap();
        assert!(permits.acquire().is_none());
        let resting = tokio::spawn(async move {
            first.release_while(Duration::from_secs(2)).await;
            first
        });
        permits.released().await;
        let second = permits.acquire().unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!resting.is_finished(), "no permit is free yet");
        drop(second);
        assert!(permits.acquire().is_none(), "promised to the one that is back");
        let first = resting.await.unwrap();
        assert_eq!(permits.in_use(), 1);
        drop(first);
        assert_eq!(permits.in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_that_is_cut_short_holds_nothing() {
        let permits = Permits::new(1, 2);
        let mut permit = permits.acquire().unwrap();
        let rest =
            tokio::time::timeout(Duration::from_secs(1), permit.release_while(Duration::from_secs(2))).await;
        assert!(rest.is_err());
        assert_eq!(permits.in_use(), 0);
        assert!(permits.acquire().is_some());
    }
}
