//! The last ten minutes, for the status page: samples in a ring, and the last problems.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use crate::telemetry::metrics::Snapshot;
use crate::telemetry::status::StatusReason;

/// Time between two samples.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// Samples kept: ten minutes of them.
const SAMPLES_MAX: usize = 120;
/// Problems kept.
const PROBLEMS_MAX: usize = 8;

/// The samples and problems. Bounded, and lost with the process: Prometheus keeps more.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Snapshot>,
    problems: VecDeque<(Timestamp, StatusReason)>,
}

/// The changes between two samples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Interval {
    /// Commands that ended, in the order of `OutcomeKind::ALL`.
    pub outcomes: [u64; 4],
    /// Calls to the payment API.
    pub calls: u64,
    /// The mean time of a call, in milliseconds; none without calls.
    pub call_ms: Option<f64>,
}

impl History {
    /// Takes a sample.
    pub(super) fn sample(&mut self, snapshot: Snapshot) {
        self.samples.push_back(snapshot);
        while self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
    }

    /// Remembers the reasons why the service is not ready, if they are new.
    pub(super) fn problems(&mut self, at: Timestamp, reasons: &[StatusReason]) {
        // The first moments of a start are not a problem.
        let passing = |reason: &&StatusReason| !reason.code.is_starting();
        for reason in reasons.iter().filter(passing) {
            if !self.problems.iter().rev().take(reasons.len()).any(|(_, known)| known == reason) {
                self.problems.push_back((at, reason.clone()));
            }
        }
        while self.problems.len() > PROBLEMS_MAX {
            self.problems.pop_front();
        }
    }

    /// The last problems, the latest first.
    pub(super) fn last_problems(&self) -> impl Iterator<Item = &(Timestamp, StatusReason)> {
        self.problems.iter().rev()
    }

    /// The changes between the samples, oldest first.
    pub(super) fn intervals(&self) -> Vec<Interval> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(|(before, after)| Interval::between(before, after)).collect()
    }

    /// The changes in the last minute, or since the start if that was later.
    pub(super) fn last_minute(&self) -> Interval {
        let back = (60 / EVERY.as_secs()) as usize;
        match (self.samples.iter().rev().nth(back).or(self.samples.front()), self.samples.back()) {
            (Some(before), Some(after)) => Interval::between(before, after),
            _ => Interval::default(),
        }
    }
}

impl Interval {
    fn between(before: &Snapshot, after: &Snapshot) -> Self {
        let mut outcomes = [0; 4];
        for ((more, after), before) in outcomes.iter_mut().zip(after.outcomes).zip(before.outcomes) {
            *more = after.saturating_sub(before);
        }
        let calls = after.calls.saturating_sub(before.calls);
        let seconds = (after.call_seconds - before.call_seconds).max(0.0);
        let call_ms = (calls > 0).then(|| seconds * 1_000.0 / calls as f64);
        Self { outcomes, calls, call_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::ReasonCode;

    fn snapshot(redeemed: u64, calls: u64, call_seconds: f64) -> Snapshot {
        Snapshot { outcomes: [redeemed, 0, 0, 0], calls, call_seconds, ..Snapshot::default() }
    }

    #[test]
    fn intervals_are_differences_and_the_ring_is_bounded() {
        let mut history = History::default();
        for nth in 0..500 {
            history.sample(snapshot(nth * 10, nth * 20, nth as f64));
        }
        let intervals = history.intervals();
        assert_eq!(intervals.len(), SAMPLES_MAX - 1);
        assert_eq!(intervals[0], Interval { outcomes: [10, 0, 0, 0], calls: 20, call_ms: Some(50.0) });
        assert_eq!(history.last_minute().outcomes[0], 120);
    }

    #[test]
    fn a_problem_is_remembered_once_while_it_lasts() {
        let mut history = History::default();
        let reason = |words: &str| StatusReason::new(ReasonCode::BrokerUnavailable, words);
        let reasons = [reason("gone"), reason("refused")];
        for _ in 0..10 {
            history.problems(Timestamp::UNIX_EPOCH, &reasons);
        }
        assert_eq!(history.last_problems().count(), 2);
        for nth in 0..100 {
            history.problems(Timestamp::UNIX_EPOCH, &[reason(&format!("problem {nth}"))]);
        }
        assert_eq!(history.last_problems().count(), PROBLEMS_MAX);
        assert_eq!(history.last_problems().next().unwrap().1.words, "problem 99");
    }
}
