//! Named places where the fault rig (`tests/torture`) kills the process like `kill -9`, but at an exact moment; and one
//! where it forgets a delivery, as only a defect would.
//!
//! A debug build, or one with the feature `failpoints`, obeys the file that [`ORDER`] names: `<point> <nth> <order>`
//! kills at the nth time that a point is reached from then on; the last word distinguishes one order from the next. The process
//! that obeys renames the file to `….taken`: an order that could be removed is void, and one that was taken ends the
//! process. The order to forget is [`FORGET`], and obeyed in the same manner. Without that
//! variable, and in every other build, nothing happens here.

use std::path::{Path, PathBuf};

use crate::telemetry::metrics::Message;

/// The environment variable that names the file with the order.
pub const ORDER: &str = "REDEEMER_KILL_ORDER";

/// Instead of a point: the nth delivery received from then on is neither processed nor settled.
pub const FORGET: &str = "forget-the-delivery";

/// The environment variable with the text of a message that aborts the process as soon as it is received, each time: a
/// message with an unforeseen effect.
pub const ABORT: &str = "REDEEMER_ABORT_ON";

/// A place in the processing of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// A delivery was received, and nothing else was done.
    Taken,
    /// A call to the payment API is under way.
    Sent,
    /// The response was received, and not classified yet.
    Responded,
    /// A message is under way to the broker and not confirmed.
    Publishing(Message),
    /// A message is confirmed; the delivery that it continues is not acknowledged.
    Published(Message),
    /// Everything is confirmed; the acknowledgement is not sent.
    Acking,
    /// Stopping, with commands in work.
    Draining,
}

impl Failpoint {
    /// Every point that belongs to the work on a command. The two of a hand-back can be ordered, too.
    pub const ALL: [Self; 11] = [
        Self::Taken,
        Self::Sent,
        Self::Responded,
        Self::Publishing(Message::Event),
        Self::Published(Message::Event),
        Self::Publishing(Message::Retry),
        Self::Published(Message::Retry),
        Self::Publishing(Message::Parked),
        Self::Published(Message::Parked),
        Self::Acking,
        Self::Draining,
    ];

    /// The word in orders.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "after-the-take",
            Self::Sent => "after-the-send",
            Self::Responded => "after-the-response",
            Self::Publishing(Message::Event) => "before-the-confirm",
            Self::Published(Message::Event) => "after-the-confirm",
            Self::Publishing(Message::Retry) => "during-a-delay-copy",
            Self::Published(Message::Retry) => "after-a-delay-copy",
            Self::Publishing(Message::Parked) => "during-the-parking",
            Self::Published(Message::Parked) => "after-the-parking",
            Self::Publishing(Message::HandedBack) => "during-a-hand-back",
            Self::Published(Message::HandedBack) => "after-a-hand-back",
            Self::Acking => "before-the-ack",
            Self::Draining => "during-drain",
        }
    }
}

/// The name of the file once a process obeys the order.
pub fn taken(order: &Path) -> PathBuf {
    let mut name = order.as_os_str().to_owned();
    name.push(".taken");
    name.into()
}

pub use armed::{abort_on, during, forgets, reached};

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::future::Future;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    use crate::runtime::failpoints::{ABORT, FORGET, Failpoint, ORDER, taken};

    /// Ends the process here, if that is ordered.
    pub fn reached(point: Failpoint) {
        if !is_ordered_now(point.as_str()) {
            return;
        }
        tracing::warn!(point = point.as_str(), "killed, as ordered");
        end_process("KILL");
    }

    fn end_process(signal: &str) {
        // A shell sends what no process can send itself without unsafe code; this task goes no further meanwhile.
        let _ = Command::new("sh").args(["-c", &format!("kill -{signal} $PPID")]).status();
        loop {
            std::thread::park();
        }
    }

    /// Whether the delivery that was just taken is to be forgotten.
    pub fn forgets() -> bool {
        is_ordered_now(FORGET)
    }

    /// Aborts the process if this is the message that kills it.
    pub fn abort_on(body: &[u8]) {
        static TEXT: OnceLock<Option<String>> = OnceLock::new();
        let text = TEXT.get_or_init(|| std::env::var(ABORT).ok().filter(|text| !text.is_empty())).as_ref();
        let kills = |text: &String| body.windows(text.len()).any(|window| window == text.as_bytes());
        if text.is_some_and(kills) {
            end_process("ABRT");
        }
    }

    /// Does the `work`, and ends the process within it, if that is ordered.
    pub async fn during<T>(point: Failpoint, work: impl Future<Output = T>) -> T {
        if order(point.as_str()).is_none() {
            return work.await;
        }
        tokio::pin!(work);
        let under_way = async {
            match point {
                Failpoint::Sent => tokio::time::sleep(Duration::from_millis(4)).await,
                // A broker confirms in less time than a timer can measure.
                _ => tokio::task::yield_now().await,
            }
        };
        tokio::select! {
            // First, or a fast broker's confirm could come before it.
            biased;
            () = under_way => {
                reached(point);
                work.await
            }
            done = &mut work => done,
        }
    }

    /// The order for the point that was reached.
    struct Order {
        file: &'static Path,
        text: String,
        /// How many times the point is reached until the order is obeyed.
        nth: u32,
    }

    impl Order {
        /// Counts how often this order's point was reached, from 1 for each order, and says when it is time.
        fn is_due(&self) -> bool {
            static REACHED: Mutex<(String, u32)> = Mutex::new((String::new(), 0));
            let mut reached = REACHED.lock().unwrap_or_else(PoisonError::into_inner);
            if reached.0 != self.text {
                *reached = (self.text.clone(), 0);
            }
            reached.1 = reached.1.saturating_add(1);
            reached.1 >= self.nth
        }
    }

    /// Whether an order of this first word is to be obeyed now. It is taken then, and never obeyed again.
    fn is_ordered_now(word: &str) -> bool {
        order(word)
            .is_some_and(|order| order.is_due() && std::fs::rename(order.file, taken(order.file)).is_ok())
    }

    /// The current order, if this is its first word.
    fn order(word: &str) -> Option<Order> {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        let file = FILE.get_or_init(|| std::env::var_os(ORDER).map(PathBuf::from)).as_ref()?;
        let text = std::fs::read_to_string(file).ok()?;
        let mut words = text.split_whitespace();
        if words.next()? != word {
            return None;
        }
        let nth = words.next()?.parse().ok()?;
        Some(Order { file, text, nth })
    }
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
mod armed {
    use std::future::Future;

    use crate::runtime::failpoints::Failpoint;

    /// Nothing, in this build.
    pub fn reached(_: Failpoint) {}

    /// Nothing, in this build.
    pub fn abort_on(_: &[u8]) {}

    /// Never, in this build.
    pub fn forgets() -> bool {
        false
    }

    /// The `work`, in this build.
    pub fn during<T>(_: Failpoint, work: impl Future<Output = T>) -> impl Future<Output = T> {
        work
    }
}
