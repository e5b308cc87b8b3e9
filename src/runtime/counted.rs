//! Counts those that do the same thing at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};

/// One of those that a counter counts, until it is dropped.
pub(super) struct Counted<'a> {
    all: &'a AtomicUsize,
    /// How many there were before it.
    pub(super) before: usize,
}

impl<'a> Counted<'a> {
    /// One more.
    pub(super) fn start(all: &'a AtomicUsize) -> Self {
        Self { all, before: all.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}
