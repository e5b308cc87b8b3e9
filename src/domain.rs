//! The words of the domain: a coupon as WeChat Pay describes it, and a redemption as an order service asks for it.
//! No IO and no serde: values here have been read and checked.

pub mod coupon;
pub mod redemption;
