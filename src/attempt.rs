//! What follows from a verdict: the state machine of one command, from the first question to the outcome.
//!
//! Pure: no clock, no dice, no IO. `now` and chance are arguments, a [`Step`] is what to do, and only
//! [`crate::worker`] does it. The laws, tested in `tests/attempt_laws.rs`: what is unsure never ends as refused
//! or redeemed without an authentic answer; nothing is sent once a return was seen, nor by a copy that has not
//! looked at the coupon first, where it may look; what may be our own use is refused on two inquiries in a row only,
//! each a settling time after the longest call that anybody may have begun; every wait but such a one ends before the
//! deadline; every command comes to an end.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::backoff::Backoff;
use crate::coupon::Coupon;
use crate::redemption::Redemption;
use crate::verdict::{Answer, Authenticity, Declined, Doubt, Fault, Question, Reason, Reply, Verdict, judge};

/// How long and how often a command is worked on.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Waits between questions in process.
    pub backoff: Backoff,
    /// All waits in process together; beyond it the command goes to a tier.
    pub in_process_max: Duration,
    /// How long after the end of an unsure redeem an inquiry may count as "not executed".
    pub settling: Duration,
    /// The longest that one call lasts: what another instance may have begun before it lost a command ends by then.
    pub longest_call: Duration,
    /// The waits of the tiers, shortest first. Empty means that nothing is ever put away.
    pub tiers: Vec<Duration>,
    /// The most attempts of one command, through every tier.
    pub attempts_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            in_process_max: Duration::from_secs(8),
            settling: Duration::from_secs(2),
            longest_call: Duration::from_secs(15),
            tiers: [10, 60, 300, 1_800, 7_200].map(Duration::from_secs).to_vec(),
            attempts_max: 1_000,
        }
    }
}

/// How many negative inquiries in a row, each after a settling time, prove that nothing was executed where something
/// may have been.
const NEGATIVES_WANTED: u8 = 2;

/// What is believed of a command between two questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Belief {
    /// No redeem of ours can have taken effect.
    Clear,
    /// A redeem may have taken effect.
    Unsure,
    /// A use was seen that may be ours: nobody said under which number. Where the coupon is usable again it was returned.
    Used,
    /// The provider objected, signed; its word counts once the coupon has been seen.
    Objected {
        /// What it objected to.
        reason: Reason,
        /// Whether it may be an earlier use of ours, reported back as "already used".
        doubtful: bool,
    },
}

impl Belief {
    /// The words that carry a belief through a wait queue. Whether anything was ever unsure needs no word: of a
    /// copy that is always assumed.
    pub fn to_words(self) -> String {
        match self {
            Self::Clear => "clear".to_owned(),
            Self::Unsure => "unsure".to_owned(),
            Self::Used => "used".to_owned(),
            Self::Objected { reason, doubtful: false } => format!("objected {}", reason.as_str()),
            Self::Objected { reason, doubtful: true } => format!("objected-doubtful {}", reason.as_str()),
        }
    }

    /// Reads the words back. No other reasons are taken than the provider can object for.
    pub fn from_words(words: &str) -> Option<Self> {
        let objection = |word| Reason::OBJECTIONS.into_iter().find(|reason| reason.as_str() == word);
        let (kind, reason) = match words.split_once(' ') {
            Some((kind, reason)) => (kind, Some(objection(reason)?)),
            None => (words, None),
        };
        match (kind, reason) {
            ("clear", None) => Some(Self::Clear),
            ("unsure", None) => Some(Self::Unsure),
            ("used", None) => Some(Self::Used),
            ("objected", Some(reason)) => Some(Self::Objected { reason, doubtful: false }),
            ("objected-doubtful", Some(reason)) => Some(Self::Objected { reason, doubtful: true }),
            _ => None,
        }
    }

    /// What the provider objected to, where the belief rests on an objection.
    pub fn objection(self) -> Option<Reason> {
        match self {
            Self::Objected { reason, .. } => Some(reason),
            Self::Clear | Self::Unsure | Self::Used => None,
        }
    }

