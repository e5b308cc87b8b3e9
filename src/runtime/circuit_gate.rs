//! The circuit breaker for calls to the payment API.
//!
//! [`crate::policy::circuit`] decides when it opens and closes; this module has the clock and the waiting calls. It
//! starts half-open: the first call of a process goes alone, so that a wrong key or clock costs one call and not one per
//! permit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::domain::evidence::Operation;
use crate::policy::circuit::{Circuit, Grant};

pub use crate::policy::call_signal::{CallSignal, FailureKind};
pub use crate::policy::circuit::{CircuitCause, State};

/// The gate that every call passes.
#[derive(Clone)]
pub struct CircuitGate(Arc<Shared>);

/// The response that suspended calls, for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SuspendedBy {
    /// `code` and `message`: control characters made visible, openids masked, 200 bytes at most.
    pub said: String,
    /// The provider's clock less ours, in seconds, by this response.
    pub clock_skew: Option<f64>,
}

/// The state of the circuit, with the response that led to it.
#[derive(Debug, Clone, PartialEq)]
pub struct GateState {
    /// Whether calls may be made.
    pub state: State,
    /// The response that suspended calls, while they are suspended.
    pub suspended_by: Option<Arc<SuspendedBy>>,
}

impl GateState {
    /// The other state that follows; `by` is the response to the call that changed it.
    fn followed_by(&self, state: State, by: Option<SuspendedBy>) -> Self {
        let suspended_by = match state {
            State::Open { cause: CircuitCause::Suspended(_), .. } => {
                by.map(Arc::new).or_else(|| self.suspended_by.clone())
            }
            State::HalfOpen { cause: CircuitCause::Suspended(_), .. } => self.suspended_by.clone(),
            State::Closed | State::Open { .. } | State::HalfOpen { .. } => None,
        };
        Self { state, suspended_by }
    }
}

struct Shared {
    circuit: Mutex<Circuit>,
    state: watch::Sender<GateState>,
    /// A waiting call may go, although the state is the same.
    room: Notify,
    /// The start of the time that [`Circuit`] counts.
    origin: Instant,
}

impl Default for CircuitGate {
    fn default() -> Self {
        let circuit = Circuit::default();
        let state = watch::Sender::new(GateState { state: circuit.state(), suspended_by: None });
        let (room, origin) = (Notify::new(), now());
        Self(Arc::new(Shared { circuit: Mutex::new(circuit), state, room, origin }))
    }
}

impl CircuitGate {
    /// The state as it changes.
    pub fn states(&self) -> watch::Receiver<GateState> {
        self.0.state.subscribe()
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.0.state.borrow().state
    }

    /// Waits until a call may be made. The caller makes the call and reports it; a permit that is dropped counts as no
    /// call.
    pub async fn acquire(&self) -> CallPermit {
        loop {
            // Before the check, so that no notification is missed between the two.
            let mut room = std::pin::pin!(self.0.room.notified());
            room.as_mut().enable();
            let now = self.now();
            let (granted, pause) =
                self.change(|circuit| (circuit.try_pass(now), circuit.time_to_next_try(now)));
            if let Some(grant) = granted {
                return CallPermit { circuit_gate: Some(self.clone()), grant };
            }
            let _ = tokio::time::timeout(pause + Duration::from_millis(1), room).await;
        }
    }

    /// Makes it half-open now, because a key was replaced.
    pub fn force_half_open(&self) {
        self.change(Circuit::force_half_open);
    }

    /// Makes an open circuit half-open when its pause has passed, although no call waits.
    pub fn tick(&self) {
        let now = self.now();
        self.change(|circuit| circuit.tick(now));
    }

