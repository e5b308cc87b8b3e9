//! Broker sessions and publishes.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::telemetry::metrics::register::Register;
use crate::telemetry::metrics::{Message, PublishFailureKind};

/// The metrics of broker sessions and publishes.
pub struct BrokerMetrics {
    pub(super) sessions_started: IntCounter,
    connected: IntGauge,
    blocked: IntGauge,
    consuming: IntGauge,
    publishes: IntCounterVec,
    publish_failures: IntCounterVec,
}

impl BrokerMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let metrics = Self {
            sessions_started: register
                .counter("redeemer_broker_sessions_total", "Number of broker connections opened since start."),
            connected: register.gauge(
                "redeemer_broker_connected",
                "State of the broker connection: 1 if connected, else 0.",
            ),
            blocked: register.gauge(
                "redeemer_broker_blocked",
                "State of publishing: 1 while the broker blocks it, else 0.",
            ),
            consuming: register.gauge(
                "redeemer_consuming",
                "State of consumption: 1 while commands are consumed, else 0.",
            ),
            publishes: register.counters(
                "redeemer_publishes_total",
                "Number of messages published, by message and confirmation.",
                &["message", "confirmed"],
            ),
            publish_failures: register.counters(
                "redeemer_publish_failures_total",
                "Number of publishes that were not confirmed, by message and reason; the broker may have the message all the same.",
                &["message", "reason"],
            ),
        };
        for message in Message::ALL {
            for confirmed in ["yes", "no"] {
                metrics.publishes.with_label_values(&[message.as_str(), confirmed]);
            }
            for why in PublishFailureKind::ALL {
                metrics.publish_failures.with_label_values(&[message.as_str(), why.as_str()]);
            }
        }
        metrics
    }

    /// A broker session was established.
    pub fn record_connected(&self) {
        self.sessions_started.inc();
        self.connected.set(1);
    }

    /// The broker session has ended.
    pub fn record_disconnected(&self) {
        self.connected.set(0);
        self.blocked.set(0);
        self.consuming.set(0);
    }

    /// Sets whether the broker blocks our publishing.
    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.set(i64::from(blocked));
    }

    /// Sets whether commands are consumed.
    pub fn set_consuming(&self, consuming: bool) {
        self.consuming.set(i64::from(consuming));
    }

    /// Counts a publish.
    pub fn record_publish(&self, message: Message, result: Result<(), PublishFailureKind>) {
        let confirmed = if result.is_ok() { "yes" } else { "no" };
        self.publishes.with_label_values(&[message.as_str(), confirmed]).inc();
        if let Err(why) = result {
            self.publish_failures.with_label_values(&[message.as_str(), why.as_str()]).inc();
        }
    }
}
