//! The metrics. Every series exists from the start, at zero (depths: NaN). Every label is a word of an enum and never an
//! id, so no input can add a series.

mod labels;

pub use labels::{
    Arrival, CallDelay, ConsoleDenial, DelayReason, Key, Message, PublishFailureKind, Queue, Settlement,
};

mod registration;
mod snapshot;

pub use snapshot::Snapshot;

use crate::telemetry::metrics::registration::is_reason_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use crate::domain::evidence::Operation;
use crate::domain::outcome::{Outcome, OutcomeKind};
use crate::domain::reason::Reason;
use crate::policy::circuit::ResponseClass;
use crate::policy::classify::{SignatureFlaw, Verdict};

/// The label of a response without a signature, beside those of [`SignatureFlaw`].
const UNSIGNED: &str = "unsigned";

/// The label of a delay queue that is not among the configured ones: one of an earlier configuration.
const OTHER_QUEUE: &str = "other";

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    /// The waits of the delays as words, and [`OTHER_QUEUE`].
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

impl Metrics {
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

    /// Records how long a delivery waited from its receipt to its job.
    pub fn observe_lane_wait(&self, waited: Duration) {
        self.lane_wait_seconds.observe(waited.as_secs_f64());
    }

    /// Records how long a call waited for the rate limiter.
    pub fn observe_rate_limit_wait(&self, waited: Duration) {
        self.rate_limit_wait_seconds.observe(waited.as_secs_f64());
    }

    /// Sets the number of commands that may be processed at once.
    pub fn set_permit_limit(&self, permits: usize) {
        self.permits.set(i64::try_from(permits).unwrap_or(i64::MAX));
    }

    /// Sets the current rate limit of this instance, in calls per second.
    pub fn set_rate(&self, per_second: f64) {
        self.rate.set(per_second);
    }

    /// Sets the configured rate limit of the merchant, in calls per second.
    pub fn set_rate_limit(&self, per_second: f64) {
        self.configured_rate.set(per_second);
    }

    /// Sets the part of its share of the limit that this instance uses.
    pub fn set_rate_limit_used(&self, part: f64) {
        self.rate_limit_used.set(part);
    }

    /// Counts a call by the class of its response.
    pub fn record_response(&self, class: ResponseClass) {
        self.responses.with_label_values(&[class.as_str()]).inc();
    }

    /// Sets the number of consumers of the command queue.
    pub fn set_consumers(&self, consumers: u32) {
        self.consumers.set(i64::from(consumers));
    }

    /// Counts a retry message that was confirmed in a delay queue.
    pub fn record_delayed(&self, delay: &str, reason: DelayReason) {
        self.delayed_retries.with_label_values(&[self.delay(delay), reason.as_str()]).inc();
    }

    /// Records how long after the end of its wait a retry message was taken.
    pub fn record_delay_lateness(&self, delay: &str, late: Duration) {
        self.delay_lateness.with_label_values(&[self.delay(delay)]).observe(late.as_secs_f64());
    }

