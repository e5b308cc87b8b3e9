//! Receives deliveries of one session and starts their workers, as the circuit and the prefetch ramp allow.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::amqp::confirm::PublishFailure;
use crate::amqp::connection::{AmqpSettings, Health};
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::Publisher;
use crate::amqp::session::{Deliveries, Session};
use crate::amqp::session_end::SessionEnd;
use crate::policy::prefetch_ramp::PrefetchRamp;
use crate::runtime::circuit_gate::{CircuitCause, GateState, State};
use crate::runtime::failpoints::{self, Failpoint};
use crate::runtime::permits::Permit;
use crate::runtime::service::{Done, Ended, GRACE, HeldDelivery, JobEnd, Service, TICK};
use crate::runtime::shutdown::Shutdown;
use crate::runtime::worker::{ReceivedDelivery, process_delivery};
use crate::telemetry::metrics::Settlement;
use crate::telemetry::status::{ReasonCode, StatusReason};

/// Interval between two renewals of the channels while the broker refuses publishes.
pub(super) const RENEW_CHANNELS_EVERY: Duration = Duration::from_secs(2);

/// Interval between two counts of the consumers.
pub(super) const CONSUMER_COUNT_EVERY: Duration = Duration::from_secs(1);

/// Interval between two samples of the queue depths.
pub(super) const QUEUE_DEPTHS_EVERY: Duration = Duration::from_secs(5);

/// The most deliveries held before any call has succeeded.
const STARTING_MAX: u16 = 16;

/// When the periodic work of one session was last done.
#[derive(Default)]
struct LastDone {
    consumer_count: Option<Instant>,
    queue_depths: Option<Instant>,
    channel_renewal: Option<Instant>,
}

/// The most deliveries held before any call has succeeded: one, and one more for each second that something is held, so
/// that a first call that hangs does not delay the others.
fn starting_max(since: Option<Instant>) -> u16 {
    let seconds = since.map_or(0, |since| since.elapsed().as_secs());
    u16::try_from(seconds).unwrap_or(u16::MAX).saturating_add(1).min(STARTING_MAX)
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|at| at.elapsed() >= every)
}

/// The state of the loop of one session.
struct SessionLoop<'a> {
    settings: &'a AmqpSettings,
    session: &'a Arc<Session>,
    number: usize,
    canceled: CancellationToken,
    consumer: Option<Deliveries>,
    held_back_since: Option<Instant>,
    last_done: LastDone,
    report_due: bool,
}

impl<'a> SessionLoop<'a> {
    fn new(
        settings: &'a AmqpSettings,
        session: &'a Arc<Session>,
        number: usize,
        canceled: CancellationToken,
    ) -> Self {
        let last_done = LastDone::default();
        let (consumer, held_back_since, report_due) = (None, None, true);
        Self { settings, session, number, canceled, consumer, held_back_since, last_done, report_due }
    }
}

impl Service {
    /// Consumes on one session until it is lost or the service stops.
    pub(super) async fn serve(
        &mut self,
        settings: &AmqpSettings,
        session: &Arc<Session>,
        number: usize,
        shutdown: &Shutdown,
    ) -> Ended {
        let canceled = CancellationToken::new();
        let _canceled_if_dropped = canceled.clone().drop_guard();
        let mut health = session.health();
        let mut states = self.context.circuit_gate.states();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = SessionLoop::new(settings, session, number, canceled);
        (self.received_in_session, self.settled_in_session) = (0, 0);

        let ended = loop {
            let now: Health = health.borrow_and_update().clone();
            let gate = states.borrow_and_update().clone();
            let state = gate.state;
            if shutdown.is_requested() {
                break Ended::Shutdown;
            }
            if let Err(why) = self.begin_round(&mut round, &gate, &now).await {
                // The end of the connection is the cause, and the failed request its consequence.
                let known = health.borrow().lost.clone();
                break Ended::Lost(known.unwrap_or(why));
            }
            let receives = round.consumer.is_some() && self.receives(state, &now);
            tokio::select! {
                delivery = next(&mut round.consumer), if receives => match delivery {
                    Some(delivery) => self.receive(delivery, session, &round.canceled, number),
                    None => break Ended::Lost(session.end_reason().await),
                },
                Some(done) = self.jobs.join_next() => {
                    self.finish_job(done, Some((session, number)));
                    // Acknowledgements are sent together, so workers end together.
                    while let Some(done) = self.jobs.try_join_next() {
                        self.finish_job(done, Some((session, number)));
                    }
                }
                () = self.permits.released() => {}
                _ = health.changed() => round.report_due = true,
                _ = states.changed() => round.report_due = true,
                () = shutdown.wait() => {}
                _ = tick.tick() => if let Err(why) = self.tick(&mut round, &now).await {
                    break Ended::Lost(why);
                },
            }
        };
        match &ended {
            Ended::Lost(why) => {
                // Jobs that still publish on it must know.
                session.abort(why.clone());
                self.drop_session(&round.canceled);
            }
            Ended::Shutdown => self.stop(round).await,
        }
        ended
    }

