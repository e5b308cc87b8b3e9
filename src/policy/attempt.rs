//! The state machine of one command, from the first operation to the outcome.
//!
//! Pure: no clock, no random numbers, no IO. `now` and chance are arguments; a [`Step`] describes the next action, and
//! only [`crate::runtime::worker`] performs it. `follow` turns verdicts into steps, `schedule` decides when the next
//! operation runs. The laws, tested in `tests/attempt_laws.rs`:
//!
//! * An unknown effect never ends as refused or redeemed without an authentic response.
//! * No use is sent after a return was seen. A retry message sends no use before a query, if queries are granted.
//! * A rejection that our own use may have caused ends as refused only after two queries in a row, each of them a query
//!   delay after the longest call that any instance may have begun.
//! * Every other wait ends before the deadline.
//! * Every command ends.

mod follow;
mod schedule;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::domain::coupon::Coupon;
use crate::domain::evidence::{Operation, Rejection};
use crate::domain::outcome::Outcome;
use crate::domain::reason::Reason;
use crate::policy::backoff::Backoff;
use crate::policy::classify::SuspendReason;

/// Bounds on the time and the attempts of one command.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Waits between operations in process.
    pub backoff: Backoff,
    /// The sum of all waits in process; a command that needs more goes to a delay queue.
    pub in_process_max: Duration,
    /// How long after the end of an unknown redeem a query may count as "not executed".
    pub query_delay: Duration,
    /// The longest duration of one call. A call that another instance began before it lost a command ends within it.
    pub longest_call: Duration,
    /// The waits of the delay queues, shortest first. Empty: no command is ever delayed.
    pub delays: Vec<Duration>,
    /// The most attempts of one command, over all delays.
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

impl Limits {
    /// The longest delay queue of at most this.
    fn delay_within(&self, most: SignedDuration) -> Option<usize> {
        let fits = |delay: &Duration| SignedDuration::try_from(*delay).is_ok_and(|delay| delay <= most);
        self.delays.iter().rposition(fits)
    }

    /// [`QUERY_REJECTED_MAX`], or the longest delay queue below it.
    fn query_rejected_for(&self) -> Duration {
        let longest = self.delay_within(QUERY_REJECTED_MAX).and_then(|queue| self.delays.get(queue));
        longest.copied().unwrap_or(QUERY_REJECTED_MAX.unsigned_abs())
    }
}

/// The number of negative queries in a row, each after a query delay, that show that a redeem of unknown effect was not
/// executed.
const NEGATIVES_REQUIRED: u8 = 2;

/// The same of queries that do not describe the coupon. A signed error body names neither coupon nor number, so it may be
/// the response to another command: docs/decisions/0015-ask-twice-where-no-coupon-is-shown.md.
const ERRORS_REQUIRED: u8 = 2;

/// How long every query must have been rejected because of an id before a command of unknown effect ends, unless the
/// delay queues are shorter: a fault of the provider may last for a moment.
const QUERY_REJECTED_MAX: SignedDuration = SignedDuration::from_secs(300);

/// The known effect of a command between two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EffectState {
    /// No redeem of ours can have taken effect.
    NoEffect,
    /// A redeem may have taken effect.
    Unknown,
    /// A use was seen that may be ours, because the response had no number. If the coupon is usable again, it was returned.
    SeenUsed,
    /// A signed rejection that may meet every command alike. It counts once it is known to be about this command, and the
    /// queries are rejected alike; if they are accepted instead, the command is sent again.
    RejectedUnclear {
        /// The reason of the rejection.
        reason: Reason,
    },
    /// A signed rejection. It counts after a query has shown the coupon.
    Rejected {
        /// The reason of the rejection.
        reason: Reason,
        /// Whether the rejection may report an earlier use of ours as "already used".
        may_be_ours: bool,
    },
}

impl EffectState {
    /// The words that carry an effect through a delay queue. Whether an effect was ever unknown has no word, because it
    /// is always assumed of a retry message.
    pub fn to_header(self) -> String {
        match self {
            Self::NoEffect => "no_effect".to_owned(),
            Self::Unknown => "unknown".to_owned(),
            Self::SeenUsed => "used".to_owned(),
            Self::RejectedUnclear { reason } => format!("rejected_unclear {}", reason.as_str()),
            Self::Rejected { reason, may_be_ours: false } => format!("rejected {}", reason.as_str()),
            Self::Rejected { reason, may_be_ours: true } => {
                format!("rejected_unverified {}", reason.as_str())
            }
        }
    }

