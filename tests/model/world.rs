//! What can happen in a small world, and what follows. The service's own part is the service's own code.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use redeemer::domain::evidence::Operation;
use redeemer::domain::outcome::{Outcome, OutcomeKind};
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::attempt::{Limits, Progress, Step};
use redeemer::policy::backoff::Backoff;
use redeemer::policy::classify::{Authenticity, CallResult, NotAccepted, SuspendReason, Verdict};
use redeemer::wechat::client::Prepared;
use redeemer::wire::command;
use redeemer::wire::handed_back::HandedBack;
use redeemer::wire::result_event::{self, EventContext};
use redeemer::wire::retry_message::{self, DeadlineLimits};

use crate::provider::{self, Card, Gone, Return, User, Ways};
use crate::search::Model;
use crate::state::{Budget, Cause, Exception, Hand, Message, Published, Stage, State, Tick, Violation};

const COMMAND: &str = r#"{"openid": "oUser", "coupon_code": "C0001", "brand_id": "120344",
    "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx1",
    "use_time": "2026-03-05T12:30:45+08:00", "out_request_no": "USE_0001",
    "associated_order_info": {"transaction_id": "4200000000123456789123456789"}}"#;

/// Long after every wait that the bounds allow.
const END: Tick = 60;

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
    ids: RefCell<BTreeMap<&'static str, String>>,
    /// What the attempt machine was seen to do: operation, effect before, verdict, step.
    pub covered: RefCell<BTreeSet<[&'static str; 4]>>,
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
    /// Signed: the number was used before, or something else is wrong with the request.
    AlreadyUsed,
    /// Signed: used, but not under which number.
    Unnamed,
    /// Signed NO_AUTH, while other brands are let in.
    BrandDenied,
    /// Signed NO_AUTH, and nothing is known of other brands.
    BrandDeniedFirst,
    /// Signed NO_AUTH for every brand.
    AllDenied,
}

const USE_TROUBLES: [Trouble; 11] = [
    Trouble::Lost,
    Trouble::NotSent,
    Trouble::NotAccepted,
    Trouble::UnsignedRejection,
    Trouble::Forged,
    Trouble::Unauthenticated,
    Trouble::UnsignedUnauthenticated,
    Trouble::AlreadyUsed,
    Trouble::BrandDenied,
    Trouble::BrandDeniedFirst,
    Trouble::AllDenied,
];

