//! The words of the domain: a coupon as WeChat Pay describes it, a redemption as an order service requests it, and the
//! outcome of a command with its reason and evidence. No IO and no serde: values here were parsed and validated.

pub mod coupon;
pub mod evidence;
pub mod outcome;
pub mod reason;
pub mod redemption;
