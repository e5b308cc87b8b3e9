//! Runs the service: keys, admin port, and one session of broker connections after the other until told to stop.
//!
//! The main loop owns the lanes and takes deliveries; workers run beside it. A lost connection is an ordinary state:
//! what was in hand is dropped, the broker delivers it again, and the next session begins from the handshake.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::amqp::connection::{AmqpSettings, CannotConnect, Health};
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::{PublishFailure, Publisher, Rejection};
use crate::amqp::session::{Deliveries, Session};
use crate::amqp::topology::{self, Mode, ObjectState};
use crate::config::Config;
use crate::policy::backoff::Backoff;
use crate::policy::circuit::ResponseClass;
use crate::policy::classify::SuspendReason;
use crate::policy::prefetch_ramp::{PrefetchRamp, pause_after};
use crate::runtime::circuit_gate::{Cause, FailureKind, State};
use crate::runtime::dead_letter_sweep::{self, Swept};
use crate::runtime::failpoints::{self, Failpoint};
use crate::runtime::key_reload::KeyFaults;
use crate::runtime::lanes::Lanes;
use crate::runtime::notices::{self, Notices};
use crate::runtime::permits::{Permit, Permits};
use crate::runtime::publishing::CancelSignal;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::worker::{
    ReceivedDelivery, SuspendedBy, WorkerContext, process_delivery, return_to_queue,
};
use crate::telemetry::metrics::{Queue, Settlement};
use crate::telemetry::status::{Notice, Reason, ReasonCode, Status};
use crate::wechat::client::SharedKeyring;

/// Time between two looks at everything that no event tells of.
const TICK: Duration = Duration::from_millis(250);
/// How long calls may be held back before what was prefetched is handed back.
const GRACE: Duration = Duration::from_secs(10);
/// How long what can only wait is kept in hand while calls are held back, where it fills the hands: behind it there may be
/// commands whose time is over. A command that was handed back costs a look more, so it is no shorter.
const HELD_MAX: Duration = Duration::from_secs(15);
/// The same where it does not fill them: the broker takes away what is held for half an hour.
const HELD_MAX_WITH_ROOM: Duration = Duration::from_secs(300);
/// The longest wait for deliveries to be handed back.
const HAND_BACK: Duration = Duration::from_secs(5);
/// The first and the longest pause between two tries of a right or an exchange that is missing.
const PROBE_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// AMQP's reply code for an exchange that does not exist.
const NOT_FOUND: u16 = 404;
/// The first and the longest pause between two sweeps of dead letters that brought none its event. The longest leaves room
/// within a minute: what is past its deadline has its event by then.
const SWEEP_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(40));
/// Time between two looks for what is missing on the broker.
const RESTORE_TOPOLOGY_EVERY: Duration = Duration::from_secs(1);
/// Time between two changes of channels while the broker refuses what is published.
const RENEW_CHANNELS_EVERY: Duration = Duration::from_secs(2);
/// Time between two looks at the number of consumers.
const CONSUMER_COUNT_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at the depth of every queue.
const QUEUE_DEPTHS_EVERY: Duration = Duration::from_secs(5);

/// What the main loop owns.
pub struct Service {
    keys: SharedKeyring,
    context: Arc<WorkerContext>,
    status: watch::Sender<Status>,
    lanes: Lanes<HeldDelivery>,
    /// Whether it consumes although calls are held back, for what ends without one.
    sifting: bool,
    sifted: HeldBack,
    jobs: JoinSet<Done>,
    /// The last look for what is missing on the broker.
    restoring: Option<(Instant, JoinHandle<()>)>,
    /// Since when nothing has been in hand.
    idle_since: Option<Instant>,
    permits: Permits,
    prefetch: u16,
    ramp: PrefetchRamp,
    taken_in_session: u64,
    /// Of these, settled in whatever way but by being lost.
    settled_in_session: u64,
    sweeps: Sweeps,
    /// That the broker takes messages which are too large, once that is known.
    size_warning: Arc<OnceLock<&'static str>>,
    /// What is wrong with key files now.
    key_trouble: KeyFaults,
    drain: Duration,
    /// The merchant number, for reasons in words.
    caller: String,
    /// The serial as configured.
    serial: String,
    notices: Notices,
    /// What the status page says beside the reasons.
    shown: Vec<Notice>,
}

/// A delivery with what it needs to be settled: all of one session.
struct HeldDelivery {
    taken: ReceivedDelivery,
    publisher: Publisher,
    cut: watch::Receiver<bool>,
    number: usize,
}

/// What was taken while calls are held back, and can only wait for the end of that.
#[derive(Default)]
struct HeldBack {
    waiting: Vec<HeldDelivery>,
    /// When the first of these was taken.
    since: Option<Instant>,
}

