//! What a small world consists of at one moment.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use redeemer::domain::evidence::Operation;
use redeemer::domain::outcome::{Outcome, OutcomeKind};
use redeemer::domain::reason::Reason;
use redeemer::policy::attempt::Progress;
use redeemer::policy::classify::CallResult;

use redeemer::wire::retry_message;

use crate::provider::Card;
use crate::search::{fingerprint, mix};

/// Seconds since the first command was published.
pub(crate) type Tick = u8;

pub(crate) type Headers = Vec<(&'static str, String)>;

/// A part of a state. It is shared between states, and its fingerprint is made once.
#[derive(Debug)]
pub(crate) struct Part<T>(Arc<(u64, T)>);

impl<T> Part<T> {
    /// `fingerprint` is the same for parts that go on in the same way.
    pub(crate) fn new(part: T, fingerprint: u64) -> Self {
        Self(Arc::new((fingerprint, part)))
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.0.0
    }
}

impl<T> Clone for Part<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

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
    /// Other commands leave it open whether a rejection is about this one, or show that it is not.
    pub unclear: u8,
    /// The broker stores a message and does not confirm it in time.
    pub unconfirmed: u8,
}

impl Budget {
    /// How often a command may still begin another stay with an instance, beside the delays of its own.
    pub(crate) fn interruptions(self) -> u8 {
        let Self { crashes, duplicates, holds, rejections, hand_backs, publications, replays, .. } = self;
        crashes + duplicates + holds + rejections + hand_backs + publications + replays + self.unconfirmed
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
    /// When it was parked.
    pub parked_at: Option<Tick>,
    /// The model's own: whether a return of our use was seen by anyone who held it.
    pub saw_return: bool,
}

impl Message {
    /// `by` is a time before which nobody reads it: from when on queries count is the same to its reader, if that is over.
    pub(crate) fn into_part(mut self, by: &str) -> Part<Self> {
        let whole = self.headers.clone();
        if let Some(headers) = &mut self.headers {
            let headers = Arc::make_mut(headers);
            // The service passes these on to events, and decides nothing by them; of the attempts, by those that count.
            let rests_on_rejection = headers
                .iter()
                .any(|(name, text)| *name == retry_message::LAST_VERDICT && text.contains("rejected"));
            headers.retain(|(name, _)| {
                *name != retry_message::COUPON_STATE
                    && (*name != retry_message::REJECTION || rests_on_rejection)
            });
            let count =
                |name| headers.iter().find(|(key, _)| *key == name).and_then(|(_, text)| text.parse().ok());
            let counted: u32 = count(retry_message::ATTEMPTS).unwrap_or(0);
            let suspended: u32 = count(retry_message::SUSPENDED).unwrap_or(0);
            headers.retain(|(name, _)| *name != retry_message::SUSPENDED);
            for (name, text) in headers {
                if *name == retry_message::NEGATIVES_FROM && text.as_str() <= by {
                    text.clear();
                } else if *name == retry_message::ATTEMPTS {
                    *text = format!("{} {}", counted - suspended, counted > 0);
                }
            }
        }
        let fingerprint = fingerprint(&self);
        self.headers = whole;
        Part::new(self, fingerprint)
    }
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
}

/// One delivery in the hands of an instance.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    pub message: Part<Message>,
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
    /// Until when nothing is published for it.
    pub paused_until: Tick,
    /// The model's own: whether a return of our use was seen by anyone who held the message.
    pub saw_return: bool,
}

impl Hand {
    /// From when on queries count is the same to it, if that is over `now`. Its message is not part of its fingerprint.
    pub(crate) fn into_part(self, now: Timestamp) -> Part<Self> {
        let mut hasher = DefaultHasher::new();
        let mut progress = self.progress.clone();
        // The service reports these, and decides nothing by them; of the attempts, by those that count.
        progress.coupon = None;
        (progress.attempts, progress.suspended) = (progress.attempts - progress.suspended, 0);
        (self.progress.attempts > 0).hash(&mut hasher);
        progress.rejection = progress.rejection.filter(|_| progress.effect.signed_rejection().is_some());
        progress.negatives_from =
            progress.negatives_from.map(|from| if from > now { from } else { Timestamp::MIN });
        progress.hash(&mut hasher);
        let Self { attempts_max, stage, troubled, late_calls, cut_off, paused_until, saw_return, .. } = &self;
        (attempts_max, stage, troubled, late_calls, cut_off, paused_until, saw_return).hash(&mut hasher);
        let fingerprint = hasher.finish();
        Part::new(self, fingerprint)
    }
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
    /// A message was stored and not confirmed in time, and was published once more.
    Unconfirmed,
}

