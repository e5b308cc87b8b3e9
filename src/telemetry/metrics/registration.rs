//! Registers every series and starts it at zero.

use crate::telemetry::metrics::{
    Arrival, CallDelay, ConsoleDenial, DelayReason, Key, Message, Metrics, OTHER_QUEUE, PublishFailureKind,
    Queue, Settlement, UNSIGNED,
};
use std::sync::atomic::AtomicBool;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use crate::domain::evidence::Operation;
use crate::domain::outcome::OutcomeKind;
use crate::domain::reason::Reason;
use crate::policy::circuit::ResponseClass;
use crate::policy::classify::{SignatureFlaw, SuspendReason, Verdict};

/// Bounds of the age histogram, in seconds. 180 is where WeChat Pay stops reporting the user.
const AGE_BOUNDS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3_600.0, 86_400.0];
const PROVIDER_BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const WAIT_BOUNDS: [f64; 10] = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];
const LATENESS_BOUNDS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0];

impl Metrics {
    /// Registers everything at zero. `delays` are the waits of the delay queues as words.
    ///
    /// # Panics
    /// Never: names and labels are constants, and a test registers them.
    pub fn new(delays: &[String]) -> Self {
        let delays = delays.iter().cloned().chain([OTHER_QUEUE.to_owned()]).collect();
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let histogram = |name: &str, help: &str, bounds: &[f64]| {
            register(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec())))
        };
        let gauges = |name: &str, help: &str, label: &str| {
            register(&registry, GaugeVec::new(Opts::new(name, help), &[label]))
        };
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let metrics = Self {
            taken: counters(
                "redeemer_commands_taken_total",
                "Number of deliveries taken from the command queue, by arrival.",
                &["arrival"],
            ),
            settled: counters(
                "redeemer_commands_settled_total",
                "Number of deliveries settled, by settlement.",
                &["settlement"],
            ),
            in_flight: gauge("redeemer_commands_in_flight", "Number of deliveries in flight."),
            unaccounted: gauge(
                "redeemer_unaccounted_deliveries",
                "Number of deliveries taken that are neither settled nor in flight; any value but 0 is a defect.",
            ),
            outcomes: counters(
                "redeemer_outcomes_total",
                "Number of commands that ended with a confirmed event, by outcome and reason.",
                &["outcome", "reason"],
            ),
            attempts: counters(
                "redeemer_attempts_total",
                "Number of calls to the payment API, by operation and verdict.",
                &["operation", "verdict"],
            ),
            provider_seconds: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "redeemer_provider_seconds",
                        "Duration of a call to the payment API, in seconds.",
                    )
                    .buckets(PROVIDER_BOUNDS.to_vec()),
                    &["operation"],
                ),
            ),
            age_seconds: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "redeemer_command_age_seconds",
                        "Time from the sending of a command (its timestamp property, else its first sight) to its confirmed \
                         event, in seconds; not for invalid commands and corrupt retry messages.",
                    )
                    .buckets(AGE_BOUNDS.to_vec()),
                ),
            ),
            lane_wait_seconds: histogram(
                "redeemer_lane_wait_seconds",
                "Wait of a delivery for its lane and a concurrency permit, in seconds.",
                &WAIT_BOUNDS,
            ),
            rate_limit_wait_seconds: histogram(
                "redeemer_rate_limit_wait_seconds",
                "Wait of a call for the rate limiter, in seconds.",
                &WAIT_BOUNDS,
            ),
            permits: gauge("redeemer_concurrency_permits", "Number of commands that may be processed at once."),
            permits_busy: gauge("redeemer_concurrency_permits_used", "Number of concurrency permits in use; commands that wait for their next call hold none."),
            rate: register(
                &registry,
                Gauge::new(
                    "redeemer_rate_limit_calls_per_second",
                    "Current rate limit of this instance, in calls per second.",
                ),
            ),
            configured_rate: register(
                &registry,
                Gauge::new(
                    "redeemer_rate_limit_configured_calls_per_second",
                    "Configured rate limit of the merchant over all instances, in calls per second.",
                ),
            ),
            rate_limit_used: register(
                &registry,
                Gauge::new(
                    "redeemer_rate_limit_used_ratio",
                    "Ratio of the current rate limit to this instance's share of the configured one; below 1 while too many calls get a 429.",
                ),
            ),
            responses: counters(
                "redeemer_responses_total",
                "Number of calls to the payment API, by class of the response.",
                &["class"],
            ),
            consumers: gauge(
                "redeemer_consumers",
                "Number of consumers on the command queue over all instances, when last counted.",
            ),
            delayed_retries: counters(
                "redeemer_delayed_retries_total",
                "Number of retry messages confirmed in a delay queue, by queue and reason.",
                &["queue", "reason"],
            ),
            delay_lateness: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "redeemer_delayed_retry_lateness_seconds",
                        "Time from the end of a retry message's delay until it was taken, by delay queue, in whole seconds.",
                    )
                    .buckets(LATENESS_BOUNDS.to_vec()),
                    &["queue"],
                ),
            ),
            publish_failures: counters(
                "redeemer_publish_failures_total",
                "Number of publishes that were not confirmed, by message and reason; the broker may have the message all the same.",
                &["message", "reason"],
            ),
            depth: gauges(
                "redeemer_queue_depth",
                "Number of ready messages in a queue, when last counted; NaN before, and if it could not be counted.",
                "queue",
            ),
            dead_in_hand: AtomicBool::new(false),
            key_expiry: gauges(
                "redeemer_key_expiry_timestamp_seconds",
                "Time when a key expires, in seconds since 1970; 0 if no expiry is known.",
                "key",
            ),
            key_files_failing: register(
                &registry,
                IntGauge::with_opts(Opts::new(
                    "redeemer_key_files_failing",
                    "Number of key files and secrets that cannot be loaded; the keys loaded before stay in use.",
                )),
            ),
            open_cause: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("redeemer_circuit_open_cause", "Cause of the open circuit: 1 for the current one, else 0."),
                    &["cause"],
                ),
            ),
            publishes: counters(
                "redeemer_publishes_total",
                "Number of messages published, by message and confirmation.",
                &["message", "confirmed"],
            ),
            signature_failures: counters(
                "redeemer_signature_failures_total",
                "Number of responses whose signature did not verify, by flaw; unsigned: no signature.",
                &["flaw"],
            ),
            sessions_started: counter("redeemer_broker_sessions_total", "Number of broker connections opened since start."),
            connected: gauge("redeemer_broker_connected", "State of the broker connection: 1 if connected, else 0."),
            blocked: gauge("redeemer_broker_blocked", "State of publishing: 1 while the broker blocks it, else 0."),
            consuming: gauge("redeemer_consuming", "State of consumption: 1 while commands are consumed, else 0."),
            suspended: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("redeemer_suspended", "State of consumption, by reason: 1 while suspended for a fault of our own, else 0."),
                    &["reason"],
                ),
            ),
            circuit_open: gauge("redeemer_circuit_open", "State of the circuit: 1 while it is open, else 0."),
            clock_skew: register(
                &registry,
                Gauge::new(
                    "redeemer_clock_skew_seconds",
                    "Provider's clock minus ours, by the Date header of the last response, in seconds.",
                ),
            ),
            deadline_exceeded: counter(
                "redeemer_deadline_exceeded_total",
                "Number of commands whose effect was unknown at their deadline.",
            ),
            console_denials: counters(
                "redeemer_console_denied_total",
                "Number of requests that the operator console denied, by reason.",
                &["reason"],
            ),
            delays,
            registry,
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
        for operation in Operation::ALL {
            self.provider_seconds.with_label_values(&[operation.as_str()]);
            for verdict in Verdict::WORDS {
                self.attempts.with_label_values(&[operation.as_str(), verdict]);
            }
        }
        for message in Message::ALL {
            for confirmed in ["yes", "no"] {
                self.publishes.with_label_values(&[message.as_str(), confirmed]);
            }
        }
        for message in Message::ALL {
            for why in PublishFailureKind::ALL {
                self.publish_failures.with_label_values(&[message.as_str(), why.as_str()]);
            }
        }
        for delay in &self.delays {
            for reason in DelayReason::ALL {
                self.delayed_retries.with_label_values(&[delay, reason.as_str()]);
            }
            self.delay_lateness.with_label_values(&[delay]);
            if delay != OTHER_QUEUE {
                self.set_delay_queue_depth(delay, None);
            }
        }
        for queue in Queue::ALL {
            self.set_queue_depth(queue, None);
        }
        for key in Key::ALL {
            self.key_expiry.with_label_values(&[key.as_str()]);
        }
        for cause in CallDelay::ALL {
            self.open_cause.with_label_values(&[cause.as_str()]);
        }
        for why in ConsoleDenial::ALL {
            self.console_denials.with_label_values(&[why.as_str()]);
        }
        for flaw in SignatureFlaw::ALL.map(SignatureFlaw::as_str).into_iter().chain([UNSIGNED]) {
            self.signature_failures.with_label_values(&[flaw]);
        }
        for class in ResponseClass::ALL {
            self.responses.with_label_values(&[class.as_str()]);
        }
        self.rate_limit_used.set(1.0);
        for fault in SuspendReason::ALL {
            self.suspended.with_label_values(&[fault.as_str()]);
        }
        let version = env!("CARGO_PKG_VERSION");
        let build = Opts::new("redeemer_build_info", "Build information as labels; always 1.")
            .const_label("version", version);
        register(&self.registry, IntGauge::with_opts(build)).set(1);
        // Absent if there is no /proc; then there is nothing to report.
        let process = prometheus::process_collector::ProcessCollector::for_self();
        let _ = self.registry.register(Box::new(process));
    }
}

/// Whether an outcome of this kind can have this reason.
pub(super) fn is_reason_of(kind: OutcomeKind, reason: Reason) -> bool {
    let ours = match reason {
        Reason::InvalidCommand => OutcomeKind::Invalid,
        Reason::DeadlinePassed
        | Reason::AttemptsExhausted
        | Reason::QueryRejected
        | Reason::CorruptRetryMessage
        | Reason::DeliveryLimit
        | Reason::MessageExpired
        | Reason::DeadLettered => OutcomeKind::Unresolved,
        _ => OutcomeKind::Refused,
    };
    kind == ours
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names, labels and bounds are constants that a test has built");
    registry.register(Box::new(metric.clone())).expect("no name is registered twice, as a test has shown");
    metric
}