impl HeldBack {
    fn push(&mut self, held: HeldDelivery) {
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push(held);
    }

    fn clear(&mut self) -> Vec<HeldDelivery> {
        self.since = None;
        std::mem::take(&mut self.waiting)
    }

    /// Whether these have been in hand for long enough; `full` if there is room for nothing else.
    fn is_due(&self, full: bool) -> bool {
        let held_max = if full { HELD_MAX } else { HELD_MAX_WITH_ROOM };
        self.since.is_some_and(|since| since.elapsed() >= held_max)
    }
}

/// Sweeps of dead letters.
#[derive(Default)]
struct Sweeps {
    /// The one that is under way.
    running: Option<JoinHandle<Swept>>,
    /// How many in a row brought none its event.
    in_vain: u32,
    not_before: Option<Instant>,
    /// Why the last one broke off.
    failure: Option<String>,
}

impl Sweeps {
    /// Reads what a sweep came to once it has ended. Whether another one may begin.
    fn is_due(&mut self) -> bool {
        if let Some(sweep) = &mut self.running {
            let Some(swept) = sweep.now_or_never() else { return false };
            self.running = None;
            self.end(swept.unwrap_or_else(|_| Swept::Failed("a sweep was broken off".to_owned())));
        }
        self.not_before.is_none_or(|at| at <= Instant::now())
    }

    fn end(&mut self, swept: Swept) {
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

struct Done {
    settling: Settlement,
    lane: Option<Box<str>>,
    trouble: Option<String>,
    number: usize,
}

/// Why consuming ended.
enum Ended {
    Lost(String),
    Shutdown,
}

impl Service {
    /// A service that has not connected yet.
    pub fn new(
        config: &Config,
        keys: SharedKeyring,
        context: Arc<WorkerContext>,
        status: watch::Sender<Status>,
        size_warning: Arc<OnceLock<&'static str>>,
        key_trouble: KeyFaults,
    ) -> Self {
        Self {
            keys,
            context,
            status,
            lanes: Lanes::new(config.concurrency.per_coupon),
            sifting: false,
            sifted: HeldBack::default(),
            jobs: JoinSet::new(),
            restoring: None,
            idle_since: None,
            permits: Permits::new(config.concurrency.commands),
            prefetch: config.broker.prefetch,
            ramp: PrefetchRamp::new(config.broker.prefetch),
            taken_in_session: 0,
            settled_in_session: 0,
            sweeps: Sweeps::default(),
            size_warning,
            key_trouble,
            drain: config.shutdown.deadline.0,
            caller: config.wechat.mchid.clone(),
            serial: config.wechat.merchant_serial.clone(),
            notices: Notices::default(),
            shown: Vec::new(),
        }
    }

    /// Builds sessions for ever, with growing pauses while none can be built.
    pub async fn supervise(&mut self, settings: &AmqpSettings, mut shutdown: Shutdown) {
        self.await_keys(&mut shutdown).await;
        // Short, because every second down is a second late for somebody's money.
        let pauses = Backoff::new(Duration::from_millis(100), 1.6, 0.3, Duration::from_millis(500))
            .unwrap_or_default();
        let (mut failures, mut in_vain) = (0, 0);
        for number in 0.. {
            let built = tokio::select! {
                built = Session::establish(settings, number) => built,
                () = shutdown.wait() => break,
            };
            self.record_heartbeat();
            let built = match built {
                Ok(session) => self.confirm_topology(session, &mut shutdown).await,
                Err(error) => Err(error),
            };
            if shutdown.is_requested() {
                break;
            }
            match built {
                Err(error) => {
                    let why = error.to_string();
                    if failures % 60 == 0 {
                        warn!(error = why, "no connection to the broker; trying on");
                    }
                    self.publish_status(
                        None,
                        false,
                        vec![Reason::new(ReasonCode::BrokerUnavailable, format!("broker: {why}"))],
                    );
                    self.await_jobs(pauses.wait(failures, rand::random()), &mut shutdown).await;
                    failures = failures.saturating_add(1);
                }
                Ok(session) => {
                    let session = Arc::new(session);
                    info!(broker = session.at(), "connected");
                    self.context.metrics.record_connected();
                    let begun = Instant::now();
                    let ended = self.serve(settings, &session, number, &mut shutdown).await;
                    self.context.metrics.record_disconnected();
                    match ended {
                        Ended::Shutdown => {
                            session.close().await;
                            break;
                        }
                        Ended::Lost(why) => {
                            warn!(why, "connection to the broker lost; connecting anew");
                            self.publish_status(
                                None,
                                false,
                                vec![Reason::new(ReasonCode::BrokerUnavailable, format!("broker: {why}"))],
                            );
                            tokio::spawn(async move { session.close().await });
                            // A session that held for a while was no failure; one that broke at once was.
                            let held = begun.elapsed() > Duration::from_secs(5);
                            failures = if held { 0 } else { failures + 1 };
                            in_vain = match (self.taken_in_session, self.settled_in_session) {
                                (1.., 0) => in_vain + 1,
                                _ => 0,
                            };
                            let pause = pauses.wait(failures, rand::random()).max(pause_after(in_vain));
                            if in_vain > 3 {
                                warn!(
                                    sessions = in_vain,
                                    pause_s = pause.as_secs(),
                                    "sessions were lost without a settled command; waiting longer before the next one"
                                );
                            }
                            self.await_jobs(pause, &mut shutdown).await;
                        }
                    }
                }
            }
            if shutdown.is_requested() {
                break;
            }
        }
    }

    /// Confirms that what the service must publish is accepted, for as long as an alarm of the broker, a missing right or a
    /// missing exchange lasts. Nothing is consumed before.
    async fn confirm_topology(
        &mut self,
        session: Session,
        shutdown: &mut Shutdown,
    ) -> Result<Session, CannotConnect> {
        let (first, longest) = PROBE_AGAIN;
        let pauses = Backoff::new(first, 1.6, 0.3, longest).unwrap_or_default();
        let mut nth = 0;
        loop {
            let proving = async {
                session.confirm_publishing().await?;
                session.probe_publish_rights().await
            };
            let proved = tokio::select! {
                proved = proving => proved,
                () = shutdown.wait() => return Ok(session),
            };
            self.record_heartbeat();
            let Err(error) = proved else { return Ok(session) };
            let pause = match &error {
                // What is missing is made with the next session.
                CannotConnect::MayNotPublish { rejection, .. } if rejection.code == NOT_FOUND => {
                    tokio::spawn(async move { session.close().await });
                    return Err(error);
                }
                CannotConnect::MayNotPublish { .. } => pauses.wait(nth, rand::random()),
                _ if session.is_blocked() => Duration::ZERO,
                _ => {
                    tokio::spawn(async move { session.close().await });
                    return Err(error);
                }
            };
            nth = nth.saturating_add(1);
            self.publish_status(
                Some(session.at()),
                false,
                vec![Reason::new(ReasonCode::PublishingRejected, format!("broker: {error}"))],
            );
            self.await_jobs(pause, shutdown).await;
            if shutdown.is_requested() {
                return Ok(session);
            }
        }
    }

    /// Without a key to verify answers with, no answer could be believed: nothing is taken before there is one.
    async fn await_keys(&mut self, shutdown: &mut Shutdown) {
        let keys = self.keys.clone();
        let held = || !keys.read().unwrap_or_else(PoisonError::into_inner).public.is_empty();
        while !held() && !shutdown.is_requested() {
            let why = "keys: no key to verify answers with yet; platform certificates are being downloaded";
            self.publish_status(None, false, vec![Reason::new(ReasonCode::NoVerificationKey, why)]);
            tokio::select! {
                () = sleep(TICK) => {}
                () = shutdown.wait() => {}
            }
        }
    }

    /// Waits between two sessions, and lets workers of the old one end.
    async fn await_jobs(&mut self, pause: Duration, shutdown: &mut Shutdown) {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = shutdown.wait() => return,
                Some(done) = self.jobs.join_next() => self.finished(done, None),
            }
        }
    }

