//! placeholder
pub mod attempt;
pub mod backoff;
pub mod coupon;
pub mod redemption;
pub mod verdict;
pub mod wire;
