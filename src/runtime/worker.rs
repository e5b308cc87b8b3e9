//! Processes one delivery, from its bytes to its settlement.
//!
//! A wait can be canceled, because the connection is gone or the service stops; a call, a publish and an
//! acknowledgement run to their end. A delivery is settled here, or lost with its connection, and then the broker
//! delivers it again.

mod brands;
mod ending;
mod hand_back;
mod invalid;
mod job;
mod read_progress;
mod received;
mod record;
mod suspended_by;
mod verdict;

pub use brands::Brands;
pub use hand_back::{NotHandedBack, Target, is_retry_pending, return_once, return_until_accepted};
pub use received::ReceivedDelivery;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::amqp::confirm::Published;
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::Publisher;
use crate::amqp::session_end::SessionEnd;
use crate::domain::redemption::Redemption;
use crate::policy::attempt::Limits;
use crate::policy::common_rejection::CommonRejection;
use crate::policy::retry_budget::RetryBudget;
use crate::runtime::circuit_gate::CircuitGate;
use crate::runtime::failpoints::{self, Failpoint};
use crate::runtime::permits::Permit;
use crate::runtime::publishing::{PublishContext, PublishFaults, PublishInterrupted};
use crate::runtime::rate_limiter::RateLimiter;
use crate::runtime::response_log::ResponseLog;
use crate::telemetry::masking::Short;
use crate::telemetry::metrics::{Metrics, Settlement};
use crate::telemetry::spans::{CommandSpan, ParentContext, Traces};
use crate::wechat::client::{Client, Prepared};
use crate::wire::command::Rejected;
use crate::wire::retry_message::DeadlineLimits;
use tokio_util::sync::CancellationToken;

use crate::runtime::worker::invalid::{PublishingContext, park_corrupt_retry_message, publish_invalid};
use crate::runtime::worker::job::CommandJob;
use crate::runtime::worker::read_progress::{Unprocessable, read_progress};

/// What all workers share.
pub struct WorkerContext {
    /// The payment API.
    pub client: Arc<Client>,
    /// Delays calls while they would fail.
    pub circuit_gate: CircuitGate,
    /// Spaces calls.
    pub rate_limiter: RateLimiter,
    /// Bounds retries by first attempts.
    pub budget: RetryBudget,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Waits and bounds of the attempts of one command.
    pub limits: Limits,
    /// The default and the maximum deadline.
    pub deadline_limits: DeadlineLimits,
    /// How long an event that the broker rejects is retried before its command is delayed.
    pub publish_retry_max: Duration,
    /// `source` of events.
    pub source: String,
    /// How brands responded lately.
    pub brands: Brands,
    /// Makes spans.
    pub traces: Traces,
    /// The name of the command queue.
    pub queue: String,
    /// Messages that the broker does not accept now.
    pub publish_faults: PublishFaults,
    /// Recent responses, by class.
    pub responses: ResponseLog,
    /// Recent rejections that name no cause.
    pub rejections: Mutex<CommonRejection>,
}

impl WorkerContext {
    /// How long an event that the broker rejects is retried. Without delay queues, until it is accepted.
    fn event_held_max(&self, limits: &Limits) -> Duration {
        if limits.delays.is_empty() { Duration::MAX } else { self.publish_retry_max }
    }

    fn publish_context<'a>(
        &'a self,
        publisher: &'a Publisher,
        cancel: &'a CancellationToken,
    ) -> PublishContext<'a> {
        PublishContext { publisher, metrics: &self.metrics, faults: &self.publish_faults, cancel }
    }
}

type Worked = Result<(Settlement, Delivery, Published), PublishInterrupted>;

/// Processes one delivery.
///
/// # Errors
/// Why the session that it belongs to must end. The delivery is lost with it, and the broker delivers it again.
pub async fn process_delivery(
    context: &WorkerContext,
    publisher: &Publisher,
    received: ReceivedDelivery,
    permit: &mut Permit,
    cancel: CancellationToken,
) -> Result<Settlement, SessionEnd> {
    let parent = ParentContext {
        traceparent: received.delivery.traceparent(),
        delayed_by: received.delivery.retry_trace(),
        arrival: received.arrival().as_str(),
    };
    let mut span = context.traces.start_command(&context.queue, parent, received.at);
    let settled = settle_delivery(context, publisher, received, &mut span, permit, cancel).await;
    let settlement = settled.as_ref().map_or(Settlement::Lost, |settlement| *settlement);
    span.set_attribute("redemption.settlement", settlement.as_str());
    if let Err(why) = &settled {
        span.record_failure(&why.to_string());
    }
    settled
}

