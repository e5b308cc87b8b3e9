//! Works one delivery, from the bytes to the settlement. The one place where steps touch the world.
//!
//! Waiting can be cut short (the connection is gone, or it is time to stop); a call, a publish and an
//! acknowledgement run to their end. Nothing leaves this function without the delivery being settled or lost with
//! its connection, and then the broker delivers it again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::amqp::delivery::{DEAD_AGAIN, DEAD_AT, DEAD_REASON, DEAD_TRIES, DELAYS_PASSED, Delivery};
use crate::amqp::publisher::{PARKED_REASON, Published, Publisher};
use crate::amqp::topology::delay_name;
use crate::domain::evidence::Evidence;
use crate::domain::evidence::Operation;
use crate::domain::outcome::{Outcome, OutcomeKind};
use crate::domain::reason::Reason;
use crate::domain::redemption::Redemption;
use crate::policy::attempt::{EffectState, Limits, Progress, Step};
use crate::policy::brand_access::{BrandAccess, Denial};
use crate::policy::circuit::ResponseClass;
use crate::policy::classify::{self, Authenticity, CallResult, NotAccepted, UnknownCause, Verdict};
use crate::policy::common_rejection::{self, CommonRejection, Rejection};
use crate::policy::host_choice::Host;
use crate::runtime::circuit_gate::{CallSignal, CircuitGate, State};
use crate::runtime::failpoints::{self, Failpoint};
use crate::runtime::permits::Permit;
use crate::runtime::publishing::{
    CancelSignal, Outgoing, PublishContext, PublishFaults, PublishInterrupted, publish, publish_within,
};
use crate::runtime::rate_limiter::{Priority, RateLimiter, RetryBudget};
use crate::runtime::response_log::ResponseLog;
use crate::telemetry::log::{Masked, Short};
use crate::telemetry::metrics::{Arrival, DelayReason, Message, Metrics, Settlement};
use crate::telemetry::spans::{ChildSpan, CommandSpan, ParentContext, Traces};
use crate::telemetry::untrusted::Untrusted;
use crate::wechat::client::{CallOutcome, Client, Prepared, hex};
use crate::wire::command::{self, Fault, PartialCommand, Rejected};
use crate::wire::handed_back::{HANDED_BACK, HandedBack};
use crate::wire::result_event::{self, Event, EventContext};
use crate::wire::retry_message::{self, CorruptRetryMessage, DeadlineLimits, Restored};

/// What every worker shares.
pub struct WorkerContext {
    /// The payment API.
    pub client: Arc<Client>,
    /// Holds calls back when all would fail.
    pub circuit_gate: CircuitGate,
    /// Spaces calls.
    pub rate_limiter: RateLimiter,
    /// Bounds retries.
    pub budget: RetryBudget,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How long and how often.
    pub limits: Limits,
    /// How far deadlines may lie ahead.
    pub deadline_limits: DeadlineLimits,
    /// How long the event of a command is held that the broker refuses.
    pub publish_retry_max: Duration,
    /// `source` of events.
    pub source: String,
    /// How brands answered lately.
    pub brands: Brands,
    /// Makes spans.
    pub traces: Traces,
    /// The name of the queue that commands are taken from.
    pub queue: String,
    /// What the broker does not take now.
    pub publish_faults: PublishFaults,
    /// The answer that last stopped us for a fault of our own.
    pub stopped_by: Mutex<SuspendedBy>,
    /// What came of calls lately, by class.
    pub responses: ResponseLog,
    /// Rejections of late that name no cause.
    pub rejections: Mutex<CommonRejection>,
}

impl WorkerContext {
    /// How long the event of one command is held that the broker does not take. Where nothing can be delayed, it is held
    /// for as long as it takes.
    fn event_held_max(&self, limits: &Limits) -> Duration {
        if limits.delays.is_empty() { Duration::MAX } else { self.publish_retry_max }
    }
}

/// What an answer said that stopped us, for reasons in words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SuspendedBy {
    /// `code` and `message`, as far as there were any: visible, without an openid, 200 bytes at most.
    pub said: String,
    /// The provider's clock less ours, in seconds, by this very answer.
    pub clock_skew: Option<f64>,
}

/// The most of the provider's own words in a reason, in bytes.
const SAID_BYTES_MAX: usize = 200;

impl SuspendedBy {
    fn new(heard: &CallOutcome) -> Self {
        let answer = match &heard.reply {
            CallResult::Response(answer) => Some(answer),
            CallResult::NotSent(_) | CallResult::NoResponse(_) => None,
        };
        let words = answer.map(|answer| [answer.code.as_deref(), answer.message.as_deref()]);
        let words: Vec<_> = words.into_iter().flatten().flatten().collect();
        let mut said = Untrusted(&words.join(": ")).to_string();
        said.truncate(said.floor_char_boundary(SAID_BYTES_MAX));
        Self { said, clock_skew: heard.clock_skew.map(|skew| skew.as_secs_f64()) }
    }
}

/// A delivery, read, on its way to be worked on.
#[derive(Debug)]
pub struct ReceivedDelivery {
    /// What arrived.
    pub delivery: Delivery,
    /// What it says.
    pub command: Result<Redemption, Box<Rejected>>,
    /// When it was taken.
    pub at: Timestamp,
    /// Whether too many commands of its coupon are held already. Then it is put away at once.
    pub over_coupon_limit: bool,
    /// Whether calls are held back for long: then it takes the call that can be made now, or none, and is delayed.
    pub calls_held_back: bool,
    /// Why the broker dead-lettered it, where it did: then it is only asked about.
    pub dead_lettered: Option<Reason>,
}

impl ReceivedDelivery {
    /// Reads a delivery.
    pub fn new(delivery: Delivery, at: Timestamp) -> Self {
        let command = match (command::decode(delivery.body()), delivery.undecodable_property()) {
            // Its headers may have held what changes its meaning, such as those of a retry message.
            (decoded, Some((name, problem))) => {
                let partial =
                    decoded.as_ref().map_or_else(|rejected| rejected.partial.clone(), PartialCommand::from);
                let problem = format!("its property {name} {problem}; send text in UTF-8 and flat headers");
                let faults = vec![Fault { pointer: String::new(), problem }];
                Err(Box::new(Rejected { faults, partial }))
            }
            (decoded, None) => decoded.map_err(|rejected| match delivery.content_encoding() {
                None => rejected,
                // What it says is not wrong, it cannot be read.
                Some(encoding) => {
                    let problem = format!(
                        "its content_encoding is {:?}; send JSON in UTF-8, neither compressed nor encoded",
                        encoding.chars().take(32).collect::<String>()
                    );
                    let faults = vec![Fault { pointer: String::new(), problem }];
                    Box::new(Rejected { faults, partial: PartialCommand::default() })
                }
            }),
        };
        Self { delivery, command, at, over_coupon_limit: false, calls_held_back: false, dead_lettered: None }
    }

