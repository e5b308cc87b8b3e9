//! The headers that carry a command's progress through a delay queue, and back.
//!
//! A copy is known by them alone, so anyone who may publish commands can forge them: nothing here is trusted further than it can be
//! checked: a corrupt retry message is an ending, never a loop, and no header can prolong a command beyond the limits.

use jiff::{SignedDuration, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::coupon::{Coupon, CouponState};
use crate::domain::evidence::{Evidence, Rejection};
use crate::policy::attempt::{EffectState, Progress};
use crate::wire::result_event::Entry;

/// Operations put so far.
pub const ATTEMPTS: &str = "x-redemption-attempts";
/// Delay queues passed so far.
pub const DELAYS_PASSED: &str = "x-redemption-delays";
/// When the command was first seen, RFC 3339.
pub const FIRST_SEEN: &str = "x-redemption-first-seen";
/// When the work ends, RFC 3339. The only one of these that a publisher may set on a fresh command.
pub const DEADLINE: &str = "x-redemption-deadline";
/// What was believed when the copy was made.
pub const LAST_VERDICT: &str = "x-redemption-last-verdict";
/// SHA-256 of the frozen request body, in hex.
pub const BODY_SHA256: &str = "x-redemption-body-sha256";
/// The last attempts, as JSON.
pub const EVIDENCE: &str = "x-redemption-evidence";
/// The provider's last rejection, as JSON. Never missing where the effect rests on one.
pub const REJECTION: &str = "x-redemption-rejection";

/// How many of the attempts met a fault of our own or a brand that keeps us out. Missing if none did.
pub const SUSPENDED: &str = "x-redemption-suspended";
/// From when a query counts as negative, RFC 3339. Missing if that is not known.
pub const NEGATIVES_FROM: &str = "x-redemption-negatives-from";
/// Before when nobody can have sent the command, RFC 3339. Missing if that is not known.
pub const UNSENT_BEFORE: &str = "x-redemption-unsent-before";
/// The coupon's state as it was last reported, signed. Missing if none was.
pub const COUPON_STATE: &str = "x-redemption-coupon-state";

/// The trace context of the stay that put a copy away, W3C `traceparent`: the next stay is linked to it. Nothing is
/// believed because of it, and a copy without it is as good.
pub const TRACE: &str = "x-redemption-trace";

/// The headers that only a copy has.
const RETRY_MESSAGE_ONLY: [&str; 11] = [
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
    COUPON_STATE,
];

/// Of these, the ones that may be missing. One that is there and no text is damage all the same.
pub const OPTIONAL: [&str; 5] = [REJECTION, SUSPENDED, NEGATIVES_FROM, UNSENT_BEFORE, COUPON_STATE];

/// The longest word for a state that is carried, in bytes.
const STATE_BYTES_MAX: usize = 64;

/// The longest text read from one header, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// A progress and the attempts that led to it, as a copy carried them.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// How far the command has come.
    pub progress: Progress,
    /// The attempts that are remembered, oldest first.
    pub evidence: Vec<Evidence>,
}

/// What is wrong with a copy's headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorruptRetryMessage {
    /// A header of the set is missing.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header does not say what it should.
    #[error("header {0} is unreadable")]
    Unreadable(&'static str),
    /// The body that would be sent is not the one that was sent before.
    #[error("the request body differs from the one that was frozen")]
    BodyChanged,
}

/// How far the deadline may lie ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadlineLimits {
    /// The deadline of a command that names none, after first seen.
    pub default: SignedDuration,
    /// The furthest deadline that is kept to, after first seen.
    pub furthest: SignedDuration,
}

/// Writes the headers of a copy.
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
    let state = progress.coupon.as_ref().map(|coupon| coupon.state.as_str());
    if let Some(state) = state.filter(|state| (1..=STATE_BYTES_MAX).contains(&state.len())) {
        headers.push((COUPON_STATE, state.to_owned()));
    }
    headers
}

/// Whether a message carries any header that only a copy has.
pub fn is_retry_message(has: impl Fn(&str) -> bool) -> bool {
    RETRY_MESSAGE_ONLY.into_iter().any(has)
}

/// The deadline of a fresh command. One that lies beyond the maximum deadline is drawn in, one that cannot be read is reported.
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
            let asked: Timestamp = text.parse().map_err(|_| CorruptRetryMessage::Unreadable(DEADLINE))?;
            Ok(asked.min(saturating(first_seen, deadline_limits.furthest)))
        }
    }
}

