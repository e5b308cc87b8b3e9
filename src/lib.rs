//! placeholder
pub mod coupon;
pub mod redemption;

pub mod backoff;

pub mod verdict;

pub mod attempt;

pub mod wire;

pub mod wechat;
