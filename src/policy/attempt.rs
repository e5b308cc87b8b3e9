//! What follows from a verdict: the state machine of one command, from the first operation to the outcome.
//!
//! Pure: no clock, no dice, no IO. `now` and chance are arguments, a [`Step`] is what to do, and only
//! [`crate::runtime::worker`] does it. The laws, tested in `tests/attempt_laws.rs`: what is unknown never ends as refused
//! or redeemed without an authentic answer; nothing is sent once a return was seen, nor by a copy that has not
//! looked at the coupon first, if it may look; what may be our own use is refused on two queries in a row only,
//! each a query delay after the longest call that anybody may have begun; every wait but such a one ends before the
//! deadline; every command comes to an end.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::domain::coupon::Coupon;
use crate::domain::evidence::Operation;
use crate::domain::evidence::Rejection;
use crate::domain::outcome::{EstablishedBy, Outcome};
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;
use crate::policy::backoff::Backoff;
use crate::policy::classify::{
    self, Authenticity, CallResult, NotAccepted, Response, SuspendReason, UnknownCause, Verdict, classify,
};

/// How long and how often a command is worked on.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Waits between operations in process.
    pub backoff: Backoff,
    /// All waits in process together; beyond it the command goes to a delay.
    pub in_process_max: Duration,
    /// How long after the end of an unknown redeem a query may count as "not executed".
    pub query_delay: Duration,
    /// The longest that one call lasts: what another instance may have begun before it lost a command ends by then.
    pub longest_call: Duration,
    /// The waits of the delays, shortest first. Empty means that nothing is ever delayed.
    pub delays: Vec<Duration>,
    /// The most attempts of one command, through every delay.
    pub attempts_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            in_process_max: Duration::from_secs(8),
            query_delay: Duration::from_secs(2),
            longest_call: Duration::from_secs(15),
            delays: [10, 60, 300, 1_800, 7_200].map(Duration::from_secs).to_vec(),
            attempts_max: 1_000,
        }
    }
}

/// How many negative queries in a row, each after a query delay, prove that nothing was executed where something
/// may have been.
const NEGATIVES_REQUIRED: u8 = 2;

/// What is believed of a command between two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EffectState {
    /// No redeem of ours can have taken effect.
    NoEffect,
    /// A redeem may have taken effect.
    Unknown,
    /// A use was seen that may be ours: nobody said under which number. If the coupon is usable again it was returned.
    SeenUsed,
    /// The provider rejected, signed; its word counts once the coupon has been seen.
    Rejected {
        /// What it rejected to.
        reason: Reason,
        /// Whether it may be an earlier use of ours, reported back as "already used".
        doubtful: bool,
    },
}

impl EffectState {
    /// The words that carry an effect through a delay queue. Whether anything was ever unknown needs no word: of a
    /// copy that is always assumed.
    pub fn to_header(self) -> String {
        match self {
            Self::NoEffect => "no_effect".to_owned(),
            Self::Unknown => "unknown".to_owned(),
            Self::SeenUsed => "used".to_owned(),
            Self::Rejected { reason, doubtful: false } => format!("rejected {}", reason.as_str()),
            Self::Rejected { reason, doubtful: true } => format!("rejected_unverified {}", reason.as_str()),
        }
    }

    /// Reads the words back. No other reasons are taken than the provider can object for.
    pub fn from_header(words: &str) -> Option<Self> {
        let rejection = |word| Reason::REJECTIONS.into_iter().find(|reason| reason.as_str() == word);
        let (kind, reason) = match words.split_once(' ') {
            Some((kind, reason)) => (kind, Some(rejection(reason)?)),
            None => (words, None),
        };
        match (kind, reason) {
            ("no_effect", None) => Some(Self::NoEffect),
            ("unknown", None) => Some(Self::Unknown),
            ("used", None) => Some(Self::SeenUsed),
            ("rejected", Some(reason)) => Some(Self::Rejected { reason, doubtful: false }),
            ("rejected_unverified", Some(reason)) => Some(Self::Rejected { reason, doubtful: true }),
            _ => None,
        }
    }

