//! The circuit breaker: whether calls may be made, by the results of recent calls. It opens while the provider fails or a
//! fault of our own concerns every call, probes with one call, then closes by slow start.
//!
//! A command that fails again and again shows little about the provider: while no other command comes, the retries of a few
//! would be nothing but failures. So a closed circuit ignores the failures of a command after its first one, as long as
//! other calls have succeeded lately.
//!
//! A provider that fails with every third call is still worth calling. So results are counted over seconds, not over the
//! last few calls: at 500 a second twenty calls are 40 ms.
//!
//! Pure: `now` is the time since the circuit breaker was created.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::evidence::Operation;
use crate::policy::call_signal::{CallSignal, FailureKind};
use crate::policy::classify::SuspendReason;

/// Why the circuit is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitCause {
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
    /// Calls are not limited; just after it closed, a few at once.
    Closed,
    /// One call is made as a probe; its result decides.
    HalfOpen {
        /// Why the others wait.
        cause: CircuitCause,
        /// Whether the probe is under way.
        probing: bool,
    },
    /// No calls before this time.
    Open {
        /// Why.
        cause: CircuitCause,
        /// When a probe may be made.
        until: Duration,
    },
}

/// The longest time over which calls are counted, and the length of its slices.
const WINDOW: Duration = Duration::from_secs(10);
const SLICE: Duration = Duration::from_millis(500);
/// The shortest time over which calls are counted.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// Fewer calls than this show nothing.
const CALLS_MIN: u32 = 20;
/// By how many standard deviations the failures must exceed half of the calls, so that chance alone never opens it.
const SIGMAS: f64 = 4.4;
/// It opens after only failures for this long and for [`CALLS_MIN`] calls.
const ALL_FAILING: Duration = Duration::from_millis(500);
/// It opens again after this many failures in a row during slow start.
const SLOW_START_FAILURES: u32 = 8;
/// Slow start ends when this many calls may be made at once.
const SLOW_START_ENDS: u32 = 64;
/// It opens after this many calls in a row without a verified response after a start.
const STARTING_FAILURES: u32 = 3;
/// How long it stays open before the next probe.
const PAUSE: Duration = Duration::from_secs(1);
/// While a fault of our own keeps it open, that pause is doubled up to this.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After this long a second probe is allowed beside the first: that one may hang for longer than the outage lasts.
const SINGLE_PROBE_AFTER: Duration = Duration::from_secs(1);

/// In which state a call was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Closed.
    Normal,
    /// Half-open.
    Probe,
}

/// The right to make one call, of one epoch: the result of a call of an earlier epoch is out of date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    kind: Kind,
    epoch: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Circuit {
    state: State,
    /// Incremented whenever the circuit opens or is forced half-open.
    epoch: u64,
    all: Results,
    /// Uses only: a party between us and the provider may pass queries and block uses.
    uses: Results,
    /// Whether only a use can show that the failure is over.
    by_uses: bool,
    pause: Duration,
    slow_start: Option<SlowStart>,
    starting_failures: u32,
    probed_at: Duration,
    /// The last success while it was closed.
    succeeded_at: Option<Duration>,
}

/// The number of calls that may be under way at once, and that are.
#[derive(Debug, Clone, Copy)]
struct SlowStart {
    at_once: u32,
    under_way: u32,
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            state: State::HalfOpen { cause: CircuitCause::Starting, probing: false },
            epoch: 0,
            all: Results::default(),
            uses: Results::default(),
            by_uses: false,
            pause: PAUSE,
            slow_start: None,
            starting_failures: 0,
            probed_at: Duration::ZERO,
            succeeded_at: None,
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
                let hangs = matches!(cause, CircuitCause::Failing(_) | CircuitCause::Starting)
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

    /// Whether a waiting call may be made, without time passing.
    pub fn has_room(&self) -> bool {
        match self.state {
            State::Closed => self.slow_start.is_none_or(|slow| slow.under_way < slow.at_once),
            State::HalfOpen { probing, .. } => !probing,
            State::Open { .. } => false,
        }
    }

    /// After how long the state changes by time alone, at the earliest.
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

