//! Holds calls back when every call would fail: a failing provider, or a fault of our own.
//!
//! The policy is a plain state machine over time; [`Breaker`] wraps it for tasks that wait. It begins half-open: the
//! first call of a process goes alone, so that a wrong key or clock costs one call, not one per slot.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::verdict::{Doubt, Fault, Question, Verdict};

/// In what way the provider is failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No answer comes back.
    Silent,
    /// It answers that it is in trouble itself.
    ServerError,
    /// Its answers carry no signature that we can verify: a key of ours may be the wrong one.
    NotBelieved,
}

/// What a call said about the provider and about us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The provider answered, and can be held to it.
    Well,
    /// It answered an inquiry so. Rights are granted interface by interface: this says nothing about the right to
    /// redeem.
    Seen,
    /// It does not answer, or is in trouble, or cannot be believed.
    Failing(Trouble),
    /// Says nothing either way.
    Neutral,
    /// Every call will fail until we are mended.
    Fault(Fault),
}

impl Sign {
    /// Reads the sign of a verdict on a question.
    pub fn of(question: Question, verdict: &Verdict) -> Self {
        match verdict {
            Verdict::NotSent | Verdict::Unsure(Doubt::Lost) => Self::Failing(Trouble::Silent),
            Verdict::Unsure(Doubt::ServerError) => Self::Failing(Trouble::ServerError),
            Verdict::Unsure(Doubt::NotBelieved) => Self::Failing(Trouble::NotBelieved),
            Verdict::Unsure(
                Doubt::Accepted
                | Doubt::TooFrequent
                | Doubt::Contradicted
                | Doubt::Unnamed
                | Doubt::AnotherCoupon
                | Doubt::Unexpected,
            )
            | Verdict::NotAccepted(_) => Self::Neutral,
            Verdict::Stop(fault) => Self::Fault(*fault),
            Verdict::Redeemed
            | Verdict::Refused(_)
            | Verdict::Objected { .. }
            | Verdict::NotExecuted
            | Verdict::NotAuthorised => match question {
                Question::Redeem => Self::Well,
                Question::Inquire => Self::Seen,
            },
        }
    }
}

/// Why calls are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing is known yet.
    Starting,
    /// The provider is failing; the call that opened it says how.
    Failing(Trouble),
    /// A fault of our own.
    Fault(Fault),
}

/// Whether calls may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls go freely.
    Closed,
    /// One call goes alone; what it brings decides.
    HalfOpen {
        /// Why the others wait.
        cause: Cause,
        /// Whether that one call is under way.
        probing: bool,
    },
    /// No calls before this time.
    Open {
        /// Why.
        cause: Cause,
        /// When one may be tried.
        until: Timestamp,
    },
}

/// Results that are weighed together.
const WEIGHED: usize = 20;
/// Fewer results than this prove nothing.
const WEIGHED_MIN: usize = 10;
/// Only results this recent are weighed.
const RECENT: SignedDuration = SignedDuration::from_secs(30);
/// The share of failing results that opens the breaker, in percent.
const FAILING_PERCENT: usize = 60;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a call came to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With all others.
    Free,
    /// Alone, to find out.
    Probe,
}

/// How a call came to be allowed, and in which epoch.
type Grant = (Kind, u64);

/// The state machine.
#[derive(Debug)]
struct Policy {
    state: State,
    /// Counted at every opening and every suspicion. What a call brings that was let go before says how things were.
    epoch: u64,
    results: VecDeque<(Timestamp, bool)>,
    pause: Duration,
}

impl Policy {
    fn new() -> Self {
        let state = State::HalfOpen { cause: Cause::Starting, probing: false };
        Self { state, epoch: 0, results: VecDeque::new(), pause: FIRST_PAUSE }
    }