    fn question(self) -> Question {
        match self {
            Self::Clear => Question::Redeem,
            Self::Unsure | Self::Used | Self::Objected { .. } => Question::Inquire,
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Wait in process, then put the question.
    Ask {
        /// How long to wait first.
        after: Duration,
        /// What to ask.
        question: Question,
    },
    /// Hand a copy to the wait queue of this tier (an index into [`Limits::tiers`]).
    Defer {
        /// Which wait queue.
        tier: usize,
    },
    /// Every call would fail: wait until calls are allowed again, then [`Progress::resume`].
    Halt(Fault),
    /// The command has come to its end.
    Finish(Outcome),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The coupon was used, under our number.
    Redeemed {
        /// What the conclusion rests on.
        by: EstablishedBy,
        /// The coupon that says so.
        coupon: Coupon,
    },
    /// The coupon was not used by this command, and will not be.
    Refused {
        /// Why.
        reason: Reason,
        /// What the conclusion rests on.
        by: EstablishedBy,
        /// The coupon, where an authentic reply described it.
        coupon: Option<Coupon>,
        /// The provider's own words, where it gave any.
        objection: Option<Objection>,
    },
    /// What arrived is not a command.
    Invalid,
    /// Nobody could find out in time.
    Unresolved {
        /// Why the search ended.
        reason: Reason,
        /// The coupon, where an authentic reply described it.
        coupon: Option<Coupon>,
        /// The provider's own words, where it gave any.
        objection: Option<Objection>,
    },
}

/// The kinds of [`Outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// Used, by us.
    Redeemed,
    /// Not used by us, for good.
    Refused,
    /// Not a command.
    Invalid,
    /// Not known.
    Unresolved,
}

impl OutcomeKind {
    /// Every kind, for metrics, schemas and tables.
    pub const ALL: [Self; 4] = [Self::Redeemed, Self::Refused, Self::Invalid, Self::Unresolved];

    /// The word in events, routing keys, logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redeemed => "redeemed",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
            Self::Unresolved => "unresolved",
        }
    }
}

impl Outcome {
    /// Which kind it is.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Self::Redeemed { .. } => OutcomeKind::Redeemed,
            Self::Refused { .. } => OutcomeKind::Refused,
            Self::Invalid => OutcomeKind::Invalid,
            Self::Unresolved { .. } => OutcomeKind::Unresolved,
        }
    }

    /// Why it is not `redeemed`, where it is not.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Redeemed { .. } => None,
            Self::Refused { reason, .. } | Self::Unresolved { reason, .. } => Some(*reason),
            Self::Invalid => Some(Reason::InvalidCommand),
        }
    }

    /// The coupon that an authentic reply described.
    pub fn coupon(&self) -> Option<&Coupon> {
        match self {
            Self::Redeemed { coupon, .. } => Some(coupon),
            Self::Refused { coupon, .. } | Self::Unresolved { coupon, .. } => coupon.as_ref(),
            Self::Invalid => None,
        }
    }

    /// What the outcome rests on.
    pub fn established_by(&self) -> EstablishedBy {
        match self {
            Self::Redeemed { by, .. } | Self::Refused { by, .. } => *by,
            Self::Invalid => EstablishedBy::Validation,
            Self::Unresolved { .. } => EstablishedBy::Deadline,
        }
    }

    /// The provider's own words, where it gave any.
    pub fn objection(&self) -> Option<&Objection> {
        match self {
            Self::Refused { objection, .. } | Self::Unresolved { objection, .. } => objection.as_ref(),
            Self::Redeemed { .. } | Self::Invalid => None,
        }
    }
}

/// What an outcome rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EstablishedBy {
    /// The answer to the redemption itself.
    Answer,
    /// An inquiry.
    Inquiry,
    /// Our own reading of the command.
    Validation,
    /// Nothing but the end of the time allowed.
    Deadline,
}

impl EstablishedBy {
    /// Every way, for schemas.
    pub const ALL: [Self; 4] = [Self::Answer, Self::Inquiry, Self::Validation, Self::Deadline];

    /// The word in events and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Inquiry => "inquiry",
            Self::Validation => "validation",
            Self::Deadline => "deadline",
        }
    }
}

/// The provider's own words about a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Objection {
    /// HTTP status.
    pub http_status: u16,
    /// `code` of the error body.
    pub code: Option<Box<str>>,
    /// The number after the last `-` of `Request-ID`.
    pub sub_code: Option<u64>,
    /// `message` of the error body.
    pub message: Option<Box<str>>,
    /// `Request-ID`.
    pub request_id: Option<Box<str>>,
}

