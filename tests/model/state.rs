//! What a small world consists of at one moment.

use std::collections::BTreeSet;
use std::sync::Arc;

use redeemer::domain::evidence::Operation;
use redeemer::domain::outcome::{Outcome, OutcomeKind};
use redeemer::domain::reason::Reason;
use redeemer::policy::attempt::Progress;
use redeemer::policy::classify::CallResult;

use crate::provider::Card;

/// Seconds since the first command was published.
pub(crate) type Tick = u8;

pub(crate) type Headers = Vec<(&'static str, String)>;

/// How often each kind of trouble may still come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// An instance dies, or its connection ends.
    pub crashes: u8,
    /// The broker gives up on a command that comes back after a crash.
    pub dead_letters: u8,
    /// An instance that lost its connection goes on until it notices.
    pub cut_offs: u8,
    /// A retry message leaves its delay queue twice.
    pub duplicates: u8,
    /// Something goes wrong between a call and its answer.
    pub faults: u8,
    /// The user, another order, or the coupon's time does something to the coupon.
    pub changes: u8,
    /// A call may not be made now.
    pub holds: u8,
    /// The broker does not take an event.
    pub rejections: u8,
    /// An instance that is stopped hands a command back.
    pub hand_backs: u8,
    /// The order service publishes the command once more.
    pub publications: u8,
    /// An operator replays a parked command.
    pub replays: u8,
}

impl Budget {
    /// How often a command may still begin another stay with an instance, beside the delays of its own.
    pub(crate) fn interruptions(self) -> u8 {
        let Self { crashes, duplicates, holds, rejections, hand_backs, publications, replays, .. } = self;
        crashes + duplicates + holds + rejections + hand_backs + publications + replays
    }
}

/// A message of the command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    /// What a retry message carries.
    pub headers: Option<Arc<Headers>>,
    /// Whether the broker delivered it before.
    pub redelivered: bool,
    /// How it is marked as handed back.
    pub handed_back: Option<Arc<str>>,
    /// Whether it is marked as delivered before, under whatever name.
    pub tried: bool,
    /// Why and when the broker dead-lettered it.
    pub dead: Option<(Reason, Tick)>,
    /// The model's own: whether a return of our use was seen by anyone who held it.
    pub saw_return: bool,
}

/// What an instance is about to do with the command that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// To call.
    Due { at: Tick, operation: Operation },
    /// To call, as soon as calls are let through: short of the bound, or beyond it.
    Held { until: Tick, operation: Operation, too_long: bool },
    /// To hear the answer: what it is, and whether it shows a return of our use, once the provider has worked on it.
    Calling { operation: Operation, sent: Tick, answer: Option<(CallResult, bool)> },
    /// To publish a retry message.
    Delay { delay: usize },
    /// To publish the event.
    Conclude(Outcome),
    /// To park it, its event is confirmed.
    Park,
    /// To publish it once more into the queue that it came from.
    HandBack,
    /// To acknowledge: what was published is confirmed.
    Ack(Published),
}

/// What was confirmed before the acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Published {
    Event,
    Message,
}

/// One delivery in the hands of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Hand {
    pub message: Message,
    pub progress: Progress,
    /// The most attempts, if that is not the world's own bound.
    pub attempts_max: Option<u32>,
    pub stage: Stage,
    /// Whether the last call met trouble.
    pub troubled: bool,
    /// Calls begun after the deadline.
    pub late_calls: u8,
    /// When its connection ended, if it does not know that yet.
    pub cut_off: Option<Tick>,
}

/// Why a second delivery of the command may be at work, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cause {
    /// An event was confirmed, its delivery not acknowledged.
    EventUnacked,
    /// A retry message or a message handed back was confirmed, its delivery not acknowledged.
    RetryUnacked,
    /// A retry message left its delay queue twice.
    RetryTwice,
    /// An instance that lost its connection began one more call.
    CutOff,
    /// One queue rejected an event that another one took.
    EventHalfTaken,
    /// The same command was published twice.
    PublishedTwice,
    /// A parked command was replayed.
    Replayed,
}

/// What an observer may take for a broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Exception {
    TwoEffects,
    RedeemedThenRefused,
    RedeemedThenUnresolved,
    RefusedThenRedeemed,
    RefusedThenUnresolved,
    EffectAfterRefused,
    RefusedWhileUsed,
    /// Our use stands at the end, and the best outcome that was published is `refused`.
    RefusedInTheEnd,
}

/// A property that nothing excuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Violation {
    RedeemedWithoutEffect,
    UsedAfterReturnSeen,
    UsedAfterDeadline,
    TooManyLateCalls,
    TooManyAttempts,
    BodyChanged,
    UnknownDelay,
    DelayBeyondDeadline,
    /// A delay queue before the one that comes next.
    DelayTooShort,
    EventIdChanged,
    CorruptRetryMessage,
    UsedByDeadLetter,
    NoEvent,
    NoEnd,
    /// An exception for which there is no cause.
    Unexcused(Exception),
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub now: Tick,
    pub card: Card,
    /// By when each use of ours that was sent takes effect, if it does.
    pub under_way: Vec<Tick>,
    pub queue: Vec<Arc<Message>>,
    pub delayed: Vec<(Tick, Arc<Message>)>,
    pub dead: Vec<Arc<Message>>,
    pub parked: Vec<Arc<Message>>,
    /// Older first.
    pub hands: Vec<Arc<Hand>>,
    /// The outcomes that were published, each once, in order.
    pub events: Vec<OutcomeKind>,
    pub left: Budget,
    pub causes: BTreeSet<Cause>,
    pub exceptions: BTreeSet<Exception>,
    pub violations: BTreeSet<Violation>,
}

impl State {
    /// Whether anything goes on by itself.
    pub(crate) fn is_at_work(&self) -> bool {
        !(self.hands.is_empty()
            && self.queue.is_empty()
            && self.delayed.is_empty()
            && self.dead.is_empty()
            && self.under_way.is_empty())
    }
}
