//! Logs, spans and metrics.

pub mod events;
pub mod log;
pub mod metrics;
pub mod spans;
pub mod status;
pub mod untrusted;
