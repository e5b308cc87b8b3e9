//! What is counted. Every series exists at zero from the start, every label is a word of an enum, no id is ever a
//! label: the number of series does not grow, whatever arrives.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::attempt::{Outcome, OutcomeKind};
use crate::verdict::{Fault, Flaw, Question, Reason, Verdict};

/// How a command came to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// For the first time.
    First,
    /// Again, from the broker: somebody held it before.
    Redelivered,
    /// From a wait queue.
    Copy,
}

impl Arrival {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::First, Self::Redelivered, Self::Copy];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Redelivered => "redelivered",
            Self::Copy => "copy",
        }
    }
}

/// How a delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settling {
    /// Its event is confirmed and it is acknowledged.
    Ended,
    /// Its copy is confirmed in a wait queue and it is acknowledged.
    Deferred,
    /// It was handed back.
    Released,
    /// The connection was gone first; the broker delivers it again.
    Lost,
}

impl Settling {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Ended, Self::Deferred, Self::Released, Self::Lost];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Deferred => "deferred",
            Self::Released => "released",
            Self::Lost => "lost",
        }
    }
}

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A result event.
    Event,
    /// A copy for a wait queue.
    Copy,
    /// A parked command.
    Parked,
}

impl Message {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Event, Self::Copy, Self::Parked];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Copy => "copy",
            Self::Parked => "parked",
        }
    }
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    taken: IntCounterVec,
    settled: IntCounterVec,
    in_flight: IntGauge,
    residue: IntGauge,
    outcomes: IntCounterVec,
    attempts: IntCounterVec,
    provider_seconds: HistogramVec,
    age_seconds: Histogram,
    publishes: IntCounterVec,
    flaws: IntCounterVec,
    generation: IntCounter,
    connected: IntGauge,
    blocked: IntGauge,
    consuming: IntGauge,
    stopped: IntGaugeVec,
    breaker_open: IntGauge,
    clock_skew: Gauge,
    past_deadline: IntCounter,
}

/// Bounds of the age histogram, in seconds. 180 is where WeChat Pay stops telling the user.
const AGE_BOUNDS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3_600.0, 86_400.0];
const PROVIDER_BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

