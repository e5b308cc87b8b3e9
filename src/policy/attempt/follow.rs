//! From a verdict to the next step: what a response says about the effect of a command, and whether the command ends.
//! The time of the next operation is decided in [`super::schedule`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{ERRORS_REQUIRED, EffectState, Limits, NEGATIVES_REQUIRED, Progress, Step};
use crate::domain::coupon::Coupon;
use crate::domain::evidence::{Operation, Rejection};
use crate::domain::outcome::{EstablishedBy, Outcome};
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;
use crate::policy::classify::{
    self, Authenticity, CallResult, NotAccepted, Response, SuspendReason, UnknownCause, Verdict, classify,
};

impl From<&Response> for Rejection {
    fn from(response: &Response) -> Self {
        Self {
            http_status: response.status,
            code: response.code.clone(),
            sub_code: response.sub_code,
            message: response.message.clone(),
            request_id: response.request_id.clone(),
        }
    }
}

/// What a query found that shows no use of ours.
#[derive(Debug, Clone, Copy)]
enum Negative {
    /// The coupon is usable, and was never returned.
    Usable,
    /// It is not.
    Gone {
        /// Why not.
        reason: Reason,
        /// Whether the response describes the coupon.
        is_shown: bool,
    },
}

impl Progress {
    /// Classifies the result of a call of this command. A return before any instance can have sent the command ended no
    /// use of ours: the coupon is as usable as one that was never returned.
    pub fn advance(&self, operation: Operation, result: &CallResult, redemption: &Redemption) -> Verdict {
        let verdict = classify(operation, result, redemption);
        let returned = Verdict::Refused(Reason::ReturnedSince);
        match (self.unsent_before, result) {
            (Some(from), CallResult::Response(Response { coupon: Some(coupon), .. }))
                if verdict == returned && coupon.returned_before(from, &redemption.out_request_no) =>
            {
                Verdict::NotExecuted
            }
            _ => verdict,
        }
    }

    /// The step that follows from the `verdict` on the `result` of `operation`. `chance` is between 0 and 1.
    pub fn follow_verdict(
        &mut self,
        operation: Operation,
        result: CallResult,
        verdict: Verdict,
        limits: &Limits,
        now: Timestamp,
        chance: f64,
    ) -> Step {
        self.attempts = self.attempts.saturating_add(1);
        // A call that met our own fault does not count as an attempt: a wrong key must not use up the attempts.
        if matches!(
            verdict,
            Verdict::Suspended(_)
                | Verdict::RejectedAlike(_)
                | Verdict::NotAccepted(NotAccepted::NotAuthorized)
        ) {
            self.suspended = self.suspended.saturating_add(1);
        }
        let response = result.into_response();
        let signed =
            response.as_ref().is_some_and(|response| response.authenticity == Authenticity::Verified);
        let error = response.as_ref().filter(|response| response.status >= 400).map(Rejection::from);
        if operation == Operation::Redeem && error.is_some() {
            self.rejection.clone_from(&error);
        }
        let confirms = response.as_ref().is_some_and(|response| self.confirms_rejection(response));
        let coupon = response.and_then(|response| response.into_coupon(&verdict));
        if coupon.is_some() {
            self.coupon.clone_from(&coupon);
        } else if verdict.denies_coupon() {
            // The coupon that was seen before no longer holds.
            self.coupon = None;
        }
        if operation == Operation::Query
            && let Some(end) = self.conclude_rejected(&verdict, error, limits, now)
        {
            return end;
        }
        match operation {
            Operation::Redeem => self.follow_redeem(verdict, coupon, signed, limits, now, chance),
            Operation::Query => self.follow_query(verdict, coupon, confirms, limits, now, chance),
        }
    }

