//! The running service: what waits, calls, publishes and acknowledges.

pub mod circuit_gate;
pub mod dead_letter_sweep;
pub mod failpoints;
pub mod key_reload;
pub mod lanes;
pub mod message_size;
pub mod notices;
pub mod permits;
pub mod publishing;
pub mod rate_limiter;
pub mod response_log;
pub mod shutdown;
pub mod supervisor;
pub mod worker;
mod consume_loop;
mod held_back;
mod queue_monitor;
mod readiness;
