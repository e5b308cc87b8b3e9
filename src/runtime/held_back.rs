//! Deliveries that were received while calls are held back and can only wait.

use jiff::Timestamp;

use tracing::debug;

use crate::runtime::circuit_gate::State;
use crate::runtime::service::{Done, HeldDelivery, Service};
use crate::runtime::worker::{NotHandedBack, ReceivedDelivery, return_to_queue, return_until_accepted};
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
    pub(super) fn release_waiting(&mut self) {
        for held in self.clear_waiting() {
            self.start_hand_back(held);
        }
    }

    /// Hands a delivery back, in a job of its own: a broker that is slow, or does not accept it, must not delay the loop.
    /// What is not accepted is held back again, and while the service stops it is repeated until it is accepted.
    pub(super) fn start_hand_back(&mut self, held: HeldDelivery) {
        self.lanes.push_unlaned();
        let (context, turns) = (self.context.clone(), self.hand_backs.clone());
        self.jobs.spawn(async move {
            let HeldDelivery { received, publisher, cancel, number } = held;
            // A publish that waits for others would use up its time limit.
            let _turn = turns.acquire().await;
            let telemetry = (&*context.metrics, &context.publish_faults);
            let returned = if *cancel.borrow() {
                return_until_accepted(&publisher, received.delivery, Vec::new(), false, telemetry)
                    .await
                    .map_err(NotHandedBack::Lost)
            } else {
                return_to_queue(&publisher, received.delivery, Vec::new(), telemetry.0).await
            };
            let (settlement, trouble, kept) = match returned {
                Ok(()) => (Settlement::HandedBack, None, None),
                Err(NotHandedBack::Lost(why)) => (Settlement::Lost, Some(why), None),
                Err(NotHandedBack::NotAccepted(delivery, why)) => {
                    debug!(why = %why, "delivery not handed back; it stays in hand");
                    let received = ReceivedDelivery { delivery: *delivery, ..received };
                    (Settlement::HandedBack, None, Some(HeldDelivery { received, publisher, cancel, number }))
                }
            };
            Done { settlement, lane: None, trouble, kept, number }
        });
    }
}
