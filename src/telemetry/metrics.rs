//! What is counted. Every series exists from the start, at zero or, a depth, as not counted yet; every label is a word
//! of an enum, no id is ever a label: the number of series does not grow, whatever arrives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::domain::evidence::Operation;
use crate::domain::outcome::{Outcome, OutcomeKind};
use crate::domain::reason::Reason;
use crate::policy::circuit::ResponseClass;
use crate::policy::classify::{SignatureFlaw, SuspendReason, Verdict};

/// How a command came to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// For the first time.
    First,
    /// Again, from the broker: somebody held it before.
    Redelivered,
    /// From a delay queue.
    Retry,
}

impl Arrival {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::First, Self::Redelivered, Self::Retry];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Redelivered => "redelivered",
            Self::Retry => "retry",
        }
    }
}

/// How a delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Its event is confirmed and it is acknowledged.
    Finished,
    /// Its copy is confirmed in a delay queue and it is acknowledged.
    Delayed,
    /// It was handed back.
    HandedBack,
    /// The connection was gone first; the broker delivers it again.
    Lost,
}

impl Settlement {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Finished, Self::Delayed, Self::HandedBack, Self::Lost];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Delayed => "delayed",
            Self::HandedBack => "handed_back",
            Self::Lost => "lost",
        }
    }
}

/// Why a copy was put into a delay queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayReason {
    /// It is not settled yet, and asked again later.
    Unresolved,
    /// The broker refused its event for too long.
    EventRejected,
    /// Too many commands of its coupon are held already.
    PerCouponLimit,
}

impl DelayReason {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Unresolved, Self::EventRejected, Self::PerCouponLimit];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::EventRejected => "event_rejected",
            Self::PerCouponLimit => "per_coupon_limit",
        }
    }
}

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A result event.
    Event,
    /// A copy for a delay queue.
    Retry,
    /// A parked command.
    Parked,
}

impl Message {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Event, Self::Retry, Self::Parked];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Retry => "retry",
            Self::Parked => "parked",
        }
    }
}

/// Why a publish is not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFailureKind {
    /// No confirm came in time.
    TimedOut,
    /// The broker refused it.
    Refused,
    /// The broker gave it back: no queue took it.
    Returned,
    /// The broker closed the channel over it: a missing right or exchange, or it is too large.
    Channel,
    /// The connection failed first.
    Connection,
}

impl PublishFailureKind {
    /// Every way.
    pub const ALL: [Self; 5] =
        [Self::TimedOut, Self::Refused, Self::Returned, Self::Channel, Self::Connection];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Returned => "returned",
            Self::Channel => "channel",
            Self::Connection => "connection",
        }
    }
}

/// The label of an answer without a signature, beside those of [`SignatureFlaw`].
const UNSIGNED: &str = "unsigned";

/// Why calls are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallDelay {
    /// The provider does not answer.
    NoResponse,
    /// The provider answers that it is in trouble.
    ServerError,
    /// Its answers cannot be verified.
    Unverified,
    /// A fault of our own.
    Suspended(SuspendReason),
}

impl CallDelay {
    /// Every cause.
    pub const ALL: [Self; 6] = [
        Self::NoResponse,
        Self::ServerError,
        Self::Unverified,
        Self::Suspended(SuspendReason::Unauthenticated),
        Self::Suspended(SuspendReason::Unauthorized),
        Self::Suspended(SuspendReason::Rejected),
    ];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoResponse => "no_response",
            Self::ServerError => "server_error",
            Self::Unverified => "unverified",
            Self::Suspended(fault) => fault.as_str(),
        }
    }
}

/// A queue whose depth is reported. Delay queues stand beside these as `retry.<wait>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Commands.
    Commands,
    /// Commands that a person must look at.
    Parked,
    /// Results that nobody has bound.
    Unrouted,
    /// Commands that the broker dead-lettered, and that have no event yet.
    Dead,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 4] = [Self::Commands, Self::Parked, Self::Unrouted, Self::Dead];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Parked => "parked",
            Self::Unrouted => "unrouted",
            Self::Dead => "dead",
        }
    }
}

/// A key that can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The merchant API certificate.
    Merchant,
    /// The platform certificate that lasts longest.
    Verification,
}

impl Key {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Merchant, Self::Verification];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Merchant => "merchant",
            Self::Verification => "verification",
        }
    }
}

/// Why the operator console denied a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleDenial {
    /// The token was another one.
    WrongToken,
    /// A form came without a session, or its session had ended.
    NoSession,
    /// A form was not made by a page of its session, or came from another site.
    Forged,
}

