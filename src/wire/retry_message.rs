//! The headers that carry a command's progress through a delay queue, and back.
//!
//! A retry message is recognized by these headers alone, and anyone who may publish commands can forge them. So none is
//! trusted further than it can be checked: a corrupt one ends the command (never a loop), and no header extends a
//! command beyond the limits.

use jiff::{SignedDuration, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::coupon::{Coupon, CouponState};
use crate::domain::evidence::{Evidence, Rejection};
use crate::policy::attempt::{EffectState, Progress};
use crate::wire::result_event::Entry;

/// Calls made so far.
pub const ATTEMPTS: &str = "x-redemption-attempts";
/// Delay queues passed so far.
pub const DELAYS_PASSED: &str = "x-redemption-delays";
/// When the command was first seen, RFC 3339.
pub const FIRST_SEEN: &str = "x-redemption-first-seen";
/// When the command ends at the latest, RFC 3339. The only one of these that a publisher may set on a fresh command.
pub const DEADLINE: &str = "x-redemption-deadline";
/// The known effect when the retry message was written; see `EffectState::to_header`.
pub const LAST_VERDICT: &str = "x-redemption-last-verdict";
/// SHA-256 of the frozen request body, in hex.
pub const BODY_SHA256: &str = "x-redemption-body-sha256";
/// The last attempts, as JSON.
pub const EVIDENCE: &str = "x-redemption-evidence";
/// The provider's last rejection, as JSON. Required if the effect rests on one.
pub const REJECTION: &str = "x-redemption-rejection";

/// How many of the attempts met a fault of our own or a brand that denies us. Absent if none did.
pub const SUSPENDED: &str = "x-redemption-suspended";
/// From when a query counts as negative, RFC 3339. Absent if that is unknown.
pub const NEGATIVES_FROM: &str = "x-redemption-negatives-from";
/// The time before which no instance can have sent the command, RFC 3339. Absent if that is unknown.
pub const UNSENT_BEFORE: &str = "x-redemption-unsent-before";
/// Since when each query that counts has been rejected because of an id, RFC 3339. Absent if the last one was not.
pub const QUERY_REJECTED_SINCE: &str = "x-redemption-query-rejected-since";
/// The coupon's state in the last signed response that reports one. Absent if none did.
pub const COUPON_STATE: &str = "x-redemption-coupon-state";

/// The trace context (W3C `traceparent`) of the command span that delayed the command; the next command span links to it.
/// No decision depends on it, and a message without it is accepted.
pub const TRACE: &str = "x-redemption-trace";

/// The headers that only a retry message has.
const RETRY_MESSAGE_ONLY: [&str; 12] = [
    ATTEMPTS,
    DELAYS_PASSED,
    FIRST_SEEN,
    LAST_VERDICT,
    BODY_SHA256,
    EVIDENCE,
    REJECTION,
    SUSPENDED,
    NEGATIVES_FROM,
    UNSENT_BEFORE,
    QUERY_REJECTED_SINCE,
    COUPON_STATE,
];

/// Of these, the ones that may be absent. One that is present but not text still corrupts the message.
pub const OPTIONAL: [&str; 6] =
    [REJECTION, SUSPENDED, NEGATIVES_FROM, UNSENT_BEFORE, QUERY_REJECTED_SINCE, COUPON_STATE];

/// The longest word for a coupon's state that is written, in bytes.
const STATE_BYTES_MAX: usize = 64;

/// The longest text read from one header, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// A progress and the attempts that led to it, read from a retry message.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// How far the command has come.
    pub progress: Progress,
    /// The attempts that are remembered, oldest first.
    pub evidence: Vec<Evidence>,
}

/// The fault in the headers of a retry message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorruptRetryMessage {
    /// A header of the set is missing.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header has no value of its kind.
    #[error("header {0} is unreadable")]
    Unreadable(&'static str),
    /// The request body differs from the one that was sent before.
    #[error("the request body differs from the one that was frozen")]
    BodyChanged,
}