    /// What the provider rejected to, where the effect rests on an rejection.
    pub fn rejection(self) -> Option<Reason> {
        match self {
            Self::Rejected { reason, .. } => Some(reason),
            Self::NoEffect | Self::Unknown | Self::SeenUsed => None,
        }
    }

    fn next_operation(self) -> Operation {
        match self {
            Self::NoEffect => Operation::Redeem,
            Self::Unknown | Self::SeenUsed | Self::Rejected { .. } => Operation::Query,
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Wait in process, then put the operation.
    Send {
        /// How long to wait first.
        after: Duration,
        /// What to ask.
        operation: Operation,
    },
    /// Hand a copy to the delay queue of this delay (an index into [`Limits::delays`]).
    Delay {
        /// Which delay queue.
        queue: usize,
    },
    /// Every call would fail: wait until calls are allowed again, then [`Progress::resume`].
    Suspend(SuspendReason),
    /// The command has come to its end.
    Finish(Outcome),
}

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

/// How far a command has come. It travels through delay queues as headers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Operations put so far, through every delay: as many as the evidence shows, or more.
    pub attempts: u32,
    /// Of these, how many met a fault of our own or a brand that keeps us out. They do not use up the attempts.
    pub suspended: u32,
    /// Delay queues passed so far.
    pub delays_passed: u32,
    /// What is believed.
    pub effect: EffectState,
    /// When the command was first seen.
    pub first_seen: Timestamp,
    /// When the work ends.
    pub deadline: Timestamp,
    /// The provider's last words about a refusal.
    pub rejection: Option<Rejection>,
    /// The coupon of this command as an authentic reply last described it, `None` if one has said since that there is
    /// no such coupon. Its state travels, the rest does not.
    pub coupon: Option<Coupon>,
    /// From when a query may find that a use of ours did not take effect: a query delay after the end of the longest
    /// call that anybody may have begun. `None` if that is not known of a command that others have held.
    pub negatives_from: Option<Timestamp>,
    /// Before when nobody can have sent this command: what was returned by then was no use of ours. `None` if that is
    /// not known, because others held it first.
    pub unsent_before: Option<Timestamp>,
    /// Waited in process so far, in this delivery.
    waited: Duration,
    /// Failures in a row of this kind, in this delivery.
    failures: u32,
    /// Queries in a row, each not early, that found no use of ours. Whatever else a query brings begins a new row.
    negatives: u8,
    /// Whether a use of ours may have taken effect unseen at some time: an answer proved nothing, or another
    /// delivery of this command exists or existed.
    ever_unknown: bool,
    /// Whether the operation in hand is the last one.
    last: bool,
    /// Whether the query in hand comes before [`Progress::negatives_from`]: only a success counts.
    early: bool,
    /// Whether the coupon is still to be looked at before anything is sent.
    query_first: bool,
    /// Set if nothing may be sent any more but queries: the reason if they do not settle the matter.
    only_query: Option<Reason>,
}

/// The most calls about a command that may only be asked about: an early look, and two that count.
const ONLY_QUERIES: u32 = 3;

impl Progress {
    /// A command seen for the first time. One that the broker delivers again may have been sent before a crash.
    pub fn new(first_seen: Timestamp, deadline: Timestamp, redelivered: bool) -> Self {
        let effect = if redelivered { EffectState::Unknown } else { EffectState::NoEffect };
        let resumed = Self::resumed(0, 0, effect, first_seen, deadline, None);
        let unsent_before = (!redelivered).then_some(first_seen);
        Self { ever_unknown: redelivered, unsent_before, ..resumed }
    }