impl ConsoleDenial {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::WrongToken, Self::NoSession, Self::Forged];

    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongToken => "wrong_token",
            Self::NoSession => "no_session",
            Self::Forged => "forged",
        }
    }
}

/// The label of a delay queue that is not among the configured ones: one of an earlier configuration.
const OTHER_QUEUE: &str = "other";

/// What the status page shows of all this, at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Commands that ended, in the order of [`OutcomeKind::ALL`].
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

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    /// The waits of the delays as words, and [`OTHER_DELAY`].
    delays: Vec<String>,
    taken: IntCounterVec,
    settled: IntCounterVec,
    in_flight: IntGauge,
    unaccounted: IntGauge,
    outcomes: IntCounterVec,
    attempts: IntCounterVec,
    provider_seconds: HistogramVec,
    age_seconds: Histogram,
    lane_wait_seconds: Histogram,
    rate_limit_wait_seconds: Histogram,
    permits: IntGauge,
    permits_busy: IntGauge,
    rate: Gauge,
    configured_rate: Gauge,
    rate_limit_used: Gauge,
    responses: IntCounterVec,
    consumers: IntGauge,
    delayed_retries: IntCounterVec,
    delay_lateness: HistogramVec,
    publishes: IntCounterVec,
    publish_failures: IntCounterVec,
    depth: GaugeVec,
    dead_in_hand: AtomicBool,
    key_expiry: GaugeVec,
    key_files_failing: IntGauge,
    signature_failures: IntCounterVec,
    sessions_started: IntCounter,
    connected: IntGauge,
    blocked: IntGauge,
    consuming: IntGauge,
    suspended: IntGaugeVec,
    circuit_open: IntGauge,
    open_cause: IntGaugeVec,
    clock_skew: Gauge,
    deadline_exceeded: IntCounter,
    console_denials: IntCounterVec,
}

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
            permits: gauge("redeemer_concurrency_permits", "Number of commands that may be worked on at once."),
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
                if event_types_of(kind, reason) {
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

    /// A delivery was taken.
    pub fn record_taken(&self, arrival: Arrival) {
        self.taken.with_label_values(&[arrival.as_str()]).inc();
    }

    /// A delivery is no longer held.
    pub fn record_settled(&self, how: Settlement) {
        self.settled.with_label_values(&[how.as_str()]).inc();
    }

    /// How many deliveries are held, counted if they are held and not by what was taken and settled, and how many
    /// of them are worked on. What was taken, not settled and is not held has leaked. To be reported by the one task that
    /// takes and settles, after each.
    pub fn set_in_flight(&self, held: usize, working: usize) {
        let sum = |counters: &IntCounterVec, words: &[&str]| -> i64 {
            let each = words.iter().map(|word| counters.with_label_values(&[*word]).get());
            i64::try_from(each.sum::<u64>()).unwrap_or(i64::MAX)
        };
        let settled = sum(&self.settled, &Settlement::ALL.map(Settlement::as_str));
        let taken = sum(&self.taken, &Arrival::ALL.map(Arrival::as_str));
        let held = i64::try_from(held).unwrap_or(i64::MAX);
        self.in_flight.set(held);
        self.permits_busy.set(i64::try_from(working).unwrap_or(i64::MAX));
        self.unaccounted.set(taken - settled - held);
    }

    /// Work on a delivery begins, this long after it was taken.
    pub fn observe_lane_wait(&self, waited: Duration) {
        self.lane_wait_seconds.observe(waited.as_secs_f64());
    }

    /// A call had its turn, after this long.
    pub fn observe_rate_limit_wait(&self, waited: Duration) {
        self.rate_limit_wait_seconds.observe(waited.as_secs_f64());
    }

    /// How many commands may be worked on at once.
    pub fn set_permit_limit(&self, permits: usize) {
        self.permits.set(i64::try_from(permits).unwrap_or(i64::MAX));
    }

    /// Calls per second that may be made now.
    pub fn set_rate(&self, per_second: f64) {
        self.rate.set(per_second);
    }

    /// Calls per second that all instances together may make.
    pub fn set_rate_limit(&self, per_second: f64) {
        self.configured_rate.set(per_second);
    }

    /// The part of its share of the limit that this instance uses.
    pub fn rate_limit_used(&self, part: f64) {
        self.rate_limit_used.set(part);
    }

    /// What came of a call.
    pub fn record_response(&self, class: ResponseClass) {
        self.responses.with_label_values(&[class.as_str()]).inc();
    }

    /// How many consumers the command queue has.
    pub fn set_consumers(&self, consumers: u32) {
        self.consumers.set(i64::from(consumers));
    }

    /// A copy is in the delay queue of this wait.
    pub fn record_delayed(&self, delay: &str, reason: DelayReason) {
        self.delayed_retries.with_label_values(&[self.delay(delay), reason.as_str()]).inc();
    }

    /// A copy came back from the delay queue of this wait, this long after its wait was over.
    pub fn record_delay_lateness(&self, delay: &str, late: Duration) {
        self.delay_lateness.with_label_values(&[self.delay(delay)]).observe(late.as_secs_f64());
    }

    fn delay<'a>(&'a self, word: &str) -> &'a str {
        self.delays.iter().find(|delay| *delay == word).map_or(OTHER_QUEUE, String::as_str)
    }

    /// Messages ready in a queue; `None` where they could not be counted. The dead letter that is in hand counts with
    /// those that wait.
    pub fn set_queue_depth(&self, queue: Queue, messages: Option<u32>) {
        let in_hand = u32::from(queue == Queue::Dead && self.dead_in_hand.load(Ordering::Relaxed));
        let messages = messages.map(|messages| messages.saturating_add(in_hand));
        self.depth.with_label_values(&[queue.as_str()]).set(messages.map_or(f64::NAN, f64::from));
    }

    /// Whether a dead letter is in hand: it has no event yet.
    pub fn dead_letter_in_hand(&self, is_in_hand: bool) {
        self.dead_in_hand.store(is_in_hand, Ordering::Relaxed);
    }

    /// Commands that wait in the queue of dead letters, when last counted.
    pub fn dead_letters(&self) -> u32 {
        // NaN before it was counted, which is not one.
        self.depth.with_label_values(&[Queue::Dead.as_str()]).get() as u32
    }

    /// Messages in the delay queue of this wait; `None` where they could not be counted.
    pub fn set_delay_queue_depth(&self, delay: &str, messages: Option<u32>) {
        let delay = self.delay(delay);
        if delay != OTHER_QUEUE {
            let depth = self.depth.with_label_values(&[&format!("retry.{delay}")]);
            depth.set(messages.map_or(f64::NAN, f64::from));
        }
    }

    /// When a key ends, in seconds since 1970; `None` if it does not.
    pub fn set_key_expiry(&self, key: Key, at: Option<i64>) {
        self.key_expiry.with_label_values(&[key.as_str()]).set(at.unwrap_or(0) as f64);
    }

    /// A command came to its end and its event is confirmed. `None` where its age says nothing: it was parked
    /// unasked.
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

    /// A call was made.
    pub fn record_attempt(&self, operation: Operation, verdict: &Verdict, took: Duration) {
        self.attempts.with_label_values(&[operation.as_str(), verdict.as_str()]).inc();
        self.provider_seconds.with_label_values(&[operation.as_str()]).observe(took.as_secs_f64());
    }

    /// A message was published, or not proven to be.
    pub fn record_publish(&self, message: Message, proven: Result<(), PublishFailureKind>) {
        let confirmed = if proven.is_ok() { "yes" } else { "no" };
        self.publishes.with_label_values(&[message.as_str(), confirmed]).inc();
        if let Err(why) = proven {
            self.publish_failures.with_label_values(&[message.as_str(), why.as_str()]).inc();
        }
    }

    /// An answer's signature did not convince.
    pub fn record_signature_flaw(&self, flaw: SignatureFlaw) {
        self.signature_failures.with_label_values(&[flaw.as_str()]).inc();
    }

    /// An answer carried no signature at all.
    pub fn record_unsigned(&self) {
        self.signature_failures.with_label_values(&[UNSIGNED]).inc();
    }

    /// This many key files and secrets cannot be read any more, or hold what cannot be used.
    pub fn set_key_files_failing(&self, count: usize) {
        self.key_files_failing.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a request that the operator console denied.
    pub fn record_console_denied(&self, why: ConsoleDenial) {
        self.console_denials.with_label_values(&[why.as_str()]).inc();
    }

    /// The provider's clock less ours.
    pub fn set_clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
    }

    /// The provider's clock less ours when it last answered, in seconds; 0 before.
    pub fn last_clock_skew(&self) -> f64 {
        self.clock_skew.get()
    }

    /// A connection to the broker was built.
    pub fn record_connected(&self) {
        self.sessions_started.inc();
        self.connected.set(1);
    }

    /// The connection to the broker is gone.
    pub fn record_disconnected(&self) {
        self.connected.set(0);
        self.blocked.set(0);
        self.consuming.set(0);
    }

    /// Whether the broker blocks our publishing.
    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.set(i64::from(blocked));
    }

    /// Whether commands are being consumed.
    pub fn set_consuming(&self, consuming: bool) {
        self.consuming.set(i64::from(consuming));
    }

    /// Why calls are held back; `None` if they are not.
    pub fn set_circuit(&self, held_back: Option<CallDelay>) {
        self.circuit_open.set(i64::from(held_back.is_some()));
        for each in CallDelay::ALL {
            let now = i64::from(held_back == Some(each));
            self.open_cause.with_label_values(&[each.as_str()]).set(now);
            if let CallDelay::Suspended(fault) = each {
                self.suspended.with_label_values(&[fault.as_str()]).set(now);
            }
        }
    }

    /// What the status page shows.
    pub fn snapshot(&self) -> Snapshot {
        let ended = |kind: OutcomeKind| {
            let sum = |reason: &str| self.outcomes.with_label_values(&[kind.as_str(), reason]).get();
            let reported = Reason::ALL.into_iter().filter(|reason| event_types_of(kind, *reason));
            match kind {
                OutcomeKind::Redeemed => sum(""),
                _ => reported.map(|reason| sum(reason.as_str())).sum(),
            }
        };
        let calls =
            Operation::ALL.map(|operation| self.provider_seconds.with_label_values(&[operation.as_str()]));
        let depth = |queue: String| (self.depth.with_label_values(&[&queue]).get(), queue);
        let delays =
            self.delays.iter().filter(|delay| *delay != OTHER_QUEUE).map(|delay| format!("retry.{delay}"));
        let queues = [Queue::Commands].into_iter().map(|queue| queue.as_str().to_owned()).chain(delays);
        let rest = [Queue::Dead, Queue::Parked, Queue::Unrouted].map(|queue| queue.as_str().to_owned());
        Snapshot {
            outcomes: OutcomeKind::ALL.map(ended),
            calls: calls.iter().map(Histogram::get_sample_count).sum(),
            call_seconds: calls.iter().map(Histogram::get_sample_sum).sum(),
            in_flight: self.in_flight.get(),
            busy: self.permits_busy.get(),
            permits: self.permits.get(),
            rate: self.rate.get(),
            consumers: self.consumers.get(),
            sessions_started: self.sessions_started.get(),
            circuit_open: self.circuit_open.get() != 0,
            clock_skew: self.clock_skew.get(),
            depths: queues.chain(rest).map(depth).map(|(messages, queue)| (queue, messages)).collect(),
        }
    }

    /// Deliveries held now.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Everything in the text format of Prometheus.
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