    /// Whether a call may be made now, and whether it is the one that goes alone.
    fn try_pass(&mut self, now: Timestamp) -> Option<Kind> {
        self.ripen(now);
        match &mut self.state {
            State::Closed => Some(Kind::Free),
            State::HalfOpen { probing, .. } => (!std::mem::replace(probing, true)).then_some(Kind::Probe),
            State::Open { .. } => None,
        }
    }

    /// A pause that has passed makes it half-open. One that lies further ahead than any pause is long was begun by a
    /// clock that has been set back since.
    fn ripen(&mut self, now: Timestamp) {
        if let State::Open { cause, until } = self.state
            && (until <= now
                || until.duration_since(now) > SignedDuration::from_secs(LONGEST_PAUSE.as_secs() as i64))
        {
            self.state = State::HalfOpen { cause, probing: false };
        }
    }

    /// What a call brought that was let go in `epoch`. A latecomer's success was had with a key that may have been
    /// exchanged since, and its failure is of an outage that may be over; only that we are at fault is worse than what
    /// an open breaker knows.
    fn hear(&mut self, (kind, epoch): Grant, sign: Sign, now: Timestamp) {
        if epoch == self.epoch {
            self.note(kind, sign, now);
        } else if let (State::Open { .. }, Sign::Fault(fault)) = (self.state, sign) {
            self.open(Cause::Fault(fault), now);
        }
    }

    fn note(&mut self, kind: Kind, sign: Sign, now: Timestamp) {
        // Only a redemption shows that redeeming is allowed again. Whoever inquired goes on to its redemption next, and
        // that goes alone, too.
        let shut = Cause::Fault(Fault::Unauthorised);
        let sign = match (self.state, sign) {
            (State::HalfOpen { cause, .. }, Sign::Seen) if cause == shut => Sign::Neutral,
            (_, Sign::Seen) => Sign::Well,
            (_, sign) => sign,
        };
        match (self.state, sign) {
            // Only the call that goes alone decides.
            (State::HalfOpen { .. }, _) if kind == Kind::Free => {}
            (_, Sign::Fault(fault)) => self.open(Cause::Fault(fault), now),
            // An answer that says nothing of us still says that the provider answers.
            (State::HalfOpen { cause: Cause::Starting | Cause::Failing(_), .. }, Sign::Neutral)
            | (State::HalfOpen { .. }, Sign::Well) => {
                self.state = State::Closed;
                self.results.clear();
                self.pause = FIRST_PAUSE;
            }
            // A fault of our own is only disproved by an answer that says so.
            (State::HalfOpen { cause: cause @ Cause::Fault(_), .. }, Sign::Failing(_)) => {
                self.open(cause, now)
            }
            (State::HalfOpen { .. }, Sign::Failing(trouble)) => self.open(Cause::Failing(trouble), now),
            (State::HalfOpen { cause, .. }, Sign::Neutral) => {
                self.state = State::HalfOpen { cause, probing: false };
            }
            (State::Closed, Sign::Well | Sign::Failing(_)) => {
                self.results.push_back((now, sign == Sign::Well));
                while self.results.len() > WEIGHED
                    || self.results.front().is_some_and(|(at, _)| now.duration_since(*at) > RECENT)
                {
                    self.results.pop_front();
                }
                let failing = self.results.iter().filter(|(_, well)| !well).count();
                if let Sign::Failing(trouble) = sign
                    && self.results.len() >= WEIGHED_MIN
                    && failing * 100 >= self.results.len() * FAILING_PERCENT
                {
                    self.open(Cause::Failing(trouble), now);
                }
            }
            // Latecomers from before it opened say nothing new. A sight has become one of the other signs above.
            (State::Open { .. }, _) | (_, Sign::Seen) | (State::Closed, Sign::Neutral) => {}
        }
    }

