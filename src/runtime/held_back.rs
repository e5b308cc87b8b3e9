//! Deliveries that were received while calls are held back and can only wait.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiff::Timestamp;

use crate::amqp::publisher::Publisher;
use crate::runtime::circuit_gate::State;
use crate::runtime::consume_loop::{HeldDelivery, hand_back};
use crate::runtime::supervisor::Service;
use crate::telemetry::metrics::Settlement;

/// How long what can only wait is kept in hand while calls are held back, where it fills the hands: behind it there may be
/// commands whose time is over. A command that was handed back costs a look more, so it is no shorter.
pub(super) const HELD_MAX: Duration = Duration::from_secs(15);

/// The same where it does not fill them: the broker takes away what is held for half an hour.
pub(super) const HELD_MAX_WITH_ROOM: Duration = Duration::from_secs(300);

/// What was taken while calls are held back, and can only wait for the end of that.
#[derive(Default)]
pub(super) struct HeldBack {
    pub(super) waiting: Vec<HeldDelivery>,
    /// When the first of these was taken.
    pub(super) since: Option<Instant>,
}

impl HeldBack {
    pub(super) fn push(&mut self, held: HeldDelivery) {
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push(held);
    }

    pub(super) fn clear(&mut self) -> Vec<HeldDelivery> {
        self.since = None;
        std::mem::take(&mut self.waiting)
    }

    /// Whether these have been in hand for long enough; `full` if there is room for nothing else.
    pub(super) fn is_due(&self, full: bool) -> bool {
        let held_max = if full { HELD_MAX } else { HELD_MAX_WITH_ROOM };
        self.since.is_some_and(|since| since.elapsed() >= held_max)
    }
}

impl Service {
    /// What waits for calls to be made again, where they are, or one of it, to find out.
    pub(super) fn start_held_back(&mut self, state: State) {
        let count = match state {
            State::Closed => usize::MAX,
            State::HalfOpen { probing: false, .. } if self.lanes.held() == 0 => 1,
            State::HalfOpen { .. } | State::Open { .. } => 0,
        };
        if count == 0 || self.sifted.waiting.is_empty() {
            return;
        }
        let used: Vec<HeldDelivery> =
            self.sifted.waiting.drain(..count.min(self.sifted.waiting.len())).collect();
        used.into_iter().for_each(|held| self.admit(held));
        if self.sifted.waiting.is_empty() {
            self.sifted.clear();
        }
    }

    /// What waits for calls to be made again does not wait past its deadline.
    pub(super) fn end_late_held_back(&mut self) {
        let now = Timestamp::now();
        let is_late = |held: &mut HeldDelivery| held.taken.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<HeldDelivery> = self.sifted.waiting.extract_if(.., is_late).collect();
        for mut held in late {
            held.taken.calls_held_back = true;
            self.admit(held);
        }
    }

    /// How many are in hand, worked on or not.
    pub(super) fn held(&self) -> usize {
        self.lanes.held() + self.sifted.waiting.len()
    }

    /// Takes out everything that nobody works on yet.
    pub(super) fn clear_waiting(&mut self) -> Vec<HeldDelivery> {
        let mut waiting = self.lanes.clear();
        waiting.extend(self.sifted.clear());
        waiting
    }

    /// Gives back what is held but not worked on.
    pub(super) async fn release_waiting(&mut self, publisher: &Publisher) -> Result<(), String> {
        let waiting = self.clear_waiting();
        let held = waiting.len();
        let given = hand_back(publisher, waiting.into_iter().map(|held| held.taken.delivery)).await;
        // What could not be given back comes again all the same, when the session has ended.
        let settling = if given.is_ok() { Settlement::HandedBack } else { Settlement::Lost };
        for _ in 0..held {
            self.context.metrics.record_settled(settling);
        }
        self.count();
        given
    }
}
