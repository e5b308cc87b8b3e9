//! What follows from a verdict: the state machine of one command, from the first question to the outcome.
//!
//! Pure: no clock, no dice, no IO. `now` and chance are arguments, a [`Step`] is what to do, and only
//! [`crate::worker`] does it. The laws, tested in `tests/attempt_laws.rs`: what is unsure never ends as refused
//! or redeemed without an authentic answer; nothing is sent once a return was seen, nor by a copy that has not
//! looked at the coupon first; what may be our own use is refused on two settled inquiries only; every wait but a
//! settling time ends before the deadline; every command comes to an end.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::backoff::Backoff;
use crate::coupon::Coupon;
use crate::verdict::{Answer, Authenticity, Fault, Question, Reason, Reply, Verdict};

/// How long and how often a command is worked on.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Waits between questions in process.
    pub backoff: Backoff,
    /// All waits in process together; beyond it the command goes to a tier.
    pub in_process_max: Duration,
    /// How long after an unsure redeem an inquiry may count as "not executed".
    pub settling: Duration,
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
            tiers: [10, 60, 300, 1_800, 7_200].map(Duration::from_secs).to_vec(),
            attempts_max: 1_000,
        }
    }
}

/// How many negative inquiries, each after a settling time, prove that nothing was executed where something may
/// have been.
const NEGATIVES_WANTED: u8 = 2;

