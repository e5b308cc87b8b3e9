//! Queue depths and delayed retries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::{GaugeVec, HistogramVec, IntCounterVec};

use crate::telemetry::metrics::register::Register;
use crate::telemetry::metrics::{DelayReason, Queue};

const LATENESS_BOUNDS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0];

/// The label of a delay queue that is not among the configured ones: one of an earlier configuration.
const OTHER_QUEUE: &str = "other";

/// The metrics of queues.
pub struct QueueMetrics {
    /// The waits of the delays as words, and [`OTHER_QUEUE`].
    delays: Vec<String>,
    delayed_retries: IntCounterVec,
    delay_lateness: HistogramVec,
    depth: GaugeVec,
    dead_in_hand: AtomicBool,
}

impl QueueMetrics {
    /// `delays` are the waits of the delay queues as words.
    pub(super) fn new(register: &Register<'_>, delays: &[String]) -> Self {
        let metrics = Self {
            delays: delays.iter().cloned().chain([OTHER_QUEUE.to_owned()]).collect(),
            delayed_retries: register.counters(
                "redeemer_delayed_retries_total",
                "Number of retry messages confirmed in a delay queue, by queue and reason.",
                &["queue", "reason"],
            ),
            delay_lateness: register.histograms(
                "redeemer_delayed_retry_lateness_seconds",
                "Time from the end of a retry message's delay until it was taken, by delay queue, in whole seconds.",
                &LATENESS_BOUNDS,
                "queue",
            ),
            depth: register.float_gauges(
                "redeemer_queue_depth",
                "Number of ready messages in a queue, when last counted; NaN before, and if it could not be counted.",
                "queue",
            ),
            dead_in_hand: AtomicBool::new(false),
        };
        for delay in &metrics.delays {
            for reason in DelayReason::ALL {
                metrics.delayed_retries.with_label_values(&[delay, reason.as_str()]);
            }
            metrics.delay_lateness.with_label_values(&[delay]);
            metrics.set_delay_queue_depth(delay, None);
        }
        for queue in Queue::ALL {
            metrics.set_queue_depth(*queue, None);
        }
        metrics
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

    /// Ready messages by queue; NaN if unknown.
    pub(super) fn depths(&self) -> Vec<(String, f64)> {
        let word = |queue: Queue| queue.as_str().to_owned();
        let delays = self.delays.iter().filter(|delay| *delay != OTHER_QUEUE);
        let delays = delays.map(|delay| format!("retry.{delay}"));
        let rest = [Queue::Dead, Queue::Parked, Queue::Unrouted].map(word);
        let queues = [word(Queue::Commands)].into_iter().chain(delays).chain(rest);
        queues.map(|queue| (queue.clone(), self.depth.with_label_values(&[&queue]).get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letter_in_hand_counts_as_waiting() {
        let metrics = QueueMetrics::new(&Register(&prometheus::Registry::new()), &[]);
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
}