/// Reads the headers of a copy. `header` gives the text of a header, `body_sha256` is the hash of the body that the
/// command makes today.
///
/// # Errors
/// [`CorruptRetryMessage`] names the first header that is missing or makes no sense.
pub fn read<'a>(
    header: impl Fn(&'static str) -> Option<&'a str>,
    body_sha256: &str,
    now: Timestamp,
    deadline_limits: DeadlineLimits,
) -> Result<Restored, CorruptRetryMessage> {
    let wanted = |name| {
        let text = header(name).ok_or(CorruptRetryMessage::Missing(name))?;
        if text.len() > HEADER_BYTES_MAX { Err(CorruptRetryMessage::Unreadable(name)) } else { Ok(text) }
    };
    let time = |name| wanted(name)?.parse::<Timestamp>().map_err(|_| CorruptRetryMessage::Unreadable(name));
    let count = |name| wanted(name)?.parse::<u32>().map_err(|_| CorruptRetryMessage::Unreadable(name));

    let attempts = count(ATTEMPTS)?;
    let delays_passed = count(DELAYS_PASSED)?;
    // A time of first sight in the future would move the maximum deadline with it.
    let first_seen = time(FIRST_SEEN)?.min(now);
    let deadline = time(DEADLINE)?.min(saturating(first_seen, deadline_limits.furthest));
    let effect = EffectState::from_header(wanted(LAST_VERDICT)?)
        .ok_or(CorruptRetryMessage::Unreadable(LAST_VERDICT))?;
    if !wanted(BODY_SHA256)?.eq_ignore_ascii_case(body_sha256) {
        return Err(CorruptRetryMessage::BodyChanged);
    }
    let entries: Vec<Entry> =
        serde_json::from_str(wanted(EVIDENCE)?).map_err(|_| CorruptRetryMessage::Unreadable(EVIDENCE))?;
    let mut evidence: Vec<Evidence> = entries.into_iter().map(Evidence::from).collect();
    // Each that is remembered was a call.
    let attempts = attempts.max(u32::try_from(evidence.len()).unwrap_or(u32::MAX));
    Evidence::keep_last(&mut evidence);
    let rejection = match header(REJECTION) {
        None if effect.signed_rejection().is_some() => return Err(CorruptRetryMessage::Missing(REJECTION)),
        None => None,
        Some(_) => Some(
            serde_json::from_str::<RejectionEntry>(wanted(REJECTION)?)
                .map_err(|_| CorruptRetryMessage::Unreadable(REJECTION))?
                .into(),
        ),
    };
    let suspended = if header(SUSPENDED).is_some() { count(SUSPENDED)?.min(attempts) } else { 0 };
    let time_if_any = |name| if header(name).is_some() { time(name).map(Some) } else { Ok(None) };
    let negatives_from = time_if_any(NEGATIVES_FROM)?;
    let unsent_before = time_if_any(UNSENT_BEFORE)?;
    let state = header(COUPON_STATE);
    if state.is_some_and(|state| !(1..=STATE_BYTES_MAX).contains(&state.len())) {
        return Err(CorruptRetryMessage::Unreadable(COUPON_STATE));
    }
    let coupon = state.map(|state| Coupon::in_state(CouponState::from_wire(state)));
    let mut progress = Progress::resumed(attempts, delays_passed, effect, first_seen, deadline, rejection);
    (progress.suspended, progress.coupon) = (suspended, coupon);
    (progress.negatives_from, progress.unsent_before) = (negatives_from, unsent_before);
    Ok(Restored { progress, evidence })
}