const QUERY_TROUBLES: [Trouble; 7] = [
    Trouble::Lost,
    Trouble::NotSent,
    Trouble::NotAccepted,
    Trouble::Forged,
    Trouble::Unauthenticated,
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
    /// Too many commands of this coupon are held.
    Crowd(usize),
    Publish(usize),
    Acknowledge(usize),
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
    Replay,
    ReplayUnacked,
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
            ids: RefCell::default(),
            covered: RefCell::default(),
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

    fn limits_of(&self, hand: &Hand) -> Limits {
        match hand.attempts_max {
            None => self.limits.clone(),
            Some(attempts_max) => Limits { delays: vec![], attempts_max, ..self.limits.clone() },
        }
    }

    fn fresh(&self) -> Arc<Message> {
        Arc::new(Message::default())
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
            Stage::Due { .. } => {}
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
            Stage::Conclude(_) | Stage::Delay { .. } | Stage::Park | Stage::HandBack | Stage::Ack(_)
                if hand.cut_off.is_some() => {}
            Stage::Conclude(_) => {
                actions.push(Action::Publish(nth));
                if left.rejections > 0 && !self.limits.delays.is_empty() && hand.attempts_max.is_none() {
                    actions.extend([Action::RejectEvent(nth), Action::HalfTakeEvent(nth)]);
                }
            }
            Stage::Delay { .. } | Stage::Park | Stage::HandBack => actions.push(Action::Publish(nth)),
            Stage::Ack(_) => actions.push(Action::Acknowledge(nth)),
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

    fn act_on_due(&self, state: &State, nth: usize, operation: Operation, actions: &mut Vec<Action>) {
        let (hand, left) = (&state.hands[nth], state.left);
        if operation == Operation::Redeem && hand.progress.is_overtaken(false, Self::at(state.now)) {
            return actions.push(Action::Reconsider(nth));
        }
        actions.push(Action::Call(nth));
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
            if delays && hand.progress.attempts == 0 && hand.message.headers.is_none() {
                actions.push(Action::Crowd(nth));
            }
            let clear = hand.progress.effect == redeemer::policy::attempt::EffectState::NoEffect;
            let for_a_use =
                operation == Operation::Redeem || clear && Self::at(state.now) < hand.progress.deadline;
            if delays && for_a_use {
                actions.push(Action::KeepOut(nth));
            }
        }
    }

    fn change_coupon(&self, state: &State, actions: &mut Vec<Action>) {
        let more = state.left.publications > 0 || state.left.replays > 0 && !state.parked.is_empty();
        if state.left.changes == 0 || !(state.is_at_work() || more) {
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
                    Change::UseByOther | Change::Delete | Change::Expire => free && !card.rejected,
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
        let before = state.card.effects;
        state.card.take_effect(self.ways);
        if state.card.effects == before {
            return;
        }
        if state.card.effects > 1 {
            Self::except(state, Exception::TwoEffects);
        }
        if state.events.contains(&OutcomeKind::Refused) {
            Self::except(state, Exception::EffectAfterRefused);
        }
    }

    /// Reads a delivery as `worker` does.
    fn deliver(&self, state: &mut State, message: &Message) {
        let now = Self::at(state.now);
        let redemption = command::decode(COMMAND.as_bytes()).unwrap();
        if Prepared::new(&redemption).body_sha256() != self.body_sha256 {
            Self::violate(state, Violation::BodyChanged);
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
        };
        let limits = self.limits_of(&hand);
        let step = hand.progress.start(&limits, now);
        self.follow(state, &mut hand, step);
        state.hands.push(Arc::new(hand));
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
            Step::Suspend(SuspendReason::Unauthorized)
                if let Some(step) = hand.progress.delay_unaged(&limits) =>
            {
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
                (hand.message.saw_return, Violation::UsedAfterReturnSeen),
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
        hand.message.saw_return |= verified && shows_our_return;
        let mut verdict = hand.progress.advance(operation, &reply, &self.redemption);
        if operation == Operation::Redeem && verdict == Verdict::NotAuthorized {
            match trouble {
                Some(Trouble::BrandDeniedFirst) => verdict = Verdict::NotAccepted(NotAccepted::NotAuthorized),
                Some(Trouble::AllDenied) => verdict = Verdict::Suspended(SuspendReason::Unauthorized),
                _ => {}
            }
        }
        let limits = self.limits_of(hand);
        let (believed, word, delays) =
            (effect(&hand.progress), verdict.as_str(), hand.progress.delays_passed);
        hand.troubled = matches!(verdict, Verdict::NotAccepted(_) | Verdict::NotSent | Verdict::Unknown(_));
        let step = hand.progress.follow_verdict(operation, reply, verdict, &limits, Self::at(state.now), 0.5);
        self.covered.borrow_mut().insert([operation.as_str(), believed, word, step_word(&step)]);
        self.check_delay(state, hand, delays, &step);
        // A last query and its repetition, for each stay.
        let stays = 1 + u32::from(self.budget.interruptions() - state.left.interruptions());
        if hand.progress.attempts - hand.progress.suspended > limits.attempts_max + 2 * stays {
            Self::violate(state, Violation::TooManyAttempts);
        }
        self.follow(state, hand, step);
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
    fn call(&self, state: &mut State, hand: &mut Hand, operation: Operation) {
        self.begin_call(state, hand, operation);
        let (reply, shows) = self.work(state, operation);
        self.hear(state, hand, operation, reply, shows, None);
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
            Trouble::AlreadyUsed => (signed(400, "PARAM_ERROR"), true),
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
        state.under_way.push(by);
        state.under_way.sort_unstable();
    }

    fn publish(&self, state: &mut State, hand: &mut Hand) {
        hand.stage = match &hand.stage {
            Stage::Delay { delay } => {
                let delay = self.limits.delays.get(*delay).copied().unwrap_or_default();
                let headers = retry_message::write(&hand.progress, &[], &self.body_sha256);
                state.delayed.push((state.now + Self::seconds(delay), retry(hand, headers)));
                Stage::Ack(Published::Message)
            }
            Stage::HandBack => {
                let fresh = hand.progress.attempts == 0;
                if hand.message.dead.is_some() {
                    state.dead.push(Arc::new(Message { redelivered: false, ..hand.message.clone() }));
                } else if fresh {
                    let tried = hand.message.redelivered || hand.message.tried;
                    let first_seen = hand.progress.first_seen;
                    let marked = || HandedBack { first_seen, may_have_been_sent: tried }.to_words().into();
                    let handed_back = Some(hand.message.handed_back.clone().unwrap_or_else(marked));
                    let message = Message { handed_back, tried, redelivered: false, ..hand.message.clone() };
                    state.queue.push(Arc::new(message));
                } else {
                    let headers = retry_message::write(&hand.progress, &[], &self.body_sha256);
                    state.queue.push(retry(hand, headers));
                }
                Stage::Ack(Published::Message)
            }
            Stage::Conclude(outcome) => {
                self.publish_event(state, outcome);
                match outcome {
                    Outcome::Unresolved { .. } => Stage::Park,
                    _ => Stage::Ack(Published::Event),
                }
            }
            Stage::Park => {
                let headers = retry_message::write(&hand.progress, &[], &self.body_sha256);
                let mut parked = (*retry(hand, headers)).clone();
                parked.tried = true;
                state.parked.push(Arc::new(parked));
                Stage::Ack(Published::Event)
            }
            other => other.clone(),
        };
    }

    fn publish_event(&self, state: &mut State, outcome: &Outcome) {
        let kind = outcome.kind();
        let telling = EventContext {
            source: "redeemer",
            at: Self::at(state.now),
            traceparent: None,
            attempts: 1,
            evidence: &[],
        };
        let id = result_event::encode(&self.redemption, outcome, telling).id.to_string();
        if *self.ids.borrow_mut().entry(kind.as_str()).or_insert_with(|| id.clone()) != id {
            Self::violate(state, Violation::EventIdChanged);
        }
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
        match &hand.stage {
            Stage::Ack(Published::Event) | Stage::Park => drop(state.causes.insert(Cause::EventUnacked)),
            Stage::Ack(Published::Message) => drop(state.causes.insert(Cause::RetryUnacked)),
            _ => {}
        }
        // What only this stay had seen is forgotten with it.
        let message = Message { redelivered: true, ..hand.message.clone() };
        if message.dead.is_some() {
            state.dead.push(Arc::new(message));
        } else if dead_letter {
            let dead = Some((Reason::DeliveryLimit, state.now));
            state.dead.push(Arc::new(Message { dead, ..message }));
        } else {
            state.queue.push(Arc::new(message));
        }
    }

    fn crash(&self, state: &mut State, hand: &Hand) {
        if let Stage::Calling { operation: Operation::Redeem, sent, answer: None } = hand.stage {
            self.send_off(state, sent + self.longest_call() + self.settling());
        }
    }

    fn replay(&self, state: &mut State, acked: bool) {
        state.left.replays -= 1;
        let parked = state.parked[0].clone();
        if acked {
            state.parked.remove(0);
        }
        state.causes.insert(Cause::Replayed);
        let now = Self::at(state.now);
        let progress = Progress::new(now, Self::at(state.now + self.deadline), true);
        match progress.advance(Operation::Query, &state.card.answer_query(self.ways), &self.redemption) {
            Verdict::NotExecuted => {
                let headers = Arc::new(retry_message::write(&progress, &[], &self.body_sha256));
                // What the replayed message is made of is new; what its holders saw is not forgotten by the model.
                let message =
                    Message { headers: Some(headers), saw_return: parked.saw_return, ..Message::default() };
                state.queue.push(Arc::new(message));
            }
            Verdict::Redeemed if !state.events.contains(&OutcomeKind::Redeemed) => {
                state.events.push(OutcomeKind::Redeemed);
            }
            // Left where it is, or discarded: nothing follows.
            _ => {}
        }
    }

    fn change(&self, state: &mut State, change: Change) {
        state.left.changes -= 1;
        let card = &mut state.card;
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
        let operation = match &hand.stage {
            Stage::Due { operation, .. }
            | Stage::Held { operation, .. }
            | Stage::Calling { operation, .. } => *operation,
            _ => Operation::Query,
        };
        match action {
            Action::Call(_) => self.call(state, &mut hand, operation),
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
            Action::KeepOut(_) | Action::Crowd(_) => {
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
            Action::Publish(_) => self.publish(state, &mut hand),
            Action::RejectEvent(_) | Action::HalfTakeEvent(_) => {
                state.left.rejections -= 1;
                let Stage::Conclude(outcome) = hand.stage.clone() else { return };
                if matches!(action, Action::HalfTakeEvent(_)) {
                    self.publish_event(state, &outcome);
                    state.causes.insert(Cause::EventHalfTaken);
                }
                hand.progress.forget_outcome(&outcome);
                self.follow(state, &mut hand, Step::Delay { queue: 0 });
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
        state.hands[nth] = Arc::new(hand);
        // If nobody can die between two of them, publishing and acknowledging are one.
        if self.is_calm(state)
            && matches!(action, Action::Publish(_))
            && let Stage::Ack(_) = state.hands[nth].stage
        {
            state.hands.remove(nth);
        }
    }

    fn is_calm(&self, state: &State) -> bool {
        state.left.crashes == 0
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
            self.call(state, hand, operation);
        }
    }
}

/// A message that carries on what `hand` has come to.
fn retry(hand: &Hand, headers: Vec<(&'static str, String)>) -> Arc<Message> {
    let saw_return = hand.message.saw_return;
    Arc::new(Message { headers: Some(Arc::new(headers)), saw_return, ..Message::default() })
}

fn effect(progress: &Progress) -> &'static str {
    use redeemer::policy::attempt::EffectState;
    match progress.effect {
        EffectState::NoEffect => "no_effect",
        EffectState::Unknown => "unknown",
        EffectState::SeenUsed => "used",
        EffectState::RejectedUnclear { .. } => "rejected_unclear",
        EffectState::Rejected { may_be_ours: false, .. } => "rejected",
        EffectState::Rejected { may_be_ours: true, .. } => "rejected_unverified",
    }
}

fn step_word(step: &Step) -> &'static str {
    match step {
        Step::Send { operation: Operation::Redeem, .. } => "redeem",
        Step::Send { operation: Operation::Query, .. } => "query",
        Step::Delay { .. } => "delay",
        Step::Suspend(_) => "halt",
        Step::Finish(outcome) => outcome.kind().as_str(),
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn first_states(&self) -> Vec<State> {
        let state = |card: &Card| State {
            now: 0,
            card: card.clone(),
            under_way: vec![],
            queue: vec![self.fresh()],
            delayed: vec![],
            dead: vec![],
            parked: vec![],
            hands: vec![],
            events: vec![],
            left: self.budget,
            causes: BTreeSet::new(),
            exceptions: BTreeSet::new(),
            violations: BTreeSet::new(),
        };
        self.cards.iter().map(state).collect()
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        if state.now >= END || !state.violations.is_empty() {
            return actions;
        }
        for (nth, by) in state.under_way.iter().enumerate() {
            // Of two with the same bound either is as good.
            if nth == 0 || state.under_way[nth - 1] != *by {
                actions.extend([Action::TakeEffect(nth), Action::Vanish(nth)]);
            }
        }
        // What takes effect does so before anyone who waited for it looks.
        if state.under_way.iter().any(|by| *by <= state.now) {
            return actions;
        }
        let free = actions.len();
        let connected = state.hands.iter().filter(|hand| hand.cut_off.is_none()).count();
        if connected < self.instances {
            for (nth, message) in state.queue.iter().enumerate() {
                if nth == 0 || state.queue[nth - 1] != *message {
                    actions.push(Action::Deliver(nth));
                }
            }
            actions.extend((!state.dead.is_empty()).then_some(Action::DeliverDead(0)));
        }
        for nth in 0..state.hands.len() {
            self.act_on_hand(state, nth, &mut actions);
        }
        for (nth, (due, _)) in state.delayed.iter().enumerate() {
            if *due <= state.now {
                actions.push(Action::EndDelay(nth));
                actions.extend((state.left.duplicates > 0).then_some(Action::EndDelayTwice(nth)));
            }
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
            )
        });
        if !urgent && state.is_at_work() {
            actions.push(Action::Tick);
        }
        self.change_coupon(state, &mut actions);
        actions.extend((state.left.publications > 0).then_some(Action::PublishAgain));
        if state.left.replays > 0 && !state.parked.is_empty() {
            actions.extend([Action::Replay, Action::ReplayUnacked]);
        }
        actions
    }

    fn next(&self, state: &State, action: Action) -> State {
        let mut next = state.clone();
        match action {
            Action::Tick => {
                next.now += 1;
                if next.now >= END {
                    Self::violate(&mut next, Violation::NoEnd);
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
            Action::Acknowledge(nth) | Action::Notice(nth) => drop(next.hands.remove(nth)),
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
                next.queue.push(self.fresh());
            }
            Action::Replay => self.replay(&mut next, true),
            Action::ReplayUnacked => self.replay(&mut next, false),
            Action::Call(nth)
            | Action::CallInTrouble(nth, _)
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
            | Action::Publish(nth)
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
}