    /// Consumes on one session until it is lost or it is time to stop.
    async fn serve(
        &mut self,
        settings: &AmqpSettings,
        session: &Arc<Session>,
        number: usize,
        shutdown: &mut Shutdown,
    ) -> Ended {
        let (cut, cut_receiver) = watch::channel(false);
        let mut health = session.health();
        let mut states = self.context.circuit_gate.states();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut consumer: Option<Deliveries> = None;
        let mut held_back_since: Option<Instant> = None;
        let mut counted_at: Option<Instant> = None;
        let mut weighed_at: Option<Instant> = None;
        let mut renewed_at: Option<Instant> = None;
        let mut report_due = true;
        (self.taken_in_session, self.settled_in_session) = (0, 0);

        let ended = loop {
            let through = self.permits.acquire_through();
            self.ramp.record_through(through.saturating_add(self.context.publish_faults.complete_with()));
            self.start_work();
            let now: Health = health.borrow_and_update().clone();
            if let Some(why) = now.lost {
                break Ended::Lost(why);
            }
            if shutdown.is_requested() {
                break Ended::Shutdown;
            }
            let state = *states.borrow_and_update();
            held_back_since = match state {
                State::Closed if now.blocked.is_none() => None,
                _ => held_back_since.or_else(|| Some(Instant::now())),
            };
            self.start_held_back(state);
            match self.start_ready(session, &mut consumer, state, &now, held_back_since).await {
                Ok(left) => {
                    for delivery in left {
                        self.take(delivery, session, &cut_receiver, number);
                    }
                    self.start_work();
                }
                Err(why) => {
                    // What ended the connection is the reason, not what could not be asked of it any more.
                    let known = health.borrow().lost.clone();
                    break Ended::Lost(known.unwrap_or(why));
                }
            }
            if std::mem::take(&mut report_due) {
                self.report(session, consumer.is_some(), state, &now);
            }

            let takes = now.blocked.is_none()
                && match state {
                    State::Closed => true,
                    State::HalfOpen { .. } => self.sifting || self.held() == 0,
                    State::Open { .. } => self.sifting,
                };
            tokio::select! {
                delivery = next(&mut consumer), if takes && consumer.is_some() => match delivery {
                    Some(delivery) => self.take(delivery, session, &cut_receiver, number),
                    None => break Ended::Lost(session.ended().await),
                },
                Some(done) = self.jobs.join_next() => {
                    self.finished(done, Some((session, number)));
                    // Acknowledgements go out together, so workers end together.
                    while let Some(done) = self.jobs.try_join_next() {
                        self.finished(done, Some((session, number)));
                    }
                }
                () = self.permits.released() => {}
                _ = health.changed() => report_due = true,
                _ = states.changed() => report_due = true,
                () = shutdown.wait() => {}
                _ = tick.tick() => {
                    report_due = true;
                    self.context.circuit_gate.tick();
                    self.restore_topology(settings);
                    if self.context.publish_faults.longest_held().contains(&PublishFailure::Refused)
                        && now.blocked.is_none()
                        && renewed_at.is_none_or(|at| at.elapsed() >= RENEW_CHANNELS_EVERY)
                    {
                        renewed_at = Some(Instant::now());
                        session.renew_channels().await;
                    }
                    if weighed_at.is_none_or(|at| at.elapsed() >= QUEUE_DEPTHS_EVERY) {
                        weighed_at = Some(Instant::now());
                        self.sample_queue_depths(session, settings);
                    }
                    self.sweep_dead_letters(settings, session, &cut_receiver);
                    self.end_late_held_back();
                    let full = consumer.as_ref().is_some_and(|has| self.held() >= usize::from(has.prefetch()));
                    if now.blocked.is_none()
                        && self.sifted.is_due(full)
                        && let Err(why) = self.release_waiting(session.publisher()).await
                    {
                        break Ended::Lost(why);
                    }
                    let count_due = counted_at.is_none_or(|at| at.elapsed() >= CONSUMER_COUNT_EVERY);
                    if (count_due || self.context.rate_limiter.is_joining()) && consumer.is_some() {
                        counted_at = Some(Instant::now());
                        if let Some((consumers, _)) = session.consumer_count().await {
                            self.context.metrics.set_consumers(consumers);
                            let before = self.context.rate_limiter.per_second();
                            self.context.rate_limiter.adjust(consumers, Instant::now());
                            let per_second = self.context.rate_limiter.per_second();
                            if per_second != before {
                                info!(consumers, per_second, "this instance's pace changed");
                            }
                        }
                    }
                }
            }
        };

        match &ended {
            Ended::Lost(_) => {
                self.ramp.restart();
                cut.send_replace(true);
                self.sifting = false;
                // The broker delivers these again; nobody has worked on them.
                for _ in self.clear_waiting() {
                    self.context.metrics.record_settled(Settlement::Lost);
                }
                self.count();
            }
            Ended::Shutdown => self.stop(session.publisher(), consumer, &cut).await,
        }
        ended
    }

