//! Watches the queues beside the consume loop: depths, dead letters, and objects that are missing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::amqp::confirm::{PublishFailure, PublishRejection};
use crate::amqp::connection::{AmqpSettings, NOT_FOUND};
use crate::amqp::session::Session;
use crate::amqp::topology::inspect::ObjectState;
use crate::amqp::topology::{self, Mode};
use crate::runtime::dead_letter_sweep::{self};
use crate::runtime::service::Service;
use crate::telemetry::metrics::Queue;

/// Interval between two attempts to restore the topology.
pub(super) const RESTORE_TOPOLOGY_EVERY: Duration = Duration::from_secs(1);

impl Service {
    /// Samples the depth of every queue in a task: a slow broker must not delay the loop.
    pub(super) fn sample_queue_depths(&self, session: &Arc<Session>, settings: &AmqpSettings) {
        let (metrics, topology, session) =
            (self.context.metrics.clone(), settings.topology.clone(), session.clone());
        tokio::spawn(async move {
            let names = &topology.names;
            // Delay queues last: after a missing one, nothing can be counted for a while.
            metrics.queues.set_queue_depth(Queue::Commands, session.messages(&names.commands).await);
            metrics.queues.set_queue_depth(Queue::Dead, session.messages(&names.dead).await);
            metrics.queues.set_queue_depth(Queue::Parked, session.messages(&names.parked).await);
            metrics.queues.set_queue_depth(Queue::Unrouted, session.messages(&names.unrouted).await);
            for wait in &topology.delays {
                let messages = session.messages(&topology.delay_queue(*wait)).await;
                metrics.queues.set_delay_queue_depth(&topology::delay_name(*wait), messages);
            }
        });
    }

    /// Starts a sweep that publishes the events of dead letters, if there are any.
    pub(super) fn sweep_dead_letters(&mut self, settings: &AmqpSettings, cancel: &CancellationToken) {
        if !self.sweeps.is_due() {
            return;
        }
        if self.context.metrics.queues.dead_letters() == 0 {
            self.sweeps.failure = None;
            return;
        }
        let (context, settings) = (self.context.clone(), settings.clone());
        self.sweeps.running = Some(tokio::spawn(dead_letter_sweep::sweep(context, settings, cancel.clone())));
    }

    /// Creates a queue, a binding or an exchange again if publishes show that it is gone, in a task with its own
    /// connection.
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
            PublishFailure::Rejected(PublishRejection { code, .. }) => *code == NOT_FOUND,
            _ => false,
        };
        if self.unaccepted().iter().any(gone) {
            self.restoring = Some((Instant::now(), tokio::spawn(restore(settings.clone()))));
        }
    }
}

/// Creates the missing objects of the topology.
pub(super) async fn restore(settings: AmqpSettings) {
    match topology::inspect::inspect(&settings, true).await {
        Ok((_, objects)) => {
            for (object, standing) in objects {
                match standing {
                    ObjectState::Created => debug!(%object, "missing object created"),
                    ObjectState::NotCreated(why) => {
                        warn!(%object, why, "missing object cannot be created")
                    }
                    _ => {}
                }
            }
        }
        Err(error) => warn!(%error, "message returned; the topology cannot be inspected"),
    }
}