    /// A command that comes back from a delay queue with what its headers say. The delivery that it was copied from
    /// may live on (a crash before its acknowledgement, a copy dead-lettered twice), redeem, and see a return.
    pub fn resumed(
        attempts: u32,
        delays_passed: u32,
        effect: EffectState,
        first_seen: Timestamp,
        deadline: Timestamp,
        rejection: Option<Rejection>,
    ) -> Self {
        Self {
            attempts,
            suspended: 0,
            delays_passed,
            effect,
            first_seen,
            deadline,
            rejection,
            coupon: None,
            negatives_from: None,
            unsent_before: None,
            waited: Duration::ZERO,
            failures: 0,
            negatives: 0,
            ever_unknown: true,
            last: false,
            early: false,
            query_first: false,
            only_query: None,
        }
    }

    /// From now on nothing but a few queries is sent, and nothing is delayed: what they do not settle is unresolved for
    /// `reason`. Gives the limits that go with it.
    ///
    /// `ended` is when the last delivery of it had ended: anyone who held it can have begun no call since.
    pub fn only_query(&mut self, reason: Reason, ended: Option<Timestamp>, limits: &Limits) -> Limits {
        self.only_query = Some(reason);
        self.ever_unknown = true;
        if self.effect == EffectState::NoEffect {
            self.effect = EffectState::Unknown;
        }
        let longest = limits.longest_call.saturating_add(limits.query_delay);
        self.negatives_from = ended.map(|at| later(at, longest));
        let attempts_max = self.attempts.saturating_sub(self.suspended).saturating_add(ONLY_QUERIES);
        Limits { delays: Vec::new(), attempts_max, ..limits.clone() }
    }

    /// Another delivery of this command may exist: nothing is sent before the coupon was looked at.
    pub fn require_query(&mut self) {
        self.ever_unknown = true;
        self.unsent_before = None;
    }

    /// Whether it is only asked about.
    pub fn is_query_only(&self) -> bool {
        self.only_query.is_some()
    }

    /// A copy that the broker delivers again: what was believed when it was delayed may be outdated.
    pub fn mark_redelivered(&mut self) {
        if self.effect == EffectState::NoEffect {
            self.effect = EffectState::Unknown;
        }
        self.negatives_from = None;
    }

    /// The first step of a delivery.
    pub fn start(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.negatives = 0;
        if self.ever_unknown {
            // Anyone who held it before may have begun a call until now, and no later.
            let longest = later(now, limits.longest_call.saturating_add(limits.query_delay));
            self.negatives_from = Some(self.negatives_from.map_or(longest, |from| from.min(longest)));
        }
        let queries = self.next_operation() == Operation::Query;
        if self.ever_unknown && queries && (self.is_late(now) || self.is_exhausted(limits)) {
            // The last query must count, whatever it finds.
            let wait = self.unsettled_for(limits, now);
            return self.schedule(wait, wait, limits, now);
        }
        // Another delivery may have sent the body a moment ago. If it took effect, that can be seen at once. Nothing
        // else that is seen too early counts, and nothing is sent before something was seen.
        self.query_first = self.ever_unknown && !queries;
        self.send_after(Duration::ZERO, limits, now)
    }

    /// The step after a [`Step::Suspend`], once calls are allowed again.
    pub fn resume(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.start(limits, now)
    }

    /// Whether a use must not go out as it was decided on, but [`Progress::resume`] comes first: its deadline has passed,
    /// or it was `held_back` since the coupon was looked at, and another delivery may have changed what was seen.
    pub fn is_overtaken(&self, held_back: bool, now: Timestamp) -> bool {
        self.is_late(now) || held_back && self.ever_unknown
    }

    /// The delay queue for a command that may not wait in process: the shared retry budget is spent, or calls are
    /// halted. Where no delay queue ends before the deadline it is the shortest, for a permit is worth more than that
    /// delay; `None` if there is no delay queue at all.
    pub fn delay(&mut self, limits: &Limits, now: Timestamp) -> Option<Step> {
        let shortest = (!limits.delays.is_empty()).then_some(0);
        self.next_delay(limits, now).or(shortest).map(|delay| self.delay_in(delay, limits, now))
    }

    /// The shortest delay queue, for a delay that is not the command's fault: it grows no older by it. Where no brand's
    /// authorization covered it, another command finds out meanwhile whether only its brand is shut.
    pub fn delay_unaged(&mut self, limits: &Limits) -> Option<Step> {
        (!limits.delays.is_empty()).then_some(Step::Delay { queue: 0 })
    }