    /// Parses the words. Only reasons of [`Reason::REJECTIONS`] are accepted.
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
            ("rejected_unclear", Some(reason)) => Some(Self::RejectedUnclear { reason }),
            ("rejected", Some(reason)) => Some(Self::Rejected { reason, may_be_ours: false }),
            ("rejected_unverified", Some(reason)) => Some(Self::Rejected { reason, may_be_ours: true }),
            _ => None,
        }
    }

    /// The reason, if the effect rests on a rejection.
    pub fn rejection(self) -> Option<Reason> {
        match self {
            Self::Rejected { reason, .. } => Some(reason),
            Self::NoEffect | Self::Unknown | Self::SeenUsed | Self::RejectedUnclear { .. } => None,
        }
    }

    /// The reason of a signed rejection that a query may confirm.
    pub fn signed_rejection(self) -> Option<Reason> {
        match self {
            Self::Rejected { reason, .. } | Self::RejectedUnclear { reason } => Some(reason),
            Self::NoEffect | Self::Unknown | Self::SeenUsed => None,
        }
    }

    fn next_operation(self) -> Operation {
        match self {
            Self::NoEffect => Operation::Redeem,
            Self::Unknown | Self::SeenUsed | Self::RejectedUnclear { .. } | Self::Rejected { .. } => {
                Operation::Query
            }
        }
    }
}

/// The next action for a command.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one step of a command exists at a time")]
pub enum Step {
    /// Wait in process, then send the operation.
    Send {
        /// How long to wait first.
        after: Duration,
        /// The operation.
        operation: Operation,
    },
    /// Publish a retry message to a delay queue.
    Delay {
        /// An index into [`Limits::delays`].
        queue: usize,
    },
    /// Every call would fail: wait until calls are allowed again, then [`Progress::resume`].
    Suspend(SuspendReason),
    /// The command has ended.
    Finish(Outcome),
}

/// The progress of a command. It travels through delay queues as headers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Calls so far, over all delays: at least as many as the evidence has entries.
    pub attempts: u32,
    /// Of these, the calls that met a fault of our own or a brand that has not authorized us. They do not count against
    /// [`Limits::attempts_max`].
    pub suspended: u32,
    /// Delay queues passed so far.
    pub delays_passed: u32,
    /// The known effect of the calls so far.
    pub effect: EffectState,
    /// When the command was first seen.
    pub first_seen: Timestamp,
    /// No operation but the last query begins after it.
    pub deadline: Timestamp,
    /// The provider's last error response to the redemption.
    pub rejection: Option<Rejection>,
    /// The coupon of this command as the last authentic response described it; `None` after a later response that
    /// denies the coupon. Only its state travels through delay queues.
    pub coupon: Option<Coupon>,
    /// The time from which a query can show that a use of ours did not take effect: a query delay after the end of the
    /// longest call that any instance may have begun. `None` if another instance had the command and the time is not
    /// known.
    pub negatives_from: Option<Timestamp>,
    /// The time before which no instance can have sent this command: a return before it ended no use of ours. `None` if
    /// the time is not known, because another instance had the command first.
    pub unsent_before: Option<Timestamp>,
    /// Since when each query has been rejected because of an id, of those that may show that no use of ours took effect.
    pub query_rejected_since: Option<Timestamp>,
    /// The sum of the waits in process in this delivery.
    waited: Duration,
    /// Failures in a row with this effect, in this delivery.
    failures: u32,
    /// Queries in a row, none of them early, that found no use of ours. Any other result resets the count.
    negatives: u8,
    /// Whether a use of ours may have taken effect without a response at some time: a response left the effect unknown,
    /// or another delivery of this command exists or existed.
    ever_unknown: bool,
    /// Whether the current operation is the last one.
    last: bool,
    /// Whether the current query comes before [`Progress::negatives_from`]: only a success counts.
    early: bool,
    /// Whether a query must come before the next redeem.
    query_first: bool,
    /// Set if only queries may be sent: the reason of the outcome if they do not settle the command.
    only_query: Option<Reason>,
}

/// The most calls of a command that permits only queries: an early query, and two that count.
const ONLY_QUERIES: u32 = 3;

impl Progress {
    /// A command seen for the first time. A redelivered one may have been sent before a crash.
    pub fn new(first_seen: Timestamp, deadline: Timestamp, redelivered: bool) -> Self {
        let effect = if redelivered { EffectState::Unknown } else { EffectState::NoEffect };
        let resumed = Self::resumed(0, 0, effect, first_seen, deadline, None);
        let unsent_before = (!redelivered).then_some(first_seen);
        Self { ever_unknown: redelivered, unsent_before, ..resumed }
    }

    /// A command that comes back from a delay queue, with the values of its headers. The delivery that the retry message
    /// came from may still exist (a crash before its acknowledgement, a retry message dead-lettered twice), redeem, and
    /// see a return.
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
            query_rejected_since: None,
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

    /// Permits only a few queries and no delay from now on. If they do not settle the command, it ends as unresolved for
    /// `reason`. Returns the limits for it.
    ///
    /// `ended` is the time at which the last delivery of the command had ended: no call can have begun after it.
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