impl Objection {
    fn of(answer: &Answer) -> Self {
        Self {
            http_status: answer.status,
            code: answer.code.clone(),
            sub_code: answer.sub_code,
            message: answer.message.clone(),
            request_id: answer.request_id.clone(),
        }
    }
}

/// One attempt, as it is remembered for a dispute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// When the question was put.
    pub at: Timestamp,
    /// [`Question::as_str`].
    pub question: String,
    /// The host that was asked.
    pub host: String,
    /// HTTP status, where an answer came.
    pub status: Option<u16>,
    /// `Request-ID` of the answer.
    pub request_id: Option<String>,
    /// The serial of the key that verified the answer.
    pub serial: Option<String>,
    /// [`Verdict::as_str`].
    pub verdict: String,
}

impl Evidence {
    /// The most attempts that are remembered.
    pub const KEPT: usize = 16;

    /// The last [`Evidence::KEPT`] of these attempts.
    pub fn last(evidence: &[Self]) -> &[Self] {
        &evidence[evidence.len().saturating_sub(Self::KEPT)..]
    }

    /// Forgets all but the last [`Evidence::KEPT`] attempts.
    pub fn keep_last(evidence: &mut Vec<Self>) {
        let surplus = evidence.len().saturating_sub(Self::KEPT);
        evidence.drain(..surplus);
    }
}

/// How far a command has come. It travels through wait queues as headers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Questions put so far, through every tier: as many as the evidence shows, or more.
    pub attempts: u32,
    /// Of these, how many met a fault of our own or a brand that keeps us out. They do not use up the attempts.
    pub suspended: u32,
    /// Wait queues passed so far.
    pub tiers_passed: u32,
    /// What is believed.
    pub belief: Belief,
    /// When the command was first seen.
    pub first_seen: Timestamp,
    /// When the work ends.
    pub deadline: Timestamp,
    /// The provider's last words about a refusal.
    pub objection: Option<Objection>,
    /// The coupon of this command as an authentic reply last described it, `None` where one has said since that there is
    /// no such coupon. Its state travels, the rest does not.
    pub coupon: Option<Coupon>,
    /// From when an inquiry may find that a use of ours did not take effect: a settling time after the end of the longest
    /// call that anybody may have begun. `None` where that is not known of a command that others have held.
    pub negatives_from: Option<Timestamp>,
    /// Before when nobody can have sent this command: what was returned by then was no use of ours. `None` where that is
    /// not known, because others held it first.
    pub unsent_before: Option<Timestamp>,
    /// Waited in process so far, in this delivery.
    waited: Duration,
    /// Failures in a row of this kind, in this delivery.
    failures: u32,
    /// Inquiries in a row, each not early, that found no use of ours. Whatever else an inquiry brings begins a new row.
    negatives: u8,
    /// Whether a use of ours may have taken effect unseen at some time: an answer proved nothing, or another
    /// delivery of this command exists or existed.
    ever_unsure: bool,
    /// Whether the question in hand is the last one.
    last: bool,
    /// Whether the inquiry in hand comes before [`Progress::negatives_from`]: only a success counts.
    early: bool,
    /// Whether the coupon is still to be looked at before anything is sent.
    look: bool,
    /// Set where nothing may be sent any more but queries: the reason if they do not settle the matter.
    only_query: Option<Reason>,
}

/// The most calls about a command that may only be asked about: an early look, and two that count.
const ONLY_QUERIES: u32 = 3;

impl Progress {
    /// A command seen for the first time. One that the broker delivers again may have been sent before a crash.
    pub fn new(first_seen: Timestamp, deadline: Timestamp, redelivered: bool) -> Self {
        let belief = if redelivered { Belief::Unsure } else { Belief::Clear };
        let resumed = Self::resumed(0, 0, belief, first_seen, deadline, None);
        let unsent_before = (!redelivered).then_some(first_seen);
        Self { ever_unsure: redelivered, unsent_before, ..resumed }
    }

    /// A command that comes back from a wait queue with what its headers say. The delivery that it was copied from
    /// may live on (a crash before its acknowledgement, a copy dead-lettered twice), redeem, and see a return.
    pub fn resumed(
        attempts: u32,
        tiers_passed: u32,
        belief: Belief,
        first_seen: Timestamp,
        deadline: Timestamp,
        objection: Option<Objection>,
    ) -> Self {
        Self {
            attempts,
            suspended: 0,
            tiers_passed,
            belief,
            first_seen,
            deadline,
            objection,
            coupon: None,
            negatives_from: None,
            unsent_before: None,
            waited: Duration::ZERO,
            failures: 0,
            negatives: 0,
            ever_unsure: true,
            last: false,
            early: false,
            look: false,
            only_query: None,
        }
    }

