//! The state of the running service, which its parts share: the consume loop, the deliveries held back, the queue
//! monitor and readiness each implement their methods on it.

use crate::amqp::confirm::PublishFailure;
use crate::amqp::publisher::Publisher;
use crate::amqp::session_end::SessionEnd;
use crate::config::Config;
use crate::policy::prefetch_ramp::PrefetchRamp;
use crate::runtime::dead_letter_sweep::Swept;
use crate::runtime::key_reload::KeyFaults;
use crate::runtime::lanes::Lanes;
use crate::runtime::message_size::MessageSizes;
use crate::runtime::notices::Notices;
use crate::runtime::permits::Permits;
use crate::runtime::worker::{ReceivedDelivery, WorkerContext};
use crate::telemetry::metrics::Settlement;
use crate::telemetry::status::{Notice, Status};
use crate::wechat::client::SharedKeyring;
use futures_util::FutureExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Interval of the periodic work.
pub(super) const TICK: Duration = Duration::from_millis(250);

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
    pub(super) hand_backs: Arc<Semaphore>,
    /// How many deliveries are being handed back.
    pub(super) handing_back: usize,
    /// Why the broker did not accept the last hand-back, until it accepts one or nothing waits.
    pub(super) unaccepted: Option<PublishFailure>,
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
    /// The sizes of messages that the broker of this session accepts.
    pub(super) message_sizes: MessageSizes,
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
    Lost(SessionEnd),
    Shutdown,
}

impl Service {
    /// A service that has not connected yet.
    pub fn new(
        config: &Config,
        keys: SharedKeyring,
        context: Arc<WorkerContext>,
        status: watch::Sender<Status>,
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
            hand_backs: Arc::new(Semaphore::new(HAND_BACKS_AT_ONCE)),
            handing_back: 0,
            unaccepted: None,
            restoring: None,
            idle_since: None,
            holding_since: None,
            permits: Permits::new(config.concurrency.commands, config.broker.prefetch.into()),
            prefetch: config.broker.prefetch,
            ramp: PrefetchRamp::new(config.broker.prefetch),
            received_in_session: 0,
            settled_in_session: 0,
            sweeps: Sweeps::default(),
            message_sizes: MessageSizes::default(),
            key_trouble,
            drain: config.shutdown.deadline.0,
            caller: config.wechat.mchid.clone(),
            serial: config.wechat.merchant_serial.clone(),
            notices: Notices::default(),
            shown: Vec::new(),
        }
    }
}

/// A delivery and what settles it, of one session.
pub(super) struct HeldDelivery {
    pub(super) received: ReceivedDelivery,
    pub(super) publisher: Publisher,
    pub(super) cancel: CancellationToken,
    pub(super) number: usize,
    /// Whether it outlived its consumer, because the broker did not accept its hand-back: no prefetch counts it any more.
    pub(super) kept: bool,
}

/// The end of a job.
pub(super) struct Done {
    pub(super) end: JobEnd,
    /// Of its session.
    pub(super) number: usize,
}

/// How a job ended: its delivery is settled, or lost with its session, which must end for this reason.
pub(super) enum JobEnd {
    /// It worked on a command of this lane.
    Worked(Result<Settlement, SessionEnd>, Option<Box<str>>),
    /// It handed a delivery back.
    HandedBack(Result<Settlement, SessionEnd>),
    /// The broker did not accept a hand-back: the delivery is not settled.
    Kept(Box<HeldDelivery>, PublishFailure),
}

/// How many deliveries are handed back at once: as many as there are channels to publish alone on.
const HAND_BACKS_AT_ONCE: usize = 4;

/// How long calls may be held back before prefetched deliveries are handed back.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// Deliveries that were received while calls are held back and can wait.
#[derive(Default)]
pub(super) struct HeldBack {
    pub(super) waiting: Vec<HeldDelivery>,
    /// When the first of these was received.
    pub(super) since: Option<Instant>,
}

impl HeldBack {
    pub(super) fn push(&mut self, held: HeldDelivery) {
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push(held);
    }

    pub(super) fn clear(&mut self) -> Vec<HeldDelivery> {
        self.since = None;
        std::mem::take(&mut self.waiting)
    }

    /// Whether these have been held for long enough. `full`: they fill the prefetch.
    pub(super) fn is_due(&self, full: bool) -> bool {
        let held_max = if full { HELD_MAX } else { HELD_MAX_WITH_ROOM };
        self.since.is_some_and(|since| since.elapsed() >= held_max)
    }
}

/// How long deliveries are held back if they fill the prefetch: commands past their deadline may be behind them. A
/// command that is handed back costs one more query, so it is not shorter.
pub(super) const HELD_MAX: Duration = Duration::from_secs(15);

/// The same if they do not fill it. The broker's consumer timeout is half an hour.
pub(super) const HELD_MAX_WITH_ROOM: Duration = Duration::from_secs(300);

/// Sweeps of dead letters.
#[derive(Default)]
pub(super) struct Sweeps {
    /// The sweep that is running.
    pub(super) running: Option<JoinHandle<Swept>>,
    /// How many sweeps in a row published no event.
    pub(super) fruitless: u32,
    pub(super) not_before: Option<Instant>,
    /// Why the last sweep ended early.
    pub(super) failure: Option<String>,
}

impl Sweeps {
    /// Reads the result of a sweep that has ended. Whether another one may start.
    pub(super) fn is_due(&mut self) -> bool {
        if let Some(sweep) = &mut self.running {
            let Some(swept) = sweep.now_or_never() else { return false };
            self.running = None;
            self.end(swept.unwrap_or_else(|_| Swept::Failed("a sweep was aborted".to_owned())));
        }
        self.not_before.is_none_or(|at| at <= Instant::now())
    }

    pub(super) fn end(&mut self, swept: Swept) {
        let (first, longest) = SWEEP_AGAIN;
        self.fruitless = match swept {
            // A lost connection ends a sweep; the next one starts soon.
            Swept::Published(1..) | Swept::Failed(_) => 0,
            Swept::Published(0) | Swept::Forbidden(_) => self.fruitless.saturating_add(1),
        };
        self.failure = match swept {
            Swept::Published(_) => None,
            Swept::Failed(why) | Swept::Forbidden(why) => Some(why),
        };
        let pause = first.saturating_mul(1 << self.fruitless.saturating_sub(1).min(8)).min(longest);
        self.not_before = Some(Instant::now() + pause);
    }
}

/// The first and the longest pause between two sweeps that published no event. The longest leaves room within a minute,
/// because a command past its deadline has its event by then.
pub(super) const SWEEP_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(40));