    /// Reads a delivery that the broker dead-lettered.
    pub fn dead_letter(delivery: Delivery, at: Timestamp) -> Self {
        let reason = match delivery.last_death().map(|death| death.reason) {
            Some("delivery_limit") => Reason::DeliveryLimit,
            Some("expired") => Reason::MessageExpired,
            _ => Reason::DeadLettered,
        };
        Self { dead_lettered: Some(reason), ..Self::new(delivery, at) }
    }

    /// The coupon whose commands go one at a time.
    pub fn lane(&self) -> Option<&str> {
        self.command.as_ref().ok().map(|redemption| redemption.coupon_code.as_str())
    }

    /// When its sender wants an end, where that is said and can be read.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.delivery.header(retry_message::DEADLINE)?.parse().ok()
    }

    /// Whether nothing but a call can be due for it is a command, and its deadline is far, or not set before somebody
    /// works on it. With delay queues (`delays`) what has a deadline waits there for it.
    pub fn may_wait_for_calls(&self, delays: bool) -> bool {
        if self.command.is_err() {
            return false;
        }
        if delays {
            return self.arrival() != Arrival::Retry && !self.delivery.has_header(retry_message::DEADLINE);
        }
        self.deadline().is_none_or(|deadline| Timestamp::now() < deadline)
    }

    /// How it came.
    pub fn arrival(&self) -> Arrival {
        if retry_message::is_retry_message(|name| self.delivery.has_header(name)) {
            Arrival::Retry
        } else if self.delivery.redelivered() {
            Arrival::Redelivered
        } else {
            Arrival::First
        }
    }
}

/// Works one delivery to its settlement. An error text ends the session that it belongs to.
pub async fn process_delivery(
    context: &WorkerContext,
    publisher: &Publisher,
    taken: ReceivedDelivery,
    permit: &mut Permit,
    cut: CancelSignal,
) -> (Settlement, Option<String>) {
    let came = ParentContext {
        traceparent: taken.delivery.traceparent(),
        left_by: taken.delivery.retry_trace(),
        arrival: taken.arrival().as_str(),
    };
    let mut stay = context.traces.start_command(&context.queue, came, taken.at);
    let (settling, trouble) = settle_delivery(context, publisher, taken, &mut stay, permit, cut).await;
    stay.set_attribute("redemption.settlement", settling.as_str());
    if let Some(trouble) = &trouble {
        stay.failed(trouble);
    }
    (settling, trouble)
}

async fn settle_delivery(
    context: &WorkerContext,
    publisher: &Publisher,
    taken: ReceivedDelivery,
    stay: &mut CommandSpan,
    permit: &mut Permit,
    mut cut: CancelSignal,
) -> (Settlement, Option<String>) {
    let ReceivedDelivery {
        delivery,
        command,
        at,
        over_coupon_limit: crowded,
        calls_held_back: hurried,
        dead_lettered,
    } = taken;
    failpoints::reached(Failpoint::Taken);
    let means = PublishingContext { context, publisher, cut: &cut, dead_letter: dead_lettered.is_some() };
    let worked = match command {
        // What is rare stands in boxes of its own, or every command would take as much memory as the rarest.
        Err(rejected) => Box::pin(publish_invalid(means, delivery, &rejected, stay, at)).await,
        Ok(redemption) => {
            stay.set_attribute("redemption.out_request_no", redemption.out_request_no.as_str().to_owned());
            stay.set_attribute("redemption.coupon", Short(redemption.coupon_code.as_str()).to_string());
            stay.set_attribute("redemption.brand_id", redemption.brand_id.as_str().to_owned());
            let prepared = Prepared::new(&redemption);
            match read_progress(context, &delivery, &prepared, at) {
                Err(CannotStart::Damage(damage)) => {
                    Box::pin(park_corrupt_retry_message(means, delivery, &redemption, &damage, stay, at))
                        .await
                }
                Err(unstartable @ (CannotStart::Deadline | CannotStart::ReplyTo)) => {
                    let problem = match unstartable {
                        CannotStart::ReplyTo => format!(
                            "its property reply_to is a key of the service itself; it must not begin with {}",
                            result_event::RESERVED_KEYS.map(|word| format!("{word}.")).join(", ")
                        ),
                        _ => format!("its header {} is not an RFC 3339 time", retry_message::DEADLINE),
                    };
                    let faults = vec![Fault { pointer: String::new(), problem }];
                    let rejected = Rejected { faults, partial: PartialCommand::from(&redemption) };
                    Box::pin(publish_invalid(means, delivery, &rejected, stay, at)).await
                }
                Ok(mut carried) => {
                    let (troubled, failed_at) = (false, None);
                    let limits = match dead_lettered {
                        None => &context.limits,
                        Some(reason) => {
                            // The broker tells whole seconds.
                            let ended = delivery.last_death().and_then(|death| death.at);
                            let ended =
                                ended.and_then(|at| at.checked_add(SignedDuration::from_secs(1)).ok());
                            &carried.progress.only_query(reason, ended, &context.limits)
                        }
                    };
                    let mut job = CommandJob {
                        context,
                        limits,
                        publisher,
                        redemption,
                        prepared,
                        delivery,
                        carried,
                        troubled,
                        failed_at,
                        calls_held_back: hurried,
                        called: false,
                        stay,
                        permit,
                    };
                    match crowded && job.carried.progress.delay_unaged(job.limits).is_some() {
                        true => Box::pin(job.delay(0, DelayReason::PerCouponLimit, &cut)).await,
                        false => job.run(&mut cut).await,
                    }
                }
            }
        }
    };
    match worked {
        Ok((settling, delivery, proof)) => {
            failpoints::reached(Failpoint::Acking);
            match delivery.ack(proof).await {
                Ok(()) => (settling, None),
                Err(unsettled) => (Settlement::Lost, Some(unsettled.to_string())),
            }
        }
        Err(PublishInterrupted::Canceled(delivery, headers)) => {
            let handed_back = match dead_lettered {
                // Never back among the commands.
                Some(_) => return_dead_letter_to_queue(publisher, *delivery, headers).await,
                None => return_to_queue(publisher, *delivery, headers).await,
            };
            match handed_back {
                Ok(()) => (Settlement::HandedBack, None),
                Err(why) => (Settlement::Lost, Some(why)),
            }
        }
        Err(why @ (PublishInterrupted::HeldTooLong | PublishInterrupted::NotPublished(_))) => {
            (Settlement::Lost, Some(why.to_string()))
        }
    }
}

