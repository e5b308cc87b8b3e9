//! Publishes the event of each command that the broker dead-lettered: what a query finds, or `unresolved`. Nothing is
//! redeemed here: such a command has failed many times, or it has expired.

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::amqp::connection::AmqpSettings;
use crate::amqp::dead_letter_queue::DeadLetters;
use crate::amqp::delivery::Delivery;
use crate::amqp::probe;
use crate::amqp::publisher::Publisher;
use crate::amqp::session_end::SessionEnd;
use crate::policy::prefetch_ramp::PrefetchRamp;
use crate::runtime::circuit_gate::State;
use crate::runtime::permits::Permits;
use crate::runtime::worker::{
    ReceivedDelivery, Target, WorkerContext, is_retry_pending, process_delivery, return_until_accepted,
};
use crate::telemetry::metrics::Settlement;

/// The result of a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// How many events were published.
    Published(usize),
    /// It ended early, for this reason.
    Failed(String),
    /// A right is missing; the command that grants it.
    Forbidden(String),
}

/// Dead letters in hand at once: each needs two queries, seconds apart, and the next ones have deadlines, too. A sweep
/// begins with one and doubles that as they are settled, because any of them may end the process.
const AT_ONCE: u16 = 16;

/// Processes dead letters until none is left, or until the service stops.
pub async fn sweep(context: Arc<WorkerContext>, settings: AmqpSettings, cancel: CancellationToken) -> Swept {
    let swept = sweep_all(&context, &settings, &cancel).await;
    context.metrics.queues.set_dead_letter_in_hand(false);
    match &swept {
        Swept::Published(0) => {}
        Swept::Published(count) => info!(count, "events of dead-lettered commands published"),
        Swept::Failed(error) | Swept::Forbidden(error) => {
            warn!(error, "dead-letter sweep failed; retrying")
        }
    }
    swept
}

/// The next dead letter, or why none can be read.
async fn next_letter(letters: &mut DeadLetters, settings: &AmqpSettings) -> Result<Option<Delivery>, Swept> {
    letters.next().await.map_err(|error| match error.is_refused() {
        true => {
            let granting = probe::set_permissions_command(settings, settings.mode);
            Swept::Forbidden(format!("{error}; grant the missing permissions: {granting}"))
        }
        false => Swept::Failed(error.to_string()),
    })
}

async fn sweep_all(context: &WorkerContext, settings: &AmqpSettings, cancel: &CancellationToken) -> Swept {
    let mut letters = match DeadLetters::open(settings).await {
        Ok(letters) => letters,
        Err(error) => return Swept::Failed(error.to_string()),
    };
    let publisher = &letters.publisher();
    // Permits of their own: while the broker does not accept events, commands may hold all others.
    let permits = Permits::new(AT_ONCE.into(), AT_ONCE.into());
    let mut ramp = PrefetchRamp::new(AT_ONCE);
    let mut in_hand = FuturesUnordered::new();
    let (mut count, mut failure) = (0, None);
    // Each once: a dead letter whose event is not accepted now is requeued behind the others.
    for _ in 0..context.metrics.queues.dead_letters() {
        if cancel.is_cancelled() || failure.is_some() {
            break;
        }
        let delivery = match next_letter(&mut letters, settings).await {
            Ok(Some(delivery)) => delivery,
            Ok(None) => break,
            Err(ended) => {
                failure = Some(ended);
                break;
            }
        };
        let now = Timestamp::now();
        if is_retry_pending(&delivery, now) {
            in_hand.push(async move { put_back(context, publisher, delivery).await }.boxed());
            continue;
        }
        let Some(mut permit) = permits.acquire() else { break };
        context.metrics.queues.set_dead_letter_in_hand(true);
        let mut taken = ReceivedDelivery::dead_letter(delivery, now);
        // While calls are held back, commands past their deadline still end, and the others must not delay them.
        taken.calls_held_back = context.circuit_gate.state() != State::Closed;
        in_hand.push(
            async move { process_delivery(context, publisher, taken, &mut permit, cancel.clone()).await }
                .boxed(),
        );
        while in_hand.len() >= usize::from(ramp.limit().unwrap_or(AT_ONCE))
            && let Some(settled) = in_hand.next().await
        {
            ramp.record_completed(1);
            failure = failure.or(count_settled(settled, &mut count));
        }
    }
    // Dead letters in hand are settled in any case: an event may be under way.
    while let Some(settled) = in_hand.next().await {
        failure = failure.or(count_settled(settled, &mut count));
    }
    if let Some(failure) = failure {
        return failure;
    }
    letters.close().await;
    Swept::Published(count)
}

/// Requeues a dead letter whose event is to be published later.
async fn put_back(
    context: &WorkerContext,
    publisher: &Publisher,
    delivery: Delivery,
) -> Result<Settlement, SessionEnd> {
    let telemetry = (&*context.metrics, &context.publish_faults);
    return_until_accepted(publisher, delivery, Vec::new(), Target::Dead, telemetry).await?;
    Ok(Settlement::HandedBack)
}

/// Counts a settled dead letter; returns the failure that ends the sweep, if there was one.
fn count_settled(settled: Result<Settlement, SessionEnd>, count: &mut usize) -> Option<Swept> {
    match settled {
        Ok(settlement) => {
            *count += usize::from(settlement != Settlement::HandedBack);
            None
        }
        Err(why) => Some(Swept::Failed(why.to_string())),
    }
}
