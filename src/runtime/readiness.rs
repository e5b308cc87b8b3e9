//! Publishes the state of the service: readiness reasons, warnings and notices.

use std::sync::PoisonError;
use std::time::Instant;

use jiff::Timestamp;
use tracing::{info, warn};

use crate::amqp::confirm::PublishFailure;
use crate::amqp::connection::Health;
use crate::amqp::session::Session;
use crate::policy::call_signal::ResponseClass;
use crate::policy::classify::SuspendReason;
use crate::runtime::circuit_gate::{CircuitCause, FailureKind, GateState, State, SuspendedBy};
use crate::runtime::notices::{self};
use crate::runtime::service::{GRACE, Service};
use crate::telemetry::status::{ReasonCode, Status, StatusReason, join};

impl Service {
    pub(super) fn record_heartbeat(&self) {
        self.status.send_modify(|status| status.heartbeat = Timestamp::now());
    }

    /// Publishes readiness, warnings and gauges.
    pub(super) fn report(&mut self, session: &Session, consuming: bool, gate: &GateState, health: &Health) {
        self.idle_since = match self.held() {
            0 => self.idle_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
        let mut reasons = Vec::new();
        if let Some(why) = &health.blocked {
            let words = format!("broker: publishing is blocked ({why})");
            reasons.push(StatusReason::new(ReasonCode::BrokerBlocked, words));
        }
        let metrics = &self.context.metrics;
        metrics.broker.set_blocked(health.blocked.is_some());
        for why in self.unaccepted() {
            let remedy = match &why {
                PublishFailure::Rejected(rejection) => format!("; {}", session.remedy(rejection)),
                _ => String::new(),
            };
            let words = format!(
                "broker: results, retry messages or hand-backs are not accepted ({why}); they are published again{remedy}"
            );
            reasons.push(StatusReason::new(ReasonCode::PublishingRejected, words));
        }
        let idle = self.idle_since.is_some_and(|since| since.elapsed() > GRACE);
        let (open, cause) = match gate.state {
            State::Closed => (false, None),
            // It consumes, and no command has waited for a while: nothing is late.
            State::HalfOpen { cause: CircuitCause::Failing(_), .. } if idle && consuming => (false, None),
            State::HalfOpen { cause: CircuitCause::Starting, .. } => (false, None),
            State::HalfOpen { cause, .. } | State::Open { cause, .. } => (true, Some(cause)),
        };
        metrics.circuit.set_circuit(cause.and_then(notices::circuit_notice));
        let (part, throttled_share) = self.context.rate_limiter.reduced();
        let per_second = self.context.rate_limiter.per_second();
        metrics.rate_limit.set_rate(per_second);
        metrics.rate_limit.set_rate_limit_used(part);
        let notice_state = notices::NoticeState { per_second, part, throttled_share, cause };
        self.shown = self.notices.update(notice_state, &self.context.responses);
        // The use of permits changes without a delivery being received or settled.
        self.set_in_flight();
        if let Some(cause) = cause {
            let serial = self.merchant_serial();
            let caller = format!("merchant {}, serial {serial}", self.caller);
            let suspended_by = gate.suspended_by.as_deref().cloned().unwrap_or_default();
            let last = self.context.responses.last(ResponseClass::Unverified).map(|last| last.describe());
            let skew = metrics.provider.last_clock_skew();
            let words = describe_cause(cause, &caller, &suspended_by, skew, &last.unwrap_or_default());
            reasons.push(StatusReason::new(code_of(cause), words));
        }
        let consuming = consuming && health.blocked.is_none() && !open;
        metrics.broker.set_consuming(consuming);
        if !consuming && reasons.is_empty() {
            reasons.push(StatusReason::not_consuming());
        }
        self.publish_status(Some(session.at()), consuming, reasons);
    }

    /// The serial that calls are signed with now.
    pub(super) fn merchant_serial(&self) -> String {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        keys.merchant_serial.clone().unwrap_or_else(|| self.serial.clone())
    }

    /// Faults that need attention while other commands are processed.
    pub(super) fn warnings(&self) -> Vec<StatusReason> {
        let rejected = self.context.publish_faults.last_rejection().into_iter().map(|rejection| {
            let words = format!(
                "broker: an event is rejected, and its command delayed ({rejection}); others are published"
            );
            StatusReason::new(ReasonCode::EventRejected, words)
        });
        let waiting = match self.context.metrics.queues.dead_letters() {
            0 => None,
            count => {
                let words =
                    format!("broker: {count} dead-lettered commands have no event yet; they are swept");
                Some(StatusReason::new(ReasonCode::DeadLettersWaiting, words))
            }
        };
        let unswept = self.sweeps.failure.as_ref().map(|why| {
            let words = format!("broker: dead-lettered commands cannot be swept ({why}); it is tried again");
            StatusReason::new(ReasonCode::DeadLetterSweepFailed, words)
        });
        let size = self.message_sizes.warning();
        let size = size.map(|words| StatusReason::new(ReasonCode::MessageSizeUnbounded, words));
        let keys = self.key_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let keys = keys.into_iter().map(|why| {
            StatusReason::new(
                ReasonCode::KeyFileUnusable,
                format!("keys: {why}; the current ones stay in use"),
            )
        });
        rejected.chain(waiting).chain(unswept).chain(size).chain(keys).collect()
    }

    pub(super) fn publish_status(&self, broker: Option<&str>, consuming: bool, reasons: Vec<StatusReason>) {
        let (in_flight, warnings) = (self.held(), self.warnings());
        self.status.send_modify(|status| {
            if status.warnings != warnings && !warnings.is_empty() {
                warn!(warnings = join(&warnings, "; "), "needs attention");
            }
            if status.reasons != reasons {
                match reasons.as_slice() {
                    [] => info!("ready"),
                    reasons => warn!(reasons = join(reasons, "; "), "not ready"),
                }
            }
            *status = Status {
                heartbeat: Timestamp::now(),
                broker: broker.map(str::to_owned),
                consuming,
                in_flight,
                reasons,
                warnings,
                notices: self.shown.clone(),
            };
        });
    }
}

/// The code of the reason for which calls wait.
pub(super) fn code_of(cause: CircuitCause) -> ReasonCode {
    match cause {
        CircuitCause::Starting => ReasonCode::Starting,
        CircuitCause::Failing(FailureKind::NoResponse) => ReasonCode::ProviderUnreachable,
        CircuitCause::Failing(FailureKind::ServerError) => ReasonCode::ProviderFailing,
        CircuitCause::Failing(FailureKind::Unverified) => ReasonCode::ResponsesUnverified,
        CircuitCause::Suspended(SuspendReason::Unauthenticated) => ReasonCode::SuspendedUnauthenticated,
        CircuitCause::Suspended(SuspendReason::Unauthorized) => ReasonCode::SuspendedUnauthorized,
        CircuitCause::Suspended(SuspendReason::Rejected) => ReasonCode::SuspendedRejected,
    }
}

/// The reason in words. `caller` names who signs, `suspended_by` is the response that suspended calls, `skew` the
/// provider's clock less ours in seconds by its last response, `unverified` the last response that was not verified.
pub(super) fn describe_cause(
    cause: CircuitCause,
    caller: &str,
    suspended_by: &SuspendedBy,
    skew: f64,
    unverified: &str,
) -> String {
    let unverified = match unverified {
        "" => String::new(),
        last => format!("; last: {last}"),
    };
    let said = match suspended_by.said.as_str() {
        "" => String::new(),
        said => format!("; it says: {said}"),
    };
    match cause {
        CircuitCause::Starting => "starting: no call has succeeded yet".to_owned(),
        CircuitCause::Failing(FailureKind::NoResponse) => {
            "payment API: it does not respond; calls wait and are tried one at a time".to_owned()
        }
        CircuitCause::Failing(FailureKind::ServerError) => {
            "payment API: it responds with 5xx; calls wait and are tried one at a time".to_owned()
        }
        CircuitCause::Failing(FailureKind::Unverified) => format!(
            "payment API: its responses cannot be verified; check wechat.public_keys and the platform certificates, then \
             the clock ({caller}{}{unverified}); calls wait and are tried one at a time",
            describe_clock(skew)
        ),
        CircuitCause::Suspended(SuspendReason::Unauthenticated) => format!(
            "payment API: it rejects our signature (401); check the merchant key, its serial, the merchant number and \
             the clock ({caller}{}{said}); consumption resumes by itself once it is fixed",
            describe_clock(suspended_by.clock_skew.unwrap_or(0.0))
        ),
        CircuitCause::Suspended(SuspendReason::Rejected) => format!(
            "payment API: it rejects every call alike; check wechat.verification_serial, the names of \
             wechat.public_keys and the merchant number ({caller}{said}); consumption resumes by itself once it is fixed"
        ),
        CircuitCause::Suspended(SuspendReason::Unauthorized) => format!(
            "payment API: no brand has authorized us (NO_AUTH); check the merchant platform ({caller}{said}); \
             consumption resumes by itself once it is fixed"
        ),
    }
}

/// The clock skew if it is 3 s or more: `Date` has whole seconds, and the network takes its time.
pub(super) fn describe_clock(skew: f64) -> String {
    match skew.round() {
        behind if behind >= 3.0 => format!("; our clock is {behind} s behind the provider's"),
        ahead if ahead <= -3.0 => format!("; our clock is {} s ahead of the provider's", -ahead),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_names_the_clock_only_if_it_is_off() {
        let stopped = CircuitCause::Suspended(SuspendReason::Unauthenticated);
        let words = |skew, said: &str| {
            let suspended_by = SuspendedBy { said: said.to_owned(), clock_skew: Some(skew) };
            // Later responses do not change the reason.
            describe_cause(stopped, "merchant 19, serial 77", &suspended_by, 5_000.0, "")
        };
        let late = "(merchant 19, serial 77; our clock is 600 s behind the provider's; it says: SIGN_ERROR)";
        assert!(words(600.4, "SIGN_ERROR").contains(late));
        assert!(words(-61.0, "").contains("our clock is 61 s ahead of the provider's)"));
        assert!(!words(-1.2, "").contains("our clock is"));
    }
}
