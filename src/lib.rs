//! `redeemer` reads redemption commands from RabbitMQ, makes the signed WeChat Pay v3 call that uses a user's
//! product coupon, and publishes a result event with the coupon's state.
//!
//! # The way of a command
//! ```text
//! bytes -> Redemption -> Step::Ask -> wait -> sign, send -> Reply -> Verdict -> Step … -> Step::Finish(Outcome)
//!       -> Event -> Published -> ack(Delivery, Published)
//! ```
//! Only waiting, calling, publishing and acknowledging touch the world; everything between is a total function over
//! plain values.
//!
//! # What cannot be written
//! * An acknowledgement without proof: [`broker::delivery::Delivery::ack`] demands a
//!   [`broker::publisher::Published`], which only a confirmed publish makes.
//! * Settling twice: a [`broker::delivery::Delivery`] is consumed by settling.
//! * Another body for the same command: [`wechat::api::Prepared`] is written once and borrowed by every attempt.
//! * A signature used twice: [`wechat::sign::Signed`] is consumed by sending.
//! * A success without a signature: [`verdict::judge`] reads success only from a verified answer.
//!
//! # What is absent
//! No database: the broker holds what must survive, and the payment API is asked what happened. No recovery by the
//! broker's client, no retries by the HTTP client: both are decided here, in one place each ([`app`], [`attempt`]).
//! No guess: what is not known is called unresolved.
//!
//! # The house, ground floor first
//! A module looks only at those above it in this list.

pub mod domain;
pub mod policy;
pub mod wire;
pub mod telemetry;
pub mod wechat;
pub mod amqp;
pub mod config;
pub mod runtime;
pub mod parked;
pub mod admin;
pub mod app;
pub mod cli;
