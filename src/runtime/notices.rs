//! Warns operators of a reduced rate, an open circuit and unverified responses: once when it begins, once a minute while it
//! lasts, and on the status page.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::policy::call_signal::{FailureKind, ResponseClass};
use crate::policy::circuit::CircuitCause;
use crate::policy::reminder::{Announcement, Reminder};
use crate::runtime::response_log::{Counts, LastResponse, ResponseLog};
use crate::telemetry::metrics::CallDelay;
use crate::telemetry::status::{Notice, NoticeKind};

/// How long after the last unverified response the notice ends.
const LATELY: Duration = Duration::from_secs(60);

/// The state that notices are made from.
#[derive(Debug, Clone, Copy)]
pub struct NoticeState {
    /// Calls per second that this instance makes at most now.
    pub per_second: f64,
    /// The part of its share that this instance uses.
    pub part: f64,
    /// The share of 429 in the last window.
    pub throttled_share: f64,
    /// Why calls are held back, if they are.
    pub cause: Option<CircuitCause>,
}

/// The notices that last, and the counts when their minute began.
#[derive(Debug)]
pub struct Notices {
    origin: Instant,
    reduced: Reminder,
    open: Reminder,
    unverified: Reminder,
    /// The start of the last whole minute and of the current one.
    minutes: [(Duration, Counts); 2],
}

impl Default for Notices {
    fn default() -> Self {
        let minute = (Duration::ZERO, Counts::default());
        Self {
            origin: Instant::now(),
            reduced: Reminder::default(),
            open: Reminder::default(),
            unverified: Reminder::default(),
            minutes: [minute; 2],
        }
    }
}

impl Notices {
    /// Updates the notices, warns if that is due, and returns those of the status page.
    pub fn update(&mut self, standing: NoticeState, log: &ResponseLog) -> Vec<Notice> {
        let now = self.origin.elapsed();
        let counts = log.counts();
        if now.saturating_sub(self.minutes[1].0) >= LATELY {
            self.minutes = [self.minutes[1], (now, counts)];
        }
        let notices =
            [self.update_rate(standing, log, now), self.update_unverified(standing, log, counts, now)];
        self.update_circuit(standing, log, counts, now);
        notices.into_iter().flatten().collect()
    }

    /// How many of the last calls were of this class, and how many there were: those of the last minute or two.
    fn lately(&self, class: ResponseClass, counts: Counts) -> (u64, u64) {
        let since = self.minutes[0].1;
        let all = counts.iter().zip(since).map(|(now, before)| now - before).sum();
        (counts[class as usize] - since[class as usize], all)
    }

    fn update_rate(&mut self, standing: NoticeState, log: &ResponseLog, now: Duration) -> Option<Notice> {
        let NoticeState { per_second, part, throttled_share: share, .. } = standing;
        let is_reduced = part < 1.0;
        let last = last_throttled(log);
        match self.reduced.update(is_reduced, now) {
            Some(Announcement::Lasts) => {
                let last = Fields::of(last.as_ref());
                warn!(
                    throttled_share = percent(share),
                    calls_per_second = per_second.round(),
                    share_used = percent(part),
                    status = last.status,
                    code = last.code,
                    said = last.message,
                    request_id = last.request_id,
                    "rate reduced; too many calls get 429"
                );
            }
            Some(Announcement::Over) => info!(calls_per_second = per_second.round(), "rate restored"),
            None => {}
        }
        is_reduced.then(|| Notice {
            kind: NoticeKind::RateReduced,
            words: format!(
                "payment API: calls get 429; this instance makes {:.0} calls a second, {} of its \
                 share, and goes up as far as is accepted{}",
                per_second,
                percent(part),
                last.map(|last| format!("; last: {}", last.describe())).unwrap_or_default()
            ),
        })
    }

