//! A sample of the metrics for the status page.

/// The values of the status page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Commands that ended, in the order of `OutcomeKind::ALL`.
    pub outcomes: [u64; 4],
    /// Calls to the payment API.
    pub calls: u64,
    /// Their durations together, in seconds.
    pub call_seconds: f64,
    /// Deliveries held.
    pub in_flight: i64,
    /// Concurrency permits in use.
    pub busy: i64,
    /// Concurrency permits.
    pub permits: i64,
    /// Calls per second that this instance may make.
    pub rate: f64,
    /// Consumers of the command queue.
    pub consumers: i64,
    /// Broker sessions since the start.
    pub sessions_started: u64,
    /// Whether calls are held back.
    pub circuit_open: bool,
    /// The provider's clock minus ours, in seconds.
    pub clock_skew: f64,
    /// Ready messages by queue; NaN if unknown.
    pub depths: Vec<(String, f64)>,
}