/// The attempts that a parked command carries, as far as they can be read: for people, and to be carried on.
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
        Err(D::Error::custom("no status of an rejection"))
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
    fn attempts_and_rejections_that_the_service_never_writes_are_damage() {
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
    fn what_is_written_is_read_back() {
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
        // An rejection may be missing where nothing rests on one; here something does.
        for name in known.filter(|name| *name == REJECTION || !OPTIONAL.contains(name)) {
            assert_eq!(without(name), Err(CorruptRetryMessage::Missing(name)));
        }
    }

    #[test]
    fn remembered_attempts_count_as_made_whatever_the_header_says() {
        for (reported, remembered, expected) in [(0, 3, 3), (2, 16, 16), (20, 16, 20)] {
            let mut delayed = progress(EffectState::Unknown, None);
            delayed.attempts = reported;
            let headers = write(&delayed, &evidence(remembered), BODY);
            assert_eq!(read_back(&headers).unwrap().progress.attempts, expected);
        }
    }

    #[test]
    fn what_may_be_missing_is_read_back_where_it_is_there() {
        let mut delayed = progress(EffectState::Unknown, None);
        delayed.suspended = 3;
        delayed.negatives_from = Some(at("2026-03-05T05:00:17Z"));
        delayed.unsent_before = Some(at("2026-03-05T04:30:45Z"));
        delayed.coupon = Some(Coupon::in_state(CouponState::from_wire("FROZEN")));
        let headers = write(&delayed, &[], BODY);
        assert_eq!(read_back(&headers).unwrap().progress, delayed);
        for name in OPTIONAL {
            let headers: Vec<_> = headers.iter().filter(|(key, _)| *key != name).cloned().collect();
            assert!(read_back(&headers).is_ok(), "{name}");
        }
        // What is too long for a state, as a reply may hold one, is left out.
        delayed.coupon = Some(Coupon::in_state(CouponState::from_wire(&"X".repeat(STATE_BYTES_MAX + 1))));
        assert_eq!(read_back(&write(&delayed, &[], BODY)).unwrap().progress.coupon, None);
        delayed.coupon = Some(Coupon::in_state(CouponState::from_wire("")));
        assert_eq!(read_back(&write(&delayed, &[], BODY)).unwrap().progress.coupon, None);
    }

    #[test]
    fn a_copy_carries_no_other_rejection_than_the_provider_can_make() {
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
    fn a_body_that_is_not_the_frozen_one_is_damage() {
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
        // A time of first sight in the future is now; the maximum deadline moves no further.
        let carried = with(FIRST_SEEN, "2030-01-01T00:00:00Z").unwrap().progress;
        assert_eq!((carried.first_seen, carried.deadline), (now(), at("2026-03-06T04:30:45.5Z")));
        let mut headers = written();
        headers.retain(|(name, _)| ![FIRST_SEEN, DEADLINE].contains(name));
        headers.push((FIRST_SEEN, "2030-01-01T00:00:00Z".to_owned()));
        headers.push((DEADLINE, "9999-12-30T00:00:00Z".to_owned()));
        assert_eq!(read_back(&headers).unwrap().progress.deadline, at("2026-03-08T05:00:00Z"));
    }

    #[test]
    fn the_deadline_of_a_fresh_command_is_asked_for_within_the_deadline_limits_or_the_default() {
        let check = |header: Option<&str>, wanted: &str| {
            assert_eq!(deadline(header, now(), DEADLINE_LIMITS), Ok(at(wanted)), "{header:?}");
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
    fn a_million_attempts_are_believed_and_end_the_command() {
        let carried = with(ATTEMPTS, "1000000").unwrap();
        assert_eq!(carried.progress.attempts, 1_000_000);
        let mut carried = with(DELAYS_PASSED, &u32::MAX.to_string()).unwrap().progress;
        let step = carried.delay(&crate::policy::attempt::Limits::default(), now());
        assert!(step.is_some());
        assert_eq!(carried.delays_passed, u32::MAX, "the count stops, it does not wrap");
    }

    #[test]
    fn the_last_sixteen_attempts_are_carried_however_many_there_were() {
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
    fn any_header_of_a_copy_makes_one_and_the_deadline_alone_does_not() {
        for name in RETRY_MESSAGE_ONLY {
            assert!(is_retry_message(|asked| asked == name), "{name}");
        }
        assert!(!is_retry_message(|name| name == DEADLINE));
        assert!(!is_retry_message(|_| false));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[0-9]{1,12}",
            "[0-9]{1,6}-[0-9]{1,3}-[0-9]{1,3}T[0-9:.]{1,12}(Z|[+-][0-9:]{1,6})",
            "(clear|unknown|used|rejected|rejected_unclear|rejected_unverified)( [a-z_]{0,20})?",
            r#"[\[\]{}",:a-z0-9_]{0,60}"#,
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_headers_say_they_are_read_or_named(texts in prop::collection::vec(prop::option::of(text()), 12)) {
            let names: Vec<_> = RETRY_MESSAGE_ONLY.into_iter().chain([DEADLINE]).collect();
            let header = |name| names.iter().position(|known| *known == name).and_then(|n| texts[n].as_deref());
            if let Ok(carried) = read(header, BODY, now(), DEADLINE_LIMITS) {
                prop_assert!(carried.progress.first_seen <= now());
                prop_assert!(carried.evidence.len() <= Evidence::KEPT);
            }
            // One damaged header among sound ones reaches further.
            for name in names.iter().copied() {
                let text = texts[0].as_deref().unwrap_or_default();
                if let Ok(carried) = with(name, text) {
                    prop_assert!(carried.progress.deadline <= saturating(now(), DEADLINE_LIMITS.furthest));
                }
            }
        }
    }
}
