//! What can happen in a small world, and what follows. The service's own part is the service's own code.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use redeemer::domain::evidence::Operation;
use redeemer::domain::outcome::{Outcome, OutcomeKind};
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::attempt::{EffectState, Limits, Progress, Step};
use redeemer::policy::backoff::Backoff;
use redeemer::policy::classify::{
    Authenticity, CallResult, NotAccepted, SuspendReason, UnknownCause, Verdict, classify,
};
use redeemer::policy::common_rejection::RejectionOwner;
use redeemer::wechat::client::Prepared;
use redeemer::wire::command;
use redeemer::wire::handed_back::HandedBack;
use redeemer::wire::result_event::{self, EventContext};
use redeemer::wire::retry_message::{self, DeadlineLimits};

use crate::provider::{self, Card, Gone, Rejects, Return, User, Ways};
use crate::search::Model;
use crate::state::{
    Budget, Cause, Causes, Exception, Hand, Look, Message, Part, Stage, State, Tick, Violation,
};

const COMMAND: &str = r#"{"openid": "oUser", "coupon_code": "C0001", "brand_id": "120344",
    "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx1",
    "use_time": "2026-03-05T12:30:45+08:00", "out_request_no": "USE_0001",
    "associated_order_info": {"transaction_id": "4200000000123456789123456789"}}"#;

/// Long after every wait that the bounds allow.
const END: Tick = 60;

/// The pause before a message is published once more that may be stored already: longer than every call.
const PAUSE: Tick = 5;

/// How long an instance goes on that lost its connection and did not notice.
const UNNOTICED: Tick = 1;

/// A small world.
pub(crate) struct World {
    pub name: &'static str,
    pub ways: Ways,
    /// What the coupon may be like when the command is published.
    pub cards: Vec<Card>,
    pub budget: Budget,
    pub instances: usize,
    /// Until when the command may be worked on.
    pub deadline: Tick,
    limits: Limits,
    redemption: Redemption,
    body_sha256: String,
    /// How often the body was made of the command, and compared.
    bodies: AtomicU32,
    /// The id of the event of each kind of outcome, and the outcomes of which an event was made.
    ids: Mutex<BTreeMap<&'static str, String>>,
    outcomes: Mutex<BTreeSet<[&'static str; 3]>>,
    /// What the attempt machine was seen to do: operation, effect before, verdict, step.
    covered: Vec<AtomicBool>,
}

/// What a call meets that does not go well. Of each kind that the service distinguishes, one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No answer; it may have arrived.
    Lost,
    /// Nothing was sent.
    NotSent,
    /// Signed: not now.
    NotAccepted,
    /// A rejection without a signature.
    UnsignedRejection,
    /// A success without a signature.
    Forged,
    /// Signed 401.
    Unauthenticated,
    /// 401 without a signature.
    UnsignedUnauthenticated,
    /// Signed: the number was used before, or something else is wrong with the request; of a query, the latter.
    AlreadyUsed,
    /// The same, and other commands leave it open whether it is about this one.
    AlreadyUsedUnclear,
    /// The same, and other commands show that it is not.
    AlreadyUsedCommon,
    /// Signed: used, but not under which number.
    Unnamed,
    /// Signed NO_AUTH, while other brands are let in.
    BrandDenied,
    /// Signed NO_AUTH, and nothing is known of other brands.
    BrandDeniedFirst,
    /// Signed NO_AUTH for every brand.
    AllDenied,
}

const USE_TROUBLES: [Trouble; 13] = [
    Trouble::Lost,
    Trouble::NotSent,
    Trouble::NotAccepted,
    Trouble::UnsignedRejection,
    Trouble::Forged,
    Trouble::Unauthenticated,
    Trouble::UnsignedUnauthenticated,
    Trouble::AlreadyUsed,
    Trouble::AlreadyUsedUnclear,
    Trouble::AlreadyUsedCommon,
    Trouble::BrandDenied,
    Trouble::BrandDeniedFirst,
    Trouble::AllDenied,
];

const QUERY_TROUBLES: [Trouble; 9] = [
    Trouble::Lost,
    Trouble::NotSent,
    Trouble::NotAccepted,
    Trouble::Forged,
    Trouble::Unauthenticated,
    Trouble::AlreadyUsed,
    Trouble::AlreadyUsedCommon,
    Trouble::Unnamed,
    Trouble::BrandDenied,
];

/// What happens to the coupon that is not one of the service's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Return,
    UseByOther,
    Delete,
    Expire,
    Activate,
}

const CHANGES: [Change; 5] =
    [Change::Return, Change::UseByOther, Change::Delete, Change::Expire, Change::Activate];

/// One thing that happens. Numbers are places in the lists of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A second passes.
    Tick,
    /// A use that was sent takes effect, or it never does.
    TakeEffect(usize),
    Vanish(usize),
    /// The broker delivers a message of the command queue, or of the dead letters.
    Deliver(usize),
    DeliverDead(usize),
    /// A delay ends; the message may leave the queue twice.
    EndDelay(usize),
    EndDelayTwice(usize),
    /// A call that is answered at once.
    Call(usize),
    CallInTrouble(usize, Trouble),
    /// A call that is rejected, while other commands leave it open whether it is about this one, or show that it is not.
    CallUnclear(usize),
    CallCommon(usize),
    /// A call of which request and answer take their time.
    Send(usize),
    Work(usize),
    Answer(usize),
    TimeOut(usize),
    /// Calls are held back for a moment, or for longer than an instance waits.
    HoldBriefly(usize),
    HoldLong(usize),
    EndHold(usize),
    /// A use has come too late to be sent.
    Reconsider(usize),
    /// The brand was denied lately: no call.
    KeepOut(usize),
    /// The retry budget is spent: no call now.
    Postpone(usize),
    /// The circuit is not closed: another command finds out.
    StepAside(usize),
    /// Calls are held back, and the deadline has passed: no wait for a query.
    GiveUp(usize),
    /// Too many commands of this coupon are held.
    Crowd(usize),
    /// It is published and, but for the event of a command that is parked next, acknowledged.
    Publish(usize),
    /// It is stored, and not confirmed in time: it is published once more.
    PublishUnconfirmed(usize),
    /// The instance dies, or its connection ends, before the acknowledgement.
    PublishUnacked(usize),
    PublishUnackedToDeadLetter(usize),
    /// The broker does not take the event; another queue may have taken it.
    RejectEvent(usize),
    HalfTakeEvent(usize),
    Crash(usize),
    CrashToDeadLetter(usize),
    CutOff(usize),
    /// An instance that lost its connection notices.
    Notice(usize),
    Stop(usize),
    Change(Change),
    PublishAgain,
    /// An operator looks at a parked command, and acts on it, with or without an acknowledgement.
    Replay(usize),
    ReplayUnacked(usize),
    /// The second look, which a refusal takes.
    LookAgain,
    LookAgainUnacked,
}

