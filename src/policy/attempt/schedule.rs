//! When the next operation of a command runs: in process, after a delay queue, or never, because the command ends as
//! unresolved. It does not read verdicts; [`super::follow`] does.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{EffectState, Limits, Progress, Step, later};
use crate::domain::evidence::Operation;
use crate::domain::outcome::Outcome;
use crate::domain::reason::Reason;

impl Progress {
    /// A redeem of ours has ended and may still take effect within a query delay from now.
    pub(super) fn mark_unknown(&mut self, limits: &Limits, now: Timestamp) {
        self.set_effect(EffectState::Unknown);
        self.ever_unknown = true;
        self.hold_negatives(limits.query_delay, now);
    }

    /// A signed rejection that names no cause, of a redeem that may be unknown all the same.
    pub(super) fn mark_rejected_unclear(&mut self, reason: Reason, limits: &Limits, now: Timestamp) {
        self.mark_unknown(limits, now);
        self.set_effect(EffectState::RejectedUnclear { reason });
    }

    pub(super) fn reject(
        &mut self,
        reason: Reason,
        may_be_ours: bool,
        limits: &Limits,
        now: Timestamp,
    ) -> Step {
        self.set_effect(EffectState::Rejected { reason, may_be_ours });
        self.ever_unknown |= may_be_ours;
        if !self.ever_unknown {
            return self.send_after(Duration::ZERO, limits, now);
        }
        self.hold_negatives(limits.query_delay, now);
        self.await_settled(limits, now)
    }

    /// No query counts as negative until this time from now has passed.
    fn hold_negatives(&mut self, by: Duration, now: Timestamp) {
        self.negatives_from = self.negatives_from.max(Some(later(now, by)));
    }

    /// The time until a query counts: at most the longest call and a query delay, even if the clock was set back.
    pub(super) fn unsettled_for(&self, limits: &Limits, now: Timestamp) -> Duration {
        let left = self.negatives_from.map(|from| from.duration_since(now)).unwrap_or_default();
        let longest = limits.longest_call.saturating_add(limits.query_delay);
        left.max(SignedDuration::ZERO).unsigned_abs().min(longest)
    }

    pub(super) fn is_late(&self, now: Timestamp) -> bool {
        self.deadline.duration_since(now) <= SignedDuration::ZERO
    }

    pub(super) fn is_exhausted(&self, limits: &Limits) -> bool {
        self.attempts.saturating_sub(self.suspended) >= limits.attempts_max
    }

    pub(super) fn set_effect(&mut self, effect: EffectState) {
        self.effect = effect;
        self.negatives = 0;
        self.failures = 0;
    }

    pub(super) fn retry(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        let wait = limits.backoff.wait(self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        self.negatives = 0;
        // The coupon may change during the wait.
        self.query_first = self.ever_unknown && self.next_operation() == Operation::Redeem;
        self.send_after(wait, limits, now)
    }

    /// The next query, after a redeem that may be in flight has settled. The deadline does not shorten this wait: an
    /// earlier query would show nothing, but could still end the command as refused. A call that another instance may
    /// have begun outlasts the time that a permit is held, so the command waits for it in a delay queue, if one is short
    /// enough for no longer than necessary.
    pub(super) fn await_settled(&mut self, limits: &Limits, now: Timestamp) -> Step {
        let wait = self.unsettled_for(limits, now).max(limits.query_delay);
        self.query_first = self.effect.next_operation() == Operation::Redeem;
        if wait > limits.in_process_max && !self.last {
            let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
            let shortest = limits.delay_within(self.time_left(now)).map(|_| 0);
            if let Some(delay) = limits.delay_within(wait.min(self.time_left(now))).or(shortest) {
                return Step::Delay { queue: delay };
            }
        }
        self.schedule(wait, wait, limits, now)
    }

    fn time_left(&self, now: Timestamp) -> SignedDuration {
        self.deadline.duration_since(now)
    }

    pub(super) fn send_after(&mut self, wait: Duration, limits: &Limits, now: Timestamp) -> Step {
        self.schedule(wait, Duration::ZERO, limits, now)
    }

    /// The next operation after a wait in process, or after a delay if the wait is too long, or the last query. The
    /// deadline shortens the wait, but not below `least`: if `least` outlasts the deadline, the query is the last one.
    pub(super) fn schedule(
        &mut self,
        wait: Duration,
        least: Duration,
        limits: &Limits,
        now: Timestamp,
    ) -> Step {
        if self.last {
            return self.conclude_unknown(limits, now);
        }
        let left = self.time_left(now);
        if self.is_exhausted(limits) || left <= SignedDuration::try_from(least).unwrap_or(SignedDuration::MAX)
        {
            self.last = true;
            return self.send(least, Operation::Query, now);
        }
        let wait = wait.min(left.unsigned_abs());
        let waited = self.waited.saturating_add(wait);
        // The number of negative queries in a row does not travel through a delay queue, so the next query runs in
        // process. So does an operation without a wait.
        if waited > limits.in_process_max
            && !wait.is_zero()
            && self.negatives == 0
            && let Some(delay) = self.next_delay(limits, now)
        {
            return self.delay_in(delay, limits, now);
        }
        self.waited = waited;
        let operation = if self.query_first { Operation::Query } else { self.next_operation() };
        self.send(wait, operation, now)
    }

    pub(super) fn send(&mut self, after: Duration, operation: Operation, now: Timestamp) -> Step {
        let early = self.negatives_from.is_some_and(|from| later(now, after) < from);
        self.early = early && operation == Operation::Query;
        Step::Send { after, operation }
    }

    /// Delays the command in this queue, and in the next one the next time.
    pub(super) fn delay_in(&mut self, delay: usize, limits: &Limits, now: Timestamp) -> Step {
        self.delays_passed = self.delays_passed.saturating_add(1);
        self.hold_in(delay, limits, now)
    }

    /// Delays the command in this queue. If the broker redelivers the original message, its consumer may begin calls from
    /// now on.
    pub(super) fn hold_in(&mut self, delay: usize, limits: &Limits, now: Timestamp) -> Step {
        self.hold_negatives(limits.longest_call.saturating_add(limits.query_delay), now);
        Step::Delay { queue: delay }
    }

    pub(super) fn next_operation(&self) -> Operation {
        if self.only_query.is_some() { Operation::Query } else { self.effect.next_operation() }
    }

    /// The next delay queue: one further each time, but none that outlasts the deadline.
    pub(super) fn next_delay(&self, limits: &Limits, now: Timestamp) -> Option<usize> {
        if self.last {
            return None;
        }
        let left = self.time_left(now);
        let last = limits.delays.len().checked_sub(1)?;
        let next = (self.delays_passed as usize).min(last);
        (0..=next)
            .rev()
            .find(|delay| SignedDuration::try_from(limits.delays[*delay]).is_ok_and(|delay| delay <= left))
    }

    /// The last query did not settle the command.
    pub(super) fn conclude_unknown(&mut self, limits: &Limits, now: Timestamp) -> Step {
        let reason = if let Some(reason) = self.only_query {
            reason
        } else if !self.is_late(now) && self.is_exhausted(limits) {
            Reason::AttemptsExhausted
        } else {
            Reason::DeadlinePassed
        };
        Step::Finish(Outcome::Unresolved {
            reason,
            coupon: self.coupon.take(),
            // The parked command carries it, too, beside the effect that rests on it.
            rejection: self.rejection.clone(),
        })
    }
}
