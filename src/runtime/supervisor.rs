//! Keeps one broker session after the other until the service stops.
//!
//! A lost connection is an ordinary state: the deliveries in hand are dropped, the broker delivers them again, and the
//! next session begins with the handshake.

use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::amqp::connection::{AmqpSettings, CannotConnect};
use crate::amqp::session::Session;
use crate::config::Config;
use crate::policy::backoff::Backoff;
use crate::policy::prefetch_ramp::{PrefetchRamp, pause_after};
use crate::runtime::consume_loop::{Done, HeldDelivery};
use crate::runtime::held_back::HeldBack;
use crate::runtime::key_reload::KeyFaults;
use crate::runtime::lanes::Lanes;
use crate::runtime::notices::Notices;
use crate::runtime::permits::Permits;
use crate::runtime::queue_monitor::Sweeps;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::worker::WorkerContext;
use crate::telemetry::status::{Notice, Reason, ReasonCode, Status};
use crate::wechat::client::SharedKeyring;

/// Interval of the periodic work.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// The first and the longest pause between two probes of a missing right or exchange.
pub(super) const PROBE_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// AMQP's reply code for an exchange that does not exist.
pub(super) const NOT_FOUND: u16 = 404;

/// The state that the consume loop owns.
pub struct Service {
    pub(super) keys: SharedKeyring,
    pub(super) context: Arc<WorkerContext>,
    pub(super) status: watch::Sender<Status>,
    pub(super) lanes: Lanes<HeldDelivery>,
    /// Whether it consumes although calls are held back, for commands that end without one.
    pub(super) holds_back: bool,
    pub(super) held_back: HeldBack,
    pub(super) jobs: JoinSet<Done>,
    /// The last attempt to restore the topology.
    pub(super) restoring: Option<(Instant, JoinHandle<()>)>,
    /// Since when nothing has been held.
    pub(super) idle_since: Option<Instant>,
    /// Since when something has been held.
    pub(super) holding_since: Option<Instant>,
    pub(super) permits: Permits,
    pub(super) prefetch: u16,
    pub(super) ramp: PrefetchRamp,
    pub(super) received_in_session: u64,
    /// Of these, settled and not lost.
    pub(super) settled_in_session: u64,
    pub(super) sweeps: Sweeps,
    /// The warning that the broker accepts messages that are too large, once that is known.
    pub(super) size_warning: Arc<OnceLock<&'static str>>,
    /// Faults of key files now.
    pub(super) key_trouble: KeyFaults,
    pub(super) drain: Duration,
    /// The merchant number, for readiness.
    pub(super) caller: String,
    /// The serial as configured.
    pub(super) serial: String,
    pub(super) notices: Notices,
    /// The notices of the status page.
    pub(super) shown: Vec<Notice>,
}

/// Why a session ended.
pub(super) enum Ended {
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
            holds_back: false,
            held_back: HeldBack::default(),
            jobs: JoinSet::new(),
            restoring: None,
            idle_since: None,
            holding_since: None,
            permits: Permits::new(config.concurrency.commands),
            prefetch: config.broker.prefetch,
            ramp: PrefetchRamp::new(config.broker.prefetch),
            received_in_session: 0,
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

    /// Builds one session after the other, with growing pauses while none can be built.
    pub async fn supervise(&mut self, settings: &AmqpSettings, mut shutdown: Shutdown) {
        self.await_keys(&mut shutdown).await;
        // Short, because every second of an outage delays somebody's money.
        let pauses = Backoff::new(Duration::from_millis(100), 1.6, 0.3, Duration::from_millis(500))
            .unwrap_or_default();
        let (mut failures, mut fruitless) = (0, 0);
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
            let pause = match built {
                Err(error) => {
                    let why = error.to_string();
                    if failures % 60 == 0 {
                        warn!(error = why, "broker unavailable; retrying");
                    }
                    self.publish_broker_unavailable(&why);
                    let pause = pauses.wait(failures, rand::random());
                    failures = failures.saturating_add(1);
                    pause
                }
                Ok(session) => {
                    let Some(lasted) = self.run_session(settings, session, number, &mut shutdown).await
                    else {
                        break;
                    };
                    // A session that lasted for a while is no failure; one that broke at once is.
                    failures = if lasted > Duration::from_secs(5) { 0 } else { failures + 1 };
                    fruitless = match (self.received_in_session, self.settled_in_session) {
                        (1.., 0) => fruitless + 1,
                        _ => 0,
                    };
                    let pause = pauses.wait(failures, rand::random()).max(pause_after(fruitless));
                    if fruitless > 3 {
                        let pause_s = pause.as_secs();
                        warn!(
                            sessions = fruitless,
                            pause_s, "sessions lost without a settled command; pausing longer"
                        );
                    }
                    pause
                }
            };
            self.await_jobs(pause, &mut shutdown).await;
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
        shutdown: &mut Shutdown,
    ) -> Option<Duration> {
        let session = Arc::new(session);
        info!(broker = session.at(), "connected");
        self.context.metrics.record_connected();
        let begun = Instant::now();
        let ended = self.serve(settings, &session, number, shutdown).await;
        self.context.metrics.record_disconnected();
        match ended {
            Ended::Shutdown => {
                session.close().await;
                None
            }
            Ended::Lost(why) => {
                warn!(why, "broker connection lost; reconnecting");
                self.publish_broker_unavailable(&why);
                tokio::spawn(async move { session.close().await });
                Some(begun.elapsed())
            }
        }
    }

    fn publish_broker_unavailable(&self, why: &str) {
        let reason = Reason::new(ReasonCode::BrokerUnavailable, format!("broker: {why}"));
        self.publish_status(None, false, vec![reason]);
    }

    /// Confirms that events, retry messages and parked commands are accepted, for as long as a broker alarm, a missing right
    /// or a missing exchange lasts. Nothing is consumed before.
    pub(super) async fn confirm_topology(
        &mut self,
        session: Session,
        shutdown: &mut Shutdown,
    ) -> Result<Session, CannotConnect> {
        let (first, longest) = PROBE_AGAIN;
        let pauses = Backoff::new(first, 1.6, 0.3, longest).unwrap_or_default();
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
                // A missing object is created with the next session.
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

    /// Waits for a key to verify responses with. Without one no response could be verified, so nothing is consumed.
    pub(super) async fn await_keys(&mut self, shutdown: &mut Shutdown) {
        let keys = self.keys.clone();
        let held = || !keys.read().unwrap_or_else(PoisonError::into_inner).public.is_empty();
        while !held() && !shutdown.is_requested() {
            let why = "keys: no key to verify responses with yet; platform certificates are being downloaded";
            self.publish_status(None, false, vec![Reason::new(ReasonCode::NoVerificationKey, why)]);
            tokio::select! {
                () = sleep(TICK) => {}
                () = shutdown.wait() => {}
            }
        }
    }

    /// Waits between two sessions, while jobs of the old one end.
    pub(super) async fn await_jobs(&mut self, pause: Duration, shutdown: &mut Shutdown) {
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
