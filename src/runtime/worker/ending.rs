//! Ends the work on a command: a retry message in a delay queue, or the result event, parked if it is unresolved.

use jiff::{SignedDuration, Timestamp};

use crate::amqp::topology::delay_name;
use crate::domain::outcome::Outcome;
use crate::policy::attempt::Progress;
use crate::runtime::publishing::{Outgoing, PublishContext, PublishInterrupted, publish, publish_within};
use crate::telemetry::events;
use crate::telemetry::metrics::{DelayReason, Message, Settlement};
use crate::telemetry::spans::CommandSpan;
use crate::wire::result_event;
use crate::wire::retry_message::{self, Restored};
use tokio_util::sync::CancellationToken;

use crate::runtime::worker::Worked;
use crate::runtime::worker::hand_back::dead_letter_retry_headers;
use crate::runtime::worker::invalid::event_context;
use crate::runtime::worker::job::CommandJob;

impl CommandJob<'_> {
    fn publishing<'a>(&'a self, cancel: &'a CancellationToken) -> PublishContext<'a> {
        self.context.publish_context(self.publisher, cancel)
    }

    fn retry_headers(&self) -> Vec<(&'static str, String)> {
        let Restored { progress, evidence } = &self.carried;
        let mut headers = retry_message::write(progress, evidence, self.prepared.body_sha256());
        push_trace_headers(&mut headers, self.command_span);
        headers
    }

    /// The headers of a command that is handed back; empty if no call about it has been made.
    pub(super) fn hand_back_headers(&self) -> Vec<(&'static str, String)> {
        let Restored { progress, evidence } = &self.carried;
        if evidence.is_empty() && progress.attempts == 0 {
            return Vec::new();
        }
        self.retry_headers()
    }

    /// Publishes a retry message to the delay queue with this index, confirmed.
    pub(super) async fn delay(self, queue: usize, reason: DelayReason, cancel: &CancellationToken) -> Worked {
        let Some(wait) = self.limits.delays.get(queue).copied() else {
            // The index is always chosen from this very list.
            let headers = self.hand_back_headers();
            return Err(PublishInterrupted::Canceled(Box::new(self.delivery), headers));
        };
        let headers = self.retry_headers();
        let span = self.command_span.start_publish(Message::Retry.as_str());
        let message = Outgoing::Retry(wait, &headers);
        let confirmed = match publish(self.publishing(cancel), &self.delivery, message, span).await {
            Ok(confirmed) => confirmed,
            Err(interrupted) => return Err(interrupted.into_worked(self.delivery, headers)),
        };
        let Progress { attempts, effect, .. } = self.carried.progress;
        events::command_delayed(
            &self.context.metrics,
            self.command_span,
            &self.redemption,
            attempts,
            &effect.to_header(),
            (&delay_name(wait), wait.as_secs()),
            reason,
        );
        Ok((Settlement::Delayed, self.delivery, confirmed))
    }

    /// Publishes the result event, and parks the command if it is unresolved.
    pub(super) async fn finish(self, outcome: Outcome, cancel: &CancellationToken) -> Worked {
        let (context, query_only) = (self.context, self.carried.progress.is_query_only());
        let now = Timestamp::now();
        let span = self.command_span.start_publish(Message::Event.as_str());
        let Restored { progress, evidence } = &self.carried;
        let event = event_context(context, &span, now, progress.attempts, evidence);
        let event = result_event::encode(&self.redemption, &outcome, event);
        let held_max =
            if query_only { context.publish_retry_max } else { context.event_held_max(self.limits) };
        let (publishing, message) = (self.publishing(cancel), Outgoing::Event(&event));
        let published = publish_within(publishing, &self.delivery, message, span, held_max).await?;
        let Some(mut confirmed) = published else {
            if query_only {
                let headers = dead_letter_retry_headers(&self.delivery, cancel);
                return Err(PublishInterrupted::Canceled(Box::new(self.delivery), headers));
            }
            return Box::pin(self.delay_unpublished(outcome, cancel)).await;
        };
        if let Outcome::Unresolved { reason, .. } = &outcome {
            let headers = self.retry_headers();
            let span = self.command_span.start_publish(Message::Parked.as_str());
            let message = Outgoing::Parked(*reason, now, &headers);
            confirmed = match Box::pin(publish(self.publishing(cancel), &self.delivery, message, span)).await
            {
                Ok(parked) => confirmed.join(parked),
                Err(interrupted) => return Err(interrupted.into_worked(self.delivery, headers)),
            };
        }
        let Self { redemption, delivery, carried: Restored { progress, evidence }, command_span, .. } = self;
        // The time in the command queue counts if the sender says when it began.
        let (sent, now) = (delivery.sent_by(), Timestamp::now());
        let begin = age_begins(sent, progress.first_seen, now, context.deadline_limits.furthest);
        let (attempts, age) = (progress.attempts, now.duration_since(begin));
        events::command_finished(
            &context.metrics,
            command_span,
            &redemption,
            &outcome,
            attempts,
            &evidence,
            age,
        );
        Ok((Settlement::Finished, delivery, confirmed))
    }

    /// The broker has not accepted the event for as long as a delivery is held for it. If it were held longer, the
    /// broker would close the channel, deliver the command again, and in the end park it without an event. The retry
    /// message queries the coupon when it returns, and its event is published then.
    async fn delay_unpublished(mut self, outcome: Outcome, cancel: &CancellationToken) -> Worked {
        self.carried.progress.forget_outcome(&outcome);
        let queue = self.carried.progress.delay_rejected(self.limits);
        self.delay(queue, DelayReason::EventRejected, cancel).await
    }
}

/// Adds the trace that a retry message belongs to.
pub(super) fn push_trace_headers(headers: &mut Vec<(&'static str, String)>, command_span: &CommandSpan) {
    if let Some((command, here)) = command_span.propagated() {
        headers.push(("traceparent", command));
        headers.push((retry_message::TRACE, here));
    }
}

/// When the age of a command begins: when it was sent, by its `timestamp`, or when it was first seen, by the headers of
/// a retry message. Both can be forged: a time in the future does not count, nor one that is further back than a
/// deadline can lie ahead.
pub(super) fn age_begins(
    sent: Option<Timestamp>,
    first_seen: Timestamp,
    now: Timestamp,
    furthest: SignedDuration,
) -> Timestamp {
    let is_plausible = |at: &Timestamp| {
        let ago = now.duration_since(*at);
        !ago.is_negative() && ago <= furthest
    };
    [sent, Some(first_seen)].into_iter().flatten().filter(is_plausible).min().unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_time_of_sending_makes_no_age() {
        let now: Timestamp = "2026-03-05T05:00:00Z".parse().unwrap();
        let ago = |hours: i64| now.saturating_sub(SignedDuration::from_hours(hours)).unwrap();
        let age = |sent: Option<Timestamp>, first_seen: Timestamp| {
            now.duration_since(age_begins(sent, first_seen, now, SignedDuration::from_hours(72)))
        };
        let hours = SignedDuration::from_hours;
        assert_eq!(age(Some(ago(3)), ago(2)), hours(3));
        assert_eq!(age(Some(ago(1)), ago(2)), hours(2));
        assert_eq!(age(None, ago(2)), hours(2));
        let forged = [Timestamp::UNIX_EPOCH, Timestamp::MIN, Timestamp::MAX, ago(73), ago(-1)];
        for at in forged {
            assert_eq!(age(Some(at), ago(2)), hours(2), "{at}");
            assert_eq!(age(Some(ago(1)), at), hours(1), "{at}");
            assert_eq!(age(Some(at), at), hours(0), "{at}");
        }
    }
}