    /// Another delivery of this command may exist: no use is sent before a query.
    pub fn require_query(&mut self) {
        self.ever_unknown = true;
        self.unsent_before = None;
    }

    /// Whether only queries may be sent.
    pub fn is_query_only(&self) -> bool {
        self.only_query.is_some()
    }

    /// Records that the broker redelivered a retry message: the effect in its headers may be outdated.
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
            // An instance that had the command before may have begun a call until now, but not later.
            let longest = later(now, limits.longest_call.saturating_add(limits.query_delay));
            self.negatives_from = Some(self.negatives_from.map_or(longest, |from| from.min(longest)));
        }
        let queries = self.next_operation() == Operation::Query;
        if self.ever_unknown && queries && (self.is_late(now) || self.is_exhausted(limits)) {
            // The last query must count, with any result.
            let wait = self.unsettled_for(limits, now);
            return self.schedule(wait, wait, limits, now);
        }
        // Another delivery may have sent the body a moment ago. If it took effect, a query shows that at once. No other
        // result of an early query counts, and no use is sent before a query.
        self.query_first = self.ever_unknown && !queries;
        self.send_after(Duration::ZERO, limits, now)
    }

    /// The step after [`Step::Suspend`], when calls are allowed again.
    pub fn resume(&mut self, limits: &Limits, now: Timestamp) -> Step {
        self.start(limits, now)
    }

    /// Whether a use that was decided on must not be sent, but [`Progress::resume`] comes first: its deadline has passed,
    /// or it `was_delayed` since the query, and another delivery may have changed the coupon meanwhile.
    pub fn is_overtaken(&self, was_delayed: bool, now: Timestamp) -> bool {
        self.is_late(now) || was_delayed && self.ever_unknown
    }

    /// The delay queue for a command that may not wait in process: the shared retry budget is spent. If no delay queue
    /// ends before the deadline, it is the shortest one, because a permit is worth more than that delay. `None` without
    /// delay queues.
    pub fn delay(&mut self, limits: &Limits, now: Timestamp) -> Option<Step> {
        let shortest = (!limits.delays.is_empty()).then_some(0);
        self.next_delay(limits, now).or(shortest).map(|delay| self.delay_in(delay, limits, now))
    }

    /// The shortest delay queue, for a delay that the command did not cause and that does not count as a delay passed.
    /// If the brand has not authorized us, another command shows meanwhile whether that holds for other brands, too.
    pub fn delay_unaged(&self, limits: &Limits) -> Option<Step> {
        (!limits.delays.is_empty()).then_some(Step::Delay { queue: 0 })
    }

    /// The delay queue for a command that no call can be made for now. The delay does not count as one passed. It is at most
    /// a minute, and no longer than the command has waited so far: however long calls are held back, it is back soon after.
    pub fn delay_held(&mut self, limits: &Limits, now: Timestamp) -> Option<Step> {
        let longest = self.deadline.duration_since(now).min(now.duration_since(self.first_seen));
        let queue = limits.delay_within(longest.min(HELD_DELAY_MAX)).unwrap_or(0);
        (!limits.delays.is_empty()).then(|| self.hold_in(queue, limits, now))
    }

    /// The delay queue for a command whose event the broker rejects: one further each time, because each return costs a
    /// query, but none above five minutes, because the fault is not the command's.
    pub fn delay_rejected(&mut self, limits: &Limits) -> usize {
        let passed = usize::try_from(self.delays_passed).unwrap_or(usize::MAX);
        self.delays_passed = self.delays_passed.saturating_add(1);
        passed.min(limits.delay_within(REJECTED_DELAY_MAX).unwrap_or(0))
    }

    /// Resets the effect of a command that waits because the broker rejects its event. A later query reads the coupon
    /// again, and the event reports that result.
    pub fn forget_outcome(&mut self, outcome: &Outcome) {
        self.effect = match outcome {
            // Other queues may have accepted the event, so the provider's rejection remains valid for the next event, too.
            Outcome::Refused { reason, rejection: Some(_), .. }
                if self.effect.signed_rejection().is_some() && Reason::REJECTIONS.contains(reason) =>
            {
                EffectState::Rejected { reason: *reason, may_be_ours: false }
            }
            // A query finds the same again.
            _ => EffectState::Unknown,
        };
        self.rejection = outcome.rejection().cloned();
    }

    /// The end of a command whose deadline has passed while no call can be made.
    pub fn expire(&mut self, limits: &Limits, now: Timestamp) -> Option<Step> {
        self.is_late(now).then(|| self.conclude_unknown(limits, now))
    }
}

/// The longest delay of a command that no call can be made for.
const HELD_DELAY_MAX: SignedDuration = SignedDuration::from_secs(60);

/// The longest wait between two tries to publish an event that the broker rejects.
const REJECTED_DELAY_MAX: SignedDuration = SignedDuration::from_secs(300);

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}
