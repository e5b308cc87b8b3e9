//! Audit events of logins, logouts and refused logins. A login does not wait for the broker: events are queued, with a
//! bound, and published one by one until the broker confirms each. What is queued when the process ends is lost; the log
//! has a line for each all the same.
//!
//! The first refused login is published at once. Those of the minute that follows are counted, and become one event.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};
use tracing::warn;

use crate::admin::console::auth::Session;
use crate::amqp::connection::AmqpSettings;
use crate::amqp::parked_queue::publish_console_event;
use crate::policy::backoff::Backoff;
use crate::wire::audit_event::Audit;
use crate::wire::console_event::{ConsoleAction, ConsoleContext, encode};

/// Events that wait for the broker; further ones are left to the log.
const QUEUE_MAX: usize = 64;
/// The time over which refused logins are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// Refused logins that are one event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusals {
    count: u64,
    first_at: Timestamp,
    last_at: Timestamp,
    /// The one address that all of them came from.
    peer: Option<IpAddr>,
}

/// Counts refused logins: at most one event when a window opens, and one when it ends.
#[derive(Debug, Default)]
struct RefusedLogins {
    window_end: Option<Instant>,
    counted: Option<Refusals>,
}

impl RefusedLogins {
    /// Counts one. Gives the event that is due at once.
    fn record(&mut self, peer: IpAddr, now: Instant, at: Timestamp) -> Option<Refusals> {
        let one = Refusals { count: 1, first_at: at, last_at: at, peer: Some(peer) };
        if self.window_end.is_none() {
            self.window_end = Some(now + WINDOW);
            return Some(one);
        }
        let counted = self.counted.get_or_insert(Refusals { count: 0, ..one });
        counted.count += 1;
        counted.last_at = at;
        counted.peer = counted.peer.filter(|known| *known == peer);
        None
    }

    /// The event of a window that has ended. The next window follows at once; one without a refused login is the last.
    fn due(&mut self, now: Instant) -> Option<Refusals> {
        if self.window_end.is_none_or(|end| now < end) {
            return None;
        }
        let counted = self.counted.take();
        self.window_end = counted.is_some().then(|| now + WINDOW);
        counted
    }
}

#[derive(Debug, Default)]
struct Pending {
    events: VecDeque<Audit>,
    refused: RefusedLogins,
}

/// Queues the events.
pub(super) struct AuditTrail {
    source: String,
    pending: Mutex<Pending>,
    added: Notify,
}

impl AuditTrail {
    pub(super) fn new(source: &str) -> Arc<Self> {
        Arc::new(Self { source: source.to_owned(), pending: Mutex::default(), added: Notify::new() })
    }

    /// Queues a login or a logout.
    pub(super) fn record(&self, action: ConsoleAction, session: &Session, peer: IpAddr) {
        let (at, peer, name) = (Timestamp::now(), peer.to_string(), session.name());
        let event = encode(ConsoleContext {
            source: &self.source,
            at,
            action,
            operator: Some(&session.operator),
            session: Some(&name),
            peer: Some(&peer),
            count: 1,
            first_at: at,
        });
        push(&mut self.lock(), event);
        self.added.notify_one();
    }

    /// Counts a refused login.
    pub(super) fn record_refused(&self, peer: IpAddr) {
        let mut pending = self.lock();
        if let Some(refusals) = pending.refused.record(peer, Instant::now(), Timestamp::now()) {
            push(&mut pending, self.encode_refused(&refusals));
        }
        drop(pending);
        self.added.notify_one();
    }

    fn encode_refused(&self, refusals: &Refusals) -> Audit {
        let peer = refusals.peer.map(|peer| peer.to_string());
        encode(ConsoleContext {
            source: &self.source,
            at: refusals.last_at,
            action: ConsoleAction::LoginRefused,
            operator: None,
            session: None,
            peer: peer.as_deref(),
            count: refusals.count,
            first_at: refusals.first_at,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event that is next, once there is one.
    async fn next(&self) -> Audit {
        loop {
            let end = {
                let mut pending = self.lock();
                if let Some(refusals) = pending.refused.due(Instant::now()) {
                    push(&mut pending, self.encode_refused(&refusals));
                }
                if let Some(event) = pending.events.pop_front() {
                    return event;
                }
                pending.refused.window_end
            };
            let window = async {
                match end {
                    Some(end) => sleep_until(end.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.added.notified() => {}
                () = window => {}
            }
        }
    }

    /// Publishes what is queued, until the task is aborted.
    pub(super) async fn publish_all(self: Arc<Self>, broker: AmqpSettings) {
        let pauses = Backoff::default();
        loop {
            let event = self.next().await;
            let mut failures = 0;
            while let Err(error) = publish_console_event(&broker, &event).await {
                if failures == 0 {
                    warn!(%error, event = event.kind, "operator console: audit event not published; retrying");
                }
                sleep(pauses.wait(failures, rand::random())).await;
                failures = failures.saturating_add(1);
            }
        }
    }
}

fn push(pending: &mut Pending, event: Audit) {
    if pending.events.len() >= QUEUE_MAX {
        warn!(
            event = event.kind,
            "operator console: too many audit events wait; this one is only in the log"
        );
        return;
    }
    pending.events.push_back(event);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn peer(nth: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, nth))
    }

    #[test]
    fn flood_of_refused_logins_is_one_event_a_minute() {
        let (mut refused, start) = (RefusedLogins::default(), Instant::now());
        let time =
            |seconds: u64| Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).unwrap()).unwrap();
        let mut events = Vec::new();
        for second in 0..180 {
            let now = start + Duration::from_secs(second);
            events.extend(refused.due(now));
            events.extend(refused.record(peer(1), now, time(second)));
            events.extend(refused.record(peer(1), now, time(second)));
        }
        assert_eq!(events.iter().map(|event| event.count).collect::<Vec<_>>(), [1, 119, 120]);
        assert!(events.iter().all(|event| event.peer == Some(peer(1))));
        assert_eq!((events[2].first_at, events[2].last_at), (time(60), time(119)));
        // The last ones are reported, too, and a minute without any closes the window.
        let now = start + Duration::from_secs(180);
        assert_eq!(refused.due(now).map(|event| event.count), Some(120));
        assert_eq!(refused.due(now + WINDOW), None);
        assert_eq!(refused.window_end, None);
        assert_eq!(refused.record(peer(2), now + WINDOW, time(240)).map(|event| event.count), Some(1));
    }

    #[test]
    fn refused_logins_of_several_peers_name_none() {
        let (mut refused, now) = (RefusedLogins::default(), Instant::now());
        for nth in [1, 2, 3, 2] {
            refused.record(peer(nth), now, Timestamp::UNIX_EPOCH);
        }
        let event = refused.due(now + WINDOW).unwrap();
        assert_eq!((event.count, event.peer), (3, None));
    }

    #[test]
    fn queued_events_are_bounded() {
        let trail = AuditTrail::new("/redeemer");
        for nth in 0..QUEUE_MAX + 10 {
            let refusals = Refusals {
                count: nth as u64 + 1,
                first_at: Timestamp::UNIX_EPOCH,
                last_at: Timestamp::UNIX_EPOCH,
                peer: None,
            };
            push(&mut trail.lock(), trail.encode_refused(&refusals));
        }
        assert_eq!(trail.lock().events.len(), QUEUE_MAX);
        for _ in 0..10_000 {
            trail.record_refused(peer(1));
        }
        assert_eq!(trail.lock().events.len(), QUEUE_MAX);
    }
}