impl World {
    pub(crate) fn new(name: &'static str, ways: Ways, budget: Budget) -> Self {
        let second = Duration::from_secs(1);
        let backoff = Backoff::new(second, 2.0, 0.0, 2 * second).unwrap();
        let limits = Limits {
            backoff,
            in_process_max: 2 * second,
            query_delay: second,
            longest_call: 2 * second,
            delays: vec![2 * second, 4 * second],
            attempts_max: 6,
        };
        let redemption = command::decode(COMMAND.as_bytes()).unwrap();
        let body_sha256 = Prepared::new(&redemption).body_sha256().to_owned();
        Self {
            name,
            ways,
            cards: vec![Card::new(ways)],
            budget,
            instances: 1,
            deadline: 9,
            limits,
            redemption,
            body_sha256,
            bodies: AtomicU32::new(0),
            ids: Mutex::default(),
            outcomes: Mutex::default(),
            covered: coverage().map(|_| AtomicBool::new(false)).collect(),
        }
    }

    pub(crate) fn with_instances(mut self, instances: usize) -> Self {
        self.instances = instances;
        self
    }

    pub(crate) fn with_cards(mut self, cards: &[fn(&mut Card)]) -> Self {
        let card = Card::new(self.ways);
        self.cards = vec![card.clone()];
        self.cards.extend(cards.iter().map(|change| {
            let mut card = card.clone();
            change(&mut card);
            card
        }));
        self
    }

    pub(crate) fn with_deadline(mut self, deadline: Tick) -> Self {
        self.deadline = deadline;
        self
    }

    pub(crate) fn with_attempts_max(mut self, attempts_max: u32) -> Self {
        self.limits.attempts_max = attempts_max;
        self
    }

    pub(crate) fn without_delays(mut self) -> Self {
        self.limits.delays.clear();
        self
    }

    fn at(tick: Tick) -> Timestamp {
        provider::start().saturating_add(SignedDuration::from_secs(tick.into())).unwrap()
    }

    fn seconds(wait: Duration) -> Tick {
        assert_eq!(wait.subsec_nanos(), 0, "every wait of a small world is in whole seconds");
        Tick::try_from(wait.as_secs()).unwrap()
    }

    fn deadline_limits(&self) -> DeadlineLimits {
        let default = SignedDuration::from_secs(self.deadline.into());
        DeadlineLimits { default, furthest: SignedDuration::from_hours(1) }
    }