    fn now(&self) -> Duration {
        now().saturating_duration_since(self.0.origin)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Circuit) -> T) -> T {
        self.change_by(None, change)
    }

    /// The same by a call; `by` is its response, if that suspends calls.
    fn change_by<T>(&self, by: Option<SuspendedBy>, change: impl FnOnce(&mut Circuit) -> T) -> T {
        let mut circuit: MutexGuard<'_, Circuit> =
            self.0.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        let had_room = circuit.has_room();
        let result = change(&mut circuit);
        let state = circuit.state();
        let changed = self.0.state.send_if_modified(|reported| {
            let is_changed = reported.state != state;
            if is_changed {
                *reported = reported.followed_by(state, by);
            }
            is_changed
        });
        if changed || circuit.has_room() && !had_room {
            self.0.room.notify_waiters();
        }
        result
    }
}

/// The runtime's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The right to make one call.
pub struct CallPermit {
    circuit_gate: Option<CircuitGate>,
    grant: Grant,
}

impl CallPermit {
    /// Whether it is still valid: the circuit may have opened, or a key may have been replaced, while its owner waited.
    pub fn is_valid(&self) -> bool {
        self.circuit_gate
            .as_ref()
            .is_some_and(|circuit_gate| circuit_gate.change(|circuit| circuit.holds(self.grant)))
    }

    /// Reports the result of the call, and its response if that suspends calls.
    pub fn report(self, operation: Operation, signal: CallSignal, suspended_by: Option<SuspendedBy>) {
        self.change_by(suspended_by, |circuit, grant, now| {
            circuit.record_call(grant, operation, signal, now)
        });
    }

    /// Reports the failure of a call about a command whose last call had failed, too.
    pub fn report_repeated(self, operation: Operation, failure: FailureKind) {
        self.change_by(None, |circuit, grant, now| {
            circuit.record_repeated_failure(grant, operation, failure, now);
        });
    }

    fn change_by(
        mut self,
        suspended_by: Option<SuspendedBy>,
        change: impl FnOnce(&mut Circuit, Grant, Duration),
    ) {
        if let Some(circuit_gate) = self.circuit_gate.take() {
            let now = circuit_gate.now();
            circuit_gate.change_by(suspended_by, |circuit| change(circuit, self.grant, now));
        }
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        if let Some(circuit_gate) = self.circuit_gate.take() {
            circuit_gate.change(|circuit| circuit.abandon(self.grant));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::classify::SuspendReason;

    const SUSPENDED: CallSignal = CallSignal::Suspended(SuspendReason::Unauthenticated);

    fn by(said: &str) -> Option<SuspendedBy> {
        Some(SuspendedBy { said: said.to_owned(), clock_skew: None })
    }

    fn said(gate: &CircuitGate) -> Option<String> {
        gate.states().borrow().suspended_by.as_ref().map(|by| by.said.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn suspension_keeps_the_response_that_caused_it() {
        let gate = CircuitGate::default();
        gate.acquire().await.report(Operation::Redeem, CallSignal::Success, None);
        let calls = [gate.acquire().await, gate.acquire().await, gate.acquire().await];
        let [first, second, third] = calls;
        first.report(Operation::Redeem, SUSPENDED, by("first"));
        assert_eq!(said(&gate).as_deref(), Some("first"));
        // Calls that were under way then say something else, and change nothing.
        second.report(Operation::Redeem, SUSPENDED, by("second"));
        third.report(Operation::Query, CallSignal::Neutral, None);
        assert_eq!(said(&gate).as_deref(), Some("first"));

        // A probe without a response does not end the suspension; one that is suspended is its new cause.
        let unanswered = CallSignal::Failing(FailureKind::NoResponse);
        gate.acquire().await.report(Operation::Redeem, unanswered, None);
        assert_eq!(said(&gate).as_deref(), Some("first"));
        gate.acquire().await.report(Operation::Redeem, SUSPENDED, by("probe"));
        assert_eq!(said(&gate).as_deref(), Some("probe"));
        gate.force_half_open();
        assert_eq!(said(&gate).as_deref(), Some("probe"));
        gate.acquire().await.report(Operation::Redeem, CallSignal::Success, None);
        assert_eq!((gate.state(), said(&gate)), (State::Closed, None));
    }
}