    fn follow_redeem(
        &mut self,
        verdict: Verdict,
        coupon: Option<Coupon>,
        signed: bool,
        limits: &Limits,
        now: Timestamp,
        chance: f64,
    ) -> Step {
        match (verdict, coupon) {
            (Verdict::Redeemed, Some(coupon)) => {
                Step::Finish(Outcome::Redeemed { by: EstablishedBy::Response, coupon })
            }
            (Verdict::Rejected { reason, may_be_our_own_use: may_be_ours }, _) => {
                self.reject(reason, may_be_ours, limits, now)
            }
            (Verdict::NotAuthorized, _) => self.reject(Reason::NotAuthorized, false, limits, now),
            (Verdict::NotAccepted(NotAccepted::NotAuthorized), _) => {
                self.delay_unaged(limits).unwrap_or_else(|| self.retry(limits, now, chance))
            }
            (Verdict::NotAccepted(_) | Verdict::NotSent, _) => self.retry(limits, now, chance),
            (Verdict::Suspended(fault), _) => {
                if !signed {
                    // The response may not come from the provider.
                    self.mark_unknown(limits, now);
                }
                self.suspend(fault, limits, now)
            }
            (Verdict::Unknown(UnknownCause::MayBeCommon(reason)), _) => {
                self.mark_rejected_unclear(reason, limits, now);
                self.await_settled(limits, now)
            }
            (Verdict::RejectedAlike(reason), _) => {
                self.mark_rejected_unclear(reason, limits, now);
                self.suspend(SuspendReason::Rejected, limits, now)
            }
            // A success is only read from a described coupon, and a redeem is refused only by a rejection. The effect of
            // any other combination is unknown.
            (Verdict::Redeemed | Verdict::Refused(_) | Verdict::NotExecuted | Verdict::Unknown(_), _) => {
                self.mark_unknown(limits, now);
                self.await_settled(limits, now)
            }
        }
    }

    fn follow_query(
        &mut self,
        verdict: Verdict,
        coupon: Option<Coupon>,
        confirms: bool,
        limits: &Limits,
        now: Timestamp,
        chance: f64,
    ) -> Step {
        self.reset_rejection(&verdict);
        let early = std::mem::take(&mut self.early);
        let by = EstablishedBy::Query;
        let (is_shown, is_clear) = (coupon.is_some(), self.effect == EffectState::NoEffect);
        match (verdict, coupon) {
            (Verdict::Redeemed, Some(coupon)) => Step::Finish(Outcome::Redeemed { by, coupon }),
            (Verdict::Suspended(fault), _) => self.suspend(fault, limits, now),
            (Verdict::RejectedAlike(_), _) => self.suspend(SuspendReason::Rejected, limits, now),
            (Verdict::NotAuthorized, _) => self.follow_query_not_granted(limits, now, chance),
            // No use of ours is known. If another delivery of the command caused the one that is shown, the same number and
            // body take no second effect, because nothing was returned.
            (Verdict::Unknown(UnknownCause::NoNumberNextUsable), _) if is_clear => {
                self.count_negative(Negative::Usable, early, limits, now)
            }
            (Verdict::Unknown(UnknownCause::NoNumber | UnknownCause::NoNumberNextUsable), _) => {
                self.follow_no_number(limits, now, chance)
            }
            // What comes early still lets the body go out if nothing was unknown.
            (_, _) if early && !is_clear => self.await_later_query(limits, now),
            // One query is enough to see another party's use or a return.
            (Verdict::Refused(reason @ (Reason::UsedByAnother | Reason::ReturnedSince)), _) => {
                self.refuse(reason, by)
            }
            (Verdict::Refused(reason), _) => {
                // The reason of the redeem's rejection says more than that there is no such coupon.
                let rejected = self.effect.rejection().filter(|_| reason == Reason::NoSuchCoupon);
                let gone = Negative::Gone { reason: rejected.unwrap_or(reason), is_shown };
                self.count_negative(gone, early, limits, now)
            }
            (Verdict::Rejected { reason, .. }, _) if confirms => {
                let reason = self.effect.signed_rejection().unwrap_or(reason);
                self.count_rejected(reason, early, limits, now)
            }
            // No use of ours is known, and one with these ids would have been rejected alike.
            (Verdict::Rejected { reason, .. }, _) if is_clear && reason.is_about_an_id() => match early {
                true => self.await_later_query(limits, now),
                false => self.count_rejected(reason, early, limits, now),
            },
            (Verdict::NotExecuted, _) => self.count_negative(Negative::Usable, early, limits, now),
            (
                Verdict::Redeemed
                | Verdict::Rejected { .. }
                | Verdict::NotAccepted(_)
                | Verdict::NotSent
                | Verdict::Unknown(_),
                _,
            ) => self.retry(limits, now, chance),
        }
    }

