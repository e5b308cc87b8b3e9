//! Logs, spans and metrics.

pub mod events;
mod json_log;
pub mod log;
pub mod masking;
pub mod metrics;
pub mod spans;
pub mod status;
pub mod untrusted;