/// How far the deadline may lie ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadlineLimits {
    /// The deadline of a command that names none, after first seen.
    pub default: SignedDuration,
    /// The maximum deadline, after first seen.
    pub furthest: SignedDuration,
}

/// Writes the headers of a retry message.
pub fn write(progress: &Progress, evidence: &[Evidence], body_sha256: &str) -> Vec<(&'static str, String)> {
    let entries: Vec<Entry> = Evidence::last(evidence).iter().map(Entry::from).collect();
    let mut headers = vec![
        (ATTEMPTS, progress.attempts.to_string()),
        (DELAYS_PASSED, progress.delays_passed.to_string()),
        (FIRST_SEEN, progress.first_seen.to_string()),
        (DEADLINE, progress.deadline.to_string()),
        (LAST_VERDICT, progress.effect.to_header()),
        (BODY_SHA256, body_sha256.to_owned()),
        (EVIDENCE, json(&entries)),
    ];
    if let Some(rejection) = &progress.rejection {
        headers.push((REJECTION, json(&RejectionEntry::from(rejection))));
    }
    if progress.suspended > 0 {
        headers.push((SUSPENDED, progress.suspended.to_string()));
    }
    if let Some(from) = progress.negatives_from {
        headers.push((NEGATIVES_FROM, from.to_string()));
    }
    if let Some(before) = progress.unsent_before {
        headers.push((UNSENT_BEFORE, before.to_string()));
    }
    if let Some(since) = progress.query_rejected_since {
        headers.push((QUERY_REJECTED_SINCE, since.to_string()));
    }
    let state = progress.coupon.as_ref().map(|coupon| coupon.state.as_str());
    if let Some(state) = state.filter(|state| (1..=STATE_BYTES_MAX).contains(&state.len())) {
        headers.push((COUPON_STATE, state.to_owned()));
    }
    headers
}

/// Whether a message has any header that only a retry message has.
pub fn is_retry_message(has: impl Fn(&str) -> bool) -> bool {
    RETRY_MESSAGE_ONLY.into_iter().any(has)
}

/// The deadline of a fresh command, at most the maximum deadline.
///
/// # Errors
/// [`CorruptRetryMessage::Unreadable`] if the header is not an RFC 3339 time.
pub fn deadline(
    header: Option<&str>,
    first_seen: Timestamp,
    deadline_limits: DeadlineLimits,
) -> Result<Timestamp, CorruptRetryMessage> {
    match header {
        None => Ok(saturating(first_seen, deadline_limits.default)),
        Some(text) => {
            let requested: Timestamp = text.parse().map_err(|_| CorruptRetryMessage::Unreadable(DEADLINE))?;
            Ok(requested.min(saturating(first_seen, deadline_limits.furthest)))
        }
    }
}

