//! Bounds the memory that messages may fill. The client buffers each message whole before its length can be checked, so
//! the sizes that the broker accepts decide how many may be on their way at once.
//!
//! Probed for each session, on its own node: a limit may be lifted between two sessions, and the nodes of a cluster may have
//! different ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::amqp::connection::AmqpSettings;
use crate::amqp::probe::{self, Accepted, MESSAGE_BYTES_ACCEPTABLE, MESSAGE_BYTES_NEEDED};

/// Interval of the probes while the sizes are unknown.
const MESSAGE_SIZE_RETRY: Duration = Duration::from_secs(30);

/// The most bytes of messages on their way, as far as prefetch can bound them: a quarter of the memory that our unit and
/// manifests allow, because there are two copies of a message for a moment.
const BUFFERED_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The sizes that are tried; the last is the limit of RabbitMQ 4 unless it is configured otherwise.
const SIZES: [usize; 3] = [MESSAGE_BYTES_NEEDED, MESSAGE_BYTES_ACCEPTABLE, 16 * 1024 * 1024];

/// The sizes that the broker of this session accepts, as far as known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Known {
    /// Nothing yet.
    #[default]
    NotYet,
    /// These.
    Accepted(Accepted),
    /// Unknown, with the reason.
    Unclear(String),
}

/// The sizes of messages that the broker accepts, shared by the task that probes them and by its readers.
#[derive(Debug, Clone, Default)]
pub struct MessageSizes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    known: Known,
    /// The last logged state: sessions may follow each other fast.
    logged: Known,
}

impl MessageSizes {
    /// How many messages may be on their way at once.
    pub fn prefetch_max(&self) -> u16 {
        let messages = match &self.lock().known {
            Known::NotYet | Known::Accepted(Accepted::More) => 1,
            Known::Accepted(Accepted::UpTo(bytes)) => BUFFERED_BYTES_MAX / bytes.max(&1),
            Known::Accepted(Accepted::TooLittle(_)) => BUFFERED_BYTES_MAX / MESSAGE_BYTES_NEEDED,
            // Such as a missing right: a warning is enough.
            Known::Unclear(_) => BUFFERED_BYTES_MAX / MESSAGE_BYTES_ACCEPTABLE,
        };
        u16::try_from(messages).unwrap_or(u16::MAX).max(1)
    }

    /// A warning for operators.
    pub fn warning(&self) -> Option<String> {
        let prefetch_max = self.prefetch_max();
        match &self.lock().known {
            Known::Accepted(Accepted::UpTo(bytes)) if *bytes <= MESSAGE_BYTES_ACCEPTABLE => None,
            Known::Accepted(Accepted::UpTo(_) | Accepted::More) => Some(format!(
                "broker: it accepts messages of more than 1 MiB, which would fill our memory, so no more than \
                 {prefetch_max} are taken at once; set max_message_size = 131072 in rabbitmq.conf"
            )),
            Known::Unclear(why) => Some(format!(
                "broker: the message sizes that it accepts are unknown ({why}); check that max_message_size = \
                 131072 is in rabbitmq.conf"
            )),
            Known::NotYet | Known::Accepted(Accepted::TooLittle(_)) => None,
        }
    }

    /// Probes the sizes that the node of session `nth` accepts.
    pub async fn find_out(self, settings: AmqpSettings, nth: usize) {
        loop {
            let known = match probe::accepted_sizes(&settings, nth, &SIZES).await {
                Ok(accepted) => Known::Accepted(accepted),
                Err(error) => Known::Unclear(error.to_string()),
            };
            let is_clear = matches!(known, Known::Accepted(_));
            self.record(known);
            if is_clear {
                return;
            }
            sleep(MESSAGE_SIZE_RETRY).await;
        }
    }

    /// Forgets the sizes of the last session.
    pub fn forget(&self) {
        self.lock().known = Known::NotYet;
    }

    fn record(&self, known: Known) {
        let mut state = self.lock();
        let is_new = state.logged != known;
        (state.known, state.logged) = (known.clone(), known);
        if !is_new {
            return;
        }
        match &state.known {
            Known::Accepted(Accepted::TooLittle(why)) => {
                error!(why, "broker rejects messages of 128 KiB, which events may need");
            }
            Known::Accepted(Accepted::UpTo(bytes)) if *bytes <= MESSAGE_BYTES_ACCEPTABLE => {
                info!(bytes, "broker limits the size of messages");
            }
            Known::Accepted(_) => {
                warn!("broker accepts messages that are too large; set max_message_size in rabbitmq.conf");
            }
            Known::Unclear(why) => warn!(why, "message sizes that the broker accepts are unknown"),
            Known::NotYet => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_bounds_the_bytes_on_their_way() {
        let sizes = MessageSizes::default();
        assert_eq!((sizes.prefetch_max(), sizes.warning()), (1, None));
        for (size, prefetch_max, warns) in
            [(SIZES[0], 1024, false), (SIZES[1], 128, false), (SIZES[2], 8, true), (usize::MAX, 1, true)]
        {
            sizes.record(Known::Accepted(Accepted::UpTo(size)));
            assert_eq!((sizes.prefetch_max(), sizes.warning().is_some()), (prefetch_max, warns), "{size}");
        }
        sizes.record(Known::Accepted(Accepted::More));
        assert_eq!((sizes.prefetch_max(), sizes.warning().is_some()), (1, true));
        sizes.record(Known::Accepted(Accepted::TooLittle("no".to_owned())));
        assert_eq!((sizes.prefetch_max(), sizes.warning()), (1024, None));
        sizes.record(Known::Unclear("403".to_owned()));
        assert_eq!((sizes.prefetch_max(), sizes.warning().is_some()), (128, true));
        sizes.forget();
        assert_eq!((sizes.prefetch_max(), sizes.warning()), (1, None));
    }
}
