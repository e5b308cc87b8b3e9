//! Commands: taken, held, settled and ended.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use crate::domain::outcome::{Outcome, OutcomeKind};
use crate::domain::reason::Reason;
use crate::telemetry::metrics::register::Register;
use crate::telemetry::metrics::{Arrival, Settlement, WAIT_BOUNDS};

/// Bounds of the age histogram, in seconds. 180 is where WeChat Pay stops reporting the user.
const AGE_BOUNDS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3_600.0, 86_400.0];

/// The metrics of commands.
pub struct CommandMetrics {
    taken: IntCounterVec,
    settled: IntCounterVec,
    pub(super) in_flight: IntGauge,
    unaccounted: IntGauge,
    outcomes: IntCounterVec,
    age_seconds: Histogram,
    lane_wait_seconds: Histogram,
    pub(super) permits: IntGauge,
    pub(super) permits_busy: IntGauge,
    deadline_exceeded: IntCounter,
}

impl CommandMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let metrics = Self {
            taken: register.counters(
                "redeemer_commands_taken_total",
                "Number of deliveries taken from the command queue, by arrival.",
                &["arrival"],
            ),
            settled: register.counters(
                "redeemer_commands_settled_total",
                "Number of deliveries settled, by settlement.",
                &["settlement"],
            ),
            in_flight: register.gauge("redeemer_commands_in_flight", "Number of deliveries in flight."),
            unaccounted: register.gauge(
                "redeemer_unaccounted_deliveries",
                "Number of deliveries taken that are neither settled nor in flight; any value but 0 is a defect.",
            ),
            outcomes: register.counters(
                "redeemer_outcomes_total",
                "Number of commands that ended with a confirmed event, by outcome and reason.",
                &["outcome", "reason"],
            ),
            age_seconds: register.histogram(
                "redeemer_command_age_seconds",
                "Time from the sending of a command (its timestamp property, else its first sight) to its confirmed \
                 event, in seconds; not for invalid commands and corrupt retry messages.",
                &AGE_BOUNDS,
            ),
            lane_wait_seconds: register.histogram(
                "redeemer_lane_wait_seconds",
                "Wait of a delivery for its lane and a concurrency permit, in seconds.",
                &WAIT_BOUNDS,
            ),
            permits: register.gauge(
                "redeemer_concurrency_permits",
                "Number of commands that may be processed at once.",
            ),
            permits_busy: register.gauge(
                "redeemer_concurrency_permits_used",
                "Number of concurrency permits in use; commands that wait for their next call hold none.",
            ),
            deadline_exceeded: register.counter(
                "redeemer_deadline_exceeded_total",
                "Number of commands whose effect was unknown at their deadline.",
            ),
        };
        metrics.start_at_zero();
        metrics
    }

    fn start_at_zero(&self) {
        for arrival in Arrival::ALL {
            self.taken.with_label_values(&[arrival.as_str()]);
        }
        for how in Settlement::ALL {
            self.settled.with_label_values(&[how.as_str()]);
        }
        self.outcomes.with_label_values(&[OutcomeKind::Redeemed.as_str(), ""]);
        for reason in Reason::ALL {
            for kind in [OutcomeKind::Refused, OutcomeKind::Invalid, OutcomeKind::Unresolved] {
                if is_reason_of(kind, reason) {
                    self.outcomes.with_label_values(&[kind.as_str(), reason.as_str()]);
                }
            }
        }
    }

    /// Counts a delivery that was taken.
    pub fn record_taken(&self, arrival: Arrival) {
        self.taken.with_label_values(&[arrival.as_str()]).inc();
    }

    /// Counts a delivery that is no longer held.
    pub fn record_settled(&self, how: Settlement) {
        self.settled.with_label_values(&[how.as_str()]).inc();
    }

    /// Sets the number of deliveries held, as their owner counts them, and the number of permits in use. A delivery that
    /// was taken and is neither settled nor held has leaked. Only the task that takes and settles may call this, after
    /// each.
    pub fn set_in_flight(&self, held: usize, working: usize) {
        let settled = Settlement::ALL.iter().map(|how| self.settled.with_label_values(&[how.as_str()]).get());
        let taken =
            Arrival::ALL.iter().map(|arrival| self.taken.with_label_values(&[arrival.as_str()]).get());
        let [settled, taken] =
            [settled.sum::<u64>(), taken.sum()].map(|sum| i64::try_from(sum).unwrap_or(i64::MAX));
        let held = i64::try_from(held).unwrap_or(i64::MAX);
        self.in_flight.set(held);
        self.permits_busy.set(i64::try_from(working).unwrap_or(i64::MAX));
        self.unaccounted.set(taken - settled - held);
    }

    /// Deliveries held now.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Records how long a delivery waited from its receipt to its job.
    pub fn observe_lane_wait(&self, waited: Duration) {
        self.lane_wait_seconds.observe(waited.as_secs_f64());
    }

    /// Sets the number of commands that may be processed at once.
    pub fn set_permit_limit(&self, permits: usize) {
        self.permits.set(i64::try_from(permits).unwrap_or(i64::MAX));
    }

    /// Counts a command that ended, its event confirmed. `age` is `None` if it is not known.
    pub fn record_outcome(&self, outcome: &Outcome, age: Option<Duration>) {
        let reason = outcome.reason().map_or("", Reason::as_str);
        self.outcomes.with_label_values(&[outcome.kind().as_str(), reason]).inc();
        if let Some(age) = age {
            self.age_seconds.observe(age.as_secs_f64());
        }
        if let Outcome::Unresolved { reason: Reason::DeadlinePassed, .. } = outcome {
            self.deadline_exceeded.inc();
        }
    }

    /// The number of commands that ended with this outcome.
    pub(super) fn ended(&self, kind: OutcomeKind) -> u64 {
        let sum = |reason: &str| self.outcomes.with_label_values(&[kind.as_str(), reason]).get();
        let reasons = Reason::ALL.into_iter().filter(|reason| is_reason_of(kind, *reason));
        match kind {
            OutcomeKind::Redeemed => sum(""),
            _ => reasons.map(|reason| sum(reason.as_str())).sum(),
        }
    }
}

/// Whether an outcome of this kind can have this reason.
fn is_reason_of(kind: OutcomeKind, reason: Reason) -> bool {
    let ours = match reason {
        Reason::InvalidCommand => OutcomeKind::Invalid,
        Reason::DeadlinePassed
        | Reason::AttemptsExhausted
        | Reason::CorruptRetryMessage
        | Reason::DeliveryLimit
        | Reason::MessageExpired
        | Reason::DeadLettered
        | Reason::QueryRejected => OutcomeKind::Unresolved,
        _ => OutcomeKind::Refused,
    };
    kind == ours
}