async fn settle_delivery(
    context: &WorkerContext,
    publisher: &Publisher,
    received: ReceivedDelivery,
    span: &mut CommandSpan,
    permit: &mut Permit,
    cancel: CancellationToken,
) -> Result<Settlement, SessionEnd> {
    failpoints::reached(Failpoint::Taken);
    let target = if received.dead_lettered.is_some() { Target::Dead } else { Target::Commands };
    let result = process(context, publisher, received, span, permit, &cancel).await;
    match result {
        Ok((settlement, delivery, confirmed)) => {
            failpoints::reached(Failpoint::Acking);
            delivery.ack(confirmed).await?;
            Ok(settlement)
        }
        Err(PublishInterrupted::Canceled(delivery, headers)) => {
            let telemetry = (&*context.metrics, &context.publish_faults);
            return_until_accepted(publisher, *delivery, headers, target, telemetry).await?;
            Ok(Settlement::HandedBack)
        }
        Err(PublishInterrupted::HeldTooLong) => Err(SessionEnd::PublishCanceled),
        Err(PublishInterrupted::NotPublished(why)) => Err(why.into()),
    }
}

async fn process(
    context: &WorkerContext,
    publisher: &Publisher,
    received: ReceivedDelivery,
    span: &mut CommandSpan,
    permit: &mut Permit,
    cancel: &CancellationToken,
) -> Worked {
    let ReceivedDelivery {
        delivery,
        command,
        at,
        deadline: _,
        over_coupon_limit,
        calls_held_back,
        dead_lettered,
    } = received;
    let publishing = PublishingContext { context, publisher, cancel, dead_letter: dead_lettered.is_some() };
    // Rare futures are boxed, or every command would need as much memory as the rarest.
    let redemption = match command {
        Ok(redemption) => redemption,
        Err(rejected) => {
            return Box::pin(publish_invalid(publishing, delivery, &rejected, span, at)).await;
        }
    };
    name_command(span, &redemption);
    let prepared = Prepared::new(&redemption);
    let mut carried = match read_progress(context, &delivery, &prepared, at) {
        Ok(carried) => carried,
        Err(Unprocessable::Corrupt(fault)) => {
            let parking = park_corrupt_retry_message(publishing, delivery, &redemption, &fault, span, at);
            return Box::pin(parking).await;
        }
        Err(Unprocessable::Property(problem)) => {
            let rejected = Rejected::of_property(problem, &redemption);
            return Box::pin(publish_invalid(publishing, delivery, &rejected, span, at)).await;
        }
    };
    let only_query = dead_lettered
        .map(|reason| carried.progress.only_query(reason, dead_since(&delivery), &context.limits));
    let limits = only_query.as_ref().unwrap_or(&context.limits);
    let job = CommandJob {
        context,
        limits,
        publisher,
        redemption,
        prepared,
        delivery,
        carried,
        last_call_failed: false,
        failed_before: false,
        failed_at: None,
        calls_held_back,
        called: false,
        command_span: span,
        permit,
    };
    job.run(over_coupon_limit, cancel).await
}

fn name_command(span: &mut CommandSpan, redemption: &Redemption) {
    span.set_attribute("redemption.out_request_no", redemption.out_request_no.as_str().to_owned());
    span.set_attribute("redemption.coupon", Short(redemption.coupon_code.as_str()).to_string());
    span.set_attribute("redemption.brand_id", redemption.brand_id.as_str().to_owned());
}

/// When the broker dead-lettered a command. It gives whole seconds.
fn dead_since(delivery: &Delivery) -> Option<Timestamp> {
    let at = delivery.last_death()?.at?;
    at.checked_add(SignedDuration::from_secs(1)).ok()
}
