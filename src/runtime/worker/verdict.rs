//! Reads a call outcome in the light of other commands: whether a rejection concerns this command, its brand, or every call.

use std::sync::PoisonError;
use std::time::Instant;

use crate::domain::evidence::Operation;
use crate::policy::brand_access::Denial;
use crate::policy::classify::{self, CallResult, NotAccepted, Verdict};
use crate::policy::common_rejection::RejectionKind;
use crate::wechat::client::CallOutcome;

use crate::runtime::worker::job::CommandJob;

impl CommandJob<'_> {
    pub(super) fn verdict_of(
        &self,
        operation: Operation,
        outcome: &CallOutcome,
        asked_at: Instant,
    ) -> Verdict {
        let verdict = self.carried.progress.advance(operation, &outcome.result, &self.redemption);
        let (brands, brand) = (&self.context.brands, self.redemption.brand_id.as_str());
        // Rights are granted interface by interface: a query that is allowed, or denied, says nothing about a use.
        let verdict = self.attribute_rejection(operation, outcome, verdict, asked_at);
        if operation == Operation::Query {
            return verdict;
        }
        match verdict {
            Verdict::NotAuthorized => match brands.record_denied(brand, Instant::now()) {
                Denial::ThisBrandOnly => verdict,
                Denial::Undecided => Verdict::NotAccepted(NotAccepted::NotAuthorized),
                Denial::AllBrands => Verdict::Suspended(classify::SuspendReason::Unauthorized),
            },
            Verdict::Redeemed => {
                brands.record_allowed(brand, asked_at);
                verdict
            }
            // A wrong parameter may be found before rights are checked.
            Verdict::Rejected { reason, .. } if reason.is_about_the_coupon() => {
                brands.record_allowed(brand, asked_at);
                verdict
            }
            _ => verdict,
        }
    }

    /// A signed rejection that may concern the headers of every call is not charged to the command.
    pub(super) fn attribute_rejection(
        &self,
        operation: Operation,
        outcome: &CallOutcome,
        verdict: Verdict,
        asked_at: Instant,
    ) -> Verdict {
        let mut rejections = self.context.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match unexplained_rejection(outcome, &verdict) {
            Some(UnexplainedRejection::Headers) => Verdict::Suspended(classify::SuspendReason::Rejected),
            Some(UnexplainedRejection::By(kind)) => {
                let response = outcome.result.response();
                let message = response.and_then(|response| response.message.as_deref());
                let is_alike = operation == Operation::Query
                    && response.is_some_and(|response| self.carried.progress.confirms_rejection(response));
                let owner = match operation {
                    Operation::Redeem => rejections.reject(kind, message, &self.redemption, now),
                    Operation::Query => {
                        rejections.reject_query(kind, message, &self.redemption, is_alike, now)
                    }
                };
                owner.attribute(operation, is_alike, verdict)
            }
            None => {
                if matches!(
                    verdict,
                    Verdict::Redeemed | Verdict::Refused(_) | Verdict::NotExecuted | Verdict::Rejected { .. }
                ) {
                    rejections.accept(self.redemption.brand_id.as_str(), asked_at);
                }
                verdict
            }
        }
    }
}

/// A signed rejection that no part of the command explains.
pub(super) enum UnexplainedRejection {
    /// The provider names a header.
    Headers,
    /// It names no field.
    By(RejectionKind),
}

/// The rejection if it may concern every call. One that names a field which requests send of their command, or whose
/// sub-code gives a reason of its own, concerns the command.
pub(super) fn unexplained_rejection(
    outcome: &CallOutcome,
    verdict: &Verdict,
) -> Option<UnexplainedRejection> {
    let (CallResult::Response(response), Verdict::Rejected { reason, .. }) = (&outcome.result, verdict)
    else {
        return None;
    };
    if outcome.detail.as_ref().is_some_and(|detail| detail.is_about_our_headers()) {
        return Some(UnexplainedRejection::Headers);
    }
    let names_a_field = outcome.detail.as_ref().is_some_and(|detail| detail.names_a_field());
    (reason.may_be_common() && !names_a_field).then(|| {
        let code = response.code.clone().unwrap_or_default();
        let kind = RejectionKind { status: response.status, code, sub_code: response.sub_code };
        UnexplainedRejection::By(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::reason::Reason;
    use crate::policy::classify::{Authenticity, Response};
    use crate::wechat::response::Detail;

    #[test]
    fn only_a_field_of_the_command_explains_a_rejection() {
        let rejected = Verdict::Rejected { reason: Reason::InvalidParameter, may_be_our_own_use: false };
        let kind_of = |field: &str, location: &str| {
            let response = Response {
                status: 400,
                authenticity: Authenticity::Verified,
                code: Some("PARAM_ERROR".into()),
                sub_code: None,
                coupon: None,
                message: None,
                request_id: None,
            };
            let detail = Detail { field: field.into(), location: location.into(), issue: "x".into() };
            let outcome =
                CallOutcome { detail: Some(detail), ..CallOutcome::only(CallResult::Response(response)) };
            match unexplained_rejection(&outcome, &rejected) {
                None => "the command",
                Some(UnexplainedRejection::Headers) => "headers",
                Some(UnexplainedRejection::By(..)) => "unknown",
            }
        };
        for field in
            ["/appid", "stock_id", "/associated_order_info/mchid", "out_request_no", "openid", "/use_time"]
        {
            assert_eq!(kind_of(field, "body"), "the command", "{field}");
        }
        for field in ["mchid", "/mchid", "serial_no", "sp_mchid", "sign", "", "request"] {
            assert_eq!(kind_of(field, "body"), "unknown", "{field}");
        }
        assert_eq!(kind_of("Wechatpay-Serial", "header"), "headers");
    }
}