/// Reads the headers of a retry message. `header` returns the text of a header, `body_sha256` is the hash of the body that
/// is built from the command now.
///
/// # Errors
/// [`CorruptRetryMessage`] names the first header that is missing or unreadable.
pub fn read<'a>(
    header: impl Fn(&'static str) -> Option<&'a str>,
    body_sha256: &str,
    now: Timestamp,
    deadline_limits: DeadlineLimits,
) -> Result<Restored, CorruptRetryMessage> {
    let required = |name| {
        let text = header(name).ok_or(CorruptRetryMessage::Missing(name))?;
        if text.len() > HEADER_BYTES_MAX { Err(CorruptRetryMessage::Unreadable(name)) } else { Ok(text) }
    };
    let time = |name| required(name)?.parse::<Timestamp>().map_err(|_| CorruptRetryMessage::Unreadable(name));
    let count = |name| required(name)?.parse::<u32>().map_err(|_| CorruptRetryMessage::Unreadable(name));

    let attempts = count(ATTEMPTS)?;
    let delays_passed = count(DELAYS_PASSED)?;
    // A first-seen time in the future would move the maximum deadline with it.
    let first_seen = time(FIRST_SEEN)?.min(now);
    let deadline = time(DEADLINE)?.min(saturating(first_seen, deadline_limits.furthest));
    let effect = EffectState::from_header(required(LAST_VERDICT)?)
        .ok_or(CorruptRetryMessage::Unreadable(LAST_VERDICT))?;
    if !required(BODY_SHA256)?.eq_ignore_ascii_case(body_sha256) {
        return Err(CorruptRetryMessage::BodyChanged);
    }
    let entries: Vec<Entry> =
        serde_json::from_str(required(EVIDENCE)?).map_err(|_| CorruptRetryMessage::Unreadable(EVIDENCE))?;
    let mut evidence: Vec<Evidence> = entries.into_iter().map(Evidence::from).collect();
    // Each remembered attempt was a call.
    let attempts = attempts.max(u32::try_from(evidence.len()).unwrap_or(u32::MAX));
    Evidence::keep_last(&mut evidence);
    let rejection = match header(REJECTION) {
        None if effect.signed_rejection().is_some() => return Err(CorruptRetryMessage::Missing(REJECTION)),
        None => None,
        Some(_) => Some(
            serde_json::from_str::<RejectionEntry>(required(REJECTION)?)
                .map_err(|_| CorruptRetryMessage::Unreadable(REJECTION))?
                .into(),
        ),
    };
    let suspended = if header(SUSPENDED).is_some() { count(SUSPENDED)?.min(attempts) } else { 0 };
    let time_if_any = |name| if header(name).is_some() { time(name).map(Some) } else { Ok(None) };
    let negatives_from = time_if_any(NEGATIVES_FROM)?;
    let unsent_before = time_if_any(UNSENT_BEFORE)?;
    let query_rejected_since = time_if_any(QUERY_REJECTED_SINCE)?.map(|since| since.min(now));
    let state = header(COUPON_STATE);
    if state.is_some_and(|state| !(1..=STATE_BYTES_MAX).contains(&state.len())) {
        return Err(CorruptRetryMessage::Unreadable(COUPON_STATE));
    }
    let coupon = state.map(|state| Coupon::in_state(CouponState::from_wire(state)));
    let mut progress = Progress::resumed(attempts, delays_passed, effect, first_seen, deadline, rejection);
    (progress.suspended, progress.coupon) = (suspended, coupon);
    (progress.negatives_from, progress.unsent_before) = (negatives_from, unsent_before);
    progress.query_rejected_since = query_rejected_since;
    Ok(Restored { progress, evidence })
}

/// The attempts in the header of a parked command, as far as they can be read: to be shown, and for its next headers.
pub fn evidence(header: Option<&str>) -> Vec<Evidence> {
    let text = header.filter(|text| text.len() <= HEADER_BYTES_MAX).unwrap_or("[]");
    let entries: Vec<Entry> = serde_json::from_str(text).unwrap_or_default();
    let mut evidence: Vec<Evidence> = entries.into_iter().map(Evidence::from).collect();
    Evidence::keep_last(&mut evidence);
    evidence
}

fn saturating(from: Timestamp, by: SignedDuration) -> Timestamp {
    from.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value)
        .expect("these entries have string keys only and write to memory, so they cannot fail")
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectionEntry {
    #[serde(deserialize_with = "rejection_header")]
    http_status: u16,
    code: Option<Box<str>>,
    sub_code: Option<u64>,
    message: Option<Box<str>>,
    request_id: Option<Box<str>>,
}

/// A status of 400 or more, as every rejection has.
fn rejection_header<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let status = u16::deserialize(deserializer)?;
    if (400..=999).contains(&status) {
        Ok(status)
    } else {
        Err(D::Error::custom("not the status of a rejection"))
    }
}

impl From<&Rejection> for RejectionEntry {
    fn from(rejection: &Rejection) -> Self {
        let Rejection { http_status, code, sub_code, message, request_id } = rejection.clone();
        Self { http_status, code, sub_code, message, request_id }
    }
}