    fn update_unverified(
        &mut self,
        standing: NoticeState,
        log: &ResponseLog,
        counts: Counts,
        now: Duration,
    ) -> Option<Notice> {
        let last = log.last(ResponseClass::Unverified).filter(|last| last.at.elapsed() < LATELY);
        let (some, all) = self.lately(ResponseClass::Unverified, counts);
        match self.unverified.update(last.is_some(), now) {
            Some(Announcement::Lasts) => {
                let last = Fields::of(last.as_ref());
                warn!(
                    unverified = some,
                    share = percent(some as f64 / all.max(1) as f64),
                    calls_per_second = standing.per_second.round(),
                    status = last.status,
                    code = last.code,
                    said = last.message,
                    request_id = last.request_id,
                    "responses not verified"
                );
            }
            Some(Announcement::Over) => info!("responses can be verified again"),
            None => {}
        }
        last.map(|last| Notice {
            kind: NoticeKind::ResponsesUnverified,
            words: format!(
                "payment API: {some} of the last {all} responses carry no signature that can be verified, and \
                 nothing is concluded from them; last: {}",
                last.describe()
            ),
        })
    }

    fn update_circuit(&mut self, standing: NoticeState, log: &ResponseLog, counts: Counts, now: Duration) {
        let cause = standing.cause.and_then(circuit_notice);
        match self.open.update(cause.is_some(), now) {
            Some(Announcement::Lasts) => {
                let class = standing.cause.and_then(class);
                let (some, all) = class.map_or((0, 0), |class| self.lately(class, counts));
                let last = class.and_then(|class| log.last(class));
                let last = Fields::of(last.as_ref());
                warn!(
                    cause = cause.map(CallDelay::as_str),
                    failed = some,
                    share = percent(some as f64 / all.max(1) as f64),
                    calls_per_second = standing.per_second.round(),
                    status = last.status,
                    code = last.code,
                    said = last.message,
                    request_id = last.request_id,
                    "circuit open; calls are tried one at a time"
                );
            }
            Some(Announcement::Over) => info!("circuit closed"),
            None => {}
        }
    }
}

/// The last 429, signed or not: either slows down.
fn last_throttled(log: &ResponseLog) -> Option<LastResponse> {
    let unsigned = log.last(ResponseClass::Unverified).filter(|last| last.status == Some(429));
    log.last(ResponseClass::Throttled).into_iter().chain(unsigned).max_by_key(|last| last.at)
}

/// A response as fields of a log line.
#[derive(Default)]
struct Fields<'a> {
    status: Option<u16>,
    code: Option<&'a str>,
    message: Option<&'a str>,
    request_id: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(last: Option<&'a LastResponse>) -> Self {
        last.map_or_else(Self::default, |last| Self {
            status: last.status,
            code: last.code.as_deref(),
            message: last.message.as_deref(),
            request_id: last.request_id.as_deref(),
        })
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The label of a cause in metrics and logs; `None` before any call.
pub fn circuit_notice(cause: CircuitCause) -> Option<CallDelay> {
    match cause {
        CircuitCause::Starting => None,
        CircuitCause::Failing(FailureKind::NoResponse) => Some(CallDelay::NoResponse),
        CircuitCause::Failing(FailureKind::ServerError) => Some(CallDelay::ServerError),
        CircuitCause::Failing(FailureKind::Unverified) => Some(CallDelay::Unverified),
        CircuitCause::Suspended(fault) => Some(CallDelay::Suspended(fault)),
    }
}

fn class(cause: CircuitCause) -> Option<ResponseClass> {
    match cause {
        CircuitCause::Starting => None,
        CircuitCause::Failing(FailureKind::NoResponse) => Some(ResponseClass::NoResponse),
        CircuitCause::Failing(FailureKind::ServerError) => Some(ResponseClass::ServerError),
        CircuitCause::Failing(FailureKind::Unverified) => Some(ResponseClass::Unverified),
        CircuitCause::Suspended(_) => Some(ResponseClass::Suspended),
    }
}