/// Hands a delivery back without a count against it: a new message in the queue, confirmed, and then the acknowledgement.
///
/// # Errors
/// In words, where the broker was not reached: it delivers again what it still takes for ours.
pub async fn return_to_queue(
    publisher: &Publisher,
    delivery: Delivery,
    headers: Vec<(&'static str, String)>,
) -> Result<(), String> {
    let proof = publisher.publish_requeued(&delivery, headers).await.map_err(|why| why.to_string())?;
    delivery.ack(proof).await.map_err(|unsettled| unsettled.to_string())
}

/// Puts a dead letter back without a count against it, `headers` beside what tells why it is one.
///
/// # Errors
/// In words, where the broker was not reached: it delivers again what it still takes for ours.
pub async fn return_dead_letter_to_queue(
    publisher: &Publisher,
    delivery: Delivery,
    mut headers: Vec<(&'static str, String)>,
) -> Result<(), String> {
    // Of a command's progress nothing is carried: it is asked about, and no more.
    headers.retain(|(name, _)| [DEAD_TRIES, DEAD_AGAIN].contains(name));
    if let Some(death) = delivery.last_death() {
        headers.push((DEAD_REASON, death.reason.to_owned()));
        headers.extend(death.at.map(|at| (DEAD_AT, at.to_string())));
    }
    let proof =
        publisher.publish_requeued_dead_letter(&delivery, headers).await.map_err(|why| why.to_string())?;
    delivery.ack(proof).await.map_err(|unsettled| unsettled.to_string())
}

type Worked = Result<(Settlement, Delivery, Published), PublishInterrupted>;

/// Why a readable command cannot be worked on.
enum CannotStart {
    /// It is a retry message whose headers make no sense.
    Damage(CorruptRetryMessage),
    /// Its sender set a deadline that cannot be read.
    Deadline,
    /// Its sender asks for the event under a key of the service itself.
    ReplyTo,
}

/// Where this delivery stands: afresh, redelivered, or back from a delay queue.
fn read_progress(
    context: &WorkerContext,
    delivery: &Delivery,
    prepared: &Prepared,
    now: Timestamp,
) -> Result<Restored, CannotStart> {
    // What was parked, by us or by the broker, comes back without the marks of a redelivery.
    let parked_before = ["x-death", "x-first-death-reason", PARKED_REASON];
    let again = delivery.redelivered();
    if retry_message::is_retry_message(|name| delivery.has_header(name)) {
        // Those that may be absent; all others are missed where they are no text.
        let no_text = |name: &&str| delivery.header(name).is_none() && delivery.has_header(name);
        if let Some(name) = retry_message::OPTIONAL.into_iter().find(no_text) {
            return Err(CannotStart::Damage(CorruptRetryMessage::Unreadable(name)));
        }
        let header = |name| delivery.header(name);
        let mut carried = retry_message::read(header, prepared.body_sha256(), now, context.deadline_limits)
            .map_err(CannotStart::Damage)?;
        if let Some((delay, at)) = delivery.delay_due() {
            let late = now.duration_since(at).max(SignedDuration::ZERO);
            // Whoever may publish can write such a time.
            if late <= context.deadline_limits.furthest {
                context.metrics.record_delay_lateness(delay, late.unsigned_abs());
            }
        }
        if again {
            carried.progress.mark_redelivered();
        }
        return Ok(carried);
    }
    if delivery.names_reserved_reply_to() {
        return Err(CannotStart::ReplyTo);
    }
    let text = delivery.header(retry_message::DEADLINE);
    if text.is_none() && delivery.has_header(retry_message::DEADLINE) {
        return Err(CannotStart::Deadline);
    }
    let again = again || parked_before.into_iter().any(|name| delivery.has_header(name));
    let progress = if delivery.has_header(HANDED_BACK) {
        let words = delivery.header(HANDED_BACK).unwrap_or_default();
        let handed_back = HandedBack::from_words(words, now).map_err(CannotStart::Damage)?;
        handed_back.progress(text, again, context.deadline_limits)
    } else {
        retry_message::deadline(text, now, context.deadline_limits)
            .map(|deadline| Progress::new(now, deadline, again))
    };
    let progress = progress.map_err(|_| CannotStart::Deadline)?;
    Ok(Restored { progress, evidence: Vec::new() })
}

/// What something is published with, and what a worker shares.
#[derive(Clone, Copy)]
struct PublishingContext<'a> {
    context: &'a WorkerContext,
    publisher: &'a Publisher,
    cut: &'a CancelSignal,
    /// Whether it is about a dead letter, which never goes among the commands again.
    dead_letter: bool,
}

impl<'a> PublishingContext<'a> {
    fn publishing(self) -> PublishContext<'a> {
        let Self { context, publisher, cut, dead_letter: _ } = self;
        PublishContext { publisher, metrics: &context.metrics, faults: &context.publish_faults, cut }
    }
}

/// Tells what is wrong with a command that is none, and parks its bytes.
async fn publish_invalid(
    means: PublishingContext<'_>,
    delivery: Delivery,
    rejected: &Rejected,
    stay: &mut CommandSpan,
    at: Timestamp,
) -> Worked {
    let PublishingContext { context, .. } = means;
    let digest = hex(&Sha256::digest(delivery.body()));
    let leg = stay.start_publish(Message::Event.as_str());
    let event = result_event::encode_invalid(rejected, &digest, event_context(context, &leg, at, 0, &[]));
    let faults = rejected.faults.iter().map(|fault| format!("{}: {}", Masked(&fault.pointer), fault.problem));
    let faults = faults.collect::<Vec<_>>().join("; ");
    let PartialCommand { out_request_no, coupon_code, openid, brand_id, .. } = &rejected.partial;
    let parking = Parking { event: &event, reason: Reason::InvalidCommand, at };
    let proof = match publish_and_park(means, &delivery, parking, stay, leg).await {
        Ok(Some(proof)) => proof,
        Ok(None) => return delay_unreadable(means, delivery, stay).await,
        Err(why) => return Err(why.into_worked(delivery, Vec::new())),
    };
    context.metrics.record_outcome(&Outcome::Invalid, None);
    stay.set_attribute("redemption.outcome", OutcomeKind::Invalid.as_str());
    warn!(
        outcome = OutcomeKind::Invalid.as_str(),
        reason = Reason::InvalidCommand.as_str(),
        out_request_no = out_request_no.as_ref().map(|number| number.as_str()),
        coupon = coupon_code.as_ref().map(|code| Short(code.as_str())).map(tracing::field::display),
        openid = openid.as_ref().map(|openid| Short(openid.as_str())).map(tracing::field::display),
        brand_id = brand_id.as_ref().map(|brand| brand.as_str()),
        attempts = 0,
        trace_id = stay.trace_id(),
        faults,
        "invalid: not a command; parked"
    );
    Ok((Settlement::Finished, delivery, proof))
}

/// What is told of a command that is set aside.
struct Parking<'a> {
    event: &'a Event,
    reason: Reason,
    at: Timestamp,
}

