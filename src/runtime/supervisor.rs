//! Keeps one broker session after the other until the service stops.
//!
//! A lost connection is an ordinary state: the deliveries in hand are dropped, the broker delivers them again, and the
//! next session begins with the handshake.

use crate::runtime::service::{Ended, Service, TICK};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{info, warn};

use crate::amqp::connection::{AmqpSettings, CannotConnect, NOT_FOUND};
use crate::amqp::session::Session;
use crate::amqp::topology::Mode;
use crate::policy::backoff::Backoff;
use crate::policy::prefetch_ramp::pause_after;
use crate::runtime::shutdown::Shutdown;
use crate::telemetry::status::{ReasonCode, StatusReason};

/// The pauses during a fault that only an operator can end, such as a missing right or exchange.
fn standing_pauses() -> Backoff {
    let (first, longest) = (Duration::from_millis(500), Duration::from_secs(15));
    Backoff::new(first, 1.6, 0.3, longest).unwrap_or_default()
}

/// After this many refusals in a row the pauses grow: an operator must change something. A broker that restarts refuses,
/// too, for a moment.
const STANDING_AFTER: u32 = 10;

/// The pauses between two sessions.
struct Pauses {
    /// Short, because every second of an outage delays redemptions.
    outage: Backoff,
    standing: Backoff,
    failures: u32,
    /// Failures in a row that only an operator can end.
    refusals: u32,
    /// Sessions in a row that took commands and settled none.
    fruitless: u32,
}

impl Pauses {
    fn new() -> Self {
        let outage = Backoff::new(Duration::from_millis(100), 1.6, 0.3, Duration::from_millis(500));
        let (outage, standing) = (outage.unwrap_or_default(), standing_pauses());
        Self { outage, standing, failures: 0, refusals: 0, fruitless: 0 }
    }

    /// The pause after a session that could not be built.
    fn after_error(&mut self, error: &CannotConnect) -> Duration {
        self.refusals = if error.is_standing() { self.refusals.saturating_add(1) } else { 0 };
        let pause = match self.refusals.checked_sub(STANDING_AFTER) {
            Some(nth) => self.standing.wait(nth, rand::random()),
            None => self.outage.wait(self.failures, rand::random()),
        };
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The pause after a session by how long it lasted and how many commands it received and settled.
    fn after_session(&mut self, lasted: Duration, received: u64, settled: u64) -> Duration {
        self.refusals = 0;
        // A session that lasted for a while is not a failure; one that broke at once is.
        self.failures = if lasted > Duration::from_secs(5) { 0 } else { self.failures + 1 };
        self.fruitless = if received > 0 && settled == 0 { self.fruitless + 1 } else { 0 };
        let pause = self.outage.wait(self.failures, rand::random()).max(pause_after(self.fruitless));
        if self.fruitless > 3 {
            let (sessions, pause_s) = (self.fruitless, pause.as_secs());
            warn!(sessions, pause_s, "sessions lost without a settled command; pausing longer");
        }
        pause
    }
}

impl Service {
    /// Builds one session after the other, with growing pauses while none can be built.
    pub async fn supervise(&mut self, settings: &AmqpSettings, shutdown: Shutdown) {
        self.await_keys(&shutdown).await;
        let mut pauses = Pauses::new();
        for number in 0.. {
            let built = tokio::select! {
                built = Session::establish(settings, number) => built,
                () = shutdown.wait() => break,
            };
            self.record_heartbeat();
            let built = match built {
                Ok(session) => self.confirm_topology(settings, session, &shutdown).await,
                Err(error) => Err(error),
            };
            if shutdown.is_requested() {
                break;
            }
            let pause = match built {
                Err(error) => {
                    let why = error.to_string();
                    if pauses.failures.is_multiple_of(60) {
                        warn!(error = why, "broker unavailable; retrying");
                    }
                    self.publish_broker_unavailable(&why);
                    pauses.after_error(&error)
                }
                Ok(session) => {
                    let lasted = self.run_session(settings, session, number, &shutdown).await;
                    let Some(lasted) = lasted else { break };
                    pauses.after_session(lasted, self.received_in_session, self.settled_in_session)
                }
            };
            self.await_jobs(pause, &shutdown).await;
            if shutdown.is_requested() {
                break;
            }
        }
    }

