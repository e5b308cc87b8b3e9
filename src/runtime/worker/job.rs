//! One valid command in hand: waits, calls, and follows the steps of the attempt machine to the end.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::Publisher;
use crate::domain::evidence::Operation;
use crate::domain::redemption::Redemption;
use crate::policy::attempt::{EffectState, Limits, Progress, Step};
use crate::policy::classify::Verdict;
use crate::policy::host_choice::Host;
use crate::runtime::circuit_gate::{CallPermit, CallSignal, State};
use crate::runtime::failpoints::{self, Failpoint};
use crate::runtime::permits::Permit;
use crate::runtime::publishing::PublishInterrupted;
use crate::runtime::rate_limiter::Priority;
use crate::telemetry::metrics::DelayReason;
use crate::telemetry::spans::CommandSpan;
use crate::wechat::client::Prepared;
use crate::wire::retry_message::Restored;

use crate::runtime::worker::suspended_by::suspended_by;
use crate::runtime::worker::{Worked, WorkerContext};

/// One valid command in hand.
pub(super) struct CommandJob<'a> {
    pub(super) context: &'a WorkerContext,
    pub(super) limits: &'a Limits,
    pub(super) publisher: &'a Publisher,
    pub(super) redemption: Redemption,
    pub(super) prepared: Prepared,
    pub(super) delivery: Delivery,
    pub(super) carried: Restored,
    /// Whether the last call failed on the provider's side or on the network.
    pub(super) last_call_failed: bool,
    /// Whether any call in this delivery failed so: the next failure shows more about the coupon than about the provider.
    pub(super) failed_before: bool,
    /// The host that the network did not reach in the last call.
    pub(super) failed_at: Option<Host>,
    /// Whether calls are held back for long: it makes the call that is possible now, or none.
    pub(super) calls_held_back: bool,
    /// Whether a call about it has been made in this delivery.
    pub(super) called: bool,
    pub(super) command_span: &'a mut CommandSpan,
    pub(super) permit: &'a mut Permit,
}

/// No call can be made in time.
pub(super) struct NoCall;

/// How long calls may be held back between a query and the use that it permits: another instance that holds the command
/// may send one meanwhile.
pub(super) const QUERY_VALID_FOR: Duration = Duration::from_millis(50);

/// The longest wait for the circuit of a command that is past its deadline.
pub(super) const LATE_CIRCUIT_WAIT: Duration = Duration::from_millis(50);

/// The longest wait for the rate limit of such a command. With two calls of 15 s, a call that may be under way before
/// them, and the query delay between them, its event is published within a minute of the deadline.
pub(super) const LATE_PERMIT_WAIT: Duration = Duration::from_secs(3);