    fn open(&mut self, cause: Cause, now: Timestamp) {
        // Calls that were under way when it opened must not lengthen the pause one by one.
        if let State::Open { cause: before, .. } = self.state
            && !(matches!(before, Cause::Failing(_)) && matches!(cause, Cause::Fault(_)))
        {
            return;
        }
        let until = now.saturating_add(self.pause).unwrap_or(Timestamp::MAX);
        self.epoch += 1;
        self.state = State::Open { cause, until };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// A call ended without a result.
    fn abandon(&mut self, (kind, epoch): Grant) {
        if let State::HalfOpen { probing, .. } = &mut self.state
            && kind == Kind::Probe
            && epoch == self.epoch
        {
            *probing = false;
        }
    }

    /// Whether a call that was let go, and has not been made yet, may still be made.
    fn holds(&self, (kind, epoch): Grant) -> bool {
        epoch == self.epoch && (kind == Kind::Probe || self.state == State::Closed)
    }

    /// Something changed for the better or the worse (a key was exchanged): try with one call now. One that goes alone
    /// already went with the old key.
    fn suspect(&mut self) {
        let cause = match self.state {
            State::Closed => Cause::Starting,
            State::HalfOpen { cause, .. } | State::Open { cause, .. } => cause,
        };
        self.epoch += 1;
        self.pause = FIRST_PAUSE;
        self.state = State::HalfOpen { cause, probing: false };
    }
}

/// The breaker that every call passes.
#[derive(Clone)]
pub struct Breaker {
    policy: Arc<Mutex<Policy>>,
    state: watch::Sender<State>,
}

impl Default for Breaker {
    fn default() -> Self {
        let policy = Policy::new();
        let state = watch::Sender::new(policy.state);
        Self { policy: Arc::new(Mutex::new(policy)), state }
    }
}

impl Breaker {
    /// The state as it changes.
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The state now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Waits until a call may be made. Whoever gets the pass makes the call and reports; a pass that is dropped
    /// counts as no call. `now` reads the clock.
    pub async fn pass(&self, now: impl Fn() -> Timestamp) -> Pass {
        let mut states = self.states();
        loop {
            states.borrow_and_update();
            let granted = self.change(|policy| Some((policy.try_pass(now())?, policy.epoch)));
            if let Some(grant) = granted {
                return Pass { breaker: Some(self.clone()), grant };
            }
            let pause = match self.state() {
                State::Open { until, .. } => until.duration_since(now()).unsigned_abs(),
                State::Closed | State::HalfOpen { .. } => LONGEST_PAUSE,
            };
            // A sender lives in `self`, so `changed` cannot fail; and if it did, the pause still bounds the wait.
            let _ = tokio::time::timeout(pause + Duration::from_millis(1), states.changed()).await;
        }
    }

    /// Tries with one call now, whatever the state: a key was exchanged.
    pub fn suspect(&self) {
        self.change(Policy::suspect);
    }

    /// Lets an open breaker become half-open when its time has come, without a call waiting for it.
    pub fn ripen(&self, now: Timestamp) {
        self.change(|policy| policy.ripen(now));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Policy) -> T) -> T {
        let mut policy: MutexGuard<'_, Policy> = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut policy);
        let state = policy.state;
        self.state.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
        result
    }
}

/// The right to make one call.
pub struct Pass {
    breaker: Option<Breaker>,
    grant: Grant,
}

impl Pass {
    /// Whether it still holds: the breaker may have opened, or a key been exchanged, while its owner waited for
    /// something else.
    pub fn holds(&self) -> bool {
        self.breaker.as_ref().is_some_and(|breaker| breaker.change(|policy| policy.holds(self.grant)))
    }