    fn delay<'a>(&'a self, word: &str) -> &'a str {
        self.delays.iter().find(|delay| *delay == word).map_or(OTHER_QUEUE, String::as_str)
    }

    /// Sets the number of ready messages in a queue; `None` if it is unknown. A dead letter in hand is included.
    pub fn set_queue_depth(&self, queue: Queue, messages: Option<u32>) {
        let in_hand = u32::from(queue == Queue::Dead && self.dead_in_hand.load(Ordering::Relaxed));
        let messages = messages.map(|messages| messages.saturating_add(in_hand));
        self.depth.with_label_values(&[queue.as_str()]).set(messages.map_or(f64::NAN, f64::from));
    }

    /// Sets whether a dead letter is in hand: it has no event yet.
    pub fn set_dead_letter_in_hand(&self, is_in_hand: bool) {
        self.dead_in_hand.store(is_in_hand, Ordering::Relaxed);
    }

    /// The number of dead letters without an event, when last counted.
    pub fn dead_letters(&self) -> u32 {
        // NaN before the first count becomes 0.
        self.depth.with_label_values(&[Queue::Dead.as_str()]).get() as u32
    }

    /// Sets the number of messages in a delay queue; `None` if it is unknown.
    pub fn set_delay_queue_depth(&self, delay: &str, messages: Option<u32>) {
        let delay = self.delay(delay);
        if delay != OTHER_QUEUE {
            let depth = self.depth.with_label_values(&[&format!("retry.{delay}")]);
            depth.set(messages.map_or(f64::NAN, f64::from));
        }
    }

    /// Sets when a key expires, in seconds since 1970; `None` if it does not.
    pub fn set_key_expiry(&self, key: Key, at: Option<i64>) {
        self.key_expiry.with_label_values(&[key.as_str()]).set(at.unwrap_or(0) as f64);
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

    /// Counts a call.
    pub fn record_attempt(&self, operation: Operation, verdict: &Verdict, took: Duration) {
        self.attempts.with_label_values(&[operation.as_str(), verdict.as_str()]).inc();
        self.provider_seconds.with_label_values(&[operation.as_str()]).observe(took.as_secs_f64());
    }

    /// Counts a publish.
    pub fn record_publish(&self, message: Message, result: Result<(), PublishFailureKind>) {
        let confirmed = if result.is_ok() { "yes" } else { "no" };
        self.publishes.with_label_values(&[message.as_str(), confirmed]).inc();
        if let Err(why) = result {
            self.publish_failures.with_label_values(&[message.as_str(), why.as_str()]).inc();
        }
    }

    /// Counts a response whose signature did not verify.
    pub fn record_signature_flaw(&self, flaw: SignatureFlaw) {
        self.signature_failures.with_label_values(&[flaw.as_str()]).inc();
    }

    /// Counts a response without a signature.
    pub fn record_unsigned(&self) {
        self.signature_failures.with_label_values(&[UNSIGNED]).inc();
    }

    /// Sets the number of key files and secrets that are no longer usable.
    pub fn set_key_files_failing(&self, count: usize) {
        self.key_files_failing.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a request that the operator console denied.
    pub fn record_console_denied(&self, why: ConsoleDenial) {
        self.console_denials.with_label_values(&[why.as_str()]).inc();
    }

    /// Sets the provider's clock minus ours, in seconds.
    pub fn set_clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
    }

    /// The provider's clock minus ours by the last response, in seconds; 0 before the first.
    pub fn last_clock_skew(&self) -> f64 {
        self.clock_skew.get()
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

    /// Sets why calls are held back; `None` if they are not.
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

    /// The values of the status page.
    pub fn snapshot(&self) -> Snapshot {
        let ended = |kind: OutcomeKind| {
            let sum = |reason: &str| self.outcomes.with_label_values(&[kind.as_str(), reason]).get();
            let reported = Reason::ALL.into_iter().filter(|reason| is_reason_of(kind, *reason));
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

    #[test]
    fn dead_letter_in_hand_counts_as_waiting() {
        let metrics = Metrics::default();
        metrics.set_dead_letter_in_hand(true);
        for (queue, counted) in [(Queue::Dead, 1), (Queue::Parked, 0)] {
            metrics.set_queue_depth(queue, Some(0));
            assert_eq!(metrics.depth.with_label_values(&[queue.as_str()]).get(), f64::from(counted));
        }
        assert_eq!(metrics.dead_letters(), 1);
        metrics.set_dead_letter_in_hand(false);
        metrics.set_queue_depth(Queue::Dead, Some(0));
        assert_eq!(metrics.dead_letters(), 0);
        metrics.set_queue_depth(Queue::Dead, None);
        assert_eq!(metrics.dead_letters(), 0, "unknown, and nothing is swept");
    }

    #[test]
    fn unaccounted_delivery_is_shown() {
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
    fn deadline_exceeded_counts_only_deadlines() {
        let metrics = Metrics::default();
        for reason in [Reason::AttemptsExhausted, Reason::CorruptRetryMessage, Reason::DeadlinePassed] {
            metrics.record_outcome(&Outcome::Unresolved { reason, coupon: None, rejection: None }, None);
        }
        assert!(metrics.render().contains("redeemer_deadline_exceeded_total 1"));
    }
}
