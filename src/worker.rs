//! Works one delivery, from the bytes to the settlement. The one place where steps touch the world.
//!
//! Waiting can be cut short (the connection is gone, or it is time to stop); a call, a publish and an
//! acknowledgement run to their end. Nothing leaves this function without the delivery being settled or lost with
//! its connection, and then the broker delivers it again.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::attempt::{Evidence, Limits, Outcome, Progress, Step};
use crate::breaker::{Breaker, Sign};
use crate::broker::delivery::Delivery;
use crate::broker::publisher::{NotPublished, Published, Publisher};
use crate::kill_point::{self, KillPoint};
use crate::metrics::{Arrival, Message, Metrics, Settling};
use crate::pace::{Budget, Pacer};
use crate::redemption::Redemption;
use crate::telemetry::Short;
use crate::verdict::{Authenticity, Declined, Fault, Question, Reason, Reply, Verdict, judge};
use crate::wechat::api::{Client, Heard, Prepared, hex};
use crate::wire::command::{self, Rejected};
use crate::wire::copy::{self, Carried, Damage, Horizon};
use crate::wire::event::{self, Event, Telling};

/// What every worker shares.
pub struct Tools {
    /// The payment API.
    pub client: Client,
    /// Holds calls back when all would fail.
    pub breaker: Breaker,
    /// Spaces calls.
    pub pacer: Pacer,
    /// Bounds retries.
    pub budget: Budget,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How long and how often.
    pub limits: Limits,
    /// How far deadlines may lie ahead.
    pub horizon: Horizon,
    /// `source` of events.
    pub source: String,
    /// How brands answered lately.
    pub brands: Brands,
}

/// A delivery, read, on its way to be worked on.
#[derive(Debug)]
pub struct Taken {
    /// What arrived.
    pub delivery: Delivery,
    /// What it says.
    pub command: Result<Redemption, Box<Rejected>>,
    /// When it was taken.
    pub at: Timestamp,
}

impl Taken {
    /// Reads a delivery.
    pub fn new(delivery: Delivery, at: Timestamp) -> Self {
        let command = command::decode(delivery.body());
        Self { delivery, command, at }
    }

    /// The coupon whose commands go one at a time.
    pub fn lane(&self) -> Option<&str> {
        self.command.as_ref().ok().map(|redemption| redemption.coupon_code.as_str())
    }

    /// How it came.
    pub fn arrival(&self) -> Arrival {
        if copy::is_copy(|name| self.delivery.has_header(name)) {
            Arrival::Copy
        } else if self.delivery.redelivered() {
            Arrival::Redelivered
        } else {
            Arrival::First
        }
    }
}

/// Tells a waiting worker to hand back what it holds. True once it is time.
pub type Cut = watch::Receiver<bool>;

/// Why a delivery was not settled as it should have been.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    /// It was time to hand back.
    #[error("cut short while waiting")]
    Cut(Box<Delivery>),
    /// A publish was not proven.
    #[error("{0}")]
    NotPublished(NotPublished),
}

/// Works one delivery to its settlement. An error text ends the generation that it belongs to.
pub async fn work(
    tools: &Tools,
    publisher: &Publisher,
    taken: Taken,
    mut cut: Cut,
) -> (Settling, Option<String>) {
    let Taken { delivery, command, at } = taken;
    kill_point::reached(KillPoint::Taken);
    let worked = match command {
        Err(rejected) => refuse(tools, publisher, delivery, &rejected, at).await,
        Ok(redemption) => {
            let prepared = Prepared::new(&redemption);
            match progress(tools, &delivery, &prepared, at) {
                Err(damage) => set_damaged_aside(tools, publisher, delivery, &redemption, &damage, at).await,
                Ok(carried) => {
                    let troubled = false;
                    let job = Job { tools, publisher, redemption, prepared, delivery, carried, troubled };
                    job.run(&mut cut).await
                }
            }
        }
    };
    match worked {
        Ok((settling, delivery, proof)) => {
            kill_point::reached(KillPoint::Acking);
            match delivery.ack(proof).await {
                Ok(()) => (settling, None),
                Err(unsettled) => (Settling::Lost, Some(unsettled.to_string())),
            }
        }
        Err(Interrupted::Cut(delivery)) => match delivery.release().await {
            Ok(()) => (Settling::Released, None),
            Err(unsettled) => (Settling::Lost, Some(unsettled.to_string())),
        },
        Err(Interrupted::NotPublished(why)) => (Settling::Lost, Some(why.to_string())),
    }
}

