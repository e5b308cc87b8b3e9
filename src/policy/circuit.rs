//! Whether calls may be made, by what the last ones brought: none while the provider fails altogether or a fault of our
//! own concerns every call, one at a time to find out whether that is over, then ever more at once.
//!
//! Half-failing is not failing: a provider that fails with every third call is still worth all of them. So calls are
//! weighed over seconds, not over the last few: at 500 a second twenty calls are 40 ms.
//!
//! Pure: `now` is the time since the circuit circuit_gate was made.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::evidence::Operation;
use crate::policy::classify::{Authenticity, Response, SuspendReason, UnknownCause, Verdict};

/// In what way the provider is failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No answer comes back.
    NoResponse,
    /// It answers that it is in trouble itself.
    ServerError,
    /// Its answers carry no signature that we can verify: a key of ours may be the wrong one, or something else answers
    /// in its place.
    Unverified,
}

/// What a call said about the provider and about us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallSignal {
    /// The provider answered, and can be held to it.
    Success,
    /// It answered a query so. Rights are granted interface by interface: this says nothing about the right to
    /// redeem.
    Answered,
    /// It does not answer, or is in trouble, or cannot be believed.
    Failing(FailureKind),
    /// Says nothing either way.
    Neutral,
    /// Every call will fail until we are fixed.
    Suspended(SuspendReason),
}

impl CallSignal {
    /// Reads the sign of a verdict on an operation.
    pub fn of(operation: Operation, verdict: &Verdict) -> Self {
        match verdict {
            Verdict::NotSent | Verdict::Unknown(UnknownCause::NoResponse) => {
                Self::Failing(FailureKind::NoResponse)
            }
            Verdict::Unknown(UnknownCause::ServerError) => Self::Failing(FailureKind::ServerError),
            // An unsigned 429 need not be the provider's.
            Verdict::Unknown(UnknownCause::Unverified | UnknownCause::TooFrequent) => {
                Self::Failing(FailureKind::Unverified)
            }
            Verdict::Unknown(
                UnknownCause::Accepted
                | UnknownCause::Contradiction
                | UnknownCause::NoNumber
                | UnknownCause::AnotherCoupon
                | UnknownCause::MayBeCommon(_)
                | UnknownCause::Unexpected,
            )
            | Verdict::NotAccepted(_) => Self::Neutral,
            Verdict::Suspended(fault) => Self::Suspended(*fault),
            Verdict::Redeemed
            | Verdict::Refused(_)
            | Verdict::Rejected { .. }
            | Verdict::NotExecuted
            | Verdict::NotAuthorized => match operation {
                Operation::Redeem => Self::Success,
                Operation::Query => Self::Answered,
            },
        }
    }
}

/// What came of a call, for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseClass {
    /// An answer that the provider can be held to.
    Verified,
    /// A signed 429. One without a signature may be another party's, such as a proxy's, and is [`Self::Unverified`].
    Throttled,
    /// No whole answer.
    NoResponse,
    /// 5xx.
    ServerError,
    /// No signature that we can verify.
    Unverified,
    /// A fault of our own, which concerns every call.
    Suspended,
    /// An answer from which nothing follows about the provider.
    Other,
}

impl ResponseClass {
    /// Every class.
    pub const ALL: [Self; 7] = [
        Self::Verified,
        Self::Throttled,
        Self::NoResponse,
        Self::ServerError,
        Self::Unverified,
        Self::Suspended,
        Self::Other,
    ];

    /// By the answer, if there was a whole one, and by what the call said.
    pub fn of(answer: Option<&Response>, sign: CallSignal) -> Self {
        let is_verified = |answer: &&Response| answer.authenticity == Authenticity::Verified;
        match (answer.filter(is_verified).map(|answer| answer.status), sign) {
            (Some(429), _) => Self::Throttled,
            (_, CallSignal::Success | CallSignal::Answered) => Self::Verified,
            (_, CallSignal::Failing(FailureKind::NoResponse)) => Self::NoResponse,
            (_, CallSignal::Failing(FailureKind::ServerError)) => Self::ServerError,
            (_, CallSignal::Failing(FailureKind::Unverified)) => Self::Unverified,
            (_, CallSignal::Suspended(_)) => Self::Suspended,
            (_, CallSignal::Neutral) => Self::Other,
        }
    }

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Throttled => "throttled",
            Self::NoResponse => "no_response",
            Self::ServerError => "server_error",
            Self::Unverified => "unverified",
            Self::Suspended => "suspended",
            Self::Other => "other",
        }
    }
}

