//! How many commands are processed at once. A command that only waits releases its permit meanwhile: after the broker
//! returns, everything in hand is redelivered and may wait for the query delay, and commands that could end at once must
//! not wait behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// The permits of one instance.
#[derive(Debug, Clone)]
pub struct Permits {
    all: usize,
    free: Arc<Semaphore>,
    given_up: Arc<Notify>,
    /// Trusted commands that have released their permit for the first time.
    through: Arc<AtomicU16>,
}

/// A permit, held until it is dropped.
#[derive(Debug)]
pub struct Permit {
    permits: Permits,
    /// `None` while it is released, or if it never held one.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether the first release counts for the prefetch ramp.
    trusted: bool,
}

impl Permits {
    /// `all` permits.
    pub fn new(all: usize) -> Self {
        Self { all, free: Arc::new(Semaphore::new(all)), given_up: Arc::default(), through: Arc::default() }
    }

    /// A free permit, unless all are in use or promised to a command that comes back from a wait.
    pub fn acquire(&self) -> Option<Permit> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Permit { permits: self.clone(), permit: Some(permit), trusted: false })
    }

    /// An empty permit, for a command that is only delayed.
    pub fn none(&self) -> Permit {
        Permit { permits: self.clone(), permit: None, trusted: false }
    }

    /// Waits until a permit is released.
    pub async fn released(&self) {
        self.given_up.notified().await;
    }

    /// How many trusted commands have released their permit since the last call.
    pub fn acquire_through(&self) -> u16 {
        self.through.swap(0, Ordering::Relaxed)
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

    /// Waits without the permit, then for a permit again. If it is dropped meanwhile it holds none.
    pub async fn release_while(&mut self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        if std::mem::take(&mut self.trusted) {
            self.permits.through.fetch_add(1, Ordering::Relaxed);
        }
        if self.permit.take().is_some() {
            self.permits.given_up.notify_one();
        }
        sleep(wait).await;
        // The semaphore is never closed.
        self.permit = self.permits.free.clone().acquire_owned().await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_rests_lets_another_work_and_goes_first_when_it_is_back() {
        let permits = Permits::new(1);
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
        let permits = Permits::new(1);
        let mut permit = permits.acquire().unwrap();
        let rest =
            tokio::time::timeout(Duration::from_secs(1), permit.release_while(Duration::from_secs(2))).await;
        assert!(rest.is_err());
        assert_eq!(permits.in_use(), 0);
        assert!(permits.acquire().is_some());
    }
}
