//! The operator console.

use prometheus::IntCounterVec;

use crate::telemetry::metrics::ConsoleDenial;
use crate::telemetry::metrics::register::Register;

/// The metrics of the operator console.
pub struct ConsoleMetrics {
    denials: IntCounterVec,
}

impl ConsoleMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let denials = register.counters(
            "redeemer_console_denied_total",
            "Number of requests that the operator console denied, by reason.",
            &["reason"],
        );
        for why in ConsoleDenial::ALL {
            denials.with_label_values(&[why.as_str()]);
        }
        Self { denials }
    }

    /// Counts a denied request.
    pub fn record_console_denied(&self, why: ConsoleDenial) {
        self.denials.with_label_values(&[why.as_str()]).inc();
    }
}
