//! Receives deliveries of one session and starts their workers, as the circuit and the prefetch ramp allow.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{error, info, warn};

use crate::amqp::connection::{AmqpSettings, Health};
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::{PublishFailure, Publisher};
use crate::amqp::session::{Deliveries, Session};
use crate::policy::prefetch_ramp::PrefetchRamp;
use crate::runtime::circuit_gate::{Cause, State};
use crate::runtime::failpoints::{self, Failpoint};
use crate::runtime::permits::Permit;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::supervisor::{Ended, Service, TICK};
use crate::runtime::worker::{
    ReceivedDelivery, process_delivery, return_to_queue,
};
use crate::telemetry::metrics::Settlement;
use crate::telemetry::status::{Reason, ReasonCode};

/// How long calls may be held back before what was prefetched is handed back.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// The longest wait for deliveries to be handed back.
pub(super) const HAND_BACK: Duration = Duration::from_secs(5);

/// Time between two changes of channels while the broker refuses what is published.
pub(super) const RENEW_CHANNELS_EVERY: Duration = Duration::from_secs(2);

/// Time between two looks at the number of consumers.
pub(super) const CONSUMER_COUNT_EVERY: Duration = Duration::from_secs(1);

/// Time between two looks at the depth of every queue.
pub(super) const QUEUE_DEPTHS_EVERY: Duration = Duration::from_secs(5);

/// A delivery with what it needs to be settled: all of one session.
pub(super) struct HeldDelivery {
    pub(super) taken: ReceivedDelivery,
    pub(super) publisher: Publisher,
    pub(super) cancel: watch::Receiver<bool>,
    pub(super) number: usize,
}

pub(super) struct Done {
    pub(super) settling: Settlement,
    pub(super) lane: Option<Box<str>>,
    pub(super) trouble: Option<String>,
    pub(super) number: usize,
}

impl Service {
    /// Consumes on one session until it is lost or it is time to stop.
    pub(super) async fn serve(
        &mut self,
        settings: &AmqpSettings,
        session: &Arc<Session>,
        number: usize,
        shutdown: &mut Shutdown,
    ) -> Ended {
        let (cancel, cut_receiver) = watch::channel(false);
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
                cancel.send_replace(true);
                self.sifting = false;
                // The broker delivers these again; nobody has worked on them.
                for _ in self.clear_waiting() {
                    self.context.metrics.record_settled(Settlement::Lost);
                }
                self.count();
            }
            Ended::Shutdown => self.stop(session.publisher(), consumer, &cancel).await,
        }
        ended
    }

    /// Begins, widens or ends consumption, as the circuit breaker and the prefetch ramp allow. What came to a consumer of one, and
    /// was not looked at, is left to be taken all the same: given back it would come again as redelivered, and nobody could
    /// tell any more that it was never sent.
    pub(super) async fn start_ready(
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
    pub(super) fn full_prefetch(&self) -> u16 {
        // What is sifted was read and did no harm: the ramp is about the others.
        let sifted = u16::try_from(self.sifted.waiting.len()).unwrap_or(u16::MAX);
        let ramp = self.ramp.limit().map_or(self.prefetch, |limit| limit.saturating_add(sifted));
        ramp.min(self.prefetch)
    }

    pub(super) fn take(
        &mut self,
        delivery: Delivery,
        session: &Session,
        cancel: &watch::Receiver<bool>,
        number: usize,
    ) {
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
        let held =
            HeldDelivery { taken, publisher: session.publisher().clone(), cancel: cancel.clone(), number };
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
    pub(super) fn admit(&mut self, mut held: HeldDelivery) {
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
    pub(super) fn count(&self) {
        self.context.metrics.set_in_flight(self.held(), self.permits.in_use());
    }

    pub(super) fn start_work(&mut self) {
        while let Some(permit) = self.permits.acquire() {
            let Some((lane, held)) = self.lanes.start() else { return };
            self.start_job(permit, lane, held);
        }
    }

    pub(super) fn start_job(&mut self, mut permit: Permit, lane: Option<Box<str>>, held: HeldDelivery) {
        let context = self.context.clone();
        if PrefetchRamp::is_full(held.taken.delivery.delivery_count()) {
            permit.trust();
        }
        self.jobs.spawn(async move {
            let HeldDelivery { taken, publisher, cancel, number } = held;
            let waited = Timestamp::now().duration_since(taken.at);
            context.metrics.observe_lane_wait(waited.max(jiff::SignedDuration::ZERO).unsigned_abs());
            // A panic is a defect, but it must not close the coupon's lane: the delivery is lost with its session,
            // and the broker delivers it again.
            // In a box: a task is moved several times while it is begun and ended, and all this work with it.
            let work = Box::pin(process_delivery(&context, &publisher, taken, &mut permit, cancel));
            let worked = AssertUnwindSafe(work).catch_unwind().await;
            let (settling, trouble) = worked.unwrap_or_else(|_| {
                error!("defect: a worker panicked");
                (Settlement::Lost, Some("a worker panicked".to_owned()))
            });
            Done { settling, lane, trouble, number }
        });
    }

    /// A worker ended. Trouble with the broker ends the session that it belonged to, if that is the present one.
    pub(super) fn finished(
        &mut self,
        done: Result<Done, tokio::task::JoinError>,
        present: Option<(&Session, usize)>,
    ) {
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
    pub(super) async fn stop(
        &mut self,
        publisher: &Publisher,
        consumer: Option<Deliveries>,
        cancel: &watch::Sender<bool>,
    ) {
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
        cancel.send_replace(true);
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
}

pub(super) async fn next(consumer: &mut Option<Deliveries>) -> Option<Delivery> {
    match consumer {
        Some(deliveries) => deliveries.next().await,
        None => std::future::pending().await,
    }
}

/// Hands deliveries back. A connection that is gone does that by itself, and must not be waited for once for each of them.
///
/// # Errors
/// In words, where the broker was not reached: what it still takes for ours comes again when the session has ended.
pub(super) async fn hand_back(
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
