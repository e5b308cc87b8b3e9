//! The running service: what waits, calls, publishes and acknowledges.

pub mod circuit_gate;
mod consume_loop;
mod counted;
pub mod dead_letter_sweep;
pub mod failpoints;
mod held_back;
pub mod key_reload;
pub mod lanes;
pub mod message_size;
pub mod notices;
pub mod permits;
pub mod publishing;
mod queue_monitor;
pub mod rate_limiter;
mod readiness;
pub mod response_log;
pub mod service;
pub mod shutdown;
pub mod supervisor;
pub mod worker;