impl From<RejectionEntry> for Rejection {
    fn from(entry: RejectionEntry) -> Self {
        let RejectionEntry { http_status, code, sub_code, message, request_id } = entry;
        Self { http_status, code, sub_code, message, request_id }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::reason::Reason;

    const DEADLINE_LIMITS: DeadlineLimits =
        DeadlineLimits { default: SignedDuration::from_hours(24), furthest: SignedDuration::from_hours(72) };
    const BODY: &str = "0af1";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn now() -> Timestamp {
        at("2026-03-05T05:00:00Z")
    }

    fn rejection() -> Rejection {
        Rejection {
            http_status: 403,
            code: Some("NOT_ENOUGH".into()),
            sub_code: Some(u64::MAX),
            message: Some("用户商品券 \"当前\"\n无法使用".into()),
            request_id: None,
        }
    }

    fn evidence(count: usize) -> Vec<Evidence> {
        let entry = |n: usize| Evidence {
            at: at("2026-03-05T04:30:45.123Z"),
            operation: "redeem".to_owned(),
            host: "api.mch.weixin.qq.com".to_owned(),
            status: Some(403),
            request_id: Some(format!("{n:x>128}")),
            serial: Some("PUB_KEY_ID_0000000000000024101100397200000006".to_owned()),
            verdict: "rejected".to_owned(),
        };
        (0..count).map(entry).collect()
    }

    fn progress(effect: EffectState, rejection: Option<Rejection>) -> Progress {
        let (first_seen, deadline) = (at("2026-03-05T04:30:45Z"), at("2026-03-06T04:30:45.5Z"));
        Progress::resumed(7, 2, effect, first_seen, deadline, rejection)
    }

    fn written() -> Vec<(&'static str, String)> {
        let effect = EffectState::Rejected { reason: Reason::NotUsable, may_be_ours: true };
        write(&progress(effect, Some(rejection())), &evidence(2), BODY)
    }

    fn read_back(headers: &[(&'static str, String)]) -> Result<Restored, CorruptRetryMessage> {
        let header = |name| headers.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str());
        read(header, BODY, now(), DEADLINE_LIMITS)
    }

    fn with(name: &'static str, text: &str) -> Result<Restored, CorruptRetryMessage> {
        let mut headers = written();
        headers.retain(|(key, _)| *key != name);
        headers.push((name, text.to_owned()));
        read_back(&headers)
    }

    fn without(name: &'static str) -> Result<Restored, CorruptRetryMessage> {
        let mut headers = written();
        headers.retain(|(key, _)| *key != name);
        read_back(&headers)
    }

    #[test]
    fn unwritable_attempts_and_rejections_are_unreadable() {
        let entries = json(&[Entry::from(&evidence(1)[0])]);
        let rejection = json(&RejectionEntry::from(&rejection()));
        for (name, text, from, to) in [
            (EVIDENCE, &entries, "\"redeem\"", "\"guess\""),
            (EVIDENCE, &entries, "\"rejected\"", "\"fine\""),
            (EVIDENCE, &entries, "\"status\":403", "\"status\":99"),
            (EVIDENCE, &entries, "\"status\":403", "\"status\":1000"),
            (REJECTION, &rejection, "\"http_status\":403", "\"http_status\":200"),
        ] {
            assert!(text.contains(from), "{text}");
            assert!(with(name, text).is_ok(), "{name}");
            assert_eq!(
                with(name, &text.replace(from, to)),
                Err(CorruptRetryMessage::Unreadable(name)),
                "{to}"
            );
        }
        assert!(with(EVIDENCE, &entries.replace("\"status\":403", "\"status\":null")).is_ok());
    }

    #[test]
    fn written_progress_is_read_back() {
        let reason = Reason::NotUsable;
        for effect in [
            EffectState::NoEffect,
            EffectState::Unknown,
            EffectState::SeenUsed,
            EffectState::RejectedUnclear { reason },
            EffectState::Rejected { reason, may_be_ours: true },
            EffectState::Rejected { reason, may_be_ours: false },
        ] {
            for rejection in [None, Some(rejection())] {
                let delayed = progress(effect, rejection);
                if delayed.rejection.is_none() && effect.signed_rejection().is_some() {
                    let headers = write(&delayed, &[], BODY);
                    assert_eq!(
                        read_back(&headers),
                        Err(CorruptRetryMessage::Missing(REJECTION)),
                        "{effect:?}"
                    );
                    continue;
                }
                let carried = read_back(&write(&delayed, &evidence(2), BODY)).unwrap();
                assert_eq!(carried.progress, delayed);
                assert_eq!(carried.evidence, evidence(2));
            }
        }
    }

    #[test]
    fn a_header_that_is_missing_is_named() {
        let known = RETRY_MESSAGE_ONLY.into_iter().chain([DEADLINE]);
        // A rejection may be missing if nothing rests on one; here something does.
        for name in known.filter(|name| *name == REJECTION || !OPTIONAL.contains(name)) {
            assert_eq!(without(name), Err(CorruptRetryMessage::Missing(name)));
        }
    }

    #[test]
    fn remembered_attempts_count_as_made_despite_the_header() {
        for (reported, remembered, expected) in [(0, 3, 3), (2, 16, 16), (20, 16, 20)] {
            let mut delayed = progress(EffectState::Unknown, None);
            delayed.attempts = reported;
            let headers = write(&delayed, &evidence(remembered), BODY);
            assert_eq!(read_back(&headers).unwrap().progress.attempts, expected);
        }
    }

    #[test]
    fn optional_headers_are_read_back_if_present() {
        let mut delayed = progress(EffectState::Unknown, None);
        delayed.suspended = 3;
        delayed.negatives_from = Some(at("2026-03-05T05:00:17Z"));
        delayed.unsent_before = Some(at("2026-03-05T04:30:45Z"));
        delayed.query_rejected_since = Some(at("2026-03-05T04:50:00Z"));
        delayed.coupon = Some(Coupon::in_state(CouponState::from_wire("FROZEN")));
        let headers = write(&delayed, &[], BODY);
        assert_eq!(read_back(&headers).unwrap().progress, delayed);
        for name in OPTIONAL {
            let headers: Vec<_> = headers.iter().filter(|(key, _)| *key != name).cloned().collect();
            assert!(read_back(&headers).is_ok(), "{name}");
        }
        // A response may name a state that is too long for the header: it is left out.
        delayed.coupon = Some(Coupon::in_state(CouponState::from_wire(&"X".repeat(STATE_BYTES_MAX + 1))));
        assert_eq!(read_back(&write(&delayed, &[], BODY)).unwrap().progress.coupon, None);
        delayed.coupon = Some(Coupon::in_state(CouponState::from_wire("")));
        assert_eq!(read_back(&write(&delayed, &[], BODY)).unwrap().progress.coupon, None);
    }

    #[test]
    fn rejection_in_headers_is_one_the_provider_can_make() {
        for reason in Reason::ALL {
            for kind in ["rejected", "rejected_unclear", "rejected_unverified"] {
                let effect = with(LAST_VERDICT, &format!("{kind} {}", reason.as_str()));
                assert_eq!(
                    effect.is_ok(),
                    Reason::REJECTIONS.contains(&reason),
                    "{kind} {}",
                    reason.as_str()
                );
            }
        }
    }

    #[test]
    fn a_header_that_makes_no_sense_is_named() {
        let check = |name, texts: &[&str]| {
            for text in texts {
                assert_eq!(with(name, text), Err(CorruptRetryMessage::Unreadable(name)), "{text:?}");
            }
        };
        check(ATTEMPTS, &["", "-1", "seven", "4294967296", "7.0", " 7"]);
        check(DELAYS_PASSED, &["", "-1", "x", "4294967296"]);
        check(SUSPENDED, &["", "-1", "many"]);
        check(NEGATIVES_FROM, &["", "soon"]);
        check(UNSENT_BEFORE, &["", "yesterday"]);
        check(QUERY_REJECTED_SINCE, &["", "lately"]);
        check(COUPON_STATE, &[""]);
        check(FIRST_SEEN, &["", "yesterday", "2026-03-05", "1772685045", "2026-13-05T00:00:00Z"]);
        check(DEADLINE, &["", "tomorrow", "10000-01-01T00:00:00Z", "2026-03-05T00:00:00"]);
        check(
            LAST_VERDICT,
            &["", "redeemed", "unknown 1", "rejected", "rejected nothing", "rejected  not_usable"],
        );
        check(EVIDENCE, &["", "{}", "[{}]", "[1]", "null", "[", r#"[{"at": "now"}]"#]);
        check(
            REJECTION,
            &["", "[]", "{}", "null", r#"{"http_status": 70000}"#, r#"{"http_status": 403, "x": 1}"#],
        );
    }

    #[test]
    fn a_huge_header_is_not_read() {
        let huge = "1".repeat(HEADER_BYTES_MAX + 1);
        for name in RETRY_MESSAGE_ONLY.into_iter().chain([DEADLINE]) {
            assert_eq!(with(name, &huge), Err(CorruptRetryMessage::Unreadable(name)));
        }
    }

    #[test]
    fn body_other_than_the_frozen_one_is_corrupt() {
        assert_eq!(with(BODY_SHA256, "0af2"), Err(CorruptRetryMessage::BodyChanged));
        assert_eq!(with(BODY_SHA256, ""), Err(CorruptRetryMessage::BodyChanged));
        assert!(with(BODY_SHA256, "0AF1").is_ok());
    }

    #[test]
    fn no_header_prolongs_a_command_beyond_the_deadline_limits() {
        let deadline = |name, text| with(name, text).unwrap().progress.deadline;
        assert_eq!(deadline(DEADLINE, "9999-12-30T00:00:00Z"), at("2026-03-08T04:30:45Z"));
        assert_eq!(deadline(DEADLINE, "2001-01-01T00:00:00Z"), at("2001-01-01T00:00:00Z"));
        assert_eq!(deadline(DEADLINE, "2026-03-06T04:30:45.5+08:00"), at("2026-03-05T20:30:45.5Z"));
        // A first-seen time in the future counts as now; the maximum deadline moves no further.
        let carried = with(FIRST_SEEN, "2030-01-01T00:00:00Z").unwrap().progress;
        assert_eq!((carried.first_seen, carried.deadline), (now(), at("2026-03-06T04:30:45.5Z")));
        let mut headers = written();
        headers.retain(|(name, _)| ![FIRST_SEEN, DEADLINE].contains(name));
        headers.push((FIRST_SEEN, "2030-01-01T00:00:00Z".to_owned()));
        headers.push((DEADLINE, "9999-12-30T00:00:00Z".to_owned()));
        assert_eq!(read_back(&headers).unwrap().progress.deadline, at("2026-03-08T05:00:00Z"));
    }

    #[test]
    fn fresh_deadline_is_the_header_within_limits_or_the_default() {
        let check = |header: Option<&str>, expected: &str| {
            assert_eq!(deadline(header, now(), DEADLINE_LIMITS), Ok(at(expected)), "{header:?}");
        };
        check(None, "2026-03-06T05:00:00Z");
        check(Some("2026-03-05T06:00:00Z"), "2026-03-05T06:00:00Z");
        check(Some("2001-01-01T00:00:00Z"), "2001-01-01T00:00:00Z");
        check(Some("9999-12-30T00:00:00Z"), "2026-03-08T05:00:00Z");
        assert_eq!(
            deadline(Some("soon"), now(), DEADLINE_LIMITS),
            Err(CorruptRetryMessage::Unreadable(DEADLINE))
        );
        let forever = DeadlineLimits { default: SignedDuration::MAX, furthest: SignedDuration::MAX };
        assert_eq!(deadline(None, now(), forever), Ok(Timestamp::MAX));
    }

    #[test]
    fn million_attempts_are_accepted_and_end_the_command() {
        let carried = with(ATTEMPTS, "1000000").unwrap();
        assert_eq!(carried.progress.attempts, 1_000_000);
        let mut carried = with(DELAYS_PASSED, &u32::MAX.to_string()).unwrap().progress;
        let step = carried.delay(&crate::policy::attempt::Limits::default(), now());
        assert!(step.is_some());
        assert_eq!(carried.delays_passed, u32::MAX, "the count stops, it does not wrap");
    }

    #[test]
    fn last_sixteen_attempts_are_written() {
        for count in [0, 15, 16, 17, 1_000] {
            let carried =
                read_back(&write(&progress(EffectState::NoEffect, None), &evidence(count), BODY)).unwrap();
            let kept = evidence(count).split_off(count.saturating_sub(Evidence::KEPT));
            assert_eq!(carried.evidence, kept, "{count}");
        }
        let forged: Vec<Entry> = evidence(40).iter().map(Entry::from).collect();
        assert_eq!(with(EVIDENCE, &json(&forged)).unwrap().evidence, evidence(40).split_off(24));
    }

    #[test]
    fn the_longest_words_of_the_provider_still_fit() {
        let worst = Rejection {
            message: Some("\u{1}".repeat(1024).into()),
            code: Some("\u{1}".repeat(64).into()),
            request_id: Some("\"".repeat(128).into()),
            ..rejection()
        };
        let mut sixteen = evidence(16);
        for entry in &mut sixteen {
            entry.request_id = Some("\"".repeat(128));
            entry.host = "h".repeat(255);
        }
        let delayed = progress(EffectState::NoEffect, Some(worst.clone()));
        let carried = read_back(&write(&delayed, &sixteen, BODY)).unwrap();
        assert_eq!((carried.progress.rejection, carried.evidence), (Some(worst), sixteen));
    }

    #[test]
    fn any_header_but_the_deadline_makes_a_retry_message() {
        for name in RETRY_MESSAGE_ONLY {
            assert!(is_retry_message(|requested| requested == name), "{name}");
        }
        assert!(!is_retry_message(|name| name == DEADLINE));
        assert!(!is_retry_message(|_| false));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[0-9]{1,12}",
            "[0-9]{1,6}-[0-9]{1,3}-[0-9]{1,3}T[0-9:.]{1,12}(Z|[+-][0-9:]{1,6})",
            "(no_effect|unknown|used|rejected|rejected_unclear|rejected_unverified)( [a-z_]{0,20})?",
            r#"[\[\]{}",:a-z0-9_]{0,60}"#,
        ]
    }

    proptest! {
        #[test]
        fn arbitrary_headers_are_read_or_named(texts in prop::collection::vec(prop::option::of(text()), 13)) {
            let names: Vec<_> = RETRY_MESSAGE_ONLY.into_iter().chain([DEADLINE]).collect();
            let header = |name| names.iter().position(|known| *known == name).and_then(|n| texts[n].as_deref());
            if let Ok(carried) = read(header, BODY, now(), DEADLINE_LIMITS) {
                prop_assert!(carried.progress.first_seen <= now());
                prop_assert!(carried.evidence.len() <= Evidence::KEPT);
            }
            // With one corrupt header among sound ones, more of the reader is reached.
            for name in names.iter().copied() {
                let text = texts[0].as_deref().unwrap_or_default();
                if let Ok(carried) = with(name, text) {
                    prop_assert!(carried.progress.deadline <= saturating(now(), DEADLINE_LIMITS.furthest));
                }
            }
        }
    }
}