    /// Starts jobs, adjusts consumption and reports.
    async fn begin_round(
        &mut self,
        round: &mut SessionLoop<'_>,
        gate: &GateState,
        now: &Health,
    ) -> Result<(), SessionEnd> {
        let state = gate.state;
        if let Some(why) = &now.lost {
            return Err(why.clone());
        }
        let through = self.permits.acquire_through();
        self.ramp.record_completed(through.saturating_add(self.context.publish_faults.take_held_count()));
        self.start_jobs();
        round.held_back_since = match state {
            State::Closed if now.blocked.is_none() => None,
            _ => round.held_back_since.or_else(|| Some(Instant::now())),
        };
        self.start_held_back(state);
        self.holding_since = match self.held() {
            0 => None,
            _ => self.holding_since.or_else(|| Some(Instant::now())),
        };
        let (session, since) = (round.session, round.held_back_since);
        let left = self.adjust_consumption(session, &mut round.consumer, state, now, since).await?;
        match left {
            Left::Kept(left) => {
                for delivery in left {
                    self.receive(delivery, session, &round.canceled, round.number);
                }
            }
            Left::HandedBack(left) => {
                self.start_hand_backs(left, session.publisher(), &round.canceled, round.number);
                self.release_waiting();
            }
        }
        self.start_jobs();
        if std::mem::take(&mut round.report_due) {
            self.report(session, round.consumer.is_some(), gate, now);
        }
        Ok(())
    }

    /// Whether the next delivery is received now.
    fn receives(&self, state: State, now: &Health) -> bool {
        now.blocked.is_none()
            && match state {
                State::Closed => true,
                State::HalfOpen { cause: CircuitCause::Starting, .. } => {
                    self.held() < usize::from(starting_max(self.holding_since))
                }
                State::HalfOpen { .. } => self.holds_back || self.held() == 0,
                State::Open { .. } => self.holds_back,
            }
    }

    /// Drops the deliveries of a lost session that are not in work. The broker delivers them again.
    fn drop_session(&mut self, cancel: &CancellationToken) {
        self.ramp.restart();
        cancel.cancel();
        self.holds_back = false;
        for _ in self.clear_waiting() {
            self.context.metrics.commands.record_settled(Settlement::Lost);
        }
        self.set_in_flight();
    }

    /// The periodic work.
    async fn tick(&mut self, round: &mut SessionLoop<'_>, now: &Health) -> Result<(), SessionEnd> {
        round.report_due = true;
        let (session, settings) = (round.session, round.settings);
        self.restore_topology(settings);
        self.sweep_dead_letters(settings, &round.canceled);
        if is_due(round.last_done.queue_depths, QUEUE_DEPTHS_EVERY) {
            round.last_done.queue_depths = Some(Instant::now());
            self.sample_queue_depths(session, settings);
        }
        self.context.circuit_gate.tick();
        let blocked = now.blocked.is_some();
        if self.unaccepted().contains(&PublishFailure::Refused)
            && !blocked
            && is_due(round.last_done.channel_renewal, RENEW_CHANNELS_EVERY)
        {
            round.last_done.channel_renewal = Some(Instant::now());
            session.renew_channels().await;
        }
        self.end_late();
        let full = round.consumer.as_ref().is_some_and(|has| self.held() >= usize::from(has.prefetch()));
        if !blocked && self.handing_back == 0 && self.held_back.is_due(full) {
            self.release_waiting();
        }
        let count_due = is_due(round.last_done.consumer_count, CONSUMER_COUNT_EVERY);
        if (count_due || self.context.rate_limiter.is_joining()) && round.consumer.is_some() {
            round.last_done.consumer_count = Some(Instant::now());
            self.share_rate_limit(session).await;
        }
        Ok(())
    }

