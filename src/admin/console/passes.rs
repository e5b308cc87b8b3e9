//! Passes of the console over the parked queue: one at a time, and each bounded in time, messages and bytes, so that
//! neither large messages nor many requests delay the pages. The command line has no such bounds.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use jiff::Timestamp;
use tokio::sync::{Mutex, MutexGuard, Semaphore};
use tokio::time::{timeout, timeout_at};

use crate::admin::console::html::{Found, Row};
use crate::admin::console::{ConsoleError, unreachable};
use crate::amqp::connection::AmqpSettings;
use crate::amqp::parked_queue::ParkedQueue;
use crate::parked::{Filter, Parked};

/// The most messages that a list reads.
const LIST_MAX: usize = 2_000;
/// Bytes of their bodies: the message that exceeds it is the last.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The time for a list, from the connection on.
const LIST_TIME_MAX: Duration = Duration::from_secs(3);
/// The longest time for finding one command.
const FIND_TIME_MAX: Duration = Duration::from_secs(10);
/// Rows of the list.
const ROWS_MAX: usize = 200;
/// Requests that wait for the one that reads.
const WAITING_MAX: usize = 8;
/// The longest wait for the passes before.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Lets one request at a time read the parked queue.
pub(super) struct Passes {
    room: Semaphore,
    /// Held by the request that reads, with the time from which the next query may be sent.
    lock: Mutex<Instant>,
}

impl Default for Passes {
    fn default() -> Self {
        Self { room: Semaphore::new(WAITING_MAX), lock: Mutex::new(Instant::now()) }
    }
}

impl Passes {
    /// The lock, once the passes before have ended.
    ///
    /// # Errors
    /// 503 at once if too many wait already, or after [`WAIT_MAX`].
    pub(super) async fn lock(&self) -> Result<MutexGuard<'_, Instant>, ConsoleError> {
        let busy = "Other requests are reading the parked queue. Try again in a few seconds.";
        let busy = || ConsoleError::new(StatusCode::SERVICE_UNAVAILABLE, busy);
        let room = self.room.try_acquire().map_err(|_| busy())?;
        let lock = timeout(WAIT_MAX, self.lock.lock()).await.map_err(|_| busy())?;
        drop(room);
        Ok(lock)
    }
}

/// What a pass has read so far.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    messages: usize,
    bytes: usize,
}

impl Extent {
    fn add(&mut self, parked: &Parked) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(parked.delivery.body().len());
    }

    fn has_room(self) -> bool {
        self.messages < LIST_MAX && self.bytes < LIST_BYTES_MAX
    }
}

/// The commands that a filter admits, as far as the bounds allow. Messages of a partial pass go behind the rest, so the
/// next one reads others.
///
/// # Errors
/// [`ConsoleError`] if nothing can be shown.
pub(super) async fn list_parked(
    passes: &Passes,
    broker: &AmqpSettings,
    filter: &Filter,
) -> Result<Found, ConsoleError> {
    let _lock = passes.lock().await?;
    let mut queue = ParkedQueue::begin(broker).await.map_err(unreachable)?;
    let end = tokio::time::Instant::now() + LIST_TIME_MAX;
    let (mut found, mut extent, now) = (Found::default(), Extent::default(), Timestamp::now());
    found.unlocked = queue.missing_lock();
    while extent.has_room() {
        match timeout_at(end, queue.next()).await {
            Ok(Ok(Some(delivery))) => {
                let parked = Parked::read(delivery);
                extent.add(&parked);
                if filter.admits(&parked, now) {
                    found.rows.push(Row::of(&parked, now));
                }
            }
            // Messages that were read before an error are listed.
            Ok(Err(error)) => {
                found.error = Some(unreachable(error).1);
                break;
            }
            Ok(Ok(None)) | Err(_) => break,
        }
    }
    found.waiting = queue.waiting();
    queue.end().await;
    found.read = extent.messages;
    if found.rows.is_empty()
        && let Some(why) = found.error.take()
    {
        return Err(ConsoleError::new(StatusCode::BAD_GATEWAY, why));
    }
    found.selected = found.rows.len();
    found.rows.sort_by_key(|row| row.at);
    found.rows.truncate(ROWS_MAX);
    Ok(found)
}

/// Takes one command, and holds it until the pass ends. Reads on to the end of the queue if that is near, because a
/// partial pass changes the order of the queue.
///
/// # Errors
/// [`ConsoleError`] if it is not there, or not within the time.
pub(super) async fn find(queue: &mut ParkedQueue, id: &str) -> Result<Parked, ConsoleError> {
    let end = tokio::time::Instant::now() + FIND_TIME_MAX;
    let (mut found, mut extent) = (None, Extent::default());
    let mut ended = false;
    while found.is_none() || extent.has_room() {
        let Ok(next) = timeout_at(end, queue.next()).await else { break };
        let Some(delivery) = next.map_err(unreachable)? else {
            ended = true;
            break;
        };
        let parked = Parked::read(delivery);
        extent.add(&parked);
        // A SHA-256 without the rest of the key is enough.
        if found.is_none() && (parked.key() == id || parked.sha256 == id) {
            found = Some(parked);
        }
    }
    let missing = match ended {
        true => "It is not parked any more.",
        false => "It was not found within the time limit of this page; use redeemer parked show.",
    };
    found.ok_or_else(|| ConsoleError::new(StatusCode::NOT_FOUND, missing))
}