    /// From now on nothing but a few queries is sent, and nothing is put away: what they do not settle is unresolved for
    /// `reason`. Gives the limits that go with it.
    ///
    /// `ended` is when the last delivery of it had ended: whoever held it can have begun no call since.
    pub fn only_query(&mut self, reason: Reason, ended: Option<Timestamp>, limits: &Limits) -> Limits {
        self.only_query = Some(reason);
        self.ever_unsure = true;
        if self.belief == Belief::Clear {
            self.belief = Belief::Unsure;
        }
        let longest = limits.longest_call.saturating_add(limits.settling);
        self.negatives_from = ended.map(|at| later(at, longest));
        let attempts_max = self.attempts.saturating_sub(self.suspended).saturating_add(ONLY_QUERIES);
        Limits { tiers: Vec::new(), attempts_max, ..limits.clone() }
    }

    /// Another delivery of this command may exist: nothing is sent before the coupon was looked at.
    pub fn look_first(&mut self) {
        self.ever_unsure = true;
        self.unsent_before = None;
    }

    /// Whether it is only asked about.
    pub fn only_asks(&self) -> bool {
        self.only_query.is_some()
    }

    /// A copy that the broker delivers again: what was believed when it was put away may be outdated.
    pub fn delivered_again(&mut self) {
        if self.belief == Belief::Clear {
            self.belief = Belief::Unsure;
        }
        self.negatives_from = None;
    }

    /// The first step of a delivery.
    pub fn begin(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.negatives = 0;
        if self.ever_unsure {
            // Whoever held it before may have begun a call until now, and no later.
            let longest = later(now, limits.longest_call.saturating_add(limits.settling));
            self.negatives_from = Some(self.negatives_from.map_or(longest, |from| from.min(longest)));
        }
        let inquires = self.question() == Question::Inquire;
        if self.ever_unsure && inquires && (self.late(now) || self.exhausted(limits)) {
            // The last inquiry must count, whatever it finds.
            let wait = self.unsettled_for(limits, now);
            return self.ask(wait, wait, limits, now);
        }
        // Another delivery may have sent the body a moment ago. If it took effect, that can be seen at once. Nothing
        // else that is seen too early counts, and nothing is sent before something was seen.
        self.look = self.ever_unsure && !inquires;
        self.ask_after(Duration::ZERO, limits, now)
    }

    /// The step after a [`Step::Halt`], once calls are allowed again.
    pub fn resume(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.begin(limits, now)
    }

    /// Whether a use must not go out as it was decided on, but [`Progress::resume`] comes first: its deadline has passed,
    /// or it was `held_back` since the coupon was looked at, and another delivery may have changed what was seen.
    pub fn is_overtaken(&self, held_back: bool, now: Timestamp) -> bool {
        self.late(now) || held_back && self.ever_unsure
    }

    /// The wait queue for a command that may not wait in process: the shared retry budget is spent, or calls are
    /// halted. Where no wait queue ends before the deadline it is the shortest, for a slot is worth more than that
    /// delay; `None` where there is no wait queue at all.
    pub fn defer(&mut self, limits: &Limits, now: Timestamp) -> Option<Step> {
        let shortest = (!limits.tiers.is_empty()).then_some(0);
        self.tier(limits, now).or(shortest).map(|tier| self.put_away(tier, limits, now))
    }

    /// The shortest wait queue, for a delay that is not the command's fault: it grows no older by it. Where no brand's
    /// authorisation covered it, another command finds out meanwhile whether only its brand is shut.
    pub fn step_aside(&mut self, limits: &Limits) -> Option<Step> {
        (!limits.tiers.is_empty()).then_some(Step::Defer { tier: 0 })
    }

    /// What is believed of a command that waits because the broker does not take its event. Afterward the coupon is
    /// looked at again, and that is told.
    pub fn forget_outcome(&mut self, outcome: &Outcome) {
        self.belief = match outcome {
            // Other queues may have taken the event: the provider's objection stands, whatever it would say by then.
            Outcome::Refused { reason, objection: Some(_), .. } if Reason::OBJECTIONS.contains(reason) => {
                Belief::Objected { reason: *reason, doubtful: false }
            }
            // What an inquiry found is found again.
            _ => Belief::Unsure,
        };
        self.objection = outcome.objection().cloned();
    }