/// Why calls are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing is known yet.
    Starting,
    /// The provider is failing, mostly in this way.
    Failing(FailureKind),
    /// A fault of our own.
    Suspended(SuspendReason),
}

/// Whether calls may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls go freely; just after it closed, a few at once.
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
        until: Duration,
    },
}

/// Calls are weighed over so much time at most, counted in slices.
const WINDOW: Duration = Duration::from_secs(10);
const SLICE: Duration = Duration::from_millis(500);
/// What a shorter time than this brought is not weighed.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// Fewer calls than this prove nothing.
const CALLS_MIN: u32 = 20;
/// How far more than half of the calls must fail, in standard deviations of a half: chance alone never makes this many.
const SIGMAS: f64 = 4.4;
/// This long, and for [`CALLS_MIN`] calls, nothing but failures: that is no blip.
const ALL_FAILING: Duration = Duration::from_millis(500);
/// Calls in a row that fail just after it closed.
const SLOW_START_FAILURES: u32 = 8;
/// This many calls at once are all calls.
const SLOW_START_ENDS: u32 = 64;
/// Calls in a row without a believable answer after a start, before it is reported.
const STARTING_FAILURES: u32 = 3;
/// How long a failing provider is left alone before the next call.
const PAUSE: Duration = Duration::from_secs(1);
/// Where a fault of our own holds calls back that pause is doubled up to this.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A call that goes alone for this long is joined by another one: it may hang for longer than the outage lasts.
const SINGLE_PROBE_AFTER: Duration = Duration::from_secs(1);

/// How a call came to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With all others.
    Normal,
    /// Alone, to find out.
    Probe,
}

/// The right to make one call, of one epoch: what a call brings that was let go before says how things were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    kind: Kind,
    epoch: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Circuit {
    state: State,
    /// Counted at every opening and every suspicion.
    epoch: u64,
    all: Results,
    /// Uses alone: something in the way may let queries through.
    uses: Results,
    /// Whether only a use can show that it is over.
    by_uses: bool,
    pause: Duration,
    slow_start: Option<SlowStart>,
    starting_failures: u32,
    probed_at: Duration,
}

/// How many calls may be under way at once, and how many are.
#[derive(Debug, Clone, Copy)]
struct SlowStart {
    at_once: u32,
    under_way: u32,
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            state: State::HalfOpen { cause: Cause::Starting, probing: false },
            epoch: 0,
            all: Results::default(),
            uses: Results::default(),
            by_uses: false,
            pause: PAUSE,
            slow_start: None,
            starting_failures: 0,
            probed_at: Duration::ZERO,
        }
    }
}

impl Circuit {
    /// The state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether a call may be made now.
    pub fn try_pass(&mut self, now: Duration) -> Option<Grant> {
        self.tick(now);
        let kind = match &mut self.state {
            State::Closed => match &mut self.slow_start {
                Some(slow) if slow.under_way >= slow.at_once => return None,
                Some(slow) => {
                    slow.under_way += 1;
                    Kind::Normal
                }
                None => Kind::Normal,
            },
            State::HalfOpen { cause, probing } => {
                let hangs = matches!(cause, Cause::Failing(_) | Cause::Starting)
                    && now.saturating_sub(self.probed_at) >= SINGLE_PROBE_AFTER;
                if *probing && !hangs {
                    return None;
                }
                *probing = true;
                self.probed_at = now;
                Kind::Probe
            }
            State::Open { .. } => return None,
        };
        Some(Grant { kind, epoch: self.epoch })
    }

    /// Whether anyone who waits may go, without time passing.
    pub fn has_room(&self) -> bool {
        match self.state {
            State::Closed => self.slow_start.is_none_or(|slow| slow.under_way < slow.at_once),
            State::HalfOpen { probing, .. } => !probing,
            State::Open { .. } => false,
        }
    }