/// What is believed of a command between two questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// No redeem of ours can have taken effect.
    Clear,
    /// A redeem may have taken effect.
    Unsure,
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
            ("objected", Some(reason)) => Some(Self::Objected { reason, doubtful: false }),
            ("objected-doubtful", Some(reason)) => Some(Self::Objected { reason, doubtful: true }),
            _ => None,
        }
    }

    /// What the provider objected to, where the belief rests on an objection.
    pub fn objection(self) -> Option<Reason> {
        match self {
            Self::Objected { reason, .. } => Some(reason),
            Self::Clear | Self::Unsure => None,
        }
    }

    fn question(self) -> Question {
        match self {
            Self::Clear => Question::Redeem,
            Self::Unsure | Self::Objected { .. } => Question::Inquire,
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
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Questions put so far, through every tier.
    pub attempts: u32,
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
    /// no such coupon. Does not travel.
    pub coupon: Option<Coupon>,
    /// Waited in process so far, in this delivery.
    waited: Duration,
    /// Failures in a row of this kind, in this delivery.
    failures: u32,
    /// Inquiries in a row, each after a settling time, that found no use of ours.
    negatives: u8,
    /// Whether a use of ours may have taken effect unseen at some time: an answer proved nothing, or another
    /// delivery of this command exists or existed.
    ever_unsure: bool,
    /// Whether the question in hand is the last one.
    last: bool,
    /// Whether the inquiry in hand comes before the settling time: only a success counts.
    early: bool,
    /// Whether the coupon is still to be looked at before anything is sent.
    look: bool,
}

impl Progress {
    /// A command seen for the first time. One that the broker delivers again may have been sent before a crash.
    pub fn new(first_seen: Timestamp, deadline: Timestamp, redelivered: bool) -> Self {
        let belief = if redelivered { Belief::Unsure } else { Belief::Clear };
        let resumed = Self::resumed(0, 0, belief, first_seen, deadline, None);
        Self { ever_unsure: redelivered, ..resumed }
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
            tiers_passed,
            belief,
            first_seen,
            deadline,
            objection,
            coupon: None,
            waited: Duration::ZERO,
            failures: 0,
            negatives: 0,
            ever_unsure: true,
            last: false,
            early: false,
            look: false,
        }
    }

    /// A copy that the broker delivers again: what was believed when it was put away may be outdated.
    pub fn delivered_again(&mut self) {
        if self.belief == Belief::Clear {
            self.belief = Belief::Unsure;
        }
    }

    /// The first step of a delivery.
    pub fn begin(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.negatives = 0;
        let inquires = self.belief.question() == Question::Inquire;
        let late = self.deadline.duration_since(now) <= SignedDuration::ZERO;
        if self.ever_unsure && inquires && (late || self.attempts >= limits.attempts_max) {
            // The last inquiry must count, whatever it finds.
            return self.settle(limits, now);
        }
        // Another delivery may have sent the body a moment ago. If it took effect, that can be seen at once. Nothing
        // else that is seen before the settling time counts, and nothing is sent before something was seen.
        self.early = self.ever_unsure && inquires;
        self.look = self.ever_unsure && !inquires;
        self.ask_after(Duration::ZERO, limits, now)
    }

    /// The step after a [`Step::Halt`], once calls are allowed again.
    pub fn resume(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.begin(limits, now)
    }

    /// Whether another delivery of this command exists or existed, or a use of ours may have taken effect unseen: then a
    /// use goes out only where the coupon has just been looked at.
    pub fn may_be_in_other_hands(&self) -> bool {
        self.ever_unsure
    }

    /// The wait queue for a command that may not wait in process: the shared retry budget is spent, or calls are
    /// halted. Where no wait queue ends before the deadline it is the shortest, for a slot is worth more than that
    /// delay; `None` where there is no wait queue at all.
    pub fn defer(&self, limits: &Limits, now: Timestamp) -> Option<Step> {
        let shortest = (!limits.tiers.is_empty()).then_some(0);
        self.tier(limits, now).or(shortest).map(|tier| Step::Defer { tier })
    }

    /// The wait queue for a command that no brand's authorisation covered: the shortest, as long as it takes, and
    /// without growing older. While it waits another command finds out whether only its brand is shut.
    pub fn step_aside(&mut self, limits: &Limits) -> Option<Step> {
        self.tiers_passed = self.tiers_passed.saturating_sub(1);
        (!limits.tiers.is_empty()).then_some(Step::Defer { tier: 0 })
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
        // What met our own fault was no attempt on this coupon: a key that is wrong all night must not use them up.
        if !matches!(verdict, Verdict::Stop(_)) {
            self.attempts = self.attempts.saturating_add(1);
        }
        let by = match question {
            Question::Redeem => EstablishedBy::Answer,
            Question::Inquire => EstablishedBy::Inquiry,
        };
        let answer = match reply {
            Reply::Answered(answer) => Some(answer),
            Reply::NotSent(_) | Reply::Lost(_) => None,
        };
        if question == Question::Redeem
            && let Some(answer) = answer.as_ref().filter(|answer| answer.status >= 400)
        {
            self.objection = Some(Objection::of(answer));
        }
        let no_authorisation =
            answer.as_ref().filter(|_| verdict == Verdict::NotAuthorised).map(Objection::of);
        let signed = answer.as_ref().is_some_and(|answer| answer.authenticity == Authenticity::Verified);
        let confirms = answer.as_ref().is_some_and(|answer| self.confirms(answer));
        let coupon = answer.and_then(|answer| answer.into_coupon(&verdict));
        if coupon.is_some() {
            self.coupon.clone_from(&coupon);
        } else if verdict.denies_the_coupon() {
            // What was seen of it before is no longer so.
            self.coupon = None;
        }

        let early = std::mem::take(&mut self.early);
        match (verdict, coupon) {
            (verdict, _) if early && !matches!(verdict, Verdict::Redeemed | Verdict::Stop(_)) => {
                self.settle(limits, now)
            }
            (Verdict::Redeemed, Some(coupon)) => Step::Finish(Outcome::Redeemed { by, coupon }),
            // A success is only ever judged from a described coupon; without one there is nothing to tell.
            (Verdict::Redeemed, None) => self.unsure(limits, now),
            // Somebody else's use and a return are seen, not missed: once is enough.
            (Verdict::Refused(reason @ (Reason::UsedByAnother | Reason::ReturnedSince)), _)
                if by == EstablishedBy::Inquiry =>
            {
                self.refuse(reason, by)
            }
            (Verdict::Refused(reason), _) if by == EstablishedBy::Inquiry => {
                // What the redeem was rejected for says more than that there is no such coupon.
                let rejected = self.belief.objection().filter(|_| reason == Reason::NoSuchCoupon);
                self.negative(Some(rejected.unwrap_or(reason)), limits, now)
            }
            // Nobody refuses a redeem but by an objection.
            (Verdict::Refused(reason), _) => self.object(reason, true, limits, now),
            (Verdict::NotAuthorised, _) if by == EstablishedBy::Answer => {
                if self.ever_unsure {
                    self.object(Reason::NotAuthorised, false, limits, now)
                } else {
                    self.refuse(Reason::NotAuthorised, by)
                }
            }
            // Nobody lets us look, and no use of ours is known of.
            (Verdict::NotAuthorised, _) if self.belief == Belief::Clear => {
                self.objection = no_authorisation;
                self.refuse(Reason::NotAuthorised, by)
            }
            (Verdict::Objected { reason, doubtful }, _) if by == EstablishedBy::Answer => {
                self.object(reason, doubtful, limits, now)
            }
            (Verdict::Objected { .. }, _) if confirms => self.negative(self.belief.objection(), limits, now),
            (Verdict::NotExecuted, _) => self.negative(None, limits, now),
            (Verdict::Stop(fault), _) => {
                if by == EstablishedBy::Answer && !signed {
                    // Whoever answered need not be the provider.
                    self.believe(Belief::Unsure);
                    self.ever_unsure = true;
                }
                self.failures = 0;
                // A last inquiry that met our own fault has asked nothing: it is put again.
                self.last = false;
                Step::Halt(fault)
            }
            (Verdict::Unsure(_), _) if question == Question::Redeem => self.unsure(limits, now),
            (
                Verdict::NotAccepted(_)
                | Verdict::NotSent
                | Verdict::Unsure(_)
                | Verdict::NotAuthorised
                | Verdict::Objected { .. },
                _,
            ) => self.again(limits, now, chance),
        }
    }

    /// Whether an answer to an inquiry rejects it as the redeem was rejected. The two share openid, appid, brand, product
    /// coupon, stock and coupon code: what is wrong with one of these, both are told. The number tells the causes of
    /// one code apart, so there has to be one; one that can only be told of a redeem confirms nothing.
    fn confirms(&self, answer: &Answer) -> bool {
        let Some(objection) = &self.objection else { return false };
        let of_both =
            !matches!(self.belief.objection(), Some(Reason::UsedByAnother | Reason::NumberConflict));
        let same = objection.code == answer.code && objection.sub_code == answer.sub_code;
        of_both && same && answer.sub_code.is_some_and(|number| number != 0)
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

    fn unsure(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.believe(Belief::Unsure);
        self.ever_unsure = true;
        self.settle(limits, now)
    }

    fn object(&mut self, reason: Reason, doubtful: bool, limits: &Limits, now: Timestamp) -> Step {
        self.believe(Belief::Objected { reason, doubtful });
        self.ever_unsure |= doubtful;
        if self.ever_unsure { self.settle(limits, now) } else { self.ask_after(Duration::ZERO, limits, now) }
    }

    fn believe(&mut self, belief: Belief) {
        self.belief = belief;
        self.negatives = 0;
        self.failures = 0;
    }

    /// An inquiry found no use of ours: the coupon is usable, or `gone` says why it is not.
    fn negative(&mut self, gone: Option<Reason>, limits: &Limits, now: Timestamp) -> Step {
        self.negatives += 1;
        let counts = match self.belief {
            // What is seen stands: no use of ours is known of that could be missed.
            Belief::Clear => true,
            Belief::Objected { .. } if !self.ever_unsure => true,
            Belief::Unsure | Belief::Objected { .. } => self.negatives >= NEGATIVES_WANTED,
        };
        if !counts {
            // Even after the last inquiry, where a second one like it would be an end.
            let would_end = gone.is_some() || matches!(self.belief, Belief::Objected { .. });
            return if self.last && would_end {
                Step::Ask { after: limits.settling, question: Question::Inquire }
            } else {
                self.settle(limits, now)
            };
        }
        match (gone, self.belief) {
            (Some(reason), _) => self.refuse(reason, EstablishedBy::Inquiry),
            (None, Belief::Objected { reason, .. }) => {
                // Whatever else was meant: a coupon that is usable is there, and used by nobody.
                let reason = if reason.denies_a_usable_coupon() { Reason::Rejected } else { reason };
                self.refuse(reason, EstablishedBy::Inquiry)
            }
            (None, Belief::Unsure) => {
                self.believe(Belief::Clear);
                self.ask_after(Duration::ZERO, limits, now)
            }
            // A look between two uses that were declined is no success: the waits go on growing.
            (None, Belief::Clear) => {
                self.negatives = 0;
                self.look = false;
                self.ask_after(Duration::ZERO, limits, now)
            }
        }
    }

    fn again(&mut self, limits: &Limits, now: Timestamp, chance: f64) -> Step {
        let wait = limits.backoff.wait(self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        // What was seen before the wait may be so no more.
        self.look = self.ever_unsure && self.belief.question() == Question::Redeem;
        self.ask_after(wait, limits, now)
    }

    /// The next inquiry, once a redeem that may be under way has settled. The one wait that the deadline does not
    /// cut short: an inquiry before its end would prove nothing, and could end as a refusal all the same.
    fn settle(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.ask(limits.settling, limits.settling, limits, now)
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
        let left = self.deadline.duration_since(now);
        let exhausted = self.attempts >= limits.attempts_max;
        if exhausted || left <= SignedDuration::try_from(least).unwrap_or(SignedDuration::MAX) {
            self.last = true;
            return Step::Ask { after: least, question: Question::Inquire };
        }
        let wait = wait.min(left.unsigned_abs());
        let waited = self.waited.saturating_add(wait);
        if waited > limits.in_process_max
            && let Some(tier) = self.tier(limits, now)
        {
            return Step::Defer { tier };
        }
        self.waited = waited;
        let question = if self.look { Question::Inquire } else { self.belief.question() };
        Step::Ask { after: wait, question }
    }

    /// The wait queue that comes next: one further each time, but none that would outlast the deadline.
    fn tier(&self, limits: &Limits, now: Timestamp) -> Option<usize> {
        if self.last {
            return None;
        }
        let left = self.deadline.duration_since(now);
        let last = limits.tiers.len().checked_sub(1)?;
        let next = (self.tiers_passed as usize).min(last);
        (0..=next)
            .rev()
            .find(|tier| SignedDuration::try_from(limits.tiers[*tier]).is_ok_and(|tier| tier <= left))
    }

    /// The last inquiry has been put and did not settle the matter.
    fn conclude_unknown(&mut self, limits: &Limits, now: Timestamp) -> Step {
        let late = self.deadline.duration_since(now) <= SignedDuration::ZERO;
        let reason = if !late && self.attempts >= limits.attempts_max {
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
