//! The circuit breaker.

use prometheus::{IntGauge, IntGaugeVec};

use crate::policy::classify::SuspendReason;
use crate::telemetry::metrics::CallDelay;
use crate::telemetry::metrics::register::Register;

/// The metrics of the circuit breaker.
pub struct CircuitMetrics {
    pub(super) open: IntGauge,
    open_cause: IntGaugeVec,
    suspended: IntGaugeVec,
}

impl CircuitMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let metrics = Self {
            open: register
                .gauge("redeemer_circuit_open", "State of the circuit: 1 while it is open, else 0."),
            open_cause: register.gauges(
                "redeemer_circuit_open_cause",
                "Cause of the open circuit: 1 for the current one, else 0.",
                "cause",
            ),
            suspended: register.gauges(
                "redeemer_suspended",
                "State of consumption, by reason: 1 while suspended for a fault of our own, else 0.",
                "reason",
            ),
        };
        for cause in CallDelay::ALL {
            metrics.open_cause.with_label_values(&[cause.as_str()]);
        }
        for fault in SuspendReason::ALL {
            metrics.suspended.with_label_values(&[fault.as_str()]);
        }
        metrics
    }

    /// Sets why calls are held back; `None` if they are not.
    pub fn set_circuit(&self, held_back: Option<CallDelay>) {
        self.open.set(i64::from(held_back.is_some()));
        for each in CallDelay::ALL {
            let now = i64::from(held_back == Some(each));
            self.open_cause.with_label_values(&[each.as_str()]).set(now);
            if let CallDelay::Suspended(fault) = each {
                self.suspended.with_label_values(&[fault.as_str()]).set(now);
            }
        }
    }
}