    /// The end of a command whose deadline has passed while no call can be made.
    pub fn give_up(&mut self, limits: &Limits, now: Timestamp) -> Option<Step> {
        self.late(now).then(|| self.conclude_unknown(limits, now))
    }

    /// Judges a reply to this command. A return that was over before anybody can have sent the command ended no use of
    /// ours: the coupon is as usable as one that was never returned.
    pub fn judge(&self, question: Question, reply: &Reply, redemption: &Redemption) -> Verdict {
        let verdict = judge(question, reply, redemption);
        let returned = Verdict::Refused(Reason::ReturnedSince);
        match (self.unsent_before, reply) {
            (Some(from), Reply::Answered(Answer { coupon: Some(coupon), .. }))
                if verdict == returned && coupon.returned_before(from, &redemption.out_request_no) =>
            {
                Verdict::NotExecuted
            }
            _ => verdict,
        }
    }

    /// What follows from the `verdict` on the `reply` to `question`. `chance` is between 0 and 1.
    pub fn follow(
        &mut self,
        question: Question,
        reply: Reply,
        verdict: Verdict,
        limits: &Limits,
        now: Timestamp,
        chance: f64,
    ) -> Step {
        self.attempts = self.attempts.saturating_add(1);
        // What met our own fault was no attempt on this coupon: a key that is wrong all night must not use them up.
        if matches!(verdict, Verdict::Stop(_) | Verdict::NotAccepted(Declined::NotAuthorised)) {
            self.suspended = self.suspended.saturating_add(1);
        }
        let answer = match reply {
            Reply::Answered(answer) => Some(answer),
            Reply::NotSent(_) | Reply::Lost(_) => None,
        };
        let signed = answer.as_ref().is_some_and(|answer| answer.authenticity == Authenticity::Verified);
        if question == Question::Redeem
            && let Some(answer) = answer.as_ref().filter(|answer| answer.status >= 400)
        {
            self.objection = Some(Objection::of(answer));
        }
        let confirms = answer.as_ref().is_some_and(|answer| self.confirms(answer));
        let coupon = answer.and_then(|answer| answer.into_coupon(&verdict));
        if coupon.is_some() {
            self.coupon.clone_from(&coupon);
        } else if verdict.denies_the_coupon() {
            // What was seen of it before is no longer so.
            self.coupon = None;
        }
        match question {
            Question::Redeem => self.follow_redeem(verdict, coupon, signed, limits, now, chance),
            Question::Inquire => self.follow_inquiry(verdict, coupon, confirms, limits, now, chance),
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
                Step::Finish(Outcome::Redeemed { by: EstablishedBy::Answer, coupon })
            }
            (Verdict::Objected { reason, doubtful }, _) => self.object(reason, doubtful, limits, now),
            (Verdict::NotAuthorised, _) => self.object(Reason::NotAuthorised, false, limits, now),
            (Verdict::NotAccepted(Declined::NotAuthorised), _) => {
                self.step_aside(limits).unwrap_or_else(|| self.again(limits, now, chance))
            }
            (Verdict::NotAccepted(_) | Verdict::NotSent, _) => self.again(limits, now, chance),
            (Verdict::Stop(fault), _) => {
                if !signed {
                    // Whoever answered need not be the provider.
                    self.take_as_unsure(limits, now);
                }
                self.halt(fault, limits, now)
            }
            // A success is only ever judged from a described coupon; without one there is nothing to tell. And nobody
            // refuses a redeem but by an objection.
            (Verdict::Redeemed | Verdict::Refused(_) | Verdict::NotExecuted | Verdict::Unsure(_), _) => {
                self.take_as_unsure(limits, now);
                self.settle(limits, now)
            }
        }
    }

    fn follow_inquiry(
        &mut self,
        verdict: Verdict,
        coupon: Option<Coupon>,
        confirms: bool,
        limits: &Limits,
        now: Timestamp,
        chance: f64,
    ) -> Step {
        let early = std::mem::take(&mut self.early);
        let by = EstablishedBy::Inquiry;
        match (verdict, coupon) {
            (Verdict::Redeemed, Some(coupon)) => Step::Finish(Outcome::Redeemed { by, coupon }),
            (Verdict::Stop(fault), _) => self.halt(fault, limits, now),
            (Verdict::NotAuthorised, _) => self.not_granted(limits, now, chance),
            (Verdict::Unsure(Doubt::Unnamed), _) => {
                if self.belief.objection().is_none() {
                    self.belief = Belief::Used;
                }
                self.again(limits, now, chance)
            }
            // What comes early still lets the body go out where nothing was unsure.
            (_, _) if early && self.belief != Belief::Clear => {
                self.negatives = 0;
                self.settle(limits, now)
            }
            // Somebody else's use and a return are seen, not missed: once is enough.
            (Verdict::Refused(reason @ (Reason::UsedByAnother | Reason::ReturnedSince)), _) => {
                self.refuse(reason, by)
            }
            (Verdict::Refused(reason), _) => {
                // What the redeem was rejected for says more than that there is no such coupon.
                let rejected = self.belief.objection().filter(|_| reason == Reason::NoSuchCoupon);
                self.negative(Some(rejected.unwrap_or(reason)), early, limits, now)
            }
            (Verdict::Objected { .. }, _) if confirms => {
                let rejected = self.belief.objection();
                rejected.into_iter().for_each(|reason| self.forget_what_denies(reason));
                self.negative(rejected, early, limits, now)
            }
            (Verdict::NotExecuted, _) => self.negative(None, early, limits, now),
            (
                Verdict::Redeemed
                | Verdict::Objected { .. }
                | Verdict::NotAccepted(_)
                | Verdict::NotSent
                | Verdict::Unsure(_),
                _,
            ) => self.again(limits, now, chance),
        }
    }

    /// Every call would fail. At the end of the time allowed there is none to wait for.
    fn halt(&mut self, fault: Fault, limits: &Limits, now: Timestamp) -> Step {
        self.failures = 0;
        self.negatives = 0;
        if self.last { self.conclude_unknown(limits, now) } else { Step::Halt(fault) }
    }

    /// The brand does not let us look. Where no use of ours can have taken effect, none is missed by sending the body
    /// without a look, and a rejection of it stands by itself. Where one may have, the same body again would be answered
    /// alike; but it would be a second effect where the user returned the coupon meanwhile. So the command waits for the
    /// right to look, until its deadline: docs/decisions/0012-wait-for-the-right-to-look.md.
    fn not_granted(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        self.negatives = 0;
        match self.belief {
            _ if self.last => self.conclude_unknown(limits, now),
            Belief::Clear if self.only_query.is_some() => self.conclude_unknown(limits, now),
            Belief::Clear => {
                self.look = false;
                self.ask_after(Duration::ZERO, limits, now)
            }
            Belief::Objected { reason, doubtful: false } => {
                self.forget_what_denies(reason);
                self.refuse(reason, EstablishedBy::Answer)
            }
            Belief::Objected { .. } | Belief::Unsure | Belief::Used => {
                self.defer(limits, now).unwrap_or_else(|| self.again(limits, now, chance))
            }
        }
    }

    /// Whether an answer to an inquiry rejects it as the redeem was rejected. The two share openid, appid, brand, product
    /// coupon, stock and coupon code: what is wrong with one of these, both are told. The number tells the causes of
    /// one code apart, so there has to be one; one that can only be told of a redeem confirms nothing.
    fn confirms(&self, answer: &Answer) -> bool {
        // Its words are also kept of an answer that was not believed, and such a one confirms nothing.
        let (Some(objection), Some(_)) = (&self.objection, self.belief.objection()) else { return false };
        let of_both =
            !matches!(self.belief.objection(), Some(Reason::UsedByAnother | Reason::NumberConflict));
        let same = objection.code == answer.code && objection.sub_code == answer.sub_code;
        of_both && same && answer.sub_code.is_some_and(|number| number != 0)
    }

    /// A coupon that was seen before it was rejected for this reason may be so no more.
    fn forget_what_denies(&mut self, reason: Reason) {
        if reason.denies_a_usable_coupon() {
            self.coupon = None;
        }
    }

    fn refuse(&mut self, reason: Reason, by: EstablishedBy) -> Step {
        // A 429 or 500 met on the way is no ground of a refusal that an inquiry established.
        let grounds = by == EstablishedBy::Answer
            || reason == Reason::NotAuthorised
            || matches!(self.belief, Belief::Objected { .. });
        Step::Finish(Outcome::Refused {
            reason,
            by,
            coupon: self.coupon.take(),
            objection: self.objection.take().filter(|_| grounds),
        })
    }

    /// A redeem of ours has ended, and may take effect until a settling time from now.
    fn take_as_unsure(&mut self, limits: &Limits, now: Timestamp) {
        self.believe(Belief::Unsure);
        self.ever_unsure = true;
        self.hold_negatives(limits.settling, now);
    }

    fn object(&mut self, reason: Reason, doubtful: bool, limits: &Limits, now: Timestamp) -> Step {
        self.believe(Belief::Objected { reason, doubtful });
        self.ever_unsure |= doubtful;
        if !self.ever_unsure {
            return self.ask_after(Duration::ZERO, limits, now);
        }
        self.hold_negatives(limits.settling, now);
        self.settle(limits, now)
    }

    /// No inquiry counts as negative before so long from now.
    fn hold_negatives(&mut self, by: Duration, now: Timestamp) {
        self.negatives_from = self.negatives_from.max(Some(later(now, by)));
    }

    /// How long it takes until an inquiry counts. A clock that was set back makes it no longer than a call can take.
    fn unsettled_for(&self, limits: &Limits, now: Timestamp) -> Duration {
        let left = self.negatives_from.map(|from| from.duration_since(now)).unwrap_or_default();
        let longest = limits.longest_call.saturating_add(limits.settling);
        left.max(SignedDuration::ZERO).unsigned_abs().min(longest)
    }

    fn late(&self, now: Timestamp) -> bool {
        self.deadline.duration_since(now) <= SignedDuration::ZERO
    }

    fn exhausted(&self, limits: &Limits) -> bool {
        self.attempts.saturating_sub(self.suspended) >= limits.attempts_max
    }

    fn believe(&mut self, belief: Belief) {
        self.belief = belief;
        self.negatives = 0;
        self.failures = 0;
    }

    /// An inquiry found no use of ours: the coupon is usable, or `gone` says why it is not.
    fn negative(&mut self, gone: Option<Reason>, early: bool, limits: &Limits, now: Timestamp) -> Step {
        if gone.is_none() && self.belief == Belief::Clear {
            // A look between two uses that were declined is no success: the waits go on growing.
            self.negatives = 0;
            self.look = false;
            return self.ask_after(Duration::ZERO, limits, now);
        }
        if early && self.belief == Belief::Clear && !self.last {
            // The use that made it so may have been another delivery's, and be returned: no use without a look again.
            self.believe(Belief::Unsure);
        }
        self.negatives += u8::from(!early);
        let wanted = match self.belief {
            // What is seen stands: no use of ours is known of that could be missed.
            Belief::Clear => 1,
            Belief::Objected { .. } if !self.ever_unsure => 1,
            Belief::Unsure | Belief::Used | Belief::Objected { .. } => NEGATIVES_WANTED,
        };
        if self.negatives < wanted {
            // Even after the last inquiry, where a second one like it would be an end.
            let would_end = gone.is_some() || self.belief != Belief::Unsure;
            return if self.last && would_end {
                let wait = self.unsettled_for(limits, now).max(limits.settling);
                self.put(wait, Question::Inquire, now)
            } else {
                self.settle(limits, now)
            };
        }
        match (gone, self.belief) {
            (None, Belief::Clear | Belief::Unsure) if self.only_query.is_some() => {
                self.conclude_unknown(limits, now)
            }
            (Some(reason), _) => self.refuse(reason, EstablishedBy::Inquiry),
            (None, Belief::Objected { reason, .. }) => {
                // Whatever else was meant: a coupon that is usable is there, and used by nobody.
                let reason = if reason.denies_a_usable_coupon() { Reason::Rejected } else { reason };
                self.refuse(reason, EstablishedBy::Inquiry)
            }
            (None, Belief::Used) => self.refuse(Reason::ReturnedSince, EstablishedBy::Inquiry),
            (None, Belief::Unsure | Belief::Clear) => {
                self.believe(Belief::Clear);
                self.ask_after(Duration::ZERO, limits, now)
            }
        }
    }

    fn again(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        let wait = limits.backoff.wait(self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        self.negatives = 0;
        // What was seen before the wait may be so no more.
        self.look = self.ever_unsure && self.question() == Question::Redeem;
        self.ask_after(wait, limits, now)
    }

    /// The next inquiry, once a redeem that may be under way has settled. The one wait that the deadline does not
    /// cut short: an inquiry before its end would prove nothing, and could end as a refusal all the same. What another
    /// instance may have begun takes longer to end than a slot is held: it is waited for in a wait queue, for no longer than
    /// it takes where one is short enough.
    fn settle(&mut self, limits: &Limits, now: Timestamp) -> Step {
        let wait = self.unsettled_for(limits, now).max(limits.settling);
        self.look = self.belief.question() == Question::Redeem;
        if wait > limits.in_process_max && !self.last {
            let within = |most: SignedDuration| {
                let fits = |tier: &Duration| SignedDuration::try_from(*tier).is_ok_and(|tier| tier <= most);
                limits.tiers.iter().rposition(fits)
            };
            let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
            let shortest = within(self.left(now)).map(|_| 0);
            if let Some(tier) = within(wait.min(self.left(now))).or(shortest) {
                return Step::Defer { tier };
            }
        }
        self.ask(wait, wait, limits, now)
    }

    fn left(&self, now: Timestamp) -> SignedDuration {
        self.deadline.duration_since(now)
    }

    fn ask_after(&mut self, wait: Duration, limits: &Limits, now: Timestamp) -> Step {
        self.ask(wait, Duration::ZERO, limits, now)
    }

    /// The next question after a wait in process, or after a tier where the wait is too long, or the last one. The
    /// deadline cuts the wait short, but not below `least`: where that outlasts it, the question is the last one.
    fn ask(&mut self, wait: Duration, least: Duration, limits: &Limits, now: Timestamp) -> Step {
        if self.last {
            return self.conclude_unknown(limits, now);
        }
        let left = self.left(now);
        if self.exhausted(limits) || left <= SignedDuration::try_from(least).unwrap_or(SignedDuration::MAX) {
            self.last = true;
            return self.put(least, Question::Inquire, now);
        }
        let wait = wait.min(left.unsigned_abs());
        let waited = self.waited.saturating_add(wait);
        // How many inquiries in a row were negative does not travel: the next one comes here, and so does what may be done
        // at once.
        if waited > limits.in_process_max
            && !wait.is_zero()
            && self.negatives == 0
            && let Some(tier) = self.tier(limits, now)
        {
            return self.put_away(tier, limits, now);
        }
        self.waited = waited;
        let question = if self.look { Question::Inquire } else { self.question() };
        self.put(wait, question, now)
    }

    fn put(&mut self, after: Duration, question: Question, now: Timestamp) -> Step {
        let early = self.negatives_from.is_some_and(|from| later(now, after) < from);
        self.early = early && question == Question::Inquire;
        Step::Ask { after, question }
    }

    /// Into this wait queue, a further one next time. Should the broker deliver once more what the copy is made of,
    /// whoever gets it begins its calls now.
    fn put_away(&mut self, tier: usize, limits: &Limits, now: Timestamp) -> Step {
        self.tiers_passed = self.tiers_passed.saturating_add(1);
        self.hold_negatives(limits.longest_call.saturating_add(limits.settling), now);
        Step::Defer { tier }
    }

    fn question(&self) -> Question {
        if self.only_query.is_some() { Question::Inquire } else { self.belief.question() }
    }

    /// The wait queue that comes next: one further each time, but none that would outlast the deadline.
    fn tier(&self, limits: &Limits, now: Timestamp) -> Option<usize> {
        if self.last {
            return None;
        }
        let left = self.left(now);
        let last = limits.tiers.len().checked_sub(1)?;
        let next = (self.tiers_passed as usize).min(last);
        (0..=next)
            .rev()
            .find(|tier| SignedDuration::try_from(limits.tiers[*tier]).is_ok_and(|tier| tier <= left))
    }

    /// The last inquiry has been put and did not settle the matter.
    fn conclude_unknown(&mut self, limits: &Limits, now: Timestamp) -> Step {
        let reason = if let Some(reason) = self.only_query {
            reason
        } else if !self.late(now) && self.exhausted(limits) {
            Reason::AttemptsExhausted
        } else {
            Reason::DeadlinePassed
        };
        Step::Finish(Outcome::Unresolved {
            reason,
            coupon: self.coupon.take(),
            // The parked command carries it, too, beside the belief that rests on it.
            objection: self.objection.clone(),
        })
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}