impl Violation {
    /// One of each property.
    pub(crate) const ALL: [Self; 16] = [
        Self::RedeemedWithoutEffect,
        Self::UsedAfterReturnSeen,
        Self::UsedAfterDeadline,
        Self::TooManyLateCalls,
        Self::TooManyAttempts,
        Self::BodyChanged,
        Self::UnknownDelay,
        Self::DelayBeyondDeadline,
        Self::DelayTooShort,
        Self::EventIdChanged,
        Self::CorruptRetryMessage,
        Self::UsedByDeadLetter,
        Self::NoEvent,
        Self::Unexcused(Exception::TwoEffects),
        Self::Unexcused(Exception::RefusedWhileUsed),
        Self::Unexcused(Exception::EffectAfterRefused),
    ];
}

/// Some causes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Causes(u8);

impl Causes {
    pub(crate) fn insert(&mut self, cause: Cause) {
        self.0 |= 1 << cause as u8;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, cause: Cause) -> bool {
        self.0 & 1 << cause as u8 != 0
    }

    pub(crate) fn to_list(self) -> Vec<Cause> {
        Cause::ALL.into_iter().filter(|cause| self.contains(*cause)).collect()
    }

    /// Every selection of these causes, as a number; itself first.
    pub(crate) fn selections(self) -> impl Iterator<Item = u8> {
        let mut next = Some(self.0);
        std::iter::from_fn(move || {
            let selection = next?;
            next = (selection > 0).then(|| (selection - 1) & self.0);
            Some(selection)
        })
    }
}

impl Cause {
    pub(crate) const ALL: [Self; 8] = [
        Self::EventUnacked,
        Self::RetryUnacked,
        Self::RetryTwice,
        Self::CutOff,
        Self::EventHalfTaken,
        Self::PublishedTwice,
        Self::Replayed,
        Self::Unconfirmed,
    ];
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
    /// It has come to rest without an event, or does not come to rest.
    NoEvent,
    /// An exception for which there is no cause.
    Unexcused(Exception),
}

/// What an operator saw of a parked command, and is to see again.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub at: Tick,
    pub parked: Part<Message>,
}

/// Everything.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub now: Tick,
    pub card: Arc<Card>,
    /// By when each use of ours that was sent takes effect, if it does.
    pub under_way: Vec<Tick>,
    pub queue: Vec<Part<Message>>,
    pub delayed: Vec<(Tick, Part<Message>)>,
    pub dead: Vec<Part<Message>>,
    pub parked: Vec<Part<Message>>,
    pub look: Option<Look>,
    /// Older first.
    pub hands: Vec<Part<Hand>>,
    /// The outcomes that were published, each once, in order.
    pub events: Vec<OutcomeKind>,
    pub left: Budget,
    pub causes: Causes,
    /// What the last action showed.
    pub exceptions: BTreeSet<Exception>,
    /// What the last action broke. Nothing follows it.
    pub violations: BTreeSet<Violation>,
}

impl State {
    /// Whether anything goes on by itself.
    pub(crate) fn is_at_work(&self) -> bool {
        !(self.hands.is_empty()
            && self.queue.is_empty()
            && self.delayed.is_empty()
            && self.dead.is_empty()
            && self.look.is_none()
            && self.under_way.is_empty())
    }

    /// The same for states that go on in the same way, whatever may excuse what follows: the order of messages and of
    /// deliveries in hand makes no difference, nor does a message that cannot return.
    pub(crate) fn fingerprint(&self) -> u64 {
        let Self { now, card, under_way, queue, delayed, dead, parked, look, hands, events, left, .. } = self;
        let sum = |kind: u64, fingerprints: &mut dyn Iterator<Item = u64>| {
            fingerprints.fold(0, |sum: u64, next| sum.wrapping_add(mix(kind, next)))
        };
        let messages = sum(1, &mut queue.iter().map(Part::fingerprint))
            .wrapping_add(sum(2, &mut dead.iter().map(Part::fingerprint)))
            .wrapping_add(sum(3, &mut parked.iter().map(Part::fingerprint)))
            .wrapping_add(sum(
                4,
                &mut delayed.iter().map(|(due, it)| mix(u64::from(*due), it.fingerprint())),
            ));
        let may_return = left.crashes + left.cut_offs + left.hand_backs > 0;
        let hand = |hand: &Part<Hand>| {
            let returns = may_return || hand.stage == Stage::HandBack || hand.message.dead.is_some();
            let message = match returns {
                true => hand.message.fingerprint(),
                // What is left of it for the service's next decision.
                false => u64::from(hand.message.headers.is_some()),
            };
            mix(hand.fingerprint(), message)
        };
        let hands = sum(5, &mut hands.iter().map(hand));
        let look = look.as_ref().map(|look| (look.at, look.parked.fingerprint()));
        // Without a crash no command is over its limit.
        let dead_letters = if left.crashes > 0 { left.dead_letters } else { 0 };
        let left = Budget { dead_letters, ..*left };
        mix(mix(messages, hands), fingerprint(&(now, card, under_way, look, events, left)))
    }
}