/// A retry message whose headers make no sense: nobody knows what was asked before, so nothing is asked now.
async fn park_corrupt_retry_message(
    means: PublishingContext<'_>,
    delivery: Delivery,
    redemption: &Redemption,
    damage: &CorruptRetryMessage,
    stay: &mut CommandSpan,
    at: Timestamp,
) -> Worked {
    let PublishingContext { context, .. } = means;
    let digest = hex(&Sha256::digest(delivery.body()));
    let leg = stay.start_publish(Message::Event.as_str());
    let told = event_context(context, &leg, at, 0, &[]);
    let event = result_event::encode_corrupt_retry_message(redemption, &damage.to_string(), &digest, told);
    let parking = Parking { event: &event, reason: Reason::CorruptRetryMessage, at };
    let proof = match publish_and_park(means, &delivery, parking, stay, leg).await {
        Ok(Some(proof)) => proof,
        Ok(None) => return delay_unreadable(means, delivery, stay).await,
        Err(why) => return Err(why.into_worked(delivery, Vec::new())),
    };
    let outcome = Outcome::Unresolved { reason: Reason::CorruptRetryMessage, coupon: None, rejection: None };
    context.metrics.record_outcome(&outcome, None);
    stay.set_attribute("redemption.outcome", outcome.kind().as_str());
    error!(
        outcome = outcome.kind().as_str(),
        reason = Reason::CorruptRetryMessage.as_str(),
        out_request_no = %redemption.out_request_no,
        coupon = %Short(redemption.coupon_code.as_str()),
        openid = %Short(redemption.openid.as_str()),
        brand_id = %redemption.brand_id,
        trace_id = stay.trace_id(),
        %damage,
        "unresolved: damaged copy; parked"
    );
    Ok((Settlement::Finished, delivery, proof))
}

async fn publish_and_park(
    means: PublishingContext<'_>,
    delivery: &Delivery,
    Parking { event, reason, at }: Parking<'_>,
    stay: &CommandSpan,
    leg: ChildSpan,
) -> Result<Option<Published>, PublishInterrupted> {
    let context = means.context;
    let (context, held_max) = (means.publishing(), context.event_held_max(&context.limits));
    let published = publish_within(context, delivery, Outgoing::Event(event), leg, held_max).await?;
    let Some(published) = published else { return Ok(None) };
    let leg = stay.start_publish(Message::Parked.as_str());
    let parked = publish(context, delivery, Outgoing::Parked(reason, at, &[]), leg).await?;
    Ok(Some(published.join(parked)))
}

/// Delays a message that is no command, or whose headers make no sense, because the broker does not take its event: bytes
/// and headers as they came, one delay queue further each time.
async fn delay_unreadable(means: PublishingContext<'_>, delivery: Delivery, stay: &CommandSpan) -> Worked {
    let delays = &means.context.limits.delays;
    let passed = delivery.delays_passed();
    if means.dead_letter {
        let headers = if *means.cut.borrow() { Vec::new() } else { dead_letter_retry_headers(&delivery) };
        return Err(PublishInterrupted::Canceled(Box::new(delivery), headers));
    }
    let Some(wait) = delays.get(passed.min(delays.len().saturating_sub(1))).copied() else {
        return Err(PublishInterrupted::Canceled(Box::new(delivery), Vec::new()));
    };
    let headers = [(DELAYS_PASSED, passed.saturating_add(1).to_string())];
    let leg = stay.start_publish(Message::Retry.as_str());
    let published = publish(means.publishing(), &delivery, Outgoing::Retry(wait, &headers), leg).await;
    let proof = match published {
        Ok(proof) => proof,
        Err(why) => return Err(why.into_worked(delivery, Vec::new())),
    };
    means.context.metrics.record_delayed(&delay_name(wait), DelayReason::EventRejected);
    warn!(wait_s = wait.as_secs(), trace_id = stay.trace_id(), "event not accepted; delivery delayed");
    Ok((Settlement::Delayed, delivery, proof))
}

fn event_context<'a>(
    context: &'a WorkerContext,
    leg: &'a ChildSpan,
    at: Timestamp,
    attempts: u32,
    evidence: &'a [Evidence],
) -> EventContext<'a> {
    let traceparent = leg.traceparent();
    EventContext { source: &context.source, at, traceparent, attempts, evidence }
}

/// One valid command in hand.
struct CommandJob<'a> {
    context: &'a WorkerContext,
    limits: &'a Limits,
    publisher: &'a Publisher,
    redemption: Redemption,
    prepared: Prepared,
    delivery: Delivery,
    carried: Restored,
    /// Whether the last call met trouble on the provider's side.
    troubled: bool,
    /// Where the network failed the last call.
    failed_at: Option<Host>,
    /// Whether it takes the call that can be made now, or none.
    calls_held_back: bool,
    /// Whether a call about it was made in this delivery.
    called: bool,
    stay: &'a mut CommandSpan,
    permit: &'a mut Permit,
}

/// No call can be made in time.
struct NoCall;