    fn limits_of(&self, hand: &Hand) -> Cow<'_, Limits> {
        match hand.attempts_max {
            None => Cow::Borrowed(&self.limits),
            Some(attempts_max) => Cow::Owned(Limits { delays: vec![], attempts_max, ..self.limits.clone() }),
        }
    }

    fn fresh() -> Part<Message> {
        Message::default().into_part("")
    }

    // ---- what can happen

    fn act_on_hand(&self, state: &State, nth: usize, actions: &mut Vec<Action>) {
        let hand = &*state.hands[nth];
        let left = state.left;
        if let Some(at) = hand.cut_off
            && (state.now >= at + UNNOTICED
                || !matches!(hand.stage, Stage::Due { .. } | Stage::Calling { .. }))
            && !matches!(hand.stage, Stage::Calling { .. })
        {
            actions.push(Action::Notice(nth));
        }
        match &hand.stage {
            Stage::Due { at, operation } if *at <= state.now => {
                self.act_on_due(state, nth, *operation, actions);
            }
            Stage::Due { .. } => {
                let is_late = hand.progress.deadline <= Self::at(state.now);
                actions.extend((is_late && left.holds > 0).then_some(Action::GiveUp(nth)));
            }
            Stage::Held { until, .. } => {
                actions.extend((*until <= state.now).then_some(Action::EndHold(nth)))
            }
            Stage::Calling { answer: None, sent, .. } => {
                actions.push(Action::Work(nth));
                actions.extend((*sent + self.longest_call() == state.now).then_some(Action::TimeOut(nth)));
            }
            Stage::Calling { answer: Some(_), sent, .. } => {
                actions.push(Action::Answer(nth));
                actions.extend((*sent + self.longest_call() == state.now).then_some(Action::TimeOut(nth)));
            }
            // Without its connection nothing is published.
            Stage::Conclude(_) | Stage::Delay { .. } | Stage::Park | Stage::HandBack
                if hand.cut_off.is_some() => {}
            Stage::Conclude(_) | Stage::Delay { .. } | Stage::Park | Stage::HandBack => {
                self.act_on_publish(state, nth, actions);
            }
        }
        if hand.cut_off.is_some() {
            return;
        }
        if left.crashes > 0 {
            actions.push(Action::Crash(nth));
            if left.dead_letters > 0 && hand.message.dead.is_none() {
                actions.push(Action::CrashToDeadLetter(nth));
            }
        }
        if left.cut_offs > 0 && matches!(hand.stage, Stage::Due { .. } | Stage::Calling { .. }) {
            actions.push(Action::CutOff(nth));
        }
        if left.hand_backs > 0 && matches!(hand.stage, Stage::Due { .. } | Stage::Held { .. }) {
            actions.push(Action::Stop(nth));
        }
    }

    fn free_instances(&self, state: &State) -> usize {
        let connected = state.hands.iter().filter(|hand| hand.cut_off.is_none()).count();
        self.instances.saturating_sub(connected)
    }

    /// What comes before anything else because nobody can tell when it happened: the end of a delay, a publish that no other
    /// party sees, a delivery for which there is an instance whatever else comes. The same follows from every other order.
    fn hidden_actions(&self, state: &State) -> Option<Vec<Action>> {
        let left = state.left;
        if let Some(nth) = state.delayed.iter().position(|(due, _)| *due <= state.now) {
            let twice = (left.duplicates > 0).then_some(Action::EndDelayTwice(nth));
            return Some([Action::EndDelay(nth)].into_iter().chain(twice).collect());
        }
        if let Some(nth) = state.hands.iter().position(|hand| Self::is_hidden(hand, state.now)) {
            let mut actions = Vec::new();
            self.act_on_hand(state, nth, &mut actions);
            return Some(actions);
        }
        let waiting = state.queue.len() + state.dead.len();
        let to_come = usize::from(left.publications + left.replays + left.unconfirmed)
            + usize::from(state.look.is_some());
        (waiting > 0 && waiting + to_come <= self.free_instances(state))
            .then(|| vec![if state.queue.is_empty() { Action::DeliverDead(0) } else { Action::Deliver(0) }])
    }

    fn act_on_publish(&self, state: &State, nth: usize, actions: &mut Vec<Action>) {
        let (hand, left) = (&*state.hands[nth], state.left);
        if hand.paused_until > state.now {
            return;
        }
        actions.push(Action::Publish(nth));
        let is_event = matches!(hand.stage, Stage::Conclude(_));
        if is_event && left.rejections > 0 && (hand.attempts_max.is_some() || !self.limits.delays.is_empty())
        {
            actions.extend([Action::RejectEvent(nth), Action::HalfTakeEvent(nth)]);
        }
        if !is_event && left.unconfirmed > 0 {
            actions.push(Action::PublishUnconfirmed(nth));
        }
        // Before a command is parked, its event is confirmed: a crash then is one of the next stage.
        if left.crashes > 0 && !matches!(hand.stage, Stage::Conclude(Outcome::Unresolved { .. })) {
            actions.push(Action::PublishUnacked(nth));
            if left.dead_letters > 0 && hand.message.dead.is_none() {
                actions.push(Action::PublishUnackedToDeadLetter(nth));
            }
        }
    }

    /// Nobody sees whether it is published a moment before or after what others do.
    fn is_hidden(hand: &Hand, now: Tick) -> bool {
        hand.cut_off.is_none()
            && hand.paused_until <= now
            && matches!(hand.stage, Stage::Delay { .. } | Stage::Park | Stage::HandBack)
    }

    fn act_on_due(&self, state: &State, nth: usize, operation: Operation, actions: &mut Vec<Action>) {
        let (hand, left) = (&state.hands[nth], state.left);
        if operation == Operation::Redeem && hand.progress.is_overtaken(false, Self::at(state.now)) {
            return actions.push(Action::Reconsider(nth));
        }
        actions.push(Action::Call(nth));
        if left.unclear > 0 && self.may_be_common(&state.card, operation) {
            actions.extend([Action::CallUnclear(nth), Action::CallCommon(nth)]);
        }
        if left.faults > 0 {
            let troubles: &[Trouble] = match operation {
                Operation::Redeem => &USE_TROUBLES,
                Operation::Query => &QUERY_TROUBLES,
            };
            actions.extend(troubles.iter().map(|trouble| Action::CallInTrouble(nth, *trouble)));
            actions.push(Action::Send(nth));
        }
        if left.holds > 0 {
            actions.extend([Action::HoldBriefly(nth), Action::HoldLong(nth)]);
            let delays = !self.limits.delays.is_empty() && hand.attempts_max.is_none();
            if delays && (hand.troubled || hand.progress.attempts > 0) {
                actions.push(Action::Postpone(nth));
            }
            if delays && hand.troubled {
                actions.push(Action::StepAside(nth));
            }
            if delays && hand.progress.attempts == 0 && hand.message.headers.is_none() {
                actions.push(Action::Crowd(nth));
            }
            let clear = hand.progress.effect == EffectState::NoEffect;
            let for_a_use =
                operation == Operation::Redeem || clear && Self::at(state.now) < hand.progress.deadline;
            if delays && for_a_use {
                actions.push(Action::KeepOut(nth));
            }
        }
    }

    /// Whether the provider's own answer says so little that it may meet every command alike.
    fn may_be_common(&self, card: &Card, operation: Operation) -> bool {
        card.rejected == Some(Rejects::Parameter) && self.ways.signs_rejections && {
            let (used, of_use) = (card.is_ours(), operation == Operation::Redeem);
            !(used && of_use)
        }
    }

    /// A change is followed at once by something that it may matter to: of a change before anything else the same comes as of
    /// one after it.
    fn change_coupon(&self, state: &State, actions: &mut Vec<Action>) {
        let matters = !state.under_way.is_empty()
            || actions.iter().any(|action| {
                matches!(
                    action,
                    Action::Call(_)
                        | Action::Work(_)
                        | Action::EndHold(_)
                        | Action::Publish(_)
                        | Action::Replay(_)
                        | Action::LookAgain
                )
            });
        if state.left.changes == 0 || !matters {
            return;
        }
        let card = &state.card;
        let used = card.permits.iter().any(|permit| permit.used.is_some());
        let free = card.permits.iter().any(|permit| permit.used.is_none()) && card.gone.is_none();
        actions.extend(
            CHANGES
                .into_iter()
                .filter(|change| match change {
                    Change::Return => used,
                    Change::UseByOther | Change::Delete | Change::Expire => free && card.rejected.is_none(),
                    Change::Activate => card.gone == Some(Gone::Pending),
                })
                .map(Action::Change),
        );
    }

    fn longest_call(&self) -> Tick {
        Self::seconds(self.limits.longest_call)
    }

    fn settling(&self) -> Tick {
        Self::seconds(self.limits.query_delay)
    }

    // ---- what follows

    fn violate(state: &mut State, violation: Violation) {
        state.violations.insert(violation);
    }

    fn except(state: &mut State, exception: Exception) {
        state.exceptions.insert(exception);
        if state.causes.is_empty() {
            Self::violate(state, Violation::Unexcused(exception));
        }
    }

    fn take_effect(&self, state: &mut State) {
        if !state.card.would_take_effect(self.ways) {
            return;
        }
        Arc::make_mut(&mut state.card).take_effect(self.ways);
        if state.card.effects > 1 {
            Self::except(state, Exception::TwoEffects);
        }
        if state.events.contains(&OutcomeKind::Refused) {
            Self::except(state, Exception::EffectAfterRefused);
        }
    }

    /// Reads a delivery as `worker` does.
    fn deliver(&self, state: &mut State, message: &Part<Message>) {
        let now = Self::at(state.now);
        // The same is made of the same bytes: more often than this it need not be made.
        if self.bodies.fetch_add(1, Ordering::Relaxed) < 1_000 {
            let redemption = command::decode(COMMAND.as_bytes()).unwrap();
            if Prepared::new(&redemption).body_sha256() != self.body_sha256 {
                Self::violate(state, Violation::BodyChanged);
            }
        }
        let again = message.redelivered || message.tried;
        let mut progress = match &message.headers {
            Some(headers) => {
                let header =
                    |name| headers.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str());
                let Ok(carried) = retry_message::read(header, &self.body_sha256, now, self.deadline_limits())
                else {
                    return Self::violate(state, Violation::CorruptRetryMessage);
                };
                let mut progress = carried.progress;
                if again {
                    progress.mark_redelivered();
                }
                progress
            }
            None => {
                let (asked, again) = (Self::at(self.deadline).to_string(), again || message.dead.is_some());
                match &message.handed_back {
                    Some(words) => {
                        let handed_back = HandedBack::from_words(words, now).unwrap();
                        handed_back.progress(Some(&asked), again, self.deadline_limits()).unwrap()
                    }
                    None => {
                        let deadline =
                            retry_message::deadline(Some(&asked), now, self.deadline_limits()).unwrap();
                        Progress::new(now, deadline, again)
                    }
                }
            }
        };
        let attempts_max = message.dead.map(|(reason, at)| {
            // The broker counts whole seconds.
            progress.only_query(reason, Some(Self::at(at + 1)), &self.limits).attempts_max
        });
        let mut hand = Hand {
            message: message.clone(),
            progress,
            attempts_max,
            stage: Stage::HandBack,
            troubled: false,
            late_calls: 0,
            cut_off: None,
            paused_until: 0,
            saw_return: message.saw_return,
        };
        let limits = self.limits_of(&hand);
        let step = hand.progress.start(&limits, now);
        self.follow(state, &mut hand, step);
        state.hands.push(hand.into_part(now));
    }

    /// What an instance does with a step, as `worker` does.
    fn follow(&self, state: &mut State, hand: &mut Hand, step: Step) {
        let limits = self.limits_of(hand);
        hand.stage = match step {
            Step::Send { after, operation } => Stage::Due { at: state.now + Self::seconds(after), operation },
            Step::Delay { queue } => {
                match limits.delays.get(queue) {
                    None => Self::violate(state, Violation::UnknownDelay),
                    Some(delay) if queue > 0 => {
                        let over = Self::at(state.now + Self::seconds(*delay));
                        if over > hand.progress.deadline {
                            Self::violate(state, Violation::DelayBeyondDeadline);
                        }
                    }
                    Some(_) => {}
                }
                Stage::Delay { delay: queue }
            }
            Step::Suspend(_) if let Some(step) = hand.progress.delay_unaged(&limits) => {
                return self.follow(state, hand, step);
            }
            Step::Suspend(_) if hand.progress.is_query_only() => Stage::HandBack,
            Step::Suspend(_) => {
                let step = hand.progress.resume(&limits, Self::at(state.now));
                return self.follow(state, hand, step);
            }
            Step::Finish(outcome) => {
                match &outcome {
                    Outcome::Redeemed { .. } if state.card.effects == 0 => {
                        Self::violate(state, Violation::RedeemedWithoutEffect);
                    }
                    Outcome::Refused { .. } if state.card.is_ours() => {
                        Self::except(state, Exception::RefusedWhileUsed);
                    }
                    _ => {}
                }
                Stage::Conclude(outcome)
            }
        };
    }

    /// What a call is checked for when it begins.
    fn begin_call(&self, state: &mut State, hand: &mut Hand, operation: Operation) {
        let late = Self::at(state.now) > hand.progress.deadline;
        // One that was due in time, and had to wait, is not one of the last ones.
        let held = matches!(hand.stage, Stage::Held { .. });
        if operation == Operation::Redeem {
            for (broken, violation) in [
                (late, Violation::UsedAfterDeadline),
                (hand.saw_return, Violation::UsedAfterReturnSeen),
                (hand.message.dead.is_some(), Violation::UsedByDeadLetter),
            ] {
                if broken {
                    Self::violate(state, violation);
                }
            }
        }
        hand.late_calls += u8::from(late && !held);
        if hand.late_calls > 2 && hand.message.dead.is_none() {
            Self::violate(state, Violation::TooManyLateCalls);
        }
        if hand.cut_off.is_some() {
            state.causes.insert(Cause::CutOff);
        }
    }

    /// Hears an answer, as `worker` does.
    fn hear(
        &self,
        state: &mut State,
        hand: &mut Hand,
        operation: Operation,
        reply: CallResult,
        shows_our_return: bool,
        trouble: Option<Trouble>,
    ) {
        let verified =
            matches!(&reply, CallResult::Response(answer) if answer.authenticity == Authenticity::Verified);
        hand.saw_return |= verified && shows_our_return;
        let verdict = hand.progress.advance(operation, &reply, &self.redemption);
        let verdict = Self::attribute(&hand.progress, operation, &reply, verdict, trouble);
        let limits = self.limits_of(hand);
        let (believed, word, delays) =
            (effect_number(&hand.progress), verdict_number(&verdict), hand.progress.delays_passed);
        hand.troubled = matches!(verdict, Verdict::NotAccepted(_) | Verdict::NotSent | Verdict::Unknown(_));
        let step = hand.progress.follow_verdict(operation, reply, verdict, &limits, Self::at(state.now), 0.5);
        self.cover(operation, believed, word, step_number(&step));
        self.check_delay(state, hand, delays, &step);
        // A last query and its repetition, for each stay.
        let stays = 1 + u32::from(self.budget.interruptions() - state.left.interruptions());
        if hand.progress.attempts - hand.progress.suspended > limits.attempts_max + 2 * stays {
            Self::violate(state, Violation::TooManyAttempts);
        }
        self.follow(state, hand, step);
    }

    /// Whose a rejection is: what other commands show of it is a trouble here.
    fn attribute(
        progress: &Progress,
        operation: Operation,
        reply: &CallResult,
        verdict: Verdict,
        trouble: Option<Trouble>,
    ) -> Verdict {
        let owner = match trouble {
            Some(Trouble::AlreadyUsedUnclear) => RejectionOwner::Unclear,
            Some(Trouble::AlreadyUsedCommon) => RejectionOwner::Common,
            _ => RejectionOwner::Command,
        };
        match (verdict, trouble) {
            (Verdict::NotAuthorized, Some(Trouble::BrandDeniedFirst)) if operation == Operation::Redeem => {
                Verdict::NotAccepted(NotAccepted::NotAuthorized)
            }
            (Verdict::NotAuthorized, Some(Trouble::AllDenied)) if operation == Operation::Redeem => {
                Verdict::Suspended(SuspendReason::Unauthorized)
            }
            (verdict @ Verdict::Rejected { reason, .. }, _) if reason.may_be_common() => {
                let is_alike = operation == Operation::Query
                    && reply.response().is_some_and(|response| progress.confirms_rejection(response));
                owner.attribute(operation, is_alike, verdict)
            }
            (verdict, _) => verdict,
        }
    }

    /// Delays grow from queue to queue, as far as the deadline lets them.
    fn check_delay(&self, state: &mut State, hand: &Hand, passed: u32, step: &Step) {
        // Others concern calls that may be under way, or are nobody's fault, and count as none.
        if let Step::Delay { queue: delay } = step
            && hand.progress.delays_passed > passed
        {
            let next = (passed as usize).min(self.limits.delays.len() - 1);
            let over = |delay: usize| Self::at(state.now + Self::seconds(self.limits.delays[delay]));
            let fits = (0..=next).rev().find(|delay| over(*delay) <= hand.progress.deadline);
            if *delay < fits.unwrap_or(0) {
                Self::violate(state, Violation::DelayTooShort);
            }
        }
    }

    fn shows_our_return(card: &Card) -> bool {
        !card.is_ours() && card.permits.iter().any(|permit| permit.returned == Some(Return::Ours))
    }

    /// A call that is worked on and answered at once.
    fn call(&self, state: &mut State, hand: &mut Hand, operation: Operation, trouble: Option<Trouble>) {
        self.begin_call(state, hand, operation);
        let (reply, shows) = self.work(state, operation);
        self.hear(state, hand, operation, reply, shows, trouble);
    }

    /// The provider works on a request.
    fn work(&self, state: &mut State, operation: Operation) -> (CallResult, bool) {
        if operation == Operation::Redeem {
            self.take_effect(state);
        }
        let reply = match operation {
            Operation::Redeem => state.card.answer_use(self.ways),
            Operation::Query => state.card.answer_query(self.ways),
        };
        (reply, Self::shows_our_return(&state.card))
    }

    fn call_in_trouble(&self, state: &mut State, hand: &mut Hand, operation: Operation, trouble: Trouble) {
        self.begin_call(state, hand, operation);
        state.left.faults -= 1;
        let signed = |status, code: &str| provider::error(status, code, None, Authenticity::Verified);
        let unsigned = |status, code: &str| provider::error(status, code, None, Authenticity::Unsigned);
        let (reply, may_take_effect) = match trouble {
            Trouble::Lost => (provider::lost(), true),
            Trouble::NotSent => (provider::not_sent(), false),
            Trouble::NotAccepted => (signed(429, "RATELIMIT_EXCEEDED"), false),
            Trouble::UnsignedRejection => (unsigned(403, "NOT_ENOUGH"), true),
            Trouble::Forged => (state.card.forge_success(self.ways), true),
            Trouble::Unauthenticated => (signed(401, "SIGN_ERROR"), false),
            Trouble::UnsignedUnauthenticated => (unsigned(401, "SIGN_ERROR"), true),
            Trouble::AlreadyUsed | Trouble::AlreadyUsedUnclear | Trouble::AlreadyUsedCommon => {
                (signed(400, "PARAM_ERROR"), true)
            }
            Trouble::Unnamed => (state.card.answer_query(Ways { shows_numbers: false, ..self.ways }), false),
            Trouble::BrandDenied | Trouble::BrandDeniedFirst | Trouble::AllDenied => {
                (signed(403, "NO_AUTH"), false)
            }
        };
        if operation == Operation::Redeem && may_take_effect {
            self.send_off(state, state.now + self.settling());
        }
        let shows = trouble == Trouble::Unnamed && Self::shows_our_return(&state.card);
        self.hear(state, hand, operation, reply, shows, Some(trouble));
    }

    /// A use that nobody waits for any longer is on its way.
    fn send_off(&self, state: &mut State, by: Tick) {
        // A number that is kept takes effect once.
        if state.card.effects == 0 || self.ways.forgets_returned {
            state.under_way.push(by);
            state.under_way.sort_unstable();
        }
    }

    /// Publishes what the hand is about to publish. Whether the hand has more to do.
    fn publish(&self, state: &mut State, hand: &mut Hand) -> bool {
        match &hand.stage {
            Stage::Delay { delay } => {
                let delay = self.limits.delays.get(*delay).copied().unwrap_or_default();
                let due = state.now + Self::seconds(delay);
                state.delayed.push((due, self.retry(hand, due)));
            }
            Stage::HandBack => self.hand_back(state, hand),
            Stage::Conclude(outcome) => {
                let is_parked = matches!(outcome, Outcome::Unresolved { .. });
                self.publish_event(state, outcome);
                if is_parked {
                    hand.stage = Stage::Park;
                    return true;
                }
            }
            Stage::Park => {
                let retry = self.retry(hand, state.now);
                let parked = Message { tried: true, parked_at: Some(state.now), ..(*retry).clone() };
                state.parked.push(parked.into_part(&Self::at(state.now).to_string()));
            }
            Stage::Due { .. } | Stage::Held { .. } | Stage::Calling { .. } => return true,
        }
        false
    }

    fn hand_back(&self, state: &mut State, hand: &Hand) {
        let now = Self::at(state.now).to_string();
        let message = Message { saw_return: hand.saw_return, redelivered: false, ..(*hand.message).clone() };
        if message.dead.is_some() {
            state.dead.push(message.into_part(&now));
        } else if hand.progress.attempts == 0 {
            let tried = hand.message.redelivered || hand.message.tried;
            let first_seen = hand.progress.first_seen;
            let marked = || HandedBack { first_seen, may_have_been_sent: tried }.to_words().into();
            let handed_back = Some(message.handed_back.clone().unwrap_or_else(marked));
            state.queue.push(Message { handed_back, tried, ..message }.into_part(&now));
        } else {
            state.queue.push(self.retry(hand, state.now));
        }
    }

    /// A message that carries on what `hand` has come to. Nobody reads it before `due`.
    fn retry(&self, hand: &Hand, due: Tick) -> Part<Message> {
        let headers = Some(Arc::new(retry_message::write(&hand.progress, &[], &self.body_sha256)));
        let message = Message { headers, saw_return: hand.saw_return, ..Message::default() };
        message.into_part(&Self::at(due).to_string())
    }

    fn publish_event(&self, state: &mut State, outcome: &Outcome) {
        let kind = outcome.kind();
        let reason = outcome.reason().map_or("", |reason| reason.as_str());
        let key = [kind.as_str(), outcome.established_by().as_str(), reason];
        if self.outcomes.lock().unwrap().insert(key) {
            let telling = EventContext {
                source: "redeemer",
                at: Self::at(state.now),
                traceparent: None,
                attempts: 1,
                evidence: &[],
            };
            let id = result_event::encode(&self.redemption, outcome, telling).id.to_string();
            if *self.ids.lock().unwrap().entry(kind.as_str()).or_insert_with(|| id.clone()) != id {
                Self::violate(state, Violation::EventIdChanged);
            }
        }
        self.publish_kind(state, kind);
    }

    fn publish_kind(&self, state: &mut State, kind: OutcomeKind) {
        if kind == OutcomeKind::Refused && state.card.is_ours() {
            Self::except(state, Exception::RefusedWhileUsed);
        }
        let before = |kind| state.events.contains(&kind);
        let exception = match kind {
            OutcomeKind::Redeemed if before(OutcomeKind::Refused) => Some(Exception::RefusedThenRedeemed),
            OutcomeKind::Refused if before(OutcomeKind::Redeemed) => Some(Exception::RedeemedThenRefused),
            OutcomeKind::Unresolved if before(OutcomeKind::Redeemed) => {
                Some(Exception::RedeemedThenUnresolved)
            }
            OutcomeKind::Unresolved if before(OutcomeKind::Refused) => Some(Exception::RefusedThenUnresolved),
            _ => None,
        };
        // Said before, it is a repetition.
        if !before(kind) {
            if let Some(exception) = exception {
                Self::except(state, exception);
            }
            state.events.push(kind);
        }
    }

    /// The delivery goes back to the broker, anyone who held it.
    fn give_back(&self, state: &mut State, hand: &Hand, dead_letter: bool) {
        if let Stage::Park = hand.stage {
            state.causes.insert(Cause::EventUnacked);
        }
        // What only this stay had seen is forgotten with it, but for the model.
        let message = Message { redelivered: true, saw_return: hand.saw_return, ..(*hand.message).clone() };
        let now = Self::at(state.now).to_string();
        if message.dead.is_some() {
            state.dead.push(message.into_part(&now));
        } else if dead_letter {
            let dead = Some((Reason::DeliveryLimit, state.now));
            state.dead.push(Message { dead, ..message }.into_part(&now));
        } else {
            state.queue.push(message.into_part(&now));
        }
    }

    fn crash(&self, state: &mut State, hand: &Hand) {
        if let Stage::Calling { operation: Operation::Redeem, sent, answer: None } = hand.stage {
            self.send_off(state, sent + self.longest_call() + self.settling());
        }
    }

    /// What an operator does with a parked command that was looked at: `Parked` and `Decision` of the service, in short.
    fn replay(&self, state: &mut State, parked: &Part<Message>, acked: bool, is_second: bool) {
        state.causes.insert(Cause::Replayed);
        let parked_at = parked.parked_at.unwrap_or_default();
        let over_after = self.longest_call() + self.settling();
        let mut is_left = !acked;
        match classify(Operation::Query, &state.card.answer_query(self.ways), &self.redemption) {
            Verdict::NotExecuted => state.queue.push(self.replayed(state.now, parked)),
            Verdict::Redeemed => self.publish_kind(state, OutcomeKind::Redeemed),
            Verdict::Refused(_) if is_second => self.publish_kind(state, OutcomeKind::Refused),
            Verdict::Refused(_) if state.now >= parked_at + over_after => {
                state.look = Some(Look { at: state.now + self.settling(), parked: parked.clone() });
                is_left = false;
            }
            _ => is_left = true,
        }
        if is_left {
            state.parked.push(parked.clone());
        }
    }

    fn replayed(&self, now: Tick, parked: &Message) -> Part<Message> {
        let header = |name| {
            let headers = parked.headers.iter().flat_map(|headers| headers.iter());
            headers.clone().find(|(key, _)| *key == name).map(|(_, text)| text.as_str())
        };
        let mut progress = Progress::new(Self::at(now), Self::at(now + self.deadline), true);
        if header(retry_message::LAST_VERDICT).and_then(EffectState::from_header)
            == Some(EffectState::SeenUsed)
        {
            progress.effect = EffectState::SeenUsed;
        }
        let attempts = header(retry_message::ATTEMPTS).and_then(|text| text.parse().ok()).unwrap_or(0) + 1;
        (progress.attempts, progress.suspended) = (attempts, attempts);
        let headers = Some(Arc::new(retry_message::write(&progress, &[], &self.body_sha256)));
        // What the replayed message is made of is new; what its holders saw is not forgotten by the model.
        let message = Message { headers, saw_return: parked.saw_return, ..Message::default() };
        message.into_part(&Self::at(now).to_string())
    }

    fn change(&self, state: &mut State, change: Change) {
        state.left.changes -= 1;
        let card = Arc::make_mut(&mut state.card);
        match change {
            Change::Return => {
                let used = card.permits.iter_mut().find(|permit| permit.used.is_some()).unwrap();
                used.returned = Some(match used.used.take() {
                    Some(User::Ours) => Return::Ours,
                    _ => Return::Others,
                });
            }
            Change::UseByOther => {
                let free = card.permits.iter_mut().find(|permit| permit.used.is_none()).unwrap();
                free.used = Some(User::Other);
            }
            Change::Delete => card.gone = Some(Gone::Deleted),
            Change::Expire => card.gone = Some(Gone::Expired),
            Change::Activate => card.gone = None,
        }
    }

    /// What one instance does, to the hand itself.
    fn work_hand(&self, state: &mut State, nth: usize, action: Action) {
        let mut hand = (*state.hands[nth]).clone();
        let limits = self.limits_of(&hand);
        let now = Self::at(state.now);
        let mut is_done = false;
        let operation = match &hand.stage {
            Stage::Due { operation, .. }
            | Stage::Held { operation, .. }
            | Stage::Calling { operation, .. } => *operation,
            _ => Operation::Query,
        };
        match action {
            Action::Call(_) => self.call(state, &mut hand, operation, None),
            Action::CallUnclear(_) | Action::CallCommon(_) => {
                state.left.unclear -= 1;
                let is_unclear = matches!(action, Action::CallUnclear(_));
                let trouble =
                    if is_unclear { Trouble::AlreadyUsedUnclear } else { Trouble::AlreadyUsedCommon };
                self.call(state, &mut hand, operation, Some(trouble));
            }
            Action::CallInTrouble(_, trouble) => self.call_in_trouble(state, &mut hand, operation, trouble),
            Action::Send(_) => {
                state.left.faults -= 1;
                self.begin_call(state, &mut hand, operation);
                hand.stage = Stage::Calling { operation, sent: state.now, answer: None };
            }
            Action::Work(_) => {
                let worked = self.work(state, operation);
                if let Stage::Calling { answer, .. } = &mut hand.stage {
                    *answer = Some(worked);
                }
            }
            Action::Answer(_) => {
                if let Stage::Calling { answer: Some((reply, shows)), .. } = hand.stage.clone() {
                    self.hear(state, &mut hand, operation, reply, shows, None);
                }
            }
            Action::TimeOut(_) => {
                if let (Operation::Redeem, Stage::Calling { answer: None, .. }) = (operation, &hand.stage) {
                    self.send_off(state, state.now + self.settling());
                }
                self.hear(state, &mut hand, operation, provider::lost(), false, Some(Trouble::Lost));
            }
            Action::HoldBriefly(_) => {
                state.left.holds -= 1;
                hand.stage = Stage::Held { until: state.now + 1, operation, too_long: false };
            }
            Action::HoldLong(_) => {
                state.left.holds -= 1;
                let late = now >= hand.progress.deadline + limits.query_delay;
                let patience = if late { 0 } else { Self::seconds(limits.in_process_max) };
                hand.stage = Stage::Held { until: state.now + patience, operation, too_long: true };
            }
            Action::EndHold(_) | Action::Reconsider(_) => self.end_hold(state, &mut hand, operation, &limits),
            Action::GiveUp(_) => {
                state.left.holds -= 1;
                let step = hand.progress.expire(&limits, now).unwrap();
                self.follow(state, &mut hand, step);
            }
            Action::KeepOut(_) | Action::Crowd(_) | Action::StepAside(_) => {
                state.left.holds -= 1;
                let step = hand.progress.delay_unaged(&limits).unwrap();
                self.follow(state, &mut hand, step);
            }
            Action::Postpone(_) => {
                state.left.holds -= 1;
                let passed = hand.progress.delays_passed;
                let step = hand.progress.delay(&limits, now).unwrap();
                self.check_delay(state, &hand, passed, &step);
                self.follow(state, &mut hand, step);
            }
            Action::Publish(_) => is_done = !self.publish(state, &mut hand),
            Action::PublishUnconfirmed(_) => {
                state.left.unconfirmed -= 1;
                state.causes.insert(Cause::Unconfirmed);
                self.publish(state, &mut hand);
                hand.paused_until = state.now + PAUSE;
            }
            Action::PublishUnacked(_) | Action::PublishUnackedToDeadLetter(_) => {
                let is_event = matches!(hand.stage, Stage::Conclude(_) | Stage::Park);
                state.causes.insert(if is_event { Cause::EventUnacked } else { Cause::RetryUnacked });
                self.publish(state, &mut hand);
                let dead_letter = matches!(action, Action::PublishUnackedToDeadLetter(_));
                state.left.crashes -= 1;
                state.left.dead_letters -= u8::from(dead_letter);
                self.give_back(state, &hand, dead_letter);
                is_done = true;
            }
            Action::RejectEvent(_) | Action::HalfTakeEvent(_) => {
                state.left.rejections -= 1;
                let Stage::Conclude(outcome) = hand.stage.clone() else { return };
                if matches!(action, Action::HalfTakeEvent(_)) {
                    self.publish_event(state, &outcome);
                    state.causes.insert(Cause::EventHalfTaken);
                }
                if hand.progress.is_query_only() {
                    // Among dead letters it waits without a delay queue.
                    hand.stage = Stage::HandBack;
                } else {
                    hand.progress.forget_outcome(&outcome);
                    let delay = hand.progress.delay_rejected(&limits);
                    // Its outcome stands, so it may come back after its deadline.
                    if delay >= limits.delays.len() {
                        Self::violate(state, Violation::UnknownDelay);
                    }
                    hand.stage = Stage::Delay { delay };
                }
            }
            Action::CutOff(_) => {
                state.left.cut_offs -= 1;
                self.give_back(state, &hand, false);
                hand.cut_off = Some(state.now);
            }
            Action::Stop(_) => {
                state.left.hand_backs -= 1;
                hand.stage = Stage::HandBack;
            }
            _ => {}
        }
        if is_done {
            state.hands.remove(nth);
        } else {
            state.hands[nth] = hand.into_part(now);
        }
    }

    /// Calls are let through again, or it took too long, as `worker` goes on then.
    fn end_hold(&self, state: &mut State, hand: &mut Hand, operation: Operation, limits: &Limits) {
        let now = Self::at(state.now);
        let too_long = matches!(hand.stage, Stage::Held { too_long: true, .. });
        if too_long {
            let step = hand.progress.expire(limits, now);
            if step.is_none() && hand.progress.is_query_only() {
                hand.stage = Stage::HandBack;
                return;
            }
            let step = step.or_else(|| hand.progress.delay_held(limits, now));
            let step = step.unwrap_or_else(|| hand.progress.resume(limits, now));
            self.follow(state, hand, step);
        } else if operation == Operation::Redeem && hand.progress.is_overtaken(true, now) {
            let step = hand.progress.resume(limits, now);
            self.follow(state, hand, step);
        } else {
            self.call(state, hand, operation, None);
        }
    }
}

