//! Gives each command that the broker dead-lettered its event: what a query finds, or `unresolved`. Nothing is redeemed
//! here: such a command has failed many times, or its sender let it expire.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tracing::{info, warn};

use crate::amqp::connection::AmqpSettings;
use crate::amqp::dead_letter_queue::DeadLetters;
use crate::amqp::delivery::Delivery;
use crate::amqp::probe;
use crate::amqp::publisher::Publisher;
use crate::runtime::circuit_gate::State;
use crate::runtime::permits::Permits;
use crate::runtime::publishing::CancelSignal;
use crate::runtime::worker::{
    ReceivedDelivery, WorkerContext, is_retry_pending, process_delivery, return_dead_letter_to_queue,
};
use crate::telemetry::metrics::Settlement;

/// What a sweep came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// This many have their event now. None: what is left waits for something.
    Published(usize),
    /// It broke off, for this reason.
    Failed(String),
    /// A right is missing, with what grants it.
    Forbidden(String),
}

/// Dead letters in hand at once: each takes two queries, seconds apart, and others behind it have deadlines, too.
const AT_ONCE: usize = 16;

/// Takes them until there are none left, or until it is time to stop.
pub async fn sweep(
    context: Arc<WorkerContext>,
    settings: AmqpSettings,
    publisher: Publisher,
    cancel: CancelSignal,
) -> Swept {
    let swept = sweep_all(&context, &settings, &publisher, &cancel).await;
    context.metrics.dead_letter_in_hand(false);
    match &swept {
        Swept::Published(0) => {}
        Swept::Published(count) => info!(count, "dead-lettered commands have their events"),
        Swept::Failed(error) | Swept::Forbidden(error) => {
            warn!(error, "dead-lettered commands could not be swept; retrying")
        }
    }
    swept
}

/// The next dead letter, or why none can be read.
async fn next_letter(letters: &mut DeadLetters, settings: &AmqpSettings) -> Result<Option<Delivery>, Swept> {
    letters.next().await.map_err(|error| match error.is_refused() {
        true => {
            let granting = probe::granting(settings, settings.mode);
            Swept::Forbidden(format!("{error}; grant what is missing: {granting}"))
        }
        false => Swept::Failed(error.to_string()),
    })
}

async fn sweep_all(
    context: &WorkerContext,
    settings: &AmqpSettings,
    publisher: &Publisher,
    cancel: &CancelSignal,
) -> Swept {
    let mut letters = match DeadLetters::open(settings).await {
        Ok(letters) => letters,
        Err(error) => return Swept::Failed(error.to_string()),
    };
    // Permits of their own: while commands are held because the broker does not take their events, there may be no other.
    let permits = Permits::new(AT_ONCE);
    let mut in_hand = FuturesUnordered::new();
    let (mut count, mut failure) = (0, None);
    // Each once: what cannot be reported now goes behind the others.
    for _ in 0..context.metrics.dead_letters() {
        if *cancel.borrow() || failure.is_some() {
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
            if let Err(why) = return_dead_letter_to_queue(publisher, delivery, Vec::new()).await {
                failure = Some(Swept::Failed(why));
            }
            continue;
        }
        let Some(mut permit) = permits.acquire() else { break };
        context.metrics.dead_letter_in_hand(true);
        let mut taken = ReceivedDelivery::dead_letter(delivery, now);
        // While calls are held back those past their deadline still end, and none of the others may keep them waiting.
        taken.calls_held_back = context.circuit_gate.state() != State::Closed;
        in_hand.push(async move {
            process_delivery(context, publisher, taken, &mut permit, cancel.clone()).await
        });
        if in_hand.len() == AT_ONCE
            && let Some(settled) = in_hand.next().await
        {
            failure = failure.or(count_settled(settled, &mut count));
        }
    }
    // What is in hand is settled in any case: an event may be on its way.
    while let Some(settled) = in_hand.next().await {
        failure = failure.or(count_settled(settled, &mut count));
    }
    if let Some(failure) = failure {
        return failure;
    }
    letters.close().await;
    Swept::Published(count)
}

/// Counts one that was settled; gives the failure that ends the sweep, if it met one.
fn count_settled((settling, trouble): (Settlement, Option<String>), count: &mut usize) -> Option<Swept> {
    *count += usize::from(settling != Settlement::HandedBack && trouble.is_none());
    trouble.map(Swept::Failed)
}