    /// Takes this instance's share of the rate limit by the number of consumers.
    async fn share_rate_limit(&self, session: &Session) {
        let Some((consumers, _)) = session.consumer_count().await else { return };
        let rate_limiter = &self.context.rate_limiter;
        self.context.metrics.rate_limit.set_consumers(consumers);
        let before = rate_limiter.per_second();
        rate_limiter.adjust(consumers, Instant::now());
        let per_second = rate_limiter.per_second();
        if per_second != before {
            info!(consumers, per_second, "share of the rate limit changed");
        }
    }

    /// Starts consuming, sets the prefetch, or stops consuming, as the circuit and the prefetch ramp allow. Gives the
    /// deliveries that a stopped consumer had not handed over.
    pub(super) async fn adjust_consumption(
        &mut self,
        session: &Session,
        consumer: &mut Option<Deliveries>,
        state: State,
        health: &Health,
        held_back_since: Option<Instant>,
    ) -> Result<Left, SessionEnd> {
        let has = consumer.as_ref().map(Deliveries::prefetch);
        let prefetch = match state {
            State::Closed => Some(self.full_prefetch()),
            State::HalfOpen { cause: CircuitCause::Starting, .. } => {
                Some(starting_max(self.holding_since).min(self.message_sizes.prefetch_max()))
            }
            // One command is enough to find out.
            State::HalfOpen { .. } if has.is_none() && self.held() == 0 => Some(1),
            State::HalfOpen { .. } | State::Open { .. } => has,
        };
        let grace_expired = held_back_since.is_some_and(|since| since.elapsed() > GRACE);
        let failing = !matches!(state, State::Closed | State::HalfOpen { cause: CircuitCause::Starting, .. });
        // Prefetched deliveries are handed back once; later ones are held back if they can wait.
        self.holds_back = failing && (self.holds_back || grace_expired && has.is_none_or(|has| has == 1));
        let prefetch = match (prefetch, has) {
            _ if self.holds_back && health.blocked.is_none() => Some(self.full_prefetch()),
            _ if self.holds_back => has,
            (Some(_), Some(2..)) if grace_expired && failing => None,
            (Some(_), Some(1)) if matches!(state, State::Open { .. }) => None,
            (Some(_), None) if health.blocked.is_some() => None,
            (prefetch, _) => prefetch,
        };
        match (prefetch, has) {
            (None, Some(_)) => {
                if let Some(deliveries) = consumer.take() {
                    let left = deliveries.cancel(Duration::from_secs(5)).await?;
                    if has != Some(1) {
                        return Ok(Left::HandedBack(left));
                    }
                    return Ok(Left::Kept(left));
                }
            }
            // Zero would mean no limit.
            (Some(0), _) => {}
            (Some(prefetch), _) => match consumer {
                Some(deliveries) => session.set_prefetch(deliveries, prefetch).await?,
                None => {
                    *consumer = Some(session.consume(prefetch).await?);
                    if let Some((consumers, _)) = session.consumer_count().await {
                        self.context.rate_limiter.join(consumers, Instant::now());
                    }
                }
            },
            (None, None) => {}
        }
        Ok(Left::Kept(Vec::new()))
    }

    /// Hands back deliveries that nobody has received yet.
    fn start_hand_backs(
        &mut self,
        deliveries: Vec<Delivery>,
        publisher: &Publisher,
        cancel: &CancellationToken,
        number: usize,
    ) {
        for delivery in deliveries {
            let limits = self.context.deadline_limits;
            let received = ReceivedDelivery::with_deadline(delivery, Timestamp::now(), limits);
            self.context.metrics.commands.record_taken(received.arrival());
            let (publisher, cancel) = (publisher.clone(), cancel.clone());
            self.start_hand_back(HeldDelivery { received, publisher, cancel, number, kept: false });
        }
    }

