//! placeholder
pub mod coupon;
pub mod redemption;

pub mod attempt;
pub mod backoff;
pub mod verdict;

pub mod wire;

pub mod breaker;
pub mod broker;
pub mod lanes;
pub mod metrics;
pub mod pace;
pub mod shutdown;
pub mod telemetry;
pub mod wechat;
pub mod worker;
