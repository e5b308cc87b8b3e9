//! The metrics, a struct per area. Every series exists from the start, at zero (depths: NaN). Every label is a word of an
//! enum and never an id, so no input can add a series.

mod broker;
mod circuit;
mod commands;
mod console;
mod keys;
mod labels;
mod provider;
mod queues;
mod rate_limit;
mod register;
mod snapshot;

use prometheus::{IntGauge, Opts, Registry, TextEncoder};

use crate::domain::outcome::OutcomeKind;
use crate::telemetry::metrics::register::Register;

pub use self::broker::BrokerMetrics;
pub use self::circuit::CircuitMetrics;
pub use self::commands::CommandMetrics;
pub use self::console::ConsoleMetrics;
pub use self::keys::KeyMetrics;
pub use self::labels::{
    Arrival, CallDelay, ConsoleDenial, DelayReason, Key, Message, PublishFailureKind, Queue, Settlement,
};
pub use self::provider::ProviderMetrics;
pub use self::queues::QueueMetrics;
pub use self::rate_limit::RateLimitMetrics;
pub use self::snapshot::Snapshot;

const WAIT_BOUNDS: [f64; 10] = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    /// Commands: taken, held, settled and ended.
    pub commands: CommandMetrics,
    /// Calls to the payment API.
    pub provider: ProviderMetrics,
    /// The rate limit.
    pub rate_limit: RateLimitMetrics,
    /// The circuit breaker.
    pub circuit: CircuitMetrics,
    /// Broker sessions and publishes.
    pub broker: BrokerMetrics,
    /// Queue depths and delayed retries.
    pub queues: QueueMetrics,
    /// Keys and their files.
    pub keys: KeyMetrics,
    /// The operator console.
    pub console: ConsoleMetrics,
}

impl Metrics {
    /// Registers all series. `delays` are the waits of the delay queues as words.
    ///
    /// # Panics
    /// Never: names and labels are constants, and a test registers them.
    pub fn new(delays: &[String]) -> Self {
        let registry = Registry::new();
        let register = Register(&registry);
        let build = Opts::new("redeemer_build_info", "Build information as labels; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        register.add(IntGauge::with_opts(build)).set(1);
        // Absent if there is no /proc; then there is nothing to report.
        let process = prometheus::process_collector::ProcessCollector::for_self();
        let _ = registry.register(Box::new(process));
        Self {
            commands: CommandMetrics::new(&register),
            provider: ProviderMetrics::new(&register),
            rate_limit: RateLimitMetrics::new(&register),
            circuit: CircuitMetrics::new(&register),
            broker: BrokerMetrics::new(&register),
            queues: QueueMetrics::new(&register, delays),
            keys: KeyMetrics::new(&register),
            console: ConsoleMetrics::new(&register),
            registry,
        }
    }

    /// The values of the status page.
    pub fn snapshot(&self) -> Snapshot {
        let Self { commands, provider, rate_limit, circuit, broker, queues, .. } = self;
        let (calls, call_seconds) = provider.calls();
        Snapshot {
            outcomes: OutcomeKind::ALL.map(|kind| commands.ended(kind)),
            calls,
            call_seconds,
            in_flight: commands.in_flight(),
            busy: commands.permits_busy.get(),
            permits: commands.permits.get(),
            rate: rate_limit.rate.get(),
            consumers: rate_limit.consumers.get(),
            sessions_started: broker.sessions_started.get(),
            circuit_open: circuit.open.get() != 0,
            clock_skew: provider.last_clock_skew(),
            depths: queues.depths(),
        }
    }

    /// All metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    /// With the delay queues of the default configuration.
    fn default() -> Self {
        Self::new(&["10s", "1m", "5m", "30m", "2h"].map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::Outcome;
    use crate::domain::reason::Reason;

    #[test]
    fn unaccounted_delivery_is_shown() {
        let metrics = Metrics::default();
        metrics.commands.record_taken(Arrival::First);
        metrics.commands.record_taken(Arrival::Retry);
        metrics.commands.set_in_flight(2, 1);
        assert!(metrics.render().contains("redeemer_unaccounted_deliveries 0"));
        metrics.commands.record_settled(Settlement::Finished);
        metrics.commands.set_in_flight(0, 0);
        assert!(metrics.render().contains("redeemer_unaccounted_deliveries 1"));
    }

    #[test]
    fn deadline_exceeded_counts_only_deadlines() {
        let metrics = Metrics::default();
        for reason in [Reason::AttemptsExhausted, Reason::CorruptRetryMessage, Reason::DeadlinePassed] {
            let outcome = Outcome::Unresolved { reason, coupon: None, rejection: None };
            metrics.commands.record_outcome(&outcome, None);
        }
        assert!(metrics.render().contains("redeemer_deadline_exceeded_total 1"));
    }
}