    /// The prefetch while calls are made.
    pub(super) fn full_prefetch(&self) -> u16 {
        // Deliveries that are held back, held for a publish, or wait for their next call were read without harm: the ramp,
        // and the size of messages, limit the others.
        let held_back = self.held_back.waiting.len()
            + self.context.publish_faults.held_count()
            + self.permits.trusted_waiting();
        let held_back = u16::try_from(held_back).unwrap_or(u16::MAX);
        let unread = self.ramp.limit().unwrap_or(self.prefetch).min(self.message_sizes.prefetch_max());
        let uncounted = u16::try_from(self.uncounted()).unwrap_or(u16::MAX);
        unread.saturating_add(held_back).min(self.prefetch).saturating_sub(uncounted)
    }

    pub(super) fn receive(
        &mut self,
        delivery: Delivery,
        session: &Session,
        cancel: &CancellationToken,
        number: usize,
    ) {
        self.received_in_session += 1;
        failpoints::abort_on(delivery.body());
        let limits = self.context.deadline_limits;
        let mut received = ReceivedDelivery::with_deadline(delivery, Timestamp::now(), limits);
        let may_wait = received.may_wait_for_calls(!self.context.limits.delays.is_empty());
        received.calls_held_back = self.holds_back && !may_wait;
        let can_wait = self.holds_back && may_wait;
        self.context.metrics.commands.record_taken(received.arrival());
        if failpoints::forgets() {
            self.set_in_flight();
            return;
        }
        let trusted = PrefetchRamp::counts_when_waiting(received.delivery.delivery_count());
        let held = HeldDelivery {
            received,
            publisher: session.publisher().clone(),
            cancel: cancel.clone(),
            number,
            kept: false,
        };
        if can_wait {
            // It was read without harm.
            self.ramp.record_completed(u16::from(trusted));
            self.held_back.push(held);
        } else {
            self.admit(held);
        }
        self.set_in_flight();
    }

    /// Puts a delivery into its lane.
    pub(super) fn admit(&mut self, mut held: HeldDelivery) {
        let lane = held.received.lane().map(Box::<str>::from);
        // One coupon must not fill the prefetch, or other coupons would wait for it.
        let over_limit = !self.context.limits.delays.is_empty()
            && lane.as_deref().is_some_and(|lane| self.lanes.is_full(lane));
        held.received.over_coupon_limit = over_limit;
        if over_limit {
            self.start_beside_lane(held);
        } else {
            self.lanes.push(lane.as_deref(), held);
        }
    }

    /// Sets the number of deliveries held, against those received and settled.
    pub(super) fn set_in_flight(&self) {
        self.context.metrics.commands.set_in_flight(self.held(), self.permits.in_use());
    }

    /// Starts a job that does not wait for its lane, nor for a permit.
    pub(super) fn start_beside_lane(&mut self, held: HeldDelivery) {
        self.lanes.push_unlaned();
        self.start_job(self.permits.none(), None, held);
    }

    pub(super) fn start_jobs(&mut self) {
        while let Some(permit) = self.permits.acquire() {
            let Some((lane, held)) = self.lanes.start() else { return };
            self.start_job(permit, lane, held);
        }
    }

    pub(super) fn start_job(&mut self, mut permit: Permit, lane: Option<Box<str>>, held: HeldDelivery) {
        let context = self.context.clone();
        if PrefetchRamp::counts_when_waiting(held.received.delivery.delivery_count()) {
            permit.trust();
        }
        self.jobs.spawn(async move {
            let HeldDelivery { received, publisher, cancel, number, kept: _ } = held;
            let waited = Timestamp::now().duration_since(received.at);
            context.metrics.commands.observe_lane_wait(waited.max(jiff::SignedDuration::ZERO).unsigned_abs());
            // A panic is a defect, but it must not close the coupon's lane: the delivery is lost with its session,
            // and the broker delivers it again. Boxed, because a task is moved several times while it starts and ends.
            let work = Box::pin(process_delivery(&context, &publisher, received, &mut permit, cancel));
            let worked = AssertUnwindSafe(work).catch_unwind().await;
            let settled = worked.unwrap_or_else(|_| {
                error!("defect: a worker panicked");
                Err(SessionEnd::WorkerPanicked)
            });
            Done { end: JobEnd::Worked(settled, lane), number }
        });
    }