// ---- what the attempt machine is seen to do

pub(crate) const EFFECTS: [&str; 6] =
    ["no_effect", "unknown", "used", "rejected_unclear", "rejected", "rejected_unverified"];

fn effect_number(progress: &Progress) -> usize {
    match progress.effect {
        EffectState::NoEffect => 0,
        EffectState::Unknown => 1,
        EffectState::SeenUsed => 2,
        EffectState::RejectedUnclear { .. } => 3,
        EffectState::Rejected { may_be_ours: false, .. } => 4,
        EffectState::Rejected { may_be_ours: true, .. } => 5,
    }
}

/// The verdicts that the attempt machine distinguishes.
pub(crate) const VERDICTS: [&str; 15] = [
    "redeemed",
    "used by another or returned",
    "no such coupon",
    "not usable",
    "rejected",
    "not executed",
    "not accepted",
    "not authorized so far",
    "not authorized",
    "not sent",
    "used under no number",
    "may be common",
    "unknown",
    "suspended",
    "rejected like others",
];

fn verdict_number(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Redeemed => 0,
        Verdict::Refused(Reason::UsedByAnother | Reason::ReturnedSince) => 1,
        Verdict::Refused(Reason::NoSuchCoupon) => 2,
        Verdict::Refused(_) => 3,
        Verdict::Rejected { .. } => 4,
        Verdict::NotExecuted => 5,
        Verdict::NotAccepted(NotAccepted::TooFrequent | NotAccepted::Locked) => 6,
        Verdict::NotAccepted(NotAccepted::NotAuthorized) => 7,
        Verdict::NotAuthorized => 8,
        Verdict::NotSent => 9,
        Verdict::Unknown(UnknownCause::NoNumber) => 10,
        Verdict::Unknown(UnknownCause::MayBeCommon(_)) => 11,
        Verdict::Unknown(_) => 12,
        Verdict::Suspended(_) => 13,
        Verdict::RejectedAlike(_) => 14,
    }
}