    /// A use is shown that may be ours.
    fn follow_no_number(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        if self.effect.rejection().is_none() {
            self.effect = EffectState::SeenUsed;
        }
        self.retry(limits, now, chance)
    }

    /// A query that came too early to count.
    fn await_later_query(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.negatives = 0;
        self.await_settled(limits, now)
    }

    /// A query was rejected as a use with these ids is.
    fn count_rejected(&mut self, reason: Reason, early: bool, limits: &Limits, now: Timestamp) -> Step {
        self.forget_contradicted_coupon(reason);
        self.count_negative(Negative::Gone { reason, is_shown: false }, early, limits, now)
    }

    /// Every call would fail. At the end of the time allowed the command ends instead of waiting.
    fn suspend(&mut self, fault: SuspendReason, limits: &Limits, now: Timestamp) -> Step {
        self.failures = 0;
        self.negatives = 0;
        if self.last { self.conclude_unknown(limits, now) } else { Step::Suspend(fault) }
    }

    /// The brand does not grant queries. If no use of ours can have taken effect, the body is sent without a query, and
    /// a rejection of it is final, except one that a use of ours may have caused: the same command may have been
    /// published twice, and the other delivery is not known here. If a use of ours may have taken effect, the same body
    /// would get the same response, but a second effect if the user returned the coupon meanwhile. So the command waits
    /// for the grant until its deadline: docs/decisions/0012-wait-for-the-right-to-look.md.
    fn follow_query_not_granted(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        self.negatives = 0;
        match self.effect {
            _ if self.last => self.conclude_unknown(limits, now),
            EffectState::NoEffect if self.only_query.is_some() => self.conclude_unknown(limits, now),
            EffectState::NoEffect => {
                self.query_first = false;
                self.send_after(Duration::ZERO, limits, now)
            }
            EffectState::Rejected { reason, may_be_ours: false } if !self.may_follow_our_own_use(reason) => {
                self.forget_contradicted_coupon(reason);
                self.refuse(reason, EstablishedBy::Response)
            }
            EffectState::Rejected { .. }
            | EffectState::RejectedUnclear { .. }
            | EffectState::Unknown
            | EffectState::SeenUsed => {
                self.delay(limits, now).unwrap_or_else(|| self.retry(limits, now, chance))
            }
        }
    }

    /// The end of a command of unknown effect whose queries have been rejected for long because of an id that they share
    /// with the use. No wait helps unless somebody changes what the id refers to; and it may have been changed since a use
    /// took effect, so it is not refused: docs/decisions/0016-end-what-only-rejected-queries-answer.md.
    fn conclude_rejected(
        &mut self,
        verdict: &Verdict,
        error: Option<Rejection>,
        limits: &Limits,
        now: Timestamp,
    ) -> Option<Step> {
        let is_rejected = matches!(verdict, Verdict::Rejected { reason, .. } if reason.is_about_an_id())
            && self.effect == EffectState::Unknown
            && self.only_query.is_none();
        if !is_rejected {
            self.query_rejected_since = None;
            return None;
        }
        if self.early {
            return None;
        }
        let since = *self.query_rejected_since.get_or_insert(now);
        let lasted = now.duration_since(since).max(SignedDuration::ZERO).unsigned_abs();
        (lasted >= limits.query_rejected_for()).then(|| {
            let coupon = self.coupon.take();
            Step::Finish(Outcome::Unresolved { reason: Reason::QueryRejected, coupon, rejection: error })
        })
    }

    /// Whether another delivery of this command may have used the coupon and caused the rejection. The signed code
    /// decides; the unsigned number cannot rule it out.
    fn may_follow_our_own_use(&self, reason: Reason) -> bool {
        let may = |rejection: &Rejection| {
            classify::may_follow_our_own_use(rejection.http_status, rejection.code.as_deref())
        };
        reason != Reason::NotAuthorized && self.rejection.as_ref().is_none_or(may)
    }

