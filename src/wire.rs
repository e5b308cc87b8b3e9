//! The texts that travel through the broker: commands in, events out, and the headers of a retry message.
//!
//! This is one of the two edges where serde lives; the other is [`crate::wechat`]. What is read here is a trusted
//! word afterwards, and what is written here is made of words.

pub mod audit_event;
pub mod command;
pub mod console_event;
pub mod coupon;

pub mod handed_back;
pub mod result_event;
pub mod retry_message;
pub mod schema;
mod schema_words;