    /// What is believed of a command that waits because the broker does not take its event. Afterward the coupon is
    /// looked at again, and that is reported.
    pub fn forget_outcome(&mut self, outcome: &Outcome) {
        self.effect = match outcome {
            // Other queues may have taken the event: the provider's rejection stands, whatever it would say by then.
            Outcome::Refused { reason, rejection: Some(_), .. }
                if self.effect.rejection().is_some() && Reason::REJECTIONS.contains(reason) =>
            {
                EffectState::Rejected { reason: *reason, doubtful: false }
            }
            // What a query found is found again.
            _ => EffectState::Unknown,
        };
        self.rejection = outcome.rejection().cloned();
    }

    /// The end of a command whose deadline has passed while no call can be made.
    pub fn expire(&mut self, limits: &Limits, now: Timestamp) -> Option<Step> {
        self.is_late(now).then(|| self.conclude_unknown(limits, now))
    }

    /// Judges a reply to this command. A return that was over before anybody can have sent the command ended no use of
    /// ours: the coupon is as usable as one that was never returned.
    pub fn advance(&self, operation: Operation, reply: &CallResult, redemption: &Redemption) -> Verdict {
        let verdict = classify(operation, reply, redemption);
        let returned = Verdict::Refused(Reason::ReturnedSince);
        match (self.unsent_before, reply) {
            (Some(from), CallResult::Response(Response { coupon: Some(coupon), .. }))
                if verdict == returned && coupon.returned_before(from, &redemption.out_request_no) =>
            {
                Verdict::NotExecuted
            }
            _ => verdict,
        }
    }

