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

pub use crate::policy::circuit::{CallSignal, CircuitCause, FailureKind, State};

/// The gate that every call passes.
#[derive(Clone)]
pub struct CircuitGate(Arc<Shared>);

struct Shared {
    circuit: Mutex<Circuit>,
    state: watch::Sender<State>,
    /// A waiting call may go, although the state is the same.
    room: Notify,
    /// The start of the time that [`Circuit`] counts.
    origin: Instant,
}

impl Default for CircuitGate {
    fn default() -> Self {
        let circuit = Circuit::default();
        let state = watch::Sender::new(circuit.state());
        let (room, origin) = (Notify::new(), now());
        Self(Arc::new(Shared { circuit: Mutex::new(circuit), state, room, origin }))
    }
}

impl CircuitGate {
    /// The state as it changes.
    pub fn states(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// The state now.
    pub fn state(&self) -> State {
        *self.0.state.borrow()
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
        let mut circuit: MutexGuard<'_, Circuit> =
            self.0.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        let had_room = circuit.has_room();
        let result = change(&mut circuit);
        let state = circuit.state();
        let changed = self.0.state.send_if_modified(|reported| std::mem::replace(reported, state) != state);
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

    /// Reports the result of the call.
    pub fn report(mut self, operation: Operation, signal: CallSignal) {
        if let Some(circuit_gate) = self.circuit_gate.take() {
            let now = circuit_gate.now();
            circuit_gate.change(|circuit| circuit.record_call(self.grant, operation, signal, now));
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