    /// Begins, widens or ends consumption, as the circuit breaker and the prefetch ramp allow. What came to a consumer of one, and
    /// was not looked at, is left to be taken all the same: given back it would come again as redelivered, and nobody could
    /// tell any more that it was never sent.
    async fn start_ready(
        &mut self,
        session: &Session,
        consumer: &mut Option<Deliveries>,
        state: State,
        health: &Health,
        held_back_since: Option<Instant>,
    ) -> Result<Vec<Delivery>, String> {
        let has = consumer.as_ref().map(Deliveries::prefetch);
        let wanted = match state {
            State::Closed => Some(self.full_prefetch()),
            // With one in hand there is enough to find out.
            State::HalfOpen { .. } if has.is_none() && self.held() == 0 => Some(1),
            State::HalfOpen { .. } | State::Open { .. } => has,
        };
        let tired = held_back_since.is_some_and(|since| since.elapsed() > GRACE);
        let failing = !matches!(state, State::Closed | State::HalfOpen { cause: Cause::Starting, .. });
        // What was prefetched goes back once; what is taken from then on is sifted.
        self.sifting = failing && (self.sifting || tired && has.is_none_or(|has| has == 1));
        let wanted = match (wanted, has) {
            _ if self.sifting && health.blocked.is_none() => Some(self.full_prefetch()),
            _ if self.sifting => has,
            (Some(_), Some(2..)) if tired && state != State::Closed => None,
            (Some(_), Some(1)) if matches!(state, State::Open { .. }) => None,
            (Some(_), None) if health.blocked.is_some() => None,
            (wanted, _) => wanted,
        };
        match (wanted, has) {
            (None, Some(_)) => {
                if let Some(deliveries) = consumer.take() {
                    let left = deliveries.cancel(Duration::from_secs(5)).await?;
                    if has == Some(1) {
                        return Ok(left);
                    }
                    hand_back(session.publisher(), left).await?;
                    self.release_waiting(session.publisher()).await?;
                }
            }
            (Some(wanted), _) => match consumer {
                Some(deliveries) => session.set_prefetch(deliveries, wanted).await?,
                None => {
                    *consumer = Some(session.consume(wanted).await?);
                    if let Some((consumers, _)) = session.consumer_count().await {
                        self.context.rate_limiter.join(consumers, Instant::now());
                    }
                }
            },
            (None, None) => {}
        }
        Ok(Vec::new())
    }

