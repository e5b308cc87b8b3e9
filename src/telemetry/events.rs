//! One function per event of a command: its log line, its counters and the attributes of its span.

use jiff::SignedDuration;
use tracing::{error, info, warn};

use crate::domain::evidence::Evidence;
use crate::domain::outcome::{Outcome, OutcomeKind};
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;
use crate::telemetry::masking::Short;
use crate::telemetry::metrics::{DelayReason, Metrics};
use crate::telemetry::spans::CommandSpan;
use crate::telemetry::untrusted::Untrusted;
use crate::wire::command::PartialCommand;

/// A command came to its end, its event confirmed. `age` counts from when it was sent.
pub fn command_finished(
    metrics: &Metrics,
    span: &mut CommandSpan,
    redemption: &Redemption,
    outcome: &Outcome,
    attempts: u32,
    evidence: &[Evidence],
    age: SignedDuration,
) {
    metrics.commands.record_outcome(outcome, Some(age.unsigned_abs()));
    span.set_attribute("redemption.outcome", outcome.kind().as_str());
    if let Some(reason) = outcome.reason() {
        span.set_attribute("redemption.reason", reason.as_str());
    }
    span.set_attribute("redemption.attempts", i64::from(attempts));
    let request_id = evidence.last().and_then(|last| last.request_id.as_deref());
    let said = outcome.rejection().map(|rejection| {
        let words = [rejection.code.as_deref(), rejection.message.as_deref()];
        Untrusted(&words.into_iter().flatten().collect::<Vec<_>>().join(": ")).to_string()
    });
    let state = outcome.coupon().map(|coupon| coupon.state.as_str());
    macro_rules! line {
        ($level:ident, $text:literal) => {
            $level!(
                outcome = outcome.kind().as_str(),
                out_request_no = %redemption.out_request_no,
                coupon = %Short(redemption.coupon_code.as_str()),
                openid = %Short(redemption.openid.as_str()),
                brand_id = %redemption.brand_id,
                reason = outcome.reason().map(Reason::as_str),
                said = said.as_deref(),
                coupon_state = state,
                established_by = outcome.established_by().as_str(),
                attempts,
                age_ms = age.as_millis() as u64,
                request_id,
                trace_id = span.trace_id(),
                $text
            )
        };
    }
    match outcome {
        Outcome::Redeemed { .. } => line!(info, "redeemed"),
        Outcome::Refused { .. } => line!(info, "refused"),
        Outcome::Invalid => line!(warn, "invalid"),
        Outcome::Unresolved { .. } => line!(error, "unresolved; parked"),
    }
    // Such a rejection may also be an earlier use of ours under another body; an outcome is not.
    if let Outcome::Refused { reason: Reason::InvalidParameter, rejection, .. } = outcome {
        error!(
            out_request_no = %redemption.out_request_no,
            request_id = rejection.as_ref().and_then(|rejection| rejection.request_id.as_deref()),
            "defect: the provider rejects a parameter that our own check accepted"
        );
    }
}

/// An invalid command was parked, its event confirmed. `faults` names each field and its remedy.
pub fn command_invalid(metrics: &Metrics, span: &mut CommandSpan, partial: &PartialCommand, faults: &str) {
    metrics.commands.record_outcome(&Outcome::Invalid, None);
    span.set_attribute("redemption.outcome", OutcomeKind::Invalid.as_str());
    warn!(
        outcome = OutcomeKind::Invalid.as_str(),
        reason = Reason::InvalidCommand.as_str(),
        out_request_no = partial.out_request_no.as_ref().map(|number| number.as_str()),
        coupon = partial.coupon_code.as_ref().map(|code| Short(code.as_str())).map(tracing::field::display),
        openid = partial.openid.as_ref().map(|openid| Short(openid.as_str())).map(tracing::field::display),
        brand_id = partial.brand_id.as_ref().map(|brand| brand.as_str()),
        attempts = 0,
        trace_id = span.trace_id(),
        faults,
        "invalid command; parked"
    );
}

/// A retry message with corrupt headers was parked, its event confirmed.
pub fn retry_message_corrupt(
    metrics: &Metrics,
    span: &mut CommandSpan,
    redemption: &Redemption,
    fault: &dyn std::fmt::Display,
) {
    let outcome = Outcome::Unresolved { reason: Reason::CorruptRetryMessage, coupon: None, rejection: None };
    metrics.commands.record_outcome(&outcome, None);
    span.set_attribute("redemption.outcome", outcome.kind().as_str());
    error!(
        outcome = outcome.kind().as_str(),
        reason = Reason::CorruptRetryMessage.as_str(),
        out_request_no = %redemption.out_request_no,
        coupon = %Short(redemption.coupon_code.as_str()),
        openid = %Short(redemption.openid.as_str()),
        brand_id = %redemption.brand_id,
        trace_id = span.trace_id(),
        fault = %fault,
        "corrupt retry message; parked as unresolved"
    );
}

/// A command's retry message was confirmed in the delay queue `queue`, which holds it for `wait_s` seconds.
pub fn command_delayed(
    metrics: &Metrics,
    span: &CommandSpan,
    redemption: &Redemption,
    attempts: u32,
    effect: &str,
    delay: (&str, u64),
    reason: DelayReason,
) {
    let (queue, wait_s) = delay;
    metrics.queues.record_delayed(queue, reason);
    info!(
        out_request_no = %redemption.out_request_no,
        coupon = %Short(redemption.coupon_code.as_str()),
        openid = %Short(redemption.openid.as_str()),
        brand_id = %redemption.brand_id,
        attempts,
        effect,
        reason = reason.as_str(),
        wait_s,
        trace_id = span.trace_id(),
        "delayed; retried later"
    );
}

/// The event of an invalid command was not accepted; the message waits in the delay queue `queue`.
pub fn invalid_delayed(metrics: &Metrics, span: &CommandSpan, queue: &str, wait_s: u64) {
    metrics.queues.record_delayed(queue, DelayReason::EventRejected);
    warn!(wait_s, trace_id = span.trace_id(), "event not accepted; delivery delayed");
}