impl CommandJob<'_> {
    async fn run(mut self, cut: &mut CancelSignal) -> Worked {
        let limits = self.limits;
        let mut step = self.carried.progress.start(limits, Timestamp::now());
        loop {
            step = match step {
                Step::Send { after, operation } => {
                    // Only trouble costs: what a redelivery or a refusal asks further is no retry.
                    let retry = std::mem::take(&mut self.troubled);
                    // Nor may many in trouble hold the permits of those that nothing is wrong with.
                    // While calls are held back another command finds out whether they are answered again: one that only
                    // fails itself must not keep the circuit open for all.
                    if retry
                        && self.context.circuit_gate.state() != State::Closed
                        && let Some(aside) = self.carried.progress.delay_unaged(limits)
                    {
                        step = aside;
                        continue;
                    }
                    let crowded = !self.carried.evidence.is_empty() && self.context.rate_limiter.is_crowded();
                    if (retry && !self.context.budget.try_spend() || crowded)
                        && !limits.delays.is_empty()
                        && let Some(put_away) = self.carried.progress.delay(limits, Timestamp::now())
                    {
                        step = put_away;
                        continue;
                    }
                    match self.ask(after, operation, cut).await {
                        Called::Step(step) => step,
                        Called::Cut => {
                            let headers = self.carried_headers();
                            return Err(PublishInterrupted::Canceled(Box::new(self.delivery), headers));
                        }
                    }
                }
                // Held here it would be asked for ever, and nobody would learn that another brand is open.
                Step::Suspend(_) if let Some(put_away) = self.carried.progress.delay_unaged(limits) => {
                    put_away
                }
                // A dead letter goes back to the others: nothing that we are at fault for is charged to it.
                Step::Suspend(_) if self.carried.progress.is_query_only() => {
                    return Err(PublishInterrupted::Canceled(Box::new(self.delivery), Vec::new()));
                }
                // The circuit breaker is open now; the next operation waits for it.
                Step::Suspend(_) => self.carried.progress.resume(limits, Timestamp::now()),
                Step::Delay { queue: delay } => {
                    return Box::pin(self.delay(delay, DelayReason::Unresolved, cut)).await;
                }
                Step::Finish(outcome) => return Box::pin(self.finish(outcome, cut)).await,
            };
        }
    }

    /// Waits, asks, judges. The waiting can be cut short, the asking not.
    async fn ask(&mut self, after: Duration, operation: Operation, cut: &mut CancelSignal) -> Called {
        let context = self.context;
        let rank = match operation {
            Operation::Query => Priority::Query,
            Operation::Redeem if self.carried.evidence.is_empty() => Priority::First,
            Operation::Redeem => Priority::Again,
        };
        if let Some(aside) = self.record_denied(operation) {
            return Called::Step(aside);
        }
        let progress = &mut self.carried.progress;
        if self.calls_held_back
            && !after.is_zero()
            && let Some(end) = progress.expire(self.limits, Timestamp::now())
        {
            // What it would wait for is a query that cannot be made.
            return Called::Step(end);
        }
        let late_at = progress.deadline.saturating_add(self.limits.query_delay).unwrap_or(Timestamp::MAX);
        // What has looked at its coupon goes on to the use: where each looked and gave way to the next, no use would ever
        // show whether uses are accepted again.
        let (hurried, in_process_max) = (self.calls_held_back && !self.called, self.limits.in_process_max);
        let permit = &mut *self.permit;
        let hold = async {
            permit.release_while(after).await;
            let mut held_back = Duration::ZERO;
            loop {
                // Past its deadline a command has waited long enough: it takes the call that can be made now, or none.
                let left = late_at.duration_since(Timestamp::now());
                let late = left <= SignedDuration::ZERO;
                let patience = match late {
                    true if hurried => Duration::ZERO,
                    // Where calls are tried one by one, each may be the one that finds out.
                    false if hurried && matches!(context.circuit_gate.state(), State::Open { .. }) => {
                        Duration::ZERO
                    }
                    true => LATE_CIRCUIT_WAIT,
                    false => in_process_max,
                };
                let asked_at = Instant::now();
                let pass = timeout(patience, context.circuit_gate.acquire()).await.map_err(|_| NoCall)?;
                held_back += asked_at.elapsed();
                let queued_at = Instant::now();
                let its_turn = match late {
                    true => context.rate_limiter.acquire_within(rank, LATE_PERMIT_WAIT).await,
                    false => {
                        let patience = left.unsigned_abs().saturating_add(LATE_PERMIT_WAIT);
                        timeout(patience, context.rate_limiter.acquire(rank)).await.is_ok()
                    }
                };
                if !its_turn {
                    return Err(NoCall);
                }
                context.metrics.record_heartbeat(queued_at.elapsed());
                // Those who waited for their turn while it opened must not go all the same.
                if pass.is_open_for() {
                    return Ok((pass, held_back));
                }
            }
        };
        let pass = tokio::select! {
            // First, and not by chance: the connection may be gone, and the command in other hands.
            biased;
            _ = cut.wait_for(|now| *now) => return Called::Cut,
            pass = hold => pass,
        };
        let now = Timestamp::now();
        let Ok((pass, held_back)) = pass else {
            // Calls are held back for longer than a permit may be held.
            let progress = &mut self.carried.progress;
            let step = progress.expire(self.limits, now);
            if step.is_none() && progress.is_query_only() {
                return Called::Cut;
            }
            let step = step.or_else(|| progress.delay(self.limits, now));
            return Called::Step(step.unwrap_or_else(|| progress.resume(self.limits, now)));
        };
        // Its brand may have denied another command meanwhile.
        if let Some(aside) = self.record_denied(operation) {
            return Called::Step(aside);
        }
        if operation == Operation::Redeem
            && self.carried.progress.is_overtaken(held_back > QUERY_VALID_FOR, now)
        {
            return Called::Step(self.carried.progress.resume(self.limits, now));
        }
        // Once for a command: what comes back from a delay queue, or from whoever held it before, earned already. It would
        // make of an outage ever more retries.
        if self.carried.evidence.is_empty() && !self.delivery.redelivered() {
            context.budget.record_first_attempt();
        }
        self.called = true;
        let mut leg = self.stay.start_call(operation.as_str());
        let (nonce, chance) = (rand::random(), rand::random());
        let asked_at = Instant::now();
        let (client, failed_at) = (&context.client, self.failed_at.take());
        let traceparent = leg.traceparent();
        let asking =
            client.send_to_other_host(failed_at, operation, &self.prepared, traceparent, now, nonce, chance);
        let heard = failpoints::during(Failpoint::Sent, asking).await;
        failpoints::reached(Failpoint::Answered);
        let verdict = self.judge(operation, &heard, asked_at);
        if let Verdict::Suspended(_) = verdict {
            let stopped_by = SuspendedBy::new(&heard);
            *context.stopped_by.lock().unwrap_or_else(PoisonError::into_inner) = stopped_by;
        }
        let sign = CallSignal::of(operation, &verdict);
        pass.report(operation, sign);
        self.classify(&heard, sign, asked_at);
        self.failed_at = heard.failed_at();
        self.troubled = matches!(verdict, Verdict::NotAccepted(_) | Verdict::NotSent | Verdict::Unknown(_));
        record_call_span(&mut leg, &heard, &verdict);
        drop(leg);
        self.note(operation, &heard, &verdict, now);
        let Restored { progress, .. } = &mut self.carried;
        let step = progress.follow_verdict(
            operation,
            heard.reply,
            verdict,
            self.limits,
            Timestamp::now(),
            rand::random(),
        );
        Called::Step(step)
    }

    /// Tells the rate limiter, the metrics and the log what came of a call.
    fn classify(&self, heard: &CallOutcome, sign: CallSignal, asked_at: Instant) {
        let status = match &heard.reply {
            CallResult::Response(answer) => Some(answer.status),
            CallResult::NotSent(_) | CallResult::NoResponse(_) => None,
        };
        let class = ResponseClass::of(status, sign);
        if status.is_some() {
            let again = self.carried.evidence.iter().any(|evidence| evidence.status == Some(429));
            self.context.rate_limiter.record(asked_at, class == ResponseClass::Throttled, again);
        }
        self.context.metrics.record_response(class);
        self.context.responses.record(class, heard, Instant::now());
    }

    /// The way of a command whose brand has just denied us a use: aside, without a call, until one of its commands has
    /// tried again. Nor is it worth a look then whether the use may go out; a look for another end is.
    fn record_denied(&mut self, operation: Operation) -> Option<Step> {
        let Progress { effect, deadline, .. } = self.carried.progress;
        let for_a_use =
            operation == Operation::Redeem || effect == EffectState::NoEffect && Timestamp::now() < deadline;
        let brand = self.redemption.brand_id.as_str();
        if !for_a_use || self.context.brands.may_try(brand, Instant::now()) {
            return None;
        }
        self.carried.progress.delay_unaged(self.limits)
    }

    fn judge(&self, operation: Operation, heard: &CallOutcome, asked_at: Instant) -> Verdict {
        let verdict = self.carried.progress.advance(operation, &heard.reply, &self.redemption);
        let (brands, brand) = (&self.context.brands, self.redemption.brand_id.as_str());
        // That a brand lets us look, or does not, says nothing about whether we may redeem: rights go interface by
        // interface.
        let verdict = self.judge_cause(operation, heard, verdict, asked_at);
        if operation == Operation::Query {
            return verdict;
        }
        match verdict {
            Verdict::NotAuthorized => match brands.deny(brand, Instant::now()) {
                Denial::ThisBrandOnly => verdict,
                Denial::Undecided => Verdict::NotAccepted(NotAccepted::NotAuthorized),
                Denial::AllBrands => Verdict::Suspended(classify::SuspendReason::Unauthorized),
            },
            Verdict::Redeemed => {
                brands.let_in(brand, asked_at);
                verdict
            }
            // What is wrong with a parameter may be found before rights are looked at.
            Verdict::Rejected { reason, .. } if reason.is_about_the_coupon() => {
                brands.let_in(brand, asked_at);
                verdict
            }
            _ => verdict,
        }
    }

    /// A signed rejection that may be about what stands in the head of every call is not charged to the command.
    fn judge_cause(
        &self,
        operation: Operation,
        heard: &CallOutcome,
        verdict: Verdict,
        asked_at: Instant,
    ) -> Verdict {
        let mut rejections = self.context.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match (unexplained_rejection(heard, &verdict), operation) {
            (Some(UnexplainedRejection::Headers), _) => Verdict::Suspended(classify::SuspendReason::Rejected),
            (Some(UnexplainedRejection::By(rejection)), Operation::Query) => {
                match rejections.reject_query(&rejection, now) {
                    true => Verdict::Suspended(classify::SuspendReason::Rejected),
                    false => verdict,
                }
            }
            (Some(UnexplainedRejection::By(rejection)), Operation::Redeem) => {
                let message = match &heard.reply {
                    CallResult::Response(answer) => answer.message.as_deref(),
                    CallResult::NotSent(_) | CallResult::NoResponse(_) => None,
                };
                match rejections.reject(rejection, message, &self.redemption, now) {
                    common_rejection::Cause::Command => verdict,
                    // A look at the coupon shows whether calls are accepted at all, and lets the body go out again.
                    common_rejection::Cause::Unclear => Verdict::Unknown(UnknownCause::Unexpected),
                    common_rejection::Cause::Common => Verdict::Suspended(classify::SuspendReason::Rejected),
                }
            }
            (None, _) => {
                if matches!(
                    verdict,
                    Verdict::Redeemed | Verdict::Refused(_) | Verdict::NotExecuted | Verdict::Rejected { .. }
                ) {
                    rejections.accept(self.redemption.brand_id.as_str(), asked_at);
                }
                verdict
            }
        }
    }

    /// Counts and remembers one attempt.
    fn note(&mut self, operation: Operation, heard: &CallOutcome, verdict: &Verdict, at: Timestamp) {
        let context = self.context;
        context.metrics.record_attempt(operation, verdict, heard.took);
        if let Some(skew) = heard.clock_skew {
            context.metrics.set_clock_skew(skew.as_secs_f64());
        }
        let answer = match &heard.reply {
            CallResult::Response(answer) => Some(answer),
            CallResult::NotSent(_) | CallResult::NoResponse(_) => None,
        };
        match answer.map(|answer| answer.authenticity) {
            Some(Authenticity::Invalid(flaw)) => context.metrics.record_signature_flaw(flaw),
            Some(Authenticity::Unsigned) => context.metrics.record_unsigned(),
            Some(Authenticity::Verified) | None => {}
        }
        let evidence = Evidence {
            at,
            operation: operation.as_str().to_owned(),
            host: heard.host_name.clone(),
            status: answer.map(|answer| answer.status),
            request_id: answer.and_then(|answer| answer.request_id.as_deref()).map(str::to_owned),
            serial: heard.serial.clone(),
            verdict: verdict.as_str().to_owned(),
        };
        debug!(
            out_request_no = %self.redemption.out_request_no,
            operation = operation.as_str(),
            ?verdict,
            status = evidence.status,
            request_id = evidence.request_id,
            took_ms = heard.took.as_millis() as u64,
            trouble = heard.trouble,
            unbelieved = heard.unbelieved.as_ref().map(|seen| seen.in_words()),
            trace_id = self.stay.trace_id(),
            "attempt"
        );
        self.carried.evidence.push(evidence);
        Evidence::keep_last(&mut self.carried.evidence);
    }

    /// What a command that is handed back carries: nothing where nobody has called about it yet.
    fn carried_headers(&mut self) -> Vec<(&'static str, String)> {
        let Restored { progress, evidence } = &mut self.carried;
        if evidence.is_empty() && progress.attempts == 0 {
            return Vec::new();
        }
        // It has not waited in a delay queue.
        progress.delay_unaged(self.limits);
        let mut headers = retry_message::write(progress, evidence, self.prepared.body_sha256());
        push_trace_headers(&mut headers, self.stay);
        headers
    }

    async fn delay(mut self, delay: usize, why: DelayReason, cut: &CancelSignal) -> Worked {
        let Some(wait) = self.limits.delays.get(delay).copied() else {
            // A delay is always chosen from this very list.
            let headers = self.carried_headers();
            return Err(PublishInterrupted::Canceled(Box::new(self.delivery), headers));
        };
        let Restored { progress, evidence } = &self.carried;
        let mut headers = retry_message::write(progress, evidence, self.prepared.body_sha256());
        push_trace_headers(&mut headers, self.stay);
        let copy = Outgoing::Retry(wait, &headers);
        let leg = self.stay.start_publish(Message::Retry.as_str());
        let means =
            PublishingContext { context: self.context, publisher: self.publisher, cut, dead_letter: false };
        let proof = match publish(means.publishing(), &self.delivery, copy, leg).await {
            Ok(proof) => proof,
            Err(why) => {
                let headers = headers.clone();
                return Err(why.into_worked(self.delivery, headers));
            }
        };
        self.context.metrics.record_delayed(&delay_name(wait), why);
        info!(
            out_request_no = %self.redemption.out_request_no,
            coupon = %Short(self.redemption.coupon_code.as_str()),
            openid = %Short(self.redemption.openid.as_str()),
            brand_id = %self.redemption.brand_id,
            attempts = progress.attempts,
            effect = progress.effect.to_header(),
            why = why.as_str(),
            wait_s = wait.as_secs(),
            trace_id = self.stay.trace_id(),
            "delayed: not settled yet, asked again later"
        );
        Ok((Settlement::Delayed, self.delivery, proof))
    }

    async fn finish(self, outcome: Outcome, cut: &CancelSignal) -> Worked {
        let means =
            PublishingContext { context: self.context, publisher: self.publisher, cut, dead_letter: false };
        let now = Timestamp::now();
        let leg = self.stay.start_publish(Message::Event.as_str());
        let Restored { progress, evidence } = &self.carried;
        let told = event_context(self.context, &leg, now, progress.attempts, evidence);
        let event = result_event::encode(&self.redemption, &outcome, told);
        let only_asks = progress.is_query_only();
        let held_max =
            if only_asks { self.context.publish_retry_max } else { self.context.event_held_max(self.limits) };
        let publishing = means.publishing();
        let told = publish_within(publishing, &self.delivery, Outgoing::Event(&event), leg, held_max).await?;
        if told.is_none() && only_asks {
            let headers = if *cut.borrow() { Vec::new() } else { dead_letter_retry_headers(&self.delivery) };
            return Err(PublishInterrupted::Canceled(Box::new(self.delivery), headers));
        }
        let Some(mut proof) = told else { return Box::pin(self.delay_unpublished(outcome, cut)).await };
        let Self { context, redemption, delivery, carried, stay, prepared, .. } = self;
        let Restored { progress, evidence } = carried;
        if let Outcome::Unresolved { reason, .. } = &outcome {
            let mut headers = retry_message::write(&progress, &evidence, prepared.body_sha256());
            push_trace_headers(&mut headers, stay);
            let park = Outgoing::Parked(*reason, now, &headers);
            let leg = stay.start_publish(Message::Parked.as_str());
            proof = match Box::pin(publish(publishing, &delivery, park, leg)).await {
                Ok(parked) => proof.join(parked),
                Err(why) => return Err(why.into_worked(delivery, headers)),
            };
        }
        // The time in the command queue counts, where its sender has told when that began.
        let (sent, now) = (delivery.sent_by(), Timestamp::now());
        let age =
            now.duration_since(age_begins(sent, progress.first_seen, now, context.deadline_limits.furthest));
        context.metrics.record_outcome(&outcome, Some(age.unsigned_abs()));
        stay.set_attribute("redemption.outcome", outcome.kind().as_str());
        if let Some(reason) = outcome.reason() {
            stay.set_attribute("redemption.reason", reason.as_str());
        }
        stay.set_attribute("redemption.attempts", i64::from(progress.attempts));
        log_outcome(&redemption, &outcome, &progress, &evidence, age, stay.trace_id());
        // A rejection for it may also be an earlier use of ours under another body; an outcome is not.
        if let Outcome::Refused { reason: Reason::InvalidParameter, rejection, .. } = &outcome {
            error!(
                out_request_no = %redemption.out_request_no,
                request_id = rejection.as_ref().and_then(|words| words.request_id.as_deref()),
                "defect: the provider calls a parameter wrong that our own check let pass"
            );
        }
        Ok((Settlement::Finished, delivery, proof))
    }

    /// The broker refused the event for as long as a delivery is held for it: a longer stay would end with a channel
    /// that the broker closes, and one of these after the other with a command that the broker parks, untold. A copy
    /// asks again what became of the coupon when it is back, and tells that.
    async fn delay_unpublished(mut self, outcome: Outcome, cut: &CancelSignal) -> Worked {
        self.carried.progress.forget_outcome(&outcome);
        self.delay(0, DelayReason::EventRejected, cut).await
    }
}