    /// As many as may be unsettled at once where calls are made.
    fn full_prefetch(&self) -> u16 {
        // What is sifted was read and did no harm: the ramp is about the others.
        let sifted = u16::try_from(self.sifted.waiting.len()).unwrap_or(u16::MAX);
        let ramp = self.ramp.limit().map_or(self.prefetch, |limit| limit.saturating_add(sifted));
        ramp.min(self.prefetch)
    }

    /// What waits for calls to be made again, where they are, or one of it, to find out.
    fn start_held_back(&mut self, state: State) {
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
    fn end_late_held_back(&mut self) {
        let now = Timestamp::now();
        let is_late = |held: &mut HeldDelivery| held.taken.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<HeldDelivery> = self.sifted.waiting.extract_if(.., is_late).collect();
        for mut held in late {
            held.taken.calls_held_back = true;
            self.admit(held);
        }
    }

    /// How many are in hand, worked on or not.
    fn held(&self) -> usize {
        self.lanes.held() + self.sifted.waiting.len()
    }

    /// Takes out everything that nobody works on yet.
    fn clear_waiting(&mut self) -> Vec<HeldDelivery> {
        let mut waiting = self.lanes.clear();
        waiting.extend(self.sifted.clear());
        waiting
    }

    /// Gives back what is held but not worked on.
    async fn release_waiting(&mut self, publisher: &Publisher) -> Result<(), String> {
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

    fn take(&mut self, delivery: Delivery, session: &Session, cut: &watch::Receiver<bool>, number: usize) {
        self.taken_in_session += 1;
        let mut taken = ReceivedDelivery::new(delivery, Timestamp::now());
        let may_wait = taken.may_wait_for_calls(!self.context.limits.delays.is_empty());
        taken.calls_held_back = self.sifting && !may_wait;
        let sifts = self.sifting && may_wait;
        self.context.metrics.record_taken(taken.arrival());
        if failpoints::forgets() {
            self.count();
            return;
        }
        let trusted = PrefetchRamp::is_full(taken.delivery.delivery_count());
        let held = HeldDelivery { taken, publisher: session.publisher().clone(), cut: cut.clone(), number };
        if sifts {
            // It was read, and did no harm.
            self.ramp.record_through(u16::from(trusted));
            self.sifted.push(held);
        } else {
            self.admit(held);
        }
        self.count();
    }

    /// Lets a delivery in to be worked on.
    fn admit(&mut self, mut held: HeldDelivery) {
        let lane = held.taken.lane().map(Box::<str>::from);
        // One coupon must not take up all that may be held, or other coupons would wait for it all the same.
        let crowded = !self.context.limits.delays.is_empty()
            && lane.as_deref().is_some_and(|lane| self.lanes.is_full(lane));
        held.taken.over_coupon_limit = crowded;
        if crowded {
            self.lanes.push_unlaned();
            self.start_job(self.permits.none(), None, held);
        } else {
            self.lanes.push(lane.as_deref(), held);
        }
    }

    /// Tells how many are held, beside what was taken and settled.
    fn count(&self) {
        self.context.metrics.observe_lane_wait(self.held(), self.permits.in_use());
    }

    fn start_work(&mut self) {
        while let Some(permit) = self.permits.acquire() {
            let Some((lane, held)) = self.lanes.start() else { return };
            self.start_job(permit, lane, held);
        }
    }

    fn start_job(&mut self, mut permit: Permit, lane: Option<Box<str>>, held: HeldDelivery) {
        let context = self.context.clone();
        if PrefetchRamp::is_full(held.taken.delivery.delivery_count()) {
            permit.trust();
        }
        self.jobs.spawn(async move {
            let HeldDelivery { taken, publisher, cut, number } = held;
            let waited = Timestamp::now().duration_since(taken.at);
            context.metrics.record_started(waited.max(jiff::SignedDuration::ZERO).unsigned_abs());
            // A panic is a defect, but it must not close the coupon's lane: the delivery is lost with its session,
            // and the broker delivers it again.
            // In a box: a task is moved several times while it is begun and ended, and all this work with it.
            let work = Box::pin(process_delivery(&context, &publisher, taken, &mut permit, cut));
            let worked = AssertUnwindSafe(work).catch_unwind().await;
            let (settling, trouble) = worked.unwrap_or_else(|_| {
                error!("defect: a worker panicked");
                (Settlement::Lost, Some("a worker panicked".to_owned()))
            });
            Done { settling, lane, trouble, number }
        });
    }

    /// A worker ended. Trouble with the broker ends the session that it belonged to, if that is the present one.
    fn finished(&mut self, done: Result<Done, tokio::task::JoinError>, present: Option<(&Session, usize)>) {
        // A worker catches its own panics and is only aborted when everything ends.
        let Ok(Done { settling, lane, trouble, number }) = done else { return };
        self.lanes.finish(lane);
        self.context.metrics.record_settled(settling);
        self.count();
        if settling != Settlement::Lost {
            self.settled_in_session += 1;
            self.ramp.record_through(1);
        }
        if let (Some(why), Some((session, present))) = (trouble, present)
            && number == present
        {
            session.abort(&why);
        }
    }

    /// Finishes what is in flight, hands back the rest.
    async fn stop(&mut self, publisher: &Publisher, consumer: Option<Deliveries>, cut: &watch::Sender<bool>) {
        info!(in_flight = self.held(), "stopping: finishing what is in flight");
        let reasons = vec![Reason::new(ReasonCode::Stopping, "stopping")];
        self.publish_status(None, false, reasons);
        let left = match consumer {
            Some(deliveries) => deliveries.cancel(Duration::from_secs(5)).await,
            None => Ok(Vec::new()),
        };
        let given = match left {
            Ok(left) => hand_back(publisher, left).await,
            Err(why) => Err(why),
        };
        for why in [given, self.release_waiting(publisher).await].into_iter().filter_map(Result::err) {
            warn!(why, "the broker will deliver again what it had handed over");
        }
        cut.send_replace(true);
        failpoints::reached(Failpoint::Draining);
        let drain = self.drain;
        let sweeping = self.sweeps.running.take();
        let finish = async {
            let mut alive = interval(TICK);
            loop {
                tokio::select! {
                    done = self.jobs.join_next() => match done {
                        Some(done) => self.finished(done, None),
                        None => break,
                    },
                    // The process is alive while it finishes, however long that takes.
                    _ = alive.tick() => self.record_heartbeat(),
                }
            }
            if let Some(sweep) = sweeping {
                let _ = sweep.await;
            }
        };
        if timeout(drain, finish).await.is_err() {
            warn!(left = self.jobs.len(), "the deadline passed; the broker will deliver the rest again");
            self.jobs.shutdown().await;
        }
    }

    /// Looks at the depth of every queue, beside everything else: a slow broker must not hold up the loop.
    fn sample_queue_depths(&self, session: &Arc<Session>, settings: &AmqpSettings) {
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
    fn sweep_dead_letters(&mut self, settings: &AmqpSettings, session: &Session, cut: &CancelSignal) {
        if !self.sweeps.is_due() {
            return;
        }
        if self.context.metrics.dead_letters() == 0 {
            self.sweeps.failure = None;
            return;
        }
        let (context, settings) = (self.context.clone(), settings.clone());
        let (publisher, cut) = (session.publisher().clone(), cut.clone());
        self.sweeps.running = Some(tokio::spawn(dead_letter_sweep::sweep(context, settings, publisher, cut)));
    }

    /// A queue, a binding or an exchange that publishes show to be gone is made again beside everything else, on a
    /// connection of its own.
    fn restore_topology(&mut self, settings: &AmqpSettings) {
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

    fn record_heartbeat(&self) {
        self.status.send_modify(|status| status.turned = Timestamp::now());
    }

    /// Tells operators how things stand.
    fn report(&mut self, session: &Session, consuming: bool, state: State, health: &Health) {
        self.idle_since = match self.held() {
            0 => self.idle_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
        let mut reasons = Vec::new();
        if let Some(why) = &health.blocked {
            let words = format!("broker: publishing is blocked ({why})");
            reasons.push(Reason::new(ReasonCode::BrokerBlocked, words));
        }
        let metrics = &self.context.metrics;
        metrics.set_blocked(health.blocked.is_some());
        for why in self.context.publish_faults.longest_held() {
            let remedy = match &why {
                PublishFailure::Rejected(rejection) => format!("; {}", session.remedy(rejection)),
                _ => String::new(),
            };
            let words = format!(
                "broker: results or retry messages are not accepted ({why}); they are published again{remedy}"
            );
            reasons.push(Reason::new(ReasonCode::PublishingRejected, words));
        }
        let idle = self.idle_since.is_some_and(|since| since.elapsed() > GRACE);
        let (open, cause) = match state {
            State::Closed => (false, None),
            // It consumes, and nothing has waited for it for a while: nothing to find out, and nothing late.
            State::HalfOpen { cause: Cause::Failing(_), .. } if idle && consuming => (false, None),
            State::HalfOpen { cause: Cause::Starting, .. } => (false, None),
            State::HalfOpen { cause, .. } | State::Open { cause, .. } => (true, Some(cause)),
        };
        metrics.set_circuit(cause.and_then(notices::circuit_notice));
        let (part, throttled_share) = self.context.rate_limiter.reduced();
        let per_second = self.context.rate_limiter.per_second();
        metrics.set_rate(per_second);
        metrics.rate_limit_used(part);
        let standing = notices::NoticeState { per_second, part, throttled_share, cause };
        self.shown = self.notices.update(standing, &self.context.responses);
        // Permits fill without a delivery being taken or settled.
        self.count();
        if let Some(cause) = cause {
            let serial = self.merchant_serial();
            let caller = format!("merchant {}, serial {serial}", self.caller);
            let stopped_by = self.context.stopped_by.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let last = self.context.responses.last(ResponseClass::Unverified).map(|last| last.describe());
            let skew = metrics.last_clock_skew();
            let words = describe_cause(cause, &caller, &stopped_by, skew, &last.unwrap_or_default());
            reasons.push(Reason::new(code_of(cause), words));
        }
        let consuming = consuming && health.blocked.is_none() && !open;
        metrics.set_consuming(consuming);
        if !consuming && reasons.is_empty() {
            reasons.push(Reason::not_consuming());
        }
        self.publish_status(Some(session.at()), consuming, reasons);
    }

    /// The serial that calls are signed under now.
    fn merchant_serial(&self) -> String {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        keys.merchant_serial.clone().unwrap_or_else(|| self.serial.clone())
    }

    /// What needs somebody's attention, and keeps nothing else from being worked on.
    fn warnings(&self) -> Vec<Reason> {
        let rejected = self.context.publish_faults.last_rejection().into_iter().map(|rejection| {
            let words = format!(
                "broker: an event is rejected, and its command delayed ({rejection}); others are published"
            );
            Reason::new(ReasonCode::EventRejected, words)
        });
        let waiting = match self.context.metrics.dead_letters() {
            0 => None,
            count => {
                let words =
                    format!("broker: {count} dead-lettered commands have no event yet; they are swept");
                Some(Reason::new(ReasonCode::DeadLettersWaiting, words))
            }
        };
        let unswept = self.sweeps.failure.as_ref().map(|why| {
            let words = format!("broker: dead-lettered commands cannot be swept ({why}); it is tried again");
            Reason::new(ReasonCode::DeadLetterSweepFailed, words)
        });
        let size = self.size_warning.get().map(|words| Reason::new(ReasonCode::MessageSizeUnbounded, *words));
        let keys = self.key_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let keys = keys.into_iter().map(|why| {
            Reason::new(ReasonCode::KeyFileUnusable, format!("keys: {why}; the current ones stay in use"))
        });
        rejected.chain(waiting).chain(unswept).chain(size).chain(keys).collect()
    }

    fn publish_status(&self, broker: Option<&str>, consuming: bool, reasons: Vec<Reason>) {
        let (in_flight, warnings) = (self.held(), self.warnings());
        self.status.send_modify(|status| {
            if status.warnings != warnings && !warnings.is_empty() {
                warn!(warnings = join(&warnings), "needs attention");
            }
            if status.reasons != reasons {
                match reasons.as_slice() {
                    [] => info!("ready"),
                    reasons => warn!(reasons = join(reasons), "not ready"),
                }
            }
            *status = Status {
                turned: Timestamp::now(),
                broker: broker.map(str::to_owned),
                consuming,
                in_flight,
                reasons,
                warnings,
                notices: self.shown.clone(),
            };
        });
    }
}

fn join(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

/// The code of the reason for which calls wait.
fn code_of(cause: Cause) -> ReasonCode {
    match cause {
        Cause::Starting => ReasonCode::Starting,
        Cause::Failing(FailureKind::NoResponse) => ReasonCode::ProviderUnreachable,
        Cause::Failing(FailureKind::ServerError) => ReasonCode::ProviderFailing,
        Cause::Failing(FailureKind::Unverified) => ReasonCode::ResponsesUnverified,
        Cause::Suspended(SuspendReason::Unauthenticated) => ReasonCode::SuspendedUnauthenticated,
        Cause::Suspended(SuspendReason::Unauthorized) => ReasonCode::SuspendedUnauthorized,
        Cause::Suspended(SuspendReason::Rejected) => ReasonCode::SuspendedRejected,
    }
}

/// `caller` is who signs, `stopped_by` what an answer said that stopped us, `skew` the provider's clock less ours in
/// seconds by its last answer of all, `not_believed` the last answer that could not be believed.
fn describe_cause(
    cause: Cause,
    caller: &str,
    stopped_by: &SuspendedBy,
    skew: f64,
    not_believed: &str,
) -> String {
    let not_believed = match not_believed {
        "" => String::new(),
        last => format!("; last: {last}"),
    };
    let said = match stopped_by.said.as_str() {
        "" => String::new(),
        said => format!("; it says: {said}"),
    };
    match cause {
        Cause::Starting => "starting: nothing has been answered yet".to_owned(),
        Cause::Failing(FailureKind::NoResponse) => {
            "payment API: it does not answer; calls are held back and tried one at a time".to_owned()
        }
        Cause::Failing(FailureKind::ServerError) => {
            "payment API: it answers that it is in trouble (5xx); calls are held back and tried one at a time"
                .to_owned()
        }
        Cause::Failing(FailureKind::Unverified) => format!(
            "payment API: its answers carry no signature that we can verify; look at wechat.public_keys and the \
             platform certificates, then at the clock ({caller}{}{not_believed}); calls are held back and tried one at a \
             time",
            describe_clock(skew)
        ),
        Cause::Suspended(SuspendReason::Unauthenticated) => format!(
            "payment API: it rejects our signature (401); look at the merchant key, its serial, the merchant number \
             and the clock ({caller}{}{said}); consumption goes on by itself once it is mended",
            describe_clock(stopped_by.clock_skew.unwrap_or(0.0))
        ),
        Cause::Suspended(SuspendReason::Rejected) => format!(
            "payment API: it rejects every call alike; look at wechat.verification_serial, the names of \
             wechat.public_keys and the merchant number ({caller}{said}); consumption goes on by itself once it is mended"
        ),
        Cause::Suspended(SuspendReason::Unauthorized) => format!(
            "payment API: no brand has authorized us (NO_AUTH); look at the merchant platform ({caller}{said}); \
             consumption goes on by itself once it is mended"
        ),
    }
}

/// The clock where it is worth a word: `Date` has whole seconds, and the way takes its time.
fn describe_clock(skew: f64) -> String {
    match skew.round() {
        behind if behind >= 3.0 => format!("; our clock is {behind} s behind the provider's"),
        ahead if ahead <= -3.0 => format!("; our clock is {} s ahead of the provider's", -ahead),
        _ => String::new(),
    }
}

/// Makes what is missing on the broker, and says so.
async fn restore(settings: AmqpSettings) {
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

async fn next(consumer: &mut Option<Deliveries>) -> Option<Delivery> {
    match consumer {
        Some(deliveries) => deliveries.next().await,
        None => std::future::pending().await,
    }
}

/// Hands deliveries back. A connection that is gone does that by itself, and must not be waited for once for each of them.
///
/// # Errors
/// In words, where the broker was not reached: what it still takes for ours comes again when the session has ended.
async fn hand_back(
    publisher: &Publisher,
    deliveries: impl IntoIterator<Item = Delivery>,
) -> Result<(), String> {
    let all = async {
        for delivery in deliveries {
            return_to_queue(publisher, delivery, Vec::new()).await?;
        }
        Ok(())
    };
    timeout(HAND_BACK, all).await.unwrap_or_else(|_| Err(format!("it took nothing back for {HAND_BACK:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_the_clock_only_where_it_is_off() {
        let stopped = Cause::Suspended(SuspendReason::Unauthenticated);
        let words = |skew, said: &str| {
            let stopped_by = SuspendedBy { said: said.to_owned(), clock_skew: Some(skew) };
            // Later answers to other operations say nothing about what stopped us.
            describe_cause(stopped, "merchant 19, serial 77", &stopped_by, 5_000.0, "")
        };
        let late = "(merchant 19, serial 77; our clock is 600 s behind the provider's; it says: SIGN_ERROR)";
        assert!(words(600.4, "SIGN_ERROR").contains(late));
        assert!(words(-61.0, "").contains("our clock is 61 s ahead of the provider's)"));
        assert!(!words(-1.2, "").contains("our clock is"));
    }
}