    /// After how long another look is worth it, if nothing happens before.
    pub fn time_to_next_try(&self, now: Duration) -> Duration {
        match self.state {
            State::Open { until, .. } => until.saturating_sub(now),
            State::HalfOpen { probing: true, .. } => {
                (self.probed_at + SINGLE_PROBE_AFTER).saturating_sub(now)
            }
            State::Closed | State::HalfOpen { .. } => PAUSE_MAX,
        }
    }

    /// A pause that has passed makes it half-open.
    pub fn tick(&mut self, now: Duration) {
        if let State::Open { cause, until } = self.state
            && until <= now
        {
            self.state = State::HalfOpen { cause, probing: false };
        }
    }

    /// What a call brought. A latecomer's success was had with a key that may have been exchanged since, and its failure
    /// is of an outage that may be over; only that we are at fault is worse than what an open circuit knows.
    pub fn record_call(&mut self, grant: Grant, operation: Operation, sign: CallSignal, now: Duration) {
        if grant.epoch == self.epoch {
            self.release(grant);
            self.record_result(grant.kind, operation, sign, now);
        } else if let (State::Open { .. }, CallSignal::Suspended(fault)) = (self.state, sign) {
            self.open(Cause::Suspended(fault), now);
        }
    }

    /// A call ended without a result.
    pub fn abandon(&mut self, grant: Grant) {
        if grant.epoch != self.epoch {
            return;
        }
        self.release(grant);
        if let State::HalfOpen { probing, .. } = &mut self.state
            && grant.kind == Kind::Probe
        {
            *probing = false;
        }
    }

    /// Whether a call that was let go, and has not been made yet, may still be made.
    pub fn holds(&self, grant: Grant) -> bool {
        grant.epoch == self.epoch && (grant.kind == Kind::Probe || self.state == State::Closed)
    }

    /// Something changed for the better or the worse (a key was exchanged): try with one call now. One that goes alone
    /// already went with the old key.
    pub fn force_half_open(&mut self) {
        let cause = match self.state {
            State::Closed => Cause::Starting,
            State::HalfOpen { cause, .. } | State::Open { cause, .. } => cause,
        };
        self.epoch += 1;
        self.pause = PAUSE;
        self.starting_failures = 0;
        self.state = State::HalfOpen { cause, probing: false };
    }

    fn release(&mut self, grant: Grant) {
        if let (Some(slow), Kind::Normal) = (&mut self.slow_start, grant.kind) {
            slow.under_way = slow.under_way.saturating_sub(1);
        }
    }

    fn record_result(&mut self, kind: Kind, operation: Operation, sign: CallSignal, now: Duration) {
        match self.state {
            State::Closed => self.evaluate(operation, sign, now),
            // Only the calls that go alone decide.
            State::HalfOpen { cause, .. } if kind == Kind::Probe => self.decide(cause, operation, sign, now),
            // Latecomers from before it opened say nothing new, but for one thing.
            State::HalfOpen { .. } | State::Open { .. } => {
                if let (State::Open { .. }, CallSignal::Suspended(fault)) = (self.state, sign) {
                    self.open(Cause::Suspended(fault), now);
                }
            }
        }
    }

    fn evaluate(&mut self, operation: Operation, sign: CallSignal, now: Duration) {
        let trouble = match sign {
            CallSignal::Suspended(fault) => return self.open(Cause::Suspended(fault), now),
            CallSignal::Failing(trouble) => Some(trouble),
            CallSignal::Success | CallSignal::Answered => None,
            CallSignal::Neutral => {
                self.all.interrupt();
                if operation == Operation::Redeem {
                    self.uses.interrupt();
                }
                return;
            }
        };
        self.all.record(trouble, now);
        if operation == Operation::Redeem {
            self.uses.record(trouble, now);
        }
        if trouble.is_none() {
            if let Some(slow) = &mut self.slow_start {
                slow.at_once += 1;
                self.slow_start = self.slow_start.filter(|slow| slow.at_once < SLOW_START_ENDS);
            }
            return;
        }
        let at_start = self.slow_start.is_some().then_some(SLOW_START_FAILURES);
        if let Some(trouble) = self.all.failing(at_start, now) {
            self.by_uses = false;
            self.open(Cause::Failing(trouble), now);
        } else if let Some(trouble) = self.uses.failing(at_start, now) {
            self.by_uses = true;
            self.open(Cause::Failing(trouble), now);
        }
    }