/// A signed rejection that no part of the command explains.
enum UnexplainedRejection {
    /// The provider names a header.
    Headers,
    /// It names nothing.
    By(Rejection),
}

/// Whether a rejection may be about every call. One that names a field, or whose number gives a reason of its own, is the
/// command's.
fn unexplained_rejection(heard: &CallOutcome, verdict: &Verdict) -> Option<UnexplainedRejection> {
    let (CallResult::Response(answer), Verdict::Rejected { reason, .. }) = (&heard.reply, verdict) else {
        return None;
    };
    if heard.detail.as_ref().is_some_and(|detail| detail.is_about_our_headers()) {
        return Some(UnexplainedRejection::Headers);
    }
    let names_a_field = heard.detail.as_ref().is_some_and(|detail| detail.names_a_field());
    let says_nothing = matches!(reason, Reason::InvalidParameter | Reason::Rejected);
    (says_nothing && !names_a_field).then(|| {
        let code = answer.code.clone().unwrap_or_default();
        UnexplainedRejection::By(Rejection { status: answer.status, code, sub_code: answer.sub_code })
    })
}

#[allow(clippy::large_enum_variant, reason = "nearly always a step, and it lives no longer than its match")]
enum Called {
    Step(Step),
    Cut,
}

/// Tells a collector of one attempt.
fn record_call_span(leg: &mut ChildSpan, heard: &CallOutcome, verdict: &Verdict) {
    leg.set_attribute("server.address", heard.host_name.clone());
    leg.set_attribute("redemption.verdict", verdict.as_str());
    match &heard.reply {
        CallResult::Response(answer) => {
            leg.set_attribute("http.response.status_code", i64::from(answer.status));
            if let Some(id) = &answer.request_id {
                leg.set_attribute("redemption.request_id", id.to_string());
            }
            if answer.status >= 400 {
                leg.failed(&format!("status {}", answer.status));
            }
        }
        CallResult::NotSent(_) | CallResult::NoResponse(_) => {
            leg.failed(heard.trouble.as_deref().unwrap_or("no whole answer"))
        }
    }
}

