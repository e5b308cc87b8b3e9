//! Gives each command that the broker dead-lettered its event: what a query finds, or `unresolved`. Nothing is redeemed
//! here: such a command has failed many times, or its sender let it expire.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{info, warn};

use crate::breaker::State;
use crate::broker::Settings;
use crate::broker::dead_letters::DeadLetters;
use crate::broker::probe;
use crate::broker::publisher::Publisher;
use crate::metrics::Settling;
use crate::publishing::Cut;
use crate::slots::Slots;
use crate::worker::{Taken, Tools, is_to_wait, put_back_dead, work};

/// What a sweep came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// So many have their event now. None: what is left waits for something.
    Some(usize),
    /// It broke off, for this reason.
    Failed(String),
    /// A right is missing, with what grants it.
    Forbidden(String),
}

/// Takes one after the other until there are none left, or until it is time to stop.
pub async fn sweep(tools: Arc<Tools>, settings: Settings, publisher: Publisher, cut: Cut) -> Swept {
    let swept = sweep_all(&tools, &settings, &publisher, &cut).await;
    tools.metrics.dead_letter_in_hand(false);
    match &swept {
        Swept::Some(0) => {}
        Swept::Some(count) => info!(count, "dead-lettered commands have their events"),
        Swept::Failed(error) | Swept::Forbidden(error) => warn!(
            error,
            "dead-lettered commands could not be swept; the broker parks what cannot be read, without an event"
        ),
    }
    swept
}

async fn sweep_all(tools: &Tools, settings: &Settings, publisher: &Publisher, cut: &Cut) -> Swept {
    let mut letters = match DeadLetters::open(settings).await {
        Ok(letters) => letters,
        Err(error) => return Swept::Failed(error.to_string()),
    };
    // A permit of its own: while commands are held because the broker does not take their events, there may be no other.
    let permits = Slots::new(1);
    let mut count = 0;
    // Each once: what cannot be told now goes behind the others.
    for _ in 0..tools.metrics.dead_letters() {
        if *cut.borrow() {
            break;
        }
        let delivery = match letters.next().await {
            Ok(Some(delivery)) => delivery,
            Ok(None) => break,
            Err(error) if error.is_refused() => {
                let granting = probe::granting(settings, settings.mode);
                return Swept::Forbidden(format!("{error}; grant what is missing: {granting}"));
            }
            Err(error) => return Swept::Failed(error.to_string()),
        };
        let Some(mut permit) = permits.take() else { break };
        tools.metrics.dead_letter_in_hand(true);
        let now = Timestamp::now();
        if is_to_wait(&delivery, now) {
            if let Err(why) = put_back_dead(publisher, delivery, Vec::new()).await {
                return Swept::Failed(why);
            }
            continue;
        }
        let mut taken = Taken::dead_letter(delivery, now);
        // While calls are held back those past their deadline still end, and none of the others may keep them waiting.
        taken.hurried = tools.breaker.state() != State::Closed;
        let (settling, trouble) = work(tools, publisher, taken, &mut permit, cut.clone()).await;
        if let Some(trouble) = trouble {
            return Swept::Failed(trouble);
        }
        count += usize::from(settling != Settling::Released);
    }
    letters.close().await;
    Swept::Some(count)
}