    /// What follows from the `verdict` on the `reply` to `operation`. `chance` is between 0 and 1.
    pub fn follow_verdict(
        &mut self,
        operation: Operation,
        reply: CallResult,
        verdict: Verdict,
        limits: &Limits,
        now: Timestamp,
        chance: f64,
    ) -> Step {
        self.attempts = self.attempts.saturating_add(1);
        // What met our own fault was no attempt on this coupon: a key that is wrong all night must not use them up.
        if matches!(verdict, Verdict::Suspended(_) | Verdict::NotAccepted(NotAccepted::NotAuthorized)) {
            self.suspended = self.suspended.saturating_add(1);
        }
        let answer = match reply {
            CallResult::Response(answer) => Some(answer),
            CallResult::NotSent(_) | CallResult::NoResponse(_) => None,
        };
        let signed = answer.as_ref().is_some_and(|answer| answer.authenticity == Authenticity::Verified);
        if operation == Operation::Redeem
            && let Some(answer) = answer.as_ref().filter(|answer| answer.status >= 400)
        {
            self.rejection = Some(Rejection::from(answer));
        }
        let confirms = answer.as_ref().is_some_and(|answer| self.confirms_rejection(answer));
        let coupon = answer.and_then(|answer| answer.into_coupon(&verdict));
        if coupon.is_some() {
            self.coupon.clone_from(&coupon);
        } else if verdict.denies_coupon() {
            // What was seen of it before is no longer so.
            self.coupon = None;
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
            (Verdict::Rejected { reason, may_be_our_own_use: doubtful }, _) => {
                self.reject(reason, doubtful, limits, now)
            }
            (Verdict::NotAuthorized, _) => self.reject(Reason::NotAuthorized, false, limits, now),
            (Verdict::NotAccepted(NotAccepted::NotAuthorized), _) => {
                self.delay_unaged(limits).unwrap_or_else(|| self.retry(limits, now, chance))
            }
            (Verdict::NotAccepted(_) | Verdict::NotSent, _) => self.retry(limits, now, chance),
            (Verdict::Suspended(fault), _) => {
                if !signed {
                    // Anyone who answered need not be the provider.
                    self.mark_unknown(limits, now);
                }
                self.suspend(fault, limits, now)
            }
            // A success is only ever judged from a described coupon; without one there is nothing to report. And nobody
            // refuses a redeem but by an rejection.
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
        let early = std::mem::take(&mut self.early);
        let by = EstablishedBy::Query;
        match (verdict, coupon) {
            (Verdict::Redeemed, Some(coupon)) => Step::Finish(Outcome::Redeemed { by, coupon }),
            (Verdict::Suspended(fault), _) => self.suspend(fault, limits, now),
            (Verdict::NotAuthorized, _) => self.follow_query_not_granted(limits, now, chance),
            (Verdict::Unknown(UnknownCause::NoNumber), _) => {
                if self.effect.rejection().is_none() {
                    self.effect = EffectState::SeenUsed;
                }
                self.retry(limits, now, chance)
            }
            // What comes early still lets the body go out if nothing was unknown.
            (_, _) if early && self.effect != EffectState::NoEffect => {
                self.negatives = 0;
                self.await_settled(limits, now)
            }
            // Somebody else's use and a return are seen, not missed: once is enough.
            (Verdict::Refused(reason @ (Reason::UsedByAnother | Reason::ReturnedSince)), _) => {
                self.refuse(reason, by)
            }
            (Verdict::Refused(reason), _) => {
                // What the redeem was rejected for says more than that there is no such coupon.
                let rejected = self.effect.rejection().filter(|_| reason == Reason::NoSuchCoupon);
                self.count_negative(Some(rejected.unwrap_or(reason)), early, limits, now)
            }
            (Verdict::Rejected { .. }, _) if confirms => {
                let rejected = self.effect.rejection();
                rejected.into_iter().for_each(|reason| self.forget_contradicted_coupon(reason));
                self.count_negative(rejected, early, limits, now)
            }
            (Verdict::NotExecuted, _) => self.count_negative(None, early, limits, now),
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

    /// Every call would fail. At the end of the time allowed none exists to wait for.
    fn suspend(&mut self, fault: SuspendReason, limits: &Limits, now: Timestamp) -> Step {
        self.failures = 0;
        self.negatives = 0;
        if self.last { self.conclude_unknown(limits, now) } else { Step::Suspend(fault) }
    }

    /// The brand does not let us look. Where no use of ours can have taken effect, none is missed by sending the body
    /// without a look, and a rejection of it stands by itself, but for one that a use of ours may have caused: the same
    /// command may have been published twice, and nobody knows of the other delivery. If one may have, the same body again would be answered
    /// alike; but it would be a second effect where the user returned the coupon meanwhile. So the command waits for the
    /// right to look, until its deadline: docs/decisions/0012-wait-for-the-right-to-look.md.
    fn follow_query_not_granted(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        self.negatives = 0;
        match self.effect {
            _ if self.last => self.conclude_unknown(limits, now),
            EffectState::NoEffect if self.only_query.is_some() => self.conclude_unknown(limits, now),
            EffectState::NoEffect => {
                self.query_first = false;
                self.send_after(Duration::ZERO, limits, now)
            }
            EffectState::Rejected { reason, doubtful: false } if !self.may_follow_our_own_use(reason) => {
                self.forget_contradicted_coupon(reason);
                self.refuse(reason, EstablishedBy::Response)
            }
            EffectState::Rejected { .. } | EffectState::Unknown | EffectState::SeenUsed => {
                self.delay(limits, now).unwrap_or_else(|| self.retry(limits, now, chance))
            }
        }
    }

    /// Whether the coupon may be rejected because another delivery of this command has used it. The signed code decides:
    /// no number makes us less careful.
    fn may_follow_our_own_use(&self, reason: Reason) -> bool {
        let may = |rejection: &Rejection| {
            classify::may_follow_our_own_use(rejection.http_status, rejection.code.as_deref())
        };
        reason != Reason::NotAuthorized && self.rejection.as_ref().is_none_or(may)
    }

    /// Whether an answer to a query rejects it as the redeem was rejected. The two share openid, appid, brand, product
    /// coupon, stock and coupon code: what is wrong with one of these, both are reported. The number reports the causes of
    /// one code apart, so there has to be one; one that can only be reported of a redeem confirms nothing.
    fn confirms_rejection(&self, answer: &Response) -> bool {
        // Its words are also kept of an answer that was not believed, and such a one confirms nothing.
        let (Some(rejection), Some(_)) = (&self.rejection, self.effect.rejection()) else { return false };
        let of_both =
            !matches!(self.effect.rejection(), Some(Reason::UsedByAnother | Reason::NumberConflict));
        let same = rejection.code == answer.code && rejection.sub_code == answer.sub_code;
        of_both && same && answer.sub_code.is_some_and(|number| number != 0)
    }

    /// A coupon that was seen before it was rejected for this reason may be so no more.
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

    /// A redeem of ours has ended, and may take effect until a query delay from now.
    fn mark_unknown(&mut self, limits: &Limits, now: Timestamp) {
        self.set_effect(EffectState::Unknown);
        self.ever_unknown = true;
        self.hold_negatives(limits.query_delay, now);
    }

    fn reject(&mut self, reason: Reason, doubtful: bool, limits: &Limits, now: Timestamp) -> Step {
        self.set_effect(EffectState::Rejected { reason, doubtful });
        self.ever_unknown |= doubtful;
        if !self.ever_unknown {
            return self.send_after(Duration::ZERO, limits, now);
        }
        self.hold_negatives(limits.query_delay, now);
        self.await_settled(limits, now)
    }

    /// No query counts as negative before this long from now.
    fn hold_negatives(&mut self, by: Duration, now: Timestamp) {
        self.negatives_from = self.negatives_from.max(Some(later(now, by)));
    }

    /// How long it takes until a query counts. A clock that was set back makes it no longer than a call can take.
    fn unsettled_for(&self, limits: &Limits, now: Timestamp) -> Duration {
        let left = self.negatives_from.map(|from| from.duration_since(now)).unwrap_or_default();
        let longest = limits.longest_call.saturating_add(limits.query_delay);
        left.max(SignedDuration::ZERO).unsigned_abs().min(longest)
    }

    fn is_late(&self, now: Timestamp) -> bool {
        self.deadline.duration_since(now) <= SignedDuration::ZERO
    }

    fn is_exhausted(&self, limits: &Limits) -> bool {
        self.attempts.saturating_sub(self.suspended) >= limits.attempts_max
    }

    fn set_effect(&mut self, effect: EffectState) {
        self.effect = effect;
        self.negatives = 0;
        self.failures = 0;
    }

    /// A query found no use of ours: the coupon is usable, or `gone` says why it is not.
    fn count_negative(&mut self, gone: Option<Reason>, early: bool, limits: &Limits, now: Timestamp) -> Step {
        if gone.is_none() && self.effect == EffectState::NoEffect {
            // A look between two uses that were declined is no success: the waits go on growing.
            self.negatives = 0;
            self.query_first = false;
            return self.send_after(Duration::ZERO, limits, now);
        }
        if early && self.effect == EffectState::NoEffect && !self.last {
            // The use that made it so may have been another delivery's, and be returned: no use without a look again.
            self.set_effect(EffectState::Unknown);
        }
        self.negatives += u8::from(!early);
        let wanted = match self.effect {
            // What is seen stands: no use of ours is known of that could be missed.
            EffectState::NoEffect => 1,
            EffectState::Rejected { .. } if !self.ever_unknown => 1,
            EffectState::Unknown | EffectState::SeenUsed | EffectState::Rejected { .. } => NEGATIVES_REQUIRED,
        };
        if self.negatives < wanted {
            // Even after the last query, where a second one like it would be an end.
            let would_end = gone.is_some() || self.effect != EffectState::Unknown;
            return if self.last && would_end {
                let wait = self.unsettled_for(limits, now).max(limits.query_delay);
                self.send(wait, Operation::Query, now)
            } else {
                self.await_settled(limits, now)
            };
        }
        match (gone, self.effect) {
            (None, EffectState::NoEffect | EffectState::Unknown) if self.only_query.is_some() => {
                self.conclude_unknown(limits, now)
            }
            (Some(reason), _) => self.refuse(reason, EstablishedBy::Query),
            (None, EffectState::Rejected { reason, .. }) => {
                // Whatever else was meant: a coupon that is usable is there, and used by nobody.
                let reason = if reason.contradicts_usable_coupon() { Reason::Rejected } else { reason };
                self.refuse(reason, EstablishedBy::Query)
            }
            (None, EffectState::SeenUsed) => self.refuse(Reason::ReturnedSince, EstablishedBy::Query),
            (None, EffectState::Unknown | EffectState::NoEffect) => {
                self.set_effect(EffectState::NoEffect);
                self.send_after(Duration::ZERO, limits, now)
            }
        }
    }

    fn retry(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        let wait = limits.backoff.wait(self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        self.negatives = 0;
        // What was seen before the wait may be so no more.
        self.query_first = self.ever_unknown && self.next_operation() == Operation::Redeem;
        self.send_after(wait, limits, now)
    }

    /// The next query, once a redeem that may be under way has settled. The one wait that the deadline does not
    /// cut short: a query before its end would prove nothing, and could end as a refusal all the same. What another
    /// instance may have begun takes longer to end than a permit is held: it is waited for in a delay queue, for no longer than
    /// it takes if one is short enough.
    fn await_settled(&mut self, limits: &Limits, now: Timestamp) -> Step {
        let wait = self.unsettled_for(limits, now).max(limits.query_delay);
        self.query_first = self.effect.next_operation() == Operation::Redeem;
        if wait > limits.in_process_max && !self.last {
            let within = |most: SignedDuration| {
                let fits =
                    |delay: &Duration| SignedDuration::try_from(*delay).is_ok_and(|delay| delay <= most);
                limits.delays.iter().rposition(fits)
            };
            let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
            let shortest = within(self.time_left(now)).map(|_| 0);
            if let Some(delay) = within(wait.min(self.time_left(now))).or(shortest) {
                return Step::Delay { queue: delay };
            }
        }
        self.schedule(wait, wait, limits, now)
    }

    fn time_left(&self, now: Timestamp) -> SignedDuration {
        self.deadline.duration_since(now)
    }

    fn send_after(&mut self, wait: Duration, limits: &Limits, now: Timestamp) -> Step {
        self.schedule(wait, Duration::ZERO, limits, now)
    }

    /// The next operation after a wait in process, or after a delay if the wait is too long, or the last one. The
    /// deadline cuts the wait short, but not below `least`: where that outlasts it, the operation is the last one.
    fn schedule(&mut self, wait: Duration, least: Duration, limits: &Limits, now: Timestamp) -> Step {
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
        // How many queries in a row were negative does not travel: the next one comes here, and so does what may be done
        // at once.
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

    fn send(&mut self, after: Duration, operation: Operation, now: Timestamp) -> Step {
        let early = self.negatives_from.is_some_and(|from| later(now, after) < from);
        self.early = early && operation == Operation::Query;
        Step::Send { after, operation }
    }

    /// Into this delay queue, a further one next time. Should the broker deliver once more what the copy is made of,
    /// anyone who gets it begins its calls now.
    fn delay_in(&mut self, delay: usize, limits: &Limits, now: Timestamp) -> Step {
        self.delays_passed = self.delays_passed.saturating_add(1);
        self.hold_negatives(limits.longest_call.saturating_add(limits.query_delay), now);
        Step::Delay { queue: delay }
    }

    fn next_operation(&self) -> Operation {
        if self.only_query.is_some() { Operation::Query } else { self.effect.next_operation() }
    }

    /// The delay queue that comes next: one further each time, but none that would outlast the deadline.
    fn next_delay(&self, limits: &Limits, now: Timestamp) -> Option<usize> {
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

    /// The last query has been put and did not settle the matter.
    fn conclude_unknown(&mut self, limits: &Limits, now: Timestamp) -> Step {
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

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}
