//! Deliveries that were received while calls are held back and can only wait.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tracing::{debug, error};

use crate::amqp::confirm::PublishFailure;
use crate::amqp::session_end::SessionEnd;
use crate::runtime::circuit_gate::State;
use crate::runtime::service::{Done, HeldDelivery, JobEnd, Service};
use crate::runtime::worker::{
    NotHandedBack, ReceivedDelivery, Target, WorkerContext, return_once, return_until_accepted,
};
use crate::telemetry::metrics::Settlement;

impl Service {
    /// Starts the deliveries held back: all of them if the circuit is closed, one if it is half-open, to find out.
    pub(super) fn start_held_back(&mut self, state: State) {
        let count = match state {
            State::Closed => usize::MAX,
            State::HalfOpen { probing: false, .. } if self.lanes.held() == self.handing_back => 1,
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

    /// Hands back everything that is not in work yet. A delivery whose hand-back was not confirmed is held instead: its
    /// copies would multiply.
    pub(super) fn release_waiting(&mut self) {
        for held in self.clear_waiting() {
            let is_fresh = held.received.delivery.received_at() > Timestamp::now() - COPIED_HELD_MAX;
            match held.received.delivery.may_have_copy() && is_fresh && !held.cancel.is_cancelled() {
                true => self.held_back.push(held),
                false => self.start_hand_back(held),
            }
        }
    }

    /// Hands a delivery back, in a job of its own: a broker that is slow, or does not accept it, must not delay the loop.
    /// If it is not accepted, the delivery is held back again; while the service stops, it is repeated until accepted.
    pub(super) fn start_hand_back(&mut self, held: HeldDelivery) {
        self.lanes.push_unlaned();
        self.handing_back += 1;
        let (context, hand_backs, number) = (self.context.clone(), self.hand_backs.clone(), held.number);
        self.jobs.spawn(async move {
            // A few at a time: other publishes that go alone must not wait behind all of them.
            let _permit = hand_backs.acquire().await;
            let work = AssertUnwindSafe(hand_back(&context, held)).catch_unwind();
            let end = work.await.unwrap_or_else(|_| {
                error!("defect: a hand-back panicked");
                JobEnd::HandedBack(Err(SessionEnd::HandBackPanicked))
            });
            Done { end, number }
        });
    }

    /// Records the end of a hand-back, with why the broker did not accept it, if it did not.
    pub(super) fn finish_hand_back(&mut self, unaccepted: Option<PublishFailure>) {
        self.lanes.finish(None);
        self.handing_back -= 1;
        self.unaccepted = unaccepted;
    }

    /// Deliveries in hand that no consumer's prefetch counts: those of one that was stopped.
    pub(super) fn uncounted(&self) -> usize {
        self.handing_back + self.held_back.waiting.iter().filter(|held| held.kept).count()
    }

    /// The messages that the broker does not accept now.
    pub(super) fn unaccepted(&self) -> Vec<PublishFailure> {
        let mut unaccepted = self.context.publish_faults.longest_held();
        let hand_back =
            self.unaccepted.clone().filter(|_| self.handing_back > 0 || self.held_back.since.is_some());
        unaccepted.extend(hand_back.filter(|why| !unaccepted.contains(why)));
        unaccepted
    }
}

/// How long a delivery is held that may have a copy in the queue: less than the broker's consumer timeout.
const COPIED_HELD_MAX: SignedDuration = SignedDuration::from_mins(20);

/// Hands a delivery back.
async fn hand_back(context: &WorkerContext, held: HeldDelivery) -> JobEnd {
    let HeldDelivery { received, publisher, cancel, number, kept: _ } = held;
    let telemetry = (&*context.metrics, &context.publish_faults);
    let returned = if cancel.is_cancelled() {
        return_until_accepted(&publisher, received.delivery, Vec::new(), Target::Commands, telemetry)
            .await
            .map_err(NotHandedBack::Lost)
    } else {
        return_once(&publisher, received.delivery, Vec::new(), Target::Commands, telemetry.0).await
    };
    match returned {
        Ok(()) => JobEnd::HandedBack(Ok(Settlement::HandedBack)),
        Err(NotHandedBack::Lost(why)) => JobEnd::HandedBack(Err(why)),
        Err(NotHandedBack::NotAccepted(delivery, why)) => {
            debug!(%why, "delivery not handed back; it stays in hand");
            let received = ReceivedDelivery { delivery: *delivery, ..received };
            let held = HeldDelivery { received, publisher, cancel, number, kept: true };
            JobEnd::Kept(Box::new(held), why)
        }
    }
}