impl Metrics {
    /// Registers everything at zero.
    ///
    /// # Panics
    /// Never: names and labels are constants, and a test registers them.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let metrics = Self {
            taken: counters(
                "redeemer_commands_taken_total",
                "Deliveries taken from the command queue, by how they came.",
                &["arrival"],
            ),
            settled: counters(
                "redeemer_commands_settled_total",
                "Deliveries no longer held, by how they were settled.",
                &["how"],
            ),
            in_flight: gauge("redeemer_commands_in_flight", "Deliveries held now."),
            residue: gauge(
                "redeemer_ledger_residue",
                "Deliveries taken, less settled, less in flight. Anything but 0 is a defect.",
            ),
            outcomes: counters(
                "redeemer_outcomes_total",
                "Commands that came to their end, event confirmed, by outcome and reason.",
                &["outcome", "reason"],
            ),
            attempts: counters(
                "redeemer_attempts_total",
                "Calls to the payment API, by question and verdict.",
                &["question", "verdict"],
            ),
            provider_seconds: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "redeemer_provider_seconds",
                        "Time of one call to the payment API, in seconds.",
                    )
                    .buckets(PROVIDER_BOUNDS.to_vec()),
                    &["question"],
                ),
            ),
            age_seconds: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "redeemer_command_age_seconds",
                        "Time from a command's first sight to its confirmed event, in seconds.",
                    )
                    .buckets(AGE_BOUNDS.to_vec()),
                ),
            ),
            publishes: counters(
                "redeemer_publishes_total",
                "Messages published, by what and whether the broker confirmed.",
                &["message", "confirmed"],
            ),
            flaws: counters(
                "redeemer_signature_failures_total",
                "Answers whose signature did not convince, by what was wrong.",
                &["flaw"],
            ),
            generation: counter("redeemer_broker_generations_total", "Broker connections built since start."),
            connected: gauge("redeemer_broker_connected", "1 while connected to the broker."),
            blocked: gauge("redeemer_broker_blocked", "1 while the broker blocks our publishing."),
            consuming: gauge("redeemer_consuming", "1 while commands are being consumed."),
            stopped: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("redeemer_stopped", "1 while consumption is stopped for a fault of our own."),
                    &["fault"],
                ),
            ),
            breaker_open: gauge("redeemer_breaker_open", "1 while calls are held back."),
            clock_skew: register(
                &registry,
                Gauge::new(
                    "redeemer_clock_skew_seconds",
                    "The provider's clock less ours, by the Date of its last answer.",
                ),
            ),
            past_deadline: counter(
                "redeemer_past_deadline_total",
                "Commands whose deadline passed with the truth unknown.",
            ),
            registry,
        };
        metrics.start_at_zero();
        metrics
    }

    fn start_at_zero(&self) {
        for arrival in Arrival::ALL {
            self.taken.with_label_values(&[arrival.as_str()]);
        }
        for how in Settling::ALL {
            self.settled.with_label_values(&[how.as_str()]);
        }
        self.outcomes.with_label_values(&[OutcomeKind::Redeemed.as_str(), ""]);
        for reason in Reason::ALL {
            for kind in [OutcomeKind::Refused, OutcomeKind::Invalid, OutcomeKind::Unresolved] {
                if told_of(kind, reason) {
                    self.outcomes.with_label_values(&[kind.as_str(), reason.as_str()]);
                }
            }
        }
        for question in Question::ALL {
            self.provider_seconds.with_label_values(&[question.as_str()]);
            for verdict in Verdict::WORDS {
                self.attempts.with_label_values(&[question.as_str(), verdict]);
            }
        }
        for message in Message::ALL {
            for confirmed in ["yes", "no"] {
                self.publishes.with_label_values(&[message.as_str(), confirmed]);
            }
        }
        for flaw in Flaw::ALL {
            self.flaws.with_label_values(&[flaw.as_str()]);
        }
        for fault in Fault::ALL {
            self.stopped.with_label_values(&[fault.as_str()]);
        }
        let version = env!("CARGO_PKG_VERSION");
        let build = Opts::new("redeemer_build_info", "Always 1; the labels say what is running.")
            .const_label("version", version);
        register(&self.registry, IntGauge::with_opts(build)).set(1);
        // Absent where there is no /proc; then there is nothing to tell.
        let process = prometheus::process_collector::ProcessCollector::for_self();
        let _ = self.registry.register(Box::new(process));
    }

    /// A delivery was taken.
    pub fn taken(&self, arrival: Arrival) {
        self.in_flight.inc();
        self.taken.with_label_values(&[arrival.as_str()]).inc();
    }

    /// A delivery is no longer held.
    pub fn settled(&self, how: Settling) {
        self.settled.with_label_values(&[how.as_str()]).inc();
        self.in_flight.dec();
    }

    /// A command came to its end and its event is confirmed.
    pub fn ended(&self, outcome: &Outcome, age: Duration) {
        let reason = outcome.reason().map_or("", Reason::as_str);
        self.outcomes.with_label_values(&[outcome.kind().as_str(), reason]).inc();
        self.age_seconds.observe(age.as_secs_f64());
        if let Outcome::Unresolved { .. } = outcome {
            self.past_deadline.inc();
        }
    }

    /// A call was made.
    pub fn attempted(&self, question: Question, verdict: &Verdict, took: Duration) {
        self.attempts.with_label_values(&[question.as_str(), verdict.as_str()]).inc();
        self.provider_seconds.with_label_values(&[question.as_str()]).observe(took.as_secs_f64());
    }

    /// A message was published, or not proven to be.
    pub fn published(&self, message: Message, confirmed: bool) {
        let confirmed = if confirmed { "yes" } else { "no" };
        self.publishes.with_label_values(&[message.as_str(), confirmed]).inc();
    }

    /// An answer's signature did not convince.
    pub fn flawed(&self, flaw: Flaw) {
        self.flaws.with_label_values(&[flaw.as_str()]).inc();
    }

    /// The provider's clock less ours.
    pub fn clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
    }

    /// The provider's clock less ours when it last answered, in seconds; 0 before.
    pub fn last_clock_skew(&self) -> f64 {
        self.clock_skew.get()
    }

    /// A connection to the broker was built.
    pub fn connected(&self) {
        self.generation.inc();
        self.connected.set(1);
    }

    /// The connection to the broker is gone.
    pub fn disconnected(&self) {
        self.connected.set(0);
        self.blocked.set(0);
        self.consuming.set(0);
    }

    /// Whether the broker blocks our publishing.
    pub fn blocked(&self, blocked: bool) {
        self.blocked.set(i64::from(blocked));
    }

    /// Whether commands are being consumed.
    pub fn consuming(&self, consuming: bool) {
        self.consuming.set(i64::from(consuming));
    }

    /// Whether calls are held back, and for which fault of our own.
    pub fn breaker(&self, open: bool, fault: Option<Fault>) {
        self.breaker_open.set(i64::from(open));
        for each in Fault::ALL {
            let stopped = open && fault == Some(each);
            self.stopped.with_label_values(&[each.as_str()]).set(i64::from(stopped));
        }
    }

    /// Deliveries held now.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Everything in the text format of Prometheus.
    pub fn render(&self) -> String {
        let sum = |counters: &IntCounterVec, words: &[&str]| -> i64 {
            let each = words.iter().map(|word| counters.with_label_values(&[*word]).get());
            i64::try_from(each.sum::<u64>()).unwrap_or(i64::MAX)
        };
        let settled = sum(&self.settled, &Settling::ALL.map(Settling::as_str));
        let taken = sum(&self.taken, &Arrival::ALL.map(Arrival::as_str));
        self.residue.set(taken - settled - self.in_flight.get());
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Which reasons an outcome can have.
fn told_of(kind: OutcomeKind, reason: Reason) -> bool {
    let ours = match reason {
        Reason::InvalidCommand => OutcomeKind::Invalid,
        Reason::DeadlinePassed | Reason::AttemptsExhausted | Reason::DamagedCopy => OutcomeKind::Unresolved,
        _ => OutcomeKind::Refused,
    };
    kind == ours
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names, labels and bounds are constants that a test has built");
    registry.register(Box::new(metric.clone())).expect("no name is registered twice, as a test has shown");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_at_zero_and_none_is_added_by_use() {
        let metrics = Metrics::new();
        let series = |text: &str| {
            text.lines()
                .filter(|line| line.starts_with("redeemer_"))
                .filter_map(|line| line.rsplit_once(' '))
                .map(|(name, _)| name.to_owned())
                .collect::<Vec<_>>()
        };
        let before = series(&metrics.render());
        assert!(
            before.iter().any(|name| name.contains(r#"outcome="refused",reason="expired""#)),
            "{before:?}"
        );
        metrics.taken(Arrival::First);
        metrics.ended(&Outcome::Invalid, Duration::from_secs(1));
        for question in Question::ALL {
            metrics.attempted(question, &Verdict::NotSent, Duration::ZERO);
        }
        metrics.published(Message::Event, true);
        metrics.breaker(true, Some(Fault::Unauthenticated));
        metrics.settled(Settling::Ended);
        assert_eq!(series(&metrics.render()), before);
        assert!(metrics.render().contains("redeemer_ledger_residue 0"));
    }
}
