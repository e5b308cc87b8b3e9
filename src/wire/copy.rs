//! The headers that carry a command's progress through a wait queue, and back.
//!
//! Anyone who may publish to the command queue can forge them, so nothing here is trusted further than it can be
//! checked: a damaged copy is an ending, never a loop, and no header can prolong a command beyond the limits.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::attempt::{Belief, Evidence, Objection, Progress};
use crate::wire::event::Entry;

/// Questions put so far.
pub const ATTEMPTS: &str = "x-redemption-attempts";
/// Wait queues passed so far.
pub const TIERS: &str = "x-redemption-tiers";
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
/// The provider's last objection, as JSON.
pub const OBJECTION: &str = "x-redemption-objection";

/// The headers that only a copy has.
const COPY_ONLY: [&str; 7] = [ATTEMPTS, TIERS, FIRST_SEEN, LAST_VERDICT, BODY_SHA256, EVIDENCE, OBJECTION];

/// The longest text read from one header, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// A progress and the attempts that led to it, as a copy carried them.
#[derive(Debug, Clone, PartialEq)]
pub struct Carried {
    /// How far the command has come.
    pub progress: Progress,
    /// The attempts that are remembered, oldest first.
    pub evidence: Vec<Evidence>,
}

/// What is wrong with a copy's headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
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
pub struct Horizon {
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
        (TIERS, progress.tiers_passed.saturating_add(1).to_string()),
        (FIRST_SEEN, progress.first_seen.to_string()),
        (DEADLINE, progress.deadline.to_string()),
        (LAST_VERDICT, progress.belief.to_words()),
        (BODY_SHA256, body_sha256.to_owned()),
        (EVIDENCE, json(&entries)),
    ];
    if let Some(objection) = &progress.objection {
        headers.push((OBJECTION, json(&ObjectionEntry::from(objection))));
    }
    headers
}

/// Whether a message carries any header that only a copy has.
pub fn is_copy(has: impl Fn(&str) -> bool) -> bool {
    COPY_ONLY.into_iter().any(has)
}

/// The deadline of a fresh command. One that lies beyond the horizon is drawn in, one that cannot be read is told.
///
/// # Errors
/// [`Damage::Unreadable`] where the header is not an RFC 3339 time.
pub fn deadline(header: Option<&str>, first_seen: Timestamp, horizon: Horizon) -> Result<Timestamp, Damage> {
    match header {
        None => Ok(saturating(first_seen, horizon.default)),
        Some(text) => {
            let asked: Timestamp = text.parse().map_err(|_| Damage::Unreadable(DEADLINE))?;
            Ok(asked.min(saturating(first_seen, horizon.furthest)))
        }
    }
}

/// Reads the headers of a copy. `header` gives the text of a header, `body_sha256` is the hash of the body that the
/// command makes today.
///
/// # Errors
/// [`Damage`] names the first header that is missing or makes no sense.
pub fn read<'a>(
    header: impl Fn(&'static str) -> Option<&'a str>,
    body_sha256: &str,
    now: Timestamp,
    horizon: Horizon,
) -> Result<Carried, Damage> {
    let wanted = |name| {
        let text = header(name).ok_or(Damage::Missing(name))?;
        if text.len() > HEADER_BYTES_MAX { Err(Damage::Unreadable(name)) } else { Ok(text) }
    };
    let time = |name| wanted(name)?.parse::<Timestamp>().map_err(|_| Damage::Unreadable(name));
    let count = |name| wanted(name)?.parse::<u32>().map_err(|_| Damage::Unreadable(name));

    let attempts = count(ATTEMPTS)?;
    let tiers_passed = count(TIERS)?;
    // A time of first sight in the future would move the horizon with it.
    let first_seen = time(FIRST_SEEN)?.min(now);
    let deadline = time(DEADLINE)?.min(saturating(first_seen, horizon.furthest));
    let belief = Belief::from_words(wanted(LAST_VERDICT)?).ok_or(Damage::Unreadable(LAST_VERDICT))?;
    if !wanted(BODY_SHA256)?.eq_ignore_ascii_case(body_sha256) {
        return Err(Damage::BodyChanged);
    }
    let entries: Vec<Entry> =
        serde_json::from_str(wanted(EVIDENCE)?).map_err(|_| Damage::Unreadable(EVIDENCE))?;
    let mut evidence: Vec<Evidence> = entries.into_iter().map(Evidence::from).collect();
    Evidence::keep_last(&mut evidence);
    let objection = match header(OBJECTION) {
        None => None,
        Some(_) => Some(
            serde_json::from_str::<ObjectionEntry>(wanted(OBJECTION)?)
                .map_err(|_| Damage::Unreadable(OBJECTION))?
                .into(),
        ),
    };
    let progress = Progress::resumed(attempts, tiers_passed, belief, first_seen, deadline, objection);
    Ok(Carried { progress, evidence })
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
struct ObjectionEntry {
    http_status: u16,
    code: Option<Box<str>>,
    sub_code: Option<u64>,
    message: Option<Box<str>>,
    request_id: Option<Box<str>>,
}

impl From<&Objection> for ObjectionEntry {
    fn from(objection: &Objection) -> Self {
        let Objection { http_status, code, sub_code, message, request_id } = objection.clone();
        Self { http_status, code, sub_code, message, request_id }
    }
}

impl From<ObjectionEntry> for Objection {
    fn from(entry: ObjectionEntry) -> Self {
        let ObjectionEntry { http_status, code, sub_code, message, request_id } = entry;
        Self { http_status, code, sub_code, message, request_id }
    }
}