    /// Consumes on a session until it ends. Gives how long it lasted if it was lost, `None` if the service stops.
    async fn run_session(
        &mut self,
        settings: &AmqpSettings,
        session: Session,
        number: usize,
        shutdown: &Shutdown,
    ) -> Option<Duration> {
        let session = Arc::new(session);
        info!(broker = session.at(), "connected");
        self.context.metrics.broker.record_connected();
        let begun = Instant::now();
        self.message_sizes.forget();
        let sizes = tokio::spawn(self.message_sizes.clone().find_out(settings.clone(), number));
        let ended = self.serve(settings, &session, number, shutdown).await;
        sizes.abort();
        self.context.metrics.broker.record_disconnected();
        match ended {
            Ended::Shutdown => {
                session.close().await;
                None
            }
            Ended::Lost(why) => {
                let (cause, why) = (why.code(), why.to_string());
                warn!(cause, why, "broker connection lost; reconnecting");
                self.publish_broker_unavailable(&why);
                tokio::spawn(async move { session.close().await });
                Some(begun.elapsed())
            }
        }
    }

    fn publish_broker_unavailable(&self, why: &str) {
        let reason = StatusReason::new(ReasonCode::BrokerUnavailable, format!("broker: {why}"));
        self.publish_status(None, false, vec![reason]);
    }

    /// Confirms that events, retry messages and parked commands are accepted, for as long as a broker alarm, a missing right
    /// or a missing exchange lasts. Nothing is consumed before.
    pub(super) async fn confirm_topology(
        &mut self,
        settings: &AmqpSettings,
        session: Session,
        shutdown: &Shutdown,
    ) -> Result<Session, CannotConnect> {
        let pauses = standing_pauses();
        let mut nth = 0;
        loop {
            let confirming = async {
                session.confirm_publishing().await?;
                session.probe_publish_rights().await
            };
            let confirmed = tokio::select! {
                confirmed = confirming => confirmed,
                () = shutdown.wait() => return Ok(session),
            };
            self.record_heartbeat();
            let Err(error) = confirmed else { return Ok(session) };
            let pause = match &error {
                // A missing object is created with the next session, if we may create any.
                CannotConnect::MayNotPublish { rejection, .. }
                    if rejection.code == NOT_FOUND && settings.mode == Mode::Create =>
                {
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
                vec![StatusReason::new(ReasonCode::PublishingRejected, format!("broker: {error}"))],
            );
            self.await_jobs(pause, shutdown).await;
            if shutdown.is_requested() {
                return Ok(session);
            }
        }
    }

    /// Waits for a key to verify responses with. Without one no response could be verified, so nothing is consumed.
    pub(super) async fn await_keys(&mut self, shutdown: &Shutdown) {
        let keys = self.keys.clone();
        let held = || !keys.read().unwrap_or_else(PoisonError::into_inner).public.is_empty();
        while !held() && !shutdown.is_requested() {
            let why = "keys: no key to verify responses with yet; platform certificates are being downloaded";
            self.publish_status(None, false, vec![StatusReason::new(ReasonCode::NoVerificationKey, why)]);
            tokio::select! {
                () = sleep(TICK) => {}
                () = shutdown.wait() => {}
            }
        }
    }

    /// Waits between two sessions, while jobs of the old one end.
    pub(super) async fn await_jobs(&mut self, pause: Duration, shutdown: &Shutdown) {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = shutdown.wait() => return,
                Some(done) = self.jobs.join_next() => self.finish_job(done, None),
            }
        }
    }
}
