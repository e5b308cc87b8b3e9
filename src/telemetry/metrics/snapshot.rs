//! A sample of the metrics for the status page.

/// What the status page shows of all this, at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Commands that ended, in the order of `OutcomeKind::ALL`.
    pub outcomes: [u64; 4],
    /// Calls to the payment API.
    pub calls: u64,
    /// What they took together, in seconds.
    pub call_seconds: f64,
    /// Deliveries held.
    pub in_flight: i64,
    /// Commands worked on.
    pub busy: i64,
    /// Commands that may be worked on at once.
    pub permits: i64,
    /// Calls per second that this instance may make.
    pub rate: f64,
    /// Consumers of the command queue.
    pub consumers: i64,
    /// Connections to the broker that were built.
    pub sessions_started: u64,
    /// Whether calls are held back.
    pub circuit_open: bool,
    /// The provider's clock less ours, in seconds.
    pub clock_skew: f64,
    /// Messages ready, by queue; not a number where they could not be counted.
    pub depths: Vec<(String, f64)>,
}