    /// Whether the response to a query rejects it as the redeem was rejected. The two share openid, appid, brand, product
    /// coupon, stock and coupon code, so a fault in one of these rejects both. The number separates the causes of one
    /// code, so it is required. A rejection that only a redeem can get confirms nothing.
    pub fn confirms_rejection(&self, response: &Response) -> bool {
        // `rejection` also keeps an unverified response, and that confirms nothing.
        let (Some(rejection), Some(reason)) = (&self.rejection, self.effect.signed_rejection()) else {
            return false;
        };
        let of_both = !matches!(reason, Reason::UsedByAnother | Reason::NumberConflict);
        let same = rejection.code == response.code && rejection.sub_code == response.sub_code;
        of_both && same && response.sub_code.is_some_and(|number| number != 0)
    }

    /// If the query is rejected as every command may be, a rejection of the use that says as little may have been common,
    /// too, and is no longer the command's own.
    fn reset_rejection(&mut self, verdict: &Verdict) {
        let may_be_common = matches!(
            verdict,
            Verdict::Suspended(SuspendReason::Rejected)
                | Verdict::RejectedAlike(_)
                | Verdict::Unknown(UnknownCause::MayBeCommon(_))
        );
        if let EffectState::Rejected { reason, .. } = self.effect
            && may_be_common
            && reason.may_be_common()
        {
            self.set_effect(EffectState::RejectedUnclear { reason });
        }
    }

    /// Drops a coupon that was seen before a rejection that contradicts it.
    fn forget_contradicted_coupon(&mut self, reason: Reason) {
        if reason.contradicts_usable_coupon() {
            self.coupon = None;
        }
    }

    fn refuse(&mut self, reason: Reason, by: EstablishedBy) -> Step {
        Step::Finish(Outcome::Refused {
            reason,
            by,
            coupon: self.coupon.take(),
            rejection: self.rejection.take(),
        })
    }

    /// A query found no use of ours.
    fn count_negative(&mut self, found: Negative, early: bool, limits: &Limits, now: Timestamp) -> Step {
        let (gone, is_shown) = match found {
            Negative::Usable => (None, true),
            Negative::Gone { reason, is_shown } => (Some(reason), is_shown),
        };
        if gone.is_none() && self.effect == EffectState::NoEffect {
            // A query between two uses that were not accepted does not count as a success: the waits keep growing.
            self.negatives = 0;
            self.query_first = false;
            return self.send_after(Duration::ZERO, limits, now);
        }
        if early && self.effect == EffectState::NoEffect && !self.last {
            // Another delivery's use may have caused this and may be returned later: query again before a use.
            self.set_effect(EffectState::Unknown);
        }
        self.negatives += u8::from(!early);
        let required = match self.effect {
            _ if !is_shown => ERRORS_REQUIRED,
            // No use of ours is known that the query could miss.
            EffectState::NoEffect => 1,
            EffectState::Rejected { .. } if !self.ever_unknown => 1,
            EffectState::Unknown
            | EffectState::SeenUsed
            | EffectState::RejectedUnclear { .. }
            | EffectState::Rejected { .. } => NEGATIVES_REQUIRED,
        };
        if self.negatives < required {
            // Even after the last query, if a second one with the same result would end the command.
            let would_end = gone.is_some()
                || !matches!(self.effect, EffectState::Unknown | EffectState::RejectedUnclear { .. });
            return if self.last && would_end {
                let wait = self.unsettled_for(limits, now).max(limits.query_delay);
                self.send(wait, Operation::Query, now)
            } else {
                self.await_settled(limits, now)
            };
        }
        match (gone, self.effect) {
            (None, EffectState::NoEffect | EffectState::Unknown | EffectState::RejectedUnclear { .. })
                if self.only_query.is_some() =>
            {
                self.conclude_unknown(limits, now)
            }
            (Some(reason), _) => self.refuse(reason, EstablishedBy::Query),
            (None, EffectState::Rejected { reason, .. }) => {
                // A usable coupon exists and is unused, so a reason that contradicts this is not reported.
                let reason = if reason.contradicts_usable_coupon() { Reason::Rejected } else { reason };
                self.refuse(reason, EstablishedBy::Query)
            }
            (None, EffectState::SeenUsed) => self.refuse(Reason::ReturnedSince, EstablishedBy::Query),
            (None, EffectState::Unknown | EffectState::NoEffect | EffectState::RejectedUnclear { .. }) => {
                self.set_effect(EffectState::NoEffect);
                self.send_after(Duration::ZERO, limits, now)
            }
        }
    }
}