    /// Frees the lane of a job that ended. A failure of the broker ends the session that the job belonged to, if it is
    /// the current one.
    pub(super) fn finish_job(
        &mut self,
        done: Result<Done, tokio::task::JoinError>,
        current: Option<(&Session, usize)>,
    ) {
        // A job catches its own panics and is only aborted at the end of a shutdown.
        let Ok(Done { end, number }) = done else { return };
        // Lost with a session that must end, or with one that has ended already.
        let settled = match end {
            JobEnd::Worked(settled, lane) => {
                self.lanes.finish(lane);
                settled.map_err(Some)
            }
            JobEnd::HandedBack(settled) => {
                self.finish_hand_back(None);
                settled.map_err(Some)
            }
            JobEnd::Kept(held, why) if !held.publisher.is_lost() => {
                self.finish_hand_back(Some(why));
                self.held_back.push(*held);
                return;
            }
            JobEnd::Kept(..) => {
                self.finish_hand_back(None);
                Err(None)
            }
        };
        let settlement = settled.as_ref().map_or(Settlement::Lost, |settlement| *settlement);
        self.context.metrics.commands.record_settled(settlement);
        self.set_in_flight();
        match settled {
            Ok(_) => {
                self.settled_in_session += 1;
                self.ramp.record_completed(1);
            }
            Err(Some(why)) => {
                if let Some((session, current)) = current
                    && number == current
                {
                    session.abort(why);
                }
            }
            Err(None) => {}
        }
    }

    /// Finishes the commands in work and hands back the others.
    async fn stop(&mut self, round: SessionLoop<'_>) {
        let SessionLoop { session, number, canceled, consumer, .. } = round;
        info!(in_flight = self.held(), "stopping; finishing commands in work");
        let reasons = vec![StatusReason::new(ReasonCode::Stopping, "stopping")];
        self.publish_status(None, false, reasons);
        let left = match consumer {
            Some(deliveries) => deliveries.cancel(Duration::from_secs(5)).await,
            None => Ok(Vec::new()),
        };
        canceled.cancel();
        match left {
            Ok(left) => self.start_hand_backs(left, session.publisher(), &canceled, number),
            Err(why) => warn!(%why, "deliveries not handed back; the broker delivers them again"),
        }
        self.release_waiting();
        failpoints::reached(Failpoint::Draining);
        let drain = self.drain;
        let sweeping = self.sweeps.running.take();
        let mut renewed = None;
        let finish = async {
            let mut alive = interval(TICK);
            loop {
                tokio::select! {
                    done = self.jobs.join_next() => match done {
                        Some(done) => {
                            self.finish_job(done, None);
                            // A hand-back that was not accepted before is repeated until it is.
                            self.release_waiting();
                        }
                        None => break,
                    },
                    // The process is alive while it drains, however long that takes.
                    _ = alive.tick() => {
                        self.record_heartbeat();
                        if self.unaccepted().contains(&PublishFailure::Refused)
                            && is_due(renewed, RENEW_CHANNELS_EVERY)
                        {
                            renewed = Some(Instant::now());
                            session.renew_channels().await;
                        }
                    }
                }
            }
            if let Some(sweep) = sweeping {
                let _ = sweep.await;
            }
        };
        if timeout(drain, finish).await.is_err() {
            warn!(left = self.jobs.len(), "shutdown deadline exceeded; the broker delivers the rest again");
            self.jobs.shutdown().await;
        }
    }
}

pub(super) async fn next(consumer: &mut Option<Deliveries>) -> Option<Delivery> {
    match consumer {
        Some(deliveries) => deliveries.next().await,
        None => std::future::pending().await,
    }
}

/// The deliveries that a stopped consumer had not handed over.
pub(super) enum Left {
    /// They are received: the consumer had a prefetch of one. Handed back, it would be unknown that no call about them was
    /// made.
    Kept(Vec<Delivery>),
    /// They are handed back, with everything that waits.
    HandedBack(Vec<Delivery>),
}
