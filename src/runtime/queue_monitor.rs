//! Watches the queues beside the consume loop: depths, dead letters, and objects that are missing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::amqp::connection::AmqpSettings;
use crate::amqp::publisher::{PublishFailure, Rejection};
use crate::amqp::session::Session;
use crate::amqp::topology::{self, Mode, ObjectState};
use crate::runtime::dead_letter_sweep::{self, Swept};
use crate::runtime::publishing::CancelSignal;
use crate::runtime::supervisor::{NOT_FOUND, Service};
use crate::telemetry::metrics::Queue;

/// The first and the longest pause between two sweeps of dead letters that brought none its event. The longest leaves room
/// within a minute: what is past its deadline has its event by then.
pub(super) const SWEEP_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(40));

/// Time between two looks for what is missing on the broker.
pub(super) const RESTORE_TOPOLOGY_EVERY: Duration = Duration::from_secs(1);

/// Sweeps of dead letters.
#[derive(Default)]
pub(super) struct Sweeps {
    /// The one that is under way.
    pub(super) running: Option<JoinHandle<Swept>>,
    /// How many in a row brought none its event.
    pub(super) in_vain: u32,
    pub(super) not_before: Option<Instant>,
    /// Why the last one broke off.
    pub(super) failure: Option<String>,
}

impl Sweeps {
    /// Reads what a sweep came to once it has ended. Whether another one may begin.
    pub(super) fn is_due(&mut self) -> bool {
        if let Some(sweep) = &mut self.running {
            let Some(swept) = sweep.now_or_never() else { return false };
            self.running = None;
            self.end(swept.unwrap_or_else(|_| Swept::Failed("a sweep was broken off".to_owned())));
        }
        self.not_before.is_none_or(|at| at <= Instant::now())
    }

    pub(super) fn end(&mut self, swept: Swept) {
        let (first, longest) = SWEEP_AGAIN;
        self.in_vain = match swept {
            // A lost connection ends a sweep; the next one begins soon.
            Swept::Published(1..) | Swept::Failed(_) => 0,
            Swept::Published(0) | Swept::Forbidden(_) => self.in_vain.saturating_add(1),
        };
        self.failure = match swept {
            Swept::Published(_) => None,
            Swept::Failed(why) | Swept::Forbidden(why) => Some(why),
        };
        let pause = first.saturating_mul(1 << self.in_vain.saturating_sub(1).min(8)).min(longest);
        self.not_before = Some(Instant::now() + pause);
    }
}

impl Service {
    /// Looks at the depth of every queue, beside everything else: a slow broker must not hold up the loop.
    pub(super) fn sample_queue_depths(&self, session: &Arc<Session>, settings: &AmqpSettings) {
        let (metrics, topology, session) =
            (self.context.metrics.clone(), settings.topology.clone(), session.clone());
        tokio::spawn(async move {
            let names = &topology.names;
            // Delay queues last: after one that is missing nothing can be counted for a while.
            metrics.set_queue_depth(Queue::Commands, session.messages(&names.commands).await);
            metrics.set_queue_depth(Queue::Dead, session.messages(&names.dead).await);
            metrics.set_queue_depth(Queue::Parked, session.messages(&names.parked).await);
            metrics.set_queue_depth(Queue::Unrouted, session.messages(&names.unrouted).await);
            for wait in &topology.delays {
                let messages = session.messages(&topology.delay_queue(*wait)).await;
                metrics.set_delay_queue_depth(&topology::delay_name(*wait), messages);
            }
        });
    }

    /// Publishes the events of what the broker dead-lettered, beside everything else, when some were counted.
    pub(super) fn sweep_dead_letters(
        &mut self,
        settings: &AmqpSettings,
        session: &Session,
        cancel: &CancelSignal,
    ) {
        if !self.sweeps.is_due() {
            return;
        }
        if self.context.metrics.dead_letters() == 0 {
            self.sweeps.failure = None;
            return;
        }
        let (context, settings) = (self.context.clone(), settings.clone());
        let (publisher, cancel) = (session.publisher().clone(), cancel.clone());
        self.sweeps.running =
            Some(tokio::spawn(dead_letter_sweep::sweep(context, settings, publisher, cancel)));
    }

    /// A queue, a binding or an exchange that publishes show to be gone is made again beside everything else, on a
    /// connection of its own.
    pub(super) fn restore_topology(&mut self, settings: &AmqpSettings) {
        let due = match &self.restoring {
            Some((since, task)) => task.is_finished() && since.elapsed() >= RESTORE_TOPOLOGY_EVERY,
            None => true,
        };
        if !due || settings.mode != Mode::Create {
            return;
        }
        let gone = |why: &PublishFailure| match why {
            PublishFailure::Returned(_) => true,
            PublishFailure::Rejected(Rejection { code, .. }) => *code == NOT_FOUND,
            _ => false,
        };
        if self.context.publish_faults.longest_held().iter().any(gone) {
            self.restoring = Some((Instant::now(), tokio::spawn(restore(settings.clone()))));
        }
    }
}

/// Makes what is missing on the broker, and says so.
pub(super) async fn restore(settings: AmqpSettings) {
    match topology::inspect(&settings, true).await {
        Ok((_, objects)) => {
            for (object, standing) in objects {
                match standing {
                    ObjectState::Created => debug!(%object, "made, where it was missing"),
                    ObjectState::NotCreated(why) => {
                        warn!(%object, why, "missing on the broker, and cannot be made")
                    }
                    _ => {}
                }
            }
        }
        Err(error) => warn!(%error, "a message was returned; what is missing could not be looked for"),
    }
}