const STEPS: [&str; 8] =
    ["redeem", "query", "delay", "suspend", "redeemed", "refused", "unresolved", "invalid"];

fn step_number(step: &Step) -> usize {
    match step {
        Step::Send { operation: Operation::Redeem, .. } => 0,
        Step::Send { operation: Operation::Query, .. } => 1,
        Step::Delay { .. } => 2,
        Step::Suspend(_) => 3,
        Step::Finish(Outcome::Redeemed { .. }) => 4,
        Step::Finish(Outcome::Refused { .. }) => 5,
        Step::Finish(Outcome::Unresolved { .. }) => 6,
        Step::Finish(_) => 7,
    }
}

/// Everything that can be distinguished, in the order of its numbers.
fn coverage() -> impl Iterator<Item = [&'static str; 4]> {
    [Operation::Redeem, Operation::Query].into_iter().flat_map(|operation| {
        EFFECTS.into_iter().flat_map(move |effect| {
            VERDICTS.into_iter().flat_map(move |verdict| {
                STEPS.into_iter().map(move |step| [operation.as_str(), effect, verdict, step])
            })
        })
    })
}

impl World {
    fn cover(&self, operation: Operation, effect: usize, verdict: usize, step: usize) {
        let operation = usize::from(operation == Operation::Query);
        let number = ((operation * EFFECTS.len() + effect) * VERDICTS.len() + verdict) * STEPS.len() + step;
        self.covered[number].store(true, Ordering::Relaxed);
    }

