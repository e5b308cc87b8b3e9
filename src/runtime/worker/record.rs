//! Records the result of a call: metrics, response log, evidence and span.

use std::time::Instant;

use jiff::Timestamp;
use tracing::debug;

use crate::domain::evidence::{Evidence, Operation};
use crate::policy::call_signal::ResponseClass;
use crate::policy::classify::{Authenticity, CallResult, Verdict};
use crate::runtime::circuit_gate::CallSignal;
use crate::telemetry::spans::ChildSpan;
use crate::wechat::client::CallOutcome;

use crate::runtime::worker::job::CommandJob;

impl CommandJob<'_> {
    /// Records the response class with the rate limiter, the metrics and the response log.
    pub(super) fn record_class(&self, outcome: &CallOutcome, signal: CallSignal, asked_at: Instant) {
        let response = outcome.result.response();
        let class = ResponseClass::of(response, signal);
        if let Some(response) = response {
            let again = self.carried.evidence.iter().any(|evidence| evidence.status == Some(429));
            // WeChat Pay does not document that its gateway signs a 429, so one without a signature slows down, too.
            self.context.rate_limiter.record(asked_at, response.status == 429, again);
        }
        self.context.metrics.provider.record_response(class);
        self.context.responses.record(class, outcome, Instant::now());
    }

    /// Records one attempt: metrics, log line and evidence.
    pub(super) fn record_attempt(
        &mut self,
        operation: Operation,
        outcome: &CallOutcome,
        verdict: &Verdict,
        at: Timestamp,
    ) {
        let context = self.context;
        context.metrics.provider.record_attempt(operation, verdict, outcome.took);
        if let Some(skew) = outcome.clock_skew {
            context.metrics.provider.set_clock_skew(skew.as_secs_f64());
        }
        let response = outcome.result.response();
        match response.map(|response| response.authenticity) {
            Some(Authenticity::Invalid(flaw)) => context.metrics.provider.record_signature_flaw(flaw),
            Some(Authenticity::Unsigned) => context.metrics.provider.record_unsigned(),
            Some(Authenticity::Verified) | None => {}
        }
        let evidence = Evidence {
            at,
            operation: operation.as_str().to_owned(),
            host: outcome.host_name.clone(),
            status: response.map(|response| response.status),
            request_id: response.and_then(|response| response.request_id.as_deref()).map(str::to_owned),
            serial: outcome.serial.clone(),
            verdict: verdict.as_str().to_owned(),
        };
        debug!(
            out_request_no = %self.redemption.out_request_no,
            operation = operation.as_str(),
            ?verdict,
            status = evidence.status,
            request_id = evidence.request_id,
            took_ms = outcome.took.as_millis() as u64,
            error = outcome.error,
            unbelieved = outcome.unverified.as_ref().map(|seen| seen.in_words()),
            trace_id = self.command_span.trace_id(),
            "attempt"
        );
        self.carried.evidence.push(evidence);
        Evidence::keep_last(&mut self.carried.evidence);
    }

    /// Sets the attributes of a call's span.
    pub(super) fn record_call_span(publish_span: &mut ChildSpan, outcome: &CallOutcome, verdict: &Verdict) {
        publish_span.set_attribute("server.address", outcome.host_name.clone());
        publish_span.set_attribute("redemption.verdict", verdict.as_str());
        match &outcome.result {
            CallResult::Response(response) => {
                publish_span.set_attribute("http.response.status_code", i64::from(response.status));
                if let Some(id) = &response.request_id {
                    publish_span.set_attribute("redemption.request_id", id.to_string());
                }
                if response.status >= 400 {
                    publish_span.record_failure(&format!("status {}", response.status));
                }
            }
            CallResult::NotSent(_) | CallResult::NoResponse(_) => {
                publish_span.record_failure(outcome.error.as_deref().unwrap_or("no complete response"))
            }
        }
    }
}