    /// What a call brought that went alone.
    fn decide(&mut self, cause: Cause, operation: Operation, sign: CallSignal, now: Duration) {
        // Only a redemption shows that redeeming is allowed again, or that uses get through. Anyone who queried goes on to
        // its redemption next, and that goes alone, too.
        let needs_use = cause == Cause::Suspended(SuspendReason::Unauthorized)
            || matches!(cause, Cause::Failing(_)) && self.by_uses;
        let says_nothing = needs_use && operation == Operation::Query;
        match (cause, sign) {
            (_, CallSignal::Suspended(fault)) => self.open(Cause::Suspended(fault), now),
            (_, CallSignal::Success | CallSignal::Answered) if !says_nothing => self.close(cause, None, now),
            // An answer that says nothing of us still says that the provider answers.
            (Cause::Starting | Cause::Failing(_), CallSignal::Neutral) if !says_nothing => {
                self.close(cause, None, now)
            }
            // It answers, and anyone who has worked before would go on.
            (Cause::Starting, CallSignal::Failing(trouble @ FailureKind::ServerError)) => {
                self.close(cause, Some((operation, trouble)), now);
            }
            (Cause::Starting, CallSignal::Failing(trouble)) => {
                self.starting_failures += 1;
                match self.starting_failures >= STARTING_FAILURES {
                    true => self.open(Cause::Failing(trouble), now),
                    false => self.state = State::HalfOpen { cause, probing: false },
                }
            }
            // A fault of our own is only disproved by an answer that says so.
            (Cause::Suspended(_), CallSignal::Failing(_)) => self.open(cause, now),
            (Cause::Failing(_), CallSignal::Failing(trouble)) => self.open(Cause::Failing(trouble), now),
            (_, CallSignal::Neutral | CallSignal::Success | CallSignal::Answered) => {
                self.state = State::HalfOpen { cause, probing: false };
            }
        }
    }

    fn close(&mut self, cause: Cause, failed: Option<(Operation, FailureKind)>, now: Duration) {
        self.state = State::Closed;
        self.all = Results::default();
        self.uses = Results::default();
        self.pause = PAUSE;
        self.starting_failures = 0;
        // After a start nobody waits for the provider to get on its feet.
        let recovers = cause != Cause::Starting;
        self.slow_start = recovers.then_some(SlowStart { at_once: 2, under_way: 0 });
        if let Some((operation, trouble)) = failed {
            self.all.record(Some(trouble), now);
            if operation == Operation::Redeem {
                self.uses.record(Some(trouble), now);
            }
        }
    }

    fn open(&mut self, cause: Cause, now: Duration) {
        // Calls that were under way when it opened must not lengthen the pause one by one.
        if let State::Open { cause: before, .. } = self.state
            && !(matches!(before, Cause::Failing(_)) && matches!(cause, Cause::Suspended(_)))
        {
            return;
        }
        self.epoch += 1;
        self.slow_start = None;
        let pause = match cause {
            Cause::Suspended(_) => {
                let doubled = (self.pause * 2).min(PAUSE_MAX);
                std::mem::replace(&mut self.pause, doubled)
            }
            Cause::Starting | Cause::Failing(_) => PAUSE,
        };
        self.state = State::Open { cause, until: now + pause };
    }
}

/// Calls by what they brought.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    well: u32,
    /// In the order of [`FailureKind`].
    failing: [u32; 3],
}

