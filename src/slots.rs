//! How many commands are worked on at once. A command that only waits gives its slot to another meanwhile: after the
//! broker's return everything in hand is redelivered and may have to wait for a settling time, and what could be ended
//! at once must not stand behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// The slots of one instance.
#[derive(Debug, Clone)]
pub struct Permits {
    all: usize,
    free: Arc<Semaphore>,
    given_up: Arc<Notify>,
    /// Commands that went to rest for the first time, and are trusted.
    through: Arc<AtomicU16>,
}

/// A slot, held until it is dropped.
#[derive(Debug)]
pub struct Permit {
    slots: Permits,
    /// Nothing while it rests, or where there never was one.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether its first rest shows that its command does no harm.
    trusted: bool,
}

impl Permits {
    /// So many.
    pub fn new(all: usize) -> Self {
        Self { all, free: Arc::new(Semaphore::new(all)), given_up: Arc::default(), through: Arc::default() }
    }

    /// A free slot, unless all are busy or promised to somebody who comes back from a rest.
    pub fn acquire(&self) -> Option<Permit> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Permit { slots: self.clone(), permit: Some(permit), trusted: false })
    }

    /// No slot: for what is only put away, which is not worth one.
    pub fn none(&self) -> Permit {
        Permit { slots: self.clone(), permit: None, trusted: false }
    }

    /// Until somebody goes to rest.
    pub async fn released(&self) {
        self.given_up.notified().await;
    }

    /// How many trusted commands went to rest since this was asked last.
    pub fn acquire_through(&self) -> u16 {
        self.through.swap(0, Ordering::Relaxed)
    }

    /// How many are busy.
    pub fn busy(&self) -> usize {
        self.all - self.free.available_permits()
    }
}

impl Permit {
    /// Lets the first rest count: the command was called about, and waits for the next call.
    pub fn trust(&mut self) {
        self.trusted = true;
    }

    /// Waits with the slot given to others, and then for a slot again. Dropped half-way it holds none.
    pub async fn release_while(&mut self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        if std::mem::take(&mut self.trusted) {
            self.slots.through.fetch_add(1, Ordering::Relaxed);
        }
        if self.permit.take().is_some() {
            self.slots.given_up.notify_one();
        }
        sleep(wait).await;
        // The semaphore is never closed.
        self.permit = self.slots.free.clone().acquire_owned().await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_rests_lets_another_work_and_goes_first_when_it_is_back() {
        let slots = Permits::new(1);
        let mut first = slots.acquire().unwrap();
        assert!(slots.acquire().is_none());
        let resting = tokio::spawn(async move {
            first.release_while(Duration::from_secs(2)).await;
            first
        });
        slots.released().await;
        let second = slots.acquire().unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!resting.is_finished(), "no slot is free yet");
        drop(second);
        assert!(slots.acquire().is_none(), "promised to the one that is back");
        let first = resting.await.unwrap();
        assert_eq!(slots.busy(), 1);
        drop(first);
        assert_eq!(slots.busy(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_that_is_cut_short_holds_nothing() {
        let slots = Permits::new(1);
        let mut slot = slots.acquire().unwrap();
        let rest =
            tokio::time::timeout(Duration::from_secs(1), slot.release_while(Duration::from_secs(2))).await;
        assert!(rest.is_err());
        assert_eq!(slots.busy(), 0);
        assert!(slots.acquire().is_some());
    }
}
