//! Decisions as pure functions: time and chance are arguments, and nothing here sleeps, sends or reads a clock.

pub mod adaptive_rate;
pub mod attempt;
pub mod backoff;
pub mod brand_access;
pub mod call_signal;
pub mod circuit;
pub mod classify;
pub mod common_rejection;
pub mod file_name;
pub mod host_choice;
pub mod prefetch_ramp;
pub mod rate_limit;
pub mod reminder;
pub mod retry_budget;