impl CommandJob<'_> {
    /// Follows the steps of the attempt machine until the command is settled.
    pub(super) async fn run(mut self, over_coupon_limit: bool, cancel: &CancellationToken) -> Worked {
        let limits = self.limits;
        if over_coupon_limit && let Some(Step::Delay { queue }) = self.carried.progress.delay_unaged(limits) {
            return Box::pin(self.delay(queue, DelayReason::PerCouponLimit, cancel)).await;
        }
        let mut step = self.carried.progress.start(limits, Timestamp::now());
        loop {
            step = match step {
                Step::Send { after, operation } => match self.step_around_load(after) {
                    Some(delayed) => delayed,
                    None => match self.call(after, operation, cancel).await {
                        Called::Step(step) => step,
                        Called::Canceled => {
                            let headers = self.hand_back_headers();
                            return Err(PublishInterrupted::Canceled(Box::new(self.delivery), headers));
                        }
                    },
                },
                // If it were held here it would remain the only probe, and other brands would not be tried.
                Step::Suspend(_) if let Some(delayed) = self.carried.progress.delay_unaged(limits) => delayed,
                // A dead letter returns to the others: a fault of our own is not charged to it.
                Step::Suspend(_) if self.carried.progress.is_query_only() => {
                    return Err(PublishInterrupted::Canceled(Box::new(self.delivery), Vec::new()));
                }
                // The circuit is open now; the next call waits for it.
                Step::Suspend(_) => self.carried.progress.resume(limits, Timestamp::now()),
                Step::Delay { queue } => {
                    return Box::pin(self.delay(queue, DelayReason::Unresolved, cancel)).await;
                }
                Step::Finish(outcome) => return Box::pin(self.finish(outcome, cancel)).await,
            };
        }
    }

    /// The step to a delay queue if a retry would cost commands that nothing is wrong with: too many wait in the prefetch,
    /// the circuit is not closed, the retry budget is spent, or first attempts wait for the rate limit.
    fn step_around_load(&mut self, after: Duration) -> Option<Step> {
        // Only trouble counts as a retry: what a redelivery or a rejection queries in addition does not.
        let is_retry = std::mem::take(&mut self.last_call_failed);
        let (limits, context) = (self.limits, self.context);
        // A dead letter has no delay queues: it waits among its own, which are few.
        let is_full = !after.is_zero() && !self.permit.has_room_to_wait();
        // While the circuit is not closed, another command finds out whether calls succeed again: one that only fails
        // itself must not keep the circuit open for all.
        let gives_way = is_retry && context.circuit_gate.state() != State::Closed;
        if (is_full || gives_way)
            && let Some(delayed) = self.carried.progress.delay_unaged(limits)
        {
            return Some(delayed);
        }
        let is_congested = !self.carried.evidence.is_empty() && context.rate_limiter.is_congested();
        let is_over = is_retry && !context.budget.try_spend() || is_congested;
        if !is_over || limits.delays.is_empty() {
            return None;
        }
        self.carried.progress.delay(limits, Timestamp::now())
    }

    /// Waits, calls and classifies. The wait can be canceled, the call cannot.
    async fn call(&mut self, after: Duration, operation: Operation, cancel: &CancellationToken) -> Called {
        if let Some(delayed) = self.delay_if_denied(operation) {
            return Called::Step(delayed);
        }
        if self.calls_held_back
            && !after.is_zero()
            && let Some(end) = self.carried.progress.expire(self.limits, Timestamp::now())
        {
            // Its query cannot be made.
            return Called::Step(end);
        }
        let waited = tokio::select! {
            // First, and not by chance: the connection may be gone, and the command with another instance.
            biased;
            () = cancel.cancelled() => return Called::Canceled,
            waited = self.wait_for_permit(after, operation) => waited,
        };
        let now = Timestamp::now();
        let Ok((call_permit, held_back)) = waited else { return self.go_without_call(now) };
        // Its brand may have denied another command meanwhile.
        if let Some(delayed) = self.delay_if_denied(operation) {
            return Called::Step(delayed);
        }
        if operation == Operation::Redeem
            && self.carried.progress.is_overtaken(held_back > QUERY_VALID_FOR, now)
        {
            return Called::Step(self.carried.progress.resume(self.limits, now));
        }
        // Once per command: a retry message or a redelivery earned its share before. Otherwise an outage would earn
        // ever more retries.
        if self.carried.evidence.is_empty() && !self.delivery.redelivered() {
            self.context.budget.record_first_attempt();
        }
        Called::Step(self.send(operation, call_permit, now).await)
    }

    /// Waits `after` without a concurrency permit, then for the circuit and the rate limit. Gives the call permit and
    /// how long the circuit held the call back.
    async fn wait_for_permit(
        &mut self,
        after: Duration,
        operation: Operation,
    ) -> Result<(CallPermit, Duration), NoCall> {
        let context = self.context;
        let priority = match operation {
            Operation::Query => Priority::Query,
            Operation::Redeem if self.carried.evidence.is_empty() => Priority::First,
            Operation::Redeem => Priority::Again,
        };
        let deadline = self.carried.progress.deadline;
        let late_at = deadline.saturating_add(self.limits.query_delay).unwrap_or(Timestamp::MAX);
        // A command that has queried its coupon goes on to the use. If each queried and gave way to the next, no use
        // would ever show whether uses succeed again.
        let gives_way = self.calls_held_back && !self.called;
        self.permit.release_while(after).await;
        let mut held_back = Duration::ZERO;
        loop {
            let left = late_at.duration_since(Timestamp::now());
            let is_late = left <= SignedDuration::ZERO;
            let wait_max = match is_late {
                true if gives_way => Duration::ZERO,
                // While calls are tried one by one, each may be the one that finds out.
                false if gives_way && matches!(context.circuit_gate.state(), State::Open { .. }) => {
                    Duration::ZERO
                }
                true => LATE_CIRCUIT_WAIT,
                false => self.limits.in_process_max,
            };
            let begun = Instant::now();
            let call_permit = timeout(wait_max, context.circuit_gate.acquire()).await.map_err(|_| NoCall)?;
            held_back += begun.elapsed();
            let queued_at = Instant::now();
            let is_permitted = match is_late {
                true => context.rate_limiter.acquire_within(priority, LATE_PERMIT_WAIT).await,
                false => {
                    let wait_max = left.unsigned_abs().saturating_add(LATE_PERMIT_WAIT);
                    timeout(wait_max, context.rate_limiter.acquire(priority)).await.is_ok()
                }
            };
            if !is_permitted {
                return Err(NoCall);
            }
            context.metrics.rate_limit.observe_rate_limit_wait(queued_at.elapsed());
            // The circuit may have opened during the wait for the rate limit.
            if call_permit.is_valid() {
                return Ok((call_permit, held_back));
            }
        }
    }

    /// Calls are held back for longer than a concurrency permit may be held.
    fn go_without_call(&mut self, now: Timestamp) -> Called {
        let (limits, progress) = (self.limits, &mut self.carried.progress);
        let end = progress.expire(limits, now);
        if end.is_none() && progress.is_query_only() {
            return Called::Canceled;
        }
        let step = end.or_else(|| progress.delay_held(limits, now));
        Called::Step(step.unwrap_or_else(|| progress.resume(limits, now)))
    }

    /// Makes the call and gives the step that follows from its verdict.
    async fn send(&mut self, operation: Operation, call_permit: CallPermit, now: Timestamp) -> Step {
        self.called = true;
        let mut span = self.command_span.start_call(operation.as_str());
        let (nonce, chance) = (rand::random(), rand::random());
        let asked_at = Instant::now();
        let (client, failed_at) = (&self.context.client, self.failed_at.take());
        let call = client.send_to_other_host(
            failed_at,
            operation,
            &self.prepared,
            span.traceparent(),
            now,
            nonce,
            chance,
        );
        let outcome = failpoints::during(Failpoint::Sent, call).await;
        failpoints::reached(Failpoint::Responded);
        let verdict = self.verdict_of(operation, &outcome, asked_at);
        let signal = CallSignal::of(operation, &verdict);
        // A circuit that opens is reported with the response that opened it.
        self.record_class(&outcome, signal, asked_at);
        let suspended_by = matches!(signal, CallSignal::Suspended(_)).then(|| suspended_by(&outcome));
        match signal {
            CallSignal::Failing(failure) if self.failed_before => {
                call_permit.report_repeated(operation, failure);
            }
            signal => call_permit.report(operation, signal, suspended_by),
        }
        self.failed_before |= matches!(signal, CallSignal::Failing(_));
        self.failed_at = outcome.failed_at();
        self.last_call_failed =
            matches!(verdict, Verdict::NotAccepted(_) | Verdict::NotSent | Verdict::Unknown(_));
        Self::record_call_span(&mut span, &outcome, &verdict);
        drop(span);
        self.record_attempt(operation, &outcome, &verdict, now);
        self.carried.progress.follow_verdict(
            operation,
            outcome.result,
            verdict,
            self.limits,
            Timestamp::now(),
            rand::random(),
        )
    }

    /// The step to the shortest delay queue, without a call, if the command's brand has just denied us a use and
    /// another command of it has not tried again. A query that only prepares a use is not worth its call then; a query
    /// that ends a command is.
    fn delay_if_denied(&mut self, operation: Operation) -> Option<Step> {
        let Progress { effect, deadline, .. } = self.carried.progress;
        let is_for_use =
            operation == Operation::Redeem || effect == EffectState::NoEffect && Timestamp::now() < deadline;
        let brand = self.redemption.brand_id.as_str();
        if !is_for_use || self.context.brands.may_try(brand, Instant::now()) {
            return None;
        }
        self.carried.progress.delay_unaged(self.limits)
    }
}

#[allow(clippy::large_enum_variant, reason = "nearly always a step, and it lives no longer than its match")]
pub(super) enum Called {
    Step(Step),
    Canceled,
}