impl Tally {
    fn record(&mut self, trouble: Option<FailureKind>) {
        match trouble {
            None => self.well += 1,
            Some(trouble) => self.failing[trouble as usize] += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.well += other.well;
        for (sum, more) in self.failing.iter_mut().zip(other.failing) {
            *sum += more;
        }
    }

    fn failed(&self) -> u32 {
        self.failing.iter().sum()
    }

    fn is_more_than_half(&self) -> bool {
        let calls = self.well + self.failed();
        let half = f64::from(calls) / 2.0;
        calls >= CALLS_MIN && f64::from(self.failed()) >= half + SIGMAS * (half / 2.0).sqrt()
    }

    /// In what way it fails mostly.
    fn trouble(&self) -> FailureKind {
        [FailureKind::ServerError, FailureKind::Unverified].into_iter().fold(
            FailureKind::NoResponse,
            |most, other| match self.failing[other as usize] > self.failing[most as usize] {
                true => other,
                false => most,
            },
        )
    }
}

/// What calls brought lately.
#[derive(Debug, Default)]
struct Results {
    since: Option<Duration>,
    slices: VecDeque<(u128, Tally)>,
    /// What failed since something else came, and since when.
    in_a_row: Tally,
    in_a_row_since: Duration,
}

impl Results {
    fn record(&mut self, trouble: Option<FailureKind>, now: Duration) {
        self.since.get_or_insert(now);
        let slice = now.as_nanos() / SLICE.as_nanos();
        match self.slices.back_mut() {
            Some((last, tally)) if *last >= slice => tally.record(trouble),
            _ => {
                let mut tally = Tally::default();
                tally.record(trouble);
                self.slices.push_back((slice, tally));
            }
        }
        let kept = WINDOW.as_nanos() / SLICE.as_nanos();
        while self.slices.pop_front_if(|(first, _)| *first + kept <= slice).is_some() {}
        match trouble {
            None => self.interrupt(),
            Some(_) => {
                if self.in_a_row.failed() == 0 {
                    self.in_a_row_since = now;
                }
                self.in_a_row.record(trouble);
            }
        }
    }

    fn interrupt(&mut self) {
        self.in_a_row = Tally::default();
    }

