//! The clock of the sandbox, which may be set wrong on purpose, and the ways it writes a time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

const CHINA: Offset = Offset::constant(8);

/// A day, in seconds.
pub(super) const DAY: i64 = 24 * 3600;

pub(super) struct Clock {
    started: Instant,
    offset_seconds: AtomicI64,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { started: Instant::now(), offset_seconds: AtomicI64::new(0) }
    }

    pub(crate) fn set_offset(&self, seconds: i64) {
        self.offset_seconds.store(seconds, Ordering::Relaxed);
    }

    pub(crate) fn offset(&self) -> i64 {
        self.offset_seconds.load(Ordering::Relaxed)
    }

    /// The sandbox time: system time plus the offset.
    pub(crate) fn now(&self) -> Timestamp {
        shifted(Timestamp::now(), self.offset())
    }

    /// Microseconds since the start; the offset does not touch them.
    pub(crate) fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// `time` moved by `seconds`, held at the ends of what can be represented.
pub(super) fn shifted(time: Timestamp, seconds: i64) -> Timestamp {
    let end = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    time.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(end)
}

/// `2026-03-05T12:30:45+08:00`, as the provider writes times.
pub(super) fn china_time(time: Timestamp) -> String {
    time.to_zoned_datetime(CHINA.to_time_zone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// `2026-03-05T12:30+08:00`: no RFC 3339, but as in the vendor's own samples of the legacy form.
pub(super) fn china_time_without_seconds(time: Timestamp) -> String {
    time.to_zoned_datetime(CHINA.to_time_zone()).strftime("%Y-%m-%dT%H:%M%:z").to_string()
}

/// `Thu, 05 Mar 2026 04:30:45 GMT`, as in the `Date` header.
pub(super) fn http_date(time: Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_provider_writes_them() {
        let time: Timestamp = "2026-03-05T04:30:45.7Z".parse().unwrap();
        assert_eq!(china_time(time), "2026-03-05T12:30:45+08:00");
        assert_eq!(china_time_without_seconds(time), "2026-03-05T12:30+08:00");
        assert_eq!(http_date(time), "Thu, 05 Mar 2026 04:30:45 GMT");
    }
}
