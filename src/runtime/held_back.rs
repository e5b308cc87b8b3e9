//! Deliveries that were received while calls are held back and can only wait.

use jiff::Timestamp;

use crate::amqp::publisher::Publisher;
use crate::runtime::circuit_gate::State;
use crate::runtime::consume_loop::hand_back;
use crate::runtime::service::{HeldDelivery, Service};
use crate::telemetry::metrics::Settlement;

impl Service {
    /// Starts the deliveries held back: all of them if the circuit is closed, one if it is half-open, to find out.
    pub(super) fn start_held_back(&mut self, state: State) {
        let count = match state {
            State::Closed => usize::MAX,
            State::HalfOpen { probing: false, .. } if self.lanes.held() == 0 => 1,
            State::HalfOpen { .. } | State::Open { .. } => 0,
        };
        if count == 0 || self.held_back.waiting.is_empty() {
            return;
        }
        let used: Vec<HeldDelivery> =
            self.held_back.waiting.drain(..count.min(self.held_back.waiting.len())).collect();
        used.into_iter().for_each(|held| self.admit(held));
        if self.held_back.waiting.is_empty() {
            self.held_back.clear();
        }
    }

    /// Starts what is past its deadline, whether it is held back or waits for others in its lane: each command has its
    /// event within a minute of its deadline. Past it, a command is only queried, so it need not wait for its lane.
    pub(super) fn end_late(&mut self) {
        let now = Timestamp::now();
        let is_late = |held: &HeldDelivery| held.received.deadline.is_some_and(|deadline| deadline <= now);
        let held_back: Vec<HeldDelivery> =
            self.held_back.waiting.extract_if(.., |held| is_late(held)).collect();
        for mut held in held_back {
            held.received.calls_held_back = true;
            self.admit(held);
        }
        for held in self.lanes.remove_waiting(is_late) {
            self.start_beside_lane(held);
        }
    }

    /// How many deliveries are held, in work or not.
    pub(super) fn held(&self) -> usize {
        self.lanes.held() + self.held_back.waiting.len()
    }

    /// Removes everything that is not in work yet.
    pub(super) fn clear_waiting(&mut self) -> Vec<HeldDelivery> {
        let mut waiting = self.lanes.clear();
        waiting.extend(self.held_back.clear());
        waiting
    }

    /// Hands back everything that is not in work yet.
    pub(super) async fn release_waiting(&mut self, publisher: &Publisher) -> Result<(), String> {
        let waiting = self.clear_waiting();
        let held = waiting.len();
        let handed_back = hand_back(publisher, waiting.into_iter().map(|held| held.received.delivery)).await;
        // If it fails, the broker delivers them again once the session has ended.
        let settlement = if handed_back.is_ok() { Settlement::HandedBack } else { Settlement::Lost };
        for _ in 0..held {
            self.context.metrics.record_settled(settlement);
        }
        self.set_in_flight();
        handed_back
    }
}
