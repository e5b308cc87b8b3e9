//! The rate limit.

use std::time::Duration;

use prometheus::{Gauge, Histogram, IntGauge};

use crate::telemetry::metrics::WAIT_BOUNDS;
use crate::telemetry::metrics::register::Register;

/// The metrics of the rate limit.
pub struct RateLimitMetrics {
    pub(super) rate: Gauge,
    configured_rate: Gauge,
    used: Gauge,
    wait_seconds: Histogram,
    pub(super) consumers: IntGauge,
}

impl RateLimitMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let metrics = Self {
            rate: register.float_gauge(
                "redeemer_rate_limit_calls_per_second",
                "Current rate limit of this instance, in calls per second.",
            ),
            configured_rate: register.float_gauge(
                "redeemer_rate_limit_configured_calls_per_second",
                "Configured rate limit of the merchant over all instances, in calls per second.",
            ),
            used: register.float_gauge(
                "redeemer_rate_limit_used_ratio",
                "Ratio of the current rate limit to this instance's share of the configured one; below 1 while too many calls get a 429.",
            ),
            wait_seconds: register.histogram(
                "redeemer_rate_limit_wait_seconds",
                "Wait of a call for the rate limiter, in seconds.",
                &WAIT_BOUNDS,
            ),
            consumers: register.gauge(
                "redeemer_consumers",
                "Number of consumers on the command queue over all instances, when last counted.",
            ),
        };
        metrics.used.set(1.0);
        metrics
    }

    /// Sets the current rate limit of this instance, in calls per second.
    pub fn set_rate(&self, per_second: f64) {
        self.rate.set(per_second);
    }

    /// Sets the configured rate limit of the merchant, in calls per second.
    pub fn set_rate_limit(&self, per_second: f64) {
        self.configured_rate.set(per_second);
    }

    /// Sets the part of its share of the limit that this instance uses.
    pub fn set_rate_limit_used(&self, part: f64) {
        self.used.set(part);
    }

    /// Records how long a call waited for the rate limiter.
    pub fn observe_rate_limit_wait(&self, waited: Duration) {
        self.wait_seconds.observe(waited.as_secs_f64());
    }

    /// Sets the number of consumers of the command queue.
    pub fn set_consumers(&self, consumers: u32) {
        self.consumers.set(i64::from(consumers));
    }
}