    /// In what way the provider fails, if it does. `few` in a row are enough if it has just recovered.
    fn failing(&self, few: Option<u32>, now: Duration) -> Option<FailureKind> {
        let failed = self.in_a_row.failed();
        let lasted = now.saturating_sub(self.in_a_row_since) >= ALL_FAILING;
        if failed >= CALLS_MIN && lasted || few.is_some_and(|few| failed >= few) {
            return Some(self.in_a_row.trouble());
        }
        if now.saturating_sub(self.since?) < WINDOW_MIN {
            return None;
        }
        // From now back to ever earlier: a provider that worked well until now must not be weighed by that.
        let enough = now.saturating_sub(WINDOW_MIN).as_nanos() / SLICE.as_nanos();
        let mut sum = Tally::default();
        for (slice, tally) in self.slices.iter().rev() {
            sum.add(*tally);
            if *slice <= enough && sum.is_more_than_half() {
                return Some(sum.trouble());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::evidence::Operation::{Query, Redeem};

    const SILENT: CallSignal = CallSignal::Failing(FailureKind::NoResponse);
    const REJECTED: CallSignal = CallSignal::Suspended(SuspendReason::Unauthenticated);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// One call that goes now and is answered at once.
    fn call(circuit: &mut Circuit, millis: u64, sign: CallSignal) -> bool {
        let grant = circuit.try_pass(at(millis));
        if let Some(grant) = grant {
            circuit.record_call(grant, Redeem, sign, at(millis));
        }
        grant.is_some()
    }

    fn closed() -> Circuit {
        let mut circuit = Circuit::default();
        assert!(call(&mut circuit, 0, CallSignal::Success));
        assert_eq!(circuit.state(), State::Closed);
        circuit
    }

    /// Open since a second, by a provider that does not answer.
    fn failing() -> Circuit {
        let mut circuit = closed();
        for nth in 0..CALLS_MIN as u64 {
            call(&mut circuit, nth * 27, SILENT);
        }
        assert_eq!(
            circuit.state(),
            State::Open { cause: Cause::Failing(FailureKind::NoResponse), until: at(1_513) }
        );
        circuit
    }

    #[test]
    fn the_first_call_goes_alone() {
        let mut circuit = Circuit::default();
        let first = circuit.try_pass(at(0)).unwrap();
        assert!(circuit.try_pass(at(0)).is_none());
        circuit.record_call(first, Redeem, CallSignal::Success, at(1));
        assert!((0..1_000).all(|_| circuit.try_pass(at(1)).is_some()), "no slow start after a start");
    }

    #[test]
    fn a_first_5xx_after_a_start_holds_nobody_back() {
        let mut circuit = Circuit::default();
        assert!(call(&mut circuit, 0, CallSignal::Failing(FailureKind::ServerError)));
        assert!((0..1_000).all(|_| circuit.try_pass(at(1)).is_some()));
    }

    #[test]
    fn a_start_without_a_believable_answer_is_reported_after_three_calls() {
        for trouble in [FailureKind::NoResponse, FailureKind::Unverified] {
            let mut circuit = Circuit::default();
            for nth in 0..3 {
                assert!(call(&mut circuit, nth, CallSignal::Failing(trouble)));
            }
            let cause = Cause::Failing(trouble);
            assert_eq!(circuit.state(), State::Open { cause, until: at(1_002) });
        }
    }

    #[test]
    fn a_fault_of_our_own_opens_at_once_and_is_probed_ever_more_rarely() {
        let mut circuit = closed();
        assert!(call(&mut circuit, 0, REJECTED));
        for (early, due) in [(999, 1_000), (2_999, 3_000), (6_999, 7_000), (11_999, 12_000)] {
            assert!(circuit.try_pass(at(early)).is_none());
            assert!(call(&mut circuit, due, REJECTED));
        }
        assert!(call(&mut circuit, 17_000, CallSignal::Success));
        assert_eq!(circuit.state(), State::Closed);
    }

    #[test]
    fn latecomers_do_not_lengthen_the_pause() {
        let mut circuit = closed();
        let grants: Vec<_> = (0..100).map(|_| circuit.try_pass(at(0)).unwrap()).collect();
        for grant in grants {
            circuit.record_call(grant, Redeem, REJECTED, at(0));
        }
        assert!(circuit.try_pass(at(1_000)).is_some());
    }

    #[test]
    fn it_closes_by_one_two_four_calls_at_once() {
        let mut circuit = failing();
        let mut at_once = Vec::new();
        for round in 0..8 {
            let now = at(2_000 + round);
            let grants: Vec<_> = std::iter::from_fn(|| circuit.try_pass(now)).take(200).collect();
            at_once.push(grants.len());
            for grant in grants {
                circuit.record_call(grant, Redeem, CallSignal::Success, now);
            }
        }
        assert_eq!(at_once, [1, 2, 4, 8, 16, 32, 200, 200]);
    }

    #[test]
    fn it_opens_again_by_few_failures_just_after_it_closed() {
        let mut circuit = failing();
        assert!(call(&mut circuit, 2_000, CallSignal::Success));
        for _ in 0..SLOW_START_FAILURES {
            assert!(call(&mut circuit, 2_001, SILENT));
        }
        assert!(matches!(circuit.state(), State::Open { .. }));
    }

    #[test]
    fn a_call_that_hangs_is_joined_by_another() {
        let mut circuit = failing();
        assert!(circuit.try_pass(at(2_000)).is_some());
        assert!(circuit.try_pass(at(2_999)).is_none());
        assert_eq!(circuit.time_to_next_try(at(2_999)), at(1));
        assert!(call(&mut circuit, 3_000, CallSignal::Success));
        assert_eq!(circuit.state(), State::Closed);
    }

    #[test]
    fn first_call_that_hangs_is_joined_by_another() {
        let mut circuit = Circuit::default();
        assert!(circuit.try_pass(at(0)).is_some());
        assert!(circuit.try_pass(at(999)).is_none());
        assert!(call(&mut circuit, 1_000, CallSignal::Success));
        assert_eq!(circuit.state(), State::Closed);
    }

    #[test]
    fn an_abandoned_call_makes_room_for_another() {
        let mut circuit = Circuit::default();
        let probe = circuit.try_pass(at(0)).unwrap();
        circuit.abandon(Grant { kind: Kind::Normal, ..probe });
        assert!(circuit.try_pass(at(0)).is_none(), "a latecomer's end makes no room");
        circuit.abandon(probe);
        assert!(circuit.try_pass(at(0)).is_some());
        let mut circuit = failing();
        assert!(call(&mut circuit, 2_000, CallSignal::Success));
        let [first, _] = [0; 2].map(|_| circuit.try_pass(at(2_001)).unwrap());
        assert!(circuit.try_pass(at(2_001)).is_none());
        circuit.abandon(first);
        assert!(circuit.try_pass(at(2_001)).is_some());
    }

    #[test]
    fn a_neutral_answer_ends_a_providers_outage_but_no_fault_of_ours() {
        let mut circuit = failing();
        assert!(call(&mut circuit, 2_000, CallSignal::Neutral));
        assert_eq!(circuit.state(), State::Closed);
        assert!(call(&mut circuit, 2_001, REJECTED));
        assert!(call(&mut circuit, 3_001, CallSignal::Neutral));
        let cause = Cause::Suspended(SuspendReason::Unauthenticated);
        assert_eq!(circuit.state(), State::HalfOpen { cause, probing: false });
    }

    #[test]
    fn an_query_does_not_show_that_redeeming_is_allowed_again() {
        let mut circuit = closed();
        call(&mut circuit, 0, CallSignal::Suspended(SuspendReason::Unauthorized));
        for nth in 0..3 {
            let grant = circuit.try_pass(at(1_000 + nth)).unwrap();
            assert!(circuit.try_pass(at(1_000 + nth)).is_none());
            circuit.record_call(grant, Query, CallSignal::Answered, at(1_000 + nth));
            assert!(matches!(circuit.state(), State::HalfOpen { probing: false, .. }));
        }
        call(&mut circuit, 2_000, CallSignal::Success);
        assert_eq!(circuit.state(), State::Closed);
        call(&mut circuit, 3_000, REJECTED);
        let grant = circuit.try_pass(at(4_000)).unwrap();
        circuit.record_call(grant, Query, CallSignal::Answered, at(4_000));
        assert_eq!(circuit.state(), State::Closed, "a signature that is taken is taken everywhere");
    }

    #[test]
    fn a_new_key_is_tried_with_one_call_at_once() {
        let mut circuit = closed();
        call(&mut circuit, 0, REJECTED);
        circuit.force_half_open();
        assert!(circuit.try_pass(at(0)).is_some() && circuit.try_pass(at(0)).is_none());
    }

    #[test]
    fn what_was_signed_with_the_old_key_says_nothing_of_the_new_one() {
        let mut circuit = closed();
        let old = circuit.try_pass(at(0)).unwrap();
        circuit.force_half_open();
        assert!(!circuit.holds(old), "who waits for a turn asks again");
        circuit.record_call(old, Redeem, CallSignal::Success, at(1));
        let first = circuit.try_pass(at(2)).unwrap();
        assert!(circuit.try_pass(at(2)).is_none(), "the first call with the new key goes alone");
        // A second exchange while that one is under way.
        circuit.force_half_open();
        circuit.record_call(first, Redeem, CallSignal::Success, at(3));
        assert!(matches!(circuit.state(), State::HalfOpen { probing: false, .. }));
        let probe = circuit.try_pass(at(4)).unwrap();
        circuit.abandon(first);
        assert!(circuit.try_pass(at(4)).is_none(), "the end of another one makes no room");
        assert!(circuit.holds(probe));
        circuit.record_call(probe, Redeem, CallSignal::Success, at(5));
        assert_eq!(circuit.state(), State::Closed);
        circuit.record_call(old, Redeem, REJECTED, at(6));
        assert_eq!(circuit.state(), State::Closed, "a key that is no longer in use was rejected");
    }

    #[test]
    fn an_outage_that_is_over_is_not_begun_again_by_calls_from_before_it() {
        let mut circuit = closed();
        let old = circuit.try_pass(at(0)).unwrap();
        for nth in 0..CALLS_MIN as u64 {
            call(&mut circuit, nth * 27, SILENT);
        }
        circuit.record_call(old, Redeem, CallSignal::Success, at(600));
        assert!(matches!(circuit.state(), State::Open { cause: Cause::Failing(_), .. }));
        circuit.record_call(old, Redeem, REJECTED, at(601));
        assert!(matches!(circuit.state(), State::Open { cause: Cause::Suspended(_), .. }), "this is worse");
        assert!(call(&mut circuit, 9_000, CallSignal::Success));
        for nth in 0..100 {
            circuit.record_call(old, Redeem, SILENT, at(9_001 + nth * 20));
        }
        assert_eq!(circuit.state(), State::Closed);
    }

    #[test]
    fn an_unsigned_rejection_cannot_be_believed() {
        let unsigned = Verdict::Unknown(UnknownCause::Unverified);
        for operation in [Redeem, Query] {
            assert_eq!(CallSignal::of(operation, &unsigned), CallSignal::Failing(FailureKind::Unverified));
        }
        for reason in crate::domain::reason::Reason::REJECTIONS {
            assert_eq!(
                CallSignal::of(Redeem, &Verdict::Rejected { reason, may_be_our_own_use: false }),
                CallSignal::Success
            );
        }
    }
}
