//! How brands responded lately, shared by all workers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::policy::brand_access::{BrandAccess, Denial};

/// How brands responded lately: whether a NO_AUTH concerns one brand, or is a fault of our own.
#[derive(Debug, Default)]
pub struct Brands(Mutex<BrandAccess>);

impl Brands {
    pub(super) fn access(&self) -> MutexGuard<'_, BrandAccess> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record_allowed(&self, brand: &str, asked_at: Instant) {
        self.access().record_allowed(brand, asked_at);
    }

    pub(super) fn record_denied(&self, brand: &str, now: Instant) -> Denial {
        self.access().record_denied(brand, now)
    }

    pub(super) fn may_try(&self, brand: &str, now: Instant) -> bool {
        self.access().may_try(brand, now)
    }
}
