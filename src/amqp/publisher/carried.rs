//! The headers and properties of a command that its next message keeps, bounded by one frame.

use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::amqp::connection::PUBLISHED_FRAME_BYTES_MAX;
use crate::amqp::delivery::Delivery;
use crate::wire::retry_message;

pub(super) const PERSISTENT: u8 = 2;

/// All headers of a message must fit into one frame, or the broker closes the connection: the size of our frames, less the
/// properties beside them (255 bytes at most each).
pub(super) const HEADERS_BYTES_MAX: usize = PUBLISHED_FRAME_BYTES_MAX as usize - 3 * 1024;

/// The bytes of the sender's headers that a retry message keeps, at most. Ours come first: some 20 KB, and 47 if they are
/// forged, see [`retry_message::read`].
pub(super) const SENDER_HEADERS_BYTES_MAX: usize = 32 * 1024;

/// The properties of the next message of a command: those that its sender set, and our headers in place of older ones.
pub(super) fn carried_on(command: &Delivery, headers: Vec<(&'static str, String)>) -> AMQPProperties {
    let sent = command.headers().into_iter().flat_map(|headers| headers.inner());
    let table = carried_headers(sent, headers);
    carried_properties(command.properties()).with_headers(table).with_delivery_mode(PERSISTENT)
}

pub(super) fn carried_headers<'a>(
    sent: impl Iterator<Item = (&'a ShortString, &'a AMQPValue)>,
    headers: Vec<(&'static str, String)>,
) -> FieldTable {
    let mut table = FieldTable::default();
    // Our own headers are replaced as a whole; if there are no new ones, the old ones are kept.
    let replaced = headers.iter().any(|(name, _)| *name == retry_message::ATTEMPTS);
    let mut taken = 0;
    for (name, value) in headers {
        let (name, value) = (ShortString::from(name), AMQPValue::LongString(value.into()));
        taken += entry_size(&name, &value);
        table.insert(name, value);
    }
    let mut room = SENDER_HEADERS_BYTES_MAX.min(HEADERS_BYTES_MAX.saturating_sub(taken));
    let is_ours = |name: &ShortString| name.as_str().starts_with("x-redemption-");
    let (ours, others): (Vec<_>, Vec<_>) = sent.partition(|(name, _)| is_ours(name));
    for (name, value) in ours.into_iter().chain(others) {
        let broker_made = name.as_str().starts_with("x-death")
            || name.as_str().starts_with("x-first-death")
            || name.as_str().starts_with("x-last-death")
            || matches!(name.as_str(), "x-delivery-count" | "CC" | "BCC");
        if broker_made || (is_ours(name) && replaced) || table.contains_key(name.as_str()) {
            continue;
        }
        let left_out = AMQPValue::LongString("left out: too long".into());
        let fits = |value: &AMQPValue| room.checked_sub(entry_size(name, value));
        let kept = match fits(value) {
            Some(left) => Some((left, value.clone())),
            // The presence of a header of ours must still be seen.
            None if is_ours(name) => fits(&left_out).map(|left| (left, left_out)),
            None => None,
        };
        if let Some((left, value)) = kept {
            room = left;
            table.insert(name.clone(), value);
        }
    }
    table
}

/// The sender's properties that a retry message keeps. Not `user_id`, with which only its owner may publish; not
/// `expiration`, which would end a retry message early.
pub(super) fn carried_properties(of: &AMQPProperties) -> AMQPProperties {
    let mut properties = AMQPProperties::default();
    if let Some(text) = of.content_type() {
        properties = properties.with_content_type(text.clone());
    }
    if let Some(text) = of.content_encoding() {
        properties = properties.with_content_encoding(text.clone());
    }
    if let Some(text) = of.correlation_id() {
        properties = properties.with_correlation_id(text.clone());
    }
    if let Some(text) = of.reply_to() {
        properties = properties.with_reply_to(text.clone());
    }
    if let Some(text) = of.message_id() {
        properties = properties.with_message_id(text.clone());
    }
    if let Some(at) = of.timestamp() {
        properties = properties.with_timestamp(*at);
    }
    if let Some(text) = of.kind() {
        properties = properties.with_type(text.clone());
    }
    if let Some(text) = of.app_id() {
        properties = properties.with_app_id(text.clone());
    }
    if let Some(priority) = of.priority() {
        properties = properties.with_priority(*priority);
    }
    properties
}

/// The encoded size of a header, in bytes, at most: of thousands of tiny ones most is overhead.
pub(super) fn entry_size(name: &ShortString, value: &AMQPValue) -> usize {
    1 + name.as_str().len() + size(value)
}

/// The same of a value: its type, a length, and its content.
pub(super) fn size(value: &AMQPValue) -> usize {
    5 + match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::ByteArray(bytes) => bytes.len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(size).sum(),
        AMQPValue::FieldTable(table) => {
            table.inner().iter().map(|(name, value)| entry_size(name, value)).sum()
        }
        _ => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> AMQPValue {
        AMQPValue::LongString("x".repeat(bytes).into())
    }

    fn carried(sent: &[(String, AMQPValue)], ours: &[(&'static str, usize)]) -> (FieldTable, usize) {
        let sent: Vec<_> =
            sent.iter().map(|(name, value)| (ShortString::from(name.as_str()), value.clone())).collect();
        let ours = ours.iter().map(|(name, bytes)| (*name, "y".repeat(*bytes))).collect();
        let table = carried_headers(sent.iter().map(|(name, value)| (name, value)), ours);
        let size = table.inner().iter().map(|(name, value)| entry_size(name, value)).sum();
        (table, size)
    }

    #[test]
    fn whatever_a_sender_sets_all_headers_fit_into_one_frame() {
        let voids: Vec<_> =
            (0..3_000).map(|nth| (format!("x-redemption-{nth:04}"), AMQPValue::Void)).collect();
        let (table, size) = carried(&voids, &[]);
        assert!(size <= SENDER_HEADERS_BYTES_MAX && table.inner().len() > 500, "{size}");

        let forged = [
            (retry_message::ATTEMPTS, 1),
            (retry_message::EVIDENCE, 28_000),
            (retry_message::REJECTION, 16_384),
        ];
        let sent =
            [("a".to_owned(), text(32_700)), ("b".to_owned(), text(10_000)), ("c".to_owned(), text(9))];
        let (table, size) = carried(&sent, &forged);
        assert!(size <= HEADERS_BYTES_MAX, "{size}");
        let kept = ["a", "b", "c", retry_message::EVIDENCE, retry_message::REJECTION]
            .map(|name| table.contains_key(name));
        assert_eq!(kept, [false, true, true, true, true]);
    }

    #[test]
    fn own_headers_are_kept_first_and_marked_if_too_long() {
        let sent = [
            ("a".to_owned(), text(32_000)),
            (retry_message::ATTEMPTS.to_owned(), text(40_000)),
            (retry_message::EVIDENCE.to_owned(), text(2_000)),
        ];
        let (table, size) = carried(&sent, &[]);
        assert!(size <= SENDER_HEADERS_BYTES_MAX, "{size}");
        assert!(!table.contains_key("a") && table.contains_key(retry_message::EVIDENCE));
        let AMQPValue::LongString(mark) = &table.inner()[retry_message::ATTEMPTS] else { panic!("no mark") };
        assert_eq!(mark.as_bytes(), b"left out: too long");
    }
}