    /// Records the result of a call. A success granted in an earlier epoch may belong to a replaced key, and its failure to
    /// an outage that is over; only a suspension is recorded.
    pub fn record_call(&mut self, grant: Grant, operation: Operation, signal: CallSignal, now: Duration) {
        self.record(grant, operation, signal, false, now);
    }

    /// The same for a failure of a command that had failed before.
    pub fn record_repeated_failure(
        &mut self,
        grant: Grant,
        operation: Operation,
        failure: FailureKind,
        now: Duration,
    ) {
        self.record(grant, operation, CallSignal::Failing(failure), true, now);
    }

    fn record(
        &mut self,
        grant: Grant,
        operation: Operation,
        signal: CallSignal,
        is_repeated: bool,
        now: Duration,
    ) {
        if grant.epoch == self.epoch {
            self.release(grant);
            if !(is_repeated && self.ignores_repeated(now)) {
                self.record_result(grant.kind, operation, signal, now);
            }
        } else if let (State::Open { .. }, CallSignal::Suspended(fault)) = (self.state, signal) {
            self.open(CircuitCause::Suspended(fault), now);
        }
    }

    /// During slow start only a few calls are made, most of them about commands that have failed before.
    fn ignores_repeated(&self, now: Duration) -> bool {
        let succeeds = self.succeeded_at.is_some_and(|at| now.saturating_sub(at) < WINDOW);
        self.state == State::Closed && self.slow_start.is_none() && succeeds
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

    /// Whether a call that was granted, and has not been made yet, may still be made.
    pub fn holds(&self, grant: Grant) -> bool {
        grant.epoch == self.epoch && (grant.kind == Kind::Probe || self.state == State::Closed)
    }

    /// Allows a new probe now, because something changed (a key was replaced). A probe that is under way used the old key.
    pub fn force_half_open(&mut self) {
        let cause = match self.state {
            State::Closed => CircuitCause::Starting,
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

    fn record_result(&mut self, kind: Kind, operation: Operation, signal: CallSignal, now: Duration) {
        match self.state {
            State::Closed => self.evaluate(operation, signal, now),
            // Only probes decide.
            State::HalfOpen { cause, .. } if kind == Kind::Probe => {
                self.decide(cause, operation, signal, now)
            }
            // Results of calls from before it opened show nothing new, except a suspension.
            State::HalfOpen { .. } | State::Open { .. } => {
                if let (State::Open { .. }, CallSignal::Suspended(fault)) = (self.state, signal) {
                    self.open(CircuitCause::Suspended(fault), now);
                }
            }
        }
    }

    fn evaluate(&mut self, operation: Operation, signal: CallSignal, now: Duration) {
        let failure = match signal {
            CallSignal::Suspended(fault) => return self.open(CircuitCause::Suspended(fault), now),
            CallSignal::Failing(failure) => Some(failure),
            CallSignal::Success | CallSignal::QuerySuccess => None,
            CallSignal::Neutral => {
                self.all.interrupt();
                if operation == Operation::Redeem {
                    self.uses.interrupt();
                }
                return;
            }
        };
        self.all.record(failure, now);
        if operation == Operation::Redeem {
            self.uses.record(failure, now);
        }
        if failure.is_none() {
            self.succeeded_at = Some(now);
            if let Some(slow) = &mut self.slow_start {
                slow.at_once += 1;
                self.slow_start = self.slow_start.filter(|slow| slow.at_once < SLOW_START_ENDS);
            }
            return;
        }
        let at_start = self.slow_start.is_some().then_some(SLOW_START_FAILURES);
        if let Some(failure) = self.all.failing(at_start, now) {
            self.by_uses = false;
            self.open(CircuitCause::Failing(failure), now);
        } else if let Some(failure) = self.uses.failing(at_start, now) {
            self.by_uses = true;
            self.open(CircuitCause::Failing(failure), now);
        }
    }

    /// Decides by the result of a probe.
    fn decide(&mut self, cause: CircuitCause, operation: Operation, signal: CallSignal, now: Duration) {
        // Only a use shows that redeeming is allowed again, or that uses get through. After its query a command sends its
        // use next, and that is a probe, too.
        let needs_use = cause == CircuitCause::Suspended(SuspendReason::Unauthorized)
            || matches!(cause, CircuitCause::Failing(_)) && self.by_uses;
        let is_inconclusive = needs_use && operation == Operation::Query;
        match (cause, signal) {
            (_, CallSignal::Suspended(fault)) => self.open(CircuitCause::Suspended(fault), now),
            (_, CallSignal::Success | CallSignal::QuerySuccess) if !is_inconclusive => {
                self.close(cause, None, now)
            }
            // An inconclusive response still shows that the provider responds.
            (CircuitCause::Starting | CircuitCause::Failing(_), CallSignal::Neutral) if !is_inconclusive => {
                self.close(cause, None, now)
            }
            // It responds, and a circuit that was closed would stay closed.
            (CircuitCause::Starting, CallSignal::Failing(failure @ FailureKind::ServerError)) => {
                self.close(cause, Some((operation, failure)), now);
            }
            (CircuitCause::Starting, CallSignal::Failing(failure)) => {
                self.starting_failures += 1;
                match self.starting_failures >= STARTING_FAILURES {
                    true => self.open(CircuitCause::Failing(failure), now),
                    false => self.state = State::HalfOpen { cause, probing: false },
                }
            }
            // Only a conclusive response shows that a fault of our own is over.
            (CircuitCause::Suspended(_), CallSignal::Failing(_)) => self.open(cause, now),
            (CircuitCause::Failing(_), CallSignal::Failing(failure)) => {
                self.open(CircuitCause::Failing(failure), now)
            }
            (_, CallSignal::Neutral | CallSignal::Success | CallSignal::QuerySuccess) => {
                self.state = State::HalfOpen { cause, probing: false };
            }
        }
    }

    fn close(&mut self, cause: CircuitCause, failed: Option<(Operation, FailureKind)>, now: Duration) {
        self.state = State::Closed;
        self.all = Results::default();
        self.uses = Results::default();
        self.pause = PAUSE;
        self.starting_failures = 0;
        // After a start there is no outage to recover from.
        let recovers = cause != CircuitCause::Starting;
        self.slow_start = recovers.then_some(SlowStart { at_once: 2, under_way: 0 });
        if let Some((operation, failure)) = failed {
            self.all.record(Some(failure), now);
            if operation == Operation::Redeem {
                self.uses.record(Some(failure), now);
            }
        }
    }

    fn open(&mut self, cause: CircuitCause, now: Duration) {
        // Calls that were under way when it opened must not lengthen the pause one by one.
        if let State::Open { cause: before, .. } = self.state
            && !(matches!(before, CircuitCause::Failing(_)) && matches!(cause, CircuitCause::Suspended(_)))
        {
            return;
        }
        self.epoch += 1;
        self.slow_start = None;
        let pause = match cause {
            CircuitCause::Suspended(_) => {
                let doubled = (self.pause * 2).min(PAUSE_MAX);
                std::mem::replace(&mut self.pause, doubled)
            }
            CircuitCause::Starting | CircuitCause::Failing(_) => PAUSE,
        };
        self.state = State::Open { cause, until: now + pause };
    }
}

/// Calls by result.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    succeeded: u32,
    /// In the order of [`FailureKind`].
    failing: [u32; 3],
}

impl Tally {
    fn record(&mut self, failure: Option<FailureKind>) {
        match failure {
            None => self.succeeded += 1,
            Some(failure) => self.failing[failure as usize] += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        for (sum, more) in self.failing.iter_mut().zip(other.failing) {
            *sum += more;
        }
    }

    fn failed(&self) -> u32 {
        self.failing.iter().sum()
    }

    fn is_more_than_half(&self) -> bool {
        let calls = self.succeeded + self.failed();
        let half = f64::from(calls) / 2.0;
        calls >= CALLS_MIN && f64::from(self.failed()) >= half + SIGMAS * (half / 2.0).sqrt()
    }

    /// The most frequent kind of failure.
    fn dominant_failure(&self) -> FailureKind {
        [FailureKind::ServerError, FailureKind::Unverified].into_iter().fold(
            FailureKind::NoResponse,
            |most, other| match self.failing[other as usize] > self.failing[most as usize] {
                true => other,
                false => most,
            },
        )
    }
}

/// The results of recent calls.
#[derive(Debug, Default)]
struct Results {
    since: Option<Duration>,
    slices: VecDeque<(u128, Tally)>,
    /// The failures since the last other result, and since when.
    in_a_row: Tally,
    in_a_row_since: Duration,
}

impl Results {
    fn record(&mut self, failure: Option<FailureKind>, now: Duration) {
        self.since.get_or_insert(now);
        let slice = now.as_nanos() / SLICE.as_nanos();
        match self.slices.back_mut() {
            Some((last, tally)) if *last >= slice => tally.record(failure),
            _ => {
                let mut tally = Tally::default();
                tally.record(failure);
                self.slices.push_back((slice, tally));
            }
        }
        let kept = WINDOW.as_nanos() / SLICE.as_nanos();
        while self.slices.pop_front_if(|(first, _)| *first + kept <= slice).is_some() {}
        match failure {
            None => self.interrupt(),
            Some(_) => {
                if self.in_a_row.failed() == 0 {
                    self.in_a_row_since = now;
                }
                self.in_a_row.record(failure);
            }
        }
    }

    fn interrupt(&mut self) {
        self.in_a_row = Tally::default();
    }

    /// In what way the provider fails, if it does. During slow start `few` failures in a row are enough.
    fn failing(&self, few: Option<u32>, now: Duration) -> Option<FailureKind> {
        let failed = self.in_a_row.failed();
        let lasted = now.saturating_sub(self.in_a_row_since) >= ALL_FAILING;
        if failed >= CALLS_MIN && lasted || few.is_some_and(|few| failed >= few) {
            return Some(self.in_a_row.dominant_failure());
        }
        if now.saturating_sub(self.since?) < WINDOW_MIN {
            return None;
        }
        // From the latest slice backward: earlier successes must not hide that the provider fails now.
        let enough = now.saturating_sub(WINDOW_MIN).as_nanos() / SLICE.as_nanos();
        let mut sum = Tally::default();
        for (slice, tally) in self.slices.iter().rev() {
            sum.add(*tally);
            if *slice <= enough && sum.is_more_than_half() {
                return Some(sum.dominant_failure());
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

    /// One call that is made now and gets its response at once.
    fn call(circuit: &mut Circuit, millis: u64, signal: CallSignal) -> bool {
        let grant = circuit.try_pass(at(millis));
        if let Some(grant) = grant {
            circuit.record_call(grant, Redeem, signal, at(millis));
        }
        grant.is_some()
    }

    fn closed() -> Circuit {
        let mut circuit = Circuit::default();
        assert!(call(&mut circuit, 0, CallSignal::Success));
        assert_eq!(circuit.state(), State::Closed);
        circuit
    }

    /// Open for a second, because the provider does not respond.
    fn failing() -> Circuit {
        let mut circuit = closed();
        for nth in 0..CALLS_MIN as u64 {
            call(&mut circuit, nth * 27, SILENT);
        }
        assert_eq!(
            circuit.state(),
            State::Open { cause: CircuitCause::Failing(FailureKind::NoResponse), until: at(1_513) }
        );
        circuit
    }

    #[test]
    fn first_call_is_made_alone() {
        let mut circuit = Circuit::default();
        let first = circuit.try_pass(at(0)).unwrap();
        assert!(circuit.try_pass(at(0)).is_none());
        circuit.record_call(first, Redeem, CallSignal::Success, at(1));
        assert!((0..1_000).all(|_| circuit.try_pass(at(1)).is_some()), "no slow start after a start");
    }

    #[test]
    fn first_5xx_after_a_start_closes_the_circuit() {
        let mut circuit = Circuit::default();
        assert!(call(&mut circuit, 0, CallSignal::Failing(FailureKind::ServerError)));
        assert!((0..1_000).all(|_| circuit.try_pass(at(1)).is_some()));
    }

    #[test]
    fn circuit_opens_after_three_unverified_calls_at_start() {
        for failure in [FailureKind::NoResponse, FailureKind::Unverified] {
            let mut circuit = Circuit::default();
            for nth in 0..3 {
                assert!(call(&mut circuit, nth, CallSignal::Failing(failure)));
            }
            let cause = CircuitCause::Failing(failure);
            assert_eq!(circuit.state(), State::Open { cause, until: at(1_002) });
        }
    }

    #[test]
    fn suspension_opens_at_once_and_doubles_the_pause() {
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
    fn calls_of_an_earlier_epoch_do_not_lengthen_the_pause() {
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
    fn probe_that_hangs_is_joined_by_another() {
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
        assert!(circuit.try_pass(at(0)).is_none(), "the end of an earlier call makes no room");
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
    fn neutral_signal_ends_an_outage_but_no_suspension() {
        let mut circuit = failing();
        assert!(call(&mut circuit, 2_000, CallSignal::Neutral));
        assert_eq!(circuit.state(), State::Closed);
        assert!(call(&mut circuit, 2_001, REJECTED));
        assert!(call(&mut circuit, 3_001, CallSignal::Neutral));
        let cause = CircuitCause::Suspended(SuspendReason::Unauthenticated);
        assert_eq!(circuit.state(), State::HalfOpen { cause, probing: false });
    }

    #[test]
    fn query_success_keeps_unauthorized_circuit_half_open() {
        let mut circuit = closed();
        call(&mut circuit, 0, CallSignal::Suspended(SuspendReason::Unauthorized));
        for nth in 0..3 {
            let grant = circuit.try_pass(at(1_000 + nth)).unwrap();
            assert!(circuit.try_pass(at(1_000 + nth)).is_none());
            circuit.record_call(grant, Query, CallSignal::QuerySuccess, at(1_000 + nth));
            assert!(matches!(circuit.state(), State::HalfOpen { probing: false, .. }));
        }
        call(&mut circuit, 2_000, CallSignal::Success);
        assert_eq!(circuit.state(), State::Closed);
        call(&mut circuit, 3_000, REJECTED);
        let grant = circuit.try_pass(at(4_000)).unwrap();
        circuit.record_call(grant, Query, CallSignal::QuerySuccess, at(4_000));
        assert_eq!(circuit.state(), State::Closed, "a signature is accepted by every interface or by none");
    }

    #[test]
    fn replaced_key_is_probed_at_once() {
        let mut circuit = closed();
        call(&mut circuit, 0, REJECTED);
        circuit.force_half_open();
        assert!(circuit.try_pass(at(0)).is_some() && circuit.try_pass(at(0)).is_none());
    }

    #[test]
    fn result_with_the_old_key_is_ignored_after_replacement() {
        let mut circuit = closed();
        let old = circuit.try_pass(at(0)).unwrap();
        circuit.force_half_open();
        assert!(!circuit.holds(old), "a waiting call needs another grant");
        circuit.record_call(old, Redeem, CallSignal::Success, at(1));
        let first = circuit.try_pass(at(2)).unwrap();
        assert!(circuit.try_pass(at(2)).is_none(), "the first call with the new key is a probe");
        // Another replacement while that one is under way.
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
        assert_eq!(circuit.state(), State::Closed, "the rejected key is no longer in use");
    }

    #[test]
    fn earlier_calls_do_not_reopen_the_circuit() {
        let mut circuit = closed();
        let old = circuit.try_pass(at(0)).unwrap();
        for nth in 0..CALLS_MIN as u64 {
            call(&mut circuit, nth * 27, SILENT);
        }
        circuit.record_call(old, Redeem, CallSignal::Success, at(600));
        assert!(matches!(circuit.state(), State::Open { cause: CircuitCause::Failing(_), .. }));
        circuit.record_call(old, Redeem, REJECTED, at(601));
        assert!(
            matches!(circuit.state(), State::Open { cause: CircuitCause::Suspended(_), .. }),
            "this is worse"
        );
        assert!(call(&mut circuit, 9_000, CallSignal::Success));
        for nth in 0..100 {
            circuit.record_call(old, Redeem, SILENT, at(9_001 + nth * 20));
        }
        assert_eq!(circuit.state(), State::Closed);
    }
}