/// The first and the longest pause between two tries of the event of a dead letter that the broker does not take.
const DEAD_PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// What a dead letter carries whose event was not taken: that is tried again after a pause, and each try takes a query.
fn dead_letter_retry_headers(delivery: &Delivery) -> Vec<(&'static str, String)> {
    let tries = delivery.dead_tries();
    let at = Timestamp::now().saturating_add(dead_letter_pause(tries)).unwrap_or(Timestamp::MAX);
    vec![(DEAD_TRIES, tries.saturating_add(1).to_string()), (DEAD_AGAIN, at.to_string())]
}

/// Doubled with each try before.
fn dead_letter_pause(tries: u32) -> Duration {
    let (first, longest) = DEAD_PAUSES;
    first.saturating_mul(1 << tries.min(16)).min(longest)
}

/// Whether the event of a dead letter is to be tried later. A time that lies further ahead than we ever set it is forged.
pub fn is_retry_pending(delivery: &Delivery, now: Timestamp) -> bool {
    let latest = now.saturating_add(DEAD_PAUSES.1).unwrap_or(Timestamp::MAX);
    delivery.dead_again().is_some_and(|at| now < at && at <= latest)
}

/// What a copy carries of the trace that it belongs to.
fn push_trace_headers(headers: &mut Vec<(&'static str, String)>, stay: &CommandSpan) {
    if let Some((command, here)) = stay.propagated() {
        headers.push(("traceparent", command));
        headers.push((retry_message::TRACE, here));
    }
}

/// The one line of a settled command.
fn log_outcome(
    redemption: &Redemption,
    outcome: &Outcome,
    progress: &Progress,
    evidence: &[Evidence],
    age: SignedDuration,
    trace_id: Option<&str>,
) {
    let request_id = evidence.last().and_then(|last| last.request_id.as_deref());
    let state = outcome.coupon().map(|coupon| coupon.state.as_str());
    macro_rules! line {
        ($level:ident, $text:literal) => {
            $level!(
                outcome = outcome.kind().as_str(),
                out_request_no = %redemption.out_request_no,
                coupon = %Short(redemption.coupon_code.as_str()),
                openid = %Short(redemption.openid.as_str()),
                brand_id = %redemption.brand_id,
                reason = outcome.reason().map(Reason::as_str),
                coupon_state = state,
                established_by = outcome.established_by().as_str(),
                attempts = progress.attempts,
                age_ms = age.as_millis() as u64,
                request_id,
                trace_id,
                $text
            )
        };
    }
    match outcome {
        Outcome::Redeemed { .. } => line!(info, "redeemed"),
        Outcome::Refused { .. } => line!(info, "refused"),
        Outcome::Invalid => line!(warn, "invalid"),
        Outcome::Unresolved { .. } => line!(error, "unresolved; parked"),
    }
}

/// How brands answered lately, for all workers: whether a NO_AUTH is one brand's word or our own fault.
#[derive(Debug, Default)]
pub struct Brands(Mutex<BrandAccess>);

/// How long calls may be held back between the look at a coupon and the use that it permits: whoever else holds the
/// command may send one meanwhile.
const QUERY_VALID_FOR: Duration = Duration::from_millis(50);
/// How long a command that is past its deadline waits for the circuit to let a call pass.
const LATE_CIRCUIT_WAIT: Duration = Duration::from_millis(50);
/// How long such a command then waits for its turn in the rate. With two calls of 15 s, what may be under way before the
/// first of them, and the query delay between them, its event is out within a minute of the deadline.
const LATE_PERMIT_WAIT: Duration = Duration::from_secs(3);

impl Brands {
    fn access(&self) -> MutexGuard<'_, BrandAccess> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_in(&self, brand: &str, asked_at: Instant) {
        self.access().record_allowed(brand, asked_at);
    }

    fn deny(&self, brand: &str, now: Instant) -> Denial {
        self.access().record_denied(brand, now)
    }

    fn may_try(&self, brand: &str, now: Instant) -> bool {
        self.access().may_try(brand, now)
    }
}