/// Which reasons an outcome can have.
fn event_types_of(kind: OutcomeKind, reason: Reason) -> bool {
    let ours = match reason {
        Reason::InvalidCommand => OutcomeKind::Invalid,
        Reason::DeadlinePassed
        | Reason::AttemptsExhausted
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letter_in_hand_counts_with_those_that_wait() {
        let metrics = Metrics::default();
        metrics.dead_letter_in_hand(true);
        for (queue, counted) in [(Queue::Dead, 1), (Queue::Parked, 0)] {
            metrics.set_queue_depth(queue, Some(0));
            assert_eq!(metrics.depth.with_label_values(&[queue.as_str()]).get(), f64::from(counted));
        }
        assert_eq!(metrics.dead_letters(), 1);
        metrics.dead_letter_in_hand(false);
        metrics.set_queue_depth(Queue::Dead, Some(0));
        assert_eq!(metrics.dead_letters(), 0);
        metrics.set_queue_depth(Queue::Dead, None);
        assert_eq!(metrics.dead_letters(), 0, "nobody knows, and nothing is swept");
    }

    #[test]
    fn a_delivery_that_is_neither_settled_nor_held_shows() {
        let metrics = Metrics::default();
        metrics.record_taken(Arrival::First);
        metrics.record_taken(Arrival::Retry);
        metrics.set_in_flight(2, 1);
        assert!(metrics.render().contains("redeemer_unaccounted_deliveries 0"));
        metrics.record_settled(Settlement::Finished);
        metrics.set_in_flight(0, 0);
        assert!(metrics.render().contains("redeemer_unaccounted_deliveries 1"));
    }

    #[test]
    fn only_a_deadline_that_passed_counts_as_one() {
        let metrics = Metrics::default();
        for reason in [Reason::AttemptsExhausted, Reason::CorruptRetryMessage, Reason::DeadlinePassed] {
            metrics.record_outcome(&Outcome::Unresolved { reason, coupon: None, rejection: None }, None);
        }
        assert!(metrics.render().contains("redeemer_deadline_exceeded_total 1"));
    }
}