type Worked = Result<(Settling, Delivery, Published), Interrupted>;

/// Where this delivery stands: afresh, redelivered, or back from a wait queue.
fn progress(
    tools: &Tools,
    delivery: &Delivery,
    prepared: &Prepared,
    now: Timestamp,
) -> Result<Carried, Damage> {
    let again = delivery.redelivered();
    if copy::is_copy(|name| delivery.has_header(name)) {
        let header = |name| delivery.header(name);
        let mut carried = copy::read(header, prepared.body_sha256(), now, tools.horizon)?;
        if again {
            carried.progress.delivered_again();
        }
        return Ok(carried);
    }
    let text = delivery.header(copy::DEADLINE);
    if text.is_none() && delivery.has_header(copy::DEADLINE) {
        return Err(Damage::Unreadable(copy::DEADLINE));
    }
    let deadline = copy::deadline(text, now, tools.horizon)?;
    Ok(Carried { progress: Progress::new(now, deadline, again), evidence: Vec::new() })
}

/// Tells what is wrong with a command that is none, and parks its bytes.
async fn refuse(
    tools: &Tools,
    publisher: &Publisher,
    delivery: Delivery,
    rejected: &Rejected,
    at: Timestamp,
) -> Worked {
    let digest = hex(&Sha256::digest(delivery.body()));
    let event = event::tell_invalid(rejected, &digest, telling(tools, &delivery, at, 0, &[]));
    let faults = rejected.faults.iter().map(|fault| format!("{}: {}", fault.pointer, fault.problem));
    let faults = faults.collect::<Vec<_>>().join("; ");
    let number = rejected.legible.out_request_no.as_ref().map(|number| number.as_str());
    let proof = tell_and_park(tools, publisher, &delivery, &event, Reason::InvalidCommand, at).await?;
    tools.metrics.ended(&Outcome::Invalid, Duration::ZERO);
    warn!(out_request_no = number, faults, "invalid: not a command; parked");
    Ok((Settling::Ended, delivery, proof))
}

/// A wait-queue copy whose headers make no sense: nobody knows what was asked before, so nothing is asked now.
async fn set_damaged_aside(
    tools: &Tools,
    publisher: &Publisher,
    delivery: Delivery,
    redemption: &Redemption,
    damage: &Damage,
    at: Timestamp,
) -> Worked {
    let digest = hex(&Sha256::digest(delivery.body()));
    let told = telling(tools, &delivery, at, 0, &[]);
    let event = event::tell_damaged(redemption, &damage.to_string(), &digest, told);
    let proof = tell_and_park(tools, publisher, &delivery, &event, Reason::DamagedCopy, at).await?;
    let outcome = Outcome::Unresolved { reason: Reason::DamagedCopy, coupon: None, objection: None };
    tools.metrics.ended(&outcome, Duration::ZERO);
    error!(out_request_no = %redemption.out_request_no, %damage, "unresolved: damaged copy; parked");
    Ok((Settling::Ended, delivery, proof))
}

async fn tell_and_park(
    tools: &Tools,
    publisher: &Publisher,
    delivery: &Delivery,
    event: &Event,
    reason: Reason,
    at: Timestamp,
) -> Result<Published, Interrupted> {
    let told = publish(tools, Message::Event, publisher.event(event, delivery)).await?;
    let parked = publisher.park(delivery, reason.as_str(), at, Vec::new());
    Ok(told.and(publish(tools, Message::Parked, parked).await?))
}

async fn publish(
    tools: &Tools,
    message: Message,
    publishing: impl Future<Output = Result<Published, NotPublished>>,
) -> Result<Published, Interrupted> {
    let published = kill_point::during(KillPoint::Publishing(message), publishing).await;
    if published.is_ok() {
        kill_point::reached(KillPoint::Published(message));
    }
    tools.metrics.published(message, published.is_ok());
    published.map_err(Interrupted::NotPublished)
}

fn telling<'a>(
    tools: &'a Tools,
    delivery: &'a Delivery,
    at: Timestamp,
    attempts: u32,
    evidence: &'a [Evidence],
) -> Telling<'a> {
    let traceparent = delivery.header("traceparent").filter(|text| text.len() <= 128);
    Telling { source: &tools.source, at, traceparent, attempts, evidence }
}

