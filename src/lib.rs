//! placeholder
pub mod coupon;
pub mod redemption;

pub mod attempt;
pub mod backoff;
pub mod verdict;

pub mod wire;

pub mod wechat;