    /// Reports what the call said.
    pub fn report(mut self, sign: Sign, now: Timestamp) {
        if let Some(breaker) = self.breaker.take() {
            breaker.change(|policy| policy.hear(self.grant, sign, now));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(breaker) = self.breaker.take() {
            breaker.change(|policy| policy.abandon(self.grant));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Sign = Sign::Failing(Trouble::Silent);

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
    }

    fn closed() -> Policy {
        let mut policy = Policy::new();
        assert_eq!(policy.try_pass(at(0)), Some(Kind::Probe));
        policy.note(Kind::Probe, Sign::Well, at(0));
        policy
    }

    #[test]
    fn the_first_call_goes_alone() {
        let mut policy = Policy::new();
        assert!(policy.try_pass(at(0)).is_some());
        assert!(policy.try_pass(at(0)).is_none());
        policy.note(Kind::Probe, Sign::Well, at(1));
        assert!(policy.try_pass(at(1)).is_some() && policy.try_pass(at(1)).is_some());
    }

    #[test]
    fn a_fault_of_our_own_opens_at_once_and_is_probed_ever_more_rarely() {
        let mut policy = closed();
        let fault = Sign::Fault(Fault::Unauthenticated);
        policy.note(Kind::Free, fault, at(0));
        assert!(policy.try_pass(at(999)).is_none());
        assert!(policy.try_pass(at(1_000)).is_some() && policy.try_pass(at(1_000)).is_none());
        policy.note(Kind::Probe, fault, at(1_000));
        assert!(policy.try_pass(at(2_999)).is_none());
        assert!(policy.try_pass(at(3_000)).is_some());
        policy.note(Kind::Probe, Sign::Well, at(3_001));
        assert_eq!(policy.state, State::Closed);
    }

    #[test]
    fn latecomers_do_not_lengthen_the_pause() {
        let mut policy = closed();
        for _ in 0..100 {
            policy.note(Kind::Free, Sign::Fault(Fault::Unauthenticated), at(0));
        }
        assert!(policy.try_pass(at(1_000)).is_some());
    }

    #[test]
    fn a_failing_provider_opens_it_and_a_few_failures_do_not() {
        let mut policy = closed();
        for nth in 0..9 {
            policy.note(Kind::Free, SILENT, at(nth));
        }
        assert_eq!(policy.state, State::Closed);
        policy.note(Kind::Free, SILENT, at(9));
        assert!(matches!(policy.state, State::Open { cause: Cause::Failing(Trouble::Silent), .. }));
        let mut policy = closed();
        for nth in 0..1_000 {
            policy.note(Kind::Free, if nth % 5 == 0 { SILENT } else { Sign::Well }, at(nth));
        }
        assert_eq!(policy.state, State::Closed, "a fifth of failing calls is no outage");
    }

    #[test]
    fn an_abandoned_probe_makes_room_for_another() {
        let mut policy = Policy::new();
        assert!(policy.try_pass(at(0)).is_some());
        policy.abandon((Kind::Free, 0));
        assert!(policy.try_pass(at(0)).is_none(), "a latecomer's end makes no room");
        policy.abandon((Kind::Probe, 0));
        assert!(policy.try_pass(at(0)).is_some());
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_keep_it_open() {
        let mut policy = closed();
        policy.note(Kind::Free, Sign::Fault(Fault::Unauthenticated), at(8 * 3_600_000));
        assert!(policy.try_pass(at(0)).is_some());
    }

    #[test]
    fn an_answer_that_says_nothing_of_us_still_ends_a_providers_outage_but_not_a_fault_of_ours() {
        let mut policy = Policy::new();
        policy.try_pass(at(0));
        policy.note(Kind::Probe, Sign::Neutral, at(0));
        assert_eq!(policy.state, State::Closed);
        policy.note(Kind::Free, Sign::Fault(Fault::Unauthenticated), at(0));
        policy.try_pass(at(1_000));
        policy.note(Kind::Probe, Sign::Neutral, at(1_000));
        assert!(matches!(policy.state, State::HalfOpen { probing: false, .. }));
    }

    #[test]
    fn an_inquiry_that_is_answered_does_not_show_that_redeeming_is_allowed_again() {
        let mut policy = closed();
        policy.note(Kind::Free, Sign::Fault(Fault::Unauthorised), at(0));
        for nth in 0..3 {
            assert!(policy.try_pass(at(1_000 + nth)).is_some(), "whoever inquired may go on");
            assert!(policy.try_pass(at(1_000 + nth)).is_none());
            policy.note(Kind::Probe, Sign::Seen, at(1_000 + nth));
            assert!(matches!(policy.state, State::HalfOpen { probing: false, .. }));
        }
        policy.try_pass(at(2_000));
        policy.note(Kind::Probe, Sign::Well, at(2_000));
        assert_eq!(policy.state, State::Closed);
        policy.note(Kind::Free, Sign::Fault(Fault::Unauthenticated), at(3_000));
        policy.try_pass(at(4_000));
        policy.note(Kind::Probe, Sign::Seen, at(4_000));
        assert_eq!(policy.state, State::Closed, "a signature that is taken is taken everywhere");
    }

    #[test]
    fn a_new_key_is_tried_with_one_call_at_once() {
        let mut policy = closed();
        policy.note(Kind::Free, Sign::Fault(Fault::Unauthenticated), at(0));
        policy.suspect();
        assert!(policy.try_pass(at(0)).is_some() && policy.try_pass(at(0)).is_none());
    }

    #[test]
    fn what_was_signed_with_the_old_key_says_nothing_of_the_new_one() {
        let mut policy = closed();
        let old = (Kind::Free, policy.epoch);
        policy.suspect();
        assert!(!policy.holds(old), "whoever waits for a turn asks anew");
        policy.hear(old, Sign::Well, at(1));
        let (first, epoch) = (policy.try_pass(at(2)).unwrap(), policy.epoch);
        assert!(policy.try_pass(at(2)).is_none(), "the first call with the new key goes alone");
        // A second exchange while that one is under way.
        policy.suspect();
        policy.hear((first, epoch), Sign::Well, at(3));
        assert!(matches!(policy.state, State::HalfOpen { probing: false, .. }));
        let probe = (policy.try_pass(at(4)).unwrap(), policy.epoch);
        policy.abandon((first, epoch));
        assert!(policy.try_pass(at(4)).is_none(), "the end of another one makes no room");
        assert!(policy.holds(probe));
        policy.hear(probe, Sign::Well, at(5));
        assert_eq!(policy.state, State::Closed);
        policy.hear(old, Sign::Fault(Fault::Unauthenticated), at(6));
        assert_eq!(policy.state, State::Closed, "a key that is no longer in use was rejected");
    }

    #[test]
    fn an_outage_that_is_over_is_not_begun_anew_by_calls_from_before_it() {
        let mut policy = closed();
        let old = (Kind::Free, policy.epoch);
        for nth in 0..WEIGHED_MIN as i64 {
            policy.hear(old, SILENT, at(nth));
        }
        assert!(matches!(policy.state, State::Open { cause: Cause::Failing(_), .. }));
        policy.hear(old, Sign::Well, at(500));
        policy.hear(old, Sign::Fault(Fault::Unauthenticated), at(501));
        assert!(matches!(policy.state, State::Open { cause: Cause::Fault(_), .. }), "this is worse");
        let probe = (policy.try_pass(at(9_000)).unwrap(), policy.epoch);
        policy.hear(probe, Sign::Well, at(9_001));
        for nth in 0..100 {
            policy.hear(old, SILENT, at(9_002 + nth));
        }
        assert_eq!(policy.state, State::Closed);
    }

    #[test]
    fn it_says_in_what_way_the_provider_fails() {
        let mut policy = Policy::new();
        policy.try_pass(at(0));
        policy.note(Kind::Probe, Sign::Failing(Trouble::NotBelieved), at(0));
        assert!(matches!(policy.state, State::Open { cause: Cause::Failing(Trouble::NotBelieved), .. }));
        policy.try_pass(at(1_000));
        policy.note(Kind::Probe, Sign::Failing(Trouble::ServerError), at(1_000));
        assert!(matches!(policy.state, State::Open { cause: Cause::Failing(Trouble::ServerError), .. }));
    }
}