/// One valid command in hand.
struct Job<'a> {
    tools: &'a Tools,
    publisher: &'a Publisher,
    redemption: Redemption,
    prepared: Prepared,
    delivery: Delivery,
    carried: Carried,
    /// Whether the last call met trouble on the provider's side.
    troubled: bool,
}

impl Job<'_> {
    async fn run(mut self, cut: &mut Cut) -> Worked {
        let limits = &self.tools.limits;
        let mut step = self.carried.progress.begin(limits, Timestamp::now());
        self.tools.budget.earn();
        loop {
            step = match step {
                Step::Ask { after, question } => {
                    // Only trouble costs: what a redelivery or a refusal asks further is no retry.
                    let retry = std::mem::take(&mut self.troubled);
                    if retry
                        && !self.tools.budget.spend()
                        && let Some(put_away) = self.carried.progress.defer(limits, Timestamp::now())
                    {
                        step = put_away;
                        continue;
                    }
                    match self.ask(after, question, cut).await {
                        Asked::Step(step) => step,
                        Asked::Cut => return Err(Interrupted::Cut(Box::new(self.delivery))),
                    }
                }
                // The breaker is open now; the next question waits for it.
                Step::Halt(_) => self.carried.progress.resume(limits, Timestamp::now()),
                Step::Defer { tier } => return self.put_away(tier).await,
                Step::Finish(outcome) => return self.finish(outcome).await,
            };
        }
    }

    /// Waits, asks, judges. The waiting can be cut short, the asking not.
    async fn ask(&mut self, after: Duration, question: Question, cut: &mut Cut) -> Asked {
        let tools = self.tools;
        let hold = async {
            sleep(after).await;
            let held = timeout(tools.limits.in_process_max, tools.breaker.pass(Timestamp::now)).await;
            if held.is_ok() {
                tools.pacer.turn(question).await;
            }
            held
        };
        let pass = tokio::select! {
            pass = hold => pass,
            _ = cut.wait_for(|now| *now) => return Asked::Cut,
        };
        let now = Timestamp::now();
        let Ok(pass) = pass else {
            // Calls are held back for longer than a slot may be held.
            let put_away = self.carried.progress.defer(&tools.limits, now);
            return Asked::Step(put_away.unwrap_or(Step::Ask { after: Duration::ZERO, question }));
        };
        let traceparent = self.delivery.header("traceparent").filter(|text| text.len() <= 128);
        let (nonce, chance) = (rand::random(), rand::random());
        let asking = tools.client.ask(question, &self.prepared, traceparent, now, nonce, chance);
        let heard = kill_point::during(KillPoint::Sent, asking).await;
        kill_point::reached(KillPoint::Answered);
        let verdict = self.judge(question, &heard);
        pass.report(Sign::of(&verdict), Timestamp::now());
        self.troubled = matches!(verdict, Verdict::NotAccepted(_) | Verdict::NotSent | Verdict::Unsure(_));
        self.note(question, &heard, &verdict, now);
        let Carried { progress, .. } = &mut self.carried;
        let step =
            progress.follow(question, heard.reply, verdict, &tools.limits, Timestamp::now(), rand::random());
        Asked::Step(step)
    }

    fn judge(&self, question: Question, heard: &Heard) -> Verdict {
        let verdict = judge(question, &heard.reply, &self.redemption);
        match verdict {
            Verdict::NotAuthorised => {
                // Our own fault, unless some brand has let us in lately.
                let ours = !self.tools.brands.any_accepted(Instant::now());
                if ours { Verdict::Stop(Fault::Unauthorised) } else { verdict }
            }
            Verdict::Redeemed | Verdict::NotExecuted | Verdict::Objected { signed: true, .. } => {
                self.tools.brands.accepted(Instant::now());
                verdict
            }
            _ => verdict,
        }
    }

    /// Counts and remembers one attempt.
    fn note(&mut self, question: Question, heard: &Heard, verdict: &Verdict, at: Timestamp) {
        let tools = self.tools;
        tools.metrics.attempted(question, verdict, heard.took);
        if let Some(skew) = heard.clock_skew {
            tools.metrics.clock_skew(skew.as_secs_f64());
        }
        let answer = match &heard.reply {
            Reply::Answered(answer) => Some(answer),
            Reply::NotSent(_) | Reply::Lost(_) => None,
        };
        if let Some(Authenticity::Unconvincing(flaw)) = answer.map(|answer| answer.authenticity) {
            tools.metrics.flawed(flaw);
        }
        if let Verdict::NotAccepted(Declined::TooFrequent) = verdict {
            tools.pacer.slow_down(Instant::now());
        }
        if let Verdict::Refused(Reason::InvalidParameter) = verdict {
            error!(
                out_request_no = %self.redemption.out_request_no,
                message = answer.and_then(|answer| answer.message.as_deref()),
                "defect: the provider calls a parameter wrong that our own check let pass"
            );
        }
        let evidence = Evidence {
            at,
            question: question.as_str().to_owned(),
            host: heard.host_name.clone(),
            status: answer.map(|answer| answer.status),
            request_id: answer.and_then(|answer| answer.request_id.as_deref()).map(str::to_owned),
            serial: heard.serial.clone(),
            verdict: verdict.as_str().to_owned(),
        };
        debug!(
            out_request_no = %self.redemption.out_request_no,
            question = question.as_str(),
            ?verdict,
            status = evidence.status,
            request_id = evidence.request_id,
            took_ms = heard.took.as_millis() as u64,
            "attempt"
        );
        self.carried.evidence.push(evidence);
        Evidence::keep_last(&mut self.carried.evidence);
    }

    async fn put_away(self, tier: usize) -> Worked {
        let Carried { progress, evidence } = &self.carried;
        let Some(wait) = self.tools.limits.tiers.get(tier).copied() else {
            // A tier is always chosen from this very list.
            return Err(Interrupted::Cut(Box::new(self.delivery)));
        };
        let headers = copy::write(progress, evidence, self.prepared.body_sha256());
        let copied = self.publisher.copy(&self.delivery, wait, headers);
        let proof = publish(self.tools, Message::Copy, copied).await?;
        info!(
            out_request_no = %self.redemption.out_request_no,
            coupon = %Short(self.redemption.coupon_code.as_str()),
            attempts = progress.attempts,
            belief = progress.belief.to_words(),
            wait_s = wait.as_secs(),
            "deferred: not settled yet, asked again later"
        );
        Ok((Settling::Deferred, self.delivery, proof))
    }

    async fn finish(self, outcome: Outcome) -> Worked {
        let Self { tools, publisher, redemption, delivery, carried, .. } = self;
        let Carried { progress, evidence } = carried;
        let now = Timestamp::now();
        let told = telling(tools, &delivery, now, progress.attempts, &evidence);
        let event = event::tell(&redemption, &outcome, told);
        let mut proof = publish(tools, Message::Event, publisher.event(&event, &delivery)).await?;
        if let Outcome::Unresolved { reason, .. } = &outcome {
            let headers = copy::write(&progress, &evidence, self.prepared.body_sha256());
            let parked = publisher.park(&delivery, reason.as_str(), now, headers);
            proof = proof.and(publish(tools, Message::Parked, parked).await?);
        }
        let age = Timestamp::now().duration_since(progress.first_seen).max(SignedDuration::ZERO);
        tools.metrics.ended(&outcome, age.unsigned_abs());
        log(&redemption, &outcome, &progress, &evidence, age);
        Ok((Settling::Ended, delivery, proof))
    }
}

enum Asked {
    Step(Step),
    Cut,
}

/// The one line of a settled command.
fn log(
    redemption: &Redemption,
    outcome: &Outcome,
    progress: &Progress,
    evidence: &[Evidence],
    age: SignedDuration,
) {
    let request_id = evidence.last().and_then(|last| last.request_id.as_deref());
    let state = outcome.coupon().map(|coupon| coupon.state.as_str());
    macro_rules! line {
        ($level:ident, $text:literal) => {
            $level!(
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

/// How brands answered lately: whether a NO_AUTH is one brand's word or our own fault.
#[derive(Debug, Default)]
pub struct Brands(Mutex<Option<Instant>>);

/// How long a brand's acceptance speaks for us.
const LATELY: Duration = Duration::from_secs(600);

impl Brands {
    /// Some brand's business was answered.
    fn accepted(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn any_accepted(&self, now: Instant) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| now.duration_since(at) < LATELY)
    }
}