/// When the age of a command begins: when it was sent, as its sender says, or at first sight, as the headers of a copy say.
/// Both can be forged: neither counts that lies ahead, or further back than a deadline can lie ahead.
fn age_begins(
    sent: Option<Timestamp>,
    first_seen: Timestamp,
    now: Timestamp,
    furthest: SignedDuration,
) -> Timestamp {
    let is_plausible = |at: &Timestamp| {
        let ago = now.duration_since(*at);
        !ago.is_negative() && ago <= furthest
    };
    [sent, Some(first_seen)].into_iter().flatten().filter(is_plausible).min().unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::classify::Response;

    #[test]
    fn forged_time_of_sending_makes_no_age() {
        let now: Timestamp = "2026-03-05T05:00:00Z".parse().unwrap();
        let ago = |hours: i64| now.saturating_sub(SignedDuration::from_hours(hours)).unwrap();
        let age = |sent: Option<Timestamp>, first_seen: Timestamp| {
            now.duration_since(age_begins(sent, first_seen, now, SignedDuration::from_hours(72)))
        };
        let hours = SignedDuration::from_hours;
        assert_eq!(age(Some(ago(3)), ago(2)), hours(3));
        assert_eq!(age(Some(ago(1)), ago(2)), hours(2));
        assert_eq!(age(None, ago(2)), hours(2));
        let forged = [Timestamp::UNIX_EPOCH, Timestamp::MIN, Timestamp::MAX, ago(73), ago(-1)];
        for at in forged {
            assert_eq!(age(Some(at), ago(2)), hours(2), "{at}");
            assert_eq!(age(Some(ago(1)), at), hours(1), "{at}");
            assert_eq!(age(Some(at), at), hours(0), "{at}");
        }
    }

    #[test]
    fn pauses_of_a_dead_letter_double_up_to_ten_minutes() {
        let pauses = [0, 1, 2, 5, 6, 7, u32::MAX].map(|tries| dead_letter_pause(tries).as_secs());
        assert_eq!(pauses, [10, 20, 40, 320, 600, 600, 600]);
    }

    #[test]
    fn what_stopped_us_is_told_in_few_words_that_break_no_line() {
        let answer = |code: Option<&str>, message: Option<&str>| Response {
            status: 401,
            authenticity: Authenticity::Unsigned,
            code: code.map(Into::into),
            sub_code: None,
            coupon: None,
            message: message.map(Into::into),
            request_id: None,
        };
        let said = |reply| {
            let (host, host_name) = (Host::Primary, String::new());
            let clock_skew = Some(SignedDuration::from_secs(-3));
            let (serial, took, trouble) = (None, Duration::ZERO, None);
            let (detail, unbelieved) = (None, None);
            let heard =
                CallOutcome { reply, host, host_name, serial, clock_skew, took, trouble, detail, unbelieved };
            let SuspendedBy { said, clock_skew } = SuspendedBy::new(&heard);
            assert_eq!(clock_skew, Some(-3.0));
            said
        };
        let check = |code: Option<&str>, message: Option<&str>, expected: &str| {
            assert_eq!(said(CallResult::Response(answer(code, message))), expected);
        };
        check(Some("SIGN_ERROR"), Some("错误的签名\n\u{1b}[0m"), r"SIGN_ERROR: 错误的签名\u000a\u001b[0m");
        let with_openid = "openid=oh-394z-6CGkNoJrsDLTTUKiAnp4 is wrong";
        check(Some("SIGN_ERROR"), Some(with_openid), "SIGN_ERROR: openid=oh…Anp4 is wrong");
        check(None, Some("no"), "no");
        check(Some("SIGN_ERROR"), None, "SIGN_ERROR");
        check(None, None, "");
        check(None, Some(&"签".repeat(500)), &"签".repeat(66));
    }
}