    /// What the attempt machine was seen to do.
    pub(crate) fn covered(&self) -> Vec<[&'static str; 4]> {
        let seen = |(_, seen): &(_, &AtomicBool)| seen.load(Ordering::Relaxed);
        coverage().zip(&self.covered).filter(seen).map(|(key, _)| key).collect()
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn first_states(&self) -> Vec<State> {
        let state = |card: &Card| State {
            now: 0,
            card: Arc::new(card.clone()),
            under_way: vec![],
            queue: vec![Self::fresh()],
            delayed: vec![],
            dead: vec![],
            parked: vec![],
            look: None,
            hands: vec![],
            events: vec![],
            left: self.budget,
            causes: Causes::default(),
            exceptions: BTreeSet::new(),
            violations: BTreeSet::new(),
        };
        self.cards.iter().map(state).collect()
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        if state.now >= END {
            return actions;
        }
        let can_take_effect = state.card.would_take_effect(self.ways);
        for (nth, by) in state.under_way.iter().enumerate() {
            // Of two with the same bound either is as good. One that never takes effect is forgotten at its end: until then
            // nothing depends on it.
            if nth == 0 || state.under_way[nth - 1] != *by {
                actions.extend(can_take_effect.then_some(Action::TakeEffect(nth)));
                actions.extend((*by <= state.now).then_some(Action::Vanish(nth)));
            }
        }
        // What takes effect does so before anyone who waited for it looks.
        if state.under_way.iter().any(|by| *by <= state.now) {
            return actions;
        }
        if let Some(first) = self.hidden_actions(state) {
            return first;
        }
        let free = actions.len();
        if self.free_instances(state) > 0 {
            actions.extend(distinct(&state.queue).map(Action::Deliver));
            actions.extend(distinct(&state.dead).map(Action::DeliverDead));
        }
        for nth in 0..state.hands.len() {
            self.act_on_hand(state, nth, &mut actions);
        }
        if let Some(look) = &state.look
            && look.at <= state.now
        {
            actions.extend([Action::LookAgain, Action::LookAgainUnacked]);
        }
        let urgent = actions[free..].iter().any(|action| {
            !matches!(
                action,
                Action::Crash(_)
                    | Action::CrashToDeadLetter(_)
                    | Action::CutOff(_)
                    | Action::Stop(_)
                    | Action::Work(_)
                    | Action::Answer(_)
                    | Action::GiveUp(_)
            )
        });
        if !urgent && state.is_at_work() {
            actions.push(Action::Tick);
        }
        actions.extend((state.left.publications > 0).then_some(Action::PublishAgain));
        if state.left.replays > 0 && state.look.is_none() {
            for nth in distinct(&state.parked) {
                actions.extend([Action::Replay(nth), Action::ReplayUnacked(nth)]);
            }
        }
        self.change_coupon(state, &mut actions);
        actions
    }

    fn next(&self, state: &State, action: Action) -> State {
        let mut next = state.clone();
        next.exceptions.clear();
        match action {
            Action::Tick => {
                next.now += 1;
                if next.now >= END {
                    Self::violate(&mut next, Violation::NoEvent);
                }
            }
            Action::TakeEffect(nth) => {
                next.under_way.remove(nth);
                self.take_effect(&mut next);
            }
            Action::Vanish(nth) => drop(next.under_way.remove(nth)),
            Action::Deliver(nth) => {
                let message = next.queue.remove(nth);
                self.deliver(&mut next, &message);
            }
            Action::DeliverDead(nth) => {
                let message = next.dead.remove(nth);
                self.deliver(&mut next, &message);
            }
            Action::EndDelay(nth) => {
                let (_, message) = next.delayed.remove(nth);
                next.queue.push(message);
            }
            Action::EndDelayTwice(nth) => {
                let (_, message) = next.delayed.remove(nth);
                next.queue.extend([message.clone(), message]);
                next.left.duplicates -= 1;
                next.causes.insert(Cause::RetryTwice);
            }
            Action::Notice(nth) => drop(next.hands.remove(nth)),
            Action::Crash(nth) | Action::CrashToDeadLetter(nth) => {
                let hand = next.hands.remove(nth);
                let dead_letter = matches!(action, Action::CrashToDeadLetter(_));
                next.left.crashes -= 1;
                next.left.dead_letters -= u8::from(dead_letter);
                self.crash(&mut next, &hand);
                self.give_back(&mut next, &hand, dead_letter);
            }
            Action::Change(change) => self.change(&mut next, change),
            Action::PublishAgain => {
                next.left.publications -= 1;
                next.causes.insert(Cause::PublishedTwice);
                next.queue.push(Self::fresh());
            }
            Action::Replay(nth) | Action::ReplayUnacked(nth) => {
                next.left.replays -= 1;
                let parked = next.parked.remove(nth);
                self.replay(&mut next, &parked, matches!(action, Action::Replay(_)), false);
            }
            Action::LookAgain | Action::LookAgainUnacked => {
                if let Some(look) = next.look.take() {
                    self.replay(&mut next, &look.parked, action == Action::LookAgain, true);
                }
            }
            Action::Call(nth)
            | Action::CallInTrouble(nth, _)
            | Action::CallUnclear(nth)
            | Action::CallCommon(nth)
            | Action::Send(nth)
            | Action::Work(nth)
            | Action::Answer(nth)
            | Action::TimeOut(nth)
            | Action::HoldBriefly(nth)
            | Action::HoldLong(nth)
            | Action::EndHold(nth)
            | Action::Reconsider(nth)
            | Action::KeepOut(nth)
            | Action::Postpone(nth)
            | Action::Crowd(nth)
            | Action::StepAside(nth)
            | Action::GiveUp(nth)
            | Action::Publish(nth)
            | Action::PublishUnconfirmed(nth)
            | Action::PublishUnacked(nth)
            | Action::PublishUnackedToDeadLetter(nth)
            | Action::RejectEvent(nth)
            | Action::HalfTakeEvent(nth)
            | Action::CutOff(nth)
            | Action::Stop(nth) => self.work_hand(&mut next, nth, action),
        }
        if !next.is_at_work() {
            let published = |kind| next.events.contains(&kind);
            let refused = published(OutcomeKind::Refused) && !published(OutcomeKind::Redeemed);
            if next.events.is_empty() {
                Self::violate(&mut next, Violation::NoEvent);
            } else if refused && next.card.is_ours() {
                Self::except(&mut next, Exception::RefusedInTheEnd);
            }
        }
        next
    }

    fn fingerprint(&self, state: &State) -> u64 {
        state.fingerprint()
    }

    fn excuses(&self, state: &State) -> impl Iterator<Item = u8> {
        state.violations.is_empty().then(|| state.causes.selections()).into_iter().flatten()
    }
}

/// The places of messages, of which each is another one.
fn distinct(messages: &[Part<Message>]) -> impl Iterator<Item = usize> {
    let is_new =
        |nth: &usize| messages[..*nth].iter().all(|it| it.fingerprint() != messages[*nth].fingerprint());
    (0..messages.len()).filter(is_new)
}
