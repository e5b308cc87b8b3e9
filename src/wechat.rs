//! The payment API: sends signed operations and returns verified responses.
//!
//! Facts: the "use" and "query" pages of the partner product-coupon API, and the platform's pages on signing,
//! verification, keys and disaster recovery. Nothing here decides what a response means; that is
//! [`crate::policy::classify`].

pub mod certificates;
pub mod client;
pub mod keys;
pub mod key_remedy;
pub mod pem;
pub mod replay;
pub mod response;
pub mod secret_file;
pub mod sign;
pub mod verify;
