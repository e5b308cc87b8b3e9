//! Calls to the payment API.

use std::time::Duration;

use prometheus::{Gauge, Histogram, HistogramVec, IntCounterVec};

use crate::domain::evidence::Operation;
use crate::policy::call_signal::ResponseClass;
use crate::policy::classify::{SignatureFlaw, Verdict};
use crate::telemetry::metrics::register::Register;

const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The label of a response without a signature, beside those of [`SignatureFlaw`].
const UNSIGNED: &str = "unsigned";

/// The metrics of calls.
pub struct ProviderMetrics {
    attempts: IntCounterVec,
    seconds: HistogramVec,
    responses: IntCounterVec,
    signature_failures: IntCounterVec,
    clock_skew: Gauge,
}

impl ProviderMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let metrics = Self {
            attempts: register.counters(
                "redeemer_attempts_total",
                "Number of calls to the payment API, by operation and verdict.",
                &["operation", "verdict"],
            ),
            seconds: register.histograms(
                "redeemer_provider_seconds",
                "Duration of a call to the payment API, in seconds.",
                &BOUNDS,
                "operation",
            ),
            responses: register.counters(
                "redeemer_responses_total",
                "Number of calls to the payment API, by class of the response.",
                &["class"],
            ),
            signature_failures: register.counters(
                "redeemer_signature_failures_total",
                "Number of responses whose signature did not verify, by flaw; unsigned: no signature.",
                &["flaw"],
            ),
            clock_skew: register.float_gauge(
                "redeemer_clock_skew_seconds",
                "Provider's clock minus ours, by the Date header of the last response, in seconds.",
            ),
        };
        for operation in Operation::ALL {
            metrics.seconds.with_label_values(&[operation.as_str()]);
            for verdict in Verdict::WORDS {
                metrics.attempts.with_label_values(&[operation.as_str(), verdict]);
            }
        }
        for class in ResponseClass::ALL {
            metrics.responses.with_label_values(&[class.as_str()]);
        }
        for flaw in SignatureFlaw::ALL.map(SignatureFlaw::as_str).into_iter().chain([UNSIGNED]) {
            metrics.signature_failures.with_label_values(&[flaw]);
        }
        metrics
    }

    /// Counts a call.
    pub fn record_attempt(&self, operation: Operation, verdict: &Verdict, took: Duration) {
        self.attempts.with_label_values(&[operation.as_str(), verdict.as_str()]).inc();
        self.seconds.with_label_values(&[operation.as_str()]).observe(took.as_secs_f64());
    }

    /// Counts a call by the class of its response.
    pub fn record_response(&self, class: ResponseClass) {
        self.responses.with_label_values(&[class.as_str()]).inc();
    }

    /// Counts a response whose signature did not verify.
    pub fn record_signature_flaw(&self, flaw: SignatureFlaw) {
        self.signature_failures.with_label_values(&[flaw.as_str()]).inc();
    }

    /// Counts a response without a signature.
    pub fn record_unsigned(&self) {
        self.signature_failures.with_label_values(&[UNSIGNED]).inc();
    }

    /// Sets the provider's clock minus ours, in seconds.
    pub fn set_clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
    }

    /// The provider's clock minus ours by the last response, in seconds; 0 before the first.
    pub fn last_clock_skew(&self) -> f64 {
        self.clock_skew.get()
    }

    /// The number of calls, and their durations together, in seconds.
    pub(super) fn calls(&self) -> (u64, f64) {
        let calls = Operation::ALL.map(|operation| self.seconds.with_label_values(&[operation.as_str()]));
        let count = calls.iter().map(Histogram::get_sample_count).sum();
        (count, calls.iter().map(Histogram::get_sample_sum).sum())
    }
}
