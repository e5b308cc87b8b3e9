//! Warns if the broker accepts messages that are larger than the service should buffer.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::sleep;
use tracing::{error, warn};

use crate::amqp::connection::AmqpSettings;
use crate::amqp::probe::{self, MessageBound};

/// Interval of the attempts while the broker cannot be reached.
const MESSAGE_SIZE_RETRY: Duration = Duration::from_secs(30);

/// Warns, once per process, if the broker accepts messages that fill our memory: the client buffers each of them whole
/// before its length can be checked.
pub async fn warn_of_message_size(settings: AmqpSettings, warning: Arc<OnceLock<&'static str>>) {
    loop {
        match probe::message_bound(&settings).await {
            Ok(MessageBound::Excessive) => {
                let words = "broker: it takes messages of more than 1 MiB, which would fill our memory; set \
                             max_message_size = 131072 in rabbitmq.conf";
                warn!("broker accepts messages that are too large; set max_message_size in rabbitmq.conf");
                // Once per process.
                let _ = warning.set(words);
                return;
            }
            Ok(MessageBound::TooSmall(why)) => {
                error!(why, "broker rejects messages of 128 KiB, which events may need");
                return;
            }
            Ok(MessageBound::Sufficient | MessageBound::Unclear(_)) => return,
            Err(_) => sleep(MESSAGE_SIZE_RETRY).await,
        }
    }
}
