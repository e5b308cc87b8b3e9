//! Keys and their files.

use prometheus::{GaugeVec, IntGauge};

use crate::telemetry::metrics::Key;
use crate::telemetry::metrics::register::Register;

/// The metrics of keys.
pub struct KeyMetrics {
    expiry: GaugeVec,
    files_failing: IntGauge,
}

impl KeyMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let metrics = Self {
            expiry: register.float_gauges(
                "redeemer_key_expiry_timestamp_seconds",
                "Time when a key expires, in seconds since 1970; 0 if no expiry is known.",
                "key",
            ),
            files_failing: register.gauge(
                "redeemer_key_files_failing",
                "Number of key files and secrets that cannot be loaded; the keys loaded before stay in use.",
            ),
        };
        for key in Key::ALL {
            metrics.expiry.with_label_values(&[key.as_str()]);
        }
        metrics
    }

    /// Sets when a key expires, in seconds since 1970; `None` if it does not.
    pub fn set_key_expiry(&self, key: Key, at: Option<i64>) {
        self.expiry.with_label_values(&[key.as_str()]).set(at.unwrap_or(0) as f64);
    }

    /// Sets the number of key files and secrets that are no longer usable.
    pub fn set_key_files_failing(&self, count: usize) {
        self.files_failing.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
